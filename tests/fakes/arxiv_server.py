"""An arXiv on this machine: the API's Atom pages and OAI-PMH, and the ways in which both fail."""

import re
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from html import escape
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from tests.fakes.local_server import LocalServer

FIRST = datetime(2024, 1, 1, 9, 30, tzinfo=timezone.utc)  # when paper 0 was submitted; each later one a day after
OAI = 'xmlns="http://www.openarchives.org/OAI/2.0/"'


@dataclass
class Answer:
    "What the server says once, instead of what it should."

    status: int = 200
    body: str | None = None  # `None`: the right page
    headers: dict[str, str] = field(default_factory=dict)
    change: tuple[str, str] | None = None  # a pattern and its replacement in the right page
    cut: float = 1.0  # share of the body that is sent before the connection is closed
    wait: float = 0.0  # seconds before it answers


EMPTY_PAGE = Answer(change=(r"(?s)<entry>.*</entry>", ""))
BUSY = Answer(503, "busy", {"Retry-After": "7"})
RATE = Answer(200, "Rate exceeded.", {"Content-Type": "text/plain"})
CUT_OFF = Answer(cut=0.6)


class FakeArxiv(LocalServer):
    "Serves `n_papers` on 127.0.0.1 while it is open; `requests` tells what was asked for, and when."

    def __init__(self, n_papers: int = 23, oai_page: int = 10) -> None:
        self.n_papers, self.oai_page = n_papers, oai_page
        self.answers: dict[int, Answer] = {}  # number of a request, from 0 -> what it gets
        self.always: Answer | None = None  # what every request gets that `answers` does not name
        self.deleted: set[int] = set()  # papers that OAI-PMH lists as deleted
        self.broken: set[int] = set()  # papers without a date (API) or without metadata (OAI-PMH)
        self.forgotten: set[str] = set()  # resumption tokens that are no longer known
        self.requests: list[dict[str, str]] = []
        self.times: list[float] = []
        self.title = "Paper {n} on x < y & z"

    @property
    def addresses(self) -> dict[str, str]:
        "For `ArxivServers`."
        return {"api": f"{self.address}/api/query", "oai": f"{self.address}/oai"}

    def make_handler(self) -> type["ArxivHandler"]:
        return type("Handler", (ArxivHandler,), {"arxiv": self})

    def paper_id(self, n: int) -> str:
        return f"2401.{n:05}"

    def atom_page(self, asked: dict[str, str]) -> tuple[int, str]:
        "What the API answers: entries from `start`, in the order of submission."
        if "(" in asked["search_query"] and ")" not in asked["search_query"]:
            return 400, self.atom_feed(1, 0, [REFUSED])
        found = [n for n in range(self.n_papers) if self.is_submitted(n, asked["search_query"])]
        start, size = int(asked["start"]), int(asked["max_results"])
        entries = [self.atom_entry(n) for n in found[start : start + size]]
        return 200, self.atom_feed(len(found), start, entries)

    def is_submitted(self, n: int, query: str) -> bool:
        if "nothing" in query:
            return False
        match = re.search(r"submittedDate:\[(\d{12}) TO (\d{12})\]", query)
        return not match or match[1] <= (FIRST + timedelta(n)).strftime("%Y%m%d%H%M") <= match[2]

    def atom_feed(self, n_found: int, start: int, entries: list[str]) -> str:
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n<feed xmlns="http://www.w3.org/2005/Atom" '
            'xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/" xmlns:arxiv="http://arxiv.org/schemas/atom">'
            f"<opensearch:totalResults>{n_found}</opensearch:totalResults>"
            f"<opensearch:startIndex>{start}</opensearch:startIndex>{''.join(entries)}</feed>"
        )

    def atom_entry(self, n: int) -> str:
        published = (FIRST + timedelta(n)).strftime("%Y-%m-%dT%H:%M:%SZ")
        more = "<arxiv:doi>10.1000/7</arxiv:doi><arxiv:journal_ref>J. 7 (2024)</arxiv:journal_ref>" if n == 7 else ""
        more += "<arxiv:comment>7 pages</arxiv:comment>" if n == 7 else ""
        return (
            f"<entry><id>http://arxiv.org/abs/{self.paper_id(n)}v{1 + n % 2}</id>"
            f"<title>{escape(self.title.format(n=n))}</title><summary>\n  Abstract {n} says a &lt; b &amp; c.\n"
            f"Its second line.\n</summary><author><name>Ada Example</name></author><author><name>Bo Sample</name>"
            f"</author>{'' if n in self.broken else f'<published>{published}</published>'}"
            f'<updated>2024-06-01T00:00:00Z</updated><arxiv:primary_category term="cs.CL"/>'
            f'<category term="cs.CL"/><category term="cs.LG"/>{more}</entry>'
        )

    def oai_answer(self, asked: dict[str, str]) -> tuple[int, str]:
        "What OAI-PMH answers to ListRecords."
        token = asked.get("resumptionToken")
        if token in self.forgotten:
            return 200, oai_error("badResumptionToken", "The token has expired.")
        if not token and asked.get("set") not in ("cs", "cs:cs:CL"):
            return 200, oai_error("badArgument", f"set {asked.get('set')} does not exist")
        start = int(token.removeprefix("token-")) if token else 0
        if start >= self.n_papers:
            return 200, oai_error("noRecordsMatch", "")
        stop = min(start + self.oai_page, self.n_papers)
        following = f"token-{stop}" if stop < self.n_papers else ""
        records = "".join(map(self.oai_record, range(start, stop)))
        size = f'cursor="{start}" completeListSize="{self.n_papers}"'
        last = f"<resumptionToken {size}>{following}</resumptionToken>"
        return 200, f"<OAI-PMH {OAI}><ListRecords>{records}{last}</ListRecords></OAI-PMH>"

    def oai_record(self, n: int) -> str:
        name = f"<identifier>oai:arXiv.org:{self.paper_id(n)}</identifier><datestamp>2024-06-01</datestamp>"
        if n in self.deleted:
            return f'<record><header status="deleted">{name}</header></record>'
        if n in self.broken:
            return f"<record><header>{name}</header></record>"
        dates = [format_datetime(FIRST + timedelta(n + 31 * version), usegmt=True) for version in range(1 + n % 2)]
        versions = "".join(
            f'<version version="v{at + 1}"><date>{date}</date></version>' for at, date in enumerate(dates)
        )
        more = (
            "<comments>7 pages</comments><doi>10.1000/7</doi><journal-ref>J. 7 (2024)</journal-ref>" if n == 7 else ""
        )
        return (
            f'<record><header>{name}</header><metadata><arXivRaw xmlns="http://arxiv.org/OAI/arXivRaw/">'
            f"<id>{self.paper_id(n)}</id>{versions}<title>{escape(self.title.format(n=n))}</title>"
            f"<authors>Ada Example, Bo Sample</authors><categories>cs.CL cs.LG</categories>{more}<abstract>\n"
            f"  Abstract {n} says a &lt; b &amp; c.\nIts second line.\n</abstract></arXivRaw></metadata></record>"
        )


