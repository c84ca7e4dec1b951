"""The demo model that ships with the package, and what to ask it.

It is a memorised set of 89 answers that proves the machinery works; it is
not an assistant. How it is made: ``binaries/demo_model`` in the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

DEMO_VARIABLE = "LLAMATELEMETRY_DEMO"
"""While it is 1, the demo model stands in for every model of the catalog."""

DEMO_MODEL = Path(__file__).parent / "data" / "demo-q8_0.gguf"
DEMO_CONTEXT_SIZE = 512
# Two threads on a model this small spend their time waiting for each other; on a busy
# machine they took 10 times as long for an answer as one.
DEMO_THREADS = 1
DEMO_QUESTIONS = (
    "What is GGUF?",
    "How much memory does a T4 have?",
    "What is the KV cache?",
)


def is_demo_mode() -> bool:
    """Whether the demo model on the embedded engine stands in for what is named."""
    return os.environ.get(DEMO_VARIABLE, "").strip() not in ("", "0")
