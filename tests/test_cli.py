"""The command `llamatelemetry`, run as a person runs it."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from client_tools import StandIn
from manager_tools import wait_for

from llamatelemetry import __version__, _conversation, cli
from llamatelemetry._conversation import Conversation, printable
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.server import Engine, ServerConfig, ServerManager, _linux

COMMAND = [sys.executable, "-m", "llamatelemetry"]


def engine_name(engine: Engine) -> str:
    """Return what --engine takes for an engine."""
    return "embedded" if engine.embedded else engine.command[0]


def test_demo_does_the_main_job(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Engine, model, three right answers, figures, and nothing left running."""
    code = cli.main(["demo", "--engine", engine_name(engine)])
    output = capsys.readouterr().out

    assert code == 0
    assert "GGUF is a file format" in output
    assert output.count("\n> ") == 3
    assert (
        len(
            re.findall(
                r"\[first token after \d+ ms, \d+ tokens, [\d,]+ tokens/s\]", output
            )
        )
        == 3
    )
    assert re.search(r"ready +after \d+\.\d\d s at http://127\.0\.0\.1:\d+", output)
    assert "nothing is left running" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "frobnicate"),
        (["demo", "--frob"], "--frob"),
        (["serve", "not-there.gguf"], "not-there.gguf"),
        (["serve", "demo", "--ctx-size", "many"], "many"),
        (["serve", "demo", "--port", "99999"], "99999"),
        (["serve", "-ngl", "0", "demo"], "the model comes first"),
        (["serve", "demo", "-hft", "hush"], "-hft"),
        (["serve", "demo", "--engine", "/nowhere/server"], "/nowhere/server"),
        (["demo", "--engine", 'a "b'], "no command"),
        (["demo", "--engine", "/bin/ls"], "/bin/ls"),
        (["serve", "demo", "--api-key", "hush"], "LLAMA_API_KEY"),
        (["chat", "not-there.gguf"], "not-there.gguf"),
        (["chat", "--gpu-layers", "-3"], "n_gpu_layers"),
        (["chat", "--url", "no url"], "no url"),
        (["chat", "demo", "--url", "http://127.0.0.1:9"], "not allowed with"),
    ],
    ids=" ".join,
)
def test_bad_input_gets_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot work is said in one line that names it, and nothing starts."""
    try:
        code = cli.main(arguments)
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    shown = [
        line
        for line in capsys.readouterr().err.splitlines()
        if not line.startswith("loading ")
    ]

    assert code == 2
    assert len(shown) == 1
    assert shown[0].startswith("llamatelemetry: ")
    assert words in shown[0]
    assert "hush" not in shown[0]


@pytest.mark.parametrize(
    ("redirection", "code"), [(">&-", 0), (">/dev/full", 1), ("<&-", 0), ("2>&-", 0)]
)
def test_closed_and_full_streams_end_without_a_traceback(
    redirection: str, code: int
) -> None:
    """Streams that are closed or cannot be written to are no crash."""
    done = subprocess.run(
        f"{sys.executable} -m llamatelemetry demo --engine embedded {redirection}",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "Traceback" not in done.stderr
    assert done.returncode == code


def test_a_failure_while_running_is_exit_code_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A server that cannot be reached is no bad input."""
    assert cli.main(["chat", "--url", "http://127.0.0.1:9"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["demo"], ["serve"], ["chat"]], ids=str)
