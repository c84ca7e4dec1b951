"""The API reference as a contract: signatures, and its examples run as written.

The examples use port 8080, so they take a machine-wide lock; only the path of the
model is supplied, as a file `model.gguf` in the working folder.
"""

from __future__ import annotations

import fcntl
import inspect
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest
from nvml_tools import StandInDriver, t4

import llamatelemetry.api.client as client_module
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.api.multigpu import (
    GPUInfo,
    create_tensor_split_config,
    kaggle_t4_dual_config,
)
from llamatelemetry.exceptions import LLCudaError, ModelError
from llamatelemetry.server import Engine, ServerConfig, ServerManager

EMPTY = inspect.Parameter.empty

# Name, parameters in order with their defaults: as the API reference lists them.
SIGNATURES: list[tuple[object, dict[str, object]]] = [
    (ServerConfig.to_cli_args, {}),
    (ServerConfig.to_dict, {}),
    (ServerConfig.from_dict, {"data": EMPTY}),
    (ServerManager.start_with_config, {"config": EMPTY}),
    (ServerManager.start, {"args": EMPTY}),
    (ServerManager.wait_until_ready, {"timeout": 60}),
    (ServerManager.is_running, {}),
    (ServerManager.get_url, {}),
    (ServerManager.stop, {}),
    (ServerManager.get_logs, {}),
    (
        LlamaCppClient.__init__,
        {"base_url": "http://127.0.0.1:8080", "api_key": None, "timeout": 30},
    ),
    (LlamaCppClient.health, {}),
    (LlamaCppClient.list_models, {}),
    (LlamaCppClient.get_props, {}),
    (LlamaCppClient.get_slots, {}),
    (
        LlamaCppClient.chat_completion,
        {
            "messages": EMPTY,
            "max_tokens": 256,
            "temperature": 0.8,
            "top_p": 0.95,
            "top_k": 40,
            "repeat_penalty": 1.1,
            "stop": None,
            "seed": None,
            "stream": False,
        },
    ),
    (LlamaCppClient.chat_completion_stream, {"messages": EMPTY}),
    (
        LlamaCppClient.completion,
        {"prompt": EMPTY, "max_tokens": 256, "temperature": 0.8, "stop": None},
    ),
    (LlamaCppClient.embeddings, {"input": EMPTY, "model": None}),
    (LlamaCppClient.tokenize, {"text": EMPTY}),
    (LlamaCppClient.detokenize, {"tokens": EMPTY}),
    (kaggle_t4_dual_config, {"model_path": None, "context_size": 4096}),
    (create_tensor_split_config, {"gpu_memory": EMPTY, "model_size_gb": EMPTY}),
]


