"""GET, POST, PUT /api/v1/destinations and /api/v1/deliveries: where results go, and what became of them."""

from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Body, HTTPException, Path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy.orm import Session

from api.dependencies import Admin, AdminOrOperator, NamedStudy, Parts, PartsDep, SessionDep
from api.operations.keys import NO_SITE, Name
from api.reasons import DELIVERIES, RESULT_SETS
from api.requests import API, AS_NUMBER, Router
from api.schemas import RowView
from shared.db.tables import DestinationRow, ResultSetRow
from shared.domain.destinations import (
    ADDRESS_LENGTH,
    BY_HL7,
    MAX_REGIONS,
    MAX_SENDERS,
    NAMESPACE_LENGTH,
    NETWORKS_LENGTH,
    URL_LENGTH,
    Confirmation,
    DeliveryReason,
    DeliveryState,
    Destination,
    DestinationKind,
    NewerModels,
    Occasion,
    Rule,
    SetReason,
    SetState,
    When,
)
from shared.domain.notices import (
    ALARMS,
    HL7_EVENTS,
    KEY_LENGTH,
    USUAL_EVENTS,
    UTF_8,
    WAITS_TOO_LONG,
    AccessionPlace,
    Event,
    webhook_secret,
)
from shared.domain.peers import FINGERPRINT_LENGTH, HOST_LENGTH, OUR_TITLE, TITLE_LENGTH
from shared.domain.results import ResultKind
from shared.domain.security import EventKind, Role, Subject
from shared.errors import InvalidState
from shared.queries import access, deliveries, destinations, results, studies
from shared.queries.access import Key
from shared.queries.audit import Target, record
from shared.queries.deliveries import destination_of, signing_secrets
from shared.queries.destinations import MAX_RULES
from shared.queries.results import rule_of

router = Router(prefix=API, tags=["administer"])
DestinationId = Annotated[UUID, Path(description="of a destination, as GET /api/v1/destinations lists it")]
DeliveryId = Annotated[UUID, Path(description="of a delivery, as GET /api/v1/deliveries lists it")]
TAKEN = {"description": "the name is taken, the kind would change, or the site has too many destinations"}
NOT_NOW = {"description": "the delivery was sent and nothing is to be confirmed, waits already, or is superseded"}
NO_WEBHOOK = {"description": "it is no webhook, or OSTEON_WEBHOOK_KEY is not set"}
UNKNOWN = {"description": "there is none here"}
LISTED = 100  # deliveries that a person has to decide about
LISTED_OF_STUDY = 100  # sets of results, and deliveries, of a study

