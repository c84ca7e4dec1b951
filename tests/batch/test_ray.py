"""A batch on a Ray cluster: 0 lost, 0 twice, nothing left running, nobody else let in.

Ray itself runs in a program of its own, ``ray_batch.py``. What does not need it is
tested here: with real servers, and without Ray.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coverage
import pyarrow as pa
import pytest

from llamatelemetry.batch import RayCluster, map_prompts
from llamatelemetry.batch import _ray as ray_room
from llamatelemetry.batch import _ray_actor as actor_room
from llamatelemetry.batch import _ray_flow as flow_room
from llamatelemetry.batch._answer import Asking
from llamatelemetry.batch._asks import Ask
from llamatelemetry.batch._ray_actor import (
    ASKS,
    RECORDS,
    Questions,
    RayServer,
    ServerPlan,
    read_records,
    write_asks,
)
from llamatelemetry.batch._ray_flow import Flow
from llamatelemetry.batch._rows import Row
from llamatelemetry.exceptions import (
    AuthenticationError,
    BatchError,
    ConfigurationError,
    SetupError,
)
from llamatelemetry.server import ServerConfig, ServerManager, find_engine

ROWS = 300
SAMPLING: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
PROGRAM = Path(__file__).parent / "ray_batch.py"
DEMO = Path(ray_room.__file__).parents[1] / "data" / "demo-q8_0.gguf"


def asks(count: int, words: str = "What is GGUF?") -> list[Ask]:
    """Return so many questions."""
    message = [{"role": "user", "content": words}]
    return [Ask(Row(i, f"row {i}", None), message, f"{i:032x}") for i in range(count)]


# ── the whole, on a local cluster ────────────────────────────────────────────────


def python() -> list[str]:
    """Return how to run a program, which is measured if this one is.

    Only the program itself: in Ray's workers and in servers it would cost more than it
    tells.
    """
    measured = coverage.Coverage.current()
    if measured is None:
        return [sys.executable]
    data = f"--data-file={os.path.abspath(measured.config.data_file)}"
    return [sys.executable, "-m", "coverage", "run", "--parallel-mode", data]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program tells, which has run once for all tests that ask."""
    folder = tmp_path_factory.mktemp("ray")
    # JupyterLab brings a grammar of addresses, with which jsonschema, and so each of
    # Ray's fifteen processes, spends a second of CPU when it is imported.
    (folder / "rfc3987_syntax.py").write_text("raise ImportError")
    # Ray keeps a token in the home folder, if it is to make one.
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": "",
        "PYTHONPATH": str(folder),
    }
    done = subprocess.run(
        [*python(), str(PROGRAM), str(folder), str(ROWS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    lines = (folder / "results.jsonl").read_text().splitlines()
    told["screen"] = done.stderr
    told["records"] = [json.loads(line) for line in lines]
    return told


@pytest.mark.slow
def test_nothing_is_lost_or_asked_twice(whole: dict[str, Any]) -> None:
    """Through Ctrl-C, a killed worker and a resumed run each row is answered once."""
    ids = [record["id"] for record in whole["records"]]

    assert sorted(ids) == list(range(ROWS))
    assert whole["second"]["done"] == ROWS
    assert whole["second"]["failed"] == 0
    assert whole["second"]["at"]["orphans"]  # a worker with a server was killed


@pytest.mark.slow
def test_answers_equal_those_of_an_undisturbed_run(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    """Rows answered on the cluster have the answers and keys of one server here."""
    config = ServerConfig(str(DEMO), port=0, threads=1, context_size=512, parallel=2)
    with ServerManager(config, engine=find_engine("embedded")) as server:
        map_prompts(
            range(ROWS),
            whole["prompt"],
            to=server,
            out=tmp_path / "results.jsonl",
            progress=False,
            **whole["sampling"],
        )
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    alone = {record["id"]: record for record in map(json.loads, lines)}

    assert {r["id"]: (r["key"], r["answer"]) for r in whole["records"]} == {
        name: (record["key"], record["answer"]) for name, record in alone.items()
    }


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_answered_and_ends_the_servers(
    whole: dict[str, Any],
) -> None:
    """After Ctrl-C some rows are kept, others left, and the servers are gone."""
    first = whole["first"]

    assert "the same call goes on" in first["interrupted"]
    assert first["at"]["done"] <= first["lines"] < ROWS
    assert first["at"]["servers"]
    assert not whole["servers_left"]


@pytest.mark.slow
def test_a_server_dies_with_its_killed_worker(whole: dict[str, Any]) -> None:
    """The server of a worker that was killed with SIGKILL does not outlive it."""
    assert not whole["orphans_left"]


@pytest.mark.slow
def test_a_run_with_nothing_to_ask_needs_no_cluster(whole: dict[str, Any]) -> None:
    """A third call finds all rows answered, and adds no line."""
    assert whole["third"]["done"] == ROWS
    assert whole["third"]["lines"] == ROWS


@pytest.mark.slow
def test_a_cluster_ends_with_its_last_user(whole: dict[str, Any]) -> None:
    """A call that began the cluster leaves it to who uses it besides."""
    assert whole["kept"]


@pytest.mark.slow
def test_ray_has_nothing_to_tell(whole: dict[str, Any]) -> None:
    """Neither a deprecated option of Ray's nor its accounts reach the screen."""
    assert "Warning" not in whole["screen"]
    assert "Traceback" not in whole["screen"]


@pytest.mark.slow
def test_nothing_is_left_running(whole: dict[str, Any]) -> None:
    """Neither servers nor anything of Ray's outlives the run."""
    assert not whole["left"]


@pytest.mark.slow
def test_only_this_machine_is_let_in(whole: dict[str, Any]) -> None:
    """All that listens, Ray's own processes too, listens at the loopback address."""
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}

    assert set(whole["first"]["at"]["addresses"]) <= loopback
    assert whole["first"]["at"]["addresses"]


# ── the value ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"servers": 0}, "servers"),
        ({"servers": True}, "servers"),
        ({"gpus_per_server": -1}, "gpus_per_server"),
        ({"gpus_per_server": 0.5}, "gpus_per_server"),
        ({"cpus_per_server": 0}, "cpus_per_server"),
        ({"cpus_per_server": "2"}, "cpus_per_server"),
        ({"parallel": 0}, "parallel"),
        ({"context_size": 0}, "context_size"),
        ({"port": 8080}, "port"),
        ({"ctx_size": 10}, "context_size"),
        ({"address": 6379}, "address"),
        ({"address": ""}, "address"),
    ],
)
def test_a_value_that_cannot_work_is_refused(
    values: dict[str, Any], named: str
) -> None:
    """Each wrong value is refused when the cluster is described, and named."""
    with pytest.raises(ConfigurationError, match=named):
        RayCluster("demo", **values)


def test_a_file_is_named_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers run in other folders, so a model's path is made a whole one."""
    (tmp_path / "model.gguf").touch()
    monkeypatch.chdir(tmp_path)

    assert RayCluster("model.gguf").model == str(tmp_path / "model.gguf")
    assert RayCluster("qwen3-4b").model == "qwen3-4b"


def test_a_key_is_not_shown() -> None:
    """Neither a cluster nor what its workers are given shows the servers' key."""
    cluster = RayCluster("demo", api_key="hush")

    assert "hush" not in repr(cluster)
    assert "hush" not in repr(ServerPlan("demo", None, cluster.options(1), 5, 2))


@pytest.mark.parametrize(
    ("values", "machines", "places"),
    [
        ({}, [(4, 16)], (4, 1)),
        ({"gpus_per_server": 2}, [(5, 16)], (2, 2)),
        ({"gpus_per_server": 2}, [(3, 16), (1, 16), (2, 16)], (2, 2)),
        ({"servers": 3}, [(2, 8), (2, 8)], (3, 1)),
        ({}, [(0, 8)], (8, 0)),
        ({}, [(0, 8), (1, 8)], (1, 1)),
        ({"cpus_per_server": 3}, [(0, 8), (0, 2)], (2, 0)),
        ({"cpus_per_server": 0.1}, [(0, 0.3)], (3, 0)),
        ({"gpus_per_server": 0, "cpus_per_server": 4}, [(4, 8)], (2, 0)),
        ({"cpus_per_server": 4}, [(8, 8)], (2, 1)),
    ],
)
def test_servers_fill_the_cluster(
    values: dict[str, Any],
    machines: list[tuple[float, float]],
    places: tuple[int, int],
) -> None:
    """Each group of a machine's cards has a server, or of CPUs where there are none."""
    assert RayCluster("demo", **values).places(machines) == places


@pytest.mark.parametrize(
    ("values", "machines", "told"),
    [
        ({"servers": 5}, [(4, 16)], "16 CPUs and 4 cards on 1 machines"),
        ({"gpus_per_server": 8}, [(4, 16)], "16 CPUs and 4 cards"),
        ({"gpus_per_server": 2}, [(1, 4), (1, 4)], "2 machines, which is room for 0"),
        ({"servers": 9}, [(0, 8)], "room for 8 servers"),
        ({}, [], "0 CPUs and 0 cards on 0 machines"),
    ],
)
def test_servers_for_which_there_is_no_room_are_refused(
    values: dict[str, Any], machines: list[tuple[float, float]], told: str
) -> None:
    """Ray would wait for ever for cards that no machine of the cluster has."""
    with pytest.raises(ConfigurationError, match=told):
        RayCluster("demo", **values).places(machines)


def test_machines_that_are_gone_are_not_counted() -> None:
    """What a machine has counts for as long as it lives."""
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 4.0}},
        {"Alive": True, "Resources": {"memory": 1.0}},
    ]

    found = ray_room._machines(SimpleNamespace(nodes=lambda: nodes))

    assert found == [(2.0, 8.0), (0, 0)]