@pytest.mark.parametrize(
    ("function", "expected"),
    SIGNATURES,
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_a_signature_is_as_listed(
    function: FunctionType, expected: dict[str, object]
) -> None:
    """The reference's parameters come first, positional, in order, with defaults."""
    parameters = [
        item
        for item in inspect.signature(function).parameters.values()
        if item.name not in ("self", "cls")
        and item.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]

    assert {item.name: item.default for item in parameters[: len(expected)]} == expected
    assert [item.name for item in parameters[: len(expected)]] == list(expected)
    assert len(parameters) == len(expected)


# Class, then its fields in the reference's order.
FIELDS = {
    "ChatCompletionResponse": ["id", "object", "created", "model", "choices", "usage"],
    "Choice": ["index", "message", "finish_reason"],
    "Message": ["role", "content"],
    "Usage": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "ChatCompletionChunk": ["id", "object", "created", "model", "choices"],
    "ChunkChoice": ["index", "delta", "finish_reason"],
    "Delta": ["role", "content"],
    "EmbeddingResponse": ["object", "data", "model", "usage"],
    "Embedding": ["object", "embedding", "index"],
    "ModelList": [],
    "CompletionResponse": [],
}


@pytest.mark.parametrize(("name", "fields"), FIELDS.items())
def test_a_response_has_the_listed_fields_first(name: str, fields: list[str]) -> None:
    """Response dataclasses are importable from the client's module, fields in order."""
    kind = getattr(client_module, name)

    assert list(inspect.signature(kind).parameters)[: len(fields)] == fields


EXAMPLES = {
    "import examples": """
import llamatelemetry
print(llamatelemetry.__version__)
from llamatelemetry.server import ServerManager, ServerConfig
from llamatelemetry.api.client import LlamaCppClient
""",
    "ServerManager": """
from llamatelemetry.server import ServerManager, ServerConfig

config = ServerConfig(
    model_path="model.gguf",
    n_gpu_layers=99,
    flash_attn=True,
)

server = ServerManager()
server.start_with_config(config)

if server.wait_until_ready(timeout=120):
    print(f"Server ready at {server.get_url()}")
else:
    print("Server failed to start")
    print(server.get_logs())

# ... use server ...

server.stop()
""",
    "exceptions": """
from llamatelemetry.server import ServerManager, ServerConfig
from llamatelemetry.exceptions import ServerError, ModelError

try:
    server = ServerManager()
    server.start_with_config(config)
except ModelError as e:
    print(f"Model error: {e}")
except ServerError as e:
    print(f"Server error: {e}")
""",
    "quick inference": """
from llamatelemetry.server import ServerManager, ServerConfig
from llamatelemetry.api.client import LlamaCppClient

# Start server
config = ServerConfig(model_path="model.gguf", n_gpu_layers=99)
server = ServerManager()
server.start_with_config(config)
server.wait_until_ready()

# Create client
client = LlamaCppClient()

# Chat
response = client.chat_completion(
    messages=[{"role": "user", "content": "Hello!"}]
)
print(response.choices[0].message.content)

# Cleanup
server.stop()
""",
    "multi-GPU inference": """
from llamatelemetry.api import kaggle_t4_dual_config
from llamatelemetry.server import ServerManager
from llamatelemetry.api.client import LlamaCppClient

# Get optimized config
config = kaggle_t4_dual_config(model_path="model.gguf")

# Start server
server = ServerManager()
server.start_with_config(config)
server.wait_until_ready()

# Use client
client = LlamaCppClient()
# ... inference ...
print(client.health(), config.to_cli_args())

server.stop()
""",
    "streaming with the OpenAI SDK": """
from openai import OpenAI
from llamatelemetry.server import ServerManager, ServerConfig

# Start server
server = ServerManager()
server.start_with_config(ServerConfig(
    model_path="model.gguf",
    n_gpu_layers=99,
))
server.wait_until_ready()

# Use OpenAI SDK
client = OpenAI(
    base_url="http://127.0.0.1:8080/v1",
    api_key="not-needed"
)

stream = client.chat.completions.create(
    model="model",
    messages=[{"role": "user", "content": "Hello!"}],
    stream=True,
)

for chunk in stream:
    if chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="")

server.stop()
""",
}

# These look at cards, which the stand-in driver describes.
CARD_EXAMPLES = {
    "split": """
from llamatelemetry.api.multigpu import create_tensor_split_config

# Example: Two GPUs with 15GB each, 10GB model
split = create_tensor_split_config([15, 15], 10)
print(split)  # "0.5,0.5"
""",
    "detect": """
from llamatelemetry.api.multigpu import detect_gpus

gpus = detect_gpus()

for gpu in gpus:
    print(f"GPU {gpu.index}: {gpu.name}")
    print(f"  Memory: {gpu.total_memory_gb} GB")
    print(f"  Compute: {gpu.compute_capability}")
""",
}

# These need a running server and a client, as the reference's text supposes.
CLIENT_EXAMPLES = {
    "chat completion": """
response = client.chat_completion(
    messages=[
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": "Hello!"}
    ],
    max_tokens=100,
    temperature=0.7,
)

print(response.choices[0].message.content)
print(f"Tokens: {response.usage.total_tokens}")
""",
    "streaming": """
for chunk in client.chat_completion_stream(
    messages=[{"role": "user", "content": "Hello!"}],
    max_tokens=100,
):
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="", flush=True)
""",
    "text completion": """
response = client.completion(
    prompt="The capital of France is",
    max_tokens=50,
)
print(response.choices[0].text)
""",
    "embeddings": """
response = client.embeddings(["Hello", "World"])
print(f"Dimension: {len(response.data[0].embedding)}")
""",
    "tokenization": """
tokens = client.tokenize("Hello, world!")
print(f"Tokens: {tokens.tokens}")

text = client.detokenize(tokens.tokens)
print(f"Text: {text.content}")
""",
}

# A pattern in what each prints; answers are sampled, so any sentence will do there.
# Words that each answer of the demo model has at least one of.
SENTENCE = r"(?i)\b(demo|model|models|memorised|toolkit|llama\S*|GGUF)\b"
PRINTED = {
    "import examples": r"0\.1\.0",
    "ServerManager": r"Server ready at http://127\.0\.0\.1:8080",
    "exceptions": "Model error: there is no model file .*not-there.gguf",
    "quick inference": SENTENCE,
    "streaming with the OpenAI SDK": SENTENCE,
    "multi-GPU inference": r"{'status': 'ok'} .*--split-mode layer --tensor-split \d",
    "split": "^0.5,0.5\n$",
    "detect": r"GPU 0: Tesla T4\n  Memory: 15\.0 GB\n  Compute: 7\.5\nGPU 1: ",
    "chat completion": SENTENCE + r"[\s\S]*Tokens: \d+",
    "streaming": SENTENCE,
    "text completion": r"\w+",
    "embeddings": "Dimension: 192",
    "tokenization": r"Tokens: \[\d+[\s\S]*Text: Hello, world!",
}


@pytest.fixture
def port_8080() -> Iterator[None]:
    """Hold port 8080 for this test alone, also against other clones of the project."""
    path = Path(tempfile.gettempdir()) / "llamatelemetry-tests-port-8080.lock"
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def here(tmp_path: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which the model is called model.gguf."""
    monkeypatch.chdir(tmp_path)
    os.symlink(demo_model, tmp_path / "model.gguf")
    return tmp_path


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.usefixtures("port_8080", "here")
def test_an_example_runs_as_written(
    name: str,
    engine: Engine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every server, client and exception example of the reference does its work."""
    name_of_engine = "embedded" if engine.embedded else engine.command[0]
    monkeypatch.setenv("LLAMATELEMETRY_SERVER", name_of_engine)
    names: dict[str, object] = {"config": ServerConfig("not-there.gguf")}
    try:
        exec(compile(EXAMPLES[name], name, "exec"), names)
    finally:
        server = names.get("server")
        if isinstance(server, ServerManager):
            server.stop()
        client = names.get("client")
        if client is not None:
            client.close()  # type: ignore[attr-defined]

    assert re.search(PRINTED[name], capsys.readouterr().out)


@pytest.mark.parametrize("name", CLIENT_EXAMPLES)
def test_a_client_example_runs_as_written(
    name: str, client: LlamaCppClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every client example of the reference works with a running server."""
    exec(compile(CLIENT_EXAMPLES[name], name, "exec"), {"client": client})

    assert re.search(PRINTED[name], capsys.readouterr().out)


@pytest.mark.parametrize("name", CARD_EXAMPLES)
def test_an_example_of_cards_runs_as_written(
    name: str, driver: StandInDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    """The examples of the multi-GPU section print what the reference says."""
    driver.describe(t4(0), t4(1))
    exec(compile(CARD_EXAMPLES[name], name, "exec"), {})

    assert re.search(PRINTED[name], capsys.readouterr().out)


def test_a_card_has_the_listed_fields_first() -> None:
    """GPUInfo takes the reference's five fields, in order, the others have defaults."""
    listed = ["index", "name", "total_memory_gb", "free_memory_gb"]
    fields = list(inspect.signature(GPUInfo).parameters)

    assert [*listed, "compute_capability"] == fields[:5]
    assert GPUInfo(0, "Tesla T4", 15.0, 14.7, "7.5").compute_capability == "7.5"


def test_the_five_families_of_errors_have_one_base() -> None:
    """Every error the reference lists can be caught as LLCudaError."""
    from llamatelemetry import exceptions

    for name in ("ServerError", "ClientError", "ModelError", "ConfigurationError"):
        assert issubclass(getattr(exceptions, name), LLCudaError)
    assert issubclass(ModelError, LLCudaError)
