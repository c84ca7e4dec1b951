"""The demo model that ships with the package, and what to ask it.

It is a memorised set of 89 answers that proves the machinery works; it is
not an assistant. How it is made: ``binaries/demo_model`` in the repository.
"""

from __future__ import annotations

from pathlib import Path

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
