"""What a reply that is no success means, as one of this package's errors. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from llamatelemetry.exceptions import (
    AuthenticationError,
    ClientError,
    ContextLengthError,
    NotSupportedError,
)

__all__ = ["error_from_reply", "error_parts", "is_loading"]

_FLAG = re.compile(r"--[a-z][a-z0-9-]*")
_SHOWN_BYTES = 200
# The configuration field behind each flag that the server's messages name.
_FIELDS = {
    "--embeddings": "embeddings=True",
    "--reranking": "rerank=True",
    "--metrics": "metrics=True",
    "--slots": "slots=True",
    "--slot-save-path": "slot_save_path=...",
    "--props": "extra_args=['--props']",
}


def error_parts(data: Any) -> tuple[str, str | None, dict[str, Any]] | None:
    """Return message, type and all keys of an error in JSON; None if it is none."""
    error = data.get("error") if isinstance(data, dict) else None
    if error is None:
        return None
    if not isinstance(error, dict):
        return str(error), None, {}
    return str(error.get("message", error)), error.get("type"), error


def is_loading(status: int, body: bytes) -> bool:
    """Return whether a reply says that the model is still being loaded."""
    return (
        status == HTTPStatus.SERVICE_UNAVAILABLE
        and _parts(status, body)[1] == "unavailable_error"
    )


def error_from_reply(
    status: int, headers: Mapping[str, str], body: bytes, what: str
) -> ClientError:
    """Return the error that a reply stands for.

    Args:
        status: The reply's status, not a success.
        headers: The reply's headers.
        body: Its body, in llama-server's shape or any other.
        what: The request in words, for the message: "POST /v1/embeddings".
    """
    message, kind, details = _parts(status, body)
    text = f"{what}: {message} (HTTP {status})"
    error: ClientError
    if status == HTTPStatus.UNAUTHORIZED:
        error = AuthenticationError(
            f"{text}; the server wants the API key it was started with: "
            "LlamaCppClient(api_key=...)",
            status=status,
            type=kind,
        )
    elif kind == "exceed_context_size_error":
        error = ContextLengthError(
            f"{text}; shorten the prompt, or start the server with a larger "
            "context_size, up to what the model was trained on; slots share it",
            status=status,
            type=kind,
            prompt_tokens=details.get("n_prompt_tokens"),
            context_size=details.get("n_ctx"),
        )
    elif status == HTTPStatus.NOT_IMPLEMENTED and details:
        flag = _FLAG.search(message)
        field = _FIELDS.get(flag.group()) if flag else None
        error = NotSupportedError(
            f"{text}, as in ServerConfig({field})" if field else text,
            status=status,
            type=kind,
            flag=flag.group() if flag else None,
        )
    else:
        text += _advice(status, kind, headers)
        error = ClientError(text, status=status, type=kind)
    error.message = message
    return error


def _advice(status: int, kind: str | None, headers: Mapping[str, str]) -> str:
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return f"; it points to {headers.get('Location')}: use that as base_url"
    if status == HTTPStatus.SERVICE_UNAVAILABLE and kind == "unavailable_error":
        return "; wait until health() says ok"
    return ""


def _parts(status: int, body: bytes) -> tuple[str, str | None, dict[str, Any]]:
    try:
        parts = error_parts(json.loads(body))
    except ValueError:
        parts = None
    if parts is not None:
        return parts
    shown = body[:_SHOWN_BYTES].decode(errors="replace").strip()
    if shown.startswith("<"):
        shown = f"a web page and no llama-server answers here; check the URL: {shown}"
    return shown or _phrase(status), None, {}


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"
