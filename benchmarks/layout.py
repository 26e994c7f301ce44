"""How long a layout takes, how much memory, and how good it is; writes results/layout.json.

    python -m benchmarks.layout [methods] [rules] [appended] [sizes]

`methods`, `rules` and `appended` lay out 10,000 real papers. They are embedded first, or read from the run that
ARXIV_EMBEDDINGS_RUN names. `sizes` lays out these, 119,999 other real papers (embedded in a quarter of an hour, or the
run of ARXIV_EMBEDDINGS_LARGE_RUN) and 1,000,000 synthetic ones: each of their vectors lies between the vectors of two
real neighbors, with noise, so that they cluster as papers do.
"""

import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.contenders import read_peak_bytes
from benchmarks.main_job import DATA
from benchmarks.measuring import call, main

RESULTS = Path(__file__).parent / "results" / "layout.json"
N_REAL, N_APPENDED, N_LANDMARKS = 10_000, 1_000, 2_500
N_SYNTHETIC = 1_000_000
NOISE = 0.5  # its length, added to a synthetic vector: the nearest other has a cosine of 0.73, among real ones 0.67
PART_SIZE = 8192


def find_real(work: Path, variable: str = "ARXIV_EMBEDDINGS_RUN", papers: str = "arxiv_cs_10k.csv"):
    "The run of 10,000 real papers, or of a larger file."
    from arxiv_embeddings import embed_papers, open_run

    if ready := os.environ.get(variable):
        return open_run(ready)
    return embed_papers(DATA / papers, work / Path(papers).stem, precision="int8").run


def read_real(work: Path) -> np.ndarray:
    "The vectors of 10,000 real papers, of unit length."
    from arxiv_embeddings.encoders.vectors import l2_normalize

    return l2_normalize(find_real(work).embeddings()[:N_REAL])


def read_large(work: Path):
    "The vectors of 119,999 real papers, part by part."
    yield from find_real(work, "ARXIV_EMBEDDINGS_LARGE_RUN", "arxiv_120k.parquet").iter_vectors()


def write_run(folder: Path, parts) -> None:
    "A run of ready-made vectors."
    from arxiv_embeddings.runs.store import RunWriter

    n_written, writer = 0, None
    for vectors in parts:
        if writer is None:
            description = {"model": "minilm", "embedding_dim": vectors.shape[1], "fingerprint": {"by": "benchmark"}}
            there = folder.exists()
            writer = RunWriter(folder, None if there else description | {"inputs": [{"n_accepted": 0}]}).__enter__()
            n_written = writer.metadata["n_papers"] if there else 0
        rows = range(n_written, n_written + len(vectors))
        papers = {"paper_id": [f"paper {row}" for row in rows], "text_sha256": [f"{row:064x}" for row in rows]}
        writer.add_part(pa.table(papers), vectors)
        n_written += len(vectors)
    writer.__exit__(None, None, None)


def make_synthetic(real: np.ndarray, n_papers: int, seed: int = 0):
    "Vectors between real neighbors, with noise, part by part."
    from arxiv_embeddings.encoders.vectors import l2_normalize
    from arxiv_embeddings.explore.similarity import find_neighbors

    neighbors, generator = find_neighbors(real, 10)[0], np.random.default_rng(seed)
    for start in range(0, n_papers, PART_SIZE):
        n_rows = min(PART_SIZE, n_papers - start)
        left, share = generator.integers(len(real), size=n_rows), generator.random((n_rows, 1), dtype=np.float32)
        right = neighbors[left, generator.integers(10, size=n_rows)]
        noise = generator.standard_normal((n_rows, real.shape[1]), dtype=np.float32) * (NOISE / real.shape[1] ** 0.5)
        yield l2_normalize(share * real[left] + (1 - share) * real[right] + noise)


def lay_out(folder: str, method: str) -> dict:
    "Lay out a run, in a process of its own."
    from arxiv_embeddings import open_run
    from arxiv_embeddings.explore.layout import lay_out_run

    started, computed, run = time.monotonic(), time.process_time(), open_run(folder)
    layout = lay_out_run(run, method, fresh=True)
    about = {name: layout.about[name] for name in ("method", "n_papers", "n_landmarks", "n_measured")}
    quality = {name: layout.about[name] for name in ("trustworthiness", "neighborhood_preservation")}
    used = {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(time.process_time() - computed, 1),
        "peak_mb": round(read_peak_bytes() / 1e6),
    }
    return about | quality | used


