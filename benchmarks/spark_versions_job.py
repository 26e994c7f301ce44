"""What `benchmarks.spark_versions` runs in each of its environments; prints one line of JSON.

    python -m benchmarks.spark_versions_job FOLDER [sc://HOST:PORT]

Each check is one use of the package. A check that fails says why, and the next one is made all the same.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

N_PAPERS = 20
WITHOUT_TITLE, WITHOUT_ABSTRACT = [2], [4, 11]
LEAST_COSINE = 0.9999


@dataclass
class Job:
    "A session, papers, and the vectors that they have on one machine."

    spark: Any  # a session, classic or Connect
    folder: Path  # empty, on a disk that driver and executors share
    papers: pd.DataFrame  # paper_id, title and abstract, some of them null
    wanted: np.ndarray  # the vectors of papers with an abstract, float32, (n_vectors, dim)
    cosines: dict[str, float] = field(default_factory=dict)  # check -> the smallest one

    def make_frame(self) -> Any:
        "The papers as a DataFrame of two partitions."
        rows = [tuple(None if pd.isna(value) else value for value in row) for row in self.papers.to_numpy()]
        return self.spark.createDataFrame(rows, "paper_id string, title string, abstract string").repartition(2)

    def compare(self, check: str, rows: list[Any]) -> None:
        "Compare rows of `paper_id` and `embedding`, in whatever order they are, with one machine's; fails if they differ."
        found = {row.paper_id: row.embedding for row in rows}
        assert sorted(row.paper_id for row in rows) == sorted(self.papers["paper_id"]), "other papers"
        nulls = self.papers["paper_id"][self.papers["abstract"].isna()].tolist()
        assert [one for one in self.papers["paper_id"] if found[one] is None] == nulls, "other nulls"
        vectors = np.array([found[one] for one in self.papers["paper_id"] if found[one] is not None], np.float32)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(self.wanted, axis=1)
        self.cosines[check] = float(((vectors * self.wanted).sum(axis=1, dtype=np.float64) / lengths).min())
        assert self.cosines[check] >= LEAST_COSINE, f"smallest cosine {self.cosines[check]:.6f}"


def check_transform(job: Job) -> None:
    "A DataFrame in, a DataFrame out, and its nulls are counted."
    from arxiv_embeddings.spark import ArxivEmbedder

    embedder = ArxivEmbedder()
    embedded = embedder.transform(job.make_frame())
    assert embedded.schema["embedding"].dataType.simpleString() == "array<float>"
    job.compare("transform", embedded.select("paper_id", "embedding").collect())
    assert embedder.countNulls(embedded) == len(WITHOUT_ABSTRACT)


def check_table(job: Job) -> None:
    "The three lines of the documentation: vectors of a model in a folder, written as a table."
    from arxiv_embeddings.spark import ArxivEmbedder

    job.spark.sql("DROP TABLE IF EXISTS papers_embedded")
    embedder = ArxivEmbedder(modelPath=str(job.folder / "model"))
    embedder.transform(job.make_frame()).write.saveAsTable("papers_embedded")
    job.compare("table", job.spark.table("papers_embedded").collect())


def check_batches(job: Job) -> None:
    "Ids and vectors in Parquet, by batches, of which one is written twice."
    from arxiv_embeddings.spark import ArxivEmbedder, write_embeddings

    embedded = ArxivEmbedder().transform(job.make_frame()).cache()
    for batch_id, condition in (
        (0, "paper_id < '0000.00011'"),
        (1, "paper_id >= '0000.00011'"),
        (1, "paper_id >= '0000.00011'"),
    ):
        write_embeddings(embedded.filter(condition), f"{job.folder}/batches", batch_id=batch_id)
    rows = job.spark.read.parquet(f"{job.folder}/batches").selectExpr("id AS paper_id", "embedding")
    job.compare("batches", rows.collect())


def check_save(job: Job) -> None:
    "The Transformer alone, saved and loaded."
    from arxiv_embeddings.spark import ArxivEmbedder

    embedder = ArxivEmbedder(maxTokens=128)
    embedder.write().save(f"{job.folder}/embedder")
    assert ArxivEmbedder.load(f"{job.folder}/embedder").extractParamMap() == embedder.extractParamMap()


def check_pipeline(job: Job) -> None:
    "A stage of a pipeline behind one of Spark's own, saved and loaded."
    from pyspark.ml import Pipeline, PipelineModel
    from pyspark.ml.feature import SQLTransformer

    from arxiv_embeddings.spark import ArxivEmbedder

    stages = [SQLTransformer(statement="SELECT paper_id, title, abstract FROM __THIS__"), ArxivEmbedder()]
    Pipeline(stages=stages).fit(job.make_frame()).write().save(f"{job.folder}/pipeline")
    job.compare("pipeline", PipelineModel.load(f"{job.folder}/pipeline").transform(job.make_frame()).collect())


def check_stream(job: Job) -> None:
    "A stream that reads and writes Parquet."
    from arxiv_embeddings.spark import ArxivEmbedder

    job.make_frame().write.parquet(f"{job.folder}/arriving")
    stream = job.spark.readStream.schema("paper_id string, title string, abstract string")
    embedded = ArxivEmbedder().transform(stream.parquet(f"{job.folder}/arriving"))
    assert embedded.isStreaming
    writer = embedded.writeStream.format("parquet").option("checkpointLocation", f"{job.folder}/checkpoint")
    query = writer.trigger(availableNow=True).start(f"{job.folder}/streamed")
    assert query.awaitTermination(120), "the stream did not end"
    job.compare("stream", job.spark.read.parquet(f"{job.folder}/streamed").collect())


def check_run(job: Job) -> None:
    "A run, which executors make and store; then one of its parts is lost and made again."
    from arxiv_embeddings.runs.embed import embed_papers
    from arxiv_embeddings.runs.store import RunWriter
    from arxiv_embeddings.spark import OnSpark

    out = job.folder / "run"
    made = embed_papers(job.make_frame(), out, executor=OnSpark(job.spark), part_size=5).run
    with RunWriter(out) as writer:
        writer.commit([part for part in writer.parts if part.position != 5])
    made = embed_papers(job.make_frame().repartition(3), out, executor=OnSpark(job.spark)).run
    assert made.input["rejected"]["no abstract"]["count"] == len(WITHOUT_ABSTRACT), "other rejected rows"
    there = job.papers[job.papers["abstract"].notna()].reset_index(drop=True).sort_values("paper_id")
    assert made.paper_ids == there["paper_id"].tolist(), "other papers"
    vectors, wanted = made.embeddings(), job.wanted[there.index]
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted, axis=1)
    job.cosines["run"] = float(((vectors * wanted).sum(axis=1, dtype=np.float64) / lengths).min())
    assert job.cosines["run"] >= LEAST_COSINE, f"smallest cosine {job.cosines['run']:.6f}"


def check_file(job: Job) -> None:
    "A run from a file, whose papers the driver reads and sends."
    from arxiv_embeddings.runs.embed import embed_papers
    from arxiv_embeddings.spark import OnSpark

    job.papers.to_parquet(job.folder / "papers.parquet")
    made = embed_papers(
        job.folder / "papers.parquet", job.folder / "file", executor=OnSpark(job.spark), part_size=5
    ).run
    vectors = dict(zip(made.paper_ids, made.embeddings(), strict=True))
    assert len(made.parts) == 4, f"{len(made.parts)} parts"
    job.compare("file", [SimpleNamespace(paper_id=one, embedding=vectors.get(one)) for one in job.papers["paper_id"]])


def check_stop(job: Job) -> None:
    "A job that is stopped ends long before its tasks would."
    from arxiv_embeddings.spark.frame_parts import Job as RunningJob

    def wait(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            time.sleep(20)
            yield batch

    frame = job.make_frame()
    running = RunningJob(job.spark, frame.mapInArrow(wait, frame.schema).collect)
    time.sleep(5)
    assert not running.future.done(), "it ended by itself"
    started = time.monotonic()
    running.stop()
    assert time.monotonic() - started < 10, "it went on"
    assert running.future.exception() is not None, "it ended well"


CHECKS: dict[str, Callable[[Job], None]] = {
    "transform": check_transform,
    "table": check_table,
    "batches": check_batches,
    "save": check_save,
    "pipeline": check_pipeline,
    "stream": check_stream,
    "run": check_run,
    "file": check_file,
    "stop": check_stop,
}


def make_job(folder: Path, remote: str | None) -> Job:
    "Connect, or start a session of our own, and embed the papers here."
    from pyspark.sql import SparkSession

    from arxiv_embeddings.encoders.load import load_encoder
    from arxiv_embeddings.papers.corpus import sample_papers

    papers = pd.read_csv(sample_papers(), dtype=str)[["paper_id", "title", "abstract"]][:N_PAPERS].astype(object)
    papers.loc[WITHOUT_TITLE, "title"] = papers.loc[WITHOUT_ABSTRACT, "abstract"] = None
    encoder = load_encoder("minilm", device="cpu")
    rows = pa.Table.from_pandas(papers.drop(index=WITHOUT_ABSTRACT), preserve_index=False)
    wanted = encoder.encode(encoder.spec.texts_of(rows))
    if remote:
        spark = SparkSession.builder.remote(remote).getOrCreate()
    else:
        settings = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.memory": "1g"}
        settings["spark.sql.shuffle.partitions"] = "4"
        builder = SparkSession.builder.master("local[2]").config("spark.sql.warehouse.dir", f"{folder}/warehouse")
        for name, value in settings.items():
            builder = builder.config(name, value)
        spark = builder.getOrCreate()
    return Job(spark, folder, papers, wanted)


def explain(error: BaseException) -> str:
    "The kind of an error and the first words of its message."
    words = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {words}"[:300]


def main(folder: Path, remote: str | None = None) -> dict:
    "Make every check: check -> `passed`, or why not; the smallest cosine of each; the versions that were there."
    job, made, seconds = make_job(folder, remote), {}, {}
    for name, check in CHECKS.items():
        started = time.perf_counter()
        try:
            check(job)
            made[name] = "passed"
        except Exception as error:
            made[name] = explain(error)
        seconds[name] = round(time.perf_counter() - started, 1)
    import pyspark

    versions = {module.__name__: module.__version__ for module in (pyspark, np, pd, pa)}
    versions["python"] = ".".join(map(str, sys.version_info[:3]))
    server = job.spark.version
    job.spark.stop()
    return {"checks": made, "cosines": job.cosines, "seconds": seconds, "server": server, "versions": versions}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *sys.argv[2:3])))
