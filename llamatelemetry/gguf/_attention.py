"""Attention, as llama.cpp builds it: over the cache, or over the batch itself.

Source: ``build_attn`` and ``build_attn_mha`` in src/llama-graph.cpp (b11434).
"""

from __future__ import annotations

from typing import NamedTuple

from llamatelemetry.gguf._build import Build, has_norm, norm, project
from llamatelemetry.gguf._graph import Tensor
from llamatelemetry.gguf._shape import Layer

_HALF = 2  # bytes of an f16


class Heads(NamedTuple):
    """Queries, keys and values, each (length, heads, tokens)."""

    query: Tensor
    key: Tensor
    value: Tensor


def attention(build: Build, layer: Layer, values: Tensor) -> Tensor:
    """Attention with its positions and norms, whatever of them the layer has."""
    graph, traits = build.graph, build.shape.traits
    query, key, value = _projections(build, layer, values)
    query = _normed(build, layer, query, "attn_q_norm")
    if traits.norms_values and layer.own_cache:
        value = graph.like("rms_norm", value)
    if _has_rope(build, layer):
        query = graph.like("rope", query, build.inputs["positions"])
        key = _normed(build, layer, key, "attn_k_norm")
        key = graph.like("rope", key, build.inputs["positions"])
    if traits.scales_query:
        query = graph.like("scale", query)
    if "attention_scale" in build.inputs:
        query = graph.like("mul", query, build.inputs["attention_scale"])
    seen = attend(build, layer, Heads(query, key, value))
    return project(build, layer.index, "attn_output", seen)


def _projections(build: Build, layer: Layer, values: Tensor) -> Heads:
    graph, tokens, index = build.graph, build.batch.tokens, layer.index
    shapes = (
        (layer.key_length, layer.heads, tokens),
        (layer.key_length, layer.cache_heads, tokens),
        (layer.value_length, layer.cache_heads, tokens),
    )
    if build.shape.has(index, "attn_qkv.weight"):
        fused = project(build, index, "attn_qkv", values)
        row = fused.strides[1]
        return Heads(
            *(
                graph.view(fused, shape, (shape[0] * fused.item, row))
                for shape in shapes
            )
        )
    parts = [project(build, index, "attn_q", values)]
    if layer.own_cache:
        parts.append(project(build, index, "attn_k", values))
    if layer.own_cache and build.shape.has(index, "attn_v.weight"):
        parts.append(project(build, index, "attn_v", values))
    parts += parts[-1:] * (len(shapes) - len(parts))  # the keys are the values, too
    return Heads(
        *(graph.view(part, shape) for part, shape in zip(parts, shapes, strict=True))
    )


def _normed(build: Build, layer: Layer, values: Tensor, name: str) -> Tensor:
    """Normalise, where the layer has a norm of this name."""
    whole = f"blk.{layer.index}.{name}"
    return norm(build, values, whole) if has_norm(build, whole) else values


def _has_rope(build: Build, layer: Layer) -> bool:
    traits = build.shape.traits
    if traits.rope_in_windows:
        return layer.windowed
    if traits.rope_step:
        return (layer.index + 1) % traits.rope_step != 0
    learned = "position_embd.weight" in build.shape.tensors
    return "positions" in build.inputs and not learned


def attend(build: Build, layer: Layer, heads: Heads) -> Tensor:
    """Store keys and values, attend, and return what each token has seen."""
    graph, batch = build.graph, build.batch
    ending = "_window" if layer.windowed else ""
    query, key, value = heads
    if batch.rotates_keys:
        query = _rotated(build, query, f"key_rotation{ending}")
        key = _rotated(build, key, f"key_rotation{ending}")
    if batch.rotates_values:
        value = _rotated(build, value, f"value_rotation{ending}")
    for part in (query, value, key) if layer.own_cache else (query,):
        graph.expand(part)
    if build.shape.traits.cache:
        key, value = _through_cache(build, layer, key, value)
    result = _seen(build, layer, Heads(query, key, value))
    graph.expand(result)
    if batch.rotates_values:
        result = _rotated(build, result, f"value_rotation{ending}")
    return result


