"""What a key and its site may send within an hour, counted in Postgres, which all API processes share."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, and_, bindparam, cast, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db.clock import db_now
from shared.db.tables import UploadUsageRow
from shared.db.tables.base import table_of
from shared.errors import QuotaExceeded
from shared.queries.access import Key

WINDOW = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
AMOUNTS = ("size_bytes", "studies", "urgent")
# statements that are made once: they are part of each intake
USAGE = table_of(UploadUsageRow)
LOCK = select(func.pg_advisory_xact_lock(bindparam("number")), func.clock_timestamp())
OLD = delete(USAGE).where(USAGE.c.site_id == bindparam("site"), USAGE.c.at <= bindparam("old"))
_NEW = insert(USAGE).values(
    site_id=bindparam("site"),
    key_id=bindparam("key"),
    at=bindparam("minute"),
    **{name: bindparam(name) for name in AMOUNTS},
)
ADD = _NEW.on_conflict_do_update(
    index_elements=["site_id", "at", "key_id"], set_={name: USAGE.c[name] + _NEW.excluded[name] for name in AMOUNTS}
)


def _sum(name: str, *only: ColumnElement[bool]) -> ColumnElement[int]:
    """What was sent within the hour; a body that never came can leave less than nothing."""
    told = func.sum(USAGE.c[name])
    return cast(func.greatest(func.coalesce(told.filter(and_(*only)) if only else told, 0), 0), BigInteger)


_MINE = USAGE.c.key_id == bindparam("key")
SUMS = select(
    _sum("size_bytes", _MINE), _sum("size_bytes"), _sum("studies", _MINE), _sum("studies"), _sum("urgent", _MINE)
).where(USAGE.c.site_id == bindparam("site"), USAGE.c.at > bindparam("since"))  # fmt: skip


@dataclass(frozen=True)
class Quotas:
    """The most within an hour; 0: no limit."""

    key_bytes: int
    site_bytes: int
    key_studies: int
    site_studies: int
    urgent_share: float  # of a key's studies, 0 to 1
    urgent_free: int  # so many may be urgent whatever their share


@dataclass(frozen=True)
class Usage:
    """What was sent in some time."""

    size_bytes: int = 0
    studies: int = 0
    urgent: int = 0

    @classmethod
    def of(cls, rows: Sequence[UploadUsageRow]) -> "Usage":
        """The sum."""
        return cls(
            max(0, sum(row.size_bytes for row in rows)),
            sum(row.studies for row in rows),
            sum(row.urgent for row in rows),
        )


def usage(session: Session, site_id: UUID, now: datetime) -> list[UploadUsageRow]:
    """Read what a site sent within the last hour.

    Args:
        session: the caller's transaction.
        site_id: the site.
        now: Postgres' time.

    Returns:
        A row for each key and minute, the oldest first.
    """
    query = select(UploadUsageRow).where(UploadUsageRow.site_id == site_id, UploadUsageRow.at > now - WINDOW)
    return list(session.scalars(query.order_by(UploadUsageRow.at, UploadUsageRow.key_id)))


def charge_bytes(session: Session, key: Key, quotas: Quotas, size_bytes: int) -> None:
    """Charge a request's body before it is read.

    Args:
        session: the caller's transaction.
        key: of the request.
        quotas: of keys and sites.
        size_bytes: as the request declares it.

    Raises:
        QuotaExceeded: it is too much, or no further study would be accepted.
    """
    now = _lock(session, key)
    session.execute(OLD, {"site": key.site_id, "old": now - 2 * WINDOW})
    _check(session, key, quotas, Usage(max(size_bytes, 1), 1, 0), now)
    _add(session, key, Usage(size_bytes, 0, 0), now)


def charge_studies(session: Session, key: Key, quotas: Quotas, studies: int, urgent: int) -> None:
    """Charge the studies of a request, at the end of the transaction that stores them.

    No other request of the site passes until that transaction ends, so that two at once never exceed a quota together.

    Args:
        session: the caller's transaction.
        key: of the request.
        quotas: of keys and sites.
        studies: how many are new.
        urgent: how many became urgent.

    Raises:
        QuotaExceeded: it is too much.
    """
    if not studies and not urgent:
        return
    now = _lock(session, key)
    _check(session, key, quotas, Usage(0, studies, urgent), now)
    _add(session, key, Usage(0, studies, urgent), now)


def refund_bytes(session: Session, key: Key, size_bytes: int) -> None:
    """Take bytes off the account that were charged and never came, or were not stored.

    Args:
        session: the caller's transaction.
        key: that was charged.
        size_bytes: how many.
    """
    _add(session, key, Usage(-size_bytes, 0, 0), db_now(session))


def _lock(session: Session, key: Key) -> datetime:
    """Keep other charges of the site waiting until the transaction ends; returns Postgres' time."""
    digest = hashlib.sha256(f"quota/{key.site_id}".encode()).digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    return session.execute(LOCK, {"number": number}).one()[1]  # type: ignore[no-any-return]


