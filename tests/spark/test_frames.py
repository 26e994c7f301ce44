"""A run from a Spark DataFrame: the papers and vectors of one machine, whatever Spark does with the rows."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyspark.sql import functions as F
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.encoders.base import Encoder
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.files.paths import list_folder
from arxiv_embeddings.papers.corpus import read_papers, sample_papers
from arxiv_embeddings.runs.embed import EmbedResult, embed_papers
from arxiv_embeddings.runs.format import METADATA_NAME
from arxiv_embeddings.runs.store import Run, RunWriter, open_run, write_part
from arxiv_embeddings.runs.verify import verify_run
from arxiv_embeddings.spark import OnSpark
from arxiv_embeddings.spark.frame_parts import PartCommitter, PartStore, name_report
from arxiv_embeddings.spark.frames import FramePapers
from arxiv_embeddings.spark.session import make_session
from tests.fakes import ROOT
from tests.fakes.letters import LetterEncoder, SlowEncoder
from tests.fakes.letters_on_spark import LettersOnSpark
from tests.fakes.object_store import ACCESS, BUCKET, SECRET
from tests.fakes.slow_writer import count_committed, wait_until
from tests.spark.test_via_encoder import SETTINGS, TWO_EXECUTORS, find_executors

pytestmark = pytest.mark.spark

SAMPLE = pd.read_csv(sample_papers(), dtype=str).fillna("")
PART_SIZE = 12


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    "Two executors, processes of their own, that race each other for slow tasks; small Arrow batches."
    batches = {"spark.sql.execution.arrow.maxRecordsPerBatch": "7", "spark.sql.shuffle.partitions": "3"}
    session = make_session(TWO_EXECUTORS, jars="none", conf=SETTINGS | batches)
    yield session
    session.stop()


@pytest.fixture
def messy() -> pd.DataFrame:
    "The sample with rows of each kind that is no paper, and with two texts that are the same."
    rows = SAMPLE[:60].copy()
    rows.loc[3, "abstract"] = None
    rows.loc[5, "abstract"] += "\x00"
    rows.loc[7, "paper_id"] = None
    rows.loc[9, "abstract"] = "  No   abstract "
    rows.loc[11:12, ["title", "abstract"]] = ["The same title", "The same  abstract."]
    rows.loc[[20, 21, 22], "paper_id"] = ["1503.00100v1", "1503.00100v3", "1503.00100v2"]
    rows.loc[[24, 25], "paper_id"] = "1503.00200"
    rows.loc[30, "paper_id"] = "704.0002"  # its zeros are lost, as the ids above show
    return rows


def embed(frame: Any, out: Path, spark: Any, **options: Any) -> EmbedResult:
    "Embed with letters instead of a model."
    options = {"part_size": PART_SIZE} | options
    return embed_papers(frame, out, encoder=LetterEncoder(), executor=LettersOnSpark(spark), **options)


def count(entries: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {reason: one["count"] for reason, one in entries.items()}


def assert_same_vectors(there: Run, here: Run) -> None:
    "The same papers, ordered by id there, with the same vectors."
    assert there.paper_ids == sorted(here.paper_ids)
    order = [here.row_of(paper_id) for paper_id in there.paper_ids]
    assert_allclose(there.embeddings(), here.embeddings()[order], atol=1e-5, strict=True)
    columns = ["title", "abstract", "categories", "year", "text_sha256"]
    assert there.read(columns) == here.read(columns).take(pa.array(order))


def test_the_papers_and_vectors_of_one_machine(
    tmp_path: Path, spark: Any, minilm: Encoder, messy: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arxiv_embeddings.spark.frames.IDS_A_TASK", 25)  # three tasks settle ids
    frame = spark.createDataFrame(messy)
    there = embed_papers(frame, tmp_path / "there", executor=OnSpark(spark), part_size=PART_SIZE).run
    here = embed_papers(messy, tmp_path / "here", encoder=minilm).run
    # of two rows with one id and version, the smaller hash wins there, and the first one here
    (twice,) = {there.row_of("1503.00200"), sorted(here.paper_ids).index("1503.00200")}
    title = there.read("title")["title"][twice].as_py()
    if title == messy.title[25]:
        here = embed_papers(messy.drop(24), tmp_path / "other", encoder=minilm).run
    assert_same_vectors(there, here)
    assert count(there.input["rejected"]) == {
        "missing id": 1,
        "no abstract": 2,
        "NUL or lone surrogate": 1,
        "older version": 2,
        "duplicate id": 1,
        "id went through a number: write ids as text": 1,
    }
    assert (there.input["n_rows"], there.input["n_accepted"], there.n_papers) == (60, 52, 52)
    assert [part.n_papers for part in there.parts] == [12, 12, 12, 12, 4]
    assert there.metadata["fingerprint"] == here.metadata["fingerprint"]
    assert there.metadata["complete"]
    assert verify_run(there)["sound"]


def test_any_split_gives_the_same_run(
    tmp_path: Path, spark: Any, messy: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {  # by how many ids a task settles
        1000: spark.createDataFrame(messy),
        15: spark.createDataFrame(messy[::-1]).repartition(9),
        30: spark.createDataFrame(messy.sample(frac=1, random_state=3)).coalesce(1),
    }
    runs = []
    for n_ids, frame in splits.items():
        monkeypatch.setattr("arxiv_embeddings.spark.frames.IDS_A_TASK", n_ids)
        runs.append(embed(frame, tmp_path / str(n_ids), spark).run)
    first, *others = runs
    for other in others:
        assert other.read() == first.read()
        assert_array_equal(other.embeddings(), first.embeddings())
        assert other.input == first.input


def test_a_run_goes_on_with_the_parts_that_it_lacks(tmp_path: Path, spark: Any, messy: pd.DataFrame) -> None:
    frame = spark.createDataFrame(messy)
    whole = embed(frame, tmp_path / "whole", spark).run
    run = embed(frame, tmp_path / "run", spark).run
    with RunWriter(run.folder) as writer:
        kept = [part for part in writer.parts if part.position not in (12, 36)]
        writer.commit(kept)
    result = embed(frame.repartition(5), run.folder, spark)
    assert result.n_embedded == 24
    assert [part.name for part in result.run.parts if part.position not in (12, 36)] == [part.name for part in kept]
    assert result.run.read() == whole.read()
    assert_array_equal(result.run.embeddings(), whole.embeddings())
    assert embed(frame, run.folder, spark).n_embedded == 0
    changed = spark.createDataFrame(messy.assign(title=messy.title + "."))
    with pytest.raises(InputError, match=r"contains papers of another input, Spark DataFrame of 60 rows .* --append"):
        embed(changed, run.folder, spark)


def test_a_table_with_nested_columns_and_other_types(tmp_path: Path, spark: Any) -> None:
    rows = SAMPLE[:20]
    frame = spark.createDataFrame(rows).select(
        F.struct("paper_id", "abstract").alias("paper"),
        "title",
        F.split("categories", " ").alias("categories"),
        F.lit(2.5).alias("score"),
        F.to_timestamp(F.lit("2024-02-03 04:05:06")).alias("seen"),
        F.create_map(F.lit("a"), F.lit(1)).alias("counts"),
    )
    frame.write.saveAsTable("papers_of_a_test", path=str(tmp_path / "table"))
    named = {"id_column": "paper.paper_id", "abstract_column": "paper.abstract"}
    there = embed(spark.table("papers_of_a_test"), tmp_path / "there", spark, **named).run
    here = embed_papers(rows, tmp_path / "here", encoder=LetterEncoder()).run
    assert there.paper_ids == sorted(here.paper_ids)
    order = [here.row_of(paper_id) for paper_id in there.paper_ids]
    assert_array_equal(there.embeddings(), here.embeddings()[order])
    kept = there.read(["score", "seen", "counts", "categories"]).to_pylist()[0]
    assert (kept["score"], kept["seen"].year, kept["counts"]) == (2.5, 2024, [("a", 1)])
    assert kept["categories"] == here.read(["categories"])["categories"][order[0]].as_py()


def test_int8_is_checked_on_papers_of_the_frame(tmp_path: Path, spark: Any) -> None:
    frame = spark.createDataFrame(SAMPLE[:80])
    run = embed_papers(frame, tmp_path / "run", executor=OnSpark(spark), precision="int8").run
    check = run.metadata["int8_check"]
    assert check["n_papers"] == 64
    assert check["paper_id"] in set(SAMPLE.paper_id[:80])
    assert check["smallest_cosine"] > 0.99


def test_new_and_changed_papers_are_appended(tmp_path: Path, spark: Any) -> None:
    embed(spark.createDataFrame(SAMPLE[:40]), tmp_path / "run", spark)
    newer = SAMPLE[10:60].copy()
    newer.loc[20, "abstract"] = "This abstract was written anew."
    frame = spark.createDataFrame(newer)
    result = embed(frame, tmp_path / "run", spark, part_size=None, append=True, prune=True)
    assert result.changes == {"n_new": 20, "n_changed": 1, "n_unchanged": 29, "n_older": 0, "n_pruned": 10}
    assert result.n_embedded == 21
    here = embed_papers(newer, tmp_path / "here", encoder=LetterEncoder()).run
    assert sorted(result.run.paper_ids) == sorted(here.paper_ids)
    order = [here.row_of(paper_id) for paper_id in result.run.paper_ids]
    assert_array_equal(result.run.embeddings(), here.embeddings()[order])
    again = embed(frame, tmp_path / "run", spark, part_size=None, append=True)
    assert (again.n_embedded, again.changes["n_unchanged"]) == (0, 50)
    assert verify_run(again.run)["sound"]


def test_rows_that_change_from_reading_to_reading_are_refused(tmp_path: Path, spark: Any) -> None:
    def lose_some(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield batch.filter(pa.array(np.random.default_rng().random(len(batch)) < 0.5))

    rows = spark.createDataFrame(SAMPLE)
    frame = rows.mapInArrow(lose_some, rows.schema)
    with pytest.raises(InputError, match=r"it returns different rows each time it is read.*[Ww]rite it to a table"):
        embed(frame, tmp_path / "run", spark)


def test_what_does_not_go_together_is_refused_before_any_job(tmp_path: Path, spark: Any) -> None:
    frame = spark.createDataFrame(SAMPLE[:5])
    with pytest.raises(InputError, match=r"a Spark DataFrame: give executor=OnSpark\(spark\)"):
        embed_papers(frame, tmp_path / "run")
    with pytest.raises(InputError, match=r"a Spark DataFrame has no order: embed df.orderBy\('id'\).limit\(n\)"):
        embed(frame, tmp_path / "run", spark, limit=3)
    with pytest.raises(InputError, match="delimiter applies to files, not to a Spark DataFrame"):
        embed(frame, tmp_path / "run", spark, delimiter=";")
    with pytest.raises(InputError, match=r"the DataFrame is a stream: .*ArxivEmbedder"):
        embed(spark.readStream.format("rate").load(), tmp_path / "run", spark)
    assert not (tmp_path / "run").exists()


def test_a_run_in_a_store_with_the_settings_of_spark_alone(
    object_store_address: str,
    no_store: pytest.MonkeyPatch,
    tmp_path: Path,
    spark: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = {"access.key": ACCESS, "secret.key": SECRET, "endpoint": object_store_address}
    for name, value in settings.items():
        spark.conf.set(f"spark.hadoop.fs.s3a.{name}", value)
    here = embed_papers(SAMPLE[:40], tmp_path / "here", encoder=LetterEncoder()).run
    run = embed(spark.createDataFrame(SAMPLE[:40]), f"s3a://{BUCKET}/spark/run", spark).run
    assert_same_vectors(open_run(f"s3a://{BUCKET}/spark/run"), here)
    assert verify_run(run)["problems"] == []
    assert len(list_folder(run.folder / "parts")) == len(run.parts) > 1
    written = b"".join(path.read_bytes() for path in (run.folder / METADATA_NAME, *map(run.part_path, run.parts)))
    assert not any(key.encode() in written for key in (ACCESS, SECRET))
    assert SECRET not in caplog.text + repr(run) + repr(run.folder) + str(vars(run))


# reports


def make_store(writer: RunWriter, attempt: str = "now") -> PartStore:
    return PartStore(str(writer.folder), writer.footer, {0: 0, 1: 2}, attempt)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    description = {"model": "letters", "embedding_dim": 2, "fingerprint": {"model": "letters"}}
    with RunWriter(tmp_path / "run", description | {"inputs": [{"n_accepted": 4}]}) as opened:
        yield opened


class Bar:
    n = 0

    def update(self, n: int) -> None:
        self.n += n


def two_papers(first: str) -> tuple[pa.Table, np.ndarray, dict[str, int]]:
    table = pa.table({"paper_id": [first, f"{first}b"], "text_sha256": ["0" * 64, "1" * 64]})
    return table, np.eye(2, dtype=np.float32), {"n_tokens": 3}


def test_a_part_that_two_tasks_made_is_committed_once(writer: RunWriter) -> None:
    bar = Bar()
    committer = PartCommitter(writer, "now", bar)
    for _ in range(2):
        make_store(writer).store(1, *two_papers("c"))
    assert committer.commit_new() == 1
    make_store(writer).store(1, *two_papers("c"))  # a slow copy of the task ends later
    make_store(writer).store(0, *two_papers("a"))
    assert committer.commit_new() == 1
    assert committer.commit_new() == 0
    run = open_run(writer.folder)
    assert (run.paper_ids, bar.n, run.metadata["complete"]) == (["a", "ab", "c", "cb"], 4, True)
    writer.remove_orphans()
    assert {path.name for path in (run.folder / "parts").iterdir()} == {part.name for part in run.parts}


def test_reports_of_an_earlier_call_and_half_written_ones_do_not_count(writer: RunWriter) -> None:
    make_store(writer, "before").store(0, *two_papers("a"))
    staged = write_part(writer.folder, two_papers("c")[0], two_papers("c")[1], writer.footer, 2)
    report = writer.folder / "parts" / name_report(staged.staged_name)
    whole = json.dumps({"attempt": "now", "staged": staged.to_json()})
    committer = PartCommitter(writer, "now", Bar())
    for content in ("", whole[:50]):
        report.write_text(content)
        assert committer.commit_new() == 0
    report.write_text(whole)
    assert committer.commit_new() == 1
    assert open_run(writer.folder).paper_ids == ["c", "cb"]


@pytest.mark.parametrize("name", ["../elsewhere.parquet", "part-000000002-00000000.parquet"])
def test_a_report_cannot_name_another_file(writer: RunWriter, name: str) -> None:
    staged = write_part(writer.folder, two_papers("c")[0], two_papers("c")[1], writer.footer, 2)
    content = {"attempt": "now", "staged": staged.to_json() | {"staged_name": name}}
    (writer.folder / "parts" / name_report(staged.staged_name)).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="staged_name"):
        PartCommitter(writer, "now", Bar()).commit_new()


# processes that die

DRIVER = """
import sys
import pandas as pd
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.spark.session import make_session
from tests.fakes.letters import SlowEncoder
from tests.fakes.letters_on_spark import LettersOnSpark

