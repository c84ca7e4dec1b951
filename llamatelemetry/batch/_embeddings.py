"""map_embeddings(): one vector for each row of a table, in a file that numpy maps."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from llamatelemetry._deadline import Deadline
from llamatelemetry.api.client import EmbeddingResponse, LlamaCppClient
from llamatelemetry.batch._answer import trouble_of
from llamatelemetry.batch._bar import BatchBar, Shown
from llamatelemetry.batch._budget import deadline_of
from llamatelemetry.batch._crew import Crew, Job, Outcome
from llamatelemetry.batch._foreman import Ended, oversee, warn_of_lost
from llamatelemetry.batch._kept import warn_if_lost
from llamatelemetry.batch._pace import Concurrency, check_options
from llamatelemetry.batch._places import Places
from llamatelemetry.batch._rows import Rows, open_rows
from llamatelemetry.batch._store import check_apart
from llamatelemetry.batch._targets import open_lanes
from llamatelemetry.batch._texts import Texts
from llamatelemetry.batch._together import Togetherness
from llamatelemetry.batch._vector_store import Piece, VectorStore, side_file, side_files
from llamatelemetry.batch._vectors import open_vectors
from llamatelemetry.exceptions import (
    AuthenticationError,
    BatchError,
    ClientError,
    ConfigurationError,
    LLCudaError,
    NotSupportedError,
    SetupWarning,
)

__all__ = ["EmbeddingFailure", "Embeddings", "map_embeddings"]

_GRACE_SECONDS = 30.0
"""What runs at the budget's end has so long to come to its own."""


