"""The panel of the cards: what it shows, when it sends something, and what it keeps."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from manager_tools import wait_for
from nvml_tools import GPU_IS_LOST, MIB, NOT_SUPPORTED, StandInDriver, t4
from panel_tools import Recorder, change, click, every_widget, find
from PIL import Image
from small_disk import small_disk

from llamatelemetry import _environment
from llamatelemetry._chart import WIDTH
from llamatelemetry._units import GIB
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gguf._plan_view import PARTS
from llamatelemetry.gguf.memory import MemoryPlan, plan_memory
from llamatelemetry.gpu import GPUMonitor
from llamatelemetry.placement import Placement, decide_placement
from llamatelemetry.server import _linux
from llamatelemetry.session import launch
from llamatelemetry.widgets import _bands, vram_panel
from llamatelemetry.widgets._bands import HOST, bands_of, before_bytes, expected
from llamatelemetry.widgets._memory_sources import CardSource, HostSource
from llamatelemetry.widgets.vram_panel import VRAMPanel
from tests.conftest import missing_part

Show = Callable[..., VRAMPanel]
DEMO_MODEL = Path(_environment.__file__).parent / "data" / "demo-q8_0.gguf"
BY_HAND = 3600.0  # seconds between ticks: the tests take each sample themselves


@pytest.fixture
def monitor(driver: StandInDriver) -> Iterator[GPUMonitor]:
    """A running monitor of two T4s, which has taken its first sample."""
    driver.describe(t4(0, free=9_000 * MIB, utilization="37 20"), t4(1))
    with GPUMonitor(BY_HAND) as running:
        wait_for(lambda: bool(running.latest()))
        yield running


@pytest.fixture
def show(page: Recorder) -> Iterator[Show]:
    """A function that shows a panel; each is closed afterwards."""
    shown: list[VRAMPanel] = []

    def show(*arguments: Any, **options: Any) -> VRAMPanel:
        panel = VRAMPanel(*arguments, mode="threads", interval=0.2, **options)
        shown.append(panel)
        assert panel.widget is not None
        return panel

    yield show
    for panel in shown:
        panel.close()
    assert not [
        one.name
        for one in threading.enumerate()
        if one.name.startswith("llamatelemetry-panel")
    ]


def image_of(panel: VRAMPanel) -> Any:
    """Return the picture of a panel."""
    return find(panel.widget, "Image")


def words_of(panel: VRAMPanel) -> str:
    """Return all HTML that a panel shows."""
    shown = every_widget(panel.widget)
    return "".join(one.value for one in shown if type(one).__name__ == "HTML")


def drawn(panel: VRAMPanel) -> None:
    """Wait until a panel has a picture."""
    wait_for(lambda: image_of(panel).value != vram_panel._NO_PICTURE, 20)


def pictures(page: Recorder, panel: VRAMPanel) -> list[bytes]:
    """Return the pictures that were sent."""
    return [one.buffers[0] for one in page.of(image_of(panel)) if one.buffers]


def settled(panel: VRAMPanel, page: Recorder) -> None:
    """Wait until a panel has shown all there is, and forget what it sent."""
    drawn(panel)
    panel._refresh()
    page.clear()


# What is shown.


def test_the_cards_are_shown_with_what_they_say(
    monitor: GPUMonitor, show: Show
) -> None:
    """Each card has its memory, the plan's, its load, temperature and power."""
    plan = decide_placement(DEMO_MODEL, monitor.gpus, goal="throughput")
    panel = show(monitor, plan)
    drawn(panel)

    words = words_of(panel)
    used = 15_360 - 9_000 - 261
    assert f"{used / 1024:.1f} of 15.0 GiB" in words
    for told in ("GPU 0  Tesla T4", "GPU 1  Tesla T4", "37 %", "38 °C", "10 of 70 W"):
        assert told in words, told
    assert "weights, KV cache, compute" in words
    needed = plan.expected_bytes[0] / MIB
    assert words.count(f"{needed:.1f} MiB") == 2
    picture = Image.open(io.BytesIO(image_of(panel).value))
    layout = image_of(panel).layout
    assert (layout.width, layout.height) == tuple(f"{side}px" for side in picture.size)
    assert picture.width == WIDTH


