"""Write the golden cases of adapters: what the package `adapters` computes for each form that this project reads.

The project itself does not need that package, and its newest version needs an older transformers than the project. So
this script runs in an environment of its own:

    python -m venv golden
    golden/bin/pip install adapters==1.3.0
    golden/bin/python tools/make_adapter_golden.py

It writes `tests/golden/adapters/`: small transformers with random weights in `base/`, one folder for each case in
`cases/` as `save_adapter` writes it, and in `expected.npz` the token vectors that the package computes from these files.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import torch
from adapters import AdapterConfig, AutoAdapterModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

FOLDER = Path(__file__).parent.parent / "tests" / "golden" / "adapters"
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL |= {"vocab_size": 40, "max_position_embeddings": 40}
BASES = {
    "bert": BertModel(BertConfig(**SMALL | {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 100})),
    "roberta": RobertaModel(RobertaConfig(**SMALL)),
    "xlm-roberta": XLMRobertaModel(XLMRobertaConfig(**SMALL)),
    "electra": ElectraModel(ElectraConfig(**SMALL, embedding_size=16)),
    "distilbert": DistilBertModel(
        DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40)
    ),
}
LENGTHS = (12, 7, 3)  # tokens of the three texts
PFEIFFER, HOULSBY = {"config": "seq_bn", "reduction_factor": 8}, {"config": "double_seq_bn", "reduction_factor": 8}
LAST_LAYER = PFEIFFER | {"leave_out": [0, 1]}
# options that the files of SPECTER2's adapters do not have, since their version did not know them
NEWER_OPTIONS = ("init_weights_seed", "stochastic_depth")
# case -> base, options of the adapter, and how it is stored: a pickle, beside a head, or as old versions do
CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "pfeiffer": ("bert", PFEIFFER, set()),
    "houlsby": ("bert", HOULSBY, set()),
    "specter2_proximity": ("bert", {"config": "seq_bn", "name": "[PRX]"}, {"specter2", "pickle", "head"}),
    "specter2_adhoc_query": ("bert", {"config": "seq_bn", "name": "[QRY]"}, {"specter2", "pickle", "head"}),
    "specter2_classification": ("bert", {"config": "seq_bn", "name": "[CLF]"}, {"specter2", "pickle", "head"}),
    "specter2_regression": ("bert", {"config": "seq_bn", "name": "[RGN]"}, {"specter2", "pickle", "head"}),
    "head_beside": ("bert", PFEIFFER, {"head"}),
    "pickled": ("bert", HOULSBY, {"pickle"}),
    "without_version": ("bert", PFEIFFER | {"non_linearity": "gelu"}, {"old"}),
    "attention_only": ("bert", HOULSBY | {"output_adapter": False}, set()),
    "by_layer": ("bert", HOULSBY | {"reduction_factor": {"0": 4, "2": 2.5, "default": 8}}, set()),
    "leave_out": ("bert", HOULSBY | {"leave_out": [0, 2]}, set()),
    "wide": ("bert", PFEIFFER | {"reduction_factor": 0.5, "leave_out": [0]}, set()),
    "of_width_one": ("bert", PFEIFFER | {"reduction_factor": 64}, set()),
    "ln_before": ("bert", HOULSBY | {"ln_before": True}, {"pickle"}),
    "ln_after": ("bert", HOULSBY | {"ln_after": True}, set()),
    "sum_before_ln_after": ("bert", HOULSBY | {"ln_after": True, "adapter_residual_before_ln": True}, set()),
    "both_norms": (
        "bert",
        PFEIFFER | {"ln_before": True, "ln_after": True, "adapter_residual_before_ln": True, "scaling": 0.5},
        {"pickle"},
    ),
    "original_ln_before": ("bert", HOULSBY | {"original_ln_before": True}, set()),
    "not_original_ln_before": ("bert", PFEIFFER | {"original_ln_before": False}, set()),
    "not_original_ln_after": ("bert", PFEIFFER | {"original_ln_after": False, "residual_before_ln": False}, set()),
    "no_original_ln": ("bert", PFEIFFER | {"original_ln_before": False, "original_ln_after": False}, set()),
    "residual_after_ln": ("bert", HOULSBY | {"original_ln_before": True, "residual_before_ln": False}, set()),
    "residual_of_output": ("bert", HOULSBY | {"residual_before_ln": False}, set()),
    "residual_post_add": ("bert", PFEIFFER | {"residual_before_ln": "post_add"}, set()),
    "scaling": ("bert", HOULSBY | {"scaling": 2.5}, set()),
    "dropout": ("bert", PFEIFFER | {"dropout": 0.4}, set()),
    **{
        f"activation_{name}": ("bert", LAST_LAYER | {"non_linearity": name}, set())
        for name in (
            *("relu6", "leakyrelu", "gelu", "gelu_new", "gelu_fast", "quick_gelu", "swish", "mish", "sigmoid", "tanh"),
            "linear",
        )
    },
    "roberta_pfeiffer": ("roberta", PFEIFFER, set()),
    "roberta_houlsby": ("roberta", HOULSBY, {"head"}),
    "xlm_roberta_houlsby": ("xlm-roberta", HOULSBY, set()),
    "electra_houlsby": ("electra", HOULSBY, set()),
    "distilbert_pfeiffer": ("distilbert", PFEIFFER, {"head"}),
    "distilbert_houlsby": ("distilbert", HOULSBY, set()),
    "distilbert_attention_only": ("distilbert", HOULSBY | {"output_adapter": False, "leave_out": [0]}, set()),
}


def draw_weights(model: torch.nn.Module, words: tuple[str, ...], seed: int) -> None:
    "Fill the weights whose names have one of the words with random numbers; norms are near 1."
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if any(word in name for word in words):
                is_norm = "norm" in name.lower() or ("adapter_down.0" in name and weight.ndim == 1)
                centre = 1.0 if is_norm and name.endswith("weight") else 0.0
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2 + centre)


def make_batch(base: str) -> tuple[torch.Tensor, torch.Tensor]:
    "Make the token ids and the mask of three texts."
    config = BASES[base].config
    ids = np.random.default_rng(0).integers(5, config.vocab_size, (len(LENGTHS), max(LENGTHS)))
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    ids[~mask] = config.pad_token_id
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def write_case(folder: Path, base: str, options: dict[str, Any], stored: set[str], seed: int) -> None:
    "Make an adapter with random weights and save it."
    options = dict(options)
    name = options.pop("name", "own")
    config = AdapterConfig.load(options.pop("config"), **options)
    if "head" in stored:
        model = AutoAdapterModel.from_pretrained(FOLDER / "base" / base)
    else:
        model = AutoModel.from_pretrained(FOLDER / "base" / base)
        adapters.init(model)
    model.add_adapter(name, config=config)
    if "head" in stored:
        model.add_classification_head(name, num_labels=3)
    draw_weights(model, (f"adapters.{name}.", f"heads.{name}."), seed)
    folder.mkdir(parents=True)
    model.save_adapter(str(folder), name, use_safetensors="pickle" not in stored)
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"model_name": base}  # not a path of this machine
    if "specter2" in stored:
        content |= {"version": "3.1.2", "model_name": "allenai/specter2_base", "config_id": "9076f36a74755ac4"}
        content["config"] = {key: value for key, value in content["config"].items() if key not in NEWER_OPTIONS}
    if "old" in stored:
        del content["version"]
        weights = load_file(folder / "adapter.safetensors")
        longer = {key.replace(".adapters.", ".layer_text_task_adapters."): value for key, value in weights.items()}
        save_file(longer, folder / "adapter.safetensors")
    (folder / "head_config.json").unlink(missing_ok=True)  # only the head's weights must not disturb
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def compute_case(folder: Path, base: str) -> np.ndarray:
    "Load a case from its files and compute the vectors of all tokens but padding, in float64, which all machines agree on."
    model = AutoModel.from_pretrained(FOLDER / "base" / base)
    adapters.init(model)
    found: dict[str, list[str]] = {}
    safe = (folder / "adapter.safetensors").exists()
    options = {"with_head": False, "use_safetensors": safe, "loading_info": found}
    model.load_adapter(str(folder), set_active=True, **options)
    assert found == {"missing_keys": [], "unexpected_keys": []}, found
    ids, mask = make_batch(base)
    with torch.inference_mode():
        vectors = model.double().eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    return vectors[mask == 1].numpy().astype(np.float32)


def main() -> None:
    "Write everything anew."
    shutil.rmtree(FOLDER, ignore_errors=True)
    expected = {}
    for seed, (base, model) in enumerate(BASES.items()):
        draw_weights(model, ("",), seed)
        model.save_pretrained(FOLDER / "base" / base)
        expected |= {
            f"{base}.{key}": tensor.numpy() for key, tensor in zip(("ids", "mask"), make_batch(base), strict=True)
        }
    for seed, (case, (base, options, stored)) in enumerate(CASES.items(), start=100):
        write_case(FOLDER / "cases" / case, base, options, stored, seed)
        expected[f"{base}/{case}"] = compute_case(FOLDER / "cases" / case, base)
    np.savez_compressed(FOLDER / "expected.npz", **expected)
    print(f"{len(CASES)} cases with adapters {adapters.__version__} in {FOLDER}")


if __name__ == "__main__":
    main()
