"""Adapters of our own code give the vectors of the package `adapters`, and other forms and other bases are refused.

`tools/make_adapter_golden.py` makes the golden cases."""

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertModel, MPNetConfig, MPNetModel

from arxiv_embeddings.encoders.adapters import OTHER_FORMS, Bottleneck, add_adapter, read_adapter_config
from arxiv_embeddings.encoders.vectors import paired_cosines
from arxiv_embeddings.files.errors import InputError
from tests.fakes import ROOT

GOLDEN = ROOT / "tests" / "golden" / "adapters"
EXPECTED = dict(np.load(GOLDEN / "expected.npz"))
CASES = sorted(name for name in EXPECTED if "/" in name)


@cache
def read_base(name: str) -> torch.nn.Module:
    "A small transformer; copy it before it is changed."
    return AutoModel.from_pretrained(GOLDEN / "base" / name).eval()


def compute_tokens(model: torch.nn.Module, base: str) -> np.ndarray:
    "The vectors of all tokens that are not padding."
    ids, mask = (torch.from_numpy(EXPECTED[f"{base}.{name}"]) for name in ("ids", "mask"))
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).last_hidden_state[mask == 1].float().numpy()


def adapt(case: str, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    "The case's base with its adapter; in float64, so that all machines give the same."
    base, name = case.split("/")
    model = copy.deepcopy(read_base(base)).to(dtype)
    add_adapter(model, GOLDEN / "cases" / name)
    return model


def test_every_folder_is_a_case() -> None:
    assert {path.name for path in (GOLDEN / "cases").iterdir()} == {case.split("/")[1] for case in CASES}
    assert len(CASES) >= 40


@pytest.mark.parametrize("case", CASES)
def test_vectors_are_those_of_the_package_adapters(case: str) -> None:
    base = case.split("/")[0]
    made, expected = compute_tokens(adapt(case), base), EXPECTED[case]
    assert made.shape == expected.shape
    assert np.abs(made - expected).max() <= 1e-6
    assert np.abs(compute_tokens(adapt(case, torch.float32), base) - expected).max() <= 1e-5
    # the case would show an adapter that is not there
    assert np.abs(compute_tokens(read_base(base), base) - expected).max() > 0.01


def test_no_two_cases_expect_the_same() -> None:
    vectors = [EXPECTED[case] for case in CASES if case.startswith("bert/")]
    nearest = min(
        np.abs(one - other).max() for position, one in enumerate(vectors) for other in vectors[position + 1 :]
    )
    assert nearest > 0.01


@pytest.mark.parametrize(
    "case", ["bert/specter2_proximity", "distilbert/distilbert_houlsby", "roberta/roberta_houlsby"]
)
def test_bfloat16_is_near_float32(case: str) -> None:
    base = case.split("/")[0]
    model = adapt(case, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    made = compute_tokens(model, base)
    assert paired_cosines(made, EXPECTED[case]).min() > 0.99
    assert np.abs(made - EXPECTED[case]).max() > 1e-4  # it did compute in bfloat16


@pytest.mark.parametrize(
    "case", ["bert/specter2_proximity", "bert/houlsby", "bert/both_norms", "distilbert/distilbert_houlsby"]
)
def test_openvino_agrees_with_torch(case: str) -> None:
    class Graph(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    base = case.split("/")[0]
    ids, mask = (torch.from_numpy(EXPECTED[f"{base}.{name}"]) for name in ("ids", "mask"))
    example = {"input_ids": ids[:2, :10], "attention_mask": mask[:2, :10]}  # of another shape than the batch below
    with torch.inference_mode():
        converted = openvino.convert_model(Graph(adapt(case, torch.float32)).eval(), example_input=example)
    made = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([ids.numpy(), mask.numpy()])[0]
    assert paired_cosines(made[mask.numpy() == 1], EXPECTED[case]).min() >= 0.99999


@pytest.mark.parametrize("case", ["bert/houlsby", "distilbert/distilbert_houlsby"])
def test_copies_and_pickles_of_a_model_are_whole_and_their_own(case: str) -> None:
    base = case.split("/")[0]
    model = adapt(case)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(compute_tokens(again, base), compute_tokens(model, base))
        for module in model.modules():
            if isinstance(module, Bottleneck):
                torch.nn.init.zeros_(module.up.weight)
        assert np.abs(compute_tokens(again, base) - EXPECTED[case]).max() <= 1e-6
        model = adapt(case)


def test_a_model_with_a_head_gets_the_adapter_into_its_base() -> None:
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(GOLDEN / "base" / "bert").eval()
    add_adapter(model, GOLDEN / "cases" / "pfeiffer")
    assert np.abs(compute_tokens(model.bert, "bert") - EXPECTED["bert/pfeiffer"]).max() <= 1e-5


def test_training_mode_and_weights_of_the_base_stay() -> None:
    model, before = copy.deepcopy(read_base("bert")), read_base("bert").state_dict()
    add_adapter(model, GOLDEN / "cases" / "houlsby")
    assert not any(module.training for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


# what is refused


@pytest.fixture
def case(tmp_path: Path) -> Callable[..., Path]:
    "Copy a case and change its options, its other fields, or its weights."

    def change(
        case: str, options: dict[str, Any] | None = None, weights: Callable | None = None, **fields: Any
    ) -> Path:
        folder = tmp_path / case
        shutil.copytree(GOLDEN / "cases" / case, folder, dirs_exist_ok=True)
        content = json.loads((folder / "adapter_config.json").read_text())
        content["config"] |= options or {}
        content |= fields
        (folder / "adapter_config.json").write_text(json.dumps(content))
        if weights:
            drawn = load_file(folder / "adapter.safetensors")
            save_file(weights(drawn), folder / "adapter.safetensors")
        return folder

    return change


def refuse(folder: Path, message: str, model: torch.nn.Module | None = None) -> None:
    "Check that an adapter is refused in one line, and that the model stays as it was."
    model = model or copy.deepcopy(read_base("bert"))
    with pytest.raises(InputError) as caught:
        add_adapter(model, folder, "adapter X")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(isinstance(module, Bottleneck) for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(("architecture", "form"), OTHER_FORMS.items())
def test_other_architectures_are_refused_by_name(architecture: str, form: str, case: Callable[..., Path]) -> None:
    refuse(case("pfeiffer", {"architecture": architecture}), f"adapter X is {form}; only bottlenecks are supported")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "lora", "composition_mode": "scale"}, "adapter X is (IA)^3;"),
        ({"architecture": "lora", "vera_d": 0.1}, "adapter X is VeRA;"),
        ({"architecture": "next_thing"}, "adapter X is of an unknown form ('next_thing');"),
        ({"architecture": ["lora"]}, "adapter X is of an unknown form (['lora']);"),
        ({"is_parallel": True}, "adapter X has parallel bottlenecks (is_parallel: True);"),
        ({"inv_adapter": "nice"}, "adapter X has invertible adapters (inv_adapter: 'nice');"),
        ({"invertible_adapter": {"block_type": "nice"}}, "adapter X has invertible adapters"),
        ({"phm_layer": True}, "adapter X has Compacter (PHM layers) (phm_layer: True);"),
        ({"use_gating": True}, "adapter X has gating (use_gating: True);"),
        ({"cross_adapter": True}, "adapter X has bottlenecks after cross attention (cross_adapter: True);"),
        ({"scaling": "learned"}, "adapter X has a learned scaling (learned);"),
        ({"scaling": "channel"}, "adapter X has a learned scaling (channel);"),
        ({"scaling": float("nan")}, "adapter X: scaling must be a number, not nan"),
        ({"scaling": True}, "adapter X: scaling must be a number, not True"),
        ({"reduction_factor": 0}, "adapter X: reduction_factor must be a number above 0"),
        ({"reduction_factor": {}}, "adapter X: reduction_factor must be a number above 0"),
        ({"reduction_factor": {"first": 2}}, "adapter X: reduction_factor must be a number above 0"),
        ({"reduction_factor": {"0": 8, "1": 8}}, "adapter X: reduction_factor has neither layer 2 nor default"),
        ({"reduction_factor": {"7": 8, "default": 8}}, "adapter X names layer 7, and the model has 3 layers"),
        ({"leave_out": [3]}, "adapter X names layer 3, and the model has 3 layers"),
        ({"leave_out": [-1]}, "adapter X: leave_out must be a list of layers"),
        ({"leave_out": [0, 1, 2]}, "adapter X leaves out all 3 layers"),
        ({"non_linearity": "prelu"}, "adapter X: non_linearity must be one of gelu,"),
        ({"ln_after": "false"}, "adapter X: ln_after must be true or false, not 'false'"),
        ({"residual_before_ln": 1}, "adapter X: residual_before_ln must be true, false or \"post_add\", not 1"),
        ({"residual_before_ln": "post_add", "original_ln_before": False}, 'residual_before_ln "post_add" needs original_ln_before'),
        ({"output_adapter": False}, "adapter X has no bottlenecks"),
        ({"rank": 8}, "adapter X has an unknown option 'rank'"),
    ],
    ids=str,
)  # fmt: skip
def test_other_options_are_refused(options: dict[str, Any], message: str, case: Callable[..., Path]) -> None:
    refuse(case("pfeiffer", options), message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config": None}, "adapter X states no options"),
        ({"config": "pfeiffer"}, "adapter X states no options"),
        ({"config": {}}, "adapter X does not state mh_adapter"),
        ({"name": None}, "adapter X: name in adapter_config.json must be str, not None"),
        ({"hidden_size": "32"}, "adapter X: hidden_size in adapter_config.json must be int, not '32'"),
        ({"peft_type": "LORA"}, "adapter X is made with peft (LORA)"),
        ({"model_type": "roberta"}, "adapter X is made for roberta, and the model is bert"),
        ({"model_type": None, "model_class": "RobertaModel"}, "adapter X is made for RobertaModel, and the model is BertModel"),
        ({"hidden_size": 768}, "adapter X is made for width 768, and the model has 32"),
        ({"name": "other"}, "adapter X lacks 12 weights"),
    ],
    ids=str,
)  # fmt: skip
def test_other_bases_are_refused(fields: dict[str, Any], message: str, case: Callable[..., Path]) -> None:
    refuse(case("pfeiffer", **fields), message)


