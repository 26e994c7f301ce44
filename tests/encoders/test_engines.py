"""The engines: SPECTER2's shape held to a computation by hand, models of every kind held to torch, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from transformers import (
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
)

from arxiv_embeddings.encoders import conversion, openvino_engine, torch_engine
from arxiv_embeddings.encoders.conversion import calibration_texts, get_or_convert
from arxiv_embeddings.encoders.load import EncoderOptions, load_encoder, make_encoder
from arxiv_embeddings.encoders.model_folder import open_model_folder
from arxiv_embeddings.encoders.models import fetch_model
from arxiv_embeddings.encoders.openvino_engine import OpenVINOEncoder
from arxiv_embeddings.encoders.registry import find_model
from arxiv_embeddings.encoders.torch_engine import TorchEncoder
from arxiv_embeddings.encoders.vectors import measure_agreement
from arxiv_embeddings.explore.index import open_index
from arxiv_embeddings.explore.search import search_text
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.files.hashes import hash_contents
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.run_model import load_query_encoder, load_run_encoder
from arxiv_embeddings.runs.store import open_run
from tests.fakes.specter_shape import load_with_adapter, make_adapter, make_base, sample_texts

pytestmark = pytest.mark.slow

TEXTS = sample_texts(limit=16)


# SPECTER2: base, adapter, separator, [CLS]


@pytest.fixture(scope="module")
def specter2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    "A base of SPECTER2's kind with two adapters, as `load_encoder` takes them; `test_parity` has its full size."
    root = tmp_path_factory.mktemp("specter2")
    base = make_base(root / "base", n_layers=4, hidden_size=256)
    return {
        "model": str(base),
        "adapter": str(make_adapter(base, root / "proximity")),
        "query_adapter": str(make_adapter(base, root / "query", seed=2, safetensors=False, name="[QRY]")),
    }


@pytest.fixture(scope="module")
def by_hand(specter2: dict[str, str]) -> np.ndarray:
    "The vectors as the model card computes them, with the adapter put in by hand, one text at a time, [CLS]."
    model = load_with_adapter(Path(specter2["model"]), Path(specter2["adapter"]))
    tokenizer, vectors = AutoTokenizer.from_pretrained(specter2["model"]), []
    for text in TEXTS:
        tokens = tokenizer(text, truncation=True, max_length=512, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            vectors.append(model(**tokens).last_hidden_state[:, 0].numpy())
    return np.concatenate(vectors)


def load_specter2(specter2: dict[str, str], engine: str, **changes):
    "Load it, with something changed."
    options = {"adapter": specter2["adapter"], "pooling": "cls", "engine": engine, "device": "cpu"} | changes
    return load_encoder(specter2["model"], **options)


def test_different_papers_differ(by_hand: np.ndarray) -> None:
    unit = by_hand / np.linalg.norm(by_hand, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]
    assert cosines.mean() < 0.8, "vectors that are all alike would hide any mistake"


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_specter2_is_base_and_adapter(engine: str, specter2: dict[str, str], by_hand: np.ndarray) -> None:
    encoder = load_specter2(specter2, engine)
    assert encoder.files.spec.separator == "[SEP]"
    assert measure_agreement(encoder.encode(TEXTS), by_hand)["smallest_cosine"] > 0.99999
    # and the check would notice [SEP] as plain text
    encoder.text_tokenizer.tokenizer.encode_special_tokens = True
    assert measure_agreement(encoder.encode(TEXTS), by_hand)["smallest_cosine"] < 0.999


@pytest.mark.parametrize("change", [{"adapter": None}, {"pooling": "mean"}, {"adapter": "query_adapter"}], ids=str)
def test_specter2_with_a_mistake_is_noticed(change: dict, specter2: dict[str, str], by_hand: np.ndarray) -> None:
    wrong = load_specter2(specter2, "torch", **{name: specter2.get(value, value) for name, value in change.items()})
    assert measure_agreement(wrong.encode(TEXTS), by_hand)["smallest_cosine"] < 0.98


def test_int8_has_the_adapter_inside(specter2: dict[str, str], by_hand: np.ndarray) -> None:
    with_adapter = measure_agreement(load_specter2(specter2, "openvino", precision="int8").encode(TEXTS), by_hand)
    without = load_specter2(specter2, "torch", adapter=None).encode(TEXTS)
    assert with_adapter["mean_cosine"] > 0.97 > measure_agreement(without, by_hand)["mean_cosine"]


def test_the_graph_copies_nothing_for_adapters_that_are_not_there(specter2: dict[str, str]) -> None:
    graph = load_specter2(specter2, "openvino").model_folder.folder / "model.xml"
    assert 'type="MatMul"' in graph.read_text()
    assert 'type="Tile"' not in graph.read_text()


def test_a_conversion_is_named_by_what_makes_it(minilm_files, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {precision: conversion.name_converted(minilm_files, precision) for precision in ("float32", "int8")}
    monkeypatch.setitem(conversion.QUANTIZATION, "bias_correction", False)
    assert conversion.name_converted(minilm_files, "float32") == before["float32"]
    assert conversion.name_converted(minilm_files, "int8") != before["int8"]
    monkeypatch.setattr(conversion, "CONVERSION_REVISION", 0)
    assert conversion.name_converted(minilm_files, "float32") != before["float32"]


def test_a_text_query_takes_the_query_adapter(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", n_layers=2, hidden_size=128)
    specter2 = {
        "model": str(base),
        "adapter": str(make_adapter(base, tmp_path / "proximity")),
        "query_adapter": str(make_adapter(base, tmp_path / "query", seed=2, safetensors=False, name="[QRY]")),
    }
    run = embed_papers(sample_papers(), tmp_path / "run", limit=6, pooling="cls", device="cpu", **specter2).run
    assert run.metadata["query_adapter"] == specter2["query_adapter"]
    query = "planets around other stars"
    expected = load_specter2(specter2, "torch", adapter=specter2["query_adapter"]).encode([query])
    agreement = measure_agreement(load_query_encoder(run, device="cpu").encode([query]), expected)
    assert agreement["smallest_cosine"] > 0.99999
    papers_own = load_run_encoder(run, device="cpu").encode([query])
    assert measure_agreement(papers_own, expected)["smallest_cosine"] < 0.99
    found = search_text(open_index(run), query, k=3)
    scores = run.embeddings() @ expected[0] / np.linalg.norm(run.embeddings(), axis=1) / np.linalg.norm(expected)
    assert_allclose(found["cosine"], np.sort(scores)[::-1][:3], atol=2e-4)


# models of every kind


def plain_folder(folder: Path, model_class: type, config) -> Path:
    "A small transformer with random weights and the sample's vocabulary."
    base = make_base(folder, n_layers=1, hidden_size=64)
    torch.manual_seed(0)
    vocabulary = len((base / "vocab.txt").read_text().split())
    config.vocab_size, config.pad_token_id = vocabulary, 0
    model_class(config).save_pretrained(base)
    return base


KINDS = {
    "distilbert": (
        DistilBertModel,
        DistilBertConfig(dim=64, n_layers=2, n_heads=2, hidden_dim=128, initializer_range=0.3),
    ),
    "roberta": (
        RobertaModel,
        RobertaConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            initializer_range=0.3,
            max_position_embeddings=514,
        ),
    ),
    "mpnet": (
        MPNetModel,
        MPNetConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, initializer_range=0.3
        ),
    ),
}


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_are_the_same_on_both_engines(kind: str, pooling: str, tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / kind, *KINDS[kind])
    reference = load_encoder(folder, pooling=pooling, engine="torch", device="cpu", max_tokens=300)
    one_at_a_time = np.concatenate([reference.encode([text]) for text in TEXTS])
    ours = load_encoder(folder, pooling=pooling, engine="openvino", max_tokens=300).encode(TEXTS)
    assert measure_agreement(ours, one_at_a_time)["smallest_cosine"] > 0.99999
    assert measure_agreement(ours, np.roll(one_at_a_time, 1, axis=0))["smallest_cosine"] < 0.999


def test_a_model_with_nothing_but_a_vocabulary(tmp_path: Path) -> None:
    "SciBERT's folder on the hub: config.json, weights and vocab.txt."
    base = make_base(tmp_path / "base", n_layers=1, hidden_size=64)
    expected = load_encoder(base, pooling="mean", device="cpu", engine="torch").encode(TEXTS)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (base / name).unlink(missing_ok=True)
    assert_allclose(load_encoder(base, pooling="mean", engine="openvino").encode(TEXTS), expected, atol=1e-4)


def test_too_little_memory_halves_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder("minilm", engine="torch", device="cpu")
    expected, shapes, start = encoder.encode(TEXTS), [], torch_engine.start_batch

    def start_small(model: Any, ids: np.ndarray, mask: np.ndarray) -> torch.Tensor:
        shapes.append(len(ids))
        if len(ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return start(model, ids, mask)

    monkeypatch.setattr(torch_engine, "start_batch", start_small)
    most = 1
    assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5, strict=True)
    assert max(shapes) > 1
    most = 0
    with pytest.raises(InputError, match=r"cpu has too little memory for a text of \d+ tokens: free some, or use"):
        encoder.encode(TEXTS)


def test_windows_are_the_same_on_both_engines() -> None:
    options = {"long_text": "windows"}
    shorter = fetch_model(find_model("minilm", max_tokens=64))
    ours = make_encoder(shorter, EncoderOptions("openvino", **options))
    theirs = make_encoder(shorter, EncoderOptions("torch", device="cpu", **options))
    assert ours.tokenize(TEXTS).n_truncated == 0 < ours.tokenize(TEXTS).n_long
    assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=2e-6, strict=True)
    assert ours.fingerprint == theirs.fingerprint
    assert ours.fingerprint["long_text"] == "windows"


@pytest.fixture(scope="module")
def minilm_files():
    "The default model's files."
    return fetch_model(find_model("minilm"))


# runs


def test_a_converted_model_needs_no_torch(minilm_files, tmp_path: Path) -> None:
    for precision in ("float32", "int8"):
        get_or_convert(minilm_files, precision)
        embed_papers(sample_papers(), tmp_path / precision, limit=4, precision=precision, engine="openvino")
    program = (
        "import sys\n"
        "from arxiv_embeddings.cli.main import main\n"
        "sys.argv[1:] = {words!r}\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "bad = [name for name in ('torch', 'transformers', 'openvino_telemetry') if sys.modules.get(name)]\n"
        "assert not bad, bad\n"
    )
    for words in (
        ["embed", str(sample_papers()), "--out", str(tmp_path / "new"), "--device", "cpu", "--limit", "3", "-q"],
        ["search", str(tmp_path / "int8"), "spectral clustering", "--device", "cpu"],
        ["embed", str(sample_papers()), "--out", str(tmp_path / "int8"), "--precision", "int8", "--limit", "8", "-q"],
    ):
        subprocess.run([sys.executable, "-c", program.format(words=words)], check=True, timeout=120)


SIGNALS = """
import gc, signal
from arxiv_embeddings.encoders.load import load_encoder

