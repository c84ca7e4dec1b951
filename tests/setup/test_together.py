"""Several calls at once: their answers, their errors, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in_hub import StandInHub

from llamatelemetry._progress import CancelledError
from llamatelemetry.setup import _together
from llamatelemetry.setup._together import run_both, run_together

Call = Callable[[threading.Event], object]


@pytest.fixture(autouse=True)
def long_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine, too, nobody is left behind who ends."""
    monkeypatch.setattr(_together, "_FAREWELL_SECONDS", 120.0)


def until_called_off(called_off: threading.Event) -> object:
    """Work that ends when it is called off, as a download does."""
    called_off.wait()
    raise CancelledError


def failing(error: BaseException) -> Call:
    def call(_: threading.Event) -> object:
        raise error

    return call


def test_answers_come_in_order() -> None:
    """Whoever is done first, the answers stand in the order of the calls."""
    done = [threading.Event() for _ in range(3)]
    done.append(threading.Event())
    done[3].set()

    def call(number: int) -> Call:
        def work(_: threading.Event) -> object:
            done[number + 1].wait()  # the last one is done first
            done[number].set()
            return number

        return work

    assert run_together([call(number) for number in range(3)]) == [0, 1, 2]
    assert run_together([]) == []


def test_two_calls_have_answers_of_their_own() -> None:
    """Two calls that need each other end, so they do run at the same time."""
    barrier = threading.Barrier(2)

    def first(_: threading.Event) -> str:
        barrier.wait()
        return "one"

    def second(_: threading.Event) -> int:
        barrier.wait()
        return 2

    assert run_both(first, second) == ("one", 2)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_first_error_calls_the_others_off(place: int) -> None:
    """Its error is raised, not that the others were called off, once all have ended."""
    ended: list[int] = []

    def other(called_off: threading.Event) -> object:
        called_off.wait()
        ended.append(1)
        raise CancelledError

    calls: list[Call] = [other, other]
    calls.insert(place, failing(OSError("it broke")))

    with pytest.raises(OSError, match="it broke"):
        run_together(calls)
    assert ended == [1, 1]


def test_of_several_errors_the_first_call_s_is_raised() -> None:
    """Two that fail at the same time: one error, that of the earlier call."""
    barrier = threading.Barrier(2)

    def call(words: str) -> Call:
        def work(_: threading.Event) -> object:
            barrier.wait()
            raise ValueError(words)

        return work

    with pytest.raises(ValueError, match="^one$"):
        run_together([call("one"), call("two")])


def test_an_answer_does_not_hide_an_error() -> None:
    """A call that has its answer does not count where another one has failed."""
    with pytest.raises(SystemExit):
        run_together([lambda _: 1, failing(SystemExit(3)), lambda _: 2])


def test_who_waits_for_all_this_calls_it_off() -> None:
    """What is called off outside is called off inside, and says that it was."""
    outside = threading.Event()
    started = threading.Event()

    def work(called_off: threading.Event) -> object:
        started.set()
        return until_called_off(called_off)

    def caller() -> None:
        started.wait()
        outside.set()

    threading.Thread(target=caller).start()
    with pytest.raises(CancelledError):
        run_together([work, until_called_off], called_off=outside)


def test_what_is_not_called_off_outside_goes_on() -> None:
    """An event that nobody sets changes nothing."""
    ready = threading.Event()

    def slow(called_off: threading.Event) -> bool:
        ready.wait()
        return called_off.is_set()

    def quick(called_off: threading.Event) -> bool:
        ready.set()
        return called_off.is_set()

    assert run_together([slow, quick], called_off=threading.Event()) == [False, False]


PROGRAM = """
import hashlib, subprocess, sys, threading
from pathlib import Path
from llamatelemetry._progress import FileBar
from llamatelemetry.setup._download import PinnedFile, download
from llamatelemetry.setup import _download, _together
from llamatelemetry.setup._together import run_together

_download._SILENCE_SECONDS = 1.0
_together._FAREWELL_SECONDS = 120.0
url, folder = sys.argv[1], Path(sys.argv[2])
# Started by somebody else in this process, as a server of the notebook is.
nothing = subprocess.DEVNULL
bystander = subprocess.Popen(["sleep", "600"], stdout=nothing, stderr=nothing)

def fetch(name):
    def call(called_off):
        with FileBar(name, None, cancelled=called_off, shown=False) as bar:
            file = PinnedFile(name, f"{url}/{name}", "0" * 64, 4_000_000)
            return download(file, folder / name, bar)
    return call

print(bystander.pid, flush=True)
try:
    run_together([fetch("a"), fetch("b")])
except KeyboardInterrupt:
    tasks = [t for t in threading.enumerate() if t.name == "llamatelemetry-download"]
    alive = [t for t in tasks if not t.ended.is_set()]  # a thread leaves a moment later
    print("interrupted", len(alive), bystander.poll(), flush=True)
    raise
"""


