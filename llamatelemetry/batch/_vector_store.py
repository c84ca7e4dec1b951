"""Vectors beside the lines that say which rows they are of: what is done, what is not.

A row is done if a line names its id and its text, and the vector at the place that the
line tells has the digest that stands there. So it does not matter at which moment a
process was killed, nor which of the two files reached the disk.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llamatelemetry.batch._asks import RowError
from llamatelemetry.batch._places import Found, Place
from llamatelemetry.batch._rows import Rows
from llamatelemetry.batch._store import Store
from llamatelemetry.batch._texts import Texts, text_key
from llamatelemetry.batch._vectors import VectorFile, digest_of, open_vectors
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.setup._disk import disk_errors, require_space

__all__ = ["Piece", "Resume", "VectorStore", "side_file", "side_files"]

_SYNC_SECONDS = 1.0
_ARRAY, _SIDE = ".npy", ".jsonl"

Resume = bool | str | Path | Sequence[str | Path]


@dataclass(frozen=True, slots=True)
class Piece:
    """A row of which a vector is asked.

    Attributes:
        position: Its place, from 0.
        id: What it is known by.
        key: The digest of its text.
        text: Its text.
    """

    position: int
    id: str | int
    key: str
    text: str


def side_file(out: Path) -> Path:
    """Return where it is written which rows are done."""
    return out.with_suffix(_SIDE)


def side_files(resume: Any) -> Any:
    """Return the side files of what is gone on with; folders stay as they are."""
    if isinstance(resume, bool):
        return resume
    several = isinstance(resume, Sequence) and not isinstance(resume, str | bytes)
    return [_beside(one) for one in (resume if several else [resume])]


def _beside(one: Any) -> Any:
    if not isinstance(one, str | os.PathLike) or not os.fspath(one):
        return one  # for the store to say that it is no path
    path = Path(one)
    return side_file(path) if path.suffix == _ARRAY else path


class VectorStore:
    """A file of vectors and its side file.

    Args:
        out: The file of vectors.
        resume: As for a batch; a path is that of another file of vectors, or a folder.
        count: How many rows there are.

    Attributes:
        store: The side file.
        kept: Rows whose vectors were there before.
        done: Rows that have a vector.
        failed: Rows that failed in this run.
    """

    def __init__(self, out: Path, resume: Resume, count: int) -> None:
        self.kept = self.done = self.failed = 0
        self._out = out
        self._model = ""  # not known yet, or not told
        self._synced = time.monotonic()
        self._lock = threading.Lock()
        self._had = out.exists() and out.stat().st_size > 0
        if self._had:
            _check_there(out, resume)
        self._open: dict[Path, Any] = {}  # arrays of earlier runs
        with ExitStack() as stack:
            self.store = stack.enter_context(
                Store.open(side_file(out), side_files(resume))
            )
            with disk_errors(out.parent, out.name, lambda: 0):
                self._file = stack.enter_context(VectorFile(out, count))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    # ── what is to be asked ──────────────────────────────────────────────────────

    def look_into(self, rows: Rows, texts: Texts) -> None:
        """Learn whose vectors there are, before any is written beside them.

        Raises:
            ConfigurationError: None of the file's rows is among these: its vectors
                would be lost.
        """
        if not self.store.found:
            return
        known = next(self._known(rows, texts), None)
        if known is not None:
            self._model = known.model
        elif self._had:
            raise ConfigurationError(
                f"out={str(self._out)!r} has vectors of other rows or texts, in whose "
                "place these would be written; name another file"
            )

    def _known(self, rows: Rows, texts: Texts) -> Iterator[Found]:
        """Yield where the vectors of rows are that have one already."""
        for row in rows:
            try:
                key = text_key(texts.of(row))
            except RowError:
                continue
            found = self.store.find(row.id, key)
            if found is not None and not found.failed:
                yield found

    def to_ask(
        self,
        rows: Rows,
        texts: Texts,
        *,
        kept: Callable[[], object],
        failed: Callable[[], object],
    ) -> Iterator[Piece]:
        """Yield what is to be asked.

        Args:
            rows: The rows.
            texts: Takes the text out of each.
            kept: Called for each row that has its vector already.
            failed: Called for each that has no text; that is written down.
        """
        for row in rows:
            try:
                text = texts.of(row)
            except RowError as error:
                self._file.clear(row.position)
                told = {"type": error.type, "message": str(error)}
                self._fail(Piece(row.position, row.id, error.key, ""), told)
                failed()
                continue
            piece = Piece(row.position, row.id, text_key(text), text)
            claimed = self.store.claim(row.position, row.id, piece.key)
            place = self.store.places.at(row.position) if claimed else None
            if place is not None and self._has(piece, place):
                self._count(kept=1)
                kept()
            else:
                self._file.clear(row.position)
                yield piece

    def _has(self, piece: Piece, place: Place) -> bool:
        """Whether a row's vector is here, or could be taken from an earlier file."""
        record = self.store.places.read(place)
        digest, there = record.get("vector"), record["position"]
        if place.path == self.store.path:
            here = self._file.take(there)
            if there != piece.position or digest_of(here) != digest:
                return False
            with self._lock:
                self._check(record.get("model") or "", self._file.dimensions)
            return True
        vector = self._earlier(place, there)
        if vector is None or digest_of(vector.tobytes()) != digest:
            return False
        self._put(piece, vector, record.get("model") or "")
        return True

    def _earlier(self, place: Place, there: int) -> Any:
        """Return a vector of an earlier file; None if it has none."""
        path = place.path.with_suffix(_ARRAY)
        if path not in self._open:
            try:
                self._open[path] = open_vectors(path)
            except (OSError, ValueError):
                self._open[path] = ()
        array = self._open[path]
        return array[there] if there < len(array) else None

    # ── what was answered ────────────────────────────────────────────────────────

    def put(self, piece: Piece, vector: Sequence[float], model: str) -> None:
        """Write a row's vector, then that it is there.

        Raises:
            ConfigurationError: It is another model's than those before.
            DiskSpaceError: The disk is full.
        """
        self._put(piece, vector, model)
        self._count()
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._file.sync()
            self._synced = time.monotonic()

    def _count(self, kept: int = 0) -> None:
        with self._lock:
            self.done += 1
            self.kept += kept

    def _put(self, piece: Piece, vector: Sequence[float], model: str) -> None:
        name = _model_name(model)
        with self._lock:
            self._check(name, len(vector))
            if self._file.dimensions is None:
                self._begin(len(vector))
        digest = self._file.put(piece.position, vector)
        told = {"error": None, "model": name, "vector": digest, "time": time.time()}
        self.store.add(_named(piece) | told)

    def _check(self, model: str, dimensions: int | None) -> None:
        """Refuse a vector of another model than those before; the lock is held."""
        before = self._model or model
        model = model or before  # one that does not tell is taken for the same
        known = self._file.dimensions
        if before != model or known not in (None, dimensions):
            raise ConfigurationError(
                f"{self._out} has vectors of {before!r} with {known} numbers each, and "
                f"others are of {model!r} with {dimensions}: vectors of two models "
                "cannot be compared; name another file, or start that model"
            )
        self._model = model

    def _begin(self, dimensions: int) -> None:
        needed = self._file.needed(dimensions)
        require_space(self._out.parent, needed, self._out.name)
        with disk_errors(self._out.parent, self._out.name, lambda: needed):
            self._file.begin(dimensions)

    def fail(self, piece: Piece, error: BaseException) -> None:
        """Write that a row failed."""
        self._fail(piece, {"type": type(error).__name__, "message": str(error)})

    def _fail(self, piece: Piece, error: dict[str, str]) -> None:
        self.store.add(_named(piece) | {"error": error, "time": time.time()})
        with self._lock:
            self.failed += 1


def _check_there(out: Path, resume: Resume) -> None:
    """Refuse a file of vectors that is not gone on with.

    Raises:
        ConfigurationError: It is not to be, or cannot be.
    """
    if resume is False:
        raise ConfigurationError(
            f"out={str(out)!r} is not empty: resume=True goes on with it; or name "
            "another file"
        )
    if not side_file(out).exists():
        raise ConfigurationError(
            f"out={str(out)!r} is there, but not {side_file(out).name}, which says "
            "what it holds; put it there too, or name another file"
        )


def _named(piece: Piece) -> dict[str, Any]:
    return {"id": piece.id, "key": piece.key, "position": piece.position}


def _model_name(model: str) -> str:
    """Return a model's name without the folder it lies in on some machine."""
    return Path(model).name.removesuffix(".gguf")
