"""Which way of showing panels is chosen where, and what is missing is said."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import ipywidgets  # noqa: F401 -- 8.1.5 asks the real kernel for its version at import
import pytest

from llamatelemetry.exceptions import SetupError
from llamatelemetry.widgets import _toolkit


@pytest.fixture
def in_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let IPython say that a kernel runs this."""
    import IPython

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "threads"),
        ({"COLAB_RELEASE_TAG": "release-colab-1"}, "ticks"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, "threads"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, "text"),
        ({"KAGGLE_IS_COMPETITION_RERUN": "1", "KAGGLE_KERNEL_RUN_TYPE": "x"}, "text"),
    ],
)
def test_the_environment_chooses_the_way(
    in_a_kernel: None,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    mode: str,
) -> None:
    """Threads where they show, ticks on Colab, text where nobody can click."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert _toolkit.choose_mode() == mode
    assert _toolkit.choose_mode("loop") == "loop"


def test_without_ipywidgets_a_panel_is_text(
    in_a_kernel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ipywidgets is missing text is chosen; who insists is told what to do."""
    monkeypatch.setitem(sys.modules, "ipywidgets", None)

    assert _toolkit.choose_mode() == "text"
    with pytest.raises(SetupError, match='pip install "ipywidgets"'):
        _toolkit.widgets()


@pytest.mark.parametrize(
    ("version", "refused"), [("7.0.1", True), ("6.17.1", False), ("7.4.0", False)]
)
def test_ipykernel_7_0_is_refused_with_what_to_do(
    in_a_kernel: None, monkeypatch: pytest.MonkeyPatch, version: str, refused: bool
) -> None:
    """On the one kernel where threads cannot change widgets the remedy is named."""
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace(__version__=version))
    if not refused:
        assert _toolkit.widgets().__name__ == "ipywidgets"
        return
    with pytest.raises(SetupError, match=r"ipykernel>=7\.1"):
        _toolkit.widgets()


def test_the_room_offers_its_panels_and_loads_none(tmp_path: Any) -> None:
    """Importing the widgets' room loads no ipywidgets; its names are all there."""
    program = (
        "import sys, llamatelemetry.widgets as room; print(sorted(room.__all__));"
        "print('ipywidgets' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    names, loaded = done.stdout.splitlines()
    assert names == str(
        ["ChatPanel", "Dashboard", "ServerPanel", "VRAMPanel", "image_part"]
    )
    assert loaded == "False False"


def test_a_name_that_the_room_does_not_have_is_refused() -> None:
    """An unknown panel is an AttributeError that names it; dir() has the others."""
    from llamatelemetry import widgets

    with pytest.raises(AttributeError, match="NoPanel"):
        _ = widgets.NoPanel
    assert dir(widgets) == sorted(widgets.__all__)
