"""What the tests of faults share."""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live_stack import BreakableStack

CLONE_NEWNS = 0x00020000  # linux/sched.h


@pytest.fixture
def live_stack(standing: BreakableStack) -> Iterator[BreakableStack]:
    """Postgres, Valkey and API, running; what the test starts itself ends with it."""
    standing.begin()
    yield standing
    standing.end_processes(1)


own_mounts = pytest.StashKey[bool]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What this process mounts is seen by it and its children only, and goes with it, however it ends.

    Before any test: unshare(2) moves one thread alone, and a file cannot be linked from one thread's mounts to another's.
    """
    if os.geteuid() == 0 and any("small_disk" in getattr(item, "fixturenames", ()) for item in session.items):
        session.stash[own_mounts] = ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) == 0
        if session.stash[own_mounts]:
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Path]]:
    """Makes a file system of this size, as mount names it."""
    if not request.session.stash.get(own_mounts, False):
        pytest.skip("a small file system can be mounted by root only")
    place = tmp_path / "small"

    def make(size: str) -> Path:
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
        return place

    yield make
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def fill() -> Callable[[Path], Path]:
    """Fills the disk under a folder to its last byte; returns the file that does."""

    def fill(folder: Path) -> Path:
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)) == 4096:
                pass
        return filler

    return fill
