"""The header that a result copies: the source's patient and study, byte for byte, and its clock.

Source: PS3.3 C.7.1.1, C.7.1.3, C.7.2.1, C.7.2.2, C.7.2.3 (the modules), C.12.1.1.2 (character sets).
"""

import io
import re
import warnings
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

from pydicom import dcmread
from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.valuerep import STR_VR

from shared.dicom.elements import code_string, count, in_our_words, uid_of
from shared.dicom.header import series_without_uid
from shared.domain.results import ImageStatement, SiteStatement

OFFSET = re.compile(r"([+-])(\d{2})(\d{2})")  # PS3.3 C.12.1.1.8: +-HHMM
REQUIRED = (  # of the modules, of type 2: there, if empty
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
    "StudyID", "ReferringPhysicianName",
)  # fmt: skip
_COPIED = (
    # Patient
    "ReferencedPatientSequence PatientName PatientID IssuerOfPatientID TypeOfPatientID"
    " IssuerOfPatientIDQualifiersSequence SourcePatientGroupIdentificationSequence"
    " GroupOfPatientsIdentificationSequence PatientBirthDate PatientBirthTime PatientBirthDateInAlternativeCalendar"
    " PatientDeathDateInAlternativeCalendar"
    " PatientAlternativeCalendar PatientSex QualityControlSubject StrainDescription StrainNomenclature"
    " StrainStockSequence StrainAdditionalInformation StrainCodeSequence GeneticModificationsSequence OtherPatientIDs"
    " OtherPatientNames OtherPatientIDsSequence ReferencedPatientPhotoSequence EthnicGroup EthnicGroupCodeSequence"
    " PatientSpeciesDescription PatientSpeciesCodeSequence PatientBreedDescription PatientBreedCodeSequence"
    " BreedRegistrationSequence ResponsiblePerson ResponsiblePersonRole ResponsibleOrganization PatientComments"
    " PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence"
    # Clinical Trial Subject
    " ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName IssuerOfClinicalTrialProtocolID"
    " OtherClinicalTrialProtocolIDsSequence ClinicalTrialSiteID ClinicalTrialSiteName IssuerOfClinicalTrialSiteID"
    " ClinicalTrialSubjectID IssuerOfClinicalTrialSubjectID ClinicalTrialSubjectReadingID"
    " IssuerOfClinicalTrialSubjectReadingID ClinicalTrialProtocolEthicsCommitteeName"
    " ClinicalTrialProtocolEthicsCommitteeApprovalNumber"
    # General Study, but for the Study Instance UID
    " StudyDate StudyTime AccessionNumber IssuerOfAccessionNumberSequence ReferringPhysicianName"
    " ReferringPhysicianIdentificationSequence ConsultingPhysicianName ConsultingPhysicianIdentificationSequence"
    " StudyDescription ProcedureCodeSequence PhysiciansOfRecord PhysiciansOfRecordIdentificationSequence"
    " NameOfPhysiciansReadingStudy PhysiciansReadingStudyIdentificationSequence ReferencedStudySequence StudyID"
    " RequestingService RequestingServiceCodeSequence ReasonForPerformedProcedureCodeSequence"
    # Patient Study
    " AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence PatientAge PatientSize PatientSizeCodeSequence"
    " PatientBodyMassIndex MeasuredAPDimension MeasuredLateralDimension PatientWeight MedicalAlerts Allergies"
    " Occupation SmokingStatus AdditionalPatientHistory PregnancyStatus LastMenstrualDate PatientSexNeutered"
    " ReasonForVisit ReasonForVisitCodeSequence AdmissionID IssuerOfAdmissionID IssuerOfAdmissionIDSequence"
    " ServiceEpisodeID ServiceEpisodeDescription IssuerOfServiceEpisodeIDSequence PatientState"
    # Clinical Trial Study
    " ClinicalTrialTimePointID ClinicalTrialTimePointDescription LongitudinalTemporalOffsetFromEvent"
    " LongitudinalTemporalEventType ClinicalTrialTimePointTypeCodeSequence IssuerOfClinicalTrialTimePointID"
    " ConsentForClinicalTrialUseSequence"
    # SOP Common: what the copied values are to be read by
    " SpecificCharacterSet TimezoneOffsetFromUTC"
)
COPIED = tuple(_COPIED.split())


