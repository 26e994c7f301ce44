"""Tutorials in a real JupyterLab: every cell runs, figures and widgets are on the page, a click and a lasso select."""

import io
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from arxiv_embeddings import sample_papers
from tests.browser.conftest import Lab, run_all, wait_until_idle
from tests.fakes import ROOT

pytestmark = pytest.mark.slow
# `welcome` and `explore` have tests of their own
TUTORIALS = [
    pytest.param(path.stem, marks=pytest.mark.spark if "#| spark" in path.read_text(encoding="utf-8") else ())
    for path in sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))
    if path.stem not in ("welcome", "explore")
]
PAPERS = pd.read_csv(sample_papers(), dtype=str)


def check_page(page: Any, lab: Lab) -> None:
    "Check that no cell printed an error, that every picture is there, and that nothing else was asked for."
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts() == []
    widths = page.evaluate(
        "[...document.querySelectorAll('.jp-OutputArea-output img, .jp-MarkdownOutput img')].map(one => one.naturalWidth)"
    )
    assert all(width > 100 for width in widths), widths
    assert [one for one in page.requests if not one.startswith((lab.address, "data:", "blob:"))] == []
    assert page.errors == []


def find_colored(picture: bytes) -> list[tuple[float, float]]:
    "Places of a picture, in pixels from its upper left corner, that are neither grey nor white."
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    rows, columns = np.nonzero(np.ptp(pixels, axis=2) > 100)
    return [(float(x), float(y)) for x, y in zip(columns, rows, strict=True)]


def take_picture(page: Any, place: Any) -> bytes:
    "Take a picture of a place of the page."
    return page.screenshot(clip=place.bounding_box())


def draw_lasso(page: Any, x: float, y: float, radius: float) -> None:
    "Draw most of a circle with the mouse."
    page.mouse.move(x + radius, y)
    page.mouse.down()
    for step in range(1, 24):
        page.mouse.move(x + radius * math.cos(step / 4), y + radius * math.sin(step / 4))
        page.wait_for_timeout(15)
    page.mouse.up()


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs_from_top_to_bottom(name: str, page: Any, lab: Lab) -> None:
    lab.open(page, f"tutorials/{name}.ipynb?reset")  # no other page is open
    run_all(page, seconds=300)  # Spark starts, and a model is exported for it
    check_page(page, lab)


def check_click(page: Any, canvas: Any) -> Any:
    "Click a point: its paper and neighbors appear. Returns the line that counts papers."
    box, picture = canvas.bounding_box(), take_picture(page, canvas)
    colored = [(x, y) for x, y in find_colored(picture) if 60 < x < box["width"] - 20]  # beside the buttons
    assert len(colored) > 1000  # 144 points, not a blank canvas
    x, y = colored[len(colored) // 2]
    page.mouse.move(box["x"] + x + 2, box["y"] + y + 2)
    page.wait_for_timeout(800)  # the tooltip appears
    page.mouse.down()
    page.mouse.up()
    paper = page.locator(".arxiv-paper").first
    paper.wait_for(timeout=10_000)
    assert paper.inner_text().split("\n")[0] in set(PAPERS["title"])
    buttons = page.locator(".jp-OutputArea-output .widget-vbox button").all_inner_texts()
    assert len(set(buttons) & set(PAPERS["title"])) >= 10  # the neighbors, and a page of the table
    status = page.locator(".jp-OutputArea-output .widget-html", has_text="144 papers").first
    assert "1 selected" in status.inner_text()
    return status


def check_lasso(page: Any, canvas: Any, status: Any) -> None:
    "Draw a lasso, and run the cell that takes the selection: it shows a DataFrame."
    box = canvas.bounding_box()
    page.click("button[title='Activate lasso selection']")
    draw_lasso(page, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, 110)
    several = "[...document.querySelectorAll('.widget-html')].some(one => /, \\d\\d+ selected/.test(one.textContent))"
    page.wait_for_function(several)
    assert 10 < int(status.inner_text().split(", ")[1].split()[0]) < 100
    cell = page.locator(".jp-CodeCell", has_text="explorer.selection()").first
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(500)
    wait_until_idle(page)
    rows = cell.locator(".jp-OutputArea-output tbody tr")
    assert rows.count() == 5  # its `head`
    assert rows.first.locator("td").nth(1).inner_text() in set(PAPERS["paper_id"])


def check_search(page: Any, canvas: Any) -> None:
    "Search for a word, filter by a category that there is not, and clear both: map and table follow."
    canvas.scroll_into_view_if_needed()
    page.locator("button", has_text="clear").first.click()
    page.locator(".widget-label", has_text="1 to 10 of 144 papers").first.wait_for(timeout=10_000)
    page.wait_for_timeout(500)
    n_before = len(find_colored(take_picture(page, canvas)))
    search = page.locator("input[placeholder='words or an id, then Enter']").first
    search.fill("planet")
    search.press("Enter")
    page.locator(".widget-label", has_text="1 to 8 of 8 papers").first.wait_for(timeout=10_000)
    page.wait_for_timeout(500)
    assert len(find_colored(take_picture(page, canvas))) < n_before / 2
    category = page.locator("input[placeholder='category']").first
    category.fill("<b>")
    category.press("Enter")
    refused = page.locator("[role=alert]").first
    refused.wait_for(timeout=10_000)
    assert refused.inner_text().startswith("no paper has the category '<b>'")
    page.locator("button", has_text="clear").first.click()
    page.locator(".widget-label", has_text="1 to 10 of 144 papers").first.wait_for(timeout=10_000)


def test_click_lasso_and_search_in_the_explorer(page: Any, lab: Lab) -> None:
    lab.open(page, "tutorials/explore.ipynb?reset")  # no other page is open
    run_all(page)
    canvas = page.locator(".jp-OutputArea-output canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(2000)  # the points are drawn, and the map listens
    check_page(page, lab)
    status = check_click(page, canvas)
    check_lasso(page, canvas, status)
    check_search(page, canvas)
    assert page.errors == []
