"""Ids and vectors as tables: each batch once, whatever is killed, and never a folder that Spark reads in part."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import functions as F

from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.spark import tables, write_embeddings
from arxiv_embeddings.spark.session import make_session
from tests.fakes import ROOT

pytestmark = pytest.mark.spark

FORMATS = ("parquet", "delta")
SETTINGS = (
    tables.DELTA_SETTINGS
    | {"spark.databricks.delta.snapshotPartitions": "1"}
    | {"spark.driver.memory": "1g", "spark.sql.shuffle.partitions": "2"}
)


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    warehouse = {"spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse"))}
    session = make_session("local[2]", jars="none", conf=SETTINGS | warehouse)
    yield session
    session.stop()


def make_vectors(spark: Any, start: int, end: int) -> Any:
    "Papers by number, each with a vector that tells it; each seventh has none."
    vector = F.array(F.col("id").cast("float"), F.lit(0.5).cast("float"))
    vectors = F.when(F.col("id") % 7 != 0, vector).alias("embedding")
    return spark.range(start, end, 1, 2).select(
        F.col("id").cast("string").alias("paper_id"), F.lit("A").alias("t"), vectors
    )


def read_ids(spark: Any, target: str, format: str) -> list[int]:
    "The ids in a folder, and a check of their vectors."
    rows = spark.read.format(format).load(target).select("id", "embedding").collect()
    assert all(row.embedding == (None if int(row.id) % 7 == 0 else [float(row.id), 0.5]) for row in rows)
    return sorted(int(row.id) for row in rows)


@pytest.mark.parametrize("format", FORMATS)
def test_a_batch_is_written_once(spark: Any, tmp_path: Path, format: str) -> None:
    target = f"file://{tmp_path}/table"
    for number in (0, 1, 1, 0, 1):
        if format == "delta" and number == 0 and (tmp_path / "table").exists():
            continue  # a lower number than the last one is no second write of the last one
        write_embeddings(make_vectors(spark, 10 * number, 10 * number + 10), target, format=format, batch_id=number)
    assert read_ids(spark, target, format) == list(range(20))
    write_embeddings(make_vectors(spark, 20, 30), target, format=format, batch_id=0, batch_source="late.papers")
    assert read_ids(spark, target, format) == list(range(30))


@pytest.mark.parametrize("format", FORMATS)
def test_append_and_overwrite(spark: Any, tmp_path: Path, format: str) -> None:
    target = f"file://{tmp_path}/table"
    for start in (0, 10):
        write_embeddings(make_vectors(spark, start, start + 10), target, format=format)
    assert read_ids(spark, target, format) == list(range(20))
    write_embeddings(make_vectors(spark, 5, 8), target, "overwrite", format)
    assert read_ids(spark, target, format) == [5, 6, 7]
    made = spark.read.format(format).load(target)
    assert made.schema.simpleString() == "struct<id:string,embedding:array<float>>"


@pytest.mark.parametrize("format", FORMATS)
def test_a_table_by_name(spark: Any, format: str) -> None:
    name = f"embedded_in_{format}"
    for number in (0, 0, 1):
        batch_id = number if format == "delta" else None
        mode = "append" if number or format == "delta" else "overwrite"
        write_embeddings(make_vectors(spark, number, number + 1), name, mode, format, batch_id)
    assert sorted(row.id for row in spark.table(name).collect()) == ["0", "1"]


def test_a_batch_that_was_written_in_part_is_replaced(spark: Any, tmp_path: Path) -> None:
    target = f"file://{tmp_path}/table"
    make_vectors(spark, 90, 95).select(F.col("paper_id").alias("id"), "embedding").write.parquet(
        f"{target}/batch=papers-3"
    )
    (tmp_path / "table" / "batch=papers-3" / "_SUCCESS").unlink()
    write_embeddings(make_vectors(spark, 0, 10), f"{target}/", batch_id=3)
    assert read_ids(spark, target, "parquet") == list(range(10))
    assert (tmp_path / "table" / "batch=papers-3" / "_SUCCESS").exists()


def test_files_and_batches_are_not_mixed(spark: Any, tmp_path: Path) -> None:
    flat, batches = f"file://{tmp_path}/flat", f"file://{tmp_path}/batches"
    write_embeddings(make_vectors(spark, 0, 3), flat)
    write_embeddings(make_vectors(spark, 0, 3), batches, batch_id=0)
    tables._CHECKED.clear()  # as in a process that comes later
    with pytest.raises(InputError, match="flat has files outside of batches: append without a batch_id"):
        write_embeddings(make_vectors(spark, 3, 6), flat, batch_id=1)
    with pytest.raises(InputError, match="batches has batches: append with a batch_id"):
        write_embeddings(make_vectors(spark, 3, 6), batches)
    for start, number in ((3, 1), (6, 2)):
        write_embeddings(make_vectors(spark, start, start + 3), flat)
        write_embeddings(make_vectors(spark, start, start + 3), f"{batches}/", batch_id=number)
    assert read_ids(spark, flat, "parquet") == read_ids(spark, batches, "parquet") == list(range(9))
    write_embeddings(make_vectors(spark, 0, 3), batches, "overwrite")
    with pytest.raises(InputError, match="batches has files outside of batches"):
        write_embeddings(make_vectors(spark, 3, 6), f"{batches}/", batch_id=3)


STREAM = """
import os, signal, sys, threading
from pyspark.sql import functions as F
from arxiv_embeddings.spark import write_embeddings
from arxiv_embeddings.spark.session import make_session
from tests.spark.test_tables import FORMATS, SETTINGS, start_query

