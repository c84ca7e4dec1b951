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
from llamatelemetry._exchange import Reply, ReplyStream, RequestOptions
from llamatelemetry._http import SILENCE_TIMEOUT, encode_json
from llamatelemetry.exceptions import ConnectionFailedError, NotSupportedError
from llamatelemetry.pool._member import Member
from llamatelemetry.pool._prefixes import chain_of
from llamatelemetry.pool._router import Router


@dataclass(frozen=True, slots=True)
class _Question:
    """A request, whichever server it goes to."""

    method: str
    path: str
    options: RequestOptions
    chain: tuple[bytes, ...]

    @property
    def silence_timeout(self) -> float:
        """Seconds of silence after which it fails, also while it waits for a server."""
        return self.options.get("silence_timeout", SILENCE_TIMEOUT)

    @property
    def total_timeout(self) -> float | None:
        """Seconds it may take in all, over all tries."""
        return self.options.get("total_timeout")

    def send_to(self, member: Member, deadline: Deadline) -> ReplyStream:
        """Prepare it for one server, with what is left of its time."""
        options = self.options.copy()
        if deadline.remaining < math.inf:
            options["total_timeout"] = deadline.remaining
        return member.http.stream(self.method, self.path, **options)


class PoolReply:
    """One request and its reply, from whichever server of the pool gives it.

    Attributes:
        status: The HTTP status; 0 before ``open`` has returned.
        headers: The reply's headers.
    """

    def __init__(
        self,
        router: Router,
        question: _Question,
        *,
        failed: tuple[Member, ...] = (),
        deadline: Deadline | None = None,
    ) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._router = router
        self._question = question
        self._failed = failed
        self._deadline = deadline  # begins when it is sent for the first time
        self._last: Member | None = None
        self._lock = threading.Lock()  # guards the four below
        self._member: Member | None = None
        self._inner: ReplyStream | None = None
        self._opened = False
        self._closed = False

    @property
    def opened(self) -> bool:
        """Whether something may have been sent."""
        return self._opened

    @property
    def _may_ask_again(self) -> bool:
        # At least twice, for a pool of one. Not for ever: a request that ends each
        # server it is sent to must not end them all in turn, again and again.
        tries = max(2, len(self._router.members))
        return not self._closed and len(self._failed) < tries

    def open(self) -> int:
        """Send the request, wait for the reply's headers, and return the status.

        Raises:
            ServerNotRunningError: The pool does not run.
            ConnectionFailedError: No server could be reached, or ``close`` was called.
            RequestTimeoutError: The server was silent for too long.
        """
        deadline = self._deadline or Deadline.after(self._question.total_timeout)
        self._deadline = deadline
        while True:
            if self._closed:
                raise ConnectionFailedError("the request was called off")
            member = self._take_server(deadline)
            try:
                inner = self._begin(member, deadline)
                status = inner.open()
            except ConnectionFailedError:
                self._give_back()
                if not self._closed:
                    member.suspect()
                self._failed += (member,)
                if not self._may_ask_again:
                    raise
            except BaseException:
                self._give_back()
                raise
            else:
                self.headers, self.status = inner.headers, status
                return status

    def _take_server(self, deadline: Deadline) -> Member:
        question = self._question
        member = self._router.take(
            question.chain,
            avoid=self._failed,
            patience=min(question.silence_timeout, deadline.remaining),
            unwanted=lambda: self._closed,
        )
        with self._lock:
            self._member = self._last = member
            self._opened = True
        return member

    def _begin(self, member: Member, deadline: Deadline) -> ReplyStream:
        inner = self._question.send_to(member, deadline)
        with self._lock:
            self._inner = inner
            closed = self._closed
        if closed:
            inner.close()
        return inner

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
        except BaseException:
            self._give_back()
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
        self._give_back()
        failed = self._failed
        if self._last is not None:
            self._last.suspect()
            failed += (self._last,)
        anew = PoolReply(
            self._router, self._question, failed=failed, deadline=self._deadline
        )
        return anew if anew._may_ask_again else None

    def __del__(self) -> None:
        if self._member is not None:
            self.close()


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
        raise NotSupportedError(
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
                    return Reply(status, reply.headers, reply.read())
                except ConnectionFailedError:
                    anew = reply.again()
                    if anew is None:
                        raise
            reply = anew

    def stream(
        self, method: str, path: str, **options: Unpack[RequestOptions]
    ) -> PoolReply:
        """Prepare a request; its server is chosen by the result's ``open()``.

        Raises:
            ConfigurationError: Its ``json`` cannot be written as JSON.
        """
        json = options.get("json")
        if json is not None:
            encode_json(json)  # now, and not when it is sent
        return PoolReply(self._router, _Question(method, path, options, chain_of(json)))

    def close(self) -> None:
        """Leave the connections: they are the pool's, which closes them at its end."""
