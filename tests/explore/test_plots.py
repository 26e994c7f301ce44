"""Figures, results and runs show themselves in a real Jupyter kernel, as the last line of a cell and without a magic."""

import nbformat
import pytest
from nbclient import NotebookClient

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
