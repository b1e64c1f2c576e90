"""What a store can do, and the key of each object."""

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import BinaryIO, Protocol

PROBE = bytes(1 << 20)  # as much as any preview takes
FRAMES = "frames"  # the one cache among the prefixes
OLD_FRAMES = "films"  # where 0.1.0 kept it; swept, never read. Gone with 0.3.0
HINT = "Check OSTEON_STORE_URL, and that the store runs and has room."


def original_key(sha256: str) -> str:
    """The key of an instance's stored bytes; two levels, so that no folder grows to millions."""
    return f"originals/{sha256[:2]}/{sha256}.dcm"


def preview_key(sha256: str, frame: int) -> str:
    """Name the preview of a frame, which the worker makes and can make again.

    Args:
        sha256: of the instance's stored bytes, hexadecimal.
        frame: number of the frame, from 1.

    Returns:
        Its key.
    """
    return f"previews/{sha256[:2]}/{sha256}-{frame}.jpg"


def frame_key(sha256: str, frame: int) -> str:
    """Name the full-resolution picture of a frame, which the worker makes on demand and can make again.

    Args:
        sha256: of the instance's stored bytes, hexadecimal.
        frame: number of the frame, from 1.

    Returns:
        Its key.
    """
    return f"{FRAMES}/{sha256[:2]}/{sha256}-{frame}.frame"


def raw_frame_key(sha256: str, frame: int) -> str:
    """Name the uncompressed stored values of a frame, which the worker makes on demand and can make again.

    Args:
        sha256: of the instance's stored bytes, hexadecimal.
        frame: number of the frame, from 1.

    Returns:
        Its key.
    """
    return f"{FRAMES}/{sha256[:2]}/{sha256}-{frame}.raw"


def metadata_key(sha256: str) -> str:
    """The key of an instance's sealed metadata, which is made of its stored bytes and can be made again."""
    return f"metadata/{sha256[:2]}/{sha256}.sealed"


def bundle_key(sha256: str) -> str:
    """The key of a model bundle."""
    return f"bundles/{sha256}.safetensors"


class Store(Protocol):
    """What both stores can do. Every call may raise StoreUnavailable."""

    takes_files: bool  # whether `adopt` may work at all

    def put(self, key: str, content: BinaryIO, size_bytes: int) -> None:
        """Store an object; when this returns, it is durable and whole.

        Args:
            key: of the object, as the functions of this module make it.
            content: at the first byte to store.
            size_bytes: how many bytes to store.
        """

    def put_unsynced(self, key: str, content: bytes) -> None:
        """Store a small object that can be made again: after a power cut it may be missing, or not whole.

        Args:
            key: of the object.
            content: all of it.
        """

    def adopt(self, key: str, descriptor: int) -> bool:
        """Take a file over without copying it; when this returns True, the object is durable.

        Args:
            key: of the object.
            descriptor: of a whole unnamed file (O_TMPFILE) that was flushed to disk.

        Returns:
            False, and nothing is done, if that is not possible: then put it.
        """

    def get(self, key: str, max_bytes: int | None = None, start: int = 0) -> bytes:
        """Read an object.

        Args:
            key: of the object.
            max_bytes: how many bytes to read at most; None: all.
            start: position of the first byte, within the object.

        Returns:
            The bytes from there.

        Raises:
            ObjectMissing: the store has no such object.
        """

    def exists(self, key: str) -> bool:
        """Whether the object is there, whole."""

    def check_reachable(self) -> None:
        """Raises StoreUnavailable unless the store answers; writes nothing."""

    def check_writable(self) -> None:
        """Raises StoreUnavailable unless the store can be written to; what it writes is removed again."""

    def sweep(self, kept: timedelta) -> int:
        """Remove full-resolution pictures, which are made again on demand, and what an interrupted `put` left.

        Args:
            kept: objects that are younger than this stay.

        Returns:
            How many objects were removed.
        """

    def remove(self, keys: Sequence[str]) -> None:
        """Remove those of these objects that are there, for good: what was deleted, see shared.object_removal."""


def sha256_of(content: bytes) -> str:
    """Hex digest of the bytes."""
    return hashlib.sha256(content).hexdigest()
