"""One radiograph, however it is encoded, is one finding: real pixels through the shipped bundle."""

import pytest

from shared.domain.findings import Finding
from shared.model.predictor import Predictor
from shared.pixels.decode import open_pixels
from shared.pixels.radiograph import decode_radiograph
from shared.settings import ROOT, Settings

RADIOGRAPHS = ROOT / "tests/data/dicom/files"
ENCODINGS = ("explicit_le", "implicit_le", "big_endian", "deflated", "rle", "mono2", "signed16", "no_preamble")


def finding(predictor: Predictor, name: str) -> Finding:
    """What the bundle says of the first frame of a file."""
    source = open_pixels((RADIOGRAPHS / name).read_bytes())
    return predictor.finding(
        predictor.predict([decode_radiograph(source, 0).square(predictor.size)])[0], 1, source.modality
    )


@pytest.mark.slow
def test_the_encodings_of_the_tibia_radiograph_give_the_same_finding() -> None:
    """Byte order, compression, sign and photometric interpretation change nothing of what is found, nor of where."""
    predictor = Predictor.for_few_images(Settings().bundle_path.read_bytes())
    findings = [finding(predictor, f"derived_tibia_{encoding}.dcm") for encoding in ENCODINGS]
    assert findings.count(findings[0]) == len(ENCODINGS)
    assert finding(predictor, "RG2_JPLY_fixed.dcm") != findings[0]  # another radiograph is another finding
