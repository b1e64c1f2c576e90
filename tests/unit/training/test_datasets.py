"""Radiographs, their split, their labels, their views, and that training sees what serving sees."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from shared.errors import BadDataset
from shared.model.engines import EngineOutput
from shared.pixels.decode import open_pixels
from shared.pixels.radiograph import decode_radiograph
from shared.pixels.tensors import content_box
from tests.radiographs import (
    dicom_of,
    fracatlas_tree,
    grazpedwri_tree,
    mura_tree,
    read_labels,
    table_tree,
    write_labels,
)
from training.datasets import (
    MISSING,
    REGIONS,
    LabelledRadiograph,
    extent,
    fracatlas,
    outline_mask,
    radiographs,
    read_radiograph,
    split,
)
from training.evaluate import predict
from training.views import RadiographCache, _View


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return fracatlas_tree(tmp_path / "fracatlas")


def box(left: float, top: float, width: float, height: float) -> np.ndarray:
    right, bottom = left + width, top + height
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def test_rows_become_radiographs(tree: Path) -> None:
    """Every usable row is one radiograph with its labels, and what the table leaves open is MISSING."""
    radiographs = fracatlas(tree)
    assert len(radiographs) == 40
    assert sum(radiograph.fractured for radiograph in radiographs) == 20
    assert radiographs[7].region == MISSING
    assert radiographs[1].region == REGIONS.index("elbow")
    assert radiographs[0].hardware == 1
    assert radiographs[1].original_size == (96, 120)
    assert all(bool(radiograph.outlines) == bool(radiograph.fractured) for radiograph in radiographs)


@pytest.mark.parametrize("seed", range(5))
def test_split_never_shares_a_block(tree: Path, seed: int) -> None:
    """No patient stands on both sides of the split, every radiograph stands on one, and both sides have some."""
    radiographs = fracatlas(tree)
    learn, check = split(radiographs, seed)
    assert not {radiograph.block for radiograph in learn} & {radiograph.block for radiograph in check}
    assert sorted(f.path for f in learn + check) == sorted(f.path for f in radiographs)
    assert len(check) == 8


def test_split_is_its_seeds(tree: Path) -> None:
    """The same seed gives the same split whatever the order of the radiographs; another seed gives another."""
    radiographs = fracatlas(tree)
    sides = {radiograph.path for radiograph in split(radiographs, 7)[1]}
    assert {radiograph.path for radiograph in split(radiographs[::-1], 7)[1]} == sides
    assert any({radiograph.path for radiograph in split(radiographs, other)[1]} != sides for other in range(3))


def test_split_of_seed_7_stays(tree: Path) -> None:
    """The shipped models' split is part of what was measured: it may never change."""
    _, check = split(fracatlas(tree), 7)
    assert {radiograph.block for radiograph in check} == {"3", "8"}


def test_data_sets_split_alike_alone_and_together(tree: Path, tmp_path: Path) -> None:
    """Beside other data sets each one keeps its own validation radiographs, and no block of one is a block of another."""
    sets = [
        fracatlas(tree),
        radiographs(mura_tree(tmp_path / "mura")),
        radiographs(grazpedwri_tree(tmp_path / "wrists")),
        radiographs(table_tree(tmp_path / "own")),
    ]
    learn, check = split([radiograph for one in sets for radiograph in one], 7)
    assert {radiograph.path for radiograph in check} == {
        radiograph.path for one in sets for radiograph in split(one, 7)[1]
    }
    assert not {radiograph.block for radiograph in learn} & {radiograph.block for radiograph in check}
    blocks = [{radiograph.block for radiograph in one} for one in sets]
    assert sum(map(len, blocks)) == len(set.union(*blocks))
    assert {radiograph.source for radiograph in check} >= {"fracatlas", "mura", "grazpedwri"}


