"""A model's shape, as the memory plan needs it: what a header says about its layers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from llamatelemetry.exceptions import GGUFError
from llamatelemetry.gguf._html import printable
from llamatelemetry.gguf.reader import GGUFHeader


@dataclass(frozen=True, slots=True)
class Traits:
    """What an architecture does that its header does not say.

    Read from ``architectures.json``. The defaults are llama's.

    Attributes:
        known: Whether plans were compared with llama.cpp's own allocations.
        norm: ggml's operation for the norms.
        window_pattern: Every n-th layer attends to everything, where windows are used.
        window: Whether a sliding window in the header is used.
        window_length: The window where the header names none.
        embedding: How the embeddings are scaled: "", "scale" or "rows".
        scales_query: Whether queries are scaled before attention.
        softcap: Whether attention logits are capped.
        parallel: Whether attention and feed forward start from the same norm.
        rows_at: Where the output rows are picked: in the "last_layer", or after it,
            "before_norm" or "after_norm".
        rope_step: Every n-th layer has no rotary positions; 0 for none.
        rope_in_windows: Whether only layers with a window have rotary positions.
        cache: Whether there is a KV cache at all.
        encoder: Whether each part is normalised after it, as in BERT.
        residual_first: Whether the residual is the first term of a sum.
        norms_values: Whether values are normalised.
        repeats_heads: Whether queries and keys of a delta net are repeated.
        output_first: Whether a tied output is held twice where the file is not mapped.
        logits_or_embeddings: Whether there are no logits where there are embeddings.
        recurrent: The kind of the recurrent layers, "" without any.
        normalises_experts: Whether the weights of the chosen experts are made to sum
            to one.
        gating: How experts are weighed: "soft_max" or "unary"; "late" after choosing.
    """

    known: bool = False
    norm: str = "rms_norm"
    window_pattern: int = 0
    window: bool = False
    window_length: int = 0
    embedding: str = ""
    scales_query: bool = False
    softcap: bool = False
    parallel: bool = False
    rows_at: str = "last_layer"
    rope_step: int = 0
    rope_in_windows: bool = False
    cache: bool = True
    encoder: bool = False
    residual_first: bool = False
    norms_values: bool = False
    logits_or_embeddings: bool = False
    repeats_heads: bool = False
    output_first: bool = False
    recurrent: str = ""
    normalises_experts: bool = True
    gating: str = "soft_max"


# What files hold that are given beside a model, by their general.type.
_NO_MODEL = {
    "adapter": "is a LoRA adapter, not a model: give it as lora_path",
    "mmproj": "is a multimodal projector, not a model: give it as mmproj_path",
    "clip-vision": "is a multimodal projector, not a model: give it as mmproj_path",
    "vocab": "is a vocabulary, not a model",
    "imatrix": "is an importance matrix, not a model",
}


# Tensors by which a layer is known to keep a state, or to attend.
_STATEFUL = ("ssm_conv1d", "shortconv.conv", "time_mix_key", "time_mix_receptance")
_ATTENDING = ("attn_q", "attn_k", "attn_q_a", "attn_output")

_LARGEST = 2**31 - 1
"""What a number of a header can be; llama.cpp reads most as 32-bit."""

_MOST_EXPERTS = 1024  # used at once; LLAMA_MAX_EXPERTS in llama.cpp is smaller

_NEITHER = (
    "has no layers or no token embeddings: it holds a vocabulary, an adapter or a "
    "projector, not a model"
)


_LAYER = re.compile(r"blk\.\d{1,6}\.")


@cache
def _table() -> dict[str, Traits]:
    text = files(__package__).joinpath("architectures.json").read_text("utf-8")
    return {name: Traits(**entry) for name, entry in json.loads(text).items()}


def known_architectures() -> list[str]:
    """Return the architectures whose plans were compared with llama.cpp.

    Examples:
        >>> from llamatelemetry.gguf.memory import known_architectures
        >>> "qwen3" in known_architectures()
        True
    """
    return sorted(name for name, traits in _table().items() if traits.known)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer.

    Attributes:
        index: Its place, from 0.
        recurrent: Whether it keeps a state of fixed size, not a cache of tokens.
        stateful: Whether it keeps a state at all; some do beside a cache.
        windowed: Whether it attends to a sliding window only.
        own_cache: Whether it caches keys and values; some use an earlier layer's.
        heads: Attention heads.
        cache_heads: Heads of keys and values.
        key_length: Elements of one key.
        value_length: Elements of one value.
    """

    index: int
    recurrent: bool
    stateful: bool
    windowed: bool
    own_cache: bool
    heads: int
    cache_heads: int
    key_length: int
    value_length: int


