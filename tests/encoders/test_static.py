"""Static models: held to model2vec and to sentence-transformers, refused where they must be, and from texts to a search."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file, save_file

from arxiv_embeddings.encoders.batching import UnknownTextError
from arxiv_embeddings.encoders.load import load_encoder
from arxiv_embeddings.encoders.models import NO_LIMIT
from arxiv_embeddings.encoders.static_engine import StaticEncoder, distill_model, embed_vocabulary, write_static_folder
from arxiv_embeddings.explore.index import open_index
from arxiv_embeddings.explore.search import search_text
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import read_papers, sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.run_model import load_run_encoder
from arxiv_embeddings.runs.store import open_run
from tests.fakes import ROOT
from tests.fakes.static_models import DIM, KINDS, TEXTS, make_static, make_tokenizer

GOLDEN = ROOT / "tests" / "golden" / "static.npz"  # by tools/make_static_golden.py, from model2vec 0.10.0


# The vectors


@pytest.mark.parametrize("kind", KINDS)
def test_the_vectors_are_those_of_model2vec(kind: str, tmp_path: Path) -> None:
    encoder = load_encoder(make_static(tmp_path / kind, kind))
    vectors = encoder.encode(TEXTS)
    assert_allclose(vectors, np.load(GOLDEN)[kind], rtol=0, atol=1e-5, strict=True)
    assert (encoder.files.unit_length, encoder.spec.max_tokens) == (
        kind == "unit_length",
        NO_LIMIT if kind == "long" else 512,
    )


def test_the_golden_vectors_notice_unknown_tokens_and_the_limit(tmp_path: Path) -> None:
    golden, encoder = np.load(GOLDEN)["plain"], load_encoder(make_static(tmp_path / "plain", "plain"))
    encoder.text_tokenizer.leave_unknown_out = False
    assert np.abs(encoder.encode(TEXTS) - golden)[2].max() > 0.01
    longer = load_encoder(tmp_path / "plain", max_tokens=700)
    # the third-last word of the long text is cut elsewhere
    assert np.abs(longer.encode(TEXTS) - golden)[4].max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("unit_length", [False, True])
def test_the_vectors_are_those_of_sentence_transformers(unit_length: bool, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    tokenizer = make_tokenizer("plain")
    table = np.random.default_rng(5).standard_normal((tokenizer.get_vocab_size(), DIM)).astype(np.float32)
    modules = [StaticEmbedding(tokenizer, embedding_weights=table), *([Normalize()] if unit_length else [])]
    theirs = SentenceTransformer(modules=modules, prompts={"query": "graph: ", "document": "the "}, device="cpu")
    theirs.save(str(tmp_path / "model"))
    encoder = load_encoder(tmp_path / "model")
    assert (type(encoder), encoder.spec.max_tokens) == (StaticEncoder, NO_LIMIT)
    assert_allclose(encoder.encode(TEXTS), theirs.encode_document(TEXTS), rtol=0, atol=1e-5, strict=True)
    encoder.use_query_prompt()
    assert_allclose(encoder.encode(TEXTS), theirs.encode_query(TEXTS), rtol=0, atol=1e-5, strict=True)
    assert np.abs(theirs.encode_query(TEXTS) - theirs.encode_document(TEXTS)).max() > 0.01


@pytest.mark.slow
def test_sentence_transformers_loads_what_is_written_here(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = write_plain(tmp_path / "model")
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert_allclose(load_encoder(folder).encode(TEXTS), theirs.encode(TEXTS), rtol=0, atol=1e-5, strict=True)


def write_plain(folder: Path, seed: int = 3) -> Path:
    "Write a static model in the shape of sentence-transformers."
    tokenizer = make_tokenizer("plain")
    table = np.random.default_rng(seed).standard_normal((tokenizer.get_vocab_size(), DIM)).astype(np.float32)
    return write_static_folder(folder, table, tokenizer, True, {"license": "Apache-2.0"})


def test_a_text_has_the_same_vector_whatever_stands_beside_it(tmp_path: Path) -> None:
    encoder = load_encoder(write_plain(tmp_path / "model"))
    many = encoder.encode(TEXTS * 900)  # more than are averaged at once
    assert_array_equal(many, np.tile(np.stack([encoder.encode(text) for text in TEXTS]), (900, 1)))


def test_windows_average_all_tokens(tmp_path: Path) -> None:
    folder = make_static(tmp_path / "plain", "plain")
    texts = [*TEXTS, "zzz " * 30 + "graph"]
    windows = load_encoder(folder, max_tokens=7, long_text="windows")
    assert len(windows.tokenize(texts).rows) > 200
    whole = load_encoder(folder, max_tokens=5000)
    assert_allclose(windows.encode(texts), whole.encode(texts), rtol=0, atol=1e-5, strict=True)


# What is refused


def test_a_text_without_a_known_token_is_refused(tmp_path: Path) -> None:
    folder = make_static(tmp_path / "plain", "plain")
    with pytest.raises(UnknownTextError, match=r"knows no token of 2 texts, at positions \[1, 3\]") as caught:
        load_encoder(folder).encode(["graph", "zzz", "zzz graph", "[SEP] zzz"])
    assert caught.value.positions == [1, 3]
    allowed = load_encoder(folder, allow_unknown=True).encode(["zzz zzz", "graph"])
    assert_allclose(allowed[0], load_file(folder / "model.safetensors")["embeddings"][1], rtol=1e-6)


def test_the_unknown_token_of_a_unigram_vocabulary_is_known(tmp_path: Path) -> None:
    with pytest.raises(UnknownTextError):
        load_encoder(make_static(tmp_path / "unigram", "unigram")).encode(["\ua66e"])


def test_a_vector_of_zeros_is_never_made(tmp_path: Path) -> None:
    folder = make_static(tmp_path / "plain", "plain")
    table = load_file(folder / "model.safetensors")["embeddings"]
    table[1] = table[4] = 0  # [UNK] and graph
    save_file({"embeddings": table}, folder / "model.safetensors")
    encoder = load_encoder(folder, allow_unknown=True)
    assert encoder.encode("graph network").any()
    with pytest.raises(UnknownTextError, match=r"at positions \[0, 2\]"):
        encoder.encode(["graph zzz", "network", "zzz"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"engine": "openvino"},
            "is a static model, which the engine openvino does not run: embed it on one machine, without --engine",
        ),
        (
            {"engine": "torch"},
            "is a static model, which the engine torch does not run: embed it on one machine, without --engine",
        ),
        ({"precision": "int8"}, "a static model has float32 only, not int8: leave out --precision"),
        ({"precision": "bfloat16", "engine": "static"}, "a static model has float32 only, not bfloat16"),
        ({"device": "cuda"}, "a static model runs on the CPU, not on cuda: leave out --device"),
        ({"pooling": "cls"}, "has its own pooling, mean: leave out --pooling cls"),
        ({"adapter": "org/adapter"}, "is a static model, which can have no adapter: leave out --adapter"),
        ({"max_tokens": 2}, "max_tokens 2 is too small"),
    ],
    ids=str,
)
def test_an_option_that_a_static_model_cannot_have_is_refused(options: dict, line: str, tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "model")
    with pytest.raises(InputError, match=line) as caught:
        load_encoder(folder, **options)
    assert "\n" not in str(caught.value)


def test_a_transformer_does_not_run_on_the_static_engine() -> None:
    with pytest.raises(InputError, match="is not a static model: leave out --engine static"):
        load_encoder("minilm", engine="static")


def test_a_pickled_or_damaged_table_is_refused(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "model")
    weights = folder / "0_StaticEmbedding" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-8])
    with pytest.raises(InputError, match="is damaged or holds no table"):
        load_encoder(folder)
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(InputError, match=r"a static model needs model\.safetensors"):
        load_encoder(folder)
    weights.with_name("pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="no weights in"):
        load_encoder(folder)


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "model")
    (folder / "0_StaticEmbedding" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json is missing or damaged"):
        load_encoder(folder)


# From texts to a search


def test_a_run_is_begun_continued_and_searched(tmp_path: Path) -> None:
    folder, out = write_plain(tmp_path / "model"), tmp_path / "run"
    embed_papers(sample_papers(), out, model=folder, limit=20, allow_unknown=True)
    with pytest.raises(InputError, match="weights: "):
        embed_papers(sample_papers(), out, model=write_plain(tmp_path / "other", seed=4), allow_unknown=True)
    run = embed_papers(sample_papers(), out, model=folder, allow_unknown=True).run
    assert (run.metadata["complete"], run.metadata["settings"]["engine"], run.dim) == (True, "static", DIM)
    encoder = load_run_encoder(open_run(out))
    papers = read_papers(sample_papers()).table()
    assert_array_equal(run.embeddings(), encoder.encode(encoder.spec.texts_of(papers)))
    assert run.metadata["fingerprint"]["separator"] == ". "
    found = search_text(open_index(run), "spectral graph network", k=3)
    assert len(found) == 3


def test_neither_torch_nor_openvino_is_imported(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "model")
    script = (
        "import sys; from arxiv_embeddings.encoders.load import load_encoder\n"
        f"load_encoder({str(folder)!r}).encode(['spectral graph'])\n"
        "print({'torch', 'openvino', 'transformers', 'sentence_transformers', 'sklearn'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert printed.stdout.strip() == "set()"


# Distillation


def make_transformer(folder: Path) -> Path:
    "Write a BERT of one layer with random weights and the small vocabulary."
    import torch
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = make_tokenizer("plain")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=tokenizer.get_vocab_size(), initializer_range=0.5, **sizes))
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_token_of_the_table_is_the_token_alone_in_the_transformer(tmp_path: Path) -> None:
    encoder = load_encoder(make_transformer(tmp_path / "base"), pooling="mean", engine="torch", device="cpu")
    table, vocabulary = embed_vocabulary(encoder), encoder.text_tokenizer.tokenizer.get_vocab()
    words = [word for word in vocabulary if word.isalpha()]
    assert len(words) > 10
    assert_allclose(table[[vocabulary[word] for word in words]], encoder.encode(words), rtol=0, atol=1e-5, strict=True)
    static = load_encoder(distill_model(encoder, tmp_path / "static", TEXTS, dim=8))
    assert (static.dim, static.files.unit_length, static.encode(TEXTS).shape) == (8, False, (len(TEXTS), 8))


@pytest.mark.slow
def test_with_all_dimensions_and_equal_weights_all_distances_stay(tmp_path: Path) -> None:
    encoder = load_encoder(make_transformer(tmp_path / "base"), pooling="mean", engine="torch", device="cpu")
    texts, table = TEXTS[:4], embed_vocabulary(encoder)
    folder = distill_model(encoder, tmp_path / "plain", texts, dim=32, n_fitted=0, smoothing=1e12)
    plain = load_encoder(folder).encode(texts)
    expected = np.stack([table[encoder.tokenize([text]).rows[0][1:-1]].mean(axis=0) for text in texts])
    ours, theirs = (np.linalg.norm(one[:, None] - one[None], axis=2) for one in (plain, expected))
    assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert theirs[0, 1] > 0.1
