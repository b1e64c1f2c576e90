"""Mail: one message to one address, by the mail server that the settings name.

A message is made of codes, counts and our own words; its headers have one line each, and nothing of a study is in them.
Every wait ends: with the deadline of the whole, whatever the server sends meanwhile. Source: RFC 5321 (SMTP), RFC 3207
(STARTTLS), RFC 8314 (TLS from the beginning), RFC 5322, RFC 3834 (Auto-Submitted).
"""

import io
import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any
from uuid import UUID

from shared.domain.destinations import Answer, DeliveryReason, printable_words
from shared.domain.findings import RESEARCH_USE, shown_score
from shared.domain.notices import Event, NoticeContent
from worker.delivery import mllp
from worker.delivery.connections import Away, ClientContext, certificate_refusal

STARTTLS, TLS, PLAIN = "starttls", "tls", "none"  # OSTEON_MAIL_SECURITY
WAIT_S = 20.0  # for all of one message
GRACE_S = 5.0  # that a single wait has beyond the deadline, which ends it from outside and knows why
MAX_ANSWER_BYTES = 64 * 1024  # bytes of all that a server may answer
GREETED, TAKEN = 220, 250

SUBJECTS = {
    Event.OVERDUE: "a positive study waits beyond its target",
    Event.REVISED_FINDING: "a newer model finds something where the older one did not",
    Event.QUEUE_LATE: "studies wait too long for the model",
    Event.QUEUE_ON_TIME: "no study waits too long for the model any more",
    Event.DELIVERY_FAILED: "deliveries of results fail",
    Event.DELIVERY_WELL: "no delivery of results fails any more",
}


@dataclass(frozen=True)
class Server:
    """The mail server. context: for TLS; None: without. user: empty: without a login."""

    host: str
    port: int
    security: str
    context: ClientContext | None
    user: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True)
class MailNotice:
    """A notice as a mail tells it. study_id: None: it is about the site."""

    study_id: UUID | None
    content: NoticeContent


# -- what is written


def make_message(sender: str, recipient: str, told: Sequence[MailNotice], id_: str, when: datetime, page: str) -> bytes:
    """Write a message of notices.

    Args:
        sender: our address.
        recipient: the address.
        told: the notices, one at least.
        id_: unique, the same at each try.
        when: the time that it bears.
        page: address of the pages, without a slash at its end; empty: there are no links.

    Returns:
        The message, in lines that end in CR LF.
    """
    subject = SUBJECTS[told[0].content.event] if len(told) == 1 else f"{len(told)} notices"
    return _message(sender, recipient, subject, [line for one in told for line in (*_lines(one, page), "")], id_, when)


def make_test(sender: str, recipient: str, id_: str, when: datetime) -> bytes:
    """Write a message that only says that messages arrive.

    Args:
        sender: our address.
        recipient: the address.
        id_: unique.
        when: the time that it bears.

    Returns:
        The message, in lines that end in CR LF.
    """
    lines = ["Somebody tests whether notices arrive here. They do. There is nothing to do.", ""]
    return _message(sender, recipient, "test of notices", lines, id_, when)


def _message(sender: str, recipient: str, subject: str, lines: Sequence[str], id_: str, when: datetime) -> bytes:
    made = EmailMessage(SMTP)
    made["From"], made["To"], made["Subject"] = sender, recipient, f"Osteon: {subject}"
    made["Date"], made["Message-ID"] = format_datetime(when), f"<{id_}@{sender.rpartition('@')[2]}>"
    made["Auto-Submitted"] = "auto-generated"  # nobody's absence is to be answered to us
    made.set_content("\n".join([*lines, RESEARCH_USE, ""]), cte="quoted-printable")
    return made.as_bytes()


