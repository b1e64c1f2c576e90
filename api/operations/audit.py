"""GET /api/v1/audit-events: who did what to keys, models, studies and settings, for administrators and operators."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api.dependencies import PRINTABLE, AdminOrOperator, SessionDep
from api.requests import API, Router
from api.schemas import RowView
from shared.domain.security import EventKind, KeyRefusal, Role, Subject
from shared.queries import audit
from shared.queries.access import Key

router = Router(prefix=API, tags=["administer"])
WORDS = {  # an event in words; {…} is replaced by what its detail holds
    EventKind.LOGIN: "logged in",
    EventKind.LOGOUT: "logged out",
    EventKind.LOGIN_FAILED: "login refused: {reason}",
    EventKind.KEY_REFUSED: "key refused: {reason}",
    EventKind.THROTTLED: "too many wrong keys: has to wait",
    EventKind.NEW_ADDRESS: "used from there for the first time",
    EventKind.SITE_MADE: "made the site {subject}",
    EventKind.KEY_MADE: "made the key {name} ({role})",
    EventKind.KEY_REVOKED: "revoked the key {name} ({role})",
    EventKind.MODEL_STORED: "stored the model {model}",
    EventKind.MODEL_ACTIVATED: "activated the model {model}",
    EventKind.MODEL_SHADOWED: "let the model {model} look at history",
    EventKind.MODEL_RETIRED: "retired the model {model}",
    EventKind.EXPORT: "exported: {what}",
    EventKind.STUDY_RELEASED: "released a study, to be analysed again",
    EventKind.STUDY_DISMISSED: "dismissed a study of the quarantine",
    EventKind.STUDY_DELETED: "deleted a study ({reason})",
    EventKind.IMAGE_DELETED: "deleted an image ({reason})",
    EventKind.HELD_DECIDED: "decided on held files ({held}, {files})",
    EventKind.INSTANCES_REJECTED: "sent a document that rejects instances ({instances})",
    EventKind.SETTING_CHANGED: "changed the setting {setting}",
    EventKind.PEER_ADMITTED: "admitted the DICOM peer {name}",
    EventKind.PEER_CHANGED: "changed the DICOM peer {name}",
    EventKind.PEER_DISABLED: "disabled the DICOM peer {name}",
    EventKind.PEER_ENABLED: "enabled the DICOM peer {name}",
    EventKind.DESTINATION_ADDED: "added the destination {name}",
    EventKind.DESTINATION_CHANGED: "changed the destination {name}",
    EventKind.DESTINATION_DISABLED: "disabled the destination {name}",
    EventKind.DESTINATION_ENABLED: "enabled the destination {name}",
    EventKind.DELIVERY_RETRIED: "had a delivery sent again",
    EventKind.RESULTS_ASKED: "had results made and sent",
    EventKind.RUN_BEGUN: "began a backfill run",
    EventKind.IDENTITY_KEY_ACCEPTED: "accepted another identity key; what the former one sealed stays unreadable",
    EventKind.SCHEMA_CHANGED: "changed the database's tables",
}
REASONS = {
    KeyRefusal.WRONG: "there is no such key",
    KeyRefusal.REVOKED: "it was revoked",
    KeyRefusal.EXPIRED: "it has expired",
    KeyRefusal.ROLE: "its role opens no page",
}
MAX_FILTER_LENGTH = 64  # characters of a filter
Text = Annotated[str, Query(max_length=MAX_FILTER_LENGTH, pattern=PRINTABLE)]


class ValueChange(BaseModel):
    """One value that an event changed, as text; null: there was none, or there is none any more."""

    name: str = Field(description="what differs")
    before: str | None = Field(description="the value before; null: there was none")
    after: str | None = Field(description="the value after; null: there is none")


class AuditEvent(RowView):
    """Who did what, from where and when, to what, and what that changed."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": 4711, "at": "2026-01-12T08:00:00Z", "kind": "model-activated", "site": None, "actor": "ops",
                "key_id": "5b0c7a9e-6a53-4f4e-9a55-0d7c2c1f9b10", "address": "192.0.2.7", "subject_kind": "model",
                "subject_id": "second-look-2", "study_id": None, "before": {"active": "first", "state": "shadow"},
                "after": {"active": "second-look-2", "state": "active"}, "detail": {"model": "second-look-2"},
                "changes": [{"name": "active", "before": "first", "after": "second-look-2"}],
                "words": "activated the model second-look-2",
            }
        }
    )  # fmt: skip

    id: int = Field(description="its number; later events have greater ones")
    at: datetime = Field(description="when")
    kind: EventKind = Field(description="what was done, a code")
    site: str | None = Field(description="whom it concerns; null: nobody's in particular, or all sites")
    actor: str | None = Field(description="the key's name, or system:… for Osteon itself; null: nobody knows")
    key_id: UUID | None = Field(description="id of the key that did it; null: Osteon itself")
    address: str = Field(description="where it came from; empty: a program of Osteon's own")
    subject_kind: Subject | None = Field(description="what it happened to")
    subject_id: str | None = Field(description="its id or name")
    study_id: UUID | None = Field(description="the study that this belongs to")
    before: dict[str, Any] | None = Field(description="codes and numbers; null: it was not there")
    after: dict[str, Any] | None = Field(description="null: it is not there any more")
    detail: dict[str, str | int] = Field(description="more of what was done: codes, names of keys and models, numbers")
    changes: list[ValueChange] = Field(description="what differs between before and after")
    words: str = Field(description="the same in words")


