"""Search by vectors beside other libraries; writes results/search.json and nbs/images/search.png.

    python -m benchmarks.search [real] [million] [million_usearch] [three_million] [three_million_hnswlib] [rounding]
    python -m benchmarks.search picture

`real` has the 119,999 real papers that ARXIV_EMBEDDINGS_RUN names, in vectors of 384 numbers: 1,000 are queries and the
rest is indexed. The other cases have synthetic papers of 768 numbers, made block by block from a seed: 20,000 groups in a
space of 64 dimensions whose spread falls off, with a little noise in all 768. `rounding` evaluates the run of the 10,000
papers with known relations that ARXIV_EMBEDDINGS_SMALL_RUN names, in smaller numbers. Every contender gets the same vectors and
queries, and answers the queries in one call, on one thread and on two, in turns. Graphs of millions take long to build,
so some have a case of their own, in turns with ours. On two cores `million` takes 50 minutes. Of `three_million_hnswlib`
half of the graph took half an hour and 5 GB; it and `million_usearch` have not been run to their end.
"""

import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from arxiv_embeddings.runs.store import Run
from benchmarks.main_job import DATA
from benchmarks.measuring import call, main

RESULTS = Path(__file__).parent / "results" / "search.json"
PICTURE = Path(__file__).parents[1] / "nbs" / "images" / "search.png"
K, N_QUERIES, N_FEW_QUERIES, N_ROUNDS, PART_SIZE, DIM = 10, 1000, 200, 3, 8192, 768
N_GROUPS, N_LATENT, SPREAD, NOISE = 20_000, 64, 0.7, 0.25


@dataclass(frozen=True)
class Piece:
    "A part of a run that has no files."

    n_papers: int
    start: int

    @property
    def sha256(self) -> str:
        return f"{self.start:064x}"


class MadeRun(Run):
    "A run whose vectors are computed when they are read, so that millions need no disk."

    def __init__(self, folder: Path, n_papers: int, make: Callable[[int, int], np.ndarray]):
        self.folder, self.make = folder, make
        self.metadata = {"n_papers": n_papers, "embedding_dim": make(0, 1).shape[1], "columns": None, "fingerprint": {}}
        self.parts = [Piece(min(PART_SIZE, n_papers - at), at) for at in range(0, n_papers, PART_SIZE)]

    def read_part(self, part: Any, columns: list[str] | None = None) -> pa.Table:
        vectors = self.make(part.start, part.n_papers)
        flat = pa.array(np.ascontiguousarray(vectors).ravel(), type=pa.float32())
        offsets = np.arange(0, flat.__len__() + 1, vectors.shape[1], dtype=np.int32)
        return pa.table({"embedding": pa.ListArray.from_arrays(pa.array(offsets), flat)})

    def embeddings(self) -> np.ndarray:
        return np.concatenate(list(self.iter_vectors()))

    def iter_vectors(self) -> Iterator[np.ndarray]:
        for part in self.parts:
            yield self.make(part.start, part.n_papers)


@functools.cache
def draw_fixed() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    "What all synthetic papers share: the spread of the dimensions, a basis, the groups, and noise to pick from."
    fixed = np.random.default_rng(1)
    falling = np.arange(1, N_LATENT + 1, dtype=np.float32) ** -0.5
    basis = fixed.standard_normal((N_LATENT, DIM), dtype=np.float32) * DIM**-0.5
    groups = fixed.standard_normal((N_GROUPS, N_LATENT), dtype=np.float32) * falling
    noise = fixed.standard_normal((2**14, DIM), dtype=np.float32) * (NOISE * DIM**-0.5)
    return falling, basis, groups, noise


def make_clustered(start: int, n_papers: int) -> np.ndarray:
    "Synthetic vectors of the part that begins at a row, float32, (n_papers, DIM)."
    falling, basis, groups, noise = draw_fixed()
    random = np.random.default_rng([2, start])
    latent = groups[random.integers(N_GROUPS, size=n_papers)]
    latent = latent + SPREAD * falling * random.standard_normal((n_papers, N_LATENT), dtype=np.float32)
    lengths = np.linalg.norm(latent, axis=1, keepdims=True) * random.choice([-1, 1], (n_papers, 1))
    return latent @ basis + noise[random.integers(len(noise), size=n_papers)] * lengths.astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def read_real() -> tuple[np.ndarray, np.ndarray]:
    "Queries and the other real vectors, of unit length."
    from arxiv_embeddings import open_run

    vectors = unit(open_run(os.environ["ARXIV_EMBEDDINGS_RUN"]).embeddings())
    order = np.random.default_rng(0).permutation(len(vectors))
    return vectors[order[:N_QUERIES]], vectors[order[N_QUERIES:]]


