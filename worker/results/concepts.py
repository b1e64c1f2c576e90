"""Codes that results speak in, as pydicom takes them. What FHIR and HL7 say too stands in `shared.domain.coding`.

Source: PS3.16, of which the SNOMED terms may be used within DICOM only.
"""

from pydicom.sr.coding import Code

from shared.domain import coding
from shared.domain.findings import Assessment


def concept(code: coding.Code) -> Code:
    """A code of ours as pydicom and highdicom take it."""
    return Code(code.value, code.scheme, code.meaning)


FRACTURE = concept(coding.FRACTURE)
CERTAINTY = concept(coding.CERTAINTY)
SUMMARY = concept(coding.SUMMARY)  # of the study; its values are those of CID 6047
ARTIFICIAL_INTELLIGENCE = concept(coding.ARTIFICIAL_INTELLIGENCE)  # CID 7162
PRESENCES = {assessment: concept(code) for assessment, code in coding.PRESENCE.items()}  # CID 240
PRESENT, UNDETERMINED, ABSENT = (
    PRESENCES[one] for one in (Assessment.POSITIVE, Assessment.UNCLEAR, Assessment.NEGATIVE)
)
REGIONS = {region: concept(code) for region, code in coding.REGIONS.items()}  # CID 4 and CID 4031
COMMENT = Code("121106", "DCM", "Comment")
RADIOGRAPHY = Code("168537006", "SCT", "Plain radiography")
EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
DEVICE = Code("121007", "DCM", "Device")
# of each image: CID 42
DETECTIONS = Code("111064", "DCM", "Summary of Detections")
SUCCEEDED = Code("111222", "DCM", "Succeeded")
FAILED = Code("111224", "DCM", "Failed")
NOT_ATTEMPTED = Code("111225", "DCM", "Not Attempted")
SIDES = {  # Laterality (PS3.3 C.7.3.1) to CID 244
    "R": Code("24028007", "SCT", "Right"),
    "L": Code("7771000", "SCT", "Left"),
    "B": Code("51440002", "SCT", "Bilateral"),
}
