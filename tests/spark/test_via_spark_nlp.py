"""Runs that Spark makes: the same papers, the same vectors, and nothing lost whatever fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel
from typer.testing import CliRunner, Result

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.encoders.model_folder import ModelFolder, open_model_folder
from arxiv_embeddings.encoders.models import fetch_model
from arxiv_embeddings.encoders.onnx_engine import OnnxEncoder
from arxiv_embeddings.encoders.registry import find_model
from arxiv_embeddings.files.errors import InputError, StorageError
from arxiv_embeddings.files.hashes import hash_contents
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.export import export_run
from arxiv_embeddings.runs.store import Run, RunWriter, open_run
from arxiv_embeddings.runs.verify import verify_run
from arxiv_embeddings.runs.wrong_vectors import verify_sample
from arxiv_embeddings.spark import executors, frame_parts
from arxiv_embeddings.spark.minicluster import restart_server, stop_server, wait_until_writable
from arxiv_embeddings.spark.nlp_model import export_model
from arxiv_embeddings.spark.nlp_pipeline import embed_frame
from arxiv_embeddings.spark.session import make_session
from arxiv_embeddings.spark.via_spark_nlp import OnSparkNLP
from tests.fakes.comparing import assert_same
from tests.fakes.slow_writer import count_committed, wait_until

pytestmark = pytest.mark.spark

SAMPLE = pd.read_csv(sample_papers(), dtype=str)
PART_SIZE = 36
SMALL_PARTS = {"part_size": 18}  # of which a run has eight, in four slices
COUNTED = ("n_papers", "n_tokens", "n_truncated", "n_unknown", "n_repeated")


def make_distilbert(folder: Path, n_positions: int = 512) -> Path:
    "A small DistilBERT with seeded random weights and MiniLM's vocabulary."
    tokenizer = AutoTokenizer.from_pretrained(fetch_model(find_model("minilm")).transformer_folder)
    tokenizer.model_max_length = n_positions
    tokenizer.save_pretrained(folder)
    sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "max_position_embeddings": n_positions}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), initializer_range=0.1, **sizes)).save_pretrained(
            folder
        )
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("small")
    return export_model(folder / "exported", make_distilbert(folder / "distilbert"))


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    session = make_session("local[2]", conf={"spark.sql.shuffle.partitions": "3"})
    yield session
    session.stop()


@pytest.fixture(scope="module")
def whole(small: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Run:
    "The sample, embedded without Spark."
    return embed_papers(sample_papers(), tmp_path_factory.mktemp("whole") / "run", encoder=OnnxEncoder(small)).run


def embed(papers: object, out: object, spark: Any, model: ModelFolder, tokenizer: str = "bert", **options: Any):
    executor = OnSparkNLP(spark, tokenizer=tokenizer)
    return embed_papers(papers, out, model=model.folder, executor=executor, **{"part_size": PART_SIZE} | options)


# the session


CACHED_CLIENT = """
import subprocess
from hdfs_native.fsspec import HdfsFileSystem
from arxiv_embeddings.spark.session import release_hdfs_clients

