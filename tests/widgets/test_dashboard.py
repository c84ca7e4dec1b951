"""The three panels of one session, on one page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from manager_tools import wait_for
from panel_tools import Recorder, change, click, every_widget, find, tick

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.session import Session, launch
from llamatelemetry.widgets import Dashboard


@pytest.fixture
def session() -> Iterator[Session]:
    """A session with the demo model on the embedded engine."""
    with launch("demo", engine="embedded", progress=False) as running:
        yield running


def heading(dashboard: Dashboard) -> Any:
    """Return the line above the panels."""
    return next(
        one for one in every_widget(dashboard.widget) if type(one).__name__ == "HTML"
    )


def test_a_dashboard_has_the_three_panels_of_its_session(
    page: Recorder, session: Session
) -> None:
    """Chart, chat and server stand together; what one of them does the others show."""
    with session.dashboard(mode="threads") as dashboard:
        assert isinstance(dashboard, Dashboard)
        box = dashboard.widget
        wait_for(lambda: "ready at" in heading(dashboard).value)
        assert find(box, "Button", "Send")
        assert find(box, "Button", "Save PNG")

        dashboard.chat.send("What is GGUF?")
        assert dashboard.chat.wait(30)
        assert "file" in dashboard.chat.transcript[-1].content
        wait_for(lambda: any("request" in mark.text for mark in session.monitor.marks))

        start = find(dashboard.server.widget, "Button", "Start")
        assert start.disabled
        session.stop()
        wait_for(lambda: "stopped" in heading(dashboard).value)
        wait_for(lambda: not start.disabled)

    assert not session.closed
    assert all(part.closed for part in (dashboard.vram, dashboard.chat))


def test_a_chat_follows_its_session_to_another_server(
    page: Recorder, session: Session
) -> None:
    """After a restart the same chat panel asks the server that is there now."""
    with session.dashboard(mode="threads") as dashboard:
        _ = dashboard.widget
        session.relaunch(context_size=256, progress=False)
        dashboard.chat.send("What is GGUF?")
        assert dashboard.chat.wait(30)
        assert "file" in dashboard.chat.transcript[-1].content


def test_a_chat_of_a_closed_session_says_so(page: Recorder, session: Session) -> None:
    """Its server cannot be started again, so that is not what is advised."""
    with session.dashboard(mode="threads") as dashboard:
        box = dashboard.chat.widget
        session.close()
        message = find(box, "Textarea", "Message")
        change(message, "Hello?")
        click(find(box, "Button", "Send"))
        shown = (one for one in every_widget(box) if type(one).__name__ == "HTML")
        assert any("session of this panel is closed" in one.value for one in shown)
        assert message.value == "Hello?"
        with pytest.raises(ConfigurationError, match="launch"):
            dashboard.chat.send("Hello?")


def test_in_ticks_one_clock_moves_all_three(page: Recorder, session: Session) -> None:
    """In mode "ticks" there is one Play for all, and nothing is sent by a thread."""
    with session.dashboard(mode="ticks") as dashboard:
        box = dashboard.widget
        (play,) = [one for one in every_widget(box) if type(one).__name__ == "Play"]

        def ticked() -> bool:
            tick(play)
            return "ready at" in heading(dashboard).value

        wait_for(ticked)
    assert {message.thread for message in page.messages} == {"MainThread"}


def test_as_text_a_dashboard_tells_everything(session: Session) -> None:
    """In mode "text" session, cards, chat and server are told as text and as HTML."""
    with session.dashboard(mode="text") as dashboard:
        dashboard.chat.send("What is GGUF?")
        assert dashboard.chat.wait(30)
        told = repr(dashboard)
        drawn = dashboard._repr_html_()

    for words in ("Session: demo", "Memory", "What is GGUF?", "ready"):
        assert words in told
        assert words in drawn
    assert "<script" not in drawn
