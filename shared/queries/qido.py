"""What QIDO-RS finds: studies, series and instances of a site, by their attributes.

Texts that may identify somebody are stored encrypted. Tokens and pieces of them (`Vault`) find candidates, which are
decrypted and compared, MAX_COMPARED of a query at most. Source: PS3.18 10.6, PS3.4 C.2.2.2.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date, time
from enum import IntEnum
from functools import cached_property
from typing import Any, Protocol, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, and_, distinct, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from shared.db.tables import IdentityRow, IdentitySearchRow, IdentityTokenRow, InstanceRow, SeriesRow, StudyRow
from shared.db.tables.studies import IS_SHOWN
from shared.domain.matching import NamePattern, Span, TextPattern, Wildcards, parse_dates, parse_times
from shared.domain.study import Identity, Series
from shared.errors import BadRequest
from shared.queries import series
from shared.queries.access import PIECED, SEARCHED, Key, Vault

FORMS = (
    "Write dates as YYYYMMDD and times as HHMMSS, or ranges of them as 20260101-20260131, and whole numbers in digits"
)
MAX_COMPARED = 10_000  # candidates that are decrypted for a query: about a second
STEP = 100  # candidates that are read at once, beyond as many as would be enough if each matched
NEWEST = 40  # studies for each wanted result that are looked through one by one before pieces are looked up
MAX_INTEGER = 2**31 - 1  # of an integer in Postgres

Point = TypeVar("Point", date, time)


class Level(IntEnum):
    """What a query returns. Attributes of a level above restrict it, too."""

    STUDY = 1
    SERIES = 2
    INSTANCE = 3


@dataclass(frozen=True)
class Question:
    """A query."""

    level: Level
    matches: Mapping[str, Sequence[str]]  # alternatives by keyword, all of them in KEYS of this level
    study_uid: str | None = None  # None: of all studies of the site
    series_uid: str | None = None
    limit: int = 1000
    offset: int = 0
    identities: bool = True  # whether attributes of the patient and the study are returned, which is recorded
    rejected: bool = False  # whether instances that a document rejects are found and counted


@dataclass(frozen=True)
class FoundStudy:
    """A study. Its counts are 0 where they are not returned."""

    id: UUID
    uid: str
    date: date | None
    time: time | None
    utc_offset: str
    sex: str
    identity: Identity | None  # None: it is not returned, or there is none
    modalities: Sequence[str] = ()
    series: int = 0
    instances: int = 0


@dataclass(frozen=True)
class FoundSeries:
    """A series."""

    told: Series
    modality: str
    instances: int


@dataclass(frozen=True)
class FoundInstance:
    """An instance."""

    uid: str
    sop_class_uid: str
    number: int | None
    rows: int
    columns: int
    frames: int
    bits_allocated: int
    is_image: bool


@dataclass(frozen=True)
class Result:
    """What was found, with what it belongs to."""

    study: FoundStudy
    series: FoundSeries | None = None  # of an instance also None if the series is not known yet
    instance: FoundInstance | None = None


@dataclass(frozen=True)
class Results:
    """A part of what was found."""

    found: list[Result]
    more: bool  # further ones follow
    whole: bool  # False: no more than MAX_COMPARED candidates were compared


def find(session: Session, vault: Vault, reader: Key, question: Question) -> Results:
    """Answer a query; the order is always the same: studies newest first, what belongs to one study by its numbers.

    Each reading of an identity is recorded, and each search for one.

    Args:
        session: the caller's transaction.
        vault: decrypts identities.
        reader: who asks; only their site is searched.
        question: what they ask.

    Returns:
        At most `limit` results, the first ones after `offset`.

    Raises:
        BadRequest: a value is none that its attribute can have.
    """
    finding = _Finding(vault, reader.site_id, question)
    rows, more, whole = finding.rows(session)
    found = finding.results(session, rows)
    if question.identities:
        shown = [one.study.id for one in found if one.study.identity is not None]
        vault.note_reading(session, reader, list(dict.fromkeys(shown)))
    if any(keyword in SEALED for keyword in question.matches):
        session.add(IdentitySearchRow(key_id=reader.id, found=len(found)))
    return Results(found, more, whole)


# -- attributes in plain columns


# what a query wants of a column; raises ValueError for a value that the attribute cannot have
Condition = Callable[[Sequence[str]], ColumnElement[bool]]


def _span(column: InstrumentedAttribute[Any], span: Span[Point]) -> ColumnElement[bool]:
    ends = [column >= span.first] if span.first is not None else []
    return and_(*ends, *([column <= span.last] if span.last is not None else []))


def _in_dates(column: InstrumentedAttribute[date | None]) -> Condition:
    return lambda values: or_(*(_span(column, parse_dates(value)) for value in values))


def _in_times(column: InstrumentedAttribute[time | None]) -> Condition:
    return lambda values: or_(*(_span(column, parse_times(value)) for value in values))


def _one_of(column: InstrumentedAttribute[str]) -> Condition:
    """UIDs, which know no wild cards."""
    return lambda values: column.in_(list(values))


def _coded(column: InstrumentedAttribute[str]) -> Condition:
    """Codes, with wild cards."""

    def condition(values: Sequence[str]) -> ColumnElement[bool]:
        escapes = str.maketrans({"%": "\\%", "_": "\\_", "\\": "\\\\", "*": "%", "?": "_"})
        return or_(
            *(
                column == value if Wildcards(value).exact else column.like(value.translate(escapes), escape="\\")
                for value in values
            )
        )

    return condition


def _number(column: InstrumentedAttribute[int | None]) -> Condition:
    return lambda values: column.in_([number for number in map(int, values) if abs(number) <= MAX_INTEGER])


def _any_modality(values: Sequence[str], *which: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a study has an instance of these modalities, among which instances."""
    its = InstanceRow.study_id == StudyRow.id
    return select(InstanceRow.id).where(its, _coded(InstanceRow.modality)(values), *which).exists()


