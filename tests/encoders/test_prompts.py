"""Prompts, dimensions kept and metric: each reaches the vectors, the run, its queries and its measures."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.encoders.load import load_encoder
from arxiv_embeddings.encoders.models import fetch_model
from arxiv_embeddings.encoders.registry import find_model
from arxiv_embeddings.encoders.spec import METRICS
from arxiv_embeddings.explore.evaluation import evaluate_run
from arxiv_embeddings.explore.index import build_index
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import read_papers, sample_papers
from arxiv_embeddings.runs import format as run_format
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.run_model import load_query_encoder, load_run_encoder
from arxiv_embeddings.runs.store import Run, open_run

QUERY = "planets around other stars"
PROMPTS = {"query": "query: ", "passage": "passage: ", "clustering": "topic: ", "document": ""}
N_PAPERS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "MiniLM, with prompts as authors of other models state them."
    folder = tmp_path_factory.mktemp("models") / "prompted"
    shutil.copytree(fetch_model(find_model("minilm")).folder, folder)
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": PROMPTS}))
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> SentenceTransformer:
    "The same in sentence-transformers."
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 256
    return model


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    "A run of the model, with what its files state."
    place = tmp_path_factory.mktemp("runs") / "run"
    return embed_papers(sample_papers(), place, model=str(folder), limit=N_PAPERS, device="cpu").run


def read_texts(folder: Path) -> list[str]:
    "The papers of the run, as the model reads them."
    spec = fetch_model(find_model(str(folder))).spec
    return spec.texts_of(read_papers(sample_papers()).table(limit=N_PAPERS))


def test_papers_and_queries_get_the_prompts_of_the_files(
    folder: Path, reference: SentenceTransformer, run: Run
) -> None:
    expected = reference.encode(read_texts(folder), prompt="passage: ")
    assert_allclose(run.embeddings(), expected, atol=1e-5)
    encoder = load_query_encoder(run, device="cpu")
    assert_allclose(encoder.encode(QUERY), reference.encode_query(QUERY), atol=1e-5)
    # and another prompt would show
    assert np.abs(expected - reference.encode(read_texts(folder))).max() > 0.01
    assert (run.metadata["fingerprint"]["prompt"], run.metadata["query_prompt"]) == ("passage: ", "query: ")


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("prompt", ["clustering", "topic: "])
def test_a_prompt_by_name_or_by_its_words(
    engine: str, prompt: str, folder: Path, reference: SentenceTransformer
) -> None:
    encoder = load_encoder(folder, prompt=prompt, query_prompt="", engine=engine, device="cpu")
    assert_allclose(encoder.encode(QUERY), reference.encode(QUERY, prompt="topic: "), atol=1e-5)
    encoder.use_query_prompt()
    assert_allclose(encoder.encode(QUERY), reference.encode(QUERY), atol=1e-5)


def test_a_run_goes_on_with_its_prompts_alone(folder: Path, tmp_path: Path) -> None:
    asked = {"model": str(folder), "device": "cpu", "prompt": "clustering", "query_prompt": "ask: "}
    run = embed_papers(sample_papers(), tmp_path / "run", limit=4, **asked).run
    with pytest.raises(InputError, match="prompt") as caught:
        embed_papers(sample_papers(), run.folder, limit=8, model=str(folder), device="cpu")
    assert "'topic: '" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=re.escape("(--query-prompt 'ask: ')")) as caught:
        embed_papers(sample_papers(), run.folder, limit=8, **asked | {"query_prompt": "query"})
    assert "query_prompt: 'ask: ' there, 'query: ' here" in str(caught.value)
    assert embed_papers(sample_papers(), run.folder, limit=8, **asked).run.n_papers == 8
    queries = load_query_encoder(open_run(run.folder), device="cpu")
    assert queries.text_tokenizer.prompt == "ask: "


def test_an_int8_run_keeps_prompts_and_dimensions(folder: Path, tmp_path: Path) -> None:
    asked = {"model": str(folder), "precision": "int8", "prompt": "clustering", "truncate_dim": 64}
    run = embed_papers(sample_papers(), tmp_path / "run", limit=N_PAPERS, **asked).run
    again = load_run_encoder(run, device="cpu")
    assert (again.text_tokenizer.prompt, again.dim, run.dim) == ("topic: ", 64, 64)
    assert load_query_encoder(run, device="cpu").encode(QUERY).shape == (64,)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_fewer_dimensions_are_the_first_ones(engine: str, folder: Path) -> None:
    whole = load_encoder(folder, engine=engine, device="cpu").encode([QUERY, "another text"])
    kept = load_encoder(folder, engine=engine, device="cpu", truncate_dim=100).encode([QUERY, "another text"])
    expected = whole[:, :100] / np.linalg.norm(whole[:, :100], axis=1, keepdims=True)
    assert_allclose(kept, expected, atol=1e-6, strict=True)
    by_hand = SentenceTransformer(str(folder), device="cpu", truncate_dim=100)
    theirs = by_hand.encode([QUERY, "another text"], prompt="passage: ", normalize_embeddings=True)
    assert_allclose(kept, theirs, atol=1e-5, strict=True)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_more_dimensions_than_there_are(engine: str, folder: Path) -> None:
    with pytest.raises(InputError, match=r"truncate_dim 385 is too large: .* makes vectors of 384 numbers"):
        load_encoder(folder, engine=engine, device="cpu", truncate_dim=385)
    with pytest.raises(InputError, match="truncate_dim must be 1 or more, not 0"):
        load_encoder(folder, truncate_dim=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "paper"], "has no prompt 'paper'; available: query, passage, clustering. Or give the text"),
        (["--query-prompt", "paper"], "has no prompt 'paper'; available: query, passage, clustering."),
        (["--truncate-dim", "385"], "truncate_dim 385 is too large"),
    ],
)
def test_what_is_not_there_is_one_line(words: list[str], message: str, folder: Path, tmp_path: Path) -> None:
    command = ["embed", str(sample_papers()), "--out", str(tmp_path / "run"), "--model", str(folder), "--device", "cpu"]
    done = CliRunner().invoke(app, [*command, *words])
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_folder_with_the_name_of_a_prompted_model_is_asked_about(folder: Path, tmp_path: Path) -> None:
    named = tmp_path / "e5-base-v2"
    shutil.copytree(folder, named)
    (named / "config_sentence_transformers.json").unlink()
    with pytest.raises(
        InputError, match="add --prompt 'passage: ' --query-prompt 'query: ', or other text, '' for none"
    ):
        find_and_fetch(named)
    assert find_and_fetch(named, prompt="", query_prompt="").spec.prompt == ""
    assert find_and_fetch(named, prompt="passage: ", query_prompt="query: ").spec.query_prompt == "query: "


def find_and_fetch(folder: Path, **asked: str):
    "A model's files."
    return fetch_model(find_model(str(folder), **asked))


def test_a_run_can_state_every_metric_of_a_model() -> None:
    assert {*run_format.METRICS, "manhattan"} == set(METRICS)


def test_a_run_is_measured_in_its_own_metric(folder: Path, tmp_path: Path) -> None:
    for metric, place in (("euclidean", "flat"), ("dot", "dot")):
        copy = tmp_path / place
        shutil.copytree(folder, copy)
        # without the last module vectors have many lengths, so that the metric decides
        modules = json.loads((copy / "modules.json").read_text())
        (copy / "modules.json").write_text(json.dumps(modules[:-1]))
        path = copy / "config_sentence_transformers.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"similarity_fn_name": metric}))
    flat, dot = (
        embed_papers(sample_papers(), tmp_path / f"run-{name}", model=str(tmp_path / name), limit=40, device="cpu").run
        for name in ("flat", "dot")
    )
    assert (flat.metadata["metric"], dot.metadata["metric"]) == ("euclidean", "dot product")
    by_default, by_cosine, by_distance = (
        evaluate_run(flat, only=("neighbors",), k=3, **asked)
        for asked in ({}, {"metric": "cosine"}, {"metric": "euclidean"})
    )
    assert (by_default["metric"], by_cosine["metric"]) == ("euclidean", "cosine")
    assert by_default == by_distance
    with pytest.raises(InputError, match="is dot product, which is not supported here"):
        evaluate_run(dot, only=("neighbors",), k=3)
    build_index(flat)
    with pytest.raises(InputError, match="is dot product, but an index searches by cosine: --metric cosine builds it"):
        build_index(dot)
    build_index(dot, metric="cosine")
    with pytest.raises(InputError, match="an index searches by cosine, not by manhattan"):
        build_index(flat, metric="manhattan")
