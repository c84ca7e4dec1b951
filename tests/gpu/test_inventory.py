"""Which cards a program sees, in which order, and what is known of them."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import math
import operator
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvml_tools import DRIVER_NOT_LOADED, GPU_IS_LOST, MIB, StandInDriver, t4

import llamatelemetry
import llamatelemetry.gpu
from llamatelemetry.exceptions import ConfigurationError, SetupWarning
from llamatelemetry.gguf import GPUMemory
from llamatelemetry.gguf._cards import GPU, T4_FREE_BYTES
from llamatelemetry.gpu import (
    ComputeCapability,
    GPUInfo,
    detect_gpus,
    visible_devices_text,
)
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
            driver_version="570.172.08",
            pci_bus_id=f"00000000:00:0{4 + index}.0",
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


@pytest.mark.parametrize(
    ("less", "more"),
    [("7.5", "10.0"), ("7.5", "8.0"), ("8.6", "8.9"), ("8.9", "12.0"), ("9.0", "9.10")],
)
def test_capabilities_are_put_in_order_as_numbers(less: str, more: str) -> None:
    """What CUDA counts higher is more, beside a capability and beside a plain text."""
    one, other = ComputeCapability(less), ComputeCapability(more)

    for left, right in [(one, other), (one, more), (less, other)]:
        assert left < right
        assert left <= right
        assert right > left
        assert right >= left
        assert not left > right
        assert not left >= right
        assert not right < left
        assert not right <= left
    assert sorted([other, one]) == [one, other]
    assert one <= less
    assert one >= less
    assert not one < less


def test_a_capability_is_its_text() -> None:
    """It is equal to the text, found by it, printed as it, and copied as what it is."""
    one = ComputeCapability("7.5")

    assert one == "7.5"
    assert one != "7.50"
    assert {"7.5": "T4"}[one] == "T4"
    assert f"{one}" == "7.5"
    assert json.dumps([one]) == '["7.5"]'
    assert one.numbers == (7, 5)
    for twin in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert twin == one
        assert type(twin) is ComputeCapability


@pytest.mark.parametrize("text", ["", "7", "7.5.1", "07.5", "7.05", "sm_75", "9.0a", 7])
def test_what_is_no_capability_is_an_error(text: Any) -> None:
    """Nothing else becomes a capability."""
    with pytest.raises(ConfigurationError, match="is no compute capability"):
        ComputeCapability(text)


@pytest.mark.parametrize("other", ["high", "", 7.5, None, (7, 5)])
@pytest.mark.parametrize(
    "compare", [operator.lt, operator.le, operator.gt, operator.ge]
)
def test_a_capability_has_no_order_beside_anything_else(
    compare: Callable[[Any, Any], bool], other: object
) -> None:
    """A comparison that means nothing is an error, on either side, never a guess."""
    with pytest.raises(TypeError):
        compare(ComputeCapability("7.5"), other)
    with pytest.raises(TypeError):
        compare(other, ComputeCapability("7.5"))


@pytest.mark.parametrize("number", [7.5, 7, math.nan])
@pytest.mark.parametrize(
    "compare", [operator.lt, operator.le, operator.gt, operator.ge]
)
def test_a_capability_beside_a_number_says_what_to_write(
    compare: Callable[[Any, Any], bool], number: float
) -> None:
    """The error names the text to compare with; equal to a number it never is."""
    one = ComputeCapability("7.5")

    for sides in ((one, number), (number, one)):
        with pytest.raises(TypeError, match=r"compare with text: '7\.5'"):
            compare(*sides)
    assert one != number


def test_a_capability_leaves_the_order_to_who_knows_it() -> None:
    """What has an order beside a capability is asked for it."""

    class Highest:
        def __gt__(self, other: object) -> bool:
            return isinstance(other, ComputeCapability)

    assert ComputeCapability("7.5") < Highest()  # type: ignore[operator]


@pytest.mark.parametrize("field", ["total_memory_gb", "free_memory_gb"])
@pytest.mark.parametrize(
    "wrong", [math.nan, math.inf, -math.inf, -1, -0.5, "15", True, [], 10**400, 1e308]
)
def test_a_size_is_a_number_from_0(field: str, wrong: Any) -> None:
    """What could be no memory is refused when the card is made."""
    sizes = {"total_memory_gb": 15, "free_memory_gb": 14} | {field: wrong}

    with pytest.raises(ConfigurationError, match=f"{field} is .* 0 or more"):
        GPUInfo(0, "x", compute_capability=ComputeCapability("7.5"), **sizes)


def test_sizes_are_floats_integers_or_unknown() -> None:
    """An integer stays one, a number of another library becomes a float."""
    gpu = GPUInfo(0, "x", 15, np.float32(14.5), None)  # type: ignore[arg-type]

    assert (gpu.total_bytes, gpu.free_bytes) == (15 * 2**30, 29 * 2**29)
    assert json.dumps(dataclasses.asdict(gpu)).count("14.5") == 1
    assert GPUInfo(0, "x", 0, None, None).total_bytes == 0


def test_a_card_made_by_hand_has_a_capability_too() -> None:
    """A plain text becomes one, so that cards compare wherever they come from."""
    gpu = GPUInfo(0, "Tesla T4", 15.0, 14.7, "7.5")  # type: ignore[arg-type]

    assert isinstance(gpu.compute_capability, ComputeCapability)
    assert gpu.compute_capability < "10.0"
    assert pickle.loads(pickle.dumps(gpu)) == gpu


@pytest.mark.parametrize("count", [1, 2, 8])
def test_each_card_has_its_place_and_its_driver(
    driver: StandInDriver, count: int
) -> None:
    """The last fields: where the card is on the bus, and which driver runs it."""
    driver.describe(*map(t4, range(count)), driver="580.65.06")

    gpus = detect_gpus()

    assert [gpu.index for gpu in gpus] == list(range(count))
    assert {gpu.driver_version for gpu in gpus} == {"580.65.06"}
    assert [gpu.pci_bus_id for gpu in gpus] == [
        f"00000000:00:{4 + number:02X}.0" for number in range(count)
    ]


@pytest.mark.parametrize(
    "visible", [MIG, "MIG-7f1c3a5e-0000", f"0, {MIG}", f"{FIRST},{MIG},MIG-1"]
)
def test_instances_of_mig_are_named_as_not_supported(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    """One warning, and the driver's problem, name each instance and what to do."""
    driver.describe(t4(uuid=FIRST))
    named = [entry.strip() for entry in visible.split(",") if "MIG" in entry]

    with pytest.warns(SetupWarning) as caught:
        gpus = detect_gpus({"CUDA_VISIBLE_DEVICES": visible})

    assert len(gpus) == (0 if visible.startswith("MIG") else 1)
    (warning,) = caught
    assert warning.filename == __file__
    told = str(warning.message)
    assert f"names {', '.join(named)}: instances of MIG are not supported" in told
    assert "Name whole cards" in told
    assert measure_driver({"CUDA_VISIBLE_DEVICES": visible}).problem == told
    assert measure_driver().problem is None

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    driver.describe(t4(uuid=FIRST, mig=1))

    assert measure_driver().problem == (
        "Card 0 of nvidia-smi (Tesla T4) is divided by MIG, and its instances are not "
        f"looked at. {told}"
    )


