"""The metadata of stored instances, sealed beside their bytes: made after intake, made again where they are missing.

They are made of what came, so that no original is read from the store for them: its beginning waits in memory.
"""

import io
import json
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any, BinaryIO

from shared.dicom.image import ImageLimits
from shared.dicom.metadata import metadata_of
from shared.errors import ObjectMissing, Rejected, TooLarge, Unavailable
from shared.logs import get_logger
from shared.queries.access import Vault
from shared.storage import Store, metadata_key, original_key

log = get_logger(__name__)
HEAD_BYTES = 1 << 18  # of an original: more than most headers have
# objects whose metadata are still to be made, and bytes of their headers; those of others are made when they are read
MAX_WAITING, MAX_WAITING_BYTES = 20_000, 32 << 20
QUIET_S = 1.0  # after the last files came in, metadata are made one after the other
BUSY_DELAY_S = 0.2  # until then, between two of them: about a hundredth of a core


class InstanceMetadata:
    """Makes and reads the metadata of instances. Safe between threads."""

    def __init__(
        self, store: Store, vault: Vault, limits: ImageLimits, busy: Callable[[], bool] = lambda: False
    ) -> None:
        """busy: whether files come in just now, which then go first."""
        self.store, self.vault, self.limits, self._busy = store, vault, limits, busy
        self._waiting: deque[tuple[str, int, bytes]] = deque()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._came = 0.0  # when the last files were there
        self._hurry = threading.Event()

    def read(self, sha256: str, size_bytes: int) -> dict[str, Any]:
        """Read an instance's metadata; what is missing, damaged or sealed with another key is made again, and kept.

        Args:
            sha256: of the object whose header is in force.
            size_bytes: its size.

        Returns:
            DICOM JSON, as `shared.dicom.metadata.metadata_of` makes it.

        Raises:
            ObjectMissing: the object itself is not there.
            StoreUnavailable: the store does not respond.
            Rejected: the object's header cannot be read any more.
        """
        try:
            packed = self.vault.open_bytes(self.store.get(metadata_key(sha256)))
            if packed is not None:
                attributes: dict[str, Any] = json.loads(zlib.decompress(packed))
                return attributes
        except (ObjectMissing, zlib.error, ValueError):
            pass
        return self.make(sha256, size_bytes)

    def make(self, sha256: str, size_bytes: int, head: bytes | None = None) -> dict[str, Any]:
        """Make an instance's metadata and keep them; a store that cannot be written to is no obstacle.

        Args:
            sha256: of the object.
            size_bytes: its size.
            head: its first bytes; None: they are read from the store, as is all of it where these are too few.

        Returns:
            As `read`.

        Raises:
            ObjectMissing: as `read`. Unavailable, Rejected, too.
        """
        if head is None:
            head = self.store.get(original_key(sha256), min(HEAD_BYTES, size_bytes) or None)
        try:
            return self._made(sha256, size_bytes, io.BytesIO(head))
        except TooLarge:
            if len(head) >= size_bytes:
                raise
            return self._made(sha256, size_bytes, io.BytesIO(self.store.get(original_key(sha256))))

    def make_from_file(self, sha256: str, size_bytes: int, file: BinaryIO, head_bytes: int) -> None:
        """Have the metadata made of a file that was stored. Raises nothing.

        A thread makes them soon, slowly while files come in. It does not need the file: the header waits in memory.
        Those of a file whose header is larger than HEAD_BYTES are made at once, which takes little beside storing it.

        Args:
            sha256: of the object.
            size_bytes: its size.
            file: the same bytes, at their start.
            head_bytes: as `Header` has it.
        """
        try:
            if head_bytes > HEAD_BYTES:
                self._made(sha256, size_bytes, file)
            else:
                self._later(sha256, size_bytes, file.read(head_bytes or HEAD_BYTES))
        except Rejected as error:  # who reads it is told
            log.info("metadata not made", error=type(error).__name__)
        except Exception:
            log.exception("metadata not made")

    def _made(self, sha256: str, size_bytes: int, file: BinaryIO) -> dict[str, Any]:
        attributes = metadata_of(file, size_bytes, self.limits)
        text = json.dumps(attributes, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        try:
            sealed = self.vault.seal_bytes(zlib.compress(text.encode("utf-8", "replace")))
            self.store.put_unsynced(metadata_key(sha256), sealed)
        except Unavailable as error:
            log.warning("metadata not kept", error=type(error).__name__)
        return attributes

    def _later(self, sha256: str, size_bytes: int, head: bytes) -> None:
        with self._lock:
            self._came = time.monotonic()
            if len(self._waiting) >= MAX_WAITING or self._waiting_bytes + len(head) > MAX_WAITING_BYTES:
                return
            self._waiting.append((sha256, size_bytes, head))
            self._waiting_bytes += len(head)
            if self._thread is None:  # it ends when nothing waits
                self._hurry.clear()
                thread = threading.Thread(target=self._work, name="metadata", daemon=True)
                thread.start()
                self._thread = (
                    thread  # not before: who waits for it takes no lock, and cannot join what was not started
                )

    def make_pending(self, limit_s: float) -> bool:
        """Have all that waits made now, and what comes meanwhile; return whether it is done within so many seconds."""
        until = time.monotonic() + limit_s
        while (thread := self._thread) is not None and (left := until - time.monotonic()) > 0:
            self._hurry.set()
            thread.join(left)
        return self._thread is None

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                sha256, size_bytes, head = self._waiting.popleft()
                self._waiting_bytes -= len(head)
            try:
                self.make(sha256, size_bytes, head)
            except (ObjectMissing, Rejected, Unavailable) as error:  # who reads it is told
                log.info("metadata not made", error=type(error).__name__)
            except Exception:
                log.exception("metadata not made")
            if self._busy() or time.monotonic() - self._came < QUIET_S:
                self._hurry.wait(BUSY_DELAY_S)
