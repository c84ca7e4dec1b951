"""benchmark(): on real engines, on stand-ins, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bench_tools import chats, interrupted_at
from client_tools import MESSAGES, StandIn
from nvml_tools import StandInDriver, t4

from llamatelemetry import __version__
from llamatelemetry._bench_chart import loads_figure
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.bench import BenchmarkResult, benchmark
from llamatelemetry.exceptions import (
    AuthenticationError,
    ClientError,
    ConfigurationError,
    ConnectionFailedError,
    ContextLengthError,
    RequestTimeoutError,
)
from llamatelemetry.pool import ServerPool
from llamatelemetry.server import Engine, ServerConfig
from llamatelemetry.session import launch


def quick(target: object, prompts: object = None, **options: object) -> BenchmarkResult:
    """Measure without a bar."""
    return benchmark(target, prompts, **{"progress": False, **options})  # type: ignore[arg-type]


def test_a_real_server_is_measured(server_url: str) -> None:
    """Every figure is there: client's and server's, tokens, and what was measured."""
    result = quick(
        server_url, concurrency=(1, 2), requests=4, max_tokens=16, prompt_tokens=40
    )

    assert result.model
    assert result.build
    assert result.slots == 2
    assert result.address == server_url
    assert (result.prompts, result.prompt_tokens, result.max_tokens) == ("made", 40, 16)
    assert result.version == __version__
    assert abs(time.time() - result.time) < 60
    assert [load.concurrency for load in result.loads] == [1, 2]
    for load in result.loads:
        assert (load.completed, load.errors) == (4, {})
        assert load.output_tokens == 4 * 16
        assert 4 * 40 <= load.prompt_tokens <= 4 * (40 + 20)
        assert load.cached_tokens == 0
        assert load.time_to_first_token is not None
        assert load.server_prompt_time is not None
        assert load.server_generation_time is not None
        assert load.server_tokens_per_second is not None
        assert load.server_prompt_time.median < load.time_to_first_token.median
        assert load.time_per_output_token is not None
        assert load.inter_token_latency is not None
        assert load.end_to_end_latency is not None
        assert load.end_to_end_latency.median > load.time_to_first_token.median
        assert load.lateness is None


def test_an_open_loop_has_a_load_for_each_rate(server_url: str) -> None:
    """Requests come at the rate, and it is said how late they were sent."""
    result = quick(
        server_url, request_rate=(50, 100.0), requests=10, max_tokens=4,
        prompt_tokens=16,
    )  # fmt: skip

    assert [load.name for load in result.loads] == ["50 a second", "100 a second"]
    assert [load.completed for load in result.loads] == [10, 10]
    assert all(load.duration >= 10 / load.request_rate for load in result.loads)  # type: ignore[operator]
    assert all(load.lateness is not None for load in result.loads)


def test_a_shared_prefix_comes_from_the_cache(engine: Engine, demo_model: Path) -> None:
    """With one slot, the shared tokens of all prompts but the first are cached."""
    with ServerPool(
        ServerConfig(demo_model, port=0, context_size=512, threads=1),
        gpus=[[]],
        engine=engine,
    ) as pool:
        result = quick(
            pool, concurrency=1, requests=4, max_tokens=4, prompt_tokens=64,
            shared_prefix=48, warm_up=1,
        )  # fmt: skip
        asked = quick(
            pool.client, [MESSAGES, "What is GGUF?"], concurrency=[1], requests=3,
            max_tokens=4, warm_up=0,
        )  # fmt: skip

    assert result.loads[0].cached_tokens >= 4 * 40
    assert 4 * 64 <= result.loads[0].prompt_tokens <= 4 * (64 + 20)
    assert result.slots == 1
    assert result.address == "PoolClient(1 servers)"
    assert asked.prompts == "given"
    assert asked.prompt_tokens is None
    assert asked.loads[0].completed == 3


def test_a_session_and_its_monitor_tell_energy(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards that draw 9.5 W each have joules, joules per token, and power at rest."""
    monkeypatch.setenv("LLAMATELEMETRY_DEMO", "1")
    driver.describe(t4(0), t4(1))
    with pytest.warns(UserWarning, match="stands in for"):
        session = launch("qwen3-4b", parallel=2, progress=False)
    with session:
        result = quick(session, concurrency=2, requests=4, max_tokens=8)
        assert session.monitor.running

    load = result.loads[0]
    assert result.cards == ("Tesla T4", "Tesla T4")
    assert result.idle_watts == pytest.approx(19.0)
    assert load.watts == pytest.approx(19.0, rel=0.5)
    assert load.joules_per_output_token == pytest.approx(load.joules / 32)  # type: ignore[operator]
    assert "19.0 W at rest before" in repr(result)


