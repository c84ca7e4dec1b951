"""Where each result lies: some bytes for a row in arrays, and never an answer."""

from __future__ import annotations

import contextlib
import json
from array import array
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from llamatelemetry.batch._lines import own_record
from llamatelemetry.exceptions import BatchError

__all__ = ["Found", "Index", "Place", "Places", "digest_of_id"]

_NOWHERE = -1

T = TypeVar("T", bound=Hashable)


def digest_of_id(id: str | int) -> int:  # noqa: A002 -- what users call it
    """Return 64 bits that stand for an id; 1 and "1" are different ids."""
    text = json.dumps(id).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest())


@dataclass(frozen=True, slots=True)
class Place:
    """Where one row's result lies.

    Attributes:
        position: The row's, from 0.
        path: The file.
        offset: Where in the file its line begins, in bytes.
        failed: Whether it holds an error.
    """

    position: int
    path: Path
    offset: int
    failed: bool


class Places:
    """The places of the results of one call, by the rows' positions.

    Attributes:
        done: Rows with an answer.
        failed: Rows with an error.
    """

    def __init__(self) -> None:
        self.done = 0
        self.failed = 0
        self._paths = Numbered[Path]()
        self._files = array("I")
        self._offsets = array("q")
        self._ids = array("Q")
        self._failed = bytearray()

    def __len__(self) -> int:
        return self.done + self.failed

    def __iter__(self) -> Iterator[Place]:
        for position in range(len(self._offsets)):
            place = self.at(position)
            if place is not None:
                yield place

    def put(
        self,
        position: int,
        id: str | int,  # noqa: A002 -- what users call it
        path: Path,
        offset: int,
        *,
        failed: bool,
    ) -> None:
        """Note where a row's result lies, in place of an earlier one."""
        missing = position + 1 - len(self._offsets)
        if missing > 0:
            self._files.extend([0] * missing)
            self._offsets.extend([_NOWHERE] * missing)
            self._ids.extend([0] * missing)
            self._failed.extend(bytes(missing))
        if self._offsets[position] != _NOWHERE:
            self._count(failed=bool(self._failed[position]), by=-1)
        self._files[position] = self._paths.number(path)
        self._ids[position] = digest_of_id(id)
        self._failed[position] = failed
        self._offsets[position] = offset  # last: a reader finds the rest there
        self._count(failed=failed, by=1)

    def _count(self, *, failed: bool, by: int) -> None:
        if failed:
            self.failed += by
        else:
            self.done += by

    def at(self, position: int) -> Place | None:
        """Return the place of a row's result; None if it has none."""
        if not 0 <= position < len(self._offsets):
            return None
        offset = self._offsets[position]
        if offset == _NOWHERE:
            return None
        path = self._paths[self._files[position]]
        return Place(position, path, offset, bool(self._failed[position]))

    def find(self, id: str | int) -> Place | None:  # noqa: A002 -- what users call it
        """Return the place of the result of the row with this id; None without one."""
        wanted = digest_of_id(id)
        start = 0
        with contextlib.suppress(ValueError):
            while True:
                position = self._ids.index(wanted, start)
                place = self.at(position)
                # 0 is also what a row without a result has.
                if place is not None and self.read(place)["id"] == id:
                    return place
                start = position + 1
        return None

    def read(self, place: Place) -> dict[str, Any]:
        """Return the record at a place.

        Raises:
            BatchError: The file is gone, or is another one now.
        """
        with _reading(place.path) as file:
            return self._record(file, place)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield all records in the order of their rows.

        Raises:
            BatchError: A file is gone, or is another one now.
        """
        with contextlib.ExitStack() as stack:
            files: dict[Path, IO[bytes]] = {}
            for place in self:
                if place.path not in files:
                    files[place.path] = stack.enter_context(_reading(place.path))
                yield self._record(files[place.path], place)

    def _record(self, file: IO[bytes], place: Place) -> dict[str, Any]:
        file.seek(place.offset)
        record = own_record(file.readline())
        if record is None or digest_of_id(record["id"]) != self._ids[place.position]:
            raise _changed(place.path, "it was changed meanwhile")
        return record


class Index:
    """Where each answer and each error of some files lies, by what was asked.

    Attributes:
        found: How many answers there are.
    """

    def __init__(self) -> None:
        self.found = 0
        self._entries: dict[bytes, int] = {}
        self._files = array("I")
        self._offsets = array("q")
        self._models = array("I")
        self._failed = bytearray()
        self._paths = Numbered[Path]()
        self._names = Numbered[str]()

    def put(self, path: Path, offset: int, record: Mapping[str, Any]) -> None:
        """Note a record. The later one of a file counts; of several files an answer."""
        digest = _digest(record["id"], record["key"])
        failed = record.get("error") is not None
        model = self._names.number(str(record.get("model") or ""))
        file = self._paths.number(path)
        entry = self._entries.get(digest)
        if entry is None:
            self._entries[digest] = len(self._offsets)
            self._files.append(file)
            self._offsets.append(offset)
            self._models.append(model)
            self._failed.append(failed)
            self.found += not failed
            return
        answered = not self._failed[entry]
        if failed and answered and self._files[entry] != file:
            return
        self.found += (not failed) - answered
        self._files[entry] = file
        self._offsets[entry] = offset
        self._models[entry] = model
        self._failed[entry] = failed

    def get(self, id: str | int, key: str) -> Found | None:  # noqa: A002 -- what users call it
        """Return where the result lies of what was asked; None without one."""
        entry = self._entries.get(_digest(id, key))
        if entry is None:
            return None
        return Found(
            self._paths[self._files[entry]],
            self._offsets[entry],
            bool(self._failed[entry]),
            self._names[self._models[entry]],
        )


@dataclass(frozen=True, slots=True)
class Found:
    """Where a result of earlier lies.

    Attributes:
        path: The file.
        offset: Where in the file its line begins, in bytes.
        failed: Whether it holds an error.
        model: The model that gave it; empty if that was not told.
    """

    path: Path
    offset: int
    failed: bool
    model: str


class Numbered(Generic[T]):
    """A few values, each with a number that is small enough for an array."""

    def __init__(self) -> None:
        self._numbers: dict[T, int] = {}
        self._values: list[T] = []

    def __getitem__(self, number: int) -> T:
        return self._values[number]

    def number(self, value: T) -> int:
        """Return the number of a value, which gets one if it has none."""
        if value not in self._numbers:
            self._numbers[value] = len(self._values)
            self._values.append(value)
        return self._numbers[value]


def _digest(id: str | int, key: str) -> bytes:  # noqa: A002 -- what users call it
    text = json.dumps([id, key]).encode()
    return blake2b(text, digest_size=16).digest()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise _changed(path, error.strerror or str(error)) from error
    with file:
        yield file


def _changed(path: Path, why: str) -> BatchError:
    return BatchError(
        f"the results in {path} cannot be read ({why}); put the file back, or call "
        "again: what is missing is asked again"
    )
