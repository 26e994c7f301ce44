"""Whatever happens to a run's files: it is noticed, said in one line, and made good where that is possible."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from arxiv_embeddings.explore.index import build_index
from arxiv_embeddings.explore.layout import lay_out_run
from arxiv_embeddings.explore.lexical import build_words
from arxiv_embeddings.files import paths
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.export import export_run
from arxiv_embeddings.runs.format import COPY_NAME, to_vectors
from arxiv_embeddings.runs.repair import repair_run
from arxiv_embeddings.runs.store import RunWriter, open_run
from arxiv_embeddings.runs.verify import verify_run
from arxiv_embeddings.runs.wrong_vectors import verify_sample
from tests.fakes import ROOT
from tests.fakes.letters import LetterEncoder, StoppingEncoder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The sample in parts of 30."
    return embed_papers(
        sample_papers(), tmp_path_factory.mktemp("made") / "run", part_size=30, encoder=LetterEncoder()
    ).run.folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    "A copy of it, to be damaged."
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def part_path(folder: Path, number: int) -> Path:
    return sorted((folder / "parts").iterdir())[number]


def flip_vector(folder: Path) -> None:
    path, vector = part_path(folder, 1), open_run(folder).embeddings()[35]
    changed = vector.view(np.uint32) ^ np.uint32(1 << 20)
    path.write_bytes(path.read_bytes().replace(vector.tobytes(), changed.tobytes(), 1))


def flip_text(folder: Path) -> None:
    path = part_path(folder, 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4  # somewhere in the compressed abstracts
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    path = part_path(folder, 1)
    path.write_bytes(path.read_bytes()[:-100])


def exchange(folder: Path) -> None:
    shutil.copyfile(part_path(folder, 2), part_path(folder, 1))


DAMAGES = {"flip_vector": flip_vector, "flip_text": flip_text, "truncate": truncate, "exchange": exchange}
DAMAGES["remove"] = lambda folder: part_path(folder, 1).unlink()


@pytest.mark.parametrize("with_metadata", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_repaired(damage: str, with_metadata: bool, folder: Path, made: Path) -> None:
    whole, name = open_run(made), part_path(folder, 1).name
    DAMAGES[damage](folder)
    problems = verify_run(open_run(folder))["problems"]
    assert {(one["kind"], one["where"]) for one in problems if one["where"] != "parts"} == {("damage", f"parts/{name}")}
    assert problems[0]["n_papers"] in (1, 30)
    with pytest.raises(InputError, match=name):
        open_run(folder).read(["abstract", "embedding"])
    if not with_metadata:
        path = folder / "metadata.json"
        path.write_bytes(path.read_bytes()[:500])
    result = repair_run(folder, LetterEncoder())
    assert result.metadata_rebuilt == (not with_metadata)
    assert result.n_embedded == 30
    assert result.run.paper_ids == whole.paper_ids
    assert_array_equal(result.run.embeddings(), whole.embeddings(), strict=True)
    assert result.run.read() == whole.read()
    assert verify_run(result.run)["problems"] == []
    assert repair_run(folder, LetterEncoder()).repaired == []


def test_repair_needs_no_input_for_a_damaged_vector(tmp_path: Path) -> None:
    papers = tmp_path / "papers.csv"
    shutil.copyfile(sample_papers(), papers)
    run = embed_papers(papers, tmp_path / "run", part_size=30, encoder=LetterEncoder()).run
    vectors = run.embeddings()
    papers.unlink()
    flip_vector(run.folder)
    assert repair_run(run.folder, LetterEncoder()).n_embedded == 30
    assert_array_equal(open_run(run.folder).embeddings(), vectors, strict=True)
    flip_text(run.folder)
    before = part_path(run.folder, 1).read_bytes()
    with pytest.raises(InputError, match=r"1 part left without repair: .*papers\.csv"):
        repair_run(run.folder, LetterEncoder())
    assert part_path(run.folder, 1).read_bytes() == before


def test_a_repair_that_is_stopped_goes_on(folder: Path, made: Path) -> None:
    for number in (0, 1, 3):
        part_path(folder, number).write_bytes(b"PAR1")

        def run(self, tokenized, on_batch=None):
            self.n_calls += 1
            if self.n_calls == 2:
                raise KeyboardInterrupt
            return super().run(tokenized)

    with pytest.raises(KeyboardInterrupt):
        repair_run(folder, StoppingEncoder(1))
    assert len(verify_run(open_run(folder))["problems"]) == 2
    assert repair_run(folder, LetterEncoder()).n_embedded == 60
    assert_array_equal(open_run(folder).embeddings(), open_run(made).embeddings(), strict=True)


def test_what_lies_among_the_parts(folder: Path) -> None:
    (folder / "parts" / "mine.parquet").write_bytes(part_path(folder, 0).read_bytes())
    (folder / "parts" / "part-000000009-00000000.parquet").write_bytes(part_path(folder, 0).read_bytes())
    found = verify_run(open_run(folder))
    assert not found["sound"]
    assert {one["where"] for one in found["problems"]} == {
        "parts/mine.parquet",
        "parts/part-000000009-00000000.parquet",
    }
    with RunWriter(folder):
        pass
    assert [one["where"] for one in verify_run(open_run(folder))["problems"]] == ["parts/mine.parquet"]


def test_a_paper_that_is_there_twice(folder: Path) -> None:
    with RunWriter(folder) as writer:
        table = open_run(folder).read_part(writer.parts[0])
        writer.add_part(table.drop_columns("embedding").replace_schema_metadata(None), to_vectors(table, 4))
    (problem,) = verify_run(open_run(folder))["problems"]
    assert (problem["what"], problem["n_papers"]) == ("papers occur more than once", 30)
    with pytest.raises(InputError, match="30 papers are in more than one sound part"):
        repair_run(folder, LetterEncoder())


def test_index_and_exports_of_another_state(folder: Path) -> None:
    run = open_run(folder)
    export_run(run, "npy", "flat")
    build_index(run)
    assert verify_run(run)["problems"] == []
    with RunWriter(folder) as writer:
        writer.commit(writer.parts[:-1])
    found = verify_run(open_run(folder))
    assert found["sound"]  # nothing is lost: they can be made again
    assert {(one["kind"], one["where"]) for one in found["problems"]} == {
        ("stale", "index"),
        ("stale", "export/embeddings.npy"),
        ("stale", "export/flat"),
    }


def test_a_sample_of_vectors_that_another_model_made(folder: Path) -> None:
    assert verify_sample(open_run(folder), 12, LetterEncoder())["sound"]

    class Another(LetterEncoder):
        def run(self, tokenized, on_batch=None):
            return super().run(tokenized)[:, ::-1].copy()

    found = verify_sample(open_run(folder), 12, Another())
    assert not found["sound"]
    assert len(found["paper_ids"]) > 6


def test_a_clock_that_is_set_back(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed_papers(sample_papers(), tmp_path / "run", limit=60, part_size=30, encoder=LetterEncoder())
    monkeypatch.setattr(paths, "utc_now", lambda: "1970-01-01T00:00:00Z")
    for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]:
        os.utime(path, (2**31, 2**31))  # what is there is of the future
    run = embed_papers(sample_papers(), tmp_path / "run", encoder=LetterEncoder()).run
    assert run.metadata["date_generated"].startswith("1970")
    assert_array_equal(run.embeddings(), open_run(made).embeddings(), strict=True)
    assert verify_run(run)["problems"] == []


FULL_DISK = """
import subprocess, sys
from pathlib import Path
disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", disk], check=True)
from tests.fakes.letters import LetterEncoder
from arxiv_embeddings.runs.verify import verify_run
from arxiv_embeddings.cli.shared import describe_error
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import open_run
def embed():
    return embed_papers(sample_papers(), disk / "run", part_size=20, encoder=LetterEncoder()).run
