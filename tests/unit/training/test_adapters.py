"""Each layout of a data set becomes the same table, and what is wrong in one is named by file and line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from shared.errors import BadDataset
from tests.radiographs import dicom_of, fracatlas_tree, grazpedwri_tree, mura_tree, noise, table_tree
from training.datasets import (
    MISSING,
    REGIONS,
    LabelledRadiograph,
    fracatlas,
    grazpedwri,
    mura,
    radiographs,
    read_radiograph,
    tables,
)
from training.datasets.grazpedwri import grade
from training.datasets.radiograph import image_size

TREES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "fracatlas": (fracatlas_tree, "labels.csv"),
    "mura": (mura_tree, "valid_labeled_studies.csv"),
    "grazpedwri": (grazpedwri_tree, "dataset.csv"),
    "csv": (table_tree, "radiographs.csv"),
}


def amend(file: Path, line: int, old: str, new: str) -> None:
    """Replace text once in one line of a file."""
    lines = file.read_text().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    file.write_text("".join(lines))


def named(found: list[LabelledRadiograph]) -> dict[str, LabelledRadiograph]:
    return {radiograph.path.name: radiograph for radiograph in found}


# -- all of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TREES)
def test_layout_tells_the_kind(tmp_path: Path, kind: str) -> None:
    """A folder is read by the adapter of its layout without being told which, and each radiograph says where it is from."""
    home = TREES[kind][0](tmp_path / "set")
    found = radiographs(home)
    assert [radiograph.path for radiograph in found] == [radiograph.path for radiograph in radiographs(home, kind)]
    assert {radiograph.source for radiograph in found} == ({"csv", "dicom"} if kind == "csv" else {kind})
    for radiograph in found:
        assert read_radiograph(radiograph.path, 32).shape == (32, 32)
        assert image_size(radiograph.path) == radiograph.original_size


def test_mura_is_found_from_the_folder_above(tmp_path: Path) -> None:
    """The folder that MURA was unpacked in does as well as MURA's own."""
    home = mura_tree(tmp_path / "here")
    assert radiographs(home.parent) == radiographs(home)


def test_a_table_may_be_given_itself(tmp_path: Path) -> None:
    """A CSV file of any name is a table, and its images are looked for beside it."""
    home = table_tree(tmp_path / "set")
    (home / "radiographs.csv").rename(home / "mine.CSV")
    assert len(radiographs(home / "mine.CSV")) == 5


@pytest.mark.parametrize(("there", "kind", "told"), [(True, "", "dataset.csv"), (True, "imagenet", "grazpedwri")])
def test_unknown_layouts_and_kinds_list_the_known(tmp_path: Path, there: bool, kind: str, told: str) -> None:
    """Who gives another folder, or another kind, reads what could be given."""
    with pytest.raises(BadDataset, match=told):
        radiographs(tmp_path, kind)
    with pytest.raises(BadDataset, match="does not exist"):
        radiographs(tmp_path / "gone", kind)


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: b"", " is empty"),
        (lambda data: b"\n \n", " is empty"),
        (lambda data: data.replace(b"1", b"\xff", 1), ", line [12]: not UTF-8"),
        (lambda data: data + b"caf\xe9", ", line {after}: not UTF-8"),
        (lambda data: data.decode().encode("utf-16"), ", line 1: not UTF-8"),
        (lambda data: data + b"\0\0", ", line {after}: holds a NUL"),
        (lambda data: data + b"one cell too few", ", line {after}: has 1 cells where [0-9]+ are due"),
        (lambda data: data + b'"never closed', ", line {after}: unexpected end of data"),
        (lambda data: data + data.splitlines()[-1], ", line {after}: .* is on line {last} already"),
    ],
)
def test_damaged_table_is_named_with_its_line(
    tmp_path: Path, kind: str, damage: Callable[[bytes], bytes], told: str
) -> None:
    """Whatever a table suffers on its way, the message names the file and the line to look at."""
    make, name = TREES[kind]
    home = make(tmp_path / "set")
    data = (home / name).read_bytes()
    (home / name).write_bytes(damage(data))
    lines = data.count(b"\n")
    with pytest.raises(BadDataset, match=name + told.format(after=lines + 1, last=lines)):
        radiographs(home, kind)


