"""llama.cpp's computation graph, as sizes only.

A compute buffer is as large as llama.cpp's allocator makes it for one graph, so the
way to know it is to have the graph. Here are tensors without values, the operations
that the models are built from, and the order in which ggml computes them (a walk over
the sources from left to right:
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml.c).

Shapes have four axes, the fastest first, as in ggml. Sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

Axes = tuple[int, int, int, int]

# Operations whose result may lie where one of their sources lay.
# Source: ggml_op_can_inplace in ggml/src/ggml-alloc.c (b11434).
IN_PLACE = frozenset({"add", "mul", "scale", "unary", "rope", "rms_norm", "clamp",
                      "soft_max", "div", "fill"})  # fmt: skip


class Tensor:
    """One tensor of a graph.

    Attributes:
        operation: What makes it; empty for what is there before the graph runs.
        shape: Its four axes.
        strides: Bytes between two neighbours along each axis.
        item: Bytes of one element.
        size: Bytes, where the tensor is allocated by itself.
        sources: What it is computed from.
        base: The tensor whose memory a view shows, or None.
        external: Whether it lies in another buffer: weights and caches.
        is_input: Whether it is filled before the graph runs.
        is_output: Whether it is read after the graph has run, so that its place is
            taken by nothing else.
    """

    __slots__ = (
        "base", "external", "is_input", "is_output", "item", "operation", "shape",
        "size", "sources", "strides",
    )  # fmt: skip

    def __init__(
        self,
        operation: str,
        shape: Axes,
        strides: Axes,
        sources: tuple[Tensor, ...] = (),
        *,
        item: int = 4,
        base: Tensor | None = None,
        external: bool = False,
        is_input: bool = False,
    ) -> None:
        self.operation = operation
        self.shape = shape
        self.strides = strides
        self.item = item
        self.sources = sources
        self.base = base
        self.external = external
        self.is_input = is_input
        self.is_output = False
        self.size = strides[3] * shape[3]

    @property
    def elements(self) -> int:
        """How many elements there are."""
        first, second, third, fourth = self.shape
        return first * second * third * fourth

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie one after another."""
        return self.strides == packed(self.shape, self.item)


def axes(shape: Sequence[int]) -> Axes:
    """Return a shape with all four axes."""
    first, second, third, fourth = (*shape, 1, 1, 1, 1)[:4]
    return first, second, third, fourth


def packed(shape: Axes, item: int) -> Axes:
    """Return the strides of elements that lie one after another."""
    second = item * shape[0]
    third = second * shape[1]
    return item, second, third, third * shape[2]


class Graph:
    """A graph that grows by :meth:`expand`; each operation returns its result.

    Attributes:
        nodes: What is computed, in order.
        leaves: What is there before: inputs, weights, caches.
    """

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self._seen: set[Tensor] = set()

    def expand(self, tensor: Tensor) -> Tensor:
        """Add a tensor and, before it, all it is computed from."""
        stack: list[tuple[Tensor, int]] = [(tensor, 0)]
        if tensor in self._seen:
            return tensor
        self._seen.add(tensor)
        while stack:
            current, place = stack.pop()
            sources = current.sources
            while place < len(sources) and sources[place] in self._seen:
                place += 1
            if place < len(sources):
                stack.append((current, place + 1))
                self._seen.add(sources[place])
                stack.append((sources[place], 0))
            elif current.operation:
                self.nodes.append(current)
            else:
                self.leaves.append(current)
        return tensor

    # ── what is there before ─────────────────────────────────────────────────────

    def input(self, *shape: int, item: int = 4) -> Tensor:
        """Return a tensor that is filled before the graph runs."""
        whole = axes(shape)
        return Tensor("", whole, packed(whole, item), item=item, is_input=True)

    def weight(self, *shape: int, item: int = 4) -> Tensor:
        """Return a tensor of another buffer: a weight or a cache."""
        whole = axes(shape)
        return Tensor("", whole, packed(whole, item), item=item, external=True)

    # ── operations ───────────────────────────────────────────────────────────────

    def make(
        self,
        operation: str,
        shape: Sequence[int],
        *sources: Tensor | None,
        item: int = 4,
    ) -> Tensor:
        """Return a new contiguous tensor, of 32-bit elements unless said."""
        whole = axes(shape)
        present = tuple(source for source in sources if source is not None)
        return Tensor(operation, whole, packed(whole, item), present, item=item)

    def like(self, operation: str, first: Tensor, *others: Tensor | None) -> Tensor:
        """Return a new tensor of the shape of the first source."""
        return self.make(operation, first.shape, first, *others, item=first.item)

    def view(
        self, source: Tensor, shape: Sequence[int], strides: Sequence[int] | None = None
    ) -> Tensor:
        """Return another look at the same memory; contiguous unless said."""
        whole = axes(shape)
        if strides is None:
            laid = packed(whole, source.item)
        else:
            given = [source.strides[0], *strides]
            while len(given) < len(whole):
                given.append(given[-1] * whole[len(given) - 1])
            laid = (given[0], given[1], given[2], given[3])
        return self._look(source, whole, laid)

    def permute(self, source: Tensor, *order: int) -> Tensor:
        """Return a view whose axis ``order[i]`` is the source's axis ``i``."""
        shape, strides = [0] * 4, [0] * 4
        for place, target in enumerate(order):
            shape[target] = source.shape[place]
            strides[target] = source.strides[place]
        laid = (strides[0], strides[1], strides[2], strides[3])
        return self._look(source, axes(shape), laid)

    def _look(self, source: Tensor, shape: Axes, strides: Axes) -> Tensor:
        base = source.base or source
        return Tensor("view", shape, strides, (source,), item=source.item, base=base)

    def transpose(self, source: Tensor) -> Tensor:
        """Return a view with the first two axes exchanged."""
        return self.permute(source, 1, 0, 2, 3)

    def store(self, target: Tensor, *sources: Tensor) -> Tensor:
        """Return the result of writing into a target: a view of it."""
        return Tensor(
            "store", target.shape, target.strides, (*sources, target),
            item=target.item, base=target.base or target,
        )  # fmt: skip

    def matmul(self, weight: Tensor, values: Tensor) -> Tensor:
        """Return the product of a matrix, or one per head, and the values."""
        shape = (weight.shape[1], *values.shape[1:])
        return self.make("mul_mat", shape, weight, values)

    def rows(self, source: Tensor, places: Tensor) -> Tensor:
        """Return the rows of a source that are named."""
        shape = (source.shape[0], *places.shape[:3])
        return self.make("get_rows", shape, source, places)

    def concatenate(self, first: Tensor, second: Tensor) -> Tensor:
        """Return two tensors, one after the other along the first axis."""
        shape = (first.shape[0] + second.shape[0], *first.shape[1:])
        return self.make("concat", shape, first, second)

    def contiguous(self, source: Tensor, *shape: int) -> Tensor:
        """Return a copy whose elements lie one after another."""
        return self.make("cont", shape or source.shape, source, item=source.item)
