"""The file of results: each answer is appended once, and kept whatever happens.

A line is appended by one write to a file that is locked for as long as it is written
to, and reaches the disk within about a second. What a killed process left half-written
is cut off before the next line is appended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llamatelemetry._units import format_file_size
from llamatelemetry.batch._lines import encode_line
from llamatelemetry.batch._places import Found, Index, Places
from llamatelemetry.batch._results_file import (
    EarlierResults,
    open_results,
    read_earlier,
)
from llamatelemetry.exceptions import (
    BatchError,
    ConfigurationError,
    DiskSpaceError,
    SetupWarning,
)
from llamatelemetry.setup._disk import free_bytes

__all__ = ["Store", "check_apart"]

_SYNC_SECONDS = 1.0


class Store:
    """The results of one call, and those of earlier ones; threads may share it.

    Attributes:
        path: The file that is written to.
        places: Where the results of this call's rows lie, those of earlier included.
        found: Answers found in all files when it was opened.
        kept: Rows of this call that were answered before, as far as they were claimed.
    """

    def __init__(self, path: Path, descriptor: int, index: Index) -> None:
        self.path = path
        self.places = Places()
        self.found = index.found
        self.kept = 0
        self._models: set[str] = set()
        self._index = index
        self._descriptor: int | None = descriptor
        self._lock = threading.Lock()
        self._unsynced = False
        self._failure: Exception | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._sync_often, name="llamatelemetry-results", daemon=True
        )
        self._thread.start()

    @classmethod
    def open(
        cls,
        out: str | os.PathLike[str],
        resume: bool | str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = True,
    ) -> Self:
        """Open a file of results, and read those of earlier.

        Args:
            out: The file to append to; it and its folder are made if they are missing.
            resume: Whether it may hold results already. Files or folders: those in
                them count too, and are only read.

        Raises:
            ConfigurationError: The file is another process's or no file of results,
                cannot be written, or is not empty though resume is False; or what
                resume names is missing or holds no results.
        """
        path = _absolute(out, "out")
        index = Index()
        damaged = read_earlier(_earlier(resume), path, index)
        descriptor, damaged_here = open_results(
            path, index, may_hold=resume is not False
        )
        try:
            for place, lines in (damaged | damaged_here).items():
                warnings.warn(
                    f"{place} has {lines} line(s) that cannot be read, as a power cut "
                    "leaves them; they are left alone, and their rows are asked again",
                    SetupWarning,
                    stacklevel=3,
                )
        except SetupWarning:  # where warnings are errors
            os.close(descriptor)
            raise
        return cls(path, descriptor, index)

    @property
    def models(self) -> frozenset[str]:
        """The models that gave the answers of the rows that are kept."""
        return frozenset(self._models)

    def find(self, id: str | int, key: str) -> Found | None:  # noqa: A002 -- what users call it
        """Return where the result lies of what a row was asked; None without one."""
        with self._lock:
            return self._index.get(id, key)

    def claim(self, position: int, id: str | int, key: str) -> bool:  # noqa: A002 -- what users call it
        """Take a row's earlier answer as this call's.

        Args:
            position: The row's, from 0.
            id: The row's.
            key: The digest of what is asked.

        Returns:
            Whether there is one: the row need not be asked.
        """
        with self._lock:
            found = self._index.get(id, key)
            if found is None or found.failed:
                return False
            self.places.put(position, id, found.path, found.offset, failed=False)
            self.kept += 1
            if found.model:
                self._models.add(found.model)
            return True

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a row's result.

        Args:
            record: It has an id, a key and a position; an error that is not None makes
                it one to ask again.

        Raises:
            DiskSpaceError: The disk is full; nothing of it was left in the file.
            BatchError: The file cannot be written to, was deleted, or is closed.
        """
        line = encode_line(record)
        with self._lock:
            if self._descriptor is None:
                raise BatchError(f"{self.path} is closed; call again to go on with it")
            if self._failure is not None:
                raise self._failure
            offset = self._append(self._descriptor, line)
            self._unsynced = True
            self._index.put(self.path, offset, record)
            self.places.put(
                record["position"],
                record["id"],
                self.path,
                offset,
                failed=record.get("error") is not None,
            )

    def _append(self, descriptor: int, line: bytes) -> int:
        """Append a line, whole or not at all; return where it begins."""
        rest = memoryview(line)
        try:
            while rest:  # once, but where the disk becomes full in the middle
                rest = rest[os.write(descriptor, rest) :]
        except OSError as error:
            written = len(line) - len(rest)
            if written:
                end = os.lseek(descriptor, 0, os.SEEK_CUR)
                os.ftruncate(descriptor, end - written)
            raise self._cannot_write(error, len(line)) from error
        return os.lseek(descriptor, 0, os.SEEK_CUR) - len(line)

    def _cannot_write(self, error: OSError, needed: int) -> Exception:
        kept = f"{self.places.done} of the rows are answered and kept"
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            return BatchError(
                f"{self.path} cannot be written to ({error.strerror}); {kept}. Call "
                "again, with another out and this one as resume if need be"
            )
        free = free_bytes(self.path.parent)
        return DiskSpaceError(
            f"the next answer needs {format_file_size(needed)} in {self.path.parent}, "
            f"where {format_file_size(free)} are free; {kept} in {self.path.name}. "
            "Make room there and call again, or call with an out elsewhere and this "
            "file as resume: it goes on from there.",
            needed=needed,
            free=free,
        )

    def _sync_often(self) -> None:
        while not self._closing.wait(_SYNC_SECONDS):
            self._sync()

    def _sync(self) -> None:
        """Bring what was written to the disk; a failure waits for the next call."""
        descriptor = self._descriptor
        if not self._unsynced or descriptor is None:
            return
        self._unsynced = False
        try:
            os.fsync(descriptor)
        except OSError as error:
            self._failure = self._cannot_write(error, 0)
            return
        try:
            there = os.path.samestat(self.path.stat(), os.fstat(descriptor))
        except OSError:
            there = False
        if not there:
            self._failure = BatchError(
                f"{self.path} was deleted or replaced while it was written to; what "
                "was answered before is lost with it. Call again to begin anew"
            )

    def close(self) -> None:
        """Bring everything to the disk, and let others have the file. Harmless twice.

        Raises:
            BatchError: What was written may not be on the disk.
            DiskSpaceError: The same, because it is full.
        """
        self._closing.set()
        self._thread.join()
        with self._lock:
            descriptor = self._descriptor
            if descriptor is None:
                return
            self._sync()
            self._descriptor = None
            os.close(descriptor)
            if self._failure is not None:
                raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        expected = () if exception is None else (BatchError, DiskSpaceError)
        with contextlib.suppress(*expected):
            self.close()


