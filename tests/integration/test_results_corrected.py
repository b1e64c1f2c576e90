"""Results after an administrator has decided who a study's patient is: those that are made then, and those that were sent."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pydicom
import pytest
from sqlalchemy import select, update

from shared.db.clock import db_now
from shared.db.tables import BundleRow, DeliveryRow, NoticeRow, ResultObjectRow, ResultSetRow, StudyRow
from shared.domain.completeness import Completeness
from shared.domain.destinations import Destination, DestinationKind, Rule, When
from shared.domain.findings import Assessment, Extent, Finding, Heatmap, InstanceResult
from shared.domain.notices import Event
from shared.domain.results import ResultInput, ResultObject
from shared.queries import studies
from shared.storage import original_key
from tests.hospital import Hospital
from tests.integration.test_deliveries import MANIFEST
from tests.integration.test_held_files import choose, image, sent, waiting
from tests.results import ABLE, DEFAULT, Outbox, rows, small_objects
from worker.results.main import Builder
from worker.results.making import Maker

JANET = {
    "SpecificCharacterSet": "ISO_IR 192", "PatientName": "DÖE^JANET", "PatientID": "4712", "IssuerOfPatientID": "SOUTH",
    "AccessionNumber": "ACC-9",
}  # fmt: skip
ROE = {"PatientName": "ROE^RICHARD", "PatientID": "0815", "PatientBirthDate": "20010101"}
PACS, OTHER = (Destination(DestinationKind.FOLDER, folder=name) for name in ("pacs", "other"))


@pytest.fixture
def outbox(make_api: Callable[..., Any], hospital: Hospital, tmp_path: Path, forked_decoders: None) -> Iterator[Outbox]:
    """The outbox of an API's site, with the real builders; its folders are there."""
    for name in ("pacs", "other"):
        (tmp_path / "out" / name).mkdir(parents=True)
    api = make_api(delivery_folder=tmp_path / "out")
    with hospital.database.transaction() as session:
        session.execute(update(BundleRow).values(manifest=MANIFEST))
    made = Outbox(hospital.database, api.settings, hospital.site_id, api.key())
    builder = Builder(api.settings)
    made.maker = Maker(api.settings, hospital.database, made.store, builder, ABLE)
    made.api = api  # type: ignore[attr-defined]
    yield made
    builder.close()


def analysed(outbox: Outbox, hospital: Hospital, *contents: bytes) -> UUID:
    """A study that came as these files, and has a finding for each image."""
    lines = sent(outbox.api, *contents)  # type: ignore[attr-defined]
    study = UUID(lines[0]["study_id"])
    finish(hospital, study)
    return study


def finish(hospital: Hospital, study: UUID) -> None:
    hospital.set(study, completeness=Completeness.COMPLETE)
    with hospital.database.transaction() as session:
        soon = db_now(session) + timedelta(minutes=1)  # a late image waits a moment for more
    claim = hospital.claim(study, soon)
    found = Finding(1, "a", "hand", 0.9, 0.01, Assessment.NEGATIVE, Extent.NONE, Heatmap(b"1234", 2, 2))
    assert hospital.finish(claim, [InstanceResult(one.id, [found]) for one in claim.instances], now=soon)


def decide(outbox: Outbox, decision: str) -> None:
    (held,) = waiting(outbox.api)  # type: ignore[attr-defined]
    assert choose(outbox.api, held["id"], decision).status_code == 200  # type: ignore[attr-defined]


def out(outbox: Outbox, name: str = "pacs") -> dict[str, pydicom.Dataset]:
    """What a folder holds, by SOP Instance UID."""
    assert outbox.settings.delivery_folder is not None
    found = [pydicom.dcmread(path) for path in (outbox.settings.delivery_folder / name).rglob("*.dcm")]
    return {str(one.SOPInstanceUID): one for one in found}


def who(one: pydicom.Dataset) -> tuple[str, str, str, str]:
    return str(one.PatientName), one.PatientID, one.get("IssuerOfPatientID", ""), one.get("AccessionNumber", "")


def go(outbox: Outbox) -> None:
    outbox.make()
    outbox.send()


def test_what_was_sent_is_replaced_under_the_corrected_name(outbox: Outbox, hospital: Hospital) -> None:
    """The header of one image was corrected: every object of the study is made anew and says so, the other image's too.

    It goes where the earlier ones went, in the same kinds, and documents name the documents that they replace.
    """
    outbox.add(PACS, Rule(When.ANALYSED, DEFAULT))
    outbox.add(OTHER, Rule(When.AGREED, DEFAULT), name="OTHER")
    study = analysed(outbox, hospital, image(1, 1), image(1, 2))
    go(outbox)
    before = out(outbox)
    assert {who(one)[:2] for one in before.values()} == {("DOE^JANE", "4711")}
    sent(outbox.api, image(1, 2, **JANET))  # type: ignore[attr-defined]
    decide(outbox, "apply")
    go(outbox)
    after = {uid: one for uid, one in out(outbox).items() if uid not in before}
    assert {who(one) for one in after.values()} == {("DÖE^JANET", "4712", "SOUTH", "ACC-9")}
    assert sorted(one.SeriesDescription for one in after.values()) == sorted(
        one.SeriesDescription for one in before.values()
    )
    (document,) = [one for one in after.values() if one.Modality == "SR"]
    (former,) = [uid for uid, one in before.items() if one.Modality == "SR"]
    (predecessor,) = document.PredecessorDocumentsSequence
    (series,) = predecessor.ReferencedSeriesSequence
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == former
    assert out(outbox, "other") == {}
    assert [(one.study_id, one.state) for one in rows(outbox.database, DeliveryRow)] == [(study, "sent")] * 2
    go(outbox)
    assert len(out(outbox)) == len(before) + len(after)


