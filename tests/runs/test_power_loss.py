"""The power may fail at any moment: every legal state of the disk opens as a run that was committed, or is repaired to one.

`tests/fakes/power_loss.py` states the model and records the commands. Each state is opened, and its papers are counted
by polars and DuckDB as well. A repair may use what is on the disk, but must not embed a paper again: whatever was
reported as committed is there.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb
import faiss
import numpy as np
import pandas as pd
import polars
import pyarrow.parquet as pq
import pytest

from arxiv_embeddings.encoders.vectors import l2_normalize
from arxiv_embeddings.explore import index as index_module
from arxiv_embeddings.explore.index import build_index, open_index
from arxiv_embeddings.files import paths
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.runs import append, export, format, repair, store
from arxiv_embeddings.runs import embed as embedding
from arxiv_embeddings.runs.append import compact_run, recover_staging
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.export import EXPORTS, export_run
from arxiv_embeddings.runs.format import to_vectors
from arxiv_embeddings.runs.repair import repair_run
from arxiv_embeddings.runs.store import STAGING_NAME, RunWriter, holds_run, open_run
from tests.fakes.letters import LetterEncoder, StoppingEncoder
from tests.fakes.power_loss import Recorder, Recording, Tree, list_cuts, recording, spoil, write_tree

Content = tuple[tuple[str, ...], bytes]  # ids and vectors
FORMS = ("npy", "parquet", "int8", "flat")


class IdleEncoder(LetterEncoder):
    "Must not be asked for a vector: the papers are there."

    def run(self, tokenized, on_batch=None):
        raise InputError("a paper had to be embedded again")


def write_papers(path: Path, changed: tuple[int, ...] = (), rows: range = range(8)) -> Path:
    "A few papers; some of them with another abstract."
    texts = [f"{'Revised' if row in changed else 'About'} topic {'abcdefghij'[row]}." for row in rows]
    pd.DataFrame({"paper_id": [f"2101.0000{row}" for row in rows], "abstract": texts}).to_csv(path, index=False)
    return path


def embed(papers: Path, run: Path, encoder: LetterEncoder | None = None, **options: Any) -> None:
    embed_papers(papers, run, encoder=encoder or LetterEncoder(), **options)


def read_content(run: Path) -> Content:
    opened = open_run(run)
    table = opened.read(["paper_id", "embedding"])
    vectors = to_vectors(table, opened.dim) if len(table) else np.empty(0, np.float32)
    return tuple(table["paper_id"].to_pylist()), vectors.tobytes()


# -- the commands, each from a state that it needs


def begin_nothing(work: Path, run: Path) -> None:
    pass


def begin_run(work: Path, run: Path, part_size: int = 2) -> None:
    embed(write_papers(work / "papers.csv"), run, part_size=part_size)


def begin_damage(work: Path, run: Path) -> None:
    begin_run(work, run)
    (run / "metadata.json").unlink()
    damaged = sorted((run / "parts").iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:-20])


def begin_stopped(work: Path, run: Path) -> None:
    begin_run(work, run)
    with pytest.raises(KeyboardInterrupt):
        append_papers(work, run, StoppingEncoder(1))


def begin_changed(work: Path, run: Path, make: Callable[[Path], Any]) -> None:
    "Something was made of the run, and then a paper changed: as many as before, with another vector."
    begin_run(work, run)
    make(run)
    embed(write_papers(work / "changed.csv", changed=(5,)), run, append=True)


def append_papers(work: Path, run: Path, encoder: LetterEncoder | None = None) -> None:
    "Of four parts one is dropped and two lose a paper; four papers are new or changed."
    embed(write_papers(work / "newer.csv", (3, 5), range(2, 10)), run, encoder, append=True, prune=True)


def compact(work: Path, run: Path) -> None:
    with RunWriter(run) as writer:
        recover_staging(writer)
        compact_run(writer, 3)


def index(run: Path) -> None:
    build_index(open_run(run), fresh=True)


def export_all(run: Path) -> None:
    export_run(open_run(run), *FORMS)


@dataclass(frozen=True)
class Command:
    "A command, and the state in which it begins."

    begin: Callable[[Path, Path], None]
    run: Callable[[Path, Path], None]
    encoder: type[LetterEncoder] = IdleEncoder  # that a repair after the cut may use


COMMANDS = {
    "embed": Command(begin_nothing, begin_run),
    "append --prune": Command(begin_run, append_papers),
    "append again": Command(begin_stopped, append_papers),
    "compact": Command(partial(begin_run, part_size=1), compact),
    "repair": Command(begin_damage, lambda work, run: repair_run(run, encoder=LetterEncoder()), LetterEncoder),
    "index": Command(partial(begin_changed, make=index), lambda work, run: index(run)),
    "index again": Command(lambda work, run: (begin_run(work, run), index(run)), lambda work, run: index(run)),
    "export": Command(partial(begin_changed, make=export_all), lambda work, run: export_all(run)),
}


@dataclass
class History:
    "What a command did, and the states that it committed."

    recorded: Recording
    contents: dict[str, Content | None]  # metadata_sha256 -> papers and vectors at that commit
    before: Tree  # exported files before the command
    after: Tree
    encoder: type[LetterEncoder]
    counted: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # by polars and DuckDB

    def committed(self, done: int, folder: str) -> tuple[str, set[str]]:
        "The last state that was reported as committed, and all that may be on the disk after so many steps."
        reported, possible = "", {""}
        for step in self.recorded.steps[:done]:
            if step.kind == "mark" and step.mark[:1] == (folder,):
                _, event, sha = step.mark
                possible = possible | {sha} if event == "begin" else {sha}
                reported = sha if event == "end" else reported
        return reported, possible

    def is_done(self, done: int) -> bool:
        return any(step.mark == ("done",) for step in self.recorded.steps[:done])


@contextmanager
def marking_commits(recorder: Recorder, contents: dict[str, Content | None]) -> Iterator[None]:
    "Remember when metadata were about to be replaced, when this was reported, and what the run held then."
    write = format.write_metadata

    def write_metadata(folder: Path, metadata: dict[str, Any], version: str | None = None) -> None:
        sha = format.seal_metadata(metadata)["metadata_sha256"]
        name = "staging" if folder.name == STAGING_NAME else "run"
        recorder.mark((name, "begin", sha))
        write(folder, metadata, version)
        recorder.mark((name, "end", sha))
        contents[sha] = read_or_none(folder)

    in_store = mock.patch.object(store, "write_metadata", write_metadata)
    with in_store, mock.patch.object(repair, "write_metadata", write_metadata):
        yield


def read_or_none(run: Path) -> Content | None:
    try:
        return read_content(run)
    except InputError:
        return None


def read_tree(folder: Path) -> Tree:
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def record(command: Command, work: Path) -> History:
    "Run a command on a recorded disk."
    root, given = work / "disk", work / "given"
    for folder in (root, given):
        folder.mkdir(parents=True)
    run, contents = root / "run", {}
    command.begin(given, run)
    if (run / "metadata.json").exists():
        contents[open_run(run).metadata["metadata_sha256"]] = read_content(run)
    if (run / STAGING_NAME).exists():
        staged = run / STAGING_NAME
        contents[open_run(staged).metadata["metadata_sha256"]] = read_content(staged)
    before = read_tree(run)
    with recording(root) as recorder, marking_commits(recorder, contents):
        for name, folder in (("run", run), ("staging", run / STAGING_NAME)):
            if (folder / "metadata.json").exists():
                recorder.mark((name, "end", open_run(folder).metadata["metadata_sha256"]))
        command.run(given, run)
        recorder.mark(("done",))
    return History(recorder.recording, contents, before, read_tree(run), command.encoder)


# -- what a state of the disk is worth


def count_elsewhere(run: Path, history: History) -> tuple[int, int]:
    "Papers in `parts/`, as polars and DuckDB count them."
    parts = sorted((run / "parts").glob("*.parquet"))
    if not parts:
        return 0, 0
    key = b"".join(path.name.encode() + path.read_bytes() for path in parts)
    if key not in history.counted:
        where = str(run / "parts" / "*.parquet")
        try:
            by_polars = polars.read_parquet(where, columns=["paper_id"]).height
            ((by_duckdb,),) = duckdb.sql(f"SELECT count(paper_id) FROM '{where}'").fetchall()
        except (
            polars.exceptions.PolarsError,
            duckdb.Error,
        ):  # a part that nothing names may be garbage; a repair removes it
            by_polars = by_duckdb = -1
        history.counted[key] = by_polars, by_duckdb
    return history.counted[key]


def examine(run: Path, history: History) -> tuple[str, Content | None]:
    "Open a run and read all of it; an empty name if there is no run. Raises `InputError` if it needs a repair."
    if not (run / "metadata.json").exists() and not holds_run(run):
        return "", None
    opened, content = open_run(run), read_content(run)
    if set(count_elsewhere(run, history)) != {opened.n_papers}:
        raise InputError("other readers count other papers")
    return opened.metadata["metadata_sha256"], content


def examine_or_repair(run: Path, history: History) -> tuple[str, Content | None]:
    try:
        return examine(run, history)
    except InputError:
        repair_run(run, encoder=history.encoder())
        return examine(run, history)


def find_fault(root: Path, done: int, history: History) -> str:
    "Why a state is not legal; empty if it is."
    run = root / "run"
    try:
        sha, content = examine_or_repair(run, history)
        fault = judge_run(sha, content, done, history)
        if not fault and needs_staging(sha, done, history):
            fault = judge_staging(run, done, history)
        return fault or judge_index(run, done, history) or judge_exports(run, done, history)
    except InputError as error:
        return f"not to be opened: {error}"


def judge_run(sha: str, content: Content | None, done: int, history: History) -> str:
    reported, possible = history.committed(done, "run")
    if history.encoder is LetterEncoder:  # a repair of a repair: the same papers in the end
        expected = list(history.contents.values())[-1]
        return "" if content == expected else "repaired to other papers"
    if sha not in possible:
        return f"not the state that was committed: {reported[:8]}, but {sha[:8]}"
    return "" if content == history.contents.get(sha) else "other papers than at that commit"


def needs_staging(sha: str, done: int, history: History) -> bool:
    "Whether papers of an unfinished append were reported as safe, and are not in the run."
    reported, _ = history.committed(done, "staging")
    before = [step.mark[2] for step in history.recorded.steps if step.kind == "mark" and step.mark[0] == "run"][:1]
    return bool(reported) and before == [sha]


def judge_staging(run: Path, done: int, history: History) -> str:
    "An unfinished append keeps what it has embedded."
    with RunWriter(run) as writer:
        recover_staging(writer)
    reported, possible = history.committed(done, "staging")
    if not history.contents[reported][0] and not (run / STAGING_NAME).exists():
        return ""  # it was removed, as no paper was in it
    staged = open_run(run / STAGING_NAME)
    sha = staged.metadata["metadata_sha256"]
    if sha not in possible:
        return "papers of the append that were safe are lost"
    return "" if read_content(staged.folder) == history.contents[sha] else "other papers in staging"


def judge_index(run: Path, done: int, history: History) -> str:
    "A stored index holds the vectors of the run, or is refused in a line; once it was reported, it is there."
    if "index/index.faiss" not in history.after:
        return ""
    opened = open_run(run)
    try:
        found = open_index(opened)
    except InputError:
        return "the index is refused" if history.is_done(done) else ""
    if not found.stored:
        return "the index is gone" if history.is_done(done) else ""
    stored = found.index.reconstruct_n(0, found.index.ntotal)
    return "" if np.array_equal(stored, l2_normalize(opened.embeddings())) else "the index holds other vectors"


def judge_exports(run: Path, done: int, history: History) -> str:
    "Each exported file is the older or the newer one, whole; once it was reported, the newer one."
    if "export" not in history.after:
        return ""
    tree = read_tree(run)
    for form in FORMS:
        name = f"export/{EXPORTS[form][0]}"
        older, newer, now = (
            {one: content for one, content in files.items() if one == name or one.startswith(f"{name}/")}
            for files in (history.before, history.after, tree)
        )
        if now != newer and (history.is_done(done) or now not in (older, {})):
            return f"{name} is neither the older nor the newer one"
    notes = [files.get("export/export.json") for files in (history.before, history.after)]
    now = tree.get("export/export.json")
    if history.is_done(done):
        return "" if now == notes[1] else "export.json is not what was written"
    return "" if now and json.loads(now) else "export.json is damaged"


def digest(tree: Tree) -> int:
    return hash(tuple(sorted(tree.items())))


def try_all(history: History, work: Path, stop_at_fault: bool = False) -> tuple[int, list[str]]:
    "Try every state once for each number of committed states before it: how many there were, and the faults."
    seen, faults = set(), []
    for done, tree in list_cuts(history.recorded):
        key = (
            digest(tree),
            history.committed(done, "run")[0],
            history.committed(done, "staging")[0],
            history.is_done(done),
        )
        if key in seen:
            continue
        seen.add(key)
        root = work / f"state{len(seen)}"
        write_tree(tree, root)
        with mock.patch.object(os, "fsync"):  # what a repair writes may be lost again; this machine need not wait
            fault = find_fault(root, done, history)
        if fault:
            faults.append(f"after {done} steps: {fault}")
            if stop_at_fault:
                break
        shutil.rmtree(root)
    return len(seen), faults


@pytest.fixture(scope="module")
def counted() -> dict[str, int]:
    "States that were tried, for the sum in the end."
    return {}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_state_after_a_cut_is_a_committed_one(name: str, tmp_path: Path, counted: dict[str, int]) -> None:
    counted[name], faults = try_all(record(COMMANDS[name], tmp_path), tmp_path / "states")
    assert faults == []
    assert len(counted) < len(COMMANDS) or sum(counted.values()) > 1000, counted


# -- mistakes, each of which has to be caught


def flush_only(stream: Any) -> None:
    stream.flush()


@contextmanager
def rename_first(path: Path) -> Iterator[Any]:
    temporary = path.with_name(f".{path.name}.00000000.tmp")
    with temporary.open("wb") as stream:
        yield stream
        stream.flush()
        temporary.replace(path)
        paths.force_to_disk(stream)
    paths.sync_folder(path.parent)


@contextmanager
def write_in_place(path: Path) -> Iterator[Any]:
    with path.open("wb") as stream:
        yield stream


def remove_first(committer: RunWriter, parts: list | None = None, **changes: Any) -> None:
    kept = {part.name for part in committer.parts if parts is None or part in parts}
    for part in committer.parts:
        if part.name not in kept:
            (committer.folder / "parts" / part.name).unlink()
    COMMIT(committer, parts, **changes)


def commit_before_moving(writer: RunWriter, changes: append.Changes, record: dict[str, Any]) -> None:
    folder, kept = writer.folder / STAGING_NAME, append.drop_rows(writer, changes.dropped)
    staged, inputs = open_run(folder).parts, [*writer.metadata["inputs"], record]
    writer.commit([*kept, *staged], inputs=inputs, complete=True)
    for part in staged:
        (folder / "parts" / part.name).rename(writer.folder / "parts" / part.name)
    paths.sync_folder(writer.folder / "parts")
    paths.remove_folder(folder)


def write_note_first(run: store.Run, fresh: bool) -> None:
    content = faiss.serialize_index(index_module.make_index(run)).tobytes()
    folder = run.folder / "index"
    paths.make_folder(folder)
    facts = {"content_sha256": run.content_sha256, "n_parts": len(run.parts), "kind": "exact"}
    facts |= {"n_papers": run.n_papers, "embedding_dim": run.dim}
    facts["files"] = {"index.faiss": {"n_bytes": len(content), "sha256": sha256(content).hexdigest()}}
    with paths.atomic_file(folder / "index.json") as stream:
        stream.write(json.dumps(facts).encode())
    with paths.atomic_file(folder / "index.faiss") as stream:
        stream.write(content)


def move_without_sync(folder: Path, staged: list[store.StagedPart]) -> None:
    for one in staged:
        (folder / "parts" / one.staged_name).replace(folder / "parts" / one.part.name)


def make_without_sync(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


COMMIT = store.RunCommitter.commit
MISTAKES = {
    "no fsync of the file": ("embed", paths, "force_to_disk", flush_only),
    "no fsync of the folder": ("embed", paths, "sync_folder", lambda folder: None),
    "no fsync above a new folder": ("embed", paths, "make_folder", make_without_sync),
    "no fsync of parts before the commit": ("embed", store, "put_into_place", move_without_sync),
    "rename before fsync": ("export", export, "atomic_file", rename_first),
    "metadata written in place": ("embed", format, "atomic_file", write_in_place),
    "part removed before the commit": ("compact", store.RunCommitter, "commit", remove_first),
    "staging moved after the commit": ("append --prune", embedding, "commit_append", commit_before_moving),
    "note of the index before the index": ("index", sys.modules[__name__], "build_index", write_note_first),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(mistake: str, tmp_path: Path) -> None:
    name, owner, attribute, wrong = MISTAKES[mistake]
    with mock.patch.object(owner, attribute, wrong):
        history = record(COMMANDS[name], tmp_path)
    _, faults = try_all(history, tmp_path / "states", stop_at_fault=True)
    assert faults


# -- a disk that garbled content which it had reported as written: noticed, never read


def list_damages(content: bytes) -> Iterator[bytes]:
    for how in ("half", "zeros", "garbage"):
        yield spoil(content, how)
    is_part = content.startswith(b"PAR1")  # its footer has no checksum; `verify` compares the hash of the file
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little") if is_part else len(content)
    for place in range(0, end, 32):  # shorter than the vectors of the part
        yield content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def read_damaged(history: History, work: Path) -> list[str]:
    "Damage each file of a run in turn; the damages that gave another run."
    silent = []
    for number, name in enumerate(name for name, content in history.after.items() if content):
        for damaged in list_damages(history.after[name]):
            root = work / f"damaged{number}"
            write_tree(
                {"run": None} | {f"run/{one}": of for one, of in (history.after | {name: damaged}).items()}, root
            )
            with suppress(InputError):
                sound = open_run(root / "run").metadata == json.loads(history.after["metadata.json"])
                if not sound or read_content(root / "run") != list(history.contents.values())[-1]:
                    silent.append(name)
            shutil.rmtree(root)
    return silent


ONE_PART = Command(begin_nothing, partial(begin_run, part_size=8))


def test_damage_is_noticed(tmp_path: Path) -> None:
    assert read_damaged(record(ONE_PART, tmp_path), tmp_path) == []


def test_checksums_that_are_ignored_are_caught(tmp_path: Path) -> None:
    history = record(ONE_PART, tmp_path)
    with mock.patch.object(store, "open_part", pq.ParquetFile):
        assert read_damaged(history, tmp_path)
    with mock.patch.object(format, "seal_metadata", lambda metadata: metadata):
        assert read_damaged(history, tmp_path)
