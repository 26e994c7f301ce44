"""A part ends when a minute is over: at most a minute of work is lost, and everything else stays as it was."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.append import compact_run
from arxiv_embeddings.runs.embed import Local, embed_papers
from arxiv_embeddings.runs.repair import repair_run
from arxiv_embeddings.runs.store import Run, RunCommitter, RunWriter, open_run
from arxiv_embeddings.runs.verify import verify_run
from tests.fakes.kill_loop import make_newer
from tests.fakes.letters import LetterEncoder


class TimedEncoder(LetterEncoder):
    "Takes so many seconds for a letter, by its own clock, in batches of a few texts, longest first."

    def __init__(self, seconds: float, slower_after: float = np.inf, warm_up: float = 0.0):
        super().__init__()
        self.seconds, self.slower_after, self.now, self.warm_up = seconds, slower_after, 0.0, warm_up

    def run(self, tokenized, on_batch=None):
        lengths = np.sort([len(row) for row in tokenized.rows])[::-1]
        for begin in range(0, len(lengths), 4):
            slower = 1.4 if self.now > self.slower_after else 1
            self.now += self.warm_up + self.seconds * slower * lengths[begin : begin + 4].sum()
            self.warm_up = 0.0
            on_batch(len(lengths[begin : begin + 4]))
        return super().run(tokenized)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "The sample in parts of 72, without a clock."
    folder = tmp_path_factory.mktemp("whole") / "run"
    return embed_papers(sample_papers(), folder, part_size=72, encoder=LetterEncoder()).run


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    "The time of each commit, by the clock of `embed`."
    return []


def embed(folder: Path, encoder: TimedEncoder, commits: list[float], papers=None, **options) -> Run:
    "Embed by the encoder's clock, and note when it commits."
    commit = RunCommitter.commit

    def note(self, *given, **changes):
        commit(self, *given, **changes)
        commits.append(encoder.now)

    local = Local(clock=lambda: encoder.now)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunCommitter, "commit", note)
        options = {"part_size": 72, **options}
        return embed_papers(papers or sample_papers(), folder, encoder=encoder, executor=local, **options).run


@pytest.mark.parametrize("seconds", [0.1, 0.3, 1, 9])
@pytest.mark.parametrize("slower_after", [np.inf, 90])
def test_at_most_a_minute_is_lost(
    seconds: float, slower_after: float, tmp_path: Path, whole: Run, commits: list[float]
) -> None:
    run = embed(tmp_path / "run", TimedEncoder(seconds, slower_after), commits)
    slowest_paper = seconds * 4 * 1.4  # is a part by itself, however long it takes; here a batch has four of them
    assert max(np.diff([0, *commits])) <= max(60, 4 * slowest_paper + 40)
    assert len(run.parts) > 2 or seconds == 0.1
    assert run.paper_ids == whole.paper_ids
    assert_array_equal(run.embeddings(), whole.embeddings(), strict=True)
    assert run.read(["text_sha256"]) == whole.read(["text_sha256"])
    assert verify_run(run)["problems"] == []
    with RunWriter(run.folder) as writer:
        compact_run(writer, 72)
    assert [part.n_papers for part in open_run(run.folder).parts] == [72, 72]
    assert_array_equal(open_run(run.folder).embeddings(), whole.embeddings(), strict=True)


def test_fast_machines_make_the_parts_that_they_made(tmp_path: Path, whole: Run, commits: list[float]) -> None:
    run = embed(tmp_path / "run", TimedEncoder(0.01, warm_up=9), commits)
    assert [part.papers_sha256 for part in run.parts] == [part.papers_sha256 for part in whole.parts]
    assert not any("n_closed_by_time" in part.counts for part in run.parts)


def test_the_run_states_which_parts_were_n_closed_by_time(tmp_path: Path, commits: list[float]) -> None:
    run = embed(tmp_path / "run", TimedEncoder(0.5), commits)
    assert run.metadata["batching"]["part_seconds"] == 60
    ends = [part.end for part in run.parts if not part.counts.get("n_closed_by_time")]
    assert ends == [72, 144]


def test_no_text_is_embedded_twice(tmp_path: Path, commits: list[float]) -> None:
    "Papers with the same text stand in several parts that were closed by time."
    table = pd.read_csv(sample_papers(), dtype=str)
    pd.concat([table[:40], table[:40].assign(paper_id="again" + table["paper_id"])]).to_csv(tmp_path / "p.csv")
    run = embed(tmp_path / "run", TimedEncoder(0.5), commits, tmp_path / "p.csv", part_size=80)
    assert sum(part.counts["n_repeated"] for part in run.parts) == 40
    assert_array_equal(run.embeddings()[:40], run.embeddings()[40:], strict=True)


def test_an_append_and_a_repair_of_parts_n_closed_by_time(tmp_path: Path, whole: Run, commits: list[float]) -> None:
    newer = make_newer(tmp_path / "newer.csv")
    embed(tmp_path / "run", TimedEncoder(0.5), commits)
    run = embed(tmp_path / "run", TimedEncoder(0.5), commits, newer, append=True)
    expected = embed_papers(sample_papers(), tmp_path / "expected", part_size=72, encoder=LetterEncoder())
    expected = embed_papers(newer, tmp_path / "expected", append=True, encoder=LetterEncoder())
    assert (run.paper_ids, run.n_papers) == (expected.run.paper_ids, expected.run.n_papers)
    damaged = run.part_path(run.parts[1])
    damaged.write_bytes(damaged.read_bytes()[:-30])
    repaired = repair_run(run.folder, encoder=LetterEncoder())
    assert repaired.repaired == [run.parts[1].name]
    assert_array_equal(repaired.run.embeddings(), expected.run.embeddings(), strict=True)