def test_what_a_card_does_not_tell_is_said(driver: StandInDriver, show: Show) -> None:
    """A value that is None is "not told", and never a 0."""
    refused = {
        f"error.nvmlDeviceGet{name}": NOT_SUPPORTED
        for name in ("PowerUsage", "UtilizationRates", "Temperature", "TemperatureV")
    }
    driver.describe(t4(**refused))
    with GPUMonitor(BY_HAND) as monitor:
        panel = show(monitor)
        drawn(panel)
        wait_for(lambda: words_of(panel).count("not told") == 3)


def test_a_lost_card_says_so(
    driver: StandInDriver, monitor: GPUMonitor, show: Show
) -> None:
    """A card that goes is told with what to do, and the other one goes on."""
    panel = show(monitor)
    drawn(panel)
    driver.describe(t4(0, temperature=71), t4(1, error=GPU_IS_LOST))
    monitor.sample()

    wait_for(lambda: "does not answer" in words_of(panel))
    words = words_of(panel)
    assert "71 °C" in words
    assert "GPU 1: Card 1 of nvidia-smi is lost" in words
    assert "restart the machine" in words


def test_names_cannot_bring_markup(driver: StandInDriver, show: Show) -> None:
    """A card's name is text, in the table and in the static page."""
    driver.describe(t4(name="<img src=x onerror=alert(1)> $x$"))
    with GPUMonitor(BY_HAND) as monitor:
        panel = show(monitor)
        drawn(panel)

        for page in (words_of(panel), panel._repr_html_()):
            assert "<img" not in page
            assert "&lt;img src=x" in page


def test_every_control_has_words(monitor: GPUMonitor, show: Show) -> None:
    """Buttons and the choice of a window have a text and say what they do."""
    panel = show(monitor)

    controls = [
        one
        for one in every_widget(panel.widget)
        if type(one).__name__ in ("Button", "Dropdown")
    ]
    assert [one.description for one in controls] == [
        "Pause", "Window:", "Save PNG", "Save CSV", "Start watching",
    ]  # fmt: skip
    assert all(one.tooltip for one in controls if hasattr(one, "tooltip"))


# When something is sent.


def test_pictures_come_from_the_panels_thread(
    monitor: GPUMonitor, driver: StandInDriver, show: Show, page: Recorder
) -> None:
    """Each new sample is one new picture, of some kilobytes, sent by the panel."""
    panel = show(monitor)
    settled(panel, page)
    for number in range(1, 4):
        driver.describe(t4(0, free=(9_000 - 1_000 * number) * MIB), t4(1))
        monitor.sample()
        wait_for(lambda number=number: len(pictures(page, panel)) >= number)

    sent = [one for one in page.of(image_of(panel)) if one.buffers]
    assert {one.thread for one in sent} == {"llamatelemetry-panel-vram"}
    assert all(len(one.buffers[0]) < 20_000 for one in sent)


def test_nothing_is_sent_where_nothing_is_new(
    monitor: GPUMonitor, show: Show, page: Recorder
) -> None:
    """Looking again without a new sample draws nothing and sends nothing."""
    panel = show(monitor)
    settled(panel, page)

    for _ in range(5):
        panel._refresh()

    assert page.messages == []


def test_a_mark_is_drawn_when_its_time_has_come(
    monitor: GPUMonitor, show: Show, page: Recorder
) -> None:
    """A mark shows with the sample after it."""
    panel = show(monitor)
    settled(panel, page)
    monitor.mark("model loaded")
    monitor.sample()

    wait_for(lambda: bool(pictures(page, panel)))
    assert panel._cards.marks[-1][1] == "model loaded"


