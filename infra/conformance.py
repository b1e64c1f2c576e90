"""`osteon conformance`: tries the DICOM services of a deployment as senders and viewers do, and reports what it found.

It sends made-up images of a made-up patient under UIDs of its own, and deletes them at its end.
"""

import contextlib
import io
import socket
import ssl
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import httpx
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, _config
from pynetdicom.association import Association

from shared.dicom.conformance import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION,
    LOSSLESS_SYNTAXES,
    VERIFICATION,
)
from shared.errors import OsteonError
from shared.tcp import SOCKET_OPTIONS

COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"
VIDEO = "1.2.840.10008.1.2.4.100"  # MPEG-2, which no radiograph has
UNKNOWN_CLASS = "1.2.840.10008.5.1.1.1"  # of printing
UNKNOWN_AE_TITLE = "OSTEON-NOBODY"  # an AE title that no peer should have
PATIENT = {"PatientName": "SELFTEST^OSTEON", "PatientID": "OSTEON-SELFTEST", "AccessionNumber": "OSTEON-SELFTEST"}
IMAGE_SIDE = 64  # pixels
TIMEOUT_S = 60.0  # of each request
PICTURE_S = 60.0  # for a worker to make a preview
JPEG = b"\xff\xd8"  # how a file of JPEG begins
JSON, DICOM = "application/dicom+json", "application/dicom"
BASE = "/dicom-web"
RELATED = 'multipart/related; type="application/dicom"; boundary=osteon'
ANOTHER_STUDY = 0xA901  # Failure Reason
LEFT_BEHIND = (
    "events that say that studies were deleted, and who read their identities",
    "counts of refused files in the statistics",
    "counts of associations and images of the DICOM peer",
    f"the refused caller {UNKNOWN_AE_TITLE}, for 30 days",
)


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not-run"


@dataclass(frozen=True)
class Check:
    """One check and how it ended."""

    area: str
    name: str
    outcome: Outcome
    detail: str = ""


class Failure(Exception):
    """A check found something else than it expects; the text says what."""


class NotRun(Exception):
    """A check cannot be made; the text says why."""


@dataclass(frozen=True)
class Target:
    """What is tried."""

    url: str  # of the API
    key: str  # of an admin: it stores, searches and deletes
    dicom: tuple[str, int] | None = None
    tls: tuple[str, int] | None = None
    tls_authority: str | None = None  # file; None: the system's
    calling: str = "OSTEON-TEST"
    called: str = "OSTEON"


