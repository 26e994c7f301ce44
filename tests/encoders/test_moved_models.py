"""Models as people have them: folders that move, folders with prompts, and models that OpenVINO cannot run."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import (
    Data2VecTextConfig,
    Data2VecTextModel,
    LongformerConfig,
    LongformerModel,
    XLMRobertaXLConfig,
    XLMRobertaXLModel,
)
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.encoders import load
from arxiv_embeddings.encoders.conversion import ConversionError
from arxiv_embeddings.encoders.load import load_encoder
from arxiv_embeddings.encoders.models import fetch_model
from arxiv_embeddings.encoders.registry import find_model
from arxiv_embeddings.encoders.vectors import measure_agreement, paired_cosines
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.run_model import load_query_encoder, load_run_encoder
from arxiv_embeddings.runs.store import RunWriter, open_run
from tests.fakes.specter_shape import make_adapter, make_base, sample_texts

pytestmark = pytest.mark.slow

QUERIES = ["moth moon", "planets around other stars"]


def invoke(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def moved(tmp_path: Path) -> tuple[Path, Path, Path]:
    "A run made with a local folder, the place of the folder then, and its place now."
    old, new = tmp_path / "model-a", tmp_path / "model-b"
    make_base(old, n_layers=1, hidden_size=64)
    embed_papers(sample_papers(), tmp_path / "run", model=old, pooling="mean", device="cpu", limit=6)
    old.rename(new)
    return tmp_path / "run", old, new


def test_a_model_folder_that_is_gone(moved: tuple[Path, Path, Path]) -> None:
    run, old, _ = moved
    line = (
        f"the model folder {old} does not exist: "
        "if it has moved, give its new path with --model of embed, search or verify"
    )
    for words in (("search", run, "moths"), ("verify", run, "--sample", 1)):
        done = invoke(*words)
        assert (done.exit_code, done.stderr.strip()) == (1, f"error: {line}")
    assert open_run(run).metadata["model_source"] == str(old)


@pytest.mark.parametrize(
    "words", [("search", "RUN", "moths"), ("verify", "RUN", "--sample", "2")], ids=lambda one: one[0]
)
def test_the_new_place_is_taken_and_noted(words: tuple[str, ...], moved: tuple[Path, Path, Path]) -> None:
    run, _, new = moved
    before = open_run(run)
    words = [str(run) if word == "RUN" else word for word in words]
    assert invoke(*words, "--model", new).exit_code == 0
    after = open_run(run)
    assert after.metadata["model_source"] == str(new)
    assert after.metadata["fingerprint"] == before.metadata["fingerprint"]
    assert [part.name for part in after.parts] == [part.name for part in before.parts]
    assert invoke(*words).exit_code == 0  # from now on without
    assert invoke("verify", run).exit_code == 0


def test_embed_notes_the_new_place(moved: tuple[Path, Path, Path]) -> None:
    run, _, new = moved
    options = {"pooling": "mean", "device": "cpu", "limit": 6}
    assert embed_papers(sample_papers(), run, model=new, **options).n_embedded == 0
    assert open_run(run).metadata["model_source"] == str(new)
    assert load_query_encoder(open_run(run), device="cpu").encode(["moths"]).shape == (1, 64)
    # a folder that is still there is not exchanged for a copy
    shutil.copytree(new, new.with_name("model-c"))
    embed_papers(sample_papers(), run, model=new.with_name("model-c"), **options)
    assert open_run(run).metadata["model_source"] == str(new)


def test_another_model_in_the_new_place(moved: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, old, _ = moved
    other = make_base(tmp_path / "other", n_layers=1, hidden_size=64, seed=5)
    for load_it in (load_query_encoder, load_run_encoder):
        with pytest.raises(InputError, match=r"was made with different options \(weights: "):
            load_it(open_run(run), device="cpu", model=other)
    assert open_run(run).metadata["model_source"] == str(old)


def test_the_new_place_cannot_be_noted(moved: tuple[Path, Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    run, old, new = moved
    with RunWriter(run), caplog.at_level(logging.WARNING):
        assert load_query_encoder(open_run(run), device="cpu", model=new).dim == 64
    assert "the new place of the model is not noted in" in caplog.text
    assert open_run(run).metadata["model_source"] == str(old)


def test_an_adapter_that_moved(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", n_layers=1, hidden_size=64)
    adapter = make_adapter(base, tmp_path / "adapter-a")
    options = {"model": base, "pooling": "cls", "device": "cpu", "limit": 4}
    run = embed_papers(sample_papers(), tmp_path / "run", adapter=str(adapter), **options).run
    new = adapter.rename(tmp_path / "adapter-b")
    with pytest.raises(InputError, match=r"the adapter folder .*adapter-a does not exist: .* with --adapter of embed$"):
        load_run_encoder(run, device="cpu")
    embed_papers(sample_papers(), run.folder, adapter=str(new), **options)
    assert load_run_encoder(open_run(run.folder), device="cpu").spec.adapter == str(new)


# prompts

PROMPTS = {
    "a query prompt": ({"query": "Represent this sentence for searching relevant passages: ", "document": ""}, None),
    "both": ({"query": "query: ", "document": "passage: "}, None),
    "a default too": ({"query": "query: ", "document": "text: ", "other": "other: "}, "other"),
    "the query by default": ({"query": "query: ", "document": ""}, "query"),
    "none": ({}, None),
}


def state_prompts(folder: Path, prompts: dict[str, str], default: str | None) -> Path:
    "Let a model's folder state prompts."
    path = folder / "config_sentence_transformers.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | {"prompts": prompts, "default_prompt_name": default}))
    return folder


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    "A copy of the default model."
    return Path(shutil.copytree(fetch_model(find_model("minilm")).folder, tmp_path / "model"))


@pytest.mark.parametrize("kind", PROMPTS)
def test_queries_take_the_query_prompt_and_papers_the_documents(kind: str, copied: Path, tmp_path: Path) -> None:
    folder = state_prompts(copied, *PROMPTS[kind])
    run = embed_papers(sample_papers(), tmp_path / "run", model=folder, engine="torch", device="cpu", limit=6).run
    reference = SentenceTransformer(str(folder), device="cpu")
    queries = load_query_encoder(run, device="cpu").encode(QUERIES)
    assert paired_cosines(queries, reference.encode_query(QUERIES)).min() > 0.99999
    texts = run.metadata and load_run_encoder(run, device="cpu").spec.texts_of(run.read())
    assert paired_cosines(run.embeddings(), reference.encode_document(texts)).min() > 0.99999
    if reference.prompts["query"] != reference.prompts["document"]:  # another prompt would be noticed
        assert paired_cosines(queries, reference.encode_document(QUERIES)).min() < 0.99


def test_an_int8_run_keeps_the_query_prompt(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", n_layers=1, hidden_size=64)
    folder, transformer = tmp_path / "model", Transformer(str(base))
    SentenceTransformer(modules=[transformer, Pooling(64, "mean")], device="cpu").save(str(folder))
    state_prompts(folder, *PROMPTS["both"])
    run = embed_papers(sample_papers(), tmp_path / "run", model=folder, precision="int8", limit=3).run
    reference = SentenceTransformer(str(folder), device="cpu")
    expected, other = reference.encode_query(QUERIES), reference.encode_document(QUERIES)
    shutil.rmtree(folder)
    queries = load_query_encoder(run).encode(QUERIES)
    assert paired_cosines(queries, expected).min() > 0.97 > paired_cosines(queries, other).max()


def test_a_default_prompt_is_for_papers(copied: Path) -> None:
    folder = state_prompts(copied, {"paper": "Represent the paper: "}, "paper")
    encoder = load_encoder(folder, engine="torch", device="cpu")
    reference = SentenceTransformer(str(folder), device="cpu")
    assert paired_cosines(encoder.encode(QUERIES), reference.encode(QUERIES)).min() > 0.99999
    encoder.use_query_prompt()
    assert paired_cosines(encoder.encode(QUERIES), reference.encode_query(QUERIES)).min() > 0.99999


# models that OpenVINO cannot run

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
SMALL |= {"initializer_range": 0.3, "max_position_embeddings": 514, "pad_token_id": 0}
UNUSUAL = {
    "longformer": (LongformerModel, LongformerConfig, {"attention_window": [16, 16]}),
    "data2vec": (Data2VecTextModel, Data2VecTextConfig, {}),
    "xlm-roberta-xl": (XLMRobertaXLModel, XLMRobertaXLConfig, {}),
}


def make_unusual(kind: str, folder: Path) -> Path:
    "A small model of an unusual kind, with random weights."
    base = make_base(folder, n_layers=1, hidden_size=64)
    model_class, config_class, more = UNUSUAL[kind]
    torch.manual_seed(0)
    n_words = len((base / "vocab.txt").read_text().split())
    model_class(config_class(vocab_size=n_words, **SMALL, **more)).save_pretrained(base)
    return base


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_model_runs_on_some_engine(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, texts = make_unusual(kind, tmp_path / kind), sample_texts(limit=8)
    options = {"pooling": "mean", "device": "cpu", "max_tokens": 300}
    with caplog.at_level(logging.WARNING, "arxiv_embeddings"):
        encoder = load_encoder(folder, **options)
    expected = load_encoder(folder, engine="torch", **options).encode(texts)
    assert measure_agreement(encoder.encode(texts), expected)["smallest_cosine"] > 0.99999
    lines = [one.getMessage() for one in caplog.records if "torch runs it instead, more slowly" in one.getMessage()]
    assert len(lines) == (encoder.settings["engine"] == "torch")
    assert all("\n" not in line and str(folder) in line for line in lines)


def test_longformer_cannot_be_converted(tmp_path: Path) -> None:
    folder = make_unusual("longformer", tmp_path / "longformer")
    done = invoke(
        "embed", sample_papers(), "--out", tmp_path / "run", "--model", folder, "--pooling", "mean", "--limit", 2
    )
    assert done.exit_code == 0, done.stderr
    assert open_run(tmp_path / "run").metadata["settings"]["engine"] == "torch"
    assert "internal error" not in done.output + done.stderr
    for options in ({"engine": "openvino"}, {"precision": "int8"}):  # asked for, so there is no other way
        with pytest.raises(InputError, match=r"longformer cannot be converted \(.*\): use --engine torch$") as caught:
            load_encoder(folder, pooling="mean", device="cpu", **options)
        assert "\n" not in str(caught.value)


def test_a_wrong_conversion_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def refuse(*_: object) -> None:
        raise ConversionError("OpenVINO changes the vectors of it: use --engine torch")

    monkeypatch.setattr(load, "get_or_convert", refuse)
    with caplog.at_level(logging.WARNING, "arxiv_embeddings"):
        assert load_encoder("minilm", device="cpu").settings["engine"] == "torch"
    assert "OpenVINO changes the vectors of it: torch runs it instead, more slowly" in caplog.text
    with pytest.raises(InputError, match="OpenVINO changes the vectors of it: use --engine torch"):
        load_encoder("minilm", engine="openvino")
    assert np.isfinite(load_encoder("minilm", device="cpu").encode(["moths"])).all()
