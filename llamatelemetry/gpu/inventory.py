"""The cards that a program started from here will see, in the order it sees them.

NVML (and nvidia-smi) counts all cards of a machine; CUDA counts those that
CUDA_VISIBLE_DEVICES names, in an order of its own. A server is started with
CUDA_DEVICE_ORDER=PCI_BUS_ID, and the index here is the one it uses: what
``main_gpu=1`` and the second number of ``tensor_split`` mean.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamatelemetry._units import GIB
from llamatelemetry.gpu import _nvml
from llamatelemetry.gpu._nvml import Card, DriverState

__all__ = ["DriverState", "GPUInfo", "detect_gpus", "measure_driver"]

# CUDA reads an index as C's strtoul does: "1gpu" is 1.
_INDEX = re.compile(r"\s*\+?([0-9]{1,18})")
_UUID = "GPU-"


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
        compute_capability: What its cores can do, ``7.5``.
        uuid: Its name for good, as CUDA_VISIBLE_DEVICES takes it.
        nvml_index: Its number in nvidia-smi.
    """

    index: int
    name: str
    total_memory_gb: float | None
    free_memory_gb: float | None
    compute_capability: str | None
    uuid: str | None = None
    nvml_index: int | None = None

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
    A card that MIG divides is left out, and so are MIG's instances.

    Args:
        environment: Where CUDA_VISIBLE_DEVICES is looked up. None: in this process's
            environment.

    Returns:
        The cards in CUDA's order; none if there is no driver or card, for which
        `measure_driver` gives the reason.

    Raises:
        SetupError: NVIDIA's nvidia-ml-py is missing.
    """
    base = os.environ if environment is None else environment
    cards = sorted(_nvml.cards(), key=_bus_order)
    places = visible_places(
        base.get("CUDA_VISIBLE_DEVICES"), [card.uuid for card in cards]
    )
    usable = [cards[place] for place in places if not cards[place].divided]
    return [_information(index, card) for index, card in enumerate(usable)]


def measure_driver() -> DriverState:
    """Return the NVIDIA driver's version, and why there is none or a card is missing.

    Raises:
        SetupError: NVIDIA's nvidia-ml-py is missing.
    """
    return _nvml.driver()


def visible_places(visible: str | None, uuids: Sequence[str | None]) -> list[int]:
    """Return which of a machine's cards CUDA shows, in the order it shows them.

    The rules are CUDA's (https://docs.nvidia.com/cuda/cuda-c-programming-guide/
    index.html#env-vars). Those it does not write down are the ones PyTorch follows in
    ``torch.cuda._parse_visible_devices``: the first entry decides whether indices or
    UUIDs are read, and what is named twice hides everything.

    Args:
        visible: The value of CUDA_VISIBLE_DEVICES, or None if it is not set.
        uuids: The cards' UUIDs in the order of CUDA_DEVICE_ORDER.
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


def _bus_order(card: Card) -> tuple[bool, list[int], int]:
    """Sort by domain, bus and device, as CUDA does; what is unknown comes last."""
    numbers = re.split("[:.]", card.pci_bus_id or "")
    known = bool(card.pci_bus_id)
    place = [int(number, 16) for number in numbers] if known else []
    return not known, place, card.nvml_index


def _information(index: int, card: Card) -> GPUInfo:
    capability = card.compute_capability
    return GPUInfo(
        index=index,
        name=card.name,
        total_memory_gb=_gib(card.total_bytes),
        free_memory_gb=_gib(card.free_bytes),
        compute_capability=None if capability is None else "{}.{}".format(*capability),
        uuid=card.uuid,
        nvml_index=card.nvml_index,
    )


def _gib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / GIB


def _bytes(size_gib: float | None) -> int | None:
    # Dividing by a power of two loses nothing, so this is what NVML said.
    return None if size_gib is None else round(size_gib * GIB)
