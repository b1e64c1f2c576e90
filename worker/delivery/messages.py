"""Messages by HL7, webhooks and mail: what is told, made and sent anew at each try, and what is answered."""

import io
import re
import socket
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol
from uuid import uuid4

from pydicom import dcmread
from pydicom.dataset import Dataset

from shared.dicom.elements import ReadBudget, code_string, items_of, text_of
from shared.dicom.header import OFFSET_PATTERN, date_of, one_line, time_of
from shared.domain.coding import IMAGING_STUDY, Code, processing
from shared.domain.destinations import (
    BY_HL7,
    WORDS_LENGTH,
    Answer,
    DeliveryReason,
    Destination,
    DestinationKind,
    http_answer,
    printable_words,
)
from shared.domain.device import device_uid
from shared.domain.findings import Assessment, abstention_of, abstention_words, shown_score, unread_words
from shared.domain.notices import KEY_LENGTH, AccessionPlace, NoticeContent, parse_networks, webhook_secret
from shared.queries.deliveries import DueDelivery, Work
from shared.settings import Settings
from worker.delivery import mail, mllp, webhooks
from worker.delivery.connections import Away, certificate_refusal, client_context
from worker.delivery.hl7 import (
    Acknowledgement,
    Message,
    NoAccessionNumber,
    NotEncodable,
    Order,
    Receiver,
    Result,
    Verdict,
    control_id,
    letters,
    make_oru,
)

MAX_VALUE_LENGTH = 1024  # characters of a value that are read: more than any has that follows its VR
MIN_SAID_LENGTH = 3  # characters of what is left out of a receiver's words wherever it stands; shorter: as a word
LEFT_OUT = "..."


class Messenger(Protocol):
    """Tells a destination what happened. All calls are bounded; each may raise Away."""

    def tell(self, due: DueDelivery) -> Answer:
        """Send a message; at each try the same, under the same id."""

    def test(self) -> Answer:
        """Ask whether it would take one, as far as that can be asked."""


def choose_messenger(settings: Settings, work: Work, read: Callable[[str], bytes]) -> Messenger:
    """Choose how a destination is told.

    Args:
        settings: of this process.
        work: the destination, one of messages.
        read: reads a stored object by its SHA-256; raises Away.

    Returns:
        What tells it.
    """
    if work.destination.kind in BY_HL7:
        return Hl7Messenger(settings, work, read)
    if work.destination.kind is DestinationKind.MAIL:
        return MailMessenger(settings, work)
    return WebhookMessenger(settings, work)


class Hl7Messenger:
    """Sends ORU^R01. The patient is read from the header of the study's first image, and kept nowhere."""

    def __init__(self, settings: Settings, work: Work, read: Callable[[str], bytes]) -> None:
        self._settings, self._destination, self._read = settings, work.destination, read

    def tell(self, due: DueDelivery) -> Answer:
        """Send the message of a notice.

        A header that was corrected makes another message, under another id.

        Args:
            due: with what is told.

        Returns:
            What the receiver answered; or why there is no message.

        Raises:
            Away: the receiver cannot be reached, or does not answer.
        """
        assert due.told is not None
        order = order_of(self._read(due.header_sha256)) if due.header_sha256 else None
        if order is None:
            return Answer(DeliveryReason.NO_HEADER)
        id_ = control_id(str(due.delivery_id), due.header_sha256)
        try:
            message = make_oru(order, result_of(due.study_instance_uid, due.told), _receiver(self._destination), id_)
        except NoAccessionNumber:
            return Answer(DeliveryReason.NO_ACCESSION_NUMBER)
        except NotEncodable as error:
            return Answer(DeliveryReason.NOT_ENCODABLE, words=error.field)
        try:
            return _answer_of(self._exchange(message), order, message.codec)
        except mllp.Unintelligible:  # of this message; the next one may be understood
            return Answer(DeliveryReason.UNINTELLIGIBLE)

    def test(self) -> Answer:
        """Connect, with TLS where that is agreed on, and send nothing: HL7 has no message that changes nothing."""
        endpoint = self._endpoint()
        try:
            with mllp.connect(endpoint, mllp.CONNECT_S):
                return Answer(None, "connected")
        except _FAILURES as error:
            raise Away(_failure(error, endpoint)) from None

    def _exchange(self, message: Message) -> Acknowledgement:
        endpoint = self._endpoint()
        try:
            return mllp.exchange(endpoint, message, self._settings.delivery_answer_s)
        except _FAILURES as error:
            raise Away(_failure(error, endpoint)) from None

    def _endpoint(self) -> mllp.Endpoint:
        destination = self._destination
        tls = client_context(self._settings, destination) if destination.kind == BY_HL7[1] else None
        return mllp.Endpoint(destination.host, destination.port, tls)


_FAILURES = (mllp.WrongCertificate, mllp.Silent, mllp.Cut, OSError)


