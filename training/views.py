"""Augmented views of films, as batches: what the training steps see."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.errors import BadDataset
from shared.findings import ExposedField
from shared.vision.network import CELL
from shared.vision.tensors import content_box
from training.datasets import MISSING, Film, in_square, outline_mask, read_exposed

Point = tuple[float, float]  # x, y in 0..1 of the prepared square
UInt8Square = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """One training step's tensors."""

    pixels: Tensor  # (B, 1, S, S) uint8
    region: Tensor  # (B,) int64, MISSING where unknown
    fractured: Tensor  # (B,) float32: 0, 1, or MISSING where the view leaves it open
    severity: Tensor  # (B,) int64, MISSING where unknown or where only a part of the film is seen
    place: Tensor  # (B, S/16, S/16) float32 in 0..1: how much each cell is fracture
    placed: Tensor  # (B,) bool: `place` is known
    weight: Tensor  # (B,) float32

    def on(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(*(getattr(self, part.name).to(device, non_blocking=True) for part in fields(self)))


class FilmCache:
    """All films prepared once, exactly as the worker prepares them, and held in memory: an epoch costs warps only."""

    def __init__(self, films: list[Film], size: int) -> None:
        """size: the bundle's input size, pixels. Memory: films * size * size bytes."""
        self.films, self.size = films, size
        # where else to look in a film: what a model wrongly takes for a fracture; filled by training
        self.suspects: list[list[Point]] = [[] for _ in films]
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(lambda film: read_exposed(film.path, size), films))
        self.images, self._fields = [square for square, _ in read], [field for _, field in read]
        self.masks = [
            _evidence(film, size, field) if film.outlines else None
            for film, field in zip(films, self._fields, strict=True)
        ]
        fractured = np.array([film.fractured for film in films])
        self._yes, self._no = np.flatnonzero(fractured == 1), np.flatnonzero(fractured != 1)

    def choose(self, count: int, positives: float, dice: np.random.Generator) -> list[int]:
        """Indices of `count` films, a share `positives` of them fractured.

        Raises BadDataset if there is no film of one kind.
        """
        if not len(self._yes) or not len(self._no):
            raise BadDataset(
                f"The training films need both kinds: {len(self._yes)} are fractured, {len(self._no)} are not"
            )
        wanted = dice.random(count) < positives
        chosen = np.where(wanted, dice.choice(self._yes, count), dice.choice(self._no, count))
        return [int(index) for index in chosen]

    def crops(
        self, size: int, count: int, positives: float, zoom: tuple[float, float], dice: np.random.Generator
    ) -> Iterator[Batch]:
        """Endless batches of parts of films: squares of `size` pixels, the film at `zoom` times its prepared size."""
        while True:
            yield self.batch([self._crop(i, size, zoom, dice) for i in self.choose(count, positives, dice)], size, dice)

    def whole(self, count: int, positives: float, dice: np.random.Generator) -> Iterator[Batch]:
        """Endless batches of whole films at their prepared size."""
        while True:
            yield self.batch([self._whole(i, dice) for i in self.choose(count, positives, dice)], self.size, dice)

    def _whole(self, index: int, dice: np.random.Generator) -> "_View":
        shift = dice.uniform(-0.05, 0.05, 2)
        return _View(index, _view((0.5, 0.5), dice.uniform(0.85, 1.15), shift, dice), whole=True)

    def _crop(self, index: int, size: int, zoom: tuple[float, float], dice: np.random.Generator) -> "_View":
        scale = float(np.exp(dice.uniform(np.log(zoom[0]), np.log(zoom[1]))))
        film = self.films[index]
        centre, shift = self._anywhere(index, dice), np.zeros(2)
        if film.outlines and dice.random() < 0.8:
            outline = film.outlines[dice.integers(len(film.outlines))]
            centre = self._in_square(index, outline[dice.integers(len(outline))])
            shift = dice.uniform(-0.3, 0.3, 2)
        elif self.suspects[index] and dice.random() < 0.6:
            centre = self.suspects[index][dice.integers(len(self.suspects[index]))]
            shift = dice.uniform(-0.3, 0.3, 2)
        return _View(index, _view(centre, scale * self.size / size, shift, dice), whole=False)

    def _anywhere(self, index: int, dice: np.random.Generator) -> Point:
        _, _, height, width = content_box(self._fields[index].height, self._fields[index].width, self.size)
        x, y = 0.5 + (dice.uniform(0.1, 0.9, 2) - 0.5) * [width, height] / self.size
        return float(x), float(y)

    def _in_square(self, index: int, point: npt.NDArray[np.floating]) -> Point:
        """A point of the film, 0..1, as a point of its prepared square."""
        x, y = in_square(point[None], self.films[index], self.size, self._fields[index])[0] / self.size
        return float(x), float(y)

    def batch(self, views: list["_View"], size: int, dice: np.random.Generator) -> Batch:
        """The tensors of some views, each (size, size)."""
        pixels, places, seen = [], [], []
        for view in views:
            pixels.append(_noise(_warp(_random_tone(dice)[self.images[view.index]], view.matrix, size), dice))
            place, here = _place(self.masks[view.index], view.matrix, size)
            places.append(place)
            seen.append(here)
        films = [self.films[view.index] for view in views]
        said = [_seen(film, here, view) for film, here, view in zip(films, seen, views, strict=True)]
        return Batch(
            torch.from_numpy(np.stack(pixels))[:, None],
            torch.tensor([film.region for film in films]),
            torch.tensor(said, dtype=torch.float32),
            torch.tensor([film.severity if v.whole else MISSING for film, v in zip(films, views, strict=True)]),
            torch.from_numpy(np.stack(places)),
            torch.tensor([film.fractured == 0 or bool(film.outlines) for film in films]),
            torch.tensor([film.weight for film in films], dtype=torch.float32),
        )


