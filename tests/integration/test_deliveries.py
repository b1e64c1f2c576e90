"""Results on their way, on real Postgres: the outbox, what is made, what is sent, and what each kind of failure does."""

import contextlib
import errno
import io
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pydicom
import pytest
from sqlalchemy import func, select, update

from samples.objects import pattern_image, to_bytes
from shared.db.clock import db_now
from shared.db.engine import Database
from shared.db.tables import (
    AnalysisRow,
    BackfillRunRow,
    BundleRow,
    DeliveryObjectRow,
    DeliveryRow,
    DestinationRow,
    FindingRow,
    InstanceRow,
    ResultObjectRow,
    ResultSetRow,
    StudyRow,
)
from shared.domain.completeness import Completeness
from shared.domain.destinations import TRIED_FOR, Destination, DestinationKind, NewerModels, Rule, When
from shared.domain.feedback import Verdict
from shared.domain.findings import Assessment, Extent, Finding, Heatmap, InstanceResult
from shared.domain.results import CaptureModality, ResultInput, ResultKind, ResultObject
from shared.domain.security import Role
from shared.domain.study import StoredStatus
from shared.errors import ObjectMissing
from shared.queries import deliveries, destinations, feedback, result_choices, results
from shared.queries.access import add_key, key_of_row
from shared.queries.feedback import FeedbackDraft
from shared.queries.result_choices import ResultChoices
from shared.queue import liveness
from shared.queue.liveness import STEP_S
from shared.settings import ROOT, Settings
from shared.storage import original_key
from tests import poisons
from tests.certificates import Certificates
from tests.hospital import NOW, Hospital
from tests.integration.test_reruns import History
from tests.pace import LIMIT_S, limit_s, slowness, until
from tests.results import ABLE, DEFAULT, Archive, Outbox, end_waits, only_delivery, rows, small_objects
from worker.delivery.folder import FolderConnection
from worker.delivery.main import silence
from worker.delivery.sending import Sender
from worker.results.main import Builder
from worker.results.making import MAX_ATTEMPTS, Maker

MANIFEST = {"sensitive": 0.1, "specific": 0.6, "regions": ["hand"], "metrics": {}}
ANALYSED = Rule(When.ANALYSED, DEFAULT)


def pacs(archive: Archive, **changes: Any) -> Destination:
    return replace(Destination(DestinationKind.DICOM, "127.0.0.1", archive.port, archive.title), **changes)


@pytest.fixture
def outbox(database: Database, make_settings: Callable[..., Settings], hospital: Hospital, tmp_path: Path) -> Outbox:
    """The site's outbox; what a destination does not answer within a second it does not answer."""
    (tmp_path / "out").mkdir()
    settings = make_settings(delivery_folder=tmp_path / "out", delivery_answer_s=1.0, lease_s=5.0)
    with database.transaction() as session:
        session.execute(update(BundleRow).values(manifest=MANIFEST))
        site = session.execute(select(StudyRow.site_id)).scalar() or hospital.site_id
        row = add_key(session, "north", "an admin", Role.ADMIN, "osk_results")
        assert row is not None
        key = replace(key_of_row(row), site_id=site)
    return Outbox(database, settings, hospital.site_id, key)


@pytest.fixture
def builder(outbox: Outbox, forked_decoders: None) -> Iterator[Builder]:
    """The real builders, with children that decode."""
    made = Builder(outbox.settings)
    yield made
    made.close()


def analysed(hospital: Hospital, images: int = 1, assessment: Assessment = Assessment.NEGATIVE) -> UUID:
    """A study that a worker has just analysed; nothing more of it is expected."""
    study = hospital.study(images)
    finish(hospital, study, assessment)
    return study


def finish(hospital: Hospital, study: UUID, assessment: Assessment = Assessment.NEGATIVE) -> None:
    hospital.set(study, completeness=Completeness.COMPLETE)
    claim = hospital.claim(study)
    extent = Extent.NONE if assessment is Assessment.NEGATIVE else Extent.MILD
    found = Finding(1, "a", "hand", 0.9, 0.01, assessment, extent, Heatmap(b"1234", 2, 2))
    assert hospital.finish(claim, [InstanceResult(one.id, [found]) for one in claim.instances])


def reject(database: Database, study: UUID) -> None:
    """As a document that rejects all images of a study leaves it."""
    with database.transaction() as session:
        session.get_one(StudyRow, study).status = StoredStatus.KEPT


# -- the outbox


def test_nothing_is_written_while_nobody_has_set_up_a_destination(outbox: Outbox, hospital: Hospital) -> None:
    """No row, no object, no call."""
    analysed(hospital)
    assert rows(outbox.database, ResultSetRow) == []
    assert outbox.make() == 0


def test_a_result_is_made_once_sent_once_and_found_again(outbox: Outbox, hospital: Hospital) -> None:
    """From the finding's commit to the archive; the objects are instances of the study that are not analysed."""
    with Archive().open() as archive:
        outbox.add(pacs(archive), ANALYSED)
        study = analysed(hospital, images=2)
        assert outbox.make() == 1
        outbox.send()
        outbox.send()
        objects = rows(outbox.database, ResultObjectRow)
        assert sorted(uid for uid, _ in archive.received) == sorted(one.sop_instance_uid for one in objects)
        assert len(objects) == 5  # two overlays, a summary, two documents
        order = [uid for uid, _ in archive.received]
        kinds = {one.sop_instance_uid: one.kind for one in objects}
        assert [kinds[uid] for uid in order] == [
            "sc-summary", "sc-overlay", "sc-overlay", "sr-outlines", "sr-statements"
        ]  # fmt: skip
    row = only_delivery(outbox.database)
    assert (row.state, row.attempts, row.reason) == ("sent", 1, "")
    assert row.sent_at is not None
    kept = [one for one in rows(outbox.database, InstanceRow) if one.kept]
    assert {one.kept for one in kept} == {"own-result"}
    assert len(kept) == 5
    assert hospital.row(study).kept == 5
    assert hospital.row(study).images == 2


