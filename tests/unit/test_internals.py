"""What Osteon needs of its libraries beyond their word, each by its name; the versions are pinned for that reason.

A test that fails here after an upgrade says which code of ours to read again, and beside what. Only then move the pin.
"""

import asyncio
import functools
import inspect
import re
import socket
import time
import tomllib
from collections import OrderedDict
from collections.abc import Callable
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import celery.beat
import celery.worker.consumer
import flower.command
import flower.options
import flower.urls
import flower.views.monitor
import h11
import kombu
import kombu.connection
import pebble.pool.process
import pytest
import sqlalchemy
import uvicorn.protocols.http.h11_impl as uvicorn_h11
from celery import Celery
from celery.app.amqp import AMQP
from celery.app.defaults import NAMESPACES
from celery.app.defaults import flatten as celery_settings
from celery.events import EventDispatcher
from celery.signals import heartbeat_sent
from celery.worker.heartbeat import Heart
from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.scheduling import priority_cycle
from pebble import ProcessExpired, ProcessPool
from pynetdicom import AE, build_context, fsm
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dul import DULServiceProvider
from pynetdicom.presentation import negotiate_as_acceptor
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.transport import AssociationSocket
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import LRUCache
from starlette.requests import Request
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState
from xdist.scheduler import LoadScopeScheduling

from shared.queue.celery_app import celery_app
from shared.settings import ROOT, Settings
from tests.internals import overrides_and_taken, privates, sources

CONTRACTS: dict[str, str] = {}  # what of ours relies on an internal: the distribution that it is of
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = {
    "celery",
    "fastapi",
    "flower",
    "h11",
    "kombu",
    "pebble",
    "pynetdicom",
    "pytest-xdist",
    "sqlalchemy",
    "starlette",
    "uvicorn",
}
Test = Callable[..., None]


def contract(library: str, *uses: str, read: str, code: str = "") -> Callable[[Test], Test]:
    """A test of what `uses` of ours need of a library. Where it fails it says what to read again.

    code: ours that needs it, where reading the code does not find the use: no override, no private name.
    """

    def told(test: Test) -> Test:
        for use in uses:
            CONTRACTS[use] = library

        @functools.wraps(test)
        def telling(*args: Any, **kwargs: Any) -> None:
            try:
                test(*args, **kwargs)
            except Exception as error:
                raise AssertionError(
                    f"{library} {metadata.version(library)} is not as Osteon needs it ({error!r}). Read {read} again, "
                    f"beside {', '.join(uses) or code}"
                ) from error

        return telling

    return told


def taken(function: Callable[..., Any]) -> list[str]:
    """The names of what it takes, without annotations and defaults."""
    return [parameter.name for parameter in inspect.signature(function).parameters.values()]


# -- kombu: the transport -----------------------------------------------------------------------------------------------

TRANSPORT = "shared.queue.redis_transport"
KOMBU = "kombu/transport/redis.py and kombu/transport/virtual/base.py"


class RefusingBroker:
    """A broker that refuses every command."""

    do_restore = False

    def conn_or_acquire(self, client: Any = None) -> Any:
        raise OSError("refused")


@contract(
    "kombu", *(f"{TRANSPORT}.QoS.{name}" for name in ("ack", "_quick_ack", "channel", "prefetch_count", "_delivered", "_dirty")),
    read=KOMBU,
)  # fmt: skip
def test_kombu_counts_what_is_delivered_and_not_dirty() -> None:
    """A tag is free once it is dirty; kombu marks it after the broker's response, so a refused one is never free."""
    qos = kombu_redis.QoS(RefusingBroker(), prefetch_count=2)
    assert type(qos._delivered) is OrderedDict
    assert qos._dirty == set()
    qos._quick_append("a", object())
    qos._quick_append("b", object())
    assert not qos.can_consume()
    with pytest.raises(OSError, match="refused"):
        qos.ack("a")  # the reason for our own ack: were the tag dirty now, kombu's would do
    assert not qos.can_consume()
    qos._quick_ack("a")
    assert qos._dirty == {"a"}
    assert qos.can_consume()
    assert taken(kombu_redis.QoS.ack) == ["self", "delivery_tag"]
    assert qos.prefetch_count == 2


def channel(**more: Any) -> Any:
    """kombu's, without a connection."""
    made = kombu_redis.Channel.__new__(kombu_redis.Channel)
    vars(made).update(more)
    return made


@contract(
    "kombu",
    f"{TRANSPORT}.Channel._create_client",
    f"{TRANSPORT}.Channel.pool",
    f"{TRANSPORT}.Channel.conn_or_acquire",
    read=KOMBU,
)
def test_kombu_makes_a_client_for_each_command() -> None:
    """Each call makes one over the pool, or over the pool for the loop; conn_or_acquire calls it where no client is given."""
    pools = [SimpleNamespace(connection_kwargs={}, name=name) for name in ("pool", "loop")]
    one = channel(
        _pool=pools[0], _async_pool=pools[1], Client=lambda connection_pool: SimpleNamespace(of=connection_pool)
    )
    assert one._create_client() is not one._create_client()  # the reason for our own
    assert one._create_client().of is one.pool is pools[0]
    assert one._create_client(asynchronous=True).of is pools[1]
    with one.conn_or_acquire() as client:
        assert client.of is pools[0]
    with one.conn_or_acquire(one) as client:
        assert client is one


