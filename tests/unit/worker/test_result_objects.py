"""Objects that leave: whose they are, that the same inputs are the same bytes, and what structured reports say."""

import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.charset import encode_string
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage

from samples.objects import SYNTAX, pattern_image, to_bytes
from shared.dicom.header import read_header
from shared.dicom.image import ImageLimits
from shared.domain.device import device_uid
from shared.domain.feedback import ReadersAssessment
from shared.domain.findings import AbstentionReason, Assessment, ExposedField
from shared.domain.results import (
    DOCUMENTS,
    IN_PLACE_OF,
    OF_AN_IMAGE,
    ReaderStatement,
    Replaced,
    ResultKind,
    SiteStatement,
    object_uid,
)
from shared.domain.study import StoredOnly
from shared.errors import Reason
from tests.results import MODEL, NOON, MadeUpStudy, found, pattern_study, read_back, spots, study_of
from worker.results import concepts
from worker.results.plain import plain
from worker.results.source import COPIED, REQUIRED

A = Assessment
SR = sorted(DOCUMENTS)


def items(node: Dataset) -> Iterator[Dataset]:
    for item in node.get("ContentSequence", ()):
        yield item
        yield from items(item)


def named(node: Dataset, code: Any) -> list[Dataset]:
    """Content items whose concept this is, at any depth."""
    return [
        item
        for item in items(node)
        if item.get("ConceptNameCodeSequence") and _code(item.ConceptNameCodeSequence) == code.value
    ]


def _code(sequence: Any) -> str:
    return str(sequence[0].CodeValue)


def values(node: Dataset, code: Any) -> list[str]:
    return [_code(item.ConceptCodeSequence) for item in named(node, code) if item.ValueType == "CODE"]


def comments(node: Dataset) -> str:
    return " | ".join(item.TextValue for item in named(node, concepts.COMMENT))


def groups(document: Dataset) -> list[Dataset]:
    return [
        item
        for item in items(document)
        if item.ValueType == "CONTAINER" and _code(item.ConceptNameCodeSequence) == "125007"
    ]


# -- all objects


def test_the_same_inputs_are_the_same_bytes_whenever_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    study = pattern_study(A.POSITIVE, A.ABSTAINED)
    first = study.build()
    assert len(first) >= 4

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Later":
            return cls(2031, 1, 2, 3, 4, 5, tzinfo=tz)

    for module in ("highdicom.base", "highdicom.sr.sop"):
        monkeypatch.setattr(f"{module}.datetime.datetime", Later, raising=False)
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    assert [one.content for one in study.build()] == [one.content for one in first]
    uids = [one.sop_instance_uid for one in first]
    assert len(set(uids)) == len(uids)
    for one in first:
        assert one.sop_instance_uid == study.told.sop_uid(one.kind, one.number)
        assert one.series_instance_uid == study.told.series_uid(one.kind, one.number)


def test_every_object_is_known_as_our_own_when_it_comes_back() -> None:
    for one in pattern_study(A.POSITIVE, A.NEGATIVE).build():
        header = read_header(io.BytesIO(one.content), len(one.content), ImageLimits())
        assert header.kept is StoredOnly.OWN_RESULT
        assert device_uid(MODEL.sha256).encode() in one.content


def test_an_object_of_no_model_is_known_as_our_own_too() -> None:
    study = study_of([pattern_image(1, "results/0")], [[]], models=())
    broken = replace(study.told.images[0], error_reason=Reason.UNDECODABLE_PIXELS)
    made = MadeUpStudy(replace(study.told, images=(broken,)), study.store).build()
    assert made
    for one in made:
        assert read_header(io.BytesIO(one.content), len(one.content), ImageLimits()).kept is StoredOnly.OWN_RESULT


