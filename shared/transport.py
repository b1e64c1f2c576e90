"""kombu's transport to Redis and Valkey, which builds a client for each command; this one keeps it."""

from typing import Any

from kombu.transport import redis


class Channel(redis.Channel):
    """A channel with one client a connection pool.

    A client is a dictionary of some hundred callbacks over a pool that it shares: making one costs more than most
    commands, an eighth of a worker's control plane (docs/adr/0002-broker-settings.md). It is safe between threads.
    """

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
