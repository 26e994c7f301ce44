"""What int8 and bfloat16 change on 10,000 real abstracts, in vectors and in figures; writes results/precisions.json.

Every precision embeds the whole file with the default model through the command line, and is measured by the same
figures as `main_job.py`. A folder given as the first argument keeps the runs, and those that are there are continued.
"""

import json
import sys
from pathlib import Path

from arxiv_embeddings.encoders.vectors import measure_agreement
from arxiv_embeddings.files.machine import has_bfloat16
from arxiv_embeddings.runs.store import open_run
from benchmarks.main_job import DATA, REFERENCE, flatten, measure_corrections, run_cli, start

RESULTS = Path(__file__).parent / "results" / "precisions.json"
TOLERANCE = 0.005  # between a figure in int8 and the reference
MEAN_COSINE = 0.997  # between int8 and float32, at least


def measure(precision: str, folder: Path) -> dict:
    "Embed and evaluate in one precision."
    run_cli("embed", DATA / "arxiv_cs_10k.csv", "--out", folder, "--precision", precision, "--device", "cpu", "--json")
    evaluated = run_cli("evaluate", folder, "--relations", DATA / "arxiv_cs_10k_relations.tsv", "--json")
    figures = flatten(json.loads(evaluated)) | measure_corrections(folder)
    return {"figures": {name: round(figures[name], 4) for name in REFERENCE}}


def main(folder: Path) -> None:
    "Measure, print, compare, write."
    precisions = ["float32", "int8"] + (["bfloat16"] if has_bfloat16() else [])
    results = {precision: measure(precision, folder / precision) for precision in precisions}
    exact = open_run(folder / "float32").embeddings()
    for precision in precisions[1:]:
        results[precision] |= measure_agreement(open_run(folder / precision).embeddings(), exact)
    print(f"{'':42}{'reference':>12}" + "".join(f"{precision:>12}" for precision in precisions))
    for name in REFERENCE:
        figures = "".join(f"{results[precision]['figures'][name]:12.4f}" for precision in precisions)
        print(f"{name:42}{REFERENCE[name]:12.4g}{figures}")
    for name in ("mean_cosine", "smallest_cosine"):
        print(f"{name:66}" + "".join(f"{results[precision][name]:12.4f}" for precision in precisions[1:]))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    off = [name for name in REFERENCE if abs(results["int8"]["figures"][name] - REFERENCE[name]) > TOLERANCE]
    if off or results["int8"]["mean_cosine"] < MEAN_COSINE:
        sys.exit(f"int8 is too far off: {', '.join(off) or 'mean cosine'}")


if __name__ == "__main__":
    start(main)