@contract(
    "kombu", *(f"{TRANSPORT}.Channel.{name}" for name in ("_brpop_start", "_in_poll", "_queue_cycle", "client")),
    read=KOMBU,
)  # fmt: skip
def test_kombu_waits_for_the_queues_of_its_cycle() -> None:
    """BRPOP names the queues of _queue_cycle in their order and the seconds; _in_poll is the connection meanwhile."""
    sent: list[Any] = []
    connection = SimpleNamespace(send_command=lambda *words: sent.append(words))
    one = channel(
        _queue_cycle=priority_cycle(["frames", "urgent"]), _active_queues=["urgent", "frames", "routine"], priority_steps=[0],
        active_fanout_queues=set(), client=SimpleNamespace(connection=connection), brpop_timeout=1, global_keyprefix="",
    )  # fmt: skip
    one._brpop_start(0.25)
    assert sent == [("BRPOP", "frames", "urgent", 0.25)]
    assert one._in_poll is connection
    assert taken(kombu_redis.Channel._brpop_start) == ["self", "timeout"]
    poller = inspect.getsource(kombu_redis.MultiChannelPoller._register_BRPOP)
    assert "if not channel._in_poll" in poller
    assert "channel._brpop_start()" in poller
    assert "self._queue_cycle.update(self.active_queues)" in inspect.getsource(kombu_redis.Channel._update_queue_cycle)


@contract("kombu", "tests.integration.test_jobs: ._disconnect_pools", read=KOMBU)
def test_kombu_makes_new_pools_after_a_lost_connection() -> None:
    """_disconnect_pools drops both, so that the next client is over another pool: by that ours knows its own as old."""
    gone: list[str] = []
    pool = SimpleNamespace(disconnect=lambda: gone.append("pool"), connection_kwargs={})
    one = channel(_pool=pool, _async_pool=None, _sentinel_manager=None, _async_sentinel_manager=None)
    one._get_pool = lambda asynchronous=False: "another"
    one._disconnect_pools()
    assert gone == ["pool"]
    assert one.pool == "another"


@contract("kombu", read="kombu/utils/scheduling.py", code="shared.queue.redis_transport.Channel._brpop_start")
def test_kombu_cycle_keeps_an_order() -> None:
    """`items` is the order, and is what consume gives; rotate leaves it."""
    cycle = priority_cycle(["a", "b"])
    cycle.rotate("a")
    assert cycle.items == cycle.consume(2) == ["a", "b"]


@contract(
    "kombu", *(f"{TRANSPORT}.Channel.{name}" for name in ("QoS", "from_transport_options", "qos")), f"{TRANSPORT}.Transport.Channel",
    read=KOMBU,
)  # fmt: skip
def test_kombu_takes_our_classes_and_options() -> None:
    """By its name the transport is ours, its channels make our QoS, and the options named become their attributes."""
    assert isinstance(kombu_redis.Channel.from_transport_options, tuple)
    assert "self.QoS(self)" in inspect.getsource(virtual.Channel.qos.fget)
    assert "for opt_name in self.from_transport_options" in inspect.getsource(virtual.Channel.__init__)
    with kombu.Connection(transport="shared.queue.redis_transport:Transport") as connection:
        from shared.queue.redis_transport import Channel, QoS

        assert connection.transport.Channel is Channel
        assert Channel.QoS is QoS


@contract("kombu", read=KOMBU, code="shared.queue.redis_transport.QoS.has_free_slot")
def test_kombu_messages_name_their_queue() -> None:
    """delivery_info of a message holds the routing key, by which has_free_slot counts a queue's messages."""
    one = channel(
        body_encoding=None, encode_body=lambda body, encoding: (body, encoding), _next_delivery_tag=lambda: "tag"
    )
    message = one.prepare_message("body")
    one._inplace_augment_message(message, "", "urgent")
    assert message["properties"]["delivery_info"]["routing_key"] == "urgent"


# -- Celery -------------------------------------------------------------------------------------------------------------

CONSUMER = "worker.consumer.Consumer"
CELERY = "celery/worker/consumer/consumer.py"
CeleryConsumer = celery.worker.consumer.Consumer


def consumer(**more: Any) -> Any:
    """Celery's, without a worker."""
    made = CeleryConsumer.__new__(CeleryConsumer)
    vars(made).update(more)
    return made


