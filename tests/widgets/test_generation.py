"""One answer as it comes, on real engines and on a server that misbehaves."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_tools import MESSAGES, STAND_IN, StandIn
from manager_tools import wait_for
from tiny_model import THINKING_TEMPLATE, write_tiny_model

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import (
    AuthenticationError,
    ClientError,
    ConnectionFailedError,
    ContextLengthError,
    RequestTimeoutError,
)
from llamatelemetry.server import Engine, ServerConfig, ServerManager
from llamatelemetry.widgets import _chat_room
from llamatelemetry.widgets._chat_errors import explained
from llamatelemetry.widgets._chat_room import measure, overflow
from llamatelemetry.widgets._chat_words import status_line
from llamatelemetry.widgets._generation import Generation, Progress, _is_busy, named

ENDLESS = {"extra_body": {"ignore_eos": True}}
THOUGHT = 'root ::= "<think>\\n" [a-z]{20} "\\n</think>\\n\\n" "yes"'
LONG = [{"role": "user", "content": "hello the hell in there " * 150}]


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that takes some seconds for 4,096 tokens."""
    path = tmp_path_factory.mktemp("slow") / "slow.gguf"
    return write_tiny_model(path, layers=6, width=512, context_length=8192)


@pytest.fixture(scope="module")
def slow_client(engine: Engine, slow_model: Path) -> Iterator[LlamaCppClient]:
    """A client of a server of it, with two slots of 4,096 tokens."""
    config = ServerConfig(
        slow_model, port=0, context_size=8192, parallel=2, threads=1, metrics=True
    )
    with (
        ServerManager(config, engine=engine, timeout=60) as server,
        LlamaCppClient(server.get_url()) as client,
    ):
        yield client


def generate(client: LlamaCppClient, **options: Any) -> Generation:
    """Start an answer to "Hello!"."""
    generation = Generation(client, MESSAGES, options)
    generation.start()
    return generation


def finished(client: LlamaCppClient, **options: Any) -> Progress:
    """Return how an answer ended."""
    generation = generate(client, **options)
    assert generation.wait(60)
    return generation.progress


def busy_slots(client: LlamaCppClient) -> int:
    """Return how many slots work."""
    return sum(slot["is_processing"] for slot in client.get_slots())


def test_an_answer_comes_with_its_figures(client: LlamaCppClient) -> None:
    """The demo model's answer is whole, and everything about it is known."""
    changes = []
    generation = Generation(
        client, MESSAGES, {"temperature": 0}, lambda: changes.append(1)
    )
    assert generation.state == "waiting"
    assert generation.progress.text == ""
    generation.start()
    assert generation.wait(30)

    progress = generation.progress
    assert progress.state == "done"
    assert progress.is_over
    assert generation.is_over
    assert progress.text
    assert progress.finish_reason == "stop"
    assert progress.context_size == 1024
    assert progress.prompt_tokens is not None
    assert progress.max_tokens == 1024 - progress.prompt_tokens
    assert progress.total_tokens == progress.prompt_tokens + progress.completion_tokens
    assert progress.first_token_seconds is not None
    assert progress.tokens_per_second is not None
    assert progress.seed is not None
    assert len(changes) > 2
    assert f"{progress.total_tokens:,} of 1,024 tokens" in status_line(progress)


def test_of_several_answers_the_first_is_taken(stand_in: StandIn) -> None:
    """Words of a second one are not mixed in, also where a server sends it unasked."""
    alone = finished(stand_in.client(tokens=5))
    both = finished(stand_in.client(tokens=5, choices=2))

    assert both.state == "done"
    assert both.text == alone.text != ""


def test_tokens_per_second_are_counted_between_tokens() -> None:
    """Where the server tells no figure: the first token's wait is no part of it."""
    generation = Generation(LlamaCppClient("http://127.0.0.1:9"), MESSAGES)
    generation._began = 90.0
    generation._text = ["a", "b", "c"]
    generation._first, generation._latest = 100.0, 101.0

    assert generation.progress.tokens_per_second == 2.0
    assert generation.progress.first_token_seconds == 10.0


