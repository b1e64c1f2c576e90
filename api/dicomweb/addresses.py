"""Where things stand below /dicom-web, and what a request's address names. Source: PS3.18 8.2 and table 10.1-1."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, HTTPException, Path, Query, Request

from api.dependencies import KeyDep
from shared.domain.security import Role
from shared.queries.access import Key

DICOMWEB = "/dicom-web"
STUDY = "/studies/{study}"
SERIES = f"{STUDY}/series/{{series}}"
INSTANCE = f"{SERIES}/instances/{{instance}}"
_MAX_UID_LENGTH = 64  # of a UID, PS3.5 9.1
REJECTED = "whether to give also what documents reject; for administrators"

StudyUID = Annotated[str, Path(max_length=_MAX_UID_LENGTH, description="DICOM Study Instance UID")]
_SeriesUID = Annotated[str, Path(max_length=_MAX_UID_LENGTH, description="DICOM Series Instance UID")]
_InstanceUID = Annotated[str, Path(max_length=_MAX_UID_LENGTH, description="DICOM SOP Instance UID")]


@dataclass(frozen=True)
class DicomPath:
    """A study, a series of it, or an instance of that."""

    study: str
    series: str | None = None
    instance: str | None = None
    rejected: bool = False  # whether instances are wanted that a document rejects


def may_see_rejected(key: Key, asks: bool) -> bool:  # noqa: FBT001 - what is asked for
    """Check whether a key may have what documents reject.

    Args:
        key: of the request.
        asks: whether it asks for that.

    Returns:
        `asks`.

    Raises:
        HTTPException: 403; the key is no administrator's.
    """
    if asks and not key.may(Role.ADMIN):
        raise HTTPException(403, f"includerejected needs a key with the role {Role.ADMIN}; yours is {key.role}")
    return asks


def _includes_rejected(key: KeyDep, includerejected: Annotated[bool, Query(description=REJECTED)] = False) -> bool:  # noqa: FBT002
    return may_see_rejected(key, includerejected)


_Rejected = Annotated[bool, Depends(_includes_rejected)]


def _study(rejected: _Rejected, study: StudyUID) -> DicomPath:
    return DicomPath(study, rejected=rejected)


def _series(rejected: _Rejected, study: StudyUID, series: _SeriesUID) -> DicomPath:
    return DicomPath(study, series, rejected=rejected)


def _instance(rejected: _Rejected, study: StudyUID, series: _SeriesUID, instance: _InstanceUID) -> DicomPath:
    return DicomPath(study, series, instance, rejected)


OfStudy = Annotated[DicomPath, Depends(_study)]
OfSeries = Annotated[DicomPath, Depends(_series)]
OfInstance = Annotated[DicomPath, Depends(_instance)]


def base_url(request: Request) -> str:
    """The service's address as the client knows it, without a slash at its end."""
    return str(request.base_url).rstrip("/") + DICOMWEB
