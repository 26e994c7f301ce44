"""The encoder in executors: the vectors of one machine, and nothing lost whatever dies."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose
from pyspark import cloudpickle

from arxiv_embeddings.cli.shared import describe_error
from arxiv_embeddings.encoders.base import Encoder
from arxiv_embeddings.encoders.conversion import get_or_convert
from arxiv_embeddings.encoders.model_folder import open_model_folder
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.files.hdfs import find_server
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import EmbedResult, embed_papers
from arxiv_embeddings.runs.store import Run, RunWriter, open_run
from arxiv_embeddings.spark import executors, via_encoder
from arxiv_embeddings.spark.minicluster import find_free_ports
from arxiv_embeddings.spark.session import find_java, make_session, pyspark_jars
from arxiv_embeddings.spark.via_encoder import OnSpark, archive_model, load_in_worker
from tests.fakes import ROOT, spoiling
from tests.fakes.comparing import assert_same
from tests.fakes.letters import LetterEncoder
from tests.fakes.slow_writer import count_committed, wait_until

pytestmark = pytest.mark.spark

SAMPLE = pd.read_csv(sample_papers(), dtype=str)
PART_SIZE = 12
N_FEW, FEW_IN_A_PART = 72, 6  # what fails needs many parts, but not many papers
TWO_EXECUTORS = "local-cluster[2,1,1024]"
TWO_HOSTS = ("127.0.0.1", "127.0.0.2")
SETTINGS = {
    "spark.driver.memory": "1g",
    "spark.executor.memory": "1g",
    # a task that takes longer than others is tried on another machine too, and what ends first counts
    "spark.speculation": "true",
    "spark.speculation.interval": "20ms",
    "spark.speculation.multiplier": "1.01",
    "spark.speculation.quantile": "0.1",
    "spark.speculation.minTaskRuntime": "0ms",
}


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    "Two executors, processes of their own."
    session = make_session(TWO_EXECUTORS, jars="none", conf=SETTINGS)
    yield session
    work = pyspark_jars().parent / "work" / session.sparkContext.applicationId  # where local-cluster leaves its files
    session.stop()
    shutil.rmtree(work, ignore_errors=True)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Half of the sample corpus."
    path = tmp_path_factory.mktemp("few") / "papers.csv"
    SAMPLE[:N_FEW].to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def few_run(few: Path, minilm: Encoder) -> Run:
    "These papers embedded on one machine."
    return embed_papers(few, few.parent / "run", encoder=minilm).run


def embed(papers: object, out: Path, spark: Any, **options: Any) -> EmbedResult:
    executor = OnSpark(spark, shared=options.pop("shared", None))
    return embed_papers(papers, out, executor=executor, **{"part_size": PART_SIZE} | options)


def embed_few(few: Path, out: Path, spark: Any, **options: Any) -> EmbedResult:
    return embed(few, out, spark, part_size=FEW_IN_A_PART, **options)


def find_executors(process: psutil.Process) -> list[psutil.Process]:
    "Executors that a process started through Spark's master and workers."
    found = []
    for one in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            found += [one] if "CoarseGrainedExecutorBackend" in " ".join(one.cmdline()) else []
    return found


# runs


def test_the_same_papers_and_the_same_vectors(tmp_path: Path, spark: Any, minilm: Encoder) -> None:
    rows = SAMPLE[:N_FEW].copy()
    rows.loc[3, "abstract"] = None
    rows.loc[5, "abstract"] = rows.loc[4, "abstract"] + "\x00"
    rows.loc[7, "paper_id"] = rows.loc[6, "paper_id"]
    rows.loc[11:14, ["title", "abstract"]] = ["The same title", "The same abstract."]
    rows.loc[20, "abstract"] *= 6
    rows.to_csv(tmp_path / "papers.csv", index=False)
    there = embed(tmp_path / "papers.csv", tmp_path / "there", spark).run
    here = embed_papers(tmp_path / "papers.csv", tmp_path / "here", encoder=minilm, part_size=PART_SIZE).run
    assert_same(there, here)
    assert there.input == here.input
    assert sum(one["count"] for one in there.input["rejected"].values()) == 3
    assert there.metadata["fingerprint"] == here.metadata["fingerprint"]
    for counted in ("n_papers", "n_tokens", "n_truncated", "n_repeated"):
        assert [part[counted] for part in there.metadata["parts"]] == [part[counted] for part in here.metadata["parts"]]
    assert sum(part["n_truncated"] for part in there.metadata["parts"]) == 1
    assert there.metadata["settings"]["threads"] == 1


def test_texts_in_windows_and_abstracts_alone(tmp_path: Path, spark: Any) -> None:
    rows = SAMPLE[:30].copy()
    rows.loc[5, "abstract"] *= 6
    rows.to_csv(tmp_path / "papers.csv", index=False)
    options = {"text": "abstract", "long_text": "windows", "max_tokens": 128}
    there = embed(tmp_path / "papers.csv", tmp_path / "there", spark, **options).run
    here = embed_papers(tmp_path / "papers.csv", tmp_path / "here", device="cpu", **options).run
    assert_same(there, here)
    assert sum(part["n_in_windows"] for part in there.metadata["parts"]) > 1


def test_int8_is_the_same_quantized_model(tmp_path: Path, spark: Any, few: Path) -> None:
    there = embed(few, tmp_path / "there", spark, precision="int8").run
    here = embed_papers(few, tmp_path / "here", precision="int8", device="cpu").run
    assert there.metadata["fingerprint"] == here.metadata["fingerprint"]
    assert there.metadata["int8_check"] == here.metadata["int8_check"]
    assert (there.folder / "model" / "model.xml").exists()
    assert_same(there, here)


def test_appended_and_another_model_refused(tmp_path: Path, spark: Any, minilm: Encoder) -> None:
    older, newer = tmp_path / "older.csv", tmp_path / "newer.csv"
    SAMPLE[:60].to_csv(older, index=False)
    changed = SAMPLE[10:80].copy()
    changed.loc[20, "abstract"] = "This abstract was written anew."
    changed.to_csv(newer, index=False)
    embed(older, tmp_path / "run", spark)
    made = embed(newer, tmp_path / "run", spark, append=True, prune=True)
    assert made.changes == {"n_new": 20, "n_changed": 1, "n_unchanged": 49, "n_older": 0, "n_pruned": 10}
    alone = embed_papers(newer, tmp_path / "alone", encoder=minilm).run
    order = [alone.row_of(paper_id) for paper_id in made.run.paper_ids]
    assert sorted(order) == list(range(70))
    assert_allclose(made.run.embeddings(), alone.embeddings()[order], atol=1e-5)
    with pytest.raises(InputError, match="max_tokens: 512 there, 128 here"):
        embed(newer, tmp_path / "run", spark, append=True, max_tokens=128)


def test_from_hdfs_to_hdfs_with_the_model_there(spark: Any, few: Path, few_run: Run, hdfs: dict[str, Any]) -> None:
    uri = f"{hdfs['uri']}/encoder"
    papers = spark.read.csv(f"file://{few}", header=True, multiLine=True, escape='"').coalesce(1)
    papers.write.parquet(f"{uri}/papers")
    run = embed(f"{uri}/papers", f"{uri}/run", spark, shared=f"{uri}/model").run
    assert run.paper_ids == few_run.paper_ids
    assert_allclose(run.embeddings(), few_run.embeddings(), atol=1e-5, strict=True)
    assert embed(f"{uri}/papers", f"{uri}/run", spark, shared=f"{uri}/model").n_embedded == 0


IN_A_WORKER = """
import sys
for name in ("torch", "transformers", "sentence_transformers", "nncf", "pyspark"):
    sys.modules[name] = None  # an import of it fails
