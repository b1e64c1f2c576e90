"""What people are told of, and that it is told once: by mail and webhook, on real Postgres."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import func, select, update

from shared.db.clock import db_now
from shared.db.engine import Database
from shared.db.tables import AnalysisRow, BundleRow, DeliveryRow, DestinationRow, NoticeRow, RevisedFindingRow, SiteRow
from shared.domain.destinations import Destination, DestinationKind, Rule, is_within_hours
from shared.domain.findings import Assessment
from shared.domain.notices import ALARMS, Event, NoticeContent
from shared.domain.security import Role
from shared.domain.study import Priority
from shared.errors import BadRequest
from shared.queries import alarms, deliveries, notices, operations
from shared.queries.access import add_key, key_of_row
from shared.settings import Settings
from tests.conftest import InProcessApi
from tests.feedback_data import analyse
from tests.hospital import Hospital
from tests.integration.test_messages import ACCESSION, HERE, MANIFEST, NUMBER, Hooks, analysed
from tests.integration.test_notices import NUMBER as PATIENT_NUMBER
from tests.integration.test_notices import revise, sending, submitted
from tests.mail_server import HANGS, MailServer
from tests.pace import limit_s
from tests.results import Outbox, end_waits, only_delivery, rows
from worker.delivery import mail
from worker.delivery.sending import Sender

TO = "reading@hospital.example"
TOLD = Rule(events=ALARMS)
LIMITS = operations.queue_limits(4 * 3600.0, 7 * 86400.0)


@pytest.fixture
def server() -> Iterator[MailServer]:
    """The mail server."""
    with MailServer().open() as opened:
        yield opened


@pytest.fixture
def outbox(
    database: Database, make_settings: Callable[..., Settings], hospital: Hospital, server: MailServer
) -> Outbox:
    """The site's outbox, with a mail server."""
    settings = make_settings(
        lease_s=5.0, mail_host="127.0.0.1", mail_port=server.port, mail_security="none",
        mail_from="osteon@hospital.example", page_url="https://osteon.example/",
    )  # fmt: skip
    with database.transaction() as session:
        session.execute(update(BundleRow).values(manifest=MANIFEST))
        row = add_key(session, "north", "an admin", Role.ADMIN, "osk_messages")
        assert row is not None
        key = replace(key_of_row(row), site_id=hospital.site_id)
    return Outbox(database, settings, hospital.site_id, key)


def by_mail(outbox: Outbox, *rules: Rule, name: str = "ROOM") -> UUID:
    return outbox.add(Destination(DestinationKind.MAIL, address=TO), *(rules or (TOLD,)), name=name)


def watch(outbox: Outbox) -> int:
    """As a process that sends looks every few seconds."""
    sender = Sender(outbox.settings, outbox.database, outbox.store)
    written = sender.watch()
    sender.close()
    return written


def overdue(outbox: Outbox, hospital: Hospital, assessment: Assessment = Assessment.POSITIVE, **values: Any) -> UUID:
    """A study that should have been read a moment ago."""
    study = analysed(outbox, hospital, assessment)
    with outbox.database.transaction() as session:
        now = db_now(session)
    hospital.set(study, analysed_at=now, due_at=now, **values)
    return study


def events(outbox: Outbox) -> list[str]:
    return [row.event for row in sorted(rows(outbox.database, NoticeRow), key=lambda row: row.noted_at)]


# -- a positive study waits


