"""The server panel: its buttons, its plan, its state, on real servers and stand-ins."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manager_tools import STAND_IN, children, wait_for
from nvml_tools import MIB, StandInDriver, t4
from panel_tools import (
    Recorder,
    change,
    click,
    deliver,
    every_widget,
    find,
    tick,
)
from shapes import read_shapes, write_shape
from stand_in_hub import StandInHub

from llamatelemetry.server import Engine
from llamatelemetry.session import Session, current_session, launch
from llamatelemetry.widgets import server_panel
from llamatelemetry.widgets._plan_preview import Preview
from llamatelemetry.widgets._server_options import ServerOptions
from llamatelemetry.widgets._server_state import Seen, look
from llamatelemetry.widgets._server_work import ServerWork
from llamatelemetry.widgets.server_panel import ServerPanel

KEY = "sk-of-the-panel-0123456789"
SECONDS = 60  # longer than anything takes that does not hang
WRAPPER = """#!/bin/sh
case "$1" in
    --version) echo 'version: 11434 (17daa13)' >&2; exit 0;;
    --list-devices) echo 'Available devices:'; exit 0;;
esac
exec "{python}" "{engine}" {mode} "$@" {more}
"""


class Front:
    """A panel as its user sees it: what is written in it, and what can be clicked."""

    def __init__(self, panel: ServerPanel) -> None:
        self.panel = panel
        self.box = panel.widget
        assert panel._view is not None
        self.view = panel._view

    def button(self, name: str) -> Any:
        return find(self.box, "Button", name)

    def click(self, name: str) -> None:
        """Click a button as soon as it can be clicked."""
        self.wait(lambda: not self.button(name).disabled)
        click(self.button(name))

    def press(self, name: str) -> None:
        """Send a click, also to a button that the page has disabled meanwhile."""
        deliver(self.button(name), {"method": "custom", "content": {"event": "click"}})

    @property
    def state(self) -> str:
        return str(self.view.badge.value)

    @property
    def plan(self) -> str:
        return str(self.view.verdict.value)

    @property
    def trouble(self) -> str:
        return str(self.view.trouble.value)

    @property
    def log(self) -> str:
        return "\n".join(block.value for block in self.view._lines.children)

    def wait(self, state: Callable[[], bool]) -> None:
        wait_for(state, SECONDS)
        with self.panel._lock:  # what is shown with it is there, too
            pass

    def wait_for_state(self, words: str) -> None:
        self.wait(lambda: words in self.state and "…" not in self.state)

    def wait_for_plan(self) -> None:
        self.wait(lambda: "looking" not in self.plan)

    def name(self, model: str | Path) -> None:
        """Name a model by hand, and wait for its plan."""
        change(self.view.other, str(model))
        self.wait_for_plan()


Show = Callable[..., Front]


@pytest.fixture
def show(page: Recorder) -> Iterator[Show]:
    """Show panels; they are closed, and the session with them."""
    panels: list[ServerPanel] = []

    def shown(session: Session | None = None, mode: Any = "threads") -> Front:
        panels.append(ServerPanel(session, mode=mode))
        return Front(panels[-1])

    yield shown
    for panel in panels:
        panel.close()
    for panel in panels:
        if panel.session is not None:
            panel.session.close()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """The demo model, running."""
    with launch("demo", engine=engine, context_size=512, progress=False) as running:
        yield running


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have what is launched run on the stand-in engine, in a mode of it."""

    def use(mode: str, more: str = "") -> None:
        program = tmp_path / "engine"
        values = {"python": sys.executable, "engine": STAND_IN}
        program.write_text(WRAPPER.format(**values, mode=mode, more=more))
        program.chmod(0o755)
        monkeypatch.setenv("LLAMATELEMETRY_SERVER", str(program))

    return use


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """What keeps the servers of `slow` loading until it is removed."""
    file = tmp_path / "held"
    file.touch()
    return file


@pytest.fixture
def slow(
    show: Show, stand_in: Callable[..., None], tiny_model: Path, held: Path
) -> Front:
    """A panel that is about to start a server that loads for a while."""
    stand_in("held", f"--alias {held}")
    front = show()
    front.name(tiny_model)
    return front


