"""Are the times that benchmark() measures the ones that passed?

A stand-in for the server waits a known time before each first token and before each
further one. A bare socket that asks the same, in turn with benchmark() and as many at
once, sees how late the stand-in itself is: its sleeps end late on any machine, and
later on a busy one.

    python benchmarks/timings.py [--requests N] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llamatelemetry.bench import LoadResult, benchmark

STAND_IN = ROOT / "tests" / "tools" / "stand_in_api.py"
BEFORE = 0.05
PACES = (0.005, 0.02, 0.05)
CONCURRENCY = (1, 4)
TOKENS = 20


def measured(url: str, at_once: int, requests: int) -> LoadResult:
    """Return what benchmark() says of one behaviour."""
    result = benchmark(
        url,
        ["What is GGUF?"],
        concurrency=at_once,
        requests=requests,
        warm_up=1,
        progress=False,
    )
    return result.loads[0]


def bare(url: str, at_once: int, requests: int) -> tuple[list[float], list[float]]:
    """Return what bare sockets see: seconds to first tokens, and between tokens."""
    host, _, path = url.removeprefix("http://").partition("/")
    name, _, port = host.partition(":")
    body = b'{"stream": true}'
    head = f"POST /{path}/v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    firsts: list[float] = []
    gaps: list[float] = []

    def ask(count: int) -> None:
        with socket.create_connection((name, int(port))) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(count):
                times = [time.monotonic()]
                connection.sendall(request)
                data = b""
                while not data.endswith(b"\r\n0\r\n\r\n"):
                    block = connection.recv(65536)
                    now = time.monotonic()
                    data += block
                    times += [now] * block.count(b'"content": "w')
                firsts.append(times[1] - times[0])
                gaps.extend(after - before for before, after in pairwise(times[1:]))

    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(ask, [requests // at_once] * at_once))
    return firsts, gaps


def rows_of(root: str, requests: int) -> list[dict[str, Any]]:
    """Return a row for each pace, concurrency and kind of time."""
    rows: list[dict[str, Any]] = []
    for pace in PACES:
        for at_once in CONCURRENCY:
            url = f"{root}/before={BEFORE},pace={pace},tokens={TOKENS}"
            halves = [bare(url, at_once, requests // 2)]
            load = measured(url, at_once, requests)
            halves.append(bare(url, at_once, requests // 2))
            assert load.time_to_first_token is not None, load.errors
            assert load.inter_token_latency is not None, load.errors
            for place, what, known, found in (
                (0, "first token", BEFORE + pace, load.time_to_first_token),
                (1, "between tokens", pace, load.inter_token_latency),
            ):
                seen = statistics.median(halves[0][place] + halves[1][place])
                rows.append(
                    {
                        "what": what,
                        "at_once": at_once,
                        "known_ms": known * 1e3,
                        "median_ms": found.median * 1e3,
                        "bare_ms": seen * 1e3,
                        "off_known_ms": (found.median - known) * 1e3,
                        "off_bare_ms": (found.median - seen) * 1e3,
                    }
                )
    return rows


def main() -> None:
    """Measure, print a table, and write the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=16, help="of each load")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    with subprocess.Popen(
        [sys.executable, str(STAND_IN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        root = f"http://127.0.0.1:{int(server.stdout.readline())}"
        rows = rows_of(root, arguments.requests)
        server.stdin.close()
    print("| time | at once | known | median | off | bare socket | off that |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in sorted(rows, key=lambda row: row["what"] != "first token"):
        print(
            f"| {row['what']} | {row['at_once']} | {row['known_ms']:.0f} ms "
            f"| {row['median_ms']:.2f} ms | {row['off_known_ms']:+.2f} ms "
            f"| {row['bare_ms']:.2f} ms | {row['off_bare_ms']:+.2f} ms |"
        )
    known, seen = (
        max(abs(row[name]) for row in rows) for name in ("off_known_ms", "off_bare_ms")
    )
    print(
        f"\nAt most {known:.2f} ms off what the stand-in waits, {seen:.2f} ms off what "
        "a bare socket sees."
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
