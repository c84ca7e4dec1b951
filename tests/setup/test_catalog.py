"""The catalog of recommended models."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import pytest

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.setup._names import parse_reference
from llamatelemetry.setup.catalog import CatalogFile, CatalogModel, catalog, find_model

by_id = pytest.mark.parametrize("model", catalog(), ids=lambda model: model.id)


@by_id
def test_every_entry_is_complete(model: CatalogModel) -> None:
    """Names, counts and digests have the form that they must have."""
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", model.id)
    assert model.tasks
    assert set(model.tasks) <= {"chat", "reasoning", "coder", "vision", "embedding"}
    assert model.files
    for file in (*model.files, *([model.mmproj] if model.mmproj else [])):
        check_file(file)
    assert model.total_bytes == sum(file.bytes for file in model.files)
    assert model.parameters > 100_000_000
    assert model.active_parameters is None or (
        0 < model.active_parameters < model.parameters
    )
    assert 512 <= model.native_context <= 2**20
    assert model.architecture
    assert model.license
    assert model.fits in {("t4", "t4x2"), ("t4x2",)}
    assert model.min_llama_cpp is None or model.min_llama_cpp >= 7760
    assert (model.min_llama_cpp is None) == bool(model.min_llama_cpp_note)
    assert model.runs_on_b7760 == (model.min_llama_cpp == 7760)


def check_file(file: CatalogFile) -> None:
    """Assert that a file of the catalog is well-formed."""
    assert file.path.endswith(".gguf")
    assert type(file.bytes) is int
    assert file.bytes > 100_000_000
    assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
    assert file.revision is None or re.fullmatch(r"[0-9a-f]{40}", file.revision)


@by_id
def test_every_name_tells_the_quantization(model: CatalogModel) -> None:
    """The file name parses, and bits for a weight are what such a file can have."""
    assert model.quantization is not None
    assert 3.5 < model.total_bytes * 8 / model.parameters < 10


@by_id
def test_every_reference_leads_to_its_file(model: CatalogModel) -> None:
    """The reference parses back into repository, file and revision."""
    reference = parse_reference(model.reference)
    assert reference is not None
    assert reference.repo == model.repo
    assert reference.path == model.files[0].path
    assert reference.revision == model.files[0].revision


def test_names_and_files_are_unique() -> None:
    """No name stands there twice, and no file."""
    models = catalog()
    assert len({model.id for model in models}) == len(models) == 29
    digests = [file.sha256 for model in models for file in model.files if file.sha256]
    assert len(set(digests)) == len(digests)


def test_the_catalog_says_that_it_was_not_checked() -> None:
    """The table states that its figures were not compared with the Hub."""
    text = files("llamatelemetry.setup").joinpath("catalog.json").read_text("utf-8")
    table = json.loads(text)
    assert table["confirmed_live"] is False
    assert "not checked against the Hub" in table["about"]


def test_models_are_found_by_name() -> None:
    """A name in any case finds its model; the table is read once."""
    assert find_model("Qwen3-4B").repo == "Qwen/Qwen3-4B-GGUF"
    assert find_model("qwen2.5-7b-split").total_bytes == 3993201344 + 689872288
    assert catalog() is catalog()


def test_an_unknown_name_brings_the_nearest() -> None:
    """A name that is not there is answered with those like it, or with some."""
    with pytest.raises(
        ConfigurationError, match=r"'qwen3-4'; the nearest are: qwen3-4b"
    ):
        find_model("qwen3-4")
    with pytest.raises(
        ConfigurationError, match=r"among others: qwen3-0.6b, .*qwen3.5-4b"
    ):
        find_model("xyzzy")