@pytest.mark.parametrize("column", ["source_jpeg_truncated", "exact_duplicate"])
def test_damaged_and_double_radiographs_are_left_out(tree: Path, column: str) -> None:
    """A truncated radiograph, or one that occurs twice, trains and measures nothing."""
    rows = read_labels(tree)
    rows[3][column] = "1"
    write_labels(tree, rows)
    radiographs = fracatlas(tree)
    assert len(radiographs) == 39
    assert all(radiograph.path.name != rows[3]["image_id"] for radiograph in radiographs)


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
    """A table whose radiographs are all left out is an error, not an empty training."""
    write_labels(tree, [row | {"exact_duplicate": "1"} for row in read_labels(tree)])
    with pytest.raises(BadDataset, match="no usable row"):
        fracatlas(tree)


def test_unreadable_radiograph_is_named(tree: Path) -> None:
    """A file that is no picture is named when it is read."""
    path = tree / "images" / "IMG0000000.png"
    path.write_bytes(b"no picture")
    with pytest.raises(BadDataset, match=r"IMG0000000\.png"):
        read_radiograph(path, 64)


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


@pytest.mark.parametrize("number", [1, 3])  # one upright, one lying radiograph
@pytest.mark.parametrize("boxes", [False, True])
def test_outline_lies_where_the_fracture_is(tree: Path, number: int, boxes: bool) -> None:
    """The mask covers the bright bar that the outline was drawn around, in the square that the network sees."""
    radiograph = fracatlas(tree)[number]
    square, mask = read_radiograph(radiograph.path, 96), outline_mask(radiograph, 96, boxes=boxes) > 0
    bright = square > 240
    overlap = (bright & mask).sum() / (bright | mask).sum()
    assert overlap > 0.75
    assert not outline_mask(fracatlas(tree)[0], 96).any()


def test_outline_keeps_to_the_radiographs_box(tree: Path) -> None:
    """An outline over the whole radiograph fills its box and nothing of the padding."""
    radiograph = fracatlas(tree)[1]
    radiograph.outlines[:] = [box(0, 0, 1, 1)]
    top, left, height, width = content_box(radiograph.original_size[1], radiograph.original_size[0], 96)
    mask = outline_mask(radiograph, 96)
    assert mask[top : top + height, left : left + width].all()
    assert mask.sum() / 255 <= (height + 1) * (width + 1)


def look(index: int, centre: tuple[float, float] = (0.5, 0.5), zoom: float = 1.0, *, whole: bool = False) -> _View:
    """A view without flip or turn; centre: what of the prepared square comes to its middle."""
    x, y = centre
    return _View(index, np.array([[zoom, 0, 0.5 - zoom * x], [0, zoom, 0.5 - zoom * y]]), whole)


