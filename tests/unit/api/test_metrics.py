"""How long requests are said to take."""

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY

from api.request_metrics import RequestMetrics


@pytest.mark.parametrize(("kind", "whole"), [(b"text/event-stream; charset=utf-8", False), (b"text/html", True)])
def test_a_stream_that_stays_open_is_no_slow_request(kind: bytes, whole: bool) -> None:
    """Of an event stream the time to its response's first byte counts, of all else the time to its last."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 299, "headers": [(b"Content-Type", kind)]})
        await asyncio.sleep(0.3)
        await send({"type": "http.response.body", "body": b""})

    async def nothing(*_: Any) -> Any:
        return {}

    labels = {"method": "GET", "route": "none", "status": "299"}
    before = REGISTRY.get_sample_value("osteon_api_request_seconds_sum", labels) or 0.0
    asyncio.run(RequestMetrics(app)({"type": "http", "method": "GET", "path": "/x"}, nothing, nothing))
    after = REGISTRY.get_sample_value("osteon_api_request_seconds_sum", labels)
    assert after is not None
    assert (after - before >= 0.3) is whole