@pytest.fixture(scope="module")
def llama_13b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 13B model as a hole."""
    path = tmp_path_factory.mktemp("shape") / "llama-2-13b.gguf"
    return write_shape(read_shapes()["llama-2-13b"], path, tokens=False)


# ── start, stop, restart ─────────────────────────────────────────────────────────


def test_a_server_is_started_stopped_and_started_again(show: Show) -> None:
    """Without a session Start launches the demo model where there is no card."""
    front = show()
    front.wait_for_plan()
    assert "no server yet" in front.state
    assert "✔ fits" in front.plan
    assert front.button("Stop").disabled
    assert front.button("Restart").disabled
    front.click("Start")
    front.wait_for_state("● ready")
    session = front.panel.session
    assert session is not None
    assert session is current_session()
    asked = [{"role": "user", "content": "What is 2+2?"}]
    answer = session.client.chat_completion(asked, max_tokens=32)
    assert answer.choices[0].message.content
    front.click("Stop")
    front.wait_for_state("■ stopped")
    assert not session.server.is_running()
    front.click("Start")
    front.wait_for_state("● ready")
    assert front.panel.session is session
    before = session.server.pid  # type: ignore[union-attr] # one server
    front.click("Restart")
    front.wait(lambda: session.server.pid not in (None, before))  # type: ignore[union-attr]
    front.wait_for_state("● ready")
    assert front.trouble == ""


def test_clicks_return_at_once_and_double_clicks_are_one(
    slow: Front, held: Path
) -> None:
    """While a slow server loads, further clicks on Start start nothing."""
    slow.click("Start")
    for _ in range(5):
        slow.press("Start")
        slow.press("Restart")
    assert "launching…" in slow.state
    held.unlink()
    slow.wait_for_state("● ready")

    assert len(children()) == 1
    assert slow.trouble == ""


def test_loading_is_shown_with_its_steps(slow: Front, held: Path) -> None:
    """The steps of a launch while it goes on, and nothing of them when it is done."""
    assert slow.view.loading.layout.display == "none"
    slow.click("Start")
    slow.wait(lambda: "Launching: server" in slow.view.steps.value)
    slow.wait(lambda: slow.view.loading.layout.display is None)
    held.unlink()
    slow.wait_for_state("● ready")

    slow.wait(lambda: slow.view.steps.value == "")
    assert slow.view.loading.layout.display == "none"


def test_a_restart_shows_how_far_loading_is(slow: Front, held: Path) -> None:
    """Bytes and seconds of the server that loads."""
    held.unlink()
    slow.click("Start")
    slow.wait_for_state("● ready")
    held.touch()
    slow.click("Restart")
    slow.wait(lambda: "◔ loading" in slow.state)
    slow.wait(lambda: "%" in slow.view.how_far.value)

    assert " s" in slow.view.how_far.value
    held.unlink()
    slow.wait_for_state("● ready")


def test_a_start_can_be_stopped(
    show: Show, stand_in: Callable[[str], None], tiny_model: Path
) -> None:
    """Stop ends a launch under way; that is no error, and nothing is left behind."""
    stand_in("mute")
    front = show()
    front.name(tiny_model)
    front.click("Start")
    front.wait(lambda: len(children()) == 1)
    front.click("Stop")
    front.press("Stop")
    front.wait_for_state("no server yet")

    assert children() == []
    assert front.trouble == ""
    assert front.view.steps.value == ""
    assert not front.button("Start").disabled


def test_an_engine_that_crashes_is_a_sentence(
    show: Show, stand_in: Callable[[str], None], tiny_model: Path
) -> None:
    """What went wrong and in which step; then it can be tried again."""
    stand_in("crash")
    front = show()
    front.name(tiny_model)
    front.click("Start")
    front.wait(lambda: front.trouble != "")

    assert "SIGSEGV" in front.trouble
    assert "&#x27;server&#x27; failed" in front.view.steps.value
    stand_in("good")
    front.click("Start")
    front.wait_for_state("● ready")
    assert front.trouble == ""


def test_a_killed_server_is_shown_as_failed(show: Show, session: Session) -> None:
    """With the reason, though nobody asked; Start starts it again at its address."""
    front = show(session)
    front.wait_for_state("● ready")
    url = session.url
    pid = session.server.pid  # type: ignore[union-attr] # one server
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    front.wait_for_state("✖ failed")

    assert "SIGKILL" in front.trouble
    front.click("Start")
    front.wait_for_state("● ready")
    assert front.trouble == ""
    assert session.url == url


def test_a_stop_in_the_last_moment_of_a_launch_stops_it() -> None:
    """The launch has its session already, and cannot be called off any more."""
    found: list[Session] = []

    def launched(session: Session) -> None:
        found.append(session)
        work.stop(None)

    work = ServerWork(lambda task, _: task(), launched, lambda: None)
    try:
        work.start(None, ServerOptions())
        assert not found[0].server.is_running()
        assert (work.doing, work.trouble) == ("", "")
    finally:
        found[0].close()


# ── options and the plan ─────────────────────────────────────────────────────────


def test_changed_options_count_with_the_next_start(
    show: Show, session: Session
) -> None:
    """The panel says that Restart makes them count; then it is another server."""
    front = show(session)
    front.wait_for_plan()
    assert front.view.form.context.value == 512
    change(front.view.form.context, 768)
    change(front.view.form.slots, 2)
    assert "Restart makes them count" in front.view.hint.value
    front.click("Restart")
    front.wait(lambda: session.plan.configs[0].context_size == 1536)
    front.wait_for_state("● ready")

    assert session.plan.configs[0].parallel == 2
    front.wait(lambda: front.view.hint.value == "")
    front.wait(lambda: "0 of 2 slots busy" in front.view.activity.value)
    front.click("Stop")
    front.wait_for_state("■ stopped")
    change(front.view.form.context, 512)
    front.click("Start")
    front.wait(lambda: session.plan.configs[0].context_size == 1024)
    front.wait_for_state("● ready")


def test_what_does_not_fit_cannot_be_started(
    show: Show, driver: StandInDriver, llama_13b: Path
) -> None:
    """Start is off with the reason; a click takes the nearest context that fits."""
    driver.describe(t4(0))
    front = show()
    front.name(llama_13b)
    change(front.view.form.context, 65_536)
    front.wait_for_plan()

    assert "✖ does not fit" in front.plan
    assert "It does not fit with 65,536 tokens" in front.plan
    assert front.button("Start").disabled
    assert "cannot be started" in front.view.hint.value
    assert "CUDA0" in front.view.drawing.value
    front.press("Start")
    assert "no server yet" in front.state
    nearest = front.button("tokens of context")
    assert nearest.layout.display is None
    click(nearest)
    front.wait_for_plan()
    assert "✔ fits" in front.plan
    assert front.view.form.context.value < 65_536
    assert not front.button("Start").disabled
    assert nearest.layout.display == "none"


def test_models_are_marked_for_the_cards_that_are_ticked(
    show: Show, driver: StandInDriver
) -> None:
    """In words; two T4s hold what one does not, and the recommended one is chosen."""
    driver.describe(t4(0), t4(1))
    front = show()
    models = front.view.models

    def label() -> str:
        found = [told for told, name in models.options if name == "qwen3-32b"]
        return str(found[0])

    assert models.value == "qwen3-32b"
    assert "· fits" in label()
    change(front.view.form.cards[1], value=False)
    assert "too large" in label()
    assert models.value == "qwen3-32b"


def test_no_ticked_card_is_the_cpu(show: Show, driver: StandInDriver) -> None:
    """Which the plan says."""
    driver.describe(t4(0))
    front = show()
    change(front.view.models, "demo")
    change(front.view.form.cards[0], value=False)
    front.wait(lambda: "on the CPU" in front.plan)


def test_the_plan_counts_what_a_restart_gives_back(
    show: Show, driver: StandInDriver, stand_in: Callable[[str], None], llama_13b: Path
) -> None:
    """A model that fills its card can be started again with another context."""
    driver.describe(t4(0))
    stand_in("good")
    with launch(str(llama_13b), context_size=2048, progress=False) as session:
        held = session.plan.expected_bytes[0]
        driver.describe(t4(0, free=15_096 * MIB - held))
        front = show(session)
        front.wait_for_plan()
        change(front.view.form.context, 4096)
        front.wait(lambda: "Counting what this server gives back" in front.plan)
        assert "✔ fits" in front.plan
        assert not front.button("Restart").disabled
        front.click("Stop")
        driver.describe(t4(0))
        front.wait(lambda: "Counting" not in front.plan and "looking" not in front.plan)
        assert "✔ fits" in front.plan


def test_a_model_of_the_hub_is_planned_while_the_panel_goes_on(
    show: Show, hub: StandInHub, driver: StandInDriver, llama_13b: Path
) -> None:
    """Its header is read behind the panel, which says that it looks."""
    driver.describe(t4(0))
    with llama_13b.open("rb") as file:
        hub.add("some/Big-GGUF", "big-Q4_K_M.gguf", file.read(MIB), zeros=8 * 10**9)
    front = show()
    change(front.view.other, "some/Big-GGUF:Q4_K_M")
    assert "… looking" in front.plan
    front.wait_for_plan()

    assert "✔ fits" in front.plan
    assert front.view.models.value == "some/Big-GGUF:Q4_K_M"


def test_a_plan_of_options_that_were_left_is_not_shown(show: Show) -> None:
    """An answer for others than those chosen now is dropped, though none follows it."""
    front = show()
    front.wait_for_plan()
    chosen = front.panel._options
    others = replace(chosen, context_size=chosen.context_size + 1024)
    for options, answer in ((chosen, "Of these"), (others, "Of others")):
        with front.panel._lock:
            front.panel._show_preview((options, False), Preview("fits", answer))
    assert "Of these" in front.plan
    assert "Of others" not in front.plan


def test_a_bad_name_says_what_to_do(show: Show) -> None:
    """A file that is not there and tags in a name are a sentence, and text."""
    front = show()
    front.name("./<img src=x onerror=alert(1)>.gguf")

    assert "there is no file" in front.plan
    assert "<img" not in front.plan
    assert front.button("Start").disabled
    change(front.view.models, "demo")
    front.wait(lambda: "✔ fits" in front.plan)
    assert front.view.other.value == ""


def test_refresh_finds_new_files(
    show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    """A model that came into the working folder meanwhile is in the list."""
    monkeypatch.chdir(tmp_path)
    front = show()

    def names() -> list[str]:
        return [label for label, _ in front.view.models.options]

    assert not any("new.gguf" in name for name in names())
    (tmp_path / "new.gguf").write_bytes(tiny_model.read_bytes())
    front.click("Refresh")
    front.wait(lambda: any("file · new.gguf" in name for name in names()))


def test_a_late_click_does_not_stop_what_runs(
    show: Show, session: Session, llama_13b: Path, driver: StandInDriver
) -> None:
    """A click that was sent before the page had disabled its button does nothing."""
    driver.describe(t4(0))
    front = show(session)
    front.wait_for_state("● ready")
    front.name(llama_13b)
    change(front.view.form.context, 65_536)
    front.wait_for_plan()
    assert front.button("Restart").disabled
    front.press("Restart")
    front.press("Start")

    assert front.panel._work.doing == ""
    assert "● ready" in front.state


def test_a_deleted_working_folder_is_no_obstacle(
    show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The panel is shown all the same, without files from there."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    front = show()
    front.wait_for_plan()

    assert "✔ fits" in front.plan


# ── log, command, activity ───────────────────────────────────────────────────────


def test_the_log_is_one_click_away_and_can_be_filtered(
    show: Show, session: Session
) -> None:
    """Nothing of it is sent before; a filter shows its lines of the whole log."""
    front = show(session)
    front.wait_for_state("● ready")
    assert front.log == ""
    change(front.view.show_log, value=True)
    front.wait(lambda: "listening on" in front.log)
    assert front.view.log_box.layout.display is None
    change(front.view.filter, "LISTENING")
    assert front.log.count("\n") == 0
    assert "listening on" in front.log
    change(front.view.filter, "no line has this")
    assert front.log == ""
    change(front.view.filter, "")
    change(front.view.level, "errors")
    assert "listening on" not in front.log
    change(front.view.show_log, value=False)
    assert front.view.log_box.layout.display == "none"


def test_a_key_is_nowhere_on_the_page(
    show: Show, engine: Engine, page: Recorder
) -> None:
    """Not in the command, which is the exact one, and in no message to the page."""
    with launch("demo", engine=engine, api_key=KEY, progress=False) as session:
        front = show(session)
        front.wait_for_state("● ready")
        change(front.view.show_log, value=True)
        change(front.view.show_command, value=True)
        front.wait(lambda: "slots busy" in front.view.activity.value)
        command = front.view.command.value
        assert f"--port {session.url.rpartition(':')[2]}" in command
        assert "--ctx-size" in command
        change(front.view.command, "edited")
        assert front.view.command.value == command
        change(front.view.form.context, 768)
        front.click("Restart")
        front.wait(lambda: session.plan.configs[0].context_size == 768)
        front.wait_for_state("● ready")
        assert session.plan.configs[0].api_key == KEY
        told = json.dumps([message.data for message in page.messages])
        told += repr(front.panel) + front.panel._repr_html_()
    assert KEY not in told
    assert KEY[-4:] not in command


def test_work_is_shown_in_slots_and_tokens_per_second(
    show: Show, session: Session
) -> None:
    """While a request is at work; afterwards the slots are idle again."""
    front = show(session)
    front.wait(lambda: "0 of 1 slots busy" in front.view.activity.value)
    speeds = []

    def talk() -> None:
        while not any(speeds):
            session.client.completion(
                "1 2 3", max_tokens=400, extra_body={"ignore_eos": True}
            )

    thread = threading.Thread(target=talk)
    thread.start()

    def is_busy() -> bool:
        told = front.view.activity.value
        busy = "tokens/s" in told and " 0.0 tokens/s" not in told
        if busy:
            speeds.append(told)
        return busy

    try:
        front.wait(is_busy)
    finally:
        speeds.append("over")
        thread.join(SECONDS)
    front.wait(lambda: ">0 of 1 slots busy<" in front.view.activity.value)


def test_a_panel_at_rest_sends_nothing(
    show: Show, session: Session, page: Recorder
) -> None:
    """While it looks and asks again and again, with its log open."""
    front = show(session)
    front.wait(lambda: "0 of 1 slots busy" in front.view.activity.value)
    front.wait_for_plan()
    change(front.view.show_log, value=True)
    front.wait(lambda: "listening on" in front.log)

    def asked() -> int:
        logged: str = session.server.get_logs()
        return logged.count("all slots are idle")

    before = asked()
    front.wait(lambda: asked() > before)
    page.clear()
    before = asked()
    front.wait(lambda: asked() >= before + 3)

    assert [message.data for message in page.messages] == []


# ── several panels, several servers ──────────────────────────────────────────────


def test_two_panels_of_a_session_show_the_same(show: Show, session: Session) -> None:
    """State and options, whichever of them is clicked."""
    one, other = show(session), show(session)
    one.click("Stop")
    one.wait_for_state("■ stopped")
    other.wait_for_state("■ stopped")
    other.click("Start")
    other.wait_for_state("● ready")
    one.wait_for_state("● ready")
    one.wait_for_plan()
    change(one.view.form.context, 768)
    one.click("Restart")
    other.wait(lambda: other.view.form.context.value == 768)
    other.wait_for_state("● ready")
    assert other.view.hint.value == ""


def test_closing_a_panel_leaves_the_server(
    show: Show, session: Session, page: Recorder
) -> None:
    """Its threads end, all its widgets go; the server runs on, and so does a second."""
    other = show(session)
    of_other = {one.comm_id for one in page.messages if one.kind == "comm_open"}
    front = show(session)
    front.wait_for_state("● ready")
    widgets = every_widget(front.box)
    front.panel.close()

    assert front.panel.closed
    assert session.server.is_running()
    assert all(widget.comm is None for widget in widgets)
    closed = {one.comm_id for one in page.messages if one.kind == "comm_close"}
    opened = {one.comm_id for one in page.messages if one.kind == "comm_open"}
    assert opened - closed == of_other
    other.click("Stop")
    other.wait_for_state("■ stopped")


def test_a_panel_without_a_session_takes_up_the_one_that_runs(show: Show) -> None:
    """Now or later; when it is closed, Start launches another."""
    front = show()
    with launch("demo", engine="embedded", context_size=512, progress=False) as session:
        front.wait_for_state("● ready")
        assert front.panel.session is session
        assert front.view.form.context.value == 512
        assert show().panel.session is session
    front.wait_for_state("no server yet")
    front.click("Start")
    front.wait_for_state("● ready")
    assert front.panel.session is not session


def test_a_panel_of_a_session_stays_with_it(show: Show, session: Session) -> None:
    """When its session is closed, it says so and takes up no other."""
    front = show(session)
    front.wait_for_state("● ready")
    session.close()
    with launch("demo", engine="embedded", context_size=256, progress=False):
        front.wait(lambda: "This session was closed" in front.view.hint.value)
        assert front.view.start.disabled
        assert front.panel.session is session


def test_each_server_of_a_pool_has_a_line(
    show: Show, driver: StandInDriver, stand_in: Callable[[str], None], tiny_model: Path
) -> None:
    """With its state, cards and address; commands and logs are those of all of them."""
    driver.describe(t4(0), t4(1))
    stand_in("talking")
    with launch(str(tiny_model), goal="throughput", progress=False) as session:
        front = show(session)
        front.wait_for_state("● ready: 2 of 2 servers")
        lines = front.view.servers.value
        assert lines.count("http://127.0.0.1:") == 2
        assert len(front.view.command.value.splitlines()) == 2
        change(front.view.show_log, value=True)
        front.wait(lambda: "[0] " in front.log and "[1] " in front.log)
        front.click("Stop")
        front.wait_for_state("■ stopped")


# ── other ways to be shown ───────────────────────────────────────────────────────


def test_a_look_that_ends_late_is_not_shown(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a look has seen that began before another one and ends after it is old."""
    panel = ServerPanel(session, mode="text")
    old, new = look(session.server), look(session.server)
    begun, may_end = threading.Event(), threading.Event()

    def slow_at_first(_: object) -> Seen:
        if begun.is_set():
            return new
        begun.set()
        assert may_end.wait(SECONDS)
        return old

    monkeypatch.setattr(server_panel, "look", slow_at_first)
    late = threading.Thread(target=panel._look)
    late.start()
    assert begun.wait(SECONDS)
    panel._look()
    assert panel._seen is new
    may_end.set()
    late.join(SECONDS)
    assert panel._seen is new
    panel.close()


