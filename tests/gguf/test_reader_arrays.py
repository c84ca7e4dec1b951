"""Arrays of a header: lazy, sliceable, and equal to lists."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from gguf_writer import ARRAY, BOOL, FLOAT32, INT32, STRING, Array, File

from llamatelemetry._units import MIB
from llamatelemetry.gguf.reader import GGUFArray, read_header

WORDS = [f"token {number} {'é' * (number % 7)}" for number in range(1000)]
NUMBERS = [number * 7 - 3000 for number in range(1000)]
TRUTHS = [number % 3 == 0 for number in range(1000)]


def arrays(order: str = "<") -> dict[str, GGUFArray]:
    """Return one array of each way of storing."""
    file = File(
        [
            ("words", ARRAY, Array(STRING, WORDS)),
            ("numbers", ARRAY, Array(INT32, NUMBERS)),
            ("truths", ARRAY, Array(BOOL, TRUTHS)),
        ],
        order=order,
    )
    return dict(read_header(file.build()).metadata)


LISTS = {"words": WORDS, "numbers": NUMBERS, "truths": TRUTHS}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", LISTS)
def test_indexing_is_that_of_a_list(name: str, order: str) -> None:
    """Every index and slice gives what the list gives, from either end."""
    array, wanted = arrays(order)[name], LISTS[name]
    generator = random.Random(0)

    assert len(array) == len(wanted)
    assert array.tolist() == wanted
    assert list(array) == wanted
    assert list(reversed(array)) == wanted[::-1]
    for index in (0, 1, 500, 999, -1, -1000):
        assert array[index] == wanted[index]
    for _ in range(200):
        limits = [generator.choice([None, generator.randint(-1200, 1200)])] * 2
        limits[1] = generator.choice([None, generator.randint(-1200, 1200)])
        step = generator.choice([None, 1, 2, 7, -1, -3, 999, -1500])
        part = slice(*limits, step)
        assert array[part] == wanted[part], part


@pytest.mark.parametrize("index", [1000, -1001, 2**70])
def test_an_index_outside_is_an_index_error(index: int) -> None:
    """As a list says it, with the length."""
    with pytest.raises(IndexError, match="1,000 elements"):
        arrays()["words"][index]


def test_arrays_behave_as_sequences() -> None:
    """They can be searched, counted and compared with any sequence."""
    words, truths = arrays()["words"], arrays()["truths"]

    assert WORDS[7] in words
    assert "no such" not in words
    assert words.index(WORDS[7]) == 7
    assert truths.count(True) == TRUTHS.count(True)
    assert words == tuple(WORDS)
    assert words == arrays(">")["words"]
    assert words != WORDS[:-1]
    assert words != "text"
    assert words != 5
    with pytest.raises(TypeError, match="unhashable"):
        hash(words)


def test_truth_values_are_bools() -> None:
    """A bool array holds True and False and no numbers."""
    assert {type(value) for value in arrays()["truths"]} == {bool}
    assert type(arrays()["truths"][3]) is bool


def test_arrays_are_shown_in_a_line() -> None:
    """The repr shows the length, the type and the first elements."""
    file = File([("few", ARRAY, Array(FLOAT32, [0.5]))])

    assert repr(arrays()["numbers"]) == (
        "<GGUFArray: 1,000 of int32 [-3000, -2993, -2986, ...]>"
    )
    assert repr(read_header(file.build()).metadata["few"]) == (
        "<GGUFArray: 1 of float32 [0.5]>"
    )


def test_long_strings_are_shown_by_their_beginning() -> None:
    """No more of a string is decoded than is shown, and no letter is cut in two."""
    texts = ["🦙" * 200, "🦙" * 201, b"\xff" * MIB, b"\xf0\x9f" * MIB, "x"]
    file = File([("words", ARRAY, Array(STRING, texts))])
    words = read_header(file.build()).metadata["words"]

    assert words.brief(0) == "🦙" * 200
    assert words.brief(1) == "🦙" * 200 + "…"
    assert words.brief(2) == words.brief(3) == "\ufffd" * 200 + "…"
    assert words.brief(4) == "x"
    assert len(repr(words)) < 700
    assert arrays()["numbers"].brief(1) == arrays()["numbers"][1]


def test_arrays_outlive_their_file(tmp_path: Path) -> None:
    """What was counted can be decoded when the file has changed or gone."""
    path = File([("words", ARRAY, Array(STRING, WORDS))]).write(tmp_path / "m.gguf")
    words = read_header(path).metadata["words"]
    path.write_bytes(b"")
    path.unlink()

    assert words == WORDS