@pytest.mark.parametrize(
    ("kind", "column"),
    [("fracatlas", "image_id"), ("grazpedwri", "fracture_visible"), ("csv", "image"), ("csv", "patient")],
)
def test_missing_column_is_named(tmp_path: Path, kind: str, column: str) -> None:
    """A table without a column that is needed says which, in the line of the head."""
    make, name = TREES[kind]
    home = make(tmp_path / "set")
    amend(home / name, 1, column, "weights" if kind != "csv" else "weight " if column == "image" else "severity")
    with pytest.raises(BadDataset, match=rf"{name}, line 1: .*(no column {column}|patient|two columns)"):
        radiographs(home, kind)


@pytest.mark.parametrize("kind", ["fracatlas", "grazpedwri", "csv"])
def test_head_without_rows_is_refused(tmp_path: Path, kind: str) -> None:
    """A table with a head and nothing below is an error, not an empty training."""
    make, name = TREES[kind]
    home = make(tmp_path / "set")
    (home / name).write_text((home / name).read_text().splitlines()[0])
    with pytest.raises(BadDataset, match=f"{name} has no usable row"):
        radiographs(home, kind)


@pytest.mark.parametrize("kind", TREES)
def test_spreadsheets_marks_and_line_ends_do_no_harm(tmp_path: Path, kind: str) -> None:
    """A byte order mark, carriage returns and empty lines, as spreadsheets write them, change nothing."""
    make, name = TREES[kind]
    home = make(tmp_path / "set")
    before = [(radiograph.path, radiograph.fractured) for radiograph in radiographs(home)]
    text = (home / name).read_text()
    (home / name).write_bytes(b"\xef\xbb\xbf" + (text + "\n").replace("\n", "\r\n").encode())
    assert [(radiograph.path, radiograph.fractured) for radiograph in radiographs(home)] == before


# -- MURA ---------------------------------------------------------------------------------------------------------


def test_mura_does_not_call_abnormal_a_fracture(tmp_path: Path) -> None:
    """Normal studies are sound; abnormal ones say nothing of fracture or severity, and none says a word of metal."""
    found = mura(mura_tree(tmp_path))
    assert len(found) == 12
    assert not any(radiograph.path.name.startswith(".") for radiograph in found)
    for radiograph in found:
        assert radiograph.fractured == radiograph.extent == (MISSING if "positive" in str(radiograph.path) else 0)
        assert radiograph.hardware == MISSING
        assert not radiograph.outlines
    assert sum(radiograph.fractured == MISSING for radiograph in found) == 4


def test_mura_folders_become_regions_and_patients_blocks(tmp_path: Path) -> None:
    """Fingers and wrists are hand, forearms elbow, humeri shoulder; a patient is one block over all regions."""
    found = mura(mura_tree(tmp_path))
    regions = {radiograph.path.parts[-4]: REGIONS[radiograph.region] for radiograph in found}
    assert regions == {
        "XR_SHOULDER": "shoulder",
        "XR_WRIST": "hand",
        "XR_FINGER": "hand",
        "XR_FOREARM": "elbow",
        "XR_HUMERUS": "shoulder",
        "XR_HAND": "hand",
    }
    assert {radiograph.block for radiograph in found if "patient00001" in str(radiograph.path)} == {"mura-patient00001"}
    assert {radiograph.original_size for radiograph in found} == {(41, 60), (42, 60)}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("XR_WRIST", "XR_FOOT", "should look like"),
        ("MURA-v1.1/train", "MURA-v1.1/train/..", "should look like"),
        ("patient00001", "patient00077", "does not exist"),
        (",0", ",2", "label is '2': give one of 0, 1"),
        (",0", ",1", "folder says negative"),
    ],
)
def test_mura_broken_row_is_named(tmp_path: Path, old: str, new: str, told: str) -> None:
    """A study that cannot be found or understood stops the reading with its line."""
    home = mura_tree(tmp_path)
    amend(home / "train_labeled_studies.csv", 2, old, new)
    with pytest.raises(BadDataset, match=f"train_labeled_studies.csv, line 2: .*{told}"):
        mura(home)


