"""Newer inputs: only what is new or changed is embedded, readers see a whole state, and nothing is lost on the way."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import holds_leftovers, open_run
from arxiv_embeddings.runs.verify import verify_run
from tests.fakes.kill_loop import make_newer, run_loop
from tests.fakes.letters import CountingEncoder, LetterEncoder
from tests.fakes.stopping import list_staged, stop_in


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    return make_newer(tmp_path / "newer.csv")


def embed(papers: Path, folder: Path, encoder=None, **options):
    return embed_papers(papers, folder, part_size=20, encoder=encoder or LetterEncoder(), **options)


def test_only_what_is_new_or_changed_is_embedded(tmp_path: Path, newer: Path) -> None:
    before = embed(sample_papers(), tmp_path / "run").run
    ids_before, vectors_before = before.paper_ids, before.embeddings()
    counting = CountingEncoder()
    result = embed(newer, tmp_path / "run", counting, append=True)
    table = pd.read_csv(newer, dtype=str)
    old = pd.read_csv(sample_papers(), dtype=str).set_index("paper_id")["abstract"]
    known = table["paper_id"].isin(old.index)
    changed = known & (table["abstract"].to_numpy() != table["paper_id"].map(old).to_numpy())
    assert counting.n_texts == result.n_embedded == (~known).sum() + changed.sum()
    assert result.changes == {
        "n_new": (~known).sum(),
        "n_changed": changed.sum(),
        "n_unchanged": (known & ~changed).sum(),
        "n_older": 0,
        "n_pruned": 0,
    }
    run = result.run
    stay = [paper_id for paper_id in ids_before if paper_id not in set(table["paper_id"][changed])]
    assert run.paper_ids == [*stay, *table["paper_id"][~known | changed]]
    # each vector is the one of the paper's newest text
    whole = embed(newer, tmp_path / "whole").run
    vector_of = dict(zip(whole.paper_ids, whole.embeddings(), strict=True))
    vector_of = dict(zip(ids_before, vectors_before, strict=True)) | vector_of
    assert_array_equal(run.embeddings(), np.array([vector_of[one] for one in run.paper_ids]), strict=True)
    assert verify_run(run)["problems"] == []
    assert [one["path"] for one in run.metadata["inputs"]] == [str(sample_papers()), str(newer)]


def test_the_same_input_again_embeds_nothing(tmp_path: Path, newer: Path) -> None:
    embed(sample_papers(), tmp_path / "run")
    embed(newer, tmp_path / "run", append=True)
    counting, before = CountingEncoder(), (tmp_path / "run" / "metadata.json").read_bytes()
    assert embed(newer, tmp_path / "run", counting, append=True).n_embedded == 0
    assert embed(newer, tmp_path / "run", counting).n_embedded == 0
    assert counting.n_texts == 0
    assert (tmp_path / "run" / "metadata.json").read_bytes() == before


def test_an_older_file_brings_nothing_back(tmp_path: Path) -> None:
    rows = {"id": ["2101.00001v2", "2101.00002"], "abstract": ["Second.", "Other."], "title": ["A", "B"]}
    pd.DataFrame(rows).to_csv(tmp_path / "new.csv", index=False)
    pd.DataFrame({"id": ["2101.00001v1"], "abstract": ["First."], "title": ["A"]}).to_csv(
        tmp_path / "old.csv", index=False
    )
    before = embed(tmp_path / "new.csv", tmp_path / "run").run
    result = embed(tmp_path / "old.csv", tmp_path / "run", append=True)
    assert (result.changes["n_older"], result.n_embedded) == (1, 0)
    assert result.run.content_sha256 == before.content_sha256


def test_prune_alone_drops_what_is_not_there(tmp_path: Path) -> None:
    embed(sample_papers(), tmp_path / "run")
    table = pd.read_csv(sample_papers(), dtype=str)
    table[25:].to_csv(tmp_path / "fewer.csv", index=False)
    result = embed(tmp_path / "fewer.csv", tmp_path / "run", append=True, prune=True)
    assert result.run.paper_ids == table["paper_id"][25:].tolist()
    assert [part.n_papers for part in result.run.parts] == [15, 20, 20, 20, 20, 20, 4]
    assert verify_run(result.run)["problems"] == []


@pytest.mark.parametrize("options", [{"prune": True}, {"append": True, "limit": 3}])
def test_options_that_do_not_go_together(options: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--append|--limit"):
        embed(sample_papers(), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_append_without_a_run_begins_one(tmp_path: Path) -> None:
    assert embed(sample_papers(), tmp_path / "run", append=True).n_embedded == 144


def test_another_model_is_refused_and_named(tmp_path: Path, newer: Path) -> None:
    before = embed(sample_papers(), tmp_path / "run").run
    with pytest.raises(InputError, match=r"pooling: mean there, cls here.*start a new run in another folder"):
        embed(newer, tmp_path / "run", LetterEncoder("cls"), append=True)
    assert open_run(tmp_path / "run").content_sha256 == before.content_sha256


def test_a_changed_default_is_told_with_the_options_of_the_run(tmp_path: Path, newer: Path) -> None:
    "Every field that differs, in words; what the run does not state has no option."
    older, now = LetterEncoder(), LetterEncoder()
    older.fingerprint = older.fingerprint | {"max_tokens": 512, "truncate_dim": None, "weights_sha256": "ab" * 32}
    embed(sample_papers(), tmp_path / "run", older)
    now.fingerprint = older.fingerprint | {"max_tokens": 256, "prompt": "passage: ", "truncate_dim": 2}
    with pytest.raises(InputError) as caught:
        embed(newer, tmp_path / "run", now, append=True)
    run = tmp_path / "run"
    assert str(caught.value) == (
        f"{run} was made with different options (max_tokens: 512 there, 256 here; prompt: not stated there (the run was made "
        "before this was recorded), 'passage: ' here; truncate_dim: none there, 2 here): use the same model and options "
        f"(--max-tokens 512), or embed the run again with arxiv-embeddings migrate {run} --model NEW, or start a "
        "new run in another folder with --out"
    )
    now.fingerprint = older.fingerprint | {"weights_sha256": "cd" * 32}
    with pytest.raises(InputError, match=r"\(weights: abababababab there, cdcdcdcdcdcd here\): .* \(--model \w+\), or"):
        embed(newer, tmp_path / "run", now, append=True)


@pytest.mark.parametrize("step", ["rewritten", "moved", "committed"])
def test_stopped_while_an_append_is_committed(
    step: str, tmp_path: Path, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = embed(sample_papers(), tmp_path / "run").run
    vectors_before = before.embeddings()
    expected = tmp_path / "expected"
    shutil.copytree(tmp_path / "run", expected)
    embed(newer, expected, append=True)
    parts = tmp_path / "run" / "parts"
    stops = {
        "rewritten": ("sync_folder", lambda folder: folder == parts),  # successors that nothing names yet
        "moved": ("sync_folder", lambda folder: folder == parts and not list_staged(tmp_path / "run")),
        "committed": ("remove_folder", lambda folder: folder.name == "staging"),  # which is still there
    }
    name, is_reached = stops[step]
    with monkeypatch.context() as patched:
        stop_in(patched, name, is_reached)
        with pytest.raises(KeyboardInterrupt):
            embed(newer, tmp_path / "run", append=True)
    named = {part.name for part in open_run(tmp_path / "run").parts}
    assert (named == {path.name for path in parts.glob("*.parquet")}) == (step == "committed")
    assert bool(list_staged(tmp_path / "run")) == (step == "rewritten")
    assert holds_leftovers(open_run(tmp_path / "run"))
    if step != "committed":
        assert open_run(tmp_path / "run").content_sha256 == before.content_sha256
        assert_array_equal(open_run(tmp_path / "run").embeddings(), vectors_before, strict=True)
    counting = CountingEncoder()
    run = embed(newer, tmp_path / "run", counting, append=True).run
    assert counting.n_texts == 0  # all of them had been embedded before
    assert run.paper_ids == open_run(expected).paper_ids
    assert_array_equal(run.embeddings(), open_run(expected).embeddings(), strict=True)
    assert verify_run(run)["problems"] == []
    assert sorted(path.name for path in run.folder.iterdir()) == [
        ".lock",
        ".metadata.copy.json",
        "metadata.json",
        "parts",
    ]


@pytest.mark.slow
def test_killed_at_random_moments_and_continued() -> None:
    done = run_loop(n_kills=6, seed=1)
    assert done["n_kills"] >= 6
