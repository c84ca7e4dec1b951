"""Looks for files that break the reader, guided by the code they reach.

    pip install atheris
    python tests/tools/fuzz_gguf.py FOLDER -max_total_time=600 -max_len=1500

FOLDER begins with files of `tests/data/gguf_corpus` and grows. Any exception but
GGUFError ends the run and leaves the file that raised it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

with atheris.instrument_imports(include=["llamatelemetry.gguf"]):
    from llamatelemetry.exceptions import GGUFError
    from llamatelemetry.gguf.reader import GGUFArray, read_header


def try_one(data: bytes) -> None:
    """Read one file whole; only GGUFError may be raised."""
    try:
        header = read_header(data)
    except GGUFError:
        return
    for value in header.metadata.values():
        if isinstance(value, GGUFArray):
            value.tolist()
            value[len(value) // 2 :]


if __name__ == "__main__":
    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()
