"""SQLAlchemy compiles a statement once for each engine, and nearly each test has engines of its own: a third of its time.

All engines of a test process share what was compiled, the dialect that it was compiled for, and what that found out of the
server: each would ask five queries at its first connection, and each connection for the number of a type that we have not.
"""

from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.util import LRUCache

_compiled: LRUCache[Any, Any] = LRUCache(5000)
_engines: list[Engine] = []  # the first one, once it is made


def sharing_engine(*args: Any, **kwargs: Any) -> Engine:
    """As sqlalchemy.create_engine, for tests against servers of one version."""
    known: Any = _engines[0].dialect if _engines else None
    met = bool(getattr(known, "server_version_info", None))  # the first one has met a server
    engine = create_engine(*args, **kwargs, use_native_hstore=False, _initialize=not met)
    if not _engines:
        _engines.append(engine)
    if met:
        engine.dialect = known
        engine._compiled_cache = _compiled
        prepare = known.on_connect()
        event.listen(engine, "connect", lambda connection, _: prepare(connection))
    return engine