def test_a_file_without_the_base_is_read(case: Callable[..., Path]) -> None:
    folder = case("pfeiffer", model_type=None, hidden_size=None, model_class=None)
    model = copy.deepcopy(read_base("bert"))
    add_adapter(model, folder)
    assert np.abs(compute_tokens(model, "bert") - EXPECTED["bert/pfeiffer"]).max() <= 1e-5


def test_other_numbers_of_layers_are_refused(case: Callable[..., Path]) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    for n_layers, message in {
        2: "is made for at least 3 layers, and the model has 2",
        4: "has no weights for layer 3",
    }.items():
        refuse(case("pfeiffer"), f"adapter X {message}", BertModel(BertConfig(num_hidden_layers=n_layers, **sizes)))


def test_other_kinds_of_models_are_refused(case: Callable[..., Path]) -> None:
    mpnet = MPNetModel(
        MPNetConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    )
    refuse(case("pfeiffer"), "adapter X cannot go into a model of the kind mpnet, only into bert, roberta", mpnet)


UP = "encoder.layer.1.output.adapters.own.adapter_up.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {name: one for name, one in weights.items() if name != UP}, f"adapter X lacks 1 weights, the first is {UP}"),
        (lambda weights: weights | {UP: weights[UP].T.contiguous()}, f"{UP} has the shape (4, 32), but (32, 4) is needed"),
        (lambda weights: weights | {UP: weights[UP][:, :2].contiguous()}, f"{UP} has the shape (32, 2)"),
        (lambda weights: weights | {UP: weights[UP] * float("nan")}, f"the weight {UP} holds numbers that are not finite"),
        (lambda weights: weights | {UP: weights[UP] * float("inf")}, f"the weight {UP} holds numbers that are not finite"),
        (lambda weights: weights | {UP: weights[UP].int()}, f"the weight {UP} holds numbers that are not finite"),
        (lambda weights: weights | {UP.replace("up", "side"): torch.zeros(2)}, "adapter X has 1 weights that its options do not ask for"),
        (lambda weights: weights | {"invertible_adapters.own.F.0.weight": torch.zeros(2)}, "the first is invertible_adapters.own"),
        (lambda weights: {}, "adapter X has no weights for layer 0"),
    ],
    ids=["missing", "turned", "narrow", "nan", "infinite", "integer", "more", "invertible", "none"],
)  # fmt: skip
def test_other_weights_are_refused(change: Callable, message: str, case: Callable[..., Path]) -> None:
    refuse(case("pfeiffer", weights=change), message)