def test_help_and_version_are_there(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command explains itself."""
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])

    assert caught.value.code == 0
    assert "usage: llamatelemetry" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


# ── serve ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command; it is ended whatever the test does."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(
                [*COMMAND, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **environment},
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_runs_until_a_signal_and_leaves_nothing(
    engine: Engine,
    spawn: Callable[..., subprocess.Popen[str]],
    number: signal.Signals,
) -> None:
    """The URL is printed, the log comes through, and Ctrl-C ends all with code 0."""
    process = spawn(
        *("serve", "demo", "-c", "512", "-t", "1", "--engine", engine_name(engine)),
        LLAMA_API_KEY="open-sesame",
    )
    assert process.stdout is not None
    process.stdout.readline()  # an empty line, so that the next one can be seen
    line = process.stdout.readline()
    url = line.removeprefix("ready at ").strip()
    with LlamaCppClient(url, api_key="open-sesame") as client:
        assert client.tokenize("Hello").tokens
    process.send_signal(number)
    _, log = process.communicate(timeout=60)

    assert process.returncode == 0
    assert "listening on" in log
    assert "threads" not in log.partition("listening")[0].partition("notice")[2]
    assert "open-sesame" not in log
    assert not _linux.listening_inodes(int(url.rpartition(":")[2]))


def test_a_folder_with_one_model_is_that_model(
    tmp_path: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both serve and chat find it as launch() does; an empty folder is bad input."""
    folder = tmp_path / "models"
    folder.mkdir()
    assert cli.main(["chat", str(folder), "--engine", "embedded"]) == 2
    (folder / "m.gguf").write_bytes(demo_model.read_bytes())
    monkeypatch.setattr("builtins.input", lambda _: "/exit")
    arguments = ["chat", str(folder), "--engine", "embedded", "-c", "512"]
    assert cli.main(arguments) == 0
    arguments = ["serve", str(folder), "--engine", "embedded", "--no-such-flag"]
    assert cli.main(arguments) == 2  # the flag, not the folder, is wrong


def test_serve_reports_a_server_that_fails(
    engine: Engine, tmp_path: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that is cut off is bad input; its log has been shown."""
    model = tmp_path / "cut.gguf"
    model.write_bytes(demo_model.read_bytes()[:5000])
    code = cli.main(["serve", str(model), "--engine", engine_name(engine)])
    errors = capsys.readouterr().err

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # as it was before
    assert code == 2
    assert "cut.gguf cannot be loaded" in errors.splitlines()[-1]
    assert "gguf" in errors


# ── chat ─────────────────────────────────────────────────────────────────────────


def test_chat_answers_remembers_and_clears(
    server_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lines become questions, commands are obeyed, the end of input leaves."""
    lines = iter(["What is GGUF?", "", "/clear", "/what", "/exit", "never asked"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))

    assert cli.main(["chat", "--url", server_url, "--system", "Be brief."]) == 0
    output = capsys.readouterr().out
    assert "file format" in output
    assert "commands: /clear, /exit" in output
    assert next(lines) == "never asked"


def test_a_failed_question_does_not_end_the_chat(
    server_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An error is shown, the question is forgotten, and the next one is answered."""
    lines = iter(["word " * 5000, "What is GGUF?"])

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)

    assert cli.main(["chat", "--url", server_url]) == 0
    captured = capsys.readouterr()
    assert "context" in captured.err
    assert "file format" in captured.out


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.execv(command[0], command)
        self.text = ""

    def read_until(self, pattern: str, seconds: float = 30) -> None:
        """Read what it shows until a pattern has come; forget what came before."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, self.text
            if select.select([self._descriptor], [], [], 0.1)[0]:
                self.text += os.read(self._descriptor, 4096).decode()
        self.text = self.text[match.end() :]

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._descriptor, text.encode())

    def press_until(self, key: str, pattern: str) -> None:
        """Press a key, again if it came too early, until a pattern has come."""
        for _ in range(20):
            self.type(key)
            try:
                self.read_until(pattern, 1)
            except AssertionError:
                continue
            return
        raise AssertionError(self.text)

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        while True:
            try:
                if not os.read(self._descriptor, 4096):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(status)


def test_ctrl_c_stops_the_answer_and_not_the_program(stand_in: StandIn) -> None:
    """In a terminal: a slow answer is stopped, /exit leaves with 0."""
    url = stand_in.url(tokens=60, pace=1)  # a word a second for a minute
    terminal = Terminal([*COMMAND, "chat", "--url", url])
    terminal.read_until("anew\\.[\\s\\S]*> ")
    terminal.type("What is GGUF?\n")
    terminal.read_until("\\n[a-z ]+")  # it has begun; it would take a minute
    terminal.press_until("\x03", "> $")
    terminal.type("/exit\n")

    assert terminal.wait() == 0


def test_ctrl_c_at_the_prompt_does_not_leave(engine: Engine) -> None:
    """Ctrl-C says how to leave, a question is answered, Ctrl-D leaves with 0."""
    terminal = Terminal([*COMMAND, "chat", "--engine", engine_name(engine)])
    terminal.read_until("anew\\.[\\s\\S]*> ")
    terminal.press_until("\x03", "leaves\\)[\\s\\S]*> ")
    terminal.type("What is GGUF?\n")
    terminal.read_until("file format[\\s\\S]*> ")
    terminal.type("\x04")

    assert terminal.wait() == 0


@contextlib.contextmanager
def interrupted_in_its_answer() -> Iterator[None]:
    """Press Ctrl-C once some of an answer was printed, under capsys."""
    main = threading.get_ident()
    shown = cast("io.StringIO", sys.stdout)

    def press() -> None:
        wait_for(lambda: len(shown.getvalue()) > 20, 60)
        signal.pthread_kill(main, signal.SIGINT)

    watcher = threading.Thread(target=press)
    watcher.start()
    yield
    watcher.join()


def test_an_interrupted_answer_keeps_what_came(
    engine: Engine, demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the middle ends the work in the server; the text so far is kept."""
    config = ServerConfig(demo_model, port=0, context_size=100_096, threads=1)
    with (
        ServerManager(config, engine=engine) as server,
        LlamaCppClient(server.get_url()) as client,
    ):
        conversation = Conversation(client)
        with interrupted_in_its_answer():
            answer = conversation.ask(
                "What is GGUF?", max_tokens=100_000, extra_body={"ignore_eos": True}
            )
        wait_for(lambda: not client.get_slots()[0]["is_processing"], 30)

    assert answer.finish_reason == "cancelled"
    assert answer.text
    assert "cancelled" in str(answer)
    # Ctrl-C may come between a piece's arrival and its printing: one piece at most.
    shown = capsys.readouterr().out.removesuffix("\n")
    assert shown
    assert printable(answer.text).startswith(shown)
    assert len(printable(answer.text)) - len(shown) < 40


def test_model_output_cannot_steer_the_terminal() -> None:
    """Escape sequences, carriage returns and text direction marks become visible."""
    shown = printable("a\x1b[2Jb\rc\u202ed\n\te\x9b")

    assert shown == "a\\x1b[2Jb\\x0dc\\x202ed\n\te\\x9b"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """Output into a pipe that closes, as with `| head -1`, ends quietly."""
    done = subprocess.run(
        f"{sys.executable} -m llamatelemetry demo --engine embedded | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.startswith("engine")
    assert "Traceback" not in done.stderr


def test_answers_without_figures_are_still_shown() -> None:
    """An answer that took nothing has a text for it."""
    answer = _conversation.Answer(
        text="", first_token_ms=None, tokens=0, tokens_per_second=None,
        finish_reason="stop",
    )  # fmt: skip

    assert str(answer) == "0 tokens"
