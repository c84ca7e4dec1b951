"""Records what llama.cpp allocates, for many shapes and configurations: the oracle.

    python tests/tools/memory_cells.py tests/data/memory_cells.jsonl

Each line of the result is one cell: a shape of ``tests/data/shapes.json``, a
configuration, and the buffers that llama-server printed. Cells that are there already
are kept. The model files are sparse: their data is a hole. llama.cpp maps the whole
file all the same, so the largest models stand there with some of their layers only.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shapes import Shape, read_shapes, write_shape

from llamatelemetry.exceptions import LLCudaError
from llamatelemetry.server import ServerConfig, ServerManager
from llamatelemetry.server.events import BufferSize

BASE: dict[str, Any] = {
    "context_size": 8192,
    "n_batch": 2048,
    "n_ubatch": 512,
    "flash_attn": True,
}
"""What a cell changes one or more values of."""

DECODERS: list[dict[str, Any]] = [
    {},
    {"flash_attn": False},
    {"context_size": 2048, "n_ubatch": 128},
    {"context_size": 32768, "n_ubatch": 256},
    {"n_ubatch": 1024},
    {"parallel": 4},
    {"cache_type_k": "q8_0", "cache_type_v": "q8_0"},
    {"flash_attn": False, "parallel": 4, "context_size": 4096},
    {"cache_type_k": "q4_0", "cache_type_v": "q4_0", "context_size": 16384,
     "parallel": 2},
    {"flash_attn": False, "cache_type_k": "q8_0", "n_ubatch": 256},
    {"context_size": 5000, "parallel": 3, "n_ubatch": 384},
    {"context_size": 2048, "embeddings": True, "n_batch": 512, "pooling": "none"},
    {"context_size": 2048, "embeddings": True, "n_batch": 512, "pooling": "mean"},
    {"parallel": 4, "extra_args": ["--kv-unified"]},
    {"context_size": 300, "parallel": 3},
    {"context_size": 700, "parallel": 2, "extra_args": ["--kv-unified"]},
    {"context_size": 512, "no_mmap": True},
    {"context_size": 16384, "parallel": 2, "extra_args": ["--swa-full"]},
    {"cache_type_k": "f32", "cache_type_v": "f32", "n_ubatch": 32},
    {"context_size": 3000, "embeddings": True, "pooling": "last", "n_batch": 128,
     "n_ubatch": 128, "parallel": 3},
]  # fmt: skip

ENCODERS: list[dict[str, Any]] = [
    {"context_size": 512, "n_batch": 512},
    {"context_size": 512, "n_batch": 512, "flash_attn": False},
    {"context_size": 2048, "n_ubatch": 2048},
    {"context_size": 2048, "n_ubatch": 2048, "flash_attn": False},
    {"context_size": 2048, "parallel": 4, "n_batch": 512},
    {"context_size": 512, "pooling": "mean", "n_batch": 512},
    {"context_size": 512, "pooling": "cls", "n_batch": 256, "n_ubatch": 256},
    {"context_size": 2048, "cache_type_k": "q8_0", "n_batch": 512},
    {
        "context_size": 512,
        "pooling": "cls",
        "n_batch": 64,
        "n_ubatch": 64,
        "parallel": 5,
    },
]

MOST_CACHE = 6 * 2**30  # bytes: the caches are written to, so they take real memory

ARGUMENTS = ["--no-repack", "--no-warmup"]  # no second form of the weights


def cells_of(shape: Shape) -> Iterator[dict[str, Any]]:
    """Yield the configurations a shape is recorded with."""
    encoder = shape.architecture in ("bert", "nomic-bert", "gemma-embedding")
    for changes in ENCODERS if encoder else DECODERS:
        values = {**BASE, **changes}
        if "--swa-full" in values.get("extra_args", []) and not any(
            key.startswith("attention.sliding_window") for key in shape.metadata
        ):
            continue
        if encoder:
            values["embeddings"] = True
        if shape.architecture == "deepseek2" and "cache_type_k" in values:
            values["cache_type_v"] = values["cache_type_k"]  # the engine wants it so
            values["flash_attn"] = True
        yield values


def record(model: Path, values: dict[str, Any], engine: Any) -> dict[str, float]:
    """Start a server with a cell's configuration; return its buffers in MiB by kind."""
    config = configuration(model, values)
    with ServerManager(config, engine=engine, timeout=180) as server:
        buffers: dict[str, float] = {}
        for event in server.events:
            if isinstance(event, BufferSize):
                size = buffers.get(event.kind, 0.0) + event.size_bytes / 2**20
                buffers[event.kind] = round(size, 2)
    return buffers


def configuration(model: Path | None, values: dict[str, Any]) -> ServerConfig:
    """Return the configuration of a cell."""
    # A cache for each slot, also with embeddings, unless the cell itself says other.
    arguments = ["--no-kv-unified", *ARGUMENTS, *values.get("extra_args", [])]
    return ServerConfig(
        model, port=0, threads=1, cache_ram=0, **{**values, "extra_args": arguments}
    )


def too_large(shape: Shape, values: dict[str, Any]) -> bool:
    """Return whether a cell's cache would take more memory than there may be."""
    heads = shape.metadata.get("attention.head_count_kv") or 0
    if isinstance(heads, list):
        heads = max(heads)
    width = shape.metadata["embedding_length"]
    length = shape.metadata.get(
        "attention.key_length",
        width // max(shape.metadata["attention.head_count"], 1),
    )
    if values.get("no_mmap") and weights_bytes(shape) > MOST_CACHE:
        return True
    tokens = values["context_size"]
    layers = shape.metadata["block_count"]
    return bool(4 * layers * heads * length * tokens > MOST_CACHE)


def weights_bytes(shape: Shape) -> int:
    """Return about the bytes of a shape's tensors."""
    return sum(int(math.prod(axes) * 0.7) for _, _, axes in shape.tensor_table())


def main() -> int:
    """Record the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--shapes", help="names, with commas; all of them unless said")
    parser.add_argument("--engine", help="the llama-server to ask")
    options = parser.parse_args()
    results: Path = options.results
    lines = results.read_text().splitlines() if results.exists() else []
    known = {json.dumps(json.loads(line)["config"], sort_keys=True)
             + json.loads(line)["shape"] for line in lines}  # fmt: skip
    names = options.shapes.split(",") if options.shapes else list(read_shapes())
    for name in names:
        shape = read_shapes()[name]
        missing = [
            values
            for values in cells_of(shape)
            if json.dumps(values, sort_keys=True) + name not in known
            and not too_large(shape, values)
        ]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            model = write_shape(shape, Path(folder) / f"{name}.gguf")
            for values in missing:
                try:
                    buffers = record(model, values, options.engine)
                except LLCudaError as error:
                    sys.stderr.write(f"{name} {values}: {error}\n")
                    continue
                line = {"shape": name, "config": values, "buffers": buffers}
                with results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
