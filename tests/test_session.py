"""launch() and Session: one call from nothing to a running model, and back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from client_tools import MESSAGES
from manager_tools import STAND_IN, wait_for
from nvml_tools import MIB, StandInDriver, t4
from shapes import read_shapes, write_shape
from stand_in_hub import StandInHub

from llamatelemetry import _environment
from llamatelemetry._launch_server import Plans
from llamatelemetry._launch_steps import Steps
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import (
    ConfigurationError,
    ConnectionFailedError,
    EngineNotFoundError,
    LLCudaError,
    ModelError,
    OutOfMemoryError,
    PortInUseError,
    ServerError,
    ServerNotRunningError,
    SetupError,
    SetupWarning,
)
from llamatelemetry.gguf import read_header
from llamatelemetry.gpu import detect_gpus
from llamatelemetry.placement import decide_placement
from llamatelemetry.pool import PoolClient, ServerPool
from llamatelemetry.server import (
    Engine,
    ServerConfig,
    ServerManager,
    ServerState,
    StrayServer,
    _linux,
    find_engine,
    find_strays,
)
from llamatelemetry.session import Session, current_session, launch
from llamatelemetry.setup import pack
from llamatelemetry.telemetry import _recording, record
from llamatelemetry.widgets import ChatPanel

RUN_CELLS = Path(__file__).parent / "tools" / "run_cells.py"
QUESTION = [{"role": "user", "content": "What is GGUF?"}]
NAMES = ["engine", "model", "plan", "server", "client", "monitor"]
T4_UUIDS = [str(t4(number)["uuid"]) for number in range(2)]

Launch = Callable[..., Session]


@pytest.fixture(autouse=True)
def nothing_left(driver: StandInDriver) -> Iterator[None]:
    """No session outlives its test; there is no card unless a test says so."""
    yield
    session = current_session()
    if session is not None:
        session.close()


@pytest.fixture
def embedded(engine: Engine) -> Engine:
    """The engine, where one is enough."""
    return engine


def stand_in(mode: str = "talking") -> Engine:
    """Return the stand-in as an engine."""
    return find_engine([sys.executable, str(STAND_IN), mode])


def is_alive(pid: int | None) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def our_strays() -> list[StrayServer]:
    """Return the strays of this process; other tests on this machine have theirs."""
    return [stray for stray in find_strays() if stray.owner == os.getpid()]


# ── one call ─────────────────────────────────────────────────────────────────────


def test_one_call_ends_in_a_model_that_answers(engine: Engine) -> None:
    """The demo model answers rightly; after close() nothing of it is left."""
    with launch("demo", engine=engine, progress=False) as session:
        said = session.client.chat_completion(QUESTION, temperature=0)
        assert "GGUF is a file format" in said.choices[0].message.content
        assert isinstance(session.server, ServerManager)
        status = session.server.status()
        assert (status.state, status.ready) == (ServerState.READY, True)
        assert (status.url, status.cards, status.slots) == (session.url, "", 1)
        assert session.server.is_running()
        wait_for(lambda: "listening" in session.server.get_logs())
        assert session.monitor.running
        assert session.plan.kind == "single"
        assert session.engine == engine
        assert session.model.name == "demo"
        assert current_session() is session
        pid = session.server.pid
        marks = [mark.text for mark in session.monitor.marks]
        assert marks == [
            "model loaded",
            f"request: {said.usage.completion_tokens} tokens",
        ]

    assert session.closed
    assert current_session() is None
    assert not is_alive(pid)
    assert not session.monitor.running
    assert session.server.status().state is ServerState.STOPPED
    with pytest.raises(ServerError, match="closed"):
        session.start()
    session.close()
    assert our_strays() == []


def test_steps_are_told_as_they_go(embedded: Engine) -> None:
    """A function sees each step begin and end, in order, with bytes and reasons."""
    seen: list[Steps] = []
    session = launch("demo", engine=embedded, progress=seen.append)

    last = seen[-1]
    assert [step.name for step in last] == NAMES
    assert last.done
    assert session.steps == last
    ended = [
        step.name
        for before, after in pairwise(seen)
        for old, step in zip(before, after, strict=True)
        if old.state != "done" and step.state == "done"
    ]
    assert ended == NAMES
    by_name = {step.name: step for step in last}
    assert by_name["model"].bytes_done == session.model.size
    assert "not an assistant" in by_name["model"].text
    assert session.url in by_name["server"].text
    assert "on the CPU" in by_name["plan"].text
    assert all(step.seconds is not None for step in last)
    assert session.seconds >= (by_name["server"].seconds or 0)


def test_the_repr_tells_the_whole_state(embedded: Engine) -> None:
    """Text and HTML have model, engine, cards, context, slots, URL, memory, time."""
    session = launch("demo", engine=embedded, parallel=2, progress=False)
    text, html = repr(session), session._repr_html_()
    for part in (
        "demo",
        str(session.model.path),
        str(session.engine),
        session.url,
        "512 tokens for each request, 2 requests at once",
        "ready",
        "no card",
        "of host memory",
        "server 0.",
    ):
        assert part in text.replace("server 1.", "server 0.")
    for part in ("demo", session.url, "ready", "512 tokens"):
        assert part in html

    session.stop()
    assert "stopped" in repr(session)
    session.close()
    assert "closed" in repr(session)
    assert "closed" in session._repr_html_()


def test_a_key_opens_the_server_and_is_shown_nowhere(embedded: Engine) -> None:
    """Other fields of a configuration go to the server; a key stands in no text."""
    session = launch(
        "demo", engine=embedded, progress=False, api_key="sesame", alias="mine"
    )
    assert session.client.chat_completion(QUESTION).model == "mine"
    told = f"{session!r}{session._repr_html_()}{session.options!r}{session.plan!r}"
    assert "sesame" not in told + " ".join(session.server.command)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"telemetry": 1}, "True or False"),
        ({"n_ctx": 5}, "no field"),
        ({"visible_devices": "0"}, "gpus="),
        ({"model_path": "x"}, "model="),
        ({"notes": ["x"]}, "decides notes"),
        ({"cache_type_k": "q9"}, "cache_type_k"),
        ({"gpus": [0]}, "not here"),
        ({"gpus": [True]}, "not here"),
        ({"gpus": "nonsense"}, "nonsense"),
        ({"gpus": 5}, "must be text"),
        ({"gpus": [object()]}, "object"),
        ({"port": -1}, "port"),
        ({"model": 5}, "model is 5"),
        ({"model": b"demo"}, "CatalogModel"),
        ({"model": float("nan")}, "model is nan"),
        ({"engine": 5}, "engine is 5"),
        ({"engine": [1, 2]}, "engine is"),
        ({"engine": b"x"}, "a command as a list"),
    ],
)
def test_a_value_that_cannot_work_is_refused_at_once(
    options: dict[str, Any], words: str, hub: StandInHub
) -> None:
    """Nothing is asked of the Hub, and no step has begun."""
    seen: list[Steps] = []
    with pytest.raises(ConfigurationError, match=words):
        launch(**{"model": "owner/repo:Q4_K_M", "progress": seen.append, **options})

    assert seen == []
    assert hub.requests == []


# ── a second one ─────────────────────────────────────────────────────────────────


def test_the_same_again_gives_back_the_one_that_runs(
    embedded: Engine, demo_model: Path
) -> None:
    """However its file is named; and it is said. Another thing asks for replace."""
    seen: list[Steps] = []
    session = launch(demo_model, engine=embedded, progress=False)
    folder = os.path.relpath(demo_model.parent)
    again = launch(f"{folder}/{demo_model.name}", engine=embedded, progress=seen.append)

    assert again is session
    assert [step.state for step in seen[-1]] == ["done"]
    assert "runs already" in seen[-1][0].text
    with pytest.raises(ServerError, match="replace=True"):
        launch(demo_model, engine=embedded, context_size=256, progress=False)
    assert session.server.is_running()


def test_replace_closes_the_old_one_late(embedded: Engine, tmp_path: Path) -> None:
    """A typo leaves the old one running; a good one takes its place."""
    old = launch("demo", engine=embedded, progress=False)
    for wrong in (
        {"model": str(tmp_path / "missing.gguf")},
        {"model": "demo", "lora_path": str(tmp_path / "missing.gguf")},
        {"model": "demo", "cache_type_v": "q8_0", "flash_attn": False},
    ):
        with pytest.raises(LLCudaError):
            launch(engine=embedded, replace=True, progress=False, **wrong)
        assert old.server.is_running()
        assert current_session() is old

    new = launch(
        "demo", engine=embedded, context_size=256, replace=True, progress=False
    )
    assert old.closed
    assert current_session() is new
    assert new.plan.plans[0].slot_context == 256
    assert new.client.chat_completion(QUESTION).choices


def test_a_replacement_that_fails_late_says_that_the_old_one_is_gone(
    embedded: Engine,
) -> None:
    """What only a start can find out comes after the end of the session before."""
    old = launch("demo", engine=embedded, progress=False)
    with pytest.raises(ConfigurationError) as caught:
        launch(
            "demo", engine=embedded, replace=True, progress=False,
            extra_args=["--no-such-flag"],
        )  # fmt: skip
    assert old.closed
    assert any("the session before, of demo, is closed" in note
               for note in caught.value.__notes__)  # fmt: skip
    assert current_session() is None


def test_another_working_folder_changes_no_session(
    embedded: Engine, tmp_path: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path means the file it meant; the same name elsewhere is another."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.gguf").write_bytes(demo_model.read_bytes())
    monkeypatch.chdir(tmp_path / "one")
    session = launch("m.gguf", engine=embedded, progress=False, slot_save_path=".")
    monkeypatch.chdir(tmp_path / "two")

    with pytest.raises(ServerError, match="replace=True"):
        launch("m.gguf", engine=embedded, progress=False, slot_save_path=".")
    session.relaunch(parallel=2, progress=False)
    assert session.model.path == tmp_path / "one" / "m.gguf"
    assert session.plan.configs[0].slot_save_path == str(tmp_path / "one")


def test_a_dead_server_is_no_session_to_give_back(embedded: Engine) -> None:
    """After its server was killed, the same launch makes another; the old one ends."""
    old = launch("demo", engine=embedded, progress=False)
    assert isinstance(old.server, ServerManager)
    assert old.server.pid is not None
    os.kill(old.server.pid, signal.SIGKILL)
    wait_for(lambda: not old.server.is_running())
    assert "failed" in repr(old)
    assert "failed" in old._repr_html_()

    new = launch("demo", engine=embedded, progress=False)
    assert new is not old
    assert old.closed
    assert new.server.is_running()


def test_two_threads_get_one_session(embedded: Engine) -> None:
    """Whoever comes second waits, and gets what the first has started."""
    sessions: list[Session] = []

    def run() -> None:
        sessions.append(launch("demo", engine=embedded, progress=False))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(sessions) == 2
    assert sessions[0] is sessions[1]


def test_a_launch_within_a_launch_is_refused(embedded: Engine) -> None:
    """What shows the steps cannot wait for itself."""

    def show(_: Steps) -> None:
        launch("demo", engine=embedded, progress=False)

    with pytest.raises(ServerError, match="itself"):
        launch("demo", engine=embedded, progress=show)
    assert current_session() is None


# ── undone ───────────────────────────────────────────────────────────────────────


def our_threads() -> set[str]:
    """Return the names of the threads that servers and monitors have."""
    names = {thread.name for thread in threading.enumerate()}
    return {
        name
        for name in names
        if name.startswith(("llamatelemetry-log", "llamatelemetry-gpu"))
    }


def running_servers() -> set[str]:
    """Return the ids of the servers that this process has as children."""
    found: set[str] = set()
    for place in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found.update(place.read_text().split())
    return {pid for pid in found if "--port" in _linux.process_command(int(pid))}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("state", ["running", "done"])
def test_a_launch_that_is_ended_at_a_step_leaves_nothing(
    name: str, state: str, embedded: Engine
) -> None:
    """Ctrl-C at the beginning or the end of any step undoes all before it."""
    servers = running_servers()  # of other tests
    before = our_threads()

    def show(steps: Steps) -> None:
        if any(step.name == name and step.state == state for step in steps):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        launch("demo", engine=embedded, progress=show)

    assert current_session() is None
    assert our_strays() == []
    wait_for(lambda: our_threads() <= before)
    assert running_servers() <= servers


@pytest.mark.parametrize(
    ("options", "name", "kind"),
    [
        ({"model": "/nowhere/m.gguf"}, "model", ModelError),
        ({"engine": "/nowhere/llama-server"}, "engine", LLCudaError),
        ({"gpus": "1x0.1", "context_size": 512}, "plan", OutOfMemoryError),
        ({"extra_args": ["--no-such-flag"]}, "server", ConfigurationError),
        ({"port": "taken"}, "server", PortInUseError),
    ],
)
def test_an_error_names_its_step(
    options: dict[str, Any],
    name: str,
    kind: type[Exception],
    embedded: Engine,
) -> None:
    """The note and the last picture say where it failed; nothing is left."""
    seen: list[Steps] = []
    given = {"model": "demo", "engine": embedded, **options}
    with socket.create_server(("127.0.0.1", 0)) as other:
        if options.get("port") == "taken":
            given["port"] = other.getsockname()[1]
        with pytest.raises(kind) as caught:
            launch(progress=seen.append, **given)

    assert any(name in note for note in caught.value.__notes__)
    assert seen[-1].failed is not None
    assert name in [step.name for step in seen[-1] if step.state == "failed"]
    assert str(caught.value).partition("\n")[0] in repr(seen[-1])
    assert current_session() is None
    assert our_strays() == []


def test_an_interrupted_load_leaves_no_server(tiny_model: Path) -> None:
    """Ctrl-C while the server loads ends it, in a process of its own."""
    program = (
        "import os, signal, sys, threading\n"
        "from llamatelemetry.session import current_session, launch\n"
        "def show(steps):\n"
        "    if steps[3].state == 'running' and steps[3].seconds > 0.3:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n"
        f"    launch({str(tiny_model)!r}, progress=show,\n"
        f"           engine=[sys.executable, {str(STAND_IN)!r}, 'mute'])\n"
        "except KeyboardInterrupt as error:\n"
        "    from llamatelemetry.server import find_strays\n"
        "    strays = [one for one in find_strays() if one.owner == os.getpid()]\n"
        "    print(error.__notes__, current_session(), strays)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=True, timeout=200,
    )  # fmt: skip
    assert done.stdout == "[\"this was the step 'server' of launch()\"] None []\n"


# ── stop, start, relaunch ────────────────────────────────────────────────────────


def test_stop_and_start_keep_port_and_client(embedded: Engine) -> None:
    """The client made at first answers again; starting twice is harmless."""
    session = launch("demo", engine=embedded, progress=False)
    client, url = session.client, session.url
    session.stop()
    session.stop()
    assert not session.server.is_running()
    assert not session.closed
    with pytest.raises(ConnectionFailedError):
        client.health()

    seen: list[Steps] = []
    session.start(progress=seen.append)
    session.start()
    assert [step.name for step in seen[-1]] == ["server", "client"]
    assert (session.url, session.client) == (url, client)
    assert client.chat_completion(QUESTION).choices

    session.restart()
    assert (session.url, session.client) == (url, client)
    marks = [mark.text for mark in session.monitor.marks]
    assert marks.count("model loaded") == 3
    assert marks.count("server stopped") == 1


def test_a_port_that_was_taken_meanwhile_makes_another_client(
    embedded: Engine, tiny_model: Path
) -> None:
    """Where somebody else listens now, the server gets another port."""
    session = launch("demo", engine=embedded, progress=False)
    client, url = session.client, session.url
    session.stop()
    config = ServerConfig(tiny_model, port=int(url.rpartition(":")[2]))
    with ServerManager(config, engine=stand_in()):
        session.start()
        assert session.url != url
        assert session.client is not client
        assert session.client.chat_completion(QUESTION).choices


def test_stop_ends_a_start_that_is_under_way(tiny_model: Path) -> None:
    """From another thread; whoever waits is told."""
    session = launch(tiny_model, engine=stand_in("slow_again"), progress=False)
    session.stop()
    loading = threading.Event()
    errors: list[BaseException] = []

    def start() -> None:
        try:
            session.start(progress=lambda _: loading.set())
        except ServerNotRunningError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    assert loading.wait(30)
    wait_for(session.server.is_running)
    session.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert "stopped" in str(errors[0])
    assert not session.server.is_running()
    Path(f"{tiny_model}.{session.url.rpartition(':')[2]}.starts").unlink()


def test_close_ends_a_start_that_is_under_way(tiny_model: Path) -> None:
    """close() in one thread ends what another one starts, and leaves nothing."""
    session = launch(tiny_model, engine=stand_in("slow_again"), progress=False)
    mark = Path(f"{tiny_model}.{session.url.rpartition(':')[2]}.starts")
    errors: list[BaseException] = []
    loading = threading.Event()

    def restart() -> None:
        try:
            session.restart(progress=lambda _: loading.set())
        except ServerNotRunningError as error:
            errors.append(error)

    thread = threading.Thread(target=restart)
    thread.start()
    assert loading.wait(30)
    session.close()
    thread.join(30)
    assert len(errors) == 1
    assert not session.server.is_running()
    mark.unlink()


def test_relaunch_keeps_the_session_and_what_is_not_named(embedded: Engine) -> None:
    """Another context in the same object, with the same monitor; then other slots."""
    session = launch("demo", engine=embedded, alias="mine", progress=False)
    client, monitor, pid = session.client, session.monitor, session.server.status().pid
    seen: list[Steps] = []
    session.relaunch(context_size=256, progress=seen.append)

    assert seen[-1].done
    assert [step.name for step in seen[-1]] == NAMES[:-1]
    assert not is_alive(pid)
    assert session.client is not client
    assert session.monitor is monitor
    assert monitor.running
    assert session.options.context_size == 256
    assert session.client.chat_completion(QUESTION).model == "mine"

    session.relaunch(parallel=2, alias="yours", progress=False)
    assert (session.options.context_size, session.options.parallel) == (256, 2)
    assert session.client.chat_completion(QUESTION).model == "yours"
    assert current_session() is session
    assert launch(
        "demo", engine=embedded, context_size=256, parallel=2, alias="yours",
        progress=False,
    ) is session  # fmt: skip


def test_a_relaunch_with_a_typo_leaves_the_server_alone(
    embedded: Engine, tmp_path: Path
) -> None:
    """What can be checked before is; the server that runs is the same process."""
    session = launch("demo", engine=embedded, progress=False)
    pid = session.server.status().pid
    for wrong in (
        {"model": str(tmp_path / "missing.gguf")},
        {"n_ctx": 5},
        {"context_size": -1},
        {"mmproj_path": str(tmp_path / "missing.gguf")},
        {"engine": str(tmp_path / "missing")},
        {"gpus": [3]},
    ):
        with pytest.raises(LLCudaError) as caught:
            session.relaunch(progress=False, **wrong)
        assert "restart" not in str(getattr(caught.value, "__notes__", ""))
    assert session.server.status().pid == pid
    assert session.client.health() == {"status": "ok"}


def test_a_relaunch_that_fails_late_can_be_taken_back(embedded: Engine) -> None:
    """The session stays open without a server; restart() starts the one before."""
    session = launch("demo", engine=embedded, progress=False)
    with pytest.raises(ConfigurationError) as caught:
        session.relaunch(extra_args=["--no-such-flag"], progress=False)

    assert any("restart()" in note for note in caught.value.__notes__)
    assert not session.closed
    assert not session.server.is_running()
    assert session.options.config == {}
    session.restart()
    assert session.client.chat_completion(QUESTION).choices


@pytest.mark.parametrize("name", ["server", "client"])
@pytest.mark.parametrize("state", ["running", "done"])
@pytest.mark.parametrize("change", ["start", "restart", "relaunch"])
def test_a_change_that_is_ended_at_a_step_leaves_no_server(
    change: str, name: str, state: str, embedded: Engine
) -> None:
    """Ctrl-C when the new server is ready stops it; the client is good once more."""
    servers = running_servers()
    session = launch("demo", engine=embedded, progress=False)
    client = session.client
    if change == "start":
        session.stop()

    def show(steps: Steps) -> None:
        if any(step.name == name and step.state == state for step in steps):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        getattr(session, change)(progress=show)
    assert running_servers() <= servers
    assert not session.server.is_running()
    session.restart()
    assert session.client is client
    assert client.chat_completion(QUESTION).choices


def test_a_close_that_was_interrupted_can_be_done_again(tiny_model: Path) -> None:
    """Ctrl-C in close() leaves no server that nothing can stop any more."""
    session = launch(tiny_model, engine=stand_in(), progress=False)
    pid = session.server.status().pid  # type: ignore[union-attr]

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is Session.stop.__code__:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(interrupt)  # before close() has stopped anything
    try:
        with pytest.raises(KeyboardInterrupt):
            session.close()
    finally:
        sys.setprofile(None)
    session.close()
    assert not is_alive(pid)
    assert session.closed


def test_a_relaunch_can_have_a_placement(embedded: Engine, demo_model: Path) -> None:
    """It has decided all that the session was launched with before."""
    session = launch(
        "demo", engine=embedded, context_size=300, threads=1, progress=False
    )
    session.relaunch(decide_placement(demo_model, [], 256), progress=False)
    assert session.plan.plans[0].slot_context == 256
    assert session.options.config == {}


# ── which model ──────────────────────────────────────────────────────────────────


def test_a_folder_with_one_model_will_do(
    embedded: Engine, tmp_path: Path, demo_model: Path
) -> None:
    """A projector is not counted; several models are named in the error."""
    (tmp_path / "one.gguf").write_bytes(demo_model.read_bytes())
    (tmp_path / "mmproj-x.gguf").write_bytes(b"GGUF")
    with launch(tmp_path, engine=embedded, progress=False) as session:
        assert session.model.name == "one.gguf"
        assert session.client.chat_completion(QUESTION).choices

    (tmp_path / "two.gguf").write_bytes(demo_model.read_bytes())
    with pytest.raises(ModelError, match="2 models.*one.gguf, two.gguf"):
        launch(tmp_path, engine=embedded, progress=False)


def test_without_a_card_the_demo_model_runs_and_clicks_are_named(
    embedded: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Kaggle, nothing named and no card: what to click stands in steps and notes."""
    root = tmp_path / "root"
    (root / "kaggle" / "working").mkdir(parents=True)
    (root / "kaggle" / "input").mkdir()
    monkeypatch.setattr(_environment, "_ROOT", root)
    seen: list[Steps] = []
    session = launch(engine=embedded, progress=seen.append)

    assert session.model.name == "demo"
    clicks = "Settings → Accelerator → GPU T4 x2"
    assert clicks in seen[-1][1].text
    assert clicks in repr(session)
    assert session.client.chat_completion(QUESTION).choices
    again = launch(engine=embedded, progress=False)
    assert again is session


