"""Whose predictor a study gets, and what is loaded for it."""

import gc
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worker.predictor import ActivePredictor


class FakeReader:
    """A bundle, loaded."""

    def __init__(self, name: str) -> None:
        self.manifest = SimpleNamespace(name=name)


class Site:
    """A database that names the active bundle, a store, and what was loaded from it."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.active = "A"
        self.loads: list[str] = []
        patched.setattr("worker.predictor.BUNDLE_CHECK_INTERVAL_S", -1.0)
        patched.setattr(
            "worker.predictor.active_bundle", lambda _: SimpleNamespace(name=self.active, sha256=self.active)
        )
        patched.setattr("worker.predictor.get_bundle", lambda _, name: SimpleNamespace(name=name, sha256=name))
        patched.setattr("worker.predictor.Predictor.for_service", lambda _, name, __: self._loaded(name))
        database: Any = SimpleNamespace(transaction=nullcontext)
        store: Any = SimpleNamespace(get=lambda _: b"")
        self.predictor = ActivePredictor(database, store, Path())

    def _loaded(self, name: str) -> FakeReader:
        self.loads.append(name)
        return FakeReader(name)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def test_shadows_that_run_at_once_are_loaded_once_each(site: Site) -> None:
    """While studies of two shadows are in hand, their looks take turns as they like, and share one predictor a bundle."""
    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(site.predictor.of, ["B", "C"] * 20))
    assert sorted(site.loads) == ["A", "B", "C"]
    assert len(set(map(id, held))) == 2
    assert [one.manifest.name for one in held] == ["B", "C"] * 20


def test_only_the_last_other_one_is_kept(site: Site) -> None:
    """Between looks the last bundle stays in memory, and none before it."""
    for name in ("B", "B", "C", "C", "B"):
        site.predictor.of(name)
        gc.collect()
    assert site.loads == ["A", "B", "C", "B"]


def test_a_promoted_shadow_is_not_loaded_again(site: Site) -> None:
    """What a shadow's looks have in memory serves live studies too, and the active one's predictor serves looks."""
    shadow = site.predictor.of("B")
    before = site.predictor.current()
    site.active = "B"
    assert site.predictor.current() is shadow
    assert site.predictor.of("B") is shadow
    assert site.predictor.of("A") is before
    assert site.loads == ["A", "B"]
