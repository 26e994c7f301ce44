"""Spark: vectors in executors, as a run or as a column of a DataFrame."""

from importlib import import_module
from typing import Any

_MODULES = {
    "ArxivEmbedder": "transformer",
    "OnSpark": "via_encoder",
    "OnSparkNLP": "via_spark_nlp",
    "use_store_settings": "checks",
    "write_embeddings": "tables",
}  # imported when they are used: they need Spark


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(f"arxiv_embeddings.spark.{_MODULES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
