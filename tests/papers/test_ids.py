"""One paper has one id, the newest version is kept, and ids that were numbers are told from ids that look so."""

from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import LOOKS_DAMAGED, read_papers
from arxiv_embeddings.papers.ids import split_paper_id
from arxiv_embeddings.papers.rows import DAMAGED_ID, DUPLICATE_ID, MALFORMED, MISSING_ID, NUMERIC_ID, OLDER_VERSION

PREFIXES = [
    *(
        "",
        " ",
        "arXiv:",
        "arxiv: ",
        "oai:arXiv.org:",
        "doi:10.48550/arXiv.",
        "10.48550/ARXIV.",
        "https://doi.org/10.48550/arXiv.",
    ),
    *("http://arxiv.org/abs/", "https://export.arxiv.org/abs/", "arxiv.org/html/", "https://www.arxiv.org/e-print/"),
    *(
        "https://arxiv.org/src/",
        "https://arxiv.org/format/",
        "https://arxiv.org/ps/",
        "https://ar5iv.labs.arxiv.org/html/",
    ),
]


@given(st.integers(0, 9999), st.integers(0, 99999), st.none() | st.integers(1, 99))
def test_prefixes_and_versions_are_split_off(month: int, number: int, version: int | None) -> None:
    suffix = f"v{version}" if version else ""
    for bare in (
        f"{month:04d}.{number:05d}",
        f"hep-th/{month:04d}{number % 1000:03d}",
        "math.GT/0309136",
        "physics.bio-ph/0101001",
    ):
        for prefix in PREFIXES:
            assert split_paper_id(prefix + bare + suffix) == (bare, version), prefix
        assert split_paper_id(f"https://arxiv.org/pdf/{bare}{suffix}.pdf") == (bare, version)
        assert split_paper_id(f"arXiv:{bare}{suffix} [hep-th]") == (bare, version)
    assert split_paper_id(f"hep-th/{month:04d}.{number:05d}{suffix}") == (f"{month:04d}.{number:05d}", version)


@given(st.text())
def test_other_ids_stay_as_they_are(text: str) -> None:
    if (
        not any(part in text.lower() for part in ("arxiv", "10.1101", "10.64898"))
        and "/" not in text
        and "." not in text
    ):
        assert split_paper_id(text) == (text.strip(), None)


def test_several_spellings_are_one_paper(tmp_path: Path) -> None:
    path = tmp_path / "papers.csv"
    lines = [
        *("physics.bio-ph/0101001v1,First text.", "physics.bio-ph/0101001v2,Second text."),
        *("oai:arXiv.org:0704.0001,Owls.", "0704.0001,Owls.", "doi:10.48550/arXiv.0704.0001,Owls."),
        *("arXiv:hep-th/1601.07616v1,Wet.", "arXiv:hep-th/1601.07616v2,Dry."),
    ]
    path.write_text("id,abstract\n" + "\n".join(lines) + "\n")
    papers = read_papers(path)
    assert papers.table().select(["paper_id", "abstract", "arxiv_version", "year"]).to_pylist() == [
        {"paper_id": "physics.bio-ph/0101001", "abstract": "Second text.", "arxiv_version": 2, "year": 2001},
        {"paper_id": "0704.0001", "abstract": "Owls.", "arxiv_version": None, "year": 2007},
        {"paper_id": "1601.07616", "abstract": "Dry.", "arxiv_version": 2, "year": 2016},
    ]
    assert {reason: entry["count"] for reason, entry in papers.report.rejected.items()} == {
        OLDER_VERSION: 2,
        DUPLICATE_ID: 2,
    }


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("version", ["version", " Version"])
def test_the_newest_version_of_a_doi_is_kept(order: int, version: str, tmp_path: Path) -> None:
    rows = [("10.1101/2020.01.01.000001", number, f"Text {number}.") for number in (1, 2, 10)][::order]
    frame = pd.DataFrame(rows, columns=["doi", version, "abstract"])
    frame.to_csv(tmp_path / "papers.csv", index=False)
    for papers in (read_papers(tmp_path / "papers.csv"), read_papers(frame)):
        assert papers.table()["abstract"].to_pylist() == ["Text 10."]
        assert papers.table()["arxiv_version"].to_pylist() == [10]
        assert papers.report.rejected[OLDER_VERSION]["count"] == 2


