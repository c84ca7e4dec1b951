"""Which cards a program sees, in which order, and what is known of them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nvml_tools import DRIVER_NOT_LOADED, GPU_IS_LOST, MIB, StandInDriver, t4

from llamatelemetry.gguf._cards import GPU, T4_FREE_BYTES
from llamatelemetry.gpu import GPUInfo, detect_gpus
from llamatelemetry.gpu.inventory import (
    DriverState,
    measure_driver,
    visible_places,
)

UUIDS = [
    "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
    "GPU-8932a000-0000-4106-c12f-20bd9faed9f6",
    "GPU-11111111-0000-4106-c12f-20bd9faed9f6",
]
FIRST, SECOND, THIRD = UUIDS
MIG = "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2"


def test_kaggle_s_two_cards_are_what_the_reference_shows(
    driver: StandInDriver,
) -> None:
    """Two T4s have the fields of the API reference, in its order and its units."""
    driver.describe(t4(0), t4(1))

    gpus = detect_gpus()

    assert gpus == [
        GPUInfo(
            index=index,
            name="Tesla T4",
            total_memory_gb=15.0,
            free_memory_gb=15_096 / 1024,
            compute_capability="7.5",
            uuid=f"GPU-{index}eadbeef-5555-6666-7777-88889999aaa{index}",
            nvml_index=index,
        )
        for index in (0, 1)
    ]
    assert [field.name for field in dataclasses.fields(GPUInfo)][:5] == [
        "index",
        "name",
        "total_memory_gb",
        "free_memory_gb",
        "compute_capability",
    ]
    assert measure_driver() == DriverState("570.172.08", (12, 8), None)


def test_a_card_is_one_a_plan_can_be_made_for(driver: StandInDriver) -> None:
    """A card has the index and the free bytes by which plans know one."""
    driver.describe(t4())

    (gpu,) = detect_gpus()

    assert isinstance(gpu, GPU)
    assert (gpu.index, gpu.free_bytes) == (0, T4_FREE_BYTES)
    assert gpu.total_bytes == 15_360 * MIB


@pytest.mark.parametrize("size", [1, 3 * MIB + 1, 85_899_345_919, 2**50 - 1])
def test_no_byte_is_lost_in_gib(driver: StandInDriver, size: int) -> None:
    """Bytes that became GiB become the same bytes again."""
    driver.describe(t4(total=size, free=size, reserved=0))

    (gpu,) = detect_gpus()

    assert (gpu.total_bytes, gpu.free_bytes) == (size, size)


def test_a_card_shows_itself_in_one_line(driver: StandInDriver) -> None:
    """The repr has what one asks first: which, what, how much is free."""
    driver.describe(t4())

    assert repr(detect_gpus()[0]) == (
        "<GPU 0: Tesla T4, 14.7 of 15.0 GiB free, compute capability 7.5>"
    )
    assert repr(GPUInfo(1, "Tesla T4", 15.0, None, "7.5")) == (
        "<GPU 1: Tesla T4, an unknown part of 15.0 GiB free, compute capability 7.5>"
    )


def test_what_a_card_cannot_tell_is_none(driver: StandInDriver) -> None:
    """A card without memory of its own, as a GB10, is a card."""
    driver.describe(t4(total=None, free=None, capability=None, uuid=None, pci=None))

    (gpu,) = detect_gpus()

    assert (gpu.total_memory_gb, gpu.free_memory_gb) == (None, None)
    assert (gpu.total_bytes, gpu.free_bytes) == (None, None)
    assert (gpu.compute_capability, gpu.uuid) == (None, None)
    assert repr(gpu) == (
        "<GPU 0: Tesla T4, memory unknown, compute capability unknown>"
    )


def test_no_driver_is_no_card_and_a_reason(driver: StandInDriver) -> None:
    """Without a driver there is an empty list, and a sentence for those who ask."""
    driver.unplug()

    assert detect_gpus() == []
    assert "has not loaded the NVIDIA driver" in str(measure_driver().problem)

    driver.describe(t4(), **{"error.nvmlInitWithFlags": DRIVER_NOT_LOADED})

    assert detect_gpus({"CUDA_VISIBLE_DEVICES": "0"}) == []


def test_cards_are_in_the_order_of_the_bus(driver: StandInDriver) -> None:
    """CUDA's index follows domain, bus and device; nvidia-smi's number stays."""
    driver.describe(
        t4(0, pci=None),
        t4(1, pci="1 0 0"),
        t4(2, pci="0 16 0"),
        t4(3, pci="0 9 10"),
        t4(4, pci="0 9 9"),
    )

    gpus = detect_gpus()

    assert [gpu.index for gpu in gpus] == [0, 1, 2, 3, 4]
    assert [gpu.nvml_index for gpu in gpus] == [4, 3, 2, 1, 0]


def test_visible_devices_choose_and_order(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable is read in this process's environment, or in the one that is given.

    Indices count in the order of the bus, whatever order this process has.
    """
    driver.describe(t4(0, pci="0 9 0"), t4(1, pci="0 4 0"), t4(2, pci="0 5 0"))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")

    assert [(gpu.index, gpu.nvml_index) for gpu in detect_gpus()] == [(0, 0), (1, 1)]
    assert [gpu.nvml_index for gpu in detect_gpus({})] == [1, 2, 0]
    chosen = detect_gpus({"CUDA_VISIBLE_DEVICES": "GPU-2eadbeef"})
    assert [(gpu.index, gpu.nvml_index) for gpu in chosen] == [(0, 2)]