def check_apart(
    rows: Any,
    out: str | os.PathLike[str],
    resume: bool | str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = True,
) -> None:
    """Refuse rows that lie in a file of results, whatever name leads there.

    Args:
        rows: A call's rows; only a path is looked at.
        out: The file that is written to.
        resume: Whether there may be results, or where they are.

    Raises:
        ConfigurationError: They do.
    """
    written, earlier = _absolute(out, "out"), _earlier(resume)
    if not isinstance(rows, str | os.PathLike):
        return
    table = Path(rows).expanduser()
    if _are_one(table, written):
        raise ConfigurationError(
            f"rows={str(table)!r} is also the file that results are written to "
            f"({written}); name another one with out"
        )
    for place in earlier:
        if _are_one(table, place):
            raise ConfigurationError(
                f"rows={str(table)!r} is also given as earlier results "
                f"(resume={str(place)!r}); name the file that a batch has written there"
            )


def _are_one(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # one is missing, or cannot be looked at
        return False


def _absolute(path: Any, name: str) -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ConfigurationError(f"{name} takes the path of a file, not {path!r}")
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 -- links stay as they are written


def _earlier(resume: Any) -> EarlierResults:
    if isinstance(resume, bool):
        return []
    several = isinstance(resume, Sequence) and not isinstance(resume, str | bytes)
    return [_absolute(one, "resume") for one in (resume if several else [resume])]