def test_the_version_in_an_address_of_biorxiv_is_one() -> None:
    ids = [
        "https://www.biorxiv.org/content/10.1101/2020.01.01.000001v2.full",
        "10.1101/2020.01.01.000001",
        "10.1101/123456v1",
    ]
    assert [split_paper_id(one) for one in ids] == [
        *(("10.1101/2020.01.01.000001", 2), ("10.1101/2020.01.01.000001", None), ("10.1101/123456", 1))
    ]


# Types


@pytest.mark.parametrize(
    "column",
    [
        pa.array([30000001, 7]),
        pa.array([30000001, 7], pa.uint32()),
        pa.array([b"30000001", b"7"]),
        pa.array([Decimal(30000001), Decimal(7)]),
    ],
    ids=str,
)
def test_integers_and_bytes_become_text(column: pa.Array, tmp_path: Path) -> None:
    table = pa.table({"PMID": column, "Abstract": [b"Moths.", b"Owls."]})
    pq.write_table(table, tmp_path / "papers.parquet")
    for papers in (read_papers(table), read_papers(tmp_path / "papers.parquet")):
        assert papers.table().select(["paper_id", "abstract"]).to_pylist() == [
            *({"paper_id": "30000001", "abstract": "Moths."}, {"paper_id": "7", "abstract": "Owls."})
        ]


def test_integers_of_json_become_text_and_other_types_do_not(write_jsonl) -> None:
    values = [30000001, 30000002, 704.001, True, ["1"], None, "", "nan"]
    papers = read_papers(write_jsonl(*({"id": value, "abstract": "A."} for value in values)))
    assert papers.table()["paper_id"].to_pylist() == ["30000001", "30000002"]
    assert papers.report.rejected[NUMERIC_ID]["first_ids"] == ["704.001"]
    assert papers.report.rejected[MALFORMED] == {
        "count": 2,
        "first_ids": ["row 4", "row 5"],
        "first_details": ["id is true or false", "id is a list"],
    }
    assert papers.report.rejected[MISSING_ID]["count"] == 3


def test_floats_are_refused_as_a_whole(tmp_path: Path) -> None:
    for column in (pa.array([704.0002]), pa.array([30000001.0, None]), pa.array([Decimal("704.0002")])):
        with pytest.raises(
            InputError, match=r"ids are .* in column 'id' .* zeros at either end of an arXiv id are already lost"
        ):
            read_papers(pa.table({"id": column, "abstract": ["A."] * len(column)}))


# Ids that were numbers, in a CSV


def read_ids(tmp_path: Path, *ids: str):
    (tmp_path / "papers.csv").write_text("id,abstract\n" + "".join(f"{one},A.\n" for one in ids))
    return read_papers(tmp_path / "papers.csv")


def test_ids_that_lost_zeros_are_refused_beside_arxivs(tmp_path: Path) -> None:
    papers = read_ids(
        tmp_path, "704.0002", "704.001", "0704.0002", "33301234.0", "1503.01", "2.5e+07", "1503.0100", "704.0002"
    )
    assert papers.table()["paper_id"].to_pylist() == ["0704.0002", "1503.0100"]
    assert papers.report.rejected == {
        DAMAGED_ID: {"count": 6, "first_ids": ["704.0002", "704.001", "33301234.0", "1503.01", "2.5e+07"]}
    }
    assert papers.report.n_accepted + papers.report.n_rejected == papers.report.n_rows == 8


def test_ids_that_only_look_so_are_noted(tmp_path: Path) -> None:
    papers = read_ids(tmp_path, "2010.12", "2010.1", "912.45", "W-1", "30000001.0")
    assert papers.table()["paper_id"].to_pylist() == ["2010.12", "2010.1", "912.45", "W-1"]
    assert papers.report.rejected == {DAMAGED_ID: {"count": 1, "first_ids": ["30000001.0"]}}
    assert papers.report.notes == {LOOKS_DAMAGED: {"count": 3, "first_ids": ["2010.12", "2010.1", "912.45"]}}


def test_good_ids_are_not_taken_for_damaged(tmp_path: Path) -> None:
    ids = ["0704.0002", "1998.12", "12.5", "v1.0", "1e5", "10.1/x.0", "2013.5", "999.1234", "30000001", "cs/9911007"]
    assert read_ids(tmp_path, *ids).table()["paper_id"].to_pylist() == ids
