"""Which server gets a request, and what each server is started with."""

from __future__ import annotations

import pytest
from nvml_tools import StandInDriver, t4

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gpu import detect_gpus
from llamatelemetry.pool import ServerPool
from llamatelemetry.pool._groups import configs_for_groups, with_own_places
from llamatelemetry.pool._member import Member
from llamatelemetry.pool._prefixes import Sighting
from llamatelemetry.pool._router import choose
from llamatelemetry.server import ServerConfig, ServerManager, _linux

CONFIG = ServerConfig("model.gguf", n_gpu_layers=99, parallel=2)


def members(*in_flight: int, slots: int = 2) -> list[Member]:
    """Return servers with so many requests each, the first one the most used."""
    made = []
    for number, count in enumerate(in_flight):
        config = CONFIG.replace(parallel=slots)
        member = Member(
            number, config, ServerManager(config), changed=print, headers={}
        )
        member.in_flight = count
        member.requests = 10 - number
        made.append(member)
    return made


def test_the_least_busy_gets_it() -> None:
    """Fewest requests for each slot."""
    few_slots, many_slots = members(1, slots=1)[0], members(0, 3, slots=8)[1]

    assert choose(members(2, 1, 3), None).number == 1
    assert choose([few_slots, many_slots], None) is many_slots


def test_among_equals_the_reader_of_the_prefix_gets_it() -> None:
    """Where two are as busy, the one that has the beginning in its cache."""
    seen = Sighting(0, next_turn=False)

    assert choose(members(1, 1), seen).number == 0
    assert choose(members(2, 1), seen).number == 1
    assert choose(members(1, 1), None).number == 1  # it was sent fewer so far


def test_a_next_turn_goes_where_the_last_one_went() -> None:
    """A busier server gets a conversation's next turn, unless it has a queue."""
    seen = Sighting(0, next_turn=True)

    assert choose(members(1, 0), seen).number == 0
    assert choose(members(2, 0), seen).number == 1


def test_a_reader_that_is_not_ready_does_not_count() -> None:
    """A conversation goes on elsewhere when its server is gone."""
    assert choose(members(0, 0)[:1], Sighting(1, next_turn=True)).number == 0


def test_each_card_gets_a_server(driver: StandInDriver) -> None:
    """One server per card is named by UUID, with ports that count up."""
    driver.describe(t4(0), t4(1))
    pool = ServerPool(CONFIG.replace(port=9000))

    assert [config.visible_devices for config in pool.configs] == [
        card.uuid for card in detect_gpus()
    ]
    assert [config.port for config in pool.configs] == [9000, 9001]
    assert len(pool) == 2
    assert repr(pool) == "<ServerPool, 0 of 2 servers ready, model 'model'>"


def test_without_cards_there_is_one_server(driver: StandInDriver) -> None:
    """One server per card is, without a card, one server on the CPU."""
    pool = ServerPool(CONFIG)

    assert [config.visible_devices for config in pool.configs] == [""]


def test_groups_are_lists_numbers_or_cards(driver: StandInDriver) -> None:
    """A group may hold indices or GPUInfo; a single one needs no list of its own."""
    driver.describe(t4(0), t4(1), t4(2))
    cards = detect_gpus()
    uuids = [str(card.uuid) for card in cards]

    def seen(groups: object) -> list[str | None]:
        found = configs_for_groups(CONFIG, groups)  # type: ignore[arg-type]
        return [config.visible_devices for config in found]

    assert seen([[0], [2, 1]]) == [uuids[0], f"{uuids[2]},{uuids[1]}"]
    assert seen([0, cards[1], []]) == [uuids[0], uuids[1], ""]


@pytest.mark.parametrize("wrong", ["all", [], 2, None])
def test_what_are_no_groups_is_refused(driver: StandInDriver, wrong: object) -> None:
    """The message shows how groups are written."""
    with pytest.raises(ConfigurationError, match=r"\[\[0\], \[1\]\]"):
        ServerPool(CONFIG, gpus=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["0", True, 1.5])
