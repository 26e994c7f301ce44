"Write vectors of the tiny models of `tests/fakes/shapes.py`, as sentence-transformers computes them, into tests/golden."

import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from sentence_transformers import SentenceTransformer  # noqa: E402

from tests.fakes.shapes import SHAPES, make_shape, varied_texts  # noqa: E402


def main() -> None:
    "Make every model anew; four texts each, once as papers and once as queries."
    vectors, texts = {}, varied_texts()[::6]
    with tempfile.TemporaryDirectory() as folder:
        for name in SHAPES:
            model = SentenceTransformer(str(make_shape(name, Path(folder) / name)), device="cpu")
            vectors[f"{name} document"] = model.encode_document(texts)
            vectors[f"{name} query"] = model.encode_query(texts)
    (ROOT / "tests" / "golden").mkdir(exist_ok=True)
    np.savez_compressed(ROOT / "tests" / "golden" / "shapes.npz", **vectors)


if __name__ == "__main__":
    main()
