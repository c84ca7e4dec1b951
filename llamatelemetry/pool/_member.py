"""One server of a pool: started, watched, and started again when it dies."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping

from llamatelemetry._deadline import Deadline
from llamatelemetry._http import HTTPClient
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import (
    ClientError,
    ConnectionFailedError,
    ServerNotRunningError,
    ServerTimeoutError,
)
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.events import LoadProgress
from llamatelemetry.server.manager import ServerManager
from llamatelemetry.server.state import ServerState
from llamatelemetry.server.status import ServerStatus

_LOOK_SECONDS = 0.1
"""How often it is asked whether the server still runs."""

_FIRST_DELAY = 0.5
_LONGEST_DELAY = 60.0
"""Seconds before a restart: the first, and at most; each is twice the one before."""

_STABLE_SECONDS = 60.0
"""A server that was ready this long begins with the first delay again."""

_LOG_TAIL = 2000  # characters of a log in an error


class Member:
    """Keeps one server alive, in a thread of its own, and counts what it is sent.

    Args:
        number: Its place in the pool.
        config: What it is started with.
        manager: What runs it.
        changed: Called, from any thread, whenever it may have become ready or failed.
        headers: Sent with each request: the key.
    """

    def __init__(
        self,
        number: int,
        config: ServerConfig,
        manager: ServerManager,
        *,
        changed: Callable[[Member], None],
        headers: Mapping[str, str],
    ) -> None:
        self.number = number
        self.config = config
        self.manager = manager
        self.slots = config.parallel
        self.in_flight = 0
        self.requests = 0
        self.restarts = 0
        self.error: Exception | None = None
        self._changed = changed
        self._headers = dict(headers)
        self._serving_pid: int | None = None  # None: it is not sent anything
        self._is_coming_back = False
        self._ready_since = 0.0
        self._suspected_at = 0.0
        self._ending = threading.Event()
        self._begun = threading.Event()
        self._http: HTTPClient | None = None
        self._http_lock = threading.Lock()
        self._lora_lock = threading.RLock()  # guards the two below
        self._scales: dict[int, float] | None = None
        self._has_scales: tuple[int | None, dict[int, float]] | None = None
        self._thread: threading.Thread | None = None

    # ── look ─────────────────────────────────────────────────────────────────────

    @property
    def is_ready(self) -> bool:
        """Whether it can be sent requests, asked for now."""
        serving = self._serving_pid
        return (
            serving is not None
            and self.manager.state is ServerState.READY
            and self.manager.pid == serving
        )

    @property
    def has_begun(self) -> bool:
        """Whether its first start has come to its end, good or bad."""
        return self._begun.is_set()

    @property
    def is_ending(self) -> bool:
        """Whether it was told to end."""
        return self._ending.is_set()

    @property
    def is_kept(self) -> bool:
        """Whether it is ready or will be again, unless it is stopped."""
        thread = self._thread
        return (
            thread is not None
            and thread.is_alive()
            and not self._ending.is_set()
            and (self._is_coming_back or self.manager.state is not ServerState.STOPPED)
        )

    @property
    def load(self) -> float:
        """Requests it has for each of its slots."""
        return self.in_flight / self.slots

    @property
    def has_queue(self) -> bool:
        """Whether one more request would have to wait."""
        return self.in_flight >= self.slots

    @property
    def http(self) -> HTTPClient:
        """The connections to it, made anew after each start."""
        with self._http_lock:
            url = self.manager.get_url()
            if self._http is None or self._http.base_url != url:
                self._http = HTTPClient(url, headers=self._headers)
            return self._http

    def suspect(self) -> None:
        """Note that it broke a connection: it gets nothing until it was looked at.

        Of a process that was killed, the sockets are closed before its end is known.
        """
        self._suspected_at = time.monotonic()
        self._serving_pid = None
        self._drop_connections()

    def status(self) -> ServerStatus:
        """Return what it is doing."""
        url = None
        with contextlib.suppress(ServerNotRunningError):
            url = self.manager.get_url()
        return ServerStatus(
            server=self.number,
            state=self.manager.state,
            ready=self.is_ready,
            url=url,
            pid=self.manager.pid,
            cards=self.config.visible_devices,
            slots=self.slots,
            in_flight=self.in_flight,
            requests=self.requests,
            restarts=self.restarts,
            error=self.error,
        )

    # ── adapters ─────────────────────────────────────────────────────────────────

    def set_lora_scales(self, scales: Mapping[int, float]) -> None:
        """Set how strongly adapters are applied, now and after each start.

        Raises:
            ClientError: The server refuses them, and keeps what it had; or it is
                silent.
        """
        with self._lora_lock:
            before, self._scales = self._scales, dict(scales)
            if self.manager.state is not ServerState.READY:
                return  # it gets them before it is sent anything
            try:
                self._apply_scales()
            except ConnectionFailedError:
                self.suspect()  # it has died, and gets them when it is back
            except ClientError:
                self._scales = before
                raise

    def _apply_scales(self) -> None:
        """Give the running process the scales that were set, if it lacks them."""
        with self._lora_lock:
            wanted = (self.manager.pid, self._scales or {})
            if self._scales is None or self._has_scales == wanted:
                return
            url = self.manager.get_url()
            with LlamaCppClient(url, self.config.api_key) as client:
                client.set_lora_adapters(self._scales)
            self._has_scales = wanted

    # ── live ─────────────────────────────────────────────────────────────────────

    def start(self, report: Callable[[LoadProgress], None], timeout: float) -> None:
        """Start the server in a thread, and keep it alive from then on.

        Args:
            report: Called with each step of loading.
            timeout: Seconds to wait for it to become ready.
        """
        self._ending.clear()
        self._begun.clear()
        self.error = None
        self._thread = threading.Thread(
            target=self._live,
            args=(report, timeout),
            name=f"llamatelemetry-pool-{self.number}",
            daemon=True,
        )
        self._thread.start()

    def end(self) -> None:
        """Send it nothing more, and do not start it again."""
        self._ending.set()
        self._serving_pid = None
        self._changed(self)

    def stop(self) -> None:
        """Stop the server and do not start it again; quiet if it does not run."""
        self.end()
        self.manager.stop()
        thread = self._thread
        while thread is not None and thread.is_alive():
            self.manager.stop()  # also what the thread has just started
            thread.join(_LOOK_SECONDS)
        self._drop_connections()
        self._changed(self)

    def _live(self, report: Callable[[LoadProgress], None], timeout: float) -> None:
        if not self._begin(report, timeout):
            return  # whoever started the pool is told, and nothing is tried again
        delay = _FIRST_DELAY
        while self._watch():
            self.error = self.manager.error
            stable = time.monotonic() - self._ready_since > _STABLE_SECONDS
            delay = _FIRST_DELAY if stable else delay
            self._is_coming_back, left = True, ServerState.FAILED
            while not self._rest(delay, left):
                delay = min(2 * delay, _LONGEST_DELAY)
                if self.manager.state is not left:
                    break  # its user has started or stopped it
                self.restarts += 1
                if self._come_back():
                    break
                left = self.manager.state
            self._is_coming_back = False

    def _rest(self, seconds: float, left: ServerState) -> bool:
        """Wait before a start, until its user acts; return whether it is to end."""
        rest = Deadline.after(seconds)
        while not self._ending.wait(min(_LOOK_SECONDS, rest.remaining)):
            if rest.expired or self.manager.state is not left:
                return False
        return True

    def _begin(self, report: Callable[[LoadProgress], None], timeout: float) -> bool:
        """Start for the first time; return whether it became ready."""
        manager, serves = self.manager, False
        error: Exception | None = None
        try:
            manager.start_with_config(self.config)
            if manager.wait_until_ready(timeout, progress=report):
                serves = self._serve()
            else:
                error = manager.error or self._too_late(timeout)
        except Exception as caught:  # noqa: BLE001 - raised again by whoever starts it
            error = caught
        if not self._ending.is_set():
            self.error = error
        self._begun.set()
        self._changed(self)
        return serves

    def _too_late(self, timeout: float) -> ServerTimeoutError:
        return ServerTimeoutError(
            f"server {self.number} of the pool was not ready in {timeout:g} s; a large "
            "model may need more: ServerPool(config, timeout=...)",
            log_tail=self.manager.get_logs()[-_LOG_TAIL:],
        )

    def _come_back(self) -> bool:
        """Start again; return whether it is ready. What could not be, is stopped."""
        try:
            self.manager.restart()
            self._drop_connections()
            return self._serve()
        except Exception as error:  # noqa: BLE001 - told in status(), and tried again
            if not self._ending.is_set():
                self.error = error
            self.manager.stop()
        return False

    def _serve(self) -> bool:
        """Have it sent requests from now on; return whether that is wanted.

        Raises:
            ClientError: It does not take the adapters' scales.
        """
        self._changed(self)  # what an earlier process has read is not in this one
        self._apply_scales()
        self._ready_since = time.monotonic()
        self.error = None
        self._serving_pid = self.manager.pid
        if self._ending.is_set():
            self._serving_pid = None
        self._changed(self)
        return not self._ending.is_set()

    def _watch(self) -> bool:
        """Wait while it runs; return whether it has failed and must come back."""
        while not self._ending.wait(_LOOK_SECONDS):
            try:
                if self._has_failed():
                    return True
            except Exception as error:  # noqa: BLE001 - told, and looked at again
                self.error = error
        return False

    def _has_failed(self) -> bool:
        """Look at it once; serve one that is ready and was suspected, or is new."""
        state = self.manager.state
        if state is ServerState.FAILED:
            self._serving_pid = None
            self._changed(self)
            return True
        if state is ServerState.STARTING:  # by its user, who need not wait for it
            self.manager.wait_until_ready(_LOOK_SECONDS)
        rested = time.monotonic() - self._suspected_at > _LOOK_SECONDS
        if state is ServerState.READY and not self.is_ready and rested:
            self._serve()
        return False

    def _drop_connections(self) -> None:
        """Close the connections to a process that is gone."""
        with self._http_lock:
            http, self._http = self._http, None
        if http is not None:
            http.close()
