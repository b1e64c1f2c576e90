"""The response to a store request: what became of each instance, in the form of PS3.18 I."""

from collections.abc import Sequence
from dataclasses import dataclass

from api.dicomweb.datasets import DataSet, Value, data_set
from api.schemas import FileReceipt, Outcome
from shared.dicom.identifiers import Identifiers
from shared.errors import SopClassNotSupported

ALL, SOME, NONE = 200, 202, 409  # stored; PS3.18 table 10.5.3-1
MAX_COMMENT_LENGTH = 64  # characters of Error Comment (PS3.5 6.2, LO)


@dataclass(frozen=True)
class Part:
    """A part of a request, and what became of it."""

    uids: Identifiers
    line: FileReceipt

    @property
    def stored(self) -> bool:
        """Whether its bytes are kept: also as a duplicate, as a correction, or for an administrator to decide."""
        return self.line.outcome not in (Outcome.REJECTED, Outcome.SKIPPED)

    @property
    def path(self) -> tuple[str, str, str] | None:
        """UIDs of study, series and instance under which it is found; None where it is not what stands under its."""
        uids = self.uids
        if self.line.outcome not in (Outcome.STORED, Outcome.KEPT, Outcome.DUPLICATE) or (
            self.line.outcome is Outcome.DUPLICATE and self.line.reason
        ):
            return None
        whole = uids.study_instance_uid, uids.series_instance_uid, uids.sop_instance_uid
        return whole if all(whole) else None


def status_of(parts: Sequence[Part]) -> int:
    """Find the status of a response.

    Args:
        parts: of the request, at least one.

    Returns:
        ALL, SOME or NONE.
    """
    stored = sum(part.stored for part in parts)
    return ALL if stored == len(parts) else SOME if stored else NONE


def store_instances_response(parts: Sequence[Part], base: str) -> DataSet:
    """Say what became of each part. A sequence that would be empty is left out.

    Who could not be told by its UIDs stands in Other Failures Sequence, so that no part is passed over in silence.
    Source: PS3.18 table I.1-1 and I.2.2.

    Args:
        parts: of the request.
        base: address of the service, up to /dicom-web.

    Returns:
        The Store Instances Response Module.
    """
    referenced, failed, others = [], [], []
    studies = set()
    for part in parts:
        about: dict[str, Value] = {
            "ReferencedSOPClassUID": part.uids.sop_class_uid,
            "ReferencedSOPInstanceUID": part.uids.sop_instance_uid,
        }
        if part.stored:
            studies.add(part.path and part.path[0])
            url = "{}/studies/{}/series/{}/instances/{}".format(base, *part.path) if part.path else ""
            referenced.append(data_set(**about, RetrieveURL=url))
            continue
        why: dict[str, Value] = {
            "FailureReason": _failure_reason(part.line),
            "ErrorComment": failure_comment(part.line),
        }
        if all(about.values()):
            failed.append(data_set(**about, **why))
        else:
            others.append(data_set(**why))
    study = next(iter(studies)) if len(studies) == 1 else None
    sequences = {"FailedSOPSequence": failed, "ReferencedSOPSequence": referenced, "OtherFailuresSequence": others}
    return data_set(
        RetrieveURL=f"{base}/studies/{study}" if study else "",
        **{keyword: items for keyword, items in sequences.items() if items},
    )


def _failure_reason(line: FileReceipt) -> int:
    return int(line.failure, 16) if line.failure else SopClassNotSupported.failure  # a DICOMDIR is no instance to store


def failure_comment(line: FileReceipt) -> str:
    """Say in an LO which part failed, and why.

    Args:
        line: of the part.

    Returns:
        At most MAX_COMMENT_LENGTH characters, none of them a backslash.
    """
    words = f"{line.file}: {line.text}".replace("\\", "/")
    if len(words) <= MAX_COMMENT_LENGTH:
        return words
    return f"{words[: MAX_COMMENT_LENGTH - 1].rsplit(' ', 1)[0]}…"
