"""The process that makes results: `python -m worker.results.main`.

It holds no key of identities, copies the patient from the originals, and connects to nothing but Postgres and the
store. Originals are decoded in child processes, which a damaged one may end. While no destination is set up, it asks
Postgres once a second whether something is due, and loads no more.
"""

import signal
import threading
from collections.abc import Callable, Collection, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from shared.db.engine import WORKER, Database
from shared.dicom.image import ImageLimits
from shared.domain.results import ResultInput, ResultKind, ResultObject
from shared.logs import configure_logs, get_logger
from shared.settings import Settings, one_sentence, settings
from shared.storage import open_store
from worker.results.making import MAKERS, Maker

if TYPE_CHECKING:
    from worker.decoder_pool import Decoders

log = get_logger(__name__)
ABLE = frozenset(ResultKind)


class Builder:
    """`worker.results.objects.build` with children that decode: loaded with the first set, for it takes a second."""

    def __init__(self, settings: Settings) -> None:
        """Start nothing yet."""
        self._settings = settings
        self._lock = threading.Lock()
        self._decoders: Decoders | None = None

    def __call__(
        self, inputs: ResultInput, kinds: Collection[ResultKind], read: Callable[[str], bytes]
    ) -> Sequence[ResultObject]:
        """Make objects.

        Args:
            inputs: as `build` has it.
            kinds: as there.
            read: as there.

        Returns:
            The objects.

        Raises:
            DecodingFailed: an original ended its decoder, took too long or too much memory.
        """
        from worker.decoder_pool import PictureJob  # noqa: PLC0415
        from worker.results import objects  # noqa: PLC0415

        decoders = self._start()
        return objects.build(
            inputs, kinds, read, lambda sha256, frame, side: decoders.picture(PictureJob(sha256, frame, side)).result()
        )

    def close(self) -> None:
        """End the children."""
        if self._decoders is not None:
            self._decoders.close()

    def _start(self) -> "Decoders":
        """The children, which are prepared by the first call."""
        from worker.decoder_pool import Decoders  # noqa: PLC0415

        config = self._settings
        with self._lock:
            if self._decoders is None:
                self._decoders = Decoders(
                    config.store_url.get_secret_value(),
                    ImageLimits.of(config),
                    count=MAKERS,
                    limit_s=config.decode_limit_s,
                    memory_bytes=config.decode_memory_bytes,
                    log_level=config.log_level,
                )
            return self._decoders


def main() -> None:
    """Make results until SIGTERM; the sets in hand are finished."""
    configure_logs(settings().log_level)
    with one_sentence():
        config = settings()
        database = Database(config.database_url.get_secret_value(), MAKERS + 1, WORKER)
        builder = Builder(config)
        maker = Maker(config, database, open_store(config.store_url.get_secret_value()), builder, ABLE)

    def stop(_number: int, _frame: FrameType | None) -> None:
        maker.stopping.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)
    maker.progress.show(maker.stopping)
    log.info("results process started")
    maker.run()
    builder.close()
    database.close()
    log.info("results process stopped")


if __name__ == "__main__":
    main()
