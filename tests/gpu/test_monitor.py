"""GPUMonitor: what it sees, when it looks, and that it never stands in the way."""

from __future__ import annotations

import csv
import dataclasses
import gc
import io
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pynvml
import pytest
from nvml_tools import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    GPU_IS_LOST,
    MIB,
    NO_PERMISSION,
    NOT_SUPPORTED,
    UNKNOWN,
    StandInDriver,
    older_binding,
    t4,
)

from llamatelemetry.exceptions import ConfigurationError, SetupError, SetupWarning
from llamatelemetry.gpu import (
    GPUMonitor,
    GPUSample,
    Mark,
    _nvml,
    _own_processes,
    _run,
    monitor,
)
from llamatelemetry.gpu._readings import RETRY_SECONDS, THROTTLE_REASONS

THREAD = "llamatelemetry-gpu-monitor"
BY_UUID = "nvmlDeviceGetHandleByUUID"


class DrivenClock:
    """A clock that goes only when somebody waits, and then at once."""

    def __init__(self, waits: float = math.inf) -> None:
        self.now = 1000.0
        self.waits = waits

    def time(self) -> float:
        return 1_700_000_000 + self.now

    def monotonic(self) -> float:
        return self.now

    def wait(self, event: _run.Ending, seconds: float) -> bool:
        assert seconds >= 0
        self.waits -= 1
        if self.waits < 0:  # an end; stop comes now
            return event.wait()
        self.now += seconds
        return event.is_set()


@pytest.fixture
def clock() -> DrivenClock:
    """A clock for monitors that are asked by hand."""
    return DrivenClock()


def watch(monitor: GPUMonitor, ticks: int) -> list[tuple[GPUSample, ...]]:
    """Run a monitor until it has ticked so many times; return the ticks."""
    seen: list[tuple[GPUSample, ...]] = []
    enough = threading.Event()

    def note(samples: tuple[GPUSample, ...]) -> None:
        seen.append(samples)
        if len(seen) == ticks:
            enough.set()

    unsubscribe = monitor.subscribe(note)
    with monitor:
        assert enough.wait(30)
    unsubscribe()
    return seen[:ticks]


def threads() -> list[threading.Thread]:
    """Return the monitors' threads that live."""
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


BUSY = {
    "free": 10_000 * MIB,
    "utilization": "37 12",
    "power": 27_123,
    "temperature": 61,
    "clocks": "1590 1585 5000 1470",
    "reasons": 0x4 | 0x20,
    "processes": f"{os.getpid()}:{5 * MIB} 4194304:{7 * MIB}",
}


def test_a_sample_is_all_that_a_card_tells(
    driver: StandInDriver, clock: DrivenClock
) -> None:
    """Each value has the unit its name says."""
    driver.describe(t4(0, **BUSY), t4(1))
    monitor = GPUMonitor(_clock=clock)

    samples = monitor.sample()

    busy = GPUSample(
        index=0,
        time=1_700_001_000.0,
        memory_used_bytes=(15_360 - 261 - 10_000) * MIB,
        memory_free_bytes=10_000 * MIB,
        memory_total_bytes=15_360 * MIB,
        utilization_percent=37,
        memory_utilization_percent=12,
        power_watts=27.123,
        power_limit_watts=70.0,
        temperature_celsius=61,
        graphics_clock_mhz=1590,
        memory_clock_mhz=5000,
        throttle_reasons=("software_power_cap", "software_thermal_slowdown"),
        process_bytes=5 * MIB,
        problem=None,
    )
    assert samples == (
        busy,
        GPUSample(
            1,
            *(1_700_001_000.0, 3 * MIB, 15_096 * MIB, 15_360 * MIB, 0, 0, 9.5, 70.0),
            *(38, 300, 405, ("gpu_idle",), None, None),
        ),
    )
    assert monitor.latest() == samples
    assert monitor.history() == list(samples)
    assert [gpu.index for gpu in monitor.gpus] == [0, 1]
    assert monitor.problem is None


def test_the_values_are_those_of_the_inventory(driver: StandInDriver) -> None:
    """Cards are counted as CUDA counts them, whatever NVML's numbers are."""
    driver.describe(t4(0, pci="0 9 0", temperature=50), t4(1, pci="0 5 0"), t4(2))
    monitor = GPUMonitor(_clock=DrivenClock())

    assert [one.temperature_celsius for one in monitor.sample()] == [38, 38, 50]
    assert [gpu.nvml_index for gpu in monitor.gpus] == [2, 1, 0]


