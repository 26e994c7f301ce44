"""Small static models as model2vec writes them, the same at each call: for tests, and for their golden vectors."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, Metaspace
from tokenizers.processors import TemplateProcessing

PIECES = [
    "graph",
    "graphs",
    "network",
    "##s",
    "neural",
    "protein",
    "fold",
    "##ing",
    "spectral",
    "of",
    "in",
    "the",
    "a",
    "quantum",
    "state",
    ".",
    ",",
    "##al",
    "deep",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
DIM = 12
KINDS = ("plain", "unit_length", "shared_rows", "int8", "unigram", "long")  # of `make_static`
TEXTS = [
    "Spectral graphs, folding proteins.",
    "A deep neural network of the quantum state",
    "the graph \ua66e of unheardof words, in networks",
    "graph",
    "the neural network " * 300,
    "in zzz " * 400,
]


def make_tokenizer(kind: str) -> Tokenizer:
    "Make a tokenizer with an unknown token; model2vec's own files add special tokens only if they are asked to."
    if kind == "unigram":
        pieces = [("<unk>", 0.0), *((f"\u2581{piece.removeprefix('##')}", -2.0 - n) for n, piece in enumerate(PIECES))]
        tokenizer = Tokenizer(Unigram(pieces, unk_id=0))
        tokenizer.pre_tokenizer = Metaspace()
        return tokenizer
    vocabulary = {piece: number for number, piece in enumerate(SPECIAL + PIECES)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def make_static(
    folder: Path,  # new
    kind: str,  # one of `KINDS`
) -> Path:  # the folder
    "Write a model as model2vec does."
    folder.mkdir(parents=True)
    tokenizer, generator = make_tokenizer(kind), np.random.default_rng(KINDS.index(kind))
    n_tokens = tokenizer.get_vocab_size()
    tensors = {"embeddings": generator.standard_normal((n_tokens, DIM)).astype(np.float32)}
    config = {"model_type": "model2vec", "normalize": kind == "unit_length"}
    if kind == "int8":
        tensors["embeddings"] = generator.integers(-127, 128, (n_tokens, DIM)).astype(np.int8)
    if kind == "shared_rows":
        tensors = {
            "embeddings": tensors["embeddings"][:7],
            "mapping": generator.integers(0, 7, n_tokens),
            "weights": generator.random(n_tokens).astype(np.float32),
        }
    if kind == "long":
        config["max_length"] = None
    save_file(tensors, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    return folder
