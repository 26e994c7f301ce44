"""Encoders without a model, for tests of everything around them."""

import time
from pathlib import Path

import numpy as np

from arxiv_embeddings.encoders.batching import TokenizedTexts
from arxiv_embeddings.encoders.models import ModelFiles
from arxiv_embeddings.encoders.spec import ModelSpec


class LetterEncoder:
    "Makes four numbers of a text: its length and its first three bytes."

    dim, n_recomputed, least_cosine = 4, 0, 0.99999

    def __init__(self, pooling: str = "mean"):
        spec = ModelSpec("letters", "letters", pooling=pooling, separator="|", max_tokens=64)
        self.spec, self.model_folder = spec, None
        self.files = ModelFiles(spec, Path(), Path(), [])
        text = {"text": "title+abstract", "separator": "|", "max_tokens": 64, "long_text": "truncate"}
        self.fingerprint = {"pooling": pooling, **text, "precision": "float32"}
        self.settings, self.batching = {"engine": "letters"}, {"token_budget": 64}

    def tokenize(self, texts):
        rows = [np.array([len(text), *text.encode()[:3]], dtype=np.int32) for text in texts]
        n_tokens = np.array([len(text) for text in texts], dtype=np.int64)
        return TokenizedTexts(rows, np.arange(len(texts)), n_tokens, 64)

    def run(self, tokenized, on_batch=None):
        return np.array(tokenized.rows, dtype=np.float32)

    def encode(self, texts):
        return self.run(self.tokenize(texts))

    def use_query_prompt(self):
        "It has no prompts."


class SlowEncoder(LetterEncoder):
    "Takes some time for each part."

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def run(self, tokenized, on_batch=None):
        time.sleep(self.seconds)
        return super().run(tokenized)


class SlowReader(SlowEncoder):
    "Takes some time for each thousand characters."

    def run(self, tokenized, on_batch=None):
        time.sleep(self.seconds * tokenized.n_tokens.sum() / 1000)
        return LetterEncoder.run(self, tokenized)


class PacedEncoder(SlowEncoder):
    "Takes some time for each text, and says after each that it is done."

    def run(self, tokenized, on_batch=None):
        for _ in tokenized.n_tokens:
            time.sleep(self.seconds)
            if on_batch:
                on_batch(1)
        return LetterEncoder.run(self, tokenized)


class CountingEncoder(LetterEncoder):
    "Counts the texts that it is given."

    n_texts = 0

    def run(self, tokenized, on_batch=None):
        self.n_texts += len(tokenized.rows)
        return super().run(tokenized)


class StoppingEncoder(LetterEncoder):
    "Is interrupted, as by Ctrl-C, when it has made `n_parts` parts."

    def __init__(self, n_parts: int):
        super().__init__()
        self.n_parts = n_parts

    def run(self, tokenized, on_batch=None):
        self.n_parts -= 1
        if self.n_parts < 0:
            raise KeyboardInterrupt
        return super().run(tokenized)
