"""The map in one file, in Chromium: what people see, click and type."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arxiv_embeddings.explore.map import LegendEntry, MapContent, MapFile, render_map
from arxiv_embeddings.explore.plots import OTHER_COLOR
from tests.fakes.maps import HOSTILE, make_content

# pixels of the map that differ from its ground, by far
COUNT_COLORED = """(() => { const { data } = pen.getImageData(0, 0, image.width, image.height); let n = 0;
  for (let i = 0; i < data.length; i += 4) n += Math.max(data[i], data[i + 1], data[i + 2]) - Math.min(data[i], data[i + 1], data[i + 2]) > 60;
  return n; })()"""


@pytest.fixture(scope="module")
def content() -> MapContent:
    return make_content(10_000)


@pytest.fixture(scope="module")
def file(content: MapContent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("map") / "map.html"
    path.write_text(render_map(content), encoding="utf-8")
    return path


def show(page: Any, path: Path, address: str = "") -> None:
    "Open a map and wait until its texts can be searched."
    page.emulate_media(reduced_motion="reduce")  # no flights that tests would have to wait for
    page.goto(path.as_uri() + address)
    page.wait_for_selector("html[data-ready]", state="attached")
    settle(page)


def show_content(page: Any, folder: Path, content: MapContent) -> None:
    (folder / "map.html").write_text(render_map(content), encoding="utf-8")
    show(page, folder / "map.html")


def settle(page: Any) -> None:
    "Wait for the picture that is painted once the map is at rest."
    page.wait_for_timeout(300)


def place_of(page: Any, paper_id: str) -> tuple[float, float]:
    "Where a paper is in the window."
    x, y = page.evaluate(
        """(id) => { const i = papers.texts.paper_id.indexOf(id), box = $("points").getBoundingClientRect();
        const [x, y] = toScreen(papers.x[i], papers.y[i]); return [x + box.x, y + box.y]; }""",
        paper_id,
    )
    return x, y


def tell_speed(page: Any, path: Path) -> str:
    "Figures for whoever reads the log; no test depends on them."
    page.evaluate(
        "() => { window.times = []; const tick = (now) => { times.push(now); requestAnimationFrame(tick) }; requestAnimationFrame(tick); }"
    )
    page.mouse.move(800, 400)
    page.mouse.down()
    for step in range(40):
        page.mouse.move(800 + 100 * np.sin(step / 9), 400 + 60 * np.cos(step / 9) - 60)
    page.mouse.up()
    times = page.evaluate("times")
    painted = page.evaluate("performance.getEntriesByName('map painted')[0].startTime")
    frames = 1000 * (len(times) - 1) / (times[-1] - times[0])
    return f"{path.stat().st_size:,} bytes, painted after {painted:.0f} ms, {frames:.0f} frames a second while panning"


def test_a_map_opens_from_a_file_and_asks_nobody(page: Any, file: Path) -> None:
    show(page, file)
    assert page.evaluate(COUNT_COLORED) > 5_000
    assert page.inner_text("h1") == "Map of 10,000 papers"
    assert "0.912" in page.inner_text("#about")
    assert page.errors == []
    print(tell_speed(page, file))
    assert page.requests == [file.as_uri()]


def test_a_map_of_120_000_papers(page: Any, tmp_path: Path) -> None:
    content = make_content(120_000)
    path = tmp_path / "map.html"
    path.write_text(render_map(content), encoding="utf-8")
    assert path.stat().st_size < 15e6
    show(page, path)
    print(tell_speed(page, path))
    page.keyboard.press("0")
    page.fill("#search", content.papers["title"][-1])
    settle(page)
    assert page.inner_text("#found") == "1 paper matches."
    page.fill("#search", "")
    settle(page)
    page.mouse.click(*place_of(page, content.papers["paper_id"][-1]))
    assert page.inner_text("#paper h2") == content.papers["title"][-1]
    assert page.requests == [path.as_uri()]
    assert page.errors == []


def test_dragging_and_the_wheel_move_the_map(page: Any, file: Path) -> None:
    show(page, file)
    before = place_of(page, "1501.00050")
    page.mouse.move(700, 300)
    page.mouse.down()
    page.mouse.move(760, 260)
    page.mouse.up()
    after = place_of(page, "1501.00050")
    assert np.allclose(np.subtract(after, before), (60, -40), atol=0.01)
    assert page.is_hidden("#paper"), "a drag is no click"
    corner = place_of(page, "1501.10000")
    page.mouse.move(*corner)
    page.mouse.wheel(0, -200)
    settle(page)
    assert page.evaluate("view.zoom") > 1.2
    assert np.allclose(place_of(page, "1501.10000"), corner, atol=2), "the place under the pointer stays"


def test_hovering_shows_title_authors_categories_and_year(page: Any, file: Path, content: MapContent) -> None:
    show(page, file)
    assert page.is_hidden("#tip")
    page.mouse.move(*place_of(page, "1501.10000"))
    shown = page.inner_text("#tip").split("\n")
    categories = content.papers["categories"][-1]
    assert shown == [content.papers["title"][-1], content.papers["authors"][-1], f"{categories} · {content.years[-1]}"]
    page.mouse.move(1270, 10)
    assert page.is_hidden("#tip")


def test_search_lists_and_highlights_while_typing(page: Any, file: Path, content: MapContent) -> None:
    show(page, file)
    all_colored = page.evaluate(COUNT_COLORED)
    page.type("#search", "Quantation graph")
    settle(page)
    titles = content.papers["title"]
    texts = [f" {title} {author}".lower() for title, author in zip(titles, content.papers["authors"], strict=True)]
    expected = sum(" quantation" in text and " graph" in text for text in texts)
    assert 100 < expected < 1000
    assert page.inner_text("#found") == f"{expected} papers match, the first 100 are listed."
    assert page.locator("#results li").count() == 100
    assert 0 < page.evaluate(COUNT_COLORED) < all_colored / 2
    count_faint = "new Uint32Array(image.data.buffer).filter((pixel) => pixel === 0xffe8e4e3).length"
    assert page.evaluate(count_faint) > 1000, "the other papers are still there, in #e3e4e8"
    page.fill("#search", "1501.04321")
    assert page.locator("#results li").count() == 1
    assert titles[4320] in page.inner_text("#results")
    page.fill("#search", "emile zoe 1501.04321")  # accents and the order of words do not matter
    assert page.locator("#results li").count() == 1
    page.fill("#search", "no such words")
    assert page.inner_text("#found") == "0 papers match."
    assert page.get_attribute("#found", "aria-live") == "polite"


def test_a_click_opens_the_paper_and_its_neighbors(page: Any, file: Path, content: MapContent) -> None:
    show(page, file)
    page.mouse.click(*place_of(page, "1501.10000"))
    assert page.inner_text("#paper h2") == content.papers["title"][-1]
    link = page.locator("#paper a")
    assert link.get_attribute("href") == "https://arxiv.org/abs/1501.10000"
    assert "noopener" in link.get_attribute("rel")
    listed = [page.locator("#paper li small").nth(number).inner_text().split(" · ")[-1] for number in range(10)]
    assert listed == [content.papers["paper_id"][row] for row in content.neighbors[-1]]
    assert page.inner_text("#paper h3") == "Nearest papers, by the vectors"
    assert place_of(page, "1501.10000")[0] < page.locator("#paper").bounding_box()["x"], "the panel leaves it visible"
    page.locator("#paper li button").first.click()
    assert page.inner_text("#paper h2") == content.papers["title"][content.neighbors[-1][0]]
    assert page.url.endswith(f"#{listed[0]}")


def test_a_link_opens_its_paper(page: Any, file: Path, content: MapContent) -> None:
    show(page, file, "#1501.00100")
    assert page.inner_text("#paper h2") == content.papers["title"][99]
    x, y = place_of(page, "1501.00100")
    assert 300 < x < 940 and 0 < y < 800, "beside the panel"  # noqa: PT018
    page.evaluate("location.hash = '#1501.00200'")
    settle(page)
    assert page.inner_text("#paper h2") == content.papers["title"][199]
    page.keyboard.press("Escape")
    assert "#" not in page.url
    page.evaluate("location.hash = '#9999.00001'")
    settle(page)
    assert page.inner_text("#found") == "The map has no paper 9999.00001."


def test_years_and_categories_filter(page: Any, file: Path, content: MapContent) -> None:
    show(page, file)
    page.fill("#from", "2010")
    page.fill("#to", "2012")
    within = (content.years >= 2010) & (content.years <= 2012)
    assert page.inner_text("#found") == f"{within.sum():,} of 10,000 papers shown."
    page.locator("#legend label").nth(2).click()
    within &= content.group_of != 2
    assert page.inner_text("#found") == f"{within.sum():,} of 10,000 papers shown."
    settle(page)
    colors = page.evaluate(
        "[...new Set(new Uint32Array(pen.getImageData(0, 0, image.width, image.height).data.buffer))]"
    )
    assert 0xFF739E00 not in colors  # the third color, #009E73
    assert page.evaluate("state.filter((one) => one === SHOWN).length") == within.sum()
    page.click("#all")
    page.fill("#to", "2005")  # below the other end, at which it stops
    assert page.inner_text("#until") == "2010"


def test_texts_of_a_corpus_stay_text(page: Any, tmp_path: Path, content: MapContent) -> None:
    hostile = HOSTILE[0] + HOSTILE[2]
    papers = content.papers | {name: [hostile, *content.papers[name][1:]] for name in ("authors", "categories")}
    papers["paper_id"] = [hostile, *content.papers["paper_id"][1:]]
    labels = [dataclasses.replace(content.labels[0], text=hostile), *content.labels[1:]]
    groups = [dataclasses.replace(content.groups[0], name=hostile, members=[hostile]), *content.groups[1:]]
    about = {hostile: hostile}
    facts = {"title": hostile, "about": about, "colored_by": hostile}
    changed = dataclasses.replace(content, papers=papers, labels=labels, groups=groups, **facts)
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    show_content(page, tmp_path, changed)
    page.fill("#search", "hacked")
    assert page.locator("#results li").count() >= 4
    for title in HOSTILE:
        page.evaluate("(title) => openPaper(papers.texts.title.indexOf(title), true)", title)
        assert page.evaluate("$('paper').querySelector('h2').textContent") == title
    page.evaluate(
        "openPaper(papers.texts.paper_id.indexOf(document.title), true)"
    )  # the first paper, whose id is hostile
    assert page.evaluate("document.title") == hostile
    x, y = place_of(page, hostile)
    page.mouse.move(x, y)
    settle(page)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, b:not(#tip b), script:not([type])").count() == 1  # the map's own script
    assert page.locator("#paper a").count() == 0, "no link for an id that arXiv does not have"
    assert page.errors == []
    assert len(page.requests) == 1


def test_the_policy_of_the_file_lets_nothing_else_run_or_load(page: Any, file: Path) -> None:
    show(page, file)
    page.evaluate(
        """() => { const script = document.createElement("script"); script.textContent = "window.hacked = 1";
        document.body.append(script); const image = new Image(); image.src = "https://example.org/x.png"; document.body.append(image); }"""
    )
    with pytest.raises(Exception, match="Failed to fetch"):
        page.evaluate("fetch('https://example.org/')")
    assert page.evaluate("window.hacked") is None
    assert len(page.errors) >= 3
    assert all("Content Security Policy" in error for error in page.errors)


def test_everything_works_by_keyboard(page: Any, file: Path) -> None:
    show(page, file)
    focused = "document.activeElement.id || document.activeElement.className"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "skip"
    page.keyboard.press("/")
    assert page.evaluate(focused) == "search"
    page.keyboard.type("1501.00100")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.evaluate(focused) == "paper"
    assert "1501.00100" in page.inner_text("#paper")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Escape")
    assert page.is_hidden("#paper")
    assert page.evaluate(focused) == "points"
    page.keyboard.press("Escape")
    assert page.input_value("#search") == ""
    page.keyboard.press("0")
    begin = page.evaluate("[view.x, view.zoom]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    x, zoom = page.evaluate("[view.x, view.zoom]")
    assert x > begin[0]
    assert zoom == pytest.approx(1.5 * begin[1])
    page.keyboard.press("Enter")  # the paper in the middle
    assert page.is_visible("#paper")
    names = page.evaluate(
        "[...document.querySelectorAll('button, input, [tabindex=\"0\"]')].map((one) => one.ariaLabel || one.labels?.[0]?.textContent || one.textContent)"
    )
    assert all(name and name.strip() for name in names), "each control has a name for screen readers"


def test_light_and_dark(page: Any, file: Path) -> None:
    page.emulate_media(color_scheme="dark")
    show(page, file)
    ground = "[...pen.getImageData(2, 2, 1, 1).data].slice(0, 3)"
    assert page.evaluate(ground) == [16, 18, 22]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 18, 22)"
    page.screenshot(path="screenshots/map_dark.png")
    page.click("#theme")
    settle(page)
    assert page.evaluate(ground) == [255, 255, 255]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_flights_only_for_those_who_want_motion(page: Any, file: Path) -> None:
    show(page, file)
    page.evaluate("openPaper(5, true)")
    at_once = page.evaluate("view.zoom")
    assert at_once > 1
    page.emulate_media(reduced_motion="no-preference")
    page.evaluate("view.zoom = 1; openPaper(5, true)")
    assert page.evaluate("view.zoom") < at_once
    page.wait_for_timeout(700)
    assert page.evaluate("view.zoom") == pytest.approx(at_once)


def test_a_narrow_window(page: Any, file: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 760})
    show(page, file, "#1501.00100")
    assert page.evaluate(COUNT_COLORED) > 500
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def without(content: MapContent, n_papers: int) -> MapContent:
    "A map that knows nothing but ids and places."
    group = LegendEntry("all", [], n_papers, OTHER_COLOR, OTHER_COLOR)
    return MapContent(
        {"paper_id": content.papers["paper_id"][:n_papers]},
        content.places[:n_papers],
        np.zeros(n_papers, dtype=np.int64),
        [group],
        np.zeros(n_papers, dtype=np.uint8),
    )


@pytest.mark.parametrize("n_papers", [1, 3, 500])
def test_papers_without_titles_categories_and_years(
    page: Any, tmp_path: Path, content: MapContent, n_papers: int
) -> None:
    show_content(page, tmp_path, without(content, n_papers))
    assert page.is_hidden("#legend")
    assert page.is_hidden("#years")
    page.mouse.click(*place_of(page, "1501.00001"))
    assert re.match(r"1501\.\d{5}$", page.inner_text("#paper h2"))
    assert page.locator("#paper li").count() == min(n_papers - 1, 10)
    assert page.errors == []


def test_papers_at_one_place(page: Any, tmp_path: Path, content: MapContent) -> None:
    same = without(content, 20)
    show_content(page, tmp_path, dataclasses.replace(same, places=np.ones((20, 2), dtype=np.float32)))
    page.mouse.click(*place_of(page, "1501.00007"))
    assert page.locator("#paper li").count() == 10
    assert page.inner_text("#paper h3") == "Nearest papers on the map"
    assert page.errors == []


def test_some_papers_without_a_year(page: Any, tmp_path: Path, content: MapContent) -> None:
    years = content.years.copy()
    years[:30] = 0
    show_content(page, tmp_path, dataclasses.replace(content, years=years))
    assert page.inner_text("#yearless") == "30 without a year: hidden once the range is narrowed."
    page.fill("#from", "2000")
    assert page.inner_text("#found") == f"{(years >= 2000).sum():,} of 10,000 papers shown."


def test_a_notebook_shows_the_map_in_a_frame(page: Any, file: Path, content: MapContent) -> None:
    page.set_content(f"<div style='width: 900px'>{MapFile(file, content)._repr_html_()}</div>")
    frame = page.frames[1]
    frame.wait_for_selector("html[data-ready]", state="attached")
    settle(page)
    assert frame.evaluate(COUNT_COLORED) > 1_000
    frame.fill("#search", "1501.00100")
    frame.click("#results button")
    assert "1501.00100" in frame.inner_text("#paper")
    assert page.locator("iframe").bounding_box()["height"] <= 620
    with pytest.raises(Exception, match="Blocked a frame"):
        frame.evaluate("parent.document.title")
    assert [one for one in page.requests if not one.startswith("about:")] == []
