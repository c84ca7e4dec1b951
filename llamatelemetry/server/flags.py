"""From a ServerConfig to the arguments one engine accepts.

llama-server renames and retires options from build to build. What an engine accepts
is therefore read from its own ``--help`` (:func:`read_capabilities`), and a
configuration is written in that engine's words (:func:`build_arguments`).

``flags.json`` is the one table of options: names, values, the ServerConfig field and
the embedded engine's parameter each stands for. Building, parsing
(:mod:`llamatelemetry.server.parsing`) and the embedded engine all read it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatelemetry.exceptions import ConfigurationError

if TYPE_CHECKING:
    # config.py imports this module, so at run time the import goes one way only.
    from llamatelemetry.server.config import ServerConfig

__all__ = ["TODAY", "Capabilities", "Flag", "build_arguments", "read_capabilities"]


@dataclass(frozen=True)
class Flag:
    """One option of llama-server, of today's or of an older one.

    Attributes:
        flag: The name used here: long, and known to as many builds as possible.
        aliases: Other spellings that mean the same.
        kind: "switch" and "negatable" take no value, "action" prints and ends the
            program; all other kinds take one.
        negated: Spellings that mean the opposite.
        value: The value's name in ``--help``.
        field: The ServerConfig field it sets, or None.
        parameter: The embedded engine's parameters it sets; none if not supported.
        enumeration: The embedded engine's type of the value, where it is a choice.
        choices: The values allowed, with the embedded engine's name of each.
        today: Whether today's llama-server (b11434) still accepts it.
        help: One line on what it does.
    """

    flag: str
    kind: str
    help: str
    aliases: tuple[str, ...] = ()
    negated: tuple[str, ...] = ()
    value: str = ""
    field: str | None = None
    parameter: tuple[str, ...] = ()
    enumeration: str | None = None
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    today: bool = True

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every spelling, opposites included."""
        return (self.flag, *self.aliases, *self.negated)

    @property
    def takes_value(self) -> bool:
        """Whether the next argument belongs to it."""
        return self.kind not in {"switch", "negatable", "action"}


def _read_table() -> tuple[Flag, ...]:
    text = Path(__file__).with_name("flags.json").read_text(encoding="utf-8")

    def entry(values: dict[str, Any]) -> Flag:
        for name in ("aliases", "negated", "parameter"):
            values[name] = tuple(values.get(name, ()))
        return Flag(**values)

    return tuple(entry(values) for values in json.loads(text)["flags"])


FLAGS = _read_table()
FLAG_OF_SPELLING = {spelling: flag for flag in FLAGS for spelling in flag.spellings}
FLAG_OF_FIELD = {flag.field: flag for flag in FLAGS if flag.field is not None}


def normalize_spelling(argument: str) -> str:
    """Return the argument as llama-server reads it: ``--a_b`` is ``--a-b``."""
    return argument.replace("_", "-") if argument.startswith("--") else argument


@dataclass(frozen=True)
class Capabilities:
    """What one engine accepts on its command line.

    Attributes:
        flags: Every spelling it knows.
        split_modes: The values of ``--split-mode``.
        cache_types: The values of ``--cache-type-k``; empty if it does not tell.
        flash_attention_value: Whether ``--flash-attn`` takes on, off or auto.
            In old builds it is a bare switch, and off unless given.
        comma_lists: Whether ``--lora`` takes several files in one value, separated
            by commas. Older builds want the flag once per file.
        memory_verbosity: The ``--verbosity`` at which buffer sizes are logged; None
            where they are logged at the default one.
    """

    flags: frozenset[str]
    split_modes: frozenset[str] = frozenset({"none", "layer", "row"})
    cache_types: frozenset[str] = frozenset()
    flash_attention_value: bool = True
    comma_lists: bool = True
    memory_verbosity: int | None = None

    def accepts(self, flag: str) -> bool:
        """Return whether the engine knows this spelling."""
        return flag in self.flags


# An entry of --help starts in the first column: spellings, then perhaps the value.
_HELP_ENTRY = re.compile(
    r"(?P<spellings>-{1,2}[A-Za-z][\w.-]*(?:,\s+-{1,2}[A-Za-z][\w.-]*)*)"
    r"(?: (?P<value>\S+))?"
)


def _read_entries(help_text: str) -> Iterator[tuple[list[str], str, str]]:
    """Give the spellings, the value's name and the whole text of each entry."""
    for block in re.split(r"\n(?=-)", "\n" + help_text):
        match = _HELP_ENTRY.match(block)
        if match is not None and "the argument has been removed" not in block:
            spellings = re.split(r",\s+", match["spellings"])
            yield spellings, match["value"] or "", " ".join(block.split())


