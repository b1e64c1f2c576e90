"""Mail: what stands in a message, and what a server's answers mean, by a real server on loopback."""

import inspect
import smtplib
import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from uuid import UUID

import pytest

from shared.domain.destinations import Answer, DeliveryReason, Destination, DestinationKind
from shared.domain.notices import ALARMS, BEGUN_BY, Event, NoticeContent
from shared.settings import Settings
from tests.certificates import Certificates
from tests.mail_server import CUTS, DRIPS, HANGS, MailServer
from tests.pace import limit_s
from worker.delivery.connections import Away, client_context
from worker.delivery.mail import MailNotice, Server, make_message, make_test, send

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
STUDY = UUID("0199d2e4-7c1a-7b3e-9f2a-5d6c8e0f1a2b")
POSITIVE = NoticeContent(Event.OVERDUE, NOON, NOON, "analysed", "positive", "hand", score=8.3)
FROM, TO = "osteon@hospital.example", "reading@hospital.example"
HEADERS = {
    "from", "to", "subject", "date", "message-id", "auto-submitted", "mime-version", "content-type",
    "content-transfer-encoding",
}  # fmt: skip
MESSAGE = make_test(FROM, TO, "one", NOON)


def written(*told: MailNotice, page: str = "https://osteon.example") -> str:
    """The text of a message, whose headers are checked."""
    made = message_from_bytes(make_message(FROM, TO, told, "abc", NOON, page), policy=default)
    assert {name.lower() for name in made.keys()} == HEADERS
    assert (made["To"], made["From"], made["Message-ID"]) == (TO, FROM, "<abc@hospital.example>")
    return f"{made['Subject']}\n{made.get_content()}"


def test_a_message_says_what_happened_and_where_to_look() -> None:
    text = written(MailNotice(STUDY, POSITIVE))
    assert "Osteon: a positive study waits beyond its target" in text
    assert (
        "Nobody has read a positive study (hand, score 8.3 of 10). It should have been read by 2026-11-30 12:00" in text
    )
    assert f"https://osteon.example/view/{STUDY}" in text
    assert "esearch use" in text
    assert str(STUDY) in written(MailNotice(STUDY, POSITIVE), page="")


@pytest.mark.parametrize("event", [*ALARMS, *BEGUN_BY])
def test_each_event_has_its_words(event: Event) -> None:
    """Several go in one message."""
    told = MailNotice(None, NoticeContent(event, NOON, NOON, "", count=3, about="PACS"))
    assert "None" not in written(told)
    both = written(told, MailNotice(STUDY, POSITIVE))
    assert "Osteon: 2 notices" in both
    assert "should have been read by" in both


def test_no_value_becomes_a_header() -> None:
    """Whatever a name or a region is made of, it stands in the text, and the headers are ours."""
    hostile = "PACS\r\nBcc: thief@example.org\r\n\r\n.\r\nMAIL FROM:<x@y>"
    content = replace(POSITIVE, event=Event.DELIVERY_FAILED, about=hostile, region=hostile, count=2)
    assert "thief@example.org" in written(MailNotice(None, content))
    with MailServer().open() as server:
        made = make_message(FROM, TO, [MailNotice(None, content)], "abc", NOON, "")
        assert sent(server, message=made) == Answer(None, "SMTP 250")
        assert [(one, to) for one, to, _ in server.received] == [(FROM, [TO])]
        assert [one.split(" ")[0] for one in server.commands] == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]
        assert server.messages[0]["Bcc"] is None


def sent(
    server: MailServer, settings: Settings | None = None, *, security: str = "none", user: str = "", wait_s: float = 5.0,
    password: str = "right", message: bytes = MESSAGE,
) -> Answer:  # fmt: skip
    """Give a server a message."""
    context = client_context(settings, Destination(DestinationKind.MAIL)) if settings else None
    wanted = Server("localhost", server.port, security, context, user, password)
    return send(wanted, FROM, TO, message, limit_s(wait_s))


@pytest.mark.parametrize(
    ("verb", "said", "reason"),
    [
        ("RCPT", b"550 5.1.1 nobody\r\n", DeliveryReason.REFUSED),
        ("RCPT", b"450 4.2.0 greylisted\r\n", DeliveryReason.BUSY),
        ("MAIL", b"451 later\r\n", DeliveryReason.BUSY),
        ("MESSAGE", b"452 no room\r\n", DeliveryReason.BUSY),
        ("MESSAGE", b"554 spam\r\n", DeliveryReason.REFUSED),
        ("MESSAGE", b"what?\r\n", DeliveryReason.UNINTELLIGIBLE),
    ],
)
def test_a_message_that_is_refused(verb: str, said: bytes, reason: DeliveryReason) -> None:
    """By the first digit it passes or does not; the server's words are kept."""
    with MailServer({verb: said}).open() as server:
        answer = sent(server)
    assert answer.reason is reason
    if reason is not DeliveryReason.UNINTELLIGIBLE:
        assert (answer.status, answer.words) == (f"SMTP {said[:3].decode()}", said[4:].decode().strip())


