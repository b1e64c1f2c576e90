"""Where results go, which of them, when, and what becomes of each delivery."""

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from shared.domain.findings import Assessment
from shared.domain.notices import (
    ALARMS,
    BEGUN_BY,
    CHOSEN,
    CODECS,
    HL7_EVENTS,
    PROCESSING,
    UTF_8,
    AccessionPlace,
    Event,
    parse_networks,
)
from shared.domain.peers import OUR_TITLE, check_ae_title, check_fingerprint, check_host
from shared.errors import BadRequest

NAME_LENGTH = 64
URL_LENGTH = 512
WORDS_LENGTH = 200  # of what a peer says, as it is kept
FIRST_WAIT, MAX_WAIT = timedelta(seconds=10), timedelta(hours=1)
TRIED_FOR = timedelta(hours=72)
ASKED_AFTER = timedelta(days=1)  # an older result asks first whose study it is by now
MAX_SENDERS, MAX_REGIONS = 50, 50
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ADDRESS_LENGTH = 254  # RFC 5321 4.5.3.1.3, less the brackets
# a dot-string at a name: no quoted names, no address literals, and nothing that could end a header's line
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"(?=.{{1,64}}@){_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*")


class DestinationKind(StrEnum):
    """How a destination takes objects, or messages."""

    DICOM = "dicom"  # C-STORE
    DICOM_TLS = "dicom-tls"
    STOW = "stow"  # STOW-RS
    FOLDER = "folder"  # below OSTEON_DELIVERY_FOLDER
    HL7 = "hl7"  # ORU^R01 over MLLP
    HL7_TLS = "hl7-tls"
    WEBHOOK = "webhook"  # ids and codes, signed, by HTTP POST
    MAIL = "mail"  # codes and a link, to a person, by the mail server of this installation


BY_DICOM = (DestinationKind.DICOM, DestinationKind.DICOM_TLS)
BY_HL7 = (DestinationKind.HL7, DestinationKind.HL7_TLS)
# which are told of events; the others are given objects
BY_MESSAGES = (*BY_HL7, DestinationKind.WEBHOOK, DestinationKind.MAIL)
NAMESPACE_LENGTH = 64  # of an application's or a facility's name in HL7
NETWORKS_LENGTH = 512


class When(StrEnum):
    """What must be true of a study before its results go."""

    ANALYSED = "analysed"  # every image that is here has a finding
    COMPLETE = "complete"  # and no further image is expected
    AGREED = "agreed"  # a reader is done with it, and none contradicts the model


class Occasion(StrEnum):
    """What made a study's results due."""

    ANALYSED = "analysed"
    COMPLETE = "complete"
    AGREED = "agreed"
    NEWER_MODEL = "newer-model"  # says something else than what was sent, or a rule wants it all the same
    ASKED = "asked"  # by a person
    CLASS_REFUSED = "class-refused"  # a destination refused a SOP class, and there is another one to try


class NewerModels(StrEnum):
    """Which results of a newer model replace those that were sent."""

    CHANGED = "changed"  # those with another assessment
    ALL = "all"


class SetState(StrEnum):
    """Where a set of results stands."""

    WAITING = "waiting"
    MADE = "made"
    REPEATED = "repeated"  # an earlier set was made of the same; its objects are sent
    NOT_WANTED = "not-wanted"  # no rule wants it
    WITHDRAWN = "withdrawn"  # the study says nothing any more
    FAILED = "failed"


class SetReason(StrEnum):
    """Why a set was not made."""

    NO_RULE = "no-rule"
    NOT_ANALYSED = "not-analysed"  # rejected, quarantined or being analysed again
    CONTRADICTED = "contradicted"  # a reader contradicts the model
    SAME_ASSESSMENT = "same-assessment"  # a newer model says what was sent
    NEVER_SENT = "never-sent"  # a newer model corrects nothing
    SOURCE_LACKS = "source-lacks"  # an attribute that the objects need; detail: its keyword
    NOT_MADE = "not-made"  # detail: class of the exception, or the code why an original was not decoded
    STORE_UNAVAILABLE = "store-unavailable"


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    WAITING = "waiting"
    SENT = "sent"  # the destination has accepted every object
    HELD = "held"  # for a person to decide
    FAILED = "failed"  # will not be tried again unless a person says so
    SUPERSEDED = "superseded"  # something newer of the study goes there
    WITHDRAWN = "withdrawn"  # the study was rejected or its destination disabled, before it went


