"""Engines that compute wrong vectors for one shape until their model is loaded anew, as OpenVINO was found to do."""

from collections.abc import Iterator

import numpy as np

from arxiv_embeddings.encoders.base import BatchEncoder
from arxiv_embeddings.encoders.guard import Batch
from arxiv_embeddings.spark.via_encoder import PartEncoder


def make_garbage(n_vectors: int, dim: int, seed: int) -> np.ndarray:
    "Finite vectors of length one, alike among each other and far from every true one."
    generator = np.random.default_rng(seed)
    garbage = generator.standard_normal(dim) + 0.14 * generator.standard_normal((n_vectors, dim))
    return (garbage / np.linalg.norm(garbage, axis=1, keepdims=True)).astype(np.float32)


def spoil(encoder: BatchEncoder, which: int, seed: int = 0) -> list[tuple[int, int]]:
    """Let an encoder be wrong for the new shape number `which` that its model meets, checks counted, until it is loaded anew.

    Returns a list to which the spoiled shape is added when it is met."""
    embed_batches, renew = encoder.embed_batches, encoder.renew
    met: list[tuple[int, int]] = []
    spoiled: list[tuple[int, int]] = []

    def embed_wrongly(batches: Iterator[Batch], stream: int = 0) -> Iterator[tuple[Batch, np.ndarray]]:
        for batch, vectors in embed_batches(batches, stream):
            if batch.shape not in met:
                met.append(batch.shape)
                if len(met) == which + 1:
                    spoiled.append(batch.shape)
            if batch.shape in spoiled and encoder.embed_batches is embed_wrongly:
                # the same row in the same shape gets the same garbage, however often it is computed
                tokens = (batch.ids * batch.mask).sum(axis=1)[: len(vectors)]
                vectors = np.concatenate([make_garbage(2, vectors.shape[1], seed + int(sum_))[1:] for sum_ in tokens])
            yield batch, vectors

    def renew_and_be_right(stream: int = 0) -> None:
        encoder.embed_batches, encoder.renew = embed_batches, renew
        renew(stream)

    encoder.embed_batches, encoder.renew = embed_wrongly, renew_and_be_right
    return spoiled


class SpoilingPartEncoder(PartEncoder):
    "Spoils what a Python worker has loaded, before it embeds its first part."

    def load(self) -> BatchEncoder:
        "Load an engine that is wrong."
        encoder = super().load()
        if not hasattr(encoder, "spoiled"):
            encoder.__dict__.pop("guards", None)  # another test may have used this worker: every shape is new again
            encoder.spoiled = spoil(encoder, 1)
        return encoder