REFUSED = (
    "<entry><id>http://arxiv.org/api/errors#malformed</id><title>Error</title>"
    "<summary>malformed query: unbalanced parenthesis</summary></entry>"
)


def oai_error(code: str, message: str) -> str:
    return f'<OAI-PMH {OAI}><error code="{code}">{message}</error></OAI-PMH>'


class ArxivHandler(BaseHTTPRequestHandler):
    "Answers as https://export.arxiv.org/api/query and https://oaipmh.arxiv.org/oai do."

    arxiv: FakeArxiv
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(address.query).items()}
        number = len(self.arxiv.requests)
        self.arxiv.requests.append(asked)
        self.arxiv.times.append(time.monotonic())
        answer = self.arxiv.answers.get(number, self.arxiv.always) or Answer()
        make = self.arxiv.oai_answer if address.path == "/oai" else self.arxiv.atom_page
        status, body = make(asked) if answer.body is None else (answer.status, answer.body)
        if answer.change:
            body = re.sub(*answer.change, body)
        time.sleep(answer.wait)
        self.send(status if answer.status == 200 else answer.status, body.encode(), answer)

    def send(self, status: int, body: bytes, answer: Answer) -> None:
        "Promise the whole body, and send it or its beginning."
        self.send_response(status)
        for name, value in ({"Content-Type": "text/xml", "Content-Length": str(len(body))} | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: int(len(body) * answer.cut)])
        self.close_connection = answer.cut < 1

    def log_message(self, *_: object) -> None:
        "Keep the tests' output clean."
