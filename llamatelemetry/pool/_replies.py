"""Requests to a pool: sent to one of its servers, and asked again of another.

A request is asked again when the connection to its server is lost before whoever
asked has seen any of the answer. What was generated for it by then is lost with the
server. A single server's client never does that: there it would be the same server.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Unpack

from llamatelemetry._deadline import Deadline
from llamatelemetry._exchange import (
    Reply,
    ReplyStream,
    RequestOptions,
    StreamOptions,
)
from llamatelemetry._http import SILENCE_TIMEOUT, encode_json
from llamatelemetry.exceptions import (
    ConnectionFailedError,
    NotSupportedError,
    RequestTimeoutError,
)
from llamatelemetry.pool._member import Member
from llamatelemetry.pool._prefixes import Prompt
from llamatelemetry.pool._router import Router

_MOST_BREAKS = 3
"""Servers that may break off over one request. It may be the request that ends them:
then it must not end them for ever. Two may have been killed in the same moment."""


@dataclass(frozen=True, slots=True)
class _Question:
    """A request, whichever server it goes to."""

    method: str
    path: str
    options: StreamOptions
    prompt: Prompt

    @property
    def silence_timeout(self) -> float:
        """Seconds of silence after which it fails; also to wait for a server."""
        return self.options.get("silence_timeout", SILENCE_TIMEOUT)

    @property
    def total_timeout(self) -> float | None:
        """Seconds it may take in all, over all tries."""
        return self.options.get("total_timeout")

    def send_to(self, member: Member, deadline: Deadline) -> ReplyStream:
        """Prepare it for one server, with what is left of its time."""
        options = self.options.copy()
        if deadline.remaining < math.inf:
            options["total_timeout"] = max(deadline.remaining, 0.001)
        return member.http.stream(self.method, self.path, **options)


class PoolReply:
    """One request and its reply, from whichever server of the pool gives it.

    Attributes:
        status: The HTTP status; 0 before ``open`` has returned.
        headers: The reply's headers.
        server: The base URL of the server that is asked, or was last; None before.
    """

    def __init__(
        self,
        router: Router,
        question: _Question,
        *,
        failed: tuple[Member, ...] = (),
        breaks: int = 0,
        deadline: Deadline | None = None,
    ) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.server: str | None = None
        self._router = router
        self._question = question
        self._failed = failed
        self._breaks = breaks
        self._deadline = deadline  # begins when it is sent for the first time
        self._last: Member | None = None
        self._lock = threading.Lock()  # guards the four below
        self._member: Member | None = None
        self._inner: ReplyStream | None = None
        self._opened = False
        self._closed = False

    @property
    def opened(self) -> bool:
        """Whether it was asked of the pool."""
        return self._opened

    @property
    def reached(self) -> bool:
        """Whether a connection was opened for it."""
        return self._inner is not None and self._inner.reached

    def open(self) -> int:
        """Send the request, wait for the reply's headers, and return the status.

        Raises:
            ServerNotRunningError: The pool does not run.
            ConnectionFailedError: No server could be reached, or ``close`` was called.
            RequestTimeoutError: The server was silent for too long.
        """
        self._opened = True
        deadline = self._deadline or Deadline.after(self._question.total_timeout)
        self._deadline = deadline
        wait = min(self._question.silence_timeout, deadline.remaining)
        patience = Deadline.after(wait)
        while True:
            if self._closed:
                raise ConnectionFailedError("the request was called off")
            member = self._take_server(deadline, patience)
            try:
                inner = self._begin(member, deadline)
                status = inner.open()
            except ConnectionFailedError:
                self._give_back()
                if self._closed:
                    raise
                if not self._may_go_elsewhere(member) or patience.expired:
                    raise
            except BaseException as error:
                self._give_back()
                self._raise_as_asked(error)
                raise
            else:
                self.headers, self.status = inner.headers, status
                return status

    def _take_server(self, deadline: Deadline, patience: Deadline) -> Member:
        try:
            member = self._router.take(
                self._question.prompt,
                avoid=self._failed,
                patience=patience,
                unwanted=lambda: self._closed,
            )
        except ConnectionFailedError as error:
            if deadline.expired and not self._closed:
                raise self._over_time() from error
            raise
        with self._lock:
            self._member = self._last = member
        return member

    def _begin(self, member: Member, deadline: Deadline) -> ReplyStream:
        inner = self._question.send_to(member, deadline)
        self.server = inner.server
        with self._lock:
            self._inner = inner
            closed = self._closed
        if closed:
            inner.close()
        return inner

    def _may_go_elsewhere(self, member: Member) -> bool:
        """Note that a server broke off; return whether to ask another one.

        One that could not be reached has not been sent anything: it does not count.
        """
        member.suspect()
        self._failed += (member,)
        self._breaks += self.reached
        return self._breaks < _MOST_BREAKS

    def _raise_as_asked(self, error: BaseException) -> None:
        """Raise what was asked for, where what is left of its time is over."""
        if isinstance(error, RequestTimeoutError) and (
            self._deadline is not None and self._deadline.expired
        ):
            raise self._over_time() from error

    def _over_time(self) -> RequestTimeoutError:
        question = self._question
        return RequestTimeoutError(
            f"{question.method} {question.path} took longer than "
            f"total_timeout={question.total_timeout} s"
        )

    def _give_back(self) -> None:
        """Note that the server is done with this request, once."""
        with self._lock:
            member, self._member = self._member, None
        if member is not None:
            self._router.give_back(member)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next block as it came.

        Raises:
            ConnectionFailedError: The connection broke before the reply's end.
            RequestTimeoutError: The server was silent, or the whole took, too long.
        """
        if self._inner is None:
            raise StopIteration
        try:
            return next(self._inner)
        except BaseException as error:
            self._give_back()
            self._raise_as_asked(error)
            raise

    def read(self) -> bytes:
        """Return all that is left of the body."""
        return b"".join(self)

    def finish(self, within: float = 0.25) -> None:
        """Read what follows the part that matters, so that the connection lives on."""
        if self._inner is not None:
            self._inner.finish(within)
        self._give_back()

    def close(self) -> None:
        """End the request; may be called from any thread at any time."""
        with self._lock:
            self._closed = True
            inner = self._inner
        if inner is not None:
            inner.close()
            self._give_back()
        self._router.wake()  # it may be waiting for a server

    def again(self) -> PoolReply | None:
        """Return the same request for another server; None if it was tried enough.

        For a reply that was cut off, of which nobody has seen anything.
        """
        if self._last is not None and not self._may_go_elsewhere(self._last):
            return None
        return PoolReply(
            self._router,
            self._question,
            failed=self._failed,
            breaks=self._breaks,
            deadline=self._deadline,
        )

    def __del__(self) -> None:
        if self._member is not None:
            self.close()