def test_as_text_it_tells_the_whole_state(session: Session) -> None:
    """State, options, plan and the end of the log, as text and as a static page."""
    with ServerPanel(session, mode="text") as panel:
        text, page = repr(panel), panel._repr_html_()

        assert f"● ready {session.url}" in text
        assert "demo, 512 tokens of context" in text
        assert "✔ fits" in text
        assert "listening on" in text
        assert "● ready" in page
        session.stop()
        assert "■ stopped" in repr(panel)


def test_as_text_nothing_is_asked_of_the_hub(
    hub: StandInHub, driver: StandInDriver
) -> None:
    """A page that nobody can click estimates what is not here."""
    driver.describe(t4(0), t4(1))
    with ServerPanel(mode="text") as panel:
        text = repr(panel)

    assert "≈ estimated" in text
    assert "qwen3-32b" in text
    assert hub.requests == []


def test_where_threads_may_not_send_the_page_ticks(show: Show, page: Recorder) -> None:
    """Nothing is sent from a thread; the page's own tick brings what has changed."""
    front = show(mode="ticks")
    play = find(front.box, "Play", "")
    front.click("Start")

    def ready() -> bool:
        tick(play)
        return "● ready" in front.state

    front.wait(ready)
    names = {message.thread for message in page.messages}
    assert names == {threading.current_thread().name}


def test_every_control_can_be_named(show: Show, driver: StandInDriver) -> None:
    """Each has a visible label, and each button a word and a tooltip."""
    driver.describe(t4(0), t4(1))
    front = show()
    for widget in every_widget(front.box):
        kind = type(widget).__name__
        if kind in {"HBox", "VBox", "Box", "HTML", "Label"}:
            continue
        assert widget.description, kind
        if "Button" in kind:
            assert widget.tooltip, widget.description
