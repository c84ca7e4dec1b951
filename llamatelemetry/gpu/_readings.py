"""What known cards say now: memory, load, power, temperature, clocks, processes.

Handles are kept, and asked for anew after a new initialization of NVML. What a card
answered "not supported" to is not asked again, so that one look stays cheap. A lost
card loses its own values and no other's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llamatelemetry.gpu._nvml import ALL_IS_LOST, CARD_IS_LOST, asked, era, without

__all__ = ["THROTTLE_REASONS", "Reading", "Readings"]

RETRY_SECONDS = 5.0
"""How long a lost card, or a lost driver, is left alone."""

# nvmlReturn_t
_NEVER = {3, 13, 25, 26}  # not supported; no such function, or version of one; removed

# Each value's ways, the best first: a function of the binding, and what it is given
# beside the handle, by their names there. What a binding lacks is no way.
_WAYS: Mapping[str, Sequence[Sequence[str]]] = {
    # The first version counts what the driver keeps for itself as used.
    "memory": (
        ("nvmlDeviceGetMemoryInfo", "nvmlMemory_v2"),
        ("nvmlDeviceGetMemoryInfo",),
    ),
    "utilization": (("nvmlDeviceGetUtilizationRates",),),
    "power": (("nvmlDeviceGetPowerUsage",),),
    "power_limit": (("nvmlDeviceGetEnforcedPowerLimit",),),
    "temperature": (
        ("nvmlDeviceGetTemperatureV", "NVML_TEMPERATURE_GPU"),
        ("nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU"),
    ),
    "graphics_clock": (
        ("nvmlDeviceGetClockInfo", "NVML_CLOCK_GRAPHICS"),
        ("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"),
    ),
    "memory_clock": (("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),),
    # The same bits; drivers since 535 speak of events.
    "throttle_reasons": (
        ("nvmlDeviceGetCurrentClocksEventReasons",),
        ("nvmlDeviceGetCurrentClocksThrottleReasons",),
    ),
    "processes": (
        ("nvmlDeviceGetComputeRunningProcesses_v3",),
        ("nvmlDeviceGetComputeRunningProcesses_v2",),
    ),
}

# nvmlClocksEventReasons in nvml.h, and two of the older nvmlClocksThrottleReasons.
THROTTLE_REASONS = {
    0x001: "gpu_idle",
    0x002: "application_clocks_setting",
    0x004: "software_power_cap",
    0x008: "hardware_slowdown",
    0x010: "sync_boost",
    0x020: "software_thermal_slowdown",
    0x040: "hardware_thermal_slowdown",
    0x080: "hardware_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What one card said; None is what it cannot tell.

    Attributes:
        memory_total_bytes: Its memory.
        memory_free_bytes: What is free of it.
        memory_used_bytes: What processes hold of it; where the driver is older than
            510, what the driver holds for itself too.
        utilization_percent: The part of the time in which it computed.
        memory_utilization_percent: The part of the time in which its memory was read
            or written.
        power_watts: What it draws.
        power_limit_watts: What it may draw.
        temperature_celsius: How warm its chip is.
        graphics_clock_mhz: How fast its cores run.
        memory_clock_mhz: How fast its memory runs.
        throttle_reasons: Why it does not run faster.
        processes: The processes that compute on it, and their bytes, which are None
            where they are not told.
        problem: Why there is nothing, in a sentence.
    """

    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilization_percent: int | None = None
    memory_utilization_percent: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_celsius: int | None = None
    graphics_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    processes: tuple[tuple[int, int | None], ...] | None = None
    problem: str | None = None


class Readings:
    """Known cards, to be asked again and again.

    Not for two threads at once: who uses it holds a lock of its own.

    Args:
        cards: The UUID of each, or None, and its number in nvidia-smi.
    """

    def __init__(self, cards: Sequence[tuple[str | None, int]]) -> None:
        self._cards = [_Card(uuid, nvml_index) for uuid, nvml_index in cards]
        self._problem: str | None = None
        self._not_before = float("-inf")

    def read(self, now: float) -> list[Reading]:
        """Ask all cards.

        Args:
            now: Seconds of a clock that only goes forward.

        Returns:
            One reading for each card, in their order.

        Raises:
            SetupError: The binding, nvidia-ml-py, is missing.
        """
        found = None
        if self._cards and now >= self._not_before:
            found, self._problem = asked(partial(self._look, now))
            if found is None:
                self._not_before = now + RETRY_SECONDS
        return found or [Reading(problem=self._problem) for _ in self._cards]

    def _look(self, now: float, binding: Any) -> list[Reading]:
        return [card.read(binding, now) for card in self._cards]


