"""One configuration for several servers: each with its own cards, port and threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llamatelemetry._units import MIB
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gguf._cards import GPU
from llamatelemetry.gpu.inventory import detect_gpus, visible_devices_text
from llamatelemetry.server._linux import available_memory, usable_cpus
from llamatelemetry.server._preflight import MOST_CACHE_MIB
from llamatelemetry.server.config import ServerConfig

Groups = Literal["each"] | Sequence[int | GPU | Sequence[int | GPU]]
"""Which cards each server gets: "each" for one server per card, or a list of lists."""

_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Share:
    """What one server of several may use of the host.

    Attributes:
        threads: CPU threads at most.
        cache_ram: MiB of host memory for cached prompts.
    """

    threads: int
    cache_ram: int


def share_of_host(servers: int) -> Share:
    """Return what each of so many servers may use of this machine."""
    memory = available_memory()
    cache = MOST_CACHE_MIB if memory is None else memory // 10 // servers // MIB
    return Share(max(usable_cpus() // servers, 1), min(cache, MOST_CACHE_MIB))


def configs_for_groups(config: ServerConfig, groups: Groups) -> list[ServerConfig]:
    """Return a configuration for each group of cards.

    Raises:
        ConfigurationError: The groups are none, or name a card that is not there.
    """
    chosen = _groups(groups)
    return [_for_group(config, group) for group in chosen]


def with_own_places(configs: Sequence[ServerConfig]) -> list[ServerConfig]:
    """Return the configurations with ports of their own and their share of the host.

    A port that all have in common is the first one's; the others get the next ones.

    Raises:
        ConfigurationError: There are not that many ports.
    """
    share = share_of_host(len(configs))
    first = configs[0].port
    counted = first != 0 and all(config.port == first for config in configs)
    if counted and first + len(configs) - 1 > _LAST_PORT:
        raise ConfigurationError(
            f"port={first} leaves no ports for {len(configs)} servers; use a lower "
            "one, or port=0 for any free ones"
        )
    placed = []
    for place, config in enumerate(configs):
        notes = list(config.notes)
        if config.threads > share.threads:
            notes.append(
                f"threads={config.threads}, passed as {share.threads}: "
                f"{len(configs)} servers share this machine's CPUs"
            )
        cache = share.cache_ram if config.cache_ram is None else config.cache_ram
        placed.append(
            config.replace(
                port=first + place if counted else config.port,
                threads=min(config.threads, share.threads),
                threads_batch=None
                if config.threads_batch is None
                else min(config.threads_batch, share.threads),
                cache_ram=cache,
                notes=notes,
            )
        )
    ports = [config.port for config in placed if config.port]
    if len(set(ports)) < len(ports):
        raise ConfigurationError(
            f"two servers of the pool have the same port: {ports}; leave it the same "
            "for all, or give each its own, or 0"
        )
    return placed


def _groups(groups: Groups) -> list[list[int | GPU]]:
    if groups == "each":
        return [[card] for card in detect_gpus()] or [[]]
    understood = isinstance(groups, Sequence) and not isinstance(groups, str)
    if not understood or not groups:
        raise ConfigurationError(
            f"gpus={groups!r} is not understood; write 'each' for one server per "
            "card, or a list for each server: [[0], [1]], and [] for none"
        )
    return [
        list(group) if isinstance(group, (list, tuple)) else [_card(group)]
        for group in groups
    ]


def _card(value: object) -> int | GPU:
    """Return what names one card.

    Raises:
        ConfigurationError: It names none.
    """
    if isinstance(value, (int, GPU)) and not isinstance(value, bool):
        return value
    raise ConfigurationError(
        f"gpus holds {value!r}, which is no card: give its index, or what detect_gpus "
        "returned"
    )


def _for_group(config: ServerConfig, group: Sequence[int | GPU]) -> ServerConfig:
    """Return the configuration of the server that gets these cards."""
    changes: dict[str, object] = {"visible_devices": visible_devices_text(group)}
    notes = list(config.notes)
    alone = len(group) <= 1
    if alone and config.tensor_split is not None:
        changes["tensor_split"] = None
        notes.append(
            f"tensor_split={config.tensor_split!r} is left out: the server has one card"
        )
    if alone and config.split_mode in ("none", "row"):
        changes["split_mode"] = "layer"  # the same on one card, and none may be there
    if alone:
        changes["main_gpu"] = 0
    if group and config.n_gpu_layers == 0:
        notes.append("n_gpu_layers=0: the cards are not used; 99 is all layers")
    return config.replace(**changes, notes=notes)
