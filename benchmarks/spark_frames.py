"""DataFrames on Spark: speed beside `pandas_udf`s, what the driver does, how busy cores are, and ten million papers.

    python -m benchmarks.spark_frames [speed] [parity] [driver] [cores] [scale]

Writes results/spark_frames.json. Each measurement has a Spark of its own. Without names all are made, which takes about an
hour and a half on two cores, most of it for `scale`; a name renews its own figures and leaves the others.
"""

import heapq
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.spark.frame_parts import Job, PartCommitter
from benchmarks.measuring import call, main
from benchmarks.spark import MANY_PAPERS, PAPERS, make_udf

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "spark_frames.json"
N_ROUNDS = 3
# papers that a contender is given, for ten seconds to a minute; a run gets most, since it scans and places them first
N_TIMED = {
    "theirs": 192,
    "float32": 384,
    "int8": 1_080,
    "Transformer float32": 768,
    "Transformer int8": 2_160,
    "run float32": 2_048,
    "run int8": 6_144,
}
N_PARITY = 1_000
N_UNEVEN, UNEVEN_SIZE = 64, 16  # parts that take different times, and papers in each
N_SCALE = (100_000, 1_000_000, 10_000_000)
THEIRS, OURS = "pandas_udf of sentence-transformers", "pandas_udf of our encoder"
TWO_EXECUTORS = "local-cluster[2,1,2048]"
MEMORY = {"spark.driver.memory": "2g", "spark.executor.memory": "2g"}


# Speed: the same session, the same two cores, in turns


def make_frame(spark: "SparkSession", n_papers: int, among: int) -> "DataFrame":
    "Title and abstract of papers from the file, chosen evenly from the shortest to the longest, spread over two tasks."
    from arxiv_embeddings.papers.corpus import open_papers

    batch = next(open_papers(PAPERS).scan().batches(among))
    rows = list(zip(*(batch[name].to_pylist() for name in ("paper_id", "title", "abstract")), strict=True))
    by_length = sorted(rows[:among], key=lambda row: len(row[1]) + len(row[2]))
    chosen = [by_length[place] for place in np.linspace(0, among - 1, n_papers).astype(int)]
    frame = spark.createDataFrame(chosen, "id string, title string, abstract string").repartition(2)
    frame.cache().count()
    return frame


def write_embedded(frame: "DataFrame", folder: str) -> int:
    "Write a DataFrame with vectors into Parquet; number of rows that have one."
    frame.write.parquet(f"{folder}/embedded")
    return frame.sparkSession.read.parquet(f"{folder}/embedded").where("size(embedding) = 384").count()


def embed_by_udf(frame: "DataFrame", folder: str, udf: Callable) -> int:
    "Embed as Spark's users do: a function of a text for each row."
    text = udf("text").alias("embedding")
    return write_embedded(frame.selectExpr("id", "concat(title, '. ', abstract) as text").select("id", text), folder)


def make_own_udf(precision: str) -> Callable:
    "The same function with our encoder in the place of sentence-transformers."
    import pandas as pd
    from pyspark.sql.functions import pandas_udf

    from arxiv_embeddings.encoders.conversion import get_or_convert
    from arxiv_embeddings.encoders.models import fetch_model
    from arxiv_embeddings.encoders.registry import find_model

    converted = get_or_convert(fetch_model(find_model("minilm")), precision)

    @pandas_udf("array<float>")
    def embed(texts: pd.Series) -> pd.Series:
        import arxiv_embeddings.encoders.openvino_engine as kept  # found there by the worker's next tasks

        if not hasattr(kept, "kept_model"):  # a task has one core
            kept.kept_model = kept.OpenVINOEncoder(converted, precision=precision, threads=1)
        return pd.Series(list(kept.kept_model.encode(texts.tolist())))

    return embed


def embed_by_transformer(frame: "DataFrame", folder: str, precision: str) -> int:
    "Embed with the Transformer."
    from arxiv_embeddings.spark import ArxivEmbedder

    return write_embedded(ArxivEmbedder(precision=precision).transform(frame).select("id", "embedding"), folder)


