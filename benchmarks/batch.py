"""What map_prompts costs, whether its finishing time holds, and the memory it takes.

Throughput: against a load generator that is as little as there can be, threads that
send one request after the other, and read the stream's bytes without looking at them.
Both ask one server the same things, in turn; of several numbers of threads the
generator's best one counts. The model is a random one, slow enough that answers take as
long as real ones.

Finishing time: rows whose lengths are log-normal and known, in random order, at a
server that waits so long for each. What the bar tells after 1,000 rows, or 5 % of them,
is held against when they were done.

Memory: the peak of a fresh process that comes through many rows, from an iterator, and
from a CSV file that goes on with what the first one left.

    python benchmarks/batch.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import http.client
import itertools
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "tools")]

from tiny_model import write_tiny_model

from llamatelemetry._demo import DEMO_QUESTIONS
from llamatelemetry.batch import map_prompts
from llamatelemetry.batch._bar import BatchProgress
from llamatelemetry.server import ServerConfig, ServerManager

SLOTS = 4
THREADS = (SLOTS, SLOTS + 1, 2 * SLOTS)
TOKENS = 24
# All that chat_completion() sends by itself, so that both ask for the same work.
SAMPLING = {
    "max_tokens": TOKENS,
    "temperature": 0,
    "top_p": 0.95,
    "top_k": 40,
    "repeat_penalty": 1.1,
}
BODY = {"ignore_eos": True}

AT_ONCE = 16
MEAN, SIGMA = 0.06, 1.0  # seconds of a row, and how widely they differ
TOLD_AFTER = 1000  # rows, or 5 % of them
TEXT = "The quick brown fox jumps over the lazy dog, and the lazy dog sleeps on. " * 3

# ── throughput ───────────────────────────────────────────────────────────────────


def question(number: int) -> str:
    """Return the prompt of one row."""
    return f"{DEMO_QUESTIONS[number % len(DEMO_QUESTIONS)]} {number}"


def bare(url: str, requests: int, begin: int, threads: int) -> float:
    """Return the rows per second of the bare generator."""

    def ask(number: int) -> None:
        messages = [{"role": "user", "content": question(number)}]
        body = {"messages": messages, "stream": True, **SAMPLING, **BODY}
        headers = {"Content-Type": "application/json"}
        # A new connection each time, which llama-server closes after a stream.
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse().read()
        assert answer.endswith(b"[DONE]\n\n"), answer[-200:]
        connection.close()

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(ask, range(begin, begin + requests)))
    return requests / (time.perf_counter() - began)


def mapped(url: str, requests: int, begin: int, folder: Path) -> tuple[float, float]:
    """Return the rows per second of map_prompts, and an answer's median seconds."""
    began = time.perf_counter()
    results = map_prompts(
        range(begin, begin + requests),
        question,
        to=url,
        out=folder / f"{begin}.jsonl",
        progress=lambda _: None,
        extra_body=BODY,
        **SAMPLING,
    )
    speed = requests / (time.perf_counter() - began)
    assert results.done == requests
    return speed, statistics.median(row.seconds or 0.0 for row in results)


def print_throughput(rounds: int, requests: int, folder: Path) -> None:
    """Measure both in turn and print a table."""
    model = write_tiny_model(
        folder / "noise.gguf", layers=3, width=1024, context_length=8192
    )
    config = ServerConfig(
        model, port=0, context_size=2048, parallel=SLOTS, threads=1, cache_ram=0
    )
    bares: dict[int, list[float]] = {threads: [] for threads in THREADS}
    maps, lasted = list[float](), list[float]()
    numbers = itertools.count(0, requests)  # no prompt is asked twice
    with ServerManager(config, engine="embedded", timeout=60) as server:
        url = server.get_url()
        bare(url, 2 * SLOTS, 10_000_000, SLOTS)
        for number in range(rounds):
            order = [0, *THREADS]  # 0 is map_prompts
            for threads in order if number % 2 else reversed(order):
                begin = next(numbers)
                if threads:
                    bares[threads].append(bare(url, requests, begin, threads))
                    continue
                speed, seconds = mapped(url, requests, begin, folder)
                maps.append(speed)
                lasted.append(seconds)
    best = max(THREADS, key=lambda threads: statistics.median(bares[threads]))
    ratios = [one / other for one, other in zip(maps, bares[best], strict=True)]
    print("| load | rows/s | of the best bare | lowest to highest |")
    print("| --- | ---: | ---: | ---: |")
    for threads in THREADS:
        speed = statistics.median(bares[threads])
        share = speed / statistics.median(bares[best])
        print(f"| bare, {threads} threads | {speed:.2f} | {share:.3f} | |")
    print(
        f"| map_prompts | {statistics.median(maps):.2f} | "
        f"{statistics.median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} |"
    )
    print(
        f"\n{rounds} rounds in turn of {requests} answers of {TOKENS} tokens at "
        f"{SLOTS} slots; an answer took {statistics.median(lasted):.2f} s, "
        "waiting included.\n"
    )


# ── a server that waits as long as each row says ─────────────────────────────────


