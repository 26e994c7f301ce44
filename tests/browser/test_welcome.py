"""What a person meets after `make lab`: the welcome page, in two clicks the neighbors of a paper, and git stays clean."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import Lab, run_all
from tests.fakes import ROOT

pytestmark = pytest.mark.slow
WELCOME = ROOT / "nbs" / "tutorials" / "welcome.ipynb"


def git_status(folder: Path) -> str:
    "Return what git says has changed."
    return subprocess.run(["git", "status", "--short"], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_neighbors_of_a_chosen_paper_in_two_clicks_and_git_stays_clean(page: Any, lab: Lab) -> None:
    lab.open(page)
    assert page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) h1").first.inner_text().startswith("Welcome")
    assert page.locator(".jp-Dialog").count() == 0
    assert page.evaluate(
        "[...document.querySelectorAll('.jp-MarkdownOutput img')].map(one => one.naturalWidth > 300)"
    ) == [True]
    run_all(page)
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    chooser = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .widget-dropdown select")
    chooser.scroll_into_view_if_needed()
    title = chooser.locator("option").nth(100).inner_text()
    chooser.select_option(title)
    caption = page.locator(".jupyter-widgets-output-area caption, .widget-output caption", has_text=title)
    caption.wait_for(timeout=20_000)
    rows = caption.locator("xpath=..").locator("tbody tr")
    assert rows.count() == 5
    assert title not in rows.all_inner_texts()[0]
    lab.save(page)
    assert git_status(lab.folder) == "", subprocess.run(
        ["git", "diff"], cwd=lab.folder, capture_output=True, text=True
    ).stdout
    assert [one for one in page.requests if not one.startswith((lab.address, "data:", "blob:"))] == []
    assert page.errors == []
