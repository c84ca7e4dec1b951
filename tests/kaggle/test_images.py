"""An install on Kaggle's and on Colab's image changes nothing, and notebook 01 runs.

The environments have the images' versions, as far as they are known and matter here
(``images/*.txt``), on the images' own Python where this machine has it. The folders are
real ones of a root folder of their own: /kaggle/input cannot be written to,
/kaggle/working has 20 MB, and the network is loopback alone. The cards are the library
that stands in for two T4s. None of this was run on Kaggle or on Colab.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kaggle_tools import image_environment, notebook_in_a_world, versions_in
from nvml_tools import StandInDriver, t4

from tests.conftest import missing_part

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUICK_START = ROOT / "notebooks" / "01_quick_start.ipynb"
PINNED = {
    "kaggle": {"ipywidgets": "8.1.5", "numpy": "2.0.2", "huggingface_hub": "1.11.0"},
    "colab": {"ipywidgets": "7.7.1", "numpy": "2.1.3", "huggingface_hub": "1.27.0"},
}
# A last cell that says where the notebook ran.
PROBE = """
import os, shutil
import huggingface_hub, ipykernel, ipywidgets, numpy
from llamatelemetry._environment import detect_platform
for name in ("input", "working"):
    place = f"/kaggle/{name}"
    if os.path.isdir(place):
        print(name, os.access(place, os.W_OK), shutil.disk_usage(place).total)
print("ran on", detect_platform().title, "with", ipykernel.__version__,
      ipywidgets.__version__, numpy.__version__, huggingface_hub.__version__)
"""


@dataclass(frozen=True)
class Image:
    """An environment with an image's versions.

    Attributes:
        name: "kaggle" or "colab".
        environment: Its folder.
        installed: What is in it.
        added: What pip would add for this package, by its name.
        wheels: A folder with the wheels of that, this package's included.
    """

    name: str
    environment: Path
    installed: dict[str, str]
    added: dict[str, str]
    wheels: Path

    @property
    def wheel(self) -> Path:
        """This package's wheel."""
        return next(self.wheels.glob("llamatelemetry-*.whl"))