def _failure(error: Exception, endpoint: mllp.Endpoint) -> Answer:
    """What one of _FAILURES means."""
    if (refused := certificate_refusal(endpoint.tls)) is not None:
        return refused
    reasons: tuple[tuple[type[Exception], DeliveryReason], ...] = (
        (mllp.WrongCertificate, DeliveryReason.CERTIFICATE),
        (mllp.Silent, DeliveryReason.NO_ANSWER),
        (mllp.Cut, DeliveryReason.CUT),
        (socket.gaierror, DeliveryReason.UNKNOWN_NAME),
        (OSError, DeliveryReason.UNREACHABLE),
    )
    return Answer(next(reason for kind, reason in reasons if isinstance(error, kind)))


class WebhookMessenger:
    """Posts what happened, signed, to a receiver whose address is checked."""

    def __init__(self, settings: Settings, work: Work) -> None:
        self._settings, self._work = settings, work

    def tell(self, due: DueDelivery) -> Answer:
        """Post a notice.

        Args:
            due: with what is told.

        Returns:
            What the receiver answered.

        Raises:
            Away: it cannot be reached, or does not answer.
        """
        content = due.told
        assert content is not None
        page = self._settings.page_url.rstrip("/")
        path = f"/view/{due.study_id}" if due.study_id else "/operations"
        notice = webhooks.Notice(
            content.event, content.happened_at, str(due.study_id or ""), due.study_instance_uid, content.status,
            content.assessment, content.region, content.reason, content.model, f"{page}{path}" if page else "",
            content.count, content.about,
        )  # fmt: skip
        return self._post(notice.body, f"msg_{due.delivery_id.hex}")

    def test(self) -> Answer:
        """Post an event of a type of its own, signed as any other; it is about no study."""
        now = datetime.now(UTC)
        return self._post(webhooks.test_body(now), f"msg_test_{int(now.timestamp())}")

    def _post(self, body: bytes, id_: str) -> Answer:
        key, work = self._settings.webhook_key.get_secret_value(), self._work
        if len(key) < KEY_LENGTH:
            raise Away(Answer(DeliveryReason.NO_KEY))
        secrets = [webhook_secret(key, work.destination_id, number) for number in work.secrets]
        context = client_context(self._settings, work.destination) if work.destination.url.startswith("https") else None
        try:
            headers = webhooks.sign(body, id_, datetime.now(UTC), secrets)
            allowed = parse_networks(work.destination.networks)
            response = webhooks.post(work.destination.url, body, headers, allowed, context)
        except webhooks.AddressNotAllowed:
            raise Away(Answer(DeliveryReason.ADDRESS_NOT_ALLOWED)) from None
        except webhooks.TooSlow:
            raise Away(Answer(DeliveryReason.NO_ANSWER)) from None
        except webhooks.WrongCertificate:
            raise Away(certificate_refusal(context) or Answer(DeliveryReason.CERTIFICATE)) from None
        except webhooks.NoConnection as error:
            reason = DeliveryReason.UNKNOWN_NAME if error.unknown else DeliveryReason.UNREACHABLE
            raise Away(certificate_refusal(context) or Answer(reason)) from None
        if response.accepted:
            return Answer(None, f"HTTP {response.status}")
        return http_answer(response.status, response.words)


class MailMessenger:
    """Sends what happened to an address, by the mail server of the settings."""

    def __init__(self, settings: Settings, work: Work) -> None:
        self._settings, self._address = settings, work.destination.address

    def tell(self, due: DueDelivery) -> Answer:
        """Send a notice, and those that go with it in the same mail.

        Args:
            due: with what is told.

        Returns:
            What the server answered.

        Raises:
            Away: there is none, it cannot be reached, or it does not answer.
        """
        told = [mail.MailNotice(one.study_id, one.told) for one in due.together if one.told is not None]
        sender, page = self._settings.mail_from, self._settings.page_url.rstrip("/")
        made = mail.make_message(sender, self._address, told, due.delivery_id.hex, datetime.now(UTC), page)
        return mail.send(self._server(), sender, self._address, made, mail.WAIT_S)

    def test(self) -> Answer:
        """Send a mail that says what it is."""
        now, sender = datetime.now(UTC), self._settings.mail_from
        made = mail.make_test(sender, self._address, f"test-{uuid4().hex}", now)
        return mail.send(self._server(), sender, self._address, made, mail.WAIT_S)

    def _server(self) -> mail.Server:
        """The server, with its login. Raises Away where the settings name none, or a login that cannot be used."""
        settings = self._settings
        if not settings.mail_host or not settings.mail_from:
            raise Away(Answer(DeliveryReason.NO_MAIL_SERVER))
        try:
            password = settings.mail_secret()
        except OSError as error:
            words = f"the file of OSTEON_MAIL_PASSWORD_FILE cannot be read: {error.strerror or type(error).__name__}"
            raise Away(Answer(DeliveryReason.NO_MAIL_SERVER, words=printable_words(words))) from None
        if settings.mail_user and settings.mail_security == mail.PLAIN:
            words = "a login is sent by TLS alone: set OSTEON_MAIL_SECURITY to starttls or tls"
            raise Away(Answer(DeliveryReason.NO_MAIL_SERVER, words=words))
        secure = settings.mail_security != mail.PLAIN
        context = client_context(settings, Destination(DestinationKind.MAIL)) if secure else None
        return mail.Server(
            settings.mail_host, settings.mail_port, settings.mail_security, context, settings.mail_user, password
        )


