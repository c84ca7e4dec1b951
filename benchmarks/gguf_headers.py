"""What reading a header costs, against the `gguf` package's reader in the same run.

The headers are the vocabularies that come with llama.cpp's source package. "Lazy" reads
the header as `read_header` does; "decoded" turns every array into a list too, which
GGUFReader's time does not include. GGUFReader is run once for each file: it takes up to
25 s, beside which the spread of one run is small.

    python benchmarks/gguf_headers.py [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1]),
    str(Path(__file__).resolve().parents[1] / "tests" / "tools"),
]

from vocabularies import vocabularies

from llamatelemetry.gguf.reader import GGUFArray, read_header

ROUNDS = 7
# The sizes of vocabulary that the bounds are about, in tokens.
LEAST_TOKENS = 150_000


def milliseconds(action: Callable[[], object], rounds: int) -> float:
    """Return the median time of an action."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def decode(path: Path) -> list[list[Any]]:
    """Read a header and decode every array of it."""
    values = read_header(path).metadata.values()
    return [value.tolist() for value in values if isinstance(value, GGUFArray)]


def measure() -> list[dict[str, Any]]:
    """Return one row per vocabulary of the size that counts."""
    rows = []
    for path in vocabularies():
        tokens = len(read_header(path).metadata["tokenizer.ggml.tokens"])
        if tokens < LEAST_TOKENS:
            continue

        def lazily(path: Path = path) -> object:
            return read_header(path)

        def decoded(path: Path = path) -> object:
            return decode(path)

        def package(path: Path = path) -> object:
            return gguf.GGUFReader(path)

        lazy = milliseconds(lazily, ROUNDS)
        every = milliseconds(decoded, ROUNDS)
        theirs = milliseconds(package, 1)
        rows.append(
            {
                "vocabulary": path.stem.removeprefix("ggml-vocab-"),
                "tokens": tokens,
                "header_mb": round(path.stat().st_size / 1e6, 1),
                "lazy_ms": round(lazy, 1),
                "decoded_ms": round(every, 1),
                "gguf_reader_ms": round(theirs),
                "lazy_ratio": round(theirs / lazy),
                "decoded_ratio": round(theirs / every),
            }
        )
    return rows


def main() -> None:
    """Measure, print a table, and write the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    rows = measure()
    print(
        "| vocabulary | tokens | MB | lazy ms | decoded ms | GGUFReader ms "
        "| times faster, lazy | decoded |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
