"""A recording file layer: it keeps every change of a folder, and plays back what a disk may hold after a power cut.

The model is the least that POSIX promises, as ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et al., OSDI 2018)
use it. A cut may come after every single call. Of what was done before,

* the content of a file is on the disk once the file was forced there (fsync); later writes may be missing, be there,
  be there in part, or be garbage;
* a name (made, renamed, removed) is on the disk once its folder was forced there; later names may be missing or be
  there, each by itself and in any order. A rename is one step: never half.

The layer stands in for the functions through which this package writes: `open`, `replace`, `rename`, `unlink`, `mkdir`,
`rmdir` and `fsync`, of `pathlib` and of `os`. Nothing in the package knows of it.
"""

import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

ROOT_NODE = 0
MOST_SUBSETS = 8  # up to so many names that may be missing, all subsets are tried; beyond it, a sample
Tree = dict[str, bytes | None]  # name within the recorded folder -> content; `None`: a folder


@dataclass(frozen=True)
class Step:
    "One change, in terms of nodes: a file or folder keeps its node when it is renamed."

    kind: str  # link, unlink, rename, write, fsync, sync or mark
    node: int = -1  # that is linked, renamed, written or forced to disk
    place: tuple[int, str] | None = None  # folder and name that is made or removed
    before: tuple[int, str] | None = None  # of a rename: where it was
    content: bytes = b""  # after a write: all of the file
    mark: Any = None  # what the test wants to remember here


@dataclass
class Recording:
    "The steps of a command, and the folder as it was before."

    steps: list[Step] = field(default_factory=list)
    names: dict[tuple[int, str], int] = field(default_factory=dict)  # on the disk at the beginning
    contents: dict[int, bytes] = field(default_factory=dict)  # of files at the beginning
    folders: set[int] = field(default_factory=lambda: {ROOT_NODE})


class Recorder:
    "Records the changes below a folder."

    def __init__(self, root: Path):
        self.root, self.recording = root, Recording()
        self.live: dict[str, int] = {"": ROOT_NODE}  # path within the folder -> node, now
        self.latest: dict[int, bytes] = {}
        self.n_nodes, self.inside = 1, False
        for path in sorted(root.rglob("*")):
            place, node = self._place(path), self._new_node(path)
            self.recording.names[place] = node
            if path.is_dir():
                self.recording.folders.add(node)
            else:
                self.recording.contents[node] = self.latest[node] = path.read_bytes()

    def _new_node(self, path: Path) -> int:
        self.live[self._name(path)] = self.n_nodes
        self.n_nodes += 1
        return self.n_nodes - 1

    def _name(self, path: Path) -> str:
        return "" if path == self.root else str(path.relative_to(self.root))

    def _place(self, path: Path) -> tuple[int, str]:
        return self.live[self._name(path.parent)], path.name

    def knows(self, path: Path) -> bool:
        return self.root in path.parents and self._name(path) in self.live

    def mark(self, what: Any) -> None:
        self.recording.steps.append(Step("mark", mark=what))

    def made(self, path: Path, is_folder: bool) -> int:
        place = self._place(path)
        node = self._new_node(path)
        self.recording.steps.append(Step("link", node, place))
        if is_folder:
            self.recording.folders.add(node)
        else:
            self.latest[node] = b""
        return node

    def removed(self, path: Path) -> None:
        if self.knows(path):
            self.recording.steps.append(Step("unlink", place=self._place(path)))
            del self.live[self._name(path)]

    def renamed(self, path: Path, target: Path) -> None:
        before, place, node = self._place(path), self._place(target), self.live[self._name(path)]
        self.recording.steps.append(Step("rename", node, place, before))
        old, new = self._name(path), self._name(target)
        for name in [one for one in self.live if one == old or one.startswith(f"{old}/")]:
            self.live[new + name[len(old) :]] = self.live.pop(name)

    def wrote(self, node: int, content: bytes) -> None:
        if self.latest[node] != content:
            self.latest[node] = content
            self.recording.steps.append(Step("write", node, content=content))

    def forced(self, path: Path) -> None:
        if path == self.root or self.knows(path):
            node = self.live[self._name(path)]
            kind = "sync" if node in self.recording.folders else "fsync"
            self.recording.steps.append(Step(kind, node))


