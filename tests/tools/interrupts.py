"""Ctrl-C at every moment of a server's life: ``interrupts.py SCENARIO MODEL``.

Ends with an error if anything is left, or if a manager cannot be used any more.
"""

from __future__ import annotations

import random
import signal
import sys
import time

from manager_tools import STAND_IN, children, wait_for

from llamatelemetry.server import ServerConfig, ServerManager, ServerState


class Interrupted:
    """Raises KeyboardInterrupt in the main thread after a while, once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


def make(mode: str, config: ServerConfig) -> ServerManager:
    """Make a manager of the stand-in engine."""
    return ServerManager(config, engine=[sys.executable, str(STAND_IN), mode])


def any_moment(config: ServerConfig) -> None:
    """Interrupt 60 lives at random moments: no server is left."""
    with make("good", config):  # so that help is known and modules are loaded
        pass
    interrupted = 0
    for _ in range(60):
        server = make("good", config)
        try:
            with Interrupted(random.uniform(0.0005, 0.3)), server:
                time.sleep(0.02)
        except KeyboardInterrupt:
            interrupted += 1
        if server.state in (ServerState.STARTING, ServerState.STOPPING):
            server.stop()  # the interrupt struck between two lines of `with` itself
        wait_for(lambda: children() == [])
    assert interrupted > 10


def stopping(config: ServerConfig) -> None:
    """Interrupt a stop: the server is killed at once, the manager can be used again."""
    server = make("immortal", config)
    server.restart()
    try:
        with Interrupted(0.3):
            server.stop()
        raise AssertionError("nothing was interrupted")
    except KeyboardInterrupt:
        assert children() == []
    server.stop()
    assert server.state is ServerState.STOPPED
    server.restart()
    assert server.state is ServerState.READY


def waiting(config: ServerConfig) -> None:
    """Interrupt a wait: it goes on loading; in `with` it is stopped."""
    server = make("mute", config)
    server.start_with_config(config)
    try:
        with Interrupted(0.3):
            server.wait_until_ready(60)
        raise AssertionError("nothing was interrupted")
    except KeyboardInterrupt:
        assert server.state is ServerState.STARTING
    server.stop()
    try:
        with Interrupted(0.5), server:
            raise AssertionError("a mute server was ready")
    except KeyboardInterrupt:
        assert server.state is ServerState.STOPPED
        assert children() == []


if __name__ == "__main__":
    scenarios = {"any_moment": any_moment, "stopping": stopping, "waiting": waiting}
    scenarios[sys.argv[1]](ServerConfig(sys.argv[2], port=0))
