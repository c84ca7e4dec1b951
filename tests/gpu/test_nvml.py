"""The door to pynvml: the real binding, over a driver that says what it is told to."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pynvml
import pytest
from nvml_tools import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    GPU_IS_LOST,
    LIB_RM_VERSION_MISMATCH,
    LIBRARY_NAME,
    LIBRARY_NOT_FOUND,
    MIB,
    NO_PERMISSION,
    NOT_SUPPORTED,
    UNKNOWN,
    StandInDriver,
    older_binding,
    t4,
)

from llamatelemetry.exceptions import SetupError
from llamatelemetry.gpu import _nvml
from llamatelemetry.gpu._nvml import Card, DriverState

INITIALIZE = "nvmlInitWithFlags"
SHUT_DOWN = "nvmlShutdown"


def take_binding(
    folder: Path, monkeypatch: pytest.MonkeyPatch, driver: StandInDriver
) -> ModuleType:
    """Have pynvml imported from a folder, over the stand-in."""
    monkeypatch.delitem(sys.modules, "pynvml")
    monkeypatch.syspath_prepend(folder)
    binding = importlib.import_module("pynvml")
    driver.attach(binding)
    return binding


def test_a_card_is_all_that_the_driver_says(driver: StandInDriver) -> None:
    """Each value of a card comes from the driver, in bytes and as text."""
    driver.describe(t4())

    assert _nvml.cards() == [
        Card(
            nvml_index=0,
            name="Tesla T4",
            uuid="GPU-0eadbeef-5555-6666-7777-88889999aaa0",
            pci_bus_id="00000000:00:04.0",
            total_bytes=15_360 * MIB,
            free_bytes=15_096 * MIB,
            used_bytes=3 * MIB,
            compute_capability=(7, 5),
            divided=False,
        )
    ]


def test_the_driver_and_the_newest_cuda_are_told(driver: StandInDriver) -> None:
    """The driver's version is nvidia-smi's, and CUDA's is two numbers."""
    driver.describe(t4(0), t4(1))

    assert _nvml.driver() == DriverState("570.172.08", (12, 8), None)

    driver.describe(t4(0), driver="580.65.06", cuda=13000)

    assert _nvml.driver() == DriverState("580.65.06", (13, 0), None)


def test_what_changes_is_seen_at_the_next_look(driver: StandInDriver) -> None:
    """Nothing is remembered: free memory is what it is now."""
    driver.describe(t4())
    before = _nvml.cards()[0]

    driver.describe(t4(free=100 * MIB))
    after = _nvml.cards()[0]

    assert (before.free_bytes, after.free_bytes) == (15_096 * MIB, 100 * MIB)
    assert after.used_bytes == (15_360 - 261 - 100) * MIB


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND])
def test_what_a_card_cannot_tell_is_none(driver: StandInDriver, code: int) -> None:
    """A card that refuses each question is there, with None for each answer."""
    refused = (
        "Name",
        "UUID",
        "PciInfo_v3",
        "MemoryInfo",
        "MemoryInfo_v2",
        "CudaComputeCapability",
        "MigMode",
    )
    driver.describe(t4(**{f"error.nvmlDeviceGet{name}": code for name in refused}))

    assert _nvml.cards() == [
        Card(0, "NVIDIA card", None, None, None, None, None, None, divided=False)
    ]
    assert _nvml.driver().problem is None


def test_memory_is_told_by_a_driver_that_knows_only_the_first_way(
    driver: StandInDriver,
) -> None:
    """Before driver 510 what the driver keeps for itself counts as used."""
    driver.describe(t4(**{"error.nvmlDeviceGetMemoryInfo_v2": FUNCTION_NOT_FOUND}))

    card = _nvml.cards()[0]

    assert card.free_bytes == 15_096 * MIB
    assert card.used_bytes == 264 * MIB


