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
    ├─ BatchError
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
    "BatchError",
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
    """Base of every error of this package.

    Args:
        message: What happened, where, and what to do.

    Example:
        >>> from llamatelemetry import ServerConfig
        >>> from llamatelemetry.exceptions import LLCudaError
        >>> try:
        ...     ServerConfig("model.gguf", context_size=-1)
        ... except LLCudaError as error:
        ...     print(type(error).__name__, error)
        ConfigurationError context_size cannot be -1; ...
    """

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
    """A value that cannot work; says which one, and what is allowed.

    Example:
        >>> from llamatelemetry import ServerConfig
        >>> from llamatelemetry.exceptions import ConfigurationError
        >>> try:
        ...     ServerConfig("model.gguf", ctx_size=8192)
        ... except ConfigurationError as error:
        ...     print(error)
        ServerConfig has no field 'ctx_size'; did you mean 'context_size'?
    """


class ModelError(LLCudaError):
    """The model is missing, not GGUF, truncated, unsupported, or does not fit.

    Example:
        >>> from llamatelemetry.exceptions import ModelError
        >>> from llamatelemetry.gguf import read_header
        >>> try:
        ...     read_header("missing.gguf")
        ... except ModelError as error:
        ...     print(error)
        missing.gguf: no such file. Give the path of a GGUF file, ...
    """


