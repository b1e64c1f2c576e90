"""What both stores do alike: a directory, and a real S3 server."""

import io
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from minio import Minio

from shared.dicom.image import ImageLimits
from shared.errors import ObjectMissing, StoreUnavailable
from shared.storage import DirectoryStore, S3Store, Store, bundle_key, frame_key, open_store, original_key, preview_key
from worker.decoder_pool import Decoders, Job

SHA256 = "ab" * 32
FRAME = frame_key(SHA256, 1)
OLD_FRAME = f"films/{SHA256[:2]}/{SHA256}-1.film"  # as 0.1.0 kept it
RECORD = (original_key(SHA256), preview_key(SHA256, 1), bundle_key(SHA256))
DAY = timedelta(days=1)
AHEAD = -timedelta(minutes=5)  # made before five minutes from now: all there is


def put(store: Store, key: str, content: bytes = b"content") -> None:
    store.put(key, io.BytesIO(content), len(content))


def test_an_object_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut leaves no half object under a name, and no object that was stored without the name it had."""
    done: list[tuple[str, int, int]] = []  # what was done, to which inode of which size
    sync, rename = os.fsync, Path.replace

    def watched_sync(descriptor: int) -> None:
        stands = os.fstat(descriptor)
        done.append(("synced", stands.st_ino, stands.st_size))
        sync(descriptor)

    def watched_rename(file: Path, goal: Path) -> Path:
        stands = file.stat()
        done.append(("named", stands.st_ino, stands.st_size))
        return rename(file, goal)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_rename)
    put(DirectoryStore(tmp_path), RECORD[0], b"content")
    stored = tmp_path / RECORD[0]
    inode = stored.stat().st_ino
    assert done[:2] == [("synced", inode, 7), ("named", inode, 7)]
    folders = {folder.stat().st_ino for folder in (stored.parent, stored.parent.parent, tmp_path)}
    assert folders <= {inode for what, inode, _ in done[2:] if what == "synced"}


def test_a_stretch_of_an_object(store_url: str) -> None:
    """So many bytes from a position; fewer where the object ends."""
    store, content = open_store(store_url), bytes(range(250))
    store.put("objects/aa/stretch", io.BytesIO(content), len(content))
    for start, most in ((0, None), (0, 10), (7, 10), (7, None), (240, 50)):
        found = store.get("objects/aa/stretch", most, start)
        assert found == content[start : None if most is None else start + most]


def test_sweeping_takes_old_frames_and_nothing_else(store_url: str) -> None:
    """Frames made longer ago than they are kept for are gone, fresh ones stay, and the record is never touched."""
    store = open_store(store_url)
    store.check_writable()
    assert store.sweep(DAY) == 0  # nothing was ever made
    for key in (FRAME, frame_key(SHA256, 2), *RECORD):
        put(store, key)
    put(store, OLD_FRAME)
    assert store.sweep(DAY) == 0
    assert store.get(FRAME) == b"content"
    assert store.sweep(AHEAD) == 3
    assert not store.exists(OLD_FRAME)
    assert not store.exists(FRAME)
    with pytest.raises(ObjectMissing):
        store.get(FRAME)
    assert all(store.get(key) == b"content" for key in RECORD)
    put(store, FRAME, b"made anew")
    assert store.get(FRAME) == b"made anew"


def test_sweeping_goes_by_each_frame_s_age(tmp_path: Path) -> None:
    """Of two frames the older one goes; so does what a put left behind that a crash broke off."""
    store = DirectoryStore(tmp_path)
    for frame in (1, 2):
        put(store, frame_key(SHA256, frame))
    left = tmp_path / "incoming" / "half"
    left.write_bytes(b"half")
    for old in (tmp_path / FRAME, left):
        os.utime(old, (1, 1))
    assert store.sweep(DAY) == 2
    assert [store.exists(frame_key(SHA256, frame)) for frame in (1, 2)] == [False, True]
    assert list((tmp_path / "incoming").iterdir()) == []


def test_what_cannot_be_removed_is_told_and_keeps_nothing_else(tmp_path: Path) -> None:
    """A folder where a file should be does not keep the sweep from the others, and is told of."""
    store = DirectoryStore(tmp_path)
    put(store, FRAME)
    (tmp_path / Path(FRAME).parent / "stray").mkdir()
    with pytest.raises(StoreUnavailable, match="cannot be swept"):
        store.sweep(AHEAD)
    assert not store.exists(FRAME)


def test_a_full_disk_is_found_by_the_check(tmp_path: Path) -> None:
    """A check that only made an empty file would pass, and the studies would be blamed for what their store lacks."""
    store = DirectoryStore(tmp_path)
    store.check_writable()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # no file may grow beyond: as good as full
    try:
        with pytest.raises(StoreUnavailable, match="OSTEON_STORE_URL"):
            store.check_writable()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    store.check_writable()
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_reached_without_a_write(store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever only wants to know whether it answers writes nothing; one that is away, or has no room, is told of."""
    store = open_store(store_url)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: pytest.fail("it wrote"))
        patched.setattr(Minio, "put_object", lambda *_: pytest.fail("it wrote"))
        store.check_reachable()
    put(store, FRAME)  # and a bucket that was missing is no obstacle
    store.check_reachable()
    if isinstance(store, DirectoryStore):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=2**30, used=2**30, free=0))
        with pytest.raises(StoreUnavailable, match="No space left"):
            store.check_reachable()
        gone: Store = DirectoryStore(tmp_path / "a-file")
        (tmp_path / "a-file").write_text("in the way")
    else:
        gone = open_store("s3://k:s@127.0.0.1:1/bucket")
    with pytest.raises(StoreUnavailable, match="OSTEON_STORE_URL"):
        gone.check_reachable()


