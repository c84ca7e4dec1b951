"""A program that passes for llama-server and misbehaves in the way it is told.

``stand_in_engine.py MODE [llama-server's arguments]``. It speaks the real flags, log
lines and health protocol; only the model is missing. See MODES at the end.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HELP = Path(__file__).parents[1] / "data" / "help" / "b11434.txt"


def log(text: str) -> None:
    """Write one line to stderr at once, as llama-server does."""
    sys.stderr.write(f"0.00.001.000 I {text}\n")
    sys.stderr.flush()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers /health: 503 until `ready_at`, and while it is held; then 200."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    ready_at = 0.0
    held_by: Path | None = None

    def do_GET(self) -> None:
        held = self.held_by is not None and self.held_by.exists()
        ready = time.monotonic() >= self.ready_at and not held
        loading = {"error": {"code": 503, "message": "Loading model"}}
        body = json.dumps({"status": "ok"} if ready else loading).encode()
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing for each request."""


def listen(options: argparse.Namespace, *, loading_seconds: float = 0.0) -> None:
    """Bind, answer 503 for a while, then 200, until a signal comes."""
    Handler.ready_at = time.monotonic() + loading_seconds
    log(f"stand-in: ready at {Handler.ready_at}")
    try:
        server = http.server.ThreadingHTTPServer((options.host, options.port), Handler)
    except OSError:
        log(
            "srv start: couldn't bind HTTP server socket, "
            f"hostname: {options.host}, port: {options.port}"
        )
        log("srv llama_server: exiting due to HTTP server error")
        sys.exit(1)
    log(f"srv load_model: loading model '{options.model}'")
    log(f"srv llama_server: listening on http://{options.host}:{options.port}")
    server.serve_forever()


def good(options: argparse.Namespace) -> None:
    """Do what is expected."""
    listen(options)


def slow(options: argparse.Namespace) -> None:
    """Answer 503 for a second before it is ready."""
    listen(options, loading_seconds=1.0)


def held(options: argparse.Namespace) -> None:
    """Answer 503 for as long as there is the file that the alias names."""
    Handler.held_by = Path(options.alias)
    listen(options)


def noisy(options: argparse.Namespace) -> None:
    """Log 400 KB before it listens: more than a pipe holds."""
    for number in range(4000):
        log(f"noise {number:05d} {'.' * 80}")
    listen(options)


def binary(options: argparse.Namespace) -> None:
    """Log bytes that are no text, and a line without an end."""
    sys.stderr.buffer.write(b"\xff\xfe\x00\x9b31m" * 10_000 + b"\n\r\n")
    listen(options)


def mute(options: argparse.Namespace) -> None:
    """Run for ever and say nothing."""
    signal.pause()


def crash(options: argparse.Namespace) -> None:
    """Die of a signal while loading."""
    log("load_tensors: loading model tensors")
    os.kill(os.getpid(), signal.SIGSEGV)


def out_of_memory(options: argparse.Namespace) -> None:
    """Say what llama.cpp says when a card is full."""
    log(
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 13824.50 MiB on "
        "device 1: cudaMalloc failed: out of memory"
    )
    log("alloc_tensor_range: failed to allocate CUDA1 buffer of size 14496038912")
    log("llama_model_load: error loading model: unable to allocate CUDA1 buffer")
    log("srv llama_server: exiting due to model loading error")
    sys.exit(1)


def old_engine(options: argparse.Namespace) -> None:
    """Refuse an argument, as after llama.cpp has renamed one."""
    sys.stderr.write("error: invalid argument: --fit\n")
    sys.exit(1)


def beaten(options: argparse.Namespace) -> None:
    """Find the port taken between the manager's test and its own bind."""
    log(
        "srv start: couldn't bind HTTP server socket, "
        f"hostname: {options.host}, port: {options.port}"
    )
    sys.exit(1)


def beaten_once(options: argparse.Namespace) -> None:
    """The same at the first start only; the state is a file beside the model."""
    mark = Path(f"{options.model}.beaten")
    if not mark.exists():
        mark.touch()
        beaten(options)
    listen(options)


