"""map_prompts(): from a table to a file of answers, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import urlsplit

import pytest
from client_tools import StandIn
from manager_tools import wait_for
from small_disk import fill, small_disk

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.batch import _post, _targets, map_embeddings, map_prompts
from llamatelemetry.batch._answer import Asking, answer_patiently, words_of
from llamatelemetry.batch._asks import Ask
from llamatelemetry.batch._bar import BatchProgress
from llamatelemetry.batch._rows import Row
from llamatelemetry.batch._schema import Schema
from llamatelemetry.exceptions import (
    AuthenticationError,
    BatchError,
    ClientError,
    ConfigurationError,
    ConnectionFailedError,
    DiskSpaceError,
    SetupWarning,
)
from tests.conftest import missing_part

NUMBER = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
}
INTERRUPTED = """
import sys
from llamatelemetry.batch import map_prompts

def tell(progress):
    print(progress.done, progress.words, flush=True)

try:
    map_prompts(range(1000), "{row}", to=sys.argv[1], out=sys.argv[2], progress=tell)
except KeyboardInterrupt as error:
    print("interrupted:", error, flush=True)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without a folder lie in the test's own."""
    monkeypatch.chdir(tmp_path)


def ask(to: Any, rows: Any, prompt: Any = "{row}", **options: Any) -> Any:
    """Ask without a bar."""
    return map_prompts(rows, prompt, to=to, **{"progress": False, **options})


def lines(path: str = "results.jsonl") -> list[dict[str, Any]]:
    """Return what a file of results holds."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def by_place(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records in the order of their rows."""
    return sorted(records, key=lambda one: one["position"])


def chats(stand_in: StandIn, url: str) -> list[Any]:
    """Return the last messages of the chats that an address was asked for."""
    return [
        one["body"]["messages"][-1]["content"]
        for one in stand_in.seen(url)
        if "/chat/" in one["target"]
    ]


def until_asked(stand_in: StandIn, url: str) -> Callable[[BatchProgress], None]:
    """Return what is told, and holds up the budget's end until a row was asked."""
    return lambda _: wait_for(lambda: bool(chats(stand_in, url)), 60)


# ── what is asked, and what is kept ──────────────────────────────────────────────


def test_each_row_has_its_answer_and_its_figures(client: LlamaCppClient) -> None:
    """A real server answers; text, tokens, times and server are kept, in order."""
    rows = [{"what": "GGUF"}, {"what": "the KV cache"}, {"what": "GGUF"}]
    results = ask(client, rows, "What is {what}?", temperature=0, max_tokens=12)
    assert (results.done, results.failed, results.left) == (3, 0, 0)
    assert results.ended == "done"
    answers = [row.answer for row in results]
    assert answers[0] == answers[2] != answers[1]
    for row, kept in zip(results, by_place(lines()), strict=True):
        assert row.completion_tokens == 12
        assert row.prompt_tokens > 5
        assert row.cached_tokens is not None
        assert 0 < row.time_to_first_token < row.seconds
        assert (row.server, row.model) == (client.base_url, kept["model"])
        assert (row.attempts, row.repaired, row.finish_reason) == (1, False, "length")
        assert kept["answer"] == row.answer
    assert results.completion_tokens == 36


def test_what_was_answered_is_not_asked_again(stand_in: StandIn) -> None:
    """The same call sends nothing; new rows and a changed prompt are asked."""
    url = stand_in.url()
    assert ask(url, ["a", "b"]).done == 2
    again = ask(url, ["a", "b", "c"])
    assert (again.done, len(lines())) == (3, 3)
    assert sorted(chats(stand_in, url)) == ["a", "b", "c"]
    ask(url, ["a"], "Say {row}")
    assert chats(stand_in, url)[-1] == "Say a"
    elsewhere = ask(url, ["a", "d"], out="new.jsonl", resume="results.jsonl")
    assert [row.id for row in elsewhere] == [0, 1]
    assert [one["id"] for one in lines("new.jsonl")] == [1]


