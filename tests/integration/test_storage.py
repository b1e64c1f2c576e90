"""What both stores do alike: a directory, and a real S3 server."""

import io
import os
from datetime import timedelta
from pathlib import Path

import pytest

from shared.errors import ObjectMissing, StoreUnavailable
from shared.storage import DirectoryStore, bundle_key, film_key, open_store, original_key, preview_key

SHA256 = "ab" * 32
FILM = film_key(SHA256, 1)
RECORD = (original_key(SHA256), preview_key(SHA256, 1), bundle_key(SHA256))
DAY = timedelta(days=1)
AHEAD = -timedelta(minutes=5)  # made before five minutes from now: all there is


def put(store, key, content=b"content"):
    store.put(key, io.BytesIO(content), len(content))


def test_sweeping_takes_old_films_and_nothing_else(store_url):
    """Films made longer ago than they are kept for are gone, fresh ones stay, and the record is never touched."""
    store = open_store(store_url)
    store.check()
    assert store.sweep(DAY) == 0  # nothing was ever made
    for key in (FILM, film_key(SHA256, 2), *RECORD):
        put(store, key)
    assert store.sweep(DAY) == 0
    assert store.get(FILM) == b"content"
    assert store.sweep(AHEAD) == 2
    assert not store.exists(FILM)
    with pytest.raises(ObjectMissing):
        store.get(FILM)
    assert all(store.get(key) == b"content" for key in RECORD)
    put(store, FILM, b"made anew")
    assert store.get(FILM) == b"made anew"


def test_sweeping_goes_by_each_film_s_age(tmp_path):
    """Of two films the older one goes; so does what a put left behind that a crash broke off."""
    store = DirectoryStore(tmp_path)
    for frame in (1, 2):
        put(store, film_key(SHA256, frame))
    left = tmp_path / "incoming" / "half"
    left.write_bytes(b"half")
    for old in (tmp_path / FILM, left):
        os.utime(old, (1, 1))
    assert store.sweep(DAY) == 2
    assert [store.exists(film_key(SHA256, frame)) for frame in (1, 2)] == [False, True]
    assert list((tmp_path / "incoming").iterdir()) == []


def test_what_cannot_be_removed_is_told_and_keeps_nothing_else(tmp_path):
    """A folder where a file should be does not keep the sweep from the others, and is told of."""
    store = DirectoryStore(tmp_path)
    put(store, FILM)
    (tmp_path / Path(FILM).parent / "stray").mkdir()
    with pytest.raises(StoreUnavailable, match="cannot be swept"):
        store.sweep(AHEAD)
    assert not store.exists(FILM)
