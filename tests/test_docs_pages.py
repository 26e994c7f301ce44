"""The pages of the documentation: what they say about the package is true, and they name every page and every name."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from tests.fakes import ROOT
from tests.test_documentation import MODULES

ERRORS = (ROOT / "docs" / "frequent_errors.md").read_text(encoding="utf-8")


def templates_of(tree: ast.AST) -> Iterator[str]:
    "Yield every text of a module, with `…` for each value that is filled in."
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)


TEMPLATES = [
    template
    for path in sorted((ROOT / "arxiv_embeddings").rglob("*.py"))
    for template in templates_of(ast.parse(path.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("message", re.findall(r"^### `(.+)`$", ERRORS, re.MULTILINE))
def test_quoted_messages_are_those_of_the_package(message: str) -> None:
    # a value may be written out on the page, as in "use the same model", so each piece has to come in its order
    pieces = [re.escape(piece.strip()) for piece in message.split("…") if piece.strip()]
    assert any(re.search(".*".join(pieces), template, re.DOTALL) for template in TEMPLATES)


def test_every_section_quotes_a_message_and_says_what_to_do() -> None:
    sections = re.split(r"^### ", ERRORS, flags=re.MULTILINE)[1:]
    assert len(sections) >= 20
    for section in sections:
        heading, _, advice = section.partition("\n")
        assert re.fullmatch(r"`.+`", heading), heading
        assert len(advice.split("\n## ")[0].split()) >= 8, heading


def test_welcome_page_lists_every_page() -> None:
    subprocess.run([sys.executable, str(ROOT / "tools" / "make_contents.py"), "--check"], check=True)


@pytest.mark.parametrize("path", sorted(ROOT.glob("nbs/**/*.ipynb")), ids=lambda path: path.stem)
def test_links_between_notebooks_lead_somewhere(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", cell.source):
                if not urlsplit(target).scheme:
                    assert (path.parent / target).exists(), target


class Links(HTMLParser):
    "What a page points to, and the anchors that it has."

    def __init__(self, text: str):
        super().__init__()
        self.targets, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.anchors |= {value for name, value in found.items() if name in ("id", "name") and value}
        self.targets |= {value for name, value in found.items() if name in ("href", "src") and value}


def find_broken(site: Path) -> Iterator[tuple[str, str]]:
    "Yield each page of a site with a link, anchor or picture on it that leads nowhere."
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for target in sorted(page.targets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            lacking = not there.exists()
            if lacking or (parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].anchors):
                yield str(path.relative_to(site)), target


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) > 80
    assert list(find_broken(site)) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="b.html#none"></a><a href="#top"></a><img src="no.png">'
    )
    (tmp_path / "b.html").write_text('<a href="a.html#top"></a><a href="c.html"></a><a href="https://x.org/none"></a>')
    assert sorted(find_broken(tmp_path)) == [("a.html", "b.html#none"), ("a.html", "no.png"), ("b.html", "c.html")]


def test_pages_ask_no_other_host(site: Path) -> None:
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]*\bsrc=\"(?:https?:)?//|<link[^>]*rel=\"(?!canonical)[^>]*href=\"(?:https?:)?//"
    )
    assert [path.name for path in site.rglob("*.html") if loaded.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("module_name", MODULES, ids=lambda name: name.removeprefix("arxiv_embeddings."))
def test_every_exported_name_has_an_entry(module_name: str, site: Path) -> None:
    names = getattr(importlib.import_module(module_name), "__all__", None)
    if names:  # a package of modules has none of its own
        page = site / "api" / f"{module_name.removeprefix('arxiv_embeddings.')}.html"
        assert set(names) - Links(page.read_text(encoding="utf-8")).anchors == set()
