"""Vectors for paper abstracts: correct, fast, safely stored, searchable and checked.

    from arxiv_embeddings import embed_papers, open_run, load_encoder

    run = embed_papers("papers.csv", "run").run         # or a DataFrame, an Arrow table, a list of dicts
    run.similar("0704.0090", k=5, category="cs.CV")     # a DataFrame with whole titles and links
    run.search("planets around other stars")
    load_encoder("specter2").encode(["a text", "another"])  # float32, (2, 768)

Everything else is in the folders `files`, `papers`, `encoders`, `runs`, `spark`, `explore` and `cli`.
"""

__version__ = "0.1.0"

import os
from importlib import import_module
from typing import Any

# Libraries of the Hugging Face hub report nothing of their use; they read this when they are imported. OpenVINO's and
# onnxruntime's reports are off where these are loaded. What the user has set stays.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# A name of the front door, the module that it is in, and its name there. A module is imported when a name of it is used.
_FRONT_DOOR = {
    "embed_papers": ("runs.embed", "embed_papers"),
    "open_run": ("runs.store", "open_run"),
    "Run": ("runs.store", "Run"),
    "read_papers": ("papers.corpus", "read_papers"),
    "sample_papers": ("papers.corpus", "sample_papers"),
    "load_encoder": ("encoders.load", "load_encoder"),
    "similar": ("explore.search", "find_similar"),
    "search": ("explore.search", "search_text"),
    "describe": ("explore.describe", "describe_run"),
    "make_map": ("explore.map", "make_map"),
    "evaluate_run": ("explore.evaluation", "evaluate_run"),
    "compare_runs": ("explore.compare", "compare_runs"),
    "explore_run": ("explore.widgets", "explore_run"),
    "export": ("runs.export", "export_run"),
    "import_vectors": ("runs.imported", "import_vectors"),
    "InputError": ("files.errors", "InputError"),
}
__all__ = list(_FRONT_DOOR)

def __getattr__(name: str) -> Any:
    if name not in _FRONT_DOOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = _FRONT_DOOR[name]
    value = getattr(import_module(f"{__name__}.{module}"), there)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FRONT_DOOR})
