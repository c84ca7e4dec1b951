"""The page's messages to its widgets, handled in the middle of a running cell.

A kernel reads what the page sends between cells, so a cell that loops leaves every
button dead. A loop that calls :func:`handle_messages` again and again keeps them
alive: messages for widgets are handled at once, all others (the next cells, above
all) stay where they were and come after the cell, in their order.

It reaches into the kernel, whose interior is no promise of ipykernel's. Tests hold it
on 6.17.1 (Colab's and Kaggle's) and on the newest; it was tried on 6.29, 6.31 and 7.1
to 7.4. Where the interior looks different, nothing is touched.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

__all__ = ["can_handle", "handle_messages"]

# The last two ask for what there is and change nothing: a page that is loaded anew in
# the middle of the loop sends them, and shows no widget before it has the answers.
_AT_ONCE = frozenset(
    {"comm_open", "comm_msg", "comm_close", "comm_info_request", "kernel_info_request"}
)

_OUT = 2  # ZeroMQ's POLLOUT


def can_handle(kernel: Any) -> bool:
    """Return whether messages can be handled during this kernel's cells.

    Where not, buttons work when the cell has ended. To be asked where the cell runs,
    in the main thread.

    Args:
        kernel: The running kernel, as ``get_ipython().kernel``.
    """
    return _inbox_of(kernel) is not None


def handle_messages(kernel: Any) -> int:
    """Handle the messages for widgets that have come since the cell began.

    To be called from the cell that runs, in the main thread, and not by what handles
    such a message; elsewhere it does nothing. An error of a handler is logged, as
    between cells. Ctrl-C comes through: out of a handler too, and no message is lost.

    Args:
        kernel: The running kernel, as ``get_ipython().kernel``.

    Returns:
        How many were handled.
    """
    inbox = _inbox_of(kernel)
    if inbox is None or _Interrupts.held:
        return 0
    with _Interrupts() as interrupts:
        waiting = deque(inbox.take())
        later: list[_Item] = []
        handled = 0
        try:
            while waiting and not interrupts.pending:
                item = waiting.popleft()
                if _kind_of(kernel, item.frames) in _AT_ONCE:
                    handled += 1
                    _handle(kernel, inbox.reply_by, item.frames, interrupts)
                else:
                    later.append(item)
        finally:
            inbox.give_back([*later, *waiting])
            if handled:  # the page shows the last status, and the cell still runs
                kernel._publish_status("busy", "shell")  # noqa: SLF001 -- as its dispatch
    return handled


# ── where messages wait ──────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Item:
    """Something that waits: a message's frames, and how it lay there."""

    frames: Sequence[Any]
    entry: Any


@dataclass(frozen=True, slots=True)
class _Inbox:
    """What waits for the main thread, and the way back for it.

    Attributes:
        take: Takes out all that waits, oldest first.
        give_back: Puts it back, before whatever comes next.
        reply_by: The stream or socket by which replies go out.
    """

    take: Callable[[], list[_Item]]
    give_back: Callable[[Sequence[_Item]], None]
    reply_by: Any


def _inbox_of(kernel: Any) -> _Inbox | None:
    """Return where the kernel's messages wait; None if that cannot be told."""
    if threading.current_thread() is not threading.main_thread():
        return None
    try:
        asyncio.get_running_loop()  # a cell runs in it
        _base_of(kernel)
        if getattr(kernel, "shell_channel_thread", None) is not None:
            manager = kernel.shell_channel_thread.manager
            stream = manager.get_shell_channel_to_subshell_pair(None).to_stream
            reply_by = manager.get_subshell_to_shell_channel_socket(None)
            return _stream_inbox(stream, reply_by)
        return _queue_inbox(kernel)
    except (AttributeError, LookupError, RuntimeError):
        return None


def _queue_inbox(kernel: Any) -> _Inbox:
    """Return the inbox of ipykernel 6: a stream fills a queue of calls.

    An entry is a number, a function and its arguments.
    """
    queue, stream = kernel.msg_queue, kernel.shell_stream

    def take() -> list[_Item]:
        stream.flush()  # what lies in the socket goes into the queue
        entries = [queue.get_nowait() for _ in range(queue.qsize())]
        return [_Item(frames_of(*entry), entry) for entry in entries]

    def frames_of(_: int, call: Any, arguments: Any) -> Sequence[Any]:
        # Other calls have no message.
        return arguments[0] if call == kernel.dispatch_shell and arguments else ()

    def give_back(items: Sequence[_Item]) -> None:
        for item in items:
            queue.put_nowait(item.entry)

    return _Inbox(take, give_back, stream)


