"""Resolve every version of constraints.txt anew from settings.ini, for Python 3.10 to 3.12, with uv."""

import re
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADER = """\
# Every version that `make` installs, resolved together for Python 3.10 to 3.12 from settings.ini.
# Renew with `make constraints`. What torch pins by itself (CUDA, triton) is left to torch.
"""
LEFT_TO_TORCH = re.compile(r"(nvidia|cuda|triton)")


def main(uv: str) -> None:
    "Write constraints.txt."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    settings = parser["DEFAULT"]
    keys = [key for key in settings if key.endswith("requirements") and key != "peer_requirements"]
    wanted = [name for key in keys for name in settings[key].split()]
    with tempfile.NamedTemporaryFile("w", suffix=".in") as requirements:
        requirements.write("\n".join(wanted) + "\n")
        requirements.flush()
        command = [uv, "pip", "compile", requirements.name, "--universal", "--python-version", "3.10", "--quiet"]
        command += ["--no-header", "--no-annotate", "--no-emit-index-url"]
        resolved = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pins = [line for line in resolved.splitlines() if not LEFT_TO_TORCH.match(line)]
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(pins) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
