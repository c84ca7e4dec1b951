"""Bytes, MiB and GiB: the only place where one becomes another or becomes text.

Memory is counted in bytes and shown in binary units (1 GiB = 2**30 bytes), because
that is what nvidia-smi and llama.cpp print. Files and downloads are shown in decimal
units (1 GB = 10**9 bytes), because that is what the Hugging Face Hub shows.
"""

from __future__ import annotations

KIB = 2**10
MIB = 2**20
GIB = 2**30


def format_memory(size_bytes: int) -> str:
    """Return a memory size for people, in binary units: ``14.7 GiB``."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"


def format_file_size(size_bytes: int) -> str:
    """Return a file size for people, in decimal units as on the Hub: ``4.9 GB``."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"
