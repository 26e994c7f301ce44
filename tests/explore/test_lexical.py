"""Words: scores are BM25's, the index is mapped and never trusted, and one of another state is refused."""

import errno
import hashlib
import json
import math
import os
import pickle
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from arxiv_embeddings.explore.lexical import build_words, open_words, split_words
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.runs.store import Run, RunWriter
from tests.fakes.malicious import Malicious

WORDS = [f"word{number}" for number in range(30)]
N_PAPERS = 50


def write_run(folder: Path, seed: int) -> Run:
    "Papers of words drawn by chance, some without a title."
    generator = random.Random(seed)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(1, 25))) for _ in range(N_PAPERS)]
    papers = pa.table(
        {
            "paper_id": [f"p{row}" for row in range(N_PAPERS)],
            "title": [None if row % 5 == 0 else f"The {generator.choice(WORDS)}" for row in range(N_PAPERS)],
            "abstract": texts,
            "text_sha256": [f"{row + 1000 * seed:064x}" for row in range(N_PAPERS)],
        }
    )
    with RunWriter(folder, {"model": "by hand", "embedding_dim": 2, "fingerprint": {}}) as writer:
        for begin in range(0, N_PAPERS, 20):
            writer.add_part(papers.slice(begin, 20), np.ones((len(papers.slice(begin, 20)), 2), dtype=np.float32))
    return Run(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A run with an index of its words."
    folder = tmp_path_factory.mktemp("words") / "run"
    build_words(write_run(folder, seed=1))
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    "A copy of the run, to be spoiled."
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def score_by_definition(run: Run, query: str) -> np.ndarray:
    "BM25 as Lucene has it, from its definition."
    papers = run.read(["title", "abstract"]).to_pylist()
    texts = [split_words(f"{paper['title'] or ''} {paper['abstract']}") for paper in papers]
    mean_length = np.mean([len(text) for text in texts])
    scores = np.zeros(len(texts))
    for word in split_words(query):
        n_with = sum(word in text for text in texts)
        for row, text in enumerate(texts):
            n_times, length = Counter(text)[word], len(text) / mean_length
            weight = math.log(1 + (len(texts) - n_with + 0.5) / (n_with + 0.5))
            scores[row] += weight * n_times / (n_times + 1.5 * (0.25 + 0.75 * length))
    return scores


@pytest.mark.parametrize("query", ["word3", "Word3 WORD4, word3!", "the word9", "the nothing", "nothing at all"])
def test_scores_are_those_of_the_definition(query: str, made: Path) -> None:
    run = Run(made)
    expected = score_by_definition(run, query)
    rows, scores = open_words(run).search([query], k=N_PAPERS)[0]
    assert_allclose(scores, expected[rows].astype(np.float32), rtol=1e-5, strict=True)
    assert set(rows.tolist()) == set(np.flatnonzero(expected).tolist())
    assert (np.diff(scores) <= 0).all()
    among = np.arange(N_PAPERS) % 3 == 0
    best, _ = open_words(run).search([query], k=4, among=among)[0]
    allowed = [row for row in rows.tolist() if among[row]]
    assert_allclose(expected[best], expected[allowed[:4]], rtol=1e-6)
    assert set(best.tolist()) <= set(allowed)


def test_the_arrays_stay_on_the_disk(made: Path) -> None:
    scores = open_words(Run(made)).scored.scores
    assert all(isinstance(scores[name], np.memmap) for name in ("data", "indices", "indptr"))


def test_bm25s_alone_can_read_the_folder(made: Path) -> None:
    import bm25s

    theirs = bm25s.BM25.load(made / "index" / "words")
    rows, scores = open_words(Run(made)).search(["word3 word4"], k=3)[0]
    assert_allclose(theirs.get_scores(["word3", "word4"])[rows], scores, rtol=1e-6)


def spoil(folder: Path, change: str, malicious: Path) -> None:
    "Change one thing about an index of words."
    place = folder / "index" / "words"
    note = json.loads((place / "words.json").read_text())
    arrays = {name: np.load(place / f"{name}.csc.index.npy") for name in ("data", "indices", "indptr")}
    if change == "pickle":
        with (place / "data.csc.index.npy").open("wb") as stream:
            np.save(stream, np.array([Malicious(malicious)], dtype=object), allow_pickle=True)
    elif change == "bare pickle":
        (place / "indptr.csc.index.npy").write_bytes(pickle.dumps(Malicious(malicious)))
    elif change == "row below 0":
        np.save(place / "indices.csc.index.npy", arrays["indices"] - 1)
    elif change == "row beyond":
        np.save(place / "indices.csc.index.npy", arrays["indices"] + 1)
    elif change == "NaN":
        np.save(place / "data.csc.index.npy", arrays["data"] * np.float32(np.nan))
    elif change == "float64":
        np.save(place / "data.csc.index.npy", arrays["data"].astype(np.float64))
    elif change == "borders":
        np.save(place / "indptr.csc.index.npy", arrays["indptr"][::-1])
    elif change == "shorter":
        np.save(place / "data.csc.index.npy", arrays["data"][:-1])
    elif change == "link":
        (place / "data.csc.index.npy").rename(folder / "elsewhere.npy")
        (place / "data.csc.index.npy").symlink_to(folder / "elsewhere.npy")
    elif change == "numbers":
        numbers = json.loads((place / "vocab.index.json").read_text())
        (place / "vocab.index.json").write_text(json.dumps(dict.fromkeys(numbers, 7)))
    elif change == "missing":
        (place / "indices.csc.index.npy").unlink()
    elif change == "rule":
        note["words"] = "split at spaces"
    for name, stated in note["files"].items():  # whoever means harm writes a note that fits
        if (place / name).exists() and change != "cut":
            content = (place / name).read_bytes()
            stated |= {"n_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if change == "cut":
        (place / "data.csc.index.npy").write_bytes((place / "data.csc.index.npy").read_bytes()[:-8])
    if change == "note":
        del note["n_words"]
    (place / "words.json").write_text("{" if change == "no JSON" else json.dumps(note))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("pickle", "Python objects in dtype"),
        ("bare pickle", "pickle"),
        ("row below 0", "names a paper that the run does not have"),
        ("row beyond", "names a paper that the run does not have"),
        ("NaN", "a score is not a positive number"),
        ("float64", "its array data is not a row of float32"),
        ("borders", "borders of its words are out of order"),
        ("shorter", "its arrays have different lengths"),
        ("link", "is a link"),
        ("numbers", "does not number"),
        ("missing", "indices.csc.index.npy is missing"),
        ("rule", "split by another rule"),
        ("cut", "does not have the"),
        ("note", "n_words is missing"),
        ("no JSON", "cannot be read"),
    ],
)
def test_a_damaged_or_hostile_index_is_refused(change: str, reason: str, copied: Path, tmp_path: Path) -> None:
    spoil(copied, change, tmp_path / "was run")
    with pytest.raises(InputError, match=reason):
        open_words(Run(copied)).search([" ".join(WORDS)])
    assert not (tmp_path / "was run").exists()


def test_an_unspoiled_copy_is_accepted(copied: Path, tmp_path: Path) -> None:
    spoil(copied, "nothing", tmp_path / "was run")
    assert open_words(Run(copied)).stored


def test_an_index_of_another_run_or_state_is_refused(copied: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", seed=2)
    shutil.copytree(copied / "index", other.folder / "index")
    with pytest.raises(InputError, match="of another run"):
        open_words(other)
    build_words(other)  # replaces it
    rows, _ = open_words(other).search(["word3"], k=N_PAPERS)[0]
    assert_array_equal(np.sort(rows), np.flatnonzero(score_by_definition(other, "word3")))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_searched_all_the_same(
    number: int, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / "index")

    def refuse(folder: Path, name: str) -> None:
        raise OSError(number, os.strerror(number), str(folder / name))

    monkeypatch.setattr("arxiv_embeddings.explore.lexical.holding_lock", refuse)
    words = open_words(Run(copied))
    assert not words.stored
    assert len(words.search(["word3"])[0][0])
    assert not (copied / "index").exists()