def test_the_objects_that_the_worker_builds_arrive_as_they_were_made(
    outbox: Outbox, hospital: Hospital, builder: Builder
) -> None:
    """A real radiograph and the real builders: all kinds, of the source's patient, byte for byte."""
    sample = next((ROOT / "samples" / "studies").glob("*/*.dcm")).read_bytes()
    outbox.maker = Maker(outbox.settings, outbox.database, outbox.store, builder, ABLE)
    with Archive().open() as archive:
        archive.classes = [*archive.classes]
        outbox.add(pacs(archive), replace(ANALYSED, kinds=(*DEFAULT, "pdf")))
        study = hospital.stored(outbox.store, [sample])
        finish(hospital, study)
        assert outbox.make() == 1
        outbox.send()
        kinds = {one.sop_instance_uid: one.kind for one in rows(outbox.database, ResultObjectRow)}
        assert {kinds[uid] for uid, _ in archive.received} == {"sc-overlay", "sc-summary", "sr-statements", "pdf"}
        source = pydicom.dcmread(io.BytesIO(sample), stop_before_pixels=True)
        for one in rows(outbox.database, ResultObjectRow):
            made = pydicom.dcmread(io.BytesIO(outbox.store.get(original_key(one.sha256))))
            assert made.PatientID == source.PatientID
            (sent,) = [content for uid, content in archive.received if uid == one.sop_instance_uid]
            assert outbox.store.get(original_key(one.sha256)).endswith(sent)
    assert only_delivery(outbox.database).state == "sent"


def test_each_rule_waits_for_its_own_moment(outbox: Outbox, hospital: Hospital) -> None:
    """Analysed at once; complete when no image is expected any more; agreed after a reader."""
    with Archive().open() as archive:
        outbox.add(pacs(archive), Rule(When.COMPLETE, DEFAULT))
        study = hospital.study()
        claim = hospital.claim(study)
        found = Finding(1, "a", "hand", 0.9, 0.01, Assessment.NEGATIVE, Extent.NONE, Heatmap(b"1234", 2, 2))
        hospital.finish(claim, [InstanceResult(one.id, [found]) for one in claim.instances])
        assert rows(outbox.database, ResultSetRow) == []
        from shared.queries import completeness

        with outbox.database.transaction() as session:
            assert completeness.complete_studies(session, timedelta(0), timedelta(0))[0] == 1
        (row,) = rows(outbox.database, ResultSetRow)
        assert (row.occasion, row.state) == ("complete", "waiting")


def read(outbox: Outbox, study: UUID, verdict: Verdict) -> None:
    """A reader is done with a study, or disagrees with its only finding."""
    with outbox.database.transaction() as session:
        (finding,) = session.scalars(select(FindingRow).join(InstanceRow).where(InstanceRow.study_id == study))
        its: dict[str, Any] = {}
        if verdict is not Verdict.DONE:
            its = {"instance_id": finding.instance_id, "frame": 1, "bundle": finding.bundle, "fracture": "yes"}
        feedback.append_entry(session, outbox.key, str(uuid4()), FeedbackDraft(study, verdict, **its))


def test_a_rule_for_agreed_studies_waits_for_a_reader(outbox: Outbox, hospital: Hospital) -> None:
    """Nothing goes before a reader is done; nothing at all where one contradicts the model."""
    (outbox.settings.delivery_folder / "pacs").mkdir()  # type: ignore[operator]
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), Rule(When.AGREED, DEFAULT))
    agreed, contradicted, unread = analysed(hospital), analysed(hospital), analysed(hospital)
    assert rows(outbox.database, ResultSetRow) == []
    read(outbox, contradicted, Verdict.DISAGREE)
    for study in (agreed, contradicted):
        read(outbox, study, Verdict.DONE)
    outbox.make()
    outbox.send()
    sets = {row.study_id: (row.occasion, row.state, row.reason) for row in rows(outbox.database, ResultSetRow)}
    assert sets == {agreed: ("agreed", "made", ""), contradicted: ("agreed", "not-wanted", "contradicted")}
    assert (only_delivery(outbox.database).study_id, only_delivery(outbox.database).state) == (agreed, "sent")
    assert unread not in sets


def test_a_rule_asks_who_sent_a_study_and_how_old_the_patient_is(outbox: Outbox, hospital: Hospital) -> None:
    """Of four studies one is of the sender and of the age; who is of no known age is of none."""
    rule = replace(ANALYSED, senders=("CT-ROOM",), age_from=18, age_to=65)
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), rule.validate(DEFAULT))
    facts = [("CT-ROOM", 40), ("CT-ROOM", 17), ("CT-ROOM", None), ("PACS", 40)]
    studies = []
    for sender, age in facts:
        study = hospital.study()
        hospital.set(study, sender=sender, age_years=age)
        finish(hospital, study)
        studies.append(study)
    assert outbox.make() == 4
    assert only_delivery(outbox.database).study_id == studies[0]
    reasons = {row.study_id: row.reason for row in rows(outbox.database, ResultSetRow)}
    assert [reasons[study] for study in studies] == ["", "no-rule", "no-rule", "no-rule"]


def test_results_wait_for_the_hours_of_their_rule(outbox: Outbox, hospital: Hospital) -> None:
    """They are made at once, and go when the hour comes; of two rules the one counts that lets them go first."""
    (outbox.settings.delivery_folder / "pacs").mkdir()  # type: ignore[operator]
    with outbox.database.transaction() as session:
        now = db_now(session).astimezone(ZoneInfo(outbox.settings.backfill_timezone))
    later = replace(ANALYSED, hour_from=(now.hour + 3) % 24, hour_to=(now.hour + 5) % 24)
    latest = replace(ANALYSED, hour_from=(now.hour + 5) % 24, hour_to=(now.hour + 6) % 24)
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), latest, later)
    analysed(hospital)
    outbox.make()
    outbox.send()
    row = only_delivery(outbox.database)
    assert (row.state, row.attempts, row.sent_at) == ("waiting", 0, None)
    assert row.next_at.astimezone(now.tzinfo).hour == later.hour_from
    assert timedelta(hours=1) < row.next_at - now < timedelta(hours=5)
    assert row.tried_until - row.next_at == TRIED_FOR  # the days that it is tried for begin then
    end_waits(outbox.database)
    outbox.send()
    assert only_delivery(outbox.database).state == "sent"


