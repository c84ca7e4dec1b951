"""What a live chart of the cards costs: CPU and bytes of an update, and its pixels.

An update of the panel's chart is compared with a full drawing of the same figure by
matplotlib's savefig, moved each time to the same new values, in turns in one process.
CPU is that of the whole process. The last rows are a whole update of the panel: it
takes in the sample, draws, makes the table, and assigns both to its widgets; what the
kernel's sockets take for the bytes is not in it.

    python benchmarks/vram_chart.py [--updates N]
"""

from __future__ import annotations

import argparse
import io
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "tools")]

import numpy as np
from nvml_tools import DRIVER, build_stand_in, t4
from PIL import Image

from llamatelemetry._chart import Layout
from llamatelemetry._units import GIB, MIB
from llamatelemetry.gguf.memory import MemoryPlan, plan_memory
from llamatelemetry.gpu import GPUMonitor
from llamatelemetry.plots import (
    Device,
    MemoryChart,
    Trace,
    _Drawing,
    _tops,
    figure_png,
    memory_figure,
)
from llamatelemetry.widgets._bands import bands_of, expected

DEMO_MODEL = ROOT / "llamatelemetry" / "data" / "demo-q8_0.gguf"
START = 1_700_000_000.0


def plan_for(count: int) -> MemoryPlan:
    """Return a plan for so many T4s, of a model of half their size."""
    plan = plan_memory(DEMO_MODEL, gpus=f"{count}xt4")
    return plan.for_size(int(7.5 * GIB * count))


class Scene:
    """Cards whose memory moves, with marks.

    Args:
        count: Cards.
        window: Seconds.
        marks: How many, over the window.
    """

    def __init__(self, count: int, window: int, marks: int) -> None:
        plan = expected(plan_for(count))
        self.window = float(window)
        self.now = START
        self.devices = [
            Device(
                f"GPU {number}  Tesla T4", 15 * GIB, GIB // 8, bands_of(plan[number])
            )
            for number in range(count)
        ]
        step = window / Layout(count).plot_width
        self.traces = [Trace(step, 4 * step + 5) for _ in range(count)]
        self.marks = [
            (START - window * (number + 1) / (marks + 1), "request")
            for number in reversed(range(marks))
        ]
        for _ in range(window):
            self.move()

    def move(self) -> None:
        """Let a second pass."""
        self.now += 1
        for number, trace in enumerate(self.traces):
            wave = math.sin(self.now / 9 + number) + math.sin(self.now / 2.3) / 4
            trace.add(self.now, (8 + wave) * GIB)
            trace.forget(self.now - self.window)
        if int(self.now) % 20 == 0:
            self.marks = [*self.marks[1:], (self.now, "request")]

    def arguments(self) -> dict[str, Any]:
        """Return what a chart is drawn from."""
        return {
            "devices": self.devices, "traces": self.traces, "marks": self.marks,
            "now": self.now, "window": self.window,
        }  # fmt: skip


def cpu_of(work: Callable[[], object]) -> float:
    """Return the CPU of something, in milliseconds."""
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1e3


def measure(name: str, scene: Scene, updates: int) -> None:
    """Print one row."""
    chart = MemoryChart()
    whole = _Drawing(
        scene.devices, _tops(scene.devices, scene.traces), scene.window, 100
    )
    first = cpu_of(lambda: chart.png(**scene.arguments()))
    live, full, sizes, full_sizes = [], [], [], []

    def redraw() -> None:
        whole.move(scene.traces, scene.marks, scene.now)
        full_sizes.append(len(figure_png(whole.figure)))

    redraw()
    for number in range(updates):
        scene.move()
        live.append(cpu_of(lambda: sizes.append(len(chart.png(**scene.arguments())))))
        if number % 5 == 0:
            full.append(cpu_of(redraw))
    lines, named = differing(chart, scene)
    print(
        f"| {name} | {statistics.median(live):.1f} ms, {percentile(live):.1f} ms | "
        f"{statistics.median(sizes) / 1e3:.1f} kB | {statistics.median(full):.0f} ms | "
        f"{statistics.median(full_sizes) / 1e3:.1f} kB | "
        f"{statistics.median(full) / statistics.median(live):.0f} | {first:.0f} ms | "
        f"{lines:.3%}, {named:.3%} |"
    )


def percentile(values: list[float]) -> float:
    """Return what 95 of 100 stay below."""
    return sorted(values)[int(len(values) * 0.95)]


