"""Files as people have them: each is read whole, or refused in one line that says what to do.

Every case is a file of a few lines, in the tables below: `READ` with the papers that it holds, `REFUSED` with the line.
"""

import gzip
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import read_papers
from arxiv_embeddings.papers.rows import MALFORMED
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.repair import open_input
from arxiv_embeddings.runs.store import open_run
from benchmarks.fuzz_readers import fuzz
from tests.fakes.letters import LetterEncoder

MOTHS = {"id": "1", "title": "Moths", "abstract": "We study moths, at night."}
KETTLES = {"id": "2", "title": '"Smart" kettles', "abstract": "A survey."}
BOTH = [MOTHS, KETTLES]
SPARK = rb"""id,title,abstract
1,Moths,"We study moths, at night."
2,"\"Smart\" kettles",A survey.
"""
SECTIONS = b'{"id": "1", "meta": {"title": "Moths"}, "abstract": [{"section": "A", "text": "We study"}, {"text": "moths, at night."}]}'
TEX = rb"""id,title,abstract
1,Moths,"We study \\moths, at \alpha \"night\"."
2,"G\"odel",plain \\ text
3,"ends \\","""


def columns(kind: str) -> str:
    "Papers as pandas writes them by default, column after column."
    return pd.DataFrame(BOTH).to_json(indent=1 if kind == "indented" else None)