def _add(session: Session, key: Key, more: Usage, now: datetime) -> None:
    minute = now.replace(second=0, microsecond=0)
    session.execute(ADD, {"site": key.site_id, "key": key.id, "minute": minute, **vars(more)})


def _check(session: Session, key: Key, quotas: Quotas, more: Usage, now: datetime) -> None:
    """Raises QuotaExceeded if so much more is too much."""
    key_bytes, site_bytes, key_studies, site_studies, key_urgent = session.execute(
        SUMS, {"key": key.id, "site": key.site_id, "since": now - WINDOW}
    ).one()
    if not (
        _exceeds(key_bytes, more.size_bytes, quotas.key_bytes)
        or _exceeds(site_bytes, more.size_bytes, quotas.site_bytes)
        or _exceeds(key_studies, more.studies, quotas.key_studies)
        or _exceeds(site_studies, more.studies, quotas.site_studies)
        or _exceeds(key_urgent, more.urgent, _max_urgent(quotas, key_studies + more.studies))
    ):
        return
    _raise_exceeded(usage(session, key.site_id, now), key, quotas, more, now)


def _max_urgent(quotas: Quotas, studies: int) -> int:
    """How many of a key's studies may be urgent; 0: all."""
    if quotas.urgent_share >= 1:
        return 0
    return max(quotas.urgent_free, math.floor(quotas.urgent_share * studies), 1)


def _raise_exceeded(rows: list[UploadUsageRow], key: Key, quotas: Quotas, more: Usage, now: datetime) -> None:
    """Raises QuotaExceeded for what is too much; it needs the hour's rows to say when it can be sent again."""
    mine = [row for row in rows if row.key_id == key.id]
    for whose, of, max_bytes, max_studies in (
        ("This key", mine, quotas.key_bytes, quotas.key_studies),
        ("This site", rows, quotas.site_bytes, quotas.site_studies),
    ):
        _raise_if_exceeded(
            of, lambda row: row.size_bytes, more.size_bytes, max_bytes, f"{whose} may send {max_bytes} bytes", now
        )
        _raise_if_exceeded(
            of, lambda row: row.studies, more.studies, max_studies, f"{whose} may send {max_studies} studies", now
        )
    max_urgent = _max_urgent(quotas, Usage.of(mine).studies + more.studies)
    what = f"This key may send {quotas.urgent_free} urgent studies, or a share of {quotas.urgent_share:g} of all,"
    _raise_if_exceeded(mine, lambda row: row.urgent, more.urgent, max_urgent, what, now)


def _raise_if_exceeded(
    rows: list[UploadUsageRow],
    amount: Callable[[UploadUsageRow], int],
    more: int,
    quota: int,
    what: str,
    now: datetime,
) -> None:
    """Raises QuotaExceeded if so much more is too much; the error says when it can be sent again."""
    left = max(0, sum(amount(row) for row in rows))
    if not _exceeds(left, more, quota):
        return
    waits = WINDOW
    for row in rows:
        left -= amount(row)
        if left + more <= quota:
            waits = row.at + MINUTE + WINDOW - now
            break
    alone = "; this request alone brings more, split it" if more > quota else ""
    raise QuotaExceeded(f"{what} an hour{alone}. Send it again later", max(1, math.ceil(waits.total_seconds())))


def _exceeds(there: int, more: int, quota: int) -> bool:
    return bool(more and quota and there + more > quota)
