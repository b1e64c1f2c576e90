"""The processes of a stack: how each is started, and how to see that it is ready."""

import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from celery import Celery
from kombu.exceptions import OperationalError
from pydantic import SecretStr

from infra.embedded.state import Secrets
from shared.settings import OTHERS, PREFIX, ROOT, Settings

FLOWER_TASKS = 5000  # kept in its memory and file; with all, it stands still for seconds at every save
DICOM_STOP_S = 60.0  # it answers what is in work, or tells its senders to send again
RESULTS_STOP_S = 60.0  # the object on its way, or the set in hand, is finished
WORKER_STOP_S = 60.0  # then SIGKILL; never SIGQUIT, which loses tasks


# given only to parts that name them: every setting that is a secret, and the keys that a shell may hold
SECRETS = frozenset(
    f"{PREFIX}{name.upper()}" for name, setting in Settings.model_fields.items() if setting.annotation is SecretStr
) | {name for name in OTHERS if name.startswith("OSTEON_KEY")}
DATABASE, BROKER, STORE = "OSTEON_DATABASE_URL", "OSTEON_BROKER_URL", "OSTEON_STORE_URL"
IDENTITY = "OSTEON_IDENTITY_KEY"
WEBHOOKS = "OSTEON_WEBHOOK_KEY"
MAIL = "OSTEON_MAIL_PASSWORD"


@dataclass(frozen=True)
class Part:
    """A process of the stack."""

    name: str
    command: Sequence[str]
    ready: Callable[[], bool] = lambda: True  # asked while it starts
    variables: Mapping[str, str] = field(default_factory=dict)  # besides the common ones
    secrets: frozenset[str] = frozenset()  # which of SECRETS it is given
    stop_wait_s: float = 20.0
    port: int | None = None
    sources: Sequence[Path] = ()  # folders and files of the code it loads


# Given the common variables and the secrets; the order is that of stopping.
Parts = Callable[[Mapping[str, str], Secrets], Sequence[Part]]


def osteon_steps(variables: Mapping[str, str], _secrets: Secrets) -> Sequence[Part]:
    """List what runs to its end before the parts start: the tables, then the site, the keys and the bundle.

    Args:
        variables: common to all parts, and the tables' owner.

    Returns:
        The steps in order.
    """
    alembic = [sys.executable, "-m", "alembic", "-c", str(ROOT / "migrations" / "alembic.ini"), "upgrade", "head"]
    owner = {"OSTEON_DATABASE_OWNER_URL": variables.get("OSTEON_DATABASE_OWNER_URL", "")}  # only this step gets it
    keys = frozenset(name for name in SECRETS if name.startswith("OSTEON_KEY"))
    return [
        Part("migrate", alembic, variables=owner, secrets=frozenset({DATABASE})),
        # needs the identities' key to make older studies searchable
        Part("prepare", [sys.executable, "-m", "infra.prepare"], secrets=keys | {DATABASE, STORE, IDENTITY}),
    ]


