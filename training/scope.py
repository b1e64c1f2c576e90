"""The model's scope: fits what distinguishes images like those learned from, and counts what the model abstains on."""

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

from shared.domain.findings import Assessment, Finding
from shared.errors import Rejected
from shared.model.engines import half_precision
from shared.model.network import DIRECTIONS, BoneNet
from shared.model.predictor import Predictor
from shared.pixels.decode import open_pixels
from shared.pixels.radiograph import decode_radiograph
from shared.pixels.tensors import UInt8Image, prepare_square
from training.datasets import MISSING, REGIONS, LabelledRadiograph, read_radiograph
from training.evaluate import Predictions, concatenate, sigmoid

Floats = npt.NDArray[np.float64]
Count = dict[str, Any]  # images, abstained, reasons: how many of each code, caveats: likewise, of positive findings
Counts = dict[str, Count]
HELD_OUT = (
    "held-out, fractured, without metal",
    "held-out, sound, without metal",
    "with metal, held-out or learned from",
)
# which share of the fractured, and of the sound, each reason for abstaining may cost; together under 3 %
OUT_OF_DISTRIBUTION, NO_REGION = 0.005, 0.001
METAL_SENSITIVITY = 0.96  # which share of radiographs with metal is flagged
FOLDS = 20  # of the blocks: few blocks show metal, so that halves of them would differ too much
MAX_EXAMPLES = 1500  # radiographs; more do not move the centres, and cost minutes on a CPU


def fit_scope(network: BoneNet, radiographs: list[LabelledRadiograph], size: int, batch: int = 16) -> None:
    """Fit `network.scope`, in place, on the radiographs that the network was trained on.

    Where no radiograph shows metal, or all do, metal is never reported.

    Args:
        network: trained; its scope is overwritten.
        radiographs: learned from; no held-out radiograph may be among them.
        size: the bundle's input size, pixels.
        batch: radiographs that the network is given at a time.
    """
    radiographs = radiographs[:: math.ceil(len(radiographs) / MAX_EXAMPLES)]
    pooled = _pooled(network, radiographs, size, batch)
    regions = np.array([radiograph.region for radiograph in radiographs])
    centres = np.stack([_centre(pooled, regions == index) for index in range(len(REGIONS))])
    nearest = np.square(pooled[:, None] - centres).sum(2).argmin(1)
    home = np.where(regions == MISSING, nearest, regions)
    off = pooled - centres[home]
    _, lengths, axes = np.linalg.svd(off, full_matrices=False)
    axes, lengths = axes[:DIRECTIONS], lengths[:DIRECTIONS]
    spread = lengths / np.sqrt(len(radiographs))
    rest = np.sqrt(np.maximum(np.square(off).sum(1) - np.square(off @ axes.T).sum(1), 0).mean())
    # where radiographs are few, some directions hardly vary among them; these must not make every other one
    # out of distribution
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
        weight, bias = _hardware(pooled, np.array([radiograph.hardware for radiograph in radiographs]))
        network.scope.hardware.weight.copy_(torch.from_numpy(weight)[None])
        network.scope.hardware.bias.fill_(bias)


def _pooled(network: BoneNet, radiographs: list[LabelledRadiograph], size: int, batch: int) -> Floats:
    network.eval().to(memory_format=torch.channels_last)
    parts = []
    with torch.inference_mode(), half_precision(torch.device("cpu")):
        for start in tqdm(range(0, len(radiographs), batch), desc="scope", unit="batch"):
            squares = np.stack(
                [read_radiograph(radiograph.path, size) for radiograph in radiographs[start : start + batch]]
            )
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
    """Fit weights (C,) and bias of a logistic regression on the pooled features; a bias of -20 if nothing is known."""
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
    """Limits beyond which the model abstains, as the manifest has them."""

    least_region_probability: float
    most_ood_score: float
    hardware: float


