"""Looks for plans that llama.cpp does not agree with, in random models and settings.

    python tests/tools/memory_hunt.py --seconds 300 --seed 1 --engine PATH

Each round takes a shape of ``tests/data/shapes.json``, leaves out some of its last
layers, changes the width of its feed forward and its vocabulary, thinks of a
configuration, and compares what a server allocates with the plan. What differs is
printed. Variations that the engine refuses (a model that cannot be, a configuration it
ends with an error on) are counted apart. A rule that a hunt has found wanting belongs
into ``memory_cells.py``, as a configuration that every shape is recorded with.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from memory_cells import configuration, record, too_large
from shapes import Shape, read_shapes, without_last_layers, write_shape

from llamatelemetry._units import MIB
from llamatelemetry.exceptions import LLCudaError
from llamatelemetry.gguf.memory import plan_memory

PRINTED = 0.025  # MiB: sums of two figures of two decimals each
ENCODERS = ("bert", "nomic-bert", "gemma-embedding")
KINDS = ("f16", "q8_0", "q4_0", "q5_1", "f32", "bf16", "iq4_nl")


def with_other_size(shape: Shape, old: int, new: int) -> Shape:
    """Return the shape with another length wherever its tensors have the old one."""
    return replace(
        shape,
        vocabulary=new if shape.vocabulary == old else shape.vocabulary,
        tensors={
            pattern: (kind, [new if length == old else length for length in axes])
            for pattern, (kind, axes) in shape.tensors.items()
        },
        metadata={
            key: new if key == "feed_forward_length" and value == old else value
            for key, value in shape.metadata.items()
        },
    )


def varied(shape: Shape, chance: random.Random) -> Shape:
    """Return a model like this one."""
    layers = shape.metadata["block_count"]
    if chance.random() < 0.7 and "attention.shared_kv_layers" not in shape.metadata:
        shape = without_last_layers(shape, chance.randint(min(4, layers), layers))
    lengths = {length for _, axes in shape.tensors.values() for length in axes}
    for old, new in (
        (shape.metadata["feed_forward_length"], 256 * chance.randint(4, 60)),
        (shape.vocabulary, 64 * chance.randint(20, 3000)),
    ):
        fixed = "vocab_size" in shape.metadata and old == shape.vocabulary
        if old and isinstance(old, int) and not fixed and new not in lengths:
            shape = with_other_size(shape, old, new) if chance.random() < 0.5 else shape
    return shape


def thought_of(shape: Shape, chance: random.Random) -> dict[str, Any]:
    """Return a configuration as somebody might want it, or nobody."""
    few, more, many = (1, 600), (600, 9000), (9000, 24000)
    tokens = chance.choice([32, 128, 512, 1024, chance.randint(32, 1500)])
    values: dict[str, Any] = {
        "context_size": chance.randint(*chance.choice([few, more, many])),
        "n_batch": chance.choice([tokens, 2 * tokens, 4096]),
        "n_ubatch": tokens,
        "flash_attn": chance.random() < 0.6,
        "parallel": chance.choice([1, 1, 2, 3, 4, chance.randint(1, 9)]),
    }
    if shape.architecture in ENCODERS or chance.random() < 0.2:
        pooling = chance.choice(["none", "mean", "cls", "last"])
        values.update(embeddings=True, pooling=pooling, n_batch=tokens)
    if chance.random() < 0.4:
        kind = chance.choice(KINDS)
        latent = shape.architecture == "deepseek2"  # whose two types are one
        values["flash_attn"] |= latent
        values["cache_type_k"] = kind
        if values["flash_attn"]:
            other = kind if latent else chance.choice([kind, "f16", "q8_0"])
            values["cache_type_v"] = other
    flags = {"--kv-unified": 0.3, "--swa-full": 0.15}
    values["extra_args"] = [flag for flag, part in flags.items()
                            if chance.random() < part]  # fmt: skip
    return values


def difference(
    shape: Shape, values: dict[str, Any], engine: str | None
) -> dict[str, str]:
    """Return the buffers that are planned otherwise than a server prints them, MiB."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_shape(shape, Path(folder) / "model.gguf")
        printed = record(model, values, engine)
        host = plan_memory(model, configuration(model, values)).host
    pairs = {
        "model": (host.weights, printed["model"]),
        "cache": (host.kv_cache, printed.get("KV", 0.0) + printed.get("RS", 0.0)),
        "compute": (host.compute, printed["compute"]),
        "output": (host.output, printed["output"]),
    }
    return {
        name: f"{planned / MIB:.2f} planned, {found:.2f} printed"
        for name, (planned, found) in pairs.items()
        if abs(planned / MIB - found) > PRINTED
    }


def main() -> int:
    """Hunt for a while; return 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", help="the engine to ask")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    shapes = list(read_shapes().values())
    counts: Counter[str] = Counter()
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        shape = varied(chance.choice(shapes), chance)
        values = thought_of(shape, chance)
        if too_large(shape, values):
            continue
        try:
            found = difference(shape, values, options.engine)
        except LLCudaError:
            counts["refused"] += 1
            continue
        counts["different" if found else "equal"] += 1
        if found:
            sizes = (shape.metadata["block_count"], shape.vocabulary)
            sys.stdout.write(f"{shape.name} {sizes} {values}: {found}\n")
    sys.stdout.write(f"{dict(counts)}\n")
    return int(counts["different"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
