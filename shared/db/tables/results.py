"""Results that leave Osteon: the outbox, the objects that were made, where they go, and what became of it."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    SmallInteger,
    String,
    UniqueConstraint,
    false,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from shared.db.tables.access import SiteRow
from shared.db.tables.base import Base, one_of
from shared.domain.destinations import (
    ADDRESS_LENGTH,
    NAME_LENGTH,
    NAMESPACE_LENGTH,
    NETWORKS_LENGTH,
    URL_LENGTH,
    WORDS_LENGTH,
    Confirmation,
    DeliveryReason,
    DeliveryState,
    DestinationKind,
    NewerModels,
    Occasion,
    SetReason,
    SetState,
    When,
)
from shared.domain.findings import Assessment
from shared.domain.notices import (
    ALARMS,
    BEGUN_BY,
    CODECS,
    OF_STUDIES,
    PROCESSING,
    UTF_8,
    AccessionPlace,
    Event,
    NoticeState,
)
from shared.domain.results import ResultKind

_EVENTS = ", ".join(f"'{event}'" for event in Event)
_ALARMS = ", ".join(f"'{event}'" for event in Event if event in (*ALARMS, *BEGUN_BY))
_OF_STUDIES = ", ".join(f"'{event}'" for event in OF_STUDIES)
_KINDS = ", ".join(f"'{kind}'" for kind in ResultKind)
_EMPTY = text("'{}'")


class DestinationRow(Base):
    """Where results go; its columns are those of shared.domain.destinations.Destination."""

    __tablename__ = "destinations"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    kind: Mapped[str] = mapped_column(String(16))
    host: Mapped[str] = mapped_column(String(253), server_default="")
    port: Mapped[int] = mapped_column(server_default="0")
    called_ae: Mapped[str] = mapped_column(String(16), server_default="")
    calling_ae: Mapped[str] = mapped_column(String(16), server_default="")
    tls_fingerprint: Mapped[str] = mapped_column(String(64), server_default="")
    url: Mapped[str] = mapped_column(String(URL_LENGTH), server_default="")
    folder: Mapped[str] = mapped_column(String(64), server_default="")
    confirm: Mapped[bool] = mapped_column(server_default=false())
    application: Mapped[str] = mapped_column(String(NAMESPACE_LENGTH), server_default="")
    facility: Mapped[str] = mapped_column(String(NAMESPACE_LENGTH), server_default="")
    sending_application: Mapped[str] = mapped_column(String(NAMESPACE_LENGTH), server_default="OSTEON")
    sending_facility: Mapped[str] = mapped_column(String(NAMESPACE_LENGTH), server_default="")
    character_set: Mapped[str] = mapped_column(String(16), server_default=UTF_8)
    accession: Mapped[str] = mapped_column(String(16), server_default=AccessionPlace.FILLER)
    processing: Mapped[str] = mapped_column(String(1), server_default="P")
    probability: Mapped[bool] = mapped_column(server_default=false())
    networks: Mapped[str] = mapped_column(String(NETWORKS_LENGTH), server_default="")
    address: Mapped[str] = mapped_column(String(ADDRESS_LENGTH), server_default="")
    # of a webhook: the number of the secret that signs, from which it is derived, and how long the one before signs too
    secret_number: Mapped[int] = mapped_column(server_default="1")
    former_secret_until: Mapped[datetime | None]
    # as shared.domain.destinations.Capabilities: what it took when it was sent to last
    capabilities: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    added_at: Mapped[datetime] = mapped_column(server_default=func.now())
    disabled_at: Mapped[datetime | None]
    # one process sends to it at a time
    lease_token: Mapped[UUID | None]
    lease_until: Mapped[datetime | None]
    # it was away: when it is tried next, and how often that was so in a row
    not_before: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(server_default="0")
    reason: Mapped[str] = mapped_column(String(24), server_default="")  # DeliveryReason of the last failure in a row
    # the last test: asked for, done, and what came of it; reason empty: it passed
    test_asked_at: Mapped[datetime | None]
    tested_at: Mapped[datetime | None]
    test_reason: Mapped[str] = mapped_column(String(24), server_default="")
    test_status: Mapped[str] = mapped_column(String(16), server_default="")
    test_words: Mapped[str] = mapped_column(String(WORDS_LENGTH), server_default="")

    site: Mapped[SiteRow] = relationship()
    rules: Mapped[list["DestinationRuleRow"]] = relationship(
        order_by="DestinationRuleRow.place", cascade="all, delete-orphan", passive_deletes=True
    )

    __table_args__ = (
        one_of("destinations", "kind", DestinationKind),
        one_of("destinations", "reason", DeliveryReason, empty=True),
        one_of("destinations", "test_reason", DeliveryReason, empty=True),
        CheckConstraint("port BETWEEN 0 AND 65535", name="ck_destinations_port"),
        CheckConstraint(
            f"character_set IN ({', '.join(repr(name) for name in CODECS)})", name="ck_destinations_character_set"
        ),
        one_of("destinations", "accession", AccessionPlace),
        CheckConstraint(
            f"processing IN ({', '.join(repr(code) for code in PROCESSING)})", name="ck_destinations_processing"
        ),
        UniqueConstraint("site_id", "name"),
    )


class DestinationRuleRow(Base):
    """Which results go to a destination, and when; its columns are those of shared.domain.destinations.Rule."""

    __tablename__ = "destination_rules"
    destination_id: Mapped[UUID] = mapped_column(ForeignKey("destinations.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(SmallInteger, primary_key=True)  # from 1
    when: Mapped[str] = mapped_column(String(16))
    kinds: Mapped[list[str]] = mapped_column(ARRAY(String(24)))
    senders: Mapped[list[str]] = mapped_column(ARRAY(String(128)), server_default=_EMPTY)
    regions: Mapped[list[str]] = mapped_column(ARRAY(String(32)), server_default=_EMPTY)
    assessments: Mapped[list[str]] = mapped_column(ARRAY(String(16)), server_default=_EMPTY)
    age_from: Mapped[int | None]
    age_to: Mapped[int | None]
    hour_from: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    hour_to: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    newer_models: Mapped[str] = mapped_column(String(16), server_default=NewerModels.CHANGED)
    events: Mapped[list[str]] = mapped_column(ARRAY(String(24)), server_default=_EMPTY)
    __table_args__ = (
        CheckConstraint(
            f"\"when\" IN ({', '.join(repr(str(code)) for code in When)})", name="ck_destination_rules_when"
        ),
        one_of("destination_rules", "newer_models", NewerModels),
        CheckConstraint(f"kinds <@ ARRAY[{_KINDS}]::varchar[]", name="ck_destination_rules_kinds"),
        CheckConstraint(f"events <@ ARRAY[{_EVENTS}]::varchar[]", name="ck_destination_rules_events"),
        CheckConstraint(
            "hour_from BETWEEN 0 AND 23 AND hour_to BETWEEN 0 AND 23", name="ck_destination_rules_hours"
        ),
    )  # fmt: skip


class ResultSetRow(Base):
    """That results of a study are due, written in the transaction that makes them so; and what was made of it."""

    __tablename__ = "result_sets"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    occasion: Mapped[str] = mapped_column(String(16))
    # the only destination, and the kinds that go there; null: as the rules say
    destination_id: Mapped[UUID | None] = mapped_column(ForeignKey("destinations.id", ondelete="CASCADE"))
    kinds: Mapped[list[str] | None] = mapped_column(ARRAY(String(24)))
    due_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    state: Mapped[str] = mapped_column(String(16), server_default=SetState.WAITING)
    reason: Mapped[str] = mapped_column(String(24), server_default="")
    reason_detail: Mapped[str] = mapped_column(String(128), server_default="")
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    lease_token: Mapped[UUID | None]
    lease_until: Mapped[datetime | None]
    # of one that was made
    made_at: Mapped[datetime | None]
    digest: Mapped[str] = mapped_column(String(64), server_default="")  # of all inputs
    stated_at: Mapped[datetime | None]  # the time that its objects bear
    made_kinds: Mapped[list[str]] = mapped_column(ARRAY(String(24)), server_default=_EMPTY)  # of which it has objects
    replaces: Mapped[dict[str, Any] | None]  # the set that it replaced, as shared.domain.results.Replaced
    assessment: Mapped[str] = mapped_column(String(16), server_default="")  # that it states
    __table_args__ = (
        one_of("result_sets", "occasion", Occasion),
        one_of("result_sets", "state", SetState),
        one_of("result_sets", "reason", SetReason, empty=True),
        one_of("result_sets", "assessment", Assessment, empty=True),
        CheckConstraint(f"kinds <@ ARRAY[{_KINDS}]::varchar[]", name="ck_result_sets_kinds"),
        Index("ix_result_sets_waiting", "next_at", "id", postgresql_where=text("state = 'waiting'")),
        Index("ix_result_sets_study_id", "study_id", "due_at"),
        Index("ix_result_sets_destination_id", "destination_id", postgresql_where=text("destination_id IS NOT NULL")),
    )  # fmt: skip


class ResultObjectRow(Base):
    """A DICOM object that was made. Its bytes are in the store by their digest, as those of an instance."""

    __tablename__ = "result_objects"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    # one instance of the study, so that DICOMweb finds it; of an image's object, the first set that has it
    set_id: Mapped[UUID] = mapped_column(ForeignKey("result_sets.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(24))
    number: Mapped[int]  # of the image; 1 for one of the study
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    sop_instance_uid: Mapped[str] = mapped_column(String(64))
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    made_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    __table_args__ = (
        one_of("result_objects", "kind", ResultKind),
        UniqueConstraint("study_id", "sop_instance_uid"),
        Index("ix_result_objects_sha256", "sha256"),
    )


class NoticeRow(Base):
    """That something happened to a study or at a site, and what is told of it.

    Of a study it is written in the transaction that makes it so. What only time makes so is written once, by whoever
    looks: shared.queries.alarms.
    """

    __tablename__ = "notices"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    study_id: Mapped[UUID | None] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))  # null: of the site
    # the destination that it is about
    about_id: Mapped[UUID | None] = mapped_column(ForeignKey("destinations.id", ondelete="CASCADE"))
    event: Mapped[str] = mapped_column(String(24))
    when: Mapped[str] = mapped_column(String(16), server_default="")  # When of the rules that wait for it; empty: all
    happened_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    noted_at: Mapped[datetime | None] = mapped_column(server_default=func.clock_timestamp())  # when it was written
    state: Mapped[str] = mapped_column(String(16), server_default=NoticeState.WAITING)
    told: Mapped[dict[str, Any] | None]  # as shared.domain.notices.NoticeContent, once its deliveries are written
    __table_args__ = (
        CheckConstraint(f"event IN ({_EVENTS})", name="ck_notices_event"),
        CheckConstraint(
            f"\"when\" IN ('', {', '.join(repr(str(code)) for code in When)})", name="ck_notices_when"
        ),
        one_of("notices", "state", NoticeState),
        Index("ix_notices_waiting", "happened_at", "id", postgresql_where=text("state = 'waiting'")),
        Index("ix_notices_study_id", "study_id", "happened_at"),
        # what people are told of, once: of a study, and what a site's pages show of late
        Index(
            "uq_notices_overdue", "study_id", unique=True, postgresql_where=text(f"event = '{Event.OVERDUE}'")
        ),
        Index("ix_notices_alarms", "site_id", "noted_at", postgresql_where=text(f"event IN ({_ALARMS})")),
        Index("ix_notices_about_id", "about_id", postgresql_where=text("about_id IS NOT NULL")),
        CheckConstraint(f"study_id IS NOT NULL OR event NOT IN ({_OF_STUDIES})", name="ck_notices_subject"),
    )  # fmt: skip


class DeliveryRow(Base):
    """A set, or what is told by a notice, on its way to a destination, and what became of it."""

    __tablename__ = "deliveries"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    study_id: Mapped[UUID | None] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))  # null: of the site
    set_id: Mapped[UUID | None] = mapped_column(ForeignKey("result_sets.id", ondelete="CASCADE"))
    notice_id: Mapped[UUID | None] = mapped_column(ForeignKey("notices.id", ondelete="CASCADE"))
    destination_id: Mapped[UUID] = mapped_column(ForeignKey("destinations.id", ondelete="CASCADE"))
    state: Mapped[str] = mapped_column(String(16), server_default=DeliveryState.WAITING)
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    next_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    tried_until: Mapped[datetime]  # from then on a failure is final
    # of the rule: in which hours it may go, at each try
    hour_from: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    hour_to: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    attempts: Mapped[int] = mapped_column(server_default="0")
    reason: Mapped[str] = mapped_column(String(24), server_default="")
    status: Mapped[str] = mapped_column(String(16), server_default="")  # the peer's, as "A700" or "HTTP 409"
    words: Mapped[str] = mapped_column(String(WORDS_LENGTH), server_default="")  # the peer's own: never in a log
    unchecked: Mapped[bool] = mapped_column(server_default=false())  # a person has decided that the patient is right
    sent_at: Mapped[datetime | None]  # when the last object was accepted
    # storage commitment, of a delivery that was sent: empty where none is asked for. While it is due, next_at, attempts
    # and tried_until are those of the request; once it failed, reason, status and words say why
    confirmation: Mapped[str] = mapped_column(String(16), server_default="")
    confirmed_at: Mapped[datetime | None]  # every object
    __table_args__ = (
        one_of("deliveries", "state", DeliveryState),
        one_of("deliveries", "reason", DeliveryReason, empty=True),
        one_of("deliveries", "confirmation", Confirmation, empty=True),
        CheckConstraint(
            "(confirmation = 'confirmed') = (confirmed_at IS NOT NULL) AND (confirmation = '' OR state = 'sent')",
            name="ck_deliveries_confirmed_at",
        ),
        UniqueConstraint("set_id", "destination_id"),
        UniqueConstraint("notice_id", "destination_id"),
        CheckConstraint("num_nonnulls(set_id, notice_id) = 1", name="ck_deliveries_subject"),
        CheckConstraint("study_id IS NOT NULL OR notice_id IS NOT NULL", name="ck_deliveries_study_id"),
        Index("ix_deliveries_waiting", "destination_id", "next_at", "id", postgresql_where=text("state = 'waiting'")),
        Index(
            "ix_deliveries_undelivered", "site_id", "state", "created_at",
            postgresql_where=text("state IN ('failed', 'held')"),
        ),
        Index("ix_deliveries_study_id", "study_id", "created_at"),
        Index("ix_deliveries_sent_at", "destination_id", "sent_at"),
        Index(
            "ix_deliveries_to_confirm", "destination_id", "next_at", "id", postgresql_where=text("confirmation = 'due'")
        ),
        Index(
            "ix_deliveries_unconfirmed", "destination_id", "confirmation",
            postgresql_where=text("confirmation IN ('due', 'asked', 'failed')"),
        ),
    )  # fmt: skip


class DeliveryObjectRow(Base):
    """An object of a delivery; what the destination accepted before is in none."""

    __tablename__ = "delivery_objects"
    delivery_id: Mapped[UUID] = mapped_column(ForeignKey("deliveries.id", ondelete="CASCADE"), primary_key=True)
    object_id: Mapped[UUID] = mapped_column(
        ForeignKey("result_objects.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    place: Mapped[int] = mapped_column(SmallInteger)  # in which it is sent
    accepted_at: Mapped[datetime | None]
    refused: Mapped[bool] = mapped_column(server_default=false())  # the destination takes no object of its class
    status: Mapped[str] = mapped_column(String(16), server_default="")  # with which it was accepted
    # storage commitment: when the destination said that it keeps it; or why it does not (PS3.3 C.14.1.1), as "0112"
    confirmed_at: Mapped[datetime | None]
    failure: Mapped[str] = mapped_column(String(4), server_default="")
    __table_args__ = (
        CheckConstraint(
            "failure = '' OR (confirmed_at IS NULL AND failure ~ '^[0-9A-F]{4}$')", name="ck_delivery_objects_failure"
        ),
        CheckConstraint(
            "accepted_at IS NOT NULL OR (confirmed_at IS NULL AND failure = '')",
            name="ck_delivery_objects_confirmed_at",
        ),
    )  # fmt: skip


class CommitmentRequestRow(Base):
    """A request for storage commitment that we sent about a delivery; its report may come days later."""

    __tablename__ = "commitment_requests"
    transaction_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    delivery_id: Mapped[UUID] = mapped_column(ForeignKey("deliveries.id", ondelete="CASCADE"), index=True)
    asked_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    reported_at: Mapped[datetime | None]  # null: no report came
