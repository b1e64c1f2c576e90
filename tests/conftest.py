"""Real servers for every test that needs one: Postgres, Valkey, an S3 server over HTTP, and the whole system."""

import itertools
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import hypothesis
import psycopg2
import pytest
import redis
from cryptography.fernet import Fernet
from fastapi.testclient import TestClient
from sqlalchemy import select
from xdist.scheduler import LoadScopeScheduling

from api.main import create_app
from benchmarks.plant import S3Server
from infra.client import Client
from infra.postgres import EmbeddedPostgres
from infra.stack import Stack
from infra.state import read_secrets
from infra.valkey import EmbeddedValkey
from shared.findings import Finding
from shared.repository import Database
from shared.repository.access import Key, Role, add_key, find_key
from shared.settings import ROOT, Settings
from shared.tables import SiteRow
from tests.pace import limit_s, slowness
from tests.plant import Plant
from tests.ward import Ward, finding

# a busy machine misses limits of time for one example, and for making them
hypothesis.settings.register_profile("no clock", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("no clock")
SAMPLES = ROOT / "samples"
_numbers = itertools.count(1)
TIMEOUT_S = 300.0  # of a test that has no limit of its own
# What may be skipped where CI is set, and why: the start of a test's name, to the reason.
MAY_SKIP: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Measure once, before other processes begin, how slow this machine is."""
    slowness()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # several processes with a thread for each core would wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # pytest-xdist sets these, and commands would take them for a terminal's
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)


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


# Files whose tests share something costly, which one process makes once, and the name of what they share.
TOGETHER = {
    "tests/acceptance/test_flower.py": "system",
    "tests/browser/test_operating.py": "a system whose parts are killed",
    "tests/browser/test_operations_page.py": "100,000 studies of an administrator",
    "tests/browser/test_page.py": "system",
    "tests/browser/test_reading_room.py": "100,000 studies of a reader",
    "tests/browser/test_viewer.py": "studies with pictures",
    "tests/integration/test_cli.py": "system",
    "tests/integration/test_sending.py": "an API that many files are sent to",
    "tests/integration/test_wheel.py": "installed wheels",
}


class Scheduler(LoadScopeScheduling):  # type: ignore[misc]
    """Hands the files of TOGETHER to one process each, the largest first, and all other tests one by one.

    The marker xdist_group of pytest-xdist 3.8 does nothing under pytest 9.2, which knows a test by more than its name.
    """

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER.get(nodeid.partition("::")[0], nodeid)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist nobody asks
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    """Ours, whatever --dist says."""
    return Scheduler(config, log)


_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what was skipped."""
    if report.skipped and not hasattr(report, "wasxfail") and not any(map(report.nodeid.startswith, MAY_SKIP)):
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where CI is set, a test that was skipped has failed: nothing is claimed there that was not tried."""
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


@pytest.fixture(scope="session", autouse=True)
def _all_stacks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What all tests share that start the system: what its workers can make anew, and how long its start may take."""
    with pytest.MonkeyPatch.context() as patched:
        base = tmp_path_factory.getbasetemp()
        base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # all processes share one
        patched.setenv("OSTEON_CACHE_DIR", str(base / "cache"))
        patched.setenv("OSTEON_START_LIMIT_S", str(limit_s(120)))
        yield


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A running PostgreSQL."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), durable=False)
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


def admin_sql(server: EmbeddedPostgres, statement: str) -> None:
    """Run one statement as superuser, outside any transaction."""
    connection = psycopg2.connect(server.admin_url.replace("+psycopg2", ""))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def alembic(url: str, *command: str) -> None:
    """Run alembic as an operator does."""
    subprocess.run(
        [sys.executable, "-m", "alembic", "-c", str(ROOT / "migrations/alembic.ini"), *command],
        env={"OSTEON_DATABASE_URL": url, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="session")
def run_alembic() -> Callable[..., None]:
    """Runs alembic on a database URL with the given command."""
    return alembic


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The name of a migrated, empty database that others are copied from."""
    admin_sql(postgres, "CREATE DATABASE migrated OWNER osteon")
    alembic(postgres.url.rsplit("/", 1)[0] + "/migrated", "upgrade", "head")
    return "migrated"


@contextmanager
def copied(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """URL of a copy of a database, for the block."""
    name = f"test_{next(_numbers)}"
    admin_sql(postgres, f"CREATE DATABASE {name} TEMPLATE {template} OWNER osteon")
    yield postgres.url.rsplit("/", 1)[0] + f"/{name}"
    admin_sql(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    with copied(postgres, template) as url:
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
            "identity_key": Fernet.generate_key().decode(),
            "session_secret": "a session secret for tests",
            "spool_dir": tmp_path / "spool",
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

    def key(self, role: str = "admin") -> Key:
        """The key as the API sees it."""
        with self.database.transaction() as session:
            found = find_key(session, self.keys[role])
        assert found is not None
        return found

    def headers(self, role: str = "admin") -> dict[str, str]:
        """The Authorization header of a role."""
        return {"Authorization": f"Bearer {self.keys[role]}"}

    def post(self, files: dict[str, bytes], role: str = "submitter", **fields: str) -> Any:
        """POST /studies with these files, name to content."""
        headers = self.headers(role)
        if "idempotency_key" in fields:
            headers["Idempotency-Key"] = fields.pop("idempotency_key")
        parts = [("files", (name, content)) for name, content in files.items()]
        return self.http.post("/studies", files=parts, data=fields, headers=headers)


@pytest.fixture
def make_api(make_settings: Callable[..., Settings]) -> Iterator[Callable[..., InProcessApi]]:
    """Makes an API in this process; settings can be changed."""
    opened: list[tuple[TestClient, Database]] = []

    def make(**changes: Any) -> InProcessApi:
        settings = make_settings(**changes)
        database = Database(settings.database_url.get_secret_value(), 4)
        keys = {role.value: f"osk_test_{role.value}_key_of_the_tests" for role in Role}
        with database.transaction() as session:
            for role in Role:
                add_key(session, "default", role.value, role, keys[role.value])
        http = TestClient(create_app(settings), raise_server_exceptions=False)
        http.__enter__()
        opened.append((http, database))
        return InProcessApi(http, settings, database, keys)

    yield make
    for http, database in opened:
        http.__exit__(None, None, None)
        database.close()


@pytest.fixture
def in_process(make_api: Callable[..., InProcessApi]) -> InProcessApi:
    """The API in this process with default limits."""
    return make_api()


@dataclass
class System:
    """The whole system as `osteon up` starts it: every part a process of its own."""

    stack: Stack
    api_url: str
    flower_url: str
    keys: dict[str, str]
    flower_login: tuple[str, str]

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
    stack = Stack(Settings(home=tmp_path_factory.mktemp("system") / "home"))
    with stack:
        secrets = read_secrets(stack.home)
        yield System(
            stack,
            stack.urls["api"],
            stack.urls["flower"],
            secrets["keys"],
            (secrets["flower_user"], secrets["flower_password"]),
        )


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Postgres, Valkey and an API that outlive one test, for workers that a test starts and kills."""
    with Plant(tmp_path_factory.mktemp("plant")) as made:
        yield made


@pytest.fixture(scope="session")
def sample_paths() -> list[Path]:
    """All sound sample files."""
    return sorted((SAMPLES / "studies").rglob("*.dcm"))


@pytest.fixture
def make_finding() -> Callable[..., Finding]:
    """Makes a finding."""
    return finding


@pytest.fixture
def ward(database: Database) -> Ward:
    """A site with bundle "a" active."""
    with database.transaction() as session:
        add_key(session, "default", "admin", Role.ADMIN, "a secret")
        site_id = session.scalars(select(SiteRow.id)).one()
    made = Ward(database, site_id)
    made.add_bundle("a")
    return made
