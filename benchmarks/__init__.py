"""Benchmarks: the numbers that Osteon is held to, each as a ratio to something measured in the same run."""
