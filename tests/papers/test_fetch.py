"""Papers from arXiv: both services, as they are and as they fail, and what a break leaves. No network is used."""

import fcntl
import itertools
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import read_papers
from arxiv_embeddings.papers.fetch import SCHEMA, ArxivServers, FetchResult, fetch_papers
from tests.fakes import ROOT
from tests.fakes.arxiv_server import BUSY, CUT_OFF, EMPTY_PAGE, RATE, Answer, FakeArxiv

SERVICES = {"API": {"query": "cat:cs.CL"}, "OAI-PMH": {"query": None, "archive": "cs"}}


@pytest.fixture
def arxiv() -> Iterator[FakeArxiv]:
    with FakeArxiv() as server:
        yield server


@pytest.fixture(params=SERVICES, ids=list(SERVICES))
def asked(request: pytest.FixtureRequest) -> dict[str, Any]:
    "What is asked for, of one service and then of the other."
    return SERVICES[request.param]


class Fetching:
    "Fetches into a folder, with pauses that are noted and do not last."

    def __init__(self, arxiv: FakeArxiv, folder: Path) -> None:
        self.arxiv, self.path, self.waits = arxiv, folder / "papers.parquet", []

    def __call__(self, query: str | None, servers: dict[str, Any] | None = None, **options: Any) -> FetchResult:
        settings = {"page_size": 10, "sleep": self.waits.append} | (servers or {})
        return fetch_papers(query, self.path, servers=ArxivServers(**self.arxiv.addresses | settings), **options)

    def ids(self) -> list[str]:
        return pq.read_table(self.path)["id"].to_pylist()

    def left(self) -> list[str]:
        "What lies in the folder."
        return sorted(path.name for path in self.path.parent.iterdir())


@pytest.fixture
def fetch(arxiv: FakeArxiv, tmp_path: Path) -> Fetching:
    return Fetching(arxiv, tmp_path)


def ids(*numbers: int) -> list[str]:
    return [f"2401.{n:05}" for n in numbers]


def test_both_services_give_the_same_papers(fetch: Fetching, asked: dict[str, Any]) -> None:
    fetch.arxiv.title = "Paper {n}\n  on x < y & z"
    result = fetch(**asked)
    assert (result.n_papers, result.n_pages, result.n_continued, result.n_deleted) == (23, 3, 0, 0)
    table = pq.read_table(fetch.path)
    assert table.schema.equals(SCHEMA)
    assert fetch.ids() == ids(*range(23))
    assert table["version"].to_pylist() == [1 + n % 2 for n in range(23)]
    paper = table.to_pylist()[7]
    assert paper["abstract"] == "\n  Abstract 7 says a < b & c.\nIts second line.\n"
    assert paper["title"] == ("Paper 7\n  on x < y & z" if asked.get("archive") else "Paper 7 on x < y & z")
    assert (paper["authors"], paper["categories"]) == ("Ada Example, Bo Sample", ["cs.CL", "cs.LG"])
    assert (paper["primary_category"], paper["doi"]) == ("cs.CL", "10.1000/7")
    assert (paper["comments"], paper["journal_ref"]) == ("7 pages", "J. 7 (2024)")
    assert f"{paper['published']:%Y-%m-%d %H:%M}" == "2024-01-08 09:30"
    assert paper["updated"] > paper["published"]
    assert table.to_pylist()[6]["doi"] is None
    assert fetch.left() == ["papers.parquet"]


def test_embed_takes_the_file_without_options(fetch: Fetching, asked: dict[str, Any]) -> None:
    fetch(**asked)
    papers = read_papers(fetch.path)
    first = papers.table().to_pylist()[1]
    assert (papers.report.n_accepted, papers.report.rejected) == (23, {})
    assert (first["paper_id"], first["arxiv_version"], first["year"]) == ("2401.00001", 2, 2024)
    assert first["abstract"] == "Abstract 1 says a < b & c. Its second line."
    assert (first["categories"], first["primary_category"]) == (["cs.CL", "cs.LG"], "cs.CL")


