"""What a search asks for: conditions, order, page. Source: FHIR R4, search.html.

A name that is not known is ignored, or refused where the client prefers strict handling. A modifier, a prefix or a
value that is not known is always refused, since to leave it out would change what is found. Nothing of what a client
sent is repeated in an error.
"""

import base64
import binascii
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Request

from shared.errors import BadRequest
from shared.queries.reports import Outcome, ReportCursor, ReportQuestion, Span

MAX_PARAMETERS = 50
MAX_VALUE_LENGTH = 1024  # characters of one value
MAX_VALUES = 100  # alternatives of one parameter
DEFAULT_COUNT, MAX_COUNT = 20, 100  # resources of a page: where the client says nothing, and at most
UID_SYSTEM, UID_PREFIX = "urn:dicom:uid", "urn:oid:"
STATUSES = {Outcome.ASSESSED: "preliminary", Outcome.QUARANTINED: "cancelled"}
_UID = re.compile(r"[0-9.]{1,64}")
_DATE = re.compile(
    r"(?P<prefix>[a-z]{2})?(?P<year>\d{4})(?:-(?P<month>\d\d)(?:-(?P<day>\d\d)"
    r"(?:T(?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<part>\d{1,6}))?)?"
    r"(?P<zone>Z|[+-]\d\d:\d\d)?)?)?)?",
    re.ASCII,
)
_FORMS = (
    "Write a date as 2026-01-31, or a time as 2026-01-31T08:00:00Z, with one of eq, ne, gt, lt, ge, le, sa, eb before"
)
_COUNTED = re.compile(r"[0-9]{1,6}", re.ASCII)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a search, as the CapabilityStatement describes it."""

    kind: str  # of http://hl7.org/fhir/search-param-type
    words: str
    modifiers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Search:
    """A search that was read."""

    question: ReportQuestion = field(default_factory=ReportQuestion)
    ids: tuple[str, ...] | None = None
    identifiers: tuple[str, ...] | None = None  # of a Device
    codes: tuple[str, ...] | None = None  # any of them, each "system|code", "|code" or "code"
    count: int = DEFAULT_COUNT
    after: ReportCursor | None = None
    includes: frozenset[str] = frozenset()
    ignored: tuple[int, ...] = ()  # places of parameters that were, from 1
    used: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # for the link to itself

    def link(self, address: str, after: ReportCursor | None = None) -> str:
        """Write the address of this page, or of a later one.

        Args:
            address: of the resource type.
            after: where the page begins; None: this page.

        Returns:
            A URL.
        """
        used = [(name, value) for name, value in self.used if name != "_cursor" or after is None]
        query = urlencode([*used, *([("_cursor", write_cursor(after))] if after is not None else [])])
        return f"{address}?{query}" if query else address


_ID = Parameter("token", "logical ids, with commas between alternatives")
_UPDATED = Parameter("date", "when the resource last changed; a day and a time without a zone are in UTC")
_STUDIED = Parameter("date", "day of the study, on the calendar of the hospital")
_STATUS = Parameter("token", "preliminary: there is a result; cancelled: no image could be analysed")
STUDY = "the imaging study by its Study Instance UID, urn:dicom:uid|urn:oid:UID"
PARAMETERS: dict[str, dict[str, Parameter]] = {
    "DiagnosticReport": {
        "_id": _ID,
        "_lastUpdated": _UPDATED,
        "code": Parameter("token", "18748-4 of LOINC, which all reports have"),
        "date": _STUDIED,
        "issued": _UPDATED,
        "status": _STATUS,
        "study": Parameter("reference", f"{STUDY} (a parameter of FHIR R5)", ("identifier",)),
    },
    "Observation": {
        "_id": _ID,
        "_lastUpdated": _UPDATED,
        "code": Parameter("token", "what was observed"),
        "date": _STUDIED,
        "derived-from": Parameter("reference", STUDY, ("identifier",)),
        "status": _STATUS,
    },
    "Device": {
        "_id": _ID,
        "identifier": Parameter("token", "the Device UID that DICOM objects name, urn:dicom:uid|urn:oid:UID"),
    },
}
INCLUDES: dict[str, tuple[str, ...]] = {
    "DiagnosticReport": ("DiagnosticReport:result", "Observation:has-member", "Observation:device"),
    "Observation": ("Observation:device",),
    "Device": (),
}
SORTS = {"_lastUpdated": False, "-_lastUpdated": True}  # whether the newest is first
_CONTROL = ("_count", "_cursor", "_format", "_include", "_pretty", "_sort")


def is_strict(request: Request) -> bool:
    """Whether unknown parameters are to be refused: Prefer: handling=strict. Source: FHIR R4 search, RFC 7240."""
    wishes = ",".join(request.headers.getlist("prefer")).replace(";", ",").split(",")
    return any(re.fullmatch(r'\s*handling\s*=\s*"?strict"?\s*', wish, re.IGNORECASE) for wish in wishes)


def read_search(kind: str, parameters: Iterable[tuple[str, str]], *, strict: bool) -> Search:
    """Read the parameters of a search.

    Args:
        kind: type of the resources.
        parameters: names and values, decoded, in their order.
        strict: whether an unknown one is refused.

    Returns:
        What they ask for.

    Raises:
        BadRequest: a value, a modifier or a prefix is none that there is, or a parameter is not known.
    """
    given = list(itertools.islice(parameters, MAX_PARAMETERS + 1))
    if len(given) > MAX_PARAMETERS:
        raise BadRequest(f"A search may have at most {MAX_PARAMETERS} parameters")
    search, ignored, used = Search(), [], []
    for place, (name, value) in enumerate(given, start=1):
        has_value = any(one.strip() for one in value.split(","))  # what has no value asks for nothing
        found = _read_parameter(search, kind, name, value) if has_value else search
        if found is None:
            ignored.append(place)
        elif has_value:
            search = found
            used.append((name, value))
    if ignored and strict:
        raise BadRequest(f"{_positions(ignored)} of this search not supported; /fhir/metadata lists what is")
    return replace(search, ignored=tuple(ignored), used=tuple(used))


def ignored_words(search: Search) -> str:
    """Say which parameters were ignored."""
    return f"{_positions(search.ignored)} of this search not supported, and ignored; /fhir/metadata lists what is"


def _positions(places: Sequence[int]) -> str:
    numbers = ", ".join(map(str, places))
    return f"Parameter {numbers} is" if len(places) == 1 else f"Parameters {numbers} are"


def _read_parameter(search: Search, kind: str, name: str, value: str) -> Search | None:
    """The search with one more parameter; None if there is no such parameter. Raises BadRequest."""
    bare, _, modifier = name.partition(":")
    parameter = PARAMETERS[kind].get(bare)
    if parameter is None and bare not in _CONTROL:
        return None
    if len(value) > MAX_VALUE_LENGTH:
        raise BadRequest(f"The value of {bare} is longer than {MAX_VALUE_LENGTH} characters")
    allowed = parameter.modifiers if parameter is not None else ("iterate",) if bare == "_include" else ()
    if modifier and modifier not in allowed:
        raise BadRequest(f"{bare} has no such modifier here; /fhir/metadata lists what there is")
    if bare == "_include":
        return replace(search, includes=search.includes | {value}) if value in INCLUDES[kind] else None
    if bare == "_sort":
        if value not in SORTS:
            return None
        return replace(search, question=replace(search.question, newest_first=SORTS[value]))
    return _READERS[bare](search, bare, value)


def _values(name: str, value: str) -> list[str]:
    found = [one.strip() for one in value.split(",") if one.strip()]
    if len(found) > MAX_VALUES:
        raise BadRequest(f"{name} may have at most {MAX_VALUES} alternatives; search several times")
    return found


def _intersection(one: tuple[str, ...] | None, other: Sequence[str]) -> tuple[str, ...]:
    """What is among both alternatives: a parameter that is given twice means both. Source: FHIR R4 search 3.1.1.3.4."""
    values = tuple(dict.fromkeys(other))
    return values if one is None else tuple(value for value in one if value in values)


def _id(search: Search, name: str, value: str) -> Search:
    return replace(search, ids=_intersection(search.ids, _values(name, value)))


def _study(search: Search, name: str, value: str) -> Search:
    before = search.question.study_uids
    uids = _intersection(tuple(before) if before is not None else None, _uids(name, value))
    return replace(search, question=replace(search.question, study_uids=uids))


def _identifier(search: Search, name: str, value: str) -> Search:
    return replace(search, identifiers=_intersection(search.identifiers, _uids(name, value)))


def _uids(name: str, value: str) -> list[str]:
    """The UIDs that identifiers name; another system's name none of ours."""
    found = []
    for one in _values(name, value):
        system, bar, uid = one.rpartition("|")
        uid = uid.removeprefix(UID_PREFIX)
        if (not bar or system in ("", UID_SYSTEM)) and _UID.fullmatch(uid):
            found.append(uid)
    return found