@contract("celery", f"{CONSUMER}._flush_events", f"{CONSUMER}.hub", read=CELERY)
def test_celery_flushes_events_at_each_turn() -> None:
    """The dispatcher calls on_send_event_buffered, which asks the hub to call _flush_events, which flushes."""
    flushed: list[str] = []
    calls: list[Callable[[], object]] = []
    one = consumer(
        event_dispatcher=SimpleNamespace(flush=lambda: flushed.append("flushed")),
        hub=SimpleNamespace(call_soon=calls.append),
    )
    one._flush_events()
    assert flushed == ["flushed"]
    one._flush_events_promise = lambda: None
    one.on_send_event_buffered()
    assert calls == [one._flush_events_promise]
    assert "promise(self._flush_events)" in inspect.getsource(CeleryConsumer.__init__)


@contract("celery", f"{CONSUMER}.call_soon_ack", read=CELERY)
def test_celery_acknowledges_in_the_loop() -> None:
    """The acknowledgement is a call with arguments that the hub makes at its next turn; nothing there catches errors."""
    calls: list[Callable[[], object]] = []
    done: list[object] = []
    one = consumer(hub=SimpleNamespace(call_soon=calls.append))
    one.call_soon_ack(lambda *args, **kwargs: done.append((args, kwargs)), 1, two=2)
    assert done == []
    calls[0]()
    assert done == [((1,), {"two": 2})]
    assert "call_soon_ack,\n" in inspect.getsource(CeleryConsumer.create_task_handler)


@contract("celery", *(f"{CONSUMER}.on_connection_error_{when}_connected" for when in ("after", "before")), read=CELERY)
def test_celery_tells_of_lost_connections() -> None:
    """Both are called with the error and nothing else, from the loop that connects again."""
    for name in ("on_connection_error_after_connected", "on_connection_error_before_connected"):
        assert taken(getattr(CeleryConsumer, name)) == ["self", "exc"]
        assert f"self.{name}(exc)" in inspect.getsource(CeleryConsumer.start)


@contract("celery", f"{CONSUMER}.ensure_connected", read=f"{CELERY} and kombu/connection.py")
def test_celery_asks_kombu_to_connect() -> None:
    """It calls the connection's ensure_connection and says nothing of intervals, which kombu then lets grow."""
    seen: list[Any] = []
    settings = {
        "broker_connection_retry_on_startup": True,
        "broker_connection_retry": True,
        "broker_connection_max_retries": None,
    }
    one = consumer(app=SimpleNamespace(conf=SimpleNamespace(**settings)), first_connection_attempt=True)
    connection = SimpleNamespace(
        ensure_connection=lambda *args, **kwargs: seen.append((len(args), set(kwargs))) or "connected"
    )
    assert one.ensure_connected(connection) == "connected"
    assert seen == [(2, {"callback"})]
    asked = inspect.signature(kombu.Connection._ensure_connection).parameters
    assert [asked[name].default for name in ("interval_start", "interval_step", "interval_max")] == [2, 2, 30]


@contract("celery", read="celery/app/defaults.py", code="shared.queue.celery_app.celery_app and worker.main")
def test_celery_takes_our_consumer() -> None:
    """worker.main names it in a setting that Celery knows; so are all that shared.queue.celery_app sets."""
    known = {name for name, _ in celery_settings(NAMESPACES)}
    assert {"worker_consumer", "beat_scheduler"} <= known
    asked = celery_app(Settings(broker_url="redis://127.0.0.1:1")).conf.changes
    assert asked
    assert set(asked) - known <= {"broker_url", "deprecated_settings"}


@contract(
    "celery",
    "shared.queue.publisher.SentEvents.publish",
    "shared.queue.publisher.SentEvents.send",
    read="celery/events/dispatcher.py and celery/app/amqp.py",
)
def test_celery_publishes_sent_events_by_the_dispatcher() -> None:
    """send_task calls publish("task-sent", fields, producer, …); send keeps the events of a group until flush."""
    assert taken(EventDispatcher.publish)[:4] == ["self", "type", "fields", "producer"]
    assert "evd.publish('task-sent', sent_event," in inspect.getsource(AMQP._create_task_sender)
    app = Celery("contract", broker="memory://", set_as_current=False)
    published: list[Any] = []
    with app.connection_for_write() as connection:
        events = EventDispatcher(channel=connection.default_channel, app=app, buffer_group=["task"])
        events._publish = lambda event, producer, routing_key, **_: published.append((len(event), routing_key))
        events.send("task-sent", uuid="1")
        events.send("task-sent", uuid="2")
        assert published == []
        events.flush()
        assert published == [(2, "task.multi")]
        events.close()
    assert "event_dispatcher" in taken(Celery.send_task) or "options" in taken(Celery.send_task)


@contract("celery", "shared.queue.liveness.Scheduler.tick", read="celery/beat.py")
def test_celery_beat_waits_as_long_as_tick_says() -> None:
    """Beat's loop calls tick without arguments and sleeps for the seconds that it returns."""
    loop = inspect.getsource(celery.beat.Service.start)
    assert "interval = self.scheduler.tick()" in loop
    assert "time.sleep(interval)" in loop
    assert issubclass(celery.beat.PersistentScheduler, celery.beat.Scheduler)
    app = Celery("contract", broker="memory://", set_as_current=False)
    assert isinstance(celery.beat.Scheduler(app, max_interval=7, lazy=True).tick(), (int, float))


