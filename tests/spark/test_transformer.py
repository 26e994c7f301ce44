"""Vectors as a column: in batches and in streams, with the vectors of one machine, however the model travels."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyspark import SparkContext, cloudpickle
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import SQLTransformer
from pyspark.sql import functions as F

from arxiv_embeddings.encoders.base import Encoder
from arxiv_embeddings.encoders.load import load_encoder
from arxiv_embeddings.encoders.vectors import paired_cosines
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.spark import ArxivEmbedder, transformer
from arxiv_embeddings.spark.session import make_session

pytestmark = pytest.mark.spark

PAPERS = pd.read_csv(sample_papers(), dtype=str)[["paper_id", "title", "abstract"]][:24]
SETTINGS = {"spark.driver.memory": "1g", "spark.sql.shuffle.partitions": "2"}


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    session = make_session("local[2]", jars="none", conf=SETTINGS)
    yield session
    session.stop()


@pytest.fixture(scope="module")
def papers(spark: Any) -> Any:
    "24 papers in two partitions."
    return spark.createDataFrame(PAPERS).repartition(2).cache()


def encode(encoder: Encoder, frame: pd.DataFrame) -> np.ndarray:
    return encoder.encode(encoder.spec.texts_of(pa.Table.from_pandas(frame, preserve_index=False)))


def assert_vectors(made: pd.DataFrame, wanted: np.ndarray, papers: pd.DataFrame = PAPERS, column: str = "embedding"):
    "Compare a DataFrame's vectors with those of `papers`, whatever the order of its rows."
    found = made.set_index("paper_id").loc[papers["paper_id"], column]
    vectors = np.stack(found)
    assert vectors.dtype == np.float32
    assert vectors.shape == wanted.shape
    assert paired_cosines(vectors, wanted).min() >= 0.99999
    assert np.allclose(vectors, wanted, atol=1e-5)


def test_three_lines_into_a_table(spark: Any, papers: Any, minilm: Encoder, tmp_path: Path) -> None:
    embedder = ArxivEmbedder(model="minilm", inputCols=["title", "abstract"], outputCol="embedding")
    embedder.transform(papers).write.parquet(f"file://{tmp_path}/embedded")
    made = spark.read.parquet(f"file://{tmp_path}/embedded")
    assert made.schema.simpleString() == ("struct<paper_id:string,title:string,abstract:string,embedding:array<float>>")
    pd.testing.assert_frame_equal(
        made.drop("embedding").toPandas().sort_values("paper_id", ignore_index=True),
        PAPERS.sort_values("paper_id", ignore_index=True),
    )
    assert_vectors(made.toPandas(), encode(minilm, PAPERS))
    assert embedder.countNulls(made) == 0


def test_transform_starts_no_job_and_needs_no_context(spark: Any, papers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    callers, context = set(), SparkContext._active_spark_context

    def note_caller(session: Any) -> SparkContext:
        callers.add(sys._getframe(1).f_globals["__name__"].split(".")[0])
        return context

    monkeypatch.setattr(type(spark), "sparkContext", property(note_caller))
    context.setJobGroup("transformer", "a test")
    embedded = ArxivEmbedder().transform(papers)
    assert embedded.columns == ["paper_id", "title", "abstract", "embedding"]
    assert list(context.statusTracker().getJobIdsForGroup("transformer")) == []
    assert callers <= {"pyspark"}  # Spark's own code, which Connect has otherwise


def test_nulls_and_texts_without_a_known_token(spark: Any, minilm: Encoder) -> None:
    rows = PAPERS[:10].copy()
    rows.loc[2, "title"] = None
    rows.loc[4, "abstract"] = None
    rows.loc[5, "abstract"] = " \n "
    rows.loc[6, ["title", "abstract"]] = [None, "\u200b\u200c"]
    embedder = ArxivEmbedder()
    embedded = embedder.transform(spark.createDataFrame(rows).coalesce(1)).cache()
    made = embedded.toPandas()
    assert made["paper_id"].tolist() == rows["paper_id"].tolist()
    assert made.index[made["embedding"].isna()].tolist() == [4, 5, 6]
    kept = rows.drop(index=[4, 5, 6])
    assert_vectors(made.drop(index=[4, 5, 6]), encode(minilm, kept), kept)
    assert_vectors(made.loc[[2]], minilm.encode([rows.loc[2, "abstract"]]), rows.loc[[2]])
    assert embedder.countNulls(embedded) == 3
    nothing = embedded.drop("embedding").filter("abstract IS NULL")
    assert [row.embedding for row in embedder.transform(nothing).collect()] == [None]
    assert embedder.transform(nothing.limit(0)).collect() == []


def test_one_column_and_the_abstract_alone(papers: Any, minilm: Encoder) -> None:
    titles = ArxivEmbedder(inputCols=["title"], outputCol="of_title").transform(papers).toPandas()
    assert_vectors(titles, minilm.encode(PAPERS["title"].tolist()), column="of_title")
    abstracts = ArxivEmbedder(inputCols=["Title", "ABSTRACT"], text="abstract").transform(papers).toPandas()
    assert_vectors(abstracts, minilm.encode(PAPERS["abstract"].tolist()))


def test_options_of_the_model(papers: Any) -> None:
    options = {"precision": "int8", "max_tokens": 64, "truncate_dim": 128, "prompt": "paper: ", "pooling": "mean"}
    encoder = load_encoder("minilm", device="cpu", long_text="windows", **options)
    given = {"precision": "int8", "maxTokens": 64, "truncateDim": 128, "prompt": "paper: ", "pooling": "mean"}
    made = ArxivEmbedder(longText="windows", **given).transform(papers).toPandas()
    wanted = encode(encoder, PAPERS)
    vectors = np.stack(made.set_index("paper_id").loc[PAPERS["paper_id"], "embedding"])
    assert vectors.shape == (24, 128)
    assert paired_cosines(vectors, wanted).min() > encoder.least_cosine


def test_other_columns_keep_their_types(spark: Any) -> None:
    rows = spark.createDataFrame(PAPERS[:3]).select(
        "*",
        F.lit(1).alias("number"),
        F.array(F.lit("cs.CV"), F.lit(None)).alias("categories"),
        F.struct(F.lit(1.5).alias("a"), F.current_date().alias("b")).alias("nested"),
        F.create_map(F.lit("k"), F.lit(2)).alias("map"),
        F.current_timestamp().alias("time"),
        F.lit(b"\x00").alias("bytes"),
    )
    embedded = ArxivEmbedder().transform(rows)
    assert embedded.drop("embedding").schema == rows.schema
    (row,) = embedded.limit(1).collect()
    assert (row.number, row.categories, row.nested.a, row.map) == (1, ["cs.CV", None], 1.5, {"k": 2})


def test_small_arrow_batches(spark: Any, papers: Any, minilm: Encoder) -> None:
    name = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark.conf.get(name)
    spark.conf.set(name, "7")
    try:
        assert_vectors(ArxivEmbedder().transform(papers).toPandas(), encode(minilm, PAPERS))
    finally:
        spark.conf.set(name, before)


# how the model travels


def test_a_model_that_is_sent(papers: Any, minilm: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "shares_disk", lambda spark: False)
    embedder = ArxivEmbedder()
    made = embedder._make_embedder(papers.sparkSession, (1, 2))
    assert (made.place, len(made.archive) > 1 << 20) == ("", True)
    assert_vectors(embedder.transform(papers).toPandas(), encode(minilm, PAPERS))
    monkeypatch.setattr(transformer, "LARGEST_SENT", 1 << 20)
    with pytest.raises(InputError, match="and at most 1 MiB are sent to executors: set modelPath to a folder"):
        embedder.transform(papers)


def test_a_model_in_a_shared_folder(papers: Any, minilm: Encoder, tmp_path: Path) -> None:
    embedder = ArxivEmbedder(modelPath=str(tmp_path / "model"))
    assert_vectors(embedder.transform(papers).toPandas(), encode(minilm, PAPERS))
    assert (tmp_path / "model" / "model.xml").exists()
    with pytest.raises(InputError, match="contains something other than minilm: choose a new folder"):
        ArxivEmbedder(modelPath=str(tmp_path / "model"), precision="int8").transform(papers)
    embedded = embedder.transform(papers)
    weights = tmp_path / "model" / "model.bin"
    content = bytearray(weights.read_bytes())
    content[1_000_000] ^= 1
    (tmp_path / "other").mkdir()
    weights.rename(tmp_path / "other" / "model.bin")  # workers may have mapped the old file
    weights.write_bytes(content)
    made = embedder._make_embedder(papers.sparkSession, (1, 2))
    with pytest.raises(InputError, match="is damaged or missing"):
        transformer.load_in_worker(made.place, made.content_sha256, json.dumps(vars(made.spec)), '{"threads": 1}')
    assert embedded.columns[-1] == "embedding"


def make_connect_session(**attributes: Any) -> Any:
    "An object of a class in Spark Connect's module, as a session of it is."
    return type("SparkSession", (), {"__module__": "pyspark.sql.connect.session"} | attributes)()


def test_a_model_is_an_artifact_of_a_session_of_spark_connect(minilm: Encoder) -> None:
    added: list[tuple[str, bool]] = []
    sessions = [
        make_connect_session(session_id=name, addArtifact=lambda _, uri, archive: added.append((uri, archive)))
        for name in ("first", "second")
    ]
    for session in (*sessions, *sessions):
        place, archive = transformer.place_model(session, minilm.model_folder)
        assert (place, archive) == (minilm.model_folder.content_sha256[:16], b"")
    assert [(uri.endswith(f"{place}.zip#{place}"), archive) for uri, archive in added] == [(True, True)] * 2
    place, archive = transformer.place_model(sessions[0], minilm.model_folder, streams=True)
    assert (place, len(archive) > 1 << 20) == ("", True)


def test_a_model_that_a_server_does_not_take(minilm: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any, uri: str, archive: bool) -> None:
        raise RuntimeError("artifacts are off\nand more")

    refusing = make_connect_session(session_id="refusing", addArtifact=refuse)
    with pytest.raises(InputError, match=r"did not accept the model, set modelPath to a folder .*: artifacts are off$"):
        transformer.place_model(refusing, minilm.model_folder)
    old = make_connect_session()  # 3.4 has no artifacts
    assert transformer.place_model(old, minilm.model_folder)[0] == ""
    monkeypatch.setattr(transformer, "LARGEST_IN_CONNECT", 1 << 20)
    with pytest.raises(InputError, match="at most 1 MiB are sent to executors: set modelPath"):
        transformer.place_model(old, minilm.model_folder)


def test_spark_connect_3_saves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = ArxivEmbedder()
    monkeypatch.setattr(transformer, "is_remote", lambda: True)
    for action in (embedder.write, ArxivEmbedder.read):
        with pytest.raises(
            InputError, match=r"Spark Connect 3\.5\.\d+ cannot save or load ArxivEmbedder: make it anew"
        ):
            action()
    monkeypatch.setattr(transformer.pyspark, "__version__", "4.0.0")
    embedder.write()


IN_A_WORKER = """
import sys
for name in ("torch", "transformers", "sentence_transformers", "nncf", "huggingface_hub"):
    sys.modules[name] = None  # an import of it fails
