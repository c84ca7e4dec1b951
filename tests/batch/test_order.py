"""Asks with a common beginning stand together, and none is lost."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from llamatelemetry.batch._order import SideBySide, beginning

DOCUMENTS = [f"Document {number}: " + f"word{number} " * 40 for number in range(20)]


@dataclass(frozen=True)
class Asked:
    """What has messages, as an ask."""

    number: int
    messages: list[dict[str, Any]]


def asked(number: int, text: str, system: str | None = None) -> Asked:
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Asked(number, messages)


def side_by_side(asks: Iterable[Asked], most: int = 1000) -> Iterator[Asked]:
    """Yield asks as workers get them who are slower than what reads them."""
    waiting: SideBySide[Asked] = SideBySide(most)
    for ask in asks:
        waiting.add(ask)
        if len(waiting) == most:
            yield from waiting.take()
    yield from waiting.take()


def numbers(asks: Iterator[Asked]) -> list[int]:
    return [ask.number for ask in asks]


def questions(count: int, seed: int = 0) -> list[Asked]:
    """Return questions about documents in no order, behind one system message."""
    chance = random.Random(seed)
    return [
        asked(
            number, f"{chance.choice(DOCUMENTS)}Question {number}?", "Be short. " * 20
        )
        for number in range(count)
    ]


def changes(asks: list[Asked]) -> int:
    """Return how often an ask begins otherwise than the one before it."""
    texts = [ask.messages[-1]["content"].partition("Question")[0] for ask in asks]
    return sum(one != two for one, two in pairwise(texts))


def test_the_same_document_stands_together() -> None:
    """Of 200 questions about 20 documents each document's come one after the other."""
    asks = questions(200)

    ordered = list(side_by_side(asks, most=200))

    assert changes(asks) > 150
    assert changes(ordered) == len(DOCUMENTS) - 1
    assert sorted(numbers(iter(ordered))) == list(range(200))


def test_groups_within_groups_stand_together() -> None:
    """A book's chapters stay together, and so do the questions of each chapter."""
    asks = [
        asked(number, f"{book * 100}{chapter * 100}{'?' * number}")
        for number, (book, chapter) in enumerate(
            (book, chapter) for _ in range(3) for chapter in "xyz" for book in "ab"
        )
    ]

    ordered = list(side_by_side(asks))

    told = [ask.messages[0]["content"][99:101] for ask in ordered]
    assert told == [two for two in ("ax", "ay", "az", "bx", "by", "bz") for _ in "123"]


def test_what_shares_nothing_keeps_its_order() -> None:
    """One template with short and long texts is left in the order in which it came."""
    chance = random.Random(1)
    asks = [
        asked(number, f"Summarise: {chance.random()} {'x' * chance.randrange(500)}")
        for number in range(300)
    ]

    assert numbers(side_by_side(asks, most=100)) == list(range(300))


def test_groups_come_in_the_order_of_their_first() -> None:
    """So that the order says nothing about length: it is that of the source."""
    long, short = "long " * 100, "short " * 20
    asks = [asked(0, short + "a"), asked(1, long), asked(2, "b"), asked(3, short)]

    assert numbers(side_by_side(asks)) == [0, 3, 1, 2]


def test_the_next_window_goes_on_with_the_last_beginning() -> None:
    """What the caches hold is asked for first, however late it comes in its window."""
    a, b = "a" * 100, "b" * 100
    asks = [asked(0, b), asked(1, a), asked(2, b), asked(3, a)]

    assert numbers(side_by_side(asks, most=2)) == [0, 1, 3, 2]


def test_pictures_fill_it_sooner() -> None:
    """Characters count too, in what waits now: memory is bounded with pictures."""
    picture = "data:image/png;base64," + "A" * 3_000_000
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": picture}},
    ]
    waiting: SideBySide[Asked] = SideBySide()
    for _ in range(2):
        for number in range(3):
            assert not waiting.is_full
            waiting.add(Asked(number, [{"role": "user", "content": parts}]))
        assert waiting.is_full
        assert numbers(iter(waiting.take())) == [0, 1, 2]


def test_equal_asks_and_empty_ones_are_all_handed_on() -> None:
    """None is lost for being like another, having no content, or odd parts."""
    odd: list[Any] = [None, "", [], ["text"], [{"type": "text", "text": 7}]]
    asks = [
        *(asked(number, "the same") for number in range(5)),
        *(
            Asked(5 + number, [{"role": "user", "content": content}])
            for number, content in enumerate(odd)
        ),
        Asked(10, []),
    ]

    assert sorted(numbers(side_by_side(asks))) == list(range(11))
    assert numbers(side_by_side([])) == []
    assert numbers(side_by_side(asks[:1])) == [0]


def test_a_beginning_is_looked_at_so_far_only() -> None:
    """A book of a megabyte costs no more than 16,384 characters of it."""
    messages = [{"role": "user", "content": "b" * 1_000_000}] * 2

    assert len(beginning(messages)) == 16_384
    assert beginning([{"content": "hello"}]) == "\n\nhello"
