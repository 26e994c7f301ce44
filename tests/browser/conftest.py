"""JupyterLab as `make lab` starts it, on a clone of this repository, and the few things that a person does in it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import ROOT


@dataclass(frozen=True)
class Lab:
    "A running JupyterLab."

    folder: Path  # the clone; its `nbs/` is what the browser sees
    address: str  # of the server, without a path
    log: Path  # what the server prints

    def open(self, page: Any, notebook: str | None = None) -> None:
        "Open a notebook by its path in `nbs/`, or the page that `make lab` opens, and wait until its kernel is idle."
        # `reset`: pages that were open before stay closed, as at the first start
        page.goto(f"{self.address}/lab/tree/{notebook}" if notebook else f"{self.address}/?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        wait_until_idle(page)

    def save(self, page: Any) -> None:
        "Save the notebook as Ctrl+S does, and wait until the server has written it."
        with page.expect_response(lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url):
            page.keyboard.press("Control+s")


def wait_until_idle(page: Any, seconds: float = 60) -> None:
    "Wait until the kernel has nothing to do and no cell waits for it."
    script = """() => {
        const bar = document.querySelector('#jp-main-statusbar');  // says `Python 3 (ipykernel) | Idle`
        const waiting = [...document.querySelectorAll('.jp-InputPrompt')].some(one => one.textContent.includes('[*]'));
        return bar && /Python.*Idle/.test(bar.textContent) && !waiting;
    }"""
    page.wait_for_function(script, timeout=seconds * 1000)


def run_all(page: Any, seconds: float = 120) -> None:
    "Press `Run all`, and wait until the last cell is done."
    page.click("jp-button[data-command='notebook:run-all-cells'], button[data-command='notebook:run-all-cells']")
    page.wait_for_timeout(500)  # the first cell has to be sent before idle means done
    wait_until_idle(page, seconds)
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts() == []


def list_files() -> list[str]:
    "List the files of this repository as they are now, committed or not; without git, all that were not made here."
    words = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(words, capture_output=True, text=True, check=False)
    if not listed.returncode:
        return [name for name in listed.stdout.split("\0") if name]
    made = {".venv", ".git", "__pycache__", ".ipynb_checkpoints", "_docs", "demo", "screenshots", ".hypothesis"}
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
    return [str(path) for path in paths if not made & set(path.parts)]


def clone(folder: Path) -> None:
    "Make a clone of this repository."
    for name in list_files():
        if (ROOT / name).is_file():  # a file that was removed is listed until this is committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


def find_port() -> int:
    "Find a port that is free now."
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def read_lab_command(folder: Path) -> tuple[list[str], dict[str, str]]:
    "Return the command and the settings with which the Makefile starts JupyterLab."
    # the tests may be run by make themselves; its messages of folders are not wanted here
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    }
    printed = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "--assume-old=.venv/.installed", "lab"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    line = printed.stdout.splitlines()[-1]
    found = re.fullmatch(r'JUPYTER_CONFIG_PATH="([^"]+)" \S+/jupyter lab', line)
    assert found, line
    return [sys.executable, "-m", "jupyter", "lab"], {"JUPYTER_CONFIG_PATH": found[1]}


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    "JupyterLab on a clone, started as `make lab` does it, but without a window and without a token."
    work = tmp_path_factory.mktemp("lab")
    folder, home = work / "clone", work / "home"
    folder.mkdir()
    home.mkdir()
    clone(folder)
    command, settings = read_lab_command(folder)
    port = find_port()
    own = ["--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
    # settings and workspaces of the person who runs the tests stay out
    environment = os.environ | settings | {"HOME": str(home), "PYTHONPATH": str(folder)}
    environment |= {"IPYTHONDIR": str(home / "ipython"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (work / "log").open("w") as log:
        server = subprocess.Popen([*command, *own], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    wait_for_server(server, port, work / "log")
    yield Lab(folder, f"http://127.0.0.1:{port}", work / "log")
    server.terminate()
    server.wait(timeout=30)


def wait_for_server(server: subprocess.Popen, port: int, log: Path, seconds: float = 60) -> None:
    "Wait until a server answers at a port."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail(f"no server after {seconds} seconds:\n{log.read_text()}")
