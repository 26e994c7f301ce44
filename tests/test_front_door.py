"""The names at the top, and what people in a notebook have at hand."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from numpy.testing import assert_array_equal

import arxiv_embeddings
from arxiv_embeddings import InputError, Run, describe, embed_papers, sample_papers, search, similar
from tests.fakes.letters import LetterEncoder

FRAME = pd.read_csv(sample_papers(), dtype=str)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "The sample corpus from its file, in an encoder that counts letters."
    return embed_papers(sample_papers(), tmp_path_factory.mktemp("file") / "run", encoder=LetterEncoder()).run


def test_every_name_of_the_front_door_is_there_and_importing_it_loads_nothing() -> None:
    assert len(arxiv_embeddings.__all__) == 16
    for name in arxiv_embeddings.__all__:
        assert name in dir(arxiv_embeddings)
        assert getattr(arxiv_embeddings, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'embed_paper'"):
        _ = arxiv_embeddings.embed_paper
    script = "import sys, arxiv_embeddings; print({'numpy', 'pyarrow', 'pandas', 'torch'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown == "set()\n"


@pytest.mark.parametrize(
    "papers",
    [FRAME, pl.from_pandas(FRAME), pa.Table.from_pandas(FRAME), FRAME.to_dict("records"), FRAME.set_index("paper_id")],
    ids=["pandas", "polars", "arrow", "dicts", "indexed"],
)
def test_papers_in_memory_become_the_run_that_their_file_becomes(papers: object, tmp_path: Path, run: Run) -> None:
    made = embed_papers(papers, tmp_path / "run", encoder=LetterEncoder(), limit=100)
    assert made.n_embedded == 100
    made = embed_papers(papers, tmp_path / "run", encoder=LetterEncoder())
    assert (made.n_embedded, made.run.paper_ids) == (44, run.paper_ids)
    assert_array_equal(made.run.embeddings(), run.embeddings(), strict=True)
    assert made.run.input["path"].endswith("of 144 rows")
    with pytest.raises(InputError, match="contains papers of another input"):
        embed_papers(FRAME[1:], tmp_path / "run", encoder=LetterEncoder())


def test_frames_are_appended(tmp_path: Path, run: Run) -> None:
    embed_papers(FRAME[:100], tmp_path / "run", encoder=LetterEncoder())
    made = embed_papers(FRAME, tmp_path / "run", encoder=LetterEncoder(), append=True)
    assert (made.n_embedded, made.run.paper_ids) == (44, run.paper_ids)


def test_ids_that_were_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ids are double .* read them with dtype=str"):
        embed_papers(pd.DataFrame({"id": [704.009], "abstract": ["A"]}), tmp_path / "run", encoder=LetterEncoder())


def test_a_run_or_its_folder_stands_for_an_index(run: Run) -> None:
    expected = similar(run, run.paper_ids[100], k=3)
    assert len(expected) == 3
    for source in (run.folder, str(run.folder)):
        pd.testing.assert_frame_equal(similar(source, run.paper_ids[100], k=3), expected)
    pd.testing.assert_frame_equal(run.similar(row=np.int64(100), k=np.int64(3)), expected)
    with pytest.raises(InputError, match="no row 144"):
        similar(run, row=144)


def test_several_papers_texts_and_categories(run: Run) -> None:
    found = run.similar(run.paper_ids[:2], k=4, category=["CS.cv", "math.CO"])
    assert found["query_id"].tolist() == [run.paper_ids[0]] * 4 + [run.paper_ids[1]] * 4
    assert all({"cs.CV", "math.CO"} & set(names.split()) for names in found["categories"])
    rows = {"aa": 3, "bb": 5}
    encoder = SimpleNamespace(encode=lambda texts: run.embeddings()[[rows[text] for text in texts]])
    found = search(run, ["aa", "bb"], k=2, encoder=encoder)
    assert found["query"].tolist() == ["aa", "aa", "bb", "bb"]
    pd.testing.assert_frame_equal(
        found[2:].drop(columns="query").reset_index(drop=True), search(run, "bb", k=2, encoder=encoder)
    )
    with pytest.raises(InputError, match=r"no paper has the category 'cs.c v'.* cs\.CV"):
        run.similar(run.paper_ids[0], category="cs.c v")


def test_what_jupyterlab_shows_is_escaped(tmp_path: Path) -> None:
    rows = [
        {"id": f"2101.0000{n}", "title": f"<img src=x onerror=alert({n})>", "abstract": "a" * n} for n in range(1, 5)
    ]
    made = embed_papers(rows, tmp_path / "run", encoder=LetterEncoder()).run
    shown = made.similar("2101.00001", k=2)._repr_html_()
    assert "<img" not in shown
    assert shown.count("&lt;img src=x onerror=alert(") == 3  # two papers, and the one that was asked for
    assert shown.count('<a href="https://arxiv.org/abs/2101.0000') == 2
    assert ">&lt;b&gt;</th>" in made.similar("2101.00001", k=2).assign(**{"<b>": 1})._repr_html_()
    made.metadata["model"] = "<script>"
    assert "<script>" not in made._repr_html_()
    assert "4 papers" in repr(made)


def test_the_verbs_of_a_run_are_the_front_doors_functions(tmp_path: Path) -> None:
    made = embed_papers(sample_papers(), tmp_path / "run", limit=20, encoder=LetterEncoder()).run
    written = [path.name for path in made.export("npy", "float16")]
    assert written == ["embeddings.npy", "embeddings_float16.npy"]
    assert [path.name for path in made.export()] == ["embeddings.npy", "papers_with_embeddings.parquet"]
    assert made.describe() == describe(made)
    assert made.describe()["n_papers"] == 20
    frame = made.to_pandas()
    assert (len(frame), len(frame["embedding"][0])) == (20, made.dim)
