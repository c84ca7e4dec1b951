"""A program that speaks llama-server's HTTP API and misbehaves on demand.

Run it as a child: it binds a free port of loopback, prints the port as its first line,
and ends when its standard input is closed. How a request is answered is written in the
first part of its path, as options joined by commas::

    http://127.0.0.1:PORT/tokens=3,pace=0.1,end=cut/v1/chat/completions

so that a client is aimed at a behaviour by its base URL; a request's body may hold
more of them in ``stand_in``. ``GET /seen`` answers what was asked for so far,
``GET /seen?PART`` only what has this part in its target. It shares no code with the
package that it tests.

All waiting is counted from the moment in which a request came: what is late once makes
nothing after it late.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

DEFAULTS: dict[str, Any] = {
    "status": 200,  # of the answer
    "answer": "",  # garbage, html, list, text: a body that is not the API's
    "error": "",  # type of the error that goes with a bad status
    "before": 0.0,  # seconds before the first byte of the answer
    "tokens": 3,  # how many pieces of text
    "texts": "",  # a JSON file of texts, "/" as %2F: one named is told, another echoed
    "thoughts": 0,  # how many pieces of thinking before them
    "pace": 0.0,  # seconds before each piece
    "steps": 0,  # 1: each piece waits until its address is asked for /health once more
    "hush": 0.0,  # seconds of silence after the first piece
    "ping": 0.0,  # seconds between pings in that silence; 0 for none
    "progress": 0,  # chunks of progress before the first piece
    "calls": 0,  # tool calls instead of text
    "choices": 1,  # answers
    "chunked": 1,  # 0: the body ends with the connection
    "write": 0,  # bytes per write; 0 for a whole event
    "line": "lf",  # lf, cr or crlf
    "finish": "stop",  # finish reason
    "end": "done",  # done, none, cut, reset, hang, error, olderror, badjson, ...
    "server": "stand-in",  # what it says it is
    "close": 0,  # 1: say keep-alive, and close all the same; 2: say so
    "tag": "",  # nothing; makes two addresses differ
    "drop": 0,  # this many first requests of a path are dropped unanswered
    "die": "",  # at once, begun or spoken: when the whole program ends by SIGKILL
    "deaf": 0,  # 1: it answers, and takes no more connections after that
    "obeys": 0,  # 1: new scales of adapters are taken; 0: the answer is a strange one
    "once": "",  # a file: it dies only while there is none, and makes it
}

CLOSE_AS_SAID = 2
LINE_ENDS = {"lf": b"\n", "cr": b"\r", "crlf": b"\r\n"}
ERRORS = {
    401: ("authentication_error", "Invalid API Key"),
    404: ("not_found_error", "File Not Found"),
    501: (
        "not_supported_error",
        "This server does not support embeddings. Start it with `--embeddings`",
    ),
    503: ("unavailable_error", "Loading model"),
}


class Options(dict[str, Any]):
    """The options of one request."""

    @classmethod
    def read(cls, path: str) -> tuple[Options, str]:
        """Split a path into its options and what the API would see."""
        options = cls(DEFAULTS)
        first, _, rest = path.removeprefix("/").partition("/")
        if "=" not in first or "?" in first:
            return options, path
        options.add(first)
        return options, "/" + rest

    def add(self, pairs: str) -> None:
        """Take in options joined by commas."""
        for pair in pairs.split(","):
            key, _, value = pair.partition("=")
            self[key] = type(DEFAULTS[key])(unquote(value))


class Handler(socketserver.StreamRequestHandler):
    """Answers the requests of one connection."""

    server: Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Answer until the client or an option ends the connection."""
        with contextlib.suppress(ConnectionError):
            while self.answer_one():
                pass

    def answer_one(self) -> bool:
        """Answer one request; return whether the connection lives on."""
        request = self.rfile.readline().decode().split()
        if not request:
            return False
        self.due = time.monotonic()
        headers: dict[str, str] = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = self.rfile.read(int(headers.get("content-length", 0)))
        self.options, path = Options.read(request[1])
        asked = json.loads(body) if body else None
        if asked and "stand_in" in asked:
            self.options.add(asked["stand_in"])
        if path.partition("?")[0] == "/seen":
            part = path.partition("?")[2]
            return self.send_json(
                [entry for entry in self.server.seen if part in entry["target"]]
            )
        repeated = sum(request[1] == old["target"] for old in self.server.seen)
        self.entry = {
            "method": request[0],
            "target": request[1],
            "path": path,
            "headers": headers,
            "body": asked,
            "connection": self.client_address[1],
            "hung_up_after": None,
        }
        self.server.seen.append(self.entry)
        if repeated < self.options["drop"]:
            return False
        self.due += self.options["before"]
        time.sleep(max(0.0, self.due - time.monotonic()))
        self.die("at once")
        alive = self.answer(path, self.entry["body"] or {})
        if self.options["deaf"]:
            self.server.shutdown()
            self.server.server_close()
            return False
        return alive and not self.options["close"]

    def die(self, moment: str) -> None:
        """End the program if this is the moment the options name."""
        mark = self.options["once"]
        if self.options["die"] != moment or (mark and Path(mark).exists()):
            return
        if mark:
            Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def answer(self, path: str, body: Any) -> bool:
        """Answer in the way the options say, else as the API does."""
        options = self.options
        if options["answer"]:
            return self.send_strange(options["answer"])
        if options["status"] != 200:
            return self.send_error()
        if path in ("/v1/chat/completions", "/v1/completions"):
            return self.send_stream("chat" in path, body)
        if options["obeys"] and (path, self.entry["method"]) == (
            "/lora-adapters",
            "POST",
        ):
            return self.send_json({"success": True})
        if path == "/v1/embeddings":
            packed = struct.pack("<3f", 1.0, 2.0, 3.0).hex()
            vectors = [bytes.fromhex(packed), [1.0, 2.0, 3.0]]
            return self.send_json(embeddings(body, vectors))
        return self.send_json(OTHER.get(path, {"status": "ok"}))

    def send_error(self) -> bool:
        """Send an error in llama-server's shape."""
        status = self.options["status"]
        kind, message = ERRORS.get(status, ("invalid_request_error", "no"))
        error = {"code": status, "message": message, "type": kind}
        if self.options["error"]:
            error |= {"type": self.options["error"]}
            error |= {"n_prompt_tokens": 6002, "n_ctx": 512}
        return self.send_json({"error": error}, status=status)

    def send_strange(self, name: str) -> bool:
        """Send a body that is not the API's."""
        bodies = {
            "garbage": b"\xff\xfe{{{",
            "html": b"<html>proxy error</html>",
            "empty": b"",
            "list": b"[1, 2]",
            "texterror": b'{"error": "plain words"}',
        }
        kind = "text/html" if name == "html" else "application/json"
        return self.send_whole(bodies[name], kind, self.options["status"])

    def send_json(self, value: Any, status: int = 200) -> bool:
        """Send a JSON body."""
        return self.send_whole(json.dumps(value).encode(), "application/json", status)

    def send_whole(self, body: bytes, kind: str, status: int) -> bool:
        """Send a body whose length is known; cut in half by ``end=cut``."""
        keep = "Keep-Alive: timeout=5, max=100"
        if self.options["close"] == CLOSE_AS_SAID:
            keep = "Connection: close"
        head = (
            f"HTTP/1.1 {status} Some Reason\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n{keep}\r\n"
            "Location: http://elsewhere.invalid/\r\n\r\n"
        )
        if self.options["end"] == "cut":
            self.wfile.write(head.encode() + body[: len(body) // 2])
            return False
        self.wfile.write(head.encode() + body)
        return True

    def send_stream(self, chat: bool, body: Any) -> bool:
        """Send a generation as server-sent events."""
        ending = "Transfer-Encoding: chunked"
        if not self.options["chunked"]:
            ending = "Connection: close"
        self.wfile.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{ending}\r\n"
            f"Server: {self.options['server']}\r\n"
            "Keep-Alive: timeout=5, max=100\r\n\r\n".encode()
        )
        started = time.monotonic()
        self.die("begun")
        try:
            return self.send_events(chat, body)
        except ConnectionError:
            self.entry["hung_up_after"] = time.monotonic() - started
            raise

    def send_events(self, chat: bool, body: Any) -> bool:
        """Send all events of a generation, then the end the options ask for."""
        options = self.options
        for number in range(options["progress"]):
            done = {"total": 10, "cache": 2, "processed": 2 + number, "time_ms": 1}
            self.send_event(chunk(chat, role=True) | {"prompt_progress": done})
        self.send_event(chunk(chat, role=True))
        for number, piece in enumerate(pieces(options, body)):
            choices = range(options["choices"])
            events = [self.event(chunk(chat, index=one, **piece)) for one in choices]
            self.wait(options["pace"])
            if options["steps"]:
                self.wait_for_step(number)
            if number == 1:
                self.die("spoken")
            for event in events:
                self.send_bytes(event)
            if number == 0 and options["hush"]:
                self.wait(options["hush"], ping=options["ping"])
        return self.send_end(chat, body)

    def send_end(self, chat: bool, body: Any) -> bool:
        """End the stream in the way the options say; "done" is as it should be."""
        end = self.options["end"]
        if end in ("cut", "reset", "none"):
            if end == "reset":  # closing with a linger of 0 s sends RST
                linger = struct.pack("ii", 1, 0)
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            if end == "none" and self.options["chunked"]:
                self.wfile.write(b"0\r\n\r\n")
            return False
        if end in FAULTS:
            self.send_bytes(FAULTS[end].replace(b"\n", self.line_end()))
            return self.send_last()
        for choice in range(self.options["choices"]):
            self.send_event(chunk(chat, index=choice, finish=self.options["finish"]))
        if body.get("stream_options", {}).get("include_usage"):
            self.send_event(chunk(chat) | {"choices": [], **COST})
        self.send_bytes(b"data: [DONE]" + 2 * self.line_end())
        if end == "hang":
            time.sleep(30)
        return self.send_last()

    def send_last(self) -> bool:
        """End the body; return whether the connection lives on."""
        if self.options["chunked"]:
            self.wfile.write(b"0\r\n\r\n")
        return bool(self.options["chunked"])

    def line_end(self) -> bytes:
        """Return what ends a line."""
        return LINE_ENDS[self.options["line"]]

    def send_event(self, value: Any) -> None:
        """Send one event."""
        self.send_bytes(self.event(value))

    def event(self, value: Any) -> bytes:
        """Return one event as it is sent."""
        return b"data: " + json.dumps(value).encode() + 2 * self.line_end()

    def send_bytes(self, data: bytes) -> None:
        """Send bytes of the body, in as many writes as the options ask for."""
        size = self.options["write"] or len(data)
        for start in range(0, len(data), size):
            part = data[start : start + size]
            if self.options["chunked"]:
                part = b"%x\r\n%s\r\n" % (len(part), part)
            self.wfile.write(part)

    def wait(self, seconds: float, ping: float = 0.0) -> None:
        """Wait, with pings or without; notice a client that hangs up."""
        self.due += seconds
        while (left := self.due - time.monotonic()) > 0:
            # To the microsecond: a socket's own timeout is rounded up to milliseconds.
            if select.select([self.request], [], [], min(left, ping or left))[0]:
                if not self.request.recv(1, socket.MSG_PEEK):
                    raise ConnectionResetError
            elif ping:
                self.send_bytes(b":" + 2 * self.line_end())

    def wait_for_step(self, done: int) -> None:
        """Wait until /health was asked for more often than pieces were sent."""
        address = self.entry["target"].removesuffix(self.entry["path"]) + "/health"
        while sum(old["target"] == address for old in self.server.seen) <= done:
            self.due = time.monotonic()
            self.wait(0.005)


FAULTS = {
    "error": (
        b'data: {"error":{"code":500,"message":"out of slots","type":"server_error"}}'
        b"\n\n"
    ),
    "olderror": b'error: {"code":500,"message":"old words","type":"server_error"}\n\n',
    "badjson": b"data: {nonsense\n\n",
    "twojson": b"data: {} {}\n\n",
    "notobject": b"data: [1]\n\n",
    "wrongshape": b'data: {"choices": 7}\n\n',
}

COST = {
    "usage": {
        "completion_tokens": 3,
        "prompt_tokens": 10,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 2},
    },
    "timings": {
        "cache_n": 2,
        "prompt_n": 8,
        "prompt_ms": 4.0,
        "predicted_n": 3,
        "predicted_per_second": 50.0,
        "new_key": 7,
    },
}