def test_the_prompt_is_read_before_the_answer(slow_client: LlamaCppClient) -> None:
    """While a long prompt is read, how much of it is known, and only grows."""
    seen: list[Progress] = []
    options = {**ENDLESS, "max_tokens": 32}  # four may all be parts of a letter
    generation = Generation(
        slow_client, LONG, options, lambda: seen.append(generation.progress)
    )
    generation.start()
    wait_for(lambda: bool(seen) and seen[-1].is_over, 60)
    reading = [
        one.read for one in seen if one.state == "reading" and one.read is not None
    ]
    assert reading == sorted(reading)
    assert len(set(reading)) > 1
    states = list(dict.fromkeys(one.state for one in seen))
    assert states == ["waiting", "reading", "answering", "done"]
    assert "Reading the prompt" in status_line(
        next(one for one in seen if one.state == "reading")
    )


def test_a_stop_frees_the_slot_and_keeps_the_text(slow_client: LlamaCppClient) -> None:
    """After stop() no text comes, and "stopped" is said once the slot was seen idle."""
    generation = generate(slow_client, **ENDLESS)
    wait_for(lambda: generation.progress.completion_tokens > 3, 30)
    generation.stop()
    text = generation.progress.text
    assert generation.state in ("stopping", "stopped")
    assert not generation.takes_text
    assert generation.wait(30)
    assert busy_slots(slow_client) == 0

    progress = generation.progress
    assert progress.state == "stopped"
    assert progress.text == text != ""
    assert progress.idle_seconds is not None
    assert progress.note == ""
    assert "Stopped · slot idle after" in status_line(progress)
    generation.stop()
    assert generation.state == "stopped"


def test_a_stop_while_the_prompt_is_read(slow_client: LlamaCppClient) -> None:
    """It says "stopping" at once, and "stopped" when the slot is idle."""
    generation = Generation(
        slow_client, LONG, {"max_tokens": 50, "cache_prompt": False}
    )
    generation.start()
    wait_for(lambda: generation.state != "waiting", 30)
    generation.stop()
    assert generation.state in ("stopping", "stopped")
    assert generation.wait(60)
    assert generation.progress.idle_seconds is not None
    assert busy_slots(slow_client) == 0


def test_two_answers_on_one_server_are_told_apart(slow_client: LlamaCppClient) -> None:
    """Stopping one is over while the other still goes on."""
    first, second = generate(slow_client, **ENDLESS), generate(slow_client, **ENDLESS)
    for one in (first, second):
        wait_for(lambda one=one: one.progress.completion_tokens > 3, 30)  # type: ignore[misc]
    first.stop()
    assert first.wait(30)
    assert first.progress.idle_seconds is not None
    assert second.state == "answering"
    second.leave()
    assert second.wait(30)


def test_a_queued_request_can_be_stopped(slow_client: LlamaCppClient) -> None:
    """A request that waits for a slot ends at once, and says that it had not begun."""
    others = [generate(slow_client, **ENDLESS) for _ in range(2)]
    for one in others:
        wait_for(lambda one=one: one.progress.completion_tokens > 3, 30)  # type: ignore[misc]
    waiting = generate(slow_client, **ENDLESS)
    wait_for(lambda: slow_client.metrics()["llamacpp:requests_deferred"] == 1, 30)
    waiting.stop()
    assert waiting.wait(30)
    assert waiting.progress.state == "stopped"
    assert waiting.progress.text == ""
    assert "had not begun" in waiting.progress.note
    assert all(one.state == "answering" for one in others)
    for one in others:
        one.leave()
        assert one.wait(30)


def test_max_tokens_is_the_room_left(client: LlamaCppClient) -> None:
    """Left to itself an answer fills the context to its last token, and no more."""
    progress = finished(client, **ENDLESS)
    assert progress.finish_reason == "length"
    assert progress.total_tokens in (1023, 1024)
    assert "Cut off at" in status_line(progress)


