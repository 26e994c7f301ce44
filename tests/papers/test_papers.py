"""Reading papers: every form of the same papers reads alike, every bad row is counted, every bad file is one sentence."""

import csv
import gzip
import hashlib
import json
import re
from decimal import Decimal
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import open_papers, read_papers, sample_papers
from arxiv_embeddings.papers.ids import MISSING_WORDS
from arxiv_embeddings.papers.parsing import WITHOUT_CATEGORIES, WITHOUT_TITLE, WITHOUT_VALUE
from arxiv_embeddings.papers.rows import (
    DUPLICATE_ID,
    MALFORMED,
    MISSING_ID,
    NO_ABSTRACT,
    NOT_TEXT,
    NUMERIC_ID,
    OLDER_VERSION,
    UNDECODABLE,
    collapse_white_space,
    is_placeholder,
)

HEADER = "id,title,abstract,categories\n"


def write_csv(path: Path, *lines: str) -> Path:
    path.write_bytes((HEADER + "".join(line + "\n" for line in lines)).encode())
    return path


def rejects(papers) -> dict[str, int]:
    return {reason: entry["count"] for reason, entry in papers.report.rejected.items()}


# The same papers in every form


@pytest.mark.parametrize("form", ["csv.gz", "tsv", "jsonl", "jsonl.gz", "parquet", "folder", "memory"])
def test_every_form_gives_the_same_papers(form: str, tmp_path: Path) -> None:
    expected = read_papers(sample_papers()).table()
    with sample_papers().open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path = tmp_path / f"papers.{form}"
    if form == "csv.gz":
        path.write_bytes(gzip.compress(sample_papers().read_bytes()))
    elif form == "tsv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0], delimiter="\t")
            writer.writeheader()
            writer.writerows(rows)
    elif form.startswith("jsonl"):
        path.write_bytes(gzip.compress(lines) if form.endswith("gz") else lines)
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)
    elif form == "folder":
        path = tmp_path / "clean"
        (path / "year=1").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows[:60]), path / "part-00000.parquet")
        pq.write_table(pa.Table.from_pylist(rows[60:]), path / "year=1" / "part-00001.parquet")
        (path / "_SUCCESS").touch()
        (path / "_temporary.parquet").write_text("what Spark leaves behind")
    else:
        path = "memory://corpus/papers.jsonl"
        with fsspec.open(path, "wb") as stream:
            stream.write(lines)
    assert read_papers(path).table() == expected


def test_a_byte_order_mark_belongs_to_no_paper(tmp_path: Path) -> None:
    for name, content in (("a.csv", b"\n\nid,abstract\n1,A.\n"), ("a.jsonl", b'{"id": "1", "abstract": "A."}\n')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
        assert read_papers(tmp_path / name).table()["paper_id"].to_pylist() == ["1"]


def test_kaggle_snapshot(write_jsonl) -> None:
    row = {
        "id": "0704.0090",
        "title": "A title\n  broken in two",
        "abstract": "  An abstract\nof two lines.\n",
        "categories": "math.NT hep-th",
        "authors": "A. Placeholder",
        "versions": [{"version": "v1", "created": "Sun, 1 Apr 2007"}, {"version": "v2", "created": "Mon, 2 Apr 2007"}],
        "authors_parsed": [["Placeholder", "A.", ""]],
        "update_date": "2009-11-13",
    }
    papers = read_papers(write_jsonl(row))
    (paper,) = papers.table().to_pylist()
    assert paper["paper_id"] == "0704.0090"
    assert (paper["title"], paper["abstract"]) == ("A title broken in two", "An abstract of two lines.")
    assert (paper["categories"], paper["primary_category"]) == (["math.NT", "hep-th"], "math.NT")
    assert (paper["year"], paper["arxiv_version"], paper["update_date"]) == (2007, 2, "2009-11-13")
    assert json.loads(paper["authors_parsed"]) == row["authors_parsed"]
    assert papers.report.n_white_space_collapsed == 1


def test_keys_that_come_late_are_columns_too(write_jsonl) -> None:
    papers = read_papers(
        write_jsonl({"id": "1", "abstract": "A."}, {"id": "2", "abstract": "B.", "title": "T", "n": 3})
    )
    assert papers.table()["title"].to_pylist() == [None, "T"]
    assert papers.table()["n"].to_pylist() == [None, "3"]


def test_types_of_other_columns_stay_in_parquet(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array(["1"]).dictionary_encode(),
            "abstract": pa.array(["A."], pa.large_string()),
            "score": pa.array([0.5], pa.float32()),
            "authors": pa.array([["A", "B"]]),
            "embedding": pa.array([[1.0, 2.0]]),
        }
    )
    pq.write_table(table, tmp_path / "papers.parquet")
    read = read_papers(tmp_path / "papers.parquet").table()
    assert read.schema.field("score").type == pa.float32()
    assert read["authors"].to_pylist() == [["A", "B"]]
    assert read["input_embedding"].to_pylist() == [[1.0, 2.0]]


