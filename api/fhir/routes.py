"""FHIR R4, to read alone: results of studies, found by study, date and change.

Source: FHIR R4, http.html and search.html.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import format_datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Path, Request, Response
from sqlalchemy.orm import Session

from api.dependencies import Parts, PartsDep, Radiologist, SessionDep
from api.fhir.capabilities import capability_statement
from api.fhir.formats import FHIR, FORMATS, OFFERED, Resource, base_of, format_of, issue, respond
from api.fhir.parameters import MAX_COUNT, PARAMETERS, STATUSES, Search, ignored_words, is_strict, read_search
from api.fhir.resources import SYSTEMS, Patient, device, observations, report
from api.requests import Router
from shared.db.tables import BundleRow
from shared.domain.coding import IMAGING_STUDY
from shared.domain.device import device_uid
from shared.errors import NotFound
from shared.queries import studies
from shared.queries.access import Key
from shared.queries.reports import ReportCursor, ReportedStudy, list_reported, models_shown, study_of

router = Router(prefix=FHIR, tags=["fhir"])
STUDIES_PER_STEP = 20  # studies that are read at once where their observations are wanted
MAX_STUDIES = 200  # whose observations are looked through for one page; a page may then be short
NOT_HERE = "There is no such resource here. Check its id, and the site of your key"
RESOURCE: dict[str, Any] = {
    "type": "object",
    "description": "a FHIR R4 resource",
    "required": ["resourceType"],
    "properties": {"resourceType": {"type": "string", "description": "type of the resource"}},
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {"schema": RESOURCE} for kind in OFFERED}, "description": "the resource, or a searchset"},
    406: {"description": "neither the header Accept nor _format allows JSON of FHIR R4"},
}
LogicalId = Annotated[str, Path(max_length=128, description="logical id of the resource")]


def _documented(kind: str) -> dict[str, Any]:
    """The parameters of a search, for the OpenAPI document: beside these there are further ones of all searches."""
    text: dict[str, Any] = {"type": "string", "maxLength": 1024}
    formats = {"type": "string", "enum": list(FORMATS)}
    own = [
        {"name": name, "in": "query", "required": False, "schema": text, "description": one.words}
        for name, one in PARAMETERS[kind].items()
    ]
    of_all = {
        "_count": f"resources of a page, at most {MAX_COUNT}",
        "_sort": "_lastUpdated: what changed first is first; -_lastUpdated, the default: what changed last",
        "_include": "resources that the page holds besides, as DiagnosticReport:result",
        "_format": "json, if the header Accept cannot say so",
    }
    return {
        "parameters": [
            *own,
            *(
                {
                    "name": name,
                    "in": "query",
                    "required": False,
                    "schema": formats if name == "_format" else text,
                    "description": words,
                }
                for name, words in of_all.items()
            ),
        ]
    }


@router.get("/metadata", responses=RESPONSES, response_class=Response)
def metadata(request: Request) -> Response:
    """Get the CapabilityStatement: what is here, and which parameters searches have. It needs no key."""
    kind = format_of(request)
    return respond(capability_statement(base_of(request)), kind)


@router.get(
    "/DiagnosticReport", openapi_extra=_documented("DiagnosticReport"), responses=RESPONSES, response_class=Response
)
def search_reports(request: Request, parts: PartsDep, key: Radiologist, session: SessionDep) -> Response:
    """Search for reports, those whose study changed last first. Identities that are returned are recorded."""
    kind, search = _read_request(request, "DiagnosticReport")
    found = _FhirRequest(parts, session, key).reports(search)
    return respond(_bundle(request, "DiagnosticReport", search, found), kind)


@router.get("/DiagnosticReport/{id_}", responses=RESPONSES, response_class=Response)
def read_report(request: Request, parts: PartsDep, key: Radiologist, session: SessionDep, id_: LogicalId) -> Response:
    """Get the report of a study; its id is that of the study."""
    kind = format_of(request)
    return _single_response(kind, _FhirRequest(parts, session, key).reports(Search(ids=(id_,))).matches)


@router.get("/Observation", openapi_extra=_documented("Observation"), responses=RESPONSES, response_class=Response)
def search_observations(request: Request, parts: PartsDep, key: Radiologist, session: SessionDep) -> Response:
    """Search for observations, study by study: of each first that of the study, then those of its images."""
    kind, search = _read_request(request, "Observation")
    found = _FhirRequest(parts, session, key).observations(search)
    return respond(_bundle(request, "Observation", search, found), kind)


@router.get("/Observation/{id_}", responses=RESPONSES, response_class=Response)
def read_observation(
    request: Request, parts: PartsDep, key: Radiologist, session: SessionDep, id_: LogicalId
) -> Response:
    """Get an observation. One of a finding that a newer one has replaced is not there any more."""
    kind = format_of(request)
    return _single_response(kind, _FhirRequest(parts, session, key).observations(Search(ids=(id_,))).matches)


@router.get("/Device", openapi_extra=_documented("Device"), responses=RESPONSES, response_class=Response)
def search_devices(request: Request, parts: PartsDep, key: Radiologist, session: SessionDep) -> Response:
    """Search for devices: the models that findings are of, the one that was activated last first."""
    kind, search = _read_request(request, "Device")
    found = _FhirRequest(parts, session, key).devices(search)
    return respond(_bundle(request, "Device", search, found), kind)


@router.get("/Device/{id_}", responses=RESPONSES, response_class=Response)
def read_device(request: Request, parts: PartsDep, key: Radiologist, session: SessionDep, id_: LogicalId) -> Response:
    """Get a device; its id is the SHA-256 of the model's bundle."""
    kind = format_of(request)
    return _single_response(kind, _FhirRequest(parts, session, key).devices(Search(ids=(id_,))).matches)


