"""ChatPanel: talk to a model; the answer comes as it is written, and can be stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from llamatelemetry._files import write_whole
from llamatelemetry.api.client import ChatOptions, LlamaCppClient, RequestRecord
from llamatelemetry.exceptions import ConfigurationError, LLCudaError
from llamatelemetry.widgets import _transcript
from llamatelemetry.widgets._chat_controls import DEFAULTS
from llamatelemetry.widgets._chat_face import Face, Situation
from llamatelemetry.widgets._chat_follow import Follower
from llamatelemetry.widgets._chat_history import Exchange, History
from llamatelemetry.widgets._chat_page import (
    beginning_html,
    exchange_html,
    exchange_text,
    status_html,
)
from llamatelemetry.widgets._chat_room import measure
from llamatelemetry.widgets._chat_words import status_line
from llamatelemetry.widgets._markdown import STYLE, UNTYPESET
from llamatelemetry.widgets._panel import Panel
from llamatelemetry.widgets._toolkit import Mode
from llamatelemetry.widgets._transcript import Turn

__all__ = ["ChatPanel"]

_LOOK_SECONDS = 3.0
_DOUBLE_CLICK_SECONDS = 0.3
_FAREWELL_SECONDS = 3.0
# What makes more than one answer, or none that is text.
_REFUSED = frozenset(
    ("n", "on_progress", "tools", "tool_choice", "parallel_tool_calls")
)
_DEFAULT_URL = "http://127.0.0.1:8080"


class ChatPanel(Panel):
    """A conversation with a model.

    An answer comes in a thread of its own. Stop ends it at once; the panel then shows
    when the server's slot was seen idle. The conversation can be changed while nothing
    is being answered, by buttons and by methods alike.

    Args:
        client: A client, or a session: of that, the client of the moment.
        system: What the model is told before the conversation.
        mode: How it is shown; see :class:`~llamatelemetry.widgets._panel.Panel`.
        **sampling: What a chat takes: ``temperature``, ``top_p``, ``top_k``,
            ``repeat_penalty``, ``max_tokens`` (None: the room left in the context),
            ``seed`` (None: a random one), ``thinking``, ``stop``, ``min_p``,
            ``extra_body`` and others of ``llamatelemetry.api.client.ChatOptions``.

    Raises:
        ConfigurationError: This is no client, or there is no such option.

    Examples:
        >>> from llamatelemetry.widgets import ChatPanel
        >>> panel = ChatPanel(client, system="You are helpful.", temperature=0)
        >>> panel.send("What is GGUF?")
        >>> panel.wait()
        True
        >>> panel.transcript[-1].content[:21]
        'GGUF is a file format'
        >>> panel.close()
    """

    def __init__(
        self,
        client: LlamaCppClient | Any,
        *,
        system: str | None = None,
        mode: Mode | None = None,
        **sampling: Any,
    ) -> None:
        super().__init__(mode=mode)
        # Looking at the type first: a session whose server is down may have none now.
        has_one = hasattr(type(client), "client") or hasattr(client, "client")
        if not isinstance(client, LlamaCppClient) and not has_one:
            raise ConfigurationError(
                f"a chat panel takes a client or a session, not {client!r}; for a "
                "running server: LlamaCppClient(server.get_url())"
            )
        self._source = client
        self._history = History(self._client, self._measured)
        self._history.system = system or ""
        self._history.sampling.update(DEFAULTS, **_checked(sampling))
        self._pages: dict[Exchange, str] = {}  # the HTML of what is over
        self._follower: Follower | None = None
        self._editing = False
        self._sent_at = 0.0
        self._looked_at: LlamaCppClient | None = None
        self._face: Face | None = None
        self._every(_LOOK_SECONDS, self._look, "chat-server")

    # ── for those who use one ────────────────────────────────────────────────────

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as it is sent, system prompt included; a copy."""
        with self._lock:
            return self._history.messages

    @property
    def transcript(self) -> list[Turn]:
        """Everything asked and answered, with what it took; also what failed."""
        with self._lock:
            return self._history.turns

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being given."""
        return self._history.is_answering

    def send(self, text: str, images: Sequence[Mapping[str, Any]] = ()) -> None:
        """Ask something; returns at once.

        Args:
            text: The message.
            images: Parts that ``llamatelemetry.widgets.image_part`` made.

        Raises:
            ConfigurationError: There is nothing to send, an answer is being given, or
                the panel or its session was closed.
        """
        with self._asking():
            self._history.send(text, images)

    def regenerate(self) -> None:
        """Ask the last question again, in place of its answer.

        Raises:
            ConfigurationError: There is none, its answer is being given, or the panel
                or its session was closed.
        """
        with self._asking():
            self._history.ask_again()

    def edit_last(
        self, text: str, images: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Ask something in place of the last question.

        Args:
            text: The message.
            images: Its images; None for those it had.

        Raises:
            ConfigurationError: There is none, its answer is being given, or the panel
                or its session was closed.
        """
        with self._asking():
            last = self._history.last
            kept = last.question.images if last is not None else ()
            self._history.replace_last(text, kept if images is None else images)

    def stop(self) -> None:
        """End the answer that is being given; what has come is kept."""
        with self._lock:
            self._history.stop()
            last = self._history.last
            if last is not None and self._face is not None:
                # At once, before the page is drawn the next time.
                self._face.view.say(status_html(status_line(last.progress)))
            self._show()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the answer; after a stop, until its slot is idle.

        Args:
            timeout: Seconds; None for any time.

        Returns:
            Whether it is over.
        """
        return self._history.wait(timeout)

    def clear(self) -> None:
        """Forget the conversation; :meth:`undo_clear` has it back once."""
        with self._lock:
            self._history.clear()
            if self._editing:
                self._editing = False
                self._say("")
            self._show()

    def undo_clear(self) -> None:
        """Have the conversation back that was cleared last.

        Raises:
            ConfigurationError: Nothing was, or something was asked since.
        """
        with self._lock:
            self._history.undo_clear()
            self._show()

    def drop_oldest(self, count: int = 1) -> None:
        """Forget the oldest questions with their answers, for room in the context.

        Args:
            count: How many.
        """
        with self._lock:
            self._history.drop_oldest(count)
            self._show()

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the transcript to a file and return its path.

        Args:
            path: Ends in .json (all that is known, and can be read back) or .md.
            overwrite: Whether a file may be replaced.

        Raises:
            ConfigurationError: Another ending.
            FileExistsError: The file is there.
            OSError: It cannot be written.
        """
        target = Path(path).expanduser()
        writers = {".json": _transcript.to_json, ".md": _transcript.to_markdown}
        write = writers.get(target.suffix.lower())
        if write is None:
            raise ConfigurationError(
                f"{target.name!r} ends in neither .json nor .md, which say how the "
                "transcript is written"
            )
        with self._lock:
            turns, system = self._history.turns, self._history.system
        text = write(turns, system)
        if overwrite:
            write_whole(target, text)
        else:
            _write_new(target, text)
        return target

    def to_cell(self) -> str:
        """Return the source of a cell that asks the same again."""
        # A pool has no address of its own; a session names its first server's.
        url = getattr(self._client(), "base_url", None)
        url = str(url or getattr(self._source, "url", _DEFAULT_URL))
        with self._lock:
            turns, system = self._history.said, self._history.system
        return _transcript.to_cell(turns, system, url=url)

    def close(self) -> None:
        """End the answer that is being given and take the panel off the page."""
        with self._lock:
            self._closing.set()  # nothing is asked any more
            self._history.leave()
        self._history.wait(_FAREWELL_SECONDS)
        super().close()

    # ── what Panel asks for ──────────────────────────────────────────────────────

    def _build(self) -> Any:
        face = Face(
            self._w, self._outbox, self._history, self._on_change, self._on_click
        )
        self._face = face
        self._on_click(face.send, self._send_or_stop)
        self._on_click(face.regenerate, self.regenerate)
        self._on_click(face.edit, self._edit_or_cancel)
        self._on_click(face.clear, self._clear_or_undo)
        self._on_click(face.drop, self._drop_and_ask)
        self._on_click(face.save_json, lambda: self._save_beside("json"))
        self._on_click(face.save_markdown, lambda: self._save_beside("md"))
        self._on_click(face.cell, self._show_or_hide_cell)
        self._show()
        return face.box

    def _text(self) -> str:
        exchanges = self._history.exchanges
        asked = "1 question" if len(exchanges) == 1 else f"{len(exchanges)} questions"
        head = f"ChatPanel, {asked}"
        return "\n\n".join([head, *map(exchange_text, exchanges)])

    def _html(self) -> str:
        exchanges = self._history.exchanges
        shown = "".join(map(self._page, exchanges))
        shown = shown or "<p>A chat, with nothing asked yet.</p>"
        return f'{STYLE}<div class="{" ".join(UNTYPESET)}">{shown}</div>'

    # ── buttons; called under the lock ───────────────────────────────────────────

    def _send_or_stop(self) -> None:
        face = self._require_face()
        if self._history.is_answering:
            # The second click of a double one, or of an impatient reader whose kernel
            # was busy, is none for Stop.
            if time.monotonic() - self._sent_at > _DOUBLE_CLICK_SECONDS:
                self.stop()
            return
        text, images = face.message.value, face.pictures.parts
        if self._editing:
            self.edit_last(text, images)
        else:
            self.send(text, images)
        self._sent_at = time.monotonic()
        self._outbox.set(face.message, value="")
        face.pictures.attach(())

    def _edit_or_cancel(self) -> None:
        face, last = self._require_face(), self._history.last
        self._editing = not self._editing and last is not None
        question = last.question if last is not None and self._editing else None
        self._outbox.set(face.message, value=question.content if question else "")
        face.pictures.attach(question.images if question else ())
        self._say(
            "Sending replaces the last message and its answer." if question else ""
        )
        self._show()

    def _clear_or_undo(self) -> None:
        if self._history.exchanges:
            self.clear()
        else:
            self.undo_clear()

    def _drop_and_ask(self) -> None:
        self._history.make_room()
        self.regenerate()

    def _save_beside(self, suffix: str) -> None:
        stem = time.strftime("chat-%Y-%m-%d-%H%M%S")
        names = (f"{stem}{f'-{again}' if again else ''}.{suffix}" for again in count())
        for name in names:
            try:
                path = self.save(name)
            except FileExistsError:
                continue
            except OSError as error:
                raise ConfigurationError(
                    "nothing was saved, as the notebook's folder cannot be written "
                    f"to: {error.strerror}; panel.save(path) writes it elsewhere"
                ) from error
            self._say(f"Saved as {path.resolve()}")
            return

    def _show_or_hide_cell(self) -> None:
        face = self._require_face()
        face.show_source("" if face.source.value else self.to_cell())

    # ── inside ───────────────────────────────────────────────────────────────────

    def _client(self) -> LlamaCppClient:
        if isinstance(self._source, LlamaCppClient):
            return self._source
        client: LlamaCppClient = self._source.client
        return client

    def _measured(self, record: RequestRecord) -> str:
        """Return what the session's timeline knows of a request; "" without one."""
        timeline = getattr(self._source, "timeline", None)
        return "" if timeline is None else timeline.describe(record)

    def _require_face(self) -> Face:
        if self._face is None:
            raise ConfigurationError("the panel is not shown")
        return self._face

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Do something that asks for an answer, and show the answer as it comes."""
        with self._lock:
            if self.closed:
                raise ConfigurationError("this panel was closed; make another one")
            if getattr(self._source, "closed", False):  # only a session has it
                raise ConfigurationError(
                    "the session of this panel is closed; launch(...) makes another"
                )
            yield
            self._editing = False
            self._looked_at = None  # another model may run there by now
            self._say("")
            self._show()

    def _show(self) -> None:
        """Show the conversation as it is now; under the lock."""
        if self._face is None or self.closed:
            return
        exchanges, last = self._history.exchanges, self._history.last
        live = None if last is None or last.generation.is_over else last
        if live is None:
            self._follower = None
        elif self._follower is None or self._follower.exchange is not live:
            self._follow(live, self._face)
        pages = {one: self._page(one) for one in exchanges if one is not live}
        self._pages = {one: pages[one] for one in pages if one.generation.is_over}
        self._face.view.arrange(pages, is_live=live is not None)
        self._face.show(self._situation())

    def _page(self, exchange: Exchange) -> str:
        """Return the HTML of a question and its answer, as far as it is."""
        return self._pages.get(exchange) or exchange_html(exchange)

    def _follow(self, exchange: Exchange, face: Face) -> None:
        """Begin to show an answer as it comes."""
        follower = Follower(exchange, face.view, self._lock)
        self._follower = follower
        face.view.begin(beginning_html(exchange.question))

        def run() -> None:
            page = follower.run(lambda one: one is self._follower, self._closing)
            with self._lock:
                if page is not None and exchange in self._history.exchanges:
                    self._pages[exchange] = page
                self._show()

        self._in_background(run, "chat-answer")

    def _look(self) -> None:
        """Offer images where the server that answers now has a model that sees."""
        try:
            client = self._client()
            if client is self._looked_at:
                return
            room = measure(client)
        except LLCudaError:
            return  # it does not run; sending says so
        with self._lock:
            self._looked_at = client
            if self._face is not None:
                self._face.pictures.offer(sees_pictures=room.sees_pictures)

    def _situation(self) -> Situation:
        last = self._history.last
        drop = 0 if last is None else last.progress.drop or 0
        return Situation(
            is_answering=self._history.is_answering,
            is_editing=self._editing,
            is_empty=last is None,
            can_undo=self._history.can_undo,
            drop=drop,
        )


def _write_new(target: Path, text: str) -> None:
    """Write a file that was not there, also while others look for a free name.

    Raises:
        FileExistsError: It is there.
        OSError: It cannot be written.
    """
    try:
        target.open("x").close()
    except FileExistsError:
        raise FileExistsError(
            f"{target} is there already; give another name, or overwrite=True"
        ) from None
    try:
        write_whole(target, text)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _checked(sampling: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return options that a chat takes, without None where a number stands.

    Raises:
        ConfigurationError: There is one that does not exist, or makes no text.
    """
    known = ChatOptions.__optional_keys__ - _REFUSED
    for name in sampling:
        if name not in known:
            raise ConfigurationError(
                f"a chat panel has no option {name!r}; it takes "
                f"{', '.join(sorted(known))}"
            )
    thinking = sampling.get("thinking")
    if thinking not in (None, True, False):
        raise ConfigurationError(f"thinking={thinking!r} is none of True, False, None")
    return {
        name: value
        for name, value in sampling.items()
        if value is not None or DEFAULTS.get(name) is None
    }
