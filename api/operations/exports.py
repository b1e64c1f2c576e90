"""What is exported as data: the feedback log, labels for training, originals, arrivals. For commands and scripts.

Long responses are NDJSON (https://github.com/ndjson/ndjson-spec): one JSON object a line. The last line is
{"end": ...}, without which a response was cut off.
"""

import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query, Response
from fastapi.responses import StreamingResponse

from api.dependencies import Admin, ImageNumber, Parts, PartsDep, StudyId
from api.requests import API, Moment, Router
from shared.domain.security import EventKind
from shared.queries import feedback, studies
from shared.queries.access import Key
from shared.queries.audit import record
from shared.storage import original_key

router = Router(prefix=API, tags=["administer"])
PAGE = 1000  # rows a transaction: a slow client holds none open
NDJSON: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/x-ndjson": {}}, "description": "one JSON object a line; the last one is {end: …}"}
}
Since = Annotated[Moment | None, Query(description="only what is of then or later; with its zone")]


def _streamed(lines: Iterator[dict[str, Any]]) -> StreamingResponse:
    texts = (json.dumps(line, default=str, separators=(",", ":")) + "\n" for line in lines)
    return StreamingResponse(texts, media_type="application/x-ndjson")


@router.get("/feedback", response_class=StreamingResponse, responses=NDJSON)
def feedback_log(parts: PartsDep, key: Admin) -> Response:
    """Export every entry of your site's feedback log in its order, with its hash and the one before.

    With all entries the chain of hashes can be computed again. Words of readers stay encrypted. The last line says how
    many entries there are, and of which site.
    """
    with parts.database.transaction() as session:
        site = feedback.site_name(session, key.site_id)
        record(session, EventKind.EXPORT, key, what="feedback")

    def lines() -> Iterator[dict[str, Any]]:
        number = count = 0
        while True:
            with parts.database.transaction() as session:
                page = feedback.chain_entries(session, key.site_id, number, PAGE)
            if not page:
                break
            yield from (one.as_json() for one in page)
            number, count = page[-1].entry.number, count + len(page)
        yield {"end": {"site": site, "entries": count}}

    return _streamed(lines())


@router.get("/feedback/labels", response_class=StreamingResponse, responses=NDJSON)
def labels(parts: PartsDep, key: Admin, since: Since = None) -> Response:
    """Export the feedback on findings that is in force, for training: each entry with its image and its finding.

    Nobody is named: patients and pictures are pseudonyms, the same in every export of this installation. Patients'
    identities are read for that, under audit. With `since`, all feedback on images that got some from then on.
    """
    with parts.database.transaction() as session:
        entries = feedback.labelled_findings(session, key.site_id, since)
        study_ids = list({one.entry.study_id for one in entries})
        identities = parts.vault.identities(session, key, study_ids)
        numbers = studies.image_numbers(session, study_ids)
        record(session, EventKind.EXPORT, key, what="labels", studies=len(study_ids))
    salt = f"training table {parts.settings.identity_key.get_secret_value()}".encode()

    def lines() -> Iterator[dict[str, Any]]:
        for one in entries:
            entry, known = one.entry, identities.get(one.entry.study_id)
            whose = f"patient {known.patient_id}" if known and known.patient_id else f"study {entry.study_id}"
            yield {
                "picture": _pseudonym(salt, f"{one.instance.id} {one.finding.frame}"),
                "patient": _pseudonym(salt, f"{key.site_id} {whose}"),
                "reader": entry.key_id,
                "verdict": entry.verdict,
                "fracture": entry.fracture,
                "region": entry.region,
                "severity": entry.severity,
                "marks": [
                    {name: mark[name] for name in ("x", "y", "width", "height")}
                    for mark in entry.marks
                    if (mark["instance"], mark["frame"]) == (str(entry.instance_id), entry.frame)
                ],
                "found_assessment": one.finding.assessment,
                "found_region": one.finding.region,
                "frame": one.finding.frame,
                "original_url": f"/api/v1/studies/{entry.study_id}/original?image={numbers[one.instance.id]}",
            }
        yield {"end": {"entries": len(entries), "answers": len(entries)}}  # answers: until 0.3.0

    return _streamed(lines())


def _pseudonym(salt: bytes, what: str) -> str:
    return hmac.new(salt, what.encode(), hashlib.sha256).hexdigest()[:24]


@router.get(
    "/studies/{study_id}/original",
    response_class=Response,
    responses={200: {"content": {"application/dicom": {}}, "description": "the stored object, byte for byte"}},
)
def original(study_id: StudyId, parts: PartsDep, key: Admin, image: ImageNumber = 1) -> Response:
    """Get an image as it was sent: a whole DICOM file, which names its patient. Reading it is audited."""
    with parts.database.transaction() as session:
        study = studies.named(session, key.site_id, study_id)
        row = studies.image(session, key.site_id, study, image, 1)
        parts.vault.note_reading(session, key, [study])
        record(session, EventKind.EXPORT, key, study_id=study, what="original", image=image)
    return Response(parts.store.get(original_key(row.sha256)), media_type="application/dicom")


@router.get("/arrivals", response_class=StreamingResponse, responses=NDJSON)
def arrivals(
    parts: PartsDep,
    key: Admin,
    since: Annotated[Moment, Query(description="with its zone")],
    until: Annotated[Moment, Query(description="with its zone; itself not included")],
) -> Response:
    """List when your site's studies arrived, and what was found: times, priorities and findings, without any id."""
    with parts.database.transaction() as session:
        record(session, EventKind.EXPORT, key, what="arrivals")
    return _streamed(_arrivals(parts, key, since, until))


def _arrivals(parts: Parts, key: Key, since: datetime, until: datetime) -> Iterator[dict[str, Any]]:
    after: tuple[datetime, UUID] | None = None
    count = 0
    while True:
        with parts.database.transaction() as session:
            page = studies.arrivals(session, key.site_id, since, until, after, PAGE)
        if not page:
            break
        for one in page:
            yield {
                "received_at": one.received_at.isoformat(), "priority": one.priority, "assessment": one.assessment,
                "severity": one.severity, "fracture_probability": one.fracture_probability,
            }  # fmt: skip
        after, count = (page[-1].received_at, page[-1].study_id), count + len(page)
    yield {"end": {"arrivals": count}}
