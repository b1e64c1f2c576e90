"""The daily check on real Postgres and the served API: it finds each break and each drift, and is in nobody's way."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import func, select, update
from typer.testing import CliRunner

from api.pages.operations import Tab
from infra import daily_check
from infra.cli import app as commands
from infra.daily_check import REFERENCE, DailyCheck, Receiver, Stopped, look
from shared.db.clock import db_now
from shared.db.engine import Database
from shared.db.tables import (
    AnalysisRow,
    BackfillRunRow,
    BundleRow,
    CheckExpectationRow,
    CheckRow,
    DeliveryRow,
    DestinationRow,
    HoldingRow,
    InstanceRow,
    KeyRow,
    SiteRow,
    StatisticRow,
    StudyRow,
    WorkerRow,
)
from shared.domain.checks import SITE, TITLE, CheckReason, CheckState, CheckStep
from shared.domain.findings import Assessment, Extent, Finding, Heatmap, InstanceResult
from shared.domain.study import StoredStatus
from shared.errors import Unavailable
from shared.queries import analyses, backfill_history, checks, deliveries, destinations, operations, statistics
from shared.queries.models import activate_bundle, add_bundle
from shared.queries.worklist import all_status_counts
from shared.settings import Settings
from shared.storage import open_store
from tests.conftest import InProcessApi
from tests.hospital import Hospital
from tests.integration.test_permissions import ENDLESS, RADIOGRAPH, routes
from tests.pace import LIMIT_S
from tests.results import ABLE, small_objects
from tests.served import served
from worker.delivery.sending import Sender
from worker.results.making import Maker

MANIFEST = {"sensitive": 0.1, "specific": 0.6, "regions": ["hand", "hip"], "metrics": {}}
LEASE = timedelta(seconds=30)
HAND = Finding(1, "a", "hand", 0.9, 0.8, Assessment.POSITIVE, Extent.MILD, Heatmap(b"\0\1\2\3", 2, 2))
HIP = Finding(1, "a", "hip", 0.9, 0.05, Assessment.NEGATIVE, Extent.NONE, Heatmap(b"\0\0\0\0", 2, 2))


@dataclass
class SimulatedParts:
    """Everything behind the API, in a thread: what a worker finds, whether results are made, and delivered."""

    database: Database
    settings: Settings
    found: list[Finding] = field(default_factory=lambda: [HAND, HIP])  # of the reference study's images
    device: str = "CPU, 2 streams, OpenVINO bf16"
    lives: bool = True  # the worker sends heartbeats
    works: bool = True  # and analyses
    quarantines: bool = False
    makes: bool = True
    delivers: bool = True
    meanwhile: Callable[[], None] = lambda: None
    wrong: list[BaseException] = field(default_factory=list)

    @contextmanager
    def run(self) -> Iterator["SimulatedParts"]:
        """Work during the block."""
        stopping = threading.Event()
        store = open_store(self.settings.store_url.get_secret_value())
        maker = Maker(self.settings, self.database, store, small_objects, ABLE)
        sender = Sender(self.settings, self.database, store)

        def work() -> None:
            lived: list[object] = []  # what the last heartbeat said, and when
            while not stopping.wait(0.05):  # each turn takes a hundredth of a second of the processor
                try:
                    says = [self.lives, self.device, round(time.monotonic())]
                    if says != lived:
                        self._heartbeat()
                    lived = says
                    if self.works:
                        self._analyse()
                    if self.makes:
                        maker.look()
                    if self.delivers:
                        sender.look()
                    self.meanwhile()
                except BaseException as error:  # told by the test's end
                    self.wrong.append(error)
                    return

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield self
        finally:
            stopping.set()
            thread.join(LIMIT_S)
            sender.close()
            assert self.wrong == []

    def _heartbeat(self) -> None:
        with self.database.transaction() as session:
            told = operations.Heartbeat(UUID(int=7), "host", 1, self.device, "a", 1, 0, 0, stopped=not self.lives)
            operations.write_heartbeat(session, told)

    def _analyse(self) -> None:
        with self.database.transaction() as session:
            queued = session.scalars(select(AnalysisRow.id).where(AnalysisRow.state == "queued")).all()
            now = db_now(session)
            active = session.scalars(select(BundleRow.name).where(BundleRow.active)).one()
            claims = analyses.claim(session, queued, active, now, LEASE, max_attempts=4) if queued else []
            for claim in claims:
                if claim is None or isinstance(claim, analyses.NotClaimed):
                    continue
                if self.quarantines:
                    its = AnalysisRow.id == claim.analysis_id
                    session.execute(update(AnalysisRow).where(its).values(state="failed"))
                    mine = StudyRow.id == claim.study_id
                    values = {"status": StoredStatus.QUARANTINED, "reason": "worker-died", "quarantined_at": now}
                    session.execute(update(StudyRow).where(mine).values(values))
                    continue
                parts = {
                    one.id: session.get_one(InstanceRow, one.id).body_part for one in claim.instances
                }  # of the reference study the hip is the second image
                results = [
                    InstanceResult(id_, [replace(self.found[part not in ("HAND", "")], bundle=active)])
                    for id_, part in parts.items()
                ]
                analyses.finish(session, [analyses.AnalysisResult(claim, results)], now)


@dataclass
class CheckedSystem:
    """The API, what is behind it, and checks of both."""

    api: InProcessApi
    parts: SimulatedParts
    settings: Settings
    stopping: threading.Event = field(default_factory=threading.Event)

    def check(self, *, accept: bool = False, wait_s: float = 60.0, **changes: Any) -> CheckRow:
        """One check from its asking to its end."""
        settings = self.settings.model_copy(update={"check_wait_s": wait_s, **changes})
        with self.api.database.transaction() as session:
            asked = checks.ask(session, self.api.key("operator"), accept=accept).id
        look(settings, self.api.database, self.stopping)
        return self.row(asked)

    def row(self, check_id: UUID) -> CheckRow:
        """A check as it stands."""
        with self.api.database.transaction() as session:
            return checks.get_check(session, check_id)

    def left(self) -> int:
        """Studies of the check's site."""
        with self.api.database.transaction() as session:
            mine = select(func.count()).select_from(StudyRow).join(SiteRow, SiteRow.id == StudyRow.site_id)
            return session.scalar(mine.where(SiteRow.checks)) or 0

    def is_closed(self) -> bool:
        """Whether nobody can use the check's key, and nothing goes to its receiver."""
        with self.api.database.transaction() as session:
            key = session.scalars(select(KeyRow).where(KeyRow.name == TITLE)).one()
            destination = session.scalars(select(DestinationRow).where(DestinationRow.name == TITLE)).one()
            return key.revoked_at is not None and destination.disabled_at is not None