def test_an_older_binding_does(
    driver: StandInDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes for texts, and no second form of memory, change nothing but the used."""
    driver.describe(t4())
    folder = older_binding(tmp_path, without=["nvmlMemory_v2"])
    binding = take_binding(folder, monkeypatch, driver)

    card = _nvml.cards()[0]

    assert isinstance(
        binding.nvmlDeviceGetName(binding.nvmlDeviceGetHandleByIndex(0)), bytes
    )
    assert (card.name, card.uuid) == (
        "Tesla T4",
        "GPU-0eadbeef-5555-6666-7777-88889999aaa0",
    )
    assert (card.free_bytes, card.used_bytes) == (15_096 * MIB, 264 * MIB)
    assert _nvml.driver().version == "570.172.08"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (LIBRARY_NOT_FOUND, "libnvidia-ml.so.1 cannot be loaded"),
        (DRIVER_NOT_LOADED, "has not loaded the NVIDIA driver"),
        (LIB_RM_VERSION_MISMATCH, "of another version than the driver that runs"),
        (NO_PERMISSION, "/dev/nvidiactl"),
        (FUNCTION_NOT_FOUND, "Function Not Found, code 13"),
        (UNKNOWN, "Unknown Error, code 999"),
        (4711, "Unknown Error, code 4711"),
    ],
)
def test_no_driver_is_a_value_that_says_why(
    driver: StandInDriver, code: int, reason: str
) -> None:
    """Whatever keeps NVML from starting is one sentence, and there is no card."""
    driver.describe(t4(), **{f"error.{INITIALIZE}": code})

    state = _nvml.driver()

    assert (state.version, state.cuda_version) == (None, None)
    assert state.problem is not None
    assert reason in state.problem
    assert state.problem.endswith(".")
    assert _nvml.cards() == []


def test_a_driver_that_comes_later_is_found(driver: StandInDriver) -> None:
    """A failure is not remembered."""
    driver.unplug()
    assert "has not loaded" in str(_nvml.driver().problem)

    driver.describe(t4())

    assert len(_nvml.cards()) == 1


def test_a_driver_that_goes_is_a_sentence(driver: StandInDriver) -> None:
    """A driver upgraded or unloaded while this runs ends no program."""
    driver.describe(t4(0), t4(1))
    assert len(_nvml.cards()) == 2

    driver.describe(
        t4(0), t4(1, **{"error.nvmlDeviceGetName": LIB_RM_VERSION_MISMATCH})
    )
    assert "another version" in str(_nvml.driver().problem)
    assert _nvml.cards() == []

    mismatch = {"error.nvmlSystemGetCudaDriverVersion_v2": LIB_RM_VERSION_MISMATCH}
    driver.describe(t4(0), **mismatch)
    assert "another version" in str(_nvml.driver().problem)

    driver.unplug()
    assert "has not loaded" in str(_nvml.driver().problem)
    assert _nvml.cards() == []


def test_no_card_is_told(driver: StandInDriver) -> None:
    """A driver without a card says so, with its version."""
    assert _nvml.driver() == DriverState(
        "570.172.08", (12, 8), "The NVIDIA driver has found no card."
    )
    assert _nvml.cards() == []


def test_a_driver_that_cannot_tell_its_versions_has_none(
    driver: StandInDriver,
) -> None:
    """Versions that are refused are None, which is no problem of its own."""
    driver.describe(t4(), driver=None, cuda=None)

    assert _nvml.driver() == DriverState(None, None, None)


def test_a_missing_libcuda_is_told(driver: StandInDriver) -> None:
    """Cards that NVML sees and CUDA cannot use are named with what to do."""
    driver.describe(
        t4(), **{"error.nvmlSystemGetCudaDriverVersion_v2": LIBRARY_NOT_FOUND}
    )

    state = _nvml.driver()

    assert (state.version, state.cuda_version) == ("570.172.08", None)
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in str(state.problem)


def test_a_lost_card_is_left_out_and_named(driver: StandInDriver) -> None:
    """The other cards stay, with their own numbers."""
    driver.describe(t4(0), t4(1, error=GPU_IS_LOST), t4(2))

    assert [card.nvml_index for card in _nvml.cards()] == [0, 2]
    assert _nvml.driver() == DriverState(
        "570.172.08",
        (12, 8),
        "Card 1 of nvidia-smi is lost (GPU is lost, code 15); restart the machine or "
        "the session.",
    )


@pytest.mark.parametrize("function", ["Name", "MemoryInfo_v2", "MigMode"])
def test_a_card_lost_on_the_way_is_left_out(
    driver: StandInDriver, function: str
) -> None:
    """A card may get lost between two questions."""
    driver.describe(t4(0, **{f"error.nvmlDeviceGet{function}": GPU_IS_LOST}), t4(1))

    assert [card.nvml_index for card in _nvml.cards()] == [1]
    assert "Card 0 of nvidia-smi is lost" in str(_nvml.driver().problem)


def test_a_card_that_cannot_be_reached_is_named(driver: StandInDriver) -> None:
    """Another failure is told in NVML's own words."""
    driver.describe(t4(0, error=UNKNOWN), t4(1))

    assert [card.nvml_index for card in _nvml.cards()] == [1]
    assert _nvml.driver().problem == (
        "Card 0 of nvidia-smi cannot be used: Unknown Error, code 999."
    )


def test_cards_of_others_are_no_problem(driver: StandInDriver) -> None:
    """NVML counts what this process may not touch; it is told only if that is all."""
    others = {"error.nvmlDeviceGetHandleByIndex_v2": NO_PERMISSION}
    driver.describe(t4(0, **others), t4(1))

    assert [card.nvml_index for card in _nvml.cards()] == [1]
    assert _nvml.driver().problem is None

    driver.describe(t4(0, **others), t4(1, **others))

    assert _nvml.cards() == []
    assert "has 2 cards, and none is for this process" in str(_nvml.driver().problem)


def test_a_card_that_mig_divides_is_marked_and_named(driver: StandInDriver) -> None:
    """A divided card is there, as what CUDA cannot use as a whole."""
    driver.describe(t4(0, name="NVIDIA A100", mig=1), t4(1, mig=0))

    assert [card.divided for card in _nvml.cards()] == [True, False]
    assert "Card 0 of nvidia-smi (NVIDIA A100) is divided by MIG" in str(
        _nvml.driver().problem
    )


def test_threads_initialize_once(driver: StandInDriver) -> None:
    """Threads that ask at once wait for the one initialization, and all get cards."""
    driver.describe(t4(), **{f"delay.{INITIALIZE}": 20})
    count = 8
    together = threading.Barrier(count)

    def ask(_: int) -> int:
        together.wait()
        return len(_nvml.cards())

    with ThreadPoolExecutor(count) as pool:
        assert list(pool.map(ask, range(count))) == [1] * count

    assert driver.calls(INITIALIZE) == [os.getpid()]


def test_a_shutdown_by_another_library_is_made_good(driver: StandInDriver) -> None:
    """A library that shuts NVML down once too often takes no card away."""
    driver.describe(t4())
    assert len(_nvml.cards()) == 1

    pynvml.nvmlShutdown()

    assert len(_nvml.cards()) == 1
    assert len(driver.calls(INITIALIZE)) == 2


def test_a_driver_that_stays_uninitialized_is_a_sentence(
    driver: StandInDriver,
) -> None:
    """It is tried twice and no more."""
    driver.describe(t4(), **{"error.nvmlDeviceGetCount_v2": 1})

    assert "Uninitialized, code 1" in str(_nvml.driver().problem)
    assert len(driver.calls(INITIALIZE)) == 2


FORKS_LATER = """
import os
from llamatelemetry.gpu import _nvml

def ask():
    assert len(_nvml.cards()) == 1

ask()
child = os.fork()
ask()
if child != 0:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    ask()
    print(os.getpid(), child)
"""


def test_a_fork_initializes_anew(driver: StandInDriver) -> None:
    """A child asks for itself, shuts down its own, and leaves its parent's alone."""
    driver.describe(t4())

    parent, child = map(int, driver.run(FORKS_LATER).split())

    assert driver.calls(INITIALIZE) == [parent, child]
    assert driver.calls(SHUT_DOWN) == [child, parent]


def test_what_runs_around_a_fork_leaves_nothing_closed(driver: StandInDriver) -> None:
    """After it, parent and child can ask; the child has to initialize first."""
    driver.describe(t4())
    _nvml.cards()

    _nvml._before_fork()
    _nvml._after_fork()
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(_nvml.cards).result(timeout=30)) == 1
    assert len(driver.calls(INITIALIZE)) == 1

    _nvml._before_fork()
    _nvml._begin_anew()
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(_nvml.cards).result(timeout=30)) == 1
    assert len(driver.calls(INITIALIZE)) == 2


