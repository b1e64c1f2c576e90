"""Secondary Captures, the encapsulated PDF and presentation states: pixels, geometry, words."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import SecretStr
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from samples.objects import pattern_image, set_pixels
from shared.domain.findings import AbstentionReason, Assessment, ExposedField
from shared.domain.results import CaptureModality, Replaced, ResultKind, SiteStatement
from shared.errors import Reason, TooLarge
from shared.settings import Settings
from shared.storage import open_store, original_key
from tests.results import NOON, MadeUpStudy, found, pattern_study, read_back, spots, study_of
from worker.results.captures import MAX_SIDE
from worker.results.drawing import BAND, LINE, NARROWEST, strip
from worker.results.main import Builder
from worker.results.outlines import Level, Outline, find_outlines
from worker.results.words import LEGEND, RESEARCH, images_words

A = Assessment
NOTHING = spots()


def picture(made: Dataset) -> npt.NDArray[np.uint8]:
    return np.frombuffer(made.PixelData, np.uint8)[: made.Rows * made.Columns * 3].reshape(made.Rows, made.Columns, 3)


def square(side: int, name: str = "square", **more: Any) -> Dataset:
    image = pattern_image(1, f"results/{name}")
    set_pixels(image, [np.full((side, side), 100, np.uint8)], 8, "explicit")
    for keyword, value in more.items():
        setattr(image, keyword, value)
    return image


def overlay_of(image: Dataset, **more: Any) -> Dataset:
    return study_of([image], [[found(**more)]]).one(ResultKind.SC_OVERLAY)


def test_an_overlay_has_the_radiographs_pixels_and_words_below_it() -> None:
    image = pattern_image(1, "results/pixels")
    made = overlay_of(image, assessment=A.NEGATIVE, heatmap=NOTHING)
    assert made.SOPClassUID == SecondaryCaptureImageStorage
    assert (made.Columns, made.PhotometricInterpretation, made.BurnedInAnnotation) == (NARROWEST, "RGB", "YES")
    assert (made.ConversionType, made.Modality, list(made.ImageType)) == (
        "WSD",
        "OT",
        ["DERIVED", "SECONDARY", "OTHER"],
    )
    seen = picture(made)
    stored = np.frombuffer(image.PixelData, np.uint8).reshape(128, 128).astype(float)
    assert (
        np.abs(seen[:128, :128, 0] - stored * 255 / 255).max() <= 2
    )  # the window of the file shows values as they are
    assert not seen[:128, 128:].any()  # nothing is written beside the anatomy but below it
    assert seen[128:].any()
    assert (seen[-3:, :5] == BAND).all()  # research use, in its band
    assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID


def test_lines_are_drawn_where_the_outlines_are_and_nowhere_else() -> None:
    with_lines, without = (picture(overlay_of(square(512), heatmap=one)) for one in (spots((6.5, 6.5, 1, 1)), NOTHING))
    changed = (with_lines[:512, :512] != without[:512, :512]).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert len(rows)
    assert abs(rows.mean() - 256) < 3
    assert abs(columns.mean() - 256) < 3
    assert not changed[240:272, 240:272].any()  # a line around the place, not over it
    assert (with_lines[:512, :512] == np.array(LINE)).all(axis=2).any()


def test_the_anatomy_of_an_abstention_is_left_alone() -> None:
    why = {"abstention": AbstentionReason.METAL, "score": 5.0}
    seen = picture(overlay_of(square(512), assessment=A.ABSTAINED, **why))
    assert (seen[:512, :512] == seen[0, 0]).all()


@pytest.mark.parametrize(("side", "shown"), [(600, 600), (4096, MAX_SIDE)])
def test_spacing_is_scaled_with_the_picture(side: int, shown: int) -> None:
    made = overlay_of(square(side, PixelSpacing=[0.1, 0.1], PixelSpacingCalibrationType="GEOMETRY"), heatmap=NOTHING)
    assert made.Columns == shown
    assert [float(one) for one in made.PixelSpacing] == pytest.approx([0.1 * side / shown] * 2)
    assert made.PixelSpacingCalibrationType == "GEOMETRY"


@pytest.mark.parametrize("spacing", [None, "", [0, 0.1], [0.1, 0.1, 0.1]])
def test_there_is_no_spacing_where_the_source_has_none(spacing: Any) -> None:
    image = square(64, ImagerPixelSpacing=[0.2, 0.2])
    if spacing is not None:
        image.PixelSpacing = spacing
    assert "PixelSpacing" not in overlay_of(image)


def test_pixels_that_are_not_square_are_shown_true_and_outlines_lie_on_the_stored_ones() -> None:
    image = square(256, PixelAspectRatio=[2, 1])
    field = ExposedField.whole(512, 256)  # in square pixels
    study = study_of([image], [[found(heatmap=spots((6.5, 6.5, 1, 1)), field=field)]])
    seen = picture(study.one(ResultKind.SC_OVERLAY))
    assert (seen[511, 128] == seen[5, 5]).all()  # the image is so high, the strip of words begins below it
    assert not (seen[513:520, :200] != 0).any()
    (graphic,) = [
        one
        for one in study.one(ResultKind.GSPS).GraphicAnnotationSequence[0].GraphicObjectSequence
        if one.LineStyleSequence[0].LineDashingStyle == "SOLID"
    ]
    points = np.array(graphic.GraphicData).reshape(-1, 2)
    wide, high = np.ptp(points, axis=0)
    assert points.mean(axis=0) == pytest.approx([128, 128], abs=2)
    assert wide == pytest.approx(2 * high, rel=0.05)  # the stored pixels are twice as high as wide


@pytest.mark.parametrize(
    ("given", "image_laterality"),
    [
        ({"Laterality": "R"}, "R"),
        ({"ImageLaterality": "L", "Laterality": ""}, "L"),
        ({"Laterality": ""}, None),
        ({}, None),
    ],
)
def test_the_side_is_the_images_own(given: dict[str, str], image_laterality: str | None) -> None:
    image = square(64)
    del image.Laterality
    for keyword, value in given.items():
        setattr(image, keyword, value)
    made = overlay_of(image)
    assert made.get("ImageLaterality") == image_laterality
    assert made.get("Laterality") == (None if image_laterality else "")  # one of both (PS3.3 C.7.3.1)


def test_orientation_and_loss_are_the_sources() -> None:
    image = square(64, PatientOrientation=["R", "F"], LossyImageCompression="01", LossyImageCompressionRatio=13.77)
    made = overlay_of(image)
    assert list(made.PatientOrientation) == ["R", "F"]
    assert (made.LossyImageCompression, made.LossyImageCompressionRatio) == ("01", 13.77)
    assert overlay_of(square(64)).get("LossyImageCompression") is None


@pytest.mark.parametrize("kind", ["MONOCHROME1", "16 bit", "signed"])
def test_bone_is_bright_however_it_is_stored(kind: str) -> None:
    image = pattern_image(1, "results/kinds")
    values = np.tile(np.arange(128, dtype=np.int32) * 2, (128, 1))
    if kind == "MONOCHROME1":
        set_pixels(image, [(255 - values).astype(np.uint8)], 8, "explicit")
        image.PhotometricInterpretation = "MONOCHROME1"
    elif kind == "16 bit":
        set_pixels(image, [(values * 16).astype(np.uint16)], 12, "explicit")
    else:
        set_pixels(image, [(values * 16 - 2048).astype(np.int16)], 16, "explicit")
    del image.WindowCenter, image.WindowWidth
    seen = picture(overlay_of(image, assessment=A.NEGATIVE, heatmap=NOTHING))[:128, :128, 0].astype(int)
    assert seen[64, 120] > seen[64, 60] > seen[64, 8]


def test_of_several_frames_the_gravest_is_shown() -> None:
    image = pattern_image(1, "results/frames")
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    set_pixels(image, [ramp, ramp[:, ::-1]], 8, "explicit")
    image.SOPClassUID, image.NumberOfFrames = "1.2.840.10008.5.1.4.1.1.7.2", 2
    made = study_of([image], [[found(A.NEGATIVE, 1, heatmap=NOTHING), found(A.POSITIVE, 2, heatmap=NOTHING)]]).one(
        ResultKind.SC_OVERLAY
    )
    assert picture(made)[5, 5, 0] == ramp[5, -6]
    assert made.SourceImageSequence[0].ReferencedFrameNumber == 2


def test_an_image_without_a_finding_has_no_overlay_but_a_place_in_the_summary() -> None:
    study = study_of([square(64, "a"), square(64, "b")], [[found()], []])
    broken = replace(study.told.images[1], error_reason=Reason.UNDECODABLE_PIXELS)
    told = replace(study.told, images=(study.told.images[0], broken), expected_images=3)
    made = MadeUpStudy(told, study.store).build(ResultKind.SC_OVERLAY, ResultKind.SC_SUMMARY)
    assert [(one.kind, one.number) for one in made] == [(ResultKind.SC_OVERLAY, 1), (ResultKind.SC_SUMMARY, 1)]
    assert len(read_back(made[1]).SourceImageSequence) == 2
    assert images_words(told) == "1 of 3 images assessed, 1 could not be read, 1 not received"


def test_a_summary_does_not_depend_on_what_else_is_made() -> None:
    study = pattern_study(A.POSITIVE, A.UNCLEAR)
    (alone,) = study.build(ResultKind.SC_SUMMARY)
    assert alone.content == next(one.content for one in study.build() if one.kind is ResultKind.SC_SUMMARY)


def test_the_site_chooses_the_modality_of_captures() -> None:
    study = pattern_study(A.POSITIVE, site=SiteStatement("North", modality=CaptureModality.CR))
    assert [study.one(kind).Modality for kind in (ResultKind.SC_OVERLAY, ResultKind.SC_SUMMARY)] == ["CR", "CR"]
    assert study.one(ResultKind.SR_STATEMENTS).Modality == "SR"


def test_words_are_wrapped_to_the_width() -> None:
    few, many = (strip(NARROWEST, ["A", words], RESEARCH) for words in ("short", LEGEND))
    assert few.shape[1] == many.shape[1] == NARROWEST
    assert many.shape[0] > few.shape[0]


# -- PDF


def pdf_of(made: Dataset) -> bytes:
    content: bytes = made.EncapsulatedDocument[: made.EncapsulatedDocumentLength]
    return content


def test_the_pdf_is_whole_and_names_its_images() -> None:
    earlier = Replaced("c" * 64, NOON, (ResultKind.PDF,))
    study = pattern_study(A.POSITIVE, A.ABSTAINED, replaces=earlier)
    made = study.one(ResultKind.PDF)
    content = pdf_of(made)
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")
    assert (made.MIMETypeOfEncapsulatedDocument, made.Modality) == ("application/pdf", "DOC")
    assert len(made.EncapsulatedDocument) % 2 == 0
    assert len(made.SourceInstanceSequence) == 2


# -- presentation states


def test_a_presentation_state_has_the_outlines_in_pixels_that_count_from_one() -> None:
    image = pattern_image(1, "results/state")
    study = study_of([image], [[found()]])
    made = study.one(ResultKind.GSPS)
    told = study.told
    lines = find_outlines(told.images[0].findings[0], told.models[0], ExposedField.whole(128, 128))
    (annotation,) = made.GraphicAnnotationSequence
    drawn = annotation.GraphicObjectSequence
    assert [len(one.GraphicData) // 2 for one in drawn] == [len(one.line) + 1 for one in lines]
    for graphic, outline in zip(drawn, lines, strict=True):
        points = np.array(graphic.GraphicData).reshape(-1, 2)
        assert np.abs(points[:-1] - 0.5 - outline.line).max() < 1e-3
        assert (points[0] == points[-1]).all()
        dashed = graphic.LineStyleSequence[0].LineDashingStyle
        assert dashed == ("SOLID" if outline.level is Level.SPECIFIC else "DASHED")
    assert annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert "Research use only" in annotation.TextObjectSequence[0].UnformattedTextValue


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")])
def test_an_image_looks_under_its_state_as_it_does_without(photometric: str, shape: str) -> None:
    image = pattern_image(1, "results/looks")
    image.PhotometricInterpretation, image.RescaleSlope, image.RescaleIntercept = photometric, 2, -100
    made = study_of([image], [[found()]]).one(ResultKind.GSPS)
    assert made.PresentationLUTShape == shape
    assert (made.RescaleSlope, made.RescaleIntercept) == (2, -100)
    (window,) = made.SoftcopyVOILUTSequence
    assert (window.WindowCenter, window.WindowWidth) == (128, 256)


def test_images_without_outlines_have_no_state() -> None:
    made = pattern_study(A.NEGATIVE, A.POSITIVE, A.ABSTAINED).build(ResultKind.GSPS)
    assert [one.number for one in made] == [2]


def test_a_hole_is_drawn_and_is_no_finding() -> None:
    ring = Outline(Level.SPECIFIC, np.array([[0.0, 0], [1, 0], [1, 1]]), hole=True)
    from worker.results.structured import choose_outlines

    assert choose_outlines([ring]) == []


def test_objects_are_files() -> None:
    for one in pattern_study(A.POSITIVE).build():
        assert one.content[128:132] == b"DICM"
        assert io.BytesIO(one.content).getbuffer().nbytes % 2 == 0


@pytest.mark.usefixtures("forked_decoders")
@pytest.mark.parametrize(("pixels", "opens"), [(128 * 128, True), (128 * 128 - 1, False)])
def test_the_process_opens_what_its_installation_takes_in(pixels: int, opens: bool, tmp_path: Path) -> None:
    """An installation that allows larger images than most has results of them; one that allows less decodes no more."""
    study = pattern_study(A.POSITIVE)
    settings = Settings(store_url=SecretStr(f"file:{tmp_path}"), max_frame_pixels=pixels)
    for sha256, content in study.store.items():  # its children read them there
        open_store(f"file:{tmp_path}").put(original_key(sha256), io.BytesIO(content), len(content))
    make = Builder(settings)
    try:
        if opens:
            assert len(make(study.told, [ResultKind.SC_OVERLAY], study.store.__getitem__)) == 1
        else:
            with pytest.raises(TooLarge):
                make(study.told, [ResultKind.SC_OVERLAY], study.store.__getitem__)
    finally:
        make.close()