class AuditEvents(BaseModel):
    """A page of events, the latest first."""

    events: list[AuditEvent] = Field(description="the latest first")
    next: int | None = Field(description="the `before` of the next page")


@router.get("/audit-events")
def events(
    key: AdminOrOperator,
    session: SessionDep,
    kind: Annotated[
        list[EventKind] | None, Query(max_length=len(EventKind), description="only of this kind; may be repeated")
    ] = None,
    actor: Annotated[Text, Query(description="only by this actor: a key's name, or system:…")] = "",
    subject: Annotated[Text, Query(description="only about this: a name, or an id, of which 4 digits will do")] = "",
    before: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="the `next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="events a page")] = 100,
) -> AuditEvents:
    """List who did what to keys, models, studies and settings, the latest first: at your site, or all for an operator.

    Events are never changed or removed. Each was written in the transaction of the change that it describes.
    """
    return event_page(session, key, limit, kinds=kind or (), actor=actor, subject=subject, before=before)


def event_page(
    session: Session,
    key: Key,
    limit: int,
    *,
    kinds: Collection[EventKind] = (),
    actor: str = "",
    subject: str = "",
    before: int | None = None,
) -> AuditEvents:
    """Build the response of GET /api/v1/audit-events, which the page uses too.

    Args:
        session: the caller's transaction.
        key: of the request; it decides which sites' events are shown.
        limit: events a page.
        kinds: only of these; empty: all.
        actor: a key's name or a System; empty: all.
        subject: an id, its first digits, or a name; empty: all.
        before: number of an event, only those before it; None: the latest.

    Returns:
        The page.
    """
    query = audit.AuditQuery(shown_to(key), kinds, actor.strip(), subject.strip(), before)
    found = [event_view(one) for one in audit.events(session, query, limit + 1)]
    return AuditEvents(events=found[:limit], next=found[limit - 1].id if len(found) > limit else None)


def shown_to(key: Key) -> UUID | None:
    """The site whose events a key may see; None: all sites."""
    return None if key.may(Role.OPERATOR) else key.site_id


def event_view(event: audit.Event) -> AuditEvent:
    """An event with its words."""
    return AuditEvent.of_row(event, words=_words(event), changes=_changes(event.before or {}, event.after or {}))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[ValueChange]:
    old, new = audit.difference(before, after)
    return [ValueChange(name=name, before=_value(old[name]), after=_value(new[name])) for name in old]


def _value(value: object) -> str | None:
    return None if value is None else str(value)


def _words(one: audit.Event) -> str:
    values = _EventValues({**one.detail, "subject": one.subject_id or ""})
    if reason := values.get("reason"):
        values["reason"] = REASONS[KeyRefusal(reason)] if reason in set(KeyRefusal) else reason
    if one.kind is EventKind.HELD_DECIDED:
        values["files"] = f"{values['files']} file{'' if values['files'] == 1 else 's'}"
    return WORDS[one.kind].format_map(values)


class _EventValues(dict[str, str | int]):
    def __missing__(self, name: str) -> str:
        return "unknown"