def test_a_conversation_that_is_too_long_is_not_sent(
    slow_client: LlamaCppClient,
) -> None:
    """By how much it is too long, and how many questions to drop, is said before."""
    turn = [
        {"role": "user", "content": "there " * 300},
        {"role": "assistant", "content": "hello"},
    ]
    generation = Generation(slow_client, [*turn * 4, MESSAGES[0]], {})
    generation.start()
    assert generation.wait(60)
    progress = generation.progress
    assert progress.state == "failed"
    assert progress.drop == 2
    assert "Drop the 2 oldest questions with the answers" in progress.note
    assert "too many" in progress.note

    alone = Generation(slow_client, [{"role": "user", "content": "there " * 2000}], {})
    alone.start()
    assert alone.wait(60)
    assert alone.progress.drop is None
    assert "Shorten the message" in alone.progress.note

    last = {"role": "user", "content": "there " * 2000}
    both = Generation(slow_client, [*turn, last], {})
    both.start()
    assert both.wait(60)
    assert both.progress.drop is None
    assert "Clear the conversation and shorten the message" in both.progress.note


def test_reasoning_comes_apart(engine: Engine, tmp_path: Path) -> None:
    """What a model thinks is not in its text; cut off in it is said as that."""
    model = write_tiny_model(tmp_path / "m.gguf", chat_template=THINKING_TEMPLATE)
    config = ServerConfig(model, port=0, context_size=512, threads=1)
    with ServerManager(config, engine=engine, timeout=60) as server:
        client = LlamaCppClient(server.get_url())
        whole = finished(client, thinking=True, grammar=THOUGHT)
        cut = finished(client, thinking=True, grammar=THOUGHT, max_tokens=15)
    assert len(whole.reasoning.strip()) == 20
    assert whole.text.strip() == "yes"
    assert cut.reasoning
    assert cut.text == ""
    assert cut.cut_off_in_reasoning
    assert "inside the reasoning" in status_line(cut)


def test_a_stand_in_without_slots_or_context(stand_in: StandIn) -> None:
    """Where neither is said, the server's limit holds, and a stop is over at once."""
    url = stand_in.url(tokens=5, thoughts=3)
    progress = finished(LlamaCppClient(url))
    assert progress.state == "done"
    assert progress.text == "w0 w1 w2 w3 w4 "
    assert progress.reasoning == "t0 t1 t2 "
    assert progress.context_size is None
    assert progress.max_tokens is None
    body = stand_in.asked(url)["body"]
    assert "max_tokens" not in body
    assert body["seed"] == progress.seed

    slow = generate(stand_in.client(tokens=5000, pace=0.01))
    wait_for(lambda: slow.progress.completion_tokens > 2)
    slow.stop()
    assert slow.wait(30)
    assert "does not say what its slots do" in status_line(slow.progress)


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        ({"status": 401}, "wants the API key"),
        ({"status": 400, "error": "exceed_context_size_error"}, "5,491 too many"),
        ({"tokens": 3, "end": "none"}, "The answer broke off"),
        ({"tokens": 3, "end": "error"}, "out of slots"),
        ({"status": 500}, "no (HTTP 500)"),
    ],
)
def test_errors_are_sentences_and_keep_the_text(
    stand_in: StandIn, behaviour: dict[str, Any], told: str
) -> None:
    """Each failure says what happened and what to do; what had come stays."""
    progress = finished(stand_in.client(**behaviour))
    assert progress.state == "failed"
    assert told in progress.note
    assert progress.note.endswith(".")
    assert progress.text == ("w0 w1 w2 " if "tokens" in behaviour else "")
    assert status_line(progress).startswith("Error: ")


