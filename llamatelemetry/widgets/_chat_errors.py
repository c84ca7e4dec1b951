"""What went wrong with an answer, as a sentence that says what to do. Pure."""

from __future__ import annotations

from llamatelemetry.exceptions import (
    AuthenticationError,
    ConnectionFailedError,
    ContextLengthError,
    LLCudaError,
    RequestTimeoutError,
    StreamError,
)

__all__ = ["explained"]


def explained(error: Exception, server: str) -> str:
    """Return what happened and what to do about it.

    Args:
        error: What a request raised.
        server: Who was asked, as the beginning of a sentence: "The server at ...".
    """
    if isinstance(error, ContextLengthError):
        text = _too_long(error)
    elif isinstance(error, AuthenticationError):
        text = (
            f"{server} wants the API key that it was started with: make "
            "the client with LlamaCppClient(url, api_key=...) and a new panel with it"
        )
    elif isinstance(error, ConnectionFailedError):
        text = (
            f"{server} does not answer: it is not running, or the "
            "address is another one. Start it, then press Regenerate"
        )
    elif isinstance(error, RequestTimeoutError):
        text = (
            f"{error}. It may be busy with others: press Regenerate to ask again, or "
            "make the panel with client.with_options(timeout=...)"
        )
    elif isinstance(error, StreamError):
        text = (
            f"The answer broke off: {error.message}. What had come is kept; press "
            "Regenerate to ask again"
        )
    elif isinstance(error, LLCudaError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return _sentence(text)


def _too_long(error: ContextLengthError) -> str:
    tokens, size = error.prompt_tokens, error.context_size
    if error.status is None or tokens is None or size is None:
        return str(error)
    return (
        f"The conversation has {tokens:,} tokens and the context holds {size:,}: "
        f"{tokens - size + 1:,} too many. Drop the oldest questions, shorten the "
        "message, or start the server with a larger context"
    )


def _sentence(text: str) -> str:
    text = " ".join(text.split())  # a template's error draws lines and arrows
    end = "" if text.endswith((".", "!", "?")) else "."
    return text[:1].upper() + text[1:] + end
