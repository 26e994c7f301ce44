"""Neighbors, scales of cosines and blocks of vectors: the same for an array, a run in memory, and a run on disk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arxiv_embeddings.encoders.vectors import l2_normalize
from arxiv_embeddings.explore.blocks import ChosenVectors, RunVectors, as_vectors, find_nearest
from arxiv_embeddings.explore.similarity import CosineScale, find_neighbors, measure_scale, measure_spread
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import Run
from tests.fakes.letters import LetterEncoder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "Ninety papers in three parts, in vectors of four numbers."
    generator = np.random.default_rng(4)
    texts = ["".join(chr(97 + letter) for letter in generator.integers(26, size=4 + row % 7)) for row in range(90)]
    papers = [{"paper_id": f"p{row}", "title": "", "abstract": text} for row, text in enumerate(texts)]
    folder = tmp_path_factory.mktemp("similarity") / "run"
    return embed_papers(papers, folder, encoder=LetterEncoder(), part_size=32).run


def test_a_run_gives_the_same_whether_its_vectors_are_kept_or_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = run.embeddings()
    rows = np.array([70, 3, 33])
    expected = find_neighbors(embeddings, 5, rows)
    for most_bytes in (2**28, 0):
        monkeypatch.setattr("arxiv_embeddings.explore.blocks.KEPT_BYTES", most_bytes)
        vectors = RunVectors(run)
        assert len(list(vectors.blocks())) == (1 if most_bytes else len(run.parts))
        np.testing.assert_array_equal(vectors.take(rows), embeddings[rows], strict=True)
        found = find_neighbors(vectors, 5, rows)
        np.testing.assert_array_equal(found[0], expected[0], strict=True)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-6)
        assert measure_spread(vectors) == measure_spread(embeddings)
    assert as_vectors(str(run.folder)).n_papers == 90


def test_chosen_vectors_of_a_run_are_read_in_any_order(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arxiv_embeddings.explore.blocks.KEPT_BYTES", 4 * run.dim * 7)  # seven rows at once
    order = np.random.default_rng(0).permutation(90)[:40]
    chosen = ChosenVectors(run, order)
    np.testing.assert_array_equal(np.concatenate(list(chosen.blocks())), run.embeddings()[order], strict=True)
    ascending = ChosenVectors(run, np.sort(order))
    np.testing.assert_array_equal(
        np.concatenate(list(ascending.blocks())), run.embeddings()[np.sort(order)], strict=True
    )


@given(st.integers(0, 2**32), st.sampled_from(["cosine", "euclidean"]), st.integers(1, 6), st.integers(1, 40))
def test_nearest_are_those_of_a_plain_sort(seed: int, metric: str, k: int, block_rows: int) -> None:
    generator = np.random.default_rng(seed)
    papers = generator.integers(-3, 4, size=(30, 3)).astype(np.float32)
    papers[(papers == 0).all(axis=1)] = 1
    own = generator.permutation(30)[:8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arxiv_embeddings.explore.blocks.BLOCK_ROWS", block_rows)
        patch.setattr("arxiv_embeddings.explore.blocks.MOST_SCORES", 3 * block_rows)
        rows, scores = find_nearest(papers[own], papers, k, own_rows=own, metric=metric)
    unit = l2_normalize(papers).astype(np.float64)
    apart = np.linalg.norm(papers[own][:, None].astype(np.float64) - papers, axis=2)
    expected = unit[own] @ unit.T if metric == "cosine" else -apart
    expected[np.arange(8), own] = -np.inf
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :k], atol=2e-3 if metric == "euclidean" else 1e-6)
    np.testing.assert_allclose(np.take_along_axis(expected, rows, 1), scores, atol=2e-3)
    assert all(len(set(one)) == k for one in rows.tolist())


class OneNeighbor:
    "An index that knows no more of a paper than itself and one other."

    def search(self, vectors: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        rows, scores = find_nearest(vectors, self.embeddings, k)
        return [
            (one[: k if at % 2 else 1], of_one[: k if at % 2 else 1])
            for at, (one, of_one) in enumerate(zip(rows, scores, strict=True))
        ]

    def __init__(self, embeddings: np.ndarray):
        self.embeddings = embeddings


def test_a_scale_asks_an_index_if_there_is_one() -> None:
    embeddings = np.random.default_rng(1).standard_normal((200, 16)).astype(np.float32)
    exact, by_index = measure_scale(embeddings), measure_scale(embeddings, OneNeighbor(embeddings))
    assert len(by_index.nearest) == 100  # of the other half the index found only the paper itself
    assert by_index.nearest.max() < 0.99
    assert set(np.round(by_index.nearest, 4)) <= set(np.round(exact.nearest, 4))


@pytest.mark.parametrize(
    "wrong", [{"random": []}, {"nearest": [2.0]}, {"mean": "high"}, {"random": [[0.1]]}, {"random": None}]
)
def test_a_scale_that_is_none_is_refused(wrong: dict) -> None:
    plain = measure_scale(np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)).to_dict()
    assert CosineScale.from_dict(plain).to_dict() == plain
    with pytest.raises(InputError, match="this is not a scale of cosines"):
        CosineScale.from_dict(plain | wrong)


def test_a_zero_vector_of_a_run_is_named_by_its_row(tmp_path: Path) -> None:
    embeddings = np.ones((5000, 2), dtype=np.float32)
    embeddings[[4097, 4999]] = 0
    with pytest.raises(InputError, match=r"vectors of length zero in rows \[4097, 4999\]"):
        find_neighbors(embeddings, 1, np.array([0]))
