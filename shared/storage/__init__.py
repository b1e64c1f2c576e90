"""Objects by content: originals, previews and bundles, in a directory or in any S3 store."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shared.errors import OsteonError
from shared.storage.base import (
    Store,
    bundle_key,
    frame_key,
    metadata_key,
    original_key,
    preview_key,
    raw_frame_key,
    sha256_of,
)
from shared.storage.directory import DirectoryStore
from shared.storage.s3 import RESPONSE_LIMIT_S, S3Store

__all__ = [
    "DirectoryStore",
    "Disk",
    "S3Store",
    "Store",
    "bundle_key",
    "disk_of",
    "frame_key",
    "metadata_key",
    "open_store",
    "original_key",
    "preview_key",
    "raw_frame_key",
    "sha256_of",
]


def open_store(url: str, patience_s: float = RESPONSE_LIMIT_S) -> Store:
    """Open the store that OSTEON_STORE_URL names; nothing is sent yet.

    Args:
        url: file:DIR, s3://KEY:SECRET@HOST:PORT/BUCKET, or s3s:// for TLS.
        patience_s: for how long an S3 server may be silent, each of three times.

    Returns:
        The store.

    Raises:
        OsteonError: any other URL.
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
    raise OsteonError("OSTEON_STORE_URL must be file:DIR, s3://KEY:SECRET@HOST:PORT/BUCKET or s3s:// for TLS")


@dataclass(frozen=True)
class Disk:
    """A disk's room, in bytes."""

    total: int
    free: int


def disk_of(store: Store) -> Disk | None:
    """Size and free room of the disk under a directory store; None for an S3 server, which does not report its own."""
    if not isinstance(store, DirectoryStore):
        return None
    try:
        usage = shutil.disk_usage(store.folder)
    except OSError:
        return None
    return Disk(usage.total, usage.free)
