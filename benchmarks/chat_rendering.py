"""What showing a streamed answer costs: bytes to the page, and CPU time.

Answers of 1,024 tokens at 40 tokens/s, in the shapes that are easy and hard to show:
paragraphs of up to 80 tokens, one unbroken code block, a list, one paragraph without
end. Shown as the chat panel does, as often as it does and ten times a second; and,
side by side in the same run, as the whole Markdown rendered anew for each message.
Time is counted in tokens here, so nothing waits.

And the slowest of the hostile answers of the tests: how long one look at it takes at
most, and its last rendering.

Bytes are those of the messages' JSON with 450 bytes for each message's own fields (an
ipykernel's header, parent header and signature take that much), the new widgets of the
first answer and the finished answer at the end included.

    python benchmarks/chat_rendering.py [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "tools"))

from hostile_answers import ANSWERS

from llamatelemetry.widgets._answer import AnswerView, answer_html

TOKENS = 1024
TOKENS_PER_SECOND = 40
MESSAGE_BYTES = 450
NEW_WIDGET_BYTES = 1500  # an HTML widget's first message, and its box's new children
ROUNDS = 5
WORDS = (
    *(
        "the",
        "a",
        "model",
        "that",
        "of",
        "server",
        "memory",
        "writes",
        "token",
        "reads",
    ),
    *("card", "holds", "layer", "to", "and", "is", "in", "weights", "with", "each"),
    *("attention", "buffer", "context", "answer", "it", "when", "for", "then", "cache"),
    *("faster", "**bold**", "`code`", "because,", "so.", "first:", "about"),
)
Shown = Callable[[list[str]], tuple[int, int]]


def paragraphs() -> list[str]:
    """Return an answer of paragraphs of 40 to 80 tokens."""
    chance = random.Random(6)
    tokens: list[str] = []
    while len(tokens) < TOKENS:
        tokens += _sentence(chance, chance.randint(39, 79))
        tokens.append("\n\n")
    return tokens[:TOKENS]


def code() -> list[str]:
    """Return an answer that is one code block, of lines of 4 to 16 tokens."""
    chance = random.Random(6)
    tokens = ["```", "python", "\n"]
    while len(tokens) < TOKENS:
        tokens.append("    " * chance.randint(0, 3))
        pieces = ("name", " = ", "(", "value", ")", ".", "get", "[", '"key"', "]")
        tokens += chance.choices(pieces, k=chance.randint(3, 15))
        tokens.append("\n")
    return tokens[:TOKENS]


def items() -> list[str]:
    """Return an answer that is one numbered list, of items of 20 to 40 tokens."""
    chance = random.Random(6)
    tokens: list[str] = []
    for number in range(1, 60):
        tokens += [f"{number}", ". ", *_sentence(chance, chance.randint(18, 38)), "\n"]
    return tokens[:TOKENS]


def unbroken() -> list[str]:
    """Return an answer that is one paragraph."""
    return _sentence(random.Random(6), TOKENS)


def _sentence(chance: random.Random, length: int) -> list[str]:
    return [f" {word}" for word in chance.choices(WORDS, k=length)]


def as_the_panel(tokens: list[str], *, interval: float | None = None) -> Any:
    """Return bytes and messages of an answer shown in pieces.

    Args:
        tokens: The answer.
        interval: Seconds between two looks; None for what the view itself asks for.
    """
    view = AnswerView()
    sent: list[str] = []
    widgets, due = 1, 0.0  # the live end's
    for number, token in enumerate(tokens):
        view.feed(token)
        now = number / TOKENS_PER_SECOND
        if now >= due:
            changes = view.changes()
            sent += changes.sections.values()
            sent += [] if changes.tail is None else [changes.tail]
            widgets = max(widgets, *(each + 2 for each in changes.sections), 1)
            due = now + (view.interval if interval is None else interval)
    sent.append(view.finish())
    return _bytes(sent) + widgets * NEW_WIDGET_BYTES, len(sent)


def anew(tokens: list[str], *, interval: float = 0.1) -> Any:
    """Return bytes and messages of an answer rendered whole each time."""
    text, due = "", 0.0
    sent: list[str] = []
    for number, token in enumerate(tokens):
        text += token
        now = number / TOKENS_PER_SECOND
        if now >= due:
            sent.append(answer_html(text))
            due = now + interval
    sent.append(answer_html(text))
    return _bytes(sent) + NEW_WIDGET_BYTES, len(sent)


def _bytes(values: list[str]) -> int:
    """Return what messages with these values take, as a kernel writes JSON."""
    each = (len(json.dumps(value, ensure_ascii=False).encode()) for value in values)
    return sum(each) + len(values) * MESSAGE_BYTES


SHAPES = {
    "paragraphs": paragraphs,
    "one code block": code,
    "one list": items,
    "one paragraph": unbroken,
}
WAYS: dict[str, Callable[[list[str]], tuple[int, int]]] = {
    "panel": as_the_panel,
    "panel at 10 Hz": lambda tokens: as_the_panel(tokens, interval=0.1),
    "whole at 10 Hz": anew,
}


def measure() -> list[dict[str, Any]]:
    """Return one row per shape and way; the rounds are interleaved."""
    rows: list[dict[str, Any]] = []
    for shape, make in SHAPES.items():
        tokens = make()
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        results: dict[str, tuple[int, int]] = {}
        for _ in range(ROUNDS):
            for way, show in WAYS.items():
                started = time.process_time()
                results[way] = show(tokens)
                seconds[way].append(time.process_time() - started)
        for way, (count, messages) in results.items():
            rows.append(
                {
                    "answer": shape,
                    "way": way,
                    "messages": messages,
                    "kilobytes": round(count / 1000, 1),
                    "cpu_ms": round(statistics.median(seconds[way]) * 1e3, 1),
                    "bytes_ratio": round(count / results["whole at 10 Hz"][0], 3),
                }
            )
    return rows


def hostile() -> dict[str, Any]:
    """Return the seconds of the worst look, and of the worst last rendering."""
    looks: dict[str, float] = {}
    ends: dict[str, float] = {}
    for name, text in ANSWERS.items():
        view, size = AnswerView(), max(7, len(text) // 50)
        for start in range(0, len(text), size):
            view.feed(text[start : start + size])
            started = time.process_time()
            view.changes()
            seconds = time.process_time() - started
            looks[name] = max(looks.get(name, 0), seconds)
        started = time.process_time()
        view.finish()
        ends[name] = time.process_time() - started
    look, end = max(looks, key=looks.__getitem__), max(ends, key=ends.__getitem__)
    return {
        "answer": "hostile",
        "worst_look": look,
        "worst_look_ms": round(looks[look] * 1e3, 1),
        "worst_end": end,
        "worst_end_ms": round(ends[end] * 1e3, 1),
    }


def main() -> None:
    """Measure, print a table, and write the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    answer_html("*first*")  # imports are counted elsewhere
    rows = measure()
    print("| answer | shown as | messages | bytes | of the whole's | CPU an answer |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['answer']} | {row['way']} | {row['messages']} "
            f"| {row['kilobytes']} kB | {row['bytes_ratio']:.0%} | {row['cpu_ms']} ms |"
        )
    worst = hostile()
    print(
        f"\nOf {len(ANSWERS)} hostile answers of up to a megabyte the slowest look "
        f"took {worst['worst_look_ms']} ms ({worst['worst_look']}), the slowest last "
        f"rendering {worst['worst_end_ms']} ms ({worst['worst_end']})."
    )
    rows.append(worst)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