@dataclass(frozen=True, repr=False)
class Source:
    """A stored original's header. It names a patient, so it has no repr."""

    image: ImageStatement
    header: Dataset = field(repr=False)  # up to its pixels
    decided: Dataset | None = field(default=None, repr=False)  # the header that names the patient in place of it

    @property
    def identity_header(self) -> Dataset:
        """The header that says who the patient is, and what the study."""
        return self.header if self.decided is None else self.decided

    @property
    def sop_class_uid(self) -> str:
        """SOP Class UID."""
        return uid_of(self.header, "SOPClassUID")

    @property
    def series_instance_uid(self) -> str:
        """Series Instance UID, or what stands for it where the header has none."""
        return uid_of(self.header, "SeriesInstanceUID") or series_without_uid(uid_of(self.header, "StudyInstanceUID"))

    @property
    def side(self) -> str:
        """R, L, U or B; "" where the header does not say."""
        found = (code_string(self.header, keyword).upper() for keyword in ("ImageLaterality", "Laterality"))
        return next((side for side in found if side in {"R", "L", "U", "B"}), "")

    @property
    def frames(self) -> int:
        """Number of Frames, 1 where the header does not say."""
        return count(self.header, "NumberOfFrames", 1)

    def clock(self, moment: datetime, site: SiteStatement) -> datetime:
        """Tell a time by the clock of the source: its own offset if it says one, or else the site's zone.

        (0008,0201) is about every date and time of an object, the copied ones too, so all must be of one clock.

        Args:
            moment: with a time zone.
            site: whose zone counts where the source has no offset.

        Returns:
            The same moment.
        """
        offset = OFFSET.fullmatch(str(self.identity_header.get("TimezoneOffsetFromUTC") or "").strip())
        if offset is None:
            return moment.astimezone(ZoneInfo(site.zone))
        sign, hours, minutes = offset.groups()
        away = timedelta(hours=int(hours), minutes=int(minutes))
        return moment.astimezone(timezone(-away if sign == "-" else away))

    def copy_identity(self) -> Dataset:
        """Copy patient, study and character set, each value with the bytes that the source has.

        What is required and missing is there, empty.

        Returns:
            A data set to be written in Explicit VR Little Endian.
        """
        made = Dataset()
        for keyword in REQUIRED:
            setattr(made, keyword, "")
        for keyword in COPIED:
            tag = Tag(tag_for_keyword(keyword) or keyword)
            if tag in self.identity_header:
                made[tag] = _as_stored(self.identity_header, tag)
        made.set_original_encoding(False, True, convert_encodings(made.get("SpecificCharacterSet")))  # bytes stay
        return made


def open_source(image: ImageStatement, content: bytes, decided: Dataset | None = None) -> Source:
    """Read the header of a stored original.

    Args:
        image: what is known of it.
        content: the whole file.
        decided: the header that names the patient in place of it; None: it does so itself.

    Returns:
        The source.

    Raises:
        Rejected: the header is damaged.
    """
    return Source(image, read_header(content), decided)


def read_header(content: bytes) -> Dataset:
    """Read a stored object up to its pixels. Raises Rejected if its header is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their words may quote values
            header = dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
            header.buffer = None  # it would keep the pixels of all images of a study in memory
            return header
    except Exception as error:  # noqa: BLE001 - pydicom raises nearly anything on damaged headers
        raise in_our_words(error) from None


def _as_stored(header: Dataset, tag: Any) -> DataElement | RawDataElement:  # noqa: ANN401 - pydicom's BaseTag
    """A text as its bytes are, whatever they mean; anything else decoded."""
    element = header.get_item(tag)
    vr = (element.VR if element.VR not in (None, "UN") else None) or dictionary_VR(tag)
    if isinstance(element, RawDataElement) and vr in STR_VR:
        value = element.value or b""
        return RawDataElement(tag, vr, len(value), value, 0, False, True, True)
    decoded: DataElement = header[tag]
    return decoded