HdfsFileSystem("127.0.0.1", 8020)
release_hdfs_clients()
subprocess.run(["true"], preexec_fn=int, check=True)  # forks as pyspark does
"""


def test_a_cached_hdfs_client_does_not_keep_java_from_starting() -> None:
    subprocess.run([sys.executable, "-c", CACHED_CLIENT], check=True, timeout=60)


def test_a_pipeline_is_used_by_one_thread_at_a_time() -> None:
    "Two at its first use would both set the name of its vectors, and Spark NLP refuses the second."
    inside, most = [], []

    class Pipeline:
        def transform(self, frame: Any) -> Any:
            inside.append(frame)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(frame)
            return self

        def selectExpr(self, *_: str) -> str:
            return "embedded"

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda frame: embed_frame(frame, Pipeline()), range(8))) == ["embedded"] * 8
    assert most == [1] * 8


# runs


def test_the_same_papers_are_accepted_and_rejected(tmp_path: Path, spark: Any, small: ModelFolder) -> None:
    rows = SAMPLE[["paper_id", "title", "abstract", "categories"]].copy()
    rows.loc[3, "abstract"] = None
    rows.loc[5, "abstract"] = rows.loc[4, "abstract"] + "\x00"
    rows.loc[7, "paper_id"] = rows.loc[6, "paper_id"]
    rows.loc[9, "abstract"] = "Spaces   and\n\nlines  in between."
    rows.loc[11:14, ["title", "abstract"]] = ["The same title", "The same abstract."]
    rows.loc[90, ["title", "abstract"]] = ["The same title", "The same abstract."]
    rows.to_csv(tmp_path / "papers.csv", index=False)
    there = embed(tmp_path / "papers.csv", tmp_path / "there", spark, small, **SMALL_PARTS).run
    here = embed_papers(tmp_path / "papers.csv", tmp_path / "here", encoder=OnnxEncoder(small)).run
    assert there.input == here.input
    assert sum(one["count"] for one in there.input["rejected"].values()) == 3
    assert there.input["n_white_space_collapsed"] == 1
    assert_same(there, here)
    assert (
        sum(part["n_repeated"] for part in there.metadata["parts"]) == 4
    )  # each text once: within a part, and from earlier slices


def test_more_parts_than_cores_are_tasks_of_their_own(
    tmp_path: Path, spark: Any, small: ModelFolder, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    "As when an executor is lost after they were counted."
    monkeypatch.setattr(executors, "count_tasks", lambda _: 5)
    assert_same(embed(sample_papers(), tmp_path / "run", spark, small, **SMALL_PARTS).run, whole)


def test_what_metadata_say(tmp_path: Path, spark: Any, small: ModelFolder, whole: Run) -> None:
    run = embed(sample_papers(), tmp_path / "run", spark, small).run
    assert_same(run, whole)
    assert run.metadata["fingerprint"] == whole.metadata["fingerprint"]
    assert run.metadata["settings"]["engine"] == "spark-nlp"
    assert [part["position"] for part in run.metadata["parts"]] == list(range(0, 144, PART_SIZE))
    for name in ("n_tokens", "n_truncated", "n_unknown"):
        assert sum(part[name] for part in run.metadata["parts"]) == sum(part[name] for part in whole.metadata["parts"])


def test_the_usual_tokenizer_makes_other_vectors_and_another_run(
    tmp_path: Path, spark: Any, small: ModelFolder
) -> None:
    run = embed(sample_papers(), tmp_path / "run", spark, small, tokenizer="spark-nlp", text="abstract", limit=36).run
    whole = embed(sample_papers(), tmp_path / "whole", spark, small, text="abstract", limit=36).run
    assert (np.abs(run.embeddings() - whole.embeddings()).max(axis=1) > 1e-3).mean() > 0.9
    with pytest.raises(InputError, match="tokenizer"):
        embed(sample_papers(), run.folder, spark, small, text="abstract")
    with pytest.raises(InputError, match="tokenizer"):
        verify_sample(run, 5)


def test_appended_and_pruned(tmp_path: Path, spark: Any, small: ModelFolder) -> None:
    older, newer = tmp_path / "older.csv", tmp_path / "newer.csv"
    SAMPLE[:100].to_csv(older, index=False)
    changed = SAMPLE[10:].copy()
    changed.loc[20, "abstract"] = "This abstract was written anew."
    changed.to_csv(newer, index=False)
    embed(older, tmp_path / "run", spark, small)
    made = embed(newer, tmp_path / "run", spark, small, append=True, prune=True)
    assert made.changes == {"n_new": 44, "n_changed": 1, "n_unchanged": 89, "n_older": 0, "n_pruned": 10}
    alone = embed_papers(newer, tmp_path / "alone", encoder=OnnxEncoder(small)).run
    order = [alone.row_of(paper_id) for paper_id in made.run.paper_ids]
    assert sorted(order) == list(range(134))
    assert_allclose(made.run.embeddings(), alone.embeddings()[order], atol=1e-5)
    assert verify_run(made.run)["problems"] == []


def test_a_dataframe_is_embedded_where_its_rows_are(
    tmp_path: Path, spark: Any, small: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    "With several parts in a task, a text twice in a part, and rows that are no papers."
    rows = SAMPLE[["paper_id", "title", "abstract", "categories"]].fillna("")
    rows.loc[3, "abstract"] = None
    rows.loc[7, "paper_id"] = None
    rows.loc[11:12, ["title", "abstract"]] = ["The same title", "The same abstract."]
    monkeypatch.setattr(frame_parts, "MOST_TASKS", 2)
    frame = spark.createDataFrame(rows).repartition(3)
    there = embed(frame, tmp_path / "there", spark, small, **SMALL_PARTS).run
    here = embed_papers(rows, tmp_path / "here", encoder=OnnxEncoder(small)).run
    assert there.paper_ids == sorted(here.paper_ids)
    order = [here.row_of(paper_id) for paper_id in there.paper_ids]
    assert_allclose(there.embeddings(), here.embeddings()[order], atol=1e-5, strict=True)
    assert [part.n_papers for part in there.parts] == [18] * 7 + [16]
    counts = [{name: sum(part[name] for part in run.metadata["parts"]) for name in COUNTED} for run in (there, here)]
    assert counts[0] == counts[1]
    assert counts[0]["n_repeated"] == 1
    assert there.metadata["settings"]["engine"] == "spark-nlp"
    papers, vectors = there.read(), there.embeddings()
    with RunWriter(there.folder) as writer:
        writer.commit([part for part in writer.parts if part.position not in (18, 36)])
    again = embed(frame.repartition(5), there.folder, spark, small, **SMALL_PARTS)
    assert (again.n_embedded, again.run.read().equals(papers)) == (36, True)
    assert_allclose(again.run.embeddings(), vectors, atol=1e-5, strict=True)
    newer = spark.createDataFrame(rows[40:].assign(title="Another title"))
    made = embed(newer, there.folder, spark, small, part_size=None, append=True)
    assert (made.changes["n_changed"], verify_run(made.run)["problems"]) == (104, [])


def test_papers_of_a_dataframe_without_a_known_token_are_named(tmp_path: Path, spark: Any, small: ModelFolder) -> None:
    rows = SAMPLE[:20].fillna("")
    rows.loc[13, ["title", "abstract"]] = ["ꙮ", "ꙮꙮ"]
    with pytest.raises(InputError, match=f"knows no token of 1 paper, {rows.loc[13, 'paper_id']}"):
        embed(spark.createDataFrame(rows), tmp_path / "run", spark, small, text="abstract")
    run = open_run(tmp_path / "run")
    assert {path.name for path in (run.folder / "parts").iterdir()} == {part.name for part in run.parts}


def test_the_seed_s_folder(tmp_path: Path, spark: Any, small: ModelFolder) -> None:
    run = embed(sample_papers(), tmp_path / "run", spark, small).run
    (folder,) = export_run(run, "flat")
    table = spark.read.parquet(f"file://{folder}")
    assert [(name, kind) for name, kind in table.dtypes] == [("id", "string"), ("embedding", "array<float>")]
    rows = {row["id"]: row["embedding"] for row in table.collect()}
    assert_array_equal(np.array([rows[one] for one in run.paper_ids], dtype=np.float32), run.embeddings())


def test_from_hdfs_to_hdfs(tmp_path: Path, spark: Any, small: ModelFolder, hdfs: dict[str, Any]) -> None:
    SAMPLE[["paper_id", "abstract"]].rename(columns={"paper_id": "id"}).to_parquet(tmp_path / "clean.parquet")
    clean, out = f"{hdfs['uri']}/spark/clean", f"{hdfs['uri']}/spark/run"
    spark.read.parquet(f"file://{tmp_path}/clean.parquet").repartition(3).write.parquet(clean)
    run = embed(clean, out, spark, small, text="abstract").run
    here = embed(clean, tmp_path / "run", spark, small, text="abstract").run
    assert sorted(run.paper_ids) == sorted(SAMPLE["paper_id"])
    assert run.read().equals(here.read())
    assert_array_equal(run.embeddings(), here.embeddings(), strict=True)
    rows = {row["paper_id"]: row["embedding"] for row in spark.read.parquet(f"{out}/parts").collect()}
    assert_array_equal(np.array([rows[one] for one in run.paper_ids], dtype=np.float32), open_run(out).embeddings())
    assert verify_run(run)["problems"] == []
    assert verify_sample(run, 20)["sound"]
    assert embed(clean, out, spark, small, text="abstract").n_embedded == 0


# what fails


WRITER = """
import sys
from arxiv_embeddings.encoders.model_folder import open_model_folder
from arxiv_embeddings.encoders.onnx_engine import OnnxEncoder
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.spark.session import make_session
from arxiv_embeddings.spark.via_spark_nlp import OnSparkNLP
from arxiv_embeddings.runs.embed import embed_papers

