"""What the tests of the client are written with."""

from __future__ import annotations

import dataclasses
import itertools
import json
import urllib.request
from pathlib import Path
from typing import Any

from llamatelemetry.api.client import (
    ChatCompletionResponse,
    Choice,
    LlamaCppClient,
    Message,
    Timings,
    Usage,
)

STAND_IN = Path(__file__).with_name("stand_in_api.py")
MESSAGES = [{"role": "user", "content": "Hello!"}]


class StandIn:
    """A running stand-in: addresses that behave as asked, and what came to them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._tags = itertools.count()
        # urlopen would remember the proxies of the first test that calls it.
        without_proxies = urllib.request.ProxyHandler({})
        self._opener = urllib.request.build_opener(without_proxies)

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
        prefix = "/" + url.split("/", 3)[3].strip("/") + "/"
        return self._asked_for(f"/seen?{prefix}")

    def asked(self, url: str) -> dict[str, Any]:
        """Return the last chat that was asked for at an address.

        A panel asks other things beside it, at any time.
        """
        return [one for one in self.seen(url) if "/chat/" in one["target"]][-1]

    def all_seen(self) -> list[dict[str, Any]]:
        """Return all requests that came."""
        return self._asked_for("/seen")

    def _asked_for(self, path: str) -> list[dict[str, Any]]:
        with self._opener.open(f"http://127.0.0.1:{self.port}{path}") as reply:
            seen: list[dict[str, Any]] = json.load(reply)
        return seen


def answer(**changes: object) -> ChatCompletionResponse:
    """Return a response whose only choice has these fields changed."""
    choice = Choice(
        index=0, message=Message(role="assistant", content="Hi."), finish_reason="stop"
    )
    return ChatCompletionResponse(
        id="1",
        created=0,
        model="m",
        choices=[dataclasses.replace(choice, **changes)],  # type: ignore[arg-type]
        usage=Usage(prompt_tokens=12, completion_tokens=34, total_tokens=46),
        timings=Timings(predicted_per_second=57.125),
    )