import json
import numpy as np
import pyarrow as pa
from arxiv_embeddings.encoders.spec import ModelSpec
from arxiv_embeddings.papers.corpus import open_papers, sample_papers
from arxiv_embeddings.spark.via_encoder import _WORKER_CACHE, PartEncoder
from arxiv_embeddings.spark.executors import PartPayload

folder, model, content_sha256, spec = sys.argv[1:]
options = {"precision": "float32", "long_text": "truncate", "allow_unknown": False, "threads": 1, "streams": 1}
maker = PartEncoder(folder, {"embedding_dim": 384}, ModelSpec(**json.loads(spec)), model, content_sha256, options)
loaded = []
for position, batch in enumerate(open_papers(sample_papers()).scan().batches(12, limit=24)):
    payload = PartPayload(12 * position, pa.Table.from_batches([batch]), [], np.empty((0, 384), np.float32))
    row = pa.RecordBatch.from_pydict({"position": [payload.position], "payload": [payload.to_bytes()]})
    (reported,) = maker.embed(iter([row]))
    loaded.extend(map(id, _WORKER_CACHE.values()))
    print(reported["report"][0])
assert len(set(loaded)) == 1
"""


def test_an_executor_needs_no_torch_and_loads_once(tmp_path: Path, minilm: Encoder, few_run: Run) -> None:
    converted, spec = minilm.model_folder, json.dumps(vars(minilm.files.spec))
    (tmp_path / "parts").mkdir()
    words = [str(tmp_path), str(converted.folder), converted.content_sha256, spec]
    done = subprocess.run([sys.executable, "-c", IN_A_WORKER, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["part"]["position"] for one in said] == [0, 12]
    tables = [pq.read_table(tmp_path / "parts" / one["staged_name"]).to_pandas() for one in said]
    assert pd.concat(tables)["paper_id"].tolist() == few_run.paper_ids[:24]
    made = [vector for table in tables for vector in table["embedding"]]
    assert_allclose(made, few_run.embeddings()[:24], atol=1e-5)


def test_a_model_is_packed_once_and_the_same_everywhere(tmp_path: Path, minilm: Encoder) -> None:
    packed = archive_model(minilm.model_folder)
    shutil.unpack_archive(packed, tmp_path / "model", "zip")
    for path in minilm.model_folder.folder.iterdir():
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()
    before = packed.stat()
    assert archive_model(get_or_convert(minilm.files)).stat() == before
    content = bytearray(packed.read_bytes())
    content[1_000_000] ^= 1
    packed.write_bytes(content)
    shutil.unpack_archive(archive_model(minilm.model_folder), tmp_path / "again", "zip")  # made anew
    assert (tmp_path / "again" / "model.bin").read_bytes() == (tmp_path / "model" / "model.bin").read_bytes()


def test_the_same_weights_with_another_tokenization_are_another_model(tmp_path: Path, minilm: Encoder) -> None:
    shutil.copytree(minilm.model_folder.folder, tmp_path / "model")
    description = minilm.model_folder.manifest | {"lower_case": not minilm.model_folder.manifest["lower_case"]}
    (tmp_path / "model" / "model.json").write_text(json.dumps(description))
    other = open_model_folder(tmp_path / "model")
    assert other.sha256 == minilm.model_folder.sha256  # of the graph and its weights
    assert archive_model(other) != archive_model(minilm.model_folder)
    with pytest.raises(InputError, match="contains another model than the driver has"):
        load_in_worker(str(tmp_path / "model"), minilm.model_folder.content_sha256, "{}", '{"threads": 1}')


# what fails


WRITER = """
import json, sys
from arxiv_embeddings.cli.shared import describe_error
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.spark import via_encoder
from arxiv_embeddings.spark.session import make_session

