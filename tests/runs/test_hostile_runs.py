"""Runs of somebody else: whatever their files state, a command ends in one line or in a sound run, and touches nothing beside the run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arxiv_embeddings.explore import describe as describe_module
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.runs import store
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.format import seal_metadata
from arxiv_embeddings.runs.repair import repair_run
from arxiv_embeddings.runs.store import RunWriter, fetch_vectors, open_run
from arxiv_embeddings.runs.verify import verify_run
from tests.fakes import hostile
from tests.fakes.hostile import (
    COMMANDS,
    DOCUMENTS,
    FILES,
    Change,
    Letters,
    apply_change,
    draw_changes,
    draw_one_of_each,
    hash_tree,
    letters_for_models,
    list_changes,
    make_base,
    read_document,
    run_command,
    try_change,
)
from tests.fakes.letters import LetterEncoder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    "A run with everything that it can have, and beside it a tree that nobody may touch; tests change copies."
    folder = tmp_path_factory.mktemp("hostile")
    with letters_for_models():
        make_base(folder)
        yield folder


@pytest.fixture
def run_folder(base: Path) -> Iterator[Path]:
    "A copy of the run, beside the same tree, which is looked at in the end."
    folder, before = base / "copy", hash_tree(base)
    shutil.copytree(base / "run", folder)
    yield folder
    shutil.rmtree(folder)
    assert hash_tree(base) == before


def rewrite(folder: Path, **changes: object) -> dict:
    "Change metadata, and seal them again."
    metadata = seal_metadata(read_document(folder, "metadata.json") | changes)
    for name in ("metadata.json", ".metadata.copy.json"):
        (folder / name).write_text(json.dumps(metadata))
    return metadata


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_works_on_the_run_as_it_is(command: str, run_folder: Path) -> None:
    assert run_command(run_folder, command) == ""
    assert run_command(run_folder, "describe") == ""
    assert verify_run(open_run(run_folder))["sound"]


@pytest.mark.parametrize("file", [*DOCUMENTS, "files"])
def test_a_changed_run_ends_in_a_line_or_is_sound(file: str, base: Path) -> None:
    drawn = draw_one_of_each(list_changes(base / "run"), seed=20)
    names = [name for name in COMMANDS if name != "plot"]  # which takes a second
    wrong, n_tried = [], 0
    for number, change in enumerate(drawn):
        if ("files" if change.kind in FILES else change.file) == file:
            wrong += try_change(base, change, (names[number % len(names)],))
            n_tried += 1
    assert wrong == []
    assert n_tried > 5


@pytest.mark.parametrize("kind", ["one", "one more", "times 1000"])
def test_footers_may_state_any_dimension(kind: str, base: Path) -> None:
    "Repair makes metadata of footers; embedding papers for them must not end in vectors of another length."
    assert try_change(base, Change("footer", ("run", "embedding_dim"), kind)) == []


@pytest.mark.parametrize("kind", ["2^31", "2^53"])
def test_a_part_of_the_last_generation_has_no_successor(kind: str, base: Path) -> None:
    for number in range(len(read_document(base / "run", "metadata.json")["parts"])):
        change = Change("metadata.json", ("parts", number, "generation"), kind)
        assert try_change(base, change, ("repair", "compact", "verify")) == []


def test_changes_reach_every_field_and_file(base: Path, run_folder: Path) -> None:
    rewrite(run_folder, reader={"columns": {"id": "EID"}})
    (run_folder / "new.json").touch()
    changes = list_changes(run_folder)
    places = {(one.file, one.place) for one in changes}
    assert ("metadata.json", ("reader", "columns", "id")) in places  # a new field is tried without a change here
    assert ("metadata.json", ("parts", 0, "n_papers")) in places
    assert ("staging/metadata.json", ("first_position",)) in places
    assert ("footer", ("part", "generation")) in places
    assert ("new.json", ()) in places
    assert {one.file for one in changes} >= set(DOCUMENTS)
    assert {one.file for one in draw_changes(changes, 300, seed=0)} >= set(DOCUMENTS)


def test_the_trial_itself_notices(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = Change("index/index.json", ("n_papers",), "zero")
    assert try_change(base, change, ("describe",)) == []

    def touch(run: object) -> list:
        (base / "canary" / "victim.txt").touch()
        return []

    monkeypatch.setattr(describe_module, "find_withdrawn", touch)
    assert try_change(base, change, ("describe",)) == [f"{change} describe: touched canary/victim.txt"]
    monkeypatch.setattr(describe_module, "find_withdrawn", lambda run: [][1])
    (problem,) = try_change(base, change, ("describe",))
    assert "internal error (IndexError" in problem
    monkeypatch.setattr(describe_module, "find_withdrawn", lambda run: (base / "canary" / "pipe.csv").read_text())
    monkeypatch.setattr(hostile, "SECONDS", 1)
    assert try_change(base, change, ("describe",)) == [f"{change} describe: hangs"]


@pytest.mark.parametrize("name", ["../../canary/victim.txt", "ABSOLUTE", "TWIN"])
def test_a_name_outside_the_run_is_neither_read_nor_removed(name: str, base: Path, run_folder: Path) -> None:
    parts = read_document(run_folder, "metadata.json")["parts"]
    twin = f"../../canary/run/parts/{parts[0]['name']}"  # the same part, in the tree beside the run
    name = {"ABSOLUTE": str(base / "canary" / "victim.txt"), "TWIN": twin}.get(name, name)
    rewrite(run_folder, parts=[parts[0] | {"name": name}, *parts[1:]])
    for command in ("verify", "compact", "repair", "append"):
        assert run_command(run_folder, command) == ""
    assert verify_run(open_run(run_folder))["sound"]  # `repair` has made the metadata again from the parts


def test_a_link_to_the_parts_of_another_run(base: Path, run_folder: Path) -> None:
    shutil.rmtree(run_folder / "parts")
    (run_folder / "parts").symlink_to(base / "canary" / "run" / "parts")
    parts = read_document(run_folder, "metadata.json")["parts"]
    rewrite(run_folder, parts=parts[:1], n_papers=parts[0]["n_papers"], complete=False)
    for command in COMMANDS:  # `compact` removed the other run's parts that these metadata do not name
        assert run_command(run_folder, command) == ""
    with pytest.raises(InputError, match="parts is a link, not a folder: it is not opened"):
        open_run(run_folder)


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a link to a device", "a link to a pipe", "a link to itself"])
@pytest.mark.parametrize(
    "file", ["part", "metadata.json", "index/index.json", "export/export.json", ".lock.json", ".lock"]
)
def test_what_is_no_file_is_never_opened(file: str, kind: str, base: Path, run_folder: Path) -> None:
    part = f"parts/{open_run(run_folder).parts[1].name}"
    (run_folder / ".lock.json").touch()
    apply_change(run_folder, Change(part if file == "part" else file, (), kind))
    for command in ("describe", "verify", "export", "compact"):
        assert run_command(run_folder, command) == ""


def test_a_part_of_another_run_is_not_removed(base: Path, run_folder: Path) -> None:
    other = base / "other"
    with RunWriter(other, {"model": "by hand", "embedding_dim": 4, "fingerprint": {"pooling": "max"}}) as writer:
        papers = pa.table({"paper_id": ["1"], "text_sha256": ["11" * 32]})
        writer.add_part(papers, np.ones((1, 4), dtype=np.float32))
    theirs = (other / "parts" / writer.parts[0].name).read_bytes()
    shutil.rmtree(other)
    unnamed = run_folder / "parts" / "part-000000900-00000000.parquet"
    in_place = run_folder / "parts" / open_run(run_folder).parts[0].name
    for path in (unnamed, in_place):
        path.write_bytes(theirs)
    assert repair_run(run_folder, Letters()).repaired == [in_place.name]  # from the input
    for path in (unnamed, in_place):
        assert path.read_bytes() == theirs
    problems = verify_run(open_run(run_folder))["problems"]
    assert {one["where"] for one in problems if one["kind"] == "orphan"} == {
        f"parts/{unnamed.name}",
        f"parts/{in_place.name}",
    }


def test_no_vectors_but_those_of_the_parts(run_folder: Path) -> None:
    run, vectors = open_run(run_folder), open_run(run_folder).embeddings()
    run.metadata["n_papers"] += 10**9  # as if the schema had not noticed
    with pytest.raises((InputError, MemoryError)):
        run.embeddings()
    run = open_run(run_folder)
    run.parts[1].__dict__["n_papers"] = 10**12
    run.metadata["n_papers"] = 10**12
    with pytest.raises(InputError, match=r"is not the one listed in metadata\.json: it has another n_papers"):
        run.embeddings()
    with pytest.raises(ValueError, match="1 of 2 rows are in no run"):
        fetch_vectors([open_run(run_folder)], np.array([0, 10**6]))
    run = open_run(run_folder)
    run.metadata["embedding_dim"] = 2  # twice as many vectors of half the length
    with pytest.raises(InputError, match="it has another embedding"):
        run.embeddings()
    assert len(vectors) == 14


@pytest.mark.parametrize("n_papers", [13, 15, 10**12])
def test_more_or_fewer_papers_than_the_parts_have(n_papers: int, run_folder: Path) -> None:
    rewrite(run_folder, n_papers=n_papers)
    with pytest.raises(InputError, match=f"n_papers is {n_papers}, and the parts have 14 papers"):
        open_run(run_folder)
    for command in ("describe", "index", "export", "evaluate"):
        assert run_command(run_folder, command) == ""
    assert not list((run_folder / "export").glob(".*"))


def test_a_part_with_vectors_of_another_type(run_folder: Path) -> None:
    part = open_run(run_folder).parts[0]
    path = run_folder / "parts" / part.name
    table = pq.read_table(path, partitioning=None)
    for kind in (pa.float64(), pa.int32(), pa.string()):
        vectors = pa.array([[1, 2, 3, 4]] * len(table), pa.list_(pa.int32())).cast(pa.list_(kind))
        other = table.set_column(table.schema.get_field_index("embedding"), "embedding", vectors)
        pq.write_table(other, path)
        with pytest.raises(InputError, match="it has another n_bytes, embedding"):
            open_run(run_folder).embeddings()
        assert run_command(run_folder, "verify") == ""


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"parts": 7}', '{"parts": [{"name": "../victim.txt"}]}'])
def test_damaged_staging_stops_no_command_that_does_not_need_it(content: str, run_folder: Path) -> None:
    staged = open_run(run_folder / "staging").parts[0].name
    (run_folder / "staging" / "parts" / staged).rename(run_folder / "parts" / staged)  # as a killed commit leaves it
    (run_folder / "staging" / "metadata.json").write_text(content)
    (run_folder / "staging" / ".metadata.copy.json").unlink()
    n_papers = open_run(run_folder).n_papers
    for command in COMMANDS:
        if command not in ("append", "plot"):
            assert run_command(run_folder, command) == ""
        assert open_run(run_folder).n_papers == n_papers
    assert (run_folder / "parts" / staged).exists()  # the papers of the append are not lost
    assert run_command(run_folder, "append") == ""  # one line: it names the folder


def test_a_staging_folder_with_files_of_somebody_stays(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "staging")
    (run_folder / "staging" / "parts").mkdir(parents=True)
    (run_folder / "staging" / "parts" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"staging contains other files \(thesis\.tex\): move them elsewhere"):
        repair_run(run_folder, Letters())
    assert (run_folder / "staging" / "parts" / "thesis.tex").exists()


def test_exports_are_not_looked_for_elsewhere(base: Path, run_folder: Path) -> None:
    exports = read_document(run_folder, "export/export.json")
    exports["embeddings.npy"]["files"] = {"../../canary/pipe.csv": {"n_bytes": 1, "sha256": "0" * 64}}
    (run_folder / "export" / "export.json").write_text(json.dumps(exports))
    problems = verify_run(open_run(run_folder))["problems"]
    assert [one["where"] for one in problems] == ["export", "staging"]
    assert "'../../canary/pipe.csv', not the name of an export" in problems[0]["what"]


def test_an_input_that_is_a_device_is_not_read(base: Path, run_folder: Path) -> None:
    for path in ("/dev/zero", str(base / "canary" / "pipe.csv")):
        inputs = read_document(run_folder, "metadata.json")["inputs"]
        rewrite(run_folder, inputs=[inputs[0] | {"path": path}])
        part = run_folder / "parts" / open_run(run_folder).parts[0].name
        part.write_bytes(part.read_bytes()[:100])
        assert run_command(run_folder, "repair") == ""


def test_unknown_fields_are_kept(run_folder: Path) -> None:
    rewrite(run_folder, reader={"delimiter": ";"})
    assert run_command(run_folder, "compact") == ""
    assert open_run(run_folder).metadata["reader"] == {"delimiter": ";"}


def test_a_device_in_the_parts_is_no_orphan_to_be_removed(run_folder: Path) -> None:
    os.mkfifo(run_folder / "parts" / ".part-000000000-00000000.parquet.00000000.tmp")
    metadata = open_run(run_folder).metadata
    assert store.find_orphans(run_folder, metadata) == []
    assert not store.is_removable(run_folder / "parts" / "missing", SimpleNamespace())


FLIPS = """
import random, sys
from pathlib import Path
from arxiv_embeddings import InputError, open_run

folder = Path(sys.argv[1])
(part,) = (folder / "parts").iterdir()
content = part.read_bytes()
footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
draw, refused = random.Random(5), 0
for _ in range(2000):
    changed = bytearray(content)
    changed[draw.randrange(footer, len(content) - 8)] ^= 1 << draw.randrange(8)
    part.write_bytes(changed)
    try:
        run = open_run(folder)
        run.read()
        run.embeddings()
    except InputError:
        refused += 1
print(refused)
"""


def test_a_flipped_bit_in_a_footer_does_not_end_the_process(tmp_path: Path) -> None:
    "pyarrow aborts on some statistics; the run is read in a process of its own, since no exception would be raised."
    rows = [{"id": f"2101.{n:05d}", "title": f"T{n}", "abstract": "a" * n} for n in range(1, 30)]
    embed_papers(rows, tmp_path / "run", encoder=LetterEncoder())
    done = subprocess.run([sys.executable, "-c", FLIPS, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 500 < int(done.stdout) < 2000
