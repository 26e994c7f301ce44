"Commands read vectors part by part: none holds those of a whole run, unless the run is small."

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arxiv_embeddings.explore import blocks, plots
from arxiv_embeddings.explore.plots import PlotOptions, plot_cosine_spread, plot_run
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.export import EXPORTS
from arxiv_embeddings.runs.imported import import_vectors
from arxiv_embeddings.runs.store import Run, RunReader
from arxiv_embeddings.runs.verify import verify_run

VECTORS = np.random.default_rng(0).normal(size=(144, 8)).astype(np.float32)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return import_vectors(sample_papers(), VECTORS, tmp_path / "run", part_size=20).run


def test_pictures_maps_and_exports_hold_one_part_at_a_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {path.name: path.read_bytes() for path in plot_run(run)}
    page = run.map().path.read_bytes()

    def refuse(reader: RunReader) -> np.ndarray:
        raise AssertionError("all vectors at once")

    def read_some(reader: RunReader, columns: list[str] | str | None = None) -> object:
        assert columns is not None, "all columns of all papers"
        assert "abstract" not in columns
        return read(reader, columns)

    read = RunReader.read
    monkeypatch.setattr(RunReader, "embeddings", refuse)
    monkeypatch.setattr(RunReader, "read", read_some)
    monkeypatch.setattr(blocks, "KEPT_BYTES", 0)
    assert {path.name: path.read_bytes() for path in plot_run(run)} == drawn
    assert run.map().path.read_bytes() == page
    plot_run(run, PlotOptions(pictures=("heat_map",), rows=(5,)))
    plot_run(run, PlotOptions(pictures=("map",), color="year"))
    run.export(*EXPORTS)
    assert verify_run(run)["sound"]


def test_a_sample_of_papers_stands_for_all_and_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def labels() -> list[str]:
        return [text.get_text() for text in plot_cosine_spread(run).legends[0].get_texts()]

    assert labels()[1].startswith("144 papers and their nearest, mean 0.")
    monkeypatch.setattr(plots, "N_NEAREST", 30)
    assert labels()[1].startswith("30 of 144 papers and their nearest, mean 0.")


def test_a_heat_map_has_its_papers_in_the_order_that_was_asked_for(run: Run) -> None:
    figure = plots.plot_papers(run, np.array([100, 3, 50]))
    ids = pd.read_csv(sample_papers(), dtype=str)["paper_id"]
    assert [one.get_text() for one in figure.axes[0].get_xticklabels()] == ids[[100, 3, 50]].tolist()
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    nearest = np.argsort(-(unit @ unit[100]), kind="stable")[:4]
    near = plots.plot_neighbors(run, 100, k=3)
    assert [one.get_text() for one in near.axes[0].get_xticklabels()] == ids[nearest].tolist()