class _Card:
    """One card: its handle, and the ways to ask it that are left."""

    def __init__(self, uuid: str | None, nvml_index: int) -> None:
        self._uuid = uuid
        self._nvml_index = nvml_index
        self._era = 0
        self._ways: dict[str, list[Callable[[], Any]]] = {}
        self._refusal: Exception | None = None
        self._problem: str | None = None
        self._not_before = float("-inf")

    def read(self, binding: Any, now: float) -> Reading:
        """Ask it all.

        Raises:
            pynvml.NVMLError: No card can be asked.
        """
        if self._era != era():  # handles of another initialization are worth nothing
            self._era, self._ways, self._problem = era(), {}, None
        if self._problem is not None and now < self._not_before:
            return Reading(problem=self._problem)
        try:
            if not self._ways:
                self._ways = _ways_to(binding, self._handle(binding))
            reading = self._ask_all(binding)
        except binding.NVMLError as error:
            if error.value in ALL_IS_LOST:
                raise
            self._ways = {}
            self._problem = without(self._nvml_index, error)
            self._not_before = now + RETRY_SECONDS
            return Reading(problem=self._problem)
        self._problem = None
        return reading

    def _handle(self, binding: Any) -> Any:
        """Ask for its handle by its UUID; its number changes when others are lost."""
        if self._uuid is not None:
            # As bytes, because older bindings take no text.
            return binding.nvmlDeviceGetHandleByUUID(self._uuid.encode())
        return binding.nvmlDeviceGetHandleByIndex(self._nvml_index)

    def _ask_all(self, binding: Any) -> Reading:
        self._refusal = None
        told = {name: self._ask(binding, name) for name in _WAYS}
        if self._refusal is not None and not any(
            value is not None for value in told.values()
        ):
            raise self._refusal  # nothing at all: the handle may be invalid
        memory, utilization = told["memory"], told["utilization"]
        return Reading(
            memory_total_bytes=int(memory.total) if memory else None,
            memory_free_bytes=int(memory.free) if memory else None,
            memory_used_bytes=int(memory.used) if memory else None,
            utilization_percent=int(utilization.gpu) if utilization else None,
            memory_utilization_percent=int(utilization.memory) if utilization else None,
            power_watts=_watts(told["power"]),
            power_limit_watts=_watts(told["power_limit"]),
            temperature_celsius=told["temperature"],
            graphics_clock_mhz=told["graphics_clock"],
            memory_clock_mhz=told["memory_clock"],
            throttle_reasons=_names(told["throttle_reasons"]),
            processes=_processes(told["processes"]),
        )

    def _ask(self, binding: Any, name: str) -> Any:
        """Return a value by the first way that works; None if there is none.

        Raises:
            pynvml.NVMLError: The card, or all of them, cannot be asked.
        """
        ways = self._ways[name]
        for way in tuple(ways):
            try:
                return way()
            except binding.NVMLError as error:
                if error.value in ALL_IS_LOST | CARD_IS_LOST:
                    raise
                if error.value in _NEVER:
                    ways.remove(way)
                else:
                    self._refusal = error
        return None


def _ways_to(binding: Any, handle: Any) -> dict[str, list[Callable[[], Any]]]:
    """Return what can be called to ask a card, by what it tells."""
    found: dict[str, list[Callable[[], Any]]] = {}
    for name, ways in _WAYS.items():
        found[name] = []
        for way in ways:
            function, *arguments = [getattr(binding, part, None) for part in way]
            if function is not None and None not in arguments:
                found[name].append(partial(function, handle, *arguments))
    return found


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _names(bits: int | None) -> tuple[str, ...] | None:
    """Return the reasons that are set; a bit without a name is named by its number."""
    if bits is None:
        return None
    return tuple(
        THROTTLE_REASONS.get(1 << place, f"unknown_{1 << place:#x}")
        for place in range(bits.bit_length())
        if bits >> place & 1
    )


def _processes(told: Sequence[Any] | None) -> tuple[tuple[int, int | None], ...] | None:
    if told is None:
        return None
    return tuple((int(one.pid), one.usedGpuMemory) for one in told)
