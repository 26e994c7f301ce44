"""Runs: what was committed survives whatever happens to the process, and nothing is mixed that does not belong together."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from arxiv_embeddings.encoders.load import EncoderOptions, make_encoder
from arxiv_embeddings.encoders.openvino_engine import choose_streams
from arxiv_embeddings.files import paths
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.files.hashes import hash_text
from arxiv_embeddings.files.machine import count_cores
from arxiv_embeddings.papers.corpus import read_papers, sample_papers
from arxiv_embeddings.papers.texts import make_texts
from arxiv_embeddings.runs import run_model
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.export import export_run
from arxiv_embeddings.runs.format import FOOTER_KEY, to_vectors
from arxiv_embeddings.runs.run_model import load_run_encoder
from arxiv_embeddings.runs.store import RunWriter, open_run
from tests.fakes.letters import LetterEncoder
from tests.fakes.slow_writer import count_committed, start_writer, wait_until


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    "The sample embedded by letters without a stop."
    return embed_papers(sample_papers(), tmp_path_factory.mktemp("whole") / "run", encoder=LetterEncoder()).run


def test_killed_at_random_moments_and_continued(tmp_path: Path, whole) -> None:
    folder, generator = tmp_path / "run", random.Random(0)
    process = start_writer(sample_papers(), folder, 8, 0.08)
    time.sleep(generator.uniform(0, 0.1))  # perhaps before anything is there
    process.kill()
    process.wait()
    n_before = count_committed(folder)
    for _ in range(4):  # a part takes 0.08 seconds or more, so that about half of the 18 are left in the end
        process = start_writer(sample_papers(), folder, 8, 0.08)
        wait_until(lambda n_before=n_before: count_committed(folder) > n_before, process)
        time.sleep(generator.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL  # it had not ended by itself
        run = open_run(folder)
        assert n_before < run.n_papers < 144  # what was committed is still there, and there was more to do
        assert_array_equal(run.embeddings(), whole.embeddings()[: run.n_papers], strict=True)
        n_before = run.n_papers
    assert 0 < n_before < 144
    assert start_writer(sample_papers(), folder, 8, 0.08).wait() == 0
    run = open_run(folder)
    assert run.metadata["complete"]
    assert run.paper_ids == whole.paper_ids
    assert_array_equal(run.embeddings(), whole.embeddings(), strict=True)
    # a plain reader of the folder sees exactly the run
    assert pd.read_parquet(folder / "parts")["paper_id"].tolist() == whole.paper_ids
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".metadata.copy.json", "metadata.json", "parts"]


# the two folders above new ones are forced to disk; then a file is written and its folder forced to disk: the lock's
# owner, copy and metadata; then for each of three parts the part, copy and metadata
@pytest.mark.parametrize("failing", range(1, 27))
def test_every_write_may_fail(failing: int, tmp_path: Path, whole, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def may_fail(write: Callable[..., Any]) -> Callable[..., Any]:
        def failing_write(path: Path, *content: Callable[..., Any]) -> Any:
            nonlocal count
            count += 1
            if count == failing:
                raise OSError(28, "No space left on device", str(path))
            return write(path, *content)

        return failing_write

    with monkeypatch.context() as patched:
        for name in ("force_to_disk", "sync_folder"):
            patched.setattr(paths, name, may_fail(getattr(paths, name)))
        with pytest.raises(OSError, match="No space left"):
            embed_papers(sample_papers(), tmp_path / "run", part_size=48, encoder=LetterEncoder())
    assert count >= failing
    n_safe = 48 * max(0, (failing - 8) // 6)  # metadata have their name before the last step of six
    assert failing < 8 or open_run(tmp_path / "run").n_papers == n_safe
    result = embed_papers(sample_papers(), tmp_path / "run", encoder=LetterEncoder(), part_size=48)
    assert result.n_embedded == 144 - n_safe
    assert_array_equal(result.run.embeddings(), whole.embeddings(), strict=True)
    assert len(list((tmp_path / "run" / "parts").iterdir())) == len(result.run.parts)


def test_two_writers(tmp_path: Path) -> None:
    first = start_writer(sample_papers(), tmp_path / "run", 8, 0.08)
    wait_until((tmp_path / "run" / "metadata.json").exists, first)
    try:
        with pytest.raises(InputError, match=f"is being written by process {first.pid}"):
            embed_papers(sample_papers(), tmp_path / "run", encoder=LetterEncoder())
        first.send_signal(signal.SIGSTOP)  # stopped is not dead
        with pytest.raises(InputError, match=f"is being written by process {first.pid}"):
            embed_papers(sample_papers(), tmp_path / "run", encoder=LetterEncoder())
    finally:
        first.kill()
        first.wait()
    assert embed_papers(sample_papers(), tmp_path / "run", encoder=LetterEncoder()).run.metadata["complete"]


def test_what_a_dead_writer_leaves_is_no_obstacle(tmp_path: Path, whole) -> None:
    folder = tmp_path / "run"
    (folder / "parts").mkdir(parents=True)
    (folder / ".lock").touch()
    # a process of the same number is alive, as after the restart of a container
    (folder / ".lock.json").write_text(json.dumps({"host": "here", "process": os.getpid(), "since": "long ago"}))
    (folder / ".metadata.json.0123abcd.tmp").write_text("{")
    (folder / "..metadata.copy.json.0123abcd.tmp").write_text("{")
    (folder / "parts" / ".part-000000000-00000000.parquet.0123abcd.tmp").write_text("PAR1")
    run = embed_papers(sample_papers(), folder, encoder=LetterEncoder()).run
    assert_array_equal(run.embeddings(), whole.embeddings(), strict=True)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".metadata.copy.json", "metadata.json", "parts"]
    assert len(list((folder / "parts").iterdir())) == 1


def test_lost_metadata_loses_no_part(tmp_path: Path) -> None:
    run = embed_papers(sample_papers(), tmp_path / "run", part_size=50, encoder=LetterEncoder()).run
    (run.folder / "metadata.json").unlink()
    parts = sorted((run.folder / "parts").iterdir())
    for pooling in ("mean", "cls"):
        with pytest.raises(InputError, match=r"has the parts of a run but no metadata\.json"):
            embed_papers(sample_papers(), run.folder, limit=2, encoder=LetterEncoder(pooling))
    assert sorted((run.folder / "parts").iterdir()) == parts


def test_a_run_that_is_replaced_between_looking_and_locking(tmp_path: Path) -> None:
    description = {
        "model": "given",
        "embedding_dim": 1,
        "fingerprint": {"pooling": "mean"},
        "inputs": [{"sha256": "1"}],
    }
    for change in ({"fingerprint": {"pooling": "cls"}}, {"inputs": [{"sha256": "2"}]}):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        first = RunWriter(folder, description)
        with RunWriter(folder, description | change):
            pass
        with pytest.raises(InputError, match="already has a run"):
            first.__enter__()
        continued = RunWriter(folder)
        (folder / "metadata.json").unlink()
        with RunWriter(folder, description):
            pass
        with pytest.raises(InputError, match="was replaced by another run meanwhile"):
            continued.__enter__()
        with RunWriter(folder):  # and nobody was left holding the lock
            pass


def test_a_run_within_its_own_input(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "abstract": ["A."]}), tmp_path / "papers.parquet")
    with pytest.raises(InputError, match="is inside its own input"):
        embed_papers(tmp_path, tmp_path / "run", encoder=LetterEncoder())


def test_a_flipped_bit_in_a_vector_that_makes_it_no_number(tmp_path: Path) -> None:
    run = embed_papers(sample_papers(), tmp_path / "run", encoder=LetterEncoder()).run
    path = run.part_path(run.parts[0])
    vector = run.embeddings()[7].tobytes()
    content = path.read_bytes()
    assert content.count(vector) >= 1
    path.write_bytes(content.replace(vector, np.array([np.nan] * 4, dtype=np.float32).tobytes(), 1))
    with pytest.raises(InputError, match=r"is missing or damaged: .*checksum"):
        run.embeddings()
    with pytest.raises(InputError, match="holds NaN or infinity"):  # as where no page has a checksum
        to_vectors(pa.table({"embedding": pa.array([[1.0, np.nan]], pa.list_(pa.float32()))}), 2)


def test_uris_are_not_taken_for_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in ("ftp://server/run", Path("ftp://server/run"), "memory://run"):
        with pytest.raises(InputError, match="a run must be on a local disk, on HDFS or in an object store"):
            embed_papers(sample_papers(), out, encoder=LetterEncoder())
    for out, message in {
        "hdfs://127.0.0.1:9/run": "no HDFS answers",
        Path("hdfs://127.0.0.1:9/run"): "as text",
        Path("s3://bucket/run"): "as text",
    }.items():
        with pytest.raises(InputError, match=message):
            embed_papers(sample_papers(), out, encoder=LetterEncoder())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["[]", '{"format": "1"}', '{"format": 1, "parts": []}', "null"])
def test_metadata_of_something_else(content: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(content)
    with pytest.raises(InputError, match=r"is not the metadata of a run|is damaged"):
        open_run(tmp_path)


def test_a_reader_sees_the_state_that_it_opened(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    before = embed_papers(sample_papers(), folder, limit=20, part_size=8, encoder=LetterEncoder()).run
    embed_papers(sample_papers(), folder, encoder=LetterEncoder())
    assert before.n_papers == len(before.read()) == len(before.embeddings()) == 20
    assert open_run(folder).content_sha256 != before.content_sha256


def test_order_rows_and_hashes_are_those_of_the_input(whole) -> None:
    papers = read_papers(sample_papers()).table()
    texts = make_texts(papers, separator="|")
    table = whole.read()
    assert table["paper_id"].to_pylist() == papers["paper_id"].to_pylist()
    assert table["text_sha256"].to_pylist() == [hash_text(text) for text in texts]
    assert_array_equal(whole.embeddings(), LetterEncoder().encode(texts), strict=True)
    assert [name for name in table.column_names if name != "text_sha256"] == papers.column_names


def test_parts_say_what_they_are(tmp_path: Path) -> None:
    run = embed_papers(sample_papers(), tmp_path / "run", part_size=50, encoder=LetterEncoder()).run
    listed = json.loads((run.folder / "metadata.json").read_text())["parts"]
    for part, in_metadata in zip(run.parts, listed, strict=True):
        footer = json.loads(pq.read_schema(run.part_path(part)).metadata[FOOTER_KEY])
        of_file = {"name": part.name, "n_bytes": part.n_bytes, "sha256": part.sha256}
        assert footer["part"] | of_file == in_metadata == part.to_json()
        assert footer["run"]["fingerprint_sha256"] == run.metadata["fingerprint_sha256"]
        assert footer["run"]["fingerprint"] == run.metadata["fingerprint"]
        assert footer["run"]["inputs"] == run.metadata["inputs"]


def test_metadata_has_the_four_fields_of_old(whole) -> None:
    kept = json.loads((whole.folder / "metadata.json").read_text())
    assert (kept["n_papers"], kept["embedding_dim"], kept["model"]) == (144, 4, "letters")
    assert pd.Timestamp(kept["date_generated"]).tzinfo is not None


def test_a_moved_input_is_the_same_and_a_changed_one_is_not(tmp_path: Path) -> None:
    moved = tmp_path / "moved.csv"
    moved.write_bytes(sample_papers().read_bytes())
    embed_papers(sample_papers(), tmp_path / "run", limit=10, encoder=LetterEncoder())
    assert embed_papers(moved, tmp_path / "run", limit=20, encoder=LetterEncoder()).n_embedded == 10
    moved.write_bytes(sample_papers().read_bytes().replace(b"Placeholder", b"Some", 1))
    with pytest.raises(InputError, match="contains papers of another input"):
        embed_papers(moved, tmp_path / "run", encoder=LetterEncoder())
    with pytest.raises(InputError, match="was made with the columns"):
        embed_papers(sample_papers(), tmp_path / "run", encoder=LetterEncoder(), title_column="authors")


@pytest.mark.parametrize("damage", ["truncate", "gone", "another"])
def test_a_damaged_part_is_named(damage: str, tmp_path: Path) -> None:
    run = embed_papers(sample_papers(), tmp_path / "run", part_size=50, encoder=LetterEncoder()).run
    names = [part.name for part in run.parts]
    path = run.part_path(run.parts[1])
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes((run.folder / "parts" / names[2]).read_bytes())
    for read in (run.embeddings, run.read):
        with pytest.raises(InputError, match=names[1]):
            read()


@pytest.mark.parametrize("of_another", ["position", "fingerprint_sha256"])
def test_a_part_in_the_place_of_another_of_the_same_size(of_another: str, tmp_path: Path) -> None:
    parts = []
    for pooling in ("cls", "max"):
        description = {"model": "given", "embedding_dim": 2, "fingerprint": {"pooling": pooling}}
        with RunWriter(tmp_path / pooling, description) as writer:
            for row in range(2):
                papers = pa.table({"paper_id": [f"paper {row}"], "text_sha256": [str(row)]})
                writer.add_part(papers, np.array([[row, 1]], dtype=np.float32))
        made = open_run(tmp_path / pooling)
        parts.append([made.part_path(part) for part in made.parts])
    place, other = parts[0][0], parts[0][1] if of_another == "position" else parts[1][0]
    assert place.stat().st_size == other.stat().st_size
    place.write_bytes(other.read_bytes())
    run = open_run(tmp_path / "cls")
    for read in (run.embeddings, run.read, lambda: run.paper_ids):
        with pytest.raises(InputError, match=f"{place.name} is not the one .* it has another {of_another};"):
            read()


def test_compressing_vectors_would_save_less_than_a_tenth(sample_run) -> None:
    content = sample_run.embeddings().tobytes()
    assert len(pa.Codec("zstd").compress(content)) > 0.9 * len(content)
    path = sample_run.part_path(sample_run.parts[0])
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    compressed = {column.path_in_schema: column.compression for column in columns}
    assert compressed["embedding.list.element"] == "UNCOMPRESSED"
    assert compressed["abstract"] == compressed["title"] == "ZSTD"


def test_metadata_cut_in_half(tmp_path: Path) -> None:
    run = embed_papers(sample_papers(), tmp_path / "run", encoder=LetterEncoder()).run
    path = run.folder / "metadata.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    parts = list((run.folder / "parts").iterdir())
    for attempt in (
        lambda: open_run(run.folder),
        lambda: embed_papers(sample_papers(), run.folder, encoder=LetterEncoder()),
    ):
        with pytest.raises(InputError, match="cannot be read"):
            attempt()
    assert list((run.folder / "parts").iterdir()) == parts


@pytest.mark.parametrize("name", ["notes.txt", "parts/notes.txt", "parts/part-of-mine.parquet"])
def test_a_folder_with_something_else(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="contains other files"):
        embed_papers(sample_papers(), tmp_path, encoder=LetterEncoder())
    assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "metadata.json").exists()


def test_a_vector_that_is_none_stops_the_run(tmp_path: Path) -> None:
    class BrokenEncoder(LetterEncoder):
        def run(self, tokenized, on_batch=None):
            vectors = super().run(tokenized)
            vectors[3, 1] = np.nan
            return vectors

    ids = read_papers(sample_papers()).table()["paper_id"].to_pylist()
    with pytest.raises(InputError, match=f"NaN or infinity in 1 vectors, of papers {ids[3]}:"):
        embed_papers(sample_papers(), tmp_path / "run", encoder=BrokenEncoder())
    assert not list((tmp_path / "run").glob("parts/*"))


def test_exports_are_the_run(tmp_path: Path) -> None:
    run = embed_papers(sample_papers(), tmp_path / "run", part_size=50, encoder=LetterEncoder()).run
    npy, parquet = export_run(run)
    assert_array_equal(np.load(npy, mmap_mode="r"), run.embeddings(), strict=True)
    table = pq.read_table(parquet)
    assert table.drop_columns("embedding").replace_schema_metadata(None) == run.read().replace_schema_metadata(None)
    assert_array_equal(np.stack(table["embedding"].to_pylist()).astype(np.float32), run.embeddings(), strict=True)
    manifest = json.loads((run.folder / "export" / "export.json").read_text())
    assert {one["content_sha256"] for one in manifest.values()} == {run.content_sha256}


def test_the_model_of_a_run_is_found_again(sample_run) -> None:
    encoder = load_run_encoder(sample_run, device="cpu")
    assert encoder.fingerprint == sample_run.metadata["fingerprint"]
    assert encoder.batching["token_budget"] == sample_run.metadata["batching"]["token_budget"]


def test_a_continued_run_keeps_its_batches(tmp_path: Path, minilm, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder(minilm.files, EncoderOptions("openvino"), token_budget=777, streams=1)
    embed_papers(sample_papers(), tmp_path / "run", limit=4, part_size=2, encoder=encoder)
    made = []

    def make(*positional, **options):
        made.append(make_encoder(*positional, **options))
        return made[-1]

    monkeypatch.setattr(run_model, "make_encoder", make)
    run = embed_papers(sample_papers(), tmp_path / "run", limit=9, engine="openvino").run
    assert made[0].batching == {
        "token_budget": 777,
        "length_multiple": 8,
        "streams": choose_streams(count_cores(), "float32"),
    }
    assert [part.n_papers for part in run.parts] == [2, 2, 2, 2, 1]


def test_a_reader_of_metadata_never_sees_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        with paths.atomic_file(path) as stream:
            stream.write(b"new and longer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new and longer"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(1, 9))
def test_any_parts_come_back_in_order(sizes: list[int], dim: int) -> None:
    import tempfile

    vectors = np.random.default_rng(0).standard_normal((sum(sizes), dim)).astype(np.float32)
    ids = [f"paper {row}" for row in range(sum(sizes))]
    with tempfile.TemporaryDirectory() as folder:
        with RunWriter(folder, {"model": "given", "embedding_dim": dim, "fingerprint": {}}) as writer:
            start = 0
            for size in sizes:
                papers = pa.table({"paper_id": ids[start : start + size], "text_sha256": ["0"] * size})
                writer.add_part(papers, vectors[start : start + size])
                start += size
        run = open_run(folder)
        assert run.paper_ids == ids
        assert_array_equal(run.embeddings(), vectors, strict=True)
        assert all(run.row_of(paper_id) == row for row, paper_id in enumerate(ids))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    # permissions do not keep root out, so these are places where not even root can make a folder
    (tmp_path / "file").write_text("not a folder")
    for parent in [tmp_path / "file", *(path for path in [Path("/proc/self")] if path.is_dir())]:
        with pytest.raises(OSError, match="run"):
            embed_papers(sample_papers(), parent / "run", encoder=LetterEncoder())
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_a_text_that_comes_again_is_embedded_once(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "papers.csv"
    path.write_text("id,abstract\n1,A graph.\n2,A graph.\n3,A tree.\n4,A graph.\n5,A tree.\n")
    embed_papers(
        path, tmp_path / "run", limit=1, part_size=1, engine=engine, device="cpu"
    )  # windows of nothing new follow
    run = embed_papers(path, tmp_path / "run", engine=engine, device="cpu").run
    assert [part.counts["n_repeated"] for part in run.parts] == [0, 1, 0, 1, 1]
    assert [part.counts["n_tokens"] > 0 for part in run.parts] == [True, False, True, False, False]
    vectors = run.embeddings()
    assert_array_equal(vectors[[1, 3, 4]], vectors[[0, 0, 2]], strict=True)
    assert not np.array_equal(vectors[0], vectors[2])
