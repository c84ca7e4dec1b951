"""NCCL for users of PyTorch: what is here, what to set, a group, and its speed.

llama.cpp's own use of NCCL is decided when an engine is built; nothing here turns it
on. Only the group and its speed need PyTorch, which is imported when they are called.
"""

from __future__ import annotations

from llamatelemetry._bandwidth import (
    Bandwidth,
    BandwidthTable,
    all_reduce_bandwidth,
)
from llamatelemetry._distributed import ProcessGroup, process_group
from llamatelemetry._nccl import (
    NCCLEnvironment,
    NCCLInfo,
    NCCLLibrary,
    nccl_environment,
    nccl_info,
)

__all__ = [
    "Bandwidth",
    "BandwidthTable",
    "NCCLEnvironment",
    "NCCLInfo",
    "NCCLLibrary",
    "ProcessGroup",
    "all_reduce_bandwidth",
    "nccl_environment",
    "nccl_info",
    "process_group",
]


def __dir__() -> list[str]:
    return sorted(__all__)
