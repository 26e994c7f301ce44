"""The archive that executors get: everything they need, from nowhere else, and the same bytes each time."""

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from arxiv_embeddings.cli.main import app
from arxiv_embeddings.encoders.openvino_engine import OpenVINOEncoder
from arxiv_embeddings.spark.environment import PACKAGES, pack_environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unpacked(packed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    "The archive, unpacked."
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(packed["file"]) as archive:
        archive.extractall(folder, filter="data")
    yield folder
    shutil.rmtree(folder)


SEEN = """
import json, os, sys
import numpy, pandas, pyarrow.parquet, hdfs_native.fsspec
from pathlib import Path
import arxiv_embeddings.spark.executors, arxiv_embeddings.runs.store
from arxiv_embeddings.encoders.model_folder import open_model_folder
from arxiv_embeddings.encoders.openvino_engine import OpenVINOEncoder

vectors = OpenVINOEncoder(open_model_folder(Path(sys.argv[1]))).encode(json.loads(sys.argv[2]))
files = {module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
libraries = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
absent = [name for name in ("torch", "transformers", "sentence_transformers", "pyspark") if name in sys.modules]
print(json.dumps({"vectors": vectors.tolist(), "files": sorted(files | libraries), "absent": absent}))
"""


def test_an_unpacked_environment_computes_the_same_vectors_with_nothing_else(
    unpacked: Path, minilm: OpenVINOEncoder, tmp_path: Path
) -> None:
    texts = ["Planets around other stars.", "A proof of the theorem."]
    command = [unpacked / "bin" / "python", "-c", SEEN, minilm.model_folder.folder, json.dumps(texts)]
    done = subprocess.run(list(map(str, command)), env={}, cwd=tmp_path, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["vectors"] == minilm.encode(texts).tolist()
    assert seen["absent"] == []
    systems_own = ("/lib/", "/lib64/", "/usr/lib/", "/usr/lib64/")
    assert [name for name in seen["files"] if not name.startswith((str(unpacked), *systems_own))] == []


def test_the_same_environment_gives_the_same_bytes(packed: dict[str, Any], tmp_path: Path) -> None:
    chosen = ("fsspec", "filelock")
    first, second = (pack_environment(tmp_path / name, distributions=chosen) for name in ("a.tar.gz", "b.tar.gz"))
    assert Path(first["file"]).read_bytes() == Path(second["file"]).read_bytes()
    assert list(first["versions"]) == ["filelock", "fsspec"]
    with tarfile.open(packed["file"]) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == sorted({member.name for member in members})
    assert len(members) == packed["n_files"]
    assert sum(member.size for member in members) == packed["n_bytes_unpacked"]
    assert Path(packed["file"]).stat().st_size == packed["n_bytes"] < 200e6
    folders = {member.name.removeprefix(f"{PACKAGES}/").split("/")[0] for member in members}
    assert folders & {"torch", "transformers", "pyspark", "huggingface_hub", "nbdev", "pip"} == set()


def test_an_archive_replaces_no_file(tmp_path: Path) -> None:
    (tmp_path / "there.tar.gz").touch()
    result = CliRunner().invoke(app, ["spark", "pack-environment", str(tmp_path / "there.tar.gz")])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {tmp_path}/there.tar.gz exists: remove it, or name another file\n"