def test_mura_needs_both_tables_and_whole_images(tmp_path: Path) -> None:
    """A missing table, an empty study and a damaged image are each named."""
    home = mura_tree(tmp_path)
    study = home / "train/XR_WRIST/patient00001/study1_negative"
    (study / "image2.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(BadDataset, match=r"line 2: .*image2\.png is not a readable image"):
        mura(home)
    for path in study.glob("image*"):
        path.unlink()
    with pytest.raises(BadDataset, match=r"line 2: .*study1_negative holds no image"):
        mura(home)
    (home / "valid_labeled_studies.csv").unlink()
    amend(home / "train_labeled_studies.csv", 2, "MURA-v1.1/train/XR_WRIST/patient00001/study1_negative/,0", "")
    with pytest.raises(BadDataset, match=r"valid_labeled_studies\.csv is missing"):
        mura(home)


# -- GRAZPEDWRI-DX ------------------------------------------------------------------------------------------------


def test_grazpedwri_labels(tmp_path: Path) -> None:
    """What fracture_visible, the boxes, the AO codes and the metal column say together is each radiograph's labels."""
    found = named(grazpedwri(grazpedwri_tree(tmp_path)))
    told = {
        name: (radiograph.fractured, radiograph.extent, radiograph.hardware, len(radiograph.outlines))
        for name, radiograph in found.items()
    }
    assert told == {
        "0001_1.png": (1, 3, 0, 1),
        "0001_2.png": (0, 0, 1, 0),
        "0002_1.png": (1, 1, 0, 0),
        "0003_1.png": (1, MISSING, 0, 1),
        "0004_1.png": (MISSING, MISSING, 0, 0),
        "0005_1.png": (0, 0, 0, 0),
    }
    assert {radiograph.region for radiograph in found.values()} == {REGIONS.index("hand")}
    assert found["0001_1.png"].block == found["0001_2.png"].block == "grazpedwri-1"
    assert found["0001_1.png"].original_size == (50, 80)
    np.testing.assert_allclose(
        found["0001_1.png"].outlines[0], [[0.4, 0.2], [0.6, 0.2], [0.6, 0.3], [0.4, 0.3]], atol=1e-6
    )


@pytest.mark.parametrize(("stem", "fractured"), [("0005_1", 0), ("0003_1", MISSING), ("0004_1", MISSING)])
def test_grazpedwri_contradictions_are_missing(tmp_path: Path, stem: str, fractured: int) -> None:
    """A radiograph said to show no fracture is sound, unless a box or a code contradicts."""
    home = grazpedwri_tree(tmp_path)
    text = (home / "dataset.csv").read_text().splitlines()
    text = [line[:-1] + "0," if line.startswith(stem) else line for line in text]
    (home / "dataset.csv").write_text("\n".join(text))
    radiograph = named(grazpedwri(home))[f"{stem}.png"]
    assert (radiograph.fractured, radiograph.extent, radiograph.outlines) == (fractured, fractured, [])


@pytest.mark.parametrize(
    ("ao", "expected"),
    [
        ("23r-M/2.1", 1),
        ("22r-D/1.1", 1),
        ("23r-M/3.1", 2),
        ("22u-D/5.2", 2),
        ("23r-E/2.1", 2),
        ("23u-E/7", 2),
        ("23r-M/2.1; 23u-M/2.1", 1),
        ("23-M/2.1", 1),
        ("23-M/3.1", 3),
        ("23r-M/3.1;23u-E/7", 3),
        ("23r-M/3.1;23r-E/2.1", 2),
        ("13-M/3.1", 2),
        ("23r-M/9.1", MISSING),
        ("23r-M/3.1;72B(b)", MISSING),
        ("23r-M/3.1;", MISSING),
        ("", MISSING),
    ],
)
def test_grade_of_childrens_codes(ao: str, expected: int) -> None:
    """Incomplete fractures are mild, complete and growth plate ones moderate, both bones severe, the rest unknown."""
    assert grade(ao) == expected


@pytest.mark.parametrize(
    ("line", "old", "new", "told"),
    [
        (2, "0001_1", "0009_9", r"'0009_9\.png' is in none of images_part1"),
        (2, "0001_1", "../0001_1", "is in none of"),
        (3, "0001_2,1,", "0001_2,,", "patient_id is empty"),
        (4, ",1.0,", ",perhaps,", "fracture_visible is 'perhaps'"),
        (3, ",1\n", ",2\n", "metal is '2'"),
    ],
)
def test_grazpedwri_broken_row_is_named(tmp_path: Path, line: int, old: str, new: str, told: str) -> None:
    """A row that cannot be read stops the reading with its line."""
    home = grazpedwri_tree(tmp_path)
    amend(home / "dataset.csv", line, old, new)
    with pytest.raises(BadDataset, match=rf"dataset\.csv, line {line}: .*{told}"):
        grazpedwri(home)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x 0.5 0.5 0.1 0.1", "line 1: invalid literal"),
        ("8 1 1 1 1\n3 0.5 0.5 0.1", "line 2: .*not four numbers"),
        ("\n3 0.5 0.5 0.1 1.5", "line 2: .*does not lie in the radiograph"),
        ("3 0.5 nan 0.1 0.1", "line 1: .*does not lie in the radiograph"),
    ],
)
def test_grazpedwri_broken_box_is_named(tmp_path: Path, text: str, told: str) -> None:
    """A box that cannot be read is named by its own file and line, beside the row that led to it."""
    home = grazpedwri_tree(tmp_path)
    (home / "folder_structure/yolov5/labels/0001_1.txt").write_text(text)
    with pytest.raises(BadDataset, match=rf"dataset\.csv, line 2: .*0001_1\.txt, {told}"):
        grazpedwri(home)


