"""User-style code that must pass strict mypy; checked by `make lint`, never run."""

from __future__ import annotations

from collections.abc import Generator
from typing import assert_type

from llamatelemetry import (
    LlamaCppClient,
    ServerConfig,
    ServerManager,
    ServerPool,
    doctor,
    ensure_engine,
    ensure_model,
    prepare,
)
from llamatelemetry.api import Placement, kaggle_t4_dual_config, plan_placement
from llamatelemetry.api.client import (
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatStream,
)
from llamatelemetry.exceptions import LLCudaError
from llamatelemetry.gguf import MemoryPlan
from llamatelemetry.gpu import GPUMonitor, GPUSample, detect_gpus
from llamatelemetry.server import Engine
from llamatelemetry.setup import LocalModel, Prepared, SetupPlan, recommend_model

config = ServerConfig("model.gguf", port=0, flash_attn=True)
assert_type(config.replace(port=1), ServerConfig)
assert_type(config.to_cli_args(), str)

with ServerManager(config, timeout=120) as server:
    assert_type(server.get_url(), str)
    assert_type(server.error, LLCudaError | None)
    client = LlamaCppClient(server.get_url())
    messages = [{"role": "user", "content": "Hello!"}]

    whole = client.chat_completion(messages)
    assert_type(whole, ChatCompletionResponse)
    assert_type(whole.choices[0].message.content, str | None)

    stream = client.chat_completion(messages, stream=True)
    assert_type(stream, ChatStream)
    as_generator: Generator[ChatCompletionChunk, None, None] = stream
    for chunk in client.chat_completion_stream(messages, max_tokens=5):
        assert_type(chunk, ChatCompletionChunk)
    assert_type(stream.result(), ChatCompletionResponse)

engine = ensure_engine(min_build=9000)
assert_type(engine, Engine)
model = ensure_model("qwen3-4b")
assert_type(model, LocalModel)
ServerConfig(model)
prepared = prepare("qwen3-4b")
assert_type(prepared, Prepared)
assert_type(prepared.plan, MemoryPlan)
assert_type(prepare(dry_run=True), SetupPlan)
assert_type(recommend_model("2x15", "coder").id, str)
assert_type(doctor().ok, bool)
for gpu in detect_gpus():
    assert_type(gpu.name, str)

assert_type(kaggle_t4_dual_config("model.gguf"), ServerConfig)
placement = plan_placement("model.gguf", "2x15", goal="throughput")
assert_type(placement, Placement)
with ServerPool(placement) as pool, GPUMonitor(0.5) as monitor:
    pooled: LlamaCppClient = pool.client
    assert_type(pooled.chat_completion(messages), ChatCompletionResponse)
    assert_type(pool.status().ready, int)
    assert_type(monitor.latest(), tuple[GPUSample, ...])
with ServerPool(config, gpus=[[0], [1]]), ServerPool([config]):
    pass