@contract("celery", read="celery/worker/maintenance/heartbeat.py", code="shared.queue.liveness.watch_consumer")
def test_celery_sends_a_signal_with_each_heartbeat() -> None:
    """Once a receiver is there when the heart is made, by which shared.queue.liveness touches its file."""
    sent: list[str] = []

    def note(**_: object) -> None:
        sent.append("sent")

    heartbeat_sent.connect(note)
    try:
        eventer = SimpleNamespace(on_enabled=set(), on_disabled=set(), send=lambda *_, **__: None)
        Heart(None, eventer)._send("worker-heartbeat")
    finally:
        heartbeat_sent.disconnect(note)
    assert sent == ["sent"]


# -- uvicorn and h11 ----------------------------------------------------------------------------------------------------

PROTOCOL = "api.server.Protocol"
UVICORN = "uvicorn/protocols/http/h11_impl.py"


class Wire(asyncio.Transport):
    """A connection that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed, self.paused = b"", False, False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


async def talk(see: Callable[[Any, Wire], Any], app: Any) -> Any:
    """A connection of uvicorn's own protocol to an application; what see finds there."""
    config = Config(app, http=uvicorn_h11.H11Protocol, ws="none", lifespan="off", log_config=None)
    protocol = uvicorn_h11.H11Protocol(config, ServerState(), {}, asyncio.get_running_loop())
    wire = Wire()
    protocol.connection_made(wire)
    return await see(protocol, wire)


REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"


@contract(
    "uvicorn",
    *(f"{PROTOCOL}.{name}" for name in (
        "__init__", "connection_made", "connection_lost", "data_received", "handle_events", "on_response_complete",
        "send_400_response", "_unset_keepalive_if_required", "conn", "connections", "cycle", "flow", "loop", "transport",
    )),
    read=UVICORN,
)  # fmt: skip
def test_uvicorn_serves_by_a_cycle_for_each_request() -> None:
    """From the connection to the end of a response: who calls what, and which attributes say where it stands."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def see(protocol: Any, wire: Wire) -> None:
        assert protocol in protocol.connections
        assert protocol.transport is wire
        assert protocol.flow._transport is wire
        assert protocol.loop is asyncio.get_running_loop()
        assert protocol.cycle is None
        ended: list[str] = []
        after = protocol.on_response_complete
        protocol.on_response_complete = lambda: (ended.append("ended"), after())
        protocol.data_received(REQUEST)
        cycle = protocol.cycle
        states = [
            cycle.response_started,
            cycle.response_complete,
            cycle.disconnected,
            cycle.more_body,
            cycle.waiting_for_100_continue,
        ]
        assert states == [False, False, False, True, True]
        assert isinstance(cycle.message_event, asyncio.Event)
        assert protocol.conn.their_state is h11.SEND_BODY
        protocol.data_received(b"body")
        assert not cycle.more_body
        await asyncio.gather(*protocol.tasks)
        assert ended == ["ended"]
        assert cycle.response_started
        assert b"204" in wire.written
        assert protocol.timeout_keep_alive_task is not None
        protocol._unset_keepalive_if_required()
        assert protocol.timeout_keep_alive_task is None
        protocol.data_received(b"no HTTP\r\n\r\n")
        assert b" 400 " in wire.written
        assert wire.closed
        protocol.connection_lost(None)
        assert protocol not in protocol.connections

    asyncio.run(talk(see, app))
    assert taken(uvicorn_h11.H11Protocol.__init__) == ["self", "config", "server_state", "app_state", "_loop"]
    assert taken(uvicorn_h11.H11Protocol.send_400_response) == ["self", "msg"]
    source = inspect.getsource(uvicorn_h11.H11Protocol)
    assert "self.send_400_response(msg)" in source
    assert "on_response=self.on_response_complete" in source
    assert "self.handle_events()" in inspect.getsource(uvicorn_h11.H11Protocol.data_received)


@contract("uvicorn", read="uvicorn/protocols/http/flow_control.py", code="api.server.Protocol")
def test_uvicorn_pauses_reading_through_the_transport() -> None:
    """read_paused says whether it does, and pausing twice is pausing once."""
    wire = Wire()
    flow = FlowControl(wire)
    flow.pause_reading()
    assert (flow.read_paused, wire.paused) == (True, True)
    flow.resume_reading()
    assert (flow.read_paused, wire.paused) == (False, False)


@contract("uvicorn", read="uvicorn/config.py", code="api.server.main")
def test_uvicorn_has_the_settings_of_the_server() -> None:
    """What api.server gives to Config is there, with the limit that its own h11 connection needs."""
    names = {
        "http",
        "ws",
        "access_log",
        "log_config",
        "server_header",
        "proxy_headers",
        "timeout_keep_alive",
        "timeout_graceful_shutdown",
    }
    assert names | {"h11_max_incomplete_event_size"} <= set(taken(Config.__init__))


@contract("h11", "api.server.StrictConnection.next_event", read="h11/_connection.py")
def test_h11_takes_a_request_of_two_lengths() -> None:
    """It reads Transfer-Encoding and does not mind Content-Length, the reason for our own; and names what is left."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0")
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}
    assert event.http_version == b"1.1"
    assert connection.their_state is h11.SEND_BODY
    assert connection.trailing_data == (b"0", False)