def test_what_waits_is_not_sent_under_the_former_name(outbox: Outbox, hospital: Hospital) -> None:
    """Its delivery is taken back at the decision; a failed one that somebody might send again is, too."""
    outbox.add(PACS, Rule(When.ANALYSED, DEFAULT))
    study = analysed(outbox, hospital, image(1, 1))
    outbox.make()
    (waits,) = rows(outbox.database, DeliveryRow)
    sent(outbox.api, image(1, 1, **JANET))  # type: ignore[attr-defined]
    decide(outbox, "apply")
    outbox.send()
    assert out(outbox) == {}
    go(outbox)
    assert {who(one)[0] for one in out(outbox).values()} == {"DÖE^JANET"}
    states = {one.id: one.state for one in rows(outbox.database, DeliveryRow) if one.study_id == study}
    assert states.pop(waits.id) == "superseded"
    assert list(states.values()) == ["sent"]


def test_a_correction_while_a_set_is_made_has_it_made_anew(outbox: Outbox, hospital: Hospital) -> None:
    """What was made of the former header is never sent; it is not even written down."""
    outbox.add(PACS, Rule(When.ANALYSED, DEFAULT))
    analysed(outbox, hospital, image(1, 1))
    sent(outbox.api, image(1, 1, **JANET))  # type: ignore[attr-defined]
    told: list[str | None] = []

    def build(stated: ResultInput, *more: Any) -> Sequence[ResultObject]:
        if not told:
            decide(outbox, "apply")
        told.append(stated.patient)
        return small_objects(stated, *more)

    outbox.maker = Maker(outbox.settings, outbox.database, outbox.store, build, ABLE)
    outbox.make()
    assert [one is None for one in told] == [True, False]
    (made,) = rows(outbox.database, ResultSetRow)
    assert (made.state, made.attempts) == ("made", 2)
    assert len(rows(outbox.database, ResultObjectRow)) == 4


def test_late_images_of_the_former_name_do_not_bring_it_back(outbox: Outbox, hospital: Hospital) -> None:
    """The modality sends on under the header that it has; results name the patient as decided."""
    outbox.add(PACS, Rule(When.ANALYSED, DEFAULT))
    study = analysed(outbox, hospital, image(1, 1))
    sent(outbox.api, image(1, 1, **JANET))  # type: ignore[attr-defined]
    decide(outbox, "apply")
    sent(outbox.api, image(1, 2))  # type: ignore[attr-defined]
    finish(hospital, study)
    go(outbox)
    found = out(outbox)
    assert {who(one)[:2] for one in found.values()} == {("DÖE^JANET", "4712")}
    assert len([one for one in found.values() if "outlines on images" in one.SeriesDescription]) == 2


def test_images_that_were_taken_for_the_same_patients_have_the_studys_name(outbox: Outbox, hospital: Hospital) -> None:
    """And a study of its own has its own."""
    outbox.add(PACS, Rule(When.ANALYSED, DEFAULT))
    study = analysed(outbox, hospital, image(1, 1))
    sent(outbox.api, image(1, 2, **ROE))  # type: ignore[attr-defined]
    decide(outbox, "same-patient")
    finish(hospital, study)
    go(outbox)
    assert {who(one)[:2] for one in out(outbox).values()} == {("DOE^JANE", "4711")}
    before = set(out(outbox))
    analysed(outbox, hospital, image(2, 1))
    sent(outbox.api, image(2, 2, **ROE))  # type: ignore[attr-defined]
    decide(outbox, "another-study")
    with outbox.database.transaction() as session:
        new = session.scalars(select(StudyRow.id).where(StudyRow.status == "queued")).one()
    finish(hospital, new)
    go(outbox)
    after = [one for uid, one in out(outbox).items() if uid not in before]
    assert {(who(one)[0], one.StudyInstanceUID) for one in after} == {
        ("DOE^JANE", pydicom.dcmread(io.BytesIO(image(2, 1))).StudyInstanceUID),
        ("ROE^RICHARD", uid_of(outbox, new)),
    }


def uid_of(outbox: Outbox, study: UUID) -> str:
    with outbox.database.transaction() as session:
        return str(session.get_one(StudyRow, study).study_instance_uid)


def test_receivers_of_hl7_are_told_again(outbox: Outbox, hospital: Hospital) -> None:
    """A message of what was told last waits; its patient is read from the corrected header. Others are told nothing."""
    hl7 = Destination(DestinationKind.HL7, "127.0.0.1", 9)
    events = (Event.ANALYSED, Event.REVISED)
    outbox.add(hl7, Rule(When.ANALYSED, events=events), name="RIS")
    outbox.add(replace(hl7, port=10), Rule(When.AGREED, events=events), name="LATER")
    study = analysed(outbox, hospital, image(1, 1), image(1, 2))
    outbox.send()  # which finds nobody there
    with outbox.database.transaction() as session:
        session.execute(update(DeliveryRow).values(state="sent"))
    sent(outbox.api, image(1, 2, **JANET))  # type: ignore[attr-defined]
    decide(outbox, "apply")
    first, again = sorted(rows(outbox.database, DeliveryRow), key=lambda row: row.created_at)
    assert (first.state, again.state, again.study_id) == ("sent", "waiting", study)
    assert again.destination_id == first.destination_id
    told = {one.id: one.told for one in rows(outbox.database, NoticeRow)}
    assert told[again.notice_id] == told[first.notice_id]
    with outbox.database.transaction() as session:
        header = studies.decided_header(session, study)
    assert header is not None
    assert pydicom.dcmread(io.BytesIO(outbox.store.get(original_key(header)))).PatientID == "4712"
