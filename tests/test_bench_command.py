"""``llamatelemetry bench``: how fast does a server answer?"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_tools import chats, interrupted_at
from client_tools import STAND_IN, StandIn
from nvml_tools import StandInDriver

from llamatelemetry.bench import BenchmarkResult
from llamatelemetry.cli import main


def test_a_running_server_is_measured(
    server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table for each load in plain text, the result in a file; exit code 0."""
    path = tmp_path / "bench.json"
    code = main(
        ["bench", "--url", server_url, "-c", "1,2", "--requests", "3", "--max-tokens",
         "4", "--prompt-tokens", "16", "--json", str(path)]
    )  # fmt: skip
    said = capsys.readouterr().out

    assert code == 0
    for words in ("1 at once", "2 at once", "time to first token", "server: prompt"):
        assert words in said
    assert "tokens/s out" in said
    assert "\x1b" not in said
    result = BenchmarkResult.from_json(path)
    assert [load.completed for load in result.loads] == [3, 3]
    assert f"written to {path}" in said


def test_a_model_is_launched_and_stopped(
    driver: StandInDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo model on this machine, with as many slots as run at once."""
    driver.describe()
    code = main(
        ["bench", "demo", "-c", "3", "--requests", "3", "--max-tokens", "4",
         "--engine", "embedded", "--gpus", "none", "--prompt-tokens", "16"]
    )  # fmt: skip
    said = capsys.readouterr().out

    assert code == 0
    assert "Benchmark of demo" in said
    assert "slots 3" in said


def test_requests_come_at_a_rate(
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--request-rate is an open loop; the key is read from LLAMA_API_KEY."""
    monkeypatch.setenv("LLAMA_API_KEY", "hush")
    url = stand_in.url()
    code = main(
        ["bench", "--url", url, "--request-rate", "100,200", "--requests", "4",
         "--respect-eos", "--seed", "3", "--warm-up", "0", "--burstiness", "2"]
    )  # fmt: skip
    printed = capsys.readouterr()

    assert code == 0
    assert "100 a second" in printed.out
    assert "200 a second" in printed.out
    assert "hush" not in printed.out + printed.err
    asked = stand_in.asked(url)
    assert asked["headers"]["authorization"] == "Bearer hush"
    assert "ignore_eos" not in asked["body"]
    assert asked["body"]["seed"] == 3


def test_a_load_without_an_answer_is_exit_code_1(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    """What failed is in the table, by its name."""
    url = stand_in.url(end="reset")
    code = main(["bench", "--url", url, "-c", "1", "--requests", "2", "--warm-up", "0"])

    assert code == 1
    assert "2 StreamError" in capsys.readouterr().out


def test_a_server_that_is_not_there_is_exit_code_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is said in one line."""
    assert main(["bench", "--url", "http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-c", "1,x"], "1,2,4,8"),
        (["--request-rate", "fast"], "0.5,1,2"),
        (["-c", "0"], "--concurrency is 0"),
        (["--max-tokens", "0"], "--max-tokens is 0"),
        (["--prompt-tokens", "8", "--shared-prefix", "9"], "--shared-prefix is 9"),
        (["--request-rate", "0"], "--request-rate is 0"),
        (["--request-rate", "1", "-c", "2"], "give one"),
        (["absent.gguf"], "absent.gguf"),
        (["demo", "--url", "http://127.0.0.1:9"], "not allowed with"),
        (["--engine", "/nowhere/server"], "/nowhere/server"),
        (["--json", "no/such/folder/bench.json"], "no such folder"),
        (["--json", "."], "that is a folder"),
        (["--burstiness", "0.0001"], "--burstiness is 0.0001"),
        (["--url", "http://127.0.0.1:9", "--parallel", "64"], "--parallel is of"),
        (["--url", "http://127.0.0.1:9", "--engine", "x"], "--engine is of"),
        (["--url", "http://127.0.0.1:9", "--gpus", "none"], "--gpus is of"),
        (["--url", "http://127.0.0.1:9", "--ctx", "64"], "--ctx-size is of"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot work is said with its option, and no server is started."""
    try:
        code = main(["bench", *arguments])
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    printed = capsys.readouterr()

    assert code == 2
    assert words in printed.err
    assert printed.out == ""
    assert "Traceback" not in printed.err


def test_ctrl_c_shows_and_writes_what_was_measured(
    stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loads that were finished are shown and kept; exit code 130."""
    url = stand_in.url(tokens=2, pace=0.5)
    path = tmp_path / "bench.json"
    arguments = ["-c", "2,1", "--requests", "2", "--warm-up", "0", "--json", str(path)]
    with interrupted_at(stand_in, url, 3):
        code = main(["bench", "--url", url, *arguments])
    printed = capsys.readouterr()

    assert code == 130
    assert printed.err.endswith("llamatelemetry: interrupted\n")
    assert printed.out.startswith("measured so far:\nBenchmark of")
    assert f"written to {path}" in printed.out
    assert [one.concurrency for one in BenchmarkResult.from_json(path).loads] == [2]


@contextlib.contextmanager
def server_that_is_killed(at_chat: int) -> Iterator[str]:
    """Yield the address of a server that is killed once so many chats were asked."""
    process = subprocess.Popen(
        [sys.executable, str(STAND_IN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    ended = threading.Event()
    with process:
        assert process.stdout is not None
        server = StandIn(int(process.stdout.readline()))
        url = server.url(tokens=2, pace=0.3)

        def watch() -> None:
            while len(chats(server, url)) < at_chat and not ended.wait(0.02):
                pass
            process.kill()

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield url
        finally:
            ended.set()
            watcher.join()


def test_a_server_that_dies_leaves_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the second load: tables and file have the first; exit code 1."""
    path = tmp_path / "bench.json"
    with server_that_is_killed(at_chat=4) as url:
        code = main(
            ["bench", "--url", url, "-c", "1,1,1", "--requests", "2", "--warm-up", "1",
             "--json", str(path)]
        )  # fmt: skip
    printed = capsys.readouterr()

    assert code == 1
    assert printed.out.startswith("measured so far:\nBenchmark of")
    assert "Traceback" not in printed.err
    assert printed.err.splitlines()[-1].startswith("llamatelemetry: ")
    first, *_ = BenchmarkResult.from_json(path).loads
    assert (first.completed, first.errors) == (2, {})


def test_json_is_of_the_whole_result(
    stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file says with what it was measured."""
    path = tmp_path / "bench.json"
    main(
        ["bench", "--url", stand_in.url(), "-c", "1", "--requests", "1", "--seed", "9",
         "--json", str(path)]
    )  # fmt: skip
    capsys.readouterr()
    value = json.loads(path.read_text())

    assert (value["seed"], value["max_tokens"], value["prompts"]) == (9, 128, "made")
