"""LLAMATELEMETRY_DEMO: notebooks written for a T4 run anywhere."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from nvml_tools import StandInDriver, t4

from llamatelemetry import (
    detect_gpus,
    ensure_engine,
    ensure_model,
    launch,
    plan_placement,
    prepare,
)
from llamatelemetry._demo import (
    DEMO_MODEL,
    DEMO_QUESTIONS,
    DEMO_THREADS,
    is_demo_mode,
)
from llamatelemetry.api import kaggle_t4_dual_config
from llamatelemetry.exceptions import ConfigurationError, SetupWarning
from llamatelemetry.server.engine import find_engine
from llamatelemetry.setup import SetupPlan, pack
from llamatelemetry.widgets._plan_preview import Headers

QUESTION = [{"role": "user", "content": DEMO_QUESTIONS[0]}]


@pytest.fixture(autouse=True)
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set the switch, and leave no cache in which a model could lie."""
    monkeypatch.setenv("LLAMATELEMETRY_DEMO", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("LLAMATELEMETRY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("yes", True), ("0", False), ("", False)]
)
def test_the_switch(monkeypatch: pytest.MonkeyPatch, value: str, *, on: bool) -> None:
    """Any value but 0 and nothing turns it on."""
    monkeypatch.setenv("LLAMATELEMETRY_DEMO", value)

    assert on == is_demo_mode()


@pytest.mark.parametrize(
    "name", ["qwen3-4b", "Qwen3-4B", "Qwen/Qwen3-4B-GGUF:Q4_K_M", "Qwen/Qwen3-4B-GGUF"]
)
def test_a_catalog_model_is_the_demo_model(name: str) -> None:
    """By whatever name of the catalog: the demo model stands in, and that is said."""
    with pytest.warns(SetupWarning, match="stands in for qwen3-4b") as told:
        model = ensure_model(name)

    assert model.path == DEMO_MODEL
    assert model.stands_for == "qwen3-4b"
    assert len(told) == 1
    assert __file__ == told[0].filename


def test_a_model_that_was_got_is_taken_as_it_is() -> None:
    """What ensure_model gave is not asked for again, and goes on standing in."""
    with pytest.warns(SetupWarning):
        model = ensure_model("qwen3-4b")
    with pytest.warns(SetupWarning):
        again = prepare(model)

    assert model == again.model


def test_the_demo_model_itself_stands_for_nothing() -> None:
    """Asked for by its own name it is no stand-in, and nothing is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ensure_model("demo")

    assert model.stands_for is None


def test_a_name_that_is_none_is_refused() -> None:
    """A misspelt name is still an error with the nearest names."""
    with pytest.raises(ConfigurationError, match="qwen3-14b"):
        ensure_model("qwen3-15b")


@pytest.mark.parametrize("asked", [None, "of the manifest", "embedded"])
def test_the_engine_is_the_embedded_one(asked: str | None) -> None:
    """Whatever engine would be fetched, the embedded one is used."""
    found = ensure_engine(_known(asked))

    assert found.source == "embedded"
    assert find_engine().source == "embedded"


def _known(engine: str | None) -> str | None:
    """Return a name that the manifest has."""
    if engine in (None, "embedded"):
        return engine
    from llamatelemetry.setup._manifest import manifest

    return next(entry.id for entry in manifest().engines)


@pytest.mark.parametrize("asked", [None, "embedded", "of the manifest"])
def test_a_dry_run_fetches_nothing(asked: str | None) -> None:
    """What prepare() would fetch is nothing at all."""
    plan = prepare("qwen3-4b", engine=_known(asked), dry_run=True)

    assert isinstance(plan, SetupPlan)
    assert plan.download_bytes == 0


def test_launch_plans_the_named_model(driver: StandInDriver) -> None:
    """What runs is the demo model; the plan on the cards is the named one's."""
    driver.describe(t4(0), t4(1))
    with pytest.warns(SetupWarning, match="stands in for"):
        session = launch("qwen3-32b", progress=False, context_size=8192)
    with session as one:
        answer = one.client.chat_completion(QUESTION, temperature=0)
        text = repr(one)
        placement = one.plan

    assert placement.kind == "layer"
    assert all(size > 9 * 2**30 for size in placement.expected_bytes.values())
    assert "GGUF is a file format" in answer.choices[0].message.content
    assert "stands in for qwen3-32b" in text


def test_launch_says_it_once(
    driver: StandInDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    """Among the steps of a launch one line says that the demo model stands in."""
    driver.describe(t4(0), t4(1))
    with launch("qwen3-4b", goal="throughput", parallel=4) as session:
        kind = session.plan.kind
    captured = capsys.readouterr()

    assert kind == "replicas"
    assert (captured.out + captured.err).count("stands in for qwen3-4b") == 1


def test_launch_warns_once_without_steps(driver: StandInDriver) -> None:
    """Where no steps are shown, one warning says it."""
    driver.describe(t4(0))
    with (
        pytest.warns(SetupWarning) as told,
        launch("qwen3-4b", progress=False, replace=True),
    ):
        pass

    assert len(told) == 1


def test_launch_without_a_name_takes_what_the_cards_would_hold(
    driver: StandInDriver,
) -> None:
    """Nothing named: the model that would be recommended for the cards is planned."""
    driver.describe(t4(0), t4(1))
    with (
        pytest.warns(SetupWarning, match="stands in for"),
        launch(progress=False) as one,
    ):
        assert one.model.stands_for is not None


def test_a_placement_of_a_prepared_model_runs(driver: StandInDriver) -> None:
    """The configurations of such a placement name a file that can be started."""
    driver.describe(t4(0), t4(1))
    with pytest.warns(SetupWarning):
        model = ensure_model("qwen3-14b")

    placement = plan_placement(model, detect_gpus(), goal="throughput")

    assert placement.kind == "replicas"
    assert [str(DEMO_MODEL)] * 2 == [one.model_path for one in placement.configs]


def test_a_capsule_of_a_named_model_is_packed_without_a_connection(
    tmp_path: Path,
) -> None:
    """pack() takes the demo model and the embedded engine, and says so."""
    with pytest.warns(SetupWarning, match="no wheels but those that are named"):
        capsule = pack(tmp_path / "capsule", model="qwen3-4b", progress=False)
    prepared = prepare(capsule=capsule.folder)

    packed = prepared.model.path
    assert packed.read_bytes() == DEMO_MODEL.read_bytes()
    assert prepared.engine.source == "embedded"


def test_the_packages_own_model_gets_no_second_name(tmp_path: Path) -> None:
    """A capsule's file may be edited without changing the model in the package."""
    before = DEMO_MODEL.stat().st_nlink
    with pytest.warns(SetupWarning):
        pack(tmp_path / "capsule", model="qwen3-4b", progress=False)

    assert DEMO_MODEL.stat().st_nlink == before


def test_the_demo_model_runs_on_one_thread() -> None:
    """A prepared configuration of the demo model has the threads that suit it."""
    config = prepare("demo", progress=False).config()

    assert config.threads == DEMO_THREADS
    assert prepare("demo", progress=False).config(threads=3).threads == 3


def test_the_server_panel_plans_the_named_model(driver: StandInDriver) -> None:
    """What is drawn before Start is the plan of the model that was chosen."""
    driver.describe(t4(0), t4(1))
    header = Headers().get("qwen3-32b", ask_hub=False)

    assert header.metadata["general.architecture"] == "qwen3"


def test_the_configuration_for_two_t4s_is_the_named_models() -> None:
    """kaggle_t4_dual_config() plans the model that a demo model stands in for."""
    with pytest.warns(SetupWarning):
        model = ensure_model("qwen3-32b")

    notes = " ".join(kaggle_t4_dual_config(model).notes)

    assert "33 layers, 10." in notes