encoders = [load_encoder("minilm", engine="openvino", precision=one, device="cpu") for one in ("float32", "int8")]
while encoders:
    encoders.pop(0).encode("a text")
    gc.collect()
signal.signal(signal.SIGALRM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGALRM)
"""


def test_signals_are_handled_after_models_have_come_and_gone() -> None:
    "Of cores that go in the order in which they came, OpenVINO keeps a stack for signals that is gone."
    done = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_an_int8_run_outlives_its_model(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "model", n_layers=1, hidden_size=64)
    options = {"model": folder, "pooling": "mean", "precision": "int8"}
    run = embed_papers(sample_papers(), tmp_path / "run", limit=6, **options).run
    shutil.rmtree(folder)
    assert len(search_text(open_index(run), "spectral clustering", k=2)) == 2
    (run.folder / "model" / "model.bin").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"model\.bin is damaged or missing"):
        load_query_encoder(run)


def test_another_quantized_model_is_refused(tmp_path: Path) -> None:
    run = embed_papers(sample_papers(), tmp_path / "run", limit=3, precision="int8").run
    model_xml = run.folder / "model" / "model.xml"
    model_xml.write_text(model_xml.read_text() + "\n")
    note = json.loads((run.folder / "model" / "model.json").read_text())
    note["sha256"]["model.xml"] = hash_contents([model_xml])
    (run.folder / "model" / "model.json").write_text(json.dumps(note))
    with pytest.raises(InputError, match="is not the model that made this run's vectors"):
        embed_papers(sample_papers(), tmp_path / "run", precision="int8")
    assert open_run(run.folder).n_papers == 3


def test_precisions_do_not_mix(tmp_path: Path) -> None:
    embed_papers(sample_papers(), tmp_path / "run", limit=3, precision="int8")
    with pytest.raises(InputError, match="precision: int8 there, float32 here"):
        embed_papers(sample_papers(), tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match="long_text: truncate there, windows here"):
        embed_papers(sample_papers(), tmp_path / "run", precision="int8", long_text="windows")


def test_the_engine_sees_few_shapes(minilm, monkeypatch: pytest.MonkeyPatch) -> None:
    "However many texts a call has; each new shape would take memory that is never given back."
    fill, shapes = openvino_engine.fill_batch, set()

    def fill_and_note(*batch: object, alone: bool) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = fill(*batch, alone=alone)
        shapes.add(ids.shape)
        return ids, mask

    encoder = OpenVINOEncoder(minilm.model_folder, token_budget=64, length_multiple=8)
    texts = [text for text in calibration_texts(minilm.files.spec) for text in (text[:30], text[:60])]
    expected = encoder.encode(texts)
    monkeypatch.setattr(openvino_engine, "fill_batch", fill_and_note)
    for n_texts in range(20, 60, 5):
        assert_allclose(encoder.encode(texts[:n_texts]), expected[:n_texts], atol=2e-6)
    assert len(shapes) == len({length for _, length in shapes})  # one for each length
    shapes.clear()
    for n_texts in range(1, 9):
        encoder.encode(["graph"] * n_texts)
    assert sorted(shapes) == [(1, 8), (2, 8), (4, 8), (8, 8)]  # single batches, as of queries


# what is refused


def test_what_this_processor_cannot_give(minilm_files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "has_bfloat16", lambda: False)
    with pytest.raises(InputError, match="this processor has no native bfloat16, so it would be slower than float32"):
        load_encoder("minilm", engine="openvino", precision="bfloat16")
    with pytest.raises(InputError, match="this processor has no native bfloat16"):
        OpenVINOEncoder(get_or_convert(minilm_files), "bfloat16")
    with pytest.raises(InputError, match="torch does not support float16 on cpu: use float32 or bfloat16"):
        load_encoder("minilm", engine="torch", precision="float16", device="cpu")


def test_a_bfloat16_run_is_searched_without_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = embed_papers(
        sample_papers(), tmp_path / "run", limit=12, precision="bfloat16", engine="torch", device="cpu"
    ).run
    assert run.metadata["fingerprint"]["precision"] == "bfloat16"
    monkeypatch.setattr(openvino_engine, "has_bfloat16", lambda: False)
    encoder = load_query_encoder(run, device="cpu")
    assert encoder.settings["precision"] == "float32"
    texts = [text.replace("[SEP]", " [SEP] ") for text in sample_texts(limit=12)]
    agreement = measure_agreement(encoder.encode(texts), run.embeddings())
    assert 0.999 < agreement["smallest_cosine"] < 0.999999


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(InputError, match="cannot be loaded"):
        load_encoder("minilm", device="cuda:99")


@pytest.mark.parametrize(
    ("hidden", "options", "line"),
    [
        ("openvino", {"engine": "openvino"}, "OpenVINO is not installed: pip install openvino, or use --engine torch"),
        ("nncf", {"precision": "int8"}, r"int8 needs nncf to quantize a model: pip install 'arxiv-embeddings\[int8\]'"),
    ],
)
def test_what_is_not_installed(
    hidden: str, options: dict, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hidden == "nncf":  # quantized anew, from a model that is in the cache
        converted = get_or_convert(fetch_model(find_model("minilm")))
        shutil.copytree(converted.folder, tmp_path / converted.folder.name)
    monkeypatch.setenv("ARXIV_EMBEDDINGS_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, hidden, None)
    openvino_engine.load_openvino.cache_clear()
    try:
        with pytest.raises(InputError, match=line):
            load_encoder("minilm", **options)
    finally:
        monkeypatch.undo()
        openvino_engine.load_openvino.cache_clear()
    assert not list(tmp_path.glob("minilm-int8-*/model.json"))


def test_a_paper_of_which_nothing_is_known(tmp_path: Path) -> None:
    path = tmp_path / "papers.csv"
    path.write_text("id,title,abstract\n1,Known,Words.\n2,\u1303\u1201,\u1265\u1230 \u1303\n3,Other,Words.\n")
    with pytest.raises(InputError, match=r"the model knows no token of 1 paper, 2: take them out"):
        embed_papers(path, tmp_path / "run", device="cpu", part_size=1)
    assert open_run(tmp_path / "run").paper_ids == ["1"]  # what was before it is safe
    run = embed_papers(path, tmp_path / "run", device="cpu", allow_unknown=True).run
    assert run.paper_ids == ["1", "2", "3"]
    assert [part["n_unknown"] for part in run.metadata["parts"]] == [0, 1, 0]
    with pytest.raises(InputError, match=r"the model knows no token of 1 paper, 2: take them out"):
        embed_papers(path, tmp_path / "int8", precision="int8")  # noticed before anything is made
    assert not (tmp_path / "int8").exists()


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", n_layers=1, hidden_size=64)
    encoder = TorchEncoder(fetch_model(find_model(base, pooling="mean")), device="cpu")
    with torch.no_grad():
        encoder.model[0].auto_model.embeddings.word_embeddings.weight[encoder.tokenize(["sparse"]).rows[0][1]] = (
            torch.nan
        )
    assert np.isfinite(encoder.encode(["a graph"])).all()
    with pytest.raises(InputError, match=r"computes NaN or infinity in float32 \(texts at positions \[1\]\)"):
        encoder.encode(["a graph", "sparse"])


# the cache of converted models

CONVERT = """
import os, signal, sys
from arxiv_embeddings.encoders import conversion, openvino_engine
from arxiv_embeddings.encoders.models import fetch_model
from arxiv_embeddings.encoders.registry import find_model

