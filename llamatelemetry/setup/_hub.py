"""The one door to huggingface_hub: what files there are, and where their bytes lie.

The library differs from version to version in the HTTP client under it (requests,
httpx, httpx2) and in its errors. All that is asked of an error here is the reply it
carries, which the Hub's protocol fixes. Errors leave without a trace of the library's
own: those hold the request, and with it the token.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import quote

from llamatelemetry._environment import Token, find_token
from llamatelemetry._internet import Probe, start_probe
from llamatelemetry.exceptions import (
    ConfigurationError,
    DownloadError,
    LLCudaError,
    ModelError,
    OfflineError,
)
from llamatelemetry.setup._disk import disk_errors
from llamatelemetry.setup._hub_cache import sweep_incomplete
from llamatelemetry.setup._hub_errors import (
    BUSY_STATUS,
    FileMissingError,
    is_passing,
    meaning,
    status_of,
    unreachable,
)
from llamatelemetry.setup._names import (
    HubReference,
    RepoFile,
    nearest_names,
    parse_reference,
    shown_names,
)

__all__ = [
    "HubReference",
    "RepoFile",
    "ResolvedFile",
    "cached_file",
    "default_cache",
    "fetch_file",
    "hub_token",
    "list_files",
    "parse_reference",
    "resolve_file",
    "token_finder",
]

_Answer = TypeVar("_Answer")

_TIMEOUT = 10.0
"""Seconds until an answer; the library's own limit for a file's facts."""
_RETRY_DELAYS = (0.5, 1.0)
"""Seconds before asking a Hub again that is busy."""
_OWN_NAME = "llamatelemetry"


@dataclass(frozen=True, slots=True)
class ResolvedFile:
    """Where a file's bytes lie.

    Attributes:
        url: Its address on the Hub, at the commit.
        location: Where the Hub sends one for the bytes; signed, so it expires and is
            not shown. May be the address on the Hub itself.
        headers: What the Hub wants to be sent, the token among it; for the Hub's
            origin only. Not shown.
        size: Bytes, or None if not told.
        etag: The SHA-256 of a large file's content; None if not told.
        commit: The commit that the revision named, or the revision if not told.
    """

    url: str
    location: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    size: int | None
    etag: str | None
    commit: str


def list_files(
    repo: str, revision: str | None = None, *, token: Token | None = None
) -> list[RepoFile]:
    """Return the files of a model's repository.

    Args:
        repo: ``owner/repository``.
        revision: A branch, tag or commit; None for the main branch.
        token: The token to send. None: the one that is found here, if any.

    Raises:
        ConfigurationError: The name cannot be one of a repository.
        ModelError: There is no such repository or revision.
        GatedModelError: The Hub wants a token, or another one.
        OfflineError: There is no connection, or HF_HUB_OFFLINE forbids it.
        DownloadError: The Hub does not answer as it should.
    """
    from huggingface_hub import HfApi, constants  # noqa: PLC0415 -- slow to import

    _check_repo(repo)
    key = token or hub_token()
    interface = HfApi(
        endpoint=constants.ENDPOINT,
        library_name=_OWN_NAME,
        token=key.value if key else False,
    )
    found = _ask(
        repo,
        lambda: interface.model_info(
            repo, revision=revision, files_metadata=True, timeout=_TIMEOUT
        ),
    )
    return [
        RepoFile(entry.rfilename, entry.size, entry.lfs.sha256 if entry.lfs else None)
        for entry in found.siblings or ()
    ]


def resolve_file(
    repo: str, path: str, revision: str | None = None, *, token: Token | None = None
) -> ResolvedFile:
    """Ask the Hub where a file's bytes lie.

    Args:
        repo: ``owner/repository``.
        path: The file's path in it.
        revision: A branch, tag or commit; None for the main branch.
        token: The token to send. None: the one that is found here, if any.

    Raises:
        ConfigurationError: The name cannot be one of a repository.
        ModelError: There is no such repository, revision or file.
        GatedModelError: The licence must be accepted first, or a token is needed.
        OfflineError: There is no connection, or HF_HUB_OFFLINE forbids it.
        DownloadError: The Hub does not answer as it should.
    """
    from huggingface_hub import constants, get_hf_file_metadata  # noqa: PLC0415

    _check_repo(repo)
    key = token or hub_token()
    base = f"{constants.ENDPOINT}/{repo}/resolve"
    asked = revision or "main"
    try:
        found = _ask(
            repo,
            lambda: get_hf_file_metadata(
                f"{base}/{quote(asked, safe='')}/{quote(path)}",
                token=key.value if key else False,
                timeout=_TIMEOUT,
                library_name=_OWN_NAME,
            ),
        )
    except FileMissingError:
        known = [file.path for file in list_files(repo, revision, token=key)]
    else:
        commit = found.commit_hash or asked
        return ResolvedFile(
            url=f"{base}/{quote(commit, safe='')}/{quote(path)}",
            location=found.location,
            headers=key.headers if key else {},
            size=found.size,
            etag=found.etag,
            commit=commit,
        )
    raise _missing_file(repo, path, known)


def _missing_file(repo: str, path: str, known: list[str]) -> ModelError:
    models = [name for name in known if name.lower().endswith(".gguf")]
    near = nearest_names(path, models) or models[:4]
    instead = f"The nearest: {shown_names(near)}" if near else "It holds no GGUF file"
    return ModelError(f"{repo}: the repository has no file {path!r}. {instead}.")


def hub_token() -> Token | None:
    """Return the token for the Hub that is found here; see :func:`find_token`.

    With HF_HUB_DISABLE_IMPLICIT_TOKEN none is looked for.
    """
    from huggingface_hub import constants  # noqa: PLC0415

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    return find_token(
        saved=_saved_token,
        ask_secrets=lambda: _probe().result().available is not False,
    )


def token_finder(argument: str | None) -> Callable[[], Token | None]:
    """Return what finds the token: the one given, else the one that is found here.

    Its repr shows nothing, wherever a debugger prints it.

    Args:
        argument: What the user gave.
    """
    given = find_token(argument) if argument else None
    return lambda: given or hub_token()


def _probe() -> Probe:
    from huggingface_hub import constants  # noqa: PLC0415

    return start_probe(constants.ENDPOINT)


def _saved_token() -> str | None:
    from huggingface_hub import constants  # noqa: PLC0415

    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8")
    return None


# The cache, and the transfer into it


def default_cache() -> Path:
    """Return the folder of the library's own cache: HF_HUB_CACHE, or below HF_HOME."""
    from huggingface_hub import constants  # noqa: PLC0415

    return Path(constants.HF_HUB_CACHE)


