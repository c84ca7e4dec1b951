"""The steps of a launch: as values, as lines, as HTML, and when they are shown."""

from __future__ import annotations

import io

import pytest

from llamatelemetry._launch_steps import Step, StepRecord, Steps, TerminalDisplay
from llamatelemetry.exceptions import ModelError


class Terminal(io.StringIO):
    """A stream that passes for a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_step_tells_bytes_seconds_and_why() -> None:
    """One that is under way says how much of how much; one that is done just what."""
    step = Step("model", "running", "fetching m.gguf", 1_200_000, 4_800_000, 2.5)
    assert step.fraction == 0.25
    assert str(step) == "… model    fetching m.gguf, 1.2 MB of 4.8 MB, 2.5 s"
    done = Step("model", "done", "m", 4_800_000, 4_800_000, 3.0)
    assert str(done) == "✓ model    m, 4.8 MB, 3.0 s"
    assert str(Step("plan")) == "· plan     "
    assert Step("plan", bytes_done=5).fraction is None
    assert Step("plan", bytes_done=5, bytes_total=4).fraction == 1.0


def test_what_cannot_be_shown_at_a_beginning_fails_that_step() -> None:
    """An error of the display itself names the step too."""

    def show(steps: Steps) -> None:
        if steps[0].state == "running":
            raise ModelError("no display")

    record = StepRecord(["plan"], show)
    with pytest.raises(ModelError) as caught, record.failing("plan"):
        pass
    assert caught.value.__notes__ == ["this was the step 'plan' of launch()"]
    assert record.steps[0].state == "failed"


def test_a_narrow_terminal_keeps_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written over is never broken into two lines."""
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    TerminalDisplay(stream)(Steps([Step("model", "running", "x" * 90)]))
    assert len(stream.getvalue()) == 39


def test_steps_are_a_tuple_that_knows_how_far_it_is() -> None:
    """What runs side by side is added up; a failed one is found; all must be done."""
    running = Steps([
        Step("engine", "running", "", 100, 200),
        Step("model", "running", "", 0, 200),
        Step("plan"),
    ])  # fmt: skip
    assert running.fraction == 0.25
    assert running.failed is None
    assert not running.done
    assert Steps([Step("plan")]).fraction is None
    assert Steps([Step("plan", "done")]).done
    failed = Step("plan", "failed", "no room")
    assert Steps([failed]).failed == failed


def test_html_names_states_in_words_and_escapes() -> None:
    """No colour is the only sign, no text becomes markup, a title says where it is."""
    html = Steps([
        Step("engine", "done", "<b>bold</b>"),
        Step("model", "running", "x", 50, 200),
    ])._repr_html_()  # fmt: skip
    assert "&lt;b&gt;bold" in html
    assert "<b>" not in html
    assert "running" in html
    assert "25%" in html
    assert "Launching: model" in html
    assert "Launched" in Steps([Step("plan", "done")])._repr_html_()
    assert "&#x27;plan&#x27; failed" in Steps([Step("plan", "failed")])._repr_html_()


def test_a_record_shows_beginnings_ends_and_a_few_times_between() -> None:
    """A thousand notes in a moment are no thousand pictures."""
    shown: list[Steps] = []
    record = StepRecord(["model", "plan"], shown.append)
    with record.failing("model"):
        for done in range(1000):
            record.note("model", "fetching", done, 1000)
        record.end("model", "fetched", 1000)

    assert len(shown) < 500
    assert [step.state for step in shown[0]] == ["running", "waiting"]
    assert [step.state for step in shown[-1]] == ["done", "waiting"]
    assert shown[-1][0].bytes_done == 1000
    assert shown[-1][0].seconds is not None
    assert shown[-1][1].seconds is None


def test_an_error_names_the_step_that_had_not_ended() -> None:
    """Of two side by side the ended one stays; what was begun beside is undone."""
    shown: list[Steps] = []
    record = StepRecord(["engine", "model", "monitor"], shown.append)
    record.begin("monitor")
    with pytest.raises(ModelError) as caught, record.failing("engine", "model"):
        record.end("engine", "here")
        raise ModelError("no such file\nand more")

    assert caught.value.__notes__ == ["this was the step 'model' of launch()"]
    last = shown[-1]
    assert [step.state for step in last] == ["done", "failed", "waiting"]
    assert last.failed is not None
    assert last.failed.text == "no such file"


def test_an_error_without_words_is_told_by_its_kind() -> None:
    """Ctrl-C has no text; and what shows the steps cannot hide the first error."""

    def show(steps: Steps) -> None:
        if steps.failed is not None:
            assert steps.failed.text == "KeyboardInterrupt"
            raise RuntimeError

    record = StepRecord(["plan"], show)
    with pytest.raises(KeyboardInterrupt), record.failing("plan"):
        raise KeyboardInterrupt


def test_what_shows_the_steps_may_end_the_launch() -> None:
    """An error of the function comes out where the step is, and names it."""

    def show(steps: Steps) -> None:
        if steps[0].bytes_done:
            raise InterruptedError

    record = StepRecord(["model"], show)
    with pytest.raises(InterruptedError) as caught, record.failing("model"):
        record.end("model", "fetched", 5)

    assert not getattr(caught.value, "__notes__", [])  # it had ended


def test_lines_of_a_pipe_are_written_once_each() -> None:
    """Where nothing can be overwritten, a step has a line when it has ended."""
    stream = io.StringIO()
    record = StepRecord(["model", "plan"], TerminalDisplay(stream))
    with record.failing("model"):
        record.note("model", "fetching", 1, 2)
        record.end("model", "fetched", 2)
    with pytest.raises(ModelError), record.failing("plan"):
        raise ModelError("no room")

    lines = stream.getvalue().splitlines()
    assert [line.split()[:2] for line in lines] == [["✓", "model"], ["✗", "plan"]]


def test_a_terminal_has_one_line_that_is_written_over() -> None:
    """The bar of what is under way gives way to the line of what has ended."""
    stream = Terminal()
    show = TerminalDisplay(stream)
    show(Steps([Step("model", "running", "fetching", 1, 2, 0.1)]))
    show(Steps([Step("model", "done", "fetched", 2, 2, 0.1)]))
    show(Steps([Step("model", "done", "fetched", 2, 2, 0.1)]))

    first, second = stream.getvalue().split("\r\x1b[K")
    assert first.endswith("[##########----------]")
    assert second == "✓ model    fetched, 2 B, 0.1 s\n"
    assert "\n" not in first


def test_a_closed_stream_ends_no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that nobody can read are left out; so are all without an error output."""
    stream = io.StringIO()
    stream.close()

    class Broken(Terminal):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    done = Steps([Step("plan", "done")])
    TerminalDisplay(stream)(done)
    TerminalDisplay(Broken())(done)
    monkeypatch.setattr("sys.stderr", None)
    TerminalDisplay()(done)