def test_what_is_no_card_is_refused(driver: StandInDriver, wrong: object) -> None:
    """The message says what a card is named by."""
    with pytest.raises(ConfigurationError, match="its index"):
        ServerPool(CONFIG, gpus=[wrong])  # type: ignore[list-item]


def test_a_card_that_is_not_there_is_refused(driver: StandInDriver) -> None:
    """The message names the cards there are."""
    driver.describe(t4(0))
    with pytest.raises(ConfigurationError, match="7"):
        ServerPool(CONFIG, gpus=[[7]])


def test_one_card_needs_no_split(driver: StandInDriver) -> None:
    """Options for several cards are dropped where a server has one, and it is told."""
    driver.describe(t4(0), t4(1))
    config = CONFIG.replace(tensor_split="0.5,0.5", main_gpu=1, split_mode="row")

    alone, both = configs_for_groups(config, [[0], [0, 1]])

    assert (alone.tensor_split, alone.main_gpu, alone.split_mode) == (None, 0, "layer")
    assert "tensor_split" in alone.notes[0]
    assert (both.tensor_split, both.main_gpu, both.split_mode) == ("0.5,0.5", 1, "row")


def test_unused_cards_are_told(driver: StandInDriver) -> None:
    """A configuration without layers on cards gets a note, not a change."""
    driver.describe(t4(0))
    (config,) = configs_for_groups(ServerConfig("model.gguf"), "each")

    assert config.n_gpu_layers == 0
    assert "n_gpu_layers=0" in config.notes[0]


def test_the_host_is_shared_out() -> None:
    """Threads and prompt caches of all servers together are what one would get."""
    cpus = _linux.usable_cpus()
    given = [CONFIG.replace(port=0, threads=64)] * 4

    placed = with_own_places(given)

    assert [config.threads for config in placed] == [max(cpus // 4, 1)] * 4
    assert "share this machine's CPUs" in placed[0].notes[0]
    assert sum(config.cache_ram or 0 for config in placed) <= 8192
    assert [config.port for config in placed] == [0] * 4


def test_what_is_said_of_the_host_is_kept() -> None:
    """Fewer threads and a cache that were asked for are not changed."""
    (placed,) = with_own_places([CONFIG.replace(threads=1, cache_ram=64)])

    assert (placed.threads, placed.cache_ram, placed.notes) == (1, 64, ())
    assert placed.threads_batch is None
    many = CONFIG.replace(port=0, threads=1, threads_batch=999)
    shared = with_own_places([many] * 2)
    assert sum(config.threads_batch or 0 for config in shared) <= max(
        _linux.usable_cpus(), 2
    )


def test_ports_must_differ_and_exist() -> None:
    """Two servers cannot have one port, nor one above 65535."""
    with pytest.raises(ConfigurationError, match="same port"):
        with_own_places([CONFIG, CONFIG, CONFIG.replace(port=1)])
    with pytest.raises(ConfigurationError, match="port=65535"):
        with_own_places([CONFIG.replace(port=65535)] * 2)
    kept = with_own_places([CONFIG, CONFIG.replace(port=0)])
    assert [config.port for config in kept] == [8080, 0]


@pytest.mark.parametrize("wrong", [[], ["model.gguf"], [None], 5, None, {}])
def test_what_are_no_configurations_is_refused(wrong: object) -> None:
    """A pool of nothing, or of something else, is refused at once."""
    with pytest.raises(ConfigurationError, match="ServerPool"):
        ServerPool(wrong)  # type: ignore[arg-type]


def test_cards_go_with_one_configuration_only() -> None:
    """Several configurations say their cards themselves."""
    with pytest.raises(ConfigurationError, match="visible_devices"):
        ServerPool([CONFIG], gpus=[[0]])