def test_the_later_version_of_a_paper_wins(fetch: Fetching, tmp_path: Path) -> None:
    "A newer file has the same bare id and a higher version."
    fetch("cat:cs.CL")
    newer = pq.read_table(fetch.path).to_pylist()[0] | {"version": 12, "abstract": "Another abstract."}
    rows = [*pq.read_table(fetch.path).to_pylist()[:2], newer]
    read = read_papers(rows)
    assert [(one["paper_id"], one["arxiv_version"]) for one in read.table().to_pylist()] == [
        ("2401.00001", 2),
        ("2401.00000", 12),
    ]


def test_the_period_is_asked_for(fetch: Fetching) -> None:
    fetch("cat:cs.CL OR cat:cs.LG", start="2024-01-05", end="2024-01-08")
    assert fetch.ids() == ids(4, 5, 6, 7)
    assert fetch.arxiv.requests[0]["search_query"] == (
        "(cat:cs.CL OR cat:cs.LG) AND submittedDate:[202401050000 TO 202401082359]"
    )
    order = [fetch.arxiv.requests[0][name] for name in ("sortBy", "sortOrder")]
    assert order == ["submittedDate", "ascending"]


def test_an_archive_is_asked_for_since_a_day(fetch: Fetching) -> None:
    fetch(None, archive="cs:cs:CL", start="2024", end="2024-02")
    first, second, _ = fetch.arxiv.requests
    assert first == {
        **{"verb": "ListRecords", "metadataPrefix": "arXivRaw", "set": "cs:cs:CL"},
        **{"from": "2024-01-01", "until": "2024-02-29"},
    }
    assert second == {"verb": "ListRecords", "resumptionToken": "token-10"}  # OAI-PMH allows nothing beside a token


@pytest.mark.parametrize("most", [1, 10, 13, 23, 100])
def test_no_more_papers_than_wanted(fetch: Fetching, asked: dict[str, Any], most: int) -> None:
    assert fetch(**asked, most=most).n_papers == min(most, 23)
    assert fetch.ids() == ids(*range(min(most, 23)))
    assert len(fetch.arxiv.requests) == (min(most, 23) + 9) // 10


def test_three_seconds_between_requests(fetch: Fetching, asked: dict[str, Any]) -> None:
    fetch(**asked)
    assert fetch.waits == [pytest.approx(3, abs=0.5)] * 2
    assert ArxivServers().pause_seconds == 3.0
    assert ArxivServers().sleep is time.sleep


def test_requests_are_really_apart(fetch: Fetching, asked: dict[str, Any]) -> None:
    fetch(**asked, servers={"pause_seconds": 0.05, "sleep": time.sleep})
    times = fetch.arxiv.times
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 0.05


FAULTS = {
    "busy": BUSY,
    "rate exceeded": RATE,
    "too many requests": Answer(429, "slow down"),
    "broken server": Answer(500, "<html>oops</html>"),
    "cut off": CUT_OFF,
    "shorter, and so announced": Answer(change=(r"(?s)^(.{900}).*", r"\1")),
    "nothing at all": Answer(body=""),
    "a web page": Answer(body="<html><body><p>We are back soon<br></body></html>"),
    "a character that XML has not": Answer(change=("Abstract", "\x0b")),
    "billion laughs": Answer(
        body='<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;">]><a>&d;</a>'
    ),
    "external entity": Answer(body='<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><a>&b;</a>'),
    "external document type": Answer(body='<!DOCTYPE a SYSTEM "file:///etc/hostname"><a/>'),
}


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_page_that_fails_is_asked_for_again(
    fetch: Fetching, asked: dict[str, Any], fault: Answer, number: int
) -> None:
    fetch.arxiv.answers = {number: fault}
    assert fetch(**asked).n_pages == 3
    assert fetch.ids() == ids(*range(23))
    assert fetch.arxiv.requests[number] == fetch.arxiv.requests[number + 1]
    assert len(fetch.arxiv.requests) == 4


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_page_that_always_fails_is_one_line(fetch: Fetching, asked: dict[str, Any], fault: Answer) -> None:
    fetch.arxiv.always = fault
    with pytest.raises(
        InputError, match=r"^arXiv [^\n]+, 3 times in a row: run the same command again later$"
    ) as error:
        fetch(**asked, servers={"n_tries": 3})
    assert len(fetch.arxiv.requests) == 3
    assert len(str(error.value)) < 250
    assert fetch.left() == []


