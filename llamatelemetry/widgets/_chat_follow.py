"""Shows one answer as it comes: a few times a second, what has changed since."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from llamatelemetry.widgets._answer import AnswerView
from llamatelemetry.widgets._chat_history import Exchange
from llamatelemetry.widgets._chat_page import exchange_html, status_html
from llamatelemetry.widgets._chat_view import ChatView
from llamatelemetry.widgets._chat_words import status_line
from llamatelemetry.widgets._generation import Progress

__all__ = ["Follower"]

_SLOWLY = 1.0  # seconds between changes of what need not be quick


class Follower:
    """Takes an answer to the page, in a thread of its own.

    Args:
        exchange: The question and its answer.
        view: Where it is shown.
        lock: The panel's.
    """

    def __init__(
        self, exchange: Exchange, view: ChatView, lock: threading.RLock
    ) -> None:
        self.exchange = exchange
        self._view, self._lock = view, lock
        self._answer = AnswerView()
        self._text = self._reasoning = 0  # characters that were fed
        self._told = ""  # the state that was told last, and when
        self._told_at = self._thought_at = float("-inf")

    def run(
        self, is_live: Callable[[Follower], bool], closing: threading.Event
    ) -> str | None:
        """Show it to its end, and return the HTML of the whole.

        Args:
            is_live: Whether this is still what is shown as the answer that comes.
            closing: Ends it early; then None is returned.
        """
        changed = self.exchange.changed
        while not closing.is_set():
            changed.wait(_SLOWLY)
            changed.clear()
            progress = self.exchange.progress
            self._answer.feed(
                progress.text[self._text :], progress.reasoning[self._reasoning :]
            )
            self._text, self._reasoning = len(progress.text), len(progress.reasoning)
            if progress.is_over:
                return exchange_html(self.exchange, self._answer.finish())
            with self._lock:
                if is_live(self) and not closing.is_set():
                    self._show(progress)
            closing.wait(self._answer.interval)
        return None

    def _show(self, progress: Progress) -> None:
        now = time.monotonic()
        self._view.add(self._answer.changes())
        is_due = self._view.is_reasoning_open or now >= self._thought_at + _SLOWLY
        if is_due and self._answer.reasoning:  # the first of it at once
            self._thought_at = now
            self._view.add_reasoning(self._answer.reasoning_changes())
        state = progress.state
        if state != self._told or now >= self._told_at + _SLOWLY:
            self._told, self._told_at = state, now
            thinking = self._answer.reasoning_title() if self._answer.thinking else ""
            self._view.say(status_html(status_line(progress, thinking=thinking)))
