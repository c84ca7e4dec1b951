"""Every error this package raises, in one tree.

::

    LLCudaError
    ├─ ConfigurationError(ValueError)
    ├─ ModelError
    │  ├─ GGUFError(ValueError)
    │  └─ OutOfMemoryError
    ├─ ServerError
    │  ├─ EngineNotFoundError
    │  ├─ PortInUseError
    │  ├─ ServerStartError
    │  ├─ ServerTimeoutError(TimeoutError)
    │  └─ ServerNotRunningError
    ├─ ClientError
    │  ├─ ConnectionFailedError(ConnectionError)
    │  ├─ RequestTimeoutError(TimeoutError)
    │  ├─ AuthenticationError
    │  ├─ ContextLengthError
    │  ├─ NotSupportedError
    │  └─ StreamError
    └─ SetupError
       ├─ DownloadError(OSError)
       ├─ ChecksumError
       ├─ UnsafeArchiveError
       ├─ GatedModelError
       ├─ DiskSpaceError
       └─ OfflineError

The base's name is the API reference's; most errors have nothing to do with CUDA. What
one should know though nothing failed is a SetupWarning.

Each message says what happened, where, and what to do. The evidence is kept on the
error as attributes: the command, the exit code, the last log lines, the bytes
expected and got. An error that is also a builtin one (``ValueError``,
``TimeoutError``, ``ConnectionError``, ``OSError``) can be caught as that too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "AuthenticationError",
    "ChecksumError",
    "ClientError",
    "ConfigurationError",
    "ConnectionFailedError",
    "ContextLengthError",
    "DiskSpaceError",
    "DownloadError",
    "EngineNotFoundError",
    "GGUFError",
    "GatedModelError",
    "LLCudaError",
    "ModelError",
    "NotSupportedError",
    "OfflineError",
    "OutOfMemoryError",
    "PortInUseError",
    "RequestTimeoutError",
    "ServerError",
    "ServerNotRunningError",
    "ServerStartError",
    "ServerTimeoutError",
    "SetupError",
    "SetupWarning",
    "StreamError",
    "UnsafeArchiveError",
]


class LLCudaError(Exception):
    """Base of every error of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception would call the class with its arguments alone, without the names.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    kind: type[LLCudaError], arguments: tuple[Any, ...], state: dict[str, Any]
) -> LLCudaError:
    """Make an error again that was pickled or copied."""
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    return error


class ConfigurationError(LLCudaError, ValueError):
    """A value that cannot work; says which one, and what is allowed."""


class ModelError(LLCudaError):
    """The model is missing, not GGUF, truncated, unsupported, or does not fit."""


class GGUFError(ModelError, ValueError):
    """The bytes are not a GGUF file that can be read.

    Attributes:
        path: The file or URL, or None for bytes in memory.
        offset: Where in the file, in bytes, or None.
    """

    def __init__(
        self, message: str, *, path: str | None = None, offset: int | None = None
    ) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset


class OutOfMemoryError(ModelError):
    """A device has less memory than the model with this configuration needs.

    Attributes:
        device: The device as the engine names it ("CUDA0"), or None if not told.
        needed: Bytes asked for, or None if not told.
        free: Bytes that were free, or None if not told.
        suggestion: The nearest configuration that fits, in words, or None.
        largest_context: The largest context that fits, over all slots; 0 if none; None
            if not known. From a placement, whose contexts are for each request, it is
            for each request: what the call that failed would have taken.
    """

    def __init__(
        self,
        message: str,
        *,
        device: str | None = None,
        needed: int | None = None,
        free: int | None = None,
        suggestion: str | None = None,
        largest_context: int | None = None,
    ) -> None:
        super().__init__(message)
        self.device = device
        self.needed = needed
        self.free = free
        self.suggestion = suggestion
        self.largest_context = largest_context


class ServerError(LLCudaError):
    """Something about the server process."""


