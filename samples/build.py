"""Build the sample studies: `python -m samples.build --fracatlas DIR --dicom DIR`.

The same inputs and codec versions give the same bytes: nothing depends on the clock or on chance.
"""

import argparse
import csv
import io
import shutil
import zipfile
from pathlib import Path

from pydicom import dcmread

from samples.objects import SYNTAX, Shot, image, pattern_image, report, to_bytes, uid
from training.datasets import REGIONS, fracatlas, split

HERE = Path(__file__).parent
SPLIT_SEED = 7  # of the shipped models' split: only radiographs that they were not trained on are shown

# One line a study: region, body part, then its images as
#   source numbers (joined by + for frames) : view : side : SOP class : encoding [: 12 bits | inverted | signed]
# A side is given only where a marker or the mediastinum shows it. Views AP and PA are frontal radiographs.
STUDIES = """
hand HAND 1025:PA::CR:jpegls 1026:lateral::CR:jpeg2000
hand HAND 1544:PA::CR:explicit 1545:lateral::CR:jpegls
hand HAND 2355:PA:R:DX:jpeg2000:12
hand HAND 3103:PA::CR:jpegls:inverted 3104:lateral::CR:jpegls:inverted
hand HAND 406:PA::CR:jpegsv1 407:lateral::CR:jpegsv1 408:oblique::CR:jpegsv1
hand HAND 252:PA:L:DX:jpegls
hand HAND 388:PA::CR:jpeg
elbow ELBOW 762:AP::CR:jpegls 763:lateral::CR:rle
elbow ELBOW 2831:AP::CR:deflated:12
elbow ELBOW 3770:AP::CR:jpeg 3771:lateral::CR:jpeg
elbow ELBOW 485:lateral::CR:jpeg2000:inverted
elbow ELBOW 576:AP::CR:jpegls 577:lateral::CR:jpegls
elbow ELBOW 571:AP::CR:deflated:signed
shoulder SHOULDER 3201:AP:L:CR:jpeg2000
shoulder SHOULDER 100:AP:R:DX:jpegls
shoulder SHOULDER 764:AP:R:DX:jpegsv1:12
shoulder SHOULDER 1046:AP:L:CR:jpegls
hip HIP 2338:AP:R:DX:jpeg2000
hip PELVIS 399:AP:U:DX:jpegls:inverted
hip PELVIS 1035:AP::CR:implicit
leg LEG 3182:AP::CR:jpegls 3183:oblique::CR:jpegsv1
leg KNEE 118:AP:R:DX:jpeg 119:lateral::CR:jpeg2000
leg FOOT 103:AP:R:CR:rle
leg FOOT 3625+3626:oblique::MF:jpegls
"""
# real radiographs, copied byte for byte: file, name here, region
REAL = (("RG3_J2KI.dcm", "tibia", "leg"), ("RG2_JLSN.dcm", "hip", "hip"))

Row = dict[str, str]


def studies(root: Path) -> list[tuple[str, list[Shot]]]:
    """The table, each study with its region. Raises ValueError for a radiograph that must not be shown."""
    held_out = {
        radiograph.path.stem: radiograph
        for radiograph in split(fracatlas(root), SPLIT_SEED)[1]
        if not radiograph.hardware
    }
    found = []
    for line in STUDIES.strip().splitlines():
        region, part, *entries = line.split()
        shots = []
        for entry in entries:
            numbers, view, side, kind, encoding, option = [*entry.split(":"), ""][:6]
            names = [f"IMG{int(number):07}" for number in numbers.split("+")]
            if wrong := [n for n in names if n not in held_out or REGIONS[held_out[n].region] != region]:
                raise ValueError(f"{wrong}: not a validation radiograph of the {region} without hardware")
            shots.append(Shot([held_out[n] for n in names], part, view, side, kind, encoding, option))
        found.append((region, shots))
    return found