def test_rows_that_failed_are_asked_again(stand_in: StandIn) -> None:
    """An error is recorded, does not stop the rest, and is no answer."""
    bad = stand_in.url(status=400)
    first = ask(bad, ["a", "b"])
    assert (first.done, first.failed, first.left) == (0, 2, 0)
    assert [row.error["type"] for row in first.failures()] == ["ClientError"] * 2
    second = ask(stand_in.url(), ["a", "b"])
    assert (second.done, second.failed) == (2, 0)
    assert len(lines()) == 4


class Picky(LlamaCppClient):
    """A client of the stand-in, which refuses what begins with "bad"."""

    status = 400

    def chat_completion_stream(self, messages: Any, **options: Any) -> Any:  # type: ignore[override]
        if messages[-1]["content"].startswith("bad"):
            options["extra_body"] = {"stand_in": f"status={self.status}"}
        return super().chat_completion_stream(messages, **options)


@pytest.mark.parametrize("status", [400, 500])
def test_a_table_that_begins_with_bad_rows_is_come_through(
    stand_in: StandIn, status: int
) -> None:
    """So many alike end the first call, are kept, and are not counted again."""
    client = Picky(stand_in.url())
    client.status = status
    rows = [*(f"bad {number}" for number in range(25)), *"abcdef"]
    with pytest.raises(BatchError, match="first 20 rows was refused.*call again") as no:
        ask(client, rows, retries=0, concurrency=1)
    assert vars(no.value)["results"].done == 0
    assert (len(lines()), vars(no.value)["results"].failed) == (20, 20)
    for _ in range(2):
        results = ask(client, rows, retries=0)
        assert (results.done, results.failed, results.ended) == (6, 25, "done")


def test_bad_rows_after_kept_ones_end_nothing(stand_in: StandIn) -> None:
    """What was answered in an earlier call says that the server does its work."""
    client = Picky(stand_in.url())
    good = list("abcdef")
    bad = [f"bad {number}" for number in range(25)]
    assert ask(client, good).done == 6
    for _ in range(2):
        results = ask(client, [*good, *bad])
        assert (results.done, results.failed, results.ended) == (6, 25, "done")
    assert len(lines()) == 6 + 2 * 25


def test_another_model_than_before_is_told_once(stand_in: StandIn) -> None:
    """Results of two models in one file are worth a warning."""
    ask(stand_in.url(), ["a"])
    text = Path("results.jsonl").read_text()
    Path("results.jsonl").write_text(text.replace('"stand-in"', '"another"'))
    with pytest.warns(SetupWarning, match="are of another, and now stand-in") as told:
        ask(stand_in.url(), ["a", "b", "c"])
    assert len(told) == 1


def test_several_servers_share_the_rows(stand_in: StandIn) -> None:
    """A list of URLs: both are asked, each row once, and it is known by whom."""
    urls = [stand_in.url(pace=0.01), stand_in.url(pace=0.01)]
    results = ask(urls, range(40))
    asked = [chats(stand_in, url) for url in urls]
    assert all(asked)
    assert sorted(int(one) for some in asked for one in some) == list(range(40))
    assert {row.server for row in results} == set(urls)


def test_rows_of_one_document_are_asked_one_after_the_other(stand_in: StandIn) -> None:
    """So that the server reads it once, as far as rows wait for their turn."""
    url = stand_in.url(pace=0.02)
    documents = [letter * 200 for letter in "abcd"]
    rows = [f"{documents[number % 4]}{number}" for number in range(40)]
    assert ask(url, rows, concurrency=1).done == 40
    begun = [text[0] for text in chats(stand_in, url)]
    assert sum(one != two for one, two in pairwise(begun)) < 15  # of 39


def test_a_faster_server_takes_more(stand_in: StandIn) -> None:
    """The rows are not dealt out beforehand."""
    slow, fast = stand_in.url(pace=0.2), stand_in.url(pace=0.002)
    ask([slow, fast], range(60))
    assert len(chats(stand_in, fast)) > 2 * len(chats(stand_in, slow))


