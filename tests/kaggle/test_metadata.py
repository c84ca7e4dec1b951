"""The metadata of notebooks and datasets, against what Kaggle asks of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llamatelemetry.setup.catalog import catalog

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PLACEHOLDER = "INSERT_YOUR_USER_NAME"


def metadata(path: str) -> dict[str, Any]:
    """Return a metadata file below kaggle/."""
    found: dict[str, Any] = json.loads((ROOT / "kaggle" / path).read_text())
    return found


def test_each_notebook_has_metadata_and_nothing_else_has() -> None:
    """The folders of kaggle/ are the notebooks, neither more nor fewer."""
    folders = {path.parent.name for path in ROOT.glob("kaggle/*/kernel-metadata.json")}

    assert folders == set(NOTEBOOKS)
    assert len(folders) == 13


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_asks_for_two_t4s_and_says_whether_internet_is_on(name: str) -> None:
    """Nothing is left to Kaggle's defaults, which code and documents give differently.

    The title is the notebook's name, and the id what Kaggle makes of the title: another
    one gives a notebook at an address that no link knows.
    """
    found = metadata(f"{name}/kernel-metadata.json")
    title = "llamatelemetry " + name.replace("_", " ")

    assert found == {
        "id": f"{PLACEHOLDER}/{title.replace(' ', '-')}",
        "title": title,
        "code_file": f"{name}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "machine_shape": "NvidiaTeslaT4",
        "enable_tpu": False,
        "enable_internet": True,
        "dataset_sources": [],
        "competition_sources": [],
        "kernel_sources": [],
        "model_sources": [],
        "keywords": [],
    }
    assert 5 <= len(title) <= 50


@pytest.mark.parametrize("name", ["capsule", "wheel"])
def test_a_dataset_keeps_kaggles_limits(name: str) -> None:
    """Title, address and subtitle have lengths that Kaggle takes; one licence."""
    found = metadata(f"{name}/dataset-metadata.json")
    user, _, slug = found["id"].partition("/")

    assert user == PLACEHOLDER
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug)
    # The documents say 3; Kaggle's program refuses below 6.
    assert 6 <= len(slug) <= 50
    assert 6 <= len(found["title"]) <= 50
    assert 20 <= len(found["subtitle"]) <= 80
    assert len(found["licenses"]) == 1


def test_the_capsule_has_its_models_licence() -> None:
    """What is on Kaggle is the model; its licence is the catalog's."""
    found = metadata("capsule/dataset-metadata.json")
    model = found["title"].rpartition(" ")[2]
    licences = {entry.id: entry.license for entry in catalog()}

    assert found["licenses"] == [{"name": licences[model]}]