class EngineNotFoundError(ServerError):
    """No llama-server program could be found, or the one named cannot run."""


class PortInUseError(ServerError):
    """Something else listens on the port.

    Attributes:
        port: The port asked for.
        holder: Who holds it ("pid 41, python3 -m http.server"), or None if hidden.
    """

    def __init__(self, message: str, *, port: int, holder: str | None = None) -> None:
        super().__init__(message)
        self.port = port
        self.holder = holder


class ServerStartError(ServerError):
    """The server process ended before it was ready, or could not be started.

    Attributes:
        command: The program and its arguments; never holds a key.
        exit_code: What it exited with; negative for a signal; None if it never ran.
        log_tail: The last lines of its log.
    """

    def __init__(
        self,
        message: str,
        *,
        command: Sequence[str] = (),
        exit_code: int | None = None,
        log_tail: str = "",
    ) -> None:
        super().__init__(message)
        self.command = tuple(command)
        self.exit_code = exit_code
        self.log_tail = log_tail


class ServerTimeoutError(ServerError, TimeoutError):
    """A server, or the processes of a group, were not ready in the time given.

    Attributes:
        log_tail: The last lines of its log.
    """

    def __init__(self, message: str, *, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail


class ServerNotRunningError(ServerError):
    """An operation that needs a running server was called without one."""


class ClientError(LLCudaError):
    """A request failed.

    Attributes:
        status: The HTTP status, or None if no answer came.
        type: The server's own error type ("exceed_context_size_error"), or None.
        message: The server's own message, or what happened here.
    """

    def __init__(
        self, message: str, *, status: int | None = None, type: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type


class ConnectionFailedError(ClientError, ConnectionError):
    """No connection to the server, or it broke before an answer came."""


class RequestTimeoutError(ClientError, TimeoutError):
    """The server was silent, or the whole request took, longer than allowed."""


class AuthenticationError(ClientError):
    """The server wants an API key, or another one."""


class ContextLengthError(ClientError):
    """The prompt is longer than one slot's context.

    Attributes:
        prompt_tokens: Tokens in the prompt, or None if not told.
        context_size: Tokens one slot can hold, or None if not told.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        prompt_tokens: int | None = None,
        context_size: int | None = None,
    ) -> None:
        super().__init__(message, status=status, type=type)
        self.prompt_tokens = prompt_tokens
        self.context_size = context_size


class NotSupportedError(ClientError):
    """The server runs without the feature asked for.

    Attributes:
        flag: The flag that turns it on ("--embeddings"), or None if not known.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        flag: str | None = None,
    ) -> None:
        super().__init__(message, status=status, type=type)
        self.flag = flag


class StreamError(ClientError):
    """A stream told an error, or ended without its end.

    Attributes:
        partial: What had come by then: the response as far as it got, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        partial: Any = None,
    ) -> None:
        super().__init__(message, status=status, type=type)
        self.partial = partial


class SetupError(LLCudaError):
    """Getting an engine or a model failed."""


class DownloadError(SetupError, OSError):
    """A download could not be started or finished."""


class ChecksumError(SetupError):
    """The bytes are not the ones that were pinned.

    Attributes:
        expected: The SHA-256 that was pinned, in hex.
        actual: The SHA-256 of what came, in hex.
    """

    def __init__(self, message: str, *, expected: str, actual: str) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class UnsafeArchiveError(SetupError):
    """An archive tries to leave its folder, or unpacks to more than is allowed."""


class GatedModelError(SetupError):
    """The model's licence must be accepted on its page, or a token is needed."""


class DiskSpaceError(SetupError):
    """There is not enough room for what would be written.

    Attributes:
        needed: Bytes needed.
        free: Bytes free.
    """

    def __init__(self, message: str, *, needed: int, free: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.free = free


class OfflineError(SetupError):
    """There is no internet here, and what was asked for is not on this machine."""


class SetupWarning(UserWarning):
    """Something about an engine or a model that one should know; nothing failed."""
