"""What an answer of the Hub, or the lack of one, means; by the Hub's own protocol.

Each version of the library has errors of its own, so nothing is asked of an error but
the reply that it carries, and its name where it carries none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llamatelemetry._environment import detect_platform
from llamatelemetry._units import printable
from llamatelemetry.exceptions import (
    DownloadError,
    GatedModelError,
    LLCudaError,
    ModelError,
    OfflineError,
)

__all__ = [
    "BUSY_STATUS",
    "FileMissingError",
    "is_passing",
    "meaning",
    "status_of",
    "unreachable",
]

BUSY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
"""What the Hub answers when asking again helps."""

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


_FINAL = {"OfflineModeIsEnabled", "TooManyRedirects", "FileMetadataError"}


class FileMissingError(ModelError):
    """There is no such file; what there is instead is not known yet."""


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error carries, or None."""
    # A requests.Response with a bad status is false, so `is None` it must be.
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def is_passing(error: Exception) -> bool:
    """Whether a transfer broke off in a way that another try may go past.

    Silence, a connection that was closed, a body that was too short: whatever has no
    reply with a bad status, and is no fault of this machine's disk or of the call.
    """
    if status_of(error) is not None or isinstance(error, (TypeError, ValueError)):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return isinstance(error, (ConnectionError, TimeoutError))
    names = {type(link).__name__ for link in _chain(error)}
    return not names & _FINAL


def meaning(
    error: Exception, repo: str, endpoint: str, *, offline: bool
) -> LLCudaError:
    """Return the error to raise for one of the library's.

    Args:
        error: The library's.
        repo: The repository that was asked for.
        endpoint: The Hub's address.
        offline: Whether HF_HUB_OFFLINE forbids to ask.
    """
    status = status_of(error)
    if status is not None:
        told = error.response.headers  # type: ignore[attr-defined]
        return _refusal(repo, f"{endpoint}/{repo}", status, told)
    if offline:
        return OfflineError(
            f"{repo}: HF_HUB_OFFLINE is set, so the Hub is not asked. Give a file on "
            "this machine, or unset it and restart."
        )
    names = {type(link).__name__ for link in _chain(error)}
    if names & _NO_CONNECTION:
        return unreachable(repo, endpoint)
    return DownloadError(
        f"{repo}: {endpoint} does not answer as the Hub does "
        f"({type(error).__name__}). Try again; if it stays so, something between "
        "(a proxy, a login page) answers in its place."
    )


def unreachable(repo: str, endpoint: str, reason: str = "") -> OfflineError:
    """Return the error for a Hub that cannot be reached.

    Args:
        repo: The repository that was asked for.
        endpoint: The Hub's address.
        reason: Why, where it is known.
    """
    return OfflineError(
        f"{repo}: {endpoint} cannot be reached{f' ({reason})' if reason else ''}; "
        f"{detect_platform().internet_advice}. A file on this machine works too."
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
        return FileMissingError(f"{repo}: the repository has no such file.")
    if code == "RevisionNotFound":
        return ModelError(
            f"{repo}: the repository has no such revision. {page} lists its branches."
        )
    if code == "GatedRepo" or status == _FORBIDDEN:
        return GatedModelError(
            f"{repo}: the model is gated. Visit {page}, log in and accept its licence; "
            "then set a token of that account (https://huggingface.co/settings/tokens) "
            f"{detect_platform().token_advice}."
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
