"""What makes a plan fit: micro-batch, split and context, against trying them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shapes import read_shapes, write_shape

from llamatelemetry.gguf._fitting import (
    MEANINGFUL_BYTES,
    best_fit,
    best_split,
    context_room,
    divided_layers,
    largest_context,
    layer_counts,
    micro_batches,
    model_file,
    room,
    what_would_fit,
)
from llamatelemetry.gguf._sizes import split_layers
from llamatelemetry.gguf.memory import GPUMemory, MemoryPlan, plan_memory
from llamatelemetry.gguf.reader import GGUFHeader, read_header
from llamatelemetry.server import ServerConfig

SHAPES = read_shapes()
ON_GPU = ServerConfig(
    None, n_gpu_layers=99, flash_attn=True, context_size=8192, n_batch=2048
)


@pytest.fixture(scope="session")
def header_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], GGUFHeader]:
    """Return a function that gives the header of a shape."""
    folder = tmp_path_factory.mktemp("shapes")
    read: dict[str, GGUFHeader] = {}

    def header(name: str) -> GGUFHeader:
        if name not in read:
            path = write_shape(SHAPES[name], folder / f"{name}.gguf", tokens=False)
            read[name] = read_header(path)
        return read[name]

    return header


def with_split(plan: MemoryPlan, first: int) -> MemoryPlan:
    """Return the plan with so many layers on the first of two cards."""
    rest = divided_layers(plan) - first
    return plan.with_config(tensor_split=f"{first},{rest}")


@pytest.mark.parametrize("count", [2, 17, 33, 49, 65, 81, 99, 127, 161])
def test_counts_of_layers_put_exactly_those_on_each_card(count: int) -> None:
    """Whole numbers that sum to layers and output are what each card gets."""
    for first in range(count + 1):
        for shares in ([first, count - first], [first // 2, first - first // 2, 0]):
            whole = [*shares[:2], count - sum(shares[:2])]
            homes = split_layers(count - 1, 999, [float(share) for share in whole])

            assert [homes.count(card) for card in range(3)] == whole


@pytest.mark.parametrize(
    ("name", "gpus", "context"),
    [
        ("llama-3.1-8b", "2x15", 8192),
        ("gpt-oss-20b", "2x15", 65536),
        ("gpt-oss-20b", "15,8", 8192),
        ("gemma-3-1b", "2,4", 8192),
        ("lfm2-2.6b", "2x4", 8192),
    ],
)
def test_the_best_split_is_as_good_as_the_best_of_all(
    name: str, gpus: str, context: int, header_of: Callable[[str], GGUFHeader]
) -> None:
    """No split leaves meaningfully more room on the tightest card."""
    config = ON_GPU.replace(context_size=context)
    plan = plan_memory(header_of(name), config, gpus)
    chosen = best_split(plan)
    every = [room(with_split(plan, n)) for n in range(divided_layers(plan) + 1)]

    assert room(chosen) > max(every) - MEANINGFUL_BYTES
    assert sum(layer_counts(chosen)) == divided_layers(plan)


def test_room_has_one_peak_over_the_splits(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Room rises up to the best split and falls behind it."""
    plan = plan_memory(header_of("llama-3.1-8b"), ON_GPU, "2x15")
    every = [room(with_split(plan, n)) for n in range(divided_layers(plan) + 1)]
    peak = every.index(max(every))

    assert every[: peak + 1] == sorted(every[: peak + 1])
    assert every[peak:] == sorted(every[peak:], reverse=True)


