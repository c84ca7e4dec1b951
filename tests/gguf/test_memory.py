"""The memory plan: what a server will need, against what llama.cpp allocated."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from memory_cells import ARGUMENTS, configuration, record
from shapes import Shape, read_shapes, without_last_layers, write_shape

from llamatelemetry._units import GIB, MIB
from llamatelemetry.exceptions import ConfigurationError, GGUFError, ModelError
from llamatelemetry.gguf.memory import (
    CUDA_CONTEXT_BYTES,
    GPU_MARGIN_BYTES,
    GPU_MARGIN_SHARE,
    T4_FREE_BYTES,
    GPUMemory,
    MemoryPlan,
    _last_with_room,
    known_architectures,
    plan_memory,
)
from llamatelemetry.gguf.parser import GGUFParser
from llamatelemetry.gguf.reader import GGUFHeader, read_header
from llamatelemetry.server import ServerConfig, ServerManager
from llamatelemetry.server.events import BufferSize

CELLS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "memory_cells.jsonl")
    .read_text()
    .splitlines()
]
SHAPES = read_shapes()
PRINTED = 0.011  # MiB: llama.cpp prints two decimals
ON_GPU = ServerConfig(None, n_gpu_layers=99, flash_attn=True, context_size=8192)


@pytest.fixture(scope="session")
def header_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], GGUFHeader]:
    """Return a function that gives the header of a shape, read from a sparse file."""
    folder = tmp_path_factory.mktemp("shapes")
    read: dict[str, GGUFHeader] = {}

    def header(name: str) -> GGUFHeader:
        if name not in read:
            path = write_shape(SHAPES[name], folder / f"{name}.gguf", tokens=False)
            read[name] = read_header(path)
            path.unlink()
        return read[name]

    return header


def buffers_of(plan: MemoryPlan) -> dict[str, float]:
    """Return a plan without cards in llama.cpp's words, in MiB."""
    assert plan.devices == ()
    host = plan.host
    return {
        "model": host.weights / MIB,
        "cache": host.kv_cache / MIB,
        "compute": host.compute / MIB,
        "output": host.output / MIB,
    }


def recorded(buffers: dict[str, float]) -> dict[str, float]:
    """Return recorded buffers with one word for both kinds of caches."""
    cache = buffers.get("KV", 0.0) + buffers.get("RS", 0.0)
    return {
        "model": buffers["model"],
        "cache": cache,
        "compute": buffers["compute"],
        "output": buffers["output"],
    }


@pytest.mark.no_cover  # a thousand graphs take four times as long where it is on
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_plans_agree_with_what_llama_cpp_allocated(
    name: str, header_of: Callable[[str], GGUFHeader]
) -> None:
    """Every buffer of every recorded cell of a shape is planned as it was printed."""
    check_cells(header_of(name), [cell for cell in CELLS if cell["shape"] == name])


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_each_architecture_has_its_graph(
    name: str, header_of: Callable[[str], GGUFHeader]
) -> None:
    """With and without flash attention, cached whole, not mapped: as printed."""
    kinds = {}
    for cell in CELLS:
        if cell["shape"] == name:
            config = cell["config"]
            whole = "--swa-full" in config.get("extra_args", [])
            kinds[config["flash_attn"], whole, config.get("no_mmap")] = cell
    check_cells(header_of(name), list(kinds.values()))


def check_cells(header: GGUFHeader, cells: list[dict[str, Any]]) -> None:
    """Compare the plans of a shape with what was recorded."""
    assert cells
    for cell in cells:
        plan = plan_memory(header, configuration(None, cell["config"]))
        expected = recorded(cell["buffers"])
        planned = buffers_of(plan)

        assert planned["model"] == pytest.approx(expected["model"], abs=PRINTED)
        assert planned["cache"] == pytest.approx(expected["cache"], abs=2 * PRINTED)
        assert planned["output"] == pytest.approx(expected["output"], abs=PRINTED)
        assert planned["compute"] == pytest.approx(expected["compute"], abs=PRINTED), (
            cell["config"]
        )


def test_the_recorded_cells_are_many() -> None:
    """At least 150 cells, a dozen architectures; every known one has both halves."""
    used = {cell["shape"] for cell in CELLS}
    halves = {(SHAPES[name].architecture, SHAPES[name].aside) for name in used}

    assert len(CELLS) >= 150
    assert len(known_architectures()) >= 12
    assert {name for name, _ in halves} == set(known_architectures())
    assert {name for name, aside in halves if aside} == set(known_architectures())


