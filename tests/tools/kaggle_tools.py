"""Kaggle for tests: its program and a stand-in for its service, images, folders.

Kaggle's program is the real one, in an environment of its own. It can be told to speak
plain HTTP to "localhost", and it obeys ``http_proxy``: so what it sends arrives at a
server on whatever port is free, and nothing else can be reached.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv"
USER = "somebody"


@dataclass
class StandInKaggle:
    """What Kaggle's program sent to a stand-in for Kaggle's service.

    Attributes:
        port: Where it is a proxy.
        requests: The requests' names and what they said, in order.
        uploads: The uploaded files, by name.
        answers: Answers that differ from the usual ones, by the request's name.
    """

    port: int = 0
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def said(self, name: str) -> list[dict[str, Any]]:
        """Return what the requests of a name said."""
        return [what for called, what in self.requests if called == name]

    def answer(self, name: str, what: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of the answer to a request."""
        if name in self.answers:
            return 200, self.answers[name]
        if name == "SaveKernel":
            url = f"https://www.kaggle.com/code/{what['slug']}"
            return 200, {"ref": what["slug"], "url": url, "versionNumber": 1}
        if name == "StartBlobUpload":
            url = f"http://uploads.invalid/{what['name']}"
            return 200, {"token": f"token of {what['name']}", "createUrl": url}
        if name in ("CreateDataset", "CreateDatasetVersion"):
            return 200, {"status": "ok", "url": "https://www.kaggle.com/datasets"}
        return 404, {"code": 404, "message": f"there is no {name} here"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kaggle: StandInKaggle

    def do_POST(self) -> None:
        name = urlsplit(self.path).path.rpartition("/")[2]
        what = json.loads(self._body() or b"{}")
        self.kaggle.requests.append((name, what))
        self._send(*self.kaggle.answer(name, what))

    def do_PUT(self) -> None:
        self.kaggle.uploads[urlsplit(self.path).path.lstrip("/")] = self._body()
        self._send(200, {})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Say nothing."""


@contextlib.contextmanager
def stand_in_kaggle() -> Iterator[StandInKaggle]:
    """Serve a stand-in for Kaggle's service for as long as this lasts."""
    kaggle = StandInKaggle()
    handler = type("Handler", (_Handler,), {"kaggle": kaggle})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    kaggle.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield kaggle
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def kaggle_program() -> Path | None:
    """Return Kaggle's own program, in the environment that the Makefile makes."""
    path = ENVIRONMENTS / "kaggle" / "bin" / "kaggle"
    return path if path.is_file() else None


def variables_for(program: Path, kaggle: StandInKaggle, home: Path) -> dict[str, str]:
    """Return the variables with which Kaggle's program speaks to the stand-in.

    Args:
        program: Kaggle's program.
        kaggle: The stand-in.
        home: An empty folder.
    """
    return {
        "PATH": f"{program.parent}:/usr/bin:/bin",
        "HOME": str(home),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "KAGGLE_USERNAME": USER,
        "KAGGLE_KEY": "a-word-for-the-stand-in",
        "http_proxy": f"http://127.0.0.1:{kaggle.port}",
        "https_proxy": "http://127.0.0.1:9",  # nobody answers there
    }


def image_environment(name: str) -> Path | None:
    """Return the environment with an image's versions that the Makefile makes."""
    folder = ENVIRONMENTS / f"image-{name}"
    return folder if (folder / "installed").is_file() else None


def versions_in(environment: Path) -> dict[str, str]:
    """Return the version of each package that is installed in an environment."""
    python = environment / "bin" / "python"
    said = subprocess.run(
        [python, "-I", "-c", _VERSIONS], check=True, capture_output=True, text=True
    )
    found: dict[str, str] = json.loads(said.stdout)
    return found


_VERSIONS = (
    "import importlib.metadata as m, json;"
    "print(json.dumps({d.name: d.version for d in m.distributions()}))"
)


# A root folder like this machine's, with folders of a notebook service added. What is
# written into the environment lies in memory, over what is there, and goes with the
# command. Nothing of it is seen outside.
_WORLD = """
set -e
world=$1 folders=$2 environment=$3; shift 3
mount -t tmpfs world "$world"
for path in /*; do
  if [ -L "$path" ]; then cp -P "$path" "$world"
  elif [ -d "$path" ]; then mkdir "$world$path"; mount --rbind "$path" "$world$path"
  else touch "$world$path"; mount --bind "$path" "$world$path"; fi
done
for path in "$folders"/*; do
  name=/$(basename "$path")
  mkdir -p "$world$name"
  mount --bind "$path" "$world$name"
done
if [ -d "$folders/kaggle" ]; then
  mount --bind "$folders/kaggle/input" "$world/kaggle/input"
  mount -o remount,bind,ro "$world/kaggle/input"
  mount -t tmpfs -o size=20m output "$world/kaggle/working"
fi
mkdir "$world/.over" "$world/.over/new" "$world/.over/work"
mount -t overlay -o "lowerdir=$environment,upperdir=$world/.over/new,\
workdir=$world/.over/work" environment "$world$environment"
ip link set lo up
exec chroot "$world" "$@"
"""

_RUN_NOTEBOOK = """
import json, os, subprocess, sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], 4)
for cell in notebook.cells:
    if cell.cell_type == "code":
        cell.outputs, cell.execution_count = [], None
client = NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=True)
client.execute()
left = {
    os.path.join(place, name): os.path.getsize(os.path.join(place, name))
    for place, _, names in os.walk(".")
    for name in names
}
versions = subprocess.check_output([sys.executable, "-I", "-c", sys.argv[2]])
found = {"cells": notebook.cells, "left": left, "versions": json.loads(versions)}
json.dump(found, sys.stdout)
"""


def notebook_in_a_world(
    world: Path, folders: Path, environment: Path, notebook: Path, where: str
) -> list[str]:
    """Return a command that runs a notebook as if on a notebook service.

    ``/kaggle/input`` is read-only there and ``/kaggle/working`` has 20 MB; the network
    is loopback alone. What the notebook installs is gone afterwards. The command prints
    the cells, the sizes of the files left in the folder, and the versions of what is
    installed by then, as JSON.

    Args:
        world: An empty folder.
        folders: What is added: its folders appear in the root folder.
        environment: Whose Python and kernel.
        notebook: What runs; it is not changed. Its stored outputs count for nothing.
        where: The folder it runs in.
    """
    isolated = ["unshare", "--mount", "--net"]
    if os.geteuid() != 0:
        isolated += ["--map-root-user"]
    environment = environment.resolve()
    places = [str(world), str(folders), str(environment)]
    python = str(environment / "bin" / "python")
    run = [python, "-c", _RUN_NOTEBOOK, str(notebook), _VERSIONS]
    return [*isolated, "sh", "-c", _WORLD, "sh", *places, "env", "-C", where, *run]
