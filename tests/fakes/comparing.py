"""Comparisons that several tests make."""

from numpy.testing import assert_allclose

from arxiv_embeddings.runs.store import Run
from arxiv_embeddings.runs.verify import verify_run


def assert_same(
    run: Run,
    expected: Run,
    atol: float = 1e-5,  # between two numbers of a vector; 0: the same to the bit
) -> None:
    "The same papers in the same order, each once, with the same vectors; and no file beside the run's parts."
    assert run.read().equals(expected.read())
    assert_allclose(run.embeddings(), expected.embeddings(), rtol=0, atol=atol, strict=True)
    assert verify_run(run)["problems"] == []
