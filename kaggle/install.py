"""Install llamatelemetry, unless it is here. See docs/KAGGLE_GUIDE.md."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

# What is installed where no wheel is attached.
RELEASE = ""


def install_llamatelemetry() -> None:
    """Install from an attached wheel, else from the release, and say which."""
    spec = importlib.util.find_spec("llamatelemetry")
    if spec is not None and spec.origin is not None:  # a folder alone has no origin
        version = importlib.import_module("llamatelemetry").__version__
        print(f"llamatelemetry {version} is here already")
        return
    # Not deeper than five folders: a competition may have a million files there.
    deep = ["*/" * depth + "llamatelemetry-*.whl" for depth in range(6)]
    wheels = {wheel for path in deep for wheel in Path("/kaggle/input").glob(path)}
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-color"]
    if wheels:
        newest = max(wheels, key=lambda wheel: Version(wheel.name.split("-")[1]))
        source = str(newest)
        command += [f"{source}[cpu]"]
        if set(newest.parent.glob("*.whl")) - wheels:  # what it needs lies beside it
            command += ["--no-index", "--find-links", str(newest.parent)]
    elif RELEASE:
        source = RELEASE
        command += [f"llamatelemetry[cpu] @ {RELEASE}"]
    else:
        kaggle = Path("/kaggle").is_dir()
        raise RuntimeError(
            "llamatelemetry is not published yet, and "
            + (
                "no wheel of it is attached: add a dataset with one to this notebook "
                "(the Kaggle guide of its documentation says how)"
                if kaggle
                else "is not in this kernel's environment: in a clone of its "
                'repository run pip install ".[cpu]", and restart the kernel'
            )
        )
    print(f"installing llamatelemetry from {source} ...")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"pip could not install {source}; is the internet on "
            "(Settings → Internet)? Without it attach a capsule: it has the wheels.\n"
            + done.stderr[-2000:]
        )
    importlib.invalidate_caches()
    print("installed")


install_llamatelemetry()
