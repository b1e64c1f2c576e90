"""Postgres' advisory locks are numbers: two that are equal would be one lock."""

import importlib
import pkgutil

import shared.queries


def test_each_lock_has_a_number_of_its_own() -> None:
    """What waits for one lock must not wait for the work of another."""
    numbers = {
        f"{module.name}.{name}": value
        for module in pkgutil.iter_modules(shared.queries.__path__)
        for name, value in vars(importlib.import_module(f"shared.queries.{module.name}")).items()
        if name.endswith("_LOCK") and isinstance(value, int)
    }
    assert len(numbers) >= 6
    assert len(set(numbers.values())) == len(numbers), numbers
