"""The explorer without a browser: widgets are set from Python, papers that lack something, text that looks like markup."""

import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from arxiv_embeddings import InputError, Run, embed_papers
from arxiv_embeddings.explore.widgets import ExplorerView, ShownExplorer, explore_run
from tests.fakes.letters import LetterEncoder

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def make_run(folder: Path, n_papers: int, **columns: list[object]) -> Run:
    "Papers with ids and abstracts, and the columns that are given."
    papers = [
        {"paper_id": f"p{number}", "abstract": "word " * (number % 7 + 1) + "z" * number}
        | {name: values[number % len(values)] for name, values in columns.items()}
        for number in range(n_papers)
    ]
    return embed_papers(papers, folder / "run", encoder=LetterEncoder()).run


def list_texts(view: ExplorerView) -> list[str]:
    "Every text that a view shows as HTML."
    lists = (view.table, view.paper.neighbors)
    return [
        view.paper.facts.value,
        view.status.box.value,
        view.map.legend.value,
        *(note.value for one in lists for note in one.notes),
    ]


@pytest.mark.parametrize("n_papers", [1, 2, 3, 9])
def test_papers_without_titles_categories_and_years_are_explored(n_papers: int, tmp_path: Path) -> None:
    explorer = make_run(tmp_path, n_papers).explore()
    view = explorer.view
    assert (view.controls.years, explorer.colored_by) == (None, "")
    assert view.table.buttons[0].description == "p0"
    view.map.scatter.widget.selection = np.array([0], dtype=np.uint32)
    assert "(no title)" in view.paper.facts.value
    assert len(explorer.neighbors(0)) == n_papers - 1
    assert view.paper.neighbors.counted.value.startswith("no neighbors" if n_papers == 1 else f"1 to {n_papers - 1} of")
    view.controls.text.value = "zz"
    assert len(explorer.matches()) == max(n_papers - 2, 0)
    assert explorer.selection()["paper_id"].tolist() == ["p0"]


def test_papers_with_the_same_vector_are_explored(tmp_path: Path) -> None:
    papers = [{"paper_id": f"p{number}", "abstract": "the same"} for number in range(6)]
    explorer = embed_papers(papers, tmp_path / "run", encoder=LetterEncoder()).run.explore()
    explorer.view.map.scatter.widget.selection = np.array([2], dtype=np.uint32)
    found = explorer.neighbors(2)
    assert sorted(found["row"]) == [0, 1, 3, 4, 5]
    assert set(found["random_percentile"]) == {100.0}  # no random pair is nearer
    assert np.isfinite(explorer.layout.places).all()


def test_a_column_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, 5, title=["A"])
    with pytest.raises(InputError, match=r"^no column 'venue'; available: paper_id, .*title.*abstract") as caught:
        explore_run(run, color="venue")
    assert "\n" not in str(caught.value)
    explorer = run.explore()
    with pytest.raises(InputError, match=r"^no column 'venue'; available: paper_id, "):
        explorer.filter(venue="Paris")
    assert len(explorer.matching) == 5


def test_a_run_without_papers_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    run.metadata["parts"], run.metadata["n_papers"] = [], 0
    with pytest.raises(InputError, match="has no papers yet: embed some first"):
        run.explore()


def test_text_of_a_corpus_is_never_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path, 6, title=[HOSTILE], categories=[["cs.<b>"], ["cs.CL"]], authors=[HOSTILE])
    view = run.explore().view
    view.map.scatter.widget.selection = np.array([0], dtype=np.uint32)
    view.controls.category.value = "<i>"
    texts = list_texts(view)
    assert not [text for text in texts if "<script" in text or "<img" in text or "<i>" in text or "cs.<b>" in text]
    assert "&lt;script&gt;" in view.paper.facts.value
    assert "cs.&lt;b&gt; (3)" in view.map.legend.value
    assert "&lt;i&gt;" in view.status.box.value


def test_an_error_in_a_widget_is_one_line_and_changes_nothing(tmp_path: Path) -> None:
    view = make_run(tmp_path, 6, title=["One", "Two"]).explore().view
    view.controls.text.value = "two"
    view.controls.column.value = "title"
    view.controls.condition.value = "1..2"
    assert "holds no numbers: give a text, not a range" in view.status.box.value
    assert view.explorer.matching.tolist() == [1, 3, 5]
    view.controls.condition.value = "one"
    assert view.explorer.matching.tolist() == []
    assert view.map.scatter.widget.filter.tolist() == []
    assert view.table.counted.value == "no papers"