class GGUFError(ModelError, ValueError):
    """The bytes are not a GGUF file that can be read.

    Attributes:
        path: The file or URL, or None for bytes in memory.
        offset: Where in the file, in bytes, or None.

    Example:
        >>> from pathlib import Path
        >>> from llamatelemetry.exceptions import GGUFError
        >>> from llamatelemetry.gguf import read_header
        >>> size = Path("page.gguf").write_text("<html>404 Not Found</html>")
        >>> try:
        ...     read_header("page.gguf")
        ... except GGUFError as error:
        ...     print(error.path, error.offset)
        page.gguf 0
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

    Example:
        >>> from llamatelemetry.api import kaggle_t4_dual_config
        >>> from llamatelemetry.exceptions import OutOfMemoryError
        >>> try:
        ...     kaggle_t4_dual_config("model.gguf", context_size=90_000_000)
        ... except OutOfMemoryError as error:
        ...     print(error.needed > error.free, error.suggestion)
        True ...
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
    """Something about the server process.

    Example:
        >>> from llamatelemetry.exceptions import ServerError
        >>> try:
        ...     server.start_with_config(server.config)
        ... except ServerError as error:
        ...     print(error)
        this server is running already at http://127.0.0.1:...
    """


class EngineNotFoundError(ServerError):
    """No llama-server program could be found, or the one named cannot run.

    Example:
        >>> from llamatelemetry.exceptions import EngineNotFoundError
        >>> from llamatelemetry.server import find_engine
        >>> try:
        ...     find_engine("/opt/llama.cpp/llama-server")
        ... except EngineNotFoundError as error:
        ...     print(error)
        the engine is '/opt/llama.cpp/llama-server', but there is no such program...
    """


class PortInUseError(ServerError):
    """Something else listens on the port.

    Attributes:
        port: The port asked for.
        holder: Who holds it ("pid 41, python3 -m http.server"), or None if hidden.

    Example:
        >>> from llamatelemetry import ServerConfig, ServerManager
        >>> from llamatelemetry.exceptions import PortInUseError
        >>> taken = server.config.port
        >>> try:
        ...     ServerManager(ServerConfig("model.gguf", port=taken)).restart()
        ... except PortInUseError as error:
        ...     print(error.port == taken)
        True
    """

    def __init__(self, message: str, *, port: int, holder: str | None = None) -> None:
        super().__init__(message)
        self.port = port
        self.holder = holder


class ServerStartError(ServerError):
    """The server process ended by itself, or could not be started.

    Attributes:
        command: The program and its arguments; never holds a key.
        exit_code: What it exited with; negative for a signal; None if it never ran.
        log_tail: The last lines of its log.

    Example:
        >>> import os, signal
        >>> from llamatelemetry import ServerConfig, ServerManager
        >>> with ServerManager(ServerConfig("model.gguf", port=0)) as manager:
        ...     os.kill(manager.pid, signal.SIGKILL)  # as the kernel does at last
        ...     while manager.is_running():
        ...         pass
        ...     print(type(manager.error).__name__, manager.error.exit_code)
        ServerStartError -9
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

    Example:
        >>> from llamatelemetry import ServerConfig, ServerManager
        >>> from llamatelemetry.exceptions import ServerTimeoutError
        >>> config = ServerConfig("model.gguf", port=0)
        >>> try:
        ...     with ServerManager(config, timeout=0.001) as server:
        ...         print(server.get_url())
        ... except ServerTimeoutError as error:
        ...     print(error)
        the server was not ready in 0.001 s...
    """

    def __init__(self, message: str, *, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail


class ServerNotRunningError(ServerError):
    """An operation that needs a running server was called without one.

    Example:
        >>> from llamatelemetry import ServerManager
        >>> from llamatelemetry.exceptions import ServerNotRunningError
        >>> try:
        ...     ServerManager().get_url()
        ... except ServerNotRunningError as error:
        ...     print(error)
        nothing was started, so there is no URL yet; call start_with_config
    """


class ClientError(LLCudaError):
    """A request failed.

    Attributes:
        status: The HTTP status, or None if no answer came.
        type: The server's own error type ("exceed_context_size_error"), or None.
        message: The server's own message, or what happened here.

    Example:
        >>> from llamatelemetry.exceptions import ClientError
        >>> try:
        ...     client.rerank("What is GGUF?", ["A file format."])
        ... except ClientError as error:
        ...     print(error.status, error.type)
        501 not_supported_error
    """

    def __init__(
        self, message: str, *, status: int | None = None, type: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type


class ConnectionFailedError(ClientError, ConnectionError):
    """No connection to the server, or it broke before an answer came.

    Example:
        >>> from llamatelemetry import LlamaCppClient
        >>> from llamatelemetry.exceptions import ConnectionFailedError
        >>> try:
        ...     LlamaCppClient("http://127.0.0.1:9").health()
        ... except ConnectionFailedError as error:  # or ConnectionError
        ...     print("nothing listens there")
        nothing listens there
    """


class RequestTimeoutError(ClientError, TimeoutError):
    """The server was silent, or the whole request took, longer than allowed.

    Example:
        >>> from llamatelemetry.exceptions import RequestTimeoutError
        >>> hasty = client.with_options(total_timeout=0.0001)
        >>> try:
        ...     hasty.completion("The KV cache", max_tokens=200)
        ... except RequestTimeoutError as error:  # or TimeoutError
        ...     print("it took too long")
        it took too long
    """


class AuthenticationError(ClientError):
    """The server wants an API key, or another one.

    Example:
        >>> from llamatelemetry import LlamaCppClient, ServerConfig, ServerManager
        >>> from llamatelemetry.exceptions import AuthenticationError
        >>> config = ServerConfig("model.gguf", port=0, api_key="a secret")
        >>> with ServerManager(config) as locked:
        ...     try:
        ...         LlamaCppClient(locked.get_url()).get_props()
        ...     except AuthenticationError as error:
        ...         print(error.status)
        401
    """


class ContextLengthError(ClientError):
    """The prompt is longer than one slot's context.

    Attributes:
        prompt_tokens: Tokens in the prompt, or None if not told.
        context_size: Tokens one slot can hold, or None if not told.

    Example:
        >>> from llamatelemetry.exceptions import ContextLengthError
        >>> try:
        ...     client.completion("word " * 2000)
        ... except ContextLengthError as error:
        ...     print(error.prompt_tokens > error.context_size, error.context_size)
        True 512
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

    Example:
        >>> from llamatelemetry.exceptions import NotSupportedError
        >>> try:
        ...     client.rerank("What is GGUF?", ["A file format."])
        ... except NotSupportedError as error:
        ...     print(error.flag)
        --reranking
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

    Example:
        >>> from llamatelemetry.exceptions import StreamError
        >>> messages = [{"role": "user", "content": "What is GGUF?"}]
        >>> stream = client.chat_completion_stream(messages, temperature=0)
        >>> try:
        ...     for chunk in stream:
        ...         pass
        ... except StreamError as error:
        ...     print("what had come:", error.partial)
        >>> stream.text
        "GGUF is a file format ..."
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


