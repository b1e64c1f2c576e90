"""Serving a process's metrics to Prometheus, where they are wanted."""

import threading
from collections.abc import Callable

from prometheus_client import start_http_server

from shared.logs import get_logger

log = get_logger(__name__)


def serve(port: int, host: str, variable: str) -> Callable[[], None]:
    """Answer GET /metrics with what this process counts. A port that is taken costs the metrics, not the work.

    Args:
        port: of TCP; 0: no metrics.
        host: address of this machine.
        variable: the setting of the port, for the log.

    Returns:
        A function that stops it.
    """
    if not port:
        return lambda: None
    try:
        server, thread = start_http_server(port, host)
    except OSError as error:
        log.warning("metrics not served", why=f"{error.strerror}. Set {variable} to a free port.")
        return lambda: None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        if isinstance(thread, threading.Thread):
            thread.join()

    return stop
