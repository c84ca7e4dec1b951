"""Measure a server as `vllm bench serve` does, and compare two of them fairly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatelemetry._lazy import lazy

if TYPE_CHECKING:
    from llamatelemetry.bench._benchmark import benchmark
    from llamatelemetry.bench._compare import compare
    from llamatelemetry.bench._metrics import LoadResult, Statistics
    from llamatelemetry.bench._ratios import Ratio
    from llamatelemetry.bench.comparison import Comparison
    from llamatelemetry.bench.results import BenchmarkResult

__all__ = [
    "BenchmarkResult",
    "Comparison",
    "LoadResult",
    "Ratio",
    "Statistics",
    "benchmark",
    "compare",
]

# Lazy, so that who only reads results loads no client.
__getattr__, __dir__ = lazy(
    __name__,
    {
        "BenchmarkResult": "results",
        "Comparison": "comparison",
        "LoadResult": "_metrics",
        "Ratio": "_ratios",
        "Statistics": "_metrics",
        "benchmark": "_benchmark",
        "compare": "_compare",
    },
)
