"""Diagrams as tables of arrows. JupyterLab draws Mermaid's diagrams itself; a site would have to load its script from elsewhere."""

import re

NODE = r"\w+|\[\*\]"
SHAPE = re.compile(rf'({NODE})(?:\[\("(.+?)"\)\]|\["(.+?)"\]|\{{"(.+?)"\}}|\[([^\]"*]+)\])?')
EDGE = re.compile(r'\s*--\s*"([^"]+)"\s*-->\s*|\s*--\s+([^>"]+?)\s+-->\s*|\s*-->\|([^|]+)\|\s*|\s*-->\s*')
MESSAGE = re.compile(r"(\w+)\s*-{1,2}>>\s*(\w+):\s*(.+)")
PARTICIPANT = re.compile(r"participant (\w+) as (.+)")
BLOCK = re.compile(r"```mermaid\n(.*?)\n```", re.DOTALL)


def read_node(text: str, names: dict[str, str]) -> str:
    "Return the key of a node, and keep its label, if one is given here."
    found = SHAPE.match(text.strip())
    label = next(filter(None, found.groups()[1:]), None)
    if label or found[1] not in names:
        names[found[1]] = re.sub(r"<br\s*/?>", " ", label or found[1]).strip()
    return found[1]


def read_arrows(line: str, names: dict[str, str]) -> list[tuple[str, str, str]]:
    "Read a line of a diagram: from, label and to of each of its arrows."
    if found := MESSAGE.fullmatch(line):
        return [(found[1], found[3], found[2])]
    place, nodes, labels = 0, [], []
    for edge in EDGE.finditer(line):
        nodes.append(read_node(line[place : edge.start()], names))
        labels.append(next(filter(None, edge.groups()), ""))
        place = edge.end()
    rest = line[place:].strip()
    if labels and (found := re.fullmatch(rf"({NODE}): (.+)", rest)):  # as diagrams of states write it
        rest, labels[-1] = found.groups()
    if SHAPE.match(rest):
        nodes.append(read_node(rest, names))
    return list(zip(nodes, labels, nodes[1:], strict=False))


def tabulate(diagram: str) -> str:
    "Return a diagram as a Markdown table of its arrows."
    names, arrows = {"[*]": "(start)"}, []
    for line in map(str.strip, diagram.splitlines()[1:]):
        if found := PARTICIPANT.fullmatch(line):
            names[found[1]] = found[2]
        elif found := re.fullmatch(r"Note over \S+: (.+)", line):
            arrows.append(("", found[1], ""))
        elif found := re.fullmatch(r'subgraph (\w+)(?:\["(.+)"\])?', line):
            names[found[1]] = found[2] or found[1]
        elif line and line != "end":
            arrows.extend(read_arrows(line, names))
    rows = [f"| {names.get(a, a)} | {label} | {names.get(b, b)} |".replace("  ", " ") for a, label, b in arrows]
    return "\n".join(["| from | → | to |", "| --- | --- | --- |", *dict.fromkeys(rows)])


def replace_diagrams(body: str) -> str:
    "Put a table in the place of each diagram of a page."
    return BLOCK.sub(lambda found: f"\n{tabulate(found[1])}\n", body)
