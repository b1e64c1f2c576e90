"""Celery's consumer of messages, made to survive a lost broker."""

import functools
import time
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer

from shared.logs import get_logger

log = get_logger(__name__)
EVENTS_S = 0.25  # how late Flower may hear of a task


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Connects again at once after a lost broker, and survives what is left over from the connection before."""

    _events_sent_at = _events_due_at = 0.0  # monotonic seconds

    def _flush_events(self) -> None:
        """Send Flower the events of EVENTS_S in one message; Celery sends one at every turn of its loop.

        Those were a sixth of what the interpreter does for a study. The hub forgets its timers with a lost connection:
        one that is overdue is not waited for.
        """
        now = time.monotonic()
        if now - self._events_sent_at >= EVENTS_S:
            self._events_sent_at = now
            super()._flush_events()
        elif self._events_due_at <= now:
            self._events_due_at = self._events_sent_at + EVENTS_S
            self.hub.call_later(self._events_due_at - now, self._flush_events)

    def call_soon_ack(self, p: Callable[..., object], *args: Any, **kwargs: Any) -> object:  # noqa: ANN401 - Celery's
        """Acknowledge in the event loop.

        After a lost connection kombu runs what is left in its loop while it takes the loop down, and stops halfway when
        an acknowledgement raises something that is no connection error (seen: AttributeError): the consumer is then
        connected and taking nothing. The message of an acknowledgement that failed comes again, and finds nothing to
        do.

        Args:
            p: Celery's function that acknowledges.
            *args: for it.
            **kwargs: for it.

        Returns:
            What Celery's own method returns.
        """

        def safely() -> None:
            try:
                p(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever it is, the loop must go on
                log.warning("message not acknowledged", error=type(error).__name__)

        return super().call_soon_ack(safely)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let go of a lost connection, even of one that cannot be closed.

        When something other than the wait for messages meets the loss first, that wait is still open, and kombu leaves
        its channel half closed. Celery closes it once more, which raises AttributeError and would end the worker.

        Args:
            exc: the loss.
        """
        try:
            super().on_connection_error_after_connected(exc)
        except Exception as error:  # noqa: BLE001 - a new connection is made in any case
            log.warning("lost connection not closed", error=type(error).__name__)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Wait a second: a broker that is full takes the connection and refuses what follows, at once."""
        super().on_connection_error_before_connected(exc)
        time.sleep(1)

    def ensure_connected(self, conn: Any) -> Any:  # noqa: ANN401 - kombu's Connection
        """Try every second; Celery itself waits two seconds longer after each failure, up to half a minute."""
        conn.ensure_connection = functools.partial(
            conn.ensure_connection, interval_start=1, interval_step=0, interval_max=1
        )
        return super().ensure_connected(conn)