def measure_methods(work: Path) -> dict:
    "Each method on the real papers."
    write_run(work / "run", [read_real(work)])
    call(lay_out, work / "run", "umap")  # numba compiles once
    return {method: call(lay_out, work / "run", method) for method in ("tsne", "umap", "pca")}


def find_rules(nearest: np.ndarray, distances: np.ndarray, places: np.ndarray, reach: float) -> dict:
    "Ways to place papers by their nearest landmarks."
    near = places[nearest]
    apart = np.linalg.norm(near - near[:, :1], axis=2) / reach

    def mean(weights: np.ndarray) -> np.ndarray:
        return np.einsum("pk,pkd->pd", weights / weights.sum(axis=1, keepdims=True), near)

    return {
        "mean of 10": near.mean(axis=1),
        "mean of 3": near[:, :3].mean(axis=1),
        "mean of 10 by inverse distance": mean(1 / distances),
        "median of 5": np.median(near[:, :5], axis=1),
        "nearest": near[:, 0],
        "those by the nearest": mean((distances[:, :1] / distances) ** 4 / (1 + apart**2) ** 2),
    }


def measure_rules(work: Path) -> dict:
    "Each rule with 2,500 landmarks among the real papers; the last two as the package has them."
    from umap import UMAP

    from arxiv_embeddings.explore.layout import Landmarks, measure_layout, project_2d

    unit = read_real(work)
    rows = np.sort(np.random.default_rng(0).permutation(len(unit))[:N_LANDMARKS])
    others, figures = np.setdiff1d(np.arange(len(unit)), rows), {}

    def measure(of_landmarks: np.ndarray, of_others: np.ndarray) -> dict:
        places = np.empty((len(unit), 2), dtype=np.float32)
        places[rows], places[others] = of_landmarks, of_others
        return measure_layout(lambda: [unit], places)

    landmarks = Landmarks(unit[rows], project_2d(unit[rows]))
    distances, nearest = landmarks._search.kneighbors(unit[others])
    for name, placed in find_rules(nearest, distances**2, landmarks.places, landmarks.reach).items():
        figures[name] = measure(landmarks.places, placed)
    figures["the package"] = measure(landmarks.places, landmarks.place(unit[others]))
    umap = UMAP(min_dist=0.0, random_state=0, n_jobs=1).fit(unit[rows])
    figures["UMAP's transform"] = measure(umap.embedding_, umap.transform(unit[others]))
    figures["UMAP, by the package's rule"] = measure(
        umap.embedding_, Landmarks(unit[rows], umap.embedding_).place(unit[others])
    )
    return figures


def measure_appended(work: Path) -> dict:
    "The last 1,000 of the real papers, placed later against laid out with the others."
    from arxiv_embeddings import open_run
    from arxiv_embeddings.explore.layout import iter_unit_vectors, lay_out_run, measure_layout

    unit, folder = read_real(work), work / "run"
    unit = unit[np.random.default_rng(0).permutation(len(unit))]
    write_run(folder, [unit[:-N_APPENDED]])
    before = lay_out_run(open_run(folder))
    write_run(folder, [unit[-N_APPENDED:]])
    run, started = open_run(folder), time.monotonic()
    after = lay_out_run(run)
    seconds = time.monotonic() - started
    new, rows = lay_out_run(run, fresh=True), np.arange(len(unit) - N_APPENDED, len(unit))
    blocks = partial(iter_unit_vectors, run)
    return {
        "old papers moved": int((after.places[:-N_APPENDED] != before.places).any(axis=1).sum()),
        "seconds": round(seconds, 1),
        "appended papers, placed later": measure_layout(blocks, after.places, rows=rows),
        "appended papers, new layout": measure_layout(blocks, new.places, rows=rows),
        "all papers, placed later": measure_layout(blocks, after.places),
        "all papers, new layout": measure_layout(blocks, new.places),
    }


def measure_sizes(work: Path) -> dict:
    "10,000 and 119,999 real papers, and a million synthetic ones."
    real, figures = read_real(work), {}
    vectors: dict[str, Callable] = {"10k": lambda: [real], "120k": lambda: read_large(work)}
    vectors["1M"] = partial(make_synthetic, real, N_SYNTHETIC)
    for name, make in vectors.items():
        write_run(work / name, make())
        figures[name] = call(lay_out, work / name, "tsne")
        shutil.rmtree(work / name)
    return figures


if __name__ == "__main__":
    measurements = {
        "methods": measure_methods,
        "rules": measure_rules,
        "appended": measure_appended,
        "sizes": measure_sizes,
    }
    main(measurements, {"lay_out": lay_out}, RESULTS)
