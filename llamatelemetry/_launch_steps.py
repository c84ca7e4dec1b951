"""The steps of a launch as values, the record of one launch, and its lines of text."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, TextIO

from llamatelemetry._units import format_file_size, printable
from llamatelemetry.gguf import _html

__all__ = ["Show", "Step", "StepRecord", "Steps", "TerminalDisplay"]

_TELL_SECONDS = 0.2
"""At most five times a second something is shown anew."""

_MARKS = {"waiting": "·", "running": "…", "done": "✓", "failed": "✗"}
_BAR_CELLS = 20
_LONGEST = 500  # characters of a step's text
_LINE = 100  # characters of a line that is written over again and again, at most

State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a launch.

    Attributes:
        name: What it gets: "engine", "model", "plan", "server", "client", "monitor".
        state: "waiting", "running", "done" or "failed".
        text: What is being done, or was chosen and why; or what went wrong.
        bytes_done: Bytes fetched, verified or loaded so far; None where none are.
        bytes_total: Bytes in all, or None if not known.
        seconds: Seconds it has taken so far; None before it has begun.

    Examples:
        >>> from llamatelemetry.session import Step
        >>> step = Step("model", "running", "", 1_200_000_000, 4_800_000_000)
        >>> step.amount, step.fraction
        ('1.2 GB of 4.8 GB', 0.25)
    """

    name: str
    state: State = "waiting"
    text: str = ""
    bytes_done: int | None = None
    bytes_total: int | None = None
    seconds: float | None = None

    @property
    def fraction(self) -> float | None:
        """How far it is, 0 to 1; None if nobody knows."""
        if self.bytes_done is None or not self.bytes_total:
            return None
        return min(self.bytes_done / self.bytes_total, 1.0)

    @property
    def amount(self) -> str:
        """The bytes in words: "1.2 GB of 4.9 GB"; "" where there are none."""
        if self.bytes_done is None:
            return ""
        done = format_file_size(self.bytes_done)
        if self.bytes_total is None or self.bytes_done >= self.bytes_total:
            return done
        return f"{done} of {format_file_size(self.bytes_total)}"

    def __str__(self) -> str:
        seconds = "" if self.seconds is None else f"{self.seconds:.1f} s"
        told = [printable(self.text, _LONGEST), self.amount, seconds]
        return f"{_MARKS[self.state]} {self.name:8} {', '.join(filter(None, told))}"


class Steps(tuple[Step, ...]):  # noqa: SLOT001 - it has no attributes
    """The steps of a launch, in order; a tuple that shows itself as lines or HTML.

    It holds one :class:`Step` for each step.

    Examples:
        >>> from llamatelemetry.session import Step, Steps
        >>> steps = Steps([Step("engine", "done"), Step("model", "running")])
        >>> steps.done, steps.failed, steps[1].name
        (False, None, 'model')
    """

    @property
    def failed(self) -> Step | None:
        """The step that failed, if one did."""
        return next((step for step in self if step.state == "failed"), None)

    @property
    def done(self) -> bool:
        """Whether all are done."""
        return all(step.state == "done" for step in self)

    @property
    def fraction(self) -> float | None:
        """How far what is under way is, if that is counted in bytes; 0 to 1."""
        running = [
            step for step in self if step.state == "running" and step.bytes_total
        ]
        total = sum(step.bytes_total or 0 for step in running)
        done = sum(step.bytes_done or 0 for step in running)
        return min(done / total, 1.0) if total else None

    def __repr__(self) -> str:
        return "\n".join(map(str, self))

    def _repr_html_(self) -> str:
        rows = [
            (
                _MARKS[step.state],
                step.name,
                step.state,
                printable(step.text, _LONGEST),
                step.amount,
                "" if step.seconds is None else f"{step.seconds:.1f} s",
            )
            for step in self
        ]
        parts = [_html.table(rows, left=4, whole=True)]
        if self.fraction is not None:
            share = f"{self.fraction:.0%}"
            piece = _html.Segment(self._doing, self.fraction, _html.COLOURS[0], share)
            parts.append(_html.bar([piece]))
        return _html.panel(self._title, "", *parts)

    @property
    def _title(self) -> str:
        if self.failed is not None:
            return f"Launch: the step {self.failed.name!r} failed"
        return "Launched" if self.done else f"Launching: {self._doing}"

    @property
    def _doing(self) -> str:
        return " and ".join(step.name for step in self if step.state == "running")


