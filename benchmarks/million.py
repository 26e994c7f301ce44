"""Every command at a million papers: seconds and peak memory; writes results/million.json and prints a table.

    python -m benchmarks.million --make /data/million               # papers and vectors, then `import` makes the run
    python -m benchmarks.million --run /data/million/run            # every command on it
    python -m benchmarks.million --run /data/run120k --papers 0704.0090 --only describe similar

The million is synthetic: 768 numbers a paper, seeded, in 2,000 clusters of different sizes and widths within 40 fields, written block by
block. A run that is named is changed: its commands write exports, pictures, a map and an index. Copy it first.

Each command runs in a process of its own. `peak_mb` is the most memory that the process held (`ru_maxrss` of the system), files that it
has mapped into memory included; `cpu_seconds` are those of all its threads. No command may take more than 2 GiB, and none may compare all pairs without being asked to.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.main_job import ROOT, name_processor

RESULTS = Path(__file__).parent / "results" / "million.json"
MOST_MB = 2048
USED = "used by this process:"
N_PAPERS, DIM, N_FIELDS, N_CLUSTERS, BLOCK = 1_000_000, 768, 40, 2000, 8192
WORDS = [
    "graph",
    "lattice",
    "neural",
    "quantum",
    "stellar",
    "galaxy",
    "proof",
    "manifold",
    "market",
    "protein",
    "kernel",
    "tensor",
    "planet",
    "neuron",
    "theorem",
    "laser",
    "polymer",
    "crystal",
    "photon",
    "cluster",
    "network",
    "spectrum",
    "entropy",
    "symmetry",
    "operator",
    "diffusion",
    "turbulence",
    "plasma",
    "genome",
    "robot",
    "language",
    "vision",
    "speech",
    "privacy",
    "auction",
    "queue",
    "cache",
    "compiler",
    "sensor",
    "antenna",
    "orbit",
    "comet",
    "dust",
    "halo",
    "boson",
    "lepton",
    "quark",
]


class Corpus:
    "Synthetic papers: a field and a cluster decide categories, words and the direction of a vector."

    def __init__(self, n_papers: int = N_PAPERS, dim: int = DIM, seed: int = 0):
        self.n_papers, self.dim, self.seed = n_papers, dim, seed
        draw = np.random.default_rng(seed)
        fields = draw.standard_normal((N_FIELDS, dim), dtype=np.float32)
        self.field_of = draw.integers(N_FIELDS, size=N_CLUSTERS)
        self.centers = fields[self.field_of] + draw.standard_normal((N_CLUSTERS, dim), dtype=np.float32)
        self.widths = draw.uniform(0.6, 1.5, N_CLUSTERS).astype(np.float32)
        sizes = draw.pareto(1.5, N_CLUSTERS) + 0.2
        self.shares = np.cumsum(sizes / sizes.sum())
        self.shares[-1] = 1

    def block(self, begin: int) -> tuple[np.ndarray, np.ndarray]:
        "Clusters and unit vectors of a block of papers, the same ones every time."
        draw = np.random.default_rng([self.seed, begin])
        n_rows = min(BLOCK, self.n_papers - begin)
        clusters = np.searchsorted(self.shares, draw.random(n_rows))
        vectors = draw.standard_normal((n_rows, self.dim), dtype=np.float32) * self.widths[clusters, None]
        vectors += self.centers[clusters]
        return clusters, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def table(self, begin: int, clusters: np.ndarray) -> pa.Table:
        "The papers of a block."
        draw = np.random.default_rng([self.seed, begin, 1])
        rows = np.arange(begin, begin + len(clusters))
        fields, words = self.field_of[clusters], np.array(WORDS)
        chosen = words[(clusters[:, None] * 7 + draw.integers(9, size=(len(rows), 30))) % len(words)]
        years = (2000 + fields % 24).tolist()
        columns = {
            "paper_id": [f"{1001 + row // 100_000:04d}.{row % 100_000:05d}" for row in rows.tolist()],
            "title": [f"{' '.join(one[:6])} {row}" for one, row in zip(chosen.tolist(), rows.tolist(), strict=True)],
            "abstract": [
                f"We study {' '.join(one)} in case {row}." for one, row in zip(chosen.tolist(), rows, strict=True)
            ],
            "categories": [
                [f"fd{one:02d}.C{cluster % 9}", "all.X"] for one, cluster in zip(fields, clusters, strict=True)
            ],
            "year": years,
        }
        return pa.table(columns)


def make_corpus(folder: Path, n_papers: int) -> tuple[Path, Path]:
    "Write papers.parquet and vectors.npy in float16, block by block."
    corpus, papers, vectors = Corpus(n_papers), folder / "papers.parquet", folder / "vectors.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with vectors.open("wb") as stream, pq.ParquetWriter(papers, corpus.table(0, np.zeros(1, int)).schema) as writer:
        header = {"descr": "<f2", "fortran_order": False, "shape": (n_papers, DIM)}
        np.lib.format.write_array_header_1_0(stream, header)
        for begin in range(0, n_papers, BLOCK):
            clusters, block = corpus.block(begin)
            stream.write(block.astype("<f2").tobytes())
            writer.write_table(corpus.table(begin, clusters))
    return papers, vectors


def measure(words: list[str], seconds: float) -> dict:
    "Run a command in a process of its own: seconds, peak memory, how it ended, and the last line that it printed."
    started = time.monotonic()
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TQDM_DISABLE": "1"},
    )
    try:
        output, code = process.communicate(timeout=seconds)[0], process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        output, code = process.communicate()[0], "timeout"
    took = {"seconds": round(time.monotonic() - started, 1), "cpu_seconds": None, "peak_mb": None}
    lines = [line for line in output.splitlines() if line]
    for line in (one for one in lines if one.startswith(USED)):
        peak, cpu = line.removeprefix(USED).split()
        took |= {"cpu_seconds": float(cpu), "peak_mb": int(peak)}
    shown = [line for line in lines if not line.startswith(USED)]
    return took | {"code": code, "last": shown[-1][:300] if shown else ""}


REPORT = f"""
import atexit, resource, sys
def report():
    used = resource.getrusage(resource.RUSAGE_SELF)
    print({USED!r}, used.ru_maxrss // 1024, round(used.ru_utime + used.ru_stime, 1), file=sys.stderr)
atexit.register(report)
"""
COMMAND = f"""{REPORT}
from arxiv_embeddings.cli.main import main
main()
"""
COMPACT = f"""{REPORT}
from arxiv_embeddings.runs.append import compact_run
from arxiv_embeddings.runs.store import RunWriter
with RunWriter(sys.argv[1]) as writer:
    print(compact_run(writer, 4 * writer.part_size), "parts fewer")
"""


def list_commands(run: Path, paper: str, text: str | None, extra: list[str]) -> dict[str, list[str]]:
    "The commands, by the name in the table."
    command = [sys.executable, "-c", COMMAND]
    commands = {
        "describe": ["describe", run],
        "similar, no index": ["similar", run, paper],
        "index": ["index", run],
        "similar": ["similar", run, paper],
        "search by words, first": ["search", run, "quantum neural networks", "--by", "words"],
        "search by words": ["search", run, "quantum neural networks", "--by", "words"],
        **({"search": ["search", run, text]} if text else {}),
        "evaluate": ["evaluate", run, *extra],
        **{f"export {form}": ["export", run, "--to", form] for form in ("npy", "float16", "int8", "parquet", "flat")},
        **{f"plot {one}": ["plot", run, "--only", one] for one in ("cosine_spread", "heat_map", "map")},
        "plot one paper": ["plot", run, "--only", "heat_map", "--paper", paper],
        "map": ["map", run],
        "verify": ["verify", run],
    }
    return {name: [*command, *map(str, words)] for name, words in commands.items()} | {
        "compact, four parts into one": [sys.executable, "-c", COMPACT, str(run)]
    }


def measure_run(run: Path, options: argparse.Namespace) -> dict[str, dict]:
    "Measure every command; exports are removed after each, for the disk."
    extra = ["--relations", str(options.relations)] if options.relations else []
    found = {}
    for name, words in list_commands(run, options.paper, options.text, extra).items():
        if options.only and name.split()[0].strip(",") not in options.only:
            continue
        found[name] = measure(words, options.seconds)
        print(f"{name:30} {json.dumps(found[name], ensure_ascii=False)}", flush=True)
        for path in (run / "export").glob("*.*") if name.startswith("export") else ():
            path.unlink()
        if name == "export flat":
            for path in (run / "export" / "flat").glob("*.parquet"):
                path.unlink()
    return found


def print_table(figures: dict[str, dict]) -> None:
    "Print the figures of all runs as Markdown."
    print("| command | " + " | ".join(f"{name}: s | CPU s | MB" for name in figures) + " |")
    print("| --- |" + " ---: | ---: | ---: |" * len(figures))
    for command in dict.fromkeys(one for figures_of in figures.values() for one in figures_of["commands"]):
        cells = []
        for figures_of in figures.values():
            one = figures_of["commands"].get(command, {})
            over = " (over)" if (one.get("peak_mb") or 0) > MOST_MB else ""
            failed = f" (exit {one['code']})" if one.get("code") else ""
            cells += [f"{one.get('seconds', '-')}{failed}", str(one.get("cpu_seconds") or "-")]
            cells.append(f"{one.get('peak_mb') or '-'}{over}")
        print(f"| {command} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", type=Path, help="folder to write the synthetic papers and their run to")
    parser.add_argument("--n", type=int, default=N_PAPERS, help="synthetic papers")
    parser.add_argument("--run", type=Path, help="run folder to measure; it is changed")
    parser.add_argument("--name", help="of the run in the table; default: its number of papers")
    parser.add_argument("--paper", default="1001.00007", help="id of a paper of the run")
    parser.add_argument("--text", help="a query, if the run's model can be loaded")
    parser.add_argument("--relations", type=Path, help="related papers, for evaluate")
    parser.add_argument("--only", nargs="*", help="first words of the commands to measure")
    parser.add_argument("--seconds", type=float, default=1200, help="the longest time for a command")
    options = parser.parse_args()
    figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    commands = {}
    if options.make:
        make = f"from pathlib import Path\nfrom benchmarks.million import make_corpus\nmake_corpus(Path({str(options.make)!r}), {options.n})"
        subprocess.run([sys.executable, "-c", make], cwd=ROOT, check=True)
        options.run = options.run or options.make / "run"
        words = ["import", options.make / "papers.parquet", options.make / "vectors.npy", "--out", options.run]
        commands["import"] = measure([sys.executable, "-c", COMMAND, *map(str, words)], options.seconds)
        print(f"{'import':30} {json.dumps(commands['import'], ensure_ascii=False)}", flush=True)
        (options.make / "vectors.npy").unlink()
    elif options.run is None:
        return print_table(figures)
    commands |= measure_run(options.run, options)
    name = options.name or f"{json.loads((options.run / 'metadata.json').read_text())['n_papers']:,}"
    before = figures.get(name, {}).get("commands", {})
    figures[name] = {"commands": before | commands, "processor": name_processor(), "cores": os.cpu_count()}
    RESULTS.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    print_table(figures)


if __name__ == "__main__":
    main()
