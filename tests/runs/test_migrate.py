"Another model for a run: a killed migration leaves the old run or the new one, and goes on."

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from typer.testing import CliRunner

from arxiv_embeddings import import_vectors
from arxiv_embeddings.cli.main import app
from arxiv_embeddings.cli.runs import compare_models
from arxiv_embeddings.files import paths
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.files.hdfs import HdfsPath
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.append import compact_run
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.migrate import migrate_run
from arxiv_embeddings.runs.repair import repair_run
from arxiv_embeddings.runs.store import Run, RunWriter, open_run
from arxiv_embeddings.runs.verify import verify_run
from tests.fakes import ROOT
from tests.fakes.kill_loop import make_newer
from tests.fakes.letters import LetterEncoder

FRAME = pd.read_csv(sample_papers(), dtype=str)


class OtherEncoder(LetterEncoder):
    "Makes other numbers of a text, and reads another text of a paper."

    def __init__(self):
        super().__init__("max")
        self.fingerprint = self.fingerprint | {"text": "abstract"}
        self.spec = type(self.spec)(**vars(self.spec) | {"text": "abstract", "name": "others"})

    def run(self, tokenized, on_batch=None):
        return super().run(tokenized, on_batch)[:, ::-1] + 1


class StoppedEncoder(OtherEncoder):
    "Is interrupted, as by Ctrl-C, when it has made two parts."

    n_parts = 2

    def run(self, tokenized, on_batch=None):
        self.n_parts -= 1
        if self.n_parts < 0:
            raise KeyboardInterrupt
        return super().run(tokenized)


OLD, NEW = LetterEncoder(), OtherEncoder()


def make(folder: Path, **options: object) -> Run:
    return embed_papers(sample_papers(), folder, encoder=OLD, part_size=20, **options).run


def is_of(run: Run, encoder: LetterEncoder) -> bool:
    "Whether a run has all papers, with the vectors of one encoder and everything that belongs to them."
    texts = encoder.spec.texts_of(run.read())
    same = np.array_equal(run.embeddings(), encoder.encode(texts))
    return same and run.metadata["model"] == encoder.spec.name and run.metadata["complete"] and run.n_papers == 144


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


MIGRATOR = """
import os, pathlib, signal, sys
from arxiv_embeddings.files import paths
from arxiv_embeddings.runs import migrate, store
from tests.runs.test_migrate import NEW

folder, step, n_calls, can_exchange = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "yes"

def watch(owner, name):
    call = getattr(owner, name)

    def calling(*given, **more):
        global n_calls
        if name == step:
            n_calls -= 1
            if n_calls < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*given, **more)

    setattr(owner, name, calling)

if not can_exchange:
    paths.exchange_folders = lambda first, second: False
watch(store.RunCommitter, "commit")
watch(paths, "exchange_folders")
watch(pathlib.Path, "rename")
watch(paths, "remove_folder")
migrate.migrate_run(folder, encoder=NEW, keep=sys.argv[5] == "keep")
"""