NEEDS = {"CPU": 0.5, "GPU": 1}


def test_room_is_waited_for() -> None:
    """What a run before this one had may be free a moment later."""
    free = iter([{}, {"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}])

    flow_room.wait_for_room(lambda: next(free), NEEDS, threading.Event())

    assert next(free, None) is None


def test_room_that_others_have_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others have all cards the run says so, and does not wait for ever."""
    monkeypatch.setattr(flow_room, "_ROOM_SECONDS", 0.0)

    with pytest.raises(BatchError, match="8 CPUs and 0 cards are free.*0.5 and 1"):
        flow_room.wait_for_room(lambda: {"CPU": 8.0}, NEEDS, threading.Event())


def test_room_is_not_waited_for_once_called_off() -> None:
    """A second Ctrl-C ends this wait as well."""
    off = threading.Event()
    off.set()

    flow_room.wait_for_room(dict, NEEDS, off)


def test_an_old_and_a_new_ray_are_told_of_several_chunks_at_once() -> None:
    """The option that Ray is about to drop is given to a Ray that knows no other."""

    def old(**values: Any) -> dict[str, Any]:
        return values

    def new(*, max_concurrent_calls_per_actor: int, **values: Any) -> dict[str, Any]:
        return {"calls": max_concurrent_calls_per_actor, **values}

    at_once = ray_room._CHUNKS_AT_ONCE
    assert ray_room._actors(old, 2)["max_concurrency"] == at_once
    assert ray_room._actors(old, 2)["compute"]["size"] == 2
    assert ray_room._actors(new, 2).keys() == {"compute"}
    assert ray_room._actors(new, 2)["compute"]["calls"] == at_once


def test_context_is_for_each_request() -> None:
    """A server gets the context of all its slots; one without cards sees none."""
    cluster = RayCluster("qwen3-4b", parallel=3, context_size=1000, cpus_per_server=2)

    assert cluster.options(1) == {"parallel": 3, "context_size": 3000}
    assert cluster.options(0) == {
        "parallel": 3,
        "context_size": 3000,
        "n_gpu_layers": 0,
        "visible_devices": "",
        "threads": 2,
    }
    assert RayCluster("demo", threads=3).options(0)["threads"] == 3


def test_without_ray_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ray is missing the error says what to install; nothing was started."""
    monkeypatch.setitem(sys.modules, "ray.data", None)
    rows = RayCluster("demo").run_rows(
        iter(asks(1)),
        Asking(),
        retries=0,
        concurrency="auto",
        called_off=threading.Event(),
    )

    with pytest.raises(SetupError, match=r'pip install "ray\[data\]"'):
        next(rows)


class StandInRay:
    """What looks like Ray on a machine that has one address."""

    __version__ = "9.9"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
        self.constants = SimpleNamespace(ENABLE_RAY_CLUSTER=True)
        self.hook = SimpleNamespace(enable_auto_connect=True)
        modules = {"ray_constants": self.constants, "auto_init_hook": self.hook}
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, f"ray._private.{name}", module)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        self.util = SimpleNamespace(get_node_ip_address=lambda: address)
        self.calls: list[dict[str, Any]] = []
        self.runs = False
        self.trouble: BaseException | None = None

    def init(self, **values: Any) -> None:
        switches = self.constants.ENABLE_RAY_CLUSTER, self.hook.enable_auto_connect
        self.calls.append({**values, "switches": switches})
        if self.trouble is not None:
            raise self.trouble
        self.runs = True

    def shutdown(self) -> None:
        self.calls.append({"shutdown": self.hook.enable_auto_connect})
        self.runs = False

    def is_initialized(self) -> bool:
        return self.runs

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address="192.0.2.7:6379")


def test_a_ray_that_does_not_keep_to_this_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A local cluster that others can reach is ended again at once."""
    ray = StandInRay(monkeypatch, "192.0.2.7")

    with (
        pytest.raises(SetupError, match="Ray 9.9 binds a local cluster to 192.0.2.7"),
        ray_room._Shared().use(ray, None),
    ):
        pass

    assert ray.calls[0]["_node_ip_address"] == "127.0.0.1"
    assert ray.calls[0]["include_dashboard"] is False
    assert ray.calls[0]["switches"] == (False, False)
    assert ray.calls[1:] == [{"shutdown": False}]
    assert ray.constants.ENABLE_RAY_CLUSTER is True
    assert ray.hook.enable_auto_connect is True


def test_what_is_left_of_a_batch_begins_no_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray begins a cluster, open to others, for a call that comes after the end."""
    ray = StandInRay(monkeypatch, "127.0.0.1")

    with ray_room._Shared().use(ray, None):
        assert ray.hook.enable_auto_connect is False

    assert ray.calls[1:] == [{"shutdown": False}]
    assert ray.hook.enable_auto_connect is True


def test_a_ray_without_these_switches_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another version may have no such switch, or not the module that had it."""
    ray = StandInRay(monkeypatch, "127.0.0.1")
    del ray.hook.enable_auto_connect
    monkeypatch.setitem(sys.modules, "ray._private.ray_constants", None)

    with ray_room._set("ray._private.auto_init_hook", "enable_auto_connect", value=0):
        assert not vars(ray.hook)
    with ray_room._set("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", value=0):
        pass


@pytest.mark.parametrize(
    ("address", "variable", "used"),
    [
        ("ray-head:6379", None, "ray-head:6379"),
        ("ray-head:6379", "other:6379", "ray-head:6379"),
        (None, "other:6379", "other:6379"),
        (None, "", "local"),
    ],
)
def test_an_address_is_connected_to_and_let_go(
    address: str | None,
    variable: str | None,
    used: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cluster elsewhere is used as it is, also the one whose job this program is."""
    ray = StandInRay(monkeypatch, "127.0.0.1")
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)

    with ray_room._Shared().use(ray, address):
        assert ray.calls[0]["address"] == used

    assert ray.calls[1:] == [{"shutdown": False}]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (None, "Ray 9.9 does not start: no room in /dev/shm"),
        ("ray-head:6379", "Ray 9.9 does not reach a cluster at ray-head:6379: no room"),
    ],
)
def test_a_cluster_that_cannot_be_had_is_an_error_of_the_setup(
    address: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever Ray raises comes as ours, and what was begun is ended."""
    ray, shared = StandInRay(monkeypatch, "127.0.0.1"), ray_room._Shared()
    ray.trouble = ConnectionError("no room in /dev/shm")

    with pytest.raises(SetupError, match=told), shared.use(ray, address):
        pass
    assert ray.calls[1:] == [{"shutdown": False}]
    ray.trouble = None

    with shared.use(ray, address):
        assert ray.runs
    assert not ray.runs


def test_a_cluster_of_several_batches_ends_with_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one that began it may end before the others, and another may begin anew."""
    ray, shared = StandInRay(monkeypatch, "127.0.0.1"), ray_room._Shared()
    first, second = shared.use(ray, None), shared.use(ray, None)

    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert ray.runs
    assert ray.hook.enable_auto_connect is False
    second.__exit__(None, None, None)
    assert not ray.runs
    with shared.use(ray, None):
        assert ray.runs

    assert [("shutdown" in call) for call in ray.calls] == [False, True, False, True]


def test_a_cluster_that_the_program_uses_is_left_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is used as it is; an address of another one is refused, not passed over."""
    ray = StandInRay(monkeypatch, "127.0.0.1")
    ray.runs = True

    for address in (None, "auto", "192.0.2.7:6379"):
        with ray_room._Shared().use(ray, address):
            pass
    with (
        pytest.raises(ConfigurationError, match="uses the Ray cluster at 192.0.2.7"),
        ray_room._Shared().use(ray, "ray-head:6379"),
    ):
        pass

    assert ray.calls == []


# ── the server in a worker ───────────────────────────────────────────────────────


def plan(**options: Any) -> ServerPlan:
    """Return the plan of a small server."""
    config = {"threads": 1, "context_size": 512, "parallel": 2, **options}
    return ServerPlan("demo", "embedded", config, at_once=3, retries=2)


@pytest.fixture
def make() -> Iterator[Callable[..., RayServer]]:
    """Start servers that are stopped after the test."""
    made: list[RayServer] = []

    def start(server_plan: ServerPlan, asking: Asking) -> RayServer:
        made.append(RayServer(server_plan, asking))
        return made[-1]

    yield start
    for server in made:
        server.close()


def test_a_block_is_answered_in_its_order(make: Callable[..., RayServer]) -> None:
    """Records come in the order of the questions, which a repeated block needs."""
    server = make(plan(), Asking(SAMPLING))
    table = pa.table({ASKS: [write_asks(asks(7)), "", write_asks(asks(2))]})

    texts = server(table)[RECORDS]

    ids = [[record["id"] for record in read_records(text)[0]] for text in texts]
    assert ids == [[f"row {i}" for i in range(7)], [], ["row 0", "row 1"]]
    first = read_records(texts[0])[0][0]
    assert first["answer"].startswith("GGUF")
    assert first["server"].endswith(server._client.base_url)


def test_a_server_that_was_killed_is_started_again(
    make: Callable[..., RayServer],
) -> None:
    """Questions that find the server gone are answered by the next one."""
    server = make(plan(), Asking(SAMPLING))
    before = server._server.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)

    records, fatal = read_records(server.answered(write_asks(asks(5))))

    assert fatal is None
    assert [record["error"] for record in records] == [None] * 5
    assert server._server.pid != before


def test_a_server_that_runs_is_not_started_again(
    make: Callable[..., RayServer],
) -> None:
    """Before another try a server that answers is left as it is."""
    server = make(plan(), Asking(SAMPLING))
    before = server._server.pid

    server._wait()

    assert server._server.pid == before


def test_a_server_that_says_nothing_is_not_waited_for_without_end(
    make: Callable[..., RayServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that runs and does not answer costs a try, not the whole batch."""
    monkeypatch.setattr(actor_room, "_SILENT_SECONDS", 0.2)
    server = make(plan(), Asking(SAMPLING))
    pid = server._server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)

    server._wait()
    os.kill(pid, signal.SIGCONT)

    assert server._server.pid == pid


