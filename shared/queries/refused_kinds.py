"""Which kinds of objects a site refuses, in place of keeping them."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db.tables import SiteRow
from shared.domain.security import EventKind, Subject
from shared.domain.study import StoredOnly
from shared.queries.access import Key
from shared.queries.audit import State, Target, difference, record

REFUSED_KINDS = "refused-kinds"  # the code of this setting


def of_setting(text: str) -> frozenset[StoredOnly]:
    """Read the setting refused_kinds.

    Args:
        text: kinds with commas; "none" for none.

    Returns:
        The kinds.
    """
    return frozenset(StoredOnly(kind.strip()) for kind in text.split(",") if kind.strip() != "none")


def chosen(session: Session, site_id: UUID) -> frozenset[StoredOnly] | None:
    """Read what a site has chosen.

    Args:
        session: the caller's transaction.
        site_id: the site.

    Returns:
        The kinds that it refuses; None: it follows the installation's setting.
    """
    kinds = session.scalar(select(SiteRow.refused_kinds).where(SiteRow.id == site_id))
    return None if kinds is None else frozenset(map(StoredOnly, kinds))


def choose(session: Session, key: Key, kinds: Collection[StoredOnly] | None) -> None:
    """Let the key's site refuse other kinds from now on. What it refuses already changes nothing.

    Args:
        session: the caller's transaction.
        key: of the administrator.
        kinds: which ones; None: those of the installation's setting.
    """
    row = session.scalars(
        select(SiteRow).where(SiteRow.id == key.site_id).with_for_update(key_share=True)
    ).one()  # one at a time: what this one found before is what the one before it chose
    chosen_kinds = None if kinds is None else sorted({kind.value for kind in kinds})
    before, after = difference(_state(row.refused_kinds), _state(chosen_kinds))
    if not after:
        return
    row.refused_kinds = chosen_kinds
    record(
        session, EventKind.SETTING_CHANGED, key, about=Target(Subject.SETTING, REFUSED_KINDS), before=before,
        after=after, setting=REFUSED_KINDS,
    )  # fmt: skip


def _state(kinds: Collection[str] | None) -> State:
    """As events record it: whether each kind is refused; nothing of a site that follows the installation."""
    values: dict[str, object] = {"table": "built-in" if kinds is None else "chosen"}
    if kinds is not None:
        values |= {kind.value: "refused" if kind in kinds else "kept" for kind in StoredOnly}
    return values