def test_a_server_that_is_not_there() -> None:
    """It says that the server is not running, and where it was looked for."""
    progress = finished(LlamaCppClient("http://127.0.0.1:9"))
    assert "The server at http://127.0.0.1:9 does not answer" in progress.note
    assert "Start it" in progress.note


def test_a_server_that_dies_under_an_answer() -> None:
    """What had come is kept, and it says that the answer broke off."""
    with subprocess.Popen(
        [sys.executable, str(STAND_IN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        server = StandIn(int(process.stdout.readline()))
        generation = generate(server.client(tokens=5000, pace=0.01))
        wait_for(lambda: generation.progress.completion_tokens > 2)
        process.kill()
        assert generation.wait(10)
    assert generation.progress.state == "failed"
    assert generation.progress.text.startswith("w0 w1 ")
    assert "The answer broke off" in generation.progress.note


def test_an_option_that_cannot_work_is_a_sentence(stand_in: StandIn) -> None:
    """What the client refuses is told like any other error."""
    progress = finished(stand_in.client(), no_such=1)
    assert progress.state == "failed"
    assert "no option no_such" in progress.note


def test_a_stop_before_anything_was_sent(stand_in: StandIn) -> None:
    """Stopped while it still asks for the room, nothing is sent at all."""
    url = stand_in.url(before=0.3)
    generation = generate(LlamaCppClient(url))
    generation.stop()
    assert generation.wait(10)
    assert generation.progress.state == "stopped"
    assert not [one for one in stand_in.seen(url) if "chat" in one["path"]]


def test_slots_hidden_by_the_server(engine: Engine, tiny_model: Path) -> None:
    """With --no-slots a stop is over at once, and says why nothing is known."""
    config = ServerConfig(tiny_model, port=0, context_size=2048, threads=1, slots=False)
    with ServerManager(config, engine=engine, timeout=60) as server:
        generation = generate(LlamaCppClient(server.get_url()), **ENDLESS)
        wait_for(lambda: generation.progress.completion_tokens > 0, 30)
        generation.stop()
        assert generation.wait(30)
    assert "--no-slots" in generation.progress.note


def test_a_slot_is_known_by_its_seed() -> None:
    """Others' slots do not count; without seeds any slot that works does."""
    ours = {"is_processing": True, "params": {"seed": 7}}
    assert _is_busy([ours], 7)
    assert not _is_busy([ours], 8)
    assert not _is_busy([{"is_processing": False, "params": {"seed": 7}}], 7)
    assert _is_busy([{"is_processing": True}], 7)
    with pytest.raises(ClientError):
        _is_busy(["status"], 7)


def test_every_error_has_its_advice() -> None:
    """The sentence names the way out, whatever failed."""
    server = "The server at http://127.0.0.1:1"
    too_long = ContextLengthError("too long.", prompt_tokens=10, context_size=5)
    assert explained(too_long, server) == "Too long."
    assert "with_options" in explained(RequestTimeoutError("silent"), server)
    assert explained(AuthenticationError("no"), server).startswith(server)
    assert explained(KeyError("x"), server) == "KeyError: 'x'."


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress("waiting"), "Waiting for the server …"),
        (Progress("reading", read=0.45), "Reading the prompt, 45% …"),
        (Progress("reading"), "Reading the prompt …"),
        (Progress("answering", completion_tokens=1), "Answering … · 1 token"),
        (
            Progress("answering", completion_tokens=9, tokens_per_second=12.34),
            "Answering … · 9 tokens · 12.3 tokens/s",
        ),
        (Progress("done"), "The model answered nothing"),
        (
            Progress("done", text="a", first_token_seconds=0.0124, completion_tokens=1),
            "first token after 12 ms · 1 token",
        ),
        (
            Progress("done", text="a", finish_reason="tool_calls"),
            "The model called a tool; this panel has none",
        ),
        (Progress("done", text="a", finish_reason="odd"), "Ended: odd"),
        (Progress("stopped", idle_seconds=1.24), "Stopped · slot idle after 1.2 s"),
        (
            Progress(
                "done",
                text="a",
                finish_reason="length",
                prompt_tokens=5,
                completion_tokens=1200,
                context_size=4096,
            ),
            "Cut off at 1,200 tokens · 1,205 of 4,096 tokens of the context",
        ),
    ],
)
def test_the_line_below_an_answer(progress: Progress, line: str) -> None:
    """Each state and each end is said in words."""
    assert status_line(progress) == line


