"""Runs in object stores: what holds on a disk holds there, and a writer may end at any request."""

import json
import logging
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from obstore.store import MemoryStore

from arxiv_embeddings.explore.index import build_index
from arxiv_embeddings.files import object_store
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.files.locks import OWNER_NAME, describe_owner
from arxiv_embeddings.files.object_store import ObjectPath, PureObjectPath
from arxiv_embeddings.files.paths import atomic_folder, copy_folder, is_whole, list_folder, resolve_folder
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.append import compact_run
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.export import export_run
from arxiv_embeddings.runs.format import COPY_NAME, METADATA_NAME
from arxiv_embeddings.runs.migrate import find_places
from arxiv_embeddings.runs.repair import repair_run
from arxiv_embeddings.runs.store import Run, RunWriter, open_run
from tests.fakes.comparing import assert_same
from tests.fakes.kill_loop import is_state_of, make_newer
from tests.fakes.letters import LetterEncoder
from tests.fakes.object_store import ACCESS, BUCKET, SECRET, VARIABLES
from tests.fakes.slow_writer import count_committed, start_writer, wait_until

NO_KEYS = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9"}
WHOLE = [COPY_NAME, METADATA_NAME, "parts"]


@pytest.fixture
def bucket(object_store_address: str, no_store: pytest.MonkeyPatch) -> str:
    "A place in the store, which the variables of the environment name."
    for name, value in zip(VARIABLES, (ACCESS, SECRET, "", object_store_address, "us-east-1"), strict=True):
        if value:
            no_store.setenv(name, value)
    return f"s3://{BUCKET}"


@pytest.fixture
def memory(no_store: pytest.MonkeyPatch) -> MemoryStore:
    "A store in this process, for every bucket."
    store = MemoryStore()
    no_store.setattr(object_store, "_connect", lambda *_: store)
    return store


def embed(papers: Any, out: Any, **options: Any) -> Run:
    return embed_papers(papers, out, **{"part_size": 48, "encoder": LetterEncoder()} | options).run


def list_names(folder: Any) -> list[str]:
    return [one.name for one in list_folder(folder)]


def test_a_run_in_a_store_is_the_run_of_a_disk(bucket: str, tmp_path: Path) -> None:
    there = resolve_folder(f"{bucket}/papers.csv.gz")
    pd.read_csv(sample_papers(), dtype=str).to_csv(tmp_path / "papers.csv.gz", index=False)
    there.write_bytes((tmp_path / "papers.csv.gz").read_bytes())
    newer = make_newer(tmp_path / "newer.csv")
    run, local = embed(str(there), f"{bucket}/disk/run"), embed(tmp_path / "papers.csv.gz", tmp_path / "run")
    assert run.input["path"] == str(there)
    assert run.input["sha256"] == local.input["sha256"]
    assert_same(run, local, atol=0)
    run, local = (embed(newer, one.folder, append=True, prune=True) for one in (run, local))
    assert_same(open_run(f"{bucket}/disk/run"), local, atol=0)
    assert list_names(run.folder) == WHOLE
    with RunWriter(run.folder) as writer:
        compact_run(writer, 1000)
    assert len(list_names(run.folder / "parts")) == 1
    build_index(run := open_run(run.folder))
    found, expected = (one.similar(run.paper_ids[7], k=3)["paper_id"].tolist() for one in (run, local))
    assert found == expected
    (exported,) = export_run(run, "npy")
    with exported.open() as stream:
        np.testing.assert_array_equal(np.load(stream), local.embeddings(), strict=True)
    assert len(export_run(run, "flat")) == 1
    (run.folder / METADATA_NAME).unlink()
    (run.folder / COPY_NAME).unlink()
    assert_same(repair_run(run.folder, encoder=LetterEncoder()).run, local, atol=0)
    with pytest.raises(InputError, match="is not on a disk, and elsewhere two folders cannot be swapped"):
        find_places(run.folder)


def test_a_second_writer_is_refused_and_the_next_follows_a_killed_one(bucket: str, tmp_path: Path) -> None:
    out = resolve_folder(f"{bucket}/killed/run")
    process = start_writer(sample_papers(), out, part_size=24, seconds=0.2)
    try:
        wait_until(lambda: count_committed(out) >= 24, process)
        with pytest.raises(InputError, match=f"{out} is being written by process {process.pid} on .* since"):
            embed(sample_papers(), str(out))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (out / OWNER_NAME).exists()
    assert 24 <= open_run(out).n_papers < 144
    assert_same(embed(sample_papers(), out), embed(sample_papers(), tmp_path / "run", part_size=24), atol=0)
    assert list_names(out) == WHOLE


