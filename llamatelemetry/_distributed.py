"""The only import of PyTorch, and a group of processes as a ``with`` block."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from llamatelemetry._deadline import Deadline
from llamatelemetry._rendezvous import (
    HOW_TO_START,
    Meeting,
    meet,
    meeting_point,
    number,
    take_leave,
)
from llamatelemetry.exceptions import ConfigurationError, SetupError

__all__ = [
    "ProcessGroup",
    "load_torch",
    "process_group",
]

_BACKENDS = ("auto", "gloo", "nccl")
_LONGEST_SECONDS = 10**9  # timedelta holds some more
_LONGEST_FAREWELL_SECONDS = 5.0
# Under torchrun one store serves all groups of a script, so each has names of its own.
_groups = itertools.count()


def load_torch() -> Any:
    """Return torch, with its distributed part.

    Raises:
        SetupError: It is not installed, does not load, or lacks that part.
    """
    try:
        import torch  # noqa: PLC0415 - an optional package that takes seconds
        import torch.distributed  # noqa: PLC0415
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            raise SetupError(
                "PyTorch, which this needs, is not installed; run: pip install torch"
            ) from error
        raise SetupError(
            f"PyTorch does not load ({type(error).__name__}: {error}); run: "
            "pip install --force-reinstall torch"
        ) from error
    if not torch.distributed.is_available():
        raise SetupError(
            f"PyTorch {torch.__version__} was built without torch.distributed; run: "
            "pip install --force-reinstall torch"
        )
    return torch


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """This process's place among the processes of a group.

    Attributes:
        rank: Its number, from 0.
        world_size: How many processes there are.
        backend: "nccl" or "gloo".
        device: Where tensors have to be: "cuda:0", or "cpu" with gloo.

    Example:
        >>> from llamatelemetry.api.nccl import ProcessGroup
        >>> ProcessGroup(rank=0, world_size=2, backend="nccl", device="cuda:0").device
        'cuda:0'
    """

    rank: int
    world_size: int
    backend: str
    device: str

    def all_reduce(self, tensor: Any) -> Any:
        """Add up a tensor over all processes, in place, and return it.

        Args:
            tensor: A tensor on ``device``, of the same shape and type in all processes.

        Raises:
            SetupError: PyTorch is not installed or does not load.
        """
        load_torch().distributed.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait until all processes have come to this point."""
        load_torch().distributed.barrier()


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a group is going to be."""

    backend: str
    local_rank: int
    local_world_size: int
    meeting: Meeting


def process_group(
    backend: str = "auto",
    *,
    rank: int | None = None,
    world_size: int | None = None,
    init_method: str | None = None,
    timeout: float = 60.0,
) -> contextlib.AbstractContextManager[ProcessGroup]:
    """Join this process with others for a ``with`` block, over ``torch.distributed``.

    Whatever ends the block, the group is torn down, if the block has not done so. Rank
    0 waits up to 5 s for the others to leave theirs, if its own has ended well. Ctrl-C
    ends the wait for peers at once; an operation that runs, only after its timeout.

    Where rank 0 is at 127.0.0.1, ::1 or localhost, only loopback can reach it; at any
    other address PyTorch listens on all interfaces. The backends open connections of
    their own: NCCL by NCCL_SOCKET_IFNAME, for which see `nccl_environment`, gloo by
    GLOO_SOCKET_IFNAME and the machine's name.

    Args:
        backend: "nccl", "gloo", or "auto": nccl where PyTorch has it and there is a
            card for each process of this machine, else gloo, on the CPU.
        rank: This process's number. None: what torchrun says (RANK, WORLD_SIZE,
            LOCAL_RANK, LOCAL_WORLD_SIZE; they are read, never written).
        world_size: How many processes there are; goes with rank. They are taken to
            run all on this machine; for several machines use torchrun.
        init_method: Where the processes meet: "tcp://HOST:PORT", where rank 0
            listens, or "file:///PATH", a file that does not exist yet in a folder
            that all share. None: MASTER_ADDR and MASTER_PORT.
        timeout: Seconds to wait for the others, and then for each operation.

    Raises:
        ConfigurationError: A value cannot work, variables are missing, or this
            process is in a group already.
        PortInUseError: Something else listens where rank 0 should.
        ServerTimeoutError: Not all came in time; says who is missing, or who listens
            in rank 0's place.
        SetupError: PyTorch is not installed or does not load.

    Example:
        >>> import os, torch
        >>> from llamatelemetry.api.nccl import process_group
        >>> here = f"file://{os.getcwd()}/meeting"
        >>> with process_group(rank=0, world_size=1, init_method=here) as group:
        ...     print(group.all_reduce(torch.ones(3, device=group.device)))
        tensor([1., 1., 1.]...)
    """
    plan = _plan(backend, rank, world_size, init_method, timeout, variables=os.environ)
    return _joined(load_torch(), plan)


@contextlib.contextmanager
def _joined(torch: Any, plan: _Plan) -> Iterator[ProcessGroup]:
    distributed = torch.distributed
    if distributed.is_initialized():
        raise ConfigurationError(
            "this process is in a default process group already, which is not ours to "
            "end; call torch.distributed.destroy_process_group() first, or use it"
        )
    backend, device = _choose(torch, plan)
    meeting = plan.meeting
    store = meet(distributed, meeting)
    own, farewell = None, 0.0
    try:
        if backend == "nccl":
            torch.cuda.set_device(plan.local_rank)
        distributed.init_process_group(
            backend,
            store=store,
            rank=meeting.rank,
            world_size=meeting.world_size,
            timeout=timedelta(seconds=meeting.timeout),
            # Without it NCCL guesses a rank's card at the first barrier, and warns.
            device_id=torch.device(device) if backend == "nccl" else None,
        )
        own = distributed.group.WORLD
        yield ProcessGroup(meeting.rank, meeting.world_size, backend, device)
        farewell = min(_LONGEST_FAREWELL_SECONDS, meeting.timeout)
    finally:
        try:
            take_leave(store, meeting, Deadline.after(farewell))
        finally:
            # The block may have ended the group itself, and even begun another.
            if distributed.is_initialized() and own in (None, distributed.group.WORLD):
                distributed.destroy_process_group()


def _plan(
    backend: str,
    rank: int | None,
    world_size: int | None,
    init_method: str | None,
    timeout: float,
    *,
    variables: Mapping[str, str],
) -> _Plan:
    """Decide what a group is going to be.

    Raises:
        ConfigurationError: A value cannot work, or is missing.
    """
    if backend not in _BACKENDS:
        raise ConfigurationError(f"backend is one of {_BACKENDS}, not {backend!r}")
    if not 0 < timeout < _LONGEST_SECONDS:
        raise ConfigurationError(f"timeout is in seconds, above 0, not {timeout!r}")
    if (rank is None) != (world_size is None):
        raise ConfigurationError(
            f"rank and world_size go together: {HOW_TO_START}; or give neither"
        )
    if rank is None or world_size is None:
        own, size = number(variables, "RANK"), number(variables, "WORLD_SIZE")
        _check_place("RANK", own, "WORLD_SIZE", size)
        local_rank = number(variables, "LOCAL_RANK", own)
        local_size = number(variables, "LOCAL_WORLD_SIZE", size)
        _check_place("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size)
    else:
        _check_place("rank", rank, "world_size", world_size)
        own, size, local_rank, local_size = rank, world_size, rank, world_size
    # torchrun has a store at MASTER_ADDR already.
    agent = not init_method and variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = variables.get("TORCHELASTIC_RESTART_COUNT", "0")
    meeting = Meeting(
        own,
        size,
        meeting_point(init_method, variables),
        hosts_store=own == 0 and not agent,
        prefix=f"llamatelemetry/{attempt}/{next(_groups)}" if agent else "",
        timeout=timeout,
    )
    return _Plan(backend, local_rank, local_size, meeting)


def _check_place(rank_name: str, rank: int, size_name: str, size: int) -> None:
    for name, value, least in ((size_name, size, 1), (rank_name, rank, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(
                f"{name} is a whole number from {least}, not {value!r}"
            )
    if rank >= size:
        raise ConfigurationError(
            f"{rank_name} counts from 0, so with {size_name}={size} it is at most "
            f"{size - 1}, not {rank}"
        )


def _choose(torch: Any, plan: _Plan) -> tuple[str, str]:
    """Return the backend and the device of this process.

    Raises:
        ConfigurationError: The backend that was named cannot work here.
    """
    problem = ""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not torch.distributed.is_nccl_available():
        problem = f"PyTorch {torch.__version__} was built without NCCL"
    elif plan.local_world_size > cards:
        problem = (
            "each process on a machine needs a card of its own; there are "
            f"{plan.local_world_size}, and PyTorch sees {cards} cards"
        )
    if plan.backend == "nccl" and problem:
        raise ConfigurationError(f'{problem}; use backend="gloo", on the CPU')
    if plan.backend == "gloo" or problem:
        return "gloo", "cpu"
    return "nccl", f"cuda:{plan.local_rank}"
