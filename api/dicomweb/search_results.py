"""Results of QIDO-RS as data sets. Source: PS3.18, tables 10.6.3-3 (studies), -4 (series) and -5 (instances)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from api.dicomweb.datasets import DataSet, Value, data_set
from api.dicomweb.keys import Search
from shared.dicom.header import date_text, time_text
from shared.domain.study import Identity
from shared.queries.qido import FoundInstance, FoundSeries, FoundStudy, Level, Question, Result

Values = dict[str, list[Value] | Value | None]

CONSTANT = {"SpecificCharacterSet": "ISO_IR 192", "InstanceAvailability": "ONLINE"}
STUDY = frozenset(
    {
        "StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName", "StudyDescription",
        "TimezoneOffsetFromUTC", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID",
        "StudyID", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances",
    }
)  # fmt: skip
SERIES = frozenset(
    {
        "Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "NumberOfSeriesRelatedInstances",
        "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "RequestAttributesSequence",
    }
)  # fmt: skip
INSTANCE = frozenset(
    {
        "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames",
    }
)  # fmt: skip
# returned only where they are asked for
MORE = {
    Level.STUDY: frozenset({"IssuerOfPatientID"}),
    Level.SERIES: frozenset(
        {"SeriesDate", "SeriesTime", "ProtocolName", "PerformedProcedureStepID", "PerformedProcedureStepDescription"}
    ),
    Level.INSTANCE: frozenset[str](),
}
ALWAYS = {Level.STUDY: STUDY, Level.SERIES: SERIES, Level.INSTANCE: INSTANCE}
# what is left out where nobody knows it, unless it is asked for; other attributes are then empty
IF_KNOWN = frozenset(
    {
        "TimezoneOffsetFromUTC", "SeriesDescription", "PerformedProcedureStepStartDate", "StudyDescription",
        "PerformedProcedureStepStartTime", "RequestAttributesSequence", "Rows", "Columns", "BitsAllocated",
        "NumberOfFrames",
    }
)  # fmt: skip
PATH = {Level.STUDY: "studies", Level.SERIES: "series", Level.INSTANCE: "instances"}


@dataclass(frozen=True)
class ReturnedAttributes:
    """Which attributes a query's results have."""

    level: Level
    names: frozenset[str]
    asked: frozenset[str]  # of these, those that are asked for by name

    @property
    def identities(self) -> bool:
        """Whether attributes of the patient or the study are among them, other than its UID."""
        return bool(self.names & (STUDY | MORE[Level.STUDY]) - {"StudyInstanceUID"})


def returned_attributes(
    search: Search, level: Level, study_uid: str | None, series_uid: str | None
) -> ReturnedAttributes:
    """Decide which attributes are returned.

    Attributes of the study are returned with series and instances unless the study is given, and of the series with
    instances unless that is; UIDs always.

    Args:
        search: the query.
        level: of its results.
        study_uid: the study that it is restricted to; None: all.
        series_uid: the series; None: all.

    Returns:
        Their keywords.
    """
    levels = [one for one in Level if one <= level]
    there = frozenset[str]().union(*(ALWAYS[one] | MORE[one] for one in levels))
    asked = frozenset(name.partition(".")[0] for name in (*search.fields, *search.matches)) & there
    if search.everything:
        return ReturnedAttributes(level, there, asked)
    given = {Level.STUDY: study_uid, Level.SERIES: series_uid, Level.INSTANCE: None}
    names = frozenset[str]().union(*(ALWAYS[one] for one in levels if one == level or given[one] is None))
    uids = {"StudyInstanceUID", *(["SeriesInstanceUID"] if level >= Level.SERIES else [])}
    return ReturnedAttributes(level, names | uids | asked, asked)


