"""`osteon export`: from a finished run to a bundle that the worker can load."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.errors import BadDataset
from shared.vision.bundle import Manifest, save_bundle
from shared.vision.network import BoneNet
from training.datasets import REGIONS
from training.evaluate import Answers, answer, fit_calibration, operating_points, probability, write_report
from training.train import held_out


def load_run(run: Path) -> tuple[BoneNet, dict[str, Any]]:
    """The trained network of a run and its recipe. Raises BadDataset if the run is not finished."""
    weights, recipe = run / "weights.pt", run / "recipe.json"
    if not weights.is_file():
        raise BadDataset(f"{weights} is missing: finish the run with `osteon train --out {run}`")
    network = BoneNet(len(REGIONS))
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval(), json.loads(recipe.read_text())


def export(run: Path, name: str, path: Path) -> Manifest:
    """Evaluate a run on its validation films, choose calibration and operating points, write the bundle.

    Raises BadDataset for an unfinished run or missing films.
    """
    network, recipe = load_run(run)
    network.half().float()  # measured as shipped: fp16 weights
    films = held_out(run / "recipe.json")
    answers = answer(network, films, recipe["label_size"])
    figures = write_report(answers, run)
    manifest = describe(answers, figures, name, recipe)
    save_bundle(path, network, manifest)
    return manifest


def describe(answers: Answers, figures: dict[str, Any], name: str, recipe: dict[str, Any]) -> Manifest:
    """The manifest that these validation answers lead to."""
    calibration = fit_calibration(answers.fracture, answers.fractured)
    chance = probability(answers.fracture, calibration)
    sensitive, specific = operating_points(chance, answers.fractured)
    top = answers.heatmaps[answers.fractured == 1].max((1, 2))
    best = np.exp(answers.region - answers.region.max(1, keepdims=True))
    best_chance = 1 / best.sum(1)
    return Manifest(
        name=name,
        regions=list(REGIONS),
        input_size=recipe["label_size"],
        calibration=calibration,
        sensitive=sensitive,
        specific=specific,
        modalities=["CR", "DX", "RG", "OT"],
        least_region_probability=round(float(np.quantile(best_chance, 0.02)), 3),
        heatmap_full=max(1e-3, float(np.quantile(top, 0.8))),
        data={
            "set": "FracAtlas (Abedeen et al. 2023, doi:10.1038/s41597-023-02432-4)",
            "licence": "CC BY 4.0",
            "split": f"blocks of neighbouring ids, seed {recipe['seed']}, 20 % held out",
            "severity": "extent, by number and area of annotated fractures; not a clinical grade",
            "chosen_on": "calibration and operating points were fitted on the same held-out films as the metrics, "
            "except the calibration error, which is cross-fitted",
        },
        metrics=figures,
    )
