"""LoRA adapters are merged as the package `peft` merges them, and what is not a plain LoRA, or does not fit, is refused."""

import copy
import json
import logging
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, BertForMaskedLM, PreTrainedModel

from arxiv_embeddings.encoders.adapters import OTHER_LORAS, PEFT_FORMS, apply_adapter, merge_lora
from arxiv_embeddings.encoders.base import describe_encoder
from arxiv_embeddings.encoders.hub import PICKLED_WEIGHTS, SAFE_WEIGHTS, SMALL_FILES
from arxiv_embeddings.encoders.load import load_encoder
from arxiv_embeddings.encoders.models import fetch_model, fingerprint_model
from arxiv_embeddings.encoders.registry import find_model
from arxiv_embeddings.encoders.safe_folder import find_weights
from arxiv_embeddings.encoders.vectors import paired_cosines
from arxiv_embeddings.files.errors import InputError
from tests.fakes.malicious import Malicious
from tests.fakes.shapes import (
    fill_weights,
    make_bert,
    make_gemma3,
    make_modernbert,
    make_qwen3,
    make_shape,
    sample_texts,
)

N_TOKENS = 60
MAKERS: dict[str, Callable[[int], PreTrainedModel]] = {
    "bert": make_bert,
    "modernbert": make_modernbert,
    "qwen3": make_qwen3,
    "gemma3": make_gemma3,
}
QUERIES = {"bert": "query", "modernbert": "Wqkv", "qwen3": "q_proj", "gemma3": "q_proj"}
TEXTS = sample_texts(limit=6)


@cache
def read_base(name: str) -> PreTrainedModel:
    "A tiny transformer; copy it before it is changed."
    model = MAKERS[name](N_TOKENS).eval()
    fill_weights(model, seed=0)
    return model


def compute_tokens(model: torch.nn.Module) -> np.ndarray:
    "The vectors of all tokens of two texts, without padding."
    ids = torch.arange(4, 28).reshape(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).last_hidden_state[mask == 1].float().numpy()


def train(model: PreTrainedModel, folder: Path, **options: Any) -> PeftModel:
    "Save a LoRA of random numbers with peft; the model is changed."
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "lora_dropout": 0.1} | options)
    trained = get_peft_model(model, config).eval()
    numbers = np.random.RandomState(1)
    with torch.no_grad():
        for name, weights in sorted(trained.named_parameters()):
            if "lora_" in name:
                weights.copy_(torch.from_numpy(0.3 * numbers.standard_normal(weights.shape)))
    trained.save_pretrained(folder)
    return trained


# what is merged