def test_a_positive_that_waits_is_told_once_and_names_nobody(
    outbox: Outbox, hospital: Hospital, server: MailServer
) -> None:
    """However many look, however often, at the same time; others are not told."""
    by_mail(outbox)
    study = overdue(outbox, hospital)
    overdue(outbox, hospital, Assessment.NEGATIVE)
    with outbox.database.transaction() as session:
        now = db_now(session)
    overdue(outbox, hospital, read_at=now)
    hospital.set(analysed(outbox, hospital), analysed_at=now, due_at=now + timedelta(hours=1))
    hospital.set(analysed(outbox, hospital), analysed_at=now - timedelta(days=2), due_at=now - timedelta(days=2))
    with ThreadPoolExecutor(2) as both:
        found = [both.submit(watch, outbox) for _ in range(6)]
        assert sum(one.result() for one in found) == 1
        assert [one.result() for one in [both.submit(outbox.send) for _ in range(4)]] == [None] * 4
    assert events(outbox) == ["positive.overdue"]
    assert [(sender, to) for sender, to, _ in server.received] == [("osteon@hospital.example", [TO])]
    (message,) = server.messages
    assert message["Subject"] == "Osteon: a positive study waits beyond its target"
    text = message.get_content()
    assert f"https://osteon.example/view/{study}" in text
    assert "(hand, score 8.3 of 10)" in text
    whole = server.received[0][2].decode() + json.dumps([row.told for row in rows(outbox.database, NoticeRow)])
    assert not [one for one in (NUMBER, ACCESSION, "nwald") if one in whole]


def test_many_go_in_one_mail(outbox: Outbox, hospital: Hospital, server: MailServer) -> None:
    """A night's worth wakes nobody forty times; each is noted as sent, and none goes again."""
    by_mail(outbox)
    for _ in range(3):
        overdue(outbox, hospital)
    assert watch(outbox) == 3
    outbox.send()
    outbox.send()
    (message,) = server.messages
    assert message["Subject"] == "Osteon: 3 notices"
    assert message.get_content().count("https://osteon.example/view/") == 3
    assert [row.state for row in rows(outbox.database, DeliveryRow)] == ["sent"] * 3


def test_what_was_read_before_it_could_be_told_is_not_told(
    outbox: Outbox, hospital: Hospital, server: MailServer
) -> None:
    by_mail(outbox)
    study = overdue(outbox, hospital)
    assert watch(outbox) == 1
    with outbox.database.transaction() as session:
        assert notices.write_next_deliveries(session, "UTC") == "told"
        now = db_now(session)
    hospital.set(study, read_at=now)
    outbox.send()
    row = only_delivery(outbox.database)
    assert (row.state, row.reason, server.received) == ("withdrawn", "not-true-now", [])


def test_nothing_goes_to_an_address_that_nobody_named(outbox: Outbox, hospital: Hospital, server: MailServer) -> None:
    """Without a destination, with one that is disabled, with one whose rules want something else, or of before."""
    early = overdue(outbox, hospital)
    by_mail(outbox, Rule(events=(Event.QUEUE_LATE,)), name="OTHER")
    by_mail(outbox, name="OFF")
    with outbox.database.transaction() as session:
        off = DestinationRow.name == "OFF"
        session.execute(update(DestinationRow).where(off).values(disabled_at=func.now()))
    by_mail(outbox, name="LATER")
    overdue(outbox, hospital)
    assert watch(outbox) == 2
    outbox.send()
    ((_, to, message),) = server.received
    assert to == [TO]
    assert str(early).encode() not in message


# -- quiet hours


def hours(database: Database, zone: str) -> tuple[int, int, int]:
    """The hour that it is, and the next two."""
    with database.transaction() as session:
        hour = db_now(session).astimezone(ZoneInfo(zone)).hour
    return hour, (hour + 1) % 24, (hour + 2) % 24


def test_in_quiet_hours_nothing_is_sent_at_any_try(outbox: Outbox, hospital: Hospital, server: MailServer) -> None:
    """By the site's clock; it goes once they are over, and not in between, however often it is tried again."""
    zone = "Asia/Kolkata"
    outbox.settings = outbox.settings.model_copy(update={"backfill_timezone": zone})
    now, begins, ends = hours(outbox.database, zone)
    by_mail(outbox, replace(TOLD, hour_from=begins, hour_to=ends))
    overdue(outbox, hospital)
    assert watch(outbox) == 1
    outbox.send()
    row = only_delivery(outbox.database)
    assert row.next_at.astimezone(ZoneInfo(zone)).hour == begins
    end_waits(outbox.database)  # as a try that failed a moment before the hours ended, and is due again
    outbox.send()
    assert (only_delivery(outbox.database).state, server.received) == ("waiting", [])
    with outbox.database.transaction() as session:
        session.execute(update(DeliveryRow).values(hour_from=now, hour_to=begins))
    outbox.send()
    assert (only_delivery(outbox.database).state, len(server.received)) == ("sent", 1)


