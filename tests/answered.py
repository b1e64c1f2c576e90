"""Analysed studies for the tests of what readers do with them, and readers who answer."""

import warnings
from datetime import timedelta
from typing import Any
from uuid import UUID

from samples.objects import pattern_image, to_bytes
from shared.findings import AbstentionReason, Assessment, Finding, Heatmap, InstanceResult, OperatingPoints, Severity
from shared.repository.bundles import activate_bundle, add_bundle
from shared.repository.work import Analysed, claim, clock, finish
from shared.storage import sha256_of
from shared.study import Claim, StudyStatus
from shared.tables import StudyRow

POINTS = OperatingPoints(0.2, 0.7)
MANIFEST = {"sensitive": POINTS.sensitive, "specific": POINTS.specific, "regions": ["hand", "leg"]}
PROBABILITY = {Assessment.POSITIVE: 0.9, Assessment.UNCLEAR: 0.5, Assessment.NEGATIVE: 0.05, Assessment.ABSTAINED: 0.6}
ONE: dict[str, Any] = {"verdict": "agree", "image": 1, "frame": 1, "bundle": "first"}


def study_file(study: int, number: int = 1, rows: int = 128, columns: int = 128, **tags: str) -> bytes:
    """A small DICOM file; tags: what its header should say otherwise."""
    ds = pattern_image(study, f"image {number}")
    ds.PatientName, ds.Rows, ds.Columns = "ZEBRA^QUAGGA", rows, columns
    ds.PixelData = bytes((x + y) % 251 for y in range(rows) for x in range(columns))
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_bytes(ds, "1.2.840.10008.1.2.1")


def analyse(
    api: Any, study: str, bundle: str = "first", assessment: Assessment = Assessment.POSITIVE, manifest: dict[str, Any] | None = None,
    unread: int = 0,
) -> None:  # fmt: skip
    """Claim and finish a study as the worker does: the last `unread` images fail, the others are assessed alike."""
    severity = Severity.MILD if assessment in (Assessment.POSITIVE, Assessment.UNCLEAR) else Severity.NONE
    why = AbstentionReason.REGION if assessment is Assessment.ABSTAINED else None
    hot = Heatmap(bytes(24) + b"\xff" + bytes(24), 7, 7)  # in the middle
    found = Finding(
        1,
        bundle,
        "hand",
        0.98,
        PROBABILITY[assessment],
        assessment,
        severity,
        hot,
        POINTS.score(PROBABILITY[assessment]),
        why,
    )
    with api.database.transaction() as session:
        session.get_one(StudyRow, UUID(study)).status = StudyStatus.QUEUED
        add_bundle(session, bundle, sha256_of(bundle.encode()), manifest or MANIFEST)
        activate_bundle(session, bundle)
    with api.database.transaction() as session:
        (held,) = claim(session, [UUID(study)], bundle, clock(session), timedelta(seconds=30), max_attempts=4)
        assert isinstance(held, Claim)
    with api.database.transaction() as session:
        judged = len(held.instances) - unread
        results = [InstanceResult(instance.id, [found]) for instance in held.instances[:judged]]
        results += [
            InstanceResult(instance.id, error_reason="truncated-pixels", error_text="It was cut short.")
            for instance in held.instances[judged:]
        ]
        assert finish(session, [Analysed(held, results, bundle)], clock(session)) == [True]


def say(api: Any, study: str, key: str | None = None, role: str = "radiologist", **said: Any) -> Any:
    """Answer over HTTP."""
    headers = api.headers(role) | ({"Idempotency-Key": key} if key else {})
    return api.http.post(f"/studies/{study}/answers", json=said, headers=headers)


def leave(*images: int, bundle: str = "first") -> dict[str, Any]:
    """The choice to be done with a study although these positive images have no answer."""
    return {"choice": "leave", "findings": [{"image": image, "frame": 1, "bundle": bundle} for image in images]}
