"""What of a model lies where: on which card, or on the host."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from llamatelemetry._units import MIB
from llamatelemetry.exceptions import ModelError
from llamatelemetry.gguf import _sizes
from llamatelemetry.gguf._allocator import (
    CPU_ALIGNMENT,
    CUDA_ALIGNMENT,
    reserved_bytes,
)
from llamatelemetry.gguf._build import Batch
from llamatelemetry.gguf._cards import GPU, chosen_gpus, margin_bytes
from llamatelemetry.gguf._graph import Graph
from llamatelemetry.gguf._html import printable
from llamatelemetry.gguf._model import build_graph
from llamatelemetry.gguf._settings import Settings, has_flag
from llamatelemetry.gguf._shape import Layer, ModelShape
from llamatelemetry.gguf.quantization import GGML_TYPES
from llamatelemetry.gguf.reader import GGUFHeader, TensorInfo, read_header
from llamatelemetry.server.config import ServerConfig

_PIPELINE_COPIES = 4
"""Copies of the inputs where all layers lie on several cards.

Source: GGML_SCHED_MAX_COPIES and https://github.com/ggml-org/llama.cpp/issues/24355;
not measured, which takes two cards.
"""

_ROW_STEP = 512  # quantized rows are padded to this on CUDA: MATRIX_ROW_PADDING
_REPACKED = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
_NOT_LOADED = -1  # the home of tensors that a server leaves in the file
_REPACKED_ROWS = 8
# Tensors that stay on the host: they are looked up, not multiplied by.
_LOOKED_UP = frozenset({"token_embd", "token_types", "position_embd",
                        "per_layer_token_embd"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """What one device holds, in bytes.

    Attributes:
        name: "CUDA0", or "host".
        free: Bytes that are free; None where that is not known or has no limit.
        known: Whether the figures are of a kind that was compared with llama.cpp.
        weights: The model's tensors.
        kv_cache: Keys and values, and the states of recurrent layers.
        compute: What is in between while tokens are computed.
        output: Logits and embeddings handed out; on the host.
        cuda: What CUDA itself takes.
        projector: The multimodal projector.
        adapters: LoRA adapters.
        repacked: A second form of the weights that CPUs multiply faster by.
        prompt_cache: Cached prompts, at most; on the host.

    Examples:
        >>> from llamatelemetry.gguf import plan_memory
        >>> card = plan_memory("qwen3-14b", gpus="15").devices[0]
        >>> card.name, sorted(card.parts)
        ('CUDA0', ['compute', 'cuda', 'kv_cache', 'weights'])
        >>> card.needed == sum(card.parts.values())
        True
    """

    name: str
    free: int | None = None
    known: bool = False
    weights: int = 0
    kv_cache: int = 0
    compute: int = 0
    output: int = 0
    cuda: int = 0
    projector: int = 0
    adapters: int = 0
    repacked: int = 0
    prompt_cache: int = 0

    @property
    def is_gpu(self) -> bool:
        """Whether it is a card."""
        return self.name != "host"

    @property
    def parts(self) -> dict[str, int]:
        """The bytes of each part that is not zero, by its name."""
        names = [item.name for item in fields(self)][3:]
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @property
    def needed(self) -> int:
        """Bytes in sum."""
        return sum(self.parts.values())

    @property
    def margin(self) -> int:
        """Bytes that are to stay free besides; none on the host."""
        return margin_bytes(self.needed) if self.is_gpu else 0

    @property
    def left(self) -> int | None:
        """Bytes that stay free, margin and all; negative if it does not fit."""
        return None if self.free is None else self.free - self.needed - self.margin


@dataclass(frozen=True)
class Request:
    """Everything a plan is made from.

    Attributes:
        header: The model's header.
        shape: Its shape.
        config: The configuration.
        gpus: The cards there are, in CUDA's order; None for as many as are asked for.
        build: llama.cpp's build number; None for today's.
        cuda_context: Bytes CUDA takes on a card.
        host_free: Bytes of host memory to stay within; None for no limit.
        scaled_to: Bytes of another file that the tensors were scaled to; None for
            the sizes of the header.
        beside: Bytes of projectors and adapters whose headers were read already.
        graphs: Bytes that were worked out from graphs already. A search for what fits
            asks for the same ones under many configurations.
    """

    header: GGUFHeader = field(repr=False)
    shape: ModelShape = field(repr=False)
    config: ServerConfig
    gpus: tuple[GPU, ...] | None
    build: int | None
    cuda_context: int
    host_free: int | None = None
    scaled_to: int | None = None
    beside: dict[str, int] = field(default_factory=dict, repr=False, compare=False)
    graphs: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def known(self) -> bool:
        """Whether plans like this one were compared with llama.cpp."""
        return self.shape.traits.known and self.buildable and self.scaled_to is None

    @cached_property
    def cards(self) -> tuple[GPU, ...]:
        """The cards the configuration uses."""
        return chosen_gpus(self.config, self.gpus)

    @property
    def buildable(self) -> bool:
        """Whether the model's graph can be built from its tensors."""
        return self.input_bytes is not None

    @cached_property
    def input_bytes(self) -> int | None:
        """Bytes that are filled before a prompt's graph runs; None without a graph."""
        prompt, _ = self.settings.batches(self.shape)
        if prompt not in self.graphs:
            graph = _graph(self.shape, prompt)
            self.graphs[prompt] = None if graph is None else _input_bytes(graph)
        size: int | None = self.graphs[prompt]
        return size

    @cached_property
    def settings(self) -> Settings:
        """What the configuration comes to."""
        return Settings.of(self.shape, self.config, build=self.build)