def test_series_say_research_use_and_come_last() -> None:
    study = pattern_study(A.POSITIVE, A.POSITIVE)
    by_series: dict[str, list[Dataset]] = {}
    for one in study.build():
        made = read_back(one)
        by_series.setdefault(one.series_instance_uid, []).append(made)
        assert made.SeriesDescription.startswith("AI Osteon fracture - research use")
        assert len(made.SeriesDescription) <= 64
        assert made.SeriesDescription.isascii()
        assert made.SeriesNumber >= 9000
        assert made.StudyInstanceUID == study.told.study_instance_uid
        assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID == one.sop_instance_uid
        assert made.SOPClassUID == one.sop_class_uid
        (equipment,) = made.ContributingEquipmentSequence
        assert _code(equipment.PurposeOfReferenceCodeSequence) == "109102"
        assert equipment.DeviceUID == device_uid(MODEL.sha256)
    for several in by_series.values():
        for keyword in (
            "SoftwareVersions",
            "SeriesNumber",
            "SeriesDescription",
            "Modality",
            "Manufacturer",
            "SeriesDate",
        ):
            assert len({str(made.get(keyword)) for made in several}) == 1


# -- the source's patient and study

CHARACTER_SETS = {  # as (0008,0005) has them, and names that they hold
    "ISO_IR 100": ["Äneas^Rüdiger", "Buc^Jérôme", "Ångström^Ø"],
    "ISO_IR 192": ["Wang^XiaoDong=王^小东=", "Äneas^Rüdiger", "Ωmega^Ξenia"],
    "\\ISO 2022 IR 87": ["Yamada^Tarou=山田^太郎=やまだ^たろう"],
    "": ["Sample^Ada"],
}


@given(
    st.sampled_from([(charset, name) for charset, names in CHARACTER_SETS.items() for name in names]),
    st.sets(st.sampled_from(REQUIRED)),
    st.sampled_from(["explicit", "implicit", "deflated"]),
)
@settings(max_examples=25, deadline=None)
def test_patient_and_study_are_the_sources_byte_for_byte(
    which: tuple[str, str], missing: set[str], syntax: str
) -> None:
    charset, name = which
    image = pattern_image(1, "results/charset")
    image.SpecificCharacterSet = charset.split("\\") if charset else None
    encodings = {
        "ISO_IR 100": ["latin_1"],
        "ISO_IR 192": ["utf8"],
        "\\ISO 2022 IR 87": ["iso8859", "iso2022_jp"],
        "": ["iso8859"],
    }
    image.PatientName, image.StudyDescription, image.IssuerOfPatientID = name, name.split("^", maxsplit=1)[0], "NORTH"
    for keyword in missing:
        delattr(image, keyword)
    content = to_bytes(image, SYNTAX[syntax])
    source = dcmread(io.BytesIO(content))
    for one in study_of([content], [[found()]]).build(ResultKind.SR_STATEMENTS, ResultKind.SC_OVERLAY):
        made = read_back(one)
        for keyword in COPIED:
            if keyword in source:
                assert made[keyword].value == source[keyword].value
            else:
                assert keyword not in made or (keyword in REQUIRED and not made[keyword].value)
        if "PatientName" not in missing:
            raw = b"".join(encode_string(part, encodings[charset]) for part in [name]) if "=" not in name else b""
            assert raw in one.content
        assert made.IssuerOfPatientID == "NORTH"


def test_bytes_that_fit_no_character_set_are_passed_on_as_they_are() -> None:
    image = pattern_image(1, "results/bytes")
    image.PatientName = "XXXX^Ada"
    content = to_bytes(image, SYNTAX["explicit"]).replace(b"XXXX^Ada", b"\xe9\x80\xff\x1b^Ada")
    for one in study_of([content], [[found()]]).build():
        assert b"\xe9\x80\xff\x1b^Ada" in one.content


def test_dates_are_by_the_clock_of_the_source() -> None:
    """(0008,0201) is about every date of an object: it is the source's or not there, and ours are of the same clock."""
    plain_image, offset = pattern_image(1, "results/zone"), pattern_image(1, "results/offset")
    offset.TimezoneOffsetFromUTC = "-0330"
    made = study_of([plain_image], [[found()]]).one(ResultKind.SR_STATEMENTS)
    assert "TimezoneOffsetFromUTC" not in made
    assert (made.ContentDate, made.ContentTime) == ("20261130", "130000")  # Berlin
    made = study_of([offset], [[found()]]).one(ResultKind.SR_STATEMENTS)
    assert made.TimezoneOffsetFromUTC == "-0330"
    assert made.ContentTime == "083000"


