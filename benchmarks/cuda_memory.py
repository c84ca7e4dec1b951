"""What a server takes on a real card, beside its plan.

Usage: ``LLAMATELEMETRY_SERVER=llama-server python benchmarks/cuda_memory.py``

It needs a card with 40 GB free and nothing else on it, and an engine built for it. The
models are the shapes of ``tests/data/shapes.json`` as sparse files: their weights are
zeros, which takes as much memory as any others. What CUDA itself takes is what NVML
sees more than the buffers that llama.cpp prints; it differs from card to card.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER.parent / "tests" / "tools")]

from shapes import read_shapes, write_shape

from llamatelemetry import LlamaCppClient, ServerConfig, ServerManager, detect_gpus
from llamatelemetry.exceptions import LLCudaError
from llamatelemetry.gguf import plan_memory
from llamatelemetry.server.events import BufferSize

MIB = 2**20
SHAPES = (
    "qwen3-4b", "llama-3.1-8b", "gemma-3-12b", "gpt-oss-20b", "qwen3.5-9b",
    "qwen3-30b-a3b", "phi-4-mini", "deepseek-v2-lite", "granite-4.0-h-tiny",
    "qwen3-14b", "smollm3-3b",
)  # fmt: skip
BASE = {"context_size": 8192, "n_batch": 2048, "n_ubatch": 512, "flash_attn": True}
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"cache_type_k": "q8_0", "cache_type_v": "q8_0"},
    {"context_size": 32768, "parallel": 4},
    {"flash_attn": False},
    {"n_ubatch": 1024},
)
PARTS = {"model": "weights", "KV": "kv_cache", "RS": "kv_cache", "compute": "compute"}
PROMPT = 1500  # tokens: more than two micro-batches


def cell(model: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Return what one configuration takes on the first card, and what was planned."""
    gpu = detect_gpus()[0]
    config = ServerConfig(
        model, port=0, n_gpu_layers=99, cache_ram=0, **{**BASE, **changes}
    )
    planned = plan_memory(model, config, gpus=[gpu]).devices[0]
    printed = dict.fromkeys(("weights", "kv_cache", "compute"), 0)
    with ServerManager(config, timeout=120) as server:
        for event in server.events:
            if not isinstance(event, BufferSize) or event.kind not in PARTS:
                continue
            if event.device.startswith("CUDA") and "Host" not in event.device:
                printed[PARTS[event.kind]] += event.size_bytes
        ready = detect_gpus()[0].free_bytes
        with LlamaCppClient(server.get_url(), timeout=60) as client:
            tokens: Any = list(range(300, 300 + PROMPT))  # no text makes these
            client.completion(tokens, max_tokens=4, temperature=0, ignore_eos=True)
        asked = detect_gpus()[0].free_bytes
    assert gpu.free_bytes is not None
    assert ready is not None
    assert asked is not None
    return {
        "model": model.stem,
        **changes,
        "planned": {part: getattr(planned, part) for part in printed},
        "printed": printed,
        "needed": planned.needed,
        "margin": planned.margin,
        "taken": gpu.free_bytes - ready,
        "taken_after_a_prompt": gpu.free_bytes - asked,
    }


def cells(seconds: float) -> list[dict[str, Any]]:
    """Record as many cells as there is time for."""
    rows: list[dict[str, Any]] = []
    shapes, end = read_shapes(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for changes in CHANGES:
            for name in SHAPES:
                if name not in shapes or time.monotonic() > end:
                    continue
                model = Path(folder, f"{name}.gguf")
                if not model.exists():
                    write_shape(shapes[name], model)
                try:
                    rows.append(cell(model, changes))
                except LLCudaError as error:
                    reason = str(error).partition("\n")[0]
                    rows.append({"model": name, **changes, "error": reason})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the cells as a table of Markdown, in MiB."""
    lines = [
        "| model | configuration | weights, planned and printed | KV cache | compute "
        "| CUDA itself, ready | after a prompt | planned in all | taken |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "error" in row:
            continue
        pairs = [
            f"{row['planned'][part] / MIB:,.1f}, {row['printed'][part] / MIB:,.1f}"
            for part in ("weights", "kv_cache", "compute")
        ]
        buffers = sum(row["printed"].values())
        rest = [row[key] - buffers for key in ("taken", "taken_after_a_prompt")]
        changed = ", ".join(
            f"{key}={value}" for key, value in row.items() if key in _FIELDS
        )
        figures = [*rest, row["needed"], row["taken_after_a_prompt"]]
        shown = [f"{figure / MIB:,.0f}" for figure in figures]
        lines.append(" | ".join([f"| {row['model']}", changed, *pairs, *shown]) + " |")
    return "\n".join(lines)


_FIELDS = {key for changes in CHANGES for key in changes}


def summary(rows: list[dict[str, Any]]) -> str:
    """Return how far planned and printed are apart, over all cells."""
    good = [row for row in rows if "error" not in row]
    lines = [f"{len(good)} cells, {len(rows) - len(good)} without a figure"]
    for part in ("weights", "kv_cache", "compute"):
        apart = [abs(row["planned"][part] - row["printed"][part]) for row in good]
        same = sum(one < 0.02 * MIB for one in apart)
        lines.append(
            f"{part}: {same} of {len(good)} equal to the printed 0.01 MiB, "
            f"furthest {max(apart) / MIB:,.2f} MiB"
        )
    own = [row["taken_after_a_prompt"] - sum(row["printed"].values()) for row in good]
    lines.append(
        f"CUDA itself: {min(own) / MIB:,.0f} to {max(own) / MIB:,.0f} MiB, "
        f"median {statistics.median(own) / MIB:,.0f}"
    )
    over = sum(
        row["taken_after_a_prompt"] > row["needed"] + row["margin"] for row in good
    )
    lines.append(f"beyond plan and margin: {over} of {len(good)}")
    return "\n".join(lines)


def main() -> int:
    """Record, and print a table and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not detect_gpus():
        print("there is no card here", file=sys.stderr)
        return 1
    rows = cells(options.seconds)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    print(detect_gpus()[0])
    print(table(rows))
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
