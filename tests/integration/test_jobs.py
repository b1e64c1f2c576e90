"""Messages through a real Valkey to a real Celery worker."""

import base64
import contextlib
import json
import os
import signal
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis

from infra.embedded.valkey import EmbeddedValkey
from shared.domain.study import Priority
from shared.errors import Unavailable
from shared.queries.analyses import DueMessage
from shared.queue import redis_transport
from shared.queue.celery_app import ANALYSE, BACKFILL, QUEUES, celery_app
from shared.queue.publisher import UNKNOWN_AGE, TaskPublisher
from shared.settings import ROOT, Settings
from tests.forked import ForkedProcess, program_of
from tests.pace import LIMIT_S, until
from worker.consumer import Consumer

# the worker's own settings and pool, with a task that only notes what came
WORKER = """
    import sys, threading
    from shared.queue.celery_app import ANALYSE, QUEUES, celery_app
    from shared.settings import Settings
    app = celery_app(Settings())
    lock = threading.Lock()
    @app.task(name=ANALYSE)
    def note(analysis_id):
        with lock, open(sys.argv[1], "a") as file:
            file.write(analysis_id + "\\n")
    app.worker_main(["worker", "--pool=threads", "--concurrency=" + sys.argv[2], "--queues=" + ",".join(QUEUES),
                     "--without-gossip", "--without-mingle", "--loglevel=INFO"])
"""


@pytest.fixture
def publisher(make_settings: Callable[..., Settings]) -> Iterator[TaskPublisher]:
    publisher = TaskPublisher(celery_app(make_settings()))
    yield publisher
    publisher.app.close()


@pytest.fixture
def client(broker_url: str) -> Iterator[Any]:
    connected = redis.Redis.from_url(broker_url)
    yield connected
    connected.close()


