"""Engines: what fits this machine and the model, fetched, verified, proven."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from llamatelemetry._demo import DEMO_VARIABLE, is_demo_mode
from llamatelemetry._environment import Token
from llamatelemetry._progress import FileBar, Shown
from llamatelemetry.exceptions import (
    ChecksumError,
    ConfigurationError,
    EngineNotFoundError,
    LLCudaError,
    OfflineError,
    SetupError,
    SetupWarning,
)
from llamatelemetry.server.engine import (
    EMBEDDED,
    Engine,
    EngineLike,
    embedded_build,
    embedded_engine,
    engine_of_record,
    find_engine,
)
from llamatelemetry.setup._checksums import checked_digest, mismatch, sha256_of
from llamatelemetry.setup._choose import (
    EngineChoice,
    check_build,
    choose,
    find_installed,
)
from llamatelemetry.setup._hub import hub_token, token_finder
from llamatelemetry.setup._machine import measure_machine
from llamatelemetry.setup._manifest import EngineEntry, manifest
from llamatelemetry.setup._needs import ModelLike, least_build

__all__ = ["EMBEDDED_NOTE", "EngineRequest", "ensure_engine", "warn"]

# What is imported inside a function here is not needed where an engine is installed.
EMBEDDED_NOTE = "on the CPU, with the embedded engine"
"""How the note begins that says why it is the embedded engine."""

_INSTALL_HINT = "pip install xllamacpp"


def ensure_engine(
    engine: EngineLike | None = None,
    *,
    model: ModelLike | None = None,
    min_build: int | None = None,
    sha256: str | None = None,
    token: str | None = None,
    progress: bool = True,
) -> Engine:
    """Return an engine that runs here, fetched and verified if there is none yet.

    Without an argument: the one that ``LLAMATELEMETRY_SERVER`` names, a
    ``llama-server`` on PATH that sees the cards, else the first of the manifest
    (``engines.json``) that fits driver, glibc, cards and model. Where nothing fits, or
    there is no NVIDIA card, the embedded engine; why is in the engine's ``note``, and
    in a SetupWarning.

    Args:
        engine: An Engine; a name of the manifest; the path of a program, or of a folder
            that holds one; "owner/repository:path" on the Hub; a URL, with ``sha256``;
            "embedded"; "xllamacpp" for that package's wheel with CUDA.
        model: What it must run: a name of the catalog, or a file; old builds of
            llama.cpp do not know new architectures.
        min_build: The oldest build of llama.cpp that will do: 8639 for b8639.
        sha256: The digest the archive must have. For an engine of the manifest it takes
            the place of the one that is pinned there: a replaced file is so accepted
            knowingly.
        token: The Hub's token; see :func:`ensure_model`.
        progress: Whether bars are shown.

    Raises:
        ChecksumError: Every engine that fits has other bytes than the pinned ones;
            names expected and actual digest of each, and how to accept one knowingly.
        EngineNotFoundError: The one that was named does not run here, or there is none
            and the embedded one is not installed.
        ConfigurationError: What was named is no engine.
        SetupError: The engines that fit cannot be fetched: no connection, no room.

    Examples:
        >>> from llamatelemetry import ensure_engine
        >>> engine = ensure_engine(progress=False)
        >>> print(engine)  # as LLAMATELEMETRY_DEMO is set here
        the embedded engine (xllamacpp)
    """
    find_token = token_finder(token)
    del token  # no traceback shows it
    request = EngineRequest(
        min_build=least_build(model, min_build),
        sha256=None if sha256 is None else checked_digest(sha256),
        find_token=find_token,
        shown=progress,
    )
    found = request.get() if engine is None else request.get_named(engine)
    warn(request.notices)
    return found


def warn(notices: Iterable[str], stacklevel: int = 3) -> None:
    """Tell what one should know of an engine, at the user's call.

    Args:
        notices: What to tell.
        stacklevel: 3 for the caller of who calls this.
    """
    for notice in notices:
        warnings.warn(notice, SetupWarning, stacklevel=stacklevel)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What an engine must be, and how it is fetched.

    Attributes:
        min_build: The oldest build of llama.cpp that will do, or None.
        sha256: The digest that the user gives, or None.
        find_token: Finds the token; called only if the Hub has to be asked.
        shown: Whether bars are shown; or what is called instead, in any thread.
        called_off: Ends the downloads when it is set.
        notices: What one should know of the engine, for :func:`warn`: the work may be
            done in a thread, where a warning would name no line of the user's.
    """

    min_build: int | None = None
    sha256: str | None = None
    find_token: Callable[[], Token | None] = field(default=hub_token, repr=False)
    shown: Shown = True
    called_off: threading.Event = field(default_factory=threading.Event, repr=False)
    notices: list[str] = field(default_factory=list, repr=False)

    def choose(self) -> EngineChoice:
        """Return what would be used or fetched here; see :func:`ensure_engine`."""
        if is_demo_mode():
            return EngineChoice(_demo_engine(), (), ())
        return choose(measure_machine(), self.min_build, self.sha256)

    def choose_named(self, engine: EngineLike) -> EngineChoice:
        """Return what would be used or fetched for an engine that a user names.

        Args:
            engine: See :func:`ensure_engine`.

        Raises:
            ConfigurationError: It is none.
            EngineNotFoundError: It is none, or does not run.
        """
        entry = self._entry_of(engine)
        if entry is None:
            return EngineChoice(self._found(engine), (), ())
        if is_demo_mode():
            return EngineChoice(_demo_engine(), (), ())
        record = find_installed(entry)
        if record is not None:
            return EngineChoice(engine_of_record(record), (), ())
        return EngineChoice(None, (entry,), ())

    def get(self) -> Engine:
        """Return the engine that fits; see :func:`ensure_engine` for the errors."""
        choice = self.choose()
        if choice.engine is not None:
            return choice.engine
        failures: list[tuple[EngineEntry, LLCudaError]] = []
        without: set[str] = set()
        for entry in choice.candidates:
            host = urlsplit(entry.url or "").hostname or "the Hub"
            if host in without:  # nobody waits for each of its files
                continue
            try:
                return self._install(entry)
            except LLCudaError as error:
                failures.append((entry, error))
                if isinstance(error, OfflineError):
                    without.add(host)
        unfetched = [
            (entry, error)
            for entry, error in failures
            if not isinstance(error, EngineNotFoundError)
        ]
        if unfetched:
            raise _nothing_fetched(unfetched)
        broken = [f"{entry.id}: {_first_line(error)}" for entry, error in failures]
        reasons = "; ".join([*broken, *filter(None, [choice.reasons])])
        engine = embedded_instead(reasons)
        self.notices.append(engine.note)
        return engine

    def get_named(self, engine: EngineLike) -> Engine:
        """Return the engine that a user names; for errors see :func:`ensure_engine`.

        Args:
            engine: See :func:`ensure_engine`.
        """
        if engine == manifest().package:
            from llamatelemetry.setup._wheels import install_wheel  # noqa: PLC0415

            return install_wheel(self.sha256)
        entry = self._entry_of(engine)
        if entry is not None and is_demo_mode():
            return _demo_engine()
        return self._found(engine) if entry is None else self._install(entry)

    def _entry_of(self, engine: EngineLike) -> EngineEntry | None:
        """Return the entry of an engine that has to be fetched; None for a program."""
        if not isinstance(engine, (str, os.PathLike)) or engine == EMBEDDED:
            return None
        text = os.fspath(engine)
        if Path(text).expanduser().exists():
            return None
        from llamatelemetry.setup._sources import entry_of_source  # noqa: PLC0415

        return entry_of_source(text, self.sha256, self.find_token)

    def _found(self, engine: EngineLike) -> Engine:
        """Return a program of this machine; compared with the digest, if one is given.

        Raises:
            ConfigurationError: A digest is given for what is no single file.
        """
        if self.sha256 is not None:
            path = Path(engine) if isinstance(engine, (str, os.PathLike)) else None
            if path is None or not path.expanduser().is_file():
                raise ConfigurationError(
                    f"sha256 is the digest of one file, which {engine!r} is not"
                )
            actual = sha256_of(path.expanduser())
            if actual != self.sha256:
                raise mismatch(
                    str(path), expected=self.sha256, actual=actual, advice="Not run."
                )
        if engine == EMBEDDED:
            # Its package is here, so it runs: no need to start it to find out.
            found = embedded_engine() or find_engine(EMBEDDED)
            if self.min_build is not None:
                check_build(found, self.min_build, embedded_build())
        else:
            found = find_engine(engine)
            check_build(found, self.min_build)
        return found

    def _install(self, entry: EngineEntry) -> Engine:
        record = find_installed(entry)
        if record is None:
            if not entry.confirmed_live:
                self.notices.append(
                    f"{entry.id}: the digest that is pinned for this engine was taken "
                    "from a public record and never compared with what its server "
                    "gives. Other bytes are refused, never run."
                )
            from llamatelemetry.setup._install import install  # noqa: PLC0415

            with FileBar(
                entry.id, entry.bytes, cancelled=self.called_off, shown=self.shown
            ) as bar:
                record = install(entry, bar, self.find_token)
        engine = engine_of_record(record, f"{entry.id}, from {entry.origin}")
        check_build(engine, self.min_build, record.build)
        return engine


