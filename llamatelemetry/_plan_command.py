"""The command ``llamatelemetry plan``: will it fit, and what would?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from llamatelemetry._demo import DEMO_MODEL
from llamatelemetry._units import GIB, MIB, format_file_size
from llamatelemetry.exceptions import ConfigurationError, LLCudaError
from llamatelemetry.gguf.memory import (
    T4_FREE_BYTES,
    GPUMemory,
    MemoryPlan,
    plan_memory,
)
from llamatelemetry.server.config import CACHE_TYPES, ServerConfig
from llamatelemetry.setup._hub import list_files
from llamatelemetry.setup._names import (
    ModelFile,
    model_files,
    parse_reference,
)
from llamatelemetry.setup.catalog import catalog, find_model

_T4_GIB = 15
_MOST_GIB = 1024
_DOES_NOT_FIT = 1


def describe_plan(commands: Any) -> None:
    """Add the command to the others.

    Args:
        commands: What ``add_subparsers`` returned; its type has no public name.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        "plan",
        help="will a model fit, before it is downloaded",
        description="Print what a server with a model would need on each card and "
        "on this machine, whether it fits, and the largest context that does. Only "
        "the model's header is read. The exit code is 0 if it fits, 1 if not.",
        epilog="Example: llamatelemetry plan qwen3-32b --gpus 2x15 --ctx 8192 "
        "--cache q8_0",
    )
    parser.set_defaults(run=run_plan)
    _add_model(parser)
    _add_configuration(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL_OR_URL",
        help="a GGUF file, its URL, 'owner/repo:file.gguf' or 'owner/repo:Q4_K_M' on "
        "the Hugging Face Hub, a name of the catalog, or 'demo'; nothing but its "
        "header is read",
    )


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ctx", type=int, default=4096, metavar="TOKENS",
        help="context over all slots; 0 is the model's own (default 4096)",
    )  # fmt: skip
    parser.add_argument(
        "--gpus", default="2x15", metavar="SIZES",
        help="GiB of each card, as in 2x15 or 15,24, or 'none' (default 2x15: the two "
        "T4s of Kaggle)",
    )  # fmt: skip
    parser.add_argument(
        "--cache", default="f16", metavar="TYPE",
        help="type of the KV cache, as in q8_0, or of keys and values, as in q8_0,f16",
    )  # fmt: skip
    parser.add_argument(
        "--slots", type=int, default=1, metavar="N", help="requests served at once"
    )
    parser.add_argument(
        "--gpu-layers", type=int, default=999, metavar="N",
        help="layers on the cards; all of them unless said",
    )  # fmt: skip
    parser.add_argument(
        "--split", metavar="SHARES", help="the share of each card, as in 3,1"
    )
    parser.add_argument(
        "--ubatch", type=int, default=512, metavar="TOKENS",
        help="tokens computed at once (default 512)",
    )  # fmt: skip
    parser.add_argument(
        "--no-flash-attn", action="store_true", help="without flash attention"
    )


def run_plan(options: argparse.Namespace) -> int:
    """Print the plan; return 0 if it fits and 1 if it does not."""
    gpus = parse_gpus(options.gpus)
    keys, _, values = options.cache.lower().partition(",")
    for kind in (keys, values or keys):
        if kind not in CACHE_TYPES:
            raise ConfigurationError(
                f"--cache cannot be {kind!r}; it must be one of "
                + ", ".join(CACHE_TYPES)
            )
    config = ServerConfig(
        None,
        n_gpu_layers=options.gpu_layers if gpus else 0,
        tensor_split=options.split,
        context_size=options.ctx,
        flash_attn=not options.no_flash_attn,
        n_batch=max(2048, options.ubatch),
        n_ubatch=options.ubatch,
        parallel=options.slots,
        cache_type_k=keys,
        cache_type_v=values or keys,
    )
    model = _named(options.model)
    plan = plan_memory(model, config, gpus)
    if options.json:
        print(json.dumps(_as_json(plan), indent=2))
        return 0 if plan.fits else _DOES_NOT_FIT
    print(plan.table())
    if not plan.fits:
        print(f"\n{_nearest(model, plan)}")
    return 0 if plan.fits else _DOES_NOT_FIT


def parse_gpus(text: str) -> list[GPUMemory]:
    """Return the cards that a text like ``2x15`` or ``15,24`` speaks of, in GiB.

    Fifteen GiB are those of a T4, of which 15,096 MiB are free.

    Raises:
        ConfigurationError: It speaks of none.
    """
    if text.lower() in ("none", "0"):
        return []
    sizes: list[float] = []
    try:
        for part in text.lower().split(","):
            count, _, size = part.rpartition("x")
            sizes += [float(size)] * (int(count) if count else 1)
    except ValueError:
        sizes = []
    if not sizes or any(not 0 < size <= _MOST_GIB for size in sizes):
        raise ConfigurationError(
            f"--gpus {text!r} is not understood; write 2x15 for two cards with 15 GiB "
            "each, 15,24 for two different ones, none for no card"
        )
    return [
        GPUMemory(index, T4_FREE_BYTES if size == _T4_GIB else round(size * GIB))
        for index, size in enumerate(sizes)
    ]


def _named(name: str) -> str:
    """Return what a name stands for: a path, a URL or a reference to the Hub."""
    if name == "demo":
        return str(DEMO_MODEL)
    if Path(name).exists() or "/" in name or name.endswith(".gguf"):
        return name
    return find_model(name).reference


def _as_json(plan: MemoryPlan) -> dict[str, object]:
    return {
        "model": plan.model,
        "architecture": plan.architecture,
        "context": plan.context,
        "fits": plan.fits,
        "max_context": plan.max_context(),
        "devices": plan.rows(),
        "notes": list(plan.notes),
    }


# ── what would fit instead ───────────────────────────────────────────────────────


def _nearest(model: str, plan: MemoryPlan) -> str:
    """Return a sentence on the largest quantization of the same repo that fits."""
    reference = parse_reference(model)
    if reference is None:
        return (
            "Quantizations of a file on the Hub are compared when it is named as "
            f"owner/repo:file.gguf; recommended models: {_recommended()}."
        )
    try:
        files = list_files(reference.repo, reference.revision)
    except LLCudaError as error:
        return f"Other quantizations could not be listed: {error}"
    found = largest_that_fits(plan, model_files(files))
    if found is None:
        return f"No quantization in {reference.repo} fits."
    return (
        f"Nearest that fits in {reference.repo}: {found.label or found.paths[0]}, "
        f"{format_file_size(found.size)} (estimated from its size)."
    )


def largest_that_fits(
    plan: MemoryPlan, candidates: list[ModelFile]
) -> ModelFile | None:
    """Return the largest of the files with which a plan would fit, or None."""
    for candidate in sorted(candidates, key=lambda each: each.size, reverse=True):
        if candidate.size > MIB and plan.for_size(candidate.size).fits:
            return candidate
    return None


def _recommended() -> str:
    return ", ".join(entry.id for entry in catalog()[:6])
