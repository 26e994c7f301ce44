"""What the machine offers, and what engines choose by it."""

import os
import subprocess
import sys

import pytest

from arxiv_embeddings.encoders.batching import choose_token_budget
from arxiv_embeddings.files.machine import CACHE_BYTES, second_level_cache

COUNT = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from arxiv_embeddings.files.machine import count_cores
print(count_cores())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot restrict a process to one core")
def test_only_cores_that_the_process_may_use_are_counted() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LOKY_MAX_CPU_COUNT"}  # of `make test`
    done = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(("n_bytes", "budget"), [(1 << 18, 512), (1 << 21, 1536), (1 << 22, 2816)])
def test_a_batch_fills_this_machine_s_cache(n_bytes: int, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_LEVEL2_CACHE_SIZE": n_bytes}[name])
    assert second_level_cache() == n_bytes
    assert choose_token_budget(384) == budget


def test_a_system_that_does_not_tell_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert second_level_cache() == CACHE_BYTES
