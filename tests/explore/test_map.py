"""Maps of runs that lack something, places that cannot be written to, and pictures."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from arxiv_embeddings import InputError, Run, embed_papers, sample_papers
from arxiv_embeddings.cli.main import app
from arxiv_embeddings.explore.map import color_papers, make_map, render_map
from arxiv_embeddings.explore.plots import OTHER_COLOR, read_values
from tests.fakes.letters import LetterEncoder
from tests.fakes.maps import make_content


def read_blocks(path: Path) -> dict[str, Any]:
    "The JSON blocks of a map."
    found = re.findall(r'id="(head|texts)">([\w+/=]+)<', path.read_text())
    return {name: json.loads(gzip.decompress(base64.b64decode(block))) for name, block in found}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return embed_papers(sample_papers(), tmp_path_factory.mktemp("sample") / "run", encoder=LetterEncoder()).run


def test_the_verb_writes_the_same_file_twice(run: Run) -> None:
    first = run.map()
    written = first.path.read_bytes()
    assert first.path == run.folder / "map.html"
    assert run.map(seed=0).path.read_bytes() == written
    packed = re.findall(r'id="(?:head|marks|texts|near)">([\w+/=]+)<', written.decode())
    assert [base64.b64decode(block)[4:8] for block in packed] == [bytes(4)] * 4  # gzip's time of writing
    blocks = read_blocks(first.path)
    assert blocks["head"]["n"] == run.n_papers
    assert blocks["head"]["k"] == 10
    assert sorted(blocks["texts"]["paper_id"]) == sorted(run.paper_ids)
    assert set(blocks["texts"]) == {"paper_id", "title", "authors", "categories"} & {"paper_id", *run.columns}
    assert "trustworthiness 0." in dict(blocks["head"]["about"])["layout"]
    assert [path.name for path in run.folder.iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.parametrize("n_papers", [1, 2, 3, 4, 25])
def test_few_papers_with_nothing_but_an_abstract(n_papers: int, tmp_path: Path) -> None:
    papers = pd.DataFrame(
        {"paper_id": [f"p{n}" for n in range(n_papers)], "abstract": [f"Text {chr(97 + n)}" for n in range(n_papers)]}
    )
    bare = embed_papers(papers, tmp_path / "run", encoder=LetterEncoder()).run
    head = read_blocks(bare.map().path)["head"]
    assert (head["n"], head["k"], head["years"]) == (n_papers, min(10, n_papers - 1), [0, 0])
    assert [group["light"] for group in head["groups"]] == [OTHER_COLOR]
    assert bare.map(tmp_path / "map.png").path.stat().st_size > 1000


def test_papers_with_equal_vectors(tmp_path: Path) -> None:
    papers = pd.DataFrame({"paper_id": [f"p{n}" for n in range(30)], "abstract": ["The same text"] * 30})
    same = embed_papers(papers, tmp_path / "run", encoder=LetterEncoder()).run
    assert np.ptp(same.embeddings(), axis=0).max() == 0
    assert read_blocks(same.map().path)["head"]["n"] == 30


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (None, {"color": "topic"}, r"has no column 'topic': choose one of paper_id, .*title"),
        ("map.pdf", {}, r"map\.pdf does not end in \.html, \.svg or \.png"),
        ("missing/map.html", {}, r"map\.html cannot be written: the folder .*missing does not exist"),
        ("file/map.html", {}, r"map\.html cannot be written: the folder .*file does not exist"),
        ("folder.html", {}, r"folder\.html is a folder: name a file"),
    ],
)
def test_what_is_refused(run: Run, tmp_path: Path, path: str | None, options: dict[str, str], message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        make_map(run, path and tmp_path / path, **options)
    assert "\n" not in str(caught.value)


def test_a_full_disk_or_a_place_without_permission_is_one_line(run: Run) -> None:
    result = CliRunner().invoke(app, ["map", str(run.folder), "--out", "/proc/map.html"])
    assert result.exit_code == 1
    assert re.fullmatch(r"error: /proc/.*map\.html.*: .+\n", result.stderr.splitlines(keepends=True)[-1])


def test_the_command_writes_what_the_verb_writes(run: Run, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["map", str(run.folder), "--out", str(tmp_path / "map.html"), "--quiet"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "map.html").read_bytes() == run.map().path.read_bytes()
    wrong = CliRunner().invoke(app, ["map", str(run.folder), "--color", "topic"])
    assert wrong.exit_code == 1
    assert "choose one of paper_id" in wrong.stderr


def test_colors_by_any_column(run: Run) -> None:
    for column, kind in {**run.columns, "archive": "string"}.items():
        groups, group_of = color_papers(read_values(run.read(), column), run.embeddings())
        assert sum(group.n for group in groups) == run.n_papers, (column, kind)
        assert np.bincount(group_of, minlength=len(groups)).tolist() == [group.n for group in groups]
        assert len(groups) <= 9
    flags = pa.chunked_array([[True, False, None]])
    assert {group.name for group in color_papers(flags, np.eye(3, dtype=np.float32))[0]} == {
        "True",
        "False",
        "rare or none",
    }


def test_many_categories_leave_few_papers_grey(run: Run) -> None:
    generator = np.random.default_rng(0)
    values = pa.chunked_array([[f"c{number}" for number in generator.integers(0, 150, 3000)]])
    groups, _ = color_papers(values, generator.normal(size=(3000, 8)).astype(np.float32))
    assert sum(group.n for group in groups if group.light == OTHER_COLOR) == 0
    assert sorted(member for group in groups for member in group.members) == sorted(set(values.to_pylist()))


def test_neighbors_are_in_the_file_or_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arxiv_embeddings.explore.map.MOST_COMPARED", 100)
    assert read_blocks(run.map().path)["head"]["k"] == 0
    assert read_blocks(run.map(neighbors=True).path)["head"]["k"] == 10


def test_a_map_of_many_papers_is_small() -> None:
    assert len(render_map(make_content(20_000))) / 20_000 < 15e6 / 120_000
