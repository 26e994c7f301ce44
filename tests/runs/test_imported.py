"Vectors that another program made: joined with their papers, checked, marked, and never mixed with ours."

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal
from typer.testing import CliRunner

from arxiv_embeddings import import_vectors, load_encoder, search
from arxiv_embeddings.cli.main import app
from arxiv_embeddings.explore.evaluation import evaluate_run
from arxiv_embeddings.explore.index import build_index
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.files.hdfs import HdfsPath
from arxiv_embeddings.papers.corpus import sample_papers, sample_relations
from arxiv_embeddings.runs.append import compact_run
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.imported import open_npy, open_vectors
from arxiv_embeddings.runs.repair import repair_run
from arxiv_embeddings.runs.run_model import load_query_encoder, load_run_encoder, match_model
from arxiv_embeddings.runs.store import Run, RunWriter, open_run
from arxiv_embeddings.runs.verify import verify_run
from tests.fakes import ROOT
from tests.fakes.letters import LetterEncoder

FRAME = pd.read_csv(sample_papers(), dtype=str)
MADE = np.random.default_rng(3).normal(size=(len(FRAME), 16)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("imported")
    np.save(folder / "vectors.npy", MADE)
    return import_vectors(sample_papers(), folder / "vectors.npy", folder / "run", part_size=50).run


def write_parquet(path: Path, ids: list[str], vectors: np.ndarray, **more: object) -> Path:
    pq.write_table(pa.table({"paper_id": ids, "embedding": list(vectors), **more}), path)
    return path


def test_an_imported_run_does_what_every_run_does(run: Run, tmp_path: Path) -> None:
    unit = MADE / np.linalg.norm(MADE, axis=1, keepdims=True)
    nearest = np.argsort(-(unit @ unit[7]))[1:4]
    found = run.similar(FRAME["paper_id"][7], k=3)
    assert found["paper_id"].tolist() == FRAME["paper_id"][nearest].tolist()
    build_index(run)
    assert run.similar(FRAME["paper_id"][7], k=3)["paper_id"].tolist() == found["paper_id"].tolist()
    assert "relations" in evaluate_run(run, sample_relations(), k=5)
    assert run.map(tmp_path / "map.html").path.stat().st_size > 10_000
    assert_array_equal(np.load(run.export("npy")[0]), MADE, strict=True)
    with RunWriter(run.folder) as writer:
        assert compact_run(writer, 200) == 2
    assert verify_run(open_run(run.folder))["sound"]
    assert_array_equal(open_run(run.folder).embeddings(), MADE, strict=True)
    assert "not known" in repr(run)


def test_a_description_says_what_is_not_known(run: Run) -> None:
    told = run.describe()
    assert (told["model"], told["imported"]["joined_by"]) == ("not known", "row")
    assert "joined_by" in told._repr_html_() or "joined by" in told._repr_html_()
    shown = CliRunner().invoke(app, ["describe", str(run.folder)])
    assert shown.exit_code == 0, shown.output
    assert "model, metric, weights, pooling, text, max_tokens, precision" in " ".join(shown.output.split())
    assert "not normalized" in shown.output


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_every_kind_of_floats_in_every_form(kind: object, tmp_path: Path) -> None:
    given = MADE.astype(kind)
    expected = given.astype(np.float32)
    np.save(tmp_path / "vectors.npy", np.asfortranarray(given))
    (tmp_path / "shards").mkdir()
    for number, rows in enumerate(np.array_split(given, 5)):
        np.save(tmp_path / "shards" / f"part-{number}.npy", rows)
    for at, vectors in enumerate((given, tmp_path / "vectors.npy", tmp_path / "shards")):
        made = import_vectors(sample_papers(), vectors, tmp_path / f"run{at}").run
        assert_array_equal(made.embeddings(), expected, strict=True)
        assert made.metadata["imported"]["joined_by"] == "row"


def test_vectors_of_rejected_rows_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arxiv_embeddings.runs.imported.BLOCK_ROWS", 10)
    frame = FRAME.copy()
    frame.loc[3, "abstract"] = None
    frame.loc[9, "paper_id"] = frame.loc[8, "paper_id"]
    vectors = MADE.copy()
    vectors[3] = np.nan  # nobody asks for it
    result = import_vectors(frame, vectors, tmp_path / "run")
    kept = np.delete(np.arange(len(FRAME)), [3, 9])
    assert_array_equal(result.run.embeddings(), MADE[kept], strict=True)
    assert result.run.paper_ids == frame["paper_id"][kept].tolist()
    assert result.run.metadata["imported"]["n_not_used"] == 2
    assert {reason: one["count"] for reason, one in result.run.input["rejected"].items()} == {
        "no abstract": 1,
        "duplicate id": 1,
    }
    assert result.run.metadata["complete"]


def test_vectors_are_joined_by_id_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arxiv_embeddings.runs.imported.BLOCK_ROWS", 10)
    order = np.random.default_rng(1).permutation(len(FRAME))[5:]
    ids = ["https://arxiv.org/abs/" + FRAME["paper_id"][row] + "v3" for row in order]
    path = write_parquet(
        tmp_path / "some.parquet", [*ids, ids[0][:-1] + "1", "hep-th/9901001"], np.vstack([MADE[order], MADE[:2]])
    )
    result = import_vectors(sample_papers(), path, tmp_path / "run", part_size=40)
    there = np.sort(order)
    assert result.run.paper_ids == FRAME["paper_id"][there].tolist()
    assert_array_equal(result.run.embeddings(), MADE[there], strict=True)
    assert result.run.metadata["imported"]["n_not_used"] == 2  # an older version, and a paper that is not there
    assert result.run.input["rejected"]["no vector"]["count"] == 5
    assert result.run.metadata["complete"]
    with pytest.raises(InputError, match=r"5 of 144 rows .* are rejected, more than --max-rejected 4"):
        import_vectors(sample_papers(), path, tmp_path / "other", max_rejected=4)
    with pytest.raises(InputError, match="one vector a row is needed"):
        import_vectors(sample_papers(), path, tmp_path / "other", join="row")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda made: made[:-1], "has 143 vectors and .* has 144 rows"),
        (lambda made: np.where(np.arange(144)[:, None] == 4, np.nan, made), f"1 vectors .* {FRAME['paper_id'][4]}"),
        (lambda made: np.where(np.arange(144)[:, None] == 4, np.inf, made), f"1 vectors .* {FRAME['paper_id'][4]}"),
        (lambda made: made * (np.arange(144)[:, None] > 1), f"2 vectors .* {', '.join(FRAME['paper_id'][:2])}:"),
        (lambda made: made.astype(np.float64) * 1e39, "144 vectors that are missing, zero, NaN or infinite"),
        (lambda made: made * np.float32(1e-25), "144 vectors .* or as good as that in float32"),
        (lambda made: made * np.float32(1e22), "144 vectors .* or as good as that in float32"),
        (lambda made: made.astype(object), "holds object"),
        (lambda made: made.astype(np.int32), "holds int32"),
        (lambda made: made.ravel(), r"has the shape \(2304,\)"),
        (lambda made: made[:0], "has the shape"),
        (lambda made: [[1.0], [1.0, 2.0]], "cannot be read as vectors"),
    ],
    ids=["rows", "nan", "inf", "zero", "too_large", "tiny", "huge", "objects", "integers", "flat", "empty", "ragged"],
)
def test_vectors_that_are_none_are_refused_before_anything_is_written(spoil, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        import_vectors(sample_papers(), spoil(MADE), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_that_are_none_are_refused_in_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "cut.npy", MADE)
    os.truncate(tmp_path / "cut.npy", 1000)
    np.savez(tmp_path / "two.npz", one=MADE, two=MADE)
    (tmp_path / "two.npz").rename(tmp_path / "two.npy")
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.parquet").write_text("no Parquet")
    (tmp_path / "vectors.csv").write_text("1,2")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    write_parquet(tmp_path / "ragged.parquet", ["1", "2"], np.array([1.0, 2.0]).reshape(2, 1))
    ragged = pa.table({"id": ["1", "2"], "embedding": [[1.0], [1.0, 2.0]]})
    pq.write_table(ragged, tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"id": ["1"], "title": ["T"]}), tmp_path / "none.parquet")
    messages = {
        "objects.npy": "cannot be read as an array",
        "cut.npy": "cannot be read as an array",
        "two.npy": "is an archive of several arrays",
        "text.npy": "cannot be read as an array",
        "pipe.npy": "is a pipe",
        "text.parquet": "cannot be read as Parquet",
        "ragged.parquet": "not every vector has",
        "none.parquet": "columns with vectors: none",
        "vectors.csv": "vectors are read from",
        "empty": "vectors are read from",
        "missing.npy": "no such file or folder of vectors",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=message) as caught:
            list(open_vectors(tmp_path / name).blocks())
        assert "\n" not in str(caught.value), name


