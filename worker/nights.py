"""The nightly run and the feeder: history goes out in small portions, so that live work overtakes it at any time."""

import logging
from datetime import datetime, timedelta

from shared.backlog import night_began, night_of
from shared.jobs import Doorbell
from shared.repository import Database, nights, second_looks, work
from shared.repository.bundles import active_bundle, any_active_before
from shared.repository.portions import Portion
from shared.settings import Settings

log = logging.getLogger(__name__)
ROUNDS = 16  # transactions a sweep, where studies are merely switched and leave their place at once


def nightly(settings: Settings, database: Database, doorbell: Doorbell, now: datetime | None = None) -> int | None:
    """Open tonight's run and send its first portion, or do nothing (None) if it was opened or no bundle is active.

    now: default, and in service always, Postgres' time. Returns how many messages left. Raises Unavailable.
    """
    with database.transaction() as session:
        at = now or work.clock(session)
        active = active_bundle(session)
        if active is None:
            return None
        night = night_of(at, settings.nightly_timezone)
        hours, most = settings.nightly_hours, settings.nightly_max_studies
        if nights.begin_night(session, night, at, active.name, hours, most) is None:
            return None
    log.info("the nightly run begins", extra={"night": str(night), "bundle": active.name})
    return feed(settings, database, doorbell, now)


def feed(settings: Settings, database: Database, doorbell: Doorbell, now: datetime | None = None) -> int:
    """Send the next portion of every open run; returns how many messages left. Any number of workers may call it.

    A night whose message was lost is opened here. now: as for `nightly`. Raises Unavailable.
    """
    _open_missed(settings, database, now)
    feeding = nights.Feeding(
        settings.nightly_in_flight, settings.reconcile_every_s, timedelta(seconds=settings.resend_grace_s)
    )
    left = 0
    for _ in range(ROUNDS):
        with database.transaction() as session:
            if not nights.any_open(session):
                break
            at = now or work.clock(session)  # before the look: what is sent from here on is not lost yet
        heads = doorbell.heads()
        with database.transaction() as session:
            portion = nights.feed(session, feeding, heads, at)
        if portion is None:
            break
        left += _ring(database, doorbell, portion)
        if not portion.again:
            break
    return left


def _open_missed(settings: Settings, database: Database, now: datetime | None) -> None:
    """Open tonight's run within its window if nobody did: the message of beat is only a doorbell.

    Not where no bundle was active before the window: such a system is new, and has no history to look at.
    """
    with database.transaction() as session:
        at = now or work.clock(session)
        began = night_began(at, settings.nightly_timezone, settings.nightly_hour)
        ends, night = began + timedelta(hours=settings.nightly_hours), night_of(began, settings.nightly_timezone)
        if at >= ends or nights.has_night(session, night):
            return
        active = active_bundle(session)
        if active is None or not any_active_before(session, began):
            return
        hours = (ends - at) / timedelta(hours=1)
        opened = nights.begin_night(session, night, at, active.name, hours, settings.nightly_max_studies)
    if opened is not None:
        log.info("the nightly run begins without beat's message", extra={"night": str(night), "bundle": active.name})


def _ring(database: Database, doorbell: Doorbell, portion: Portion) -> int:
    failed = doorbell.ring(portion.studies)
    not_taken = portion.looks[len(portion.looks) - len(doorbell.ring(portion.looks)) :]
    if failed or not_taken:
        with database.transaction() as session:
            work.sending_failed(session, failed)
            second_looks.sending_failed(session, not_taken)
    return len(portion.studies) + len(portion.looks) - len(failed) - len(not_taken)
