"""Letters instead of a model in the executors of Spark, so that all but the model is measured or tested."""

import secrets
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark import cloudpickle

from arxiv_embeddings.runs.embed import embed_part
from arxiv_embeddings.runs.prepare import SeenTexts, prepare_part
from arxiv_embeddings.spark.executors import REPORT_SCHEMA, read_payloads, report, store_part
from arxiv_embeddings.spark.frame_parts import FrameExecutor, embed_rows
from tests.fakes import letters

cloudpickle.register_pickle_by_value(letters)  # executors have the package, but not its tests


@dataclass(frozen=True)
class LetterParts:
    "Does in an executor what `PartEncoder` does."

    encoder: letters.LetterEncoder
    folder: Any
    footer: dict[str, Any]

    def embed_papers(self, papers: pa.RecordBatch) -> tuple[pa.Table, np.ndarray, dict[str, Any]]:
        part = prepare_part(papers, self.encoder.spec, self.encoder.tokenize, SeenTexts())
        return part.papers, *embed_part(part, self.encoder, lambda rows: rows)

    def embed(self, rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for payload in read_payloads(rows):
            papers, vectors, counts = self.embed_papers(payload.batch)
            yield report(store_part(self.folder, papers, vectors, self.footer, payload.position, counts))


class LettersOnSpark(FrameExecutor):
    "Makes letters of papers in executors."

    def __init__(self, spark: Any):
        self.spark = spark

    def make_part_encoder(self, encoder: letters.LetterEncoder, writer: Any) -> LetterParts:
        return LetterParts(encoder, writer.folder, writer.footer)

    def make_frame_parts(self, rows: Any, reader: Any, store: Any, encoder: letters.LetterEncoder, writer: Any) -> Any:
        return embed_rows(rows, reader, store, self.make_part_encoder(encoder, writer).embed_papers)

    def make_parts(self, payloads: Any, encoder: letters.LetterEncoder, writer: Any) -> Any:
        return payloads.mapInArrow(self.make_part_encoder(encoder, writer).embed, REPORT_SCHEMA)


class TimedEncoder(letters.LetterEncoder):
    "Takes another time for each part, and keeps when it worked."

    def __init__(self, folder: str, seconds: list[float]):
        super().__init__()
        self.folder, self.seconds_of_parts = Path(folder), seconds

    def run(self, tokenized: Any, on_batch: Any = None) -> np.ndarray:
        began, vectors = time.time(), super().run(tokenized)
        time.sleep(self.seconds_of_parts[zlib.crc32(vectors.tobytes()) % len(self.seconds_of_parts)])
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / secrets.token_hex(8)).write_text(f"{began} {time.time()}")
        return vectors

    def read_spans(self) -> list[tuple[float, ...]]:
        "When parts began and ended, seconds since 1970."
        return [tuple(map(float, one.read_text().split())) for one in self.folder.iterdir()]


cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["LetterParts"]))