def _code(search: Search, name: str, value: str) -> Search:
    if search.codes is not None:
        raise BadRequest("code may be given once; write alternatives with commas")
    return replace(search, codes=tuple(_values(name, value)))


def _status(search: Search, name: str, value: str) -> Search:
    codes = {one.rpartition("|")[2] for one in _values(name, value)}
    found = [outcome for outcome, status in STATUSES.items() if status in codes]
    before = search.question.outcomes
    kept = found if before is None else [one for one in before if one in found]
    return replace(search, question=replace(search.question, outcomes=tuple(kept)))


def _changed(search: Search, name: str, value: str) -> Search:
    group = [_span(name, one) for one in _values(name, value)]
    return replace(search, question=replace(search.question, changed=(*search.question.changed, group)))


def _studied(search: Search, name: str, value: str) -> Search:
    group = [_days(_span(name, one, days=True)) for one in _values(name, value)]
    return replace(search, question=replace(search.question, studied=(*search.question.studied, group)))


def _count(search: Search, name: str, value: str) -> Search:
    if not _COUNTED.fullmatch(value) or int(value) == 0:
        raise BadRequest(f"{name} must be a whole number from 1 on; a page has at most {MAX_COUNT}")
    return replace(search, count=min(int(value), MAX_COUNT))