def test_given_prompts_are_asked_in_turn(stand_in: StandIn) -> None:
    """Warm-up and loads go through the list, and from its end to its beginning."""
    url = stand_in.url()
    result = quick(url, list("abcd"), concurrency=(1, 1), requests=2, warm_up=1)

    asked = [one["body"]["messages"][0]["content"] for one in chats(stand_in, url)]
    assert asked == ["a", "b", "c", "d", "a", "b"]
    assert "prompts as given" in repr(result)


def test_made_prompts_follow_the_seed_and_all_differ(stand_in: StandIn) -> None:
    """Equal seeds ask the same; no two prompts of a benchmark begin alike."""

    def asked(seed: int) -> list[str]:
        url = stand_in.url()
        quick(url, concurrency=(1, 2), requests=8, seed=seed, prompt_tokens=40)
        return sorted(
            one["body"]["messages"][0]["content"] for one in chats(stand_in, url)
        )

    first = asked(7)
    assert first == asked(7)
    assert first != asked(8)
    assert len(first) == len(set(first)) == 8 + 1 + 8 + 2
    # Without /tokenize a prompt has three words for four tokens.
    assert all(len(text.split()) == 30 for text in first)


def test_what_is_sent_can_be_compared(stand_in: StandIn) -> None:
    """Answers are of one length, at temperature 0, without a penalty, with a seed."""
    url = stand_in.url()
    quick(
        url, concurrency=1, requests=1, max_tokens=50, seed=5, top_k=1,
        extra_body={"id_slot": 1},
    )  # fmt: skip
    warm, measured = (one["body"] for one in chats(stand_in, url))

    assert warm["max_tokens"] == 16
    assert measured["max_tokens"] == 50
    for body in (warm, measured):
        assert body["ignore_eos"] is True
        assert body["cache_prompt"] is False
        assert (body["temperature"], body["repeat_penalty"]) == (0, 1.0)
        assert (body["seed"], body["top_k"], body["id_slot"]) == (5, 1, 1)

    url = stand_in.url()
    quick(url, concurrency=1, requests=1, ignore_eos=False, shared_prefix=9)
    assert "ignore_eos" not in stand_in.asked(url)["body"]
    assert stand_in.asked(url)["body"]["cache_prompt"] is True


def test_a_server_that_says_nothing_of_itself_is_measured(stand_in: StandIn) -> None:
    """Model, build and slots are None where /props has none, or does not exist."""
    result = quick(stand_in.url(tokens=3), concurrency=1, requests=2)

    assert (result.model, result.build, result.slots) == (None, None, None)
    assert repr(result).startswith("Benchmark of a model at http://127.0.0.1:")

    result = quick(stand_in.url(answer="list"), concurrency=1, requests=2, warm_up=0)
    assert sum(result.loads[0].errors.values()) == 2
    assert result.loads[0].time_to_first_token is None
    assert "2 ClientError" in repr(result)


def test_failures_of_some_are_counted(stand_in: StandIn) -> None:
    """A load whose requests all fail has errors by name, and no statistics."""
    result = quick(stand_in.url(end="reset"), concurrency=2, requests=3, warm_up=0)

    assert result.loads[0].errors == {"StreamError": 3}
    assert result.loads[0].completed == 0
    assert result.rows()[0]["errors"] == "3 StreamError"


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ({"status": 401}, AuthenticationError),
        ({"end": "error"}, ClientError),
        (None, ConnectionFailedError),
    ],
)
def test_what_cannot_be_measured_is_an_error(
    stand_in: StandIn, target: dict[str, object] | None, kind: type[Exception]
) -> None:
    """A wrong key, a server that is not there, a warm-up that fails: at once."""
    url = "http://127.0.0.1:9" if target is None else stand_in.url(**target)
    with pytest.raises(kind):
        quick(url, concurrency=1, requests=1)


