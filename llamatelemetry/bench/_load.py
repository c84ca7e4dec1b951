"""A load on a server: so many requests at once, or so many in a second.

In a closed loop each of some threads asks the next question as soon as its last one is
answered. In an open loop each request has its moment, whatever became of those before,
and a thread of its own. The thread that waits collects what they bring; Ctrl-C reaches
it there, and it ends all streams before it lets the interrupt pass.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from llamatelemetry.api._requests import Messages
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.api.responses import ChatCompletionChunk
from llamatelemetry.api.stream import ChatStream
from llamatelemetry.bench._metrics import EMPTY_ANSWER, Measured
from llamatelemetry.exceptions import ClientError

__all__ = ["Load", "arrivals"]

_LONGEST_END = 10.0
"""Seconds that threads are waited for once their streams are ended."""


def arrivals(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Return when each request is due, in seconds after the beginning.

    The gaps are of a gamma distribution, with a burstiness of 1 those of a Poisson
    process; they are stretched so that the last request is due after count / rate.

    Args:
        count: How many requests.
        rate: Requests per second.
        burstiness: Below 1 they come in bursts, above 1 more evenly.
        seed: Equal seeds give equal times.
    """
    chance = random.Random(seed)  # noqa: S311 - equal seeds have to give equal times
    times = list(accumulate(chance.gammavariate(burstiness, 1.0) for _ in range(count)))
    stretch = count / rate / times[-1]
    return [moment * stretch for moment in times]


class Load:
    """Asks questions of one client, and measures each answer.

    Args:
        client: Leads to the servers.
        options: What each question is asked with, as chat_completion_stream takes it.
        tell: Called with each request that is over, in the thread that waits.
        must_work: Whether a request that fails ends all.
    """

    def __init__(
        self,
        client: LlamaCppClient,
        options: dict[str, Any],
        tell: Callable[[Measured], object] = lambda _: None,
        *,
        must_work: bool = False,
    ) -> None:
        self._client = client
        self._options = options
        self._tell = tell
        self._must_work = must_work
        self._over: queue.SimpleQueue[Measured | BaseException] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._streams: set[ChatStream] = set()
        self._threads: list[threading.Thread] = []
        self._results: list[Measured] = []
        self._ended = False

    def keep_running(self, chats: Sequence[Messages], at_once: int) -> list[Measured]:
        """Ask all, so many at a time.

        Args:
            chats: The questions.
            at_once: How many threads ask.

        Raises:
            ClientError: A request has failed, and must not; otherwise it is measured.
        """
        waiting = iter(chats)

        def work() -> None:
            while True:
                with self._lock:
                    chat = None if self._ended else next(waiting, None)
                if chat is None:
                    return
                self._over.put(self._ask(chat))

        try:
            for _ in range(min(at_once, len(chats))):
                self._start(work)
            return self._collect(len(chats))
        except BaseException:
            self._end()
            raise

    def send_at(
        self, chats: Sequence[Messages], times: Sequence[float]
    ) -> list[Measured]:
        """Ask each at its time, whether the earlier ones are answered or not.

        Args:
            chats: The questions.
            times: When each is due, in seconds from now, in order.
        """
        began = time.monotonic()

        def ask(chat: Messages, due: float) -> None:
            self._over.put(self._ask(chat, due))

        try:
            for chat, moment in zip(chats, times, strict=True):
                due = began + moment
                while (left := due - time.monotonic()) > 0:
                    self._take(left)
                self._start(partial(ask, chat, due))
            return self._collect(len(chats))
        except BaseException:
            self._end()
            raise

    def _start(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised where it is waited
                self._over.put(error)

        thread = threading.Thread(
            target=guarded, name="llamatelemetry-bench", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _collect(self, count: int) -> list[Measured]:
        while len(self._results) < count:
            self._take(None)
        for thread in self._threads:
            thread.join()
        return self._results

    def _take(self, seconds: float | None) -> None:
        """Take in one request that is over, if one comes in time."""
        try:
            one = self._over.get(timeout=seconds)
        except queue.Empty:
            return
        if isinstance(one, BaseException):
            raise one
        self._results.append(one)
        self._tell(one)

    def _end(self) -> None:
        """End all streams, and begin none any more."""
        with self._lock:
            self._ended = True
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        until = time.monotonic() + _LONGEST_END
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _ask(self, chat: Messages, due: float | None = None) -> Measured:
        """Ask one question, and return what was measured."""
        stream = self._client.chat_completion_stream(chat, **self._options)
        with self._lock:
            ended = self._ended
            self._streams.add(stream)
        if ended:  # between the list of those to end and this one
            stream.cancel()
        times: list[float] = []
        error: str | None = None
        sent = time.monotonic()
        try:
            for chunk in stream:
                now = time.monotonic()
                if _has_text(chunk):
                    times.append(now)
        except ClientError as failed:
            if self._must_work:
                raise
            error = type(failed).__name__
        finally:
            over = time.monotonic()
            stream.close()
            with self._lock:
                self._streams.discard(stream)
        if error is None and not times:
            error = EMPTY_ANSWER
        return Measured(
            sent=sent,
            ended=over,
            chunk_times=times,
            late=None if due is None else sent - due,
            error=error,
            **_told(stream),
        )


def _has_text(chunk: ChatCompletionChunk) -> bool:
    delta = chunk.choices[0].delta
    return bool(delta.content or delta.reasoning_content or delta.tool_calls)


def _told(stream: ChatStream) -> dict[str, Any]:
    """Return what the server says of a request that is over."""
    usage, timings = stream.usage, stream.timings
    told: dict[str, Any] = {}
    if usage is not None:
        told = {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
        }
    if timings is not None:
        prompt, generation = timings.prompt_ms, timings.predicted_ms
        told |= {
            "server_prompt_time": None if prompt is None else prompt / 1000,
            "server_generation_time": None if generation is None else generation / 1000,
            "server_tokens_per_second": timings.predicted_per_second,
        }
    return told
