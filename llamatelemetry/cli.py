"""The command ``llamatelemetry``: from the demo to a benchmark, in a terminal."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from llamatelemetry import __version__
from llamatelemetry._bench_command import describe_bench
from llamatelemetry._conversation import Conversation, printable
from llamatelemetry._demo import (
    DEMO_CONTEXT_SIZE,
    DEMO_MODEL,
    DEMO_QUESTIONS,
    DEMO_THREADS,
)
from llamatelemetry._plan_command import describe_plan
from llamatelemetry._setup_commands import describe_setup_commands
from llamatelemetry._units import format_file_size
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import (
    ConfigurationError,
    EngineNotFoundError,
    LLCudaError,
    ModelError,
    SetupWarning,
)
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.engine import EngineLike, find_engine
from llamatelemetry.server.events import Notice
from llamatelemetry.server.manager import ServerManager
from llamatelemetry.server.parsing import parse_arguments
from llamatelemetry.setup._capsule_files import LOCK_NAME
from llamatelemetry.setup._prepare import prepare
from llamatelemetry.setup.models import local_model

_USAGE_ERROR = 2
_FAILURE = 1
_INTERRUPTED = 130  # as shells say of Ctrl-C
# Commands that have not done their work when Ctrl-C ends them.
_UNFINISHED = {"setup", "pack", "demo"}


_MODEL_HELP = (
    "a GGUF file, a folder with one or a capsule, a name of the catalog, "
    "owner/repo:file.gguf, or 'demo'"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    0 is success, 1 is a failure while it ran, 2 is bad input: one line says which.
    """
    _replace_closed_streams()
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        hint = "; the model comes first" if options.command == "serve" else ""
        return _complain(
            f"unknown argument {unknown[0]!r}{hint}; "
            f"see llamatelemetry {options.command} --help"
        )
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(options)
    except OSError as error:  # the output cannot be written: `| head`, a full disk
        sys.stdout = _nowhere()
        if isinstance(error, BrokenPipeError):
            return 0
        return _complain(str(error), _FAILURE)


def _run(options: argparse.Namespace) -> int:
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        code = run(options)
        sys.stdout.flush()
    except (ConfigurationError, EngineNotFoundError, ModelError) as error:
        return _complain(str(error))
    except LLCudaError as error:
        return _complain(str(error), _FAILURE)
    except KeyboardInterrupt:
        if options.command in _UNFINISHED:
            return _complain("interrupted; what is complete is kept", _INTERRUPTED)
        return 0
    return code


def _show_warning(
    message: Warning | str, category: type[Warning], *_place: object, **_more: object
) -> None:
    """Show a warning as a line for people; a line of Python says nothing to them."""
    kind = "note" if issubclass(category, SetupWarning) else category.__name__
    _complain(f"{kind}: {message}")


def _nowhere() -> TextIO:
    return open(os.devnull, "w+", encoding="utf-8")  # noqa: PTH123 - stays open


def _replace_closed_streams() -> None:
    """Make up for standard streams that were closed before the start (`>&-`)."""
    sys.stdin = sys.stdin or _nowhere()
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()