def test_columns_of_any_type_do_not_stand_in_the_way(tmp_path: Path) -> None:
    tags = pa.ListArray.from_arrays(
        [0, 1, 2], pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xe9"]).buffers())
    )
    table = pa.table(
        {
            "id": pa.array(["1", "2"], pa.string_view()),
            "abstract": ["A.", "B."],
            "pdf": pa.array([b"\xff\xfe", b"%PDF"], pa.binary()),
            "categories": pa.array([["cs.CL"], None]),
            "embedding": ["a", "b"],
            "input_embedding": ["c", "d"],
            "tags": tags,
        }
    )
    pq.write_table(table.drop_columns("tags"), tmp_path / "papers.parquet")
    read = read_papers(tmp_path / "papers.parquet").table()
    assert read["pdf"].to_pylist() == [b"\xff\xfe", b"%PDF"]
    assert (read["input_embedding"].to_pylist(), read["input_input_embedding"].to_pylist()) == (["c", "d"], ["a", "b"])
    pq.write_table(table, tmp_path / "tags.parquet")
    papers = read_papers(tmp_path / "tags.parquet")
    assert papers.table().select(["paper_id", "tags"]).to_pylist() == [
        {"paper_id": "1", "tags": ["ok"]},
        {"paper_id": "2", "tags": None},  # a list with bytes that are not UTF-8
    ]
    assert papers.report.notes == {
        WITHOUT_VALUE: {"count": 1, "first_ids": ["2"], "first_details": ["tags is not UTF-8"]}
    }


def test_parquet_files_may_order_their_columns_differently(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "abstract": ["A."]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"abstract": pa.array(["B."], pa.large_string()), "id": ["2"]}), tmp_path / "b.parquet")
    assert read_papers(tmp_path).table()["abstract"].to_pylist() == ["A.", "B."]


def test_odd_values_cost_their_row_and_no_more(write_jsonl) -> None:
    good = {"id": "1", "abstract": "A.", "year": "2017.0", "versions": [{"version": "v99999999999"}]}
    papers = read_papers(
        write_jsonl(
            good,
            {"id": "2", "abstract": "B.", "primary_category": ["cs.CL"]},
            {"id": "3", "abstract": "C.", "authors_parsed": [["half \ud83d"]]},
            {"id": "4", "abstract": "D.", "categories": ["cs\x00"]},
            {"id": "5", "abstract": "E.", "half \ud83d": 1},
            {"id": "6", "abstract": "F.", "categories": "[{[]: 1}]"},
            {"id": "arXiv:", "abstract": "G."},
        )
    )
    first, *others = papers.table().to_pylist()
    assert (first["paper_id"], first["year"], first["arxiv_version"]) == ("1", 2017, None)
    assert [(paper["paper_id"], paper["primary_category"]) for paper in others] == [
        *(("2", "cs.CL"), ("3", None), ("4", None), ("6", None))
    ]
    assert others[1]["authors_parsed"] == r'[["half \ud83d"]]'
    assert rejects(papers) == {NOT_TEXT: 1, MISSING_ID: 1}
    assert papers.report.notes[WITHOUT_CATEGORIES]["first_ids"] == ["4", "6"]


def test_an_id_without_version_is_the_latest(tmp_path: Path) -> None:
    papers = read_papers(write_csv(tmp_path / "papers.csv", "1503.0100,T,bare,", "1503.0100v3,T,third,"))
    assert papers.table()["abstract"].to_pylist() == ["bare"]
    assert rejects(papers) == {OLDER_VERSION: 1}


