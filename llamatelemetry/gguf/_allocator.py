"""How much memory ggml's allocator reserves for a graph.

The rule is ggml's own (ggml/src/ggml-alloc.c, b11434), followed step by step: inputs
first, then each node in order, in the smallest free block that is large enough, in the
place of a source that nobody needs any more where the operation allows it; what nobody
needs any more is freed. The figure that comes out is the compute buffer's.
"""

from __future__ import annotations

from bisect import bisect_left

from llamatelemetry.gguf._graph import IN_PLACE, Graph, Tensor

CPU_ALIGNMENT = 32
"""Bytes; TENSOR_ALIGNMENT in ggml/src/ggml-backend.cpp."""

CUDA_ALIGNMENT = 128
"""Bytes; ggml_backend_cuda_buffer_type_get_alignment in ggml/src/ggml-cuda."""

_ENDLESS = 1 << 62


def reserved_bytes(graph: Graph, alignment: int = CPU_ALIGNMENT) -> int:
    """Return the size of the buffer that a graph needs, in bytes."""
    allocation = _Allocation(alignment)
    return allocation.run(graph)


class _Memory:
    """Free blocks of one buffer that can grow, in order of their offsets."""

    def __init__(self, alignment: int) -> None:
        self._alignment = alignment
        self._offsets = [0]
        self._sizes = [_ENDLESS]
        self.most = 0

    def aligned(self, size: int) -> int:
        return -(-size // self._alignment) * self._alignment

    def take(self, size: int) -> int:
        """Return the offset of a block of this size."""
        size = self.aligned(size)
        sizes = self._sizes
        best, best_size = -1, _ENDLESS
        for place in range(len(sizes) - 1):
            if size <= sizes[place] <= best_size:
                best, best_size = place, sizes[place]
        if best < 0:
            best = len(sizes) - 1
        offset = self._offsets[best]
        self._offsets[best] += size
        sizes[best] -= size
        if sizes[best] == 0:
            del sizes[best], self._offsets[best]
        self.most = max(self.most, offset + size)
        return offset

    def give_back(self, offset: int, size: int) -> None:
        """Free a block, and join it with its free neighbours."""
        size = self.aligned(size)
        if size == 0:
            return
        offsets, sizes = self._offsets, self._sizes
        place = bisect_left(offsets, offset)
        if place > 0 and offsets[place - 1] + sizes[place - 1] == offset:
            place -= 1
            sizes[place] += size
        elif place < len(offsets) and offset + size == offsets[place]:
            offsets[place] = offset
            sizes[place] += size
            return
        else:
            offsets.insert(place, offset)
            sizes.insert(place, size)
            return
        following = place + 1
        if (
            following < len(offsets)
            and offsets[place] + sizes[place] == offsets[following]
        ):
            sizes[place] += sizes[following]
            del offsets[following], sizes[following]


class _Allocation:
    """Where the tensors of one graph lie, and who still needs them."""

    def __init__(self, alignment: int) -> None:
        self._memory = _Memory(alignment)
        self._offset: dict[Tensor, int] = {}
        self._owned: set[Tensor] = set()
        self._children: dict[Tensor, int] = {}
        self._views: dict[Tensor, int] = {}

    def run(self, graph: Graph) -> int:
        for leaf in graph.leaves:
            self._place(leaf)
        for node in graph.nodes:
            if node.base is not None:
                self._views[node.base] = self._views.get(node.base, 0) + 1
            for source in node.sources:
                self._children[source] = self._children.get(source, 0) + 1
        for node in graph.nodes:
            self._place(node)
            for source in node.sources:
                self._release(source)
        return self._memory.most

    def _place(self, tensor: Tensor) -> None:
        if tensor.external or tensor.base is not None or tensor in self._owned:
            return
        self._owned.add(tensor)
        if tensor.operation in IN_PLACE and self._reuse(tensor):
            return
        self._offset[tensor] = self._memory.take(tensor.size)

    def _reuse(self, tensor: Tensor) -> bool:
        """Put a result where one of its sources lies, if that is its last use.

        A source that is a view is never reused: ggml asks whether the view itself was
        allocated, which views never are.
        """
        for source in tensor.sources:
            if (
                source not in self._owned
                or source.is_output
                or source.shape != tensor.shape
                or source.strides != tensor.strides
                or self._children[source] != 1
                or self._views.get(source, 0) != 0
            ):
                continue
            self._offset[tensor] = self._offset[source]
            self._owned.discard(source)
            return True
        return False

    def _release(self, source: Tensor) -> None:
        self._children[source] -= 1
        if self._children[source] or self._views.get(source, 0):
            return
        owner = source
        if source.base is not None:
            owner = source.base
            self._views[owner] -= 1
            if self._views[owner] or self._children.get(owner, 0):
                return
        if owner in self._owned and not owner.is_output:
            self._owned.discard(owner)
            self._memory.give_back(self._offset[owner], owner.size)