DECIDABLE = (DeliveryState.FAILED, DeliveryState.HELD)  # a person may have them sent


class Confirmation(StrEnum):
    """Where storage commitment for what was sent stands. Source: PS3.4 Annex J."""

    DUE = "due"  # the destination is to be asked
    ASKED = "asked"  # it has taken the request, and has not reported
    CONFIRMED = "confirmed"  # it keeps every object
    FAILED = "failed"  # it does not, or takes no request; the delivery's reason says which


OPEN = (Confirmation.DUE, Confirmation.ASKED)  # not confirmed, and nobody knows better


class DeliveryReason(StrEnum):
    """Why a delivery waits for another try, is held, or has failed."""

    # can heal
    UNREACHABLE = "unreachable"  # no connection
    UNKNOWN_NAME = "unknown-name"  # of the host; DNS may learn it
    REJECTED_FOR_NOW = "rejected-for-now"  # the association, as transient
    NO_ANSWER = "no-answer"  # in time
    CUT = "cut"  # the connection, in the middle
    BUSY = "busy"  # A7xx, 0110, HTTP 408, 429, 5xx: out of resources, or a failure while storing
    FULL = "full"  # the folder's disk
    STORE_UNAVAILABLE = "store-unavailable"  # ours
    UNINTELLIGIBLE = "unintelligible"  # what came is no acknowledgement
    NO_KEY = "no-key"  # OSTEON_WEBHOOK_KEY is not set where messages are sent
    NO_MAIL_SERVER = "no-mail-server"  # OSTEON_MAIL_HOST is not set there, or its login cannot be used
    # can be mended by a person: the destination waits for that, see MISFIT
    REJECTED = "rejected"  # the association: an AE title that it does not know
    NOTHING_TAKEN = "nothing-taken"  # no SOP class of ours
    CERTIFICATE = "certificate"  # not the one that was agreed on, or not trusted
    ACCESS = "access"  # HTTP 401, 403
    BAD_ADDRESS = "bad-address"  # HTTP 404, 405, 3xx: no STOW-RS there
    NO_FOLDER = "no-folder"  # missing, or may not be written to
    ADDRESS_NOT_ALLOWED = "address-not-allowed"  # the name leads into a network that the site has not allowed
    UNSUPPORTED = "unsupported"  # messages of our type, version or processing id
    # cannot heal
    REFUSED = "refused"  # an object
    OBJECT_MISSING = "object-missing"  # from our store
    GAVE_UP = "gave-up"  # after TRIED_FOR
    NO_ACCESSION_NUMBER = "no-accession-number"  # no receiver could tell which order a message is of: it is not sent
    NOT_ENCODABLE = "not-encodable"  # an identifier has letters that the receiver's character set lacks
    NO_HEADER = "no-header"  # that can be read, in the study's first image
    # of storage commitment: the objects were sent
    NO_COMMITMENT = "no-commitment"  # it takes no requests for it
    COMMITMENT_REFUSED = "commitment-refused"  # it refused the request
    NOT_KEPT = "not-kept"  # its report names objects that it does not keep
    NOT_NAMED = "not-named"  # its report leaves objects out
    # wait for a person
    PATIENT_DIFFERS = "patient-differs"  # the destination has another patient for the study
    # others
    STUDY_GONE = "study-gone"  # rejected, or analysed again
    NOT_TRUE_NOW = "not-true-now"  # what was to be told ended before it was told
    NOT_SENT = "not-sent"  # an error of ours; detail: class of the exception


HEALS = frozenset({
    DeliveryReason.UNREACHABLE, DeliveryReason.UNKNOWN_NAME, DeliveryReason.REJECTED_FOR_NOW, DeliveryReason.NO_ANSWER,
    DeliveryReason.CUT, DeliveryReason.BUSY, DeliveryReason.FULL, DeliveryReason.STORE_UNAVAILABLE,
    DeliveryReason.NOT_SENT, DeliveryReason.UNINTELLIGIBLE, DeliveryReason.NO_KEY,
    DeliveryReason.NO_MAIL_SERVER,
})  # fmt: skip
# it is not set up there, or here, as it must be: everything that waits would fail alike, until somebody mends it
MISFIT = frozenset({
    DeliveryReason.REJECTED, DeliveryReason.NOTHING_TAKEN, DeliveryReason.CERTIFICATE, DeliveryReason.ACCESS,
    DeliveryReason.BAD_ADDRESS, DeliveryReason.NO_FOLDER, DeliveryReason.ADDRESS_NOT_ALLOWED,
    DeliveryReason.UNSUPPORTED,
})  # fmt: skip
# nothing else will go there just now
HALTS = HEALS - {DeliveryReason.BUSY, DeliveryReason.NOT_SENT, DeliveryReason.UNINTELLIGIBLE} | MISFIT
# a message may be the cause: the next one is tried before it
SUSPICIOUS = frozenset({DeliveryReason.NO_ANSWER, DeliveryReason.CUT})


