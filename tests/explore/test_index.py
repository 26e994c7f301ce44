"""Indexes of every kind: what they find, how they grow, and files that are stale, foreign, damaged or hostile."""

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.explore import index as module
from arxiv_embeddings.explore.index import build_index, choose_form, open_index, recall_of
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.runs.store import Run, RunWriter, open_run
from arxiv_embeddings.runs.verify import verify_run

DIM, N_PAPERS = 32, 3000
COMPRESSED = ("hnsw", "ivf", "pq", "rabitq")


def make_vectors(n_papers: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    groups = np.random.default_rng(7).standard_normal((40, DIM))
    return (groups[random.integers(40, size=n_papers)] + random.standard_normal((n_papers, DIM))).astype(np.float32)


def add_papers(folder: Path, vectors: np.ndarray, part_size: int = 500) -> Run:
    description = {"model": "by hand", "embedding_dim": DIM, "fingerprint": {"by": "hand"}}
    with RunWriter(folder, None if folder.exists() else description | {"inputs": [{"n_accepted": 0}]}) as writer:
        for start in range(0, len(vectors), part_size):
            first, some = writer.metadata["n_papers"], vectors[start : start + part_size]
            rows = range(first, first + len(some))
            papers = {"paper_id": [f"paper {row}" for row in rows], "text_sha256": [f"{row:064x}" for row in rows]}
            writer.add_part(pa.table(papers), some)
    return open_run(folder)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    "A run with each kind of index."
    folders = {}
    for kind in ("exact", *COMPRESSED):
        folders[kind] = tmp_path_factory.mktemp(kind) / "run"
        build_index(add_papers(folders[kind], make_vectors(N_PAPERS)), kind)
    return folders


@pytest.fixture
def copy(indexed: dict[str, Path], tmp_path: Path):
    def copied(kind: str) -> Path:
        shutil.copytree(indexed[kind], tmp_path / kind)
        return tmp_path / kind

    return copied


def note_of(folder: Path) -> dict:
    return json.loads((folder / "index" / "index.json").read_text())


def write_note(folder: Path, **changes: object) -> None:
    (folder / "index" / "index.json").write_text(json.dumps(note_of(folder) | changes))


@pytest.mark.parametrize("kind", ["exact", *COMPRESSED])
def test_what_is_found(kind: str, indexed: dict[str, Path]) -> None:
    run, queries = open_run(indexed[kind]), make_vectors(300, seed=1)
    index, exact = open_index(run), open_index(run, "exact")
    assert (index.stored, index.kind, exact.kind) == (True, kind, "exact")
    true = np.array([rows for rows, _ in exact.search(queries, 10)])
    found = index.search(queries, 10)
    assert recall_of([rows for rows, _ in found], true) >= 0.97
    unit = run.embeddings() / np.linalg.norm(run.embeddings(), axis=1, keepdims=True)
    for query, (rows, cosines) in zip(queries, found, strict=True):
        assert (np.diff(cosines) <= 0).all()
        np.testing.assert_allclose(cosines, unit[rows] @ query / np.linalg.norm(query), atol=1e-4)
    np.testing.assert_allclose(index.vectors_of(np.array([2999, 0, 2999])), unit[[2999, 0, 2999]], atol=1e-6)
    for rows, _ in index.search(queries[:3], N_PAPERS + 1):  # more than there are candidates
        assert sorted(rows) == list(range(N_PAPERS))


@pytest.mark.parametrize("kind", ["exact", *COMPRESSED])
@pytest.mark.parametrize("scored", [2**25, 0])  # all selected papers are scored, or codes are searched
def test_filters(kind: str, scored: int, indexed: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SCORED", scored)
    run, queries = open_run(indexed[kind]), make_vectors(100, seed=1)
    index, exact = open_index(run), open_index(run, "exact")
    for share in (0.01, 0.1, 0.6) if scored else (0.1, 0.6):
        among = np.random.default_rng(3).random(N_PAPERS) < share
        found = [rows for rows, _ in index.search(queries, 10, among)]
        assert among[np.concatenate(found)].all()
        assert recall_of(found, np.array([rows for rows, _ in exact.search(queries, 10, among)])) >= (
            0.98 if scored else 0.96
        )
    among = np.arange(N_PAPERS) == 77
    assert [rows.tolist() for rows, _ in index.search(queries[:2], 5, among)] == [[77], [77]]
    assert [len(rows) for rows, _ in index.search(queries[:2], 5, among & False)] == [0, 0]


@pytest.mark.parametrize("kind", COMPRESSED)
def test_appended_papers_are_added(kind: str, copy) -> None:
    folder = copy(kind)
    before, run = note_of(folder), add_papers(folder, make_vectors(700, seed=5))
    with pytest.raises(InputError, match=r"index\.faiss is stale, papers were added to the run"):
        open_index(run)
    build_index(run)  # without a kind: as it was
    index = open_index(run)
    assert (index.kind, index.about["n_trained"], index.index.ntotal) == (kind, N_PAPERS, N_PAPERS + 700)
    assert index.about["measured"] == before["measured"]
    rows = np.arange(0, N_PAPERS + 700, 37)
    found = np.array([rows[0] for rows, _ in index.search(run.embeddings()[rows], 1)])
    assert (found == rows).mean() >= 0.99
    assert verify_run(run)["problems"] == []


def test_a_doubled_run_is_indexed_anew(copy) -> None:
    run = add_papers(copy("pq"), make_vectors(N_PAPERS + 1, seed=5))
    build_index(run)
    assert open_index(run).about["n_trained"] == 2 * N_PAPERS + 1


def test_a_whole_index_is_kept_and_a_damaged_one_made_anew(copy) -> None:
    folder = copy("pq")
    file = folder / "index" / "index.faiss"
    changed, content = file.stat().st_mtime_ns, file.read_bytes()
    build_index(open_run(folder), "pq")
    assert file.stat().st_mtime_ns == changed
    file.write_bytes(content[:-8] + bytes(8)[::-1].replace(b"\0", b"\1"))
    build_index(open_run(folder))
    assert file.read_bytes() != content[:-8] + b"\1" * 8
    assert open_index(open_run(folder)).kind == "pq"
    build_index(open_run(folder), "exact")
    assert sorted(path.name for path in (folder / "index").iterdir()) == ["index.faiss", "index.json"]


def test_another_run_is_refused(copy, tmp_path: Path) -> None:
    other = add_papers(tmp_path / "other", make_vectors(N_PAPERS, seed=9))
    shutil.copytree(copy("pq") / "index", other.folder / "index")
    with pytest.raises(InputError, match=r"is stale, the run .* or the index belongs to another run: rebuild it"):
        open_index(other)


@pytest.mark.parametrize("kind", ["exact", "pq", "hnsw"])
@pytest.mark.parametrize("name", ["index.faiss", "vectors.npy"])
def test_a_damaged_file_is_refused_in_a_line(kind: str, name: str, copy) -> None:
    folder = copy(kind)
    path = folder / "index" / name
    if not path.exists():
        return
    content, run = path.read_bytes(), open_run(folder)
    flipped = bytearray(content)
    flipped[5] ^= 0xFF  # in the header
    inside = bytearray(content)
    inside[len(content) // 2] ^= 1  # a code or an id: only the hash tells
    followed = name == "index.faiss" and kind != "exact"
    for damaged in (content[:-1], b"", bytes(len(content)), bytes(flipped), *[bytes(inside)] * followed):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"is damaged.*rebuild it with: arxiv-embeddings index") as refused:
            open_index(run)
        assert "\n" not in str(refused.value)
    path.unlink()
    with pytest.raises(InputError, match=f"{name} is gone: rebuild it with"):
        open_index(run)
    path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is a link, not a file"):
        open_index(run)


def forge(folder: Path, index: faiss.Index) -> None:
    "Put another index into the place of a run's, with a note that fits it."
    path = folder / "index" / "index.faiss"
    faiss.write_index(index, str(path))
    write_note(folder, files=note_of(folder)["files"] | {"index.faiss": module.describe_content(path)})


@pytest.mark.parametrize("kind", ["exact", "pq", "hnsw"])
def test_a_hostile_file_whose_note_fits_is_refused_in_a_line(kind: str, copy) -> None:
    folder, vectors = copy(kind), make_vectors(N_PAPERS)
    others = {
        "IndexFlatL2": faiss.IndexFlatL2(DIM),
        "IndexLSH": faiss.IndexLSH(DIM, 16),
        "of 7 vectors": faiss.IndexFlatIP(DIM),
        "of 8 numbers": faiss.IndexFlatIP(8),
    }
    for name, index in others.items():
        index.add(np.ascontiguousarray(vectors[: 7 if name == "of 7 vectors" else None, : index.d]))
        forge(folder, index)
        with pytest.raises(InputError, match=r"index\.faiss is damaged, it holds an"):
            open_index(open_run(folder))


def test_rows_that_no_paper_has_are_refused(copy) -> None:
    folder = copy("pq")
    index = faiss.read_index(str(folder / "index" / "index.faiss"))
    index.reset()
    index.add_with_ids(make_vectors(N_PAPERS), np.arange(N_PAPERS) + 5)
    forge(folder, index)
    with pytest.raises(InputError, match="index is damaged: rebuild it"):
        open_index(open_run(folder)).search(make_vectors(500, seed=0), 10)


@pytest.mark.parametrize(
    "changes",
    [{"effort": 0}, {"precision": "int4"}, {"kind": "pq\n"}, {"files": {}}, {"n_papers": 5}, {"n_parts": 0}],
)
def test_a_note_with_a_wrong_field_is_refused(changes: dict, copy) -> None:
    folder = copy("pq")
    write_note(folder, **changes)
    with pytest.raises(InputError, match=r"is damaged.*index"):
        open_index(open_run(folder))


def test_memory_stays_below_the_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "No more than a block of vectors is unpacked at a time: what is written comes from parts."
    run, largest = add_papers(tmp_path / "run", make_vectors(N_PAPERS)), []
    pack = module.pack_vectors
    monkeypatch.setattr(module, "pack_vectors", lambda vectors, how: largest.append(len(vectors)) or pack(vectors, how))
    build_index(run, "rabitq", precision="int8")
    assert max(largest) == 500
    assert sum(largest) == N_PAPERS


def test_sizes_choose() -> None:
    assert [choose_form(n, 768).kind for n in (1, 20_000, 120_000, 3_000_000)] == ["exact", "exact", "pq", "rabitq"]
    assert choose_form(3_000_000, 768, memory=2**30).kind == "pq"
    assert choose_form(120_000, 384).precision == "int16"
    assert choose_form(3_000_000, 768).precision == "int8"
    assert "would take more than 537 MB" in choose_form(3_000_000, 768).reason
    assert choose_form(100, 7, "pq").factory == "IVF2,PQ7x4fsr"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("HNSW99,oops", "FAISS knows no index 'HNSW99,oops'"),
        ("IVF4000,PQ16x4fs", "3000 papers are too few for an index 'IVF4000,PQ16x4fs'"),
        ("IVF4,PQ5x4fs", "IVF4,PQ5x4fs"),
        ("SQ8", "an index 'SQ8' cannot be filtered and extended"),
    ],
)
def test_kinds_that_cannot_be_made(kind: str, message: str, copy) -> None:
    folder = copy("exact")
    with pytest.raises(InputError) as refused:
        build_index(open_run(folder), kind)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert open_index(open_run(folder)).kind == "exact"  # the older one is still there


