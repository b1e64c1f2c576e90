"""Real servers for every test that needs one: Postgres, Valkey, an S3 server over HTTP, and the whole system."""

import atexit
import fcntl
import functools
import gc
import itertools
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import hypothesis
import psutil
import pytest
import redis
import torch
from alembic.config import main as alembic_main
from fastapi.testclient import TestClient
from sqlalchemy import make_url, select
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from xdist.scheduler import LoadScopeScheduling

from api.app import create_app
from infra.client.api import Client
from infra.embedded.postgres import EmbeddedPostgres
from infra.embedded.s3_server import S3Server
from infra.embedded.stack import Stack
from infra.embedded.state import read_secrets
from infra.embedded.valkey import EmbeddedValkey
from shared.db import engine
from shared.db.engine import Database
from shared.db.tables import KeyRow, SiteRow
from shared.domain.findings import Finding
from shared.domain.security import Role
from shared.queries.access import Key, add_key, find_key, key_hash, make_site
from shared.settings import ROOT, Settings
from tests.databases import Databases, admin_sql, as_owner, run_sql
from tests.forked import CONTEXT, fork_workers
from tests.hospital import IDENTITY_KEY, Hospital, finding
from tests.live_stack import BreakableStack
from tests.outbound import watched
from tests.pace import LIMIT_S, limit_s, slowness
from tests.served import served
from tests.statements import sharing_engine