def test_with_no_card_to_use_the_demo_model_runs_and_says_why(
    driver: StandInDriver, embedded: Engine
) -> None:
    """Beside two T4s, ``gpus=[]`` alone is the CPU: nothing is fetched for cards."""
    driver.describe(t4(0), t4(1))
    seen: list[Steps] = []
    session = launch(gpus=[], engine=embedded, progress=seen.append)

    assert session.model.name == "demo"
    assert session.plan.gpus == ((),)
    assert "no card is to be used" in seen[-1][1].text


def test_without_an_engine_it_says_why_it_was_the_demo_model(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the engine does not hide that no card was to be used."""
    driver.describe(t4(0), t4(1))
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(EngineNotFoundError) as caught:
        launch(gpus=[], engine="embedded", progress=False)
    assert "no card is to be used" in caught.value.__notes__


def test_a_capsule_is_launched_by_its_folder(demo_model: Path, tmp_path: Path) -> None:
    """Engine and model are the capsule's; nothing else is named."""
    made = pack(
        tmp_path / "capsule", "demo", engine="embedded", wheels=[], progress=False
    )
    session = launch(made.folder, progress=False)

    assert made.folder in session.model.path.parents
    assert session.model.path.read_bytes() == demo_model.read_bytes()
    assert session.engine.embedded
    assert session.client.chat_completion(QUESTION).choices


def test_on_the_cpu_a_model_too_large_names_the_clicks(
    embedded: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named model that does not fit raises, and says what to click on Colab."""
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    model = tmp_path / "huge.gguf"
    write_shape(read_shapes()["command-a-8-layers"], model, tokens=False)
    with pytest.raises(OutOfMemoryError, match="Runtime → Change runtime type → T4"):
        launch(
            model, engine=embedded, context_size=131072, parallel=200, progress=False
        )


def test_offline_the_demo_model_runs_and_clicks_are_named(
    hub: StandInHub,
    driver: StandInDriver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    demo_model: Path,
) -> None:
    """Two T4s without internet: engine and model are those at hand, and it says why.

    A model that was named raises instead.
    """
    from huggingface_hub import constants

    root = tmp_path / "root"
    (root / "kaggle" / "working").mkdir(parents=True)
    monkeypatch.setattr(_environment, "_ROOT", root)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    driver.describe(t4(0), t4(1))
    seen: list[Steps] = []
    session = launch(progress=seen.append)

    assert session.model.path == demo_model
    assert session.engine.embedded
    assert "Internet on" in seen[-1][1].text
    assert "Internet on" in repr(session)
    assert session.plan.gpus == ((),)  # the embedded engine sees no card
    session.close()

    with pytest.raises(LLCudaError, match="Internet on") as caught:
        launch("qwen3-4b", engine="embedded", progress=False)
    assert any("model" in note for note in caught.value.__notes__)


def test_a_model_comes_from_the_hub_with_its_bytes_shown(
    embedded: Engine, hub: StandInHub, demo_model: Path
) -> None:
    """The step counts the bytes; the thread that shows them is the caller's."""
    hub.add("owner/Demo-GGUF", "demo-Q8_0.gguf", demo_model.read_bytes())
    threads: set[str] = set()
    seen: list[Steps] = []

    def show(steps: Steps) -> None:
        threads.add(threading.current_thread().name)
        seen.append(steps)

    session = launch("owner/Demo-GGUF:Q8_0", engine=embedded, progress=show)
    assert threads == {threading.current_thread().name}
    assert seen[-1][1].bytes_done == demo_model.stat().st_size
    assert "fetched and verified" in seen[-1][1].text
    session.close()

    again = launch("owner/Demo-GGUF:Q8_0", engine=embedded, progress=seen.append)
    assert "fetched" not in seen[-1][1].text
    assert again.model == session.model


def test_what_one_should_know_stands_in_the_steps(
    hub: StandInHub, demo_model: Path, embedded: Engine
) -> None:
    """A model whose digest nobody states is in the notes; silent, it is a warning."""
    hub.add("owner/Demo-GGUF", "demo-Q8_0.gguf", demo_model.read_bytes(), large=False)
    name = "owner/Demo-GGUF:demo-Q8_0.gguf"
    seen: list[Steps] = []
    with launch(name, engine=embedded, progress=seen.append) as session:
        assert any("nobody has stated" in note for note in session.notes)
        assert "nobody has stated" in repr(session)
        assert "nobody has stated" in seen[-1][1].text
    with pytest.warns(SetupWarning, match="nobody has stated") as caught:
        launch(name, engine=embedded, progress=False)
    assert caught[0].filename == __file__


def test_where_bars_are_turned_off_a_warning_tells(
    embedded: Engine,
    hub: StandInHub,
    demo_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What no step shows is not lost; once each for launch() and relaunch()."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    hub.add("owner/Demo-GGUF", "demo-Q8_0.gguf", demo_model.read_bytes(), large=False)
    name = "owner/Demo-GGUF:demo-Q8_0.gguf"
    with pytest.warns(SetupWarning, match="nobody has stated") as caught:
        session = launch(name, engine=embedded)
    assert [one.filename for one in caught] == [__file__]
    with pytest.warns(SetupWarning, match="nobody has stated") as caught:
        session.relaunch(context_size=256)
    assert [one.filename for one in caught] == [__file__]


# ── cards ────────────────────────────────────────────────────────────────────────


def test_two_cards_can_have_a_server_each(
    embedded: Engine, driver: StandInDriver
) -> None:
    """For throughput there is a pool, with the same methods and one client."""
    driver.describe(t4(0), t4(1))
    session = launch(
        "demo", engine=embedded, gpus=[0, 1], goal="throughput", parallel=2,
        progress=False,
    )  # fmt: skip
    pool = session.server
    assert isinstance(pool, ServerPool)
    assert isinstance(session.client, PoolClient)
    assert session.plan.kind == "replicas"
    assert [one.cards for one in pool.status()] == T4_UUIDS
    assert pool.is_running()
    assert "[1] " in pool.get_logs()
    assert session.client.chat_completion(QUESTION).choices
    text = repr(session)
    assert "2 of 2 servers ready" in text
    assert "GPU 1: " in text
    assert "on 2 servers" in text
    assert "2 of 2 servers ready" in session._repr_html_()
    client = session.client
    assert "request: " in session.monitor.marks[-1].text

    session.stop()
    assert not pool.is_running()
    assert "0 of 2 servers ready" in repr(session)
    assert "0 of 2" in session._repr_html_()
    session.start()
    assert session.client is client
    assert client.chat_completion(QUESTION).choices
    session.close()
    assert not pool.is_running()


def test_the_cards_named_are_the_cards_used(driver: StandInDriver) -> None:
    """By index, as cards, and none at all."""
    driver.describe(t4(0), t4(1))
    engine = stand_in()
    for gpus, visible in (
        ([1], T4_UUIDS[1]),
        (detect_gpus()[:1], T4_UUIDS[0]),
        ([], ""),
    ):
        session = launch("demo", engine=engine, gpus=gpus, replace=True, progress=False)
        assert session.server.status().cards == visible  # type: ignore[union-attr]
    first = launch("demo", engine=engine, gpus=detect_gpus()[:1], replace=True,
                   progress=False)  # fmt: skip
    driver.describe(t4(0, free=10**9), t4(1))
    same = launch("demo", engine=engine, gpus=detect_gpus()[:1], progress=False)
    assert same is first  # whatever is free of the card now


def test_a_large_model_is_split_over_both(
    driver: StandInDriver, tmp_path: Path
) -> None:
    """A 13B in 4 bits with 16k of context fits no single T4."""
    driver.describe(t4(0), t4(1))
    model = tmp_path / "13b.gguf"
    write_shape(read_shapes()["llama-2-13b"], model, tokens=False)
    session = launch(model, engine=stand_in(), context_size=16384, progress=False)
    assert session.plan.kind == "layer"
    assert session.server.status().cards == ",".join(T4_UUIDS)  # type: ignore[union-attr]

    with pytest.raises(OutOfMemoryError) as caught:
        session.relaunch(context_size=131072, progress=False)
    assert caught.value.suggestion
    assert session.server.is_running()  # the cards could never hold it


def test_what_a_running_server_holds_is_no_reason_to_refuse(
    driver: StandInDriver, demo_model: Path
) -> None:
    """Before it is stopped all memory of the cards counts; afterwards what is free."""
    driver.describe(t4(0))
    session = launch(demo_model, engine=stand_in(), progress=False)
    driver.describe(t4(0, free=MIB))
    plans = Plans(session.options, session._found)

    plans.check()
    with pytest.raises(OutOfMemoryError):
        plans.decide()


def test_an_engine_that_sees_no_card_runs_on_the_cpu(
    driver: StandInDriver, demo_model: Path
) -> None:
    """The embedded engine beside two T4s is not planned onto them, unless told so."""
    driver.describe(t4(0), t4(1))
    session = launch(demo_model, engine="embedded", progress=False)
    assert session.plan.gpus == ((),)


def test_a_placement_is_run_as_it_is(embedded: Engine, demo_model: Path) -> None:
    """What it has decided cannot be said again; any port is taken unless it has one."""
    placement = decide_placement(demo_model, [], 256)
    with pytest.raises(ConfigurationError, match="context_size, threads"):
        launch(placement, engine=embedded, context_size=512, threads=1)
    with pytest.raises(ConfigurationError, match="goal"):
        launch(placement, engine=embedded, goal="throughput")
    none = decide_placement(demo_model, "1x0.1", 256)
    with pytest.raises(OutOfMemoryError):
        launch(none, engine=embedded, progress=False)

    session = launch(placement, engine=embedded, progress=False)
    assert session.plan.plans == placement.plans
    assert session.url.rpartition(":")[2] != "8080"
    assert launch(placement, engine=embedded, progress=False) is session
    session.relaunch(context_size=512, progress=False)
    assert session.model.path == demo_model
    assert session.plan.plans[0].slot_context == 512


def test_a_placement_without_a_file_is_refused(
    embedded: Engine, demo_model: Path
) -> None:
    """One that was planned from a header alone names no model that could run."""
    placement = decide_placement(read_header(demo_model.read_bytes()), [], 256)
    with pytest.raises(SetupError, match="names no model file") as caught:
        launch(placement, engine=embedded, progress=False)
    assert any("model" in note for note in caught.value.__notes__)


def test_a_placement_for_other_cards_is_refused(
    driver: StandInDriver, demo_model: Path
) -> None:
    """An engine would see no card, and run on the CPU; what runs is left alone."""
    driver.describe(t4(0), t4(1))
    engine = stand_in()
    placement = decide_placement(demo_model, detect_gpus()[:1], 256)
    session = launch(placement, engine=engine, progress=False)
    driver.describe(t4(1))
    with pytest.raises(ConfigurationError, match="not here"):
        launch(
            placement, engine=engine, port=session.options.port + 1025, replace=True,
            progress=False,
        )  # fmt: skip
    assert session.server.is_running()
    session.close()
    with pytest.raises(ConfigurationError, match="plan_placement"):
        launch(placement, engine=engine, progress=False)


def test_an_encoder_embeds(tmp_path: Path) -> None:
    """A model that writes nothing is started with embeddings on, as plans have it."""
    model = tmp_path / "bge.gguf"
    write_shape(read_shapes()["bge-small-en"], model, tokens=False)
    session = launch(model, engine=stand_in(), progress=False)
    config = session.plan.configs[0]
    assert (config.embeddings, config.n_ubatch, config.flash_attn) == (True, 2048, True)
    assert config.context_size == 512  # what it was made for


def test_requests_are_marked(stand_in_session: Session) -> None:
    """Answers, failures and cancelled ones; what only looks is not."""
    session = stand_in_session
    session.client.health()
    session.client.chat_completion(MESSAGES)
    stream = session.client.chat_completion_stream(MESSAGES)
    next(iter(stream))
    stream.close()
    session.stop()
    with pytest.raises(ConnectionFailedError):
        session.client.chat_completion(MESSAGES)
    marks = [mark.text for mark in session.monitor.marks]
    assert len(marks) == 5
    assert marks[0] == "model loaded"
    assert marks[1].endswith("tokens")
    assert marks[3:] == ["server stopped", "request: ConnectionFailedError"]


@pytest.fixture
def stand_in_session(tiny_model: Path) -> Session:
    """A session over the stand-in server."""
    return launch(tiny_model, engine=stand_in(), progress=False)


# ── telemetry ────────────────────────────────────────────────────────────────────


def test_telemetry_records_over_a_relaunch(
    embedded: Engine, driver: StandInDriver
) -> None:
    """Requests with slots, and the servers' events; it stays after the end."""
    driver.describe(t4(0))
    with launch("demo", engine=embedded, telemetry=True, progress=False) as session:
        timeline = session.timeline
        assert timeline is not None
        session.client.chat_completion(QUESTION)
        session.relaunch(context_size=256, progress=False)
        assert session.timeline is timeline
        session.client.chat_completion(QUESTION)
        urls = [entry.server for entry in timeline.requests]
        wait_for(lambda: timeline.requests[1].slot == 0)
    assert urls[1] == session.url
    kinds = [event.kind for event in timeline.events]
    assert kinds.count("Ready") == kinds.count("Exited") == 2
    assert kinds.count("Loading") == 2
    last = timeline.samples[-1][0]
    assert last > timeline.requests[1].end  # the monitor's last one
    assert session.timeline is timeline
    assert timeline.rows()[0]["prompt"] is None
    session.monitor.sample()
    assert timeline.samples[-1][0] == last  # it has ended with the session


def test_telemetry_is_off_unless_asked_for(stand_in_session: Session) -> None:
    """And can be turned on for the session that runs, and off again."""
    session = stand_in_session
    assert session.timeline is None
    assert not session.client._transport.listeners
    same = launch(
        session.options.model, engine=session.options.engine, telemetry=True,
        progress=False,
    )  # fmt: skip
    assert same is session
    timeline = session.timeline
    assert timeline is not None
    session.client.chat_completion(MESSAGES)
    assert len(timeline.requests) == 1
    again = launch(session.options.model, engine=session.options.engine, progress=False)
    assert again.timeline is timeline  # somebody else has asked for it
    session.relaunch(telemetry=False, progress=False)
    assert session.timeline is None
    session.client.chat_completion(MESSAGES)
    assert len(timeline.requests) == 1


def test_a_block_records_a_session_over_a_relaunch(
    stand_in_session: Session,
) -> None:
    """Beside the session's own timeline, whose requests are the same."""
    session = stand_in_session
    with record(session) as timeline:
        session.relaunch(parallel=2, telemetry=True, progress=False)
        session.client.chat_completion(MESSAGES)
    session.client.chat_completion(MESSAGES)
    own = session.timeline
    assert own is not None
    assert len(timeline.requests) == 1
    assert len(own.requests) == 2
    assert own.requests[0].start == timeline.requests[0].start
    session.close()
    with pytest.raises(ConfigurationError, match="the session is closed"):
        record(session)


def test_marks_and_panels_show_what_the_timeline_knows(
    engine: Engine, driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot on the cards' chart; below an answer the energy and the peak too."""
    driver.describe(t4(0, power=20_000))
    monkeypatch.setattr(_recording, "_LATE_LINE", 30.0)  # the machine may be busy
    with launch("demo", engine=engine, gpus=[], telemetry=True, progress=False) as one:
        assert one.timeline is not None
        panel = ChatPanel(one, mode="text", temperature=0)
        panel.send("What is GGUF?")
        panel.wait()
        shown = str(panel)
        panel.close()
        # This server runs on the CPU; had it the card, its energy would be told.
        wait_for(lambda: bool(one.monitor.latest()))
        one.timeline._kept.servers.clear()
        one.timeline._kept.changes += 1
        chat = one.timeline.requests[-1]
        told = one.timeline.describe(chat)
        one.client.chat_completion(QUESTION, extra_body={"id_slot": 0})
        marks = [mark.text for mark in one.monitor.marks]
    assert "· slot 0)" in shown
    assert told.startswith("slot 0 · ")
    assert " J/token · peak 3.0 MiB" in told
    assert marks[-1].startswith("request: ")
    assert marks[-1].endswith(" tokens, slot 0")


# ── shown ────────────────────────────────────────────────────────────────────────


def test_in_a_program_lines_go_to_the_error_output(
    embedded: Engine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line a step; none where progress bars are turned off."""
    launch("demo", engine=embedded).close()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.split()[1] for line in shown.err.splitlines()] == NAMES

    monkeypatch.setenv("TQDM_DISABLE", "1")
    launch("demo", engine=embedded)
    assert capsys.readouterr().err == ""


CELLS = (
    "from llamatelemetry import launch\nsession = launch('demo', engine='embedded')",
    "session",
    "launch('demo', engine='embedded')",
    "session.relaunch('/nowhere/m.gguf')",
)


def test_in_a_real_notebook_one_output_shows_the_launch(tmp_path: Path) -> None:
    """The cell's one output holds the last state; a failure shows its sentence."""
    program = RUN_CELLS.read_text().replace(
        "timeout=120,", "timeout=120, allow_errors=True,"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *CELLS],
        env={
            **os.environ,
            "IPYTHONDIR": str(tmp_path / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, state, again, wrong = json.loads(done.stdout)["cells"]
    (output,) = first["outputs"]
    html = "".join(output["data"]["text/html"])
    assert output["output_type"] == "display_data"
    assert "Launched" in html
    assert "ready at http" in html
    assert html.count("✓") == len(NAMES)
    assert "ready at http" in "".join(state["outputs"][0]["data"]["text/html"])
    assert "runs already" in json.dumps(again["outputs"], ensure_ascii=False)
    assert wrong["outputs"][0]["output_type"] == "display_data"
    assert "there is no file" in json.dumps(wrong["outputs"][0])
    assert wrong["outputs"][-1]["output_type"] == "error"


def test_a_client_of_ones_own_can_mark_too(embedded: Engine) -> None:
    """on_request is public: another client's requests are marked with it."""
    session = launch("demo", engine=embedded, progress=False)
    with LlamaCppClient(session.url, on_request=session.on_request) as client:
        client.chat_completion(QUESTION)
    assert session.monitor.marks[-1].text.startswith("request: ")
