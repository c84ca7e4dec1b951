"""The command ``llamatelemetry plan``: will it fit, and what would?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from llamatelemetry._units import GIB, MIB, format_file_size
from llamatelemetry.exceptions import ConfigurationError, LLCudaError
from llamatelemetry.gguf._cards import margin_bytes, parse_gpus
from llamatelemetry.gguf.estimates import estimate_vram
from llamatelemetry.gguf.memory import MemoryPlan, plan_memory
from llamatelemetry.server._linux import available_memory
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.setup._hub import list_files
from llamatelemetry.setup._names import ModelFile, model_files, parse_reference
from llamatelemetry.setup.catalog import catalog, find_model

_DOES_NOT_FIT = 3
_ALL_LAYERS = 999
_MOST_NAMED = 3
# Which option sets a field of the configuration, for messages.
_OPTIONS = {
    "context_size": "--ctx-size",
    "n_gpu_layers": "--gpu-layers",
    "tensor_split": "--tensor-split",
    "parallel": "--parallel",
    "n_ubatch": "--ubatch-size",
    "n_batch": "--ubatch-size",
    "cache_type_k": "--cache-type",
    "cache_type_v": "--cache-type",
    "flash_attn=True": "no --no-flash-attn",
}


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
        "the model's header is read. The exit code is 0 if it fits, 3 if it does not, "
        "1 or 2 if that could not be found out.",
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
        help="a GGUF file, its URL, 'owner/repo:Q4_K_M' or 'owner/repo:file.gguf' on "
        "the Hugging Face Hub, a name of the catalog such as qwen3-14b, or 'demo'; "
        "nothing but its header is read",
    )


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c", "--ctx-size", "--ctx", dest="context", type=_count, metavar="TOKENS",
        default=4096,
        help="context over all slots, as in 32768 or 32k; 0 is the model's own "
        "(default 4096)",
    )  # fmt: skip
    parser.add_argument(
        "--gpus", default="2x15", metavar="SIZES",
        help="GiB of each card, as in 2x15, 15,24 or 2xt4, or 'none' for this "
        "machine's memory; 15 is a T4, of which 14.7 are free (default 2x15: Kaggle)",
    )  # fmt: skip
    parser.add_argument(
        "--cache-type", "--cache", dest="cache", default="f16", metavar="TYPE",
        help="type of the KV cache, as in q8_0, or of keys and values, as in q8_0,f16",
    )  # fmt: skip
    parser.add_argument(
        "-np", "--parallel", "--slots", dest="slots", type=int, default=1, metavar="N",
        help="requests served at once",
    )  # fmt: skip
    parser.add_argument(
        "-ngl", "--gpu-layers", type=_layers, default=_ALL_LAYERS, metavar="N",
        help="layers on the cards; all of them unless said",
    )  # fmt: skip
    parser.add_argument(
        "-ts", "--tensor-split", "--split", dest="split", metavar="SHARES",
        help="the share of each card, as in 3,1",
    )  # fmt: skip
    parser.add_argument(
        "-ub", "--ubatch-size", "--ubatch", dest="ubatch", type=_count, default=512,
        metavar="TOKENS", help="tokens computed at once (default 512)",
    )  # fmt: skip
    parser.add_argument(
        "--mmproj", metavar="FILE", help="the multimodal projector, if there is one"
    )
    parser.add_argument(
        "--no-flash-attn", action="store_true", help="without flash attention"
    )


def _count(text: str) -> int:
    """Read a number of tokens, as in 32768 or 32k."""
    cleaned = text.lower().replace("_", "")
    if cleaned.endswith("k"):
        return int(cleaned[:-1]) * 1024
    return int(cleaned)


def _layers(text: str) -> int:
    return _ALL_LAYERS if text in ("all", "-1") else int(text)


def run_plan(options: argparse.Namespace) -> int:
    """Print the plan; return 0 if it fits and 3 if it does not."""
    gpus = parse_gpus(options.gpus)
    try:
        config = _configuration(options, with_cards=bool(gpus))
    except ConfigurationError as error:
        message = str(error)
        for field, option in _OPTIONS.items():
            message = message.replace(field, option)
        raise ConfigurationError(message) from None
    model = _named(options.model)
    host_free = None if gpus else available_memory()
    plan = plan_memory(model, config, gpus, host_free=host_free)
    if options.json:
        print(json.dumps(plan.to_dict(), indent=2))
    else:
        print(plan.table())
        if not plan.fits:
            print("\n" + "\n".join(_instead(model, plan)))
    return 0 if plan.fits else _DOES_NOT_FIT


def _configuration(options: argparse.Namespace, *, with_cards: bool) -> ServerConfig:
    keys, _, values = options.cache.lower().partition(",")
    return ServerConfig(
        None,
        n_gpu_layers=options.gpu_layers if with_cards else 0,
        tensor_split=options.split,
        context_size=options.context,
        flash_attn=not options.no_flash_attn,
        n_batch=max(2048, options.ubatch),
        n_ubatch=options.ubatch,
        parallel=options.slots,
        cache_type_k=keys,
        cache_type_v=values or keys,
        mmproj_path=options.mmproj,
    )


def _named(name: str) -> str:
    """Return what a name of the catalog stands for; any other text as it is."""
    if name == "demo" or "/" in name or name.endswith(".gguf") or Path(name).is_file():
        return name
    return find_model(name).reference


# ── what would fit instead ───────────────────────────────────────────────────────


def _instead(model: str, plan: MemoryPlan) -> list[str]:
    """Return a line for each thing that would make it fit."""
    lines = []
    if plan.config.flash_attn and plan.config.cache_type_k == "f16":
        smaller = plan.with_config(cache_type_k="q8_0", cache_type_v="q8_0")
        if smaller.fits:
            lines.append("With --cache-type q8_0 it fits.")
    reference = parse_reference(model)
    if reference is None:
        named = ", ".join(recommended(plan)) or "none for so much context"
        lines.append(f"Models of the catalog that fit: {named}.")
        return lines
    try:
        files = list_files(reference.repo, reference.revision)
    except LLCudaError as error:
        return [*lines, f"Other quantizations could not be listed: {error}"]
    found = largest_that_fits(plan, model_files(files))
    if found is None:
        return [*lines, f"No quantization in {reference.repo} fits."]
    name = found.label or found.paths[0]
    size = format_file_size(found.size)
    where = f"Nearest that fits in {reference.repo}"
    return [*lines, f"{where}: {name}, {size} (estimated from its size)."]


def largest_that_fits(
    plan: MemoryPlan, candidates: list[ModelFile]
) -> ModelFile | None:
    """Return the largest of the files with which a plan would fit, or None."""
    for candidate in sorted(candidates, key=lambda each: each.size, reverse=True):
        if candidate.size > MIB and plan.for_size(candidate.size).fits:
            return candidate
    return None


def recommended(plan: MemoryPlan) -> list[str]:
    """Return the largest chat models of the catalog that fit where a plan does not.

    Estimated from their sizes, for the plan's context and the sum of its cards.
    """
    free = sum(place.free or 0 for place in plan.devices or (plan.host,))
    names = []
    for entry in sorted(catalog(), key=lambda each: each.total_bytes, reverse=True):
        try:
            need = estimate_vram(
                entry.parameters,
                entry.quantization or "Q4_K_M",
                plan.context,
                architecture=entry.architecture,
                gpus=max(len(plan.devices), 1),
            )
        except ConfigurationError:  # a recipe or a family that has no estimate
            continue
        needed = int(need * GIB)
        if "chat" in entry.tasks and needed + margin_bytes(needed) <= free:
            names.append(entry.id)
    return names[:_MOST_NAMED]
