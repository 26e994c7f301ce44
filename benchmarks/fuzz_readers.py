"""Hostile inputs for the readers: any bytes end in papers whose counts add up, or in one line. Never in a traceback.

    python -m benchmarks.fuzz_readers --inputs 5000 --seed 1

Each input begins as a good file in one of the forms that are read, and is then damaged: bytes changed, cut, doubled or
put in from a list of tokens that mean something to some reader. The same seed makes the same inputs.
"""

import argparse
import bz2
import csv
import gzip
import io
import json
import lzma
import random
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import read_papers

SLOWEST = 20.0  # seconds for one input
TOKENS = [
    *(b'"', b'""', b'\\"', b"\\\\", b"\\", b"'", b",", b";", b"\t", b"|", b"\n", b"\r", b"\r\n", b"\x00", b"\xff\xfe"),
    *(b"\xef\xbb\xbf", b"\xe9", b"\xc3", b"\xed\xa0\x80", b"\\ud83d", b"\\u0000", b"[", b"]", b"{", b"}", b"[" * 300),
    *(b":", b"null", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"true", b'{"id":', b"id", b"abstract", b"v2", b"("),
    *(b"a" * 9000, b"\xf0\x9f\xa6\x8b", b"\x1f\x8b", b"PK\x03\x04", b"PAR1", b"\xe2\x80\xa8", b"\x0c", b"\x1a"),
]
FITTING = {"csv": [".csv", ".tsv", ".csv.gz", ".csv.bz2"], "json": [".json", ".jsonl", ".json.zst", ".jsonl.xz"]}
ENDINGS = [
    *(".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"),
    *(".csv.gz", ".json.zst", ".csv.bz2", ".jsonl.xz", ".zip"),
]
OPTIONS = [
    *(
        {},
        {},
        {},
        {"quote": "none"},
        {"quote": "backslash"},
        {"quote": '"'},
        {"delimiter": ";"},
        {"encoding": "cp1252"},
    ),
    *({"encoding": "utf-16"}, {"encoding": "utf-7"}, {"abstract_column": "abstract.text"}),
]


def make_rows(
    chance: random.Random,  # decides
) -> list[dict[str, Any]]:  # a few papers, good and odd
    "Make rows."
    words = ["moths", 'a "smart" kettle', 'G\\"odel', "two\nlines", "tab\there", "café", "", "a; b | c, d", "\\\\alpha"]
    return [
        {
            "id": chance.choice([f"2101.{number:05}", f"cs/99110{number:02}v2", f"id {number}", ""]),
            "title": chance.choice(words),
            "abstract": " ".join(chance.choices(words, k=chance.randrange(6))),
            "categories": chance.choice(["cs.LG stat.ML", "['cs.CV']", "", "cancer biology"]),
        }
        for number in range(chance.randrange(1, 12))
    ]


def write_rows(
    rows: list[dict[str, Any]],  # from `make_rows`
    chance: random.Random,  # decides on the form
) -> tuple[bytes, list[str]]:  # a good file in one of the forms, and the endings of names that fit
    "Write rows as CSV, JSON or Parquet."
    form = chance.choice(["csv", "csv", "spark", "plain", "lines", "array", "members", "documents", "parquet"])
    if form in ("csv", "spark", "plain"):
        text = io.StringIO()
        style = {"delimiter": chance.choice(",;\t|"), "lineterminator": chance.choice(["\n", "\r\n", "\r"])}
        if form == "spark":
            style |= {"doublequote": False, "escapechar": "\\"}
        if form == "plain":
            text.write(style["delimiter"].join(rows[0]) + "\n")
            for row in rows:
                text.write(style["delimiter"].join(value.replace("\n", " ") for value in row.values()) + "\n")
        else:
            writer = csv.DictWriter(text, rows[0], **style)
            writer.writeheader()
            writer.writerows(rows)
        return text.getvalue().encode(), FITTING["csv"]
    if form == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue(), [".parquet"]
    indent = chance.choice([None, 1])
    if form == "array":
        return json.dumps(rows, indent=indent).encode(), FITTING["json"]
    if form == "members":
        return json.dumps({row["id"]: row for row in rows}, indent=indent, ensure_ascii=False).encode(), FITTING["json"]
    lines = "\n".join(json.dumps(row, indent=1 if form == "documents" else None) for row in rows)
    return lines.encode(), FITTING["json"]


