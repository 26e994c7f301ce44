"""The package as users get it: a wheel with the sample inside, that needs no development tool."""

import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.fakes import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The built wheel."
    folder = tmp_path_factory.mktemp("wheel")
    # from a copy: a build leaves its own folders beside setup.py
    shutil.copytree(ROOT / "arxiv_embeddings", folder / "source" / "arxiv_embeddings")
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(folder / "source"),
    ]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_package_the_sample_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for module in ROOT.glob("arxiv_embeddings/**/*.py"):
        assert str(module.relative_to(ROOT)) in names
    for sample in ("papers.csv", "relations.tsv"):
        assert f"arxiv_embeddings/sample/{sample}" in names
    for piece in ("html", "css", "js"):
        assert f"arxiv_embeddings/explore/map.{piece}" in names
    assert "arxiv_embeddings/encoders/known_models.json" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert not any(name.startswith(("tests", "nbs", "tools", "benchmarks")) for name in names)


def test_wheel_says_what_it_needs(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (one for one in archive.namelist() if one.endswith("METADATA"))
    metadata = archive.read(name).decode()
    (accepted,) = (line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Requires-Python"))
    versions = ("3.9.20", "3.10.0", "3.11.7", "3.12.12", "3.13.0", "4.0")
    assert [version in SpecifierSet(accepted) for version in versions] == [False, True, True, True, False, False]
    named = [line.split(":: ")[-1] for line in metadata.splitlines() if ":: Python :: 3." in line]
    assert named == ["3.10", "3.11", "3.12"]
    extras = {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra")}
    assert extras == {"spark", "stores", "int8", "explore", "umap", "docs", "dev", "all"}
    core = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert any("sentence-transformers" in line for line in core)
    assert not any(
        word in line for line in core for word in ("pyspark", "nncf", "nbdev", "jupyter", "umap", "mkdocs", "pytest")
    )


def test_package_imports_without_development_tools(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = """
import importlib, pathlib, pkgutil, sys
for absent in ("nbdev", "fastcore", "execnb", "IPython", "pytest", "pyspark", "openvino", "jupyterlab", "hdfs_native", "obstore"):
    sys.modules[absent] = None  # importing it fails, and looking for it finds nothing
import arxiv_embeddings
from arxiv_embeddings.files.errors import InputError
assert pathlib.Path(arxiv_embeddings.__file__).is_relative_to(sys.argv[1]), arxiv_embeddings.__file__
for module in pkgutil.walk_packages(arxiv_embeddings.__path__, "arxiv_embeddings."):
    try:
        importlib.import_module(module.name)
    except InputError as error:  # a class of Spark's cannot be made without Spark
        print(module.name, error)
from arxiv_embeddings.files.errors import InputError
from arxiv_embeddings.papers.corpus import read_papers, sample_papers
print(len(read_papers(sample_papers())))
for uri in ("hdfs:///arxiv/clean", "s3://papers/clean"):
    try:
        read_papers(uri)
    except InputError as error:
        print(error)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, check=False
    )
    needed = "hdfs:///arxiv/clean needs an extra: pip install 'arxiv-embeddings[spark]'"
    stores = "s3://papers needs an extra: pip install 'arxiv-embeddings[stores]'"
    refused = "arxiv_embeddings.spark.transformer ArxivEmbedder needs an extra: pip install 'arxiv-embeddings[spark]'"
    assert (done.stdout.splitlines(), done.stderr) == ([refused, "144", needed, stores], "")


def test_constraints_pin_every_requirement_and_name_no_address() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    assert "://" not in constraints
    assert "--" not in constraints
    pinned = {line.split("==")[0].strip().lower() for line in constraints.splitlines() if "==" in line}
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini")
    for key, value in parser["DEFAULT"].items():
        if key.endswith("requirements") and key != "peer_requirements":
            for requirement in value.split():
                name = requirement.split("=")[0].split(">")[0].split("<")[0].lower()
                assert name in pinned
