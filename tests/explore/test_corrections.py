"""Corrections: kept with a run, checked when they are read, the same for papers and queries."""

import json
from pathlib import Path

import numpy as np
import pytest

from arxiv_embeddings.explore.corrections import (
    find_correction,
    fit_correction,
    list_corrections,
    load_correction,
    save_correction,
)
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import Run, open_run
from tests.fakes.letters import LetterEncoder


def make_run(folder: Path, pooling: str = "mean") -> Run:
    generator = np.random.default_rng(4)
    texts = ["".join(chr(97 + letter) for letter in generator.integers(26, size=4 + row % 7)) for row in range(40)]
    papers = [{"paper_id": f"p{row}", "title": "", "abstract": text} for row, text in enumerate(texts)]
    return embed_papers(papers, folder, encoder=LetterEncoder(pooling)).run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    "Forty papers in vectors of four numbers."
    return make_run(tmp_path / "run")


@pytest.mark.parametrize(("kind", "options"), [("center", {}), ("top", {"n_directions": 2}), ("whiten", {})])
def test_a_kept_correction_is_the_same(run: Run, kind: str, options: dict) -> None:
    fitted = fit_correction(run, kind, **options)
    path = save_correction(run, fitted)
    assert path == run.folder / "corrections" / f"{kind}.json"
    loaded = load_correction(open_run(run.folder), kind)
    np.testing.assert_array_equal(loaded.apply(run.embeddings()), fitted.apply(run.embeddings()), strict=True)
    assert (loaded.kind, loaded.about) == (fitted.kind, fitted.about)
    assert list_corrections(run) == [kind]


def test_a_newer_one_takes_the_place_of_an_older_one(run: Run) -> None:
    save_correction(run, fit_correction(run, "center"), "mine")
    save_correction(run, fit_correction(run, "center"), "mine-2")
    save_correction(run, fit_correction(run, "whiten"), "mine")
    assert load_correction(run, "mine").kind == "whiten"
    assert load_correction(run, "mine-2").kind == "center"
    assert len(list((run.folder / "corrections").glob("*.safetensors"))) == 2


def test_a_kept_correction_goes_before_one_of_its_kind(run: Run) -> None:
    assert find_correction(run, "whiten").about["shrinkage"] != 0.5
    save_correction(run, fit_correction(run, "whiten", shrinkage=0.5))
    assert find_correction(run, "whiten").about["shrinkage"] == 0.5
    with pytest.raises(InputError, match=r"no correction 'mine' in .*; available: whiten"):
        find_correction(run, "mine")


def test_a_correction_of_other_vectors_is_refused(run: Run, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", pooling="cls")
    save_correction(run, fit_correction(run, "center"))
    (run.folder / "corrections").rename(other.folder / "corrections")
    with pytest.raises(InputError, match="was fitted to vectors that were made in another way: fit it again"):
        load_correction(other, "center")
    with pytest.raises(InputError, match="a correction of 3 dimensions does not fit"):
        save_correction(run, fit_correction(np.random.default_rng(0).random((9, 3)).astype(np.float32), "center"))


def test_a_changed_file_is_refused(run: Run) -> None:
    path = save_correction(run, fit_correction(run, "top"))
    numbers = next(path.parent.glob("*.safetensors"))
    content = numbers.read_bytes()
    numbers.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="does not have the sha256 that the note states"):
        load_correction(run, "top")
    numbers.write_bytes(content[:-4])
    with pytest.raises(InputError, match=r"top\.json is damaged"):
        load_correction(run, "top")
    numbers.unlink()
    with pytest.raises(InputError, match=r"top\.json names a file that is gone: fit the correction again"):
        load_correction(run, "top")


@pytest.mark.parametrize(
    "change",
    [{"kind": "magic"}, {"file": "../../x-0123456789abcdef.safetensors"}, {"sha256": "0"}, {"correction_format": "9"}],
)
def test_a_changed_note_is_refused(run: Run, change: dict) -> None:
    path = save_correction(run, fit_correction(run, "center"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError):
        load_correction(run, "center")


def test_arrays_of_another_kind_are_refused(run: Run) -> None:
    path = save_correction(run, fit_correction(run, "center"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "whiten"}))
    with pytest.raises(InputError, match="its arrays do not fit a correction of this run"):
        load_correction(run, "center")


def test_a_link_is_not_followed(run: Run, tmp_path: Path) -> None:
    path = save_correction(run, fit_correction(run, "center"))
    numbers = next(path.parent.glob("*.safetensors"))
    numbers.rename(tmp_path / "elsewhere")
    numbers.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="link"):
        load_correction(run, "center")


def test_a_sample_is_fitted_to_if_there_are_very_many_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32) + 1
    whole = fit_correction(embeddings, "center")
    monkeypatch.setattr("arxiv_embeddings.explore.corrections.MOST_FITTED", 400)
    sampled = fit_correction(embeddings, "center")
    assert (whole.about, sampled.about) == ({"n_papers": 500}, {"n_papers": 400})
    assert 0 < np.abs(whole.mean - sampled.mean).max() < 0.05


def test_shrinkage_is_that_of_ledoit_and_wolf() -> None:
    from sklearn.covariance import LedoitWolf

    embeddings = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32) * np.arange(
        1, 9, dtype=np.float32
    )
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    estimate = LedoitWolf().fit(unit)
    fitted = fit_correction(embeddings, "whiten")
    assert fitted.about["shrinkage"] == pytest.approx(estimate.shrinkage_, abs=1e-3)
    np.testing.assert_allclose(fitted.matrix @ estimate.covariance_ @ fitted.matrix, np.eye(8), atol=1e-2)