# -- HL7: what is told, and to whom


def order_of(content: bytes) -> Order | None:
    """Read patient and order from a stored object's header.

    Args:
        content: the whole file.

    Returns:
        The order; None if the header cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their words may quote values
            header = dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
            return _order(header)
    except Exception:  # noqa: BLE001 - pydicom raises nearly anything on damaged headers
        return None


def _order(header: Dataset) -> Order:
    def line(keyword: str) -> str:
        return text_of(header, keyword, MAX_VALUE_LENGTH).strip()

    offset = line("TimezoneOffsetFromUTC")
    return Order(
        patient_id=line("PatientID"),
        accession_number=line("AccessionNumber"),
        issuer=line("IssuerOfPatientID"),
        patient_name=one_line(line("PatientName")),
        birth_date=line("PatientBirthDate"),
        sex=code_string(header, "PatientSex"),
        placer_number=line("PlacerOrderNumberImagingServiceRequest"),
        filler_number=line("FillerOrderNumberImagingServiceRequest"),
        procedure=_procedure(header),
        study_date=date_of(line("StudyDate")),
        study_time=time_of(line("StudyTime")),
        utc_offset=offset if OFFSET_PATTERN.fullmatch(offset) else "",
    )


def _procedure(header: Dataset) -> Code:
    """The procedure's code, where the header has a whole one."""
    try:
        for item in items_of(header, "ProcedureCodeSequence", ReadBudget(1 << 16, 100))[:1]:
            value, scheme, meaning = (
                one_line(text_of(item, keyword, MAX_VALUE_LENGTH)).strip()
                for keyword in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
            )
            if value and scheme:
                return Code(value, scheme, meaning)
    except Exception:  # noqa: BLE001 - a damaged sequence is as none
        return IMAGING_STUDY
    return IMAGING_STUDY


def result_of(study_instance_uid: str, content: NoticeContent) -> Result:
    """Say what is told in the terms of HL7.

    Args:
        study_instance_uid: of the study.
        content: of a study that is analysed.

    Returns:
        The result.
    """
    images = [Assessment(one) if one else None for one in content.images]
    return Result(
        study_instance_uid=study_instance_uid,
        processed=processing(images),
        assessment=Assessment(content.assessment),
        region=content.region,
        text=_lines(content),
        found_at=content.found_at,
        model=content.model,
        device_uid=device_uid(content.model_sha256) if content.model_sha256 else "",
        probability=content.probability,
    )


def _lines(content: NoticeContent) -> list[str]:
    why = abstention_words(abstention_of(content.abstention), content.abstention_detail, content.score)
    if content.assessment == Assessment.ABSTAINED:
        lines = [f"Abstained, {why}. Silence is not normal."]
    else:
        parts = [content.assessment.capitalize(), content.region]
        if content.score is not None:
            parts.append(f"score {shown_score(content.score):.1f} of 10")
        lines = [", ".join(one for one in parts if one) + (f" ({why})" if why else "")]
    if content.failed_images and "could not be read" not in why:
        lines.append(f"{unread_words(content.failed_images)}. Silence is not normal.")
    return lines


def _receiver(destination: Destination) -> Receiver:
    return Receiver(
        destination.application, destination.facility, destination.sending_application, destination.sending_facility,
        destination.character_set, AccessionPlace(destination.accession), destination.processing,
        destination.probability,
    )  # fmt: skip


def _answer_of(answer: Acknowledgement, order: Order, codec: str) -> Answer:
    """What an acknowledgement means; its words without what the message says of the patient."""
    reasons = {
        Verdict.LATER: DeliveryReason.BUSY, Verdict.REFUSED: DeliveryReason.REFUSED,
        Verdict.UNSUPPORTED: DeliveryReason.UNSUPPORTED,
    }  # fmt: skip
    return Answer(
        reasons.get(answer.verdict), answer.code, printable_words(without_patient(answer.words, order, codec))
    )


def without_patient(words: str, order: Order, codec: str) -> str:
    """Leave out of a receiver's words what it repeats of the patient and the order.

    Args:
        words: the receiver's.
        order: that the message was about.
        codec: of the message, which has other letters than the order where it lacks them.

    Returns:
        The words, at most WORDS_LENGTH characters.
    """
    texts: Sequence[str] = (
        order.patient_id, order.accession_number, order.birth_date, order.placer_number, order.filler_number,
        *re.split(r"[\^= ]+", order.patient_name),
    )  # fmt: skip
    forms = {form for one in texts for form in (one, letters(one, codec), letters(one, "ascii")) if form.strip("? ")}
    for one in sorted(forms, key=len, reverse=True):
        found = re.escape(one)
        if len(one) < MIN_SAID_LENGTH:  # "Li" is a name, and no part of a word
            found = rf"(?<!\w){found}(?!\w)"
        words = re.sub(found, LEFT_OUT, words, flags=re.IGNORECASE)
    return words[:WORDS_LENGTH]
