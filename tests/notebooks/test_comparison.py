"""What nbval compares: facts are, what differs from run to run is not."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import nbval.plugin
import pytest
from mutate_notebooks import KINDS, count_numbers, mutants
from nbformat import NotebookNode
from nbformat.v4 import new_output
from notebook_tools import SANITIZER, sanitize_rules


def prints(text: str) -> NotebookNode:
    """Return what a cell has printed."""
    return new_output("stream", name="stdout", text=text)


SKIPPED = ("metadata", "output_type", "name", "execution_count", "image/png")
SAME = {
    "loaded in 1.25 s": "loaded in 0.9 s",
    "first token after 12 ms, 45 tokens": "first token after 9 ms, 45 tokens",
    "took 3 seconds": "took 14 seconds",
    "2,345 tokens/s": "71.5 tokens/s",
    "70.97 rows/s, 30 rows": "8.1 rows/s, 30 rows",
    "ready at http://127.0.0.1:28877/v1": "ready at http://127.0.0.1:9301/v1",
    "process 1234": "process 99",
    "pid=77": "pid=1999999",
    "<X at 0x7f00aabbccdd>": "<X at 0x7fddccbbaa00>",
    "id chatcmpl-0aB1cD2eF3gH": "id chatcmpl-ZZ99yy88XX77",
    "on 2026-11-27 10:20:30": "on 2027-01-02 11:12:13",
    "0.00.024.764 I srv": "0.01.003.002 I srv",
    "/tmp/a/model.gguf": "/home/runner/x/model.gguf",
    "<td>/check/a/model.gguf</td>": "<td>/mnt/x-1/model.gguf</td>",
    "31.2 GiB of RAM": "7.6 GiB of RAM",
}
DIFFERENT = {
    "42 tokens": "43 tokens",
    "30 rows": "31 rows",
    "9.0 GiB": "9.1 GiB",
    "14.7 of 15.0 GiB free": "14.6 of 15.0 GiB free",
    "fits: True": "fits: False",
    "40 + output": "41 + output",
    "<td>4,096</td>": "<td>8,192</td>",
    "Usage(prompt_tokens=16)": "Usage(prompt_tokens=17)",
    "0.731": "0.732",
    "Q4_K_M": "Q5_K_M",
    "/tmp/a/model.gguf": "/tmp/a/other.gguf",
    "/kaggle/working/a.gguf": "/kaggle/input/a.gguf",
    "GET /v1/models": "GET /v1/slots",
    "127.0.0.1:80 refused": "127.0.0.2:80 refused",
    "38 °C": "39 °C",
    "power 70 W": "power 71 W",
    "4.85 bits per weight": "4.84 bits per weight",
    "layers 10, 20": "layers 10, 21",
    "GPU 0": "GPU 1",
    "first token after 12 ms": "first token after 12 tokens",
}


def cell_of_nbval(rules: list[tuple[str, str]]) -> Any:
    """Return what nbval compares outputs with, for these rules of a sanitizer."""
    kind = nbval.plugin.IPyNbCell
    cell = kind.__new__(kind)
    cell.parent = SimpleNamespace(sanitize_patterns=dict(rules), skip_compare=SKIPPED)
    cell.colors = nbval.plugin.nocolors
    cell.format_output_compare = lambda *_: None  # only pytest can write that
    return cell


def sanitized(text: str) -> str:
    """Return a text as nbval compares it."""
    return str(cell_of_nbval(sanitize_rules()).sanitize(text))


@pytest.mark.parametrize("text", SAME)
def test_what_differs_from_run_to_run_is_sanitized(text: str) -> None:
    """Times, ports, ids and folders of two runs compare as the same."""
    assert sanitized(text) == sanitized(SAME[text])


@pytest.mark.parametrize("text", DIFFERENT)
def test_what_is_a_fact_is_compared(text: str) -> None:
    """A changed number, name or verdict is not sanitized away."""
    assert sanitized(text) != sanitized(DIFFERENT[text])


def test_each_rule_of_the_sanitizer_says_why() -> None:
    """Above each rule stands a comment, and nbval reads as many rules as there are."""
    sections = SANITIZER.read_text().split("\n\n")
    rules = [section for section in sections if "regex: " in section]
    assert len(sanitize_rules()) == len(rules) == SANITIZER.read_text().count("regex: ")
    assert [rule for rule in rules if not rule.startswith("# ")] == []


SAID = [
    prints("GGUF keeps 42 layers together, loaded in 1.25 s\n"),
    new_output(
        "execute_result",
        {
            "text/plain": "layers 40",
            "text/html": '<td style="margin:.15em">layers</td><td>40</td>',
        },
    ),
]


def missed(rules: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the changes that nbval would not notice with these rules."""
    cell = cell_of_nbval(rules)
    assert cell.compare_outputs(copy.deepcopy(SAID), copy.deepcopy(SAID))
    return [
        (mutant.kind, mutant.change)
        for mutant in mutants(SAID, everything=True)
        if cell.compare_outputs(copy.deepcopy(SAID), mutant.outputs)
    ]


def test_changes_of_every_kind_are_noticed() -> None:
    """Words, numbers, tables, a lost and an added output: the net holds for each."""
    assert {mutant.kind for mutant in mutants(SAID, everything=True)} == set(KINDS)
    assert missed(sanitize_rules()) == []
    assert count_numbers(SAID) == (2, 5)  # 1 and 25, of them and 42, 40, 40


def test_a_sanitizer_that_is_too_wide_is_told() -> None:
    """If numbers were replaced everywhere, the changed ones would be missed."""
    assert missed([*sanitize_rules(), (r"\d+", "N")]) == [
        ("number", "42 -> 43"),
        ("number", "40 -> 41"),
        ("table", "40 -> 41"),
    ]