def answer_to(text: str) -> bytes:
    """Return a whole answer as llama-server streams it."""
    chunks = [
        {"choices": [{"index": 0, "finish_reason": None, "delta": {"content": text}}]},
        {"choices": [{"index": 0, "finish_reason": "stop", "delta": {}}]},
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 9}},
    ]
    kept = {
        "id": "1",
        "created": 0,
        "model": "waits",
        "object": "chat.completion.chunk",
    }
    chunks[-1]["usage"] |= {"total_tokens": 18}  # type: ignore[operator]
    events = b"".join(b"data: %s\n\n" % json.dumps(kept | c).encode() for c in chunks)
    return events + b"data: [DONE]\n\n"


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection; a prompt begins with its seconds."""
    while request := await reader.readline():
        length = 0
        while (line := await reader.readline()).strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        data = await reader.readexactly(length)
        kind, body = b"application/json", b'{"total_slots": %d}' % AT_ONCE
        if request.startswith(b"POST"):
            text = json.loads(data)["messages"][-1]["content"]
            await asyncio.sleep(float(text.partition(" ")[0]))
            kind, body = b"text/event-stream", answer_to(text[-40:])
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s"
            % (kind, len(body), body)
        )
        await writer.drain()
    writer.close()


async def serve() -> None:
    """Serve on a free port of loopback, which is printed, until killed."""
    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def waiting_server() -> Iterator[str]:
    """Run that server as a program of its own; yield its URL."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


# ── finishing time ───────────────────────────────────────────────────────────────


def told_and_true(url: str, rows: int, seed: int, folder: Path) -> tuple[float, float]:
    """Return the seconds that were told to be left, and those that were."""
    chance = random.Random(seed)
    middle = math.log(MEAN) - SIGMA**2 / 2
    prompts = [
        f"{chance.lognormvariate(middle, SIGMA):.5f} {number}" for number in range(rows)
    ]
    told: list[tuple[float, float]] = []

    def look(progress: BatchProgress) -> None:
        if not told and progress.done >= max(TOLD_AFTER, rows // 20):
            told.append((time.monotonic(), progress.seconds_left or 0.0))

    map_prompts(
        prompts, "{row}", to=url, out=folder / f"time{seed}.jsonl", progress=look,
        concurrency=AT_ONCE,
    )  # fmt: skip
    when, left = told[0]
    return left, time.monotonic() - when


def print_finishing_time(runs: int, rows: int, folder: Path) -> None:
    """Print how far what was told is from the truth, run by run."""
    with waiting_server() as url:
        pairs = [told_and_true(url, rows, seed, folder) for seed in range(runs)]
    errors = [told / true - 1 for told, true in pairs]
    good = sum(abs(error) <= 0.1 for error in errors)
    print("| run | left, told | left, true | error |")
    print("| ---: | ---: | ---: | ---: |")
    for number, ((told, true), error) in enumerate(zip(pairs, errors, strict=True), 1):
        print(f"| {number} | {told:.2f} s | {true:.2f} s | {error:+.1%} |")
    print(
        f"\nWithin 10 % in {good} of {runs} runs of {rows:,} rows, {AT_ONCE} at once, "
        f"log-normal with a mean of {MEAN:g} s and a sigma of {SIGMA:g}.\n"
    )


# ── memory ───────────────────────────────────────────────────────────────────────


def rows_of(count: int) -> Iterator[dict[str, str]]:
    """Yield rows of some 220 characters."""
    return ({"text": f"{TEXT}{number}"} for number in range(count))


def remember(url: str, source: str, count: int, out: str) -> None:
    """Come through many rows; print the peak in MB, and rows per second."""
    results = map_prompts(
        rows_of(count) if source == "iterator" else source,
        "0 {text}",
        to=url,
        out=out,
        progress=lambda _: None,
    )
    assert results.done == count
    # Of this program alone: what getrusage tells counts the parent's before it began.
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) // 1024, round(count / results.seconds))


def print_memory(rows: int, folder: Path) -> None:
    """Print what a fresh process took, from an iterator and from a CSV."""
    table = folder / "rows.csv"
    more = rows + rows // 100
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text"])
        writer.writeheader()
        writer.writerows(rows_of(more))
    print("| rows | peak, MB | rows/s |")
    print("| --- | ---: | ---: |")
    with waiting_server() as url:
        for name, source, count in (
            (f"{rows:,} of an iterator", "iterator", rows),
            (f"{more:,} of a CSV, {rows:,} of them kept", str(table), more),
        ):
            given = [url, source, str(count), str(folder / "many.jsonl")]
            done = subprocess.run(
                [sys.executable, __file__, "--remember", *given],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            peak, speed = done.stdout.split()
            print(f"| {name} | {peak} | {int(speed):,} |")
    print("\nBefore `to_dataframe()`; answered at once by a server in Python.")


def main() -> None:
    """Measure in turn and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and rows")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--remember", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    if options.remember:
        url, source, count, out = options.remember
        remember(url, source, int(count), out)
        return
    quick = options.quick
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print_throughput(3 if quick else 15, 32, folder)
        print_finishing_time(2 if quick else 10, 4000, folder)
        print_memory(10_000 if quick else 100_000, folder)


if __name__ == "__main__":
    main()
