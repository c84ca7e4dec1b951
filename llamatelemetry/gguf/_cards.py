"""The cards a plan is made for: what they have, and what is kept free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol, runtime_checkable

from llamatelemetry._units import GIB, MIB
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gguf.estimates import GPU_MARGIN_BYTES, GPU_MARGIN_SHARE
from llamatelemetry.server.config import ServerConfig

T4_FREE_BYTES = 15_096 * MIB
"""Free on an idle Tesla T4 of Kaggle, of 15,360 MiB in all, as nvidia-smi says."""

_T4_NAMES = ("t4", "15", "16")
_MOST_GIB = 1024
_MOST_CARDS = 16  # GGML_CUDA_MAX_DEVICES
_LEAST_BYTES = MIB  # less is a mistake in the unit


@runtime_checkable
class GPU(Protocol):
    """A card, as far as a plan needs to know it."""

    @property
    def index(self) -> int:
        """Its place in CUDA's order."""

    @property
    def free_bytes(self) -> int | None:
        """Bytes that are free; None for no limit."""


@dataclass(frozen=True, slots=True)
class GPUMemory:
    """A card as a plan sees it.

    Attributes:
        index: Its place in CUDA's order.
        free_bytes: Bytes that are free on it; None for no limit.

    Raises:
        ConfigurationError: The index or the bytes make no sense.

    Examples:
        >>> from llamatelemetry.gguf import GPUMemory, plan_memory
        >>> cards = [GPUMemory(0, free_bytes=15 * 2**30), GPUMemory(1, 8 * 2**30)]
        >>> plan_memory("qwen3-14b", gpus=cards).fits
        True
    """

    index: int
    free_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.index < _MOST_CARDS:
            raise ConfigurationError(
                f"index={self.index!r} is no card's; CUDA counts from 0 to "
                f"{_MOST_CARDS - 1}"
            )
        if self.free_bytes is not None:
            check_bytes("free_bytes", self.free_bytes)

    @classmethod
    def t4(cls, count: int = 2) -> list[GPUMemory]:
        """Return idle T4s, as Kaggle has two of.

        Args:
            count: How many.

        Examples:
            >>> from llamatelemetry.gguf import GPUMemory
            >>> GPUMemory.t4(1)
            [GPUMemory(index=0, free_bytes=15829303296)]
        """
        return [cls(index, T4_FREE_BYTES) for index in range(count)]


def check_bytes(name: str, value: object) -> None:
    """Refuse what is no size in bytes.

    Raises:
        ConfigurationError: It is no whole number, or was meant in another unit.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or int(value) < _LEAST_BYTES:  # type: ignore[call-overload]
        raise ConfigurationError(
            f"{name}={value!r} is no size of a MiB or more; it is counted in bytes: "
            "15 * 2**30 for 15 GiB"
        )


def margin_bytes(needed: int) -> int:
    """Return what is to stay free on a card that holds this much."""
    return int(needed * GPU_MARGIN_SHARE) + GPU_MARGIN_BYTES


def parse_gpus(text: str) -> list[GPUMemory]:
    """Return the cards that a text speaks of, in GiB.

    Args:
        text: ``2x15`` for two cards with 15 GiB each, ``15,24`` for two different
            ones, ``2xt4``, or ``none``. 15 and 16 are a T4's sizes, as nvidia-smi and
            its data sheet have them, of which 15,096 MiB are free; other sizes are
            taken as free.

    Raises:
        ConfigurationError: It speaks of none.

    Examples:
        >>> from llamatelemetry.gguf.memory import parse_gpus
        >>> [card.free_bytes / 2**20 for card in parse_gpus("2xt4")]
        [15096.0, 15096.0]
    """
    cleaned = text.lower().replace(" ", "").replace("gib", "").replace("gb", "")
    if cleaned in ("none", "0"):
        return []
    sizes: list[int] = []
    try:
        for part in cleaned.split(","):
            count, times, size = part.rpartition("x")
            number = int(count) if times else 1
            sizes += [_bytes_of(size)] * min(max(number, 0), _MOST_CARDS + 1)
    except (ValueError, OverflowError):
        sizes = []
    if not 0 < len(sizes) <= _MOST_CARDS:
        raise ConfigurationError(
            f"gpus={text!r} is not understood; write 2x15 for two cards with 15 GiB "
            "each, 15,24 for two different ones, 2xt4, or none for no card"
        )
    return [GPUMemory(index, size) for index, size in enumerate(sizes)]


def _bytes_of(size: str) -> int:
    if size in _T4_NAMES:
        return T4_FREE_BYTES
    number = float(size)
    if not 0 < number <= _MOST_GIB:
        raise ValueError(size)
    return round(number * GIB)


def checked_gpus(gpus: object) -> tuple[GPU, ...]:
    """Return given cards in CUDA's order.

    Raises:
        ConfigurationError: They are no cards, or two have the same index.
    """
    given: Iterable[object]
    if isinstance(gpus, str):
        given = parse_gpus(gpus)
    elif isinstance(gpus, Iterable):
        given = gpus
    else:
        given = (gpus,)
    cards = [_checked(card) for card in given]
    cards.sort(key=lambda card: card.index)
    numbers = [card.index for card in cards]
    if len(set(numbers)) < len(numbers):
        raise ConfigurationError(f"two cards have the same index: {numbers}")
    return tuple(cards)


def _checked(card: object) -> GPU:
    if isinstance(card, GPU):
        return card
    raise ConfigurationError(
        f"gpus holds {card!r}, which is no card; give text like '2x15', or objects "
        "with index and free_bytes, such as llamatelemetry.gguf.GPUMemory.t4(2)"
    )


def chosen_gpus(config: ServerConfig, gpus: Sequence[GPU] | None) -> tuple[GPU, ...]:
    """Return the cards that a configuration uses, in order.

    Args:
        config: The configuration.
        gpus: The cards there are, in order; None for as many as it speaks of.

    Raises:
        ConfigurationError: It names a card that is not there.
    """
    if config.device == "none" or config.n_gpu_layers == 0:
        return ()
    ordered = tuple(_as_asked(config) if gpus is None else gpus)
    if config.device is not None:
        by_name = {f"CUDA{gpu.index}": gpu for gpu in ordered}
        names = config.device.split(",")
        missing = [name for name in names if name not in by_name]
        if missing:
            raise ConfigurationError(
                f"device names {', '.join(missing)}; the plan was given "
                f"{', '.join(by_name) or 'no cards'}"
            )
        if len(set(names)) < len(names):
            raise ConfigurationError(f"device names a card twice: {config.device}")
        ordered = tuple(by_name[name] for name in names)
    if config.split_mode == "none" and ordered:
        if config.main_gpu >= len(ordered):
            raise ConfigurationError(
                f"main_gpu={config.main_gpu}, but there are {len(ordered)} cards"
            )
        return (ordered[config.main_gpu],)
    return ordered


def _as_asked(config: ServerConfig) -> list[GPU]:
    """Return as many cards without a limit as a configuration speaks of."""
    count = len(config.tensor_split.split(",")) if config.tensor_split else 1
    numbers = [
        int(name.removeprefix("CUDA"))
        for name in (config.device or "").split(",")
        if name.removeprefix("CUDA").isdecimal()
    ]
    count = max([count, config.main_gpu + 1, *(number + 1 for number in numbers)])
    return [GPUMemory(index) for index in range(min(count, _MOST_CARDS))]
