"""A model folder that names code is refused in one line, in every way in, before a library reads the folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from arxiv_embeddings.encoders import conversion, load, torch_engine
from arxiv_embeddings.encoders.load import load_encoder
from arxiv_embeddings.encoders.model_folder import open_model_folder, write_manifest
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.run_model import open_kept_model
from tests.fakes.specter_shape import make_adapter, make_base

pytestmark = pytest.mark.slow

CODE = {
    "a class beside the model": ("config.json", {"auto_map": {"AutoModel": "theirs.Theirs"}}),
    "a class of another repository": ("config.json", {"auto_map": {"AutoModel": "org/other--theirs.Theirs"}}),
    "a tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}),
    "a processor": ("processor_config.json", {"auto_map": {"AutoProcessor": "theirs.Theirs"}}),
    "a kernel, by the internal name": ("config.json", {"_attn_implementation_internal": "org/kernel"}),
    "the internal name alone": ("config.json", {"_attn_implementation_internal": "eager"}),
    "a kernel": ("config.json", {"attn_implementation": "org/kernel"}),
    "a kernel of a version": ("config.json", {"_attn_implementation": "org/kernel@main:forward"}),
    "a kernel for a part": ("config.json", {"attn_implementation": {"text_config": "org/kernel"}}),
    "a kernel in a part": ("config.json", {"encoder": {"text_config": [{"attn_implementation": "org/kernel"}]}}),
    "a kernel of experts": ("config.json", {"experts_implementation": "org/kernel"}),
    "trust": ("config.json", {"trust_remote_code": True}),
    "trust as a number": ("config.json", {"trust_remote_code": 1}),
    "trust in a part": ("config.json", {"keypoint_detector_config": {"trust_remote_code": True}}),
    "trust in sentence-transformers' arguments": (
        "sentence_bert_config.json",
        {"max_seq_length": 128, "model_args": {"trust_remote_code": True}},
    ),
    "a kernel in sentence-transformers' arguments": (
        "sentence_bert_config.json",
        {"model_args": {"attn_implementation": "org/kernel"}},
    ),
    "a pipeline": ("config.json", {"custom_pipelines": {"theirs": {"impl": "theirs.Theirs"}}}),
    "a generation": ("generation_config.json", {"custom_generate": "org/theirs"}),
    "a module": ("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "theirs.Theirs"}]),
    "a module of Python": ("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "os.system"}]),
    "a module in a router": ("router_config.json", {"types": {"query_0": "theirs.Theirs"}}),
    "a module deep down": ("1_Router/query/config.json", {"a": [{"b": {"type": "theirs.Theirs"}}]}),
    "an activation": ("2_Dense/config.json", {"activation_function": "theirs.Theirs"}),
    "an activation that torch has, but for other things": (
        "2_Dense/config.json",
        {"activation_function": "torch.load"},
    ),
    "any JSON": ("notes/more.json", {"deep": [[{"auto_map": {"AutoConfig": "theirs.Theirs"}}]]}),
}
HARMLESS = {
    "config.json": {"trust_remote_code": False, "auto_map": {}, "_attn_implementation": "eager"},
    "vocab.json": {"auto_map": 0, "trust_remote_code": 1, "type": 2},
    "2_Dense/config.json": {"activation_function": "torch.nn.modules.activation.Tanh"},
}


def add_json(folder: Path, name: str, content: Any) -> None:
    "Put fields into a JSON file of a folder, or make the file."
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    there = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(there | content if isinstance(content, dict) and isinstance(there, dict) else content))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A small plain transformer."
    return make_base(tmp_path_factory.mktemp("base"), n_layers=1, hidden_size=64)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    "Fail if a folder comes as far as a library that loads models."

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a library was given the folder")

    for module, name in (
        (torch_engine, "load_modules"),
        (torch_engine, "read_weight_names"),
        (load, "TorchEncoder"),
        (load, "OpenVINOEncoder"),
        (load, "get_or_convert"),
        (conversion, "load_openvino"),
    ):
        monkeypatch.setattr(module, name, fail)


@pytest.mark.parametrize("kind", CODE)
def test_a_folder_that_names_code(kind: str, base: Path, tmp_path: Path, no_library: None) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "theirs.py").write_text("raise SystemExit('this was run')\n")
    add_json(folder, *CODE[kind])
    with pytest.raises(InputError, match=r"contains custom code|needs a module") as caught:
        load_encoder(folder, pooling="cls", device="cpu")
    assert "\n" not in str(caught.value)


def test_fields_that_name_no_code(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    for name, content in HARMLESS.items():
        add_json(folder, name, content)
    assert load_encoder(folder, pooling="cls", device="cpu", engine="torch").encode(["moths"]).shape == (1, 64)


def test_an_adapter_that_names_code(base: Path, tmp_path: Path, no_library: None) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    add_json(adapter, "adapter_config.json", {"config": {"model_kwargs": {"trust_remote_code": True}}})
    with pytest.raises(InputError, match=r"custom code \(trust_remote_code in adapter_config.json\)"):
        load_encoder(base, adapter=str(adapter), pooling="cls", device="cpu")


def test_a_module_outside_the_folder(base: Path, tmp_path: Path, no_library: None) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    shutil.copytree(base, folder)
    add_json(outside, "config.json", {"activation_function": "theirs.Theirs"})
    kinds = {"": "Transformer", "../outside": "Dense"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=r"has a module outside its folder \('../outside' in modules.json\)"):
        load_encoder(folder, pooling="cls", device="cpu")


def test_a_converted_model(tmp_path: Path) -> None:
    run = embed_papers(sample_papers(), tmp_path / "run", limit=2, precision="int8", engine="openvino").run
    add_json(run.folder / "model", "config.json", {"auto_map": {"AutoModel": "theirs.Theirs"}})
    with pytest.raises(InputError, match=r"custom code \(auto_map in config.json\)"):
        open_kept_model(run.folder)


def test_an_exported_model(tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    (folder / "assets").mkdir(parents=True)
    for name in ("model.onnx", "tokenizer.json", "assets/vocab.txt"):
        (folder / name).write_text("{}")
    spec = {"name": "toy", "source": "org/toy", "pooling": "mean", "max_tokens": 512}
    fingerprint = {"weights_sha256": "", "tokenizer_sha256": ""}
    write_manifest(folder, "onnx", precision="float32", dim=8, spec=spec, fingerprint=fingerprint, versions={})
    assert open_model_folder(folder).kind == "onnx"
    add_json(folder, "assets/more.json", {"a": [{"trust_remote_code": "yes"}]})
    with pytest.raises(InputError, match=r"custom code \(trust_remote_code in assets/more.json\)"):
        open_model_folder(folder)
