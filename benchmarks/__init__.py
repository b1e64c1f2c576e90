"""Benchmarks with their goals; each result is a ratio to something measured in the same run."""
