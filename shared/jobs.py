"""The Celery application and the messages: the broker is a doorbell, Postgres is the truth."""

import json
import logging
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from celery import Celery
from celery.events import EventDispatcher
from celery.schedules import crontab
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.errors import Unavailable
from shared.repository.work import ToSend
from shared.settings import Settings
from shared.study import Priority

log = logging.getLogger(__name__)
ANALYSE = "osteon.analyse_study"
SECOND_LOOK = "osteon.second_look"
NIGHTLY = "osteon.nightly"
FULL_FILM = "osteon.full_film"
SWEEP_FILMS = "osteon.sweep_films"
QUEUES = (Priority.URGENT, Priority.ROUTINE, Priority.BACKLOG)  # served strictly in this order
# of a worker's places, the most that messages of a queue and of slower ones may hold
SHARES = {Priority.ROUTINE: 0.9, Priority.BACKLOG: 0.75}
FILMS = "films"  # a person waits: served before all others; holds no study, so the reconciler does not look at it
FILM_EXPIRES_S = 60  # by then nobody waits any more, or has asked again
ASKED_AGAIN_S = 10.0  # a page asks many times for one film; so often a message leaves for it
SENT_AT = "osteon_sent_at"
ALIVE, ALIVE_S = "osteon.alive", 60  # a key that is written to see whether the broker takes writes
CURE = "Check OSTEON_BROKER_URL, and that the broker runs and has room, in memory and on its disk."
BROKER_DOWN = (OperationalError, RedisError, OSError)
UNKNOWN_AGE = datetime(1970, 1, 1, tzinfo=UTC)


def celery_app(settings: Settings) -> Celery:
    """Celery as measured: see docs/adr/0002-broker-settings.md for each number."""
    app = Celery("osteon", broker=settings.broker_url.get_secret_value())
    app.conf.update(
        broker_transport="shared.transport:Transport",
        task_queues=[Queue(queue) for queue in (FILMS, *QUEUES)],  # type: ignore[no-untyped-call]
        task_default_queue=Priority.ROUTINE,
        task_acks_late=True,
        task_ignore_result=True,
        task_track_started=True,
        task_send_sent_event=True,
        worker_send_task_events=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        # a thread cannot be cancelled; its lease protects it
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # one that answers that it is full (OOM, MISCONF) is waited for like one that is away; it would end the worker
        broker_channel_error_retry=True,
        broker_transport_options={
            "visibility_timeout": 120,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "queue_order_strategy": "priority",
            "shares": {queue.value: share for queue, share in SHARES.items()},  # of shared.transport
            "socket_keepalive": True,
            "health_check_interval": 25,
            "socket_connect_timeout": 5,
            "socket_timeout": 30,
            # a dead broker must fail an upload's doorbell quickly, not hold the upload
            "max_retries": 1,
        },
        timezone=settings.nightly_timezone,
        beat_schedule={
            "nightly": {
                "task": NIGHTLY,
                "schedule": crontab(hour=settings.nightly_hour, minute=0),
                # a moment's work; behind a long backlog it would expire, and the night with it
                "options": {"queue": Priority.URGENT, "expires": 3600},
            },
            "films": {
                "task": SWEEP_FILMS,
                "schedule": crontab(hour=settings.nightly_hour, minute=30),
                "options": {"queue": FILMS, "expires": 3600},
            },
        },
    )
    return app


class SentEvents(EventDispatcher):  # type: ignore[misc]
    """The `task-sent` events of many messages, which Flower gets in groups (`buffer_limit`, Celery's 24)."""

    def publish(self, type: str, fields: dict[str, Any], *_: object, **__: object) -> None:  # noqa: A002 - Celery's
        """Keep it until there are some, or `flush` is called."""
        self.send(type, **fields)


class Doorbell:
    """Sends messages, and looks how old the oldest ones are."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._asked: dict[tuple[UUID, int], float] = {}  # films, and until when a message for one is enough
        self._asking = threading.Lock()

    def ring(self, studies: Sequence[ToSend]) -> list[UUID]:
        """Send one message a study; returns those that the broker did not take. Never raises: the rows stand."""
        if not studies:
            return []
        taken = 0
        try:
            with (
                self.app.connection_for_write() as connection,
                self.app.amqp.Producer(connection) as producer,
                SentEvents(channel=producer.channel, app=self.app, buffer_group=["task"]) as events,
            ):
                for study in studies:
                    self.app.send_task(
                        SECOND_LOOK if study.bundle else ANALYSE,
                        args=[str(study.study_id), study.bundle] if study.bundle else [str(study.study_id)],
                        queue=study.queue,
                        headers={SENT_AT: study.sent_at.isoformat()},
                        producer=producer,
                        event_dispatcher=events,
                        retry=False,
                    )
                    taken += 1
                events.flush()
        except BROKER_DOWN as wrong:
            log.warning("the broker does not take messages", extra={"why": f"{type(wrong).__name__}. {CURE}"})
        except Exception:
            log.exception("messages could not be sent")
        return [study.study_id for study in studies[taken:]]

    def ask_film(self, instance_id: UUID, frame: int) -> None:
        """Have a frame's full film made; asking again within ASKED_AGAIN_S sends nothing more. Raises Unavailable.

        A message that is lost is no harm: who still waits asks again.
        """
        asked, now = (instance_id, frame), time.monotonic()
        with self._asking:
            self._asked = {film: until for film, until in self._asked.items() if until > now}
            if asked in self._asked:
                return
            self._asked[asked] = now + ASKED_AGAIN_S
        try:
            self.app.send_task(
                FULL_FILM, args=[str(instance_id), frame], queue=FILMS, expires=FILM_EXPIRES_S, retry=False
            )
        except BROKER_DOWN as wrong:
            with self._asking:
                self._asked.pop(asked, None)
            raise Unavailable(f"The broker does not answer ({type(wrong).__name__}). {CURE}") from wrong

    def heads(self) -> dict[Priority, datetime | None]:
        """When the oldest waiting message of each queue was sent; None for an empty queue.

        Reads the Redis lists directly: kombu pushes left and pops right. Raises Unavailable.
        """
        try:
            with self.app.connection_for_read() as connection:
                client = connection.default_channel.client
                return {queue: _sent_at(client.lindex(queue.value, -1)) for queue in QUEUES}
        except BROKER_DOWN as wrong:
            raise Unavailable(f"The broker does not answer ({type(wrong).__name__}). {CURE}") from wrong

    def waiting(self) -> dict[Priority, int]:
        """How many messages wait in each queue. Raises Unavailable, also of a full broker: nobody can take them."""
        try:
            with self.app.connection_for_read() as connection:
                client = connection.default_channel.client
                client.set(ALIVE, "", ex=ALIVE_S)
                return {queue: int(client.llen(queue.value)) for queue in QUEUES}
        except BROKER_DOWN as wrong:
            raise Unavailable(f"The broker does not answer ({type(wrong).__name__}). {CURE}") from wrong


def _sent_at(message: bytes | None) -> datetime | None:
    if message is None:
        return None
    try:
        return datetime.fromisoformat(json.loads(message)["headers"][SENT_AT])
    except (ValueError, KeyError, TypeError):
        # a message of another kind (the nightly task) tells nothing, so nothing is taken for lost behind it
        return UNKNOWN_AGE
