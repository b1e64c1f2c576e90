"""Series of studies: written with their instances, and gone with the last of them."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ARRAY, Text, Uuid, any_, bindparam, cast, delete, exists, insert, select
from sqlalchemy.orm import Session

from shared.db.tables import InstanceRow, SeriesRow, StudyRow
from shared.db.tables.base import table_of
from shared.domain.study import Header, ProcedureRequest, Series
from shared.queries.access import Vault

_SERIES = table_of(SeriesRow)
ADD = insert(_SERIES)
OF_STUDIES = select(_SERIES.c.study_id, _SERIES.c.series_instance_uid, _SERIES.c.id).where(
    _SERIES.c.study_id == any_(cast(bindparam("studies", type_=ARRAY(Text)), ARRAY(Uuid)))
)
SEALED = ("description", "protocol", "performed_step_id", "performed_step_description")


def series_ids(
    session: Session, vault: Vault, site_id: UUID, instance_headers: Iterable[tuple[StudyRow, Header]]
) -> dict[tuple[UUID, str], UUID]:
    """Find the series of instances; those that are not there are written, as the first header describes them.

    Args:
        session: the caller's transaction, which has locked the studies.
        vault: encrypts free text.
        site_id: the site.
        instance_headers: each instance's study and header, in order of arrival; headers without a series are left out.

    Returns:
        Ids by study and Series Instance UID.
    """
    headers: dict[tuple[UUID, str], Header] = {}
    filled: set[UUID] = set()
    for study, header in instance_headers:
        if header.series is not None:
            headers.setdefault((study.id, header.series.instance_uid), header)
            if study.images + study.kept:  # a new study has no series
                filled.add(study.id)
    known: dict[tuple[UUID, str], UUID] = {}
    if filled:
        rows = session.execute(OF_STUDIES, {"studies": list(map(str, filled))})
        known = {(row[0], row[1]): row[2] for row in rows}
    new = [
        {"id": uuid4(), "site_id": site_id, "study_id": key[0], **series_columns(vault, header.series, header.modality)}
        for key, header in headers.items()
        if key not in known and header.series is not None
    ]
    if new:
        session.execute(ADD, new)
    return known | {(row["study_id"], row["series_instance_uid"]): row["id"] for row in new}


def series_columns(vault: Vault, series: Series, modality: str) -> dict[str, Any]:
    """Collect the columns of a series.

    Args:
        vault: encrypts free text.
        series: of a header.
        modality: of the same header.

    Returns:
        Values by column.
    """
    texts: dict[str, object] = {name: text for name in SEALED if (text := getattr(series, name))}
    if series.requests:
        texts["requests"] = [[one.scheduled_step_id, one.requested_procedure_id] for one in series.requests]
    return {
        "series_instance_uid": series.instance_uid,
        "modality": modality,
        "series_number": series.number,
        "series_date": series.series_date,
        "series_time": series.series_time,
        "performed_date": series.performed_date,
        "performed_time": series.performed_time,
        "sealed": vault.seal(texts) if texts else None,
    }


def open_series(vault: Vault, row: SeriesRow) -> Series:
    """Read a series with its encrypted texts.

    Args:
        vault: decrypts them.
        row: of the series.

    Returns:
        The series; its texts are empty if another key encrypted them.
    """
    values: Any = vault.open(bytes(row.sealed)) if row.sealed is not None else None
    texts = values or {}
    return Series(
        instance_uid=row.series_instance_uid,
        number=row.series_number,
        series_date=row.series_date,
        series_time=row.series_time,
        performed_date=row.performed_date,
        performed_time=row.performed_time,
        requests=tuple(ProcedureRequest(*one) for one in texts.get("requests", ())),
        **{name: texts.get(name, "") for name in SEALED},
    )


def remove_empty(session: Session, study_ids: Iterable[UUID]) -> None:
    """Remove series of studies that have lost their last instance.

    Args:
        session: the caller's transaction, which has locked the studies.
        study_ids: the studies.
    """
    left = exists().where(InstanceRow.series_id == SeriesRow.id)
    session.execute(delete(SeriesRow).where(SeriesRow.study_id.in_(list(study_ids)), ~left))
