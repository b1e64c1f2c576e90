"""A network that drops packets and tells nobody: what was accepted is analysed once, and no lock or connection is left."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg2
import pytest

from infra.embedded.live_stack import LiveStack
from infra.embedded.postgres import EmbeddedPostgres
from infra.embedded.valkey import EmbeddedValkey
from shared.db.engine import REQUESTS, connect_arguments
from tests.live_stack import BreakableStack
from tests.pace import LIMIT_S, until
from tests.systems.spaces import Space, cable, cut, needs_namespaces, space

pytestmark = [pytest.mark.systems, needs_namespaces, pytest.mark.timeout(600)]
SERVERS, CLIENTS = "192.0.2.1", "192.0.2.2"
CUTS, CUT_S = 4, 30.0
HELD_S = 25.0 + 10.0  # a server gives a client up after 25 s of silence; what it does before that, and what comes after


class FarPostgres(EmbeddedPostgres):
    """One that its clients reach over a cable."""

    @property
    def url(self) -> str:
        return super().url.replace("@127.0.0.1:", f"@{SERVERS}:")

    @property
    def owner_url(self) -> str:
        return super().owner_url.replace("@127.0.0.1:", f"@{SERVERS}:")


class FarValkey(EmbeddedValkey):
    """One that its clients reach over a cable."""

    @property
    def url(self) -> str:
        return super().url.replace("@127.0.0.1:", f"@{SERVERS}:")


class SeparateStack(BreakableStack):
    """A live_stack whose Postgres and Valkey stand on another machine than its API and workers."""

    def __init__(self, folder: Path, servers: Space) -> None:
        super().__init__(folder)
        self.postgres, self.valkey = FarPostgres(folder / "postgres"), FarValkey(folder / "valkey")
        self.servers = servers
        self.crew: list[Any] = []  # workers that are started again when they end

    def start(self) -> None:
        """As BreakableStack; to be called within the machine of the API."""
        with self.servers.entered():
            self.postgres.start()
            with (self.postgres.data / "pg_hba.conf").open("a") as rules:
                rules.write("host all all 192.0.2.0/24 scram-sha-256\n")
            self.ask_server("SELECT pg_reload_conf()")
            self.valkey.start()
        super().start()

    def _begin(  # in the namespace of this thread: what is forked would be in the one of an earlier test
        self, name: str, main: Callable[[], None], module: str, **more: str
    ) -> "subprocess.Popen[bytes]":
        return self.run(name, "-m", module, **more)

    def _step(self, *arguments: str, **more: str) -> None:
        LiveStack._step(self, *arguments, **more)  # for the same reason

    def tend(self) -> None:
        """Start again what ended, as a supervisor does."""
        self.crew = [process if process.poll() is None else self.worker() for process in self.crew]

    def ask_server(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a query, asked on the server's own machine."""
        with self.servers.entered():
            connection = psycopg2.connect(self.postgres.admin_url.replace("+psycopg2", ""))
            connection.autocommit = True
            try:
                with connection.cursor() as cursor:
                    cursor.execute(query, values)
                    return cursor.fetchall()
            finally:
                connection.close()


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SeparateStack, Space]]:
    """Postgres and Valkey in one namespace, API and workers in another, and this thread with them."""
    with space() as servers, space() as clients, cable(servers, SERVERS, clients, CLIENTS), clients.entered():
        # the embedded servers listen on their loopback only: what comes over the cable is led there
        servers.do("sysctl", "-q", "-w", "net.ipv4.conf.all.route_localnet=1")
        lead = ("-d", SERVERS, "-p", "tcp", "-j", "DNAT", "--to-destination", "127.0.0.1")
        servers.do("iptables", "-w", "-t", "nat", "-A", "PREROUTING", *lead)
        live_stack = SeparateStack(tmp_path_factory.mktemp("apart"), servers)
        with live_stack:
            yield live_stack, servers


class Sender:
    """Sends one radiograph after the other, each until it is stored, from a thread of its own."""

    def __init__(self, live_stack: BreakableStack) -> None:
        self._live_stack, self._stop = live_stack, threading.Event()
        self.stored: list[str] = []
        self.refused = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(LIMIT_S)

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            with contextlib.suppress(httpx.HTTPError):
                response = self._live_stack.post("silent", number)
                if response.status_code == 200:
                    self.stored.append(response.json()["files"][0]["study_id"])
                    number += 1
                    continue
                assert response.status_code == 503, response.text
                assert response.headers["Retry-After"]
            self.refused += 1
            self._stop.wait(0.5)