def make_queries() -> np.ndarray:
    "Queries that are drawn as the synthetic papers are."
    return unit(make_clustered(2**40, N_FEW_QUERIES))


def add_blocks(run: MadeRun, add: Callable[[np.ndarray], Any]) -> float:
    "Add vectors of unit length to an index, block by block; seconds that the index took."
    seconds = 0.0
    for block in run.iter_vectors():
        vectors = np.ascontiguousarray(unit(block))
        started = time.monotonic()
        add(vectors)
        seconds += time.monotonic() - started
    return seconds


# -- contenders: each gives a function from queries, a setting and threads to rows, and facts about itself

Search = Callable[[np.ndarray, Any, int], np.ndarray]
N_TRAINED = 100_000  # vectors from which FAISS alone learns its codes
SIZES = {"million": 1_000_000, "three_million": 3_000_000}  # of the synthetic cases
BESIDE = {  # other libraries in each case; FAISS stands for the same index as ours
    "real": ("FAISS", "FAISS HNSW16", "usearch M=16", "hnswlib M=16"),
    "million": ("FAISS", "hnswlib M=16"),
    "million_usearch": ("usearch M=16",),
    "three_million": ("FAISS",),
    "three_million_hnswlib": ("hnswlib M=16",),
}
GRAPH_SETTINGS = (10, 14, 20, 28, 40, 56, 80, 112, 160)


def build_ours(run: Run, kind: str | None = None) -> tuple[Search, list, dict]:
    import faiss

    from arxiv_embeddings.explore.index import SearchIndex, build_index, describe_index, open_index

    started = time.monotonic()
    folder = build_index(run, kind, fresh=True)
    seconds, opened = time.monotonic() - started, open_index(run)
    about, facts = opened.about, describe_index(opened)
    facts.pop("index")  # a path of this machine
    sizes = {name: (folder / name).stat().st_size for name in ("index.faiss", "vectors.npy")}

    def search(queries: np.ndarray, setting: tuple[int, int], n_threads: int) -> np.ndarray:
        faiss.omp_set_num_threads(n_threads)
        changed = about | {"effort": setting[0], "n_candidates": setting[1]}
        index = SearchIndex(run, opened.index, True, changed, opened.vectors)
        return np.array([rows for rows, _ in index.search(queries, K)])

    many = run.n_papers > 500_000
    efforts, numbers = (
        ((8, 16, 32, 64, 128), (50, 100, 200)) if many else ((8, 12, 16, 24, 32, 48, 64, 96), (30, 50, 100))
    )
    settings = [(effort, n) for n in numbers for effort in efforts]
    chosen = (about["effort"], about["n_candidates"])
    facts |= {"build_seconds": round(seconds, 1), "in_memory": sizes["index.faiss"], "on_disk": sum(sizes.values())}
    return search, [*settings, chosen], facts | {"precision": about["precision"], "chosen": chosen}


def count_bytes(index: Any) -> int:
    "How large a file of an index of FAISS is, without writing it."
    import faiss

    sizes: list[int] = []
    faiss.write_index(index, faiss.PyCallbackIOWriter(lambda written: sizes.append(len(written))))
    return sum(sizes)


