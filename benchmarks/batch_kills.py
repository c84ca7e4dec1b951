"""Batches that are killed: 50 SIGKILLs at random moments, and what was lost.

The demo model answers greedily; each batch is held against the run in which nothing
died. Of the whole process, of a server that ``map_prompts`` starts again, of one that
somebody else does, and of a pool's member, a quarter each.

    python benchmarks/batch_kills.py [--rows N] [--kills N] [--engine NAME]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "tools")]

from batch_kills import all_kinds

from llamatelemetry._demo import DEMO_MODEL
from llamatelemetry.server import ServerConfig


def main() -> None:
    """Kill, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--engine", default="embedded")
    options = parser.parse_args()
    config = ServerConfig(
        DEMO_MODEL, port=0, context_size=2048, parallel=4, threads=1, cache_ram=0
    )
    print("| killed | kills | runs | rows lost | twice | different | errors |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    began, kills = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        found = all_kinds(
            config, options.engine, Path(folder), options.rows, options.kills
        )
        for one in found:
            kills += one.kills
            print(
                f"| {one.kind} | {one.kills} | {one.runs} | {one.lost} | {one.twice} | "
                f"{one.different} | {one.failed} |",
                flush=True,
            )
    print(
        f"\n{kills} kills in {time.monotonic() - began:.0f} s, {options.rows:,} rows "
        "each; runs are calls of `map_prompts`, resumed after the first. Lines with "
        "an error are asked again by the next run."
    )


if __name__ == "__main__":
    main()