@pytest.fixture
def checked(make_api: Callable[..., InProcessApi], monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckedSystem]:
    """A system whose parts all work, with a model whose findings nobody knows yet."""
    monkeypatch.setattr(daily_check, "POLL_S", 0.05)
    api = make_api(delivery_answer_s=5.0, lease_s=5.0)
    with api.database.transaction() as session:
        add_bundle(session, "a", "a" * 64, MANIFEST)
        activate_bundle(session, "a")
    with served(api.http.app) as port:  # type: ignore[arg-type]
        settings = api.settings.model_copy(update={"check_api_url": f"http://127.0.0.1:{port}"})
        with SimulatedParts(api.database, settings).run() as parts:
            yield CheckedSystem(api, parts, settings)


def told(row: CheckRow) -> tuple[str, str, str, str]:
    return row.state, row.step, row.reason, row.reason_detail


WELL = ("well", "deleted", "", "")


# -- what it finds


def test_a_system_that_works_is_well_and_its_first_findings_are_expected(checked: CheckedSystem) -> None:
    """Each step is timed; what was found first is what the second check compares with; nothing stays."""
    first = checked.check()
    assert told(first) == WELL
    assert (first.learned, first.probability_deviation) == (True, None)
    assert [one["step"] for one in first.steps] == [step.value for step in CheckStep]
    assert (first.model, first.engine) == ("a", "CPU, OpenVINO bf16")
    assert (checked.left(), checked.is_closed()) == (0, True)
    second = checked.check()
    assert told(second) == WELL
    assert (second.learned, second.probability_deviation, second.heatmap_deviation) == (False, 0.0, 0)
    with checked.api.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(SiteRow).where(SiteRow.checks)) == 1
        assert session.scalar(select(func.count()).select_from(KeyRow).where(KeyRow.name == TITLE)) == 1


DRIFTS = (
    ([replace(HAND, fracture_probability=0.8011), HIP], CheckReason.VALUES_DIFFER, ""),
    ([HAND, replace(HIP, region_probability=0.88)], CheckReason.VALUES_DIFFER, ""),
    ([replace(HAND, heatmap=Heatmap(b"\0\1\2\5", 2, 2)), HIP], CheckReason.VALUES_DIFFER, ""),
    ([replace(HAND, assessment=Assessment.UNCLEAR), HIP], CheckReason.CODES_DIFFER, "assessment"),
    ([HIP, HAND], CheckReason.CODES_DIFFER, "region, assessment, severity"),
)


