"""The embedded engine: llama.cpp's own server out of the ``xllamacpp`` wheel.

``python -m llamatelemetry.server.embedded`` takes llama-server's flags and has its
defaults, log, messages and exit codes. Flags it does not have are refused by name.

Where it differs: it serves one model (no router), reads only LLAMA_API_KEY from the
environment, and does not wait for running requests when told to end. SIGTERM ends it
as any program (exit code -15), SIGINT with exit code 0, both at once and in every
state from the first line of :func:`main` on.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatelemetry.server._interrupt import end_on_interrupt
from llamatelemetry.server.flags import (
    FLAG_OF_SPELLING,
    FLAGS,
    Flag,
    normalize_spelling,
)

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["main"]

_ACTIONS = frozenset({"--help", "--version", "--list-devices"})
_HELP_COLUMN = 40  # where llama-server's help texts begin
_HELP_WIDTH = 70
_HEADING = "----- llama-server params of the embedded engine -----"


class _BadArgumentError(Exception):
    """The message llama-server would print before it exits with 1."""


@dataclass(frozen=True)
class _Argument:
    """One flag as it was given."""

    flag: Flag
    word: str
    value: str | None

    @property
    def positive(self) -> bool:
        return self.word not in self.flag.negated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until a signal ends the process.

    Args:
        arguments: llama-server's arguments. None: those of this program.

    Returns:
        The exit code: 1 if the server could not be started, 0 after ``--help`` and
        ``--version``. While the server runs, this does not return.
    """
    end_on_interrupt()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except _BadArgumentError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _run(arguments: Sequence[str]) -> int:
    given = _read(arguments)
    xllamacpp = _import_xllamacpp()
    # First of all: a bad value is told also beside --help, as llama-server does.
    parameters = _parameters(xllamacpp, given)
    if any(item.flag.flag == "--version" for item in given):
        sys.stderr.write(_version(xllamacpp))
        return 0
    if any(item.flag.flag == "--list-devices" for item in given):
        sys.stdout.write(_devices(xllamacpp))
        return 0
    if any(item.flag.flag == "--help" for item in given):
        sys.stdout.write(_help())
        return 0
    if not parameters.model.path:
        raise _BadArgumentError(
            "error: no model; give one with -m (the embedded engine has no router mode)"
        )
    return _serve(xllamacpp, parameters)


def _serve(xllamacpp: ModuleType, parameters: Any) -> int:
    try:
        # Loads the model; serves from threads of its own. Kept for good: its
        # destructor waits up to 30 s for streaming clients.
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:
        # The cause is in the log already, unless it is none of llama.cpp's own.
        if "Failed to init server" not in str(error):
            sys.stderr.write(f"error: {error}\n")
        return 1
    while server is not None:
        signal.pause()
    raise AssertionError("the server was given away")


def _import_xllamacpp() -> ModuleType:
    try:
        import xllamacpp  # noqa: PLC0415 - the help of bad flags needs no library
    except ImportError as error:
        raise _BadArgumentError(
            f"error: the embedded engine needs xllamacpp ({error}): "
            "pip install xllamacpp"
        ) from error
    module: ModuleType = xllamacpp
    return module


# ── arguments ────────────────────────────────────────────────────────────────────────


def _read(arguments: Sequence[str]) -> list[_Argument]:
    words = list(arguments)
    given = []
    while words:
        word = normalize_spelling(words.pop(0))
        flag = FLAG_OF_SPELLING.get(word)
        if flag is None or not (flag.parameter or flag.flag in _ACTIONS):
            known = "" if flag is None else "\nthe embedded engine does not have it"
            raise _BadArgumentError(f"error: invalid argument: {word}{known}")
        value = None
        if flag.takes_value:
            if not words:
                raise _bad_value(flag, word, "expected value for argument")
            value = words.pop(0)
        given.append(_Argument(flag, word, value))
    return given


def _bad_value(flag: Flag, word: str, reason: str) -> _BadArgumentError:
    return _BadArgumentError(
        f'error while handling argument "{word}": {reason}\n\n'
        f"usage:\n{_help_entry(flag)}\n\nto show complete usage, run with -h"
    )


