"""kombu's transport to Redis and Valkey, but it keeps its client, counts right, and keeps slots free."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from kombu.transport import redis
from kombu.utils.scheduling import priority_cycle
from redis.exceptions import ResponseError

MAX_WAIT_S = 0.25  # so often a consumer looks whether it has room again, should the broker not let it wake itself


def slots_of(quota: float, slots: int) -> int:
    """Convert a quota to a number of slots.

    Args:
        quota: 0 to 1.
        slots: how many messages a consumer may hold.

    Returns:
        How many of them the quota is, at least 1.
    """
    return max(1, int(quota * slots))


class QoS(redis.QoS):
    """The count of messages in hand, right even after an acknowledgement that the broker refused."""

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, and take it off the count first.

        kombu counts a message whose acknowledgement failed for ever. After as many as there are threads, the consumer
        is connected and takes nothing any more.

        Args:
            delivery_tag: of the message.
        """
        self._quick_ack(delivery_tag)
        super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        self.channel.look_again()

    def has_free_slot(self, queue: str, quotas: Mapping[str, float]) -> bool:
        """Check whether one more message of a queue may come.

        Args:
            queue: name of the queue.
            quotas: by queue, the most that its messages and those of smaller quotas may hold of the slots. A queue
                that is not in it has no limit.

        Returns:
            Whether it fits into the queue's quota and into each greater one.
        """
        if queue not in quotas or not self.prefetch_count:
            return True
        # a list first, in one step: those who acknowledge ask too, while the consumer takes the next message
        held = [
            quotas.get(message.delivery_info["routing_key"], 1.0)
            for tag, message in list(self._delivered.items())
            if tag not in self._dirty
        ]
        return all(
            sum(1 for one in held if one <= quota) < slots_of(quota, self.prefetch_count)
            for quota in quotas.values()
            if quota >= quotas[queue]
        )


class Channel(redis.Channel):
    """A channel with one client a connection pool, in which no queue's messages take the slots of more urgent ones.

    Where those of one queue hold every place, a message that somebody waits for comes once one of them is done
    (docs/adr/0024-live-studies-have-the-right-of-way.md). Transport option `quotas`: the most that a queue's messages,
    together with those of queues of smaller quotas, may hold of the slots.

    A client is a dictionary of some hundred callbacks over a pool that it shares: making one costs more than most
    commands, an eighth of a worker's control plane (docs/adr/0002-broker-settings.md). It is safe between threads.
    """

    QoS = QoS
    from_transport_options: tuple[str, ...] = (*redis.Channel.from_transport_options, "quotas")  # type: ignore[assignment]
    quotas: Mapping[str, float] = {}
    _kept: Any = None
    _left_out: Sequence[str] = ()  # queues that the wait under way leaves out
    _waiter = 0  # Redis' id of the connection that waits

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - kombu's
        if asynchronous:  # holds a connection of its own
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
        if self._kept is None or self._kept.connection_pool is not self.pool:  # the pool is new after a lost connection
            self._kept = super()._create_client()  # type: ignore[no-untyped-call]
        return self._kept

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Wait for the next message of all queues that have room."""
        queues = self._queue_cycle
        full = [queue for queue in queues.items if not self.qos.has_free_slot(queue, self.quotas)]
        others = [queue for queue in queues.items if queue not in full]
        self._left_out = full if others else ()  # who serves the full ones alone keeps no place free
        if self._left_out:
            self._queue_cycle = priority_cycle(others)  # type: ignore[no-untyped-call]
            timeout = MAX_WAIT_S
            self.client.connection.send_command("CLIENT", "ID")
            with contextlib.suppress(ResponseError):  # a broker that does not allow it
                self._waiter = self.client.connection.read_response()
        try:
            super()._brpop_start(timeout)  # type: ignore[no-untyped-call]
        finally:
            self._queue_cycle = queues

    def look_again(self) -> None:
        """End a wait that leaves out a queue which has room by now; the next wait begins at once."""
        if self._in_poll and any(self.qos.has_free_slot(queue, self.quotas) for queue in self._left_out):
            with contextlib.suppress(ResponseError), self.conn_or_acquire() as client:
                if client.client_unblock(self._waiter):
                    self._left_out = ()


class Transport(redis.Transport):
    """kombu's, with that channel."""

    Channel = Channel