def read_capabilities(help_text: str) -> Capabilities:
    """Read what an engine accepts from its ``--help``.

    Args:
        help_text: What ``llama-server --help`` printed.

    Raises:
        ConfigurationError: The text is not the help of a llama-server.
    """
    flags: set[str] = set()
    values: dict[str, str] = {}
    texts: dict[str, str] = {}
    for spellings, value, text in _read_entries(help_text):
        flags.update(spellings)
        values.update(dict.fromkeys(spellings, value))
        texts.update(dict.fromkeys(spellings, text))
    if not {"--model", "--port", "--ctx-size"} <= flags:
        raise ConfigurationError(
            "this is not the --help of a llama-server: it does not list --model, "
            "--port and --ctx-size"
        )
    allowed = re.search(
        r"allowed values: ((?:\w+, )*\w+)", texts.get("--cache-type-k", "")
    )
    trace = re.search(r"(\d+): trace", texts.get("--verbosity", ""))
    split_modes = re.findall(r"[a-z]+", values.get("--split-mode", ""))
    return Capabilities(
        flags=frozenset(flags),
        split_modes=frozenset(split_modes or ("none", "layer", "row")),
        cache_types=frozenset(allowed[1].split(", ") if allowed else ()),
        flash_attention_value=bool(values.get("--flash-attn")),
        comma_lists="comma-separated" in texts.get("--lora", ""),
        memory_verbosity=int(trace[1]) if trace else None,
    )


def _capabilities_of_table() -> Capabilities:
    spellings = {
        spelling for flag in FLAGS if flag.today for spelling in flag.spellings
    }
    return Capabilities(
        flags=frozenset(spellings),
        split_modes=frozenset(FLAG_OF_SPELLING["--split-mode"].choices),
        cache_types=frozenset(FLAG_OF_SPELLING["--cache-type-k"].choices),
        memory_verbosity=4,
    )


TODAY = _capabilities_of_table()
"""What llama-server b11434 accepts."""


def build_arguments(
    config: ServerConfig,
    capabilities: Capabilities = TODAY,
    *,
    engine_name: str = "llama-server",
    threads: int | None = None,
    threads_batch: int | None = None,
    cache_ram: int | None = None,
    pooling: str | None = None,
    memory_log: bool = False,
) -> list[str]:
    """Write a configuration as one engine's arguments, without the program and key.

    What llama-server would otherwise choose is said: no layers on the GPU is ``0``
    and not left out. A flag that ``extra_args`` holds is not written a second time.

    Args:
        config: What to write.
        capabilities: What the engine accepts.
        engine_name: What errors call the engine.
        threads: Passed in place of ``config.threads``.
        threads_batch: Passed in place of ``config.threads_batch``.
        cache_ram: MiB, used where ``config.cache_ram`` is None.
        pooling: Used where ``config.pooling`` is None.
        memory_log: Make the engine log its buffer sizes.

    Raises:
        ConfigurationError: The engine cannot do what the configuration asks for.
    """
    writer = _Writer(config, capabilities, engine_name)
    writer.write_place()
    writer.write_devices()
    writer.write_sizes()
    writer.write_threads(threads, threads_batch)
    writer.write_attention()
    writer.write_loading()
    writer.write_answers(pooling)
    writer.write_endpoints(cache_ram)
    if memory_log and capabilities.memory_verbosity is not None:
        writer.add("--verbosity", capabilities.memory_verbosity)
    return [*writer.arguments, *config.extra_args]


