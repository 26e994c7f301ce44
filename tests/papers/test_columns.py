"""Columns are found by the names of real exports, the choice is said, and kept columns never clash with ours."""

import csv
import json
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.columns import (
    EXPORTS,
    N_LOOKED_AT,
    RESERVED_COLUMNS,
    find_columns,
    name_kept_columns,
)
from arxiv_embeddings.papers.corpus import open_papers, read_papers
from arxiv_embeddings.runs.embed import embed_papers
from tests.fakes.letters import LetterEncoder

# the headers of exports, shortened, and the columns that must be taken
HEADERS = {
    "Kaggle": (
        "id,submitter,authors,title,comments,journal-ref,doi,report-no,categories,license,abstract,versions,update_date",
        {"id": "id", "abstract": "abstract", "title": "title", "categories": "categories"},
    ),
    "BEIR": ("_id,title,text,metadata", {"id": "_id", "abstract": "text", "title": "title"}),
    "Semantic Scholar": (
        "paperId,externalIds,url,title,abstract,venue,year,fieldsOfStudy",
        {"id": "paperId", "abstract": "abstract", "title": "title", "categories": "fieldsOfStudy", "year": "year"},
    ),
    "OpenAlex": (
        "id,doi,title,display_name,publication_year,publication_date,abstract,primary_topic,topics",
        {
            **{"id": "id", "abstract": "abstract", "title": "title", "categories": "topics"},
            **{"primary_category": "primary_topic", "year": "publication_year", "date": "publication_date"},
        },
    ),
    "PubMed": (
        "PMID,Title,Authors,Journal/Book,Publication Year,Create Date,PMCID,DOI,Abstract",
        {"id": "PMID", "abstract": "Abstract", "title": "Title", "year": "Publication Year"},
    ),
    "Scopus": (
        "Authors,Author(s) ID,Title,Year,Source title,Cited by,DOI,Link,Abstract,Index Keywords,Source,EID",
        {"id": "EID", "abstract": "Abstract", "title": "Title", "year": "Year"},
    ),
    "Web of Science": (
        "PT,AU,TI,SO,DE,ID,AB,PY,DI,WC,SC,UT",
        {"id": "UT", "abstract": "AB", "title": "TI", "categories": "WC", "year": "PY"},
    ),
    "Web of Science, Excel": (
        "Publication Type,Authors,Article Title,Source Title,Abstract,Publication Year,DOI,WoS Categories,Research Areas,UT (Unique WOS ID)",
        {
            **{"id": "UT (Unique WOS ID)", "abstract": "Abstract", "title": "Article Title"},
            **{"categories": "WoS Categories", "year": "Publication Year"},
        },
    ),
    "IEEE": (
        "Document Title,Authors,Publication Title,Publication Year,Abstract,DOI,PDF Link,Author Keywords,Document Identifier",
        {"id": "DOI", "abstract": "Abstract", "title": "Document Title", "year": "Publication Year"},
    ),
    "Zotero": (
        "Key,Item Type,Publication Year,Author,Title,Publication Title,DOI,Url,Abstract Note,Date,Date Added",
        {"id": "Key", "abstract": "Abstract Note", "title": "Title", "year": "Publication Year", "date": "Date"},
    ),
    "DBLP": (
        "_id,title,authors,venue,year,keywords,fos,abstract",
        {"id": "_id", "abstract": "abstract", "title": "title", "categories": "fos", "year": "year"},
    ),
    "bioRxiv": (
        "doi,title,authors,date,version,type,license,category,abstract,published,server",
        {
            **{"id": "doi", "abstract": "abstract", "title": "title", "categories": "category"},
            **{"published": "published", "date": "date", "version": "version"},
        },
    ),
    "CORD-19": (
        "cord_uid,sha,source_x,title,doi,pmcid,pubmed_id,license,abstract,publish_time,authors,journal,arxiv_id,url",
        {"id": "cord_uid", "abstract": "abstract", "title": "title", "date": "publish_time"},
    ),
    "ACL": (
        "acl_id,abstract,full_text,corpus_paper_id,url,publisher,year,booktitle,title,doi",
        {"id": "acl_id", "abstract": "abstract", "title": "title", "year": "year"},
    ),
}
SPARSE = {"arxiv_id", "pmcid", "pubmed_id", "PMCID", "DOI", "doi", "ID"}  # empty in most papers of the exports