def _lines(told: MailNotice, page: str) -> list[str]:
    """What happened, in a sentence or two, and where to look."""
    content, since = told.content, f"{told.content.happened_at:%Y-%m-%d %H:%M} UTC"
    many = "1 study waits" if content.count == 1 else f"{content.count:,} studies wait"
    sent = "1 delivery" if content.count == 1 else f"{content.count:,} deliveries"
    words = {
        Event.OVERDUE: f"Nobody has read a positive study{_found(content)}. It should have been read by {since}.",
        Event.REVISED_FINDING: f"A newer model changed what was negative{_found(content)}, at {since}.",
        Event.QUEUE_LATE: f"{many} longer for the model than their queue should let them, at {since}.",
        Event.QUEUE_ON_TIME: f"Since {since} no study waits longer than its queue should let it.",
        Event.DELIVERY_FAILED: f"{sent} to the destination {content.about} failed, are held, or wait, at {since}.",
        Event.DELIVERY_WELL: f"Since {since} no delivery to the destination {content.about} fails, is held or waits.",
    }
    path = f"/view/{told.study_id}" if told.study_id else "/operations"
    where = f"{page}{path}" if page else f"Study {told.study_id}" if told.study_id else "Look at the page Operations."
    return [words[content.event], where]


def _found(content: NoticeContent) -> str:
    parts = [content.region, f"score {shown_score(content.score):.1f} of 10" if content.score is not None else ""]
    said = ", ".join(one for one in parts if one)
    return f" ({said})" if said else ""


# -- how it is sent


def send(server: Server, sender: str, recipient: str, message: bytes, wait_s: float) -> Answer:
    """Give the server a message.

    Args:
        server: which.
        sender: our address.
        recipient: the address.
        message: as `make_message` wrote it.
        wait_s: how long all of it may take, in seconds.

    Returns:
        What it answered.

    Raises:
        Away: it cannot be reached, does not answer, or refuses us.
    """
    try:
        with _open(server, sender, wait_s) as connection:
            connection.sendmail(sender, [recipient], message)
    except smtplib.SMTPRecipientsRefused as error:
        (code, words), *_ = error.recipients.values()
        return _answer(code, words)
    except smtplib.SMTPSenderRefused as error:
        answer = _answer(error.smtp_code, error.smtp_error)
        if answer.reason is DeliveryReason.REFUSED:  # and so it would refuse each message
            raise Away(Answer(DeliveryReason.ACCESS, answer.status, answer.words)) from None
        return answer
    except smtplib.SMTPResponseException as error:
        return _answer(error.smtp_code, error.smtp_error)
    return Answer(None, f"SMTP {TAKEN}")


@contextmanager
def _open(server: Server, sender: str, wait_s: float) -> Iterator[smtplib.SMTP]:
    """Greet the server, with TLS and the login that the settings have; leave it at the end. Raises Away."""
    connection = _Connection(server, sender.rpartition("@")[2], wait_s)
    ended = threading.Event()

    def end() -> None:
        ended.set()
        connection.cut()

    # a server that sends a byte now and then stays within each single wait: the whole one is ended from outside
    deadline = threading.Timer(wait_s, end)
    deadline.daemon = True
    deadline.start()
    try:
        connection.greet()
        yield connection
        with suppress(smtplib.SMTPException, OSError):
            connection.quit()
    except (smtplib.SMTPRecipientsRefused, smtplib.SMTPDataError, smtplib.SMTPSenderRefused):
        raise
    except (smtplib.SMTPException, mllp.Silent, mllp.WrongCertificate, OSError) as error:
        raise Away(_failure(error, server, late=ended.is_set())) from None
    finally:
        deadline.cancel()
        connection.close()


