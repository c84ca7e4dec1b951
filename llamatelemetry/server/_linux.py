"""What Linux tells about processes, sockets, CPUs and memory: /proc and cgroups.

Everything here reads and nothing changes anything. What cannot be read (another
user's process, another system than Linux) is None or empty, never an error.
Formats: https://man7.org/linux/man-pages/man5/proc.5.html
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from llamatelemetry._units import KIB

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_LISTENING = "0A"  # TCP_LISTEN in the kernel's include/net/tcp_states.h
# Places in /proc/PID/stat counted from the field after the name, and in /proc/net/tcp.
_STATE, _GROUP, _START_TIME = 0, 2, 19
_LOCAL_ADDRESS, _SOCKET_STATE, _INODE = 1, 3, 9


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def process_ids() -> Iterator[int]:
    """Yield the ids of all processes that can be seen."""
    try:
        names = os.listdir(_PROC)
    except OSError:
        return
    for name in names:
        if name.isdecimal():
            yield int(name)


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, which may hold anything."""
    _, _, rest = (
        _read(_PROC / str(pid) / "stat").decode("ascii", "replace").rpartition(")")
    )
    return rest.split()


def process_start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it is gone.

    Together with the id it names a process for good: ids are used again, and a
    process that has ended but was not collected counts as gone.
    """
    fields = _stat_fields(pid)
    if len(fields) <= _START_TIME or fields[_STATE] in "ZX":
        return None
    return int(fields[_START_TIME])


def process_command(pid: int) -> str:
    """Return the program and arguments of a process, or "" if they are hidden."""
    parts = _read(_PROC / str(pid) / "cmdline").split(b"\0")
    return " ".join(part.decode("utf-8", "replace") for part in parts if part)


def process_variable(pid: int, name: str) -> str | None:
    """Return one environment variable a process was started with."""
    prefix = name.encode() + b"="
    for entry in _read(_PROC / str(pid) / "environ").split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode("utf-8", "replace")
    return None


def group_members(group: int) -> list[int]:
    """Return the ids of the processes in one group; zombies do not count."""
    members = []
    for pid in process_ids():
        fields = _stat_fields(pid)
        if len(fields) <= _GROUP or fields[_STATE] in "ZX":
            continue
        if fields[_GROUP] == str(group):
            members.append(pid)
    return members


def listening_inodes(port: int) -> set[str]:
    """Return the inodes of the sockets that listen on a TCP port, any address."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in (
            _read(_PROC / "net" / table).decode("ascii", "replace").splitlines()[1:]
        ):
            fields = line.split()
            if len(fields) <= _INODE or fields[_SOCKET_STATE] != _LISTENING:
                continue
            if int(fields[_LOCAL_ADDRESS].rpartition(":")[2], 16) == port:
                inodes.add(fields[_INODE])
    return inodes


def _holds_socket(pid: int, inodes: set[str]) -> bool:
    folder = _PROC / str(pid) / "fd"
    targets = {f"socket:[{inode}]" for inode in inodes}
    try:
        names = os.listdir(folder)
    except OSError:  # it ended, or it is another user's
        return False
    for name in names:
        # One that was closed meanwhile says nothing about the others; in our own
        # process, the descriptor of the listing itself is one.
        with contextlib.suppress(OSError):
            if str((folder / name).readlink()) in targets:
                return True
    return False


def group_listens(group: int, port: int) -> bool:
    """Whether a process of this group holds a socket that listens on the port."""
    inodes = listening_inodes(port)
    return bool(inodes) and (
        _holds_socket(group, inodes)
        or any(_holds_socket(pid, inodes) for pid in group_members(group))
    )


def port_holder(port: int) -> str | None:
    """Return who listens on a port, as "pid 41, python3 -m http.server"; or None."""
    inodes = listening_inodes(port)
    for pid in process_ids() if inodes else ():
        if _holds_socket(pid, inodes):
            return f"pid {pid}, {process_command(pid) or 'command hidden'}"
    return None


def bytes_loaded(pid: int) -> int:
    """Return how much of its files a process has read or mapped in, in bytes."""
    read = mapped = 0
    for line in _read(_PROC / str(pid) / "io").splitlines():
        if line.startswith(b"rchar:"):
            read = int(line.split()[1])
    for line in _read(_PROC / str(pid) / "status").splitlines():
        if line.startswith(b"RssFile:"):
            mapped = int(line.split()[1]) * KIB
    return max(read, mapped)


def usable_cpus() -> int:
    """Return how many CPUs this process may use, by its affinity and its cgroup."""
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, min(cpus, quota) if quota else cpus)


def _cpu_quota() -> int | None:
    """Return the cgroup's CPU limit, rounded up; None without one.

    Versions 2 and 1: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu
    """
    limit, _, period = _read(_CGROUP / "cpu.max").decode().partition(" ")
    if not period:
        limit = _read(_CGROUP / "cpu" / "cpu.cfs_quota_us").decode()
        period = _read(_CGROUP / "cpu" / "cpu.cfs_period_us").decode()
    try:
        return -(-int(limit) // int(period)) if int(limit) > 0 else None
    except ValueError:
        return None


def available_memory() -> int | None:
    """Return the bytes of RAM that can be used without swapping; None if not told."""
    limits = [
        int(line.split()[1]) * KIB
        for line in _read(_PROC / "meminfo").splitlines()
        if line.startswith(b"MemAvailable:")
    ]
    for most, used in (
        (_CGROUP / "memory.max", _CGROUP / "memory.current"),
        (
            _CGROUP / "memory" / "memory.limit_in_bytes",
            _CGROUP / "memory" / "memory.usage_in_bytes",
        ),
    ):
        try:
            limits.append(max(0, int(_read(most)) - int(_read(used))))
        except ValueError:  # "max", or not there
            continue
    return min(limits, default=None)


def total_memory() -> int | None:
    """Return the bytes of RAM there are for this process, used or not; None if unknown.

    The machine's, or its container's limit where that is less.
    """
    limits = [
        int(line.split()[1]) * KIB
        for line in _read(_PROC / "meminfo").splitlines()
        if line.startswith(b"MemTotal:")
    ]
    for most in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(ValueError):  # "max", or not there
            limits.append(int(_read(_CGROUP / most)))
    return min(limits, default=None)
