"""Models in several files: their names, and whether the parts belong together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamatelemetry.exceptions import GGUFError
from llamatelemetry.gguf._diagnosis import shown

MOST_SHARDS = 512
"""Shards of one model. Each is opened, and asked for on its own if it is remote."""

# As `llama-gguf-split` names them: SPLIT_PATH_FORMAT in llama.cpp's src/llama.cpp.
_SHARD_NAME = re.compile(
    r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)",
    re.DOTALL | re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class ShardName:
    """The name of one file of several.

    Attributes:
        stem: What all the names begin with.
        number: Which file it is, counted from 1.
        count: How many there are.
        end: What all the names end with: ".gguf", in any case.
    """

    stem: str
    number: int
    count: int
    end: str

    def of(self, number: int) -> str:
        """Return the name of another file of the model, counted from 1."""
        return f"{self.stem}-{number:05}-of-{self.count:05}{self.end}"


def parse_shard_name(file_name: str) -> ShardName | None:
    """Return what a file's name says about shards, or None if it is none."""
    match = _SHARD_NAME.fullmatch(file_name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return None
    return ShardName(
        match["stem"], int(match["number"]), int(match["count"]), match["end"]
    )


def shard_count(metadata: Mapping[str, Any], source: str) -> int:
    """Return how many files the model has, as its first file says; 1 by default."""
    count = metadata.get("split.count", 1)
    if type(count) is not int or count < 0:
        raise GGUFError(
            f"{source}: 'split.count' is {shown(count)}, which is no number of shards. "
            "Fetch the file again.",
            path=source,
        )
    if count > MOST_SHARDS:
        raise GGUFError(
            f"{source}: says it is one of {count:,} shards; at most {MOST_SHARDS} are "
            "read. Merge them with llama-gguf-split --merge.",
            path=source,
        )
    return max(count, 1)


def check_shard(
    metadata: Mapping[str, Any], source: str, *, number: int, count: int
) -> None:
    """Refuse a shard that is not the one its place asks for.

    Args:
        metadata: The shard's own keys and values.
        source: Its path or URL.
        number: Which one it should be, counted from 0.
        count: How many there should be.

    Raises:
        GGUFError: It belongs to another place or another model.
    """
    for key, wanted in (("split.no", number), ("split.count", count)):
        found = metadata.get(key)
        if found != wanted:
            raise GGUFError(
                f"{source}: says {key} = {shown(found)} where {wanted} is expected: "
                "the file belongs to another place or another model. Fetch all shards "
                "of one model again, under their own names.",
                path=source,
            )


def check_sum(
    metadata: Mapping[str, Any], names: Sequence[str], sources: Sequence[str]
) -> None:
    """Refuse shards that together are not the whole model.

    Args:
        metadata: The first shard's keys and values.
        names: The names of all tensors of all shards.
        sources: The paths or URLs of the shards.

    Raises:
        GGUFError: Tensors are missing, or stand in two shards.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise GGUFError(
                f"{sources[0]}: tensor {name!r} is in two of the {len(sources)} "
                "shards. Fetch all shards of one model again.",
                path=sources[0],
            )
        seen.add(name)
    total = metadata.get("split.tensors.count", len(names))
    if total != len(names):
        raise GGUFError(
            f"{sources[0]}: the {len(sources)} shards hold {len(names):,} tensors "
            f"instead of the {shown(total)} that 'split.tensors.count' says. Fetch all "
            "shards of one model again.",
            path=sources[0],
        )
