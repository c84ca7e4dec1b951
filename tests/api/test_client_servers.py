"""The client with servers that are set up, or go down, in a certain way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tiny_model import THINKING_TEMPLATE, write_tiny_model

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import (
    AuthenticationError,
    ClientError,
    ConnectionFailedError,
    NotSupportedError,
    StreamError,
)
from llamatelemetry.server import Engine, ServerConfig, ServerManager

MESSAGES = [{"role": "user", "content": "Hello!"}]
THOUGHT = 'root ::= "<think>\\n" [a-z]{20} "\\n</think>\\n\\n" "yes"'
Start = Callable[..., ServerManager]


@pytest.fixture
def start(engine: Engine, tiny_model: Path) -> Iterator[Start]:
    """Starts a server with options of its own; all end with the test."""
    with ExitStack() as stack:

        def start(model: Path = tiny_model, **options: Any) -> ServerManager:
            config = ServerConfig(model, **{"port": 0, "threads": 1, **options})
            manager = ServerManager(config, engine=engine, timeout=60)
            return stack.enter_context(manager)

        yield start


def kill(server: ServerManager) -> None:
    """Kill a server's process as the system does when memory runs out."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)


def test_the_key_is_asked_for(start: Start) -> None:
    """Without it, and with a wrong one, everything but health is refused."""
    url = start(api_key="sk-right").get_url()

    assert LlamaCppClient(url).health() == {"status": "ok"}
    for key in (None, "sk-wrong"):
        with pytest.raises(AuthenticationError):
            LlamaCppClient(url, key).list_models()
        with pytest.raises(AuthenticationError):
            LlamaCppClient(url, key).chat_completion(MESSAGES)
    right = LlamaCppClient(url, api_key="sk-right")
    assert right.chat_completion(MESSAGES, max_tokens=1).usage.prompt_tokens > 0


def test_what_a_bare_server_lacks_is_named(start: Start) -> None:
    """Embeddings, metrics and slots that are off name their flags."""
    client = LlamaCppClient(start(metrics=False, slots=False).get_url())
    for call, flag in (
        (lambda: client.embeddings("x"), "--embeddings"),
        (client.metrics, "--metrics"),
        (client.get_slots, "--slots"),
    ):
        with pytest.raises(NotSupportedError) as caught:
            call()
        assert caught.value.flag == flag


def test_a_slot_is_saved_restored_and_erased(start: Start, tmp_path: Path) -> None:
    """A slot's cache goes to a file and back, with the sizes told."""
    client = LlamaCppClient(start(slot_save_path=tmp_path).get_url())
    client.chat_completion(MESSAGES, max_tokens=4, id_slot=0)
    saved = client.save_slot(0, "kept.bin")
    erased = client.erase_slot(0)
    restored = client.restore_slot(0, "kept.bin")

    assert saved.tokens == erased.tokens == restored.tokens > 0
    assert (
        saved.size_bytes
        == restored.size_bytes
        == ((tmp_path / "kept.bin").stat().st_size)
    )
    with pytest.raises(ClientError):
        client.restore_slot(0, "missing.bin")


def test_thinking_is_kept_apart_and_can_be_turned_off(
    start: Start, tmp_path: Path
) -> None:
    """Reasoning is not in the content; the switch reaches the template."""
    model = write_tiny_model(
        tmp_path / "thinking.gguf", chat_template=THINKING_TEMPLATE
    )
    client = LlamaCppClient(start(model).get_url())
    message = (
        client.chat_completion(MESSAGES, thinking=True, grammar=THOUGHT)
        .choices[0]
        .message
    )
    off = client.chat_completion(MESSAGES, thinking=False, max_tokens=1)
    on = client.chat_completion(MESSAGES, thinking=True, max_tokens=1)

    assert message.content == "yes"
    assert message.reasoning_content is not None
    assert len(message.reasoning_content.strip()) == 20
    assert off.usage.prompt_tokens > on.usage.prompt_tokens
    with pytest.warns(UserWarning, match="thinking=False"):
        cut_off = client.chat_completion(MESSAGES, max_tokens=8, grammar=THOUGHT)
    assert cut_off.choices[0].cut_off_in_reasoning


def test_a_server_killed_while_it_streams(start: Start) -> None:
    """The stream ends in a StreamError that keeps what had come, at once."""
    server = start(context_size=4096)
    client = LlamaCppClient(server.get_url())
    stream = client.chat_completion_stream(
        MESSAGES, max_tokens=3800, grammar='root ::= "ab"{1900}'
    )
    while len(stream.text) < 10:
        next(stream)
    kill(server)
    killed = time.monotonic()
    with pytest.raises(StreamError) as caught:
        list(stream)

    assert caught.value.partial.choices[0].message.content.startswith("ababababab")
    assert time.monotonic() - killed < 10  # and not after the 30 s of silence
    with pytest.raises(ConnectionFailedError):
        client.chat_completion(MESSAGES)


def test_a_server_killed_between_requests(start: Start) -> None:
    """A kept connection to a dead server ends in ConnectionFailedError."""
    server = start()
    client = LlamaCppClient(server.get_url())
    assert client.tokenize("x").tokens
    kill(server)
    deadline = time.monotonic() + 5
    while server.is_running() and time.monotonic() < deadline:
        time.sleep(0.01)

    with pytest.raises(ConnectionFailedError):
        client.tokenize("x")


def test_a_server_that_comes_back_is_found_again(start: Start) -> None:
    """After a restart on the same port the same client goes on."""
    server = start()
    client = LlamaCppClient(server.get_url())
    assert client.tokenize("x").tokens
    server.stop()
    start(port=int(client.base_url.rpartition(":")[2]))

    assert client.completion("x", max_tokens=1).choices
