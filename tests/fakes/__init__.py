"""Stand-ins for models, hubs and broken engines, and helpers that several tests and benchmarks share."""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # the repository: processes that import `tests` or `benchmarks` start here