# -- FastAPI and Starlette ----------------------------------------------------------------------------------------------


@contract(
    "fastapi", *(f"api.requests.KeyFirstRoute.{name}" for name in ("__init__", "get_route_handler", "body_field", "dependant", "path")),
    read="fastapi/routing.py",
)  # fmt: skip
def test_fastapi_reads_the_body_before_it_asks_for_a_key() -> None:
    """The reason for KeyFirstRoute; and what it takes: body_field, dependencies with their calls, a handler made once."""

    def refuse() -> None:
        raise HTTPException(401)

    def ask(wanted: dict[str, str] = Body()) -> None:  # noqa: B008 - FastAPI's
        """A route."""

    def nothing() -> None:
        """A route without a body."""

    route = APIRoute("/asked", ask, methods=["POST"], dependencies=[Depends(refuse)])
    assert route.body_field is not None
    assert APIRoute("/", nothing).body_field is None
    assert [one.call for one in route.dependant.dependencies] == [refuse]
    assert route.path == "/asked"
    assert inspect.iscoroutinefunction(route.get_route_handler())
    assert "self.get_route_handler()" in inspect.getsource(APIRoute.__init__)
    assert "max_body_size" in taken(APIRoute.__init__)
    app = FastAPI()
    app.router.routes.append(route)
    with TestClient(app) as http:
        broken = http.post("/asked", content=b"no JSON", headers={"Content-Type": "application/json"})
        assert broken.status_code == 422  # were it 401, KeyFirstRoute would have nothing to do
        assert http.post("/asked", json={}).status_code == 401


@contract("fastapi", "api.auth.KeyRejected.__init__", read="fastapi/exceptions.py")
def test_fastapi_errors_have_a_status_words_and_headers() -> None:
    """In this order, as attributes too."""
    wrong = HTTPException(401, "no", {"WWW-Authenticate": "Bearer"})
    assert (wrong.status_code, wrong.detail, wrong.headers) == (401, "no", {"WWW-Authenticate": "Bearer"})


@contract("fastapi", "api.requests.Router.__init__", read="fastapi/routing.py")
def test_fastapi_makes_routes_of_the_class_that_is_named() -> None:
    """route_class is whose class each decorated route is."""

    class Own(APIRoute):
        """A route."""

    router = APIRouter(route_class=Own)
    router.get("/")(lambda: None)
    assert [type(route) for route in router.routes] == [Own]


@contract(
    "starlette", *(f"api.requests.StrictRequest.{name}" for name in ("__init__", "body", "json", "_body", "headers", "stream")),
    read="starlette/requests.py",
)  # fmt: skip
def test_starlette_keeps_a_body_in_one_attribute() -> None:
    """stream gives `_body` where it is set, json asks body, and form reads the stream."""

    async def receive() -> Any:
        return {"type": "http.request", "body": b'{"a": 1}', "more_body": False}

    async def see() -> None:
        request = Request({"type": "http", "headers": [(b"content-length", b"8")]}, receive)
        assert not hasattr(request, "_body")
        assert request.headers["content-length"] == "8"
        assert await request.json() == {"a": 1}
        assert vars(request)["_body"] == b'{"a": 1}'
        other = Request({"type": "http", "headers": []}, receive)
        other._body = b"kept"
        assert b"".join([piece async for piece in other.stream()]) == b"kept"

    asyncio.run(see())
    assert "await self.body()" in inspect.getsource(Request.json)


# -- pebble -------------------------------------------------------------------------------------------------------------


@contract(
    "pebble", read="pebble/pool/process.py", code="worker.decoder_pool.Decoders and tests/integration/test_decoders.py"
)
def test_pebble_goes_by_the_clock_on_the_wall() -> None:
    """Why worker.decoder_pool measures again what pebble calls too late; tests of clocks replace `time` in that module."""
    assert pebble.pool.process.time is time
    assert "time.time() - task.timestamp > task.timeout" in inspect.getsource(pebble.pool.process)


