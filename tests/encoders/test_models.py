"""Models: what is found and loaded is what was meant, and what is not is one sentence."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast, RobertaConfig

from arxiv_embeddings.encoders.load import load_encoder
from arxiv_embeddings.encoders.models import fetch_model, fingerprint_model, resolve_max_tokens
from arxiv_embeddings.encoders.pooling import POOLING_FUNCTIONS, pool_tokens
from arxiv_embeddings.encoders.registry import REGISTRY, find_model, find_query_model
from arxiv_embeddings.encoders.safe_folder import find_weights
from arxiv_embeddings.encoders.vectors import l2_normalize
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import read_papers, sample_papers
from arxiv_embeddings.papers.texts import make_texts
from arxiv_embeddings.runs.format import hash_fingerprint
from tests.fakes.malicious import Malicious
from tests.fakes.specter_shape import load_with_adapter, make_adapter

TEXTS = make_texts(read_papers(sample_papers()).table(limit=12), separator="[SEP]")


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A small BERT with random weights and MiniLM's vocabulary: a folder as transformers saves it, without pooling."
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    model = BertModel(config)
    for parameter in model.parameters():  # fresh weights make all texts alike and would hide mistakes
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    BertTokenizerFast(str(fetch_model(find_model("minilm")).folder / "vocab.txt")).save_pretrained(folder)
    return folder


def reference_token_vectors(folder: Path, texts: list[str]):
    "Token vectors and mask from transformers itself."
    tokens = BertTokenizerFast.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=512, return_tensors="pt"
    )
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.inference_mode():
        vectors = model(**tokens).last_hidden_state.numpy()
    return vectors, tokens["attention_mask"].numpy()


@pytest.mark.parametrize("pooling", [*POOLING_FUNCTIONS, "cls+mean", "lasttoken+mean_sqrt_len+cls"])
def test_a_plain_transformer_is_pooled_as_stated(pooling: str, plain_model: Path) -> None:
    ours = load_encoder(plain_model, pooling=pooling, device="cpu").encode(TEXTS)
    token_vectors = reference_token_vectors(plain_model, TEXTS)
    expected = pool_tokens(*token_vectors, pooling)
    assert_allclose(ours, expected, atol=2e-5 * max(1, np.abs(expected).max()), strict=True)
    # and no two of them are the same thing
    if pooling in POOLING_FUNCTIONS:
        others = [pool_tokens(*token_vectors, name) for name in POOLING_FUNCTIONS if name != pooling]
        assert all(np.abs(ours - other).max() > 0.02 for other in others)


def test_an_adapter_is_active(plain_model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(plain_model, tmp_path / "adapter")
    encoder = load_encoder(plain_model, pooling="cls", adapter=str(adapter), device="cpu")
    ours = encoder.encode(TEXTS)
    tokens = BertTokenizerFast.from_pretrained(plain_model)(
        TEXTS, padding=True, truncation=True, max_length=512, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = load_with_adapter(plain_model, adapter)(**tokens).last_hidden_state[:, 0].numpy()
    assert_allclose(ours, expected, atol=2e-5, strict=True)
    without = load_encoder(plain_model, pooling="cls", device="cpu")
    assert np.abs(ours - without.encode(TEXTS)).max() > 0.1
    assert encoder.fingerprint["adapter_sha256"]
    assert hash_fingerprint(encoder.fingerprint) != hash_fingerprint(without.fingerprint)


def test_modules_of_a_sentence_transformers_folder_all_count(plain_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    modules = [Transformer(str(plain_model)), Pooling(32, pooling_mode="max"), Dense(32, 8)]
    reference = SentenceTransformer(modules=modules, device="cpu")
    reference.prompts, reference.default_prompt_name = {"paper": "Represent the paper: "}, "paper"
    reference.save(str(tmp_path / "dense"))
    encoder = load_encoder(tmp_path / "dense", device="cpu")
    assert encoder.files.spec.pooling == "max"
    assert_allclose(encoder.encode(TEXTS), reference.encode(TEXTS), atol=2e-5, strict=True)
    # another Dense is another model
    weights = load_file(tmp_path / "dense" / "2_Dense" / "model.safetensors")
    save_file(
        {name: value * 2 for name, value in weights.items()}, tmp_path / "dense" / "2_Dense" / "model.safetensors"
    )
    assert fingerprint_model(fetch_model(find_model(tmp_path / "dense"))) != encoder.fingerprint


def test_old_bin_weights_give_the_same_vectors(plain_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(plain_model, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    ours = load_encoder(folder, pooling="mean", device="cpu").encode(TEXTS)
    assert_allclose(ours, load_encoder(plain_model, pooling="mean", device="cpu").encode(TEXTS), atol=1e-6, strict=True)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "2_Dense/pytorch_model.bin", "adapter/pytorch_adapter.bin"])
def test_a_pickle_is_never_run(name: str, plain_model: Path, tmp_path: Path) -> None:
    folder, proof = tmp_path / "model", tmp_path / "proof"
    modules = [Transformer(str(plain_model)), Pooling(32, pooling_mode="mean"), Dense(32, 8)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    adapter = None
    if name.startswith("adapter"):
        adapter = str(folder / "adapter")
        Path(adapter).mkdir()
        (Path(adapter) / "adapter_config.json").write_text(
            json.dumps({"config": {"architecture": None}, "hidden_size": 32, "model_type": "bert", "name": "a"})
        )
    (folder / name).with_name("model.safetensors").unlink(missing_ok=True)
    (folder / name).write_bytes(pickle.dumps({"linear.weight": Malicious(proof)}, protocol=2))
    pickle.loads((folder / name).read_bytes())
    assert proof.exists()  # plain pickle would run it
    proof.unlink()
    with pytest.raises(InputError):
        load_encoder(folder, adapter=adapter, device="cpu")
    assert not proof.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_code_in_a_model_folder_is_never_run(name: str, plain_model: Path, tmp_path: Path, monkeypatch) -> None:
    folder, proof = tmp_path / "model", tmp_path / "proof"
    shutil.copytree(plain_model, folder)
    (folder / "theirs.py").write_text(f"open({str(proof)!r}, 'w')\nclass Theirs: pass\n")
    path = folder / name
    config = json.loads(path.read_text()) if path.exists() else {}
    automatic = dict.fromkeys(("AutoModel", "AutoConfig", "AutoProcessor"), "theirs.Theirs")
    path.write_text(
        json.dumps(config | {"auto_map": automatic | {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]}})
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # somebody who says yes to everything
    with pytest.raises(InputError, match="contains custom code"):
        load_encoder(folder, pooling="mean", device="cpu")
    assert not proof.exists()


def test_more_features_than_the_model_takes(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    DistilBertModel(DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=64)).save_pretrained(tmp_path)
    vocabulary = str(fetch_model(find_model("minilm")).folder / "vocab.txt")
    BertTokenizerFast(vocabulary).save_pretrained(tmp_path)  # makes token types, which DistilBERT does not take
    assert load_encoder(tmp_path, pooling="mean", device="cpu").encode(TEXTS).shape == (12, 32)


def test_a_weight_that_two_names_share_is_not_missing(tmp_path: Path, plain_model: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    T5EncoderModel(T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, vocab_size=30522)).save_pretrained(
        tmp_path
    )
    BertTokenizerFast.from_pretrained(plain_model).save_pretrained(tmp_path)
    assert load_encoder(tmp_path, pooling="mean", device="cpu").encode(TEXTS).shape == (12, 32)


def test_modules_that_cannot_be_pooled_or_read(plain_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(plain_model, folder)
    kind = "sentence_transformers.models.Transformer"
    for content, message in (
        ([{"path": "", "type": kind}], "a Pooling is missing"),
        ([{"idx": 0}], "a module without type or path"),
        ({"path": ""}, "it holds no list"),
    ):
        (folder / "modules.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            load_encoder(folder, pooling="mean", device="cpu")


def test_small_letters_are_part_of_the_fingerprint(minilm, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(minilm.files.folder, folder)
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps({"max_seq_length": 128, "do_lower_case": False}))
    same = fingerprint_model(fetch_model(find_model(folder, max_tokens=512)))
    path.write_text(json.dumps({"max_seq_length": 128, "do_lower_case": True}))
    other = fingerprint_model(fetch_model(find_model(folder, max_tokens=512)))
    assert [field for field in same if same[field] != other[field]] == ["modules_sha256"]
    assert same["modules_sha256"] == minilm.fingerprint["modules_sha256"]


def test_no_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between tries
    for name in ("specter2", "specter2_base", "scibert", "distilbert", "some-org/some-model"):
        spec = find_model(name)
        with pytest.raises(InputError, match="the hub cannot be reached for") as caught:
            fetch_model(spec)
        assert spec.source in str(caught.value)
        assert "\n" not in str(caught.value)


def test_registry_states_everything() -> None:
    for name, spec in REGISTRY.items():
        assert spec.name == name
        assert spec.pooling in {*POOLING_FUNCTIONS, None}  # `None`: its folder decides
        assert spec.license in ("Apache-2.0", "MIT", "LicenseRef-Gemma")
        assert spec.source.startswith("package:") or len(spec.revision) == 40
        if spec.adapter and name not in ("specter2_classification", "specter2_regression"):
            assert len(spec.adapter_revision) == 40
        assert spec.query_adapter is None or len(spec.query_adapter_revision) == 40
    assert REGISTRY["specter2"].pooling == "cls"
    assert REGISTRY["specter2"].adapter == "allenai/specter2"
    assert REGISTRY["specter2"].query_adapter == "allenai/specter2_adhoc_query"
    for adapter in ("adhoc_query", "classification", "regression"):
        spec = REGISTRY[f"specter2_{adapter}"]
        assert spec.adapter == f"allenai/specter2_{adapter}"
        assert (spec.source, spec.pooling, spec.text) == ("allenai/specter2_base", "cls", "title+abstract")
        assert find_query_model(spec) is None


def test_a_query_adapter_goes_with_its_adapter(tmp_path: Path) -> None:
    specter2 = REGISTRY["specter2"]
    query = find_query_model(specter2)
    assert (query.adapter, query.adapter_revision) == (specter2.query_adapter, specter2.query_adapter_revision)
    assert (query.query_adapter, query.query_adapter_revision) == (None, None)
    assert (query.source, query.revision, query.name) == (specter2.source, specter2.revision, "specter2")
    assert find_query_model(find_model("minilm")) is None
    # another adapter takes the place of both
    other = find_model("specter2", adapter=str(tmp_path))
    assert (other.adapter, other.adapter_revision) == (str(tmp_path), None)
    assert (other.query_adapter, other.query_adapter_revision) == (None, None)
    # unless one is asked for
    both = find_model("specter2", adapter="specter2_classification", query_adapter="some-org/some-adapter")
    assert (both.adapter, both.query_adapter) == ("allenai/specter2_classification", "some-org/some-adapter")
    assert (both.adapter_revision, both.query_adapter_revision) == (None, None)
    only_query = find_model("specter2", query_adapter=str(tmp_path))
    assert (only_query.adapter, only_query.query_adapter) == (specter2.adapter, str(tmp_path))
    assert (only_query.adapter_revision, only_query.query_adapter_revision) == (specter2.adapter_revision, None)
    # its own adapter is not another one, whichever way it is named, and an adapter that is known keeps its commit
    for name in ("specter2", "allenai/specter2"):
        assert find_model("specter2", adapter=name) == specter2
        assert find_model("specter2_base", adapter=name).adapter_revision == specter2.adapter_revision
    added = find_model("specter2_base", adapter="specter2", query_adapter="specter2_adhoc_query")
    assert find_query_model(added).adapter_revision == specter2.query_adapter_revision
    for options in ({"adapter": "nobody"}, {"query_adapter": "nobody"}):
        with pytest.raises(InputError, match="no model 'nobody'"):
            find_model("specter2", **options)
    for options in ({"adapter": "minilm"}, {"query_adapter": "minilm"}):
        with pytest.raises(InputError, match="'minilm' has no adapter"):
            find_model("specter2", **options)


def test_heads_are_not_weights(tmp_path: Path) -> None:
    heads = ("model_head.safetensors", "pytorch_model_head.bin", "model_adapter_fusion.safetensors")
    for name in heads:
        (tmp_path / name).touch()
    assert find_weights(tmp_path) == []
    for first in (
        ["adapter_model.bin"],
        ["pytorch_adapter.bin"],
        ["pytorch_model.bin"],
        ["adapter_model.safetensors"],
        ["adapter.safetensors"],
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    ):
        for name in first:
            (tmp_path / name).touch()
        assert [path.name for path in find_weights(tmp_path)] == first


def test_too_few_tokens_without_a_position_table(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    for impossible in (2, 0, -1):
        with pytest.raises(InputError, match=f"max_tokens {impossible} is too"):
            resolve_max_tokens(find_model(tmp_path, max_tokens=impossible), tmp_path)
    assert resolve_max_tokens(find_model(tmp_path, max_tokens=3), tmp_path) == 3
    assert resolve_max_tokens(find_model(tmp_path, max_tokens=3000), tmp_path) == 3000


def test_positions_of_roberta_begin_behind_the_padding(tmp_path: Path) -> None:
    RobertaConfig(max_position_embeddings=514, pad_token_id=1).save_pretrained(tmp_path)
    spec = find_model(tmp_path, pooling="mean")
    assert resolve_max_tokens(spec, tmp_path) == 512
    for impossible in (513, 0):
        with pytest.raises(InputError, match=f"max_tokens {impossible} is too"):
            resolve_max_tokens(find_model(tmp_path, pooling="mean", max_tokens=impossible), tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "max_position_embeddings": 514}')
    assert resolve_max_tokens(spec, tmp_path) == 512


def test_fingerprint_knows_what_matters_and_what_does_not(plain_model: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path, **options: object) -> dict:
        return fingerprint_model(fetch_model(find_model(folder, **({"pooling": "mean"} | options))))

    copy = tmp_path / "moved"
    shutil.copytree(plain_model, copy)
    base = fingerprint(plain_model)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "0.0", "_name_or_path": "x"}))
    assert fingerprint(copy) == base  # another place, another writer
    for changed in ({"pooling": "cls"}, {"text": "abstract"}, {"max_tokens": 100}):
        assert fingerprint(copy, **changed) != base
    (copy / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    assert fingerprint(copy) != base
    (copy / "config.json").write_text(json.dumps(config))
    weights = load_file(copy / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][0, 0] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(copy)["weights_sha256"] != base["weights_sha256"]


def test_unit_length_is_told_truly(minilm, plain_model: Path) -> None:
    assert minilm.files.unit_length
    vectors = minilm.encode(TEXTS)
    assert_allclose(vectors, l2_normalize(vectors), atol=1e-6)
    plain = load_encoder(plain_model, pooling="mean", device="cpu")
    assert not plain.files.unit_length
    assert np.abs(np.linalg.norm(plain.encode(TEXTS), axis=1) - 1).min() > 0.1


@pytest.mark.parametrize("token_budget", [1, 300, 4096, 100_000])
def test_neighbors_in_a_batch_change_nothing(token_budget: int, minilm, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*TEXTS, "short", "word " * 1000]
    monkeypatch.setitem(minilm.batching, "token_budget", token_budget)
    ours = minilm.encode(texts)
    alone = np.concatenate([minilm.encode([text]) for text in texts])
    assert_allclose(ours, alone, atol=1e-6, strict=True)
