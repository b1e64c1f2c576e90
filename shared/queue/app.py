"""The Celery application of this machine's settings: beat and Flower load it (`celery -A shared.queue.app`).

The worker registers its tasks on it (worker.main); beat and Flower name tasks and need none of their code.
"""

from celery.signals import setup_logging

from shared.logs import configure_logs
from shared.queue.celery_app import celery_app
from shared.settings import one_sentence, settings

with one_sentence():
    app = celery_app(settings())


@setup_logging.connect
def _logs(**_: object) -> None:
    """Have worker, beat and Flower write their log as all processes do, not in Celery's form."""
    configure_logs(settings().log_level)
