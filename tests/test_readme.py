"""Everything that README and the quick start show can be done after the install line above it."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

from arxiv_embeddings.cli.main import app
from tests.fakes import ROOT

SHOWN = {
    name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/quick_start.md", "docs/index.md")
}
# what needs which extra
NEEDS = {
    "int8": r"--precision int8|precision=\"int8\"",
    "spark": r"arxiv-embeddings spark |arxiv_embeddings\.spark|hdfs://",
    "explore": r"\.explore\(\)",
    "umap": r"--method umap|method=\"umap\"",
}
MODULES = {  # and the modules that nobody has without it
    "int8": ["nncf"],
    "spark": ["pyspark", "sparknlp", "hdfs_native"],
    "explore": ["jupyterlab", "ipywidgets", "jscatter"],
    "umap": ["umap"],
}


def find_lacking(text: str) -> Iterator[tuple[str, str]]:
    "Yield each line of an example that needs an extra which no line above it installs, and which it does not name itself."
    installed, in_block = set(), False
    for line in text.splitlines():
        in_block ^= line.startswith("```")
        if found := re.search(r"pip install .*\[([\w,]+)\]", line):
            installed |= set(found[1].split(","))
        if in_block or line.startswith("    "):
            named = set(re.findall(r"needs the extra (\w+)", line))
            for extra, pattern in NEEDS.items():
                if re.search(pattern, line) and extra not in installed | named | (
                    {*NEEDS} if "all" in installed else set()
                ):
                    yield extra, line


@pytest.mark.parametrize("name", SHOWN)
def test_no_example_needs_an_extra_that_is_not_installed(name: str) -> None:
    assert list(find_lacking(SHOWN[name])) == []


def test_an_example_without_its_extra_is_found() -> None:
    line = "    arxiv-embeddings embed papers.csv --out run --precision int8"
    assert list(find_lacking(f"    pip install .\n{line}")) == [("int8", line)]
    assert list(find_lacking(f"    pip install '.[spark,int8]'\n{line}")) == []
    assert list(find_lacking(f"{line}   # needs the extra int8")) == []
    assert list(find_lacking("```python\nfrom arxiv_embeddings.spark.session import make_session\n```"))


def prose_of(path: Path) -> str:
    "Return the prose of a notebook."
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


STORIES = {
    path.stem: prose_of(path) for name in ("tutorials", "pages") for path in (ROOT / "nbs" / name).glob("*.ipynb")
}


def commands_of(text: str) -> list[list[str]]:
    "List the commands of a page, each as its words."
    text = re.sub(r"\\\n\s*", "", text)  # of several lines
    lines = re.findall(r"^    (arxiv-embeddings .+)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("name", [*SHOWN, *STORIES])
def test_every_command_and_option_exists(name: str) -> None:
    from typer.main import get_command

    for words in commands_of((SHOWN | STORIES)[name]):
        command = get_command(app)
        while hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        known = {option for one in command.params for option in [*one.opts, *one.secondary_opts]}
        assert {word for word in words if word.startswith("-")} <= known


@pytest.mark.slow
def test_the_four_commands_run_without_any_extra(tmp_path: Path) -> None:
    blocked = [name for names in MODULES.values() for name in names]
    script = f"import sys\nfor name in {blocked}: sys.modules[name] = None\nfrom arxiv_embeddings.cli.main import main; main()"
    section = SHOWN["README.md"].split("## On the command line")[1].split("\n## ")[0]
    commands = commands_of(section)
    assert [words[0] for words in commands] == ["sample", "embed", "similar", "search"]
    for words in commands:
        done = subprocess.run(
            [sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "KESTREL" in done.stdout


@pytest.mark.parametrize("name", ["README.md", "docs/quick_start.md", "docs/frequent_errors.md", "docs/api/index.md"])
def test_links_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    assert targets
    for target in map(urlsplit, targets):
        assert target.scheme or ((ROOT / name).parent / target.path).exists(), target.geturl()


def test_readme_is_short() -> None:
    assert len(SHOWN["README.md"].splitlines()) < 140
    assert sum(len(line) for line in SHOWN["README.md"].splitlines() if not line.startswith("<table>")) < 6500