papers, part_size, after, *folders = sys.argv[1:]
session = make_session("local[2]", jars="none", conf=json.loads(folders.pop(0)))
for folder in folders:
    said = {}
    try:
        executor = via_encoder.OnSpark(session)
        said["n_embedded"] = embed_papers(papers, folder, executor=executor, part_size=int(part_size)).n_embedded
    except Exception as error:
        said["error"] = describe_error(error)
    print(json.dumps(said), flush=True)
    exec(after)
session.stop()
"""


def writer_command(papers: Path, *folders: Path, after: str = "", **settings: str) -> list[str]:
    "A driver of its own that writes papers into each folder in turn, says how that ended, and does something `after` it."
    conf = json.dumps({"spark.driver.memory": "1g"} | {name.replace("_", "."): one for name, one in settings.items()})
    return [sys.executable, "-c", WRITER, str(papers), str(FEW_IN_A_PART), after, conf, *map(str, folders)]


def test_an_executor_that_is_killed(tmp_path: Path, spark: Any, few: Path, few_run: Run) -> None:
    folder, made = tmp_path / "run", []
    thread = threading.Thread(target=lambda: made.append(embed_few(few, folder, spark)))
    thread.start()
    wait_until(lambda: count_committed(folder) > 0 or not thread.is_alive())
    before = find_executors(psutil.Process())
    assert 0 < count_committed(folder) < N_FEW
    before[0].kill()
    thread.join(120)
    assert (len(before), made[0].n_embedded) == (2, N_FEW)
    assert_same(made[0].run, few_run)
    wait_until(lambda: len(find_executors(psutil.Process())) == 2)  # Spark has started another one


def test_a_python_worker_that_is_killed(tmp_path: Path, spark: Any, few: Path, few_run: Run) -> None:
    "As Linux does where memory is short: the task is tried again, and the run notices nothing."
    folder, made = tmp_path / "run", []
    thread = threading.Thread(target=lambda: made.append(embed_few(few, folder, spark)))
    thread.start()
    wait_until(lambda: count_committed(folder) > 0 or not thread.is_alive())
    daemons = [one for executor in find_executors(psutil.Process()) for one in executor.children()]
    workers = [worker for daemon in daemons for worker in daemon.children()]
    assert 0 < count_committed(folder) < N_FEW
    workers[0].kill()
    thread.join(120)
    assert made[0].n_embedded == N_FEW
    assert_same(made[0].run, few_run)


FULL_DISK = """
import os, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=140k", "tmpfs", sys.argv[1]], check=True)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture(scope="module")
def ended_driver(tmp_path_factory: pytest.TempPathFactory, few: Path, request: pytest.FixtureRequest) -> Path:
    """What a driver left that met a full disk, where one can be made, and then was killed in the middle of a run.

    A folder with `said.json` and `kept/run`, of the full disk, and with `run`."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "disk").mkdir()
    keep = f"import shutil; folder.endswith('disk/run') and shutil.copytree(folder, '{folder}/kept/run')"
    try:
        before = [*request.getfixturevalue("own_mounts"), sys.executable, "-c", FULL_DISK, str(folder / "disk")]
        outputs = [folder / "disk" / "run", folder / "run"]
    except pytest.skip.Exception:
        before, outputs = [], [folder / "run"]
    command = [*before, *writer_command(few, *outputs, after=keep)]
    with (folder / "said.json").open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: 0 < count_committed(folder / "run") < N_FEW, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return folder


def test_a_full_disk_at_the_output(
    ended_driver: Path, spark: Any, few: Path, few_run: Run, own_mounts: list[str]
) -> None:
    "The part of the run that fitted is whole, and goes on from a disk that has room."
    assert "No space left on device" in json.loads((ended_driver / "said.json").read_text())["error"]
    folder = ended_driver / "kept" / "run"
    n_safe = open_run(folder).n_papers
    assert 0 < n_safe < N_FEW
    assert embed_few(few, folder, spark).n_embedded == N_FEW - n_safe
    assert_same(open_run(folder), few_run)


def test_a_driver_that_is_killed(ended_driver: Path, spark: Any, few: Path, few_run: Run) -> None:
    "Another driver, with executors of its own, makes the rest."
    folder = ended_driver / "run"
    committed = open_run(folder)
    n_committed, parts = committed.n_papers, committed.metadata["parts"]
    assert 0 < n_committed < N_FEW
    assert embed_few(few, folder, spark).n_embedded == N_FEW - n_committed
    assert open_run(folder).metadata["parts"][: len(parts)] == parts
    assert_same(open_run(folder), few_run)


def test_a_python_worker_that_may_not_have_enough_memory(tmp_path: Path, spark: Any, few: Path, few_run: Run) -> None:
    none, folder = tmp_path / "none", tmp_path / "run"
    unchecked = "via_encoder.require_session = lambda *_: None"  # whatever the session's settings are
    command = writer_command(few, none, folder, after=unchecked, spark_executor_pyspark_memory="200m")
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    refused, said = (json.loads(line)["error"] for line in done.stdout.splitlines())
    assert "spark.executor.pyspark.memory is 200m, but a model needs 768 MiB in Python" in refused
    assert not none.exists()
    assert re.search(r"raise spark\.executor\.(memoryOverhead, and spark\.executor\.)?pyspark\.memory", said)
    assert len(said.splitlines()) == 1
    assert list((folder / "parts").iterdir()) == []
    assert embed_few(few, folder, spark).n_embedded == N_FEW
    assert_same(open_run(folder), few_run)


def test_a_corrupt_file_among_good_ones(
    tmp_path: Path, spark: Any, sample_run: Run, three_files: tuple[Path, Path, bytes]
) -> None:
    folder, corrupt, content = three_files
    with pytest.raises(InputError, match=r"part-1\.parquet") as error:
        embed(folder, tmp_path / "run", spark)
    assert len(describe_error(error.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()
    corrupt.write_bytes(content)
    run = embed(folder, tmp_path / "run", spark).run
    assert run.paper_ids == sample_run.paper_ids
    assert_allclose(run.embeddings(), sample_run.embeddings(), atol=1e-5, strict=True)


def test_a_model_that_was_exchanged_is_refused(tmp_path: Path, spark: Any, minilm: Encoder) -> None:
    shutil.copytree(minilm.model_folder.folder, tmp_path / "model")
    weights = bytearray((tmp_path / "model" / "model.bin").read_bytes())
    weights[1000] ^= 1
    (tmp_path / "model" / "model.bin").write_bytes(weights)
    with pytest.raises(InputError, match=r"model\.bin is damaged or missing"):
        embed(sample_papers(), tmp_path / "run", spark, shared=tmp_path / "model")
    assert list((tmp_path / "run" / "parts").iterdir()) == []


def test_a_task_that_wrote_its_part_twice(
    tmp_path: Path, spark: Any, few: Path, few_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    "Both copies of a task came to their end; the driver was told of one part, and the other one does not stay."
    commit, twins = executors.commit_slice, []

    def commit_beside_a_twin(said: list[dict[str, Any]], writer: RunWriter, bar: Any) -> None:
        parts, waiting = writer.folder / "parts", said[0]["staged_name"]
        twins.append(parts / waiting.replace(waiting.split(".")[-2], "00000000"))
        shutil.copyfile(parts / waiting, twins[-1])
        commit(said, writer, bar)
        # at any moment the files that readers look at are the run, whoever is still at work
        assert {path.name for path in parts.glob("*.parquet")} == {part["name"] for part in writer.metadata["parts"]}

    monkeypatch.setattr(executors, "commit_slice", commit_beside_a_twin)
    run = embed_few(few, tmp_path / "run", spark).run
    assert len(twins) == len(set(twins)) == 6
    assert not any(twin.exists() for twin in twins)
    assert_same(run, few_run)


@pytest.fixture
def standalone(tmp_path: Path) -> Iterator[str]:
    "Spark's own cluster, a master and two workers that take themselves for two machines; its address."
    address = f"spark://127.0.0.1:{find_free_ports(1)[0]}"
    servers = {"master.Master": ["--host", "127.0.0.1", "--port", address.rsplit(":", 1)[1]]}
    servers |= {f"worker.Worker {host}": ["--host", host, "--cores", "1", "--memory", "1g"] for host in TWO_HOSTS}
    environment = os.environ | {"JAVA_HOME": str(find_java()), "SPARK_DAEMON_MEMORY": "512m"}
    processes = []
    for name, words in servers.items():
        kind, _, host = name.partition(" ")
        place = ["--work-dir", str(tmp_path / host), address] if host else []
        command = [pyspark_jars().parent / "bin" / "spark-class", f"org.apache.spark.deploy.{kind}", *words]
        with (tmp_path / f"{name}.log").open("wb") as log:
            command = [*command, "--webui-port", "0", *place]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    wait_until(lambda: not find_server([("127.0.0.1", int(address.rsplit(":", 1)[1]))]), processes[0])
    yield address
    for process in processes:
        process.terminate()
        process.wait(60)


RACER = """
import json, sys
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.spark.session import make_session
from tests.fakes.letters import SlowReader
from tests.fakes.letters_on_spark import LettersOnSpark

