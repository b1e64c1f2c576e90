"""Objects in a bucket of an S3 server."""

import contextlib
import io
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import BinaryIO

import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError

from shared.errors import ObjectMissing, StoreUnavailable
from shared.storage.base import FRAMES, HINT, OLD_FRAMES, PROBE
from shared.tcp import SOCKET_OPTIONS

RESPONSE_LIMIT_S = 60.0  # for a silent S3 server, three times: one that stores a large object may think for long


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
        patience_s: float = RESPONSE_LIMIT_S,
    ) -> None:
        pool = urllib3.PoolManager(
            maxsize=32,
            socket_options=[*HTTPConnection.default_socket_options, *SOCKET_OPTIONS],
            timeout=urllib3.Timeout(connect=min(5.0, patience_s), read=patience_s),
            retries=urllib3.Retry(total=2, backoff_factor=0.2),
        )
        self.bucket = bucket
        self.client = Minio(host, access_key=access_key, secret_key=secret_key, secure=secure, http_client=pool)

    def put(self, key: str, content: BinaryIO, size_bytes: int) -> None:
        """See `Store.put`."""
        # the server checks the bytes against the signed hash and responds when they are stored
        start = content.tell()
        with _s3_errors(key):
            try:
                self.client.put_object(self.bucket, key, content, size_bytes)
            except S3Error as error:
                if error.code != "NoSuchBucket":
                    raise
                self._make_bucket()
                content.seek(start)
                self.client.put_object(self.bucket, key, content, size_bytes)

    def put_unsynced(self, key: str, content: bytes) -> None:
        """See `Store.put_unsynced`."""
        self.put(key, io.BytesIO(content), len(content))

    def adopt(self, key: str, descriptor: int) -> bool:  # noqa: ARG002 - as Store has it
        """See `Store.adopt`."""
        return False

    def get(self, key: str, max_bytes: int | None = None, start: int = 0) -> bytes:
        """See `Store.get`."""
        with _s3_errors(key):
            response = self.client.get_object(self.bucket, key, offset=start, length=max_bytes or 0)  # 0: all of it
            try:
                return bytes(response.read())
            finally:
                response.close()
                response.release_conn()

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        try:
            with _s3_errors(key):
                self.client.stat_object(self.bucket, key)
        except ObjectMissing:
            return False
        return True

    def check_reachable(self) -> None:
        """See `Store.check_reachable`; a missing bucket is made by the first `put`."""
        with _s3_errors(self.bucket):
            self.client.bucket_exists(self.bucket)

    def check_writable(self) -> None:
        """See `Store.check_writable`; makes the bucket if it is missing."""
        key = f"checks/{uuid.uuid4().hex}"
        with _s3_errors(self.bucket):
            self._make_bucket()
            put = self.client.put_object(self.bucket, key, io.BytesIO(PROBE), len(PROBE))
            # by its version, where the bucket keeps versions: else a marker is added and the megabyte stays
            try:
                self.client.remove_object(self.bucket, key, version_id=put.version_id)
            except S3Error as error:
                if error.code != "AccessDenied" or put.version_id is None:
                    raise
                self.client.remove_object(self.bucket, key)  # who may not remove versions still can write

    def sweep(self, kept: timedelta) -> int:
        """See `Store.sweep`; the server itself removes what an interrupted put left."""
        before = datetime.now(UTC) - kept
        with _s3_errors(FRAMES):
            old = [
                found.object_name
                for prefix in (FRAMES, OLD_FRAMES)
                for found in self.client.list_objects(self.bucket, prefix=f"{prefix}/", recursive=True)
                if found.object_name and found.last_modified and found.last_modified < before
            ]
            for failed in self.client.remove_objects(self.bucket, [DeleteObject(name) for name in old]):
                text = f"The object store does not remove {failed.name}: {failed.code}. {HINT}"
                raise StoreUnavailable(text, str(failed.code))
        return len(old)

    def remove(self, keys: Sequence[str]) -> None:
        """See `Store.remove`; a bucket with versions keeps the earlier ones, as its rules say."""
        with _s3_errors(self.bucket):
            try:
                for failed in self.client.remove_objects(self.bucket, [DeleteObject(key) for key in keys]):
                    text = f"The object store does not remove {failed.name}: {failed.code}. {HINT}"
                    raise StoreUnavailable(text, str(failed.code))
            except S3Error as error:
                if error.code != "NoSuchBucket":
                    raise

    def _make_bucket(self) -> None:
        if not self.client.bucket_exists(self.bucket):
            try:
                self.client.make_bucket(self.bucket)
            except S3Error as error:
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):  # another was faster
                    raise


@contextlib.contextmanager
def _s3_errors(key: str) -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        if error.code in ("NoSuchKey", "NoSuchBucket", "NoSuchObject"):
            raise ObjectMissing(f"{key} is not in the store", key) from error
        raise StoreUnavailable(f"The object store answered {error.code}. {HINT}", str(error.code)) from error
    except (MinioException, HTTPError, OSError) as error:
        kind = type(error).__name__
        raise StoreUnavailable(f"The object store does not answer ({kind}). {HINT}", kind) from error
