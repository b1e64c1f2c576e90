"""Series of studies: written at intake, filled for older studies, corrected with the header, gone with their images."""

from datetime import date, time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydicom.dataset import Dataset
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from infra import prepare
from shared.db.tables import HeldFileRow, InstanceRow, SeriesRow, StudyRow
from shared.db.tables.studies import FILLED_VERSION
from shared.domain.study import ProcedureRequest
from shared.queries import series
from shared.storage import original_key, sha256_of
from tests.integration.test_held_files import choose, identity, image, sent, waiting


def told(number: str = "1", **values: Any) -> dict[str, Any]:
    """What a header says of its series."""
    request = Dataset()
    request.ScheduledProcedureStepID, request.RequestedProcedureID = "SPS-1", "RP-1"
    return {
        "SeriesInstanceUID": f"1.2.3.{number}", "SeriesNumber": number, "SeriesDescription": f"ZEBRA {number}",
        "ProtocolName": "HAND", "SeriesDate": "20260102", "SeriesTime": "101500",
        "PerformedProcedureStepStartDate": "20260103", "PerformedProcedureStepStartTime": "1016",
        "PerformedProcedureStepID": "PPS-1", "RequestAttributesSequence": [request], "StudyID": "S-1",
        "ReferringPhysicianName": "DOE^JIM", "TimezoneOffsetFromUTC": "+0100", "InstanceNumber": number, **values,
    }  # fmt: skip


def listed(api: Any) -> list[tuple[str, int | None, list[int | None]]]:
    """UID and number of each series, and the numbers of its instances."""
    with api.database.transaction() as session:
        rows = session.execute(
            select(SeriesRow.series_instance_uid, SeriesRow.series_number, InstanceRow.instance_number)
            .outerjoin(InstanceRow, InstanceRow.series_id == SeriesRow.id)
            .order_by(SeriesRow.series_instance_uid, InstanceRow.instance_number)
        ).all()
    found: dict[tuple[str, int | None], list[int | None]] = {}
    for uid, number, instance in rows:
        found.setdefault((uid, number), []).append(instance)
    return [(*key, instances) for key, instances in found.items()]


def vault(api: Any) -> Any:
    return api.http.app.state.parts.vault


def test_series_are_written_with_their_instances(in_process: Any) -> None:
    """Two series of one study in a request, then more of both and another: each has one row and all its instances."""
    api = in_process
    sent(api, image(1, 1, **told("1")), image(1, 2, **told("2")), image(2, 9, **told("1", InstanceNumber="9")))
    sent(api, image(1, 3, **told("2", InstanceNumber="3")), image(1, 4, **told("3")))
    sent(api, image(1, 3, **told("2", InstanceNumber="3")))
    assert listed(api) == [("1.2.3.1", 1, [1, 9]), ("1.2.3.2", 2, [2, 3]), ("1.2.3.3", 3, [3])]
    with api.database.transaction() as session:
        assert len(session.scalars(select(SeriesRow)).all()) == 4  # 1.2.3.1 is in two studies
        row = session.scalars(select(SeriesRow).where(SeriesRow.series_instance_uid == "1.2.3.2")).one()
        assert row.sealed is not None and b"ZEBRA" not in row.sealed
        seen = series.open_series(vault(api), row)
        study = session.get_one(StudyRow, row.study_id)
        assert {one.bits_allocated for one in session.scalars(select(InstanceRow))} == {8}
        assert (study.utc_offset, study.filled_version) == ("+0100", FILLED_VERSION)
        assert row.modality == "CR"
    assert (seen.description, seen.protocol, seen.performed_step_id) == ("ZEBRA 2", "HAND", "PPS-1")
    assert (seen.series_date, seen.performed_time) == (date(2026, 1, 2), time(10, 16))
    assert seen.requests == (ProcedureRequest("SPS-1", "RP-1"),)
    who = identity(api, str(study.id))
    assert (who.dicom_study_id, who.referring_physician) == ("S-1", "DOE^JIM")


def test_a_series_goes_with_its_last_image(in_process: Any) -> None:
    """Deleting an image leaves no series behind without one, deleting a study none at all."""
    api = in_process
    lines = sent(api, image(1, 1, **told("1")), image(1, 2, **told("2")), image(1, 3, **told("2")))
    study = lines[0]["study_id"]

    def delete(number: int) -> None:
        path = f"/api/v1/studies/{study}/images/{lines[number]['sop_instance_uid']}"
        response = api.http.delete(path, params={"reason": "test"}, headers=api.headers())
        assert response.status_code == 200, response.text

    delete(0)
    assert [uid for uid, *_ in listed(api)] == ["1.2.3.2"]
    delete(1)
    assert listed(api) == [("1.2.3.2", 2, [2])]
    delete(2)
    assert listed(api) == []