if sys.argv[2] == "die":  # while the files are half there
    conversion.write_manifest = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
print(conversion.get_or_convert(fetch_model(find_model(sys.argv[1], pooling="cls"))).folder)
"""


def begin_conversion(model: Path, cache: Path, *words: str) -> subprocess.Popen:
    "Convert in a process of its own."
    environment = os.environ | {"ARXIV_EMBEDDINGS_CACHE": str(cache)}
    command = [sys.executable, "-c", CONVERT, str(model), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_conversion_that_is_killed_leaves_nothing_half(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", n_layers=1, hidden_size=64)
    killed = begin_conversion(base, tmp_path / "cache", "die")
    assert killed.wait(timeout=120) == -9
    left = [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(left) == 1
    assert left[0].endswith(".partial")
    # two at a time afterwards: one makes it, the other waits and takes it
    both = [begin_conversion(base, tmp_path / "cache", "live") for _ in range(2)]
    folders = {process.communicate(timeout=120)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(folders) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [Path(*folders).name]
    assert open_model_folder(Path(*folders)).manifest["dim"] == 64


def test_encoders_can_be_thrown_away(minilm_files) -> None:
    "Freeing an engine while its threads still end once hung for ever."
    started, converted = time.monotonic(), get_or_convert(minilm_files)
    vectors = [OpenVINOEncoder(converted, token_budget=1).encode(["a", "short text"] * 8) for _ in range(4)]
    for other in vectors[1:]:
        assert_array_equal(other, vectors[0])
    assert time.monotonic() - started < 300
