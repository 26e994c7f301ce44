"""Two real processes on one run: one is stopped at a chosen step, the other works, then the first goes on.

A step is a moment at which another process can see a difference: a file or a folder is forced to disk, or a part is
read. A worker process runs the commands that it is told, and stops at the step that it is told.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import arxiv_embeddings
from arxiv_embeddings.explore.index import build_index
from arxiv_embeddings.explore.plots import PlotOptions, plot_run
from arxiv_embeddings.files import paths
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.runs import store
from arxiv_embeddings.runs import verify as checks
from arxiv_embeddings.runs.append import compact_run, recover_staging
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.export import export_run
from arxiv_embeddings.runs.repair import embed_again, repair_run
from arxiv_embeddings.runs.store import RunWriter, open_run, replace_parts
from arxiv_embeddings.runs.verify import verify_run
from tests.fakes.letters import LetterEncoder

Content = tuple[tuple[str, ...], bytes]  # ids and vectors
PART_SIZE = 3
SMALL = PlotOptions(dpi=30, size=(6, 4))  # drawn in a third of the time; the same files


def read(run: Path) -> Content:
    "Ids and vectors, each by a pass of its own over the parts."
    opened = open_run(run)
    vectors = opened.embeddings().tobytes()
    return tuple(opened.paper_ids), vectors


def compact(run: Path) -> None:
    with RunWriter(run) as writer:
        recover_staging(writer)
        compact_run(writer, PART_SIZE)


def replace(run: Path) -> None:
    "What a repair does with a damaged part."
    repair_run(run, encoder=LetterEncoder())
    with RunWriter(run) as writer:
        part = writer.parts[-1]
        papers = open_run(run).read_part(part).drop_columns("embedding").replace_schema_metadata(None)
        replace_parts(writer, [part], embed_again(writer, part, papers, LetterEncoder()))


def verify(run: Path) -> None:
    found = verify_run(open_run(run))
    wrong = [one for one in found["problems"] if one["kind"] == "damage"]
    assert not wrong, wrong


def search(run: Path) -> None:
    opened = open_run(run)
    assert len(arxiv_embeddings.similar(opened, opened.paper_ids[0], k=3)) >= 3


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "embed": lambda run: embed_papers(run.with_name("papers.csv"), run, encoder=LetterEncoder()),
    "append": lambda run: embed_papers(
        run.with_name("newer.csv"), run, append=True, prune=True, encoder=LetterEncoder()
    ),
    "compact": compact,
    "repair": replace,
    "index": lambda run: build_index(open_run(run)),
    "export": lambda run: export_run(open_run(run), "npy", "parquet"),
    "export smaller": lambda run: export_run(open_run(run), "int8", "flat"),
    "plot": lambda run: plot_run(open_run(run), SMALL),
    "read": read,
    "search": search,
    "describe": lambda run: arxiv_embeddings.describe(open_run(run)),
    "verify": verify,
}
WRITERS = ("embed", "append", "compact", "repair")


def work(pipe: Any) -> None:
    "Run commands until the pipe is closed. Answers `stopped` at the step, then how the command ended."
    count = {"steps": 0, "stop": 0}

    def step() -> None:
        count["steps"] += 1
        if count["steps"] == count["stop"]:
            pipe.send(("stopped", count["steps"]))
            pipe.recv()

    def stepping(function: Callable) -> Callable:
        def calling(*given: Any, **options: Any) -> Any:
            step()
            return function(*given, **options)

        return calling

    for owner, name in (
        (paths, "force_to_disk"),
        (paths, "sync_folder"),
        (store, "read_checked"),
        (checks, "check_part"),
    ):
        setattr(owner, name, stepping(getattr(owner, name)))
    while command := pipe.recv():
        name, run, count["stop"] = command
        count["steps"] = 0
        try:
            result = COMMANDS[name](Path(run))
            pipe.send(("done", result if name == "read" else None))
        except InputError as error:
            pipe.send(("refused", str(error)))
        except BaseException as error:
            pipe.send(("failed", f"{type(error).__name__}: {error}"))
        pipe.send(("steps", count["steps"]))


class Worker:
    "A process that runs commands."

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()

    def begin(self, name: str, run: Path, stop: int = 0) -> None:
        self.pipe.send((name, str(run), stop))

    def answer(self) -> tuple[str, Any]:
        assert self.pipe.poll(120), "the process does not answer"
        return self.pipe.recv()

    def finish(self) -> tuple[tuple[str, Any], int]:
        "How the command ended, and how many steps it had."
        ended = self.answer()
        return ended, self.answer()[1]

    def go_on(self) -> None:
        self.pipe.send("go on")


@contextmanager
def two_workers() -> Iterator[tuple[Worker, Worker]]:
    "Two processes, ended with the block."
    workers = Worker(), Worker()
    try:
        yield workers
    finally:
        for worker in workers:
            worker.pipe.send(None)
            worker.process.join(10)
