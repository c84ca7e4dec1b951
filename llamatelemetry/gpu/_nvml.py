"""The one door to pynvml, NVIDIA's binding of the library that nvidia-smi asks.

What there is not is a value and says why: no driver, no card, a card that cannot tell.
Only the binding itself, which is a dependency, is an error when it is missing.

NVML is asked by one thread at a time, and a fork waits for the answer: a fork in the
middle of a call would leave the child with a lock that nobody opens.

Here cards are looked for; what a known card says again and again is in `_readings`, to
which `asked` lends the binding.
Functions and codes: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from llamatelemetry.exceptions import SetupError

__all__ = [
    "ALL_IS_LOST",
    "CARD_IS_LOST",
    "Card",
    "DriverState",
    "asked",
    "cards",
    "driver",
    "era",
    "survey",
    "without",
]

_Answer = TypeVar("_Answer")

# nvmlReturn_t; they never change, and an older binding does not name all of them.
_UNINITIALIZED = 1
_NO_PERMISSION = 4
_DRIVER_NOT_LOADED = 9
_LIBRARY_NOT_FOUND = 12
_GPU_IS_LOST = 15
_RESET_REQUIRED = 16
_LIB_RM_VERSION_MISMATCH = 18

# What ends the whole look, and what ends it for one card.
ALL_IS_LOST = {_UNINITIALIZED, _DRIVER_NOT_LOADED, _LIB_RM_VERSION_MISMATCH}
CARD_IS_LOST = {_GPU_IS_LOST, _RESET_REQUIRED}

_REASONS = {
    _NO_PERMISSION: (
        "This process may not talk to the NVIDIA driver; look at the permissions of "
        "/dev/nvidiactl."
    ),
    _DRIVER_NOT_LOADED: (
        "The kernel of this machine has not loaded the NVIDIA driver."
    ),
    _LIBRARY_NOT_FOUND: ("The NVIDIA driver's libnvidia-ml.so.1 cannot be loaded."),
    _LIB_RM_VERSION_MISMATCH: (
        "The NVIDIA driver's files are of another version than the driver that runs "
        "in the kernel, as after an upgrade; restart the machine."
    ),
}
_NO_LIBCUDA = (
    "libcuda.so.1 cannot be loaded, so programs cannot use the cards; a container "
    "needs NVIDIA_DRIVER_CAPABILITIES=compute,utility, and LD_LIBRARY_PATH must "
    "name the folder of the driver's files."
)

_NEEDED = (
    "NVMLError",
    "nvmlDeviceGetCount",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetName",
    "nvmlDeviceGetPciInfo",
    "nvmlDeviceGetUUID",
    "nvmlInit",
    "nvmlShutdown",
    "nvmlSystemGetCudaDriverVersion_v2",
    "nvmlSystemGetDriverVersion",
)

_LONGEST_LAST_WAIT = 2.0
"""Seconds the end of the program waits for a thread that still asks."""


@dataclass(frozen=True, slots=True)
class DriverState:
    """The NVIDIA driver of this machine, and what is wrong with it.

    Attributes:
        version: As nvidia-smi shows it, ``570.172.08``; None without a driver.
        cuda_version: The newest CUDA the driver supports, ``(12, 8)``; None if it
            cannot tell.
        problem: In sentences, why there is no driver or no card, or which cards are
            left out; None if nothing is wrong.

    Examples:
        >>> from llamatelemetry.gpu.inventory import measure_driver
        >>> measure_driver()
        DriverState(version='570.172.08', cuda_version=(12, 8), problem=None)
    """

    version: str | None
    cuda_version: tuple[int, int] | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class Card:
    """One card as NVML sees it; None is what it cannot tell.

    Attributes:
        nvml_index: Its number in nvidia-smi.
        name: What NVIDIA calls it, ``Tesla T4``.
        uuid: Its name for good, ``GPU-`` and 36 characters.
        pci_bus_id: Its place on the bus, ``00000000:00:04.0``.
        total_bytes: Its memory.
        free_bytes: What no process and not the driver holds of it.
        used_bytes: What processes hold of it; where the driver is older than 510,
            what the driver holds for itself too.
        compute_capability: ``(7, 5)``.
        divided: Whether MIG divides it: CUDA then uses its instances, never the
            whole.
    """

    nvml_index: int
    name: str
    uuid: str | None
    pci_bus_id: str | None
    total_bytes: int | None
    free_bytes: int | None
    used_bytes: int | None
    compute_capability: tuple[int, int] | None
    divided: bool


def driver() -> DriverState:
    """Ask for the driver and what is wrong with it or its cards.

    Raises:
        SetupError: The binding, nvidia-ml-py, is missing.
    """
    return survey()[0]


def cards() -> list[Card]:
    """Ask for the cards of this machine, in NVML's order; none if there is no driver.

    Left out is what this process has no right to, and what is lost; `driver` names
    the latter.

    Raises:
        SetupError: The binding, nvidia-ml-py, is missing.
    """
    return survey()[1]


def survey() -> tuple[DriverState, list[Card]]:
    """Ask for the driver and the cards in one look.

    Raises:
        SetupError: The binding, nvidia-ml-py, is missing.
    """
    found, problem = asked(_look)
    return found or (DriverState(None, None, problem), [])


_eras = itertools.count(1)


class _Session:
    """The one initialization of NVML in this process.

    Attributes:
        lock: Held while NVML is asked.
        era: A number of its own for each initialization; 0 before the first.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a finalizer may ask while its thread asks
        self.era = 0
        self._binding: Any = None

    def open(self, binding: Any) -> None:
        """Initialize NVML if that was not done yet."""
        if self._binding is None:
            binding.nvmlInit()
            self._binding = binding
            self.era = next(_eras)
            atexit.register(self.close)

    def forget(self) -> None:
        """Know that NVML is shut down already."""
        self._binding = None
        atexit.unregister(self.close)

    def close(self) -> None:
        """Shut NVML down; quiet if it is not initialized or no longer answers."""
        if not self.lock.acquire(timeout=_LONGEST_LAST_WAIT):
            return
        try:
            binding = self._binding
            self.forget()
            if binding is not None:
                with contextlib.suppress(binding.NVMLError):
                    binding.nvmlShutdown()
        finally:
            self.lock.release()