def test_a_server_that_does_not_start_is_told_with_the_first_chunk(
    make: Callable[..., RayServer],
) -> None:
    """What fails in a worker comes back as a text, and says why."""
    nowhere = ServerPlan("/nowhere/model.gguf", "embedded", {}, at_once=1, retries=0)
    server = make(nowhere, Asking())

    records, fatal = read_records(server.answered(write_asks(asks(1))))

    assert records == []
    assert fatal is not None
    assert "/nowhere/model.gguf" in fatal[1]


def test_a_server_that_wants_another_key_ends_the_run(
    make: Callable[..., RayServer],
) -> None:
    """A refused key is no row's failure: the worker tells it as the end."""
    server = make(plan(api_key="right"), Asking(SAMPLING))
    server._key = "wrong"
    server._client = server._connect()

    records, fatal = read_records(server.answered(write_asks(asks(2))))

    assert records == []
    assert fatal is not None
    assert fatal[0] == "AuthenticationError"


# ── the window of questions ──────────────────────────────────────────────────────


class Here:
    """Chunks that are answered in this process, by a function."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.questions, self.answer = Questions(), answer
        self.put, self.forget = self.questions.put, self.questions.forget
        self.finish = self.questions.finish
        self.over = threading.Event()

    def end(self) -> None:
        self.over.set()
        self.questions.finish()

    def work(self) -> Iterator[str]:
        place = 0
        while (text := self.questions.get(place)) is not None:
            yield self.answer(text)
            place += 1


def echo(text: str) -> str:
    """Return a record for each question."""
    found = json.loads(text or "[]")
    return json.dumps([{"id": name, "key": key} for _, name, _, key in found])


def flow(
    source: Iterator[Ask], here: Here, called_off: threading.Event | None = None
) -> Flow:
    """Return a window of two chunks of three questions."""
    off = called_off or threading.Event()
    return Flow(source, here, size=3, ahead=2, called_off=off)


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_each_question_comes_back_once(count: int) -> None:
    """Whole chunks and a rest come through; what works on them is ended."""
    here = Here(echo)
    with flow(iter(asks(count)), here) as window:
        ids = [record["id"] for record in window.records(here.work)]

    assert ids == [ask.row.id for ask in asks(count)]
    assert here.over.is_set()


def test_records_that_come_again_are_dropped() -> None:
    """A block that Ray has done twice gives its rows once."""
    here = Here(echo)

    def twice() -> Iterator[str]:
        for text in here.work():
            yield text
            yield text

    with flow(iter(asks(10)), here) as window:
        ids = [record["id"] for record in window.records(twice)]

    assert sorted(ids) == sorted(ask.row.id for ask in asks(10))


def test_only_a_window_of_questions_is_taken() -> None:
    """Beyond two chunks nothing is taken before answers have come."""
    taken: list[Ask] = []
    go, here = threading.Event(), Here(echo)

    def source() -> Iterator[Ask]:
        for ask in asks(30):
            taken.append(ask)
            yield ask
            if len(taken) == 6:
                go.set()

    most = 0
    with flow(source(), here) as window:
        for number, _ in enumerate(window.records(here.work)):
            most = max(most, len(taken) - number)

    assert len(taken) == 30
    assert most <= 2 * 3 + 3  # and the chunk whose room has just become free


def test_a_chunk_that_was_answered_is_let_go() -> None:
    """Questions do not pile up; a reader that begins anew finds its place kept."""
    here = Here(echo)
    with flow(iter(asks(9)), here) as window:
        list(window.records(here.work))

    assert [here.questions.get(place) for place in range(4)] == ["", "", "", None]


def test_chunks_that_arrive_out_of_order_keep_their_places() -> None:
    """Calls to a worker of Ray's may overtake each other; what is meant is said."""
    questions = Questions()
    questions.put(1, "second")
    questions.put(0, "first")
    questions.finish()

    assert [questions.get(place) for place in range(3)] == ["first", "second", None]