def pip(environment: Path, *arguments: str) -> str:
    """Run an environment's pip and return what it printed."""
    quiet = ["--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [environment / "bin/python", "-m", "pip", *arguments, *quiet],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def what_pip_would_do(environment: Path, *requirements: str) -> dict[str, str]:
    """Return the packages that an install would add or exchange, by name."""
    report = pip(
        environment, "install", "--dry-run", "--report", "-", *map(str, requirements)
    )
    found = [each["metadata"] for each in json.loads(report)["install"]]
    return {each["name"]: each["version"] for each in found}


@pytest.fixture(scope="module", params=["kaggle", "colab"])
def image(
    request: pytest.FixtureRequest,
    wheel: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Image:
    """Each of the two images."""
    environment = image_environment(request.param)
    if environment is None:
        missing_part(
            f"the environment with {request.param}'s versions",
            f"run `make .venv/image-{request.param}/installed`",
        )
        raise AssertionError
    added = what_pip_would_do(environment, f"{wheel}[cpu]")
    wheels = tmp_path_factory.mktemp("wheels")
    shutil.copy(wheel, wheels)
    others = [
        f"{name}=={version}"
        for name, version in added.items()
        if name != "llamatelemetry"
    ]
    pip(environment, "download", "--no-deps", "--dest", str(wheels), *others)
    installed = versions_in(environment)
    return Image(request.param, environment, installed, added, wheels)


def test_an_install_changes_nothing_that_is_there(image: Image, wheel: Path) -> None:
    """pip, free to take the newest of everything, would only add packages.

    The control: one that needs another version of what is there is seen to change it.
    """
    assert image.installed.items() >= PINNED[image.name].items()
    assert "llamatelemetry" in image.added
    assert image.added.keys() & image.installed.keys() == set()

    newer = what_pip_would_do(image.environment, f"{wheel}[cpu]", "tqdm!=4.67.3,<4.70")
    assert newer.keys() & image.installed.keys() == {"tqdm"}


@pytest.fixture
def run(
    image: Image, tmp_path: Path, driver: StandInDriver
) -> Callable[..., dict[str, Any]]:
    """Runs notebook 01 on top of the image's environment."""
    driver.describe(t4(0), t4(1))
    folders, world = tmp_path / "folders", tmp_path / "world"
    if image.name == "kaggle":
        for name in ("working", "temp"):
            (folders / "kaggle" / name).mkdir(parents=True)
        shutil.copytree(image.wheels, folders / "kaggle" / "input" / "wheels")
    else:
        (folders / "content").mkdir(parents=True)
    world.mkdir()
    (tmp_path / "home").mkdir()
    notebook = json.loads(QUICK_START.read_text())
    probe = {"cell_type": "code", "id": "probe", "metadata": {}, "source": PROBE}
    notebook["cells"].append(probe | {"outputs": [], "execution_count": None})
    if image.name == "colab":  # nothing is attached there: the release is taken
        source = "".join(notebook["cells"][1]["source"])
        assert 'RELEASE = "' in source
        start, _, end = source.partition('RELEASE = "')
        rest = end.partition('"')[2]
        notebook["cells"][1]["source"] = (
            f'{start}RELEASE = "{image.wheel.as_uri()}"{rest}'
        )
    place = tmp_path / "notebook.ipynb"
    place.write_text(json.dumps(notebook))
    where = "/kaggle/working" if image.name == "kaggle" else "/content"
    variables = {
        "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": str(tmp_path / "home"),
        "LLAMATELEMETRY_DEMO": "1",
        "LD_LIBRARY_PATH": str(driver.library.parent),
        "STAND_IN_NVML": str(tmp_path / "nvml-description"),
        "PIP_NO_COMPILE": "1",  # only to save time
        # Where the index would be asked, these wheels answer.
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(image.wheels) if image.name == "colab" else "",
    }

    def run_notebook(**more: str) -> dict[str, Any]:
        command = notebook_in_a_world(world, folders, image.environment, place, where)
        done = subprocess.run(
            command,
            env=variables | more,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        if done.stderr.startswith("unshare:"):
            missing_part("the right to make namespaces", "run as root")
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run_notebook


def printed(cell: dict[str, Any]) -> str:
    """Return what a cell printed."""
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def errors(cells: list[dict[str, Any]]) -> list[str]:
    """Return the errors of cells."""
    return [
        f"{output['ename']}: {output['evalue']}"
        for cell in cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]


def check(found: dict[str, Any], image: Image, title: str) -> None:
    """See that the notebook ran there, and what the install did."""
    cells = found["cells"]
    assert errors(cells) == []
    assert printed(cells[1]).startswith("installing llamatelemetry from ")
    pinned = PINNED[image.name]
    versions = [pinned[name] for name in ("ipywidgets", "numpy", "huggingface_hub")]
    said = " ".join(["ran on", title, "with 6.17.1", *versions])
    assert printed(cells[-1]).endswith(f"{said}\n")
    assert found["versions"] == image.installed | image.added
    shown = json.dumps(cells)
    assert "Tesla T4" in shown
    assert "LLAMATELEMETRY_DEMO is set" in shown


@pytest.mark.parametrize("image", ["kaggle"], indirect=True)
@pytest.mark.parametrize("mode", ["Interactive", "Batch"])
def test_notebook_01_runs_on_kaggle(
    image: Image, run: Callable[..., dict[str, Any]], mode: str
) -> None:
    """From an attached folder of wheels, without internet; output keeps its room.

    Interactive and batch differ here by Kaggle's variable alone: a front end that
    answers is what the browser tests have.
    """
    found = run(KAGGLE_KERNEL_RUN_TYPE=mode)

    check(found, image, f"Kaggle ({mode.lower()})")
    told = printed(found["cells"][1])
    assert f"/kaggle/input/wheels/{image.wheel.name} ...\ninstalled\n" in told
    world = printed(found["cells"][-1])
    assert "input False" in world  # read-only
    assert f"working True {20 * 2**20}" in world
    # Models and engines belong to scratch; what is kept as output is small.
    assert sum(found["left"].values()) < 1_000_000


@pytest.mark.parametrize("image", ["colab"], indirect=True)
def test_notebook_01_runs_on_colab(
    image: Image, run: Callable[..., dict[str, Any]]
) -> None:
    """From a release's address, below /content, with ipywidgets 7."""
    found = run(COLAB_RELEASE_TAG="release-colab-external_20260801")

    check(found, image, "Colab")