@dataclass
class Report:
    """What was found."""

    checks: list[Check] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # what the test could not delete

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and something was tried."""
        outcomes = [one.outcome for one in self.checks]
        return Outcome.FAILED not in outcomes and Outcome.PASSED in outcomes


class SelfTest:
    """One run against one deployment."""

    def __init__(self, target: Target, tell: Callable[[Check], None] = lambda _: None) -> None:
        """target: what is tried; tell: is called with each check once it is done."""
        _config.LOG_HANDLER_LEVEL = "none"
        self._target, self._tell = target, tell
        self._report = Report()
        self._by_network, self._by_web = test_image("network"), test_image("web")
        self._sent: list[Dataset] = []  # what may be stored now
        self._http = httpx.Client(
            base_url=target.url,
            headers={"Authorization": f"Bearer {target.key}"},
            timeout=TIMEOUT_S,
            transport=httpx.HTTPTransport(trust_env=False, socket_options=SOCKET_OPTIONS),
            trust_env=False,
        )

    def run(self) -> Report:
        """Make every check, then delete what was sent, also when it is interrupted.

        Returns:
            What was found.

        Raises:
            OsteonError: the API does not answer, or the key is not an admin's; nothing was sent then.
        """
        with self._http:
            self._look()
            try:
                for area, checks in (
                    ("network", self._network()), ("TLS", self._tls()), ("store", self._store()),
                    ("search", self._search()), ("retrieve", self._retrieve()),
                ):  # fmt: skip
                    for name, check in checks.items():
                        self._check(area, name, check)
            finally:
                self._check("end", "what was sent is deleted", self._delete)
        if self._sent:
            uids = ", ".join(one.StudyInstanceUID for one in self._sent)
            self._report.left.append(f"the studies {uids}: delete them on their pages, or with osteon delete")
        self._report.left += LEFT_BEHIND
        return self._report

    def _look(self) -> None:
        try:
            answer = self._http.get("/api/v1/deletions")
        except httpx.HTTPError as error:
            raise OsteonError(
                f"The API at {self._target.url} does not answer ({type(error).__name__}). Check --url"
            ) from error
        if answer.status_code in (401, 403):
            raise OsteonError("Give an admin's key: the test stores, searches, and deletes what it sent")
        if answer.status_code != 200:
            raise OsteonError(f"The API at {self._target.url} answers {answer.status_code}; is it Osteon's?")

    def _check(self, area: str, name: str, check: Callable[[], str | None]) -> None:
        try:
            done = Check(area, name, Outcome.PASSED, check() or "")
        except Failure as error:
            done = Check(area, name, Outcome.FAILED, str(error))
        except NotRun as error:
            done = Check(area, name, Outcome.NOT_RUN, str(error))
        except (httpx.HTTPError, OSError, KeyError, ValueError, IndexError, TypeError) as error:
            done = Check(area, name, Outcome.FAILED, f"{type(error).__name__}: {error}")
        self._report.checks.append(done)
        self._tell(done)

    # -- associations

    def _network(self) -> dict[str, Callable[[], str | None]]:
        target = self._target
        return {
            "echo": lambda: self._echo(target.dicom),
            "store an image": self._c_store,
            "the same image again": self._c_store,
            "lossless compression is preferred": self._preference,
            "a video's transfer syntax is refused": lambda: self._refused_context(COMPUTED_RADIOGRAPHY, VIDEO),
            "an unknown SOP class is refused": lambda: self._refused_context(UNKNOWN_CLASS, ExplicitVRLittleEndian),
            "an unknown calling AE title is refused": lambda: self._rejected(UNKNOWN_AE_TITLE, target.called),
            "an unknown called AE title is refused": self._wrong_called,
        }

    @contextlib.contextmanager
    def _association(
        self, place: tuple[str, int] | None, *contexts: tuple[str, list[str]], calling: str = "", called: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> Iterator[Association]:  # fmt: skip
        if place is None:
            raise NotRun("give --dicom HOST:PORT")
        entity = AE(calling or self._target.calling)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = TIMEOUT_S
        for sop_class, syntaxes in contexts:
            entity.add_requested_context(sop_class, syntaxes)
        made = entity.associate(
            *place, ae_title=called or self._target.called, tls_args=(tls, place[0]) if tls is not None else None
        )
        try:
            yield made
        finally:
            if made.is_established:
                made.release()

    def _established(self, association: Association) -> None:
        if association.is_established:
            return
        if association.is_rejected:
            answer = association.acceptor.primitive
            code = f"{answer.result}, {answer.result_source}, {answer.diagnostic}" if answer else "unknown"
            raise Failure(
                f"the association is rejected ({code}): admit the caller with osteon peers admit {self._target.calling}"
            )
        raise Failure("no association: check host, port and firewall, and whether the port speaks TLS")

    def _echo(self, place: tuple[str, int] | None, tls: ssl.SSLContext | None = None) -> None:
        with self._association(place, (VERIFICATION, [ExplicitVRLittleEndian]), tls=tls) as association:
            self._established(association)
            status = association.send_c_echo()
            if status.get("Status") != 0:
                raise Failure(f"the status is {_status(status)}, not 0000")

    def _c_store(self) -> None:
        with self._association(self._target.dicom, (COMPUTED_RADIOGRAPHY, [ExplicitVRLittleEndian])) as association:
            self._established(association)
            self._note(self._by_network)
            status = association.send_c_store(self._by_network)
            if status.get("Status") != 0:
                raise Failure(f"the status is {_status(status)}, not 0000: {status.get('ErrorComment', '')}")

    def _preference(self) -> None:
        compressed = LOSSLESS_SYNTAXES[0]
        with self._association(
            self._target.dicom, (COMPUTED_RADIOGRAPHY, [ExplicitVRLittleEndian, compressed])
        ) as association:
            self._established(association)
            taken = [str(context.transfer_syntax[0]) for context in association.accepted_contexts]
            if taken != [compressed]:
                raise Failure(f"{', '.join(taken) or 'nothing'} is accepted, not {compressed}")

    def _refused_context(self, sop_class: str, syntax: str) -> None:
        echo = (VERIFICATION, [str(ExplicitVRLittleEndian)])
        with self._association(self._target.dicom, echo, (sop_class, [syntax])) as association:
            self._established(association)
            if any(context.abstract_syntax == sop_class for context in association.accepted_contexts):
                raise Failure("it is accepted")

    def _wrong_called(self) -> None:
        with self._association(self._target.dicom, (VERIFICATION, [ExplicitVRLittleEndian])) as association:
            if not association.is_established:  # it would be noted as a caller by both titles, and admitting is by one
                raise NotRun("the caller is not admitted")
        self._rejected(self._target.calling, UNKNOWN_AE_TITLE)

    def _rejected(self, calling: str, called: str) -> None:
        echo = (VERIFICATION, [str(ExplicitVRLittleEndian)])
        with self._association(self._target.dicom, echo, calling=calling, called=called) as association:
            if association.is_established:
                raise Failure("it is accepted")
            if not association.is_rejected:
                raise Failure("there is no answer")

    # -- TLS

    def _tls(self) -> dict[str, Callable[[], str | None]]:
        return {
            "the API is called by https": self._https,
            "echo over TLS": self._echo_by_tls,
            "TLS before 1.2 is refused": self._old_tls,
        }

    def _https(self) -> str:
        if not self._target.url.startswith("https://"):
            raise NotRun("--url is http: keys and images can be read on their way, unless this is one machine")
        return "the certificate was checked"

    def _echo_by_tls(self) -> str:
        if self._target.tls is None:
            raise NotRun("give --tls HOST:PORT")
        made = ssl.create_default_context(cafile=self._target.tls_authority)
        self._echo(self._target.tls, made)
        return "the certificate was checked"

    def _old_tls(self) -> None:
        if self._target.tls is None:
            raise NotRun("give --tls HOST:PORT")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            old.set_ciphers("ALL:@SECLEVEL=0")
        with socket.create_connection(self._target.tls, TIMEOUT_S) as plain:
            try:
                with old.wrap_socket(plain):
                    pass
            except (ssl.SSLError, ConnectionError):
                return
        raise Failure("TLS 1.1 is accepted")

    # -- STOW-RS

    def _store(self) -> dict[str, Callable[[], str | None]]:
        good, own = dicom_file(self._by_web), f"/studies/{self._by_web.StudyInstanceUID}"
        self._note(self._by_web)

        def answered(expected: int, body: bytes, **how: str) -> Callable[[], None]:
            def check() -> None:
                self._send(expected, body, **how)

            return check

        return {
            "an instance: 200": self._stored,
            "the same again: 200": self._stored,
            "a body without length: 200": self._stored_without_length,
            "one instance as application/dicom: 200": answered(200, good, kind=DICOM),
            "its own study's address: 200": answered(200, multipart_body(good), path=own),
            "an answer in XML": self._answered_in_xml,
            "one good and one bad part: 202": self._stored_in_part,
            "bad parts alone: 409": answered(409, multipart_body(b"not DICOM")),
            "another study's address: 409": self._stored_elsewhere,
            "another content type: 415": answered(415, b"text", kind="text/plain"),
            "no boundary: 400": answered(400, multipart_body(good), kind=RELATED.rpartition(";")[0]),
            "a multipart body that is cut short: 400": answered(400, multipart_body(good)[:-20]),
            "an Accept that allows no answer: 406": answered(406, multipart_body(good), accept="image/png"),
            "no key: 401": self._stored_without_key,
        }

    def _send(
        self,
        expected: int,
        body: bytes | Iterator[bytes],
        *,
        kind: str = "",
        path: str = "/studies",
        accept: str = JSON,
    ) -> httpx.Response:
        headers = {"Content-Type": kind or RELATED, "Accept": accept}
        return _expect(expected, self._http.post(BASE + path, content=body, headers=headers))

    def _stored(self) -> None:
        response = self._send(200, multipart_body(dicom_file(self._by_web))).json()
        if _first(response, "00081199", "00081155") != self._by_web.SOPInstanceUID:
            raise Failure("ReferencedSOPSequence does not name the instance")

    def _stored_without_length(self) -> None:
        self._send(200, iter([multipart_body(dicom_file(self._by_web))]))

    def _answered_in_xml(self) -> None:
        answer = self._send(200, multipart_body(dicom_file(self._by_web)), accept="application/dicom+xml")
        if (kind := answer.headers["content-type"]) != "application/dicom+xml":
            raise Failure(f"the answer is {kind}")

    def _stored_in_part(self) -> None:
        response = self._send(202, multipart_body(dicom_file(self._by_web), b"not DICOM")).json()
        if not {"00081198", "0008119A"} & set(response):
            raise Failure("neither FailedSOPSequence nor OtherFailuresSequence names the part that failed")

    def _stored_elsewhere(self) -> None:
        other = test_image("other").StudyInstanceUID
        response = self._send(409, multipart_body(dicom_file(self._by_web)), path=f"/studies/{other}").json()
        if _first(response, "00081198", "00081197") != ANOTHER_STUDY:
            raise Failure("FailureReason is not A901")

    def _stored_without_key(self) -> None:
        headers = {"Content-Type": RELATED, "Authorization": ""}
        _expect(401, self._http.post(f"{BASE}/studies", content=b"", headers=headers))

    # -- QIDO-RS

    def _search(self) -> dict[str, Callable[[], str | None]]:
        image = self._by_web
        study = {
            "PatientID": image.PatientID, "PatientName": "selftest*", "AccessionNumber": image.AccessionNumber,
            "StudyDate": image.StudyDate, "StudyTime": image.StudyTime, "StudyID": image.StudyID,
            "ReferringPhysicianName": "*selftest*", "ModalitiesInStudy": "CR",
        }  # fmt: skip
        series = {"SeriesInstanceUID": image.SeriesInstanceUID, "Modality": "CR", "SeriesNumber": "1"}
        instance = {
            "SOPInstanceUID": image.SOPInstanceUID, "SOPClassUID": image.SOPClassUID, "InstanceNumber": "1",
        }  # fmt: skip
        other_values = {
            "StudyDate": "19000101", "StudyTime": "000001", "SeriesNumber": "99", "InstanceNumber": "99",
            "ModalitiesInStudy": "MR", "Modality": "MR",
        }  # fmt: skip
        uid = image.StudyInstanceUID
        of_study = f"/studies/{uid}/series"
        checks: dict[str, Callable[[], str | None]] = {
            "study by StudyInstanceUID": lambda: self._found("/studies", {"StudyInstanceUID": uid}, 1)
        }

        def matched(path: str, name: str, value: str, given: Mapping[str, str]) -> Callable[[], None]:
            def check() -> None:
                self._found(path, {**given, name: value}, 1)
                self._found(path, {**given, name: other_values.get(name, "1.2.3.4")}, 0)

            return check

        for name, value in study.items():
            checks[f"study by {name}"] = matched("/studies", name, value, {"StudyInstanceUID": uid})
        for name, value in series.items():
            checks[f"series by {name}"] = matched(of_study, name, value, {})
        for name, value in instance.items():
            checks[f"instance by {name}"] = matched(f"/studies/{uid}/instances", name, value, {})
        checks |= {
            "what came by C-STORE is found": self._found_by_network,
            "an attribute outside the dictionary: 400": lambda: _none(
                _expect(400, self._http.get(f"{BASE}/studies", params={"NoAttribute": "1"}))
            ),
            "an attribute that is not matched: a warning": self._warned,
            "past the end: nothing": lambda: self._found("/studies", {"StudyInstanceUID": uid, "offset": "9"}, 0),
        }
        return checks

    def _found(self, path: str, given: Mapping[str, str], expected: int) -> None:
        answer = self._http.get(BASE + path, params=dict(given), headers={"Accept": JSON})
        if answer.status_code == 204:
            found = 0
        else:
            _expect(200, answer)
            if answer.headers["content-type"] != JSON:
                raise Failure(f"the answer is {answer.headers['content-type']}, not {JSON}")
            found = len(answer.json())
        if found != expected:
            raise Failure(f"{found} found, not {expected}")

    def _found_by_network(self) -> None:
        if self._by_network not in self._sent:
            raise NotRun("no image was sent by C-STORE")
        self._found("/studies", {"StudyInstanceUID": self._by_network.StudyInstanceUID}, 1)

    def _warned(self) -> None:
        answer = _expect(200, self._http.get(f"{BASE}/studies", params={"StationName": "X", "limit": "1"}))
        if "299" not in answer.headers.get("warning", ""):
            raise Failure("there is no header Warning")

    # -- WADO-RS

    def _retrieve(self) -> dict[str, Callable[[], str | None]]:
        def answered(expected: int, path: str, accept: str) -> Callable[[], None]:
            def check() -> None:
                self._get(expected, path, accept)

            return check

        return {
            "an instance alone": self._alone,
            "a series as parts": self._as_parts,
            "metadata": self._metadata,
            "a frame": self._frame,
            "a rendered picture": self._rendered,
            "an unknown instance: 404": answered(404, f"{self._series_path}/instances/1.2.3", DICOM),
            "an Accept that allows no answer: 406": answered(406, self._instance_path, "text/plain"),
        }

    @property
    def _series_path(self) -> str:
        return f"{BASE}/studies/{self._by_web.StudyInstanceUID}/series/{self._by_web.SeriesInstanceUID}"

    @property
    def _instance_path(self) -> str:
        return f"{self._series_path}/instances/{self._by_web.SOPInstanceUID}"

    def _get(self, expected: int, path: str, accept: str) -> httpx.Response:
        return _expect(expected, self._http.get(path, headers={"Accept": accept}))

    def _alone(self) -> None:
        content = self._get(200, self._instance_path, DICOM).content
        if dcmread(io.BytesIO(content)).PixelData != self._by_web.PixelData:
            raise Failure("its pixels are not those that were sent")

    def _as_parts(self) -> None:
        answer = self._get(200, self._series_path, 'multipart/related; type="application/dicom"; transfer-syntax=*')
        if self._by_web.PixelData not in answer.content:
            raise Failure("the parts do not hold the pixels that were sent")

    def _metadata(self) -> None:
        (header,) = self._get(200, f"{self._series_path}/metadata", JSON).json()
        if header["00080018"]["Value"] != [self._by_web.SOPInstanceUID] or header["00280010"]["Value"] != [IMAGE_SIDE]:
            raise Failure("they are not those of the image")

    def _frame(self) -> None:
        kind = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
        if self._by_web.PixelData not in self._get(200, f"{self._instance_path}/frames/1", kind).content:
            raise Failure("its pixels are not those that were sent")

    def _rendered(self) -> None:
        until = time.monotonic() + PICTURE_S
        while True:
            answer = self._http.get(f"{self._instance_path}/rendered", headers={"Accept": "image/jpeg"})
            if answer.status_code not in (404, 503) or time.monotonic() > until:
                break
            time.sleep(1.0)
        if not _expect(200, answer).content.startswith(JPEG):
            raise Failure("it is no JPEG")

    # -- the end

    def _note(self, image: Dataset) -> None:
        if image not in self._sent:
            self._sent.append(image)

    def _delete(self) -> str:
        """Ask for the ids of the studies by sending their images once more, for only the API's own receipt has them."""
        if not self._sent:
            raise NotRun("nothing was sent")
        failures = []
        for image in list(self._sent):
            try:
                self._delete_one(image)
            except Failure as error:  # the others are deleted all the same
                failures.append(str(error))
        if failures:
            raise Failure("; ".join(failures))
        return "a search finds nothing of it"

    def _delete_one(self, image: Dataset) -> None:
        receipt = _expect(
            200, self._http.post("/api/v1/studies", files={"files": ("selftest", dicom_file(image))})
        ).json()
        for study in receipt["studies"]:
            _expect(200, self._http.delete(f"/api/v1/studies/{study['id']}", params={"reason": "test"}))
        self._found("/studies", {"StudyInstanceUID": image.StudyInstanceUID}, 0)
        self._sent.remove(image)