def cached_file(
    repo: str, path: str, revision: str | None = None, *, cache: Path
) -> Path | None:
    """Return where a file lies in the cache, or None. Nothing is asked of the Hub.

    Args:
        repo: ``owner/repository``.
        path: The file's path in it.
        revision: A branch, tag or commit; None for the main branch.
        cache: The cache's folder.
    """
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    found = try_to_load_from_cache(repo, path, cache_dir=cache, revision=revision)
    # What is known not to exist there has a value of its own.
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


class TransferProgress(Protocol):
    """What follows a transfer, and can call it off: a bar."""

    @property
    def done(self) -> int:
        """Bytes that are there."""

    @property
    def farthest(self) -> int:
        """The most bytes there ever were."""

    def check(self) -> None:
        """Raise if the transfer is called off."""

    def reporting_class(self) -> type[Any]:
        """Return a class of tqdm bars that report here."""


def fetch_file(
    repo: str,
    path: str,
    revision: str | None = None,
    *,
    cache: Path,
    bar: TransferProgress,
    size: int | None = None,
    token: Token | None = None,
) -> Path:
    """Transfer a file into the cache; the library writes and locks.

    It takes up a broken connection where it broke, but begins anew in a new process.

    Args:
        repo: ``owner/repository``.
        path: The file's path in it.
        revision: A branch, tag or commit; None for the main branch.
        cache: The cache's folder.
        bar: Shows the progress; its cancelling ends the transfer.
        size: Bytes of the file, for the message of a full disk.
        token: The token to send.

    Returns:
        The file in the cache. Its content was not verified.

    Raises:
        ModelError: There is no such repository, revision or file.
        GatedModelError: The licence must be accepted first, or a token is needed.
        DiskSpaceError: The disk is full.
        OfflineError: There is no connection.
        DownloadError: The transfer breaks off again and again.
    """
    from huggingface_hub import constants, hf_hub_download  # noqa: PLC0415

    stated = resolve_file(repo, path, revision, token=token).etag
    # It becomes a file's name, and a mirror may state what it likes.
    if stated is not None and not _PLAIN_NAME.fullmatch(stated):
        raise DownloadError(
            f"{repo}:{path}: {constants.ENDPOINT} states no digest but something that "
            "looks like a path; nothing was fetched."
        )

    def give_room() -> None:
        sweep_incomplete(cache, all_of_them=True)

    def transfer() -> str:
        bar.check()
        with (
            _settings_of_transfers(),
            disk_errors(cache, path, lambda: size or bar.done, give_room),
        ):
            found: str = hf_hub_download(
                repo,
                path,
                revision=revision,
                cache_dir=cache,
                token=token.value if token else False,
                library_name=_OWN_NAME,
                tqdm_class=bar.reporting_class(),
            )
        return found

    return Path(_ask(repo, transfer, _TRANSFER_DELAYS, lambda: bar.farthest))


