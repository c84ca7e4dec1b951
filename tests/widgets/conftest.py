"""A page that records what widgets send, and forgets them after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from panel_tools import Recorder, ipywidgets, record_comms


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """What the widgets of this test send; all of them are closed afterwards."""
    yield record_comms(monkeypatch)
    ipywidgets().Widget.close_all()