@pytest.mark.parametrize(
    ("age", "of_a_run", "leaves"),
    [(timedelta(hours=23), True, True), (timedelta(hours=25), True, False), (timedelta(days=9), False, True)],
)
def test_a_run_over_history_sprays_nothing_over_the_archive(
    outbox: Outbox, hospital: Hospital, age: timedelta, of_a_run: bool, leaves: bool
) -> None:
    """What it analyses for the first time leaves only where the study has just come; what was merely late always does."""
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), ANALYSED)
    study = hospital.study(now=NOW - age)
    if of_a_run:
        run = uuid4()
        with outbox.database.transaction() as session:
            session.add(BackfillRunRow(id=run, day=NOW.date(), bundle="a", started_at=NOW))
            session.flush()
            session.execute(update(AnalysisRow).where(AnalysisRow.study_id == study).values(run_id=run))
    finish(hospital, study)
    assert hospital.row(study).status == StoredStatus.ANALYSED
    assert len(rows(outbox.database, ResultSetRow)) == int(leaves)


# -- sources


def test_a_source_without_what_results_copy_has_results_all_the_same(
    outbox: Outbox, hospital: Hospital, builder: Builder
) -> None:
    """Attributes that DICOM lets be empty are there, empty; nothing is made up for them."""
    header = pydicom.dcmread(ROOT / "samples" / "studies" / "01-hand" / "1-pa.dcm")
    lacking = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
               "AccessionNumber", "ReferringPhysicianName", "SpecificCharacterSet", "SeriesInstanceUID")  # fmt: skip
    for keyword in lacking:
        if keyword in header:
            delattr(header, keyword)
    bare = io.BytesIO()
    header.save_as(bare)
    outbox.maker = Maker(outbox.settings, outbox.database, outbox.store, builder, ABLE)
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), replace(ANALYSED, kinds=(*DEFAULT, "pdf")))
    finish(hospital, hospital.stored(outbox.store, [bare.getvalue()]))
    outbox.make()
    made = rows(outbox.database, ResultObjectRow)
    assert {one.kind for one in made} == {"sc-overlay", "sc-summary", "sr-statements", "pdf"}
    for one in made:
        told = pydicom.dcmread(io.BytesIO(outbox.store.get(original_key(one.sha256))))
        assert [str(told[keyword].value or "") for keyword in lacking[:9]] == [""] * 9, one.kind


def test_a_damaged_source_fails_its_own_set_and_says_why(outbox: Outbox, hospital: Hospital, builder: Builder) -> None:
    """An original that cannot be read any more: its set ends at once, the next study's is made."""
    outbox.maker = Maker(outbox.settings, outbox.database, outbox.store, builder, ABLE)
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), ANALYSED)
    cut, whole = ((ROOT / "samples/studies" / name / "1-pa.dcm").read_bytes() for name in ("01-hand", "02-hand"))
    damaged = hospital.stored(outbox.store, [cut[: len(cut) // 2]])
    well = hospital.stored(outbox.store, [whole])
    for study in (damaged, well):
        finish(hospital, study)
    outbox.make()
    sets = {row.study_id: (row.state, row.reason) for row in rows(outbox.database, ResultSetRow)}
    assert sets == {damaged: ("failed", "source-lacks"), well: ("made", "")}


POISONS = {
    "abort": "decoder-died", "hang": "decoding-timed-out", "eight gigabytes": "decoder-out-of-memory"
}  # fmt: skip


@pytest.mark.parametrize("poison", POISONS)
def test_an_original_that_breaks_its_decoder_fails_its_own_set(
    outbox: Outbox, hospital: Hospital, forked_decoders: None, monkeypatch: pytest.MonkeyPatch, poison: str
) -> None:
    """A codec that aborts, hangs or eats memory costs its study's results, with a reason; the next study has its own.

    Each is tried again; here only the one that costs no time is.
    """
    tries = 2 if poison == "abort" else 1
    monkeypatch.setattr("worker.decoder_pool.make_picture", poisons.make_picture)
    limits = {"decode_limit_s": 2.0 * slowness(), "decode_memory_bytes": 2**29}
    builder = Builder(outbox.settings.model_copy(update=limits))
    outbox.maker = Maker(outbox.settings, outbox.database, outbox.store, builder, ABLE)
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), ANALYSED)
    bad, sound = (
        hospital.stored(outbox.store, [to_bytes(poisoned(words), "1.2.840.10008.1.2.1")])
        for words in (f"poison: {poison}", "sound")
    )
    finish(hospital, bad)
    with outbox.database.transaction() as session:
        session.execute(update(ResultSetRow).values(attempts=MAX_ATTEMPTS - tries))
    finish(hospital, sound)
    try:
        assert outbox.make() == 2
        assert set_of(outbox.database, sound).state == "made"
        if tries > 1:
            assert set_of(outbox.database, bad).state == "waiting"
            with outbox.database.transaction() as session:
                session.execute(update(ResultSetRow).values(next_at=func.now()))
            assert outbox.make() == 1
    finally:
        builder.close()
    row = set_of(outbox.database, bad)
    assert (row.state, row.reason, row.reason_detail) == ("failed", "not-made", POISONS[poison])
    assert {one.study_id for one in rows(outbox.database, ResultObjectRow)} == {sound}


def poisoned(words: str) -> pydicom.Dataset:
    ds = pattern_image(1, f"results/{words}")
    ds.ImageComments = words
    return ds


def set_of(database: Database, study: UUID) -> ResultSetRow:
    (row,) = [one for one in rows(database, ResultSetRow) if one.study_id == study]
    assert isinstance(row, ResultSetRow)
    return row


def leased_until(database: Database, study: UUID) -> datetime:
    until = set_of(database, study).lease_until
    assert until is not None
    return until


def test_a_sites_choices_are_those_of_its_results(outbox: Outbox, hospital: Hospital) -> None:
    """From the next set on."""
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), ANALYSED)
    told: list[tuple[bool, str]] = []

    def build(stated: ResultInput, *more: Any) -> Sequence[ResultObject]:
        told.append((stated.site.probability, stated.site.modality))
        return small_objects(stated, *more)

    outbox.maker = Maker(outbox.settings, outbox.database, outbox.store, build, ABLE)

    def make() -> None:
        analysed(hospital)
        outbox.make()

    make()
    with outbox.database.transaction() as session:
        result_choices.choose(session, outbox.key, ResultChoices(True, CaptureModality.DX))
    make()
    assert told == [(False, "OT"), (True, "DX")]


