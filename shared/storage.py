"""Objects by content: originals, previews and bundles, in a directory or in any S3 store."""

import contextlib
import errno
import hashlib
import io
import itertools
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError

from shared.errors import ObjectMissing, OsteonError, StoreUnavailable

CHUNK = 1 << 20
PROBE = bytes(1 << 20)  # as much as any preview takes
PATIENCE_S = 60.0  # for a silent S3 server, three times: one that stores a large object may think for long
FILMS = "films"  # the one cache among the prefixes
CURE = "Check OSTEON_STORE_URL, and that the store runs and has room."
_KEY = re.compile(r"[a-z]+(/[A-Za-z0-9._-]+)+")


def original_key(sha256: str) -> str:
    """Where the stored bytes of an instance stand; two levels, so that no folder grows to millions."""
    return f"originals/{sha256[:2]}/{sha256}.dcm"


def preview_key(sha256: str, frame: int) -> str:
    """Where the picture of a frame stands (1 for the first); made by the worker, remade at will."""
    return f"previews/{sha256[:2]}/{sha256}-{frame}.jpg"


def film_key(sha256: str, frame: int) -> str:
    """Where the full film of a frame stands (1 for the first); made when somebody looks, remade at will."""
    return f"{FILMS}/{sha256[:2]}/{sha256}-{frame}.film"


def bundle_key(sha256: str) -> str:
    """Where a model bundle stands."""
    return f"bundles/{sha256}.safetensors"


class Store(Protocol):
    """What both stores can do. Every call may raise StoreUnavailable."""

    takes_files: bool  # whether `adopt` may work at all

    def put(self, key: str, content: BinaryIO, size_bytes: int) -> None:
        """Store `size_bytes` of content from where it stands; when this returns, it is durable and whole."""

    def adopt(self, key: str, descriptor: int) -> bool:
        """Take a whole unnamed file (O_TMPFILE), flushed to disk already, without copying it; durable if it does.

        False, and nothing done, where that cannot be: then put it.
        """

    def get(self, key: str, most: int | None = None) -> bytes:
        """The whole object, or its first `most` bytes. Raises ObjectMissing."""

    def exists(self, key: str) -> bool:
        """Whether the object is there, whole."""

    def check(self) -> None:
        """Raises StoreUnavailable unless the store can be written to."""

    def sweep(self, kept: timedelta) -> int:
        """Remove the full films that were made longer ago, and what a broken-off put left; returns how many objects.

        Nothing else is ever removed: films are made anew when somebody looks, all other objects are the record.
        """


def open_store(url: str, patience_s: float = PATIENCE_S) -> Store:
    """The store that OSTEON_STORE_URL names: file:DIR, s3://KEY:SECRET@HOST:PORT/BUCKET, or s3s:// for TLS.

    patience_s: for how long an S3 server may be silent, each of three times.
    Raises OsteonError for any other URL.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return DirectoryStore(Path(unquote(url.removeprefix("file:").removeprefix("//"))))
    if parts.scheme in ("s3", "s3s") and parts.hostname and parts.path.strip("/"):
        host = parts.hostname + (f":{parts.port}" if parts.port else "")
        return S3Store(
            host,
            unquote(parts.username or ""),
            unquote(parts.password or ""),
            parts.path.strip("/"),
            parts.scheme == "s3s",
            patience_s,
        )
    raise OsteonError("OSTEON_STORE_URL must be file:DIR or s3://KEY:SECRET@HOST:PORT/BUCKET")


@dataclass(frozen=True)
class Disk:
    """A disk's room, in bytes."""

    total: int
    free: int


def disk_of(store: Store) -> Disk | None:
    """Size and free room of the disk under a directory store; None for an S3 server, which does not tell its own."""
    if not isinstance(store, DirectoryStore):
        return None
    try:
        usage = shutil.disk_usage(store.folder)
    except OSError:
        return None
    return Disk(usage.total, usage.free)


