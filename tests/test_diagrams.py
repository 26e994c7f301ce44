"""Diagrams of notebooks become tables of arrows in the documentation."""

import re
import runpy

import nbformat
import pytest

from tests.fakes import ROOT

TOOLS = runpy.run_path(str(ROOT / "tools" / "diagrams.py"))
tabulate = TOOLS["tabulate"]


def arrows_of(diagram: str) -> list[str]:
    "Return the rows of the table that a diagram becomes."
    return tabulate(diagram).splitlines()[2:]


def test_flow_with_labels_chains_and_groups() -> None:
    diagram = """flowchart LR
        subgraph here["this machine"]
            a["read: one<br>file"] -- "first, second" --> b{"is it good?"} -- no --> c
        end
        b -- yes --> d[("a disk")]
        c -->|by hand| here
        e[seen: later] --> c
        c["put aside"]"""
    assert arrows_of(diagram) == [
        "| read: one file | first, second | is it good? |",
        "| is it good? | no | put aside |",
        "| is it good? | yes | a disk |",
        "| put aside | by hand | this machine |",
        "| seen: later | | put aside |",
    ]


def test_states_and_messages() -> None:
    assert arrows_of("stateDiagram-v2\n  [*] --> Free\n  Free --> Owned: take it") == [
        "| (start) | | Free |",
        "| Free | take it | Owned |",
    ]
    diagram = "sequenceDiagram\n participant W as the writer\n W->>P: one: two\n Note over W,P: done\n P-->>W: thanks"
    assert arrows_of(diagram) == ["| the writer | one: two | P |", "| | done | |", "| P | thanks | the writer |"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("nbs/**/*.ipynb")), ids=lambda path: path.stem)
def test_no_arrow_of_a_notebook_is_lost(path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        for diagram in TOOLS["BLOCK"].findall(cell.source if cell.cell_type == "markdown" else ""):
            drawn = re.findall(r"-->>|->>|-->|Note over", diagram)
            rows = arrows_of(diagram)
            assert 0 < len(rows) <= len(drawn)
            assert not re.search(r"[\[\]{}\"]|-->|<br", "".join(rows).replace("[*]", ""))