def test_a_drift_is_found_until_somebody_accepts_it(checked: CheckedSystem) -> None:
    """At each check; what is expected stays meanwhile, and --accept alone changes it. Less than a drift is none."""
    assert told(checked.check()) == WELL
    for found, reason, detail in DRIFTS:
        checked.parts.found = found
        assert told(checked.check()) == ("drifted", "compared", reason, detail)
        assert (checked.left(), checked.is_closed()) == (0, True)
    checked.parts.found = [replace(HAND, fracture_probability=0.8009), HIP]
    assert told(checked.check()) == WELL
    checked.parts.found = [HIP, HAND]
    accepted = checked.check(accept=True)
    assert (told(accepted), accepted.learned) == (WELL, True)
    assert told(checked.check()) == WELL
    checked.parts.found = [HAND, HIP]
    assert checked.check().state == CheckState.DRIFTED


@pytest.mark.slow
def test_another_model_has_findings_of_its_own(checked: CheckedSystem) -> None:
    """What is expected is of one model: another one is learned, and the first is compared as before."""
    assert told(checked.check()) == WELL
    with checked.api.database.transaction() as session:
        add_bundle(session, "b", "b" * 64, MANIFEST)
        activate_bundle(session, "b")
    checked.parts.found = [replace(HAND, fracture_probability=0.7), HIP]
    learned = checked.check()
    assert (told(learned), learned.learned, learned.model) == (WELL, True, "b")
    checked.parts.found = [HAND, HIP]
    assert checked.check().state == CheckState.DRIFTED
    with checked.api.database.transaction() as session:
        activate_bundle(session, "a")
    assert told(checked.check()) == WELL


@pytest.mark.slow
def test_another_engine_is_held_to_the_findings_of_the_first(checked: CheckedSystem) -> None:
    """By the wider tolerance of two engines; what fits is its own from then on, with the narrow one."""
    assert told(checked.check()) == WELL
    checked.parts.device = "CPU, torch float32"
    checked.parts.found = [replace(HAND, fracture_probability=0.86), HIP]
    assert told(checked.check()) == ("drifted", "compared", CheckReason.VALUES_DIFFER, "")
    checked.parts.found = [replace(HAND, fracture_probability=0.82), HIP]
    learned = checked.check()
    assert (told(learned), learned.learned) == (WELL, True)
    checked.parts.found = [replace(HAND, fracture_probability=0.83), HIP]
    assert checked.check().state == CheckState.DRIFTED
    checked.parts.device = "CPU, 8 streams, OpenVINO bf16"  # how many images at a time changes no finding
    checked.parts.found = [HAND, HIP]
    again = checked.check()
    assert (told(again), again.learned) == (WELL, False)


# -- what is broken


