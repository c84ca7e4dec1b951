"""The models that a panel offers."""

from __future__ import annotations

from pathlib import Path

import pytest
from nvml_tools import MIB

from llamatelemetry._environment import detect_platform
from llamatelemetry.gguf._cards import GPUMemory
from llamatelemetry.setup import _search
from llamatelemetry.setup.catalog import find_model
from llamatelemetry.widgets._model_choices import (
    DEMO,
    FoundModels,
    default_model,
    find_models,
    model_choices,
    models_in,
)

T4S = GPUMemory.t4(2)
NOTHING = FoundModels()


def label_of(name: str, **options: object) -> str:
    """Return the label of one model on two T4s."""
    choices = model_choices(NOTHING, T4S, 4096, **options)  # type: ignore[arg-type]
    return next(choice.label for choice in choices if choice.name == name)


def test_what_fits_is_marked_in_words() -> None:
    """On one T4 a 32B is too large and an 8B fits; on two both do."""
    one = {each.name: each.label for each in model_choices(NOTHING, T4S[:1], 4096)}

    assert "too large" in one["qwen3-32b"]
    assert "· fits" in one["qwen3-8b"]
    assert "· fits" in label_of("qwen3-32b")


def test_the_mark_follows_context_and_cache() -> None:
    """What fits with little context does with much if its cache is packed."""

    def label(context: int, cache: str) -> str:
        choices = model_choices(
            NOTHING, T4S[:1], context, cache_type_k=cache, cache_type_v=cache
        )
        return next(one.label for one in choices if one.name == "qwen3-14b")

    assert "· fits" in label(4096, "f16")
    assert "too large" in label(32_768, "f16")
    assert "· fits" in label(32_768, "q4_0")


def test_models_of_this_machine_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of the working folder, of attached datasets and of the Hub's cache.

    Shards are one model, a projector is none, and what is hidden or deep is not looked
    into.
    """
    work, attached = tmp_path / "work", tmp_path / "input"
    for path in (
        work / "own.gguf",
        work / "sub" / "big-00001-of-00002.gguf",
        work / "sub" / "big-00002-of-00002.gguf",
        work / "sub" / "mmproj-F16.gguf",
        work / ".hidden" / "no.gguf",
        work / "a" / "b" / "c" / "d" / "deep.gguf",
        attached / "set" / "theirs.GGUF",
        tmp_path / "hub/models--some--Repo/snapshots/abc/model-Q4_K_M.gguf",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF" * 250)
    platform = detect_platform()
    monkeypatch.setattr(
        _search,
        "detect_platform",
        lambda: type(platform)("kaggle", "interactive", tmp_path, work, attached),
    )
    monkeypatch.setattr(_search, "default_cache", lambda: tmp_path / "hub")
    found = find_models(work)

    assert found.local == (
        (str(work / "own.gguf"), 1000),
        (str(work / "sub" / "big-00001-of-00002.gguf"), 2000),
    )
    assert found.attached == ((str(attached / "set" / "theirs.GGUF"), 1000),)
    assert found.cached == (("some/Repo:model-Q4_K_M.gguf", 1000),)
    labels = [choice.label for choice in model_choices(found, T4S, 4096)]
    assert any(
        "Hub's cache · some/Repo:model-Q4_K_M.gguf · 1.0 kB" in one for one in labels
    )
    assert any(one.startswith("attached · ") and "theirs.GGUF" in one for one in labels)


def test_a_look_at_a_folder_ends(tmp_path: Path) -> None:
    """No folder is followed by its link, so that a ring of them ends."""
    (tmp_path / "ring").symlink_to(tmp_path)
    (tmp_path / "one.gguf").write_bytes(b"GGUF")

    assert models_in(tmp_path) == [tmp_path / "one.gguf"]


def test_a_model_of_the_catalog_says_that_it_is_here() -> None:
    """What the cache holds of the catalog is one line, and not two."""
    entry = find_model("qwen3-4b")
    name = f"{entry.repo}:{entry.files[0].path}"
    choices = model_choices(FoundModels(cached=((name, 1),)), T4S, 4096)

    assert [one.name for one in choices if one.name in (name, "qwen3-4b")] == [
        "qwen3-4b"
    ]
    label = next(one.label for one in choices if one.name == "qwen3-4b")
    assert label.endswith("· downloaded")


def test_what_is_in_use_is_in_the_list_once() -> None:
    """A model that nothing here names has a line of its own, and no other twice."""
    with_it = model_choices(NOTHING, T4S, 4096, also="/elsewhere/model.gguf")

    assert with_it[-1].name == "/elsewhere/model.gguf"
    assert len(model_choices(NOTHING, T4S, 4096, also=DEMO)) == len(with_it) - 1


def test_names_of_files_cannot_steer_the_list(tmp_path: Path) -> None:
    """Line ends and marks of direction in a name go, and a long one is cut."""
    name = str(tmp_path / ("x" * 300 + "\n\u202e.gguf"))
    label = model_choices(FoundModels(local=((name, 5),)), T4S, 4096)[1].label

    assert label.isprintable()
    assert len(label) < 80


def test_the_first_choice_is_what_launch_would_take() -> None:
    """The model recommended for the cards; without any, or room, the demo model."""
    assert default_model(T4S) == "qwen3-32b"
    assert default_model([]) == DEMO
    assert default_model([GPUMemory(0, 64 * MIB)]) == DEMO


def test_a_model_among_very_many_files_is_found(tmp_path: Path) -> None:
    """A folder is looked at as a whole before the look ends."""
    (tmp_path / "model.gguf").touch()
    for number in range(20_001):
        (tmp_path / f"{number}.png").touch()

    assert models_in(tmp_path) == [tmp_path / "model.gguf"]