def places(request: Request) -> tuple[Place, ...]:
    """Return what each card holds, and last the host."""
    config, shape, gpus = request.config, request.shape, request.cards
    homes = _sizes.split_layers(
        shape.number("block_count"), config.n_gpu_layers, _shares(config, gpus)
    )
    homes = [*homes[: shape.layer_count], homes[-1]]
    cards = [_card(request, homes, number) for number in range(len(gpus))]
    return (*cards, _host(request, homes))


def _shares(config: ServerConfig, gpus: Sequence[GPU]) -> list[float]:
    if config.tensor_split and config.split_mode != "none":
        given = [float(share) for share in config.tensor_split.split(",")]
        given = (given + [0.0] * len(gpus))[: len(gpus)]
        if any(given):
            return given
    if any(gpu.free_bytes is None for gpu in gpus):
        return [1.0] * len(gpus)
    return [float(gpu.free_bytes or 0) for gpu in gpus]


def _layers_at(
    shape: ModelShape, homes: Sequence[int | None], home: int | None
) -> list[Layer]:
    return [layer for layer in shape.layers if homes[layer.index] == home]


def _card(request: Request, homes: Sequence[int | None], number: int) -> Place:
    shape, config, settings = request.shape, request.config, request.settings
    gpu = request.cards[number]
    layers = _layers_at(shape, homes, number)
    weights = sum(
        _padded(tensor)
        for tensor in request.header.tensors
        if _home(request, tensor, homes) == number
    )
    if homes[-1] == number and "output.weight" not in shape.tensors:
        table = request.header.tensor("token_embd.weight")
        if table is not None and shape.traits.cache:  # tied: the card has its own
            weights += _padded(table)
    cached = 0
    if not has_flag(config.extra_args, "--no-kv-offload", "-nkvo"):
        cached = _kept(request, layers)
    first = number == 0
    return Place(
        name=f"CUDA{gpu.index}",
        free=gpu.free_bytes,
        weights=weights,
        kv_cache=cached,
        compute=_card_compute(request, settings, homes, number),
        cuda=request.cuda_context,
        projector=_projector_bytes(request) if first else 0,
        adapters=_share_of_adapters(request, len(layers)),
    )


def _host(request: Request, homes: Sequence[int | None]) -> Place:
    shape, config, settings = request.shape, request.config, request.settings
    layers = _layers_at(shape, homes, None)
    held = [
        tensor
        for tensor in request.header.tensors
        if _home(request, tensor, homes) is None
    ]
    repacked = [tensor for tensor in held if _is_repacked(request, tensor, homes)]
    cached = _kept(request, layers)
    if has_flag(config.extra_args, "--no-kv-offload", "-nkvo"):
        cached = _kept(request, shape.layers)
    alone = not request.cards
    return Place(
        name="host",
        free=request.host_free,
        known=alone and request.known and request.build is None,
        weights=_host_weights(request, held, repacked),
        kv_cache=cached,
        compute=_host_compute(request, settings, homes),
        output=_sizes.output_bytes(shape, settings),
        projector=_projector_bytes(request) if alone else 0,
        adapters=_share_of_adapters(request, len(layers)),
        repacked=sum(tensor.n_bytes for tensor in repacked),
        prompt_cache=(config.cache_ram or 0) * MIB,
    )