@dataclass(frozen=True, slots=True)
class EmbeddingFailure:
    """A row that has no vector because of an error.

    Attributes:
        position: Its place in the rows, from 0.
        id: What it is known by.
        type: The error's name.
        message: What it says.

    Examples:
        >>> from llamatelemetry.batch import map_embeddings
        >>> vectors = map_embeddings([" "], to=url, out="no.npy", progress=False)
        >>> (failure,) = vectors.failures()
        >>> failure.position, failure.type, failure.message
        (0, 'EmptyPromptError', 'the text is empty')
    """

    position: int
    id: str | int
    type: str
    message: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Embeddings:
    """The vectors of a table's rows.

    Attributes:
        path: The file of vectors, which ``numpy.load`` opens.
        ids: What each row is known by, in the rows' order.
        done: Rows with a vector, those of earlier runs among them.
        kept: Of those, the ones that earlier runs made.
        failed: Rows that failed.
        ended: "done"; "budget" where that was over before; "failed" where an error was
            raised.
        seconds: How long it took, in seconds.

    Examples:
        >>> from llamatelemetry import ServerConfig, ServerManager
        >>> from llamatelemetry.batch import map_embeddings
        >>> texts = ["What is GGUF?", "What is a T4?", "What is GGUF?"]
        >>> config = ServerConfig("model.gguf", port=0, embeddings=True, pooling="mean")
        >>> with ServerManager(config) as server:
        ...     vectors = map_embeddings(texts, to=server, progress=False)
        >>> vectors
        Embeddings(3 of 3 rows, 192 dimensions, embeddings.npy)
        >>> vectors.array.dtype.name, vectors.ids
        ('float32', (0, 1, 2))
    """

    path: Path
    ids: tuple[str | int, ...]
    done: int
    kept: int
    failed: int
    ended: Ended | Literal["failed"]
    seconds: float
    _places: Places = field(compare=False)

    @property
    def array(self) -> Any:
        """The vectors as a read-only ``numpy.memmap`` of float32, rows by dimensions.

        They stay on the disk until they are looked at. A row without a vector is NaN.

        Raises:
            BatchError: No row has a vector, or the file is gone.
        """
        if self.done and not self.path.exists():
            raise BatchError(
                f"{self.path} is gone: put it back, or call again, which asks for its "
                "vectors again"
            )
        if not self.path.exists() or not self.path.stat().st_size:
            raise BatchError(
                f"no row has a vector yet, so {self.path} is empty; failures() says "
                "what failed"
            )
        return open_vectors(self.path)

    @property
    def left(self) -> int:
        """Rows that were not asked, or not answered in time."""
        return len(self.ids) - self.done - self.failed

    def failures(self) -> list[EmbeddingFailure]:
        """Return the rows that failed, each with its error.

        Examples:
            >>> from llamatelemetry.batch import map_embeddings
            >>> vectors = map_embeddings([" "], to=url, out="no.npy", progress=False)
            >>> [(row.id, row.message) for row in vectors.failures()]
            [(0, 'the text is empty')]
        """
        records = (self._places.read(place) for place in self._places if place.failed)
        return [
            EmbeddingFailure(
                record["position"],
                record["id"],
                record["error"]["type"],
                record["error"]["message"],
            )
            for record in records
        ]

    def __len__(self) -> int:
        return len(self.ids)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Return the vectors, so that ``np.asarray`` and all of numpy take this."""
        array = self.array
        made = array if dtype is None else array.astype(dtype, copy=False)
        if copy is False and made is not array:
            raise ValueError(f"vectors of {array.dtype} cannot be {dtype} uncopied")
        return made.copy() if copy and made is array else made

    def __repr__(self) -> str:
        told = [f"{self.done:,} of {len(self.ids):,} rows"]
        if self.done:
            with suppress(BatchError, OSError, ValueError):  # it is gone, or another
                told.append(f"{self.array.shape[1]} dimensions")
        if self.failed:
            told.append(f"{self.failed:,} failed")
        if self.left:
            told.append(f"{self.left:,} left")
        return f"Embeddings({', '.join(told)}, {self.path.name})"


def map_embeddings(
    rows: Any,
    text: str | Callable[[Any], str] | None = None,
    *,
    to: Any,
    id: str | Callable[[Any], str | int] | None = None,  # noqa: A002 -- as map_prompts()
    out: str | os.PathLike[str] = "embeddings.npy",
    resume: bool | str | Path | Sequence[str | Path] = True,
    batch_size: int = 16,
    concurrency: Concurrency = "auto",
    budget: float | str | timedelta | None = None,
    retries: int = 2,
    progress: Shown = True,
) -> Embeddings:
    """Write one vector for each row to a file that numpy maps, and return it.

    Killed at any moment, it goes on from there when it is called again. Which rows are
    done stands in a file beside it: ``embeddings.jsonl`` for ``embeddings.npy``.

    Args:
        rows: A DataFrame, a list, or the path of a CSV, JSONL or Parquet file. Not an
            iterator: how long the file has to be must be known; give ``list(rows)``.
        text: The column to read, a template like ``"{title}: {body}"``, or a function
            of a row; not needed for a list of texts.
        to: A session, pool, client, URL, or a list of those. The servers have to run
            the same model, with ``embeddings=True``. One that gives texts other vectors
            when it works on several at once is asked for one after the other.
        id: The column that says which row is which, or a function; without it a
            DataFrame's index, else the row's place.
        out: The file, which ends with ``.npy``.
        resume: True goes on with ``out``; False wants it not to be there. A path, or
            several, of other files of vectors, or folders with them: what they have of
            these rows is taken over, and they are only read.
        batch_size: Texts that are sent together.
        concurrency: Requests at once over all servers.
        budget: When to end: seconds, ``"8h30m"``, or ``"session"`` for 15 minutes
            before the platform's limit.
        retries: How often what may pass is tried again.
        progress: Whether there is a bar; or a function that is called instead.

    Raises:
        ConfigurationError: Something that cannot work; nothing was sent. Or the server
            has another model than the one of the vectors in the file.
        NotSupportedError: The server was started without ``embeddings=True``.
        AuthenticationError: The server wants another key.
        BatchError: The servers are gone.
        DiskSpaceError: There is no room for the file, in bytes.
        KeyboardInterrupt: Ctrl-C; what ran was finished and kept, and it says how much.
            Like all that ends a run, it has what there is so far in ``results``.

    Examples:
        >>> from llamatelemetry import ServerConfig, ServerManager
        >>> from llamatelemetry.batch import map_embeddings
        >>> texts = ["What is GGUF?", "What is a T4?", "What is GGUF?"]
        >>> config = ServerConfig("model.gguf", port=0, embeddings=True, pooling="mean")
        >>> with ServerManager(config) as server:
        ...     vectors = map_embeddings(
        ...         texts, to=server, out="texts.npy", progress=False
        ...     )
        >>> vectors.array.shape
        (3, 192)
        >>> bool((vectors.array[0] == vectors.array[2]).all())
        True
    """
    deadline = deadline_of(budget)
    path = _checked_path(out)
    check_options(concurrency, retries, progress)
    check_apart(rows, side_file(path), side_files(resume))
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size!r} has to be 1 or more")
    table = open_rows(rows, id)
    texts = Texts(text, table.names)
    with ExitStack() as stack:
        lanes = open_lanes(to)
        for lane in lanes:
            stack.callback(lane.close)
        warn_if_lost(path)
        vectors = stack.enter_context(VectorStore(path, resume, _count_of(table)))
        vectors.look_into(table, texts)
        bar = stack.enter_context(BatchBar(table.count, shown=progress))
        work = _Work(table, texts, vectors, bar, batch_size)
        crew = Crew(
            lanes,
            work.chunks(),
            work.ask,
            work.record,
            concurrency=concurrency,
            retries=retries,
            counts=work.counts,
            say=bar.say,
        )
        ended = _oversee(work, crew, deadline, path)
    warn_of_lost(crew.lost)
    if ended == "interrupted":
        stopped = KeyboardInterrupt(work.words(path))
        vars(stopped)["results"] = work.embeddings(path, ended)
        raise stopped
    return work.embeddings(path, ended)


def _oversee(
    work: _Work, crew: Crew[list[Piece], list[_Vector]], deadline: Deadline, path: Path
) -> Ended:
    try:
        return oversee(
            crew,
            deadline=deadline,
            grace=min(_GRACE_SECONDS, deadline.remaining),
            tick=work.tick,
            interrupted=work.bar.wind_up,
        )
    except BaseException as error:
        with suppress(Exception):  # the rows may be what cannot be read
            vars(error)["results"] = work.embeddings(path, "failed")
        error.add_note(work.words(path))
        raise


def _count_of(table: Rows) -> int:
    if table.once or table.count is None:
        raise ConfigurationError(
            "rows is an iterator, and how long the file has to be must be known: give "
            "list(rows), or the path of a file"
        )
    return table.count


def _checked_path(out: str | os.PathLike[str]) -> Path:
    if not isinstance(out, str | os.PathLike):
        raise ConfigurationError(f"out takes the path of a file, not {out!r}")
    path = Path(out).expanduser().absolute()
    if path.suffix != ".npy":
        raise ConfigurationError(
            f"out={os.fspath(out)!r}: vectors are written to a file of numpy's, whose "
            "name ends with .npy"
        )
    return path


@dataclass(frozen=True, slots=True)
class _Vector:
    """What the server answered for one text, or why it refused it."""

    values: Sequence[float] = ()
    model: str = ""
    tokens: int = 0
    error: LLCudaError | None = None


class _Work:
    """What the crew does: texts in, vectors into the file."""

    def __init__(
        self,
        table: Rows,
        texts: Texts,
        vectors: VectorStore,
        bar: BatchBar,
        batch_size: int,
    ) -> None:
        self._table, self._texts = table, texts
        self._vectors, self.bar = vectors, bar
        self._batch_size = batch_size
        self._began = time.monotonic()
        self._together = Togetherness()
        self._told: set[str] = set()

    def chunks(self) -> Iterator[list[Piece]]:
        """Yield what is asked together."""
        pieces = self._vectors.to_ask(
            self._table,
            self._texts,
            kept=self.bar.keep,
            failed=lambda: self.bar.add(0, failed=True),
        )
        while chunk := list(islice(pieces, self._batch_size)):
            yield chunk

    def ask(self, job: Job[list[Piece]]) -> list[_Vector]:
        """Ask for the vectors of some texts; for each alone if one is refused.

        Raises:
            LLCudaError: None of them was answered.
        """
        texts = [piece.text for piece in job.item]
        if self._together.is_faulty(job.client, job.server):
            with self._together.turn(job.server):
                wanted = [] if job.called_off() else texts
                return [_asked_alone(job.client, text) for text in wanted]
        try:
            return _vectors_in(job.client.embeddings(texts), len(texts))
        except ClientError as error:
            if not _is_a_texts_fault(error):
                raise
            if len(texts) == 1:
                return _unless_all_alike([_Vector(error=error)])
        return _unless_all_alike([_asked_alone(job.client, text) for text in texts])

    def counts(self, chunk: list[Piece]) -> bool:
        """Whether nothing was answered in earlier runs, and none of these asked."""
        find = self._vectors.store.find
        return not self._vectors.kept and not any(
            find(piece.id, piece.key) for piece in chunk
        )

    def record(self, chunk: list[Piece], outcome: Outcome[list[_Vector]]) -> None:
        """Write what became of some texts.

        Raises:
            NotSupportedError: The server gives no vectors.
        """
        if isinstance(outcome.error, ClientError) and _gives_none(outcome.error):
            raise outcome.error
        vectors = outcome.value or [_Vector(error=outcome.error)] * len(chunk)
        for piece, vector in zip(chunk, vectors, strict=True):
            if vector.error is not None:
                self._vectors.fail(piece, vector.error)
            else:
                self._vectors.put(piece, vector.values, vector.model)
            self.bar.add(
                outcome.seconds,
                tokens=vector.tokens,
                failed=vector.error is not None,
            )

    def tick(self, running: int) -> None:
        """Show how far it is, and tell once of servers that are asked slowly."""
        self.bar.tick(running * self._batch_size)
        for server in self._together.faulty:
            if server not in self._told:
                self._told.add(server)
                warnings.warn(
                    f"{server} gives texts wrong vectors when it works on several at "
                    "once, as llama.cpp does with a cache for each slot. They are sent "
                    "one at a time, which is right, but slow: start it with "
                    'extra_args=["--kv-unified"], or without parallel=',
                    SetupWarning,
                    stacklevel=4,
                )

    def words(self, path: Path) -> str:
        """Return what is kept, and how to go on."""
        failed = f", {self._vectors.failed:,} failed" if self._vectors.failed else ""
        return (
            f"{self._vectors.done:,} of {self._table.count:,} rows are kept in {path}"
            f"{failed}; the same call goes on from there"
        )

    def embeddings(self, path: Path, ended: Ended | Literal["failed"]) -> Embeddings:
        """Return what there is so far."""
        return Embeddings(
            path=path,
            ids=tuple(row.id for row in self._table),
            done=self._vectors.done,
            kept=self._vectors.kept,
            failed=self._vectors.failed,
            ended=ended,
            seconds=time.monotonic() - self._began,
            _places=self._vectors.store.places,
        )


def _vectors_in(response: EmbeddingResponse, count: int) -> list[_Vector]:
    """Return an answer's vectors in the order of the texts.

    Raises:
        ClientError: There are not as many as texts.
    """
    answered = sorted(response.data, key=lambda item: item.index)
    if [item.index for item in answered] != list(range(count)):
        raise ClientError(
            f"the server was sent {count} texts and answered with {len(answered)} "
            "vectors; update it, or try batch_size=1"
        )
    tokens = response.usage.prompt_tokens // count
    return [_Vector(item.embedding, response.model, tokens) for item in answered]


def _unless_all_alike(vectors: list[_Vector]) -> list[_Vector]:
    """Return vectors; raise where all were refused alike, which may be the server's."""
    error = vectors[0].error
    if error is None or trouble_of(error) != "row":
        return vectors
    if len({str(vector.error) for vector in vectors}) > 1:
        return vectors
    raise error


def _asked_alone(client: LlamaCppClient, text: str) -> _Vector:
    try:
        return _vectors_in(client.embeddings([text]), 1)[0]
    except ClientError as error:
        if not _is_a_texts_fault(error):
            raise
        return _Vector(error=error)


def _is_a_texts_fault(error: ClientError) -> bool:
    """Whether the server refused a text, and may take others."""
    if _gives_none(error) or isinstance(error, AuthenticationError):
        return False
    # A text beyond the physical batch is told as an error of the server, status 500.
    return trouble_of(error) == "row" or "too large" in str(error)


def _gives_none(error: ClientError) -> bool:
    """Whether the server has no vectors for any text."""
    return isinstance(error, NotSupportedError) or "pooling" in str(error).lower()
