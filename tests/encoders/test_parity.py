"""Every engine and precision against the reference, on real abstracts: 100 in MiniLM, 16 in SPECTER2's shape.

`benchmarks/parity.py` measures 500 in both, which takes a quarter of an hour on two cores."""

from pathlib import Path

import pytest

from benchmarks import parity

pytestmark = pytest.mark.slow

# smallest cosine of any text and mean cosine, for each model
FLOORS = {
    ("minilm", "float32"): (0.99999, 0.999999),
    ("minilm", "bfloat16"): (0.999, 0.9999),
    ("minilm", "int8"): (0.99, 0.997),
    ("SPECTER2's shape", "float32"): (0.99999, 0.999999),
    ("SPECTER2's shape", "bfloat16"): (0.999, 0.9995),
    ("SPECTER2's shape", "int8"): (0.99, 0.997),
}


@pytest.fixture(scope="module")
def measured(real_data: Path) -> dict:
    "The whole table."
    return parity.measure_all(100, 16)


@pytest.mark.parametrize("model", ["minilm", "SPECTER2's shape"])
def test_every_engine_and_precision_is_near_the_reference(model: str, measured: dict) -> None:
    assert {"torch float32", "openvino float32", "openvino int8"} <= measured[model].keys()
    for name, row in measured[model].items():
        smallest, mean = FLOORS[model, name.split()[1]]
        assert row["smallest_cosine"] >= smallest, (name, row)
        assert row["mean_cosine"] >= mean, (name, row)


def test_precisions_are_what_they_say(measured: dict) -> None:
    for rows in measured.values():
        for name, row in rows.items():
            exact = name.endswith("float32")
            assert (row["largest_difference"] < 1e-4) == exact, (name, row)
