"""Asks with the same beginning side by side, so that a slot's prompt cache serves them.

What waits when a worker has nothing to do is put in order, and all of it is asked
before anything that comes later, so none waits for long. Asks that share nothing keep
their order; groups come in the order of their first member. So the order says nothing
about the length of the answers, and what finishes first is a fair sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from llamatelemetry.batch._supply import Waiting

__all__ = ["SideBySide", "beginning"]

_WORTH_IT = 64  # characters, about 16 tokens: what has to be in common to be a group
_MOST_LOOKED_AT = 16_384  # characters of one ask; what is alike so far is alike
_MOST_CHARACTERS = 8_000_000  # that wait: pictures may be megabytes each


class _HasMessages(Protocol):
    @property
    def messages(self) -> Sequence[Mapping[str, Any]]: ...


Asked = TypeVar("Asked", bound=_HasMessages)


class SideBySide(Waiting[Asked]):
    """Asks that wait, and are handed on those with a common beginning together.

    Args:
        most: So many are read ahead, among which is looked for common beginnings.
    """

    def __init__(self, most: int = 1000) -> None:
        super().__init__(most)
        self._characters = 0
        self._last: Asked | None = None

    @property
    def is_full(self) -> bool:
        """Whether they are long enough to be as much as may wait."""
        return self._characters >= _MOST_CHARACTERS

    def add(self, item: Asked) -> None:
        """Have one wait."""
        super().add(item)
        self._characters += sum(len(text) for text in _texts(item.messages))

    def take(self) -> list[Asked]:
        """Return all, those first that begin like the last one of before."""
        self._characters = 0
        taken = _ordered(self._last, super().take())
        self._last = taken[-1] if taken else self._last
        return taken


def _ordered(last: Asked | None, waiting: list[Asked]) -> list[Asked]:
    """Return asks with common beginnings together, first those like the last one."""
    if len(waiting) < 2:  # noqa: PLR2004 -- one is in order
        return waiting
    # The last ask of those before stands for what the caches hold.
    everyone = waiting if last is None else [last, *waiting]
    texts = [beginning(ask.messages) for ask in everyone]
    order = _grouped(texts)
    return [everyone[number] for number in order if last is None or number]


def _grouped(texts: Sequence[str]) -> list[int]:
    """Return the numbers of texts, groups and groups within them together."""
    order: list[int] = []
    pending = [(list(range(len(texts))), 0)]  # groups to look into, the next one last
    while pending:
        numbers, known = pending.pop()
        if len(numbers) == 1:
            order += numbers
            continue
        start = _common([texts[number] for number in numbers], known)
        groups: dict[str, list[int]] = {}
        for number in numbers:
            groups.setdefault(texts[number][start : start + _WORTH_IT], []).append(
                number
            )
        if len(groups) == 1:  # they are equal to their ends
            order += numbers
            continue
        end = start + _WORTH_IT
        pending += [(group, end) for group in reversed(groups.values())]
    return order


def _common(texts: Sequence[str], known: int) -> int:
    """Return how many characters texts begin with alike; so many are known to be."""
    first, last = min(texts), max(texts)
    low, high = min(known, len(first)), min(len(first), len(last))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == last[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def beginning(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return what a chat begins with, as far as that is looked at."""
    told: list[str] = []
    left = _MOST_LOOKED_AT
    for text in _texts(messages):
        told.append(text[:left])
        left -= len(told[-1])
        if left <= 0:
            break
    return "".join(told)


def _texts(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the pieces of text of a chat; a picture's are its address or its bytes."""
    for message in messages:
        yield f"\n{message.get('role', '')}\n"
        content = message.get("content")
        if isinstance(content, str):
            yield content
            continue
        for part in content or ():
            if not isinstance(part, Mapping):
                continue
            for value in part.values():
                if isinstance(value, Mapping):
                    value = value.get("url") or value.get("data")  # noqa: PLW2901 -- the same thing, one level down
                if isinstance(value, str):
                    yield value
