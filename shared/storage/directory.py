"""Objects as files of a directory."""

import contextlib
import errno
import itertools
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

from shared.errors import ObjectMissing, StoreUnavailable
from shared.storage.base import FRAMES, HINT, OLD_FRAMES, PROBE

CHUNK = 1 << 20
_KEY = re.compile(r"[a-z]+(/[A-Za-z0-9._-]+)+")


class DirectoryStore:
    """Objects as files; written aside, flushed to disk, then renamed into place."""

    takes_files = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._durable: set[Path] = set()  # folders whose names are on the disk

    def put(self, key: str, content: BinaryIO, size_bytes: int) -> None:
        """See `Store.put`."""
        # a crash leaves at most a file in incoming/, never half an object
        goal = self._path(key)
        try:
            incoming = self.folder / "incoming"
            incoming.mkdir(parents=True, exist_ok=True)
            new = self._make_room(goal)
            handle, name = tempfile.mkstemp(dir=incoming)
            try:
                with os.fdopen(handle, "wb") as file:
                    _copy(content, file, size_bytes)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(goal)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            self._sync_name(goal, new=new)
        except OSError as error:
            raise StoreUnavailable(*_error_texts("cannot be written", error)) from error

    def put_unsynced(self, key: str, content: bytes) -> None:
        """See `Store.put_unsynced`."""
        goal = self._path(key)
        try:
            incoming = self.folder / "incoming"
            incoming.mkdir(parents=True, exist_ok=True)
            self._make_room(goal)
            handle, name = tempfile.mkstemp(dir=incoming)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                Path(name).replace(goal)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StoreUnavailable(*_error_texts("cannot be written", error)) from error

    def adopt(self, key: str, descriptor: int) -> bool:
        """See `Store.adopt`."""
        # the file must lie on this store's disk
        goal = self._path(key)
        try:
            new = self._make_room(goal)
            folder = os.open(goal.parent, os.O_RDONLY)
            try:
                # with a folder's descriptor Python calls linkat(2), which alone can name an unnamed file
                os.link(f"/proc/self/fd/{descriptor}", goal.name, dst_dir_fd=folder, follow_symlinks=True)
            except OSError:  # another disk, an object that is there, a file that has a name: put handles it
                return False
            finally:
                os.close(folder)
            self._sync_name(goal, new=new)
        except OSError as error:
            raise StoreUnavailable(*_error_texts("cannot be written", error)) from error
        return True

    def get(self, key: str, max_bytes: int | None = None, start: int = 0) -> bytes:
        """See `Store.get`."""
        try:
            with self._path(key).open("rb") as file:
                file.seek(start)
                return file.read(-1 if max_bytes is None else max_bytes)
        except FileNotFoundError:
            raise ObjectMissing(f"{key} is not in the store", key) from None
        except OSError as error:
            raise StoreUnavailable(*_error_texts("cannot be read", error)) from error

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        return self._path(key).is_file()

    def check_reachable(self) -> None:
        """See `Store.check_reachable`; reports a disk without room, too."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))  # noqa: TRY301 - reported as a failed write would be
            if shutil.disk_usage(self.folder).free < len(PROBE):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
        except OSError as error:
            raise StoreUnavailable(*_error_texts("cannot be written", error)) from error

    def check_writable(self) -> None:
        """See `Store.check_writable`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder) as file:
                file.write(PROBE)  # a full disk still takes an empty file
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreUnavailable(*_error_texts("cannot be written", error)) from error

    def sweep(self, kept: timedelta) -> int:
        """See `Store.sweep`; goes on if single files cannot be removed, and raises for the first of them."""
        swept, trouble = 0, None
        before = time.time() - kept.total_seconds()
        for file in itertools.chain(
            (self.folder / FRAMES).glob("*/*"),
            (self.folder / OLD_FRAMES).glob("*/*"),
            (self.folder / "incoming").glob("*"),
        ):
            try:
                if file.stat().st_mtime < before:
                    file.unlink()
                    swept += 1
            except FileNotFoundError:  # another sweep was faster
                pass
            except OSError as error:
                trouble = trouble or error
        if trouble:
            raise StoreUnavailable(*_error_texts("cannot be swept", trouble)) from trouble
        return swept

    def remove(self, keys: Sequence[str]) -> None:
        """See `Store.remove`; once it returns, a power cut does not bring a name back."""
        folders = set()
        try:
            for key in keys:
                path = self._path(key)
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                    folders.add(path.parent)
            for folder in folders:
                _sync(folder)
        except OSError as error:
            raise StoreUnavailable(*_error_texts("does not remove", error)) from error

    def _make_room(self, goal: Path) -> bool:
        """Make the object's folder; return whether it is new."""
        new = not goal.parent.exists()
        goal.parent.mkdir(parents=True, exist_ok=True)
        return new

    def _sync_name(self, goal: Path, *, new: bool) -> None:
        """Make the name survive a power cut, and its folder's, which another process may have made just now."""
        _sync(goal.parent)
        if new:
            self._durable.discard(goal.parent)
        for folder in goal.parents:
            if folder == self.folder or folder in self._durable:
                break
            _sync(folder.parent)
            self._durable.add(folder)

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key) or ".." in key:
            raise ValueError(f"{key!r} is no object key")
        return self.folder / key


def _error_texts(what: str, error: OSError) -> tuple[str, str]:
    """The message of a StoreUnavailable for an error of the operating system, and the error's name, as "ENOSPC"."""
    return f"The object store {what}: {error.strerror}. {HINT}", errno.errorcode.get(error.errno or 0, "")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(content: BinaryIO, file: BinaryIO, size_bytes: int) -> None:
    left = size_bytes
    while left:
        chunk = content.read(min(CHUNK, left))
        if not chunk:
            raise OSError(errno.EIO, f"content ended {left} bytes early")
        file.write(chunk)
        left -= len(chunk)
