"""Nothing is sent: the whole work on one machine, with its models, goes without a single attempt to reach out."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.no_network import NoNetwork

COMMANDS = [
    "sample .",
    "models",
    "embed papers.csv --out run --engine openvino --limit 48",  # converts the model first
    "embed papers.csv --out int8 --engine openvino --precision int8 --limit 48",  # quantizes it, with nncf
    "embed papers.csv --out torch --engine torch --device cpu --limit 4",
    "describe run",
    "index run --words",
    "similar run --row 1",
    "search run rockets --by both",
    "search int8 rockets",
    "plot run",
    "map run",
    "export run",
    "evaluate run",
    "compare run int8",
    "verify run",
]
ATTEMPTS = {
    "socket.connect": "import socket; socket.socket().connect(('127.0.0.1', 9))",
    "socket.getaddrinfo": "import socket; socket.getaddrinfo('localhost', 80)",
    "socket.sendto": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'a', ('127.0.0.1', 9))",
    "http.client.connect": "import http.client; http.client.HTTPConnection('127.0.0.1', 9).connect()",
    "urllib.Request": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
    "socket.getaddrinfo ": "import huggingface_hub; huggingface_hub.model_info('org/toy')",
}


@pytest.mark.parametrize("event", ATTEMPTS)
def test_an_attempt_is_seen(event: str, tmp_path: Path) -> None:
    no_network = NoNetwork(tmp_path)
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ATTEMPTS[event]!r}], check=True)"
    ended = no_network.run("-c", script)  # also in a process that Python starts
    assert ended.returncode
    assert "there is no network in this test" in ended.stderr
    assert any(line.startswith(event.strip()) for line in no_network.list_attempts())


ONE_BY_ONE = """
import sys
from arxiv_embeddings.cli.main import main
for command in sys.argv[1:]:
    sys.argv[1:] = command.split()
    print(f"-- {command}", flush=True)  # the last of these lines names a command that failed, or that an attempt is after
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


@pytest.mark.slow
def test_the_whole_work_sends_nothing(tmp_path: Path) -> None:
    "The commands share a process, which loads each library once."
    no_network = NoNetwork(tmp_path)
    commands = [one for one in COMMANDS if "int8" not in one or importlib.util.find_spec("nncf")]
    ended = no_network.run("-c", ONE_BY_ONE, *commands)
    assert (ended.returncode, no_network.list_attempts()) == (0, []), ended.stdout + ended.stderr
    assert [line[3:] for line in ended.stdout.splitlines() if line.startswith("-- ")] == commands
    assert (tmp_path / "run" / "map.html").exists()


SHOW = "from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"


@pytest.mark.parametrize(
    ("own", "expected"), [({}, "True"), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, "False")], ids=["by default", "as set"]
)
def test_reports_of_the_hub_client_are_off_unless_they_are_wanted(own: dict[str, str], expected: str) -> None:
    names = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
    environment = {name: value for name, value in os.environ.items() if name not in names} | own
    command = [sys.executable, "-c", f"import arxiv_embeddings; {SHOW}"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert shown == f"{expected}\n"


def test_reports_of_openvino_and_nncf_are_off() -> None:
    script = "from arxiv_embeddings.encoders.openvino_engine import load_openvino; load_openvino()"
    script += "; import importlib; importlib.import_module('openvino_telemetry')"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: import of openvino_telemetry halted" in ended.stderr
