"""What the guard costs, and one stream instead of two, in one run on real abstracts; writes results/streams.json.

Each way embeds the same abstracts in a fresh process, so that every shape is new to it, and in turn with the others. Real data is looked for in
ARXIV_EMBEDDINGS_DATA, else in ../shared/data.

before       two streams in one compiled model, no guard: the way in which vectors were wrong
no guard     as the encoder runs now, without the guard
now          as the encoder runs now
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
DATA = Path(os.environ.get("ARXIV_EMBEDDINGS_DATA", HERE.parents[1] / "shared" / "data"))
RESULTS = HERE / "results" / "streams.json"
WAYS = ("before", "no guard", "now")
# real abstracts for each model and precision: less than half a minute each on two cores
N_ABSTRACTS = {"minilm": {"float32": 1000, "int8": 2000}, "SPECTER2's shape": {"float32": 120, "int8": 300}}


def make_encoder(folder: str, precision: str, way: str):
    "The encoder of a converted model, in one of the ways."
    from arxiv_embeddings.encoders.model_folder import open_model_folder
    from arxiv_embeddings.encoders.openvino_engine import OpenVINOEncoder

    class TwoStreams(OpenVINOEncoder):
        "Two streams in one compiled model, and a third request that waits its turn."

        def _compile(self):
            self.hints |= {"NUM_STREAMS": 2, "INFERENCE_NUM_THREADS": self.settings["threads"]}
            return super()._compile()

        def embed_batches(self, batches: Iterator, stream: int = 0) -> Iterator:
            idle, begun = [self.compiled[0].create_infer_request() for _ in range(3)], deque()
            for batch in batches:
                if not idle:
                    yield self._finish(begun, idle)
                request = idle.pop()
                request.start_async({"input_ids": batch.ids, "attention_mask": batch.mask})
                begun.append((batch, request))
            while begun:
                yield self._finish(begun, idle)

        def _finish(self, begun: deque, idle: list) -> tuple:
            batch, request = begun.popleft()
            request.wait()
            idle.append(request)
            return batch, request.get_output_tensor().data[: len(batch.rows)].copy()

    converted = open_model_folder(Path(folder))
    if way == "before":
        encoder = TwoStreams(converted, streams=1, length_multiple={"float32": 4, "int8": 16}[precision])
    else:
        encoder = OpenVINOEncoder(converted)
    if way != "now":
        for guard in encoder.guards:
            guard.run = guard.embed
    return encoder


def measure_once(folder: str, precision: str, way: str, n_abstracts: int) -> dict:
    "Embed the abstracts in this process."
    from arxiv_embeddings.papers.corpus import read_papers
    from arxiv_embeddings.papers.texts import make_texts

    papers = read_papers(DATA / "arxiv_cs_10k.csv").table(limit=n_abstracts)
    encoder = make_encoder(folder, precision, way)
    tokenized = encoder.tokenize(make_texts(papers, "title+abstract", "[SEP]"))
    started = time.perf_counter()
    vectors = encoder.run(tokenized)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert np.isfinite(vectors).all()
    return {"papers_per_second": n_abstracts / seconds, "peak_mb": peak, "n_recomputed": encoder.n_recomputed}


def convert(model: str, precision: str, work: Path) -> str:
    "The folder of a converted model."
    from arxiv_embeddings.encoders.conversion import get_or_convert
    from arxiv_embeddings.encoders.models import fetch_model
    from arxiv_embeddings.encoders.registry import find_model

    if model == "minilm":
        return str(get_or_convert(fetch_model(find_model("minilm")), precision).folder)
    from tests.fakes.specter_shape import make_base

    base = work / "base" if (work / "base").exists() else make_base(work / "base")
    return str(get_or_convert(fetch_model(find_model(base, pooling="cls")), precision).folder)


def main() -> None:
    "Measure every way in turn, print and write."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        folder, precision, way, n_abstracts = given.once
        print(json.dumps(measure_once(folder, precision, way, int(n_abstracts))))
        return
    if not DATA.is_dir():
        sys.exit(f"no real data in {DATA}: set ARXIV_EMBEDDINGS_DATA")
    results = []
    with tempfile.TemporaryDirectory() as work:
        for model, sizes in N_ABSTRACTS.items():
            for precision, n_abstracts in sizes.items():
                folder = convert(model, precision, Path(work))
                found: dict[str, list[dict]] = {way: [] for way in WAYS}
                for _ in range(given.rounds):
                    for way in WAYS:
                        command = [
                            sys.executable,
                            "-m",
                            "benchmarks.streams",
                            "--once",
                            folder,
                            precision,
                            way,
                            str(n_abstracts),
                        ]
                        found[way].append(
                            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                        )
                for way, rounds in found.items():
                    row = {"model": model, "precision": precision, "way": way, "n_abstracts": n_abstracts}
                    row |= {name: round(float(np.median([one[name] for one in rounds])), 1) for name in rounds[0]}
                    results.append(row)
                    print(
                        f"{model:18}{precision:9}{way:10}{row['papers_per_second']:7.1f} papers/s {row['peak_mb']:7.0f} MB",
                        flush=True,
                    )
    RESULTS.write_text(json.dumps({"rounds": given.rounds, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
