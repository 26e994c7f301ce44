"""Runs with a history, and damage of several kinds at once: nothing comes back that was dropped, nothing is lost in silence."""

import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import TestCase

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from arxiv_embeddings.explore.index import build_index
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.append import compact_run
from arxiv_embeddings.runs.embed import EmbedResult, embed_papers
from arxiv_embeddings.runs.export import export_run
from arxiv_embeddings.runs.format import COPY_NAME, METADATA_NAME, read_footer, write_metadata
from arxiv_embeddings.runs.repair import repair_run
from arxiv_embeddings.runs.store import RunWriter, open_run
from arxiv_embeddings.runs.verify import verify_run
from arxiv_embeddings.runs.wrong_vectors import verify_sample
from tests.fakes.letters import LetterEncoder, StoppingEncoder
from tests.fakes.stopping import list_staged, stop_in

SAMPLE = pd.read_csv(sample_papers(), dtype=str)


@pytest.fixture
def embed(tmp_path: Path) -> Callable[..., EmbedResult]:
    "Embed a table of papers into `tmp_path / run`, in parts of 20."

    def embed_table(papers: pd.DataFrame, name: str, encoder: LetterEncoder | None = None, **options) -> EmbedResult:
        path = tmp_path / f"{name}.csv"
        papers.to_csv(path, index=False)
        return embed_papers(path, tmp_path / "run", part_size=20, encoder=encoder or LetterEncoder(), **options)

    return embed_table


def changed(papers: pd.DataFrame) -> pd.DataFrame:
    return papers.assign(abstract="New. " + papers["abstract"])


def damage(folder: Path, number: int) -> Path:
    "Cut the end off a part, so that nothing in it can be read."
    run = open_run(folder)
    path = run.part_path(run.parts[number])
    path.write_bytes(path.read_bytes()[:-50])
    return path


def lose_metadata(folder: Path, *, with_copy: bool) -> None:
    (folder / METADATA_NAME).unlink()
    if with_copy:
        (folder / COPY_NAME).unlink()


def content_of(folder: Path) -> tuple[list[str], np.ndarray]:
    run = open_run(folder)
    return run.paper_ids, run.embeddings()


def assert_same(folder: Path, expected: tuple[list[str], np.ndarray]) -> None:
    ids, vectors = content_of(folder)
    assert ids == expected[0]
    assert_array_equal(vectors, expected[1], strict=True)
    assert verify_run(open_run(folder))["problems"] == []


HISTORIES = {
    "all changed": lambda embed: embed(changed(SAMPLE), "b", append=True),
    "first part pruned": lambda embed: embed(SAMPLE[20:], "b", append=True, prune=True),
    "last part pruned": lambda embed: embed(SAMPLE[:130], "b", append=True, prune=True),
    "a few pruned": lambda embed: embed(SAMPLE.drop(index=[3, 50, 143]), "b", append=True, prune=True),
    "there and back": lambda embed: (embed(changed(SAMPLE), "b", append=True), embed(SAMPLE, "a", append=True)),
}


@pytest.mark.parametrize("with_copy", [False, True])
@pytest.mark.parametrize("history", HISTORIES)
def test_metadata_of_a_run_with_a_history(history: str, with_copy: bool, embed, tmp_path: Path) -> None:
    embed(SAMPLE, "a")
    HISTORIES[history](embed)
    expected = content_of(tmp_path / "run")
    lose_metadata(tmp_path / "run", with_copy=with_copy)
    assert repair_run(tmp_path / "run", LetterEncoder()).n_embedded == 0
    assert_same(tmp_path / "run", expected)
    assert open_run(tmp_path / "run").metadata["complete"]