def test_a_paused_panel_stands_still(
    monitor: GPUMonitor, driver: StandInDriver, show: Show, page: Recorder
) -> None:
    """Pause sends nothing more, Resume shows what came meanwhile."""
    panel = show(monitor)
    drawn(panel)
    pause = find(panel.widget, "Button", "Pause")
    click(pause)
    assert pause.description == "Resume"
    wait_for(lambda: not panel._looking.locked())
    page.clear()
    driver.describe(t4(0, temperature=77), t4(1))
    monitor.sample()
    panel._refresh()
    assert page.messages == []

    click(pause)

    wait_for(lambda: "77 °C" in words_of(panel))
    assert pause.description == "Pause"


def test_another_window_is_drawn_at_once(
    monitor: GPUMonitor, show: Show, page: Recorder
) -> None:
    """The choice is kept, the caption tells it, and a paused chart is redrawn too."""
    panel = show(monitor, window=45)
    windows = find(panel.widget, "Dropdown")
    assert [text for text, _ in windows.options] == [
        "45 seconds", "1 minute", "2 minutes", "5 minutes", "10 minutes", "60 minutes",
    ]  # fmt: skip
    settled(panel, page)
    click(find(panel.widget, "Button", "Pause"))

    change(windows, 600.0)

    wait_for(lambda: "the last 10 minutes" in words_of(panel))
    wait_for(lambda: bool(pictures(page, panel)))


def test_a_panel_that_ticks_sends_nothing_by_itself(
    monitor: GPUMonitor, page: Recorder
) -> None:
    """Where threads may not send, the picture waits for who may."""
    with VRAMPanel(monitor, mode="loop", interval=0.2) as panel:
        image = image_of(panel)
        page.clear()
        wait_for(lambda: bool(panel._cards.now) and not panel._looking.locked(), 20)
        assert page.messages == []

        panel._outbox.flush()

        assert bytes(image.value).startswith(b"\x89PNG")
        assert {one.thread for one in page.messages} == {"MainThread"}


def test_many_clicks_are_one_picture(
    monitor: GPUMonitor, show: Show, page: Recorder
) -> None:
    """However often a window is chosen while it draws, it draws the last one only."""
    panel = show(monitor)
    windows = find(panel.widget, "Dropdown")
    pause = find(panel.widget, "Button", "Pause")
    settled(panel, page)
    with panel._looking:
        for _ in range(20):
            for _, seconds in windows.options:
                click(pause)
                change(windows, seconds)
        names = [one.name for one in threading.enumerate()]
        assert names.count("llamatelemetry-panel-vram-now") == 1

    wait_for(lambda: "the last 60 minutes" in words_of(panel))
    wait_for(lambda: not panel._looking.locked())
    assert len(pictures(page, panel)) == 1


def test_a_page_without_a_picture_yet_is_not_broken(page: Recorder) -> None:
    """Until there is one a transparent picture of the chart's size stands there."""
    with VRAMPanel(GPUMonitor(), mode="loop") as panel:
        image = image_of(panel)
        picture = Image.open(io.BytesIO(image.value)).convert("RGBA")
        assert picture.getpixel((0, 0)) == (0, 0, 0, 0)
        assert image.layout.width == f"{WIDTH}px"


# The plan's bands.


def test_a_placement_names_each_servers_cards(driver: StandInDriver) -> None:
    """Two servers whose plans both count from 0 expect something on cards 1 and 2."""
    driver.describe(t4(0, free=200 * MIB), t4(1), t4(2))
    with GPUMonitor(BY_HAND) as monitor:
        plan = decide_placement(DEMO_MODEL, monitor.gpus[1:], goal="throughput")
        assert plan.kind == "replicas"

        found = expected(plan)

        assert set(found) == {1, 2, HOST}
        assert [place.name for place in found[2]] == ["CUDA0"]
        assert len(found[HOST]) == 2