def test_images_pass_through(stand_in: StandIn) -> None:
    """Parts that are no text are sent as they are; their URL may be a template."""
    url = stand_in.url()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,{data}"}}
    prompt = [{"role": "user", "content": [{"type": "text", "text": "{q}"}, image]}]
    ask(url, [{"q": "What?", "data": "AAAA"}], prompt, system="Be brief.")
    (sent,) = [one["body"] for one in stand_in.seen(url) if "/chat/" in one["target"]]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert sent["messages"][1]["content"][1]["image_url"]["url"].endswith("64,AAAA")


def test_options_reach_the_server(stand_in: StandIn) -> None:
    """Sampling is sent with each row; an option that does not exist is refused."""
    url = stand_in.url()
    ask(url, ["a"], seed=3, extra_body={"mirostat": 2})
    body = stand_in.asked(url)["body"]
    assert (body["seed"], body["mirostat"]) == (3, 2)
    with pytest.raises(ConfigurationError, match="max_tokens"):
        ask(url, ["a"], max_tokenz=3)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": True},
        {"concurrency": "many"},
        {"retries": -1},
        {"retries": 1.5},
        {"progress": "yes"},
        {"budget": "soon"},
        {"to": 7},
        {"prompt": "{nothing}"},
    ],
)
def test_what_cannot_work_is_refused_at_once(
    stand_in: StandIn, options: dict[str, Any]
) -> None:
    """Before anything is sent or written."""
    url = stand_in.url()
    given = {"to": url, "prompt": "{row}", "progress": False, **options}
    with pytest.raises(ConfigurationError):
        map_prompts([{"row": 1}], **given)
    assert chats(stand_in, url) == []
    assert not Path("results.jsonl").exists()


@pytest.mark.parametrize("name", ["table.jsonl", "./sub/../table.jsonl", "link.csv"])
def test_rows_in_the_file_of_results_are_refused(stand_in: StandIn, name: str) -> None:
    """Whatever the name, as out or as resume; the file stays as it was."""
    url = stand_in.url()
    ask(url, ["a", "b"], out="table.jsonl")
    before = Path("table.jsonl").read_bytes()
    Path("sub").mkdir()
    Path("link.csv").symlink_to("table.jsonl")

    with pytest.raises(ConfigurationError, match="results are written to.*with out"):
        ask(url, "table.jsonl", "{answer}", out=name)
    with pytest.raises(ConfigurationError, match="also given as earlier results"):
        ask(url, Path("table.jsonl"), "{answer}", resume=["sub", name])

    assert Path("table.jsonl").read_bytes() == before
    assert not Path("results.jsonl").exists()
    assert len(chats(stand_in, url)) == 2
    assert ask(url, "table.jsonl", "{answer}", out="next.jsonl").done == 2


# ── rows that are hard ───────────────────────────────────────────────────────────


def test_two_rows_of_one_id_are_refused_at_once(stand_in: StandIn) -> None:
    """The id and both places are named, and nothing is written."""
    rows = [{"n": "x"}, {"n": "y"}, {"n": "x"}]
    with pytest.raises(ConfigurationError, match="'x'"):
        ask(stand_in.url(), rows, "{n}", id="n")
    assert not Path("results.jsonl").exists()


def test_an_iterator_is_refused_when_it_comes_to_it(stand_in: StandIn) -> None:
    """What it gave before is answered and kept first."""
    rows = ({"n": number % 30} for number in range(50))
    with pytest.raises(ConfigurationError, match="0") as caught:
        ask(stand_in.url(), rows, "{n}", id="n")
    assert sorted(one["id"] for one in lines()) == list(range(30))
    assert "30 rows are answered and kept" in caught.value.__notes__[-1]
    assert caught.value.results.done == 30  # type: ignore[attr-defined]


