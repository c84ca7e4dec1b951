"""A server that speaks the Hub's protocol, with its CDN on another origin.

Two addresses of loopback: the *hub* answers ``HEAD`` and ``GET
/{repository}/resolve/{revision}/{file}`` and ``/api/models/...``; the *cdn* gives the
bytes of large files to those who come with a signature that still holds. Everything
that came in is kept in ``requests``, with the body bytes that went out for it.

How it misbehaves is set on the object: attributes for what it does all the time,
:meth:`StandInHub.fail_next` for single replies. It shares no code with the package
that it tests, and with huggingface_hub only the protocol.

``python stand_in_hub.py FOLDER`` serves the folder's files as the repository
``stand-in/folder`` and prints the endpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

BLOCK = 65536
CODE_TEXTS = {
    "GatedRepo": "Access to this model is restricted. Ask for access on its page.",
    "RepoNotFound": "Repository not found",
    "EntryNotFound": "Entry not found",
    "RevisionNotFound": "Invalid rev id",
}


@dataclass
class HubFile:
    """One file: what it begins with, and how many zero bytes follow.

    Attributes:
        beginning: The first bytes.
        zeros: How many zero bytes follow, so that a file of GB costs nothing.
        large: Whether it is kept on the CDN, as the Hub keeps large files.
        sha256: The true digest, where zeros follow and somebody has counted.
    """

    beginning: bytes
    zeros: int = 0
    large: bool = True
    sha256: str | None = None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.beginning) + self.zeros

    @property
    def digest(self) -> str:
        """What stands for its SHA-256; the true one where no zeros follow."""
        if self.sha256 is not None:
            return self.sha256
        tail = f"+{self.zeros}".encode() if self.zeros else b""
        return hashlib.sha256(self.beginning + tail).hexdigest()

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes of a range."""
        while start < stop:
            end = min(start + BLOCK, stop)
            piece = self.beginning[start:end]
            yield piece + bytes(end - start - len(piece))
            start = end


@dataclass
class Repository:
    """The files of one repository at one commit.

    Attributes:
        commit: The commit that ``main`` names.
        files: The files by their path.
        gated: Whether files are given only to those with an accepted token.
        private: Whether the repository seems missing to everybody else.
    """

    commit: str
    files: dict[str, HubFile] = field(default_factory=dict)
    gated: bool = False
    private: bool = False


@dataclass
class Fault:
    """One wrong reply.

    Attributes:
        origin: "hub" or "cdn".
        kind: "status"; "drop": the connection is reset in the middle, which loses what
            the client has not read yet; "cut": it is closed in the middle; "stall": it
            stays open and nothing more comes; "short": fewer bytes, and as many stated;
            "flip": one bit of one byte is another.
        status: The status of the reply.
        headers: Its headers.
        after: Body bytes before it happens; negative ones from the end.
    """

    origin: str
    kind: str
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0


