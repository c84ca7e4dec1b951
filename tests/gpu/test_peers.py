"""gpustat and nvitop, asked about the same driver, agree with what is told here."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from nvml_tools import MIB, StandInDriver, t4

OURS = """
import dataclasses, json
from llamatelemetry.gpu import GPUMonitor, detect_gpus

print(json.dumps({
    "gpus": [
        dataclasses.asdict(gpu) | {"total_bytes": gpu.total_bytes} for gpu in
        detect_gpus()
    ],
    "samples": [dataclasses.asdict(sample) for sample in GPUMonitor().sample()],
}))
"""

GPUSTAT = """
import runpy, sys
sys.argv = ["gpustat", "--json"]
runpy.run_module("gpustat", run_name="__main__")
"""

NVITOP = """
import json
from nvitop import CudaDevice

print(json.dumps([
    {
        "index": device.cuda_index,
        "nvml_index": device.nvml_index,
        "name": device.name(),
        "uuid": device.uuid(),
        "pci_bus_id": device.bus_id(),
        "driver_version": device.driver_version(),
        "compute_capability": device.cuda_compute_capability(),
        "memory": [device.memory_total(), device.memory_used(), device.memory_free()],
        "load": [device.gpu_utilization(), device.memory_utilization()],
        "temperature": device.temperature(),
        "power": [device.power_usage(), device.power_limit()],
        "clocks": [device.clock_infos().graphics, device.clock_infos().memory],
        "processes": {
            pid: process.gpu_memory() for pid, process in device.processes().items()
        },
    }
    for device in CudaDevice.all()
]))
"""

CARDS = {
    "two T4s": [
        t4(
            0,
            free=8_000 * MIB,
            utilization="93 41",
            power=68_431,
            temperature=74,
            clocks="1410 1410 5000 1290",
            processes=f"{os.getpid()}:{6 * 1024 * MIB}",
        ),
        t4(1),
    ],
    "a card that tells little": [
        t4(utilization=None, power=None, power_limit=None, temperature=None)
    ],
    "eight cards": [t4(number, temperature=30 + number) for number in range(8)],
}


@pytest.fixture(params=CARDS)
def told(request: pytest.FixtureRequest, driver: StandInDriver) -> dict[str, Any]:
    """What a program of its own is told here, by the library the loader finds."""
    driver.describe(*CARDS[request.param])
    return json.loads(driver.run(OURS))  # type: ignore[no-any-return]


def test_gpustat_agrees(driver: StandInDriver, told: dict[str, Any]) -> None:
    """Names, memory, load, temperature, power and UUIDs are those gpustat shows."""
    shown = json.loads(driver.run(GPUSTAT))

    assert shown["driver_version"] == told["gpus"][0]["driver_version"]
    assert len(shown["gpus"]) == len(told["gpus"]) == len(told["samples"])
    for peer, gpu, sample in zip(
        shown["gpus"], told["gpus"], told["samples"], strict=True
    ):
        assert (peer["index"], peer["name"], peer["uuid"]) == (
            *(gpu["nvml_index"], gpu["name"], gpu["uuid"]),
        )
        assert peer["memory.total"] == sample["memory_total_bytes"] // MIB
        assert peer["memory.total"] == gpu["total_bytes"] // MIB
        assert peer["memory.used"] == sample["memory_used_bytes"] // MIB
        assert peer["utilization.gpu"] == sample["utilization_percent"]
        assert peer["temperature.gpu"] == sample["temperature_celsius"]
        watts, limit = sample["power_watts"], sample["power_limit_watts"]
        assert peer["power.draw"] == (None if watts is None else int(watts))
        assert peer["enforced.power.limit"] == (None if limit is None else int(limit))


def test_nvitop_agrees(driver: StandInDriver, told: dict[str, Any]) -> None:
    """Every value that nvitop has too is the same, in its units."""
    devices = json.loads(driver.run(NVITOP))

    assert len(devices) == len(told["gpus"]) == len(told["samples"])
    for peer, gpu, sample in zip(devices, told["gpus"], told["samples"], strict=True):
        for name in ("index", "nvml_index", "name", "uuid", "pci_bus_id"):
            assert peer[name] == gpu[name]
        assert peer["driver_version"] == gpu["driver_version"]
        assert (
            ".".join(map(str, peer["compute_capability"]))
            == (gpu["compute_capability"])
        )
        assert peer["memory"] == [
            sample["memory_total_bytes"],
            sample["memory_used_bytes"],
            sample["memory_free_bytes"],
        ]
        # nvitop says "N/A" and counts milliwatts.
        watts = [sample["power_watts"], sample["power_limit_watts"]]
        numbers = [
            sample["utilization_percent"],
            sample["memory_utilization_percent"],
            sample["temperature_celsius"],
            *(None if value is None else round(value * 1000) for value in watts),
            sample["graphics_clock_mhz"],
            sample["memory_clock_mhz"],
        ]
        peers = [*peer["load"], peer["temperature"], *peer["power"], *peer["clocks"]]
        assert ["N/A" if number is None else number for number in numbers] == peers


def test_peers_see_the_processes_that_are_counted(driver: StandInDriver) -> None:
    """The bytes of our own processes are what nvitop has for their ids."""
    driver.describe(*CARDS["two T4s"])
    program = OURS.replace("GPUMonitor()", f"GPUMonitor(process_ids=[{os.getpid()}])")

    sample = json.loads(driver.run(program))["samples"][0]
    (device, _) = json.loads(driver.run(NVITOP))

    assert device["processes"] == {str(os.getpid()): sample["process_bytes"]}
