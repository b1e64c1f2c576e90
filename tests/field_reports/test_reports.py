"""What must happen to each file that was built after a public report."""

import io
import re
from pathlib import Path

import numpy as np
import pytest

from shared.dicom.header import read_header
from shared.dicom.image import ImageLimits
from shared.domain.study import StoredOnly
from shared.pixels.decode import display, open_pixels
from tests.field_reports.reports import REPORTS, Report


def check(report: Report) -> None:
    """Raises what intake or decoder raise, and AssertionError where they read something else."""
    header = read_header(io.BytesIO(report.content), len(report.content), ImageLimits())
    source = open_pixels(report.content)
    if report.stored is not None:
        assert source.frames == len(report.stored)
        for number, expected in enumerate(report.stored):
            stored = source.stored(number).astype(np.int64)
            assert np.abs(stored - expected).max() <= report.near, f"frame {number + 1} has other values"
    if report.frame is not None:
        np.testing.assert_array_equal(source.frame(0), report.frame)
    shown = display(source, 0)
    if report.shown is not None:
        assert np.abs(shown.astype(int) - report.shown).max() <= 1, "the preview is another"
    if report.spans:
        assert (shown.min(), shown.max()) == (0, 255)
    if report.spacing != "any":
        assert source.spacing == report.spacing
    if report.name is not None:
        assert header.identity.patient_name == report.name


@pytest.mark.parametrize("source", REPORTS)
def test_report(source: str) -> None:
    """Read right, kept as colour, or rejected when it is sent, in words that name the tag; intake and decoder agree."""
    report = REPORTS[source]()
    if report.rejected is None:
        check(report)
        return
    if report.kept:
        assert read_header(io.BytesIO(report.content), len(report.content), ImageLimits()).kept is StoredOnly.COLOUR
        with pytest.raises(report.rejected, match=report.words):
            open_pixels(report.content).frame(0)
        return
    for read in (
        lambda: read_header(io.BytesIO(report.content), len(report.content), ImageLimits()),
        lambda: [frame.image for frame in open_pixels(report.content)],
    ):
        if report.words == "SOPClassUID" and "open_pixels" in read.__code__.co_names:
            continue  # the decoder does not look at it
        with pytest.raises(report.rejected, match=report.words):
            read()


def test_every_report_is_listed() -> None:
    """README.md has a line for each report, and none for another."""
    listed = re.findall(
        r"^\| ([\w.-]+/[\w.-]+#\d+(?: \(comment\))?) \|",
        Path(__file__).with_name("README.md").read_text(),
        re.MULTILINE,
    )
    assert sorted(listed) == sorted(REPORTS)
