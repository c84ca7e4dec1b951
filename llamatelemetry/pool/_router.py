"""Which of a pool's servers gets a request: decided here, and nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

from llamatelemetry._deadline import Deadline
from llamatelemetry.exceptions import ConnectionFailedError, ServerNotRunningError
from llamatelemetry.pool._member import Member
from llamatelemetry.pool._prefixes import PrefixMemory, Prompt, Sighting

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
    least = min(member.load for member in ready)
    for member in ready:
        if seen is not None and member.number == seen.server:
            if seen.next_turn and not member.has_queue:
                return member
            if member.load == least:
                return member
    equals = [member for member in ready if member.load == least]
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
        self.wake()

    def wake(self) -> None:
        """Have those that wait look whether they still want to."""
        with self._news:
            self._news.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait for news, at most this long."""
        with self._news:
            self._news.wait(seconds)

    def take(
        self,
        prompt: Prompt,
        *,
        avoid: Collection[Member],
        patience: Deadline,
        unwanted: Callable[[], bool],
    ) -> Member:
        """Return the server for a request; give it back when that is over.

        Args:
            prompt: What it asks.
            avoid: Servers that have failed it already; used where there are no others.
            patience: Until when to wait for one that is being started again.
            unwanted: Whether the request was called off; asked while waiting.

        Raises:
            ServerNotRunningError: The pool does not run, or no server will come back.
            ConnectionFailedError: None was ready in time, or it was called off.
        """
        while True:
            # Looked at without the lock: settling a server that has just ended may
            # take a moment, which is no reason to hold up the others' requests.
            ready = [one for one in self._members if one.is_ready]
            fresh = [one for one in ready if one not in avoid]
            if ready:
                return self._hand_out(fresh or ready, prompt)
            self._refuse_if_hopeless()
            if unwanted():
                raise ConnectionFailedError("the request was called off")
            if patience.expired:
                raise ConnectionFailedError(
                    f"no server of the pool became ready in time; {self._reasons()}"
                )
            self.wait(min(_LOOK_SECONDS, patience.remaining))

    def _hand_out(self, ready: Sequence[Member], prompt: Prompt) -> Member:
        with self._news:
            member = choose(ready, self._prefixes.last(prompt))
            member.in_flight += 1
            member.requests += 1
        self._prefixes.note(prompt, member.number)
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
            f"server {member.number}: {str(member.error).partition(chr(10))[0]}"
            for member in self._members
            if member.error is not None
        )
