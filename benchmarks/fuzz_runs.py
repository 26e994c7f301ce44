"""Change runs on purpose, one field or file at a time, and see that every command ends in one line or in a sound run.

    python -m benchmarks.fuzz_runs                        # 500 changes, five commands with each
    python -m benchmarks.fuzz_runs --changes 5000 --seed 7
    python -m benchmarks.fuzz_runs --all                  # every change of every field, with every command: hours

Fields are found by walking the documents, so new ones are tried by themselves. A tree beside the run is watched: nothing in it may change.
What went wrong is printed as it is found; the last line counts. Exit code 1 if anything did.
"""

import argparse
import logging
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fakes.hostile import COMMANDS, Change, draw_changes, letters_for_models, list_changes, make_base, try_change

MEMORY = 12 << 30  # bytes of addresses: what the metadata of a small run state must not make a command ask for more
SELDOM = ("plot",)  # takes a second: in one of twenty changes


def choose_commands(number: int, n_commands: int, generator: random.Random) -> tuple[str, ...]:
    "Draw commands for one change, in their own order."
    names = [name for name in COMMANDS if name not in SELDOM or number % 20 == 0]
    drawn = generator.sample(names, min(n_commands, len(names)))
    return tuple(name for name in names if name in drawn)


def try_changes(base: Path, changes: list[Change], n_commands: int, seed: int) -> tuple[Counter, int]:
    "Try changes one after another; how often what went wrong, and how many commands were run."
    counts, n_calls, started, generator = Counter(), 0, time.monotonic(), random.Random(seed)
    for number, change in enumerate(changes):
        commands = choose_commands(number, n_commands, generator)
        n_calls += len(commands)
        for problem in try_change(base, change, commands):
            kind = problem.split(": ")[1].split()[0]
            counts[{"touched": "touched", "hangs": "hangs"}.get(kind, "not one line")] += 1
            print(problem, flush=True)
        if number % 500 == 499:
            print(f"{number + 1} changes, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return counts, n_calls


def main() -> int:
    "Parse the options, try the changes, print the counts."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=500, help="how many changes to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--commands", type=int, default=5, help="how many commands to draw for each change")
    parser.add_argument("--all", action="store_true", help="every change, with every command")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder, letters_for_models():
        base = Path(folder)
        make_base(base)
        changes = list_changes(base / "run")
        n_all = len(changes)
        drawn = changes if options.all else draw_changes(changes, options.changes, options.seed)
        counts, n_calls = try_changes(base, drawn, len(COMMANDS) if options.all else options.commands, options.seed)
    found = ", ".join(f"{counts[kind]} {kind}" for kind in ("not one line", "hangs", "touched"))
    print(f"{len(drawn)} of {n_all} changes, {n_calls} commands: {found}")
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main())