class TimedJob(Job):
    "Keeps when the job began that embeds the papers of a run."

    began = 0.0

    def __init__(self, *given: Any):
        TimedJob.began = time.monotonic()
        super().__init__(*given)


def embed_by_run(frame: "DataFrame", folder: str, precision: str) -> int:
    "Embed into a run, which is checked, continued and committed by parts."
    from arxiv_embeddings.spark import OnSpark

    n_papers, options = frame.count(), {"precision": precision, "executor": OnSpark(frame.sparkSession)}
    with patch("arxiv_embeddings.spark.frame_parts.Job", TimedJob):
        return embed_papers(frame, f"{folder}/run", part_size=max(16, n_papers // 16), **options).run.n_papers


def list_contenders(precision: str, last: str) -> dict[str, tuple[str, Callable]]:
    "A name of what it embeds, as in `N_TIMED`, and a function, for the two UDFs and for the Transformer or a run."
    theirs, ours = make_udf(), make_own_udf(precision)
    embed = {"Transformer": embed_by_transformer, "run": embed_by_run}[last]
    return {
        THEIRS: ("theirs", lambda frame, folder: embed_by_udf(frame, folder, theirs)),
        f"{OURS}, {precision}": (precision, lambda frame, folder: embed_by_udf(frame, folder, ours)),
        f"{last}, {precision}": (f"{last} {precision}", lambda frame, folder: embed(frame, folder, precision)),
    }


def measure_turns(precision: str, last: str) -> dict:
    """Papers a second of each contender in each round, and the seconds of its first call.

    A round goes to the last contender and back, so that a machine that gets slower or faster by and by is so to all of
    them. A first round is not counted: in it workers load their models and prepare kernels. A Python worker keeps one
    model for the Transformer and for runs, so each of these has a session of its own."""
    from arxiv_embeddings.spark.session import make_session

    spark = make_session("local[2]", jars="none", conf={"spark.driver.memory": "2g"})
    contenders = list_contenders(precision, last)
    n_papers = {name: N_TIMED[kind] for name, (kind, _) in contenders.items()}
    frames = {number: make_frame(spark, number, max(N_TIMED.values())) for number in n_papers.values()}

    def time_once(name: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            n_embedded = contenders[name][1](frames[n_papers[name]], folder)
            assert n_embedded == n_papers[name]
            return time.monotonic() - started

    first = {name: round(time_once(name), 1) for name in contenders}
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    before: list[float] = []
    for _ in range(N_ROUNDS):
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for name in (*contenders, *list(contenders)[-2::-1]):
            started = time.monotonic()
            seconds[name].append(time_once(name))
            before += [round(TimedJob.began - started, 1)] if TimedJob.began > started else []
        for name, found in seconds.items():
            rates[name].append(round(n_papers[name] / float(np.mean(found)), 2))
        print({name: found[-1] for name, found in rates.items()}, file=sys.stderr, flush=True)
    return {"rates": rates, "n_papers": n_papers, "seconds_first": first, "seconds_before": before}


def summarize_ratios(ratios: np.ndarray) -> dict:
    return {"median": round(float(np.median(ratios)), 2), "all": ratios.round(2).tolist()}


def measure_speed(_: Path) -> dict:
    "The Transformer and a run in each precision, and their ratios to both UDFs within a round."
    results: dict = {}
    for precision in ("float32", "int8"):
        for last in ("Transformer", "run"):
            measured = call(measure_turns, precision, last)
            rates = {name: np.array(found) for name, found in measured["rates"].items()}
            name = f"{last}, {precision}"
            results[name] = {one: measured[one][name] for one in ("n_papers", "seconds_first")}
            results[name] |= {"beside": {one: round(float(np.median(found)), 2) for one, found in rates.items()}}
            for other in (THEIRS, f"{OURS}, {precision}"):
                ratios = rates[name] / rates[other]
                results[name] |= {f"to {other}": summarize_ratios(ratios)}
            if before := measured["seconds_before"]:
                n_papers = results[name]["n_papers"]
                embedding = n_papers / (n_papers / rates[name] - before)  # papers a second, once the first is embedded
                results[name] |= {"seconds_before": before}
                results[name] |= {"embedding to our UDF": summarize_ratios(embedding / rates[f"{OURS}, {precision}"])}
    return results


# Parity


def compare_three_ways(folder: str) -> dict:
    "The Transformer, a run of a DataFrame in two executors, and one machine: ids, and the smallest cosine."
    from arxiv_embeddings.encoders.load import load_encoder
    from arxiv_embeddings.encoders.vectors import paired_cosines
    from arxiv_embeddings.spark import ArxivEmbedder, OnSpark
    from arxiv_embeddings.spark.session import make_session

    spark = make_session("local-cluster[2,1,2048]", jars="none", conf=MEMORY)
    frame = make_frame(spark, N_PARITY, N_PARITY)
    options = {"limit": N_PARITY, "encoder": load_encoder(engine="openvino", device="cpu")}
    here = embed_papers(PAPERS, Path(folder) / "here", **options).run
    expected = dict(zip(here.paper_ids, here.embeddings(), strict=True))
    run = embed_papers(frame, Path(folder) / "run", executor=OnSpark(spark)).run
    rows = ArxivEmbedder().transform(frame).select("id", "embedding").collect()
    found = {
        "run": dict(zip(run.paper_ids, run.embeddings(), strict=True)),
        "Transformer": {row["id"]: np.array(row["embedding"], np.float32) for row in rows},
    }
    return {"n_papers": len(expected)} | {
        name: {
            "ids_equal": sorted(vectors) == sorted(expected),
            "smallest_cosine": round(
                float(
                    paired_cosines(*(np.array([one[paper] for paper in expected]) for one in (vectors, expected))).min()
                ),
                8,
            ),
        }
        for name, vectors in found.items()
    }


# The driver


class DriverWatch:
    "Watches this process and its Java while a run is made: processor seconds, memory, bytes of results, commits."

    def __init__(self, spark: "SparkSession", out: Path):
        import psutil

        self.spark, self.out = spark, out
        self.python = psutil.Process()  # its Java talks to executors
        (self.java,) = [one for one in self.python.children() if one.name() == "java"]
        self.commits: list[tuple[float, int]] = []
        self.megabytes: list[float] = []
        self.seconds_watching = 0.0
        self.over = threading.Event()
        self.seconds_of_commits: list[float] = []

    def _cpu(self) -> dict[str, float]:
        return {name: sum(getattr(self, name).cpu_times()[:2]) for name in ("python", "java")}

    def _result_bytes(self) -> int:
        "Bytes that tasks have sent to the driver."
        context = self.spark.sparkContext
        nothing = context._gateway.new_array(context._jvm.double, 0), context._jvm.java.util.ArrayList()
        stages = context._jsc.sc().statusStore().stageList(None, False, False, *nothing)
        return sum(stages.apply(at).resultSize() for at in range(stages.size()))

    def _moved(self) -> int:
        "Bytes that the driver's Java has read and written, on disk and network."
        counted = self.java.io_counters()
        return counted.read_chars + counted.write_chars

    def _look(self) -> None:
        from arxiv_embeddings.files.documents import read_manifest

        n_papers = read_manifest(self.out / "metadata.json").get("n_papers", 0)
        if n_papers and (not self.commits or self.commits[-1][1] != n_papers):
            self.commits.append((time.monotonic() - self.started, n_papers))
        self.megabytes.append(self.python.memory_info().rss / 2**20)

    def _watch(self) -> None:
        while not self.over.wait(0.5):
            self._look()
        self.seconds_watching = time.thread_time()  # of this thread

    def __enter__(self) -> "DriverWatch":
        self.started, self.cpu_before = time.monotonic(), self._cpu()
        self.bytes_before, self.moved_before = self._result_bytes(), self._moved()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        self.commit = PartCommitter.commit_new

        def commit_timed(committer: PartCommitter) -> int:
            began = time.monotonic()
            n_parts = self.commit(committer)
            self.seconds_of_commits += [time.monotonic() - began] if n_parts else []
            return n_parts

        PartCommitter.commit_new = commit_timed
        return self

    def __exit__(self, *_: object) -> None:
        PartCommitter.commit_new = self.commit
        self.over.set()
        self.watcher.join()
        self.seconds = time.monotonic() - self.started
        self._look()  # the last commit
        self.cpu = {name: after - self.cpu_before[name] for name, after in self._cpu().items()}
        self.cpu["python"] -= self.seconds_watching
        self.n_result_bytes, self.n_moved = self._result_bytes() - self.bytes_before, self._moved() - self.moved_before

    def describe(self) -> dict:
        "The figures."
        return {
            "seconds": round(self.seconds, 1),
            "driver_cpu_seconds": round(sum(self.cpu.values()), 2),
            "of_python": round(self.cpu["python"], 2),
            "result_bytes": self.n_result_bytes,
            "bytes_moved": self.n_moved,
            "python_peak_mb": round(max(self.megabytes)),
            "first_commit_seconds": round(self.commits[0][0], 1),
            "longest_between_commits": round(
                float(np.diff([0.0, *(at for at, _ in self.commits)])[1:].max(initial=0)), 1
            ),
            "n_commits": len(self.seconds_of_commits),
            "seconds_of_last_commit": round(self.seconds_of_commits[-1], 2) if self.seconds_of_commits else None,
            "metadata_bytes": (self.out / "metadata.json").stat().st_size,
        }


def copy_papers(folder: Path, n_copies: int) -> Path:
    "The large file several times over, with other ids each time; folder of Parquet files."
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(MANY_PAPERS, columns=["paper_id", "title", "abstract"])
    folder.mkdir()
    for number in range(n_copies):
        ids = pa.array([f"{number}-{one}" for one in table["paper_id"].to_pylist()])
        pq.write_table(table.set_column(0, "paper_id", ids), folder / f"{number}.parquet", row_group_size=20_000)
    return folder


def make_watched(spark: "SparkSession", out: Path, papers: object) -> dict:
    "Make a run without a model, and watch the driver."
    from tests.fakes.letters import LetterEncoder
    from tests.fakes.letters_on_spark import LettersOnSpark

    with DriverWatch(spark, out) as watch:
        made = embed_papers(papers, out, encoder=LetterEncoder(), executor=LettersOnSpark(spark))
    assert made.run.n_papers == made.run.input["n_accepted"]
    return {"n_papers": made.n_embedded, "n_parts": len(made.run.parts)} | watch.describe()


def measure_driver(folder: str) -> dict:
    """What the driver does for a run: papers that it reads and sends, and a DataFrame that executors read.

    Letters stand for a model, so that nothing but reading, sending, storing and committing is measured. Two sizes tell what
    a paper costs from what a run costs however small it is, most of which is Java's compiler."""
    from arxiv_embeddings.spark.session import make_session

    place = Path(folder)
    settings = {"spark.driver.memory": "4g", "spark.executor.memory": "2g"}
    spark = make_session(TWO_EXECUTORS, jars="none", conf=settings)
    files = {n_copies: copy_papers(place / f"papers-{n_copies}", n_copies) for n_copies in (1, 4)}
    small = (
        spark.read.parquet(str(files[1])).limit(2_000).toPandas()
    )  # both ways once before, with workers and classes loaded
    small.to_parquet(place / "small.parquet")
    make_watched(spark, place / "first", str(place / "small.parquet"))
    make_watched(spark, place / "second", spark.createDataFrame(small))
    ways = {"sent": str, "DataFrame": lambda one: spark.read.parquet(str(one))}
    found = {
        name: {
            n_copies: make_watched(spark, place / f"{name}-{n_copies}", make(one)) for n_copies, one in files.items()
        }
        for name, make in ways.items()
    }
    spark.stop()
    return {name: describe_growth(*of_sizes.values()) for name, of_sizes in found.items()}


def describe_growth(small: dict, large: dict) -> dict:
    "Figures of two runs, and what each 100,000 papers more have cost the driver."
    n_more = (large["n_papers"] - small["n_papers"]) / 1e5
    more = {
        f"{name}_per_100k": round((large[name] - small[name]) / n_more, 2)
        for name in ("driver_cpu_seconds", "result_bytes", "bytes_moved", "metadata_bytes")
    }
    return {"runs": [small, large]} | more


# Cores


def without_gaps(seconds_of_parts: np.ndarray, n_cores: int = 2) -> float:
    "Seconds that parts take if a core takes the next one in the moment in which it is free."
    free_at = [0.0] * n_cores
    for seconds in seconds_of_parts:
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return float(max(free_at))


def measure_cores(folder: str) -> dict:
    """How busy two executors of one core are with parts that take very different times.

    The best possible is a core that takes the next part in the moment in which it has finished one, in the same order.
    Parts take three seconds in the mean, and then nine. With MiniLM in int8, 2,048 papers take a core half a minute."""
    import pyarrow.parquet as pq

    from arxiv_embeddings.spark.session import make_session

    n_papers = N_UNEVEN * UNEVEN_SIZE
    spark = make_session(TWO_EXECUTORS, jars="none", conf=MEMORY)
    table = pq.read_table(MANY_PAPERS, columns=["paper_id", "title", "abstract"]).slice(0, n_papers)
    pq.write_table(table, f"{folder}/papers.parquet")
    ways = {"sent": f"{folder}/papers.parquet", "DataFrame": spark.createDataFrame(table.to_pandas())}
    seconds = np.random.default_rng(0).lognormal(np.log(1.8), 1.0, N_UNEVEN)
    return {
        f"{name}, {words}": measure_uneven(spark, papers, Path(folder) / f"{name}-{factor}", factor * seconds)
        for factor, words in {1: "3 s", 3: "9 s"}.items()
        for name, papers in ways.items()
    }


def measure_uneven(spark: "SparkSession", papers: object, out: Path, seconds: np.ndarray) -> dict:
    "Make a run whose parts take these seconds, and compare with the best possible."
    from arxiv_embeddings.runs.store import open_run
    from tests.fakes.letters_on_spark import LettersOnSpark, TimedEncoder

    spark.range(8).mapInArrow(lambda batches: batches, "id long").collect()  # workers have started
    encoder = TimedEncoder(str(out.with_suffix(".times")), seconds.round(3).tolist())
    embed_papers(papers, out, encoder=encoder, executor=LettersOnSpark(spark), part_size=UNEVEN_SIZE)
    assert open_run(out).n_papers == N_UNEVEN * UNEVEN_SIZE
    spans = np.array(encoder.read_spans())
    seconds_of_parts = np.diff(spans[np.argsort(spans[:, 0])]).ravel()
    span = float(spans.max() - spans.min())
    return {
        "n_parts": len(spans),
        "mean_seconds": round(float(seconds_of_parts.mean()), 2),
        "seconds": round(span, 1),
        "share_of_best": round(without_gaps(seconds_of_parts) / span, 3),
        "cores_busy": round(float(seconds_of_parts.sum()) / 2 / span, 3),
    }


# Ten million papers


def measure_scale(folder: str) -> dict:
    "Short synthetic papers, made by the executors, with letters for a model: what grows with their number."
    from arxiv_embeddings.spark.session import make_session

    spark = make_session(TWO_EXECUTORS, jars="none", conf=MEMORY)
    found = {}
    for n_papers in N_SCALE:
        frame = spark.range(0, n_papers, 1, 16).selectExpr(
            "format_string('p%08d', (id * 7919) % 100000007) as id",
            "concat('Synthetic paper ', id) as title",
            "concat('We report result ', id, ' of a series.') as abstract",
        )
        out = Path(folder) / str(n_papers)
        made = make_watched(spark, out, frame)
        assert made["n_papers"] == n_papers
        found[f"{n_papers:,}"] = made | {"n_files": sum(one.is_file() for one in out.rglob("*"))}
        print(n_papers, found[f"{n_papers:,}"], flush=True)
    spark.stop()
    return found


MEASUREMENTS = {
    "speed": measure_speed,
    "parity": lambda work: call(compare_three_ways, work),
    "driver": lambda work: call(measure_driver, work),
    "cores": lambda work: call(measure_cores, work),
    "scale": lambda work: call(measure_scale, work),
}

if __name__ == "__main__":
    main(MEASUREMENTS, globals(), RESULTS, without_data=("scale",))
