"""A session for people: its whole state as text and as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatelemetry._units import format_file_size, format_memory, printable
from llamatelemetry.gguf import _html
from llamatelemetry.gpu.monitor import GPUMonitor, GPUSample
from llamatelemetry.pool.server_pool import ServerPool
from llamatelemetry.server._linux import available_memory
from llamatelemetry.server.manager import ServerManager
from llamatelemetry.server.state import ServerState

if TYPE_CHECKING:
    from llamatelemetry.api.client import RequestRecord
    from llamatelemetry.session import Session
    from llamatelemetry.telemetry.timeline import Timeline

__all__ = ["html", "outcome", "server_state", "text", "watched"]

_LONGEST = 500  # characters of a sentence
_INDENT = 10


def server_state(server: ServerManager | ServerPool) -> str:
    """Return in words what a server, or each of several, is doing."""
    if isinstance(server, ServerPool):
        status = server.status()
        urls = ", ".join(one.url for one in status if one.url and one.pid)
        said = f"{status.ready} of {len(status)} servers ready"
        return f"{said}: {urls}" if urls else said
    one = server.status()
    if one.pid is None:
        return one.state.value
    return f"{one.state.value} at {one.url}, process {one.pid}"


def watched(monitor: GPUMonitor) -> str:
    """Return in words what a monitor watches."""
    count = len(monitor.gpus)
    if count:
        cards = "one card" if count == 1 else f"{count} cards"
        return f"{cards}, every {monitor.interval:g} s"
    return f"no card to watch: {monitor.problem or 'there is none'}"


def outcome(record: RequestRecord, timeline: Timeline | None = None) -> str:
    """Return in words how a request ended, and where it ran if a timeline knows."""
    if record.usage is not None:
        said = f"{getattr(record.usage, 'completion_tokens', 0)} tokens"
    else:
        said = "cancelled" if record.error is None else type(record.error).__name__
    where = timeline.describe(record, cost=False) if timeline is not None else ""
    return f"{said}, {where}" if where else said


def text(session: Session) -> str:
    """Return a session as lines."""
    lines = [f"{_title(session)}"]
    for name, said in _rows(session):
        first, *more = said.splitlines() or [""]
        lines.append(f"{name:{_INDENT}}{printable(first, _LONGEST)}")
        lines += [f"{'':{_INDENT}}{printable(line, _LONGEST)}" for line in more]
    return "\n".join(lines)


def html(session: Session) -> str:
    """Return a session as HTML, everything in it escaped."""
    rows = [
        ("" if number else name, printable(line, _LONGEST))
        for name, said in _rows(session)
        for number, line in enumerate(said.splitlines() or [""])
    ]
    good = _is_good(session)
    state = "closed" if session.closed else server_state(session.server)
    return _html.panel(
        _title(session),
        session.plan.reason,
        _html.verdict(state, good=good),
        _html.table(rows, left=2),
    )


def _title(session: Session) -> str:
    return f"Session: {session.model.name}"


def _is_good(session: Session) -> bool | None:
    """Whether all is well; None for what is neither good nor bad."""
    server = session.server
    if isinstance(server, ServerPool):
        status = server.status()
        if status.ready == len(status):
            return True
        return False if any(one.error for one in status) else None
    return {ServerState.READY: True, ServerState.FAILED: False}.get(server.state)


def _rows(session: Session) -> list[tuple[str, str]]:
    model = session.model
    rows = [
        ("state", _state(session)),
        ("model", f"{model.name}, {format_file_size(model.size)}\n{model.path}"),
        ("engine", "\n".join(filter(None, [str(session.engine), session.engine.note]))),
        ("cards", session.plan.reason),
        ("context", _context(session)),
        ("memory", _memory(session)),
        ("started", _duration(session)),
    ]
    if session.notes:
        rows.append(("notes", "\n".join(session.notes)))
    return rows


def _state(session: Session) -> str:
    if session.closed:
        return "closed"
    server = session.server
    errors = (
        [one.error for one in server.status()]
        if isinstance(server, ServerPool)
        else [server.error]
    )
    told = [str(error).partition("\n")[0] for error in errors if error is not None]
    return "\n".join([server_state(server), *told])


def _context(session: Session) -> str:
    plan = session.plan
    tokens, slots = plan.plans[0].slot_context, plan.slots
    each = "one request at a time" if slots == 1 else f"{slots} requests at once"
    said = f"{tokens:,} tokens for each request, {each}"
    if len(plan.configs) > 1:
        said += f", on {len(plan.configs)} servers"
    return said


def _memory(session: Session) -> str:
    samples = session.monitor.latest()
    if samples:
        return "\n".join(map(_of_card, samples))
    free = format_memory(available_memory() or 0)
    return f"no card; {free} of host memory can be used"


def _of_card(sample: GPUSample) -> str:
    if sample.memory_used_bytes is None or sample.memory_total_bytes is None:
        return f"GPU {sample.index}: {sample.problem or 'not known'}"
    used = format_memory(sample.memory_used_bytes)
    return f"GPU {sample.index}: {used} of {format_memory(sample.memory_total_bytes)}"


def _duration(session: Session) -> str:
    steps = ", ".join(
        f"{step.name} {step.seconds:.1f} s"
        for step in session.steps
        if step.seconds is not None and step.name not in ("client", "monitor")
    )
    return f"in {session.seconds:.1f} s: {steps}"