def immortal(options: argparse.Namespace) -> None:
    """Ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listen(options)


def wrapper(options: argparse.Namespace) -> None:
    """Run the server as a child of its own and wait for it, as a script may."""
    command = [sys.executable, __file__, "good", *sys.argv[2:]]
    sys.exit(subprocess.run(command, check=False).returncode)


def warned(options: argparse.Namespace) -> None:
    """Report a full card, get over it, and become ready once it is not held."""
    log("alloc: allocating 13824.50 MiB on device 1: cudaMalloc failed: out of memory")
    held(options)


def daemon(options: argparse.Namespace) -> None:
    """Leave a process of another group behind that holds the log's pipe, and fail."""
    subprocess.Popen(["sleep", "30"], start_new_session=True)
    log("error: this engine has left somebody behind")
    sys.exit(7)


def closed_output(options: argparse.Namespace) -> None:
    """Close its output and go on."""
    os.close(1)
    os.close(2)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the end
    listen(options)


def tells_key(options: argparse.Namespace) -> None:
    """Log the end of the key as llama-server does, and all of it besides."""
    key = os.environ["LLAMA_API_KEY"]
    log(f"srv  init_listene: api_keys: ****{key[-4:]}")
    log(f"and once more: {key}!")
    listen(options)


def slow_help(options: argparse.Namespace) -> None:
    """Be an engine whose --help takes a second (see main)."""
    listen(options)


def endless_help(options: argparse.Namespace) -> None:
    """Be an engine whose --help takes a minute (see main)."""
    listen(options)


def short_lived(options: argparse.Namespace) -> None:
    """Become ready, and end with 3 when SIGUSR1 comes."""
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(3))
    listen(options)


def talking(options: argparse.Namespace) -> None:
    """Answer the whole API, as stand_in_api.py does.

    With options from the environment, and one more from the alias: "pace=0.1".
    """
    import stand_in_api

    stand_in_api.DEFAULTS["obeys"] = int(os.environ.get("STAND_IN_OBEYS", "1"))
    if "=" in options.alias:
        name, _, value = options.alias.partition("=")
        stand_in_api.DEFAULTS[name] = type(stand_in_api.DEFAULTS[name])(value)
    server = stand_in_api.Server(options.port)
    log(f"srv load_model: loading model '{options.model}'")
    log(f"srv llama_server: listening on http://{options.host}:{options.port}")
    server.serve_forever()
    signal.pause()  # deaf, and alive


def talking_once(options: argparse.Namespace) -> None:
    """The same at the first start; crash at all others (a file beside the model)."""
    mark = Path(f"{options.model}.{options.port}.started")
    if mark.exists():
        crash(options)
    mark.touch()
    talking(options)


def slow_again(options: argparse.Namespace) -> None:
    """Be ready at once, but for the second start, which takes 20 s."""
    mark = Path(f"{options.model}.{options.port}.starts")
    starts = len(mark.read_text()) if mark.exists() else 0
    mark.write_text("x" * (starts + 1))
    listen(options, loading_seconds=20.0 if starts == 1 else 0.0)


MODES: dict[str, Callable[[argparse.Namespace], None]] = {
    mode.__name__: mode
    for mode in (
        good, slow, held, noisy, binary, mute, crash, out_of_memory, old_engine, beaten,
        beaten_once, immortal, wrapper, short_lived, warned, daemon, closed_output,
        tells_key, slow_help, endless_help, talking, talking_once, slow_again,
    )
}  # fmt: skip


def main() -> None:
    """Read the arguments and misbehave."""
    if "--help" in sys.argv:
        if "slow_help" in sys.argv:
            time.sleep(1)
        if "endless_help" in sys.argv:
            time.sleep(60)
        sys.stdout.write(HELP.read_text())
        return
    if "--version" in sys.argv:
        sys.stdout.write("version: 11434 (stand-in)\n")
        return
    if "--list-devices" in sys.argv:
        sys.stdout.write("Available devices:\n")
        return
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("-m", "--model")
    parser.add_argument("--alias", default="")
    options, _ = parser.parse_known_args()
    MODES[options.mode](options)


if __name__ == "__main__":
    main()
