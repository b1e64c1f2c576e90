"""What every process that takes files in talks to: the API, and the DICOM listener."""

from dataclasses import dataclass

from celery import Celery
from sqlalchemy.exc import ProgrammingError

from api.spool import SpoolBudget
from shared.db.engine import Database
from shared.dicom.image import ImageLimits
from shared.errors import Unavailable, WrongIdentityKey
from shared.logs import get_logger
from shared.metadata import InstanceMetadata
from shared.queries.access import Vault
from shared.queue.celery_app import celery_app
from shared.queue.publisher import TaskPublisher
from shared.settings import Settings
from shared.storage import Store, open_store

log = get_logger(__name__)


@dataclass(frozen=True)
class Backends:
    """What files are taken in with; made once a process, by `open_backends`."""

    settings: Settings
    database: Database
    store: Store
    vault: Vault
    publisher: TaskPublisher
    spool_budget: SpoolBudget
    metadata: InstanceMetadata


def open_backends(settings: Settings) -> Backends:
    """Make the parts that take files in, and check that the identity key is that of the database.

    Args:
        settings: of this installation.

    Returns:
        The parts; close the database when the process ends. Nothing is written yet.

    Raises:
        OsteonError: a secret is missing or a URL is wrong.
        WrongIdentityKey: the database was made with another identity key. If it does not answer yet, the key is checked
            before its first use.
    """
    store = open_store(settings.store_url.get_secret_value())
    vault = Vault(settings.identity_key.get_secret_value())
    budget = SpoolBudget(settings.spool_dir, settings.max_spool_bytes, settings.spool_reserve_bytes)
    backends = Backends(
        settings,
        Database(settings.database_url.get_secret_value(), settings.database_pool_size),
        store,
        vault,
        TaskPublisher(_with_short_timeouts(celery_app(settings))),
        budget,
        InstanceMetadata(store, vault, ImageLimits.of(settings), lambda: budget.used > 0),
    )
    _check_identity_key(backends)
    return backends


def _check_identity_key(backends: Backends) -> None:
    backends.database.require(backends.vault.check_key)
    try:
        with backends.database.transaction():
            pass
    except WrongIdentityKey:
        backends.database.close()
        raise
    except (Unavailable, ProgrammingError) as error:  # it is away, or its tables are not there yet: /readyz says so
        log.warning("identity key not checked", error=type(error).__name__)


def _with_short_timeouts(app: Celery) -> Celery:
    """Shorten the broker's timeouts: one that hangs must not hold an upload; the reconciler sends what is unsent."""
    app.conf.broker_transport_options |= {"socket_connect_timeout": 1, "socket_timeout": 1, "interval_start": 0}
    return app