@pytest.mark.parametrize(("begin", "end"), [(0, 0), (7, 19), (19, 7), (0, 1), (23, 0), (1, 0)])
def test_postgres_and_rules_agree_on_hours(outbox: Outbox, begin: int, end: int) -> None:
    with outbox.database.transaction() as session:
        now = db_now(session).replace(minute=0, second=0)
        for hour in range(24):
            at = now.replace(hour=hour)
            condition = deliveries._may_go(at, "UTC")
            row = select(DeliveryRow).where(condition).compile(compile_kwargs={"literal_binds": True})
            assert str(row)
            literal = str(condition.compile(compile_kwargs={"literal_binds": True}))
            literal = literal.replace("deliveries.hour_from", str(begin)).replace("deliveries.hour_to", str(end))
            found = session.connection().exec_driver_sql(f"SELECT {literal}").scalar()
            assert found is is_within_hours(begin, end, hour), (hour, literal)


# -- what lasts: a late queue, deliveries that fail


def late_study(hospital: Hospital) -> tuple[UUID, datetime]:
    """An urgent study that waits for longer than it should."""
    study = hospital.study(priority=Priority.URGENT)
    with hospital.database.transaction() as session:
        now = db_now(session)
    hospital.set(study, queued_at=now - timedelta(minutes=3))
    return study, now


def test_a_late_queue_is_told_when_it_begins_and_when_it_ends(
    outbox: Outbox, hospital: Hospital, server: MailServer
) -> None:
    """Not each time that somebody looks; nor for a study that just passes the limit."""
    by_mail(outbox)
    assert watch(outbox) == 0
    study, now = late_study(hospital)
    with ThreadPoolExecutor(2) as both:
        assert sum(one.result() for one in [both.submit(watch, outbox) for _ in range(6)]) == 1
    hospital.set(study, queued_at=now - timedelta(seconds=90))  # another one is the oldest now
    assert watch(outbox) == 0
    outbox.send()
    hospital.set(study, queued_at=now)
    assert watch(outbox) == 1
    assert watch(outbox) == 0
    outbox.send()
    assert events(outbox) == ["queue.late", "queue.on-time"]
    assert [one["Subject"] for one in server.messages] == [
        "Osteon: studies wait too long for the model", "Osteon: no study waits too long for the model any more"
    ]  # fmt: skip
    text = server.messages[0].get_content()
    assert "1 study waits longer" in text
    assert "https://osteon.example/operations" in text
    hospital.set(study, queued_at=now - timedelta(minutes=3))
    assert watch(outbox) == 1  # it begins again
    outbox.send()
    assert len(server.received) == 3


def test_what_begins_and_ends_in_quiet_hours_is_not_told(
    outbox: Outbox, hospital: Hospital, server: MailServer
) -> None:
    """In the morning nobody needs to know of either."""
    _, begins, ends = hours(outbox.database, "UTC")
    by_mail(outbox, replace(TOLD, hour_from=begins, hour_to=ends))
    study, now = late_study(hospital)
    assert watch(outbox) == 1
    outbox.send()
    hospital.set(study, queued_at=now)
    assert watch(outbox) == 1
    outbox.send()
    with outbox.database.transaction() as session:
        session.execute(update(DeliveryRow).values(hour_from=0, hour_to=0))
    end_waits(outbox.database)
    outbox.send()
    row = only_delivery(outbox.database)
    assert (row.state, row.reason, server.received) == ("withdrawn", "not-true-now", [])


