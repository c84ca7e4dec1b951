"""Kaggle's own program takes what is pushed, as far as that goes without Kaggle.

The program is the real one: it reads and checks the folders and builds its requests.
They end at a stand-in for Kaggle's service; what Kaggle itself makes of them was never
seen.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
from kaggle_tools import (
    USER,
    StandInKaggle,
    kaggle_program,
    stand_in_kaggle,
    variables_for,
)

from tests.conftest import missing_part

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
Push = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def kaggle() -> Iterator[StandInKaggle]:
    """A stand-in for Kaggle's service."""
    with stand_in_kaggle() as service:
        yield service


@pytest.fixture
def push(kaggle: StandInKaggle, tmp_path: Path) -> Push:
    """Runs the push tool with the real program and the stand-in."""
    program = kaggle_program()
    if program is None:
        missing_part("Kaggle's program", "run `make .venv/kaggle/installed`")
        raise AssertionError
    home = tmp_path / "home"
    home.mkdir()
    variables = variables_for(program, kaggle, home)
    # The wheel is built with what is here: 0 means "without isolation".
    variables["PIP_NO_BUILD_ISOLATION"] = "0"

    def run(*arguments: str, tool: Path = ROOT) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tool / "kaggle/push.py"), USER, *arguments]
        return subprocess.run(
            [*command, "--into", str(tmp_path / "into")],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.slow
def test_every_notebook_is_taken(push: Push, kaggle: StandInKaggle) -> None:
    """The real program has no complaint, and sends two T4s, internet and the cells."""
    done = push("all")

    assert done.returncode == 0, done.stdout + done.stderr
    # The program says so where Kaggle would give another address than the id.
    assert "surprising" not in done.stdout
    assert done.stdout.count("successfully pushed") == len(NOTEBOOKS)
    sent = kaggle.said("SaveKernel")
    assert [request["slug"] for request in sent] == [
        f"{USER}/llamatelemetry-{name.replace('_', '-')}" for name in NOTEBOOKS
    ]
    for request, name in zip(sent, NOTEBOOKS, strict=True):
        expected = {
            "machineShape": "NvidiaTeslaT4",
            "enableGpu": True,
            "enableTpu": False,
            "enableInternet": True,
            "isPrivate": True,
            "kernelType": "notebook",
            "language": "python",
        }
        assert request.items() >= expected.items()
        cells = json.loads(request["text"])["cells"]
        notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
        assert [cell["source"] for cell in cells] == [
            "".join(cell["source"]) for cell in notebook["cells"]
        ]
        assert not any(cell.get("outputs") for cell in cells)


def test_an_unpublished_notebook_brings_the_wheel(
    push: Push, kaggle: StandInKaggle
) -> None:
    """Until there is a release the dataset of the wheel is attached; then it is not."""
    push(NOTEBOOKS[0])

    published = '\nRELEASE = ""\n' not in (ROOT / "kaggle/install.py").read_text()
    sources = kaggle.said("SaveKernel")[0].get("datasetDataSources", [])
    assert sources == ([] if published else [f"{USER}/llamatelemetry-wheel"])


def test_a_dry_run_sends_nothing(
    push: Push, kaggle: StandInKaggle, tmp_path: Path
) -> None:
    """The folders are there to look at, with the user's name; no request was made."""
    done = push("all", "--dry-run")

    assert done.returncode == 0, done.stderr
    assert kaggle.requests == []
    for name in NOTEBOOKS:
        folder = tmp_path / "into" / name
        cells = json.loads((folder / f"{name}.ipynb").read_text())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert code
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
        text = (folder / "kernel-metadata.json").read_text()
        assert f'"{USER}/llamatelemetry-' in text
        assert "INSERT" not in text


@pytest.mark.slow
def test_the_wheel_becomes_a_dataset(push: Push, kaggle: StandInKaggle) -> None:
    """It is built and uploaded; a second time it is a new version."""
    done = push("wheel")

    assert done.returncode == 0, done.stdout + done.stderr
    (created,) = kaggle.said("CreateDataset")
    assert created["slug"] == "llamatelemetry-wheel"
    assert created["isPrivate"]
    ((name, content),) = kaggle.uploads.items()
    assert name.endswith("-py3-none-any.whl")
    assert "llamatelemetry/__init__.py" in ZipFile(BytesIO(content)).namelist()

    done = push("wheel", "--version", "again")
    assert done.returncode == 0, done.stdout + done.stderr
    (version,) = kaggle.said("CreateDatasetVersion")
    assert version["body"]["versionNotes"] == "again"


def packed(folder: Path, title: str) -> Path:
    """Make a folder as ``llamatelemetry pack`` does, as far as pushing looks at it."""
    for part in ("engine", "model", "wheels"):
        (folder / part).mkdir(parents=True)
        (folder / part / "file").write_text(part)
    (folder / "capsule.json").write_text("{}")
    metadata = {
        "title": title,
        "id": f"INSERT_YOUR_USER_NAME/{title.replace(' ', '-')}",
        "licenses": [{"name": "other"}],
    }
    (folder / "dataset-metadata.json").write_text(json.dumps(metadata))
    return folder


@pytest.mark.parametrize(
    ("model", "licence"), [("qwen3-4b", "apache-2.0"), ("some-model", "other")]
)
def test_a_capsule_becomes_a_dataset(
    push: Push, kaggle: StandInKaggle, tmp_path: Path, model: str, licence: str
) -> None:
    """Folders and all; with the licence of its model, or as it was packed."""
    capsule = packed(tmp_path / "capsule", f"llamatelemetry capsule {model}")
    before = (capsule / "dataset-metadata.json").read_text()
    done = push(f"capsule={capsule}")

    assert done.returncode == 0, done.stdout + done.stderr
    (created,) = kaggle.said("CreateDataset")
    assert created["slug"] == f"llamatelemetry-capsule-{model}"
    assert created["licenseName"] == licence
    assert sorted(kaggle.uploads) == [
        "capsule.json",
        "engine.zip",
        "model.zip",
        "wheels.zip",
    ]
    assert ZipFile(BytesIO(kaggle.uploads["model.zip"])).read("file") == b"model"
    assert (capsule / "dataset-metadata.json").read_text() == before


@pytest.mark.parametrize(
    "answer",
    [
        {"error": "Notebook title is taken"},
        {"versionNumber": 1, "url": "", "invalidDatasetSources": ["x/y"]},
    ],
)
def test_a_refusal_is_told(
    push: Push, kaggle: StandInKaggle, answer: dict[str, object]
) -> None:
    """Kaggle's program ends with 0 then; the tool does not."""
    kaggle.answers["SaveKernel"] = answer
    done = push(NOTEBOOKS[0])

    assert done.returncode == 1
    assert "title is taken" in done.stdout or "not valid dataset" in done.stdout


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("title", "abc", "Title must be at least five characters"),
        ("language", "perl", "A valid language must be specified"),
        ("kernel_type", "letter", "A valid kernel type must be specified"),
        ("code_file", "nothing.ipynb", "Source file not found"),
        ("title", "llamatelemetry first", "surprising behavior"),
    ],
)
def test_the_program_looks_at_the_metadata(
    push: Push, tmp_path: Path, key: str, value: str, complaint: str
) -> None:
    """What it has to say about wrong metadata is what the tests above did not hear."""
    push(NOTEBOOKS[0], "--dry-run")
    folder = tmp_path / "into" / NOTEBOOKS[0]
    place = folder / "kernel-metadata.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {key: value}))
    program = kaggle_program()
    assert program is not None
    with stand_in_kaggle() as service:
        done = subprocess.run(
            [str(program), "kernels", "push", "-p", str(folder)],
            env=variables_for(program, service, tmp_path / "home"),
            capture_output=True,
            text=True,
            check=False,
        )

    assert complaint in done.stdout + done.stderr


