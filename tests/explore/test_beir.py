"""Sets in BEIR's layout: embedded without options, asked by the run's query encoder, measured as BEIR does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.encoders.base import Encoder
from arxiv_embeddings.explore.beir import (
    evaluate_beir,
    find_for_queries,
    measure_candidates,
    measure_found,
    read_beir,
    read_candidates,
    summarize_beir,
)
from arxiv_embeddings.explore.corrections import fit_correction
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import Run
from tests.fakes.beir import JUDGED, write_beir
from tests.fakes.letters import LetterEncoder


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beir(tmp_path_factory.mktemp("beir") / "set")


@pytest.fixture(scope="module")
def run(beir: Path, tmp_path_factory: pytest.TempPathFactory, minilm: Encoder) -> Run:
    "The set's corpus in the default model."
    return embed_papers(beir / "corpus.jsonl", tmp_path_factory.mktemp("of_beir") / "run", encoder=minilm).run


def test_a_corpus_is_embedded_without_options(run: Run) -> None:
    assert run.n_papers == 144
    assert run.read("title")["title"][0].as_py().startswith("Diffing for Betrayal")
    assert run.input["rejected"] == {}


def test_queries_find_their_papers(run: Run, beir: Path, minilm: Encoder) -> None:
    measured = evaluate_beir(run, beir, encoder=minilm)
    assert measured["n_queries"] == len(JUDGED)
    assert measured["n_relevant"] == 12
    assert measured["n_relevant_not_in_run"] == 0
    assert set(measured["measures"]) == {"nDCG@10", "MAP", "MRR@10", "R@10", "R@100"}
    assert measured["measures"]["nDCG@10"] > 0.8
    assert measured["measures"]["R@100"] == 1
    assert measured["measures"]["MAP"] <= measured["measures"]["R@100"]
    assert "6 queries of the split test, 12 relevant papers" in summarize_beir(measured)[0]


@pytest.mark.slow
def test_the_command_measures_a_set(run: Run, beir: Path, minilm: Encoder) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(run.folder), "--beir", str(beir), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["measures"] == evaluate_beir(run, beir, encoder=minilm)["measures"]
    assert json.loads(result.stdout)["split"] == "test"


def test_the_program_of_beir_gives_the_same_numbers(run: Run, beir: Path, minilm: Encoder) -> None:
    import pytrec_eval  # BEIR computes its measures with it; ir-measures brings it

    read = read_beir(beir)
    found = find_for_queries(run, read.queries, minilm)
    theirs = pytrec_eval.RelevanceEvaluator(read.relevant, {"ndcg_cut.10", "map_cut.1000", "recall.10,100"})
    scores = theirs.evaluate(found)
    ours = {one.name: one for one in measure_found(read.relevant, found)}
    for name, their_name in (("nDCG@10", "ndcg_cut_10"), ("MAP", "map_cut_1000"), ("R@10", "recall_10")):
        expected = [scores[query][their_name] for query in ours[name].queries]
        np.testing.assert_allclose(ours[name].values, expected, atol=1e-9)


def test_a_set_is_measured_with_a_correction(run: Run, beir: Path, minilm: Encoder) -> None:
    corrected = evaluate_beir(run, beir, encoder=minilm, correction="center")
    assert corrected["measures"]["nDCG@10"] > 0.8
    assert "corrected by center" in summarize_beir(corrected)[0]


def test_a_paper_with_the_id_of_its_query_is_left_out(tmp_path: Path) -> None:
    encoder = LetterEncoder()
    papers = [{"paper_id": f"p{number}", "title": "", "abstract": f"abc{number}"} for number in range(3)]
    run = embed_papers(papers, tmp_path / "run", encoder=encoder).run
    found = find_for_queries(run, {"p0": "abc0", "q": "abc0"}, encoder)
    assert set(found["p0"]) == {"p1", "p2"}
    assert set(found["q"]) == {"p0", "p1", "p2"}


def test_judged_papers_and_queries_that_are_missing_are_counted(run: Run, beir: Path, tmp_path: Path, minilm) -> None:
    folder = write_beir(tmp_path / "set")
    with (folder / "qrels" / "test.tsv").open("a") as stream:
        stream.write("q0\tno-such-paper\t1\nq9\t0000.00001\t1\nq1\t0000.00001\t0\n")
    measured = evaluate_beir(run, folder, encoder=minilm)
    assert (measured["n_relevant_not_in_run"], measured["n_queries_without_text"]) == (1, 1)
    assert measured["measures"]["R@100"] == pytest.approx((5 + 2 / 3) / 6)
    lines = summarize_beir(measured)
    assert lines[1] == "1 relevant papers are not in the run, and count as not found"
    assert lines[2] == "1 judged queries left out, since queries.jsonl does not have them"


def test_a_run_of_another_corpus_is_refused(beir: Path, tmp_path: Path) -> None:
    encoder = LetterEncoder()
    run = embed_papers([{"paper_id": "p", "title": "", "abstract": "xyz"}], tmp_path / "run", encoder=encoder).run
    with pytest.raises(InputError, match="has none of the 12 relevant papers: is it made of this set's corpus"):
        evaluate_beir(run, beir, encoder=encoder)


@pytest.fixture
def letters_run(tmp_path: Path) -> Run:
    "Five papers whose vectors have the length of the text and three bytes."
    papers = [{"paper_id": f"{number}", "title": "", "abstract": text} for number, text in enumerate(LETTERS)]
    return embed_papers(papers, tmp_path / "run", encoder=LetterEncoder()).run


LETTERS = ["aaa", "aab", "azz", "zzz", "abb"]


def test_queries_go_through_the_same_correction_as_papers(letters_run: Run) -> None:
    encoder, correction = LetterEncoder(), fit_correction(letters_run, "center")
    found = find_for_queries(letters_run, {"q": "byz"}, encoder, correction)
    query, papers = (correction.apply(one) for one in (encoder.encode(["byz"]), letters_run.embeddings()))
    expected = dict(zip(letters_run.paper_ids, (query @ papers.T)[0].tolist(), strict=True))
    assert found["q"] == pytest.approx(expected, abs=1e-6)


def test_candidates_are_ranked_by_euclidean_distance(letters_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "facet.json"
    path.write_text(json.dumps({"0": {"cands": ["3", "1", "2", "0", "9"], "relevance_adju": [0, 1, 2, 3, 1]}}))
    (ndcg, mean_precision), counts = measure_candidates(letters_run, read_candidates(path))
    # the order is 1 (1), 2 (2), 3 (0); the query's own paper and a paper that the run lacks are left out
    assert mean_precision.values.tolist() == [1.0]
    best = 2 + 1 / np.log2(3)
    assert ndcg.values == pytest.approx([(1 + 2 / np.log2(3)) / best])
    assert counts == {"n_queries": 1, "n_queries_left_out": 0, "n_pairs_left_out": 2}


def test_candidates_of_other_papers_are_refused(letters_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query_id": "x", "cand_id": "1", "score": 1}\n')
    with pytest.raises(InputError, match="has no query with a relevant candidate among its papers"):
        measure_candidates(letters_run, read_candidates(path))


def test_a_line_ends_where_json_lines_end(beir: Path, tmp_path: Path) -> None:
    shutil.copytree(beir, tmp_path / "set")
    lines = (beir / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0]) | {"text": "deep\u2028learning\x85 networks"}
    text = "\n".join([json.dumps(first, ensure_ascii=False), "", *lines[1:]])
    (tmp_path / "set" / "queries.jsonl").write_text(text, encoding="utf-8")
    assert read_beir(tmp_path / "set").queries["q0"] == first["text"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beir", "set", "-k", "5"], "only --metric applies"),
        (["--beir", "set", "--sample", "9"], "only --metric applies"),
        (["--split", "dev"], "--split needs --beir"),
    ],
)
def test_options_that_would_do_nothing_are_wrong_use(words: list[str], message: str, run: Run) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(run.folder), *words])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("\u2502", " ").split())