class DirectoryStore:
    """Objects as files; written aside, flushed to disk, then renamed into place."""

    takes_files = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._durable: set[Path] = set()  # folders whose names are on the disk

    def put(self, key: str, content: BinaryIO, size_bytes: int) -> None:
        """See Store. A crash leaves at most a file in incoming/, never half an object."""
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
        except OSError as wrong:
            raise StoreUnavailable(f"The object store cannot be written: {wrong.strerror}. {CURE}") from wrong

    def adopt(self, key: str, descriptor: int) -> bool:
        """See Store; the file must lie on this store's disk."""
        goal = self._path(key)
        try:
            new = self._make_room(goal)
            folder = os.open(goal.parent, os.O_RDONLY)
            try:
                # with a folder's descriptor Python calls linkat(2), which alone can name an unnamed file
                os.link(f"/proc/self/fd/{descriptor}", goal.name, dst_dir_fd=folder, follow_symlinks=True)
            except OSError:  # another disk, an object that is there, a file that has a name: put knows what to do
                return False
            finally:
                os.close(folder)
            self._sync_name(goal, new=new)
        except OSError as wrong:
            raise StoreUnavailable(f"The object store cannot be written: {wrong.strerror}") from wrong
        return True

    def get(self, key: str, most: int | None = None) -> bytes:
        """See Store."""
        try:
            with self._path(key).open("rb") as file:
                return file.read(-1 if most is None else most)
        except FileNotFoundError:
            raise ObjectMissing(f"{key} is not in the store") from None
        except OSError as wrong:
            raise StoreUnavailable(f"The object store cannot be read: {wrong.strerror}. {CURE}") from wrong

    def exists(self, key: str) -> bool:
        """See Store."""
        return self._path(key).is_file()

    def check(self) -> None:
        """See Store."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder) as file:
                file.write(PROBE)  # a full disk still takes an empty file
                file.flush()
                os.fsync(file.fileno())
        except OSError as wrong:
            raise StoreUnavailable(f"The object store cannot be written: {wrong.strerror}. {CURE}") from wrong

    def sweep(self, kept: timedelta) -> int:
        """See Store; removes on although single files cannot be, and raises of the first of them."""
        swept, trouble = 0, None
        before = time.time() - kept.total_seconds()
        for file in itertools.chain((self.folder / FILMS).glob("*/*"), (self.folder / "incoming").glob("*")):
            try:
                if file.stat().st_mtime < before:
                    file.unlink()
                    swept += 1
            except FileNotFoundError:  # another sweep was faster
                pass
            except OSError as wrong:
                trouble = trouble or wrong
        if trouble:
            raise StoreUnavailable(f"The object store cannot be swept: {trouble.strerror}. {CURE}") from trouble
        return swept

    def _make_room(self, goal: Path) -> bool:
        """Make the object's folder; whether it is new."""
        new = not goal.parent.exists()
        goal.parent.mkdir(parents=True, exist_ok=True)
        return new

    def _sync_name(self, goal: Path, *, new: bool) -> None:
        """The name itself must survive a power cut, and its folder's, which somebody else may have made just now."""
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


class S3Store:
    """Objects in a bucket of MinIO or any S3 server."""

    takes_files = False

    def __init__(
        self,
        host: str,
        access_key: str,
        secret_key: str,
        bucket: str,
        secure: bool,  # noqa: FBT001 - of the URL
        patience_s: float = PATIENCE_S,
    ) -> None:
        pool = urllib3.PoolManager(
            maxsize=32,
            timeout=urllib3.Timeout(connect=min(5.0, patience_s), read=patience_s),
            retries=urllib3.Retry(total=2, backoff_factor=0.2),
        )
        self.bucket = bucket
        self.client = Minio(host, access_key=access_key, secret_key=secret_key, secure=secure, http_client=pool)

    def put(self, key: str, content: BinaryIO, size_bytes: int) -> None:
        """See Store; the server checks the bytes against the signed hash and answers when they are stored."""
        start = content.tell()
        with _s3_errors(key):
            try:
                self.client.put_object(self.bucket, key, content, size_bytes)
            except S3Error as wrong:
                if wrong.code != "NoSuchBucket":
                    raise
                self._make_bucket()
                content.seek(start)
                self.client.put_object(self.bucket, key, content, size_bytes)

    def adopt(self, key: str, descriptor: int) -> bool:  # noqa: ARG002 - as Store has it
        """See Store."""
        return False

    def get(self, key: str, most: int | None = None) -> bytes:
        """See Store."""
        with _s3_errors(key):
            answer = self.client.get_object(self.bucket, key, length=most or 0)  # 0: all of it
            try:
                return bytes(answer.read())
            finally:
                answer.close()
                answer.release_conn()

    def exists(self, key: str) -> bool:
        """See Store."""
        try:
            with _s3_errors(key):
                self.client.stat_object(self.bucket, key)
        except ObjectMissing:
            return False
        return True

    def check(self) -> None:
        """See Store; makes the bucket if it is missing."""
        key = f"checks/{uuid.uuid4().hex}"
        with _s3_errors(self.bucket):
            self._make_bucket()
            self.client.put_object(self.bucket, key, io.BytesIO(PROBE), len(PROBE))
            self.client.remove_object(self.bucket, key)

    def sweep(self, kept: timedelta) -> int:
        """See Store; what a broken-off put left is the server's to remove."""
        before = datetime.now(UTC) - kept
        with _s3_errors(FILMS):
            old = [
                found.object_name
                for found in self.client.list_objects(self.bucket, prefix=f"{FILMS}/", recursive=True)
                if found.object_name and found.last_modified and found.last_modified < before
            ]
            for failed in self.client.remove_objects(self.bucket, [DeleteObject(name) for name in old]):
                raise StoreUnavailable(f"The object store does not remove {failed.name}: {failed.code}. {CURE}")
        return len(old)

    def _make_bucket(self) -> None:
        if not self.client.bucket_exists(self.bucket):
            try:
                self.client.make_bucket(self.bucket)
            except S3Error as wrong:
                if wrong.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):  # another was faster
                    raise


@contextlib.contextmanager
def _s3_errors(key: str) -> Iterator[None]:
    try:
        yield
    except S3Error as wrong:
        if wrong.code in ("NoSuchKey", "NoSuchBucket", "NoSuchObject"):
            raise ObjectMissing(f"{key} is not in the store") from wrong
        raise StoreUnavailable(f"The object store answered {wrong.code}. {CURE}") from wrong
    except (MinioException, HTTPError, OSError) as wrong:
        raise StoreUnavailable(f"The object store does not answer ({type(wrong).__name__}). {CURE}") from wrong


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


def sha256_of(content: bytes) -> str:
    """Hex digest of the bytes."""
    return hashlib.sha256(content).hexdigest()
