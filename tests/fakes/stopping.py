"""End an append at a chosen moment, at the functions through which all files are written and removed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from arxiv_embeddings.files import paths


def stop_in(patched: pytest.MonkeyPatch, name: str, is_reached: Callable[[Path], bool]) -> None:
    "Raise `KeyboardInterrupt` in a function of `files.paths` as soon as it is called for a certain folder."
    function = getattr(paths, name)

    def stop(folder: Path, *given: object) -> object:
        if is_reached(folder):
            raise KeyboardInterrupt
        return function(folder, *given)

    patched.setattr(paths, name, stop)


def list_staged(run: Path) -> list[Path]:
    "Parts that wait in a run's `staging`."
    return sorted((run / "staging" / "parts").glob("*.parquet"))