def _parameters(xllamacpp: ModuleType, given: Sequence[_Argument]) -> Any:
    parameters = xllamacpp.CommonParams()
    # What llama-server sets before or after it reads its arguments.
    parameters.port = 8080
    parameters.n_parallel = -1
    parameters.default_template_kwargs = {"preserve_reasoning": "true"}
    key = os.environ.get("LLAMA_API_KEY")
    if key:
        parameters.api_keys = key.split(",")
    for argument in given:
        if argument.flag.parameter:
            try:
                _set(xllamacpp, parameters, argument)
            except ValueError as error:
                raise _bad_value(argument.flag, argument.word, str(error)) from error
    if parameters.n_parallel < 0:
        parameters.n_parallel = 4
        parameters.kv_unified = True
    if parameters.cpuparams_batch.n_threads < 0:
        parameters.cpuparams_batch.n_threads = parameters.cpuparams.n_threads
    if not parameters.model_alias and parameters.model.path:
        parameters.model_alias = {parameters.model.path}
    return parameters


def _set(xllamacpp: ModuleType, parameters: Any, argument: _Argument) -> None:
    flag = argument.flag
    if argument.value is None:
        value: Any = argument.positive
    else:
        value = _convert(xllamacpp, flag, argument.value)
    for path in flag.parameter:
        *owners, name = path.split(".")
        owner = parameters
        for step in owners:
            owner = getattr(owner, step)
        # xllamacpp has some switches the other way round.
        setattr(owner, name, not value if name.startswith("no_") else value)
        if owners == ["sampling"]:
            _mark_as_chosen(xllamacpp, owner, name)
    if flag.flag == "--rerank":
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK


def _mark_as_chosen(xllamacpp: ModuleType, sampling: Any, name: str) -> None:
    """Tell that the user chose it, so that the model's own value does not count."""
    choices = xllamacpp.common_params_sampling_config
    choice = getattr(choices, f"COMMON_PARAMS_SAMPLING_CONFIG_{name.upper()}", None)
    if choice is not None:
        sampling.user_sampling_config |= int(choice)


def _convert(xllamacpp: ModuleType, flag: Flag, value: str) -> Any:
    special = _SPECIAL.get(flag.flag)
    if special is not None:
        return special(xllamacpp, value)
    if flag.kind == "choice":
        return _choose(xllamacpp, flag, value)
    if flag.kind == "integer":
        return _integer(value)
    if flag.kind == "number":
        return _number(value)
    if flag.kind == "list":
        return value.split(",")
    return value


# std::stoi and std::stof read as far as they can: "12abc" is 12.
def _integer(value: str) -> int:
    digits = value.strip()
    end = 1 if digits[:1] in {"-", "+"} else 0
    while digits[end : end + 1].isdecimal():
        end += 1
    try:
        number = int(digits[:end])
    except ValueError:
        raise ValueError("stoi") from None
    if not -(2**31) <= number < 2**31:
        raise ValueError("stoi")
    return number


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError("stof") from None


_ON_OFF = {
    "on": "on", "enabled": "on", "true": "on", "1": "on",
    "off": "off", "disabled": "off", "false": "off", "0": "off",
    "auto": "auto", "-1": "auto",
}  # fmt: skip


def _choose(xllamacpp: ModuleType, flag: Flag, value: str) -> Any:
    key = _ON_OFF.get(value, value) if flag.flag == "--flash-attn" else value
    member = flag.choices.get(key)
    if member is None:
        reason = {
            "--flash-attn": f"error: unknown value for --flash-attn: '{value}'\n",
            "--cache-type-k": f"Unsupported cache type: {value}",
            "--cache-type-v": f"Unsupported cache type: {value}",
            "--reasoning-format": f"Unknown reasoning format: {value}",
        }
        raise ValueError(reason.get(flag.flag, "invalid value"))
    return getattr(getattr(xllamacpp, str(flag.enumeration)), member)


def _fit(_: ModuleType, value: str) -> bool:
    chosen = _ON_OFF.get(value)
    if chosen not in {"on", "off"}:
        raise ValueError(f"error: unknown value for --fit: '{value}'\n")
    return chosen == "on"