def test_a_silent_server_is_waited_for_so_long(stand_in: StandIn) -> None:
    """The timeout counts silence; the default is patient with a busy server."""
    with pytest.raises(RequestTimeoutError):
        quick(stand_in.url(before=5), concurrency=1, requests=1, timeout=0.2)


def test_ctrl_c_tells_what_was_measured(stand_in: StandIn) -> None:
    """The interrupt has the loads that were finished, in words and as a result."""
    url = stand_in.url(tokens=2, pace=0.5)
    with pytest.raises(KeyboardInterrupt) as caught, interrupted_at(stand_in, url, 3):
        quick(url, concurrency=(2, 1), requests=2, warm_up=0)

    told = str(caught.value)
    assert told.startswith("measured so far, and kept as this error's .partial:\n")
    assert "2 at once" in told
    assert "1 at once" not in told
    partial = caught.value.partial  # type: ignore[attr-defined]
    assert [load.completed for load in partial.loads] == [2]


def test_an_error_in_a_later_load_keeps_those_before(server_url: str) -> None:
    """A prompt too long ends the second warm-up; the first load is in the error."""
    prompts = ["hello", "hello", "long " * 9000]
    with pytest.raises(ContextLengthError) as caught:
        quick(
            server_url, prompts, concurrency=(1, 1), requests=1, warm_up=1, max_tokens=4
        )

    partial = caught.value.partial  # type: ignore[attr-defined]
    assert isinstance(partial, BenchmarkResult)
    assert [load.output_tokens for load in partial.loads] == [4]
    (note,) = caught.value.__notes__
    assert "Benchmark of" in note
    with pytest.raises(ContextLengthError) as caught:
        quick(server_url, prompts[2:], concurrency=1, requests=1, max_tokens=4)
    assert not hasattr(caught.value, "partial")


def test_ctrl_c_before_the_first_load_has_nothing_to_tell(stand_in: StandIn) -> None:
    """Without a load nothing is said."""
    url = stand_in.url(tokens=99, pace=0.1)
    with pytest.raises(KeyboardInterrupt) as caught, interrupted_at(stand_in, url, 1):
        quick(url, concurrency=1, warm_up=0)

    assert str(caught.value) == ""
    assert not hasattr(caught.value, "partial")


def test_answers_that_a_full_context_cuts_are_told(
    engine: Engine, demo_model: Path
) -> None:
    """Text and HTML say how long the answers were, where they are not as asked."""
    with ServerPool(
        ServerConfig(demo_model, port=0, context_size=256, threads=1),
        gpus=[[]],
        engine=engine,
    ) as pool:
        cut = quick(pool, concurrency=1, requests=2, max_tokens=900, prompt_tokens=16)
        whole = quick(pool, concurrency=1, requests=2, max_tokens=8, prompt_tokens=16)

    mean = cut.loads[0].output_tokens / 2
    assert mean < 256
    words = f"answers were cut: {mean:.4g} (1 at once) tokens in the mean, not 900"
    assert words in repr(cut)
    assert words in cut._repr_html_()
    assert "were cut" not in repr(whole)


def test_a_server_that_does_not_count_tokens_says_so(stand_in: StandIn) -> None:
    """Tokens in are unknown and not 0, and pieces are not called short answers."""
    extra = {"stream_options": {"include_usage": False}}
    result = quick(
        stand_in.url(tokens=5), concurrency=1, requests=2, max_tokens=9,
        extra_body=extra,
    )  # fmt: skip

    load = result.loads[0]
    assert (load.prompt_tokens, load.cached_tokens) == (None, None)
    assert load.output_tokens == 10
    assert "were cut" not in repr(result)
    assert BenchmarkResult.from_json(result.to_json()) == result
    assert result.to_dataframe()["prompt_tokens_per_second"].isna().all()


