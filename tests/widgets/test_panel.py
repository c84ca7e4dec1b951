"""The base of all panels: shown in four ways, alive in threads, and closed for good."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from manager_tools import wait_for
from panel_tools import Recorder, change, click, every_widget, tick

from llamatelemetry.exceptions import ConfigurationError, ModelError
from llamatelemetry.widgets._panel import Panel

HOSTILE = "<img src=x onerror=alert(1)>"


class Counter(Panel):
    """A panel with a button that counts, a text, and a thread that counts too."""

    def __init__(self, *, mode: Any = "threads", seconds: float = 0.01) -> None:
        super().__init__(mode=mode)
        self.clicks = 0
        self.ticks = 0
        self.typed: list[str] = []
        self._every(seconds, self.count, "counter")

    def count(self) -> None:
        """Count one tick."""
        self.ticks += 1
        if self._box is not None:
            self._outbox.set(self.label, value=str(self.ticks))

    def clicked(self) -> None:
        """Count a click."""
        self.clicks += 1
        self._outbox.set(self.text, value=f"clicked {self.clicks}")

    def _build(self) -> Any:
        self.label = self._w.Label()
        self.button = self._w.Button(description="Count")
        self.text = self._w.Text(description="Text")
        self._on_click(self.button, self.clicked)
        self._on_change(self.text, self.typed.append)
        return self._w.HBox([self.label, self.button, self.text])

    def _text(self) -> str:
        return f"{self.clicks} clicks"

    def _html(self) -> str:
        return f"<b>{self.clicks}</b> clicks"

    def _picture(self) -> bytes | None:
        return b"\x89PNG"


def threads_of_panels() -> list[str]:
    """Return the names of the panels' threads that run."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("llamatelemetry-panel-")]


def test_a_panel_lives_from_being_shown_to_being_closed(page: Recorder) -> None:
    """Its threads begin when it is shown, and close() ends them and its widgets."""
    panel = Counter()
    wait_for(lambda: threads_of_panels() == [])  # other tests' may still be ending

    bundle = panel._repr_mimebundle_()
    wait_for(lambda: panel.label.value not in ("", "1"))
    assert threads_of_panels() == ["llamatelemetry-panel-counter"]
    panel.close()
    panel.close()

    assert bundle["application/vnd.jupyter.widget-view+json"]
    assert bundle["text/plain"] == "0 clicks"
    assert bundle["text/html"] == "<b>0</b> clicks"
    assert threads_of_panels() == []
    assert panel.closed
    with pytest.raises(ConfigurationError, match="was closed"):
        _ = panel.widget
    assert "widget-view" not in str(panel._repr_mimebundle_())


def test_clicks_and_changes_reach_their_handlers(page: Recorder) -> None:
    """A user's change is handled; what the panel itself puts there is not."""
    with Counter() as panel:
        _ = panel.widget
        click(panel.button)
        assert panel.text.value == "clicked 1"
        assert panel.typed == []

        change(panel.text, "typed")

        assert panel.typed == ["typed"]


@pytest.mark.parametrize("mode", ["ticks", "loop"])
def test_no_thread_sends_where_that_is_not_shown(page: Recorder, mode: Any) -> None:
    """In the two modes without threads' updates every message leaves from a handler."""
    with Counter(mode=mode) as panel:
        box = panel.widget
        before = int(panel.label.value or 0)
        wait_for(lambda: panel.ticks > before + 3)
        if mode == "ticks":
            (play,) = [one for one in every_widget(box) if type(one).__name__ == "Play"]
            tick(play)
        else:
            panel.run(0.2)
        assert int(panel.label.value) > before
        click(panel.button)
        assert panel.text.value == "clicked 1"
    names = {message.thread for message in page.messages}
    assert names == {threading.current_thread().name}


def test_a_loop_ends_with_its_time_and_with_the_panel(page: Recorder) -> None:
    """run() returns when its seconds are over, and at once when another closes it."""
    panel = Counter(mode="loop")
    panel.run(0.1)
    closer = threading.Timer(0.1, panel.close)
    closer.start()
    panel.run()
    closer.join()

    assert panel.closed


