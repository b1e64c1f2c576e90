"""Who sends a request: an API key, or a login of the pages; refused keys are recorded, and throttled."""

import math
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from threading import Lock
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import HTTPException, Request
from sqlalchemy.orm import Session

from shared.db.engine import Database
from shared.db.tables import KeyRow
from shared.domain.security import EventKind, KeyRefusal, LoginEnd
from shared.queries import access, audit, logins
from shared.queries.access import Key
from shared.settings import Settings

KEY_USE_INTERVAL_S = 300.0  # the use of a key from one place is written down no more often
MAX_KNOWN_USES = 20_000  # pairs of key and place that a process remembers
KEY_MISSING = "Show a valid API key: Authorization: Bearer osk_…"


class KeyRejected(HTTPException):
    """401 or 429. code: a stable word, why."""

    def __init__(self, status: int, detail: str, code: str = "", wait: timedelta | None = None) -> None:
        retry = {"Retry-After": str(math.ceil(wait.total_seconds()))} if wait else {"WWW-Authenticate": "Bearer"}
        super().__init__(status, detail, retry)
        self.code = code


@dataclass
class KeyUsage:
    """Which keys this process has seen from where, and when it wrote that down last."""

    _recorded_at: dict[tuple[UUID, str], float] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def knows(self, key_id: UUID, network: str) -> bool:
        """Check whether this process has seen a key used from a network.

        Args:
            key_id: of the key.
            network: as audit.network_of returns it.

        Returns:
            Whether it has, as far as it remembers.
        """
        return (key_id, network) in self._recorded_at

    def is_due(self, key_id: UUID, network: str) -> bool:
        """Decide whether a use of a key is written down now; the next call within KEY_USE_INTERVAL_S returns False.

        Args:
            key_id: of the key.
            network: as audit.network_of returns it.

        Returns:
            Whether to write it down.
        """
        now = time.monotonic()
        with self._lock:
            if now - self._recorded_at.get((key_id, network), -KEY_USE_INTERVAL_S) < KEY_USE_INTERVAL_S:
                return False
            if len(self._recorded_at) >= MAX_KNOWN_USES:
                self._recorded_at.clear()
            self._recorded_at[key_id, network] = now
            return True


