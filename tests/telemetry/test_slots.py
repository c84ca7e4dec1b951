"""Which slot answered: the server's log, joined with what came with answers."""

from __future__ import annotations

from llamatelemetry.telemetry._slots import Measured, SlotFinder

NEW = """\
0.00.027.083 I slot print_timing: id  1 | task 0 | prompt eval time =       2.25 ms /    14 tokens (    0.16 ms per token,  6219.46 tokens per second)
0.00.027.194 I slot print_timing: id  1 | task 0 |        eval time =       1.91 ms /     5 tokens (    0.48 ms per token,  2098.64 tokens per second)
0.00.027.210 I slot print_timing: id  1 | task 0 |       total time =       4.16 ms /    19 tokens
0.00.027.250 I slot      release: id  1 | task 0 | stop processing: n_tokens = 18, truncated = 0
""".splitlines()  # noqa: E501 - as the server prints them
OLD = """\
slot print_timing: id 12 | task 3 |\x20
prompt eval time =     102.25 ms /    14 tokens (    7.30 ms per token,   136.92 tokens per second)
       eval time =    1801.91 ms /     5 runs   (  360.38 ms per token,     2.77 tokens per second)
      total time =    1904.16 ms /    19 tokens
""".splitlines()  # noqa: E501 - as the server prints them


def measured(prompt_ms: float = 2.2512, ms: float = 1.9068) -> Measured:
    """Return what comes with the answer of which ``NEW`` tells."""
    return Measured(14, prompt_ms, 5, ms)


def test_an_answer_finds_its_line() -> None:
    """In either order, and each line is used once."""
    finder = SlotFinder()
    finder.expect(40, measured())
    assert finder.found() == {}
    assert finder.waits
    finder.read(NEW)
    assert finder.found() == {40: 1}
    assert not finder.waits
    finder.expect(41, measured())
    assert finder.found() == {}
    finder.read(NEW)
    assert finder.found() == {41: 1}


def test_older_builds_print_it_on_lines_of_their_own() -> None:
    """The slot is on the line before."""
    finder = SlotFinder()
    finder.read(OLD)
    finder.expect(0, measured(102.2543, 1801.9061))
    assert finder.found() == {0: 12}


def test_two_slots_are_told_apart() -> None:
    """By their times, which nearly never are the same to a hundredth."""
    finder = SlotFinder()
    other = [line.replace("id  1", "id  0").replace("1.91", "2.44") for line in NEW]
    finder.read([*NEW, *other])
    finder.expect(0, measured(ms=2.4401))
    finder.expect(1, measured())
    assert finder.found() == {0: 0, 1: 1}


def test_slots_that_told_the_same_are_not_guessed_at() -> None:
    """Neither of two equal answers has one; the next answer has its own again."""
    finder = SlotFinder()
    finder.read([*NEW, *(line.replace("id  1", "id  0") for line in NEW)])
    finder.expect(0, measured())
    finder.expect(1, measured())
    assert finder.found() == {}
    assert not finder.waits
    finder.read(line.replace("1.91", "2.44") for line in NEW)
    finder.expect(2, measured(ms=2.4401))
    assert finder.found() == {2: 1}


def test_other_figures_are_no_answer_of_ours() -> None:
    """Another count, or times that differ by more than rounding, do not fit."""
    finder = SlotFinder()
    finder.read(NEW)
    for number, other in enumerate(
        (
            Measured(13, 2.25, 5, 1.91),
            Measured(14, 2.25, 6, 1.91),
            measured(prompt_ms=2.28),
            measured(ms=1.88),
        )
    ):
        finder.expect(number, other)
    assert finder.found() == {}


def test_lines_that_tell_nothing_are_passed_over() -> None:
    """Halves of the figures, slots without a number, and figures without a slot."""
    finder = SlotFinder()
    finder.read([OLD[1], OLD[2]])  # whose are these?
    finder.read(["slot print_timing: nobody | eval time = 1 ms / 5 tokens"])
    finder.read([NEW[0].replace("2.25 ms", "soon"), NEW[1]])
    finder.expect(0, measured(102.25, 1801.91))
    finder.expect(1, measured())
    assert finder.found() == {}


def test_what_waits_is_bounded() -> None:
    """A log that never tells, and answers of others, take no more and more room."""
    finder = SlotFinder()
    for number in range(300):
        finder.expect(number, measured())
        finder.read(NEW)
    found = finder.found()
    assert len(found) == 128
    assert set(found) == set(range(172, 300))