def test_weights_that_the_options_leave_out_are_refused(case: Callable[..., Path]) -> None:
    refuse(case("houlsby", {"mh_adapter": False}), "adapter X has 12 weights that its options do not ask for")
    refuse(case("pfeiffer", {"leave_out": [1]}), "adapter X has 4 weights that its options do not ask for")
    refuse(case("ln_after", {"ln_after": False}), "adapter X has 12 weights that its options do not ask for")


def test_weights_of_a_head_in_the_file_are_ignored(case: Callable[..., Path]) -> None:
    model = copy.deepcopy(read_base("bert"))
    add_adapter(model, case("pfeiffer", weights=lambda weights: weights | {"heads.own.1.weight": torch.zeros(3, 32)}))
    assert np.abs(compute_tokens(model, "bert") - EXPECTED["bert/pfeiffer"]).max() <= 1e-5


def test_second_norms_that_differ_are_refused(case: Callable[..., Path]) -> None:
    folder = case("ln_before")
    weights = torch.load(folder / "pytorch_adapter.bin", weights_only=True)
    name = "encoder.layer.0.output.adapters.own.adapter_norm_before.weight"
    torch.save(weights | {name: weights[name] + 1}, folder / "pytorch_adapter.bin")
    refuse(folder, "must be the same norm, but differ")


