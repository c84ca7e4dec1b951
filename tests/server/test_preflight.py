"""What is decided just before a start, on machines of several sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamatelemetry._units import GIB, MIB
from llamatelemetry.server import ServerConfig, _linux, _preflight
from llamatelemetry.server._preflight import decide


@pytest.mark.parametrize(
    ("available", "cache_ram"),
    [(200 * GIB, 8192), (80 * GIB, 8192), (12 * GIB, 1228), (GIB, 102), (None, 8192)],
)
def test_the_prompt_cache_is_a_tenth_of_memory_and_at_most_8_gib(
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    available: int | None,
    cache_ram: int,
) -> None:
    """On Colab's 12.7 GB the engine's own 8 GiB would kill the kernel."""
    monkeypatch.setattr(_preflight, "available_memory", lambda: available)

    assert decide(ServerConfig(tiny_model)).cache_ram == cache_ram


def test_an_explicit_prompt_cache_is_kept(tiny_model: Path) -> None:
    """A value of the user's own is passed as it is, 0 too."""
    assert decide(ServerConfig(tiny_model, cache_ram=0)).cache_ram == 0
    assert decide(ServerConfig(tiny_model, cache_ram=99_999)).cache_ram == 99_999


@pytest.mark.parametrize(("cpus", "threads"), [(1, 1), (2, 2), (4, 4), (64, 4)])
def test_threads_are_at_most_the_usable_cpus(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, cpus: int, threads: int
) -> None:
    """The default of 4 is lowered on small machines, said, and never raised."""
    monkeypatch.setattr(_preflight, "usable_cpus", lambda: cpus)
    decisions = decide(ServerConfig(tiny_model))

    assert decisions.threads == threads
    assert any("threads" in notice for notice in decisions.notices) == (threads < 4)


def test_usable_cpus_are_limited_by_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cgroup's quota counts, however many CPUs the machine has."""
    (tmp_path / "cpu.max").write_text("100000 100000")
    monkeypatch.setattr(_linux, "_CGROUP", tmp_path)

    assert _linux.usable_cpus() == 1


def test_available_memory_is_limited_by_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cgroup has left counts, where it is less than the machine's."""
    (tmp_path / "memory.max").write_text(str(64 * MIB))
    (tmp_path / "memory.current").write_text(str(24 * MIB))
    monkeypatch.setattr(_linux, "_CGROUP", tmp_path)

    assert _linux.available_memory() == 40 * MIB


def test_a_split_models_shards_are_one_model(tmp_path: Path) -> None:
    """Load progress counts all the shards, and no other file."""
    from llamatelemetry.server._run import _model_bytes

    for number in (1, 2, 3):
        (tmp_path / f"m-0000{number}-of-00003.gguf").write_bytes(bytes(100))
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(bytes(7))

    assert _model_bytes(ServerConfig(tmp_path / "m-00001-of-00003.gguf")) == 300
    assert _model_bytes(ServerConfig(tmp_path / "m-00001-of-00002.gguf")) == 7
    assert _model_bytes(ServerConfig(tmp_path / "none.gguf")) == 0
