"""What a panel says of a start before it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manager_tools import wait_for
from nvml_tools import MIB, StandInDriver, t4
from shapes import read_shapes, write_shape
from stand_in_hub import StandInHub

from llamatelemetry.gguf import reader
from llamatelemetry.gguf._cards import GPUMemory
from llamatelemetry.gpu import detect_gpus
from llamatelemetry.session import launch
from llamatelemetry.setup.catalog import find_model
from llamatelemetry.widgets import _plan_preview
from llamatelemetry.widgets._plan_preview import (
    Headers,
    Newest,
    Preview,
    look_ahead,
    look_ahead_from,
    with_room,
)
from llamatelemetry.widgets._server_options import ServerOptions

T4S = GPUMemory.t4(2)


@pytest.fixture(scope="module")
def llama_13b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 13B model as a hole: 2 KB for each token of context and layer."""
    path = tmp_path_factory.mktemp("shape") / "llama-2-13b.gguf"
    return write_shape(read_shapes()["llama-2-13b"], path, tokens=False)


def look(model: str | Path, cards: Any = T4S, **options: Any) -> Preview:
    """Return what is said of a model."""
    return look_ahead(ServerOptions(str(model), **options), cards, Headers())


class Desk:
    """Work that ends when a test says so, and what is shown of it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.shown: list[tuple[str, str]] = []
        self.may_end: dict[str, threading.Event] = {}
        self.closing = threading.Event()
        self.threads: list[threading.Thread] = []
        self.newest: Newest[str] = Newest(
            self.work,
            lambda question, answer: self.shown.append((question, answer)),
            start=self.start,
            lock=threading.RLock(),
            closing=self.closing,
            moment=0.02,
        )

    def start(self, work: Callable[[], object], name: str) -> None:
        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()

    def work(self, question: str) -> str:
        event = self.may_end.setdefault(question, threading.Event())
        self.begun.append(question)
        event.wait(10)
        return question.upper()

    def end(self, question: str) -> None:
        self.may_end[question].set()


def test_a_stale_answer_is_never_shown() -> None:
    """A slow answer that comes after a newer one is dropped, and one before it too."""
    desk = Desk()
    for question in "ab":
        desk.newest.ask(question)
        wait_for(lambda question=question: question in desk.begun)
    desk.end("b")
    wait_for(lambda: bool(desk.shown))
    desk.end("a")
    for thread in desk.threads:
        thread.join(10)

    assert desk.shown == [("b", "B")]

    desk.newest.ask("c")
    wait_for(lambda: "c" in desk.begun)
    desk.newest.ask("d")
    wait_for(lambda: "d" in desk.begun)
    desk.end("c")
    desk.threads[-2].join(10)
    assert desk.shown == [("b", "B")]
    desk.end("d")
    desk.threads[-1].join(10)
    assert desk.shown == [("b", "B"), ("d", "D")]


def test_questions_that_come_quickly_are_asked_once() -> None:
    """Of a hundred changes within a moment only the last one is worked on."""
    desk = Desk()
    desk.may_end["99"] = threading.Event()
    desk.end("99")
    for number in range(100):
        desk.newest.ask(str(number))
    for thread in desk.threads:
        thread.join(10)

    assert desk.begun == ["99"]
    assert len(desk.threads) == 1


def test_nothing_is_shown_after_the_end() -> None:
    """A panel that was closed meanwhile is left alone."""
    desk = Desk()
    desk.newest.ask("a")
    wait_for(lambda: "a" in desk.begun)
    desk.closing.set()
    desk.end("a")
    desk.threads[0].join(10)
    desk.newest.ask("b")
    desk.threads[1].join(10)

    assert desk.shown == []
    assert desk.begun == ["a"]


def test_what_fits_is_drawn_for_each_card() -> None:
    """A bar for each card under its own name, the reason above; it may be started."""
    preview = look("demo", goal="throughput", context_size=1024)

    assert preview.state == "fits"
    assert preview.can_start
    assert "2 servers" in preview.sentence
    assert "CUDA0" in preview.html
    assert "CUDA1" in preview.html
    assert preview.nearest is None


def test_what_does_not_fit_has_a_reason_and_a_context_that_does(
    llama_13b: Path,
) -> None:
    """The nearest context is said and given as a number, and with it it does fit."""
    preview = look(llama_13b, T4S[:1], context_size=65_536)

    assert preview.state == "too large"
    assert not preview.can_start
    assert "it does not fit with 65,536 tokens" in preview.sentence
    assert "Nearest: a context of up to" in preview.sentence
    assert preview.nearest is not None
    assert look(llama_13b, T4S[:1], context_size=preview.nearest).state == "fits"


def test_a_model_that_no_card_holds_has_no_nearest_context(llama_13b: Path) -> None:
    """On a card of 4 GiB another context does not help, which is said."""
    preview = look(llama_13b, [GPUMemory(0, 4 * 1024 * MIB)])

    assert preview.nearest is None
    assert not preview.can_start


def test_a_header_is_read_once_for_all_options(
    llama_13b: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another context costs no look at the file; another file of that name does."""
    reads: list[object] = []
    read = reader.read_header

    def counted(source: Any) -> Any:
        reads.append(source)
        return read(source)

    monkeypatch.setattr(_plan_preview, "read_header", counted)
    headers = Headers()
    for size in (1024, 2048, 4096):
        look_ahead(ServerOptions(str(llama_13b), size), T4S, headers)
    assert len(reads) == 1
    llama_13b.touch()
    look_ahead(ServerOptions(str(llama_13b)), T4S, headers)
    assert len(reads) == 2


