"""The documentation site in a browser: pictures are there, search finds, and nothing is asked of another host."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.local_server import LocalServer

pytestmark = pytest.mark.slow
PICTURES = "[...document.querySelectorAll('article img')].map(one => one.complete && one.naturalWidth > 100)"


class QuietHandler(SimpleHTTPRequestHandler):
    "A server of files that writes no log."

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class SiteServer(LocalServer):
    "Serves the site from this machine."

    folder: Path

    def make_handler(self) -> Any:
        return partial(QuietHandler, directory=self.folder)


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    "The address of the site."
    with SiteServer(site) as server:
        yield server.address


@pytest.fixture
def quiet_page(page: Any, address: str) -> Iterator[Any]:
    "A page that, in the end, has written no error and has asked no other host."
    yield page
    assert page.errors == []
    assert [one for one in page.requests if not one.startswith((address, "data:", "blob:"))] == []


def test_home_shows_the_map(quiet_page: Any, address: str) -> None:
    quiet_page.goto(f"{address}/index.html", wait_until="networkidle")
    assert quiet_page.locator("h1").inner_text().startswith("arxiv_embeddings")
    assert quiet_page.evaluate(PICTURES) == [True]
    quiet_page.click("article a:has-text('Quick start')")
    quiet_page.wait_for_url("**/quick_start.html")


def test_tutorial_shows_its_outputs_and_its_picture(quiet_page: Any, address: str) -> None:
    quiet_page.goto(f"{address}/tutorials/your_own_papers.html", wait_until="networkidle")
    assert quiet_page.evaluate(PICTURES) == [True]
    assert "rejected, duplicate id" in quiet_page.locator("article").inner_text()
    table = quiet_page.locator("article table:has(caption)")  # a result of a search, as JupyterLab shows it
    assert table.locator("tbody tr").count() == 3
    assert "#| " not in quiet_page.locator("article").inner_text()


def test_api_page_shows_parameters_beside_the_story(quiet_page: Any, address: str) -> None:
    quiet_page.goto(f"{address}/api/runs.embed.html#embed_papers", wait_until="networkidle")
    table = quiet_page.locator("#embed_papers ~ .md-typeset__scrollwrap table, #embed_papers ~ table").first
    shown = {row.split("\t")[0].strip(): row for row in table.locator("tbody tr").all_inner_texts()}
    assert {"papers", "out", "model", "append", "returns"} <= set(shown)
    assert "str | Path" in shown["model"]
    assert "'minilm'" in shown["model"]
    assert "EmbedResult" in shown["returns"]
    assert quiet_page.locator("#embed_papers").is_visible()


def test_search_finds_a_function(quiet_page: Any, address: str) -> None:
    quiet_page.goto(f"{address}/index.html", wait_until="networkidle")
    quiet_page.click(".md-search__input")
    quiet_page.keyboard.type("find_similar", delay=30)
    quiet_page.wait_for_selector(".md-search-result__item a[href*='h=find_similar']", timeout=20_000)
    first = quiet_page.locator(".md-search-result__item a").first
    assert "explore.search.html" in first.get_attribute("href")
    first.click()
    quiet_page.wait_for_url("**/explore.search.html*")


def test_dark_colors_are_kept(quiet_page: Any, address: str) -> None:
    quiet_page.emulate_media(color_scheme="dark")
    quiet_page.goto(f"{address}/pages/performance.html", wait_until="networkidle")
    background = quiet_page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) < 200
    assert "papers/s" in quiet_page.locator("article pre").first.inner_text()


def test_pages_open_from_a_disk(page: Any, site: Path) -> None:
    page.goto((site / "index.html").as_uri())
    page.click("article a:has-text('Welcome')")
    page.wait_for_url("**/tutorials/welcome.html")
    assert page.locator("article table:has(caption) tbody tr").count() >= 5
    assert [one for one in page.requests if not one.startswith(("file:", "data:", "blob:"))] == []
