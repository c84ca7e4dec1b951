"""How long launch() takes to the first token, against the same server by hand.

Each side is a Python process of its own, from its start to the first piece of an
answer, imports included. By hand: the same program with the same arguments, started
with subprocess; /health asked every 10 ms; one streamed chat with requests. The model
has the shape of Llama 3.2 1B and a hole for its weights; where that one is ready in
less than 4 s, the shape of SmolLM3 3B or of Llama 3.1 8B.

    python benchmarks/launch.py [--json PATH] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "tools"))

from readiness import engines
from shapes import read_shapes, write_shape

from llamatelemetry.server.engine import build_environment, find_engine

ROUNDS = 5
BOUND = 1.15
LEAST_SECONDS = 4.0
SHAPES = ("llama-3.2-1b", "smollm3-3b", "llama-3.1-8b")
CONTEXT = 2048
# The weights are zeros, so that all tokens are equally likely, the last one too.
ASKED = "{'role': 'user', 'content': 'Hi'}"

LAUNCH = f"""
import json, sys, time
from llamatelemetry import session
running = session.launch(
    sys.argv[1], engine=sys.argv[2], context_size={CONTEXT}, progress=False
)
stream = running.client.chat_completion_stream(
    [{ASKED}], max_tokens=4, extra_body={{"ignore_eos": True}}
)
for chunk in stream:
    if any(choice.delta.content for choice in chunk.choices):
        break
first = time.monotonic()
stream.close()
print(json.dumps([first, running.server.command]))
running.close()
"""

BY_HAND = f"""
import json, subprocess, sys, time
import requests
command, environment = json.loads(sys.argv[1]), json.loads(sys.argv[2])
url = "http://127.0.0.1:" + command[command.index("--port") + 1]
server = subprocess.Popen(
    command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
)
while True:
    try:
        if requests.get(url + "/health", timeout=2).status_code == 200:
            break
    except requests.ConnectionError:
        pass
    time.sleep(0.01)
body = {{
    "messages": [{ASKED}], "max_tokens": 4, "stream": True, "ignore_eos": True
}}
with requests.post(url + "/v1/chat/completions", json=body, stream=True) as reply:
    for line in reply.iter_lines():
        if not line.startswith(b"data: {{"):
            continue
        choices = json.loads(line[6:])["choices"]
        if choices and choices[0]["delta"].get("content"):
            break
    first = time.monotonic()
server.terminate()
server.wait()
print(json.dumps([first, command]))
"""


def run(program: str, *arguments: str) -> tuple[float, list[str]]:
    """Return seconds from a program's start to its first token, and its server."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    first, command = json.loads(done.stdout)
    return first - began, command


def slow_model(folder: Path, engine: str) -> tuple[Path, list[str]]:
    """Return a model that takes long enough to load, and its server's command."""
    environment = json.dumps(build_environment(find_engine(engine)))
    for shape in SHAPES:
        model = write_shape(read_shapes()[shape], folder / f"{shape}.gguf")
        _, command = run(LAUNCH, str(model), engine)  # and all that can be is cached
        run(BY_HAND, json.dumps(command), environment)
        seconds, _ = run(BY_HAND, json.dumps(command), environment)
        if seconds >= LEAST_SECONDS:
            break
    return model, command


def measure(folder: Path, name: str, engine: str, rounds: int) -> dict[str, Any]:
    """Return the row of one engine; the sides take turns."""
    environment = json.dumps(build_environment(find_engine(engine)))
    model, command = slow_model(folder, engine)
    by_hand, launched = [], []
    for turn in range(rounds):
        sides = [
            (launched, LAUNCH, [str(model), engine]),
            (by_hand, BY_HAND, [json.dumps(command), environment]),
        ]
        for seconds, program, arguments in sides[:: 1 if turn % 2 else -1]:
            seconds.append(run(program, *arguments)[0])
    ours, theirs = statistics.median(launched), statistics.median(by_hand)
    return {
        "engine": name,
        "model": model.stem,
        "launch_s": round(ours, 2),
        "by_hand_s": round(theirs, 2),
        "ratio": round(ours / theirs, 3),
        "bound": BOUND,
        "rounds": rounds,
    }


def main() -> None:
    """Measure and print a table; write the rows where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLAMATELEMETRY_CACHE"] = folder
        # Compiled modules are cached too, as those of an installed package are.
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "compiled")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        rows = [
            measure(Path(folder), name, engine, options.rounds)
            for name, engine in engines().items()
        ]
    print("| engine | shape | launch() s | by hand s | ratio | bound | rounds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for one in rows:
        print(" | ".join(["", *map(str, one.values()), ""]).strip())
    for one in rows:
        if one["by_hand_s"] < LEAST_SECONDS:
            print(
                f"\n{one['engine']} took less than {LEAST_SECONDS:g} s by hand, for "
                "which nothing is promised.\n"
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