def test_an_array_on_hdfs_has_to_be_copied_first() -> None:
    with pytest.raises(
        InputError, match=r"is not on this machine, and a .npy file is mapped into memory: copy it here"
    ):
        open_npy(HdfsPath("nowhere:9000", "/vectors.npy"))


def test_folders_whose_files_do_not_go_together_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "part_2.npy", MADE[:100])
    np.save(tmp_path / "part_10.npy", MADE[100:])
    with pytest.raises(InputError, match=r"the order of the files of .* is not certain \(part_10.npy"):
        open_vectors(tmp_path)
    (tmp_path / "part_2.npy").rename(tmp_path / "part_02.npy")
    assert open_vectors(tmp_path).n_rows == 144
    np.save(tmp_path / "part_11.npy", np.ones((1, 3)))
    with pytest.raises(InputError, match="differ: numbers in a vector 16 in one and 3 in another"):
        open_vectors(tmp_path)
    write_parquet(tmp_path / "more.parquet", ["1"], MADE[:1])
    with pytest.raises(InputError, match="from a folder of one of these"):
        open_vectors(tmp_path)


def test_columns_and_ids_of_parquet_have_to_be_certain(tmp_path: Path) -> None:
    two = write_parquet(tmp_path / "two.parquet", FRAME["paper_id"].tolist(), MADE, other=list(2 * MADE))
    with pytest.raises(InputError, match="columns with vectors: embedding, other: name one with --vector-column"):
        open_vectors(two)
    with pytest.raises(InputError, match="no vectors in a column 'paper_id'"):
        open_vectors(two, "paper_id")
    made = [
        import_vectors(sample_papers(), two, tmp_path / name, vector_column=name).run for name in ("embedding", "other")
    ]
    assert_array_equal(made[1].embeddings(), 2 * MADE, strict=True)
    assert made[0].metadata["fingerprint_sha256"] != made[1].metadata["fingerprint_sha256"]
    with pytest.raises(InputError, match="no id column 'nobody'"):
        open_vectors(two, "other", "nobody")
    twice = write_parquet(tmp_path / "twice.parquet", [*FRAME["paper_id"][:143], FRAME["paper_id"][0]], MADE)
    with pytest.raises(InputError, match=f"has 1 ids more than once, such as {FRAME['paper_id'][0]}"):
        import_vectors(sample_papers(), twice, tmp_path / "run")
    others = write_parquet(tmp_path / "others.parquet", [f"x{row}" for row in range(144)], MADE)
    with pytest.raises(InputError, match=r"no paper of .* has an id of .*: give --join row"):
        import_vectors(sample_papers(), others, tmp_path / "run")
    by_row = import_vectors(sample_papers(), others, tmp_path / "run", join="row").run
    assert_array_equal(by_row.embeddings(), MADE, strict=True)
    numbers = pa.table({"id": np.arange(144.0), "embedding": list(MADE)})
    pq.write_table(numbers, tmp_path / "numbers.parquet")
    with pytest.raises(InputError, match="ids of type double"):
        open_vectors(tmp_path / "numbers.parquet")


