"""What results are made of, and the UIDs that follow from it."""

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from shared.domain.feedback import ReadersAssessment
from shared.domain.findings import Assessment, Extent, Finding, Heatmap, OperatingPoints
from shared.domain.results import (
    DOCUMENTS,
    IN_PLACE_OF,
    OF_AN_IMAGE,
    SERIES_NUMBERS,
    ImageStatement,
    ModelStatement,
    ReaderStatement,
    Replaced,
    ResultInput,
    ResultKind,
    SiteStatement,
)
from shared.errors import Reason

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
FINDING = Finding(1, "m", "hand", 0.9, 0.8, Assessment.POSITIVE, Extent.MILD, Heatmap(bytes(4), 2, 2), 8.0)
IMAGE = ImageStatement(1, "1.2.3", "a" * 64, NOON, NOON, (FINDING,))
MODEL = ModelStatement("m", "M", "b" * 64, OperatingPoints(0.1, 0.5))
INPUT = ResultInput(
    "id", "1.2", SiteStatement("North"), (IMAGE, replace(IMAGE, number=2, sha256="c" * 64)), (MODEL,), "1"
)

CHANGES: dict[str, Any] = {
    "study_id": "another",
    "study_instance_uid": "1.3",
    "site": SiteStatement("North", probability=True),
    "images": (IMAGE,),
    "models": (replace(MODEL, points=OperatingPoints(0.1, 0.6)),),
    "software": "2",
    "expected_images": 3,
    "reader": ReaderStatement(NOON, ReadersAssessment.FRACTURE),
    "replaces": Replaced("d" * 64, NOON, (ResultKind.SR_STATEMENTS,)),
    "patient": "f" * 64,
}


def test_each_input_has_a_change() -> None:
    assert set(CHANGES) == {field.name for field in fields(ResultInput)}


@pytest.mark.parametrize("name", CHANGES)
def test_another_input_is_another_set(name: str) -> None:
    other = replace(INPUT, **{name: CHANGES[name]})
    assert other.digest != INPUT.digest
    assert other.sop_uid(ResultKind.SR_STATEMENTS) != INPUT.sop_uid(ResultKind.SR_STATEMENTS)


@pytest.mark.parametrize(
    "other",
    [
        replace(FINDING, heatmap=Heatmap(bytes([0, 0, 0, 1]), 2, 2)),
        replace(FINDING, fracture_probability=0.81),
        replace(FINDING, frame=2),
    ],
)
def test_another_finding_is_another_set_and_another_overlay(other: Finding) -> None:
    changed = replace(INPUT, images=(replace(IMAGE, findings=(other,)), INPUT.images[1]))
    assert changed.digest != INPUT.digest
    assert changed.sop_uid(ResultKind.SC_OVERLAY, 1) != INPUT.sop_uid(ResultKind.SC_OVERLAY, 1)
    assert changed.sop_uid(ResultKind.SC_OVERLAY, 2) == INPUT.sop_uid(ResultKind.SC_OVERLAY, 2)


def test_another_patients_header_makes_every_object_another_one() -> None:
    """Those of an image, too: what went under the former name cannot be taken for them."""
    decided = replace(INPUT, patient="f" * 64)
    for kind in ResultKind:
        assert decided.sop_uid(kind) != INPUT.sop_uid(kind)
        assert decided.series_uid(kind) != INPUT.series_uid(kind)


def test_the_same_moment_told_by_another_clock_is_the_same_set() -> None:
    other = NOON.astimezone(timezone(timedelta(hours=2)))
    assert replace(INPUT, images=tuple(replace(one, received_at=other) for one in INPUT.images)).digest == INPUT.digest


def test_a_late_image_leaves_the_overlays_of_the_others_as_they_are_and_makes_a_new_summary() -> None:
    late = replace(IMAGE, number=3, sha256="e" * 64, analysed_at=NOON + timedelta(hours=1))
    after = replace(INPUT, images=(*INPUT.images, late), replaces=CHANGES["replaces"])
    for kind in OF_AN_IMAGE:
        assert after.series_uid(kind) == INPUT.series_uid(kind)
        assert [after.sop_uid(kind, n) for n in (1, 2)] == [INPUT.sop_uid(kind, n) for n in (1, 2)]
        assert after.sop_uid(kind, 3) != after.sop_uid(kind, 2)
        newer = replace(late, findings=(replace(FINDING, bundle="newer"),))
        mixed = replace(after, images=(*INPUT.images, newer), models=(MODEL, replace(MODEL, name="newer")))
        assert mixed.sop_uid(kind, 1) == INPUT.sop_uid(kind, 1)
        assert mixed.series_uid(kind, 3) != mixed.series_uid(kind, 1)  # a series has one software version
    for kind in set(ResultKind) - OF_AN_IMAGE:
        assert after.series_uid(kind) != INPUT.series_uid(kind)
        assert after.sop_uid(kind) != INPUT.sop_uid(kind)
    assert after.made_at == NOON + timedelta(hours=1)


def test_no_two_objects_or_series_share_a_uid() -> None:
    uids = [INPUT.series_uid(kind) for kind in ResultKind]
    uids += [INPUT.sop_uid(kind, number) for kind in ResultKind for number in ((1, 2) if kind in OF_AN_IMAGE else (1,))]
    assert len(set(uids)) == len(uids)
    assert all(len(uid) <= 64 and uid.startswith("2.25.") for uid in uids)


def test_uids_stay_what_they_were() -> None:
    """Another UID for the same inputs doubles every result in every archive: count LAYOUT up, and say so here."""
    assert INPUT.sop_uid(ResultKind.SR_STATEMENTS) == "2.25.203647671868608266048588820211162122084"


def test_the_newest_input_dates_the_set() -> None:
    assert INPUT.made_at == NOON
    later = NOON + timedelta(minutes=5)
    assert replace(INPUT, reader=ReaderStatement(later)).made_at == later
    waits = replace(IMAGE, findings=(), analysed_at=None, received_at=later, error_reason=Reason.NO_PIXEL_DATA)
    assert replace(INPUT, images=(waits,)).made_at == later


def test_an_unread_image_is_counted_and_keeps_the_study_from_being_negative() -> None:
    negative = replace(IMAGE, findings=(replace(FINDING, assessment=Assessment.NEGATIVE, score=1.0),))
    broken = replace(IMAGE, number=2, findings=(), error_reason=Reason.NO_PIXEL_DATA)
    told = replace(INPUT, images=(negative, broken))
    assert told.unread == 1
    assert told.summary is not None
    assert told.summary.assessment is Assessment.ABSTAINED
    assert replace(told, images=(broken,)).summary is None


def test_each_kind_has_a_series_number_of_its_own() -> None:
    assert set(SERIES_NUMBERS) == set(ResultKind)
    assert len(set(SERIES_NUMBERS.values())) == len(ResultKind)
    assert min(SERIES_NUMBERS.values()) >= 9000
    assert DOCUMENTS == set(IN_PLACE_OF) | set(IN_PLACE_OF.values())