spark = make_session("local[2]", jars="none", conf=SETTINGS)
both = threading.Barrier(len(FORMATS))

def kill(batch_id):
    if batch_id == 1:  # it is written in both formats, and no checkpoint knows of it
        both.wait()
        os.kill(spark.sparkContext._gateway.proc.pid, signal.SIGKILL)

queries = [start_query(spark, sys.argv[1], format, kill) for format in FORMATS]
for query in queries:
    query.awaitTermination()
"""


def start_query(spark: Any, folder: str, format: str, after: Any = lambda batch_id: None) -> Any:
    "Write what arrives, a file at a time, and call `after` when a batch is written."

    def write_batch(batch: Any, batch_id: int) -> None:
        write_embeddings(batch, f"file://{folder}/{format}", format=format, batch_id=batch_id)
        after(batch_id)

    arriving = spark.readStream.schema("paper_id string, t string, embedding array<float>").option(
        "maxFilesPerTrigger", 1
    )
    return (
        arriving.parquet(f"file://{folder}/arriving")
        .writeStream.foreachBatch(write_batch)
        .option("checkpointLocation", f"file://{folder}/checkpoint-{format}")
        .trigger(availableNow=True)
        .start()
    )


def test_a_stream_that_was_killed_has_each_paper_once(spark: Any, tmp_path: Path) -> None:
    for number in range(3):
        make_vectors(spark, 10 * number, 10 * number + 10).coalesce(1).write.mode("append").parquet(
            f"file://{tmp_path}/arriving"
        )
    command = [sys.executable, "-c", STREAM, str(tmp_path)]
    killed = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert killed.returncode != 0
    commits = {format: list((tmp_path / f"checkpoint-{format}" / "commits").glob("[0-9]*")) for format in FORMATS}
    assert {format: [one.name for one in found] for format, found in commits.items()} == {
        name: ["0"] for name in FORMATS
    }
    for format in FORMATS:
        target = f"file://{tmp_path}/{format}"
        assert len(read_ids(spark, target, format)) == 20, killed.stderr[-2_000:]
        query = start_query(spark, str(tmp_path), format)
        assert query.awaitTermination(120)
        assert read_ids(spark, target, format) == list(range(30))


def test_what_is_refused(spark: Any, tmp_path: Path) -> None:
    papers = make_vectors(spark, 0, 3)
    with pytest.raises(InputError, match="the DataFrame has no column paper: available are paper_id, t, embedding"):
        write_embeddings(papers, f"file://{tmp_path}/new", id_column="paper")
    with pytest.raises(InputError, match="the column t must be array<float>, not string: cast it"):
        write_embeddings(papers, f"file://{tmp_path}/new", embedding_column="t")
    with pytest.raises(InputError, match=r"batch_id must be a whole number from 0 on, not 1\.5"):
        write_embeddings(papers, f"file://{tmp_path}/new", batch_id=1.5)
    with pytest.raises(InputError, match="batch_source must be letters"):
        write_embeddings(papers, f"file://{tmp_path}/new", batch_id=1, batch_source="a b")
    assert not (tmp_path / "new").exists()