def migrate_and_kill(folder: Path, step: str, n_calls: int, can_exchange: bool = True, keep: bool = True) -> None:
    "Migrate in a process of its own, which is killed at a call of a function."
    words = [folder, step, n_calls, "yes" if can_exchange else "no", "keep" if keep else "delete"]
    killed = subprocess.run([sys.executable, "-c", MIGRATOR, *map(str, words)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_kill_at_every_step_leaves_the_old_run_or_the_new_one(tmp_path: Path) -> None:
    make(tmp_path / "run")
    for n_calls, n_there in ((0, None), (1, 0), (4, 80), (4, 144)):  # the second time it goes on
        migrate_and_kill(tmp_path / "run", "commit", n_calls)
        assert is_of(open_run(tmp_path / "run"), OLD)
        there = open_run(tmp_path / "run.migrating").n_papers if n_there is not None else None
        assert there == n_there
    migrate_and_kill(tmp_path / "run", "exchange_folders", 0)
    assert is_of(open_run(tmp_path / "run"), OLD)
    assert is_of(open_run(tmp_path / "run.migrating"), NEW)
    migrate_and_kill(tmp_path / "run", "rename", 0)
    assert is_of(open_run(tmp_path / "run"), NEW)
    assert is_of(open_run(tmp_path / "run.migrating"), OLD)
    assert migrate_run(tmp_path / "run", encoder=NEW).n_embedded == 0
    assert names(tmp_path) == ["run", "run.before"]
    assert is_of(open_run(tmp_path / "run"), NEW)
    assert is_of(open_run(tmp_path / "run.before"), OLD)
    assert [verify_run(open_run(tmp_path / name))["problems"] for name in ("run", "run.before")] == [[], []]


@pytest.mark.slow
def test_a_kill_where_folders_cannot_be_exchanged(tmp_path: Path) -> None:
    make(tmp_path / "run")
    migrate_and_kill(tmp_path / "run", "rename", 0, can_exchange=False)
    assert is_of(open_run(tmp_path / "run"), OLD)
    migrate_and_kill(tmp_path / "run", "rename", 1, can_exchange=False)
    assert names(tmp_path) == ["run.before", "run.migrating"]  # the moment without a run
    migrate_run(tmp_path / "run", encoder=NEW)
    assert names(tmp_path) == ["run", "run.before"]
    assert is_of(open_run(tmp_path / "run"), NEW)
    assert is_of(open_run(tmp_path / "run.before"), OLD)


@pytest.mark.slow
def test_a_kill_while_the_old_run_is_deleted(tmp_path: Path) -> None:
    make(tmp_path / "run")
    migrate_and_kill(tmp_path / "run", "remove_folder", 1, keep=False)
    assert names(tmp_path) == ["run", "run.before.partial"]
    (tmp_path / "run.before.partial" / "metadata.json").unlink()
    assert is_of(open_run(tmp_path / "run"), NEW)
    migrate_run(tmp_path / "run", encoder=NEW, keep=False)
    assert names(tmp_path) == ["run"]


def test_what_is_kept_and_what_is_known_afterwards(tmp_path: Path) -> None:
    old = make(tmp_path / "run")
    old.export("npy")
    result = migrate_run(tmp_path / "run", encoder=NEW)
    assert is_of(result.run, NEW)
    assert is_of(result.before, OLD)
    noted = {"model": "letters", "metadata_sha256": result.before.metadata["metadata_sha256"]}
    assert result.run.metadata["migrated_from"] == noted
    assert names(result.before.folder / "export") == ["embeddings.npy", "export.json"]
    assert not (result.run.folder / "export").exists()
    assert not (result.before.folder / ".lock.json").exists()
    assert result.run.read().drop_columns("text_sha256").equals(result.before.read().drop_columns("text_sha256"))
    # the same input is known, and a newer one can be added
    assert embed_papers(sample_papers(), tmp_path / "run", encoder=NEW).n_embedded == 0
    newer = make_newer(tmp_path / "newer.csv")
    added = embed_papers(newer, tmp_path / "run", encoder=NEW, append=True)
    assert added.changes["n_new"] == 30
    assert verify_run(added.run)["problems"] == []


def test_a_run_of_several_inputs_stays_repairable(tmp_path: Path) -> None:
    make(tmp_path / "run")
    newer = make_newer(tmp_path / "newer.csv")
    embed_papers(newer, tmp_path / "run", encoder=OLD, append=True)
    with RunWriter(tmp_path / "run") as writer:
        compact_run(writer, 200)
    run = migrate_run(tmp_path / "run", encoder=NEW).run
    expected = run.embeddings()
    assert [one["path"] for one in run.metadata["inputs"]] == [str(sample_papers()), str(newer)]
    assert "settings" not in run.metadata["inputs"][1]
    last = run.parts[-1]
    (run.folder / "parts" / last.name).write_bytes(b"")
    repaired = repair_run(tmp_path / "run", NEW)
    assert repaired.n_embedded == last.n_papers
    assert_array_equal(repaired.run.embeddings(), expected, strict=True)


def test_papers_that_were_added_meanwhile_are_included(tmp_path: Path) -> None:
    make(tmp_path / "run", limit=60)
    with pytest.raises(KeyboardInterrupt):
        migrate_run(tmp_path / "run", encoder=StoppedEncoder())
    assert open_run(tmp_path / "run.migrating").n_papers == 40
    with RunWriter(tmp_path / "run") as writer:
        compact_run(writer, 2048)
    embed_papers(sample_papers(), tmp_path / "run", encoder=OLD)
    with pytest.raises(InputError, match=r"a migration of .* to others is not finished: run its command again"):
        migrate_run(tmp_path / "run", encoder=LetterEncoder("cls"))
    result = migrate_run(tmp_path / "run", encoder=NEW)
    assert result.n_embedded == 104
    assert is_of(result.run, NEW)


def test_papers_that_were_changed_meanwhile_begin_it_anew(tmp_path: Path) -> None:
    make(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        migrate_run(tmp_path / "run", encoder=StoppedEncoder())
    changed = FRAME.copy()
    changed.loc[30, "abstract"] = "Another abstract."
    embed_papers(changed, tmp_path / "run", encoder=OLD, append=True)
    with pytest.raises(
        InputError, match=r"changed or dropped since its migration began: delete the folder .*migrating"
    ):
        migrate_run(tmp_path / "run", encoder=NEW)


def test_nobody_else_writes_meanwhile(tmp_path: Path) -> None:
    make(tmp_path / "run")
    refused = []

    def append(old: Run, fresh: Run) -> None:
        assert is_of(old, OLD)
        assert is_of(fresh, NEW)
        for name in ("run",):
            code = f"from arxiv_embeddings.runs.store import RunWriter\nwith RunWriter({str(tmp_path / name)!r}): pass"
            tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            refused.append("is being written by process" in tried.stderr)

    migrate_run(tmp_path / "run", encoder=NEW, before_swap=append)
    assert refused == [True]


def test_what_cannot_be_migrated_is_refused_in_one_line(tmp_path: Path) -> None:
    make(tmp_path / "run")
    assert migrate_run(tmp_path / "run", encoder=OLD).n_embedded == 0
    assert names(tmp_path) == ["run"]
    with pytest.raises(InputError, match="has no run to continue"):
        migrate_run(tmp_path / "missing", encoder=NEW)
    with pytest.raises(InputError, match="is not on a disk, and elsewhere two folders cannot be swapped"):
        migrate_run(HdfsPath("nowhere:9000", "/run"), encoder=NEW)
    (tmp_path / "run.before").mkdir()
    with pytest.raises(InputError, match=r"run\.before is there from an earlier migration"):
        migrate_run(tmp_path / "run", encoder=NEW)
    (tmp_path / "run.before").rmdir()
    (tmp_path / "run" / "staging").mkdir()
    with pytest.raises(InputError, match=r"an append to .* is not finished"):
        migrate_run(tmp_path / "run", encoder=NEW)
    (tmp_path / "run" / "staging").rmdir()
    (tmp_path / "run.migrating").mkdir()
    (tmp_path / "run.migrating" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"run\.migrating contains other files \(notes\.txt\)"):
        migrate_run(tmp_path / "run", encoder=NEW)
    assert is_of(open_run(tmp_path / "run"), OLD)


def test_a_full_disk_leaves_the_old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "run")

    def fail(first: Path, second: Path) -> bool:
        raise OSError(28, "No space left on device", str(first))

    monkeypatch.setattr(paths, "exchange_folders", fail)
    with pytest.raises(OSError, match="No space left"):
        migrate_run(tmp_path / "run", encoder=NEW)
    monkeypatch.undo()
    assert is_of(open_run(tmp_path / "run"), OLD)
    assert migrate_run(tmp_path / "run", encoder=NEW).n_embedded == 0
    assert is_of(open_run(tmp_path / "run"), NEW)


def test_imported_vectors_get_a_model(tmp_path: Path) -> None:
    import_vectors(sample_papers(), np.ones((144, 3)), tmp_path / "run")
    run = migrate_run(tmp_path / "run", encoder=NEW).run
    assert is_of(run, NEW)
    assert "imported" not in run.metadata


def test_one_paper_leaves_nothing_to_compare(tmp_path: Path) -> None:
    runs = [import_vectors(FRAME[:n], np.eye(n, 3), tmp_path / str(n)).run for n in (1, 2)]
    assert compare_models(runs[0], runs[0]) is None
    assert compare_models(runs[1], runs[1]).overlap.to_numpy().tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_what_changed_is_told(tmp_path: Path) -> None:
    make(tmp_path / "run")
    changes = migrate_run(tmp_path / "run", encoder=NEW).changes
    assert [one.describe("before", "now") for one in changes] == [
        "model: letters before, others now",
        "pooling: mean before, max now",
        "text: title+abstract before, abstract now",
    ]
    assert migrate_run(tmp_path / "run", encoder=NEW).changes == ()


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    make(tmp_path / "run")
    words = ["migrate", str(tmp_path / "run"), "--model", "minilm"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "144 papers embedded in" in shown.output
    told = " ".join(shown.output.split())
    assert "changed: model: letters before, minilm now; max_tokens: 64 before, 512 now; prompt: not stated" in told
    assert (
        "length one: not stated before, yes now; other files: config.json, settings of the modules, tokenizer, weights before the swap"
        in told
    )
    assert "before the swap: 144 papers." in told
    assert "papers on which they disagree most:" in told
    assert "run.before" in shown.output
    again = CliRunner().invoke(app, words)
    assert (again.exit_code, "has the vectors of this model already" in " ".join(again.output.split())) == (0, True)
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert (told["n_embedded"], told["model"], told["comparison"], told["changes"]) == (0, "minilm", None, [])


def test_a_model_that_comes_back_is_not_taken_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "run")
    for encoder in (NEW, OLD, NEW):
        migrate_run(tmp_path / "run", encoder=encoder, keep=False)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("arxiv_embeddings.runs.migrate.swap_runs", interrupt)
        with pytest.raises(KeyboardInterrupt):
            migrate_run(tmp_path / "run", encoder=OLD, keep=False)
    assert migrate_run(tmp_path / "run", encoder=OLD, keep=False).n_embedded == 0  # all were embedded before
    assert is_of(open_run(tmp_path / "run"), OLD)
