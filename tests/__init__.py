"""The tests; run from the root of the repository, which is where `tests` and `benchmarks` are imported from."""
