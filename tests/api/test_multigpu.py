"""Several cards, by the names of the API reference."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvml_tools import StandInDriver, t4
from shapes import _add, _add_tensor, read_shapes, write_shape

import llamatelemetry.api
from llamatelemetry.api import multigpu
from llamatelemetry.api.multigpu import (
    create_tensor_split_config,
    kaggle_t4_dual_config,
)
from llamatelemetry.exceptions import ConfigurationError, OutOfMemoryError
from llamatelemetry.gguf.memory import GPUMemory, plan_memory
from llamatelemetry.server import ServerConfig

SHAPES = read_shapes()
FileOf = Callable[[str], Path]


@pytest.fixture(scope="session")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> FileOf:
    """Return a function that gives a file of a shape, whose data is a hole."""
    folder = tmp_path_factory.mktemp("shapes")

    def file(name: str) -> Path:
        path = folder / f"{name}.gguf"
        return path if path.exists() else write_shape(SHAPES[name], path, tokens=False)

    return file


# ── create_tensor_split_config ───────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("memory", "model", "split"),
    [
        ([15, 15], 10, "0.5,0.5"),
        ((15.0, 15.0), 27.3, "0.5,0.5"),
        ([15], 3, "1"),
        ([15, 15, 15], 10, "0.334,0.333,0.333"),
        ([15, 0.5], 3, "1,0"),
        ([0, 15, 15], 3, "0,0.5,0.5"),
        ([24, 15], 20, "0.62,0.38"),
        ([15] * 3, 41.14, "0.333334,0.333333,0.333333"),
        (np.array([15.0, 15.0]), np.float64(10), "0.5,0.5"),
        ([15] * 4, 40, "0.25,0.25,0.25,0.25"),
    ],
)
def test_shares_follow_what_the_cards_can_hold(
    memory: Any, model: float, split: str
) -> None:
    """The reference's example, and cards of other sizes and numbers."""
    assert create_tensor_split_config(memory, model) == split
    assert ServerConfig(None, tensor_split=split).tensor_split == split


@settings(max_examples=300, deadline=None)
@given(
    memory=st.lists(st.floats(0, 80), min_size=1, max_size=16),
    part=st.floats(0.01, 1),
)
def test_no_share_is_more_than_its_card_holds(memory: list[float], part: float) -> None:
    """Shares sum to 1, and rounding fills no card beyond its margin."""
    usable = [max((size - 0.29296875) / 1.05 - 0.29296875, 0) for size in memory]
    model = part * sum(usable)
    if not model:
        return
    shares = [float(s) for s in create_tensor_split_config(memory, model).split(",")]

    assert sum(shares) == pytest.approx(1, abs=1e-9)
    for share, most in zip(shares, usable, strict=True):
        assert share * model <= most + 2e-6 * model
        assert share > 0 or most / sum(usable) < 2e-3


def test_a_model_that_is_too_large_says_what_is_missing() -> None:
    """The shortfall, what the cards have, and what of it can be used."""
    with pytest.raises(ConfigurationError) as caught:
        create_tensor_split_config([15, 15], 40)

    for said in ("40.0 GiB", "12.57 GiB are missing", "30.0 GiB", "27.4"):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("memory", "model", "said"),
    [
        ([], 10, "gpu_memory"),
        ("15,15", 10, "15,15"),
        (15, 10, "15"),
        ([15] * 17, 10, "16 cards"),
        ([15, -1], 10, "-1"),
        ([15, float("nan")], 10, "nan"),
        ([15, True], 10, "True"),
        ([15, "15"], 10, "'15'"),
        ([15, 15360], 10, "15360"),
        ([15, 15], 0, "model_size_gb"),
        ([15, 15], -1, "-1"),
        ([15, 15], float("nan"), "nan"),
        ([15, 15], float("inf"), "inf"),
        ([15, 15], True, "True"),
        ([15, 15], "10", "'10'"),
    ],
)
def test_bad_sizes_are_named(memory: Any, model: Any, said: str) -> None:
    """What is no memory, or no size of a model, stands in the error."""
    with pytest.raises(ConfigurationError, match=said):
        create_tensor_split_config(memory, model)


# ── kaggle_t4_dual_config ────────────────────────────────────────────────────────