def broken() -> list[tuple[str, str, str, bytes]]:
    """(file, study UID or empty, reason or empty if it is taken in, bytes)."""
    explicit = SYNTAX["explicit"]
    made = []

    def add(study: int, name: str, reason: str, data: bytes) -> None:
        made.append((name, uid(str(study)) if study else "", reason, data))

    add(0, "text.dcm", "not-dicom", b"This is a plain text file with the wrong ending.\n" * 8)
    add(0, "empty.dcm", "empty-file", b"")
    whole = to_bytes(pattern_image(901, "header"), explicit)
    # inside the study date: the data element says 8 bytes, the file holds 3
    add(0, "truncated-header.dcm", "cannot-understand", whole[: whole.index(b"DA\x08\x00") + 7])
    whole = to_bytes(pattern_image(902, "pixels"), explicit)
    add(902, "truncated-pixels.dcm", "truncated-pixels", whole[: len(whole) * 6 // 10])
    ds = pattern_image(903, "none")
    del ds.PixelData
    add(903, "no-pixel-data.dcm", "no-pixel-data", to_bytes(ds, explicit))
    ds = pattern_image(904, "huge")
    ds.Rows = ds.Columns = 60000
    add(904, "claims-60000x60000.dcm", "too-large", to_bytes(ds, explicit))
    ds = pattern_image(908, "class")
    ds.SOPClassUID = uid("class")
    add(908, "unknown-sop-class.dcm", "sop-class-not-supported", to_bytes(ds, explicit))
    add(906, "unknown-transfer-syntax.dcm", "unknown-transfer-syntax", to_bytes(pattern_image(906, "x"), uid("syntax")))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        info = zipfile.ZipInfo("../../evil.dcm", (2026, 1, 1, 0, 0, 0))
        info.compress_type = zipfile.ZIP_DEFLATED
        members.writestr(info, to_bytes(pattern_image(907, "zip"), explicit))
    # the member itself is sound, but a name that points outside its archive is refused
    add(907, "path-trick.zip", "bad-archive", archive.getvalue())
    return made


def kept() -> list[tuple[str, str, str, bytes]]:
    """(file, study UID, why it is not analysed, bytes) of objects that are stored and not analysed."""
    return [("report.dcm", uid("905"), "not-an-image", to_bytes(report(905), SYNTAX["explicit"]))]


def build(fracatlas_dir: Path, dicom_dir: Path, out: Path) -> list[Row]:
    """Write studies/, broken/, kept/ and expected.csv under `out`; returns the rows of expected.csv."""
    rows: list[Row] = []

    def put(
        path: str,
        data: bytes,
        study: str,
        reason: str,
        source: str,
        fractured: str,
        region: str,
        outcome: str = "stored",
    ) -> None:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(data)
        rows.append({
            "file": path, "study_instance_uid": study, "outcome": outcome,
            "reason": reason, "source": source, "fractured": fractured, "region": region,
        })  # fmt: skip

    for folder in ("studies", "broken", "kept"):
        shutil.rmtree(out / folder, ignore_errors=True)
    ours = studies(fracatlas_dir)
    for number, (region, shots) in enumerate(ours, start=1):
        series = list(dict.fromkeys(shot.series for shot in shots))
        for place, shot in enumerate(shots, start=1):
            ds = image(number, shot)
            ds.SeriesNumber = 1 + series.index(shot.series)
            names = "+".join(radiograph.path.stem for radiograph in shot.radiographs)
            path = f"studies/{number:02}-{region}/{place}-{shot.view.lower()}.dcm"
            fractured = str(max(radiograph.fractured for radiograph in shot.radiographs))
            put(path, to_bytes(ds, SYNTAX[shot.encoding]), ds.StudyInstanceUID, "", names, fractured, region)
    for number, (file, name, region) in enumerate(REAL, start=len(ours) + 1):
        data = (dicom_dir / "files" / file).read_bytes()
        study = str(dcmread(io.BytesIO(data), stop_before_pixels=True).StudyInstanceUID)
        put(f"studies/{number:02}-real-{name}/{file}", data, study, "", file, "", region)
    for file, study, reason, data in broken():
        put(f"broken/{file}", data, study, reason, "made by samples.build", "", "", "rejected")
    for file, study, reason, data in kept():
        put(f"kept/{file}", data, study, reason, "made by samples.build", "", "", "kept")
    with (out / "expected.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m samples.build", description="Build the sample studies.")
    parser.add_argument("--fracatlas", type=Path, required=True, help="folder with FracAtlas' labels.csv and images/")
    parser.add_argument("--dicom", type=Path, required=True, help="folder of the DICOM samples, with files/")
    parser.add_argument("--out", type=Path, default=HERE, help="where to write; default: this folder")
    given = parser.parse_args()
    rows = build(given.fracatlas, given.dicom, given.out)
    print(f"{len(rows)} files, {sum((given.out / row['file']).stat().st_size for row in rows)} bytes")


if __name__ == "__main__":
    main()
