"""Chunks in, one whole response out: what a stream has said so far. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from llamatelemetry.api.responses import (
    ChatCompletionChunk,
    ChatCompletionResponse,
    Choice,
    ChunkChoice,
    CompletionChoice,
    CompletionResponse,
    Message,
    PromptProgress,
    Timings,
    Usage,
)

__all__ = ["Assembly", "ChatAssembly", "CompletionAssembly"]

ChunkT = TypeVar("ChunkT", bound=ChatCompletionChunk | CompletionResponse)
ResponseT = TypeVar("ResponseT", bound=ChatCompletionResponse | CompletionResponse)


@dataclass(slots=True)
class _Parts:
    """One answer as far as it came."""

    index: int
    role: str = "assistant"
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    message_extra: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


class Assembly(ABC, Generic[ChunkT, ResponseT]):
    """Takes the chunks of one stream.

    Attributes:
        usage: The server's count, once it has come.
        timings: The server's measurements, once they have come.
        progress: The last word on how far the prompt is read.
        tokens_seen: Chunks that brought text or thinking: about one token each.
    """

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.timings: Timings | None = None
        self.progress: PromptProgress | None = None
        self.tokens_seen = 0
        self._first: ChunkT | None = None
        self._extra: dict[str, Any] = {}
        self._answers: dict[int, _Parts] = {}

    @property
    def text(self) -> str:
        """The first answer's text so far."""
        parts = self._answers.get(0)
        return "".join(parts.text) if parts else ""

    @property
    def model(self) -> str | None:
        """The model's alias, once a chunk has come."""
        return self._first.model if self._first else None

    @property
    def finish_reason(self) -> str | None:
        """Why the first answer ended, once it has."""
        parts = self._answers.get(0)
        return parts.finish_reason if parts else None

    def add(self, chunk: ChunkT) -> None:
        """Take a chunk."""
        if self._first is None:
            self._first = chunk
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.timings is not None:
            self.timings = chunk.timings
        if chunk.prompt_progress is not None:
            self.progress = chunk.prompt_progress
        if chunk.extra:
            self._extra.update(chunk.extra)
        self._add_choices(chunk)

    @abstractmethod
    def _add_choices(self, chunk: ChunkT) -> None:
        """Take what a chunk adds to the answers."""

    @abstractmethod
    def response(self, unfinished: str) -> ResponseT:
        """Return what has come, as a whole response.

        Args:
            unfinished: The finish reason of answers that have none.
        """

    def _parts_of(self, index: int) -> _Parts:
        parts = self._answers.get(index)
        if parts is None:
            parts = self._answers[index] = _Parts(index)
        return parts

    def _all_parts(self) -> list[_Parts]:
        """Return all answers in order; an empty one if nothing has come."""
        return sorted(self._answers.values(), key=lambda parts: parts.index) or [
            _Parts(0)
        ]

    def _final_usage(self) -> Usage:
        if self.usage is not None:
            return self.usage
        prompt_tokens = self.progress.total if self.progress else 0
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=self.tokens_seen,
            total_tokens=prompt_tokens + self.tokens_seen,
            estimated=True,
        )

    def _final_head(self) -> dict[str, Any]:
        """Return the fields that every whole response has."""
        first = self._first
        return {
            "id": first.id if first else "",
            "created": first.created if first else 0,
            "model": first.model if first else "",
            "system_fingerprint": first.system_fingerprint if first else None,
            "usage": self._final_usage(),
            "timings": self.timings,
            "extra": self._extra,
        }


class ChatAssembly(Assembly[ChatCompletionChunk, ChatCompletionResponse]):
    """Puts a chat answer together."""

    def _add_choices(self, chunk: ChatCompletionChunk) -> None:
        for choice in chunk.choices:
            parts = self._answers.get(choice.index) or self._parts_of(choice.index)
            delta = choice.delta
            if delta.content:
                parts.text.append(delta.content)
                self.tokens_seen += 1
            elif delta.reasoning_content:
                parts.reasoning.append(delta.reasoning_content)
                self.tokens_seen += 1
            else:
                self._add_rest(parts, choice)
            if choice.logprobs is not None:
                parts.logprobs = _joined_logprobs(parts.logprobs, choice.logprobs)
            if choice.finish_reason is not None:
                parts.finish_reason = choice.finish_reason
            if choice.extra or delta.extra:
                parts.extra.update(choice.extra)
                parts.message_extra.update(delta.extra)

    def _add_rest(self, parts: _Parts, choice: ChunkChoice) -> None:
        """Take what comes once or seldom: the role, tool calls."""
        delta = choice.delta
        if delta.role:
            parts.role = delta.role
        if delta.tool_calls:
            self.tokens_seen += 1
            for call in delta.tool_calls:
                index = call.get("index", len(parts.tool_calls))
                _extend_tool_call(parts.tool_calls.setdefault(index, {}), call)

    def response(self, unfinished: str) -> ChatCompletionResponse:
        return ChatCompletionResponse(
            choices=[
                Choice(
                    index=parts.index,
                    message=_message(parts),
                    finish_reason=parts.finish_reason or unfinished,
                    logprobs=parts.logprobs,
                    extra=parts.extra,
                )
                for parts in self._all_parts()
            ],
            **self._final_head(),
        )


class CompletionAssembly(Assembly[CompletionResponse, CompletionResponse]):
    """Puts a text completion together."""

    def _add_choices(self, chunk: CompletionResponse) -> None:
        for choice in chunk.choices:
            parts = self._parts_of(choice.index)
            if choice.text:
                parts.text.append(choice.text)
                self.tokens_seen += 1
            if choice.logprobs is not None:
                parts.logprobs = _joined_logprobs(parts.logprobs, choice.logprobs)
            if choice.finish_reason is not None:
                parts.finish_reason = choice.finish_reason
            parts.extra.update(choice.extra)

    def response(self, unfinished: str) -> CompletionResponse:
        return CompletionResponse(
            choices=[
                CompletionChoice(
                    index=parts.index,
                    text="".join(parts.text),
                    finish_reason=parts.finish_reason or unfinished,
                    logprobs=parts.logprobs,
                    extra=parts.extra,
                )
                for parts in self._all_parts()
            ],
            prompt_progress=self.progress,
            **self._final_head(),
        )


def _message(parts: _Parts) -> Message:
    calls = [parts.tool_calls[index] for index in sorted(parts.tool_calls)]
    return Message(
        role=parts.role,
        content="".join(parts.text) if parts.text or not calls else None,
        reasoning_content="".join(parts.reasoning) if parts.reasoning else None,
        tool_calls=calls or None,
        extra=parts.message_extra,
    )


def _extend_tool_call(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add a piece of a tool call: its arguments come bit by bit, the rest once."""
    for key, value in piece.items():
        if key == "function":
            function = whole.setdefault("function", {"name": "", "arguments": ""})
            for name, text in value.items():
                if name == "arguments":
                    function["arguments"] += text or ""
                elif text is not None:
                    function[name] = text
        elif key != "index" and value is not None:
            whole[key] = value


def _joined_logprobs(
    whole: dict[str, Any] | None, piece: dict[str, Any]
) -> dict[str, Any]:
    """Return log probabilities with those of further tokens behind them."""
    if whole is None:
        return {**piece, "content": list(piece.get("content") or [])}
    whole["content"].extend(piece.get("content") or [])
    return whole