def test_grazpedwri_without_its_boxes_is_refused(tmp_path: Path) -> None:
    """Without the label files a fracture could pass for none, so their folder has to be there, in either place."""
    home = grazpedwri_tree(tmp_path)
    (home / "folder_structure/yolov5/labels").rename(home / "labels")
    (home / "images_part1").rename(home / "images")
    assert len(grazpedwri(home)) == 6
    shutil.rmtree(home / "labels")
    with pytest.raises(BadDataset, match=r"unpack folder_structure\.zip"):
        grazpedwri(home)


# -- your own table -----------------------------------------------------------------------------------------------


def test_table_labels(tmp_path: Path) -> None:
    """Every column becomes its label, and every empty cell is MISSING; no fracture is no severity."""
    found = named(tables(table_tree(tmp_path)))
    labels = {n: (f.block, f.region, f.fractured, f.extent, f.hardware, f.weight) for n, f in found.items()}
    assert labels == {
        "a.png": ("csv-p1", 0, 1, 2, 0, 2.0),
        "b.png": ("csv-p1", 1, 0, 0, MISSING, 1.0),
        "c.jpg": ("csv-p2", MISSING, 1, 3, 1, 0.5),
        "d.dcm": ("csv-p3", 3, MISSING, MISSING, MISSING, 1.0),
        "e": ("csv-p1", 4, 1, 3, MISSING, 1.0),
    }
    assert {name: radiograph.source for name, radiograph in found.items() if radiograph.source == "dicom"} == {
        "d.dcm": "dicom",
        "e": "dicom",
    }
    first, second = found["a.png"].outlines
    np.testing.assert_allclose(first * [100, 120], [[10, 20], [40, 20], [40, 50], [10, 50]], atol=1e-4)
    np.testing.assert_allclose(second.max(0) * [100, 120], [80, 90], atol=1e-4)


def test_smallest_table(tmp_path: Path) -> None:
    """An image and a block are enough; everything else is MISSING."""
    home = table_tree(tmp_path)
    (home / "radiographs.csv").write_text("block,image\nward 3,a.png\n")
    (radiograph,) = tables(home)
    assert (radiograph.block, radiograph.region, radiograph.fractured) == ("csv-ward 3", MISSING, MISSING)
    assert (radiograph.extent, radiograph.hardware, radiograph.outlines, radiograph.weight) == (
        MISSING,
        MISSING,
        [],
        1.0,
    )


@pytest.mark.parametrize(("code", "extent"), [("2R3A2", 1), ("44B1.2", 2), ("31a1", 1), ("23-C3", 3), ("77.2.1B", 2)])
def test_ao_codes_grade_where_severity_is_empty(tmp_path: Path, code: str, extent: int) -> None:
    """Types A, B and C are mild, moderate and severe; a severity that is given goes first."""
    home = table_tree(tmp_path)
    amend(home / "radiographs.csv", 4, "2R3C2", code)
    assert named(tables(home))["c.jpg"].extent == extent
    amend(home / "radiographs.csv", 4, f",,{code}", f",moderate,{code}")
    assert named(tables(home))["c.jpg"].extent == 2