def _has_shown(its: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether there is an instance that no document rejects; asked for each row, never for the whole table at once."""
    return select(InstanceRow.id).where(its, IS_SHOWN).limit(1).scalar_subquery().is_not(None)


PLAIN: dict[Level, dict[str, Condition]] = {
    Level.STUDY: {
        "StudyInstanceUID": _one_of(StudyRow.study_instance_uid),
        "StudyDate": _in_dates(StudyRow.study_date),
        "StudyTime": _in_times(StudyRow.study_time),
        "ModalitiesInStudy": _any_modality,
        "PatientSex": _coded(StudyRow.sex),
    },
    Level.SERIES: {
        "SeriesInstanceUID": _one_of(SeriesRow.series_instance_uid),
        "Modality": _coded(SeriesRow.modality),
        "SeriesNumber": _number(SeriesRow.series_number),
        "SeriesDate": _in_dates(SeriesRow.series_date),
        "SeriesTime": _in_times(SeriesRow.series_time),
        "PerformedProcedureStepStartDate": _in_dates(SeriesRow.performed_date),
        "PerformedProcedureStepStartTime": _in_times(SeriesRow.performed_time),
    },
    Level.INSTANCE: {
        "SOPInstanceUID": _one_of(InstanceRow.sop_instance_uid),
        "SOPClassUID": _one_of(InstanceRow.sop_class_uid),
        "InstanceNumber": _number(InstanceRow.instance_number),
    },
}


# -- attributes that are encrypted


class _Pattern(Protocol):
    def matches(self, text: str, /) -> bool: ...


@dataclass(frozen=True)
class _Sealed:
    """How an encrypted attribute is compared: the values that it has, and what a value of a query makes of them."""

    values: Callable[[Identity, Series], Sequence[str]]
    pattern: Callable[[str], _Pattern] = TextPattern
    field: str = ""  # of Identity, by whose tokens or pieces candidates are found


class _Born:
    """A range of birth dates."""

    def __init__(self, dates_text: str) -> None:
        self.span = parse_dates(dates_text)

    def matches(self, birth_date: str) -> bool:
        try:
            day = parse_dates(birth_date.replace(".", "")).first
        except ValueError:
            return False
        return day is not None and (self.span.first or day) <= day <= (self.span.last or day)


SEALED: dict[str, _Sealed] = {
    "PatientName": _Sealed(lambda who, _: [who.patient_name], NamePattern, "patient_name"),
    "PatientID": _Sealed(lambda who, _: [who.patient_id], field="patient_id"),
    "IssuerOfPatientID": _Sealed(lambda who, _: [who.issuer]),
    "PatientBirthDate": _Sealed(lambda who, _: [who.birth_date], _Born),
    "AccessionNumber": _Sealed(lambda who, _: [who.accession_number], field="accession_number"),
    "ReferringPhysicianName": _Sealed(lambda who, _: [who.referring_physician], NamePattern, "referring_physician"),
    "StudyID": _Sealed(lambda who, _: [who.dicom_study_id], field="dicom_study_id"),
    "StudyDescription": _Sealed(lambda who, _: [who.study_description], field="study_description"),
    "SeriesDescription": _Sealed(lambda _, told: [told.description]),
    "ProtocolName": _Sealed(lambda _, told: [told.protocol]),
    "PerformedProcedureStepID": _Sealed(lambda _, told: [told.performed_step_id]),
    "PerformedProcedureStepDescription": _Sealed(lambda _, told: [told.performed_step_description]),
    "RequestAttributesSequence.ScheduledProcedureStepID": _Sealed(
        lambda _, told: [one.scheduled_step_id for one in told.requests]
    ),
    "RequestAttributesSequence.RequestedProcedureID": _Sealed(
        lambda _, told: [one.requested_procedure_id for one in told.requests]
    ),
}
OF_SERIES = frozenset(
    keyword for keyword in SEALED if keyword.startswith(("Series", "Protocol", "Performed", "Request"))
)
# by level: what a query can restrict
KEYS: dict[Level, frozenset[str]] = {
    level: frozenset(
        keyword
        for keyword in (*SEALED, *(keyword for above in Level if above <= level for keyword in PLAIN[above]))
        if level >= Level.SERIES or keyword not in OF_SERIES
    )
    for level in Level
}
NOTHING = Series("")


def _in_steps(
    session: Session, query: Select[*tuple[Any, ...]], first: int
) -> Generator[Sequence[Row[*tuple[Any, ...]]], None, None]:
    """Rows of a query, MAX_COMPARED at most: the first ones by a plan for so few, all others in one further pass."""
    rows = session.execute(query.limit(first)).all()
    yield rows
    if first <= len(rows) < MAX_COMPARED:
        rest = query.offset(first).limit(MAX_COMPARED - first).execution_options(yield_per=10 * STEP)
        with closing(session.execute(rest)) as result:
            yield from result.partitions()


def _by_token(field: str, values: Sequence[str]) -> bool:
    return field in SEARCHED and all(Wildcards(value).exact for value in values)


class _Finding:
    """One query."""

    def __init__(self, vault: Vault, site_id: UUID, question: Question) -> None:
        self.vault, self.site_id, self.question = vault, site_id, question
        self.which = () if question.rejected else (IS_SHOWN,)  # instances
        self._identities: dict[UUID, Identity] = {}  # decrypted once, by study
        self._series: dict[UUID, Series] = {}  # by id
        self.of_study = any(name in SEALED and name not in OF_SERIES for name in question.matches)

    @cached_property
    def sealed(self) -> list[tuple[_Sealed, list[_Pattern]]]:
        """What encrypted attributes are compared with; `_query` has found their values sound."""
        return [
            (SEALED[name], [SEALED[name].pattern(value) for value in values])
            for name, values in self.question.matches.items()
            if name in SEALED
        ]

    def rows(self, session: Session) -> tuple[list["_Candidate"], bool, bool]:
        """The results' rows; whether more follow; whether all candidates were compared that were needed."""
        asked, query = self.question, self._query()
        if not self.sealed:
            found = [self._candidate(row) for row in session.execute(query.offset(asked.offset).limit(asked.limit + 1))]
            return found[: asked.limit], len(found) > asked.limit, True
        enough = asked.offset + asked.limit + 1
        found = self._among_newest(session, min(NEWEST * enough, MAX_COMPARED))
        if len(found) >= enough:
            return found[asked.offset :][: asked.limit], True, True
        seen, read = {one.id for one in found}, 0
        with closing(_in_steps(session, query, min(enough + STEP, MAX_COMPARED))) as steps:
            for rows in steps:
                read += len(rows)
                for candidate in map(self._candidate, rows):
                    if candidate.id not in seen and self._holds(candidate):  # what arrives meanwhile moves the others
                        found.append(candidate)
                    seen.add(candidate.id)
                if len(found) >= enough:
                    break
        whole = len(found) >= enough or read < MAX_COMPARED
        return found[asked.offset :][: asked.limit], len(found) >= enough, whole

    def _among_newest(self, session: Session, limit: int) -> list["_Candidate"]:
        """Matches among the newest studies, if pieces choose candidates.

        What is frequent is found here. The index would give all studies that have it, to be sorted; and Postgres cannot
        know how many these are, for it takes pieces that come together for independent.
        """
        if self.question.level is not Level.STUDY or not self.pieces:
            return []
        all_ = self._query(by_pieces=False).add_columns(StudyRow.received_at, IdentityRow.pieces)
        newest = all_.limit(limit).subquery()
        query = select(newest).where(*self._have_pieces(newest.c.pieces))
        rows = session.execute(query.order_by(newest.c.received_at.desc(), newest.c.id))
        return [one for one in map(self._candidate, rows) if self._holds(one)]

    @cached_property
    def pieces(self) -> list[list[list[int]]]:
        """What is looked up by pieces: of each attribute the alternatives, of each of these its pieces."""
        alternatives = []
        for name, values in self.question.matches.items():
            field = SEALED[name].field if name in SEALED else ""
            if field in PIECED and not _by_token(field, values):
                several = [self.vault.pieces_wanted(self.site_id, field, value) for value in values]
                alternatives += [several] if all(several) else []
        return alternatives

    def _have_pieces(self, column: Any) -> Iterator[ColumnElement[bool]]:  # noqa: ANN401 - of a table or a query
        """What has no pieces yet may match, too."""
        for several in self.pieces:
            yield or_(*(column.contains(pieces) for pieces in several), column.is_(None))

    def _query(self, *, by_pieces: bool = True) -> Select[*tuple[Any, ...]]:
        asked = self.question
        query: Select[*tuple[Any, ...]] = select(
            StudyRow.id, StudyRow.study_instance_uid, StudyRow.study_date, StudyRow.study_time, StudyRow.utc_offset,
            StudyRow.sex,
        ).where(StudyRow.site_id == self.site_id)  # fmt: skip
        if asked.level is Level.STUDY:
            query = query.order_by(StudyRow.received_at.desc(), StudyRow.id)
        elif asked.level is Level.SERIES:
            query = query.join(SeriesRow, SeriesRow.study_id == StudyRow.id).add_columns(SeriesRow)
        else:
            its_own = and_(InstanceRow.study_id == StudyRow.id, InstanceRow.site_id == self.site_id)
            query = query.join(InstanceRow, its_own)
            query = query.outerjoin(SeriesRow, SeriesRow.id == InstanceRow.series_id)
            query = query.add_columns(SeriesRow, InstanceRow).where(*self.which)
        if asked.level is not Level.STUDY:
            query = query.order_by(*self._order())
        if asked.identities or self.of_study:
            # with a condition on it an inner one: only then the index of pieces can be used
            whose = IdentityRow.study_id == StudyRow.id
            query = query.join(IdentityRow, whose, isouter=not self.of_study).add_columns(IdentityRow.ciphertext)
        for condition in self._conditions():
            query = query.where(condition)
        if by_pieces:
            query = query.where(*self._have_pieces(IdentityRow.pieces))
        return query

    def _conditions(self) -> Iterator[ColumnElement[bool]]:
        """What rows must fulfil. Raises BadRequest."""
        asked = self.question
        if not asked.rejected and asked.level is Level.STUDY:  # what is analysed, no document rejects
            yield or_(StudyRow.images > 0, _has_shown(InstanceRow.study_id == StudyRow.id))
        elif not asked.rejected and asked.level is Level.SERIES:
            yield _has_shown(InstanceRow.series_id == SeriesRow.id)
        if asked.study_uid is not None:
            yield StudyRow.study_instance_uid == asked.study_uid
        if asked.series_uid is not None:
            yield SeriesRow.series_instance_uid == asked.series_uid
        plain = {name: condition for above in PLAIN.values() for name, condition in above.items()}
        plain["ModalitiesInStudy"] = lambda values: _any_modality(values, *self.which)
        for name, values in asked.matches.items():
            try:
                condition = plain[name](values) if name in plain else self._sealed(name, values)
            except ValueError:
                raise BadRequest(f"{name} cannot have one of these values. {FORMS}") from None
            if condition is not None:
                yield condition

    def _order(self) -> Sequence[ColumnElement[Any] | InstrumentedAttribute[Any]]:
        """Below a study by numbers; over all studies so that an index has the order."""
        by_series = [SeriesRow.series_number, SeriesRow.series_instance_uid]
        by_instance = [InstanceRow.instance_number, InstanceRow.sop_instance_uid]
        if self.question.level is Level.SERIES:
            return by_series if self.question.study_uid else [SeriesRow.study_id, SeriesRow.series_instance_uid]
        return [*by_series, *by_instance] if self.question.study_uid else [InstanceRow.sop_instance_uid]

    def _sealed(self, name: str, values: Sequence[str]) -> ColumnElement[bool] | None:
        """Which studies may have one of these values, by tokens; None: tokens do not tell. Raises ValueError."""
        field = SEALED[name].field
        if name == "PatientBirthDate":
            assert all(map(parse_dates, values))
        if not _by_token(field, values):
            return None
        tokens = [self.vault.tokens(self.site_id, Identity(**{field: value}))[field] for value in values]
        return StudyRow.id.in_(select(IdentityTokenRow.study_id).where(IdentityTokenRow.token.in_(tokens)))

    def _candidate(self, row: Row[*tuple[Any, ...]]) -> "_Candidate":
        sealed, its_series = getattr(row, "ciphertext", None), getattr(row, "SeriesRow", None)
        if sealed is not None and row.id not in self._identities:
            self._identities[row.id] = self.vault.identity_of(bytes(sealed))
        if its_series is not None and its_series.id not in self._series:
            self._series[its_series.id] = series.open_series(self.vault, its_series)
        return _Candidate(
            row,
            self._identities.get(row.id),
            its_series,
            getattr(row, "InstanceRow", None),
            self._series[its_series.id] if its_series is not None else NOTHING,
        )

    def _holds(self, candidate: "_Candidate") -> bool:
        who = candidate.identity or Identity()
        return all(
            any(pattern.matches(text) for text in one.values(who, candidate.told) if text for pattern in patterns)
            for one, patterns in self.sealed
        )

    def results(self, session: Session, rows: Sequence["_Candidate"]) -> list[Result]:
        """Put results together; what is counted is counted for these alone."""
        asked = self.question
        studies = {one.row.id for one in rows} if asked.identities else set()
        tallies = _tallies(session, studies, self.which) if studies else {}
        groups = {one.series.id for one in rows if one.series is not None}
        counts: dict[UUID, int] = {}
        if groups:
            counted = select(InstanceRow.series_id, func.count()).where(InstanceRow.series_id.in_(groups), *self.which)
            counts = {id_: count for id_, count in session.execute(counted.group_by(InstanceRow.series_id)) if id_}
        return [
            Result(
                _study(one.row, one.identity if asked.identities else None, tallies.get(one.row.id, ((), 0, 0))),
                FoundSeries(one.told, one.series.modality, counts.get(one.series.id, 0)) if one.series else None,
                _instance(one.instance) if one.instance else None,
            )
            for one in rows
        ]


@dataclass(frozen=True)
class _Candidate:
    """A row of a query, decrypted."""

    row: Row[*tuple[Any, ...]]
    identity: Identity | None
    series: SeriesRow | None
    instance: InstanceRow | None
    told: Series

    @property
    def id(self) -> UUID:
        """Of the lowest level that it has."""
        lowest = self.instance or self.series
        return lowest.id if lowest is not None else self.row.id


Tally = tuple[Sequence[str], int, int]


def _study(row: Row[*tuple[Any, ...]], identity: Identity | None, tally: Tally) -> FoundStudy:
    modalities, its_series, instances = tally
    return FoundStudy(
        id=row.id, uid=row.study_instance_uid, date=row.study_date, time=row.study_time, utc_offset=row.utc_offset,
        sex=row.sex, identity=identity, modalities=modalities, series=its_series, instances=instances,
    )  # fmt: skip


def _tallies(session: Session, study_ids: set[UUID], which: Sequence[ColumnElement[bool]]) -> dict[UUID, Tally]:
    """The modalities of studies, and how many series and instances they have; which: the instances that count."""
    rows = session.execute(
        select(
            InstanceRow.study_id,
            func.array_agg(distinct(InstanceRow.modality)),
            func.count(distinct(InstanceRow.series_id)),
            func.count(),
        )
        .where(InstanceRow.study_id.in_(study_ids), *which)
        .group_by(InstanceRow.study_id)
    )
    return {study_id: (sorted(filter(None, words)), its_series, count) for study_id, words, its_series, count in rows}


def _instance(row: InstanceRow) -> FoundInstance:
    return FoundInstance(
        row.sop_instance_uid, row.sop_class_uid, row.instance_number, row.rows, row.columns, row.frames,
        row.bits_allocated, is_image=bool(row.rows and row.columns),
    )  # fmt: skip
