"""The tutorials in a real JupyterLab: every cell runs, figures and widgets are on the page, a click and a lasso select."""

import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fakes import ROOT

TUTORIALS = sorted(
    path.stem for path in (ROOT / "nbs" / "tutorials").glob("*.ipynb") if "#| spark" not in path.read_text()
)
SETTINGS = {  # no question about news, no look for updates, and every cell is on the page
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
COMMAND = "command => window.jupyterapp.commands.execute(command)"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    "A JupyterLab on a copy of the tutorials, without any settings of the user: its address, with `{}` for a notebook."
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "nbs" / "tutorials", folder / "nbs" / "tutorials")
    shutil.copytree(ROOT / "benchmarks" / "results", folder / "benchmarks" / "results")
    for name, settings in SETTINGS.items():
        path = folder / "config" / "lab" / "user-settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    homes = {name: str(folder / name.lower()) for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    environment = os.environ | homes | {"JUPYTER_CONFIG_DIR": str(folder / "config")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, words = secrets.token_hex(16), [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    words += [f"--port={port}", "--ip=127.0.0.1", f"--ServerApp.root_dir={folder / 'nbs' / 'tutorials'}"]
    words += [f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True", "--ServerApp.port_retries=0"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert server.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield f"{address}/lab/tree/{{}}.ipynb?token={token}&reset"
    finally:
        server.terminate()
        server.wait(30)


def run_all(page: Any, lab: str, name: str) -> None:
    "Open a notebook, run all of its cells and wait for the end."
    page.goto(lab.format(name))
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_function("window.jupyterapp.shell.currentWidget?.context?.sessionContext?.session?.kernel != null")
    page.evaluate(COMMAND, "notebook:run-all-cells")
    idle = "window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.status == 'idle'"
    page.wait_for_function(idle, timeout=120_000)


def count_colors(picture: bytes) -> int:
    "Number of different colors of a PNG, in steps that the eye sees."
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) // 32
    return len(np.unique(pixels.reshape(-1, 3), axis=0))


@pytest.mark.parametrize("name", TUTORIALS)
def test_every_cell_of_a_tutorial_runs_and_shows_its_figures(page: Any, lab: str, name: str) -> None:
    run_all(page, lab, name)
    errors = page.locator(
        '.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"], .jp-OutputArea-output .jp-mod-error'
    )
    assert errors.all_inner_texts() == []
    print(page.errors)
    print(page.locator(".jp-OutputArea-output").count())
    page.wait_for_timeout(3000)
    page.screenshot(path="/tmp/w/xp/lab.png", full_page=True)
    print([w for w in page.requests if "127.0.0.1" not in w][:5])