def test_a_set_that_takes_long_holds_up_no_other_and_stays_its_makers(outbox: Outbox, hospital: Hospital) -> None:
    """A second one is made beside it; nobody else takes it meanwhile, however long it takes."""
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), ANALYSED)
    slow, quick = analysed(hospital), analysed(hospital)
    go_on = threading.Event()

    def build(told: ResultInput, *more: Any) -> Sequence[ResultObject]:
        assert told.study_id != str(slow) or go_on.wait(LIMIT_S)
        return small_objects(told, *more)

    maker = Maker(outbox.settings, outbox.database, outbox.store, build, ABLE)
    maker._lease = timedelta(seconds=1)
    running = threading.Thread(target=maker.run)
    running.start()
    try:
        until(lambda: set_of(outbox.database, quick).state == "made", 30)
        first = leased_until(outbox.database, slow)
        until(lambda: leased_until(outbox.database, slow) > first + maker._lease, 30)
        assert outbox.make() == 0
        assert set_of(outbox.database, slow).attempts == 1
    finally:
        go_on.set()
        maker.stopping.set()
        running.join()
    assert set_of(outbox.database, slow).state == "made"


def test_sets_of_one_study_are_made_one_after_the_other(outbox: Outbox, hospital: Hospital) -> None:
    """What a set says may replace what the one before says, which it can name only once that is made."""
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), ANALYSED)
    study, other = analysed(hospital), analysed(hospital)
    with outbox.database.transaction() as session:
        results.request_results(session, session.get_one(StudyRow, study))
    taken = []
    for _ in range(3):
        with outbox.database.transaction() as session:
            taken.append(results.take(session, timedelta(seconds=60)))
    assert [one and one.study_id for one in taken] == [study, other, None]
    with outbox.database.transaction() as session:
        session.execute(update(ResultSetRow).values(lease_until=func.now()))
    assert outbox.make() == 3


def test_a_late_image_makes_a_new_summary_that_names_the_old_one(outbox: Outbox, hospital: Hospital) -> None:
    """What is of the first image is the same object, and is not sent again."""
    with Archive().open() as archive:
        outbox.add(pacs(archive), ANALYSED)
        study = analysed(hospital)
        outbox.make()
        outbox.send()
        first = rows(outbox.database, ResultSetRow)[0]
        with outbox.database.transaction() as session:
            uid = session.get_one(StudyRow, study).study_instance_uid
        late = hospital.file(0, 7)
        late = replace(late, header=replace(late.header, study_instance_uid=uid))
        hospital.take_in([late], now=NOW + timedelta(minutes=1))
        finish(hospital, study)
        outbox.make()
        outbox.send()
        assert len({uid for uid, _ in archive.received}) == len(archive.received) == 4 + 4
    second = max(rows(outbox.database, ResultSetRow), key=lambda row: row.due_at)
    assert second.replaces["digest"] == first.digest


def test_a_newer_model_is_told_only_where_it_says_something_else(outbox: Outbox, hospital: Hospital) -> None:
    """And only where something was sent: a run over history fills no archive."""
    from shared.queries import outbox as due

    with Archive().open() as archive:
        before = analysed(hospital)
        outbox.add(pacs(archive), ANALYSED)
        study = analysed(hospital)
        outbox.make()
        outbox.send()
        sent = len(archive.received)
        with outbox.database.transaction() as session:
            due.record_newer_model(session, [before, study])
        outbox.make()
        outbox.send()
        assert len(archive.received) == sent
        assert sorted(row.reason for row in rows(outbox.database, ResultSetRow)) == ["", "same-assessment"]
        with outbox.database.transaction() as session:
            row = destinations.lock_destination(session, None, only_delivery(outbox.database).destination_id)
            destinations.set_rules(session, outbox.key, row, [replace(ANALYSED, newer_models=NewerModels.ALL)])
            due.record_newer_model(session, [study])
        outbox.make()
        assert rows(outbox.database, ResultSetRow)[-1].state in ("repeated", "made")


def test_a_newer_models_run_over_history_replaces_what_changed_and_nothing_else(
    outbox: Outbox, hospital: Hospital
) -> None:
    """Of three studies that it assesses anew: one was sent and says something else, one the same, one was never sent."""
    history = History(hospital)
    never = analysed(hospital)
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), ANALYSED)
    same, other = analysed(hospital), analysed(hospital)
    outbox.make()
    outbox.send()
    history.activate("b")
    assert {one.study_id for one in history.begin_backfill().to_send} == {never, same, other}
    for study, assessment in ((never, "positive"), (same, "negative"), (other, "positive")):
        assert history.look(study, Assessment(assessment))
    assert {hospital.row(study).bundle for study in (never, same, other)} == {"b"}
    outbox.make()
    outbox.send()
    sets = sorted((row.study_id, row.reason) for row in rows(outbox.database, ResultSetRow))
    assert sets == sorted([(same, ""), (same, "same-assessment"), (other, ""), (other, "")])
    assert sorted(row.study_id for row in rows(outbox.database, DeliveryRow)) == sorted([same, other, other])
    first, second = sorted((one for one in rows(outbox.database, ResultSetRow) if one.study_id == other), key=made_at)
    assert second.replaces["digest"] == first.digest


