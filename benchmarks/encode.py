"""How fast texts become vectors: this package beside others, in one run, on real abstracts.

Every contender is a process of its own that has its model loaded and waits. Round after round each gets the same
texts, one after the other, the order changing from round to round: whatever slows the machine slows all of them.
Real data is looked for in ARXIV_EMBEDDINGS_DATA, else in ../shared/data.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from contenders import CONTENDERS, MAX_TOKENS, MODELS, REFERENCE

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("ARXIV_EMBEDDINGS_DATA", ROOT.parent / "shared" / "data"))
CONTENDERS_FILE = Path(__file__).parent / "contenders.py"


class WorkerError(Exception):
    "A contender that cannot take part, with the reason in one line."


class Worker:
    "A contender in a process of its own."

    def __init__(self, name: str, model_file: Path, device: str):
        self.name = name
        self.log = tempfile.TemporaryFile("w+", errors="replace")
        command = [sys.executable, str(CONTENDERS_FILE), "serve", name, "--model", str(model_file), "--device", device]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=worker_environment()
        )
        self.seconds_load = self.read()["seconds_load"]

    def read(self) -> dict[str, Any]:
        "Wait for an answer; raises `WorkerError` where there is none."
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"its process ended: {self.last_words()}"}
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def ask(self, **order: Any) -> dict[str, Any]:
        "Give an order and wait for the answer."
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `read` says why
        return self.read()

    def last_words(self) -> str:
        "The last line of the log."
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        return lines[-1] if lines else "no reason given"

    def stop(self) -> dict[str, Any]:
        "End the process and return its peak memory."
        answer = self.ask(do="stop")
        self.process.communicate(timeout=60)
        return answer


def worker_environment() -> dict[str, str]:
    "Nothing is fetched from a hub while time is measured."
    return os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


# Pure parts


def count_operations(lengths: np.ndarray, model: dict[str, Any]) -> float:
    """Floating-point operations of the matrix products that texts of these lengths need, padding left out.

    Of each layer and token: four products with hidden x hidden weights, two with hidden x intermediate ones, two with
    an adapter's; of each layer and text: scores and weighted sums, tokens x tokens. Two operations per product.
    """
    hidden, intermediate = model["hidden_size"], model["intermediate_size"]
    per_token = 8 * hidden * hidden + 4 * hidden * intermediate
    if model["reduction"]:
        per_token += 4 * hidden * (hidden // model["reduction"])
    lengths = np.asarray(lengths, dtype=np.float64)
    return float(model["num_hidden_layers"] * (per_token * lengths.sum() + 4 * hidden * (lengths**2).sum()))


def compare_rounds(reference: list[float], seconds: list[float]) -> dict[str, float]:
    "How many times faster than the reference: ratio of the sums, its 95 % bootstrap interval, extreme rounds."
    reference, seconds = np.asarray(reference), np.asarray(seconds)
    draws = np.random.default_rng(0).integers(len(seconds), size=(2000, len(seconds)))
    low, high = np.quantile(reference[draws].sum(axis=1) / seconds[draws].sum(axis=1), [0.025, 0.975])
    rounds = reference / seconds
    return {
        "ratio": float(reference.sum() / seconds.sum()),
        "low": float(low),
        "high": float(high),
        "min": float(rounds.min()),
        "max": float(rounds.max()),
    }


def compare_vectors(reference: np.ndarray, vectors: np.ndarray) -> dict[str, float]:
    """Cosine of each vector with the reference's, as they are and with the reference's mean taken from both.

    Vectors of random weights lie close to their mean: only without it do they show that the same was computed.
    """

    def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)

    mean = reference.mean(axis=0)
    raw, centred = cosines(reference, vectors), cosines(reference - mean, vectors - mean)
    return {"min": float(raw.min()), "centred_min": float(centred.min()), "centred_mean": float(centred.mean())}


# Measuring


def start_workers(names: list[str], model_file: Path, device: str) -> tuple[list[Worker], dict[str, str]]:
    "Start contenders one by one; also name those that cannot take part, and why."
    workers, left_out = [], {}
    for name in names:
        try:
            workers.append(Worker(name, model_file, device))
        except WorkerError as error:
            left_out[name] = str(error)
            print(f"left out: {CONTENDERS[name].label}: {error}", file=sys.stderr)
    return workers, left_out


def run_rounds(
    workers: list[Worker], texts_file: Path, n_rounds: int, n_texts: int
) -> dict[str, list[float]]:  # seconds of each round, by contender
    "Give every contender the same texts, round after round, in rotating order."
    seconds = {worker.name: [] for worker in workers}
    for number in range(n_rounds):
        start = (number + 1) * n_texts
        first = number % len(workers)
        for worker in workers[first:] + workers[:first]:
            answer = worker.ask(do="encode", texts=str(texts_file), start=start, stop=start + n_texts)
            seconds[worker.name].append(answer["seconds"])
    return seconds


def check_vectors(workers: list[Worker], texts_file: Path, n_texts: int, folder: Path) -> dict[str, dict[str, float]]:
    "Let every contender embed the first texts, which warms it up too, and compare with the reference's vectors."
    vectors = {}
    for worker in workers:
        kept = folder / f"{worker.name}.npy"
        worker.ask(do="encode", texts=str(texts_file), start=0, stop=n_texts, keep=str(kept))
        vectors[worker.name] = np.load(kept)
    return {name: compare_vectors(vectors[REFERENCE], found) for name, found in vectors.items()}


def count_tokens(texts: list[str], folder: Path) -> np.ndarray:
    "Tokens of each text after the cut."
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return np.minimum([len(one.ids) for one in tokenizer.encode_batch(texts)], MAX_TOKENS)


def write_texts(path: Path, separator: str, n_texts: int, papers_file: Path) -> list[str]:
    "Write texts of papers drawn at random, always the same ones."
    from arxiv_embeddings.papers import make_texts, read_papers

    table = read_papers(papers_file).table()
    chosen = np.random.default_rng(0).permutation(len(table))
    texts = make_texts(table.take(np.resize(chosen, n_texts)), separator=separator)
    path.write_text(json.dumps(texts), encoding="utf-8")
    return texts


def measure_model(name: str, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    "Prepare a model and measure all contenders on it."
    subprocess.run(
        [sys.executable, str(CONTENDERS_FILE), "prepare", name, "--work", str(work)],
        check=True,
        env=worker_environment(),
        stdout=sys.stderr,
    )
    model = json.loads((work / f"{name}.json").read_text(encoding="utf-8"))
    texts_file, n_texts = work / f"{name}_texts.json", options.texts_per_round
    texts = write_texts(texts_file, model["separator"], (options.rounds + 1) * n_texts, options.papers)
    names = [one for one in CONTENDERS if options.device in CONTENDERS[one].devices]
    workers, left_out = start_workers(names, work / f"{name}.json", options.device)
    cosines = check_vectors(workers, texts_file, n_texts, work)
    seconds = run_rounds(workers, texts_file, options.rounds, n_texts)
    peaks = {worker.name: worker.stop()["peak_bytes"] for worker in workers}
    lengths = count_tokens(texts[n_texts:], Path(model["folder"]))
    table = {
        contender: compare_rounds(seconds[REFERENCE], found)
        | {
            "papers_per_second": len(lengths) / sum(found),
            "peak_megabytes": peaks[contender] / 1e6,
            "cosines": cosines[contender],
            "seconds": [round(one, 4) for one in found],
        }
        for contender, found in seconds.items()
    }
    return {"mean_tokens": float(lengths.mean()), "contenders": table, "left_out": left_out}


def print_table(name: str, measured: dict[str, Any]) -> None:
    "Print a model's table."
    print(f"\n{name}, {measured['mean_tokens']:.0f} tokens a paper on average")
    print(f"{'':40}{'papers/s':>9}{'ratio':>7}{'95 %':>13}{'peak MB':>9}{'cosine':>9}")
    for contender, row in measured["contenders"].items():
        interval = f"{row['low']:.2f}-{row['high']:.2f}"
        print(
            f"{CONTENDERS[contender].label:40}{row['papers_per_second']:9.1f}{row['ratio']:7.2f}{interval:>13}"
            f"{row['peak_megabytes']:9.0f}{row['cosines']['centred_min']:9.4f}"
        )


def read_options() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--texts-per-round", type=int, default=64)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--papers", type=Path, default=DATA / "arxiv_cs_10k.csv", help="another file of papers")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "encode.json")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    "Measure, print, and write the results."
    results = {"models": {}}
    with tempfile.TemporaryDirectory() as work:
        for name in options.models:
            results["models"][name] = measure_model(name, options, Path(work))
            print_table(name, results["models"][name])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    given = read_options()
    if not given.papers.exists():
        sys.exit(f"no papers in {given.papers}: set ARXIV_EMBEDDINGS_DATA, or give a file with --papers")
    main(given)
