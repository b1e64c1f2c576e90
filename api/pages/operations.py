"""The state of the system as a page for administrators, in tabs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import urlencode

from fastapi import Request, Response

from api.dependencies import AdminOrOperator, PartsDep, SessionDep
from api.operations.audit import MAX_FILTER_LENGTH, event_page, shown_to
from api.operations.destinations import DEFAULT_KINDS, DestinationSettings, delays
from api.operations.peers import silences
from api.operations.refused_kinds import refused_view
from api.operations.result_choices import choices
from api.operations.routes import LISTED, NO_ACTIVE_BUNDLE, late_words, overview_of
from api.operations.schemas import HistoryRange, Operations, StatisticsPointView
from api.operations.turnaround import targets
from api.pages.plots import Plot, Value, length, plot
from api.pages.render import header, render, version_of
from api.requests import Router
from api.uploads.held import held_page
from shared.db.clock import db_now
from shared.domain.destinations import BY_HL7, DestinationKind, When
from shared.domain.held import HeldDecision, HeldKind, HeldState
from shared.domain.notices import ALARMS, CODECS, HL7_EVENTS, USUAL_EVENTS, UTF_8, AccessionPlace, Event
from shared.domain.results import CaptureModality, ResultKind
from shared.domain.security import EventKind, Role, Subject, System
from shared.domain.study import StoredOnly, StudyStatus
from shared.errors import BadRequest
from shared.queries import access, audit
from shared.queries.statistics import COMMIT_GRACE

router = Router(include_in_schema=False)
RANGES = {HistoryRange.HOUR: "1 hour", HistoryRange.DAY: "24 hours", HistoryRange.MONTH: "30 days"}
KINDS = {
    HeldKind.PATIENT: "Another patient",
    HeldKind.PIXELS: "Other pixels",
    HeldKind.CORRECTION: "Corrected header",
    HeldKind.COMPARING: "Being compared",
}
DECISIONS = {  # what a button says, and what is asked before
    HeldDecision.ANOTHER_STUDY: ("Another study", "Make them a study of their own, under a new Study Instance UID?"),
    HeldDecision.SAME_PATIENT: ("Same patient", "Add them to the study that they came for, as images of its patient?"),
    HeldDecision.APPLY: ("Apply", "Let the corrected header count from now on? What it replaces is kept."),
    HeldDecision.REJECT: ("Reject", "Reject: nothing of it is ever analysed, its bytes stay stored. Say why."),
}
KEPT_KINDS = {
    StoredOnly.NOT_AN_IMAGE: "reports and other documents",
    StoredOnly.COLOUR: "images in colour",
    StoredOnly.SECONDARY_CAPTURE: "secondary captures",
    StoredOnly.OTHER_MODALITY: "images of other modalities",
    StoredOnly.OWN_RESULT: "Osteon's own results",
}
DESTINATION_KINDS = {  # what a form says, and what a list does
    DestinationKind.DICOM: ("DICOM (C-STORE)", "DICOM"),
    DestinationKind.DICOM_TLS: ("DICOM over TLS", "DICOM, TLS"),
    DestinationKind.STOW: ("DICOMweb (STOW-RS)", "STOW-RS"),
    DestinationKind.FOLDER: ("a folder of this installation", "folder"),
    DestinationKind.HL7: ("HL7 messages (ORU by MLLP)", "HL7"),
    DestinationKind.HL7_TLS: ("HL7 messages over TLS", "HL7, TLS"),
    DestinationKind.WEBHOOK: ("signed webhooks", "webhook"),
    DestinationKind.MAIL: ("mail to a person", "mail"),
}
TOLD_EVENTS = {
    Event.ANALYSED: "a study was analysed",
    Event.REVISED: "a newer model assesses it in another way",
    Event.QUARANTINED: "no image of it could be analysed",
    Event.READ: "it was read",
    Event.OVERDUE: "nobody has read a positive study within its target",
    Event.REVISED_FINDING: "a newer model finds something where the older one said negative",
    Event.QUEUE_LATE: "studies wait too long for the model, and when that ends",
    Event.DELIVERY_FAILED: "deliveries fail, and when that ends",
}
TOLD_KINDS = {  # which kinds of destinations can be told of it
    event: " ".join([*(BY_HL7 if event in HL7_EVENTS else ()), "webhook", *(["mail"] if event in ALARMS else ())])
    for event in TOLD_EVENTS
}
PLACES = {AccessionPlace.FILLER: "OBR-3", AccessionPlace.PLACER: "OBR-2", AccessionPlace.BOTH: "OBR-2 and OBR-3"}
PROCESSINGS = {"P": "production", "T": "training", "D": "debugging"}
MOMENTS = {
    When.ANALYSED: "analysed, as far as it is here",
    When.COMPLETE: "analysed, and no image is expected",
    When.AGREED: "read, and no reader contradicts",
}
PLACE_FIELDS = {"id", "name", *DestinationSettings.model_fields}  # of a destination, that its form changes
RESULT_KINDS = {  # that a destination is asked about; the other forms of documents follow from what it takes
    ResultKind.SC_OVERLAY: "a picture of each image with its outlines",
    ResultKind.SC_SUMMARY: "a picture that sums the study up",
    ResultKind.SR_OUTLINES: "a document (SR) with the outlines",
    ResultKind.SR_STATEMENTS: "a document (SR) with what is stated",
    ResultKind.PDF: "the report as a PDF",
    ResultKind.GSPS: "presentation states with the outlines",
}
STATES = {
    HeldState.ANOTHER_STUDY: "made a study of its own",
    HeldState.SAME_PATIENT: "added to its study",
    HeldState.APPLIED: "correction applied",
    HeldState.REJECTED: "rejected",
}
LISTED_EVENTS = 30
BIGINT_DIGITS = 19
EVENT_ICONS = {  # of those that need attention
    EventKind.LOGIN_FAILED: "overdue",
    EventKind.KEY_REFUSED: "overdue",
    EventKind.THROTTLED: "failed",
    EventKind.NEW_ADDRESS: "pending",
}
SYSTEMS = {  # who acts without a key, in words
    System.BEAT: "Osteon, by its schedule",
    System.CHECK: "Osteon, the daily check",
    System.SWEEPER: "Osteon, a worker",
    System.PREPARE: "Osteon, at its start",
    System.MIGRATION: "Osteon, at an update",
}
# who did this last is shown beside the thing itself
TOLD = (EventKind.MODEL_ACTIVATED, EventKind.KEY_MADE, EventKind.KEY_REVOKED)
STEPS = {HistoryRange.HOUR: "minute", HistoryRange.DAY: "15 minutes", HistoryRange.MONTH: "6 hours"}


class Tab(StrEnum):
    """A part of the page, with an address of its own."""

    NOW = "now"
    QUEUE = "queue"
    SENDERS = "senders"
    RESULTS = "results"
    MODELS = "models"
    KEYS = "keys"
    EVENTS = "events"


TABS = {  # its words, and the ids of what stands on it: a link to one of these leads to the tab
    Tab.NOW: ("Now", "now history storage"),
    Tab.QUEUE: ("Queue", "queue held quarantine turnaround-targets targets"),
    Tab.SENDERS: ("Senders", "dicom-peers sent rejections refused-kinds"),
    Tab.RESULTS: ("Results out", "destinations result-choices"),
    Tab.MODELS: ("Models and runs", "bundles compared backfill-runs"),
    Tab.KEYS: ("Keys and sites", "keys"),
    Tab.EVENTS: ("Events", "events"),
}


@dataclass(frozen=True)
class TabLink:
    """A tab as the page links it, with what on it needs somebody."""

    name: Tab
    words: str
    href: str
    parts: str
    count: int
    why: str


@router.get("/operations")
def operations(request: Request, parts: PartsDep, key: AdminOrOperator, session: SessionDep) -> Response:
    """Show one tab: what is stuck, the queue, senders, results that leave, models and runs, keys, or events."""
    tab = tab_of(request.query_params)
    try:
        chosen = HistoryRange(request.query_params.get("range") or HistoryRange.HOUR)
    except ValueError:
        raise BadRequest(f"Choose one of: {', '.join(HistoryRange)}") from None
    event_filter = EventFilter.of(request.query_params)
    view = overview_of(parts, session, key, chosen)
    before = request.headers.get("if-none-match")  # sent by a page that renews itself
    # whose patients these are: of its own site only, and nothing to an operator
    administers = key.may(Role.ADMIN)
    shows_held = administers and tab is Tab.QUEUE
    waiting = held_page(parts, session, key, renewed=before is not None) if shows_held else None
    listed = LISTED_EVENTS if tab is Tab.EVENTS else 1
    happened = event_page(session, key, listed, **event_filter.chosen())
    last = audit.latest(session, shown_to(key), (Subject.MODEL, Subject.KEY), TOLD)
    latest = str(max([*(one.id for one in happened.events), *(one.id for one in last.values())], default=0))
    version = version_of(view, key, waiting.model_dump_json() if waiting else "", latest)
    if before == version:
        return Response(status_code=304, headers={"ETag": version})
    head, troubles = header(session, key), troubles_of(view, db_now(session))
    context = {
        **head,
        "tab": tab,
        "tab_words": TABS[tab][0],
        "tabs": tab_links(view, troubles, administers=administers),
        "troubles": troubles[tab],
        "administers": administers,
        "operates": key.may(Role.OPERATOR),
        "view": view,
        "version": version,
        "plots": plots(view),
        "held": waiting,
        "kinds": KINDS,
        "decisions": DECISIONS,
        "states": STATES,
        "ranges": RANGES,
        "roles": [role for role in Role if role is not Role.OPERATOR or key.may(Role.OPERATOR)],
        "targets": targets(key, session) if administers and tab is Tab.QUEUE else None,
        "refused": refused_view(parts, session, key) if administers and tab is Tab.SENDERS else None,
        "result_choices": choices(key, session) if administers and tab is Tab.RESULTS else None,
        "capture_modalities": list(CaptureModality),
        "kept_kinds": KEPT_KINDS,
        "destination_kinds": {kind: form for kind, (form, _) in DESTINATION_KINDS.items()},
        "kind_names": {kind: name for kind, (_, name) in DESTINATION_KINDS.items()},
        "told_events": TOLD_EVENTS,
        "told_kinds": TOLD_KINDS,
        "usual_events": [*USUAL_EVENTS, *ALARMS],
        "zone": parts.settings.backfill_timezone,
        "places": PLACES,
        "processings": PROCESSINGS,
        "character_sets": list(CODECS),
        "usual_character_set": UTF_8,
        "moments": MOMENTS,
        "result_kinds": RESULT_KINDS,
        "default_kinds": DEFAULT_KINDS,
        "place_fields": PLACE_FIELDS,
        "sites": access.site_names(session) if key.may(Role.OPERATOR) else [],
        "own_site": access.site_name(session, key.site_id),
        "listed": LISTED,
        "happened": happened,
        "wanted": event_filter,
        "last": last,
        "systems": SYSTEMS,
        "event_icons": EVENT_ICONS,
        "event_kinds": list(EventKind),
        "size": size,
        "length": length,
    }
    return render("operations.html", 200, {"ETag": version}, **context)


@dataclass(frozen=True)
class EventFilter:
    """Which events the page shows, as its address says."""

    kind: EventKind | None = None
    actor: str = ""
    subject: str = ""
    before: int | None = None

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "EventFilter":
        """Read it from an address. Raises BadRequest, with the possible values."""
        try:
            kind = EventKind(given["kind"]) if given.get("kind") else None
        except ValueError:
            raise BadRequest(f"Choose one of: {', '.join(EventKind)}") from None
        actor, subject, before = (given.get(name, "").strip() for name in ("actor", "subject", "before"))
        if not (before.isascii() and before.isdigit() and len(before) < BIGINT_DIGITS) and before:
            raise BadRequest("`before` is the number of an event")
        if any(not text.isprintable() or len(text) > MAX_FILTER_LENGTH for text in (actor, subject)):
            raise BadRequest(f"Who, and about what, have at most {MAX_FILTER_LENGTH} characters that can be seen")
        return cls(kind, actor, subject, int(before) if before else None)

    def chosen(self) -> dict[str, Any]:
        """As `event_page` takes it."""
        return {
            "kinds": (self.kind,) if self.kind else (), "actor": self.actor, "subject": self.subject,
            "before": self.before,
        }  # fmt: skip

    def address(self, before: int | None = None) -> str:
        """Build the address of this filter, for events before the one of this number, or for the latest."""
        given = {
            "tab": Tab.EVENTS, "kind": self.kind or "", "actor": self.actor, "subject": self.subject,
            "before": before or "",
        }  # fmt: skip
        return f"/operations?{urlencode({name: value for name, value in given.items() if value})}"


def tab_of(given: Mapping[str, str]) -> Tab:
    """Find the tab that an address asks for. A filter of events alone asks for them, as before there were tabs.

    Args:
        given: the address's query.

    Returns:
        The tab.

    Raises:
        BadRequest: there is no such tab; it names those that there are.
    """
    if chosen := given.get("tab"):
        try:
            return Tab(chosen)
        except ValueError:
            raise BadRequest(f"Choose one of: {', '.join(Tab)}") from None
    return Tab.EVENTS if any(given.get(name) for name in ("kind", "actor", "subject", "before")) else Tab.NOW


def troubles_of(view: Operations, now: datetime) -> dict[Tab, list[str]]:
    """Sort the troubles by the tab on which something can be done about them.

    Args:
        view: what the page shows.
        now: on Postgres' clock.

    Returns:
        Sentences for each tab; the first tab has them all.
    """
    of = {
        Tab.QUEUE: {late_words(one) for one in view.queues},
        Tab.SENDERS: set(silences(view.dicom_peers)),
        Tab.RESULTS: set(delays(view.destinations, now)),
        Tab.MODELS: {NO_ACTIVE_BUNDLE},
    }
    sorted_ = {tab: [text for text in view.troubles if text in of.get(tab, ())] for tab in Tab}
    return sorted_ | {Tab.NOW: view.troubles}


def tab_links(view: Operations, troubles: Mapping[Tab, list[str]], *, administers: bool) -> list[TabLink]:
    """Make the links to the tabs.

    Args:
        view: what the page shows.
        troubles: by tab.
        administers: whether the reader decides on studies and files.

    Returns:
        One for each tab. Its count is of troubles, and of what waits for a decision there.
    """
    quarantined = view.counts.get(StudyStatus.QUARANTINED, 0) if administers else 0
    waiting = sum(view.held.values()) if administers else 0
    more = {Tab.QUEUE: ((quarantined, "in quarantine"), (waiting, "to be decided"))}
    links = []
    for tab, (words, parts) in TABS.items():
        trouble = "trouble" if len(troubles[tab]) == 1 else "troubles"
        counts = [(count, what) for count, what in ((len(troubles[tab]), trouble), *more.get(tab, ())) if count]
        why = ", ".join(f"{count:,} {what}" for count, what in counts)
        href = "/operations" if tab is Tab.NOW else f"/operations?tab={tab}"
        links.append(TabLink(tab, words, href, parts, sum(count for count, _ in counts), why))
    return links


def plots(view: Operations) -> list[Plot]:
    """The history as four plots."""
    step, found = timedelta(seconds=view.step_s), {point.at: point for point in view.history}
    times = [view.start + n * step for n in range(int((view.end - view.start) / step))]
    # of the latest minute nobody knows yet; what is known to have been quiet is a zero
    known = view.end - timedelta(minutes=1) - COMMIT_GRACE if view.range is HistoryRange.HOUR else view.end
    points = [found.get(at) for at in times]

    def counts(name: str) -> list[Value]:
        return [_count(point, name, at < known) for at, point in zip(times, points, strict=True)]

    def seconds(name: str) -> list[Value]:
        return [getattr(point, name) if point else None for point in points]

    per = STEPS[view.range]
    both = ("median", "p50_s"), ("95th percentile", "p95_s")

    def drawn(name: str, title: str, about: str, lines: list[tuple[str, list[Value]]], *, seconds: bool) -> Plot:
        return plot(name, title, about, times, lines, step, seconds=seconds)

    return [
        drawn(
            "throughput",
            f"Studies per {per}",
            "How many came, how many were analysed, how many were set aside.",
            [(name, counts(name)) for name in ("received", "analysed", "failed")],
            seconds=False,
        ),
        drawn(
            "waits",
            "Wait for a result",
            "From the queue to the result, of urgent and routine studies; of the 95th percentile the worst minute.",
            [(words, seconds(f"wait_{name}")) for words, name in both],
            seconds=True,
        ),
        drawn(
            "work",
            "Time in the worker",
            "From the claim to the result, decoding and model included.",
            [(words, seconds(f"work_{name}")) for words, name in both],
            seconds=True,
        ),
        drawn(
            "queue",
            "Studies waiting",
            "The most that waited at the end of a minute; gaps are times at which nobody looked.",
            [(name, counts(name)) for name in ("urgent", "routine", "backlog")],
            seconds=False,
        ),
    ]


def _count(point: StatisticsPointView | None, name: str, known: bool) -> Value:  # noqa: FBT001 - of a pair
    if point is None:
        return 0.0 if known else None
    if name in ("urgent", "routine", "backlog"):
        looked = any(value is not None for value in (point.urgent, point.routine, point.backlog))
        return float(getattr(point, name) or 0) if looked else None
    return float(getattr(point, name))


def size(count: int) -> str:
    """Bytes in three digits, as "1.25 GB"."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g}\N{NO-BREAK SPACE}{units[0]}" if value < 1000 else f"{value:,.0f}\N{NO-BREAK SPACE}{units[0]}"