_session = _Session()


def _before_fork() -> None:
    _session.lock.acquire()


def _after_fork() -> None:
    _session.lock.release()


def _begin_anew() -> None:
    """Begin anew in a fork: what the parent has initialized is the parent's."""
    global _session  # noqa: PLW0603 - one for each process
    _session.forget()
    _session = _Session()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_begin_anew
)


def _load_binding() -> Any:
    """Return pynvml.

    Raises:
        SetupError: It is missing, or something else has its name.
    """
    try:
        import pynvml  # type: ignore[import-untyped] # noqa: PLC0415 - when asked
    except ModuleNotFoundError as error:
        raise SetupError(
            "Cards are asked through NVIDIA's nvidia-ml-py, which is not installed; "
            "run: pip install nvidia-ml-py"
        ) from error
    except Exception as error:
        raise SetupError(
            f"NVIDIA's nvidia-ml-py, imported as pynvml, does not load "
            f"({type(error).__name__}: {error}); run: "
            "pip install --force-reinstall nvidia-ml-py"
        ) from error
    missing = [name for name in _NEEDED if not hasattr(pynvml, name)]
    if missing:
        raise SetupError(
            f"{getattr(pynvml, '__file__', None) or 'pynvml'} is not NVIDIA's "
            f"nvidia-ml-py, or too old: it lacks {missing[0]}; run: pip uninstall "
            "pynvml, then pip install --force-reinstall nvidia-ml-py"
        )
    return pynvml


def asked(look: Callable[[Any], _Answer]) -> tuple[_Answer | None, str | None]:
    """Look with the initialized binding, as the only thread that asks NVML.

    Args:
        look: Called with the binding; a second time, from its beginning, where another
            library had shut NVML down.

    Returns:
        What it returned, and None; or None and the sentence that says why not.

    Raises:
        SetupError: The binding, nvidia-ml-py, is missing.
    """
    binding = _load_binding()
    with _session.lock:
        problem = None
        for _ in range(2):
            try:
                _session.open(binding)
                return look(binding), None
            except binding.NVMLError as error:
                problem = _reason(error)
                if error.value != _UNINITIALIZED:
                    break
                # Another library in this process has shut NVML down once too often.
                _session.forget()
    return None, problem


def era() -> int:
    """Return which initialization of NVML this is; handles are good for one only."""
    return _session.era