def test_called_off_it_ends_without_waiting() -> None:
    """Nothing that runs is waited for once it is called off."""
    off, work_ended = threading.Event(), threading.Event()
    here = Here(echo)

    def stuck() -> Iterator[str]:
        yield next(here.work())
        here.over.wait()
        work_ended.set()

    with flow(iter(asks(30)), here, off) as window:
        records = window.records(stuck)
        next(records)
        off.set()
        rest = list(records)
        assert not here.over.is_set()

    assert len(rest) <= 2  # of the chunk that had come
    assert work_ended.is_set()  # so that a cluster is not ended while it is used


def test_work_that_does_not_end_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Work that is ended and goes on all the same does not hold up the end."""
    monkeypatch.setattr(flow_room, "_END_SECONDS", 0.1)
    off, never = threading.Event(), threading.Event()
    here = Here(echo)

    def stuck() -> Iterator[str]:
        yield next(here.work())
        never.wait()

    with flow(iter(asks(30)), here, off) as window:
        next(window.records(stuck))
        off.set()

    assert not never.is_set()
    never.set()


def test_after_a_silence_it_is_asked_whether_answers_can_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where machines are gone Ray waits for ever: the run ends, and says why."""
    monkeypatch.setattr(flow_room, "_SILENT_SECONDS", 0.0)
    here, off = Here(echo), threading.Event()
    looks = iter([[(1, 4), (1, 4)], [(1, 4), (0, 4)]])

    def check() -> None:
        RayCluster("demo").check(next(looks), 2, 1)

    def lost() -> Iterator[str]:
        yield next(here.work())
        here.over.wait()

    with (
        Flow(
            iter(asks(9)), here, size=3, ahead=2, called_off=off, check=check
        ) as window,
        pytest.raises(BatchError, match="room for 1 of 2 servers"),
    ):
        list(window.records(lost))

    assert next(looks, None) is None  # the first look found all machines


