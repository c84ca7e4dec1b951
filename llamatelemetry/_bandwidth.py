"""How fast the processes of a group add up tensors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llamatelemetry._distributed import load_torch
from llamatelemetry._rendezvous import HOW_TO_START
from llamatelemetry._units import KIB, MIB, format_memory
from llamatelemetry.exceptions import ConfigurationError

__all__ = [
    "Bandwidth",
    "BandwidthTable",
    "all_reduce_bandwidth",
]

_DEFAULT_SIZES = (4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB)
_FLOAT_BYTES = 4
_WARM_UPS = 2


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """How fast one size of message went.

    Attributes:
        size_bytes: The tensor on each process.
        seconds: The median time; each time is that of the slowest process.
        algorithm_gb_s: size_bytes / seconds, in 10^9 bytes a second.
        bus_gb_s: What each process has sent and received, in 10^9 bytes a second: the
            figure to compare with a link's.

    Example:
        >>> from llamatelemetry.api.nccl import Bandwidth
        >>> one = Bandwidth(2**20, 0.001, algorithm_gb_s=1.05, bus_gb_s=1.05)
        >>> one.size_bytes / one.seconds / 1e9
        1.048576
    """

    size_bytes: int
    seconds: float
    algorithm_gb_s: float
    bus_gb_s: float


@dataclass(frozen=True, slots=True, repr=False)
class BandwidthTable:
    """What `all_reduce_bandwidth` has measured.

    Attributes:
        measurements: One for each size, in the order given.
        backend: "nccl" or "gloo".
        world_size: How many processes took part.
        device: What this process's tensors were on ("Tesla T4", "CPU").
        repeats: How often each size was sent.

    Example:
        >>> from llamatelemetry.api.nccl import Bandwidth, BandwidthTable
        >>> row = Bandwidth(2**20, 0.001, algorithm_gb_s=1.05, bus_gb_s=1.05)
        >>> BandwidthTable((row,), "gloo", world_size=2, device="CPU", repeats=10)
        all_reduce over gloo, 2 processes, CPU, median of 10 (1 GB = 10^9 bytes)
              size         time      algorithm            bus
           1.0 MiB    1000.0 µs     1.050 GB/s     1.050 GB/s
    """

    measurements: tuple[Bandwidth, ...]
    backend: str
    world_size: int
    device: str
    repeats: int

    def rows(self) -> list[dict[str, float]]:
        """Return the rows, for pandas or json."""
        return [asdict(one) for one in self.measurements]

    def __repr__(self) -> str:
        lines = [
            f"all_reduce over {self.backend}, {self.world_size} processes, "
            f"{self.device}, median of {self.repeats} (1 GB = 10^9 bytes)",
            f"{'size':>10} {'time':>12} {'algorithm':>14} {'bus':>14}",
        ]
        lines += [
            f"{format_memory(one.size_bytes):>10} {one.seconds * 1e6:>9.1f} µs "
            f"{one.algorithm_gb_s:>9.3f} GB/s {one.bus_gb_s:>9.3f} GB/s"
            for one in self.measurements
        ]
        return "\n".join(lines)


def all_reduce_bandwidth(
    sizes: Sequence[int] = _DEFAULT_SIZES, *, repeats: int = 10
) -> BandwidthTable:
    """Measure how fast the default group's processes add up tensors of 32-bit floats.

    Every process of the group has to call it, with the same arguments. Each message is
    waited for before the next, so small sizes show the latency of a single call, which
    the tests of NVIDIA that queue calls do not. The two figures are NVIDIA's:
    https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md

    Args:
        sizes: Bytes of the tensor on each process; multiples of 4.
        repeats: How often each size is sent, after two that do not count.

    Raises:
        ConfigurationError: This process is in no group, or alone in it; or a value
            cannot work.
        SetupError: PyTorch is not installed or does not load.

    Returns:
        The figures, one row for each size.

    Example:
        >>> import os
        >>> from llamatelemetry.api.nccl import all_reduce_bandwidth, process_group
        >>> where = f"file://{os.getcwd()}/meeting"
        >>> with process_group("gloo", rank=0, world_size=1, init_method=where):
        ...     try:
        ...         all_reduce_bandwidth([4096])
        ...     except ValueError as error:
        ...         print(error)
        the group has one process, which sends nothing to itself...
    """
    if not sizes or any(size < 1 or size % _FLOAT_BYTES for size in sizes):
        raise ConfigurationError(f"sizes are multiples of 4 above 0, not {sizes!r}")
    if repeats < 1:
        raise ConfigurationError(f"repeats is at least 1, not {repeats!r}")
    torch = load_torch()
    distributed = torch.distributed
    if not distributed.is_initialized():
        raise ConfigurationError(
            "this process is in no group; call all_reduce_bandwidth() inside "
            "`with process_group():`, in each of its processes"
        )
    world_size = distributed.get_world_size()
    if world_size == 1:
        raise ConfigurationError(
            "the group has one process, which sends nothing to itself; there is "
            f"nothing to measure: {HOW_TO_START}"
        )
    backend = distributed.get_backend()
    on_card = backend == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_card else "cpu"
    # 2 (n - 1) transfers of each element over n links.
    factor = 2 * (world_size - 1) / world_size
    measurements = []
    for size in sizes:
        seconds = _time(torch, size, repeats, device)
        rate = size / seconds / 1e9
        measurements.append(Bandwidth(size, seconds, rate, rate * factor))
    name = torch.cuda.get_device_name(device) if on_card else "CPU"
    return BandwidthTable(tuple(measurements), backend, world_size, name, repeats)


def _time(torch: Any, size_bytes: int, repeats: int, device: Any) -> float:
    """Return the median seconds that one message takes."""
    distributed = torch.distributed
    wait = torch.cuda.synchronize if str(device) != "cpu" else lambda: None
    # Zeros: sums of anything else would overflow after some turns.
    tensor = torch.zeros(size_bytes // _FLOAT_BYTES, device=device)
    times = []
    for turn in range(repeats + _WARM_UPS):
        distributed.barrier()
        wait()
        begin = time.perf_counter()
        distributed.all_reduce(tensor)
        wait()
        if turn >= _WARM_UPS:
            times.append(time.perf_counter() - begin)
    slowest = torch.tensor(times, dtype=torch.float64, device=device)
    distributed.all_reduce(slowest, op=distributed.ReduceOp.MAX)
    return float(statistics.median(slowest.tolist()))
