"""Seconds from the start of `arxiv-embeddings embed` to its first vector, with a model that is converted already.

Each time a process of its own runs the command on a few real abstracts. What its parts take is measured in another process,
by the times at which Python enters them, since to measure imports slows them. Writes results/start.json.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.encode import describe_machine
from benchmarks.main_job import DATA, ROOT
from benchmarks.measuring import main

RESULTS = Path(__file__).parent / "results" / "start.json"
N_PAPERS, N_STARTS = 4, 7
HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "pandas",
    "pyarrow",
    "openvino",
    "tokenizers",
    "sklearn",
    "faiss",
)

# notes when the first batch's vectors are there, and runs the command line as its script does
CHILD = """
import json, sys, time
from arxiv_embeddings.cli.main import main
from arxiv_embeddings.encoders import openvino_engine as engine

infer, first = engine.infer_batches, {}

def infer_noted(compiled, batches):
    for found in infer(compiled, batches):
        if not first:
            first.update(seconds=time.time() - started, cpu_seconds=time.process_time())
        yield found

engine.infer_batches, started, report, heavy = infer_noted, float(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
del sys.argv[1:4]
try:
    main()
finally:
    first["imported"] = [name for name in heavy if name in sys.modules]
    open(report, "w").write(json.dumps(first))
"""


def start(papers: Path, run: Path, model: str, precision: str) -> dict:
    "Run the command in a process of its own."
    report = run.with_suffix(".json")
    started = time.time()
    command = [sys.executable, "-c", CHILD, repr(started), str(report), ",".join(HEAVY)]
    options = ["--model", model, "--precision", precision, "--out", str(run)]
    subprocess.run([*command, "embed", str(papers), *options], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return json.loads(report.read_text()) | {"whole_seconds": time.time() - started}


def measure_start(work: Path, precision: str) -> dict:
    "The median of some starts, after two that convert the model and fill the file system's cache."
    papers = work / "papers.csv"
    with (DATA / "arxiv_cs_10k.csv").open(encoding="utf-8") as stream:
        import csv

        rows = [row for row, _ in zip(csv.reader(stream), range(1 + N_PAPERS), strict=False)]
    with papers.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    found = [start(papers, work / f"run-{number}", "minilm", precision) for number in range(2 + N_STARTS)][2:]
    figures = {
        name: round(float(np.median([one[name] for one in found])), 3)
        for name in ("seconds", "cpu_seconds", "whole_seconds")
    }
    least = min(one["seconds"] for one in found)
    return figures | {"least_seconds": round(least, 3), "n_starts": N_STARTS, "imported": found[0]["imported"]}


def measure_all(work: Path) -> dict:
    "Both precisions, and what load the machine had."
    load = os.getloadavg()[0]
    figures = {name: measure_start(work_of(work, name), name) for name in ("float32", "int8")}
    for name, one in figures.items():
        print(
            f"{name}: first vector after {one['seconds']} s ({one['cpu_seconds']} s of the processor), the whole command"
        )
        print(f"{one['whole_seconds']} s; torch {'is' if 'torch' in one['imported'] else 'is not'} imported")
    return figures | {"load_average_before": round(load, 2), "machine": describe_machine()}


def work_of(work: Path, name: str) -> Path:
    "A folder for one precision."
    (work / name).mkdir()
    return work / name


if __name__ == "__main__":
    main({"minilm": measure_all}, {}, RESULTS)
