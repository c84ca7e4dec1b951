"""From llama-server's arguments to a ServerConfig: the way back from ``flags``.

Old and new spellings are read: ``-fa`` and ``-fa on``, ``--no-mmap`` and
``--load-mode none``. A flag without a field, and a value no field can hold
(``-ngl auto``), go to ``extra_args`` unchanged. What is not said has ServerConfig's
default, not llama-server's.

One thing cannot be told by arguments: llama-server has no ``--no-metrics``, so
``metrics=False`` does not survive being written and read again.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.flags import FLAG_OF_SPELLING, Flag, normalize_spelling

__all__ = ["parse_arguments"]

_ON = frozenset({"on", "enabled", "true", "1"})
_OFF = frozenset({"off", "disabled", "false", "0"})
_AUTO = frozenset({"auto", "-1"})

# What ServerConfig says of each way to read the model file: mlock, no_mmap. "mmap"
# and "dio" have no field, they are passed on.
_LOAD_MODES = {
    "auto": (False, False),
    "none": (False, True),
    "mmap+mlock": (True, False),
    "mlock": (True, True),
}

# More than nearly any model has, and understood by every build, as "all" is not.
_ALL_LAYERS = 99


# llama-server takes 0 and less for "as many as there are". This is the most that
# ServerConfig takes; the manager passes as many of them as can be used.
_ALL_THREADS = 4096


def parse_arguments(args: str | Sequence[str]) -> ServerConfig:
    """Read llama-server's arguments, without the program, as a ServerConfig.

    Args:
        args: One string, quoted as in a shell, or the separate arguments.

    Raises:
        ConfigurationError: They name no model, a value is missing or cannot work,
            or they do not start a server (``--help``).
    """
    reader = _Reader(_split(args))
    while reader.words:
        reader.read_next()
    reader.finish()
    return ServerConfig(**reader.fields, extra_args=tuple(reader.extra))


def _split(args: str | Sequence[str]) -> list[str]:
    if not isinstance(args, str):
        if not isinstance(args, (list, tuple)) or not all(
            isinstance(word, str) for word in args
        ):
            raise ConfigurationError(
                f"the arguments must be text, or a list of text, not {args!r}"
            )
        return list(args)
    try:
        return shlex.split(args)
    except ValueError as error:
        raise ConfigurationError(f"the arguments cannot be split: {error}") from error


def _looks_like_flag(word: str) -> bool:
    return re.match(r"--?[A-Za-z]", word) is not None


class _Reader:
    """Takes words from the front; collects fields and what is passed on."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.fields: dict[str, Any] = {}
        self.extra: list[str] = []

    def read_next(self) -> None:
        word = self.words.pop(0)
        flag = FLAG_OF_SPELLING.get(normalize_spelling(word))
        if flag is None:
            self._pass_on_unknown(word)
        elif flag.kind == "action":
            raise ConfigurationError(
                f"{word} prints something and ends; it starts no server"
            )
        elif flag.flag == "--flash-attn":
            self._read_flash_attention(word)
        elif not flag.takes_value:
            self._read_switch(flag, word)
        elif not self.words:
            raise ConfigurationError(f"{word} needs a value ({flag.value})")
        else:
            self._read_value(flag, word)

    def finish(self) -> None:
        model = self.fields.get("model_path")
        if model is None:
            raise ConfigurationError(
                "the arguments name no model; add -m and the path of a GGUF file"
            )
        if self.fields.get("alias") == ServerConfig(model).model_alias:
            del self.fields["alias"]  # what it would be anyway
        others = [word for word in self.extra if word != "--kv-unified"]
        if others != self.extra and self._shares_cache(others):
            self.extra = others  # likewise

    def _shares_cache(self, extra: list[str]) -> bool:
        """Whether the slots share one cache with these further arguments."""
        asked = {
            name: self.fields[name]
            for name in ("embeddings", "parallel")
            if name in self.fields
        }
        return ServerConfig(None, extra_args=extra, **asked).shares_cache

    def _pass_on_unknown(self, word: str) -> None:
        name, equals, value = word.partition("=")
        if equals and normalize_spelling(name) in FLAG_OF_SPELLING:
            secret = "KEY" if "key" in name else value
            raise ConfigurationError(
                f"llama-server does not take {name}=...; write {name} {secret}, "
                "with a space"
            )
        if not _looks_like_flag(word):
            raise ConfigurationError(
                f"{word!r} belongs to no flag; llama-server's arguments all start "
                "with a flag, and the program itself is left out"
            )
        self.extra.append(word)
        # A flag newer than this package: what follows up to the next flag is its.
        while self.words and not _looks_like_flag(self.words[0]):
            self.extra.append(self.words.pop(0))

    def _read_flash_attention(self, word: str) -> None:
        value = self.words[0] if self.words else ""
        if value in _ON | _OFF:
            self.fields["flash_attn"] = self.words.pop(0) in _ON
            return
        # A bare switch, as in builds of 2025; and "auto", which is on wherever the
        # device can do it.
        self.fields["flash_attn"] = True
        if value in _AUTO:
            self.extra += [word, self.words.pop(0)]

    def _read_switch(self, flag: Flag, word: str) -> None:
        positive = normalize_spelling(word) not in flag.negated
        if flag.field == "no_mmap":
            self.fields["no_mmap"] = not positive
        elif flag.field is not None:
            self.fields[flag.field] = positive
        elif positive or flag.flag != "--ui":  # no web UI is what is always passed
            self.extra.append(word)

    def _read_value(self, flag: Flag, word: str) -> None:
        value = self.words.pop(0)
        if flag.flag == "--load-mode" and value in _LOAD_MODES:
            self.fields["mlock"], self.fields["no_mmap"] = _LOAD_MODES[value]
        elif flag.flag == "--n-gpu-layers" and value in {"all", "-2"}:
            self.fields["n_gpu_layers"] = _ALL_LAYERS
        elif flag.field is None or self._fits_no_field(flag, value):
            self.extra += [word, value]
            self._pass_on_second_value(flag)
        elif flag.flag == "--lora":
            self._add_lora(value)
        else:
            self.fields[flag.field] = _convert(flag, word, value)

    def _fits_no_field(self, flag: Flag, value: str) -> bool:
        """Whether llama-server takes this value and the field does not."""
        if flag.flag == "--n-gpu-layers" and value in _AUTO:
            # "As many as fit" is found by fitting.
            self.fields.setdefault("fit", True)
            return True
        if flag.flag == "--alias":
            return "," in value
        if flag.kind != "integer":
            return False
        return value.startswith("-") and flag.flag in {
            "--parallel", "--cache-ram", "--main-gpu",
        }  # fmt: skip

    def _pass_on_second_value(self, flag: Flag) -> None:
        if " " in flag.value and self.words:  # START END
            self.extra.append(self.words.pop(0))

    def _add_lora(self, value: str) -> None:
        known = self.fields.get("lora_path", ())
        known = (known,) if isinstance(known, str) else known
        paths = (*known, *value.split(","))
        self.fields["lora_path"] = paths[0] if len(paths) == 1 else paths


def _convert(flag: Flag, word: str, value: str) -> object:
    if flag.kind == "on-off":
        if value not in _ON | _OFF:
            raise ConfigurationError(f"{word} cannot be {value!r}; write on or off")
        return value in _ON
    if flag.kind in {"integer", "layers"}:
        try:
            number = int(value)
        except ValueError:
            raise ConfigurationError(
                f"{word} cannot be {value!r}; it must be a whole number"
            ) from None
        if flag.flag in {"--threads", "--threads-batch"} and number < 1:
            return _ALL_THREADS
        return number
    return value