class LongestTransaction:
    """The longest that a transaction with a lock on a row was open on the server, looked at twice a second."""

    QUERY = """SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float FROM pg_stat_activity
        WHERE usename = 'osteon_app' AND xact_start IS NOT NULL AND backend_xid IS NOT NULL"""

    def __init__(self, live_stack: SeparateStack) -> None:
        self._live_stack, self._stop = live_stack, threading.Event()
        self.longest_s = 0.0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(LIMIT_S)

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            ((held,),) = self._live_stack.ask_server(self.QUERY)
            self.longest_s = max(self.longest_s, held)


def backends(live_stack: SeparateStack) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'osteon_app'"
    return int(live_stack.ask_server(query)[0][0])


def connections(live_stack: SeparateStack) -> int:
    """How many connections to Postgres API and workers have themselves."""
    found = 0
    for process in live_stack.processes:
        with contextlib.suppress(psutil.Error):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            held = {
                each.laddr
                for one in family
                for each in one.net_connections("tcp")
                if each.raddr and each.raddr.port == live_stack.postgres.port
            }
            found += len(held)
    return found


def more_than(sender: Sender, count: int, live_stack: BreakableStack) -> None:
    """Wait until so many radiographs are stored."""
    live_stack.until(lambda: len(sender.stored) > count, 60)


def test_four_silent_cuts_lose_nothing_and_leave_nothing(apart: tuple[SeparateStack, Space]) -> None:
    """Four times for 30 s no packet passes between API and workers and their servers, under load: nothing is lost or done
    twice, no lock outlives what a silent client may, and the server has the connections that there are."""
    live_stack, servers = apart
    live_stack.crew = [live_stack.worker() for _ in range(2)]
    live_stack._tend = live_stack.tend
    sender, held = Sender(live_stack), LongestTransaction(live_stack)
    try:
        live_stack.until(lambda: live_stack.studies.done(sender.stored) >= 20, 120)
        before = backends(live_stack)
        for number in range(CUTS):
            more_than(sender, len(sender.stored) + 5, live_stack)
            with cut(servers):
                began = time.monotonic()
                time.sleep(CUT_S / 2)
                ready = httpx.get(f"{live_stack.url}/readyz", trust_env=False, timeout=LIMIT_S)
                assert ready.status_code == 503
                told = ready.json()["parts"]
                assert told["store"] == "ok"
                assert "ok" not in (told["database"], told["broker"])
                time.sleep(max(0.0, CUT_S - (time.monotonic() - began)))
            since = time.monotonic()
            more_than(sender, len(sender.stored) + 5, live_stack)
            print(
                f"cut {number}: {backends(live_stack)} backends, stored again {time.monotonic() - since:.1f} s after it"
            )
    finally:
        sender.stop()
        held.stop()
    ids = sender.stored
    assert len(set(ids)) == len(ids)
    live_stack.all_analysed_once(ids, time.monotonic())
    until(
        lambda: backends(live_stack) == connections(live_stack),
        60,
        lambda: f"{backends(live_stack)}, {connections(live_stack)} are held",
    )
    print(
        f"{len(ids)} studies, {sender.refused} uploads refused, a lock held for {held.longest_s:.1f} s at most, backends "
        f"{before} before, {backends(live_stack)} after"
    )
    assert backends(live_stack) <= max(before, 3 * 8 + 1)
    assert held.longest_s < HELD_S


def test_a_silent_client_loses_its_locks(apart: tuple[SeparateStack, Space]) -> None:
    """A client that vanishes with a row locked is given up by the server, and the row is free, long before TCP would say."""
    live_stack, servers = apart
    (study,) = live_stack.submit("silent lock", 1)
    url = live_stack.postgres.url.replace("+psycopg2", "")
    connection = psycopg2.connect(url, **connect_arguments(url, REQUESTS))
    with connection.cursor() as cursor:
        cursor.execute("SET idle_in_transaction_session_timeout = 0")  # it is TCP that must notice
        cursor.execute("SELECT id FROM studies WHERE id = %s FOR UPDATE", [study])
    held = f"state = 'idle in transaction' AND pid = {connection.info.backend_pid}"  # others are idle for a moment, too
    locked = f"SELECT count(*) FROM pg_stat_activity WHERE {held}"
    assert live_stack.ask_server(locked) == [(1,)]
    with cut(servers):
        began = time.monotonic()
        until(lambda: live_stack.ask_server(locked) == [(0,)], 60)
        print(f"its lock was free after {time.monotonic() - began:.1f} s")
    with contextlib.suppress(psycopg2.Error):
        connection.close()
