"""The one door to huggingface_hub: what files there are, and where their bytes lie.

The library differs from version to version in the HTTP client under it (requests,
httpx, httpx2) and in its errors. All that is asked of an error here is the reply it
carries, which the Hub's protocol fixes. Errors leave without a trace of the library's
own: those hold the request, and with it the token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

from llamatelemetry._units import printable
from llamatelemetry.exceptions import (
    ConfigurationError,
    DownloadError,
    GatedModelError,
    LLCudaError,
    ModelError,
    OfflineError,
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
    "list_files",
    "parse_reference",
    "resolve_file",
]

_Answer = TypeVar("_Answer")

_TIMEOUT = 10.0
"""Seconds until an answer; the library's own limit for a file's facts."""
_RETRY_DELAYS = (0.5, 1.0)
"""Seconds before asking a Hub again that is busy."""
_BUSY = {429, 500, 502, 503, 504}
_OWN_NAME = "llamatelemetry"
# What the HTTP clients under the versions of huggingface_hub call it when no
# connection comes about. They have no base class in common, not even OSError.
_NO_CONNECTION = {
    "ConnectError",
    "ConnectTimeout",
    "ConnectTimeoutError",
    "ConnectionRefusedError",
    "NameResolutionError",
    "NewConnectionError",
    "OfflineModeIsEnabled",
    "ProxyError",
    "gaierror",
}


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


def list_files(repo: str, revision: str | None = None) -> list[RepoFile]:
    """Return the files of a model's repository.

    Args:
        repo: ``owner/repository``.
        revision: A branch, tag or commit; None for the main branch.

    Raises:
        ConfigurationError: The name cannot be one of a repository.
        ModelError: There is no such repository or revision.
        GatedModelError: The Hub wants a token, or another one.
        OfflineError: There is no connection, or HF_HUB_OFFLINE forbids it.
        DownloadError: The Hub does not answer as it should.
    """
    from huggingface_hub import HfApi, constants  # noqa: PLC0415 -- slow to import

    _check_repo(repo)
    interface = HfApi(endpoint=constants.ENDPOINT, library_name=_OWN_NAME)
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


def resolve_file(repo: str, path: str, revision: str | None = None) -> ResolvedFile:
    """Ask the Hub where a file's bytes lie.

    Args:
        repo: ``owner/repository``.
        path: The file's path in it.
        revision: A branch, tag or commit; None for the main branch.

    Raises:
        ConfigurationError: The name cannot be one of a repository.
        ModelError: There is no such repository, revision or file.
        GatedModelError: The licence must be accepted first, or a token is needed.
        OfflineError: There is no connection, or HF_HUB_OFFLINE forbids it.
        DownloadError: The Hub does not answer as it should.
    """
    from huggingface_hub import constants, get_hf_file_metadata  # noqa: PLC0415

    _check_repo(repo)
    token = _find_token()
    base = f"{constants.ENDPOINT}/{repo}/resolve"
    asked = revision or "main"
    try:
        found = _ask(
            repo,
            lambda: get_hf_file_metadata(
                f"{base}/{quote(asked, safe='')}/{quote(path)}",
                token=token or False,
                timeout=_TIMEOUT,
                library_name=_OWN_NAME,
            ),
        )
    except _FileMissingError:
        known = [file.path for file in list_files(repo, revision)]
    else:
        commit = found.commit_hash or asked
        return ResolvedFile(
            url=f"{base}/{quote(commit, safe='')}/{quote(path)}",
            location=found.location,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            size=found.size,
            etag=found.etag,
            commit=commit,
        )
    raise _missing_file(repo, path, known)


class _FileMissingError(ModelError):
    """There is no such file; what there is instead is not known yet."""


def _missing_file(repo: str, path: str, known: list[str]) -> ModelError:
    models = [name for name in known if name.lower().endswith(".gguf")]
    near = nearest_names(path, models) or models[:4]
    instead = f"The nearest: {shown_names(near)}" if near else "It holds no GGUF file"
    return ModelError(f"{repo}: the repository has no file {path!r}. {instead}.")


def _find_token() -> str | None:
    from huggingface_hub import constants, get_token  # noqa: PLC0415

    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def _check_repo(repo: str) -> None:
    reference = parse_reference(repo)
    if reference is None or reference.repo != repo:
        raise ConfigurationError(
            f"repo={repo!r} is no repository on the Hub; write it as owner/repository"
        )


def _ask(repo: str, call: Callable[[], _Answer]) -> _Answer:
    """Ask the Hub, again where it is busy, and raise what its answer means."""
    delays = iter(_RETRY_DELAYS)
    while True:
        try:
            return call()
        except Exception as error:  # noqa: BLE001 -- each version has its own
            delay = next(delays, None) if _status(error) in _BUSY else None
            problem = _meaning(error, repo)
        if delay is None:
            break
        time.sleep(delay)
    # Raised here, where the library's error is no longer the context.
    raise problem


def _status(error: BaseException) -> int | None:
    # A requests.Response with a bad status is false, so `is None` it must be.
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _meaning(error: Exception, repo: str) -> LLCudaError:
    from huggingface_hub import constants  # noqa: PLC0415

    status = _status(error)
    if status is not None:
        told = error.response.headers  # type: ignore[attr-defined]
        return _refusal(repo, f"{constants.ENDPOINT}/{repo}", status, told)
    if constants.HF_HUB_OFFLINE:
        return OfflineError(
            f"{repo}: HF_HUB_OFFLINE is set, so the Hub is not asked. Give a file on "
            "this machine, or unset it and restart."
        )
    names = {type(link).__name__ for link in _chain(error)}
    if names & _NO_CONNECTION:
        return OfflineError(
            f"{repo}: {constants.ENDPOINT} cannot be reached. Turn the notebook's "
            "internet on, or give a file on this machine."
        )
    return DownloadError(
        f"{repo}: {constants.ENDPOINT} does not answer as the Hub does "
        f"({type(error).__name__}). Try again; if it stays so, something between "
        "(a proxy, a login page) answers in its place."
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _refusal(
    repo: str, page: str, status: int, headers: Mapping[str, str]
) -> LLCudaError:
    """Return what a reply with a bad status means; see the Hub's X-Error-Code."""
    code = headers.get("X-Error-Code", "")
    if code == "EntryNotFound":
        return _FileMissingError(f"{repo}: the repository has no such file.")
    if code == "RevisionNotFound":
        return ModelError(
            f"{repo}: the repository has no such revision. {page} lists its branches."
        )
    if code == "GatedRepo" or status == _FORBIDDEN:
        return GatedModelError(
            f"{repo}: the model is gated. Visit {page}, log in and accept its licence, "
            "then set HF_TOKEN to a token of that account "
            "(https://huggingface.co/settings/tokens)."
        )
    if status in (_UNAUTHORIZED, _NOT_FOUND):
        return ModelError(
            f"{repo}: there is no such repository, or it is private and no token that "
            f"opens it is set as HF_TOKEN. Look at {page}."
        )
    wait = headers.get("Retry-After")
    advice = f"Try again in {printable(wait)} s" if wait else "Try again later"
    limit = "; a token in HF_TOKEN has higher limits" if status == _TOO_MANY else ""
    return DownloadError(f"{repo}: the Hub answers {status}. {advice}{limit}.")


_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY = 401, 403, 404, 429