def differing(chart: MemoryChart, scene: Scene) -> tuple[float, float]:
    """Return the share of pixels an update has other than a full drawing.

    Without the names of marks, any difference; with them, one of more than 16 of 256.
    """
    shares = []
    for marks, above in ([], 0), (scene.marks, 16):
        worst = 0.0
        for _ in range(20):
            scene.move()
            shown = scene.arguments() | {"marks": marks}
            frame = chart._frame(*shown.values())  # noqa: SLF001 - before its palette
            png = figure_png(memory_figure(**shown, dpi=100))
            drawn = Image.open(io.BytesIO(png)).convert("RGB")
            apart = np.abs(np.asarray(frame, int) - np.asarray(drawn, int)).max(axis=2)
            worst = max(worst, float((apart > above).mean()))
        shares.append(worst)
    return shares[0], shares[1]


def measure_panel(count: int, window: float, updates: int, file: Path) -> None:
    """Print what a whole update of the panel takes, with a driver that answers."""
    from llamatelemetry.widgets.vram_panel import VRAMPanel  # noqa: PLC0415 - as above

    def describe(number: int) -> None:
        cards = [t4(n, free=(7_000 + 10 * (number % 50)) * MIB) for n in range(count)]
        texts = [
            "".join(f"{key} {value}\n" for key, value in part.items())
            for part in (DRIVER, *cards)
        ]
        new = file.with_suffix(".new")
        new.write_text("card\n".join(texts))
        new.replace(file)

    describe(0)
    monitor = GPUMonitor(1, _clock=(clock := Clock()))
    for _ in range(int(window)):
        clock.now += 1
        monitor.sample()
    panel = VRAMPanel(monitor, plan_for(count), window=window, mode="threads")
    panel._every = panel._begin = lambda *_: None  # type: ignore[method-assign,assignment] # noqa: SLF001 - no thread but this one
    image = panel.widget.children[0].children[1]
    panel._refresh()  # noqa: SLF001 - what the panel's thread calls
    spent, pictures = [], set()
    for number in range(updates):
        describe(number)
        clock.now += 1
        if number % 10 == 0:
            monitor.mark("request")
        monitor.sample()
        spent.append(cpu_of(panel._refresh))  # noqa: SLF001 - the same
        pictures.add(bytes(image.value))
    assert len(pictures) > updates / 4  # of an hour not every second is seen
    idle = [cpu_of(panel._refresh) for _ in range(updates)]  # noqa: SLF001 - the same
    median, most = statistics.median(spent), percentile(spent)
    print(
        f"| {count} cards, {window / 60:g} minutes | {median:.1f} ms, {most:.1f} ms | "
        f"{statistics.median(idle):.2f} ms |"
    )
    panel.close()


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        """Return the time."""
        return START + self.now

    def monotonic(self) -> float:
        """Return the same."""
        return self.now

    def wait(self, event: Any, seconds: float) -> bool:
        """Wait for good: samples are taken by hand."""
        del seconds
        return bool(event.wait())


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=200)
    updates = parser.parse_args().updates
    print(
        "| chart of 640 pixels | CPU of an update, median, 95th | bytes | full drawing "
        "| bytes | ratio | first picture | other pixels: lines, with names |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    measure("2 cards, 2 minutes, no marks", Scene(2, 120, 0), updates)
    for count in (1, 2, 4, 8):
        measure(
            f"{count} card{'s' * (count > 1)}, 2 minutes, 6 marks",
            Scene(count, 120, 6),
            updates,
        )
    measure("2 cards, 60 minutes, 300 marks", Scene(2, 3600, 300), updates)
    print("\n| panel | CPU of a new sample, median, 95th | of none |")
    print("| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        library = build_stand_in(Path(name))
        if library is None:
            sys.exit("there is no C compiler for the stand-in driver")
        # The loader reads this variable when a program starts, so it is started anew.
        if os.environ.get("STAND_IN_NVML") is None:
            import ctypes  # noqa: PLC0415 - for the stand-in alone

            import pynvml  # noqa: PLC0415 - the same

            os.environ["STAND_IN_NVML"] = f"{name}/cards"
            pynvml.nvmlLib = ctypes.CDLL(str(library))
        for count, window in ((2, 120.0), (8, 120.0), (2, 3600.0)):
            measure_panel(count, window, updates, Path(name) / "cards")


if __name__ == "__main__":
    main()
