"""Augmented views of radiographs, as batches for the training steps."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.domain.findings import ExposedField
from shared.errors import BadDataset
from shared.model.network import CELL
from shared.pixels.tensors import content_box
from training.datasets import MISSING, LabelledRadiograph, in_square, outline_mask, read_exposed

Point = tuple[float, float]  # x, y in 0..1 of the prepared square
UInt8Square = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """One training step's tensors."""

    pixels: Tensor  # (B, 1, S, S) uint8
    region: Tensor  # (B,) int64, MISSING where unknown
    fractured: Tensor  # (B,) float32: 0, 1, or MISSING where the view leaves it open
    extent: Tensor  # (B,) int64, MISSING where unknown or where only a part of the radiograph is seen
    place: Tensor  # (B, S/16, S/16) float32 in 0..1: how much each cell is fracture
    placed: Tensor  # (B,) bool: `place` is known
    weight: Tensor  # (B,) float32

    def on(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        return Batch(*(getattr(self, part.name).to(device, non_blocking=True) for part in fields(self)))


class RadiographCache:
    """All radiographs prepared once, as the worker prepares them, and kept in memory: an epoch costs only warps."""

    def __init__(self, radiographs: list[LabelledRadiograph], size: int) -> None:
        """Prepare the radiographs for a bundle's input size, pixels. Memory: radiographs * size * size bytes."""
        self.radiographs, self.size = radiographs, size
        # where else to look in a radiograph: what a model wrongly takes for a fracture; filled by training
        self.suspects: list[list[Point]] = [[] for _ in radiographs]
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(lambda radiograph: read_exposed(radiograph.path, size), radiographs))
        self.images, self._fields = [square for square, _ in read], [field for _, field in read]
        self.masks = [
            _evidence_mask(radiograph, size, field) if radiograph.outlines else None
            for radiograph, field in zip(radiographs, self._fields, strict=True)
        ]
        fractured = np.array([radiograph.fractured for radiograph in radiographs])
        self._yes, self._no = np.flatnonzero(fractured == 1), np.flatnonzero(fractured != 1)

    def choose(self, count: int, positives: float, rng: np.random.Generator) -> list[int]:
        """Draw radiographs at random, with repeats.

        Args:
            count: how many.
            positives: share that is fractured, 0..1.
            rng: of the run, so that it can be repeated.

        Returns:
            Indices of radiographs.

        Raises:
            BadDataset: There is no radiograph of one kind.
        """
        if not len(self._yes) or not len(self._no):
            raise BadDataset(
                f"The training radiographs need both kinds: {len(self._yes)} are fractured, {len(self._no)} are not"
            )
        is_positive = rng.random(count) < positives
        chosen = np.where(is_positive, rng.choice(self._yes, count), rng.choice(self._no, count))
        return [int(index) for index in chosen]

    def crops(
        self, size: int, count: int, positives: float, zoom: tuple[float, float], rng: np.random.Generator
    ) -> Iterator[Batch]:
        """Make endless batches of parts of radiographs.

        Args:
            size: side of each part, pixels.
            count: parts in a batch.
            positives: share of fractured radiographs, 0..1.
            zoom: least and greatest scale, where 1 is the radiograph's prepared size.
            rng: decides all that is random.

        Yields:
            Parts of (size, size), with the labels that hold for them.
        """
        while True:
            yield self.batch([self._crop(i, size, zoom, rng) for i in self.choose(count, positives, rng)], size, rng)

    def whole_radiographs(self, count: int, positives: float, rng: np.random.Generator) -> Iterator[Batch]:
        """Make endless batches of whole radiographs at their prepared size.

        Args:
            count: radiographs in a batch.
            positives: share of fractured ones, 0..1.
            rng: decides all that is random.

        Yields:
            Radiographs with their labels.
        """
        while True:
            yield self.batch([self._whole(i, rng) for i in self.choose(count, positives, rng)], self.size, rng)

    def _whole(self, index: int, rng: np.random.Generator) -> "_View":
        shift = rng.uniform(-0.05, 0.05, 2)
        return _View(index, _view_matrix((0.5, 0.5), rng.uniform(0.85, 1.15), shift, rng), whole=True)

    def _crop(self, index: int, size: int, zoom: tuple[float, float], rng: np.random.Generator) -> "_View":
        scale = float(np.exp(rng.uniform(np.log(zoom[0]), np.log(zoom[1]))))
        radiograph = self.radiographs[index]
        centre, shift = self._random_point(index, rng), np.zeros(2)
        if radiograph.outlines and rng.random() < 0.8:
            outline = radiograph.outlines[rng.integers(len(radiograph.outlines))]
            centre = self._in_square(index, outline[rng.integers(len(outline))])
            shift = rng.uniform(-0.3, 0.3, 2)
        elif self.suspects[index] and rng.random() < 0.6:
            centre = self.suspects[index][rng.integers(len(self.suspects[index]))]
            shift = rng.uniform(-0.3, 0.3, 2)
        return _View(index, _view_matrix(centre, scale * self.size / size, shift, rng), whole=False)

    def _random_point(self, index: int, rng: np.random.Generator) -> Point:
        _, _, height, width = content_box(self._fields[index].height, self._fields[index].width, self.size)
        x, y = 0.5 + (rng.uniform(0.1, 0.9, 2) - 0.5) * [width, height] / self.size
        return float(x), float(y)

    def _in_square(self, index: int, point: npt.NDArray[np.floating]) -> Point:
        """Convert a point of the radiograph, 0..1, to a point of its prepared square."""
        x, y = in_square(point[None], self.radiographs[index], self.size, self._fields[index])[0] / self.size
        return float(x), float(y)

    def batch(self, views: list["_View"], size: int, rng: np.random.Generator) -> Batch:
        """Draw some views as the tensors of a step.

        Args:
            views: which radiograph, and from where it is seen.
            size: side of each view, pixels.
            rng: decides tone and noise.

        Returns:
            Pixels and labels, in order.
        """
        pixels, places, seen = [], [], []
        for view in views:
            pixels.append(_noise(_warp(_random_tone(rng)[self.images[view.index]], view.matrix, size), rng))
            place, share_visible = _cell_targets(self.masks[view.index], view.matrix, size)
            places.append(place)
            seen.append(share_visible)
        radiographs = [self.radiographs[view.index] for view in views]
        labels = [
            _visible_label(radiograph, share_visible, view)
            for radiograph, share_visible, view in zip(radiographs, seen, views, strict=True)
        ]
        return Batch(
            torch.from_numpy(np.stack(pixels))[:, None],
            torch.tensor([radiograph.region for radiograph in radiographs]),
            torch.tensor(labels, dtype=torch.float32),
            torch.tensor(
                [radiograph.extent if v.whole else MISSING for radiograph, v in zip(radiographs, views, strict=True)]
            ),
            torch.from_numpy(np.stack(places)),
            torch.tensor([radiograph.fractured == 0 or bool(radiograph.outlines) for radiograph in radiographs]),
            torch.tensor([radiograph.weight for radiograph in radiographs], dtype=torch.float32),
        )


