"""Measurements on real data: `python -m benchmarks.encode` and so on, from the root of the repository."""