@contract("pebble", read="pebble/pool/process.py", code="worker.decoder_pool.Decoders")
def test_pebble_has_what_the_decoders_call() -> None:
    """A child's exit code, a pool that is active, and a limit for each task."""
    assert ProcessExpired("ended", code=-9, pid=1).exitcode == -9
    assert taken(ProcessPool.schedule) == ["self", "function", "args", "kwargs", "timeout"]
    assert {"max_workers", "context", "initializer", "initargs"} <= set(taken(ProcessPool.__init__))
    pool = ProcessPool(1)
    assert pool.active
    pool.stop()
    pool.join()
    assert not pool.active


# -- SQLAlchemy ---------------------------------------------------------------------------------------------------------


@contract("sqlalchemy", "tests.statements: ._compiled_cache", read="sqlalchemy/engine/base.py")
def test_sqlalchemy_keeps_what_it_compiled_in_a_dictionary() -> None:
    """An engine asks its `_compiled_cache`, which may be shared with an engine of the same dialect."""
    first, second = (sqlalchemy.create_engine("sqlite://") for _ in range(2))
    assert isinstance(first._compiled_cache, LRUCache)
    second._compiled_cache, second.dialect = first._compiled_cache, first.dialect
    for engine in (first, second):
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.select(sqlalchemy.literal(1))).scalar() == 1
        engine.dispose()
    assert len(first._compiled_cache) == 1
    assert hasattr(first.dialect, "server_version_info")


@contract(
    "sqlalchemy",
    "tests.integration.test_administering: ._timeout",
    "tests.integration.test_transactions: ._timeout",
    read="sqlalchemy/pool/impl.py",
)
def test_sqlalchemy_waits_for_a_connection_as_long_as_its_pool_says() -> None:
    """The pool's `_timeout` is read at each wait."""
    pool = QueuePool(lambda: None, pool_size=1, max_overflow=0, timeout=30)  # type: ignore[arg-type]
    assert pool._timeout == 30
    pool._timeout = 0.5
    assert pool.timeout() == 0.5


@contract("sqlalchemy", read="sqlalchemy/orm/decl_api.py", code="shared.db.tables.base.Base")
def test_sqlalchemy_takes_names_and_types_from_the_base() -> None:
    """Documented: a base's metadata and type_annotation_map hold for its tables."""

    class Base(DeclarativeBase):
        """Tables."""

        metadata = sqlalchemy.MetaData(naming_convention={"pk": "pk_of_%(table_name)s"})
        type_annotation_map = {int: sqlalchemy.BigInteger}  # noqa: RUF012 - SQLAlchemy's

    assert Base.registry.type_annotation_map[int] is sqlalchemy.BigInteger
    assert Base.registry.metadata is Base.metadata


# -- Flower -------------------------------------------------------------------------------------------------------------


@contract(
    "flower",
    read="flower/options.py and flower/command.py",
    code="infra.embedded.parts.osteon_parts and docker-compose.yml",
)
def test_flower_knows_the_options_of_its_command_line() -> None:
    """Those that infra.embedded.parts and Compose give, in the command and by variables that begin with FLOWER_."""
    options = flower.options.options.as_dict()
    given = {"address", "port", "persistent", "db", "state_save_interval", "max_tasks", "basic_auth", "cookie_secret"}
    assert given <= set(options)
    assert flower.command.ENV_VAR_PREFIX == "FLOWER_"


@contract("flower", read="flower/urls.py", code="infra.embedded.parts.osteon_parts")
def test_flower_answers_whether_it_lives_without_a_login() -> None:
    """infra.embedded.parts waits for /healthcheck, which asks for none; pages of tasks do."""
    handlers = {url[0]: url[1] for url in flower.urls.handlers if isinstance(url, tuple)}
    assert handlers["/healthcheck"] is flower.views.monitor.Healthcheck
    assert not hasattr(flower.views.monitor.Healthcheck.get, "__wrapped__")


# -- pynetdicom: associations --------------------------------------------------------------------------------------------

LISTENER = "api.listener.association"
PYNETDICOM = "pynetdicom/association.py, dul.py, dimse.py, dimse_messages.py, acse.py, fsm.py and transport.py"


def of_listener(name: str, *names: str) -> tuple[str, ...]:
    """Names of a class of the listener, in full."""
    return tuple(f"{LISTENER}.{name}.{one}" for one in names)


