"""What a C-STORE is answered: the status, and why in few words. Source: PS3.4 B.2.3, PS3.7 C."""

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from api.schemas import FileReceipt, Outcome
from shared.errors import OsteonError, Rejected

SUCCESS, OUT_OF_RESOURCES, FAILED, NOT_SUPPORTED = 0x0000, 0xA700, 0x0110, 0x0122
MAX_COMMENT_LENGTH = 64  # characters of an error comment, value representation LO


def success() -> Dataset:
    """Bytes and row are durable: the sender may forget the instance."""
    return _answer(SUCCESS)


def of_line(line: FileReceipt) -> Dataset:
    """Answer by the receipt: whatever is stored is a success, also what waits for a decision and what is here already.

    A failure would be sent again for ever.

    Args:
        line: of the instance.

    Returns:
        The status, with a comment if it failed.
    """
    if line.outcome is not Outcome.REJECTED:
        return success()
    return _answer(int(line.failure or "0xC000", 16), line.text or "", line.fact or "")


def of_rejection(why: Rejected) -> Dataset:
    """Answer what never came as far as a receipt."""
    return _answer(why.failure, str(why), why.detail)


def busy(why: OsteonError | str) -> Dataset:
    """Answer that it cannot be taken now: the sender keeps it and sends it again."""
    return _answer(OUT_OF_RESOURCES, f"Send again later: {why}")


def other_class() -> Dataset:
    """Answer a data set that came in the presentation context of another SOP class."""
    return _answer(NOT_SUPPORTED, "The SOP class is not that of the presentation context")


def failed() -> Dataset:
    """Answer an error of our own that was not foreseen; the log has it."""
    return _answer(FAILED, "An unexpected error; the log of osteon dicom has it")


def _answer(status: int, comment: str = "", keyword: str = "") -> Dataset:
    answer = Dataset()
    answer.Status = status
    if comment:
        answer.ErrorComment = shorten(comment)
    if (tag := tag_for_keyword(keyword)) is not None:
        answer.OffendingElement = tag
    return answer


def shorten(text: str) -> str:
    """Cut a text for an error comment: ASCII, at most MAX_COMMENT_LENGTH characters, whole words, no backslash."""
    plain = " ".join(text.encode("ascii", "replace").decode().replace("\\", "/").split())
    if len(plain) <= MAX_COMMENT_LENGTH:
        return plain
    return plain[: MAX_COMMENT_LENGTH - 3].rpartition(" ")[0] + "..."
