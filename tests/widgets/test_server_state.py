"""What a panel says of servers, and how busy they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manager_tools import STAND_IN, wait_for

from llamatelemetry.server import ServerConfig, ServerManager
from llamatelemetry.server.events import LoadProgress
from llamatelemetry.server.state import ServerState
from llamatelemetry.widgets._server_state import SpeedMeter, look, told


def slot(decoded: int | None = None) -> dict[str, Any]:
    """Return a slot as /slots tells of it: idle, or with so many tokens decoded."""
    if decoded is None:
        return {"id": 0, "is_processing": False}
    return {"id": 0, "is_processing": True, "next_token": [{"n_decoded": decoded}]}


def total(tokens: float) -> dict[str, float]:
    """Return what /metrics tells of requests that are over."""
    return {"llamacpp:tokens_predicted_total": tokens}


def test_a_speed_is_what_was_decoded_between_two_looks() -> None:
    """Tokens of finished requests and of those at work grow together."""
    meter = SpeedMeter()
    first = meter.measure([slot(), slot()], None, now=10.0)
    begun = meter.measure([slot(30), slot()], total(500), now=11.0)
    going = meter.measure([slot(70), slot()], total(500), now=12.0)
    ended = meter.measure([slot(), slot()], total(590), now=13.0)
    idle = meter.measure([slot(), slot()], None, now=14.0)

    assert str(first) == "0 of 2 slots busy"
    assert str(begun) == "1 of 2 slots busy · 30.0 tokens/s"
    assert str(going) == "1 of 2 slots busy · 40.0 tokens/s"
    assert str(ended) == "0 of 2 slots busy · 20.0 tokens/s"
    assert str(idle) == "0 of 2 slots busy"


def test_a_request_after_another_makes_no_jump() -> None:
    """One that ends and one that begins between two looks are both counted once."""
    meter = SpeedMeter()
    meter.measure([slot(100)], total(0), now=0.0)

    assert meter.measure([slot(20)], total(120), now=1.0).tokens_per_second == 40


def test_a_request_that_ends_between_the_answers_is_no_negative_speed() -> None:
    """It is in neither answer for a moment; a new start of a server looks alike."""
    meter = SpeedMeter()
    meter.measure([slot(100)], total(0), now=0.0)

    assert meter.measure([slot()], total(0), now=1.0).tokens_per_second == 0


def test_a_server_that_does_not_tell_of_slots_is_measured_by_its_metrics() -> None:
    """And one that tells nothing is not measured."""
    meter = SpeedMeter()
    more = {"llamacpp:requests_processing": 1.0}
    assert meter.measure(None, total(5) | more, now=0.0).tokens_per_second is None
    second = meter.measure(None, total(15) | more, now=1.0)

    assert str(second) == "1 requests at work · 10.0 tokens/s"
    assert str(SpeedMeter().measure(None, None, now=0.0)) == "0 requests at work"


def test_nothing_is_compared_across_a_restart() -> None:
    """After forget() the next look is the first one."""
    meter = SpeedMeter()
    meter.measure([slot(100)], total(0), now=0.0)
    meter.forget()

    assert meter.measure([slot(500)], total(0), now=1.0).tokens_per_second is None


def test_tokens_of_older_builds_count_too() -> None:
    """There ``next_token`` is an object, and not a list of them."""
    meter = SpeedMeter()
    old = {"is_processing": True, "next_token": {"n_decoded": 10}}
    meter.measure([slot()], None, now=0.0)

    assert meter.measure([old], total(0), now=1.0).tokens_per_second == 10


Make = Callable[[str], ServerManager]


@pytest.fixture
def make(tiny_model: Path, request: pytest.FixtureRequest) -> Make:
    """Make managers over the stand-in engine, stopped whatever the test does."""
    import sys

    def made(mode: str) -> ServerManager:
        command = [sys.executable, str(STAND_IN), mode]
        manager = ServerManager(ServerConfig(tiny_model, port=0), engine=command)
        request.addfinalizer(manager.stop)
        return manager

    return made


def test_each_state_has_a_symbol_and_a_word(make: Make, tmp_path: Path) -> None:
    """From nothing over loading and ready to stopped, the address while it runs."""
    held = tmp_path / "held"
    held.touch()
    manager = make("held")
    assert look(manager).mark == "○ not started"
    assert manager.config is not None
    manager.start_with_config(manager.config.replace(alias=str(held)))
    loading = look(manager)
    assert loading.mark == "◔ loading"
    assert loading.progress is not None
    held.unlink()
    assert manager.wait_until_ready(60)
    ready = look(manager)
    assert ready.mark == "● ready"
    assert ready.alive
    assert ready.where == f"{manager.get_url()} (process {manager.pid})"
    assert ready.progress is None
    manager.stop()
    assert look(manager).mark == "■ stopped"
    assert look(manager).where == ""


def test_a_failure_is_a_sentence(make: Make) -> None:
    """The first line of the error, without the evidence below it."""
    manager = make("out_of_memory")
    assert manager.config is not None
    manager.start_with_config(manager.config)
    wait_for(lambda: manager.state is ServerState.FAILED)
    seen = look(manager)

    assert seen.mark == "✖ failed"
    assert "CUDA1 had no room for 13.5 GiB" in seen.trouble
    assert "\n" not in seen.trouble


def test_progress_is_told_in_bytes_and_seconds() -> None:
    """With the bytes in all, where they are known."""
    step = LoadProgress(0.5, 3 * 2**30, 4.25)

    assert told(step, 6 * 2**30) == "50%, 3.0 GiB of 6.0 GiB, 4.2 s"
    assert told(step) == "50%, 3.0 GiB, 4.2 s"
