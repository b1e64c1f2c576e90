"""A mail server on loopback that keeps what it is given, and can be as bad as real ones."""

import base64
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

from tests.pace import limit_s

HANGS = b""  # as an answer: none comes, and the line stays open
CUTS = b"cut"  # as an answer: the line ends
DRIPS = b"drip"  # as an answer: a byte every now and then, which never becomes one


@dataclass
class MailServer:
    """Takes mail for anybody.

    answers: by command, as "RCPT", or "GREETING" and "MESSAGE": what it says instead. context: its certificate. login:
    a name and a password that it wants. at_once: TLS from the beginning.
    """

    answers: Mapping[str, bytes] = field(default_factory=dict)
    context: ssl.SSLContext | None = None
    at_once: bool = False
    login: tuple[str, str] | None = None
    port: int = 0
    received: list[tuple[str, list[str], bytes]] = field(default_factory=list)  # sender, recipients, message
    commands: list[str] = field(default_factory=list)  # whole, with "TLS " before those that came by TLS

    @property
    def messages(self) -> list[EmailMessage]:
        """What was received, read."""
        return [message_from_bytes(one, policy=default) for _, _, one in self.received]

    @contextmanager
    def open(self) -> Iterator["MailServer"]:
        """Listen during the block."""
        stopping, held = threading.Event(), []
        with socket.create_server(("127.0.0.1", self.port)) as server:
            self.port = server.getsockname()[1]

            def serve() -> None:
                while not stopping.is_set():
                    with suppress(OSError):
                        plain, _ = server.accept()
                        held.append(plain)
                        talk = threading.Thread(target=self._talk, args=(plain, stopping), daemon=True)
                        talk.start()

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            try:
                yield self
            finally:
                stopping.set()
                with suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)
                for one in held:
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
        thread.join(limit_s(10))

    def _talk(self, line: socket.socket, stopping: threading.Event) -> None:
        with suppress(OSError):
            secure = self.context is not None and self.at_once
            if self.context is not None and secure:
                line = self.context.wrap_socket(line, server_side=True)
            _Dialogue(self, line, stopping, secure=secure).run()
        line.close()


class _Dialogue:
    def __init__(self, server: MailServer, line: socket.socket, stopping: threading.Event, *, secure: bool) -> None:
        self.server, self.line, self.stopping, self.secure = server, line, stopping, secure
        self.read, self.sender, self.recipients = line.makefile("rb"), "", list[str]()

    def run(self) -> None:
        if not self.say("GREETING", b"220 mail.example ready\r\n"):
            return
        while raw := self.read.readline():
            verb, _, rest = raw.decode("ascii", "replace").strip().partition(" ")
            command = f"{verb.upper()} {rest}".strip()
            self.server.commands.append(f"{'TLS ' if self.secure else ''}{command}")
            verb = verb.upper()
            if not self.say(verb, self.answer(verb, command)):
                return
            if verb == "STARTTLS" and self.server.context is not None:
                self.line = self.server.context.wrap_socket(self.line, server_side=True)
                self.read, self.secure = self.line.makefile("rb"), True
            if verb == "DATA" and not self.take_message():
                return

    def answer(self, verb: str, command: str) -> bytes:
        if verb == "EHLO":
            offers = ["STARTTLS"] if self.server.context and not self.secure else []
            offers += ["AUTH PLAIN"] if self.server.login else []
            return b"".join(f"250-{one}\r\n".encode() for one in ["mail.example", *offers]) + b"250 SIZE 1000000\r\n"
        if verb == "AUTH":
            _, name, password = base64.b64decode(command.split(" ")[2]).decode().split("\0")
            return b"235 in\r\n" if (name, password) == self.server.login else b"535 5.7.8 unknown login\r\n"
        if verb == "MAIL":
            self.sender, self.recipients = command.partition("<")[2].partition(">")[0], []
        if verb == "RCPT":
            self.recipients.append(command.partition("<")[2].partition(">")[0])
        return {"DATA": b"354 go on\r\n", "STARTTLS": b"220 go on\r\n", "QUIT": b"221 bye\r\n"}.get(verb, b"250 ok\r\n")

    def take_message(self) -> bool:
        taken = b""
        while not taken.endswith(b"\r\n.\r\n"):
            piece = self.read.readline()
            if not piece:
                return False
            taken += piece
        message = taken.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n.")
        said = self.server.answers.get("MESSAGE", b"250 taken\r\n")
        if said.startswith(b"2"):
            self.server.received.append((self.sender, list(self.recipients), message))
        return self.say("MESSAGE", b"250 taken\r\n")

    def say(self, verb: str, usual: bytes) -> bool:
        """Answer; returns whether the line stays."""
        said = self.server.answers.get(verb, usual)
        if said == HANGS:
            self.stopping.wait(limit_s(60))
            return False
        if said == CUTS:
            return False
        if said == DRIPS:
            while not self.stopping.wait(0.05):
                self.line.sendall(b"2")
            return False
        self.line.sendall(said)
        return True
