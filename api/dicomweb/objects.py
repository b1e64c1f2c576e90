"""Stored objects as files and as pieces: as much is read at a time as memory should hold."""

import io
from collections.abc import Iterator
from typing import BinaryIO, cast

from fastapi import HTTPException

from api.spool import PositionedReader
from shared.errors import ObjectDamaged, ObjectMissing
from shared.storage import Store

PIECE_BYTES = 1 << 20


class StoredObject(PositionedReader):
    """An object of the store as a file that can be read from anywhere."""

    def __init__(self, store: Store, key: str, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.store, self.key = store, key

    def read_at(self, position: int, size: int) -> bytes:
        """Read bytes of the object.

        Args:
            position: offset of the first one, in bytes.
            size: how many.

        Returns:
            The bytes.

        Raises:
            StoreUnavailable: the store does not answer.
            ObjectMissing: there is no such object.
        """
        return self.store.get(self.key, size, position)


def open_object(store: Store, key: str, size_bytes: int, at_once: int = PIECE_BYTES) -> BinaryIO:
    """Open an object.

    Args:
        store: that holds it.
        key: of the object.
        size_bytes: its size.
        at_once: bytes that are read together.

    Returns:
        A file that can be read from anywhere.

    Raises:
        HTTPException: 410; there is none.
        StoreUnavailable: the store does not answer.
    """
    opened = io.BufferedReader(StoredObject(store, key, size_bytes), at_once)
    try:
        opened.peek(1)  # what is not there is found now, not within a response
    except ObjectMissing:
        raise HTTPException(410, "The stored bytes of this instance are gone. Send it again") from None
    return cast("BinaryIO", opened)


def pieces(file: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    """Read a file from its position.

    Args:
        file: to read.
        size_bytes: how many bytes.

    Yields:
        Its bytes, at most PIECE_BYTES at a time.

    Raises:
        ObjectDamaged: it ends before.
    """
    left = size_bytes
    while left:
        piece = file.read(min(PIECE_BYTES, left))
        if not piece:
            raise ObjectDamaged("A stored object is shorter than when it was stored")
        left -= len(piece)
        yield piece