@contract(
    "pynetdicom",
    *of_listener(
        "PeerAssociation", "__init__", "_accepted_cx", "_network_timeout", "_serve_request", "abort", "accepted_contexts",
        "acceptor", "acse", "acse_timeout", "dimse", "dul", "is_established", "name", "network_timeout", "requestor", "run_reactor", "set_socket",
    ),
    read=PYNETDICOM,
)  # fmt: skip
def test_pynetdicom_makes_and_serves_an_association() -> None:
    """Its parts can be exchanged before it starts; it asks `acse`, serves what `dimse` has, and ends `run_reactor`."""
    assert taken(Association.__init__) == ["self", "ae", "mode"]
    made = Association(AE(), "acceptor")
    assert (type(made.acse), type(made.dul), type(made.dimse)) == (ACSE, DULServiceProvider, DIMSEServiceProvider)
    assert made._accepted_cx == {}
    assert made.dul.socket is None
    assert made._server is None
    assert not made._started_dul
    made.network_timeout = 7
    assert made._network_timeout == made.dul._idle_timer.timeout == 7
    made.acse_timeout = 8
    assert made.dul.artim_timer.timeout == 8
    assert taken(Association._serve_request) == ["self", "msg", "context_id"]
    assert taken(Association.abort) == ["self", "block"]
    whole, loop = inspect.getsource(Association.run_reactor), inspect.getsource(Association._run_reactor)
    assert whole.index("self.requestor.primitive =") < whole.index("self.acse.negotiate_association()")
    assert "self.dul.receive_pdu(wait=True, timeout=self.acse_timeout)" in whole
    assert "if primitive is None:" in whole
    assert loop.index("self.dimse.get_msg(block=False)") < loop.index("self._serve_request(msg")
    assert "self.dul.idle_timer_expired()" in loop
    assert "evt.trigger(\n                ctx.assoc,\n                evt.EVT_C_STORE" in inspect.getsource(
        StorageServiceClass.SCP
    )


@contract("pynetdicom", "tests.results: ._as_scp", read="pynetdicom/presentation.py")
def test_pynetdicom_sends_reports_in_contexts_in_which_it_is_the_scp() -> None:
    """A test makes it send one without having proposed that role."""
    assert "if cx.as_scp is True" in inspect.getsource(Association._get_valid_context)
    context = build_context("1.2.3", ["1.2"])
    context._as_scp = True
    assert context.as_scp


@contract(
    "pynetdicom",
    *of_listener("AdmittingACSE", "__init__", "negotiate_association", "send_reject"),
    read=PYNETDICOM,
)
def test_pynetdicom_rejects_by_result_source_and_diagnostic() -> None:
    """And negotiates as acceptor in the order of `supported_contexts`."""
    assert taken(ACSE.__init__) == ["self", "assoc"]
    assert taken(ACSE.negotiate_association) == ["self"]
    assert taken(ACSE.send_reject) == ["self", "result", "source", "diagnostic"]
    assert "self.acceptor.supported_contexts" in inspect.getsource(ACSE._negotiate_as_acceptor)
    proposed, ours = build_context("1.2.3", ["1.2", "1.3"]), build_context("1.2.3", ["1.3", "1.2"])
    proposed.context_id = 1
    assert negotiate_as_acceptor([proposed], [ours])[0][0].transfer_syntax == ["1.3"]


@contract(
    "pynetdicom",
    *of_listener(
        "BoundedDIMSE", "__init__", "dul", "get_msg", "message", "msg_queue", "receive_primitive", "send_msg",
    ),
    read=PYNETDICOM,
)  # fmt: skip
def test_pynetdicom_writes_a_message_as_it_comes_into_what_the_message_holds() -> None:
    """A data set's pieces go to `data_set.write`, whatever it is, and it is the request's afterwards."""
    assert taken(DIMSEServiceProvider.receive_primitive) == ["self", "primitive"]
    assert "dul.assoc.dimse.receive_primitive(" in inspect.getsource(fsm.DT_2)
    source = inspect.getsource(DIMSEServiceProvider.receive_primitive)
    assert "if self.message is None:" in source
    assert "self.msg_queue.put((context_id," in source
    # a report that a peer sends is served by a thread of its own, unless the message becomes something else
    assert source.index("d_primitive = self.message.message_to_primitive()") < source.index("threading.Thread(")
    assert "isinstance(d_primitive, N_EVENT_REPORT) and d_primitive.is_valid_request" in source
    assert source.rstrip().endswith("self.message = None")
    written = inspect.getsource(DIMSEMessage.decode_msg)
    assert "self.encoded_command_set.write(data[1:])" in written
    assert "cast(BytesIO, self.data_set).write(data[1:])" in written
    assert "setattr(primitive, dataset_keyword, self.data_set)" in inspect.getsource(DIMSEMessage.message_to_primitive)
    assert taken(DIMSEServiceProvider.send_msg) == ["self", "primitive", "context_id"]
    assert "self.dul.send_pdu(pdata)" in inspect.getsource(DIMSEServiceProvider.send_msg)


@contract(
    "pynetdicom",
    *of_listener(
        "BoundedSocket", "__init__", "_is_connected", "assoc", "event_queue", "ready", "recv", "socket",
    ),
    read=PYNETDICOM,
)  # fmt: skip
def test_pynetdicom_reads_pdus_by_two_calls() -> None:
    """The head, whose length it believes, then the rest; an OSError ends the connection."""
    assert taken(AssociationSocket.__init__) == ["self", "assoc", "client_socket", "address"]
    assert taken(AssociationSocket.recv) == ["self", "nr_bytes"]
    source = inspect.getsource(DULServiceProvider._read_pdu_data)
    assert source.index("self.socket.recv(6)") < source.index("self.socket.recv(pdu_length)")
    assert source.count("except (OSError, TimeoutError)") == 2
    near, far = socket.socketpair()
    with near, far:
        made = AssociationSocket(Association(AE(), "acceptor"), client_socket=near)
        assert made.socket is near
        assert made._is_connected
        assert made.event_queue.get_nowait() == "Evt5"