OPTIONS = {
    "plain": {"target_modules": ["query", "value"]},
    "rslora": {"target_modules": ["query", "value"], "use_rslora": True},
    "pattern": {"target_modules": r".*layer\.\d\.(attention\.self\.key|intermediate\.dense)"},
    "all": {"target_modules": "all-linear"},
    "dense": {"target_modules": ["dense"]},  # with the pooler
    "ranks": {"target_modules": ["query", "dense"], "rank_pattern": {"uery": 9, r"layer\.1\.attention\.self\.query": 7, "output.dense": 2}},
    "alphas": {"target_modules": ["query", "key"], "alpha_pattern": {"uery": 3, "query": 11, "self.query": 2}},
    "both": {"target_modules": ["query"], "rank_pattern": {"query": 2}, "alpha_pattern": {"^encoder.layer.0.*": 9}, "use_rslora": True},
    "one layer": {"target_modules": ["query", "value"], "layers_to_transform": 1},
    "layers": {"target_modules": ["value"], "layers_to_transform": [0], "layers_pattern": ["layer"]},
    "excluded": {"target_modules": ["query", "value"], "exclude_modules": r".*\.0\..*query"},
    "excluded names": {"target_modules": ["query", "dense"], "exclude_modules": ["intermediate.dense"]},
    "words": {"target_modules": ["word_embeddings", "query"]},
    "gaussian": {"target_modules": ["query"], "init_lora_weights": "gaussian", "task_type": "FEATURE_EXTRACTION"},
}  # fmt: skip
CASES = [("bert", name, options) for name, options in OPTIONS.items()] + [
    ("modernbert", "plain", {"target_modules": ["Wqkv", "Wo", "Wi"]}),
    ("qwen3", "plain", {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}),
    ("qwen3", "words", {"target_modules": ["embed_tokens", "q_proj"], "rank_pattern": {"embed_tokens": 6}}),
    ("gemma3", "words", {"target_modules": ["embed_tokens", "down_proj"]}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # peft warns of tables of words that it saves
@pytest.mark.parametrize(("base", "options"), [(base, options) for base, _, options in CASES], ids=[f"{one}-{two}" for one, two, _ in CASES])  # fmt: skip
def test_vectors_are_those_of_peft(base: str, options: dict[str, Any], tmp_path: Path) -> None:
    trained = train(copy.deepcopy(read_base(base)), tmp_path, **options)
    model, precise = copy.deepcopy(read_base(base)), copy.deepcopy(read_base(base)).double()
    merge_lora(model, tmp_path)
    merge_lora(precise, tmp_path)  # in float64, so that only a wrong formula can differ
    theirs = PeftModel.from_pretrained(copy.deepcopy(read_base(base)).double(), tmp_path).merge_and_unload()
    ours = compute_tokens(model)
    assert np.abs(ours - compute_tokens(trained)).max() <= 1e-5
    assert np.abs(compute_tokens(precise) - compute_tokens(theirs)).max() <= 1e-6
    assert np.abs(compute_tokens(precise) - compute_tokens(trained.double())).max() <= 1e-6
    for name, weights in theirs.state_dict().items():
        if not name.startswith("pooler."):
            assert torch.allclose(model.state_dict()[name].double(), weights, rtol=0, atol=1e-6), name
    # the case would show an adapter that is not there
    assert np.abs(ours - compute_tokens(read_base(base))).max() > 0.01


def test_no_two_cases_give_the_same(tmp_path: Path) -> None:
    vectors = []
    for number, options in enumerate(one for name, one in OPTIONS.items() if name not in ("gaussian", "dense")):
        train(copy.deepcopy(read_base("bert")), tmp_path / str(number), **options)
        model = copy.deepcopy(read_base("bert"))
        merge_lora(model, tmp_path / str(number))
        vectors.append(compute_tokens(model))
    for number, one in enumerate(vectors):
        assert all(np.abs(one - other).max() > 0.01 for other in vectors[:number])


def test_a_lora_of_a_model_with_a_head(tmp_path: Path) -> None:
    model = BertForMaskedLM(read_base("bert").config).eval()
    model.bert.load_state_dict(read_base("bert").state_dict(), strict=False)
    pattern = {"bert.encoder.layer.0.attention.self.query": 5}
    trained = train(model, tmp_path, target_modules=["query", "dense"], rank_pattern=pattern)
    assert any(".cls." in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    ours = copy.deepcopy(read_base("bert"))
    merge_lora(ours, tmp_path)
    assert np.abs(compute_tokens(ours) - compute_tokens(trained.base_model.model.bert)).max() <= 1e-5
    headed = BertForMaskedLM(read_base("bert").config).eval()
    headed.bert.load_state_dict(read_base("bert").state_dict(), strict=False)
    merge_lora(headed, tmp_path)
    np.testing.assert_array_equal(compute_tokens(headed.bert), compute_tokens(ours))


def test_pickles_and_names_with_the_adapter(tmp_path: Path) -> None:
    train(copy.deepcopy(read_base("bert")), tmp_path, target_modules=["query"])
    expected = copy.deepcopy(read_base("bert"))
    merge_lora(expected, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    named = {name.replace(".weight", ".default.weight"): tensor for name, tensor in weights.items()}
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(named, tmp_path / "adapter_model.bin")
    model = copy.deepcopy(read_base("bert"))
    apply_adapter(model, tmp_path)
    np.testing.assert_array_equal(compute_tokens(model), compute_tokens(expected))


def test_a_lora_in_half_precision_is_added_in_full(tmp_path: Path) -> None:
    train(copy.deepcopy(read_base("bert")).bfloat16(), tmp_path, target_modules=["query"])
    weights = {name: one.float() for name, one in load_file(tmp_path / "adapter_model.safetensors").items()}
    save_file({name: one.bfloat16() for name, one in weights.items()}, tmp_path / "adapter_model.safetensors")
    model = copy.deepcopy(read_base("bert"))
    merge_lora(model, tmp_path)
    name = "encoder.layer.0.attention.self.query"
    first, second = (weights[f"base_model.model.{name}.lora_{part}.weight"].bfloat16().double() for part in "AB")
    expected = read_base("bert").get_parameter(f"{name}.weight").double() + 5 / 3 * second @ first
    assert (model.get_parameter(f"{name}.weight").double() - expected).abs().max() < 1e-6


# from a folder to vectors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    "A folder of sentence-transformers for each of two shapes, and a LoRA for it."
    folders = {}
    for shape in ("bert", "qwen3"):
        folders[shape] = make_shape(shape, tmp_path_factory.mktemp(shape))
        folders[f"{shape} lora"] = folders[shape].parent / "lora"
        model = AutoModel.from_pretrained(folders[shape], dtype="float32")
        train(model, folders[f"{shape} lora"], target_modules=[QUERIES[shape]], use_rslora=True)
    return folders


def encode_with_peft(models: dict[str, Path], shape: str) -> np.ndarray:
    "What sentence-transformers gives if peft puts the adapter into its transformer."
    reference = SentenceTransformer(str(models[shape]), device="cpu")
    transformer = reference[0].auto_model
    PeftModel.from_pretrained(transformer, models[f"{shape} lora"])  # changes the transformer in place
    return reference.encode_document(TEXTS)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("shape", ["bert", "qwen3"])
def test_engines_run_a_merged_lora(
    shape: str, engine: str, models: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("ARXIV_EMBEDDINGS_CACHE", str(tmp_path))
    load = partial(load_encoder, models[shape], engine=engine, device="cpu")
    encoder = load(adapter=str(models[f"{shape} lora"]))
    ours, expected = encoder.encode(TEXTS), encode_with_peft(models, shape)
    assert paired_cosines(ours, expected).min() >= 0.99999
    assert np.abs(ours - expected).max() <= 1e-5
    plain = load()
    assert paired_cosines(ours, plain.encode(TEXTS)).min() < 0.999
    assert describe_encoder(encoder)["adapter"] == str(models[f"{shape} lora"])
    assert encoder.fingerprint["adapter_sha256"]
    assert {name for name in plain.fingerprint if plain.fingerprint[name] != encoder.fingerprint[name]} == {
        "adapter_sha256"
    }


def test_the_fingerprint_covers_options_and_weights(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    shutil.copytree(models["bert lora"], folder)

    def fingerprint() -> str:
        return fingerprint_model(fetch_model(find_model(models["bert"], adapter=str(folder))))["adapter_sha256"]

    before = fingerprint()
    change_options(folder, lora_alpha=6)
    of_options = fingerprint()
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: one * 2 for name, one in weights.items()}, folder / "adapter_model.safetensors")
    assert len({before, of_options, fingerprint()}) == 3


def test_another_name_of_the_base_is_mentioned(
    models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "lora"
    shutil.copytree(models["bert lora"], folder)
    spec = find_model(models["bert"], adapter=str(folder))
    for base, n_lines in {"org/model": 0, str(models["bert"]): 0, None: 0, "": 0, "/nowhere/other-base": 1}.items():
        caplog.clear()
        change_options(folder, base_model_name_or_path=base)
        with caplog.at_level(logging.WARNING):
            fetch_model(spec)
        assert len(caplog.records) == n_lines, base
    assert "is made for '/nowhere/other-base', and goes into" in caplog.text


def test_a_folder_of_sentence_transformers_states_pooling_and_prompts(models: dict[str, Path], tmp_path: Path) -> None:
    # as sentence-transformers saves a model with an adapter: its modules and settings, and peft's two files
    prompts = {"document": "paper: ", "query": "ask: "}
    whole = SentenceTransformer(str(models["bert"]), device="cpu", prompts=prompts)
    whole.save_pretrained(str(tmp_path / "lora"), create_model_card=False)
    (tmp_path / "lora" / "model.safetensors").unlink()
    train(whole[0].auto_model, tmp_path / "lora", target_modules=["query"])
    assert [path.name for path in find_weights(tmp_path / "lora")] == ["adapter_model.safetensors"]
    expected = whole.encode_document(TEXTS)
    for base, options in {"model": {}, "plain": {}, "plain/": {"pooling": "mean"}}.items():
        encoder = load_encoder(
            models["bert"].parent / base, adapter=str(tmp_path / "lora"), device="cpu", engine="torch", **options
        )
        assert encoder.spec.pooling == "mean"
        assert (encoder.spec.prompt, encoder.spec.query_prompt) == ("paper: ", "ask: ")
        assert paired_cosines(encoder.encode(TEXTS), expected).min() >= 0.99999
    with pytest.raises(InputError, match=r"is trained with pooling mean, and .*plain is pooled by cls"):
        load_encoder(models["bert"].parent / "plain", adapter=str(tmp_path / "lora"), pooling="cls", device="cpu")
    modules = json.loads((tmp_path / "lora" / "modules.json").read_text())
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "lora" / "modules.json").write_text(json.dumps([*modules[:2], dense]))
    with pytest.raises(InputError, match="lora has a Dense beside its adapter, which is not read"):
        load_encoder(models["bert"], adapter=str(tmp_path / "lora"), device="cpu")


def test_an_adapter_alone_is_no_model(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    shutil.copytree(models["bert lora"], folder)
    for base, shown in {"org/base": "org/base", "a b\n": "BASE", "--x": "BASE", None: "BASE"}.items():
        change_options(folder, base_model_name_or_path=base)
        with pytest.raises(InputError) as caught:
            load_encoder(folder, pooling="mean", device="cpu")
        assert str(caught.value) == f"{folder} is an adapter, not a model: use --model {shown} --adapter {folder}"


def test_the_hub_gives_adapters_of_peft() -> None:
    stored = ["README.md", "adapter_config.json", "adapter_model.bin", "adapter_model.safetensors", "optimizer.pt"]
    taken = [[*filter_repo_objects(stored, allow_patterns=one)] for one in (SMALL_FILES, SAFE_WEIGHTS, PICKLED_WEIGHTS)]
    assert taken == [["adapter_config.json"], ["adapter_model.safetensors"], ["adapter_model.bin"]]


# what is refused


def change_options(folder: Path, **options: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A LoRA for `query` of both layers of the tiny BERT."
    folder = tmp_path_factory.mktemp("lora")
    train(copy.deepcopy(read_base("bert")), folder, target_modules=["query"])
    change_options(folder, base_model_name_or_path="org/base")
    return folder


@pytest.fixture
def lora(saved: Path, tmp_path: Path) -> Path:
    "A copy of it."
    return Path(shutil.copytree(saved, tmp_path / "lora"))


def refuse(folder: Path, message: str, base: str = "bert") -> None:
    "Check that a LoRA is refused in one line, and that the model stays as it was."
    model = copy.deepcopy(read_base(base))
    with pytest.raises(InputError) as caught:
        apply_adapter(model, folder, "adapter X")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert all(torch.equal(weights, read_base(base).state_dict()[name]) for name, weights in model.state_dict().items())


@pytest.mark.parametrize("kind", sorted({one.value for one in peft.PeftType} | {*PEFT_FORMS}))
def test_other_forms_of_peft_are_refused_by_name(kind: str, lora: Path) -> None:
    change_options(lora, peft_type=kind)
    if kind == "LORA":
        merge_lora(copy.deepcopy(read_base("bert")), lora)
    else:
        form = PEFT_FORMS.get(kind, f"of a form of peft that is not known here ({kind!r})")
        refuse(lora, f"adapter X is {form}; only LoRA is merged")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({name: "all" if name == "bias" else True}, f"adapter X has {meaning} ({name}: ") for name, meaning in OTHER_LORAS.items()),
        ({"peft_type": None}, "adapter X is of a form of peft that is not known here (None)"),
        ({"peft_type": ["LORA"]}, "adapter X is of a form of peft that is not known here (a list of 1)"),
        ({"bias": "lora_only"}, "adapter X has biases of its own (bias: 'lora_only')"),
        ({"modules_to_save": ["classifier"]}, "adapter X has whole modules of its own (modules_to_save: a list of 1)"),
        *(({"init_lora_weights": start}, f"adapter X begins with a change of its base (init_lora_weights: {start!r})")
          for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "next", 3)),
        ({"use_next": 1}, "adapter X has an unknown option 'use_next'"),
        ({"a\nb": 1}, "adapter X has an unknown option 'a\\nb'"),
        ({"r": None}, "adapter X does not state r"),
        ({"r": True}, "adapter X: r must be a whole number above 0, not True"),
        ({"r": 2.5}, "adapter X: r must be a whole number above 0, not 2.5"),
        ({"lora_alpha": float("nan")}, "adapter X: lora_alpha must be a number, not nan"),
        ({"target_modules": []}, "adapter X: target_modules must be a pattern or a list of names, not a list of 0"),
        ({"target_modules": [1]}, "adapter X: target_modules must be a pattern or a list of names"),
        ({"target_modules": "("}, "adapter X: the pattern '(' is broken"),
        ({"target_modules": "x" * 10_001}, "is broken (it is too long)"),
        ({"target_modules": r"(\w|\w\w|\.)+(?<!e)(?<!y)(?<!\w)"}, "takes too long"),
        ({"rank_pattern": {"(": 2}}, "is broken"),
        ({"rank_pattern": {"query": 0}}, "adapter X: rank_pattern must be whole numbers above 0 by pattern"),
        ({"rank_pattern": []}, "adapter X: rank_pattern must be whole numbers above 0 by pattern"),
        ({"alpha_pattern": {"query": "9"}}, "adapter X: alpha_pattern must be numbers by pattern"),
        ({"layers_to_transform": [-1]}, "adapter X: layers_to_transform must be a layer or a list of layers, from 0"),
        ({"layers_to_transform": "1"}, "adapter X: layers_to_transform must be a layer or a list of layers, from 0"),
        ({"layers_pattern": 1}, "adapter X: layers_pattern must be a name or a list of names"),
        ({"use_rslora": "true"}, "adapter X: use_rslora must be true or false, not 'true'"),
        # options and weights that do not go together
        ({"r": 4}, "lora_A of encoder.layer.0.attention.self.query has the shape (3, 48), but (4, 48) is needed (it is made for 'org/base')"),
        ({"rank_pattern": {"uery": 9, r"layer\.1.*": 4}}, "lora_A of encoder.layer.1.attention.self.query has the shape (3, 48), but (4, 48)"),
        ({"target_modules": ["query", "key"]}, "adapter X has no weights for encoder.layer.0.attention.self.key, which its options name"),
        ({"target_modules": ["key"]}, "adapter X has weights for encoder.layer.0.attention.self.query, which its options do not name"),
        ({"layers_to_transform": [1]}, "adapter X has weights for encoder.layer.0.attention.self.query, which its options do not name"),
        ({"layers_pattern": "h", "layers_to_transform": [0, 1]}, "adapter X has weights for encoder.layer.0.attention.self.query, which"),
        ({"exclude_modules": ["query"]}, "adapter X has weights for encoder.layer.0.attention.self.query, which its options do not name"),
    ],
    ids=str,
)  # fmt: skip
def test_other_options_are_refused(options: dict[str, Any], message: str, lora: Path) -> None:
    change_options(lora, **options)
    refuse(lora, message)


QUERY = "encoder.layer.1.attention.self.query"
A, B = (f"base_model.model.{QUERY}.lora_{part}.weight" for part in "AB")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {name: one for name, one in weights.items() if QUERY not in name}, f"adapter X has no weights for {QUERY}, which its options name (it is made for 'org/base')"),
        (lambda weights: {name: one for name, one in weights.items() if name != B}, f"adapter X has no lora_B of {QUERY}; get the adapter again"),
        (lambda weights: weights | {B: weights[B].T.contiguous()}, f"adapter X: lora_B of {QUERY} has the shape (3, 48), but (48, 3) is needed"),
        (lambda weights: weights | {A: weights[A][:, :32].contiguous()}, f"adapter X: lora_A of {QUERY} has the shape (3, 32), but (3, 48) is needed"),
        (lambda weights: weights | {A: weights[A] * float("nan")}, f"adapter X: the weight {A} holds numbers that are not finite"),
        (lambda weights: weights | {A: weights[A] * float("inf")}, f"adapter X: the weight {A} holds numbers that are not finite"),
        (lambda weights: weights | {A: weights[A].int()}, f"adapter X: the weight {A} holds numbers that are not finite"),
        (lambda weights: weights | {B.replace("layer.1", "layer.5"): weights[B].clone()}, "adapter X has weights for encoder.layer.5.attention.self.query, which is not in the model (it is made for 'org/base')"),
        (lambda weights: weights | {B.replace("query", "key"): weights[B].clone()}, "adapter X has weights for encoder.layer.1.attention.self.key, which its options do not name"),
        (lambda weights: weights | {"base_model.model.embeddings.LayerNorm.lora_A.weight": weights[A].clone()}, "adapter X changes embeddings.LayerNorm, which is a LayerNorm"),
        (lambda weights: weights | {A.replace("lora_A.weight", "lora_embedding_A"): weights[A].clone()}, f"adapter X has lora_embedding_A of {QUERY}, which does not fit a Linear"),
        (lambda weights: weights | {A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(48)}, "lora_magnitude_vector, which is not one of plain LoRA"),
        (lambda weights: weights | {A.replace(".weight", ".default.weight"): weights[A].clone()}, f"adapter X has lora_A of {QUERY} two times"),
        (lambda weights: weights | {A.replace("lora_A", "base_layer"): torch.ones(48, 48)}, f"adapter X is made for another base: {QUERY} has other weights there"),
        (lambda weights: weights | {"classifier.weight": torch.ones(2, 2)}, "adapter X has the weight classifier.weight, which is not one of plain LoRA"),
        (lambda weights: {"none": torch.ones(1)}, "adapter X has the weight none, which is not one of plain LoRA"),
    ],
    ids=["no layer", "no part", "turned", "narrow", "nan", "infinite", "integer", "deep", "more", "norm", "table", "dora", "twice", "base", "head", "none"],
)  # fmt: skip
def test_other_weights_are_refused(change: Callable, message: str, lora: Path) -> None:
    save_file(change(load_file(lora / "adapter_model.safetensors")), lora / "adapter_model.safetensors")
    refuse(lora, message)


