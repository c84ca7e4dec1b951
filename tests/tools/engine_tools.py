"""Engines for tests of the setup: real archives that hold a program that really runs.

The program is a shell script that starts the embedded engine, so that what was
downloaded can be chatted with. What it says of itself is what the test wants.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import zstandard

T4_LINES = (
    "CUDA0: Tesla T4 (15095 MiB, 14995 MiB free)",
    "CUDA1: Tesla T4 (15095 MiB, 14995 MiB free)",
)
MISSING_LIBCUDA = (
    "echo 'llama-server: error while loading shared libraries: libcuda.so.1: cannot "
    "open shared object file: No such file or directory' >&2; exit 127"
)


def engine_script(
    *, build: int = 9940, devices: tuple[str, ...] = T4_LINES, first: str = ""
) -> bytes:
    """Return the program: llama-server as far as anybody here can tell.

    Args:
        build: The build that it states.
        devices: The cards that it lists.
        first: A shell command that runs before anything else.
    """
    listed = "\n".join(f"echo '  {line}'" for line in devices or ("(none)",))
    return f"""#!/bin/sh
{first}
for word in "$@"; do
  case "$word" in
    --version) echo 'version: {build} (17daa13)' >&2; exit 0;;
    --list-devices) echo 'Available devices:'
{listed}
      exit 0;;
  esac
done
[ "$1" = serve ] && shift
exec {sys.executable} -P -m llamatelemetry.server.embedded "$@"
""".encode()


def tar_of(files: dict[str, bytes], *, mode: int = 0o755) -> bytes:
    """Return a .tar.gz of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def bundle(**script: Any) -> bytes:
    """Return a bundle as the T4 ones are: a top folder with bin/ and lib/."""
    top = "llamatelemetry-v9-cuda12-kaggle-t4x2"
    return tar_of(
        {
            f"{top}/bin/llama-server": engine_script(**script),
            f"{top}/lib/libggml.so": b"not a library; only its folder counts",
            f"{top}/BUILD_INFO.json": b"{}",
        }
    )


def single(**script: Any) -> bytes:
    """Return one compressed executable, as ggml-org's are."""
    return zstandard.ZstdCompressor().compress(engine_script(**script))


def entry(data: bytes, **values: Any) -> dict[str, Any]:
    """Return a manifest entry for an archive; a T4 bundle unless said otherwise."""
    return {
        "id": "test-engine",
        "url": None,
        "repo": None,
        "path": None,
        "revision": None,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "archive": "tar",
        "executable": "llama-server",
        "arguments": [],
        "compute_capabilities": ["7.5"],
        "least_driver": "525.60.13",
        "least_glibc": "2.17",
        "build": 9940,
        "license": "MIT",
        "confirmed_live": True,
        "note": "",
    } | values


def write_manifest(path: Path, *entries: dict[str, Any], **more: Any) -> Path:
    """Write a manifest of these entries."""
    path.write_text(json.dumps({"about": "a test's", "engines": entries, **more}))
    return path