def made_at(row: ResultSetRow) -> datetime:
    assert row.made_at is not None
    return row.made_at


# -- failures of destinations


def test_a_class_that_is_refused_is_sent_in_another_form(outbox: Outbox, hospital: Hospital) -> None:
    """Comprehensive 3D SR, else Comprehensive SR under a UID of its own; remembered for the next study."""
    plain = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.33")
    with Archive(classes=plain).open() as archive:
        outbox.add(pacs(archive), ANALYSED)
        analysed(hospital)
        outbox.make()
        outbox.send()
        assert outbox.make() == 1
        outbox.send()
        kinds = {one.sop_instance_uid: one.kind for one in rows(outbox.database, ResultObjectRow)}
        assert [kinds[uid] for uid, _ in archive.received] == [
            "sc-summary", "sc-overlay", "sr-outlines-2d", "sr-statements-2d"
        ]  # fmt: skip
        analysed(hospital)
        assert outbox.make() == 1
        outbox.send()
        assert len(archive.received) == 8
        assert {row.state for row in rows(outbox.database, DeliveryRow)} == {"sent"}


def test_pictures_go_alone_where_no_document_is_taken(outbox: Outbox, hospital: Hospital) -> None:
    """Neither form of a document."""
    with Archive(classes=["1.2.840.10008.5.1.4.1.1.7"]).open() as archive:
        outbox.add(pacs(archive), ANALYSED)
        analysed(hospital)
        for _ in range(3):
            outbox.make()
            outbox.send()
        assert len(archive.received) == 2
        states = sorted(row.state for row in rows(outbox.database, DeliveryRow))
    assert states in (["sent"], ["failed", "sent"])


def test_implicit_little_endian_is_enough(outbox: Outbox, hospital: Hospital) -> None:
    """The same bytes each time, in the one syntax that the archive takes."""
    with Archive(syntaxes=["1.2.840.10008.1.2"]).open() as archive:
        outbox.add(pacs(archive), ANALYSED)
        analysed(hospital)
        outbox.make()
        outbox.send()
        assert len(archive.received) == 4


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [(0xA700, "waiting", "busy"), (0x0110, "waiting", "busy"), (0xA900, "failed", "refused"), (0x0122, "failed", "refused"),
     (0xB007, "sent", ""), (0x0111, "sent", "")],
)  # fmt: skip
def test_what_can_heal_is_tried_again_and_what_cannot_is_told(
    outbox: Outbox, hospital: Hospital, status: int, state: str, reason: str
) -> None:
    """A full archive, a failure, a refusal, a warning, a duplicate."""
    with Archive(status=lambda _: status).open() as archive:
        outbox.add(pacs(archive), ANALYSED)
        analysed(hospital)
        outbox.make()
        outbox.send()
    row = only_delivery(outbox.database)
    assert (row.state, row.reason) == (state, reason)
    if reason:
        assert row.status == f"{status:04X}"


def test_what_was_accepted_is_not_sent_twice(outbox: Outbox, hospital: Hospital) -> None:
    """An archive that fails in the middle gets the rest, and nothing else."""
    answers = iter([0x0000, 0x0000, 0xA700])
    with Archive(status=lambda _: next(answers, 0x0000)).open() as archive:
        outbox.add(pacs(archive), ANALYSED)
        analysed(hospital)
        outbox.make()
        outbox.send()
        assert len(archive.received) == 2
        end_waits(outbox.database)
        outbox.send()
        uids = [uid for uid, _ in archive.received]
    assert len(uids) == len(set(uids)) == 4
    assert only_delivery(outbox.database).state == "sent"


def test_an_archive_that_is_away_keeps_everything_waiting(outbox: Outbox, hospital: Hospital) -> None:
    """Its wait is the destination's, and grows; after three days a person is told."""
    archive = Archive()
    with archive.open():
        pass
    outbox.add(pacs(archive), ANALYSED)
    analysed(hospital)
    analysed(hospital)
    outbox.make()
    outbox.send()
    (destination,) = rows(outbox.database, DestinationRow)
    assert (destination.failures, destination.reason) == (1, "unreachable")
    assert destination.not_before is not None
    assert {row.state for row in rows(outbox.database, DeliveryRow)} == {"waiting"}
    with outbox.database.transaction() as session:
        session.execute(update(DeliveryRow).values(tried_until=func.now()))
    end_waits(outbox.database)
    outbox.send()
    assert {(row.state, row.reason) for row in rows(outbox.database, DeliveryRow)} == {("failed", "gave-up")}
    with archive.open():
        with outbox.database.transaction() as session:
            for row in rows(outbox.database, DeliveryRow):
                deliveries.send_again(session, outbox.key, None, row.id)
        end_waits(outbox.database)
        outbox.send()
    assert {row.state for row in rows(outbox.database, DeliveryRow)} == {"sent"}


