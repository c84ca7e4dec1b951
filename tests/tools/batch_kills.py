"""Batches whose server, pool member or whole process is killed at random moments.

As a program it is the process that is killed: ``batch_kills.py URL OUT ROWS``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from llamatelemetry.batch import Results, map_prompts
from llamatelemetry.pool import ServerPool
from llamatelemetry.server import ServerConfig, ServerManager, ServerState

CORPUS = Path(__file__).parents[2] / "binaries" / "demo_model" / "corpus.json"
QUESTIONS = [
    question
    for answer in json.loads(CORPUS.read_text())["answers"]
    for question in answer["questions"]
]
"""What the demo model was trained on, and is sure of. Of other words two tokens may be
as likely as each other; which one wins depends on what else the server computes in the
same moment, so that two undisturbed runs differ."""

Answers = dict[int, str]


@dataclass(frozen=True)
class Outcome:
    """What was left of a batch after its kills."""

    kind: str
    kills: int
    runs: int  # calls of map_prompts, the first included
    lost: int
    twice: int
    different: int
    failed: int


def ask(to: Any, out: Path, rows: int, **options: Any) -> Results:
    """Ask all rows, greedily and in few words."""
    options = {"progress": False, "max_tokens": 4, "temperature": 0, **options}
    return map_prompts(range(rows), _question, to=to, out=out, **options)


def _question(row: int) -> str:
    return QUESTIONS[row % len(QUESTIONS)]


def lines_of(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; only a last one without an end may be none."""
    if not out.exists():
        return []
    *whole, rest = out.read_bytes().split(b"\n")
    assert b"\n" not in rest
    return [json.loads(line) for line in whole]


def counted(kind: str, out: Path, expected: Answers, kills: int, runs: int) -> Outcome:
    """Return what a file holds, held against the undisturbed run."""
    lines = lines_of(out)
    good = [line for line in lines if line["error"] is None]
    times = Counter(line["id"] for line in good)
    answers = {line["id"]: line["answer"] for line in good}
    return Outcome(
        kind,
        kills,
        runs,
        lost=len(expected.keys() - answers.keys()),
        twice=sum(count - 1 for count in times.values()),
        different=sum(answers[one] != expected[one] for one in answers),
        failed=len(lines) - len(good),
    )


class Killer:
    """Kills in a thread of its own, spread at random over a batch's rows."""

    def __init__(
        self, kill: Callable[[], bool], out: Path, rows: int, kills: int
    ) -> None:
        self.done = 0
        self._kill, self._out = kill, out
        moments = random.sample(range(rows * 9 // 10), kills)
        self._moments = sorted(moments)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        for moment in self._moments:
            while len(lines_of(self._out)) < moment:
                if self._ended.wait(0.01):
                    return
            time.sleep(random.uniform(0, 0.02))
            while not self._kill():  # it is not back yet from the last one
                if self._ended.wait(0.01):
                    return
            self.done += 1


def kill_process(pid: int | None) -> bool:
    """Kill a process; return whether there was one."""
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def of_manager(server: ServerManager) -> Callable[[], bool]:
    """Return what kills a server that is ready."""

    def kill() -> bool:
        return server.state is ServerState.READY and kill_process(server.pid)

    return kill


def of_pool(pool: ServerPool) -> Callable[[], bool]:
    """Return what kills one of a pool's servers that are ready."""

    def kill() -> bool:
        ready = [one for one in pool.status() if one.ready]
        return bool(ready) and kill_process(random.choice(ready).pid)

    return kill


@contextlib.contextmanager
def kept_alive(server: ServerManager) -> Iterator[None]:
    """Start a server again whenever it has failed, as somebody else's machine would."""
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(0.02):
            if server.state is ServerState.FAILED:
                server.restart()

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def in_runs(
    kind: str,
    *,
    to: Any,
    kill: Callable[[], bool],
    out: Path,
    expected: Answers,
    kills: int,
    budget: float,
) -> Outcome:
    """Run a batch in as many calls as a budget makes of it, while something kills."""
    rows, runs = len(expected), 0
    with Killer(kill, out, rows, kills) as killer:
        while True:
            runs += 1
            results = ask(to, out, rows, budget=budget)
            if not results.left and not results.failed:
                break
            assert runs < 10 + rows / 10
    assert len(list(results)) == rows
    return counted(kind, out, expected, killer.done, runs)


def of_processes(url: str, out: Path, expected: Answers, kills: int) -> Outcome:
    """Run a batch in processes that are killed one after the other."""
    rows, done, runs = len(expected), 0, 0
    for moment in sorted(random.sample(range(1, rows * 9 // 10), kills)):
        runs += 1
        command = [sys.executable, __file__, url, str(out), str(rows)]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            while len(lines_of(out)) < moment:
                if process.poll() is not None:
                    assert process.stderr is not None
                    raise AssertionError(process.stderr.read().decode())
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.02))
            process.kill()
        done += process.returncode == -signal.SIGKILL
        lines_of(out)
    results = ask(url, out, rows)
    assert len(list(results)) == rows
    return counted("the whole process", out, expected, done, runs + 1)


def undisturbed(url: str, out: Path, rows: int) -> Answers:
    """Return the answers of a run in which nothing dies."""
    results = ask(url, out, rows)
    answers = {int(row.id): row.answer or "" for row in results}
    assert len(answers) == rows
    return answers


def all_kinds(
    config: ServerConfig, engine: Any, folder: Path, rows: int, kills: int
) -> Iterator[Outcome]:
    """Yield the outcome of each kind of kill, which share the number of kills."""
    share = kills // 4
    with ServerManager(config, engine=engine, timeout=60) as server:
        url = server.get_url()
        expected = undisturbed(url, folder / "undisturbed.jsonl", rows)
        options: dict[str, Any] = {"expected": expected, "budget": rows / 100}
        yield of_processes(url, folder / "process.jsonl", expected, kills - 3 * share)
        kill, out = of_manager(server), folder / "manager.jsonl"
        yield in_runs(
            "a server that is ours",
            to=server,
            kill=kill,
            out=out,
            kills=share,
            **options,
        )
        out = folder / "url.jsonl"
        with kept_alive(server):
            yield in_runs(
                "a server by its URL",
                to=url,
                kill=kill,
                out=out,
                kills=share,
                **options,
            )
    with ServerPool(config, [[], []], engine=engine, timeout=60) as pool:
        kill, out = of_pool(pool), folder / "pool.jsonl"
        yield in_runs(
            "a pool's member", to=pool, kill=kill, out=out, kills=share, **options
        )


if __name__ == "__main__":
    ask(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
