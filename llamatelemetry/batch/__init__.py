"""One prompt for each row of a table, over every slot of every server, with resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatelemetry._lazy import lazy

if TYPE_CHECKING:
    from llamatelemetry.batch._embeddings import (
        EmbeddingFailure,
        Embeddings,
        map_embeddings,
    )
    from llamatelemetry.batch._map import map_prompts
    from llamatelemetry.batch._ray import RayCluster
    from llamatelemetry.batch.results import ResultRow, Results

__all__ = [
    "EmbeddingFailure",
    "Embeddings",
    "RayCluster",
    "ResultRow",
    "Results",
    "map_embeddings",
    "map_prompts",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "EmbeddingFailure": "_embeddings",
        "Embeddings": "_embeddings",
        "RayCluster": "_ray",
        "ResultRow": "results",
        "Results": "results",
        "map_embeddings": "_embeddings",
        "map_prompts": "_map",
    },
)
