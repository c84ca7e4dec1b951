"""What a panel wants to show: at once, or when somebody comes who may."""

from __future__ import annotations

import logging
import threading

import pytest
from panel_tools import Recorder, ipywidgets

from llamatelemetry.widgets._outbox import Outbox


def in_thread(work: object) -> None:
    """Do something in another thread and wait for it."""
    thread = threading.Thread(target=work, name="another")  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_direct_changes_are_sent_at_once_by_the_thread_that_makes_them(
    page: Recorder,
) -> None:
    """Direct, several traits of a widget go out in one message, from any thread."""
    label, outbox = ipywidgets().Label(), Outbox(direct=True)

    in_thread(lambda: outbox.set(label, value="hello", description="said"))

    (message,) = page.of(label)
    assert message.state == {"value": "hello", "description": "said"}
    assert message.thread == "another"


def test_kept_changes_are_sent_by_who_flushes(page: Recorder) -> None:
    """Otherwise nothing leaves before flush(), and then only the newest values."""
    label, outbox = ipywidgets().Label(), Outbox(direct=False)
    for number in range(100):
        in_thread(lambda number=number: outbox.set(label, value=str(number)))
    assert page.of(label) == []

    outbox.flush()
    outbox.flush()

    (message,) = page.of(label)
    assert message.state == {"value": "99"}
    assert message.thread == threading.current_thread().name


def test_kept_changes_keep_their_order(page: Recorder) -> None:
    """What is done with functions and with values happens as it was asked for."""
    toolkit, outbox, seen = ipywidgets(), Outbox(direct=False), []
    label, box = toolkit.Label("old"), toolkit.VBox()
    outbox.set(label, value="new")
    outbox.do(lambda: seen.append(label.value))
    outbox.do(lambda: setattr(box, "children", [toolkit.Label("made late")]))
    outbox.set(box, box_style="info")

    outbox.flush()

    assert seen == ["new"]
    assert [child.value for child in box.children] == ["made late"]
    assert box.box_style == "info"


@pytest.mark.parametrize("direct", [True, False])
def test_handlers_can_tell_who_changed_a_value(page: Recorder, direct: bool) -> None:
    """`applying` is true in a change that the outbox makes, and not in a user's."""
    text, outbox, seen = ipywidgets().Text(), Outbox(direct=direct), []
    text.observe(lambda _: seen.append(outbox.applying), names="value")

    outbox.set(text, value="by the outbox")
    outbox.flush()
    text.value = "by the user"

    assert seen == [True, False]


def test_a_change_that_fails_is_logged_once_and_stops_nothing(
    page: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """A value a widget refuses is logged the first time; later changes are made."""
    slider, label = ipywidgets().IntSlider(), ipywidgets().Label()
    outbox = Outbox(direct=False)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            outbox.set(slider, value="no number")
            outbox.set(label, value="shown")
            outbox.flush()

    assert label.value == "shown"
    assert len(caplog.records) == 1


def test_a_closed_outbox_changes_nothing(page: Recorder) -> None:
    """After close() neither values nor functions have an effect."""
    label, outbox = ipywidgets().Label("old"), Outbox(direct=True)
    outbox.close()
    outbox.set(label, value="new")

    assert label.value == "old"


def test_what_is_set_after_a_function_is_set_after_it(page: Recorder) -> None:
    """A value that was given before a function does not take a later one's place."""
    label, outbox = ipywidgets().Label(), Outbox(direct=False)
    outbox.set(label, value="first")
    outbox.do(lambda: setattr(label, "value", f"{label.value}, second"))
    outbox.set(label, value="third")

    outbox.flush()

    assert page.values(label) == ["first", "first, second", "third"]
