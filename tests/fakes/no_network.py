"""A Python that reaches nothing outside this machine: every attempt of it and of its children is refused and written down."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Python runs a module of this name at its start; the hook cannot be taken away, and sees all of Python's own sockets
SITE_CUSTOMIZE = """
import os, sys, traceback

WATCHED = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
           "socket.gethostbyaddr", "socket.getnameinfo", "http.client.connect", "urllib.Request")
busy = []

def refuse(event, arguments):
    if event not in WATCHED or busy:
        return
    address = arguments[1] if event.startswith(("socket.connect", "socket.send")) else arguments[0]
    if isinstance(address, (str, bytes)) and event.startswith(("socket.connect", "socket.send")):
        return  # of a Unix socket
    if address is None and event.startswith("socket.send"):
        return  # on a socket that is connected
    busy.append(event)
    with open(os.environ["ATTEMPTS"], "a") as file:
        file.write(f"{event} {address!r} from {traceback.format_stack(limit=8)}\\n")
    busy.clear()
    raise ConnectionRefusedError(f"{event} {address!r}: there is no network in this test")

sys.addaudithook(refuse)
"""
KEPT = ("PATH", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT")  # of the environment


class NoNetwork:
    "Runs Python with no network, in a home of its own, so that no file of a cache helps."

    def __init__(self, folder: Path):
        self.folder, self.attempts = folder, folder / "attempts.txt"
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SITE_CUSTOMIZE)
        # compiled code has no hook: it runs in a network without any address, where the system allows that
        alone = ["unshare", "--user", "--map-root-user", "--net"]
        self.is_alone = (
            bool(shutil.which("unshare")) and not subprocess.run([*alone, "true"], capture_output=True).returncode
        )
        self.before = alone if self.is_alone else []

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        "Run Python with arguments, in the folder."
        root = Path(__file__).parents[2]
        own = {"HOME": str(self.folder), "ATTEMPTS": str(self.attempts), "TQDM_DISABLE": "1"}
        own |= {"PYTHONPATH": os.pathsep.join([str(self.folder / "site"), str(root)])}
        own |= {"ARXIV_EMBEDDINGS_CACHE": str(self.folder / "cache")}
        environment = {name: os.environ[name] for name in KEPT if name in os.environ} | own
        command = [*self.before, sys.executable, *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def list_attempts(self) -> list[str]:
        "List what tried to reach out since the last call."
        found = self.attempts.read_text().splitlines() if self.attempts.exists() else []
        self.attempts.unlink(missing_ok=True)
        return found