def test_a_part_that_is_unreadable_when_metadata_are_lost(embed, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    embed(SAMPLE, "a")
    embed(SAMPLE[:5].assign(paper_id="n" + SAMPLE["paper_id"][:5], title="Other"), "x", append=True)
    expected = content_of(folder)
    name = damage(folder, 2).name
    lose_metadata(folder, with_copy=True)
    with pytest.raises(InputError, match=f"parts/{name} of .* cannot be read, and metadata.json and its copy are lost"):
        repair_run(folder, LetterEncoder())
    assert not (folder / METADATA_NAME).exists()  # nothing was made of half of it
    (folder / "parts" / name).unlink()
    repair_run(folder, LetterEncoder())  # with a word about the hole
    assert open_run(folder).n_papers == 129
    assert embed(SAMPLE, "a", append=True).n_embedded == 20
    assert set(open_run(folder).paper_ids) == set(expected[0])


def test_a_run_that_was_never_changed_says_what_an_unreadable_part_held(embed, tmp_path: Path) -> None:
    expected = content_of(embed(SAMPLE, "a").run.folder)
    for number in (0, 3, 7):
        damage(tmp_path / "run", number)
    lose_metadata(tmp_path / "run", with_copy=True)
    assert repair_run(tmp_path / "run", LetterEncoder()).n_embedded == 44
    assert_same(tmp_path / "run", expected)


def test_metadata_lost_in_the_middle_of_a_change(embed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    expected = content_of(embed(SAMPLE, "a").run.folder)

    with monkeypatch.context() as patched:
        stop_in(patched, "sync_folder", lambda path: path == folder / "parts" and not list_staged(folder))
        with pytest.raises(KeyboardInterrupt):
            embed(changed(SAMPLE[:25]), "x", append=True)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    lose_metadata(folder, with_copy=False)
    repair_run(folder, LetterEncoder())
    assert content_of(folder)[0] == expected[0]
    assert embed(changed(SAMPLE[:25]), "x", append=True).n_embedded == 0  # all had been embedded before
    lose_metadata(other, with_copy=True)
    with pytest.raises(InputError, match=r"paper .* is in part-.* and in part-.* lost in the middle of a change"):
        repair_run(other, LetterEncoder())


def test_a_repair_killed_before_the_damaged_part_is_removed(embed, tmp_path: Path) -> None:
    folder = embed(SAMPLE, "a").run.folder
    expected, path = content_of(folder), damage(folder, 1)
    content = path.read_bytes()
    repair_run(folder, LetterEncoder())
    path.write_bytes(content)  # as if it had not been removed
    assert not verify_run(open_run(folder))["sound"]
    with RunWriter(folder):
        pass
    assert_same(folder, expected)


def test_a_next_that_was_killed_while_it_was_removed(embed, tmp_path: Path) -> None:
    folder = embed(SAMPLE, "a").run.folder
    expected = content_of(folder)
    (folder / "staging" / "parts").mkdir(parents=True)
    (folder / "staging" / ".lock").touch()
    assert embed(SAMPLE, "a").n_embedded == 0
    assert not (folder / "staging").exists()
    assert_same(folder, expected)


def test_inputs_with_other_columns(embed, tmp_path: Path) -> None:
    embed(SAMPLE, "a")
    bare = SAMPLE[:3][["paper_id", "abstract"]].assign(paper_id=["n1", "n2", "n3"], doi=["10.1/1", "10.1/2", "10.1/3"])
    run = embed(bare, "x", append=True).run
    table = run.read().to_pandas()
    assert run.read(["doi"])["doi"].to_pylist()[-4:] == [None, "10.1/1", "10.1/2", "10.1/3"]
    assert table["authors"].isna().tolist() == [False] * 144 + [True] * 3
    assert run.read(["doi"]).column_names == ["doi"]
    export_run(run, "parquet")
    exported = pd.read_parquet(run.folder / "export" / "papers_with_embeddings.parquet")
    pd.testing.assert_frame_equal(exported.drop(columns="embedding"), table[exported.columns.drop("embedding")])
    assert verify_sample(run, 147, LetterEncoder())["sound"]
    expected = content_of(run.folder)
    with RunWriter(run.folder) as writer:
        compact_run(writer, 147)
    assert_array_equal(open_run(run.folder).embeddings(), expected[1], strict=True)
    pd.testing.assert_frame_equal(open_run(run.folder).read().to_pandas(), table)
    damage(run.folder, 0)
    assert repair_run(run.folder, LetterEncoder()).n_embedded == 147  # found again in two inputs
    pd.testing.assert_frame_equal(open_run(run.folder).read().to_pandas(), table)


def test_a_column_of_another_type(embed, tmp_path: Path) -> None:
    run = embed(SAMPLE, "a").run
    SAMPLE[:2].assign(paper_id=["n1", "n2"], authors=[1, 2]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"column 'authors' is int64 here and string in .*convert it"):
        embed_papers(tmp_path / "x.parquet", run.folder, append=True, encoder=LetterEncoder())
    assert open_run(run.folder).metadata == run.metadata
    assert not (run.folder / "staging").exists()


@pytest.mark.parametrize("position", range(60, 400, 20))
def test_wherever_a_bit_is_flipped(position: int, embed) -> None:
    folder = embed(SAMPLE[:40], "a").run.folder
    expected, path = content_of(folder), open_run(folder).part_path(open_run(folder).parts[1])
    content = bytearray(path.read_bytes())
    for at, bit in ((position, 7), (len(content) - position, 3)):  # among the ids, and in the footer
        broken = content.copy()
        broken[at] ^= 1 << bit
        path.write_bytes(broken)
        assert verify_run(open_run(folder))["problems"][0]["kind"] == "damage"
        assert repair_run(folder, LetterEncoder()).n_embedded == 20
        assert_same(folder, expected)
        path = open_run(folder).part_path(open_run(folder).parts[1])
        content = bytearray(path.read_bytes())


@pytest.mark.parametrize("seed", range(20))
def test_whatever_letter_of_the_metadata_is_another(seed: int, embed) -> None:
    folder = embed(SAMPLE[:40], "a", limit=20).run.folder
    kept, path, random = open_run(folder).metadata, folder / METADATA_NAME, np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    letters = [at for at, letter in enumerate(content) if chr(letter).isalnum()]
    content[random.choice(letters)] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="arxiv-embeddings repair"):
        open_run(folder)
    assert repair_run(folder, LetterEncoder()).metadata_rebuilt
    assert open_run(folder).metadata == kept
    assert (folder / "metadata.damaged.json").read_bytes() == bytes(content)


def test_another_encoder_repairs_nothing(embed) -> None:
    folder = embed(SAMPLE, "a").run.folder
    damage(folder, 0)
    for call in (
        lambda: repair_run(folder, LetterEncoder("cls")),
        lambda: verify_sample(open_run(folder), 3, LetterEncoder("cls")),
    ):
        with pytest.raises(InputError, match="pooling: mean there, cls here"):
            call()


def test_an_interrupted_append_goes_on_with_its_own_columns(embed, tmp_path: Path) -> None:
    embed(SAMPLE, "a")
    newer = SAMPLE.assign(title="New " + SAMPLE["title"], other="Other " + SAMPLE["title"])
    with pytest.raises(KeyboardInterrupt):
        embed(newer, "x", StoppingEncoder(4), append=True)
    with pytest.raises(InputError, match="80 papers are embedded: run its command again, with the same columns"):
        embed(newer, "x", append=True, title_column="other")
    with pytest.raises(
        InputError, match="80 papers are embedded: run its command again"
    ):  # although it brings nothing new
        embed(SAMPLE[:30], "y", append=True)
    assert open_run(tmp_path / "run" / "staging").n_papers == 80
    assert embed(newer, "x", append=True).n_embedded == 64


def test_an_append_between_the_halves_of_the_first_input(embed) -> None:
    embed(SAMPLE, "a", limit=60)
    # a handler of its own: whoever ran the command line before has taken the logger from the root
    with TestCase().assertLogs("arxiv_embeddings.runs.embed") as said, pytest.raises(KeyboardInterrupt):
        embed(changed(SAMPLE), "x", StoppingEncoder(2), append=True)
    assert "84 papers of" in said.output[0]
    embed(SAMPLE, "a")
    with pytest.raises(InputError, match="the run has changed since: abandon it by deleting the folder"):
        embed(changed(SAMPLE), "x", append=True)


def test_parts_made_of_several_inputs_in_any_order(embed) -> None:
    folder = embed(SAMPLE[:90], "a").run.folder
    embed(pd.concat([changed(SAMPLE[:90:9]), SAMPLE[9:90]]), "x", append=True)
    embed(SAMPLE, "y", append=True)
    expected = content_of(folder)
    for numbers in ((0, -1), (0, 1, 2), (4, 5)):
        for number in numbers:
            damage(folder, number)
        repair_run(folder, LetterEncoder())
        assert_same(folder, expected)
    with RunWriter(folder) as writer:
        compact_run(writer, 60)
    for number in (0, 1):
        damage(folder, number)
        repair_run(folder, LetterEncoder())
        assert_same(folder, expected)


def test_a_part_made_of_what_stayed_and_what_changed(embed) -> None:
    folder = embed(SAMPLE[:9], "a").run.folder
    embed(pd.concat([changed(SAMPLE[:9:3]), SAMPLE[:9]]).drop_duplicates("paper_id").sort_index(), "x", append=True)
    with RunWriter(folder) as writer:
        assert compact_run(writer, 20) == 1
    expected = content_of(folder)
    damage(folder, 0)
    assert repair_run(folder, LetterEncoder()).n_embedded == 9
    assert_same(folder, expected)


def test_an_append_of_the_same_input_says_nothing_new(embed) -> None:
    before = embed(SAMPLE, "a").run
    after = embed(SAMPLE, "a", append=True, prune=True)
    assert (after.changes["n_unchanged"], after.n_embedded) == (144, 0)
    assert after.run.metadata == before.metadata


def test_versions_where_there_were_none(embed) -> None:
    embed(SAMPLE, "a")
    newer = changed(SAMPLE).assign(paper_id=SAMPLE["paper_id"] + "v2")
    assert embed(newer, "x", append=True).changes["n_changed"] == 144
    older = SAMPLE.assign(paper_id=SAMPLE["paper_id"] + "v1")
    assert embed(older, "y", append=True).changes["n_older"] == 144


def test_index_and_exports_that_are_damaged(embed) -> None:
    run = embed(SAMPLE, "a").run
    export_run(run, "npy", "int8", "flat")
    build_index(run)
    assert verify_run(run)["problems"] == []
    (run.folder / "export" / "embeddings.npy").write_bytes(b"garbage")
    (run.folder / "export" / "embeddings_int8_scales.npy").unlink()
    next((run.folder / "export" / "flat").iterdir()).unlink()
    (run.folder / "export" / "mine.npy").write_bytes(b"")
    index = run.folder / "index" / "index.faiss"
    index.write_bytes(index.read_bytes()[:-100] + bytes(100))
    found = verify_run(run)
    assert found["sound"]  # they can be made again
    assert {(one["where"], one["what"].split(":")[0]) for one in found["problems"]} == {
        ("index", "index.faiss is not what was written"),
        ("export/embeddings.npy", "embeddings.npy is not what was written"),
        ("export/embeddings_int8.npy", "embeddings_int8_scales.npy is gone"),
        ("export/flat", "flat is not what was written"),
        ("export/mine.npy", "is not listed in export.json"),
    }


def test_verifying_while_a_writer_is_at_work(embed) -> None:
    run = embed(SAMPLE, "a").run
    embed(SAMPLE[20:], "b", append=True, prune=True)
    with pytest.raises(InputError, match="was changed while it was being checked"):
        verify_run(run)


def test_a_run_whose_parts_are_all_gone(embed) -> None:
    folder = embed(SAMPLE, "a").run.folder
    expected = content_of(folder)
    shutil.rmtree(folder / "parts")
    assert len(verify_run(open_run(folder))["problems"]) == 8
    assert repair_run(folder, LetterEncoder()).n_embedded == 144
    assert_same(folder, expected)


def test_a_run_that_embed_did_not_make(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", {"model": "m", "embedding_dim": 4, "fingerprint": LetterEncoder().fingerprint}):
        pass
    with pytest.raises(InputError, match="was not made by embed"):
        embed_papers(sample_papers(), tmp_path / "run", encoder=LetterEncoder())
    empty = open_run(tmp_path / "run")
    assert verify_run(empty)["sound"]
    assert verify_sample(empty, 5, LetterEncoder())["sound"]


def test_a_damaged_part_lends_its_footer_to_no_run(embed) -> None:
    "What a part says of its run counts only while the part is what was written."
    import pyarrow.parquet as pq

    folder = embed(SAMPLE, "a").run.folder
    kept = open_run(folder).metadata
    path = open_run(folder).part_path(open_run(folder).parts[0])
    assert read_footer(pq.read_schema(path))["run"]["batching"] == kept["batching"]
    content = path.read_bytes()
    path.write_bytes(content.replace(b"token_budget", b"token_budgit"))
    lose_metadata(folder, with_copy=True)
    repair_run(folder, LetterEncoder())
    assert open_run(folder).metadata["batching"] == kept["batching"]
    write_metadata(folder, kept)