def _read_request(request: Request, kind: str) -> tuple[str, Search]:
    """The media type of the response, and the search. Raises HTTPException, BadRequest."""
    media_type = format_of(request)
    return media_type, read_search(kind, request.query_params.multi_items(), strict=is_strict(request))


@dataclass
class _Page:
    """What a search found: matches, what was included beside them, and where the next page begins."""

    matches: list[Resource]
    included: Sequence[Resource] = ()
    after: ReportCursor | None = None


class _FhirRequest:
    """One reader's request."""

    def __init__(self, parts: Parts, session: Session, key: Key) -> None:
        self._parts, self._session, self._key = parts, session, key
        self._models: dict[str, BundleRow] = {row.name: row for row in models_shown(session)}

    def reports(self, search: Search) -> _Page:
        """Find reports."""
        ids = None if search.ids is None else [id_ for id_ in map(_uuid, search.ids) if id_ is not None]
        if not _has_code(search, SYSTEMS[IMAGING_STUDY.scheme], IMAGING_STUDY.value):
            return _Page([])
        question = replace(search.question, study_ids=ids)
        found = list_reported(self._session, self._key.site_id, question, search.after, search.count + 1)
        page, more = found[: search.count], len(found) > search.count
        patients = self._patients(page)
        matches = [report(one, patients[one.row.id], self._models.get(one.row.bundle)) for one in page]
        last = page[-1] if more else None
        return _Page(
            matches,
            self._included(search, page, patients) if "DiagnosticReport:result" in search.includes else (),
            ReportCursor(last.changed_at, last.row.id) if last else None,
        )

    def _included(
        self, search: Search, page: Sequence[ReportedStudy], patients: dict[UUID, Patient]
    ) -> Sequence[Resource]:
        """Observations of reports: of each study, and of its images where has-member is included too."""
        found: list[Resource] = []
        for one in page:
            its = self._of_study(one, patients[one.row.id])
            found += its if "Observation:has-member" in search.includes else its[:1]
        return [*found, *self._devices_of(search, found)]

    def observations(self, search: Search) -> _Page:
        """Find observations, study by study; a page ends within a study if need be."""
        question, place = replace(search.question, outcomes=None), search.after
        if search.ids is not None:
            question = replace(question, study_ids=self._studies_of(search.ids))
        matches: list[tuple[UUID, Resource]] = []
        for _ in range(MAX_STUDIES // STUDIES_PER_STEP):
            studies_ = list_reported(self._session, self._key.site_id, question, place, STUDIES_PER_STEP)
            known = self._parts.vault.stored_identities(self._session, [one.row.id for one in studies_])
            for study in studies_:
                its = self._of_study(study, Patient(known.get(study.row.id)))
                seen = place.seen if place is not None and place.study_id == study.row.id else 0
                for number, one in enumerate(its[seen:], start=seen):
                    if not _is_wanted(search, one):
                        continue
                    if len(matches) == search.count:
                        return self._page(search, matches, _resume_after(study, number) if number else place)
                    matches.append((study.row.id, one))
                place = _resume_after(study, 0)
            if len(studies_) < STUDIES_PER_STEP:
                return self._page(search, matches, None)
        return self._page(search, matches, place)

    def _page(self, search: Search, matches: Sequence[tuple[UUID, Resource]], after: ReportCursor | None) -> _Page:
        """A page of observations. Whose identities it shows is recorded: those alone, not all that were compared."""
        named = dict.fromkeys(study_id for study_id, one in matches if "subject" in one or "basedOn" in one)
        self._parts.vault.note_reading(self._session, self._key, list(named))
        resources = [one for _, one in matches]
        return _Page(resources, self._devices_of(search, resources), after)

    def _studies_of(self, ids: Sequence[str]) -> list[UUID]:
        """The studies of observations: an id is a study's, a finding's or an image's."""
        uuids = [id_ for id_ in map(_uuid, ids) if id_ is not None]
        return list(dict.fromkeys(study_of(self._session, self._key.site_id, id_) or id_ for id_ in uuids))

    def _of_study(self, study: ReportedStudy, patient: Patient) -> list[Resource]:
        views = studies.instances(self._session, study.row.id)
        certainty = self._parts.settings.fhir_certainty
        return observations(study, views, patient, self._models, certainty=certainty)

    def _patients(self, page: Sequence[ReportedStudy]) -> dict[UUID, Patient]:
        """The patients of studies that are shown, which is recorded."""
        ids = [one.row.id for one in page]
        known = self._parts.vault.identities(self._session, self._key, ids)
        return {id_: Patient(known.get(id_)) for id_ in ids}

    def _devices_of(self, search: Search, found: Sequence[Resource]) -> Sequence[Resource]:
        if "Observation:device" not in search.includes:
            return ()
        named = {one["device"]["reference"] for one in found if "device" in one}
        return [one for one in map(device, self._models.values()) if f"Device/{one['id']}" in named]

    def devices(self, search: Search) -> _Page:
        """Find devices: there are so few that one page holds them."""
        found = []
        for row in {row.sha256: row for row in reversed(self._models.values())}.values():
            by_id = search.ids is None or row.sha256 in search.ids
            if by_id and (search.identifiers is None or device_uid(row.sha256) in search.identifiers):
                found.append(device(row))
        return _Page(found[::-1])


def _resume_after(study: ReportedStudy, seen: int) -> ReportCursor:
    return ReportCursor(study.changed_at, study.row.id, seen)


def _is_wanted(search: Search, resource: Resource) -> bool:
    if search.ids is not None and resource["id"] not in search.ids:
        return False
    outcomes = search.question.outcomes
    if outcomes is not None and resource["status"] not in {STATUSES[one] for one in outcomes}:
        return False
    coding = resource["code"]["coding"][0]
    return _has_code(search, coding["system"], coding["code"])


def _has_code(search: Search, system: str, code: str) -> bool:
    """Whether a resource's code is wanted. Source: FHIR R4 search 3.1.1.4.10."""
    return search.codes is None or not {code, f"{system}|{code}", f"{system}|"}.isdisjoint(search.codes)


def _uuid(text: str) -> UUID | None:
    """An id of ours; None for what is none."""
    with suppress(ValueError):
        if str(found := UUID(text)) == text:
            return found
    return None


def _single_response(kind: str, found: Sequence[Resource]) -> Response:
    """Respond with the one resource that was found. Raises NotFound."""
    if not found:
        raise NotFound(NOT_HERE)
    changed = datetime.fromisoformat(found[0]["meta"]["lastUpdated"])
    return respond(found[0], kind, {"Last-Modified": format_datetime(changed, usegmt=True)})


def _bundle(request: Request, kind: str, search: Search, page: _Page) -> Resource:
    """Put a page of results together. Source: FHIR R4, search.html 3.1.1.2 and http.html 3.1.0.10."""
    base = base_of(request)
    address = f"{base}/{kind}"
    links = [{"relation": "self", "url": search.link(address)}]
    if page.after is not None:
        links.append({"relation": "next", "url": search.link(address, page.after)})
    entries = [_entry(base, one, "match") for one in page.matches]
    entries += [_entry(base, one, "include") for one in page.included]
    if search.ignored:
        warning = issue("warning", "not-supported", ignored_words(search))
        entries.append(
            {"resource": {"resourceType": "OperationOutcome", "issue": [warning]}, "search": {"mode": "outcome"}}
        )
    bundle: Resource = {"resourceType": "Bundle", "type": "searchset", "link": links}
    if entries:
        bundle["entry"] = entries
    return bundle


def _entry(base: str, resource: Resource, mode: str) -> Resource:
    address = f"{base}/{resource['resourceType']}/{resource['id']}"
    return {"fullUrl": address, "resource": resource, "search": {"mode": mode}}