def test_a_plan_alone_names_its_own_cards() -> None:
    """A MemoryPlan's devices carry their indices; one that fits nowhere has none."""
    plan = plan_memory(DEMO_MODEL, gpus="2x15")
    none = decide_placement(DEMO_MODEL, gpus="2x0.05", context_size=65_536)

    assert set(expected(plan)) == {0, 1, HOST}
    assert none.kind == "none"
    assert expected(none) == expected(None) == {}


def test_bands_are_the_plans_parts_and_the_margin() -> None:
    """Each part has the plan's own colour and a pattern of its own, in its order."""
    plan = plan_memory(DEMO_MODEL, gpus="1x15")
    (place,) = plan.devices

    bands = bands_of([place])

    assert sum(band.size_bytes for band in bands) == place.needed + place.margin
    assert bands[-1].label == "margin"
    colours = dict(PARTS.values())
    assert all(band.colour == colours[band.label] for band in bands[:-1])
    patterns = [_bands._HATCHES.get(name, "") for name in PARTS]
    assert len(set(patterns)) == len(PARTS)
    twice = bands_of([place, place])
    assert twice[0].size_bytes == 2 * bands[0].size_bytes


def test_bands_begin_at_what_was_used_before() -> None:
    """What the plan was told to be free decides it; without that it is 0."""
    told = plan_memory(DEMO_MODEL, gpus="1x10").devices
    untold = plan_memory(DEMO_MODEL).devices

    assert before_bytes(told, 15 * GIB) == 5 * GIB
    assert before_bytes(told, 9 * GIB) == 0
    assert before_bytes(told, None) == before_bytes(untold, 15 * GIB) == 0


def test_a_plan_that_changes_is_followed(
    monitor: GPUMonitor, show: Show, page: Recorder
) -> None:
    """A function is asked each time, and another plan is another picture."""
    plans: list[MemoryPlan | Placement | None] = [None]
    panel = show(monitor, lambda: plans[0])
    settled(panel, page)
    assert "the bands are" not in words_of(panel)

    plans[0] = plan_memory(DEMO_MODEL, gpus=monitor.gpus)

    wait_for(lambda: "the bands are" in words_of(panel))
    wait_for(lambda: bool(pictures(page, panel)))


# Without a card, without a monitor.


def test_without_a_card_the_host_is_shown(driver: StandInDriver, show: Show) -> None:
    """There is a calm sentence, the host's memory, and the plan's bands for it."""
    driver.unplug()
    plan = plan_memory(DEMO_MODEL, gpus=[])
    with GPUMonitor(BY_HAND) as monitor:
        panel = show(monitor, plan)
        drawn(panel)

        words = words_of(panel)
        assert "The host&#x27;s memory is shown instead." in words
        assert "Error" not in words
        assert "GiB (" in words
        (device,) = panel._host.devices
        assert device.total_bytes
        assert device.bands == bands_of([plan.host])
        rows = list(csv.DictReader(io.StringIO(panel._host.csv())))
        assert int(rows[0]["memory_used_bytes"]) > 0


def test_a_monitor_that_does_not_run_can_be_started(
    driver: StandInDriver, show: Show
) -> None:
    """The panel starts nothing by itself, says so, and has a button for it."""
    driver.describe(t4())
    monitor = GPUMonitor(BY_HAND)
    panel = show(monitor)
    button = find(panel.widget, "Button", "Start watching")
    wait_for(lambda: button.layout.display != "none")
    assert "does not run" in words_of(panel)
    assert not monitor.running

    click(button)

    drawn(panel)
    wait_for(lambda: button.layout.display == "none")
    assert "does not run" not in words_of(panel)
    monitor.stop()
    wait_for(lambda: "The last sample is of" in words_of(panel))
    assert image_of(panel).layout.display != "none"


