"""Where the processes of a group meet, wait for each other, and part.

PyTorch waits for peers in ways of its own: twice as long as was asked for where it
connects, for ever where a stranger listens, five minutes where a file's folder is
missing, and in C++, where Ctrl-C does not reach it. So the peers are met here, over
PyTorch's own stores, and PyTorch is given the store when all have come.
https://docs.pytorch.org/docs/stable/distributed.html#distributed-key-value-store
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from llamatelemetry._deadline import Deadline
from llamatelemetry.exceptions import (
    ConfigurationError,
    PortInUseError,
    ServerTimeoutError,
)
from llamatelemetry.server._linux import port_holder

__all__ = [
    "HOW_TO_START",
    "Meeting",
    "Point",
    "meet",
    "meeting_point",
    "number",
    "take_leave",
]

HOW_TO_START = (
    "start the script with torchrun --nproc-per-node=2 script.py, or give each process "
    'rank=, world_size= and init_method="tcp://127.0.0.1:29500" (or "file:///tmp/name")'
)
_LOOK_SECONDS = 0.02
_SHORTEST_ASK_SECONDS = 0.2
_LONGEST_ASK_SECONDS = 1.0
_LEFT = "left"
_LARGEST_PORT = 65_535
_LOOPBACK = {"localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1", "::1": "::1"}
# What a client says first: that it is one, and four bytes that it wants back. See
# validationMagicNumber and QueryType in
# https://github.com/pytorch/pytorch/blob/main/torch/csrc/distributed/c10d/TCPStoreBackend.hpp
_QUESTION = struct.pack("=BIB", 0, 0x3C85F7CE, 13)
_THREAD = "llamatelemetry-rendezvous"


@dataclass(frozen=True, slots=True)
class Point:
    """Where the processes meet: a file, or an address."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"the file {self.path}" if self.path else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Meeting:
    """Who meets where.

    Attributes:
        rank: This process's number.
        world_size: How many are to come.
        point: Where.
        hosts_store: Whether this process opens the store at an address.
        prefix: What the names begin with, in a store that serves several groups.
        timeout: Seconds to wait for the others.
    """

    rank: int
    world_size: int
    point: Point
    hosts_store: bool
    prefix: str
    timeout: float


def number(
    variables: Mapping[str, str], name: str, otherwise: int | None = None
) -> int:
    """Return the number in one of torchrun's variables.

    Raises:
        ConfigurationError: It is not set, or no number.
    """
    text = variables.get(name, "" if otherwise is None else str(otherwise))
    try:
        return int(text)
    except ValueError:
        found = repr(text) if name in variables else "not set"
        raise ConfigurationError(f"{name} is {found}: {HOW_TO_START}") from None


def meeting_point(init_method: str | None, variables: Mapping[str, str]) -> Point:
    """Return the file, or the host and the port.

    Raises:
        ConfigurationError: It is neither, or a variable is missing.
    """
    if init_method is None:
        host = variables.get("MASTER_ADDR")
        if not host:
            raise ConfigurationError(f"MASTER_ADDR is not set: {HOW_TO_START}")
        port = number(variables, "MASTER_PORT")
        return Point("", host, _checked("MASTER_PORT", port))
    try:
        parts = urlsplit(init_method)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port or 0
    except (ValueError, AttributeError):
        scheme, host, port = "", "", 0
    if scheme == "tcp" and host:
        return Point("", host, _checked(f"the port of {init_method}", port))
    if scheme == "file" and not host and parts.path:
        path = Path(unquote(parts.path))
        # PyTorch would try for five minutes to open it.
        if not path.parent.is_dir() or path.is_dir():
            raise ConfigurationError(
                f"init_method names the file {path}; it has to be a new file in a "
                "folder that exists"
            )
        return Point(str(path))
    raise ConfigurationError(
        'init_method is "tcp://HOST:PORT" or "file:///PATH" (three slashes), not '
        f"{init_method!r}"
    )


def _checked(name: str, port: int) -> int:
    if not 0 < port <= _LARGEST_PORT:
        raise ConfigurationError(f"{name} is 1 to {_LARGEST_PORT}, not {port}")
    return port


def meet(distributed: Any, meeting: Meeting) -> Any:
    """Return the store at which all processes of the group have arrived.

    Args:
        distributed: torch.distributed.
        meeting: Who meets where.

    Raises:
        ConfigurationError: Another process has this rank, the file is an old one, or
            rank 0 cannot open its store.
        PortInUseError: Something else listens where rank 0 should.
        ServerTimeoutError: Not all came in time.
    """
    deadline = Deadline.after(meeting.timeout)
    while True:
        try:
            store = _open_store(distributed, meeting, deadline)
            # Who comes again, after a group has ended, may find its store still open.
            if store.check([_LEFT]) and not meeting.point.path:
                raise distributed.DistError("an earlier group is still there")  # noqa: TRY301
            _arrive(store, meeting, deadline)
        except distributed.DistError as error:
            # Where the last group's store was closing down, the next one opens soon.
            if deadline.expired or meeting.hosts_store:
                kind = ConfigurationError if meeting.hosts_store else ServerTimeoutError
                raise kind(
                    f"the group's store at {meeting.point} cannot be used: {error}"
                ) from error
            time.sleep(_LOOK_SECONDS)
        else:
            store.set_timeout(timedelta(seconds=meeting.timeout))
            return store