Show = Callable[[Steps], object]


class StepRecord:
    """How far one launch is, as it goes; used by one thread.

    Args:
        names: The steps' names, in order.
        show: Called with the steps when one begins or ends, and at most five times a
            second in between. What it raises ends the launch.
    """

    def __init__(self, names: Iterable[str], show: Show) -> None:
        self._steps = [Step(name) for name in names]
        self._show = show
        self._began: dict[str, float] = {}
        self._told = 0.0

    @property
    def steps(self) -> Steps:
        """The steps as they are now."""
        return Steps(map(self._timed, self._steps))

    def begin(self, *names: str) -> None:
        """Begin steps; several are done side by side."""
        now = time.monotonic()
        for name in names:
            self._began[name] = now
            self._change(name, state="running")
        self._tell()

    def note(
        self, name: str, text: str, done: int | None = None, total: int | None = None
    ) -> None:
        """Note how far a step is."""
        self._change(name, text=text, bytes_done=done, bytes_total=total)
        self.tick()

    def tick(self) -> None:
        """Show that time passes."""
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._tell()

    def end(self, name: str, text: str, size: int | None = None) -> None:
        """End a step well."""
        step = self._timed(self._step(name))
        self._change(
            name,
            state="done",
            text=text,
            bytes_done=size,
            bytes_total=size,
            seconds=step.seconds,
        )
        self._tell()

    @contextlib.contextmanager
    def failing(self, *names: str, failed: Sequence[str] = ()) -> Iterator[Self]:
        """Run what belongs to these steps; an error names the step that failed.

        Args:
            names: The steps.
            failed: Those of several side by side that have failed, looked at then;
                empty for the last that had not ended.
        """
        try:
            self.begin(*names)
            yield self
        except BaseException as error:
            running = [name for name in names if self._step(name).state == "running"]
            self._fail(
                [name for name in running if name in failed] or running[-1:], error
            )
            raise

    def _fail(self, names: Sequence[str], error: BaseException) -> None:
        told = str(error).partition("\n")[0] or type(error).__name__
        for name in names:
            seconds = self._timed(self._step(name)).seconds
            self._change(name, state="failed", text=told, seconds=seconds)
            error.add_note(f"this was the step {name!r} of launch()")
        for step in self._steps:  # what was begun beside them is undone
            if step.state == "running":
                self._change(step.name, state="waiting", seconds=None)
        with contextlib.suppress(Exception):  # it is the first error that counts
            self._tell()

    def _step(self, name: str) -> Step:
        return next(step for step in self._steps if step.name == name)

    def _timed(self, step: Step) -> Step:
        if step.state != "running":
            return step
        return replace(step, seconds=time.monotonic() - self._began[step.name])

    def _change(self, name: str, **changes: object) -> None:
        self._steps = [
            replace(step, **changes) if step.name == name else step  # type: ignore[arg-type] # named by us, above
            for step in self._steps
        ]

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._show(self.steps)


class TerminalDisplay:
    """Shows steps as lines: each when it has ended, and below the one under way.

    Args:
        stream: Where to; None for the standard error output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._written: set[str] = set()
        self._has_line = False  # one that is written over

    def __call__(self, steps: Steps) -> None:
        """Show how far they are."""
        stream = self._stream or sys.stderr
        if stream is not None:  # as under pythonw
            with contextlib.suppress(OSError, ValueError):  # one that nobody reads
                self._write(steps, stream)

    def _write(self, steps: Steps, stream: TextIO) -> None:
        text = ""
        for step in steps:
            if step.state in ("done", "failed") and step.name not in self._written:
                self._written.add(step.name)
                text += f"{step}\n"
        running = [step for step in steps if step.state == "running"]
        line = " | ".join(map(_line, running)) if stream.isatty() else ""
        if not text and not line and not self._has_line:
            return
        if self._has_line:
            text = f"\r\x1b[K{text}"
        self._has_line = bool(line)
        # What a narrow terminal breaks into two lines could not be written over.
        columns = shutil.get_terminal_size().columns
        stream.write(text + line[: min(_LINE, columns - 1)])
        stream.flush()


def _line(step: Step) -> str:
    if step.fraction is None:
        return str(step)
    cells = round(step.fraction * _BAR_CELLS)
    return f"{step} [{'#' * cells}{'-' * (_BAR_CELLS - cells)}]"