def test_deliveries_that_fail_are_told_elsewhere(outbox: Outbox, hospital: Hospital, server: MailServer) -> None:
    """By name and number, once while it lasts; not to the destination that fails; and that it is over."""
    by_mail(outbox)
    with Hooks(statuses=[400]).open() as hooks:
        rule = Rule(events=(Event.ANALYSED, Event.DELIVERY_FAILED), when="analysed")  # type: ignore[arg-type]
        failing = outbox.add(hooks.destination(), rule, name="EVENTS")
        analysed(outbox, hospital)
        outbox.send()
        assert watch(outbox) == 1
        assert watch(outbox) == 0
        outbox.send()
        (message,) = server.messages
        assert "1 delivery to the destination EVENTS failed" in message.get_content()
        assert len(hooks.received) == 1
        with outbox.database.transaction() as session:
            assert deliveries.send_all_again(session, outbox.key, failing) == 1
        outbox.send()
        assert watch(outbox) == 1
        outbox.send()
    assert "no delivery to the destination EVENTS fails" in server.messages[1].get_content()
    assert [one for one in events(outbox) if one.startswith("delivery.")] == ["delivery.failed", "delivery.well"]


def test_a_webhook_is_told_too(outbox: Outbox, hospital: Hospital) -> None:
    """Ids, codes, counts and a link: nothing else."""
    with Hooks().open() as hooks:
        outbox.add(hooks.destination(), TOLD, name="EVENTS")
        study = overdue(outbox, hospital)
        late_study(hospital)
        assert watch(outbox) == 2
        outbox.send()
        told = {one["type"]: one["data"] for one in hooks.bodies}
    assert told["queue.late"] == {"count": 1, "link": "https://osteon.example/operations"}
    assert told["positive.overdue"].keys() <= {
        "study_id", "study_instance_uid", "status", "assessment", "region", "model", "link"
    }  # fmt: skip
    assert told["positive.overdue"]["link"] == f"https://osteon.example/view/{study}"


# -- a mail server that is bad


