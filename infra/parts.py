"""The processes of Osteon that a stack runs: what starts each, and how to tell that it is ready."""

import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from celery import Celery
from kombu.exceptions import OperationalError

from infra.state import Secrets
from shared.settings import ROOT

WORKER_STOP_S = 60.0  # then SIGKILL; never SIGQUIT, which loses tasks


@dataclass(frozen=True)
class Part:
    """A process of the stack."""

    name: str
    command: Sequence[str]
    ready: Callable[[], bool] = lambda: True  # asked while it starts
    variables: Mapping[str, str] = field(default_factory=dict)  # besides the common ones
    stop_wait_s: float = 20.0
    port: int | None = None
    sources: Sequence[Path] = ()  # folders and files of the code it loads


# Given the common variables and the secrets; the order is that of stopping.
Parts = Callable[[Mapping[str, str], Secrets], Sequence[Part]]


def osteon_steps(_variables: Mapping[str, str], _secrets: Secrets) -> Sequence[Part]:
    """What runs to its end before the parts start: the tables, then the site, the keys and the bundle."""
    alembic = [sys.executable, "-m", "alembic", "-c", str(ROOT / "migrations" / "alembic.ini"), "upgrade", "head"]
    return [Part("migrate", alembic), Part("prepare", [sys.executable, "-m", "infra.prepare"])]


def osteon_parts(variables: Mapping[str, str], secrets: Secrets) -> Sequence[Part]:
    """Worker, API, beat and Flower."""
    python, home = sys.executable, Path(variables["OSTEON_HOME"])
    api_host, api_port = variables["OSTEON_API_HOST"], variables["OSTEON_API_PORT"]
    flower_host, flower_port = variables["OSTEON_FLOWER_HOST"], variables["OSTEON_FLOWER_PORT"]
    # both would import from the working folder first, where another `api` or `worker` may lie
    api = ["uvicorn", "--app-dir", str(ROOT), "api.main:create_app", "--factory", "--no-access-log"]
    api += ["--host", api_host, "--port", api_port]
    celery = [python, "-m", "celery", "--workdir", str(ROOT), "-A", "worker.main:app"]
    flower = ["flower", f"--address={flower_host}", f"--port={flower_port}", "--persistent=true"]
    flower += [f"--db={home / 'flower'}", "--state_save_interval=60000"]
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
            lambda: _worker_answers(broker),
            stop_wait_s=WORKER_STOP_S,
            sources=(ROOT / "worker", shared),
        ),
        Part(
            "api",
            [python, "-m", *api],
            lambda: _answers_200(api_ready),
            port=int(api_port),
            sources=(ROOT / "api", shared),
        ),
        Part("beat", [*celery, "beat", "-s", str(home / "beat-schedule")], sources=(tasks, shared)),
        Part(
            "flower",
            [*celery, *flower],
            lambda: _answers_200(flower_ready),
            login,
            port=int(flower_port),
            sources=(tasks, shared),
        ),
    ]


def reachable(host: str) -> str:
    """The address to call a server that listens on host: 0.0.0.0 means every interface and is no address itself."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _answers_200(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine's ports
    try:
        with opener.open(url, timeout=3.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _worker_answers(broker_url: str) -> bool:
    """Whether a worker of this broker answers a ping; asked here, since a child would import the whole worker."""
    try:
        with Celery("osteon-supervisor", broker=broker_url, set_as_current=False) as app:
            return bool(app.control.ping(timeout=1.0))
    except (OperationalError, OSError):
        return False