@pytest.fixture
def start_worker(broker_url: str, tmp_path: Path) -> Iterator[Callable[..., ForkedProcess]]:
    """Starts a worker that notes the ids it gets in a file."""
    started: list[ForkedProcess] = []

    def start(threads: int = 1) -> ForkedProcess:
        environment = os.environ | {"OSTEON_BROKER_URL": broker_url, "PYTHONPATH": str(ROOT)}
        program = program_of(textwrap.dedent(WORKER), [str(tmp_path / "seen"), str(threads)])
        with (tmp_path / "worker.log").open("ab") as log:
            started.append(ForkedProcess(program, environment, log, ROOT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(LIMIT_S)


def seen(tmp_path: Path, count: int, seconds: float = 60) -> list[UUID]:
    """The ids that arrived, once there are so many."""

    def lines() -> list[str]:
        return (tmp_path / "seen").read_text().split() if (tmp_path / "seen").exists() else []

    until(lambda: len(lines()) >= count, seconds, lambda: (tmp_path / "worker.log").read_text()[-3000:])
    return [UUID(line) for line in lines()]


def studies(count: int, queue: Priority) -> list[DueMessage]:
    return [DueMessage(uuid4(), uuid4(), queue, datetime.now(UTC)) for _ in range(count)]


def test_flower_is_told_of_every_message(publisher: TaskPublisher) -> None:
    """Of each of 60 messages, and of one that is sent alone; by its study's id."""
    told: list[str] = []
    with publisher.app.connection_for_read() as connection:
        receiver = publisher.app.events.Receiver(
            connection, handlers={"task-sent": lambda event: told.append(event["args"])}
        )
        with receiver.consumer_context(wakeup=False) as (heard, *_):
            with contextlib.suppress(TimeoutError):
                heard.drain_events(timeout=1)  # listens from here on
            sent = studies(60, Priority.ROUTINE) + studies(1, Priority.URGENT)
            assert publisher.send(sent[:60]) == []
            assert publisher.send(sent[60:]) == []
            while len(told) < 61:
                heard.drain_events(timeout=LIMIT_S)  # raises when nothing more comes
    assert sorted(told) == sorted(f"('{one.analysis_id}',) study {one.study_id}" for one in sent)


def test_queues_are_served_in_strict_order(
    publisher: TaskPublisher, start_worker: Callable[..., ForkedProcess], tmp_path: Path
) -> None:
    """With all three queues filled, no routine study goes before an urgent one, and no backlog study before either."""
    order = (Priority.URGENT, Priority.ROUTINE, Priority.BACKLOG)  # not QUEUES, which may be wrong
    queues = {queue: studies(60, queue) for queue in reversed(order)}
    for waiting in queues.values():  # backlog first, urgent last
        assert publisher.send(waiting) == []
    assert publisher.waiting() == dict.fromkeys(QUEUES, 60)
    worker = start_worker()
    came = seen(tmp_path, 180)
    assert came == [study.analysis_id for queue in order for study in queues[queue]]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(LIMIT_S) == 0
    assert publisher.waiting() == dict.fromkeys(QUEUES, 0)


@pytest.mark.parametrize("may_wake_itself", [True, False])
def test_slower_queues_leave_slots_for_faster_ones(
    publisher: TaskPublisher,
    client: Any,
    make_settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    may_wake_itself: bool,
) -> None:
    """However long they are, an urgent study's message is taken at once; and each place they may have they get back."""
    slots = 10
    held: list[Any] = []
    app = publisher.app
    if may_wake_itself:  # and need not look again after a moment
        monkeypatch.setattr(redis_transport, "MAX_WAIT_S", 60)
    else:
        client.acl_setuser(
            "plain", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", "-client|id"]
        )
        url = publisher.app.conf.broker_url.replace("redis://", "redis://plain:any@")
        app = celery_app(make_settings(broker_url=url))
    assert publisher.send(studies(20, Priority.BACKLOG)) == []
    with app.connection_for_read() as connection, connection.channel() as channel:
        channel.basic_qos(0, slots, False)
        consumer = app.amqp.TaskConsumer(channel, on_message=held.append)

        def came() -> list[int]:
            """How many are held of each queue, once nothing more has come for a while."""
            quiet_since = time.monotonic()
            while time.monotonic() - quiet_since < 1:
                count = len(held)
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0.1)
                quiet_since = time.monotonic() if len(held) > count else quiet_since
            counts = Counter(message.delivery_info["routing_key"] for message in held)
            return [counts[queue] for queue in (Priority.BACKLOG, Priority.ROUTINE, Priority.URGENT)]

        def done(queue: str) -> None:
            message = next(one for one in held if one.delivery_info["routing_key"] == queue)
            held.remove(message)
            message.ack()

        with consumer:
            assert came() == [7, 0, 0]
            publisher.send(studies(20, Priority.ROUTINE))
            assert came() == [7, 2, 0]
            publisher.send(studies(1, Priority.URGENT))
            assert came() == [7, 2, 1]
            done(Priority.BACKLOG)
            assert came() == [6, 3, 1]
            done(Priority.URGENT)
            done(Priority.ROUTINE)
            assert came() == [6, 3, 0]
            publisher.send(studies(3, Priority.URGENT))
            assert came() == [6, 3, 1]
    app.close()


def test_heads_tell_when_the_oldest_message_left(publisher: TaskPublisher) -> None:
    """The head of a queue is the time of its oldest message, None when it is empty."""
    before = datetime.now(UTC)
    publisher.send(studies(1, Priority.ROUTINE))
    between = datetime.now(UTC)
    publisher.send(studies(3, Priority.ROUTINE))
    heads = publisher.oldest_messages()
    oldest = heads[Priority.ROUTINE]
    assert oldest is not None and before <= oldest <= between
    assert (heads[Priority.URGENT], heads[Priority.BACKLOG]) == (None, None)
    assert publisher.waiting() == {Priority.URGENT: 0, Priority.ROUTINE: 4, Priority.BACKLOG: 0}


@pytest.mark.parametrize("foreign", [b"not JSON", b"[]", b'{"headers": null}', b'{"headers": {"osteon_sent_at": 7}}'])
def test_a_foreign_message_at_the_head_loses_nothing(publisher: TaskPublisher, client: Any, foreign: bytes) -> None:
    """Behind a message that is not ours no study is taken for lost, and the look at the queues does not fail."""
    publisher.app.send_task(BACKFILL, queue=Priority.URGENT)
    client.lpush("routine", foreign)
    assert publisher.oldest_messages() == {
        Priority.URGENT: UNKNOWN_AGE,
        Priority.ROUTINE: UNKNOWN_AGE,
        Priority.BACKLOG: None,
    }


def test_a_hundred_messages_take_one_client(
    publisher: TaskPublisher, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kombu would build a client a command; and after a connection that was lost there is a new one."""
    made = []
    build = redis.Redis.__init__
    monkeypatch.setattr(
        redis.Redis, "__init__", lambda self, *args, **more: made.append(self) or build(self, *args, **more)
    )
    with publisher.app.connection_for_write() as connection, publisher.app.amqp.Producer(connection) as producer:
        for _ in range(100):
            publisher.app.send_task(ANALYSE, args=["x"], queue=Priority.ROUTINE, producer=producer, retry=False)
        few = len(made)
        connection.default_channel._disconnect_pools()
        publisher.app.send_task(ANALYSE, args=["x"], queue=Priority.ROUTINE, producer=producer, retry=False)
    assert client.llen("routine") == 101
    assert few <= 4
    assert len(made) > few


def test_a_message_holds_an_id_and_nothing_else(publisher: TaskPublisher, client: Any) -> None:
    """What the broker and Flower see of a study is our own ids."""
    (study,) = studies(1, Priority.URGENT)
    publisher.send([study])
    raw = client.lindex("urgent", 0)
    message = json.loads(raw)
    assert message["headers"]["task"] == ANALYSE
    assert message["headers"]["argsrepr"] == f"('{study.analysis_id}',) study {study.study_id}"
    assert message["headers"]["kwargsrepr"] == "{}"
    arguments = json.loads(base64.b64decode(message["body"]))
    assert arguments[:2] == [[str(study.analysis_id)], {}]


def test_a_dead_broker_is_told_of_quickly(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nothing listens, the publisher returns every id after a few attempts, however many they are, and does not raise;
    looking says Unavailable."""
    app = celery_app(make_settings(broker_url="redis://127.0.0.1:1/0"))
    attempts: list[object] = []
    connect: Callable[..., object] = redis.Connection.connect
    monkeypatch.setattr(redis.Connection, "connect", lambda self: (attempts.append(self), connect(self)))
    publisher, waiting = TaskPublisher(app), studies(500, Priority.ROUTINE)
    assert publisher.send(waiting) == [study.analysis_id for study in waiting]
    with pytest.raises(Unavailable):
        publisher.oldest_messages()
    with pytest.raises(Unavailable):
        publisher.waiting()
    assert 1 <= len(attempts) <= 10
    app.close()


def test_a_broker_that_refuses_gets_its_messages_later(publisher: TaskPublisher, client: Any) -> None:
    """A broker that is up but full answers with an error; those ids come back, those it took do not."""
    taken, refused = studies(3, Priority.ROUTINE), studies(4, Priority.ROUTINE)
    assert publisher.send(taken) == []
    client.delete("urgent")
    client.set("urgent", "not a list")
    mixed = [*refused[:2], DueMessage(uuid4(), uuid4(), Priority.URGENT, datetime.now(UTC)), *refused[2:]]
    assert publisher.send(mixed) == [study.analysis_id for study in mixed[2:]]
    assert client.llen("routine") == 5


def test_nothing_to_send_needs_no_broker(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ringing for no study does not touch the broker."""
    app = celery_app(make_settings(broker_url="redis://127.0.0.1:1/0"))
    attempts: list[object] = []
    monkeypatch.setattr(redis.Connection, "connect", attempts.append)
    assert TaskPublisher(app).send([]) == []
    assert attempts == []
    app.close()


def test_messages_outlive_a_killed_worker(
    publisher: TaskPublisher, start_worker: Callable[..., ForkedProcess], tmp_path: Path
) -> None:
    """A worker killed before it acknowledged loses no study: what it held comes back or is lost to the reconciler's eye."""
    waiting = studies(200, Priority.ROUTINE)
    worker = start_worker(threads=4)
    publisher.send(waiting)
    seen(tmp_path, 20)
    worker.kill()
    worker.wait(LIMIT_S)
    came = set(seen(tmp_path, 20))
    left = publisher.waiting()[Priority.ROUTINE]
    # at most what four threads had in hand is in neither
    assert len(waiting) - len(came) - left <= 4
    start_worker(threads=4)
    ids = {study.analysis_id for study in waiting}
    until(lambda: not publisher.waiting()[Priority.ROUTINE], 60)
    until(lambda: len(ids - set(seen(tmp_path, 20))) <= 4, 20)
    # and for those the rule holds by which they are found: the queue is empty, so its head is None
    assert publisher.oldest_messages()[Priority.ROUTINE] is None


def test_a_connection_that_cannot_be_closed_does_not_end_the_worker(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """The broker dies while one channel waits for messages and another one holds one: the worker lets go and goes on."""
    server = EmbeddedValkey(tmp_path / "own")
    server.start()
    app = celery_app(make_settings(broker_url=server.url))
    assert TaskPublisher(app).send(studies(2, Priority.ROUTINE)) == []
    consumer = Consumer.__new__(Consumer)
    consumer.app, consumer.connection = app, app.connection_for_read()
    first = consumer.connection.default_channel
    first.basic_consume("routine", False, lambda _: None, "tag")
    consumer.connection.drain_events(timeout=LIMIT_S)
    assert consumer.connection.channel().basic_get("routine") is not None
    first._brpop_start()
    server.stop()
    consumer.on_connection_error_after_connected(ConnectionError())
    assert consumer.connection is None
    app.close()
