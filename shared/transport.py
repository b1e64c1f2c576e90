"""kombu's transport to Redis and Valkey, but that it keeps its client, and counts right before a full broker."""

from typing import Any

from kombu.transport import redis


class QoS(redis.QoS):
    """The count of messages in hand, right even after an acknowledgement that the broker refused."""

    def ack(self, delivery_tag: str) -> None:
        """Take it off the count first.

        kombu counts a message whose acknowledgement failed for ever. After as many as there are threads the consumer is
        connected and deaf.
        """
        self._quick_ack(delivery_tag)
        super().ack(delivery_tag)  # type: ignore[no-untyped-call]


class Channel(redis.Channel):
    """A channel with one client a connection pool.

    A client is a dictionary of some hundred callbacks over a pool that it shares: making one costs more than most
    commands, an eighth of a worker's control plane (docs/adr/0002-broker-settings.md). It is safe between threads.
    """

    QoS = QoS
    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - kombu's
        if asynchronous:  # holds a connection of its own
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
        if self._kept is None or self._kept.connection_pool is not self.pool:  # the pool is new after a lost connection
            self._kept = super()._create_client()  # type: ignore[no-untyped-call]
        return self._kept


class Transport(redis.Transport):
    """kombu's, with that channel."""

    Channel = Channel
