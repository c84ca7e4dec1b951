"""How plans agree with what llama.cpp allocated, and what planning costs.

Every recorded cell (tests/data/memory_cells.jsonl) is planned anew. "Set aside" are the
shapes that were kept out until the rules were finished.

    python benchmarks/memory_plans.py [--write docs/memory.md]

With --write, the tables take the place of what stands between the marks in the page.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "tools")]

from memory_cells import configuration
from shapes import read_shapes, write_shape

from llamatelemetry._units import GIB, MIB
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gguf.estimates import estimate_vram
from llamatelemetry.gguf.memory import GPUMemory, plan_memory
from llamatelemetry.gguf.reader import GGUFHeader, read_header
from llamatelemetry.server import ServerConfig

CELLS = ROOT / "tests" / "data" / "memory_cells.jsonl"
PRINTED = 0.011  # MiB; llama.cpp prints two decimals
CONTEXTS = (2048, 8192, 32768)  # tokens
ENCODERS = ("bert", "nomic-bert", "gemma-embedding")


@dataclass(frozen=True)
class Compared:
    """One cell: errors in MiB, and of the compute buffer as a share."""

    architecture: str
    aside: bool
    weights: float
    cache: float
    output: float
    compute: float
    compute_share: float


def compare() -> list[Compared]:
    """Plan every recorded cell."""
    shapes = read_shapes()
    by_shape = defaultdict(list)
    for line in CELLS.read_text().splitlines():
        cell = json.loads(line)
        by_shape[cell["shape"]].append(cell)
    compared = []
    with tempfile.TemporaryDirectory() as folder:
        for name, cells in by_shape.items():
            shape = shapes[name]
            path = write_shape(shape, Path(folder) / f"{name}.gguf")
            header = read_header(path)
            path.unlink()
            for cell in cells:
                host = plan_memory(header, configuration(None, cell["config"])).host
                printed = cell["buffers"]
                kept = printed.get("KV", 0.0) + printed.get("RS", 0.0)
                compared.append(
                    Compared(
                        shape.architecture,
                        shape.aside,
                        host.weights / MIB - printed["model"],
                        host.kv_cache / MIB - kept,
                        host.output / MIB - printed["output"],
                        host.compute / MIB - printed["compute"],
                        host.compute / MIB / printed["compute"] - 1,
                    )
                )
    return compared


def row(label: str, cells: list[Compared]) -> str:
    """Return one line of the table."""
    exact = sum(
        abs(cell.weights) <= PRINTED
        and abs(cell.cache) <= 2 * PRINTED
        and abs(cell.output) <= PRINTED
        for cell in cells
    )
    shares = sorted((cell.compute_share for cell in cells), key=abs)
    within = sum(abs(share) <= 0.03 for share in shares)
    under = min(0.0, *(cell.compute for cell in cells))
    median = statistics.median(map(abs, shares))
    return (
        f"| {label} | {len(cells)} | {exact} | {median:.3%} | {shares[-1]:+.3%} "
        f"| {within} | {under:.2f} MiB |"
    )


def table(compared: list[Compared]) -> Iterable[str]:
    """Yield the lines of the table."""
    yield (
        "| architecture | cells | weights, cache, output equal | compute: median error "
        "| worst | within 3 % | most under |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name in sorted({cell.architecture for cell in compared}):
        yield row(name, [cell for cell in compared if cell.architecture == name])
    for label, aside in (("**fitted half**", False), ("**set-aside half**", True)):
        half = [cell for cell in compared if cell.aside == aside]
        if half:
            yield row(label, half)
    yield row("**all**", compared)


def estimates() -> Iterable[str]:
    """Yield the lines of a table: the simple estimate against the plan, signed."""
    head = " | ".join(f"{tokens // 1024}k" for tokens in CONTEXTS)
    yield f"| model | {head} | with `architecture=`: {head} |"
    yield "| --- " + "| ---: " * 2 * len(CONTEXTS) + "|"
    with tempfile.TemporaryDirectory() as folder:
        for shape in read_shapes().values():
            cut = shape.name.endswith("-layers")
            if cut or shape.architecture in ENCODERS:
                continue
            path = write_shape(shape, Path(folder) / "model.gguf")
            errors = " | ".join(_errors(read_header(path)))
            yield f"| {shape.name} | {errors} |"


def _errors(header: GGUFHeader) -> Iterable[str]:
    architecture = header.metadata["general.architecture"]
    count = sum(tensor.n_elements for tensor in header.tensors)
    recipe = "MXFP4_MOE" if architecture == "gpt-oss" else "Q4_K_M"
    for family in (None, architecture):
        for tokens in CONTEXTS:
            config = ServerConfig(
                None, n_gpu_layers=999, flash_attn=True, context_size=tokens
            )
            needed = plan_memory(header, config).devices[0].needed / GIB
            try:
                estimate = estimate_vram(count, recipe, tokens, architecture=family)
            except ConfigurationError:  # no typical model of this family is known
                yield "-"
            else:
                yield f"{estimate / needed - 1:+.1%}"


def cost() -> str:
    """Return what a plan and a largest context cost, as a line."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_shape(read_shapes()["llama-3.1-8b"], Path(folder) / "model.gguf")
        header = read_header(path)
    config = ServerConfig(None, n_gpu_layers=99, flash_attn=True, context_size=8192)
    times: dict[str, list[float]] = {"plan": [], "largest": []}
    for _ in range(7):
        start = time.perf_counter()
        plan = plan_memory(header, config, GPUMemory.t4(1))
        times["plan"].append(time.perf_counter() - start)
        start = time.perf_counter()
        plan.max_context()
        times["largest"].append(time.perf_counter() - start)
    plan_time, largest = (statistics.median(times[name]) * 1e3 for name in times)
    return (
        f"A plan of an 8B on one T4 takes {plan_time:.0f} ms from its header, its "
        f"largest context {largest:.0f} ms more (median of 7)."
    )


def main() -> None:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    texts = {
        "tables": "\n".join(table(compare())) + f"\n\n{cost()}",
        "estimates": "\n".join(estimates()),
    }
    print("\n\n".join(texts.values()))
    if options.write:
        page = options.write.read_text()
        for name, text in texts.items():
            begin, end = (f"<!-- {name}: {place} -->" for place in ("begin", "end"))
            before, _, rest = page.partition(begin)
            _, _, after = rest.partition(end)
            page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
        options.write.write_text(page)


if __name__ == "__main__":
    main()
