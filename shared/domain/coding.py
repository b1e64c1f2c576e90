"""Codes for what Osteon finds, as DICOM SR, FHIR and HL7 name it, whatever carries them.

Source: PS3.16 CID 240 (presence), CID 4030 (regions), CID 6047 (what became of the processing), TID 1410 and 1501.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.domain.findings import Assessment


@dataclass(frozen=True)
class Code:
    """A coded concept; its scheme as DICOM designates it: DCM, SCT (SNOMED CT), LN (LOINC), UCUM."""

    value: str
    scheme: str
    meaning: str


IMAGING_STUDY = Code("18748-4", "LN", "Diagnostic imaging study")
FRACTURE = Code("125605004", "SCT", "Fracture of bone")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
SUMMARY = Code("111017", "DCM", "CAD Processing and Findings Summary")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
# an abstention is no statement of presence: it has none
PRESENCE = {
    Assessment.POSITIVE: Code("52101004", "SCT", "Present"),
    Assessment.UNCLEAR: Code("373068000", "SCT", "Undetermined"),
    Assessment.NEGATIVE: Code("272519000", "SCT", "Absent"),
}
# of what bundles call regions; others have no code here and are written in words
REGIONS = {
    "hand": Code("85562004", "SCT", "Hand"),
    "wrist": Code("74670003", "SCT", "Wrist joint"),
    "elbow": Code("16953009", "SCT", "Elbow joint"),
    "shoulder": Code("16982005", "SCT", "Shoulder"),
    "hip": Code("29836001", "SCT", "Hip"),
    "knee": Code("72696002", "SCT", "Knee"),
    "leg": Code("61685007", "SCT", "Lower limb"),  # the training radiographs of legs show knees and feet too
    "ankle": Code("70258002", "SCT", "Ankle joint"),
    "foot": Code("56459004", "SCT", "Foot"),
}
_PROCESSED = {  # whether all succeeded, and whether something was found
    (True, False): Code("111241", "DCM", "All algorithms succeeded; without findings"),
    (True, True): Code("111242", "DCM", "All algorithms succeeded; with findings"),
    (False, False): Code("111243", "DCM", "Not all algorithms succeeded; without findings"),
    (False, True): Code("111244", "DCM", "Not all algorithms succeeded; with findings"),
}
_NONE_SUCCEEDED = Code("111245", "DCM", "No algorithms succeeded; without findings")


def processing(assessments: Sequence[Assessment | None]) -> Code:
    """Say what became of a study's images, so that an abstention is never taken for a negative result.

    Args:
        assessments: of each image; None: it could not be read.

    Returns:
        A code of CID 6047. An abstention and an unread image have not succeeded; positive and unclear are findings.
    """
    spoken = [one for one in assessments if one not in (None, Assessment.ABSTAINED)]
    if not spoken:
        return _NONE_SUCCEEDED
    found = any(one in (Assessment.POSITIVE, Assessment.UNCLEAR) for one in spoken)
    return _PROCESSED[len(spoken) == len(assessments), found]