@dataclass
class Request:
    """A request that came in.

    Attributes:
        origin: "hub" or "cdn".
        method: ``GET``, ``HEAD``, ...
        path: The path without the query.
        target: The path with the query.
        headers: The headers, names in lower case.
        status: The status of the reply.
        sent: Bytes of its body handed to the connection.
    """

    origin: str
    method: str
    path: str
    target: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class StandInHub:
    """A running Hub and its CDN.

    Attributes:
        url: The endpoint, for ``HF_ENDPOINT``.
        cdn_url: The origin of the CDN.
        repositories: What there is, by name.
        requests: What came in, in order.
        token: The token that opens private and gated repositories.
        ranges: What ranges are worth on the CDN and for small files: "honoured";
            "ignored" (200 and the whole file); "shifted" (a wrong Content-Range);
            "short" (100 kB of it at most); "crumbs" (one byte of it); "endless"
            (more bytes than stated).
        signature_uses: How many requests a signature holds for; None for any number.
        redirects: How many hops of redirects come before the CDN.
        endless_redirects: Whether the hops lead in a circle.
        etags: Whether replies carry an ETag.
        encoding: A Content-Encoding that replies claim.
        meet: How many requests for bytes must have come to the CDN before it answers.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.token = "hf_secret_of_the_stand_in"
        self.ranges = "honoured"
        self.signature_uses: int | None = None
        self.redirects = 1
        self.endless_redirects = False
        self.etags = True
        self.encoding = ""
        self.meet = 1
        self._faults: deque[Fault] = deque()
        self._signatures: dict[str, int] = {}
        self._numbers = itertools.count(1)
        self.lock = threading.Lock()
        self._servers = {name: _Server(self, name) for name in ("hub", "cdn")}
        self.url = self._servers["hub"].url
        self.cdn_url = self._servers["cdn"].url

    def __enter__(self) -> Self:
        for server in self._servers.values():
            server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for server in self._servers.values():
            server.stop()

    def add(
        self, repository: str, path: str, data: bytes, *, zeros: int = 0, **more: Any
    ) -> HubFile:
        """Put a file into a repository, which is made if it is not there yet.

        Args:
            repository: ``owner/name``.
            path: The file's path in it.
            data: What the file begins with.
            zeros: How many zero bytes follow.
            more: ``large`` and ``sha256`` of the file; ``gated`` and ``private`` of the
                repository.
        """
        file = HubFile(
            data, zeros, more.pop("large", True), sha256=more.pop("sha256", None)
        )
        made = self.repositories.setdefault(
            repository, Repository(hashlib.sha1(repository.encode()).hexdigest())
        )
        made.files[path] = file
        for name, value in more.items():
            setattr(made, name, value)
        return file

    def fail_next(self, origin: str, kind: str, times: int = 1, **more: Any) -> None:
        """Let the next replies of an origin go wrong; see :class:`Fault`."""
        self._faults.extend(Fault(origin, kind, **more) for _ in range(times))

    def next_fault(self, origin: str) -> Fault | None:
        """Take the fault that is due, if there is one."""
        with self.lock:
            if self._faults and self._faults[0].origin == origin:
                return self._faults.popleft()
        return None

    def sign(self) -> str:
        """Return a new signature."""
        with self.lock:
            signature = f"signature-{next(self._numbers)}-of-the-cdn"
            self._signatures[signature] = 0
        return signature

    def expire_signatures(self) -> None:
        """Let no signature given out so far hold any longer."""
        with self.lock:
            self._signatures.clear()

    def accepts(self, signature: str) -> bool:
        """Count a use of a signature, and say whether it still holds."""
        with self.lock:
            uses = self._signatures.get(signature)
            if uses is None:
                return False
            self._signatures[signature] = uses + 1
        return self.signature_uses is None or uses < self.signature_uses

    def seen(self, origin: str, *methods: str) -> list[Request]:
        """Return the requests that came to an origin."""
        return [
            request
            for request in self.requests
            if request.origin == origin and request.method in (methods or ("GET",))
        ]

    def sent(self) -> int:
        """Return the body bytes that went out, over both origins."""
        return sum(request.sent for request in self.requests)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: StandInHub, origin: str) -> None:
        # Another host, not just another port: to some clients ports make no origin.
        host = "127.0.0.1" if origin == "hub" else "127.0.0.2"
        super().__init__((host, 0), _Handler)
        self.hub = hub
        self.origin = origin
        self.url = f"http://{host}:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._open: set[socket.socket] = set()
        self.stopping = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self._open):  # kept alive by a client
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *anything: Any) -> None:
        """Write nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        """Answer one request."""
        self.hub = self.server.hub
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.entry = Request(
            self.server.origin,
            self.command,
            unquote(parts.path),
            self.path,
            headers,
        )
        with self.hub.lock:
            self.hub.requests.append(self.entry)
        self.query = parse_qs(parts.query)
        fault = self.hub.next_fault(self.server.origin)
        if fault is not None and fault.kind == "status":
            self.reply(fault.status, fault.headers, b"it went wrong, as it was told to")
            return
        self.fault = fault
        if self.server.origin == "cdn":
            self.answer_cdn()
        elif self.entry.path.startswith("/api/models/"):
            self.answer_api(self.entry.path.removeprefix("/api/models/"))
        elif self.entry.path.startswith("/buckets/"):
            self.answer_bucket()
        elif self.entry.path == "/api/agent-harnesses":
            # The client's telemetry asks for it once a day.
            self.reply_json({"standardEnvVars": [], "harnesses": {}})
        else:
            self.answer_resolve()

    # The Hub

    def repository(self, name: str) -> Repository | None:
        """Return a repository that may be seen; else answer, and return None."""
        known = self.hub.repositories.get(name)
        if known is None or (known.private and not self.authorised()):
            self.refuse(404 if self.authorised() else 401, "RepoNotFound")
            return None
        return known

    def authorised(self) -> bool:
        return self.entry.headers.get("authorization") == f"Bearer {self.hub.token}"

    def answer_resolve(self) -> None:
        match = re.fullmatch(
            r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.entry.path, re.DOTALL
        )
        if match is None:
            self.reply(404, {}, b"no such page")
            return
        name, revision, path = match.groups()
        repository = self.repository(name)
        if repository is None:
            return
        commit = {"X-Repo-Commit": repository.commit}
        if revision not in ("main", repository.commit):
            self.refuse(404, "RevisionNotFound")
        elif repository.gated and not self.authorised():
            self.refuse(401, "GatedRepo")
        elif path not in repository.files:
            self.refuse(404, "EntryNotFound", commit)
        elif repository.files[path].large:
            self.redirect(repository.files[path], name, path, commit)
        else:
            file = repository.files[path]
            self.give(file, {**commit, "ETag": f'"{file.digest[:40]}"'})

    def answer_bucket(self) -> None:
        """Answer for a file of a bucket, which has no commits."""
        match = re.fullmatch(r"/(buckets/[^/]+/[^/]+)/resolve/(.+)", self.entry.path)
        known = self.hub.repositories.get(match[1]) if match else None
        if match is None or known is None or match[2] not in known.files:
            self.reply(404, {}, b"no such file")
            return
        self.redirect(known.files[match[2]], match[1], match[2], {})

    def redirect(
        self, file: HubFile, name: str, path: str, headers: dict[str, str]
    ) -> None:
        hop = int(self.query.get("hop", ["1"])[0])
        if hop < self.hub.redirects or self.hub.endless_redirects:
            location = f"{self.entry.target.split('?')[0]}?hop={hop + 1}"
        else:
            address = f"{self.hub.cdn_url}/{name}/{quote(path)}"
            location = f"{address}?Signature={self.hub.sign()}"
        self.reply(
            302,
            {
                **headers,
                "X-Linked-ETag": f'"{file.digest}"',
                "X-Linked-Size": str(file.size),
                "ETag": '"of-the-redirect"',
                "Location": location,
            },
            b"Found. Redirecting to " + location.encode(),
        )

    def answer_api(self, rest: str) -> None:
        match = re.fullmatch(
            r"([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", rest, re.DOTALL
        )
        repository = self.repository(match[1] if match else rest)
        if match is None or repository is None:
            return
        if (match[3] or "main") not in ("main", repository.commit):
            self.refuse(404, "RevisionNotFound")
        elif match[2] == "tree":
            self.reply_json([_row(*item) for item in sorted(repository.files.items())])
        else:
            with_blobs = "blobs" in self.query
            files = sorted(repository.files.items())
            self.reply_json(
                {
                    "_id": "0",
                    "id": match[1],
                    "modelId": match[1],
                    "sha": repository.commit,
                    "private": repository.private,
                    "gated": "manual" if repository.gated else False,
                    "tags": ["gguf"],
                    "downloads": 1,
                    "likes": 0,
                    "siblings": [
                        _sibling(path, file, with_blobs) for path, file in files
                    ],
                }
            )

    # The CDN

    def answer_cdn(self) -> None:
        while len(self.hub.seen("cdn")) < self.hub.meet:
            if self.server.stopping.wait(0.01):
                return
        if not self.hub.accepts(self.query.get("Signature", [""])[0]):
            self.reply(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
            return
        place = self.entry.path.removeprefix("/")
        name = max(
            (name for name in self.hub.repositories if place.startswith(f"{name}/")),
            key=len,
        )
        file = self.hub.repositories[name].files[place.removeprefix(f"{name}/")]
        self.give(file, {"ETag": f'"{file.digest}"'} if self.hub.etags else {})

    # Bytes

    def give(self, file: HubFile, headers: dict[str, str]) -> None:
        """Give a file, or the range of it that was asked for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.entry.headers.get("range", ""))
        headers = {"Accept-Ranges": "bytes", **headers}
        if self.hub.encoding:
            headers["Content-Encoding"] = self.hub.encoding
        if wanted is None or self.hub.ranges == "ignored":
            self.send_blocks(200, headers, file, 0, file.size)
            return
        start = int(wanted[1])
        stop = min(int(wanted[2]) + 1, file.size) if wanted[2] else file.size
        if start >= file.size:
            self.reply(416, {**headers, "Content-Range": f"bytes */{file.size}"}, b"")
            return
        if self.hub.ranges == "short":
            stop = min(stop, start + 100_000)
        if self.hub.ranges == "crumbs":
            stop = start + 1
        shift = 1 if self.hub.ranges == "shifted" else 0
        headers["Content-Range"] = (
            f"bytes {start + shift}-{stop - 1 + shift}/{file.size}"
        )
        if self.hub.ranges == "endless":
            self.close_connection = True
            self.send_blocks(206, headers, file, start, file.size, stated=False)
            return
        self.send_blocks(206, headers, file, start, stop)

    def send_blocks(
        self,
        status: int,
        headers: dict[str, str],
        file: HubFile,
        start: int,
        stop: int,
        *,
        stated: bool = True,
    ) -> None:
        fault = self.fault if self.command == "GET" else None
        kind = fault.kind if fault is not None else ""
        place = fault.after if fault is not None else 0
        place = min(stop, start + place if place >= 0 else stop + place)
        if kind == "short":
            stop = place
        length = {"Content-Length": str(stop - start)} if stated else {}
        self.start_reply(status, {**headers, **length})
        if self.command == "HEAD":
            return
        end = place if kind in ("drop", "cut", "stall") else stop
        position = start
        for right in file.blocks(start, end):
            block = bytearray(right)
            if kind == "flip" and position <= place < position + len(block):
                block[place - position] ^= 1
            position += len(block)
            # Counted before it leaves: who has it must find it counted.
            self.entry.sent += len(block)
            self.wfile.write(block)
        if kind == "stall":
            self.close_connection = True
            self.server.stopping.wait(60)
        if kind == "cut":
            self.close_connection = True
        if kind == "drop":
            self.close_connection = True
            self.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.connection.close()

    def refuse(
        self, status: int, code: str, headers: dict[str, str] | None = None
    ) -> None:
        """Answer with one of the Hub's errors."""
        text = CODE_TEXTS[code]
        told = {"X-Error-Code": code, "X-Error-Message": text, **(headers or {})}
        self.reply(status, told, json.dumps({"error": text}).encode())

    def reply_json(self, value: Any) -> None:
        self.reply(
            200, {"Content-Type": "application/json"}, json.dumps(value).encode()
        )

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.start_reply(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.entry.sent += len(body)
            self.wfile.write(body)

    def start_reply(self, status: int, headers: dict[str, str]) -> None:
        self.entry.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _row(path: str, file: HubFile) -> dict[str, Any]:
    """Return a file's row of the API's tree."""
    row = {"type": "file", "path": path, "size": file.size, "oid": file.digest[:40]}
    if file.large:
        row["lfs"] = {"oid": file.digest, "size": file.size, "pointerSize": 135}
    return row


def _sibling(path: str, file: HubFile, with_blobs: bool) -> dict[str, Any]:
    """Return a file's entry of the API's model."""
    entry: dict[str, Any] = {"rfilename": path}
    if with_blobs:
        entry |= {"size": file.size, "blobId": file.digest[:40]}
        if file.large:
            entry["lfs"] = {
                "sha256": file.digest,
                "size": file.size,
                "pointerSize": 135,
            }
    return entry


if __name__ == "__main__":
    with StandInHub() as running:
        folder = Path(sys.argv[1])
        for found in sorted(folder.rglob("*")):
            if found.is_file():
                relative = str(found.relative_to(folder))
                running.add("stand-in/folder", relative, found.read_bytes())
        print(running.url, flush=True)  # noqa: T201 -- the program's one answer
        sys.stdin.read()