LIVE: list[tuple[str, dict[str, Any]]] = [
    ("llama-3.2-1b", {"parallel": 2, "n_ubatch": 256}),
    ("gemma-3-1b", {"flash_attn": False}),
    ("qwen2.5-0.5b", {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
    ("granite-4.0-h-tiny", {"parallel": 3}),
    ("bge-small-en", {"embeddings": True, "n_batch": 512, "context_size": 512}),
    ("qwen3-4b", {"embeddings": True, "parallel": 4, "extra_args": ["--kv-unified"]}),
]


@pytest.mark.parametrize(("name", "changes"), LIVE, ids=[name for name, _ in LIVE])
def test_a_running_server_allocates_what_was_planned(
    name: str, changes: dict[str, Any], engine: Any, tmp_path: Path
) -> None:
    """A server started now prints the buffers that the plan of its file says."""
    shape = without_last_layers(SHAPES[name], 8)
    model = write_shape(shape, tmp_path / f"{name}.gguf")
    values = {
        "context_size": 4096, "n_batch": 1024, "flash_attn": True, **changes,
    }  # fmt: skip

    printed = recorded(record(model, values, engine))

    planned = buffers_of(plan_memory(model, configuration(model, values)))
    assert planned == pytest.approx(printed, abs=2 * PRINTED)


@pytest.mark.skipif(
    "avx2" not in Path("/proc/cpuinfo").read_text(),
    reason="llama.cpp repacks nothing, or other types, on a CPU without AVX2",
)
@pytest.mark.parametrize("kind", ["Q4_K", "Q4_0", "IQ4_NL", "MXFP4", "Q8_0", "Q6_K"])
@pytest.mark.parametrize("name", ["smollm3-3b", "granite-4.0-h-tiny"])
def test_repacked_weights_are_counted(
    name: str, kind: str, llama_cpp_tools: Path, tmp_path: Path
) -> None:
    """What a CPU with AVX2 keeps in a second form, and what stays mapped, is right."""
    shape = without_last_layers(SHAPES[name], 8)
    tensors = {
        pattern: (kind if stored == "Q4_K" else stored, axes)
        for pattern, (stored, axes) in shape.tensors.items()
    }
    model = write_shape(replace(shape, tensors=tensors), tmp_path / "model.gguf")
    config = ServerConfig(
        model, port=0, context_size=512, threads=1, cache_ram=0, flash_attn=True,
        extra_args=[word for word in ARGUMENTS if word != "--no-repack"],
    )  # fmt: skip

    printed = weights_by_device(config, llama_cpp_tools / "llama-server")

    host = plan_memory(model, config).host
    assert host.repacked / MIB == pytest.approx(
        printed.get("CPU_REPACK", 0) / MIB, abs=PRINTED
    )
    assert host.weights / MIB == pytest.approx(printed["CPU_Mapped"] / MIB, abs=PRINTED)


def weights_by_device(config: ServerConfig, engine: Path) -> dict[str, int]:
    """Return the bytes of weights that a server prints, by the buffer they lie in."""
    with ServerManager(config, engine=engine, timeout=180) as server:
        return {
            event.device: event.size_bytes
            for event in server.events
            if isinstance(event, BufferSize) and event.kind == "model"
        }


def test_slots_with_embeddings_are_planned_as_they_are_started(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """They share the context; the user's word counts here too."""
    config = ServerConfig(None, context_size=4096, parallel=4, embeddings=True)
    header = header_of("qwen3-4b")
    shared = plan_memory(header, config)
    own = plan_memory(header, config.replace(extra_args=["--no-kv-unified"]))

    assert (shared.slot_context, own.slot_context) == (4096, 1024)
    assert shared.host.kv_cache == own.host.kv_cache


# ── cards ────────────────────────────────────────────────────────────────────────


def test_two_cards_share_the_layers(header_of: Callable[[str], GGUFHeader]) -> None:
    """Split in halves, 33 layers with the output go 17 to 16, and nothing is lost."""
    header = header_of("llama-3.1-8b")
    one = plan_memory(header, ON_GPU, GPUMemory.t4(1))
    two = plan_memory(header, ON_GPU, GPUMemory.t4(2))

    per_layer = one.devices[0].kv_cache // 32
    assert [place.kv_cache // per_layer for place in two.devices] == [17, 15]
    assert sum(place.weights for place in two.devices) == one.devices[0].weights
    assert two.devices[0].name == "CUDA0"
    assert two.devices[1].cuda == CUDA_CONTEXT_BYTES
    assert one.host.kv_cache == 0


@pytest.mark.parametrize(
    ("split", "layers"), [("3,1", [25, 7]), ("0,1", [0, 32]), ("1,0", [32, 0])]
)
def test_tensor_split_is_followed(
    split: str, layers: list[int], header_of: Callable[[str], GGUFHeader]
) -> None:
    """The shares decide how many layers each card has."""
    config = ON_GPU.replace(tensor_split=split)
    plan = plan_memory(header_of("llama-3.1-8b"), config, GPUMemory.t4(2))

    per_layer = sum(place.kv_cache for place in plan.devices) // 32
    assert [place.kv_cache // per_layer for place in plan.devices] == layers


def test_layers_that_are_not_offloaded_stay_on_the_host(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Twenty layers on the card are the last 19 and the output; 13 stay."""
    config = ON_GPU.replace(n_gpu_layers=20)
    plan = plan_memory(header_of("llama-3.1-8b"), config, GPUMemory.t4(1))

    per_layer = (plan.host.kv_cache + plan.devices[0].kv_cache) // 32
    assert plan.host.kv_cache // per_layer == 13
    assert plan.devices[0].kv_cache // per_layer == 19


def test_a_tied_output_is_held_twice(header_of: Callable[[str], GGUFHeader]) -> None:
    """Without an output matrix, the card has its own copy of the embeddings."""
    header = header_of("llama-3.2-1b")
    plan = plan_memory(header, ON_GPU, GPUMemory.t4(1))

    table = header.tensor("token_embd.weight")
    assert table is not None
    total = plan.devices[0].weights + plan.host.weights
    assert total - sum(tensor.n_bytes for tensor in header.tensors) == pytest.approx(
        table.n_bytes, rel=1e-3
    )


def test_experts_can_stay_on_the_host(header_of: Callable[[str], GGUFHeader]) -> None:
    """--cpu-moe moves the experts' weights, and nothing else, to the host."""
    header = header_of("qwen3-30b-a3b")
    whole = plan_memory(header, ON_GPU, GPUMemory.t4(1))
    moved = plan_memory(
        header, ON_GPU.replace(extra_args=["--cpu-moe"]), GPUMemory.t4(1)
    )
    half = plan_memory(
        header, ON_GPU.replace(extra_args=["--n-cpu-moe", "24"]), GPUMemory.t4(1)
    )

    experts = sum(tensor.n_bytes for tensor in header.tensors if "_exps" in tensor.name)
    gone = whole.devices[0].weights - moved.devices[0].weights
    assert gone == pytest.approx(experts, abs=MIB)  # rows are padded on a card
    assert whole.devices[0].kv_cache == moved.devices[0].kv_cache
    assert moved.devices[0].weights < half.devices[0].weights < whole.devices[0].weights


def test_quantized_caches_need_room_to_be_unpacked_on_a_card(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Flash attention on CUDA copies a layer's quantized cache to f16."""
    header = header_of("llama-3.1-8b")
    config = ON_GPU.replace(context_size=65536)
    plain = plan_memory(header, config, GPUMemory.t4(1)).devices[0]
    config = config.replace(cache_type_k="q8_0", cache_type_v="q8_0")
    packed = plan_memory(header, config, GPUMemory.t4(1)).devices[0]

    assert packed.kv_cache == plain.kv_cache * 34 // 64
    assert packed.compute > 2 * 65536 * 1024 * 2 > plain.compute


def test_nothing_is_repacked_beside_cards(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """With cards, weights that stay on the host are not kept twice."""
    header = header_of("qwen3-30b-a3b")
    config = ON_GPU.replace(extra_args=["--cpu-moe"])
    bypassed = config.replace(extra_args=["--cpu-moe", "--no-host"])

    assert plan_memory(header, config, "2x15").host.repacked == 0
    assert plan_memory(header, bypassed, "2x15").host.repacked > 0
    assert plan_memory(header, config, []).host.repacked > 0


def test_rows_are_padded_on_a_card(header_of: Callable[[str], GGUFHeader]) -> None:
    """A quantized row is padded to 512 weights at its end, once for each tensor."""
    header = header_of("qwen2.5-0.5b")
    card = plan_memory(header, ON_GPU, "1x15").devices[0]
    expected = 0
    for tensor in header.tensors:
        beyond = tensor.shape[0] % 512
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type]]
        padding = (512 - beyond) // block * size if block > 1 and beyond else 0
        expected += -(-(tensor.n_bytes + padding) // 128) * 128

    assert card.weights == expected  # tied: the embeddings' copy is the output


def test_the_pipeline_keeps_its_inputs_four_times(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """All layers on two cards: each keeps three more copies of mask and embeddings."""
    header = header_of("llama-3.1-8b")
    pipeline = plan_memory(header, ON_GPU, "2x15").devices[1]
    partly = plan_memory(header, ON_GPU.replace(n_gpu_layers=32), "2x15").devices[1]

    tokens, width, cells = 512, 4096, 8192
    inputs = tokens * (4 * width + 2 * cells + 4 + 8 + 8)
    assert partly.compute == pytest.approx(pipeline.compute - 3 * inputs, abs=2048)


CUDA_CELLS = json.loads(
    (Path(__file__).parents[1] / "data" / "cuda_cells.json").read_text()
)


def cuda_plan(cell: dict[str, Any], header: GGUFHeader) -> Any:
    """Return what one recorded server was planned to take on its card."""
    config = ServerConfig(None, n_gpu_layers=99, cache_ram=0, **cell["config"])
    return plan_memory(header, config, "140").devices[0]


@pytest.mark.parametrize(
    "cell", CUDA_CELLS["cells"], ids=lambda cell: f"{cell['model']}-{cell['number']}"
)
def test_a_card_holds_what_was_planned(
    cell: dict[str, Any], header_of: Callable[[str], GGUFHeader]
) -> None:
    """What llama.cpp allocated on a real card is what is planned, to its decimals."""
    planned = cuda_plan(cell, header_of(cell["model"]))
    printed = 0.025 * MIB  # three buffers' decimals

    assert planned.weights == pytest.approx(cell["weights"], abs=printed)
    assert planned.kv_cache == pytest.approx(cell["kv_cache"], abs=printed)
    if cell["exact"]:
        assert planned.compute == pytest.approx(cell["compute"], abs=printed)
    else:  # below what was seen, within a card's margin
        assert 0 < cell["compute"] - planned.compute < 40 * MIB


def test_most_of_the_cells_are_exact() -> None:
    """The compute buffers that are not known exactly are counted here."""
    known = [cell["exact"] for cell in CUDA_CELLS["cells"]]

    assert (known.count(True), known.count(False)) == (47, 8)


def test_what_stays_on_the_host_passes_through_the_first_card(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """The largest matrix on the host is added to the first card's compute buffer.

    The first layer is on the host then, so the card gets its result, and not a copy of
    each form of the embeddings: the looked up ones, the mixed ones and their places.
    """
    header = header_of("llama-3.1-8b")
    whole = plan_memory(header, ON_GPU, "1x15").devices[0]
    partly = plan_memory(header, ON_GPU.replace(n_gpu_layers=32), "1x15").devices[0]
    largest = max(t.n_bytes for t in header.tensors if t.name.startswith("blk.0."))

    tokens, width = 512, 4096
    assert partly.compute == whole.compute + largest - tokens * (4 * width + 8)


def test_the_cache_can_stay_on_the_host(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """--no-kv-offload moves the whole cache, and the prompt cache is the host's too."""
    header = header_of("llama-3.1-8b")
    config = ON_GPU.replace(extra_args=["--no-kv-offload"], cache_ram=100)
    plan = plan_memory(header, config, "1x15")

    assert plan.devices[0].kv_cache == 0
    assert plan.host.kv_cache == 1024 * MIB
    assert plan.host.prompt_cache == 100 * MIB


def test_the_host_fills_what_cards_copy(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """With all layers on a card, the host still has embeddings, mask and positions."""
    header = header_of("llama-3.1-8b")
    host = plan_memory(header, ON_GPU, "1x15").host

    mask, embeddings = 512 * 8192 * 2, 512 * 4096 * 4
    assert host.compute > mask + 3 * embeddings


def test_layers_that_draft_ahead_are_not_loaded(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """A last layer that predicts further tokens takes no memory."""
    header = header_of("qwen3.5-9b")
    count = header.metadata["qwen35.block_count"]
    ahead = tuple(
        replace(tensor, name=tensor.name.replace("blk.3.", f"blk.{count}."))
        for tensor in header.tensors
        if tensor.name.startswith("blk.3.")
    )
    more = {"qwen35.block_count": count + 1, "qwen35.nextn_predict_layers": 1}
    longer = replace(
        header,
        metadata={**header.metadata, **more},
        tensors=(*header.tensors, *ahead),
    )
    config = ServerConfig(None, context_size=4096, flash_attn=True, no_mmap=True)

    assert plan_memory(longer, config).host == plan_memory(header, config).host


def test_fits_keeps_a_margin(header_of: Callable[[str], GGUFHeader]) -> None:
    """A card with exactly what is needed is too small; with the margin it will do."""
    header = header_of("qwen3-4b")
    needed = plan_memory(header, ON_GPU).devices[0].needed
    margin = int(needed * GPU_MARGIN_SHARE) + GPU_MARGIN_BYTES

    assert not plan_memory(header, ON_GPU, [GPUMemory(0, needed)]).fits
    assert not plan_memory(header, ON_GPU, [GPUMemory(0, needed + margin - 1)]).fits
    assert plan_memory(header, ON_GPU, [GPUMemory(0, needed + margin)]).fits


@pytest.mark.parametrize("slots", [1, 4])
def test_max_context_is_the_last_that_fits(
    slots: int, header_of: Callable[[str], GGUFHeader]
) -> None:
    """The largest context fits, and 256 tokens more for each slot do not."""
    plan = plan_memory(
        header_of("llama-3.1-8b"), ON_GPU.replace(parallel=slots), GPUMemory.t4(1)
    )
    most = plan.max_context()

    assert 8192 < most < 131072
    assert plan.with_config(context_size=most).fits
    assert not plan.with_config(context_size=most + 256 * slots).fits


def test_max_context_is_zero_where_the_weights_alone_are_too_large(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """A model larger than the card fits with no context, and the verdict says so."""
    plan = plan_memory(header_of("qwen3.6-27b"), ON_GPU, GPUMemory.t4(1))

    assert plan.max_context() == 0
    assert not plan.fits
    assert "No context would make it fit" in plan.verdict


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "gemma-3-12b"])
def test_max_gpu_layers_is_the_most_that_fit(
    name: str, header_of: Callable[[str], GGUFHeader]
) -> None:
    """So many layers fit on a card that is too small for all, and one more does not."""
    plan = plan_memory(header_of(name), ON_GPU, [GPUMemory(0, 4 * GIB)])
    most = plan.max_gpu_layers()

    assert not plan.fits
    assert 0 < most <= len(plan._request.shape.layers)
    assert plan.with_config(n_gpu_layers=most).fits
    assert not plan.with_config(n_gpu_layers=most + 1).fits


def test_max_gpu_layers_without_a_limit(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Where a card has room for all, it is all of them; without cards, none."""
    header = header_of("qwen3-4b")

    assert plan_memory(header, ON_GPU, "1x80").max_gpu_layers() == 37
    assert plan_memory(header, ON_GPU, []).max_gpu_layers() == 0
    assert plan_memory(header, ON_GPU).max_gpu_layers() == 0


@pytest.mark.parametrize("ends_at", [1, 2, 3, 500, 998, 999, 1000])
@pytest.mark.parametrize("bend", [1, 3])
def test_the_last_number_with_room_is_found(ends_at: int, bend: int) -> None:
    """Whether room shrinks in a straight line or not, the last one is found."""
    asked = []

    def room(number: int) -> int:
        asked.append(number)
        return int(ends_at**bend - number**bend)

    assert _last_with_room(room, 1000) == ends_at
    assert _last_with_room(lambda number: -number, 1000) == 0
    assert len(asked) < 24


def test_max_context_without_a_limit_is_the_models_own(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Nothing being short, the training context is the largest that makes sense."""
    assert plan_memory(header_of("qwen3-4b"), ON_GPU).max_context() == 40960


def test_context_zero_is_the_models_own(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Context 0 plans what the model was made for, as llama-server starts it."""
    plan = plan_memory(header_of("qwen3-4b"), ON_GPU.replace(context_size=0))

    assert plan.context == 40960
    assert plan == plan.with_config(context_size=40960).with_config(context_size=0)


def test_rerankers_and_embedders_keep_more(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Embeddings and scores are asked of every token, so more is put out."""
    header = header_of("qwen3-4b")
    config = ServerConfig(None, context_size=2048, flash_attn=True)
    chat = plan_memory(header, config).host
    embedder = plan_memory(header, config.replace(embeddings=True)).host
    reranker = plan_memory(header, config.replace(rerank=True)).host

    assert embedder.compute > chat.compute
    assert reranker.compute > chat.compute
    assert embedder.output == chat.output + 2560 * 4


def test_the_host_can_have_a_limit(header_of: Callable[[str], GGUFHeader]) -> None:
    """Without cards, the host's own memory decides."""
    config = ServerConfig(None, context_size=4096)
    header = header_of("qwen3-4b")

    assert plan_memory(header, config, [], host_free=16 * GIB).fits
    assert not plan_memory(header, config, [], host_free=2 * GIB).fits
    for meant in (16, 0, -GIB, "16", 1.5 * GIB, True):
        with pytest.raises(ConfigurationError, match="host_free"):
            plan_memory(header, config, [], host_free=meant)


def test_much_of_the_host_is_said(header_of: Callable[[str], GGUFHeader]) -> None:
    """The verdict names what the host must have where that is much and unchecked."""
    header = header_of("llama-3.1-8b")
    config = ON_GPU.replace(n_gpu_layers=1, context_size=131072)

    assert "The host must have" in plan_memory(header, config, "2x15").verdict
    assert "host" not in plan_memory(header, ON_GPU, "2x15").verdict
    limited = plan_memory(header, config, "2x15", host_free=4 * GIB)
    assert "It does not fit: host needs" in limited.verdict


def test_another_quantization_is_estimated_from_its_size(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Weights scale, caches stay, the plan says so, and sizes that are none are not."""
    header = header_of("llama-3.1-8b")
    plan = plan_memory(header, ON_GPU, "1x15")
    larger = plan.for_size(8_500_000_000)

    assert larger.devices[0].kv_cache == plan.devices[0].kv_cache
    assert larger.devices[0].weights > 1.6 * plan.devices[0].weights
    assert not larger.known
    assert any("scaled to a file of 8.5 GB" in note for note in larger.notes)
    for size in (8.5, 0, "Q8_0"):
        with pytest.raises(ConfigurationError, match="file_bytes"):
            plan.for_size(size)  # type: ignore[arg-type]


def test_the_same_model_on_other_cards(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """with_gpus gives the plan that the same cards give at once."""
    header = header_of("llama-3.1-8b")
    one = plan_memory(header, ON_GPU, "1x8")

    assert one.with_gpus("2x8") == plan_memory(header, ON_GPU, "2x8")
    assert one.with_gpus(None) == plan_memory(header, ON_GPU)
    with pytest.raises(ConfigurationError, match="2x15"):
        one.with_gpus("many")


def test_a_projector_and_adapters_are_counted(
    header_of: Callable[[str], GGUFHeader], tmp_path: Path
) -> None:
    """The tensors of the files beside the model count where they will lie."""
    shape = SHAPES["qwen2.5-0.5b"]
    images = write_shape(shape, tmp_path / "images.gguf", kind="mmproj")
    lora = write_shape(shape, tmp_path / "lora.gguf", kind="adapter")
    size = sum(tensor.n_bytes for tensor in read_header(lora).tensors)
    header = header_of("qwen3-4b")

    projector = plan_memory(header, ON_GPU.replace(mmproj_path=images))
    adapter = plan_memory(header, ON_GPU.replace(lora_path=lora))

    assert projector.devices[0].projector == size
    assert adapter.devices[0].adapters == size
    assert any("weights only" in note for note in adapter.notes)


def test_a_model_is_no_projector_and_no_adapter(
    header_of: Callable[[str], GGUFHeader], tmp_path: Path
) -> None:
    """A file of another kind beside the model is refused, with what it says it is."""
    model = write_shape(SHAPES["qwen2.5-0.5b"], tmp_path / "model.gguf")
    for beside in ("mmproj_path", "lora_path"):
        with pytest.raises(ModelError, match=r"is no \w+, its general.type is"):
            plan_memory(header_of("qwen3-4b"), ON_GPU.replace(**{beside: model}))


def test_a_file_beside_is_read_once(
    header_of: Callable[[str], GGUFHeader], tmp_path: Path
) -> None:
    """The largest context of a model with an adapter is found without its file."""
    lora = write_shape(SHAPES["qwen2.5-0.5b"], tmp_path / "a.gguf", kind="adapter")
    plan = plan_memory(header_of("qwen3-4b"), ON_GPU.replace(lora_path=lora), "1x8")
    lora.unlink()

    assert 0 < plan.max_context() < 40960
    assert plan.with_config(parallel=2).devices[0].adapters > 0


def test_older_builds_keep_all_logits(header_of: Callable[[str], GGUFHeader]) -> None:
    """Before the rule changed, the compute buffer held logits of every token."""
    header = header_of("llama-3.2-1b")
    config = ServerConfig(None, context_size=8192, flash_attn=True)
    new = plan_memory(header, config)
    old = plan_memory(header, config, build=7760)

    logits = 512 * 128256 * 4
    assert old.host.compute > logits > new.host.compute
    assert not old.host.known
    assert any("build 11434" in note for note in old.notes)


@pytest.mark.parametrize("name", ["smollm3-3b", "gemma-3-1b", "qwen3-4b"])
def test_the_older_rule_is_that_of_llama_fit_params(
    name: str, llama_cpp_tools: Path, tmp_path: Path
) -> None:
    """llama-fit-params reserves logits of every token, as plans for old builds do."""
    model = write_shape(SHAPES[name], tmp_path / "model.gguf")
    arguments = "-c 4096 -b 2048 -ub 512 -np 1 -fa on -nr -fit off -v --fit-print on"
    done = subprocess.run(
        [llama_cpp_tools / "llama-fit-params", "-m", model, *arguments.split()],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    config = ServerConfig(
        None, context_size=4096, n_batch=2048, flash_attn=True, extra_args=["-nr"]
    )
    host = plan_memory(model, config, build=7760).host
    weights, cache, compute = done.stdout.split()[1:4]
    printed = re.search(r"compute buffer size =\s*([\d.]+) MiB", done.stderr)
    assert printed is not None
    assert float(printed[1]) == pytest.approx(host.compute / MIB, abs=PRINTED)
    assert int(weights) == host.weights // MIB
    assert int(cache) == host.kv_cache // MIB
    assert int(compute) == host.compute // MIB


# ── honesty ──────────────────────────────────────────────────────────────────────


def test_an_unknown_architecture_is_called_estimated(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """A model of an architecture never compared is planned, and the plan says how."""
    header = header_of("qwen3-4b")
    values = {
        key.replace("qwen3.", "newest."): value
        for key, value in header.metadata.items()
    }
    unknown = replace(header, metadata={**values, "general.architecture": "newest"})
    config = ServerConfig(None, context_size=8192, flash_attn=True)
    plan = plan_memory(unknown, config)

    assert not plan.known
    assert "estimated as full attention" in plan.notes[0]
    assert "known" not in plan.table().split("estimated")[0]
    assert plan.host.kv_cache == plan_memory(header, config).host.kv_cache


def test_tensors_of_unknown_names_do_not_break_the_plan(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Where the graph cannot be built, its size is estimated from the widths."""
    header = header_of("qwen3-4b")
    renamed = tuple(
        replace(tensor, name=tensor.name.replace("attn_q.", "attn_other."))
        for tensor in header.tensors
    )
    config = ServerConfig(None, context_size=8192, flash_attn=True)
    plan = plan_memory(replace(header, tensors=renamed), config)
    exact = plan_memory(header, config)

    assert not plan.known
    assert not plan.host.known
    assert any("rough estimate" in note for note in plan.notes)
    assert plan.host.compute == pytest.approx(exact.host.compute, rel=0.5)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (ON_GPU.replace(context_size=65536), "the model was made for"),
        (ON_GPU.replace(split_mode="row"), "like 'layer'"),
        (ON_GPU.replace(extra_args=["-ot", "ffn=CPU"]), "not followed"),
        (ON_GPU, "a T4 was not measured"),
        (ON_GPU, "cached prompts"),
        (ON_GPU.replace(n_gpu_layers=0), "cards are not used"),
        (ON_GPU.replace(tensor_split="1,1,1"), "3 shares for 2 cards"),
        (ON_GPU.replace(tensor_split="1"), "1 shares for 2 cards"),
        (ON_GPU.replace(embeddings=True, pooling="mean", parallel=3), "unevenly"),
        (ON_GPU.replace(n_gpu_layers=5), "stays mapped of the file"),
    ],
)
def test_a_plan_says_what_it_assumes(
    config: ServerConfig, said: str, header_of: Callable[[str], GGUFHeader]
) -> None:
    """What is assumed, and what is not followed, stands in the notes."""
    plan = plan_memory(header_of("qwen3-4b"), config, GPUMemory.t4(2))

    assert any(said in note for note in plan.notes)


def test_the_table_says_known_or_estimated(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Every row says on what it rests; a CPU's are known, a card's are not yet."""
    header = header_of("qwen3-4b")
    on_cpu = plan_memory(header, ServerConfig(None, context_size=8192))
    on_gpu = plan_memory(header, ON_GPU, GPUMemory.t4(1))

    assert [row["basis"] for row in on_cpu.rows()] == ["known"]
    assert [row["basis"] for row in on_gpu.rows()] == ["estimated", "estimated"]
    assert "CUDA0" in on_gpu.table()
    assert on_gpu.rows()[0]["left"] == (
        T4_FREE_BYTES - on_gpu.devices[0].needed - on_gpu.devices[0].margin
    )


def test_html_shows_a_bar_for_each_device(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """The notebook's view has cards, host and verdict, and a name brings no markup."""
    header = header_of("qwen3-4b")
    hostile = replace(
        header,
        metadata={**header.metadata, "general.name": "<script>alert(1)</script>"},
    )
    html = plan_memory(hostile, ON_GPU, GPUMemory.t4(2))._repr_html_()

    assert html.count('role="img"') == 3
    assert html.count("position:absolute") == 2  # a line where each card ends
    assert "It fits" in html
    assert "<script" not in html
    assert "CUDA1" in html


def test_html_shows_a_card_that_is_too_small(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """The line of a card's limit stands before the bar's end, and nothing is free."""
    plan = plan_memory(header_of("llama-3.1-8b"), ON_GPU, [GPUMemory(0, 4 * GIB)])
    card = plan.devices[0]
    html = plan._repr_html_()

    limit = re.search(r"left:calc\(([\d.]+)% - 2px\)", html)
    assert limit is not None
    whole = card.needed + card.margin
    assert float(limit[1]) == pytest.approx(400 * GIB / whole, abs=0.01)
    assert "short with its margin" in html
    assert "free" not in html.split("short with its margin")[1].split("host")[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parallel": 4}, "8,192 tokens of context, 4 slots of 2,048"),
        ({"parallel": 4, "extra_args": ["-kvu"]}, "4 slots that share them"),
        ({}, "8,192 tokens of context, 1 slot,"),
    ],
)
def test_the_title_says_what_a_slot_has(
    changes: dict[str, Any], said: str, header_of: Callable[[str], GGUFHeader]
) -> None:
    """A context over several slots is told apart from one that each of them has."""
    plan = plan_memory(header_of("qwen3-4b"), ON_GPU.replace(**changes), "2x15")

    assert said in plan.table()
    assert said.partition(",")[0] in plan._repr_html_()


def test_the_repr_is_short(header_of: Callable[[str], GGUFHeader]) -> None:
    """The repr fits a line of a notebook and says whether it fits."""
    plan = plan_memory(header_of("qwen3-4b"), ON_GPU, GPUMemory.t4(1))

    assert "fits=True" in repr(plan)
    assert len(repr(plan)) < 160


def test_a_plan_is_a_value(header_of: Callable[[str], GGUFHeader]) -> None:
    """A plan can be copied, pickled and written as JSON."""
    plan = plan_memory(header_of("qwen3-4b"), ON_GPU, "2x15")

    assert pickle.loads(pickle.dumps(plan)) == plan
    assert copy.deepcopy(plan) == plan
    assert json.loads(json.dumps(plan.to_dict()))["fits"] is True


@pytest.mark.parametrize("name", ["gemma-3-1b", "bge-small-en", "mamba2-2.7b"])
def test_the_way_to_a_configuration_does_not_matter(
    name: str, header_of: Callable[[str], GGUFHeader]
) -> None:
    """What was worked out for one is used for no other that it is wrong for."""
    header = header_of(name)
    cards = [GPUMemory(0, 6 * GIB), GPUMemory(1, 7 * GIB)]
    changes: list[dict[str, Any]] = [
        {"n_gpu_layers": 99}, {"n_gpu_layers": 2}, {"n_gpu_layers": 9},
        {"tensor_split": "1,3"}, {"flash_attn": False}, {"cache_type_k": "q8_0"},
        {"parallel": 4}, {"context_size": 4096}, {"n_ubatch": 128},
        {"embeddings": True}, {"embeddings": True, "pooling": "rank"}, {},
    ]  # fmt: skip
    plan = plan_memory(header, ON_GPU, cards)
    for again in (*changes, *reversed(changes)):
        config = ON_GPU.replace(**again)
        fields = {key: getattr(config, key) for one in changes for key in one}
        plan = plan.with_config(**fields)
        fresh = plan_memory(header, config, cards)
        assert plan.config == config
        assert plan.devices == fresh.devices, again


def test_a_changed_configuration_chooses_its_cards_anew(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """with_config gives the plan that the same configuration gives at once."""
    header = header_of("qwen3-4b")
    none = plan_memory(header, ON_GPU.replace(n_gpu_layers=0), "2x15")
    one = plan_memory(header, ON_GPU.replace(split_mode="none"), "2x15")
    both = plan_memory(header, ON_GPU, "2x15")

    assert none.with_config(n_gpu_layers=99) == both
    assert one.with_config(split_mode="layer") == both
    assert both.with_config(n_gpu_layers=0).devices == ()


def test_a_parser_can_be_planned(tmp_path: Path) -> None:
    """plan_memory takes what a header was looked at with."""
    path = write_shape(SHAPES["qwen2.5-0.5b"], tmp_path / "model.gguf")

    assert plan_memory(GGUFParser(path), ON_GPU) == plan_memory(path, ON_GPU)


def test_without_a_limit_nothing_is_said_to_fit(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """The repr and the verdict say that no limit was given."""
    plan = plan_memory(header_of("qwen3-4b"), ON_GPU)

    assert "no limit given" in repr(plan)
    assert "no limit was given" in plan.verdict


def test_a_context_beyond_training_fits_but_is_not_praised(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """The verdict names what the model was made for."""
    plan = plan_memory(
        header_of("qwen3-4b"), ON_GPU.replace(context_size=65536), "1x80"
    )

    assert plan.verdict == (
        "It fits, but the model was made for 40,960 tokens of context."
    )


def shortened(header: GGUFHeader, *, layers: int) -> GGUFHeader:
    """Return the header of a model that has the first layers only."""
    count = f"{header.metadata['general.architecture']}.block_count"
    return replace(
        header,
        metadata={**header.metadata, count: layers},
        tensors=tuple(
            tensor
            for tensor in header.tensors
            if not tensor.name.startswith("blk.")
            or int(tensor.name.split(".")[1]) < layers
        ),
    )


HOSTILE = [
    -1, 0, 2**31, 2**63, 2**64 - 1, 1.5, float("nan"), float("inf"), "many", True,
    [1, 2], ["a"], [],
]  # fmt: skip


@pytest.mark.no_cover
@pytest.mark.parametrize("value", HOSTILE, ids=repr)
@pytest.mark.parametrize(
    "name", ["qwen3-30b-a3b", "gemma-3-1b", "granite-4.0-h-tiny", "glm-4.7-flash"]
)
def test_hostile_numbers_are_refused_or_planned(
    name: str, value: Any, header_of: Callable[[str], GGUFHeader]
) -> None:
    """Whatever a header holds: a plan without negative bytes, or a GGUFError."""
    header = shortened(header_of(name), layers=8)
    own = [key for key in header.metadata if key.startswith(SHAPES[name].architecture)]
    for key in own:
        changed = replace(header, metadata={**header.metadata, key: value})
        with contextlib.suppress(GGUFError):
            plan = plan_memory(changed, ON_GPU, "2x15")
            plan.table()
            for place in plan.places:
                assert all(size >= 0 for size in place.parts.values()), key


@pytest.mark.parametrize("value", [-1, 2**31, 1.5, "many"])
def test_a_number_no_model_has_is_refused(
    value: Any, header_of: Callable[[str], GGUFHeader]
) -> None:
    """The error names the key, what it holds and what it may hold."""
    header = header_of("qwen3-4b")
    changed = {**header.metadata, "qwen3.attention.head_count": value}

    with pytest.raises(GGUFError, match=r"qwen3\.attention\.head_count is .* whole"):
        plan_memory(replace(header, metadata=changed), ON_GPU)


@pytest.mark.parametrize("count", [0, 1, 35, 37, 10**6, 2**31 - 1])
def test_layers_must_be_there(
    count: int, header_of: Callable[[str], GGUFHeader]
) -> None:
    """A header that counts other layers than the file has is refused at once."""
    header = header_of("qwen3-4b")
    changed = {**header.metadata, "qwen3.block_count": count}

    with pytest.raises(GGUFError, match=r"36|layers"):
        plan_memory(replace(header, metadata=changed), ON_GPU)


def test_a_name_cannot_steer_the_terminal(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Escapes, line ends and marks of direction of a name never reach the reader."""
    header = header_of("qwen3-4b")
    evil = "a\x1b[31mRED\nFAKE: It fits.\r\u202e" + "x" * 100_000
    changed = replace(header, metadata={**header.metadata, "general.name": evil})
    plan = plan_memory(changed, ON_GPU, "2x15")

    for text in (plan.table(), repr(plan), plan._repr_html_()):
        assert not {"\x1b", "\r", "\u202e"} & set(text)
        assert "\nFAKE" not in text
        assert len(text) < 10_000


# ── refused ──────────────────────────────────────────────────────────────────────


def test_a_vocabulary_is_no_model(tmp_path: Path) -> None:
    """A file without layers is refused in words, not planned as a model of nothing."""
    empty = Shape("empty", "llama", False, 300, {"block_count": 0}, {})
    path = write_shape(empty, tmp_path / "vocabulary.gguf")

    with pytest.raises(GGUFError, match="no layers"):
        plan_memory(path, ON_GPU)


@pytest.mark.parametrize(
    ("kind", "said"), [("adapter", "lora_path"), ("mmproj", "mmproj_path")]
)
def test_what_stands_beside_a_model_is_named(
    kind: str, said: str, tmp_path: Path
) -> None:
    """An adapter or a projector is refused with the field it belongs to."""
    empty = Shape("empty", "llama", False, 300, {"block_count": 0}, {})
    header = read_header(write_shape(empty, tmp_path / "beside.gguf"))
    beside = replace(header, metadata={**header.metadata, "general.type": kind})

    with pytest.raises(GGUFError, match=said):
        plan_memory(beside, ON_GPU)


@pytest.mark.parametrize(
    "gpus", [2, [15, 15], "two", object(), [GPUMemory(0), GPUMemory(0)]]
)
def test_what_are_no_cards_is_refused(
    gpus: Any, header_of: Callable[[str], GGUFHeader]
) -> None:
    """Numbers, other text and cards with one index are errors that show how."""
    with pytest.raises(ConfigurationError, match=r"2x15|same index"):
        plan_memory(header_of("qwen3-4b"), ON_GPU, gpus)


@pytest.mark.parametrize(
    ("index", "free"), [(-1, None), (16, None), (0, 15), (0, "15"), (0, 15.5 * GIB)]
)
def test_a_card_that_makes_no_sense_is_refused(index: int, free: Any) -> None:
    """GiB given as bytes, and an index CUDA does not have, are noticed at once."""
    with pytest.raises(ConfigurationError):
        GPUMemory(index, free)


def test_a_configuration_is_a_configuration(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """A context alone is no configuration."""
    wrong: Any = 16384
    with pytest.raises(ConfigurationError, match="ServerConfig"):
        plan_memory(header_of("qwen3-4b"), wrong)


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    """The name of the file that is not there stands in the error."""
    with pytest.raises(ModelError, match="absent.gguf"):
        plan_memory(tmp_path / "absent.gguf", ON_GPU)


@pytest.mark.parametrize(
    "config",
    [
        ON_GPU.replace(device="CUDA3"),
        ON_GPU.replace(split_mode="none", main_gpu=2),
    ],
)
def test_cards_that_are_not_there_are_refused(
    config: ServerConfig, header_of: Callable[[str], GGUFHeader]
) -> None:
    """A configuration for other cards than the given ones is an error."""
    with pytest.raises(ConfigurationError):
        plan_memory(header_of("qwen3-4b"), config, GPUMemory.t4(2))


def test_one_card_can_be_chosen(header_of: Callable[[str], GGUFHeader]) -> None:
    """split_mode none and device both leave the other card alone."""
    header = header_of("qwen3-4b")
    for config in (
        ON_GPU.replace(split_mode="none", main_gpu=1),
        ON_GPU.replace(device="CUDA1"),
    ):
        plan = plan_memory(header, config, GPUMemory.t4(2))

        assert [place.name for place in plan.devices] == ["CUDA1"]


def test_no_cards_means_the_host(header_of: Callable[[str], GGUFHeader]) -> None:
    """An empty list of cards plans for the CPU, whatever the layers."""
    plan = plan_memory(header_of("qwen3-4b"), ON_GPU, [])

    assert plan.devices == ()
    assert plan.host.weights > 0


def test_the_cards_of_a_configuration_are_taken_without_a_limit(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Without cards given, as many are planned as the configuration speaks of."""
    header = header_of("qwen3-4b")

    assert len(plan_memory(header, ON_GPU).devices) == 1
    split = ON_GPU.replace(tensor_split="1,1")
    assert len(plan_memory(header, split).devices) == 2
    named = ON_GPU.replace(device="CUDA0,CUDA1")
    assert len(plan_memory(header, named).devices) == 2
    assert plan_memory(header, ON_GPU.replace(device="none")).devices == ()