class Credentials:
    """Checks keys and logins; one for a process."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._database = database
        self._uses = KeyUsage()
        self._throttle = audit.Throttle(settings.failures_a_minute)
        self.limits = logins.Limits(timedelta(minutes=settings.idle_minutes), timedelta(hours=settings.session_hours))

    def verify_key(self, secret: str, address: str, kind: EventKind = EventKind.KEY_REFUSED) -> Key:
        """Find a valid key.

        A valid key has to wait only if it was never used from this place, and other keys are refused there just now.

        Args:
            secret: the key itself.
            address: where the request comes from.
            kind: of event, if it is refused.

        Returns:
            The key.

        Raises:
            KeyRejected: 401 with the reason, which only the holder of the secret learns; 429 after too many failures.
        """
        network = audit.network_of(address)
        with self._database.transaction() as session:
            row, why = access.look_up_key(session, secret)
            known = why is None and row is not None and self._is_known_use(session, row.id, network)
            wait = None if known else self._throttle.wait(session, network, row.id if row and why else None)
            if row is not None and why is None and wait is None:
                return self._record_use(session, replace(access.key_of_row(row), address=address))
            if why is not None and wait is None:
                holder = access.key_of_row(row) if row else None
                audit.record_failure(session, kind, self._throttle, holder, address, why)
        if wait is not None:
            seconds = math.ceil(wait.total_seconds())
            raise KeyRejected(429, f"Too many wrong keys from here; try again in {seconds} s", "throttled", wait)
        assert why is not None
        raise KeyRejected(401, _rejection_text(row, why), why)

    def log_in(self, key: Key) -> UUID:
        """Log a key in."""
        with self._database.transaction() as session:
            audit.record(session, EventKind.LOGIN, key)
            return logins.begin_login(session, key)

    def log_out(self, login: UUID, address: str) -> None:
        """Log out.

        Args:
            login: id of the login.
            address: where the request comes from.
        """
        with self._database.transaction() as session:
            found = logins.find_login(session, login, self.limits)
            if found is not None and found.ended is None:
                logins.end_login(session, login)
                audit.record(session, EventKind.LOGOUT, replace(found.key, address=address))

    def verify_login(self, login: UUID, address: str, *, active: bool) -> Key:
        """Find the key of a login.

        Args:
            login: id of the login.
            address: where the request comes from.
            active: whether the user does something just now, which keeps the login alive.

        Returns:
            The key.

        Raises:
            KeyRejected: 401; the login has ended, and the error says why.
        """
        with self._database.transaction() as session:
            found = logins.find_login(session, login, self.limits, active=active)
            if found is not None and found.ended is None:
                return self._record_use(session, replace(found.key, address=address, login=login))
        ended = found.ended if found else None
        raise KeyRejected(401, self.login_end_text(ended) if ended else KEY_MISSING, ended or "")

    def time_left(self, login: UUID) -> timedelta | None:
        """How long a login lasts without activity; None for one that has ended."""
        with self._database.transaction() as session:
            found = logins.find_login(session, login, self.limits)
        return found.left if found and not found.ended else None

    def login_end(self, login: UUID) -> LoginEnd | None:
        """Why a login ended, if it did."""
        with self._database.transaction() as session:
            found = logins.find_login(session, login, self.limits)
        return found.ended if found else None

    def login_end_text(self, ended: LoginEnd) -> str:
        """Why a login ended, in words for its user."""
        minutes, hours = round(self.limits.idle.total_seconds() / 60), round(self.limits.longest.total_seconds() / 3600)
        return {
            LoginEnd.LOGGED_OUT: "You are logged out.",
            LoginEnd.IDLE: f"You were logged out, because the page was not used for {minutes} minutes.",
            LoginEnd.REVOKED: "You were logged out, because your key was revoked. Ask your administrator for another.",
            LoginEnd.EXPIRED: "You were logged out, because your key has expired. Ask your administrator for another.",
            LoginEnd.OLD: f"You were logged out, because a login lasts {hours} hours at most.",
        }[ended]

    def still_valid(self, holders: set[logins.Holder]) -> set[logins.Holder]:
        """Those of these holders of open streams whose key and login are still valid."""
        with self._database.transaction() as session:
            return logins.valid_holders(session, holders, self.limits)

    def _is_known_use(self, session: Session, key_id: UUID, network: str) -> bool:
        return self._uses.knows(key_id, network) or access.is_known_use(session, key_id, network)

    def _record_use(self, session: Session, key: Key) -> Key:
        network = audit.network_of(key.address)
        if self._uses.is_due(key.id, network) and access.record_use(session, key.id, network):
            audit.record(session, EventKind.NEW_ADDRESS, key)
        return key


def _rejection_text(row: KeyRow | None, why: KeyRefusal) -> str:
    at = row and (row.revoked_at or row.expires_at)
    if at is None:
        return KEY_MISSING
    done = "was revoked" if why is KeyRefusal.REVOKED else "expired"
    return f"This key {done} on {at:%Y-%m-%d at %H:%M} UTC. Ask your administrator for another one"


def address(request: Request) -> str:
    """Where a request comes from: the peer, or the address that a trusted proxy (OSTEON_TRUSTED_PROXIES) names."""
    return request.client.host[:45] if request.client else ""


def is_active(request: Request) -> bool:
    """Whether the user is active: opens a page, or reports activity (POST /active). Pages' own requests are not."""
    if request.method == "POST":
        return request.url.path == "/active"
    mode = request.headers.get("sec-fetch-mode")
    if mode is not None:
        return mode == "navigate"
    # an old browser, or plain HTTP: scripts ask for JSON, or renew what they have
    return "text/html" in request.headers.get("accept", "") and "if-none-match" not in request.headers


def is_from_own_page(request: Request) -> bool | None:
    """Check whether one of our own pages sends a request.

    Another site, or another port of this host, cannot make a browser say so. Source: Fetch Metadata
    (https://www.w3.org/TR/fetch-metadata/); without it, as on plain HTTP, the header Origin (RFC 6454).

    Args:
        request: as it came.

    Returns:
        Whether it does; None if the browser does not say.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site == "same-origin"
    if origin is not None:
        return urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower() != ""
    return None