def _stream_inbox(stream: Any, reply_by: Any) -> _Inbox:
    """Return the inbox of ipykernel 7: a stream that starts a task for each message.

    The tasks wait for the end of the cell, one after the other, and would be out of
    reach. So what is given back is kept here until the kernel's loop goes on.
    """
    receive = stream._recv_callback  # noqa: SLF001 -- there is no other way to ask

    def take() -> list[_Item]:
        stream.on_recv(_kept.append, copy=False)
        try:
            stream.flush()
        finally:
            stream.on_recv(receive, copy=False)
        frames = list(_kept)
        _kept.clear()
        return [_Item(one, one) for one in frames]

    def give_back(items: Sequence[_Item]) -> None:
        _kept.extend(item.entry for item in items)
        if items and not _due:  # once, however often a loop looks at the same cells
            _due.append(asyncio.get_running_loop().call_soon(start))

    def start() -> None:
        _due.clear()
        while _kept:
            task = asyncio.ensure_future(receive(_kept.popleft()))
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)

    return _Inbox(take, give_back, reply_by)


_kept: deque[Any] = deque()
_due: list[asyncio.Handle] = []  # what starts them, if there is something to start
_tasks: set[asyncio.Future[Any]] = set()  # asyncio itself holds them weakly


# ── one message ──────────────────────────────────────────────────────────────────


def _kind_of(kernel: Any, frames: Sequence[Any]) -> str:
    """Return a message's type; "" for what is no message, or a forged one."""
    try:
        _, parts = kernel.session.feed_identities(frames, copy=False)
        peeked = kernel.session.deserialize(parts, content=False, copy=False)
        return str(peeked["header"]["msg_type"])
    # Whatever is wrong with it, the kernel has its own words for that, later.
    except Exception:  # noqa: BLE001 -- said above
        return ""


def _handle(
    kernel: Any, reply_by: Any, frames: Sequence[Any], interrupts: _Interrupts
) -> None:
    """Handle a message as the kernel would, then let the cell go on.

    Only the kernel's own parent is the message meanwhile: by it the page knows the
    answers to what it sent. What is printed belongs to the cell all along.
    """
    try:
        identities, parts = kernel.session.feed_identities(frames, copy=False)
        message = kernel.session.deserialize(parts, content=True, copy=False)
    # What a page sends may be wrong in any way, and the cell must go on: logged with
    # its traceback, as the kernel does between cells.
    except Exception:
        kernel.log.exception("a message could not be read")
        return
    base, tell = _base_of(kernel), kernel._publish_status  # noqa: SLF001 -- as its own dispatch does
    cell = kernel._parent_ident["shell"], kernel.get_parent("shell")  # noqa: SLF001 -- no other way
    base.set_parent(kernel, identities, message, "shell")
    tell("busy", "shell")
    try:
        handler = kernel.shell_handlers[message["header"]["msg_type"]]
        with interrupts.let_through():
            _finish(handler(reply_by, identities, message))
    # A widget's handler is the user's code and may raise anything; the same holds.
    except Exception:
        kernel.log.exception("a message could not be handled")
    finally:
        # A page sends a control's next change when the last one's "idle" is there.
        tell("idle", "shell")
        base.set_parent(kernel, *cell, "shell")
        if hasattr(reply_by, "flush"):
            reply_by.flush(_OUT)  # in as well would bring newer messages before older


def _finish(result: Any) -> None:
    """Run a handler's coroutine, if it is one, to its end; none of these waits."""
    if inspect.iscoroutine(result):
        try:
            result.send(None)
        except StopIteration:
            return
        result.close()
        raise RuntimeError("a message's handler waits, which it cannot in a cell")


def _base_of(kernel: Any) -> Any:
    """Return the class that keeps a kernel's parents, and does nothing else there."""
    for kind in type(kernel).__mro__:
        if kind.__module__ == "ipykernel.kernelbase":
            return kind
    raise LookupError(f"{type(kernel).__name__} is no kernel of ipykernel's")


# ── Ctrl-C ───────────────────────────────────────────────────────────────────────


class _Interrupts:
    """Lets Ctrl-C wait while messages are between two places."""

    held = False
    """Whether one does so just now; in the main thread only, like all signals."""

    def __init__(self) -> None:
        self.pending = False
        self._handler: Any = None

    def __enter__(self) -> Self:
        before = signal.signal(signal.SIGINT, self._remember)
        self._handler = before or signal.default_int_handler  # None: not Python's own
        _Interrupts.held = True
        return self

    def __exit__(self, *_: object) -> None:
        _Interrupts.held = False
        signal.signal(signal.SIGINT, self._handler)
        if self.pending:
            signal.raise_signal(signal.SIGINT)

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Have Ctrl-C work as ever in this block."""
        signal.signal(signal.SIGINT, self._handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, self._remember)

    def _remember(self, _: int, __: FrameType | None) -> None:
        self.pending = True