papers, folder, master, settings = sys.argv[1:]
session = make_session(master, jars="none", conf=json.loads(settings))
embed_papers(papers, folder, encoder=SlowReader(0.06), executor=LettersOnSpark(session), part_size=12)
session.stop()
"""


def embed_with_events(folder: Path, papers: Path, master: str) -> list[bool]:
    "Embed papers in a process of its own; for each task that began, whether it was a second try of a slow one."
    (folder / "events").mkdir(parents=True)
    events = {"spark.eventLog.enabled": "true", "spark.eventLog.dir": (folder / "events").as_uri()}
    events["spark.arxivEmbeddings.executorTimeout"] = "2min"  # the workers may just be starting
    both = {"spark.cores.max": "2", "spark.scheduler.minRegisteredResourcesRatio": "1"}  # no task before both are there
    conf = json.dumps(SETTINGS | events | both | {"spark.driver.host": "127.0.0.1"})
    command = [sys.executable, "-c", RACER, str(papers), str(folder / "run"), master, conf]
    subprocess.run(command, cwd=ROOT, check=True, timeout=240)
    (log,) = (folder / "events").iterdir()
    logged = map(json.loads, log.read_text().splitlines())
    return [one["Task Info"]["Speculative"] for one in logged if one["Event"] == "SparkListenerTaskStart"]


def test_tasks_that_run_twice_leave_each_paper_once(
    tmp_path: Path, standalone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two parts has the longer texts: while it is made, the other machine is idle and tries it too.

    Letters instead of a model, so that how long a part takes does not depend on how busy the machine is."""
    rows = SAMPLE[:24].copy()
    rows.loc[12:, "abstract"] *= 5
    rows.to_csv(tmp_path / "papers.csv", index=False)
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    tries = (tmp_path / f"try{number}" for number in range(3))
    twice = next(
        (folder for folder in tries if any(embed_with_events(folder, tmp_path / "papers.csv", standalone))), None
    )
    assert twice, "no task ran twice in three tries"
    here = embed_papers(tmp_path / "papers.csv", tmp_path / "here", encoder=LetterEncoder()).run
    assert_same(open_run(twice / "run"), here, atol=0)


def test_wrong_vectors_in_an_executor_are_noticed(
    tmp_path: Path, spark: Any, few: Path, few_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloudpickle.register_pickle_by_value(spoiling)  # executors cannot import it
    monkeypatch.setattr(via_encoder, "PartEncoder", spoiling.SpoilingPartEncoder)
    run = embed(few, tmp_path / "run", spark).run
    assert_same(run, few_run)
    assert 1 <= sum(part["n_recomputed"] for part in run.metadata["parts"]) <= 2  # once for each Python worker