def test_the_headers_that_were_used_last_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model: Path
) -> None:
    """Of too many the one that nobody has asked for in the longest time goes."""
    reads: list[str] = []
    read = reader.read_header

    def counted(source: Any) -> Any:
        reads.append(Path(source).stem)
        return read(source)

    monkeypatch.setattr(_plan_preview, "read_header", counted)
    monkeypatch.setattr(_plan_preview, "_MOST_HEADERS", 2)
    for name in "abc":
        (tmp_path / f"{name}.gguf").write_bytes(demo_model.read_bytes())
    headers = Headers()
    for name in "abacab":
        headers.get(str(tmp_path / f"{name}.gguf"))
    assert reads == ["a", "b", "c", "b"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./no-such.gguf", "there is no file"),
        ("qwen3-4x", "the nearest are"),
        ("broken.gguf", "broken.gguf"),
        ("\0", "catalog has no model"),
    ],
)
def test_a_name_that_leads_nowhere_is_a_sentence(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing or broken file and an unknown name say what to do; Start is off."""
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    monkeypatch.chdir(tmp_path)
    preview = look(name)

    assert preview.state == "problem"
    assert not preview.can_start
    assert words in preview.sentence
    assert "\n" not in preview.sentence


def test_options_that_do_not_go_together_are_a_sentence(llama_13b: Path) -> None:
    """A packed cache of values without flash attention is refused before Start."""
    preview = look(llama_13b, cache_type_v="q8_0", flash_attn=False)

    assert preview.state == "problem"
    assert "needs flash attention" in preview.sentence


def test_a_model_on_the_hub_is_planned_before_it_is_here(
    hub: StandInHub, llama_13b: Path
) -> None:
    """Its header is read by ranges: little of its 8 GB is sent, and once only."""
    with llama_13b.open("rb") as file:
        data = file.read(MIB)
    hub.add("some/Big-GGUF", "big-Q4_K_M.gguf", data, zeros=8 * 10**9)
    headers = Headers()
    options = ServerOptions("some/Big-GGUF:Q4_K_M", context_size=2048)
    preview = look_ahead(options, T4S, headers)

    assert preview.state == "fits"
    sent = hub.sent()
    assert sent < 4 * MIB
    look_ahead(replace(options, context_size=4096), T4S, headers)
    assert hub.sent() == sent


def test_without_a_connection_the_size_has_to_do(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of the catalog is estimated, which is said; others are a problem."""
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", nowhere)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            nowhere + "/{repo_id}/resolve/{revision}/{filename}",
        )
        good = look("qwen3-14b", T4S[:1])
        bad = look("qwen3-14b", T4S[:1], context_size=32_768)
        other = look("some/Repo:Q4_K_M")

    assert good.state == bad.state == "estimated"
    assert good.can_start
    assert "≈ estimated" in good.mark
    assert "its header could not be read" in good.sentence.lower()
    assert not bad.can_start
    assert bad.nearest is not None
    assert bad.nearest < 32_768
    assert other.state == "problem"


