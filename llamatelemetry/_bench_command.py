"""The command ``llamatelemetry bench``: how fast does a server answer?"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from llamatelemetry._units import printable
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.bench._benchmark import CONCURRENCY, benchmark, planned
from llamatelemetry.bench.results import BenchmarkResult
from llamatelemetry.exceptions import ConfigurationError, LLCudaError
from llamatelemetry.session import launch

_FAILURE = 1
_INTERRUPTED = 130  # as shells say of Ctrl-C
_TEMPLATE_TOKENS = 64
"""Tokens of context beside prompt and answer, for what the chat template adds."""

# Which option sets an argument, for messages.
_OPTIONS = {
    "prompt_tokens": "--prompt-tokens",
    "shared_prefix": "--shared-prefix",
    "request_rate": "--request-rate",
    "context_size": "--ctx-size",
    "concurrency": "--concurrency",
    "max_tokens": "--max-tokens",
    "burstiness": "--burstiness",
    "parallel": "--parallel",
    "requests": "--requests",
    "warm_up": "--warm-up",
    "seed": "--seed",
}


def describe_bench(commands: Any) -> None:
    """Add the command to the others.

    Args:
        commands: What ``add_subparsers`` returned; its type has no public name.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="measure how fast a server answers, under one load after another",
        description="Measure time to first token, inter-token latency, time per "
        "output token, end to end latency and tokens per second, as `vllm bench "
        "serve` defines them, and what the server says of itself beside them. "
        "A model is launched for it; a server that runs already is named by --url "
        "(its key is read from LLAMA_API_KEY). The exit code is 1 where a load got "
        "no answer at all.",
        epilog="Example: llamatelemetry bench qwen3-4b -c 1,2,4,8 --json bench.json",
    )
    parser.set_defaults(run=run_bench)
    _add_target(parser)
    _add_load(parser)
    _add_requests(parser)
    parser.add_argument("--json", metavar="FILE", help="write the result to a file too")


def _add_target(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="a GGUF file, a folder with one or a capsule, a name of the catalog, "
        "owner/repo:Q4_K_M, or 'demo'; 'demo' unless said",
    )  # fmt: skip
    target.add_argument("--url", help="a server that runs already")
    parser.add_argument(
        "--engine", metavar="PATH", help="the llama-server to use, or 'embedded'"
    )
    parser.add_argument(
        "--gpus", metavar="SIZES",
        help="the cards, as in 2x15 or 'none'; those of this machine unless said",
    )  # fmt: skip
    parser.add_argument(
        "-np", "--parallel", "--slots", dest="parallel", type=int, metavar="N",
        help="requests served at once; the largest concurrency unless said",
    )  # fmt: skip
    parser.add_argument(
        "--ctx-size", "--ctx", dest="context", type=int, metavar="TOKENS",
        help="context of each request; enough for prompt and answer unless said",
    )  # fmt: skip


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c", "--concurrency", type=_counts, default=CONCURRENCY, metavar="LIST",
        help="requests kept running at once, a load for each (default 1,2,4,8)",
    )  # fmt: skip
    parser.add_argument(
        "--request-rate", dest="rate", type=_rates, metavar="LIST",
        help="requests sent per second instead, answered or not, a load for each",
    )  # fmt: skip
    parser.add_argument(
        "--burstiness", type=float, default=1.0, metavar="X",
        help="how these are spread: 1 is a Poisson process (default), less is bursts",
    )  # fmt: skip
    parser.add_argument(
        "--requests", type=int, metavar="N",
        help="requests of each load; four times the concurrency, 8 at least, or 32 "
        "for a rate unless said",
    )  # fmt: skip
    parser.add_argument(
        "--warm-up", type=int, metavar="N",
        help="requests before each load that are not measured; as many as run at once "
        "unless said",
    )  # fmt: skip


def _add_requests(parser: argparse.ArgumentParser) -> None:
    for option, default, words in (
        ("--prompt-tokens", 128, "tokens of a prompt (default 128)"),
        ("--max-tokens", 128, "tokens of an answer (default 128)"),
        ("--shared-prefix", 0, "tokens that all prompts begin with (default 0)"),
        ("--seed", 0, "what prompts and arrivals are made from (default 0)"),
    ):
        parser.add_argument(option, type=int, default=default, metavar="N", help=words)
    parser.add_argument(
        "--respect-eos", action="store_true",
        help="let the model end an answer early; all are equally long unless said",
    )  # fmt: skip


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of numbers: 1,2,4,8"
        ) from None


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of numbers: 0.5,1,2"
        ) from None


def run_bench(options: argparse.Namespace) -> int:
    """Measure, and print the tables; return 1 if a load got no answer.

    What was measured before an error or Ctrl-C is printed and written all the same.
    """
    _check_file(options.json)
    try:
        result = _measured(options)
    except ConfigurationError as error:
        message = str(error)
        for argument, option in _OPTIONS.items():
            message = re.sub(rf"^{argument}\b", option, message)
        raise ConfigurationError(message) from None
    except (KeyboardInterrupt, LLCudaError) as error:
        partial: BenchmarkResult | None = getattr(error, "partial", None)
        if partial is not None:
            print("measured so far:")
            _show(partial, options.json)
        if isinstance(error, LLCudaError):
            raise
        print("llamatelemetry: interrupted", file=sys.stderr)
        return _INTERRUPTED
    _show(result, options.json)
    answered = all(load.completed for load in result.loads)
    return 0 if answered else _FAILURE


def _check_file(path: str | None) -> None:
    """Say at once what would keep the result from being written at the end."""
    if path is None:
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise ConfigurationError(f"--json {path}: there is no such folder")
    if Path(path).is_dir():
        raise ConfigurationError(f"--json {path}: that is a folder; name a file")
    beside = not Path(path).exists() or Path(path).is_file()  # not of a device
    if not os.access(folder if beside else path, os.W_OK):
        raise ConfigurationError(f"--json {path}: it may not be written there")


def _show(result: BenchmarkResult, path: str | None) -> None:
    print(result)
    if path is not None:
        result.to_json(path)
        print(f"\nwritten to {printable(path)}")


def _measured(options: argparse.Namespace) -> BenchmarkResult:
    if options.url is not None:
        for name, value in (
            ("--engine", options.engine),
            ("--gpus", options.gpus),
            ("--parallel", options.parallel),
            ("--ctx-size", options.context),
        ):
            if value is not None:
                raise ConfigurationError(
                    f"{name} is of a server that is launched; --url names one that runs"
                )
    asked = {
        "concurrency": options.concurrency,
        "request_rate": options.rate,
        "requests": options.requests,
        "max_tokens": options.max_tokens,
        "prompt_tokens": options.prompt_tokens,
        "shared_prefix": options.shared_prefix,
        "warm_up": options.warm_up,
        "burstiness": options.burstiness,
        "seed": options.seed,
        "ignore_eos": not options.respect_eos,
    }
    # What cannot work is said before a model is fetched.
    plan = planned(**asked, prompts=None, timeout=1, monitor=None, sampling={})
    if options.url is not None:
        key = os.environ.get("LLAMA_API_KEY")
        with LlamaCppClient(options.url, api_key=key) as client:
            return benchmark(client, **asked)
    at_once = max(CONCURRENCY if plan.rates else plan.concurrency)
    with launch(
        options.model or "demo",
        context_size=options.context
        or plan.prompt_tokens + plan.max_tokens + _TEMPLATE_TOKENS,
        parallel=options.parallel or at_once,
        gpus=[] if options.gpus == "none" else options.gpus,
        goal="throughput",
        engine=options.engine,
    ) as session:
        return benchmark(session, **asked)