# name of the file, its content, options, and the papers in it
READ = {
    "semicolons": ("a.csv", b'id;title;abstract\n1;Moths;We study moths, at night.\n2;"""Smart"" kettles";A survey.\n', {}, BOTH),
    "more commas than semicolons in the header": (
        "a.csv",
        b"id;title;abstract;note, or two, or three, or more\n1;Moths;We study moths, at night.;x\n3;T;A.;y\n",
        {},
        [MOTHS, {"id": "3", "title": "T", "abstract": "A."}],
    ),
    "tabs in .csv": ("a.csv", b'id\ttitle\tabstract\n1\tMoths\tWe study moths, at night.\n2\t"Smart" kettles\tA survey.\n', {}, BOTH),
    "bars": ("a.csv", b'id|title|abstract\n1|Moths|We study moths, at night.\n2|"""Smart"" kettles"|A survey.\n', {}, BOTH),
    "commas in .tsv": ("a.tsv", b'id,title,abstract\n1,Moths,"We study moths, at night."\n', {}, [MOTHS]),
    "stated delimiter": ("a.csv", b"id~title~abstract\n1~Moths~We study moths, at night.\n", {"delimiter": "~"}, [MOTHS]),
    "stated tab": ("a.csv", b"id\ttitle\tabstract\n1\tMoths\tWe study moths, at night.\n", {"delimiter": "tab"}, [MOTHS]),
    "stated quote": ("a.csv", b"id,title,abstract\n1,'Moths','We study moths, at night.'\n", {"quote": "'"}, [MOTHS]),
    "no quoting stated": (
        "a.csv",
        b'id;title;abstract\n1;Moths;We study moths, at night.\n2;"Smart" kettles;A survey.\n',
        {"quote": "none"},
        BOTH,
    ),
    "Spark's quotes": ("a.csv", SPARK, {}, BOTH),
    "Spark's quotes, stated": ("a.csv", SPARK, {"quote": "backslash"}, BOTH),
    "Spark's quotes after a megabyte": (
        "a.csv",
        SPARK.replace(b"\n2,", b"\n" + b"7,T,A.\n" * 200_000 + b"2,"),
        {},
        [MOTHS, {"id": "7", "title": "T", "abstract": "A."}, KETTLES],
    ),
    "Spark's quotes with tabs": (
        "a.csv",
        b'id\ttitle\tabstract\n1\tMoths\tWe study moths, at night.\n2\t"\\"Smart\\" kettles"\tA survey.\n',
        {},
        BOTH,
    ),
    "Spark's backslashes": (
        "a.csv",
        TEX + b"A \n",
        {},
        [
            {"id": "1", "title": "Moths", "abstract": 'We study \\moths, at \\alpha "night".'},
            {"id": "2", "title": 'G"odel', "abstract": "plain \\\\ text"},
            {"id": "3", "title": "ends \\", "abstract": "A"},
        ],
    ),
    "TeX in ordinary quotes": (
        "a.csv",
        b'id,title,abstract\n1,"a \\\\ b","G\\""odel, and ""more"""\n',
        {},
        [{"id": "1", "title": "a \\\\ b", "abstract": 'G\\"odel, and "more"'}],
    ),
    "tabs without quoting": (
        "a.tsv",
        b'id\ttitle\tabstract\n1\t"Smart kettles\tA survey.\n2\tMoths\tWe.\n3\tKnots\tWet "\n4\tOwls\tHear.\n',
        {},
        [
            {"id": "1", "title": '"Smart kettles', "abstract": "A survey."},
            {"id": "2", "title": "Moths", "abstract": "We."},
            {"id": "3", "title": "Knots", "abstract": 'Wet "'},
            {"id": "4", "title": "Owls", "abstract": "Hear."},
        ],
    ),
    "tabs with quoting": (
        "a.tsv",
        b'id\ttitle\tabstract\n1\tMoths\t"We study\tmoths,\nat night."\n2\t"""Smart"" kettles"\tA survey.\n',
        {},
        BOTH,
    ),
    "bare returns within fields": (
        "a.csv",
        b'id,title,abstract\n1,Moths,"We study\rmoths, at night."\n2,"""Smart""\rkettles",A\rsurvey.\n',
        {},
        BOTH,
    ),
    "bare returns, not quoted": ("a.csv", b"id,title,abstract\r\n2,T\ru,A\rsurvey.\r\n", {}, [{"id": "2", "title": "T u", "abstract": "A survey."}]),
    "returns at the ends of lines": ("a.csv", b'id,title,abstract\r1,Moths,"We study moths, at night."\r', {}, [MOTHS]),
    "cp1252": ("a.csv", "id,title,abstract\n1,Café,A.\n".encode("cp1252"), {"encoding": "cp1252"}, [{"id": "1", "title": "Café", "abstract": "A."}]),
    "UTF-16": ("a.csv", 'id,title,abstract\n1,Moths,"We study moths, at night."\n'.encode("utf-16"), {"encoding": "utf-16"}, [MOTHS]),
    "UTF-16 in JSON": ("a.jsonl", json.dumps(MOTHS).encode("utf-16"), {"encoding": "utf-16"}, [MOTHS]),
    "array": ("a.json", json.dumps(BOTH).encode(), {}, BOTH),
    "array over lines": ("a.json", json.dumps(BOTH, indent=2).encode(), {}, BOTH),
    "array named .jsonl": ("a.jsonl", json.dumps(BOTH).encode(), {}, BOTH),
    "members": ("a.json", json.dumps({"1": MOTHS, "2": KETTLES}).encode(), {}, BOTH),
    "members without id": (
        "a.json",
        json.dumps({one["id"]: {"title": one["title"], "abstract": one["abstract"]} for one in BOTH}, indent=1).encode(),
        {},
        BOTH,
    ),
    "one document": ("a.json", json.dumps(MOTHS, indent=1).encode(), {}, [MOTHS]),
    "documents": ("a.json", "\n".join(json.dumps(one, indent=1) for one in BOTH).encode(), {}, BOTH),
    "sections": ("a.jsonl", SECTIONS, {"abstract_column": "abstract.text", "title_column": "meta.title"}, [MOTHS]),
    "a dot in a name": ("a.jsonl", b'{"id": "1", "meta.title": "Moths", "abstract": "We study moths, at night."}', {"title_column": "meta.title"}, [MOTHS]),
}  # fmt: skip
# name of the file, its content, options, and the beginning of the line that refuses it, after the file's name
REFUSED = {
    "UTF-16": ("a.csv", "id,abstract\n1,A.\n".encode("utf-16"), {}, "this appears to be UTF-16 text, not UTF-8: use --encoding utf-16"),
    "UTF-16 without mark": ("a.jsonl", ('{"id": "1", "abstract": "A."}\n' * 30).encode("utf-16-le"), {}, "this appears to be UTF-16 text"),
    "cp1252 in the header": ("a.csv", "id,abstract,café\n".encode("cp1252"), {}, "the header is not UTF-8 text: .* give --encoding, such as cp1252"),
    "wrong encoding": ("a.csv", b"id,abstract\n1,A.\n", {"encoding": "utf-99"}, "unknown --encoding 'utf-99'"),
    "wrong delimiter": ("a.csv", b"id,abstract\n1,A.\n", {"delimiter": "ab"}, "--delimiter must be one character"),
    "delimiter of JSON": ("a.json", b"[]", {"delimiter": ";"}, "--delimiter, --quote and --encoding are not for jsonl"),
    "a quote that never ends": ("a.csv", b'id,abstract\n1,A.\n2,"B.\n3,C.\n', {}, "the quotes of the row that begins in line 3 are broken .*--quote none"),
    "a quote that ends late": (
        "a.csv",
        b'id,title,abstract\n1,A,"B.\n2,C,D.\n3,E,F"\n4,G,H.\n',
        {},
        "the quotes of the row that begins in line 2 do not seem to be closed",
    ),
    "a quote that ends too late": (
        "a.csv",
        b'id,title,abstract\n1,"A,B.\n2,C,D.\n3,E,F"\n4,G,H.\n',
        {},
        "the quotes of the row that begins in line 2 do not seem to be closed",
    ),
    "columns of pandas": ("a.json", columns("").encode(), {}, "this is one object of columns, as pandas writes it: write rows instead"),
    "columns of pandas, indented": ("a.json", columns("indented").encode(), {}, "this is one object of columns"),
    "a broken array": ("a.json", b'[{"id": "1"}, {"id": "2"', {}, "the JSON is invalid after 1 value"),
    "two arrays": ("a.json", b'[{"id": "1"}] [{"id": "2"}]', {}, "something follows after 1 paper"),
    "deep JSON": ("a.json", b"[" * 200_000, {}, "the JSON is invalid after 0 values"),
    "many columns": ("a.csv", ",".join(map(str, range(10_000))).encode(), {}, "10,000 columns: at most 2,000 can be read"),
    "many keys": ("a.jsonl", json.dumps(dict.fromkeys(map(str, range(10_000)))).encode(), {}, "has more than 2,000 keys until row 1"),
    "no such part": ("a.jsonl", SECTIONS, {"abstract_column": "text.abstract"}, "no column 'text.abstract' for abstract"),
}  # fmt: skip


