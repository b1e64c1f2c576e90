"""The Celery application: its tasks' names, its queues and its settings. The broker notifies, Postgres decides."""

from celery import Celery
from celery.schedules import crontab
from kombu.entity import Queue

from shared.domain.study import Priority
from shared.settings import Settings
from shared.tcp import OPTIONS

ANALYSE = "osteon.analyse"
# of versions before 0.2.0, by a study's id: their messages may wait in the broker still
ANALYSE_STUDY, SECOND_LOOK = "osteon.analyse_study", "osteon.second_look"
BACKFILL = "osteon.backfill"
BACKFILL_BEFORE = "osteon.nightly"  # what a beat of before 0.2.0 sends; goes with 0.3.0
FULL_FRAME = "osteon.full_frame"
RAW_FRAME = "osteon.raw_frame"
SWEEP_FRAMES = "osteon.sweep_frames"
QUEUES = (Priority.URGENT, Priority.ROUTINE, Priority.BACKLOG)  # served strictly in this order
# of a worker's slots, the most that messages of a queue and of slower ones may hold
SLOT_QUOTAS = {Priority.ROUTINE: 0.9, Priority.BACKLOG: 0.75}
# names before 0.2.0: messages under them may still be in the broker. Gone with 0.3.0
OLD_FULL_FRAME, OLD_SWEEP_FRAMES, OLD_FRAMES = "osteon.full_film", "osteon.sweep_films", "films"
FRAMES = "frames"  # a person waits: served before all others; holds no study, so the reconciler does not look at it


def celery_app(settings: Settings) -> Celery:
    """Celery as measured: see docs/adr/0002-broker-settings.md for each number."""
    app = Celery("osteon", broker=settings.broker_url.get_secret_value())
    app.conf.update(
        broker_transport="shared.queue.redis_transport:Transport",
        task_queues=[Queue(queue) for queue in (FRAMES, OLD_FRAMES, *QUEUES)],  # type: ignore[no-untyped-call]
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
            "quotas": {queue.value: quota for queue, quota in SLOT_QUOTAS.items()},  # of shared.queue.redis_transport
            "socket_keepalive": True,
            "socket_keepalive_options": OPTIONS,
            "health_check_interval": 25,
            "socket_connect_timeout": 5,
            "socket_timeout": 30,
            # a dead broker must fail an upload's messages quickly, not hold the upload
            "max_retries": 1,
        },
        timezone=settings.backfill_timezone,
        beat_schedule={
            "backfill": {
                "task": BACKFILL,
                "schedule": crontab(hour=settings.backfill_hour, minute=0),
                # a moment's work; behind a long backlog it would expire, and no run would begin
                "options": {"queue": Priority.URGENT, "expires": 3600},
            },
            "frames": {
                "task": SWEEP_FRAMES,
                "schedule": crontab(hour=settings.backfill_hour, minute=30),
                "options": {"queue": FRAMES, "expires": 3600},
            },
        },
    )
    return app
