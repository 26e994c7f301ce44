"""Java's classes that every session of Spark loads, in one file that Java maps: `python -m tests.fakes.spark_classes FILE`.

With `SPARK_SUBMIT_OPTS=-XX:SharedArchiveFile=FILE` a session takes a fifth less work until it answers. A Java of another
version or class path leaves the file aside.
"""

import os
import sys
import tempfile
from pathlib import Path

from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.spark.session import make_session


def archive_classes(
    file: Path,  # written whole, or not at all
) -> None:
    "Do what most sessions do, and let Java write the classes that it has loaded when it ends."
    partial = file.with_suffix(".partial")
    os.environ["SPARK_SUBMIT_OPTS"] = f"-XX:ArchiveClassesAtExit={partial}"
    session = make_session("local[2]")
    java = session.sparkContext._gateway.proc
    with tempfile.TemporaryDirectory() as folder:
        papers = session.read.csv(f"file://{sample_papers()}", header=True, multiLine=True, escape='"')
        papers.repartition(2).write.parquet(f"file://{folder}/papers")
        again = session.read.parquet(f"file://{folder}/papers")
        again.mapInArrow(lambda batches: batches, again.schema).groupBy("categories").count().collect()
    session.stop()
    java.stdin.close()  # Java ends with it
    java.wait()
    partial.replace(file)


if __name__ == "__main__":
    archive_classes(Path(sys.argv[1]))
