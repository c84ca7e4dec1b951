"""What the tests of measuring share."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No test leaves a thread of a load behind."""
    yield
    left = [one for one in threading.enumerate() if one.name == "llamatelemetry-bench"]
    for thread in left:
        thread.join(5)
    assert not any(thread.is_alive() for thread in left)
