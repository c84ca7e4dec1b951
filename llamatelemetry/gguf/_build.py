"""The parts that models are built from, as llama.cpp builds them.

Each function adds one part to a graph and returns its result. What a layer has is read
from the model's tensors, so that biases, norms and gates that are there count, and
others do not. Source: src/llama-graph.cpp and src/models/ of llama.cpp (b11434).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llamatelemetry.gguf._graph import Graph, Tensor
from llamatelemetry.gguf._shape import ModelShape


@dataclass(frozen=True, slots=True)
class Batch:
    """What one graph computes at once.

    Attributes:
        tokens: Tokens; a multiple of ``sequences``.
        sequences: Sequences they belong to.
        outputs: Tokens whose logits or embeddings are wanted.
        streams: Separate parts of the cache: one per slot, or one shared by all.
        cells: Cache cells of one stream.
        window_cells: The same for layers with a sliding window.
        flash: Whether attention is computed by one operation.
        rotates_keys: Whether keys are rotated before they are quantized.
        rotates_values: Whether values are.
        casts_keys: Whether flash attention gets a copy of the keys in f16.
        casts_values: The same for values.
        copies_keys: Whether attention needs quantized keys as f16, as on CUDA.
        copies_values: The same for values.
        embedded: Whether the embeddings were looked up elsewhere: on the host.
        embeddings: Whether embeddings are asked for.
    """

    tokens: int
    sequences: int
    outputs: int
    streams: int
    cells: int
    window_cells: int
    flash: bool
    rotates_keys: bool = False
    rotates_values: bool = False
    casts_keys: bool = False
    casts_values: bool = False
    copies_keys: bool = False
    copies_values: bool = False
    embedded: bool = False
    embeddings: bool = False


@dataclass
class Build:
    """A graph under construction, and what it is for.

    Attributes:
        shape: The model.
        batch: What is computed.
        graph: What there is so far.
        inputs: Inputs that the layers share, by name.
    """

    shape: ModelShape
    batch: Batch
    graph: Graph = field(default_factory=Graph)
    inputs: dict[str, Tensor] = field(default_factory=dict)

    def weight(self, name: str) -> Tensor | None:
        """Return a weight, or None where the model has none of this name."""
        shape = self.shape.tensors.get(name)
        return None if shape is None else self.graph.weight(*shape)

    def need(self, name: str) -> Tensor:
        """Return a weight that the architecture cannot do without.

        Raises:
            KeyError: The file has none.
        """
        return self.graph.weight(*self.shape.tensors[name])

    def part(self, layer: int, name: str) -> Tensor | None:
        """Return a layer's weight, or None."""
        return self.weight(f"blk.{layer}.{name}")


def project(build: Build, layer: int, name: str, values: Tensor) -> Tensor:
    """Multiply by a layer's matrix and add its bias."""
    result = build.graph.matmul(build.need(f"blk.{layer}.{name}.weight"), values)
    return biased(build, result, build.part(layer, f"{name}.bias"))


def biased(build: Build, values: Tensor, bias: Tensor | None) -> Tensor:
    """Add a bias, where there is one."""
    return values if bias is None else build.graph.like("add", values, bias)


def norm(build: Build, values: Tensor, name: str, operation: str = "") -> Tensor:
    """Normalise, and apply the weight and the bias of this name that are there."""
    graph = build.graph
    result = graph.like(operation or build.shape.traits.norm, values)
    weight = build.weight(f"{name}.weight")
    if weight is not None:
        result = graph.like("mul", result, weight)
    return biased(build, result, build.weight(f"{name}.bias"))


def has_norm(build: Build, name: str) -> bool:
    """Return whether the model has a norm of this name."""
    return f"{name}.weight" in build.shape.tensors