@given(st.text(max_size=200), st.integers(1, 64))
def test_words_of_ours_fit_every_character_set(text: str, longest: int) -> None:
    made = plain(text, longest)
    assert made.isascii()
    assert made.isprintable()
    assert not set("\\~") & set(made)
    assert len(made) <= longest
    assert plain(made, longest) == made


def test_letters_with_marks_become_letters() -> None:
    assert (
        plain("Städtisches Krankenhaus Köln \N{EN DASH} Süd · Ærø ≥ 3\n")
        == "Stadtisches Krankenhaus Koln - Sud - Aero >= 3"
    )
    assert plain("病院 A") == "A"


def test_names_of_ours_are_plain_whatever_site_and_model_are_called() -> None:
    model = replace(MODEL, title="Brüche \N{EM DASH} ½")
    study = pattern_study(A.POSITIVE, site=SiteStatement("Köln-Süd \\ 病院", probability=True), models=(model,))
    for one in study.build():
        made = read_back(one)
        assert made.DeviceSerialNumber == "Koln-Sud /"


# -- structured reports


@pytest.mark.parametrize(
    ("assessment", "presence", "detections"),
    [
        (A.POSITIVE, ["52101004"], "111222"),
        (A.UNCLEAR, ["373068000"], "111222"),
        (A.NEGATIVE, ["272519000"], "111222"),
        (A.ABSTAINED, [], "111225"),
    ],
)
def test_a_statement_says_the_assessment_by_code(assessment: Assessment, presence: list[str], detections: str) -> None:
    images = [pattern_image(1, "results/code")]
    why = AbstentionReason.BODY_PART if assessment is A.ABSTAINED else None
    finding = found(assessment, abstention=why, abstention_detail="SKULL" if why else "")
    made = study_of(images, [[finding]]).one(ResultKind.SR_STATEMENTS)
    (group,) = groups(made)
    assert values(group, concepts.FRACTURE) == presence
    assert values(group, concepts.DETECTIONS) == [detections]
    assert ("body part SKULL" in comments(group)) == (assessment is A.ABSTAINED)
    (source,) = [item for item in items(group) if item.ValueType == "IMAGE"]
    assert source.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == images[0].SOPInstanceUID
    assert not named(made, concepts.CERTAINTY)
    assert "Research use only - not for clinical decisions" in comments(made)


READ, UNREAD, WAITING = "read", "unread", "waiting"


