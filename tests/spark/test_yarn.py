"""Jobs on a real YARN, whose executors have nothing but the archive that is handed to them."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.encoders.vectors import paired_cosines
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.files.paths import copy_file, copy_folder, resolve_folder
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import Run, open_run
from arxiv_embeddings.runs.verify import verify_run
from arxiv_embeddings.spark import checks
from arxiv_embeddings.spark.environment import EXECUTOR_DISTRIBUTIONS, PACKAGES
from arxiv_embeddings.spark.minicluster import (
    is_running,
    measure_yarn,
    restart_server,
    start_yarn,
    stop_minicluster,
    stop_server,
)
from arxiv_embeddings.spark.session import make_session, pyspark_jars
from arxiv_embeddings.spark.via_encoder import OnSpark
from tests.fakes.slow_writer import count_committed, wait_until

pytestmark = pytest.mark.spark

MEMORY, CORES = 6144, 3
N_PAPERS, PART_SIZE = 72, 6  # of the run that loses its NodeManager
EXECUTORS = {
    "spark.driver.memory": "1g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.executor.instances": "2",
    "spark.executor.memory": "512m",
    "spark.executor.memoryOverhead": "768m",
    "spark.task.maxFailures": "1",
    "spark.yarn.jars": f"local:{pyspark_jars()}/*",
}


@pytest.fixture(scope="module")
def yarn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    "A real YARN with an HDFS: the result of `start_yarn`, and its `folder`."
    folder = tmp_path_factory.mktemp("yarn")
    yield start_yarn(folder, memory=MEMORY, cores=CORES, check_memory=True) | {"folder": folder}
    stop_minicluster(folder)
    shutil.rmtree(folder)  # with what containers unpacked


@pytest.fixture(scope="module")
def on_hdfs(yarn: dict[str, Any], packed: dict[str, Any]) -> str:
    "The archive where everyone may read it: YARN unpacks it once for several applications."
    uri = f"{yarn['uri']}/environment.tar.gz"
    copy_file(Path(packed["file"]), resolve_folder(uri))
    return uri


# before the session below, which keeps all of the machine's executors


def embed_on_yarn(yarn: dict[str, Any], environment: Path) -> subprocess.Popen:
    "The command line as a user calls it."
    words = [f"{yarn['uri']}/papers", "--out", f"{yarn['uri']}/run", "--via", "encoder", "--master", "yarn", "--quiet"]
    words += ["--environment", str(environment), "--part-size", str(PART_SIZE), "--precision", "int8"]
    for setting in (EXECUTORS | {"spark.task.maxFailures": "4"}).items():
        words += ["--conf", "=".join(setting)]
    command = [sys.executable, "-c", "from arxiv_embeddings.cli.main import main; main()", "spark", "embed", *words]
    settings = os.environ | {"HADOOP_CONF_DIR": yarn["conf"]}
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_nodemanager_that_is_stopped_and_started_again(
    yarn: dict[str, Any], packed: dict[str, Any], tmp_path: Path
) -> None:
    "From HDFS to HDFS, in executors that have the archive alone; in the middle of it their machine goes."
    papers = pd.read_csv(sample_papers(), dtype=str)[:N_PAPERS]
    papers["abstract"] = papers["abstract"].str.cat(papers["abstract"], sep=" ").str.cat(papers["abstract"], sep=" ")
    (tmp_path / "papers").mkdir()
    papers.to_parquet(tmp_path / "papers" / "all.parquet")
    copy_folder(tmp_path / "papers", resolve_folder(f"{yarn['uri']}/papers"))
    expected = embed_papers(tmp_path / "papers", tmp_path / "run", precision="int8", device="cpu").run
    process, run = embed_on_yarn(yarn, packed["file"]), f"{yarn['uri']}/run"
    wait_until(lambda: 0 < count_committed(run) < N_PAPERS, process, seconds=240)
    stop_server(yarn["processes"]["nodemanager"])
    n_before = count_committed(run)
    assert n_before < N_PAPERS
    yarn["processes"]["nodemanager"] = restart_server(yarn["folder"], "nodemanager")
    _, errors = process.communicate(timeout=300)
    if process.returncode:  # it may be too much for Spark; then it is said in a line, and the same command goes on
        assert len(errors.splitlines()) == 1
        assert "continues from there" in errors
        assert n_before <= count_committed(run) < N_PAPERS
        process = embed_on_yarn(yarn, packed["file"])
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    made = open_run(run)
    assert made.read().equals(expected.read())
    assert paired_cosines(made.embeddings(), expected.embeddings()).min() >= 0.99999
    assert verify_run(made)["problems"] == []


def fails_on_yarn(yarn: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **changed: str) -> str:
    "Call the command line with other settings of executors; the line that it ends in."
    words = ["spark", "embed", str(sample_papers()), "--out", f"{yarn['uri']}/none", "--master", "yarn", "--quiet"]
    settings = EXECUTORS | {"spark.arxivEmbeddings.executorTimeout": "6s"} | changed
    words += [word for setting in settings.items() for word in ("--conf", "=".join(setting))]
    monkeypatch.setenv("HADOOP_CONF_DIR", yarn["conf"])
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    (line,) = result.stderr.splitlines()
    return line


def test_containers_that_are_never_granted(
    yarn: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    "More memory than is free beside the application's master, more than any node has, and then no node at all."
    line = fails_on_yarn(yarn, monkeypatch, **{"spark.executor.memory": "5000m"})
    assert (
        "no executor started within 6 s on yarn, each requests 5000m of memory and 768m for what is beside Java" in line
    )
    assert "lower spark.executor.memory or spark.executor.cores to what a node has free" in line
    line = fails_on_yarn(yarn, monkeypatch, **{"spark.executor.memory": "90g"})
    assert re.search(r"Spark did not start: Required executor memory \(92160 MB\).* is above the max threshold", line)
    stop_server(yarn["processes"]["nodemanager"])
    wait_until(lambda: measure_yarn(yarn)["n_nodes"] == 0)
    line = fails_on_yarn(yarn, monkeypatch)
    assert re.search(r"YARN has accepted application_\d+_\d+, but gives it no container: .*spark\.yarn\.queue", line)
    assert capfd.readouterr() == ("", "")  # of Java
    yarn["processes"]["nodemanager"] = restart_server(yarn["folder"], "nodemanager")
    wait_until(lambda: measure_yarn(yarn)["n_nodes"] == 1)


@contextlib.contextmanager
def yarn_session(yarn: dict[str, Any], on_hdfs: str, **changed: str) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HADOOP_CONF_DIR", yarn["conf"])
        patched.delenv("PYSPARK_PYTHON", raising=False)
        settings = {"jars": "none", "conf": EXECUTORS | changed, "environment": on_hdfs}
        session = make_session("yarn", **settings)
        try:
            assert make_session("yarn", **settings) is session
            yield session
        finally:
            session.stop()  # its executors are all that the machine has


def test_executors_with_too_little_memory_are_killed_and_the_setting_is_named(
    yarn: dict[str, Any], on_hdfs: str, sample_run: Run
) -> None:
    out = f"{yarn['uri']}/small"
    with (
        yarn_session(yarn, on_hdfs, **{"spark.executor.memoryOverhead": "128m"}) as session,
        pytest.raises(
            InputError, match=r"probably for exceeding its memory limit: raise spark\.executor\.memoryOverhead"
        ),
    ):
        embed_papers(sample_papers(), out, executor=OnSpark(session))
    assert open_run(out).n_papers == 0
    embed_papers(sample_papers(), out, device="cpu")  # where there is enough
    assert open_run(out).read().equals(sample_run.read())


@pytest.fixture(scope="module")
def session(yarn: dict[str, Any], on_hdfs: str) -> Iterator[Any]:
    with yarn_session(yarn, on_hdfs) as session:
        yield session


def test_a_model_on_hdfs_reaches_executors(yarn: dict[str, Any], session: Any, sample_run: Run) -> None:
    executor = OnSpark(session, shared=f"{yarn['uri']}/model")
    run = embed_papers(sample_papers(), f"{yarn['uri']}/there", executor=executor).run
    assert checks._is_granted(session, None)  # YARN tells of containers
    assert run.read().equals(sample_run.read())
    assert paired_cosines(run.embeddings(), sample_run.embeddings()).min() >= 0.99999


def test_executors_have_the_archive_alone(yarn: dict[str, Any], session: Any) -> None:
    session.range(100).repartition(2).write.parquet(f"{yarn['uri']}/numbers")

    def look_around(batches):  # in here, as executors do not have this file
        import pyarrow as pa

        import arxiv_embeddings.encoders.openvino_engine
        import arxiv_embeddings.spark.executors

        said = {
            "folder": os.getcwd(),
            "prefix": sys.prefix,
            "executable": sys.executable,
            "python": sys.version,
            "package": arxiv_embeddings.__file__,
            "versions": {name: metadata.version(name) for name in EXECUTOR_DISTRIBUTIONS},
        }
        total = sum(sum(batch["id"].to_pylist()) for batch in batches)
        yield pa.RecordBatch.from_pydict({"total": [total], "said": [json.dumps(said)]})

    frame = session.read.parquet(f"{yarn['uri']}/numbers").repartition(2)
    frame.mapInArrow(look_around, "total long, said string").write.parquet(f"{yarn['uri']}/seen")
    rows = session.read.parquet(f"{yarn['uri']}/seen").collect()
    assert sum(row["total"] for row in rows) == sum(range(100))
    for said in (json.loads(row["said"]) for row in rows):
        container = Path(said["folder"])
        assert container.is_relative_to(yarn["folder"] / "yarn" / "local")
        assert container.name.startswith("container_")
        assert said["prefix"] == str(container / "environment")
        assert Path(said["executable"]).parent == container / "environment" / "bin"
        assert said["package"] == str(container / "environment" / PACKAGES / "arxiv_embeddings" / "__init__.py")
        assert said["python"] == sys.version
        assert said["versions"] == {name: metadata.version(name) for name in EXECUTOR_DISTRIBUTIONS}
    assert "PYSPARK_PYTHON" not in os.environ  # the next session, with a local master, runs the driver's Python


def test_yarn_offers_what_it_was_started_with(yarn: dict[str, Any]) -> None:
    assert measure_yarn(yarn) == {"n_nodes": 1, "memory": MEMORY, "cores": CORES}


def test_start_reports_addresses_and_stop_counts_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def start(folder: str, **options: Any) -> dict[str, Any]:
        given.append((folder, options))
        return {"uri": "hdfs://127.0.0.1:9", "conf": f"{folder}/conf", "processes": {}}

    monkeypatch.setattr("arxiv_embeddings.spark.minicluster.start_hdfs", start)
    monkeypatch.setattr("arxiv_embeddings.spark.minicluster.start_yarn", start)
    for options in ([], ["--yarn"], ["--yarn", "--memory", "2048", "--cores", "2", "--check-memory"]):
        result = CliRunner().invoke(app, ["spark", "minicluster", "start", str(tmp_path), *options])
        assert result.exit_code == 0, result.output
        assert result.stdout == (
            f"hdfs://127.0.0.1:9\nHADOOP_CONF_DIR={tmp_path}/conf\n"
            f"to stop it: arxiv-embeddings spark minicluster stop {tmp_path}\n"
        )
    chosen = {"memory": 2048, "cores": 2, "check_memory": True}
    assert given == [(str(tmp_path), {}), (str(tmp_path), {}), (str(tmp_path), chosen)]
    assert CliRunner().invoke(app, ["spark", "minicluster", "stop", str(tmp_path)]).stdout == "0 servers stopped\n"


@pytest.mark.parametrize("option", [("--memory", "2048"), ("--cores", "2"), ("--check-memory",)])
def test_options_of_yarn_need_yarn(option: tuple[str, ...], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["spark", "minicluster", "start", str(tmp_path / "new"), *option])
    assert result.exit_code == 2
    assert f"Invalid value for {option[0]}: this needs --yarn" in result.stderr
    assert not (tmp_path / "new").exists()


def test_starting_twice_is_refused_in_a_line(yarn: dict[str, Any]) -> None:
    for service, options in (("YARN", ["--yarn"]), ("HDFS", [])):
        result = CliRunner().invoke(app, ["spark", "minicluster", "start", str(yarn["folder"]), *options])
        (line,) = result.stderr.splitlines()
        assert (result.exit_code, result.stdout) == (1, "")
        assert line == (
            f"error: the {service} in {yarn['folder']} is running at {yarn['uri']}: "
            f"end it with arxiv-embeddings spark minicluster stop {yarn['folder']}"
        )
    assert all(map(is_running, yarn["processes"].values()))


def find_containers(folder: Path) -> list[str]:
    "Ids of processes that work in a YARN's folder."
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended in the meantime
            if Path(os.readlink(process / "cwd")).is_relative_to(folder / "yarn" / "local"):
                found.append(process.name)
    return found


def test_stopping_ends_containers_too(yarn: dict[str, Any], session: Any) -> None:
    assert len(find_containers(yarn["folder"])) >= 3  # the application's master and two executors
    result = CliRunner().invoke(app, ["spark", "minicluster", "stop", str(yarn["folder"]), "--json"])
    assert json.loads(result.stdout) == {"n_ended": 4}
    assert find_containers(yarn["folder"]) == []
    assert not any(map(is_running, yarn["processes"].values()))