class BatchError(LLCudaError):
    """A batch cannot go on; what was answered is kept in its file.

    Attributes:
        results: The results so far, or None where there are none to be had.

    Args:
        message: What happened, and how to go on.
        results: The results so far.

    Example:
        >>> from llamatelemetry.exceptions import BatchError
        >>> try:
        ...     raise BatchError("the server is gone; 12 of 20 rows are kept")
        ... except BatchError as error:
        ...     error.results is None
        True
    """

    def __init__(self, message: str, *, results: Any = None) -> None:
        super().__init__(message)
        self.results = results


class SetupError(LLCudaError):
    """Getting an engine or a model failed.

    Example:
        >>> from llamatelemetry import ensure_model
        >>> from llamatelemetry.exceptions import SetupError
        >>> try:
        ...     path = ensure_model("qwen3-4b").path
        ... except SetupError as error:  # no room, no internet, a licence, ...
        ...     path = "model.gguf"
    """


class DownloadError(SetupError, OSError):
    """A download could not be started or finished.

    Example:
        >>> from llamatelemetry import ensure_engine
        >>> from llamatelemetry.exceptions import DownloadError
        >>> try:
        ...     engine = ensure_engine()
        ... except DownloadError as error:  # or OSError
        ...     print("run the cell again; it goes on where it stopped:", error)
    """


class ChecksumError(SetupError):
    """The bytes are not the ones that were pinned.

    Attributes:
        expected: The SHA-256 that was pinned, in hex.
        actual: The SHA-256 of what came, in hex.

    Example:
        >>> from llamatelemetry.exceptions import ChecksumError
        >>> try:
        ...     raise ChecksumError("other bytes", expected="9f86d0", actual="60303a")
        ... except ChecksumError as error:
        ...     print(f"{error.expected} was pinned, {error.actual} came")
        9f86d0 was pinned, 60303a came
    """

    def __init__(self, message: str, *, expected: str, actual: str) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class UnsafeArchiveError(SetupError):
    """An archive tries to leave its folder, or unpacks to more than is allowed.

    Example:
        >>> from llamatelemetry import ensure_engine
        >>> from llamatelemetry.exceptions import UnsafeArchiveError
        >>> try:
        ...     engine = ensure_engine()
        ... except UnsafeArchiveError as error:
        ...     print("nothing was unpacked; do not use this archive:", error)
    """


class GatedModelError(SetupError):
    """The model's licence must be accepted on its page, or a token is needed.

    Example:
        >>> from llamatelemetry import ensure_model
        >>> from llamatelemetry.exceptions import GatedModelError
        >>> try:
        ...     model = ensure_model("llama-3.1-8b")
        ... except GatedModelError as error:
        ...     print("accept the licence on the model's page first:", error)
    """


class DiskSpaceError(SetupError):
    """There is not enough room for what would be written.

    Attributes:
        needed: Bytes needed.
        free: Bytes free.

    Example:
        >>> from llamatelemetry import ensure_model
        >>> from llamatelemetry.exceptions import DiskSpaceError
        >>> try:
        ...     model = ensure_model("qwen3-4b")
        ... except DiskSpaceError as error:
        ...     print(f"{error.needed - error.free:,} bytes too few")
    """

    def __init__(self, message: str, *, needed: int, free: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.free = free


class OfflineError(SetupError):
    """There is no internet here, and what was asked for is not on this machine.

    Example:
        >>> from llamatelemetry import ensure_model
        >>> from llamatelemetry.exceptions import OfflineError
        >>> try:
        ...     model = ensure_model("qwen3-4b")
        ... except OfflineError as error:
        ...     print("turn the internet on, or attach the model:", error)
    """


class SetupWarning(UserWarning):
    """Something about an engine or a model that one should know; nothing failed.

    Example:
        >>> import warnings
        >>> from llamatelemetry import ensure_model
        >>> from llamatelemetry.exceptions import SetupWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", SetupWarning)
        ...     model = ensure_model("qwen3-4b")
    """
