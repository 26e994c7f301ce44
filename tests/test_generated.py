"""What is generated is what the notebooks say, and the notebooks are clean."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.fakes import ROOT

NOTEBOOKS = sorted(path for path in ROOT.glob("nbs/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts)
MODULES = [path for path in NOTEBOOKS if path.stem[:2].isdigit()]
# what an output must not hold: paths of a machine, progress bars, tracebacks, addresses of objects
LEFTOVERS = re.compile(r"/(home|root|tmp|Users|var)/|\d+(\.\d+)?(it|s)/(s|it)\]|Traceback|Warning|0x[0-9a-f]{8,}")


def test_package_and_notebooks_are_those_that_nbdev_makes(tmp_path: Path) -> None:
    for name in ("nbs", "arxiv_embeddings"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
        )
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    environment = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    for command in ("nbdev_clean", "nbdev_export"):
        tool = Path(sys.executable).parent / command
        subprocess.run([str(tool)], cwd=tmp_path, check=True, env=environment)
    for name in ("nbs", "arxiv_embeddings"):
        made = {
            path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()
        }
        ours = {
            path.relative_to(ROOT): path.read_bytes()
            for path in (ROOT / name).rglob("*")
            if path.is_file() and not {".ipynb_checkpoints", "__pycache__"} & set(path.parts)
        }
        assert made.keys() == ours.keys()
        assert [path for path in made if made[path] != ours[path]] == [], "run `make format`"


def test_readme_is_the_index_notebook() -> None:
    subprocess.run([sys.executable, str(ROOT / "tools" / "make_readme.py"), "--check"], check=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_small_and_hold_no_leftovers(path: Path) -> None:
    assert path.stat().st_size < 150_000
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", cell.source
            shown = output.get("text") or output.get("data", {}).get("text/plain", "")
            assert not LEFTOVERS.search(shown), f"{cell.source}\n{shown}"
            assert "execution_count" not in output or output["execution_count"] is None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_an_exported_cell_is_short_and_defines_one_thing(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if not cell.source.startswith("#| export"):
            continue
        nodes, n_lines = ast.parse(cell.source).body, len(cell.source.splitlines())
        assert nodes, "an exported cell is empty"
        defined = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        if isinstance(nodes[0], ast.Import | ast.ImportFrom) and not defined:
            continue  # the imports of a module are as long as they are
        assert n_lines <= 60, f"{n_lines} lines:\n{cell.source}"
        public = [node.name for node in defined if not node.name.startswith("_")]
        assert len(public) < 2, f"a cell for each of {', '.join(public)}"
        if n_lines > 40:  # one class, one function with many documented parameters, or one table
            assert len(defined) < 2, cell.source
            code = [node.end_lineno - node.body[0].end_lineno for node in defined if isinstance(node, ast.FunctionDef)]
            assert not code or max(code) <= 40, cell.source


WINGS = {  # and the wings that each may import: those below it
    "files": set(),
    "papers": {"files"},
    "encoders": {"files", "papers"},
    "runs": {"files", "papers", "encoders"},
    "spark": {"files", "papers", "encoders", "runs"},
    "explore": {"files", "papers", "encoders", "runs"},
    "cli": {"files", "papers", "encoders", "runs", "spark", "explore"},
}
# libraries that only these modules know
KNOWN_TO = {
    "faiss": {"explore.index"},
    "openvino": {"encoders.openvino_engine", "encoders.conversion"},
    "pyspark": {
        "spark.checks",
        "spark.session",
        "spark.nlp_pipeline",
        "spark.executors",
        "spark.frames",
        "spark.frame_parts",
        "spark.via_spark_nlp",
        "spark.via_encoder",
        "spark.transformer",
        "spark.tables",
    },
    "sparknlp": {"spark.session", "spark.nlp_pipeline"},
}


def imports_of(path: Path) -> set[str]:
    "Every module that an exporting notebook's exported cells import, in functions too."
    found = set()
    for cell in nbformat.read(path, as_version=4).cells:
        if "#| export" in cell.source:
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    inside = (
                        node.module.removeprefix("arxiv_embeddings.") in WINGS
                    )  # a folder, of which modules are taken
                    found |= {f"{node.module}.{alias.name}" for alias in node.names} if inside else {node.module}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_import_only_modules_below_them(path: Path) -> None:
    # the number of a notebook is its place in the reading order
    number_of = {f"{one.parent.name}.{one.stem[3:]}": int(one.stem[:2]) for one in MODULES}
    assert len(set(number_of.values())) == len(MODULES)
    own = f"{path.parent.name}.{path.stem[3:]}"
    for name in imports_of(path):
        package, _, module = name.partition(".")
        if package == "arxiv_embeddings" and module:  # the verbs of a run call the front door itself
            assert number_of[module] < number_of[own], f"{own} imports {module}"
            assert module.split(".")[0] in WINGS[path.parent.name] | {path.parent.name}, f"{own} imports {module}"
            if own in ("runs.format", "runs.store"):  # a run can be read without knowing what a model is
                assert module.split(".")[0] == "files" or module == "runs.format"
        assert own in KNOWN_TO.get(package, {own}), f"{own} imports {package}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_lines_of_prose_are_at_most_120_characters_long(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"^```.*?^```$", "", cell.source, flags=re.DOTALL | re.MULTILINE)
            assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")] == []
