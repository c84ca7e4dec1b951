"""A front end without a page: it speaks the protocol with a real kernel.

It runs cells, sends what a browser sends when a user clicks while a cell runs, and
keeps all that the kernel publishes, with its bytes. The kernel has this program's
environment (its ``PYTHONPATH`` above all), so a test runs on whatever versions it has.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0  # seconds
_POLL = 0.02


@dataclass(frozen=True)
class Published:
    """One message that the kernel published, or a reply to a request."""

    kind: str
    """``comm_open``, ``comm_msg``, ``stream``, ``status``, ``execute_reply``..."""
    content: dict[str, Any]
    parent: str
    """The id of the request that it belongs to."""
    size: int
    """Bytes of its content as JSON and of its buffers."""
    received: float
    """When it came, on the monotonic clock."""

    @property
    def state(self) -> dict[str, Any]:
        """The traits that a widget's message sets, without those in buffers."""
        state: dict[str, Any] = self.content.get("data", {}).get("state", {})
        return state


def _measured() -> dict[str, str]:
    """Return what makes a kernel measure coverage, if this process does."""
    measuring = sys.modules.get("coverage")
    current = None if measuring is None else measuring.Coverage.current()
    if current is None:
        return {}
    beside = current.get_option("run:data_file")  # all that begin so are combined
    return {
        "COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"),
        "COVERAGE_FILE": f"{beside}.kernel-{uuid.uuid4().hex}",
    }


class KernelClient:
    """A kernel of its own, started and shut down with the ``with`` block."""

    def __init__(self, **environment: str) -> None:
        self._environment = os.environ | environment
        self._environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, (os.environ.get("PYTHONPATH"), str(ROOT)))
        )
        self._environment |= _measured()
        self._manager = KernelManager(kernel_name="python3")
        self._client: BlockingKernelClient | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the rest
        self.published: list[Published] = []
        self.replies: list[Published] = []

    def __enter__(self) -> Self:
        spec = self._manager.kernel_spec
        assert spec is not None
        spec.argv[0] = sys.executable
        self._manager.start_kernel(env=self._environment, stderr=self._log)
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_channels()
        self._manager.shutdown_kernel()
        self._manager.cleanup_resources()
        self._log.close()

    @property
    def client(self) -> BlockingKernelClient:
        """jupyter_client's own client."""
        assert self._client is not None
        return self._client

    @property
    def log(self) -> str:
        """What the kernel itself has complained about."""
        self._log.seek(0)
        return str(self._log.read())

    # ── requests ─────────────────────────────────────────────────────────────────

    def send(self, code: str) -> str:
        """Ask for a cell to be run, and return the request's id without waiting."""
        return str(self.client.execute(code))

    def run(self, code: str) -> list[Published]:
        """Run a cell to its end and return what it published; fail if it failed."""
        request = self.send(code)
        reply = self.reply_to(request)
        assert reply.content["status"] == "ok", "\n".join(reply.content["traceback"])
        self.wait_for(lambda: self.is_over(request))
        return self.of(request)

    def ask(self, kind: str, content: dict[str, Any]) -> str:
        """Send any request on the shell channel, and return its id."""
        message = self.client.session.msg(kind, content)
        self.client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def comm_message(self, comm_id: str, data: dict[str, Any]) -> str:
        """Send a widget what a page would."""
        return self.ask("comm_msg", {"comm_id": comm_id, "data": data})

    def click(self, comm_id: str) -> str:
        """Click a button."""
        content = {"method": "custom", "content": {"event": "click"}}
        return self.comm_message(comm_id, content)

    def change(self, comm_id: str, **state: Any) -> str:
        """Change a control's traits."""
        content = {"method": "update", "state": state, "buffer_paths": []}
        return self.comm_message(comm_id, content)

    def interrupt(self) -> None:
        """Interrupt the running cell, as the stop button of a notebook does."""
        self._manager.interrupt_kernel()

    # ── what the kernel says ─────────────────────────────────────────────────────

    def collect(self, seconds: float = _POLL) -> None:
        """Take in all that comes within a time."""
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            found = self._take(self.client.iopub_channel, self.published, left)
            found |= self._take(self.client.shell_channel, self.replies, 0)
            if not found and not left:
                return

    def _take(self, channel: Any, into: list[Published], seconds: float) -> bool:
        if not channel.socket.poll(int(seconds * 1000)):
            return False
        message = channel.get_msg(timeout=0)
        buffers = sum(len(bytes(buffer)) for buffer in message.get("buffers") or ())
        into.append(
            Published(
                message["header"]["msg_type"],
                message["content"],
                message["parent_header"].get("msg_id", ""),
                len(json.dumps(message["content"]).encode()) + buffers,
                time.monotonic(),
            )
        )
        return True

    def wait_for(self, state: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Take in messages until something holds, and return it."""
        deadline = time.monotonic() + seconds
        while not (found := state()):
            assert time.monotonic() < deadline, self.published[-5:]
            assert self._manager.is_alive(), self.log
            self.collect()
        return found

    def of(self, request: str, kind: str = "") -> list[Published]:
        """Return what was published for one request."""
        return [
            message
            for message in self.published
            if message.parent == request and kind in ("", message.kind)
        ]

    def text_of(self, request: str) -> str:
        """Return what a request has printed so far."""
        return "".join(one.content["text"] for one in self.of(request, "stream"))

    def is_over(self, request: str) -> bool:
        """Whether the kernel has said that it is idle again after a request."""
        return any(
            one.content["execution_state"] == "idle"
            for one in self.of(request, "status")
        )

    def replies_to(self, request: str) -> list[Published]:
        """Return the replies to a request; there should be one."""
        return [reply for reply in self.replies if reply.parent == request]

    def reply_to(self, request: str, seconds: float = PATIENCE) -> Published:
        """Wait for a request's reply."""
        self.wait_for(lambda: self.replies_to(request), seconds)
        return self.replies_to(request)[0]

    # ── widgets ──────────────────────────────────────────────────────────────────

    def opened(self) -> dict[str, dict[str, Any]]:
        """Return the state of each widget as the page would have it now."""
        states: dict[str, dict[str, Any]] = {}
        for message in self.published:
            comm_id = message.content.get("comm_id", "")
            if message.kind == "comm_open":
                states[comm_id] = dict(message.state)
            elif message.kind == "comm_msg" and comm_id in states:
                states[comm_id] |= message.state
            elif message.kind == "comm_close":
                states.pop(comm_id, None)
        return states

    def widget(self, model: str, **traits: Any) -> str:
        """Return the id of the one widget of a class whose traits are these."""
        found = [
            comm_id
            for comm_id, state in self.opened().items()
            if state.get("_model_name") == model
            and all(state.get(name) == value for name, value in traits.items())
        ]
        assert len(found) == 1, f"{len(found)} of {model} {traits} were found"
        return found[0]

    def updates(self, comm_id: str, trait: str = "value") -> list[Published]:
        """Return the messages that set a trait of a widget, its opening left out."""
        return [
            message
            for message in self.published
            if message.kind == "comm_msg"
            and message.content["comm_id"] == comm_id
            and message.content["data"].get("method") == "update"
            and trait in message.state
        ]

    @contextmanager
    def running(self, code: str, until: str = "begun") -> Iterator[str]:
        """Have a cell run meanwhile: the block begins when it has printed a word.

        It ends with the cell, and gets the request's id.
        """
        request = self.send(code)
        self.wait_for(lambda: until in self.text_of(request) or self.is_over(request))
        assert not self.is_over(request), self.of(request)
        yield request
        self.reply_to(request)
        self.wait_for(lambda: self.is_over(request))
