"""Results as FHIR R4 resources: a report of each study, its observations, and the models as devices.

The observations stand as HL7's mapping of DICOM SR measurement reports to FHIR has them: one of the study, with one of
each image as its members. R4 allows no Device as the performer of a DiagnosticReport: the report names the model's
Device UID as an identifier there, and each Observation refers to the Device itself. Source: FHIR R4
diagnosticreport.html, observation.html, device.html; HL7 DICOM SR to FHIR Resource Mapping.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from uuid import UUID

from api.fhir.formats import Resource
from api.fhir.parameters import STATUSES, UID_PREFIX, UID_SYSTEM
from api.reasons import reason_words
from shared import __version__
from shared.db.tables import BundleRow, FindingRow, InstanceRow, StudyRow
from shared.dicom.header import one_line
from shared.domain.coding import (
    ARTIFICIAL_INTELLIGENCE,
    CERTAINTY,
    FRACTURE,
    IMAGING_STUDY,
    PRESENCE,
    REGIONS,
    SUMMARY,
    Code,
    processing,
)
from shared.domain.device import device_uid
from shared.domain.findings import RESEARCH_USE, Assessment, abstention_of, abstention_words, unread_words
from shared.domain.manifest import title_and_key
from shared.domain.study import Identity
from shared.queries.reports import Outcome, ReportedStudy, outcome_of
from shared.queries.studies import InstanceView

SYSTEMS = {
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "LN": "http://loinc.org",
    "SCT": "http://snomed.info/sct",
}
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
DATA_ABSENT_REASON = f"{TERMINOLOGY}/data-absent-reason"
# of the statement in words that any system knows: v3-ObservationInterpretation
INTERPRETATIONS = {
    Assessment.POSITIVE: ("POS", "Positive"),
    Assessment.UNCLEAR: ("IND", "Indeterminate"),
    Assessment.NEGATIVE: ("NEG", "Negative"),
}
PREFIX = "The model's own statement. "


@dataclass(frozen=True)
class Patient:
    """What a reader is told of the patient; None where nothing is known, or it cannot be decrypted."""

    identity: Identity | None

    @property
    def subject(self) -> Resource:
        """The elements that name the patient, as a logical reference: there are no Patient resources here."""
        who = self.identity
        if who is None or not who.readable:
            return {}
        subject: Resource = {"type": "Patient"}
        if number := one_line(who.patient_id):
            subject["identifier"] = _identifier("MR", "Medical record number", number, one_line(who.issuer))
        if name := " ".join(part for part in one_line(who.patient_name).replace("^", " ").split(" ") if part):
            subject["display"] = name
        return {"subject": subject} if len(subject) > 1 else {}

    @property
    def based_on(self) -> Resource:
        """The elements that name the order, by its accession number."""
        number = one_line(self.identity.accession_number) if self.identity and self.identity.readable else ""
        if not number:
            return {}
        return {"basedOn": [{"type": "ServiceRequest", "identifier": _identifier("ACSN", "Accession ID", number)}]}


def _identifier(code: str, meaning: str, value: str, issuer: str = "") -> Resource:
    coded = {"coding": [{"system": f"{TERMINOLOGY}/v2-0203", "code": code, "display": meaning}]}
    identifier: Resource = {"type": coded, "value": value}
    if issuer:
        identifier["assigner"] = {"display": issuer}
    return identifier


def report(study: ReportedStudy, patient: Patient, model: BundleRow | None) -> Resource:
    """Make the DiagnosticReport of a study.

    Args:
        study: with its result.
        patient: who it is about.
        model: that speaks for the study; None: none does.

    Returns:
        The resource. Its status is preliminary, or cancelled if no image could be analysed.
    """
    row = study.row
    words = conclusion(row)
    return {
        "resourceType": "DiagnosticReport",
        "id": str(row.id),
        **_meta(study.changed_at),
        **_narrative(words),
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{row.id}"}],
        **patient.based_on,
        "status": STATUSES[outcome_of(row)],
        "category": [{"coding": [{"system": f"{TERMINOLOGY}/v2-0074", "code": "RAD", "display": "Radiology"}]}],
        "code": codeable_concept(IMAGING_STUDY),
        **patient.subject,
        **_effective(row),
        "issued": instant(study.changed_at),
        **({"performer": [_performer(model)]} if model is not None else {}),
        "result": [_reference("Observation", row.id)],
        "imagingStudy": [_study_reference(row)],
        "conclusion": words,
    }


def conclusion(row: StudyRow) -> str:
    """Say in words what was found in a study, and that it is no diagnosis."""
    return f"{_finding_text(row)} {RESEARCH_USE}"


def _finding_text(row: StudyRow) -> str:
    if outcome_of(row) is Outcome.QUARANTINED:
        why = reason_words(row.reason, row.reason_detail)
        return f"No image of this study could be analysed. {why} Silence is not normal."
    words = abstention_words(abstention_of(row.abstention), row.abstention_detail, row.score)
    unread = f" {unread_words(row.failed_images)}." if row.failed_images and "could not be read" not in words else ""
    if row.assessment == Assessment.ABSTAINED:
        return f"{PREFIX}Abstained, {words}.{unread} Silence is not normal."
    beside = f" {words[0].upper()}{words[1:]}." if words else ""
    return f"{PREFIX}Fracture: {row.assessment}, {row.region}.{beside}{unread}"


def observations(
    study: ReportedStudy,
    views: Sequence[InstanceView],
    patient: Patient,
    models: Mapping[str, BundleRow],
    *,
    certainty: bool,
) -> list[Resource]:
    """Make the Observations of a study: of the study first, then of its images in their order.

    Args:
        study: with its result.
        views: its images that are analysed.
        patient: who it is about.
        models: by name.
        certainty: whether the calibrated probability is told.

    Returns:
        The resources.
    """
    common = _Common(study, patient, models)
    members: list[Resource] = []
    assessments: list[Assessment | None] = []
    for number, view in enumerate(views, start=1):
        for finding in view.findings:
            members.append(_finding_observation(common, view.row, number, finding, certainty=certainty))
            assessments.append(Assessment(finding.assessment))
        if not view.findings:
            members.append(_unread_observation(common, view.row, number))
            assessments.append(None)
    return [_study_observation(common, members, assessments), *members]


@dataclass(frozen=True)
class _Common:
    """What all Observations of a study share."""

    study: ReportedStudy
    patient: Patient
    models: Mapping[str, BundleRow]

    def observation(self, id_: UUID, status: str, code: Code, words: str, bundle: str) -> Resource:
        """The elements up to the value."""
        row = self.study.row
        model = self.models.get(bundle)
        return {
            "resourceType": "Observation",
            "id": str(id_),
            **_meta(self.study.changed_at),
            **_narrative(words),
            **self.patient.based_on,
            "status": status,
            "category": [
                {"coding": [{"system": f"{TERMINOLOGY}/observation-category", "code": "imaging", "display": "Imaging"}]}
            ],
            "code": codeable_concept(code),
            **self.patient.subject,
            **_effective(row),
            "issued": instant(self.study.changed_at),
            "method": codeable_concept(ARTIFICIAL_INTELLIGENCE),
            **({"device": _reference("Device", model.sha256)} if model is not None else {}),
            "note": [{"text": words}],
        }


def _study_observation(
    common: _Common, members: Sequence[Resource], assessments: Sequence[Assessment | None]
) -> Resource:
    row = common.study.row
    observation = common.observation(row.id, STATUSES[outcome_of(row)], SUMMARY, conclusion(row), row.bundle)
    observation["valueCodeableConcept"] = codeable_concept(processing(assessments))
    observation["derivedFrom"] = [_study_reference(row)]
    if members:
        observation["hasMember"] = [_reference("Observation", one["id"]) for one in members]
    if row.assessment in INTERPRETATIONS and outcome_of(row) is Outcome.ASSESSED:
        observation["interpretation"] = [_interpretation(Assessment(row.assessment))]
    return observation


def _finding_observation(
    common: _Common, image: InstanceRow, number: int, finding: FindingRow, *, certainty: bool
) -> Resource:
    assessment = Assessment(finding.assessment)
    words = abstention_words(abstention_of(finding.abstention), finding.abstention_detail, finding.score)
    where = f"Image {number}" + (f", frame {finding.frame}" if image.frames > 1 else "")
    if assessment is Assessment.ABSTAINED:
        text = f"{where}: abstained, {words}. Silence is not normal. {RESEARCH_USE}"
    else:
        beside = f" {words[0].upper()}{words[1:]}." if words else ""
        text = f"{where}: fracture {assessment}, {finding.region}.{beside} {RESEARCH_USE}"
    observation = common.observation(finding.id, STATUSES[Outcome.ASSESSED], FRACTURE, text, finding.bundle)
    if assessment is Assessment.ABSTAINED:
        observation["dataAbsentReason"] = _data_absent_reason("unsupported", "Unsupported", words)
    else:
        observation["valueCodeableConcept"] = codeable_concept(PRESENCE[assessment])
        observation["interpretation"] = [_interpretation(assessment)]
        if certainty:
            share = {
                "value": round(100 * finding.fracture_probability, 2), "unit": "%",
                "system": "http://unitsofmeasure.org", "code": "%",
            }  # fmt: skip
            observation["component"] = [{"code": codeable_concept(CERTAINTY), "valueQuantity": share}]
    if finding.region:
        observation["bodySite"] = _site(finding.region)
    observation["derivedFrom"] = [_study_reference(common.study.row), _image_reference(image, number)]
    return observation


def _unread_observation(common: _Common, image: InstanceRow, number: int) -> Resource:
    why = reason_words(image.error_reason, image.error_detail) or "It has no finding yet."
    text = f"Image {number}: no finding. {why} Silence is not normal. {RESEARCH_USE}"
    observation = common.observation(image.id, STATUSES[Outcome.QUARANTINED], FRACTURE, text, common.study.row.bundle)
    observation["dataAbsentReason"] = _data_absent_reason("error", "Error", why)
    observation["derivedFrom"] = [_study_reference(common.study.row), _image_reference(image, number)]
    return observation


def device(row: BundleRow) -> Resource:
    """Make the Device that a model is.

    Args:
        row: of its bundle.

    Returns:
        The resource. Its id is the SHA-256 of the bundle, its identifier the Device UID that DICOM objects name.
    """
    name = title_and_key(row.name, row.manifest)
    changed = row.activated_at or row.added_at
    limits = str(row.manifest.get("limits") or "This bundle says nothing of its limits.")
    return {
        "resourceType": "Device",
        "id": row.sha256,
        **_meta(changed),
        **_narrative(f"Osteon {__version__}, model {name}. {RESEARCH_USE}"),
        "identifier": [_uid(device_uid(row.sha256))],
        "status": "active" if row.active else "inactive",
        "manufacturer": "Osteon",
        "deviceName": [{"name": f"Osteon {name}", "type": "model-name"}],
        "modelNumber": row.name,
        "type": {"text": "Software that looks for fractures in radiographs"},
        "version": [
            {"type": {"text": "application"}, "value": __version__},
            {"type": {"text": "model"}, "value": row.name},
        ],
        "note": [{"text": RESEARCH_USE}, {"text": limits}],
        "safety": [{"text": RESEARCH_USE}],
    }


# -- elements


def codeable_concept(code: Code) -> Resource:
    """A code as a CodeableConcept."""
    coding = {"system": SYSTEMS[code.scheme], "code": code.value, "display": code.meaning}
    return {"coding": [coding], "text": code.meaning}


def instant(moment: datetime) -> str:
    """A time as FHIR writes it, to the microsecond, so that a client can ask for what came after it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _meta(changed_at: datetime) -> Resource:
    return {"meta": {"lastUpdated": instant(changed_at)}}


