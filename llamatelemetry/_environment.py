"""Where this process runs: Kaggle, Colab or elsewhere; its folders and its token.

Everything is read when asked, nothing at import, and nothing is changed. The variables
are those of Kaggle's and Colab's own images (KAGGLE_KERNEL_RUN_TYPE,
KAGGLE_IS_COMPETITION_RERUN, COLAB_RELEASE_TAG); see
https://github.com/Kaggle/docker-python and https://github.com/googlecolab/backend-info.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import re
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llamatelemetry.exceptions import ConfigurationError

__all__ = [
    "HiddenText",
    "Platform",
    "Token",
    "cache_folder",
    "detect_platform",
    "find_token",
]

CACHE_VARIABLE = "LLAMATELEMETRY_CACHE"
"""The variable that names another folder for engines and records."""

_ROOT = Path("/")
_SENDABLE = re.compile(r"[!-~]+")  # what a header's value may hold, without blanks
_SECRET_NAME = "HF_TOKEN"  # noqa: S105 -- the name of one, not one
_SECRET_SECONDS = 8.0
# Kaggle's own client waits 40 s for an answer that does not come without internet.


@dataclass(frozen=True, slots=True)
class Platform:
    """The kind of machine this process runs on.

    Attributes:
        name: "kaggle", "colab" or "local".
        mode: On Kaggle "interactive", "batch" (Save & Run All) or "rerun" (a
            competition's scoring run); None elsewhere.
        scratch: A folder for what may be lost with the session.
        output: What is kept as the notebook's output; None where nothing is.
        input: The read-only folder of attached datasets; None where there is none.
    """

    name: Literal["kaggle", "colab", "local"]
    mode: Literal["interactive", "batch", "rerun"] | None
    scratch: Path
    output: Path | None
    input: Path | None

    @property
    def title(self) -> str:
        """What messages call it."""
        names = {"kaggle": "Kaggle", "colab": "Colab", "local": "this machine"}
        return names[self.name] + (f" ({self.mode})" if self.mode else "")

    @property
    def internet_advice(self) -> str:
        """What to do where there is no internet."""
        if self.mode == "rerun":
            return "a scoring rerun has no internet: attach a capsule as a dataset"
        if self.name == "kaggle":
            return (
                "turn the internet on (Settings → Internet on, which needs an account "
                "with a verified phone), or attach a capsule as a dataset"
            )
        return "see that this machine has internet, or use a capsule"

    @property
    def token_advice(self) -> str:
        """Where to put a token of the Hub."""
        if self.name == "kaggle":
            return (
                "as the secret HF_TOKEN (Add-ons → Secrets), attached to this notebook"
            )
        if self.name == "colab":
            return "as the secret HF_TOKEN, with access for this notebook"
        return "as HF_TOKEN, or with: hf auth login"

    @property
    def accelerator_advice(self) -> str:
        """What to do where there is no card."""
        if self.name == "kaggle":
            return "choose Settings → Accelerator → GPU T4 x2"
        if self.name == "colab":
            return "choose Runtime → Change runtime type → T4 GPU"
        return "install NVIDIA's driver if there is a card"


def detect_platform(variables: Mapping[str, str] | None = None) -> Platform:
    """Return where this process runs.

    Args:
        variables: The environment. None: this process's.
    """
    known = os.environ if variables is None else variables
    temporary = Path(tempfile.gettempdir())
    kaggle = _ROOT / "kaggle"
    if known.get("KAGGLE_KERNEL_RUN_TYPE") or (kaggle / "working").is_dir():
        scratch = kaggle / "temp"
        return Platform(
            "kaggle",
            _kaggle_mode(known),
            scratch if _is_writable(scratch) else temporary,
            kaggle / "working",
            kaggle / "input",
        )
    if known.get("COLAB_RELEASE_TAG") or known.get("COLAB_BACKEND_VERSION"):
        return Platform("colab", None, temporary, None, None)
    return Platform("local", None, temporary, None, None)


def _kaggle_mode(
    known: Mapping[str, str],
) -> Literal["interactive", "batch", "rerun"]:
    if known.get("KAGGLE_IS_COMPETITION_RERUN"):
        return "rerun"
    batch = known.get("KAGGLE_KERNEL_RUN_TYPE", "").lower() == "batch"
    return "batch" if batch else "interactive"


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def cache_folder() -> Path:
    """Return the folder of installed engines and records; it may not exist yet.

    ``LLAMATELEMETRY_CACHE`` if it is set; scratch on Kaggle, where a home folder is
    lost with the session too; else the user's cache.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        with contextlib.suppress(RuntimeError):  # no such user's home
            named = str(Path(named).expanduser())
        return Path(named).absolute()
    platform = detect_platform()
    if platform.name == "kaggle":
        return platform.scratch / "llamatelemetry"
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is ignored: https://specifications.freedesktop.org/basedir-spec
    usual = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return usual / "llamatelemetry"


class HiddenText(str):
    """A text that debuggers and tracebacks do not show: its repr is "…"."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the Hub. Neither its repr nor its text shows it.

    Attributes:
        value: The token itself; for a request's header, and nothing else.
        origin: Where it was found, in words.

    Raises:
        ConfigurationError: It cannot be sent in a header.
    """

    value: str = field(repr=False)
    origin: str

    def __post_init__(self) -> None:
        if not _SENDABLE.fullmatch(self.value):
            raise ConfigurationError(
                f"the token from {self.origin} holds a blank, or a letter that no "
                "token has; copy it again from https://huggingface.co/settings/tokens"
            )
        object.__setattr__(self, "value", HiddenText(self.value))

    @property
    def headers(self) -> dict[str, str]:
        """The header to send it in."""
        return {"Authorization": HiddenText(f"Bearer {self.value}")}

    def __str__(self) -> str:
        return f"a token from {self.origin}"


def find_token(
    argument: str | None = None,
    *,
    saved: Callable[[], str | None] = lambda: None,
    ask_secrets: Callable[[], bool] = lambda: True,
) -> Token | None:
    """Return the token to use on the Hub, or None.

    The order: the argument, the variable ``HF_TOKEN``, the one that ``hf auth login``
    saved, Kaggle's secret and Colab's secret of the name ``HF_TOKEN``.

    Args:
        argument: What the user gave.
        saved: Reads the saved one.
        ask_secrets: Says whether Kaggle's or Colab's secrets may be asked for. They
            need internet: without it Kaggle's take 8 s to say nothing. Not called
            where there are none.
    """
    platform = detect_platform()
    sources: list[tuple[str, Callable[[], str | None]]] = [
        ("the argument", lambda: argument),
        ("HF_TOKEN", lambda: os.environ.get("HF_TOKEN")),
        ("hf auth login", saved),
    ]
    for origin, read in sources:
        value = (read() or "").strip()
        if value:
            return Token(value, origin)
    return _secret_token(platform, ask_secrets)


_secrets: dict[str, Token] = {}  # asked for once: each question goes over the network


def _secret_token(platform: Platform, allowed: Callable[[], bool]) -> Token | None:
    """Return the token among the platform's secrets, if it has such and one is set."""
    readers = {"kaggle": _kaggle_secret, "colab": _colab_secret}
    read = readers.get(platform.name)
    if read is None:
        return None
    if platform.name not in _secrets and allowed():
        value = (_in_time(read) or "").strip()
        if value:
            origin = f"{platform.name.title()}'s secrets"
            _secrets[platform.name] = Token(value, origin)
    return _secrets.get(platform.name)


def _kaggle_secret() -> str | None:
    secrets = importlib.import_module("kaggle_secrets")
    value: str | None = secrets.UserSecretsClient().get_secret(_SECRET_NAME)
    return value


def _colab_secret() -> str | None:
    userdata = importlib.import_module("google.colab").userdata
    value: str | None = userdata.get(_SECRET_NAME)
    return value


def _in_time(read: Callable[[], str | None]) -> str | None:
    """Return what a call gives; None if it fails, or does not end in time."""
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(read())
        # Kaggle's client has five errors of its own, Colab's three; each of them
        # means that there is no secret to be had, and so does a missing module.
        except Exception:  # noqa: BLE001
            answers.put(None)

    threading.Thread(target=ask, name="llamatelemetry-secret", daemon=True).start()
    try:
        return answers.get(timeout=_SECRET_SECONDS)
    except queue.Empty:
        return None
