"""How fast texts become vectors: this package beside others, in one run, on real abstracts.

Every contender is a process of its own that has its model loaded and waits. Round after round each gets the same
texts, one after the other, the order changing from round to round: whatever slows the machine slows all of them. The
machine's own rate of matrix products is measured in the same rounds. Then the steady rate in longer rounds, which the slow
contenders would take too long for, beside matrix products; and how cost grows with papers and lengths.

Speed is worth little without quality. The texts of the timed rounds are papers with known relations, and each contender's
vectors of them are kept: how near they are to the reference's, and how far up a related paper stands among the ten nearest.

Peers that cannot be installed beside this package run in `.venv-peers`, which `make bench` makes, or with the Python that
ARXIV_EMBEDDINGS_PEERS names. All of them get the same weights, and nothing is fetched from a hub.

Real data is looked for in ARXIV_EMBEDDINGS_DATA, else in ../shared/data. Takes about an hour on two cores, and 20 GB of
memory. `--parts`, `--models` and `--contenders` measure less, and keep what was measured before with the same versions.
`--quick` takes a few minutes and writes nothing unless told where to.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import CONTENDERS, GEMM, LIBRARIES, MAX_TOKENS, MODELS, REFERENCE, count_cores, list_versions

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("ARXIV_EMBEDDINGS_DATA", ROOT.parent / "shared" / "data"))
PEERS_PYTHON = Path(os.environ.get("ARXIV_EMBEDDINGS_PEERS", ROOT / ".venv-peers" / "bin" / "python"))
ROUNDS = {"minilm": 5, "specter2": 3}
# papers of all timed rounds; with fewer, the streams' waiting for each other at a round's end would show more
PAPERS = {"minilm": 1000, "specter2": 144}
N_OTHERS = 5_000  # papers that a static model is distilled with, and quantization calibrated on: none that are timed
N_NEIGHBORS = 10
STEADY_ROUNDS, STEADY_TEXTS = 4, {"minilm": 512, "specter2": 256}
GPU_FACTOR = 32  # times as many texts a round
GROWTH_MODEL = "minilm"
GROWTH_PAPERS = (200, 1_000, 10_000)
LENGTHS = (32, 64, 128, 256, 512)
TOKENS_PER_LENGTH = 16_384  # in a round
SEPARATORS = {"minilm": " [SEP] ", "specter2": "[SEP]"}  # between title and abstract
TITLES = {
    "minilm": "all-MiniLM-L6-v2",
    "specter2": "SPECTER2's shape (BERT-base, adapter, random weights)",
}
VERSIONS = ("arxiv-embeddings", *LIBRARIES)
INSTRUCTIONS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "i8mm",
    "bf16",
)


class WorkerError(Exception):
    "A contender that cannot take part, with the reason in one line."


class Worker:
    "A contender in a process of its own."

    def __init__(
        self,
        name: str,  # a contender, or `GEMM`
        model_file: Path,  # what `contenders.py prepare` wrote
        device: str,  # cpu or cuda
    ):
        self.name = name
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (as long as the process)
        command = [find_python(name), "-m", "benchmarks.contenders", "serve", name]
        self.process = subprocess.Popen(
            [*command, "--model", str(model_file), "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment(model_file),
            cwd=ROOT,
        )
        try:
            ready = self.read()
        except WorkerError:
            self.kill()
            raise
        self.seconds_load, self.facts = ready["seconds_load"], ready["facts"]

    def read(self) -> dict[str, Any]:
        "Wait for an answer; raises `WorkerError` where there is none."
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": self.last_words()}
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def ask(self, **order: Any) -> dict[str, Any]:
        "Give an order and wait for the answer."
        try:
            self.process.stdin.write(json.dumps(order, default=str) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `read` says why
        return self.read()

    def last_words(self) -> str:
        "Why the process ended: its exit status and the last line of its log."
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        return ": ".join([f"its process ended with {self.process.wait()}", *lines[-1:]])

    def stop(self) -> dict[str, Any]:
        "End the process and return its peak memory."
        answer = self.ask(do="stop")
        self.process.communicate()
        self.log.close()
        return answer

    def kill(self) -> None:
        "End the process whatever it does."
        self.process.kill()
        self.process.communicate()
        self.log.close()


def find_python(name: str) -> str:
    "The Python of a contender's environment; raises `WorkerError` if the peers have none."
    if name not in CONTENDERS or not CONTENDERS[name].peer:
        return sys.executable
    if not PEERS_PYTHON.exists():
        raise WorkerError(f"no {PEERS_PYTHON}: `make bench` makes the environment of the peers")
    return str(PEERS_PYTHON)


def environment(model_file: Path) -> dict[str, str]:
    "Nothing is fetched from a hub while time is measured; what we convert is kept beside the benchmark's models."
    cache = str(model_file.parent / "cache")
    return os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "ARXIV_EMBEDDINGS_CACHE": cache}


# Figures from measurements


def count_operations(
    lengths: np.ndarray,  # tokens of each text, (n_texts,)
    model: dict[str, Any],  # its shape
) -> float:
    """Floating-point operations of the matrix products that texts of these lengths need, padding left out.

    Of each layer and token: four products with hidden x hidden weights, two with hidden x intermediate ones, two with
    an adapter's; of each layer and text: scores and weighted sums, tokens x tokens. Two operations for each of them.
    """
    hidden, intermediate = model["hidden_size"], model["intermediate_size"]
    per_token = 8 * hidden * hidden + 4 * hidden * intermediate
    if model["reduction"]:
        per_token += 4 * hidden * (hidden // model["reduction"])
    lengths = np.asarray(lengths, dtype=np.float64)
    return float(model["num_hidden_layers"] * (per_token * lengths.sum() + 4 * hidden * (lengths**2).sum()))


def compare_rounds(
    reference: list[float],  # seconds of the reference in each round
    seconds: list[float],  # of the contender
) -> dict[str, float]:  # above 1 is faster than the reference
    "How many times faster than the reference: ratio of the sums, its 95 % bootstrap interval, extreme rounds."
    theirs, ours = np.asarray(reference), np.asarray(seconds)
    draws = np.random.default_rng(0).integers(len(ours), size=(2000, len(ours)))
    low, high = np.quantile(theirs[draws].sum(axis=1) / ours[draws].sum(axis=1), [0.025, 0.975])
    figures = {
        "ratio": theirs.sum() / ours.sum(),
        "low": low,
        "high": high,
        "min": (theirs / ours).min(),
        "max": (theirs / ours).max(),
    }
    return {name: round(float(value), 3) for name, value in figures.items()}


def compare_vectors(
    reference: np.ndarray,  # float32, (n_texts, dim)
    vectors: np.ndarray,  # the same texts', float32, (n_texts, dim)
) -> dict[str, float]:  # cosines in [-1, 1], 1 is the same direction
    """Cosine of each vector with the reference's, as they are and with the reference's mean taken from both.

    Vectors of random weights lie close to their mean: only without it do they show that the same was computed.
    """

    def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)

    mean = reference.mean(axis=0)
    found = {"": cosines(reference, vectors), "centered_": cosines(reference - mean, vectors - mean)}
    figures = {f"{kind}{name}": getattr(one, name)() for kind, one in found.items() for name in ("mean", "min")}
    return {name: round(float(value), 6) for name, value in figures.items()}


def find_rates(
    measured: list[dict[str, float]],  # operations per second by library and precision, of each round
) -> dict[str, float]:  # by precision: the better library's mean over the rounds
    "The machine's rate of matrix products in each precision."
    rates: dict[str, float] = {}
    for name in measured[0]:
        precision = name.split()[-1]
        rates[precision] = max(rates.get(precision, 0.0), float(np.mean([one[name] for one in measured])))
    return rates


# Quality


def score_relations(
    vectors: np.ndarray,  # of the papers, float32, (n_papers, dim)
    paper_ids: list[str],
    relations: Any,  # pandas DataFrame of pairs among these papers: `src`, `dst`, `kind`
) -> dict[str, float]:  # MRR@10 of all pairs and of each kind of them, by cosine, 1 is best
    "How far up a related paper stands among the ten nearest."
    from arxiv_embeddings.explore.evaluation import list_related, measure_related

    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    neighbors = np.argsort(-cosines, axis=1, kind="stable")[:, :N_NEIGHBORS]
    pairs = {"all": relations} | dict(list(relations.groupby("kind")))
    scores = {}
    for kind, chosen in pairs.items():
        ranks, _ = measure_related(neighbors, np.arange(len(vectors)), paper_ids, list_related(chosen))
        scores[kind] = round(float(np.mean(ranks.values)), 4)
    return scores


def compare_with_peers(
    rows: dict[str, dict[str, Any]],  # the contenders' figures
) -> list[dict[str, Any]]:  # each of ours in int8 beside each peer in int8, the fastest peer first
    "Compare at equal precision: speed with its interval, and what quality both have."
    found = []
    for name, row in rows.items():
        if row["precision"] != "int8" or not CONTENDERS[name].ours:
            continue
        for peer, other in rows.items():
            if other["precision"] == "int8" and CONTENDERS[peer].peer:
                compared = compare_rounds(other["seconds"], row["seconds"])
                quality = {
                    f"{key}_{who}": one["cosines"]["centered_mean"]
                    if key == "centered"
                    else one["relations"].get("all")
                    for key in ("centered", "mrr")
                    for who, one in (("ours", row), ("peer", other))
                }
                found.append({"ours": name, "peer": peer} | compared | quality)
    return sorted(found, key=lambda one: one["ratio"])


# Texts


def choose_related(
    paper_ids: list[str],  # of a file
    relations: Any,  # pandas DataFrame of pairs: `src`, `dst`, `kind`
    n_papers: int,  # at most those of the file
) -> np.ndarray:  # rows of the file in random order, always the same one
    "Choose papers by whole pairs of related ones, and any others when these do not suffice."
    random = np.random.default_rng(0)
    place = {paper_id: row for row, paper_id in enumerate(paper_ids)}
    chosen: dict[int, None] = {}
    for number in random.permutation(len(relations)):
        pair = [place.get(relations[end].iloc[number]) for end in ("src", "dst")]
        new = [row for row in dict.fromkeys(pair) if row not in chosen]
        if None not in pair and len(chosen) + len(new) <= n_papers:
            chosen |= dict.fromkeys(new)
    for row in random.permutation(len(paper_ids)):
        if len(chosen) >= n_papers:
            break
        chosen.setdefault(int(row))
    return random.permutation(list(chosen))


class Texts:
    "The papers that contenders embed: those of the timed rounds, others to warm up and to calibrate with."

    def __init__(
        self,
        path: Path,  # a file of papers; relations are in a file beside it, if there are any
        separator: str,  # between title and abstract
        n_papers: int,  # of the timed rounds
        n_warm: int,  # to warm up
        n_others: int = N_OTHERS,  # to distill and calibrate with
    ):
        from arxiv_embeddings.explore.evaluation import read_relations
        from arxiv_embeddings.papers.corpus import read_papers
        from arxiv_embeddings.papers.texts import make_texts

        table = read_papers(path).table()
        file_ids = table["paper_id"].to_pylist()
        n_papers = min(n_papers, len(table))
        beside = path.with_name(f"{path.stem}_relations.tsv")
        relations = read_relations(beside) if beside.exists() else None
        random = np.random.default_rng(0)
        if relations is None:
            rows = random.permutation(len(table))[:n_papers]
        else:
            rows = choose_related(file_ids, relations, n_papers)
        others = np.setdiff1d(np.arange(len(table)), rows)
        others = random.permutation(others if len(others) else rows)
        rows_of = (rows, np.resize(others, n_warm), others[n_warm:][:n_others])
        self.timed, self.warm, self.others = (
            make_texts(table.take(some), "title+abstract", separator) for some in rows_of
        )
        self.paper_ids = [file_ids[row] for row in rows]
        self.relations = relations
        if relations is not None:
            inside = relations["src"].isin(self.paper_ids) & relations["dst"].isin(self.paper_ids)
            self.relations = relations[inside & (relations["src"] != relations["dst"])]

    def score(self, vectors: np.ndarray) -> dict[str, float]:
        "Relations of the timed papers; empty where none are known."
        return {} if self.relations is None else score_relations(vectors, self.paper_ids, self.relations)


def read_texts(
    path: Path,  # a file of papers
    separator: str,  # between title and abstract
    n_texts: int,  # begins anew where there are fewer papers
    rule: str = "title+abstract",  # what a text is made of
) -> list[str]:
    "The texts of papers in random order, always the same one."
    from arxiv_embeddings.papers.corpus import read_papers
    from arxiv_embeddings.papers.texts import make_texts

    table = read_papers(path).table()
    chosen = np.resize(np.random.default_rng(0).permutation(len(table)), n_texts)
    return make_texts(table.take(chosen), rule, separator)


def load_tokenizer(model: dict[str, Any]) -> Any:
    "A model's tokenizer, that neither cuts nor pads."
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model["folder"]) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def count_tokens(texts: list[str], tokenizer: Any) -> np.ndarray:
    "Tokens of each text after the cut."
    return np.minimum([len(one.ids) for one in tokenizer.encode_batch(texts)], MAX_TOKENS)


def cut_texts(
    abstracts: list[str],  # real ones
    n_tokens: int,  # of each text, special ones included
    n_texts: int,
    tokenizer: Any,  # from `load_tokenizer`
) -> list[str]:
    "Texts of exactly so many tokens: abstracts joined to be long enough, and cut at the end of a token."
    texts = []
    for number in range(n_texts):
        joined = " ".join(abstracts[(number + more) % len(abstracts)] for more in range(2 + n_tokens // 64))
        end = tokenizer.encode(joined, add_special_tokens=False).offsets[n_tokens - 3][1]
        texts.append(joined[:end])
    return texts


def write_texts(path: Path, texts: list[str]) -> Path:
    "Write texts for the workers."
    path.write_text(json.dumps(texts), encoding="utf-8")
    return path


# Measuring


def prepare_model(
    name: str,  # of a model
    options: argparse.Namespace,  # the command line
    work: Path,  # for its files
    others: list[str] | None = None,  # texts that are not timed; `None`: no exports for other libraries
) -> tuple[Path, dict[str, Any]]:  # the file of what is known of it, and its content
    "Make a model's files, in processes that end."
    model_file = work / f"{name}.json"
    if options.work and model_file.exists():  # of an earlier run, whole
        return model_file, json.loads(model_file.read_text(encoding="utf-8"))
    steps = {"prepare": sys.executable}
    arguments = [name, "--work", str(work)]
    if others and options.device == "cpu":
        arguments += ["--others", str(write_texts(work / f"{name}_others.json", others))]
        steps |= {"prepare-peers": str(PEERS_PYTHON)} if PEERS_PYTHON.exists() else {}
    for step, python in steps.items():
        command = [python, "-m", "benchmarks.contenders", step, *arguments]
        found = subprocess.run(command, env=environment(model_file), capture_output=True, text=True, cwd=ROOT)
        if found.returncode:
            model_file.unlink(missing_ok=True)
            sys.exit(f"{name} cannot be prepared: {(found.stderr.strip() or 'no reason given').splitlines()[-1]}")
    return model_file, json.loads(model_file.read_text(encoding="utf-8"))


class Race:
    "All contenders on one model, loaded and waiting."

    def __init__(
        self,
        names: list[str],  # contenders, and `GEMM`
        model_file: Path,  # from `prepare_model`
        device: str,  # cpu or cuda
    ):
        self.left_out: dict[str, str] = {}  # contender -> why
        self.others: dict[str, list[float]] = {}  # contender -> cores that others kept busy in each of its rounds
        self.workers: list[Worker] = []
        for name in names:
            try:
                self.workers.append(Worker(name, model_file, device))
            except WorkerError as error:
                self.leave_out(name, error)

    def leave_out(self, name: str, error: WorkerError) -> None:
        "Go on without a contender; nothing can be compared without the reference."
        label = CONTENDERS[name].label if name in CONTENDERS else "the rate of matrix products"
        self.left_out[name] = str(error)
        self.workers = [worker for worker in self.workers if worker.name != name]
        if name == REFERENCE:
            self.stop()
            sys.exit(f"{label}: {error}")
        print(f"left out: {label}: {error}", file=sys.stderr)

    def give(self, worker: Worker, **order: Any) -> dict[str, Any] | None:
        "Ask a worker; `None` where it fails, and it takes part no more."
        try:
            return worker.ask(**order)
        except WorkerError as error:
            worker.kill()
            self.leave_out(worker.name, error)
            return None

    def warm_up(self, texts_file: Path, n_texts: int) -> None:
        """Let all embed some texts, which is not timed.

        Engines prepare for each shape of a batch when they meet it first, which a few hundred papers show and thousands do not.
        """
        for worker in [one for one in self.workers if one.name != GEMM]:
            self.give(worker, do="encode", texts=texts_file, start=0, stop=n_texts)

    def run(
        self,
        slices: list[tuple[Path, int, int]],  # file of texts, first and last of them plus one, for each round
        folder: Path | None = None,  # for each contender's vectors
    ) -> tuple[dict[str, list[float]], list[dict[str, float]]]:  # seconds by contender, rates of matrix products
        "Give every contender the same texts, round after round, in rotating order; `others` keeps who else worked."
        seconds: dict[str, list[float]] = {worker.name: [] for worker in self.workers}
        rates = []
        for number, (texts_file, start, stop) in enumerate(slices):
            first = number % len(self.workers)
            for worker in self.workers[first:] + self.workers[:first]:
                if worker.name == GEMM:
                    answer = self.give(worker, do=GEMM)
                    rates += [answer["rates"]] if answer else []
                    continue
                order = {"texts": texts_file, "start": start, "stop": stop, "times": CONTENDERS[worker.name].times}
                if folder:
                    order["keep"] = folder / f"{worker.name}_{number}.npy"
                if answer := self.give(worker, do="encode", **order):
                    seconds[worker.name].append(answer["seconds"])
                    self.others.setdefault(worker.name, []).append(round(answer["others"], 2))
        return {name: found for name, found in seconds.items() if len(found) == len(slices)}, rates

    def stop(self) -> dict[str, dict[str, int]]:
        "End all processes; the peak memory of each."
        workers, self.workers = self.workers, []
        peaks = {}
        for worker in workers:
            try:
                peaks[worker.name] = worker.stop()
            except WorkerError:
                worker.kill()
        return peaks


def load_first(names: list[str], model_file: Path, device: str) -> dict[str, float]:
    "Seconds of our first loads, which may convert the model and keep the result, in processes of their own."
    seconds = {}
    for name in names:
        if CONTENDERS[name].ours:
            try:
                worker = Worker(name, model_file, device)
                seconds[name] = round(worker.seconds_load, 2)
                worker.stop()
            except WorkerError:
                continue  # it will fail again in the race, which says why
    return seconds


def measure_model(name: str, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    "Measure all contenders on one model."
    n_rounds = options.rounds or ROUNDS[name]
    n_texts = max(1, (options.papers or PAPERS[name] * (GPU_FACTOR if options.device == "cuda" else 1)) // n_rounds)
    texts = Texts(options.file, SEPARATORS[name], n_rounds * n_texts, n_texts, 300 if options.quick else N_OTHERS)
    model_file, model = prepare_model(name, options, work, texts.others)
    texts_file = write_texts(work / f"{name}_texts.json", texts.timed)
    slices = [(texts_file, start, start + n_texts) for start in range(0, len(texts.timed), n_texts)]
    names = choose_contenders(options.device, chosen=options.contenders)
    first_loads = load_first(names, model_file, options.device)
    race = Race([*names, GEMM], model_file, options.device)
    try:
        race.warm_up(write_texts(work / f"{name}_warm.json", texts.warm), n_texts)
        seconds, rates = race.run(slices, work)
        facts = {one.name: one.facts | {"seconds_load": round(one.seconds_load, 2)} for one in race.workers}
    finally:
        peaks = race.stop()
    names = [contender for contender in seconds if contender != GEMM]
    vectors = {one: np.concatenate([np.load(work / f"{one}_{n}.npy") for n in range(len(slices))]) for one in names}
    for contender, found in vectors.items():
        # a table has fewer numbers than its model, so tables are compared with ours
        other = next(
            (one for one in (REFERENCE, "ours_static") if vectors.get(one, found[0]).shape == found.shape), None
        )
        facts[contender] |= {"cosines": compare_vectors(vectors[other], found) if other else {}, "cosines_with": other}
        facts[contender] |= {"relations": texts.score(found)}
        facts[contender] |= {"seconds_first_load": first_loads.get(contender), "others": race.others[contender]}
        facts[contender] |= in_megabytes(peaks.get(contender, {}))
    lengths = count_tokens(texts.timed, load_tokenizer(model))
    described = {"title": TITLES[name], "n_rounds": len(slices), "n_texts": n_texts, "n_papers": len(texts.timed)}
    if texts.relations is not None:
        described["n_pairs"] = {"all": len(texts.relations)} | texts.relations["kind"].value_counts().to_dict()
    return described | summarize(seconds, rates, lengths, count_operations(lengths, model), facts, race.left_out)


def measure_steady(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    "The rate of our engines in a long run, beside that of matrix products: model -> contender -> figures."
    steady = {}
    for name in options.models:
        model_file, model = prepare_model(name, options, work)
        n_texts, n_rounds = STEADY_TEXTS[name], STEADY_ROUNDS
        if options.quick:
            n_texts, n_rounds = options.papers, 1
        texts = read_texts(options.file, model["separator"], (n_rounds + 1) * n_texts)
        texts_file = write_texts(work / f"{name}_steady.json", texts)
        slices = [(texts_file, start, start + n_texts) for start in range(0, len(texts), n_texts)]
        race = Race(
            [one for one in choose_contenders(options.device) if one.startswith("ours_") and one != "ours_static"]
            + [GEMM],
            model_file,
            options.device,
        )
        try:
            race.run(slices[:1])  # warms up
            seconds, measured_rates = race.run(slices[1:])
        finally:
            race.stop()
        lengths = count_tokens(texts[n_texts:], load_tokenizer(model))
        operations, rates = count_operations(lengths, model), find_rates(measured_rates)
        rows = {
            contender: {
                "papers_per_second": round(len(lengths) / sum(found), 2),
                "share_of_gemm": round(operations / sum(found) / rates[CONTENDERS[contender].precision], 3),
                "seconds": [round(one, 4) for one in found],
            }
            for contender, found in seconds.items()
            if contender != GEMM
        }
        gigaops = {precision: round(rate / 1e9) for precision, rate in rates.items()}
        steady[name] = {"n_texts": n_texts, "n_rounds": n_rounds, "gemm_gigaops": gigaops, "contenders": rows}
    return steady


def summarize(
    seconds: dict[str, list[float]],  # of each round, by contender
    measured_rates: list[dict[str, float]],  # from the matrix products, of each round
    lengths: np.ndarray,  # tokens of each text of the rounds
    operations: float,  # from `count_operations`
    facts: dict[str, dict[str, Any]],  # what else there is to say, by contender
    left_out: dict[str, str],  # contender -> why
) -> dict[str, Any]:
    "A model's figures."
    rates = find_rates(measured_rates) if measured_rates else {}
    rows = {}
    for name, found in seconds.items():
        rate = rates.get(facts[name]["precision"])
        rows[name] = compare_rounds(seconds[REFERENCE], found) | {
            "label": CONTENDERS[name].label,
            "papers_per_second": round(len(lengths) / len(found) / float(np.median(found)), 2),
            "share_of_gemm": round(operations / sum(found) / rate, 3) if rate else None,
            "seconds": [round(one, 5) for one in found],
            **facts[name],
        }
    return {
        "mean_tokens": round(float(lengths.mean()), 1),
        "operations_per_paper": round(operations / len(lengths)),
        "gemm": facts.get(GEMM, {}),
        "gemm_gigaops": {precision: round(rate / 1e9) for precision, rate in rates.items()},
        "gemm_rounds": [{key: round(rate / 1e9) for key, rate in one.items()} for one in measured_rates],
        "contenders": rows,
        "int8_peers": compare_with_peers(rows),
        "left_out": left_out,
    }


def choose_contenders(
    device: str,  # cpu or cuda
    in_growth: bool = False,  # only those of which growth is measured
    chosen: list[str] | None = None,  # only these, and the reference; `None`: all
) -> list[str]:  # the reference first
    "Names of the contenders for a device."
    return [
        name
        for name, one in CONTENDERS.items()
        if device in one.devices
        and (one.in_growth or not in_growth)
        and (chosen is None or name == REFERENCE or name in chosen)
    ]


def in_megabytes(peaks: dict[str, int]) -> dict[str, int]:
    "Peaks of memory for people."
    return {name.replace("_bytes", "_megabytes"): round(value / 1e6) for name, value in peaks.items()}


def measure_growth(options: argparse.Namespace, work: Path) -> dict[str, list[dict[str, Any]]]:
    "Seconds and peak memory by number of papers, each in a fresh process, the contenders in turn."
    model_file, model = prepare_model(GROWTH_MODEL, options, work)
    texts = read_texts(options.file, model["separator"], max(options.growth_papers))
    load_first(choose_contenders(options.device, in_growth=True), model_file, options.device)
    rows: dict[str, list[dict[str, Any]]] = {}
    for n_papers in options.growth_papers:
        texts_file = write_texts(work / "growth_texts.json", texts[:n_papers])
        for name in choose_contenders(options.device, in_growth=True):
            try:
                worker = Worker(name, model_file, options.device)
                seconds = worker.ask(do="encode", texts=texts_file, start=0, stop=n_papers)["seconds"]
                row = {
                    "papers": n_papers,
                    "seconds": round(seconds, 2),
                    "papers_per_second": round(n_papers / seconds, 1),
                }
                row["seconds_load"] = round(worker.seconds_load, 2)
                rows.setdefault(name, []).append(row | in_megabytes(worker.stop()))
            except WorkerError as error:
                print(f"left out: {CONTENDERS[name].label}, {n_papers:,} papers: {error}", file=sys.stderr)
    return rows


def measure_lengths(options: argparse.Namespace, work: Path) -> dict[str, list[dict[str, Any]]]:
    "Papers and tokens per second by length of text, in interleaved rounds; a warm-up round is not counted."
    model_file, model = prepare_model(GROWTH_MODEL, options, work)
    tokenizer = load_tokenizer(model)
    abstracts = read_texts(options.file, "", 2_000, rule="abstract")
    names = choose_contenders(options.device, in_growth=True)
    load_first(names, model_file, options.device)
    race = Race(names, model_file, options.device)
    rows: dict[str, list[dict[str, Any]]] = {}
    try:
        for n_tokens in options.lengths:
            n_texts = options.tokens_per_length // n_tokens
            texts = cut_texts(abstracts, n_tokens, n_texts, tokenizer)
            total = int(count_tokens(texts, tokenizer).sum())
            texts_file = write_texts(work / f"length_{n_tokens}.json", texts)
            race.run([(texts_file, 0, max(1, n_texts // 8))])
            seconds, _ = race.run([(texts_file, 0, n_texts)] * options.length_rounds)
            for name, found in seconds.items():
                row = {"tokens": total / n_texts, "papers_per_second": round(n_texts * len(found) / sum(found), 1)}
                row["tokens_per_second"] = round(total * len(found) / sum(found))
                rows.setdefault(name, []).append(row | compare_rounds(seconds[REFERENCE], found))
    finally:
        race.stop()
    return rows


# Results


def describe_machine() -> dict[str, Any]:
    "What decides how fast this machine is."
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    known = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    known = {name.strip(): value.strip() for name, value in known.items()}
    flags = set(known.get("flags", known.get("Features", "")).split())
    return {
        "architecture": platform.machine(),
        "processor": known.get("model name") or platform.processor(),
        "cores": count_cores(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "load_average_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
    }


def peak_megabytes(row: dict[str, Any]) -> str:
    "The peak memory that a table shows: the card's where there is one."
    peak = row.get("peak_device_megabytes", row.get("peak_megabytes"))
    return f"{peak:,}" if peak else ""


def print_table(measured: dict[str, Any]) -> None:
    "Print a model's table."
    rates = ", ".join(f"{precision} {rate:,}" for precision, rate in measured["gemm_gigaops"].items())
    print(f"\n{measured['title']}: {measured['mean_tokens']:.0f} tokens a paper, {measured['n_rounds']} rounds")
    print(f"matrix products of this shape, billion operations a second: {rates or 'not measured'}")
    print(
        f"{'':56}{'precision':>10}{'papers/s':>10}{'ratio':>8}{'95 %':>16}{'of GEMM':>9}{'peak MB':>9}"
        f"{'cosine':>8}{'least':>8}{'MRR@10':>8}{'others':>8}"
    )
    notes = []
    for row in measured["contenders"].values():
        interval = f"{row['low']:.2f} - {row['high']:.2f}"
        share = f"{row['share_of_gemm']:.0%}" if row["share_of_gemm"] is not None else ""
        notes += [row["note"]] if row.get("note") else []
        cosines = "".join(f"{row['cosines'][key]:8.4f}" if row["cosines"] else f"{'':8}" for key in CENTERED)
        score = f"{row['relations']['all']:8.4f}" if row["relations"] else f"{'':8}"
        print(
            f"{row['label'] + ' *' * bool(row.get('note')):56}{row['precision']:>10}{row['papers_per_second']:10.1f}"
            f"{row['ratio']:8.2f}{interval:>16}{share:>9}{peak_megabytes(row):>9}{cosines}{score}"
            f"{np.median(row['others']):8.2f}"
        )
    print("cosine: mean and least of any text with sentence-transformers' vector, their common mean taken away;")
    print("        tables of token vectors have fewer numbers, and are compared with ours")
    print(f"MRR@10: of {measured.get('n_pairs', {}).get('all', 0)} related pairs among the papers that were timed")
    print("others: cores that other processes kept busy meanwhile, in the median round")
    print_comparisons(measured)
    for note in dict.fromkeys(notes):
        print(f"* {note}")
    for name, reason in measured["left_out"].items():
        print(f"left out: {CONTENDERS[name].label if name in CONTENDERS else name}: {reason}")


CENTERED = ("centered_mean", "centered_min")


def print_comparisons(measured: dict[str, Any]) -> None:
    "Print what the bars ask for: int8 beside the peers' int8, a static model beside float32."
    for one in measured["int8_peers"]:
        quality = ", ".join(
            f"{title} {one[f'{key}_ours'] or 0:.4f} against {one[f'{key}_peer'] or 0:.4f}"
            for key, title in (("centered", "centered cosine"), ("mrr", "MRR@10"))
        )
        print(
            f"int8 is {one['ratio']:.2f} times ({one['low']:.2f} - {one['high']:.2f}) as fast as "
            f"{CONTENDERS[one['peer']].label}: {quality}"
        )
    rows = measured["contenders"]
    if {"ours_static", "ours_openvino_float32"} <= rows.keys():
        times = rows["ours_static"]["papers_per_second"] / rows["ours_openvino_float32"]["papers_per_second"]
        print(f"static is {times:.0f} times as fast as float32")


def print_steady(steady: dict[str, Any]) -> None:
    "Print the rates of long runs."
    for name, measured in steady.items():
        print(f"\n{TITLES[name]}, steady: {measured['n_rounds']} rounds of {measured['n_texts']} papers")
        print(f"{'':52}{'papers/s':>10}{'of GEMM':>9}")
        for contender, row in measured["contenders"].items():
            print(f"{CONTENDERS[contender].label:52}{row['papers_per_second']:10.1f}{row['share_of_gemm']:>9.1%}")


def print_growth(growth: dict[str, list[dict[str, Any]]]) -> None:
    "Print what numbers of papers cost."
    print(f"\n{TITLES[GROWTH_MODEL]}, by number of papers, a fresh process each")
    print(f"{'':52}{'papers':>10}{'seconds':>10}{'papers/s':>10}{'peak MB':>9}")
    for name, rows in growth.items():
        for row in rows:
            print(
                f"{CONTENDERS[name].label:52}{row['papers']:10,}{row['seconds']:10.1f}{row['papers_per_second']:10.1f}"
                f"{peak_megabytes(row):>9}"
            )


def print_lengths(lengths: dict[str, list[dict[str, Any]]]) -> None:
    "Print what lengths of texts cost."
    print(f"\n{TITLES[GROWTH_MODEL]}, by tokens of a text")
    print(f"{'':52}{'tokens':>10}{'papers/s':>10}{'tokens/s':>10}{'ratio':>9}")
    for name, rows in lengths.items():
        for row in rows:
            print(
                f"{CONTENDERS[name].label:52}{row['tokens']:10.0f}{row['papers_per_second']:10.1f}"
                f"{row['tokens_per_second']:10,}{row['ratio']:9.2f}"
            )


def draw_figure(
    results: dict[str, Any],  # as written to the JSON file
    path: Path,  # .png or .svg
) -> None:
    "Draw how many times faster than sentence-transformers each contender is."
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(results["models"].values())
    # a table of token vectors is hundreds of times as fast, and would leave no length for the other bars
    shown = {
        name: row for measured in models for name, row in measured["contenders"].items() if row["precision"] != "table"
    }
    names = sorted(shown, key=list(CONTENDERS).index, reverse=True)  # bars are drawn from below
    size = (3.8 + 3.2 * len(models), 1.2 + 0.36 * len(names))
    figure, axes = pyplot.subplots(1, len(models), figsize=size, sharey=True, squeeze=False)
    for axis, measured in zip(axes[0], models, strict=True):
        draw_bars(axis, names, measured)
    chosen = {
        name: f" ({row['precision']})" * (row["label"].endswith("OpenVINO, default precision"))
        for name, row in shown.items()
    }
    axes[0][0].set_yticks(range(len(names)), [shown[name]["label"] + chosen[name] for name in names])
    machine = results["machine"]
    where = machine.get("gpu") or f"{machine['cores']} cores, {machine['architecture']}"
    figure.supxlabel(f"times the papers per second of sentence-transformers' default, same run ({where})", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white")
    if path.suffix == ".png":  # 64 colors are plenty here, and a third of the bytes
        from PIL import Image

        with Image.open(path) as image:
            small = image.convert("RGB").quantize(64)
        small.save(path, optimize=True)
    pyplot.close(figure)


def draw_bars(axis: Any, names: list[str], measured: dict[str, Any]) -> None:
    "Draw one model's bars: ours blue, others grey, the 95 % interval as a line, the ratio as a number."
    rows = measured["contenders"]
    farthest = max(rows[name]["high"] for name in names if name in rows)
    for place, name in enumerate(names):
        if name not in rows:
            continue
        ratio, low, high = (rows[name][key] for key in ("ratio", "low", "high"))
        axis.barh(place, ratio, color="#0072B2" if CONTENDERS[name].ours else "#9a9a9a", height=0.7)
        axis.plot([low, high], [place, place], color="#222222", linewidth=1.2)
        axis.text(max(ratio, high) + 0.02 * farthest, place, f"{ratio:.1f}x", va="center", fontsize=9)
    axis.axvline(1, color="#222222", linewidth=0.8, linestyle=":", zorder=0)
    axis.set_xlim(0, 1.18 * farthest)
    axis.set_title(measured["title"].replace(" (", "\n("), fontsize=10)
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def read_options() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--parts", nargs="+", choices=["rounds", "steady", "growth", "lengths"])
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--papers", type=int, help=f"of all rounds; default: {PAPERS}, {GPU_FACTOR} times on a GPU")
    parser.add_argument(
        "--contenders",
        type=lambda names: names.split(","),
        help=f"only these and the reference, separated by commas: {', '.join(CONTENDERS)}",
    )
    parser.add_argument("--growth-papers", type=int, nargs="+", help=f"default: {GROWTH_PAPERS}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cores", type=int, help="use only so many (Linux)")
    parser.add_argument("--quick", action="store_true", help="few and small rounds, to see whether it works")
    parser.add_argument("--file", type=Path, default=DATA / "arxiv_cs_10k.csv", help="another file of papers")
    parser.add_argument(
        "--out",
        type=Path,
        help="default: benchmarks/results/encode.json, encode_no_amx.json on a processor without AMX, encode_cuda.json on a GPU",
    )
    parser.add_argument("--figure", type=Path, help="default: the same name in nbs/images, a .png")
    parser.add_argument("--work", type=Path, help="keep the models' files here, and use those that are here already")
    parser.add_argument("--draw-only", action="store_true", help="draw the figure from --out and measure nothing")
    options = parser.parse_args()
    options.lengths, options.length_rounds = LENGTHS, 3
    options.tokens_per_length = TOKENS_PER_LENGTH * (GPU_FACTOR if options.device == "cuda" else 1)
    if unknown := set(options.contenders or ()) - CONTENDERS.keys():
        parser.error(f"no contender {min(unknown)!r}; there are: {', '.join(CONTENDERS)}")
    if options.draw_only and options.quick:
        parser.error("--draw-only draws what was measured, --quick measures")
    if options.quick:
        options.rounds, options.papers = options.rounds or 2, options.papers or 16
        options.growth_papers = options.growth_papers or (8, 24)
        options.lengths, options.length_rounds, options.tokens_per_length = (32, 128), 1, 1024
    else:
        options.growth_papers = options.growth_papers or GROWTH_PAPERS
        suffix = (
            "_cuda"
            if options.device == "cuda"
            else ""
            if "amx_bf16" in describe_machine()["instructions"]
            else "_no_amx"
        )
        options.out = options.out or ROOT / "benchmarks" / "results" / f"encode{suffix}.json"
        options.figure = options.figure or ROOT / "nbs" / "images" / f"encode{suffix}.png"
    return options


def write_results(results: dict[str, Any], path: Path | None) -> None:
    "Write what is known so far."
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main(options: argparse.Namespace) -> None:
    "Measure, print, write the results, and draw."
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    parts = options.parts or ["rounds", "steady", "growth", "lengths"]
    results = {"machine": describe_machine(), "versions": list_versions(VERSIONS), "device": options.device}
    results |= {"date": time.strftime("%Y-%m-%d"), "reference": REFERENCE, "models": {}}
    if options.out and options.out.exists():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        # the same machine and versions, however busy: what is not measured now is kept
        before["machine"]["load_average_before"] = results["machine"]["load_average_before"]
        if all(before[name] == results[name] for name in ("machine", "versions", "device")):
            results |= {name: before[name] for name in ("models", "steady", "growth", "lengths") if name in before}
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        for name in options.models if "rounds" in parts else ():
            results["models"][name] = measured = measure_model(name, options, work)
            if "device" in measured["gemm"]:
                results["machine"]["gpu"] = measured["gemm"]["device"]
            print_table(measured)
            write_results(results, options.out)
        for part, measure, show in (
            ("steady", measure_steady, print_steady),
            ("growth", measure_growth, print_growth),
            ("lengths", measure_lengths, print_lengths),
        ):
            if part in parts:
                measured = measure(options, work)
                show(measured)
                results[part] = results.get(part, {}) | measured
                write_results(results, options.out)
    if options.figure and results["models"]:
        draw_figure(results, options.figure)


if __name__ == "__main__":
    given = read_options()
    if given.draw_only:
        draw_figure(json.loads(given.out.read_text(encoding="utf-8")), given.figure)
    elif not given.file.exists():
        sys.exit(f"no papers in {given.file}: set ARXIV_EMBEDDINGS_DATA, or give a file with --file")
    else:
        main(given)
