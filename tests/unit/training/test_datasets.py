"""Films, their split, their labels, their views, and that training sees what serving sees."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from shared.errors import BadDataset
from shared.vision.engines import Answer
from shared.vision.pixels import open_pixels
from shared.vision.radiograph import radiograph
from shared.vision.tensors import content_box
from tests.films import dicom_of, fracatlas_tree, grazpedwri_tree, mura_tree, read_labels, table_tree, write_labels
from training.datasets import MISSING, REGIONS, Film, extent, films, fracatlas, outline_mask, read_film, split
from training.evaluate import answer
from training.views import FilmCache, _View


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


def test_split_of_seed_7_stays(tree: Path) -> None:
    """The shipped models' split is part of what was measured: it may never change."""
    _, check = split(fracatlas(tree), 7)
    assert {film.block for film in check} == {"3", "8"}


def test_data_sets_split_alike_alone_and_together(tree: Path, tmp_path: Path) -> None:
    """Beside other data sets each one keeps its own validation films, and no block of one is a block of another."""
    sets = [
        fracatlas(tree),
        films(mura_tree(tmp_path / "mura")),
        films(grazpedwri_tree(tmp_path / "wrists")),
        films(table_tree(tmp_path / "own")),
    ]
    learn, check = split([film for one in sets for film in one], 7)
    assert {film.path for film in check} == {film.path for one in sets for film in split(one, 7)[1]}
    assert not {film.block for film in learn} & {film.block for film in check}
    blocks = [{film.block for film in one} for one in sets]
    assert sum(map(len, blocks)) == len(set.union(*blocks))
    assert {film.source for film in check} >= {"fracatlas", "mura", "grazpedwri"}


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


def look(index: int, centre: tuple[float, float] = (0.5, 0.5), zoom: float = 1.0, *, whole: bool = False) -> _View:
    """A view without flip or turn; centre: what of the prepared square comes to its middle."""
    x, y = centre
    return _View(index, np.array([[zoom, 0, 0.5 - zoom * x], [0, zoom, 0.5 - zoom * y]]), whole)


def outline_box(film: Film) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of its outlines, in 0..1 of the prepared square."""
    rows, columns = np.nonzero(outline_mask(film, 960))
    return float(columns.min()) / 960, float(rows.min()) / 960, float(columns.max()) / 960, float(rows.max()) / 960


def test_batches(tree: Path) -> None:
    """A batch has the shapes and types that the losses and the network need, of crops and of whole films."""
    cache, dice = FilmCache(fracatlas(tree), 96), np.random.default_rng(1)
    for batch, side in ((next(cache.crops(64, 6, 0.5, (0.8, 1.3), dice)), 64), (next(cache.whole(6, 0.5, dice)), 96)):
        assert batch.pixels.shape == (6, 1, side, side)
        assert batch.place.shape == (6, side // 16, side // 16)
        assert 0 <= float(batch.place.min()) <= float(batch.place.max()) <= 1
        assert (batch.pixels.dtype, batch.placed.dtype) == (torch.uint8, torch.bool)
        assert (batch.region.dtype, batch.severity.dtype) == (torch.int64, torch.int64)
        assert {batch.fractured.dtype, batch.place.dtype, batch.weight.dtype} == {torch.float32}


def test_batches_follow_their_dice_and_share(tree: Path) -> None:
    """The same dice give the same batch, others another, and the share of fractured films is the one asked for."""
    cache = FilmCache(fracatlas(tree), 96)
    three = [[np.random.default_rng(seed) for seed in (9, 9, 10)] for _ in range(2)]
    crops = [next(cache.crops(64, 4, 0.5, (0.8, 1.3), dice)) for dice in three[0]]
    whole = [next(cache.whole(4, 0.5, dice)) for dice in three[1]]
    for one, again, other in (crops, whole):
        assert torch.equal(one.pixels, again.pixels)
        assert torch.equal(one.place, again.place)
        assert not torch.equal(one.pixels, other.pixels)
    for share in (0.0, 1.0):
        batch = next(cache.whole(8, share, np.random.default_rng(2)))
        assert batch.fractured.tolist() == [share] * 8


def test_labels_travel_with_the_view(tree: Path) -> None:
    """Each view carries its film's labels and weight; a part of a film does not tell how severe the whole is."""
    films = [replace(film, weight=1 + i / 8) for i, film in enumerate(fracatlas(tree)[:8])]
    films[2] = replace(films[2], fractured=MISSING, severity=MISSING)
    cache, order, dice = FilmCache(films, 96), [5, 0, 2, 7, 1], np.random.default_rng(3)
    whole = cache.batch([look(i, whole=True) for i in order], 96, dice)
    assert whole.region.tolist() == [films[i].region for i in order]
    assert whole.fractured.tolist() == [films[i].fractured for i in order]
    assert whole.severity.tolist() == [films[i].severity for i in order]
    assert whole.weight.tolist() == [films[i].weight for i in order]
    assert whole.placed.tolist() == [True, True, False, True, True]
    crops = cache.batch([look(i) for i in order], 96, dice)
    assert crops.severity.tolist() == [MISSING] * 5
    assert crops.region.tolist() == whole.region.tolist()


