"""Bytes of what is not computed but kept: weights, caches, states, outputs."""

from __future__ import annotations

from collections.abc import Iterable

from llamatelemetry.gguf._settings import Settings
from llamatelemetry.gguf._shape import Layer, ModelShape
from llamatelemetry.gguf.quantization import GGMLType
from llamatelemetry.gguf.reader import TensorInfo

_FLOAT = 4  # bytes; logits, embeddings and states are f32


def layer_of(tensor: TensorInfo) -> int | None:
    """Return the layer a tensor belongs to, or None."""
    parts = tensor.name.split(".", 2)
    if parts[0] == "blk" and len(parts) > 1 and parts[1].isdecimal():
        return int(parts[1])
    return None


def cache_bytes(shape: ModelShape, layer: Layer, settings: Settings) -> int:
    """Return the KV cache of one layer; 0 where it has none."""
    if layer.recurrent or not layer.own_cache or not shape.traits.cache:
        return 0
    cells = settings.window_cells if layer.windowed else settings.cells
    rows = cells * settings.streams
    keys = layer.cache_heads * layer.key_length
    total = rows * _row_bytes(settings.key_type, keys)
    if shape.latent:  # the values are a part of the keys
        return total
    values = layer.cache_heads * layer.value_length
    if not settings.flash:  # turned around, and padded to the widest layer
        values = max(
            other.cache_heads * other.value_length
            for other in shape.layers
            if not other.recurrent
        )
    return total + rows * _row_bytes(settings.value_type, values)


def _row_bytes(kind: GGMLType, elements: int) -> int:
    return elements * kind.type_bytes // kind.block_size


def state_bytes(shape: ModelShape, layer: Layer, settings: Settings) -> int:
    """Return the states of a layer that keeps one; 0 for another."""
    if not layer.stateful:
        return 0
    return sum(shape.state_elements()) * _FLOAT * settings.slots


def output_bytes(shape: ModelShape, settings: Settings) -> int:
    """Return the host's copy of what the model puts out.

    It begins with one row per slot; a server of embeddings lets it grow to a batch.
    """
    row = shape.vocabulary + (shape.width if settings.embeddings else 0)
    return row * _FLOAT * settings.slots


def padded_bytes(tensors: Iterable[TensorInfo], alignment: int) -> int:
    """Return the bytes of tensors that lie in one buffer, each aligned."""
    return sum(-(-tensor.n_bytes // alignment) * alignment for tensor in tensors)


def split_layers(count: int, on_gpu: int, shares: list[float]) -> list[int | None]:
    """Return the device of each layer, and last of the output; None is the host.

    Source: llama_model::load_tensors (b11434), ``upper_bound`` over the shares.
    """
    total = sum(shares)
    if not shares or total <= 0:
        return [None] * (count + 1)
    ends, reached = [], 0.0
    for share in shares:
        reached += share
        ends.append(reached / total)
    active = min(on_gpu, count + 1)
    first = max(count + 1 - on_gpu, 0)
    places: list[int | None] = []
    for index in range(count + 1):
        if index < first or not active:
            places.append(None)
            continue
        fraction = (index - first) / active
        beyond = [device for device, end in enumerate(ends) if fraction < end]
        places.append(beyond[0] if beyond else len(shares) - 1)
    return places
