"""A pickle that does something when it is opened, for tests that it is not."""

from pathlib import Path


class Malicious:
    "Writes a file when it is unpickled."

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "was run")
