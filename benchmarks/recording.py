"""What recording costs: CPU time of this process per chunk, off and on in turns.

A canned answer of 20,000 chunks is streamed through the client without a network, so
that nothing but our own work is counted. Four ways take turns, 20 times: not recorded,
the same again (their difference is what cannot be measured), recorded, and recorded
with its text. The cost is the median of the differences between neighbours.

What that takes of tokens per second is computed: at 70 tokens/s in each of several
streams, so many chunks a second times the cost is the part of one core that recording
takes from everything else.

    python benchmarks/recording.py [--json PATH]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llamatelemetry._exchange import Reply
from llamatelemetry.api._transport import Transport
from llamatelemetry.api.client import LlamaCppClient, client_over
from llamatelemetry.telemetry import record

CHUNKS = 20_000
ROUNDS = 20
PER_BLOCK = 2  # chunks that come in one piece
RATE = 70  # tokens a second in a stream
STREAMS = (1, 4, 8, 16)
BOUND_MICROSECONDS = 5.0
BOUND_SHARE = 0.01
MESSAGES = [{"role": "user", "content": "Hello!"}]
WAYS = ("off", "off again", "on", "on, with text")


def chunk(**changes: Any) -> bytes:
    """Return an event as llama-server writes it."""
    whole = {
        "choices": [{"finish_reason": None, "index": 0, "delta": {"content": " word"}}],
        "created": 1795376873,
        "id": "chatcmpl-wj7c1aomVDnJ226nxbYKgwhKWOiwFHZw",
        "model": "tiny",
        "system_fingerprint": "b0-unknown",
        "object": "chat.completion.chunk",
    } | changes
    return b"data: " + json.dumps(whole).encode() + b"\n\n"


USAGE = {"prompt_tokens": 9, "completion_tokens": CHUNKS, "total_tokens": CHUNKS + 9}
BLOCKS = [chunk() * PER_BLOCK] * (CHUNKS // PER_BLOCK)
LAST = chunk(choices=[], usage=USAGE) + b"data: [DONE]\n\n"


class CannedReply:
    """A reply that is here already."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {"Content-Type": "text/event-stream"}
        self.server = "http://127.0.0.1:1"
        self.opened = self.reached = False
        self._blocks = iter([*BLOCKS, LAST])

    def open(self) -> int:
        """Begin."""
        self.opened, self.status = True, 200
        return self.status

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._blocks)

    def read(self) -> bytes:
        """Return the rest."""
        return b"".join(self)

    def finish(self, within: float = 0.25) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def again(self) -> None:
        """There is no other server."""


class Canned:
    """Sends nothing, and has the answer."""

    base_url = "http://127.0.0.1:1"

    def request(self, *_: Any, **__: Any) -> Reply:
        """Return an empty reply."""
        return Reply(200, {}, b"{}")

    def stream(self, *_: Any, **__: Any) -> CannedReply:
        """Return the answer."""
        return CannedReply()

    def close(self) -> None:
        """Do nothing."""


def measure_once(client: LlamaCppClient, way: str) -> float:
    """Return CPU microseconds per chunk of one answer."""
    recording = (
        record(client, text="text" in way)
        if way.startswith("on")
        else contextlib.nullcontext()
    )
    with recording as timeline:
        gc.collect()
        began = time.process_time()
        count = sum(1 for _ in client.chat_completion_stream(MESSAGES))
        spent = time.process_time() - began
    assert count == CHUNKS, count
    if timeline is not None:
        assert len(timeline.requests[0].chunk_times or ()) == CHUNKS
    return spent / count * 1e6


def measure() -> list[dict[str, Any]]:
    """Return a row for each way; they take turns, each time in another order."""
    client = client_over(Transport(Canned(), 30, 5, None, None))
    costs: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS:  # what is loaded the first time is no cost of a chunk
        measure_once(client, way)
    for number in range(ROUNDS):
        turn = number % len(WAYS)
        for way in (*WAYS[turn:], *WAYS[:turn]):
            costs[way].append(measure_once(client, way))
    rows = []
    for way in WAYS:
        pairs = zip(costs[way], costs["off"], strict=True)
        added = sorted(one - other for one, other in pairs)
        rows.append(
            {
                "way": way,
                "cpu_us_per_chunk": round(statistics.median(costs[way]), 2),
                "added_us": round(statistics.median(added), 3),
                "added_quartiles_us": [
                    round(added[len(added) // 4], 3),
                    round(added[-len(added) // 4], 3),
                ],
            }
        )
    return rows


def shares(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the cost takes of one core at several numbers of streams."""
    cost = max(row["added_us"] for row in rows)
    return [
        {
            "streams": streams,
            "chunks_per_second": streams * RATE,
            "share": round(streams * RATE * cost / 1e6, 6),
        }
        for streams in STREAMS
    ]


def main() -> None:
    """Measure, print two tables, and write the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    rows = measure()
    taken = shares(rows)
    print("| recording | CPU us/chunk | added | quartiles |")
    print("| --- | --- | --- | --- |")
    for row in rows:
        low, high = row["added_quartiles_us"]
        print(
            f"| {row['way']} | {row['cpu_us_per_chunk']} | {row['added_us']:+} us "
            f"| {low:+} to {high:+} us |"
        )
    print(f"\nBound: {BOUND_MICROSECONDS} us per chunk.\n")
    print(f"| streams of {RATE} tokens/s | chunks/s | of one core |")
    print("| --- | --- | --- |")
    for row in taken:
        print(f"| {row['streams']} | {row['chunks_per_second']} | {row['share']:.3%} |")
    print(f"\nBound: {BOUND_SHARE:.0%} of tokens/s.")
    if arguments.json:
        whole = {"costs": rows, "shares": taken}
        arguments.json.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