def fit_limits(predictions: Predictions, neighbours: Sequence[tuple[str, str]]) -> Limits:
    """Choose limits that turn away few radiographs without metal, of the fractured and of the sound ones alike.

    A limit lies where the class that it hits harder loses no more than the given share: fractures are rarer than
    sound bones, and have higher scores, so that an average over both would hide what they lose. That of metal lies
    where METAL_SENSITIVITY of what shows metal is flagged; beside a positive raw score it is a caveat.

    Args:
        predictions: of held-out radiographs, and of all that are known to show metal.
        neighbours: regions that count together, see `Manifest.region_neighbours`.

    Returns:
        Limits as the manifest has them.
    """
    metal = sigmoid(predictions.hardware)[[radiograph.hardware == 1 for radiograph in predictions.radiographs]]
    usual = np.array([radiograph.hardware != 1 for radiograph in predictions.radiographs], bool)
    groups = [keep for label in (1, 0) if (keep := usual & (predictions.fractured == label)).any()]
    groups = groups or [usual if usual.any() else ~usual]  # where nothing is known, all count
    certainty = certainties(predictions, neighbours)
    return Limits(
        least_region_probability=round(min(float(np.quantile(certainty[keep], NO_REGION)) for keep in groups), 3),
        most_ood_score=round(
            max(float(np.quantile(predictions.ood_score[keep], 1 - OUT_OF_DISTRIBUTION)) for keep in groups), 4
        ),
        hardware=math.floor(1e4 * float(np.quantile(metal, 1 - METAL_SENSITIVITY, method="lower"))) / 1e4
        if len(metal)
        else 1.0,
    )


def certainties(predictions: Predictions, neighbours: Sequence[tuple[str, str]]) -> Floats:
    """Compute how sure the body region is, as `Predictor.certainty` does.

    Args:
        predictions: N radiographs.
        neighbours: regions whose probabilities are added, see `Manifest.region_neighbours`.

    Returns:
        (N,) 0..1.
    """
    raised = np.exp(predictions.region - predictions.region.max(1, keepdims=True))
    chances = raised / raised.sum(1, keepdims=True)
    pairs = [chances[:, REGIONS.index(one)] + chances[:, REGIONS.index(other)] for one, other in neighbours]
    certainty: Floats = np.max([chances.max(1), *pairs], axis=0)
    return certainty