def _complain(message: str, code: int = _USAGE_ERROR) -> int:
    for number, line in enumerate(message.splitlines()):
        start = "  " if number else "llamatelemetry: "
        print(f"{start}{printable(line)}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """argparse, with one line for bad input."""

    def error(self, message: str) -> NoReturn:
        message = message.replace(", ARGUMENT", "")  # argparse takes it for required
        self.exit(_USAGE_ERROR, f"llamatelemetry: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="llamatelemetry",
        description="Get a model, know it, run llama.cpp's server, talk to it.",
        epilog="Start with: llamatelemetry demo",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _describe_demo(
        commands.add_parser(
            "demo",
            help="start a server with the demo model, ask three questions, stop it",
            description="Prove that everything works here: start an engine with the "
            "demo model, ask it three questions, print what was measured, stop it.",
        )
    )
    _describe_serve(
        commands.add_parser(
            "serve",
            help="run a server in the foreground until Ctrl-C",
            usage="llamatelemetry serve [-h] [--engine PATH] MODEL [ARGUMENT ...]",
            description="Run a server in the foreground; its log goes to stderr, "
            "Ctrl-C stops it. llama-server's arguments may follow the model. "
            "Without --port any free port is taken; the URL is printed once it is "
            "ready. The key clients must send is read from LLAMA_API_KEY.",
            epilog="Example: llamatelemetry serve model.gguf -ngl 99 -c 8192 -fa on",
        )
    )
    describe_plan(commands)
    describe_bench(commands)
    describe_setup_commands(commands)
    _describe_chat(commands)
    return parser


def _describe_demo(parser: argparse.ArgumentParser) -> None:
    _add_engine(parser)
    parser.set_defaults(run=_demo)


def _describe_serve(parser: argparse.ArgumentParser) -> None:
    _add_engine(parser)
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="ARGUMENT",
        help="llama-server's own, as in -ngl 99; --engine may stand among them",
    )
    parser.set_defaults(run=_serve)


def _describe_chat(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "chat",
        help="talk to a model in the terminal",
        description="Talk to a model, or to a server that runs already (its key "
        "is read from LLAMA_API_KEY). Ctrl-C stops the answer, Ctrl-D or /exit "
        "leaves, /clear begins anew.",
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=f"{_MODEL_HELP}; 'demo' unless said",
    )
    target.add_argument("--url", help="a server that runs already")
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument(
        "-ngl",
        "--gpu-layers",
        type=int,
        default=99,
        metavar="N",
        help="layers on the GPU; all of them unless said",
    )
    parser.add_argument(
        "-c",
        "--ctx-size",
        "--context-size",
        dest="context_size",
        type=int,
        metavar="TOKENS",
        help="4096 unless said; 512 for the demo model",
    )
    _add_engine(parser)
    parser.set_defaults(run=_chat)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine", metavar="PATH", help="the llama-server to use, or 'embedded'"
    )


def _model_and_engine(name: str, engine: str | None) -> tuple[str, EngineLike | None]:
    """Return the path of a model, and the engine for it.

    A model that the catalog or the Hub has is fetched, and an engine with it.
    """
    if name == "demo":
        return str(DEMO_MODEL), engine
    place = Path(name)
    if (place / LOCK_NAME).is_file():
        prepared = prepare(None, engine, capsule=place)
    elif place.is_dir() and (found := local_model(name)) is not None:
        return str(found), engine
    elif place.is_file() or (name.lower().endswith(".gguf") and ":" not in name):
        return name, engine
    else:
        prepared = prepare(name, engine)
    return str(prepared.model), prepared.engine


# ── demo ─────────────────────────────────────────────────────────────────────────


def _demo(options: argparse.Namespace) -> int:
    engine = find_engine(options.engine)
    config = ServerConfig(
        DEMO_MODEL,
        port=0,
        n_gpu_layers=99,
        context_size=DEMO_CONTEXT_SIZE,
        threads=DEMO_THREADS,
    )
    print(f"engine   {engine}")
    print(
        f"model    demo, {format_file_size(DEMO_MODEL.stat().st_size)}: memorised "
        "answers that prove the machinery works, not an assistant"
    )
    began = time.monotonic()
    with ServerManager(config, engine=engine, timeout=60) as server:
        seconds = time.monotonic() - began
        print(f"ready    after {seconds:.2f} s at {server.get_url()}")
        with LlamaCppClient(server.get_url()) as client:
            for question in DEMO_QUESTIONS:
                conversation = Conversation(client)
                print(f"\n> {question}")
                answer = conversation.ask(question, temperature=0)
                print(f"  [{answer}]")
        stopping = time.monotonic()
    print(
        f"\nstopped  after {time.monotonic() - stopping:.2f} s; nothing is left running"
    )
    return 0


# ── serve ────────────────────────────────────────────────────────────────────────


def _serve(options: argparse.Namespace) -> int:
    rest = list(options.arguments)
    if "--engine" in rest[:-1]:
        place = rest.index("--engine")
        options.engine = rest[place + 1]
        del rest[place : place + 2]
    model, engine = _model_and_engine(options.model, options.engine)
    words = ["--model", model, "--port", "0", "--gpu-layers", "99"]
    if options.model == "demo":
        words += ["--ctx-size", str(DEMO_CONTEXT_SIZE), "--threads", str(DEMO_THREADS)]
    if not set(rest) & {"-lv", "--verbosity", "-v", "--verbose", "--log-verbosity"}:
        words += ["--verbosity", "3"]  # more is for our events; here a person reads
    config = parse_arguments([*words, *rest])  # the last of two values counts
    key = os.environ.get("LLAMA_API_KEY")
    if config.api_key is not None:
        return _complain(
            "give the key as LLAMA_API_KEY: everyone here can read arguments"
        )
    if key:
        config = config.replace(api_key=key)
    before = signal.signal(signal.SIGTERM, _interrupt)
    server = ServerManager(engine=engine)
    try:
        server.start_with_config(config)
        for event in server.events:
            if isinstance(event, Notice):
                print(f"llamatelemetry: {event.text}", file=sys.stderr)
        return _forward(server)
    finally:
        server.stop()
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _forward(server: ServerManager) -> int:
    told = False
    for line in server.follow_logs():
        print(line, file=sys.stderr, flush=True)
        if not told and "listening on" in line and server.wait_until_ready(10):
            told = True
            print(f"\nready at {server.get_url()}\n", flush=True)
    server.raise_if_failed()
    return 0


# ── chat ─────────────────────────────────────────────────────────────────────────


def _chat(options: argparse.Namespace) -> int:
    if options.url is not None:
        with LlamaCppClient(
            options.url, api_key=os.environ.get("LLAMA_API_KEY")
        ) as client:
            client.health()
            return _talk(Conversation(client, options.system))
    model, engine = _model_and_engine(options.model or "demo", options.engine)
    config = ServerConfig(
        model,
        port=0,
        n_gpu_layers=options.gpu_layers,
        context_size=4096,
    )
    if config.model_path == str(DEMO_MODEL):
        config = config.replace(context_size=DEMO_CONTEXT_SIZE, threads=DEMO_THREADS)
    if options.context_size is not None:
        config = config.replace(context_size=options.context_size)
    print(f"loading {config.model_alias} ...", file=sys.stderr, flush=True)
    with (
        ServerManager(config, engine=engine) as server,
        LlamaCppClient(server.get_url()) as client,
    ):
        return _talk(Conversation(client, options.system))


def _talk(conversation: Conversation) -> int:
    print("Ctrl-C stops an answer; Ctrl-D or /exit leaves; /clear begins anew.")
    while True:
        try:
            text = input("\n> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print("  (Ctrl-D or /exit leaves)")
            continue
        if text in ("/exit", "/quit"):
            return 0
        if text == "/clear":
            conversation.clear()
            print("cleared")
        elif text.startswith("/"):
            print("commands: /clear, /exit")
        elif text:
            _ask(conversation, text)


def _ask(conversation: Conversation, text: str) -> None:
    try:
        conversation.ask(text)
    except LLCudaError as error:
        _complain(str(error))
    except KeyboardInterrupt:  # before the answer had begun
        print()