def breaks(**changes: Any) -> Callable[[CheckedSystem, pytest.MonkeyPatch], dict[str, Any]]:
    def arrange(checked: CheckedSystem, _monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        for name, value in changes.items():
            setattr(checked.parts, name, value)
        return {"wait_s": 0.3}

    return arrange


def no_model(checked: CheckedSystem, _monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    checked.parts.works = False
    with checked.api.database.transaction() as session:
        session.execute(update(BundleRow).values(active=False))
    return {}


def refuses(_bench: CheckedSystem, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(Receiver, "_store", lambda *_: 0xC000)
    return {}


def damages(_bench: CheckedSystem, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    whole = Receiver._store

    def store(self: Receiver, event: Any) -> int:
        status = whole(self, event)
        uid = str(event.request.AffectedSOPInstanceUID)
        self.objects[uid] = self.objects[uid][:-1] + b"?"
        return status

    monkeypatch.setattr(Receiver, "_store", store)
    return {}


def loses(_bench: CheckedSystem, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(Receiver, "_store", lambda *_: 0x0000)
    return {}


def wrong_statement(_bench: CheckedSystem, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    whole = checks.find_results
    monkeypatch.setattr(checks, "find_results", lambda *its: replace(whole(*its), assessments=("negative",)))
    return {}


def crashes(_bench: CheckedSystem, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def crash(self: DailyCheck) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(DailyCheck, "_compare", crash)
    return {}


def busy(checked: CheckedSystem, _monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Others wait before it, and one after the other is done."""
    checked.parts.works = False
    waiting = checked.api.post({"a": RADIOGRAPH}).json()["studies"][0]["id"]

    def go_on() -> None:
        with checked.api.database.transaction() as session:
            done = session.scalar(select(AnalysisRow.id).where(AnalysisRow.state == "done"))
            if done is None:
                study = session.get_one(StudyRow, UUID(waiting))
                session.add(
                    AnalysisRow(
                        id=uuid4(), study_id=study.id, site_id=study.site_id, purpose="first", state="done",
                        priority="routine", finished_at=db_now(session),
                    )
                )  # fmt: skip
            else:
                its = AnalysisRow.id == done
                session.execute(update(AnalysisRow).where(its).values(finished_at=func.clock_timestamp()))

    checked.parts.meanwhile = go_on
    return {"wait_s": 0.3}


@pytest.mark.parametrize(
    ("arrange", "expected"),
    [
        pytest.param(no_model, ("broken", "sent", "no-model", ""), marks=pytest.mark.slow),
        (breaks(lives=False, works=False), ("broken", "analysed", "no-worker", "")),
        pytest.param(breaks(works=False), ("broken", "analysed", "not-analysed", ""), marks=pytest.mark.slow),
        (breaks(quarantines=True), ("broken", "analysed", "quarantined", "worker-died")),
        (busy, ("behind", "analysed", "queue-full", "1")),
        pytest.param(crashes, ("broken", "compared", "error", "ZeroDivisionError"), marks=pytest.mark.slow),
        (breaks(makes=False), ("broken", "made", "not-made", "")),
        pytest.param(wrong_statement, ("broken", "made", "wrong-statement", ""), marks=pytest.mark.slow),
        pytest.param(breaks(delivers=False), ("broken", "delivered", "not-delivered", ""), marks=pytest.mark.slow),
        (refuses, ("broken", "delivered", "not-delivered", "refused")),
        (damages, ("broken", "read-back", "not-equal", "sc-summary")),
        pytest.param(loses, ("broken", "read-back", "not-equal", "sc-summary"), marks=pytest.mark.slow),
    ],
    ids=[
        "no-model", "no-worker", "idle-worker", "quarantine", "behind", "error", "no-results", "wrong-statement",
        "no-delivery", "refused", "damaged", "lost",
    ],
)  # fmt: skip
def test_what_is_broken_is_told_by_step_and_reason(
    checked: CheckedSystem,
    monkeypatch: pytest.MonkeyPatch,
    arrange: Callable[[CheckedSystem, pytest.MonkeyPatch], dict[str, Any]],
    expected: tuple[str, str, str, str],
) -> None:
    """Whatever breaks in the middle: the study is deleted, the key is nobody's, and the receiver is gone."""
    row = checked.check(**arrange(checked, monkeypatch))
    assert told(row) == expected
    assert [one["step"] for one in row.steps] == list(CheckStep)[: list(CheckStep).index(CheckStep(row.step))]
    assert (checked.left(), checked.is_closed()) == (0, True)


def test_an_api_that_is_away_or_refuses_is_broken(checked: CheckedSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the check ends all the same."""
    row = checked.check(check_api_url="http://127.0.0.1:9", wait_s=0.5)
    assert told(row) == ("broken", "sent", "api-away", "ConnectError")
    monkeypatch.setattr(daily_check, "RELATED", "text/plain")
    assert told(checked.check()) == ("broken", "sent", "refused", "415")
    assert (checked.left(), checked.is_closed()) == (0, True)


def test_an_api_that_listens_later_is_waited_for(checked: CheckedSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a start of the host the processes begin in any order: nothing is broken before the API had time."""
    tries: list[str] = []
    ask = httpx.Client.request

    def request(client: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
        tries.append(path)
        if len(tries) < 4:
            raise httpx.ConnectError("nobody listens")
        return ask(client, method, path, **more)

    monkeypatch.setattr(httpx.Client, "request", request)
    assert told(checked.check()) == WELL
    assert tries[:4] == ["/dicom-web/studies"] * 4


def test_a_process_that_ends_waits_for_no_api(checked: CheckedSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its check is made again by the next one."""

    def nobody(*_: object, **__: object) -> httpx.Response:
        checked.stopping.set()
        raise httpx.ConnectError("nobody listens")

    monkeypatch.setattr(httpx.Client, "request", nobody)
    with pytest.raises(Stopped):
        checked.check()
    assert checked.is_closed()


def test_what_a_dead_check_has_left_is_deleted_by_the_next(
    checked: CheckedSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its study stays, for it cannot delete it; nobody begins a second one while it may live; then it is tidied."""
    with monkeypatch.context() as dying:

        def die(self: DailyCheck) -> None:
            raise Unavailable("Postgres is gone")

        dying.setattr(DailyCheck, "_compare", die)
        dying.setattr(DailyCheck, "_tidy_quietly", lambda _: None)
        with pytest.raises(Unavailable):
            checked.check()
    assert checked.left() == 1
    with checked.api.database.transaction() as session:
        dead = session.scalars(select(CheckRow)).one()
        assert dead.state == CheckState.RUNNING
        assert checks.ask(session, checked.api.key("operator")).id == dead.id
    assert look(checked.settings, checked.api.database, checked.stopping) is None
    with checked.api.database.transaction() as session:
        session.execute(update(CheckRow).values(lease_until=func.now() - timedelta(seconds=1)))
    assert (
        look(checked.settings, checked.api.database, checked.stopping) is None
    )  # it is ended; nobody asked for another
    assert told(checked.row(dead.id)) == ("broken", "compared", "died", "")
    assert told(checked.check()) == WELL
    assert (checked.left(), checked.is_closed()) == (0, True)


def test_two_checks_exclude_each_other(checked: CheckedSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one runs, another process begins none, and whoever asks is given the one that runs."""
    seen: list[object] = []
    whole = DailyCheck._compare

    def compare(self: DailyCheck) -> None:
        with checked.api.database.transaction() as session:
            seen.append(checks.ask(session, checked.api.key("operator")).id)
        seen.append(look(checked.settings, checked.api.database, checked.stopping))
        whole(self)

    monkeypatch.setattr(DailyCheck, "_compare", compare)
    row = checked.check()
    assert told(row) == WELL
    assert seen == [row.id, None]


@pytest.mark.parametrize("scheduled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_process_that_ends_leaves_its_check_to_the_next(
    checked: CheckedSystem, monkeypatch: pytest.MonkeyPatch, scheduled: bool
) -> None:
    """The study is deleted, no state says that something is broken, and the check is made from its beginning."""
    if scheduled:
        with checked.api.database.transaction() as session:
            session.execute(update(BundleRow).values(activated_at=func.now() - timedelta(days=2)))
    else:
        with checked.api.database.transaction() as session:
            checks.ask(session, checked.api.key("operator"))
    with monkeypatch.context() as ending:
        ending.setattr(DailyCheck, "_compare", lambda _: checked.stopping.set())
        with pytest.raises(Stopped):
            look(checked.settings, checked.api.database, checked.stopping)
    assert (checked.left(), checked.is_closed()) == (0, True)
    with checked.api.database.transaction() as session:
        assert [row.state for row in session.scalars(select(CheckRow))] == ([] if scheduled else [CheckState.ASKED])
    checked.stopping.clear()
    assert look(checked.settings, checked.api.database, checked.stopping) is CheckState.WELL


def test_a_day_has_one_check_and_a_new_system_none(checked: CheckedSystem) -> None:
    """It is due once the hour has come, is not made twice, and not on a day on which the system was not there yet."""

    def made() -> CheckState | None:
        return look(checked.settings, checked.api.database, checked.stopping)

    assert made() is None
    with checked.api.database.transaction() as session:
        session.execute(update(BundleRow).values(activated_at=func.now() - timedelta(days=2)))
    assert made() is CheckState.WELL
    assert made() is None
    with checked.api.database.transaction() as session:
        assert session.scalars(select(CheckRow)).one().scheduled
        session.execute(update(CheckRow).values(started_at=func.now() - timedelta(days=1)))
    assert made() is CheckState.WELL


# -- where nothing of it is


VOLATILE = re.compile(r"^(python_|process_|osteon_api_)|_created\b")  # what a process counts of itself
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:")
OF_CHECKS = ("/api/v1/checks", "/api/v1/audit-events")  # which tell of it, and are for those who run the system
OF_NOTHING = ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/login")  # the same for everybody at any time
# its tabs, but for the one that lists the same events, and that one of nobody's
CHOSEN = {
    "/operations": [
        *(f"/operations?tab={tab}" for tab in Tab if tab is not Tab.EVENTS), "/operations?actor=nobody",
    ],
}  # fmt: skip


def answers(api: InProcessApi) -> dict[str, Any]:
    """What every route says that lists or counts, to each role that may ask: all that have no name in their path."""
    found: dict[str, Any] = {}
    for method, path in sorted(routes(api.http.app)):
        if method != "GET" or "{" in path or path in (*ENDLESS, *OF_CHECKS, *OF_NOTHING):
            continue
        for role in ("operator", "admin"):  # an admin may ask for all that a radiologist may
            if path in CHOSEN:
                for address in CHOSEN[path]:
                    page = api.http.get(address, headers=api.headers(role, page=True))
                    assert page.status_code == 200, address
                    found[f"{address} as {role} text"] = page.text
                continue
            answer = api.http.get(path, headers=api.headers(role))
            if answer.status_code != 200:
                continue
            name = f"{path} as {role}"
            if answer.headers["content-type"].startswith(("application/json", "application/dicom+json")) or (
                "json" in answer.headers["content-type"] and not path.startswith("/api/v1/feedback")
            ):
                flat(name, answer.json(), found)
            elif path == "/metrics":
                lines = [line for line in answer.text.splitlines() if line[:1] != "#" and not VOLATILE.search(line)]
                found |= {f"{name} {line.rpartition(' ')[0]}": line.rpartition(" ")[2] for line in lines}
            found[f"{name} text"] = answer.text
    searched = api.http.post(
        "/api/v1/worklist/search", json={"number": "OSTEON-CHECK"}, headers=api.headers("radiologist")
    )
    found["search text"] = searched.text
    return found


def flat(name: str, value: object, into: dict[str, Any]) -> None:
    """A JSON value as one entry for each place in it; of a list its length, too."""
    if isinstance(value, dict):
        for key, its in value.items():
            flat(f"{name}.{key}", its, into)
    elif isinstance(value, list):
        into[f"{name} length"] = len(value)
        for number, its in enumerate(value):
            flat(f"{name}[{number}]", its, into)
    else:
        into[name] = value


def test_no_list_and_no_count_has_anything_of_it(checked: CheckedSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lists or counts says the same before a check and in its middle, and names nothing of it.

    A new route is held to it as well: all are asked that have no name in their path. What changes by itself, as times
    do, is known from asking twice before.
    """
    api = checked.api
    own = api.post({"a": RADIOGRAPH}).json()["studies"][0]["id"]
    with api.database.transaction() as session:
        session.execute(update(StudyRow).values(received_at=func.now() - timedelta(minutes=10)))
    hospital = Hospital(api.database, api.key().site_id)
    deadline = threading.Event()
    for _ in range(500):
        if hospital.row(UUID(own)).status == "analysed":
            break
        deadline.wait(0.05)
    assert checked.check().learned  # its site, key and destination are there now
    first, before = answers(api), answers(api)
    during: dict[str, dict[str, Any]] = {}
    named: list[str] = []
    wait, read = DailyCheck._wait_for_analysis, DailyCheck._read_back

    def queued(self: DailyCheck) -> None:
        during["queued"] = answers(api)
        checked.parts.works = True
        wait(self)

    def delivered(self: DailyCheck) -> None:
        assert self._study is not None and self._access is not None
        during["delivered"] = answers(api)
        named.extend([
            str(self._study), self._reference.study_instance_uid, *self._reference.places, str(self._access.site_id),
            str(self._access.key_id), SITE, TITLE,
        ])  # fmt: skip
        uncounted(api.database, self._study, UUID(own))
        read(self)

    monkeypatch.setattr(DailyCheck, "_wait_for_analysis", queued)
    monkeypatch.setattr(DailyCheck, "_read_back", delivered)
    checked.parts.works = False
    assert told(checked.check()) == WELL
    assert len({name.split(" as ")[0] for name in before}) > 20  # routes
    steady = {name for name in before if first.get(name) == before[name] and not name.endswith(" text")}
    assert len(steady) > 200
    for moment, its in during.items():
        pairs = {name: (before[name], its.get(name)) for name in steady if its.get(name) != before[name]}
        # a minute may begin between the two; where there was no time before, there is none now
        other = {name: pair for name, pair in pairs.items() if not all(TIME.match(str(one)) for one in pair)}
        assert other == {}, moment
        assert {name for name in its if name not in before and name.endswith("length")} == set(), moment
        assert [name for name, text in its.items() if any(one in str(text) for one in named)] == [], moment
        assert any(own in str(text) for text in its.values())  # the hospital's own study is there
    with api.database.transaction() as session:
        site = session.scalars(select(SiteRow.id).where(SiteRow.checks)).one()
        for table in (StatisticRow, HoldingRow):
            counted = set(session.scalars(select(table.site_id)))
            assert counted and site not in counted, table


def uncounted(database: Database, study: UUID, own: UUID) -> None:
    """What is counted in other moments, or at night, leaves the check's study out as well."""
    with database.transaction() as session:
        now = db_now(session) + timedelta(minutes=5)
        while statistics.write_statistics(session, now):
            pass
        statistics.count_stored(session)
        run = BackfillRunRow(bundle="another", since=None, cursor_study=None)
        assert [row.id for row in backfill_history.outdated(session, run, 100)] == [own]
        assert backfill_history.count_outdated(session, run, 100) == 1
    with database.transaction() as session:
        before = all_status_counts(session), operations.last_analysed_at(session)
        its = update(AnalysisRow).where(AnalysisRow.study_id == study)
        session.execute(its.values(finished_at=func.now() + timedelta(hours=1)))
        session.execute(update(StudyRow).where(StudyRow.id == study).values(status=StoredStatus.QUARANTINED))
        session.execute(update(DeliveryRow).where(DeliveryRow.study_id == study).values(state="failed"))
        assert (all_status_counts(session), operations.last_analysed_at(session)) == before
        assert deliveries.list_undelivered(session, None, 100) == []
        assert destinations.list_destinations(session, None) == []
        session.rollback()


# -- for people and for Prometheus


def ended(checked: CheckedSystem, state: CheckState, **values: Any) -> CheckRow:
    with checked.api.database.transaction() as session:
        now = db_now(session)
        row = CheckRow(
            state=state, started_at=now, ended_at=now, step="analysed", model="a", engine="CPU",
            **{"steps": [{"step": "tidied", "seconds": 0.5}], **values},
        )  # fmt: skip
        session.add(row)
    return row


@pytest.mark.parametrize(
    ("state", "reason", "code", "words"),
    [
        (CheckState.WELL, "", 0, "well"),
        (CheckState.BROKEN, "no-worker", 1, "No worker is alive"),
        (CheckState.DRIFTED, "values-differ", 2, "Probabilities or heatmaps differ"),
        (CheckState.BEHIND, "queue-full", 3, "look at the queues"),
    ],
)
def test_how_it_ended_is_told_everywhere(
    checked: CheckedSystem, monkeypatch: pytest.MonkeyPatch, state: CheckState, reason: str, code: int, words: str
) -> None:
    """By the command's exit code, on the operations page and its troubles, and as metrics."""
    ended(checked, state, reason=reason, probability_deviation=0.25, heatmap_deviation=3)
    monkeypatch.setenv("OSTEON_API_URL", checked.settings.check_api_url)
    monkeypatch.setenv("OSTEON_KEY", checked.api.keys["operator"])
    ran = CliRunner().invoke(commands, ["check", "--last"])
    assert ran.exit_code == code
    assert words in ran.output
    as_json = CliRunner().invoke(commands, ["check", "--last", "--json"])
    assert (as_json.exit_code, json.loads(as_json.stdout)["state"]) == (code, state)
    overview = checked.api.http.get("/api/v1/operations", headers=checked.api.headers("operator")).json()
    assert overview["check"]["state"] == state
    troubles = [text for text in overview["troubles"] if "daily check" in text]
    assert len(troubles) == (state is not CheckState.WELL)
    page = checked.api.http.get("/operations", headers=checked.api.headers("operator", page=True)).text
    assert 'id="check"' in page
    assert (f"<b>{state}</b>" in page) == (state is not CheckState.WELL)
    metrics = checked.api.http.get("/metrics", headers=checked.api.headers("operator")).text
    for one in (CheckState.WELL, CheckState.BROKEN, CheckState.DRIFTED, CheckState.BEHIND):
        assert f'osteon_check_state{{state="{one}"}} {float(one is state)}' in metrics
    assert "osteon_check_probability_deviation 0.25" in metrics
    assert 'osteon_check_step_seconds{step="tidied"} 0.5' in metrics


def test_the_command_asks_follows_and_accepts(checked: CheckedSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """It prints each step once, and what is expected from then on."""
    monkeypatch.setenv("OSTEON_API_URL", checked.settings.check_api_url)
    monkeypatch.setenv("OSTEON_KEY", checked.api.keys["operator"])
    monkeypatch.setattr("infra.cli.checks.POLL_S", 0.02)
    stop = threading.Event()

    def process() -> None:
        while not stop.wait(0.02):
            look(checked.settings, checked.api.database, checked.stopping)

    thread = threading.Thread(target=process)
    thread.start()
    try:
        ran = CliRunner().invoke(commands, ["check", "--accept"])
    finally:
        stop.set()
        thread.join(LIMIT_S)
    assert ran.exit_code == 0, ran.output
    assert [line.split()[0] for line in ran.output.splitlines()[: len(CheckStep)]] == list(CheckStep)
    assert "expected from now on of a on CPU, OpenVINO bf16" in ran.output
    with checked.api.database.transaction() as session:
        assert len(session.scalars(select(CheckExpectationRow)).all()) == 1


def test_a_check_that_nobody_takes_is_told_so(checked: CheckedSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its process does not run."""
    monkeypatch.setenv("OSTEON_API_URL", checked.settings.check_api_url)
    monkeypatch.setenv("OSTEON_KEY", checked.api.keys["operator"])
    monkeypatch.setattr("infra.cli.checks.POLL_S", 0.01)
    monkeypatch.setattr("infra.cli.checks.TAKEN_WITHIN_S", 0.05)
    ran = CliRunner().invoke(commands, ["check"])
    assert ran.exit_code == 1
    assert "whether the process check runs" in ran.output


def test_a_check_that_did_not_run_is_told(checked: CheckedSystem) -> None:
    """For over 26 hours, of a system that is older."""

    def troubles() -> list[str]:
        overview = checked.api.http.get("/api/v1/operations", headers=checked.api.headers("operator")).json()
        return [text for text in overview["troubles"] if "daily check" in text]

    assert troubles() == []  # a new system
    with checked.api.database.transaction() as session:
        session.execute(update(BundleRow).values(activated_at=func.now() - timedelta(days=2)))
    (text,) = troubles()
    assert "26 hours" in text
    ended(checked, CheckState.WELL)
    assert troubles() == []
    with checked.api.database.transaction() as session:
        session.execute(update(CheckRow).values(ended_at=func.now() - timedelta(hours=27)))
    assert len(troubles()) == 1


def test_it_can_be_turned_off(make_api: Callable[..., InProcessApi]) -> None:
    """Nobody can ask for one then, and nothing tells that none runs."""
    api = make_api(daily_check=False)
    with api.database.transaction() as session:
        add_bundle(session, "a", "a" * 64, MANIFEST)
        activate_bundle(session, "a")
        session.execute(update(BundleRow).values(activated_at=func.now() - timedelta(days=9)))
    refused = api.http.post("/api/v1/checks", json={}, headers=api.headers("operator"))
    assert (refused.status_code, "OSTEON_DAILY_CHECK" in refused.json()["detail"]) == (409, True)
    overview = api.http.get("/api/v1/operations", headers=api.headers("operator")).json()
    assert (overview["check"], [text for text in overview["troubles"] if "daily check" in text]) == (None, [])
    metrics = api.http.get("/metrics", headers=api.headers("operator")).text
    assert "osteon_check_on 0.0" in metrics
    assert "osteon_check_ended_timestamp_seconds " not in metrics


def test_nobody_reaches_the_checks_site_from_outside(checked: CheckedSystem) -> None:
    """An operator can make no key there, nor find its key or its destination: it is as if there were no such site."""
    assert checked.check().learned
    http, headers = checked.api.http, checked.api.headers("operator")
    with checked.api.database.transaction() as session:
        key = session.scalars(select(KeyRow.id).where(KeyRow.name == TITLE)).one()
        destination = session.scalars(select(DestinationRow.id).where(DestinationRow.name == TITLE)).one()
        assert not session.scalars(select(WorkerRow.device)).all() == []
    wanted = {"name": "mine", "role": "admin", "site": SITE}
    assert http.post("/api/v1/keys", json=wanted, headers=headers).status_code == 404
    assert http.get(f"/api/v1/keys/{key}", headers=headers).status_code == 404
    assert http.post(f"/api/v1/keys/{key}/revoke", headers=headers).status_code == 404
    assert http.post(f"/api/v1/destinations/{destination}/enable", headers=headers).status_code == 404


def test_the_reference_study_is_new_each_time_and_names_nobody() -> None:
    """Its pixels stay, its UIDs do not, and none of them is of the sample that it is made of."""
    one, other = daily_check.Reference(), daily_check.Reference()
    assert one.digest == other.digest
    assert len(one.places) == len(REFERENCE)
    assert not {*one.places, one.study_instance_uid} & {*other.places, other.study_instance_uid}
    for mine, theirs in zip(one.images, other.images, strict=True):
        assert mine.PixelData == theirs.PixelData
        assert (mine.PatientName, mine.PatientID) == ("CHECK^DAILY", "OSTEON-CHECK")
        assert mine.SeriesInstanceUID != theirs.SeriesInstanceUID
        assert mine.file_meta.MediaStorageSOPInstanceUID == mine.SOPInstanceUID