def test_two_t4s_without_a_model() -> None:
    """Even halves, everything on the cards, and a batch of four micro-batches."""
    config = kaggle_t4_dual_config()

    assert config == ServerConfig(
        None, n_gpu_layers=99, tensor_split="0.5,0.5", split_mode="layer",
        context_size=4096, n_batch=2048, n_ubatch=512, flash_attn=True,
    )  # fmt: skip
    assert "two Tesla T4s with 14.7 GiB free each" in config.notes[0]
    assert "no model was named" in config.notes[-1]
    assert not any(note in config.to_cli_args() for note in config.notes)


@pytest.mark.parametrize("cards", [0, 1, 4])
def test_the_cards_at_hand_do_not_matter(
    cards: int, driver: StandInDriver, file_of: FileOf
) -> None:
    """On a machine with none, one or four cards it is the same configuration."""
    path = file_of("llama-3.1-8b")
    before = kaggle_t4_dual_config(path), kaggle_t4_dual_config()
    driver.describe(*(t4(number) for number in range(cards)))

    assert (kaggle_t4_dual_config(path), kaggle_t4_dual_config()) == before
    assert before[0].visible_devices is None


@pytest.mark.parametrize(
    ("name", "context", "split", "micro"),
    [
        ("llama-3.1-8b", 4096, "0.5,0.5", 512),
        ("gpt-oss-20b", 131072, "0.5,0.5", 512),
        ("qwen3-30b-a3b", 114688, "24,25", 64),
    ],
)
def test_two_t4s_with_a_model(
    name: str, context: int, split: str, micro: int, file_of: FileOf
) -> None:
    """The plan decides split and micro-batch; context and the rest stay as asked."""
    path = file_of(name)
    config = kaggle_t4_dual_config(path, context)
    plan = plan_memory(path, config, GPUMemory.t4(2))

    assert config == kaggle_t4_dual_config(None, context).replace(
        model_path=str(path), tensor_split=split, n_ubatch=micro
    )
    assert plan.fits
    told = " ".join(config.notes)
    assert "expected on GPU 0" in told
    assert "and a margin of" in told
    assert f"micro-batches of {micro} tokens" in told
    assert ("larger ones do not fit" in told) == (micro < 512)
    assert f"tensor_split={split!r}" in told


def test_what_cannot_be_looked_at_is_planned_without(
    tmp_path: Path, demo_model: Path
) -> None:
    """No file, a folder, a broken file, and one of another kind: the same, and why."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(40))
    projector = write_shape(SHAPES["llama-3.2-1b"], tmp_path / "p.gguf", kind="mmproj")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(demo_model.read_bytes()[:5000])
    for path in (tmp_path / "absent.gguf", tmp_path, broken, cut, "x" * 5000):
        config = kaggle_t4_dual_config(path)

        assert config == kaggle_t4_dual_config().replace(model_path=str(path))
        assert "was not looked at" in config.notes[-1]
    assert "no such file" in kaggle_t4_dual_config("absent.gguf").notes[-1]
    assert kaggle_t4_dual_config(projector).model_path == str(projector)
    assert "expected on" in " ".join(kaggle_t4_dual_config(demo_model).notes)


@pytest.mark.parametrize("context", [1, 100, 4097, 50_001, 0])
def test_an_asked_context_is_kept(context: int, file_of: FileOf) -> None:
    """Whatever the number, with and without a model."""
    assert kaggle_t4_dual_config(None, context).context_size == context
    named = kaggle_t4_dual_config(file_of("llama-3.1-8b"), context)
    assert named.context_size == context


@pytest.mark.no_cover  # hundreds of graphs take four times as long where it is on
@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "qwen3-14b", "llama-2-13b"])
def test_a_context_that_cannot_fit_names_the_largest(
    name: str, file_of: FileOf
) -> None:
    """The error says what is missing; the context it names works when asked for."""
    path = file_of(name)
    with pytest.raises(OutOfMemoryError) as caught:
        kaggle_t4_dual_config(path, 260_000)
    error = caught.value
    largest = error.largest_context

    assert largest
    assert error.needed is not None
    assert error.free == GPUMemory.t4(1)[0].free_bytes
    assert error.needed > error.free
    assert error.device in ("CUDA0", "CUDA1")
    assert error.suggestion is not None
    assert f"{largest:,} tokens" in error.suggestion
    assert error.suggestion in str(error)
    assert kaggle_t4_dual_config(path, largest).context_size == largest
    trained = SHAPES[name].metadata["context_length"]
    if largest + 256 <= trained:
        with pytest.raises(OutOfMemoryError):
            kaggle_t4_dual_config(path, largest + 256)


def test_a_model_that_is_too_large_names_a_quantization(tmp_path: Path) -> None:
    """No context helps it: the largest is 0, and a smaller file is suggested."""
    shape = SHAPES["qwen3-235b-a22b-6-layers"]
    tensors = {
        pattern.replace("{0-5}", "{0-23}"): entry
        for pattern, entry in shape.tensors.items()
    }
    large = replace(
        shape, tensors=tensors, metadata={**shape.metadata, "block_count": 24}
    )
    path = write_shape(large, tmp_path / "large.gguf", tokens=False)
    with pytest.raises(OutOfMemoryError) as caught:
        kaggle_t4_dual_config(path)

    assert caught.value.largest_context == 0
    assert "fits (estimated)" in str(caught.value.suggestion)


def test_more_than_99_layers_are_all_on_the_cards(tmp_path: Path) -> None:
    """A model with more layers than the reference's 99 gets its own number."""
    shape = SHAPES["qwen2.5-0.5b"]
    tensors = {
        pattern.replace("{0-23}", "{0-119}"): entry
        for pattern, entry in shape.tensors.items()
    }
    deep = replace(
        shape, tensors=tensors, metadata={**shape.metadata, "block_count": 120}
    )
    path = write_shape(deep, tmp_path / "deep.gguf", tokens=False)
    config = kaggle_t4_dual_config(path)

    assert config.n_gpu_layers == 121
    assert plan_memory(path, config, "2x15").host.kv_cache == 0