def test_a_wrong_title_holds_the_destination_and_not_each_delivery(outbox: Outbox, hospital: Hospital) -> None:
    """One association tries after each wait, in the archive's words nothing is dead; once mended, `retry` goes on."""
    with Archive().open() as archive:
        outbox.add(pacs(archive, called_ae="OTHER"), ANALYSED)
        for _ in range(3):
            analysed(hospital)
        while outbox.make():
            pass
        outbox.send()
        outbox.send()
        (destination,) = rows(outbox.database, DestinationRow)
        assert (destination.reason, destination.failures) == ("rejected", 1)
        assert destination.not_before is not None
        for row in rows(outbox.database, DeliveryRow):
            assert (row.state, row.reason, row.status, row.attempts) == ("waiting", "rejected", "1/1/7", 1)
            assert "Called AE title not recognised" in row.words
        with outbox.database.transaction() as session:
            session.execute(update(DestinationRow).values(called_ae=archive.title))  # as if changed at the archive
        outbox.send()
        assert archive.received == []
        with outbox.database.transaction() as session:
            assert deliveries.send_all_again(session, outbox.key, destination.id) == 0
        outbox.send()
        assert len(archive.received) == 3 * 4
    assert {row.state for row in rows(outbox.database, DeliveryRow)} == {"sent"}


