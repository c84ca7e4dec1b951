"""Are the times that benchmark() measures the ones that passed?

A stand-in for the server waits a known time before each first token and before each
further one. A bare socket that asks the same, in turn with benchmark() and as many at
once, sees how late the stand-in itself is. Connections are kept, or opened for each
answer, as they have to be for llama-server's streams; opening one is part of the time
to a first token.

    python benchmarks/timings.py [--requests N] [--rounds N] [--json PATH]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llamatelemetry.bench import benchmark

STAND_IN = ROOT / "tests" / "tools" / "stand_in_api.py"
BEFORE = 0.05
PACES = (0.005, 0.02)
CONCURRENCY = (1, 4)
TOKENS = 10
CONNECTIONS = {"kept": "", "new": ",server=llama.cpp"}
Times = tuple[float, float]
"""Seconds to first tokens, and from one token to the next."""


def measured(url: str, at_once: int, requests: int) -> Times:
    """Return the medians that benchmark() tells."""
    load = benchmark(
        url,
        ["What is GGUF?"],
        concurrency=at_once,
        requests=requests,
        warm_up=1,
        progress=False,
    ).loads[0]
    assert load.time_to_first_token is not None, load.errors
    assert load.inter_token_latency is not None, load.errors
    return load.time_to_first_token.median, load.inter_token_latency.median


def bare(url: str, at_once: int, requests: int) -> Times:
    """Return the medians that bare sockets see."""
    host, _, path = url.removeprefix("http://").partition("/")
    name, _, port = host.partition(":")
    body = b'{"stream": true}'
    head = f"POST /{path}/v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    firsts: list[float] = []
    gaps: list[float] = []

    def ask(connection: socket.socket | None) -> None:
        times = [time.monotonic()]
        with contextlib.ExitStack() as opened:
            if connection is None:
                connection = opened.enter_context(connect())
            connection.sendall(request)
            data = b""
            while not data.endswith(b"\r\n0\r\n\r\n"):
                block = connection.recv(65536)
                now = time.monotonic()
                data += block
                times += [now] * block.count(b'"content": "w')
        firsts.append(times[1] - times[0])
        gaps.extend(after - before for before, after in pairwise(times[1:]))

    def connect() -> socket.socket:
        connection = socket.create_connection((name, int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def ask_all(count: int) -> None:
        with contextlib.ExitStack() as opened:
            kept = None if "llama.cpp" in url else opened.enter_context(connect())
            for _ in range(count):
                ask(kept)

    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(ask_all, [requests // at_once] * at_once))
    return statistics.median(firsts), statistics.median(gaps)


def rows_of(root: str, requests: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each connection, concurrency, pace and kind of time."""
    rows: list[dict[str, Any]] = []
    for connection, at_once, pace in product(CONNECTIONS, CONCURRENCY, PACES):
        options = f"before={BEFORE},pace={pace},tokens={TOKENS}"
        url = f"{root}/{options}{CONNECTIONS[connection]}"
        told: dict[Any, list[Times]] = {measured: [], bare: []}
        for number in range(rounds):  # whoever came first comes last the next time
            for way in (measured, bare) if number % 2 else (bare, measured):
                told[way].append(way(url, at_once, requests // rounds))
        for place, what, known in (
            (0, "first token", BEFORE + pace),
            (1, "between tokens", pace),
        ):
            ours, seen = (
                statistics.median(times[place] for times in told[way])
                for way in (measured, bare)
            )
            rows.append(
                {
                    "what": what,
                    "connections": connection,
                    "at_once": at_once,
                    "known_ms": known * 1e3,
                    "median_ms": ours * 1e3,
                    "bare_ms": seen * 1e3,
                    "off_known_ms": (ours - known) * 1e3,
                    "off_bare_ms": (ours - seen) * 1e3,
                }
            )
    return rows


def main() -> None:
    """Measure, print a table, and write the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=48, help="of each load")
    parser.add_argument("--rounds", type=int, default=6, help="that they are sent in")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    with subprocess.Popen(
        [sys.executable, str(STAND_IN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        root = f"http://127.0.0.1:{int(server.stdout.readline())}"
        rows = rows_of(root, arguments.requests, arguments.rounds)
        server.stdin.close()
    print("| time | connections | at once | known | median | off | bare | off that |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in sorted(rows, key=lambda row: row["what"] != "first token"):
        print(
            f"| {row['what']} | {row['connections']} | {row['at_once']} "
            f"| {row['known_ms']:.0f} ms | {row['median_ms']:.2f} ms "
            f"| {row['off_known_ms']:+.2f} ms | {row['bare_ms']:.2f} ms "
            f"| {row['off_bare_ms']:+.2f} ms |"
        )
    for connection in CONNECTIONS:
        told = [row for row in rows if row["connections"] == connection]
        known, seen = (
            max(abs(row[name]) for row in told)
            for name in ("off_known_ms", "off_bare_ms")
        )
        print(
            f"\nConnections {connection}: at most {known:.2f} ms off what the "
            f"stand-in waits, {seen:.2f} ms off what a bare socket sees."
        )
    print(
        f"Load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the end."
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