def test_an_empty_prompt_is_its_rows_own_error(stand_in: StandIn) -> None:
    """It is recorded without being sent, as is what the user's function raises."""
    url = stand_in.url()

    def prompt(row: str) -> str:
        if row == "bad":
            raise ZeroDivisionError("no")
        return row

    results = ask(url, ["a", "", "bad", "b"], prompt)
    assert (results.done, results.failed, results.left) == (2, 2, 0)
    assert results[2].error == {
        "type": "ZeroDivisionError",
        "message": "the function for prompt failed (ZeroDivisionError: no)",
    }
    assert sorted(chats(stand_in, url)) == ["a", "b"]


def test_a_prompt_over_the_context_is_its_rows_own_error(
    client: LlamaCppClient,
) -> None:
    """A real server refuses it; the others are answered, and it is tried once."""
    results = ask(client, ["Hello!", "word " * 3000], max_tokens=4)
    assert (results.done, results.failed) == (1, 1)
    assert results[1].error["type"] == "ContextLengthError"
    assert results[1].attempts == 1


def test_a_schema_the_model_cannot_meet_is_recorded_with_its_answer(
    client: LlamaCppClient,
) -> None:
    """Four tokens are no JSON, nor would they be again: what there is is kept."""
    results = ask(client, ["What is GGUF?"], schema=NUMBER, max_tokens=4)
    row = results[0]
    assert results.failed == 1
    assert row.error["type"] == "SchemaError"
    assert row.answer is not None
    assert "cut off by max_tokens" in row.error["message"]
    assert (row.repaired, row.attempts) == (False, 1)


def schema_texts(tmp_path: Path, first: str, second: str) -> str:
    """Write what the stand-in answers to a question and to its repair."""
    schema = Schema.of(NUMBER)
    assert schema is not None
    messages = [{"role": "user", "content": "q"}]
    problem = ""
    try:
        schema.parse(first)
    except Exception as error:  # noqa: BLE001 - its words are what is wanted
        problem = error.problem  # type: ignore[attr-defined]
    repair = schema.repair(messages, first, problem)[-1]["content"]
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({"q": first, repair: second}))
    return str(path).replace("/", "%2F")


def test_an_answer_is_repaired_once(stand_in: StandIn, tmp_path: Path) -> None:
    """What does not fit the schema is asked for again, with what is wrong."""
    url = stand_in.url(texts=schema_texts(tmp_path, '{"y": 1}', '{"x": 1}'))
    results = ask(url, ["q"], schema=NUMBER)
    assert (results[0].value, results[0].repaired) == ({"x": 1}, True)
    assert results[0].prompt_tokens == 20  # of both
    (first, second) = (
        one["body"] for one in stand_in.seen(url) if "/chat/" in one["target"]
    )
    assert first["response_format"]["json_schema"]["schema"] == NUMBER
    assert second["messages"][-2]["content"] == '{"y": 1}'


