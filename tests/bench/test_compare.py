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

from llamatelemetry.bench import Comparison, compare
from llamatelemetry.exceptions import ConfigurationError, LLCudaError
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
        "output tokens per second", "time to first token", "time per output token",
    ]  # fmt: skip
    assert list(axes[0].lines[1].get_ydata()) == list(ratio.values)
    assert axes[0].get_ylabel() == "new / <old>"


def test_what_has_failed_has_no_ratio(stand_in: StandIn) -> None:
    """A side that answers nothing leaves all unknown, and can still be drawn."""
    comparison = quick(stand_in.url(), stand_in.url(end="reset"), rounds=1, warm_up=0)

    assert all(ratio.values == () for ratio in comparison.ratios)
    assert "not known" in repr(comparison)
    assert len(comparison.plot().axes) == 3
    assert comparison.rows()[0]["requests_per_second_ratio"] is None


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
        ({"rounds": 0}, "rounds must be"),
        ({"rounds": True}, "rounds must be"),
        ({"rounds": "6"}, "rounds must be"),
        ({"metrics": "speed"}, "metrics names 'speed'"),
        ({"names": ("a", "a")}, "names is ('a', 'a')"),
        ({"names": "ab"}, "names is 'ab'"),
        ({"names": ("a", "b", "a")}, "two different texts"),
        ({"names": ("a", 2)}, "two different texts"),
        ({"concurrency": 2, "request_rate": 1}, "give one"),
        ({"concurrency": (1, 2)}, "concurrency is (1, 2)"),
        ({"request_rate": -1}, "request_rate is -1"),
        ({"no_such_option": 1}, "no_such_option"),
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
