"""Faults that the quick suite must find: each is put into a copy of the code alone, and `make test` must fail there."""
