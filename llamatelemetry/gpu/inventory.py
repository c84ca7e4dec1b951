"""The cards that a program started from here will see, in the order it sees them.

NVML (and nvidia-smi) counts all cards of a machine; CUDA counts those that
CUDA_VISIBLE_DEVICES names, in an order of its own. A server is started with
CUDA_DEVICE_ORDER=PCI_BUS_ID, and the index here is the one it uses: what
``main_gpu=1`` and the second number of ``tensor_split`` mean.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

from llamatelemetry._units import GIB, printable
from llamatelemetry.exceptions import ConfigurationError, SetupWarning
from llamatelemetry.gpu import _nvml
from llamatelemetry.gpu._capability import ComputeCapability
from llamatelemetry.gpu._nvml import Card, DriverState
from llamatelemetry.gpu._visible import (
    IndexedCard,
    choose,
    named_entries,
    named_instances,
    text_of,
    visible_devices,
    visible_places,
)

__all__ = [
    "ComputeCapability",
    "DriverState",
    "GPUInfo",
    "as_number",
    "detect_gpus",
    "measure_driver",
    "visible_cards",
    "visible_devices_text",
    "visible_places",
]


@dataclass(frozen=True, slots=True, repr=False)
class GPUInfo:
    """A card that this process may use. None is what the card cannot tell.

    The first five fields are the API reference's, and its GB are GiB (2**30 bytes). A
    card that shares the host's memory has no memory to tell of.

    Attributes:
        index: Its place in CUDA's order.
        name: What NVIDIA calls it, ``Tesla T4``.
        total_memory_gb: Its memory in GiB.
        free_memory_gb: What was free of it when it was asked, in GiB.
        compute_capability: What its cores can do, ``7.5``; compared as numbers, so
            that ``10.0`` is more.
        uuid: Its name for good, as CUDA_VISIBLE_DEVICES takes it.
        nvml_index: Its number in nvidia-smi.
        driver_version: The NVIDIA driver's, ``570.172.08``.
        pci_bus_id: Its place on the bus, ``00000000:00:04.0``.

    Raises:
        ConfigurationError: A size is no number from 0, or what is given as a compute
            capability is none.

    Examples:
        >>> from llamatelemetry import detect_gpus
        >>> card = detect_gpus()[0]
        >>> card
        <GPU 0: Tesla T4, 14.7 of 15.0 GiB free, compute capability 7.5>
        >>> card.total_memory_gb, card.free_bytes, card.compute_capability >= "7.0"
        (15.0, 15829303296, True)
    """

    index: int
    name: str
    total_memory_gb: float | None
    free_memory_gb: float | None
    compute_capability: ComputeCapability | None
    uuid: str | None = None
    nvml_index: int | None = None
    driver_version: str | None = None
    pci_bus_id: str | None = None

    def __post_init__(self) -> None:
        for name in ("total_memory_gb", "free_memory_gb"):
            given = getattr(self, name)
            if given is None:
                continue
            size = as_number(given)
            if not (size >= 0 and math.isfinite(size * GIB)):
                raise ConfigurationError(
                    f"{name} is {printable(repr(given))}; it must be GiB, 0 or more, "
                    "or None where it is not known"
                )
            if type(given) not in (int, float):  # a number of numpy's, say
                object.__setattr__(self, name, size)
        told = self.compute_capability
        if told is not None and not isinstance(told, ComputeCapability):
            object.__setattr__(self, "compute_capability", ComputeCapability(told))

    @property
    def total_bytes(self) -> int | None:
        """Its memory in bytes."""
        return _bytes(self.total_memory_gb)

    @property
    def free_bytes(self) -> int | None:
        """What was free of it when it was asked, in bytes; a plan reads this."""
        return _bytes(self.free_memory_gb)

    def __repr__(self) -> str:
        free, total = self.free_memory_gb, self.total_memory_gb
        memory = "memory unknown"
        if total is not None:
            known = "an unknown part" if free is None else f"{free:.1f}"
            memory = f"{known} of {total:.1f} GiB free"
        capability = self.compute_capability or "unknown"
        return (
            f"<GPU {self.index}: {self.name}, {memory}, compute capability "
            f"{capability}>"
        )


def detect_gpus(environment: Mapping[str, str] | None = None) -> list[GPUInfo]:
    """Return the cards this process and the servers it starts may use.

    CUDA_VISIBLE_DEVICES counts as it does for CUDA: indices, or UUIDs and the
    beginnings of such; what is unknown ends the list, an empty text hides all cards,
    and a card that is named twice hides all of them too. An index means the order of
    PCI_BUS_ID, in which servers are started, whatever CUDA_DEVICE_ORDER says here.
    A card that MIG divides is left out, and so are MIG's instances; a variable that
    names one is warned of.

    Args:
        environment: Where CUDA_VISIBLE_DEVICES is looked up. None: in this process's
            environment.

    Returns:
        The cards in CUDA's order; none if there is no driver or card, for which
        `measure_driver` gives the reason.

    Raises:
        SetupError: NVIDIA's nvidia-ml-py is missing.

    Warns:
        SetupWarning: CUDA_VISIBLE_DEVICES names instances of MIG.

    Examples:
        >>> from llamatelemetry import detect_gpus
        >>> [card.name for card in detect_gpus()]
        ['Tesla T4', 'Tesla T4']
        >>> len(detect_gpus({"CUDA_VISIBLE_DEVICES": "1"}))
        1
    """
    divided = named_instances(environment)
    if divided is not None:
        warnings.warn(divided, SetupWarning, stacklevel=2)
    return [gpu for _, gpu in visible_cards(environment)]


def measure_driver(environment: Mapping[str, str] | None = None) -> DriverState:
    """Return the NVIDIA driver's version, and why there is none or a card is missing.

    Args:
        environment: Where CUDA_VISIBLE_DEVICES is looked up. None: in this process's
            environment.

    Raises:
        SetupError: NVIDIA's nvidia-ml-py is missing.

    Examples:
        >>> from llamatelemetry.gpu.inventory import measure_driver
        >>> driver = measure_driver()
        >>> driver.version, driver.cuda_version, driver.problem
        ('570.172.08', (12, 8), None)
    """
    state, divided = _nvml.driver(), named_instances(environment)
    if divided is None:
        return state
    return replace(state, problem=" ".join(filter(None, (state.problem, divided))))


def visible_cards(
    environment: Mapping[str, str] | None = None,
) -> list[tuple[int, GPUInfo]]:
    """Return the cards that `detect_gpus` does, each with its place on the machine.

    The place is what CUDA_VISIBLE_DEVICES counts by: divided cards have one too.

    Args:
        environment: Where CUDA_VISIBLE_DEVICES is looked up. None: in this process's
            environment.

    Raises:
        SetupError: NVIDIA's nvidia-ml-py is missing.

    Examples:
        >>> from llamatelemetry.gpu.inventory import visible_cards
        >>> cards = visible_cards({"CUDA_VISIBLE_DEVICES": "1"})
        >>> [(place, card.index) for place, card in cards]
        [(1, 0)]
    """
    driver, found = _nvml.survey()
    cards = sorted(found, key=_bus_order)
    places = visible_places(visible_devices(environment), [card.uuid for card in cards])
    usable = [place for place in places if not cards[place].divided]
    return [
        (place, _information(index, cards[place], driver.version))
        for index, place in enumerate(usable)
    ]


def visible_devices_text(
    gpus: Sequence[SupportsIndex | IndexedCard],
    environment: Mapping[str, str] | None = None,
) -> str:
    """Return the CUDA_VISIBLE_DEVICES with which a child sees exactly these cards.

    Cards are named by their UUIDs, which mean the same in every process. Where one of
    them has none, all are named by this process's own entries of the variable, or by
    their indices; the child then needs CUDA_DEVICE_ORDER=PCI_BUS_ID, with which
    servers are started.

    Args:
        gpus: The cards in the order in which the child is to count them: indices as
            `detect_gpus` counts, or cards. The UUID of a card counts as it is.
        environment: Where this process's CUDA_VISIBLE_DEVICES is looked up. None: in
            its environment.

    Returns:
        ``GPU-8932f937-...,GPU-1eadbeef-...``, or ``1,0``. Empty, which hides all
        cards, for no card.

    Raises:
        ConfigurationError: A card is not among those that this process sees, as far
            as these are known; or one is named twice.
        SetupError: NVIDIA's nvidia-ml-py is missing.

    Examples:
        >>> from llamatelemetry.gpu import visible_devices_text
        >>> visible_devices_text([1])
        'GPU-1eadbeef-5555-6666-7777-88889999aaa1'
        >>> visible_devices_text([])
        ''
    """
    if isinstance(gpus, str):
        raise ConfigurationError(f"gpus is {printable(gpus)!r}, and must be a list")
    choices = [choose(gpu) for gpu in gpus]
    if all(choice.uuid is not None for choice in choices):
        return text_of(choices, {}, None)
    visible, variable = visible_cards(environment), visible_devices(environment)
    if visible:  # a card without a UUID can only be visible by its place
        entries: dict[int, str] | None = {gpu.index: str(at) for at, gpu in visible}
    else:
        entries = None if variable is None else named_entries(variable)
    return text_of(choices, {gpu.index: gpu.uuid for _, gpu in visible}, entries)


def as_number(value: Any) -> float:
    """Return a number as a float; NaN for what is none, texts and truths among it.

    Args:
        value: What somebody gave.

    Examples:
        >>> from llamatelemetry.gpu.inventory import as_number
        >>> as_number(3), as_number("3")
        (3.0, nan)
    """
    if isinstance(value, (bool, str, bytes, bytearray)):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _bus_order(card: Card) -> tuple[bool, list[int], int]:
    """Sort by domain, bus and device, as CUDA does; what is unknown comes last."""
    numbers = re.split("[:.]", card.pci_bus_id or "")
    known = bool(card.pci_bus_id)
    place = [int(number, 16) for number in numbers] if known else []
    return not known, place, card.nvml_index


def _information(index: int, card: Card, driver_version: str | None) -> GPUInfo:
    capability = card.compute_capability
    return GPUInfo(
        index=index,
        name=card.name,
        total_memory_gb=_gib(card.total_bytes),
        free_memory_gb=_gib(card.free_bytes),
        compute_capability=(
            None
            if capability is None
            else ComputeCapability("{}.{}".format(*capability))
        ),
        uuid=card.uuid,
        nvml_index=card.nvml_index,
        driver_version=driver_version,
        pci_bus_id=card.pci_bus_id,
    )


def _gib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / GIB


def _bytes(size_gib: float | None) -> int | None:
    # Dividing by a power of two loses nothing, so this is what NVML said.
    return None if size_gib is None else round(size_gib * GIB)
