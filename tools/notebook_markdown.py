"""A notebook as Markdown: for README.md and for the documentation site.

nbdev's own commands for this need Quarto. Hidden cells and directives are left out, stored outputs are kept, and
nothing is run.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import MarkdownExporter

STYLE = re.compile(r'<style scoped>.*?</style>\n?| border="1" class="dataframe"', re.DOTALL)  # of pandas' tables


def read_directives(source: str) -> list[str]:
    "List the directives of a cell, such as `export` and `echo: false`."
    return [line[2:].strip() for line in source.splitlines() if line.startswith("#|")]


def drop_directives(source: str) -> str:
    "Return the source of a cell without its directives."
    return "\n".join(line for line in source.splitlines() if not line.startswith("#|")).strip("\n")


def drop_style(output: Any) -> None:
    "Drop the style that pandas gives to its tables: the page has its own."
    if "text/html" in output.get("data", {}):
        output["data"]["text/html"] = STYLE.sub("", output["data"]["text/html"])


def prepare_cell(cell: Any, document: Callable[[str], str] | None) -> Any | None:
    "Return a cell as it is shown, or `None` if it is hidden; exported cells become `document(source)`."
    directives = read_directives(cell.source)
    if cell.cell_type != "code":
        return cell
    if "hide" in directives or any(name.startswith("default_exp") for name in directives):
        return None
    if document is not None and "export" in directives:
        text = document(drop_directives(cell.source))
        return nbformat.v4.new_markdown_cell(text) if text else None
    cell.source = "" if "echo: false" in directives else drop_directives(cell.source)
    for output in cell.outputs:
        drop_style(output)
    return cell


def render_notebook(path: Path, document: Callable[[str], str] | None = None) -> tuple[str, dict[str, bytes]]:
    "Render a notebook as Markdown, and return the pictures among its outputs by their file names."
    notebook = nbformat.read(path, as_version=4)
    prepared = (prepare_cell(cell, document) for cell in notebook.cells)
    notebook.cells = [cell for cell in prepared if cell is not None]
    notebook.metadata["language_info"] = {"name": "python"}  # nbdev_clean takes it out
    exporter = MarkdownExporter(exclude_input_prompt=True, exclude_output_prompt=True)
    body, resources = exporter.from_notebook_node(notebook, resources={"unique_key": path.stem})
    lines = [line.rstrip() for line in body.replace("```python\n\n```", "").splitlines()]
    compact = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return "\n".join(compact).strip() + "\n", resources["outputs"]
