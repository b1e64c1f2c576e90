"""One film, however it is encoded, is one finding: real pixels through the shipped bundle."""

from shared.findings import Finding
from shared.settings import ROOT, Settings
from shared.vision.pixels import open_pixels
from shared.vision.radiograph import radiograph
from shared.vision.reader import Reader

FILMS = ROOT / "tests/data/dicom/files"
ENCODINGS = ("explicit_le", "implicit_le", "big_endian", "deflated", "rle", "mono2", "signed16", "no_preamble")


def finding(reader: Reader, name: str) -> Finding:
    """What the bundle says of the first frame of a file."""
    source = open_pixels((FILMS / name).read_bytes())
    return reader.finding(reader.read([radiograph(source, 0).square(reader.size)])[0], 1, source.modality)


def test_the_encodings_of_the_tibia_film_give_the_same_finding() -> None:
    """Byte order, compression, sign and photometric interpretation change nothing of what is found, nor of where."""
    reader = Reader.of_bundle(Settings().bundle_path.read_bytes())
    findings = [finding(reader, f"derived_tibia_{encoding}.dcm") for encoding in ENCODINGS]
    assert findings.count(findings[0]) == len(ENCODINGS)
    assert finding(reader, "RG2_JPLY_fixed.dcm") != findings[0]  # another film is another finding
