"""What a panel does with a session: start, stop, restart, with one thing at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from llamatelemetry._launch_steps import Steps
from llamatelemetry.exceptions import LLCudaError, ServerNotRunningError
from llamatelemetry.session import Session, launch
from llamatelemetry.widgets._server_options import ServerOptions
from llamatelemetry.widgets._server_state import first_line

__all__ = ["ServerWork"]


class ServerWork:
    """Starts and stops servers in threads. A second order is ignored while one is on.

    Args:
        in_background: Starts a thread: `Panel._in_background`.
        launched: Called with a session that was launched, in that thread.
        ended: Called there when something has ended, well or not.
    """

    def __init__(
        self,
        in_background: Callable[[Callable[[], object], str], object],
        launched: Callable[[Session], object],
        ended: Callable[[], object],
    ) -> None:
        self._in_background = in_background
        self._launched = launched
        self._ended = ended
        self._lock = threading.Lock()
        self._called_off = threading.Event()
        self._stops = False
        self.doing = ""
        """What is being done, in a word; "" for nothing."""
        self.steps: Steps | None = None
        """The steps of what is being done, or of what went wrong."""
        self.trouble = ""
        """Why the last order failed, in a sentence; "" if it did not."""

    @property
    def stopping(self) -> bool:
        """Whether it is being stopped."""
        return self._stops

    def start(self, session: Session | None, changed: ServerOptions | None) -> None:
        """Start a server: in a session, or in a new one.

        Args:
            session: The session; None to launch one.
            changed: The options, for a new session or where they have changed; None
                for those of the session.
        """
        if session is None:
            assert changed is not None  # noqa: S101 -- said above
            self._order("launching", partial(self._launch, changed))
        elif changed is None:
            self._order("starting", partial(session.start, progress=self._note))
        else:
            self._order("starting", partial(self._relaunch, session, changed))

    def restart(self, session: Session, changed: ServerOptions | None) -> None:
        """Start a session's server again; with other options, where they are given."""
        if changed is None:
            self._order("restarting", partial(session.restart, progress=self._note))
        else:
            self._order("restarting", partial(self._relaunch, session, changed))

    def stop(self, session: Session | None) -> None:
        """Stop the server, and what starts one."""
        with self._lock:
            if self._stops:
                return
            self._stops = True
        self._called_off.set()
        self._in_background(partial(self._stop, session), "stop")

    def _order(self, word: str, work: Callable[[], object]) -> None:
        with self._lock:
            if self.doing or self._stops:
                return
            self.doing, self.steps, self.trouble = word, None, ""
            self._called_off.clear()
        self._in_background(partial(self._do, work), "work")

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
            self.steps = None
        except LLCudaError as error:
            if self._called_off.is_set():
                self.steps = None
            else:
                self.trouble = first_line(error)
        except BaseException as error:
            self.trouble = f"{type(error).__name__}: {first_line(error)}"
            raise
        finally:
            self.doing = ""
            self._ended()

    def _launch(self, options: ServerOptions) -> None:
        session = launch(options.model, progress=self._note, **options.arguments())
        self._launched(session)
        if self._called_off.is_set():  # too late for `_note`
            session.stop()

    def _relaunch(self, session: Session, options: ServerOptions) -> None:
        same = options.model == ServerOptions.of(session).model
        model = None if same else options.model
        session.relaunch(model, progress=self._note, **options.arguments())

    def _stop(self, session: Session | None) -> None:
        try:
            if session is not None:
                session.stop()
        finally:
            self._stops = False
            self._ended()

    def _note(self, steps: Steps) -> None:
        """Keep how far a launch is; what this raises ends it."""
        self.steps = steps
        if self._called_off.is_set():
            raise ServerNotRunningError("the start was stopped")
