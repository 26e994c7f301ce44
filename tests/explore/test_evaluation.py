"""Measures of a run: a correction, a distance, a sample, a test set; and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.explore.compare import compare_corrections, compare_metrics
from arxiv_embeddings.explore.corrections import fit_correction, save_correction
from arxiv_embeddings.explore.describe import centroids_of, describe_run, find_near_duplicates, summarize_run
from arxiv_embeddings.explore.evaluation import (
    EvaluationOptions,
    KnownPapers,
    evaluate_embeddings,
    evaluate_run,
    in_metric,
    measure_classification,
    split_papers,
)
from arxiv_embeddings.explore.similarity import find_neighbors
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import Run
from tests.fakes.letters import LetterEncoder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "Fifty papers of three categories, in vectors of four numbers that are not of unit length."
    generator = np.random.default_rng(4)
    texts = ["".join(chr(97 + letter) for letter in generator.integers(26, size=4 + row % 7)) for row in range(50)]
    kinds = ("cs.CL", "cs.CV", "math.CO")
    papers = [
        {"paper_id": f"p{row}", "title": f"T{row}", "abstract": text, "categories": kinds[row % 3]}
        for row, text in enumerate(texts)
    ]
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    return embed_papers(papers, folder, encoder=LetterEncoder()).run


@pytest.fixture(scope="module")
def relations(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Papers are related to their nearest by Euclidean distance, if it is not their nearest by cosine."
    path = tmp_path_factory.mktemp("relations") / "relations.tsv"
    nearest, by_cosine = (find_neighbors(run.embeddings(), 1, metric=one)[0][:, 0] for one in ("euclidean", "cosine"))
    pairs = [f"p{row}\tp{other}\tnearest" for row, other in enumerate(nearest) if other != by_cosine[row]]
    assert len(pairs) > 3
    path.write_text("\n".join(["src\tdst\tkind", *pairs]) + "\n")
    return path


def test_the_metric_decides_which_papers_are_near(run: Run, relations: Path) -> None:
    by_metric = {one: evaluate_run(run, relations, metric=one, only=("neighbors",)) for one in ("cosine", "euclidean")}
    mrr = {metric: one["relations"]["nearest"]["MRR@10"] for metric, one in by_metric.items()}
    assert mrr["euclidean"] > mrr["cosine"]
    table = compare_metrics(run, relations)
    rows = table[table["measure"] == "nearest MRR@10"].set_index("run")
    assert rows.loc["euclidean", "value"] == pytest.approx(mrr["euclidean"])
    assert rows.loc["euclidean", "difference"] == pytest.approx(mrr["euclidean"] - mrr["cosine"])


def test_a_correction_is_applied_before_measuring(run: Run, relations: Path) -> None:
    corrected = evaluate_run(run, relations, correction="center", only=("neighbors",))
    papers = KnownPapers.of_run(run)
    by_hand = fit_correction(run, "center").apply(run.embeddings())
    expected = evaluate_embeddings(by_hand, papers, EvaluationOptions(only=("neighbors",)))
    assert corrected["category_precision@10"] == pytest.approx(expected["category_precision@10"])
    assert corrected["random_cosines"]["mean"] < 0.5 < evaluate_run(run)["random_cosines"]["mean"]
    table = compare_corrections(run, {"centered": fit_correction(run, "center")}, relations)
    values = table[table["measure"] == "category_precision@10"].set_index("run")["value"]
    assert values["centered"] == pytest.approx(expected["category_precision@10"])
    assert values["none"] == pytest.approx(evaluate_run(run)["category_precision@10"])


def test_the_command_takes_a_kept_correction(run: Run) -> None:
    save_correction(run, fit_correction(run, "whiten", shrinkage=0.25), "mine")
    words = ["evaluate", str(run.folder), "--only", "neighbors", "--only", "clustering", "--json"]
    measured = json.loads(CliRunner().invoke(app, [*words, "--correction", "mine"]).stdout)
    assert "shrinkage=0.25" in measured["correction"]
    assert "classification" not in measured
    assert measured["clustering"]["n_clusters"] == 3
    unknown = CliRunner().invoke(app, [*words, "--correction", "yours"])
    assert unknown.exit_code == 1
    assert "no correction 'yours'" in unknown.output
    assert "available: mine" in unknown.output


def test_wrong_use_ends_with_code_2(run: Run, relations: Path) -> None:
    for words in (
        ("--metric", "manhattan"),
        ("--only", "words"),
        ("--sample", "0"),
        ("--beir", "set", "--relations", str(relations)),
    ):
        assert CliRunner().invoke(app, ["evaluate", str(run.folder), *words]).exit_code == 2, words


def test_a_test_set_is_measured_by_the_command(run: Run, tmp_path: Path) -> None:
    missing = CliRunner().invoke(app, ["evaluate", str(run.folder), "--beir", str(tmp_path)])
    assert missing.exit_code == 1
    assert "is not a test set in BEIR's layout" in missing.output


def test_k_beyond_the_corpus_is_refused(run: Run) -> None:
    with pytest.raises(InputError, match="50 papers have no 50 neighbors each: give k from 1 to 49"):
        evaluate_run(run, k=50)


def test_relations_of_other_papers_only_are_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "relations.tsv"
    path.write_text("src\tdst\tkind\nx\ty\tcompanion\np1\tp1\tcompanion\n")
    with pytest.raises(InputError, match="none of the 2 relations is between two papers of this run"):
        evaluate_run(run, path)


def test_learning_and_asking_are_of_different_papers() -> None:
    generator = np.random.default_rng(0)
    embeddings = generator.standard_normal((300, 4)).astype(np.float32)
    kinds = [f"k{kind}" for kind in generator.integers(3, size=300)]
    split = split_papers(kinds)
    assert not set(split.train) & set(split.test)
    assert len(split.test) == 60
    accuracies, _ = measure_classification(embeddings, split, [str(row) for row in range(300)], k=1)
    assert accuracies[0].mean < 0.55  # a paper that votes for itself would be right
    assert accuracies[0].queries == [str(row) for row in split.test]


def test_classes_are_told_by_direction_or_by_place() -> None:
    vectors = np.array([[3, 4], [0, 2]], dtype=np.float32)
    np.testing.assert_allclose(in_metric(vectors, "cosine"), np.array([[0.6, 0.8], [0, 1]], np.float32), strict=True)
    np.testing.assert_array_equal(in_metric(vectors, "euclidean"), vectors, strict=True)


def test_very_many_papers_are_sampled_for_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arxiv_embeddings.explore.evaluation.MOST_CLASSIFIED", 100)
    split = split_papers(["a", "b"] * 500)
    assert len(split.train) + len(split.test) == 100


def test_very_many_papers_are_looked_through_for_near_duplicates(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = describe_run(run)
    assert exact["near_duplicates_note"] is None
    monkeypatch.setattr("arxiv_embeddings.explore.describe.MOST_COMPARED", 10)
    by_signatures = describe_run(run)
    assert by_signatures["near_duplicates_note"].startswith("4% of pairs with cosine 0.95 may be missing")
    found, all_pairs = ({tuple(one["paper_ids"]) for one in of["near_duplicates"]} for of in (by_signatures, exact))
    assert found <= all_pairs
    assert len(found) > 0.9 * len(all_pairs) > 10
    assert describe_run(run, near_duplicates=True)["near_duplicates"] == exact["near_duplicates"]
    assert "may be missing" in summarize_run(by_signatures)["nearly the same"]


def test_crowded_vectors_have_no_near_duplicates(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arxiv_embeddings.explore.describe.MOST_PAIRS", 5)
    with pytest.raises(InputError, match="too crowded for near-duplicates"):
        find_near_duplicates(run, 0.5)
    described = describe_run(run)
    assert described["near_duplicates"] is None
    assert "too crowded" in summarize_run(described)["nearly the same"]
    monkeypatch.setattr("arxiv_embeddings.explore.describe.MOST_CANDIDATES", 5)
    with pytest.raises(InputError, match="too crowded for near-duplicates"):
        find_near_duplicates(run, 0.5, exact=False)


def test_all_pairs_are_compared_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = np.random.default_rng(3).standard_normal((60, 3)).astype(np.float32)
    whole = find_near_duplicates(embeddings, 0.9)
    monkeypatch.setattr("arxiv_embeddings.explore.blocks.BLOCK_ROWS", 7)
    monkeypatch.setattr("arxiv_embeddings.explore.describe.HELD_ROWS", 11)
    assert find_near_duplicates(embeddings, 0.9) == whole
    assert len(whole) > 20


def test_centroids_are_those_of_a_run(run: Run) -> None:
    table, centroids = centroids_of(run)
    assert table["category"].tolist() == ["cs.CL", "cs.CV", "math.CO"]
    assert table["n_papers"].sum() == 50
    assert isinstance(table, pd.DataFrame)
    assert centroids.shape == (3, 4)
