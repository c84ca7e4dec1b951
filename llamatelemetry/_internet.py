"""Whether there is internet: asked once, beside other work, and never waited for long.

The answer is a hint. It decides what is tried first and what a message says; it does
not forbid a download that somebody asked for.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

__all__ = ["Internet", "Probe", "offline_variable", "start_probe"]

_MOST_SECONDS = 2.0
_KEPT_SECONDS = 15.0
"""How long "no" is kept; "yes" is kept for the process."""
_DEFAULT_ENDPOINT = "https://huggingface.co"
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = {"1", "ON", "YES", "TRUE"}
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Internet:
    """What the probe found.

    Attributes:
        available: Whether the Hub's address can be connected to; None if nobody knows:
            not asked, or no answer in time.
        reason: That in words.
        seconds: How long it took.
    """

    available: bool | None
    reason: str
    seconds: float = 0.0


class _Probe:
    """One look at one address, in a thread of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._place = (host, port)
        self._found: Internet | None = None
        self._done = threading.Event()
        self._began = time.monotonic()
        threading.Thread(
            target=self._look, name="llamatelemetry-internet", daemon=True
        ).start()

    def result(self) -> Internet:
        """Return what was found; waits two seconds from the start at most."""
        left = self._began + _MOST_SECONDS - time.monotonic()
        self._done.wait(max(0.0, left))
        if self._found is not None:
            return self._found
        host = self._place[0]
        return Internet(None, f"no answer from {host} in 2 s", _MOST_SECONDS)

    @property
    def stale(self) -> bool:
        """Whether it found nothing, some time ago: internet may have come since."""
        old = time.monotonic() - self._began > _KEPT_SECONDS
        return old and (self._found is None or not self._found.available)

    def _look(self) -> None:
        host, port = self._place
        try:
            # All addresses of the name are tried within the one limit of the waiter.
            with socket.create_connection((host, port), timeout=_MOST_SECONDS):
                found: tuple[bool | None, str] = (True, f"{host} can be reached")
        except (socket.gaierror, UnicodeError):  # the second: no name at all
            found = (False, f"the name {host} cannot be resolved")
        except TimeoutError:
            found = (None, f"no answer from {host} in 2 s")
        except OSError as error:
            found = (False, f"no connection to {host}: {error.strerror or error}")
        self._found = Internet(*found, time.monotonic() - self._began)
        self._done.set()


@dataclass(frozen=True, slots=True)
class _Known:
    found: Internet

    def result(self) -> Internet:
        return self.found


class Probe(Protocol):
    """A look at the network that is under way, or that nobody has to take."""

    def result(self) -> Internet:
        """Return what was found; waits two seconds at most."""


_probes: dict[tuple[str, int], _Probe] = {}
_lock = threading.Lock()


def offline_variable(variables: Mapping[str, str] | None = None) -> str | None:
    """Return the variable that forbids to ask the Hub, HF_HUB_OFFLINE say, or None."""
    known = os.environ if variables is None else variables
    for name in _OFFLINE_VARIABLES:
        if known.get(name, "").upper() in _TRUE:
            return name
    return None


def start_probe(
    endpoint: str | None = None, *, variables: Mapping[str, str] | None = None
) -> Probe:
    """Begin to find out whether there is internet; one probe for the process.

    The Hub's host is looked up and connected to, or the proxy that leads to it. Nothing
    is sent. With HF_HUB_OFFLINE nothing is asked.

    Args:
        endpoint: The Hub's address. None: HF_ENDPOINT, or the Hub's own.
        variables: The environment. None: this process's.

    Returns:
        What has a ``result()``, which waits two seconds at most.
    """
    known = os.environ if variables is None else variables
    forbidden = offline_variable(known)
    if forbidden is not None:
        return _Known(Internet(None, f"{forbidden} is set, so nothing is asked"))
    place = _place_to_ask(
        endpoint or known.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT, known
    )
    with _lock:
        probe = _probes.get(place)
        if probe is None or probe.stale:
            probe = _probes[place] = _Probe(*place)
    return probe


def _no_proxy(known: Mapping[str, str]) -> str:
    return known.get("no_proxy") or known.get("NO_PROXY") or ""


def _place_to_ask(endpoint: str, known: Mapping[str, str]) -> tuple[str, int]:
    """Return the Hub's host and port, or those of the proxy before it."""
    scheme, host = urlsplit(endpoint).scheme, urlsplit(endpoint).hostname or ""
    if proxy_bypass(host, {"no": _no_proxy(known)}):
        known = {}
    for name in (f"{scheme}_proxy", "all_proxy"):
        proxy = known.get(name) or known.get(name.upper())
        if proxy:
            endpoint = proxy if "//" in proxy else f"//{proxy}"
            break
    parts = urlsplit(endpoint)
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.hostname or "huggingface.co", port or _PORTS.get(parts.scheme, 443)
