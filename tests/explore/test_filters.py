"""Filters: any condition gives what plain Python gives, only the columns that are named are read, and nothing is run as code."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from arxiv_embeddings.explore.filters import (
    Combination,
    Condition,
    check_filter,
    compute_filter,
    parse_filter,
    select_papers,
)
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.runs.store import Run, RunWriter

PAPERS = pa.table(
    {
        "paper_id": [f"p{row}" for row in range(40)],
        "text_sha256": [f"{row:064x}" for row in range(40)],
        "title": [None if row % 7 == 0 else f"Title {row % 5}" for row in range(40)],
        "year": pa.array([None if row % 11 == 0 else 2000 + row % 9 for row in range(40)], pa.int32()),
        "share": pa.array([None if row % 13 == 0 else row / 8 for row in range(40)], pa.float32()),
        "categories": [None if row % 8 == 0 else [["cs.CV"], ["cs.CV", "math.CO"], []][row % 3] for row in range(40)],
    }
)
OPERATORS = {
    "=": lambda one, other: one == other,
    "!=": lambda one, other: one != other,
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "Forty papers in four parts."
    folder = tmp_path_factory.mktemp("filters") / "run"
    with RunWriter(folder, {"model": "by hand", "embedding_dim": 2, "fingerprint": {}}) as writer:
        for begin in range(0, 40, 10):
            writer.add_part(PAPERS.slice(begin, 10), np.ones((10, 2), dtype=np.float32))
    return Run(folder)


def draw_filter(generator: random.Random, levels: int) -> str:
    "Write a filter by chance."
    if levels and generator.random() < 0.7:
        kind = generator.choice(("and", "or", "not"))
        parts = [draw_filter(generator, levels - 1) for _ in range(1 if kind == "not" else generator.randint(2, 3))]
        return f"not ({parts[0]})" if kind == "not" else f" {kind} ".join(f"({part})" for part in parts)
    column = generator.choice(("year", "share", "title", "categories"))
    if generator.random() < 0.2:
        return f"{column} is {generator.choice(('', 'not '))}null"
    if column == "categories":
        return f"categories has {generator.choice(('cs.CV', 'CS.cv', 'math.CO', 'stat.ML'))}"
    values = {"year": ("2003", "2007.5", "1999"), "share": ("0.125", "3", "-1"), "title": ("'Title 3'", '"title 3"')}[
        column
    ]
    if column == "title" and generator.random() < 0.3:
        return "title has 'TITLE 3'"
    if generator.random() < 0.3:
        return f"{column} {generator.choice(('', 'not '))}in ({', '.join(values)})"
    return f"{column} {generator.choice(list(OPERATORS))} {generator.choice(values)}"


def test_paper(tree: Condition | Combination, paper: dict[str, Any]) -> bool | None:
    "The same in plain Python, with `None` for unknown."
    if isinstance(tree, Combination):
        parts = [test_paper(part, paper) for part in tree.parts]
        if tree.operator == "not":
            return None if parts[0] is None else not parts[0]
        decisive = tree.operator == "or"
        return decisive if decisive in parts else (None if None in parts else not decisive)
    value = paper[tree.column]
    if tree.operator == "is null":
        return value is None
    if value is None:
        return None
    words = [one.text for one in tree.values]
    if tree.operator == "has":
        return words[0].lower() in (value.lower() if isinstance(value, str) else [name.lower() for name in value])
    wanted = [one if isinstance(value, str) else float(one) for one in words]
    return value in wanted if tree.operator == "in" else OPERATORS[tree.operator](value, wanted[0])


test_paper.__test__ = False  # a helper, and no test


@pytest.mark.parametrize("seed", range(60))
def test_any_filter_gives_what_plain_python_gives(seed: int, run: Run) -> None:
    text = draw_filter(random.Random(seed), 3)
    tree = parse_filter(text)
    check_filter(tree, run.columns)
    expected = [test_paper(tree, paper) for paper in PAPERS.to_pylist()]
    assert compute_filter(tree, PAPERS).to_pylist() == expected, text
    if True in expected:
        assert select_papers(run, where=text).tolist() == [one is True for one in expected], text
    else:
        with pytest.raises(InputError, match="relax the filter"):
            select_papers(run, where=text)


def test_only_the_named_columns_are_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = Run.read_part
    monkeypatch.setattr(
        Run, "read_part", lambda self, part, columns: read.append(columns) or original(self, part, columns)
    )
    select_papers(run, where="year >= 2003 and not (year = 2005 or share is null)")
    assert read == [["year", "share"]] * 4
    read.clear()
    select_papers(run, "cs.CV", "year >= 2003")
    assert read == [["categories", "year"]] * 4


def test_a_wrong_filter_reads_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "read_part", lambda *given: pytest.fail("a part was read"))
    for text in ("year >", "yeer > 2003", "year > old", "categories = cs.CV", "year has 3"):
        with pytest.raises(InputError):
            select_papers(run, where=text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch hacked') = 1",
        "year >= (lambda: 2003)()",
        "[year for year in (1, 2)]",
        "year >= 2003; import os",
        "year >= {year}",
        "@year > 3",
        "`year` > 3",
    ],
)
def test_nothing_is_run_as_code(text: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        select_papers(run, where=text)
    assert list(tmp_path.iterdir()) == []


def test_a_filter_of_any_length_and_depth_ends_in_one_line(run: Run) -> None:
    long = " or ".join(f"year = {year}" for year in range(2000, 2400))
    assert select_papers(run, where=long).sum() == 36
    for text in ("not " * 5000 + "year = 2003", "(" * 5000, "year = " + "9" * 5000, "year = 1e999"):
        with pytest.raises(InputError) as caught:
            select_papers(run, where=text)
        assert len(str(caught.value)) < 400
        assert "\n" not in str(caught.value)
