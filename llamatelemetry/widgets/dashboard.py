"""Dashboard: the cards, the chat and the server of one session, on one page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from llamatelemetry._session_view import server_state
from llamatelemetry._units import printable
from llamatelemetry.widgets._panel import Panel
from llamatelemetry.widgets._toolkit import Mode
from llamatelemetry.widgets.chat_panel import ChatPanel
from llamatelemetry.widgets.server_panel import ServerPanel
from llamatelemetry.widgets.vram_panel import VRAMPanel

if TYPE_CHECKING:
    from llamatelemetry.session import Session

__all__ = ["Dashboard"]

_WIDTH = "900px"
_LOOK_SECONDS = 1.0


class Dashboard(Panel):
    """The three panels of a session together: memory on top, chat and server below.

    The parts are ``vram``, ``chat`` and ``server``, panels of their own. Closing the
    dashboard leaves the session running.

    Args:
        session: The session.
        mode: How it is shown; see :class:`~llamatelemetry.widgets._panel.Panel`.

    Attributes:
        vram: The panel with the memory of the cards, in GiB.
        chat: The panel with the chat.
        server: The panel with the server.

    Raises:
        ConfigurationError: There is no such mode.

    Examples:
        >>> from llamatelemetry import launch
        >>> from llamatelemetry.widgets import Dashboard
        >>> with launch("qwen3-4b", progress=False) as session:
        ...     dashboard = Dashboard(session)
        ...     dashboard.chat.messages
        ...     dashboard.close()
        []
    """

    def __init__(self, session: Session, *, mode: Mode | None = None) -> None:
        super().__init__(mode=mode)
        self._session = session
        self._told = ""
        self.vram = VRAMPanel(session.monitor, lambda: session.plan, mode=self._mode)
        self.chat = ChatPanel(session, mode=self._mode)
        self.server = ServerPanel(session, mode=self._mode)
        self._adopt((self.vram, self.chat, self.server))
        self._every(_LOOK_SECONDS, self._look, "dashboard")

    def _build(self) -> Any:
        toolkit = self._w
        self._heading = toolkit.HTML()
        tabs = toolkit.Tab([self.chat.widget, self.server.widget])
        for number, title in enumerate(("Chat", "Server")):
            tabs.set_title(number, title)
        layout = toolkit.Layout(width="100%", max_width=_WIDTH)
        return toolkit.VBox([self._heading, self.vram.widget, tabs], layout=layout)

    def _look(self) -> None:
        """Say in a line what runs, where that has changed."""
        told = self._line()
        if told != self._told:
            self._told = told
            line = f'<div role="status" style="line-height:1.4">{escape(told)}</div>'
            self._outbox.set(self._heading, value=f"<b>{line}</b>")

    def _line(self) -> str:
        session = self._session
        state = "closed" if session.closed else server_state(session.server)
        return printable(f"{session.model.name}: {state}")

    def _text(self) -> str:
        return "\n\n".join(map(repr, (self._session, *self._parts)))

    def _html(self) -> str:
        parts = [part._repr_html_() for part in self._parts]
        return "".join([self._session._repr_html_(), *parts])
