"""Layouts of runs: few and strange papers, maps that do not move, and kept layouts that somebody damaged or changed."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.manifold import trustworthiness

from arxiv_embeddings.encoders.vectors import l2_normalize
from arxiv_embeddings.explore import layout as layout_module
from arxiv_embeddings.explore.layout import (
    Landmarks,
    Layout,
    find_near_places,
    lay_out_run,
    measure_layout,
    project_2d,
    summarize_layout,
)
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.files.locks import holding_lock
from arxiv_embeddings.runs import store
from arxiv_embeddings.runs.append import compact_run
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import Run, RunWriter, open_run
from tests.fakes import ROOT
from tests.fakes.hostile import (
    DOCUMENTS,
    FILES,
    VALUES,
    Change,
    apply_change,
    draw_changes,
    hash_tree,
    list_changes,
    make_base,
)
from tests.fakes.letters import LetterEncoder

DIM = 8


def make_vectors(n_papers: int, n_subjects: int = 4, seed: int = 0) -> np.ndarray:
    "Vectors around a few directions, one after another."
    subjects = np.eye(n_subjects, DIM, dtype=np.float32)[np.arange(n_papers) % n_subjects]
    noise = np.random.default_rng(seed).normal(scale=0.2, size=(n_papers, DIM))
    return subjects + noise.astype(np.float32)


def add(folder: Path, vectors: np.ndarray, start: int = 0, fingerprint: str = "by hand", text: str = "") -> Run:
    "Add papers to a run that is made by hand, in parts of 50."
    described = {"model": "by hand", "embedding_dim": vectors.shape[1], "fingerprint": {"made": fingerprint}}
    description = None if folder.exists() else described | {"inputs": [{"n_accepted": 0}]}
    with RunWriter(folder, description) as writer:
        for rows in np.array_split(np.arange(len(vectors)), -(-len(vectors) // 50)):
            ids = [f"p{start + row}" for row in rows]
            texts = [hashlib.sha256(f"{one}{text}".encode()).hexdigest() for one in ids]
            writer.add_part(pa.table({"paper_id": ids, "text_sha256": texts}), vectors[rows])
    return open_run(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    "A run of 120 papers that is laid out."
    lay_out_run(add(tmp_path / "run", make_vectors(120)))
    return tmp_path / "run"


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    "The warnings since the last call."
    monkeypatch.setattr(layout_module.log, "disabled", False)
    caplog.set_level(logging.WARNING, logger=layout_module.log.name)

    def read() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    return read


def read_note(folder: Path) -> dict:
    return json.loads((folder / "layout" / "layout.json").read_text())


def names(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in (folder / "layout").iterdir())


def check(layout: Layout, run: Run) -> None:
    "Every paper has a place, and the description fits."
    assert layout.places.shape == (run.n_papers, 2)
    assert layout.places.dtype == np.float32
    assert np.isfinite(layout.places).all()
    assert layout.about["n_papers"] == run.n_papers
    assert layout.about["n_placed_later"] == layout.later.sum()


# Few papers, and strange ones


@pytest.mark.parametrize("n_papers", [1, 2, 3, 4, 5, 11])
@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_few_papers_have_a_layout(n_papers: int, method: str, tmp_path: Path) -> None:
    run = add(tmp_path / "run", make_vectors(n_papers))
    layout = lay_out_run(run, method)
    check(layout, run)
    assert layout.about["method"] == ("pca" if n_papers < 4 else method)
    assert (layout.about["trustworthiness"] is None) == (n_papers < 3)
    assert len(np.unique(layout.places, axis=0)) == n_papers
    again = lay_out_run(open_run(run.folder), method)  # the method that was asked for is no other one
    assert_array_equal(again.places, layout.places, strict=True)


UMAP = """
import sys
import numpy as np
from arxiv_embeddings.explore.layout import lay_out_run
from arxiv_embeddings.runs.store import open_run
for folder in sys.argv[1:]:
    run = open_run(folder)
    layout = lay_out_run(run, "UMAP")
    assert np.isfinite(layout.places).all() and layout.places.shape == (run.n_papers, 2)
    assert len(np.unique(layout.places, axis=0)) == run.n_papers
    assert layout.about["method"] == ("pca" if run.n_papers < 4 else "umap")
    assert (lay_out_run(run, "umap", fresh=True).places == layout.places).all()
