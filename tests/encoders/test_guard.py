"""No wrong vector gets into a run: whatever shape an engine is wrong for, it is noticed, computed again, and counted."""

import itertools
import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.encoders import base
from arxiv_embeddings.encoders.base import BatchEncoder, Encoder
from arxiv_embeddings.encoders.batching import TextTokenizer
from arxiv_embeddings.encoders.guard import Batch
from arxiv_embeddings.encoders.load import EncoderOptions, make_encoder
from arxiv_embeddings.encoders.models import ModelFiles, fetch_model
from arxiv_embeddings.encoders.registry import find_model
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import read_papers, sample_papers
from arxiv_embeddings.papers.texts import make_texts
from arxiv_embeddings.runs import wrong_vectors
from arxiv_embeddings.runs.embed import Local, embed_papers
from arxiv_embeddings.runs.repair import repair_run
from arxiv_embeddings.runs.store import Run, RunWriter, open_run, replace_parts, write_successor
from arxiv_embeddings.runs.wrong_vectors import verify_numbers, verify_sample
from tests.fakes.letters import LetterEncoder
from tests.fakes.spoiling import make_garbage, spoil

PATIENT = Local(part_seconds=3600)  # so that parts do not depend on how busy the machine is
N_STREAMS, N_FIRST = (1, 2, 3), 12  # copies of a model; shapes that may be the spoiled one


class WordEncoder(BatchEncoder):
    "A quick engine: the average of a random vector for each token; several copies of the model if asked for."

    def __init__(self, streams: int = 1):
        from tokenizers import Tokenizer

        self.files: ModelFiles = fetch_model(find_model("minilm"))
        self.dim, self.settings = 16, {"engine": "words", "precision": "float32"}
        self.fingerprint = {
            "pooling": "mean",
            "precision": "float32",
            "text": "title+abstract",
            "long_text": "truncate",
        }
        self.fingerprint |= {"max_tokens": 512, "separator": "[SEP]"}
        self.batching = {"token_budget": 1024, "length_multiple": 4, "streams": streams}
        vocabulary = Tokenizer.from_file(str(self.files.folder / "tokenizer.json"))
        self.text_tokenizer = TextTokenizer(vocabulary, max_tokens=512)
        self.words = np.random.default_rng(0).standard_normal((vocabulary.get_vocab_size(), self.dim), dtype=np.float32)

    def embed_batches(self, batches: Iterator[Batch], stream: int = 0) -> Iterator[tuple[Batch, np.ndarray]]:
        for batch in batches:
            sums = np.einsum("rtd,rt->rd", self.words[batch.ids], batch.mask.astype(np.float32))
            yield batch, sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def renew(self, stream: int = 0) -> None:
        pass


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "The sample corpus in the quick engine, undisturbed."
    return embed_papers(sample_papers(), tmp_path_factory.mktemp("sound") / "run", encoder=WordEncoder()).run


def count_recomputed(run: Run) -> int:
    return sum(part["n_recomputed"] for part in run.metadata["parts"])


@pytest.mark.slow
def test_every_injected_batch_is_caught(tmp_path: Path, sound: Run) -> None:
    shapes: set[tuple[int, int]] = set()
    for number, (streams, which) in enumerate(2 * list(itertools.product(N_STREAMS, range(N_FIRST)))):
        encoder = WordEncoder(streams)
        spoiled = spoil(encoder, which, seed=number)
        run = embed_papers(
            sample_papers(), tmp_path / f"run{number}", part_size=60, encoder=encoder, executor=PATIENT
        ).run
        assert_allclose(run.embeddings(), sound.embeddings(), atol=1e-6, strict=True)
        # each copy of the model may have met the shape before the first of them was loaded anew
        assert 1 <= count_recomputed(run) <= streams, "a run without an injected batch proves nothing"
        shapes.update(spoiled)
    assert len(shapes) > 10


