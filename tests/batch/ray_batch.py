"""A batch on a Ray cluster of this machine, told as JSON: `python FILE FOLDER ROWS`.

Run by test_ray.py as a program of its own: Ray's threads and warnings stay here. Ctrl-C
after a tenth of the rows; the same call again, in which a worker is killed; and a third
time, when nothing is left to ask. The first call begins the cluster, and another user
of it, who comes while it runs, keeps it for the second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from llamatelemetry.batch import map_prompts
from llamatelemetry.batch._bar import BatchProgress
from llamatelemetry.batch._ray import RayCluster, _ray, _shared
from llamatelemetry.server._linux import process_command, process_ids

PROMPT = "Question {row}: what is GGUF?"
SAMPLING: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


def parents() -> dict[int, int]:
    """Return each process's parent."""
    found = {}
    for pid in process_ids():
        try:
            rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if rest[0] not in "ZX":
            found[pid] = int(rest[1])
    return found


def own(marks: str = "") -> dict[int, str]:
    """Return the commands of all that this program has started, by their ids."""
    of, found = parents(), {}
    for pid in of:
        above: int | None = pid
        while above not in (None, 0, 1, os.getpid()):
            above = of.get(above)
        if above == os.getpid() and pid != above:
            command = process_command(pid)
            if marks in command:
                found[pid] = command
    return found


def listening() -> Iterator[str]:
    """Yield the addresses, in hexadecimal, at which these processes listen."""
    sockets = set()
    for pid in [os.getpid(), *own()]:
        try:
            names = os.listdir(f"/proc/{pid}/fd")
            sockets |= {os.readlink(f"/proc/{pid}/fd/{name}") for name in names}
        except OSError:
            continue
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                yield fields[1].rpartition(":")[0]


class Watch:
    """Looks at the run once it is far enough, and does something to it."""

    def __init__(self, rows: int, act: Callable[[dict[str, Any]], object]) -> None:
        self.rows, self.act, self.facts = rows, act, {}

    def __call__(self, progress: BatchProgress) -> None:
        if self.facts or progress.done < self.rows:
            return
        servers = list(own("llamatelemetry.server.embedded"))
        if not servers:  # what was kept is enough, and they have not begun yet
            return
        self.facts = {
            "addresses": sorted(set(listening())),
            "servers": servers,
            "done": progress.done,
        }
        self.act(self.facts)


def kill_a_worker(facts: dict[str, Any]) -> None:
    """Kill a worker that has a server."""
    of, workers = parents(), own("ray::")
    worker = next(of[server] for server in facts["servers"] if of[server] in workers)
    facts["orphans"] = [s for s in facts["servers"] if of[s] == worker]
    os.kill(worker, signal.SIGKILL)


def wait_for_end(pids: list[int]) -> list[int]:
    """Return which of these processes still run, after a while."""
    until = time.monotonic() + 15
    while (left := [pid for pid in pids if pid in parents()]) and (
        time.monotonic() < until
    ):
        time.sleep(0.05)
    return left


def main() -> None:
    """Run, and tell."""
    out, rows = Path(sys.argv[1]) / "results.jsonl", int(sys.argv[2])
    cluster = RayCluster(
        "demo",
        servers=2,
        cpus_per_server=0.5,
        engine="embedded",
        parallel=2,
        context_size=256,
    )
    told: dict[str, Any] = {"prompt": PROMPT, "sampling": SAMPLING}

    def run(watch: Watch, concurrency: int | Literal["auto"]) -> dict[str, Any]:
        began = time.monotonic()
        try:
            results = map_prompts(
                range(rows),
                PROMPT,
                to=cluster,
                concurrency=concurrency,
                out=out,
                progress=watch,
                **SAMPLING,
            )
            facts = {"done": results.done, "failed": results.failed}
        except KeyboardInterrupt as error:
            facts = {"interrupted": str(error)}
        facts["lines"] = len(out.read_text().splitlines())
        return {**facts, "at": watch.facts, "seconds": time.monotonic() - began}

    with ExitStack() as another_user:

        def interrupt(_: object) -> None:
            another_user.enter_context(_shared.use(_ray(), None))
            os.kill(os.getpid(), signal.SIGINT)

        told["first"] = run(Watch(rows // 10, interrupt), "auto")
        told["servers_left"] = wait_for_end(told["first"]["at"]["servers"])
        told["kept"] = list(own("gcs_server"))
        told["second"] = run(Watch(rows // 2, kill_a_worker), 7)
        told["orphans_left"] = wait_for_end(told["second"]["at"]["orphans"])
        everything = list(own())
    told["third"] = run(Watch(rows * 2, interrupt), "auto")
    told["left"] = {pid: process_command(pid) for pid in wait_for_end(everything)}
    print(json.dumps(told))  # noqa: T201 - how a program tells


if __name__ == "__main__":
    main()
