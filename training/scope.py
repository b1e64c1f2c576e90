"""The model's scope: fitting what tells films like those learned from others, and measuring who is turned away."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from shared.errors import Rejected
from shared.findings import Assessment, Finding
from shared.vision.engines import half_precision
from shared.vision.network import DIRECTIONS, BoneNet
from shared.vision.pixels import open_pixels
from shared.vision.radiograph import radiograph
from shared.vision.reader import Reader
from shared.vision.tensors import UInt8Image, prepare
from training.datasets import MISSING, REGIONS, Film, read_film
from training.evaluate import Answers, joined, sigmoid

Floats = npt.NDArray[np.float64]
Count = dict[str, Any]  # images, abstained, reasons: how many of each code, caveats: likewise, of positive findings
Counts = dict[str, Count]
HELD_OUT = (
    "held-out, fractured, without metal",
    "held-out, sound, without metal",
    "with metal, held-out or learned from",
)
# which share of the fractured, and of the sound, each reason for abstaining may cost; together under 3 %
STRANGE, NO_REGION = 0.005, 0.001
FLAGGED = 0.96  # which share of radiographs with metal is flagged
FOLDS = 20  # of the blocks: few blocks show metal, so that halves of them would differ too much
ENOUGH = 1500  # films; more do not move the centres, and cost minutes on a CPU


def fit_scope(network: BoneNet, films: list[Film], size: int, batch: int = 16) -> None:
    """Fit `network.scope`, in place, on the films that the network was trained on; no held-out film may be among them.

    size: the bundle's input size, pixels. Where no film shows metal, or all do, metal is never reported.
    """
    films = films[:: math.ceil(len(films) / ENOUGH)]
    pooled = _pooled(network, films, size, batch)
    regions = np.array([film.region for film in films])
    centres = np.stack([_centre(pooled, regions == index) for index in range(len(REGIONS))])
    nearest = np.square(pooled[:, None] - centres).sum(2).argmin(1)
    home = np.where(regions == MISSING, nearest, regions)
    off = pooled - centres[home]
    _, lengths, axes = np.linalg.svd(off, full_matrices=False)
    axes, lengths = axes[:DIRECTIONS], lengths[:DIRECTIONS]
    spread = lengths / np.sqrt(len(films))
    rest = np.sqrt(np.maximum(np.square(off).sum(1) - np.square(off @ axes.T).sum(1), 0).mean())
    # where films are few, some directions hardly vary among them; these must not make every other film strange
    least = max(0.01 * float(spread[0]), 1e-4)
    state = {
        "centres": centres,
        "axes": axes,
        "spread": np.maximum(spread, least),
        "rest": np.array([max(rest, least)]),
    }
    with torch.no_grad():
        for name, value in state.items():
            buffer = network.scope.get_buffer(name)
            buffer[: len(value)] = torch.from_numpy(value).to(buffer.dtype)
        weight, bias = _hardware(pooled, np.array([film.hardware for film in films]))
        network.scope.hardware.weight.copy_(torch.from_numpy(weight)[None])
        network.scope.hardware.bias.fill_(bias)


def _pooled(network: BoneNet, films: list[Film], size: int, batch: int) -> Floats:
    network.eval().to(memory_format=torch.channels_last)
    parts = []
    with torch.inference_mode(), half_precision(torch.device("cpu")):
        for start in tqdm(range(0, len(films), batch), desc="scope", unit="batch"):
            squares = np.stack([read_film(film.path, size) for film in films[start : start + batch]])
            parts.append(
                network.features(torch.from_numpy(squares)[:, None].contiguous(memory_format=torch.channels_last))[-1]
                .float()
                .mean((2, 3))
                .double()
                .numpy()
            )
    return np.concatenate(parts)


def _centre(pooled: Floats, own: npt.NDArray[np.bool_]) -> Floats:
    mean: Floats = (pooled[own] if own.any() else pooled).mean(0)
    return mean


def _hardware(pooled: Floats, hardware: npt.NDArray[np.int64]) -> tuple[Floats, float]:
    """Weights (C,) and bias of a logistic regression on the pooled features; a bias of -20 where nothing is known."""
    known = hardware != MISSING
    if not 0 < (hardware[known] == 1).sum() < known.sum():
        return np.zeros(pooled.shape[1]), -20.0
    mean, spread = pooled[known].mean(0), pooled[known].std(0) + 1e-6
    fitted = LogisticRegression(C=1e-3, class_weight="balanced", max_iter=2000).fit(
        (pooled[known] - mean) / spread, hardware[known]
    )
    weight = fitted.coef_[0] / spread
    return weight, float(fitted.intercept_[0] - weight @ mean)


@dataclass(frozen=True)
class Limits:
    """From where on the model abstains; as the manifest has them."""

    least_region_probability: float
    most_strangeness: float
    hardware: float


def fit_limits(answers: Answers, neighbours: Sequence[tuple[str, str]]) -> Limits:
    """Limits that turn away few radiographs without metal, of the fractured and of the sound ones alike.

    answers: of held-out radiographs, and of all that are known to show metal; neighbours: regions that count together,
    see `Manifest.region_neighbours`. A limit lies where the class that it hits harder loses no more than the given
    share: fractures are rarer than sound bones, and look stranger, so that an average over both would hide what they
    lose. That of metal lies where FLAGGED of what shows metal is flagged; beside a positive raw score it is a caveat.
    """
    metal = sigmoid(answers.hardware)[[film.hardware == 1 for film in answers.films]]
    usual = np.array([film.hardware != 1 for film in answers.films], bool)
    groups = [keep for label in (1, 0) if (keep := usual & (answers.fractured == label)).any()]
    groups = groups or [usual if usual.any() else ~usual]  # where nothing is known, all count
    certainty = certainties(answers, neighbours)
    return Limits(
        least_region_probability=round(min(float(np.quantile(certainty[keep], NO_REGION)) for keep in groups), 3),
        most_strangeness=round(max(float(np.quantile(answers.strangeness[keep], 1 - STRANGE)) for keep in groups), 4),
        hardware=math.floor(1e4 * float(np.quantile(metal, 1 - FLAGGED, method="lower"))) / 1e4 if len(metal) else 1.0,
    )


def certainties(answers: Answers, neighbours: Sequence[tuple[str, str]]) -> Floats:
    """(N,) how sure the body region is, as `Reader.certainty` has it."""
    raised = np.exp(answers.region - answers.region.max(1, keepdims=True))
    chances = raised / raised.sum(1, keepdims=True)
    pairs = [chances[:, REGIONS.index(one)] + chances[:, REGIONS.index(other)] for one, other in neighbours]
    certainty: Floats = np.max([chances.max(1), *pairs], axis=0)
    return certainty


def measure_scope(reader: Reader, answers: Answers, folder: Path | None, metal: Answers | None = None) -> Counts:
    """How many images of each kind the model abstains on, and why: radiographs in scope (few), others (nearly all).

    answers: of held-out radiographs, and metal: of others that show metal, which are counted by class and cross-fitted:
    each fold of the blocks is judged by limits that the others chose; folder: DICOM files that are no bone
    radiographs in scope, judged once as they come, with their header, and once by their pixels alone.
    """
    size = reader.size
    usual = [film for film in answers.films if film.hardware != 1]
    some = [read_film(film.path, size) for film in usual[:: max(1, len(usual) // 60)]]
    kinds: dict[str, Iterable[UInt8Image]] = {
        "inverted films": (_inverted(square) for square in some),
        "films collimated away": (_collimated(square) for square in some),
        "noise": _noise(size),
        "photographs": _photographs(size),
        "pages of text": _pages(size),
    }
    counts = _held_out(reader, answers, metal)
    counts |= {kind: _abstained(reader, [(square, "", "") for square in squares]) for kind, squares in kinds.items()}
    if folder:
        frames = list(_dicom(folder, size))
        counts["other DICOM images, with header"] = _abstained(reader, frames)
        counts["other DICOM images, by pixels alone"] = _abstained(reader, [(f[0], "", "") for f in frames])
    return counts


def _held_out(reader: Reader, answers: Answers, metal: Answers | None) -> Counts:
    """Held-out radiographs by class, cross-fitted."""
    folds, neighbours = _folds(answers.films), reader.manifest.region_neighbours
    if metal is not None:
        folds = np.concatenate([folds, _folds(metal.films)])
        answers = joined(answers, metal)
    found: dict[str, list[Finding]] = {name: [] for name in HELD_OUT}
    for own in (folds == fold for fold in sorted(set(folds.tolist()))):
        limits = fit_limits(answers.only(~own), neighbours) if (~own).any() else None
        strict = reader.limited(**asdict(limits)) if limits else reader
        films = [film for film, kept in zip(answers.films, own, strict=True) if kept]
        for start in range(0, len(films), 16):
            part = films[start : start + 16]
            squares = [read_film(film.path, reader.size) for film in part]
            for film, reading in zip(part, reader.read(squares), strict=True):
                name = HELD_OUT[2] if film.hardware == 1 else HELD_OUT[film.fractured != 1]
                found[name].append(strict.finding(reading, 1, ""))
    return {name: _counted(findings) for name, findings in found.items()}


def _folds(films: list[Film]) -> npt.NDArray[np.int64]:
    """(N,) which fold each radiograph is judged in; those of a block stand together."""
    blocks = {block: place for place, block in enumerate(sorted({film.block for film in films}))}
    return np.array([blocks[film.block] % FOLDS for film in films], np.int64)


def _abstained(reader: Reader, images: list[tuple[UInt8Image, str, str]]) -> Count:
    findings = []
    for start in range(0, len(images), 16):
        part = images[start : start + 16]
        for reading, (_, modality, body_part) in zip(reader.read([image[0] for image in part]), part, strict=True):
            findings.append(reader.finding(reading, 1, modality, body_part))
    return _counted(findings)


def _counted(findings: list[Finding]) -> Count:
    abstained = [finding for finding in findings if finding.assessment is Assessment.ABSTAINED]
    reasons = Counter(str(finding.abstention) for finding in abstained)
    caveats = Counter(str(finding.abstention) for finding in findings if finding.abstention) - reasons
    told = {"images": len(findings), "abstained": len(abstained), "reasons": dict(sorted(reasons.items()))}
    return told | ({"caveats": dict(sorted(caveats.items()))} if caveats else {})


def _inverted(square: UInt8Image) -> UInt8Image:
    """The film with gray reversed; the padding around it stays."""
    exposed = (square.max(1) > 0)[:, None] & (square.max(0) > 0)[None]
    return np.where(exposed, 255 - square, square).astype(np.uint8)


def _collimated(square: UInt8Image) -> UInt8Image:
    """All but a fiftieth of the film's side by another is shut away."""
    shut = np.zeros_like(square)
    size = len(square)
    part = slice(size // 2, size // 2 + max(1, size // 12))
    shut[part, part] = square[part, part]
    return prepare(shut, size)


def _noise(size: int, count: int = 40) -> Iterator[UInt8Image]:
    dice = np.random.default_rng(1)
    for number in range(count):
        coarse = dice.standard_normal((max(2, size >> number % 6),) * 2).astype(np.float32)
        yield prepare(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), size)


