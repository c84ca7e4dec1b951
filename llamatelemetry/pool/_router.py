"""Which of a pool's servers gets a request: decided here, and nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

from llamatelemetry._deadline import Deadline
from llamatelemetry.exceptions import ConnectionFailedError, ServerNotRunningError
from llamatelemetry.pool._member import Member
from llamatelemetry.pool._prefixes import PrefixMemory, Sighting

_LOOK_SECONDS = 0.1
"""How often one that waits for a server looks again, should nobody wake it."""


def choose(ready: Sequence[Member], seen: Sighting | None) -> Member:
    """Return the server a request is sent to.

    A conversation's next turn goes where the last one went, unless it would have to
    wait there. Everything else goes to the least busy; among equals, to the one that
    read the prompt's beginning last, or else to the one that was sent the fewest.

    Args:
        ready: The servers that can be sent requests; at least one.
        seen: Where the prompt's beginning was read last.
    """
    by_number = {member.number: member for member in ready}
    last = by_number.get(seen.server) if seen is not None else None
    if last is not None and seen is not None and seen.next_turn and not last.has_queue:
        return last
    least = min(member.load for member in ready)
    equals = [member for member in ready if member.load == least]
    if last in equals and last is not None:
        return last
    return min(equals, key=lambda member: member.requests)


class Router:
    """Hands out servers to requests, and takes them back; from any thread.

    Args:
        members: The servers.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)
        self._prefixes = PrefixMemory()
        self._news = threading.Condition()

    @property
    def members(self) -> tuple[Member, ...]:
        """The servers."""
        return self._members

    def tell(self, member: Member) -> None:
        """Note that a server may have become ready, or have failed."""
        if not member.is_ready:
            self._prefixes.forget(member.number)
        with self._news:
            self._news.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait for news of a server, at most this long."""
        with self._news:
            self._news.wait(seconds)

    def wake(self) -> None:
        """Have those that wait look whether they still want to."""
        with self._news:
            self._news.notify_all()

    def take(
        self,
        chain: tuple[bytes, ...],
        *,
        avoid: Collection[Member],
        patience: float,
        unwanted: Callable[[], bool],
    ) -> Member:
        """Return the server for a request; give it back when that is over.

        Args:
            chain: The digests of its prompt's beginnings.
            avoid: Servers that have failed it already; used where there are no others.
            patience: Seconds to wait for one that is being started again.
            unwanted: Whether the request was called off; asked while waiting.

        Raises:
            ServerNotRunningError: The pool does not run, or no server will come back.
            ConnectionFailedError: None was ready in time, or it was called off.
        """
        deadline = Deadline.after(patience)
        while True:
            # Looked at without the lock: settling a server that has just ended may
            # take a moment, which is no reason to hold up the others' requests.
            ready = [one for one in self._members if one.is_ready]
            fresh = [one for one in ready if one not in avoid]
            if ready:
                return self._hand_out(fresh or ready, chain)
            self._refuse_if_hopeless()
            if unwanted():
                raise ConnectionFailedError("the request was called off")
            if deadline.expired:
                raise ConnectionFailedError(
                    f"no server of the pool was ready in {patience:g} s; "
                    f"{self._reasons()}"
                )
            self.wait(min(_LOOK_SECONDS, deadline.remaining))

    def _hand_out(self, ready: Sequence[Member], chain: tuple[bytes, ...]) -> Member:
        with self._news:
            member = choose(ready, self._prefixes.last(chain))
            member.in_flight += 1
            member.requests += 1
        self._prefixes.note(chain, member.number)
        return member

    def give_back(self, member: Member) -> None:
        """Note that a server has one request less."""
        with self._news:
            member.in_flight -= 1

    def _refuse_if_hopeless(self) -> None:
        if not any(member.is_kept for member in self._members):
            raise ServerNotRunningError(
                "no server of the pool runs; use `with ServerPool(...) as pool:` or "
                f"pool.start(). {self._reasons()}".strip()
            )

    def _reasons(self) -> str:
        """Return why servers are not ready, as far as is known."""
        return "; ".join(
            f"server {member.number}: {str(member.error).splitlines()[0]}"
            for member in self._members
            if member.error is not None
        )