def _narrative(words: str) -> Resource:
    return {
        "text": {
            "status": "generated",
            "div": f'<div xmlns="http://www.w3.org/1999/xhtml"><p>{escape(words)}</p></div>',
        }
    }


def _effective(row: StudyRow) -> Resource:
    """When the study was made; a time of the day only with its zone, which FHIR demands."""
    if row.study_date is None:
        return {}
    day, offset = row.study_date.isoformat(), row.utc_offset
    if row.study_time is None or not offset:
        return {"effectiveDateTime": day}
    return {"effectiveDateTime": f"{day}T{row.study_time:%H:%M:%S}{offset[:3]}:{offset[3:]}"}


def _reference(kind: str, id_: object) -> Resource:
    return {"reference": f"{kind}/{id_}", "type": kind}


def _uid(uid: str) -> Resource:
    return {"system": UID_SYSTEM, "value": f"{UID_PREFIX}{uid}"}


def _study_reference(row: StudyRow) -> Resource:
    return {"type": "ImagingStudy", "identifier": _uid(row.study_instance_uid)}


def _image_reference(row: InstanceRow, number: int) -> Resource:
    """The image by its SOP Instance UID: R4 has Media for single images."""
    return {"type": "Media", "identifier": _uid(row.sop_instance_uid), "display": f"Image {number}"}


def _performer(model: BundleRow) -> Resource:
    return {
        "identifier": _uid(device_uid(model.sha256)),
        "display": f"Osteon {title_and_key(model.name, model.manifest)}",
    }


def _interpretation(assessment: Assessment) -> Resource:
    code, meaning = INTERPRETATIONS[assessment]
    return {"coding": [{"system": f"{TERMINOLOGY}/v3-ObservationInterpretation", "code": code, "display": meaning}]}


def _data_absent_reason(code: str, meaning: str, words: str) -> Resource:
    return {"coding": [{"system": DATA_ABSENT_REASON, "code": code, "display": meaning}], "text": words}


def _site(region: str) -> Resource:
    return codeable_concept(REGIONS[region]) if region in REGIONS else {"text": region}
