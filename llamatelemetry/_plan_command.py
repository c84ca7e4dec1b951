"""The command ``llamatelemetry plan``: will it fit, and what would?"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from llamatelemetry._plan_advice import instead
from llamatelemetry._units import GIB
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gguf._cards import parse_gpus
from llamatelemetry.gguf.memory import plan_memory
from llamatelemetry.server._linux import available_memory
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.setup.catalog import find_model

_DOES_NOT_FIT = 3
_ALL_LAYERS = 999
_MOST_HOST_GIB = 2**14
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
    _add_devices(parser)
    _add_cache(parser)
    _add_batch(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL_OR_URL",
        help="a GGUF file, its URL, 'owner/repo:Q4_K_M' or 'owner/repo:file.gguf' on "
        "the Hugging Face Hub, a name of the catalog such as qwen3-14b, or 'demo'; "
        "nothing but its header is read",
    )
    parser.add_argument(
        "--mmproj", metavar="FILE",
        help="the multimodal projector, named like the model",
    )  # fmt: skip


def _add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus", default="2x15", metavar="SIZES",
        help="GiB of each card, as in 2x15, 15,24 or 2xt4, or 'none' for this "
        "machine's memory; 15 and 16 are a T4, of which 14.7 are free, other sizes "
        "are taken as free (default 2x15: Kaggle)",
    )  # fmt: skip
    parser.add_argument(
        "--host-memory", dest="host", type=_host, metavar="GIB",
        help="GiB of the host's memory to stay within, beside cards: Kaggle has about "
        "30; no limit unless said",
    )  # fmt: skip
    parser.add_argument(
        "-ngl", "--gpu-layers", "--n-gpu-layers", type=_layers,
        default=_ALL_LAYERS, metavar="N",
        help="layers on the cards; all of them unless said",
    )  # fmt: skip
    parser.add_argument(
        "-ts", "--tensor-split", "--split", dest="split", metavar="SHARES",
        help="the share of each card, as in 3,1",
    )  # fmt: skip


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c", "--ctx-size", "--ctx", dest="context", type=_count, metavar="TOKENS",
        default=4096,
        help="context over all slots, as in 32768 or 32k; 0 is the model's own "
        "(default 4096)",
    )  # fmt: skip
    parser.add_argument(
        "-np", "--parallel", "--slots", dest="slots", type=int, default=1, metavar="N",
        help="requests served at once",
    )  # fmt: skip
    parser.add_argument(
        "-kvu", "--kv-unified", action="store_true",
        help="all slots share one context",
    )  # fmt: skip
    parser.add_argument(
        "--cache-type", "--cache", dest="cache", default="f16", metavar="TYPE",
        help="type of the KV cache, as in q8_0, or of keys and values, as in q8_0,f16",
    )  # fmt: skip
    for flag, spelling, which in (
        ("-ctk", "--cache-type-k", "keys"), ("-ctv", "--cache-type-v", "values"),
    ):  # fmt: skip
        parser.add_argument(
            flag, spelling, dest=which, metavar="TYPE", help=f"of the {which} only"
        )
    parser.add_argument(
        "-fa", "--flash-attn", dest="flash", nargs="?", choices=("on", "off", "auto"),
        const="on", default="on", help="flash attention (default on)",
    )  # fmt: skip
    parser.add_argument(
        "--no-flash-attn", dest="flash", action="store_const", const="off",
        help="without flash attention",
    )  # fmt: skip


def _add_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-b", "--batch-size", dest="batch", type=_count, metavar="TOKENS",
        help="tokens handed over at once (default 2048)",
    )  # fmt: skip
    parser.add_argument(
        "-ub", "--ubatch-size", "--ubatch", dest="ubatch", type=_count, default=512,
        metavar="TOKENS", help="tokens computed at once (default 512)",
    )  # fmt: skip


def _count(text: str) -> int:
    """Read a number of tokens, as in 32768, 32,768 or 32k."""
    number = re.fullmatch(r"(\d+)(k?)", text.lower().replace("_", "").replace(",", ""))
    if number is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens: 8192 or 8k")
    return int(number[1]) * (1024 if number[2] else 1)


def _layers(text: str) -> int:
    if text in ("all", "-1"):
        return _ALL_LAYERS
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of layers: 20 or all")
    return int(text)


def _host(text: str) -> int:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size <= _MOST_HOST_GIB:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GiB: 30, say")
    return int(size * GIB)


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
    host_free = options.host
    if host_free is None and not (gpus and config.n_gpu_layers):
        host_free = available_memory()
    plan = plan_memory(model, config, gpus, host_free=host_free)
    others = [] if plan.fits else instead(model, plan)
    if options.json:
        print(json.dumps({**plan.to_dict(), "instead": others}, indent=2))
    else:
        print("\n".join([plan.table(), *([""] if others else []), *others]))
    return 0 if plan.fits else _DOES_NOT_FIT


def _configuration(options: argparse.Namespace, *, with_cards: bool) -> ServerConfig:
    keys, _, values = options.cache.lower().partition(",")
    return ServerConfig(
        None,
        n_gpu_layers=options.gpu_layers if with_cards else 0,
        tensor_split=options.split,
        context_size=options.context,
        flash_attn=options.flash != "off",
        n_batch=options.batch or max(2048, options.ubatch),
        n_ubatch=options.ubatch,
        parallel=options.slots,
        cache_type_k=(options.keys or keys).lower(),
        cache_type_v=(options.values or values or keys).lower(),
        mmproj_path=options.mmproj,
        extra_args=["--kv-unified"] if options.kv_unified else [],
    )


def _named(name: str) -> str:
    """Return what a name of the catalog stands for; any other text as it is."""
    if name == "demo" or "/" in name or name.endswith(".gguf") or Path(name).is_file():
        return name
    try:
        return find_model(name).reference
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{name!r} is no file here, and {error}; a file ends in .gguf, a "
            "repository is named owner/repository"
        ) from None
