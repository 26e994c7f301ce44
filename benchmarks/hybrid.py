"""When words help a search by vectors, and when they harm it; prints a table and writes results/hybrid.json.

    python -m benchmarks.hybrid

Each of 10,000 real papers that has a related paper of some kind is a query: `papers` asks with its vector, and with its
title and abstract for the words; `titles` asks with its title alone, as a person would type it, embedded by the run's
model. `category` is the share of the papers found that have the primary category of the paper that was asked about.
The run is embedded first, or read from the one that ARXIV_EMBEDDINGS_RUN names.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.main_job import DATA, name_processor

RESULTS = Path(__file__).parent / "results" / "hybrid.json"
K, N_BOOTSTRAPS, N_CATEGORY, SEED = 10, 10_000, 2_000, 0
NAMES = ("vectors", "words", "both")


def find_run(work: Path):
    "The run of 10,000 real papers."
    from arxiv_embeddings import embed_papers, open_run

    if ready := os.environ.get("ARXIV_EMBEDDINGS_RUN"):
        return open_run(ready)
    return embed_papers(DATA / "arxiv_cs_10k.csv", work / "run", precision="int8").run


def make_queries(index, asked: str) -> list:
    "A query for each paper, by its own vector and text, or by its title."
    from arxiv_embeddings.explore.search import Query, _ask_about_papers
    from arxiv_embeddings.runs.run_model import load_query_encoder

    rows = np.arange(index.run.n_papers)
    if asked == "papers":
        return _ask_about_papers(index, rows, with_texts=True)
    titles = index.run.read("title")["title"].to_pylist()
    vectors = load_query_encoder(index.run).encode(titles)
    return [Query(title, vector, title, (int(row),)) for title, vector, row in zip(titles, vectors, rows, strict=True)]


def rank_papers(index, queries: list) -> dict[str, list[np.ndarray]]:
    "The first papers of each ranking, for each query."
    from arxiv_embeddings.explore.search import SearchOptions, _rank_queries

    rankings = {name: _rank_queries(index, queries, SearchOptions(k=K, by=name), None) for name in NAMES}
    return {name: [one.rows[:K] for one in found] for name, found in rankings.items()}


def measure_queries(ranked: list[np.ndarray], related: list[set[int]]) -> np.ndarray:
    "Reciprocal rank of the first related paper, and share of the related ones, among the first K of each query."
    measured = np.zeros((len(ranked), 2))
    for at, (rows, wanted) in enumerate(zip(ranked, related, strict=True)):
        hits = np.flatnonzero([row in wanted for row in rows.tolist()])
        measured[at] = (1 / (hits[0] + 1) if len(hits) else 0, len(hits) / len(wanted))
    return measured


def find_interval(values: np.ndarray) -> list[float]:
    "Mean of a figure over the queries, and its 95 % interval by bootstrap."
    generator = np.random.default_rng(SEED)
    drawn = generator.integers(len(values), size=(N_BOOTSTRAPS, len(values)), dtype=np.int32)
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return [round(float(one), 4) for one in (values.mean(), low, high)]


def compare(values: dict[str, np.ndarray]) -> dict[str, list[float]]:
    "The figure of each ranking, and its difference to that of the vectors, query by query."
    shown = {name: find_interval(one) for name, one in values.items()}
    return shown | {f"{name} - vectors": find_interval(values[name] - values["vectors"]) for name in NAMES[1:]}


def compare_kinds(run, asked: str) -> dict[str, dict]:
    "The figures of all rankings for every kind of relation, and for categories."
    from arxiv_embeddings.explore.evaluation import list_related, read_relations
    from arxiv_embeddings.explore.index import open_index

    index = open_index(run)
    queries = make_queries(index, asked)
    row_of = {paper_id: row for row, paper_id in enumerate(run.paper_ids)}
    figures = {}
    for kind, pairs in read_relations(DATA / "arxiv_cs_10k_relations.tsv").groupby("kind"):
        related = {row_of[one]: {row_of[other] for other in others} for one, others in list_related(pairs).items()}
        ranked = rank_papers(index, [queries[row] for row in related])
        of_kind = {name: measure_queries(ranked[name], list(related.values())) for name in NAMES}
        figures[kind] = {"n_queries": len(related)}
        for at, measure in enumerate((f"MRR@{K}", f"R@{K}")):
            figures[kind][measure] = compare({name: one[:, at] for name, one in of_kind.items()})
    drawn = np.sort(np.random.default_rng(SEED).choice(run.n_papers, N_CATEGORY, replace=False))
    names = np.array(run.read("primary_category")["primary_category"].to_pylist())
    ranked = rank_papers(index, [queries[row] for row in drawn])
    shares = {
        name: np.array([(names[rows] == names[row]).sum() / K for row, rows in zip(drawn, ranked[name], strict=True)])
        for name in NAMES
    }
    return figures | {"category": {"n_queries": N_CATEGORY, f"P@{K}": compare(shares)}}


def print_table(figures: dict[str, dict]) -> None:
    "Print the figures as a table in Markdown."
    columns = (*NAMES, *(f"{name} - vectors" for name in NAMES[1:]))
    print(f"| relation, queries | measure | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 2)}")
    for kind, measured in figures.items():
        for measure in [name for name in measured if name != "n_queries"]:
            cells = []
            for name in columns:
                sign = "+" if "-" in name else ""
                mean, low, high = (f"{one:{sign}.3f}" for one in measured[measure][name])
                cells.append(f"{mean} ({low} to {high})")
            print(f"| {kind}, {measured['n_queries']} | {measure} | {' | '.join(cells)} |")


if __name__ == "__main__":
    if not DATA.is_dir():
        sys.exit(f"no real data in {DATA}: set ARXIV_EMBEDDINGS_DATA")
    with tempfile.TemporaryDirectory() as work:
        run = find_run(Path(work))
        made_by = {"model": run.metadata["model"], "precision": run.metadata["fingerprint"]["precision"]}
        figures = {asked: compare_kinds(run, asked) for asked in ("papers", "titles")}
    for asked, of_queries in figures.items():
        print(f"\nqueries: {asked}\n")
        print_table(of_queries)
    about = made_by | {"n_papers": run.n_papers, "bootstraps": N_BOOTSTRAPS, "processor": name_processor()}
    RESULTS.write_text(json.dumps({"about": about, "queries": figures}, indent=1) + "\n")
