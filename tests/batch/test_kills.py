"""SIGKILL at random moments: nothing is lost, nothing twice, nothing different.

Fewer rows and kills than ``benchmarks/batch_kills.py``, which prints the whole table.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from batch_kills import (
    Answers,
    Outcome,
    counted,
    in_runs,
    kept_alive,
    of_manager,
    of_pool,
    of_processes,
    undisturbed,
)

from llamatelemetry.pool import ServerPool
from llamatelemetry.server import ServerConfig, ServerManager, find_engine

ROWS = 240


@pytest.fixture(scope="module")
def config(demo_model: Path) -> ServerConfig:
    """The demo model with two slots; each process must be quick to come back."""
    return ServerConfig(
        demo_model, port=0, context_size=1024, parallel=2, threads=1, cache_ram=0
    )


@pytest.fixture(scope="module")
def expected(config: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What is answered where nothing dies."""
    out = tmp_path_factory.mktemp("undisturbed") / "results.jsonl"
    with ServerManager(config, engine=find_engine("embedded"), timeout=60) as server:
        return undisturbed(server.get_url(), out, ROWS)


def check(outcome: Outcome, kills: int) -> None:
    """Hold what was left of a batch against what must be."""
    assert outcome.kills == kills
    found = dataclasses.asdict(outcome)
    assert {name: found[name] for name in ("lost", "twice", "different")} == {
        "lost": 0,
        "twice": 0,
        "different": 0,
    }


def test_a_server_that_is_killed_is_started_again(
    config: ServerConfig, expected: Answers, tmp_path: Path
) -> None:
    """One that is ours, in several calls that go on from each other."""
    with ServerManager(config, engine=find_engine("embedded"), timeout=60) as server:
        outcome = in_runs(
            "ours",
            to=server,
            kill=of_manager(server),
            out=tmp_path / "out.jsonl",
            expected=expected,
            kills=3,
            budget=1.5,
        )
    check(outcome, 3)


def test_a_server_elsewhere_that_is_killed_is_waited_for(
    config: ServerConfig, expected: Answers, tmp_path: Path
) -> None:
    """By its URL alone, while somebody else starts it again."""
    with (
        ServerManager(config, engine=find_engine("embedded"), timeout=60) as server,
        kept_alive(server),
    ):
        outcome = in_runs(
            "elsewhere",
            to=server.get_url(),
            kill=of_manager(server),
            out=tmp_path / "out.jsonl",
            expected=expected,
            kills=3,
            budget=60,
        )
    check(outcome, 3)


def test_a_pools_member_that_is_killed_costs_no_row(
    config: ServerConfig, expected: Answers, tmp_path: Path
) -> None:
    """The other does its work, and it comes back."""
    with ServerPool(
        config, [[], []], engine=find_engine("embedded"), timeout=60
    ) as pool:
        outcome = in_runs(
            "a pool's member",
            to=pool,
            kill=of_pool(pool),
            out=tmp_path / "out.jsonl",
            expected=expected,
            kills=3,
            budget=60,
        )
    check(outcome, 3)


def test_a_process_that_is_killed_goes_on_from_there(
    config: ServerConfig, expected: Answers, tmp_path: Path
) -> None:
    """Four processes in a row; the file can be read after each."""
    with ServerManager(config, engine=find_engine("embedded"), timeout=60) as server:
        outcome = of_processes(
            server.get_url(), tmp_path / "out.jsonl", expected, kills=4
        )
    check(outcome, 4)
    assert outcome.runs == 5


def test_the_count_sees_what_is_wrong(tmp_path: Path, expected: Answers) -> None:
    """A row that is missing, one that is there twice, and another answer are found."""
    out = tmp_path / "out.jsonl"
    rows = [(0, expected[0]), (0, expected[0]), (1, "something else")]
    out.write_text(
        "".join(
            f'{{"id": {one}, "answer": "{text}", "error": null}}\n'
            for one, text in rows
        )
    )
    outcome = counted("wrong", out, {one: expected[one] for one in range(3)}, 0, 1)
    assert (outcome.lost, outcome.twice, outcome.different) == (1, 1, 1)