@pytest.mark.parametrize(
    "prompts",
    [
        lambda: (text for text in "ab"),
        lambda: pd.Series(["a", "b"], index=[7, 8]),
        lambda: np.array(["a", "b"]),
        lambda: dict.fromkeys("ab").keys(),
    ],
    ids=["generator", "series", "array", "keys"],
)
def test_prompts_may_be_any_series_of_texts(
    stand_in: StandIn, prompts: Callable[[], object]
) -> None:
    """What can be gone through once is read once, and asked in turn."""
    url = stand_in.url()
    quick(url, prompts(), concurrency=(1, 1), requests=2, warm_up=0)

    asked = [one["body"]["messages"][0]["content"] for one in chats(stand_in, url)]
    assert asked == ["a", "b", "a", "b"]


def test_numbers_may_be_numpys(stand_in: StandIn) -> None:
    """Rates and counts as an array holds them are numbers."""
    result = quick(
        stand_in.url(), request_rate=np.int64(100), requests=np.int64(2),
        burstiness=np.float64(0.05),
    )  # fmt: skip

    assert [load.request_rate for load in result.loads] == [100.0]
    assert BenchmarkResult.from_json(result.to_json()) == result


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": 0}, "concurrency is 0"),
        ({"concurrency": ()}, "concurrency is ()"),
        ({"concurrency": "4"}, "concurrency is '4'"),
        ({"concurrency": (1, 2.5)}, "concurrency is 2.5"),
        ({"concurrency": True}, "concurrency is True"),
        ({"request_rate": 0}, "request_rate is 0"),
        ({"request_rate": "many"}, "request_rate is 'many'"),
        ({"request_rate": [float("inf")]}, "request_rate is inf"),
        ({"request_rate": 1, "concurrency": 2}, "give one"),
        ({"requests": 0}, "requests is 0"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0"),
        ({"prompt_tokens": 8, "shared_prefix": 8}, "shared_prefix is 8"),
        ({"warm_up": -1}, "warm_up is -1"),
        ({"burstiness": float("nan")}, "burstiness is nan"),
        ({"burstiness": 0.0001, "request_rate": 9}, "burstiness is 0.0001"),
        ({"messages": MESSAGES}, "there is no messages here"),
        ({"stream": False}, "there is no stream here"),
        ({"extra_body": 5}, "extra_body is 5"),
        ({"monitor": 5}, "monitor is 5"),
        ({"prompts": 5}, "prompts takes a list"),
        ({"prompts": {"a": "b"}}, "prompts takes a list"),
        ({"prompts": iter(())}, "prompts takes a list"),
        ({"prompts": pd.DataFrame({"question": ["a"]})}, "prompts takes a list"),
        ({"prompts": np.array(["a"])[:0]}, "prompts takes a list"),
        ({"seed": -1}, "seed is -1"),
        ({"timeout": True}, "timeout is True"),
        ({"prompts": "text"}, "prompts takes a list"),
        ({"prompts": []}, "prompts takes a list"),
        ({"prompts": ["", "a"]}, "a prompt is ''"),
        ({"prompts": [7]}, "a prompt is 7"),
        ({"top_q": 1}, "chat has no option top_q (did you mean top_p?)"),
        ({"conc": 1}, "benchmark has no option conc (did you mean concurrency?)"),
        ({"promts": 1}, "benchmark has no option promts (did you mean prompts?)"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(
    stand_in: StandIn, options: dict[str, object], words: str
) -> None:
    """A value that cannot work is named, and no request is sent."""
    url = stand_in.url()
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        quick(url, **options)

    assert chats(stand_in, url) == []


def test_what_is_no_target_is_refused() -> None:
    """Anything else is told what can be measured."""
    with pytest.raises(ConfigurationError, match="server.get_url"):
        quick(42)
    words = "'qwen3-4b' is no address.*with launch.'qwen3-4b'. as session"
    with pytest.raises(ConfigurationError, match=words):
        quick("qwen3-4b")


def test_a_client_is_not_closed(stand_in: StandIn) -> None:
    """What the caller has opened is the caller's to close."""
    with stand_in.client() as client:
        quick(client, concurrency=1, requests=1)

        assert client.health() == {"status": "ok"}


def test_a_bar_shows_how_far_it_is(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each load has a bar with its name, and progress=False has none."""
    benchmark(stand_in.url(), concurrency=(1, 2), requests=3)
    shown = capsys.readouterr().err
    assert "1 at once: 3 of 3 requests" in shown
    assert "2 at once: 3 of 3 requests" in shown

    quick(stand_in.url(), concurrency=1, requests=1)
    assert capsys.readouterr().err == ""


@pytest.fixture
def result(stand_in: StandIn) -> BenchmarkResult:
    """A small benchmark."""
    return quick(stand_in.url(tokens=3, pace=0.001), concurrency=(1, 2), requests=3)


def test_json_is_read_back(result: BenchmarkResult, tmp_path: Path) -> None:
    """Text and file give the same result again; a later version's fields are left."""
    text = result.to_json()
    path = tmp_path / "bench.json"
    result.to_json(path)

    assert BenchmarkResult.from_json(text) == result
    assert BenchmarkResult.from_json(path) == result
    assert BenchmarkResult.from_json(str(path)) == result
    later = json.loads(text)
    later["tomorrow"] = later["loads"][0]["tomorrow"] = 1
    later["loads"][0]["time_to_first_token"]["p999"] = 1
    assert BenchmarkResult.from_json(json.dumps(later)) == result


def test_other_json_is_refused(tmp_path: Path) -> None:
    """What is no benchmark is told so, with its name."""
    path = tmp_path / "other.json"
    path.write_text("[1, 2")
    with pytest.raises(ConfigurationError, match="other.json is no JSON"):
        BenchmarkResult.from_json(path)
    with pytest.raises(ConfigurationError, match="the text is no benchmark"):
        BenchmarkResult.from_json('{"llamatelemetry": "comparison"}')
    path.write_text("[]")
    with pytest.raises(ConfigurationError, match="is no benchmark"):
        BenchmarkResult.from_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="other.json is no JSON"):
        BenchmarkResult.from_json(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 9}, "has the format 9, and this version of llamatelemetry reads 1"),
        ({"format": None}, "has the format None"),
        ({"loads": [{}]}, "the text is a damaged benchmark: TypeError"),
        ({"loads": 5}, "is a damaged benchmark: TypeError"),
        ({"loads": [5]}, "is a damaged benchmark: AttributeError"),
        ({"cards": None}, "is a damaged benchmark: TypeError"),
    ],
    ids=str,
)
def test_damaged_json_is_refused(
    result: BenchmarkResult, changes: dict[str, object], words: str
) -> None:
    """A later format, and fields that are none, are an error that says so."""
    fields = json.loads(result.to_json()) | changes
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        BenchmarkResult.from_json(json.dumps(fields))
    del fields["loads"]
    with pytest.raises(ConfigurationError):
        BenchmarkResult.from_json(json.dumps(fields))


