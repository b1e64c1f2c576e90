"""`osteon export` and `osteon evaluate`: from a finished run to a bundle that the worker can load, and its figures."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.errors import BadDataset
from shared.vision.bundle import Manifest, load_bundle, save_bundle
from shared.vision.engines import Engine, pick_engine
from shared.vision.network import BoneNet
from shared.vision.reader import Reader, shown
from training.card import card
from training.datasets import REGIONS, Film, films, split
from training.evaluate import (
    Answers,
    Judged,
    answer,
    as_shipped,
    cross_fitted,
    fit_calibration,
    joined,
    operating_points,
    probability,
)
from training.report import write_report
from training.scope import fit_limits, fit_scope, measure_scope
from training.train import held_out, learned_from

# regions that share a bone: a film of the thigh shows hip and knee
NEIGHBOURS = (("hand", "elbow"), ("elbow", "shoulder"), ("hip", "leg"))
# body parts (PS3.16 annex L) that no region stands for; what is not listed is judged by its pixels
OTHER_BODY_PARTS = (
    "ABDOMEN", "ABDOMENPELVIS", "BREAST", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "CSPINE", "CTSPINE", "HEAD",
    "HEADNECK", "HEART", "JAW", "LSPINE", "LSSPINE", "LUNG", "MANDIBLE", "NECK", "NECKCHEST", "NECKCHESTABDOMEN",
    "NECKCHESTABDPELV", "RIB", "SKULL", "SPINE", "SSPINE", "STERNUM", "TEETH", "TLSPINE", "TSPINE", "WHOLEBODY",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """A model's answers on some films, judged, with a manifest that describes it and a note on which films."""

    network: BoneNet
    engine: Engine
    judged: Judged
    manifest: Manifest
    note: str
    metal: Answers | None = None  # of radiographs with metal that are not among the judged


def load_run(run: Path) -> tuple[BoneNet, dict[str, Any]]:
    """The trained network of a run and its recipe. Raises BadDataset if the run is not finished."""
    weights, recipe_file = run / "weights.pt", run / "recipe.json"
    if not weights.is_file():
        raise BadDataset(f"{weights} is missing: finish the run with `osteon train --out {run}`")
    recipe = json.loads(recipe_file.read_text())
    network = BoneNet(len(REGIONS), recipe["architecture"])
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval(), recipe


def evaluate_run(run: Path, name: str) -> Evaluation:
    """A finished run on its held-out films, with fp16 weights as it will be shipped.

    What the bundle needs beside weights is fitted here: the scope on the films that were learned from; calibration,
    operating points and limits on the held-out films, whose figures are therefore cross-fitted.
    Raises BadDataset for an unfinished run or missing films.
    """
    network, recipe = load_run(run)
    network.half().float()
    size = recipe["size"]
    fit_scope(network, learned_from(run / "recipe.json"), size)
    network.half().float()
    unseen = held_out(run / "recipe.json")
    engine = pick_engine(network, size)
    answers = answer(engine, unseen, size)
    metal = _with_metal(engine, learned_from(run / "recipe.json"), size)
    note = f"{len(unseen)} films held out by block, seed {recipe['seed']}; calibration and thresholds cross-fitted"
    manifest = _describe(answers, metal, name, recipe, note)
    return Evaluation(network, engine, cross_fitted(answers), manifest, note, metal)


def evaluate_bundle(bundle: Path, data: list[Path], *, everything: bool) -> Evaluation:
    """A bundle on the films of some data sets.

    everything: all films, judged by the bundle's own calibration, for sets that it was not trained on. Else only those
    that its split held out, cross-fitted as when it was exported. Raises BadBundle, BadDataset.
    """
    network, manifest = load_bundle(bundle.read_bytes())
    chosen, others = _all_films(data), list[Film]()
    if not everything and "seed" in manifest.data:
        others, chosen = split(chosen, int(manifest.data["seed"]))
    engine = pick_engine(network, manifest.input_size)
    answers = answer(engine, chosen, manifest.input_size)
    if everything:
        sets = ", ".join(path.name for path in data)
        note = f"all {len(chosen)} films of {sets}; the bundle's own calibration and thresholds"
        return Evaluation(network, engine, as_shipped(answers, manifest), manifest, note)
    note = f"{len(chosen)} films held out by block, seed {manifest.data.get('seed')}; calibration cross-fitted"
    metal = _with_metal(engine, others, manifest.input_size)
    return Evaluation(network, engine, cross_fitted(answers), manifest, note, metal)


def _with_metal(engine: Engine, learned: list[Film], size: int) -> Answers | None:
    """Answers for those that show metal: few are held out, so its limit rests on those that were learned from too."""
    films = [film for film in learned if film.hardware == 1]
    return answer(engine, films, size) if films else None


def _all_films(data: list[Path]) -> list[Film]:
    return [film for path in data for film in films(path)]


def report(evaluation: Evaluation, out: Path, strangers: Path | None) -> dict[str, Any]:
    """Write metrics.json and report.html to `out`; returns the figures.

    strangers: a folder of DICOM files that are no bone radiographs in scope, to measure abstention on.
    """
    reader = Reader(evaluation.network, evaluation.manifest, evaluation.engine)
    scope = measure_scope(reader, evaluation.judged.answers, strangers, evaluation.metal)
    return write_report(evaluation.judged, evaluation.manifest, out, evaluation.note, extra={"scope": scope})


def export(run: Path, name: str, path: Path, strangers: Path | None = None) -> Manifest:
    """Evaluate a run, choose calibration, operating points and limits, write the bundle and its card beside it.

    Raises BadDataset for an unfinished run or missing films.
    """
    evaluation = evaluate_run(run, name)
    figures = report(evaluation, run, strangers)
    manifest = evaluation.manifest.model_copy(update={"metrics": figures})
    save_bundle(path, evaluation.network, manifest)
    path.with_suffix(".md").write_text(card(manifest))
    return manifest


def _describe(answers: Answers, metal: Answers | None, name: str, recipe: dict[str, Any], note: str) -> Manifest:
    """The manifest that these held-out answers lead to."""
    known = answers.only(answers.fractured >= 0)
    calibration = fit_calibration(known.fracture, known.fractured)
    sensitive, specific = operating_points(probability(known.fracture, calibration), known.fractured)
    limits = fit_limits(joined(answers, metal) if metal else answers, NEIGHBOURS)
    top = shown(known.only(known.fractured == 1).heatmaps).max((1, 2))
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
        most_strangeness=limits.most_strangeness,
        hardware=limits.hardware,
        heatmap_full=min(1.0, max(1e-3, float(np.quantile(top, 0.5)))),
        data={
            "sets": [Path(path).name for path in recipe["data"]],
            "seed": recipe["seed"],
            "split": note,
            "sources": _sources(answers.films),
            "severity": "extent, by number and area of annotated fractures; not a clinical grade",
            "recipe": {k: v for k, v in recipe.items() if k not in ("data", "teacher", "start")},
        },
    )


SOURCES = {
    "fracatlas": "FracAtlas (Abedeen et al. 2023, doi:10.1038/s41597-023-02432-4), CC BY 4.0",
    "mura": "MURA v1.1 (Rajpurkar et al. 2017, arXiv:1712.06957), Stanford research agreement",
    "grazpedwri": "GRAZPEDWRI-DX (Nagy et al. 2022, doi:10.1038/s41597-022-01328-z), CC BY 4.0",
    "csv": "own films, table with pictures",
    "dicom": "own films, table with DICOM files",
}


def _sources(unseen: list[Film]) -> list[str]:
    return [SOURCES.get(source, source) for source in sorted({film.source for film in unseen})]
