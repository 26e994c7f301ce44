"The cards of models: whole, with a source for every statement, and what the registry and the pages make of them."

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest

from arxiv_embeddings.cli.runs import CARD_LABELS, describe_card, summarize_card
from arxiv_embeddings.encoders.prompts import find_family
from arxiv_embeddings.encoders.registry import REGISTRY, ModelCard, find_card, find_model, known_models, read_cards
from arxiv_embeddings.encoders.spec import METRICS
from arxiv_embeddings.files.errors import InputError
from tests.fakes import ROOT

FILE = ROOT / "arxiv_embeddings" / "encoders" / "known_models.json"
CARDS = list(known_models().values())
PAGE = nbformat.read(ROOT / "nbs" / "pages" / "models.ipynb", as_version=4)
# fields that state nothing of a model's own, or are told by another one
UNSOURCED = {"name", "sources", "mteb", "notes", "not_run", "runs_by_id", "left_to_folder"}
TASKS = ("SciFact", "SCIDOCS", "TRECCOVID")


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_statement_has_a_source(card: ModelCard) -> None:
    for one in fields(ModelCard):
        value = getattr(card, one.name)
        if one.name not in UNSOURCED and value not in (None, {}, []):
            assert card.sources.get(one.name), one.name
            assert card.sources[one.name] != "not verified", one.name
    for name in ("prompt", "query_prompt"):  # an empty one is a statement, too
        assert card.sources[name]
    for task, figure in card.mteb.items():
        assert (card.sources[f"mteb.{task}"] == "not found") == (figure is None), task
    names = {one.name for one in fields(ModelCard)} | {f"mteb.{task}" for task in TASKS}
    assert set(card.sources) <= names
    assert tuple(card.mteb) == TASKS


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_card_has_what_a_reader_needs(card: ModelCard) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", card.hub_id)
    assert card.good_for.endswith(".")
    assert len(card.good_for) <= 78  # one line of the table
    assert card.license or card.sources["license"] == "not verified"
    assert card.metric in METRICS
    if not card.not_run:
        assert card.license
        assert card.pooling
        assert card.dimensions
        assert card.max_tokens or card.architecture == "static vectors"
        assert not card.brings_code
    assert all(size < card.dimensions for size in card.shorter)
    assert card.license != "CC-BY-NC-4.0" or (card.commercial_use is False and "non-commercial" in card.not_run)


def test_names_come_once_and_the_command_leaves_out_no_field() -> None:
    rows = json.loads(FILE.read_text(encoding="utf-8"))["models"]
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names) >= 31
    known = {one.name for one in fields(ModelCard)}
    assert {name for row in rows for name in row} <= known  # no field is misspelt
    assert set(CARD_LABELS) == known - UNSOURCED
    of_one_model = {"allenai/specter2_base"}
    ids = [card.hub_id for card in CARDS if card.hub_id not in of_one_model]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", REGISTRY)
def test_the_registry_runs_what_the_card_says(name: str) -> None:
    spec, card = find_model(name), find_card(name)
    assert spec.license == card.license
    assert spec.metric in (None, card.metric)
    assert spec.max_tokens == card.max_tokens
    assert spec.pooling == (None if "pooling" in card.left_to_folder else card.pooling)
    assert (spec.prompt or "", spec.query_prompt or "") == (card.prompt, card.query_prompt)
    separator = "{sep}" if spec.separator is None else spec.separator
    assert card.text_template == f"{{title}}{separator}{{abstract}}"
    if not spec.source.startswith("package:"):
        assert (spec.source, spec.revision) == (card.hub_id, card.revision)
    if spec.adapter:
        assert (spec.adapter, spec.adapter_revision) in {
            (one["hub_id"], one["revision"]) for one in card.adapters.values()
        }


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_prompts_are_those_of_the_family(card: ModelCard) -> None:
    family = find_family(card.hub_id)
    expected = (family.prompt, family.query_prompt) if family else ("", "")
    assert (card.prompt, card.query_prompt) == expected


def test_a_model_that_is_not_run_says_why() -> None:
    not_run = [card for card in CARDS if card.not_run]
    assert {card.name for card in not_run} == set(known_models()) - set(REGISTRY)
    for card in not_run:
        with pytest.raises(InputError, match=f"{re.escape(card.name)} is known, but not run by this name: ") as caught:
            find_model(card.name)
        assert card.not_run in str(caught.value)
        assert describe_card(card)["not run"] == card.not_run
        assert summarize_card(card)["run"] == "no"
    assert [card.name for card in not_run if not card.runs_by_id] == ["medcpt"]
    with pytest.raises(InputError, match="title and abstract as a pair"):
        find_model("ncbi/MedCPT-Article-Encoder", pooling="cls")
    by_id = find_model("jinaai/jina-embeddings-v5-text-nano-retrieval")  # its files have the last word
    assert (by_id.pooling, by_id.prompt) == (None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("[1, 2", "cannot be read"),
        ('{"models": []}', "models is a list of 0"),
        ('{"models": [{"name": "a\\nb"}]}', "hub_id is missing"),
        (None, "No such file"),
    ],
)
def test_a_damaged_file_is_one_line(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "known_models.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_cards(path)
    assert "install arxiv-embeddings again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_heavy_is_imported_for_the_cards() -> None:
    heavy = "{'torch', 'transformers', 'pandas', 'openvino'}"
    script = f"import sys; from arxiv_embeddings.encoders.registry import known_models; known_models(); print({heavy} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"
    script = "import sys, arxiv_embeddings.cli.main; print('arxiv_embeddings.encoders.registry' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"  # nor is the file read for --help


def test_the_page_is_made_of_the_cards() -> None:
    "Every table of the page comes from the data: no name and no figure of a model is written by hand."
    printed = "".join(
        output.get("text", "") or output["data"].get("text/markdown", output["data"].get("text/plain", ""))
        for cell in PAGE.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    for card in CARDS:
        assert re.search(rf"(?<![\w-]){re.escape(card.name)}(?![\w-])", printed), card.name
        for figure in card.mteb.values():
            assert figure is None or f"{figure:.4f}" in printed
    assert "not found" in printed
    prose = "".join(cell.source for cell in PAGE.cells)
    assert not re.search(r"0\.\d{3,}", prose)
