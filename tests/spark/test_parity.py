"""What Spark NLP computes of real abstracts is what we say it computes."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks import spark
from benchmarks.spark_nlp_reference import first_subtoken, reference_vector

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    "The benchmark, whose Spark is ended."
    yield spark
    from pyspark.sql import SparkSession

    if session := SparkSession.getActiveSession():
        session.stop()


# formulas, accents, spaces that do not break, a truncation, characters that Spark NLP's rules treat otherwise than BERT's
HARD_TEXTS = [
    "A graph.",
    "State-of-the-art $k$-means, e.g. BERT-base (pre-trained), isn't 10^{-3} worse.",
    "Caf\u00e9s na\u00efvely co\u00f6perate \u2014 \u201cquoted\u201d, 50 \u20ac; \u03b2-decay and x\u2081\u2082.",
    "\u91cf\u5b50\u8a08\u7b97 and graphs\u3000in wide\u00a0spaces",
    "unphysical words " * 300 + "never read",
    "We study e\u0301tale cohomology; see arXiv:2101.00001v2 [math.AG], with [MASK].",
    "soft\u00adhyphens, zero\u200bwidth, \U0001d49c-modules",
]


def test_first_subtokens() -> None:
    "What Spark NLP reads of a token, by its own copy of BERT's rules."
    pairs = {
        "state-of-the-art": "state",
        "$k$-means": "$",
        "\u00c9tale": "etale",
        "e\u0301tale": "etale",
        "\u91cf\u5b50": "\u91cf",
        "wide\u00a0spaces": "wide\u00a0spaces",
        "in\u3000wide": "in",
        "soft\u00adhyphens": "soft\u00adhyphens",
        "\x00": "",
        "": "",
    }
    assert {token: first_subtoken(token) for token in pairs} == pairs
    assert first_subtoken("BERT-base", lower_case=False) == "BERT"


def test_reference_vector_averages_first_subwords_and_takes_sep_at_the_cut() -> None:
    subwords = [[7, 8], [], [9], [10]]
    seen = []

    def run_model(ids: np.ndarray) -> np.ndarray:
        seen.append(ids.tolist())
        return np.arange(len(ids), dtype=np.float32)[:, None]

    assert reference_vector(subwords, run_model) == [np.mean([1, 3, 4], dtype=np.float32)]
    assert reference_vector(subwords, run_model, max_tokens=5) == [np.mean([1, 3, 4], dtype=np.float32)]
    assert reference_vector(subwords, run_model, max_tokens=4) == [np.mean([1, 3], dtype=np.float32)]
    assert seen == [[101, 7, 8, 9, 10, 102], [101, 7, 8, 9, 102], [101, 7, 8, 102]]


def test_the_reference_holds_for_hard_texts(benchmark: ModuleType) -> None:
    measured = benchmark.compare_with_reference(HARD_TEXTS)
    assert list(measured) == ["bert", "spark-nlp"]
    for found in measured.values():
        assert found["share_within_1e-4"] == 1
        assert found["smallest_cosine"] > 0.999999


def test_the_usual_tokenizer_hides_subwords_of_hard_texts(benchmark: ModuleType) -> None:
    # without the last two: Spark NLP reads `[MASK]` as three subwords, and keeps soft hyphens
    counted = benchmark.count_hidden_subwords(HARD_TEXTS[:-2])
    assert counted["bert"] == {"share_lost": 0, "papers_that_lose": 0, "papers_read_as_they_are": 5}
    assert counted["n_subwords"] == 971
    assert counted["spark-nlp"] == {"share_lost": 0.0309, "papers_that_lose": 3, "papers_read_as_they_are": 2}


def test_vectors_are_computed_again_from_spark_s_own_tokens(real_data: Path, benchmark: ModuleType) -> None:
    measured = benchmark.measure_parity("100")
    assert measured["n_papers"] == 100
    for tokenizer in ("bert", "spark-nlp"):
        assert measured[tokenizer]["smallest_cosine"] >= 0.9999
        assert measured[tokenizer]["share_within_1e-4"] >= 0.999


def test_no_subword_is_lost(real_data: Path, benchmark: ModuleType) -> None:
    counted = benchmark.count_lost("200")
    assert counted["n_papers"] == 200
    assert counted["bert"] == {"share_lost": 0, "papers_that_lose": 0, "papers_read_as_they_are": 200}
    assert 0.07 < counted["spark-nlp"]["share_lost"] < 0.1