def outline_box(radiograph: LabelledRadiograph) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of its outlines, in 0..1 of the prepared square."""
    rows, columns = np.nonzero(outline_mask(radiograph, 960))
    return float(columns.min()) / 960, float(rows.min()) / 960, float(columns.max()) / 960, float(rows.max()) / 960


def test_batches(tree: Path) -> None:
    """A batch has the shapes and types that the losses and the network need, of crops and of whole radiographs."""
    cache, rng = RadiographCache(fracatlas(tree), 96), np.random.default_rng(1)
    for batch, side in (
        (next(cache.crops(64, 6, 0.5, (0.8, 1.3), rng)), 64),
        (next(cache.whole_radiographs(6, 0.5, rng)), 96),
    ):
        assert batch.pixels.shape == (6, 1, side, side)
        assert batch.place.shape == (6, side // 16, side // 16)
        assert 0 <= float(batch.place.min()) <= float(batch.place.max()) <= 1
        assert (batch.pixels.dtype, batch.placed.dtype) == (torch.uint8, torch.bool)
        assert (batch.region.dtype, batch.extent.dtype) == (torch.int64, torch.int64)
        assert {batch.fractured.dtype, batch.place.dtype, batch.weight.dtype} == {torch.float32}


def test_batches_follow_their_seed_and_share(tree: Path) -> None:
    """The same seed gives the same batch, others another, and the share of fractured radiographs is the one asked for."""
    cache = RadiographCache(fracatlas(tree), 96)
    three = [[np.random.default_rng(seed) for seed in (9, 9, 10)] for _ in range(2)]
    crops = [next(cache.crops(64, 4, 0.5, (0.8, 1.3), rng)) for rng in three[0]]
    whole = [next(cache.whole_radiographs(4, 0.5, rng)) for rng in three[1]]
    for one, again, other in (crops, whole):
        assert torch.equal(one.pixels, again.pixels)
        assert torch.equal(one.place, again.place)
        assert not torch.equal(one.pixels, other.pixels)
    for share in (0.0, 1.0):
        batch = next(cache.whole_radiographs(8, share, np.random.default_rng(2)))
        assert batch.fractured.tolist() == [share] * 8


def test_labels_travel_with_the_view(tree: Path) -> None:
    """Each view carries its radiograph's labels and weight; a part of a radiograph does not tell how severe the whole is."""
    radiographs = [replace(radiograph, weight=1 + i / 8) for i, radiograph in enumerate(fracatlas(tree)[:8])]
    radiographs[2] = replace(radiographs[2], fractured=MISSING, extent=MISSING)
    cache, order, rng = RadiographCache(radiographs, 96), [5, 0, 2, 7, 1], np.random.default_rng(3)
    whole = cache.batch([look(i, whole=True) for i in order], 96, rng)
    assert whole.region.tolist() == [radiographs[i].region for i in order]
    assert whole.fractured.tolist() == [radiographs[i].fractured for i in order]
    assert whole.extent.tolist() == [radiographs[i].extent for i in order]
    assert whole.weight.tolist() == [radiographs[i].weight for i in order]
    assert whole.placed.tolist() == [True, True, False, True, True]
    crops = cache.batch([look(i) for i in order], 96, rng)
    assert crops.extent.tolist() == [MISSING] * 5
    assert crops.region.tolist() == whole.region.tolist()


def test_a_part_is_fractured_as_far_as_it_shows_the_fracture(tree: Path) -> None:
    """None of the outline in view counts 0, half or more 1, and between them, or without an outline, it is MISSING."""
    radiographs = fracatlas(tree)[:2]
    left, top, right, bottom = outline_box(radiographs[1])
    middle = ((left + right) / 2, (top + bottom) / 2)
    last_quarter = (left + 0.75 * (right - left) + 0.25, middle[1])  # zoom 2 shows 0.25 to either side
    cache = RadiographCache([*radiographs, replace(radiographs[1], outlines=[])], 96)
    views = [look(1, middle, 2.0), look(1, last_quarter, 2.0), look(1, (0.8, 0.85), 4.0)]
    batch = cache.batch([*views, look(2, middle, 2.0), look(0, middle, 2.0)], 96, np.random.default_rng(4))
    assert batch.fractured.tolist() == [1, MISSING, 0, MISSING, 0]
    assert batch.placed.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("number", [1, 3])  # one upright, one lying radiograph
def test_places_lie_where_the_outline_is(tree: Path, number: int) -> None:
    """Of a view that changes nothing, the cells on the outline are fracture and those beside it are not."""
    radiograph = fracatlas(tree)[number]
    batch = RadiographCache([radiograph], 96).batch([look(0)], 96, np.random.default_rng(5))
    place = batch.place[0].numpy()
    share = (outline_mask(radiograph, 96) > 0).reshape(6, 16, 6, 16).mean((1, 3))
    assert (place[share >= 0.3] > 0.95).all()
    assert (share[place > 0.1] > 0).all()
    assert place.max() > 0.9


def test_places_follow_the_view(tree: Path) -> None:
    """A view centred on the fracture has it in the middle, wherever in the radiograph it was."""
    radiograph = fracatlas(tree)[1]
    left, top, right, bottom = outline_box(radiograph)
    batch = RadiographCache([radiograph], 96).batch(
        [look(0, ((left + right) / 2, (top + bottom) / 2), 2.0)], 96, np.random.default_rng(6)
    )
    assert (batch.place[0, 2:4, 2:4] > 0.9).all()
    assert batch.place[0, 0].max() == 0