_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_TRANSFER_DELAYS = (1.0, 2.0, 4.0, 8.0)
_MOST_TRANSFERS = 50
_MOST_SILENCE_SECONDS = 30
_settings_lock = threading.Lock()
_settings_users = 0
_settings_before: dict[str, Any] = {}
_SETTINGS = {
    # Its transfers cannot be called off, and one that hangs holds the file's lock.
    "HF_HUB_DISABLE_XET": True,
    # What is kept when a connection breaks: 10 MiB at a time otherwise, so that a link
    # that breaks before 10 MiB never gets anywhere.
    "DOWNLOAD_CHUNK_SIZE": 1 << 20,
}


@contextlib.contextmanager
def _settings_of_transfers() -> Iterator[None]:
    """Have the library transfer as it should, while a transfer of ours runs.

    These are constants of the library: there is no other way to say them.
    """
    from huggingface_hub import constants  # noqa: PLC0415

    global _settings_users  # noqa: PLW0603 -- the constants are global too
    with _settings_lock:
        _settings_users += 1
        if _settings_users == 1:
            silence = min(constants.HF_HUB_DOWNLOAD_TIMEOUT, _MOST_SILENCE_SECONDS)
            wanted = {**_SETTINGS, "HF_HUB_DOWNLOAD_TIMEOUT": silence}
            for name, value in wanted.items():
                _settings_before[name] = getattr(constants, name)
                setattr(constants, name, value)
    try:
        yield
    finally:
        with _settings_lock:
            _settings_users -= 1
            if _settings_users == 0:
                for name, value in _settings_before.items():
                    setattr(constants, name, value)
                _settings_before.clear()


def _check_repo(repo: str) -> None:
    reference = parse_reference(repo)
    if reference is None or reference.repo != repo:
        raise ConfigurationError(
            f"repo={repo!r} is no repository on the Hub; write it as owner/repository"
        )


def _ask(
    repo: str,
    call: Callable[[], _Answer],
    delays: tuple[float, ...] | None = None,
    progress: Callable[[], int] | None = None,
) -> _Answer:
    """Ask the Hub, again where that helps, and raise what its answer means.

    Args:
        repo: The repository, for messages.
        call: Asks.
        delays: Seconds to wait between tries that bring nothing.
        progress: Tells how far the tries have come. Where it is given, a connection
            that broke is tried again too, and a try that came farther than the ones
            before starts the count of delays anew.
    """
    delays = _RETRY_DELAYS if delays is None else delays
    left = iter(delays)
    farthest = 0
    for _ in range(_MOST_TRANSFERS):
        try:
            return call() if progress is not None else _unless_offline(call, repo)
        except LLCudaError:
            raise
        except Exception as error:  # noqa: BLE001 -- each version has its own
            problem = _meaning(error, repo)
            broken = progress is not None and is_passing(error)
            # Without a connection the library itself has tried for 23 s.
            broken = broken and not isinstance(problem, OfflineError)
            again = broken or status_of(error) in BUSY_STATUS
        if progress is not None and progress() > farthest:
            farthest, left = progress(), iter(delays)
        delay = next(left, None) if again else None
        if delay is None:
            break
        time.sleep(delay)
    # Raised here, where the library's error is no longer the context.
    raise problem


def _unless_offline(call: Callable[[], _Answer], repo: str) -> _Answer:
    """Return what a call gives, or leave it behind where there is no internet.

    Without internet the system looks for a name for up to half a minute, and the
    library cannot be told to wait less. The probe, which runs beside it, knows sooner.

    Raises:
        OfflineError: The probe says that there is none, and no answer has come either.
    """
    from huggingface_hub import constants  # noqa: PLC0415

    answers: queue.SimpleQueue[Callable[[], _Answer]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer = call()
        except BaseException as error:  # noqa: BLE001 -- raised again by who waits
            answers.put(partial(_raise, error))
        else:
            answers.put(lambda: answer)

    probe = _probe()
    threading.Thread(target=ask, name="llamatelemetry-hub", daemon=True).start()
    with contextlib.suppress(queue.Empty):
        return answers.get(timeout=_OFFLINE_SECONDS)()
    found = probe.result()
    with contextlib.suppress(queue.Empty):
        if found.available is None:  # it found no answer either, in its 2 s
            return answers.get(timeout=_OFFLINE_SECONDS)()
        if found.available:
            return answers.get(timeout=_LONGEST_SECONDS)()
    if found.available:
        raise DownloadError(
            f"{repo}: the Hub has not answered for {_LONGEST_SECONDS:g} s. Try again."
        )
    raise unreachable(repo, constants.ENDPOINT, found.reason)


def _raise(error: BaseException) -> NoReturn:
    raise error


_OFFLINE_SECONDS = 3.0
_LONGEST_SECONDS = 60.0


def _meaning(error: Exception, repo: str) -> LLCudaError:
    from huggingface_hub import constants  # noqa: PLC0415

    return meaning(
        error, repo, constants.ENDPOINT, offline=bool(constants.HF_HUB_OFFLINE)
    )