def test_a_factory_string(copy) -> None:
    run = open_run(copy("exact"))
    build_index(run, "PCA24,IVF16,SQ8")
    index = open_index(run)
    assert (index.kind, index.about["factory"]) == ("factory", "PCA24,IVF16,SQ8")
    assert index.about["measured"]["recall"] >= 0.95


def test_the_scale_is_stored(indexed: dict[str, Path]) -> None:
    scale = open_index(open_run(indexed["pq"])).scale
    assert scale.n_papers == N_PAPERS
    assert float(scale.percentile_among_random(scale.mean)) == pytest.approx(50, abs=20)


def test_the_command(copy) -> None:
    folder = copy("exact")

    def invoke(*words: object) -> list | dict:
        result = CliRunner().invoke(app, ["index", str(folder), *map(str, words), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    made = invoke("--kind", "pq", "--precision", "int8", "--recall", 0.9)
    assert (made["kind"], made["n_papers"], made["n_held_out"]) == ("pq", N_PAPERS, 300)
    assert made["recall@10"]["recall"] >= 0.9
    assert made["n_bytes"] == sum(
        path.stat().st_size for path in (folder / "index").iterdir() if path.suffix != ".json"
    )
    before = (folder / "index" / "index.json").read_bytes()
    table = {row["form"]: row for row in invoke("--table")}
    assert table["int8"]["recall@10"] > table["rabitq, 1 bit"]["recall@10"]
    assert table["float16"]["bytes per paper"] == 2 * DIM
    assert (folder / "index" / "index.json").read_bytes() == before  # a table writes nothing
    assert CliRunner().invoke(app, ["index", str(folder), "--precision", "int4"]).exit_code == 2


@pytest.mark.parametrize("kind", COMPRESSED)
def test_very_many_papers_are_scored_block_by_block(
    kind: str, indexed: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arxiv_embeddings.explore.index.MOST_CANDIDATES", 80)
    run, queries = open_run(indexed[kind]), make_vectors(3, seed=1)
    index, exact = open_index(run), open_index(run, "exact")
    monkeypatch.setattr("arxiv_embeddings.explore.index.find_candidates", None)  # it is not called
    for k in (41, N_PAPERS, 10**9):
        for found, true in zip(index.search(queries, k), exact.search(queries, k), strict=True):
            assert len(found[0]) == min(k, N_PAPERS)
            assert len(np.intersect1d(found[0][:41], true[0][:41])) >= 40  # rounding may exchange the last
    with pytest.raises(TypeError):
        index.search(queries, 40)


def test_an_index_with_other_options_is_made_anew(copy) -> None:
    run = open_run(copy("ivf"))
    for asked in ({"precision": "int8"}, {"recall": 0.7}):
        build_index(run, "ivf", **asked)
        before = note_of(run.folder)
        assert before["precision"] == asked.get("precision", before["precision"])
        assert before["recall_asked"] == asked.get("recall")
        build_index(run, "ivf")  # nothing else is asked for
        assert note_of(run.folder) == before


def test_the_table_goes_with_no_option_of_an_index(copy) -> None:
    words = ["index", str(copy("exact")), "--table", "--recall", "0.9"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "--table writes no index" in " ".join(result.output.split())