@pytest.mark.parametrize(
    ("verb", "said", "reason"),
    [
        ("GREETING", b"421 busy\r\n", DeliveryReason.REJECTED_FOR_NOW),
        ("GREETING", b"554 not you\r\n", DeliveryReason.ACCESS),
        ("GREETING", CUTS, DeliveryReason.CUT),
        ("MAIL", b"553 not from there\r\n", DeliveryReason.ACCESS),
        ("DATA", CUTS, DeliveryReason.CUT),
        ("GREETING", b"220 x\r\n" * 1 + b"250-y\r\n" * 20000, DeliveryReason.CUT),  # what is too long is not read on
    ],
)
def test_a_server_that_takes_nothing_just_now(verb: str, said: bytes, reason: DeliveryReason) -> None:
    with MailServer({verb: said}).open() as server, pytest.raises(Away) as caught:
        sent(server)
    assert caught.value.answer.reason is reason


@pytest.mark.parametrize(("verb", "said"), [("GREETING", HANGS), ("MESSAGE", HANGS), ("EHLO", DRIPS), ("RCPT", DRIPS)])
def test_a_server_that_hangs_or_drips_has_one_deadline(verb: str, said: bytes) -> None:
    """However little comes however often: the whole of it ends."""
    began = time.monotonic()
    with MailServer({verb: said}).open() as server, pytest.raises(Away) as caught:
        sent(server, wait_s=0.2)
    assert caught.value.answer.reason is DeliveryReason.NO_ANSWER
    assert time.monotonic() - began < limit_s(30)


def test_a_server_that_hangs_at_the_end_has_the_message() -> None:
    with MailServer({"QUIT": HANGS}).open() as server:
        assert sent(server, wait_s=0.2).reason is None
        assert len(server.received) == 1


def test_nobody_is_there() -> None:
    with MailServer().open() as server:
        pass
    with pytest.raises(Away) as caught:
        sent(server)
    assert caught.value.answer.reason is DeliveryReason.UNREACHABLE


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Settings, Settings]:
    """A server's side, settings that trust it, and settings that trust another one."""
    certificates = Certificates(tmp_path)
    (certificate, key, _), (other, _, _) = (certificates.make(name) for name in ("mail", "other"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, Settings(delivery_tls_authorities=certificate), Settings(delivery_tls_authorities=other)


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_login_and_a_message_go_by_tls_alone(tls: tuple[ssl.SSLContext, Settings, Settings], security: str) -> None:
    """The certificate is checked before anything of worth is sent."""
    context, trusting, mistrusting = tls
    with MailServer(context=context, at_once=security == "tls", login=("us", "right")).open() as server:
        with pytest.raises(Away) as caught:
            sent(server, mistrusting, security=security, user="us")
        assert caught.value.answer.reason is DeliveryReason.CERTIFICATE
        assert not [one for one in server.commands if one.split(" ")[0] not in ("EHLO", "STARTTLS", "QUIT")]
        with pytest.raises(Away) as caught:
            sent(server, trusting, security=security, user="us", password="wrong")
        assert caught.value.answer.reason is DeliveryReason.ACCESS
        assert caught.value.answer.status == "SMTP 535"
        assert sent(server, trusting, security=security, user="us") == Answer(None, "SMTP 250")
        assert [one for one in server.commands if "AUTH" in one or "MAIL" in one]
        assert not [one for one in server.commands if ("AUTH" in one or "MAIL" in one) and not one.startswith("TLS ")]


def test_without_starttls_nothing_is_sent(tls: tuple[ssl.SSLContext, Settings, Settings]) -> None:
    """Whoever removes the offer gets nothing."""
    with MailServer(login=("us", "right")).open() as server, pytest.raises(Away) as caught:
        sent(server, tls[1], security="starttls", user="us")
    assert caught.value.answer.reason is DeliveryReason.CERTIFICATE
    assert not [one for one in server.commands if "AUTH" in one or "MAIL" in one]


def test_what_smtplib_keeps_to_itself_is_as_it_was() -> None:
    """The connection overrides how it is opened and read, and names the host to which the certificate is held."""
    assert list(inspect.signature(vars(smtplib.SMTP)["_get_socket"]).parameters) == ["self", "host", "port", "timeout"]
    assert "server_hostname=self._host" in inspect.getsource(smtplib.SMTP.starttls)
    assert "self.file is None" in inspect.getsource(smtplib.SMTP.getreply)