def build_plain(run: MadeRun, factory: str) -> tuple[Search, list, dict]:
    "The same codes in FAISS alone, with its own refinement by float32 vectors in memory."
    import faiss

    index = faiss.index_factory(run.dim, f"{factory},RFlat", faiss.METRIC_INNER_PRODUCT)
    sample = np.concatenate([unit(block) for block in itertools.islice(run.iter_vectors(), N_TRAINED // PART_SIZE)])
    started = time.monotonic()
    index.train(sample)
    seconds = time.monotonic() - started
    seconds += add_blocks(run, index.add)

    def search(queries: np.ndarray, setting: tuple[int, int], n_threads: int) -> np.ndarray:
        faiss.omp_set_num_threads(n_threads)
        inner = faiss.SearchParametersIVF(nprobe=setting[0])
        parameters = faiss.IndexRefineSearchParameters(k_factor=setting[1] / K, base_index_params=inner)
        return index.search(queries, K, params=parameters)[1]

    n_bytes = count_bytes(index)
    settings = [(effort, n) for n in (50, 100) for effort in (8, 16, 24, 32, 48, 64, 96)]
    return search, settings, {"build_seconds": round(seconds, 1), "in_memory": n_bytes, "on_disk": n_bytes}


def build_faiss_graph(run: MadeRun) -> tuple[Search, list, dict]:
    import faiss

    index = faiss.index_factory(run.dim, "HNSW16", faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    seconds = add_blocks(run, index.add)

    def search(queries: np.ndarray, setting: int, n_threads: int) -> np.ndarray:
        faiss.omp_set_num_threads(n_threads)
        return index.search(queries, K, params=faiss.SearchParametersHNSW(efSearch=setting))[1]

    n_bytes = count_bytes(index)
    return search, list(GRAPH_SETTINGS), {"build_seconds": round(seconds, 1), "in_memory": n_bytes, "on_disk": n_bytes}


def build_hnswlib(run: MadeRun, n_threads: int = 1) -> tuple[Search, list, dict]:
    import hnswlib

    index = hnswlib.Index("ip", run.dim)
    index.init_index(run.n_papers, M=16, ef_construction=200)
    index.set_num_threads(n_threads)
    seconds = add_blocks(run, index.add_items)

    def search(queries: np.ndarray, setting: int, n_threads: int) -> np.ndarray:
        index.set_ef(setting)
        return index.knn_query(queries, K, num_threads=n_threads)[0].astype(np.int64)

    n_bytes = index.index_file_size()
    return search, list(GRAPH_SETTINGS), {"build_seconds": round(seconds, 1), "in_memory": n_bytes, "on_disk": n_bytes}


def build_usearch(run: MadeRun, n_threads: int = 1) -> tuple[Search, list, dict]:
    from usearch.index import Index

    index = Index(ndim=run.dim, metric="ip", dtype="f32", connectivity=16, expansion_add=200)
    seconds = add_blocks(run, lambda block: index.add(len(index) + np.arange(len(block)), block, threads=n_threads))

    def search(queries: np.ndarray, setting: int, n_threads: int) -> np.ndarray:
        index.expansion_search = setting
        return index.search(queries, K, threads=n_threads).keys.astype(np.int64)

    facts = {"build_seconds": round(seconds, 1), "in_memory": index.memory_usage, "on_disk": index.serialized_length}
    return search, list(GRAPH_SETTINGS), facts


# -- measuring


def measure_curves(
    contenders: dict[str, tuple], queries: np.ndarray, true: np.ndarray, n_rounds: int = N_ROUNDS
) -> dict:
    "Recall and queries a second of each contender at each setting; rounds are in turns, the best time counts."
    from arxiv_embeddings.explore.index import recall_of

    points: dict[tuple, dict] = {}
    for number in range(n_rounds):
        for name, (search, settings, _) in contenders.items():
            for setting in settings:
                point = points.setdefault((name, setting), {"setting": setting})
                for n_threads in (1, 2):
                    started = time.perf_counter()
                    found = search(queries, setting, n_threads)
                    speed = len(queries) / (time.perf_counter() - started)
                    name_of = f"per_second_{n_threads}"
                    point[name_of] = max(point.get(name_of, 0), round(speed, 1))
                if not number:
                    point["recall"] = round(recall_of(found, true), 4)
    return {
        name: facts | {"curve": [point for (whose, _), point in points.items() if whose == name]}
        for name, (_, _, facts) in contenders.items()
    }


def speed_at(curve: list[dict], recall: float, threads: int = 1) -> float:
    "The most queries a second with at least this recall, along the best settings; 0 if none reaches it."
    name = f"per_second_{threads}"
    above = [point[name] for point in curve if point["recall"] >= recall]
    best = max(above, default=0.0)
    for left in curve:  # between two settings, along the line between their logarithms
        for right in curve:
            if left["recall"] < recall < right["recall"] and left[name] > right[name]:
                share = (recall - left["recall"]) / (right["recall"] - left["recall"])
                one_list = isinstance(left["setting"], tuple | list) and left["setting"][1] != right["setting"][1]
                if not one_list:
                    best = max(best, left[name] ** (1 - share) * right[name] ** share)
    return round(best, 1)


def measure_single(run: Run, queries: np.ndarray, true: np.ndarray) -> dict:
    "A fresh process: time to open, each query alone, and memory."
    import faiss

    from arxiv_embeddings.explore.index import open_index, recall_of

    faiss.omp_set_num_threads(1)
    before = read_memory()
    started, computed = time.perf_counter(), time.process_time()
    index = open_index(run)
    opened, of_processor, times, found = time.perf_counter() - started, time.process_time() - computed, [], []
    computed = time.process_time()
    for query in queries:
        started = time.perf_counter()
        found.append(index.search(query[None], K)[0][0])
        times.append(time.perf_counter() - started)
    computed = time.process_time() - computed
    after = read_memory()
    used = {f"mb_{name}": round((after[name] - before[name]) / 1e6, 1) for name in after}
    return {
        "open_seconds": round(opened, 3),
        "open_cpu_seconds": round(of_processor, 3),
        "median_ms": round(float(np.median(times)) * 1e3, 3),
        "mean_cpu_ms": round(computed / len(queries) * 1e3, 3),
        "p99_ms": round(float(np.quantile(times, 0.99)) * 1e3, 3),
        "recall": round(recall_of(found, true), 4),
        **used,
        "mb_process": round(sum(after.values()) / 1e6, 1),
    }


def read_memory() -> dict[str, int]:
    "Resident memory of this process: its own, and pages of mapped files, which the system takes back when it needs them."
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {"own": int(lines["RssAnon"].split()[0]) * 1024, "mapped": int(lines["RssFile"].split()[0]) * 1024}


def measure_filtered(run: Run, queries: np.ndarray, share: float) -> dict:
    "Recall and time among a random share of the papers."
    from arxiv_embeddings.explore.blocks import ChosenVectors, find_nearest
    from arxiv_embeddings.explore.index import open_index, recall_of

    index, among = open_index(run), np.random.default_rng(3).random(run.n_papers) < share
    rows = np.flatnonzero(among)
    true = rows[find_nearest(queries, ChosenVectors(run, rows), K)[0]]
    index.search(queries[:5], K, among)
    times, found = [], []
    for query in queries:
        started = time.perf_counter()
        found.append(index.search(query[None], K, among)[0][0])
        times.append(time.perf_counter() - started)
    return {"recall": round(recall_of(found, true), 4), "median_ms": round(float(np.median(times)) * 1e3, 2)}


def open_case(folder: str, name: str) -> tuple[Run, np.ndarray, np.ndarray]:
    "The run, queries, and rows of their nearest papers, of a case whose files are in a folder."
    if name == "real":
        queries, vectors = read_real()
        run = MadeRun(Path(folder), len(vectors), lambda start, n: vectors[start : start + n])
    else:
        n_papers = next(n for size, n in SIZES.items() if name.startswith(size))
        queries, run = make_queries(), MadeRun(Path(folder), n_papers, make_clustered)
    true = Path(folder) / "true.npy"
    if not true.exists():
        from arxiv_embeddings.explore.blocks import find_nearest

        np.save(true, find_nearest(queries, run, K)[0])
    return run, queries, np.load(true)


def single(folder: str, name: str) -> dict:
    return measure_single(*open_case(folder, name))


def filtered(folder: str, name: str) -> dict:
    run, queries, _ = open_case(folder, name)
    return {f"{share:.0%}": measure_filtered(run, queries[:200], share) for share in (0.01, 0.1, 0.5)}


def curves(folder: str, name: str) -> dict:
    "All contenders of a case in one process, measured in turns."
    run, queries, true = open_case(folder, name)
    contenders = {"arxiv_embeddings": build_ours(run)}
    factory, n_threads = contenders["arxiv_embeddings"][2]["factory"], 1 if name == "real" else 2
    builders = {
        "FAISS": partial(build_plain, run, factory),
        "FAISS HNSW16": partial(build_faiss_graph, run),
        "usearch M=16": partial(build_usearch, run, n_threads),
        "hnswlib M=16": partial(build_hnswlib, run, n_threads),
    }
    for other in BESIDE[name]:
        contenders[f"FAISS {factory}" if other == "FAISS" else other] = builders[other]()
    return measure_curves(contenders, queries, true, N_ROUNDS if name == "real" else 1)


def measure(name: str, work: Path) -> dict:
    "One case: curves, then, once for each corpus, processes for queries alone and filters, which find the index ready."
    figures = call(curves, work, name)
    ours, graph = figures["arxiv_embeddings"]["curve"], figures.get("hnswlib M=16", {}).get("curve")
    at = {f"{recall:.2f}": speed_at(ours, recall) for recall in (0.95, 0.98, 0.99)}
    figures = {"contenders": figures, "per_second_at_recall": at}
    if graph:
        figures["times_hnswlib"] = {
            f"{recall}, {n} threads": round(speed_at(ours, recall, n) / speed_at(graph, recall, n), 2)
            for recall in (0.95, 0.98, 0.99)
            for n in (1, 2)
        }
    if "FAISS" not in BESIDE[name]:
        return figures
    return figures | {"alone": call(single, work, name), "filtered": call(filtered, work, name)}


def measure_rounding(work: Path) -> dict:
    "Measures of `evaluate` in each precision, for the 10,000 papers with known relations."
    from arxiv_embeddings import open_run
    from arxiv_embeddings.explore.evaluation import EvaluationOptions, KnownPapers, evaluate_embeddings, read_relations
    from arxiv_embeddings.explore.vector_file import pack_vectors, unpack_vectors

    run = open_run(os.environ["ARXIV_EMBEDDINGS_SMALL_RUN"])
    papers = KnownPapers.of_run(run, read_relations(DATA / "arxiv_cs_10k_relations.tsv"))
    exact, figures = unit(run.embeddings()), {}
    forms = {"float32": exact} | {one: unpack_vectors(pack_vectors(exact, one)) for one in ("int8", "int16")}
    for name, vectors in forms.items():
        found = evaluate_embeddings(vectors, papers, EvaluationOptions(only=("neighbors",)))
        figures[name] = {"category_precision@10": found["category_precision@10"]}
        for kind, numbers in found["relations"].items():
            figures[name] |= {f"{kind} {measure}": numbers[measure] for measure in ("MRR@10", "R@10")}
    lost = {
        one: round(max(figures["float32"][name] - value for name, value in figures[one].items()), 5) for one in forms
    }
    return {"figures": figures, "most_lost": lost}


def draw_picture(figures: dict) -> None:
    "Recall against queries a second."
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    titles = {"real": "119,000 real papers, 384 numbers", "million": "1 M synthetic", "three_million": "3 M synthetic"}
    shown = [name for name in titles if name in figures]
    _, axes = plt.subplots(1, len(shown), figsize=(4.6 * len(shown), 3.6), squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        contenders = figures[name]["contenders"]
        for case, measured in figures.items():
            if case.startswith(f"{name}_"):
                contenders = contenders | {
                    one: facts for one, facts in measured["contenders"].items() if one not in contenders
                }
        for which, facts in contenders.items():
            best, points = 0.0, []
            for point in sorted(facts["curve"], key=lambda one: -one["recall"]):
                if point["per_second_1"] > best:
                    best = point["per_second_1"]
                    points.append((point["recall"], best))
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=which)
        axis.set(yscale="log", xlim=(0.88, 1.0), xlabel="recall@10", title=titles[name])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    axes[0][0].set_ylabel("queries a second, one thread")
    plt.tight_layout()
    plt.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    if sys.argv[1:] == ["picture"]:
        draw_picture(json.loads(RESULTS.read_text()))
    else:
        cases = {name: partial(measure, name) for name in BESIDE}
        cases["rounding"] = measure_rounding
        main(cases, {"curves": curves, "single": single, "filtered": filtered}, RESULTS)
