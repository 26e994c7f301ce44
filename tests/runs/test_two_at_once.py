"""Every pair of commands on one run, in two processes: one is refused in a line, or both end well; readers see a whole state."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from arxiv_embeddings.explore.index import open_index
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import open_run
from arxiv_embeddings.runs.verify import verify_run
from tests.fakes.letters import LetterEncoder
from tests.fakes.two_at_once import COMMANDS, WRITERS, Content, Worker, read, two_workers

LINES = (
    "is being written by process",
    "was changed while it was being",
    "is stale, the run has changed since",
    "contains papers of another input",  # `embed` after an `append`
)
READERS = {
    "read",
    "search",
    "describe",
    "index",
    "export",
    "export smaller",
    "plot",
}  # `verify` asks to be called again


@pytest.fixture(scope="module")
def workers() -> Iterator[tuple[Worker, Worker]]:
    with two_workers() as both:
        yield both


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Eight of ten papers in parts of one and two; the newer file has two others, and one of the old is gone from it."
    folder = tmp_path_factory.mktemp("base")
    papers = pd.read_csv(sample_papers(), dtype=str)[:12]
    papers[:10].to_csv(folder / "papers.csv", index=False)
    papers[1:].to_csv(folder / "newer.csv", index=False)
    embed_papers(folder / "papers.csv", folder / "run", part_size=2, limit=5, encoder=LetterEncoder())
    embed_papers(folder / "papers.csv", folder / "run", limit=8, encoder=LetterEncoder())
    return folder


@pytest.fixture(scope="module")
def states(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Content]:
    "What the run holds at first, and after `embed`, `append`, or both."
    found = []
    for names in ((), ("embed",), ("append",), ("embed", "append")):
        folder = tmp_path_factory.mktemp("state") / "copy"
        shutil.copytree(base, folder)
        for name in names:
            COMMANDS[name](folder / "run")
        found.append(read(folder / "run"))
    return found


def copy(base: Path, work: Path) -> Path:
    folder = work / f"copy{len(list(work.iterdir()))}"
    shutil.copytree(base, folder)
    return folder / "run"


def judge(run: Path, names: tuple[str, str], ends: list[tuple[str, object]], states: list[Content]) -> str:
    "What is wrong; empty if all is well."
    for name, (end, said) in zip(names, ends, strict=True):
        if end == "refused" and name in READERS and {*names} & {"compact", "repair"}:
            return f"{name} was refused although every paper is there: {said}"
        if end == "failed" or (end == "refused" and ("\n" in said or not any(line in said for line in LINES))):
            return f"{name} ended with: {said}"
        if end == "done" and name == "read" and said not in states:
            return "a reader saw a state that was never committed"
    done = {name for name, (end, _) in zip(names, ends, strict=True) if end == "done"}
    if not done:
        return f"both were refused: {ends}"
    possible = states if len(done & {"embed", "append"}) == 2 else [states[("append" in done) * 2 + ("embed" in done)]]
    if read(run) not in possible:
        return "the run holds other papers"
    problems = [one for one in verify_run(open_run(run))["problems"] if one["kind"] != "stale"]
    left = [str(path.relative_to(run)) for path in run.rglob("*") if path.suffix in (".tmp", ".partial")]
    return f"{problems} {left}" if problems or left else judge_made(run, names, done)


def judge_made(run: Path, names: tuple[str, str], done: set[str]) -> str:
    "Exports and the index that were reported are there, listed, and of one state."
    stale = {one["where"]: one["what"] for one in verify_run(open_run(run))["problems"]}
    if wrong := [
        f"{where} {what}" for where, what in stale.items() if "is not what was written" in what or "gone" in what
    ]:
        return str(wrong)
    for name, files in (("export", ("embeddings.npy",)), ("export smaller", ("embeddings_int8.npy", "flat"))):
        for file in files:
            listed = "is not listed in export.json" not in stale.get(f"export/{file}", "")
            if name in done and not ((run / "export" / file).exists() and listed):
                return f"{file} is not there, or not listed"
    if "index" in done and not done & set(WRITERS) and not open_index(open_run(run)).stored:
        return "the index is not there"
    return ""


def try_pair(
    first: str, second: str, stop: int, workers: tuple[Worker, Worker], run: Path
) -> tuple[list[tuple[str, object]], int]:
    "Stop the first command at a step, run the second, and let the first go on; how both ended."
    stopped, other = workers
    stopped.begin(first, run, stop)
    begun = stopped.answer()
    other.begin(second, run)
    end, _ = other.finish()
    if begun[0] == "stopped":
        stopped.go_on()
        begun = stopped.answer()
    return [begun, end], stopped.answer()[1]


def choose_stops(n_steps: int, how_many: int, draw: random.Random) -> list[int]:
    "One step, or steps at even distances, the first and the last among them."
    if how_many == 1:
        return [draw.randint(1, n_steps)]
    return sorted({1 + round(place * (n_steps - 1) / (how_many - 1)) for place in range(how_many)})


def try_all(first: str, how_many: int, workers, base: Path, states: list[Content], work: Path) -> tuple[int, list[str]]:
    "Every second command, at several steps of the first."
    workers[0].begin(first, copy(base, work))
    _, n_steps = workers[0].finish()
    assert n_steps
    faults, n_tried, draw = [], 0, random.Random(first)
    for second in [name for name in COMMANDS if how_many > 1 or name != "plot"]:
        for stop in choose_stops(n_steps, how_many, draw):
            run = copy(base, work)
            ends, _ = try_pair(first, second, stop, workers, run)
            if fault := judge(run, (first, second), ends, states):
                faults.append(f"{first} stopped at {stop} of {n_steps}, {second}: {fault}")
            n_tried += 1
    return n_tried, faults


@pytest.mark.parametrize("first", [name for name in COMMANDS if name != "plot"])  # which takes seconds
def test_every_pair(first: str, workers, base: Path, states: list[Content], tmp_path: Path) -> None:
    _, faults = try_all(first, 1, workers, base, states, tmp_path)
    assert faults == []


@pytest.mark.slow
@pytest.mark.parametrize("first", COMMANDS)
def test_every_pair_at_many_steps(first: str, workers, base: Path, states: list[Content], tmp_path: Path) -> None:
    n_tried, faults = try_all(first, 5, workers, base, states, tmp_path)
    assert n_tried >= len(COMMANDS)
    assert faults == []


PAIRS = [("export", "export"), ("export", "export smaller"), ("export smaller", "export smaller"), ("index", "index")]
PAIRS += [("plot", "plot"), ("read", "compact"), ("search", "append"), ("compact", "append")]


@pytest.mark.parametrize("pair", PAIRS)
def test_at_the_same_time(pair: tuple[str, str], workers, base: Path, states: list[Content], tmp_path: Path) -> None:
    "Both begin at once and run freely, again and again."
    for _ in range(2 if "plot" in pair else 5):
        run = copy(base, tmp_path)
        for worker, name in zip(workers, pair, strict=True):
            worker.begin(name, run)
        ends = [worker.finish()[0] for worker in workers]
        assert judge(run, pair, ends, states) == ""