class DyingProcess:
    "Ends at a request that changes the store; after that, nothing that the process tries arrives."

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.n_left, self.is_dead, ask, owner = 1 << 30, False, PureObjectPath._ask, describe_owner()

        def request(path: PureObjectPath, name: str, *given: Any, **options: Any) -> Any:
            self.n_left -= name in ("put", "copy", "delete")
            self.is_dead |= self.n_left < 0
            if self.is_dead:
                raise KeyboardInterrupt
            return ask(path, name, *given, **options)

        monkeypatch.setattr(PureObjectPath, "_ask", request)
        # another process on this machine, which is gone
        monkeypatch.setattr(object_store, "describe_owner", lambda: owner | {"start": "1"})

    def run(self, n_requests: int, work: Any) -> bool:
        "Work until so many requests have changed the store; whether the work was done before."
        self.n_left, self.is_dead = n_requests, False
        try:
            work()
            return True
        except KeyboardInterrupt:
            return False
        finally:
            self.n_left, self.is_dead = 1 << 30, False


def test_a_writer_may_end_at_any_request(
    memory: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    papers, newer, dying = tmp_path / "papers.csv", tmp_path / "newer.csv", DyingProcess(monkeypatch)
    rows = pd.read_csv(sample_papers(), dtype=str)[:3]
    rows.to_csv(papers, index=False)
    changed = rows[1:].assign(abstract=rows["abstract"].where(rows.index != 1, "Revised."))
    pd.concat([changed, rows[:1].assign(paper_id="2001.00001")]).to_csv(newer, index=False)

    def write(out: Any) -> None:
        folder = resolve_folder(out)
        if not (folder / METADATA_NAME).exists() or len(open_run(folder).metadata["inputs"]) == 1:
            embed(papers, folder, part_size=2)
            embed(newer, folder, part_size=2, append=True, prune=True)
        else:
            embed(newer, folder, part_size=2, append=True)

    first = embed(papers, tmp_path / "first", part_size=2)
    write(tmp_path / "last")
    last = open_run(tmp_path / "last")
    for n_requests in range(1000):
        out = ObjectPath("s3", BUCKET, f"/{n_requests}")
        done = dying.run(n_requests, partial(write, out))
        if (out / METADATA_NAME).exists():
            assert is_state_of(open_run(out), first, last)
        write(out)
        assert_same(open_run(out), last, atol=0)
        assert list_names(out) == WHOLE
        assert list_names(out / "parts") == sorted(part.name for part in open_run(out).parts)
        if done:
            break
    assert n_requests > 30  # it has ended at every one of so many


def test_of_two_writers_only_one_commits(memory: MemoryStore) -> None:
    out = ObjectPath("s3", BUCKET, "/run")
    embed(sample_papers(), out, limit=48)
    with RunWriter(out) as writer:
        metadata = json.loads((out / METADATA_NAME).read_bytes())
        (out / METADATA_NAME).write_bytes(json.dumps(metadata).encode())  # as a process that slept would
        with pytest.raises(InputError, match="s3://papers/run was changed by another process: run the same"):
            writer.commit()
    assert json.loads((out / METADATA_NAME).read_bytes()) == metadata


def test_a_folder_of_a_killed_process_is_not_whole(memory: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"0123")
    folder = ObjectPath("s3", BUCKET, "/run/model")
    killed = atomic_folder(folder)
    (killed.__enter__() / "weights.bin").write_bytes(b"01")
    assert folder.exists()
    assert not is_whole(folder)
    copy_folder(tmp_path / "model", folder)
    assert is_whole(folder)
    assert (folder / "weights.bin").read_bytes() == b"0123"
    assert list_names(folder.parent) == ["model"]


@pytest.mark.parametrize(
    ("variables", "place", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": "WRONG"}, BUCKET, r"InvalidAccessKeyId\): check spark.hadoop.fs.s3a.access.key"),
        ({"AWS_SECRET_ACCESS_KEY": "not-ours"}, BUCKET, r"SignatureDoesNotMatch\): check .* AWS_SECRET_ACCESS_KEY"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            BUCKET,
            "no store answers .* spark.hadoop.fs.s3a.endpoint, or AWS_",
        ),
        ({}, "no-such-bucket", "there is no bucket s3://no-such-bucket: make it, or correct its name"),
        (NO_KEYS, BUCKET, "no keys were found for s3://papers: set spark.hadoop.fs.s3a.access.key"),
        (
            {"AWS_ACCESS_KEY_ID": None},
            BUCKET,
            r"s3://papers: wrong settings \(.*AccessKeyId\): check spark.hadoop.fs.s3a",
        ),
    ],
    ids=["key", "secret", "server", "bucket", "no keys", "one key"],
)
def test_what_is_wrong_is_told_in_one_line(
    variables: dict[str, str | None], place: str, said: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    began = time.monotonic()
    with pytest.raises(InputError, match=said) as refusal:
        embed(sample_papers(), f"s3://{place}/refused")
    assert time.monotonic() - began < 30
    assert "\n" not in str(refusal.value)
    assert not {SECRET, "not-ours"} & set(str(refusal.value).split())
