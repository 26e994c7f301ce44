"""Rejected rows are told before a model is loaded, with the field and the reason, and too many stop the work."""

import json
import logging
import resource
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import copy_sample, read_papers, sample_papers
from arxiv_embeddings.papers.rows import PLACEHOLDERS, is_placeholder
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.run_model import GivenEncoder
from tests.fakes.letters import LetterEncoder


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    "Of 200 rows, three are no papers, and two more are older versions."
    lines = [f"2101.{number:05d},Title {number},Abstract {number}." for number in range(195)]
    lines += [
        "2102.00001,T,",
        "2102.00002,T,[No abstract available]",
        "too short",
        "2101.00001v1,T,Old.",
        "2101.00002v1,T,Old.",
    ]
    path = tmp_path / "papers.csv"
    path.write_text("id,title,abstract\n" + "\n".join(lines) + "\n")
    return path


def watch_loading(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[list[str]]:
    "The lines that were logged before each load of a model."
    seen, load = [], GivenEncoder.load

    def load_and_note(self, *run):
        seen.append([record.getMessage() for record in caplog.records])
        return load(self, *run)

    monkeypatch.setattr(GivenEncoder, "load", load_and_note)
    caplog.set_level(logging.INFO, "arxiv_embeddings")
    return seen


def test_rows_are_reported_before_the_model_is_loaded(papers: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    seen = watch_loading(monkeypatch, caplog)
    expected = [
        "columns: id from id, abstract from abstract, title from title",
        "note: no paper has categories: no column has one of the usual names; name yours with --categories-column",
        "195 of 200 rows accepted",
        "1 rejected, malformed row: row 198 (1 fields instead of 3)",
        "2 rejected, no abstract: 2102.00001, 2102.00002 (only '[No abstract available]')",
        "2 rejected, older version: 2101.00001, 2101.00002",
    ]
    embed_papers(papers, tmp_path / "run", encoder=LetterEncoder(), limit=20)
    assert seen == [expected]
    caplog.clear()
    embed_papers(papers, tmp_path / "run", encoder=LetterEncoder())  # continues
    assert seen[1] == expected
    caplog.clear()
    papers.write_text(papers.read_text() + "2103.00001,New,Another abstract.\n")
    embed_papers(papers, tmp_path / "run", encoder=LetterEncoder(), append=True)
    assert seen[2][2] == "196 of 201 rows accepted"


@pytest.mark.parametrize("limit", ["1%", "1.4 %", "2", 2, 0])
def test_too_many_rejected_rows_stop_before_the_model(limit, papers: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    seen = watch_loading(monkeypatch, caplog)
    with pytest.raises(
        InputError, match=rf"3 of 200 rows of .* are rejected, more than --max-rejected {limit}: 195 of 200"
    ) as caught:
        embed_papers(papers, tmp_path / "run", encoder=LetterEncoder(), max_rejected=limit)
    assert "malformed row: row 198 (1 fields instead of 3)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert seen == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("limit", ["1.5%", "2%", "3", 3, "100%"])
def test_a_few_rejected_rows_are_allowed(limit, papers: Path, tmp_path: Path) -> None:
    run = embed_papers(papers, tmp_path / "run", encoder=LetterEncoder(), max_rejected=limit).run
    assert run.n_papers == 195


def test_an_append_stops_too_and_leaves_the_run_alone(papers: Path, tmp_path: Path) -> None:
    embed_papers(sample_papers(), tmp_path / "run", encoder=LetterEncoder(), max_rejected=0)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="more than --max-rejected 1%"):
        embed_papers(papers, tmp_path / "run", encoder=LetterEncoder(), append=True, max_rejected="1%")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("limit", ["few", "-1", "1.5", "%", ""])
def test_a_wrong_limit_is_told_before_anything_is_read(limit: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["embed", "nowhere.csv", "--out", str(tmp_path / "run"), "--max-rejected", limit])
    assert result.exit_code == 1
    assert (
        result.stderr == f"error: --max-rejected must be a number of rows or a percentage such as 1%, not {limit!r}\n"
    )


def test_the_command_prints_columns_first_and_stops_in_one_line(papers: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from arxiv_embeddings.cli.main import main; main()", "embed", str(papers)]
    options = ["--out", str(tmp_path / "run"), "--model", str(tmp_path), "--max-rejected", "1%"]
    (tmp_path / "config.json").write_text("{}")
    shown = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stdout) == (1, "")
    first, *_, last = shown.stderr.splitlines()
    assert first == "columns: id from id, abstract from abstract, title from title"
    assert last.startswith("error: 3 of 200 rows of")
    quiet = subprocess.run([*command, *options, "-q"], capture_output=True, text=True, check=False)
    assert quiet.stderr.splitlines() == [last]


# Rows that nobody would write

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["7", "cs.LG", "\x00", "\ud83d"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
COLUMNS = (
    "id",
    "title",
    "abstract",
    "categories",
    "primary_category",
    "year",
    "published",
    "date",
    "version",
    "versions",
)
ROWS = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys((*COLUMNS, "other", "Title"), VALUES)), max_size=4)


@settings(max_examples=200)
@given(ROWS)
def test_no_row_ends_in_an_error_and_every_row_is_counted(rows: list[dict]) -> None:
    good = dict.fromkeys(COLUMNS) | {"id": "good", "abstract": "Moths."}
    with fsspec.open("memory://property/rows.jsonl", "w") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in [good, *rows]))
    papers = read_papers("memory://property/rows.jsonl")
    report = papers.report
    assert report.n_accepted + report.n_rejected == report.n_rows == len(rows) + 1
    table = papers.table()
    assert len(table) == report.n_accepted == len(set(table["paper_id"].to_pylist()))
    json.dumps([report.rejected, report.notes], ensure_ascii=False).encode()
    str(report).encode()


# Abstracts that are none


@pytest.mark.parametrize(
    "text",
    [
        "[No abstract available]",
        "Abstract not available",
        "No abstract available.",
        "NULL",
        "nan",
        "<NA>",
        "(None)",
        "N/A",
        "-",
    ],
)
def test_placeholders_are_no_abstracts(text: str, tmp_path: Path) -> None:
    (tmp_path / "papers.csv").write_text(f'id,abstract\n1,"{text}"\n2,Ants walk in the rain.\n3," {text.upper()}\n"\n')
    papers = read_papers(tmp_path / "papers.csv")
    assert papers.table()["paper_id"].to_pylist() == ["2"]
    assert papers.report.rejected["no abstract"]["count"] == 2
    assert text in papers.report.rejected["no abstract"]["first_details"][0]


def test_short_abstracts_are_abstracts() -> None:
    for text in (
        "None of these.",
        "No abstract ideas.",
        "Null sets.",
        "NaN",
        "Unknown unknowns.",
        "A.",
        "π",
        "Withdrawn.",
    ):
        assert is_placeholder(text) == (text == "NaN")
    assert all(is_placeholder(text) for text in PLACEHOLDERS)


# The sample corpus on a full disk


def test_a_sample_that_a_full_disk_cut_off_can_be_written_again(tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    script = f"from arxiv_embeddings.papers.corpus import copy_sample; copy_sample({str(tmp_path / 'sample')!r})"
    assert sample_papers().stat().st_size > 50_000
    cut = subprocess.run(
        [sys.executable, "-c", script], preexec_fn=small_files, capture_output=True, text=True, check=False
    )
    assert "File too large" in cut.stderr
    assert list((tmp_path / "sample").iterdir()) == []
    papers, _ = copy_sample(tmp_path / "sample")
    assert papers.read_bytes() == sample_papers().read_bytes()
