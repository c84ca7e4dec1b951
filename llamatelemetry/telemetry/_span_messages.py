"""Messages as the GenAI conventions write them: a role and typed parts. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Part = dict[str, Any]

_FINISH_REASONS = {"tool_calls": "tool_call"}
"""The conventions' word where it is not the server's."""


def encodable(value: Any) -> Any:
    """Return a value whose texts can be written: half of a character becomes "?".

    Args:
        value: A text, or a list of them; anything else stays as it is.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list | tuple):
        return [encodable(each) for each in value]
    return value


def input_messages(sent: Mapping[str, Any]) -> str | None:
    """Return a request's chat, or its prompt as a user's message, as JSON.

    Args:
        sent: The request's body.
    """
    if "messages" in sent:
        messages = [_message(message) for message in _mappings(sent["messages"])]
    elif isinstance(sent.get("prompt"), str):
        messages = [{"role": "user", "parts": [_text(sent["prompt"])]}]
    else:
        return None
    return json.dumps(messages, ensure_ascii=False, default=str)


def output_messages(answer: str, finish_reason: str | None) -> str:
    """Return an answer as JSON.

    Args:
        answer: Its text.
        finish_reason: Why it ended, in the server's word.
    """
    reason = finish_reason or "error"
    message = {
        "role": "assistant",
        "parts": [_text(answer)],
        "finish_reason": _FINISH_REASONS.get(reason, reason),
    }
    return json.dumps([message], ensure_ascii=False)


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    """Return the objects of a list; none of what a server would refuse anyway."""
    items = value if isinstance(value, list | tuple) else ()
    return [item for item in items if isinstance(item, Mapping)]


def _text(content: Any) -> Part:
    return {"type": "text", "content": str(content)}


def _message(message: Mapping[str, Any]) -> Part:
    role = str(message.get("role", "user"))
    content = message.get("content")
    if role == "tool":
        answered = {"type": "tool_call_response", "response": content}
        parts = [answered | {"id": message.get("tool_call_id")}]
    else:
        parts = [*_reasoning(message), *_content(content), *_tool_calls(message)]
    return {"role": role, "parts": parts}


def _reasoning(message: Mapping[str, Any]) -> Iterator[Part]:
    thought = message.get("reasoning_content")
    if thought:
        yield {"type": "reasoning", "content": str(thought)}


def _content(content: Any) -> Iterator[Part]:
    if isinstance(content, str):
        yield _text(content)
    yield from (_part(part) for part in _mappings(content))


def _part(part: Mapping[str, Any]) -> Part:
    kind = str(part.get("type"))
    if kind == "text":
        return _text(part.get("text", ""))
    if kind == "image_url":
        return _image(part.get("image_url"))
    # Of any other kind only that it was there: its data may be long.
    return {"type": kind}


def _image(image: Any) -> Part:
    """Return an image's address; of one that was sent along, not its data."""
    url = str(image.get("url", "") if isinstance(image, Mapping) else image)
    if url.startswith("data:"):
        mime_type = url[5:].partition(",")[0].partition(";")[0] or None
        blob = {"type": "blob", "modality": "image", "mime_type": mime_type}
        return blob | {"content": ""}
    return {"type": "uri", "modality": "image", "uri": url}


def _tool_calls(message: Mapping[str, Any]) -> Iterator[Part]:
    for call in _mappings(message.get("tool_calls")):
        (function,) = _mappings([call.get("function")]) or [{}]
        yield {
            "type": "tool_call",
            "id": call.get("id"),
            "name": str(function.get("name", "")),
            "arguments": function.get("arguments"),
        }
