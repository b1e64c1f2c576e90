"""Small data sets made of noise and bright bars, each in the layout of a public one, and radiographs as DICOM."""

import csv
import io
import json
from pathlib import Path

import cv2
import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

REGIONS = ("hand", "elbow", "shoulder", "hip", "leg")


def fracatlas_tree(root: Path, blocks: int = 10, radiographs_per_block: int = 4) -> Path:
    """Write labels.csv, polygons.json and images/; every second radiograph is fractured, all regions occur."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(5)
    rows, polygons = [], {}
    for number in range(blocks * radiographs_per_block):
        name = f"IMG{number:07d}.png"
        height, width = (120, 96) if number % 3 else (90, 130)
        image = rng.integers(20, 120, (height, width)).astype(np.uint8)
        fractured = number % 2
        boxes = ""
        if fractured:
            left, top = width // 4, height // 3
            image[top : top + height // 6, left : left + width // 4] = 250
            x0, x1 = left / width, (left + width // 4) / width
            y0, y1 = top / height, (top + height // 6) / height
            polygons[name] = [{"polygon_norm": [[x0, y0, x1, y0, x1, y1, x0, y1]]}]
            boxes = f"{(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}"
        cv2.imwrite(str(root / "images" / name), image)
        rows.append(
            {
                "image_id": name,
                "block": number // radiographs_per_block,
                "fractured": fractured,
                "region": REGIONS[number % 5] if number != 7 else "",
                "hardware": int(number % 11 == 0),
                "orig_width": width,
                "orig_height": height,
                "source_jpeg_truncated": 0,
                "exact_duplicate": 0,
                "boxes_yolo_cx_cy_w_h": boxes,
            }
        )
    write_labels(root, rows)
    (root / "polygons.json").write_text(json.dumps(polygons))
    return root


def read_labels(root: Path) -> list[dict[str, str]]:
    """The rows of labels.csv."""
    with (root / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_labels(root: Path, rows: list[dict[str, object]] | list[dict[str, str]]) -> None:
    """Write these rows as labels.csv."""
    with (root / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def mura_tree(root: Path) -> Path:
    """Write MURA-v1.1/: six studies of four patients, two of them abnormal, with what macOS leaves beside images."""
    studies = {
        "train": [
            "XR_SHOULDER/patient00001/study1_positive",
            "XR_WRIST/patient00001/study1_negative",
            "XR_FINGER/patient00002/study1_negative",
            "XR_FOREARM/patient00002/study2_negative",
        ],
        "valid": ["XR_HUMERUS/patient11185/study1_positive", "XR_HAND/patient11186/study1_negative"],
    }
    home = root / "MURA-v1.1"
    for side, names in studies.items():
        for name in names:
            folder = home / side / name
            folder.mkdir(parents=True)
            for number in (1, 2):
                cv2.imwrite(str(folder / f"image{number}.png"), noise(60, 40 + number))
            (folder / "._image1.png").write_bytes(b"\0\5\x16\7")
        rows = [f"MURA-v1.1/{side}/{name}/,{int('positive' in name)}\n" for name in names]
        (home / f"{side}_labeled_studies.csv").write_text("".join(rows))
    return home


# filestem, patient_id, ao_classification, fracture_visible, metal, lines of its label file
GRAZPEDWRI: tuple[tuple[str, str, str, str, str, list[str] | None], ...] = (
    ("0001_1", "1", "23r-M/3.1; 23u-E/7", "1", "", ["3 0.5 0.25 0.2 0.1", "8 0.9 0.9 0.05 0.05"]),
    ("0001_2", "1", "", "", "1", ["4 0.5 0.5 0.2 0.1", "8 0.9 0.9 0.05 0.05"]),
    ("0002_1", "2", "23r-M/2.1", "1.0", "", []),
    ("0003_1", "3", "", "", "", ["3 0.4 0.4 0.1 0.1"]),
    ("0004_1", "4", "23r-M/2.1", "", "", []),
    ("0005_1", "5", "", "", "", None),
)


def grazpedwri_tree(root: Path) -> Path:
    """Write dataset.csv, images_part1/ and images_part2/ with 16-bit PNG, and folder_structure/ with boxes."""
    labels = root / "folder_structure" / "yolov5" / "labels"
    labels.mkdir(parents=True)
    rows = ["filestem,patient_id,age,ao_classification,cast,fracture_visible,metal\n"]
    for number, (stem, patient, ao, visible, metal, lines) in enumerate(GRAZPEDWRI):
        part = root / f"images_part{1 + number % 2}"
        part.mkdir(exist_ok=True)
        cv2.imwrite(str(part / f"{stem}.png"), noise(80, 50).astype(np.uint16) * 200)
        rows.append(f"{stem},{patient},9.5,{ao},,{visible},{metal}\n")
        if lines is not None:
            (labels / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines))
    (root / "dataset.csv").write_text("".join(rows))
    return root


RADIOGRAPHS_CSV = """\
image,patient,region,fracture,severity,ao,boxes,hardware,weight
a.png,p1,hand,1,moderate,,10 20 40 50; 60 60 80 90,0,2
b.png,p1,Elbow,no,,,,,
sub/c.jpg,p2,,yes,,2R3C2,,1,0.5
d.dcm,p3,hip,,,,,,
e,p1,leg,TRUE,3,,,,
"""


def table_tree(root: Path) -> Path:
    """Write radiographs.csv, and beside it radiographs of 100 x 120 pixels as PNG, JPEG, and DICOM with and without extension."""
    (root / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.jpg"):
        cv2.imwrite(str(root / name), noise(120, 100))
    for name in ("d.dcm", "e"):
        (root / name).write_bytes(dicom_of(noise(120, 100)))
    (root / "radiographs.csv").write_text(RADIOGRAPHS_CSV)
    return root


def noise(height: int, width: int) -> np.ndarray:
    """A radiograph that shows nothing: (height, width) uint8."""
    return np.random.default_rng(height * width).integers(20, 200, (height, width)).astype(np.uint8)


def dicom_of(image: np.ndarray, photometric: str = "MONOCHROME2", jpeg: bytes = b"") -> bytes:
    """A radiograph, (H, W) uint8 or uint16, as a digital X-ray in DICOM; jpeg: the stream to store in place of the pixels."""
    bits = 8 * image.itemsize
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = generate_uid(), generate_uid(), "DX"
    ds.Rows, ds.Columns = image.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit, ds.PixelRepresentation = bits - 1, 0
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    data = (2**bits - 1 - image if photometric == "MONOCHROME1" else image).astype(image.dtype).tobytes()
    ds.PixelData = encapsulate([jpeg]) if jpeg else data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if bits == 8 else "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    out = io.BytesIO()
    dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()