def test_a_later_shard_becomes_the_first(tmp_path: Path) -> None:
    """llama.cpp loads a model by its first shard; any of them may be named here."""
    shape = SHAPES["llama-3.2-1b"]
    writer = gguf.GGUFWriter(
        str(tmp_path / "model.gguf"), shape.architecture, split_max_tensors=80
    )
    for key, value in shape.metadata.items():
        _add(writer, f"{shape.architecture}.{key}", value)
    for name, kind, axes in shape.tensor_table():
        _add_tensor(writer, name, kind, axes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    first, second = sorted(tmp_path.iterdir())
    for path in (first, second):
        with path.open("r+b") as file:
            file.truncate(2**30)  # a hole for the data

    from_first = kaggle_t4_dual_config(first)
    assert kaggle_t4_dual_config(second) == from_first
    assert from_first.model_path == str(first)
    assert "expected on" in " ".join(from_first.notes)
    assert "first shard" not in " ".join(from_first.notes)
    assert "first shard" in " ".join(kaggle_t4_dual_config(second).notes)


def test_an_encoder_is_served_as_one(file_of: FileOf) -> None:
    """What only embeds gets embeddings, and inputs as long as a batch."""
    config = kaggle_t4_dual_config(file_of("nomic-embed-text-v1.5"), 2048)

    assert config.embeddings
    assert config.n_ubatch == config.n_batch == 2048
    assert any("embeds and does not write" in note for note in config.notes)


@pytest.mark.parametrize("context", [-1, 1.5, "4096", True])
def test_a_bad_context_is_refused(context: Any) -> None:
    """As by the configuration itself."""
    with pytest.raises(ConfigurationError, match="context_size"):
        kaggle_t4_dual_config(None, context)


# ── the names ────────────────────────────────────────────────────────────────────

PROBE = """
import json, sys
import llamatelemetry.api
light = [name for name in sys.modules if name.startswith("llamatelemetry")]
from llamatelemetry.api import kaggle_t4_dual_config
print(json.dumps([light, "llamatelemetry.gguf.memory" in sys.modules]))
"""


def test_the_room_is_light_until_a_name_is_asked_for() -> None:
    """Importing llamatelemetry.api loads no parser; a name of it does."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True
    )
    light, loaded = json.loads(done.stdout)

    assert sorted(light) == [
        "llamatelemetry",
        "llamatelemetry._lazy",
        "llamatelemetry.api",
    ]
    assert loaded


def test_the_reference_names_are_in_both_places() -> None:
    """Each name is the same object in the room and in its module; others are none."""
    for name in llamatelemetry.api.__all__:
        assert getattr(llamatelemetry.api, name) is getattr(multigpu, name)
        assert name in dir(llamatelemetry.api)
        assert name in dir(multigpu)
    assert sorted(multigpu.__all__) == sorted(llamatelemetry.api.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = llamatelemetry.api.no_such_name
