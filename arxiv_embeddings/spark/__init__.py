"""Spark: vectors in executors, as a run or as a column of a DataFrame."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "ArxivEmbedder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from arxiv_embeddings.spark.transformer import ArxivEmbedder  # only now: it imports Spark

    globals()[name] = ArxivEmbedder
    return ArxivEmbedder


def __dir__() -> list[str]:
    return sorted({*globals(), "ArxivEmbedder"})