def test_a_check_removes_the_version_that_it_wrote() -> None:
    """On a bucket that keeps versions a plain delete would add a marker, and each check would keep its megabyte."""
    store = S3Store("127.0.0.1:1", "k", "s", "bucket", secure=False)
    versions: dict[str, set[str | None]] = {}

    class Versioned:
        """A bucket that keeps versions."""

        def bucket_exists(self, _bucket: str) -> bool:
            return True

        def put_object(self, _bucket: str, key: str, *_: object) -> Any:
            versions.setdefault(key, set()).add("version-1")
            return SimpleNamespace(version_id="version-1")

        def remove_object(self, _bucket: str, key: str, version_id: str | None = None) -> None:
            if version_id is None:
                versions[key].add("marker")
            else:
                versions[key].remove(version_id)

    store.client = Versioned()  # type: ignore[assignment]
    store.check_writable()
    assert list(versions.values()) == [set()]


def test_a_check_leaves_nothing(store_url: str) -> None:
    """However often it is asked, the store holds what it held."""
    store = open_store(store_url)
    for _ in range(3):
        store.check_writable()
    put(store, FRAME)
    if isinstance(store, S3Store):
        assert [one.object_name for one in store.client.list_objects(store.bucket, recursive=True)] == [FRAME]


@pytest.fixture
def silent_s3() -> Iterator[str]:
    """A server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"s3://osteon:osteon-secret@127.0.0.1:{server.getsockname()[1]}/bucket"


def test_a_silent_server_is_given_up(silent_s3: str) -> None:
    """After three times the patience it is the store that is away."""
    store = open_store(silent_s3, patience_s=0.3)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        store.get(FRAME)


@pytest.mark.usefixtures("forked_decoders")
def test_no_image_is_blamed_for_a_store_that_hangs(silent_s3: str) -> None:
    """A decoder whose store is silent says so within the time that its image has."""
    limits = ImageLimits(max_frame_pixels=10**8, max_frames=10, max_decoded_bytes=10**9, max_header_bytes=10**6)
    decoders = Decoders(silent_s3, limits, count=1, limit_s=8, memory_bytes=2**32, log_level="WARNING")
    try:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            decoders.submit(Job(SHA256, 448)).result()
    finally:
        decoders.close()
