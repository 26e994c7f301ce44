"""Java's classes that Spark's processes load, in one file that Java maps: `python -m tests.fakes.spark_classes FILE`.

With `JDK_JAVA_OPTIONS=-XX:SharedArchiveFile=FILE` drivers, executors, masters and workers, which have one class path,
do less until they answer. A Java of another version or class path leaves the file aside.
"""

import os
import sys
import tempfile
from pathlib import Path

from pyspark.sql import SparkSession

from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.spark.session import collect_settings, make_session

# what only the processes of executors load
EXECUTOR_CLASSES = ["org.apache.spark.executor.CoarseGrainedExecutorBackend"]


def archive_classes(
    file: Path,  # written whole, or not at all
) -> None:
    "Do what most sessions do, and let Java write the classes that it has loaded when it ends."
    partial = file.with_suffix(".partial")
    os.environ.pop("JDK_JAVA_OPTIONS", None)
    os.environ["SPARK_SUBMIT_OPTS"] = f"-XX:ArchiveClassesAtExit={partial}"
    session = make_session("local[2]")
    java = session.sparkContext._gateway.proc
    with tempfile.TemporaryDirectory() as folder:
        papers = session.read.csv(f"file://{sample_papers()}", header=True, multiLine=True, escape='"')
        papers.repartition(2).write.parquet(f"file://{folder}/papers")
        again = session.read.parquet(f"file://{folder}/papers")
        again.mapInArrow(lambda batches: batches, again.schema).groupBy("categories").count().collect()
    session.stop()
    settings = {"spark.driver.memory": "1g", "spark.executor.memory": "512m", "spark.jars": "", "spark.files": ""}
    builder = SparkSession.builder  # once more in the same Java, with Spark's own master and worker in it
    for name, value in collect_settings("local-cluster[1,1,512]", "none", settings).items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.range(2).count()
    for name in EXECUTOR_CLASSES:
        session._jvm.java.lang.Class.forName(name)
    session.stop()
    java.stdin.close()  # Java ends with it
    java.wait()
    partial.replace(file)


if __name__ == "__main__":
    archive_classes(Path(sys.argv[1]))