def texts(*gpus: Any, visible: str | None = None) -> str:
    """Return the text for cards, in an environment with this variable."""
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return visible_devices_text(gpus, environment)


def test_a_child_is_shown_cards_by_their_uuids(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards count as this process sees them, in the order they are asked for."""
    driver.describe(*(t4(at, uuid=uuid) for at, uuid in enumerate(UUIDS)))

    assert texts() == ""
    assert texts(0) == FIRST
    assert texts(2, 0) == f"{THIRD},{FIRST}"
    assert texts(0, visible="2,1") == THIRD
    assert texts(1, visible=f"{SECOND},GPU-8932f") == FIRST
    assert texts(*detect_gpus({"CUDA_VISIBLE_DEVICES": "1,2"})) == f"{SECOND},{THIRD}"
    assert texts(GPUMemory(1), 0, visible="2,1") == f"{SECOND},{THIRD}"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible_devices_text([0]) == SECOND


@pytest.mark.parametrize("visible", [None, "2,1", FIRST])
def test_a_child_sees_what_it_was_to_see(
    driver: StandInDriver, visible: str | None
) -> None:
    """Read again, the text shows exactly the chosen cards, with UUIDs or without."""
    for uuids in (UUIDS, [None] * 3):
        driver.describe(*(t4(at, uuid=uuid) for at, uuid in enumerate(uuids)))
        environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        here = detect_gpus(environment)[::-1]

        text = visible_devices_text([gpu.index for gpu in here], environment)
        there = detect_gpus({"CUDA_VISIBLE_DEVICES": text})

        assert [gpu.nvml_index for gpu in there] == [gpu.nvml_index for gpu in here]
        assert visible_devices_text(here, environment) == text


def test_cards_without_uuids_are_named_by_their_places(driver: StandInDriver) -> None:
    """One card without a UUID names all by places; a divided card has one too."""
    driver.describe(t4(0, mig=1), t4(1, uuid=None), t4(2))

    assert texts(0, 1) == "1,2"
    assert texts(1) == "GPU-2eadbeef-5555-6666-7777-88889999aaa2"
    assert texts(1, 0, visible="2,1") == "1,2"
    assert texts(0, detect_gpus()[1]) == "1,2"


def test_without_known_cards_the_own_variable_or_the_index_counts(
    driver: StandInDriver,
) -> None:
    """Where no driver tells, an index is this process's own entry, or itself."""
    driver.unplug()

    assert texts(1, 0) == "1,0"
    assert texts(1, visible="GPU-a, GPU-b") == "GPU-b"
    assert texts(0, visible="3") == "3"
    for visible in ("", "-1", "3,-1,1"):
        with pytest.raises(ConfigurationError, match="card 1 is not visible"):
            texts(1, visible=visible)


def test_cards_that_cannot_be_shown_are_errors(driver: StandInDriver) -> None:
    """What is not visible, named twice or no card is told at once."""
    driver.describe(t4(0, uuid=FIRST), t4(1, uuid=SECOND))
    (first, _) = detect_gpus()

    with pytest.raises(ConfigurationError, match="card 2 is not.* sees 0, 1; detect"):
        texts(0, 2)
    with pytest.raises(ConfigurationError, match="card 1 is not .* sees 0; detect"):
        texts(1, visible="1")
    for twice in ((0, 0), (0, first), (first, first)):
        with pytest.raises(ConfigurationError, match=f"{FIRST} is named twice"):
            texts(*twice)
    for wrong in (-1, True, 0.5, "0", None, [0]):
        with pytest.raises(ConfigurationError, match="is no card; give an index"):
            texts(wrong)
    with pytest.raises(ConfigurationError, match="must be a list"):
        visible_devices_text("0,1")  # type: ignore[arg-type]

    class OnlyNamed:
        uuid = THIRD

    assert texts(OnlyNamed()) == THIRD
    driver.unplug()
    with pytest.raises(ConfigurationError, match="cannot be named together"):
        texts(OnlyNamed(), 0)
    with pytest.raises(ConfigurationError, match="card 0 is named twice"):
        texts(0, GPUMemory(0))


def imported(path: Path) -> Iterator[str]:
    """Yield what a module of the package imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_looking_at_cards_starts_no_program() -> None:
    """Nothing in the package's gpu folder leads to what starts processes."""
    root = Path(llamatelemetry.__file__).parent
    waiting, seen = list((root / "gpu").glob("*.py")), set()
    while waiting:
        path = waiting.pop()
        seen.add(path.relative_to(root).as_posix())
        for name in imported(path):
            assert name.split(".")[0] != "subprocess", path
            inner = root.joinpath(*name.split(".")[1:]).with_suffix(".py")
            ours = name.startswith("llamatelemetry.") and inner.is_file()
            if ours and inner.relative_to(root).as_posix() not in seen:
                waiting.append(inner)

    assert {"gpu/_readings.py", "_tables.py", "exceptions.py"} <= seen
    assert "server/_process.py" not in seen


def test_the_package_of_cards_names_what_it_has() -> None:
    """Every public name is there, the lazy ones too, and no other."""
    for name in llamatelemetry.gpu.__all__:
        assert getattr(llamatelemetry.gpu, name).__name__ == name
    assert dir(llamatelemetry.gpu) == sorted(llamatelemetry.gpu.__all__)
    with pytest.raises(AttributeError, match="no attribute 'GPUs'"):
        _ = llamatelemetry.gpu.GPUs


@pytest.mark.gpu
def test_real_cards_are_the_ones_nvidia_smi_shows() -> None:
    """With a real driver, each card has the facts that nvidia-smi has."""
    facts = "index,name,uuid,pci.bus_id,driver_version,memory.total"
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={facts}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    rows = [line.split(", ") for line in done.stdout.splitlines()]

    gpus = detect_gpus({})

    assert sorted(
        [
            str(gpu.nvml_index),
            gpu.name,
            str(gpu.uuid),
            str(gpu.pci_bus_id).upper(),
            str(gpu.driver_version),
            str(round((gpu.total_bytes or 0) / MIB)),
        ]
        for gpu in gpus
    ) == sorted(rows)


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

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SetupWarning)  # one names a MIG instance
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
