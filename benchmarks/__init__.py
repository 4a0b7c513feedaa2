"""Measurements; each module is one, run by `python -m benchmarks.<name>` or all by `make bench`."""