def _cursor(search: Search, _name: str, value: str) -> Search:
    return replace(search, after=read_cursor(value))


def _unchanged(search: Search, _name: str, _value: str) -> Search:
    return search


_READERS: Mapping[str, Callable[[Search, str, str], Search]] = {
    "_id": _id, "study": _study, "derived-from": _study, "identifier": _identifier, "code": _code, "status": _status,
    "_lastUpdated": _changed, "issued": _changed, "date": _studied, "_count": _count, "_cursor": _cursor,
    "_format": _unchanged, "_pretty": _unchanged,
}  # fmt: skip


# -- dates


def _span(name: str, text: str, *, days: bool = False) -> Span:
    """The times that a value allows. days: a time of the day is left out. Raises BadRequest."""
    parts = _DATE.fullmatch(text.replace(" ", "+"))  # a plus sign that was not encoded
    if parts is None:
        raise BadRequest(f"{name} cannot have this value. {_FORMS}")
    try:
        first, end = _bounds(parts, days=days)
    except (ValueError, OverflowError):
        raise BadRequest(f"{name} names no day or time that there is. {_FORMS}") from None
    spans = {
        "eq": Span(first, end), "ne": Span(first, end, outside=True), "gt": Span(first=end), "sa": Span(first=end),
        "ge": Span(first=first), "lt": Span(end=first), "eb": Span(end=first), "le": Span(end=end),
    }  # fmt: skip
    prefix = parts["prefix"] or "eq"
    if prefix not in spans:
        raise BadRequest(f"{name} has no such prefix here. {_FORMS}")
    return spans[prefix]


def _bounds(parts: re.Match[str], *, days: bool) -> tuple[datetime, datetime]:
    """From when until when a value goes, by how exact it is. Raises ValueError, OverflowError."""
    zone = UTC
    if parts["zone"] and not days:
        written = datetime.fromisoformat(f"2000-01-01T00:00:00{parts['zone'].replace('Z', '+00:00')}").tzinfo
        assert written is not None
        zone = written  # type: ignore[assignment]
    year, month, day = int(parts["year"]), int(parts["month"] or 1), int(parts["day"] or 1)
    hour, minute, second = (0 if days else int(parts[part] or 0) for part in ("hour", "minute", "second"))
    first = datetime(year, month, day, hour, minute, second, tzinfo=zone)
    if parts["month"] is None:
        end = first.replace(year=year + 1)
    elif parts["day"] is None:
        end = first.replace(year=year + month // 12, month=month % 12 + 1)
    elif parts["hour"] is None or days:
        end = first + timedelta(days=1)
    elif parts["second"] is None:
        end = first + timedelta(minutes=1)
    elif parts["part"] is None:
        end = first + timedelta(seconds=1)
    else:
        first += timedelta(microseconds=int(parts["part"].ljust(6, "0")))
        end = first + timedelta(microseconds=10 ** (6 - len(parts["part"])))
    return first.astimezone(UTC), end.astimezone(UTC)


def _days(span: Span) -> Span:
    """The same, of days."""
    first = span.first.date() if isinstance(span.first, datetime) else None
    end = span.end.date() if isinstance(span.end, datetime) else None
    return Span(first, end, span.outside)


# -- pages


def write_cursor(place: ReportCursor) -> str:
    """Write a place, for the link to the next page."""
    values = [place.changed_at.astimezone(UTC).isoformat(), str(place.study_id), place.seen]
    return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> ReportCursor:
    """Read what `write_cursor` wrote. Raises BadRequest."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        changed_at, study_id, seen = json.loads(text)
        place = ReportCursor(datetime.fromisoformat(changed_at).astimezone(UTC), UUID(study_id), int(seen))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, binascii.Error):
        raise BadRequest("_cursor is not one that a page of this search named; begin with the first page") from None
    if not 0 <= place.seen <= 10**6:
        raise BadRequest("_cursor is not one that a page of this search named; begin with the first page")
    return place