def _kept(request: Request, layers: Sequence[Layer]) -> int:
    shape, settings = request.shape, request.settings
    return sum(
        _sizes.cache_bytes(shape, layer, settings)
        + _sizes.state_bytes(shape, layer, settings)
        for layer in layers
    )


# ── weights ──────────────────────────────────────────────────────────────────────


def _home(
    request: Request, tensor: TensorInfo, homes: Sequence[int | None]
) -> int | None:
    """Return the card that holds a tensor, None for the host, or _NOT_LOADED."""
    shape = request.shape
    layer = _sizes.layer_of(tensor)
    if layer is not None:
        if layer >= shape.layer_count:  # drafts tokens ahead
            return _NOT_LOADED
        kept = "_exps" in tensor.name and layer < _experts_on_host(request)
        return None if kept else homes[layer]
    stem = tensor.name.split(".")[0]
    if stem in _LOOKED_UP:
        return None
    at_the_end = stem.startswith(("output", "cls", "dense")) or (
        stem == "token_embd_norm"  # some call their last norm so
        and "output_norm.weight" not in shape.tensors
        and not shape.traits.encoder
    )
    return homes[-1] if at_the_end else homes[0]


def _experts_on_host(request: Request) -> int:
    """Return in how many layers, from the first, the experts stay on the host."""
    arguments = list(request.config.extra_args)
    if has_flag(arguments, "--cpu-moe", "-cmoe"):
        return request.shape.layer_count
    for flag in ("--n-cpu-moe", "-ncmoe"):
        if flag in arguments[:-1]:
            number = arguments[arguments.index(flag) + 1]
            return int(number) if number.isdecimal() else 0
    return 0


