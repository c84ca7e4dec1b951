"""What watching the cards costs: CPU, memory, and the look for the cards.

The real nvidia-ml-py asks the stand-in driver of the tests about two T4s; a real
driver takes longer for an answer, in the kernel. The stand-in reads its file again at
each call, which is counted here as the monitor's. Each row is measured in a fresh
interpreter.

    python benchmarks/gpu_monitor.py [--seconds N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "tools"))

from nvml_tools import DRIVER, LIBRARY_NAME, build_stand_in, t4

CPU = """
import json, threading, time
from llamatelemetry.gpu import GPUMonitor
shares = {{}}
for name, interval in (("without", None), ("with", 0.1)):
    monitor = GPUMonitor(interval or 1, process_ids=None)
    clocks = []
    monitor.subscribe(lambda _: clocks.append(time.thread_time()))
    if interval:
        monitor.start()
        while len(clocks) < 2:  # what only the first tick costs is left out
            time.sleep(0.01)
    thread, process, wall = clocks[-1:], time.process_time(), time.perf_counter()
    time.sleep({seconds})
    process, wall = time.process_time() - process, time.perf_counter() - wall
    thread = clocks[-1] - thread[0] if thread else 0
    monitor.stop()
    shares[name] = [thread / wall, process / wall, len(clocks)]
import pynvml
pynvml.nvmlInit()
cards = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(2)]
waiting, ticks = threading.Event(), round({seconds} * 10)
before, wall = time.thread_time(), time.perf_counter()
for _ in range(ticks):
    for card in cards:
        pynvml.nvmlDeviceGetMemoryInfo(card, pynvml.nvmlMemory_v2)
        pynvml.nvmlDeviceGetUtilizationRates(card)
        pynvml.nvmlDeviceGetPowerUsage(card)
        pynvml.nvmlDeviceGetEnforcedPowerLimit(card)
        pynvml.nvmlDeviceGetTemperatureV(card, pynvml.NVML_TEMPERATURE_GPU)
        pynvml.nvmlDeviceGetClockInfo(card, pynvml.NVML_CLOCK_GRAPHICS)
        pynvml.nvmlDeviceGetClockInfo(card, pynvml.NVML_CLOCK_MEM)
        pynvml.nvmlDeviceGetCurrentClocksEventReasons(card)
        pynvml.nvmlDeviceGetComputeRunningProcesses_v3(card)
    waiting.wait(0.1)
shares["alone"] = (time.thread_time() - before) / (time.perf_counter() - wall)
print(json.dumps(shares))
"""

MEMORY = """
import json, threading, tracemalloc
from llamatelemetry.gpu import GPUMonitor

class Driven:
    now = 0.0
    def time(self): return 1.7e9 + self.now
    def monotonic(self): return self.now
    def wait(self, event, seconds):
        self.now += seconds
        return event.is_set()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

if {traced}:
    tracemalloc.start()
monitor, ticks, seen = GPUMonitor(0.1, history=3600, _clock=Driven()), 0, {{}}
done = threading.Event()
def count(_):
    global ticks
    ticks += 1
    if ticks in (8000, 36000):
        seen[ticks] = tracemalloc.get_traced_memory()[0] if {traced} else resident()
    if ticks == 36000:
        done.set()
        monitor.stop()
monitor.subscribe(count)
monitor.start()
done.wait()
print(json.dumps([seen[8000], seen[36000]]))
"""

LOOK = """
import json, statistics, time
from llamatelemetry.gpu import detect_gpus
times = []
for _ in range(201):
    began = time.perf_counter()
    assert len(detect_gpus()) == 2
    times.append((time.perf_counter() - began) * 1e3)
print(json.dumps([times[0], statistics.median(times[1:]), max(times[1:])]))
"""


def describe(path: Path) -> None:
    """Write what the stand-in tells: two cards, one with a process, and no log."""
    parts = [DRIVER, t4(0, processes=f"{os.getpid()}:1048576"), t4(1)]
    texts = ["".join(f"{key} {part[key]}\n" for key in part) for part in parts]
    path.write_text("card\n".join(texts))


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        library = build_stand_in(Path(name))
        if library is None:
            sys.exit("there is no C compiler for the stand-in driver")
        assert library.name == LIBRARY_NAME
        describe(Path(name) / "cards")
        variables = {"STAND_IN_NVML": f"{name}/cards", "LD_LIBRARY_PATH": name}

        def run(program: str, **words: object) -> Any:
            done = subprocess.run(
                [sys.executable, "-c", program.format(**words)],
                env=os.environ | variables,
                cwd=ROOT,
                check=True,
                stdout=subprocess.PIPE,
            )
            return json.loads(done.stdout)

        shares = run(CPU, seconds=options.seconds)
        objects, resident = run(MEMORY, traced=1), run(MEMORY, traced=0)
        first, median, most = run(LOOK)
    (_, idle, _), (thread, process, ticks) = shares["without"], shares["with"]
    print("| watching two cards at 10 Hz | |\n| --- | --- |")
    print(f"| ticks measured | {ticks} |")
    print(f"| CPU of the monitor's thread, of one core | {thread:.2%} |")
    alone = shares["alone"]
    print(f"| the same questions by pynvml alone, in a loop | {alone:.2%} |")
    print(f"| CPU of the process, of one core | {process:.2%} (without: {idle:.2%}) |")
    print(f"| Python objects after an hour | {objects[1] - objects[0]:+,.0f} bytes |")
    print(
        f"| resident memory after an hour | {resident[1] - resident[0]:+,.0f} bytes |"
    )
    print(f"| detect_gpus(), the first time | {first:.2f} ms |")
    print(f"| detect_gpus(), median, longest | {median:.2f} ms, {most:.2f} ms |")
    print(
        "\nGrowth is from tick 8,000, when the history of 3,600 ticks has been full "
        "for long, to tick 36,000."
    )


if __name__ == "__main__":
    main()