class RecordedFile(io.BufferedWriter):
    "A file whose content is recorded whenever it goes to the system."

    def __init__(self, path: Path, mode: str, recorder: Recorder):
        is_new = not path.exists()
        super().__init__(io.FileIO(path, mode))
        self.recorder = recorder
        self.node = recorder.made(path, is_folder=False) if is_new else recorder.live[recorder._name(path)]
        self.flush()

    def flush(self) -> None:
        super().flush()
        if hasattr(self, "node"):
            self.recorder.wrote(self.node, Path(f"/proc/self/fd/{self.fileno()}").read_bytes())


@contextmanager
def recording(root: Path) -> Iterator[Recorder]:
    "Record everything that happens below a folder in a `with` block."
    recorder = Recorder(root)
    given = {name: getattr(Path, name) for name in ("open", "replace", "rename", "unlink", "mkdir", "rmdir")}
    of_system = {name: getattr(os, name) for name in ("unlink", "rmdir")}

    def watched(call: Callable, after: Callable) -> Callable:
        "A call whose effect is recorded when it has succeeded; calls that it makes itself are not."

        def calling(path: Any, *more: Any, **options: Any) -> Any:
            if recorder.inside:
                return call(path, *more, **options)
            recorder.inside = True
            try:
                result = call(path, *more, **options)
                after(path, *more, **options)
                return result
            finally:
                recorder.inside = False

        return calling

    def open_file(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if recorder.root not in path.parents or "r" in mode:
            return given["open"](path, mode, *more, **options)
        stream = RecordedFile(path, mode.replace("b", ""), recorder)
        return stream if "b" in mode else io.TextIOWrapper(stream, options.get("encoding"))

    def make_folder(path: Path, *more: Any, **options: Any) -> None:
        if recorder.inside:  # `mkdir` calls itself for the folders above
            return given["mkdir"](path, *more, **options)
        missing = [one for one in (path, *path.parents) if recorder.root in one.parents and not one.exists()]
        recorder.inside = True
        try:
            given["mkdir"](path, *more, **options)
        finally:
            recorder.inside = False
        for one in reversed(missing):
            recorder.made(one, is_folder=True)

    def remove(path: Any, dir_fd: int | None = None, **options: Any) -> None:
        above = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) if dir_fd is not None else Path()
        recorder.removed(Path(os.path.abspath(above / path)))

    def force(descriptor: int) -> None:
        recorder.forced(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    def rename(path: Path, target: Any) -> None:
        recorder.renamed(path, Path(target))

    patches = [
        mock.patch.object(Path, "open", open_file),
        mock.patch.object(Path, "mkdir", make_folder),
        mock.patch.object(Path, "replace", watched(given["replace"], rename)),
        mock.patch.object(Path, "rename", watched(given["rename"], rename)),
        mock.patch.object(Path, "unlink", watched(given["unlink"], lambda path, **_: recorder.removed(path))),
        mock.patch.object(Path, "rmdir", watched(given["rmdir"], recorder.removed)),
        mock.patch.object(os, "unlink", watched(of_system["unlink"], remove)),
        mock.patch.object(os, "rmdir", watched(of_system["rmdir"], remove)),
        mock.patch.object(os, "fsync", force),  # the disk of this machine need not wait
    ]
    for patch in patches:
        patch.start()
    try:
        yield recorder
    finally:
        for patch in reversed(patches):
            patch.stop()


def choose_subsets(n: int, draw: random.Random) -> Iterator[tuple[bool, ...]]:
    "Which of `n` names have reached the disk: all subsets of a few, a sample of many."
    if n <= MOST_SUBSETS:
        yield from product((False, True), repeat=n)
        return
    for number in range(n + 1):
        yield tuple(place < number for place in range(n))  # in order
    for number in range(n):
        yield tuple(place == number for place in range(n))  # one alone
        yield tuple(place != number for place in range(n))  # all but one
    for _ in range(n):
        yield tuple(draw.random() < 0.5 for _ in range(n))


def spoil(content: bytes, how: str) -> bytes:
    "What a disk may hold of content that was not forced there."
    if how == "half":
        return content[: len(content) // 2]
    return bytes(len(content)) if how == "zeros" else bytes(byte ^ 0x5A for byte in content)


def build_tree(names: dict[tuple[int, str], int], folders: set[int], contents: dict[int, bytes]) -> Tree:
    "What can be reached from the root."
    tree: Tree = {}
    below: dict[int, list[tuple[str, int]]] = {}
    for (folder, name), node in names.items():
        below.setdefault(folder, []).append((name, node))
    waiting = [("", ROOT_NODE)]
    while waiting:
        path, folder = waiting.pop()
        for name, node in below.get(folder, ()):
            tree[path + name] = None if node in folders else contents.get(node, b"")
            if node in folders:
                waiting.append((f"{path}{name}/", node))
    return tree


def list_cuts(recorded: Recording, seed: int = 0) -> Iterator[tuple[int, Tree]]:
    "Every state after a cut: how many steps were done, and what is on the disk."
    draw = random.Random(seed)
    begin = next(at for at, step in enumerate(recorded.steps) if step.kind != "mark")
    yield begin, build_tree(recorded.names, recorded.folders, recorded.contents)
    for done in range(begin + 1, len(recorded.steps) + 1):
        if recorded.steps[done - 1].kind != "mark":
            for tree in _list_states(recorded, done, draw):
                yield done, tree


def _list_states(recorded: Recording, done: int, draw: random.Random) -> Iterator[Tree]:
    steps = recorded.steps[:done]
    last_sync = {step.node: at for at, step in enumerate(steps) if step.kind == "sync"}
    changes = [(at, step) for at, step in enumerate(steps) if step.kind in ("link", "unlink", "rename")]
    pending = [at for at, step in changes if last_sync.get(step.place[0], -1) < at]
    forced, latest = dict(recorded.contents), dict(recorded.contents)
    for step in steps:
        if step.kind == "write":
            latest[step.node] = step.content
        elif step.kind == "fsync":
            forced[step.node] = latest.get(step.node, b"")
    for chosen in choose_subsets(len(pending), draw):
        left_out = {at for at, there in zip(pending, chosen, strict=True) if not there}
        names = dict(recorded.names)
        for at, step in changes:
            if at not in left_out:
                _apply(step, names)
        yield from _vary_contents(names, recorded.folders, forced, latest)


def _apply(step: Step, names: dict[tuple[int, str], int]) -> None:
    if step.kind == "unlink":
        names.pop(step.place, None)
        return
    if step.kind == "rename" and names.get(step.before) == step.node:
        del names[step.before]
    names[step.place] = step.node


def _vary_contents(
    names: dict[tuple[int, str], int], folders: set[int], forced: dict[int, bytes], latest: dict[int, bytes]
) -> Iterator[Tree]:
    "The same names with every fate of unforced content: all files alike, and one file unlike the others."
    open_ends = [node for node in names.values() if latest.get(node, b"") != forced.get(node, b"")]
    if not open_ends:
        yield build_tree(names, folders, latest)
        return
    fates = {
        "kept": lambda node: latest[node],
        "dropped": lambda node: forced.get(node, b""),
        **{how: lambda node, how=how: spoil(latest[node], how) for how in ("half", "zeros", "garbage")},
    }
    groups = [open_ends] if len(open_ends) == 1 else [open_ends, *([node] for node in open_ends)]
    for nodes in groups:
        for fate in fates.values():
            yield build_tree(names, folders, latest | {node: fate(node) for node in nodes})


def write_tree(tree: Tree, root: Path) -> None:
    "Put a state on this machine's disk."
    root.mkdir(parents=True)
    for name in sorted(tree):
        if tree[name] is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(tree[name])
