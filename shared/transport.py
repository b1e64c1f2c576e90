"""kombu's transport to Redis and Valkey, but that it keeps its client, counts right, and keeps places free."""

from typing import Any

from kombu.transport import redis
from kombu.utils.scheduling import priority_cycle

PATIENT_SHARE = 0.75  # of a consumer's places: as many may hold messages of the patient queue
LOOK_S = 0.02  # so often a consumer looks whether it has room for them again


def patient_places(places: int) -> int:
    """How many of a consumer's places may hold messages of the patient queue."""
    return max(1, int(places * PATIENT_SHARE))


class QoS(redis.QoS):
    """The count of messages in hand, right even after an acknowledgement that the broker refused."""

    def ack(self, delivery_tag: str) -> None:
        """Take it off the count first.

        kombu counts a message whose acknowledgement failed for ever. After as many as there are threads the consumer is
        connected and deaf.
        """
        self._quick_ack(delivery_tag)
        super().ack(delivery_tag)  # type: ignore[no-untyped-call]

    def has_room(self, queue: str) -> bool:
        """Whether one more message of this queue, the patient one, may come."""
        if not self.prefetch_count:
            return True
        held = [message for tag, message in self._delivered.items() if tag not in self._dirty]
        own = sum(1 for message in held if message.delivery_info["routing_key"] == queue)
        return own < patient_places(self.prefetch_count)


class Channel(redis.Channel):
    """A channel with one client a connection pool, which takes messages of a patient queue only while there is room.

    If those held every place, a message that somebody waits for would come once one of them is done: 90 ms of a live
    study's 200 beside a night (docs/adr/0024-live-studies-have-the-right-of-way.md). Transport option `patient_queue`.

    A client is a dictionary of some hundred callbacks over a pool that it shares: making one costs more than most
    commands, an eighth of a worker's control plane (docs/adr/0002-broker-settings.md). It is safe between threads.
    """

    QoS = QoS
    from_transport_options: tuple[str, ...] = (*redis.Channel.from_transport_options, "patient_queue")  # type: ignore[assignment]
    patient_queue = ""
    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - kombu's
        if asynchronous:  # holds a connection of its own
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
        if self._kept is None or self._kept.connection_pool is not self.pool:  # the pool is new after a lost connection
            self._kept = super()._create_client()  # type: ignore[no-untyped-call]
        return self._kept

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for the next message of all queues, or for a moment of all but the patient one."""
        queues = self._queue_cycle
        if self.patient_queue in queues.items and not self.qos.has_room(self.patient_queue):
            others = [queue for queue in queues.items if queue != self.patient_queue]
            self._queue_cycle = priority_cycle(others)  # type: ignore[no-untyped-call]
            timeout = LOOK_S
        try:
            super()._brpop_start(timeout)  # type: ignore[no-untyped-call]
        finally:
            self._queue_cycle = queues


class Transport(redis.Transport):
    """kombu's, with that channel."""

    Channel = Channel