def measure_scope(
    predictor: Predictor, predictions: Predictions, folder: Path | None, metal: Predictions | None = None
) -> Counts:
    """Count the images of each kind that the model abstains on, and why.

    Of radiographs in scope these should be few, of other images nearly all.

    Args:
        predictor: the network with its manifest.
        predictions: of held-out radiographs, counted by class and cross-fitted: each fold of the blocks is judged by
            limits that the others chose.
        folder: DICOM files that are no bone radiographs in scope, judged once as they come, with their header, and once
            by their pixels alone; None leaves them out.
        metal: of other radiographs, which show metal, counted and cross-fitted likewise.

    Returns:
        Numbers of images and abstentions, and of each reason, for each kind of image.
    """
    size = predictor.size
    usual = [radiograph for radiograph in predictions.radiographs if radiograph.hardware != 1]
    some = [read_radiograph(radiograph.path, size) for radiograph in usual[:: max(1, len(usual) // 60)]]
    kinds: dict[str, Iterable[UInt8Image]] = {
        "inverted radiographs": (_inverted(square) for square in some),
        "radiographs collimated away": (_collimated(square) for square in some),
        "noise": _noise(size),
        "photographs": _photographs(size),
        "pages of text": _pages(size),
    }
    counts = _held_out(predictor, predictions, metal)
    counts |= {
        kind: _count_abstentions(predictor, [(square, "", "") for square in squares]) for kind, squares in kinds.items()
    }
    if folder:
        frames = list(_dicom(folder, size))
        counts["other DICOM images, with header"] = _count_abstentions(predictor, frames)
        counts["other DICOM images, by pixels alone"] = _count_abstentions(predictor, [(f[0], "", "") for f in frames])
    return counts


def _held_out(predictor: Predictor, predictions: Predictions, metal: Predictions | None) -> Counts:
    """Count held-out radiographs by class, cross-fitted."""
    folds, neighbours = _folds(predictions.radiographs), predictor.manifest.region_neighbours
    if metal is not None:
        folds = np.concatenate([folds, _folds(metal.radiographs)])
        predictions = concatenate(predictions, metal)
    found: dict[str, list[Finding]] = {name: [] for name in HELD_OUT}
    for own in (folds == fold for fold in sorted(set(folds.tolist()))):
        limits = fit_limits(predictions.only(~own), neighbours) if (~own).any() else None
        strict = predictor.with_limits(**asdict(limits)) if limits else predictor
        radiographs = [radiograph for radiograph, kept in zip(predictions.radiographs, own, strict=True) if kept]
        for start in range(0, len(radiographs), 16):
            part = radiographs[start : start + 16]
            squares = [read_radiograph(radiograph.path, predictor.size) for radiograph in part]
            for radiograph, output in zip(part, predictor.predict(squares), strict=True):
                name = HELD_OUT[2] if radiograph.hardware == 1 else HELD_OUT[radiograph.fractured != 1]
                found[name].append(strict.finding(output, 1, ""))
    return {name: _abstention_counts(findings) for name, findings in found.items()}


def _folds(radiographs: list[LabelledRadiograph]) -> npt.NDArray[np.int64]:
    """Choose the fold in which each radiograph is judged, (N,); those of a block are together."""
    blocks = {block: place for place, block in enumerate(sorted({radiograph.block for radiograph in radiographs}))}
    return np.array([blocks[radiograph.block] % FOLDS for radiograph in radiographs], np.int64)


def _count_abstentions(predictor: Predictor, images: list[tuple[UInt8Image, str, str]]) -> Count:
    findings = []
    for start in range(0, len(images), 16):
        part = images[start : start + 16]
        for output, (_, modality, body_part) in zip(predictor.predict([image[0] for image in part]), part, strict=True):
            findings.append(predictor.finding(output, 1, modality, body_part))
    return _abstention_counts(findings)


def _abstention_counts(findings: list[Finding]) -> Count:
    abstained = [finding for finding in findings if finding.assessment is Assessment.ABSTAINED]
    reasons = Counter(str(finding.abstention) for finding in abstained)
    caveats = Counter(str(finding.abstention) for finding in findings if finding.abstention) - reasons
    counts = {"images": len(findings), "abstained": len(abstained), "reasons": dict(sorted(reasons.items()))}
    return counts | ({"caveats": dict(sorted(caveats.items()))} if caveats else {})


def _inverted(square: UInt8Image) -> UInt8Image:
    """Reverse the radiograph's gray values; the padding around it stays."""
    exposed = (square.max(1) > 0)[:, None] & (square.max(0) > 0)[None]
    return np.where(exposed, 255 - square, square).astype(np.uint8)


def _collimated(square: UInt8Image) -> UInt8Image:
    """Blacken all of the radiograph but a square of a twelfth of its side."""
    shut = np.zeros_like(square)
    size = len(square)
    part = slice(size // 2, size // 2 + max(1, size // 12))
    shut[part, part] = square[part, part]
    return prepare_square(shut, size)


def _noise(size: int, count: int = 40) -> Iterator[UInt8Image]:
    rng = np.random.default_rng(1)
    for number in range(count):
        coarse = rng.standard_normal((max(2, size >> number % 6),) * 2).astype(np.float32)
        yield prepare_square(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), size)


def _photographs(size: int, count: int = 40) -> Iterator[UInt8Image]:
    """Cut parts of the two photographs that scikit-learn contains."""
    rng = np.random.default_rng(2)
    grays = [cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY) for photo in load_sample_images().images]
    for number in range(count):
        gray = grays[number % len(grays)]
        side = int(rng.integers(min(gray.shape) // 3, min(gray.shape)))
        top, left = (int(rng.integers(length - side + 1)) for length in gray.shape)
        yield prepare_square(gray[top : top + side, left : left + side], size)


def _pages(size: int, count: int = 40) -> Iterator[UInt8Image]:
    """Write typed pages, every second one as a negative."""
    rng = np.random.default_rng(3)
    letters = list("abcdefghijklmnopqrstuvwxyz    ")
    for number in range(count):
        page = np.full((1100, 850), 255, np.uint8)
        for line in range(int(rng.integers(5, 40))):
            words = "".join(rng.choice(letters, int(rng.integers(10, 60))))
            cv2.putText(page, words, (40, 60 + 25 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 0, 1, cv2.LINE_AA)
        yield prepare_square(page if number % 2 else 255 - page, size)


def _dicom(folder: Path, size: int) -> Iterator[tuple[UInt8Image, str, str]]:
    """Read the first frame of every readable DICOM image, with its modality and body part."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                source = open_pixels(path.read_bytes())
                yield decode_radiograph(source, 0).square(size), source.modality or "unknown", source.body_part
            except Rejected:
                continue