def _layers(xllamacpp: ModuleType, value: str) -> int:
    number = {"auto": -1, "all": -2}.get(value)
    number = _integer(value) if number is None else number
    kinds = xllamacpp.ggml_backend_dev_type
    processors = {
        kinds.GGML_BACKEND_DEVICE_TYPE_CPU,
        kinds.GGML_BACKEND_DEVICE_TYPE_ACCEL,
    }
    if number > 0 and all(
        device["type"] in processors for device in xllamacpp.get_device_info()
    ):
        sys.stderr.write(
            "warning: no usable GPU found, --gpu-layers option will be ignored\n"
        )
    return number


def _threads(_: ModuleType, value: str) -> int:
    number = _integer(value)
    return number if number > 0 else os.cpu_count() or 1


def _parallel(_: ModuleType, value: str) -> int:
    number = _integer(value)
    if number == 0:
        raise ValueError("error: invalid value for n_parallel\n")
    return number


def _tensor_split(xllamacpp: ModuleType, value: str) -> list[float]:
    most = len(xllamacpp.CommonParams().tensor_split)
    shares = [_number(part) for part in value.replace("/", ",").split(",")]
    if len(shares) >= most:
        raise ValueError(
            f"got {len(shares)} input configs, but system only has {most} devices"
        )
    return shares + [0.0] * (most - len(shares))


def _folder(_: ModuleType, value: str) -> str:
    if not Path(value).is_dir():
        raise ValueError(f"not a directory: {value}")
    return value if value.endswith("/") else value + "/"


def _text_of_file(_: ModuleType, value: str) -> str:
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"error: failed to open file '{value}'\n") from None


def _idle_seconds(_: ModuleType, value: str) -> int:
    number = _integer(value)
    if number == 0 or number < -1:
        raise ValueError("invalid value: cannot be 0 or less than -1")
    return number


def _adapters(xllamacpp: ModuleType, value: str) -> list[Any]:
    return [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in value.split(",")]


_SPECIAL: dict[str, Callable[[ModuleType, str], Any]] = {
    "--alias": lambda _, value: set(value.split(",")),
    "--chat-template-file": _text_of_file,
    "--fit": _fit,
    "--lora": _adapters,
    "--n-gpu-layers": _layers,
    "--parallel": _parallel,
    "--seed": lambda _, value: _integer(value) % 2**32,
    "--sleep-idle-seconds": _idle_seconds,
    "--slot-save-path": _folder,
    "--temp": lambda _, value: max(_number(value), 0.0),
    "--tensor-split": _tensor_split,
    "--threads": _threads,
    "--threads-batch": _threads,
}


# ── texts ────────────────────────────────────────────────────────────────────────────


def _help() -> str:
    entries = [
        _help_entry(flag) for flag in FLAGS if flag.parameter or flag.flag in _ACTIONS
    ]
    return "\n".join([_HEADING, "", *entries, ""])


def _help_entry(flag: Flag) -> str:
    """Return a flag's help in llama-server's own layout."""
    spellings = sorted(
        (flag.flag, *flag.aliases), key=lambda text: text.startswith("--")
    )
    first, *others = (*spellings, *flag.negated)
    head = f"{first}, ".ljust(7) + ", ".join(others) if others else first
    if flag.value:
        head += f" {flag.value}"
    lines = textwrap.wrap(flag.help, _HELP_WIDTH)
    if flag.kind == "choice":
        lines.append(f"allowed values: {', '.join(flag.choices)}")
    if len(head) >= _HELP_COLUMN:
        lines.insert(0, "")
    text = f"\n{' ' * _HELP_COLUMN}".join(lines)
    return f"{head:<{_HELP_COLUMN}}{text}" if lines[0] else f"{head}{text}"


def _version(xllamacpp: ModuleType) -> str:
    build = xllamacpp.BUILD_INFO
    # The last part of the wheel's version is llama.cpp's build number.
    version = xllamacpp.__version__
    return (
        f"version: {version.rpartition('.')[2]} (xllamacpp {version})\n"
        f"built with {build['compiler']} for {build['build_target']}\n"
    )


def _devices(xllamacpp: ModuleType) -> str:
    """Return the cards as llama-server lists them; the CPU is none."""
    lines = [
        f"  {device['name']}: {device['description']} "
        f"({device['memory_total'] >> 20} MiB, {device['memory_free'] >> 20} MiB free)"
        for device in xllamacpp.get_device_info()
        if device["type"].name.endswith("_GPU")
    ]
    return "\n".join(["Available devices:", *(lines or ["  (none)"]), ""])


if __name__ == "__main__":
    sys.exit(main())