@dataclass(frozen=True)
class Destination:
    """Where a destination is; make one by `validate`.

    host, port: of DICOM and HL7. called_ae: the peer's AE title; calling_ae: ours. tls_fingerprint: SHA-256 of its
    certificate; empty: its authority must be one that we trust. url: of STOW, up to and without "/studies", or of a
    webhook. folder: its name. confirm: whether to ask for storage commitment after sending. Of HL7 the next seven:
    MSH-5, MSH-6, MSH-3, MSH-4, MSH-18, where the accession number stands, and MSH-11. probability: whether HL7 tells
    the calibrated probability. networks: where a webhook's receiver may be beside the public addresses. address: of
    mail.
    """

    kind: DestinationKind
    host: str = ""
    port: int = 0
    called_ae: str = ""
    calling_ae: str = OUR_TITLE
    tls_fingerprint: str = ""
    url: str = ""
    folder: str = ""
    confirm: bool = False
    application: str = ""
    facility: str = ""
    sending_application: str = "OSTEON"
    sending_facility: str = ""
    character_set: str = UTF_8
    accession: str = AccessionPlace.FILLER
    processing: str = "P"
    probability: bool = False
    networks: str = ""
    address: str = ""

    def validate(self) -> "Destination":
        """Return it in the form in which it is stored. Raises BadRequest, which names the value."""
        kind = self.kind
        print_ = check_fingerprint(self.tls_fingerprint)
        self._refuse_foreign_values(print_)
        if kind is DestinationKind.STOW:
            form = "http:// or https://, a host and the path before /studies, without a password in it"
            url = _url(self.url, what=form)
            if print_ and not url.startswith("https://"):
                raise BadRequest("A fingerprint needs an address that begins with https://")
            return Destination(kind, tls_fingerprint=print_, url=url)
        if kind is DestinationKind.FOLDER:
            if not _FOLDER.fullmatch(self.folder):
                raise BadRequest(
                    "For the folder give a name of letters, digits, dots, hyphens and underscores; it lies below "
                    "OSTEON_DELIVERY_FOLDER"
                )
            return Destination(kind, folder=self.folder)
        if kind is DestinationKind.WEBHOOK:
            return self._validate_webhook()
        if kind is DestinationKind.MAIL:
            return Destination(kind, address=check_address(self.address))
        if not self.host.strip():
            raise BadRequest(f"A destination of the kind {kind} needs a host")
        if not 1 <= self.port <= 65535:
            raise BadRequest("A port is a number from 1 to 65535")
        if kind in BY_HL7:
            return self._validate_receiver(print_)
        return Destination(
            kind, check_host(self.host), self.port, check_ae_title(self.called_ae, "the destination's AE title"),
            check_ae_title(self.calling_ae, "our AE title"), print_, confirm=self.confirm,
        )  # fmt: skip

    def _validate_webhook(self) -> "Destination":
        try:
            allowed = parse_networks(self.networks)
        except ValueError as error:
            raise BadRequest(
                f"Give networks as 10.1.0.0/16, with commas between them ({error}); without one the receiver has a "
                "public address"
            ) from error
        url = _url(self.url, what="an address that begins with https://, without a password in it", path="")
        if not allowed and not url.startswith("https://"):
            raise BadRequest("A webhook needs an address that begins with https://, or a network that it is in")
        return Destination(self.kind, url=url, networks=", ".join(str(one) for one in allowed))

    def _validate_receiver(self, print_: str) -> "Destination":
        names = ("application", "facility", "sending_application", "sending_facility")
        fields: dict[str, Any] = {name: " ".join(getattr(self, name).split()) for name in names}
        for name, value in fields.items():
            if len(value) > NAMESPACE_LENGTH or not value.isprintable():
                raise BadRequest(f"For {name} give at most {NAMESPACE_LENGTH} printable characters")
        chosen = (
            ("character_set", self.character_set, CODECS),
            ("accession", self.accession, tuple(AccessionPlace)),
            ("processing", self.processing, PROCESSING),
        )
        for name, value, known in chosen:
            if value not in known:
                raise BadRequest(f"For {name} give one of {', '.join(known)}")
        made = Destination(
            self.kind, check_host(self.host), self.port, tls_fingerprint=print_, character_set=self.character_set,
            accession=str(self.accession), processing=self.processing, probability=self.probability,
        )  # fmt: skip
        return replace(made, **fields)

    def _refuse_foreign_values(self, print_: str) -> None:
        """Refuse values that mean nothing for this kind."""
        kind = self.kind
        for named, value, kinds in (
            ("a fingerprint", print_, (DestinationKind.DICOM_TLS, DestinationKind.STOW, DestinationKind.HL7_TLS)),
            ("a host and a port", self.host or self.port, (*BY_DICOM, *BY_HL7)),
            ("an AE title", self.called_ae, BY_DICOM),
            ("an application and a facility", self.application or self.facility or self.sending_facility, BY_HL7),
            ("the probability", self.probability, BY_HL7),
            ("networks", self.networks, (DestinationKind.WEBHOOK,)),
            ("storage commitment", self.confirm, BY_DICOM),
            ("a URL", self.url, (DestinationKind.STOW, DestinationKind.WEBHOOK)),
            ("a folder", self.folder, (DestinationKind.FOLDER,)),
            ("a mail address", self.address, (DestinationKind.MAIL,)),
        ):
            if value and kind not in kinds:
                raise BadRequest(f"A destination of the kind {kind} has no use for {named}: leave it out")

    @property
    def is_dicom(self) -> bool:
        """Whether it is asked and sent to by associations."""
        return self.kind in BY_DICOM

    @property
    def is_told(self) -> bool:
        """Whether it gets messages of events; if not, objects."""
        return self.kind in BY_MESSAGES