def test_empty_pages_are_asked_for_again(fetch: Fetching) -> None:
    "The API sends them now and then; its client takes an empty first page for no results."
    fetch.arxiv.answers = {0: EMPTY_PAGE, 2: EMPTY_PAGE, 3: EMPTY_PAGE}
    assert fetch("cat:cs.CL").n_pages == 3
    assert fetch.ids() == ids(*range(23))
    assert [one["start"] for one in fetch.arxiv.requests] == ["0", "0", "10", "10", "10", "20"]


@pytest.mark.parametrize("n_before", [0, 1])
def test_empty_pages_without_end(fetch: Fetching, n_before: int) -> None:
    fetch.arxiv.answers = dict.fromkeys(range(n_before, n_before + 3), EMPTY_PAGE)
    with pytest.raises(
        InputError, match=f"^arXiv sent an empty page instead of paper {1 + 10 * n_before} of 23, 3 times"
    ):
        fetch("cat:cs.CL", servers={"n_tries": 3})


def test_a_short_page_loses_no_paper(fetch: Fetching) -> None:
    last_entries = r"(?s)(<entry>(?:(?!</entry>).)*</entry>){4}(?=</feed>)"
    fetch.arxiv.answers = {0: Answer(change=(last_entries, ""))}
    fetch("cat:cs.CL")
    assert fetch.ids() == ids(*range(23))
    assert [one["start"] for one in fetch.arxiv.requests] == ["0", "6", "16"]


def test_retry_after_is_honored(fetch: Fetching, asked: dict[str, Any]) -> None:
    fetch.arxiv.answers = {1: BUSY, 2: Answer(503, "", {"Retry-After": format_datetime_in(100)}), 3: Answer(503, "")}
    fetch(**asked)
    # the pause before a request, 7 s, a date, and the third pause that doubles
    assert fetch.waits == [pytest.approx(one, abs=3) for one in (3, 7, 3, 100, 3, 12, 3, 3)]
    assert fetch.waits[1] == 7.0


def format_datetime_in(seconds: int) -> str:
    from datetime import datetime, timedelta, timezone

    return format_datetime(datetime.now(timezone.utc) + timedelta(seconds=seconds), usegmt=True)


def test_nobody_waits_for_a_day(fetch: Fetching, asked: dict[str, Any]) -> None:
    fetch.arxiv.always = Answer(503, "", {"Retry-After": "86400"})
    with pytest.raises(InputError, match="arXiv asks to wait 1,440 minutes: run the same command again after that"):
        fetch(**asked)
    assert max(fetch.waits, default=0) < 5


def test_a_server_that_does_not_answer(fetch: Fetching, asked: dict[str, Any]) -> None:
    fetch.arxiv.always = Answer(wait=0.5)
    with pytest.raises(InputError, match=r"arXiv could not be read \(ReadTimeout\), 2 times in a row"):
        fetch(**asked, servers={"timeout_seconds": 0.1, "n_tries": 2})


def test_no_server(fetch: Fetching, asked: dict[str, Any]) -> None:
    servers = {"api": "http://127.0.0.1:9/api", "oai": "http://127.0.0.1:9/oai"}
    with pytest.raises(InputError, match=r"arXiv could not be read \(Connect\w+\), 6 times in a row"):
        fetch(**asked, servers=servers)
    # neither library would pause here; each try is preceded by the pause between requests as well
    assert [one for one in fetch.waits if one > 3.5 or one == 3.0] == [3.0, 6.0, 12.0, 24.0, 48.0]


def test_what_arxiv_refuses_is_told_in_its_words(fetch: Fetching) -> None:
    with pytest.raises(InputError, match=r"^arXiv refuses the query: malformed query: unbalanced parenthesis$"):
        fetch("(cat:cs.CL")
    with pytest.raises(InputError, match=r"^arXiv refuses the request: set physics:xx does not exist$"):
        fetch(None, archive="physics:xx")
    assert len(fetch.arxiv.requests) == 2  # nothing is asked again
    assert fetch.left() == []


def test_an_error_entry_with_status_200_is_no_paper(fetch: Fetching) -> None:
    "As the API sent it for years."
    status, body = fetch.arxiv.atom_page({"search_query": "(", "start": "0", "max_results": "10"})
    assert status == 400
    fetch.arxiv.always = Answer(body=body)
    with pytest.raises(InputError, match="arXiv refuses the query: malformed query"):
        fetch("cat:cs.CL")


