"""What cards said last as measurements of the hardware conventions. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llamatelemetry.gpu._samples import GPUSample
from llamatelemetry.gpu.inventory import GPUInfo
from llamatelemetry.telemetry import _conventions as names
from llamatelemetry.telemetry._conventions import Instrument

Value = tuple[float, dict[str, Any]]


def card_values(
    instrument: Instrument, samples: Iterable[GPUSample], gpus: Iterable[GPUInfo]
) -> list[Value]:
    """Return one instrument's value of each card; nothing for what a card cannot tell.

    Args:
        instrument: One of ``CARD_INSTRUMENTS``.
        samples: The cards' last samples.
        gpus: The cards.
    """
    known = {gpu.index: gpu for gpu in gpus}
    values = []
    for sample in samples:
        value = _value(instrument, sample)
        if value is not None:
            gpu = known.get(sample.index)
            values.append((value, _attributes(instrument, sample.index, gpu)))
    return values


def _value(instrument: Instrument, sample: GPUSample) -> float | None:
    if instrument is names.MEMORY_USAGE:
        return sample.memory_used_bytes
    if instrument is names.MEMORY_LIMIT:
        return sample.memory_total_bytes
    if instrument is names.POWER:
        return sample.power_watts
    if instrument is names.TEMPERATURE:
        return sample.temperature_celsius
    percent = sample.utilization_percent
    return None if percent is None else percent / 100


def _attributes(
    instrument: Instrument, index: int, gpu: GPUInfo | None
) -> dict[str, Any]:
    uuid, model, driver = None, None, None
    if gpu is not None:
        uuid, model, driver = gpu.uuid, gpu.name, gpu.driver_version
    attributes = {
        "hw.id": uuid or str(index),
        "hw.type": "gpu",
        "hw.name": f"GPU {index}: {model}" if model else f"GPU {index}",
    }
    if instrument.name.startswith("hw.gpu."):  # which may say more than the others
        more = {"hw.model": model, "hw.driver_version": driver, "hw.vendor": "NVIDIA"}
        attributes |= {name: value for name, value in more.items() if value}
    if instrument is names.UTILIZATION:
        attributes["hw.gpu.task"] = "general"
    return attributes
