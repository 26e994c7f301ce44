"""The figures that `benchmarks/encode.py` makes of its measurements."""

from pathlib import Path

import numpy as np
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


@pytest.mark.slow
def test_a_paper_takes_at_most_100_bytes_of_memory(tmp_path: Path) -> None:
    measured = runs.measure_memory(tmp_path, n_few=50_000, n_many=250_000)
    assert 0 < measured["new_bytes_a_paper"] <= 100
    assert 0 < measured["append_bytes_a_paper"] <= 100
