"""What is read from /proc agrees with what this process knows of itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from llamatelemetry.server import _linux


def test_this_process_is_seen_as_it_is() -> None:
    """Id, start time, command and group of this very process are found."""
    pid = os.getpid()

    assert pid in _linux.process_ids()
    assert _linux.process_start_time(pid) is not None
    assert "pytest" in _linux.process_command(pid)
    assert pid in _linux.group_members(os.getpgid(0))
    assert _linux.bytes_loaded(pid) > 0


def test_what_is_gone_is_none() -> None:
    """A process that does not exist has no facts and raises nothing."""
    nobody = 2**22 + 1

    assert _linux.process_start_time(nobody) is None
    assert _linux.process_command(nobody) == ""
    assert _linux.process_variable(nobody, "PATH") is None
    assert _linux.group_members(nobody) == []
    assert _linux.bytes_loaded(nobody) == 0


def test_a_descriptor_that_is_gone_hides_no_other() -> None:
    """The holder of a port is found though the listing's own descriptor has closed."""
    with socket.socket() as low, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        low.close()  # the listing gets this number, below the listener's

        holder = _linux.port_holder(listener.getsockname()[1])
    assert (holder or "").startswith(f"pid {os.getpid()}, ")


def test_a_process_that_ended_but_was_not_collected_is_gone() -> None:
    """A zombie has no start time."""
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert _linux.process_start_time(process.pid) is None
    process.wait()


def test_a_variable_of_another_process_is_read() -> None:
    """The environment a child was started with can be read."""
    process = subprocess.Popen(
        ["sleep", "60"], env={"COLOUR": "grün", "PATH": "/bin:/usr/bin"}
    )
    try:
        # exec closes our pipe a moment before the new environment can be read
        deadline = time.monotonic() + 30
        while not _linux.process_variable(process.pid, "COLOUR"):
            assert time.monotonic() < deadline
        assert _linux.process_variable(process.pid, "COLOUR") == "grün"
        assert _linux.process_variable(process.pid, "COLOU") is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_who_listens_is_told_apart(family: socket.AddressFamily) -> None:
    """A port's holder is named, and only its own group is said to listen."""
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        port = server.getsockname()[1]
        assert _linux.port_holder(port) is None  # bound, but nobody listens

        server.listen()
        holder = _linux.port_holder(port)
        assert holder is not None
        assert holder.startswith(f"pid {os.getpid()}, ")
        assert _linux.group_listens(os.getpid(), port)
        stranger = subprocess.Popen(
            [sys.executable, "-c", "input()"],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            assert not _linux.group_listens(stranger.pid, port)
        finally:
            stranger.communicate(b"\n")


def test_cpus_and_memory_are_counted() -> None:
    """The usable CPUs are at least one and at most the affinity; memory is there."""
    assert 1 <= _linux.usable_cpus() <= len(os.sched_getaffinity(0))
    memory = _linux.available_memory()
    assert memory is not None
    assert memory > 2**20


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_a_container_limit_is_read_in_both_versions(
    tmp_path: os.PathLike[str],
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    quota: int | None,
) -> None:
    """Cgroup version 1 and 2 files give the CPU limit, rounded up."""
    for name, text in files.items():
        path = os.path.join(tmp_path, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
    monkeypatch.setattr(_linux, "_CGROUP", type(_linux._CGROUP)(tmp_path))

    assert _linux._cpu_quota() == quota
