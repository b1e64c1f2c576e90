"""Films, their split, their labels, and that training sees what serving sees."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from shared.errors import BadDataset
from shared.vision.pixels import open_pixels
from shared.vision.tensors import content_box, prepare
from tests.films import fracatlas_tree, read_labels, write_labels
from training.datasets import CACHE_SIZE, MISSING, REGIONS, FilmCache, extent, fracatlas, outline_mask, read_film, split


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return fracatlas_tree(tmp_path / "fracatlas")


def box(left: float, top: float, width: float, height: float) -> np.ndarray:
    right, bottom = left + width, top + height
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def test_rows_become_films(tree: Path) -> None:
    """Every usable row is one film with its labels, and what the table leaves open is MISSING."""
    films = fracatlas(tree)
    assert len(films) == 40
    assert sum(film.fractured for film in films) == 20
    assert films[7].region == MISSING
    assert films[1].region == REGIONS.index("elbow")
    assert films[0].hardware == 1
    assert films[1].original_size == (96, 120)
    assert all(bool(film.outlines) == bool(film.fractured) for film in films)


@pytest.mark.parametrize("seed", range(5))
def test_split_never_shares_a_block(tree: Path, seed: int) -> None:
    """No patient stands on both sides of the split, every film stands on one, and both sides have some."""
    films = fracatlas(tree)
    learn, check = split(films, seed)
    assert not {film.block for film in learn} & {film.block for film in check}
    assert sorted(f.path for f in learn + check) == sorted(f.path for f in films)
    assert len(check) == 8


def test_split_is_its_seeds(tree: Path) -> None:
    """The same seed gives the same split whatever the order of the films; another seed gives another."""
    films = fracatlas(tree)
    sides = {film.path for film in split(films, 7)[1]}
    assert {film.path for film in split(films[::-1], 7)[1]} == sides
    assert any({film.path for film in split(films, other)[1]} != sides for other in range(3))


@pytest.mark.parametrize("column", ["source_jpeg_truncated", "exact_duplicate"])
def test_damaged_and_double_films_are_left_out(tree: Path, column: str) -> None:
    """A truncated film, or one that occurs twice, trains and measures nothing."""
    rows = read_labels(tree)
    rows[3][column] = "1"
    write_labels(tree, rows)
    films = fracatlas(tree)
    assert len(films) == 39
    assert all(film.path.name != rows[3]["image_id"] for film in films)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("fractured", "maybe"),
        ("region", "head"),
        ("boxes_yolo_cx_cy_w_h", "0.5 0.5 0.1"),
        ("orig_width", ""),
        ("image_id", "gone.png"),
    ],
)
def test_broken_row_is_named(tree: Path, column: str, value: str) -> None:
    """A row that cannot be read stops the run with the file and the line to mend."""
    rows = read_labels(tree)
    rows[4][column] = value
    write_labels(tree, rows)
    with pytest.raises(BadDataset, match=r"labels\.csv, line 6: "):
        fracatlas(tree)


def test_row_cut_short_is_named(tree: Path) -> None:
    """A table that broke off in the middle of a row is named too."""
    text = (tree / "labels.csv").read_text()
    (tree / "labels.csv").write_text(text[: text.rindex("\n", 0, -1) + 15])
    with pytest.raises(BadDataset, match=r"labels\.csv, line 41: "):
        fracatlas(tree)


@pytest.mark.parametrize("name", ["labels.csv", "polygons.json"])
def test_missing_table_is_named(tree: Path, name: str) -> None:
    """Given the wrong folder, the message says which file it lacks."""
    (tree / name).unlink()
    with pytest.raises(BadDataset, match=name):
        fracatlas(tree)


def test_damaged_polygons_are_named(tree: Path) -> None:
    """Outlines that are no JSON are named by their file."""
    (tree / "polygons.json").write_text('{"IMG')
    with pytest.raises(BadDataset, match=r"polygons\.json is not JSON"):
        fracatlas(tree)


def test_table_without_a_usable_row_is_refused(tree: Path) -> None:
    """A table whose films are all left out is an error, not an empty training."""
    write_labels(tree, [row | {"exact_duplicate": "1"} for row in read_labels(tree)])
    with pytest.raises(BadDataset, match="no usable row"):
        fracatlas(tree)


def test_unreadable_film_is_named(tree: Path) -> None:
    """A file that is no picture is named when it is read."""
    path = tree / "images" / "IMG0000000.png"
    path.write_bytes(b"no picture")
    with pytest.raises(BadDataset, match=r"IMG0000000\.png"):
        read_film(path, 64)


@pytest.mark.parametrize(
    ("fractured", "boxes", "expected"),
    [
        (0, [], 0),
        (0, [box(0, 0, 0.5, 0.5)], 0),
        (1, [], MISSING),
        (1, [box(0, 0, 0.09, 0.1)], 1),
        (1, [box(0, 0, 0.2, 0.1)], 2),
        (1, [box(0, 0, 0.05, 0.05), box(0.5, 0.5, 0.05, 0.05)], 2),
        (1, [box(0, 0, 0.3, 0.21)], 3),
        (1, [box(0, 0, 0.01, 0.01)] * 3, 3),
    ],
)
def test_extent(fractured: int, boxes: list[np.ndarray], expected: int) -> None:
    """Severity follows the number and area of annotated fractures, and is unknown where none is outlined."""
    assert extent(fractured, boxes) == expected


@pytest.mark.parametrize("number", [1, 3])  # one upright, one lying film
@pytest.mark.parametrize("boxes", [False, True])
def test_outline_lies_where_the_fracture_is(tree: Path, number: int, boxes: bool) -> None:
    """The mask covers the bright bar that the outline was drawn around, in the square that the network sees."""
    film = fracatlas(tree)[number]
    square, mask = read_film(film.path, 96), outline_mask(film, 96, boxes=boxes) > 0
    bright = square > 240
    overlap = (bright & mask).sum() / (bright | mask).sum()
    assert overlap > 0.75
    assert not outline_mask(fracatlas(tree)[0], 96).any()


def test_outline_keeps_to_the_films_box(tree: Path) -> None:
    """An outline over the whole film fills its box and nothing of the padding."""
    film = fracatlas(tree)[1]
    film.outlines[:] = [box(0, 0, 1, 1)]
    top, left, height, width = content_box(film.original_size[1], film.original_size[0], 96)
    mask = outline_mask(film, 96)
    assert mask[top : top + height, left : left + width].all()
    assert mask.sum() / 255 <= (height + 1) * (width + 1)


def test_batches(tree: Path) -> None:
    """A batch has the shapes and types that the losses and the network need, teacher's views included."""
    cache = FilmCache(fracatlas(tree))
    batch = next(cache.batches(64, 96, 6, 0.5, np.random.default_rng(1)))
    assert batch.pixels.shape == (6, 1, 64, 64)
    assert batch.larger.shape == (6, 1, 96, 96)
    assert batch.pixels.dtype == batch.larger.dtype == torch.uint8
    assert batch.place.shape == (6, 2, 2)
    assert 0 <= float(batch.place.min()) <= float(batch.place.max()) <= 1
    assert (batch.region.dtype, batch.severity.dtype) == (torch.int64, torch.int64)
    assert (batch.fractured.dtype, batch.place.dtype) == (torch.float32, torch.float32)


