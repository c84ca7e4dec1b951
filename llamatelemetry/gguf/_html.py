"""Pieces of HTML for notebooks: a panel, a bar with its legend, a table.

Everything is text in and text out. What comes from a file is escaped here and nowhere
else, so no model can bring markup into a notebook. No scripts and no style sheet: the
style stands on each element, takes the notebook's own colours for text, and works on
light and dark ground.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from llamatelemetry._units import printable

__all__ = [
    "COLOURS",
    "FREE",
    "Segment",
    "bar",
    "panel",
    "printable",
    "table",
    "verdict",
]

COLOURS = (
    "#4878d0",
    "#ee854a",
    "#6acc64",
    "#956cb4",
    "#d65f5f",
    "#8c613c",
    "#dc7ec0",
    "#82c6e2",
)
"""Colours for segments, in order; told apart on light and dark ground."""

FREE = "rgba(128,128,128,.22)"
"""The colour of what is not used."""

_LIMIT = "background:#c0392b;box-shadow:0 0 0 1px #fff"
_LINE = "1px solid rgba(128,128,128,.35)"
_QUIET = "opacity:.7"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar.

    Attributes:
        label: What it is.
        fraction: Its part of the whole bar, 0 to 1.
        colour: A CSS colour.
        detail: More on it ("4.9 GB"), shown beside the label.
    """

    label: str
    fraction: float
    colour: str
    detail: str = ""


def bar(
    segments: Iterable[Segment], *, title: str = "", limit: float | None = None
) -> str:
    """Return a bar of segments side by side, and what each colour means.

    Args:
        segments: The parts; what they leave of the bar stays empty.
        title: Text before the bar.
        limit: Where a line is drawn that the parts should not cross, 0 to 1.
    """
    parts = list(segments)
    strips = "".join(
        f'<div title="{_text(_told(part))}" style="width:{_share(part.fraction)};'
        f'background:{_text(part.colour)}"></div>'
        for part in parts
    )
    legend = "".join(
        '<span style="margin-right:1em;white-space:nowrap">'
        '<span style="display:inline-block;width:.7em;height:.7em;border-radius:2px;'
        f'margin-right:.35em;background:{_text(part.colour)}"></span>'
        f"{_text(part.label)}{_quiet(part.detail)}</span>"
        for part in parts
    )
    if limit is not None:
        strips += (
            f'<div style="position:absolute;left:calc({_share(limit)} - 2px);top:0;'
            f'width:2px;height:100%;{_LIMIT}"></div>'
        )
    told = "; ".join(_told(part) for part in parts)
    head = f"<div>{_text(title)}</div>" if title else ""
    return (
        f'<div style="margin:.5em 0">{head}'
        f'<div role="img" aria-label="{_text(told)}" style="display:flex;'
        "position:relative;height:1.1em;max-width:48em;border-radius:4px;"
        f'overflow:hidden;margin:.2em 0">{strips}</div>'
        f'<div style="font-size:90%">{legend}</div></div>'
    )


def table(
    rows: Iterable[Sequence[object]],
    *,
    header: Sequence[str] = (),
    left: int = 1,
    whole: bool = False,
) -> str:
    """Return a table.

    Args:
        rows: The cells of each row; each is shown as its text.
        header: The columns' names; none for no head row.
        left: How many columns, from the first, are words and stand on the left;
            numbers stand on the right.
        whole: Whether a number is never parted from its unit, in no narrow column.
    """
    unbroken = "white-space:nowrap;" if whole else ""

    def cells(tag: str, values: Sequence[object], more: str) -> str:
        return "".join(
            f'<{tag} style="text-align:{"left" if column < left else "right"};'
            f"padding:.15em .9em .15em 0;border:0;{'' if column < left else unbroken}"
            f'{more}">{_text(value)}</{tag}>'
            for column, value in enumerate(values)
        )

    head = f"<thead><tr>{cells('th', header, _QUIET)}</tr></thead>" if header else ""
    body = "".join(
        f'<tr style="background:none;border-top:{_LINE}">{cells("td", row, "")}</tr>'
        for row in rows
    )
    return (
        '<table style="border-collapse:collapse;border:0;margin:.5em 0">'
        f"{head}<tbody>{body}</tbody></table>"
    )


def panel(title: str, subtitle: str, *parts: str) -> str:
    """Return a framed panel around finished parts.

    Args:
        title: Its heading, as text.
        subtitle: A line below it, as text.
        parts: HTML made by the other functions here.
    """
    return (
        f'<div style="border:{_LINE};border-radius:6px;padding:.7em 1em;'
        'margin:.4em 0;line-height:1.45;overflow-x:auto">'
        f'<div style="font-size:115%;font-weight:600">{_text(title)}</div>'
        f'<div style="{_QUIET}">{_text(subtitle)}</div>{"".join(parts)}</div>'
    )


def verdict(text: str, *, good: bool | None) -> str:
    """Return a sentence that stands out: green, red, or neither.

    Args:
        text: The sentence.
        good: Whether it is good news; None for neither.
    """
    colour = {True: "#2e8b57", False: "#c0392b", None: "inherit"}[good]
    return (
        f'<div style="font-weight:600;color:{colour};margin:.4em 0">{_text(text)}</div>'
    )


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _told(part: Segment) -> str:
    return f"{part.label} {part.detail}".strip()


def _quiet(detail: str) -> str:
    return f' <span style="{_QUIET}">{_text(detail)}</span>' if detail else ""


def _share(fraction: float) -> str:
    return f"{min(max(fraction, 0.0), 1.0):.3%}"