class Planted:
    "Runs a command when it is unpickled."

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.witness,)


def test_files_that_are_missing_damaged_or_more_than_weights_are_refused(
    case: Callable[..., Path], tmp_path: Path
) -> None:
    folder = case("pickled")
    torch.save({"weights": Planted(tmp_path / "witness")}, folder / "pytorch_adapter.bin")
    refuse(folder, "pytorch_adapter.bin is damaged or holds more than weights")
    assert not (tmp_path / "witness").exists()
    torch.save({"weights": [1, 2]}, folder / "pytorch_adapter.bin")
    refuse(folder, "it holds more than named weights")
    (folder / "pytorch_adapter.bin").write_bytes(b"no weights")
    refuse(folder, "pytorch_adapter.bin is damaged or holds more than weights")
    (folder / "pytorch_adapter.bin").unlink()
    refuse(folder, "adapter X has no adapter.safetensors or pytorch_adapter.bin")
    (folder / "model.safetensors").touch()
    refuse(folder, "adapter X has no adapter.safetensors or pytorch_adapter.bin, only model.safetensors")
    (folder / "adapter_config.json").write_text("{")
    refuse(folder, "adapter_config.json is broken")
    (folder / "adapter_config.json").unlink()
    refuse(folder, "adapter X has no adapter_config.json")
    (folder / "adapter_fusion_config.json").touch()
    refuse(folder, "adapter X is an adapter fusion")


def test_a_second_adapter_is_refused(case: Callable[..., Path]) -> None:
    model = adapt("bert/pfeiffer")
    with pytest.raises(InputError, match="adapter X cannot be added: the model already has an adapter"):
        add_adapter(model, case("houlsby"), "adapter X")
    assert np.abs(compute_tokens(model, "bert") - EXPECTED["bert/pfeiffer"]).max() <= 1e-5


def test_the_folder_is_named_if_no_other_name_is_given(case: Callable[..., Path]) -> None:
    folder = case("pfeiffer", {"use_gating": True})
    with pytest.raises(InputError, match=f"^the adapter in {folder} has gating"):
        read_adapter_config(folder)