def check_address(text: str) -> str:
    """Check the mail address of a person or a group. Raises BadRequest; the words repeat nothing of it."""
    given = text.strip()
    if len(given) > ADDRESS_LENGTH or not _ADDRESS.fullmatch(given):
        raise BadRequest("Give one mail address, as reading@hospital.example; of several people the one of their group")
    return given


def _url(text: str, *, what: str, path: str = "/studies") -> str:
    """Check a URL. what: how it must be, in words. path: that is left out at its end."""
    given = text.strip().rstrip("/" if path else "")
    try:
        parts = urlsplit(given)
        port_is_fine = parts.port is None or 0 < parts.port <= 65535
    except ValueError:
        parts, port_is_fine = urlsplit(""), False
    if (
        len(given) > URL_LENGTH or parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine
        or parts.query or parts.fragment or parts.username is not None or any(not "!" <= one <= "~" for one in given)
    ):  # fmt: skip
        raise BadRequest(f"For the URL give {what}")
    return given.removesuffix(path)


@dataclass(frozen=True)
class Rule:
    """Which results go to a destination, and when; make one by `validate`.

    kinds: of objects. events: that a destination of messages is told; `when` is about study.analysed alone. senders:
    names of the keys or DICOM peers that sent the study; empty: any. regions, assessments: empty: any. age_from,
    age_to: the patient's in years, both included; None: no limit, and an unknown age is within no limit. hour_from,
    hour_to: from when until when it is sent, on the clock of OSTEON_BACKFILL_TIMEZONE; equal: always.
    """

    when: When = When.COMPLETE
    kinds: tuple[str, ...] = ()
    senders: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    assessments: tuple[str, ...] = ()
    age_from: int | None = None
    age_to: int | None = None
    hour_from: int = 0
    hour_to: int = 0
    newer_models: NewerModels = NewerModels.CHANGED
    events: tuple[str, ...] = ()

    def check_kind(self, kind: DestinationKind) -> None:
        """Check that a rule is one for this kind of destination. Raises BadRequest, which names the value."""
        by_message = kind in BY_MESSAGES
        if by_message != bool(self.events) or by_message == bool(self.kinds):
            what = "events, and no kinds of objects" if by_message else "kinds of objects, and no events"
            raise BadRequest(f"A rule of a destination of the kind {kind} names {what}")
        if kind in BY_HL7 and not set(self.events) <= set(HL7_EVENTS):
            raise BadRequest(f"HL7 messages tell {' and '.join(HL7_EVENTS)}: leave other events out, or add a webhook")
        if kind is DestinationKind.MAIL and not set(self.events) <= set(ALARMS):
            raise BadRequest(f"Mail tells {', '.join(ALARMS)}: leave other events out, or add a webhook")

    def validate(self, kinds: Collection[str]) -> "Rule":
        """Return it in the form in which it is stored.

        Args:
            kinds: of objects, all that there are.

        Returns:
            The rule with each value once.

        Raises:
            BadRequest: a value is not known or contradicts another one.
        """
        if not self.kinds and not self.events:
            raise BadRequest(
                f"A rule names at least one kind of object ({', '.join(kinds)}) or one event ({', '.join(CHOSEN)})"
            )
        if ends := sorted(set(self.events) & set(BEGUN_BY)):
            begun = BEGUN_BY[Event(ends[0])]
            raise BadRequest(f"{ends[0]} goes where {begun} went: name that one")
        if unknown := sorted(set(self.events) - set(CHOSEN)):
            raise BadRequest(f"There is no event {unknown[0]}; there are {', '.join(CHOSEN)}")
        if unknown := sorted(set(self.kinds) - set(kinds)):
            raise BadRequest(f"There is no kind of object {unknown[0]}; there are {', '.join(kinds)}")
        if unknown := sorted(set(self.assessments) - set(Assessment)):
            raise BadRequest(f"There is no assessment {unknown[0]}; there are {', '.join(Assessment)}")
        if len(self.senders) > MAX_SENDERS or len(self.regions) > MAX_REGIONS:
            raise BadRequest(f"A rule names at most {MAX_SENDERS} senders and {MAX_REGIONS} regions")
        if any(age is not None and not 0 <= age <= 130 for age in (self.age_from, self.age_to)):
            raise BadRequest("An age is a number of years from 0 to 130")
        if self.age_from is not None and self.age_to is not None and self.age_from > self.age_to:
            raise BadRequest("The first age is greater than the last one: nobody is both")
        if not (0 <= self.hour_from <= 23 and 0 <= self.hour_to <= 23):
            raise BadRequest("An hour is a number from 0 to 23")
        ordered = {name: tuple(dict.fromkeys(getattr(self, name))) for name in ("senders", "regions", "assessments")}
        its = tuple(kind for kind in kinds if kind in self.kinds)
        events = tuple(event for event in Event if event in self.events)
        mine = {one.name: getattr(self, one.name) for one in fields(self)}
        return Rule(**mine | ordered | {"kinds": its, "events": events})