def test_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "papers.csv"
    path.write_text("doi,name,body,subjects,id\n10.1/x,T,A.,cs.CL,7\n")
    papers = read_papers(
        path, id_column="doi", title_column="name", abstract_column="body", categories_column="subjects"
    )
    (paper,) = papers.table().to_pylist()
    assert (paper["paper_id"], paper["title"], paper["categories"], paper["id"]) == ("10.1/x", "T", ["cs.CL"], "7")


# Ids


def test_ids_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    papers = read_papers(write_csv(tmp_path / "papers.csv", "0704.0090,T,A.,", "1503.0100,T,B.,", "007,T,C.,"))
    assert papers.table()["paper_id"].to_pylist() == ["0704.0090", "1503.0100", "007"]


def test_latest_version_wins_wherever_it_stands(tmp_path: Path) -> None:
    lines = [
        "1503.0100v2,T,second  with spaces,",
        "1503.0200v1,T,other  one,",
        "1503.0100v1,T,first,",
        "arXiv:1503.0100v10,T,tenth,",
    ]
    papers = read_papers(write_csv(tmp_path / "papers.csv", *lines))
    assert papers.table()["abstract"].to_pylist() == ["other one", "tenth"]
    assert papers.report.n_white_space_collapsed == 1  # of the accepted only
    assert papers.table()["arxiv_version"].to_pylist() == [1, 10]
    assert papers.report.rejected == {OLDER_VERSION: {"count": 2, "first_ids": ["1503.0100", "1503.0100"]}}


def test_a_later_version_without_abstract_does_not_displace_an_earlier_one(tmp_path: Path) -> None:
    papers = read_papers(write_csv(tmp_path / "papers.csv", "1503.0100v1,T,first,", "1503.0100v2,T,,"))
    assert papers.table()["abstract"].to_pylist() == ["first"]
    assert rejects(papers) == {NO_ABSTRACT: 1}


# Rows that are no papers


def test_each_bad_row_is_counted_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "papers.csv"
    lines = [
        b"1,Good,An abstract.,cs.CL",
        b"",
        b",No id,An abstract.,",
        b"2,No abstract,  ,",
        b"3,Too many,An abstract.,cs.CL,more,and more",
        b"4,Too few",
        b"5,Latin-1,caf\xe9,",
        b"6,NUL,before\x00after,",
        b"1,The same id,Another abstract.,",
        b"8,Caf\xe9,An abstract.,['cs.CL'",
        b"9,Good too,Another abstract.,",
    ]
    path.write_bytes(HEADER.encode() + b"\n".join(lines) + b"\n")
    papers = read_papers(path)
    assert papers.table()["paper_id"].to_pylist() == ["1", "8", "9"]
    assert papers.table()["title"].to_pylist() == ["Good", None, "Good too"]
    expected = {MISSING_ID: 1, NO_ABSTRACT: 1, MALFORMED: 2, UNDECODABLE: 1, NOT_TEXT: 1, DUPLICATE_ID: 1}
    assert rejects(papers) == expected
    assert papers.report.n_rows == len(lines) - 1  # a blank line is no row
    assert papers.report.n_accepted + papers.report.n_rejected == papers.report.n_rows
    assert papers.report.rejected[MALFORMED] == {
        "count": 2,
        "first_ids": ["row 4", "row 5"],
        "first_details": ["6 fields instead of 4", "2 fields instead of 4"],
    }
    assert set(papers.report.notes) == {WITHOUT_CATEGORIES, WITHOUT_TITLE}
    assert papers.report.rejected[UNDECODABLE]["first_ids"] == ["5"]


def test_an_undecodable_row_is_named_by_the_id_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "papers.csv"
    path.write_bytes(b"id,doi,abstract\n1,10.1/x,caf\xe9\n2,10.1/\xe9,A.\n3,10.1/z,B.\n")
    papers = read_papers(path, id_column="doi")
    assert papers.report.rejected == {UNDECODABLE: {"count": 2, "first_ids": ["10.1/x", "row 2"]}}
    assert papers.table()["paper_id"].to_pylist() == ["10.1/z"]