def _open_store(distributed: Any, meeting: Meeting, deadline: Deadline) -> Any:
    point = meeting.point
    if point.path:
        store = distributed.FileStore(point.path, meeting.world_size)
        store.set_timeout(timedelta(seconds=max(1.0, deadline.remaining)))
        return store
    listening = _listen(meeting) if meeting.hosts_store else None
    if not meeting.hosts_store:
        _await_store(distributed, meeting, deadline)
    # PyTorch rounds a wait of under a second down to nothing.
    wait = max(1.0, deadline.remaining)
    opening = _in_thread(
        lambda: distributed.TCPStore(
            point.host,
            point.port,
            meeting.world_size,
            is_master=meeting.hosts_store,
            timeout=timedelta(seconds=wait),
            wait_for_workers=False,
            master_listen_fd=listening,
        )
    )
    try:
        store = opening.result(wait)
    except TimeoutError as error:
        raise _no_answer(meeting) from error
    return distributed.PrefixStore(meeting.prefix, store) if meeting.prefix else store


def _in_thread(call: Callable[[], Any]) -> Future[Any]:
    """Call something that Ctrl-C does not reach, so that it can be left behind."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            outcome.set_exception(error)

    threading.Thread(target=run, name=_THREAD, daemon=True).start()
    return outcome


def _listen(meeting: Meeting) -> int | None:
    """Listen on loopback only, where that is the address; PyTorch listens everywhere.

    Returns:
        The listening socket's descriptor; None where PyTorch is to listen by itself.
    """
    host = _LOOPBACK.get(meeting.point.host)
    if host is None:
        return None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        # The last group's connections may still be in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, meeting.point.port))
            listener.listen(meeting.world_size + 16)
        except OSError as error:
            message = f"rank 0 cannot listen at {meeting.point}: "
            if error.errno != errno.EADDRINUSE:  # a port below 1024, say
                raise ConfigurationError(f"{message}{error.strerror}") from error
            holder = port_holder(meeting.point.port)
            raise PortInUseError(
                f"{message}{holder or 'another process'} does; give all processes "
                "another port, or look for a second rank 0",
                port=meeting.point.port,
                holder=holder,
            ) from error
        return listener.detach()


def _await_store(distributed: Any, meeting: Meeting, deadline: Deadline) -> None:
    """Wait until a store answers at rank 0's address.

    PyTorch's own client would wait twice as long where nobody listens, and for ever
    where somebody is silent; it would also print whatever else it hears.

    Raises:
        ServerTimeoutError: None does in time.
    """
    understood = False
    while True:
        wait = min(_LONGEST_ASK_SECONDS, deadline.remaining)
        problem = None
        try:
            if _answers(meeting.point, max(_SHORTEST_ASK_SECONDS, wait)):
                return
        except OSError as error:
            problem = error
        else:
            # Another PyTorch may speak otherwise; then only its client can tell.
            understood = understood or _understands(distributed)
            if not understood:
                return
        if deadline.expired:
            if problem is None:
                raise _no_answer(meeting)
            raise ServerTimeoutError(
                f"rank {meeting.rank} has waited {meeting.timeout:g} s for rank 0 to "
                f"listen at {meeting.point} ({problem}); was rank 0 started, and with "
                "the same address?"
            ) from problem
        # A stranger is not to be asked fifty times a second.
        time.sleep(_LOOK_SECONDS if problem else _SHORTEST_ASK_SECONDS)


def _answers(point: Point, wait: float) -> bool:
    """Whether what listens at an address answers as PyTorch's store does.

    Raises:
        OSError: Nothing listens there.
    """
    token = os.urandom(4)
    with socket.create_connection((point.host, point.port), wait) as connection:
        try:
            connection.sendall(_QUESTION + token)
            return connection.recv(len(token)) == token
        except OSError:
            return False


def _understands(distributed: Any) -> bool:
    """Whether this PyTorch's own store understands what is asked here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        point = Point("", *listener.getsockname())
        _store = distributed.TCPStore(
            point.host,
            point.port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
    return _answers(point, _LONGEST_ASK_SECONDS)


def _no_answer(meeting: Meeting) -> ServerTimeoutError:
    point = meeting.point
    holder = port_holder(point.port) if point.host in _LOOPBACK else None
    return ServerTimeoutError(
        f"rank {meeting.rank} has waited {meeting.timeout:g} s for rank 0's store at "
        f"{point}; {holder or 'something'} listens there, but does not answer as one. "
        "Give all processes another port, or look what that is"
    )


def _arrive(store: Any, meeting: Meeting, deadline: Deadline) -> None:
    """Say that this process is here, and wait until all are."""
    if store.add(f"here/{meeting.rank}", 1) > 1:
        raise ConfigurationError(
            f"rank {meeting.rank} is already at {meeting.point}: two processes were "
            "given the same rank, or an earlier group used this file; number the "
            "processes from 0, and name a new file for each group"
        )
    ranks = range(meeting.world_size)
    while not store.check([f"here/{rank}" for rank in ranks]):
        if deadline.expired:
            missing = [rank for rank in ranks if not store.check([f"here/{rank}"])]
            came = meeting.world_size - len(missing)
            raise ServerTimeoutError(
                f"{came} of {meeting.world_size} processes came to {meeting.point} in "
                f"{meeting.timeout:g} s; missing: rank "
                f"{', '.join(map(str, missing))}. Were they started, with the same "
                "world_size and address, and what do their own outputs say?"
            )
        time.sleep(_LOOK_SECONDS)


def take_leave(store: Any, meeting: Meeting, deadline: Deadline) -> None:
    """Say that this process goes; rank 0, whose the store is, waits for the others."""
    with contextlib.suppress(RuntimeError):  # the store has gone before
        store.add(_LEFT, 1)
        expected = meeting.world_size if meeting.rank == 0 else 0
        while store.add(_LEFT, 0) < expected and not deadline.expired:
            time.sleep(_LOOK_SECONDS)