def _rotated(build: Build, values: Tensor, name: str) -> Tensor:
    """Multiply by a Hadamard matrix, which makes quantizing lose less."""
    graph, rotation = build.graph, build.inputs[name]
    length = rotation.shape[0]
    flat = (length, values.elements // length)
    if values.contiguous:
        rows = graph.view(values, flat)
    else:
        rows = graph.contiguous(values, *flat)
    return graph.view(graph.matmul(rotation, rows), values.shape)


def _through_cache(
    build: Build, layer: Layer, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Write this batch's keys and values; return all that the cache holds."""
    graph, batch = build.graph, build.batch
    ending = "_window" if layer.windowed else ""
    cells = batch.window_cells if layer.windowed else batch.cells
    keys = layer.key_length * layer.cache_heads
    values = layer.value_length * layer.cache_heads
    key_cache = graph.weight(keys, cells, batch.streams, item=_HALF)
    value_cache = graph.weight(values, cells, batch.streams, item=_HALF)
    if layer.own_cache:
        rows = graph.view(key, (keys, batch.tokens), (key.strides[2],))
        places = build.inputs[f"key_rows{ending}"]
        graph.expand(graph.store(key_cache, rows, places))
    heads = (layer.cache_heads, cells, batch.streams)
    seen_key = graph.view(key_cache, (layer.key_length, *heads))
    if build.shape.latent:  # the values are a part of the keys
        shape = (value.shape[0], *heads)
        return seen_key, graph.view(seen_key, shape, seen_key.strides[1:])
    if layer.own_cache:
        rows = _value_rows(build, value, values)
        places = build.inputs[f"value_rows{ending}"]
        graph.expand(graph.store(value_cache, rows, places))
    if batch.flash:
        return seen_key, graph.view(value_cache, (layer.value_length, *heads))
    turned = (cells, layer.cache_heads, layer.value_length, batch.streams)
    strides = (cells * layer.value_length * _HALF, cells * _HALF)
    return seen_key, graph.view(value_cache, turned, strides)


def _value_rows(build: Build, value: Tensor, width: int) -> Tensor:
    """Return values as they are written; without flash attention, one by one."""
    graph, flat = build.graph, (width, build.batch.tokens)
    if build.batch.flash:
        return graph.view(value, flat, (value.strides[2],))
    if value.strides[2] == width * value.item:
        rows = graph.view(value, flat)
    else:
        rows = graph.contiguous(value, *flat)
    widest = max(
        layer.value_length * layer.cache_heads
        for layer in build.shape.layers
        if not layer.recurrent
    )
    if width < widest:
        rows = graph.make("pad", (widest, build.batch.tokens), rows)
    return graph.view(rows, (1, rows.elements))


def _seen(build: Build, layer: Layer, heads: Heads) -> Tensor:
    """Return what each token has seen of the others, (heads x length, tokens)."""
    graph, batch = build.graph, build.batch
    query, key, value = heads
    streams = key.shape[3]
    share = query.shape[2] // streams
    query = graph.view(
        query,
        (query.shape[0], query.shape[1], share, streams),
        (query.strides[1], query.strides[2], query.strides[2] * share),
    )
    turned = value.strides[1] > value.strides[2]
    parts = Heads(*(graph.permute(part, 0, 2, 1, 3) for part in (query, key, value)))
    if batch.flash:
        return _flash(build, layer, parts)
    mask = build.inputs["mask_window" if layer.windowed else "mask"]
    scores = graph.matmul(parts.key, parts.query)
    if build.shape.traits.softcap:
        for operation in ("scale", "unary", "scale"):
            scores = graph.like(operation, scores)
    sinks = build.part(layer.index, "attn_sinks.weight")
    scores = graph.like("soft_max", scores, mask, sinks)
    value = parts.value
    if not turned:
        value = graph.contiguous(graph.transpose(value))
    result = graph.matmul(value, scores)
    decompress = build.part(layer.index, "attn_v_b.weight")
    if decompress is not None:
        result = graph.matmul(decompress, result)
    result = graph.permute(result, 0, 2, 1, 3)
    width = result.shape[0] * result.shape[1]
    return graph.contiguous(result, width, result.shape[2] * result.shape[3])


def _flash(build: Build, layer: Layer, heads: Heads) -> Tensor:
    """Flash attention: one operation, which needs no matrix of scores."""
    graph, batch = build.graph, build.batch
    query, key, value = heads
    if batch.casts_keys:
        key = _cast(build, key)
    if batch.casts_values:
        value = _cast(build, value)
    mask = build.inputs["mask_window" if layer.windowed else "mask"]
    sinks = build.part(layer.index, "attn_sinks.weight")
    shape = (value.shape[0], query.shape[2], query.shape[1], query.shape[3])
    result = graph.make("flash_attn", shape, query, key, value, mask, sinks)
    result.size += _HALF * batch.copies_keys * key.elements
    result.size += _HALF * batch.copies_values * value.elements
    decompress = build.part(layer.index, "attn_v_b.weight")
    if decompress is not None:
        result = graph.matmul(decompress, graph.permute(result, 0, 2, 1, 3))
        result = graph.contiguous(graph.permute(result, 0, 2, 1, 3))
    width = result.shape[0] * result.shape[1]
    return graph.view(result, (width, result.shape[2] * result.shape[3]))


def _cast(build: Build, values: Tensor) -> Tensor:
    """Return a copy in f16, which lives as long as the graph.

    ggml_cast names its own result as a source, so the allocator never sees it unused.
    """
    result = build.graph.make("cast", values.shape, values, item=_HALF)
    result.sources = (*result.sources, result)
    return result


def latent_attention(build: Build, layer: Layer, values: Tensor) -> Tensor:
    """Attention over compressed keys and values, as DeepSeek 2 has it."""
    graph, shape, tokens = build.graph, build.shape, build.batch.tokens
    index = layer.index
    length = shape.number("attention.key_length_mla")
    turned = shape.number("rope.dimension_count")
    rank = shape.number("attention.kv_lora_rank")
    plain = length - turned
    if shape.has(index, "attn_q_a.weight"):
        query = project(build, index, "attn_q_a", values)
        query = norm(build, query, f"blk.{index}.attn_q_a_norm")
        query = graph.matmul(build.need(f"blk.{index}.attn_q_b.weight"), query)
    else:
        query = project(build, index, "attn_q", values)
    query = graph.view(query, (length, layer.heads, tokens))
    both = project(build, index, "attn_kv_a_mqa", values)
    compressed = graph.view(both, (rank, tokens), both.strides[1:2])
    key = graph.view(both, (turned, 1, tokens), (both.strides[1], both.strides[1]))
    key = graph.like("rope", key, build.inputs["positions"])
    compressed = norm(build, compressed, f"blk.{index}.attn_kv_a_norm")
    part = graph.view(query, (plain, layer.heads, tokens), query.strides[1:3])
    rest = graph.view(query, (turned, layer.heads, tokens), query.strides[1:3])
    rest = graph.like("rope", rest, build.inputs["positions"])
    absorbed = graph.matmul(
        build.need(f"blk.{index}.attn_k_b.weight"), graph.permute(part, 0, 2, 1, 3)
    )
    query = graph.concatenate(graph.permute(absorbed, 0, 2, 1, 3), rest)
    compressed = graph.view(compressed, (rank, 1, tokens))
    key = graph.concatenate(compressed, key)
    seen = attend(build, layer, Heads(query, key, compressed))
    return project(build, index, "attn_output", seen)


def gated_attention(build: Build, layer: Layer, values: Tensor) -> Tensor:
    """Attention whose result passes a gate, as Qwen3.5 has it."""
    graph, tokens = build.graph, build.batch.tokens
    index, length = layer.index, layer.key_length
    both = project(build, index, "attn_q", values)
    strides = (length * 2 * 4, both.strides[1])
    query = graph.view(both, (length, layer.heads, tokens), strides)
    query = norm(build, query, f"blk.{index}.attn_q_norm")
    cache = (length, layer.cache_heads, tokens)
    key = graph.view(project(build, index, "attn_k", values), cache)
    key = norm(build, key, f"blk.{index}.attn_k_norm")
    gate = graph.view(both, (length, layer.heads, tokens), strides)
    gate = graph.contiguous(gate, length * layer.heads, tokens)
    value = graph.view(project(build, index, "attn_v", values), cache)
    query, key = (
        graph.like("rope", part, build.inputs["positions"]) for part in (query, key)
    )
    seen = attend(build, layer, Heads(query, key, value))
    seen = graph.like("mul", seen, graph.like("unary", gate))
    return project(build, index, "attn_output", seen)