def test_work_that_ends_too_soon_is_an_error() -> None:
    """Answers that never come are counted, not passed over."""
    here = Here(echo)

    def one() -> Iterator[str]:
        yield next(here.work())

    with (
        flow(iter(asks(6)), here) as window,
        pytest.raises(BatchError, match="answers that were asked for"),
    ):
        list(window.records(one))


def test_what_ray_raises_is_told_as_ours() -> None:
    """An error of Ray's ends the run as a BatchError, with it as the cause."""

    def fails() -> Iterator[str]:
        raise RuntimeError("many lines\nthe last one")
        yield ""

    with (
        flow(iter(asks(1)), Here(echo)) as window,
        pytest.raises(BatchError, match="Ray fails: the last one") as caught,
    ):
        list(window.records(fails))

    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("kind", "error"),
    [("AuthenticationError", AuthenticationError), ("OutOfMemoryError", BatchError)],
)
def test_what_a_worker_tells_ends_the_run(kind: str, error: type[Exception]) -> None:
    """A server that fails for good ends the run with what it said."""
    here = Here(lambda _: json.dumps({"fatal": [kind, "no room on card 0"]}))

    with (
        flow(iter(asks(1)), here) as window,
        pytest.raises(error, match="no room on card 0"),
    ):
        list(window.records(here.work))


def test_what_the_rows_raise_ends_the_run_as_it_is() -> None:
    """An error of the caller's own iterator comes out unchanged."""

    def source() -> Iterator[Ask]:
        yield from asks(3)
        raise ZeroDivisionError

    here = Here(echo)
    with flow(source(), here) as window, pytest.raises(ZeroDivisionError):
        list(window.records(here.work))
