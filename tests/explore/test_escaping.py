"""Everything of a corpus that becomes HTML is escaped: titles, authors, categories, ids and names of columns."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from arxiv_embeddings.explore.describe import Description, describe_run
from arxiv_embeddings.explore.evaluation import evaluate_run
from arxiv_embeddings.explore.search import find_similar, search_text
from arxiv_embeddings.papers.corpus import open_papers
from arxiv_embeddings.runs.embed import EmbedResult, embed_papers
from tests.fakes.letters import LetterEncoder

SCRIPT = "<script>alert(1)</script>"
QUOTES = "\"'><img src=x onerror=alert(1)> & &amp;"
TAGS = {"table", "thead", "tbody", "tr", "th", "td", "caption", "p", "small", "br", "div", "style", "b", "details"}
ATTRIBUTES = {"style", "scoped", "class", "border", "scope", "href", "colspan", "rowspan"}


class Strict(HTMLParser):
    "Collects text, and refuses tags and attributes that our own tables do not have."

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS | {"a"}, tag
        for name, value in attrs:
            assert name in ATTRIBUTES, (tag, name)
            assert name != "href" or value.startswith("https://arxiv.org/abs/"), value

    def handle_data(self, data: str) -> None:
        self.text += data


def read_html(shown: str) -> str:
    "The text that a browser shows."
    parser = Strict()
    parser.feed(shown)
    parser.close()
    return parser.text


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> EmbedResult:
    "A run of papers that are all markup, in a folder whose name is markup."
    papers = [
        {
            "paper_id": f"{number}{SCRIPT}",
            "title": f"Title {number} {SCRIPT} {QUOTES}",
            "abstract": f"Abstract {'word ' * number}{SCRIPT}",
            "authors": f"Author {SCRIPT}",
            "categories": ["<script>cs.CV</script>", "x&y"],
            "<script>journal</script>": f"{SCRIPT}",
        }
        for number in range(1, 7)
    ]
    papers.append({"paper_id": f"none{SCRIPT}", "title": "", "abstract": ""})  # rejected, and named in the report
    return embed_papers(papers, tmp_path_factory.mktemp("<b>&") / "run<script>", encoder=LetterEncoder())


def check_search(result: EmbedResult) -> dict[str, Any]:
    run = result.run
    found = find_similar(run, row=0, k=3)
    # columns that a person adds, such as authors, are shown too
    joined = found.merge(run.to_pandas()[["paper_id", "authors"]], on="paper_id")
    joined.query = found.query
    return {
        "similar": found,
        "several": find_similar(run, row=[0, 1], k=2),
        "search": search_text(run, f"{SCRIPT} & words", k=2, encoder=LetterEncoder()),
        "joined": joined.rename(columns={"year": f"year {SCRIPT}"}),
        "without titles": found.drop(columns="title"),
    }


@pytest.mark.parametrize("name", ["similar", "several", "search", "joined", "without titles"])
def test_a_search_result_is_escaped(name: str, result: EmbedResult) -> None:
    found = check_search(result)[name]
    text = read_html(found._repr_html_())
    assert "<script>cs.CV</script> x&y" in text
    assert SCRIPT in text
    if name != "without titles":
        assert QUOTES in text
    if name == "similar":
        assert f'Papers most similar to "Title 1 {SCRIPT}' in text
    if name == "search":
        assert f'Papers about "{SCRIPT} & words"' in text
    if name == "joined":
        assert f"Author {SCRIPT}" in text


def test_a_link_is_made_of_an_arxiv_id_only(result: EmbedResult) -> None:
    found = find_similar(result.run, row=0, k=2)
    assert "href" not in found._repr_html_()
    found["paper_id"] = ["0704.0090", '0704.0090"onclick="alert(1)']
    shown = found._repr_html_()
    assert shown.count("href") == 1
    assert '0704.0090"onclick="alert(1)' in read_html(shown)


def test_a_run_and_its_result_are_escaped(result: EmbedResult) -> None:
    for shown in (result._repr_html_(), result.run._repr_html_()):
        text = read_html(shown)
        assert "run<script>" in text
    assert "<script>cs.CV</script>" in read_html(describe_run(result.run)._repr_html_())


def test_a_description_is_escaped(result: EmbedResult) -> None:
    described = describe_run(result.run)
    described["withdrawn"] = [SCRIPT]
    text = read_html(described._repr_html_())
    assert SCRIPT in text
    assert "run<script>" in text
    assert "<script>cs.CV</script>: 6" in text
    assert QUOTES in read_html(Description({QUOTES: {SCRIPT: [QUOTES]}})._repr_html_())
    assert "letters" in read_html(evaluate_run(result.run, k=2)._repr_html_())


def test_papers_and_their_report_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "<script>papers.csv"
    pd.DataFrame(
        {
            "id": [f"1{SCRIPT}", f"2{SCRIPT}", f"2{SCRIPT}"],
            "title": [f"A & {SCRIPT}", QUOTES, "again"],
            "abstract": ["some words", SCRIPT, "again"],
            "authors": [SCRIPT, QUOTES, "c"],
            "categories": ["<script>cs.CV</script> x&y"] * 3,
            "<script>column": [SCRIPT, "b", "c"],
        }
    ).to_csv(path, index=False)
    papers = open_papers(path).scan()
    shown = read_html(papers._repr_html_())
    assert "<script>papers.csv" in shown
    assert SCRIPT in shown
    assert QUOTES in shown
    assert f"2{SCRIPT}" in read_html(papers.report._repr_html_())  # the second of this id is rejected