def test_without_the_guard_they_would_be_in_the_run(
    tmp_path: Path, sound: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = WordEncoder()
    spoil(encoder, which=0)
    monkeypatch.setattr(base.Guard, "run", lambda self, batches: self.embed(batches))
    run = embed_papers(sample_papers(), tmp_path / "run", encoder=encoder).run
    cosines = (run.embeddings() * sound.embeddings()).sum(axis=1)
    assert 1 < (cosines < 0.9).sum() < 144
    assert_allclose(np.linalg.norm(run.embeddings(), axis=1), 1, atol=1e-5)  # as garbage that nothing notices


def test_a_second_time_stops_the_run_and_what_is_committed_is_right(tmp_path: Path, sound: Run) -> None:
    class AlwaysWrong(WordEncoder):
        "Wrong for every batch of its third part, again and again; checks are computed rightly."

        n_calls = 0

        def embed_batches(self, batches, stream=0):
            for batch, vectors in super().embed_batches(batches, stream):
                yield batch, vectors if batch.repeats or self.n_calls < 3 else make_garbage(*vectors.shape, 5)

        def run(self, tokenized, on_batch=None):
            self.n_calls += 1
            if self.n_calls == 3:
                self.guards[0].confirmed.clear()
            return super().run(tokenized, on_batch)

    with pytest.raises(InputError, match=r"wrong vectors: .* for the second time"):
        embed_papers(sample_papers(), tmp_path / "run", part_size=30, encoder=AlwaysWrong())
    run = open_run(tmp_path / "run")
    assert run.n_papers == 60
    assert_array_equal(run.embeddings(), sound.embeddings()[:60], strict=True)
    run = embed_papers(sample_papers(), run.folder, encoder=WordEncoder()).run
    assert_allclose(run.embeddings(), sound.embeddings(), atol=1e-6, strict=True)


def loaded_model(encoder: Encoder) -> object:
    "What an engine computes with."
    return encoder.compiled[0] if hasattr(encoder, "compiled") else encoder.model


def test_an_encoder_that_is_let_go_leaves_memory() -> None:
    encoder = WordEncoder()
    encoder.encode(["a text"])
    gone = weakref.ref(encoder)
    del encoder
    assert gone() is None, "a circle of references keeps a model in memory"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_real_engines_are_loaded_anew(engine: str, tmp_path: Path, sample_run: Run) -> None:
    encoder = make_encoder(fetch_model(find_model("minilm")), EncoderOptions(engine, device="cpu"))
    spoiled, before = spoil(encoder, which=2), loaded_model(encoder)
    run = embed_papers(sample_papers(), tmp_path / "run", part_size=100, encoder=encoder, executor=PATIENT).run
    assert_allclose(run.embeddings(), sample_run.embeddings(), atol=2e-6, strict=True)
    assert (count_recomputed(run), len(spoiled)) == (1, 1)
    assert loaded_model(encoder) is not before


@pytest.mark.slow
def test_copies_of_a_model_side_by_side(sample_run: Run) -> None:
    encoder = make_encoder(fetch_model(find_model("minilm")), EncoderOptions("openvino"), streams=2)
    texts = make_texts(read_papers(sample_papers()).table(), "title+abstract", "[SEP]")
    assert_allclose(encoder.encode(texts), sample_run.embeddings(), atol=2e-6, strict=True)
    assert sorted(encoder.compiled) == [0, 1]
    assert [guard.n_differences for guard in encoder.guards] == [0, 0]
    spoil(encoder, which=3)
    encoder.__dict__.pop("guards")  # every shape is new again
    assert_allclose(encoder.encode(texts), sample_run.embeddings(), atol=2e-6, strict=True)
    assert 1 <= encoder.n_recomputed <= 2


def test_overflow_is_reported_as_overflow() -> None:
    class Overflowing(WordEncoder):
        def embed_batches(self, batches, stream=0):
            for batch, vectors in super().embed_batches(batches, stream):
                yield batch, vectors * np.inf

    with np.errstate(invalid="ignore"), pytest.raises(InputError, match="NaN or infinity in float32"):
        Overflowing().encode(["a text"])


# runs that hold wrong vectors already


def write_garbage(run: Run, rows: np.ndarray, seed: int = 0) -> None:
    "Put garbage into a run of one part, with checksums that fit."
    with RunWriter(run.folder) as writer:
        vectors = run.embeddings()
        vectors[rows] = make_garbage(len(rows), run.dim, seed)
        replace_parts(writer, writer.parts, write_successor(writer, writer.parts, run.read(), vectors))


def test_garbage_in_a_run_of_real_abstracts_is_found_and_replaced(
    real_data: Path, minilm: Encoder, tmp_path: Path
) -> None:
    run = embed_papers(
        real_data / "arxiv_cs_10k.csv", tmp_path / "run", limit=400, encoder=minilm, executor=PATIENT
    ).run
    before, checked = run.embeddings(), verify_numbers(run, minilm)
    assert (checked["sound"], checked["n_papers"] < 200) == (True, True)  # of 400: the rest was not suspicious
    rows = np.array([3, 77, 78, 200, 201, 202, 203, 399])
    write_garbage(run, rows)
    run = open_run(run.folder)
    assert verify_numbers(run, minilm)["paper_ids"] == [run.paper_ids[row] for row in rows]
    repaired = repair_run(run.folder, minilm, numbers=True)
    assert (repaired.n_corrected, repaired.n_embedded) == (8, 0)
    assert_allclose(repaired.run.embeddings(), before, atol=2e-6, strict=True)
    assert repaired.run.metadata["parts"][0]["sha256"] != run.metadata["parts"][0]["sha256"]
    assert verify_numbers(repaired.run, minilm, everything=True)["sound"]


def test_one_wrong_suspect_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = embed_papers(sample_papers(), tmp_path / "run", encoder=WordEncoder()).run
    rows = np.arange(20, 28)
    wrong_ids = run.paper_ids[20:28]
    write_garbage(run, rows)
    for suspect, found in ((20, wrong_ids), (50, [])):
        monkeypatch.setattr(wrong_vectors, "find_suspects", lambda texts, _, row=suspect: np.arange(len(texts)) == row)
        assert verify_numbers(open_run(run.folder), WordEncoder())["paper_ids"] == found


@pytest.mark.slow
def test_commands_that_look_for_wrong_vectors(tmp_path: Path, minilm: Encoder) -> None:
    run = embed_papers(sample_papers(), tmp_path / "run", encoder=minilm, executor=PATIENT).run
    write_garbage(run, np.arange(20, 28))
    call = CliRunner().invoke
    assert call(app, ["verify", str(run.folder)]).exit_code == 0  # every bit is what was written
    found = call(app, ["verify", str(run.folder), "--numbers", "--json"])
    numbers = json.loads(found.stdout)["numbers"]
    assert (found.exit_code, len(numbers["paper_ids"])) == (1, 8)
    said = call(app, ["verify", str(run.folder), "--numbers", "--all"])
    assert said.exit_code == 1
    assert "damage: vectors do not match the texts: 8 papers, " in said.stdout
    assert f"repair {run.folder} --numbers --all replaces wrong vectors" in said.stdout
    refused = call(app, ["repair", str(run.folder), "--all"])
    assert (refused.exit_code, "it needs --numbers" in refused.output) == (2, True)
    repaired = call(app, ["repair", str(run.folder), "--numbers", "--all"])
    assert "1 part repaired, 0 papers embedded again, 8 wrong vectors replaced" in repaired.stdout
    sampled = call(app, ["verify", str(run.folder), "--sample", "40"])
    assert sampled.exit_code == 0
    assert "(with 95 % confidence, at most 13.91% of the vectors are wrong)" in sampled.stdout


def test_a_sample_has_the_longest_and_the_shortest_texts(tmp_path: Path) -> None:
    run = embed_papers(sample_papers(), tmp_path / "run", encoder=LetterEncoder()).run
    lengths = [len(text) for text in make_texts(run.read(), "title+abstract", "|")]
    for row in (int(np.argmax(lengths)), int(np.argmin(lengths))):
        vectors = run.embeddings()
        vectors[row] += 5

        class Another(LetterEncoder):
            def run(self, tokenized, on_batch=None, row=row):
                found = super().run(tokenized)
                return np.where((found == run.embeddings()[row]).all(axis=1, keepdims=True), found[:, ::-1], found)

        assert verify_sample(run, 4, Another())["paper_ids"] == [run.paper_ids[row]]
        assert verify_sample(run, 4, LetterEncoder())["sound"]