def test_a_mail_server_that_hangs_hurts_nothing_else(
    outbox: Outbox, hospital: Hospital, server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other destinations get theirs in the same look; the mail waits, and goes once the server answers."""
    monkeypatch.setattr(mail, "WAIT_S", limit_s(0.2))
    server.answers = {"EHLO": HANGS}
    by_mail(outbox)
    with Hooks().open() as hooks:
        outbox.add(hooks.destination(), TOLD, name="EVENTS")
        overdue(outbox, hospital)
        assert watch(outbox) == 1
        outbox.send()
        assert len(hooks.received) == 1
        states = {row.state: row.reason for row in rows(outbox.database, DeliveryRow)}
        assert states == {"sent": "", "waiting": "no-answer"}
        server.answers = {}
        end_waits(outbox.database)
        outbox.send()
        assert (len(hooks.received), len(server.received)) == (1, 1)
    assert {row.state for row in rows(outbox.database, DeliveryRow)} == {"sent"}


def test_an_address_that_is_refused_waits_for_a_person(outbox: Outbox, hospital: Hospital, server: MailServer) -> None:
    """It is no matter of the next mail; what passes is tried again, all of it."""
    server.answers = {"RCPT": b"451 later\r\n"}
    by_mail(outbox)
    for _ in range(2):
        overdue(outbox, hospital)
    assert watch(outbox) == 2
    outbox.send()
    found = [(row.state, row.reason, row.attempts) for row in rows(outbox.database, DeliveryRow)]
    assert found == [("waiting", "busy", 1)] * 2
    server.answers = {"RCPT": b"550 nobody\r\n"}
    end_waits(outbox.database)
    outbox.send()
    found = [(row.state, row.reason, row.status) for row in rows(outbox.database, DeliveryRow)]
    assert found == [("failed", "refused", "SMTP 550")] * 2
    assert server.received == []


def test_a_test_sends_a_mail_that_says_so(outbox: Outbox, server: MailServer, tmp_path: Any) -> None:
    """Without a server, and with a password that cannot be read or would go in the clear, it says what to do."""
    by_mail(outbox)

    def tried(**changes: Any) -> tuple[str, str]:
        outbox.settings = outbox.settings.model_copy(update=changes)
        with outbox.database.transaction() as session:
            session.execute(update(DestinationRow).values(test_asked_at=func.now()))
        outbox.send()
        (row,) = rows(outbox.database, DestinationRow)
        return row.test_reason, row.test_words

    assert tried() == ("", "")
    (message,) = server.messages
    assert message["Subject"] == "Osteon: test of notices"
    reason, words = tried(mail_user="us")
    assert (reason, "TLS alone" in words) == ("no-mail-server", True)
    reason, words = tried(mail_user="us", mail_security="starttls", mail_password_file=tmp_path / "none")
    assert (reason, "OSTEON_MAIL_PASSWORD_FILE" in words) == ("no-mail-server", True)
    assert str(tmp_path) not in words
    assert tried(mail_host="")[0] == "no-mail-server"
    assert len(server.received) == 1


# -- by the API


def test_a_revised_finding_is_told_and_shown_to_browsers(
    make_api: Callable[..., InProcessApi], server: MailServer
) -> None:
    """From the run over history to the mail; until a reader has seen it."""
    api = make_api(
        lease_s=20.0, mail_host="127.0.0.1", mail_port=server.port, mail_security="none",
        mail_from="osteon@hospital.example",
    )  # fmt: skip
    sender = sending(api)
    wanted = {"name": "ROOM", "kind": "mail", "address": TO}
    response = api.http.post("/api/v1/destinations", json=wanted, headers=api.headers())
    assert response.status_code == 201, response.text
    assert response.json()["rules"][0]["events"] == [*ALARMS]
    study = submitted(api, 1)
    analyse(api, study, assessment=Assessment.NEGATIVE)
    sender.send()
    assert server.received == []
    revise(api, study, Assessment.POSITIVE)
    sender.send()
    sender.send()
    (message,) = server.messages
    assert "newer model" in message["Subject"]
    assert PATIENT_NUMBER.encode() not in server.received[0][2]
    (told,) = api.http.get("/api/v1/notices", headers=api.headers("radiologist")).json()["notices"]
    assert (told["event"], told["study_id"]) == ("finding.revised", study)
    with api.database.transaction() as session:
        session.execute(update(RevisedFindingRow).values(seen_at=func.now()))
        session.execute(update(DeliveryRow).values(state="waiting"))
    sender.send()
    assert len(server.received) == 1


def test_a_browser_gets_what_its_role_is_told(outbox: Outbox, hospital: Hospital, in_process: InProcessApi) -> None:
    """Of its own site alone; a radiologist is told of studies, an administrator of the rest as well."""
    with in_process.database.transaction() as session:
        now = db_now(session)
        told = NoticeContent(Event.QUEUE_LATE, now, now, "", count=2)
        sites = (
            in_process.key("admin").site_id,
            session.scalars(select(SiteRow.id).where(SiteRow.name == "north")).one(),
        )
        session.add_all(
            NoticeRow(site_id=site, event=told.event, happened_at=now, told=told.as_json()) for site in sites
        )

    def asked(role: str, query: str = "") -> Any:
        response = in_process.http.get(f"/api/v1/notices{query}", headers=in_process.headers(role))
        assert response.status_code == 200, response.text
        return response.json()

    assert asked("radiologist")["notices"] == []
    answer = asked("admin")
    assert [(one["event"], one["count"], one["study_id"]) for one in answer["notices"]] == [("queue.late", 2, None)]
    assert asked("admin", f"?after={answer['at']}") | {"at": ""} == answer | {"at": ""}  # once more, by the same id
    assert asked("admin", f"?after={(now + timedelta(minutes=1)).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")["notices"] == []
    refused = in_process.http.get("/api/v1/notices", headers=in_process.headers("submitter"))
    assert refused.status_code == 403


def test_a_rule_that_mail_cannot_keep_is_refused(outbox: Outbox) -> None:
    with pytest.raises(BadRequest, match="Mail tells"):
        by_mail(outbox, Rule(events=(Event.READ,)))
    with outbox.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(AnalysisRow)) == 0
        assert alarms.record_alarms(session, LIMITS) == 0
    assert HERE