def test_hidden_cards_are_not_watched(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA_VISIBLE_DEVICES counts; where it shows none, its value is the problem."""
    driver.describe(t4(0), t4(1, temperature=50))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [(one.index, one.temperature_celsius) for one in GPUMonitor().sample()] == [
        (0, 50)
    ]

    for value in ("", "5", "cuda:1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        hidden = GPUMonitor()
        assert hidden.sample() == ()
        assert hidden.problem == (
            f"CUDA_VISIBLE_DEVICES='{value}' shows none of the 2 cards."
        )
    driver.describe(t4(0))
    hidden.sample()
    with hidden:  # looks again
        assert hidden.problem == (
            "CUDA_VISIBLE_DEVICES='cuda:1' does not show the only card."
        )

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    instance = GPUMonitor()
    with pytest.warns(SetupWarning, match="instances of MIG are not supported"):
        assert instance.sample() == ()
    assert "MIG-1" in str(instance.problem)


def test_the_warning_of_instances_is_of_the_line_that_looks(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever makes a monitor look for the cards, the warning points to it."""
    driver.describe(t4())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,MIG-1")

    def enter() -> None:
        with GPUMonitor(3600):
            pass

    watched = GPUMonitor(3600)
    for look in (watched.start, GPUMonitor().sample, enter):
        with pytest.warns(SetupWarning, match="instances of MIG") as caught:
            look()
        assert [warning.filename for warning in caught] == [__file__]
    watched.stop()


@pytest.mark.parametrize("count", [1, 2, 8])
def test_every_card_is_in_every_tick(driver: StandInDriver, count: int) -> None:
    """A tick has one sample for each card, in order and at one time."""
    driver.describe(*map(t4, range(count)))

    for tick in watch(GPUMonitor(0.01), 3):
        assert [sample.index for sample in tick] == list(range(count))
        assert len({sample.time for sample in tick}) == 1


@pytest.mark.parametrize(
    "reason", ["unplugged", "no card", "no library", "not permitted"]
)
def test_without_a_card_there_is_no_sample_and_a_reason(
    driver: StandInDriver, reason: str
) -> None:
    """Nothing is raised, all methods work, and the problem says why."""
    words = "has found no card"
    if reason == "unplugged":
        driver.unplug()
        words = "has not loaded the NVIDIA driver"
    if reason == "no library":
        driver.describe(t4(), **{"error.nvmlInitWithFlags": 12})
        words = "libnvidia-ml.so.1 cannot be loaded"
    if reason == "not permitted":
        driver.describe(t4(), **{"error.nvmlInitWithFlags": NO_PERMISSION})
        words = "look at the permissions of /dev/nvidiactl"
    called: list[object] = []
    monitor = GPUMonitor(0.01)
    monitor.subscribe(called.append)
    assert monitor.problem == "The cards were not looked for yet; start() does."

    with monitor:
        assert monitor.running
        assert monitor.sample() == monitor.latest() == monitor.gpus == ()
        monitor.mark("nothing to see")

    assert words in str(monitor.problem)
    assert not monitor.running
    assert called == monitor.history() == monitor.rows() == []
    assert list(monitor.to_dataframe().columns)[:2] == ["index", "time"]
    assert monitor.to_csv().count("\n") == 1
    assert json.loads(monitor.to_json())["gpus"] == []
    assert repr(monitor) == "<GPUMonitor every 0.01 s, stopped, 0 cards>"


def test_a_missing_library_in_a_program_is_no_error(
    driver: StandInDriver, tmp_path: Path
) -> None:
    """Where the loader finds nothing, a monitor starts and stops in silence."""
    told = driver.run(
        "from llamatelemetry.gpu import GPUMonitor\n"
        "with GPUMonitor() as monitor: print(monitor.latest(), monitor.problem)",
        LD_LIBRARY_PATH=str(tmp_path),
    )

    assert told.startswith("() The NVIDIA driver's libnvidia-ml.so.1 cannot be loaded")


def test_a_missing_binding_is_an_error_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without nvidia-ml-py, a start says what to install, and nothing runs."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monitor = GPUMonitor()

    with pytest.raises(SetupError, match="pip install nvidia-ml-py"):
        monitor.start()
    with pytest.raises(SetupError, match="pip install nvidia-ml-py"):
        monitor.sample()
    assert not monitor.running


# What a card cannot tell, and cards that are lost.

VALUES = {
    "memory_used_bytes": ["MemoryInfo", "MemoryInfo_v2"],
    "utilization_percent": ["UtilizationRates"],
    "power_watts": ["PowerUsage"],
    "power_limit_watts": ["EnforcedPowerLimit"],
    "temperature_celsius": ["Temperature", "TemperatureV"],
    "graphics_clock_mhz": ["ClockInfo"],
    "throttle_reasons": [
        "CurrentClocksEventReasons",
        "CurrentClocksThrottleReasons",
    ],
    "process_bytes": [
        "ComputeRunningProcesses_v2",
        "ComputeRunningProcesses_v3",
    ],
}


@pytest.mark.parametrize("name", VALUES)
def test_what_a_card_does_not_support_is_none_and_asked_once(
    driver: StandInDriver, clock: DrivenClock, name: str
) -> None:
    """The value is None and no other is; the functions are not called again."""
    functions = [f"nvmlDeviceGet{function}" for function in VALUES[name]]
    refused = {f"error.{function}": NOT_SUPPORTED for function in functions}
    driver.describe(t4(0, **(BUSY | refused)), t4(1, **BUSY))
    monitor = GPUMonitor(_clock=clock)

    first, second = monitor.sample()
    asked = {function: len(driver.calls(function)) for function in functions}
    assert monitor.sample() == (first, second)

    missing = {key for key, value in dataclasses.asdict(first).items() if value is None}
    along = {
        "memory_used_bytes": {"memory_free_bytes", "memory_total_bytes"},
        "utilization_percent": {"memory_utilization_percent"},
        "graphics_clock_mhz": {"memory_clock_mhz"},
    }
    assert missing == {"problem", name} | along.get(name, set())
    assert getattr(second, name) is not None
    again = {function: len(driver.calls(function)) for function in functions}
    # The other card goes on being asked, by its first way.
    most = 2 if name in ("graphics_clock_mhz", "process_bytes") else 1
    assert all(again[function] - asked[function] <= most for function in functions)


def test_what_fails_for_once_is_asked_again(
    driver: StandInDriver, clock: DrivenClock
) -> None:
    """A permission that is missing, or any other failure, is not taken for final."""
    for code in (NO_PERMISSION, UNKNOWN):
        driver.describe(t4(**{"error.nvmlDeviceGetPowerUsage": code}))
        monitor = GPUMonitor(_clock=clock)
        assert monitor.sample()[0].power_watts is None

        driver.describe(t4())

        assert monitor.sample()[0].power_watts == 9.5


def test_an_older_driver_is_asked_in_older_ways(
    driver: StandInDriver, clock: DrivenClock
) -> None:
    """Each value that was once told by another function is told by that one."""
    newer = ("MemoryInfo_v2", "TemperatureV", "CurrentClocksEventReasons")
    newer += ("ComputeRunningProcesses_v3",)
    refused = {f"error.nvmlDeviceGet{one}": FUNCTION_NOT_FOUND for one in newer}
    driver.describe(t4(**(BUSY | refused)))
    monitor = GPUMonitor(_clock=clock)

    (sample,) = monitor.sample()
    assert monitor.sample() == (sample,)

    # Before driver 510 what the driver keeps for itself counts as used.
    assert sample.memory_used_bytes == (15_360 - 10_000) * MIB
    assert sample.temperature_celsius == 61
    assert sample.throttle_reasons is not None
    assert "software_power_cap" in sample.throttle_reasons
    assert sample.process_bytes == 5 * MIB
    assert all(len(driver.calls(f"nvmlDeviceGet{one}")) == 1 for one in newer[1:])


def test_an_older_binding_does(
    driver: StandInDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a binding lacks is asked in another way, and a UUID is given as bytes."""
    import importlib

    driver.describe(t4(**BUSY))
    (expected,) = GPUMonitor(_clock=DrivenClock()).sample()
    lacks = ["nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons"]
    folder = older_binding(tmp_path, without=lacks)
    monkeypatch.delitem(sys.modules, "pynvml")
    monkeypatch.syspath_prepend(folder)
    binding = importlib.import_module("pynvml")
    driver.attach(binding)
    assert not any(hasattr(binding, name) for name in lacks)
    monkeypatch.setattr(_nvml, "_session", _nvml._Session())

    assert GPUMonitor(_clock=DrivenClock()).sample() == (expected,)


def test_every_reason_has_a_name(driver: StandInDriver, clock: DrivenClock) -> None:
    """The binding's bits are all named, an unknown one by its number, none is ()."""
    known = {
        getattr(pynvml, name)
        for name in vars(pynvml)
        if name.startswith(("nvmlClocksEventReason", "nvmlClocksThrottleReason"))
        and not name.endswith(("None", "All"))
    }
    assert set(THROTTLE_REASONS) == known
    monitor = GPUMonitor(_clock=clock)

    driver.describe(t4(reasons=0))
    assert monitor.sample()[0].throttle_reasons == ()
    driver.describe(t4(reasons=0x8 | 0x8000))
    assert monitor.sample()[0].throttle_reasons == (
        "hardware_slowdown",
        "unknown_0x8000",
    )


def test_a_lost_card_loses_nothing_of_the_others(
    driver: StandInDriver, clock: DrivenClock
) -> None:
    """Its values are None with the reason; it is tried anew later, and comes back."""
    driver.describe(t4(0), t4(1))
    monitor = GPUMonitor(_clock=clock)
    before = monitor.sample()
    driver.describe(t4(0), t4(1, error=GPU_IS_LOST))

    kept, lost = monitor.sample()

    assert kept == before[0]
    assert lost == GPUSample(
        1,
        clock.time(),
        problem="Card 1 of nvidia-smi is lost (GPU is lost, code 15); restart the "
        "machine or the session.",
    )
    assert "GPU 0: 0.0 of 15.0 GiB, GPU 1: lost" in repr(monitor)

    tried = len(driver.calls(BY_UUID))
    driver.describe(t4(0), t4(1))
    clock.now += RETRY_SECONDS - 1
    assert monitor.sample()[1].problem == lost.problem
    assert len(driver.calls(BY_UUID)) == tried

    clock.now += 1
    (_, back) = monitor.sample()
    assert back == dataclasses.replace(before[1], time=clock.time())


@pytest.mark.parametrize(
    ("code", "words"),
    [(NO_PERMISSION, "Insufficient Permissions, code 4"), (UNKNOWN, "code 999")],
)
def test_a_card_that_refuses_everything_says_why(
    driver: StandInDriver, clock: DrivenClock, code: int, words: str
) -> None:
    """A card that was taken away from this process is told, and asked for anew."""
    driver.describe(t4(0), t4(1))
    monitor = GPUMonitor(_clock=clock)
    monitor.sample()
    driver.describe(t4(0, error=code), t4(1))

    taken, other = monitor.sample()

    assert words in str(taken.problem)
    assert "Card 0 of nvidia-smi cannot be used" in str(taken.problem)
    assert (taken.memory_used_bytes, other.problem) == (None, None)


def test_a_card_that_is_gone_is_found_by_its_name_again(
    driver: StandInDriver, clock: DrivenClock
) -> None:
    """When numbers move up because a card is gone, no card gets another's values."""
    driver.describe(t4(0, temperature=40), t4(1, temperature=41))
    monitor = GPUMonitor(_clock=clock)
    monitor.sample()
    driver.describe(t4(1, temperature=41))
    pynvml.nvmlShutdown()  # as another library that starts anew

    gone, kept = monitor.sample()

    assert (gone.temperature_celsius, kept.temperature_celsius) == (None, 41)
    assert "Not Found, code 6" in str(gone.problem)


def test_a_card_without_a_name_is_found_by_its_number(
    driver: StandInDriver, clock: DrivenClock
) -> None:
    """NVML's number serves where there is no UUID."""
    driver.describe(t4(0), t4(1, uuid=None, temperature=50))

    assert GPUMonitor(_clock=clock).sample()[1].temperature_celsius == 50
    assert len(driver.calls(BY_UUID)) == 1


def test_a_driver_that_goes_while_watched_is_a_problem_of_all(
    driver: StandInDriver, clock: DrivenClock
) -> None:
    """Every card says why, the driver is left alone for a while, and comes back."""
    driver.describe(t4(0), t4(1))
    monitor = GPUMonitor(_clock=clock)
    monitor.sample()
    lost = {"error": DRIVER_NOT_LOADED}
    driver.describe(t4(0, **lost), t4(1, **lost))

    gone = monitor.sample()

    assert {str(one.problem)[:40] for one in gone} == {
        "The kernel of this machine has not loade"
    }
    assert {one.memory_total_bytes for one in gone} == {None}
    driver.describe(t4(0), t4(1))
    assert monitor.sample() == gone
    clock.now += RETRY_SECONDS
    assert {one.problem for one in monitor.sample()} == {None}


def test_a_shutdown_by_another_library_costs_no_sample(
    driver: StandInDriver, clock: DrivenClock
) -> None:
    """NVML is initialized again, and the handles are asked for again."""
    driver.describe(t4(0), t4(1))
    monitor = GPUMonitor(_clock=clock)
    before = monitor.sample()

    pynvml.nvmlShutdown()

    assert monitor.sample() == before
    assert len(driver.calls("nvmlInitWithFlags")) == 2
    assert len(driver.calls(BY_UUID)) == 4
    assert monitor.sample() == before
    assert len(driver.calls(BY_UUID)) == 4


# Whose memory it is.


def test_descendants_are_our_own(driver: StandInDriver, clock: DrivenClock) -> None:
    """A child's child counts, a stranger and a dead one do not."""
    program = (
        "import subprocess, sys\n"
        "inner = 'import sys; print(sys.stdin.read())'\n"
        "with subprocess.Popen([sys.executable, '-c', inner], stdin=0) as child:\n"
        "    print(child.pid, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        held = f"{child.pid}:1 {grandchild}:10 1:100 4194304:1000"
        driver.describe(t4(processes=held))
        monitor = GPUMonitor(_clock=clock)

        assert monitor.sample()[0].process_bytes == 11
        assert monitor.sample()[0].process_bytes == 11  # as remembered

        child.communicate()
    assert monitor.sample()[0].process_bytes is None


@pytest.mark.parametrize(
    ("processes", "told"),
    [
        (None, None),
        ("", None),
        ("7:1 8:2 9:4", 3),
        ("7:1 8:?", None),
        ("9:4", None),
        ("7:0", 0),
    ],
)
def test_chosen_processes_are_added_up(
    driver: StandInDriver, clock: DrivenClock, processes: str | None, told: int | None
) -> None:
    """None where the list, or a part of it, is not told or names none of them."""
    driver.describe(t4(processes=processes))

    assert GPUMonitor(process_ids=[7, 8], _clock=clock).sample()[0].process_bytes == (
        told
    )
    later: list[int] = []
    monitor = GPUMonitor(process_ids=lambda: later, _clock=clock)
    assert monitor.sample()[0].process_bytes is None
    later += [7, 8]
    assert monitor.sample()[0].process_bytes == told


def test_a_function_of_ids_that_fails_is_told_once(
    driver: StandInDriver, clock: DrivenClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything else of the sample is there."""
    driver.describe(t4(**BUSY))

    def fail() -> list[int]:
        raise OSError("no ids today")

    monitor = GPUMonitor(process_ids=fail, _clock=clock)
    for _ in range(3):
        (sample,) = monitor.sample()
        assert (sample.process_bytes, sample.utilization_percent) == (None, 37)

    assert caplog.text.count("OSError: no ids today") == 1


def test_processes_that_end_while_looked_at_are_not_ours() -> None:
    """What is not there to be seen is no descendant, and no error."""
    family = _own_processes._Family()
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert family.holds(child.pid)  # ended, and not yet collected
    assert not family.holds(child.pid)
    assert not family._descends(child.pid)
    assert not family._descends(1)


# The thread.


def test_a_monitor_ticks_in_a_thread_of_its_name(driver: StandInDriver) -> None:
    """It is a daemon, subscribers run in it, and stopping ends it."""
    driver.describe(t4())
    monitor = GPUMonitor(0.01)
    seen: list[threading.Thread] = []
    called = threading.Event()

    def note(_: object) -> None:
        seen.append(threading.current_thread())
        called.set()

    monitor.subscribe(note)
    assert (monitor.running, monitor.interval) == (False, 0.01)
    with monitor as entered:
        assert entered is monitor
        assert called.wait(30)
        monitor.start()
        (thread,) = threads()
        assert monitor.running
        assert thread.daemon
    assert set(seen) == {thread}
    assert not thread.is_alive()
    assert not monitor.running
    monitor.stop()


def test_a_monitor_starts_again_and_keeps_what_it_saw(driver: StandInDriver) -> None:
    """A second start looks for the cards anew."""
    driver.describe(t4(0))
    monitor = GPUMonitor(0.01)
    watch(monitor, 2)
    seen = monitor.history()
    driver.describe(t4(0), t4(1))

    watch(monitor, 2)

    assert monitor.history()[: len(seen)] == seen
    assert len(monitor.latest()) == len(monitor.gpus) == 2


def test_a_stop_does_not_wait_for_the_next_tick(driver: StandInDriver) -> None:
    """A monitor that ticks once a day ends now."""
    driver.describe(t4())
    monitor = GPUMonitor(86_400)

    watch(monitor, 1)

    assert threads() == []


def test_a_stop_takes_a_last_sample(driver: StandInDriver) -> None:
    """The last mark is in a row, short work has an end, and a second stop adds none."""
    driver.describe(t4(0), t4(1), log=None)
    watched = GPUMonitor(3600)
    told: list[tuple[GPUSample, ...]] = []
    watched.subscribe(told.append)
    begun = threading.Event()
    watched.subscribe(lambda _: begun.set())

    with watched:
        assert begun.wait(30)  # else the first sample might be the one after the mark
        driver.describe(t4(0, temperature=80), t4(1), log=None)
        watched.mark("done")

    assert [row["mark"] for row in watched.rows()][-2:] == ["done", "done"]
    assert watched.latest()[0].temperature_celsius == 80
    assert told[-1] == watched.latest()
    count = len(watched.history())
    watched.stop()
    assert len(watched.history()) == count
    GPUMonitor().stop()


def test_every_stop_waits_for_the_last_sample(driver: StandInDriver) -> None:
    """Who comes second returns after it as well."""
    driver.describe(t4())
    watched = GPUMonitor(3600)
    last, may_return = threading.Event(), threading.Event()
    marked: list[str] = []

    def hold(_: object) -> None:
        if not watched.running:
            last.set()
            assert may_return.wait(30)
            marked.append("last sample")

    watched.subscribe(hold)
    begun = threading.Event()
    watched.subscribe(lambda _: begun.set())
    watched.start()
    assert begun.wait(30)  # so that the first sample is not taken for the last
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(watched.stop)
        assert last.wait(30)
        second = pool.submit(watched.stop)
        assert not first.done()
        assert not second.done()
        may_return.set()
        second.result(30)
        assert marked == ["last sample"]
        first.result(30)


def test_a_subscriber_of_a_sample_may_stop_the_monitor(driver: StandInDriver) -> None:
    """Called in a thread of the user's, it waits for the last sample as others do."""
    driver.describe(t4())
    watched = GPUMonitor(3600)
    begun = threading.Event()
    watched.subscribe(lambda _: begun.set())
    watched.start()
    here = threading.current_thread()
    told: list[bool] = []

    def stop(_: object) -> None:
        told.append(threading.current_thread() is here)
        watched.stop()

    assert begun.wait(30)  # else the first sample might be told to it too
    watched.subscribe(stop)
    watched.sample()

    assert threads() == []
    assert told == [True, False]
    assert len(watched.history()) == 3


def test_an_hour_has_no_drift(driver: StandInDriver) -> None:
    """Ticks lie on the schedule of the start, however long they take."""
    driver.describe(t4(), log=None)
    clock = DrivenClock(600)
    monitor = GPUMonitor(6, _clock=clock)

    def take_long(_: object) -> None:
        clock.now += 0.7

    monitor.subscribe(take_long)
    ticks = watch(monitor, 600)

    times = [sample.time - ticks[0][0].time for (sample,) in ticks]
    assert times == pytest.approx([6 * number for number in range(600)], abs=1e-3)


def test_missed_ticks_are_skipped_and_not_bunched(driver: StandInDriver) -> None:
    """After a tick that took too long, the next one is on the schedule again."""
    driver.describe(t4())
    clock = DrivenClock(10)
    monitor = GPUMonitor(1, _clock=clock)
    pauses = iter([0, 0, 2.5, 0, 1, 0, 0])

    def take_long(_: object) -> None:
        clock.now += next(pauses, 0)

    monitor.subscribe(take_long)
    ticks = watch(monitor, 7)

    times = [sample.time - ticks[0][0].time for (sample,) in ticks]
    assert times == pytest.approx([0, 1, 2, 5, 6, 8, 9])


def test_a_wait_that_ends_too_early_makes_no_tick_more(driver: StandInDriver) -> None:
    """A schedule is counted in ticks, so that no rounding doubles one."""
    driver.describe(t4())

    class Hasty(DrivenClock):
        def wait(self, event: _run.Ending, seconds: float) -> bool:
            return super().wait(event, seconds * (1 - 1e-9))

    ticks = watch(GPUMonitor(0.1, _clock=Hasty(50)), 50)

    times = [sample.time - ticks[0][0].time for (sample,) in ticks]
    assert times == pytest.approx([number / 10 for number in range(50)], abs=1e-3)


def test_the_system_s_clock_is_the_default(driver: StandInDriver) -> None:
    """Samples and marks have the time of day."""
    driver.describe(t4())
    before = time.time()
    monitor = GPUMonitor()

    (sample,), mark = monitor.sample(), monitor.mark("now")

    assert before <= sample.time <= mark.time <= time.time()


def test_threads_may_call_anything_at_once(driver: StandInDriver) -> None:
    """Starts, stops, samples, marks and reads from many threads break nothing."""
    driver.describe(t4(0), t4(1), log=None)
    monitor = GPUMonitor(0.01, history=50)
    jobs: list[Callable[[], object]] = [
        monitor.start,
        monitor.stop,
        monitor.sample,
        monitor.latest,
        monitor.history,
        monitor.rows,
        monitor.to_json,
        partial(monitor.mark, "x"),
        lambda: monitor.subscribe(repr)(),  # noqa: PLW0108 - subscribes each time
        partial(repr, monitor),
    ]
    together = threading.Barrier(len(jobs))

    def work(job: Callable[[], object]) -> None:
        together.wait()
        for _ in range(30):
            job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(work, jobs))
    monitor.stop()

    assert threads() == []
    times = [sample.time for sample in monitor.history(index=1)]
    assert times == sorted(times)
    assert {len(monitor.history(index)) for index in (0, 1)} == {len(times)}
    assert len(times) <= 50


def test_two_starts_at_once_make_one_thread(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes second finds the monitor running."""
    driver.describe(t4())
    watched = GPUMonitor(3600)
    find = monitor.visible_cards

    def slow() -> list[Any]:
        monkeypatch.setattr(monitor, "visible_cards", find)
        watched.start()  # another thread is faster
        return find()

    monkeypatch.setattr(monitor, "visible_cards", slow)
    with watched:
        assert len(threads()) == 1


def test_subscribers_that_fail_are_told_once_and_go_on(
    driver: StandInDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are called, the monitor ticks on, the log has one traceback."""
    driver.describe(t4())
    monitor = GPUMonitor(0.01)
    calls: list[int] = []

    def fail(samples: tuple[GPUSample, ...]) -> None:
        calls.append(len(samples))
        raise RuntimeError("the chart is gone")

    monitor.subscribe(fail)
    watch(monitor, 3)

    assert len(calls) >= 3
    assert caplog.text.count("RuntimeError: the chart is gone") == 1
    assert "Traceback" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_subscriber_does_not_end_the_monitor(
    driver: StandInDriver,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
) -> None:
    """What would end the thread is logged in it; out of a sample it comes through."""
    driver.describe(t4())
    watched = GPUMonitor(0.01)
    calls: list[int] = []

    def leave(samples: tuple[GPUSample, ...]) -> None:
        calls.append(len(samples))
        raise error("enough")

    watched.subscribe(leave)
    watch(watched, 3)

    assert len(calls) >= 3
    assert caplog.text.count(f"{error.__name__}: enough") == 1
    with pytest.raises(error, match="enough"):
        watched.sample()


def test_ids_that_leave_the_program_do_not_end_the_monitor(
    driver: StandInDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """A function of ids that raises SystemExit costs the processes' bytes only."""
    driver.describe(t4(**BUSY))

    def leave() -> list[int]:
        raise SystemExit("enough")

    for (sample,) in watch(GPUMonitor(0.01, process_ids=leave), 3):
        assert (sample.process_bytes, sample.utilization_percent) == (None, 37)
    assert caplog.text.count("SystemExit: enough") == 1


def test_a_subscriber_may_stop_the_monitor(driver: StandInDriver) -> None:
    """Its thread ends after one last sample, of which all are told; no one waits."""
    driver.describe(t4())
    monitor = GPUMonitor(0.01)
    states: list[bool] = []
    told: list[object] = []

    def stop(_: object) -> None:
        monitor.mark("enough")
        monitor.stop()
        states.append(monitor.running)

    monitor.subscribe(stop)
    monitor.subscribe(told.append)
    monitor.start()
    for thread in threads():
        thread.join(30)

    assert states == [False, False]
    assert threads() == []
    assert len(monitor.history()) == len(told) == 2
    assert monitor.rows()[1]["mark"] == "enough"


def test_a_subscriber_may_restart_the_monitor(driver: StandInDriver) -> None:
    """The old thread ends, the new one goes on."""
    driver.describe(t4())
    monitor = GPUMonitor(0.01)
    first: list[threading.Thread] = []
    other = threading.Event()

    def restart(_: object) -> None:
        if not first:
            first.append(threading.current_thread())
            monitor.stop()
            monitor.start()
        elif threading.current_thread() is not first[0]:
            other.set()

    monitor.subscribe(restart)
    with monitor:
        assert other.wait(30)
        first[0].join(30)
        assert len(threads()) == 1


FORKS_IN_A_CALLBACK = """
import os, threading
from llamatelemetry.gpu import GPUMonitor

forked, codes = threading.Event(), []
monitor = GPUMonitor(0.01)
parent = os.getpid()

def fork(samples):
    if not codes and os.getpid() == parent:
        child = os.fork()
        if child:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            forked.set()

monitor.subscribe(fork)
with monitor:
    assert forked.wait(30)
print(codes)
"""


def test_a_subscriber_may_fork(driver: StandInDriver) -> None:
    """A child that returns from the callback ticks no more, and ends."""
    driver.describe(t4())

    assert driver.run(FORKS_IN_A_CALLBACK) == "[0]\n"


def test_a_subscriber_can_be_called() -> None:
    """What is no function is an error at once."""
    with pytest.raises(ConfigurationError, match="must be a function"):
        GPUMonitor().subscribe(None)  # type: ignore[arg-type]


def test_a_thread_that_could_not_be_started_can_be_stopped(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without threads to spare gives its error, and nothing else breaks."""
    driver.describe(t4())
    monitor = GPUMonitor(0.01)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            monitor.start()
    assert not monitor.running
    monitor.stop()

    assert len(watch(monitor, 1)) == 1


def test_a_subscriber_may_take_a_sample(driver: StandInDriver) -> None:
    """A sample out of a callback is kept and told to nobody, so that it ends."""
    driver.describe(t4())
    monitor = GPUMonitor()
    told: list[object] = []

    def more(samples: tuple[GPUSample, ...]) -> None:
        told.append(samples)
        monitor.sample()

    unsubscribe = monitor.subscribe(more)
    monitor.sample()
    assert (len(told), len(monitor.history())) == (1, 2)

    unsubscribe()
    unsubscribe()
    monitor.sample()
    assert (len(told), len(monitor.history())) == (1, 3)


def test_a_tick_that_fails_is_told_once_and_the_next_one_comes(
    driver: StandInDriver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A binding that goes away while the monitor runs does not end its thread."""
    driver.describe(t4())
    clock = DrivenClock(6)
    watched = GPUMonitor(1, _clock=clock)
    binding = sys.modules["pynvml"]
    wait = clock.wait

    def take_away(event: _run.Ending, seconds: float) -> bool:
        present = clock.waits < 4
        monkeypatch.setitem(sys.modules, "pynvml", binding if present else None)
        return wait(event, seconds)

    monkeypatch.setattr(clock, "wait", take_away)
    watch(watched, 3)

    assert caplog.text.count("a sample could not be taken") == 1
    assert "pip install nvidia-ml-py" in caplog.text


def test_each_kind_of_failure_is_told_once(
    driver: StandInDriver, caplog: pytest.LogCaptureFixture, clock: DrivenClock
) -> None:
    """Ids that fail do not hide a sample that cannot be taken."""
    driver.describe(t4())

    def fail() -> list[int]:
        raise OSError("no ids today")

    watched = GPUMonitor(1, process_ids=fail, _clock=clock)
    clock.waits = 6
    read = monitor.Readings.read
    failed: list[object] = []

    def refuse(readings: monitor.Readings, now: float) -> list[Any]:
        if 1001 < now < 1004:
            failed.append(now)
            raise RuntimeError("not today")
        return read(readings, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor.Readings, "read", refuse)
        watch(watched, 4)

    assert len(failed) == 2
    assert caplog.text.count("OSError: no ids today") == 1
    assert caplog.text.count("RuntimeError: not today") == 1


def test_a_last_sample_that_comes_too_late_is_not_kept(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that hangs in the last sample adds none after the stop has given up."""
    monkeypatch.setattr(monitor, "_LONGEST_STOP", 0.01)
    driver.describe(t4())
    asks, may_answer, ticked = (threading.Event() for _ in range(3))

    def ids() -> list[int]:
        if ticked.is_set():
            asks.set()
            may_answer.wait()
        return []

    watched = GPUMonitor(3600, process_ids=ids)
    watched.subscribe(lambda _: ticked.set())
    watched.start()
    assert ticked.wait(30)
    (thread,) = threads()
    while not asks.is_set():
        watched.stop()
        asks.wait(0.01)
    count = len(watched.history())
    watched.stop()  # waits no more
    may_answer.set()
    thread.join(30)

    assert not thread.is_alive()
    assert len(watched.history()) == count == 1


def test_a_stop_does_not_wait_for_a_driver_that_hangs(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while the thread is left alone; what it brings then is not kept."""
    monkeypatch.setattr(monitor, "_LONGEST_STOP", 0.01)
    driver.describe(t4())
    watched = GPUMonitor(0.01)
    told: list[object] = []
    asks, may_answer = threading.Event(), threading.Event()

    def ids() -> list[int]:
        asks.set()
        may_answer.wait()
        return []

    monkeypatch.setattr(watched, "_own", lambda: frozenset(ids()).__contains__)
    watched.subscribe(told.append)
    watched.start()
    assert asks.wait(30)
    (thread,) = threads()
    watched.stop()
    assert not watched.running
    assert thread.is_alive()

    may_answer.set()
    thread.join(30)

    assert watched.history() == told == []


def test_a_monitor_nobody_needs_is_forgotten(driver: StandInDriver) -> None:
    """A stopped monitor is kept alive by nothing here."""
    driver.describe(t4())
    before = len(monitor._monitors)
    watched: GPUMonitor | None = GPUMonitor(0.01)
    assert watched is not None
    watch(watched, 1)
    watched = None
    gc.collect()

    assert watched is None
    assert len(monitor._monitors) <= before


def leave(
    interval: float, *, knotted: bool
) -> tuple[threading.Thread, weakref.ref[_run.Run]]:
    """Start a monitor, and hold it no more once it has ticked; return its run."""
    watched = GPUMonitor(interval)
    ticked = threading.Event()
    watched.subscribe(lambda _: ticked.set())
    if knotted:  # a subscriber holds the monitor, which holds it
        watched.subscribe(lambda _: watched.latest())
    watched.start()
    assert ticked.wait(30)
    (thread,) = threads()
    assert watched._run is not None
    return thread, weakref.ref(watched._run)


@pytest.mark.parametrize("knotted", [False, True])
@pytest.mark.parametrize("interval", [0.01, 86_400])
def test_a_monitor_that_nobody_holds_ends(
    driver: StandInDriver,
    caplog: pytest.LogCaptureFixture,
    interval: float,
    knotted: bool,
) -> None:
    """Its thread ends by itself, and nothing of it stays for the program's end."""
    driver.describe(t4())
    gc.collect()
    monitors = len(monitor._monitors)

    thread, run = leave(interval, knotted=knotted)
    until = time.monotonic() + 30
    while thread.is_alive() and time.monotonic() < until:
        gc.collect()
        thread.join(0.01)

    assert not thread.is_alive()
    gc.collect()
    assert run() is None
    assert len(monitor._monitors) == monitors
    assert caplog.records == []


CELLS = """
import gc, sys, threading, weakref
from llamatelemetry.gpu import GPUMonitor

gc.disable()
steps = None

def collect_at_a_step(frame, event, argument):
    global steps
    if steps is None:
        return
    outer = frame
    while outer is not None:
        if outer.f_code.co_name == "_tick":  # which holds the monitor
            return
        outer = outer.f_back
    steps -= 1
    if steps == 0:
        gc.collect()

def cell():
    monitor = GPUMonitor(0.01)
    ticked = threading.Event()
    def note(samples):
        monitor.mark("seen")
        ticked.set()
    monitor.subscribe(note)
    monitor.start()
    assert ticked.wait(30)
    return monitor._run._thread, weakref.ref(monitor)

threading.setprofile(collect_at_a_step)
gc.collect()
gc.freeze()
for number in range(1, 41):
    steps = None
    thread, monitor = cell()
    steps = number
    thread.join(10)
    assert not thread.is_alive(), number
    assert monitor() is None
print("all ended")
"""


def test_a_monitor_may_be_collected_at_any_step_of_its_thread(
    driver: StandInDriver,
) -> None:
    """Wherever between two ticks its own thread collects it, the thread ends."""
    driver.describe(t4(), log=None)

    assert driver.run(CELLS) == "all ended\n"


def test_a_monitor_may_be_collected_while_nvml_is_asked(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector runs inside NVML's lock, which the other thread may wait for."""
    driver.describe(t4())
    ask = pynvml.nvmlDeviceGetPowerUsage

    def collect(handle: object) -> int:
        gc.collect()
        return int(ask(handle))

    for interval in (0.01, 86_400):
        thread, _ = leave(interval, knotted=True)
        with monkeypatch.context() as patch:
            patch.setattr(pynvml, "nvmlDeviceGetPowerUsage", collect)
            asking = GPUMonitor()
            while thread.is_alive():
                asking.sample()
                thread.join(0.001)

    assert threads() == []


# The end of a program, and forks.

LEFT_RUNNING = """
import threading
from llamatelemetry.gpu import GPUMonitor

monitors = [GPUMonitor(0.01), GPUMonitor(3600), GPUMonitor(0.01)]
ticked = threading.Event()
monitors[0].subscribe(lambda samples: ticked.set())
for monitor in monitors:
    monitor.start()
assert ticked.wait(30)
{}
"""


@pytest.mark.parametrize("ending", ["", "raise SystemExit", "del monitors, monitor"])
def test_a_monitor_left_running_ends_with_the_program(
    driver: StandInDriver, ending: str
) -> None:
    """The program ends with code 0 and says nothing; NVML is shut down after it."""
    driver.describe(t4(0), t4(1))

    assert driver.run(LEFT_RUNNING.format(ending)) == ""

    lines = driver.log.read_text().splitlines()
    assert [line.split()[1] for line in lines][-1] == "nvmlShutdown"


def test_the_end_of_a_program_takes_no_last_sample(driver: StandInDriver) -> None:
    """A program that ends asks the cards no more."""
    driver.describe(t4())
    program = LEFT_RUNNING.format("").replace(
        "[GPUMonitor(0.01), GPUMonitor(3600), GPUMonitor(0.01)]", "[GPUMonitor(3600)]"
    )

    driver.run(program)

    assert len(driver.calls("nvmlDeviceGetPowerUsage")) == 1


HANGS_AT_THE_END = """
import threading
from llamatelemetry.gpu import GPUMonitor, _run

_run._LONGEST_LAST_STOP = 0.01
asks = threading.Event()

def hang(samples):
    asks.set()
    threading.Event().wait()

one = GPUMonitor()
one.subscribe(hang)
one.start()
assert asks.wait(30)
"""


def test_a_subscriber_that_hangs_does_not_keep_the_program(
    driver: StandInDriver,
) -> None:
    """The end of the program waits for it no longer than a moment."""
    driver.describe(t4())

    assert driver.run(HANGS_AT_THE_END) == ""


FORKS = """
import os
from llamatelemetry.gpu import GPUMonitor

with GPUMonitor(0.01) as monitor:
    monitor.sample()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            assert not monitor.running
            assert monitor.history()
            monitor.stop()
            assert monitor.sample()[0].problem is None
            monitor.mark("in the child")
            with monitor:
                assert monitor.running
            monitor.start()
            raise SystemExit
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert monitor.running
print("both")
"""


def test_a_fork_does_not_run_and_does_not_hang(driver: StandInDriver) -> None:
    """A child of a program whose monitor runs can use it, start it, and end."""
    driver.describe(t4(), log=None)

    assert driver.run(FORKS) == "both\n"


def test_what_runs_in_a_fork_leaves_nothing_closed(driver: StandInDriver) -> None:
    """A lock that another thread held is open again, and nothing runs."""
    driver.describe(t4())
    watched = GPUMonitor(3600)
    watched.sample()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(watched._sampling.acquire).result()
        pool.submit(watched._recording._lock.acquire).result()
        monitor._begin_anew()

        assert len(watched.sample()) == 1
        assert not watched.running


STARTS_NOTHING = """
import sys
events = []
sys.addaudithook(lambda name, _: events.append(name))
from llamatelemetry.gpu import GPUMonitor
with GPUMonitor(0.01) as monitor:
    monitor.sample()
    monitor.to_csv()
assert not {"subprocess.Popen", "os.posix_spawn", "os.system"} & set(events)
assert not {"llamatelemetry.server._process", "pandas"} & set(sys.modules)
print(len(monitor.latest()))
"""


def test_watching_starts_no_program(driver: StandInDriver) -> None:
    """Cards are watched in this process, and pandas is loaded by no one."""
    driver.describe(t4())

    assert driver.run(STARTS_NOTHING) == "1\n"


# What is kept.


def test_the_history_is_bounded_and_chosen_from(
    driver: StandInDriver, clock: DrivenClock
) -> None:
    """Old ticks go; a card and the last seconds can be asked for."""
    driver.describe(t4(0), t4(1))
    monitor = GPUMonitor(history=3, _clock=clock)
    for _ in range(5):
        monitor.sample()
        clock.now += 10

    whole = monitor.history()
    assert [sample.time - 1_700_001_000 for sample in whole] == [20, 20, 30, 30, 40, 40]
    assert [sample.index for sample in whole] == [0, 1] * 3
    assert monitor.history(1) == [one for one in whole if one.index == 1]
    assert monitor.history(0, seconds=10) == [whole[2], whole[4]]
    assert monitor.history(seconds=0) == whole[4:]
    assert monitor.history(seconds=math.inf) == whole


@pytest.mark.parametrize("wrong", [-1, math.nan, "a", "1", True, [], 1j])
def test_seconds_that_are_none_are_an_error(clock: DrivenClock, wrong: Any) -> None:
    """What is no number from 0 is refused, before there is a sample too."""
    with pytest.raises(ConfigurationError, match=r"seconds is .* must be 0 or more"):
        GPUMonitor(_clock=clock).history(seconds=wrong)


def test_an_index_of_no_card_is_an_error(
    driver: StandInDriver, clock: DrivenClock
) -> None:
    """It lists the cards, as far as they are known; what is no index always is one."""
    driver.describe(t4(0), t4(1))
    watched = GPUMonitor(_clock=clock)
    for wrong in ("0", 0.0, True, -1, []):
        with pytest.raises(ConfigurationError, match=r"index is .* from 0"):
            watched.history(wrong)  # type: ignore[arg-type]
    assert watched.history(2) == []

    watched.sample()

    with pytest.raises(ConfigurationError, match="index is 2, .* cards are 0, 1"):
        watched.history(2)
    driver.describe(t4(0))
    with watched:  # looks again
        assert len(watched.gpus) == 1
    assert [one.index for one in watched.history(1)] == [1]


def test_marks_go_with_their_ticks(driver: StandInDriver, clock: DrivenClock) -> None:
    """A mark of a tick that is no longer kept stands on no row; it stays a mark."""
    driver.describe(t4())
    monitor = GPUMonitor(history=3, _clock=clock)
    for number in range(6):
        clock.now += 1
        monitor.mark(f"before {number}")
        clock.now += 1
        monitor.sample()

    rows = monitor.rows()

    assert [row["mark"] for row in rows] == ["before 3", "before 4", "before 5"]
    told = csv.DictReader(io.StringIO(monitor.to_csv()))
    assert [row["mark"] for row in told] == [row["mark"] for row in rows]
    every = [f"before {number}" for number in range(6)]
    assert [mark.text for mark in monitor.marks] == every
    assert [one["text"] for one in json.loads(monitor.to_json())["marks"]] == every
    frame = monitor.to_dataframe()
    assert frame["mark"].tolist() == ["before 3", "before 4", "before 5"]
    assert [one["text"] for one in frame.attrs["marks"]] == every


def test_marks_are_kept_up_to_a_limit(clock: DrivenClock) -> None:
    """Marks need no card; the last thousand are there."""
    monitor = GPUMonitor(_clock=clock)
    for number in range(1005):
        made = monitor.mark(f"step {number}")
    assert made == Mark(clock.time(), "step 1004")

    assert len(monitor.marks) == 1000
    assert monitor.marks[0].text == "step 5"
    with pytest.raises(ConfigurationError, match="must be a text"):
        monitor.mark(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *(
            ({"interval": wrong}, "interval is .* from 0.01 to 86400")
            for wrong in (0, -1, 0.009, math.nan, math.inf, 1e6, 10**400, True, "1")
        ),
        ({"interval": None}, "interval is None"),
        *(
            ({"history": wrong}, "history is .* at least 1")
            for wrong in (0, -1, 1.5, True, None, 2**63)
        ),
        *(
            ({"process_ids": wrong}, "process_ids is .* must be ids")
            for wrong in (5, "12", ["12"], [1.5])
        ),
    ],
)
def test_values_that_cannot_work_are_errors_at_once(
    arguments: dict[str, Any], words: str
) -> None:
    """What is wrong is named, with what is allowed."""
    with pytest.raises(ConfigurationError, match=words):
        GPUMonitor(**arguments)


def test_a_monitor_shows_itself_in_one_line(driver: StandInDriver) -> None:
    """The repr has the interval, the state, and how full each card is."""
    driver.describe(t4(0, free=8 * 1024 * MIB), t4(1, total=None))
    monitor = GPUMonitor(0.5)
    assert repr(monitor) == "<GPUMonitor every 0.5 s, stopped, 0 cards>"

    monitor.sample()
    assert repr(monitor) == (
        "<GPUMonitor every 0.5 s, stopped, 2 cards: GPU 0: 6.7 of 15.0 GiB, GPU 1: "
        "memory unknown>"
    )
    with monitor:
        assert "running" in repr(monitor)


# Exports.


@pytest.fixture
def recorded(driver: StandInDriver, clock: DrivenClock) -> GPUMonitor:
    """A monitor that has seen two ticks of two cards, and three marks."""
    driver.describe(t4(0, **BUSY), t4(1, power=None, reasons=0))
    monitor = GPUMonitor(_clock=clock)
    monitor.sample()
    clock.now += 1
    monitor.mark('load, and "run"\nthe model')
    monitor.mark("second")
    clock.now += 1
    monitor.sample()
    clock.now += 1
    monitor.mark("after the end")
    return monitor


def test_csv_is_read_back_as_it_was(recorded: GPUMonitor, tmp_path: Path) -> None:
    """Each row is in the text, by column; None is empty; a file has the same."""
    text = recorded.to_csv()

    rows = list(csv.DictReader(io.StringIO(text)))

    assert [
        {name: "" if value is None else str(value) for name, value in row.items()}
        for row in recorded.rows()
    ] == rows
    assert [row["mark"] for row in rows] == [
        *("", ""),
        *['load, and "run"\nthe model; second'] * 2,
    ]
    assert rows[0]["throttle_reasons"] == (
        "software_power_cap; software_thermal_slowdown"
    )
    assert (rows[1]["throttle_reasons"], rows[1]["power_watts"]) == ("none", "")
    assert recorded.to_csv(tmp_path / "samples.csv") is None
    assert (tmp_path / "samples.csv").read_bytes() == text.encode()


def test_pandas_reads_the_same_as_it_is_given(recorded: GPUMonitor) -> None:
    """The table and the CSV are one table, with numbers for numbers."""
    frame = recorded.to_dataframe()

    pd.testing.assert_frame_equal(
        frame, pd.read_csv(io.StringIO(recorded.to_csv())), check_dtype=False
    )
    assert list(frame.columns) == [
        *(field.name for field in dataclasses.fields(GPUSample)),
        "mark",
    ]
    assert frame.memory_used_bytes.dtype == "int64"
    assert frame.groupby("index").temperature_celsius.max().to_dict() == {0: 61, 1: 38}
    assert frame.power_watts.isna().sum() == 2
    assert [mark["text"] for mark in frame.attrs["marks"]][-1] == "after the end"


def test_json_has_everything(recorded: GPUMonitor, tmp_path: Path) -> None:
    """Samples, marks and cards are those of the monitor, field by field."""
    whole = json.loads(recorded.to_json())

    assert list(whole) == ["gpus", "samples", "marks"]
    samples = [
        GPUSample(**sample | {"throttle_reasons": tuple(sample["throttle_reasons"])})
        for sample in whole["samples"]
    ]
    assert samples == recorded.history()
    assert tuple(Mark(**mark) for mark in whole["marks"]) == recorded.marks
    assert [gpu["uuid"] for gpu in whole["gpus"]] == [gpu.uuid for gpu in recorded.gpus]
    assert recorded.to_json(str(tmp_path / "samples.json")) is None
    assert json.loads((tmp_path / "samples.json").read_text()) == whole


def test_reasons_that_are_not_told_are_empty(
    driver: StandInDriver, clock: DrivenClock
) -> None:
    """In a table, "none" is no reason, and nothing is not told."""
    driver.describe(t4(0, reasons=None), t4(1, reasons=0))
    monitor = GPUMonitor(_clock=clock)
    monitor.sample()

    assert [row["throttle_reasons"] for row in monitor.rows()] == [None, "none"]
    told = [one["throttle_reasons"] for one in json.loads(monitor.to_json())["samples"]]
    assert told == [None, []]


def test_a_missing_pandas_is_an_error_with_the_remedy(
    recorded: GPUMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pandas the table is an error; everything else works."""
    monkeypatch.setitem(sys.modules, "pandas", None)

    with pytest.raises(SetupError, match="run: pip install pandas"):
        recorded.to_dataframe()
    assert len(recorded.rows()) == 4


@pytest.mark.gpu
def test_a_real_card_tells_what_nvidia_smi_shows() -> None:
    """With a real driver, the values are those of nvidia-smi, or near them."""
    monitor = GPUMonitor(0.1)
    watch(monitor, 5)
    facts = "memory.total,memory.used,memory.free,power.limit,temperature.gpu"
    done = subprocess.run(
        [
            "nvidia-smi",
            f"--id={monitor.gpus[0].uuid}",
            f"--query-gpu={facts}",
            "--format=csv,noheader,nounits",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    told = [
        float(value) if value.replace(".", "").isdecimal() else None
        for value in done.stdout.strip().split(", ")
    ]
    sample = monitor.sample()[0]

    assert sample.problem is None
    in_mib = [
        sample.memory_total_bytes,
        sample.memory_used_bytes,
        sample.memory_free_bytes,
    ]
    for ours, theirs, slack in zip(in_mib, told[:3], [1, 512, 512], strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or abs(ours / MIB - theirs) <= slack
    assert sample.power_limit_watts == pytest.approx(told[3], abs=0.01)
    assert sample.temperature_celsius == pytest.approx(told[4], abs=5)
    assert 0 <= (sample.utilization_percent or 0) <= 100
    assert (sample.power_watts or 1) > 0