@pytest.mark.parametrize(
    ("line", "old", "new", "told"),
    [
        (2, "a.png", "gone.png", r"gone\.png does not exist"),
        (2, "a.png", "../a.png", "leads out of"),
        (2, "a.png", "/a.png", "leads out of"),
        (2, "a.png", "sub", "does not exist"),
        (2, "a.png", "", "does not exist"),
        (2, "a.png", "x" * 300, "name too long|does not exist"),
        (2, "a.png", "radiographs.csv", r"radiographs\.csv is not a readable image"),
        (2, "p1", "", "patient or block is empty"),
        (2, "hand", "head", "region is 'head': give one of nothing, hand, elbow"),
        (2, ",1,", ",2,", "fracture is '2'"),
        (2, "moderate", "4", "severity is '4'"),
        (2, "moderate", "none", "fracture is '1' but severity is 0"),
        (3, "no,", "no,mild", "fracture is 'no' but severity is 1"),
        (3, "no,,,", "no,,,1 1 2 2", "fracture is 'no' but boxes are given"),
        (4, "2R3C2", "23r-M/2.1", "ao is '23r-M/2.1'"),
        (2, "10 20 40 50", "10 20 40", "box '10 20 40' is not four numbers"),
        (2, "10 20 40 50", "10 20 40 x", "is not four numbers"),
        (2, "10 20 40 50", "40 20 10 50", "does not lie in the image of 100 x 120"),
        (2, "10 20 40 50", "10 20 101 50", "does not lie in the image"),
        (2, "10 20 40 50", "nan 20 40 50", "does not lie in the image"),
        (2, ",0,2", ",0,0", "weight is '0'"),
        (2, ",0,2", ",0,inf", "weight is 'inf'"),
        (2, ",0,2", ",0,heavy", "weight is 'heavy'"),
        (2, ",0,2", ",maybe,2", "hardware is 'maybe'"),
        (3, "b.png", "./a.png", r"a\.png is on line 2 already"),
        (1, "hardware", "metal", "unknown column 'metal'; known are image, patient"),
        (1, "hardware", "weight", "two columns are named 'weight'"),
        (1, "region", "block", "patient and block, and not both"),
        (1, ",patient,", ";patient;", "no column image; .*commas"),
    ],
)
def test_table_broken_row_is_named(tmp_path: Path, line: int, old: str, new: str, told: str) -> None:
    """Whatever a cell says wrong, the message names the line and the word."""
    home = table_tree(tmp_path)
    amend(home / "radiographs.csv", line, old, new)
    with pytest.raises(BadDataset, match=rf"(?i)radiographs\.csv, line {line}: .*{told}"):
        tables(home)


def test_content_says_what_is_dicom(tmp_path: Path) -> None:
    """A DICM mark under any name is DICOM; a picture that is named like DICOM is a picture; else it is refused."""
    home = table_tree(tmp_path)
    (home / "a.png").write_bytes(dicom_of(noise(120, 100)))
    shutil.copy(home / "b.png", home / "d.dcm")
    found = named(radiographs(home, "dicom"))
    assert (found["a.png"].source, found["d.dcm"].source) == ("dicom", "csv")
    np.testing.assert_array_equal(read_radiograph(home / "a.png", 64), read_radiograph(home / "d.dcm", 64))
    (home / "e").write_bytes(b"neither")
    with pytest.raises(BadDataset, match=r"line 6: .*not a DICOM file"):
        radiographs(home)
    with pytest.raises(BadDataset, match="not a DICOM file"):
        read_radiograph(home / "e", 64)


@pytest.mark.parametrize("name", ["lying.jpg", "lying.png"])
def test_boxes_lie_right_on_a_turned_photograph(tmp_path: Path, name: str) -> None:
    """A picture whose EXIF says that it lies is turned when it is read, and its size is that of the turned one."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(120, 100)).save(tmp_path / name, exif=exif)
    turned = cv2.imread(str(tmp_path / name), cv2.IMREAD_GRAYSCALE)
    assert turned is not None
    assert image_size(tmp_path / name) == turned.shape[::-1] == (120, 100)


def test_fracatlas_outline_that_is_none_is_named(tmp_path: Path) -> None:
    """An outline with an odd number of coordinates is named by the row of its radiograph."""
    home = fracatlas_tree(tmp_path / "set")
    (home / "polygons.json").write_text('{"IMG0000001.png": [{"polygon_norm": [[0.1, 0.2, 0.3]]}]}')
    with pytest.raises(BadDataset, match=r"labels\.csv, line 3: .*polygons\.json"):
        fracatlas(home)