@pytest.mark.parametrize("status", [301, 403, 404, 410])
def test_other_answers_are_not_asked_again(fetch: Fetching, asked: dict[str, Any], status: int) -> None:
    fetch.arxiv.always = Answer(status, "<html>Forbidden</html>")
    with pytest.raises(InputError, match=f"^arXiv answers {status}"):
        fetch(**asked)
    assert len(fetch.arxiv.requests) == 1


def test_nothing_found(fetch: Fetching) -> None:
    with pytest.raises(InputError, match=r"^arXiv has no paper for all:nothing, from 2024 to now$"):
        fetch("all:nothing", start="2024")
    fetch.arxiv.n_papers = 0
    with pytest.raises(InputError, match=r"^arXiv has no paper for archive cs$"):
        fetch(None, archive="cs")
    assert fetch.left() == []


def test_records_that_are_no_papers_are_counted(fetch: Fetching, asked: dict[str, Any]) -> None:
    fetch.arxiv.broken = {0, 12}
    fetch.arxiv.deleted = {3, 4, 22}
    result = fetch(**asked)
    deleted = {3, 4, 22} if asked.get("archive") else set()
    assert (result.n_deleted, result.n_unreadable) == (len(deleted), 2)
    assert fetch.ids() == ids(*sorted({*range(23)} - {0, 12} - deleted))
    assert "left out: 2 records without id, date or content" in str(result)


def test_an_empty_record_does_not_end_the_page(fetch: Fetching) -> None:
    "oaipmh-scythe raises StopIteration for it, which would end a list silently."
    fetch.arxiv.answers = {0: Answer(change=(r"(?s)(00002</identifier>.*?<metadata>).*?(</metadata>)", r"\1\2"))}
    result = fetch(None, archive="cs")
    assert (result.n_papers, result.n_unreadable) == (22, 1)
    assert fetch.ids() == ids(*(n for n in range(23) if n != 2))


def test_a_token_that_leads_to_itself(fetch: Fetching) -> None:
    fetch.arxiv.answers = {1: Answer(change=("token-20", "token-10"))}
    with pytest.raises(InputError, match="keeps sending the same page"):
        fetch(None, archive="cs")


def test_a_forgotten_token(fetch: Fetching) -> None:
    fetch.arxiv.forgotten = {"token-10"}
    with pytest.raises(InputError, match=r"resumption token of this harvest has expired .* start again .*10 papers"):
        fetch(None, archive="cs")


def test_a_page_that_is_too_large(fetch: Fetching, asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="arXiv sent a page of more than 2,000 bytes, which is not read"):
        fetch(**asked, servers={"most_bytes": 2000})


@pytest.mark.parametrize("most", [None, 15])
def test_a_second_start_goes_on(fetch: Fetching, asked: dict[str, Any], most: int | None) -> None:
    fetch.arxiv.answers = dict.fromkeys(range(1, 4), BUSY)
    with pytest.raises(InputError, match=r"3 times in a row: .* \(10 papers are kept in .*papers.parquet.fetching\)"):
        fetch(**asked, most=most, servers={"n_tries": 3})
    assert fetch.left() == ["papers.parquet.fetching"]
    n_asked = len(fetch.arxiv.requests)
    result = fetch(**asked, most=most)
    assert (result.n_papers, result.n_continued) == (most or 23, 10)
    assert "10 of them were fetched earlier" in str(result)
    assert fetch.ids() == ids(*range(most or 23))
    assert fetch.arxiv.requests[n_asked] == fetch.arxiv.requests[1]  # the first page is not asked for again
    assert fetch.left() == ["papers.parquet"]


