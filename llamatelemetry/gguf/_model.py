"""The graph of a whole model, from its tokens to its logits."""

from __future__ import annotations

from collections.abc import Sequence

from llamatelemetry.gguf._attention import attention, gated_attention, latent_attention
from llamatelemetry.gguf._build import Batch, Build, has_norm, norm, project
from llamatelemetry.gguf._feed_forward import experts, feed_forward, parallel_experts
from llamatelemetry.gguf._graph import Graph, Tensor
from llamatelemetry.gguf._recurrent import recurrent
from llamatelemetry.gguf._settings import ROTATED
from llamatelemetry.gguf._shape import Layer, ModelShape

_F16, _I64 = 2, 8  # bytes


def build_graph(
    shape: ModelShape,
    batch: Batch,
    *,
    pooling: str = "",
    layers: Sequence[Layer] | None = None,
    ends: bool = True,
) -> Graph:
    """Return the graph that llama.cpp reserves memory for.

    Args:
        shape: The model.
        batch: What is computed at once.
        pooling: How embeddings are pooled; empty where logits are asked for only.
        layers: The layers that are computed here; None for all of them.
        ends: Whether the output is computed here.

    Raises:
        KeyError: The model lacks a tensor that its architecture needs.
    """
    build = Build(shape, batch)
    encoder = shape.traits.encoder
    if encoder:
        _add_positions(build)
    begins = layers is None or any(layer.index == 0 for layer in layers)
    values = _embeddings(build, begins=begins)
    if encoder:
        values = _typed(build, values)
    _add_inputs(build)
    _add_layer_embeddings(build, values)
    step = _encode if encoder else _decode
    for layer in shape.layers if layers is None else layers:
        values = step(build, layer, values)
    if ends:
        _finish(build, values, pooling)
    build.graph.expand(values)
    return build.graph


# ── inputs ───────────────────────────────────────────────────────────────────────


def _embeddings(build: Build, *, begins: bool) -> Tensor:
    """Tokens looked up, or embeddings given, or a mixture: all three are kept ready.

    A card gets a copy of each; a later card only what the one before it computed.
    """
    graph, tokens, width = build.graph, build.batch.tokens, build.shape.width
    if build.batch.embedded and not begins:
        return graph.input(width, tokens)
    if build.batch.embedded:
        mixed, looked_up = graph.input(width, tokens), graph.input(width, tokens)
        slots, values = graph.input(tokens, item=_I64), graph.input(width, tokens)
        graph.expand(graph.store(graph.like("dup", mixed), looked_up, slots))
        return values
    table = build.need("token_embd.weight")
    numbers, given = graph.input(tokens), graph.input(width, tokens)
    looked_up = graph.rows(table, numbers)
    mixed_given = graph.input(width, tokens)
    mixed = graph.store(
        graph.like("dup", mixed_given),
        graph.rows(table, graph.input(tokens)),
        graph.input(tokens, item=_I64),
    )
    for choice in (looked_up, given, mixed):
        graph.expand(choice)
    values = looked_up
    if build.shape.get("embedding_scale"):
        values = graph.like("scale", values)
    if build.shape.traits.embedding == "rows":
        values = graph.like("mul", values, graph.input(1, tokens))
    graph.expand(values)
    if build.shape.traits.embedding == "scale":
        values = graph.like("scale", values)
    return values


def _add_positions(build: Build) -> None:
    per_token = 4 if build.shape.get("rope.dimension_sections") is not None else 1
    build.inputs["positions"] = build.graph.input(build.batch.tokens * per_token)


def _typed(build: Build, values: Tensor) -> Tensor:
    """Token types, learned positions and the first norm of an encoder."""
    graph = build.graph
    types = build.weight("token_types.weight")
    if types is not None:
        row = graph.view(types, (build.shape.width,))
        values = graph.like("add", values, row)
    learned = build.weight("position_embd.weight")
    if learned is not None:
        rows = graph.rows(learned, build.inputs["positions"])
        values = graph.like("add", rows, values)
    return norm(build, values, "token_embd_norm")


