"""A static model beside the transformer that it was made of, in one run on real abstracts; writes results/static.json.

MiniLM is distilled with the token frequencies of 9,000 abstracts, and a map fitted to 1,000 of them. Speed is measured
on one core, round after round with both models in turn, so that whatever slows the machine slows both. Then whole runs
with `embed_papers`, the relations of the abstracts, and what is lost against MiniLM on some of the others. MiniLM's own
relations are those of results/precisions.json. Takes about ten minutes on two cores.
"""

import json
import os
import time
from pathlib import Path

import numpy as np

from benchmarks.main_job import DATA
from benchmarks.measuring import call, main

RESULTS = Path(__file__).parent / "results" / "static.json"
PAPERS = DATA / "arxiv_cs_10k.csv"
N_ROUNDS, N_MINILM, N_STATIC = 5, 32, 2_000  # of rounds, and of abstracts in a round
N_HELD_OUT, N_COMPARED = (
    1_000,
    400,
)  # first abstracts, of which the table knows nothing; of these MiniLM embeds some for the loss
LEAST_RATIO = 100


def read_texts(model: str) -> list[str]:
    "The abstracts as a model reads them."
    from arxiv_embeddings.encoders.models import fetch_model
    from arxiv_embeddings.encoders.registry import find_model
    from arxiv_embeddings.papers.corpus import read_papers

    return fetch_model(find_model(model)).spec.texts_of(read_papers(PAPERS).table())


def measure_speed(folder: str) -> dict:
    "Papers a second of both models on one core, in turn."
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    from arxiv_embeddings.encoders.conversion import get_or_convert
    from arxiv_embeddings.encoders.load import load_encoder
    from arxiv_embeddings.encoders.models import fetch_model
    from arxiv_embeddings.encoders.openvino_engine import OpenVINOEncoder
    from arxiv_embeddings.encoders.registry import find_model

    minilm = OpenVINOEncoder(get_or_convert(fetch_model(find_model("minilm"))), "float32", threads=1)
    encoders = {"minilm": (minilm, N_MINILM), "static": (load_encoder(folder), N_STATIC)}
    texts = {"minilm": read_texts("minilm"), "static": read_texts(folder)}
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    for number in range(N_ROUNDS + 1):  # the first one warms up
        for name, (encoder, n_texts) in encoders.items():
            started = time.perf_counter()
            encoder.encode(texts[name][number * n_texts % 8_000 :][:n_texts])
            rates[name].append(n_texts / (time.perf_counter() - started))
    n_tokens = encoders["static"][0].tokenize(texts["static"][:N_STATIC]).n_tokens
    return {
        "papers_per_second": {name: round(float(np.median(one[1:])), 1) for name, one in rates.items()},
        "ratio": round(float(np.median([b / a for a, b in zip(*(one[1:] for one in rates.values()), strict=True)])), 1),
        "tokens_per_paper": round(float(n_tokens.mean()), 1),
    }


def measure_run(folder: str, papers: str, out: str) -> dict:
    "Seconds from a file to a run, and to the first search."
    from arxiv_embeddings.explore.index import open_index
    from arxiv_embeddings.explore.search import search_text
    from arxiv_embeddings.runs.embed import embed_papers

    started = time.perf_counter()
    run = embed_papers(papers, out, model=folder, progress=False).run
    seconds_embed = time.perf_counter() - started
    search_text(open_index(run), "spectral clustering of sparse graphs", k=10)
    seconds = time.perf_counter() - started
    return {
        "n_papers": run.n_papers,
        "seconds_embed": round(seconds_embed, 1),
        "seconds_to_first_search": round(seconds, 1),
        "papers_per_second": round(run.n_papers / seconds_embed, 1),
    }


def measure_relations(out: str) -> dict:
    "MRR@10 of each kind of relation, and the share of neighbors of the same category."
    from arxiv_embeddings.explore.evaluation import evaluate_run
    from arxiv_embeddings.runs.store import open_run

    measured = evaluate_run(open_run(out), DATA / "arxiv_cs_10k_relations.tsv", only=("neighbors",))
    figures = {f"{kind} MRR@10": numbers["MRR@10"] for kind, numbers in measured["relations"].items()}
    return {
        name: round(value, 4)
        for name, value in {"category_precision@10": measured["category_precision@10"], **figures}.items()
    }


def measure_losses(folder: str) -> dict:
    "What is lost against MiniLM on some abstracts."
    from arxiv_embeddings.encoders.load import load_encoder
    from arxiv_embeddings.encoders.static_engine import measure_loss

    vectors = [load_encoder(name, device="cpu").encode(read_texts(name)[:N_COMPARED]) for name in (folder, "minilm")]
    loss = {name: round(value, 4) for name, value in measure_loss(*vectors).items()}
    return {"n_texts": N_COMPARED, **loss}


def distill(folder: str) -> dict:
    "Make a static model of MiniLM."
    from arxiv_embeddings.encoders.load import load_encoder
    from arxiv_embeddings.encoders.static_engine import distill_model

    started = time.perf_counter()
    distill_model(load_encoder("minilm", device="cpu"), folder, read_texts("minilm")[N_HELD_OUT:])
    size = sum(one.stat().st_size for one in Path(folder).rglob("*") if one.is_file())
    return {"seconds": round(time.perf_counter() - started, 1), "megabytes": round(size / 1e6, 1)}


def measure_minilm(work: Path) -> dict:
    "Distill, and measure everything."
    folder = work / "static-minilm"
    figures = {"distillation": call(distill, folder), "one_core": call(measure_speed, folder)}
    figures["run_10k"] = call(measure_run, folder, PAPERS, work / "run")
    figures["run_120k"] = call(measure_run, folder, DATA / "arxiv_120k.parquet", work / "large")
    ours = call(measure_relations, work / "run")
    exact = json.loads((RESULTS.parent / "precisions.json").read_text())["float32"]["figures"]
    figures["relations"] = {"static": ours, "minilm": {name: exact[name] for name in ours}}
    figures["loss"] = call(measure_losses, folder)
    if figures["one_core"]["ratio"] < LEAST_RATIO:
        print(f"below {LEAST_RATIO} times MiniLM's speed")
    return figures


if __name__ == "__main__":
    functions = (distill, measure_speed, measure_run, measure_relations, measure_losses)
    main({"minilm": measure_minilm}, {one.__name__: one for one in functions}, RESULTS)