def test_another_base_is_refused(lora: Path) -> None:
    for base in ("modernbert", "qwen3"):
        refuse(lora, "which is not in the model (it is made for 'org/base')", base)


def test_a_sum_that_is_too_large_is_refused(lora: Path) -> None:
    weights = load_file(lora / "adapter_model.safetensors")
    save_file({name: torch.full_like(one, 1e30) for name, one in weights.items()}, lora / "adapter_model.safetensors")
    with pytest.raises(
        InputError, match=r"adapter X makes numbers in encoder\.layer\.0\.attention\.self\.query that are not"
    ):
        merge_lora(copy.deepcopy(read_base("bert")), lora, "adapter X")


def test_files_that_are_missing_damaged_or_more_than_weights_are_refused(lora: Path, tmp_path: Path) -> None:
    weights, marker = load_file(lora / "adapter_model.safetensors"), tmp_path / "marker"
    (lora / "model.safetensors").touch()
    refuse(
        lora,
        "adapter X has model.safetensors beside adapter_model.safetensors: put the adapter into a folder of its own",
    )
    (lora / "model.safetensors").rename(lora / "adapter.safetensors")
    (lora / "adapter_model.safetensors").unlink()
    refuse(lora, "adapter X has no adapter_model.safetensors or adapter_model.bin, only adapter.safetensors")
    (lora / "adapter.safetensors").unlink()
    refuse(lora, "adapter X has no adapter_model.safetensors or adapter_model.bin")
    (lora / "adapter_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    refuse(lora, "adapter_model.safetensors is damaged or holds more than weights (its head is cut off)")
    (lora / "adapter_model.safetensors").unlink()
    torch.save(weights | {"more": Malicious(marker)}, lora / "adapter_model.bin")
    torch.load(lora / "adapter_model.bin", weights_only=False)
    assert marker.exists()
    marker.unlink()
    refuse(lora, "adapter_model.bin is damaged or holds more than weights")
    assert not marker.exists()
    torch.save({"a\nb": torch.ones(2)}, lora / "adapter_model.bin")
    refuse(lora, "adapter X has a weight with the name 'a\\nb'; get the adapter again")


def test_the_whole_way_refuses_too(models: dict[str, Path], lora: Path) -> None:
    change_options(lora, use_dora=True)
    with pytest.raises(InputError, match=f"the adapter {lora} has DoRA"):
        load_encoder(models["bert"], adapter=str(lora), device="cpu", engine="torch")
    change_options(lora, use_dora=False, auto_mapping={"base_model_class": "X", "parent_library": "theirs"})
    with pytest.raises(InputError, match="contains custom code"):
        load_encoder(models["bert"], adapter=str(lora), device="cpu", engine="torch")
