"""ServerPanel: choose a model and its options, see if it fits, start and stop it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llamatelemetry.exceptions import ClientError, LLCudaError
from llamatelemetry.gguf import _html
from llamatelemetry.server.state import ServerState
from llamatelemetry.session import Session, current_session
from llamatelemetry.widgets._log_tail import LogFilter, LogTail
from llamatelemetry.widgets._model_choices import (
    FoundModels,
    default_model,
    find_models,
    model_choices,
)
from llamatelemetry.widgets._panel import Panel, close_all
from llamatelemetry.widgets._plan_preview import (
    Headers,
    Newest,
    Preview,
    cards_here,
    drawn,
    look_ahead_from,
)
from llamatelemetry.widgets._server_options import ServerOptions
from llamatelemetry.widgets._server_polls import ServerPolls
from llamatelemetry.widgets._server_state import Seen, hint_at_start, look, servers_of
from llamatelemetry.widgets._server_view import ServerView, command_text
from llamatelemetry.widgets._server_work import ServerWork
from llamatelemetry.widgets._toolkit import Mode

__all__ = ["ServerPanel"]

_LOOK_SECONDS = 0.5
_POLL_SECONDS = 1.0
_LOG_LINES = 10  # of the log, where the panel is text


class ServerPanel(Panel):
    """A model and its options, their memory plan, and a server's Start and Stop.

    Everything that takes time happens in threads. Panels of one session show the same.
    Closing the panel leaves the server running.

    Args:
        session: The session whose server this is. None: the one that runs in this
            notebook, now or later; Start launches one where there is none.
        mode: How it is shown; None: what works here.

    Attributes:
        session: The session; None before there is one.

    Raises:
        ConfigurationError: There is no such mode.

    Examples:
        >>> from llamatelemetry import launch
        >>> from llamatelemetry.widgets import ServerPanel
        >>> with launch("qwen3-4b", progress=False) as session:
        ...     panel = ServerPanel()
        ...     panel.session is session
        ...     panel.close()
        True
    """

    def __init__(
        self, session: Session | None = None, *, mode: Mode | None = None
    ) -> None:
        super().__init__(mode=mode)
        self.session = self._given = session
        self._cards = cards_here()
        self._found = FoundModels()
        self._options = ServerOptions(model=default_model(self._cards))
        self._filled: ServerOptions | None = None  # what the session runs with
        self._of: object = None  # whose options these are
        self._seen: Seen | None = None
        self._looks = self._shown_look = 0
        self._others = False  # whether other options are to be shown
        self._preview: Preview | None = None
        self._filter = LogFilter()
        self._tail = LogTail()
        self._log_is_shown = False
        self._headers = Headers()
        self._polls = ServerPolls()
        self._view: ServerView | None = None
        self._work = ServerWork(self._in_background, self._has_launched, self._look)
        self._newest: Newest[tuple[ServerOptions, bool]] = Newest(
            self._look_ahead,
            self._show_preview,
            start=self._in_background,
            lock=self._lock,
            closing=self._closing,
        )
        self._search: Newest[None] = Newest(
            lambda _: find_models(),
            self._show_found,
            start=self._in_background,
            lock=self._lock,
            closing=self._closing,
            moment=0.0,
        )
        self._follow_session()
        self._every(_LOOK_SECONDS, self._look, "state")
        self._every(_POLL_SECONDS, self._poll, "activity")

    # ── the page ─────────────────────────────────────────────────────────────────

    def _build(self) -> Any:
        view = ServerView(self._w, self._outbox, self._cards)
        self._view = view
        view.form.fill(self._options)
        self._show_models()
        self._look()
        self._ask_plan()
        handlers: dict[str, Callable[..., object]] = {
            "start": self._start,
            "stop": self._stop,
            "restart": self._restart,
            "refresh": self._refresh,
            "nearest": self._take_nearest,
            "models": self._choose,
            "other": self._name_another,
            "filter": lambda text: self._set_filter(text=text),
            "level": lambda level: self._set_filter(level=level),
            "show_log": self._reveal_log,
            "show_command": self._reveal_command,
            "command": self._undo_edit,
        }
        view.connect(self._on_click, self._on_change, handlers)
        for control, field in view.form.fields:
            self._on_change(control, self._changer(field))
        self._search.ask(None)
        return view.box

    def _changer(self, field: str | int) -> Any:
        def changed(value: Any) -> None:
            assert self._view is not None  # noqa: S101 -- its control was changed
            self._options = self._view.form.changed(self._options, field, value)
            self._show_models()
            self._ask_plan()

        return changed

    # ── the session ──────────────────────────────────────────────────────────────

    def _has_launched(self, session: Session) -> None:
        with self._lock:
            self.session = session

    def _usable(self) -> Session | None:
        """Return the session, if it can still run something."""
        return None if self.session is None or self.session.closed else self.session

    @property
    def _is_over(self) -> bool:
        """Whether this was the panel of a session that was closed."""
        return self._given is not None and self._given.closed

    def _follow_session(self) -> bool:
        """Take up the session that runs here, and the options it has now.

        Returns whether the options are others than before.
        """
        if self._work.doing:  # what is tried now may fail, and the old come back
            return False
        if self._given is None and self._usable() is None:
            self.session = current_session() or self.session
        session = self._usable()
        if session is None:
            self._filled = None
            return False
        if self._of is session.plan:
            return False
        self._of = session.plan
        self._filled = self._options = ServerOptions.of(session)
        return True

    def _changed(self) -> ServerOptions | None:
        """Return the options, if they are not those of the session."""
        return None if self._options == self._filled else self._options

    # ── what buttons and controls do ─────────────────────────────────────────────

    def _start(self) -> None:
        if not self._can()["start"]:  # clicked before the page knew that
            return
        self._say("")
        self._work.start(self._usable(), self._changed())
        self._show_state()

    def _stop(self) -> None:
        self._work.stop(self._usable())
        self._show_state()

    def _restart(self) -> None:
        session = self._usable()
        if session is not None and self._can()["restart"]:
            self._say("")
            self._work.restart(session, self._changed())
            self._show_state()

    def _refresh(self) -> None:
        self._search.ask(None)
        self._ask_plan()

    def _take_nearest(self) -> None:
        if self._preview is None or self._preview.nearest is None:
            return
        self._options = replace(self._options, context_size=self._preview.nearest)
        if self._view is not None:
            self._view.form.fill(self._options)
        self._show_models()
        self._ask_plan()

    def _choose(self, model: str | None) -> None:
        if not model or model == self._options.model:
            return
        self._options = replace(self._options, model=model)
        if self._view is not None:
            self._outbox.set(self._view.other, value="")
        self._ask_plan()

    def _name_another(self, text: str) -> None:
        name = text.strip().strip("'\"")
        if name:
            self._options = replace(self._options, model=name)
            self._show_models()
            self._ask_plan()

    def _set_filter(self, **changes: Any) -> None:
        self._filter = replace(self._filter, **changes)
        self._show_log()

    def _reveal_log(self, shown: bool) -> None:
        self._log_is_shown = shown
        if self._view is not None:
            self._view.reveal(self._view.log_box, shown=shown)
            self._show_log(anew=True)

    def _reveal_command(self, shown: bool) -> None:
        if self._view is not None:
            self._view.reveal(self._view.command, shown=shown)

    def _undo_edit(self, _: str) -> None:
        """Let the command be what it is: there to be copied."""
        if self._view is not None:
            text = "" if self._seen is None else command_text(self._seen)
            self._outbox.set(self._view.command, value=text)

    # ── models and the plan ──────────────────────────────────────────────────────

    def _show_found(self, _: None, found: FoundModels) -> None:
        self._found = found
        self._show_models()

    def _show_models(self) -> None:
        if self._view is None:
            return
        options = self._options
        choices = model_choices(
            self._found,
            options.chosen(self._cards),
            options.context_size * (options.parallel or 1),
            cache_type_k=options.cache_type_k,
            cache_type_v=options.cache_type_v,
            flash_attn=options.flash_attn,
            also=options.model,
        )
        self._view.show_models(choices, options.model)

    def _ask_plan(self) -> None:
        """Have the plan of what is chosen made, instead of any other."""
        before = self._preview
        looking = Preview("looking", f"Looking at {self._options.model}.")
        if before is not None and before.html:
            faint = f'<div style="opacity:.4">{before.html}</div>'
            old = before.html if before.state == "looking" else faint
            looking = replace(looking, html=old)
        self._preview = looking
        self._show_plan()
        running = self._seen is not None and self._seen.alive
        self._newest.ask((self._options, running and self._changed() is None))

    def _look_ahead(
        self, question: tuple[ServerOptions, bool], *, ask_hub: bool = True
    ) -> Preview:
        """Return what a start would come to; in a thread."""
        options, as_it_runs = question
        session = self._usable()
        if as_it_runs and session is not None:
            return drawn(session.plan)
        return look_ahead_from(session, options, self._headers, ask_hub=ask_hub)

    def _show_preview(
        self, question: tuple[ServerOptions, bool], preview: Preview
    ) -> None:
        if question[0] == self._options:
            self._preview = preview
            self._show_plan()

    def _show_plan(self) -> None:
        if self._view is not None and self._preview is not None:
            self._view.show_plan(self._preview)
            self._show_buttons()

    # ── what goes on ─────────────────────────────────────────────────────────────

    def _look(self) -> None:
        """See what the server does, and show that; twice a second."""
        with self._lock:
            self._others |= self._follow_session()
            session = self._usable()
            self._looks += 1
            number = self._looks
        seen = None if session is None else look(session.server)
        with self._lock:
            if number < self._shown_look:  # one that began later has ended before
                return
            self._shown_look = number
            before, self._seen = self._seen, seen
            others, self._others = self._others, False
            if others and self._view is not None:
                self._view.form.fill(self._options)
                self._show_models()
            if others or _ran(before) != _ran(seen):
                self._polls.forget()
                self._ask_plan()
            self._show_state()
            self._show_log()

    def _show_state(self) -> None:
        view, work = self._view, self._work
        if view is None:
            return
        session = self._usable()
        doing = "stopping" if work.stopping else work.doing
        view.show_state(self._seen, doing)
        size = 0
        if session is not None and self._seen is not None:
            size = session.model.size * self._seen.count
        view.show_progress(self._seen, work.steps, size)
        view.show_trouble(self._trouble())
        self._show_buttons()

    def _trouble(self) -> str:
        of_server = "" if self._seen is None else self._seen.trouble
        return self._work.trouble or of_server

    def _show_buttons(self) -> None:
        if self._view is not None:
            hint = hint_at_start(
                alive=_ran(self._seen),
                changed=self._changed() is not None,
                good=self._preview is None or self._preview.can_start,
                over=self._is_over,
            )
            self._view.show_buttons(self._can(), hint)

    def _can(self) -> Mapping[str, bool]:
        """Return which buttons make sense now."""
        work, alive = self._work, _ran(self._seen)
        good = self._preview is None or self._preview.can_start
        idle = not (work.doing or work.stopping or self._is_over)
        return {
            "start": idle and not alive and good,
            "stop": not work.stopping and (alive or bool(work.doing)),
            "restart": idle and alive and (good or self._changed() is None),
        }

    def _show_log(self, *, anew: bool = False) -> None:
        if self._view is None or not self._log_is_shown:
            return
        session = self._usable()
        managers = () if session is None else servers_of(session.server)
        if self._tail.read(managers, self._filter) or anew:
            self._view.show_log_lines(self._tail, self._filter)

    def _poll(self) -> None:
        """Ask the server how busy it is; once a second while it is ready."""
        session, seen = self._usable(), self._seen
        ready = seen is not None and seen.state is ServerState.READY
        activity = None
        if session is not None and ready:
            with contextlib.suppress(ClientError, LLCudaError):
                activity = self._polls.ask(session)
        with self._lock:
            if self._view is not None:
                self._view.show_activity(activity)

    def close(self) -> None:
        """Take the panel off the page; the server goes on."""
        super().close()
        self._polls.close()
        if self._view is not None:
            for block in self._view.blocks:  # not all of them are on the page
                close_all(block)

    # ── without widgets ──────────────────────────────────────────────────────────

    def _state(self) -> Mapping[str, str]:
        """Return the state as it is now, part by part."""
        with self._lock:
            self._follow_session()
            session = self._usable()
        seen = None if session is None else look(session.server)
        preview = self._preview
        if session is not None and self._changed() is None:
            preview = drawn(session.plan)
        elif self._mode == "text" or preview is None:
            preview = self._look_ahead((self._options, False), ask_hub=False)
        server = "○ no server yet" if seen is None else f"{seen.mark} {seen.where}"
        parts = {
            "Server": server,
            "Options": str(self._options),
            "Plan": f"{preview.mark}: {preview.sentence}",
        }
        trouble = self._work.trouble or ("" if seen is None else seen.trouble)
        return parts | ({"Error": trouble} if trouble else {})

    def _log_end(self) -> list[str]:
        session, tail = self._usable(), LogTail()
        if session is not None:
            tail.read(servers_of(session.server), self._filter)
        return tail.lines[-_LOG_LINES:]

    def _text(self) -> str:
        lines = [f"{name + ':':9}{told}" for name, told in self._state().items()]
        log = self._log_end()
        return "\n".join([*lines, *(["Log:"] if log else []), *log])

    def _html(self) -> str:
        state = dict(self._state())
        title = state.pop("Server")
        log = _html.table([[line] for line in self._log_end()])
        return _html.panel("Server", title, _html.table(state.items(), left=2), log)


def _ran(seen: Seen | None) -> bool:
    return seen is not None and seen.alive
