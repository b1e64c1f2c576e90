"""What a connection to Postgres is made of."""

import os
import socket

import pytest
from sqlalchemy import text

from shared.repository import Database


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the names are Linux's")
def test_a_server_that_vanishes_is_noticed(database: Database, database_url: str) -> None:
    """Every pooled connection over TCP is probed while silent, and given up when nothing is acknowledged."""
    assert "@127.0.0.1" in database_url or "@localhost" in database_url
    with database.transaction() as session:
        assert session.scalar(text("SELECT 1")) == 1
        raw = session.connection().connection.dbapi_connection
        assert raw is not None
        with socket.socket(fileno=os.dup(raw.fileno())) as peer:
            options = {
                name: peer.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            }
            assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    expected = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 15_000}
    assert options == expected
