"""What Spark NLP computes of real abstracts is what we say it computes."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import spark

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    "The benchmark, whose Spark is ended."
    yield spark
    from pyspark.sql import SparkSession

    if session := SparkSession.getActiveSession():
        session.stop()


def test_vectors_are_computed_again_from_spark_s_own_tokens(real_data: Path, benchmark: ModuleType) -> None:
    measured = benchmark.measure_parity("200")
    assert measured["n_papers"] == 200
    for tokenizer in ("whole", "seed"):
        assert measured[tokenizer]["smallest_cosine"] >= 0.9999
        assert measured[tokenizer]["share_within_1e-4"] >= 0.999


def test_no_wordpiece_is_lost(real_data: Path, benchmark: ModuleType) -> None:
    counted = benchmark.count_lost("500")
    assert counted["n_papers"] == 500
    assert counted["whole"] == {"share_lost": 0, "papers_that_lose": 0, "papers_read_as_they_are": 500}
    assert 0.07 < counted["seed"]["share_lost"] < 0.1
