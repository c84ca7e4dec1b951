"""What fetching a verified model costs, against the Hub's client and hashlib alone.

A Hub on loopback, in a process of its own, has a file of 1 GB. Each transfer happens in
a fresh interpreter into an empty cache, the two in turn; the libraries are imported
before the clock starts. The Hub's client alone verifies nothing, so one pass of hashlib
over the finished file is added to it.

    python benchmarks/transfers.py [--rounds N] [--bytes N]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPO = "bench/Model-GGUF"
FILE = "model-Q8_0.gguf"

SERVE = """
import sys
sys.path.insert(0, {tools!r})
from stand_in_hub import StandInHub
with StandInHub() as hub:
    hub.add({repo!r}, {file!r}, b"", zeros={size}, sha256={digest!r})
    for number in range(2):
        half = f"half-{{number}}-Q4_K_M.gguf"
        hub.add({repo!r}, half, bytes([number]), zeros={size} // 2)
    print(hub.url, flush=True)
    sys.stdin.read()
"""

PLAIN = """
import hashlib, time
from huggingface_hub import hf_hub_download
import huggingface_hub.file_download
began = time.perf_counter()
path = hf_hub_download({repo!r}, {file!r})
middle = time.perf_counter()
with open(path, "rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
assert digest == {digest!r}
print(middle - began, time.perf_counter() - middle)
"""

OURS = """
import time
import huggingface_hub.file_download
from llamatelemetry.setup import ensure_model
began = time.perf_counter()
model = ensure_model("{repo}:{file}", sha256={digest!r})
assert model.sha256 == {digest!r}
print(time.perf_counter() - began)
"""

WARM = """
import time
import huggingface_hub, huggingface_hub.constants
from huggingface_hub import try_to_load_from_cache
began = time.perf_counter()
from llamatelemetry import prepare
prepared = prepare("{repo}:{file}", "embedded", progress=False)
first = time.perf_counter() - began
began = time.perf_counter()
prepare("{repo}:{file}", "embedded", progress=False)
print(first, time.perf_counter() - began)
"""


def run(program: str, endpoint: str, home: Path) -> list[float]:
    """Return the seconds that a program prints."""
    variables = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "LLAMATELEMETRY_CACHE": str(home / "llamatelemetry"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    # As an installed package: compiled once.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONDONTWRITEBYTECODE"
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, **variables, "PYTHONPYCACHEPREFIX": str(home.parent / "pyc")},
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return [float(word) for word in done.stdout.split()]


def digest_of_zeros(size: int) -> str:
    """Return the SHA-256 of so many zero bytes."""
    digest = hashlib.sha256()
    block = bytes(1 << 20)
    for start in range(0, size, len(block)):
        digest.update(block[: size - start])
    return digest.hexdigest()


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=10**9)
    options = parser.parse_args()
    digest = digest_of_zeros(options.bytes)
    words = {
        "repo": REPO, "file": FILE, "digest": digest, "size": options.bytes,
        "tools": str(ROOT / "tests" / "tools"),
    }  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE.format(**words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server, tempfile.TemporaryDirectory() as folder:
        assert server.stdout is not None
        assert server.stdin is not None
        endpoint = server.stdout.readline().strip()
        home = Path(folder) / "home"
        plain, hashing, ours = [], [], []
        for _ in range(options.rounds):
            shutil.rmtree(home, ignore_errors=True)
            download, read = run(PLAIN.format(**words), endpoint, home)
            plain.append(download)
            hashing.append(read)
            shutil.rmtree(home)
            ours += run(OURS.format(**words), endpoint, home)
        warm = [run(WARM.format(**words), endpoint, home) for _ in range(9)]
        server.stdin.close()
    both = statistics.median(map(sum, zip(plain, hashing, strict=True)))
    mine = statistics.median(ours)
    print(f"| {options.bytes / 1e9:g} GB on loopback, median of {options.rounds} | s |")
    print("| --- | --- |")
    print(f"| hf_hub_download | {statistics.median(plain):.2f} |")
    print(f"| one pass of hashlib | {statistics.median(hashing):.2f} |")
    print(f"| both | {both:.2f} |")
    print(f"| ensure_model | {mine:.2f} |")
    print(f"| ratio | {mine / both:.2f} |")
    first, again = (
        statistics.median(column) * 1e3 for column in zip(*warm, strict=True)
    )
    print("\n| prepare() with everything here | ms |\n| --- | --- |")
    print(f"| first of a process, all imports but huggingface_hub | {first:.0f} |")
    print(f"| the next one | {again:.1f} |")


if __name__ == "__main__":
    main()
