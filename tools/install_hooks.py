"""Let git merge notebooks cell by cell, once for a clone; `make env` and `make lab` call it.

nbdev's own command does it for the shell that it runs in. Here the merge driver is named with its whole path, so that
it is also found from a shell or an editor that does not know the environment, and nothing is written into the home folder.
Nothing happens outside of a clone, in a worktree of one, without git, or a second time.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent
INCLUDED = "../.gitconfig"  # which nbdev_install_hooks writes


def git(*words: str) -> str:
    "Return what git says in this clone; nothing if it fails."
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False).stdout.strip()


def is_needed() -> bool:
    "Whether this is a clone, and not yet prepared by these tools."
    driver = f"{TOOLS}/nbdev_merge %O %A %B %P"
    return (
        bool(shutil.which("git")) and (ROOT / ".git").is_dir() and git("config", "merge.nbdev-merge.driver") != driver
    )


def main() -> None:
    "Install the hooks if they are needed."
    if not is_needed():
        return
    hook = ROOT / ".git" / "hooks" / "post-merge"
    own_hook = hook.read_bytes() if hook.exists() else None
    with tempfile.TemporaryDirectory() as home:
        subprocess.run(
            [TOOLS / "nbdev_install_hooks"], cwd=ROOT, env=os.environ | {"HOME": home}, stdout=subprocess.DEVNULL
        )
    git("config", "merge.nbdev-merge.driver", f"{TOOLS}/nbdev_merge %O %A %B %P")
    if own_hook is not None:
        hook.write_bytes(own_hook)
    elif hook.exists():
        hook.unlink()  # it would only tell Jupyter to trust the notebooks of a merge


if __name__ == "__main__":
    main()
