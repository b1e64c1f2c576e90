"""What the tests of faults share."""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.plant import Plant

CLONE_NEWNS = 0x00020000  # linux/sched.h


@pytest.fixture
def plant(standing: Plant) -> Iterator[Plant]:
    """Postgres, Valkey and API, running; what the test starts itself ends with it."""
    standing.begin()
    yield standing
    standing.end_processes(1)


@pytest.fixture(scope="session")
def _own_mounts() -> None:
    """What this process mounts is seen by it and its children only, and goes with it, however it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or libc.unshare(CLONE_NEWNS):
        pytest.skip("a small file system can be mounted by root only")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


@pytest.fixture
def small_disk(tmp_path: Path, _own_mounts: None) -> Iterator[Callable[[str], Path]]:
    """Makes a file system of this size, as mount names it."""
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
