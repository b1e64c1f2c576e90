"""Where a process serves its metrics."""

import socket
import urllib.request

import pytest

from infra.embedded.process import free_port
from shared.metrics import serve


def test_metrics_are_served_only_where_they_are_wanted() -> None:
    """Without a port nothing listens; with one, its host's loopback does, until it is stopped."""
    serve(0, "127.0.0.1", "OSTEON_X")()
    port = free_port()
    stop = serve(port, "127.0.0.1", "OSTEON_X")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        assert b"process_cpu_seconds_total" in response.read()
    stop()
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 1):
        pass


def test_a_taken_port_stops_no_process(caplog: pytest.LogCaptureFixture) -> None:
    """A port that is in use costs the metrics, and is told with its cure."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        serve(taken.getsockname()[1], "127.0.0.1", "OSTEON_X_PORT")()
    assert "OSTEON_X_PORT" in str([vars(record) for record in caplog.records])