def test_nothing_is_asked_of_the_hub_where_that_is_not_wanted(hub: StandInHub) -> None:
    """A page that nobody can click estimates, and sends nothing."""
    options = ServerOptions("qwen3-4b")
    preview = look_ahead(options, T4S, Headers(), ask_hub=False)

    assert preview.state == "estimated"
    assert hub.requests == []


def test_a_model_in_the_cache_is_planned_from_there(
    hub: StandInHub, llama_13b: Path, tmp_path: Path
) -> None:
    """What was downloaded needs no connection, whatever it is called."""
    entry = find_model("llama-3.2-3b")
    place = tmp_path / "hub" / f"models--{entry.repo.replace('/', '--')}"
    file = (
        place / "snapshots" / (entry.files[0].revision or "abc") / entry.files[0].path
    )
    file.parent.mkdir(parents=True)
    shape = read_shapes()["llama-3.2-1b"]
    write_shape(shape, file, tokens=False)
    with file.open("r+b") as opened:
        opened.truncate(entry.files[0].bytes)
    preview = look("llama-3.2-3b")

    assert preview.state == "fits"
    assert hub.requests == []


def test_what_a_server_gives_back_counts_as_free(driver: StandInDriver) -> None:
    """It is added to its own card only, and never beyond what the card has."""
    driver.describe(t4(0, free=1000 * MIB), t4(1, free=2000 * MIB))
    cards = with_room(detect_gpus(), {0: 5000 * MIB, 1: 99_000 * MIB})

    assert [card.free_bytes for card in cards] == [6000 * MIB, 15_360 * MIB]
    assert with_room(detect_gpus(), {})[0].free_bytes == 1000 * MIB


def test_what_a_server_on_the_cpu_gives_back_counts_too(llama_13b: Path) -> None:
    """What the host has no room for beside that server fits after it, which is said."""
    nearest = look(llama_13b, [], context_size=65_536).nearest
    assert nearest is not None
    options = ServerOptions(str(llama_13b), nearest + 8192)
    little = look_ahead(options, [], Headers(), host_back=MIB)
    enough = look_ahead(options, [], Headers(), host_back=64 * 1024 * MIB)

    assert little.state == "too large"
    assert enough.state == "fits"
    assert enough.can_start
    assert "Counting what this server gives back (64.0 GiB)" in enough.sentence


def test_cards_are_asked_anew_for_each_plan(
    driver: StandInDriver, llama_13b: Path
) -> None:
    """What another program takes meanwhile counts, and cards left out do not."""
    driver.describe(t4(0), t4(1))
    options = ServerOptions(str(llama_13b))
    assert "GPU 0 holds it" in look_ahead_from(None, options, Headers()).sentence
    second = replace(options, gpus=(1,))
    assert "GPU 1 holds it" in look_ahead_from(None, second, Headers()).sentence
    driver.describe(t4(0, free=300 * MIB), t4(1, free=300 * MIB))

    assert look_ahead_from(None, options, Headers()).state == "too large"


def test_cards_that_are_named_count_for_an_engine_that_was_given_none(
    driver: StandInDriver, llama_13b: Path
) -> None:
    """Its next start is planned for the host too, unless somebody names a card."""
    driver.describe(t4(0), t4(1))
    options = ServerOptions(str(llama_13b))
    named = replace(options, gpus=(1,))
    with launch("demo", engine="embedded", context_size=256, progress=False) as session:
        assert session.plan.gpus == ((),)
        assert "GPU" not in look_ahead_from(session, options, Headers()).sentence
        preview = look_ahead_from(session, named, Headers())
    assert "GPU 1 holds it" in preview.sentence


def test_nothing_in_a_plan_is_markup(tmp_path: Path) -> None:
    """A model's name and a typed name with tags are shown as text."""
    shape = read_shapes()["llama-3.2-1b"]
    path = write_shape(shape, tmp_path / "<img src=x>.gguf", tokens=False)

    assert "<img src=x" not in look(path).html


def test_a_name_like_no_path_is_a_sentence() -> None:
    """Whatever is typed, the panel does not go on looking for ever."""
    preview = look_ahead(ServerOptions(model="~\0"), (), Headers())

    assert preview.state == "problem"
    assert not preview.can_start
