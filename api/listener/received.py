"""A data set on its way from the network to the spool, with the file meta information that it needs as a file."""

import struct

from api.backends import Backends
from api.listener.association import Announced, ProtocolViolation
from api.spool import Spool, SpooledFile
from shared.dicom.conformance import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from shared.errors import OsteonError, Rejected, TooLarge, Unavailable

PREAMBLE = bytes(128) + b"DICM"


class ReceivedFile:
    """Writes one data set into a spool of its own.

    What cannot be taken is read to its end all the same: only then the sender reads why.
    """

    def __init__(self, backends: Backends, announced: Announced) -> None:
        self.announced = announced
        self.failure: OsteonError | None = None
        self._most = backends.settings.max_file_bytes
        self.size_bytes = 0  # that came, also if they were thrown away
        self._passed = 0  # bytes that were thrown away
        self._spool: Spool | None = None
        settings, store = backends.settings, backends.store
        try:
            self._spool = Spool(settings.spool_dir, backends.spool_budget, own_files=store.takes_files)
            self._coming = self._spool.begin("")
            self._coming.write(file_meta(announced))
        except OSError as error:
            self._fail(Unavailable(f"The disk where uploads wait cannot be written: {error.strerror}"))
        except (Unavailable, Rejected) as error:
            self._fail(error)

    def write(self, *parts: bytes | memoryview) -> None:
        """Add the next bytes. Raises ProtocolViolation if the peer goes on for ever."""
        more = sum(map(len, parts))
        self.size_bytes += more
        if self.failure is not None:
            self._passed += more
            if self._passed > self._most:
                raise ProtocolViolation
            return
        try:
            if self._coming.size_bytes + more > self._most:
                raise TooLarge(f"The data set has more than {self._most} bytes", f"{self._most} bytes")
            self._coming.write(*parts)
        except (Unavailable, Rejected) as error:
            self._fail(error)

    def finish(self) -> SpooledFile:
        """End the data set.

        Returns:
            The file, readable, on its way to the disk.

        Raises:
            Unavailable: there was no room for it.
            Rejected: it is too large.
        """
        if self.failure is None:
            assert self._spool is not None
            try:
                file = self._coming.finish()
                self._spool.flush()
            except Unavailable as error:
                self._fail(error)
            else:
                return file
        assert self.failure is not None
        raise self.failure

    @property
    def spool(self) -> Spool:
        """Where its file lies."""
        assert self._spool is not None
        return self._spool

    def close(self) -> None:
        """Free its room; may be called twice."""
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()

    def _fail(self, why: OsteonError) -> None:
        self.failure = why
        self.close()


def file_meta(announced: Announced) -> bytes:
    """Make the head of a DICOM file for a data set that came without one.

    It holds nothing of the sender or the hour: one data set in one transfer syntax is one file, whoever sends it.
    Source: PS3.10 7.1.

    Args:
        announced: what came with the data set.

    Returns:
        Preamble and group 0002.

    Raises:
        Rejected: a UID cannot be written.
    """
    elements = ((0x02, announced.sop_class), (0x03, announced.sop_instance), (0x10, announced.transfer_syntax))
    try:
        body = VERSION + b"".join(_element(number, b"UI", uid, b"\0") for number, uid in elements) + OURS
    except (UnicodeEncodeError, struct.error) as error:
        raise Rejected("The command's UIDs cannot be read") from error
    return PREAMBLE + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(body)) + body


def _element(number: int, vr: bytes, text: str, pad: bytes) -> bytes:
    """An element of group 0002 in Explicit VR Little Endian (PS3.5 7.1.2)."""
    value = text.encode("ascii")
    value += pad * (len(value) % 2)
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


VERSION = struct.pack("<HH2sHL", 2, 1, b"OB", 0, 2) + b"\x00\x01"
OURS = _element(0x12, b"UI", IMPLEMENTATION_CLASS_UID, b"\0") + _element(0x13, b"SH", IMPLEMENTATION_VERSION, b" ")
