"""What the tests of measuring are written with."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from client_tools import StandIn


def chats(stand_in: StandIn, url: str) -> list[dict[str, Any]]:
    """Return the chats that were asked for at an address."""
    return [one for one in stand_in.seen(url) if "/chat/" in one["target"]]


@contextlib.contextmanager
def interrupted_at(stand_in: StandIn, url: str, count: int) -> Iterator[None]:
    """Press Ctrl-C once so many chats were asked for at an address.

    Their answers have to take a while: the main thread then waits for them, and is not
    in the middle of a request of its own.
    """
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    main = threading.get_ident()
    ended = threading.Event()

    def press() -> None:
        while not ended.wait(0.02):
            if len(chats(stand_in, url)) >= count:
                signal.pthread_kill(main, signal.SIGALRM)
                return

    watcher = threading.Thread(target=press)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGALRM, before)