papers, out = sys.argv[1:]
spark = make_session("local[2]", jars="none", conf={"spark.driver.memory": "1g"})
embed_papers(spark.read.parquet(papers), out, encoder=SlowEncoder(0.5), executor=LettersOnSpark(spark), part_size=20)
"""


def test_an_executor_and_the_driver_are_killed(tmp_path: Path, spark: Any) -> None:
    rows = pd.concat([SAMPLE.assign(paper_id=f"{copy}-" + SAMPLE.paper_id) for copy in range(2)])
    rows = rows.assign(title=rows.paper_id)  # so that the letters of each paper are its own
    rows.to_parquet(tmp_path / "papers.parquet")
    out = tmp_path / "run"
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "papers.parquet"), str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT, start_new_session=True) as driver:
        wait_until(lambda: count_committed(out) > 0, driver)
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
    for child in children:
        child.wait(60)
    n_there = open_run(out).n_papers
    assert 0 < n_there < len(rows)
    committed = {part.name for part in open_run(out).parts}

    frame = spark.read.parquet(str(tmp_path / "papers.parquet")).repartition(7)
    executor = find_executors(psutil.Process())[0]
    wanted = n_there + 1

    def kill_one() -> None:
        wait_until(lambda: count_committed(out) >= wanted)
        executor.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    slow = SlowEncoder(0.5)
    result = embed_papers(frame, out, encoder=slow, executor=LettersOnSpark(spark))
    killer.join()
    run = result.run
    assert result.n_embedded == len(rows) - n_there
    assert committed <= {part.name for part in run.parts}
    assert run.paper_ids == sorted(rows.paper_id)
    texts = slow.spec.texts_of(run.read(["title", "abstract"]))
    assert_array_equal(run.embeddings(), LetterEncoder().encode(texts))
    assert verify_run(run)["sound"]
    assert {path.name for path in (out / "parts").iterdir()} == {part.name for part in run.parts}


def test_the_driver_reads_no_paper(tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the driver read a row")

    monkeypatch.setattr("arxiv_embeddings.papers.corpus.parse_row", refuse)
    run = embed(spark.createDataFrame(SAMPLE[:30]), tmp_path / "run", spark).run
    assert run.n_papers == 30
    monkeypatch.undo()
    assert count(read_papers(SAMPLE[:30]).report.rejected) == count(run.input["rejected"])


def test_many_papers_are_planned_by_a_sample(spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arxiv_embeddings.spark.frames.ALL_IDS", 1)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "1000")  # small ones take long
    ids = spark.range(20_000).selectExpr("concat('id', lpad(id, 6, '0')) as id", "'An abstract.' as abstract")
    plans = []
    for split in (ids, ids.repartition(5)):
        papers = FramePapers(split).scan()
        plans.append(papers.plan(1000))
        papers.release()
    assert plans[0] == plans[1]
    assert (len(plans[0].counts), sum(plans[0].counts)) == (20, 20_000)
    assert 600 < min(plans[0].counts) < max(plans[0].counts) < 1500


def test_a_command_whose_executors_read_the_papers(tmp_path: Path, spark: Any) -> None:
    "In the session that is there, which the command would stop when it ends."
    spark.createDataFrame(SAMPLE[:12]).write.parquet(str(tmp_path / "papers.parquet"))
    spark.read.parquet(str(tmp_path / "papers.parquet")).createOrReplaceTempView("papers")
    words = ["spark", "embed", "--quiet", "--json", "--master", TWO_EXECUTORS, "--out", str(tmp_path / "run")]
    with patch.object(spark, "stop"):
        made = CliRunner().invoke(app, [*words, "papers", "--read-as", "table"])
        assert made.exit_code == 0, made.output
        again = CliRunner().invoke(app, [*words, str(tmp_path / "papers.parquet"), "--read-as", "parquet"])
        assert json.loads(again.stdout)["n_embedded"] == 0
        missing = CliRunner().invoke(app, [*words, "no_such_table", "--read-as", "table"])
        other = CliRunner().invoke(app, [*words, "papers", "--read-as", "no_such_format"])
    run = open_run(tmp_path / "run")
    assert run.paper_ids == sorted(SAMPLE.paper_id[:12])
    assert run.input["files"] == []  # this process has read none
    for one, name in ((missing, "no_such_table"), (other, "no_such_format")):
        (line,) = one.stderr.splitlines()
        assert line.startswith("error: ")
        assert name in line
