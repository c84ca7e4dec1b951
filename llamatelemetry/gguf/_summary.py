"""A model file at a glance: as lines for a terminal, as a panel for a notebook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llamatelemetry._units import format_file_size, printable
from llamatelemetry.gguf._html import COLOURS, Segment, bar, panel, table
from llamatelemetry.gguf.reader import TensorInfo

__all__ = ["Facts", "as_html", "as_text", "format_count", "group_of"]

# The first whose mark is in a tensor's name is its group.
_GROUPS = (
    ("norms", ("norm",)),
    ("experts", ("_exps", "_exp.", "ffn_gate_inp", "exp_probs")),
    ("shared experts", ("_shexp",)),
    ("recurrent", ("ssm_", "shortconv", "time_mix", "channel_mix")),
    ("attention", ("attn", "rope_")),
    ("feed forward", ("ffn_", ".mlp")),
    ("embeddings", ("token_embd", "token_types", "position_embd", "per_layer_token")),
    ("output", ("output", "cls")),
)
_ORDER = [
    "embeddings",
    "attention",
    "recurrent",
    "feed forward",
    "experts",
    "shared experts",
    "norms",
    "output",
    "other",
]
_TEMPLATE_SHOWN = 60
_FACT_SHOWN = 60  # six of them and what stands between fit into one text
_PATH_SHOWN = (40, 80)  # characters of its beginning and its end


@dataclass(frozen=True, slots=True)
class Facts:
    """What is shown of a model file.

    Attributes:
        name: The model.
        source: Where it is.
        architecture: Its family, or None.
        license: Its licence, or None.
        parameters: Weights.
        quantization: The recipe, or the types.
        bits_per_weight: Over the whole model.
        size_bytes: Of all shards.
        shards: How many files it is in.
        context: The trained context in tokens, or None.
        layers: Layers; None, or anything a broken header holds there.
        tensors: The tensors.
        tokenizer: Facts on the tokenizer: a name and a value each.
        template: The chat template, or None.
    """

    name: str
    source: str
    architecture: str | None
    license: str | None
    parameters: int
    quantization: str
    bits_per_weight: float
    size_bytes: int
    shards: int
    context: int | None
    layers: Any
    tensors: Sequence[TensorInfo]
    tokenizer: Sequence[tuple[str, str]]
    template: str | None

    @property
    def headline(self) -> list[str]:
        """The few facts that matter most; each is cut by itself, so that none goes."""
        facts = [self.architecture or "no architecture"]
        if self.parameters:
            facts += [
                f"{format_count(self.parameters)} parameters",
                self.quantization,
                f"{self.bits_per_weight:.2f} bits per weight",
            ]
        facts.append(format_file_size(self.size_bytes))
        if self.context is not None:
            facts.append(f"context {self.context:,}")
        return [printable(fact, _FACT_SHOWN) for fact in facts]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Everything else worth a line."""
        rows = [("file", _short_path(self.source))]
        if self.shards > 1:
            rows.append(("shards", str(self.shards)))
        if isinstance(self.layers, int):
            rows.append(("layers", f"{self.layers}"))
        rows.append(("tensors", f"{len(self.tensors):,}"))
        if self.license:
            rows.append(("licence", self.license))
        rows += self.tokenizer
        if self.template is not None:
            rows.append(("chat template", _shorten(self.template)))
        return rows


def format_count(count: float) -> str:
    """Return a number of weights for people: ``8.03B``, ``1.77M``."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


def group_of(name: str) -> str:
    """Return the part of the model that a tensor belongs to."""
    for group, marks in _GROUPS:
        if any(mark in name for mark in marks):
            return group
    return "other"


def as_text(facts: Facts) -> str:
    """Return the facts as lines: what it is, its parts, its types."""
    lines = [printable(facts.name), " · ".join(facts.headline), *_columns(facts.rows)]
    if facts.tensors:
        header = ("part", "tensors", "parameters", "size", "types")
        lines += ["", *_columns([header, *_part_rows(facts.tensors)], right=(1, 2, 3))]
    return "\n".join(lines)


def as_html(facts: Facts) -> str:
    """Return the facts as a panel with a bar of the bytes by type."""
    parts = []
    if facts.tensors:
        parts.append(bar(_type_segments(facts.tensors), title="Bytes by tensor type"))
        header = ("part", "types", "tensors", "parameters", "size")
        rows = [
            (part, types, count, parameters, size)
            for part, count, parameters, size, types in _part_rows(facts.tensors)
        ]
        parts.append(table(rows, header=header, left=2))
    parts.append(table(facts.rows, left=2))
    return panel(facts.name, " · ".join(facts.headline), *parts)


def _type_segments(tensors: Iterable[TensorInfo]) -> list[Segment]:
    sizes = _sizes_by_type(tensors)
    total = sizes.total() or 1
    return [
        Segment(kind, size / total, COLOURS[place % len(COLOURS)], _share(size, total))
        for place, (kind, size) in enumerate(sizes.most_common())
    ]


def _part_rows(tensors: Iterable[TensorInfo]) -> list[tuple[str, str, str, str, str]]:
    parts: dict[str, list[TensorInfo]] = {}
    for tensor in tensors:
        parts.setdefault(group_of(tensor.name), []).append(tensor)
    return [
        (
            part,
            f"{len(parts[part]):,}",
            format_count(sum(tensor.n_elements for tensor in parts[part])),
            format_file_size(sum(tensor.n_bytes for tensor in parts[part])),
            ", ".join(kind for kind, _ in _sizes_by_type(parts[part]).most_common()),
        )
        for part in _ORDER
        if part in parts
    ]


def _sizes_by_type(tensors: Iterable[TensorInfo]) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.type] += tensor.n_bytes
    return sizes


def _share(size: int, total: int) -> str:
    return f"{format_file_size(size)}, {size / total * 100:.0f} %"


def _columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Set rows in columns wide enough for their longest cells."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shown
    ]


def _short_path(path: str) -> str:
    """Return a path without the middle where it is long; its end names the file."""
    beginning, end = _PATH_SHOWN
    if len(path) <= beginning + end:
        return path
    return f"{path[:beginning]}…{path[-end:]}"


def _shorten(text: str) -> str:
    first = " ".join(text[: 4 * _TEMPLATE_SHOWN].split())[:_TEMPLATE_SHOWN]
    return f"{len(text):,} characters: {first}{'…' if len(first) < len(text) else ''}"