def _first_line(error: LLCudaError) -> str:
    return str(error).partition("\n")[0]


def _nothing_fetched(failures: list[tuple[EngineEntry, LLCudaError]]) -> LLCudaError:
    """Return the error for engines that fit and could not be had, with each reason."""
    listed = "\n".join(f"- {_first_line(error)}" for _, error in failures)
    message = f"no engine that fits this machine could be fetched:\n{listed}"
    for _, error in failures:
        if isinstance(error, ChecksumError):
            return ChecksumError(message, expected=error.expected, actual=error.actual)
    error = failures[0][1]
    if len(failures) == 1 or not isinstance(error, SetupError):
        return error
    hint = "\nTo go on without cards: ensure_engine('embedded')."
    error.args = (message + hint,)
    return error


def _demo_engine() -> Engine:
    return embedded_instead(f"{DEMO_VARIABLE} is set")


def embedded_instead(reason: str) -> Engine:
    """Return the embedded engine, with a note that says why it is that one.

    Raises:
        EngineNotFoundError: xllamacpp is not installed.
    """
    engine = embedded_engine()
    if engine is None:
        raise EngineNotFoundError(
            f"no engine with CUDA can be used ({reason}), and the embedded one is not "
            f"installed: {_INSTALL_HINT}"
        )
    note = f"{EMBEDDED_NOTE}: {reason}"
    return replace(engine, note=note)
