"""JupyterLab as `make lab` starts it: it opens on the welcome page, and saving a page leaves nothing of this machine in it.

Found through JUPYTER_CONFIG_PATH, beside the person's own settings; `labconfig/` holds those of the pages in the browser.
"""

from pathlib import Path

from nbdev.clean import clean_nb

NOTEBOOKS = Path(__file__).parents[2] / "nbs"
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}  # as all our notebooks name it
WIDGET = "application/vnd.jupyter.widget-view+json"  # which only lives as long as its kernel


def clean_before_saving(model, **_):
    "Take out of a notebook what differs between two runs: counts, times, the kernel's name, widgets of this session."
    if model["type"] != "notebook" or model["content"]["nbformat"] != 4:
        return
    notebook = model["content"]
    clean_nb(notebook)
    notebook["metadata"] = {"kernelspec": KERNEL}
    for cell in notebook["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if WIDGET not in output.get("data", {})]


c = get_config()  # noqa: F821 (Jupyter puts it here)
c.ServerApp.root_dir = str(NOTEBOOKS)
c.LabApp.default_url = "/lab/tree/tutorials/welcome.ipynb"
c.FileContentsManager.pre_save_hook = clean_before_saving