def test_what_else_was_asked_is_read_back_alike(stand_in: StandIn) -> None:
    """Sampling options stand in the result as JSON has them."""
    result = quick(
        stand_in.url(), concurrency=1, requests=1, stop=("zz",), on_progress=print
    )

    assert result.sampling["stop"] == ["zz"]
    assert BenchmarkResult.from_json(result.to_json()) == result


def test_a_missing_folder_is_named(result: BenchmarkResult, tmp_path: Path) -> None:
    """The error has the folder and no name of ours."""
    with pytest.raises(FileNotFoundError, match="no such folder") as caught:
        result.to_json(tmp_path / "missing" / "bench.json")
    assert caught.value.filename == str(tmp_path / "missing")


def test_rows_are_a_table(result: BenchmarkResult) -> None:
    """Each load is a row of plain values; the frame has a column for each."""
    frame = result.to_dataframe()
    rows = result.rows()

    assert list(frame.columns) == list(rows[0]) or set(frame.columns) == set(rows[0])
    assert frame["concurrency"].tolist() == [1, 2]
    load = result.loads[0]
    assert load.time_to_first_token is not None
    assert rows[0]["time_to_first_token_p99"] == load.time_to_first_token.p99
    assert frame["joules"].isna().all()
    json.dumps(rows)


