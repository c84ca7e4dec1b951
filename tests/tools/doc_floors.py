"""The floors of the architecture as a picture, from the table that the tests hold."""

from __future__ import annotations

import ast
import html
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests" / "test_architecture.py"

NAMES = {
    0: "facts",
    1: "doors and plain values",
    2: "domain",
    3: "services",
    4: "composition",
    5: "session",
    6: "work over a session",
    7: "faces",
}
COLOURS = [
    *("#eceff1", "#e3f2fd", "#e8f5e9", "#fffde7"),
    *("#fff3e0", "#fce4ec", "#e0f2f1", "#ede7f6"),
]
ROOMS = (
    *("setup", "gguf", "gpu", "server", "api", "pool"),
    *("telemetry", "batch", "bench", "widgets"),
)
TOP = "top modules"

WIDTH, LABEL, GAP, LINE, BOX = 960, 130, 8, 15, 190
LETTERS = 30  # that fit on a box's line


def floors() -> dict[str, int]:
    """Return the floor of each module, read from the tests without running them."""
    for node in ast.parse(TABLE.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(one, ast.Name) and one.id == "FLOORS" for one in targets):
            found: dict[str, int] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            return found
    raise ValueError("tests/test_architecture.py has no FLOORS")


def rooms_of_floors() -> dict[int, dict[str, list[str]]]:
    """Return the modules of each room on each floor, those for all to use first."""
    found: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for module, floor in floors().items():
        room, _, name = module.rpartition("/")
        found[floor][room or TOP].append(name)
    return {
        floor: {
            room: sorted(found[floor][room], key=lambda name: (name[0] == "_", name))
            for room in (TOP, *ROOMS)
            if room in found[floor]
        }
        for floor in found
    }


def lines_of(names: list[str]) -> list[str]:
    """Return the names that are no room's own business, wrapped; and how many are."""
    public = [name for name in names if not name.startswith("_")]
    inner = len(names) - len(public)
    words = [*public, f"+ {inner} inner"] if inner and public else public
    words = words or [f"{inner} inner"]
    lines = [""]
    for word in words:
        joined = f"{lines[-1]}, {word}" if lines[-1] else word
        if len(joined) > LETTERS and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines


def picture() -> str:
    """Return the picture as SVG."""
    parts: list[str] = []
    top = GAP
    for floor, rooms in sorted(rooms_of_floors().items(), reverse=True):
        drawn, height = one_floor(floor, rooms, top)
        parts += drawn
        top += height + GAP
    title = "The floors: a module imports only from lower floors or its own room"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" '
        'role="img" font-family="sans-serif" font-size="11">'
    )
    return "\n".join([head, f"<title>{title}</title>", *parts, "</svg>", ""])


def one_floor(
    floor: int, rooms: dict[str, list[str]], top: int
) -> tuple[list[str], int]:
    """Return a floor's elements, and how high it is."""
    across = (WIDTH - LABEL - 2 * GAP) // (BOX + GAP)
    texts = [(room, lines_of(names), len(names)) for room, names in rooms.items()]
    rows = [texts[at : at + across] for at in range(0, len(texts), across)]
    parts: list[str] = []
    below = top + GAP
    for row in rows:
        height = LINE * (max(len(lines) for _, lines, _ in row) + 1) + GAP
        for place, (room, lines, _) in enumerate(row):
            left = LABEL + place * (BOX + GAP)
            parts += one_room(room, lines, left, below, height)
        below += height + GAP
    below = max(below, top + 68)  # the label's three lines
    band = (
        f'<rect x="{GAP}" y="{top}" width="{WIDTH - 2 * GAP}" height="{below - top}" '
        f'rx="6" fill="{COLOURS[floor]}" stroke="#90a4ae"/>'
    )
    label = [
        text(2 * GAP, top + 24, str(floor), "font-size='18' font-weight='bold'"),
        text(2 * GAP, top + 42, NAMES[floor], ""),
        text(2 * GAP, top + 58, f"{sum(map(len, rooms.values()))} modules", MUTED),
    ]
    return [band, *label, *parts], below - top


MUTED = "fill='#546e7a'"


def one_room(
    room: str, lines: list[str], left: int, top: int, height: int
) -> list[str]:
    """Return the elements of a room on one floor."""
    box = (
        f'<rect x="{left}" y="{top}" width="{BOX}" height="{height}" rx="4" '
        'fill="#ffffff" stroke="#b0bec5"/>'
    )
    name = text(left + 6, top + LINE, room, "font-weight='bold'")
    return [box, name] + [
        text(left + 6, top + LINE * (number + 2), line, "")
        for number, line in enumerate(lines)
    ]


def text(left: int, bottom: int, words: str, look: str) -> str:
    """Return one line of text."""
    return f'<text x="{left}" y="{bottom}" {look}>{html.escape(words)}</text>'


if __name__ == "__main__":
    sys.stdout.write(picture())
