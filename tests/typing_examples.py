"""User-style code that must pass strict mypy; checked by `make lint`, never run."""

from __future__ import annotations

from collections.abc import Generator
from typing import assert_type

from llamatelemetry import LlamaCppClient, ServerConfig, ServerManager
from llamatelemetry.api.client import (
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatStream,
)
from llamatelemetry.exceptions import LLCudaError

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