FORKS = """
import os, threading, time
from llamatelemetry.gpu import _nvml

log = os.environ["LOG"]
asking = threading.Thread(target=_nvml.cards)
asking.start()
while not os.path.exists(log):  # until the driver is in the middle of it
    time.sleep(0.001)
child = os.fork()
if child == 0:
    os._exit(len(_nvml.cards()))
asking.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_waits_for_an_answer(driver: StandInDriver) -> None:
    """A fork while another thread initializes leaves the child no closed lock."""
    driver.describe(t4(), **{f"delay.{INITIALIZE}": 200})

    told = driver.run(FORKS, LOG=str(driver.log))

    assert told == "1\n"
    assert len(set(driver.calls(INITIALIZE))) == 2


ENDS = """
import os
from llamatelemetry.gpu import detect_gpus

print(detect_gpus(), detect_gpus()[0].name, os.getpid())
if os.fork() == 0:
    raise SystemExit  # runs what was registered for the end
os.wait()
"""


def test_the_loader_finds_the_driver_and_the_end_shuts_it_down(
    driver: StandInDriver,
) -> None:
    """A program finds the library by its name, initializes it once and shuts it once.

    The end of a fork that asked nothing shuts down nothing.
    """
    driver.describe(t4())

    told = driver.run(ENDS)

    assert told.startswith("[<GPU 0: Tesla T4, ")
    process = int(told.split()[-1])
    assert driver.calls(INITIALIZE) == [process]
    assert driver.calls(SHUT_DOWN) == [process]


def test_a_library_that_cannot_be_loaded_is_no_driver(
    driver: StandInDriver, tmp_path: Path
) -> None:
    """What the loader refuses is told as a missing driver."""
    (tmp_path / LIBRARY_NAME).touch()

    told = driver.run(
        "from llamatelemetry.gpu.inventory import *; print(measure_driver().problem)",
        LD_LIBRARY_PATH=str(tmp_path),
    )

    assert "libnvidia-ml.so.1 cannot be loaded" in told


def test_the_import_asks_nothing(driver: StandInDriver) -> None:
    """Importing the package of cards loads neither the binding nor the driver."""
    told = driver.run(
        "import sys; from llamatelemetry.gpu import detect_gpus;"
        "print('pynvml' in sys.modules)"
    )

    assert told == "False\n"
    assert not driver.log.exists()


def test_the_end_does_not_wait_for_a_thread_that_hangs(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that never answers does not keep the program from ending."""
    monkeypatch.setattr(_nvml, "_LONGEST_LAST_WAIT", 0.01)
    driver.describe(t4())
    _nvml.cards()
    asks, may_end = threading.Event(), threading.Event()

    def hang() -> None:
        with _nvml._session.lock:
            asks.set()
            may_end.wait()

    thread = threading.Thread(target=hang)
    thread.start()
    asks.wait()
    _nvml._session.close()

    assert driver.calls(SHUT_DOWN) == []
    may_end.set()
    thread.join()