def test_a_cell_that_is_not_the_install_cell_is_not_pushed(
    push: Push, kaggle: StandInKaggle, tmp_path: Path
) -> None:
    """A notebook whose second cell was changed by hand stays here."""
    tree = tmp_path / "tree"
    name = NOTEBOOKS[0]
    for place in (f"kaggle/{name}/kernel-metadata.json", f"notebooks/{name}.ipynb"):
        (tree / place).parent.mkdir(parents=True)
        shutil.copyfile(ROOT / place, tree / place)
    for place in ("kaggle/push.py", "kaggle/install.py"):
        shutil.copyfile(ROOT / place, tree / place)
    notebook = tree / f"notebooks/{name}.ipynb"
    notebook.write_text(notebook.read_text().replace("is here already", "is here"))
    done = push(name, tool=tree)

    assert done.returncode == 1
    assert "its second cell is not kaggle/install.py" in done.stderr
    assert kaggle.requests == []


def test_what_is_asked_for_has_to_exist(push: Push, kaggle: StandInKaggle) -> None:
    """A wrong name is told with the right ones; so is a folder that is no capsule."""
    unknown, no_capsule = push("12_nothing"), push("capsule=/nothing")

    assert "'12_nothing' is none of: 01_quick_start, " in unknown.stderr
    assert "/nothing is no capsule" in no_capsule.stderr
    assert kaggle.requests == []