@pytest.mark.parametrize("source", HEADERS)
@pytest.mark.parametrize(
    "change", [str, str.upper, str.lower, lambda name: f" {name} ", lambda name: name.replace(" ", "_")]
)
def test_every_export_is_read_by_its_own_names(source: str, change, tmp_path: Path) -> None:
    header, expected = HEADERS[source]
    names = header.split(",")
    path = tmp_path / "papers.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([change(name) for name in names])
        for row in range(3):
            writer.writerow(["" if name in SPARSE - {*expected.values()} else f"{name} {row}" for name in names])
    papers = open_papers(path)
    assert papers.columns == {role: change(name) for role, name in expected.items()}
    assert papers.scan().table().num_rows == 3


def test_every_source_of_the_page_is_tried_here() -> None:
    sources = " ".join(EXPORTS)
    assert all(source.split(",")[0] in sources for source in HEADERS)
    assert len(EXPORTS) == 15


def test_the_fullest_column_wins_and_it_is_said(tmp_path: Path) -> None:
    rows = [{"cord_uid": f"u{n}", "abstract": "A.", "arxiv_id": "2003.00001" if n == 3 else ""} for n in range(4)]
    papers = read_papers(rows)
    assert papers.table()["paper_id"].to_pylist() == ["u0", "u1", "u2", "u3"]
    assert papers.column_notes[0] == (
        "id from cord_uid, which 4 of the first 4 rows have; arxiv_id has only 1. Name another one with --id-column"
    )
    assert papers.found.as_line() == "id from cord_uid, abstract from abstract; not used: arxiv_id"
    assert read_papers(rows, id_column="arxiv_id").table()["paper_id"].to_pylist() == ["2003.00001"]


def test_placeholders_do_not_fill_a_column() -> None:
    rows = [{"id": "1", "abstract": "[No abstract available]", "summary": "Moths."}, {"id": "2", "abstract": "NULL"}]
    assert open_papers(rows).columns["abstract"] == "summary"
    rows = [{"id": str(n), "title": float("nan"), "Title": "T", "text": "A."} for n in range(3)]
    assert open_papers(pd.DataFrame(rows)).columns["title"] == "Title"


