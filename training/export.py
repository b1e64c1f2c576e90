"""`osteon export` and `osteon evaluate`: make a bundle of a finished run, and measure it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.domain.manifest import Manifest
from shared.errors import BadDataset
from shared.model.bundle import load_bundle, save_bundle
from shared.model.engines import Engine, pick_engine
from shared.model.network import BoneNet
from shared.model.predictor import Predictor, displayed_heatmaps
from training.card import card
from training.datasets import REGIONS, LabelledRadiograph, radiographs, split
from training.evaluate import (
    CalibratedPredictions,
    Predictions,
    calibrated_probability,
    concatenate,
    fit_calibration,
    judge_as_shipped,
    judge_cross_fitted,
    operating_points,
    predict,
)
from training.report import write_report
from training.scope import fit_limits, fit_scope, measure_scope
from training.train import held_out, learned_from

# regions that share a bone: a radiograph of the thigh shows hip and knee
NEIGHBOURS = (("hand", "elbow"), ("elbow", "shoulder"), ("hip", "leg"))
# body parts (PS3.16 annex L) that no region stands for; what is not listed is judged by its pixels
OTHER_BODY_PARTS = (
    "ABDOMEN", "ABDOMENPELVIS", "BREAST", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "CSPINE", "CTSPINE", "HEAD",
    "HEADNECK", "HEART", "JAW", "LSPINE", "LSSPINE", "LUNG", "MANDIBLE", "NECK", "NECKCHEST", "NECKCHESTABDOMEN",
    "NECKCHESTABDPELV", "RIB", "SKULL", "SPINE", "SSPINE", "STERNUM", "TEETH", "TLSPINE", "TSPINE", "WHOLEBODY",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """Judged predictions on some radiographs, with the network, its manifest, and a note on which they are."""

    network: BoneNet
    engine: Engine
    judged: CalibratedPredictions
    manifest: Manifest
    note: str
    metal: Predictions | None = None  # of radiographs with metal that are not among the judged


def load_run(run: Path) -> tuple[BoneNet, dict[str, Any]]:
    """Load the trained network of a run, and its recipe; raises BadDataset if the run is not finished."""
    weights, recipe_file = run / "weights.pt", run / "recipe.json"
    if not weights.is_file():
        raise BadDataset(f"{weights} is missing: finish the run with `osteon train --out {run}`")
    recipe = json.loads(recipe_file.read_text())
    network = BoneNet(len(REGIONS), recipe["architecture"])
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval(), recipe


def evaluate_run(run: Path, name: str) -> Evaluation:
    """Evaluate a finished run on its held-out radiographs, with fp16 weights as it will be shipped.

    What the bundle needs beside weights is fitted here: the scope on the radiographs that were learned from;
    calibration, operating points and limits on the held-out radiographs, whose figures are therefore cross-fitted.

    Args:
        run: folder of the run.
        name: of the bundle, for its manifest.

    Returns:
        The judged predictions, with the network and manifest that make a bundle.

    Raises:
        BadDataset: The run is not finished, or radiographs are missing.
    """
    network, recipe = load_run(run)
    network.half().float()
    size = recipe["size"]
    fit_scope(network, learned_from(run / "recipe.json"), size)
    network.half().float()
    unseen = held_out(run / "recipe.json")
    engine = pick_engine(network, size)
    predictions = predict(engine, unseen, size)
    metal = _metal_predictions(engine, learned_from(run / "recipe.json"), size)
    note = (
        f"{len(unseen)} radiographs held out by block, seed {recipe['seed']}; calibration and thresholds cross-fitted"
    )
    manifest = _describe(predictions, metal, name, recipe, note)
    return Evaluation(network, engine, judge_cross_fitted(predictions), manifest, note, metal)


def evaluate_bundle(bundle: Path, data: list[Path], *, everything: bool) -> Evaluation:
    """Evaluate a bundle on the radiographs of some data sets.

    Args:
        bundle: a file that `export` wrote.
        data: folders or .csv files, as `datasets.radiographs` takes them.
        everything: all radiographs, judged by the bundle's own calibration, for sets that it was not trained on. Else
            only those that its split held out, cross-fitted as when it was exported.

    Returns:
        The judged predictions; metal is None with `everything`.

    Raises:
        BadBundle: The file is no bundle.
        BadDataset: A data set cannot be read, or has too few radiographs.
    """
    network, manifest = load_bundle(bundle.read_bytes())
    chosen, others = _all_radiographs(data), list[LabelledRadiograph]()
    if not everything and "seed" in manifest.data:
        others, chosen = split(chosen, int(manifest.data["seed"]))
    engine = pick_engine(network, manifest.input_size)
    predictions = predict(engine, chosen, manifest.input_size)
    if everything:
        sets = ", ".join(path.name for path in data)
        note = f"all {len(chosen)} radiographs of {sets}; the bundle's own calibration and thresholds"
        return Evaluation(network, engine, judge_as_shipped(predictions, manifest), manifest, note)
    note = f"{len(chosen)} radiographs held out by block, seed {manifest.data.get('seed')}; calibration cross-fitted"
    metal = _metal_predictions(engine, others, manifest.input_size)
    return Evaluation(network, engine, judge_cross_fitted(predictions), manifest, note, metal)


def _metal_predictions(engine: Engine, learned: list[LabelledRadiograph], size: int) -> Predictions | None:
    """Run the radiographs that show metal: few are held out, so its limit rests on those that were learned from too."""
    radiographs = [radiograph for radiograph in learned if radiograph.hardware == 1]
    return predict(engine, radiographs, size) if radiographs else None


def _all_radiographs(data: list[Path]) -> list[LabelledRadiograph]:
    return [radiograph for path in data for radiograph in radiographs(path)]


def report(evaluation: Evaluation, out: Path, out_of_distribution: Path | None) -> dict[str, Any]:
    """Write metrics.json and report.html.

    Args:
        evaluation: what is reported.
        out: a folder, made where it is missing.
        out_of_distribution: folder of DICOM files that are no bone radiographs in scope, to measure abstention on; None
            measures it on made-up images alone.

    Returns:
        The figures, as metrics.json has them.
    """
    predictor = Predictor(evaluation.network, evaluation.manifest, evaluation.engine)
    scope = measure_scope(predictor, evaluation.judged.predictions, out_of_distribution, evaluation.metal)
    return write_report(evaluation.judged, evaluation.manifest, out, evaluation.note, extra={"scope": scope})


def export(run: Path, name: str, path: Path, out_of_distribution: Path | None = None, title: str = "") -> Manifest:
    """Evaluate a run, choose calibration, operating points and limits, write the bundle and its card beside it.

    Args:
        run: folder of a finished run; gets metrics.json and report.html.
        name: of the bundle, for its manifest.
        path: the bundle to write; the card has the same name with .md.
        out_of_distribution: as `report` takes it.
        title: the name that people see; empty: the key.

    Returns:
        The manifest, as the bundle holds it.

    Raises:
        BadDataset: The run is not finished, or radiographs are missing.
    """
    evaluation = evaluate_run(run, name)
    figures = report(evaluation, run, out_of_distribution)
    manifest = evaluation.manifest.model_copy(update={"metrics": figures, "title": title})
    save_bundle(path, evaluation.network, manifest)
    path.with_suffix(".md").write_text(card(manifest))
    return manifest


def _describe(
    predictions: Predictions, metal: Predictions | None, name: str, recipe: dict[str, Any], note: str
) -> Manifest:
    """Make the manifest that follows from these held-out predictions."""
    known = predictions.only(predictions.fractured >= 0)
    calibration = fit_calibration(known.fracture, known.fractured)
    sensitive, specific = operating_points(calibrated_probability(known.fracture, calibration), known.fractured)
    limits = fit_limits(concatenate(predictions, metal) if metal else predictions, NEIGHBOURS)
    top = displayed_heatmaps(known.only(known.fractured == 1).heatmaps).max((1, 2))
    return Manifest(
        name=name,
        architecture=recipe["architecture"],
        regions=list(REGIONS),
        input_size=recipe["size"],
        calibration=calibration,
        sensitive=sensitive,
        specific=specific,
        modalities=["CR", "DX", "RG", "OT"],
        other_body_parts=list(OTHER_BODY_PARTS),
        region_neighbours=list(NEIGHBOURS),
        least_region_probability=limits.least_region_probability,
        most_ood_score=limits.most_ood_score,
        hardware=limits.hardware,
        heatmap_full=min(1.0, max(1e-3, float(np.quantile(top, 0.5)))),
        data={
            "sets": [Path(path).name for path in recipe["data"]],
            "seed": recipe["seed"],
            "split": note,
            "sources": _sources(predictions.radiographs),
            "severity": "extent, by number and area of annotated fractures; not a clinical grade",
            "recipe": {k: v for k, v in recipe.items() if k not in ("data", "teacher", "start")},
        },
    )


SOURCES = {
    "fracatlas": "FracAtlas (Abedeen et al. 2023, doi:10.1038/s41597-023-02432-4), CC BY 4.0",
    "mura": "MURA v1.1 (Rajpurkar et al. 2017, arXiv:1712.06957), Stanford research agreement",
    "grazpedwri": "GRAZPEDWRI-DX (Nagy et al. 2022, doi:10.1038/s41597-022-01328-z), CC BY 4.0",
    "csv": "own radiographs, table with pictures",
    "dicom": "own radiographs, table with DICOM files",
}


def _sources(unseen: list[LabelledRadiograph]) -> list[str]:
    return [SOURCES.get(source, source) for source in sorted({radiograph.source for radiograph in unseen})]
