"""How near every engine and precision is to the reference, on real abstracts; writes results/parity.json.

The reference is torch in float32, one text at a time: sentence-transformers' modules, with the adapter in every layer. MiniLM has its real weights; SPECTER2's shape has random ones, scaled so that different papers differ.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

from arxiv_embeddings.encoders.load import load_encoder
from arxiv_embeddings.encoders.vectors import measure_agreement
from arxiv_embeddings.files.machine import has_bfloat16
from arxiv_embeddings.papers.corpus import read_papers
from arxiv_embeddings.papers.texts import make_texts

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("ARXIV_EMBEDDINGS_DATA", ROOT.parent / "shared" / "data"))
RESULTS = Path(__file__).parent / "results" / "parity.json"
N_ABSTRACTS = 500


def list_variants() -> list[tuple[str, str]]:
    "Engines and precisions that this processor can give."
    variants = [("torch", "float32"), ("openvino", "float32"), ("openvino", "int8"), ("torch", "bfloat16")]
    return variants + ([("openvino", "bfloat16")] if has_bfloat16() else [])


def read_texts(n_abstracts: int, separator: str) -> list[str]:
    "Real abstracts with titles: the longest, an eighth, which fill 512 tokens, and others taken evenly from the 10,000."
    table = read_papers(DATA / "arxiv_cs_10k.csv").table()
    by_length = np.argsort([len(abstract) for abstract in table["abstract"].to_pylist()], kind="stable")
    n_longest = n_abstracts // 8
    others = np.sort(by_length[: len(table) - n_longest])
    spaced = others[np.linspace(0, len(others) - 1, n_abstracts - n_longest).astype(int)]
    chosen = np.concatenate([spaced, by_length[len(table) - n_longest :]])
    return make_texts(table.take(chosen), separator=separator)


def measure_model(model: str | Path, n_abstracts: int, **options: str) -> Iterator[tuple[str, dict[str, float]]]:
    "Measure every variant of one model, each in its own batches."
    reference_encoder = load_encoder(model, engine="torch", device="cpu", **options)
    texts = read_texts(n_abstracts, reference_encoder.files.spec.separator)
    reference = np.concatenate([reference_encoder.encode([text]) for text in texts])
    for engine, precision in list_variants():
        encoder = load_encoder(model, engine=engine, precision=precision, device="cpu", **options)
        yield f"{engine} {precision}", measure_agreement(encoder.encode(texts), reference)


def measure_all(
    n_abstracts: int = N_ABSTRACTS, n_in_specter2: int = N_ABSTRACTS
) -> dict[str, dict[str, dict[str, float]]]:
    "Measure MiniLM and SPECTER2's shape: model -> engine and precision -> figures."
    from tests.fakes.specter_shape import make_adapter, make_base

    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base")
        adapter = make_adapter(base, Path(folder) / "adapter")
        return {
            "minilm": dict(measure_model("minilm", n_abstracts)),
            "SPECTER2's shape": dict(measure_model(base, n_in_specter2, pooling="cls", adapter=str(adapter))),
        }


def main() -> None:
    "Measure, print, write."
    measured = measure_all()
    for model, rows in measured.items():
        print(f"{model:24}{'mean cosine':>14}{'smallest':>12}{'largest difference':>22}")
        for name, row in rows.items():
            print(
                f"  {name:22}{row['mean_cosine']:14.7f}{row['smallest_cosine']:12.7f}{row['largest_difference']:22.2e}"
            )
    versions = {name: metadata.version(name) for name in ("torch", "openvino", "nncf", "sentence-transformers")}
    results = {"n_abstracts": N_ABSTRACTS, "models": measured, "bfloat16": has_bfloat16(), "versions": versions}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if not DATA.is_dir():
        sys.exit(f"no real data in {DATA}: set ARXIV_EMBEDDINGS_DATA")
    main()