def test_papers_and_vectors_of_one_file_are_stored_once(run: Run, tmp_path: Path) -> None:
    path = run.export("parquet")[0]
    again = import_vectors(path, path, tmp_path / "run").run
    assert_array_equal(again.embeddings(), MADE, strict=True)
    assert again.paper_ids == run.paper_ids
    assert not [name for name, kind in again.columns.items() if "float" in kind]
    assert again.read("title").equals(run.read("title"))


def test_imported_vectors_are_never_mixed_with_ours(run: Run, tmp_path: Path) -> None:
    n_before = open_run(run.folder).metadata["n_papers"]
    for append in (False, True):
        with pytest.raises(InputError, match="imported vectors, which cannot be mixed") as caught:
            embed_papers(sample_papers(), run.folder, encoder=LetterEncoder(), append=append)
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match="imported vectors, which cannot be mixed"):
            embed_papers(sample_papers(), run.folder, model="minilm", append=append)
    ours = embed_papers(sample_papers(), tmp_path / "ours", encoder=LetterEncoder()).run
    with pytest.raises(InputError, match="contains vectors made by embed"):
        import_vectors(sample_papers(), MADE, ours.folder)
    with pytest.raises(InputError, match="which contains the vectors of"):
        import_vectors(sample_papers(), 2 * MADE, run.folder)
    path = run.folder.parent / "vectors.npy"
    with pytest.raises(InputError, match="which contains papers of another input"):
        import_vectors(FRAME, path, run.folder)
    with pytest.raises(InputError, match="was imported with model, metric and join"):
        import_vectors(sample_papers(), path, run.folder, model="another")
    assert open_run(run.folder).n_papers == n_before
    with pytest.raises(InputError, match="they cannot be recomputed here"):
        load_run_encoder(run)


