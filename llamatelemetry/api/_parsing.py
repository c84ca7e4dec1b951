"""Decoded JSON in, typed responses out. Pure, and cheap where it runs per chunk."""

from __future__ import annotations

import array
import base64
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from llamatelemetry.api.responses import (
    ChatCompletionChunk,
    ChunkChoice,
    CompletionChoice,
    CompletionResponse,
    Delta,
    Embedding,
    EmbeddingResponse,
    EmbeddingUsage,
    LoraAdapter,
    Model,
    ModelList,
    PromptProgress,
    RerankResponse,
    RerankResult,
    SlotAction,
    Timings,
    TokenizeResponse,
    Usage,
)
from llamatelemetry.exceptions import ClientError

ResponseT = TypeVar("ResponseT")

_CHUNK_KEYS = frozenset(
    (
        *("id", "object", "created", "model", "choices", "usage", "timings"),
        *("prompt_progress", "system_fingerprint"),
    )
)
_PLAIN_CHUNK_KEYS = _CHUNK_KEYS - {"usage", "timings", "prompt_progress"}
_CHOICE_KEYS = frozenset(("index", "delta", "text", "finish_reason", "logprobs"))
_PLAIN_CHOICE_KEYS = frozenset(("index", "delta", "finish_reason"))
_DELTA_KEYS = frozenset(("role", "content", "reasoning_content", "tool_calls"))
_USAGE_KEYS = frozenset(Usage.__slots__) - {"extra", "estimated"}
_TIMING_KEYS = frozenset(Timings.__slots__) - {"extra"}
_MODEL_KEYS = frozenset(Model.__slots__) - {"extra"}
_LIST_KEYS = frozenset(("object", "data", "model", "usage", "results"))
_ADAPTER_KEYS = frozenset(LoraAdapter.__slots__) - {"extra"}


