"""A bundle's model card (Mitchell et al. 2019, arXiv:1810.03993), as Markdown, from its manifest alone."""

from typing import Any

from shared.domain.manifest import Manifest, title_of

FIGURES = {
    "fracture_auroc": "fracture, AUROC",
    "fracture_average_precision": "fracture, average precision",
    "expected_calibration_error": "fracture, expected calibration error",
    "region_accuracy": "region, accuracy",
    "pointing_game": "heatmap's peak inside an annotated box",
    "pointing_game_near": "the same, or within 5 % of the side",
    "severity_kappa": "extent by annotation, quadratic kappa",
}


WHAT = (
    "{manifest.architecture}, one gray channel, {manifest.input_size} x {manifest.input_size} pixels; tells apart "
    "{regions}; says fracture (calibrated probability), extent and where."
)
ABSTAINS = (
    "Modalities other than {modalities}; body parts such as chest, spine or skull; a blank, inverted or almost wholly "
    "collimated image; an image unlike those learned from; a region that is not recognised (probability of the "
    "likeliest, or of the likeliest two neighbours together, under {manifest.least_region_probability}); metal in "
    "view, unless the raw score is positive: then it is a caveat of the finding."
)
LIMITS = (
    "One source of radiographs, without patient ids: neighbours in id order were kept on one side of the split. No "
    "hospital, scanner or population beside that source was tested. Extent is counted from annotations and says "
    "nothing of how badly a patient is hurt."
)


def card(manifest: Manifest) -> str:
    """Write what a reader must know before trusting the bundle, as Markdown."""
    metrics, data = manifest.metrics, manifest.data
    points = metrics.get("operating_points", {})
    lines = [
        f"# {title_of(manifest.name, manifest.model_dump())}",
        "",
        f"- key of the bundle: {manifest.name}",
        "",
        f"**{manifest.limits}**",
        "",
        WHAT.format(manifest=manifest, regions=", ".join(manifest.regions)),
        "",
        "## Data",
        "",
        *(f"- {source}" for source in data.get("sources", [])),
        f"- measured on: {data.get('split', 'not said')}",
        f"- severity: {data.get('severity', 'not said')}",
        "",
        "## Measured",
        "",
        "Intervals: 95 %, bootstrap over blocks.",
        "",
        "| figure | estimate | interval |",
        "| --- | --- | --- |",
        *(_row(label, metrics.get(name)) for name, label in FIGURES.items()),
        *(
            _row(f"{name} point, {rate}", points[name].get(rate))
            for name in ("sensitive", "specific")
            if name in points
            for rate in ("sensitivity", "specificity")
        ),
        "",
        "| radiographs | of these fractured | AUROC | region | pointing |",
        "| --- | --- | --- | --- | --- |",
        *(_group(name, group) for name, group in {"all": metrics, **metrics.get("groups", {})}.items()),
        "",
        "## When it abstains",
        "",
        ABSTAINS.format(manifest=manifest, modalities=", ".join(manifest.modalities)),
        "",
        *_scope(metrics.get("scope", {})),
        "## Limits",
        "",
        LIMITS,
        "",
    ]
    return "\n".join(lines)


def _number(triple: list[float] | None) -> str:
    return "too few" if triple is None else f"{triple[0]:.3f}"


def _row(label: str, triple: list[float] | None) -> str:
    between = "" if triple is None else f"{triple[1]:.3f} to {triple[2]:.3f}"
    return f"| {label} | {_number(triple)} | {between} |"


def _group(name: str, group: dict[str, Any]) -> str:
    figures = (_number(group.get(key)) for key in ("fracture_auroc", "region_accuracy", "pointing_game"))
    return f"| {name} ({group.get('radiographs', 0)}) | {group.get('fractured', 0)} | {' | '.join(figures)} |"


def reasons_in_words(counts: dict[str, Any]) -> str:
    """List reasons as "region 1; caveat: metal 2"; older bundles counted neither."""
    reasons, caveats = (
        ", ".join(f"{reason} {count}" for reason, count in counts.get(kind, {}).items())
        for kind in ("reasons", "caveats")
    )
    return f"{reasons}; caveat: {caveats}".removeprefix("; ") if caveats else reasons


def _scope(scope: dict[str, Any]) -> list[str]:
    if not scope:
        return []
    return [
        "| kind | images | abstained | why |",
        "| --- | --- | --- | --- |",
        *(
            f"| {kind} | {counts['images']} | {counts['abstained']} | {reasons_in_words(counts)} |"
            for kind, counts in scope.items()
        ),
        "",
    ]