def test_cards_that_come_and_go_are_followed(
    driver: StandInDriver, show: Show, page: Recorder
) -> None:
    """After a new start the chart is of the cards that are there then, or of none."""
    driver.describe(t4(0, total=8 * GIB), t4(1))
    monitor = GPUMonitor(BY_HAND)
    monitor.start()
    panel = show(monitor, lambda: plan_memory(DEMO_MODEL, gpus="2x15"))
    wait_for(lambda: "of 8.0 GiB" in words_of(panel))
    monitor.stop()
    driver.describe(t4(0, total=None, free=None))
    monitor.start()
    wait_for(lambda: "not told" in words_of(panel))
    (device,) = panel._cards.devices
    assert device.total_bytes is None
    monitor.stop()
    driver.unplug()
    monitor.start()
    wait_for(lambda: "on the host" in words_of(panel))
    monitor.stop()
    wait_for(lambda: "does not run" in words_of(panel))
    for part in (panel._image, panel._table, panel._caption):
        wait_for(lambda part=part: part.layout.display == "none")
    driver.describe(t4(0), t4(1))
    click(find(panel.widget, "Button", "Start watching"))
    wait_for(lambda: "on 2 GPUs" in words_of(panel))
    monitor.stop()


# What is kept.


def test_pictures_and_tables_are_saved_beside_each_other(
    monitor: GPUMonitor,
    show: Show,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each Save writes a new file into the working directory and tells its path."""
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.chdir(folder)
    panel = show(monitor)
    drawn(panel)
    for kind in ("PNG", "CSV", "PNG"):
        before = set(folder.iterdir())
        click(find(panel.widget, "Button", f"Save {kind}"))
        wait_for(lambda before=before: set(folder.iterdir()) != before, 20)
        (new,) = set(folder.iterdir()) - before
        wait_for(lambda new=new: str(new) in words_of(panel), 20)

    files = sorted(folder.iterdir())
    assert sorted(file.suffix for file in files) == [".csv", ".png", ".png"]
    for file in files:
        if file.suffix == ".png":
            assert Image.open(io.BytesIO(file.read_bytes())).width == 2 * WIDTH
        else:
            rows = list(csv.DictReader(io.StringIO(file.read_text())))
            assert len(rows) == len(monitor.rows())


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    """Files of one second get numbers."""
    paths = [vram_panel._write_new(tmp_path, "csv", bytes([n])) for n in range(5)]

    assert [path.read_bytes() for path in paths] == [bytes([n]) for n in range(5)]


def test_of_a_full_disk_no_half_file_is_left(tmp_path: Path) -> None:
    """What could not be written whole is not there, and the next try has its name."""
    with small_disk(tmp_path / "full", 64 * 1024) as mounted:
        if not mounted:
            missing_part("the right to mount a file system", "run as root")
        with pytest.raises(OSError, match="No space left"):
            vram_panel._write_new(tmp_path / "full", "png", bytes(128 * 1024))
        assert list((tmp_path / "full").iterdir()) == []


def test_kaggles_output_folder_is_where_files_go(
    monitor: GPUMonitor,
    show: Show,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On Kaggle a file is kept in /kaggle/working, wherever the notebook stands."""
    (tmp_path / "kaggle" / "working").mkdir(parents=True)
    monkeypatch.setattr(_environment, "_ROOT", tmp_path)
    panel = show(monitor)
    drawn(panel)

    click(find(panel.widget, "Button", "Save CSV"))

    wait_for(lambda: "Saved as" in words_of(panel))
    assert [path.suffix for path in (tmp_path / "kaggle/working").iterdir()] == [".csv"]


def test_what_cannot_be_saved_is_a_sentence(
    monitor: GPUMonitor,
    show: Show,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder that is gone is told with what to do, and the panel goes on."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    panel = show(monitor)
    drawn(panel)
    folder.rmdir()

    click(find(panel.widget, "Button", "Save PNG"))

    wait_for(lambda: "Nothing was saved" in words_of(panel), 20)
    assert "os.chdir()" in words_of(panel)


# The whole dashboard.


def test_only_what_has_a_description_has_a_tooltip(
    driver: StandInDriver, page: Recorder
) -> None:
    """A page of ipywidgets 8 fails where a widget has a tooltip alone."""
    driver.describe(t4(0), t4(1))
    with (
        launch("demo", engine="embedded", progress=False) as session,
        session.dashboard(mode="threads") as dashboard,
    ):
        told = [
            one for one in every_widget(dashboard.widget) if getattr(one, "tooltip", "")
        ]
        assert len(told) > 10
        assert [type(one) for one in told if not one.has_trait("description")] == []


# Without widgets, and at the end.


def test_as_text_there_is_a_table_and_a_picture(
    monitor: GPUMonitor, page: Recorder
) -> None:
    """A saved page has the words, and one PNG with the words as its alternative."""
    plan = plan_memory(DEMO_MODEL, gpus=monitor.gpus)
    panel = VRAMPanel(monitor, plan, mode="text")

    text, html = repr(panel), panel._repr_html_()

    assert text.splitlines()[0].startswith("Memory used on 2 GPUs over the last 2 min")
    assert "GPU 1  Tesla T4" in text
    assert html.count('src="data:image/png;base64,') == 1
    assert 'alt="Memory used on 2 GPUs' in html
    assert page.messages == []
    stopped = VRAMPanel(GPUMonitor(), mode="text")
    assert "Its start() starts it" in repr(stopped)
    assert "<img" not in stopped._repr_html_()


def test_a_closed_panel_leaves_the_monitor_running(
    monitor: GPUMonitor, show: Show, page: Recorder
) -> None:
    """Closing ends the threads and sends no more; the monitor goes on."""
    panel = show(monitor)
    drawn(panel)

    panel.close()

    page.clear()
    panel._refresh()
    monitor.sample()
    assert page.messages == []
    assert monitor.running


@pytest.mark.parametrize(
    "options",
    [{"interval": 0}, {"interval": 61}, {"window": 1}, {"window": True}],
    ids=str,
)
def test_values_that_cannot_work_are_refused(options: Any) -> None:
    """An interval, a window or a monitor that is none says what it must be."""
    with pytest.raises(ConfigurationError, match="must be seconds, from"):
        VRAMPanel(GPUMonitor(), mode="text", **options)
    with pytest.raises(ConfigurationError, match="must be a GPUMonitor"):
        VRAMPanel(None, mode="text")  # type: ignore[arg-type]


# Lines.


def test_a_line_is_the_same_whether_it_grew_or_was_made(
    driver: StandInDriver, monitor: GPUMonitor
) -> None:
    """Samples taken in one by one make the line that all of them at once make."""
    grown = CardSource(monitor)
    for number in range(50):
        driver.describe(t4(0, free=(9000 - 100 * number) * MIB), t4(1))
        monitor.sample()
        if number % 3:
            assert grown.look(120, {})
    grown.look(120, {})

    made = CardSource(monitor)
    made.look(120, {})

    for one, other in zip(grown.traces, made.traces, strict=True):
        assert one.points(made.now) == other.points(made.now)
        assert one.highest == other.highest > 0


def test_a_host_is_sampled_when_it_is_looked_at() -> None:
    """Each look is a sample, and another window keeps what was seen."""
    monitor = GPUMonitor()
    host = HostSource(monitor, 1)
    monitor.mark("model loaded")
    for _ in range(3):
        assert host.look(60, {})
    host.look(600, {})

    assert len(host.csv().splitlines()) == 5
    assert host.caption() == "Memory used on the host over the last 10 minutes."
    assert host.traces[0].last == host.now
    assert [text for _, text in host.marks] == ["model loaded"]


def test_a_containers_limit_is_all_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's memory ends at the limit of its container, of either kind."""
    free, whole = _linux.available_memory(), _linux.total_memory()
    assert free is not None
    assert whole is not None
    assert free < whole
    monkeypatch.setattr(_linux, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert (_linux.total_memory() or 0) >= whole
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{GIB // 2}\n")
    assert _linux.total_memory() == GIB // 2
    (tmp_path / "memory.max").write_text(f"{GIB // 4}\n")
    assert _linux.total_memory() == GIB // 4