def osteon_parts(variables: Mapping[str, str], secrets: Secrets) -> Sequence[Part]:
    """List worker, API, DICOM listener, what makes and sends results, beat and Flower.

    Args:
        variables: common to all parts: addresses, ports and folders.
        secrets: of this home, for Flower's login.

    Returns:
        The parts in the order of stopping.
    """
    python, home = sys.executable, Path(variables["OSTEON_HOME"])
    api_host, api_port = variables["OSTEON_API_HOST"], variables["OSTEON_API_PORT"]
    flower_host, flower_port = variables["OSTEON_FLOWER_HOST"], variables["OSTEON_FLOWER_PORT"]
    # Celery would import from the working folder first, where another `worker` may lie
    celery = [python, "-m", "celery", "--workdir", str(ROOT), "-A", "shared.queue.app:app"]
    flower = ["flower", f"--address={flower_host}", f"--port={flower_port}", "--persistent=true"]
    flower += [f"--db={home / 'flower'}", "--state_save_interval=60000", f"--max_tasks={FLOWER_TASKS}"]
    login = {  # by variable, for every user of the machine can read a command line
        "FLOWER_BASIC_AUTH": f"{secrets['flower_user']}:{secrets['flower_password']}",
        "FLOWER_COOKIE_SECRET": secrets["flower_cookie_secret"],
    }
    api_ready = f"http://{reachable(api_host)}:{api_port}/readyz"
    flower_ready = f"http://{reachable(flower_host)}:{flower_port}/healthcheck"
    broker = variables["OSTEON_BROKER_URL"]
    shared, tasks = ROOT / "shared", ROOT / "worker" / "main.py"  # beat and Flower know only the tasks' names
    return [
        Part(
            "worker",
            [python, "-m", "worker.main"],
            lambda: _worker_responds(broker),
            # decodes files from outside: gets neither the identities' key nor the one that signs logins
            secrets=frozenset({DATABASE, BROKER, STORE}),
            stop_wait_s=WORKER_STOP_S,
            sources=(ROOT / "worker", shared),
        ),
        Part(
            "api",
            [python, "-m", "api.server"],
            lambda: _responds_200(api_ready),
            secrets=frozenset(
                {DATABASE, BROKER, STORE, IDENTITY, WEBHOOKS, "OSTEON_SESSION_SECRET", "OSTEON_METRICS_TOKEN"}
            ),
            port=int(api_port),
            sources=(ROOT / "api", shared),
        ),
        *_listeners(variables),
        # what leaves: idle while no destination is set up
        Part(
            "results",
            [python, "-m", "worker.results.main"],
            secrets=frozenset({DATABASE, STORE}),
            stop_wait_s=RESULTS_STOP_S,
            sources=(ROOT / "worker" / "results", shared),
        ),
        Part(
            "deliver",
            [python, "-m", "worker.delivery.main"],
            secrets=frozenset({DATABASE, STORE, WEBHOOKS, MAIL}),
            stop_wait_s=RESULTS_STOP_S,
            sources=(ROOT / "worker" / "delivery", shared),
        ),
        *_checks(),
        Part(
            "beat",
            [*celery, "beat", "-s", str(home / "beat-schedule")],
            secrets=frozenset({BROKER}),
            sources=(tasks, shared),
        ),
        Part(
            "flower",
            [*celery, *flower],
            lambda: _responds_200(flower_ready),
            login,
            secrets=frozenset({BROKER}),
            port=int(flower_port),
            sources=(tasks, shared),
        ),
    ]


def _listeners(variables: Mapping[str, str]) -> Sequence[Part]:
    """The DICOM listener, unless it has no port."""
    ports = [int(variables.get(f"OSTEON_DICOM_{name}PORT") or 0) for name in ("", "TLS_")]
    port = next(filter(None, ports), None)
    if port is None:
        return ()
    host = reachable(variables.get("OSTEON_DICOM_HOST", "127.0.0.1")).strip("[]")
    return [
        Part(
            "dicom",
            [sys.executable, "-m", "api.listener.server"],
            lambda: _listens(host, port),
            secrets=frozenset({DATABASE, BROKER, STORE, IDENTITY}),
            stop_wait_s=DICOM_STOP_S,
            port=port,
            sources=(ROOT / "api", ROOT / "shared"),
        )
    ]


def _checks() -> Sequence[Part]:
    """The process of the daily check, unless it is off."""
    if not Settings().daily_check:
        return ()
    return [
        Part(
            "check",
            [sys.executable, "-m", "infra.daily_check"],
            # makes itself a key for as long as a check takes, and asks the API as any client
            secrets=frozenset({DATABASE}),
            sources=(ROOT / "infra" / "daily_check.py", ROOT / "shared"),
        )
    ]


def reachable(host: str) -> str:
    """Give the address of a server that listens on host: 0.0.0.0 means every interface and is no address itself."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _responds_200(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine's ports
    try:
        with opener.open(url, timeout=3.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=3.0).close()
    except OSError:
        return False
    return True


def _worker_responds(broker_url: str) -> bool:
    """Ping the workers of this broker; done in this process, since a child would import the whole worker."""
    try:
        with Celery("osteon-supervisor", broker=broker_url, set_as_current=False) as app:
            return bool(app.control.ping(timeout=1.0))
    except (OperationalError, OSError):
        return False