import pyarrow as pa
from pyspark import cloudpickle
from arxiv_embeddings.spark.via_encoder import _WORKER_CACHE
embedder = cloudpickle.loads(open(sys.argv[1], "rb").read())
batch = pa.RecordBatch.from_pydict({"title": ["A", "B"], "abstract": ["About stars.", None]})
loaded = []
for made in embedder.add_vectors(iter([batch, batch])):
    loaded.extend(map(id, _WORKER_CACHE.values()))
    print([one and len(one) for one in made["embedding"].to_pylist()])
assert len(loaded) == 2 and len(set(loaded)) == 1
"""


def test_a_worker_needs_no_torch_and_loads_once(papers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "shares_disk", lambda spark: False)
    function = ArxivEmbedder()._make_embedder(papers.sparkSession, (0, 1))
    (tmp_path / "function").write_bytes(cloudpickle.dumps(function))
    monkeypatch.setenv("ARXIV_EMBEDDINGS_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-c", IN_A_WORKER, str(tmp_path / "function")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for one in both:
        output, errors = one.communicate(timeout=60)
        assert (one.returncode, output) == (0, "[384, None]\n[384, None]\n"), errors
    folders = [one.name for one in (tmp_path / "cache" / "sent").iterdir() if one.is_dir()]
    assert folders == [function.content_sha256[:16]]


# Spark ML and streams


def test_in_a_pipeline_saved_and_loaded(papers: Any, minilm: Encoder, tmp_path: Path) -> None:
    embedder = ArxivEmbedder(maxTokens=128, outputCol="vector", modelPath=str(tmp_path / "model"))
    embedder.write().save(f"file://{tmp_path}/embedder")
    loaded = ArxivEmbedder.load(f"file://{tmp_path}/embedder")
    assert loaded.uid == embedder.uid
    assert loaded.extractParamMap() == embedder.extractParamMap()
    kept = [path for path in (tmp_path / "embedder").rglob("*") if path.is_file() and path.name.startswith("part-")]
    assert [json.loads(path.read_text())["paramMap"] for path in kept] == [
        {"maxTokens": 128, "outputCol": "vector", "modelPath": str(tmp_path / "model")}
    ]
    stages = [SQLTransformer(statement="SELECT paper_id, title, abstract FROM __THIS__"), ArxivEmbedder()]
    Pipeline(stages=stages).fit(papers).write().save(f"file://{tmp_path}/pipeline")
    pipeline = PipelineModel.load(f"file://{tmp_path}/pipeline")
    assert isinstance(pipeline.stages[1], ArxivEmbedder)
    assert_vectors(pipeline.transform(papers).toPandas(), encode(minilm, PAPERS))
    changed = embedder.copy({embedder.outputCol: "other"})
    assert (changed.getOutputCol(), embedder.getOutputCol()) == ("other", "vector")


def test_a_stream(spark: Any, minilm: Encoder, tmp_path: Path) -> None:
    rows = PAPERS[:20].copy()
    rows.loc[3, "abstract"] = None
    (tmp_path / "arriving").mkdir()
    rows[:10].to_parquet(tmp_path / "arriving" / "first.parquet")
    schema = "paper_id string, title string, abstract string"
    stream = spark.readStream.schema(schema).parquet(f"file://{tmp_path}/arriving")
    embedded = ArxivEmbedder().transform(stream).observe("papers", F.count_if(F.isnull("embedding")).alias("nulls"))
    assert embedded.isStreaming
    nulls = []
    for _ in range(2):
        query = (
            embedded.writeStream.format("parquet")
            .option("checkpointLocation", f"file://{tmp_path}/checkpoint")
            .trigger(availableNow=True)
            .start(f"file://{tmp_path}/embedded")
        )
        query.awaitTermination(60)
        nulls += [one["observedMetrics"]["papers"]["nulls"] for one in query.recentProgress if one["numInputRows"]]
        query.stop()
        rows[10:].to_parquet(tmp_path / "arriving" / "second.parquet")
    made = spark.read.parquet(f"file://{tmp_path}/embedded").toPandas()
    assert sorted(made["paper_id"]) == sorted(rows["paper_id"])
    assert nulls == [1, 0]
    kept = rows.drop(index=3)
    assert_vectors(made[made["paper_id"] != rows.loc[3, "paper_id"]], encode(minilm, kept), kept)
    assert made.set_index("paper_id").loc[rows.loc[3, "paper_id"], "embedding"] is None


# what is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputCols": ["title", "summary"]}, "no column summary: available are paper_id, title, abstract"),
        ({"inputCols": ["paper.title", "abstract"]}, "no column paper.title: select the nested field first"),
        (
            {"inputCols": ["paper_id", "title", "abstract"]},
            "inputCols must be one column, or title and abstract, not 3",
        ),
        ({"inputCols": []}, "inputCols must be one column, or title and abstract, not 0 columns"),
        ({"outputCol": "Title"}, "has a column Title already: drop it, or set outputCol to another name"),
        ({"inputCols": ["abstract"], "text": "title\\+abstract"}, "no text rule"),
        ({"inputCols": ["abstract"], "text": "title+abstract"}, "text title\\+abstract needs two columns"),
        ({"precision": "float16"}, "executors have no float16"),
        ({"precision": "int4"}, "precision must be one of float32"),
        ({"longText": "cut"}, "longText must be one of truncate, windows, not 'cut'"),
        ({"pooling": "middle"}, "pooling must be one of"),
        ({"model": "no such model"}, "no such model"),
        ({"truncateDim": 1000}, "truncate_dim 1000 is too large"),
    ],
)
def test_what_transform_refuses(papers: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        ArxivEmbedder(**given).transform(papers)
    assert len(str(raised.value).splitlines()) == 1


def test_columns_that_cannot_work(spark: Any, papers: Any) -> None:
    from pyspark.ml.linalg import Vectors

    with pytest.raises(InputError, match="column abstract must be a string, not array<string>"):
        ArxivEmbedder().transform(papers.withColumn("abstract", F.array("abstract")))
    with pytest.raises(InputError, match="has two columns title"):
        ArxivEmbedder().transform(papers.select("title", "abstract", "title"))
    with pytest.raises(InputError, match=r"has a column 'a\.b'"):
        ArxivEmbedder().transform(papers.withColumn("a.b", F.lit(1)))
    with pytest.raises(InputError, match="column vector has the type vector, which cannot pass through Python"):
        ArxivEmbedder().transform(papers.crossJoin(spark.createDataFrame([(Vectors.dense([1.0]),)], ["vector"])))
    with pytest.raises(TypeError):
        ArxivEmbedder(maxTokens="many")
    with pytest.raises(TypeError):
        ArxivEmbedder(batchSize=8)