def test_batches_follow_their_dice_and_share(tree: Path) -> None:
    """The same dice give the same batch, and the share of fractured films is the one asked for."""
    cache = FilmCache(fracatlas(tree))
    one, other = (next(cache.batches(64, 64, 4, 0.5, np.random.default_rng(9))) for _ in range(2))
    assert torch.equal(one.pixels, other.pixels)
    assert one.larger is one.pixels or torch.equal(one.larger, one.pixels)
    for share in (0.0, 1.0):
        batch = next(cache.batches(64, 64, 8, share, np.random.default_rng(2)))
        assert batch.fractured.tolist() == [share] * 8


def test_only_fractured_films_have_a_place(tree: Path) -> None:
    """Where a film has no fracture there is no place to learn; where it has one there is."""
    cache = FilmCache(fracatlas(tree))
    batch = cache.batch(list(range(8)), 64, 64, np.random.default_rng(3))
    assert (batch.place.amax((1, 2)) > 0).tolist() == (batch.fractured > 0).tolist()


def test_one_kind_of_film_cannot_train(tree: Path) -> None:
    """Films of one kind only are refused in words before the first step."""
    normal = [film for film in fracatlas(tree) if not film.fractured]
    with pytest.raises(BadDataset, match="0 are fractured"):
        next(FilmCache(normal).batches(64, 64, 4, 0.5, np.random.default_rng(1)))


def dicom_of(image: np.ndarray, photometric: str) -> bytes:
    """A film as a digital X-ray in DICOM."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = generate_uid(), generate_uid(), "DX"
    ds.Rows, ds.Columns = image.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    data = (255 - image if photometric == "MONOCHROME1" else image).astype(np.uint8).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("size", [64, 192, CACHE_SIZE])
def test_training_sees_what_serving_sees(tree: Path, photometric: str, size: int) -> None:
    """One film, read for training and sent as DICOM, is the same tensor to the bit, as a negative too."""
    for film in fracatlas(tree)[:4]:
        image = cv2.imread(str(film.path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        served = prepare(open_pixels(dicom_of(image, photometric)).frame(0), size)
        np.testing.assert_array_equal(read_film(film.path, size), served)


def test_labels_file_is_what_the_reader_expects(tree: Path) -> None:
    """An outline of the original data, one ring of x and y by turns, is read as its points."""
    ring = json.loads((tree / "polygons.json").read_text())["IMG0000001.png"][0]["polygon_norm"][0]
    (outline,) = fracatlas(tree)[1].outlines
    np.testing.assert_allclose(outline, np.array(ring).reshape(-1, 2), atol=1e-6)
