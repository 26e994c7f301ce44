"""Duplicates, near-duplicates and withdrawn papers are found, exactly."""

import re

import pytest

from arxiv_embeddings.encoders.base import Encoder
from arxiv_embeddings.explore.describe import describe_run, find_duplicate_texts, find_near_duplicates, find_withdrawn
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import Run

BOUNDS = (
    "We prove tight bounds on the chromatic number of sparse random graphs, and give an algorithm that attains them."
)
PAPERS = {
    "2101.00001": ("Coloring sparse graphs", BOUNDS),
    "2101.00002": ("Galaxies", "We measure the rotation of spiral galaxies with a new radio telescope."),
    "2101.00003": ("Coloring sparse graphs", BOUNDS),
    "2101.00004": ("Coloring of sparse graphs", BOUNDS),
    "2101.00005": ("Proteins", "This paper has been withdrawn by the author due to an error in Lemma 2."),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, minilm: Encoder) -> Run:
    "Five papers: two with the same text, a third that is nearly the same, one withdrawn."
    papers = [
        {"paper_id": paper_id, "title": title, "abstract": abstract, "categories": "math.CO"}
        for paper_id, (title, abstract) in PAPERS.items()
    ]
    return embed_papers(papers, tmp_path_factory.mktemp("described") / "run", encoder=minilm).run


def test_papers_with_the_same_text_are_found(run: Run) -> None:
    assert find_duplicate_texts(run) == [["2101.00001", "2101.00003"]]


def test_withdrawn_papers_are_found(run: Run) -> None:
    assert find_withdrawn(run) == ["2101.00005"]


def test_near_duplicates_are_found(run: Run) -> None:
    pairs = find_near_duplicates(run.embeddings())
    assert [pair[:2] for pair in pairs] == [(0, 2), (0, 3), (2, 3)]
    assert pairs[0][2] == pytest.approx(1, abs=1e-4)


def test_a_description_counts_them(run: Run) -> None:
    described = describe_run(run)
    assert described["n_papers"] == 5
    assert described["categories"] == {"math.CO": 5}
    assert described["duplicate_texts"] == [["2101.00001", "2101.00003"]]
    assert described["withdrawn"] == ["2101.00005"]
    assert [pair["paper_ids"] for pair in described["near_duplicates"]] == [
        ["2101.00001", "2101.00003"],
        ["2101.00001", "2101.00004"],
        ["2101.00003", "2101.00004"],
    ]
    assert describe_run(run, near_duplicates=False)["near_duplicates"] is None
    assert "2101.00005" in described._repr_html_()


def test_a_notebook_shows_no_wall_of_hashes(run: Run) -> None:
    described = describe_run(run)
    shown = described._repr_html_()
    fingerprint = re.search(r">fingerprint</th><td[^>]*>([^<]*)<", shown)[1]
    assert "pooling: mean" in fingerprint
    assert len(fingerprint) < 400
    assert not re.search(r"[0-9a-f]{40}", fingerprint)
    assert re.search(r"and \d+ more in the dict", fingerprint)
