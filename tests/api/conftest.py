"""A stand-in server that misbehaves on demand, for the tests of the client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from client_tools import STAND_IN, StandIn


@pytest.fixture(scope="session")
def stand_in() -> Iterator[StandIn]:
    """The stand-in server, as a program of its own."""
    process = subprocess.Popen(
        [sys.executable, str(STAND_IN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield StandIn(int(process.stdout.readline()))
        process.stdin.close()
        process.wait(5)
