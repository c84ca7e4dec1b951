"""A conversation in a terminal: streams answers, measures them, keeps the history."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from typing import Any

from llamatelemetry.api.client import LlamaCppClient

# Model output is hostile text: an escape sequence can rewrite what a terminal shows.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return text that cannot steer a terminal: control characters become visible."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one answer took.

    Attributes:
        text: The answer.
        first_token_ms: Milliseconds from the question to the first text, or None.
        tokens: Tokens generated.
        tokens_per_second: As the server measured it, or None.
        finish_reason: Why it ended; "cancelled" after Ctrl-C.
    """

    text: str
    first_token_ms: float | None
    tokens: int
    tokens_per_second: float | None
    finish_reason: str

    def __str__(self) -> str:
        parts = [f"{self.tokens} tokens"]
        if self.first_token_ms is not None:
            parts.insert(0, f"first token after {self.first_token_ms:.0f} ms")
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.finish_reason != "stop":
            parts.append(self.finish_reason)
        return ", ".join(parts)


class Conversation:
    """Messages so far with one server.

    Args:
        client: The client to talk through.
        system: A system message that stays when the conversation is cleared.
    """

    def __init__(self, client: LlamaCppClient, system: str | None = None) -> None:
        self._client = client
        self._first: list[dict[str, Any]] = (
            [{"role": "system", "content": system}] if system else []
        )
        self._messages = list(self._first)

    def clear(self) -> None:
        """Forget everything but the system message."""
        self._messages = list(self._first)

    def ask(self, question: str, *, max_tokens: int = 1024, **more: Any) -> Answer:
        """Print the answer as it comes; Ctrl-C stops it and keeps what came.

        Raises:
            ClientError: The request failed; the question is not kept.
        """
        asked = [*self._messages, {"role": "user", "content": question}]
        began = time.monotonic()
        first: float | None = None
        with self._client.chat_completion_stream(
            asked, max_tokens=max_tokens, **more
        ) as stream:
            try:
                for chunk in stream:
                    for choice in chunk.choices:
                        text = choice.delta.content or choice.delta.reasoning_content
                        if text:
                            first = first or (time.monotonic() - began) * 1000
                            sys.stdout.write(printable(text))
                            sys.stdout.flush()
            except KeyboardInterrupt:
                stream.cancel()
            response = stream.result()
        print()
        message = response.choices[0].message
        self._messages = [
            *asked,
            {"role": "assistant", "content": message.content or ""},
        ]
        timings = response.timings
        return Answer(
            text=message.content or "",
            first_token_ms=first,
            tokens=response.usage.completion_tokens,
            tokens_per_second=timings.predicted_per_second if timings else None,
            finish_reason=response.choices[0].finish_reason,
        )
