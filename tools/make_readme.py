"""Make README.md from nbs/index.ipynb; with --check, only say whether it is up to date.

nbdev's own command for this needs Quarto. What it does is little: hidden cells and directives are left out, and
outputs are shown as text.
"""

import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
INDEX, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`: change that, not this. -->\n\n"


def render_readme() -> str:
    "Render the index notebook as Markdown."
    notebook = nbformat.read(INDEX, as_version=4)
    cells = []
    for cell in notebook.cells:
        directives = [line for line in cell.source.splitlines() if line.startswith("#|")]
        if cell.cell_type == "code":
            if "#| hide" in directives:
                continue
            shown = "#| echo: false" not in directives
            cell.source = (
                "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|")) if shown else ""
            )
            for output in cell.outputs:
                if "data" in output:
                    output["data"] = {"text/plain": output["data"]["text/plain"]}
        cells.append(cell)
    notebook.cells = cells
    notebook.metadata["language_info"] = {"name": "python"}  # nbdev_clean takes it out
    body, _ = MarkdownExporter(exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node(notebook)
    body = body.replace("](images/", "](nbs/images/")
    lines = [line.rstrip() for line in body.replace("```python\n\n```", "").splitlines()]
    compact = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return NOTE + "\n".join(compact).strip() + "\n"


def main() -> None:
    "Write the README, or check it."
    readme = render_readme()
    if "--check" not in sys.argv[1:]:
        README.write_text(readme, encoding="utf-8")
    elif README.read_text(encoding="utf-8") != readme:
        sys.exit("README.md is not what nbs/index.ipynb says: run `make readme`")


if __name__ == "__main__":
    main()
