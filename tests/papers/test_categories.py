"""Categories in every form that exports have: a paper is never lost for them, and what is not understood is named."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arxiv_embeddings.papers.categories import Categories, parse_categories
from arxiv_embeddings.papers.corpus import read_papers
from arxiv_embeddings.papers.parsing import WITH_CLASSES, WITHOUT_CATEGORIES

CODES = st.sampled_from(["cs.LG", "stat.ML", "hep-th", "cond-mat.mes-hall", "math.NT", "q-bio.QM", "astro-ph", "cs.XY"])
NAMES = st.sampled_from(["cancer biology", "Machine learning", "HIV/AIDS", "Alzheimer's disease", "Physics (General)"])


def names_of(value: object) -> list[str]:
    read = parse_categories(value)
    assert read.not_understood is None
    return list(read.names)


def forms_of(names: list[str]) -> dict[str, object]:
    "The same list as programs write it."
    return {
        "list": names,
        "array": pa.array(names).to_pylist(),
        "Python": str(names),
        "JSON": json.dumps(names),
        "NumPy": str(np.array(names, dtype=object)),
        "repr of NumPy": repr(np.array(names, dtype=object)),
        "semicolons": "; ".join(names),
        "bars": "|".join(names),
        "lines": "\n".join(names),
        "objects": [{"term": name, "scheme": "http://arxiv.org/schemas/atom"} for name in names],
        "objects as text": str([{"display_name": name, "score": 0.5} for name in names]),
        "objects as JSON": json.dumps([{"category": name} for name in names]),
    }


@given(st.lists(CODES, unique=True, max_size=4))
def test_codes_read_alike_from_every_form(names: list[str]) -> None:
    only_codes = {"blanks": " ".join(names), "slashes": "/".join(names), "commas": ", ".join(names)}
    for form, value in (forms_of(names) | only_codes).items():
        assert names_of(value) == names, form


@given(st.lists(NAMES | CODES, unique=True, min_size=1, max_size=4))
def test_names_with_blanks_stay_whole(names: list[str]) -> None:
    for form, value in forms_of(names).items():
        assert names_of(value) == names, form


@pytest.mark.parametrize(
    ("value", "names", "classes"),
    [
        ("cs.LG, 68T15 (Primary) 20M10 (Secondary)", ["cs.LG"], ["68T15", "20M10"]),
        (
            "['cs.CV', '68T45 (Primary) 68U10 (Secondary)', 'I.4.9; I.4.8']",
            ["cs.CV"],
            ["68T45", "68U10", "I.4.9", "I.4.8"],
        ),
        (
            [{"term": "math.CO"}, {"term": "Primary 05C99; Secondary 05-02, 05Exx"}],
            ["math.CO"],
            ["05C99", "05-02", "05Exx"],
        ),
        (["cs.AI", "I.2.7", "F.m"], ["cs.AI"], ["I.2.7", "F.m"]),
        (["cs.AI", "MSC 2020: see 68T05 and others"], ["cs.AI"], ["MSC 2020: see 68T05 and others"]),
        ("cs.AI 68T15", ["cs.AI"], ["68T15"]),
    ],
)
def test_classes_are_kept_apart(value: object, names: list[str], classes: list[str]) -> None:
    assert parse_categories(value) == Categories(tuple(names), tuple(classes), None)


def test_arxivs_way_of_writing_a_name_gives_its_code() -> None:
    assert names_of("Human-Computer Interaction (cs.HC); Machine Learning (cs.LG)") == ["cs.HC", "cs.LG"]
    assert names_of("Computer Science - Machine Learning") == ["Computer Science - Machine Learning"]
    assert names_of(["Mesoscale and Nanoscale Physics (cond-mat.mes-hall)"]) == ["cond-mat.mes-hall"]


def test_sets_have_one_order() -> None:
    names = [f"name {letter}" for letter in "abcdefgh"]
    assert names_of(set(names)) == names_of(frozenset(names)) == names
    assert names_of("{'stat.ML', 'cs.LG'}") == ["stat.ML", "cs.LG"]


@pytest.mark.parametrize(
    "value", [None, float("nan"), "", "  ", "nan", "None", "<NA>", "[]", "set()", [], [None], "array([], dtype=object)"]
)
def test_missing_values_are_no_category(value: object) -> None:
    assert parse_categories(value) == Categories((), (), None)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("['cs.CL', ", "a broken list: ['cs.CL',"),
        ("['cs.CL' ... 'cs.LG']", "a broken list"),
        (7, "an int, 7"),
        (["cs.LG", {"id": 7}], "an object with id"),
        ("x" * 201, "xxx"),
        ("cs\x00", "cs?"),
        ("half \ud83d", "half ?"),
        ("[" + "'cs.LG', " * 1500 + "]", "a list of 13,502 characters"),
        ("[" * 50_000 + "]" * 50_000, "a list of 100,000 characters"),
        ("[" * 4000 + "]" * 4000, "lists within lists"),
        ("[{[]: 1}]", "a broken list"),
        ("cs.LG " * 5000 + "and more", "a text of 30,008 characters"),
    ],
)
def test_what_is_not_understood_is_named(value: object, reason: str) -> None:
    not_understood = parse_categories(value).not_understood
    assert reason in not_understood
    assert len(not_understood) < 120
    not_understood.encode()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.sampled_from("[]{}()'\",;|"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(ANYTHING)
def test_no_value_ends_in_an_error(value: object) -> None:
    for form in (value, str(value), f"[{value}]", f"{{{value!r}: {value!r}}}"):
        read = parse_categories(form)
        assert all(name.isprintable() and len(name) <= 200 for name in read.names)


def test_papers_stay_whatever_their_categories(tmp_path) -> None:
    path = tmp_path / "papers.jsonl"
    values = ["'cs.LG", '[{"term": "cs.LG"}]', "7", "NaN", '"68T15 (Primary)"', '{"a": ["b"]}', '["cs.LG", 7]']
    values[0] = '"[\'cs.LG"'
    lines = [f'{{"id": "p{n}", "abstract": "Moths.", "categories": {value}}}\n' for n, value in enumerate(values)]
    path.write_text("".join(lines))
    papers = read_papers(path)
    assert papers.report.rejected == {}
    assert papers.table()["categories"].to_pylist() == [[], ["cs.LG"], [], [], [], [], ["cs.LG"]]
    assert papers.table()["primary_category"].to_pylist() == [None, "cs.LG", None, None, None, None, "cs.LG"]
    assert papers.table()["classes"].to_pylist() == [[], [], [], [], ["68T15"], [], []]
    noted = {kind: (entry["count"], entry["first_ids"]) for kind, entry in papers.report.notes.items()}
    assert noted == {WITHOUT_CATEGORIES: (4, ["p0", "p2", "p5", "p6"]), WITH_CLASSES: (1, ["p4"])}
    assert "4 accepted without categories that were not understood: p0 (a broken list: ['cs.LG), p2" in str(
        papers.report
    )


def test_no_column_for_classes_without_classes(tmp_path) -> None:
    (tmp_path / "papers.csv").write_text("id,abstract,classes\n1,A.,mine\n")
    table = read_papers(tmp_path / "papers.csv").table()
    assert "classes" not in table.column_names
    assert table["input_classes"].to_pylist() == ["mine"]


def test_nested_columns_of_parquet(tmp_path) -> None:
    objects = pa.array([[{"term": "cs.LG", "scheme": "arxiv"}], None, []])
    pq.write_table(
        pa.table({"id": ["1", "2", "3"], "abstract": ["A", "B", "C"], "categories": objects}), tmp_path / "a.parquet"
    )
    assert read_papers(tmp_path / "a.parquet").table()["categories"].to_pylist() == [["cs.LG"], [], []]


def test_names_with_commas_of_web_of_science(tmp_path) -> None:
    path = tmp_path / "savedrecs.csv"
    path.write_text(
        'UT,AB,WoS Categories\nWOS:1,Moths.,"Computer Science, Theory & Methods; Robotics"\nWOS:2,Owls.,"Zoology, Birds"\n'
    )
    assert read_papers(path).table()["categories"].to_pylist() == [
        ["Computer Science, Theory & Methods", "Robotics"],
        ["Zoology, Birds"],
    ]


def test_the_primary_category_may_be_an_object(write_jsonl) -> None:
    row = {"id": "1", "abstract": "A.", "category": [{"@term": "cs.RO"}, {"@term": "cs.LG"}]}
    papers = read_papers(write_jsonl(row | {"arxiv:primary_category": {"@term": "cs.LG"}}))
    (paper,) = papers.table().to_pylist()
    assert (paper["categories"], paper["primary_category"]) == (["cs.RO", "cs.LG"], "cs.LG")