Title = Annotated[str, StringConstraints(max_length=4 * TITLE_LENGTH)]
Fingerprint = Annotated[str, StringConstraints(max_length=2 * FINGERPRINT_LENGTH)]
Host = Annotated[str, StringConstraints(max_length=HOST_LENGTH)]
Url = Annotated[str, StringConstraints(max_length=URL_LENGTH)]
Folder = Annotated[str, StringConstraints(max_length=64)]
Namespace = Annotated[str, StringConstraints(max_length=NAMESPACE_LENGTH)]
Address = Annotated[str, StringConstraints(max_length=ADDRESS_LENGTH)]
Networks = Annotated[str, StringConstraints(max_length=NETWORKS_LENGTH)]
CharacterSet = Annotated[str, StringConstraints(max_length=16)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Port = Annotated[int, Field(ge=0, le=65535), AS_NUMBER]
Age = Annotated[int, Field(ge=0, le=130), AS_NUMBER]
Hour = Annotated[int, Field(ge=0, le=23), AS_NUMBER]
Flag = Annotated[bool, Field(strict=True)]
DEFAULT_KINDS = [ResultKind.SC_OVERLAY, ResultKind.SC_SUMMARY, ResultKind.SR_OUTLINES, ResultKind.SR_STATEMENTS]


class RuleView(BaseModel):
    """Which results go to a destination, and when."""

    when: When = Field(When.COMPLETE, description="what must be true of a study before its results go")
    kinds: list[ResultKind] | None = Field(
        None, description="of objects that go; null: the usual ones, and none where events are named", max_length=20
    )
    events: list[Event] = Field(
        [],
        description="that HL7, webhooks and mail are told; `when` is about study.analysed, and `agreed` keeps HL7 from "
        "study.revised until a reader is done with that. The end of queue.late and delivery.failed goes where their "
        "beginning went, and is not named",
        max_length=len(Event),
    )
    senders: list[Word] = Field(
        [], description="names of the keys or DICOM peers whose studies these are; empty: any", max_length=MAX_SENDERS
    )
    regions: list[Word] = Field([], description="codes of body regions; empty: any", max_length=MAX_REGIONS)
    assessments: list[Word] = Field([], description="the study's assessment is one of these; empty: any", max_length=4)
    age_from: Age | None = Field(None, description="the patient is at least so many years old; null: no limit")
    age_to: Age | None = Field(None, description="the patient is at most so many years old; null: no limit")
    hour_from: Hour = Field(0, description="from this hour on it is sent, on the clock of OSTEON_BACKFILL_TIMEZONE")
    hour_to: Hour = Field(0, description="until this hour; the same as hour_from: always")
    newer_models: NewerModels = Field(
        NewerModels.CHANGED, description="which results of a newer model replace those that were sent"
    )

    def rule(self) -> Rule:
        """The rule in the form in which it is stored. Raises BadRequest, which names the value."""
        names = ("senders", "regions", "assessments", "events")
        lists = {name: tuple(getattr(self, name)) for name in names}
        kinds = self.kinds if self.kinds is not None else [] if self.events else DEFAULT_KINDS
        return Rule(**self.model_dump() | lists | {"kinds": tuple(kinds)}).validate([*ResultKind])


class TestView(BaseModel):
    """What came of the last test of a destination."""

    __test__ = False  # no test of pytest's
    at: datetime = Field(description="when it was made")
    reason: DeliveryReason | None = Field(description="why it failed; null: the destination answered")
    detail: str = Field(description="the reason as a sentence; empty: it answered")
    status: str = Field(description="what the destination answered, a code")
    words: str = Field(description="and in its own words; of STOW-RS that answered: whether it was shown a login")


class DestinationView(RowView):
    """Where results go, and what stands there."""

    id: UUID = Field(description="of the destination")
    site: str = Field(description="name of the site whose results go there")
    name: str = Field(description="of the destination")
    kind: DestinationKind = Field(description="how it takes objects, or messages")
    host: str = Field(description="of DICOM and HL7: name or address")
    port: int = Field(description="of DICOM and HL7; 0: none")
    called_ae: str = Field(description="of DICOM: its AE title")
    calling_ae: str = Field(description="of DICOM: our AE title")
    tls_fingerprint: str = Field(description="SHA-256 of its certificate; empty: its authority must be trusted")
    url: str = Field(description="of STOW-RS, without /studies; or of a webhook")
    folder: str = Field(description="name of the folder, below OSTEON_DELIVERY_FOLDER")
    confirm: bool = Field(description="whether storage commitment is asked for")
    application: str = Field(description="of HL7: MSH-5")
    facility: str = Field(description="of HL7: MSH-6")
    sending_application: str = Field(description="of HL7: MSH-3")
    sending_facility: str = Field(description="of HL7: MSH-4")
    character_set: str = Field(description="of HL7: MSH-18")
    accession: AccessionPlace = Field(description="of HL7: where the accession number stands, OBR-3, OBR-2 or both")
    processing: str = Field(description="of HL7: MSH-11")
    probability: bool = Field(description="of HL7: whether the calibrated probability is told")
    networks: str = Field(description="of a webhook: where its receiver may be beside the public addresses")
    address: str = Field(description="of mail: the address")
    secrets: int = Field(description="of a webhook: how many secrets sign now, two while one replaces the other")
    secret: str = Field(
        description="of a webhook that was just added, or whose secret was just replaced: the secret, which is shown "
        "this once; else empty"
    )
    rules: list[RuleView] = Field(description="an object goes if one of them wants it")
    capabilities: dict[str, list[str]] = Field(
        description="by SOP class, the transfer syntaxes that it took last; an empty list: it refused the class"
    )
    added_at: datetime = Field(description="when it was added")
    disabled_at: datetime | None = Field(description="since when nothing goes there; null: it is enabled")
    away: DeliveryReason | None = Field(description="why it takes nothing just now; null: it does, as far as is known")
    away_detail: str = Field(description="the same as a sentence; empty: it takes what comes")
    next_at: datetime | None = Field(description="when it is tried next, if it is away")
    waiting: int = Field(description="deliveries that wait")
    oldest_at: datetime | None = Field(description="since when the oldest of these waits; null: none is due")
    failed: int = Field(description="deliveries that are not tried again unless somebody says so")
    held: int = Field(description="deliveries that wait for a decision")
    sent: int = Field(description="deliveries within 24 hours")
    last_sent_at: datetime | None = Field(description="when the last one was; null: never")
    unconfirmed: int = Field(
        description="deliveries that were sent, of which the destination has not said yet whether it keeps them"
    )
    not_confirmed: int = Field(
        description="deliveries that were sent, of which the destination does not keep everything, or cannot be asked"
    )
    last_contact_at: datetime | None = Field(
        description="when it last accepted a delivery's objects, or answered a test; null: never"
    )
    testing: bool = Field(description="whether a test is under way")
    test: TestView | None = Field(description="the last test; null: there was none")


class DestinationSettings(BaseModel):
    """Where a destination is."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"kind": "dicom", "host": "pacs.example", "port": 104, "called_ae": "PACS"}}
    )

    kind: DestinationKind = Field(description="how it takes objects, or messages; it cannot be changed later")
    host: Host = Field("", description="of DICOM and HL7: name or address")
    port: Port = Field(0, description="of DICOM and HL7")
    called_ae: Title = Field("", description="of DICOM: its AE title")
    calling_ae: Title = Field(OUR_TITLE, description="of DICOM: our AE title, as it knows us")
    tls_fingerprint: Fingerprint = Field(
        "", description="SHA-256 of its certificate, hexadecimal; empty: its authority must be trusted"
    )
    url: Url = Field(
        "", description="of STOW-RS: http:// or https://, host and path, without /studies; or of a webhook"
    )
    folder: Folder = Field("", description="name of a folder below OSTEON_DELIVERY_FOLDER, which must exist")
    confirm: Flag = Field(
        default=False,
        description="of DICOM: whether it is asked, after each delivery, to say that it keeps what it was sent "
        "(Storage Commitment); it reports to the DICOM listener, as `calling_ae`",
    )
    application: Namespace = Field("", description="of HL7: the receiver's application, MSH-5")
    facility: Namespace = Field("", description="of HL7: the receiver's facility, MSH-6")
    sending_application: Namespace = Field("OSTEON", description="of HL7: how it knows us, MSH-3")
    sending_facility: Namespace = Field("", description="of HL7: our facility, MSH-4")
    character_set: CharacterSet = Field(UTF_8, description="of HL7: MSH-18, a code of table 0211")
    accession: AccessionPlace = Field(
        AccessionPlace.FILLER, description="of HL7: where it looks for the accession number, OBR-3, OBR-2 or both"
    )
    processing: Literal["P", "T", "D"] = Field("P", description="of HL7: MSH-11: production, training, debugging")
    probability: Flag = Field(default=False, description="of HL7: whether the calibrated probability is told")
    networks: Networks = Field(
        "",
        description="of a webhook: networks where its receiver may be beside the public addresses, as 10.1.0.0/16, "
        "with commas between them; only an operator names some",
    )
    address: Address = Field("", description="of mail: the address of a person or a group, one")

    def destination(self) -> Destination:
        """The destination in the form in which it is stored. Raises BadRequest, which names the value."""
        names = {field.name for field in fields(Destination)}
        return Destination(**self.model_dump(include=names)).validate()


def usual_events(kind: DestinationKind) -> list[Event]:
    """What a new destination is told, if nobody chooses: nothing where objects go."""
    if kind is DestinationKind.WEBHOOK:
        return [*USUAL_EVENTS]
    return [*HL7_EVENTS] if kind in BY_HL7 else [*ALARMS] if kind is DestinationKind.MAIL else []


class NewDestination(DestinationSettings):
    """The destination to add."""

    name: Name = Field(description="of the destination, unique at its site")
    site: Name | None = Field(None, description="for operators: whose results go there; null: your own key's site's")
    rules: list[RuleView] | None = Field(
        None,
        description="which results go there by themselves; empty: none; null: one rule, which wants the usual objects "
        "of each study that is complete, or tells the usual events of this kind",
        max_length=MAX_RULES,
    )

    def all_rules(self) -> list[Rule]:
        """The rules in the form in which they are stored. Raises BadRequest, which names the value."""
        if self.rules is not None:
            return [one.rule() for one in self.rules]
        return [RuleView(events=usual_events(self.kind)).rule()]


class DeliveryView(RowView):
    """A set of results, or what is told of a study, on its way to a destination."""

    id: UUID = Field(description="of the delivery")
    study_id: UUID | None = Field(description="of the study; null: what is told is about the site")
    destination: str = Field(description="name of the destination")
    site: str = Field(description="name of the site whose study it is")
    event: Event | None = Field(description="what is told; null: objects are sent")
    state: DeliveryState = Field(description="where it stands")
    reason: DeliveryReason | None = Field(
        description="why it waits for another try, is held, has failed or is not confirmed"
    )
    detail: str = Field(description="the reason as a sentence; empty: there is none")
    status: str = Field(description="what the destination answered last, a code")
    words: str = Field(description="and in its own words")
    attempts: int = Field(description="how often it was tried")
    created_at: datetime = Field(description="when the results were made")
    next_at: datetime = Field(description="when it is tried next, if it waits")
    sent_at: datetime | None = Field(description="when the destination accepted the last object; null: it has not")
    confirmation: Confirmation | None = Field(
        description="where Storage Commitment stands, once it was sent; null: the destination is not asked for it"
    )
    confirmed_at: datetime | None = Field(
        description="when the destination confirmed that it keeps them (Storage Commitment); null: it has not"
    )


class StudyDeliveryView(DeliveryView):
    """A delivery of a study, with how far it has come."""

    objects: int = Field(description="that it has")
    accepted: int = Field(description="of these, that the destination has accepted")
    refused: int = Field(description="of these, whose class the destination does not take")
    confirmed: int = Field(description="of these, that the destination says it keeps")
    not_kept: int = Field(description="of these, that the destination says it does not keep")
    away_detail: str = Field(description="why the destination takes nothing just now, as a sentence; empty: it does")


class ResultSetView(RowView):
    """A set of results of a study: what was to be made, and what was."""

    id: UUID = Field(description="of the set")
    occasion: Occasion = Field(description="what made it due")
    state: SetState = Field(description="where it stands")
    reason: SetReason | None = Field(description="why it was not made, or not yet")
    detail: str = Field(description="the reason as a sentence; empty: there is none")
    due_at: datetime = Field(description="when it became due")
    made_at: datetime | None = Field(description="when it was made; null: it was not")
    objects: dict[ResultKind, int] = Field(
        description="how many objects were made for it, by kind; what an earlier set has is not made again"
    )


@router.get("/destinations")
def list_destinations(key: AdminOrOperator, session: SessionDep) -> list[DestinationView]:
    """List where results go, with what waits, has failed and was sent; an operator gets all sites'."""
    return destination_views(session, key)


def destination_views(session: Session, key: Key) -> list[DestinationView]:
    """Build the response of GET /api/v1/destinations, which the page uses too.

    Args:
        session: the caller's transaction.
        key: of the request; it decides which sites' destinations are shown.

    Returns:
        The destinations.
    """
    return [_view(one) for one in destinations.list_destinations(session, _site_of(key))]


@router.post("/destinations", status_code=201, responses={403: UNKNOWN, 404: NO_SITE, 409: TAKEN})
def add(body: NewDestination, key: AdminOrOperator, session: SessionDep, parts: PartsDep) -> DestinationView:
    """Add a destination: results that become due from now on go there. Nothing of before does.

    The response to a webhook has the secret that its messages are signed with (Standard Webhooks).
    """
    if body.site is not None and not key.may(Role.OPERATOR):
        raise HTTPException(403, f"Only an operator names the site of a destination; your key is {key.role}")
    site_id = access.site_named(session, body.site) if body.site is not None else key.site_id
    rules, destination = body.all_rules(), body.destination()
    _check_networks(key, "", destination)
    webhooks = _webhook_key(parts) if destination.kind is DestinationKind.WEBHOOK else ""
    row = destinations.add(session, key, site_id, body.name, destination, rules)
    return _one(session, row.id, webhook_secret(webhooks, row.id, 1) if webhooks else "")


@router.put("/destinations/{destination_id}", responses={404: UNKNOWN, 409: TAKEN})
def change(
    destination_id: DestinationId, body: DestinationSettings, key: AdminOrOperator, session: SessionDep
) -> DestinationView:
    """Change where a destination is. Name, site, kind and rules stay."""
    row = destinations.lock_destination(session, _site_of(key), destination_id)
    destination = body.destination()
    _check_networks(key, row.networks, destination)
    destinations.change(session, key, row, destination)
    return _one(session, destination_id)


@router.put("/destinations/{destination_id}/rules", responses={404: UNKNOWN})
def set_rules(
    destination_id: DestinationId,
    body: Annotated[list[RuleView], Body(max_length=MAX_RULES)],
    key: AdminOrOperator,
    session: SessionDep,
) -> DestinationView:
    """Replace the rules of a destination; without one nothing goes there by itself."""
    row = destinations.lock_destination(session, _site_of(key), destination_id)
    destinations.set_rules(session, key, row, [one.rule() for one in body])
    return _one(session, destination_id)


class SecretReplacement(BaseModel):
    """How the secret of a webhook is replaced."""

    at_once: Flag = Field(
        default=False, description="true: the secret before signs nothing any more; else it signs too for 24 hours"
    )


@router.post("/destinations/{destination_id}/secret", responses={404: UNKNOWN, 409: NO_WEBHOOK})
def replace_secret(
    destination_id: DestinationId, body: SecretReplacement, key: AdminOrOperator, session: SessionDep, parts: PartsDep
) -> DestinationView:
    """Replace the secret that signs what a webhook gets. The response has the new one."""
    row = destinations.lock_destination(session, _site_of(key), destination_id)
    webhooks = _webhook_key(parts)
    number = destinations.replace_secret(session, key, row, at_once=body.at_once)
    return _one(session, destination_id, webhook_secret(webhooks, row.id, number))


@router.post("/destinations/{destination_id}/disable", responses={404: UNKNOWN})
def disable(destination_id: DestinationId, key: AdminOrOperator, session: SessionDep) -> DestinationView:
    """Send nothing more to a destination. What waits for it stays, and goes once it is enabled again."""
    row = destinations.lock_destination(session, _site_of(key), destination_id)
    destinations.enable(session, key, row, enabled=False)
    return _one(session, destination_id)


@router.post("/destinations/{destination_id}/enable", responses={404: UNKNOWN})
def enable(destination_id: DestinationId, key: AdminOrOperator, session: SessionDep) -> DestinationView:
    """Send to a destination again that was disabled."""
    row = destinations.lock_destination(session, _site_of(key), destination_id)
    destinations.enable(session, key, row, enabled=True)
    return _one(session, destination_id)


@router.post("/destinations/{destination_id}/test", responses={404: UNKNOWN})
def try_out(destination_id: DestinationId, key: AdminOrOperator, session: SessionDep) -> DestinationView:
    """Have the process that sends try a destination.

    That is C-ECHO, an empty STOW request, an empty file, a connection to a receiver of HL7, a signed event of the
    type destination.test, or a mail that says that it is a test.

    Ask for the destination again: `testing` is false once `test` has the outcome.
    """
    row = destinations.lock_destination(session, _site_of(key), destination_id)
    destinations.ask_test(session, row)
    return _one(session, destination_id)


@router.post("/destinations/{destination_id}/retry", responses={404: UNKNOWN})
def retry_all(destination_id: DestinationId, key: AdminOrOperator, session: SessionDep) -> DestinationView:
    """Have all failed deliveries to a destination sent again, 1,000 at most, and try one that was away at once.

    Held ones are decided one by one.

    Of those that it does not confirm, what it says it does not keep is sent again; else it is asked again.
    """
    row = destinations.lock_destination(session, _site_of(key), destination_id)
    deliveries.send_all_again(session, key, row.id)
    return _one(session, destination_id)


@router.get("/deliveries")
def list_undelivered(key: AdminOrOperator, session: SessionDep) -> list[DeliveryView]:
    """List the latest 100 deliveries that have failed, are held or were not confirmed; an operator gets all sites'."""
    return undelivered_views(session, key)


def undelivered_views(session: Session, key: Key) -> list[DeliveryView]:
    """Build the response of GET /api/v1/deliveries, which the page uses too.

    Args:
        session: the caller's transaction.
        key: of the request; it decides which sites' deliveries are shown.

    Returns:
        The deliveries.
    """
    return [_delivery(one) for one in deliveries.list_undelivered(session, _site_of(key), LISTED)]


def delays(views: Sequence[DestinationView], now: datetime) -> list[str]:
    """Say what an administrator should know of destinations, as sentences.

    Args:
        views: the destinations.
        now: on Postgres' clock.

    Returns:
        One for each that has failed, held or unconfirmed deliveries, and for each where one waits too long.
    """
    sentences = []
    for one in views:
        where = f"the destination {one.name} of site {one.site}"
        counts = ((one.failed, "failed"), (one.held, "held"), (one.not_confirmed, "not confirmed"))
        if any(count for count, _ in counts):
            named = ", ".join(f"{count} {what}" for count, what in counts if count)
            sentences.append(f"Results for {where}: {named}. Look under Results out what it said, and decide there.")
        if one.disabled_at is None and one.oldest_at is not None and now - one.oldest_at > WAITS_TOO_LONG:
            why = one.away_detail or "Look whether the process deliver runs."
            sentences.append(f"Results for {where} wait since {one.oldest_at:%d %b %H:%M} UTC. {why}")
    return sentences


@router.post("/deliveries/{delivery_id}/send", responses={404: UNKNOWN, 409: NOT_NOW})
def send_again(delivery_id: DeliveryId, key: AdminOrOperator, session: SessionDep) -> DeliveryView:
    """Have a failed or held delivery sent. What the destination has accepted is not sent twice.

    Of one that was sent and is not confirmed, what the destination says it does not keep is sent again; if there is
    none, the destination is asked again.
    """
    row = deliveries.send_again(session, key, _site_of(key), delivery_id)
    return _delivery(deliveries.get_undelivered(session, row.id))


@router.get("/studies/{study_id}/deliveries", responses={404: UNKNOWN})
def of_study(study_id: NamedStudy, key: Admin, session: SessionDep) -> list[StudyDeliveryView]:
    """List where a study's results went, the latest first: what was sent when, and whether it is confirmed."""
    studies.get(session, key.site_id, study_id)
    return study_views(session, study_id)


def study_views(session: Session, study_id: UUID) -> list[StudyDeliveryView]:
    """Build the response of GET /api/v1/studies/{study_id}/deliveries, which the page uses too.

    Args:
        session: the caller's transaction.
        study_id: of a study that the caller may see.

    Returns:
        The deliveries.
    """
    return [
        StudyDeliveryView.of_row(
            one.row, destination=one.destination, site=one.site, event=one.event, detail=_words(one.row.reason),
            reason=one.row.reason or None, confirmation=one.row.confirmation or None, objects=one.objects,
            accepted=one.accepted, refused=one.refused, confirmed=one.confirmed, not_kept=one.not_kept,
            away_detail=_words(one.away), next_at=max(one.row.next_at, one.not_before or one.row.next_at),
        )
        for one in deliveries.of_study(session, study_id)
    ]  # fmt: skip


@router.get("/studies/{study_id}/results", responses={404: UNKNOWN})
def list_sets(study_id: NamedStudy, key: Admin, session: SessionDep) -> list[ResultSetView]:
    """List which results of a study were made, or why they were not, the latest first."""
    studies.get(session, key.site_id, study_id)
    return set_views(session, study_id)


def set_views(session: Session, study_id: UUID) -> list[ResultSetView]:
    """Build the response of GET /api/v1/studies/{study_id}/results, which the page uses too.

    Args:
        session: the caller's transaction.
        study_id: of a study that the caller may see.

    Returns:
        The sets.
    """
    return [
        ResultSetView.of_row(one.row, reason=one.row.reason or None, detail=_set_words(one.row), objects=one.objects)
        for one in results.of_study(session, study_id, LISTED_OF_STUDY)
    ]


@router.post("/studies/{study_id}/results", status_code=201, responses={404: UNKNOWN})
def ask(study_id: NamedStudy, key: Admin, session: SessionDep) -> list[StudyDeliveryView]:
    """Have a study's results made and sent now, by every rule that fits it, whatever the rule waits for."""
    study = studies.get(session, key.site_id, study_id)
    results.request_results(session, study)
    record(session, EventKind.RESULTS_ASKED, key, about=Target(Subject.STUDY, study_id), study_id=study_id)
    return study_views(session, study_id)


def _site_of(key: Key) -> UUID | None:
    """The site whose destinations a key may see; None: all sites."""
    return None if key.may(Role.OPERATOR) else key.site_id


def _check_networks(key: Key, before: str, destination: Destination) -> None:
    """Refuse networks that a site's administrator names: they belong to whoever runs the machine."""
    if destination.networks not in ("", before) and not key.may(Role.OPERATOR):
        raise HTTPException(403, f"Only an operator names the networks of a webhook; your key is {key.role}")


def _webhook_key(parts: Parts) -> str:
    """The key from which secrets are derived. Raises InvalidState if there is none."""
    key = parts.settings.webhook_key.get_secret_value()
    if len(key) < KEY_LENGTH:
        raise InvalidState(
            f"Set OSTEON_WEBHOOK_KEY to at least {KEY_LENGTH} random characters, for the API and the process that "
            "sends: it signs what webhooks get"
        )
    return key


def _words(reason: str) -> str:
    return DELIVERIES[DeliveryReason(reason)] if reason else ""


def _set_words(row: ResultSetRow) -> str:
    if not row.reason:
        return ""
    return f"{RESULT_SETS[SetReason(row.reason)]}{f' ({row.reason_detail})' if row.reason_detail else ''}"


def _delivery(one: deliveries.Undelivered) -> DeliveryView:
    return DeliveryView.of_row(
        one.row, destination=one.destination, site=one.site, event=one.event, detail=_words(one.row.reason),
        reason=one.row.reason or None, confirmation=one.row.confirmation or None,
    )  # fmt: skip


def _one(session: Session, destination_id: UUID, secret: str = "") -> DestinationView:
    session.flush()
    (found,) = destinations.list_destinations(session, None, destination_id)
    return _view(found, secret)


def _view(one: destinations.DestinationFigures, secret: str = "") -> DestinationView:
    row, outbox = one.row, one.outbox
    test = None
    if row.tested_at is not None:
        test = TestView(
            at=row.tested_at, reason=DeliveryReason(row.test_reason) if row.test_reason else None,
            detail=_words(row.test_reason), status=row.test_status, words=row.test_words,
        )  # fmt: skip
    return DestinationView.of_row(
        row, site=row.site.name, kind=destination_of(row).kind, secret=secret,
        secrets=len(signing_secrets(row, datetime.now(UTC))) if row.kind == DestinationKind.WEBHOOK else 0,
        rules=[_rule(rule_of(rule)) for rule in row.rules],
        away=row.reason or None, away_detail=_words(row.reason), next_at=row.not_before,
        waiting=outbox.waiting, oldest_at=outbox.oldest_at, failed=outbox.failed, held=outbox.held, sent=outbox.sent,
        last_sent_at=outbox.last_sent_at, last_contact_at=_contact(row, outbox),
        unconfirmed=outbox.unconfirmed, not_confirmed=outbox.not_confirmed,
        testing=row.test_asked_at is not None, test=test,
    )  # fmt: skip


def _contact(row: DestinationRow, outbox: deliveries.OutboxFigures) -> datetime | None:
    answered = row.tested_at if not row.test_reason else None
    return max(filter(None, (answered, outbox.last_sent_at)), default=None)


def _rule(rule: Rule) -> RuleView:
    return RuleView(**{field.name: _plain(getattr(rule, field.name)) for field in fields(Rule)})


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