def test_only_the_first_rows_are_looked_at(tmp_path: Path) -> None:
    rows = [{"id": str(n), "paper_id": "", "abstract": "A."} for n in range(N_LOOKED_AT)]
    rows += [{"id": "", "paper_id": f"p{n}", "abstract": "A."} for n in range(2 * N_LOOKED_AT)]
    (tmp_path / "papers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    papers = read_papers(tmp_path / "papers.jsonl")
    assert papers.columns["id"] == "id"
    assert f"{N_LOOKED_AT:,} of the first {N_LOOKED_AT:,} rows" in papers.column_notes[0]
    assert papers.report.rejected["missing id"]["count"] == 2 * N_LOOKED_AT


def test_equally_full_columns_are_taken_in_the_order_of_the_page() -> None:
    papers = open_papers([{"id": "7", "paper_id": "p7", "text": "T", "abstract": "A."}])
    assert papers.columns == {"id": "paper_id", "abstract": "abstract"}
    assert papers.found.notes == ()
    assert papers.found.not_used == ("id", "text")


def test_a_role_that_nothing_fills_is_noted(tmp_path: Path) -> None:
    (tmp_path / "papers.csv").write_text("id,name,abstract,categories\nx1,Moths,A.,\nx2,Owls,B.,nan\n")
    assert read_papers(tmp_path / "papers.csv").column_notes == [
        "no paper has a title: no column has one of the usual names; name yours with --title-column",
        "no paper has categories: 'categories' is empty; name yours with --categories-column",
        "no paper has a year: no column has one of the usual names",
    ]


def test_columns_named_by_the_user(tmp_path: Path) -> None:
    path = tmp_path / "papers.csv"
    path.write_text(",Name, Body,id\n0,Moths,We study moths.,7\n")
    papers = read_papers(path, id_column="", abstract_column="body", title_column="NAME")
    (paper,) = papers.table().to_pylist()
    assert (paper["paper_id"], paper["title"], paper["abstract"]) == ("0", "Moths", "We study moths.")
    assert papers.found.as_line() == "id from '', abstract from ' Body', title from Name; not used: id"
    with pytest.raises(
        InputError, match=r"papers\.csv: no column 'doi' for id; the columns are: '', Name, ' Body', id"
    ):
        open_papers(path, id_column="doi")
    with pytest.raises(InputError, match=r"no abstract column: .* the columns are: '', Name, ' Body', id\. Set yours"):
        open_papers(path)


def test_ten_thousand_columns_are_one_short_line() -> None:
    names = ["id", "abstract", *(f"column {n}" for n in range(10_000))]
    assert find_columns(names).as_line().endswith("column 11 and 9,988 more")
    with pytest.raises(InputError, match="and 9,970 more") as caught:
        find_columns(names[2:])
    assert len(str(caught.value)) < 700


def test_openalex_has_abstracts_as_positions_of_words(write_jsonl) -> None:
    words = {"We": [0, 3], "study": [1], "moths.": [2], "find": [4], "owls.": [5]}
    rows = [
        {"id": "https://openalex.org/W1", "abstract_inverted_index": words},
        {"id": "https://openalex.org/W2", "abstract_inverted_index": None},
    ]
    papers = read_papers(write_jsonl(*rows))
    assert papers.table()["abstract"].to_pylist() == ["We study moths. We find owls."]
    assert papers.report.rejected["no abstract"]["first_ids"] == ["https://openalex.org/W2"]


# Kept columns


def test_other_readers_find_our_columns_beside_those_of_the_input(tmp_path: Path) -> None:
    path = tmp_path / "papers.csv"
    path.write_text("EID,Body,TITLE,title,Year,DOI,doi,Text_SHA256, Abstract \n1,A.,,T,2019,x,y,z,old\n")
    run = embed_papers(path, tmp_path / "run", encoder=LetterEncoder(), abstract_column="Body").run
    parts = f"{tmp_path}/run/parts/*.parquet"
    assert duckdb.sql(f"SELECT Title, year, DOI, Abstract FROM '{parts}'").fetchall() == [("T", 2019, "x", "A.")]
    schema = pq.read_schema(next((run.folder / "parts").iterdir()))
    assert len({name.lower() for name in schema.names}) == len(schema.names)
    assert {"input_TITLE", "input_doi", "input_Text_SHA256", "input_Abstract"} < set(schema.names)
    (paper,) = run.read().to_pylist()
    assert [paper[name] for name in ("input_TITLE", "input_doi", "input_Text_SHA256", "input_Abstract")] == [
        "",
        "y",
        "z",
        "old",
    ]


NAMES = st.text(st.sampled_from("tiTLEle_ paernut"), max_size=6) | st.sampled_from(
    ["Title", "TITLE", "input_title", "INPUT_Title", "Embedding", "unnamed", "", " ", "Classes", "Year"]
)


@given(st.lists(NAMES, unique=True, max_size=12))
def test_kept_names_differ_without_case(names: list[str]) -> None:
    kept = name_kept_columns(pa.schema([(name, pa.string()) for name in names]), {})
    assert list(kept) == names
    given = [name.casefold() for name in (*kept.values(), *RESERVED_COLUMNS)]
    assert len(set(given)) == len(given)
    assert all(name and name == name.strip() for name in kept.values())


def test_dates_and_versions_are_used_and_kept() -> None:
    papers = read_papers([{"doi": "10.1/x", "abstract": "A.", "date": "2020-03-01", "version": "2", "published": "NA"}])
    (paper,) = papers.table().to_pylist()
    assert (paper["year"], paper["arxiv_version"]) == (2020, 2)
    assert (paper["date"], paper["version"], paper["published"]) == ("2020-03-01", "2", "NA")


# What a run knows about its columns


def test_columns_and_notes_are_in_the_metadata(tmp_path: Path) -> None:
    path = tmp_path / "papers.csv"
    path.write_text("EID,Title,Abstract,Categories,Link\n1,T,A.,['cs.LG',x\n2,T,[No abstract available],cs.LG,y\n")
    run = embed_papers(path, tmp_path / "run", encoder=LetterEncoder()).run
    assert run.input["columns"] == {"id": "EID", "abstract": "Abstract", "title": "Title", "categories": "Categories"}
    assert run.input["not_used"] == ["Link"]
    assert run.input["column_notes"] == [
        "no paper has categories: 'Categories' is empty; name yours with --categories-column",
        "no paper has a year: no column has one of the usual names",
    ]
    assert run.input["notes"] == {
        "accepted without categories that were not understood": {
            "count": 1,
            "first_ids": ["1"],
            "first_details": ["a broken list: ['cs.LG'"],
        }
    }
    assert run.input["rejected"]["no abstract"]["first_details"] == ["only '[No abstract available]'"]
