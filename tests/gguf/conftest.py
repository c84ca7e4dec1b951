"""The vocabulary files of llama.cpp, as the tests of the reader use them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from vocabularies import vocabularies


@pytest.fixture(scope="session")
def vocabulary_files() -> list[Path]:
    """The vocabularies that come with llama.cpp's source package."""
    try:
        return vocabularies()
    except (OSError, subprocess.SubprocessError) as error:
        message = f"llama.cpp's vocabularies cannot be had: {error}"
    if os.environ.get("LLAMATELEMETRY_TESTS") == "all":
        pytest.fail(message)
    pytest.skip(message)