def test_a_kernel_whose_buttons_cannot_work_is_told_of(
    page: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a loop cannot handle messages, the panel says when its buttons work."""
    import IPython

    shell = SimpleNamespace(kernel=object())  # a kernel, and not one of ipykernel's
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    with Counter(mode="loop") as panel:
        panel.run(0.01)
        assert "once the cell has ended" in panel._foot.value


def test_text_has_no_widgets_and_one_picture(page: Recorder) -> None:
    """In mode "text" there is text and a picture, no comm, no thread."""
    panel = Counter(mode="text")
    bundle = panel._repr_mimebundle_()

    assert set(bundle) == {"text/plain", "text/html"}
    assert "data:image/png;base64," in str(bundle["text/html"])
    assert page.messages == []
    wait_for(lambda: threads_of_panels() == [])  # other tests' may still be ending
    with pytest.raises(ConfigurationError, match="has no widget"):
        _ = panel.widget


def test_outside_a_notebook_a_panel_is_text() -> None:
    """Without a kernel the way that works is text, and it is chosen."""
    program = (
        "import llamatelemetry.widgets._toolkit as toolkit; import sys;"
        "print(toolkit.choose_mode(), 'ipywidgets' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "text False\n"


def test_a_handler_that_fails_says_so_in_the_panel(
    page: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of ours is a sentence, escaped; any other is logged as well."""
    with Counter() as panel:
        _ = panel.widget
        panel._handle(lambda: (_ for _ in ()).throw(ModelError(f"{HOSTILE}\x1b")))
        assert "<b>Error:</b> &lt;img src=x" in panel._foot.value
        assert 'role="alert"' in panel._foot.value
        assert caplog.records == []

        with caplog.at_level(logging.ERROR):
            panel._handle(lambda: 1 // 0)
        assert "ZeroDivisionError" in panel._foot.value
        assert len(caplog.records) == 1

        panel._say("")
        assert panel._foot.value == ""


def test_a_thread_that_fails_says_so_once_and_goes_on(page: Recorder) -> None:
    """A ticker's error is shown, the ticker goes on, and False ends it."""
    panel = Counter(seconds=60)
    calls = []

    def work() -> object:
        calls.append(1)
        if len(calls) < 3:
            raise ModelError("no such file")
        return len(calls) < 5

    with panel:
        _ = panel.widget
        panel._every(0.001, work, "worker")
        wait_for(lambda: len(calls) == 5)
        wait_for(lambda: "llamatelemetry-panel-worker" not in threads_of_panels())
        assert "no such file" in panel._foot.value


def test_parts_share_what_the_whole_has(page: Recorder) -> None:
    """Parts take the whole's mode, and there is one tick for all of them."""

    class Pair(Counter):
        def __init__(self) -> None:
            super().__init__(mode="ticks", seconds=60)
            self.parts = (Counter(), Counter(mode="loop"))
            self._adopt(self.parts)

        def _build(self) -> Any:
            own = super()._build()
            return self._w.VBox([own, *(part.widget for part in self.parts)])

    with Pair() as pair:
        plays = [
            one for one in every_widget(pair.widget) if type(one).__name__ == "Play"
        ]
        assert len(plays) == 1
        wait_for(lambda: all(part.ticks > 1 for part in pair.parts))
        tick(plays[0])
        assert all(part.label.value for part in pair.parts)
    assert threads_of_panels() == []


def test_an_unknown_mode_is_refused() -> None:
    """A mode that does not exist names those that do."""
    with pytest.raises(ConfigurationError, match="'threads', 'ticks', 'loop', 'text'"):
        Counter(mode="fast")


def test_a_text_for_no_time_does_not_wait() -> None:
    """In a saved run nobody can end it, so run() without seconds returns at once."""
    panel = Counter(mode="text")
    panel.run()

    assert not panel.closed