def _photographs(size: int, count: int = 40) -> Iterator[UInt8Image]:
    """Parts of the two photographs that scikit-learn brings along."""
    dice = np.random.default_rng(2)
    grays = [cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY) for photo in load_sample_images().images]
    for number in range(count):
        gray = grays[number % len(grays)]
        side = int(dice.integers(min(gray.shape) // 3, min(gray.shape)))
        top, left = (int(dice.integers(length - side + 1)) for length in gray.shape)
        yield prepare(gray[top : top + side, left : left + side], size)


def _pages(size: int, count: int = 40) -> Iterator[UInt8Image]:
    """Typed pages, every second one as a negative."""
    dice = np.random.default_rng(3)
    letters = list("abcdefghijklmnopqrstuvwxyz    ")
    for number in range(count):
        page = np.full((1100, 850), 255, np.uint8)
        for line in range(int(dice.integers(5, 40))):
            words = "".join(dice.choice(letters, int(dice.integers(10, 60))))
            cv2.putText(page, words, (40, 60 + 25 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 0, 1, cv2.LINE_AA)
        yield prepare(page if number % 2 else 255 - page, size)


def _dicom(folder: Path, size: int) -> Iterator[tuple[UInt8Image, str, str]]:
    """The first frame of every readable DICOM image, with its modality and body part."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                source = open_pixels(path.read_bytes())
                yield radiograph(source, 0).square(size), source.modality or "unknown", source.body_part
            except Rejected:
                continue