def _add_inputs(build: Build) -> None:
    graph, batch, shape = build.graph, build.batch, build.shape
    inputs = build.inputs
    if not (shape.traits.encoder or shape.traits.recurrent in ("mamba", "mamba2")):
        _add_positions(build)
    if shape.get("attention.temperature_scale"):
        inputs["attention_scale"] = graph.input(1, 1, batch.tokens)
    inputs["outputs"] = graph.input(batch.outputs)
    if not shape.traits.cache:
        item = _F16 if batch.flash else 4
        inputs["mask"] = graph.input(batch.tokens, batch.tokens, item=item)
        inputs["mask_window"] = graph.input(batch.tokens, batch.tokens, item=item)
        return
    if shape.traits.recurrent:
        copies = graph.input(batch.sequences)
        inputs["state_rows"] = copies
        inputs["state_now"] = graph.view(copies, (batch.sequences,))
        inputs["state_rest"] = graph.view(copies, (batch.sequences - 1,))
    if any(not layer.recurrent for layer in shape.layers):
        _add_cache_inputs(build, "", batch.cells)
    if shape.window and any(layer.windowed for layer in shape.layers):
        _add_cache_inputs(build, "_window", batch.window_cells)


def _add_cache_inputs(build: Build, ending: str, cells: int) -> None:
    graph, batch, inputs = build.graph, build.batch, build.inputs
    inputs[f"key_rows{ending}"] = graph.input(batch.tokens, item=_I64)
    widest = max(layer.value_length * layer.cache_heads for layer in build.shape.layers)
    rows = batch.tokens * (1 if batch.flash else widest)
    inputs[f"value_rows{ending}"] = graph.input(rows, item=_I64)
    item = _F16 if batch.flash else 4
    inputs[f"mask{ending}"] = graph.input(
        cells, batch.tokens // batch.streams, 1, batch.streams, item=item
    )
    if batch.rotates_keys:
        side = ROTATED
        length = max(
            layer.key_length
            for layer in build.shape.layers
            if layer.windowed == bool(ending)
        )
        while length % (2 * side) == 0:
            side *= 2
        inputs[f"key_rotation{ending}"] = graph.input(side, side)
    if batch.rotates_values:
        inputs[f"value_rotation{ending}"] = graph.input(ROTATED, ROTATED)


def _add_layer_embeddings(build: Build, values: Tensor) -> None:
    """Embeddings of their own for each layer, as Gemma 4's small models have them."""
    width = build.shape.number("embedding_length_per_layer_input")
    if not width or "per_layer_token_embd.weight" not in build.shape.tensors:
        return
    graph, tokens = build.graph, build.batch.tokens
    each = (width, build.shape.layer_count, tokens)
    table = build.need("per_layer_token_embd.weight")
    looked_up = graph.view(graph.rows(table, graph.input(tokens)), each)
    looked_up = graph.expand(graph.like("scale", looked_up))
    own = graph.matmul(build.need("per_layer_model_proj.weight"), values)
    own = graph.view(graph.like("scale", own), each)
    own = norm(build, own, "per_layer_proj_norm")
    both = graph.like("scale", graph.like("add", own, looked_up))
    build.inputs["layer_embeddings"] = graph.contiguous(graph.permute(both, 0, 2, 1, 3))


# ── layers ───────────────────────────────────────────────────────────────────────


def _decode(build: Build, layer: Layer, values: Tensor) -> Tensor:
    """One layer of a model that generates."""
    graph, traits = build.graph, build.shape.traits
    name = f"blk.{layer.index}"
    normed = norm(build, values, f"{name}.attn_norm")
    if traits.recurrent == "delta_net":
        graph.expand(normed)
    seen = _mix(build, layer, normed)
    if _is_last(build, layer) and traits.rows_at == "last_layer":
        seen, values, normed = (
            graph.rows(part, build.inputs["outputs"]) for part in (seen, values, normed)
        )
    if traits.parallel:
        result = feed_forward(build, layer.index, normed)
        return graph.like("add", graph.like("add", result, values), seen)
    before = f"{name}.ffn_norm"
    if has_norm(build, before) and has_norm(build, f"{name}.post_attention_norm"):
        seen = norm(build, seen, f"{name}.post_attention_norm")
    elif not has_norm(build, before):
        before = f"{name}.post_attention_norm"
    after = _added(build, _scaled(build, seen), values)
    if not _has_feed_forward(build, layer):
        return after
    if has_norm(build, f"{name}.pre_ffw_norm_2"):
        result = parallel_experts(build, layer.index, after)
    else:
        result = _feed(build, layer, norm(build, after, before))
    if has_norm(build, f"{name}.post_ffw_norm"):
        result = norm(build, result, f"{name}.post_ffw_norm")
    result = _added(build, _scaled(build, result), after)
    if "layer_embeddings" in build.inputs:
        result = _with_layer_embedding(build, layer, result)
    scale = build.part(layer.index, "layer_output_scale.weight")
    return result if scale is None else graph.like("mul", result, scale)


