"""What importing the package costs, against the openai SDK in the same run.

Each import happens in a fresh interpreter, the two in turn; the time of an interpreter
that imports nothing is taken off.

    python benchmarks/imports.py [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROUNDS = 9
ROOT = Path(__file__).resolve().parents[1]
STATEMENTS = {
    "nothing": "pass",
    "llamatelemetry": "import llamatelemetry",
    "openai": "import openai",
}
_TIMED = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"


def measure_once(statement: str) -> float:
    """Return the milliseconds that a statement takes in a fresh interpreter."""
    command = [sys.executable, "-c", _TIMED.format(statement)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout) * 1e3


def measure() -> list[dict[str, Any]]:
    """Return one row per module; the rounds are interleaved."""
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(ROUNDS):
        for name, statement in STATEMENTS.items():
            times[name].append(measure_once(statement))
    medians = {name: statistics.median(values) for name, values in times.items()}
    openai = medians["openai"] - medians["nothing"]
    return [
        {
            "module": name,
            "import_ms": round(median - medians["nothing"], 2),
            "ratio_to_openai": round((median - medians["nothing"]) / openai, 4),
        }
        for name, median in medians.items()
        if name != "nothing"
    ]


def main() -> None:
    """Measure, print a table, and write the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    rows = measure()
    print("| import | ms | ratio |")
    print("| --- | --- | --- |")
    for row in rows:
        print(f"| {row['module']} | {row['import_ms']} | {row['ratio_to_openai']} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