def test_halves_are_taken_where_nothing_is_much_better(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Two equal cards get even shares, and their plan is not made again."""
    config = ON_GPU.replace(tensor_split="0.5,0.5")
    plan = plan_memory(header_of("llama-3.1-8b"), config, "2x15")

    assert best_split(plan) is plan
    assert best_fit(plan) is plan
    three = plan_memory(header_of("llama-3.1-8b"), ON_GPU, "3x15")
    assert best_split(three).config.tensor_split == "1,1,1"


def test_another_split_is_taken_where_halves_are_worse(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """A large output on the second card, and little room: it gets fewer layers."""
    config = ON_GPU.replace(context_size=65536)
    plan = plan_memory(header_of("qwen3-30b-a3b"), config, "2x15")
    even = plan.with_config(tensor_split="0.5,0.5")
    four = plan_memory(header_of("gemma-3-12b"), ON_GPU, "4,4,4,4,4,4")
    chosen = best_split(four)

    assert room(best_split(plan)) >= room(even)
    assert chosen.config.tensor_split != "1,1,1,1,1,1"
    assert room(chosen) >= MEANINGFUL_BYTES + room(
        four.with_config(tensor_split="1,1,1,1,1,1")
    )


def test_what_cannot_be_split_is_returned_as_it_is(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """One card, none, and cards without a limit have no best split."""
    header = header_of("llama-3.2-1b")
    for gpus in ("1x15", "none", [GPUMemory(0), GPUMemory(1)]):
        plan = plan_memory(header, ON_GPU, gpus)

        assert best_split(plan) is plan
    assert layer_counts(plan_memory(header, ON_GPU, "1x15")) == (17,)
    assert layer_counts(plan_memory(header, ON_GPU, "none")) == ()


def test_experts_on_the_host_do_not_mislead_the_split(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """With --cpu-moe the split still leaves about the most that any does."""
    config = ON_GPU.replace(extra_args=["--cpu-moe"], context_size=65536)
    plan = plan_memory(header_of("gpt-oss-20b"), config, "3,5")
    every = [room(with_split(plan, n)) for n in range(divided_layers(plan) + 1)]

    assert room(best_split(plan)) > max(every) - MEANINGFUL_BYTES


def test_micro_batches_are_halves_down_to_64(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Nor below a token for each slot; what is embedded keeps its own."""
    plan = plan_memory(header_of("llama-3.2-1b"), ON_GPU, "1x15")
    encoder = plan_memory(header_of("bge-small-en"), ON_GPU, "1x15")

    assert micro_batches(plan) == (512, 256, 128, 64)
    assert micro_batches(plan.with_config(parallel=100)) == (512, 256, 128)
    assert micro_batches(plan.with_config(n_ubatch=32)) == (32,)
    assert micro_batches(plan.with_config(embeddings=True)) == (512,)
    assert micro_batches(encoder) == (512,)


def test_the_largest_micro_batch_that_fits_is_taken(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """As the card gets fuller the micro-batch shrinks, and at last nothing fits."""
    header = header_of("llama-3.1-8b")
    chosen = []
    for context in range(73216, 75264, 256):
        plan = plan_memory(header, ON_GPU.replace(context_size=context), "1x15")
        fitted = best_fit(plan)
        if fitted is None:
            chosen.append(0)
            continue
        size = fitted.config.n_ubatch
        assert fitted.fits
        assert size == 512 or not plan.with_config(n_ubatch=2 * size).fits
        chosen.append(size)

    assert chosen == sorted(chosen, reverse=True)
    assert set(chosen) == {512, 256, 128, 64, 0}


def test_inputs_to_be_embedded_are_not_cut(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """An embedding server whose micro-batch does not fit is refused, not changed."""
    config = ON_GPU.replace(embeddings=True, n_ubatch=2048, context_size=74752)
    plan = plan_memory(header_of("llama-3.1-8b"), config, "1x15")

    assert best_fit(plan) is None
    assert best_fit(plan.with_config(embeddings=False)) is not None


@pytest.mark.parametrize(
    ("name", "gpus", "changes"),
    [
        ("llama-3.1-8b", "1x15", {}),
        ("llama-3.1-8b", "1x15", {"parallel": 3}),
        ("gpt-oss-20b", "2x7", {}),
        ("gemma-3-12b", "5,6", {"parallel": 2}),
        ("llama-3.1-8b", "none", {}),
    ],
)
def test_the_largest_context_fits_and_one_step_more_does_not(
    name: str,
    gpus: str,
    changes: dict[str, Any],
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """What is named as the largest context is accepted, and is the last one."""
    config = ON_GPU.replace(context_size=200_000, **changes)
    host_free = 12 * 2**30 if gpus == "none" else None
    plan = plan_memory(header_of(name), config, gpus, host_free=host_free)
    largest = largest_context(plan)
    step = 256 * config.parallel

    assert largest > 0
    assert best_fit(plan.with_config(context_size=largest)) is not None
    assert best_fit(plan.with_config(context_size=largest + step)) is None
    assert largest >= plan.max_context()
    assert context_room(plan, largest // config.parallel) >= 0


def test_a_model_is_not_stretched_beyond_its_training(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """With room for more, it is what the model was made for, or was planned."""
    plan = plan_memory(header_of("llama-2-13b"), ON_GPU, "2x15")

    assert largest_context(plan.with_config(context_size=512)) == 4096
    assert largest_context(plan.with_config(context_size=8192)) == 8192


def test_what_would_fit_is_said_in_words(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """Context, cache and quantization, where each of them would do."""
    config = ON_GPU.replace(context_size=100_000)
    plan = plan_memory(header_of("llama-3.1-8b"), config, "1x15")

    def fits(other: MemoryPlan) -> bool:
        return best_fit(other) is not None

    context, cache = what_would_fit(plan, fits, 74752)[:2]
    quantized = plan.with_config(cache_type_k="q8_0", cache_type_v="q8_0")

    assert context == "a context of up to 74,752 tokens fits"
    assert cache == "a q8_0 KV cache makes it fit"
    assert not any("q8_0" in said for said in what_would_fit(quantized, fits, 0))
    assert what_would_fit(plan, lambda _: False, 0) == []


def test_the_best_quantization_that_fits_is_named(
    header_of: Callable[[str], GGUFHeader],
) -> None:
    """The usual ones first; a rare one only where no usual one is small enough."""
    plan = plan_memory(header_of("llama-3.1-8b"), ON_GPU, "1x15")

    def below(most_bytes: float) -> list[str]:
        return what_would_fit(plan, lambda each: each.model_bytes < most_bytes, 0)[-1:]

    own = plan.model_bytes

    assert below(0.95 * own) == ["quantized as Q4_0 it fits (estimated)"]
    assert below(0.7 * own) == ["quantized as IQ3_XXS it fits (estimated)"]
    assert below(0.44 * own) == ["quantized as IQ1_M it fits (estimated)"]
    assert below(0.01 * own) == []


def test_the_file_of_a_plan_is_known(
    header_of: Callable[[str], GGUFHeader], tmp_path: Path
) -> None:
    """A plan of a file on this machine names it; one of bytes names none."""
    header = header_of("llama-3.2-1b")
    demo = Path(__file__).parents[2] / "llamatelemetry" / "data" / "demo-q8_0.gguf"

    assert model_file(plan_memory(header)) == header.source
    assert model_file(plan_memory(demo.read_bytes())) is None