def test_text_and_html_show_both_sides(result: BenchmarkResult) -> None:
    """The tables have the client's times and the server's, and why they differ."""
    text, html = repr(result), result._repr_html_()

    for words in (
        "1 at once: time to first token", "2 at once: server: prompt",
        "tokens/s out", "nor the way there and back",
    ):  # fmt: skip
        assert words in text
        assert words in html
    assert "<th" in html.partition("tokens per second")[0]
    header, *rates = text.rpartition("\n\n")[2].splitlines()
    assert header.split("  ")[0] == "tokens per second"
    told = [row.split("  ")[0] for row in rates]
    assert told == ["1 at once: server", "2 at once: server"]
    first = result.loads[0].time_to_first_token
    assert first is not None
    (row,) = [line for line in text.splitlines() if "1 at once: time to first" in line]
    assert float(row.split()[-4]) == pytest.approx(1000 * first.median, abs=0.06)
    assert "W at rest" not in text
    assert "\x1b" not in text


def test_names_from_a_server_bring_no_markup(result: BenchmarkResult) -> None:
    """What a server calls itself is text wherever it is shown."""
    fields = json.loads(result.to_json())
    fields |= {"model": "<script>x</script>", "cards": ["<b>"], "shared_prefix": 4}
    hostile = BenchmarkResult.from_json(json.dumps(fields))

    assert "<script>" not in hostile._repr_html_()
    assert "<b>" not in hostile._repr_html_()
    assert "the first 4 the same in all" in repr(hostile)
    assert "cards: <b>" in repr(hostile)


def test_the_plot_shows_every_load(result: BenchmarkResult, stand_in: StandIn) -> None:
    """Medians stand over the loads, in milliseconds; an open loop has its rates."""
    through, waits, paces = result.plot().axes
    first = result.loads[0].time_to_first_token
    assert first is not None
    assert through.lines[0].get_xdata().tolist() == [1, 2]
    assert waits.lines[0].get_ydata()[0] == pytest.approx(1000 * first.median)
    assert waits.get_ylabel() == paces.get_ylabel() == "ms, median to p90"
    assert waits.get_xlabel() == "requests at once"

    opened = quick(stand_in.url(), request_rate=(200, 100), requests=3, max_tokens=2)
    axes = opened.plot().axes
    assert axes[0].lines[0].get_xdata().tolist() == [100, 200]
    assert axes[0].get_xlabel() == "requests per second"

    failed = quick(stand_in.url(end="reset"), concurrency=1, requests=1, warm_up=0)
    figure = failed.plot()
    picture = io.BytesIO()
    with contextlib.closing(picture):
        figure.savefig(picture)
        assert picture.tell() > 1000
    assert len(figure.axes[1].lines[0].get_xdata()) == 0


def test_loads_have_readable_names_in_a_picture() -> None:
    """Each doubling is as wide as the last; of many loads some are named."""
    for places, named in (
        ([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"]),
        ([0.5], ["0.5"]),
        ([8, 2, 2], ["2", "8"]),
        ([], []),
    ):
        counts = [float(place) for place in places]
        times = [(1.0, 2.0)] * len(places)
        figure = loads_figure("requests at once", counts, counts, times, times)
        for axes in figure.axes:
            shown = [label.get_text() for label in axes.get_xticklabels()]
            assert shown == named
    many = [float(count) for count in range(1, 100)]
    figure = loads_figure("requests at once", many, many, [None] * 99, [None] * 99)
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert len(shown) <= 9


def test_a_client_made_from_options_leads_to_the_same_server(
    stand_in: StandIn,
) -> None:
    """A user's key goes along: what is measured is the client that was given."""
    url = stand_in.url()
    with LlamaCppClient(url, api_key="hush") as client:
        quick(client, concurrency=1, requests=1)

    keys = {one["headers"]["authorization"] for one in chats(stand_in, url)}
    assert keys == {"Bearer hush"}
