"""What runs in Ray's workers: one server, and the chunks of questions it is given.

Only plain texts come in and go out, errors too: an error of ours may not survive the
way between processes whole. Nothing here knows Ray.
"""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from llamatelemetry._deadline import Deadline
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.batch._answer import Asking, answer_patiently
from llamatelemetry.batch._asks import Ask
from llamatelemetry.batch._rows import Row
from llamatelemetry.exceptions import LLCudaError
from llamatelemetry.server.engine import EngineLike
from llamatelemetry.server.manager import ServerManager
from llamatelemetry.setup._needs import ModelLike
from llamatelemetry.setup._prepare import prepare

__all__ = ["Questions", "RayServer", "ServerPlan", "read_records", "write_asks"]

ASKS, RECORDS = "asks", "records"
"""The one column of a block on its way in, and out."""

_READY_SECONDS = 600.0
_SILENT_SECONDS = 30.0  # a server that runs and says nothing: the next try will tell
_LOOK_SECONDS = 0.05
_FATAL = "fatal"


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """What each actor runs.

    Attributes:
        model: See ``prepare``.
        engine: See ``prepare``.
        options: Fields of ServerConfig.
        at_once: Questions at once.
        retries: How often what may pass is asked again.
    """

    model: ModelLike
    engine: EngineLike | None
    options: Mapping[str, Any] = field(repr=False)  # may hold a key
    at_once: int
    retries: int


def write_asks(asks: Iterable[Ask]) -> str:
    """Return questions as a text: what is needed to ask, not the rows' values."""
    return json.dumps(
        [[ask.row.position, ask.row.id, ask.messages, ask.key] for ask in asks]
    )


def _read_asks(text: str) -> list[Ask]:
    return [
        Ask(Row(position, name, None), messages, key)
        for position, name, messages, key in json.loads(text)
    ]


def read_records(text: str) -> tuple[list[dict[str, Any]], tuple[str, str] | None]:
    """Return the records of a chunk, and the error that ends the run, if there is one.

    Args:
        text: What :class:`RayServer` has given.

    Returns:
        The records; and the error's type and message, or None.
    """
    found = json.loads(text)
    if isinstance(found, dict):
        kind, message = found[_FATAL]
        return [], (kind, message)
    return found, None


def _fatal(error: LLCudaError) -> str:
    return json.dumps({_FATAL: [type(error).__name__, str(error)]})


class RayServer:
    """One server, kept busy with chunks of questions by any number of threads.

    It is started here and ends with the process, also with one that is killed: see
    ``server/_process``.

    Args:
        plan: What to run.
        asking: How to ask.
    """

    def __init__(self, plan: ServerPlan, asking: Asking) -> None:
        self._plan, self._asking = plan, asking
        self._failure: str | None = None
        self._restarting = threading.Lock()
        self._threads = ThreadPoolExecutor(plan.at_once, "llamatelemetry-ray")
        try:
            self._start()
        except LLCudaError as error:  # told with the first chunk: see above
            self._failure = _fatal(error)

    def _start(self) -> None:
        plan = self._plan
        prepared = prepare(plan.model, plan.engine, progress=False)
        config = prepared.config(**plan.options)
        self._server = ServerManager(
            config, engine=prepared.engine, timeout=_READY_SECONDS
        )
        self._server.restart()
        self._key = config.api_key
        self._client = self._connect()

    def _connect(self) -> LlamaCppClient:
        # A question waits for a slot behind another one, which may take its time.
        url = self._server.get_url()
        return LlamaCppClient(url, self._key, timeout=_READY_SECONDS)

    def __call__(self, batch: Any) -> dict[str, list[str]]:
        """Answer a block of chunks, in its order.

        A block that is done again must give its answers in the same order: Ray takes
        what it has of a first try, and the rest of a second.

        Args:
            batch: A ``pyarrow.Table`` with the one column.
        """
        texts = batch.column(ASKS).to_pylist()
        return {RECORDS: [self.answered(text) for text in texts]}

    def answered(self, text: str) -> str:
        """Return the records of a chunk.

        Args:
            text: What ``write_asks`` made; "" for a chunk that was done before.
        """
        if self._failure is not None:
            return self._failure
        try:
            records = list(self._threads.map(self._answer, _read_asks(text or "[]")))
        except LLCudaError as error:
            self._failure = _fatal(error)
            return self._failure
        return json.dumps(records)

    def _answer(self, ask: Ask) -> dict[str, Any]:
        record = answer_patiently(
            self._client,
            ask,
            self._asking,
            retries=self._plan.retries,
            wait=self._wait,
        )
        record["server"] = f"{platform.node()} {self._client.base_url}"
        return record

    def _wait(self) -> None:
        """Wait until the server answers, and start it anew if it has ended.

        One thread does, the others wait for it. A server that was just killed refuses
        connections for a moment before its process is seen to be gone.
        """
        with self._restarting:
            deadline = Deadline.after(_SILENT_SECONDS)
            while self._server.is_running():
                if self._answers() or deadline.expired:
                    return
                time.sleep(_LOOK_SECONDS)
            self._server.restart()
            self._client = self._connect()

    def _answers(self) -> bool:
        try:
            self._client.with_options(timeout=_SILENT_SECONDS).health()
        except LLCudaError:
            return False
        return True

    def close(self) -> None:
        """Stop the server."""
        self._threads.shutdown(cancel_futures=True)
        if self._failure is None:
            self._server.stop()


class Questions:
    """Chunks of questions on their way to Ray; lives in a worker of its own.

    Its calls run in threads, in any order, so that each says which chunk it means. A
    chunk keeps its place, so that a reader that begins again reads the same.
    """

    def __init__(self) -> None:
        self._chunks: dict[int, str] = {}
        self._ended = False
        self._changed = threading.Condition()

    def put(self, place: int, text: str) -> None:
        """Add a chunk.

        Args:
            place: Which one, from 0.
            text: What ``write_asks`` made.
        """
        with self._changed:
            self._chunks[place] = text
            self._changed.notify_all()

    def finish(self) -> None:
        """Say that there are no more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def forget(self, place: int) -> None:
        """Let go of a chunk that was answered; "" stands in its place.

        Args:
            place: Which one.
        """
        with self._changed:
            self._chunks[place] = ""

    def get(self, place: int) -> str | None:
        """Return the chunk at a place, waiting for it; None after the last.

        Args:
            place: Which one.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or place in self._chunks)
            return self._chunks.get(place)
