"""An application behind the real server, in a thread of the test's process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from api.server import Protocol
from tests.pace import LIMIT_S, until


@contextmanager
def served(app: FastAPI, protocol: type[Protocol] = Protocol) -> Iterator[int]:
    """Serve at a free port of 127.0.0.1, which is yielded; the application's lifespan is the caller's."""
    config = uvicorn.Config(
        app, port=0, http=protocol, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started, 20)
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(LIMIT_S)
