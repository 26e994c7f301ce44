"""git merges notebooks cell by cell in a clone, and elsewhere nothing happens."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import ROOT


def run_tool(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    "Run the tool as `make lab` does, in a copy of the repository."
    command = [sys.executable, str(folder / "tools" / "install_hooks.py")]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | environment, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    "The few files of the repository that the tool looks at."
    folder = tmp_path / "copy"
    (folder / "tools").mkdir(parents=True)
    (folder / "nbs").mkdir()
    shutil.copy(ROOT / "tools" / "install_hooks.py", folder / "tools")
    for name in ("settings.ini", ".gitattributes", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    return folder


def git(folder: Path, *words: str) -> str:
    "Return what git says, for a person without settings of their own."
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    return subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_clone_gets_the_merge_driver_once_and_stays_clean(copy: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    git(copy, "init", "--quiet")
    git(copy, "add", "--all")
    git(copy, "commit", "--quiet", "--message", "all")
    hook = copy / ".git" / "hooks" / "post-merge"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("# a hook of one's own")
    done = run_tool(copy, HOME=str(home))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    driver = git(copy, "config", "merge.nbdev-merge.driver").split()[0]
    assert Path(driver).exists()
    assert git(copy, "status", "--short") == ""
    assert list(home.iterdir()) == []
    assert hook.read_text() == "# a hook of one's own"
    config = copy / ".git" / "config"
    before = config.read_bytes(), config.stat().st_mtime_ns
    assert run_tool(copy, HOME=str(home)).returncode == 0
    assert (config.read_bytes(), config.stat().st_mtime_ns) == before


def test_nothing_happens_without_a_clone_or_without_git(copy: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in copy.iterdir())
    done = run_tool(copy)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    git(copy, "init", "--quiet")
    config = (copy / ".git" / "config").read_bytes()
    done = run_tool(copy, PATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (copy / ".git" / "config").read_bytes() == config
    assert sorted(path.name for path in copy.iterdir()) == sorted([*before, ".git"])
