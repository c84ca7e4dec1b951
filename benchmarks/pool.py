"""What a second server brings: one against two, with the same requests, in one run.

The demo model on the CPU, one thread for each server. What two servers can bring is
bounded by the cores that are free: besides, it is measured how much two busy loops do
against one, in the same rounds. The client and the tests' machine share the cores.

    python benchmarks/pool.py [--rounds N] [--requests N]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llamatelemetry._demo import DEMO_MODEL, DEMO_QUESTIONS
from llamatelemetry.pool import ServerPool
from llamatelemetry.server import ServerConfig

THREADS = 8
LOOP = "x = 0\nfor i in range(12_000_000): x += i\n"


def seconds_for(pool: ServerPool, requests: int) -> float:
    """Return how long so many answers take, from eight threads."""

    def ask(number: int) -> None:
        question = DEMO_QUESTIONS[number % len(DEMO_QUESTIONS)]
        pool.client.chat_completion(
            [{"role": "user", "content": f"{question} {number}"}],
            max_tokens=48,
            temperature=0,
            extra_body={"ignore_eos": True},
        )

    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(ask, range(requests)))
    return time.perf_counter() - began


def gain_of_loops() -> float:
    """Return how much more two busy processes do together than one."""

    def run(count: int) -> float:
        began = time.perf_counter()
        running = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
        for process in running:
            process.wait()
        return time.perf_counter() - began

    return 2 * run(1) / run(2)


def main() -> None:
    """Measure in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()
    config = ServerConfig(
        DEMO_MODEL, port=0, context_size=2048, parallel=4, threads=1, cache_ram=0
    )
    ones, twos, loops = [], [], []
    with (
        ServerPool(config, gpus=[[]], engine="embedded") as one,
        ServerPool(config, gpus=[[], []], engine="embedded") as two,
    ):
        seconds_for(one, THREADS)
        seconds_for(two, THREADS)
        for _ in range(options.rounds):
            ones.append(seconds_for(one, options.requests))
            twos.append(seconds_for(two, options.requests))
            loops.append(gain_of_loops())
        counts = [status.requests for status in two.status()]
    alone, both = statistics.median(ones), statistics.median(twos)
    share = max(counts) / sum(counts)
    print("| servers | answers/s | against one |")
    print("| --- | ---: | ---: |")
    print(f"| 1 | {options.requests / alone:.0f} | 1.00 |")
    print(f"| 2 | {options.requests / both:.0f} | {alone / both:.2f} |")
    print(
        f"\nTwo busy loops against one in the same rounds: "
        f"{statistics.median(loops):.2f}. Of {sum(counts)} requests the busier of the "
        f"two servers got {share:.1%}. {THREADS} threads asked for {options.requests} "
        f"answers of 48 tokens, {options.rounds} rounds in turn."
    )


if __name__ == "__main__":
    main()
