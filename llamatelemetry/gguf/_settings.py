"""What a configuration comes to for one model: cells, slots, batches, cache types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llamatelemetry.gguf._build import Batch
from llamatelemetry.gguf._shape import ModelShape
from llamatelemetry.gguf.quantization import GGML_TYPES, GGMLType
from llamatelemetry.server.config import ServerConfig

CELL_STEP = 256
"""Contexts are rounded up to a multiple of this many tokens: llama-context.cpp."""

FEW_OUTPUTS_BUILD = 11434
"""The llama.cpp build known to keep logits of one token per slot only.

Build 7710 kept them for every token of a batch. Which build between the two changed
that is not known, so all before this one are planned like the older.
"""

ROTATED = 64  # heads of a multiple of this length are rotated: llama-kv-cache.cpp


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers llama.cpp derives from a configuration.

    Attributes:
        cells: Tokens of context of one stream.
        window_cells: The same for layers with a sliding window; 0 without any.
        streams: Separate caches: one per slot, or one that all slots share.
        slots: Requests served at once.
        batch: Tokens handed over at once.
        tokens: Tokens computed at once.
        flash: Whether flash attention is on.
        key_type: How keys are cached.
        value_type: How values are cached.
        embeddings: Whether embeddings are asked for.
        pooling: How they are pooled; empty for not at all.
        all_outputs: Whether logits of every token of a batch are kept.
    """

    cells: int
    window_cells: int
    streams: int
    slots: int
    batch: int
    tokens: int
    flash: bool
    key_type: GGMLType
    value_type: GGMLType
    embeddings: bool
    pooling: str
    all_outputs: bool

    @classmethod
    def of(
        cls, shape: ModelShape, config: ServerConfig, *, build: int | None = None
    ) -> Settings:
        """Return what the configuration comes to for this model.

        Args:
            shape: The model.
            config: The configuration; context 0 is the model's own.
            build: llama.cpp's build number; None for today's.
        """
        unified = config.shares_cache
        asked = config.context_size or shape.training_context or CELL_STEP
        context = _padded(asked)
        slots = config.parallel
        cells = context if unified else _padded(max(context // slots, 1))
        streams = 1 if unified else slots
        batch = config.n_batch
        if shape.causal:
            batch = min(batch, asked)
        tokens = min(config.n_ubatch, batch)
        return cls(
            cells=cells,
            window_cells=_window_cells(shape, config, cells, tokens, unified),
            streams=streams,
            slots=slots,
            batch=batch,
            tokens=min(tokens, cells * streams),
            flash=config.flash_attn,
            key_type=GGML_TYPES[config.cache_type_k.upper()],
            value_type=GGML_TYPES[config.cache_type_v.upper()],
            embeddings=config.embeddings or config.rerank,
            pooling=_pooling(shape, config),
            all_outputs=build is not None and build < FEW_OUTPUTS_BUILD,
        )

    @property
    def context(self) -> int:
        """Tokens of context over all slots, as llama.cpp rounds it."""
        return self.cells * self.streams

    def batches(
        self, shape: ModelShape, *, on_gpu: bool = False
    ) -> tuple[Batch, Batch]:
        """Return the two graphs that memory is reserved for: prompt and generation."""
        whole = -(-self.tokens // self.slots) * self.slots
        everything = self.embeddings or self.all_outputs
        prompt = Batch(
            tokens=whole,
            sequences=self.slots,
            outputs=self.tokens if everything else self.slots,
            streams=self.streams,
            cells=self.cells,
            window_cells=self.window_cells,
            flash=self.flash,
            rotates_keys=self._rotates(shape, self.key_type, "key_length"),
            rotates_values=self._rotates(shape, self.value_type, "value_length"),
            casts_keys=self._is_cast(shape, self.key_type),
            casts_values=self._is_cast(shape, self.value_type),
            copies_keys=on_gpu and self.key_type.block_size > 1,
            copies_values=on_gpu and self.value_type.block_size > 1,
            embedded=on_gpu,
            embeddings=self.embeddings,
        )
        return prompt, replace(prompt, tokens=self.slots, outputs=self.slots)

    def _rotates(self, shape: ModelShape, kind: GGMLType, length: str) -> bool:
        """Whether llama.cpp rotates what it quantizes: heads of a suitable length."""
        if kind.block_size == 1 or shape.latent or not shape.traits.cache:
            return False
        lengths = {
            getattr(layer, length) for layer in shape.layers if not layer.recurrent
        }
        return all(number % ROTATED == 0 for number in lengths)

    def _is_cast(self, shape: ModelShape, kind: GGMLType) -> bool:
        """Whether flash attention needs a copy: of f32, and of what is not cached."""
        return self.flash and (kind.name == "F32" or not shape.traits.cache)


def has_flag(arguments: Sequence[str], *spellings: str) -> bool:
    """Return whether one of a flag's spellings is among the arguments."""
    return any(argument.split("=")[0] in spellings for argument in arguments)


def _padded(tokens: int) -> int:
    return -(-tokens // CELL_STEP) * CELL_STEP


def _window_cells(
    shape: ModelShape, config: ServerConfig, cells: int, tokens: int, unified: bool
) -> int:
    """Source: llama_kv_cache_iswa's constructor (b11434)."""
    if not shape.window or not shape.traits.cache:
        return 0
    if has_flag(config.extra_args, "--swa-full"):
        return cells
    sequences = config.parallel if unified else 1
    return _padded(min(cells, shape.window * sequences + tokens))


_POOLINGS = ("none", "mean", "cls", "last", "rank")  # llama_pooling_type in llama.h


def _pooling(shape: ModelShape, config: ServerConfig) -> str:
    if config.rerank:
        return "rank"
    if not config.embeddings:
        return ""
    own = shape.number("pooling_type", len(_POOLINGS))
    if config.pooling is not None:
        chosen = config.pooling
    elif own < len(_POOLINGS):
        chosen = _POOLINGS[own]
    else:  # what a server of this package is started with
        chosen = "mean"
    return "" if chosen == "none" else chosen
