"""The error tree is the one that is drawn."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable

import pytest

from llamatelemetry import exceptions
from llamatelemetry.exceptions import LLCudaError

CLASSES = dict(inspect.getmembers(exceptions, inspect.isclass))
ERRORS = {name: kind for name, kind in CLASSES.items() if issubclass(kind, LLCudaError)}
# The builtin errors some can be caught as, by the architecture.
ALSO = {
    "ConfigurationError": ValueError,
    "GGUFError": ValueError,
    "ServerTimeoutError": TimeoutError,
    "ConnectionFailedError": ConnectionError,
    "RequestTimeoutError": TimeoutError,
    "DownloadError": OSError,
}


def drawn_parents() -> dict[str, str]:
    """Read the tree in the module's docstring: error name to parent's name."""
    parents: dict[str, str] = {}
    path: list[str] = []
    lines = (inspect.getdoc(exceptions) or "").splitlines()
    base = next(line for line in lines if line.strip() == "LLCudaError").index("LL")
    for line in lines:
        match = re.fullmatch(r"[ │├└─]*([A-Z]\w+)(\(\w+\))?", line)
        if match and match[1] in CLASSES:
            depth = (match.start(1) - base) // 3
            path[depth:] = [match[1]]
            if depth:
                parents[match[1]] = path[depth - 1]
    return parents


def test_the_tree_is_as_drawn() -> None:
    """Every error is in the docstring's tree under its real parent."""
    drawn = drawn_parents()

    assert set(drawn) == set(ERRORS) - {"LLCudaError"}
    for name, parent in drawn.items():
        assert parent in [base.__name__ for base in ERRORS[name].__bases__], name


def test_every_error_is_exported_and_documented() -> None:
    """__all__ lists the errors and the one warning; each has a docstring of its own."""
    assert sorted(exceptions.__all__) == sorted([*ERRORS, "SetupWarning"])
    assert all(kind.__doc__ for kind in ERRORS.values())
    assert issubclass(exceptions.SetupWarning, UserWarning)
    assert exceptions.SetupWarning.__doc__


@pytest.mark.parametrize(("name", "builtin"), ALSO.items())
def test_some_can_be_caught_as_builtin_errors(name: str, builtin: type) -> None:
    """A user who knows only Python's own errors catches these too."""
    assert issubclass(ERRORS[name], builtin)


def make(kind: type[LLCudaError]) -> LLCudaError:
    """Make an error with a value for each of its names."""
    more: dict[str, object] = {}
    if inspect.isfunction(kind.__init__):
        parameters = inspect.signature(kind.__init__).parameters.values()
        more = {
            one.name: one.name for one in parameters if one.kind is one.KEYWORD_ONLY
        }
    return kind("what, where, what to do", **more)


@pytest.mark.parametrize("kind", ERRORS.values())
@pytest.mark.parametrize(
    "again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))]
)
def test_every_error_survives_copy_and_pickle(
    kind: type[LLCudaError], again: Callable[[LLCudaError], LLCudaError]
) -> None:
    """Errors cross to worker processes and back with all their evidence."""
    error = make(kind)
    other = again(error)

    assert type(other) is kind
    assert str(other) == str(error)
    assert vars(other) == vars(error)