def test_image(name: str) -> Dataset:
    """Make a test image of nobody, with UIDs of its own.

    Args:
        name: of the image, which stands in its comment.

    Returns:
        A Computed Radiography image of IMAGE_SIDE x IMAGE_SIDE pixels of 8 bits, in Explicit VR Little Endian.
    """
    image = Dataset()
    image.SOPClassUID = UID(COMPUTED_RADIOGRAPHY)
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(image, keyword, UID(f"2.25.{uuid.uuid4().int}"))
    now = datetime.now(UTC)
    for keyword, value in PATIENT.items():
        setattr(image, keyword, value)
    image.StudyDate, image.StudyTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    image.Modality, image.Manufacturer, image.StudyID = "CR", "Osteon self-test", "1"
    image.ReferringPhysicianName, image.PatientBirthDate, image.PatientSex = "SELFTEST^REFERRING", "", "O"
    image.SeriesNumber, image.InstanceNumber, image.BodyPartExamined, image.ViewPosition = 1, 1, "HAND", "PA"
    image.ImageType, image.PatientOrientation, image.ImageComments = ["ORIGINAL", "PRIMARY"], "", f"Test pattern {name}"
    image.Rows = image.Columns = IMAGE_SIDE
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
    salt = uuid.uuid4().int  # two images with the same pixels would be one to the intake's eyes
    image.PixelData = bytes((row + column + salt) % 200 for row in range(IMAGE_SIDE) for column in range(IMAGE_SIDE))
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    image.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    return image


def dicom_file(image: Dataset) -> bytes:
    """Write an image as a DICOM file."""
    out = io.BytesIO()
    dcmwrite(out, image, enforce_file_format=True)
    return out.getvalue()


def multipart_body(*bodies: bytes) -> bytes:
    """Make a multipart/related body of DICOM instances with the boundary "osteon"."""
    head = b"--osteon\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + body + b"\r\n" for body in bodies) + b"--osteon--\r\n"


def _expect(expected: int, answer: httpx.Response) -> httpx.Response:
    if answer.status_code != expected:
        raise Failure(f"the status is {answer.status_code}, not {expected}")
    return answer


def _none(_: object) -> None:
    return None


def _first(attributes: Mapping[str, Any], sequence: str, tag: str) -> Any:  # noqa: ANN401 - whatever DICOM JSON holds
    items = attributes.get(sequence, {}).get("Value", [{}])
    return items[0].get(tag, {}).get("Value", [None])[0]


def _status(answer: Dataset) -> str:
    return f"{answer.Status:04X}" if "Status" in answer else "none: no answer came in time"
