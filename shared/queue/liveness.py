"""A file whose age shows whether a process's loop still runs: a container's health check need not start Python."""

import contextlib
import threading
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from celery.beat import PersistentScheduler
from celery.signals import heartbeat_sent

from shared.logs import get_logger
from shared.settings import settings

log = get_logger(__name__)
TOUCH_EVERY_S = 1.0
# longer than each bounded wait between two steps of a loop: a statement of Postgres (300 s), three tries at the store
# (60 s each), a connection, an object that is made; what waits for a peer adds its own limit
STEP_S = 900.0
MAX_BEAT_LOOP_S = 15.0  # the longest round of beat's loop


def touch(**_: object) -> None:
    """Renew the file of OSTEON_ALIVE_FILE, if one is set; on a full disk it grows old, and the process goes on."""
    path: Path | None = settings().alive_file
    if path is not None:
        with contextlib.suppress(OSError):
            path.touch()


class Progress:
    """What the loops of a process have said of how long their next step may take. For any thread."""

    def __init__(self) -> None:
        """Begin without a loop."""
        self._until: dict[Hashable, float] = {}
        self._lock = threading.Lock()

    def expect(self, loop: Hashable, within_s: float = STEP_S) -> None:
        """Say that a loop goes on.

        Args:
            loop: which.
            within_s: it says so again within so many seconds, or has ended by `done`.
        """
        with self._lock:
            self._until[loop] = time.monotonic() + within_s

    def done(self, loop: Hashable) -> None:
        """Say that a loop has ended."""
        with self._lock:
            self._until.pop(loop, None)

    def hangs(self) -> bool:
        """Whether a loop is late."""
        now = time.monotonic()
        with self._lock:
            return any(until < now for until in self._until.values())

    def show(self, stopping: threading.Event) -> None:
        """Touch the file, from a thread of its own, while no loop is late.

        Args:
            stopping: ends it.
        """

        def touches() -> None:
            hung = False
            while not stopping.wait(TOUCH_EVERY_S):
                before, hung = hung, self.hangs()
                if not hung:
                    touch()
                elif not before:
                    log.error("loop stalled")

        threading.Thread(target=touches, name="alive", daemon=True).start()


def watch_consumer() -> None:
    """Make a worker touch the file with each heartbeat: from the loop that takes messages, every 2 s.

    A worker that waits for a lost broker sends none.
    """
    heartbeat_sent.connect(touch)


class Scheduler(PersistentScheduler):  # type: ignore[misc]
    """Beat's scheduler, which touches the file each time it has checked what is due."""

    def tick(self, *arguments: Any, **more: Any) -> float:  # noqa: ANN401 - Celery's
        """Send what is due, as Celery does, and touch the file.

        Args:
            *arguments: passed on to Celery.
            **more: passed on to Celery.

        Returns:
            Seconds until the next check, at most MAX_BEAT_LOOP_S.
        """
        wait_s = float(super().tick(*arguments, **more))
        touch()
        return min(wait_s, MAX_BEAT_LOOP_S)