@dataclass(frozen=True)
class ModelShape:
    """The numbers of one model.

    Attributes:
        architecture: As in the header.
        traits: What the architecture does.
        metadata: The header's metadata.
        tensors: The shape of each tensor by its name.
    """

    architecture: str
    traits: Traits
    metadata: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]] = field(repr=False)

    @classmethod
    def of(cls, header: GGUFHeader) -> ModelShape:
        """Return the shape of the model with this header.

        Raises:
            GGUFError: The header names no architecture, no layers or no embeddings.
        """
        architecture = header.metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise GGUFError(
                f"{header.source} names no architecture (general.architecture), so "
                "it is no language model",
                path=header.source,
            )
        shape = cls(
            architecture,
            _table().get(architecture, Traits()),
            header.metadata,
            {tensor.name: tensor.shape for tensor in header.tensors},
        )
        present = {int(name.split(".")[1]) for name in shape.tensors
                   if _LAYER.match(name)}  # fmt: skip
        if not present or "token_embd.weight" not in shape.tensors:
            kind = str(header.metadata.get("general.type"))
            raise GGUFError(
                f"{header.source} {_NO_MODEL.get(kind, _NEITHER)}", path=header.source
            )
        shape.check(header.source, present)
        return shape

    def check(self, source: str, present: set[int]) -> None:
        """Refuse what cannot be laid out.

        Raises:
            GGUFError: The tensors are not those of the layers that the header counts.
        """
        count = self.number("block_count")
        if count != len(present) or present != set(range(count)):
            raise GGUFError(
                f"{source} says it has {count:,} layers, and has tensors of "
                f"{len(present):,}: it is damaged, or a part of a model",
                path=source,
            )
        table = self.tensors["token_embd.weight"]
        used = self.number("expert_used_count")
        if len(table) != 2 or 0 in table or used > _MOST_EXPERTS:  # noqa: PLR2004
            raise GGUFError(
                f"{source}: token_embd.weight has the shape {list(table)}, and "
                f"{used:,} experts are used at once; no model is like that",
                path=source,
            )

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the architecture's own metadata."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: int = 0, layer: int = 0) -> int:
        """Return a whole number, which some models give for each layer.

        Raises:
            GGUFError: The header has something else there, or a number no model has.
        """
        value = self.get(key, default)
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = value[layer] if layer < len(value) else default
        whole = isinstance(value, int) or (
            isinstance(value, float) and value.is_integer()
        )
        if not whole or not 0 <= value <= _LARGEST:
            raise GGUFError(
                f"{printable(self.architecture)}.{key} is {printable(repr(value))}; it "
                f"must be a whole number from 0 to {_LARGEST:,}"
            )
        return int(value)

    @cached_property
    def layer_count(self) -> int:
        """Layers that take part; the ones that draft tokens ahead do not."""
        return self.number("block_count") - self.number("nextn_predict_layers")

    @cached_property
    def width(self) -> int:
        """Elements of one embedding."""
        return self.number("embedding_length")

    @cached_property
    def vocabulary(self) -> int:
        """Rows of the output."""
        for name in ("output.weight", "token_embd.weight"):
            if name in self.tensors:
                return self.tensors[name][1]
        return 0

    @cached_property
    def training_context(self) -> int:
        """The context the model was made for, in tokens."""
        return self.number("context_length")

    @cached_property
    def window(self) -> int:
        """Tokens of the sliding window; 0 where none is used."""
        if not self.traits.window:
            return 0
        return self.number("attention.sliding_window", self.traits.window_length)

    @cached_property
    def latent(self) -> bool:
        """Whether keys and values are kept compressed as one (MLA)."""
        return self.get("attention.key_length_mla") is not None

    @cached_property
    def causal(self) -> bool:
        """Whether a token sees only the ones before it."""
        return self.traits.cache and bool(self.get("attention.causal", True))

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, in order."""
        return tuple(self._layer(index) for index in range(self.layer_count))

    def _layer(self, index: int) -> Layer:
        heads = self.number("attention.head_count", layer=index)
        cache_heads = self.number("attention.head_count_kv", heads, layer=index)
        usual = self.width // heads if heads else 0
        windowed = self._windowed(index)
        ending = "_swa" if windowed else ""
        shared = self.number("attention.shared_kv_layers")
        key = self.number("attention.key_length", usual)
        value = self.number("attention.value_length", usual)
        return Layer(
            index=index,
            recurrent=self._recurrent(index, cache_heads),
            stateful=self._stateful(index),
            windowed=windowed,
            own_cache=index < self.layer_count - shared,
            heads=heads,
            cache_heads=cache_heads,
            key_length=self.number(f"attention.key_length{ending}", key),
            value_length=self.number(f"attention.value_length{ending}", value),
        )

    def _windowed(self, index: int) -> bool:
        if not self.window:
            return False
        pattern = self.get("attention.sliding_window_pattern")
        if isinstance(pattern, Sequence) and not isinstance(pattern, str):
            return bool(pattern[index])
        step = int(pattern or self.traits.window_pattern)
        return step == 0 or index % step < step - 1

    def _stateful(self, index: int) -> bool:
        """Whether a layer has what keeps a state, in whatever architecture."""
        return any(self.has(index, f"{name}.weight") for name in _STATEFUL)

    def _recurrent(self, index: int, cache_heads: int) -> bool:
        if not self._stateful(index):
            return False
        attends = any(self.has(index, f"{name}.weight") for name in _ATTENDING)
        return not attends or cache_heads == 0

    def has(self, layer: int, name: str) -> bool:
        """Return whether a layer has a tensor, as in ``attn_q.bias``."""
        return f"blk.{layer}.{name}" in self.tensors

    # ── what is kept between two tokens ──────────────────────────────────────────

    def state_elements(self) -> tuple[int, int]:
        """Return the elements of a recurrent layer's two states, per sequence.

        Source: llama_hparams::n_embd_r and n_embd_s (b11434).
        """
        wide = self.number("wkv.head_size")
        if wide:  # RWKV
            return self.number("token_shift_count", 2) * self.width, self.width * wide
        cached = self.number("shortconv.l_cache")
        if cached:
            return self.width * (cached - 1), 0
        inner, state = self.number("ssm.inner_size"), self.number("ssm.state_size")
        groups = self.number("ssm.group_count")
        kernel = self.number("ssm.conv_kernel")
        return max(kernel - 1, 0) * (inner + 2 * groups * state), state * inner
