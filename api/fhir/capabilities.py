"""What this server can do, as a CapabilityStatement. Source: FHIR R4, capabilitystatement.html."""

from typing import Any

from api.fhir.formats import OFFERED, Resource
from api.fhir.parameters import INCLUDES, PARAMETERS
from shared import __version__
from shared.domain.findings import RESEARCH_USE

DATED = "2026-11-30"  # when these capabilities last changed
FHIR_VERSION = "4.0.1"
RESOURCES = {
    "DiagnosticReport": "What was found in a study: one for each study that has a result.",
    "Observation": "What was found in a study, and in each of its images: members of the study's.",
    "Device": "The models that findings are of.",
}
SECURITY = (
    "Each request but this one shows a key with the role radiologist: Authorization: Bearer osk_… It sees the studies "
    "of its site alone, and each reading of a patient's identity is recorded."
)


def capability_statement(base: str) -> Resource:
    """Make the CapabilityStatement.

    Args:
        base: the service's address.

    Returns:
        The resource.
    """
    return {
        "resourceType": "CapabilityStatement",
        "id": "osteon",
        "url": f"{base}/metadata",
        "version": __version__,
        "name": "Osteon",
        "title": "Osteon's results",
        "status": "active",
        "experimental": True,
        "date": DATED,
        "publisher": "Osteon",
        "description": f"Results of the reading of bone radiographs by software, to read alone. {RESEARCH_USE}",
        "kind": "instance",
        "software": {"name": "Osteon", "version": __version__},
        "implementation": {"description": "Osteon", "url": base},
        "fhirVersion": FHIR_VERSION,
        "format": list(OFFERED),
        "rest": [
            {
                "mode": "server",
                "documentation": "An unknown parameter is ignored, or refused with Prefer: handling=strict.",
                "security": {"cors": False, "description": SECURITY},
                "resource": [_resource(kind, words) for kind, words in RESOURCES.items()],
            }
        ],
    }


def _resource(kind: str, words: str) -> dict[str, Any]:
    resource: dict[str, Any] = {
        "type": kind,
        "documentation": words,
        "interaction": [{"code": "read"}, {"code": "search-type"}],
        "versioning": "no-version",
        "readHistory": False,
        "conditionalRead": "not-supported",
        "referencePolicy": ["literal", "logical"],
        "searchParam": [
            {"name": name, "type": parameter.kind, "documentation": parameter.words}
            for name, parameter in PARAMETERS[kind].items()
        ],
    }
    if INCLUDES[kind]:
        resource["searchInclude"] = list(INCLUDES[kind])
    return resource