def test_a_missing_binding_is_an_error_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without nvidia-ml-py the error names what to install."""
    monkeypatch.setitem(sys.modules, "pynvml", None)

    for function in (_nvml.driver, _nvml.cards):
        with pytest.raises(SetupError, match="run: pip install nvidia-ml-py"):
            function()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "pynvml.py is not NVIDIA's nvidia-ml-py, or too old: it lacks NVMLError"),
        ("raise OSError('no disk')", "does not load (OSError: no disk)"),
        ("print 'Python 2'", "does not load (SyntaxError: "),
    ],
)
def test_a_wrong_package_of_that_name_is_an_error_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    """What is named pynvml and is not NVIDIA's is told, with what to install."""
    (tmp_path / "pynvml.py").write_text(text)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(SetupError, match="--force-reinstall nvidia-ml-py") as caught:
        _nvml.driver()

    assert told in str(caught.value)


def test_a_binding_too_old_for_cuda_s_version_is_an_error(
    driver: StandInDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A binding that lacks a function that is needed is told with its name."""
    missing = "nvmlSystemGetCudaDriverVersion_v2"
    take_binding(older_binding(tmp_path, without=[missing]), monkeypatch, driver)

    with pytest.raises(SetupError, match=f"it lacks {missing}"):
        _nvml.cards()