def test_an_unknown_name_may_be_known_later(outbox: Outbox, hospital: Hospital) -> None:
    """A name that resolves to nothing."""
    outbox.add(Destination(DestinationKind.DICOM, "pacs.invalid", 104, "PACS"), ANALYSED)
    analysed(hospital)
    outbox.make()
    outbox.send()
    (destination,) = rows(outbox.database, DestinationRow)
    assert destination.reason == "unknown-name"
    assert only_delivery(outbox.database).state == "waiting"


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_destination_that_never_answers_holds_up_no_other_one(
    outbox: Outbox, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts the connection and says nothing."""
    monkeypatch.setattr("worker.delivery.dicom.CONNECT_S", 1.0)
    with silent_port() as port, Archive().open() as archive:
        outbox.add(Destination(DestinationKind.DICOM, "127.0.0.1", port, "PACS"), ANALYSED, name="SILENT")
        outbox.add(pacs(archive), ANALYSED)
        analysed(hospital)
        outbox.make()
        outbox.send()
        assert len(archive.received) == 4
    states = {row.state for row in rows(outbox.database, DeliveryRow)}
    assert states == {"sent", "waiting"}
    silent = next(row for row in rows(outbox.database, DestinationRow) if row.name == "SILENT")
    assert silent.reason == "no-answer"


def test_an_answer_that_never_comes_and_a_cut_in_the_middle_are_tried_again(outbox: Outbox, hospital: Hospital) -> None:
    """The archive hangs in its second object, then cuts the third one's association."""
    turns = iter([None, 3.0, None, "cut"])

    def status(event: Any) -> int:
        turn = next(turns, None)
        if turn == "cut":
            event.assoc.abort()
        elif isinstance(turn, float):
            time.sleep(turn)
        return 0x0000

    with Archive(status=status).open() as archive:
        outbox.add(pacs(archive), ANALYSED)
        analysed(hospital)
        outbox.make()
        outbox.send()
        assert rows(outbox.database, DestinationRow)[0].reason == "no-answer"
        for _ in range(3):
            end_waits(outbox.database)
            outbox.send()
    assert only_delivery(outbox.database).state == "sent"
    counts = {uid: [one for one, _ in archive.received].count(uid) for uid, _ in archive.received}
    assert len(counts) == 4
    assert max(counts.values()) <= 2
    assert len({(uid, content) for uid, content in archive.received}) == 4  # repeats are the same bytes


# -- TLS


@pytest.mark.parametrize(
    ("trusts", "pinned", "state", "reason"),
    [
        ("", "its own", "sent", ""),  # the fingerprint alone is enough
        ("", "another's", "waiting", "certificate"),
        ("", "", "waiting", "certificate"),  # nobody whom we trust has signed it
        ("its own", "", "sent", ""),
        ("another's", "", "waiting", "certificate"),
        ("its own", "another's", "waiting", "certificate"),  # the fingerprint counts
    ],
)
def test_dicom_over_tls_is_held_to_the_certificate(
    outbox: Outbox, hospital: Hospital, tmp_path: Path, trusts: str, pinned: str, state: str, reason: str
) -> None:
    """The archive's certificate is the one of the fingerprint, or an authority's; or else not a byte of an object goes."""
    certificates = Certificates(tmp_path)
    own, key, fingerprint = certificates.make("archive")
    other, _, others = certificates.make("other")
    authorities = {"its own": own, "another's": other}.get(trusts)
    outbox.settings = outbox.settings.model_copy(update={"delivery_tls_authorities": authorities})
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(own, key)
    with Archive().open(server) as archive:
        kept_to = {"its own": fingerprint, "another's": others}.get(pinned, "")
        tls = pacs(archive, kind=DestinationKind.DICOM_TLS, host="localhost", tls_fingerprint=kept_to)
        outbox.add(tls, ANALYSED)
        analysed(hospital)
        outbox.make()
        outbox.send()
        assert len(archive.received) == (4 if state == "sent" else 0)
    row = only_delivery(outbox.database)
    assert (row.state, row.reason) == (state, reason)


# -- folders and STOW


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_folder_waits_and_keeps_no_half_file(
    outbox: Outbox, hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The second object finds no room: the first stays, nothing half-written does, and the rest comes once there is."""
    folder = tmp_path / "out" / "pacs"
    folder.mkdir()
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), ANALYSED)
    analysed(hospital)
    outbox.make()
    synced: list[int] = []

    def sync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 2:  # a file and its folder
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr("worker.delivery.folder.os.fsync", sync)
        outbox.send()
    (destination,) = rows(outbox.database, DestinationRow)
    assert destination.reason == "full"
    assert destination.not_before is not None
    assert only_delivery(outbox.database).state == "waiting"
    assert len(list(folder.iterdir())) == 1
    end_waits(outbox.database)
    outbox.send()
    assert only_delivery(outbox.database).state == "sent"
    assert len(list(folder.glob("*.dcm"))) == len(list(folder.iterdir())) == 4


def test_a_folder_gets_whole_files_and_a_missing_one_is_told(
    outbox: Outbox, hospital: Hospital, tmp_path: Path
) -> None:
    """Byte for byte what was made; a folder that is not there is not made."""
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), ANALYSED)
    study = analysed(hospital)
    assert study
    outbox.make()
    outbox.send()
    assert (only_delivery(outbox.database).state, only_delivery(outbox.database).reason) == ("waiting", "no-folder")
    (tmp_path / "out" / "pacs").mkdir()
    end_waits(outbox.database)
    outbox.send()
    assert only_delivery(outbox.database).state == "sent"
    from shared.storage import sha256_of

    there = {path.name: sha256_of(path.read_bytes()) for path in (tmp_path / "out" / "pacs").iterdir()}
    objects = rows(outbox.database, ResultObjectRow)
    assert there == {f"{one.sop_instance_uid}.dcm": one.sha256 for one in objects}


class Service(BaseHTTPRequestHandler):
    """STOW-RS that answers as it is told."""

    answers: list[tuple[int, str]] = []  # noqa: RUF012
    received: list[bytes] = []  # noqa: RUF012
    shown: list[str | None] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.shown.append(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, text = self.answers.pop(0) if self.answers else (200, "{}")
        if status < 300:
            self.received.append(body)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silent."""


@contextlib.contextmanager
def service(*answers: tuple[int, str]) -> Iterator[str]:
    Service.answers, Service.received, Service.shown = list(answers), [], []
    server = HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def failure(number: int) -> str:
    return f'{{"00081198": {{"vr": "SQ", "Value": [{{"00081197": {{"vr": "US", "Value": [{number}]}}}}]}}}}'


@pytest.mark.parametrize(
    ("answer", "state", "reason"),
    [((200, "{}"), "sent", ""), ((202, failure(0xA700)), "waiting", "busy"), ((200, failure(0x0122)), "failed", "refused"),
     ((409, failure(0xA900)), "failed", "refused"), ((503, "later"), "waiting", "busy"), ((401, ""), "waiting", "access"),
     ((302, ""), "waiting", "bad-address"), ((404, ""), "waiting", "bad-address"), ((202, "not JSON"), "sent", "")],
)  # fmt: skip
def test_stow_says_of_each_object_what_became_of_it(
    outbox: Outbox, hospital: Hospital, answer: tuple[int, str], state: str, reason: str
) -> None:
    """Also where the status says that all is well; a redirection is not followed."""
    with service(answer) as url:
        outbox.add(Destination(DestinationKind.STOW, url=url), ANALYSED)
        analysed(hospital)
        outbox.make()
        outbox.send()
        assert len(Service.received) == (4 if state == "sent" else int(answer[0] < 300))
    assert (only_delivery(outbox.database).state, only_delivery(outbox.database).reason) == (state, reason)


def test_a_service_that_wants_a_login_is_shown_its_own(
    outbox: Outbox, hospital: Hospital, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With each request, that of a test included; another service of the site is shown nothing, nor is any log."""
    silence()
    caplog.set_level("DEBUG")
    with service() as url:
        logins = tmp_path / "logins.toml"
        logins.touch(mode=0o600)
        logins.write_text(f'[[login]]\ndestination = "PACS"\nurl = "{url}"\nbearer = "t0ken"\n')
        outbox.settings = outbox.settings.model_copy(update={"delivery_logins": logins})
        pacs_id = outbox.add(Destination(DestinationKind.STOW, url=url), ANALYSED)
        outbox.add(Destination(DestinationKind.STOW, url=url), ANALYSED, name="OTHER")
        with outbox.database.transaction() as session:
            destinations.ask_test(session, session.get_one(DestinationRow, pacs_id))
        analysed(hospital)
        outbox.make()
        outbox.send()
        assert sorted(map(str, Service.shown)) == ["Bearer t0ken"] * 5 + ["None"] * 4
        assert "t0ken" not in caplog.text
        assert url not in caplog.text
        assert {row.name: row.test_words for row in rows(outbox.database, DestinationRow)} == {
            "PACS": "with a login", "OTHER": ""
        }  # fmt: skip
        logins.chmod(0o644)
        analysed(hospital)
        outbox.make()
        outbox.send()
        assert len(Service.shown) == 9 + 4
    (told,) = [row for row in rows(outbox.database, DeliveryRow) if row.state != "sent"]
    assert (told.reason, told.destination_id) == ("access", pacs_id)
    assert "chmod 600" in told.words
    assert "t0ken" not in told.words


# -- studies that change while their results wait


def test_a_rejected_or_deleted_study_sends_nothing(outbox: Outbox, hospital: Hospital) -> None:
    """Between making and sending."""
    with Archive().open() as archive:
        outbox.add(pacs(archive), ANALYSED)
        rejected, deleted = analysed(hospital), analysed(hospital)
        outbox.make()
        reject(outbox.database, rejected)
        with outbox.database.transaction() as session:
            session.delete(session.get_one(StudyRow, deleted))
        outbox.send()
        assert archive.received == []
    assert (only_delivery(outbox.database).state, only_delivery(outbox.database).reason) == ("withdrawn", "study-gone")


def test_a_study_that_goes_before_its_objects_are_made_leaves_nothing(outbox: Outbox, hospital: Hospital) -> None:
    """The set is withdrawn, or gone with it."""
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), ANALYSED)
    study = analysed(hospital)
    reject(outbox.database, study)
    outbox.make()
    (row,) = rows(outbox.database, ResultSetRow)
    assert (row.state, row.reason) == ("withdrawn", "not-analysed")


@pytest.mark.parametrize(
    ("there", "state"),
    [(("P1", "NORTH"), "sent"), (("P1", ""), "sent"), (None, "sent"), (("P2", "NORTH"), "held"), (("P1", "SOUTH"), "held")],
)  # fmt: skip
def test_an_old_result_asks_whose_the_study_is(
    outbox: Outbox, hospital: Hospital, there: tuple[str, str] | None, state: str
) -> None:
    """A merge at the archive: another patient under the study holds the result for a person, who may send it."""
    archive = Archive(finds=True)
    with archive.open():
        outbox.add(pacs(archive), ANALYSED)
        study = analysed(hospital)
        outbox.make()
        with outbox.database.transaction() as session:
            session.execute(update(ResultSetRow).values(due_at=ResultSetRow.due_at - timedelta(days=2)))
            if there is not None:
                archive.patients[session.get_one(StudyRow, study).study_instance_uid] = there
        outbox.send()
        assert only_delivery(outbox.database).state == state
        if state == "held":
            assert archive.received == []
            with outbox.database.transaction() as session:
                deliveries.send_again(session, outbox.key, None, only_delivery(outbox.database).id)
            outbox.send()
            assert only_delivery(outbox.database).state == "sent"


def test_two_senders_never_send_to_one_destination_at_once(outbox: Outbox, hospital: Hospital) -> None:
    """The second one finds the lease."""
    with Archive().open() as archive:
        outbox.add(pacs(archive), ANALYSED)
        analysed(hospital)
        outbox.make()
        kinds = tuple(DestinationKind)
        with outbox.database.transaction() as session:
            (work,) = deliveries.take(session, timedelta(seconds=30), 5, kinds=kinds)
        with outbox.database.transaction() as session:
            assert deliveries.take(session, timedelta(seconds=30), 5, kinds=kinds) == []
            session.execute(update(DestinationRow).values(lease_until=func.now() - timedelta(seconds=1)))
        outbox.send()
        with outbox.database.transaction() as session:
            assert deliveries.next_due(session, work) is None
        assert len(archive.received) == 4


def test_a_test_says_whether_a_destination_answers(outbox: Outbox) -> None:
    """C-ECHO, a STOW request without an object, an empty file; nothing is stored."""
    with Archive().open() as archive, service((400, "no part")) as url:
        ids = [
            outbox.add(pacs(archive), name="a"),
            outbox.add(Destination(DestinationKind.STOW, url=url), name="b"),
            outbox.add(Destination(DestinationKind.FOLDER, folder="missing"), name="c"),
        ]
        with outbox.database.transaction() as session:
            for one in ids:
                destinations.ask_test(session, destinations.lock_destination(session, None, one))
        outbox.send()
    told = {row.name: row.test_reason for row in rows(outbox.database, DestinationRow)}
    assert told == {"a": "", "b": "", "c": "no-folder"}
    assert all(row.tested_at and row.test_asked_at is None for row in rows(outbox.database, DestinationRow))


def test_the_objects_of_a_delivery_are_noted_one_by_one(outbox: Outbox, hospital: Hospital) -> None:
    """What a kill costs is the object on its way."""
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), ANALYSED)
    analysed(hospital)
    outbox.make()
    assert [row.accepted_at for row in rows(outbox.database, DeliveryObjectRow)] == [None] * 4


def test_a_senders_objects_have_no_name_here(
    outbox: Outbox, hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither before nor while they are on their way: a sender that is killed leaves nothing."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    named: list[list[str]] = []

    def look(_: Any) -> int:
        named.append([one.name for one in (tmp_path / "temporary").iterdir()])
        return 0x0000

    with Archive(status=look).open() as archive:
        outbox.add(pacs(archive), ANALYSED)
        analysed(hospital)
        outbox.make()
        outbox.send()
    assert len(archive.received) == 4
    assert named == [[]] * 4


# -- what hangs


class Clock:
    """Stands in for `time`, and goes as a test has it."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_destination_whose_sending_hangs_is_seen(
    outbox: Outbox, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go on, and the process counts as unhealthy: until the step has ended after all."""
    clock = Clock()
    monkeypatch.setattr(liveness, "time", clock)
    hangs, ends = threading.Event(), threading.Event()
    send = FolderConnection.send

    def hanging(connection: FolderConnection, *what: Any) -> Any:
        hangs.set()
        assert ends.wait(limit_s(60))
        return send(connection, *what)

    monkeypatch.setattr(FolderConnection, "send", hanging)
    (outbox.settings.delivery_folder or Path()).joinpath("pacs").mkdir()
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), ANALYSED)
    analysed(hospital)
    outbox.make()
    sender = Sender(outbox.settings, outbox.database, outbox.store)
    try:
        sender.progress.expect(sender, float("inf"))  # its own loop does not run here
        sender.look()
        assert hangs.wait(limit_s(60))
        sender.progress.expect(sender, float("inf"))
        clock.now = STEP_S
        assert not sender.progress.hangs()
        clock.now = 2 * STEP_S
        assert sender.progress.hangs()
        ends.set()
        until(lambda: not sender._held, 60)
    finally:
        ends.set()
        sender.close()
    assert not sender.progress.hangs()
    assert only_delivery(outbox.database).state == "sent"


def test_a_set_whose_making_hangs_is_seen(outbox: Outbox, hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step has its own time: a set of many images that goes on is none that hangs."""
    clock = Clock()
    monkeypatch.setattr(liveness, "time", clock)
    seen: list[bool] = []

    def slow(told: ResultInput, kinds: Collection[ResultKind], read: Callable[[str], bytes]) -> Sequence[ResultObject]:
        for image in told.images:
            with contextlib.suppress(ObjectMissing):
                read(image.sha256)
            clock.now += STEP_S - 1
            seen.append(outbox.maker.progress.hangs())
        clock.now += 2
        seen.append(outbox.maker.progress.hangs())
        return small_objects(told, kinds, read)

    outbox.maker._build = slow
    (outbox.settings.delivery_folder or Path()).joinpath("pacs").mkdir()
    outbox.add(Destination(DestinationKind.FOLDER, folder="pacs"), ANALYSED)
    analysed(hospital, images=3)
    assert outbox.make() == 1
    assert seen == [False, False, False, True]
    assert not outbox.maker.progress.hangs()