def _padded(tensor: TensorInfo) -> int:
    """Return a tensor's bytes on a card.

    Source: ggml_backend_cuda_buffer_type_get_alloc_size (b11434).
    """
    kind, size = GGML_TYPES[tensor.type], tensor.n_bytes
    beyond = tensor.shape[0] % _ROW_STEP
    if kind.block_size > 1 and beyond:
        size += (_ROW_STEP - beyond) // kind.block_size * kind.type_bytes
    return -(-size // CUDA_ALIGNMENT) * CUDA_ALIGNMENT


def _mapped(header: GGUFHeader, tensors: Sequence[TensorInfo]) -> int:
    """Return what stays mapped of the files: from the first tensor to the last."""
    total = 0
    for shard in range(max(len(header.shards), 1)):
        inside = [tensor for tensor in tensors if tensor.shard == shard]
        if inside:
            start = min(tensor.offset for tensor in inside)
            total += max(tensor.offset + tensor.n_bytes for tensor in inside) - start
    return total


def _host_weights(
    request: Request, held: Sequence[TensorInfo], repacked: Sequence[TensorInfo]
) -> int:
    """Return what the host holds of a file, beside the matrices it repacks."""
    moved = {tensor.name for tensor in repacked}
    plain = [tensor for tensor in held if tensor.name not in moved]
    shape = request.shape
    tied = "output.weight" not in shape.tensors
    looked_up = request.header.tensor("token_embd.weight")
    if looked_up is not None and looked_up.name in moved:  # looked up as it stands, too
        plain.append(looked_up)
    if not request.config.no_mmap:
        return _mapped(request.header, plain)
    if tied and shape.traits.output_first and not request.cards and looked_up:
        plain.append(looked_up)
    return _sizes.padded_bytes(plain, CPU_ALIGNMENT)


def _is_repacked(
    request: Request, tensor: TensorInfo, homes: Sequence[int | None]
) -> bool:
    """Whether a CPU with AVX2 keeps a matrix in another form.

    With cards it does so only where their host buffers are turned off. Source:
    ggml_repack_get_optimal_repack_type and make_cpu_buft_list (b11434).
    """
    arguments = request.config.extra_args
    if has_flag(arguments, "--no-repack", "-nr") or (
        request.cards and not has_flag(arguments, "--no-host")
    ):
        return False
    tied = "output.weight" not in request.shape.tensors and homes[-1] is None
    return (
        tensor.type in _REPACKED
        and len(tensor.shape) > 1
        and tensor.shape[1] % _REPACKED_ROWS == 0
        and (
            tensor.name.split(".")[0] not in _LOOKED_UP
            or (tied and tensor.name == "token_embd.weight")
        )
    )


def _bytes_beside(request: Request, path: str, kind: str) -> int:
    """Return the bytes of the tensors of a file beside the model.

    Raises:
        ModelError: There is no such file, or it is of another kind.
    """
    if path not in request.beside:
        header = read_header(path)
        architecture = header.metadata.get("general.architecture")
        said = str(header.metadata.get("general.type", ""))
        if said != kind and (kind != "mmproj" or architecture != "clip"):
            raise ModelError(
                f"{header.source}: is no {kind}, its general.type is "
                f"{printable(said or 'missing')!r}"
            )
        request.beside[path] = sum(tensor.n_bytes for tensor in header.tensors)
    return request.beside[path]


def _projector_bytes(request: Request) -> int:
    path = request.config.mmproj_path
    return 0 if path is None else _bytes_beside(request, os.fspath(path), "mmproj")


def _share_of_adapters(request: Request, layers: int) -> int:
    paths = request.config.lora_paths
    total = sum(_bytes_beside(request, path, "adapter") for path in paths)
    return total * layers // max(request.shape.layer_count, 1)


# ── compute ──────────────────────────────────────────────────────────────────────


def _graph_bytes(
    request: Request,
    batch: Batch,
    layers: Sequence[Layer],
    *,
    ends: bool,
    alignment: int,
    copies: int = 1,
) -> int:
    """Return the compute buffer for some layers.

    A model whose tensors are not those its architecture is built from is estimated.
    """
    pooling, indices = request.settings.pooling, tuple(one.index for one in layers)
    key = (batch, indices, ends, pooling, alignment, copies)
    if key not in request.graphs:
        graph = _graph(request.shape, batch, layers=layers, ends=ends, pooling=pooling)
        request.graphs[key] = (
            _rough_compute(request.shape, batch)
            if graph is None
            else reserved_bytes(graph, alignment) + (copies - 1) * _input_bytes(graph)
        )
    size: int = request.graphs[key]
    return size


def _rough_compute(shape: ModelShape, batch: Batch) -> int:
    """Return the compute buffer of a plain decoder of this size."""
    hidden = max(shape.number("feed_forward_length", 4 * shape.width), shape.width)
    logits = shape.vocabulary if batch.outputs == batch.tokens else 0
    per_token = 4 * (max(logits, 3 * hidden) + 6 * shape.width) + 2 * batch.cells
    if not batch.flash:
        per_token += 4 * batch.cells * shape.number("attention.head_count", 1)
    return batch.tokens * per_token


def _card_compute(
    request: Request, settings: Settings, homes: Sequence[int | None], number: int
) -> int:
    shape, config = request.shape, request.config
    layers = _layers_at(shape, homes, number)
    everything = None not in homes
    several = len(request.cards) > 1 and config.split_mode == "layer"
    copies = _PIPELINE_COPIES if everything and several else 1
    size = max(
        _graph_bytes(
            request, batch, layers, ends=homes[-1] == number,
            alignment=CUDA_ALIGNMENT, copies=copies,
        )
        for batch in settings.batches(shape, on_gpu=True)
    )  # fmt: skip
    if not everything and number == 0:  # the host's matrices pass through the card
        size += max(
            (tensor.n_bytes for tensor in request.header.tensors
             if _home(request, tensor, homes) is None
             and tensor.name.split(".")[0] not in _LOOKED_UP),
            default=0,
        )  # fmt: skip
    return size


def _host_compute(
    request: Request, settings: Settings, homes: Sequence[int | None]
) -> int:
    shape = request.shape
    layers = _layers_at(shape, homes, None)
    size = max(
        _graph_bytes(
            request, batch, layers, ends=homes[-1] is None, alignment=CPU_ALIGNMENT
        )
        for batch in settings.batches(shape)
    )
    # The host fills the inputs that the cards get a copy of.
    return size + (request.input_bytes or 0 if request.cards else 0)


def _input_bytes(graph: Graph) -> int:
    return sum(leaf.size for leaf in graph.leaves if leaf.is_input)


def _graph(shape: ModelShape, batch: Batch, **options: Any) -> Graph | None:
    """Return a graph, or None where the tensors are not those it is built from."""
    try:
        return build_graph(shape, batch, **options)
    except (LookupError, ArithmeticError, ValueError, TypeError):
        return None