def test_an_open_period_ends_when_it_was_first_asked_for(fetch: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch.arxiv.answers = dict.fromkeys(range(1, 4), BUSY)
    monkeypatch.setattr("arxiv_embeddings.papers.fetch.utc_now", lambda: "2024-01-20T12:00:00Z")
    with pytest.raises(InputError):
        fetch("cat:cs.CL", start="2024", servers={"n_tries": 3})
    monkeypatch.setattr("arxiv_embeddings.papers.fetch.utc_now", lambda: "2026-01-20T12:00:00Z")
    fetch("cat:cs.CL", start="2024")
    assert {one["search_query"] for one in fetch.arxiv.requests} == {
        "(cat:cs.CL) AND submittedDate:[202401010000 TO 202401201200]"
    }
    assert fetch.ids() == ids(*range(20))


def test_other_papers_do_not_get_into_a_file(fetch: Fetching) -> None:
    fetch.arxiv.answers = dict.fromkeys(range(1, 4), BUSY)
    with pytest.raises(InputError):
        fetch("cat:cs.CL", servers={"n_tries": 3})
    n_asked = len(fetch.arxiv.requests)
    for query, options in (("cat:cs.LG", {}), ("cat:cs.CL", {"start": "2024"}), (None, {"archive": "cs"})):
        with pytest.raises(InputError, match=r"unfinished fetch of other papers \(cat:cs.CL\): finish it, or delete"):
            fetch(query, **options)
    assert len(fetch.arxiv.requests) == n_asked
    assert fetch("cat:cs.CL").n_papers == 23


@pytest.mark.parametrize(
    "change", [lambda text: text[:50], lambda text: text.replace('"n_papers": 10', '"n_papers": -1')]
)
def test_a_damaged_state_is_told(fetch: Fetching, change: Any) -> None:
    fetch.arxiv.answers = dict.fromkeys(range(1, 4), BUSY)
    with pytest.raises(InputError):
        fetch("cat:cs.CL", servers={"n_tries": 3})
    state = fetch.path.parent / "papers.parquet.fetching" / "state.json"
    state.write_text(change(state.read_text()))
    with pytest.raises(
        InputError, match=r"state.json (is damaged|cannot be read) .*: delete .*fetching and start again"
    ):
        fetch("cat:cs.CL")


@pytest.mark.parametrize("name", ["papers.csv", "papers", "s3://bucket/papers.parquet", "no/such/papers.parquet"])
def test_files_that_cannot_be_written(fetch: Fetching, name: str) -> None:
    fetch.path = name if "://" in name else fetch.path.parent / name
    with pytest.raises(InputError, match=r"name the file papers.parquet|not to s3://|does not exist"):
        fetch("cat:cs.CL")
    assert fetch.arxiv.requests == []


FETCHES = """
import json, sys
from arxiv_embeddings.papers.fetch import ArxivServers, fetch_papers
asked, path, servers = map(json.loads, sys.argv[1:])
print(fetch_papers(path=path, servers=ArxivServers(**servers), **asked).n_papers)
"""


def start(asked: dict[str, Any], fetch: Fetching, **servers: Any) -> subprocess.Popen:
    settings = fetch.arxiv.addresses | {"page_size": 10, "pause_seconds": 0.0} | servers
    words = [json.dumps(one) for one in (asked, str(fetch.path), settings)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", FETCHES, *words], env=environment, cwd=ROOT)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("n_before", [1, 2])
def test_a_killed_fetch_loses_one_page_at_most(fetch: Fetching, asked: dict[str, Any], n_before: int) -> None:
    "The process is killed while a page is on its way."
    fetch.arxiv.answers = {n_before: Answer(wait=60)}
    process = start(asked, fetch)
    wait_for(lambda: len(fetch.arxiv.requests) > n_before)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert fetch.left() == ["papers.parquet.fetching"]  # no file that could be taken for whole
    fetch.arxiv.answers = {}
    result = fetch(**asked)
    assert (result.n_papers, result.n_continued) == (23, 10 * n_before)
    assert fetch.ids() == ids(*range(23))
    assert fetch.left() == ["papers.parquet"]


def test_two_processes_do_not_write_one_file(fetch: Fetching) -> None:
    fetch.arxiv.answers = {1: Answer(wait=60)}
    process = start(SERVICES["API"], fetch)
    try:
        wait_for(lambda: len(fetch.arxiv.requests) > 1)
        with pytest.raises(InputError, match=f"is being written by process {process.pid} "):
            fetch("cat:cs.CL")
    finally:
        process.kill()
        process.wait()


def kill_at_call(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, n: int, before: Any = None) -> None:
    "Let the n-th call of a function end the process; `before` is called first."
    whole, n_calls = getattr(module, name), []

    def stop(*given: Any, **options: Any) -> Any:
        n_calls.append(1)
        if len(n_calls) == n:
            if before:
                before()
            raise SystemExit(9)
        return whole(*given, **options)

    monkeypatch.setattr(module, name, stop)


@pytest.mark.parametrize("step", ["page", "state", "file", "end"])
def test_a_kill_at_each_step_of_writing(
    fetch: Fetching, asked: dict[str, Any], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    "After the page and before the state, within the file, and between the file and the end."
    from arxiv_embeddings.papers import fetch as module

    def leave_half() -> None:
        if step == "file":
            fetch.path.with_name(f".{fetch.path.name}.0a1b2c3d.tmp").write_bytes(b"PAR1 half of it")

    name = {"page": "write_state", "state": "_ask", "file": "join_pages", "end": "remove_folder"}[step]
    with monkeypatch.context() as patch:
        kill_at_call(patch, module, name, {"page": 2, "state": 3}.get(step, 1), leave_half)
        with pytest.raises(SystemExit):
            fetch(**asked)
    if step == "end":  # the file is whole: nothing is left to do
        assert fetch.ids() == ids(*range(23))
        return
    assert not fetch.path.exists()
    assert fetch(**asked).n_continued == {"page": 10, "state": 20, "file": 23}[step]
    assert fetch.ids() == ids(*range(23))
    assert fetch.left() == ["papers.parquet"]


def test_a_kill_while_a_page_is_written(fetch: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    "The state does not name the page yet."
    with monkeypatch.context() as patch:
        kill_at_call(patch, pq, "write_table", 2)
        with pytest.raises(SystemExit):
            fetch("cat:cs.CL")
    assert fetch("cat:cs.CL").n_continued == 10
    assert fetch.ids() == ids(*range(23))


def test_a_kill_while_the_file_is_written(fetch: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    "Two of three pages are joined: no file has the name yet."
    with monkeypatch.context() as patch:
        kill_at_call(patch, pq, "read_table", 3)
        with pytest.raises(SystemExit):
            fetch("cat:cs.CL")
    assert fetch.left() == ["papers.parquet.fetching"]
    assert fetch("cat:cs.CL").n_continued == 23
    assert fetch.ids() == ids(*range(23))


def test_kaggles_snapshot_is_read_as_it_is(tmp_path: Path) -> None:
    snapshot = tmp_path / "arxiv-metadata-oai-snapshot.json"
    versions = [{"version": "v1", "created": "Mon, 2 Apr 2007 19:18:42 GMT"}, {"version": "v2", "created": "x"}]
    rows = [
        {
            **{"id": f"0704.{n:04}", "submitter": "Ada Example", "authors": "Ada Example, Bo Sample"},
            **{"title": f"Paper\n  {n}", "comments": None, "journal-ref": None, "doi": None, "report-no": None},
            **{"categories": "math.CO cs.CG", "license": None, "abstract": f"  We count {n}.\n", "versions": versions},
            **{"update_date": "2008-12-13", "authors_parsed": [["Example", "Ada", ""], ["Sample", "Bo", ""]]},
        }
        for n in range(1, 4)
    ]
    snapshot.write_text("".join(json.dumps(row) + "\n" for row in rows))
    papers = read_papers(snapshot)
    assert papers.report.n_accepted == 3
    first = papers.table().to_pylist()[0]
    assert (first["paper_id"], first["title"], first["abstract"]) == ("0704.0001", "Paper 1", "We count 1.")
    assert (first["categories"], first["year"], first["arxiv_version"]) == (["math.CO", "cs.CG"], 2007, 2)


def test_the_bar_is_on_terminals_only(fetch: Fetching, asked: dict[str, Any]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    settings = json.dumps(fetch.arxiv.addresses | {"page_size": 10, "pause_seconds": 0.0})
    words = [sys.executable, "-c", FETCHES, json.dumps(asked), json.dumps(str(fetch.path)), settings]
    piped = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert (piped.stdout, piped.stderr) == ("23\n", "")
    fetch.path.unlink()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run(words, stderr=theirs, stdout=subprocess.DEVNULL, check=True, env=environment)
    os.close(theirs)
    assert "23/23" in os.read(ours, 65536).decode()
    os.close(ours)