def parse_with(
    parser: Callable[[Any], ResponseT], data: Any, what: str = "reply"
) -> ResponseT:
    """Return what a parser of this module makes of decoded JSON.

    Raises:
        ClientError: The JSON has another shape, so it is not llama-server's.
    """
    try:
        return parser(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ClientError(
            f"the {what} is JSON of another shape than llama-server's "
            f"({type(error).__name__}: {error}): {str(data)[:120]}"
        ) from error


def chat_chunk(data: dict[str, Any]) -> ChatCompletionChunk:
    """Read one chunk of a streamed chat answer."""
    choices = data["choices"]
    if len(choices) == 1 and data.keys() == _PLAIN_CHUNK_KEYS:
        # All chunks but the first and the last ones; the general way below takes
        # twice as long.
        return ChatCompletionChunk(
            id=data["id"],
            object=data["object"],
            created=data["created"],
            model=data["model"],
            choices=[_chunk_choice(choices[0])],
            system_fingerprint=data["system_fingerprint"],
        )
    usage, timings = data.get("usage"), data.get("timings")
    progress = data.get("prompt_progress")
    return ChatCompletionChunk(
        id=data.get("id", ""),
        object=data.get("object", "chat.completion.chunk"),
        created=data.get("created", 0),
        model=data.get("model", ""),
        choices=[_chunk_choice(choice) for choice in choices],
        usage=_usage(usage) if usage else None,
        timings=_timings(timings) if timings else None,
        prompt_progress=_progress(progress) if progress else None,
        system_fingerprint=data.get("system_fingerprint"),
        extra=_others(data, _CHUNK_KEYS),
    )


def _chunk_choice(data: dict[str, Any]) -> ChunkChoice:
    delta = data["delta"]
    if len(delta) == 1 and "content" in delta:
        added = Delta(content=delta["content"])
    else:
        added = Delta(
            role=delta.get("role"),
            content=delta.get("content"),
            reasoning_content=delta.get("reasoning_content"),
            tool_calls=delta.get("tool_calls"),
            extra=_others(delta, _DELTA_KEYS),
        )
    if data.keys() == _PLAIN_CHOICE_KEYS:
        return ChunkChoice(
            index=data["index"], delta=added, finish_reason=data["finish_reason"]
        )
    return ChunkChoice(
        index=data["index"],
        delta=added,
        finish_reason=data.get("finish_reason"),
        logprobs=data.get("logprobs"),
        extra=_others(data, _CHOICE_KEYS),
    )


def completion_chunk(data: dict[str, Any]) -> CompletionResponse:
    """Read one chunk of a streamed text completion."""
    usage, timings = data.get("usage"), data.get("timings")
    progress = data.get("prompt_progress")
    return CompletionResponse(
        id=data.get("id", ""),
        object=data.get("object", "text_completion"),
        created=data.get("created", 0),
        model=data.get("model", ""),
        choices=[
            CompletionChoice(
                index=choice["index"],
                text=choice["text"],
                finish_reason=choice.get("finish_reason"),
                logprobs=choice.get("logprobs"),
                extra=_others(choice, _CHOICE_KEYS),
            )
            for choice in data["choices"]
        ],
        usage=_usage(usage) if usage else None,
        timings=_timings(timings) if timings else None,
        prompt_progress=_progress(progress) if progress else None,
        system_fingerprint=data.get("system_fingerprint"),
        extra=_others(data, _CHUNK_KEYS),
    )


def embedding_response(data: dict[str, Any]) -> EmbeddingResponse:
    """Read the answer of ``/v1/embeddings``; vectors as numbers or as base64."""
    return EmbeddingResponse(
        object=data.get("object", "list"),
        data=[
            Embedding(
                object=item.get("object", "embedding"),
                embedding=_vector(item["embedding"]),
                index=item["index"],
            )
            for item in data["data"]
        ],
        model=data.get("model", ""),
        usage=_embedding_usage(data),
        extra=_others(data, _LIST_KEYS),
    )


def model_list(data: dict[str, Any]) -> ModelList:
    """Read the answer of ``/v1/models``."""
    return ModelList(
        object=data.get("object", "list"),
        data=[
            Model(
                id=item["id"],
                object=item.get("object", "model"),
                created=item.get("created", 0),
                owned_by=item.get("owned_by", ""),
                meta=item.get("meta") or {},
                extra=_others(item, _MODEL_KEYS),
            )
            for item in data["data"]
        ],
    )


def tokenize_response(data: dict[str, Any]) -> TokenizeResponse:
    """Read the answer of ``/tokenize``, with pieces or without."""
    tokens = data["tokens"]
    if not tokens or isinstance(tokens[0], int):
        return TokenizeResponse(tokens=tokens)
    return TokenizeResponse(
        tokens=[token["id"] for token in tokens],
        pieces=[
            piece if isinstance(piece := token["piece"], str) else bytes(piece)
            for token in tokens
        ],
    )


def rerank_response(data: dict[str, Any]) -> RerankResponse:
    """Read the answer of ``/v1/rerank``."""
    return RerankResponse(
        model=data.get("model", ""),
        object=data.get("object", "list"),
        usage=_embedding_usage(data),
        results=[
            RerankResult(index=item["index"], relevance_score=item["relevance_score"])
            for item in data["results"]
        ],
        extra=_others(data, _LIST_KEYS),
    )


def slot_action(data: dict[str, Any]) -> SlotAction:
    """Read the answer of a slot's save, restore or erase."""
    timings = data.get("timings", {})
    if "n_saved" in data:
        return SlotAction(
            id_slot=data["id_slot"],
            action="save",
            tokens=data["n_saved"],
            filename=data["filename"],
            size_bytes=data["n_written"],
            milliseconds=timings.get("save_ms"),
        )
    if "n_restored" in data:
        return SlotAction(
            id_slot=data["id_slot"],
            action="restore",
            tokens=data["n_restored"],
            filename=data["filename"],
            size_bytes=data["n_read"],
            milliseconds=timings.get("restore_ms"),
        )
    return SlotAction(id_slot=data["id_slot"], action="erase", tokens=data["n_erased"])


def lora_adapters(data: list[dict[str, Any]]) -> list[LoraAdapter]:
    """Read the answer of ``/lora-adapters``."""
    return [
        LoraAdapter(
            id=item["id"],
            path=item["path"],
            scale=item["scale"],
            extra=_others(item, _ADAPTER_KEYS),
        )
        for item in data
    ]


def prometheus_values(text: str) -> dict[str, float]:
    """Read ``/metrics``: each name with its value, comments left out."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    pairs = (line.rsplit(" ", 1) for line in lines)
    return {name: float(value) for name, value in pairs}


def _usage(data: dict[str, Any]) -> Usage:
    return Usage(
        prompt_tokens=data["prompt_tokens"],
        completion_tokens=data["completion_tokens"],
        total_tokens=data["total_tokens"],
        prompt_tokens_details=data.get("prompt_tokens_details"),
        extra=_others(data, _USAGE_KEYS),
    )


def _embedding_usage(data: dict[str, Any]) -> EmbeddingUsage:
    usage = data.get("usage") or {}
    prompt_tokens = usage.get("prompt_tokens", 0)
    return EmbeddingUsage(
        prompt_tokens=prompt_tokens,
        total_tokens=usage.get("total_tokens", prompt_tokens),
    )


def _timings(data: dict[str, Any]) -> Timings:
    known = {key: data[key] for key in _TIMING_KEYS & data.keys()}
    return Timings(**known, extra=_others(data, _TIMING_KEYS))


def _progress(data: dict[str, Any]) -> PromptProgress:
    return PromptProgress(
        total=data["total"],
        cache=data["cache"],
        processed=data["processed"],
        time_ms=data["time_ms"],
    )


def _vector(value: Any) -> list[float]:
    if not isinstance(value, str):
        return list(value)
    numbers = array.array("f", base64.b64decode(value))
    if sys.byteorder == "big":  # pragma: no cover -- llama-server writes little endian
        numbers.byteswap()
    return numbers.tolist()


def _others(data: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Return what no field is made for."""
    if data.keys() <= known:
        return {}
    return {key: value for key, value in data.items() if key not in known}
