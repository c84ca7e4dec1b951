"""Questions and answers as HTML, everything in it escaped or cleaned. Pure."""

from __future__ import annotations

from html import escape

from llamatelemetry._units import printable
from llamatelemetry.widgets._answer import answer_html
from llamatelemetry.widgets._chat_history import Exchange
from llamatelemetry.widgets._chat_words import status_line
from llamatelemetry.widgets._markdown import to_plain_html, wrapped
from llamatelemetry.widgets._transcript import Turn

__all__ = [
    "beginning_html",
    "exchange_html",
    "exchange_text",
    "question_html",
    "status_html",
]

_LONGEST_STATUS = 2000
_QUESTION = (
    "border-left:3px solid var(--jp-border-color1,#999);padding:2px 8px;"
    "margin:8px 0 4px"
)
_ANSWER = "padding:2px 11px;margin:4px 0"
_STATUS = (
    "font-size:85%;line-height:1.4;opacity:0.8;overflow-wrap:anywhere;padding:2px 11px"
)


def question_html(question: Turn) -> str:
    """Return a question, with who asks and how many pictures go with it."""
    told = wrapped(to_plain_html(question.content))
    pictures = _pictures(question)
    if pictures:
        told += f'<div style="{_STATUS}">{pictures}</div>'
    return f'<div style="{_QUESTION}"><b>You</b>{told}</div>'


def beginning_html(question: Turn) -> str:
    """Return a question, and below it whose answer will come."""
    return f'{question_html(question)}<div style="{_ANSWER}"><b>Model</b></div>'


def status_html(text: str) -> str:
    """Return the quiet line below an answer."""
    shown = escape(printable(text, _LONGEST_STATUS))
    if shown.startswith("Error:"):
        shown = f"<b>Error:</b>{shown.removeprefix('Error:')}"
        return f'<div role="alert" style="{_STATUS};opacity:1">{shown}</div>'
    return f'<div role="status" style="{_STATUS}">{shown}</div>' if shown else ""


def exchange_html(exchange: Exchange, answer: str | None = None) -> str:
    """Return a question with its answer and the line below it.

    Args:
        exchange: Question and answer.
        answer: The answer's HTML where it is there already.
    """
    progress = exchange.progress
    if answer is None:
        turn = exchange.answer
        answer = answer_html(turn.content, turn.reasoning)
    shown = ""
    if progress.text or progress.reasoning:
        shown = f'<div style="{_ANSWER}"><b>Model</b>{answer}</div>'
    return question_html(exchange.question) + shown + status_html(status_line(progress))


def exchange_text(exchange: Exchange) -> str:
    """Return the same as text that cannot steer a terminal."""
    progress, pictures = exchange.progress, _pictures(exchange.question)
    parts = [f"You: {_lines(exchange.question.content)}"]
    if pictures:
        parts.append(f"({pictures})")
    answer = exchange.answer.content
    if answer:
        parts.append(f"Model: {_lines(answer)}")
    parts.append(f"({printable(status_line(progress), _LONGEST_STATUS)})")
    return "\n".join(parts)


def _pictures(question: Turn) -> str:
    count = len(question.images)
    if not count:
        return ""
    return "with an image" if count == 1 else f"with {count} images"


def _lines(text: str) -> str:
    """Return text whose lines are kept and hold no control characters."""
    return "\n".join(
        printable(line.expandtabs(4), len(line) * 4) for line in text.splitlines()
    )
