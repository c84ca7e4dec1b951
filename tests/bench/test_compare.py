"""compare(): in turn, with the same questions, and what it tells."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_tools import interrupted_at
from client_tools import StandIn
from manager_tools import wait_for

from llamatelemetry._bench_chart import Rounds, rounds_figure
from llamatelemetry.bench import Comparison, compare
from llamatelemetry.exceptions import (
    ConfigurationError,
    ContextLengthError,
    EngineNotFoundError,
    LLCudaError,
    ModelError,
)
from llamatelemetry.server import Engine, ServerConfig, _linux


def quick(a: object, b: object, **options: object) -> Comparison:
    """Compare without bars."""
    few = {"progress": False, "requests": 2, "max_tokens": 3, **options}
    return compare(a, b, **few)  # type: ignore[arg-type]


def chats(stand_in: StandIn, *urls: str) -> list[tuple[int, str]]:
    """Return who was asked what, in order."""
    prefixes = {"/" + url.split("/", 3)[3]: place for place, url in enumerate(urls)}
    return [
        (prefixes[target], one["body"]["messages"][0]["content"])
        for one in stand_in.all_seen()
        if "/chat/" in (path := one["target"])
        and (target := path.removesuffix("/v1/chat/completions")) in prefixes
    ]


def test_both_are_asked_the_same_in_turn(stand_in: StandIn) -> None:
    """The order is a b b a a b, and each round has questions of its own for both."""
    one, other = stand_in.url(), stand_in.url()
    comparison = quick(one, other, rounds=3, warm_up=0)
    asked = chats(stand_in, one, other)

    assert [who for who, _ in asked[::2]] == [0, 1, 1, 0, 0, 1]
    texts = [text for _, text in asked]
    for number in range(3):
        ours = asked[4 * number : 4 * number + 4]
        first, second = ([text for who, text in ours if who == side] for side in (0, 1))
        assert first == second
    assert len(set(texts)) == 6
    assert [len(side.loads) for side in (comparison.a, comparison.b)] == [3, 3]
    assert comparison.a.address != comparison.b.address


def test_the_slower_one_is_told(stand_in: StandIn) -> None:
    """A server whose first token and pace are known is worse by what it is slower."""
    fast, slow = stand_in.url(), stand_in.url(before=0.05)
    comparison = quick(fast, slow, warm_up=0, requests=3, metrics="time_to_first_token")
    (ratio,) = comparison.ratios

    assert len(ratio.values) == 6
    assert ratio.is_different is True
    assert ratio.median is not None
    assert ratio.median > 2
    assert "worse" in repr(comparison)
    assert "worse" in comparison._repr_html_()


def servers() -> set[int]:
    """Return the ids of the servers that this process has started and that run."""
    owner = f"{os.getpid()}:"
    return {
        pid
        for pid in _linux.process_ids()
        if owner in (_linux.process_variable(pid, "LLAMATELEMETRY_OWNER") or "")
        and "--model" in _linux.process_command(pid)
    }


@contextlib.contextmanager
def watched(before: set[int]) -> Iterator[list[int]]:
    """Yield a list that gets how many servers more there are, all the time."""
    seen: list[int] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            seen.append(len(servers() - before))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


@pytest.fixture
def comparison(stand_in: StandIn) -> Comparison:
    """Two rounds of two equal servers, in an open loop."""
    return quick(
        stand_in.url(), stand_in.url(), rounds=2, request_rate=200,
        names=("<old>", "new"),
    )  # fmt: skip


def test_all_outputs_tell_the_same(comparison: Comparison, tmp_path: Path) -> None:
    """Text, HTML, rows, table, JSON and figure have the rounds and their ratios."""
    ratio = comparison.ratios[0]
    assert repr(comparison).startswith("new against <old>: 2 rounds, <old> new new")
    assert "output tokens per second" in repr(comparison)
    assert "&lt;old&gt;" in comparison._repr_html_()
    assert "<old>" not in comparison._repr_html_()

    rows = comparison.rows()
    assert [row["first"] for row in rows] == ["<old>", "new"]
    assert [row[f"{ratio.metric}_ratio"] for row in rows] == list(ratio.values)
    assert rows[0]["joules_per_output_token_ratio"] is None
    frame = comparison.to_dataframe()
    assert set(frame.columns) == set(rows[0])
    assert frame[f"{ratio.metric}_ratio"].tolist() == list(ratio.values)

    path = tmp_path / "comparison.json"
    comparison.to_json(path)
    assert Comparison.from_json(path) == comparison
    assert Comparison.from_json(comparison.to_json()) == comparison
    assert json.loads(path.read_text())["llamatelemetry"] == "comparison"

    axes = comparison.plot().axes
    assert [one.get_title(loc="left") for one in axes] == [
        f"{words}\nmedian {one.median:.3f} ({better} is better)"
        for one, words, better in zip(
            comparison.ratios,
            (
                "Output tokens per second",
                "Time to first token",
                "Time per output token",
            ),
            ("more", "less", "less"),
            strict=True,
        )
    ]
    assert list(axes[0].lines[-1].get_ydata()) == list(ratio.values)
    assert axes[0].get_ylabel() == "new / <old>"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((1.0, 1.0), ["0.95", "1", "1.05", "1.1"]),
        ((1.0, 1.1), ["0.95", "1", "1.05", "1.1"]),
        ((0.65, 1.6), ["0.8", "1", "1.2", "1.4", "1.6"]),
        ((0.894, 4.296), ["1", "1.5", "2", "3"]),
        ((0.203, 1.192), ["0.3", "0.5", "0.7", "1"]),
        ((0.119, 47.0), ["0.2", "0.5", "1", "2", "5", "10", "20"]),
        ((1e-9, 1e9), ["1e-09", "1e-06", "0.001", "1", "1000", "1e+06", "1e+09"]),
    ],
    ids=str,
)
def test_ratios_are_drawn_with_what_they_mean(
    values: tuple[float, float], named: list[str]
) -> None:
    """Half and twice are equally far from 1; the lines say what they are."""
    rounds = Rounds(
        title="speed", more_is_better=True, values=values, median=values[1],
        spread=values,
    )  # fmt: skip
    figure = rounds_figure(("x" * 50, "y"), [rounds])
    figure.draw_without_rendering()
    (axes,) = figure.axes

    assert axes.get_ylabel() == f"y / {'x' * 17}…"
    assert {round(tick, 6) % 1 for tick in axes.get_xticks()} == {0}
    assert axes.get_yscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()] == named
    assert len(axes.get_yticklabels(minor=True)) == 0
    lines = [line.get_ydata()[0] for line in axes.lines]
    assert lines == [1, values[1], values[0]]
    names = [text.get_text() for text in axes.texts]
    assert names == ["no difference", "median"]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not boxes[0].overlaps(boxes[1])
    assert "spread of the median" in axes.get_xlabel()
    assert axes.yaxis.label.get_window_extent().x0 >= 0
    low, high = axes.get_ylim()
    assert low < min(values) <= max(values) < high


@pytest.fixture
def configurations(demo_model: Path) -> tuple[ServerConfig, ServerConfig]:
    """Two configurations that differ in two values, a port and a note."""
    one = ServerConfig(demo_model, port=8080, context_size=256, threads=1)
    return one, one.replace(
        cache_type_k="q8_0", extra_args=("--no-warmup",), port=8081, notes=("why",),
        api_key="hush",
    )  # fmt: skip


def test_it_is_said_what_differs(
    engine: Engine, configurations: tuple[ServerConfig, ServerConfig]
) -> None:
    """Values of the second configuration; no port, no key; read back alike."""
    comparison = quick(*configurations, rounds=1, engine=engine, prompt_tokens=16)

    assert comparison.differs == {
        "cache_type_k": "q8_0", "extra_args": ["--no-warmup"],
    }  # fmt: skip
    told = "b differs: cache_type_k='q8_0', extra_args=['--no-warmup']\n"
    assert told in repr(comparison)
    assert "hush" not in comparison.to_json()
    again = Comparison.from_json(comparison.to_json())
    assert again == comparison
    assert repr(again) == repr(comparison)
    fields = json.loads(comparison.to_json())
    del fields["differs"]  # of an earlier version
    assert "differs" not in repr(Comparison.from_json(json.dumps(fields)))


def test_a_models_name_is_refused_before_anything_starts(
    engine: Engine, demo_model: Path
) -> None:
    """What is no address is said to be none, whichever of the two it is."""
    before = servers()
    config = ServerConfig(demo_model, context_size=256, threads=1)
    with (
        watched(before) as most,
        pytest.raises(ConfigurationError, match="'qwen3-4b' is no address"),
    ):
        quick(config, "qwen3-4b", engine=engine, side_by_side=True)
    assert max(most, default=0) == 0


def test_what_has_failed_has_no_ratio(stand_in: StandIn) -> None:
    """A side that answers nothing leaves all unknown, and can still be drawn."""
    comparison = quick(stand_in.url(), stand_in.url(end="reset"), rounds=1, warm_up=0)

    assert all(ratio.values == () for ratio in comparison.ratios)
    assert "not known" in repr(comparison)
    titles = [axes.get_title(loc="left") for axes in comparison.plot().axes]
    assert titles[0] == "Output tokens per second\n(more is better)"
    assert len(titles) == 3
    assert comparison.rows()[0]["requests_per_second_ratio"] is None


def test_what_failed_on_one_side_is_told(server_url: str, stand_in: StandIn) -> None:
    """A failure is counted where both are seen, and nobody is called better."""
    prompts = ["hello"] * 11 + ["long " * 9000]
    comparison = quick(stand_in.url(), server_url, prompts=prompts, warm_up=0)

    assert len(comparison.ratios[0].values) == 6
    assert sum(load.completed for load in comparison.b.loads) == 11
    for shown in (repr(comparison), comparison._repr_html_()):
        assert "not the same work: 0 and 1 requests failed" in shown
        assert "worse" not in shown
        assert "better" not in shown
        assert "tokens of an answer" in shown
        assert "1 ContextLengthError" in shown


def test_answers_of_other_lengths_are_no_comparison(stand_in: StandIn) -> None:
    """Where one answers more, time and pace are those of other work."""
    extra = {"stream_options": {"include_usage": False}}  # so that pieces are counted
    comparison = quick(
        stand_in.url(tokens=3), stand_in.url(tokens=6, pace=0.002), warm_up=0,
        metrics="end_to_end_latency", extra_body=extra,
    )  # fmt: skip

    (ratio,) = comparison.ratios
    assert ratio.unequal == "answers of 3 and 6 tokens"
    assert "not the same work: answers of 3 and 6 tokens" in repr(comparison)
    lines = [line.split() for line in repr(comparison).splitlines()]
    assert ["a", "12", "0", "3.00"] in lines
    assert ["b", "12", "0", "6.00"] in lines


def test_answers_cut_short_are_told_of_each_side(
    server_url: str, stand_in: StandIn
) -> None:
    """A side whose answers are shorter than asked for says so under its name."""
    comparison = quick(server_url, stand_in.url(), rounds=1, max_tokens=8, warm_up=0)

    assert "\nb: answers were cut: 3 (1 at once) tokens in the mean" in repr(comparison)
    assert "\na: answers were cut" not in repr(comparison)


def test_an_error_in_a_later_round_keeps_the_whole_ones(
    server_url: str, stand_in: StandIn
) -> None:
    """A prompt too long ends round 2 on one side; round 1 of both is in the error."""
    prompts = ["hello", "hello", "long " * 9000]
    with pytest.raises(ContextLengthError) as caught:
        quick(
            server_url, stand_in.url(), prompts=prompts, rounds=2, warm_up=1, requests=1
        )

    partial = caught.value.partial  # type: ignore[attr-defined]
    assert isinstance(partial, Comparison)
    assert [len(side.loads) for side in (partial.a, partial.b)] == [1, 1]
    assert len(partial.rows()) == 1
    assert "b against a: 1 rounds" in caught.value.__notes__[0]


def test_ctrl_c_keeps_the_whole_rounds(stand_in: StandIn) -> None:
    """The interrupt says what the finished rounds brought, and has them."""
    one, other = stand_in.url(), stand_in.url(tokens=2, pace=0.5)
    with pytest.raises(KeyboardInterrupt) as caught, interrupted_at(stand_in, other, 2):
        quick(one, other, rounds=6, requests=1, warm_up=0)

    partial = caught.value.partial  # type: ignore[attr-defined]
    assert [len(side.loads) for side in (partial.a, partial.b)] == [1, 1]
    assert "b against a: 1 rounds" in str(caught.value)


def test_what_cannot_start_is_said_before_the_other_works(
    stand_in: StandIn, tmp_path: Path, demo_model: Path
) -> None:
    """Model and engine of a configuration are looked for before anything is asked."""
    url = stand_in.url()
    with pytest.raises(ModelError, match="absent"):
        quick(url, ServerConfig(tmp_path / "absent.gguf"), engine="embedded")
    with pytest.raises(EngineNotFoundError, match="nowhere"):
        quick(url, ServerConfig(demo_model), engine="/nowhere/llama-server")

    assert stand_in.seen(url) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"names": ["a"]},
        {"names": None},
        {"metrics": ["speed"]},
        {"metrics": None},
        {"a": 5},
        {"b": {}},
        {"format": 2},
    ],
    ids=str,
)
def test_damaged_json_is_refused(
    comparison: Comparison, changes: dict[str, object]
) -> None:
    """Fields that are none, and a later format, are an error that says so."""
    fields = json.loads(comparison.to_json()) | changes
    with pytest.raises(ConfigurationError):
        Comparison.from_json(json.dumps(fields))
    with pytest.raises(ConfigurationError, match="no comparison"):
        Comparison.from_json(comparison.a.to_json())


@pytest.mark.parametrize("side_by_side", [False, True])
def test_configurations_are_started(
    engine: Engine, demo_model: Path, side_by_side: bool
) -> None:
    """Two configurations with one port are measured, in turn or together."""
    before = servers()
    one = ServerConfig(demo_model, port=8080, context_size=256, threads=1)
    other = one.replace(cache_type_k="q8_0", api_key="hush")
    with watched(before) as most:
        comparison = quick(
            one, other, rounds=2, engine=engine, prompt_tokens=16,
            side_by_side=side_by_side,
        )  # fmt: skip

    assert max(most) == (2 if side_by_side else 1)
    addresses = {comparison.a.address, comparison.b.address}
    assert not any(address.endswith(":8080") for address in addresses)
    assert [load.completed for load in comparison.b.loads] == [2, 2]
    assert comparison.a.time <= comparison.b.time
    assert "hush" not in comparison.to_json()
    wait_for(lambda: servers() <= before)


def test_a_configuration_and_an_address_are_compared(
    server_url: str, demo_model: Path
) -> None:
    """What runs is left running, what was started is stopped."""
    before = servers()
    config = ServerConfig(demo_model, context_size=256, threads=1)
    comparison = quick(
        server_url, config, rounds=1, engine="embedded", prompt_tokens=16
    )

    assert [len(one.loads) for one in (comparison.a, comparison.b)] == [1, 1]
    wait_for(lambda: servers() <= before)


def test_ctrl_c_stops_what_was_started(demo_model: Path, stand_in: StandIn) -> None:
    """The interrupt passes, and no server is left."""
    before = servers()
    config = ServerConfig(demo_model, context_size=256, threads=1)
    url = stand_in.url(tokens=200, pace=0.05)
    with (
        watched(before) as most,
        pytest.raises(KeyboardInterrupt),
        interrupted_at(stand_in, url, 1),
    ):
        quick(config, url, engine="embedded", side_by_side=True, prompt_tokens=16)

    assert most[-1] <= 1 == max(most)
    wait_for(lambda: servers() <= before)


def test_a_configuration_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    """What a server failed with comes to the caller."""
    config = ServerConfig(tmp_path / "absent.gguf")
    with pytest.raises(LLCudaError, match="absent"):
        quick(config, config, engine="embedded")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"rounds": True}, "rounds is True"),
        ({"rounds": "6"}, "rounds is '6'"),
        ({"metrics": 5}, "metrics is 5"),
        ({"monitor": 5}, "monitor is 5"),
        ({"stream": True}, "there is no stream here"),
        ({"metrics": "speed"}, "metrics names 'speed'"),
        ({"names": ("a", "a")}, "names is ('a', 'a')"),
        ({"names": "ab"}, "names is 'ab'"),
        ({"names": ("a", "b", "a")}, "two different texts"),
        ({"names": ("a", 2)}, "two different texts"),
        ({"names": ([], [])}, "two different texts"),
        ({"concurrency": 2, "request_rate": 1}, "give one"),
        ({"concurrency": (1, 2)}, "concurrency is (1, 2)"),
        ({"request_rate": -1}, "request_rate is -1"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"conc": 3}, "compare has no option conc (did you mean concurrency?)"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(
    stand_in: StandIn, options: dict[str, object], words: str
) -> None:
    """A value that cannot work is named, and nothing is asked."""
    one, other = stand_in.url(), stand_in.url()
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        quick(one, other, **options)

    assert chats(stand_in, one, other) == []
