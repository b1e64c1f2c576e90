"""Everything Osteon raises on purpose. A docstring is the default message and already says the cure."""


class OsteonError(Exception):
    """Something that Osteon knows about went wrong."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or type(self).__doc__ or "")


# -- files that are not taken in, or images that cannot be analysed --------------------------------------------


class Rejected(OsteonError):
    """The file was not accepted. Messages name tags and numbers, never values that could identify a patient."""

    reason = "cannot-understand"  # stable word for scripts
    failure = 0xC000  # DICOM Failure Reason (0008,1197); PS3.4 B.2.3 and CC.2.3, PS3.7 C


class EmptyFile(Rejected):
    """The file has no bytes. Send it again; the sender's disk or transfer may have failed."""

    reason = "empty-file"


class NotDicom(Rejected):
    """This is not a DICOM file: no DICM mark and no DICOM file meta information at its start."""

    reason = "not-dicom"


class NoFileMeta(Rejected):
    """The file meta information (group 0002) is missing, so the transfer syntax is unknown. Export it anew."""

    reason = "no-file-meta"


class CannotUnderstand(Rejected):
    """The DICOM header cannot be read: it is damaged or cut short. Export the image again."""


class UnknownTransferSyntax(Rejected):
    """The transfer syntax is not one that Osteon can decode. Send the image uncompressed or as JPEG-LS or JPEG 2000."""

    reason = "unknown-transfer-syntax"


class NotAnImage(Rejected):
    """The SOP Class is not an image (a report, plan or other object); only images are analysed."""

    reason = "sop-class-not-supported"
    failure = 0x0122


class NoPixelData(Rejected):
    """The object says that it is an image but has no Pixel Data (7FE0,0010)."""

    reason = "no-pixel-data"
    failure = 0xA900


class BadAttributes(Rejected):
    """A required attribute is missing or does not fit the SOP Class."""

    reason = "bad-attributes"
    failure = 0xA900


class TruncatedPixels(Rejected):
    """The Pixel Data is shorter than Rows, Columns and Bits Allocated say: the file was cut short."""

    reason = "truncated-pixels"


class TooLarge(Rejected):
    """The file, or the image that it claims to hold, is over the limits of this installation."""

    reason = "too-large"
    failure = 0xA700


class BadArchive(Rejected):
    """The zip archive is damaged, encrypted, nested, or expands beyond the limits; send its files themselves."""

    reason = "bad-archive"


class UnsupportedPixels(Rejected):
    """The pixels are of a kind that no bone model reads (colour, palette, floating point)."""

    reason = "unsupported-pixels"
    failure = 0xA900


class UndecodablePixels(Rejected):
    """The compressed pixel data is damaged and cannot be decoded. Export the image again."""

    reason = "undecodable-pixels"


# -- requests ---------------------------------------------------------------------------------------------------


class NotFound(OsteonError):
    """There is no such thing here, or it belongs to another site."""


class BadRequest(OsteonError):
    """The request cannot be understood."""


# -- parts of the system ------------------------------------------------------------------------------------------


class NotNow(OsteonError):
    """As things stand this cannot be done; look at the present state first.

    code: a stable word for programs, with `more` that they need to go on.
    """

    def __init__(self, text: str, code: str = "", **more: object) -> None:
        super().__init__(text)
        self.code, self.more = code, more


class Unavailable(OsteonError):
    """A part that Osteon needs does not answer; the same call may work in a moment."""


class StoreUnavailable(Unavailable):
    """The object store does not answer. Check OSTEON_STORE_URL, and that the store runs and has room."""


class DatabaseFull(Unavailable):
    """Postgres has no room on its disk. Make some on the server of OSTEON_DATABASE_URL."""


class ObjectMissing(OsteonError):
    """An object that a row names is not in the store."""


class BadBundle(OsteonError):
    """This is no intact Osteon model bundle; fetch it again, or export it anew with `osteon export`."""


class BadDataset(OsteonError):
    """The data set cannot be read: the message names file and row."""


class StackError(OsteonError):
    """The local stack could not be started or stopped."""
