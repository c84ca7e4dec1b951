"""Feed forward and mixtures of experts, as llama.cpp builds them.

Source: ``build_ffn`` and ``build_moe_ffn`` in src/llama-graph.cpp (b11434).
"""

from __future__ import annotations

from llamatelemetry.gguf._build import Build, biased, norm, project
from llamatelemetry.gguf._graph import Tensor


def feed_forward(build: Build, layer: int, values: Tensor, ending: str = "") -> Tensor:
    """Up, gate where there is one, and down."""
    graph = build.graph
    up = project(build, layer, f"ffn_up{ending}", values)
    down = build.need(f"blk.{layer}.ffn_down{ending}.weight")
    if build.shape.has(layer, f"ffn_gate{ending}.weight"):
        gate = project(build, layer, f"ffn_gate{ending}", values)
        hidden = graph.like("glu", gate, up)
    elif up.shape[0] == 2 * down.shape[0]:  # gate and up in one matrix
        hidden = graph.make("glu", (down.shape[0], *up.shape[1:]), up)
    else:
        hidden = graph.like("unary", up)
    return project(build, layer, f"ffn_down{ending}", hidden)


def experts(build: Build, layer: int, values: Tensor) -> Tensor:
    """A mixture of experts, and the shared expert where there is one."""
    mixed = _mixture(build, layer, values)
    if not build.shape.has(layer, "ffn_up_shexp.weight"):
        return mixed
    graph = build.graph
    shared = feed_forward(build, layer, values, "_shexp")
    if build.shape.has(layer, "ffn_gate_inp_shexp.weight"):
        gate = project(build, layer, "ffn_gate_inp_shexp", values)
        shared = graph.like("mul", shared, graph.like("unary", gate))
    return graph.like("add", mixed, shared)


def parallel_experts(build: Build, layer: int, values: Tensor) -> Tensor:
    """A dense feed forward beside the experts, as in Gemma 4; each has its norms."""
    graph, name = build.graph, f"blk.{layer}"
    dense = feed_forward(build, layer, norm(build, values, f"{name}.ffn_norm"))
    dense = norm(build, dense, f"{name}.post_ffw_norm_1")
    normed = norm(build, values, f"{name}.pre_ffw_norm_2")
    seen = graph.like("scale", graph.like("rms_norm", values))
    seen = graph.like("mul", seen, build.part(layer, "ffn_gate_inp.scale"))
    logits = project(build, layer, "ffn_gate_inp", seen)
    mixed = _mixture(build, layer, normed, logits)
    return graph.like("add", dense, norm(build, mixed, f"{name}.post_ffw_norm_2"))


def _mixture(
    build: Build, layer: int, values: Tensor, logits: Tensor | None = None
) -> Tensor:
    graph, shape = build.graph, build.shape
    tokens, used = values.shape[1], shape.number("expert_used_count")
    if logits is None:
        logits = project(build, layer, "ffn_gate_inp", values)
    chosen, weights = _route(build, layer, logits, used)
    graph.expand(weights)
    spread = graph.view(values, (values.shape[0], 1, tokens))

    def per_expert(name: str, source: Tensor) -> Tensor:
        matrix = build.need(f"blk.{layer}.{name}.weight")
        result = graph.make(
            "mul_mat_id", (matrix.shape[1], used, tokens), matrix, source, chosen
        )
        bias = build.part(layer, f"{name}.bias")
        return result if bias is None else graph.like("add", result, bias, chosen)

    if shape.has(layer, "ffn_gate_up_exps.weight"):
        both = per_expert("ffn_gate_up_exps", spread)
        half = (both.shape[0] // 2, used, tokens)
        gate = graph.view(both, half, both.strides[1:3])
        up = graph.view(both, half, both.strides[1:3])
        hidden = graph.make("glu", half, gate, up)
    else:
        up = per_expert("ffn_up_exps", spread)
        if shape.has(layer, "ffn_gate_exps.weight"):
            hidden = graph.like("glu", per_expert("ffn_gate_exps", spread), up)
        else:
            hidden = graph.like("unary", up)
    mixed = graph.like("mul", per_expert("ffn_down_exps", hidden), weights)
    return _summed(build, graph.expand(mixed))


def _route(
    build: Build, layer: int, logits: Tensor, used: int
) -> tuple[Tensor, Tensor]:
    """Return which experts are used for each token, and their weights."""
    graph, shape = build.graph, build.shape
    tokens = logits.shape[1]
    gating = shape.traits.gating
    if shape.number("expert_gating_func") == 2:  # noqa: PLR2004 - sigmoid, in llama.h
        gating = "unary"
    scores = logits if gating == "late" else graph.like(gating, logits)
    selection = biased(build, scores, build.part(layer, "exp_probs_b.bias"))
    order = graph.like("argsort", selection)
    chosen = graph.view(order, (used, tokens), order.strides[1:2])
    table = graph.view(scores, (1, scores.shape[0], tokens))
    weights = graph.make("get_rows", (1, used, tokens), table, chosen)
    flat, column = (used, tokens), (1, used, tokens)
    if gating == "late":
        weights = graph.like("soft_max", graph.view(weights, flat))
        weights = graph.view(weights, column)
    if bool(shape.get("expert_weights_norm", shape.traits.normalises_experts)):
        weights = graph.view(weights, flat)
        total = graph.make("sum_rows", (1, tokens), weights)
        total = graph.like("clamp", total)
        weights = graph.view(graph.like("div", weights, total), column)
    if float(shape.get("expert_weights_scale", 0.0)) not in (0.0, 1.0):
        weights = graph.like("scale", weights)
    return chosen, weights


def _summed(build: Build, mixed: Tensor) -> Tensor:
    """Add up what the experts of each token said."""
    graph = build.graph
    width, used, tokens, _ = mixed.shape
    parts = [
        graph.expand(graph.view(mixed, (width, tokens), mixed.strides[2:3]))
        for _ in range(used)
    ]
    result = parts[0]
    for part in parts[1:]:
        result = graph.expand(graph.make("add", (width, tokens), result, part))
    return graph.contiguous(result) if used == 1 else result