def test_older_studies_get_their_series(in_process: Any) -> None:
    """From the object whose header is in force; a lost original is left out; what was filled is not read again."""
    api = in_process
    corrected = image(1, 1, **told("5", PatientName="DOE^JANET", InstanceNumber="8"))
    (first, *_) = sent(api, image(1, 1, **told("1")), image(1, 2, **told("2")), image(1, 3, **told("2")))
    sent(api, corrected)
    assert choose(api, waiting(api)[0]["id"], "apply").status_code == 200
    after = listed(api)
    with api.database.transaction() as session:
        session.execute(update(InstanceRow).values(series_id=None, instance_number=None, bits_allocated=0))
        series.remove_empty(session, [UUID(first["study_id"])])
        session.execute(update(StudyRow).values(filled_version=0, utc_offset=""))
    assert listed(api) == []
    folder = Path(api.settings.store_url.get_secret_value().removeprefix("file:"))
    (folder / original_key(sha256_of(image(1, 3, **told("2"))))).unlink()
    for _ in range(2):
        prepare.fill_examinations(api.settings, api.database)
        assert listed(api) == [("1.2.3.2", 2, [2]), ("1.2.3.5", 5, [8])]
    assert after == [("1.2.3.2", 2, [2, 2]), ("1.2.3.5", 5, [8])]
    with api.database.transaction() as session:
        study = session.scalars(select(StudyRow)).one()
        assert (study.filled_version, study.header_version, study.utc_offset) == (FILLED_VERSION, 2, "+0100")
    assert identity(api, first["study_id"]).patient_name == "DOE^JANET"


def test_a_correction_changes_the_series(in_process: Any) -> None:
    """What the corrected header says of the series is in force for all its images; the image may move to another."""
    api = in_process
    sent(api, image(1, 1, **told("1")), image(1, 2, **told("1")))
    sent(api, image(1, 1, **told("1", SeriesNumber="4", SeriesDescription="QUAGGA", PatientName="DOE^JANET")))
    assert choose(api, waiting(api)[0]["id"], "apply").status_code == 200
    assert listed(api) == [("1.2.3.1", 4, [1, 1])]
    with api.database.transaction() as session:
        row = session.scalars(select(SeriesRow)).one()
        assert series.open_series(vault(api), row).description == "QUAGGA"
        held = session.scalars(select(HeldFileRow)).one()
        assert held.before is not None
        assert vault(api).open(held.before)["series"]["description"] == "ZEBRA 1"
    sent(api, image(1, 2, **told("6", PatientName="DOE^JANET")))
    assert choose(api, waiting(api)[0]["id"], "apply").status_code == 200
    assert listed(api) == [("1.2.3.1", 4, [1]), ("1.2.3.6", 6, [6])]


def test_a_file_held_by_an_older_version_gets_its_series_later(in_process: Any) -> None:
    """Its kept header says nothing of a series: its study is filled from the stored object."""
    api = in_process
    sent(api, image(1, 1, **told("1")))
    sent(api, image(1, 2, **told("2", PatientName="ROE^RICHARD", PatientID="8")))
    with api.database.transaction() as session:
        row = session.scalars(select(HeldFileRow)).one()
        header = vault(api).open(row.header)
        for name in ("series", "instance_number", "bits_allocated"):
            del header[name]
        del header["examination"]["utc_offset"], header["identity"]["dicom_study_id"]
        row.header = vault(api).seal(header)
    assert choose(api, waiting(api)[0]["id"], "same-patient").status_code == 200
    assert listed(api) == [("1.2.3.1", 1, [1])]
    prepare.fill_examinations(api.settings, api.database)
    assert listed(api) == [("1.2.3.1", 1, [1]), ("1.2.3.2", 2, [2])]


@pytest.mark.parametrize(("column", "good"), [("kept", "own-result"), ("rejected_by_ko", "113001")])
def test_postgres_refuses_other_codes(in_process: Any, column: str, good: str) -> None:
    """Why an instance is kept, and what rejects it, are codes."""
    api = in_process
    sent(api, image())
    with api.database.transaction() as session:
        session.execute(update(InstanceRow).values({column: good}))
    with pytest.raises(IntegrityError, match=f"ck_instances_{column}"), api.database.transaction() as session:
        session.execute(update(InstanceRow).values({column: "gremlins"}))