def test_a_repair_that_does_not_fit_leaves_the_first_answer(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """The question fits into the context, and with the repair it does not."""

    class Full(LlamaCppClient):
        def chat_completion_stream(self, messages: Any, **options: Any) -> Any:  # type: ignore[override]
            if len(messages) > 1:
                full = "status=400,error=exceed_context_size_error"
                options["extra_body"] = {"stand_in": full}
            return super().chat_completion_stream(messages, **options)

    client = Full(stand_in.url(texts=schema_texts(tmp_path, '{"y": 1}', "")))
    (row,) = ask(client, ["q"], schema=NUMBER)
    assert (row.error["type"], row.repaired) == ("SchemaError", True)
    assert (row.answer, row.prompt_tokens) == ('{"y": 1}', 10)  # of the first alone


def test_calls_of_tools_are_kept(stand_in: StandIn) -> None:
    """An answer that is no text is in the file all the same."""
    tool = {"type": "function", "function": {"name": "look_up"}}
    ask(stand_in.url(calls=1), ["a"], tools=[tool])
    (call,) = lines()[0]["tool_calls"]
    assert call["function"]["arguments"] == '{"a":1}'


def test_an_interrupt_says_how_to_go_on(stand_in: StandIn) -> None:
    """In this very process, as in a notebook: what ran is kept."""
    url = stand_in.url(pace=0.02)
    struck: list[int] = []

    def tell(progress: BatchProgress) -> None:
        if progress.done and not struck:
            struck.append(progress.done)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        ask(url, range(500), progress=tell)
    assert "the same call goes on from there" in str(caught.value)
    results = vars(caught.value)["results"]
    kept = len(lines())
    assert (results.ended, results.done, results.left) == (
        "interrupted",
        kept,
        500 - kept,
    )
    again = ask(stand_in.url(), range(500))
    assert (again.done, again.kept, again.asked) == (500, kept, 500 - kept)
    assert len(lines()) == 500


def test_an_interrupt_says_what_failed_and_what_still_runs(stand_in: StandIn) -> None:
    """The words count failed rows too; the first Ctrl-C is answered at once."""
    told: list[str] = []

    def tell(progress: BatchProgress) -> None:
        told.append(progress.words)
        if progress.done and progress.failed and not told[0]:
            told[0] = "struck"
            raise KeyboardInterrupt

    rows = ["", *map(str, range(500))]
    with pytest.raises(KeyboardInterrupt, match=r", 1 failed, \d+ are left; the same"):
        ask(stand_in.url(pace=0.5), rows, progress=tell, concurrency=4)
    running = [words for words in told[1:] if words]
    assert all(
        re.fullmatch("ending: [1-4] still running; Ctrl-C again drops them", words)
        for words in running
    )
    assert running


def test_an_address_with_a_path_is_told_in_each_row(stand_in: StandIn) -> None:
    """What to write instead is said; the source of a web page is left out."""
    url = stand_in.url(status=404)
    (row,) = ask(url, ["a"])
    assert "give the address without a path" in row.error["message"]
    assert f"to='http://{urlsplit(url).netloc}'" in row.error["message"]
    page = ClientError("POST /x: check the URL: <!doctype html> (HTTP 404)", status=404)
    assert words_of(page, None) == "POST /x: check the URL (HTTP 404)"
    assert words_of(page, "pool of 2 servers") == words_of(page, "http://127.0.0.1:1")


# ── servers that are hard ────────────────────────────────────────────────────────


def test_a_key_that_is_wanted_ends_it_at_once(stand_in: StandIn) -> None:
    """It is said what to do; nothing is recorded as a row's failure."""
    with pytest.raises(AuthenticationError, match="api_key") as caught:
        ask(stand_in.url(status=401), range(100))
    assert lines() == []
    assert caught.value.results.left == 100  # type: ignore[attr-defined]


def test_a_server_that_is_never_there_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is said how many rows are left; the results so far are on the error."""
    monkeypatch.setattr(_post, "PATIENCE_AT_FIRST", 0.1)
    with pytest.raises(BatchError, match="right address") as caught:
        ask("http://127.0.0.1:9", ["a", "b"])
    assert (caught.value.results.done, caught.value.results.left) == (0, 2)
    assert caught.value.results.ended == "failed"
    assert "2 are left" in caught.value.__notes__[-1]


def test_the_one_that_was_given_up_is_told(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another did its work, that is a warning at the end."""
    monkeypatch.setattr(_post, "PATIENCE_AT_FIRST", 0.05)
    urls = [stand_in.url(pace=0.05), "http://127.0.0.1:9"]
    with pytest.warns(SetupWarning, match="127.0.0.1:9 did not answer"):
        assert ask(urls, range(6), concurrency=2).done == 6


def test_one_that_was_never_there_is_told_after_a_short_run(stand_in: StandIn) -> None:
    """Also where all was done long before it would have been given up."""
    urls = [stand_in.url(before=0.3), "http://127.0.0.1:9"]
    with pytest.warns(SetupWarning, match="127.0.0.1:9 did not answer") as told:
        assert ask(urls, ["a", "b"]).done == 2
    assert len(told) == 1
    assert told[0].filename == __file__.removesuffix("c")


@pytest.mark.parametrize("fails", [False, True])
def test_only_what_was_opened_is_closed(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """The client made of a URL is, and one that was given goes on, whatever happens."""
    made: list[LlamaCppClient] = []

    class Noted(LlamaCppClient):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(_targets, "LlamaCppClient", Noted)
    mine = Noted(stand_in.url())
    to = [mine, stand_in.url()]
    if fails:
        with pytest.raises(ConfigurationError, match="no file that can be read"):
            ask(to, ["a"], out="/dev/null")
    else:
        ask(to, ["a"])
    first, second = made
    assert first is mine
    assert mine.health() == {"status": "ok"}
    with pytest.raises(ConnectionFailedError, match="closed"):
        second.health()


def test_requests_that_are_dropped_are_asked_again(stand_in: StandIn) -> None:
    """A connection that breaks is no answer and no failure."""
    url = stand_in.url(drop=2)
    assert ask(url, ["a"]).done == 1
    assert lines()[0]["attempts"] == 3


def test_a_full_queue_is_tried_again_and_then_recorded(stand_in: StandIn) -> None:
    """503 is asked again as often as was said, and is the row's error in the end."""
    url = stand_in.url()
    busy = {"stand_in": "status=503,error=busy"}
    results = ask(url, ["a"], extra_body=busy, retries=1)
    assert [row.error["type"] for row in results] == ["ClientError"]
    assert [row.attempts for row in results] == [2]
    assert chats(stand_in, url) == ["a", "a"]


def test_a_stream_that_breaks_off_is_asked_again(stand_in: StandIn) -> None:
    """Half an answer is not recorded as one."""
    url = stand_in.url()
    results = ask(url, ["a", "b"], extra_body={"stand_in": "end=cut"}, retries=0)
    assert [row.error["type"] for row in results] == ["StreamError"] * 2
    assert [row.attempts for row in results] == [2, 2]


# ── the end before the end ───────────────────────────────────────────────────────


def test_the_budget_ends_it_cleanly(stand_in: StandIn) -> None:
    """What ran is recorded, it is said what is left, and the next call does it."""
    url = stand_in.url(pace=0.02)
    begun = until_asked(stand_in, url)
    first = ask(url, range(200), budget=0.5, progress=begun)
    assert first.ended == "budget"
    assert 0 < first.done < 200
    assert first.done + first.left == 200
    assert len(lines()) == first.done
    second = ask(stand_in.url(), range(200))
    assert (second.done, second.left, second.ended) == (200, 0, "done")
    assert len(lines()) == 200


def start_interrupted(url: str, out: Path) -> subprocess.Popen[str]:
    """Start a process that can be interrupted, and wait until it has answered some."""
    command = [sys.executable, "-c", INTERRUPTED, url, str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline().split()[0]) < 2:
        pass
    return process


def last_words(process: subprocess.Popen[str]) -> str:
    """Return what a process says at its end."""
    assert process.stdout is not None
    with process:
        words = process.stdout.read()
    assert process.returncode == 0
    return words[words.index("interrupted:") :]


def test_ctrl_c_lets_what_runs_come_to_its_end(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """All that was asked is answered and kept, and it is said how to go on."""
    url, out = stand_in.url(pace=0.05), tmp_path / "once.jsonl"
    process = start_interrupted(url, out)
    process.send_signal(signal.SIGINT)
    words = last_words(process)
    kept = lines(str(out))
    assert f"{len(kept)} rows are answered and kept" in words
    assert f"{1000 - len(kept)} are left; the same call goes on from there" in words
    assert sorted(map(int, chats(stand_in, url))) == sorted(one["id"] for one in kept)


def test_ctrl_c_twice_ends_it_at_once(stand_in: StandIn, tmp_path: Path) -> None:
    """Streams that would go on for a minute are hung up on, and not recorded."""
    url, out = stand_in.url(), tmp_path / "twice.jsonl"
    slow = stand_in.url(tokens=100, pace=0.6)
    with start_interrupted(url, out) as process:
        process.kill()
    code = INTERRUPTED.replace('"{row}"', '"again {row}"')
    command = [sys.executable, "-c", code, slow, str(out)]
    before = len(lines(str(out)))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
        wait_for(lambda: len(chats(stand_in, slow)) >= 4, 60)
        second.send_signal(signal.SIGINT)
        assert second.stdout is not None
        # Two that come too fast are one for the process.
        assert any("ending: 4 still running" in line for line in second.stdout)
        second.send_signal(signal.SIGINT)
        words = last_words(second)
    assert "0 rows are answered and kept" in words
    assert len(lines(str(out))) == before
    wait_for(lambda: all(hung_up(stand_in, slow)))


def hung_up(stand_in: StandIn, url: str) -> list[bool]:
    """Return of each chat whether it was hung up on."""
    return [
        one["hung_up_after"] is not None
        for one in stand_in.seen(url)
        if "/chat/" in one["target"]
    ]


def test_an_iterator_has_to_begin_anew(stand_in: StandIn) -> None:
    """It is said that this one was read ahead; a list's words are without that."""
    url = stand_in.url(pace=0.02)
    for rows, words in (
        (iter(range(500)), r"same call, with the rows given anew, goes on from there$"),
        (range(500), "from there$"),
    ):
        struck: list[int] = []

        def tell(progress: BatchProgress, struck: list[int] = struck) -> None:
            if progress.done and not struck:
                struck.append(progress.done)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt, match=words):
            ask(url, rows, progress=tell)
        Path("results.jsonl").unlink()

    def broken() -> Iterator[int]:
        yield from range(3)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        ask(stand_in.url(), broken())
    assert vars(caught.value)["results"].ended == "failed"
    assert "given anew" in caught.value.__notes__[-1]


def test_both_maps_take_the_same_budgets(stand_in: StandIn) -> None:
    """Seconds, text or a timedelta, as their types say."""
    budgets = {get_type_hints(one)["budget"] for one in (map_prompts, map_embeddings)}
    assert budgets == {float | str | timedelta | None}
    assert ask(stand_in.url(), ["a"], budget=timedelta(minutes=1)).done == 1


def test_a_full_disk_ends_it_with_what_is_kept(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """The error says what to do and has the results; nothing half-written is left."""
    with small_disk(tmp_path / "disk", 1 << 20) as mounted:
        if not mounted:
            missing_part("the right to mount a file system", "run as root")
        out = tmp_path / "disk" / "results.jsonl"
        ask(stand_in.url(), ["first"], out=out)
        fill(tmp_path / "disk")
        with pytest.raises(DiskSpaceError, match="Make room") as caught:
            ask(stand_in.url(), (f"row {number}" for number in range(5000)), out=out)
        results = caught.value.results  # type: ignore[attr-defined]
        assert results.done == len(lines(str(out))) - 1
        assert results.left is None


def test_a_disk_that_fails_at_the_very_end_has_the_results(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the last fsync says is raised with what was answered."""

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(BatchError, match="Input/output error") as caught:
        ask(stand_in.url(), ["a", "b"])
    assert vars(caught.value)["results"].done == 2


def test_an_out_that_cannot_be_written_is_refused(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """Before anything is sent: a folder, and a file that another call writes."""
    url = stand_in.url(pace=0.05)
    with pytest.raises(ConfigurationError):
        ask(url, ["a"], out=tmp_path)
    with start_interrupted(url, tmp_path / "taken.jsonl") as process:
        asked = len(chats(stand_in, url))
        with pytest.raises(ConfigurationError, match=str(process.pid)):
            ask(stand_in.url(), ["a"], out=tmp_path / "taken.jsonl")
        assert asked
        process.kill()


# ── how far it is ────────────────────────────────────────────────────────────────


def test_a_function_is_told_how_far_it_is(stand_in: StandIn) -> None:
    """In the thread that waits; the last word has all rows."""
    told: list[BatchProgress] = []
    threads = set()

    def tell(progress: BatchProgress) -> None:
        told.append(progress)
        threads.add(threading.get_ident())

    ask(stand_in.url(), ["a", "b"])
    ask(stand_in.url(), iter(["a", "b", "c", ""]), progress=tell)
    assert threads == {threading.get_ident()}
    last = told[-1]
    assert (last.done, last.kept, last.failed, last.total) == (3, 2, 1, 4)
    assert last.ended


def test_what_the_users_function_raises_ends_it(stand_in: StandIn) -> None:
    """No thread goes on behind its back."""

    def tell(_: BatchProgress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        ask(stand_in.url(pace=0.05), range(1000), progress=tell)
    assert vars(caught.value)["results"].ended == "failed"
    assert not [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("llamatelemetry-batch")
    ]


# ── rows that are distributed by something else ──────────────────────────────────


class Elsewhere:
    """Answers rows in this process, as a cluster would."""

    def __init__(self, client: Any, most: int | None = None) -> None:
        self.client = client
        self.most = most
        self.ended_early = False

    def run_rows(
        self,
        asks: Iterator[Ask],
        asking: Asking,
        *,
        retries: int,
        concurrency: Any,
        called_off: threading.Event,
    ) -> Iterator[dict[str, Any]]:
        """Answer one row after the other."""
        for number, ask in enumerate(asks):
            if number == self.most:
                raise BatchError("the cluster is gone")
            if called_off.wait(0.01):
                self.ended_early = True
                return
            yield answer_patiently(self.client, ask, asking, retries=retries)


def test_a_cluster_gets_the_rows_and_gives_the_records(stand_in: StandIn) -> None:
    """The same file, keys and resume as with a server."""
    with stand_in.client() as client:
        assert ask(Elsewhere(client), ["a", "b"]).done == 2
        assert ask(Elsewhere(client), ["a", "b", "c"]).done == 3
    assert len(lines()) == 3
    assert ask(stand_in.url(), ["a", "b", "c"]).done == 3
    assert len(lines()) == 3


def test_a_cluster_that_fails_ends_it(stand_in: StandIn) -> None:
    """What it has raised comes out, with what was kept."""
    with stand_in.client() as client, pytest.raises(BatchError, match="gone") as caught:
        ask(Elsewhere(client, most=2), range(5))
    assert caught.value.results.done == 2


def test_a_cluster_is_wound_up_at_the_budgets_end(stand_in: StandIn) -> None:
    """It is given nothing more, and what it has comes back; grace over, it is left."""
    with stand_in.client() as client:
        begun = until_asked(stand_in, client.base_url)
        results = ask(Elsewhere(client), range(500), budget=0.3, progress=begun)
        assert results.ended == "budget"
        assert 0 < results.done < 500
        assert results.done == len(lines())
        assert ask(Elsewhere(client), range(3), budget=60).ended == "done"

    class Stuck(Elsewhere):
        begun = threading.Event()

        def run_rows(self, asks: Any, asking: Any, **more: Any) -> Any:
            next(asks)
            self.begun.set()
            more["called_off"].wait(20)
            self.ended_early = True
            yield {}

    stuck = Stuck(None)
    new: dict[str, Any] = {"out": "stuck.jsonl", "budget": 0.1}
    assert ask(stuck, ["new"], **new, progress=lambda _: stuck.begun.wait(20)).left == 1
    wait_for(lambda: stuck.ended_early)


def test_a_patient_answer_is_a_record_in_any_case(stand_in: StandIn) -> None:
    """Refused, lost, or answered late: the record says so; only a key is raised."""
    one = Ask(Row(0, "a", "q"), [{"role": "user", "content": "q"}], "0" * 32)
    waits: list[int] = []
    with stand_in.client(status=500) as client:
        record = answer_patiently(
            client, one, Asking(), retries=1, wait=lambda: waits.append(1)
        )
    assert (record["error"]["type"], record["attempts"], len(waits)) == (
        "ClientError",
        2,
        1,
    )
    with stand_in.client(drop=1) as client:
        assert answer_patiently(client, one, Asking())["attempts"] == 2
    with stand_in.client(status=401) as client, pytest.raises(AuthenticationError):
        answer_patiently(client, one, Asking())
