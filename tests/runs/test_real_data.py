"""On real abstracts of arXiv, which are not part of the repository."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sentence_transformers import SentenceTransformer

from arxiv_embeddings.explore.evaluation import read_relations
from arxiv_embeddings.papers.corpus import read_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.export import export_run
from arxiv_embeddings.runs.store import open_run
from tests.fakes.kill_loop import pick_real, run_loop

pytestmark = pytest.mark.slow

N_ABSTRACTS = 200


def test_all_10000_papers_are_accepted(real_data: Path) -> None:
    papers = read_papers(real_data / "arxiv_cs_10k.csv")
    assert (papers.report.n_rows, papers.report.n_accepted, papers.report.rejected) == (10_000, 10_000, {})
    table = papers.table()
    assert len(set(table["primary_category"].to_pylist())) == 40
    with (real_data / "arxiv_cs_10k.csv").open(encoding="utf-8", newline="") as stream:
        assert table["year"].to_pylist() == [int(row["year"]) for row in csv.DictReader(stream)]
    ids = set(table["paper_id"].to_pylist())
    relations = read_relations(real_data / "arxiv_cs_10k_relations.tsv")
    assert len(relations) == 1398
    assert set(relations["src"]) | set(relations["dst"]) <= ids


def test_exported_vectors_are_those_of_sentence_transformers(real_data: Path, minilm, tmp_path: Path) -> None:
    run = embed_papers(real_data / "arxiv_cs_10k.csv", tmp_path / "run", limit=N_ABSTRACTS, encoder=minilm).run
    (path,) = export_run(run, "npy")
    reference = SentenceTransformer(str(minilm.files.folder), device="cpu")
    reference.max_seq_length = 512
    papers = read_papers(real_data / "arxiv_cs_10k.csv").table(limit=N_ABSTRACTS).to_pylist()
    theirs = reference.encode([f"{paper['title']} [SEP] {paper['abstract']}" for paper in papers])
    assert_allclose(np.load(path), theirs, atol=1e-5, strict=True)


@pytest.mark.parametrize("separator", [" ", ". "])
def test_another_separator_would_be_noticed(separator: str, real_data: Path, minilm) -> None:
    papers = read_papers(real_data / "arxiv_cs_10k.csv").table(limit=4).to_pylist()
    with_separator = minilm.encode([f"{paper['title']} [SEP] {paper['abstract']}" for paper in papers])
    other = minilm.encode([f"{paper['title']}{separator}{paper['abstract']}" for paper in papers])
    assert np.abs(with_separator - other).max() > 1e-3


def test_killed_while_real_abstracts_are_embedded(real_data: Path) -> None:
    # texts that fill 512 tokens, each process a fresh one, every vector compared; tests/fakes/kill_loop.py has a longer form
    done = run_loop(n_kills=2, model="minilm", seed=5, n_abstracts=24)
    assert done["n_kills"] >= 2


def test_every_vector_is_the_same_in_fresh_processes(real_data: Path, tmp_path: Path) -> None:
    script = """
import sys
from arxiv_embeddings.runs.embed import embed_papers
embed_papers(sys.argv[1], sys.argv[2], part_size=20, device="cpu")
"""
    papers = pick_real(tmp_path / "papers.csv", 60)
    for number in range(3):
        subprocess.run([sys.executable, "-c", script, str(papers), str(tmp_path / f"run{number}")], check=True)
    runs = [open_run(tmp_path / f"run{number}") for number in range(3)]
    for run in runs[1:]:
        assert run.paper_ids == runs[0].paper_ids
        assert_allclose(run.embeddings(), runs[0].embeddings(), atol=1e-6, strict=True)
