"""The options of a start, as a value and as controls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from nvml_tools import StandInDriver, t4
from panel_tools import Recorder, change, ipywidgets

from llamatelemetry.gguf import read_header
from llamatelemetry.gpu import detect_gpus
from llamatelemetry.session import launch
from llamatelemetry.widgets._outbox import Outbox
from llamatelemetry.widgets._server_options import OptionsForm, ServerOptions


@pytest.fixture
def form(page: Recorder, driver: StandInDriver) -> OptionsForm:
    """The controls on a machine with two T4s."""
    driver.describe(t4(0), t4(1, name="<b>odd & bold</b>"))
    made = OptionsForm(ipywidgets(), Outbox(direct=True), detect_gpus())
    made.fill(ServerOptions())
    return made


def control(form: OptionsForm, field: str | int) -> Any:
    """Return the control of a field."""
    return next(widget for widget, name in form.fields if name == field)


def test_controls_say_what_the_options_are(form: OptionsForm) -> None:
    """Every field is shown, all cards ticked where none are named."""
    options = ServerOptions(
        "demo", 8192, (1,), "throughput", 4, "q8_0", "q4_0", flash_attn=True
    )
    form.fill(options)
    said = {name: widget.value for widget, name in form.fields}

    assert said == {
        "context_size": 8192, "parallel": 4, "goal": "throughput",
        "cache_type_k": "q8_0", "cache_type_v": "q4_0", 0: False, 1: True,
        "flash_attn": True,
    }  # fmt: skip
    form.fill(replace(options, gpus=None, parallel=None))
    assert control(form, 0).value
    assert control(form, "parallel").value == 0


@pytest.mark.parametrize(
    ("field", "value", "changed"),
    [
        ("context_size", 1024, {"context_size": 1024}),
        ("parallel", 3, {"parallel": 3}),
        ("parallel", 0, {"parallel": None}),
        ("goal", "throughput", {"goal": "throughput"}),
        ("cache_type_k", "q8_0", {"cache_type_k": "q8_0"}),
        ("flash_attn", False, {"flash_attn": False}),
        (0, False, {"gpus": (1,)}),
        (1, False, {"gpus": (0,)}),
    ],
)
def test_a_control_changes_its_own_field_only(
    form: OptionsForm, field: str | int, value: Any, changed: dict[str, Any]
) -> None:
    """Whatever the others show at that moment."""
    options = ServerOptions(parallel=2)

    assert form.changed(options, field, value) == replace(options, **changed)


def test_all_cards_ticked_are_all_cards(form: OptionsForm) -> None:
    """None ticked is the CPU, and ticking the last one again means all there are."""
    none = form.changed(form.changed(ServerOptions(), 0, value=False), 1, value=False)
    assert none.gpus == ()
    one = form.changed(none, 1, value=True)
    assert one.gpus == (1,)
    assert form.changed(one, 0, value=True).gpus is None


def test_every_control_has_a_label_that_is_no_markup(form: OptionsForm) -> None:
    """Ipywidgets 7 takes a description for HTML, so a card's name holds none."""
    labels = [widget.description for widget, _ in form.fields]

    assert all(labels)
    assert "GPU 0: Tesla T4" in labels
    assert not any(letter in label for label in labels for letter in "<>&")


def test_a_number_outside_its_range_is_brought_back(form: OptionsForm) -> None:
    """A negative context cannot be asked for."""
    change(form.context, -5)

    assert form.context.value == 0


def test_the_plan_is_what_launch_decides() -> None:
    """The same servers, sizes and options as those that a launch really starts."""
    options = ServerOptions("demo", 512, (), parallel=2, cache_type_k="q8_0")
    header = read_header(launch_path())
    planned = options.place(header, ()).configs
    with launch("demo", engine="embedded", progress=False, **options.arguments()) as it:
        started = it.plan.configs
        of = ServerOptions.of(it)
        it.close()

    def plain(config: Any) -> dict[str, Any]:
        told = config.to_dict()
        for name in ("port", "threads", "model_path", "notes"):
            del told[name]
        return dict(told)

    assert list(map(plain, planned)) == list(map(plain, started))
    assert of == options


def launch_path() -> str:
    """Return what names the demo model for a reader of headers."""
    return "demo"


def test_an_encoder_is_planned_as_one(tmp_path: Any) -> None:
    """A model that writes no text serves embeddings, as launch starts it."""
    from shapes import read_shapes, write_shape

    shape = read_shapes()["nomic-embed-text-v1.5"]
    header = read_header(write_shape(shape, tmp_path / "e.gguf", tokens=False))

    assert ServerOptions("e.gguf").place(header, ()).configs[0].embeddings