if __name__ == "__main__":
    folder, model, master, gone = sys.argv[1:]
    session = make_session(master, conf={"spark.driver.memory": "2g", "spark.executor.memory": "1g"})
    encoder, executor = OnnxEncoder(open_model_folder(model)), OnSparkNLP(session)
    executor.prepare(encoder, executor.batching(encoder))
    if gone == "gone":
        (encoder.model_folder.folder / "model.onnx").unlink()
        (encoder.model_folder.folder / "assets" / "vocab.txt").unlink()
    print("ready", flush=True)
    result = embed_papers(sample_papers(), folder, encoder=encoder, executor=executor, part_size=12)
    print(result.n_embedded, flush=True)
    session.stop()
"""


def start_writer(folder: Path, model: Path, master: str = "local[2]", gone: str = "there") -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(folder), str(model), master, gone]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_driver_that_is_killed_goes_on_where_it_stood(
    tmp_path: Path, spark: Any, small: ModelFolder, whole: Run
) -> None:
    "Another driver, with a session of its own, makes the rest."
    process, folder = start_writer(tmp_path / "run", small.folder), tmp_path / "run"
    wait_until(lambda: 0 < count_committed(folder) < 144, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    committed = open_run(folder)
    n_committed, parts = committed.n_papers, committed.metadata["parts"]
    assert 0 < n_committed < 144
    made = embed(sample_papers(), folder, spark, small, part_size=12)
    assert made.n_embedded == 144 - n_committed
    run = made.run
    assert run.metadata["parts"][: len(parts)] == parts
    assert_same(run, whole)


def test_a_model_s_folder_that_executors_cannot_reach(
    tmp_path: Path, spark: Any, small: ModelFolder, whole: Run
) -> None:
    "Executors have it from the driver; where the driver has it no more, the run waits until it is there again."
    shutil.copytree(small.folder, tmp_path / "model")
    embed(sample_papers(), tmp_path / "run", spark, small, limit=PART_SIZE)
    process = start_writer(tmp_path / "run", tmp_path / "model", "local-cluster[2,1,1024]", "gone")
    printed, errors = process.communicate(timeout=400)
    assert (process.returncode, printed) == (1, "ready\n")
    assert "java.lang.RuntimeException: Stream '/files/model.onnx' was not found" in errors
    assert open_run(tmp_path / "run").n_papers == PART_SIZE
    assert embed(sample_papers(), tmp_path / "run", spark, small).n_embedded == 144 - PART_SIZE
    assert_same(open_run(tmp_path / "run"), whole)


def test_a_corrupt_file_among_good_ones(
    tmp_path: Path, spark: Any, small: ModelFolder, whole: Run, three_files: tuple[Path, Path, bytes]
) -> None:
    folder, corrupt, content = three_files
    with pytest.raises(InputError, match=r"part-1\.parquet"):
        embed(folder, tmp_path / "run", spark, small)
    assert not (tmp_path / "run").exists()
    corrupt.write_bytes(content)
    run = embed(folder, tmp_path / "run", spark, small).run
    assert run.paper_ids == whole.paper_ids
    assert_allclose(run.embeddings(), whole.embeddings(), atol=1e-5, strict=True)


def test_a_model_that_cannot_run_is_said_with_ids(tmp_path: Path, small: ModelFolder) -> None:
    "Its position embeddings end early: ONNX fails on longer texts, and Spark NLP gives empty arrays."
    shutil.copytree(small.folder, tmp_path / "model")
    short = export_model(tmp_path / "short", make_distilbert(tmp_path / "distilbert", n_positions=64))
    shutil.copyfile(short.folder / "model.onnx", tmp_path / "model" / "model.onnx")
    about = json.loads((tmp_path / "model" / "export.json").read_text())
    about["sha256"]["model.onnx"] = hash_contents([tmp_path / "model" / "model.onnx"])
    (tmp_path / "model" / "export.json").write_text(json.dumps(about))
    done = run_command("embed", sample_papers(), "--out", tmp_path / "run", "--model", tmp_path / "model", "-q", *VIA)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    said = (
        r"error: Spark NLP got no vectors from the model \(papers 0000\.\d+ to 0000\.\d+\): the executors' logs say why"
    )
    assert re.match(said, done.stderr)
    run = open_run(tmp_path / "run")
    assert (run.n_papers, list((run.folder / "parts").iterdir())) == (0, [])


def test_parts_that_were_not_committed_do_not_stay(
    tmp_path: Path, spark: Any, small: ModelFolder, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    "A slice fails while the next one is being made: whoever reads the folder's Parquet files reads the run."
    commit, calls = executors.commit_slice, []

    def fail_at_the_second(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise InputError("the second slice failed")
        commit(*arguments)

    monkeypatch.setattr(executors, "commit_slice", fail_at_the_second)
    with pytest.raises(InputError, match="the second slice failed"):
        embed(sample_papers(), tmp_path / "run", spark, small, **SMALL_PARTS)
    run = open_run(tmp_path / "run")
    assert run.n_papers == 2 * SMALL_PARTS["part_size"]
    assert sorted(path.name for path in (run.folder / "parts").iterdir()) == [
        part["name"] for part in run.metadata["parts"]
    ]
    monkeypatch.undo()
    assert_same(embed(sample_papers(), tmp_path / "run", spark, small, **SMALL_PARTS).run, whole)


def test_papers_without_a_known_token_are_named(tmp_path: Path, spark: Any, small: ModelFolder) -> None:
    rows = SAMPLE[:20].copy()
    rows.loc[13, ["title", "abstract"]] = ["ꙮ", "ꙮꙮ"]
    rows.to_csv(tmp_path / "papers.csv", index=False)
    with pytest.raises(InputError, match=f"knows no token of 1 paper, {rows.loc[13, 'paper_id']}"):
        embed(tmp_path / "papers.csv", tmp_path / "run", spark, small, text="abstract")
    options = {"text": "abstract", "allow_unknown": True}
    run = embed(tmp_path / "papers.csv", tmp_path / "run", spark, small, **options).run
    assert run.n_papers == 20
    assert sum(part["n_unknown"] for part in run.metadata["parts"]) == 1


def test_a_datanode_that_stops_during_a_write(
    tmp_path: Path, spark: Any, small: ModelFolder, whole: Run, hdfs: dict[str, Any]
) -> None:
    out = f"{hdfs['uri']}/spark/stopped"
    embed(sample_papers(), out, spark, small, limit=36)
    stop_server(hdfs["processes"]["datanode"])
    try:
        with pytest.raises((InputError, StorageError)) as error:
            embed(sample_papers(), out, spark, small)
        assert len(str(error.value).splitlines()) == 1
    finally:
        hdfs["processes"]["datanode"] = restart_server(hdfs["folder"], "datanode")
        wait_until_writable(hdfs["folder"], 60)
    assert open_run(out).n_papers == 36
    assert_same(embed(sample_papers(), out, spark, small).run, whole)


# the command line


VIA = ("--via", "spark-nlp")


def run_command(*words: object) -> subprocess.CompletedProcess:
    "Run `arxiv-embeddings spark` as a user does whose path does not lead to our Python."
    ours = str(Path(sys.executable).parent)
    path = os.pathsep.join(one for one in os.environ["PATH"].split(os.pathsep) if one != ours)
    command = [f"{ours}/arxiv-embeddings", "spark", *map(str, words)]
    return subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=240)


def test_the_command_line_as_a_user_calls_it(tmp_path: Path, small: ModelFolder, whole: Run) -> None:
    words = [
        *VIA,
        "--out",
        tmp_path / "run",
        "--model",
        small.folder,
        "--master",
        "local[2]",
        "--conf",
        "spark.driver.memory=1g",
    ]
    done = run_command("embed", sample_papers(), *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_papers"] == 144
    assert_same(open_run(tmp_path / "run"), whole)
    done = run_command("embed", "nowhere.csv", *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("error: no such file or folder: ")


def invoke(*words: object) -> Result:
    "Run `arxiv-embeddings spark` in this process."
    return CliRunner().invoke(app, ["spark", *map(str, words)])


def test_a_model_is_exported_on_the_command_line(tmp_path: Path, small: ModelFolder) -> None:
    source = small.folder.parent / "distilbert"
    done = invoke("export-model", tmp_path / "out", "--model", source)
    assert done.exit_code == 0, done.output
    assert open_model_folder(tmp_path / "out").manifest["sha256"] == small.manifest["sha256"]
    done = invoke("export-model", tmp_path / "out")
    assert (done.exit_code, done.stderr) == (1, f"error: {tmp_path / 'out'} already exists: choose another folder\n")
