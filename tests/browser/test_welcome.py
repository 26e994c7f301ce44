"""What a person meets after `make lab`: the welcome page, in two clicks the neighbors of a paper, and git stays clean."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import Lab, run_all

pytestmark = pytest.mark.slow


def git_diff(folder: Path) -> str:
    "Return what git says has changed."
    words = (["status", "--short"], ["diff"])
    return "".join(
        subprocess.run(["git", *one], cwd=folder, capture_output=True, text=True, check=True).stdout for one in words
    )


def test_neighbors_of_a_chosen_paper_in_two_clicks_and_git_stays_clean(page: Any, lab: Lab) -> None:
    lab.open(page)
    shown = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    assert shown.locator("h1").first.inner_text().startswith("Welcome")
    assert page.locator(".jp-Dialog").count() == 0
    pictures = "[...document.querySelectorAll('.jp-MarkdownOutput img')].map(one => one.naturalWidth > 300)"
    assert page.evaluate(pictures) == [True]
    run_all(page)  # the first click
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts() == []
    assert shown.locator("canvas").count() > 0
    title = "Diffing for Betrayal: Update-Level Detection of Extensions That Turn Malicious"
    shown.locator(".jupyter-button", has_text=title).first.click()  # the second
    paper = shown.locator(".arxiv-paper", has_text=title)
    paper.wait_for(timeout=20_000)
    nearest = shown.locator(".widget-hbox", has_text="Turncoats: A Corpus of Browser Extensions").last
    nearest.wait_for(timeout=20_000)
    assert "0.78" in nearest.inner_text()
    lab.save(page)
    assert git_diff(lab.folder) == ""
    assert [one for one in page.requests if not one.startswith((lab.address, "data:", "blob:"))] == []
    assert [one for one in page.requests if "/lab/api/news" in one or "/lab/api/update" in one] == []  # asked elsewhere
    assert page.errors == []