def test_a_text_is_refused_unless_the_model_is_known(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"an unknown model, .*: give the model with --model, or search by paper"):
        run.search("planets")
    with pytest.raises(InputError, match=r"cannot be loaded here .no model 'some-service'"):
        load_query_encoder(run, model="some-service")
    named = import_vectors(sample_papers(), MADE, tmp_path / "run", model="text embedding 3").run
    with pytest.raises(InputError, match=r"cannot be loaded here .no model 'text embedding 3'"):
        named.search("planets")


@pytest.mark.slow
def test_a_text_is_compared_with_vectors_of_a_model_that_makes_them(tmp_path: Path) -> None:
    encoder = load_encoder("minilm", device="cpu")
    vectors = encoder.encode(
        [f"{title}. {text}" for title, text in zip(FRAME["title"], FRAME["abstract"], strict=True)]
    )
    run = import_vectors(sample_papers(), vectors, tmp_path / "run", model="minilm").run
    assert run.metadata["fingerprint"]["unit_length"]
    assert 0.9 < match_model(run, encoder) < 0.999  # between title and abstract we write something else
    expected = search(run, "planets around other stars", k=3, encoder=encoder)
    pd.testing.assert_frame_equal(run.search("planets around other stars", k=3), expected)
    others = import_vectors(sample_papers(), np.roll(vectors, 1, axis=0), tmp_path / "others", model="minilm").run
    with pytest.raises(InputError, match=r"but minilm computes different ones \(cosine -?0\.\d\d on some papers\)"):
        others.search("planets")
    short = import_vectors(sample_papers(), MADE, tmp_path / "short").run
    with pytest.raises(InputError, match="of 16 dimensions, but minilm computes 384"):
        load_query_encoder(short, model="minilm")


IMPORTER = """
import os, signal, sys
from arxiv_embeddings.runs import store
from arxiv_embeddings.runs.imported import import_vectors
commit, n_commits = store.RunCommitter.commit, int(sys.argv[4])

def stop(self, *given, **more):
    global n_commits
    n_commits -= 1
    if n_commits < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    commit(self, *given, **more)

store.RunCommitter.commit = stop
import_vectors(*sys.argv[1:4], part_size=20)
"""


def test_a_killed_import_continues(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(len(FRAME))
    path = write_parquet(tmp_path / "vectors.parquet", FRAME["paper_id"][order].tolist(), MADE[order])
    for n_commits in (1, 4, 9):
        command = [sys.executable, "-c", IMPORTER, sample_papers(), path, tmp_path / "run", str(n_commits)]
        code = subprocess.run(list(map(str, command)), cwd=ROOT, check=False).returncode
        there = open_run(tmp_path / "run")
        assert_array_equal(there.embeddings(), MADE[: there.n_papers], strict=True)
        assert there.metadata["complete"] == (there.n_papers == 144) == (code != -signal.SIGKILL)
    result = import_vectors(sample_papers(), path, tmp_path / "run")
    assert (result.n_imported, result.run.n_papers) == (0, 144)
    assert verify_run(result.run)["problems"] == []
    assert sorted(one.name for one in tmp_path.iterdir()) == ["run", "vectors.parquet"]


def test_a_lost_metadata_file_is_restored_from_the_parts(tmp_path: Path) -> None:
    run = import_vectors(sample_papers(), MADE, tmp_path / "run", part_size=50).run
    for name in ("metadata.json", ".metadata.copy.json"):
        (run.folder / name).unlink()
    restored = repair_run(run.folder).run
    assert {**restored.metadata, "date_generated": ""}.items() >= {
        name: run.metadata[name] for name in ("imported", "fingerprint", "inputs", "parts", "complete", "model")
    }.items()


def test_the_command(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", MADE / np.linalg.norm(MADE, axis=1, keepdims=True))
    words = ["import", str(sample_papers()), str(tmp_path / "vectors.npy"), "--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(app, [*words, "--model", "some-service", "--normalized"])
    assert shown.exit_code == 0, shown.output
    assert "144 of 144 rows accepted" in shown.output
    assert "lengths 1 to 1: normalized" in shown.output
    assert "model: some-service; metric: not known; not known: metric, weights" in shown.output
    again = json.loads(CliRunner().invoke(app, [*words, "--model", "some-service", "--json"]).stdout)
    assert (again["n_imported"], again["n_papers"], again["imported"]["joined_by"]) == (0, 144, "row")
    refused = CliRunner().invoke(app, [*words[:-1], str(tmp_path / "other"), "--no-normalized"])
    assert refused.exit_code == 1
    assert "they are normalized, unlike stated" in refused.output
    assert CliRunner().invoke(app, [*words, "--metric", "manhattan"]).exit_code == 2