def data_set_of(result: Result, attributes: ReturnedAttributes, base: str) -> DataSet:
    """Make the data set of a result.

    Args:
        result: what was found.
        attributes: its attributes.
        base: the address of the service.

    Returns:
        The data set in the DICOM JSON Model.
    """
    known: Values = dict(_study(result.study))
    if result.series is not None:
        known |= _series(result.series)
    if result.instance is not None:
        known |= _instance(result.instance)
    values = {
        name: known.get(name)
        for name in attributes.names
        if name in attributes.asked or name not in IF_KNOWN or known.get(name) not in (None, "", [])
    }
    uids = [known["StudyInstanceUID"], known.get("SeriesInstanceUID"), known.get("SOPInstanceUID")]
    return data_set(**values, **CONSTANT, RetrieveURL=base + "".join(_path(attributes.level, uids)))


def _path(level: Level, uids: list[list[Value] | Value | None]) -> Iterator[str]:
    """The address below the service; it ends where a UID is not known yet."""
    for one, uid in zip(Level, uids, strict=True):
        if one > level or not uid:
            return
        yield f"/{PATH[one]}/{uid}"


def _study(study: FoundStudy) -> Values:
    who = study.identity or Identity()
    return {
        "StudyInstanceUID": study.uid,
        "StudyDate": date_text(study.date),
        "StudyTime": time_text(study.time),
        "TimezoneOffsetFromUTC": study.utc_offset,
        "PatientSex": study.sex,
        "ModalitiesInStudy": list(study.modalities),
        "NumberOfStudyRelatedSeries": study.series,
        "NumberOfStudyRelatedInstances": study.instances,
        "PatientName": _name(who.patient_name),
        "PatientID": who.patient_id,
        "IssuerOfPatientID": who.issuer,
        "PatientBirthDate": who.birth_date.replace(".", ""),  # ACR-NEMA wrote 1970.01.31
        "AccessionNumber": who.accession_number,
        "ReferringPhysicianName": _name(who.referring_physician),
        "StudyID": who.dicom_study_id,
        "StudyDescription": who.study_description,
    }


def _series(found: FoundSeries) -> Values:
    series = found.told
    requests: list[Value] = [
        data_set(
            ScheduledProcedureStepID=one.scheduled_step_id or None,
            RequestedProcedureID=one.requested_procedure_id or None,
        )
        for one in series.requests
    ]
    return {
        "Modality": found.modality,
        "SeriesInstanceUID": series.instance_uid,
        "SeriesNumber": series.number,
        "SeriesDescription": series.description,
        "SeriesDate": date_text(series.series_date),
        "SeriesTime": time_text(series.series_time),
        "ProtocolName": series.protocol,
        "PerformedProcedureStepStartDate": date_text(series.performed_date),
        "PerformedProcedureStepStartTime": time_text(series.performed_time),
        "PerformedProcedureStepID": series.performed_step_id,
        "PerformedProcedureStepDescription": series.performed_step_description,
        "RequestAttributesSequence": requests,
        "NumberOfSeriesRelatedInstances": found.instances,
    }


def _instance(found: FoundInstance) -> Values:
    image: Values = {
        "Rows": found.rows, "Columns": found.columns, "BitsAllocated": found.bits_allocated or None,
        "NumberOfFrames": found.frames,
    }  # fmt: skip
    return {
        "SOPClassUID": found.sop_class_uid,
        "SOPInstanceUID": found.uid,
        "InstanceNumber": found.number,
        **(image if found.is_image else {}),
    }


def _name(name: str) -> Mapping[str, str] | None:
    """A name's groups (PS3.18 F.2.2)."""
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), name.split("="), strict=False)
    return {group: text for group, text in groups if text} or None


def database_query(
    search: Search, attributes: ReturnedAttributes, max_results: int, study_uid: str | None, series_uid: str | None
) -> Question:
    """Make the question that a query asks of the database.

    Args:
        search: the query; its `matches` are those that are indexed.
        attributes: which attributes are returned.
        max_results: results of one response.
        study_uid: the study that it is restricted to; None: all.
        series_uid: the series; None: all.

    Returns:
        The question.
    """
    return Question(
        level=attributes.level,
        matches=search.matches,
        study_uid=study_uid,
        series_uid=series_uid,
        limit=max_results if search.limit is None else min(search.limit, max_results),
        offset=search.offset,
        identities=attributes.identities,
        rejected=search.rejected,
    )