try:
    embed()
except OSError as error:
    print(describe_error(error))
n_safe = open_run(disk / "run").n_papers
assert verify_run(open_run(disk / "run"))["problems"] == []
subprocess.run(["mount", "-o", "remount,size=2m,ro", disk], check=True)
try:
    embed()
except OSError as error:
    print(describe_error(error))
assert verify_run(open_run(disk / "run"))["problems"] == []
subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
run = embed()
assert verify_run(run)["problems"] == []
print(n_safe, run.n_papers)
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
assert embed().n_papers == run.n_papers
"""


def test_a_full_disk_and_one_that_is_read_only(tmp_path: Path, own_mounts: list[str]) -> None:
    command = [*own_mounts, sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    full, read_only, counts = done.stdout.splitlines()
    assert "No space left on device" in full
    assert "Read-only file system" in read_only
    n_safe, n_papers = map(int, counts.split())
    assert 0 < n_safe < n_papers == 144
    assert n_safe % 20 == 0


LIMITED_FILES = """
import resource, sys
from pathlib import Path
folder = Path(sys.argv[1])
from tests.fakes.letters import LetterEncoder
from arxiv_embeddings.runs.verify import verify_run
from arxiv_embeddings.cli.shared import describe_error
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import open_run
def embed(limit=None):
    return embed_papers(sample_papers(), folder, part_size=40, limit=limit, encoder=LetterEncoder()).run
n_bytes = embed(40).parts[0].n_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes // 2, resource.RLIM_INFINITY))
try:
    embed()
except OSError as error:
    print(describe_error(error))
assert verify_run(open_run(folder))["problems"] == []
print(open_run(folder).n_papers)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
run = embed()
assert verify_run(run)["problems"] == []
print(run.n_papers)
"""


def test_a_system_that_refuses_to_write_on(tmp_path: Path) -> None:
    "As on a full disk a write breaks off in the middle of a part, and nothing special is needed to try it."
    command = [sys.executable, "-c", LIMITED_FILES, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, n_safe, n_papers = done.stdout.splitlines()
    assert "File too large" in refused
    assert (int(n_safe), int(n_papers)) == (40, 144)


def test_a_copy_of_the_metadata_that_is_gone_or_another(folder: Path) -> None:
    for damage in (lambda path: path.unlink(), lambda path: path.write_text("{}")):
        damage(folder / COPY_NAME)
        found = verify_run(open_run(folder))
        assert [(one["where"], one["kind"]) for one in found["problems"]] == [(COPY_NAME, "stale")]
        with RunWriter(folder):
            pass
        assert verify_run(open_run(folder))["problems"] == []


def test_a_layout_and_an_index_of_words_are_checked(folder: Path) -> None:
    run = open_run(folder)
    lay_out_run(run, "pca")
    build_words(run)
    assert verify_run(run)["problems"] == []
    changed = [next((run.folder / "layout").glob("*.parquet")), run.folder / "index" / "words" / "data.csc.index.npy"]
    for path in changed:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    found = verify_run(run)
    assert [one["where"] for one in found["problems"]] == [str(path.relative_to(run.folder)) for path in changed]
    assert {one["kind"] for one in found["problems"]} == {"stale"}  # both are made again, so no paper is lost
    assert found["sound"]
