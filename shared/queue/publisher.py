"""Sends messages, and finds each queue's oldest one."""

import json
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from celery import Celery
from celery.events import EventDispatcher
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.domain.study import Priority
from shared.errors import Unavailable
from shared.logs import get_logger
from shared.queries.analyses import DueMessage
from shared.queue.celery_app import ANALYSE, FRAMES, FULL_FRAME, QUEUES, RAW_FRAME

log = get_logger(__name__)
FRAME_EXPIRES_S = 60  # by then the page has closed, or has asked again
FRAME_REQUEST_INTERVAL_S = 10.0  # a page asks many times for one frame; so often a message leaves for it
SENT_AT = "osteon_sent_at"
ALIVE, ALIVE_S = "osteon.alive", 60  # a key that is written to see whether the broker takes writes
HINT = "Check OSTEON_BROKER_URL, and that the broker runs and has room, in memory and on its disk."
BROKER_DOWN = (OperationalError, RedisError, OSError)
UNKNOWN_AGE = datetime(1970, 1, 1, tzinfo=UTC)


class SentEvents(EventDispatcher):  # type: ignore[misc]
    """The `task-sent` events of many messages, which Flower receives in groups (`buffer_limit`, Celery's 24)."""

    def publish(self, type: str, fields: dict[str, Any], *_: object, **__: object) -> None:  # noqa: A002 - Celery's
        """Keep an event until the group is full, or `flush` is called.

        Args:
            type: of the event, as "task-sent".
            fields: its content.
        """
        self.send(type, **fields)


class TaskPublisher:
    """Sends messages, and reads when the oldest ones were sent."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._asked: dict[tuple[UUID, int, bool], float] = {}  # frames, and until when a message for one is enough
        self._asking = threading.Lock()

    def send(self, analyses: Sequence[DueMessage]) -> list[UUID]:
        """Send one message an analysis; return those that the broker did not take. Never raises: the rows remain."""
        if not analyses:
            return []
        taken = 0
        try:
            with (
                self.app.connection_for_write() as connection,
                self.app.amqp.Producer(connection) as producer,
                SentEvents(channel=producer.channel, app=self.app, buffer_group=["task"]) as events,
            ):
                for analysis in analyses:
                    self.app.send_task(
                        ANALYSE,
                        args=[str(analysis.analysis_id)],
                        # what Flower shows, and searches: the study as well
                        argsrepr=f"('{analysis.analysis_id}',) study {analysis.study_id}",
                        queue=analysis.queue,
                        headers={SENT_AT: analysis.sent_at.isoformat()},
                        producer=producer,
                        event_dispatcher=events,
                        retry=False,
                    )
                    taken += 1
                events.flush()
        except BROKER_DOWN as error:
            log.warning("messages not sent", count=len(analyses) - taken, why=f"{type(error).__name__}. {HINT}")
        except Exception:
            log.exception("messages not sent", count=len(analyses) - taken)
        return [analysis.analysis_id for analysis in analyses[taken:]]

    def ask_frame(self, instance_id: UUID, frame: int, *, raw: bool = False) -> None:
        """Ask a worker for a frame in full resolution; asking again within FRAME_REQUEST_INTERVAL_S sends nothing more.

        A lost message does no harm: a page that still waits asks again.

        Args:
            instance_id: of the instance.
            frame: number of the frame, from 1.
            raw: as it is stored, but uncompressed; else as a viewer of ours shows it.

        Raises:
            Unavailable: the broker does not answer.
        """
        asked, now = (instance_id, frame, raw), time.monotonic()
        with self._asking:
            self._asked = {one: until for one, until in self._asked.items() if until > now}
            if asked in self._asked:
                return
            self._asked[asked] = now + FRAME_REQUEST_INTERVAL_S
        try:
            self.app.send_task(
                RAW_FRAME if raw else FULL_FRAME,
                args=[str(instance_id), frame],
                queue=FRAMES,
                expires=FRAME_EXPIRES_S,
                retry=False,
            )
        except BROKER_DOWN as error:
            with self._asking:
                self._asked.pop(asked, None)
            raise Unavailable(f"The broker does not answer ({type(error).__name__}). {HINT}") from error

    def oldest_messages(self) -> dict[Priority, datetime | None]:
        """Read when the oldest waiting message of each queue was sent.

        Reads the Redis lists directly: kombu pushes left and pops right.

        Returns:
            The time for each queue, UNKNOWN_AGE for a message of another kind; None for an empty queue.

        Raises:
            Unavailable: the broker does not answer.
        """
        try:
            with self.app.connection_for_read() as connection:
                client = connection.default_channel.client
                return {queue: _sent_at(client.lindex(queue.value, -1)) for queue in QUEUES}
        except BROKER_DOWN as error:
            raise Unavailable(f"The broker does not answer ({type(error).__name__}). {HINT}") from error

    def waiting(self) -> dict[Priority, int]:
        """How many messages wait in each queue. Raises Unavailable, also if the broker is full and takes no writes."""
        try:
            with self.app.connection_for_read() as connection:
                client = connection.default_channel.client
                client.set(ALIVE, "", ex=ALIVE_S)
                return {queue: int(client.llen(queue.value)) for queue in QUEUES}
        except BROKER_DOWN as error:
            raise Unavailable(f"The broker does not answer ({type(error).__name__}). {HINT}") from error


def _sent_at(message: bytes | None) -> datetime | None:
    if message is None:
        return None
    try:
        return datetime.fromisoformat(json.loads(message)["headers"][SENT_AT])
    except (ValueError, KeyError, TypeError):
        # a message of another kind (the backfill task) has no such time, so no message behind it counts as lost
        return UNKNOWN_AGE
