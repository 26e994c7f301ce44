"""A writer that is slow enough to be caught halfway: `python -m tests.fakes.slow_writer PAPERS FOLDER PART_SIZE SECONDS`."""

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from arxiv_embeddings.files.paths import resolve_folder
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.format import METADATA_NAME
from arxiv_embeddings.runs.store import open_run
from tests.fakes import ROOT
from tests.fakes.letters import SlowEncoder


def start_writer(papers: object, folder: object, part_size: int, seconds: float) -> subprocess.Popen:
    "Start a process that embeds papers with letters, `seconds` a part, and wait until it is about to begin."
    words = map(str, (papers, folder, part_size, seconds))
    command = [sys.executable, "-m", "tests.fakes.slow_writer", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def count_committed(folder: object) -> int:
    "Papers of a run, on disk or on HDFS; 0 before it has begun."
    return open_run(folder).n_papers if (resolve_folder(folder) / METADATA_NAME).exists() else 0


def wait_until(
    happened: Callable[[], bool],
    process: subprocess.Popen | None = None,  # fail at once if it ends first
    seconds: float = 240,  # fail if it takes longer
) -> None:
    "Wait for something that another process or thread does."
    started = time.monotonic()
    while not happened():
        if process and process.poll() is not None:
            errors = process.stderr.read() if process.stderr else ""
            pytest.fail(f"the process ended too early, with exit code {process.returncode}: {errors}")
        if time.monotonic() - started > seconds:
            if process:
                process.kill()
            pytest.fail(f"nothing happened for {seconds} seconds")
        time.sleep(0.005)


if __name__ == "__main__":
    papers, folder, part_size, seconds = sys.argv[1:]
    encoder = SlowEncoder(float(seconds))
    print("ready", flush=True)
    embed_papers(papers, folder, part_size=int(part_size), encoder=encoder)