def write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def refused(path: Path, **options: str) -> str:
    "The one line by which an input is refused."
    with pytest.raises(InputError) as caught:
        read_papers(path, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def papers_of(path: Path, **options: str) -> list[dict[str, str]]:
    table = read_papers(path, **options).table()
    return table.rename_columns({"paper_id": "id"}).select(["id", "title", "abstract"]).to_pylist()


@pytest.mark.parametrize("case", READ)
def test_it_is_read_whole(case: str, tmp_path: Path) -> None:
    name, content, options, expected = READ[case]
    assert papers_of(write(tmp_path, name, content), **options) == expected


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    name, content, options, message = REFUSED[case]
    assert re.search(message, refused(write(tmp_path, name, content), **options))


def test_rows_in_another_encoding_are_counted_and_named(tmp_path: Path) -> None:
    papers = read_papers(write(tmp_path, "a.csv", "id,abstract\n1,A.\n2,Café.\n".encode("cp1252")))
    assert (papers.report.n_accepted, papers.report.n_rejected) == (1, 1)
    assert papers.report.rejected["not UTF-8"]["first_ids"] == ["2"]


def test_a_row_of_many_lines_with_too_many_fields_costs_itself(tmp_path: Path) -> None:
    papers = read_papers(write(tmp_path, "a.csv", b'id,title,abstract\n1,T,"A\nB",C\n2,T,A.\n'))
    assert papers.table()["paper_id"].to_pylist() == ["2"]
    assert papers.report.rejected[MALFORMED]["first_details"] == ["4 fields instead of 3"]


# Archives


def zipped(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return path


def test_an_archive_with_one_file(tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, BOTH)).encode()
    assert papers_of(zipped(tmp_path / "archive.zip", arxiv__papers_json=lines, readme_txt=b"About.")) == BOTH
    assert papers_of(zipped(tmp_path / "a.csv.zip", a_csv=SPARK)) == BOTH


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a_csv": b"id,abstract\n", "b_csv": b""}, "must contain one data file, and this one contains a.csv, b.csv"),
        ({"a_txt": b""}, "and this one contains a.txt: unpack it first"),
        ({}, "and this one contains nothing"),
        ({"a_parquet": b""}, "contains a Parquet file, which cannot be read in an archive: unpack it first"),
    ],
)  # fmt: skip
def test_other_archives_are_refused(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    assert message in refused(zipped(tmp_path / "archive.zip", **files))


def test_a_damaged_archive(tmp_path: Path) -> None:
    path = zipped(tmp_path / "archive.zip", a_csv=b"id,abstract\n" + b"1,A.\n" * 9999)
    damaged = bytearray(path.read_bytes())
    damaged[60:70] = b"0123456789"
    assert "truncated or damaged" in refused(write(tmp_path, "damaged.zip", bytes(damaged)))
    assert "cannot open" in refused(write(tmp_path, "cut.zip", path.read_bytes()[:-30]))


@pytest.mark.parametrize("name", ["a.csv.zst", "a.csv.gz"])
def test_compressed_files(name: str, tmp_path: Path) -> None:
    packed = pa.compress(SPARK, "zstd" if name.endswith("zst") else "gzip", asbytes=True)
    assert papers_of(write(tmp_path, name, packed)) == BOTH
    assert "truncated or damaged" in refused(write(tmp_path, f"cut-{name}", packed[: len(packed) // 2]))


# Folders


def test_partitions_are_columns(tmp_path: Path) -> None:
    for number, place in enumerate(
        ("year=2014/category=cs.LG", "year=2015/category=cs.HC", "year=2015/category=q%20a")
    ):
        (tmp_path / place).mkdir(parents=True)
        pq.write_table(pa.table({"id": [str(number)], "abstract": ["A."]}), tmp_path / place / "part-0.parquet")
    table = read_papers(tmp_path).table()
    assert table["year"].to_pylist() == [2014, 2015, 2015]
    assert sorted(table["primary_category"].to_pylist()) == ["cs.HC", "cs.LG", "q a"]


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_folders_of_text(kind: str, tmp_path: Path) -> None:
    (tmp_path / "lang=en").mkdir()
    if kind == "csv":
        write(tmp_path, "part-0.csv", SPARK)
        write(tmp_path / "lang=en", "part-1.csv.gz", gzip.compress(b"id;abstract;note\n3;C.;n\n"))
        write(tmp_path, "part-2.csv", b"")  # Spark's part without rows
    else:
        write(tmp_path, "part-0.json", "\n".join(map(json.dumps, BOTH)).encode())
        write(tmp_path / "lang=en", "part-1.json", b'[{"id": "3", "abstract": "C.", "note": "n"}]')
        write(tmp_path, "part-2.json", b"")
    write(tmp_path, "_SUCCESS", b"")
    rows = sorted(read_papers(tmp_path).table().to_pylist(), key=lambda row: row["paper_id"])
    assert [row["abstract"] for row in rows] == [MOTHS["abstract"], KETTLES["abstract"], "C."]
    assert [(row["lang"], row["note"]) for row in rows] == [(None, None), (None, None), ("en", "n")]


def part(path: Path, **columns: list) -> Path:
    pq.write_table(pa.table({"id": [path.stem], "abstract": ["We study moths."]} | columns), path)
    return path


def test_parts_that_differ_are_joined(tmp_path: Path) -> None:
    part(tmp_path / "a.parquet", comments=pa.nulls(1), cited=[1], marks=pa.array([[]], pa.list_(pa.null())))
    part(tmp_path / "b.parquet", comments=["9 pages"], cited=[2.5], marks=[["x"]])
    part(tmp_path / "c.parquet")
    table = read_papers(tmp_path).table()
    assert table["comments"].to_pylist() == [None, "9 pages", None]
    assert table["cited"].to_pylist() == [1.0, 2.5, None]
    assert table["marks"].to_pylist() == [[], ["x"], None]


@pytest.mark.parametrize("other", [["many"], [b"7"], [[7]]])
def test_parts_that_cannot_be_joined_are_named(other: list, tmp_path: Path) -> None:
    part(tmp_path / "a.parquet", cited=[1])
    part(tmp_path / "b.parquet", cited=other)
    message = refused(tmp_path)
    assert message.startswith("column 'cited' is ")
    assert "b.parquet" in message
    assert "a.parquet" in message


def test_the_same_parts_one_after_the_other(tmp_path: Path) -> None:
    first = part(tmp_path / "a.parquet", comments=pa.nulls(1), cited=[1])
    later = part(tmp_path / "b.parquet", comments=["9 pages"], cited=[2.0])
    other = part(tmp_path / "c.parquet", cited=[2.5])
    embed_papers(first, tmp_path / "run", encoder=LetterEncoder())
    run = embed_papers(later, tmp_path / "run", encoder=LetterEncoder(), append=True).run
    assert sorted(run.paper_ids) == ["a", "b"]
    assert run.columns["cited"] == "int64"
    with pytest.raises(InputError, match="column 'cited' has a value that is no int64"):
        embed_papers(other, tmp_path / "run", encoder=LetterEncoder(), append=True)
    assert open_run(tmp_path / "run").n_papers == 2


def test_the_options_stay_with_the_run(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "id~abstract\n1~Café.\n".encode("cp1252"))
    run = embed_papers(path, tmp_path / "run", encoder=LetterEncoder(), delimiter="~", encoding="cp1252").run
    assert run.input["reading"] == {"delimiter": "~", "encoding": "cp1252"}
    assert open_input(run.input).table()["abstract"].to_pylist() == ["Café."]


# Places


@pytest.mark.parametrize("form", ["{uri}", "file:{path}", "file://localhost{path}", "{path}"])
@pytest.mark.parametrize("folder", ["with space", "a::b", "50%20", "per cent %"])
def test_places(form: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    path = write(tmp_path / folder, "p.csv", SPARK)
    assert papers_of(form.format(uri=path.as_uri(), path=path)) == BOTH


def test_a_run_at_a_uri(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", SPARK)
    run = embed_papers(path, f"file://{tmp_path}/a%20run", encoder=LetterEncoder()).run
    assert (run.folder, run.n_papers) == (tmp_path / "a run", 2)


# Dates


@pytest.mark.parametrize(
    "kind", [pa.timestamp("us"), pa.timestamp("s", "UTC"), pa.timestamp("ms", "Mars/Olympus"), pa.date32(), pa.date64()]
)
def test_dates_beyond_those_of_python(kind: pa.DataType, tmp_path: Path) -> None:
    days = pa.array([4_000_000, -1_000_000, 0, None], pa.int32()).cast(pa.date32())
    dates = (
        days.cast(pa.timestamp(getattr(kind, "unit", "s"))).cast(kind)
        if pa.types.is_timestamp(kind)
        else days.cast(kind)
    )
    table = pa.table({"id": list("abcd"), "abstract": ["A."] * 4, "published": dates, "updated": dates})
    pq.write_table(table, tmp_path / "p.parquet")
    expected = pq.read_table(tmp_path / "p.parquet")
    read = read_papers(tmp_path / "p.parquet").table()
    assert read["updated"].cast(expected.schema.field("updated").type).equals(expected["updated"])
    assert read["year"].to_pylist()[3] is None


# Bombs

BOMB = """
import resource, sys
from arxiv_embeddings.papers.corpus import read_papers
from arxiv_embeddings.files.errors import InputError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_papers(sys.argv[1])
except InputError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fill"),
    [
        *((name, "letters") for name in ("a.csv.gz", "a.jsonl.gz", "a.jsonl.zst", "a.zip")),
        *((name, fill) for name in ("a.csv.gz", "a.jsonl.gz") for fill in ("quoted lines", "array", "blank lines")),
    ],
)
def test_a_bomb_takes_little_memory(name: str, fill: str, tmp_path: Path) -> None:
    start, chunk = {
        "letters": (b'{"id": "1", "abstract": "', b"a" * (1 << 20)),
        "quoted lines": (b'id,abstract\n1,"', b"a\n" * (1 << 19)),
        "array": (b'[{"id": ["', b"a" * (1 << 20)),
        "blank lines": (b"", b"\n" * (1 << 20)),
    }[fill]
    content = start + chunk * 200
    if name == "a.zip":
        path = zipped(tmp_path / name, a_jsonl=content)
    else:
        packed = pa.compress(content, "zstd", asbytes=True) if name.endswith("zst") else gzip.compress(content, 1)
        path = write(tmp_path, name, packed)
    command = [sys.executable, "-c", BOMB, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    *message, n_megabytes = done.stdout.splitlines()
    assert len(message) == 1
    assert int(n_megabytes) < 300


def test_ids_categories_and_nesting_without_end(tmp_path: Path) -> None:
    rows = [
        {"id": "1" * 10_000, "abstract": "A.", "categories": "c" * 10_000},
        {"id": "2", "abstract": "", "categories": ["c" * 10_000] * 100},
        {"id": "3" * 10_000, "abstract": ""},
        {"id": "4", "abstract": "A.", "more": json.loads("[" * 400 + "]" * 400)},
    ]
    papers = read_papers(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)).encode()))
    assert papers.report.n_accepted + papers.report.n_rejected == len(rows)
    assert len(papers.report.as_line()) < 1000
    assert len(papers.table()) == papers.report.n_accepted


# Any bytes


def test_any_bytes_end_in_papers_or_in_one_line() -> None:
    assert fuzz(n_inputs=200, seed=16)["faults"] == []