@contract(
    "pynetdicom",
    *of_listener(
        "BoundedUpperLayer", "__init__", "_idle_timer", "_is_transport_event", "_kill_thread", "_process_recv_primitive",
        "_read_pdu_data", "event_queue", "run_reactor", "socket", "state_machine", "to_provider_queue", "to_user_queue",
    ),
    read=PYNETDICOM,
)  # fmt: skip
def test_pynetdicom_looks_for_what_came_in_one_place() -> None:
    """Each turn asks `_is_transport_event` once, and acts on one event; Sta6 is an association that is open."""
    loop = inspect.getsource(DULServiceProvider.run_reactor)
    assert loop.index("self._process_recv_primitive()") < loop.index("self._is_transport_event()")
    assert loop.index("self._is_transport_event()") < loop.index("self.event_queue.get(block=False)")
    assert "if self._kill_thread:" in loop
    assert inspect.getsource(DULServiceProvider._is_transport_event).count("self._read_pdu_data()") == 2
    # of a P-DATA-TF nothing else becomes: what reads its fragments from the connection leaves nothing out
    assert fsm.TRANSITION_TABLE["Evt10", "Sta6"] == "DT-2"
    done = inspect.getsource(fsm.DT_2).rpartition('"""')[2].split("\n")
    assert [line.strip() for line in done if line.strip() and not line.strip().startswith("#")] == [
        "pdu = dul._recv_pdu.get(False)",
        'dul.assoc.dimse.receive_primitive(cast("P_DATA", pdu.to_primitive()))',
        'return "Sta6"',
    ]
    assert fsm.TRANSITION_TABLE["Evt19", "Sta6"] == "AA-8"
    assert fsm.TRANSITION_TABLE["Evt17", "Sta13"] == "AR-5"
    made = Association(AE(), "acceptor").dul
    assert made.to_provider_queue.empty()
    assert made.to_user_queue.empty()
    assert made.state_machine.current_state == "Sta1"


# -- tools of the tests -------------------------------------------------------------------------------------------------


@contract("pytest-xdist", "tests.conftest.Scheduler._split_scope", read="xdist/scheduler/loadscope.py")
def test_xdist_groups_tests_by_a_scope() -> None:
    """Tests of one scope go to one process; the scope is worked out of the test's id."""
    assert taken(LoadScopeScheduling._split_scope) == ["self", "nodeid"]
    assert "self._split_scope(nodeid)" in inspect.getsource(LoadScopeScheduling)


# -- the list -----------------------------------------------------------------------------------------------------------


def test_every_internal_has_a_contract() -> None:
    """What the code overrides of a library, or takes of it without its word, has a test above; and no more."""
    texts = sources()
    assert set(overrides_and_taken(texts)) | privates(texts) == set(CONTRACTS)


def test_an_internal_that_is_new_is_found() -> None:
    """An override, through a class of ours too; what a class takes; a private attribute of somebody's."""
    made = {
        "api.made": (
            "from kombu.transport import redis\n"
            "class Channel(redis.Channel):\n"
            "    mine = 1\n"
            "    def _get(self, queue):\n        return self._in_poll or self.mine\n"
            "def look(engine):\n    return engine._compiled_cache\n"
        ),
        "shared.more": "from api.made import Channel\nclass Further(Channel):\n    def _put(self): ...\n    def own(self): ...\n",
    }
    assert overrides_and_taken(made) == {
        "api.made.Channel._get": "kombu", "api.made.Channel._in_poll": "kombu", "shared.more.Further._put": "kombu",
    }  # fmt: skip
    assert privates(made) == {"api.made: ._compiled_cache"}


def test_libraries_with_a_contract_are_pinned() -> None:
    """pyproject.toml names one version of each, the one that is locked and that these tests ran on."""
    asked = [line for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()) for line in lines]
    pins = {found[1]: found[2] for line in asked if (found := re.match(r"([\w-]+)(?:\[\w+\])?==([\w.]+)$", line))}
    assert set(CONTRACTS.values()) <= PINNED
    assert pins == {name: metadata.version(name) for name in PINNED}
    assert {f"{name}=={version}" for name, version in pins.items()} <= set(
        re.findall(r"^[\w-]+==[\w.]+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    )


def test_a_failed_contract_says_what_to_read() -> None:
    """The library with its version, the file there, and the code of ours."""

    @contract("kombu", read="kombu/made.py", code="shared.made")
    def broken() -> None:
        raise AttributeError("gone")

    with pytest.raises(
        AssertionError,
        match=rf"kombu {re.escape(metadata.version('kombu'))} .*gone.*Read kombu/made.py again, beside shared.made",
    ):
        broken()