@pytest.mark.parametrize(
    ("visible", "places"),
    [
        # https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#env-vars
        (None, [0, 1, 2]),
        ("", []),
        ("2,1", [2, 1]),
        ("0,2,-1,1", [0, 2]),
        (FIRST, [0]),
        ("GPU-8932f", [0]),
        (f"{THIRD},{FIRST}", [2, 0]),
        # What torch.cuda has found out besides.
        ("-1", []),
        ("none", []),
        ("NoDevFiles", []),
        (" 1 , 0 ", [1, 0]),
        ("1gpu2,2ampere", [1, 2]),
        ("+1", [1]),
        ("3", []),
        ("0,3,1", [0]),
        ("0,,1", [0]),
        ("0,1,0", []),
        ("0,1,1,-1", []),
        ("0,-1,0", [0]),
        (f"{FIRST},GPU-8932f", []),
        ("GPU-8932", []),
        ("GPU-1,GPU-8932,GPU-8932f", [2]),
        ("GPU-0", []),
        (f" {FIRST} , GPU-1", [0, 2]),
        (f"{FIRST},1", [0]),
        (f"1,{FIRST}", [1]),
        (f"{FIRST.lower().removeprefix('gpu-')}", []),
        (MIG, []),
        (f"{SECOND},{MIG},{FIRST}", [1]),
        (f"0,{MIG}", [0]),
        ("9" * 5000, []),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(
    visible: str | None, places: list[int]
) -> None:
    """Indices and UUIDs; what is unknown ends the list, a repetition empties it."""
    assert visible_places(visible, UUIDS) == places


def test_a_card_without_a_uuid_is_named_by_its_index_only() -> None:
    """What has no name is not found by the beginning of one."""
    assert visible_places("GPU-", [None, FIRST]) == [1]
    assert visible_places("0,1", [None, None]) == [0, 1]


def test_cards_that_cannot_be_used_are_left_out(driver: StandInDriver) -> None:
    """A lost card counts for nothing; one divided by MIG keeps its place for others."""
    driver.describe(t4(0, error=GPU_IS_LOST), t4(1, mig=1), t4(2))

    assert [(gpu.index, gpu.nvml_index) for gpu in detect_gpus()] == [(0, 2)]
    assert detect_gpus({"CUDA_VISIBLE_DEVICES": "0"}) == []
    chosen = detect_gpus({"CUDA_VISIBLE_DEVICES": "1"})
    assert [(gpu.index, gpu.nvml_index) for gpu in chosen] == [(0, 2)]
    problem = str(measure_driver().problem)
    assert "Card 0" in problem
    assert "Card 1" in problem


# What CUDA itself says, in a program of its own: it reads the variable once.
CUDA = """
import ctypes, json, uuid
cuda = ctypes.CDLL("libcuda.so.1")
count = ctypes.c_int()
if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
    count.value = 0
cards = []
for index in range(count.value):
    device, number = ctypes.c_int(), ctypes.c_int()
    name, raw, total = ctypes.create_string_buffer(96), (ctypes.c_ubyte * 16)(), (
        ctypes.c_size_t())
    assert not cuda.cuDeviceGet(ctypes.byref(device), index)
    assert not cuda.cuDeviceGetName(name, 96, device)
    assert not cuda.cuDeviceGetUuid_v2(raw, device)
    assert not cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    capability = []
    for attribute in (75, 76):  # COMPUTE_CAPABILITY_MAJOR and _MINOR
        assert not cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(str(number.value))
    cards.append([index, name.value.decode(), "GPU-" + str(uuid.UUID(bytes=bytes(raw))),
                  ".".join(capability), total.value])
version = ctypes.c_int()
assert not cuda.cuDriverGetVersion(ctypes.byref(version))
print(json.dumps([version.value, cards]))
"""


@pytest.mark.gpu
@pytest.mark.parametrize(
    "visible",
    [
        *(None, "", "0", "-1", "0,0", "0,-1", "0,99", "99,0", "0x", "0,,", " 0"),
        *("{0}", "{0},0", "0,{0}", "{0:.12}", "{0},{0}", "{0},GPU-0123"),
        "MIG-0123,0",
    ],
)
def test_real_cards_are_the_ones_cuda_sees(visible: str | None) -> None:
    """With a real driver, the cards are those CUDA counts, for each spelling."""
    assert Path("/proc/driver/nvidia/version").exists()
    base = {
        name: value
        for name, value in os.environ.items()
        if name not in {"CUDA_VISIBLE_DEVICES", "STAND_IN_NVML"}
    }
    every = detect_gpus({})
    assert every
    environment = base | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible.format(every[0].uuid)
    done = subprocess.run(
        [sys.executable, "-c", CUDA],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    version, cards = json.loads(done.stdout)

    gpus = detect_gpus(environment)

    assert [
        [gpu.index, gpu.name, gpu.uuid, gpu.compute_capability] for gpu in gpus
    ] == [card[:4] for card in cards]
    for gpu, card in zip(gpus, cards, strict=True):
        assert gpu.total_bytes is not None
        assert gpu.free_bytes is not None
        assert 0 < gpu.free_bytes <= gpu.total_bytes
        # NVML counts what the driver keeps for itself, CUDA does not.
        assert 0.9 * gpu.total_bytes < card[4] <= gpu.total_bytes
    state = measure_driver()
    assert state.cuda_version == (version // 1000, version % 1000 // 10)
    text = Path("/proc/driver/nvidia/version").read_text()
    assert str(state.version) in text