def _look(binding: Any) -> tuple[DriverState, list[Card]]:
    version = _ask(binding, binding.nvmlSystemGetDriverVersion)
    cuda_version, problems = _cuda_version(binding)
    found = []
    count = binding.nvmlDeviceGetCount()
    for index in range(count):
        try:
            found.append(_describe(binding, index))
        except binding.NVMLError as error:
            if error.value in ALL_IS_LOST:
                raise
            # NVML counts cards that were given to other users and containers too.
            if error.value != _NO_PERMISSION:
                problems.append(without(index, error))
    problems += [_instead_of(card) for card in found if card.divided]
    if count == 0:
        problems.append("The NVIDIA driver has found no card.")
    elif not found and not problems:
        problems.append(
            f"The NVIDIA driver has {count} cards, and none is for this process."
        )
    state = DriverState(_text(version), cuda_version, " ".join(problems) or None)
    return state, found


def _cuda_version(binding: Any) -> tuple[tuple[int, int] | None, list[str]]:
    """Return the newest CUDA that is supported, and what keeps it from being used."""
    try:
        number = binding.nvmlSystemGetCudaDriverVersion_v2()
    except binding.NVMLError as error:
        if error.value in ALL_IS_LOST:
            raise
        return None, [_NO_LIBCUDA] if error.value == _LIBRARY_NOT_FOUND else []
    # As NVML_CUDA_DRIVER_VERSION_MAJOR and _MINOR in nvml.h: 12080 is 12.8.
    return (number // 1000, number % 1000 // 10), []


def _describe(binding: Any, index: int) -> Card:
    """Return one card.

    Raises:
        pynvml.NVMLError: It cannot be reached, or is lost.
    """
    handle = binding.nvmlDeviceGetHandleByIndex(index)
    name = _ask(binding, binding.nvmlDeviceGetName, handle)
    place = _ask(binding, binding.nvmlDeviceGetPciInfo, handle)
    memory = _memory(binding, handle)
    mode = _ask(binding, binding.nvmlDeviceGetMigMode, handle)
    return Card(
        nvml_index=index,
        name=_text(name) or "NVIDIA card",
        uuid=_text(_ask(binding, binding.nvmlDeviceGetUUID, handle)),
        pci_bus_id=_text(place.busId) if place else None,
        total_bytes=int(memory.total) if memory else None,
        free_bytes=int(memory.free) if memory else None,
        used_bytes=int(memory.used) if memory else None,
        compute_capability=_ask(
            binding, binding.nvmlDeviceGetCudaComputeCapability, handle
        ),
        divided=bool(mode and mode[0]),
    )


def _memory(binding: Any, handle: Any) -> Any:
    """Return the card's memory; the first version counts what the driver keeps as used.

    A card that shares the host's memory has none of its own to tell of.
    """
    version = getattr(binding, "nvmlMemory_v2", None)
    memory = None
    if version is not None:
        memory = _ask(binding, binding.nvmlDeviceGetMemoryInfo, handle, version)
    if memory is None:
        memory = _ask(binding, binding.nvmlDeviceGetMemoryInfo, handle)
    return memory


def _ask(
    binding: Any, function: Callable[..., _Answer], *arguments: Any
) -> _Answer | None:
    """Return an answer, or None where the card or the driver cannot tell.

    Raises:
        pynvml.NVMLError: Nothing more can be asked.
    """
    try:
        return function(*arguments)
    except binding.NVMLError as error:
        if error.value in ALL_IS_LOST | CARD_IS_LOST:
            raise
        return None


def _text(value: str | bytes | None) -> str | None:
    """Return a text; bindings before 11.515 give bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _reason(error: Any) -> str:
    return _REASONS.get(error.value, f"NVML does not answer: {_words(error)}.")


def without(index: int, error: Any) -> str:
    """Return the sentence that says why a card is left out."""
    if error.value in CARD_IS_LOST:
        remedy = "restart the machine or the session"
        return f"Card {index} of nvidia-smi is lost ({_words(error)}); {remedy}."
    return f"Card {index} of nvidia-smi cannot be used: {_words(error)}."


def _instead_of(card: Card) -> str:
    return (
        f"Card {card.nvml_index} of nvidia-smi ({card.name}) is divided by MIG, and "
        "its instances are not looked at."
    )


def _words(error: Any) -> str:
    return f"{str(error).rstrip('.')}, code {error.value}"
