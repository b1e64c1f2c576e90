"""Everything Osteon raises on purpose. A class's docstring is its default message."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a file is rejected, an image is set aside, or an attempt at a study failed.

    The code is what is stored and compared, with a fact beside it where the code cannot hold it: see `Cause`.
    api/reasons.py makes sentences of both.
    """

    # a file is not taken in, or an image cannot be analysed: `Rejected`
    CANNOT_UNDERSTAND = "cannot-understand"  # the header is damaged or cut short
    EMPTY_FILE = "empty-file"
    NOT_DICOM = "not-dicom"
    NO_FILE_META = "no-file-meta"
    UNKNOWN_TRANSFER_SYNTAX = "unknown-transfer-syntax"
    SOP_CLASS_NOT_SUPPORTED = "sop-class-not-supported"
    NO_PIXEL_DATA = "no-pixel-data"
    BAD_ATTRIBUTES = "bad-attributes"  # detail: DICOM keyword, or a number
    TRUNCATED_PIXELS = "truncated-pixels"  # detail: bytes that are there, and that are needed
    TOO_LARGE = "too-large"
    BAD_ARCHIVE = "bad-archive"
    UNSUPPORTED_PIXELS = "unsupported-pixels"  # detail: DICOM keyword and value
    UNDECODABLE_PIXELS = "undecodable-pixels"  # detail: class of the codec's exception, or a number
    # an image broke its decoder at each attempt: `DECODING`
    DECODING_FAILED = "decoding-failed"  # detail: class of the exception
    DECODING_TIMED_OUT = "decoding-timed-out"  # detail: seconds
    DECODER_DIED = "decoder-died"  # detail: signal, or exit code
    DECODER_OUT_OF_MEMORY = "decoder-out-of-memory"  # detail: the limit
    # a part of the system failed
    STORE_UNAVAILABLE = "store-unavailable"  # detail: errno, S3 code, or class of the exception
    OBJECT_MISSING = "object-missing"  # detail: its key in the store
    OBJECT_DAMAGED = "object-damaged"  # its bytes are not those that were stored
    DATABASE_UNAVAILABLE = "database-unavailable"  # detail: class of the exception
    DATABASE_LOCKED = "database-locked"  # detail: the table
    DATABASE_FULL = "database-full"
    PART_UNAVAILABLE = "part-unavailable"  # another part that does not answer
    BAD_BUNDLE = "bad-bundle"
    ANALYSIS_FAILED = "analysis-failed"  # detail: class of the exception
    WORKER_DIED = "worker-died"  # detail: how many attempts ended without a result
    NO_IMAGE = "no-image"  # the study has none
    OTHER = "other"  # detail: the words of an earlier version, for which there is no code


# an image that ended its decoder may be read another time: it is tried again when its study is released
DECODING = frozenset({
    Reason.DECODING_FAILED, Reason.DECODING_TIMED_OUT, Reason.DECODER_DIED, Reason.DECODER_OUT_OF_MEMORY
})  # fmt: skip


def reason_of(code: str) -> Reason | None:
    """The reason that is stored as this code, None for "". Raises ValueError for an unknown code."""
    return Reason(code) if code else None


@dataclass(frozen=True)
class Cause:
    """A code, and a fact that it cannot hold: a count, a class's name, a DICOM keyword. Never patient data."""

    reason: StrEnum
    detail: str = ""


class OsteonError(Exception):
    """An error that Osteon expects."""

    reason = Reason.ANALYSIS_FAILED  # what is stored where this ends an attempt at a study

    hint = ""  # what to do about it: a sentence that follows each message of this class

    def __init__(self, message: str = "", detail: str = "", hint: str = "") -> None:
        """message: in full, for logs and responses; without a full stop where a hint follows.

        detail: the fact in it that is stored, see `Cause`; hint: in place of the class's.
        """
        super().__init__(message or " ".join((type(self).__doc__ or "").split()))
        self.detail = detail
        self.hint = hint or self.hint

    def __str__(self) -> str:
        text = super().__str__()  # the hint is not in args, of which another process makes a copy
        return f"{text.rstrip('.')}. {self.hint}" if self.hint else text

    @property
    def cause(self) -> Cause:
        """What is stored of it."""
        return cause_of(self)


def cause_of(error: Exception) -> Cause:
    """What is stored of an exception that ended an attempt; of an unexpected one its class, not its message."""
    reason = error.reason if isinstance(error, OsteonError) else Reason.ANALYSIS_FAILED
    detail = error.detail if isinstance(error, OsteonError) else ""
    return Cause(reason, detail or (type(error).__name__ if reason is Reason.ANALYSIS_FAILED else ""))


# -- files that are not taken in, or images that cannot be analysed --------------------------------------------


class Rejected(OsteonError):
    """The file was not accepted. Messages name tags and numbers, never values that could identify a patient."""

    reason = Reason.CANNOT_UNDERSTAND
    # DICOM Failure Reason (0008,1197); PS3.4 B.2.3, PS3.7 C, PS3.18 I.2.2. Those from C001 to C0FF are our own
    failure = 0xC000
    hint = "Export the image again."


class EmptyFile(Rejected):
    """The file has no bytes."""

    reason = Reason.EMPTY_FILE
    hint = "Send it again; the sender's disk or transfer may have failed."
    failure = 0xC001


class NotDicom(Rejected):
    """This is not a DICOM file: it has no DICM mark and no file meta information."""

    reason = Reason.NOT_DICOM
    hint = "Send the DICOM file of the image."
    failure = 0xC002