def test_ctrl_c_ends_all_downloads_and_keeps_what_came(
    hub: StandInHub, tmp_path: Path
) -> None:
    """One Ctrl-C ends the waiting for two stalled files; their parts are kept."""
    for name in ("a", "b"):
        hub.add("buckets/owner/name", name, os.urandom(4_000_000))
    hub.fail_next("cdn", "stall", 2, after=1_000_000)
    # Who was silent too long on a slow machine still gets there, and is not done soon.
    hub.fail_next("cdn", "stall", 100, after=100_000)

    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            PROGRAM,
            f"{hub.url}/buckets/owner/name/resolve",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        bystander = int(process.stdout.readline())
        try:
            parts = [tmp_path / "a.part", tmp_path / "b.part"]
            while not all(
                part.exists() and part.stat().st_size > 900_000 for part in parts
            ):
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            said, errors = process.communicate()
            os.kill(bystander, 0)  # it lives
        finally:
            os.kill(bystander, signal.SIGKILL)

    assert said.split() == ["interrupted", "0", "None"]
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert "CancelledError" not in errors
    assert sorted(place.name for place in tmp_path.iterdir() if place.is_file()) == [
        "a.part",
        "b.part",
    ]
    for part in parts:
        name = part.name.removesuffix(".part")
        whole = hub.repositories["buckets/owner/name"].files[name].beginning
        assert whole.startswith(part.read_bytes())


def interrupt_once(started: threading.Barrier) -> threading.Thread:
    """Strike Ctrl-C here once all calls run."""

    def interrupt() -> None:
        started.wait()
        signal.raise_signal(signal.SIGINT)

    striker = threading.Thread(target=interrupt)
    striker.start()
    return striker


def test_ctrl_c_waits_until_the_calls_have_ended() -> None:
    """Who was interrupted can begin anew: nobody writes to the same files any more."""
    started = threading.Barrier(3)
    ended: list[int] = []

    def slow_to_end(called_off: threading.Event) -> object:
        started.wait()
        called_off.wait()
        time.sleep(0.3)  # it writes its last block
        ended.append(1)
        raise CancelledError

    striker = interrupt_once(started)
    with pytest.raises(KeyboardInterrupt):
        run_together([slow_to_end, slow_to_end])
    seen = list(ended)
    striker.join()

    assert seen == [1, 1]


def test_ctrl_c_does_not_wait_for_what_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call that hears nothing is left behind after a farewell, as a daemon."""
    monkeypatch.setattr(_together, "_FAREWELL_SECONDS", 0.2)
    started = threading.Barrier(3)
    end = threading.Event()
    left: list[threading.Thread] = []

    def deaf(_: threading.Event) -> object:
        left.append(threading.current_thread())
        started.wait()
        end.wait()
        return None

    def hearing(called_off: threading.Event) -> object:
        started.wait()
        return until_called_off(called_off)

    striker = interrupt_once(started)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_together([deaf, hearing])
        assert [(one.is_alive(), one.daemon) for one in left] == [(True, True)]
    finally:
        end.set()
        striker.join()
        for one in left:
            one.join()


def test_who_waits_may_look_at_the_work() -> None:
    """The tick is called in the waiting thread, while there is work and at its end."""
    ticks: list[threading.Thread] = []
    waited = threading.Event()

    def tick() -> None:
        ticks.append(threading.current_thread())
        waited.set()

    def work(_: threading.Event) -> bool:
        return waited.wait(30)

    assert run_both(work, work, tick=tick) == (True, True)
    assert len(ticks) >= 2
    assert set(ticks) == {threading.current_thread()}


def test_a_tick_that_fails_calls_the_work_off() -> None:
    """What it raises comes out, once the others have ended."""
    ended: list[int] = []

    def tick() -> None:
        raise InterruptedError

    def work(called_off: threading.Event) -> object:
        called_off.wait()
        ended.append(1)
        raise CancelledError

    with pytest.raises(InterruptedError):
        run_together([work, work], tick=tick)
    assert ended == [1, 1]
