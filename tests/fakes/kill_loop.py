"""Kill a writer at random moments, again and again, and see that nothing is lost.

    python -m tests.fakes.kill_loop --kills 200 --seed 1
    python -m tests.fakes.kill_loop --kills 10 --model minilm --out kills.json
    python -m tests.fakes.kill_loop --kills 200 --part-seconds 0.2
    python -m tests.fakes.kill_loop --minutes 60 --model minilm --abstracts 200

Each round embeds the sample corpus, or real abstracts up to 512 tokens, in many small parts and then takes in a newer file of it, in a
process of its own that is killed with SIGKILL at a moment drawn at random, and started again, until it is done. After each kill the folder must hold
a state that the uninterrupted run went through, no earlier than the one before; at the end it must be the same
run: the same papers in the same order, no one lost, no one twice, every vector the same, no file left over. The work
that a kill loses is the time since the last commit, or since the writer began to embed.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import PART_SECONDS, Local, embed_papers
from arxiv_embeddings.runs.store import Run, open_run
from arxiv_embeddings.runs.verify import verify_run
from tests.fakes import ROOT
from tests.fakes.letters import PacedEncoder, SlowEncoder

WRITER = """
import sys
from tests.fakes.kill_loop import make_encoder, write
encoder = make_encoder(sys.argv[2], float(sys.argv[5]))
print("ready", flush=True)
write(sys.argv[1], encoder, sys.argv[3], sys.argv[4], float(sys.argv[5]))
"""
DATA = Path(os.environ.get("ARXIV_EMBEDDINGS_DATA", ROOT.parent / "shared" / "data"))
PART_SIZE = 6
TOLERANCE = 1e-6


def make_encoder(name: str, part_seconds: float = PART_SECONDS):
    "Letters, quick and without a model, or a real model."
    if name == "letters":  # computing takes about as long as writing; with short parts, a part of 72 texts takes longer
        return SlowEncoder(0.004) if part_seconds == PART_SECONDS else PacedEncoder(0.005)
    from arxiv_embeddings.encoders.load import load_encoder

    return load_encoder(name, device="cpu")


def write(
    folder: str | Path, encoder, papers: str | Path, newer: str | Path, part_seconds: float = PART_SECONDS
) -> None:
    "The whole of what is to be done, whatever of it is done already."
    options = {"encoder": encoder, "executor": Local(part_seconds)}
    part_size = PART_SIZE if part_seconds == PART_SECONDS else 12 * PART_SIZE
    done = (Path(folder) / "metadata.json").exists() and len(open_run(folder).metadata["inputs"]) > 1
    if not done:
        embed_papers(papers, folder, part_size=part_size, **options)
    embed_papers(newer, folder, append=True, prune=not done, **options)


def pick_real(path: Path, n_abstracts: int) -> Path:
    "Real abstracts: the longest third, some of which fill a model's 512 tokens, and others at even distances."
    papers = pd.read_csv(DATA / "arxiv_cs_10k.csv", dtype=str)
    by_length = papers.loc[papers["abstract"].str.len().sort_values(kind="stable").index]
    others = by_length[: -(n_abstracts // 3)]
    step = len(others) // (n_abstracts - n_abstracts // 3)
    pd.concat([others[::step], by_length[-(n_abstracts // 3) :]]).sort_index().to_csv(path, index=False)
    return path


def make_newer(path: Path, papers: str | Path | None = None) -> Path:
    "A file of papers, the sample's by default, a month later: every ninth has another abstract, every tenth is gone, thirty are new."
    papers = pd.read_csv(papers or sample_papers(), dtype=str)
    papers.loc[::9, "abstract"] = "Revised. " + papers["abstract"]
    new = papers[:30].assign(paper_id="new" + papers["paper_id"], title="New: " + papers["title"])
    pd.concat([papers.drop(papers.index[5::10]), new]).to_csv(path, index=False)
    return path


def is_state_of(run: Run, first: Run, last: Run) -> bool:
    "Whether a run is as far as an uninterrupted one had been at some moment."
    whole = last if len(run.metadata["inputs"]) > 1 else first
    same_ids = run.paper_ids == whole.paper_ids[: run.n_papers]
    same_vectors = np.allclose(run.embeddings(), whole.embeddings()[: run.n_papers], rtol=0, atol=TOLERANCE)
    return same_ids and same_vectors and (whole is first or run.n_papers == last.n_papers)


def count_committed(folder: Path) -> tuple[int, int]:
    "Inputs taken in and papers there, and of an unfinished append as well: what must never become less."
    if not (folder / "metadata.json").exists():
        return (0, 0)
    run = open_run(folder)
    if len(run.metadata["inputs"]) == 1 and (folder / "staging" / "metadata.json").exists():
        return (1, run.n_papers + open_run(folder / "staging").n_papers)
    return (len(run.metadata["inputs"]), run.n_papers)


def find_last_commit(folder: Path) -> float:
    "When the metadata of a run, or of its unfinished append, were written last; in seconds, 0 if never."
    found = [folder / "metadata.json", folder / "staging" / "metadata.json"]
    return max((path.stat().st_mtime for path in found if path.exists()), default=0.0)


def kill_until_done(
    folder: Path,
    model: str,
    inputs: tuple[str | Path, Path],
    seconds: float,
    draw: random.Random,
    references,
    part_seconds: float = PART_SECONDS,
) -> tuple[int, float]:
    "One round; how often the writer was killed, and the longest work lost. Raises `AssertionError` if a paper is lost."
    n_kills, committed, lost = 0, (0, 0), 0.0
    while True:
        command = [sys.executable, "-c", WRITER, str(folder), model, *map(str, inputs), str(part_seconds)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout.readline() == b"ready\n"
        began = time.time()
        try:
            process.wait(draw.uniform(0, seconds))
            assert process.returncode == 0
            break
        except subprocess.TimeoutExpired:
            lost = max(lost, time.time() - max(began, find_last_commit(folder)))
            process.kill()
            process.wait()
            n_kills += 1
        now = count_committed(folder)
        assert now >= committed, f"{committed} were committed, {now} are there"
        committed = now
        assert now == (0, 0) or is_state_of(open_run(folder), *references)
    run = open_run(folder)
    assert len(run.metadata["inputs"]) == 2
    assert is_state_of(run, *references)
    assert len(set(run.paper_ids)) == run.n_papers == references[1].n_papers
    assert verify_run(run)["problems"] == []
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".metadata.copy.json", "metadata.json", "parts"]
    return n_kills, lost


def run_loop(
    n_kills: int,
    model: str = "letters",
    seed: int = 0,
    n_abstracts: int | None = None,
    minutes: float = 0,
    part_seconds: float = PART_SECONDS,
) -> dict:
    "Kill so many times and for so long, over as many rounds as that takes."
    draw, killed, n_rounds, begun, lost = random.Random(seed), 0, 0, time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as work:
        papers = pick_real(Path(work) / "papers.csv", n_abstracts) if n_abstracts else sample_papers()
        newer, encoder = make_newer(Path(work) / "newer.csv", papers), make_encoder(model, part_seconds)
        started = time.monotonic()
        first = embed_papers(papers, Path(work) / "first", part_size=PART_SIZE, encoder=encoder).run
        write(Path(work) / "last", encoder, papers, newer, part_seconds)
        seconds = time.monotonic() - started
        references = first, open_run(Path(work) / "last")
        while killed < n_kills or time.monotonic() - begun < 60 * minutes:
            folder = Path(work) / f"round{n_rounds}"
            done = kill_until_done(folder, model, (papers, newer), seconds / 2, draw, references, part_seconds)
            killed, lost = killed + done[0], max(lost, done[1])
            shutil.rmtree(folder)
            n_rounds += 1
    done = {"model": model, "seed": seed, "n_abstracts": n_abstracts, "n_kills": killed, "n_rounds": n_rounds}
    return done | {"n_lost": 0, "n_twice": 0, "n_wrong": 0, "most_seconds_lost": round(lost, 2)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, help="default: 200, or as many as fit into the minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="letters", help="letters, or a model's name, such as minilm")
    parser.add_argument("--abstracts", type=int, help="embed so many real abstracts instead of the sample corpus")
    parser.add_argument("--minutes", type=float, default=0, help="go on for at least so long")
    parser.add_argument("--part-seconds", type=float, default=PART_SECONDS, help="longest time of a part")
    parser.add_argument("--out", type=Path, help="write what was done as JSON")
    options = parser.parse_args()
    n_kills = options.kills if options.kills is not None else 0 if options.minutes else 200
    done = run_loop(n_kills, options.model, options.seed, options.abstracts, options.minutes, options.part_seconds)
    print(json.dumps(done))
    if options.out:
        options.out.write_text(json.dumps(done, indent=1) + "\n")