@pytest.mark.parametrize(
    ("images", "code"),
    [
        ((A.NEGATIVE, A.NEGATIVE), "111241"),
        ((A.NEGATIVE, A.POSITIVE), "111242"),
        ((A.UNCLEAR,), "111242"),
        ((A.NEGATIVE, A.ABSTAINED), "111243"),
        ((A.NEGATIVE, UNREAD), "111243"),
        ((A.NEGATIVE, WAITING), "111243"),
        ((A.POSITIVE, A.ABSTAINED), "111244"),
        ((A.POSITIVE, UNREAD), "111244"),
        ((A.ABSTAINED, A.ABSTAINED), "111245"),
        ((A.ABSTAINED, UNREAD), "111245"),
        ((UNREAD,), "111245"),
    ],
)
def test_the_study_says_by_code_whether_all_images_were_assessed(images: tuple[Any, ...], code: str) -> None:
    """PS3.16 CID 6047."""
    findings = [[found(one)] if isinstance(one, Assessment) else [] for one in images]
    study = study_of([pattern_image(1, f"results/{n}") for n in range(len(images))], findings)
    statements = tuple(
        replace(image, error_reason=Reason.UNDECODABLE_PIXELS) if images[image.number - 1] == UNREAD else image
        for image in study.told.images
    )
    made = MadeUpStudy(replace(study.told, images=statements), study.store).one(ResultKind.SR_STATEMENTS)
    assert values(made, concepts.SUMMARY) == [code]
    for group, one in zip(groups(made), images, strict=True):
        if one == UNREAD:
            assert values(group, concepts.DETECTIONS) == ["111224"]
            assert "could not be read (undecodable-pixels)" in comments(group)
        if one == WAITING:
            assert values(group, concepts.DETECTIONS) == ["111225"]
    assert made.CompletionFlag == ("PARTIAL" if WAITING in images else "COMPLETE")
    assert (made.PreliminaryFlag, made.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")


def test_outlines_are_closed_lines_on_the_stored_pixels() -> None:
    image = pattern_image(1, "results/field")
    field = ExposedField(128, 128, 10, 20, 100, 80)
    made = study_of([image], [[found(field=field)]]).one(ResultKind.SR_OUTLINES)
    (group,) = groups(made)
    (region,) = [item for item in items(group) if item.ValueType == "SCOORD"]
    points = list(zip(region.GraphicData[::2], region.GraphicData[1::2], strict=True))
    assert region.GraphicType == "POLYLINE"
    assert points[0] == points[-1]
    assert all(20 <= x <= 100 and 10 <= y <= 110 for x, y in points)
    # the spot is in row 5, column 6 of 14 cells; the field is centred in a square of its longer side
    middle = sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
    assert middle == pytest.approx((20 - 10 + 6.5 / 14 * 100, 10 + 5.5 / 14 * 100), abs=1)
    (source,) = region.ContentSequence
    assert source.RelationshipType == "SELECTED FROM"
    assert source.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert values(group, concepts.FRACTURE) == ["52101004"]
    assert not named(made, concepts.EVALUATIONS)


def test_a_line_around_a_stronger_one_is_left_out_and_a_line_alone_is_undetermined() -> None:
    two = found(heatmap=spots((3, 3, 1.0, 0.8), (10, 10, 0.35, 0.8)), fracture_probability=0.7)
    made = study_of([pattern_image(1, "results/two")], [[two]]).one(ResultKind.SR_OUTLINES)
    assert sorted(values(made, concepts.FRACTURE)) == ["373068000", "52101004"]


def test_there_is_no_document_of_outlines_where_nothing_is_outlined() -> None:
    made = pattern_study(A.NEGATIVE, A.ABSTAINED).build(*SR)
    assert {one.kind for one in made} == {ResultKind.SR_STATEMENTS, ResultKind.SR_STATEMENTS_2D}


def test_frames_are_named_where_there_are_several() -> None:
    image = pattern_image(1, "results/frames")
    image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.2"
    image.NumberOfFrames, image.PixelData = 2, image.PixelData * 2
    study = study_of([image], [[found(frame=2), found(A.NEGATIVE, frame=1)]])
    made = study.one(ResultKind.SR_OUTLINES)
    (region,) = [item for item in items(made) if item.ValueType == "SCOORD"]
    assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedFrameNumber == 2
    statements = groups(study.one(ResultKind.SR_STATEMENTS))
    assert [values(group, concepts.FRACTURE) for group in statements] == [["272519000"], ["52101004"]]


def test_the_probability_is_stated_where_the_site_asks() -> None:
    study = pattern_study(A.POSITIVE, site=SiteStatement("North", probability=True))
    for kind in (ResultKind.SR_OUTLINES, ResultKind.SR_STATEMENTS):
        (certainty,) = named(study.one(kind), concepts.CERTAINTY)
        assert certainty.MeasuredValueSequence[0].NumericValue == 80
    silent = pattern_study(A.POSITIVE).one(ResultKind.SR_OUTLINES)
    assert not named(silent, concepts.CERTAINTY)


def test_the_same_as_comprehensive_sr_has_uids_of_its_own() -> None:
    study = pattern_study(A.POSITIVE)
    for kind, other in IN_PLACE_OF.items():
        one, two = study.one(kind), study.one(other)
        assert (one.SOPClassUID, two.SOPClassUID) == (Comprehensive3DSRStorage, ComprehensiveSRStorage)
        assert one.SOPInstanceUID != two.SOPInstanceUID
        assert one.SeriesInstanceUID != two.SeriesInstanceUID
        assert one.ContentSequence == two.ContentSequence


def test_documents_name_their_predecessors() -> None:
    kinds = (ResultKind.SR_OUTLINES, ResultKind.SR_STATEMENTS, ResultKind.PDF)
    earlier = Replaced("c" * 64, NOON - timedelta(hours=1), kinds)

    def named_by(study: MadeUpStudy, kind: ResultKind) -> list[str]:
        sequence = study.one(kind).get("PredecessorDocumentsSequence", ())
        return [
            str(one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
            for item in sequence
            for one in item.ReferencedSeriesSequence
        ]

    study = pattern_study(A.POSITIVE, replaces=earlier)
    assert named_by(study, ResultKind.SR_OUTLINES) == [object_uid("c" * 64, ResultKind.SR_OUTLINES, 1)]
    assert named_by(study, ResultKind.SR_STATEMENTS) == [object_uid("c" * 64, ResultKind.SR_STATEMENTS, 1)]
    assert named_by(study, ResultKind.SR_STATEMENTS_2D) == []  # there was none before
    # nothing is outlined any more: the statements replace the outlines too
    negative = pattern_study(A.NEGATIVE, replaces=earlier)
    assert len(named_by(negative, ResultKind.SR_STATEMENTS)) == 2
    assert named_by(pattern_study(A.POSITIVE), ResultKind.SR_STATEMENTS) == []


def test_an_outline_keeps_its_tracking_uid_in_later_documents() -> None:
    study = pattern_study(A.POSITIVE)
    later = MadeUpStudy(
        replace(study.told, reader=ReaderStatement(NOON, ReadersAssessment.FRACTURE, "hand")), study.store
    )
    uids = [
        [item.UID for item in items(one.one(ResultKind.SR_OUTLINES)) if item.ValueType == "UIDREF"]
        for one in (study, later)
    ]
    assert uids[0] == uids[1]
    assert "The readers' word: fracture, hand" in comments(later.one(ResultKind.SR_STATEMENTS))


def test_an_image_without_a_series_is_named_all_the_same() -> None:
    image = pattern_image(1, "results/series")
    del image.SeriesInstanceUID
    made = study_of([image], [[found()]]).one(ResultKind.SR_STATEMENTS)
    (study,) = made.CurrentRequestedProcedureEvidenceSequence
    assert study.ReferencedSeriesSequence[0].SeriesInstanceUID.startswith("2.25.")


def test_every_image_that_was_received_is_in_the_library_and_the_evidence() -> None:
    study = pattern_study(A.POSITIVE, A.ABSTAINED, A.NEGATIVE)
    for kind in SR:
        made = study.one(kind)
        library = [item for item in made.ContentSequence if _code(item.ConceptNameCodeSequence) == "111028"]
        assert len([item for item in items(library[0]) if item.ValueType == "IMAGE"]) == 3
        evidence = made.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        assert sum(len(series.ReferencedSOPSequence) for series in evidence) == 3


def test_what_is_copied_is_all_of_the_modules_of_patient_and_study() -> None:
    from highdicom._standard_utils import get_module_attribute_map

    modules = ("patient", "clinical-trial-subject", "general-study", "patient-study", "clinical-trial-study")
    standard = get_module_attribute_map()
    keywords = {one["keyword"] for name in modules for one in standard[name] if not one["path"]}
    assert keywords - {"StudyInstanceUID"} <= set(COPIED)


def test_kinds_of_one_image_and_kinds_of_the_study_are_numbered_so() -> None:
    study = pattern_study(A.POSITIVE, A.NEGATIVE)
    for one in study.build():
        assert one.number == 1 or one.kind in OF_AN_IMAGE
