"""map_prompts() in a notebook: its bar, and the stop button pressed once and twice.

The kernel is a real one and the front end a client of the protocol.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_tools import StandIn
from kernel_client import KernelClient

SETUP = """
import os
from llamatelemetry.batch import map_prompts

def tell(progress):
    if not progress.ended:
        print("at", progress.done, progress.words, flush=True)

def ask(url, count, **options):
    results = map_prompts(range(count), "{row}", to=url, **options)
    print("results:", results.done, results.left, results.ended)
"""


@pytest.fixture(scope="module")
def started() -> Iterator[KernelClient]:
    """One kernel for all tests here, as a user keeps his."""
    with KernelClient() as kernel:
        kernel.run(SETUP)
        yield kernel


@pytest.fixture
def kernel(started: KernelClient, tmp_path: Path) -> KernelClient:
    """That kernel, in a folder of the test's own."""
    started.run(f"os.chdir({str(tmp_path)!r})")
    return started


def kept(folder: Path) -> list[int]:
    """Return the rows of which an answer is in the file, each line read whole."""
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    assert all(line.endswith("\n") for line in lines)
    records = [json.loads(line) for line in lines]
    assert not [one for one in records if one["error"] is not None]
    return sorted(one["id"] for one in records)


def asked(stand_in: StandIn, url: str) -> list[int]:
    """Return the rows that were asked for at an address."""
    return sorted(
        int(one["body"]["messages"][-1]["content"])
        for one in stand_in.seen(url)
        if "/chat/" in one["target"]
    )


def words_of(kernel: KernelClient, request: str) -> str:
    """Return what the error says that a cell ended with."""
    reply = kernel.reply_to(request).content
    assert reply["ename"] == "KeyboardInterrupt", reply
    return str(reply["evalue"])


def goes_on(kernel: KernelClient, stand_in: StandIn, folder: Path, count: int) -> None:
    """Have the same kernel ask again: what is kept is not asked, the rest is."""
    before = kept(folder)
    url = stand_in.url()
    request = kernel.run(f"ask({url!r}, {count}, progress=False)")[0].parent
    assert f"results: {count} 0 done" in kernel.text_of(request)
    assert sorted(before + asked(stand_in, url)) == list(range(count))
    assert kept(folder) == list(range(count))


def test_the_stop_button_lets_what_runs_come_to_its_end(
    kernel: KernelClient, stand_in: StandIn, tmp_path: Path
) -> None:
    """All that was asked is kept, what is left is told, and a second call does it."""
    url = stand_in.url(pace=0.05)
    with kernel.running(f"ask({url!r}, 300, progress=tell)", "at ") as request:
        kernel.wait_for(lambda: len(kept(tmp_path)) > 1)
        kernel.interrupt()

    words, rows = words_of(kernel, request), kept(tmp_path)
    assert f"{len(rows)} rows are answered and kept in {tmp_path}" in words
    assert f"{300 - len(rows)} are left; the same call goes on from there" in words
    assert 0 < len(rows) < 300
    assert asked(stand_in, url) == rows
    goes_on(kernel, stand_in, tmp_path, 300)


def test_pressed_twice_it_is_out_at_once(
    kernel: KernelClient, stand_in: StandIn, tmp_path: Path
) -> None:
    """Answers of a minute are hung up on; what was there before can be read."""
    kernel.run(f"ask({stand_in.url()!r}, 5, progress=False)")
    slow = stand_in.url(tokens=100, pace=0.6)
    with kernel.running(f"ask({slow!r}, 50, progress=tell)", "at 5") as request:
        kernel.wait_for(lambda: asked(stand_in, slow))
        kernel.interrupt()
        # It has taken notice, and waits for what runs.
        kernel.wait_for(lambda: "still running" in kernel.text_of(request))
        assert not kernel.is_over(request)
        kernel.interrupt()

    assert "5 rows are answered and kept" in words_of(kernel, request)
    assert kept(tmp_path) == list(range(5))
    assert not [row for row in asked(stand_in, slow) if row < 5]
    goes_on(kernel, stand_in, tmp_path, 50)
    threads = kernel.run(
        "import threading; print([one.name for one in threading.enumerate()])"
    )
    assert "llamatelemetry-batch" not in kernel.text_of(threads[0].parent)


def test_a_notebook_shows_one_bar_with_words_beside_it(
    kernel: KernelClient, stand_in: StandIn
) -> None:
    """The widget is the bar; the share stands before it, and all words behind it."""
    before = set(kernel.opened())
    kernel.run(f"ask({stand_in.url(pace=0.01)!r}, 40)")

    shown = [kernel.opened()[one] for one in kernel.opened().keys() - before]
    (bar,) = (one for one in shown if one["_model_name"] == "FloatProgressModel")
    assert (bar["value"], bar["max"], bar["bar_style"]) == (40, 40, "success")
    (box,) = (one for one in shown if one["_model_name"] == "HBoxModel")
    share, _, words = (
        str(kernel.opened()[child.removeprefix("IPY_MODEL_")]["value"])
        for child in box["children"]
    )
    assert share.strip() == "100%"
    assert words.replace("\u2007", " ").strip().startswith("40/40 rows · ")
    assert words.endswith("tokens/s")
