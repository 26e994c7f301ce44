"""A GPU for each task: Spark's addresses become devices, without a GPU; letters stand for torch."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import typer
from numpy.testing import assert_array_equal
from pyspark import cloudpickle

from arxiv_embeddings.cli.spark import ClusterOptions, SparkNLPOptions, check_way, make_executor
from arxiv_embeddings.encoders.models import ModelFiles, fetch_model
from arxiv_embeddings.encoders.registry import find_model
from arxiv_embeddings.encoders.torch_engine import TorchEncoder
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.spark import ArxivEmbedder, OnSpark, via_encoder
from arxiv_embeddings.spark.session import make_session
from arxiv_embeddings.spark.via_encoder import archive_model, load_in_worker, pack_original
from tests.fakes.letters import LetterEncoder
from tests.fakes.specter_shape import make_adapter, make_base

pytestmark = pytest.mark.spark

SAMPLE = pd.read_csv(sample_papers(), dtype=str).fillna("")[["paper_id", "title", "abstract"]]
# the first worker that asks has GPU 0, the other one GPU 1, as if each were a machine of its own with another index
SCRIPT = """#!/bin/sh
if mkdir "{folder}/first" 2>/dev/null; then number=0; else number=1; fi
echo "{{\\"name\\": \\"gpu\\", \\"addresses\\": [\\"$number\\"]}}"
"""


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    "Two executors with a GPU each, which no one has."
    folder = tmp_path_factory.mktemp("gpus")
    script = folder / "find_gpus.sh"
    script.write_text(SCRIPT.format(folder=folder))
    script.chmod(0o755)
    settings = {
        "spark.driver.memory": "1g",
        "spark.executor.memory": "1g",
        "spark.sql.shuffle.partitions": "2",
        "spark.worker.resource.gpu.amount": "1",
        "spark.worker.resource.gpu.discoveryScript": str(script),
        "spark.executor.resource.gpu.amount": "1",
        "spark.task.resource.gpu.amount": "1",
        "spark.executorEnv.CUDA_VISIBLE_DEVICES": "0,1",
    }
    session = make_session("local-cluster[2,1,1024]", jars="none", conf=settings)
    yield session
    session.stop()


class LettersOnGpu(LetterEncoder):
    "Letters in the place of torch in a worker: the first number of a vector is that of the device."

    def __init__(self, files: ModelFiles, device: str, **options: Any):
        super().__init__()
        self.device, self.options = device, options

    def run(self, tokenized: Any, on_batch: Any = None) -> np.ndarray:
        vectors = super().run(tokenized)
        vectors[:, 0] = int(self.device.removeprefix("cuda:"))
        return vectors


class LettersInDriver(LetterEncoder, TorchEncoder):
    "What the driver has of it."

    spec, model_folder = None, None  # no properties, as `TorchEncoder` has

    def __init__(self) -> None:
        super().__init__()
        self.files = fetch_model(find_model("minilm"))
        self.settings = {"engine": "torch", "device": "cpu", "versions": {}}
        self.batching = {"token_budget": 1000, "length_multiple": 8}
        self.text_tokenizer = SimpleNamespace(allow_unknown=False)


@dataclass(frozen=True)
class LetterParts:
    "Makes the parts of `PartEncoder` with letters."

    parts: via_encoder.PartEncoder

    def embed_papers(self, papers: pa.RecordBatch) -> tuple[pa.Table, np.ndarray, dict[str, Any]]:
        via_encoder.TorchEncoder = LettersOnGpu
        return self.parts.embed_papers(papers)


class LettersOnGpus(OnSpark):
    def make_part_encoder(self, encoder: Any, writer: Any) -> LetterParts:
        return LetterParts(super().make_part_encoder(encoder, writer))


cloudpickle.register_pickle_by_value(sys.modules[__name__])  # executors have the package, but not its tests
cloudpickle.register_pickle_by_value(sys.modules[LetterEncoder.__module__])


def test_two_tasks_at_a_time_have_different_gpus(tmp_path: Path, spark: Any) -> None:
    meeting = str(tmp_path)

    def meet(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            (Path(meeting) / str(batch["id"][0])).touch()
            end = time.monotonic() + 20
            while len(list(Path(meeting).iterdir())) < 2 and time.monotonic() < end:
                time.sleep(0.02)
            yield pa.RecordBatch.from_pydict({"device": [via_encoder.find_task_device()]})

    rows = spark.range(0, 2, 1, 2).mapInArrow(meet, "device string").collect()
    assert sorted(row["device"] for row in rows) == ["cuda:0", "cuda:1"]


def test_a_run_on_the_gpus_of_its_tasks(tmp_path: Path, spark: Any) -> None:
    encoder, executor = LettersInDriver(), LettersOnGpus(spark, device="cuda")
    frame = spark.createDataFrame(SAMPLE[:40])
    run = embed_papers(frame, tmp_path / "run", encoder=encoder, executor=executor, part_size=5).run
    assert run.paper_ids == sorted(SAMPLE.paper_id[:40])
    vectors = run.embeddings()
    devices = vectors[:, 0].reshape(8, 5)
    assert set(devices[:, 0]) <= {0, 1}
    assert (devices == devices[:, :1]).all()  # a part is made on one GPU
    texts = encoder.spec.texts_of(run.read(["title", "abstract"]))
    assert_array_equal(vectors[:, 1:], encoder.encode(texts)[:, 1:])
    assert run.metadata["settings"]["device"] == "cuda"
    assert run.metadata["batching"] == {"part_size": 5} | encoder.batching


def test_a_column_on_the_gpus_of_its_tasks(spark: Any) -> None:
    made = ArxivEmbedder(device="cuda", precision="float16")._make_embedder(spark, (1, 2))
    assert made.options == {"precision": "float16", "long_text": "truncate", "device": "cuda"}

    def add_letters(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        via_encoder.TorchEncoder = LettersOnGpu
        for batch in made.add_vectors(batches):
            yield batch.select(["embedding"])

    rows = spark.createDataFrame(SAMPLE[:10]).repartition(2).mapInArrow(add_letters, "embedding array<float>").collect()
    assert [len(row["embedding"]) for row in rows] == [4] * 10
    assert {row["embedding"][0] for row in rows} <= {0, 1}


def test_a_session_that_gives_tasks_no_gpu_is_refused(spark: Any) -> None:
    plain = spark.newSession()
    plain.conf.set("spark.task.resource.gpu.amount", "0")
    with pytest.raises(
        InputError, match=r"spark\.task\.resource\.gpu\.amount is 0, but tasks ask for no GPU: set 1 when"
    ):
        OnSpark(plain, device="cuda")
    with pytest.raises(InputError, match=r"spark\.task\.resource\.gpu\.amount is 0, but tasks ask for no GPU"):
        ArxivEmbedder(device="cuda").transform(plain.createDataFrame(SAMPLE[:1]))
    with pytest.raises(InputError, match="executors run models in torch: load the encoder with engine='torch'"):
        OnSpark(spark, device="cuda").prepare(LetterEncoder(), {})


def test_the_command_line_asks_for_gpus(spark: Any) -> None:
    cluster = ClusterOptions(device="cuda")
    assert make_executor(spark, SparkNLPOptions(), cluster).device == "cuda"
    assert make_executor(spark, SparkNLPOptions(), ClusterOptions()).device == "cpu"
    check_way("encoder", cluster)
    with pytest.raises(typer.BadParameter, match="this needs --via encoder") as refused:
        check_way("spark-nlp", cluster)
    assert refused.value.param_hint == "--device"


def load(model: via_encoder.OriginalModel, folder: Path | None = None, **changed: Any) -> Any:
    "Load a model as a worker does."
    options = {"device": "cuda", "precision": "float32", "long_text": "truncate", "threads": 1} | changed
    spec = json.dumps(asdict(model.spec))
    return load_in_worker(str(folder or model.folder), model.content_sha256, spec, json.dumps(options))


def test_a_model_is_kept_for_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = iter(["cuda:0", "cuda:0", "cuda:1", "cuda:1", "cuda:0"])
    monkeypatch.setattr(via_encoder, "find_task_device", lambda: next(devices))
    monkeypatch.setattr(via_encoder, "TorchEncoder", LettersOnGpu)
    model = pack_original(fetch_model(find_model("minilm")))
    first, again, other, same, third = [load(model) for _ in range(5)]
    assert [one.device for one in (first, other, third)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert first is again
    assert other is same
    assert third is not first  # a worker keeps one model
    assert first.options == {"precision": "float32", "long_text": "truncate"}


def test_a_task_without_a_gpu_is_told_the_settings() -> None:
    model = pack_original(fetch_model(find_model("minilm")))
    with pytest.raises(
        InputError, match=r"Spark gave this task no GPU: set spark\.executor\.resource\.gpu\.amount and"
    ):
        load(model)


def test_a_model_with_an_adapter_travels_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_base(base, n_layers=2, hidden_size=64)
    make_adapter(base, adapter)
    (base / "notes.md").write_text("not needed")
    files = fetch_model(find_model(base, pooling="cls", adapter=str(adapter)))
    shutil.unpack_archive(archive_model(pack_original(files)), tmp_path / "there", "zip")
    monkeypatch.setattr(via_encoder, "find_task_device", lambda: "cpu")
    texts = SAMPLE.abstract[:5].tolist()
    here = TorchEncoder(files, "cpu").encode(texts)
    model = pack_original(files)
    shutil.rmtree(base)
    shutil.rmtree(adapter)
    there = load(model, tmp_path / "there")
    assert_array_equal(there.encode(texts), here)
    assert (there.device, (tmp_path / "there" / "model" / "notes.md").exists()) == ("cpu", False)
    weights = tmp_path / "there" / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    via_encoder._WORKER_CACHE.clear()
    with pytest.raises(InputError, match="contains another model than the driver has: choose a new folder"):
        load(model, tmp_path / "there")
