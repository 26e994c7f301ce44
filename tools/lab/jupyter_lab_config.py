"""JupyterLab as `make lab` starts it: it opens on the welcome page, and saving a page leaves nothing of this machine in it.

Found through JUPYTER_CONFIG_PATH, beside the person's own settings; `labconfig/` holds those of the pages in the browser.
"""

import json
from pathlib import Path

from nbdev.clean import clean_nb

NOTEBOOKS = Path(__file__).parents[2] / "nbs"
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}  # as all our notebooks name it
WIDGET = "application/vnd.jupyter.widget-view+json"  # which only lives as long as its kernel


def read_stored(path):
    "Return the outputs that a file has, by the id of each cell with its source; nothing for a new file."
    if not path.exists():
        return {}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {(cell.get("id"), "".join(cell["source"])): cell.get("outputs", []) for cell in cells}


def clean_before_saving(model, path, contents_manager, **_):
    """Take out of a notebook what differs between two runs: counts, times, the kernel's name, widgets of this session.

    A widget ends with its kernel. If the file has a picture in its place, that stays until the code is another."""
    if model["type"] != "notebook" or model["content"]["nbformat"] != 4:
        return
    notebook = model["content"]
    stored = read_stored(Path(contents_manager.root_dir) / path.strip("/"))
    clean_nb(notebook)
    notebook["metadata"] = {"kernelspec": KERNEL}
    for cell in notebook["cells"]:
        if any(WIDGET in output.get("data", {}) for output in cell.get("outputs", [])):
            source = "".join(cell["source"])
            others = [output for output in cell["outputs"] if WIDGET not in output.get("data", {})]
            cell["outputs"] = stored.get((cell.get("id"), source), others)


c = get_config()  # noqa: F821 (Jupyter puts it here)
c.ServerApp.root_dir = str(NOTEBOOKS)
c.LabApp.default_url = "/lab/tree/tutorials/welcome.ipynb"
c.FileContentsManager.pre_save_hook = clean_before_saving