@dataclass(frozen=True)
class _View:
    index: int
    matrix: npt.NDArray[np.float64]  # (2, 3), unit square to unit square
    whole: bool


def _seen(film: Film, here: float, view: _View) -> int:
    """Whether this view shows a fracture: a part of a fractured film may not. here: the share of the mask in view."""
    if film.fractured != 1 or (view.whole and not film.outlines):
        return film.fractured
    if not film.outlines:
        return MISSING
    if here >= 0.5:
        return 1
    return 0 if here == 0 else MISSING


def _view(
    centre: Point, zoom: float, shift: npt.NDArray[np.float64], dice: np.random.Generator
) -> npt.NDArray[np.float64]:
    """A random flip and turn that brings `centre` to the middle of the view, off by `shift`: (2, 3)."""
    angle = np.deg2rad(dice.uniform(-20, 20)) + (np.pi / 2 * dice.integers(4) if dice.random() < 0.15 else 0)
    flip = -1.0 if dice.random() < 0.5 else 1.0
    turn = zoom * np.array([[flip * np.cos(angle), -np.sin(angle)], [flip * np.sin(angle), np.cos(angle)]])
    return np.hstack([turn, (np.array([0.5, 0.5]) + shift - turn @ np.array(centre))[:, None]])


def _random_tone(dice: np.random.Generator) -> UInt8Square:
    """A random gamma, contrast and brightness as a look-up table: (256,) uint8."""
    steps = np.linspace(0, 1, 256) ** np.exp(dice.uniform(-0.4, 0.4))
    tone = (steps - 0.5) * dice.uniform(0.8, 1.25) + 0.5 + dice.uniform(-0.08, 0.08)
    return np.asarray(np.clip(255 * tone, 0, 255), np.uint8)


def _noise(square: UInt8Square, dice: np.random.Generator) -> UInt8Square:
    kind = dice.random()
    if kind < 0.15:
        return np.asarray(cv2.GaussianBlur(square, (0, 0), dice.uniform(0.4, 1.2)), np.uint8)
    if kind < 0.35:
        noise = dice.standard_normal(square.shape, np.float32) * np.float32(dice.uniform(2, 10))
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


def _evidence(film: Film, size: int, field: ExposedField) -> UInt8Square:
    """Where the fracture is: full inside the outline, half in the rest of the box around it."""
    return np.maximum(outline_mask(film, size, field), outline_mask(film, size, field, boxes=True) // 2)


def _place(mask: UInt8Square | None, unit: npt.NDArray[np.float64], size: int) -> tuple[npt.NDArray[np.float32], float]:
    """The mask in a view's cells, and which share of it is in view."""
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
