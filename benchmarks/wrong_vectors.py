"""How often OpenVINO prepares a shape wrongly, and whether the encoder ever does; writes results/wrong_vectors.json.

    python -m benchmarks.wrong_vectors                      # every case, about an hour
    python -m benchmarks.wrong_vectors --only shared        # the fault, within minutes
    python -m benchmarks.wrong_vectors --only encoder --shapes 20000

Each case meets new shapes in two processes at a time. A batch holds one text in every row, so all rows of all answers must be the same
vector; it is compared with the vector that the same text got in the first shape that it was met in. Only `suspects` needs real abstracts.

shared     one compiled model with two streams, three requests with the same new shape at the same time
no-cache   the same, with oneDNN's primitive cache switched off (ONEDNN_PRIMITIVE_CACHE_CAPACITY=0)
no-snippets  the same as `shared`, without OpenVINO's own code generator for attention (SNIPPETS_MODE=DISABLE)
separate   two compiled models with one stream each
single     one compiled model with one stream
encoder    the project's encoder, with its guard
suspects   garbage put among the vectors of real abstracts: how much of it `verify --numbers` suspects, and how many right vectors
onnx       one session of ONNX Runtime that three threads use at the same time, as Spark NLP's tasks in one executor do
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "wrong_vectors.json"
DATA = Path(os.environ.get("ARXIV_EMBEDDINGS_DATA", Path(__file__).parents[2] / "shared" / "data"))
CASES = {
    "shared": {},
    "no-cache": {"environment": {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}},
    "no-snippets": {"hints": {"SNIPPETS_MODE": "DISABLE"}},
    "separate": {"n_models": 2},
    "single": {"streams": 1},
    "encoder": {},
    "onnx": {},
}
TOLERANCE = {"float32": 1e-4, "int8": 0.05}  # of one number; garbage is wrong by 0.2
SHAPES_OF_A_PROCESS = 400  # new shapes that one loaded model meets: it keeps kernels for each
TEXT = "A text about spectral clustering of large sparse graphs, of which every row of every batch has a piece. "


def draw_shapes(seed: int, max_tokens: int = 200, max_rows: int = 4) -> list[tuple[int, int]]:
    "All shapes up to a size, in an order of their own."
    shapes = [(rows, length) for rows in range(1, max_rows + 1) for length in range(8, max_tokens)]
    return [shapes[place] for place in np.random.default_rng(seed).permutation(len(shapes))]


def compile_models(model: Path, precision: str, streams: int = 2, n_models: int = 1, hints: dict | None = None):
    "The requests of one or more compiled models on two threads."
    import openvino

    asked = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT", **(hints or {})}
    asked |= {"NUM_STREAMS": streams if n_models == 1 else 1, "INFERENCE_NUM_THREADS": 2 // n_models}
    models = [openvino.Core().compile_model(model, "CPU", asked) for _ in range(n_models)]
    n_requests = {1: 3}.get(n_models, 1)
    return [one.create_infer_request() for one in models for _ in range(n_requests)]


def ask_together(requests: list, ids: np.ndarray) -> np.ndarray:
    "The answers of requests that get the same batch at the same time, (n_requests, n_rows, dim)."
    for request in requests:
        request.start_async({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    answers = []
    for request in requests:
        request.wait()
        answers.append(request.get_output_tensor().data.copy())
    return np.stack(answers)


def meet_shapes(model: Path, precision: str, seed: int, seconds: float, n_shapes: int, **options) -> dict:
    "Meet new shapes with OpenVINO itself."
    n_met, wrong, begun, requests = 0, [], time.monotonic(), []
    reference: dict[int, np.ndarray] = {}
    for rows, length in draw_shapes(seed):
        if n_met == n_shapes or time.monotonic() - begun > seconds:
            break
        if n_met % SHAPES_OF_A_PROCESS == 0:
            requests = compile_models(model, precision, **options)
        ids = np.random.default_rng(length).integers(1000, 29000, (1, length)).repeat(rows, axis=0)
        answers = ask_together(requests, ids)
        # of the text's length in the first shape that had it: one stream's answers alone would all be wrong
        usual = reference.setdefault(length, np.median(answers.reshape(-1, answers.shape[-1]), axis=0))
        bad = np.abs(answers - usual).max(axis=(1, 2)) > TOLERANCE[precision]
        if bad.any():
            again = np.abs(ask_together(requests, ids) - usual).max(axis=(1, 2)) > TOLERANCE[precision]
            wrong.append({"shape": [rows, length], "requests": int(bad.sum()), "again": int(again.sum())})
        n_met += 1
    return {"n_shapes": n_met, "wrong": wrong}


def meet_shapes_with_encoder(precision: str, seed: int, seconds: float, n_shapes: int) -> dict:
    "Meet new shapes with the project's encoder."
    from arxiv_embeddings.encoders.base import run_side_by_side
    from arxiv_embeddings.encoders.conversion import get_or_convert
    from arxiv_embeddings.encoders.guard import Batch
    from arxiv_embeddings.encoders.models import fetch_model
    from arxiv_embeddings.encoders.openvino_engine import OpenVINOEncoder
    from arxiv_embeddings.encoders.registry import find_model

    converted = get_or_convert(fetch_model(find_model("minilm")), precision)
    n_met, wrong, begun, n_recomputed, shapes = 0, [], time.monotonic(), 0, draw_shapes(seed)
    reference: dict[int, np.ndarray] = {}  # of each length, from the first shape that had it
    while n_met < min(n_shapes, len(shapes)) and time.monotonic() - begun < seconds:
        encoder = OpenVINOEncoder(converted)
        n_tokens = encoder.text_tokenizer.tokenize([TEXT * 40]).rows[0]
        met_now = shapes[n_met : min(n_shapes, n_met + SHAPES_OF_A_PROCESS)]

        def make_batches(met_now=met_now, tokens=n_tokens):
            for rows, length in met_now:
                ids = np.tile(tokens[:length].astype(np.int64), (rows, 1))
                yield Batch(np.arange(rows), ids, np.ones_like(ids))

        for batch, vectors in run_side_by_side([guard.run for guard in encoder.guards], make_batches()):
            expected = reference.setdefault(batch.shape[1], vectors[0])
            if np.abs(vectors - expected).max() > TOLERANCE[precision]:
                wrong.append({"shape": list(batch.shape)})
            n_met += 1
            if time.monotonic() - begun > seconds:
                break
        n_recomputed += encoder.n_recomputed
    return {"n_shapes": n_met, "wrong": wrong, "n_recomputed": n_recomputed}


def meet_shapes_with_onnx(precision: str, seed: int, seconds: float, n_shapes: int) -> dict:
    "Meet new shapes with ONNX Runtime."
    from concurrent.futures import ThreadPoolExecutor

    from arxiv_embeddings.encoders.onnx_engine import open_onnx, run_onnx
    from arxiv_embeddings.spark.nlp_model import get_or_export

    session = open_onnx(get_or_export("minilm", precision=precision).folder / "model.onnx", threads=1)
    n_met, wrong, begun = 0, [], time.monotonic()
    reference: dict[int, np.ndarray] = {}
    with ThreadPoolExecutor(3) as threads:
        for rows, length in draw_shapes(seed)[:n_shapes]:
            if time.monotonic() - begun > seconds:
                break
            ids = np.random.default_rng(length).integers(1000, 29000, (1, length)).repeat(rows, axis=0)
            together = threads.map(lambda _, ids=ids: run_onnx(session, ids, np.ones_like(ids)).mean(axis=1), range(3))
            answers = np.stack(list(together))
            usual = reference.setdefault(length, np.median(answers.reshape(-1, answers.shape[-1]), axis=0))
            if np.abs(answers - usual).max() > TOLERANCE[precision]:
                wrong.append({"shape": [rows, length]})
            n_met += 1
    return {"n_shapes": n_met, "wrong": wrong}


def measure_suspects(n_batches: int = 300, n_papers: int = 2048) -> dict:
    "Put garbage batches of 1, 3 and 8 into the vectors of real abstracts, and see whether they are suspects."
    from arxiv_embeddings.encoders.load import load_encoder
    from arxiv_embeddings.papers.corpus import read_papers
    from arxiv_embeddings.papers.texts import make_texts
    from arxiv_embeddings.runs.wrong_vectors import SUSPICIOUS, score_by_texts

    texts = make_texts(read_papers(DATA / "arxiv_cs_10k.csv").table(limit=n_papers), "title+abstract", "[SEP]")
    right = load_encoder("minilm", device="cpu", precision="int8").encode(texts)
    scores = score_by_texts(texts, right)
    generator, by_length = np.random.default_rng(0), np.argsort([-len(text) for text in texts])
    n_vectors, n_found, n_batches_found = 0, 0, 0
    for number in range(n_batches):
        n_rows = (1, 3, 8)[number % 3]
        start = generator.integers(0, n_papers - n_rows)
        rows, spoiled = by_length[start : start + n_rows], right.copy()
        garbage = generator.standard_normal(right.shape[1]) + 0.14 * generator.standard_normal((n_rows, right.shape[1]))
        spoiled[rows] = garbage / np.linalg.norm(garbage, axis=1, keepdims=True)
        found = score_by_texts(texts, spoiled)[rows] < SUSPICIOUS
        n_vectors, n_found, n_batches_found = (
            n_vectors + n_rows,
            n_found + int(found.sum()),
            n_batches_found + found.any(),
        )
    return {
        "n_papers": n_papers,
        "median_score": round(float(np.median(scores)), 2),
        "share_of_right_vectors": round(float((scores < SUSPICIOUS).mean()), 4),
        "n_batches": n_batches,
        "n_batches_found": int(n_batches_found),
        "n_vectors": n_vectors,
        "n_vectors_found": n_found,
    }


def run_case(name: str, precision: str, seconds: float, n_shapes: int) -> dict:
    "Two processes at a time, each with seeds of its own, until there are enough shapes or the time is over."
    found, begun, seed = {"n_shapes": 0, "wrong": [], "n_recomputed": 0}, time.monotonic(), 0
    while found["n_shapes"] < n_shapes and (left := seconds - (time.monotonic() - begun)) > 1:
        asked = [f"--seconds={left}", f"--shapes={-(-(n_shapes - found['n_shapes']) // 2)}", f"--precision={precision}"]
        environment = os.environ | CASES[name].get("environment", {})
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.wrong_vectors", f"--child={name}", f"--seed={seed + one}", *asked],
                stdout=subprocess.PIPE,
                env=environment,
            )
            for one in range(2)
        ]
        for process in processes:
            output, _ = process.communicate()
            if process.returncode:
                raise SystemExit(f"a process of {name} ended with {process.returncode}")
            for key, value in json.loads(output.splitlines()[-1]).items():
                found[key] += value
        seed += 2
    minutes = round((time.monotonic() - begun) / 60, 1)
    return {"case": name, "precision": precision, **found, "n_wrong": len(found["wrong"]), "minutes": minutes}


def main() -> None:
    "Run the cases that were asked for, print and write what they found."
    from importlib import metadata

    from arxiv_embeddings.encoders.conversion import get_or_convert
    from arxiv_embeddings.encoders.models import fetch_model
    from arxiv_embeddings.encoders.registry import find_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=[*CASES, "suspects"], default=[*CASES, "suspects"])
    parser.add_argument("--precision", nargs="*", choices=TOLERANCE, default=list(TOLERANCE))
    parser.add_argument("--shapes", type=int, default=10_000, help="of each case")
    parser.add_argument("--seconds", type=float, default=600, help="for each case at most")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        (precision,) = given.precision
        common = (precision, given.seed, given.seconds, given.shapes)
        if given.child in ("encoder", "onnx"):
            meet = {"encoder": meet_shapes_with_encoder, "onnx": meet_shapes_with_onnx}[given.child]
            print(json.dumps(meet(*common)))
        else:
            options = {key: value for key, value in CASES[given.child].items() if key != "environment"}
            model = get_or_convert(fetch_model(find_model("minilm")), precision).folder / "model.xml"
            print(json.dumps(meet_shapes(model, *common, **options)))
        return
    for precision in given.precision:  # converted once, before processes ask for it
        get_or_convert(fetch_model(find_model("minilm")), precision)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept = results.get("cases", [])
    if "suspects" in given.only:
        results["suspects"] = measure_suspects()
        print(results["suspects"], flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    for name in [name for name in given.only if name in CASES]:
        for precision in given.precision:
            found = run_case(name, precision, given.seconds, given.shapes)
            print(
                f"{name:12}{precision:9}{found['n_wrong']:5} wrong of {found['n_shapes']:7,} shapes, {found['minutes']} min",
                flush=True,
            )
            kept = [one for one in kept if (one["case"], one["precision"]) != (name, precision)] + [found]
            about = {"openvino": metadata.version("openvino"), "model": "minilm", "cores": os.cpu_count()}
            RESULTS.write_text(json.dumps(results | about | {"cases": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