assert layout.about["trustworthiness"] > 0.75, layout
"""


@pytest.mark.slow
def test_umap_lays_out_fewer_papers_than_its_neighbors(tmp_path: Path) -> None:
    pytest.importorskip("umap", reason="UMAP is an extra: pip install 'arxiv-embeddings[umap]'")
    runs = [add(tmp_path / f"{n_papers}", make_vectors(n_papers)) for n_papers in (1, 3, 4, 5, 16)]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT)}  # compiling takes half a minute
    subprocess.run([sys.executable, "-c", UMAP, *(str(run.folder) for run in runs)], env=environment, check=True)


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_equal_vectors_have_one_place(method: str, tmp_path: Path) -> None:
    run = add(tmp_path / "run", np.tile(make_vectors(1) * 3, (300, 1)))
    layout = lay_out_run(run, method, n_landmarks=100)
    check(layout, run)
    assert_array_equal(layout.places, np.zeros((300, 2), dtype=np.float32), strict=True)
    assert layout.about["trustworthiness"] == 1.0


def test_vectors_of_one_number_have_a_layout(tmp_path: Path) -> None:
    run = add(tmp_path / "run", np.linspace(-1, 1, 30, dtype=np.float32)[:, None])
    check(lay_out_run(run), run)


def test_zero_vectors_are_refused_by_name(tmp_path: Path) -> None:
    vectors = make_vectors(120)
    vectors[[70, 71]] = 0
    run = add(tmp_path / "run", vectors)
    with pytest.raises(InputError, match=r"^2 vectors in .* are zero and have no place on a map, of papers p70, p71: "):
        lay_out_run(run)
    assert names(run.folder) == []


def test_numbers_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "check_embeddings", lambda *_: None)
    vectors = make_vectors(120)
    vectors[70, 2] = np.nan
    run = add(tmp_path / "run", vectors)
    with pytest.raises(InputError, match="is damaged: it holds NaN or infinity"):
        lay_out_run(run)


def test_methods_that_are_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(folder)
    for wrong in ("mds", "", "t SNE", 3):
        with pytest.raises(InputError, match=r"^method must be one of pca, tsne, umap, not "):
            lay_out_run(run, wrong)
    monkeypatch.setattr(layout_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^method umap needs umap-learn: pip install 'arxiv-embeddings\[umap\]'"):
        lay_out_run(run, "umap", fresh=True)
    assert lay_out_run(run).about["method"] == "tsne"


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": 2**32}, {"n_landmarks": 0}])
def test_numbers_out_of_range_are_refused(options: dict, folder: Path) -> None:
    with pytest.raises(InputError, match=r"^seed must be 0 to 4,294,967,295 and n_landmarks 1 or more"):
        lay_out_run(open_run(folder), **options)


def test_a_run_without_papers_is_refused(tmp_path: Path) -> None:
    described = {"model": "by hand", "embedding_dim": 3, "fingerprint": {}, "inputs": [{"n_accepted": 0}]}
    with RunWriter(tmp_path / "run", described):
        pass
    with pytest.raises(InputError, match="has no papers yet: embed some first"):
        lay_out_run(open_run(tmp_path / "run"))


# Landmarks and quality


def test_landmarks_are_nearly_as_good_as_a_whole_layout(tmp_path: Path) -> None:
    run = add(tmp_path / "run", make_vectors(900))
    few = lay_out_run(run, n_landmarks=200, fresh=True)
    assert few.about["n_landmarks"] == 200
    assert few.about["n_placed_later"] == 0
    assert few.about["trustworthiness"] > 0.9
    assert_array_equal(lay_out_run(run, n_landmarks=200, fresh=True).places, few.places, strict=True)
    assert (lay_out_run(run, n_landmarks=200, seed=1, fresh=True).places != few.places).any()
    assert "200 of them landmarks" in summarize_layout(few.about)


def test_a_paper_is_placed_by_landmarks_that_agree() -> None:
    unit = l2_normalize(make_vectors(40, n_subjects=2))
    places = np.array([[0, 0], [100, 0]], dtype=np.float32)[np.arange(40) % 2]
    places += np.random.default_rng(0).normal(size=places.shape).astype(np.float32)
    between = l2_normalize(np.array([[1, 0.9, 0, 0, 0, 0, 0, 0]], dtype=np.float32))
    ((x, _),) = Landmarks(unit, places).place(between)
    assert min(abs(x), abs(100 - x)) < 5  # their mean is in the middle
    assert_allclose(Landmarks(unit, places).place(unit), places, atol=0.5)


@pytest.mark.parametrize("n_papers", [3, 7, 60, 400])
def test_quality_is_what_scikit_learn_computes(n_papers: int) -> None:
    unit = l2_normalize(make_vectors(n_papers))
    places = np.random.default_rng(1).normal(size=(n_papers, 2)).astype(np.float32)
    quality = measure_layout(lambda: np.array_split(unit, 3), places)
    k = quality["n_neighbors"]
    assert k == min(10, (n_papers - 1) // 2)
    assert_allclose(quality["trustworthiness"], trustworthiness(unit, places, n_neighbors=k), atol=1e-4)
    cosines = unit @ unit.T - 9 * np.eye(n_papers)
    nearest = np.argsort(-cosines, axis=1)[:, :k]
    kept = [
        len(np.intersect1d(*both)) / k
        for both in zip(nearest, find_near_places(places, np.arange(n_papers), k), strict=True)
    ]
    assert_allclose(quality["neighborhood_preservation"], np.mean(kept), atol=1e-4)
    assert measure_layout(lambda: [unit], places) == quality


def test_quality_is_not_measured_on_landmarks_alone(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(3000, DIM)).astype(np.float32)
    layout = lay_out_run(add(tmp_path / "run", vectors), "pca", n_landmarks=1000)
    unit = l2_normalize(vectors)
    of_all = measure_layout(lambda: [unit], layout.places, rows=np.arange(3000))
    of_landmarks = np.sort(np.random.default_rng(0).permutation(3000)[:1000])
    of_landmarks = measure_layout(lambda: [unit], layout.places, rows=of_landmarks)
    stated = layout.about["neighborhood_preservation"]
    assert abs(stated - of_all["neighborhood_preservation"]) < 0.003
    assert of_landmarks["neighborhood_preservation"] - of_all["neighborhood_preservation"] > 0.005


def test_quality_of_a_sample_is_near_that_of_all() -> None:
    unit = l2_normalize(make_vectors(1500))
    places = project_2d(unit, method="pca")
    of_all = measure_layout(lambda: [unit], places, rows=np.arange(1500))
    of_sample = measure_layout(lambda: [unit], places)
    assert (of_all["n_measured"], of_sample["n_measured"]) == (1500, 1000)
    assert abs(of_all["trustworthiness"] - of_sample["trustworthiness"]) < 0.02
    assert of_all["trustworthiness"] != of_sample["trustworthiness"]


# A map that does not move


def test_old_papers_stay_and_new_ones_are_placed(folder: Path) -> None:
    before = lay_out_run(open_run(folder))
    run = add(folder, make_vectors(40, seed=1), start=120)
    after = lay_out_run(run)
    check(after, run)
    assert_array_equal(after.places[:120], before.places, strict=True)
    assert_array_equal(after.later, np.arange(160) >= 120, strict=True)
    near = find_near_places(after.places, np.arange(120, 160), 3)
    assert (near % 4 == np.arange(120, 160)[:, None] % 4).mean() > 0.95  # by papers of their subject
    assert names(folder) == ["layout.json", "places"]
    again = lay_out_run(open_run(folder))
    assert_array_equal(again.places, after.places, strict=True)
    assert again.about == after.about
    assert lay_out_run(run, fresh=True).about["n_placed_later"] == 0


def test_many_old_papers_place_by_a_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_module, "MOST_ANCHORS", 30)
    before = lay_out_run(open_run(folder))
    after = lay_out_run(add(folder, make_vectors(40, seed=1), start=120))
    assert_array_equal(after.places[:120], before.places, strict=True)
    near = find_near_places(after.places, np.arange(120, 160), 3)
    assert (near % 4 == np.arange(120, 160)[:, None] % 4).mean() > 0.9


def test_a_new_layout_is_advised_when_most_papers_came_later(folder: Path) -> None:
    for start, advised in ((120, False), (200, True)):
        layout = lay_out_run(add(folder, make_vectors(80, seed=start), start=start))
        assert ("fresh=True makes a new layout" in layout.about["advice"]) == advised
        assert ("fresh=True makes a new layout" in repr(layout)) == advised
    assert lay_out_run(open_run(folder), fresh=True).about["advice"] == ""


def test_appended_revised_and_pruned_papers(tmp_path: Path) -> None:
    words = ["ants", "bees", "cats", "dogs", "eels", "foxes", "goats", "hares"]
    papers = [
        {"paper_id": f"{row}", "title": words[row % 8], "abstract": "word " * (1 + row % 11)} for row in range(40)
    ]
    folder = tmp_path / "run"
    before = lay_out_run(embed_papers(papers, folder, encoder=LetterEncoder(), part_size=10).run)
    revised = papers[7] | {"abstract": "zebras and something of another length"}
    newer = [one for one in papers[:35] if one["paper_id"] != "7"] + [revised, papers[0] | {"paper_id": "new"}]
    run = embed_papers(newer, folder, encoder=LetterEncoder(), append=True, prune=True).run
    after = lay_out_run(run)
    check(after, run)
    ids = run.paper_ids
    kept = [one for one in ids if one not in ("7", "new")]
    assert len(kept) == 34
    rows = [ids.index(one) for one in kept]
    assert_array_equal(after.places[rows], before.places[[int(one) for one in kept]], strict=True)
    assert {ids[row] for row in np.flatnonzero(after.later)} == {"7", "new"}
    assert (after.places[ids.index("7")] != before.places[7]).any()
    # the new paper has the text of paper 0, and so its place
    assert_allclose(after.places[ids.index("new")], before.places[0], atol=0.5 * np.ptp(before.places))
    assert read_note(folder)["about"]["n_papers"] == 36
    with RunWriter(folder) as writer:
        compact_run(writer, 1000)
    same = lay_out_run(open_run(folder))
    moved_to = [open_run(folder).paper_ids.index(one) for one in ids]
    assert_array_equal(same.places[moved_to], after.places, strict=True)
    assert same.about == after.about
    fewer = lay_out_run(embed_papers(newer[:30], folder, encoder=LetterEncoder(), append=True, prune=True).run)
    assert read_note(folder)["about"]["n_papers"] == fewer.about["n_papers"] == len(fewer.places) == 30


def test_an_old_view_of_a_run_drops_no_places(folder: Path) -> None:
    old = open_run(folder)
    new = add(folder, make_vectors(40, seed=1), start=120)
    after = lay_out_run(new)
    assert_array_equal(lay_out_run(old).places, after.places[:120], strict=True)
    assert read_note(folder)["about"]["n_papers"] == 160
    assert_array_equal(lay_out_run(new).places, after.places, strict=True)


def test_a_layout_of_other_papers_or_vectors_is_made_anew(
    folder: Path, tmp_path: Path, notes: Callable[[], list[str]]
) -> None:
    others = {
        "of vectors that were made in another way": add(tmp_path / "model", make_vectors(120), fingerprint="other"),
        "has none of the papers of the run": add(tmp_path / "ids", make_vectors(120), start=5000),
        "layout has none of the papers": add(tmp_path / "texts", make_vectors(120), text=" in another version"),
    }
    for reason, run in others.items():
        shutil.copytree(folder / "layout", run.folder / "layout")
        check(lay_out_run(run), run)
        (line,) = notes()
        assert reason in line
        assert line.endswith(": a new layout is made, and papers move")
        check(lay_out_run(run), run)
        assert notes() == []


def test_another_way_has_to_be_asked_for(folder: Path) -> None:
    run, before = open_run(folder), lay_out_run(open_run(folder))
    for options in ({"method": "pca"}, {"seed": 3}, {"method": "t-SNE", "seed": 3}):
        with pytest.raises(InputError, match="layout is by tsne with seed 0: fresh=True makes a new layout"):
            lay_out_run(run, **options)
        with pytest.raises(InputError, match="fresh=True makes a new layout"):  # nor when papers have come
            lay_out_run(add(folder, make_vectors(5), start=500 + 5 * open_run(folder).n_papers), **options)
    after = lay_out_run(open_run(folder), "t-SNE", seed=0)
    assert_array_equal(after.places[:120], before.places, strict=True)
    moved = lay_out_run(open_run(folder), "pca", seed=3, fresh=True)
    assert (moved.about["method"], moved.about["seed"], moved.about["n_placed_later"]) == ("pca", 3, 0)


# Kept on disk


def test_another_process_makes_the_layout(folder: Path, tmp_path: Path) -> None:
    run = open_run(folder)
    with holding_lock(folder, "layout"):
        check(lay_out_run(run), run)  # reading takes no lock
        with pytest.raises(InputError, match="layout is being written by process"):
            lay_out_run(run, fresh=True)


def test_a_run_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Callable[[], list[str]]
) -> None:
    @contextmanager
    def refuse(*_: object) -> Iterator[None]:
        raise PermissionError(13, "Permission denied")
        yield

    run = add(tmp_path / "run", make_vectors(30))
    monkeypatch.setattr(layout_module, "holding_lock", refuse)
    check(lay_out_run(run), run)
    (line,) = notes()
    assert line.endswith("layout cannot be written to (Permission denied): the layout is not kept")
    assert names(run.folder) == []


def test_a_killed_writer_leaves_the_old_map(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, true = lay_out_run(open_run(folder)), layout_module.atomic_file

    def die(path: Path) -> object:
        if path.name == "layout.json":
            raise KeyboardInterrupt
        return true(path)

    monkeypatch.setattr(layout_module, "atomic_file", die)
    with pytest.raises(KeyboardInterrupt):
        lay_out_run(open_run(folder), "pca", fresh=True)
    assert names(folder) == ["layout.json", "places", "places"]
    monkeypatch.undo()
    assert_array_equal(lay_out_run(open_run(folder)).places, before.places, strict=True)
    (folder / "layout" / "notes.txt").write_text("not ours")
    lay_out_run(open_run(folder), "pca", fresh=True)
    assert names(folder) == ["layout.json", "notes.txt", "places"]


def test_progress_is_shown_on_request_and_on_stderr(folder: Path, capsys: pytest.CaptureFixture) -> None:
    lay_out_run(open_run(folder), fresh=True)
    assert capsys.readouterr() == ("", "")
    lay_out_run(open_run(folder), fresh=True, progress=True, n_landmarks=50)
    shown = capsys.readouterr()
    assert shown.out == ""
    for phase in ("t-SNE of 50", "placing", "measuring", "120/120"):
        assert phase in shown.err


# Layouts that somebody changed


def replace_places(
    folder: Path, change: Callable[[pa.Table], pa.Table], n_stated: int | None = None, **options
) -> None:
    "Change the places, and state the new file as somebody can who knows the format."
    note = read_note(folder)
    path = folder / "layout" / note["file"]
    table = change(pq.read_table(path, partitioning=None))
    pq.write_table(table, path, **({"compression": "none", "use_dictionary": False} | options))
    content = path.read_bytes()
    note |= {"n_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    note["about"]["n_papers"] = len(table) if n_stated is None else n_stated
    (folder / "layout" / "layout.json").write_text(json.dumps(note))


def set_column(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, table.schema.field(name).type))


CHANGES: dict[str, tuple[str, dict]] = {
    "NaN": ("a place holds NaN or infinity", {}),
    "infinity": ("a place holds NaN or infinity", {}),
    "null": ("a value is missing", {}),
    "an id twice": ("a paper has more than one place", {}),
    "a long text": ("a text is longer than 16 digits", {}),
    "a column less": ("it has other columns than a file of places", {}),
    "a wrong flag": ("its number of papers placed later is not the one", {}),
    "float64": ("it has other columns than a file of places", {}),
    "other names": ("it has other columns than a file of places", {}),
    "compressed": ("it cannot hold 120 places", {"compression": "zstd"}),
    "fewer": ("it cannot hold 120 places", {"n_stated": 120}),
}


def change_places(table: pa.Table, kind: str) -> pa.Table:
    x, ids = table["x"].to_numpy().copy(), table["paper_id"].to_pylist()
    if kind in ("NaN", "infinity"):
        x[5] = float("nan") if kind == "NaN" else float("-inf")
        return set_column(table, "x", x)
    return {
        "null": lambda: set_column(table, "y", [None, *x[1:]]),
        "an id twice": lambda: set_column(table, "paper_id", [*ids[:-1], ids[0]]),
        "a long text": lambda: set_column(table, "text", ["a" * 5000] * 120),
        "a column less": lambda: table.drop_columns(["later"]),
        "a wrong flag": lambda: set_column(table, "later", [True] + [False] * 119),
        "float64": lambda: table.set_column(2, "x", table["x"].cast(pa.float64())),
        "other names": lambda: table.rename_columns(["paper_id", "text", "x", "z", "later"]),
        "compressed": lambda: table,
        "fewer": lambda: table[:100],
    }[kind]()


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_places_are_refused_and_made_anew(kind: str, folder: Path, notes: Callable[[], list[str]]) -> None:
    before, (reason, options) = lay_out_run(open_run(folder)), CHANGES[kind]
    replace_places(folder, lambda table: change_places(table, kind), **options)
    run = open_run(folder)
    layout = lay_out_run(run)
    (line,) = notes()
    assert f"parquet is damaged ({reason}" in line
    assert_array_equal(layout.places, before.places, strict=True)  # the same seed
    lay_out_run(run)
    assert notes() == []


def test_a_small_file_cannot_become_large(folder: Path, notes: Callable[[], list[str]]) -> None:
    "Many papers in a few bytes: one text that is repeated by its dictionary, and places that are all the same."
    many = pa.table(
        {
            "paper_id": ["a" * 1000] * 100_000,
            "text": ["b" * 16] * 100_000,
            "x": pa.array(np.zeros(100_000, dtype=np.float32)),
            "y": pa.array(np.zeros(100_000, dtype=np.float32)),
            "later": [False] * 100_000,
        }
    )
    replace_places(folder, lambda _: many, use_dictionary=True)
    assert (folder / "layout" / read_note(folder)["file"]).stat().st_size < 100_000
    lay_out_run(open_run(folder))
    (line,) = notes()
    assert "it cannot hold 100,000 places" in line


@pytest.mark.parametrize("file", ["layout.json", "places"])
@pytest.mark.parametrize("n_kept", [0, 1, 200, -1])
def test_cut_off_files_are_made_anew(file: str, n_kept: int, folder: Path, notes: Callable[[], list[str]]) -> None:
    before = lay_out_run(open_run(folder))
    (path,) = (folder / "layout").glob(f"{file}*")
    path.write_bytes(path.read_bytes()[:n_kept])
    assert_array_equal(lay_out_run(open_run(folder)).places, before.places, strict=True)
    (line,) = notes()
    assert ("cannot be read" if file == "layout.json" else "bytes that layout.json states") in line


def test_a_flipped_bit_is_noticed(folder: Path, notes: Callable[[], list[str]]) -> None:
    (path,) = (folder / "layout").glob("places*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    lay_out_run(open_run(folder))
    assert "it does not have the sha256 that layout.json states" in notes()[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A run with everything that it can have, beside a tree that nobody may touch."
    folder = tmp_path_factory.mktemp("hostile")
    make_base(folder)
    return folder


def try_layout(folder: Path) -> str:
    "Lay out a run; the error, or an empty text if it has a sound layout that is kept."
    try:
        run = open_run(folder)
        check(lay_out_run(run), run)
        assert lay_out_run(run).about["n_papers"] == read_note(folder)["about"]["n_papers"]
    except InputError as error:
        return str(error)
    return ""


def test_every_field_and_file_may_hold_anything(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "layout/layout.json" in DOCUMENTS
    changes = [one for one in list_changes(base / "run") if one.file.split("/")[0] == "layout"]
    assert {one.kind for one in changes} == {*VALUES, *FILES}
    assert Change("layout/layout.json", ("about", "seed"), "minus one") in changes
    monkeypatch.setattr(layout_module, "project_2d", lambda unit, seed, method: unit[:, :2].copy())  # quick
    before, n_refused, folder = hash_tree(base), 0, base / "changed"
    for change in draw_changes(changes, 100, seed=17):
        shutil.copytree(base / "run", folder, symlinks=True)
        apply_change(folder, change)
        error = try_layout(folder)
        n_refused += bool(error)
        assert not error or (change.kind in FILES and ("a folder" in error) and "\n" not in error), (change, error)
        shutil.rmtree(folder)
    assert hash_tree(base) == before
    assert 3 < n_refused < 25