class _NoAddressError(NotSupportedError, AttributeError):
    """What a pool's ``base_url`` raises, so that ``hasattr`` is simply False."""


class PoolRequests:
    """Sends requests to a pool's servers, as ``HTTPClient`` does to one.

    Args:
        router: Which server gets which request.
    """

    def __init__(self, router: Router) -> None:
        self._router = router

    @property
    def base_url(self) -> str:
        """A pool has none.

        Raises:
            NotSupportedError: Always; says where the servers' own are.
        """
        raise _NoAddressError(
            "a pool has no URL of its own; each server has: pool.servers[0].get_url()"
        )

    def request(
        self, method: str, path: str, **options: Unpack[RequestOptions]
    ) -> Reply:
        """Send one request to one of the servers and return the whole reply.

        Raises:
            ServerNotRunningError: The pool does not run.
            ConnectionFailedError: No server could be reached, or each broke off.
            RequestTimeoutError: Silence, or the whole took too long.
        """
        reply = self.stream(method, path, **options)
        while True:
            with contextlib.closing(reply):
                status = reply.open()
                try:
                    body = reply.read()
                except ConnectionFailedError:
                    anew = reply.again()
                    if anew is None:
                        raise
                else:
                    return Reply(status, reply.headers, body, reply.server)
            reply = anew

    def stream(
        self, method: str, path: str, **options: Unpack[StreamOptions]
    ) -> PoolReply:
        """Prepare a request; its server is chosen by the result's ``open()``.

        Raises:
            ConfigurationError: Its ``json`` cannot be written as JSON.
        """
        json = options.pop("json", None)
        if json is not None:
            options["body"] = encode_json(json)
        question = _Question(method, path, options, Prompt.of(json))
        return PoolReply(self._router, question)

    def close(self) -> None:
        """Leave the connections: they are the pool's, which closes them at its end."""
