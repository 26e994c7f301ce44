"""What an install takes on disk, by the packages that each extra brings; writes results/install.json.

Each package counts with the blocks of its own files, in the environment that runs this: `make env`, then
`python -m benchmarks.install`. A fresh environment with the same packages takes as much.
"""

import json
import os
import platform
import sys
from collections.abc import Iterable
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "install.json"
EXTRAS = ("int8", "stores", "explore", "umap", "spark", "docs", "dev")
FOR_GPUS = ("nvidia-", "cuda-", "triton")  # what torch's wheel for Linux brings beside itself


def is_wanted(requirement: Requirement, extras: Iterable[str]) -> bool:
    "Whether a requirement counts on this machine, for one of these extras of the package that names it."
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras})


def find_packages(requirements: list[str]) -> set[str]:
    "Find the packages that requirements bring, with everything that these need in turn."
    seen, waiting = set(), [Requirement(text) for text in requirements]
    while waiting:
        found = waiting.pop()
        key = (canonicalize_name(found.name), frozenset(found.extras))
        if key not in seen:
            seen.add(key)
            for text in metadata.distribution(found.name).requires or []:
                needed = Requirement(text)
                if is_wanted(needed, found.extras):
                    waiting.append(needed)
    return {name for name, _ in seen}


def measure_package(name: str) -> int:
    "Count the bytes on disk of a package's files."
    paths = [Path(str(file.locate())) for file in metadata.distribution(name).files or []]
    return sum(os.stat(path).st_blocks * 512 for path in paths if path.exists())


def summarize(names: set[str], n_named: int) -> dict:
    "Return how much packages take in MB, and the largest of them."
    sizes = {name: round(measure_package(name) / 1e6) for name in names}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:n_named]
    return {"n_packages": len(sizes), "mb": sum(sizes.values()), "largest": {name: sizes[name] for name in largest}}


def main() -> None:
    "Measure, print, write."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    settings = parser["DEFAULT"]
    core = find_packages(settings["requirements"].split())
    results = {"core": summarize(core, 12)}
    results["for GPUs"] = summarize({name for name in core if name.startswith(FOR_GPUS)}, 3)
    for extra in EXTRAS:
        brought = find_packages(settings[f"{extra}_requirements"].split()) - core
        results[extra] = summarize(brought, 3)
    results["machine"] = {
        "system": sys.platform,
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }
    print(json.dumps(results, indent=1))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