OTHER: dict[str, Any] = {
    "/v1/rerank": {
        "model": "m",
        "object": "list",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
        "results": [
            {"index": 1, "relevance_score": 2.5},
            {"index": 0, "relevance_score": -1.5},
        ],
    },
    "/slots/1?action=save": {
        "id_slot": 1,
        "filename": "a.bin",
        "n_saved": 5,
        "n_written": 100,
        "timings": {"save_ms": 0.5},
    },
    "/slots/1?action=restore": {
        "id_slot": 1,
        "filename": "a.bin",
        "n_restored": 5,
        "n_read": 100,
        "timings": {"restore_ms": 0.5},
    },
    "/slots/1?action=erase": {"id_slot": 1, "n_erased": 5},
    "/lora-adapters": [{"id": 0, "path": "a.gguf", "scale": 1.0, "task_name": "t"}],
}


def pieces(options: Options, body: Any) -> list[dict[str, Any]]:
    """Return what the answer consists of, piece by piece."""
    if options["texts"]:
        asked = body["messages"][-1]["content"]
        text = json.loads(Path(options["texts"]).read_text()).get(asked, asked)
        size = max(7, len(text) // 50)
        parts = range(0, len(text), size)
        return [{"text": text[start : start + size]} for start in parts]
    if options["calls"]:
        return [
            {"calls": [{"index": call, "function": {"arguments": part}, **head}]}
            for call in range(options["calls"])
            for part, head in (
                ("", {"id": f"c{call}", "type": "function"}),
                ('{"a":', {}),
                ("1}", {}),
            )
        ]
    thoughts = [{"thought": f"t{number} "} for number in range(options["thoughts"])]
    return thoughts + [{"text": f"w{number} "} for number in range(options["tokens"])]


def chunk(
    chat: bool,
    *,
    index: int = 0,
    role: bool = False,
    text: str | None = None,
    thought: str | None = None,
    calls: list[Any] | None = None,
    finish: str | None = None,
) -> dict[str, Any]:
    """Return one chunk as llama-server writes it, with a key of tomorrow."""
    choice: dict[str, Any] = {"index": index, "finish_reason": finish}
    if not chat:
        choice |= {"text": text or thought or "", "logprobs": None}
    else:
        delta: dict[str, Any] = {"role": "assistant", "content": None} if role else {}
        if text is not None:
            delta["content"] = text
        if thought is not None:
            delta["reasoning_content"] = thought
        if calls is not None:
            if "id" in calls[0]:
                calls[0]["function"]["name"] = "look_up"
            delta["tool_calls"] = calls
        choice["delta"] = delta
    return {
        "choices": [choice],
        "created": 1795376873,
        "id": "chatcmpl-1",
        "model": "stand-in",
        "system_fingerprint": "b0-unknown",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "tomorrow": 1,
    }


def embeddings(body: Any, vectors: list[Any]) -> dict[str, Any]:
    """Return embeddings, the first one in base64."""
    import base64

    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    items = []
    for index, _ in enumerate(texts):
        vector = vectors[min(index, 1)]
        if isinstance(vector, bytes):
            vector = base64.b64encode(vector).decode()
        items.append({"embedding": vector, "index": index, "object": "embedding"})
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return {"model": "m", "object": "list", "usage": usage, "data": items}


class Server(socketserver.ThreadingTCPServer):
    """Listens on a port of loopback, any free one, and remembers what it was asked."""

    allow_reuse_address = True
    request_queue_size = 128
    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.seen: list[dict[str, Any]] = []


def main() -> None:
    """Serve until standard input is closed."""
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
