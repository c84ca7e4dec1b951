"""The messages that the guides show, produced by what a reader would have done.

Run as a program in a folder with model.gguf, it does what is listed for one situation
and says, as JSON, what was raised or warned of.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamatelemetry import (
    LlamaCppClient,
    ServerConfig,
    ServerManager,
    ensure_engine,
    ensure_model,
    launch,
    plan_memory,
)
from llamatelemetry.setup import _hub

_hub._OFFLINE_SECONDS = 60.0  # a slow machine says the same as a fast one
MESSAGES = [{"role": "user", "content": "What is GGUF?"}]


def _serve(**values: Any) -> None:
    """Start a server of the demo model, and stop it."""
    model = values.pop("model", "model.gguf")
    with ServerManager(ServerConfig(model, **{"port": 0, **values}), engine="embedded"):
        pass


def _twice() -> None:
    with launch("qwen3-4b", progress=False):
        launch("qwen3-8b", progress=False)


def _same_port() -> None:
    with launch("qwen3-4b", progress=False) as session:
        _serve(port=int(session.url.rpartition(":")[2]))


def _long_prompt() -> None:
    with launch("qwen3-4b", progress=False) as session:
        session.client.chat_completion([{"role": "user", "content": "word " * 4000}])


def _embeddings() -> None:
    with launch("qwen3-4b", progress=False) as session:
        session.client.embeddings("a text")


def _cut() -> None:
    Path("cut.gguf").write_bytes(Path("model.gguf").read_bytes()[:1_000_000])
    plan_memory("cut.gguf")


def _web_page() -> None:
    Path("page.gguf").write_text("<html>" * 100)
    plan_memory("page.gguf")


def _wrong_key() -> None:
    config = ServerConfig("model.gguf", port=0, api_key="right", threads=1)
    with ServerManager(config, engine="embedded") as server:
        LlamaCppClient(server.get_url(), api_key="wrong").chat_completion(MESSAGES)


SITUATIONS: dict[str, dict[str, Callable[[], object]]] = {
    # Two T4s, the demo model in every model's place.
    "t4x2": {
        "misspelt": lambda: ensure_model("qwen3-4"),
        "field": lambda: ServerConfig("model.gguf", ctx_size=4096),
        "cache": lambda: ServerConfig("model.gguf", cache_type_v="q8_0"),
        "no-file": lambda: _serve(model="missing.gguf"),
        "no-program": lambda: ensure_engine("no/llama-server"),
        "cut": _cut,
        "web-page": _web_page,
        "unknown-argument": lambda: _serve(extra_args=["--no-such-thing"]),
        "too-large": lambda: launch("qwen3-32b", context_size=131_072, progress=False),
        "twice": _twice,
        "port": _same_port,
        "long": _long_prompt,
        "embeddings": _embeddings,
        "key": _wrong_key,
        "nobody": lambda: LlamaCppClient("http://127.0.0.1:9").health(),
    },
    # Two T4s, nothing in the caches, and the Hub is not to be asked.
    "offline": {
        "offline-model": lambda: ensure_model("qwen3-4b"),
        "offline-engine": ensure_engine,
    },
    # Kaggle and Colab without a card, and with no connection to the Hub.
    "kaggle": {
        "kaggle-internet": lambda: ensure_model("qwen3-4b"),
        "kaggle-card": ensure_engine,
        "kaggle-demo": lambda: launch(progress=False).close(),
    },
    "colab": {
        "colab-internet": lambda: ensure_model("qwen3-4b"),
        "colab-card": ensure_engine,
    },
}


def produce(work: Callable[[], object]) -> str:
    """Return what a piece of work raises, or the first thing that it warns of."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            work()
        except Exception as error:  # noqa: BLE001 - it is what is asked for
            return f"{type(error).__name__}: {error}"
    return "".join(f"{type(one.message).__name__}: {one.message}" for one in warned[:1])


if __name__ == "__main__":
    situation, answer = sys.argv[1:]
    found = {name: produce(work) for name, work in SITUATIONS[situation].items()}
    Path(answer).write_text(json.dumps(found), encoding="utf-8")
