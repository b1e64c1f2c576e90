"""One request's body: items read from the disk as they are sent, and hashed on the way."""

import hashlib
import secrets
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from infra.client.walk import Item
from shared.archives import DAMAGED
from shared.errors import OsteonError

CHUNK = 1 << 18


class SendError(OsteonError):
    """A file could not be read to its end, or changed while it was read; the others are sent without it."""

    def __init__(self, item: Item, why: str) -> None:
        super().__init__(why)
        self.item, self.why = item, why


class Body:
    """The multipart/form-data body of a group of items. One file is open at a time, whatever the group holds.

    Files are called by their number in the group: what a file is called here is nobody's business there, for file names
    may name patients.
    """

    def __init__(self, items: Sequence[Item], fields: dict[str, str], sent: Callable[[int], None]) -> None:
        """Prepare a body; its files are read while it is sent.

        Args:
            items: the files.
            fields: text fields of the form.
            sent: is called with the number of a file's bytes that have left, for each stretch.
        """
        self.items = items
        self.sha256: list[str] = []  # of each item, once it was sent
        self._sent = sent
        self._boundary = secrets.token_hex(16)
        self._fields = b"".join(self._head(f'name="{name}"', value.encode()) for name, value in fields.items())
        self._heads = [
            self._head(f'name="files"; filename="{number}"', b"", "\r\nContent-Type: application/octet-stream")
            for number in range(len(items))
        ]
        self._end = f"--{self._boundary}--\r\n".encode()

    def _head(self, disposition: str, value: bytes, more: str = "") -> bytes:
        head = f"--{self._boundary}\r\nContent-Disposition: form-data; {disposition}{more}\r\n\r\n"
        return head.encode() + value + (b"" if more else b"\r\n")

    @property
    def headers(self) -> dict[str, str]:
        """Content type and length of the body."""
        files = sum(len(head) + item.size_bytes + 2 for head, item in zip(self._heads, self.items, strict=True))
        length = len(self._fields) + files + len(self._end)
        return {"Content-Type": f"multipart/form-data; boundary={self._boundary}", "Content-Length": str(length)}

    def __iter__(self) -> Iterator[bytes]:
        """Read the files and give the body in pieces; raises SendError."""
        self.sha256.clear()
        yield self._fields
        for head, item in zip(self._heads, self.items, strict=True):
            yield head
            digest = hashlib.sha256()
            for chunk in chunks(item):
                digest.update(chunk)
                yield chunk
                self._sent(len(chunk))
            self.sha256.append(digest.hexdigest())
            yield b"\r\n"
        yield self._end


@contextmanager
def open_item(item: Item) -> Iterator[IO[bytes]]:
    """Open the item's bytes as a file; raises SendError, also for what goes wrong with the file inside the block."""
    try:
        if item.member is None:
            with item.path.open("rb") as file:
                yield file
        else:
            with zipfile.ZipFile(item.path) as archive, archive.open(item.member) as file:
                yield file
    except OSError as error:
        raise SendError(item, error.strerror or type(error).__name__) from None
    except DAMAGED:
        raise SendError(item, "the archive, or this member of it, is damaged or encrypted") from None


def chunks(item: Item) -> Iterator[bytes]:
    """Read exactly item.size_bytes; raises SendError, also if the file has become longer or shorter than that."""
    left = item.size_bytes
    with open_item(item) as file:
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                raise SendError(item, "it became shorter while it was read; send it again once it is whole")
            left -= len(chunk)
            yield chunk
        if file.read(1):
            raise SendError(item, "it became longer while it was read; send it again once it is whole")


def sha256_of(item: Item) -> str:
    """Hash the item's content by SHA-256; raises SendError."""
    digest = hashlib.sha256()
    for chunk in chunks(item):
        digest.update(chunk)
    return digest.hexdigest()