def damage(
    content: bytes,  # of a file
    chance: random.Random,  # decides
) -> bytes:  # with up to eight faults
    "Damage a file."
    for _ in range(chance.choice([0, 1, 1, 2, 3, 8])):
        place = chance.randrange(len(content) + 1)
        until = min(len(content), place + chance.choice([0, 1, 1, 9, 200]))
        put = chance.choice(
            [
                b"",
                bytes([chance.randrange(256)]),
                chance.choice(TOKENS),
                chance.choice(TOKENS),
                content[place:until] * 3,
            ]
        )
        content = content[:place] + put + content[until:]
    return content


def pack(
    content: bytes,  # of a file
    ending: str,  # of its name
    chance: random.Random,  # decides on the name within an archive
) -> bytes:  # compressed as the ending says
    "Compress a file."
    if ending == ".zip":
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"papers{chance.choice(['.csv', '.json', '.txt', '.parquet'])}", content)
        return sink.getvalue()
    packers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    packers[".zst"] = lambda content: pa.compress(content, "zstd", asbytes=True)
    return packers[Path(ending).suffix](content) if Path(ending).suffix in packers else content


def check_input(
    path: Path,  # of a file
    options: dict[str, str],  # of `read_papers`
) -> str:  # `papers`, `refused`, or the fault
    "Read an input, and check that its counts add up."
    try:
        papers = read_papers(path, **options)
        report, n_papers = papers.report, sum(len(batch) for batch in papers.batches(batch_size=3))
    except InputError as error:
        return "refused" if len(str(error).splitlines()) == 1 else f"not one line: {str(error)!r:.300}"
    except Exception:
        return traceback.format_exc(limit=-4)
    if n_papers != report.n_accepted or report.n_accepted + report.n_rejected != report.n_rows:
        return f"counts do not add up: {n_papers} papers, {report.as_line()}"
    return "papers"


def fuzz(
    n_inputs: int,  # files to try
    seed: int = 0,  # the same seed makes the same files
    keep: Path | None = None,  # folder for the files that show a fault; `None`: none are kept
) -> dict[str, Any]:  # `counts` by outcome, `slowest` in seconds, and `faults`
    "Read hostile inputs."
    counts, faults, slowest = Counter(), [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(n_inputs):
            chance = random.Random(f"{seed}-{number}")
            content, fitting = write_rows(make_rows(chance), chance)
            ending = chance.choice(fitting if chance.random() < 0.8 else ENDINGS)
            options = chance.choice(OPTIONS) if chance.random() < 0.3 else {}
            content = damage(content, chance)
            content = pack(content, ending, chance)
            path = Path(folder) / f"{number}{ending}"
            path.write_bytes(damage(content, chance) if chance.random() < 0.1 else content)
            started = time.monotonic()
            outcome = check_input(path, options)
            seconds = time.monotonic() - started
            slowest = max(slowest, seconds)
            outcome = f"took {seconds:.1f} s" if seconds > SLOWEST else outcome
            counts[outcome if outcome in ("papers", "refused") else "fault"] += 1
            if outcome not in ("papers", "refused"):
                faults.append({"input": path.name, "options": options, "fault": outcome})
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / path.name).write_bytes(path.read_bytes())
            path.unlink()
    return {"counts": dict(counts), "slowest": round(slowest, 2), "faults": faults}


def main() -> None:
    "Read as many inputs as asked for, and print what came of them."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that show a fault")
    arguments = parser.parse_args()
    found = fuzz(arguments.inputs, arguments.seed, arguments.keep)
    for fault in found["faults"]:
        print(f"{fault['input']} {fault['options']}\n{fault['fault']}")
    print(f"{arguments.inputs:,} inputs: {found['counts']}, the slowest took {found['slowest']} s")


if __name__ == "__main__":
    main()
