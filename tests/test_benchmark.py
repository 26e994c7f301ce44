"""The figures that `benchmarks/encode.py` makes of its measurements, and the choice of what it measures."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import encode, runs


def test_operations_are_those_counted_by_hand() -> None:
    model = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 3, "reduction": None}
    # a text of 2 tokens, one layer: query, key, value and output are products of 2x4 and 4x4, 2 * 32 each;
    # up and down are 2x4 with 4x8 and back, 2 * 64 each; scores and sums are 2x4 with 4x2 and back, 2 * 16 each
    of_two = 4 * 64 + 2 * 128 + 2 * 32
    of_three = 4 * 96 + 2 * 192 + 2 * 72
    assert encode.count_operations(np.array([2]), model) == 3 * of_two
    assert encode.count_operations(np.array([2, 3]), model) == 3 * (of_two + of_three)
    # an adapter of width 4 / 2: 2x4 with 4x2 and back, 2 * 16 each
    assert encode.count_operations(np.array([2]), model | {"reduction": 2}) == 3 * (of_two + 64)


def test_ratio_is_that_of_the_sums() -> None:
    compared = encode.compare_rounds([2.0, 4.0, 6.0], [1.0, 1.0, 2.0])
    assert compared["ratio"] == 3.0
    assert (compared["min"], compared["max"]) == (2.0, 4.0)
    assert 2.0 <= compared["low"] < 3.0 < compared["high"] <= 4.0
    # drift that slows both alike leaves no spread
    steady = encode.compare_rounds([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])
    assert steady == {"ratio": 2.0, "low": 2.0, "high": 2.0, "min": 2.0, "max": 2.0}


def test_rate_is_the_better_librarys() -> None:
    rounds = [{"torch float32": 1.0, "openvino float32": 3.0, "openvino int8": 8.0}] * 2
    rounds.append({"torch float32": 9.0, "openvino float32": 3.0, "openvino int8": 2.0})
    assert encode.find_rates(rounds) == {"float32": pytest.approx(11 / 3), "int8": 6.0}


def test_other_vectors_near_a_common_mean_are_noticed() -> None:
    random = np.random.default_rng(0)
    reference = 100 + random.standard_normal((20, 8))
    same = encode.compare_vectors(reference, 2 * reference - reference.mean(axis=0))
    assert same["centered_min"] == pytest.approx(1)
    other = encode.compare_vectors(reference, 100 + random.standard_normal((20, 8)))
    assert other["min"] > 0.999
    assert other["centered_mean"] < 0.5


def test_texts_are_cut_to_exact_lengths(minilm) -> None:
    tokenizer = encode.load_tokenizer({"folder": minilm.files.folder})
    abstracts = [
        " ".join(["We study graph embeddings, unaffordable ones."] * 10),
        "Sparse-attention transformers " * 30,
    ]
    for n_tokens in (32, 100, 256):
        texts = encode.cut_texts(abstracts, n_tokens, 3, tokenizer)
        assert minilm.tokenize(texts).lengths.tolist() == [n_tokens] * 3


def test_papers_are_chosen_by_whole_pairs() -> None:
    paper_ids = [f"p{number}" for number in range(100)]
    pairs = [(f"p{number}", f"p{number + 50}") for number in range(30)]
    relations = pd.DataFrame([*pairs, ("p0", "unknown")], columns=["src", "dst"])
    chosen = encode.choose_related(paper_ids, relations, 20)
    assert len(set(chosen)) == 20
    assert set(chosen) == {row + 50 if row < 50 else row - 50 for row in chosen}
    assert chosen.tolist() == encode.choose_related(paper_ids, relations, 20).tolist()
    # a pair that does not fit whole is left out; beyond the pairs there are others, and each paper once
    assert len(encode.choose_related(paper_ids, relations, 21)) == 21
    assert len(set(encode.choose_related(paper_ids, relations, 90))) == 90


def test_score_is_that_of_the_related_papers_rank() -> None:
    # nearest first, b has a and c, c has b and a; d is far from all
    vectors = np.array([[1, 0, 0], [1, 0.1, 0], [1, 0.5, 0], [0, 0, 1]], dtype=np.float32)
    relations = pd.DataFrame([("a", "b", "near"), ("a", "c", "second")], columns=["src", "dst", "kind"])
    scores = encode.score_relations(vectors, ["a", "b", "c", "d"], relations)
    # near: a finds b first, b finds a first; second: a finds c second, c finds b first and a second
    assert scores == {"all": pytest.approx((1 + 1 + 1 / 2) / 3, abs=1e-4), "near": 1.0, "second": 0.5}


def test_int8_is_compared_with_the_peers_int8_alone() -> None:
    def row(precision: str, seconds: float, cosine: float) -> dict:
        quality = {"cosines": {"centered_mean": cosine}, "relations": {"all": cosine / 2}}
        return {"precision": precision, "seconds": [seconds, seconds]} | quality

    rows = {
        encode.REFERENCE: row("float32", 8.0, 1.0),
        "fastembed": row("float32", 0.5, 1.0),
        "sentence_transformers_onnx_int8": row("int8", 4.0, 0.98),
        "sentence_transformers_openvino_int8": row("int8", 3.0, 0.99),
        "ours_openvino_float32": row("float32", 5.0, 1.0),
        "ours_openvino_int8": row("int8", 2.0, 0.998),
    }
    fastest, slower = encode.compare_with_peers(rows)
    assert (fastest["peer"], fastest["ratio"]) == ("sentence_transformers_openvino_int8", 1.5)
    assert (slower["peer"], slower["ratio"]) == ("sentence_transformers_onnx_int8", 2.0)
    assert (fastest["centered_ours"], fastest["centered_peer"]) == (0.998, 0.99)
    assert (fastest["mrr_ours"], fastest["mrr_peer"]) == (0.499, 0.495)


def test_contenders_are_chosen_and_peers_have_their_own_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert encode.choose_contenders("cpu", chosen=["ours_openvino_int8"]) == [encode.REFERENCE, "ours_openvino_int8"]
    monkeypatch.setattr(encode, "PEERS_PYTHON", tmp_path / "python")
    assert encode.find_python(encode.REFERENCE) == sys.executable
    with pytest.raises(encode.WorkerError, match="make bench"):
        encode.find_python("fastembed")
    (tmp_path / "python").touch()
    assert encode.find_python("fastembed") == str(tmp_path / "python")


@pytest.mark.slow
def test_a_paper_takes_at_most_100_bytes_of_memory(tmp_path: Path) -> None:
    measured = runs.measure_memory(tmp_path, n_few=50_000, n_many=250_000)
    assert 0 < measured["new_bytes_a_paper"] <= 100
    assert 0 < measured["append_bytes_a_paper"] <= 100
