"""The command line: what it prints can be read by programs, and what goes wrong is one line and an exit code."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.encoders.registry import known_models
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import read_papers, sample_papers, sample_relations
from arxiv_embeddings.papers.fetch import ArxivServers
from arxiv_embeddings.runs.store import Run, open_run
from tests.fakes.arxiv_server import FakeArxiv
from tests.fakes.hub_server import Hub


def invoke(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def in_own_process(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from arxiv_embeddings.cli.main import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "A run made by the command line, which tests may add files to."
    folder = tmp_path_factory.mktemp("cli") / "run"
    result = invoke("embed", sample_papers(), "--out", folder, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["n_embedded"], summary["n_accepted"], summary["rejected"]) == (144, 144, {})
    return open_run(folder)


def test_nothing_heavy_is_imported_for_help() -> None:
    heavy = "{'torch', 'openvino', 'transformers', 'pyarrow', 'pandas', 'faiss', 'sklearn', 'matplotlib', 'nbdev', 'fastcore'}"
    script = f"import sys, arxiv_embeddings.cli.main as cli; cli.app(['--help'], standalone_mode=False); print({heavy} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip().endswith("set()")
    assert all(
        name in shown for name in ("embed", "describe", "similar", "search", "index", "evaluate", "export", "models")
    )


@pytest.mark.parametrize(
    "name",
    [
        "embed",
        "describe",
        "similar",
        "search",
        "index",
        "evaluate",
        "export",
        "models",
        "plot",
        "map",
        "sample",
        "fetch",
    ],
)
def test_every_command_has_help(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("describe", "RUN"),
        ("models",),
        ("similar", "RUN", "0000.00001", "-k", "5"),
        ("similar", "RUN", "--row", "100", "--category", "cs.CV"),
        ("search", "RUN", "quantum error correction"),
        ("index", "RUN"),
        ("evaluate", "RUN", "--relations", str(sample_relations())),
        ("export", "RUN", "--to", "npy", "--to", "parquet"),
        ("plot", "RUN"),
        ("map", "RUN", "--color", "year"),
    ],
)
def test_json_and_text_of_every_command(words: tuple[str, ...], run: Run) -> None:
    filled = [str(run.folder) if word == "RUN" else word for word in words]
    result = invoke(*filled, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout, parse_constant=pytest.fail)  # NaN is no JSON
    text = invoke(*filled)
    assert text.exit_code == 0
    assert text.stdout.strip()
    assert not text.stdout.lstrip().startswith(("{", "["))


def test_similar_by_row_is_similar_by_id(run: Run) -> None:
    by_row = json.loads(invoke("similar", run.folder, "--row", 100, "--json").stdout)
    by_id = json.loads(invoke("similar", run.folder, run.paper_ids[100], "--json").stdout)
    assert by_row == by_id
    assert by_row == json.loads(invoke("similar", run.folder, f"arXiv:{run.paper_ids[100]}v2", "--json").stdout)
    assert len(by_row) == 5
    assert [paper["cosine"] for paper in by_row] == sorted((paper["cosine"] for paper in by_row), reverse=True)
    assert run.paper_ids[100] not in [paper["paper_id"] for paper in by_row]
    in_category = json.loads(invoke("similar", run.folder, "--row", 100, "--category", "cs.CV", "--json").stdout)
    assert ["cs.CV" in paper["categories"].split() for paper in in_category] == [True] * 5


def test_a_limit_is_continued_by_the_same_command_without_it(tmp_path: Path, run: Run) -> None:
    embed = ("embed", sample_papers(), "--out", tmp_path / "run", "--device", "cpu", "--json")
    counts = [
        json.loads(invoke(*embed, *more).stdout) for more in (("--limit", 20), ("--limit", 20), ("--limit", 30), (), ())
    ]
    assert [one["n_embedded"] for one in counts] == [20, 0, 10, 114, 0]
    assert [one["complete"] for one in counts] == [False, False, False, True, True]
    assert open_run(tmp_path / "run").paper_ids == run.paper_ids
    assert abs(open_run(tmp_path / "run").embeddings() - run.embeddings()).max() < 1e-6


@pytest.mark.slow
def test_what_int8_and_windows_did_is_said(tmp_path: Path) -> None:
    words = (
        "embed",
        sample_papers(),
        "--out",
        tmp_path / "run",
        "--precision",
        "int8",
        "--limit",
        70,
        "--max-tokens",
        64,
    )
    said = invoke(*words, "--long-text", "windows", "-q")
    assert said.exit_code == 0, said.output
    assert "int8 against float32 on 64 of these papers: cosine 0.99" in said.stdout
    assert "70 of them read in windows of 64 tokens" in said.stdout
    summary = json.loads(invoke(*words, "--long-text", "windows", "--json").stdout)
    assert (summary["n_truncated"], summary["n_in_windows"], summary["n_unknown"], summary["n_embedded"]) == (
        0,
        70,
        0,
        0,
    )
    assert 0.99 < summary["int8_check"]["smallest_cosine"] <= summary["int8_check"]["mean_cosine"] < 0.9999
    described = invoke("describe", tmp_path / "run").stdout
    assert "longer ones read in windows" in described
    assert "openvino, int8" in described
    refused = invoke(*words)
    assert (refused.exit_code, "long_text: windows there, truncate here" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--precision", "int8", "--engine", "torch"), "the engine torch has no int8: use --engine openvino"),
        (("--precision", "int8", "--minimum-cosine", "0.99999"), "int8 changes these papers too much"),
        (
            ("--pooling", "everything"),
            "pooling must be one of mean, cls, max, mean_sqrt_len, weightedmean, lasttoken, or",
        ),
    ],
)
def test_what_cannot_be_is_one_line(words: tuple[str, ...], line: str, tmp_path: Path) -> None:
    result = invoke("embed", sample_papers(), "--out", tmp_path / "run", "--device", "cpu", *words)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1), result.output
    assert line in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--precision", ("float32", "int8", "bfloat16", "float16")),
        ("--engine", ("openvino", "torch", "static")),
        ("--long-text", ("truncate", "windows")),
        ("--text", ("title+abstract", "abstract")),
    ],
)
def test_another_value_than_those_of_an_option_is_wrong_use(option: str, values: tuple, tmp_path: Path) -> None:
    result = invoke("embed", sample_papers(), "--out", tmp_path / "run", option, "everything")
    assert result.exit_code == 2
    assert all(value in result.stderr for value in (option, "everything", *values)), result.stderr
    assert not (tmp_path / "run").exists()


def test_a_stale_index_is_refused(tmp_path: Path) -> None:
    embed = ("embed", sample_papers(), "--out", tmp_path / "run", "--device", "cpu")
    invoke(*embed, "--limit", 20)
    invoke("index", tmp_path / "run")
    invoke(*embed, "--limit", 30)
    result = invoke("similar", tmp_path / "run", "--row", 0)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is stale" in result.stderr
    invoke("index", tmp_path / "run")
    assert invoke("similar", tmp_path / "run", "--row", 0).exit_code == 0


HEADER = b"id,title,abstract\n"
BAD_INPUTS = {
    "no such file": (None, "no such file or folder"),
    "no abstract column": (("papers.csv", b"id,title\n1,T\n"), "the columns are: id, title"),
    "truncated gzip": (
        ("papers.csv.gz", gzip.compress(HEADER + b"1,T,A\n" * 5000, mtime=0)[:-20]),
        "truncated or damaged",
    ),
    "too many fields": (("papers.csv", HEADER + b"1,T,A,B\n"), "1 rejected, malformed row: row 1"),
    "not UTF-8": (("papers.csv", HEADER + b"1,T,caf\xe9\n"), "1 rejected, not UTF-8: 1"),
    "NUL": (("papers.csv", HEADER + b"1,T,A\x00\n"), "1 rejected, NUL or lone surrogate"),
    "lone surrogate": (
        ("papers.jsonl", b'{"id": "1", "abstract": "\\ud800"}\n'),
        "1 rejected, NUL or lone surrogate: 1",
    ),
    "nothing left": (("papers.csv", HEADER + b"1,T,\n"), "no valid papers in"),
    "empty": (("papers.csv", b""), "the file is empty"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_one_line_and_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    file, message = BAD_INPUTS[name]
    path = tmp_path / (file[0] if file else "papers.csv")
    if file:
        path.write_bytes(file[1])
    result = invoke("embed", path, "--out", tmp_path / "run")
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_and_one_with_something_else(tmp_path: Path) -> None:
    result = invoke("embed", tmp_path, "--out", tmp_path / "run")
    assert (result.exit_code, "no Parquet, CSV or JSON file in folder" in result.stderr) == (1, True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    result = invoke("embed", sample_papers(), "--out", tmp_path / "run")
    assert (result.exit_code, "contains other files (thesis.tex)" in result.stderr) == (1, True)


def test_another_run_is_refused_before_a_model_is_loaded(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "papers.csv"
    path.write_bytes(HEADER + b"1,T,A\n")
    before = {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}
    result = invoke("embed", path, "--out", run.folder)
    assert (result.exit_code, "contains papers of another input" in result.stderr) == (1, True)
    result = invoke("embed", sample_papers(), "--out", run.folder, "--max-tokens", 128)
    assert (result.exit_code, "max_tokens: 512 there, 128 here" in result.stderr) == (1, True)
    assert {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()} == before


def test_failures_in_a_real_process() -> None:
    failed = in_own_process("describe", "nowhere")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.count("\n") == 1
    assert "Traceback" not in failed.stderr
    assert "Traceback" in in_own_process("describe", "nowhere", "--debug").stderr
    for wrong_use in (
        ("embed",),
        ("similar", "nowhere"),
        ("similar", "nowhere", "1", "--row", "1"),
        ("sing",),
        ("search", "x", "y", "-k", "0"),
    ):
        used = in_own_process(*wrong_use)
        assert (used.returncode, "Traceback" in used.stderr) == (2, False), wrong_use


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("similar", "RUN", "1234.5678"), "no paper '1234.5678' among the 144"),
        (("similar", "RUN", "--row", "144"), "no row 144"),
        (("similar", "RUN", "--row", "-1"), "no row -1"),
        (
            ("similar", "RUN", "--row", "0", "--category", "cs.CVV"),
            "no paper has the category 'cs.CVV'; did you mean cs.CV",
        ),
        (("search", "RUN", "  "), "nothing to search for"),
        (("export", "RUN", "--to", "pickle"), "unknown export 'pickle': choose from npy, parquet"),
        (("evaluate", "RUN", "--relations", "nowhere.tsv"), "no such file"),
        (("embed", "PAPERS", "--out", "NEW", "--model", "specter"), "did you mean specter2"),
        (("embed", "PAPERS", "--out", "NEW", "--model", "./nowhere"), "no such model folder"),
        (("embed", "PAPERS", "--out", "NEW", "--pooling", "cls"), "has its own pooling, mean"),
        (("embed", "PAPERS", "--out", "NEW", "--device", "abacus"), "abacus"),
        (("embed", "PAPERS", "--out", "PAPERS"), "is a file: choose a folder"),
        (
            ("embed", "PAPERS", "--out", "ftp://server/run"),
            "must be on a local disk, on HDFS or in an object store (s3://, gs://, abfs://), not at ftp://server/run",
        ),
        (("embed", "PAPERS", "--out", "s3://KEY:hush@bucket/run"), "must not contain keys: write s3://BUCKET/path"),
        (("embed", "PAPERS", "--out", "NEW", "--revision", "main"), "has no revisions"),
        (("describe", "hdfs://127.0.0.1:9/run"), "no HDFS answers at 127.0.0.1:9 (Connection refused)"),
        (
            ("embed", "hdfs://127.0.0.1:9/clean", "--out", "NEW"),
            "to reach hdfs://127.0.0.1:9/clean: check host and port, and that HDFS runs",
        ),
        (("search", "RUN", "half \ud83d"), "nothing to search for"),
        (("embed", "PAPERS", "--out", "NEW", "--id-column", "doi"), "no column 'doi' for id"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(words: tuple[str, ...], message: str, run: Run, tmp_path: Path) -> None:
    names = {"RUN": run.folder, "PAPERS": sample_papers(), "NEW": tmp_path / "new"}
    result = invoke(*[names.get(word, word) for word in words])
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "new" / "metadata.json").exists()


def test_an_abstract_of_200000_words_is_cut_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "papers.jsonl"
    papers = [{"id": "0704.0090", "abstract": "word " * 200_000}, {"id": "0704.0091", "abstract": "A short one."}]
    path.write_text("".join(json.dumps(paper) + "\n" for paper in papers))
    result = invoke("embed", path, "--out", tmp_path / "run", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["n_truncated"] == 1
    assert [part["n_tokens"] for part in open_run(tmp_path / "run").metadata["parts"]] == [512 + 6]


def test_titles_are_printed_as_text(tmp_path: Path) -> None:
    path = tmp_path / "papers.jsonl"
    titles = ["[bold red]markup[/bold red] [/b]", "\x1b[31mred\x1b[0m", "plain", "other"]
    path.write_text("".join(json.dumps({"id": str(i), "title": t, "abstract": t}) + "\n" for i, t in enumerate(titles)))
    assert invoke("embed", path, "--out", tmp_path / "run", "--device", "cpu").exit_code == 0
    shown = invoke("similar", tmp_path / "run", "3").stdout
    assert "[bold red]markup[/bold red] [/b]" in shown
    assert "\x1b[31m" not in shown


@pytest.fixture
def arxiv(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeArxiv]:
    "A stand-in for arXiv, which `fetch` asks."
    with FakeArxiv(12) as server:
        here = ArxivServers(**server.addresses, page_size=5, sleep=lambda seconds: None)
        monkeypatch.setattr("arxiv_embeddings.papers.fetch.ArxivServers", lambda: here)
        yield server


def test_fetch_says_what_came_and_what_to_do_next(arxiv: FakeArxiv, tmp_path: Path) -> None:
    file = tmp_path / "my papers.parquet"
    result = invoke("fetch", "cat:cs.CL", "--from", "2024-01-03", "--to", "2024", "--max", 8, "--out", file)
    assert result.exit_code == 0, result.output
    first, following = result.stdout.splitlines()
    assert re.fullmatch(rf"{re.escape(str(file))}: 8 papers on 2 pages, \d+\.\d s", first)
    assert following == f"next: arxiv-embeddings embed '{file}' --out run"
    assert arxiv.requests[0]["search_query"] == "(cat:cs.CL) AND submittedDate:[202401030000 TO 202412312359]"
    again = invoke("fetch", "cat:cs.CL", "--out", file)
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr == f"error: {file} exists: name another file, or delete it\n"


def test_fetch_of_an_archive_for_programs(arxiv: FakeArxiv, tmp_path: Path) -> None:
    arxiv.deleted, arxiv.broken = {3, 4}, {5}
    file = tmp_path / "cs.parquet"
    result = invoke("fetch", "--archive", "cs", "--out", file, "--json")
    fetched = json.loads(result.stdout)
    assert fetched.pop("seconds") >= 0
    assert fetched == {
        **{"path": str(file), "n_papers": 9, "n_pages": 2, "n_continued": 0},
        **{"n_deleted": 2, "n_unreadable": 1},
    }
    assert read_papers(file).report.n_accepted == 9


def test_fetch_that_is_interrupted_goes_on(arxiv: FakeArxiv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from arxiv_embeddings.papers import fetch as module

    whole, file = module.ask_api, tmp_path / "papers.parquet"

    def interrupt(wanted: object, now: str, at: str | None, servers: object) -> object:
        if at:
            raise KeyboardInterrupt
        return whole(wanted, now, at, servers)

    with monkeypatch.context() as patch:
        patch.setattr(module, "ask_api", interrupt)
        stopped = invoke("fetch", "cat:cs.CL", "--out", file)
    assert stopped.exit_code == 130
    assert stopped.stderr == "error: stopped; committed papers are safe: run the same command again to continue\n"
    assert not file.exists()
    assert "5 of them were fetched earlier" in invoke("fetch", "cat:cs.CL", "--out", file).stdout


@pytest.mark.parametrize(
    "words",
    [
        ("--out", "x.parquet"),
        ("cat:cs.CL", "--archive", "cs", "--out", "x.parquet"),
        ("cat:cs.CL", "--max", "0"),
        ("q",),
    ],
)
def test_wrong_use_of_fetch(words: tuple[str, ...]) -> None:
    assert invoke("fetch", *words).exit_code == 2


def every_command() -> list[tuple[str, ...]]:
    "Names of all commands, with those of the groups within."
    from typer.main import get_command

    found, groups = [], [((), get_command(app))]
    for above, group in groups:
        for name, command in group.commands.items():
            (groups if hasattr(command, "commands") else found).append(((*above, name), command))
    return [names for names, _ in found]


@pytest.mark.parametrize("names", every_command(), ids=" ".join)
def test_every_help_has_an_example_and_fits(names: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "80"}).stdout
    (example,) = re.findall(r"Example: arxiv-embeddings (.*)$", " ".join(shown.split()))
    assert example.startswith(" ".join(names))
    options = [word for word in example.split() if word.startswith("-")]
    assert [option for option in options if f"  {option}" not in shown and f", {option}" not in shown] == []
    assert max(map(len, shown.splitlines())) <= 80


def test_version_has_a_short_name() -> None:
    assert invoke("-V").stdout == invoke("--version").stdout == f"{metadata.version('arxiv-embeddings')}\n"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("arxiv-embeddings sh", {"show"}),
        ("arxiv-embeddings embed --precision ", {"float32", "int8", "bfloat16", "float16"}),
        ("arxiv-embeddings fetch --ar", {"--archive"}),
    ],
)
def test_the_shell_completes_commands_options_and_values(words: str, wanted: set[str]) -> None:
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    asked |= {"_ARXIV_EMBEDDINGS_COMPLETE": "complete_bash"}
    script = "import sys; sys.argv[0] = 'arxiv-embeddings'; from arxiv_embeddings.cli.main import main; main()"
    environment = os.environ | asked | {"PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert set(shown.stdout.split()) == wanted


def test_completion_is_offered() -> None:
    shown = " ".join(invoke("--help").stdout.split())
    assert "--install-completion Install completion for the current shell" in shown


def test_show_has_everything_about_a_paper(run: Run) -> None:
    result = CliRunner().invoke(app, ["show", str(run.folder), "0000.00118", "0000.00001"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    first, second = result.stdout.split("\n\n")
    paper = run.read().slice(run.row_of("0000.00118"), 1).to_pylist()[0]
    words = " ".join(first.split())
    assert list(re.findall(r"(?m)^(\w+):", first)) == [
        *("title", "id", "authors", "categories", "year", "place", "text", "abstract")
    ]
    assert f"title: {paper['title']} id: 0000.00118 authors: {paper['authors']}" in words
    (part,) = [one for one in run.parts if one.position <= 117 < one.end]
    place = f"place: row 117 of the run, row {117 - part.position} of {part.name}"
    assert f"categories: astro-ph.EP year: {paper['year']} {place}" in words
    assert f"text: sha256 {paper['text_sha256']} abstract: {paper['abstract']}" in words
    assert re.search(r"(?m)^id: +0000.00001$", second)


def test_show_for_programs(run: Run) -> None:
    (paper,) = json.loads(invoke("show", run.folder, "arXiv:0000.00118v3", "--json").stdout)
    assert paper.keys() == {*run.columns, "row", "part", "row_in_part", "link"}
    assert (paper["paper_id"], paper["row"], paper["link"]) == ("0000.00118", 117, None)


@pytest.mark.parametrize("command", ["show", "similar"])
def test_an_id_that_is_not_there_suggests_others(run: Run, command: str) -> None:
    result = invoke(command, run.folder, "0000.0118")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: no paper '0000.0118' among the 144 of {run.folder}; did you mean ")
    assert "0000.00118" in result.stderr


def test_a_paper_of_arxiv_has_a_link(tmp_path: Path) -> None:
    papers = tmp_path / "papers.csv"
    papers.write_text("id,title,abstract\n0704.0090v2,Real options,We value options for schedules.\n7,B,We count.\n")
    assert invoke("embed", papers, "--out", tmp_path / "run", "--device", "cpu").exit_code == 0
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "run"), "0704.0090"], env={"COLUMNS": "80"}).stdout
    assert re.search(r"(?m)^link: +https://arxiv.org/abs/0704.0090$", shown)
    assert re.search(r"(?m)^id: +0704.0090, version 2$", shown)
    assert "categories" not in shown
    found = json.loads(invoke("similar", tmp_path / "run", "7", "--links", "--json").stdout)
    assert [one["link"] for one in found] == ["https://arxiv.org/abs/0704.0090"]


def test_similar_shows_abstracts_and_links_on_request(run: Run) -> None:
    words = ["similar", str(run.folder), "0000.00001", "-k", "2"]
    assert json.loads(invoke(*words, "--json").stdout)[0].keys().isdisjoint({"abstract", "link"})
    found = json.loads(invoke(*words, "--abstracts", "--links", "--json").stdout)
    texts = run.read(["abstract"])["abstract"].to_pylist()
    assert [one["abstract"] for one in found] == [texts[one["row"]] for one in found]
    shown = CliRunner().invoke(app, [*words, "--abstracts"], env={"COLUMNS": "80"}).stdout
    assert max(map(len, shown.splitlines())) <= 80
    heading, first, second = shown.split("\n\n")
    assert " ".join(heading.split()).startswith('Papers most similar to "Diffing for Betrayal: ')
    for paper, one in zip((first, second), found, strict=True):
        assert f"abstract: {one['abstract']}" in " ".join(paper.split())


def test_a_pipe_gets_tabs_and_the_heading_on_stderr(run: Run) -> None:
    result = in_own_process("similar", run.folder, "0000.00001", "-k", "3", "--abstracts", "--links")
    head, *rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert head == ["cosine", "paper_id", "title", "categories", "year", "link", "abstract"]
    assert [len(row) for row in rows] == [7, 7, 7]
    assert rows[0][:2] == ["0.7835", "0000.00040"]
    assert result.stderr.startswith('Papers most similar to "Diffing for Betrayal')
    models = in_own_process("models").stdout.splitlines()
    assert {line.count("\t") for line in models} == {7}
    assert [line.split("\t")[0] for line in models] == ["name", *known_models()]


def test_rejected_rows_are_told_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    papers, told = tmp_path / "papers.csv", []
    papers.write_text("id,title,abstract\n1,A,We count stars.\n2,B,\n3,C,We count cells.\n")

    def look(*_: object, **__: object) -> None:
        told.extend(caplog.messages)
        raise InputError("loaded")

    caplog.set_level("INFO", logger="arxiv_embeddings")
    monkeypatch.setattr("arxiv_embeddings.runs.run_model.fetch_model", look)
    assert invoke("embed", papers, "--out", tmp_path / "run").stderr.endswith("error: loaded\n")
    assert "2 of 3 rows accepted\n1 rejected, no abstract: 2" in "\n".join(told)


def test_another_model_is_told_before_the_hub_is_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        for model in ("specter2", "someone/else"):
            result = in_own_process("embed", sample_papers(), "--out", run.folder, "--model", model)
            assert result.returncode == 1
            assert "was made with different options (" in result.stderr
            assert "use the same model and options" in result.stderr
        assert hub.requests == []


def test_no_size_is_zero(run: Run) -> None:
    for words in (("export", run.folder), ("describe", run.folder), ("verify", run.folder), ("index", run.folder)):
        shown = invoke(*words).stdout
        assert re.search(r"[1-9]\d*(\.\d)? (bytes|kB|MB)", shown), shown
        assert not re.search(r"\b0(\.\d+)? (kB|MB|GB)", shown), shown
