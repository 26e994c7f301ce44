"""The long measurements of runs: killed 200 times, a million papers, 120,000 real ones; writes results/runs.json.

    python -m benchmarks.runs [kills] [memory] [synthetic] [real]

Each measurement is a process of its own, so that its peak memory is its own. Without names all three are made, which
takes about half an hour on two cores; a name renews its own figures and leaves the others.
"""

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.contenders import read_peak_bytes
from benchmarks.main_job import DATA
from benchmarks.measuring import call, main

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "runs.json"
N_SYNTHETIC, DIM, PART_SIZE = 1_000_000, 384, 2048
N_FIRST, N_APPENDED = 10_000, 1_000
N_FEW, N_MANY = 100_000, 1_000_000


def peak_megabytes() -> float:
    "The most memory that this process has had."
    return round(read_peak_bytes() / 1e6, 1)


# Each of these runs in a process of its own: `python runs.py --call NAME ARGUMENT ...` prints what it returns


def write_synthetic(folder: str) -> dict:
    "A million papers with ready-made vectors through the store."
    from arxiv_embeddings.runs.store import RunWriter

    generator, started = np.random.default_rng(0), time.monotonic()
    seconds_made = 0.0
    description = {
        "model": "synthetic",
        "embedding_dim": DIM,
        "fingerprint": {"pooling": "mean", "precision": "float32"},
    }
    with RunWriter(folder, description | {"inputs": [{"n_accepted": N_SYNTHETIC}]}) as writer:
        for start in range(0, N_SYNTHETIC, PART_SIZE):
            making = time.monotonic()
            rows = range(start, min(start + PART_SIZE, N_SYNTHETIC))
            papers = pa.table(
                {
                    "paper_id": [f"{row // 100_000 + 1001}.{row % 100_000:05d}" for row in rows],
                    "title": [f"Paper number {row}" for row in rows],
                    "abstract": [f"What paper number {row} is about. " * 20 for row in rows],
                    "text_sha256": [f"{row:064x}" for row in rows],
                }
            )
            vectors = generator.standard_normal((len(rows), DIM), dtype=np.float32)
            seconds_made += time.monotonic() - making
            writer.add_part(papers, vectors)
    seconds = time.monotonic() - started - seconds_made
    return {
        "seconds": round(seconds, 1),
        "papers_per_second": round(N_SYNTHETIC / seconds),
        "peak_mb": peak_megabytes(),
    }


def open_and_verify(folder: str) -> dict:
    "Opening a run, and checking it, beside `sha256sum` on the same files, in turns."
    from arxiv_embeddings.runs.store import open_run
    from arxiv_embeddings.runs.verify import verify_run

    started = time.monotonic()
    run = open_run(folder)
    seconds_open = time.monotonic() - started
    files = sorted(str(path) for path in (Path(folder) / "parts").iterdir())
    seconds = {"verify": [], "sha256sum": []}
    for _ in range(4):
        started = time.monotonic()
        subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)
        seconds["sha256sum"].append(time.monotonic() - started)
        started = time.monotonic()
        assert verify_run(run)["problems"] == []
        seconds["verify"].append(time.monotonic() - started)
    medians = {name: float(np.median(values[1:])) for name, values in seconds.items()}  # the first reads from disk
    n_bytes = sum(part["n_bytes"] for part in run.metadata["parts"])
    return {
        "seconds_open": round(seconds_open, 3),
        "n_bytes": n_bytes,
        "verify_mb_per_second": round(n_bytes / 1e6 / medians["verify"]),
        "sha256sum_mb_per_second": round(n_bytes / 1e6 / medians["sha256sum"]),
        "verify_to_sha256sum": round(medians["sha256sum"] / medians["verify"], 2),
        "peak_mb": peak_megabytes(),
    }


