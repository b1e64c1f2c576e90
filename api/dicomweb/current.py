"""Stored instances as they are shown: with the UIDs under which they are found, and the patient of their study.

An administrator may have applied a correction, given a file another Study Instance UID, or taken it for one of the
study's patient. Stored objects are never changed: what differs is written into what is retrieved, and what the object
said before stands there in its Original Attributes Sequence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from pydicom.dataset import Dataset
from sqlalchemy.orm import Session

from api.dependencies import Parts
from api.dicomweb.addresses import DicomPath
from api.dicomweb.objects import open_object, pieces
from shared.db.tables import SeriesRow
from shared.dicom.header import date_text, time_text
from shared.dicom.rewriting import rewrite
from shared.domain.study import IDENTITY_KEYWORDS, Identity
from shared.queries import retrieval
from shared.queries.access import Key
from shared.queries.retrieval import StoredInstance
from shared.queries.series import open_series
from shared.queries.studies import get
from shared.storage import original_key


@dataclass(frozen=True)
class CurrentInstance:
    """An instance, and what it says now."""

    stored: StoredInstance
    values: Mapping[str, str] = field(repr=False)  # by DICOM keyword; none where nobody has decided anything

    def changes(self, dataset: Dataset) -> dict[str, str]:
        """What is to be changed in its data set: what says something else, and not merely in another form."""
        decided = {keyword: str(dataset.get(keyword) or "") for keyword in self.values}
        return {
            keyword: value
            for keyword, value in self.values.items()
            if decided[keyword] and not _is_same_value(decided[keyword], value)
        }

    def content(self, parts: Parts) -> Iterator[bytes]:
        """Its object, a piece at a time. Raises ObjectMissing and StoreUnavailable at once."""
        stored = self.stored
        file = open_object(parts.store, original_key(stored.object_sha256), stored.size_bytes)
        if not self.values or stored.changed_at is None:
            return pieces(file, stored.size_bytes)
        return rewrite(file, self.changes, stored.changed_at, parts.settings.max_header_bytes)


def _is_same_value(one: str, other: str) -> bool:
    """Whether a value of a header is the one that was kept of it: in one line, and at most so long."""
    stored, kept = " ".join(one.split()), " ".join(other.split())
    return stored == kept or (len(kept) >= 6 and stored.startswith(kept))


def find_instances(session: Session, key: Key, place: DicomPath) -> list[StoredInstance]:
    """Find the instances of a place.

    Args:
        session: the caller's transaction.
        key: of the reader.
        place: whose instances.

    Returns:
        As `retrieval.instances`.

    Raises:
        NotFound: the reader's site has none.
    """
    return retrieval.instances(session, key.site_id, place.study, place.series, place.instance, rejected=place.rejected)


def current_instances(parts: Parts, key: Key, place: DicomPath) -> list[CurrentInstance]:
    """Find the instances of a study, of a series, or one, for a reader who is shown their headers; that is audited.

    Args:
        parts: of this application.
        key: of the reader.
        place: whose instances.

    Returns:
        The instances in the order of their numbers; at least one.

    Raises:
        NotFound: the reader's site has none.
    """
    with parts.database.transaction() as session:
        found = find_instances(session, key, place)
        study_id = found[0].study_id
        if all(one.changed_at is None for one in found):
            parts.vault.note_reading(session, key, [study_id])
            return [CurrentInstance(one, {}) for one in found]
        who = parts.vault.identities(session, key, [study_id]).get(study_id, Identity())
        row = get(session, key.site_id, study_id)
        # what the identity in force lacks, an image of its study does not say either
        identity = {keyword: getattr(who, name) for name, keyword in IDENTITY_KEYWORDS.items()} if who.readable else {}
        study = {
            "PatientSex": row.sex,
            "StudyDate": date_text(row.study_date),
            "StudyTime": time_text(row.study_time),
            "TimezoneOffsetFromUTC": row.utc_offset,
            "StudyInstanceUID": place.study,
        }
        series_attributes = {
            one.series.id: _series_attributes(parts, one.series) for one in found if one.series is not None
        }
        return [
            CurrentInstance(one, identity | _without_empty(study | _series_values(one, series_attributes)))
            for one in found
        ]


def _series_values(one: StoredInstance, series_attributes: Mapping[UUID, dict[str, str]]) -> dict[str, str]:
    return (series_attributes[one.series.id] if one.series is not None else {}) | _uids(one)


def _uids(stored: StoredInstance) -> dict[str, str]:
    return {"SeriesInstanceUID": stored.series_instance_uid, "SOPInstanceUID": stored.sop_instance_uid}


def _without_empty(values: dict[str, str]) -> dict[str, str]:
    return {keyword: value for keyword, value in values.items() if value}


def _series_attributes(parts: Parts, row: SeriesRow) -> dict[str, str]:
    """What is known of a series, by DICOM keyword; its requests are left as each object has them."""
    series = open_series(parts.vault, row)
    return {
        "Modality": row.modality,
        "SeriesNumber": "" if series.number is None else str(series.number),
        "SeriesDescription": series.description,
        "SeriesDate": date_text(series.series_date),
        "SeriesTime": time_text(series.series_time),
        "ProtocolName": series.protocol,
        "PerformedProcedureStepStartDate": date_text(series.performed_date),
        "PerformedProcedureStepStartTime": time_text(series.performed_time),
        "PerformedProcedureStepID": series.performed_step_id,
        "PerformedProcedureStepDescription": series.performed_step_description,
    }
