"""Tiny models in the shapes of current ones: our engines in float32 beside sentence-transformers itself."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from arxiv_embeddings.encoders import torch_engine
from arxiv_embeddings.encoders.base import Encoder
from arxiv_embeddings.encoders.load import load_encoder
from arxiv_embeddings.encoders.vectors import measure_agreement
from arxiv_embeddings.files.errors import InputError
from tests.fakes import ROOT
from tests.fakes.shapes import LONG, PROMPTS, SHAPES, make_shape, sample_texts, varied_texts

ENGINES = ("torch", "openvino")
GOLDEN = ROOT / "tests" / "golden" / "shapes.npz"  # made by tools/make_shape_golden.py


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    "A model folder for each shape."
    return {name: make_shape(name, tmp_path_factory.mktemp(name)) for name in SHAPES}


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path]) -> dict[str, dict[str, np.ndarray]]:
    "What sentence-transformers computes for papers and for queries."
    vectors = {}
    for name, folder in folders.items():
        model, texts = SentenceTransformer(str(folder), device="cpu"), varied_texts()
        vectors[name] = {
            "document": model.encode_document(texts, batch_size=8),
            "query": model.encode_query(texts, batch_size=8),
        }
    return vectors


def encode_both(encoder: Encoder, texts: list[str]) -> dict[str, np.ndarray]:
    "Vectors of texts as papers, and as queries."
    documents = encoder.encode(texts)
    encoder.use_query_prompt()
    return {"document": documents, "query": encoder.encode(texts)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SHAPES)
def test_vectors_are_those_of_sentence_transformers(
    name: str, engine: str, folders: dict, reference: dict, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load_encoder(folders[name], engine=engine, device="cpu")
    ours = encode_both(encoder, varied_texts())
    for kind, vectors in ours.items():
        agreement = measure_agreement(vectors, reference[name][kind])
        assert agreement["smallest_cosine"] >= 0.99999, (kind, agreement)
        assert agreement["largest_difference"] <= 1e-5, (kind, agreement)
        with np.load(GOLDEN) as golden:
            assert_allclose(vectors[::6], golden[f"{name} {kind}"], rtol=0, atol=1e-5, strict=True)
    assert measure_agreement(ours["document"], ours["query"])["mean_cosine"] < 0.9999  # prompts do something
    assert encoder.n_recomputed == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("engine", ENGINES)
def test_thousands_of_tokens(engine: str, folders: dict) -> None:
    text = " ".join(sample_texts(limit=6))
    encoder = load_encoder(folders["modernbert"], engine=engine, device="cpu")
    assert encoder.spec.max_tokens == LONG
    assert 2000 < encoder.tokenize([text]).lengths[0] < LONG
    expected = SentenceTransformer(str(folders["modernbert"]), device="cpu").encode_document([text])
    assert_allclose(encoder.encode([text]), expected, rtol=0, atol=1e-5, strict=True)
    with pytest.raises(InputError, match=f"max_tokens {LONG + 1} is too large"):
        load_encoder(folders["modernbert"], max_tokens=LONG + 1)


@pytest.mark.parametrize("name", ["modernbert", "gemma3", "qwen3", "bert"])
def test_a_missing_weight_is_refused_and_a_prefix_is_not(name: str, folders: dict, tmp_path: Path) -> None:
    encoder = load_encoder(folders[name], engine="torch", device="cpu")
    transformer = encoder.model[0].auto_model
    weights = load_file(folders[name] / "model.safetensors")
    prefixed = {f"{transformer.base_model_prefix}.{key}": values for key, values in weights.items()}
    save_file(prefixed | {"lm_head.weight": np.ones((2, 2), np.float32)}, tmp_path / "model.safetensors")
    torch_engine.check_weights(transformer, tmp_path)
    prefixed.pop(next(name for name in sorted(prefixed) if "layers." in name or "layer." in name))
    save_file(prefixed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="1 weights are missing"):
        torch_engine.check_weights(transformer, tmp_path)


def test_no_decoder_keeps_keys_and_values(folders: dict) -> None:
    for name in ("qwen3", "gemma3"):
        transformer = load_encoder(folders[name], engine="torch", device="cpu").model[0].auto_model
        ids = torch.ones((1, 4), dtype=torch.int64)
        assert transformer(input_ids=ids).get("past_key_values") is None
        assert transformer(input_ids=ids, use_cache=True).get("past_key_values") is not None


@pytest.mark.parametrize("engine", ENGINES)
def test_the_last_token_must_end_the_text(engine: str, folders: dict, tmp_path: Path) -> None:
    folder = copy_model(folders["qwen3"], tmp_path)
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["post_processor"] = settings["post_processor"]["processors"][0]  # ByteLevel alone, which adds no token
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="pools the last token, but its tokenizer adds no special token") as refused:
        load_encoder(folder, engine=engine, device="cpu")
    assert len(str(refused.value).splitlines()) == 1


def copy_model(folder: Path, to: Path) -> Path:
    "Copy a model folder, so that a test may change it."
    for path in folder.rglob("*"):
        if path.is_file():
            copy = to / "copy" / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return to / "copy"


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1e6, r"has weights that float16 cannot hold \(.*\): use --precision float32"),
        (1e3, r"computes NaN or infinity in float16 \(texts at positions \[0, 1\]\): use --precision float32"),
    ],
)
def test_a_model_that_overflows_in_float16_is_refused(
    factor: float, message: str, folders: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_model(folders["qwen3"], tmp_path)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith(("up_proj.weight", "gate_proj.weight")):
            weights[name] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setitem(torch_engine.PRECISIONS, "cpu", ("float32", "float16"))  # slow on a CPU, but it computes
    options = {"engine": "torch", "device": "cpu"}
    texts = ["Spectral clustering", "A survey of measles outbreaks"]
    assert np.isfinite(load_encoder(folder, **options).encode(texts)).all()
    assert np.isfinite(load_encoder(folders["qwen3"], precision="float16", **options).encode(texts)).all()
    with pytest.raises(InputError, match=message) as refused:
        load_encoder(folder, precision="float16", **options).encode(texts)
    assert len(str(refused.value).splitlines()) == 1


def test_a_prompt_that_is_left_out_counts_only_once(folders: dict) -> None:
    "A long text read in windows has the prompt in its first window; only there are tokens left out."
    encoder = load_encoder(folders["instructor"], engine="torch", device="cpu", max_tokens=64, long_text="windows")
    both = load_encoder(folders["instructor"], engine="openvino", device="cpu", max_tokens=64, long_text="windows")
    texts = sample_texts(limit=3)
    tokenized = encoder.tokenize(texts)
    assert len(tokenized.rows) > 9
    alone = AutoTokenizer.from_pretrained(folders["instructor"])(PROMPTS["document"])["input_ids"]
    assert tokenized.n_unpooled == len(alone) - 1  # without [SEP]
    assert_allclose(encoder.encode(texts), both.encode(texts), rtol=0, atol=1e-5, strict=True)
    parts = []
    for row, starts in zip(tokenized.rows, tokenized.starts_text, strict=True):
        ids = torch.from_numpy(row.astype(np.int64))[None]
        features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if starts:
            features["prompt_length"] = tokenized.n_unpooled
        with torch.inference_mode():
            parts.append(encoder.model(features)["sentence_embedding"].numpy())
    weights = tokenized.lengths - 2
    sums = np.zeros((3, encoder.dim))
    np.add.at(sums, tokenized.text_of_row, np.concatenate(parts) * weights[:, None])
    assert_allclose(encoder.encode(texts), sums / np.linalg.norm(sums, axis=1, keepdims=True), rtol=0, atol=1e-5)
