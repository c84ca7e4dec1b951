"""What the tests of the client share: a stand-in server that misbehaves on demand."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamatelemetry.api.client import LlamaCppClient

PROGRAM = Path(__file__).parents[1] / "tools" / "stand_in_api.py"


class StandIn:
    """A running stand-in: addresses that behave as asked, and what came to them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._tags = itertools.count()

    def url(self, **options: Any) -> str:
        """Return a base URL, used by nobody else, that behaves as the options say."""
        options["tag"] = next(self._tags)
        written = ",".join(f"{key}={value}" for key, value in options.items())
        return f"http://127.0.0.1:{self.port}/{written}"

    def client(self, **options: Any) -> LlamaCppClient:
        """Return a client of such an address."""
        return LlamaCppClient(self.url(**options))

    def seen(self, url: str) -> list[dict[str, Any]]:
        """Return the requests that came to an address."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/seen") as reply:
            seen: list[dict[str, Any]] = json.load(reply)
        prefix = "/" + url.split("/", 3)[3].strip("/") + "/"
        return [entry for entry in seen if entry["target"].startswith(prefix)]


@pytest.fixture(scope="session")
def stand_in() -> Iterator[StandIn]:
    """The stand-in server, as a program of its own."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield StandIn(int(process.stdout.readline()))
        process.stdin.close()
        process.wait(5)
