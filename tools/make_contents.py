"Write the list of all pages into the welcome page; with --check, only say whether it is up to date."

import sys
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parent.parent / "nbs"
WELCOME = NOTEBOOKS / "tutorials" / "welcome.ipynb"
FOLDERS = ("tutorials", "pages", "papers", "encoders", "runs", "explore", "spark", "cli", "files")
NAMES = {"tutorials": "tutorials", "pages": "guides"} | {name: f"`{name}`" for name in FOLDERS[2:]}
START = "| | pages |"


def read_title(path: Path) -> str:
    "Return the title of a notebook."
    return nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")


def list_links(folder: str) -> str:
    "List the pages of a folder as links, in their order, but not the welcome page itself."
    paths = sorted(path for path in (NOTEBOOKS / folder).glob("*.ipynb") if path != WELCOME)
    return ", ".join(f"[{read_title(path)}](../{folder}/{path.name})" for path in paths)


def render_contents() -> str:
    "Render the list of all pages."
    rows = {name: f"| {NAMES.get(name, name)} | {list_links(name)} |" for name in FOLDERS}
    return "\n".join([START, "| --- | --- |", *rows.values()])


def main() -> None:
    "Write the list, or check it."
    notebook = nbformat.read(WELCOME, as_version=4)
    contents = render_contents()
    (listing,) = (cell for cell in notebook.cells if cell.source.startswith(START))
    if "--check" in sys.argv[1:]:
        if listing.source != contents:
            sys.exit("the welcome page does not list every page: run `make readme`")
        return
    listing.source = contents
    nbformat.write(notebook, WELCOME)


if __name__ == "__main__":
    main()
