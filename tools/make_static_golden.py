"""Write tests/golden/static.npz: the vectors of model2vec itself for the models of tests/fakes/static_models.py.

model2vec cannot be installed beside every version of this package, so it runs in an environment of its own:

    python -m venv golden && golden/bin/pip install model2vec==0.10.0 && golden/bin/python tools/make_static_golden.py
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from model2vec import StaticModel

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.fakes.static_models import KINDS, TEXTS, make_static  # noqa: E402 (after the path is set)


def main() -> None:
    "Make each model, embed the texts, and write all vectors into one file."
    with tempfile.TemporaryDirectory() as folder:
        models = {kind: StaticModel.from_pretrained(make_static(Path(folder) / kind, kind)) for kind in KINDS}
        # characters are cut off before tokens in long texts, to save time; this is left out here, as in this package
        for model in models.values():
            model.median_token_length = 10_000
        vectors = {kind: model.encode(TEXTS).astype(np.float32) for kind, model in models.items()}
    place = ROOT / "tests" / "golden" / "static.npz"
    place.parent.mkdir(exist_ok=True)
    np.savez(place, **vectors)
    print({kind: one[0, :3].round(4).tolist() for kind, one in vectors.items()}, place.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
