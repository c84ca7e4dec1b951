"""How far an answer is, in words: one quiet line below it. Pure."""

from __future__ import annotations

from llamatelemetry.widgets._generation import Progress

__all__ = ["status_line"]


def status_line(progress: Progress, *, thinking: str = "") -> str:
    """Return what there is to say about an answer, as plain text.

    Args:
        progress: How far it is.
        thinking: What to say while it thinks; "" for nothing.
    """
    if progress.state == "waiting":
        return "Waiting for the server …"
    if progress.state == "reading":
        read = "" if progress.read is None else f", {progress.read:.0%}"
        return f"Reading the prompt{read} …"
    if progress.state == "stopping":
        return (
            "Stopping: no more text comes; waiting until the server's slot is idle. "
            "You can go on meanwhile."
        )
    if progress.state == "answering":
        parts = [thinking or "Answering …", _tokens(progress.completion_tokens)]
        if progress.tokens_per_second:
            parts.append(f"{progress.tokens_per_second:,.1f} tokens/s")
        return " · ".join(parts)
    return " · ".join(part for part in (*_end(progress), *_figures(progress)) if part)


def _end(progress: Progress) -> list[str]:
    """Return how it ended, unless that was as it should be."""
    if progress.state == "failed":
        return [f"Error: {progress.note}"]
    if progress.state == "stopped":
        seconds = progress.idle_seconds
        idle = "" if seconds is None else f"slot idle after {_seconds(seconds)}"
        return ["Stopped", idle, progress.note]
    reason = progress.finish_reason
    if reason == "length":
        tokens = f"Cut off at {_tokens(progress.completion_tokens)}"
        if progress.cut_off_in_reasoning:
            tokens += (
                " inside the reasoning, before any answer: allow more tokens, or set "
                "thinking to off"
            )
        return [tokens]
    if reason == "tool_calls":
        return ["The model called a tool; this panel has none"]
    if not progress.text:
        return ["The model answered nothing"]
    return [] if reason in ("stop", None) else [f"Ended: {reason}"]


def _figures(progress: Progress) -> list[str]:
    """Return what it took."""
    parts = []
    if progress.first_token_seconds is not None:
        parts.append(f"first token after {_seconds(progress.first_token_seconds)}")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:,.1f} tokens/s")
    total = progress.total_tokens
    if progress.state == "failed" and not progress.completion_tokens:
        return parts
    if total is not None and progress.context_size is not None:
        parts.append(f"{total:,} of {progress.context_size:,} tokens of the context")
    elif progress.completion_tokens:
        parts.append(_tokens(progress.completion_tokens))
    if progress.measured:
        parts.append(progress.measured)
    return parts


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count:,} tokens"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
