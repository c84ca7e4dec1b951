"""Placements that are started for a moment and measured."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manager_tools import STAND_IN

from llamatelemetry.api import plan_placement
from llamatelemetry.exceptions import ModelError, OutOfMemoryError
from llamatelemetry.placement import Placement, decide_placement, feasible_placements
from llamatelemetry.pool import ServerPool
from llamatelemetry.pool._probe import choose_by_probe, measure
from llamatelemetry.server import Engine, ServerManager

ENGINE = [sys.executable, str(STAND_IN), "talking"]


def paced(placement: Placement, seconds: float) -> Placement:
    """Return a placement whose stand-in servers wait before each piece of text."""
    configs = tuple(one.replace(alias=f"pace={seconds}") for one in placement.configs)
    return replace(placement, configs=configs)


@pytest.fixture
def placements(demo_model: Path) -> tuple[Placement, ...]:
    """Replicas, one card, and a split: all that fits two T4s."""
    found = feasible_placements(demo_model, "2x15", 512, "throughput", parallel=2)
    assert {one.kind for one in found} == {"single", "layer", "replicas"}
    return found


def test_the_fastest_answer_is_chosen_for_latency(
    placements: tuple[Placement, ...],
) -> None:
    """The placement with the shortest answer is returned, with all figures."""
    given = [paced(one, 0.2 * number) for number, one in enumerate(placements)]

    best = choose_by_probe(given[::-1], "latency", ENGINE)

    assert best.kind == placements[0].kind
    assert len(best.measured) == 3
    assert all(" s for an answer alone, " in text for text in best.measured)
    assert best.reason.startswith("the best of 3 that could be measured, for latency")
    assert all("used no card" in text for text in best.measured)
    assert best.configs == given[0].configs  # ports and all are those that were given


def test_the_most_tokens_are_chosen_for_throughput(
    placements: tuple[Placement, ...],
) -> None:
    """The placement with the most tokens per second is returned."""
    given = [paced(one, 0.4 - 0.2 * number) for number, one in enumerate(placements)]

    assert choose_by_probe(given, "throughput", ENGINE).kind == placements[2].kind


def test_noise_does_not_change_what_was_decided(
    placements: tuple[Placement, ...],
) -> None:
    """Of placements that are as fast, the first stays, whichever it is."""
    given = [paced(one, 0.25) for one in placements[:2]]  # long beside a stall

    for candidates in (given, given[::-1]):
        best = choose_by_probe(candidates, "latency", ENGINE)
        assert best.kind == candidates[0].kind


def test_a_small_context_is_measured_too(engine: Engine, demo_model: Path) -> None:
    """Prompt and answer fit into 256 tokens, the least there is."""
    (placement,) = feasible_placements(demo_model, [], 128)

    assert measure(placement, engine).tokens_per_second > 0


def test_one_that_cannot_start_is_told_and_not_chosen(
    placements: tuple[Placement, ...], tmp_path: Path
) -> None:
    """Its error is among the measurements; if none starts, the first is raised."""
    missing = tmp_path / "missing.gguf"
    configs = tuple(one.replace(model_path=missing) for one in placements[0].configs)
    broken = replace(placements[0], configs=configs)

    best = choose_by_probe([broken, placements[1]], "latency", ENGINE)

    assert best.kind == placements[1].kind
    assert best.reason.startswith("the only one that could be measured")
    assert "missing.gguf" in best.measured[0]
    with pytest.raises(ModelError, match=r"missing\.gguf"):
        choose_by_probe([broken], "latency", ENGINE)


def test_a_plan_may_be_a_measured_one(demo_model: Path) -> None:
    """probe=True starts what fits; where nothing does, there is nothing to start."""
    options: dict[str, Any] = {"goal": "throughput", "parallel": 2, "engine": ENGINE}

    measured = plan_placement(demo_model, "2x15", 512, probe=True, **options)
    decided = plan_placement(demo_model, "2x15", 512, **options)
    nowhere = plan_placement(demo_model, "2x0.2", 512, probe=True, **options)

    assert len(measured.measured) == 3
    assert decided.measured == ()
    assert (nowhere.kind, nowhere.measured) == ("none", ())


def test_a_real_placement_is_measured(engine: Engine, demo_model: Path) -> None:
    """Two real servers write as many tokens as they are asked for."""
    config = decide_placement(demo_model, [], 1024).configs[0].replace(threads=1)
    placement = decide_placement(
        demo_model, "2x15", 1024, "throughput", parallel=2, config=config
    )

    done = measure(placement, engine)

    assert placement.kind == "replicas"
    assert done.seconds > 0
    assert done.tokens_per_second > 0


def test_embeddings_are_measured_too(engine: Engine, demo_model: Path) -> None:
    """A server of embeddings is measured by the tokens it reads."""
    config = decide_placement(demo_model, [], 1024).configs[0]
    config = config.replace(threads=1, embeddings=True, pooling="mean", n_ubatch=1024)
    placement = decide_placement(demo_model, [], 1024, config=config)

    assert measure(placement, engine).tokens_per_second > 0


def test_a_placement_that_is_none_is_no_server(demo_model: Path) -> None:
    """A pool of it raises when it is started, with what would fit instead."""
    nowhere = decide_placement(demo_model, "2x0.2", 512)
    pool = ServerPool(nowhere)

    with pytest.raises(OutOfMemoryError) as caught:
        pool.start()
    assert nowhere.kind == "none"
    assert caught.value.suggestion == nowhere.nearest
    assert len(pool) == 0
    pool.stop()


def test_a_placement_is_started_as_it_is(engine: Engine, demo_model: Path) -> None:
    """Each server of a pool sees its own cards; a manager takes one of them."""
    placement = decide_placement(demo_model, "2x15", 512, "throughput", parallel=2)

    with ServerPool(placement, engine=engine, timeout=60) as pool:
        assert [one.cards for one in pool.status()] == ["0", "1"]
        assert pool.client.chat_completion(
            [{"role": "user", "content": "What is GGUF?"}], max_tokens=4
        ).choices
    config = placement.configs[0].replace(port=0)
    with ServerManager(config, engine=engine, timeout=60) as server:
        assert server.is_running()