@dataclass(frozen=True)
class StudyFacts:
    """What rules ask of a study."""

    sender: str = ""
    region: str = ""
    assessment: str = ""
    age_years: int | None = None


def applies(rule: Rule, facts: StudyFacts) -> bool:
    """Whether a rule is about a study; an unknown value is within no limit.

    Args:
        rule: checked.
        facts: of the study.

    Returns:
        Whether it is.
    """
    age = facts.age_years
    if rule.age_from is not None and (age is None or age < rule.age_from):
        return False
    if rule.age_to is not None and (age is None or age > rule.age_to):
        return False
    chosen = ((rule.senders, facts.sender), (rule.regions, facts.region), (rule.assessments, facts.assessment))
    return all(not allowed or value in allowed for allowed, value in chosen)


def send_time(rule: Rule, local: datetime) -> datetime:
    """When results that are due now may go.

    Args:
        rule: checked.
        local: now, on the clock that the rule's hours are on.

    Returns:
        Now, or the next beginning of the rule's hours. A day on which the clock leaves these hours out has none.
    """
    if is_within_hours(rule.hour_from, rule.hour_to, local.hour):
        return local
    now, day = local.astimezone(UTC), local.date()
    while True:
        begins = datetime.combine(day, time(rule.hour_from), local.tzinfo)
        begins = begins.astimezone(UTC).astimezone(local.tzinfo)  # an hour that the clock leaves out is the next one
        if begins.astimezone(UTC) > now and is_within_hours(rule.hour_from, rule.hour_to, begins.hour):
            return begins
        day += timedelta(days=1)


def is_within_hours(hour_from: int, hour_to: int, hour: int) -> bool:
    """Whether something may go in an hour of the day.

    Args:
        hour_from: the first hour in which it may.
        hour_to: the first one in which it may not; the same: it always may.
        hour: 0 to 23, on the site's clock.

    Returns:
        Whether it may.
    """
    if hour_from <= hour_to:
        return hour_from == hour_to or hour_from <= hour < hour_to
    return hour >= hour_from or hour < hour_to


