"""The sample corpus keeps its promises: enough papers, of the right kind, written one by one."""

import itertools
import re
from collections import Counter

import pandas as pd
import pytest

from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import copy_sample, read_papers, sample_papers, sample_relations
from arxiv_embeddings.papers.ids import ARXIV_ID

PAPERS = read_papers(sample_papers())
TABLE = PAPERS.table().to_pandas()
RELATIONS = pd.read_csv(sample_relations(), sep="\t", dtype=str)


def sentences(text: str) -> list[str]:
    "The sentences of an abstract, in small letters and without punctuation."
    return [re.sub(r"\W+", " ", one).strip().lower() for one in re.split(r"(?<=[.!?])\s+", text)]


def test_every_row_is_a_paper() -> None:
    assert PAPERS.report.rejected == {}
    assert PAPERS.report.n_white_space_collapsed == 0


def test_enough_papers_of_enough_categories() -> None:
    counts = TABLE["primary_category"].value_counts()
    assert len(TABLE) >= 120
    assert len(counts) == 8
    assert counts.min() >= 15
    assert all(row.primary_category in row.categories for row in TABLE.itertuples())


def test_abstracts_are_as_long_as_abstracts_are() -> None:
    n_words = TABLE["abstract"].str.split().str.len()
    assert n_words.min() >= 60
    assert n_words.max() <= 200


def test_abstracts_look_as_those_of_the_field_do() -> None:
    assert TABLE["abstract"].str.contains(r"\$[^$]+\$").sum() >= 40  # LaTeX
    assert TABLE["abstract"].str.contains(r"[a-z]-[a-z]").sum() >= 80  # hyphenated terms
    assert TABLE["abstract"].str.contains(r"[À-žА-я]").sum() >= 30  # names that are not ASCII


def test_nobody_can_take_them_for_real() -> None:
    assert TABLE["authors"].str.fullmatch(r"Placeholder Author \d{3}").all()
    for paper_id in TABLE["paper_id"]:
        assert ARXIV_ID.fullmatch(paper_id)
        assert paper_id[2:4] == "00"  # a month that there is not


def test_no_sentence_stands_in_two_abstracts_outside_marked_pairs() -> None:
    near = RELATIONS[RELATIONS["kind"] == "near_duplicate"]
    marked = {frozenset(pair) for pair in zip(near["src"], near["dst"], strict=True)}
    holders: dict[str, list[str]] = {}
    for row in TABLE.itertuples():
        for sentence in set(sentences(row.abstract)):
            holders.setdefault(sentence, []).append(row.paper_id)
    shared = {
        frozenset(pair)
        for ids in holders.values()
        for pair in itertools.combinations(ids, 2)
        if frozenset(pair) not in marked
    }
    assert shared == set()
    # ... and the marked ones do share some, but not all
    for src, dst in marked:
        first, second = (set(sentences(TABLE.set_index("paper_id").loc[one, "abstract"])) for one in (src, dst))
        assert first & second
        assert first - second
        assert second - first


def test_no_abstract_was_made_from_a_template() -> None:
    openings = Counter(" ".join(abstract.split()[:3]).lower() for abstract in TABLE["abstract"])
    near = RELATIONS[RELATIONS["kind"] == "near_duplicate"]
    repeated = {opening: count for opening, count in openings.items() if count > 2}
    assert repeated == {}
    assert sum(count - 1 for count in openings.values()) <= len(near) + 5


def test_relations_are_between_papers_of_the_corpus() -> None:
    ids = set(TABLE["paper_id"])
    assert set(RELATIONS["src"]) | set(RELATIONS["dst"]) <= ids
    assert RELATIONS["kind"].value_counts().to_dict() == {"companion": 24, "near_duplicate": 16}
    used = Counter([*RELATIONS["src"], *RELATIONS["dst"]])
    assert set(used.values()) == {1}


def test_a_copy_is_the_sample_and_overwrites_nothing(tmp_path) -> None:
    for _ in range(2):  # the second time it finds its own files
        papers, relations = copy_sample(tmp_path / "new" / "folder")
    assert papers.read_bytes() == sample_papers().read_bytes()
    assert relations.read_bytes() == sample_relations().read_bytes()
    papers.write_text("my own papers")
    with pytest.raises(InputError, match="exists and is not the sample's"):
        copy_sample(papers.parent)
    assert papers.read_text() == "my own papers"
