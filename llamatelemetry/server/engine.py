"""Find an engine: a program that speaks llama-server's flags and HTTP API.

The order is: the argument, the variable ``LLAMATELEMETRY_SERVER``, ``llama-server``
or ``llama`` on PATH, the engine that :mod:`llamatelemetry.setup` installed last, and at
the end the embedded engine, where ``xllamacpp`` is installed. While
``LLAMATELEMETRY_DEMO`` is 1 and none is named, it is the embedded one.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llamatelemetry._demo import is_demo_mode
from llamatelemetry.exceptions import ConfigurationError, EngineNotFoundError
from llamatelemetry.server import _process
from llamatelemetry.server._installed import InstalledEngine, installed_engines

if TYPE_CHECKING:
    from llamatelemetry.server.flags import Capabilities

__all__ = [
    "Engine",
    "EngineLike",
    "build_environment",
    "embedded_build",
    "embedded_engine",
    "engine_of_record",
    "engine_on_path",
    "find_engine",
    "identity_of",
]

_NamedBy = Literal["argument", "LLAMATELEMETRY_SERVER"]
_Source = Literal[_NamedBy, "PATH", "setup", "embedded"]
EMBEDDED = "embedded"
"""The name that asks for the embedded engine."""

_EMBEDDED_MODULE = "llamatelemetry.server.embedded"
_INSTALL_HINT = "pip install xllamacpp"
# A CUDA build opens the driver before it prints its help; on a cold Kaggle disk that
# takes many seconds.
_HELP_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Engine:
    """A program that runs a server, and how to start it.

    Attributes:
        command: The program and its leading arguments: ``("/opt/llama", "serve")``.
        source: Where it was found.
        library_path: Folders its shared libraries are in, for LD_LIBRARY_PATH.
        python_path: Folders its Python modules are in, for PYTHONPATH.
        note: Why it is this one, in a sentence, where setup has chosen it.

    Example:
        >>> from llamatelemetry.server import Engine
        >>> print(Engine(("/opt/llama", "serve"), source="argument"))
        /opt/llama serve
    """

    command: tuple[str, ...]
    source: _Source
    library_path: tuple[str, ...] = field(default=(), repr=False)
    python_path: tuple[str, ...] = field(default=(), repr=False)
    note: str = field(default="", repr=False, compare=False)

    @property
    def embedded(self) -> bool:
        """Whether this is the embedded engine."""
        return _EMBEDDED_MODULE in self.command

    def __str__(self) -> str:
        """Return what messages call it."""
        if self.embedded:
            return "the embedded engine (xllamacpp)"
        return shlex.join(self.command)

    def capabilities(self) -> Capabilities:
        """Return what the engine accepts, from its own ``--help``.

        The program runs once per process; again only when its file has changed.

        Raises:
            EngineNotFoundError: It cannot be run, or is no llama-server.
        """
        return _capabilities(self, identity_of(self.command))


EngineLike = Engine | str | os.PathLike[str] | Sequence[str]


def find_engine(engine: EngineLike | None = None) -> Engine:
    """Find the engine to run, and make sure that it runs.

    Args:
        engine: An Engine; the path or the name of a program; a command ("llama
            serve", or a list); "embedded" for the embedded engine. None: whatever
            ``LLAMATELEMETRY_SERVER`` says in the same words, else what is installed.

    Raises:
        EngineNotFoundError: There is none, or the one named does not run.

    Returns:
        The engine, whose ``--help`` has been read.

    Example:
        >>> from llamatelemetry.server import find_engine
        >>> print(find_engine("embedded"))
        the embedded engine (xllamacpp)
    """
    if isinstance(engine, Engine):
        return engine
    variable = os.environ.get("LLAMATELEMETRY_SERVER")
    found: Engine | None
    if engine is not None:
        found = _named(engine, "argument")
    elif variable:
        found = _named(variable, "LLAMATELEMETRY_SERVER")
    elif is_demo_mode():
        found = embedded_engine()
    else:
        found = engine_on_path() or _installed() or embedded_engine()
    if found is None:
        raise EngineNotFoundError(
            "no llama-server found: no engine was named, LLAMATELEMETRY_SERVER is not "
            "set, neither llama-server nor llama is on PATH, and xllamacpp is not "
            f"installed. For one that runs on the CPU: {_INSTALL_HINT}"
        )
    found.capabilities()
    return found


def _named(
    value: str | os.PathLike[str] | Sequence[str],
    source: _NamedBy,
) -> Engine:
    if value == EMBEDDED:
        engine = embedded_engine()
        if engine is None:
            raise EngineNotFoundError(
                "the embedded engine needs xllamacpp, which is not installed: "
                f"{_INSTALL_HINT}"
            )
        return engine
    program, *arguments = _split(value)
    return _engine_of(_resolve(program, source), arguments, source)


def _split(value: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    if isinstance(value, os.PathLike):
        return [os.fspath(value)]
    if not isinstance(value, str):
        words = list(value)
    elif shutil.which(os.path.expanduser(value)) or Path(value).expanduser().exists():  # noqa: PTH111 - which takes text
        words = [value]  # a path with spaces in it, not a command
    else:
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise EngineNotFoundError(
                f"the engine {value!r} is no command: {error}"
            ) from error
    if not words:
        raise EngineNotFoundError("the engine named is empty; name a program")
    return words


def _resolve(program: str, source: _NamedBy) -> str:
    path = Path(program).expanduser()
    if path.is_dir():
        path /= "llama-server"
    found = shutil.which(str(path))
    if found is not None:
        return found
    origin = "the engine is" if source == "argument" else f"{source} is"
    if path.exists():
        raise EngineNotFoundError(
            f"{origin} {str(path)!r}, which cannot be executed; "
            f"make it a program: chmod +x {shlex.quote(str(path))}"
        )
    raise EngineNotFoundError(
        f"{origin} {program!r}, but there is no such program. Name the path of a "
        f"llama-server, or {EMBEDDED!r} for the one on the CPU ({_INSTALL_HINT})"
    )


def engine_on_path() -> Engine | None:
    """Return llama-server or llama on PATH; None where there is neither."""
    program = shutil.which("llama-server")
    if program is not None:
        return _engine_of(program, [], "PATH")
    program = shutil.which("llama")
    if program is not None:
        engine = _engine_of(program, [], "PATH")
        # Other programs have that name too; such a one is passed over.
        with contextlib.suppress(EngineNotFoundError):
            engine.capabilities()
            return engine
    return None


def _engine_of(
    program: str,
    arguments: list[str],
    source: _Source,
) -> Engine:
    program = os.path.abspath(program)  # noqa: PTH100 - resolve() would follow links
    if Path(program).stem == "llama" and not arguments:
        arguments = ["serve"]
    return Engine((program, *arguments), source, library_path=_libraries_of(program))


# Their libraries are found anyway, and must not come before the user's own.
_SYSTEM_FOLDERS = frozenset({"/bin", "/usr/bin", "/usr/local/bin"})


def _libraries_of(program: str) -> tuple[str, ...]:
    """Return the folders beside a program that hold llama.cpp's libraries.

    Official builds find them by themselves; some unpacked ones do not.
    """
    folder = Path(program).resolve().parent
    if str(folder) in _SYSTEM_FOLDERS:
        return ()
    return tuple(
        str(place)
        for place in (folder, folder.parent / "lib")
        if any(place.glob("libggml*.so*")) or any(place.glob("libllama*.so*"))
    )


def _installed() -> Engine | None:
    """Return the engine that setup installed last, if it is still whole."""
    for record in installed_engines():
        return engine_of_record(record)
    return None


def engine_of_record(record: InstalledEngine, note: str = "") -> Engine:
    """Return an installed engine as one that can be run."""
    if record.module_path is not None:
        embedded = embedded_engine(record.module_path)
        if embedded is not None:
            return replace(embedded, source="setup", note=note)
    return Engine(
        (str(record.executable), *record.arguments),
        "setup",
        library_path=record.library_path,
        note=note,
    )


def embedded_engine(modules: Path | None = None) -> Engine | None:
    """Return the embedded engine, or None where xllamacpp is not installed.

    Args:
        modules: The folder of another xllamacpp than the installed one.
    """
    # -P: a json.py in the notebook's folder must not stand in for the real one.
    command = (sys.executable, "-P", "-m", _EMBEDDED_MODULE)
    places = [str(Path(__file__).parents[2])]
    if modules is not None:
        places.insert(0, str(modules))
    else:
        found = find_spec("xllamacpp")
        if found is None:
            return None
        if found.origin is not None:
            places.insert(0, str(Path(found.origin).parents[1]))
    # Those the child finds by itself are left out: on PYTHONPATH, a site folder would
    # come before the standard library.
    own = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    paths = tuple(dict.fromkeys(place for place in places if place not in own))
    return Engine(command, "embedded", python_path=paths)


def embedded_build() -> int | None:
    """Return llama.cpp's build in the embedded engine, by its package's version."""
    from importlib import metadata  # noqa: PLC0415 -- slow, and seldom needed

    try:
        number = metadata.version("xllamacpp").rpartition(".")[2]
    except metadata.PackageNotFoundError:
        return None
    return int(number) if number.isdecimal() else None


FileIdentity = tuple[tuple[str, int, int], ...]


def identity_of(command: Sequence[str]) -> FileIdentity:
    """Return path, size and time of change of the files that a command names."""
    files = []
    for word in command:
        try:
            status = os.stat(word)  # noqa: PTH116 - most words are no paths
        except (OSError, ValueError):
            continue
        files.append((word, status.st_size, status.st_mtime_ns))
    return tuple(files)


@lru_cache(maxsize=32)
def _capabilities(engine: Engine, identity: FileIdentity) -> Capabilities:
    from llamatelemetry.server.flags import read_capabilities  # noqa: PLC0415 -- slow

    del identity  # part of the cache's key only
    command = [*engine.command, "--help"]
    try:
        done = _process.run(
            command,
            environment=build_environment(engine),
            timeout=_HELP_TIMEOUT_SECONDS,
        )
    except (OSError, TimeoutError) as error:
        raise EngineNotFoundError(f"{engine} does not run: {error}") from error
    if done.returncode != 0:
        raise EngineNotFoundError(
            f"{engine} does not run: --help ended with exit code "
            f"{done.returncode}\n{done.stderr.strip()[-2000:]}".rstrip()
        )
    try:
        return read_capabilities(done.stdout)
    except ConfigurationError as error:
        raise EngineNotFoundError(f"{engine} is no engine: {error}") from None


# They would reach a server that has no use for them, and each of its children.
_SECRETS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})


def build_environment(
    engine: Engine,
    *,
    api_key: str | None = None,
    environment: Mapping[str, str] | None = None,
    inherited: Mapping[str, str] | None = None,
    visible_devices: str | None = None,
) -> dict[str, str]:
    """Return the environment an engine is started with, as a value.

    Every inherited ``LLAMA_*`` is left out: LLAMA_ARG_CTX_SIZE and its like silently
    change each option that is not given, and LLAMA_API_KEY locks the server.

    Args:
        engine: What is started.
        api_key: The key clients must send.
        environment: What the user sets; it counts above all else.
        inherited: What to start from. None: this process's environment.
        visible_devices: The cards it may see, as CUDA_VISIBLE_DEVICES; None for the
            inherited ones.
    """
    base = os.environ if inherited is None else inherited
    result = {
        name: value
        for name, value in base.items()
        if not name.startswith("LLAMA_") and name not in _SECRETS
    }
    result["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if visible_devices is not None:
        result["CUDA_VISIBLE_DEVICES"] = visible_devices
    _extend(result, "LD_LIBRARY_PATH", before=engine.library_path)
    _extend(result, "PYTHONPATH", after=engine.python_path)
    if api_key is not None:
        result["LLAMA_API_KEY"] = api_key
    return result | dict(environment or {})


def _extend(
    variables: dict[str, str],
    name: str,
    *,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
) -> None:
    present = [variables[name]] if variables.get(name) else []
    if before or after:
        variables[name] = os.pathsep.join([*before, *present, *after])
