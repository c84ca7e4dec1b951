"""The workers: keep every slot of every server busy until there is nothing left."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from llamatelemetry._deadline import Deadline
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.batch._answer import trouble_of, words_of
from llamatelemetry.batch._pace import Concurrency
from llamatelemetry.batch._post import Post
from llamatelemetry.batch._supply import Supply, Task, Waiting
from llamatelemetry.batch._targets import Lane
from llamatelemetry.exceptions import (
    AuthenticationError,
    BatchError,
    ClientError,
    ContextLengthError,
    LLCudaError,
)

__all__ = ["Crew", "Job", "Outcome"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
StreamT = TypeVar("StreamT")

_LOOK_SECONDS = 0.2
_MORE_LOSSES = 1
"""Losses of its server that an item survives beyond its retries: most often the item
is not the reason."""

_REFUSALS = 20
"""Items refused with the same words before any was answered: so will the others be.
What may pass is a refusal once it has not passed in all tries: an engine that cannot do
what is asked, like looking at a picture, may say that as an error of its own."""


@dataclass(slots=True)
class Job(Generic[ItemT]):
    """One try at an item.

    Attributes:
        item: What is worked on.
        attempts: The tries so far, this one included.
        client: Whom to ask.
        server: That server's name.
        task: The item with what became of it so far.
        called_off: Whether nobody wants it any more.
    """

    item: ItemT
    attempts: int
    client: LlamaCppClient
    server: str
    task: Task[ItemT]
    called_off: Callable[[], bool]

    def hold(self, stream: StreamT) -> StreamT:
        """Have something closed when the run is called off; return it."""
        self.task.held.append(stream)
        if self.called_off():
            _close(stream)
        return stream


@dataclass(frozen=True, slots=True)
class Outcome(Generic[ResultT]):
    """What became of an item in the end.

    Attributes:
        value: What the work returned; None where it failed.
        error: What it failed with, or None.
        attempts: How often it was tried.
        seconds: How long the last try took.
        server: Where that was.
    """

    value: ResultT | None
    error: LLCudaError | None
    attempts: int
    seconds: float
    server: str


class Crew(Generic[ItemT, ResultT]):
    """Threads that work on items at every server, two for each of its slots.

    What may pass is tried again, at whichever server is free first; a server that is
    gone is waited for by its threads, and nobody else.

    Args:
        lanes: The servers.
        items: What to work on; walked in a thread of its own.
        work: Does one try, in a worker's thread.
        record: Told each outcome once, one at a time.
        concurrency: Items at once over all servers; "auto" for what they tell.
        retries: How often what may pass is tried again.
        counts: Whether a refusal of this item says something of the server; not where
            others were answered before, or this one was refused before.
        waiting: Where items wait for the workers; a plain queue without it.
        say: Told in words what is waited for; "" for nothing.

    Attributes:
        error: What the run ended with before its time, or None.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        items: Iterable[ItemT],
        work: Callable[[Job[ItemT]], ResultT],
        record: Callable[[ItemT, Outcome[ResultT]], object],
        *,
        concurrency: Concurrency = "auto",
        retries: int = 2,
        counts: Callable[[ItemT], bool] = lambda _: True,
        waiting: Waiting[ItemT] | None = None,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.error: BaseException | None = None
        self.ending = threading.Event()  # called off
        self._work, self._record, self._retries = work, record, retries
        self._counts = counts
        self._supply = Supply(items, Waiting() if waiting is None else waiting)
        self._lock = threading.Lock()
        self._recording = threading.Lock()
        self._answered = False
        self._refusals: Counter[str] = Counter()
        self._left: list[Post] = []
        self._threads: list[threading.Thread] = []
        self._posts = [
            Post(lane, _share(concurrency, number, len(lanes)), self._is_over, say)
            for number, lane in enumerate(lanes)
        ]

    # ── for who waits ────────────────────────────────────────────────────────────

    @property
    def running(self) -> int:
        """How many items are being worked on."""
        return len(self._supply.running)

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.ending.is_set() or self._supply.over.is_set()

    @property
    def complete(self) -> bool:
        """Whether each item came to its end."""
        return not self.ending.is_set() and self._supply.complete

    @property
    def lost(self) -> list[BatchError]:
        """Why servers were given up, or were not there while others worked."""
        told = (
            post.lost or (post.absence() if self._answered else None)
            for post in self._posts
        )
        return [error for error in told if error is not None]

    def start(self) -> None:
        """Begin."""
        self._supply.start()
        for post in self._posts:
            self._hire(post, 0)

    def wait(self, seconds: float) -> None:
        """Wait for the end, at most this long."""
        self._supply.over.wait(seconds)

    def wind_up(self) -> None:
        """Begin nothing new; what runs comes to its end."""
        self._supply.close()

    def call_off(self) -> None:
        """End all that runs; none of it is recorded."""
        with self._recording:  # what is being written is written
            self.ending.set()
        self._supply.close()
        for task in self._supply.running:
            for stream in list(task.held):
                _close(stream)

    def join(self, seconds: float) -> None:
        """Wait for the threads, and raise what the run ended with.

        Raises:
            BaseException: What ended it before its time.
        """
        deadline = Deadline.after(seconds)
        for post in self._posts:
            post.wake()
        for thread in list(self._threads):
            thread.join(deadline.remaining)
        self._supply.join(deadline.remaining)
        error = self.error or (None if self.ending.is_set() else self._supply.error)
        if error is not None:
            raise error

    # ── the workers ──────────────────────────────────────────────────────────────

    def _hire(self, post: Post, number: int) -> None:
        thread = threading.Thread(
            target=self._serve,
            args=(post, number),
            name=f"llamatelemetry-batch-{self._posts.index(post)}-{number}",
            daemon=True,
        )
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _is_over(self) -> bool:
        return self.ending.is_set() or self._supply.over.is_set()

    def _serve(self, post: Post, number: int) -> None:
        """Work at one server until there is nothing left to do."""
        try:
            while not self._is_over():
                if not post.wait_until_ready():
                    continue
                if not post.may_work(number):
                    post.rest(_LOOK_SECONDS)
                    continue
                task = self._supply.take(_LOOK_SECONDS)
                if task is None:
                    continue
                if post.is_doubted:  # it was lost while this one waited for work
                    self._supply.again(task)
                    continue
                another = post.begin()
                if another is not None:
                    self._hire(post, another)
                self._try(post, task)
                post.end()
        except BatchError as error:
            self._give_up(post, error)
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            self._fail(error)
        finally:
            post.wake()

    def _try(self, post: Post, task: Task[ItemT]) -> None:
        task.attempts += 1
        lane, began = post.lane, time.monotonic()
        error: LLCudaError | None = None
        value: ResultT | None = None
        try:
            value = self._work(self._job(lane, task))
        except LLCudaError as caught:
            error = caught
        task.held.clear()
        seconds = time.monotonic() - began
        if error is not None and not self.ending.is_set():
            if isinstance(error, AuthenticationError):
                self._fail(error)
                return
            if self._may_pass(post, task, error, began):
                self._supply.again(task)
                return
        if error is None:
            post.answered()
            self._answered = True
        counts = error is not None and self._says_something(task, error)
        self._note(task, Outcome(value, error, task.attempts, seconds, lane.name))
        if error is not None and counts:
            self._refuse_all_alike(error, lane.name)

    def _job(self, lane: Lane, task: Task[ItemT]) -> Job[ItemT]:
        called_off = self.ending.is_set
        return Job(task.item, task.attempts, lane.client, lane.name, task, called_off)

    def _may_pass(
        self, post: Post, task: Task[ItemT], error: LLCudaError, began: float
    ) -> bool:
        """Note what an error says about the server; return whether to try again."""
        trouble = trouble_of(error)
        if trouble == "row":
            return False
        if trouble == "lost":
            if post.doubt(began, error):
                task.losses += 1
            else:
                task.attempts -= 1
            return task.losses <= self._retries + _MORE_LOSSES
        post.refused(busy=trouble == "busy")
        again = task.attempts - task.losses <= self._retries
        if trouble == "passing":
            post.doubt(began, None)
        return again

    def _says_something(self, task: Task[ItemT], error: LLCudaError) -> bool:
        """Whether an item's refusal may be the server's; asked before it is recorded.

        An item that was refused in an earlier run does not count: so a table whose
        first rows are bad is come through, call by call.
        """
        if self._answered or self.ending.is_set():
            return False
        if isinstance(error, ContextLengthError):
            return False
        return trouble_of(error) in {"row", "passing"} and self._counts(task.item)

    def _refuse_all_alike(self, error: LLCudaError, server: str) -> None:
        """End the run where that many were refused alike, and none answered."""
        words = error.message if isinstance(error, ClientError) else str(error)
        with self._lock:
            self._refusals[words] += 1
            often = self._refusals[words]
        if often == _REFUSALS:
            self._fail(
                BatchError(
                    f"each of the first {_REFUSALS} rows was refused with the same "
                    "words, and none was answered, so this was ended: "
                    f"{words_of(error, server)} (if it is only these rows, call again: "
                    "they are not counted twice)"
                )
            )

    def _note(self, task: Task[ItemT], outcome: Outcome[ResultT]) -> None:
        """Record an outcome, unless nobody wants it any more."""
        with self._recording:
            if not self.ending.is_set():
                try:
                    self._record(task.item, outcome)
                except BaseException as error:  # noqa: BLE001 - raised again by who waits
                    self.error = error
        if self.error is not None:
            self.call_off()
        self._supply.finish(task)

    def _give_up(self, post: Post, error: BatchError) -> None:
        """Leave a server for good; without any other, that is the end."""
        with self._lock:
            if post not in self._left:
                post.lost = error
                self._left.append(post)
            none_left = len(self._left) == len(self._posts)
        if none_left:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error
        self.call_off()


def _share(concurrency: Concurrency, number: int, lanes: int) -> Concurrency:
    """Return one server's part of a number of items at once."""
    if concurrency == "auto":
        return concurrency
    return max(1, concurrency // lanes + (number < concurrency % lanes))


def _close(stream: Any) -> None:
    stream.close()
