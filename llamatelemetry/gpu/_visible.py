"""CUDA_VISIBLE_DEVICES: what it means here, and what a child is to be given.

Nothing here asks a driver: who calls says which cards there are.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llamatelemetry._units import printable
from llamatelemetry.exceptions import ConfigurationError

__all__ = [
    "Choice",
    "IndexedCard",
    "choose",
    "named_entries",
    "named_instances",
    "nothing_shown",
    "text_of",
    "visible_devices",
    "visible_places",
]

_VARIABLE = "CUDA_VISIBLE_DEVICES"
# CUDA reads an index as C's strtoul does: "1gpu" is 1.
_INDEX = re.compile(r"\s*\+?([0-9]{1,18})")
_UUID = "GPU-"
_MIG = "MIG-"


class IndexedCard(Protocol):
    """A card, as far as it has to be named: a GPUInfo, or a GPUMemory of a plan."""

    @property
    def index(self) -> int:
        """Its place in CUDA's order."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A card by its UUID, by its place in CUDA's order, or by both."""

    uuid: str | None
    index: int | None


def visible_devices(environment: Mapping[str, str] | None) -> str | None:
    """Return CUDA_VISIBLE_DEVICES of an environment, or of this process's."""
    return (os.environ if environment is None else environment).get(_VARIABLE)


def named_instances(environment: Mapping[str, str] | None) -> str | None:
    """Return what is to be said about instances of MIG; None if none is named."""
    entries = (visible_devices(environment) or "").split(",")
    named = [entry.strip() for entry in entries if entry.strip().startswith(_MIG)]
    if not named:
        return None
    names = printable(", ".join(named))
    return (
        f"{_VARIABLE} names {names}: instances of MIG are not supported, and their "
        "memory is not looked at. Name whole cards, by index or by GPU- UUID, or give "
        "a plan the instance's free memory as a GPUMemory."
    )


def nothing_shown(environment: Mapping[str, str] | None, count: int) -> str:
    """Return what is to be said where the variable shows none of so many cards."""
    value = printable(visible_devices(environment) or "")
    if count == 1:
        return f"{_VARIABLE}={value!r} does not show the only card."
    return f"{_VARIABLE}={value!r} shows none of the {count} cards."


def visible_places(visible: str | None, uuids: Sequence[str | None]) -> list[int]:
    """Return which of a machine's cards CUDA shows, in the order it shows them.

    The rules are CUDA's (https://docs.nvidia.com/cuda/cuda-c-programming-guide/
    index.html#env-vars). Those it does not write down are the ones PyTorch follows in
    ``torch.cuda._parse_visible_devices``: the first entry decides whether indices or
    UUIDs are read, and what is named twice hides everything.

    Args:
        visible: The value of CUDA_VISIBLE_DEVICES, or None if it is not set.
        uuids: The cards' UUIDs in the order of CUDA_DEVICE_ORDER.

    Examples:
        >>> from llamatelemetry.gpu.inventory import visible_places
        >>> visible_places("1,0", ["GPU-8932f937", "GPU-1eadbeef"])
        [1, 0]
    """
    if visible is None:
        return list(range(len(uuids)))
    by_uuid = visible.lstrip().startswith(_UUID)
    places: list[int] = []
    for entry in visible.split(","):
        place = _place_of_uuid(entry, uuids) if by_uuid else _place(entry, len(uuids))
        if place is None:
            break
        if place in places:
            return []
        places.append(place)
    return places


def _place(entry: str, count: int) -> int | None:
    """Return the place an index means; a MIG instance's name has none."""
    found = _INDEX.match(entry)
    if found is None or int(found[1]) >= count:
        return None
    return int(found[1])


def _place_of_uuid(entry: str, uuids: Sequence[str | None]) -> int | None:
    """Return the place of the one card whose UUID begins like this."""
    beginning = entry.strip()
    found = [
        place
        for place, uuid in enumerate(uuids)
        if uuid is not None and uuid.startswith(beginning)
    ]
    if not beginning.startswith(_UUID) or len(found) != 1:
        return None
    return found[0]


def named_entries(variable: str) -> dict[int, str]:
    """Return the entries of CUDA_VISIBLE_DEVICES that can be cards, by their places."""
    named: list[str] = []
    for entry in variable.split(","):
        if entry.strip() in ("", "-1"):  # what ends the list for CUDA too
            break
        named.append(entry.strip())
    return dict(enumerate(named))


def choose(gpu: Any) -> Choice:
    """Return what a card is asked for by.

    Raises:
        ConfigurationError: It is no card.
    """
    uuid = getattr(gpu, "uuid", None)
    index: Any = getattr(gpu, "index", None)
    if uuid is None and (index is None or callable(index)):  # a number, or no card
        index = gpu
    try:
        number = None if index is None and uuid is not None else operator.index(index)
    except TypeError:
        number = -1
    if (number is not None and number < 0) or isinstance(index, bool):
        raise ConfigurationError(
            f"{printable(repr(gpu))} is no card; give an index from 0, or a card of "
            "detect_gpus()"
        )
    return Choice(uuid, number)


def text_of(
    choices: Sequence[Choice],
    uuids: Mapping[int, str | None],
    entries: Mapping[int, str] | None,
) -> str:
    """Return the value of CUDA_VISIBLE_DEVICES that shows exactly these cards.

    CUDA reads UUIDs or indices, never both in one value.

    Args:
        choices: The cards, in the order in which they are to be counted.
        uuids: Those of the cards that are visible here; empty if no card is known.
        entries: What the visible cards are called here; None: by their indices.

    Raises:
        ConfigurationError: A card is not visible, is named twice, or cannot be named.
    """
    if uuids:
        choices = [_with_uuid(choice, uuids) for choice in choices]
    names = [choice.uuid for choice in choices if choice.uuid is not None]
    if len(names) < len(choices):
        names = [_entry(choice, entries) for choice in choices]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigurationError(
            f"card {printable(twice)} is named twice, with which CUDA shows no card "
            "at all"
        )
    return ",".join(names)


def _with_uuid(choice: Choice, uuids: Mapping[int, str | None]) -> Choice:
    if choice.uuid is not None or choice.index is None:
        return choice
    if choice.index not in uuids:
        raise _not_visible(choice.index, uuids)
    return Choice(uuids[choice.index], choice.index)


def _entry(choice: Choice, entries: Mapping[int, str] | None) -> str:
    if choice.index is None:
        raise ConfigurationError(
            f"{printable(str(choice.uuid))} has no index, and another card has no "
            "UUID: they cannot be named together"
        )
    if entries is None:
        return str(choice.index)
    if choice.index not in entries:
        raise _not_visible(choice.index, entries)
    return entries[choice.index]


def _not_visible(index: int, known: Iterable[int]) -> ConfigurationError:
    cards = ", ".join(map(str, known)) or "none"
    return ConfigurationError(
        f"card {index} is not visible to this process, which sees {cards}; "
        "detect_gpus() lists the cards"
    )