def test_bad_rows_of_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "papers.jsonl"
    path.write_bytes(
        b'{"id": "1", "abstract": "Good."}\n\n'
        b'{"id": 704.009, "abstract": "A number for an id."}\n'
        b'{"id": "2", "abstract": "half a pair \\ud83d"}\n'
        b'{"id": "3", "abstract": "not UTF-8 \xff"}\n'
        b'{"id": "4", "abstract": \n'
        b'{"id": "5", "abstract": null}\n'
        b'{"id": "6", "abstract": ["a", "list"]}\n'
        b"[1, 2]\n"
    )
    papers = read_papers(path)
    assert rejects(papers) == {NUMERIC_ID: 1, NOT_TEXT: 1, UNDECODABLE: 1, MALFORMED: 3, NO_ABSTRACT: 1}
    assert papers.report.n_rows == 8
    assert papers.report.rejected[MALFORMED]["first_details"] == [
        "broken JSON: Expecting value",
        "abstract is a list",
        "a list instead of an object",
    ]


def test_text_of_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9"])
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"id": ["1", "2"], "abstract": text}), tmp_path / "papers.parquet")
    papers = read_papers(tmp_path / "papers.parquet")
    assert papers.table()["abstract"].to_pylist() == ["fine"]
    assert rejects(papers) == {UNDECODABLE: 1}


def test_many_rejects_are_counted_and_the_first_named(tmp_path: Path) -> None:
    papers = read_papers(write_csv(tmp_path / "papers.csv", "x,T,A.,", *[f"{i},T,," for i in range(30)]))
    assert papers.report.rejected[NO_ABSTRACT] == {"count": 30, "first_ids": ["0", "1", "2", "3", "4"]}


def test_an_abstract_of_200000_words(tmp_path: Path) -> None:
    papers = read_papers(write_csv(tmp_path / "papers.csv", f"1,T,{'word ' * 200_000},"))
    assert len(papers.table()["abstract"][0].as_py().split()) == 200_000


# Files that cannot be read


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("papers.csv", b"", "the file is empty"),
        ("papers.csv", HEADER.encode(), "no valid papers in"),
        ("papers.csv", b"id,title\n1,T\n", "no abstract column: .* the columns are: id, title"),
        ("papers.csv", b"title,abstract\nT,A\n", "no id column: .* the columns are: title, abstract"),
        ("papers.csv", b"id,abstract,abstract\n1,A,B\n", "two columns have the same name"),
        ("papers.csv", HEADER.encode("utf-16"), "not UTF-8"),
        ("papers.csv.gz", gzip.compress(b"id,abstract\n" + b"1,A\n" * 9999, mtime=0)[:-30], "truncated or damaged"),
        ("papers.csv.gz", b"no gzip at all", r"truncated or damaged \(Not a gzipped file"),
        ("papers.parquet", b"no parquet at all", "not a Parquet file, or is damaged"),
        ("papers.csv", b'id,abstract\n1,fine\n2,"he said "no"\n3,yes"\n', "the row that begins in line 3 are broken"),
        (
            "papers.csv",
            b'id,abstract\n1,fine\n2,"never closed\n3,fine\n4,fine\n',
            "the row that begins in line 3 are broken",
        ),
        ("papers.csv", b'"the\nid","id",abstract\n1,2,"broken" quotes"\n', "the row that begins in line 3 are broken"),
        ("papers.jsonl", b'[\n{"id": "1", "abstract": "A."},\n{"id": "2", "ab', "the JSON is invalid after 1 value"),
        ("papers.jsonl", b'"text"\n', "0 of 1 rows accepted; 1 rejected, malformed row: row 1"),
        ("papers.xlsx", b"", "unknown format"),
    ],
)
def test_a_bad_file_is_one_sentence(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_papers(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no Parquet, CSV or JSON file in folder"):
        read_papers(tmp_path)


@pytest.mark.parametrize("column", [pa.array([704.009]), pa.array([Decimal("704.009")])])
def test_ids_that_are_numbers_already(column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": column, "abstract": ["A."]}), tmp_path / "papers.parquet")
    with pytest.raises(InputError, match="write the file again with ids as text"):
        read_papers(tmp_path / "papers.parquet")


def test_parts_with_other_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "abstract": ["A."]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["2"], "summary": ["B."]}), tmp_path / "b.parquet")
    papers = read_papers(tmp_path)
    assert papers.table()["paper_id"].to_pylist() == ["1"]
    assert rejects(papers) == {NO_ABSTRACT: 1}


def test_an_unknown_scheme() -> None:
    with pytest.raises(InputError, match=r"cannot open nowhere://papers\.csv"):
        read_papers("nowhere://papers.csv")