def _with_layer_embedding(build: Build, layer: Layer, values: Tensor) -> Tensor:
    graph, index = build.graph, layer.index
    source = build.inputs["layer_embeddings"]
    own = graph.view(source, source.shape[:2], source.strides[1:2])
    result = graph.like("unary", project(build, index, "inp_gate", values))
    result = graph.like("mul", result, own)
    result = norm(
        build, project(build, index, "proj", result), f"blk.{index}.post_norm"
    )
    return graph.like("add", values, result)


def _added(build: Build, values: Tensor, residual: Tensor) -> Tensor:
    """Add the residual, in the order that decides whose place the sum takes."""
    first, second = values, residual
    if build.shape.traits.residual_first:
        first, second = residual, values
    return build.graph.like("add", first, second)


def _mix(build: Build, layer: Layer, values: Tensor) -> Tensor:
    """What lets the tokens of a sequence see each other."""
    if layer.recurrent:
        return recurrent(build, layer, values)
    if build.shape.latent:
        return latent_attention(build, layer, values)
    if build.shape.traits.recurrent == "delta_net":
        return gated_attention(build, layer, values)
    return attention(build, layer, values)


def _feed(build: Build, layer: Layer, values: Tensor) -> Tensor:
    if build.shape.has(layer.index, "ffn_gate_inp.weight"):
        return experts(build, layer.index, values)
    return feed_forward(build, layer.index, values)


def _has_feed_forward(build: Build, layer: Layer) -> bool:
    return any(
        build.shape.has(layer.index, f"{name}.weight")
        for name in ("ffn_up", "ffn_gate_inp")
    )


def _scaled(build: Build, values: Tensor) -> Tensor:
    if build.shape.get("residual_scale"):
        return build.graph.like("scale", values)
    return values


def _is_last(build: Build, layer: Layer) -> bool:
    return layer.index == build.shape.layer_count - 1


def _encode(build: Build, layer: Layer, values: Tensor) -> Tensor:
    """One layer of an encoder, which normalises after each part."""
    graph, name = build.graph, f"blk.{layer.index}"
    seen = attention(build, layer, values)
    if _is_last(build, layer):
        seen, values = (
            graph.rows(part, build.inputs["outputs"]) for part in (seen, values)
        )
    seen = graph.like("add", seen, values)
    seen = norm(build, seen, f"{name}.attn_output_norm")
    result = _feed(build, layer, seen)
    result = graph.like("add", result, seen)
    return norm(build, result, f"{name}.layer_output_norm")


# ── the end ──────────────────────────────────────────────────────────────────────


def _finish(build: Build, values: Tensor, pooling: str) -> None:
    graph, traits = build.graph, build.shape.traits
    if not traits.encoder:
        values = _final_norm(build, values)
    if traits.cache and not (traits.logits_or_embeddings and build.batch.embeddings):
        shape = (build.shape.vocabulary, *values.shape[1:])
        logits = graph.expand(graph.make("mul_mat", shape, values))
        logits.is_output = True
    graph.expand(values)
    values.is_output = True
    if pooling == "mean":
        turned = graph.contiguous(graph.transpose(values))
        mean = graph.input(build.batch.tokens, build.batch.sequences)
        graph.expand(graph.matmul(turned, mean))
    elif pooling in ("cls", "last", "rank"):
        graph.expand(graph.rows(values, graph.input(build.batch.sequences)))


def _final_norm(build: Build, values: Tensor) -> Tensor:
    """Return the output rows, normalised; what others could draft from is kept."""
    graph, rows_at = build.graph, build.shape.traits.rows_at
    if rows_at == "before_norm":
        values.is_output = True
        values = graph.rows(values, build.inputs["outputs"])
    name = "output_norm" if has_norm(build, "output_norm") else "token_embd_norm"
    values = norm(build, values, name)
    if rows_at == "after_norm":
        values.is_output = True
        values = graph.rows(values, build.inputs["outputs"])
    return values
