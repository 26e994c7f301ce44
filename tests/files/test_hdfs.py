"""Runs on a real HDFS: what holds on a disk holds there, and what can only happen there ends well or in one line."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.testing import assert_array_equal
from pyarrow import parquet as pq
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.encoders.base import Encoder
from arxiv_embeddings.explore.index import build_index, open_index
from arxiv_embeddings.explore.map import make_map
from arxiv_embeddings.explore.search import find_similar
from arxiv_embeddings.files import locks
from arxiv_embeddings.files.errors import InputError, StorageError
from arxiv_embeddings.files.hdfs import HdfsPath
from arxiv_embeddings.files.locks import OWNER_NAME, Clock, HdfsLock, describe_owner, is_alive
from arxiv_embeddings.files.paths import atomic_file, copy_folder, list_folder, resolve_folder
from arxiv_embeddings.papers import readers
from arxiv_embeddings.papers.corpus import read_papers, sample_papers
from arxiv_embeddings.runs import embed as embedding
from arxiv_embeddings.runs import store
from arxiv_embeddings.runs.append import compact_run
from arxiv_embeddings.runs.embed import EmbedResult, embed_papers
from arxiv_embeddings.runs.format import COPY_NAME, METADATA_NAME
from arxiv_embeddings.runs.imported import import_vectors
from arxiv_embeddings.runs.repair import repair_run
from arxiv_embeddings.runs.run_model import open_kept_model
from arxiv_embeddings.runs.store import RunWriter, open_run
from arxiv_embeddings.runs.verify import verify_run
from arxiv_embeddings.spark.frame_parts import PartCommitter, PartStore
from arxiv_embeddings.spark.minicluster import (
    HDFS_SERVERS_FILE,
    restart_server,
    stop_minicluster,
    stop_server,
    wait_until_writable,
)
from tests.fakes import slow_writer
from tests.fakes.comparing import assert_same
from tests.fakes.letters import LetterEncoder
from tests.fakes.slow_writer import count_committed, wait_until

pytestmark = pytest.mark.spark

SAMPLE = pd.read_csv(sample_papers(), dtype=str)
PART_SIZE = 48


def put(path: HdfsPath, content: bytes) -> str:
    with atomic_file(path) as stream:
        stream.write(content)
    return str(path)


@pytest.fixture
def folder(hdfs: dict[str, Any], request: pytest.FixtureRequest) -> HdfsPath:
    "A folder on HDFS for one test."
    return resolve_folder(f"{hdfs['uri']}/tests/{request.node.name}")


@pytest.fixture(scope="session")
def sample(hdfs: dict[str, Any]) -> str:
    "The sample corpus on HDFS."
    return put(resolve_folder(f"{hdfs['uri']}/sample/papers.csv"), sample_papers().read_bytes())


@pytest.fixture(scope="module")
def whole(sample: str, tmp_path_factory: pytest.TempPathFactory) -> store.Run:
    "The sample from HDFS embedded by letters into a run on the disk."
    return embed_papers(sample, tmp_path_factory.mktemp("whole") / "run", encoder=LetterEncoder()).run


def embed(sample: str | Path, out: HdfsPath | Path | str, **options: Any) -> EmbedResult:
    return embed_papers(sample, out, **{"part_size": PART_SIZE, "encoder": LetterEncoder()} | options)


def invoke(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


# inputs


@pytest.mark.parametrize("name", ["papers.csv", "papers.csv.gz", "papers.jsonl", "folder of#parts"])
def test_an_input_is_read_as_from_a_disk(name: str, folder: HdfsPath, tmp_path: Path) -> None:
    local = tmp_path / name
    if name.startswith("papers.csv"):
        SAMPLE.to_csv(local, index=False)
    elif name == "papers.jsonl":
        local.write_text("".join(json.dumps(row) + "\n" for row in SAMPLE.to_dict("records")))
    else:
        local.mkdir()
        for number, start in enumerate(range(0, len(SAMPLE), 50)):
            SAMPLE[start : start + 50].to_parquet(local / f"part-{number}.parquet")
        (local / "_SUCCESS").touch()
    copy_folder(local, folder / name) if local.is_dir() else put(folder / name, local.read_bytes())
    there, here = read_papers(str(folder / name)), read_papers(local)
    assert there.table().equals(here.table())
    assert there.files.path == str(folder / name)
    assert readers.hash_files(there.files)["sha256"] == readers.hash_files(here.files)["sha256"]


def test_ids_and_abstracts_alone_in_the_default_file_system(
    hdfs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, there = tmp_path / "clean", resolve_folder(f"{hdfs['uri']}/arxiv/clean")
    clean.mkdir()
    SAMPLE[["paper_id", "abstract"]].rename(columns={"paper_id": "id"}).to_parquet(clean / "part-00000.snappy.parquet")
    copy_folder(clean, there)
    monkeypatch.setenv("HADOOP_CONF_DIR", hdfs["conf"])
    run = embed("hdfs:///arxiv/clean", "hdfs:///arxiv/embeddings").run
    assert str(run.folder) == f"{hdfs['uri']}/arxiv/embeddings"
    assert run.input["path"] == f"{hdfs['uri']}/arxiv/clean"
    assert run.metadata["complete"]
    assert run.paper_ids == SAMPLE["paper_id"].tolist()
    alone = embed(clean, tmp_path / "run").run
    assert_array_equal(run.embeddings(), alone.embeddings(), strict=True)
    monkeypatch.delenv("HADOOP_CONF_DIR")
    with pytest.raises(InputError, match="names no file system: write hdfs://HOST:PORT/path, or set HADOOP_CONF_DIR"):
        open_run("hdfs:///arxiv/embeddings")


def test_a_service_of_two_namenodes_of_which_one_is_gone(
    hdfs: dict[str, Any], sample: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "dfs.nameservices": "papers",
        "dfs.ha.namenodes.papers": "one,two",
        "dfs.namenode.rpc-address.papers.one": "127.0.0.1:9",
        "dfs.namenode.rpc-address.papers.two": hdfs["uri"].removeprefix("hdfs://"),
    }
    entries = "".join(
        f"<property><name>{key}</name><value>{value}</value></property>" for key, value in settings.items()
    )
    (tmp_path / "hdfs-site.xml").write_text(f"<configuration>{entries}</configuration>")
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    assert len(read_papers(sample.replace(hdfs["uri"], "hdfs://papers"))) == 144


# runs


def test_a_run_has_the_same_bytes_as_on_a_disk(
    sample: str, folder: HdfsPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "time", SimpleNamespace(monotonic=lambda: 0.0))  # parts note how long they took
    there, here = (embed(sample, out) for out in (folder / "run", tmp_path / "run"))
    assert there.n_embedded == here.n_embedded == 144
    assert there.run.metadata["parts"] == here.run.metadata["parts"]
    for part in here.run.parts:
        assert there.run.part_path(part).read_bytes() == here.run.part_path(part).read_bytes()
    assert sorted(one.name for one in list_folder(folder / "run")) == [COPY_NAME, METADATA_NAME, "parts"]
    assert verify_run(there.run)["problems"] == []
    assert embed(sample, folder / "run").n_embedded == 0


@pytest.fixture
def start_writer(sample: str):
    "Start processes that embed the sample in 6 parts; those that still run are killed in the end."
    started = []

    def start(out: HdfsPath, n_papers: int) -> subprocess.Popen:
        started.append(slow_writer.start_writer(sample, out, part_size=24, seconds=0.2))
        wait_until(lambda: (out / METADATA_NAME).exists() and count_committed(out) >= n_papers, started[-1])
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_killed_writer_is_followed_at_once(
    sample: str, folder: HdfsPath, whole: store.Run, start_writer, caplog: pytest.LogCaptureFixture
) -> None:
    process = start_writer(folder / "run", 24)
    process.kill()
    process.wait()
    before = open_run(folder / "run")
    assert 24 <= before.n_papers < 144
    assert (folder / "run" / OWNER_NAME).exists()
    orphan = put(folder / "run" / "parts" / ".part-000000000-00000000.parquet.0123abcd.tmp", b"PAR1")
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "arxiv_embeddings"):
        result = embed(sample, folder / "run")
    assert time.monotonic() - began < 3 * locks.HEARTBEAT_SECONDS  # its process is known to be gone
    assert f"process {process.pid} on" in caplog.text
    assert result.n_embedded == 144 - before.n_papers
    assert not resolve_folder(orphan).exists()
    assert_same(result.run, whole, atol=0)
    assert sorted(one.name for one in list_folder(folder / "run")) == [COPY_NAME, METADATA_NAME, "parts"]


def test_a_second_writer_is_told_of_the_first(sample: str, folder: HdfsPath, start_writer) -> None:
    process = start_writer(folder / "run", 0)
    with pytest.raises(InputError, match=f"{folder}/run is being written by process {process.pid} on .* since"):
        embed(sample, folder / "run")
    process.send_signal(19)  # stopped is not dead
    with pytest.raises(InputError, match=f"is being written by process {process.pid}"):
        embed(sample, folder / "run")
    process.send_signal(18)
    assert process.wait(60) == 0
    assert open_run(folder / "run").metadata["complete"]
    assert not (folder / "run" / OWNER_NAME).exists()


class SleepyClock(Clock):
    "A clock of a machine that can go to sleep: then no heartbeat is sent."

    asleep = False

    def wait(self, seconds: float, stop: threading.Event | None = None) -> bool:
        return super().wait(seconds, stop) or (self.asleep and stop.wait())


def holds(lock: HdfsLock) -> bool:
    try:
        lock.check()
    except InputError:
        return False
    return True


def test_an_owner_on_another_machine_lives_as_long_as_it_sends_heartbeats(
    folder: HdfsPath, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SleepyClock()
    ours = HdfsLock(folder, 0.2)
    theirs = HdfsLock(folder, 0.2, owner=describe_owner() | {"machine": "another machine"}, clock=clock)
    theirs.acquire()
    for _ in range(2):
        with pytest.raises(InputError, match="is being written by process"):
            ours.acquire()
    theirs.check()
    clock.asleep = True
    began = time.monotonic()
    ours.acquire()
    assert 0.4 < time.monotonic() - began < 5
    assert "did not finish" in caplog.text
    with pytest.raises(InputError, match="was taken over by another process"):
        theirs.check()
    theirs.release()  # which takes nothing from others
    ours.check()
    time.sleep(0.5)
    ours.check()
    ours.release()
    assert list_folder(folder) == []


def test_a_writer_that_was_taken_over_commits_nothing(sample: str, folder: HdfsPath) -> None:
    run = embed(sample, folder / "run", limit=48).run
    with RunWriter(folder / "run") as writer:
        put(folder / "run" / OWNER_NAME, b"{}")  # of another, who found us dead
        with pytest.raises(
            InputError, match="was taken over by another process, because this one sent no heartbeat for 15 s"
        ):
            writer.commit(complete=True)
        writer.metadata["parts"] = []  # the other one's commits are not known to this one
        with pytest.raises(InputError, match="was taken over by another process"):
            writer.remove_orphans()
    assert open_run(folder / "run").metadata == run.metadata
    assert verify_run(open_run(folder / "run"))["sound"]
    assert (folder / "run" / OWNER_NAME).exists()


def test_a_lock_that_its_owner_did_not_finish_writing(folder: HdfsPath) -> None:
    script = "import sys, os; from arxiv_embeddings.files.paths import resolve_folder; resolve_folder(sys.argv[1]).open('xb'); os._exit(1)"
    subprocess.run([sys.executable, "-c", script, str(folder / OWNER_NAME)], check=False)
    assert (folder / OWNER_NAME).stat().st_size == 0
    lock = HdfsLock(folder, 0.2)
    lock.acquire()
    lock.check()
    assert json.loads((folder / OWNER_NAME).read_bytes())["process"] == os.getpid()
    lock.release()
    assert list_folder(folder) == []


def test_of_many_that_find_a_dead_holder_one_takes_its_place(folder: HdfsPath) -> None:
    dead = describe_owner() | {"start": "1", "seconds": 0.2}
    put(folder / OWNER_NAME, json.dumps(dead).encode())
    held, refused = [], []

    def acquire() -> None:
        lock = HdfsLock(folder, 0.2)
        try:
            lock.acquire()
            held.append(lock)
        except InputError:
            refused.append(lock)

    threads = [threading.Thread(target=acquire, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    holders = [lock for lock in held if holds(lock)]
    assert (len(holders), len(held) + len(refused)) == (1, 8)
    for lock in held:
        lock.release()
    assert list_folder(folder) == []


@pytest.fixture
def left_by_the_dead(folder: HdfsPath) -> HdfsPath:
    "A folder with the lock of a process that is gone."
    dead = describe_owner() | {"start": "1", "seconds": 0.2}
    put(folder / OWNER_NAME, json.dumps(dead).encode())
    return folder


def test_a_lock_that_was_taken_since_it_was_found_dead_is_left_alone(left_by_the_dead: HdfsPath) -> None:
    first, looked = HdfsLock(left_by_the_dead, 0.2), []

    def look_slowly(owner: dict[str, Any]) -> bool | None:
        looked.append(is_alive(owner))
        if len(looked) == 1:
            first.acquire()
        return looked[-1]

    second = HdfsLock(left_by_the_dead, 0.2, is_alive=look_slowly)
    with pytest.raises(InputError, match="is being written by"):
        second.acquire()
    assert looked == [False, True]  # the dead owner, then the first lock's
    first.check()
    first.release()
    assert list_folder(left_by_the_dead) == []


def test_a_dead_holders_lock_is_removed_by_one_alone(left_by_the_dead: HdfsPath) -> None:
    first, second = HdfsLock(left_by_the_dead, 0.2), HdfsLock(left_by_the_dead, 0.2)
    refused: list[InputError] = []

    def acquire_second() -> None:
        try:
            second.acquire()
        except InputError as error:
            refused.append(error)

    thread = threading.Thread(target=acquire_second, daemon=True)

    class SlowLog(logging.Handler):
        "The warning comes just before a stale lock is removed."

        def emit(self, record: logging.LogRecord) -> None:
            if thread.ident is None:
                thread.start()
                time.sleep(0.4)

    slow_log = SlowLog()
    locks.log.addHandler(slow_log)
    winner = first
    try:
        first.acquire()
    except InputError as error:  # on a busy machine the second may be faster
        refused.append(error)
        winner = second
    thread.join(60)
    locks.log.removeHandler(slow_log)
    winner.check()
    assert len(refused) == 1
    winner.release()


def test_parts_of_many_writers_become_a_run_in_one_step(folder: HdfsPath, whole: store.Run) -> None:
    description = {name: whole.metadata[name] for name in ("model", "embedding_dim", "fingerprint", "inputs")}
    table, vectors = whole.read(), whole.embeddings()
    with RunWriter(folder, description) as writer:
        footer = json.loads(json.dumps(writer.footer))

        def write(start: int, attempt: int, made: list[store.StagedPart]) -> None:
            rows = slice(start, start + PART_SIZE)
            chunk = table.slice(start, PART_SIZE)
            made.append(store.write_part(str(folder), chunk, vectors[rows], footer, start, n_tokens=attempt // 2))

        made: list[store.StagedPart] = []
        attempts = [(start, attempt) for start in range(0, 144, PART_SIZE) for attempt in range(3)]
        threads = [threading.Thread(target=write, args=(*one, made)) for one in attempts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 9
        assert [path for path in list_folder(folder / "parts") if not path.name.startswith(".")] == []
        chosen = {staged.part.position: staged for staged in made}
        writer.add_parts(list(chosen.values()))
        assert len(list_folder(folder / "parts")) == 9  # of two attempts at each part there is still something
        writer.remove_orphans()
    assert_same(open_run(folder), whole, atol=0)
    assert open_run(folder).metadata["complete"]


def test_a_part_of_a_dataframe_is_reported_and_committed(folder: HdfsPath) -> None:
    description = {"model": "letters", "embedding_dim": 2, "fingerprint": {"model": "letters"}}
    papers = pa.table({"paper_id": ["a", "b"], "text_sha256": ["0" * 64, "1" * 64]})
    with RunWriter(folder / "run", description | {"inputs": [{"n_accepted": 2}]}) as writer:
        store = PartStore(writer.folder, writer.footer, {0: 0}, "now")
        store.store(0, papers, np.eye(2, dtype=np.float32), {"n_tokens": 3})
        assert PartCommitter(writer, "now", SimpleNamespace(update=lambda n_papers: None)).commit_new() == 1
    assert open_run(folder / "run").paper_ids == ["a", "b"]


def test_append_prune_and_compact_as_on_a_disk(folder: HdfsPath, tmp_path: Path) -> None:
    changed = SAMPLE.assign(abstract="New. " + SAMPLE["abstract"])
    newer = pd.concat([SAMPLE[10:60], changed[60:70], SAMPLE[70:]])
    newer = pd.concat([newer, changed[:5].assign(paper_id=[f"2401.0000{number}" for number in range(5)])])
    results = []
    for out in (folder, tmp_path):
        for name, table in (("first", SAMPLE[:140]), ("newer", newer)):
            content = table.to_csv(index=False).encode()
            put(out / f"{name}.csv", content)
        embed(str(out / "first.csv"), out / "run", part_size=20)
        results.append(embed(str(out / "newer.csv"), out / "run", append=True, prune=True))
    there, here = results
    assert there.changes == here.changes
    assert there.changes["n_pruned"] == 10
    assert_same(there.run, here.run)
    assert not (folder / "run" / "staging").exists()
    for run in (there.run, here.run):
        with RunWriter(run.folder) as writer:
            assert compact_run(writer, 100) > 0
    assert_same(open_run(there.run.folder), open_run(here.run.folder))
    assert verify_run(open_run(there.run.folder))["problems"] == []


# damage


def flip(path: HdfsPath) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    put(path, bytes(content))


def damage_block(hdfs: dict[str, Any], path: HdfsPath) -> None:
    "Flip a bit where the DataNode keeps a file, past HDFS."
    content = path.read_bytes()
    files = (hdfs["folder"] / "data").glob("current/*/current/finalized/**/blk_*")
    blocks = [one for one in files if not one.name.endswith(".meta") and one.read_bytes() == content]
    assert blocks  # several where another test has written the same bytes
    changed = bytearray(content)
    changed[len(changed) // 3] ^= 4
    for block in blocks:
        block.write_bytes(changed)


@pytest.mark.parametrize("how", ["flip", "block", "truncate", "gone"])
def test_a_damaged_part_is_found_and_mended(how: str, hdfs, sample: str, folder: HdfsPath, whole: store.Run) -> None:
    run = embed(sample, folder / "run").run
    path = run.part_path(run.parts[1])
    if how == "flip":
        flip(path)
    elif how == "block":
        damage_block(hdfs, path)
    elif how == "truncate":
        put(path, path.read_bytes()[:-20])
    else:
        path.unlink()
    found = verify_run(open_run(folder / "run"))
    assert not found["sound"]
    assert [(one["where"], one["kind"]) for one in found["problems"]] == [(f"parts/{path.name}", "damage")] * len(
        found["problems"]
    )
    with pytest.raises(InputError, match="missing or damaged"):
        list(open_run(folder / "run").iter_parts())
    result = repair_run(folder / "run", LetterEncoder())
    assert (result.repaired, result.n_embedded) == ([path.name], 48)
    assert verify_run(result.run)["problems"] == []
    assert_same(result.run, whole, atol=0)


@pytest.mark.parametrize("names", [[METADATA_NAME], [METADATA_NAME, COPY_NAME]])
def test_lost_metadata_are_made_again(names: list[str], sample: str, folder: HdfsPath, whole: store.Run) -> None:
    before = embed(sample, folder / "run").run.metadata
    for name in names:
        (folder / "run" / name).unlink()
    for call in (open_run, store.holds_run):
        with pytest.raises(
            InputError, match=r"but no metadata.json: arxiv-embeddings repair hdfs://.*/run rebuilds it"
        ):
            call(str(folder / "run"))
    result = repair_run(str(folder / "run"), LetterEncoder())
    assert (result.metadata_rebuilt, result.n_embedded) == (True, 0)
    assert result.run.metadata["parts"] == before["parts"]
    assert_same(result.run, whole, atol=0)


def test_damaged_metadata_are_kept_aside(sample: str, folder: HdfsPath, whole: store.Run) -> None:
    embed(sample, folder / "run")
    flip(folder / "run" / METADATA_NAME)
    left = (folder / "run" / METADATA_NAME).read_bytes()
    assert_same(repair_run(folder / "run", LetterEncoder()).run, whole)
    assert (folder / "run" / "metadata.damaged.json").read_bytes() == left


def test_a_model_in_a_run_is_checked_where_it_lies(folder: HdfsPath, minilm: Encoder) -> None:
    copy_folder(minilm.model_folder.folder, folder / "model")
    kept = open_kept_model(folder)
    assert kept.sha256 == minilm.model_folder.sha256
    assert kept.folder.is_dir()
    flip(folder / "model" / "model.bin")
    with pytest.raises(InputError, match=r"model.bin is damaged or missing"):
        open_kept_model(folder)


# the command line


def test_commands_print_of_a_run_on_hdfs_what_they_print_of_one_on_a_disk(
    sample: str, folder: HdfsPath, tmp_path: Path
) -> None:
    outputs = []
    for out in (folder / "run", tmp_path / "run"):
        printed = []
        for words in (
            ("embed", sample, "--out", out, "--device", "cpu"),
            ("similar", out, SAMPLE["paper_id"][3], "--json"),
            ("index", out),
            ("search", out, "graph neural networks", "--json"),
            ("similar", out, SAMPLE["paper_id"][3], "--json"),
            ("export", out, "--to", "npy", "--to", "int8", "--to", "flat", "--to", "parquet"),
            ("plot", out),
            ("map", out),
            ("search", out, "graph", "--by", "words", "--json"),
            ("evaluate", out, "--json"),
            ("compact", out),
            ("describe", out),
            ("verify", out, "--sample", "3"),
        ):
            n_parts = len(open_run(out).parts) if words[0] == "compact" else None
            result = invoke(*words)
            assert result.exit_code == 0, (words, result.output)
            shown = result.stdout.replace(str(out), "RUN").splitlines()
            if n_parts:  # of 144 papers a slow machine makes more than one
                assert shown == [f"1 part, {n_parts - 1} fewer than before"]
                shown = []
            printed.append([line for line in shown if not line.startswith(("made:", "144 papers embedded in"))])
        outputs.append(printed)
    there, here = outputs
    assert there[0][-1].startswith("RUN holds 144 papers")
    sizes = re.compile(r"\d (bytes|kB|MB)")  # metadata differ by their times
    without = [[[line for line in printed if not sizes.search(line)] for printed in one] for one in (there, here)]
    assert without[0] == without[1]
    exported = np.load(BytesIO((folder / "run" / "export" / "embeddings.npy").read_bytes()))
    assert_array_equal(exported, open_run(tmp_path / "run").embeddings(), strict=True)


def test_vectors_of_a_folder_on_hdfs_become_a_run_there(sample: str, folder: HdfsPath) -> None:
    vectors = np.random.default_rng(0).standard_normal((len(SAMPLE), 8)).astype(np.float32)
    for start in (0, 100):
        stream = BytesIO()
        pq.write_table(pa.table({"vector": list(vectors[start : start + 100])}), stream)
        put(folder / "vectors" / f"part-{start}.parquet", stream.getvalue())
    run = import_vectors(sample, str(folder / "vectors"), folder / "run", model="another").run
    assert run.n_papers == len(SAMPLE)
    assert_array_equal(open_run(folder / "run").embeddings(), vectors, strict=True)
    put(folder / "mapped" / "vectors.npy", b"")
    with pytest.raises(InputError, match=r"vectors\.npy is not on this machine.*copy it here first"):
        import_vectors(sample, str(folder / "mapped"), folder / "other")
    with pytest.raises(InputError, match=r"run/map\.html is not on a disk: write the map to one with --out"):
        make_map(run).open()


def test_an_index_is_never_stale(sample: str, folder: HdfsPath, tmp_path: Path) -> None:
    run = embed(sample, folder / "run", limit=96).run
    build_index(run)
    first = find_similar(open_index(run), row=0)
    again = embed(sample, folder / "run").run
    with pytest.raises(InputError, match=f"index.faiss is stale.*arxiv-embeddings index {folder}/run"):
        open_index(again)
    build_index(again)
    index = open_index(again)
    assert index.stored
    assert index.index.ntotal == 144
    assert len(first) == len(find_similar(index, row=0)) == 5
    assert verify_run(again)["problems"] == []
    flip(folder / "run" / "index" / "index.faiss")
    assert [one["where"] for one in verify_run(again)["problems"]] == ["index"]


@pytest.mark.parametrize(
    "words", [("describe", "RUN"), ("embed", "PAPERS", "--out", "RUN"), ("embed", "RUN", "--out", "NEW")]
)
def test_no_namenode_is_one_line_at_once(words: tuple[str, ...], tmp_path: Path) -> None:
    names = {"RUN": "hdfs://127.0.0.1:9/run", "PAPERS": sample_papers(), "NEW": tmp_path / "new"}
    began = time.monotonic()
    result = invoke(*[names.get(word, word) for word in words])
    assert time.monotonic() - began < 5
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line == (
        "error: no HDFS answers at 127.0.0.1:9 (Connection refused), to reach hdfs://127.0.0.1:9/run: check host and port, and that HDFS runs"
    )


# servers that go


def test_a_stranger_that_was_given_the_id_of_a_server_is_left_alone(tmp_path: Path) -> None:
    note = {"uri": "hdfs://127.0.0.1:9", "processes": {"namenode": os.getpid()}, "starts": {"namenode": "1"}}
    (tmp_path / HDFS_SERVERS_FILE).write_text(json.dumps(note))
    assert stop_minicluster(tmp_path) == 0


def start_datanode(hdfs: dict[str, Any]) -> None:
    hdfs["processes"]["datanode"] = restart_server(hdfs["folder"], "datanode")
    wait_until_writable(hdfs["folder"], 60)


def test_a_datanode_that_stops_in_the_middle(
    hdfs: dict[str, Any], sample: str, folder: HdfsPath, whole: store.Run
) -> None:
    class StoppingEncoder(LetterEncoder):
        n_parts = 0

        def run(self, tokenized, on_batch=None):
            self.n_parts += 1
            if self.n_parts == 2:
                stop_server(hdfs["processes"]["datanode"])
            return super().run(tokenized)

    began = time.monotonic()
    try:
        with pytest.raises(
            StorageError, match=r"hdfs://.*: the HDFS request failed \(.*\): check that the servers of HDFS run"
        ):
            embed(sample, folder / "run", encoder=StoppingEncoder())
        assert time.monotonic() - began < 120
        assert not (folder / "run" / OWNER_NAME).exists()  # the NameNode is there: the lock is given back
        with pytest.raises(StorageError, match="no DataNode that holds it answers"):
            open_run(folder / "run")
        for words in (
            ("verify", folder / "run"),
            ("repair", folder / "run"),
            ("embed", sample, "--out", folder / "run"),
        ):
            result = invoke(*words)
            (line,) = result.stderr.splitlines()
            assert (result.exit_code, result.stdout) == (1, "")
            assert "no DataNode that holds it answers" in line
    finally:
        start_datanode(hdfs)
    assert open_run(folder / "run").n_papers == 48
    assert verify_run(open_run(folder / "run"))["sound"]
    result = embed(sample, folder / "run")
    assert result.n_embedded == 96
    assert_same(result.run, whole, atol=0)


def test_what_is_written_is_there_after_the_datanode_was_killed(
    hdfs: dict[str, Any], sample: str, folder: HdfsPath, whole: store.Run
) -> None:
    run = embed(sample, folder / "run").run
    os.kill(hdfs["processes"]["datanode"], 9)
    os.waitpid(hdfs["processes"]["datanode"], 0)
    start_datanode(hdfs)
    assert verify_run(open_run(run.folder))["problems"] == []
    assert_same(open_run(run.folder), whole, atol=0)
