"""What streaming costs and how late it is, against peers in the same run.

Cost: CPU time of this process per chunk, for 2,000 chunks of about 190 bytes that come
as fast as they can; every client reads the JSON of every chunk. Ours also builds the
typed chunk and puts the answer together.

Lag: from the moment the server writes a chunk to the moment the caller has it, at one
chunk per 50 ms, for replies that are chunked and for replies that are not.

    python benchmarks/streaming.py [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import socketserver
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import urllib3

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llamatelemetry.api.client import LlamaCppClient

CHUNKS = 2000
PACED_CHUNKS = 40
PACE = 0.05
ROUNDS = 7
MESSAGES = [{"role": "user", "content": "Hello!"}]
Client = Callable[[str], Iterator[str]]


class Handler(socketserver.StreamRequestHandler):
    """Streams one answer in the way the path asks for."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Answer the requests of one connection."""
        while request := self.rfile.readline().decode():
            length = 0
            while (line := self.rfile.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            self.rfile.read(length)
            self.chunked = "plain" not in request
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            if self.chunked:
                head += b"Transfer-Encoding: chunked\r\n\r\n"
            else:
                head += b"Connection: close\r\n\r\n"
            self.wfile.write(head)
            self.stream(paced="paced" in request)
            if not self.chunked:
                return

    def stream(self, *, paced: bool) -> None:
        """Write the chunks, their text being the time of writing when paced."""
        for _ in range(PACED_CHUNKS if paced else CHUNKS):
            text = " word"
            if paced:
                time.sleep(PACE)
                text = repr(time.monotonic())
            self.write(json.dumps(chunk(text)).encode())
        self.write(b"[DONE]")
        if self.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def write(self, data: bytes) -> None:
        """Write one event, in an HTTP chunk of its own if chunked."""
        event = b"data: " + data + b"\n\n"
        if self.chunked:
            event = b"%x\r\n%s\r\n" % (len(event), event)
        self.wfile.write(event)


def chunk(text: str) -> dict[str, Any]:
    """Return a chunk as llama-server writes it."""
    return {
        "choices": [{"finish_reason": None, "index": 0, "delta": {"content": text}}],
        "created": 1795376873,
        "id": "chatcmpl-wj7c1aomVDnJ226nxbYKgwhKWOiwFHZw",
        "model": "tiny",
        "system_fingerprint": "b0-unknown",
        "object": "chat.completion.chunk",
    }


def ours(url: str) -> Iterator[str]:
    """Stream with this package."""
    with LlamaCppClient(url) as client:
        for piece in client.chat_completion_stream(MESSAGES):
            yield piece.choices[0].delta.content or ""


def bare(url: str) -> Iterator[str]:
    """Stream with urllib3 and json alone: the least that Python can do."""
    pool = urllib3.PoolManager()
    body = json.dumps({"messages": MESSAGES, "stream": True})
    reply = pool.request(
        "POST", f"{url}/v1/chat/completions", body=body, preload_content=False
    )
    rest = b""
    for block in reply.stream(65536) if "plain" not in url else iter_read1(reply):
        *events, rest = (rest + block).split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data: ")
            if data != b"[DONE]":
                yield json.loads(data)["choices"][0]["delta"]["content"]
    pool.clear()


def iter_read1(reply: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Read what is there, for replies that are not chunked."""
    return iter(lambda: reply.read1(65536), b"")  # type: ignore[attr-defined]


def openai_sdk(url: str) -> Iterator[str]:
    """Stream with the openai SDK."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True
        )
        for piece in stream:
            yield piece.choices[0].delta.content or ""


CLIENTS: dict[str, Client] = {
    "llamatelemetry": ours,
    "urllib3 + json": bare,
    "openai SDK": openai_sdk,
}


def measure_cost(client: Client, url: str) -> float:
    """Return the CPU microseconds per chunk of one answer."""
    started = time.process_time()
    count = sum(1 for _ in client(url))
    assert count == CHUNKS, count
    return (time.process_time() - started) / count * 1e6


def measure_lag(client: Client, url: str) -> float:
    """Return the median lag of one paced answer, in milliseconds."""
    lags = [time.monotonic() - float(sent) for sent in client(url)]
    assert len(lags) == PACED_CHUNKS, len(lags)
    return statistics.median(lags) * 1e3


def measure(root: str) -> list[dict[str, Any]]:
    """Return one row per client; the rounds are interleaved."""
    costs: dict[str, list[float]] = {name: [] for name in CLIENTS}
    for _ in range(ROUNDS):
        for name, client in CLIENTS.items():
            costs[name].append(measure_cost(client, f"{root}/fast"))
    rows: list[dict[str, Any]] = []
    for name, client in CLIENTS.items():
        rows.append(
            {
                "client": name,
                "cpu_us_per_chunk": round(statistics.median(costs[name]), 2),
                "lag_chunked_ms": round(measure_lag(client, f"{root}/paced"), 2),
                "lag_plain_ms": round(measure_lag(client, f"{root}/paced-plain"), 2),
            }
        )
    for row in rows:
        ratio = row["cpu_us_per_chunk"] / rows[1]["cpu_us_per_chunk"]
        row["ratio_to_bare"] = round(ratio, 2)
    return rows


def main() -> None:
    """Measure, print a table, and write the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        rows = measure(f"http://127.0.0.1:{int(server.stdout.readline())}")
        server.stdin.close()
    print("| client | CPU us/chunk | ratio | lag, chunked | lag, not chunked |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['client']} | {row['cpu_us_per_chunk']} | {row['ratio_to_bare']} "
            f"| {row['lag_chunked_ms']} ms | {row['lag_plain_ms']} ms |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def serve() -> None:
    """Serve until standard input is closed; print the port first."""
    import threading  # noqa: PLC0415 -- in the server's process only

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()
