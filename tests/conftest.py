"""What several tests need: the real model once, real data where there is some, and files of papers."""

import atexit
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock

# converted models are made anew by each run of the tests, unless it is told to use a cache (as `make test` does)
if "ARXIV_EMBEDDINGS_CACHE" not in os.environ:
    os.environ["ARXIV_EMBEDDINGS_CACHE"] = tempfile.mkdtemp(prefix="arxiv_embeddings-")
    atexit.register(shutil.rmtree, os.environ["ARXIV_EMBEDDINGS_CACHE"], ignore_errors=True)

# readline, which pytest imports, tells every process that is started here of a terminal
os.environ |= {"COLUMNS": "", "LINES": ""}  # first set, since Python does not know of them
os.environ.pop("COLUMNS")
os.environ.pop("LINES")

from arxiv_embeddings.encoders.base import Encoder
from arxiv_embeddings.encoders.load import load_encoder
from arxiv_embeddings.files import object_store
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.store import Run
from arxiv_embeddings.spark.environment import pack_environment
from arxiv_embeddings.spark.minicluster import start_hdfs, stop_minicluster
from tests.fakes import ROOT
from tests.fakes.object_store import VARIABLES, running_store

SCREENSHOTS = ROOT / "screenshots"
DATA = Path(os.environ.get("ARXIV_EMBEDDINGS_DATA", ROOT.parent / "shared" / "data"))


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures that they use, and begin with the slowest files.

    With `--dist loadfile --no-loadscope-reorder` the short files come last, so that both processes end together."""
    for item in items:
        if "hdfs" in item.fixturenames:
            item.add_marker("spark")
        if {"real_data", "chromium", "site"} & set(item.fixturenames):
            item.add_marker("slow")
    slow_files = {kind: {item.path for item in items if item.get_closest_marker(kind)} for kind in ("spark", "slow")}
    items.sort(key=lambda item: (item.path not in slow_files["spark"], item.path not in slow_files["slow"]))


@pytest.fixture(scope="session")
def real_data() -> Path:
    "The folder with real arXiv metadata, which is not part of the repository."
    if not (DATA / "arxiv_cs_10k.csv").exists():
        pytest.skip(f"no real data in {DATA}: set ARXIV_EMBEDDINGS_DATA to a folder that has arxiv_cs_10k.csv")
    return DATA


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    "The system's Chromium without a window and without a GPU, driven by Playwright."
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    if not (found := next(filter(None, map(shutil.which, names)), None)):
        pytest.skip(f"no browser: none of {', '.join(names)} is installed (apt-get install chromium)")
    arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of a laptop's size; `errors` are those of its console, `requests` every address that it asked for.

    In the end a picture of it is kept in `screenshots/`, under the name of the test."""
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.errors, page.requests = [], []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda asked: page.requests.append(asked.url))
    yield page
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{re.sub(r'[^a-z0-9]+', '_', request.node.name.lower())}.png")
    page.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The documentation site, built as `make docs` builds it; made once for all workers."
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "search" / "search_index.json").exists():  # the last file of a build
            built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="session")
def minilm() -> Encoder:
    "The default model, on the CPU."
    return load_encoder("minilm", device="cpu")


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory, minilm: Encoder) -> Run:
    "The sample corpus in the default model; tests must not change it."
    return embed_papers(sample_papers(), tmp_path_factory.mktemp("sample") / "run", encoder=minilm).run


@pytest.fixture(scope="session")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    "A real HDFS: its `uri`, `conf` for HADOOP_CONF_DIR, `processes`, and the `folder` in which it keeps its data."
    folder = tmp_path_factory.mktemp("hdfs")
    started = start_hdfs(folder)
    yield started | {"folder": folder}
    stop_minicluster(folder)


@pytest.fixture(scope="session")
def object_store_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    "Where a real object store speaks S3; `tests.fakes.object_store` has its bucket and its keys."
    with running_store(tmp_path_factory.mktemp("store")) as address:
        yield address


@pytest.fixture
def no_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    "An environment and a process that know no object store."
    sources = object_store.SOURCES[:]
    object_store.SOURCES.clear()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    object_store.SOURCES[:] = sources


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    "An archive of what executors need of Python, as `pack_environment` describes it; made once for all workers."
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers share
    described = folder / "environment.json"
    with FileLock(folder / "environment.lock"), pytest.MonkeyPatch.context() as patched:
        patched.setattr("arxiv_embeddings.spark.environment.COMPRESSION", 1)  # quick; a little larger than users' ones
        if not described.exists():
            described.write_text(json.dumps(pack_environment(folder / "environment.tar.gz")))
    return json.loads(described.read_text())


@pytest.fixture(scope="session")
def own_mounts() -> list[str]:
    "The words before a command that lets it mount file systems which nobody else sees, without being root."
    words = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("no small file system can be made here: user namespaces are not to be had")
    return words


@pytest.fixture
def three_files(tmp_path: Path) -> tuple[Path, Path, bytes]:
    "The sample corpus in a folder of three Parquet files, the second cut in half: the folder, that file, and what it should hold."
    folder = tmp_path / "papers"
    folder.mkdir()
    papers = pd.read_csv(sample_papers(), dtype=str)
    for number in range(3):
        papers[number * 48 : number * 48 + 48].to_parquet(folder / f"part-{number}.parquet")
    corrupt = folder / "part-1.parquet"
    content = corrupt.read_bytes()
    corrupt.write_bytes(content[: len(content) // 2])
    return folder, corrupt, content


@pytest.fixture
def write_jsonl(tmp_path: Path):
    "Write rows as a JSON Lines file and return its path."

    def write(*rows: object, name: str = "papers.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
