"""Figures and results show themselves in a real Jupyter kernel; figures draw the text of a corpus as it is written."""

import logging
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.text import Text
from nbclient import NotebookClient

from arxiv_embeddings.explore.plots import (
    new_figure,
    note_missing_glyphs,
    plot_cosine_spread,
    plot_heat_map,
    plot_map,
    plot_run,
    render_png,
)
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import Run
from tests.fakes.letters import LetterEncoder

CELLS = {
    "figure": "import numpy as np\nfrom arxiv_embeddings.explore.plots import plot_cosine_spread\n"
    "plot_cosine_spread(np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32))",
    "description": "from arxiv_embeddings.explore.describe import Description\nDescription(title='<b>')",
    "papers": "from arxiv_embeddings import sample_papers\nfrom arxiv_embeddings.papers.corpus import open_papers\n"
    "open_papers(sample_papers()).scan()",
}


@pytest.fixture(scope="module")
def shown() -> dict[str, dict[str, str]]:
    "What a kernel shows for each cell, by MIME type."
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS.values()])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return {name: cell.outputs[-1]["data"] for name, cell in zip(CELLS, notebook.cells, strict=True)}


@pytest.mark.slow
def test_a_figure_is_shown_as_a_picture(shown: dict[str, dict[str, str]]) -> None:
    assert shown["figure"]["image/png"].startswith("iVBOR")  # PNG's first bytes in base64


@pytest.mark.slow
def test_tables_are_shown_as_html_and_escaped(shown: dict[str, dict[str, str]]) -> None:
    assert "&lt;b&gt;" in shown["description"]["text/html"]
    assert "144" in shown["papers"]["text/html"]


BAD = r"$\bad$"  # matplotlib ends in an error if it reads this as mathematics


def make_run(folder: Path, text: str, category: str, model: str = "letters") -> Run:
    "Eight papers, whose titles and ids hold the text, in two categories."
    papers = [
        {
            "paper_id": f"{number}{text}",
            "title": f"{text} {number}",
            "abstract": "word " * number + "and more",
            "categories": [category if number % 2 else f"_{category}"],
        }
        for number in range(1, 9)
    ]
    encoder = LetterEncoder()
    encoder.spec = encoder.spec.__class__(**(vars(encoder.spec) | {"name": model}))
    return embed_papers(papers, folder / "run", encoder=encoder).run


def list_texts(figure: object) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def test_text_of_a_corpus_is_drawn_as_it_is_written(tmp_path: Path) -> None:
    run = make_run(tmp_path, BAD, BAD, model=f"model {BAD}")
    assert len(plot_run(run)) == 3  # each would end in an error
    heat_map, papers_map = list_texts(plot_heat_map(run)), list_texts(plot_map(run))
    assert f"{BAD} 1  {BAD}" in heat_map
    assert f"1{BAD}" in heat_map
    # matplotlib leaves out labels that begin with "_", unless they are given with their points
    assert {f"{BAD} (4)", f"_{BAD} (4)"} <= set(papers_map)
    assert f"8 papers, model {BAD}, t-SNE" in papers_map
    assert f"Distribution of cosines, {BAD}" in list_texts(plot_cosine_spread(run.embeddings(), BAD))


def test_mathematics_of_a_title_is_not_set(tmp_path: Path) -> None:
    run = make_run(tmp_path, "$x^2$", "$x^2$", model="$x^2$")
    for figure in (plot_heat_map(run), plot_map(run), plot_cosine_spread(run.embeddings(), "$x^2$")):
        render_png(figure)
        of_corpus = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert of_corpus
        assert not any(text.get_parse_math() or text.get_usetex() for text in of_corpus)


def test_papers_without_title_and_category_have_empty_labels(tmp_path: Path) -> None:
    papers = [{"paper_id": str(number), "abstract": "word " * number} for number in range(1, 6)]
    run = embed_papers(papers, tmp_path / "run", encoder=LetterEncoder()).run
    assert not [text for text in list_texts(plot_heat_map(run)) if "nan" in text or "None" in text]
    assert "none (5)" in list_texts(plot_map(run))


def test_characters_that_the_font_lacks_are_noted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path, "深度学习 मराठी", "数学")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's own, one for each character
        with caplog.at_level(logging.WARNING, logger="arxiv_embeddings"):
            plot_run(run)
    (note,) = [record.getMessage() for record in caplog.records]
    assert note.startswith("the font DejaVu Sans lacks some characters, drawn as boxes (")
    assert "深, 度, 学, 习, " in note
    assert note.count("深") == 1
    assert len(note) < 200


def test_other_warnings_are_not_swallowed(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(UserWarning, match="something else"), note_missing_glyphs():
        warnings.warn("something else", stacklevel=1)
    figure = new_figure(3, 2)
    figure.text(0.5, 0.5, "Erdős")
    render_png(figure)
    assert caplog.records == []


def test_the_same_figure_is_the_same_picture() -> None:
    embeddings = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    assert render_png(plot_cosine_spread(embeddings)) == render_png(plot_cosine_spread(embeddings))
