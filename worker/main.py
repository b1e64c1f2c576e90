"""The worker process: `python -m worker.main`.

Beat and Flower load `app` from here too, so the model is imported only where tasks run.
"""

import socket
import sys
from typing import TYPE_CHECKING
from uuid import UUID

from celery import Task
from celery.signals import setup_logging, worker_process_shutdown, worker_ready, worker_shutdown, worker_shutting_down

from shared.jobs import (
    ANALYSE,
    FILMS,
    FULL_FILM,
    NIGHTLY,
    QUEUES,
    SECOND_LOOK,
    SHARES,
    SWEEP_FILMS,
    Doorbell,
    celery_app,
)
from shared.logs import configure_logs
from shared.settings import one_sentence, settings
from shared.study import Priority
from shared.transport import places_of

if TYPE_CHECKING:
    from worker.pulse import Heart
    from worker.sweeps import Sweeper
    from worker.tasks import Engine

with one_sentence():  # beat and Flower begin here too
    app = celery_app(settings())
app.conf.worker_consumer = "worker.consumer:Consumer"
_engine: "Engine | None" = None
_sweeper: "Sweeper | None" = None
_heart: "Heart | None" = None


@setup_logging.connect
def _logs(**_: object) -> None:
    configure_logs(settings().log_level)


def engine() -> "Engine":
    """The engine of this process, made at the start of the worker."""
    assert _engine is not None, "tasks run in `python -m worker.main` only"
    return _engine


@app.task(name=ANALYSE, bind=True)
def analyse_study(self: Task, study_id: str) -> str:
    """Analyse one study; its id is all that a message or Flower ever shows."""
    came_by = (self.request.delivery_info or {}).get("routing_key")
    return engine().analyse_study(UUID(study_id), Priority(came_by) if came_by in QUEUES else Priority.ROUTINE)


@app.task(name=SECOND_LOOK)
def second_look(study_id: str, bundle: str) -> str:
    """Let a bundle look at a study that another one speaks for."""
    return engine().second_look(UUID(study_id), bundle)


@app.task(name=FULL_FILM)
def full_film(instance_id: str, frame: int) -> str:
    """Make one frame's full film for a reader who waits for it."""
    return engine().full_film(UUID(instance_id), frame)


@app.task(name=SWEEP_FILMS)
def sweep_films() -> int | None:
    """Remove full films that were made long ago; once a day is enough, so a failed try waits for the next."""
    return engine().sweep_films()


@app.task(name=NIGHTLY, autoretry_for=(Exception,), max_retries=45, default_retry_delay=60)
def nightly() -> int | None:
    """Begin to look at what earlier days left behind; the sweeper goes on with it."""
    from worker.nights import nightly as run  # noqa: PLC0415 - beat and Flower need no nights

    return run(settings(), engine().database, Doorbell(app))


@worker_ready.connect
def _start(**_: object) -> None:
    global _sweeper, _heart  # noqa: PLW0603 - one per process, by Celery's signals
    from shared.vision.engines import device  # noqa: PLC0415
    from worker.comparing import Comparing, compare_held  # noqa: PLC0415
    from worker.pulse import Heart  # noqa: PLC0415
    from worker.sweeps import Sweeper  # noqa: PLC0415
    from worker.tasks import threads_for  # noqa: PLC0415

    held, threads = engine(), threads_for(settings())
    _heart = Heart(held.database, held.load, device=device(), threads=threads, bundle=lambda: held.reader.name)
    places = places_of(SHARES[Priority.BACKLOG], threads)
    comparing = Comparing(lambda: compare_held(settings(), held.database, held.decoders))
    _sweeper = Sweeper(
        settings(), held.database, Doorbell(app), held.load, places, beat=_heart.beat, compare=comparing.start
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
    from worker.metrics import serve  # noqa: PLC0415
    from worker.tasks import Engine, threads_for  # noqa: PLC0415

    configure_logs(settings().log_level)
    with one_sentence():
        serve(settings())
        _engine = Engine(settings())
    _engine.warm_up()
    app.worker_main(
        [
            "worker",
            "--pool=threads",
            f"--concurrency={threads_for(settings())}",
            f"--queues={','.join((FILMS, *QUEUES))}",
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
