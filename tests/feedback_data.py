"""Analysed studies for the tests of what readers do with them, and readers who answer."""

import warnings
from datetime import timedelta
from typing import Any
from uuid import UUID

from samples.objects import pattern_image, to_bytes
from shared.db.clock import db_now
from shared.db.tables import StudyRow
from shared.domain.analysis import Claim
from shared.domain.findings import (
    AbstentionReason,
    Assessment,
    Extent,
    Finding,
    Heatmap,
    InstanceResult,
    OperatingPoints,
)
from shared.domain.study import StoredStatus
from shared.errors import Reason
from shared.queries.analyses import AnalysisResult, claim, finish, reopen_analysis
from shared.queries.models import activate_bundle, add_bundle
from shared.storage import sha256_of

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
    severity = Extent.MILD if assessment in (Assessment.POSITIVE, Assessment.UNCLEAR) else Extent.NONE
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
        row = session.get_one(StudyRow, UUID(study), with_for_update=True)
        if row.status != StoredStatus.QUEUED:
            reopen_analysis(session, row, db_now(session))
        add_bundle(session, bundle, sha256_of(bundle.encode()), manifest or MANIFEST)
        activate_bundle(session, bundle)
    with api.database.transaction() as session:
        current = session.get_one(StudyRow, UUID(study)).current_analysis_id
        assert current is not None
        (held,) = claim(session, [current], bundle, db_now(session), timedelta(seconds=30), max_attempts=4)
        assert isinstance(held, Claim)
    with api.database.transaction() as session:
        judged = len(held.instances) - unread
        results = [InstanceResult(instance.id, [found]) for instance in held.instances[:judged]]
        results += [
            InstanceResult(instance.id, error_reason=Reason.TRUNCATED_PIXELS) for instance in held.instances[judged:]
        ]
        assert finish(session, [AnalysisResult(held, results)], db_now(session)) == [True]


def say(api: Any, study: str, key: str | None = None, role: str = "radiologist", **said: Any) -> Any:
    """Answer over HTTP."""
    headers = api.headers(role) | ({"Idempotency-Key": key} if key else {})
    return api.http.post(f"/api/v1/studies/{study}/feedback", json=said, headers=headers)


def leave(*images: int, bundle: str = "first") -> dict[str, Any]:
    """The choice to be done with a study although these positive images have no feedback."""
    return {"choice": "leave", "findings": [{"image": image, "frame": 1, "bundle": bundle} for image in images]}