@pytest.mark.parametrize(
    "change",
    ["1,T,A.,\n", "1,T,A.,\n2,T,B.,\n3,T,C.,\n4,T,D.,\n", "1,T,A.,\n2,T,B.\n3,T,C.,\n", "7,T,G.,\n8,T,H.,\n9,T,I.,\n"],
)
def test_a_file_that_changes_while_it_is_read(change: str, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "papers.csv", "1,T,A.,", "2,T,B.,", "3,T,C.,")
    papers = read_papers(path)
    path.write_text(HEADER + change)
    with pytest.raises(InputError, match="changed while it was being read"):
        list(papers.batches(batch_size=1))


def test_a_file_that_is_gone_after_it_was_scanned(tmp_path: Path) -> None:
    papers = read_papers(write_csv(tmp_path / "papers.csv", "1,T,A.,"))
    (tmp_path / "papers.csv").unlink()
    with pytest.raises(InputError, match=r"papers\.csv was removed"):
        papers.table()


@pytest.mark.parametrize("time_of_change", [None, "mtime", "modification_time", "LastModified", "updated"])
def test_file_systems_that_tell_little(time_of_change: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, changed = fsspec.filesystem("memory"), 1

    def info(path: str, **options: object) -> dict:
        told = {"name": path, "type": "file", "size": len(memory.cat(path))}
        return told | ({time_of_change: changed} if time_of_change else {})

    memory.pipe("/little/papers.csv", HEADER.encode() + b"1,T,A.,\n")
    monkeypatch.setattr(memory, "info", info)
    papers = read_papers("memory://little/papers.csv")
    assert papers.table()["abstract"].to_pylist() == ["A."]
    if time_of_change:  # another file of the same size
        changed = 2
    else:
        memory.pipe("/little/papers.csv", HEADER.encode() + b"1,T,AB.,\n")
    with pytest.raises(InputError, match="changed while it was being read"):
        papers.table()


def test_papers_that_were_not_scanned_say_so() -> None:
    papers = open_papers(sample_papers())
    for read in (papers.table, lambda: next(papers.batches())):
        with pytest.raises(InputError, match="is not scanned yet: call scan"):
            read()
    assert papers.scan().table() == SAMPLE.table()


# What a notebook shows


def cells(papers: object) -> dict[str, str]:
    "The shown table: heading -> value, both as HTML."
    return dict(re.findall(r"<tr><th[^>]*>(.*?)</th><td[^>]*>(.*?)</td></tr>", papers._repr_html_(), re.DOTALL))


def test_papers_show_path_columns_report_and_the_first_three(tmp_path: Path) -> None:
    long_title = "A title of many words " * 20 + "with an end"
    lines = ["0,None,,", f"1,{long_title},A.,cs.CL", "2,Two,B.,", "3,,C.,", "4,Four,D.,", "2,Two again,E.,"]
    papers = read_papers(write_csv(tmp_path / "papers.csv", *lines))
    assert repr(papers) == f"Papers('{tmp_path}/papers.csv', csv, 4 of 6 rows accepted)"
    assert cells(papers) == {
        "path": f"{tmp_path}/papers.csv",
        "format": "csv",
        "columns": "id, abstract, title, categories",
        "rows": "4 of 6 rows accepted",
        "rejected, duplicate id": "1: 2",
        "rejected, no abstract": "1: 0",
        "note": "no paper has a year: no column has one of the usual names",
        "paper 1": f"1 {long_title}",
        "paper 2": "2 Two",
        "paper 3": "3 ",
    }
    papers.keep(np.array([False, True, False, True]))
    assert repr(papers).endswith("4 of 6 rows accepted, 2 of them left out)")
    assert [value for name, value in cells(papers).items() if name.startswith("paper ")] == ["2 Two", "4 Four"]


def test_showing_papers_starts_no_scan(tmp_path: Path) -> None:
    papers = open_papers(write_csv(tmp_path / "papers.csv", "1,T,A.,"))
    (tmp_path / "papers.csv").unlink()  # so that any reading would fail
    assert repr(papers) == f"Papers('{tmp_path}/papers.csv', csv, not scanned yet: call scan())"
    assert list(cells(papers)) == ["path", "format", "columns", "rows"]
    assert cells(papers)["rows"] == "not scanned yet: call scan()"
    assert (len(papers), papers.report.n_rows) == (0, 0)


def test_papers_whose_file_is_gone_can_still_be_shown(tmp_path: Path) -> None:
    papers = read_papers(write_csv(tmp_path / "papers.csv", "1,T,A.,"))
    (tmp_path / "papers.csv").unlink()
    assert cells(papers)["rows"] == "1 of 1 rows accepted"
    assert "papers.csv was removed" in cells(papers)["papers cannot be shown"]
    assert "paper 1" not in cells(papers)


def test_nothing_from_the_input_is_shown_as_html(tmp_path: Path) -> None:
    attack, escaped = "<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"
    path = tmp_path / f"{attack}.csv"
    path.write_text(f"{attack}id,{attack},summary,{attack}kept\n{attack}1,{attack}title,A.,k\n{attack}2,T,,k\n")
    papers = read_papers(path, id_column=f"{attack}id", title_column=attack)
    assert "<img" not in papers._repr_html_()
    assert cells(papers) == {
        "path": f"{tmp_path}/{escaped}.csv",
        "format": "csv",
        "columns": f"id = {escaped}id, abstract = summary, title = {escaped}",
        "other columns": f"{escaped}kept",
        "rows": "1 of 2 rows accepted",
        "rejected, no abstract": f"1: {escaped}2",
        "note 1": "no paper has categories: no column has one of the usual names; name yours with --categories-column",
        "note 2": "no paper has a year: no column has one of the usual names",
        "paper 1": f"{escaped}1 {escaped}title",
    }
    assert cells(papers.report) == {"accepted": "1 of 2 rows", "rejected, no abstract": f"1: {escaped}2"}
    path.unlink()
    assert "<img" not in papers._repr_html_()  # nor from the message that the file was removed
    assert escaped in cells(papers)["papers cannot be shown"]


# Properties

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(str.strip)


TITLES = WORDS.filter(lambda text: text.strip().lower() not in MISSING_WORDS)
ABSTRACTS = WORDS.filter(lambda text: not is_placeholder(collapse_white_space(text)))


@given(st.lists(st.tuples(TITLES, ABSTRACTS), min_size=1, max_size=8))
def test_any_text_survives_a_csv(texts: list[tuple[str, str]]) -> None:
    with fsspec.open("memory://property/papers.csv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "title", "abstract"])
        writer.writerows([str(row), *pair] for row, pair in enumerate(texts))
    papers = read_papers("memory://property/papers.csv").table()
    assert papers["paper_id"].to_pylist() == [str(row) for row in range(len(texts))]
    assert papers["title"].to_pylist() == [collapse_white_space(title) for title, _ in texts]
    assert papers["abstract"].to_pylist() == [collapse_white_space(abstract) for _, abstract in texts]


@given(st.text())
def test_white_space_is_all_that_collapsing_changes(text: str) -> None:
    collapsed = collapse_white_space(text)
    assert re.sub(r"\s", "", collapsed) == re.sub(r"\s", "", text)
    assert collapsed == collapsed.strip()
    assert not re.search(r"\s\s", collapsed)


@given(st.integers(1, 200), st.integers(0, 150), st.none() | st.integers(1, 150))
def test_batches_are_slices(batch_size: int, start: int, limit: int | None) -> None:
    papers = SAMPLE
    ids = [paper_id for batch in papers.batches(batch_size, start, limit) for paper_id in batch["paper_id"].to_pylist()]
    assert ids == SAMPLE_IDS[start:limit]


SAMPLE = read_papers(sample_papers())
SAMPLE_IDS = SAMPLE.table()["paper_id"].to_pylist()


# Real files, which are not part of the repository


@pytest.mark.parametrize(
    ("name", "n_papers", "digest", "rejected"),
    [
        ("arxiv_cs_10k.csv", 10_000, "643dce948ec62cca", {}),
        ("arxiv_120k.parquet", 119_999, "60ea23ca0777582f", {NO_ABSTRACT: 1}),  # math/9505201: No abstract available.
    ],
)
def test_every_field_of_real_papers_stays(
    name: str, n_papers: int, digest: str, rejected: dict, real_data: Path
) -> None:
    papers, sha256 = read_papers(real_data / name), hashlib.sha256()
    assert (len(papers), rejects(papers), papers.report.notes) == (n_papers, rejected, {})
    for batch in papers.batches(4096):
        for paper in batch.to_pylist():
            sha256.update(json.dumps([paper[name] for name in sorted(paper)], default=str).encode())
    assert sha256.hexdigest().startswith(digest)