class _Writer:
    """Collects arguments; each method writes one group of options."""

    def __init__(
        self, config: ServerConfig, capabilities: Capabilities, engine_name: str
    ) -> None:
        self.config = config
        self.capabilities = capabilities
        self.engine_name = engine_name
        self.arguments: list[str] = []
        # Values are looked up too, which is harmless: no option has such a value.
        self.overridden = {
            flag.flag
            for argument in config.extra_args
            if (flag := FLAG_OF_SPELLING.get(normalize_spelling(argument)))
        }

    def refuse(self, option: str, reason: str = "does not know") -> ConfigurationError:
        return ConfigurationError(
            f"{self.engine_name} {reason} {option}; use another engine, or leave "
            "that option at its default"
        )

    def add(self, flag: str, value: object = None) -> None:
        """Write a flag; the engine must know it."""
        if FLAG_OF_SPELLING[flag].flag in self.overridden:
            return
        if not self.capabilities.accepts(flag):
            raise self.refuse(flag if value is None else f"{flag} {value}")
        self.arguments.append(flag)
        if value is not None:
            self.arguments.append(str(value))

    def add_if_known(self, flag: str, value: object = None) -> None:
        """Write a flag whose absence in an engine changes nothing that was asked."""
        if self.capabilities.accepts(flag):
            self.add(flag, value)

    def add_choice(self, flag: str, value: str, allowed: frozenset[str]) -> None:
        if allowed and value not in allowed:
            raise self.refuse(f"{flag} {value}")
        self.add(flag, value)

    def write_place(self) -> None:
        config = self.config
        if config.model_path is not None:
            self.add("--model", config.model_path)
        if config.model_alias is not None:
            self.add("--alias", config.model_alias)
        self.add("--host", config.host)
        self.add("--port", config.port)

    def write_devices(self) -> None:
        config = self.config
        # Always said, also 0: left out means "as many as fit".
        self.add("--n-gpu-layers", config.n_gpu_layers)
        self.add_choice(
            "--split-mode", config.split_mode, self.capabilities.split_modes
        )
        if config.split_mode in {"none", "row"} or config.main_gpu != 0:
            self.add("--main-gpu", config.main_gpu)
        if config.tensor_split is not None:
            self.add("--tensor-split", config.tensor_split)
        if config.device is not None:
            self.add("--device", config.device)

    def write_sizes(self) -> None:
        config = self.config
        self.add("--ctx-size", config.context_size)
        self.add("--batch-size", config.n_batch)
        self.add("--ubatch-size", min(config.n_ubatch, config.n_batch))
        self.add("--parallel", config.parallel)
        if config.shares_cache:
            # Builds that do not know it have one cache always.
            self.add_if_known("--kv-unified")

    def write_threads(self, threads: int | None, threads_batch: int | None) -> None:
        config = self.config
        self.add("--threads", config.threads if threads is None else threads)
        threads_batch = config.threads_batch if threads_batch is None else threads_batch
        if threads_batch is not None:
            self.add("--threads-batch", threads_batch)

    def write_attention(self) -> None:
        config = self.config
        if self.capabilities.flash_attention_value:
            self.add("--flash-attn", "on" if config.flash_attn else "off")
        elif config.flash_attn:
            self.add("--flash-attn")
        for flag, cache_type in (
            ("--cache-type-k", config.cache_type_k),
            ("--cache-type-v", config.cache_type_v),
        ):
            if cache_type != "f16":  # every build's default
                self.add_choice(flag, cache_type, self.capabilities.cache_types)

    def write_loading(self) -> None:
        config = self.config
        if self.capabilities.accepts("--load-mode"):
            # Here mlock alone means "locked, not mapped".
            mode = {
                (True, False): "mmap+mlock",
                (False, True): "none",
                (True, True): "mlock",
            }.get((config.mlock, config.no_mmap))
            if mode is not None:
                self.add("--load-mode", mode)
        else:
            if config.mlock:
                self.add("--mlock")
            if config.no_mmap:
                self.add("--no-mmap")
        if config.fit:
            self.add("--fit", "on")
        else:
            # On by default where it exists, and would change what was asked for.
            self.add_if_known("--fit", "off")
        if config.lora_paths and self.capabilities.comma_lists:
            self.add("--lora", ",".join(config.lora_paths))
        else:
            for path in config.lora_paths:
                self.add("--lora", path)
        if config.mmproj_path is not None:
            self.add("--mmproj", config.mmproj_path)

    def write_answers(self, pooling: str | None) -> None:
        config = self.config
        if config.embeddings:
            self.add("--embeddings")
        if config.rerank:
            self.add("--rerank")
        pooling = config.pooling if config.pooling is not None else pooling
        if pooling is not None:
            self.add("--pooling", pooling)
        # On by default today, off in builds that knew no --no-jinja.
        self.add_if_known("--jinja" if config.jinja else "--no-jinja")
        if config.reasoning_format is not None:
            self.add("--reasoning-format", config.reasoning_format)

    def write_endpoints(self, cache_ram: int | None) -> None:
        config = self.config
        if config.metrics:
            self.add_if_known("--metrics")
        # On by default today, off in builds of 2025.
        self.add_if_known("--slots" if config.slots else "--no-slots")
        if config.slot_save_path is not None:
            self.add("--slot-save-path", config.slot_save_path)
        if config.cache_ram:
            self.add("--cache-ram", config.cache_ram)
        else:
            limit = cache_ram if config.cache_ram is None else 0
            if limit is not None:
                # An engine without this cache needs no limit on it.
                self.add_if_known("--cache-ram", limit)
        self.add_if_known("--no-webui")
