"""What an open dashboard costs: CPU at rest, and memory over an hour of use.

A real kernel shows the dashboard of a session with the demo model; the cards are two
T4s that a library describes, under NVIDIA's own binding. The front end is a program
that speaks the protocol. The hour is played fast: as many pictures of the chart as an
hour has seconds, and 200 answers of a server of the tests.

    python benchmarks/panels.py [--seconds N]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "tools"))

from kernel_client import KernelClient
from nvml_tools import DRIVER, build_stand_in, t4

ANSWERS, TOKENS, PICTURES = 200, 256, 3600
WARM_ANSWERS, WARM_PICTURES = 10, 200

SHOW = """
import json, os, time
from llamatelemetry import launch
session = launch("demo", engine="embedded", gpus=[], progress=False)
dashboard = session.dashboard(mode="threads")
dashboard
"""
BEGIN = "began = time.process_time(), time.perf_counter()"
END = """
cpu, wall = time.process_time() - began[0], time.perf_counter() - began[1]
print(json.dumps([cpu / wall, wall]))
"""
USE = """
from llamatelemetry import LlamaCppClient
from llamatelemetry.widgets import ChatPanel
chat = ChatPanel(LlamaCppClient({url!r}), mode="threads")
display(chat)

def resident():
    import gc
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

def use(answers, pictures):
    each = pictures // answers
    for number in range(answers):
        chat.send(f"Question {{number}}")
        assert chat.wait(60)
        for _ in range(each):
            session.monitor.sample()
            dashboard.vram._refresh()

use({warm_answers}, {warm_pictures})
before = resident()
"""
AN_HOUR = """
use({answers}, {pictures})
after = resident()
print(json.dumps([before, after, len(chat.transcript[-1].content)]))
"""


def printed(kernel: KernelClient, code: str) -> list[float]:
    """Run a cell that prints a list, and return that."""
    import json  # noqa: PLC0415 -- of what one function needs

    request = kernel.send(code)
    reply = kernel.reply_to(request, 600)
    assert reply.content["status"] == "ok", reply.content
    kernel.wait_for(lambda: kernel.is_over(request))
    values: list[float] = json.loads(kernel.text_of(request))
    return values


def describe(path: Path) -> None:
    """Write what the stand-in for the driver tells: two cards, and no log."""
    parts = [DRIVER, t4(0, free=7000 * 2**20), t4(1)]
    texts = ["".join(f"{key} {part[key]}\n" for key in part) for part in parts]
    path.write_text("card\n".join(texts))


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    stand_in = [sys.executable, str(ROOT / "tests" / "tools" / "stand_in_api.py")]
    with tempfile.TemporaryDirectory() as name:
        if build_stand_in(Path(name)) is None:
            sys.exit("there is no C compiler for the stand-in driver")
        describe(Path(name) / "cards")
        with (
            subprocess.Popen(
                stand_in, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as server,
            KernelClient(
                STAND_IN_NVML=f"{name}/cards",
                LD_LIBRARY_PATH=name,
                LLAMATELEMETRY_CACHE=name,
                PATH=os.environ["PATH"],
            ) as kernel,
        ):
            assert server.stdin is not None
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/tokens={TOKENS}"
            kernel.run(SHOW)
            kernel.collect(5)  # what only the beginning costs
            seen = len(kernel.published)
            kernel.run(BEGIN)
            kernel.collect(options.seconds)
            share, wall = printed(kernel, END)
            rest = [one for one in kernel.published[seen:] if one.kind == "comm_msg"]
            kernel.run(
                USE.format(
                    url=url, warm_answers=WARM_ANSWERS, warm_pictures=WARM_PICTURES
                )
            )
            before, after, length = printed(
                kernel, AN_HOUR.format(answers=ANSWERS, pictures=PICTURES)
            )
            kernel.run("session.close()")
            server.stdin.close()
    sent = sum(one.size for one in rest) / wall
    print("| an open dashboard | |\n| --- | --- |")
    print(f"| CPU of the kernel at rest, of one core | {share:.2%} |")
    print(
        f"| sent to the page at rest | {sent / 1e3:.1f} kB/s, "
        f"{len(rest) / wall:.1f} messages/s |"
    )
    print(
        f"| memory of the kernel after {PICTURES} pictures and {ANSWERS} answers of "
        f"{length:.0f} characters | {(after - before) / 1e6:+.1f} MB |"
    )


if __name__ == "__main__":
    main()
