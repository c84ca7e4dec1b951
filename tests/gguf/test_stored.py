"""The headers that come with the package."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from llamatelemetry import plan_memory
from llamatelemetry.exceptions import ModelError
from llamatelemetry.gguf import GGUFParser, read_header
from llamatelemetry.gguf._stored import StoredSource, stored_names
from llamatelemetry.setup.catalog import catalog, find_model

STORED = stored_names()
LEAST_VOCABULARY, MOST_VOCABULARY = 3_500_000, 13_100_000  # bytes
SAME_VOCABULARY = {
    "Qwen3": ("qwen3-0.6b", "qwen3-4b", "qwen3-8b", "qwen3-14b", "qwen3-32b"),
    "Qwen2.5": (
        "qwen2.5-7b-split",
        "qwen2.5-coder-14b",
        "deepseek-r1-distill-qwen-14b",
    ),
    "Llama 3": ("llama-3.1-8b", "llama-3.2-3b", "smollm3-3b"),
}


def unexplained_bytes(name: str) -> int:
    """Return what of a model's file is not the data of its stored tensors."""
    entry = find_model(name)
    header = read_header(StoredSource(entry))
    return entry.total_bytes - sum(tensor.n_bytes for tensor in header.tensors)


@pytest.mark.parametrize("name", STORED)
def test_tensors_fill_the_file(name: str) -> None:
    """What the catalog says a file takes is its stored tensors and a vocabulary."""
    assert LEAST_VOCABULARY < unexplained_bytes(name) < MOST_VOCABULARY


@pytest.mark.parametrize("family", SAME_VOCABULARY)
def test_the_rest_is_the_vocabulary(family: str) -> None:
    """In files with the same vocabulary as much is left, to 60 kB in gigabytes."""
    rests = [unexplained_bytes(name) for name in SAME_VOCABULARY[family]]
    for one, other in itertools.combinations(rests, 2):
        assert abs(one - other) < 60_000


@pytest.mark.parametrize("name", STORED)
def test_architecture_and_context_are_the_catalogs(name: str) -> None:
    """A stored header names the architecture and the context of its entry."""
    entry = find_model(name)
    metadata = read_header(StoredSource(entry)).metadata

    assert entry.architecture == metadata["general.architecture"]
    stored = metadata[f"{entry.architecture}.context_length"]
    assert stored >= entry.native_context


@pytest.mark.parametrize("name", STORED)
def test_every_stored_model_can_be_planned(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them has a plan on two T4s, without a connection."""
    monkeypatch.setenv("LLAMATELEMETRY_DEMO", "1")

    plan = plan_memory(name, gpus="2x15")

    assert plan.fits
    assert find_model(name).id == plan.model


def test_plans_know_all_but_the_embedding_models() -> None:
    """The stored models are of architectures whose plans agree with llama.cpp."""
    unknown = {
        name
        for name in STORED
        if not plan_memory(read_header(StoredSource(find_model(name)))).known
    }
    assert not unknown


def test_a_model_that_is_not_stored_says_which_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A catalog model without a stored header is refused, with the names there are."""
    monkeypatch.setenv("LLAMATELEMETRY_DEMO", "1")
    missing = next(model.id for model in catalog() if model.id not in STORED)

    with pytest.raises(ModelError, match=f"{missing}.*not stored.*qwen3-4b"):
        read_header(missing)


def test_names_and_references_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name, a quantization and a file of one model give one header; a path wins."""
    monkeypatch.setenv("LLAMATELEMETRY_DEMO", "1")
    named = read_header("qwen3-4b")

    for reference in (
        "Qwen/Qwen3-4B-GGUF",
        "Qwen/Qwen3-4B-GGUF:Q4_K_M",
        "Qwen/Qwen3-4B-GGUF:Qwen3-4B-Q4_K_M.gguf",
        "QWEN3-4B",
    ):
        assert named == read_header(reference)


def test_a_file_of_that_name_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, demo_model: Path
) -> None:
    """A file that is here is read, whatever the catalog calls by its name."""
    monkeypatch.setenv("LLAMATELEMETRY_DEMO", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen3-4b").write_bytes(demo_model.read_bytes())

    assert read_header("qwen3-4b").metadata["general.architecture"] == "llama"


def test_the_parser_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's parser gives the facts of a stored header."""
    monkeypatch.setenv("LLAMATELEMETRY_DEMO", "1")
    parser = GGUFParser("qwen3-14b")

    assert parser.get_architecture() == "qwen3"
    assert parser.get_parameter_count() == 14_768_307_200
    assert parser.get_context_length() == 40_960
    assert parser.get_vocab_size() == 151_936


def test_nothing_stands_beside_a_stored_header() -> None:
    """A shard beside it is asked for in vain, and says so."""
    source = StoredSource(find_model("qwen3-4b"))

    with pytest.raises(ModelError, match="other.gguf is not stored"):
        source.sibling("other.gguf")
    source.close()