def test_a_part_is_fractured_as_far_as_it_shows_the_fracture(tree: Path) -> None:
    """None of the outline in view counts 0, half or more 1, and between them, or without an outline, it is MISSING."""
    films = fracatlas(tree)[:2]
    left, top, right, bottom = outline_box(films[1])
    middle = ((left + right) / 2, (top + bottom) / 2)
    last_quarter = (left + 0.75 * (right - left) + 0.25, middle[1])  # zoom 2 shows 0.25 to either side
    cache = FilmCache([*films, replace(films[1], outlines=[])], 96)
    views = [look(1, middle, 2.0), look(1, last_quarter, 2.0), look(1, (0.8, 0.85), 4.0)]
    batch = cache.batch([*views, look(2, middle, 2.0), look(0, middle, 2.0)], 96, np.random.default_rng(4))
    assert batch.fractured.tolist() == [1, MISSING, 0, MISSING, 0]
    assert batch.placed.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("number", [1, 3])  # one upright, one lying film
def test_places_lie_where_the_outline_is(tree: Path, number: int) -> None:
    """Of a view that changes nothing, the cells on the outline are fracture and those beside it are not."""
    film = fracatlas(tree)[number]
    batch = FilmCache([film], 96).batch([look(0)], 96, np.random.default_rng(5))
    place = batch.place[0].numpy()
    share = (outline_mask(film, 96) > 0).reshape(6, 16, 6, 16).mean((1, 3))
    assert (place[share >= 0.3] > 0.95).all()
    assert (share[place > 0.1] > 0).all()
    assert place.max() > 0.9


def test_places_follow_the_view(tree: Path) -> None:
    """A view centred on the fracture has it in the middle, wherever in the film it was."""
    film = fracatlas(tree)[1]
    left, top, right, bottom = outline_box(film)
    batch = FilmCache([film], 96).batch(
        [look(0, ((left + right) / 2, (top + bottom) / 2), 2.0)], 96, np.random.default_rng(6)
    )
    assert (batch.place[0, 2:4, 2:4] > 0.9).all()
    assert batch.place[0, 0].max() == 0


def test_only_fractured_films_have_a_place(tree: Path) -> None:
    """Where a film has no fracture there is no place to learn; where it has one there is."""
    cache = FilmCache(fracatlas(tree), 64)
    batch = cache.batch([look(i, whole=True) for i in range(8)], 64, np.random.default_rng(3))
    assert (batch.place.amax((1, 2)) > 0).tolist() == (batch.fractured > 0).tolist()


def test_one_kind_of_film_cannot_train(tree: Path) -> None:
    """Films of one kind only are refused in words before the first step."""
    normal = [film for film in fracatlas(tree) if not film.fractured]
    cache = FilmCache(normal, 64)
    with pytest.raises(BadDataset, match="0 are fractured"):
        next(cache.whole(4, 0.5, np.random.default_rng(1)))
    with pytest.raises(BadDataset, match="0 are fractured"):
        next(cache.crops(64, 4, 0.5, (0.8, 1.3), np.random.default_rng(1)))


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("size", [64, 192, 448])
def test_training_sees_what_serving_sees(tree: Path, photometric: str, size: int) -> None:
    """One film, read for training and sent as DICOM, is the same tensor to the bit, as a negative too."""
    for film in fracatlas(tree)[:4]:
        image = cv2.imread(str(film.path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        served = radiograph(open_pixels(dicom_of(image, photometric)), 0).square(size)
        np.testing.assert_array_equal(read_film(film.path, size), served)


def stored(folder: Path, kind: str) -> tuple[Path, bytes]:
    """A film as a file of that kind, and as the DICOM file that a hospital would send of it."""
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
    """What training warps, what evaluation feeds and what the worker makes of a film are equal to the bit."""
    path, sent = stored(tmp_path, kind)
    served = radiograph(open_pixels(sent), 0).square(size)
    film = Film(path, "block", MISSING, 0, 0, 0, (410, 523))
    fed = []

    def engine(squares: np.ndarray) -> Answer:
        fed.append(squares)
        return Answer(*(np.zeros((len(squares), 1), np.float32) for _ in Answer._fields))

    answer(engine, [film], size)
    np.testing.assert_array_equal(FilmCache([film], size).images[0], served)
    np.testing.assert_array_equal(fed[0], served[None])
    assert served.std() > 10


def test_labels_file_is_what_the_reader_expects(tree: Path) -> None:
    """An outline of the original data, one ring of x and y by turns, is read as its points."""
    ring = json.loads((tree / "polygons.json").read_text())["IMG0000001.png"][0]["polygon_norm"][0]
    (outline,) = fracatlas(tree)[1].outlines
    np.testing.assert_allclose(outline, np.array(ring).reshape(-1, 2), atol=1e-6)
