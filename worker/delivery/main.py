"""The process that sends results: `python -m worker.delivery.main`.

It holds no key, decodes no pixel, and connects to nothing but Postgres, the store, and destinations that somebody set
up. While there is none, it asks Postgres once a second whether that has changed.
"""

import logging
import signal
from types import FrameType

from shared.db.engine import WORKER, Database
from shared.logs import configure_logs, get_logger
from shared.settings import one_sentence, settings
from shared.storage import open_store
from worker.delivery.sending import Sender

log = get_logger(__name__)


def silence() -> None:
    """Have libraries log nothing of what is sent: pynetdicom quotes peers, the others addresses, logins and studies."""
    for name in ("pynetdicom", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def main() -> None:
    """Send until SIGTERM; what is on its way is finished."""
    configure_logs(settings().log_level)
    silence()
    with one_sentence():
        config = settings()
        # a connection for each destination's thread, and one for the look
        database = Database(config.database_url.get_secret_value(), config.delivery_destinations + 1, WORKER)
        sender = Sender(config, database, open_store(config.store_url.get_secret_value()))

    def stop(_number: int, _frame: FrameType | None) -> None:
        sender.stopping.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)
    sender.progress.show(sender.stopping)
    log.info("delivery started")
    sender.run()
    sender.close()
    database.close()
    log.info("delivery stopped")


if __name__ == "__main__":
    main()
