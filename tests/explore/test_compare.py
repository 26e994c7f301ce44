"""Runs are compared on the papers that all have, by the same queries."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.explore.compare import compare_runs, find_common
from arxiv_embeddings.explore.evaluation import KnownPapers, evaluate_run
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import Run
from tests.fakes.letters import LetterEncoder


class WordEncoder(LetterEncoder):
    "Looks at other letters of a text, so that it has other neighbors."

    def encode_rows(self, rows: list[np.ndarray]) -> np.ndarray:
        vectors = np.array(rows, dtype=np.float32)
        return np.column_stack([vectors[:, 3], vectors[:, 1] * 2, vectors[:, 2], vectors[:, 0]])

    def run(self, tokenized, on_batch=None):
        return self.encode_rows(tokenized.rows)


def make_papers(rows: range) -> list[dict[str, str]]:
    generator = np.random.default_rng(4)
    texts = ["".join(chr(97 + letter) for letter in generator.integers(26, size=4 + row % 7)) for row in range(60)]
    kinds = ("cs.CL", "cs.CV", "math.CO")
    return [
        {"paper_id": f"p{row}", "title": f"T{row}", "abstract": texts[row], "categories": kinds[row % 3]}
        for row in rows
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run, Run]:
    "Fifty papers; other vectors of fifty, of which forty are the same; the first forty backwards."
    folder = tmp_path_factory.mktemp("compared")
    return (
        embed_papers(make_papers(range(50)), folder / "a" / "run", encoder=LetterEncoder()).run,
        embed_papers(make_papers(range(10, 60)), folder / "b" / "run", encoder=WordEncoder("cls")).run,
        embed_papers(make_papers(range(39, -1, -1)), folder / "backwards", encoder=LetterEncoder()).run,
    )


@pytest.fixture(scope="module")
def relations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("relations") / "relations.tsv"
    pairs = [f"p{row}\tp{row + 1}\tfollow_up" for row in range(15, 40)]
    path.write_text(
        "\n".join(["src\tdst\tkind", *pairs, "p1\tnowhere\tfollow_up", "nowhere\tp2\tfollow_up", "p3\tp3\tfollow_up"])
        + "\n"
    )
    return path


def test_common_papers_are_found_in_the_order_of_the_first(runs: tuple[Run, ...]) -> None:
    rows = find_common(runs)
    ids = [[run.paper_ids[row] for row in of_run] for run, of_run in zip(runs, rows, strict=True)]
    assert ids[0] == [f"p{row}" for row in range(10, 40)]
    assert ids[0] == ids[1] == ids[2]


def test_a_run_with_the_same_vectors_in_another_order_is_equal(runs: tuple[Run, ...], relations: Path) -> None:
    compared = compare_runs([runs[0], runs[2]], relations)
    others = compared.table[compared.table["run"] == "backwards"]
    measured = others[others["measure"] != "v_measure"]
    assert len(measured) == 5
    assert (measured["difference"] == 0).all()
    assert (measured["p"] == 1).all()
    assert compared.overlap.loc["run", "backwards"] == 1
    assert [one["n_left_out"] for one in compared.about["runs"]] == [10, 0]
    assert "40 papers, without 10 of run. " in compared.describe()


def test_runs_of_other_vectors_differ(runs: tuple[Run, ...], relations: Path) -> None:
    compared = compare_runs(runs[:2], relations, k=5, n_disagreements=3)
    assert [one["name"] for one in compared.about["runs"]] == ["run (1)", "run (2)"]
    assert compared.about["n_common"] == 40
    assert 0 < compared.overlap.loc["run (1)", "run (2)"] < 1
    assert compared.overlap.loc["run (1)", "run (2)"] == compared.overlap.loc["run (2)", "run (1)"]
    least = compared.disagreements
    whole = compare_runs(runs[:2], k=5, n_disagreements=40, only=("neighbors",)).disagreements
    assert whole["overlap"].is_monotonic_increasing
    assert whole["overlap"].iloc[0] < whole["overlap"].iloc[-1]
    assert list(least["paper_id"]) == list(whole["paper_id"][:3])
    assert len(least) == 3
    assert least["title"][0] == "T" + least["paper_id"][0][1:]
    assert list(compared.table["measure"].unique())[:3] == ["category_precision@5", "follow_up MRR@5", "follow_up R@5"]
    assert compared.table["p"].dropna().between(0, 1).all()


def test_figures_are_those_of_evaluate(runs: tuple[Run, ...], relations: Path) -> None:
    compared = compare_runs([runs[0], runs[0]], relations)
    alone = evaluate_run(runs[0], relations)
    values = compared.table[compared.table["run"] == "run (2)"].set_index("measure")["value"]
    assert values["category_precision@10"] == pytest.approx(alone["category_precision@10"])
    assert values["follow_up MRR@10"] == pytest.approx(alone["relations"]["follow_up"]["MRR@10"])
    assert values["linear_accuracy"] == pytest.approx(alone["classification"]["linear_accuracy"])
    assert values["v_measure"] == pytest.approx(alone["clustering"]["v_measure"])


def test_relations_of_other_papers_are_counted(runs: tuple[Run, ...], relations: Path) -> None:
    measured = evaluate_run(runs[0], relations, only=("neighbors",))
    assert measured["n_pairs_left_out"] == 3
    assert measured["relations"]["follow_up"]["n_pairs"] == 25


def test_a_sample_of_queries_is_stated(runs: tuple[Run, ...]) -> None:
    measured = evaluate_run(runs[0], only=("neighbors",), n_queries=7, seed=3)
    assert (measured["n_queries"], measured["seed"]) == (7, 3)
    assert compare_runs(runs[:2], only=("neighbors",), n_queries=7).about["n_queries"] == 7


def test_a_large_run_has_a_sample_of_queries(runs: tuple[Run, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arxiv_embeddings.explore.evaluation.MOST_COMPARED", 40)
    monkeypatch.setattr("arxiv_embeddings.explore.evaluation.N_QUERIES", 11)
    assert evaluate_run(runs[0], only=("neighbors",))["n_queries"] == 11
    assert evaluate_run(runs[2], only=("neighbors",))["n_queries"] == 40


def test_papers_without_categories_are_measured_by_relations(tmp_path: Path, relations: Path) -> None:
    papers = [{name: row[name] for name in ("paper_id", "abstract")} for row in make_papers(range(50))]
    run = embed_papers(papers, tmp_path / "run", encoder=LetterEncoder()).run
    measured = evaluate_run(run, relations)
    assert measured["category_precision@10"] is None
    assert "classification" not in measured
    assert measured["relations"]["follow_up"]["n_queries"] == 26
    assert KnownPapers.of_run(run).categories == [None] * 50


def test_runs_without_common_papers_are_refused(runs: tuple[Run, ...], tmp_path: Path) -> None:
    other = embed_papers(make_papers(range(50, 60)), tmp_path / "other", encoder=LetterEncoder()).run
    with pytest.raises(InputError, match=r"these runs have 0 papers in common, which cannot be compared: .*other"):
        compare_runs([runs[0], other])
    with pytest.raises(InputError, match="40 papers have no 40 neighbors each: give k from 1 to 39"):
        compare_runs(runs[:2], k=40)


def test_the_command_prints_every_form(runs: tuple[Run, ...], relations: Path) -> None:
    words = ["compare", str(runs[0].folder), str(runs[1].folder), "--relations", str(relations), "--only", "neighbors"]
    text, as_json, markdown, as_csv = (
        CliRunner().invoke(app, [*words, *more], env={"COLUMNS": "80"})
        for more in ([], ["--json"], ["--form", "markdown"], ["--form", "csv"])
    )
    assert [one.exit_code for one in (text, as_json, markdown, as_csv)] == [0, 0, 0, 0]
    assert "follow_up MRR@10" in text.stdout
    assert max(map(len, text.stdout.splitlines())) <= 80
    parsed = json.loads(as_json.stdout)
    assert {"runs", "n_common", "measures", "overlap", "disagreements"} <= set(parsed)
    assert len(parsed["measures"]) == 6
    assert markdown.stdout.count("| --- |") >= 3
    assert as_csv.stdout.splitlines()[0].startswith("measure,run,n_queries,value,low,high,difference")
    assert len(as_csv.stdout.splitlines()) == 7


def test_one_run_is_no_comparison(runs: tuple[Run, ...]) -> None:
    alone = CliRunner().invoke(app, ["compare", str(runs[0].folder)])
    assert alone.exit_code == 1
    assert "a comparison needs two or more runs" in alone.output


def test_clustering_alone_is_compared(runs: tuple[Run, ...]) -> None:
    compared = compare_runs(runs[:2], only=("clustering",))
    assert compared.table["measure"].tolist() == ["v_measure", "v_measure"]
    (row,) = compared.summarize().to_dict("records")
    first, second = compared.table["value"]
    assert row["difference"].startswith(f"{second - first:+.4f}"[:6])
    assert row["p"] == ""
    assert compared.to_csv().splitlines()[0].endswith("difference,difference_low,difference_high,p")


def test_a_test_set_compares_runs_of_the_same_papers(runs: tuple[Run, ...], tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "abc"}\n')
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp3\t1\nq\tnowhere\t1\n")
    with pytest.raises(InputError, match="has 10 that another run lacks"):
        compare_runs(runs[:2], beir=tmp_path)
    with pytest.raises(InputError, match=r"no qrels/test\.tsv"):
        compare_runs(runs[:2], beir=tmp_path, split="test")


def test_pairs_that_are_left_out_are_stated(runs: tuple[Run, ...], relations: Path) -> None:
    compared = compare_runs([runs[0], runs[0]], relations)
    assert compared.about["n_pairs_left_out"] == 3
    assert compared.describe().endswith(". 3 related pairs left out, since a paper is missing")