gc.disable()  # until all tests are collected: what is imported stays
atexit.register(gc.unfreeze)  # libraries complain of what is left at the interpreter's end
# a busy machine misses limits of time for one example, and for making them
hypothesis.settings.register_profile("no clock", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("no clock")
SAMPLES = ROOT / "samples"
_numbers = itertools.count(1)
# OpenAPI's of every application, made once: an API looks the names of its fields up there
_document: dict[str, Any] = {}
MEMORY = Path("/dev/shm")  # a file system that is no disk, where there is one
TIMEOUT_S = 300.0  # of a test that has no limit of its own
# What may be skipped where CI is set, and why: the start of a test's name, to the reason.
MAY_SKIP: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Measure once, before other processes begin, how slow this machine is; and choose where files of tests lie."""
    slowness()
    if "not slow" in config.getoption("markexpr") and room_in_memory():
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    vars(engine)["create_engine"] = sharing_engine
    # a shell's background job ignores it, and so would every process that a test starts
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:
        # several processes with a thread for each core would wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)  # it was imported before this
        # pytest-xdist sets these, and commands would take them for a terminal's
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)


def room_in_memory() -> bool:
    """Whether the files of the quick suite, 3 GB at most at a time, may lie in memory: it writes 9 GB, and removes all."""
    try:
        free = shutil.disk_usage(MEMORY).free
    except OSError:
        return False
    return min(free, psutil.virtual_memory().available) > 12e9


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Scale the limits of all tests by the machine; 0 stays no limit. TESTS_ORDER=NUMBER shuffles them by that number.

    Where several processes share the tests, those with the longest limits begin: begun last, one would run alone.
    """
    limits = {}
    for item in items:
        given = item.get_closest_marker("timeout")
        limits[item] = limit_s(float(given.args[0]) if given else TIMEOUT_S)
        item.add_marker(pytest.mark.timeout(limits[item]), append=False)
    if seed := os.environ.get("TESTS_ORDER"):
        random.Random(seed).shuffle(items)
    elif "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: -(limits[item] or math.inf))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish() -> None:
    """Collect garbage from now on, but never look again at the hundreds of thousands of objects of what was imported."""
    gc.freeze()
    gc.enable()


# Files whose tests share something costly, which one process makes once, and the name of what they share.
TOGETHER = {
    "tests/acceptance/test_flower.py": "system",
    "tests/browser/test_operating.py": "a system whose parts are killed",
    "tests/browser/test_operations_page.py": "100,000 studies of an administrator",
    "tests/browser/test_page.py": "system",
    "tests/browser/test_reading_locks.py": "100,000 studies of a reader",
    "tests/browser/test_viewer.py": "a stack",
    "tests/integration/test_cli.py": "system",
    "tests/integration/test_outbound.py": "system",
    "tests/integration/test_sending.py": "a stack",
    "tests/integration/test_wheel.py": "installed wheels",
}
# As above, but for the quick suite alone: with their slow tests they would keep one process busy when all others are done.
# They share a stack, or what a module makes once.
QUICK_TOGETHER = {
    "tests/acceptance/test_broker_faults.py": "a stack whose parts are killed",
    "tests/acceptance/test_database_faults.py": "a stack whose parts are killed",
    "tests/acceptance/test_faults.py": "a stack whose parts are killed",
    "tests/acceptance/test_store_faults.py": "a stack whose parts are killed",
    "tests/acceptance/test_hangup.py": "a stack",
    "tests/integration/test_analysis.py": "an engine",
    "tests/integration/test_engines.py": "the shipped network",
    "tests/unit/shared/test_bundle.py": "a saved bundle",
    "tests/unit/shared/test_network.py": "networks",
    "tests/unit/shared/test_predictor.py": "networks",
    "tests/unit/training/test_scope.py": "a fitted network",
}


class Scheduler(LoadScopeScheduling):  # type: ignore[misc]
    """Hands the files of each name of TOGETHER to one process, the largest first, and all other tests one by one.

    The marker xdist_group of pytest-xdist 3.8 does nothing under pytest 9.2, which knows a test by more than its name.
    """

    together: Mapping[str, str] = TOGETHER

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return self.together.get(file, nodeid)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist nobody asks
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    """Ours, whatever --dist says."""
    scheduler = Scheduler(config, log)
    if "not slow" in config.getoption("markexpr"):
        scheduler.together = TOGETHER | QUICK_TOGETHER
    return scheduler


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Fork the processes that share the tests, unless coverage counts what is run while modules are imported."""
    if not config.pluginmanager.hasplugin("_cov"):
        fork_workers()


_whole_systems: list[tuple[pytest.FixtureDef[Any], Any]] = []  # of this process, and what asked for it


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: Any) -> Iterator[Any]:
    """Note a whole system that is started."""
    made = yield
    if fixturedef.argname == "system":
        _whole_systems.append((fixturedef, request))
    return made


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """End the whole system after the last test of those that share it: its processes look for work all the time."""
    shared = TOGETHER.get(nextitem.nodeid.partition("::")[0]) == "system" if nextitem else False
    asks = "system" in getattr(nextitem, "fixturenames", ())
    if "PYTEST_XDIST_WORKER" in os.environ and nextitem and not shared and not asks:
        while _whole_systems:
            made, request = _whole_systems.pop()
            made.finish(request)


_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what was skipped."""
    if report.skipped and not hasattr(report, "wasxfail") and not any(map(report.nodeid.startswith, MAY_SKIP)):
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where CI is set, a test that was skipped has failed: nothing is claimed there that was not tried."""
    gc.freeze()  # pytest looks five times for garbage at its end, to tell what pyproject.toml has it not tell
    if _skipped and os.environ.get("CI") and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say so."""
    if _skipped and os.environ.get("CI"):
        terminalreporter.section(
            "skipped although CI is set, which fails the run (tests/conftest.py, MAY_SKIP)", red=True
        )
        for name in _skipped:
            terminalreporter.line(name)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _all_stacks(shared_folder: Path) -> Iterator[None]:
    """What all tests share that start the system: what its workers can make anew, and how long its start may take."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OSTEON_CACHE_DIR", str(shared_folder / "cache"))
        patched.setenv("OSTEON_START_LIMIT_S", str(limit_s(120)))
        yield


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> Iterator[EmbeddedPostgres]:
    """A running PostgreSQL with the database `migrated`: a copy of a cluster that one process has made for all."""
    made, folder = shared_folder / "cluster", tmp_path_factory.mktemp("postgres")
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            first = EmbeddedPostgres(made.with_suffix(".new"), durable=False)
            first.start()
            # each of thousands of connections proves its password by so many rounds, else by 4096
            admin_sql(first, "ALTER SYSTEM SET scram_iterations = 1")
            admin_sql(first, "SELECT pg_reload_conf()")
            superuser_password = make_url(first.admin_url).password  # initdb has made it for 4096 rounds
            admin_sql(first, f"ALTER ROLE postgres PASSWORD '{superuser_password}'")
            admin_sql(first, "CREATE DATABASE migrated OWNER osteon")
            alembic(first, first.url.rsplit("/", 1)[0] + "/migrated", "upgrade", "head")
            first.stop()
            first.folder.rename(made)
    subprocess.run(["cp", "-a", f"{made}/.", folder], check=True)
    server = EmbeddedPostgres(folder, durable=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """A running Valkey."""
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


def owned(server: EmbeddedPostgres, url: str) -> dict[str, str]:
    """The variables by which migrations find a database of the server."""
    return {"OSTEON_DATABASE_URL": url, "OSTEON_DATABASE_OWNER_URL": as_owner(server, url)}


MIGRATIONS = ("-c", str(ROOT / "migrations/alembic.ini"))


def alembic(server: EmbeddedPostgres, url: str, *command: str) -> None:
    """Run alembic on a database of the server as its owner, in this process: a process of its own takes a second."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in owned(server, url).items():
            patched.setenv(name, value)
        alembic_main([*MIGRATIONS, *command])


def alembic_apart(server: EmbeddedPostgres, url: str, *command: str) -> None:
    """Run alembic as an operator does, in a process of its own."""
    subprocess.run(
        [sys.executable, "-m", "alembic", *MIGRATIONS, *command],
        env={**owned(server, url), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="session")
def run_alembic(postgres: EmbeddedPostgres) -> Callable[..., None]:
    """Runs alembic on a database URL with the given command."""
    return functools.partial(alembic, postgres)


@pytest.fixture(scope="session")
def run_alembic_apart(postgres: EmbeddedPostgres) -> Callable[..., None]:
    """As run_alembic, in a process of its own."""
    return functools.partial(alembic_apart, postgres)


@pytest.fixture
def owner_url(postgres: EmbeddedPostgres, database_url: str) -> str:
    """The test's own database, for whom its tables belong to."""
    return as_owner(postgres, database_url)


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The name of a migrated, empty database that others are copied from."""
    return "migrated"


@pytest.fixture(scope="session")
def databases(postgres: EmbeddedPostgres, template: str) -> Databases:
    """Migrated, empty databases for one test after the other."""
    return Databases(postgres, template)


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A migrated database of the test's own."""
    with databases.one() as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The test's own database, connected."""
    connected = Database(database_url, pool_size=8)
    yield connected
    connected.close()


@pytest.fixture
def broker_url(valkey: EmbeddedValkey) -> str:
    """An empty broker of the test's own."""
    url = valkey.url.rsplit("/", 1)[0] + f"/{next(_numbers) % 15 + 1}"
    client = redis.Redis.from_url(url)
    client.flushdb()
    client.close()
    return url


@pytest.fixture(scope="session")
def s3_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a real S3 server."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(params=["directory", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty object store of each kind."""
    if request.param == "directory":
        return f"file:{tmp_path / 'objects'}"
    host = request.getfixturevalue("s3_host")
    return f"s3://osteon:osteon-secret@{host}/bucket-{next(_numbers)}"


@pytest.fixture
def make_settings(database_url: str, broker_url: str, tmp_path: Path) -> Callable[..., Settings]:
    """Settings for a test's own servers; give what should differ."""

    def make(**changes: Any) -> Settings:
        values: dict[str, Any] = {
            "home": tmp_path,
            "database_url": database_url,
            "broker_url": broker_url,
            "store_url": f"file:{tmp_path / 'objects'}",
            "identity_key": IDENTITY_KEY,
            "session_secret": "a session secret for tests",
            "webhook_key": "a key of webhooks that is for tests alone",
            "spool_dir": tmp_path / "spool",
            "allowed_hosts": "testserver, t",
            "failures_a_minute": 1000,  # tests show wrong keys on and on
        }
        return Settings(**(values | changes))

    return make


@dataclass
class InProcessApi:
    """The API within the test's process, on real servers, with a key per role."""

    http: TestClient
    settings: Settings
    database: Database
    keys: dict[str, str]
    owner_url: str  # of the database, for whom the tables belong to

    def as_owner(self, *statements: str) -> None:
        """Run SQL as the tables' owner, who can switch triggers off."""
        run_sql(self.owner_url, *statements)

    def key(self, role: str = "admin") -> Key:
        """The key as the API sees it."""
        with self.database.transaction() as session:
            found = find_key(session, self.keys[role])
        assert found is not None
        return found

    def headers(self, role: str = "admin", *, page: bool = False) -> dict[str, str]:
        """The Authorization header of a role; page: and a browser's Accept."""
        return {"Authorization": f"Bearer {self.keys[role]}"} | ({"Accept": "text/html"} if page else {})

    def post(self, files: dict[str, bytes], role: str = "submitter", **fields: str) -> Any:
        """POST /api/v1/studies with these files, name to content."""
        headers = self.headers(role)
        if "idempotency_key" in fields:
            headers["Idempotency-Key"] = fields.pop("idempotency_key")
        parts = [("files", (name, content)) for name, content in files.items()]
        response = self.http.post("/api/v1/studies", files=parts, data=fields, headers=headers)
        assert self.http.app.state.parts.metadata.make_pending(LIMIT_S)  # type: ignore[attr-defined]
        return response


@pytest.fixture
def make_api(make_settings: Callable[..., Settings], owner_url: str) -> Iterator[Callable[..., InProcessApi]]:
    """Makes an API in this process; settings can be changed."""
    opened: list[tuple[TestClient, Database]] = []

    def make(**changes: Any) -> InProcessApi:
        settings = make_settings(**changes)
        database = Database(settings.database_url.get_secret_value(), 4)
        keys = {role.value: f"osk_test_{role.value}_key_of_the_tests" for role in Role}
        with database.transaction() as session:  # as add_key, for all roles at once: nearly each test makes an API
            make_site(session, "default")
            site = select(SiteRow.id).where(SiteRow.name == "default").scalar_subquery()
            values = [{"site_id": site, "name": one, "role": one, "sha256": key_hash(keys[one])} for one in keys]
            made = postgres_insert(KeyRow).values(values).on_conflict_do_nothing().returning(KeyRow.role)
            for role in set(Role) - set(map(Role, session.scalars(made))):  # another key has the name, or it is there
                add_key(session, "default", role.value, role, keys[role.value])
        app = create_app(settings)
        if not _document:
            _document.update(app.openapi())
        app.openapi_schema = _document
        http = TestClient(app, raise_server_exceptions=False)
        http.__enter__()
        opened.append((http, database))
        return InProcessApi(http, settings, database, keys, owner_url)

    yield make
    for http, database in opened:
        http.__exit__(None, None, None)
        database.close()


@pytest.fixture
def in_process(make_api: Callable[..., InProcessApi]) -> InProcessApi:
    """The API in this process with default limits."""
    return make_api()


@pytest.fixture
def address(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of `in_process`. Commands have it and an admin's key, and nothing else: no database, no store."""
    for name in [name for name in os.environ if name.startswith("OSTEON_")]:
        monkeypatch.delenv(name)
    with served(in_process.http.app) as port:  # type: ignore[arg-type]
        monkeypatch.setenv("OSTEON_API_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OSTEON_KEY", in_process.keys["admin"])
        yield f"http://127.0.0.1:{port}"


@dataclass
class System:
    """The whole system as `osteon up` starts it: every part a process of its own."""

    stack: Stack
    api_url: str
    flower_url: str
    keys: dict[str, str]
    flower_login: tuple[str, str]
    outbound: Path = Path()  # what its processes called outside of this machine (outbound.py)

    def client(self, role: str = "admin") -> Client:
        """A client with this role's key."""
        return Client(self.api_url, self.keys[role])

    def submit(self, paths: list[Path], priority: str = "routine") -> dict[str, Any]:
        """Upload files; returns {"files": [...], "studies": [...]}."""
        with self.client("submitter") as client:
            receipt = client.submit([(path, path.name) for path in paths], priority)
        return {"files": receipt.files, "studies": list(receipt.studies.values())}

    def wait(self, study_ids: list[str], timeout_s: float = 120) -> dict[str, dict[str, Any]]:
        """Wait until all are analysed or quarantined; returns their reports."""
        with self.client() as client:
            return client.wait([str(UUID(study_id)) for study_id in study_ids], timeout_s)


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The whole system, really started, with the shipped bundle."""
    folder = tmp_path_factory.mktemp("system")
    stack = Stack(Settings(home=folder / "home"))
    with pytest.MonkeyPatch.context() as patched:
        for name, value in watched(folder / "outbound").items():
            patched.setenv(name, value)
        stack.start()
    try:
        secrets = read_secrets(stack.home)
        yield System(
            stack,
            stack.urls["api"],
            stack.urls["flower"],
            secrets["keys"],
            (secrets["flower_user"], secrets["flower_password"]),
            folder / "outbound",
        )
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BreakableStack]:
    """Postgres, Valkey and an API that outlive one test, for workers that a test starts and kills."""
    with BreakableStack(tmp_path_factory.mktemp("stack")) as made:
        yield made


@pytest.fixture(scope="session")
def sample_paths() -> list[Path]:
    """All sound sample files."""
    return sorted((SAMPLES / "studies").rglob("*.dcm"))


@pytest.fixture
def forked_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders of an engine in the test's process begin in a moment, where the imports of each take a second."""
    monkeypatch.setattr("worker.decoder_pool.CONTEXT", CONTEXT)


@pytest.fixture
def make_finding() -> Callable[..., Finding]:
    """Makes a finding."""
    return finding


@pytest.fixture
def hospital(database: Database) -> Hospital:
    """A site with bundle "a" active."""
    with database.transaction() as session:
        add_key(session, "default", "admin", Role.ADMIN, "a secret")
        site_id = session.scalars(select(SiteRow.id)).one()
    made = Hospital(database, site_id)
    made.add_bundle("a")
    return made