def test_only_fractured_radiographs_have_a_place(tree: Path) -> None:
    """Where a radiograph has no fracture there is no place to learn; where it has one there is."""
    cache = RadiographCache(fracatlas(tree), 64)
    batch = cache.batch([look(i, whole=True) for i in range(8)], 64, np.random.default_rng(3))
    assert (batch.place.amax((1, 2)) > 0).tolist() == (batch.fractured > 0).tolist()


def test_one_kind_of_radiograph_cannot_train(tree: Path) -> None:
    """Radiographs of one kind only are refused in words before the first step."""
    normal = [radiograph for radiograph in fracatlas(tree) if not radiograph.fractured]
    cache = RadiographCache(normal, 64)
    with pytest.raises(BadDataset, match="0 are fractured"):
        next(cache.whole_radiographs(4, 0.5, np.random.default_rng(1)))
    with pytest.raises(BadDataset, match="0 are fractured"):
        next(cache.crops(64, 4, 0.5, (0.8, 1.3), np.random.default_rng(1)))


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("size", [64, 192, 448])
def test_training_sees_what_serving_sees(tree: Path, photometric: str, size: int) -> None:
    """One radiograph, read for training and sent as DICOM, is the same tensor to the bit, as a negative too."""
    for radiograph in fracatlas(tree)[:4]:
        image = cv2.imread(str(radiograph.path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        served = decode_radiograph(open_pixels(dicom_of(image, photometric)), 0).square(size)
        np.testing.assert_array_equal(read_radiograph(radiograph.path, size), served)


def stored(folder: Path, kind: str) -> tuple[Path, bytes]:
    """A radiograph as a file of that kind, and as the DICOM file that a hospital would send of it."""
    image = cv2.GaussianBlur(
        np.random.default_rng(8).integers(0, 4096, (523, 410)).astype(np.uint16), (0, 0), 3
    ).astype(np.uint16)
    narrow = (image // 16).astype(np.uint8)
    path = folder / {"png": "a.png", "png16": "b.png", "jpeg": "c.jpg", "dicom": "d.dcm"}[kind]
    if kind == "dicom":
        path.write_bytes(dicom_of(image, "MONOCHROME1"))
        return path, path.read_bytes()
    cv2.imwrite(str(path), image if kind == "png16" else narrow)
    if kind == "jpeg":
        return path, dicom_of(narrow, jpeg=path.read_bytes())
    return path, dicom_of(image if kind == "png16" else narrow)


@pytest.mark.parametrize("kind", ["png", "png16", "jpeg", "dicom"])
@pytest.mark.parametrize("size", [64, 448])
def test_training_evaluation_and_worker_see_one_tensor(tmp_path: Path, kind: str, size: int) -> None:
    """What training warps, what evaluation feeds and what the worker makes of a radiograph are equal to the bit."""
    path, sent = stored(tmp_path, kind)
    served = decode_radiograph(open_pixels(sent), 0).square(size)
    radiograph = LabelledRadiograph(path, "block", MISSING, 0, 0, 0, (410, 523))
    fed = []

    def engine(squares: np.ndarray) -> EngineOutput:
        fed.append(squares)
        return EngineOutput(*(np.zeros((len(squares), 1), np.float32) for _ in EngineOutput._fields))

    predict(engine, [radiograph], size)
    np.testing.assert_array_equal(RadiographCache([radiograph], size).images[0], served)
    np.testing.assert_array_equal(fed[0], served[None])
    assert served.std() > 10


def test_labels_file_is_what_the_reader_expects(tree: Path) -> None:
    """An outline of the original data, one ring of x and y by turns, is read as its points."""
    ring = json.loads((tree / "polygons.json").read_text())["IMG0000001.png"][0]["polygon_norm"][0]
    (outline,) = fracatlas(tree)[1].outlines
    np.testing.assert_allclose(outline, np.array(ring).reshape(-1, 2), atol=1e-6)