class _Connection(smtplib.SMTP):
    """smtplib's, bounded: its addresses and its wait as those of MLLP, and what it reads by MAX_ANSWER_BYTES."""

    def __init__(self, server: Server, name: str, wait_s: float) -> None:
        super().__init__(local_hostname=name, timeout=wait_s + GRACE_S)
        self._server, self._wait_s = server, wait_s
        self._host = server.host  # smtplib's, whose name the certificate is held to after STARTTLS

    def greet(self) -> None:
        server = self._server
        code, words = self.connect(server.host, server.port)
        if code != GREETED:
            raise smtplib.SMTPConnectError(code, words)
        if server.security == STARTTLS:
            self.ehlo_or_helo_if_needed()
            self.starttls(context=server.context)
        self.ehlo_or_helo_if_needed()
        if server.user:
            try:
                self.login(server.user, server.password)
            except smtplib.SMTPResponseException:
                raise
            except smtplib.SMTPException as error:
                raise _NoLogin from error

    def cut(self) -> None:
        """End it, from another thread: whoever waits for it goes on with an error."""
        sock: socket.socket | None = self.sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def getreply(self) -> tuple[int, bytes]:
        if self.file is None and self.sock is not None:
            self.file: Any = _Bounded(self.sock.makefile("rb"))
        return super().getreply()

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        tls = self._server.context if self._server.security == TLS else None
        sock = mllp.connect(mllp.Endpoint(host, port, tls), self._wait_s)
        sock.settimeout(timeout)
        return sock


class _NoLogin(smtplib.SMTPException):
    """The server offers no login that we know."""


class _Bounded:
    """What a server answers, a line at a time, up to MAX_ANSWER_BYTES."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self._left = file, MAX_ANSWER_BYTES

    def readline(self, limit: int) -> bytes:
        line = self._file.readline(limit)
        self._left -= len(line)
        if self._left < 0:
            raise OSError("the server's answers are too long")
        if line and not line.endswith(b"\n"):  # half of an answer may look like another one
            raise OSError("the server's answer has no end")
        return line

    def close(self) -> None:
        self._file.close()


def _failure(error: Exception, server: Server, *, late: bool) -> Answer:
    """What an error means of a server that was not given a message."""
    if late:
        return Answer(DeliveryReason.NO_ANSWER)
    if (refused := certificate_refusal(server.context)) is not None:
        return refused
    if isinstance(error, smtplib.SMTPResponseException):
        wrong_login = isinstance(error, smtplib.SMTPAuthenticationError)
        passing = 400 <= error.smtp_code < 500 and not wrong_login
        reason = DeliveryReason.REJECTED_FOR_NOW if passing else DeliveryReason.ACCESS
        return Answer(reason, f"SMTP {error.smtp_code}", _words(error.smtp_error))
    said: dict[type[Exception], str] = {
        _NoLogin: "it offers no login that we know", smtplib.SMTPNotSupportedError: "it offers no STARTTLS"
    }  # fmt: skip
    reasons: tuple[tuple[type[Exception], DeliveryReason], ...] = (
        (_NoLogin, DeliveryReason.ACCESS),
        (smtplib.SMTPNotSupportedError, DeliveryReason.CERTIFICATE),
        (mllp.WrongCertificate, DeliveryReason.CERTIFICATE),
        (ssl.SSLCertVerificationError, DeliveryReason.CERTIFICATE),
        (mllp.Silent, DeliveryReason.NO_ANSWER),
        (TimeoutError, DeliveryReason.NO_ANSWER),
        (smtplib.SMTPServerDisconnected, DeliveryReason.CUT),
        (smtplib.SMTPException, DeliveryReason.UNINTELLIGIBLE),
        (socket.gaierror, DeliveryReason.UNKNOWN_NAME),
        (OSError, DeliveryReason.UNREACHABLE),
    )
    return Answer(next(reason for kind, reason in reasons if isinstance(error, kind)), words=said.get(type(error), ""))


def _answer(code: int, words: bytes | str) -> Answer:
    """What a refusal of a message means: by the first digit it passes, or does not. Source: RFC 5321 4.2.1."""
    if code < 400:
        return Answer(DeliveryReason.UNINTELLIGIBLE)
    reason = DeliveryReason.BUSY if code < 500 else DeliveryReason.REFUSED
    return Answer(reason, f"SMTP {code}", _words(words))


def _words(said: bytes | str) -> str:
    return printable_words(said.decode("utf-8", "replace") if isinstance(said, bytes) else said)