def test_a_stale_index_is_told_in_the_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = make_run(tmp_path, 6).explore().view

    def refuse(run: Run) -> None:
        raise InputError("index.faiss is stale")

    monkeypatch.setattr("arxiv_embeddings.explore.explorer.open_index", refuse)
    view.map.scatter.widget.selection = np.array([1], dtype=np.uint32)
    assert view.explorer.selected.tolist() == [1]
    assert "index.faiss is stale" in view.status.box.value


def test_many_points_are_sent_as_bytes_and_the_table_reads_a_page(tmp_path: Path) -> None:
    view = make_run(tmp_path, 400, title=["A title"]).explore().view
    state = view.map.scatter.widget.get_state(["points", "selection"])
    assert isinstance(state["points"]["view"], memoryview)
    assert isinstance(state["selection"]["view"], memoryview)
    read = []
    view.table.show(np.arange(400), lambda rows: read.extend(rows.tolist()) or [("title", "")] * len(rows))
    assert read == list(range(10))


SHOWN = "from arxiv_embeddings import open_run\nopen_run({!r}).explore()"


@pytest.mark.slow
def test_a_program_that_runs_a_notebook_gets_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    run = make_run(tmp_path, 12, title=["A title"])
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SHOWN.format(str(run.folder)))])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    picture, line = (output["data"] for output in notebook.cells[0].outputs)
    assert picture["image/png"].startswith("iVBOR")
    assert line["text/html"].count("run this cell in JupyterLab to explore") == 1
    assert "widgets" not in notebook.metadata


def test_a_script_has_an_explorer_and_loads_no_widgets(tmp_path: Path) -> None:
    run = make_run(tmp_path, 6)
    script = f"""
import sys
from arxiv_embeddings import open_run
explorer = open_run({str(run.folder)!r}).explore()
explorer.search("zzz")
print(explorer.matches()["paper_id"].tolist(), {{"jscatter", "ipywidgets"}} & set(sys.modules))
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown == "['p3', 'p4', 'p5'] set()\n"


def test_without_jupyter_scatter_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = make_run(tmp_path, 6).explore()
    shown = []
    monkeypatch.setattr("arxiv_embeddings.explore.widgets.find_spec", lambda name: None)
    monkeypatch.setattr("IPython.display.display", lambda value, **_: shown.append(value))
    explorer._ipython_display_()
    assert "pip install 'arxiv-embeddings[explore]'" in shown[1].data.replace("&#x27;", "'")
    assert isinstance(explorer, ShownExplorer)
    assert len(shown) == 2


def test_a_map_that_loads_gets_the_last_state_when_it_is_drawn(tmp_path: Path) -> None:
    view = make_run(tmp_path, 6).explore().view
    view.map.wait()
    for text in ("zz", "zzz"):
        view.explorer.search(text)
    view.explorer.select(4)
    assert (view.map.scatter.widget.filter, view.map.scatter.widget.selection.tolist()) == (None, [])
    assert view.table.counted.value == "1 to 3 of 3 papers"  # all but the map follows at once
    view.map.end_waiting()
    assert (view.map.scatter.widget.filter.tolist(), view.map.scatter.widget.selection.tolist()) == ([3, 4, 5], [4])
    view.explorer.clear()
    assert (view.map.scatter.widget.filter, view.map.scatter.widget.selection.tolist()) == (None, [])


def test_a_selection_on_the_map_does_not_go_back_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, sent = make_run(tmp_path, 6).explore().view, []
    monkeypatch.setattr(view.map.scatter, "filter", lambda rows: sent.append(("filter", rows)))
    monkeypatch.setattr(view.map.scatter, "selection", lambda rows: sent.append(("selection", rows.tolist())))
    view.map.scatter.widget.selection = np.array([1], dtype=np.uint32)
    assert view.explorer.selected.tolist() == [1]
    assert sent == []
    view.explorer.select(2)  # in the table
    assert sent == [("selection", [2])]