@dataclass(frozen=True)
class _View:
    index: int
    matrix: npt.NDArray[np.float64]  # (2, 3), unit square to unit square
    whole: bool


def _visible_label(radiograph: LabelledRadiograph, share_visible: float, view: _View) -> int:
    """Decide whether a view shows a fracture, by the share of the mask in it: a part of a fractured image may not."""
    if radiograph.fractured != 1 or (view.whole and not radiograph.outlines):
        return radiograph.fractured
    if not radiograph.outlines:
        return MISSING
    if share_visible >= 0.5:
        return 1
    return 0 if share_visible == 0 else MISSING


def _view_matrix(
    centre: Point, zoom: float, shift: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Make a random flip and turn that brings `centre` to the middle of the view, off by `shift`: (2, 3)."""
    angle = np.deg2rad(rng.uniform(-20, 20)) + (np.pi / 2 * rng.integers(4) if rng.random() < 0.15 else 0)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    turn = zoom * np.array([[flip * np.cos(angle), -np.sin(angle)], [flip * np.sin(angle), np.cos(angle)]])
    return np.hstack([turn, (np.array([0.5, 0.5]) + shift - turn @ np.array(centre))[:, None]])


def _random_tone(rng: np.random.Generator) -> UInt8Square:
    """Draw a random gamma, contrast and brightness as a look-up table: (256,) uint8."""
    steps = np.linspace(0, 1, 256) ** np.exp(rng.uniform(-0.4, 0.4))
    tone = (steps - 0.5) * rng.uniform(0.8, 1.25) + 0.5 + rng.uniform(-0.08, 0.08)
    return np.asarray(np.clip(255 * tone, 0, 255), np.uint8)


def _noise(square: UInt8Square, rng: np.random.Generator) -> UInt8Square:
    kind = rng.random()
    if kind < 0.15:
        return np.asarray(cv2.GaussianBlur(square, (0, 0), rng.uniform(0.4, 1.2)), np.uint8)
    if kind < 0.35:
        noise = rng.standard_normal(square.shape, np.float32) * np.float32(rng.uniform(2, 10))
        return np.clip(square + noise, 0, 255).astype(np.uint8)
    return square


def _warp(image: UInt8Square, unit: npt.NDArray[np.float64], size: int) -> UInt8Square:
    # shrink by area before warping: warpAffine alone would alias hairline fractures away
    zoom = float(np.sqrt(abs(np.linalg.det(unit[:, :2]))))
    source = min(len(image), round(size * zoom))
    if source < len(image):
        image = np.asarray(cv2.resize(image, (source, source), interpolation=cv2.INTER_AREA), np.uint8)
    matrix = unit * size
    matrix[:, :2] /= len(image)
    return np.asarray(cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR), np.uint8)


def _evidence_mask(radiograph: LabelledRadiograph, size: int, field: ExposedField) -> UInt8Square:
    """Draw where the fracture is: full inside the outline, half in the rest of the box around it."""
    return np.maximum(outline_mask(radiograph, size, field), outline_mask(radiograph, size, field, boxes=True) // 2)


def _cell_targets(
    mask: UInt8Square | None, unit: npt.NDArray[np.float64], size: int
) -> tuple[npt.NDArray[np.float32], float]:
    """Draw the mask in a view's cells, and compute the share of it that is in view."""
    cells = size // CELL
    if mask is None:
        return np.zeros((cells, cells), np.float32), 0.0
    grid = 4 * cells
    warped = _warp(mask, unit, grid)
    shown = float(warped.mean())
    expected = float(mask.mean()) * abs(np.linalg.det(unit[:, :2]))
    place = np.asarray(cv2.resize(warped, (cells, cells), interpolation=cv2.INTER_AREA), np.float32) / 255
    # a cell that is half box, or a quarter outline, counts whole
    return np.minimum(np.float32(1), place * np.float32(4)), shown / max(expected, 1e-6)
