"""Which names and links an archive may hold. Nothing is read or written here.

A folder is followed as names alone, so that no race, no length of a path and no link
that is already on disk can mislead the check: the ways around Python's own
``filter="data"`` of 2025 (CVE-2025-4138, CVE-2025-4330, CVE-2025-4517) asked the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from llamatelemetry._units import printable
from llamatelemetry.exceptions import SetupError, UnsafeArchiveError

__all__ = ["MOST_MEMBERS", "Kind", "Names", "damage"]

Kind = Literal["file", "folder", "link"]

MOST_MEMBERS = 10_000
"""Members of one archive, if nothing else is asked for; a bundle known has 21."""
_MOST_NAME = 1024
"""Bytes of a name or a link's target; Linux ends a whole path at 4096."""
_MOST_STEP = 255
"""Bytes of a name between two slashes, Linux's own limit."""
_MOST_STEPS = 64
"""Folders in each other; shutil.rmtree holds one open for each of them."""
_MOST_CHAIN = 40
"""Links that lead to each other, Linux's own limit."""


def damage(archive: Path, what: str) -> SetupError:
    """Return the error for bytes that are not the archive they should be."""
    return SetupError(
        f"{archive}: {what}. The archive is cut off, damaged or of another kind; "
        "delete it and download it again."
    )


class Names:
    """The members of one folder so far, as names, and what they may be.

    Args:
        place: The archive or the folder, for messages.
        advice: What to do about a member that is refused, as a sentence.
        most: Members allowed, folders that only names tell of included.
    """

    def __init__(self, place: Path, advice: str, most: int = MOST_MEMBERS) -> None:
        self._place = place
        self._advice = advice
        self._most = most
        self._left = most
        self._kinds: dict[str, Kind] = {}
        self._targets: dict[str, str] = {}
        self._ends: dict[str, str] = {}

    def refusal(self, name: str, rule: str) -> UnsafeArchiveError:
        """Return the error that names a member and the rule it breaks."""
        return UnsafeArchiveError(
            f"{self._place}: the member {printable(name)!r} is refused: {rule}. "
            f"{self._advice}"
        )

    def add(self, name: str, kind: Kind, target: str = "") -> str:
        """Take one member in.

        Args:
            name: Its name as the archive has it.
            kind: What it is.
            target: What a link leads to, as the archive has it.

        Returns:
            The name without ``./`` and doubled slashes; "" for the folder itself.

        Raises:
            UnsafeArchiveError: It leaves the folder, or is something else already.
        """
        path = self._plain(name, name)
        self._count(name)
        if not path:
            if kind != "folder":
                raise self.refusal(name, f"it is the folder itself, not a {kind}")
            return path
        for parent in _parents(path):
            known = self._kinds.get(parent)
            if known is None:
                self._count(name)
                self._kinds[parent] = "folder"
            elif known != "folder":
                rule = f"{printable(parent)!r}, where it lies, is a {known}"
                raise self.refusal(name, rule)
        known = self._kinds.get(path)
        if known is not None and (known, kind) != ("folder", "folder"):
            rule = f"the name is there twice, as a {known} and as a {kind}"
            raise self.refusal(name, rule)
        self._kinds[path] = kind
        if kind == "link":
            self._check_text(name, "target", target)
            self._targets[path] = target
        return path

    def file_behind(self, name: str, target: str) -> str:
        """Return the earlier file that a hard link names.

        Raises:
            UnsafeArchiveError: There is none of that name in the archive so far.
        """
        path = self._plain(name, target)
        if self._kinds.get(path) != "file":
            rule = f"no file before it is called {printable(target)!r}, its target"
            raise self.refusal(name, rule)
        return path

    @property
    def folders(self) -> list[str]:
        """All folders, also those that only the names of members tell of."""
        return [path for path, kind in self._kinds.items() if kind == "folder"]

    def links(self) -> dict[str, str]:
        """Return all links and their targets, once all members are known.

        A target that is not there is allowed: engines are packed with links to
        libraries of the system's image. One that is outside of the folder is not.

        Raises:
            UnsafeArchiveError: A link leads out of the folder, itself or through
                others.
        """
        for path in self._targets:
            self._end(path, 1)
        return self._targets

    def _end(self, link: str, chain: int) -> str:
        """Return where a link ends, walking as Linux does."""
        if link in self._ends:
            return self._ends[link]
        target = self._targets[link]
        if target.startswith("/"):
            raise self._leaves(link, target)
        if chain > _MOST_CHAIN:
            rule = f"more than {_MOST_CHAIN} links lead to each other"
            raise self.refusal(link, rule)
        place = link.rpartition("/")[0]
        for step in target.split("/"):
            if step == "..":
                if not place:
                    raise self._leaves(link, target)
                place = place.rpartition("/")[0]
            elif step not in ("", "."):
                place = f"{place}/{step}" if place else step
                if place in self._targets:
                    place = self._end(place, chain + 1)
        self._ends[link] = place
        return place

    def _leaves(self, link: str, target: str) -> UnsafeArchiveError:
        rule = f"it links to {printable(target)!r}, which leaves the folder"
        return self.refusal(link, rule)

    def _plain(self, member: str, name: str) -> str:
        self._check_text(member, "name", name)
        if name.startswith("/"):
            raise self.refusal(member, "a name in it is absolute")
        steps = [step for step in name.split("/") if step not in ("", ".")]
        if ".." in steps:
            raise self.refusal(member, "a name in it leaves the folder by '..'")
        if len(steps) > _MOST_STEPS:
            raise self.refusal(member, f"it lies more than {_MOST_STEPS} folders deep")
        if any(len(step.encode()) > _MOST_STEP for step in steps):
            raise self.refusal(member, f"a name in it has over {_MOST_STEP} bytes")
        return "/".join(steps)

    def _check_text(self, member: str, what: str, text: str) -> None:
        if not text:
            raise self.refusal(member, f"its {what} is empty")
        # Control characters and NUL, marks of direction, and bytes that are no UTF-8.
        if not text.isprintable():
            raise self.refusal(member, f"its {what} holds what cannot be shown")
        if len(text.encode()) > _MOST_NAME:
            raise self.refusal(member, f"its {what} has over {_MOST_NAME} bytes")

    def _count(self, name: str) -> None:
        self._left -= 1
        if self._left < 0:
            rule = f"more than {self._most} members are too many"
            raise self.refusal(name, rule)


def _parents(path: str) -> Iterator[str]:
    """Yield the folders above a name, the topmost first."""
    place = path.find("/")
    while place >= 0:
        yield path[:place]
        place = path.find("/", place + 1)