class NoFileMeta(Rejected):
    """The file meta information (group 0002) is missing, so the transfer syntax is unknown."""

    reason = Reason.NO_FILE_META
    failure = 0xC003


class CannotUnderstand(Rejected):
    """The DICOM header cannot be read: it is damaged or cut short."""


class UnknownTransferSyntax(Rejected):
    """The transfer syntax is not one that Osteon can decode."""

    reason = Reason.UNKNOWN_TRANSFER_SYNTAX
    hint = "Send the image uncompressed or as JPEG-LS or JPEG 2000."
    failure = 0xC122


class SopClassNotSupported(Rejected):
    """The SOP Class (0008,0016) is none that is stored here."""

    reason = Reason.SOP_CLASS_NOT_SUPPORTED
    hint = "Send objects of the SOP classes that the conformance statement lists."
    failure = 0x0122


class KindRefused(SopClassNotSupported):
    """This installation refuses objects of this kind."""

    hint = "Have the sender leave such objects out, or change what your site refuses (osteon refused-kinds)."


class NoPixelData(Rejected):
    """The object says that it is an image but has no Pixel Data (7FE0,0010)."""

    reason = Reason.NO_PIXEL_DATA
    failure = 0xA900


class BadAttributes(Rejected):
    """A required attribute is missing or does not fit the SOP Class."""

    reason = Reason.BAD_ATTRIBUTES
    hint = "Correct the header where it was written, then send the image again."
    failure = 0xA900


class TruncatedPixels(Rejected):
    """The Pixel Data is shorter than Rows, Columns and Bits Allocated say: the file was cut short."""

    reason = Reason.TRUNCATED_PIXELS
    hint = "Send it again."
    failure = 0xC005


class TooLarge(Rejected):
    """The file, or the image that it claims to hold, is over the limits of this installation."""

    reason = Reason.TOO_LARGE
    hint = "An administrator can raise the limits."
    failure = 0xA700


class BadArchive(Rejected):
    """The zip archive is damaged, encrypted, nested, or expands beyond the limits."""

    reason = Reason.BAD_ARCHIVE
    hint = "Send its files themselves, or pack them again."
    failure = 0xC004


class UnsupportedPixels(Rejected):
    """The pixels are of a kind that no bone model reads (colour, palette, floating point)."""

    reason = Reason.UNSUPPORTED_PIXELS
    hint = "Send the image in gray levels, as whole numbers of at most 32 bits."
    failure = 0xA900


class UndecodablePixels(Rejected):
    """The compressed pixel data is damaged and cannot be decoded."""

    reason = Reason.UNDECODABLE_PIXELS
    failure = 0xC006


# -- requests ---------------------------------------------------------------------------------------------------


class NotFound(OsteonError):
    """There is no such thing here, or it belongs to another site. Check the id, and the site of your key."""


class BadRequest(OsteonError):
    """The request cannot be understood. Compare it with the API's description at /docs."""


# -- parts of the system ------------------------------------------------------------------------------------------


class InvalidState(OsteonError):
    """This cannot be done in the present state; look that up first.

    code: a stable word for programs, with `more` that they need to go on.
    """

    def __init__(self, text: str, code: str = "", **more: object) -> None:
        super().__init__(text)
        self.code, self.more = code, more


class Unavailable(OsteonError):
    """A part that Osteon needs does not answer; try again in a moment."""

    reason = Reason.PART_UNAVAILABLE


class DatabaseUnavailable(Unavailable):
    """Postgres does not answer. Check OSTEON_DATABASE_URL, and that the server runs."""

    reason = Reason.DATABASE_UNAVAILABLE


class StoreUnavailable(Unavailable):
    """The object store does not answer. Check OSTEON_STORE_URL, and that the store runs and has room."""

    reason = Reason.STORE_UNAVAILABLE


class Locked(Unavailable):
    """Another transaction in Postgres holds what this one needs; try again in a moment."""

    reason = Reason.DATABASE_LOCKED

    HINT = (
        "If this lasts, a session of the database in OSTEON_DATABASE_URL has left a transaction open: pg_stat_activity "
        "shows it as idle in transaction, pg_terminate_backend(pid) ends it."
    )


class DatabaseFull(Unavailable):
    """Postgres has no room on its disk. Free some on the server of OSTEON_DATABASE_URL."""

    reason = Reason.DATABASE_FULL


class WrongIdentityKey(Unavailable):
    """OSTEON_IDENTITY_KEY is not the key of the identities in this database."""

    def __init__(self) -> None:
        super().__init__(
            "OSTEON_IDENTITY_KEY is not the key that this database's identities are encrypted with, so no file is "
            "accepted. Set the old key again: it is in secrets.json of OSTEON_HOME (osteon up), in .env (Compose), or "
            "in their backup. If it is lost for good, run `python -m infra.prepare --accept-identity-key` to go on "
            "with the new one; what was encrypted before is then shown as unreadable."
        )


class ObjectMissing(OsteonError):
    """An object that a row names is not in the store. Send the file again."""

    reason = Reason.OBJECT_MISSING


class ObjectDamaged(ObjectMissing):
    """The stored bytes of an image are damaged; send the file again."""

    reason = Reason.OBJECT_DAMAGED


class BadBundle(OsteonError):
    """This is no intact Osteon model bundle."""

    reason = Reason.BAD_BUNDLE
    hint = "Fetch it again, or export it again with `osteon export`."


class BadDataset(OsteonError):
    """The data set cannot be read; the message names file and row."""


class StackError(OsteonError):
    """The local stack could not be started or stopped; its logs say why."""


class QuotaExceeded(OsteonError):
    """More was sent within an hour than a key or site may send; retry_after_s: when it may be sent again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