def test_who_is_asked_has_a_name() -> None:
    """A server is named by its address; a pool, which has none, as a pool."""

    class WithoutAddress:
        pass

    assert (
        named(LlamaCppClient("http://127.0.0.1:1"))
        == "The server at http://127.0.0.1:1"
    )
    assert named(WithoutAddress()) == "The pool"  # type: ignore[arg-type]


def test_what_cannot_be_counted_is_left_to_the_server(
    client: LlamaCppClient, stand_in: StandIn
) -> None:
    """Pictures, and conversations that a template refuses, have no count; no error."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    room = measure(client, [{"role": "user", "content": [picture]}])
    assert room.context_size == 1024
    assert room.prompt_tokens is None
    assert room.left is None
    assert not room.sees_pictures
    assert overflow(client, [{"role": "user", "content": [picture]}], room) is None
    assert _chat_room._count(stand_in.client(), MESSAGES) is None
    with pytest.raises(ConnectionFailedError):
        _chat_room._count(LlamaCppClient("http://127.0.0.1:9"), MESSAGES)
    full = _chat_room.Room(context_size=512, prompt_tokens=600)
    turns = [*MESSAGES, {"role": "assistant", "content": "w0"}, *MESSAGES]
    told = overflow(stand_in.client(), turns, full)
    assert told is not None
    assert told.drop is None


def test_nothing_is_left_running() -> None:
    """A generation's thread is a daemon with a name that says whose it is."""
    generation = Generation(LlamaCppClient("http://127.0.0.1:9"), MESSAGES)
    assert generation._thread.daemon
    assert generation._thread.name == "llamatelemetry-panel-answer"
    generation.start()
    assert generation.wait(10)
    wait_for(lambda: generation._thread not in threading.enumerate())


def test_a_stop_needs_no_answer_of_a_silent_server(stand_in: StandIn) -> None:
    """Where nothing was sent yet it is over at once, and nothing is sent later."""
    url = stand_in.url(before=1.0)
    generation = generate(LlamaCppClient(url))
    wait_for(lambda: stand_in.seen(url))
    generation.stop()
    assert generation.is_over
    assert generation.progress.state == "stopped"
    wait_for(lambda: not generation._thread.is_alive())
    assert generation.progress.state == "stopped"
    assert not [one for one in stand_in.seen(url) if "chat" in one["path"]]


def test_a_seed_that_means_a_random_one_is_made_one(stand_in: StandIn) -> None:
    """With -1 the server would take one that nobody knows its slot by."""
    for seed in (-1, 2**32 - 1):
        url = stand_in.url()
        progress = finished(LlamaCppClient(url), seed=seed)
        assert progress.seed == stand_in.asked(url)["body"]["seed"]
        assert progress.seed != seed


def test_slots_that_are_no_slots_end_a_stop(stand_in: StandIn) -> None:
    """Whatever a server or a pool answers there, the stop comes to its end."""

    class Strange(LlamaCppClient):
        def get_slots(self) -> Any:
            raise TypeError("no mapping")

    generation = generate(Strange(stand_in.url(tokens=5000, pace=0.01)))
    wait_for(lambda: generation.progress.completion_tokens > 2)
    generation.stop()
    assert generation.wait(10)
    assert "does not say what its slots do" in generation.progress.note


def test_an_error_of_several_lines_is_one_sentence() -> None:
    """A template's error, which draws lines and arrows, is one line."""
    assert explained(ClientError("bad\n  ^--\nhere"), "It") == "Bad ^-- here."
