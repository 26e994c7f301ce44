"""Model folders that try to run code, to reach out, or to break a library: each known way in is closed with one line.

Most tests first show, in the library alone, that the way is open: a marker file is written, or a file elsewhere is read."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from torch.utils import collect_env
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    Gemma3TextConfig,
    ModernBertConfig,
    PreTrainedConfig,
    Qwen3Config,
    dynamic_module_utils,
)

from arxiv_embeddings.encoders import torch_engine
from arxiv_embeddings.encoders.load import load_encoder
from arxiv_embeddings.encoders.model_folder import open_model_folder, write_manifest
from arxiv_embeddings.encoders.reranker import load_reranker
from arxiv_embeddings.encoders.safe_folder import check_folder
from arxiv_embeddings.files.errors import InputError
from tests.fakes.malicious import Malicious

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "moths", "and", "flames"]
WIDTH = 8


@dataclass(frozen=True)
class Folder:
    "A model folder that is about to be spoiled."

    path: Path
    outside: Path  # a folder beside it, where nothing of a model should be looked for
    marker: Path  # a file that is written if code of the folder is run

    def change(self, name: str, **fields: Any) -> None:
        "Put fields into a JSON file, or make it."
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        content = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(content | fields))

    def write_code(self) -> None:
        "Write a Python file that leaves the marker when it is imported."
        lines = [f"open({str(self.marker)!r}, 'w').close()", "class Theirs: pass"]
        (self.path / "theirs.py").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A tiny BERT with mean pooling and a Dense, as sentence-transformers saves it."
    folder = tmp_path_factory.mktemp("base")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "plain")
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)).save_pretrained(folder / "plain")
    modules = [Transformer(str(folder / "plain")), Pooling(WIDTH, pooling_mode="mean"), Dense(WIDTH, 4)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "whole"))
    return folder / "whole"


@pytest.fixture
def folder(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    "A copy of it."
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "outside").mkdir()
    return Folder(tmp_path / "model", tmp_path / "outside", tmp_path / "marker")


def load_ours(folder: Folder) -> Any:
    return load_encoder(folder.path, device="cpu", engine="torch")


def load_theirs(folder: Folder, trust: bool = False) -> SentenceTransformer:
    "Load a folder with sentence-transformers alone."
    return SentenceTransformer(str(folder.path), device="cpu", local_files_only=True, trust_remote_code=trust)


def refuses(folder: Folder, message: str) -> None:
    "Check that our loader refuses a folder in one line, and that nothing of it was run."
    folder.marker.unlink(missing_ok=True)
    with pytest.raises(InputError, match=message) as caught:
        load_ours(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()
    assert not folder.marker.exists()


def test_the_folder_itself_is_fine(folder: Folder) -> None:
    vectors = load_ours(folder).encode(["moths and flames"])
    np.testing.assert_allclose(vectors, load_theirs(folder).encode(["moths and flames"]), atol=1e-6)


# --- code ---


def test_a_class_in_the_folder(folder: Folder) -> None:
    folder.write_code()
    folder.change(
        "config.json", model_type="theirs", auto_map={"AutoConfig": "theirs.Theirs", "AutoModel": "theirs.Theirs"}
    )
    with pytest.raises(AttributeError):  # after the import
        load_theirs(folder, trust=True)
    assert folder.marker.exists()
    refuses(folder, r"custom code \(auto_map in config.json\)")


def test_a_module_of_the_folder(folder: Folder) -> None:
    folder.write_code()
    (folder.path / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "theirs.Theirs"}])
    )
    with pytest.raises(AttributeError):
        load_theirs(folder, trust=True)
    assert folder.marker.exists()
    refuses(folder, r"needs a module 'theirs.Theirs'")


def test_settings_of_loading_that_open_a_pickle(folder: Folder) -> None:
    # no trust is asked for: with `dtype` left open, transformers 5.24 opens the file to find it
    settings = {"use_safetensors": False, "weights_only": False, "dtype": "auto"}
    folder.change("sentence_bert_config.json", model_kwargs=settings)
    folder.change("config.json", dtype=None)
    torch.save({"weight": Malicious(folder.marker)}, folder.path / "pytorch_model.bin")
    with pytest.raises(AttributeError):
        load_theirs(folder)
    assert folder.marker.exists()
    refuses(folder, r"a setting of loading \(model_kwargs.use_safetensors in sentence_bert_config.json\), which is not")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "2_Dense/pytorch_model.bin"])
def test_a_pickle_in_the_place_of_weights(name: str, folder: Folder) -> None:
    (folder.path / name).with_name("model.safetensors").unlink()
    (folder.path / name).write_bytes(pickle.dumps({"linear.weight": Malicious(folder.marker)}, protocol=2))
    pickle.loads((folder.path / name).read_bytes())
    assert folder.marker.exists()
    refuses(folder, r"pytorch_model.bin is damaged or holds more than weights")


def test_pickles_that_no_library_reads(folder: Folder) -> None:
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "flax_model.msgpack",
        "tf_model.h5",
        "a.gguf",
    ):
        (folder.path / name).write_bytes(pickle.dumps({"linear.weight": Malicious(folder.marker)}, protocol=2))
    folder.write_code()  # nothing names it
    (folder.path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")
    assert load_ours(folder).encode(["moths"]).shape == (1, 4)
    assert not folder.marker.exists()


KERNELS = [
    {"attn_implementation": "org/kernel"},
    {"_attn_implementation": "org/kernel@v1:forward"},
    {"attn_implementation": {"": "org/kernel"}},
    {"_attn_implementation_internal": "org/kernel"},  # CVE-2026-4372
    {"attn_implementation": "flash_attention_2"},  # of the hub, if `kernels` is installed
    {"attn_implementation": "kernels-community/flash-attn2"},
    {"experts_implementation": "deepgemm"},
    {"text_config": {"attn_implementation": ["org/kernel"]}},
    {"use_kernels": True},
    {"vision_config": {"keypoint_detector_config": {"trust_remote_code": True}}},  # CVE-2026-5241
]


@pytest.mark.parametrize("fields", KERNELS, ids=lambda fields: json.dumps(fields))
def test_a_kernel(fields: dict[str, Any], folder: Folder) -> None:
    folder.change("config.json", **fields)
    refuses(folder, r"custom code \(\w+ in config.json\), which is not run")


def test_that_transformers_follows_the_name_of_a_kernel(folder: Folder) -> None:
    folder.change("config.json", attn_implementation="org/kernel")
    with pytest.raises(ImportError, match="kernels"):
        load_theirs(folder)


def test_an_activation_of_a_reranker(base: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_env, "main", folder.marker.touch)  # anything in torch that does something when called
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder.path / name).unlink(missing_ok=True)
    own = {"activation_fn": "torch.utils.collect_env.main"}
    labels = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "fits"}}
    folder.change("config.json", sentence_transformers=own, **labels)
    CrossEncoder(str(folder.path), device="cpu", local_files_only=True)
    assert folder.marker.exists()
    folder.marker.unlink()
    with pytest.raises(InputError, match=r"custom code \(activation_fn in config.json\)"):
        load_reranker(folder.path)
    folder.change(
        "config.json", sentence_transformers={}, sbert_ce_default_activation_function="torch.utils.collect_env.main"
    )
    with pytest.raises(InputError, match=r"custom code \(sbert_ce_default_activation_function in config.json\)"):
        load_reranker(folder.path)
    assert not folder.marker.exists()
    folder.change("config.json", sbert_ce_default_activation_function="torch.nn.modules.linear.Identity")
    load_reranker(folder.path)


NAMES = [
    ("2_Dense/config.json", {"activation_function": "torch.utils.collect_env.main"}, "activation_function"),
    ("2_Dense/config.json", {"activation_function": "theirs.Theirs"}, "activation_function"),
    ("tokenizer_config.json", {"tokenizer_class": "theirs.Tokenizer"}, "tokenizer_class"),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}, "auto_map"),
    ("tokenizer_config.json", {"init_inputs": ["/etc/hosts"]}, "init_inputs"),
    ("processor_config.json", {"processor_class": "theirs.Processor"}, "processor_class"),
    ("preprocessor_config.json", {"feature_extractor_type": "os.Extractor"}, "feature_extractor_type"),
    ("generation_config.json", {"custom_generate": "org/theirs"}, "custom_generate"),
    ("config.json", {"custom_pipelines": {"theirs": {"impl": "theirs.Theirs"}}}, "custom_pipelines"),
    ("3_Router/router_config.json", {"types": {"query_0_Theirs": "org/other--theirs.Theirs"}}, "types"),
    ("adapters/a/adapter_config.json", {"megatron_core": "theirs", "megatron_config": {"a": 1}}, "megatron_core"),
    ("adapters/a/adapter_config.json", {"auto_mapping": {"parent_library": "theirs"}}, "parent_library"),
    ("NOTES.JSON", {"deep": [[{"auto_map": {"AutoConfig": "theirs.Theirs"}}]]}, "auto_map"),
]


@pytest.mark.parametrize(("name", "fields", "field"), NAMES, ids=lambda value: str(value))
def test_a_class_by_name(name: str, fields: dict[str, Any], field: str, folder: Folder) -> None:
    folder.change(name, **fields)
    refuses(folder, rf"custom code \({field} in {name}\), which is not run: choose another model")


# --- out of the folder ---


def test_a_tokenizer_of_another_folder(folder: Folder) -> None:
    (folder.outside / "vocab.txt").write_text("\n".join([*WORDS, "zebras"]) + "\n")
    BertTokenizerFast(str(folder.outside / "vocab.txt")).save_pretrained(folder.outside)
    folder.change("sentence_bert_config.json", tokenizer_name_or_path=str(folder.outside))
    assert "zebras" in load_theirs(folder).tokenizer.get_vocab()
    refuses(folder, r"the name of another model \(tokenizer_name_or_path in sentence_bert_config.json\), which is not")


@pytest.mark.parametrize("settings", ["model_args", "processor_kwargs", "config_kwargs"])
@pytest.mark.parametrize("name", ["subfolder", "cache_dir", "gguf_file", "kernel_config", "state_dict", "config"])
def test_settings_of_loading(settings: str, name: str, folder: Folder) -> None:
    folder.change("sentence_bert_config.json", **{settings: {name: "../outside"}})
    refuses(folder, rf"\(({settings}\.)?{name} in sentence_bert_config.json\), which (is|are) not")


def test_an_index_that_names_weights_outside(folder: Folder) -> None:
    shutil.move(folder.path / "model.safetensors", folder.outside)
    with safe_open(folder.outside / "model.safetensors", "np") as weights:
        names = dict.fromkeys(weights.keys(), "../outside/model.safetensors")
    folder.change("model.safetensors.index.json", metadata={}, weight_map=names)
    assert AutoModel.from_pretrained(folder.path).config.hidden_size == WIDTH
    refuses(folder, r"names weights outside its folder \(weight_map in model.safetensors.index.json\)")


def test_weights_that_no_index_names(folder: Folder) -> None:
    weights = load_file(folder.path / "model.safetensors")
    save_file(weights, folder.path / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    (folder.path / "model.safetensors").unlink()
    torch.save({name: torch.zeros(value.shape) for name, value in weights.items()}, folder.path / "pytorch_model.bin")
    loaded = AutoModel.from_pretrained(folder.path)
    assert not loaded.embeddings.word_embeddings.weight.any()  # of the .bin, though there is safetensors
    refuses(folder, r"model.safetensors.index.json does not name the weights that are in")
    folder.change(
        "model.safetensors.index.json",
        metadata={},
        weight_map=dict.fromkeys(weights, "model-00001-of-00001.safetensors"),
    )
    assert load_ours(folder).encode(["moths"]).any()


def test_weights_under_another_name(folder: Folder) -> None:
    weights = load_file(folder.path / "model.safetensors")
    other = {name: np.zeros_like(value) for name, value in weights.items()}
    save_file(other, folder.path / "other.safetensors", metadata={"format": "pt"})
    folder.change("config.json", transformers_weights="other.safetensors")
    assert not AutoModel.from_pretrained(folder.path).embeddings.word_embeddings.weight.any()
    refuses(folder, r"weights in a custom format \(transformers_weights in config.json\), which are not read")


@pytest.mark.parametrize("name", ["", "2_Dense"])
def test_an_adapter_beside_the_model(name: str, folder: Folder) -> None:
    content = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": str(folder.outside / "gone")}
    folder.change(f"{name}/adapter_config.json".lstrip("/"), **content)
    if not name:
        with pytest.raises((OSError, ValueError), match="gone"):  # though the folder holds a whole model
            load_theirs(folder)
    refuses(folder, r"has an adapter_config.json beside the model, and the base that it names is not fetched")


@pytest.mark.parametrize("path", ["../outside", "/etc", "2_Dense/../../outside", "..\\outside", "C:\\outside", ".."])
def test_a_module_outside_the_folder(path: str, folder: Folder) -> None:
    shutil.copytree(folder.path / "2_Dense", folder.outside / "2_Dense")
    modules = json.loads((folder.path / "modules.json").read_text())
    modules[2]["path"] = path
    (folder.path / "modules.json").write_text(json.dumps(modules))
    refuses(folder, r"has a module outside its folder \('.*' in modules.json\)")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "2_Dense", "tokenizer.json", "notes"])
def test_a_link_out_of_the_folder(name: str, folder: Folder) -> None:
    here, there = folder.path / name, folder.outside / name
    shutil.move(here, there) if here.exists() else there.touch()
    here.symlink_to(there)
    assert load_theirs(folder).encode(["moths"]).shape == (1, 4)
    refuses(folder, rf"{name} is a link out of the folder of .*, which is not followed")


def test_links_of_the_hub_cache(folder: Folder, tmp_path: Path) -> None:
    repository = tmp_path / "cache" / "models--org--toy"
    commit = repository / "snapshots" / ("0" * 40)
    for number, path in enumerate(sorted(folder.path.rglob("*"))):
        place = commit / path.relative_to(folder.path)
        if path.is_file():
            blob = repository / "blobs" / str(number)
            blob.parent.mkdir(parents=True, exist_ok=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, blob)
            place.symlink_to(os.path.relpath(blob, place.parent))
    assert load_encoder(commit, device="cpu", engine="torch").encode(["moths"]).shape == (1, 4)
    (commit / "more.json").symlink_to("../../../models--org--other/blobs/1")
    with pytest.raises(InputError, match=r"more.json of .* leads nowhere"):
        load_encoder(commit, device="cpu", engine="torch")


@pytest.mark.parametrize("name", ["notes.json", "notes"])
def test_a_pipe(name: str, folder: Folder) -> None:
    os.mkfifo(folder.path / name)
    refuses(folder, rf"{name} of .* is neither a file nor a folder")


def test_loading_stays_offline(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    load, seen = torch_engine._load_folder, []

    def record(*arguments: Any) -> SentenceTransformer:
        seen.append(constants.is_offline_mode())
        return load(*arguments)

    monkeypatch.setattr(torch_engine, "_load_folder", record)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    load_ours(folder)
    assert (seen, constants.is_offline_mode()) == ([True], False)


# --- files that break a library ---

BROKEN = {
    "a field twice": (b'{"model_type": "bert", "model_type": "theirs"}', "has 'model_type' more than once"),
    "a byte order mark": ('{"model_type": "bert"}'.encode("utf-8-sig"), "BOM"),
    "UTF-16": ('{"model_type": "bert"}'.encode("utf-16"), "codec"),
    "cut off": (b'{"model_type": ', "Expecting value"),
    "nested": (b"[" * 100_000, "recursion"),
    "a number of 5000 digits": (b'{"vocab_size": ' + b"9" * 5000 + b"}", "digits"),
}


@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", "notes/more.json"])
@pytest.mark.parametrize("kind", BROKEN)
def test_json_that_cannot_be_read(kind: str, name: str, folder: Folder) -> None:
    content, reason = BROKEN[kind]
    (folder.path / name).parent.mkdir(exist_ok=True)
    (folder.path / name).write_bytes(content)
    refuses(folder, reason)


def test_a_huge_json_file(folder: Folder) -> None:
    with open(folder.path / "tokenizer.json", "wb") as stream:
        stream.truncate(1 << 40)  # sparse
    refuses(folder, r"tokenizer.json is broken \(it has more than 128 MiB\)")


def test_weights_of_another_model(folder: Folder) -> None:
    weights = load_file(folder.path / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = np.zeros((len(WORDS) + 1, WIDTH), np.float32)
    save_file(weights, folder.path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="details look at the above report"):  # a page
        load_theirs(folder)
    refuses(folder, r"embeddings.word_embeddings.weight is 9 x 8, and vocab_size and the width of words are 8 x 8")


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "é" * 600])
def test_names_of_tensors(name: str, folder: Folder) -> None:
    weights = load_file(folder.path / "model.safetensors")
    save_file(weights | {name: np.zeros(1, np.float32)}, folder.path / "model.safetensors", metadata={"format": "pt"})
    refuses(folder, r"model.safetensors is damaged or holds more than weights \(a tensor has the name")


@pytest.mark.parametrize("name", ["model.safetensors", "2_Dense/model.safetensors"])
@pytest.mark.parametrize("n_bytes", [0, 7, 100, -1])
def test_weights_that_are_cut_off(name: str, n_bytes: int, folder: Folder) -> None:
    content = (folder.path / name).read_bytes()
    (folder.path / name).write_bytes(content[:n_bytes])
    refuses(folder, rf"{name} is damaged or holds more than weights")


@pytest.mark.parametrize(
    "fields", [{"hidden_size": "x"}, {"num_attention_heads": 0}, {"hidden_act": [7]}, {"layer_norm_eps": None}]
)
def test_settings_that_make_no_sense(fields: dict[str, Any], folder: Folder) -> None:
    folder.change("config.json", **fields)
    refuses(folder, r"cannot be loaded: .|states")


def test_quantized_weights(folder: Folder) -> None:
    folder.change("config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(ImportError, match="bitsandbytes"):
        load_theirs(folder)
    refuses(folder, r"weights in a custom format \(quantization_config in config.json\), which are not read")


def test_an_onnx_file_with_weights_outside(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    table = onnx.helper.make_tensor("table", onnx.TensorProto.FLOAT, [2], np.zeros(2, np.float32).tobytes(), raw=True)
    output = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["table"], ["out"])], "g", [], [output], [table])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    folder = tmp_path / "exported"
    (folder / "assets").mkdir(parents=True)
    for name in ("tokenizer.json", "assets/vocab.txt"):
        (folder / name).write_text("{}")
    stated = {"spec": {"name": "toy", "source": "org/toy", "pooling": "mean", "max_tokens": 512}, "versions": {}}
    stated |= {"precision": "float32", "dim": 8, "fingerprint": {"weights_sha256": "", "tokenizer_sha256": ""}}
    onnx.save(model, folder / "model.onnx")
    write_manifest(folder, "onnx", **stated)
    assert open_model_folder(folder).kind == "onnx"
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="secret.bin", size_threshold=0)
    (folder / "secret.bin").write_bytes(np.float32([7, 8]).tobytes())
    write_manifest(folder, "onnx", **stated)
    session = runtime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {})[0].tolist() == [7, 8]
    with pytest.raises(InputError, match=r"model.onnx names other files with its weights, which are not opened"):
        open_model_folder(folder)


# --- folders that are fine ---

CHAT = {
    "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    "processor_class": "Gemma3Processor",
}
TOKENIZER = {
    "added_tokens_decoder": {"0": {"content": "[PAD]", "special": True, "lstrip": False}},
    "extra_special_tokens": {},
    "model_max_length": 1000000000000000019884624838656,
    "name_or_path": "/home/ada/models/toy",
    "special_tokens_map_file": "/home/ada/.cache/special_tokens_map.json",
    "tokenizer_file": None,
}
PARTS = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")


def config_of(config: type[PreTrainedConfig], **more: Any) -> dict[str, Any]:
    "Everything that transformers writes of a configuration."
    return (
        json.loads(config().to_json_string(use_diff=False))
        | {"_name_or_path": "org/toy", "torch_dtype": "float32"}
        | more
    )


FINE: dict[str, Callable[[], dict[str, dict[str, Any]]]] = {
    "SPECTER2 base": lambda: {
        "config.json": config_of(BertConfig, model_type="bert", gradient_checkpointing=False),
        "tokenizer_config.json": TOKENIZER | {"tokenizer_class": "BertTokenizer", "do_basic_tokenize": True},
    },
    "ModernBERT": lambda: {
        "config.json": config_of(ModernBertConfig, reference_compile=None, classifier_activation="gelu"),
        "tokenizer_config.json": TOKENIZER | {"tokenizer_class": "PreTrainedTokenizerFast"},
    },
    "Qwen3": lambda: {
        "config.json": config_of(Qwen3Config, rope_scaling=None, sliding_window=None),
        "generation_config.json": {"bos_token_id": 1, "max_new_tokens": 2048, "transformers_version": "4.51.3"},
        "tokenizer_config.json": TOKENIZER | CHAT | {"tokenizer_class": "Qwen2Tokenizer"},
        "vocab.json": {"auto_map": 1, "type": 2, "trust_remote_code": 3},
    },
    "Gemma3": lambda: {
        "config.json": config_of(Gemma3TextConfig, architectures=["Gemma3TextModel"], use_bidirectional_attention=True),
        "tokenizer_config.json": TOKENIZER | CHAT | {"tokenizer_class": "GemmaTokenizerFast", "sp_model_kwargs": None},
        "sentence_bert_config.json": {
            "max_seq_length": 2048,
            "do_lower_case": False,
            "model_args": {"dtype": "float32"},
        },
    },
    "model2vec": lambda: {
        "config.json": {
            "model_type": "model2vec",
            "architectures": ["StaticModel"],
            "tokenizer_name": "org/base",
            "apply_pca": 256,
            "apply_zipf": True,
            "hidden_dim": 256,
            "normalize": True,
        },
        "tokenizer_config.json": TOKENIZER | {"tokenizer_class": "TokenizersBackend"},
    },
}


@pytest.mark.parametrize("kind", FINE)
def test_layouts_of_real_models(kind: str, tmp_path: Path) -> None:
    model = Folder(tmp_path, tmp_path / "outside", tmp_path / "marker")
    for name, fields in FINE[kind]().items():
        model.change(name, **fields)
    entries = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{part}" if index else "",
            "type": f"sentence_transformers.models.{part}",
        }
        for index, part in enumerate(PARTS)
    ]
    if kind == "model2vec":
        entries = [{"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"}]
    elif kind != "SPECTER2 base":
        model.change("2_Dense/config.json", activation_function="torch.nn.modules.linear.Identity", bias=False)
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    model.change(
        "config_sentence_transformers.json",
        prompts={"query": "task: search | query: "},
        model_type="SentenceTransformer",
    )
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config.json").write_text("not JSON")  # hidden files are not read
    check_folder(tmp_path, "toy")


def test_a_chat_template_is_not_rendered(folder: Folder) -> None:
    folder.change("tokenizer_config.json", chat_template="{{ raise_exception('rendered') }}")
    with pytest.raises(Exception, match="rendered"):
        AutoTokenizer.from_pretrained(folder.path).apply_chat_template([{"role": "user", "content": "moths"}])
    assert load_ours(folder).encode(["moths"]).shape == (1, 4)
