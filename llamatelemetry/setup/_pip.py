"""Runs pip for wheels that belong to no environment: into folders of our own."""

from __future__ import annotations

import os
import sys

from llamatelemetry.exceptions import DownloadError
from llamatelemetry.server import _process

__all__ = ["run_pip"]

# pip needs neither, and what it builds might read them.
_SECRETS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})


def run_pip(*arguments: str, seconds: float) -> None:
    """Run pip with arguments.

    Args:
        arguments: The command and its options.
        seconds: How long it may take.

    Raises:
        DownloadError: It failed; with the end of what it said.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    variables = {
        name: value for name, value in os.environ.items() if name not in _SECRETS
    }
    try:
        done = _process.run(command, environment=variables, timeout=seconds)
    except (OSError, TimeoutError) as error:
        raise DownloadError(f"pip {arguments[0]} failed: {error}") from error
    if done.returncode:
        tail = (done.stderr.strip() or done.stdout.strip())[-1000:]
        raise DownloadError(f"pip {arguments[0]} failed:\n{tail}")