def write_input(path: str, n_papers: str) -> dict:
    "A Parquet file of so many papers with short texts."
    schema = pa.schema([("id", pa.string()), ("abstract", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, int(n_papers), N_FIRST):
            rows = range(start, min(start + N_FIRST, int(n_papers)))
            ids = [f"{row // 90_000 + 1001}.{row % 90_000:05d}" for row in rows]
            writer.write_table(pa.table([ids, [f"Paper {row} is about numbers." for row in rows]], schema=schema))
    return {"n_papers": int(n_papers)}


def embed_quickly(papers: str, folder: str, options: str) -> dict:
    "The main job with an encoder that needs neither time nor memory."
    from arxiv_embeddings.runs.embed import embed_papers
    from tests.fakes.letters import LetterEncoder

    result = embed_papers(papers, folder, encoder=LetterEncoder(), **json.loads(options))
    return {"n_papers": result.run.n_papers, "changes": result.changes, "peak_mb": peak_megabytes()}


def embed(papers: str, folder: str, options: str) -> dict:
    "One call of the main job, in int8."
    started = time.monotonic()
    from arxiv_embeddings.runs.embed import embed_papers

    result = embed_papers(papers, folder, precision="int8", device="cpu", **json.loads(options))
    return {
        "n_papers": result.run.n_papers,
        "n_embedded": result.n_embedded,
        "changes": result.changes,
        "seconds": round(time.monotonic() - started, 1),  # from the imports on
        "papers_per_second": round(result.n_embedded / result.seconds, 1) if result.n_embedded else None,
        "peak_mb": peak_megabytes(),
    }


def kill(n_kills: str, model: str) -> dict:
    "Killed so often, continued, compared."
    from tests.fakes.kill_loop import run_loop

    return run_loop(int(n_kills), model, seed=2)


# The measurements


def measure_kills(work: Path) -> dict:
    "200 kills with a quick encoder, 10 with a real model."
    return {"letters": call(kill, 200, "letters"), "minilm": call(kill, 10, "minilm")}


def measure_memory(work: Path, n_few: int = N_FEW, n_many: int = N_MANY) -> dict:
    "What each paper takes of memory while a run is made, and while an input is taken into it."
    results: dict = {"n_papers": [n_few, n_many]}
    peaks = {}
    for n_papers in (n_few, n_many):
        papers, newer = work / f"papers{n_papers}.parquet", work / f"newer{n_papers}.parquet"
        call(write_input, papers, n_papers)
        call(write_input, newer, n_papers + 1)
        new = call(embed_quickly, papers, work / f"run{n_papers}", "{}")
        append = call(embed_quickly, newer, work / f"run{n_papers}", json.dumps({"append": True}))
        peaks[n_papers] = new["peak_mb"], append["peak_mb"]
    for at, name in enumerate(("new", "append")):
        results[f"{name}_peak_mb"] = [peaks[n_few][at], peaks[n_many][at]]
        results[f"{name}_bytes_a_paper"] = round((peaks[n_many][at] - peaks[n_few][at]) * 1e6 / (n_many - n_few))
    return results


def measure_synthetic(work: Path) -> dict:
    "What the store makes of a million papers."
    return {"write": call(write_synthetic, work / "run"), "read": call(open_and_verify, work / "run")}


def measure_real(work: Path) -> dict:
    "120,000 real abstracts in int8: rate, memory, continuing, appending."
    papers = DATA / "arxiv_120k.parquet"
    table = pq.read_table(papers)
    pq.write_table(table.slice(len(table) - N_APPENDED), work / "newest.parquet")
    pq.write_table(table.slice(0, len(table) - N_APPENDED), work / "before.parquet")
    del table
    run, first = work / "run", {"limit": N_FIRST}
    results = {"first": call(embed, work / "before.parquet", work / "first", json.dumps(first))}
    results["whole"] = call(embed, work / "before.parquet", run, "{}")
    results["again"] = call(embed, work / "before.parquet", run, "{}")
    results["append"] = call(embed, work / "newest.parquet", run, json.dumps({"append": True}))
    results["alone"] = call(embed, work / "newest.parquet", work / "alone", "{}")
    results["peak_to_first"] = round(results["whole"]["peak_mb"] / results["first"]["peak_mb"], 3)
    results["append_to_alone"] = round(results["append"]["seconds"] / results["alone"]["seconds"], 2)
    return results


MEASUREMENTS = {
    "kills": measure_kills,
    "memory": measure_memory,
    "synthetic": measure_synthetic,
    "real": measure_real,
}

if __name__ == "__main__":
    main(MEASUREMENTS, globals(), RESULTS, without_data=("kills", "memory", "synthetic"))
