"""Every public name says what it is, takes, holds and raises, and has an example.

All examples are run: on a real server of the demo model, with two T4s that a library
stands in for, in a folder in which that model lies as ``model.gguf``.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstring_examples
import pytest
from docstring_examples import Public, public_methods, public_names
from nvml_tools import StandInDriver, t4

from llamatelemetry import LlamaCppClient, ServerConfig, ServerManager, detect_gpus
from llamatelemetry.exceptions import SetupWarning

NAMES = public_names()
METHODS = public_methods()
BOTH = [*NAMES, *METHODS]
NEED_EXAMPLES = [
    *NAMES,
    *(
        method
        for method in METHODS
        if method.owner is not None
        and method.owner.__name__ in docstring_examples.WITH_EXAMPLES_FOR_METHODS
        and not isinstance(method.value, property)
    ),
]
HAVE_EXAMPLES = [public for public in BOTH if ">>>" in public.docstring]

# Names that say no unit themselves, and the words of which the description has one.
UNITS = {
    r"(.*_)?(timeout|interval)": r"\b([Ss]econds|s)\b",
    r"needed|free": r"\b([Bb]ytes|[KMG]iB)\b",
    r"(.*_)?context_size|(largest_)?context|max_tokens": r"\b([Tt]okens|context)\b",
}

Namespace = dict[str, Any]


def each(publics: list[Public]) -> pytest.MarkDecorator:
    """Have a test look at each of these names."""
    return pytest.mark.parametrize("public", publics, ids=lambda item: item.short)


def by_home(publics: list[Public]) -> pytest.MarkDecorator:
    """Have a test look at these names, those of one module together."""
    homes: dict[str, list[Public]] = {}
    for public in publics:
        homes.setdefault(public.home, []).append(public)
    return pytest.mark.parametrize("publics", homes.values(), ids=homes)


@by_home(BOTH)
def test_each_has_a_summary(publics: list[Public]) -> None:
    """Every docstring begins with a sentence of one line."""
    faults = [one.short for one in publics if not one.summary.endswith((".", "?", "!"))]

    assert not faults


@by_home(BOTH)
def test_every_parameter_is_described(publics: list[Public]) -> None:
    """Args names what a caller can give; for a constructor, Attributes may as well."""
    faults = [
        f"{one.short}({name})"
        for one in publics
        for name in one.parameters
        if name not in one.described
    ]

    assert not faults


@by_home(NAMES)
def test_every_field_is_described(publics: list[Public]) -> None:
    """Attributes, or Args, names each field of a dataclass, tuple or dictionary."""
    faults = [
        f"{one.short}.{name}"
        for one in publics
        for name in one.fields
        if name not in one.described
    ]

    assert not faults


@by_home(BOTH)
def test_nothing_is_described_that_is_not_there(publics: list[Public]) -> None:
    """No docstring names a parameter or attribute of the past."""
    faults = [
        f"{one.short}: {name}"
        for one in publics
        for name in one.described.keys() - one.known
    ]

    assert not faults


@by_home(BOTH)
def test_its_errors_are_named(publics: list[Public]) -> None:
    """Each error of ours that one raises itself stands in its Raises."""
    faults = [
        f"{one.short}: {name}"
        for one in publics
        for name in one.raised
        if not re.search(rf"\b{name}\b", one.sections.get("Raises", ""))
    ]

    assert not faults


@by_home(BOTH)
def test_quantities_have_units(publics: list[Public]) -> None:
    """A number of seconds, bytes or tokens is described with that word."""
    faults = [
        f"{one.short}: {name}: {text}"
        for one in publics
        for name, text in one.described.items()
        for names, unit in UNITS.items()
        if re.fullmatch(names, name) and not re.search(unit, text)
    ]

    assert not faults


@by_home(NEED_EXAMPLES)
def test_each_has_an_example(publics: list[Public]) -> None:
    """Below Example or Examples stands a line that is run, and none that is not."""
    faults = [one.short for one in publics if not one.examples or one.skips]

    assert not faults


@each(HAVE_EXAMPLES)
def test_its_examples_run(public: Public, supplied: Namespace) -> None:
    """They print what the docstring says, leave no process, and the server running."""
    before = child_processes()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*stands in for", SetupWarning)
        wrong = docstring_examples.run(public, supplied)

    assert not wrong, wrong
    assert supplied["server"].is_running(), "it has stopped the server of all examples"
    assert not left_behind(before), "it has left a process behind"


def test_a_wrong_example_is_noticed() -> None:
    """The harness itself can fail: on other output, and on an error."""

    def documented() -> None:
        """Do nothing.

        Example:
            >>> 1 + 1
            3
            >>> nothing_of_this_name
        """

    wrong = docstring_examples.run(Public("documented", documented), {})

    assert "Expected:\n    3" in wrong
    assert "NameError" in wrong


@pytest.fixture(scope="session")
def example_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerManager]:
    """A server of the demo model with all that examples ask of one."""
    folder = tmp_path_factory.mktemp("examples")
    model = folder / "model.gguf"
    shutil.copy(docstring_examples.DEMO_MODEL, model)
    config = ServerConfig(
        model,
        port=0,
        context_size=512,  # which the slots share, for there are embeddings
        parallel=2,
        embeddings=True,
        pooling="mean",
        threads=1,
        slot_save_path=folder,
    )
    with ServerManager(config, engine="embedded", timeout=60) as server:
        yield server


@pytest.fixture
def supplied(
    example_server: ServerManager,
    driver: StandInDriver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Namespace]:
    """What an example may use without making it: what a reader would have by then."""
    driver.describe(t4(0), t4(1))
    folder = tmp_path / "working"
    folder.mkdir()
    shutil.copy(docstring_examples.DEMO_MODEL, folder / "model.gguf")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLAMATELEMETRY_DEMO", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    if not example_server.is_running():  # an example stopped it, and has failed
        example_server.restart()
    url = example_server.get_url()
    with LlamaCppClient(url) as client:
        yield {
            "client": client,
            "gpus": detect_gpus(),
            "model": "model.gguf",
            "server": example_server,
            "url": url,
        }


def child_processes() -> set[int]:
    """Return the ids of this process's children."""
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended
            found.update(map(int, path.read_text().split()))
    return found


def left_behind(before: set[int]) -> set[int]:
    """Return the children that are there still, after some time to end."""
    deadline = time.monotonic() + 60
    while (left := child_processes() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
