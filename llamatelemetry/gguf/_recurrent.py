"""Layers that keep a state of fixed size instead of a cache of tokens.

Source: src/models/mamba-base.cpp, delta-net-base.cpp, qwen35.cpp and lfm2.cpp of
llama.cpp (b11434).
"""

from __future__ import annotations

from llamatelemetry.gguf._build import Build, biased, norm, project
from llamatelemetry.gguf._graph import Axes, Tensor
from llamatelemetry.gguf._shape import Layer


def recurrent(build: Build, layer: Layer, values: Tensor) -> Tensor:
    """The layer that keeps a state, of whichever kind the architecture has."""
    kind = build.shape.traits.recurrent
    return _RECURRENT[kind](build, layer.index, values)


def _state(
    build: Build, elements: int, *, gather: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return a layer's states in the cache, and a copy of this batch's."""
    graph, sequences = build.graph, build.batch.sequences
    kept = graph.weight(elements, sequences)
    rows = graph.view(kept, (elements, sequences))
    cleared = graph.view(rows, (elements,))
    graph.expand(graph.store(cleared, cleared))
    places = build.inputs["state_rows" if gather is None else "state_rest"]
    everything = graph.rows(rows, places)
    states = gather
    if states is None:
        states = graph.view(everything, (elements, sequences), everything.strides[1:2])
    graph.expand(states)
    extra = graph.view(everything, (elements, 0), everything.strides[1:2])
    graph.expand(graph.store(graph.view(kept, (elements, 0)), extra))
    return kept, states


def _convolved(
    build: Build, layer: int, values: Tensor, channels: int, name: str
) -> Tensor:
    """Put the last tokens before the new ones, keep the newest, and convolve."""
    graph, sequences = build.graph, build.batch.sequences
    weight = build.need(f"blk.{layer}.{name}.weight")
    before = weight.shape[0] - 1
    elements = before * channels
    kept, states = _state(build, elements)
    states = graph.view(states, (before, channels, sequences))
    line = graph.concatenate(states, values)
    last = graph.view(line, (before, channels, sequences), line.strides[1:3])
    graph.expand(graph.store(graph.view(kept, (elements, sequences)), last))
    steps = line.shape[0] - before
    return graph.make("ssm_conv", (channels, steps, sequences), line, weight)


def _short_convolution(build: Build, layer: int, values: Tensor) -> Tensor:
    graph, batch = build.graph, build.batch
    width, steps = values.shape[0], batch.tokens // batch.sequences
    values = graph.view(values, (width, steps, batch.sequences))
    three = project(build, layer, "shortconv.in_proj", values)
    first, second, third = (
        graph.view(three, (width, steps, batch.sequences), three.strides[1:3])
        for _ in range(3)
    )
    line = graph.transpose(graph.make("mul", first.shape, first, third))
    result = _convolved(build, layer, line, width, "shortconv.conv")
    result = graph.make("mul", second.shape, second, result)
    result = project(build, layer, "shortconv.out_proj", result)
    return graph.view(result, (result.shape[0], batch.tokens))


def _mamba(build: Build, layer: int, values: Tensor) -> Tensor:
    graph, batch, shape = build.graph, build.batch, build.shape
    inner, state = shape.number("ssm.inner_size"), shape.number("ssm.state_size")
    rank = shape.number("ssm.time_step_rank")
    sequences, steps = batch.sequences, batch.tokens // batch.sequences
    whole = (inner, steps, sequences)
    values = graph.view(values, (values.shape[0], steps, sequences))
    both = project(build, layer, "ssm_in", values)
    line = graph.view(both, whole, both.strides[1:3])
    gate = graph.view(both, whole, both.strides[1:3])
    line = _convolved(build, layer, graph.transpose(line), inner, "ssm_conv1d")
    line = biased(build, line, build.part(layer, "ssm_conv1d.bias"))
    line = graph.like("unary", line)
    three = graph.matmul(build.need(f"blk.{layer}.ssm_x.weight"), line)
    steps_in = graph.view(three, (rank, steps, sequences), three.strides[1:3])
    first, second = (
        graph.view(three, (state, 1, steps, sequences),
                   (state * 4, three.strides[1], three.strides[2]))
        for _ in range(2)
    )  # fmt: skip
    step = graph.matmul(
        build.need(f"blk.{layer}.ssm_dt.weight"), graph.contiguous(steps_in)
    )
    step = biased(build, step, build.part(layer, "ssm_dt.bias"))
    heads = graph.view(line, (1, inner, steps, sequences))
    result = _scanned(build, layer, heads, step, first, second)
    seen = graph.view(result, whole)
    skipped = graph.like("mul", line, build.part(layer, "ssm_d"))
    seen = graph.like("add", seen, skipped)
    seen = graph.make("glu", whole, graph.contiguous(gate), seen)
    out = project(build, layer, "ssm_out", seen)
    return graph.view(out, (out.shape[0], batch.tokens))


def _scanned(
    build: Build, layer: int, line: Tensor, step: Tensor, *states: Tensor
) -> Tensor:
    """Run the state through the tokens, and keep it."""
    graph, sequences = build.graph, build.batch.sequences
    _, elements = build.shape.state_elements()
    table = graph.weight(elements, sequences)
    weight = build.part(layer, "ssm_a")
    result = graph.make(
        "ssm_scan", (line.elements + elements * sequences,),
        graph.view(table, (elements, sequences)), line, step, weight, *states,
        build.inputs["state_now"],
    )  # fmt: skip
    kept, _ = _state(build, elements, gather=result)
    last = graph.view(result, (elements, sequences))
    graph.expand(graph.store(graph.view(kept, (elements, sequences)), last))
    return result


def _mamba2(build: Build, layer: int, values: Tensor) -> Tensor:
    graph, batch, shape = build.graph, build.batch, build.shape
    inner, state = shape.number("ssm.inner_size"), shape.number("ssm.state_size")
    heads, groups = shape.number("ssm.time_step_rank"), shape.number("ssm.group_count")
    sequences, steps = batch.sequences, batch.tokens // batch.sequences
    length, channels = inner // heads, inner + 2 * groups * state
    split = (length, heads, steps, sequences)
    line = project(build, layer, "ssm_in", values)
    line = graph.view(line, (line.shape[0], steps, sequences))
    _, row, plane, _ = line.strides
    gate = graph.view(line, split, (length * 4, row, plane))
    mixed = graph.view(line, (channels, steps, sequences), (row, plane))
    step = graph.view(line, (heads, steps, sequences), (row, plane))
    mixed = _convolved(build, layer, graph.transpose(mixed), channels, "ssm_conv1d")
    mixed = biased(build, mixed, build.part(layer, "ssm_conv1d.bias"))
    mixed = graph.like("unary", mixed)
    _, row, plane, _ = mixed.strides
    main = graph.view(mixed, split, (length * 4, row, plane))
    first, second = (
        graph.view(mixed, (state, groups, steps, sequences), (state * 4, row, plane))
        for _ in range(2)
    )
    step = biased(build, graph.contiguous(step), build.part(layer, "ssm_dt.bias"))
    result = _scanned(build, layer, main, step, first, second)
    seen = graph.view(result, split)
    skipped = graph.make("mul", split, main, build.part(layer, "ssm_d"))
    seen = graph.like("add", seen, skipped)
    seen = graph.make("glu", split, graph.contiguous(gate), seen)
    if shape.has(layer, "ssm_norm.weight"):
        seen = graph.view(seen, (inner // groups, groups, steps, sequences))
        seen = norm(build, seen, f"blk.{layer}.ssm_norm", "rms_norm")
    seen = graph.view(seen, (inner, batch.tokens))
    return project(build, layer, "ssm_out", seen)


def _delta_net(build: Build, layer: int, values: Tensor) -> Tensor:
    graph, batch, shape = build.graph, build.batch, build.shape
    inner, length = shape.number("ssm.inner_size"), shape.number("ssm.state_size")
    heads, groups = shape.number("ssm.time_step_rank"), shape.number("ssm.group_count")
    sequences, steps = batch.sequences, batch.tokens // batch.sequences
    split = (length, heads, steps, sequences)
    mixed = project(build, layer, "attn_qkv", values)
    mixed = graph.view(mixed, (mixed.shape[0], steps, sequences))
    gate = project(build, layer, "attn_gate", values)
    gates = _decay_and_beta(build, layer, values)
    channels = inner + 2 * groups * length
    line = _convolved(build, layer, graph.transpose(mixed), channels, "ssm_conv1d")
    _, elements = shape.state_elements()
    kept, state = _state(build, elements)
    state = graph.view(state, (length, length, heads, sequences))
    line = graph.like("unary", line)
    strides = (length * line.item, line.strides[1], line.strides[2])
    query, key = (_query_or_key(build, line, split, strides) for _ in range(2))
    value = graph.view(line, split, strides)
    rows = (steps + length) * sequences
    result = graph.make(
        "delta_net", (length * heads, rows), query, key, value, *gates, state
    )
    seen = graph.view(result, split)
    last = graph.view(result, (length, length, heads, sequences))
    graph.expand(graph.store(graph.view(kept, (elements, sequences)), last))
    seen = norm(build, seen, f"blk.{layer}.ssm_norm", "rms_norm")
    seen = graph.like("mul", seen, graph.like("unary", graph.view(gate, split)))
    seen = graph.view(seen, (inner, steps, sequences))
    out = project(build, layer, "ssm_out", seen)
    return graph.view(out, (out.shape[0], batch.tokens))


def _query_or_key(
    build: Build, line: Tensor, split: Axes, strides: tuple[int, ...]
) -> Tensor:
    """Return the queries or the keys of a delta net, as many as it has heads."""
    graph, shape = build.graph, build.shape
    length, heads, steps, sequences = split
    groups = shape.number("ssm.group_count")
    part = graph.view(line, (length, groups, steps, sequences), strides)
    part = graph.like("scale", graph.like("rms_norm", part))
    if not shape.traits.repeats_heads or groups == heads:
        return part
    flat = (length, 1, groups, steps * sequences)
    whole = (length, heads // groups, groups, steps * sequences)
    return graph.view(graph.make("repeat", whole, graph.view(part, flat)), split)


def _decay_and_beta(build: Build, layer: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return how fast a delta net's state fades, and how much is written to it."""
    graph, batch = build.graph, build.batch
    heads = build.shape.number("ssm.time_step_rank")
    sequences, steps = batch.sequences, batch.tokens // batch.sequences
    each = (1, heads, steps, sequences)
    if build.shape.has(layer, "ssm_ba.weight"):  # both from one matrix
        groups = build.shape.number("ssm.group_count")
        both = graph.matmul(build.need(f"blk.{layer}.ssm_ba.weight"), values)
        both = graph.view(both, (2 * heads // groups, groups, steps, sequences))
        half = (heads // groups, groups, steps, sequences)
        beta = graph.contiguous(graph.view(both, half, both.strides[1:]))
        beta = graph.view(graph.like("unary", beta), each)
        alpha = graph.contiguous(graph.view(both, half, both.strides[1:]), *each[1:])
    else:
        beta = graph.matmul(build.need(f"blk.{layer}.ssm_beta.weight"), values)
        beta = graph.like("unary", graph.view(beta, each))
        alpha = graph.matmul(build.need(f"blk.{layer}.ssm_alpha.weight"), values)
        alpha = graph.view(alpha, each[1:])
    alpha = biased(build, alpha, build.part(layer, "ssm_dt.bias"))
    alpha = graph.like("mul", graph.like("unary", alpha), build.part(layer, "ssm_a"))
    return graph.view(alpha, each), beta


_RECURRENT = {
    "mamba": _mamba,
    "mamba2": _mamba2,
    "delta_net": _delta_net,
    "short_convolution": _short_convolution,
}