def next_wait(attempts: int, draw: float | None = None) -> timedelta:
    """How long to wait after a try that failed: FIRST_WAIT, twice as long each time, up to MAX_WAIT.

    Args:
        attempts: tries so far, at least 1.
        draw: 0 to 1, instead of a random number.

    Returns:
        The wait, between half and one and a half of that, so that not all come back at once.
    """
    whole: timedelta = min(MAX_WAIT, FIRST_WAIT * 2 ** min(attempts - 1, 20))
    drawn = random.random() if draw is None else draw  # noqa: S311 - jitter, not a secret
    return whole * (0.5 + drawn)


# -- what a peer answers


@dataclass(frozen=True)
class Answer:
    """What a destination says of an object, or of an attempt. words: its own, bounded; never logged.

    reason: None: it accepted the object.
    """

    reason: DeliveryReason | None = None
    status: str = ""  # as "A700", "HTTP 409"
    words: str = ""


ACCEPTED = frozenset({0x0000, 0xB000, 0xB006, 0xB007})  # PS3.4 B.2.3: success and its warnings
DUPLICATE = 0x0111  # PS3.7 C.5.3: the same UID is there already


def c_store_answer(status: int | None, comment: str = "") -> Answer:
    """Understand the status of a C-STORE response.

    Source: PS3.4 B.2.3, PS3.7 Annex C. Our UIDs hash everything that an object is made of, so that what a peer calls a
    duplicate is what it has.

    Args:
        status: None: no response came, and the association has ended.
        comment: the peer's Error Comment.

    Returns:
        What it means.
    """
    if status is None:
        return Answer(DeliveryReason.CUT)
    code = f"{status:04X}"
    if status in ACCEPTED or 0xB000 <= status <= 0xBFFF or status in (DUPLICATE, 0x0001, 0x0107, 0x0116):
        return Answer(None, code, printable_words(comment))
    passing = 0xA700 <= status <= 0xA7FF or status in (0x0110, 0x0213)
    return Answer(DeliveryReason.BUSY if passing else DeliveryReason.REFUSED, code, printable_words(comment))


def n_action_answer(status: int, comment: str = "") -> Answer:
    """Understand the status of the response to a request for storage commitment.

    Source: PS3.4 J.3.2.1.4, PS3.7 10.1.4.1.10 and Annex C.

    Args:
        status: of the N-ACTION response.
        comment: the peer's Error Comment.

    Returns:
        What it means; reason None: a report will follow.
    """
    code = f"{status:04X}"
    if status in (0x0000, 0x0001, 0x0107, 0x0116) or 0xB000 <= status <= 0xBFFF:
        return Answer(None, code, printable_words(comment))
    passing = status in (0x0110, 0x0213)  # a failure while processing, out of resources
    return Answer(DeliveryReason.BUSY if passing else DeliveryReason.COMMITMENT_REFUSED, code, printable_words(comment))


def http_answer(status: int, words: str = "") -> Answer:
    """Understand an HTTP status of STOW-RS that says nothing of single objects, or of a webhook.

    Args:
        status: of the response; 409 and below 300 are answered object by object.
        words: the peer's.

    Returns:
        What it means.
    """
    code = f"HTTP {status}"
    if status in (408, 425, 429) or status >= 500:
        return Answer(DeliveryReason.BUSY, code, printable_words(words))
    if status in (401, 403, 407):
        return Answer(DeliveryReason.ACCESS, code, printable_words(words))
    if 300 <= status < 400 or status in (404, 405, 410):
        return Answer(DeliveryReason.BAD_ADDRESS, code, printable_words(words))
    return Answer(DeliveryReason.REFUSED, code, printable_words(words))


def failure_answer(failure: int) -> Answer:
    """Understand the Failure Reason of an object that STOW-RS refused. Source: PS3.18 I.2.2."""
    if failure == DUPLICATE:
        return Answer(None, f"{failure:04X}")
    return c_store_answer(failure)


def printable_words(text: str) -> str:
    """What a peer says, fit to be kept and shown: printable, one line, at most WORDS_LENGTH characters."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * WORDS_LENGTH])
    return " ".join(line.split())[:WORDS_LENGTH]


# -- what a destination is able to

Capabilities = Mapping[str, Sequence[str]]  # by SOP class, the transfer syntaxes that it took last; none: it refused it


def refuses(capabilities: Capabilities, sop_class_uid: str) -> bool:
    """Whether a destination is known to refuse a SOP class.

    Args:
        capabilities: as it showed them last.
        sop_class_uid: of the class.

    Returns:
        Whether it refused it then; False for a class that was never proposed.
    """
    return sop_class_uid in capabilities and not capabilities[sop_class_uid]
