"""The worker process: `python -m worker.main`."""

import socket
import sys
from typing import TYPE_CHECKING, cast
from uuid import UUID

from celery import Task
from celery.signals import worker_process_shutdown, worker_ready, worker_shutdown, worker_shutting_down

from shared.domain.study import Priority
from shared.logs import configure_logs
from shared.object_removal import remove_left_objects
from shared.queue.app import app
from shared.queue.celery_app import (
    ANALYSE,
    ANALYSE_STUDY,
    BACKFILL,
    BACKFILL_BEFORE,
    FRAMES,
    FULL_FRAME,
    OLD_FRAMES,
    OLD_FULL_FRAME,
    OLD_SWEEP_FRAMES,
    QUEUES,
    RAW_FRAME,
    SECOND_LOOK,
    SLOT_QUOTAS,
    SWEEP_FRAMES,
)
from shared.queue.publisher import TaskPublisher
from shared.queue.redis_transport import slots_of
from shared.settings import one_sentence, settings

if TYPE_CHECKING:
    from worker.maintenance.heartbeat import HeartbeatWriter
    from worker.maintenance.sweeper import Sweeper
    from worker.tasks import Engine

app.conf.worker_consumer = "worker.consumer:Consumer"
_engine: "Engine | None" = None
_sweeper: "Sweeper | None" = None
_heart: "HeartbeatWriter | None" = None


def engine() -> "Engine":
    """The engine of this process, made at the start of the worker."""
    assert _engine is not None, "tasks run in `python -m worker.main` only"
    return _engine


def _queue(task: Task) -> Priority:
    """Find the queue that the message came from."""
    came_by = (task.request.delivery_info or {}).get("routing_key")
    return Priority(came_by) if came_by in QUEUES else Priority.ROUTINE


@app.task(name=ANALYSE, bind=True)
def analyse(self: Task, analysis_id: str) -> str:
    """Make one analysis; its id is all that the message holds."""
    return engine().analyse(UUID(analysis_id), _queue(self)).value


@app.task(name=ANALYSE_STUDY, bind=True)
def analyse_study(self: Task, study_id: str) -> str:
    """Handle a message of a version before 0.2.0: analyse one study."""
    return engine().analyse_study(UUID(study_id), _queue(self)).value


@app.task(name=SECOND_LOOK)
def second_look(study_id: str, bundle: str) -> str:
    """Handle a message of a version before 0.2.0: have a study analysed by another model.

    Args:
        study_id: of the study.
        bundle: name of the model.

    Returns:
        The outcome, for Flower.
    """
    return engine().analyse_study(UUID(study_id), Priority.BACKLOG, bundle).value


@app.task(name=OLD_FULL_FRAME)
@app.task(name=FULL_FRAME)
def full_frame(instance_id: str, frame: int) -> str:
    """Make one frame's full-resolution picture for a reader who waits for it.

    Args:
        instance_id: of the image.
        frame: 1 for the first.

    Returns:
        The outcome, for Flower.
    """
    return engine().full_frame(UUID(instance_id), frame).value


@app.task(name=RAW_FRAME)
def raw_frame(instance_id: str, frame: int) -> str:
    """Make one frame's stored values for a program that waits for them (WADO-RS).

    Args:
        instance_id: of the image.
        frame: 1 for the first.

    Returns:
        The outcome, for Flower.
    """
    return engine().full_frame(UUID(instance_id), frame, raw=True).value


@app.task(name=OLD_SWEEP_FRAMES)
@app.task(name=SWEEP_FRAMES)
def sweep_frames() -> int | None:
    """Remove full-resolution frames made long ago; once a day is enough, so a failed try waits for the next."""
    return engine().sweep_frames()


@app.task(name=BACKFILL, autoretry_for=(Exception,), max_retries=45, default_retry_delay=60)
def backfill() -> int | None:
    """Begin to look at what earlier days left behind; the sweeper goes on with it."""
    from worker.maintenance.backfill import start_run  # noqa: PLC0415 - needed once a day

    return start_run(settings(), engine().database, TaskPublisher(app))


@app.task(name=BACKFILL_BEFORE, autoretry_for=(Exception,), max_retries=45, default_retry_delay=60)
def nightly() -> int | None:
    """As `backfill`, for a beat of before 0.2.0."""
    return cast("int | None", backfill())


@worker_ready.connect
def _start(**_: object) -> None:
    global _sweeper, _heart  # noqa: PLW0603 - one per process, by Celery's signals
    from shared.model.engines import device_description  # noqa: PLC0415
    from worker.maintenance.comparing import ComparisonThread, compare_held  # noqa: PLC0415
    from worker.maintenance.heartbeat import HeartbeatWriter  # noqa: PLC0415
    from worker.maintenance.sweeper import Sweeper  # noqa: PLC0415
    from worker.tasks import threads_for  # noqa: PLC0415

    held, threads = engine(), threads_for(settings())
    _heart = HeartbeatWriter(
        held.database, held.load, device=device_description(), threads=threads, bundle=lambda: held.predictor.name
    )
    slots = slots_of(SLOT_QUOTAS[Priority.BACKLOG], threads)
    comparing = ComparisonThread(lambda: compare_held(settings(), held.database, held.decoders))
    _sweeper = Sweeper(
        settings(),
        held.database,
        TaskPublisher(app),
        held.load,
        slots,
        beat=_heart.beat,
        compare=comparing.start,
        let_go=lambda: remove_left_objects(held.database, held.store),
    )


@worker_shutting_down.connect
def _shutting_down(**_: object) -> None:
    if _sweeper is not None:
        _sweeper.stop()  # from here on the consumer takes no messages, and means it


@worker_shutdown.connect
@worker_process_shutdown.connect
def _stop(**_: object) -> None:
    global _engine, _sweeper, _heart  # noqa: PLW0603
    if _sweeper is not None:
        _sweeper.close()
        _sweeper = None
    if _heart is not None:
        _heart.stop()
        _heart = None
    if _engine is not None:
        _engine.close()
        _engine = None


def main() -> None:
    """Start the engine, then the Celery worker, until SIGTERM; a second SIGTERM is not needed."""
    global _engine  # noqa: PLW0603
    from shared.metrics import serve  # noqa: PLC0415
    from shared.queue.liveness import watch_consumer  # noqa: PLC0415
    from worker.tasks import Engine, threads_for  # noqa: PLC0415

    configure_logs(settings().log_level)
    with one_sentence():
        serve(settings().worker_metrics_port, settings().worker_metrics_host, "OSTEON_WORKER_METRICS_PORT")
        _engine = Engine(settings())
    _engine.warm_up()
    watch_consumer()
    app.worker_main(
        [
            "worker",
            "--pool=threads",
            f"--concurrency={threads_for(settings())}",
            f"--queues={','.join((FRAMES, OLD_FRAMES, *QUEUES))}",
            f"--hostname=osteon@{socket.gethostname()}",
            "--without-gossip",
            "--without-mingle",
            f"--loglevel={settings().log_level}",
        ]
    )


if __name__ == "__main__":
    # tasks must register on the module that Celery knows, not on __main__
    sys.modules["worker.main"] = sys.modules["__main__"]
    main()
