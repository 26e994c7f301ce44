"""Search: pages join up, only shown papers are read, every ranking obeys every filter, and a reranker sorts."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.encoders.vectors import l2_normalize
from arxiv_embeddings.explore.corrections import fit_correction
from arxiv_embeddings.explore.index import open_index
from arxiv_embeddings.explore.search import (
    Query,
    SearchOptions,
    answer,
    find_similar,
    join_examples,
    open_for,
    search_text,
)
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.runs.store import Run, RunWriter
from tests.fakes import ROOT
from tests.fakes.specter_shape import make_base

N_PAPERS, DIM, IN_A_PART = 120, 8, 20
WORDS = ["graph", "vision", "stars", "proof", "ants", "noise"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "Papers with vectors drawn by chance, in six parts; one vector is there twice."
    generator = np.random.default_rng(5)
    vectors = generator.standard_normal((N_PAPERS, DIM)).astype(np.float32)
    vectors[70] = vectors[3]
    drawn = generator.integers(len(WORDS), size=(N_PAPERS, 3))
    papers = pa.table(
        {
            "paper_id": [f"2101.{row:05d}" for row in range(N_PAPERS)],
            "title": [f"On {' '.join(WORDS[one] for one in words)}" for words in drawn],
            "abstract": [f"We study {WORDS[words[0]]} number {row}." for row, words in enumerate(drawn)],
            "categories": [[["cs.CV"], ["cs.CL", "cs.CV"], ["math.CO"]][row % 3] for row in range(N_PAPERS)],
            "year": pa.array([2000 + row % 20 for row in range(N_PAPERS)], pa.int32()),
            "text_sha256": [f"{row:064x}" for row in range(N_PAPERS)],
        }
    )
    folder = tmp_path_factory.mktemp("searched") / "run"
    with RunWriter(folder, {"model": "by hand", "embedding_dim": DIM, "fingerprint": {}}) as writer:
        for begin in range(0, N_PAPERS, IN_A_PART):
            writer.add_part(papers.slice(begin, IN_A_PART), vectors[begin : begin + IN_A_PART])
    return Run(folder)


def ask(run: Run, row: int = 3) -> Query:
    "A paper as a query, by vector and by words."
    return Query("a paper", run.embeddings()[row], "graph vision", (row,))


@pytest.mark.parametrize("by", ["vectors", "words", "both"])
def test_pages_join_up_to_one_long_page(by: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arxiv_embeddings.explore.search.FUSED_DEPTH", 25)
    index = open_index(run)
    whole = answer(index, [ask(run)], SearchOptions(k=N_PAPERS, by=by))[0]
    begins = range(0, len(whole), 10)
    pages = [answer(index, [ask(run)], SearchOptions(k=10, offset=begin, by=by))[0] for begin in begins]
    assert pd.concat(pages)["row"].tolist() == whole["row"].tolist()
    assert len(set(whole["row"])) == len(whole) >= (60 if by == "words" else N_PAPERS - 1)
    assert 3 not in set(whole["row"])


@pytest.mark.parametrize("by", ["vectors", "words", "both"])
def test_every_ranking_obeys_filters(by: str, run: Run) -> None:
    options = SearchOptions(k=N_PAPERS, by=by, category="cs.cl", where="year >= 2010 and year != 2013")
    found = answer(open_index(run), [ask(run)], options)[0]
    assert len(found)
    assert all("cs.CL" in names.split() for names in found["categories"])
    assert set(found["year"]) <= set(range(2010, 2020)) - {2013}
    if by != "words":  # all that there are
        papers = run.read(["categories", "year"]).to_pylist()
        wanted = [row for row, one in enumerate(papers) if "cs.CL" in one["categories"] and 2010 <= one["year"] != 2013]
        assert sorted(found["row"]) == [row for row in wanted if row != 3]


def test_both_is_the_fusion_of_the_two_rankings(run: Run) -> None:
    index, query = open_index(run), ask(run)
    by_vectors, by_words = (answer(index, [query], SearchOptions(k=100, by=by))[0] for by in ("vectors", "words"))
    ranks = [dict(zip(found["row"], range(1, 101), strict=False)) for found in (by_vectors, by_words)]
    scores = {row: sum(1 / (60 + rank[row]) for rank in ranks if row in rank) for rank in ranks for row in rank}
    found = answer(index, [query], SearchOptions(k=30, by="both"))[0]
    assert_allclose(found["fused"], sorted(scores.values(), reverse=True)[:30], atol=6e-5)
    assert_allclose(found["fused"], [scores[row] for row in found["row"]], atol=6e-5)
    unit = l2_normalize(run.embeddings())
    assert_allclose(found["cosine"], (unit @ unit[3])[found["row"]], atol=1e-4)
    known = dict(zip(by_words["row"], by_words["bm25"], strict=True))
    assert_allclose(found["bm25"], [known.get(row, np.nan) for row in found["row"]], atol=1e-4)


def test_a_paper_that_only_words_have_found_gets_its_cosine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arxiv_embeddings.explore.search.FUSED_DEPTH", 1)
    found = answer(open_index(run), [ask(run)], SearchOptions(k=9, by="both"))[0]
    by_vectors = find_similar(run, row=3, k=9)
    assert not set(found["row"]) <= set(by_vectors["row"])
    unit = l2_normalize(run.embeddings())
    assert_allclose(found["cosine"], (unit @ unit[3])[found["row"]], atol=1e-4)


def test_vectors_are_ranked_as_by_brute_force(run: Run) -> None:
    found = find_similar(run, row=3, k=N_PAPERS)
    unit = l2_normalize(run.embeddings())
    cosines = unit @ unit[3]
    assert found["row"].iloc[0] == 70  # the same vector, and not left out with the paper itself
    assert_allclose(found["cosine"], cosines[found["row"]], atol=1e-4)
    assert (np.diff(found["cosine"]) <= 1e-4).all()
    assert len(found) == N_PAPERS - 1
    assert found.query.endswith(f"all {N_PAPERS - 1} available")


def test_examples_are_joined_and_never_found(run: Run) -> None:
    vectors, liked, unliked = run.embeddings(), [3, 40, 99], [7]
    ids = [f"2101.{row:05d}" for row in (*liked, *unliked)]
    found = find_similar(run, like=ids[:3], unlike=ids[3:], k=N_PAPERS)
    assert sorted(found["row"]) == [row for row in range(N_PAPERS) if row not in (*liked, *unliked)]
    unit = l2_normalize(vectors)
    wish = 0.75 * unit[liked].mean(axis=0) - 0.15 * unit[unliked].mean(axis=0)
    assert_allclose(join_examples(vectors[liked], vectors[unliked]), wish, rtol=1e-5, atol=1e-6)
    assert_allclose(found["cosine"], (unit @ (wish / np.linalg.norm(wish)))[found["row"]], atol=1e-4)


def test_only_shown_papers_are_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    index, read = open_index(run), []
    original = Run.read_part
    monkeypatch.setattr(
        Run,
        "read_part",
        lambda self, part, columns: read.append((part.position, *columns)) or original(self, part, columns),
    )
    found = find_similar(index, "2101.00003", k=2)
    with_titles = {position for position, *columns in read if "title" in columns}
    assert with_titles <= {0, *(row // IN_A_PART * IN_A_PART for row in found["row"])}
    assert [columns for position, *columns in read if position == IN_A_PART and "paper_id" in columns] in (
        [],
        [["paper_id", "title", "categories", "year"]],
    )
    assert not any("abstract" in columns for _, *columns in read)


def test_a_search_by_words_reads_no_vectors(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("vectors were read")

    monkeypatch.setattr(Run, "iter_vectors", refuse)
    monkeypatch.setattr(Run, "embeddings", refuse)
    assert len(search_text(run, "graph vision", by="words", k=3)) == 3
    assert len(find_similar(run, row=3, by="words", k=3)) == 3
    with pytest.raises(AssertionError, match="vectors were read"):
        find_similar(run, row=3, k=3)


def test_a_large_run_without_an_index_is_read_for_each_search(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = find_similar(run, "2101.00003", k=9)
    monkeypatch.setattr("arxiv_embeddings.explore.index.MOST_IN_MEMORY", N_PAPERS * DIM - 1)
    monkeypatch.setattr("arxiv_embeddings.explore.index.make_index", None)  # it is not called
    found = find_similar(run, "2101.00003", k=9)
    assert found["row"].tolist() == in_memory["row"].tolist()
    assert_allclose(found["cosine"], in_memory["cosine"], atol=1e-4)


@pytest.mark.parametrize("by", ["vectors", "both"])
def test_a_correction_is_applied_to_papers_and_query(by: str, run: Run) -> None:
    words = ["similar", str(run.folder), "2101.00003", "-k", "119", "--by", by, "--correction", "center", "--json"]
    found = pd.DataFrame(json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout))
    corrected = fit_correction(run, "center").apply(run.embeddings())
    cosines = corrected @ corrected[3]
    assert_allclose(found["cosine"], cosines[found["row"]], atol=1e-4)
    if by == "vectors":
        assert found["row"].tolist() == [row for row in np.argsort(-cosines, kind="stable") if row != 3]


def test_many_queries_are_answered_as_one_by_one(run: Run) -> None:
    rows = [3, 70, 11, 3]
    for by in ("vectors", "words", "both"):
        many = find_similar(run, row=rows, k=4, by=by)
        alone = [find_similar(run, row=row, k=4, by=by) for row in rows]
        assert many["row"].tolist() == [row for table in alone for row in table["row"]]
        assert many["query_id"].tolist() == [
            f"2101.{row:05d}" for row, table in zip(rows, alone, strict=True) for _ in range(len(table))
        ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("similar", "2101.0003"), "no paper '2101.0003' among the 120"),
        (("similar", "2101.0003"), "; did you mean 2101.00103, "),
        (("similar", "--row", "120"), "has rows 0 to 119"),
        (("similar", "--row", "3", "--where", "year > 2050"), "meets 'year > 2050': relax the filter"),
        (
            ("similar", "--row", "3", "--where", "year >"),
            "is invalid at character 7: expected a value, found the end",
        ),
        (("similar", "--row", "3", "--where", "yeer > 3"), "an unknown column 'yeer'; did you mean year?"),
        (("similar", "--row", "3", "--category", "cs.CVV"), "no paper has the category 'cs.CVV'; did you mean cs.CV"),
        (("similar", "--row", "3", "--page", "99"), "is beyond the last of"),
        (("similar", "--like", "2101.99999"), "no paper '2101.99999'"),
        (("search", " ", "--by", "words"), "nothing to search for"),
        (("search", "", "--by", "words"), "nothing to search for"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], message: str, run: Run) -> None:
    result = CliRunner().invoke(app, [words[0], str(run.folder), *words[1:]])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_commands_find_what_functions_find(run: Run) -> None:
    words = [
        "similar",
        str(run.folder),
        "2101.00003",
        "-k",
        "4",
        "--page",
        "2",
        "--where",
        "year < 2015",
        "--by",
        "both",
    ]
    printed = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    found = find_similar(run, "2101.00003", k=4, offset=4, where="year < 2015", by="both")
    assert [one["row"] for one in printed] == found["row"].tolist()
    assert list(printed[0]) == ["row", "cosine", "fused", "bm25", "paper_id", "title", "categories", "year"]
    words = [
        "similar",
        str(run.folder),
        "--like",
        "2101.00003",
        "--like",
        "2101.00040",
        "--unlike",
        "2101.00007",
        "--json",
    ]
    printed = json.loads(CliRunner().invoke(app, words).stdout)
    found = find_similar(run, like=["2101.00003", "2101.00040"], unlike="2101.00007")
    assert [one["row"] for one in printed] == found["row"].tolist()
    words = ["search", str(run.folder), "vision of ants", "--by", "words", "-k", "200"]
    result = CliRunner().invoke(app, words)  # no model is loaded: this run has none
    assert result.exit_code == 0
    assert "only " in result.stderr
    for wrong in (["--unlike", "2101.00007"], ["2101.00003", "--row", "3"], ["2101.00003", "--like", "2101.00004"]):
        assert CliRunner().invoke(app, ["similar", str(run.folder), *wrong]).exit_code == 2


def test_vectors_from_outside_are_checked(run: Run) -> None:
    for vector, message in (
        (np.ones(DIM + 1), f"this run's vectors have {DIM} numbers"),
        (np.full(DIM, np.nan), "NaN or infinity"),
        (np.zeros(DIM), "length zero"),
        (np.ones((2, 2, DIM)), "has shape"),
    ):
        with pytest.raises(InputError, match=message):
            find_similar(run, vector=vector)

    class Broken:
        def encode(self, texts: list[str]) -> np.ndarray:
            return np.full((len(texts), DIM), np.nan, dtype=np.float32)

    with pytest.raises(InputError, match="NaN or infinity"):
        search_text(run, "graph", encoder=Broken())


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A tiny cross-encoder with seeded random weights, as its library saves it."
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = make_base(tmp_path_factory.mktemp("cross"), n_layers=1, hidden_size=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = BertConfig.from_pretrained(folder, num_labels=1, initializer_range=0.5)
        BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_reranker_sorts_the_first_papers_again(run: Run, cross_encoder: Path) -> None:
    from sentence_transformers import CrossEncoder

    from arxiv_embeddings.encoders.reranker import load_reranker

    index, query = open_index(run), replace(ask(run), text="graph and vision")
    before = answer(index, [query], SearchOptions(k=60))[0]
    found = answer(index, [query], SearchOptions(k=60, rerank=cross_encoder))[0]
    papers = run.read(["title", "abstract"]).to_pylist()
    pairs = [(query.text, f"{papers[row]['title']} {papers[row]['abstract']}") for row in before["row"][:50]]
    expected = CrossEncoder(str(cross_encoder), device="cpu").predict(pairs)
    assert_allclose(found["reranked"][:50], np.sort(expected)[::-1], atol=1e-4)
    assert found["row"].tolist()[:50] == before["row"][:50].to_numpy()[np.argsort(-expected, kind="stable")].tolist()
    assert found["row"].tolist()[50:] == before["row"].tolist()[50:]  # it has not seen these
    assert found["reranked"][50:].isna().all()
    assert found["row"].tolist() != before["row"].tolist()
    first = answer(index, [query], SearchOptions(k=5, rerank=load_reranker(cross_encoder)))[0]
    assert first["row"].tolist() == found["row"].tolist()[:5]


@pytest.mark.slow
def test_a_reranker_with_pickled_weights_is_not_read(cross_encoder: Path, tmp_path: Path) -> None:
    from arxiv_embeddings.encoders.reranker import load_reranker

    for one in cross_encoder.iterdir():
        if one.suffix != ".safetensors":
            (tmp_path / one.name).write_bytes(one.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    with pytest.raises(InputError, match="no weights in safetensors"):
        load_reranker(tmp_path)


def test_the_page_shows_the_figures_that_were_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "hybrid.json").read_text())["queries"]
    page = (ROOT / "nbs" / "explore" / "77_search.ipynb").read_text()
    for asked, kinds in measured.items():
        for kind, figures in kinds.items():
            measure = "P@10" if kind == "category" else "MRR@10"
            means = [f"{figures[measure][name][0]:.3f}" for name in ("vectors", "words", "both")]
            mean, low, high = (f"{one:+.3f}" for one in figures[measure]["both - vectors"])
            row = f"{figures['n_queries']:,} | {measure} | {' | '.join(means)} | {mean} ({low} to {high})"
            assert row in page, (asked, kind)


def test_similar_as_a_command_imports_no_heavy_library(run: Run) -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from arxiv_embeddings.cli.main import app\n"
        f"result = CliRunner().invoke(app, ['similar', {str(run.folder)!r}, '2101.00003'])\n"
        "heavy = 'torch transformers sentence_transformers sklearn scipy openvino numba bm25s matplotlib rich pyparsing'\n"
        "print(result.exit_code, sorted(set(heavy.split()) & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines()[-1] == "0 []"


def test_a_correction_is_never_dropped_silently(run: Run) -> None:
    with pytest.raises(InputError, match="a search by words compares no vectors: leave the correction 'center' out"):
        open_for(run, "words", "center")
    with pytest.raises(InputError, match="leave the correction 'center' out"):
        open_for(open_index(run), "vectors", "center")
    assert open_for(run, "both", "center").correction.kind == "center"


def test_a_part_is_read_once_for_many_queries(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    index, alone, read = open_index(run), [find_similar(run, row=row, k=4) for row in range(40)], []
    of_run = Run.read_part
    monkeypatch.setattr(Run, "read_part", lambda *given: read.append(given[1].name) or of_run(*given))
    many = find_similar(index, row=list(range(40)), k=4)
    assert len(read) <= 4 * len(run.parts)  # queries, names and papers
    assert many["paper_id"].tolist() == [one for table in alone for one in table["paper_id"]]
    assert many["title"].tolist() == [one for table in alone for one in table["title"]]
