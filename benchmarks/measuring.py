"""What the long benchmarks share: processes of their own for what is measured, and a file of figures that is renewed by parts."""

import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from benchmarks.main_job import DATA, ROOT, name_processor


def call(function: Callable[..., dict], *arguments: str | Path) -> dict:
    "Run a benchmark's function in a process whose memory and Spark are its own."
    command = [
        sys.executable,
        "-m",
        f"benchmarks.{Path(inspect.getfile(function)).stem}",
        "--call",
        function.__name__,
        *map(str, arguments),
    ]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = json.loads(printed.splitlines()[-1])
    print(function.__name__, *arguments, json.dumps(result), flush=True)
    return result


def main(
    measurements: dict[str, Callable[[Path], dict]],  # each is given an empty folder
    functions: dict[str, Callable[..., dict]],  # what `call` may name
    results: Path,  # JSON, renewed where a measurement is made
    without_data: Collection[str] = (),  # measurements that need no real abstracts
) -> None:
    "Measure what the command line names, or everything, and write it beside what was measured before."
    if sys.argv[1:2] == ["--call"]:
        print(json.dumps(functions[sys.argv[2]](*sys.argv[3:])))
        return
    names = sys.argv[1:] or list(measurements)
    if unknown := set(names) - measurements.keys():
        sys.exit(f"no measurement {min(unknown)!r}; there are: {', '.join(measurements)}")
    if set(names) - set(without_data) and not DATA.is_dir():
        sys.exit(f"no real data in {DATA}: set ARXIV_EMBEDDINGS_DATA")
    figures = json.loads(results.read_text()) if results.exists() else {}
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            figures[name] = measurements[name](Path(work)) | {"processor": name_processor()}
        results.write_text(json.dumps(figures, indent=1) + "\n")
