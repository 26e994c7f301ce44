"""Figures and results show themselves in a real Jupyter kernel; figures draw the text of a corpus as it is written."""

import io
import logging
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pyarrow as pa
import pytest
from matplotlib import colormaps
from matplotlib.text import Text
from nbclient import NotebookClient
from PIL import Image

from arxiv_embeddings.explore.plots import (
    OTHER_COLOR,
    PlotOptions,
    choose_color,
    draw_heat_map,
    group_papers,
    new_figure,
    note_missing_glyphs,
    plot_cosine_spread,
    plot_heat_map,
    plot_map,
    plot_run,
    render,
    render_png,
)
from arxiv_embeddings.files.errors import InputError
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
    heat_map, papers_map = list_texts(plot_heat_map(run, np.arange(8))), list_texts(plot_map(run))
    assert f"{BAD} 1  {BAD}" in heat_map
    assert f"1{BAD}" in heat_map
    assert f"{BAD} (4)" in list_texts(plot_heat_map(run))
    # matplotlib leaves out labels that begin with "_", unless they are given with their points
    assert {f"{BAD} (4)", f"_{BAD} (4)"} <= set(papers_map)
    assert [text for text in papers_map if text.startswith(f"8 papers, model {BAD}, ")]
    assert f"Distribution of cosines, {BAD}" in list_texts(plot_cosine_spread(run.embeddings(), BAD))


def test_mathematics_of_a_title_is_not_set(tmp_path: Path) -> None:
    run = make_run(tmp_path, "$x^2$", "$x^2$", model="$x^2$")
    for figure in (
        plot_heat_map(run),
        plot_heat_map(run, np.arange(3)),
        plot_map(run),
        plot_cosine_spread(run.embeddings(), "$x^2$"),
    ):
        render_png(figure)
        of_corpus = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert of_corpus
        assert not any(text.get_parse_math() or text.get_usetex() for text in of_corpus)


def test_papers_without_title_and_category_have_empty_labels(tmp_path: Path) -> None:
    papers = [{"paper_id": str(number), "abstract": "word " * number} for number in range(1, 6)]
    run = embed_papers(papers, tmp_path / "run", encoder=LetterEncoder()).run
    assert not [text for text in list_texts(plot_heat_map(run)) if "nan" in text or "None" in text]
    assert "papers (5)" in list_texts(plot_map(run))


def test_characters_that_the_font_lacks_are_noted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path, "深度学习 मराठी", "数学")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's own, one for each character
        with caplog.at_level(logging.WARNING, logger="arxiv_embeddings"):
            plot_run(run, PlotOptions(rows=tuple(range(8))))
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


@pytest.mark.parametrize("colors", ["RdBu_r", "viridis"])
def test_the_color_bar_of_a_picture_has_the_colors_of_its_color_map(colors: str) -> None:
    values = np.random.default_rng(0).normal(size=(16, 16))
    figure = draw_heat_map(values, ["a title"] * 16, ["an id"] * 16, (-4, 4), "title", colors)
    pixels = np.asarray(Image.open(io.BytesIO(render_png(figure, dpi=200))).convert("RGB")).astype(int)
    box = figure.axes[1].get_window_extent()  # at half the density
    heights = np.linspace(box.y0 * 2 + 4, box.y1 * 2 - 4, 200)
    shown = pixels[(len(pixels) - 1 - heights).astype(int), int(box.x0 + box.x1)]
    expected = colormaps[colors]((heights - box.y0 * 2) / (box.height * 2))[:, :3] * 255
    assert np.ptp(shown) > 100
    assert np.abs(shown - expected).max() <= 8  # 4 of them for the step of the color map and for the place


def test_a_picture_has_twice_the_pixels_that_it_takes_on_a_screen() -> None:
    picture, shown = new_figure(3, 2)._repr_png_()
    assert Image.open(io.BytesIO(picture)).size == (600, 400)
    assert shown == {"width": 300, "height": 200}


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_the_same_figure_is_the_same_file(form: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, "word", "cs.CL")
    first, second = (render(plot_map(run), form) for _ in range(2))
    assert first == second
    if form == "svg":
        assert b"cs.CL (4)" in first  # as text


def test_few_papers_are_grey() -> None:
    generator = np.random.default_rng(0)
    names = [f"{archive}.{number:02d}" for archive in ("cs", "math", "hep-th") for number in range(40)]
    for n_names, column in ((20, "primary_category"), (120, "archive")):
        papers = pa.table({"primary_category": generator.choice(names[:n_names], 3000)})
        assert choose_color(papers) == column
        groups = group_papers(papers, column)
        assert sum(len(group.rows) for group in groups if group.color == OTHER_COLOR) < 0.25 * 3000
        assert sum(len(group.rows) for group in groups) == 3000


def test_values_named_as_the_grey_groups_are_told_from_them() -> None:
    papers = pa.table({"venue": ["none", None, "others", *[f"v{number}" for number in range(30)]]})
    labels = [group.label for group in group_papers(papers, "venue")]
    assert len(set(labels)) == len(labels)


# --- papers that lack something ---


def make_bare_run(folder: Path, n_papers: int, **columns: list[object]) -> Run:
    "Papers with ids and abstracts only, and the columns that are given."
    papers = [
        {"paper_id": f"p{number}", "abstract": "word " * (number % 7 + 1) + "z" * number}
        | {name: values[number] for name, values in columns.items()}
        for number in range(n_papers)
    ]
    return embed_papers(papers, folder / "run", encoder=LetterEncoder()).run


def test_pictures_of_papers_without_titles_categories_and_years(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path, 9)
    assert len(plot_run(run)) == 3
    assert "p0 and its nearest neighbors" in list_texts(plot_heat_map(run))  # there are no categories to compare
    with pytest.raises(InputError, match=r"no column 'venue'; available: paper_id, "):
        plot_map(run, color="venue")


@pytest.mark.parametrize("n_papers", [1, 3])
def test_too_few_papers_for_pictures_are_one_line(n_papers: int, tmp_path: Path) -> None:
    run = make_bare_run(tmp_path, n_papers)
    with pytest.raises(InputError, match=f"has {n_papers} papers: 4 or more are needed for pictures"):
        plot_run(run)
    assert plot_map(run).axes  # a map of itself is drawn


def test_pictures_of_papers_with_the_same_vector(tmp_path: Path) -> None:
    papers = [{"paper_id": f"p{n}", "abstract": "the same", "categories": ["ab"[n % 2]]} for n in range(6)]
    run = embed_papers(papers, tmp_path / "run", encoder=LetterEncoder()).run
    assert len(plot_run(run, PlotOptions(("heat_map", "map"), rows=(0,)))) == 2
