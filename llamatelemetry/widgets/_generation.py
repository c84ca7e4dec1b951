"""One answer as it comes: its state, its text so far, its end, and how to stop it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llamatelemetry.api.client import (
    ChatCompletionChunk,
    ChatStream,
    LlamaCppClient,
    RequestRecord,
)
from llamatelemetry.api.responses import PromptProgress
from llamatelemetry.exceptions import (
    ClientError,
    NotSupportedError,
    RequestTimeoutError,
)
from llamatelemetry.widgets._chat_errors import explained
from llamatelemetry.widgets._chat_room import measure, overflow

__all__ = ["Generation", "Progress", "State", "named"]

State = Literal[
    "waiting", "reading", "answering", "stopping", "done", "stopped", "failed"
]

_MOST_SEED = 2**31
# For these a server takes a seed of its own, by which its slot could not be known.
_RANDOM_SEEDS = (None, -1, 2**32 - 1)
_POLL_SECONDS = 0.02
# For a request of which nothing was heard: it may be on its way to a slot, or queue for
# one. llama-server keeps a queued one whose client has gone until its turn comes.
_QUEUE_SECONDS = 0.5
_QUEUED = "It had not begun; the server drops it when its turn comes."
_PATIENCE_SECONDS = 600.0  # for a slot that does not become idle; a huge prompt's batch


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an answer is.

    Attributes:
        state: "waiting" for the server, "reading" the prompt, "answering", "stopping"
            until its slot is idle; "done", "stopped" or "failed" at the end.
        text: The answer so far.
        reasoning: What the model thought before, so far.
        read: How much of the prompt is read, 0 to 1; None before the server says so.
        prompt_tokens: Tokens of the conversation; None if not known.
        completion_tokens: Tokens generated so far, reasoning included.
        context_size: Tokens that a slot holds; None if not known.
        max_tokens: What the answer was limited to; None for the server's own limit.
        first_token_seconds: From sending to the first text or thought; None before.
        tokens_per_second: While answering; None before two tokens have come.
        finish_reason: "stop", "length", ...; None before the end.
        seed: What it was generated with.
        model: The model's alias; "" before it is known.
        idle_seconds: From ``stop()`` to when the slot was seen idle; None if it was
            not stopped, or not seen.
        measured: Where it ran and what it cost, in words, if that is recorded.
        note: What there is to say beside the text: what went wrong, or why nothing is
            known about the slot. "" for nothing.
        drop: How many of the oldest questions to drop, where that helps; else None.
    """

    state: State
    text: str = ""
    reasoning: str = ""
    read: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    context_size: int | None = None
    max_tokens: int | None = None
    first_token_seconds: float | None = None
    tokens_per_second: float | None = None
    finish_reason: str | None = None
    seed: int | None = None
    model: str = ""
    idle_seconds: float | None = None
    measured: str = ""
    note: str = ""
    drop: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing changes any more."""
        return self.state in ("done", "stopped", "failed")

    @property
    def cut_off_in_reasoning(self) -> bool:
        """Whether its limit ended it while it thought, before any answer."""
        cut_off = self.finish_reason == "length"
        return cut_off and bool(self.reasoning) and not self.text

    @property
    def total_tokens(self) -> int | None:
        """Tokens of the context that are used; None if not known."""
        if self.prompt_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens


class Generation:
    """One answer, which a thread of its own asks for and takes in.

    Args:
        client: The server's client.
        messages: The conversation, with the question last.
        options: As ``chat_completion_stream`` takes them. ``max_tokens`` left out or
            None: the room that is left in the context. ``seed`` likewise: a random
            one, which also tells the answer's slot from others.
        on_change: Called, in any thread and quickly, when something has changed.
        measured: Returns in words what is known of a request that is over.
    """

    def __init__(
        self,
        client: LlamaCppClient,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any] | None = None,
        on_change: Callable[[], object] = lambda: None,
        measured: Callable[[RequestRecord], str] = lambda _: "",
    ) -> None:
        self._client = client
        self._messages = list(messages)
        self._options: dict[str, Any] = dict(options or {})
        if self._options.get("seed") in _RANDOM_SEEDS:
            self._options["seed"] = random.randrange(_MOST_SEED)  # noqa: S311 -- no secret
        self._on_change, self._measured = on_change, measured
        self._lock = threading.Lock()
        self._state: State = "waiting"
        self._facts: dict[str, Any] = {"seed": self._options["seed"]}
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._stream: ChatStream | None = None
        self._heard = False
        self._began = time.monotonic()
        self._first = self._latest = self._stopped_at = 0.0
        self._over = threading.Event()
        self._left = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="llamatelemetry-panel-answer", daemon=True
        )

    def start(self) -> None:
        """Ask for the answer; returns at once."""
        self._began = time.monotonic()
        self._thread.start()

    @property
    def progress(self) -> Progress:
        """How far it is now; at any time, from any thread."""
        with self._lock:
            return Progress(
                state=self._state,
                text="".join(self._text),
                reasoning="".join(self._reasoning),
                **self._known(),
            )

    @property
    def state(self) -> State:
        """What it is doing now."""
        return self._state

    @property
    def takes_text(self) -> bool:
        """Whether text can still come: it is neither over nor being stopped."""
        return self._state in ("waiting", "reading", "answering")

    @property
    def is_over(self) -> bool:
        """Whether nothing changes any more."""
        return self._over.is_set()

    def stop(self) -> None:
        """End it now; from any thread. Without effect when it is over.

        No text comes any more, and the connection is closed, so that the server stops.
        Until its slot is seen idle, the state is "stopping". A server that reads a
        long prompt finishes the part that it has begun first.
        """
        with self._lock:
            if not self.takes_text:
                return
            self._state = "stopping"
            self._stopped_at = time.monotonic()
            stream = self._stream
        if stream is not None:
            stream.cancel()
            self._on_change()
        else:
            # Nothing was sent and nothing will be, however long the thread still
            # waits for a server that says nothing about itself.
            self._end("stopped", idle_seconds=0.0)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over, for at most some seconds; return whether it is."""
        return self._over.wait(timeout)

    def leave(self) -> None:
        """End it and do not look at its slot any more."""
        self._left.set()
        self.stop()

    # ── the thread ───────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            self._ask()
        # Whatever it is, it is told in the panel: nobody looks at a thread's end.
        except Exception as error:  # noqa: BLE001 -- said above
            self._end("failed", note=explained(error, named(self._client)))
        if self._state == "stopping":
            self._end("stopped", **self._see_it_idle())

    def _ask(self) -> None:
        messages = self._messages
        room = measure(self._client, messages)
        limit = self._options.get("max_tokens")
        if limit is None:
            limit = room.left
        self._learn(
            prompt_tokens=room.prompt_tokens,
            context_size=room.context_size,
            max_tokens=limit,
        )
        too_long = overflow(self._client, messages, room)
        if too_long is not None:
            self._end("failed", note=too_long.sentence, drop=too_long.drop)
            return
        options = {**self._options, "max_tokens": limit, "on_progress": self._reads}
        stream = self._client.chat_completion_stream(messages, **options)
        with self._lock:
            if not self.takes_text:
                return
            self._stream = stream
        with stream:
            for chunk in stream:
                self._take(chunk)
        self._note_the_end(stream)

    def _reads(self, progress: PromptProgress) -> None:
        self._heard = True
        read = progress.processed / progress.total if progress.total else 1.0
        self._learn("reading", prompt_tokens=progress.total, read=read)

    def _take(self, chunk: ChatCompletionChunk) -> None:
        self._heard = True
        now = time.monotonic()
        with self._lock:
            if not self.takes_text:
                return  # what was on its way when it was stopped
            self._facts["model"] = chunk.model
            for choice in chunk.choices:
                if choice.index:
                    continue
                if choice.finish_reason:
                    self._facts["finish_reason"] = choice.finish_reason
                delta = choice.delta
                if delta.reasoning_content:
                    self._reasoning.append(delta.reasoning_content)
                if delta.content:
                    self._text.append(delta.content)
                if delta.content or delta.reasoning_content:
                    self._state = "answering"
                    self._first = self._first or now
                    self._latest = now
        self._on_change()

    def _note_the_end(self, stream: ChatStream) -> None:
        """Take the server's own figures over, where it came to give them."""
        facts: dict[str, Any] = {}
        usage, timings = stream.usage, stream.timings
        if usage is not None:
            facts["prompt_tokens"] = usage.prompt_tokens
            facts["completion_tokens"] = usage.completion_tokens
        if timings is not None and timings.predicted_per_second:
            facts["tokens_per_second"] = timings.predicted_per_second
        self._end("done", measured=self._measured(stream.record), **facts)

    def _learn(self, state: State | None = None, **facts: Any) -> None:
        with self._lock:
            if not self.takes_text:
                return
            self._state = state or self._state
            self._facts.update(facts)
        self._on_change()

    def _end(self, state: State, **facts: Any) -> None:
        with self._lock:
            # What happens to an answer that is being stopped, or was, is no news.
            if not self.takes_text and (self._state, state) != (
                "stopping",
                "stopped",
            ):
                return
            self._state = state
            self._facts = self._known() | facts
            # From here on it is kept as long as the conversation is: small.
            self._text = ["".join(self._text)]
            self._reasoning = ["".join(self._reasoning)]
            self._messages, self._stream = [], None
        self._over.set()
        self._on_change()

    def _see_it_idle(self) -> dict[str, Any]:
        """Wait until the slot is idle, and return what was seen of it."""
        seen = self._heard
        while not self._left.is_set():
            waited = time.monotonic() - self._stopped_at
            busy, note = self._look_at_slots()
            seen = seen or busy
            if not busy and seen and not note:
                return {"idle_seconds": time.monotonic() - self._stopped_at}
            if not busy and waited > _QUEUE_SECONDS:
                note = note or _QUEUED
            if waited > _PATIENCE_SECONDS:
                note = note or f"Its slot is still busy after {waited:.0f} s."
            if note:
                return {"note": note}
            self._left.wait(_POLL_SECONDS)
        return {}

    def _look_at_slots(self) -> tuple[bool, str]:
        """Return whether our slot works, and why that cannot be known, or ""."""
        try:
            return _is_busy(self._client.get_slots(), self._options["seed"]), ""
        except NotSupportedError:
            return False, "The server shows no slots (it runs with --no-slots)."
        except RequestTimeoutError:
            return True, ""  # it reads a prompt
        # Whatever it answers, the end has to be told.
        except Exception:  # noqa: BLE001 -- said above
            return False, "The server does not say what its slots do."

    def _known(self) -> dict[str, Any]:
        """Return the figures so far; the server's own where it gave them."""
        known: dict[str, Any] = {}
        tokens, seconds = len(self._text) + len(self._reasoning), 0.0
        if self._first:
            known["first_token_seconds"] = self._first - self._began
            seconds = self._latest - self._first
        known["completion_tokens"] = tokens
        known["tokens_per_second"] = (tokens - 1) / seconds if seconds > 0 else None
        return known | self._facts


def named(client: LlamaCppClient) -> str:
    """Return who a client talks to, as the beginning of a sentence."""
    address = getattr(client, "base_url", None)  # a pool has no address of its own
    return "The pool" if address is None else f"The server at {address}"


def _is_busy(slots: Sequence[Any], seed: int) -> bool:
    """Return whether a slot works on the request with this seed.

    A server that does not say the seeds is taken at its word for any slot.

    Raises:
        ClientError: These are no slots.
    """
    for slot in slots:
        if not isinstance(slot, Mapping):
            raise ClientError("this is no list of slots")
        params = slot.get("params")
        known = params.get("seed") if isinstance(params, Mapping) else None
        if slot.get("is_processing") and known in (None, seed):
            return True
    return False
