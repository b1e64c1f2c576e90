"""The local stack: Postgres, Valkey and all parts of Osteon under one supervisor that restarts what dies."""

import contextlib
import hmac
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from infra.embedded import state
from infra.embedded.parts import SECRETS, Part, Parts, osteon_parts, osteon_steps, reachable
from infra.embedded.postgres import EmbeddedPostgres
from infra.embedded.process import Child, StartLimit, creation_time, is_free, reserve
from infra.embedded.sources import Sources
from infra.embedded.valkey import EmbeddedValkey
from shared.errors import StackError
from shared.settings import ROOT, Settings, raise_files

STEP_LIMIT_S = 4 * 3600.0  # a migration of a large database builds indexes for hours
MAX_RESTARTS, RESTARTS_WINDOW_S = 5, 60.0
METRICS_PORTS = {"worker": 9810, "dicom": 9811}  # the first that are tried


class Stack:
    """The parts of one home. Use it as `with Stack(settings) as stack: stack.watch()`, from the main thread."""

    def __init__(
        self,
        config: Settings,
        *,
        steps: Parts = osteon_steps,
        parts: Parts = osteon_parts,
        report: Callable[[str], None] = lambda _: None,
        reload: bool = False,
    ) -> None:
        """Prepare a stack; entering the block starts it.

        Args:
            config: a URL that is set in it replaces the embedded part.
            steps: what runs to its end before the parts start.
            parts: what runs as long as the stack.
            report: is called with each event, in words.
            reload: `watch` restarts the parts whose code changes, and a part that keeps ending waits for the next
                change instead of ending the stack.
        """
        self.config = config
        self.home = config.home.absolute()
        self.postgres = None if _is_set(config, "database_url") else EmbeddedPostgres(self.home / "postgres")
        self.valkey = None if _is_set(config, "broker_url") else EmbeddedValkey(self.home / "valkey")
        self.urls: dict[str, str] = {}
        self._steps, self._make_parts, self._report = steps, parts, report
        self._parts: dict[str, Part] = {}
        self._children: dict[str, Child] = {}
        self._restarts: dict[str, list[float]] = {}
        self._due: dict[str, float] = {}  # when to start a dead part again
        self._reload = reload
        self._sources = Sources({})
        self._starting: set[str] = set()  # parts started by a change that are not ready yet
        self._broken: set[str] = set()  # parts that wait for the next change
        self._variables: dict[str, str] = {}
        self._started_at = ""
        self._asked_to_stop = False
        self._handlers: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
        self._lock: contextlib.ExitStack | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until it is ready; when that fails, or on Ctrl-C, stop what was started.

        Raises:
            StackError: Names the part that failed, with the end of its log.
            KeyboardInterrupt: It was asked to stop meanwhile.
        """
        if threading.current_thread() is not threading.main_thread():  # children die with the thread that started them
            message = "The stack must be started from the main thread of its process."
            raise StackError(message)
        raise_files()  # the parts inherit it
        state.prepare_home(self.home)
        held = contextlib.ExitStack()
        held.enter_context(state.lock(self.home))
        self._lock = held
        try:
            self._catch_signals()
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        state.end_orphans(self.home)
        secrets = state.ensure_secrets(self.home)
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._save()
        for name, server in self._servers().items():
            self._report(f"starting {name}")
            server.start()
            self._save()
            self._pause(0)
        self._variables = self._common_variables(secrets)
        for step in self._steps({**self._variables, "OSTEON_DATABASE_OWNER_URL": self._owner_url()}, secrets):
            self._report(f"running {step.name}")
            self._run(step)
        self._parts = {part.name: part for part in self._make_parts(self._variables, secrets)}
        if self._reload:
            self._sources = Sources({part.name: part.sources for part in self._parts.values()})
        for name in self._parts:
            self._report(f"starting {name}")
            self._launch(name)
        self._wait_ready()

    def watch(self) -> None:
        """Restart what dies, until Ctrl-C or SIGTERM; raises StackError for a part that died 5 times in 60 s."""
        while not self._asked_to_stop:
            self._restart_ended()
            time.sleep(0.2)

    def check(self) -> None:
        """Look once as `watch` does, for whoever works with the stack meanwhile.

        Raises:
            KeyboardInterrupt: It was asked to stop.
            StackError: A part died 5 times in 60 s.
        """
        self._pause(0)
        self._restart_ended()

    def _restart_ended(self) -> None:
        for process in self._processes().values():
            process.rotate_log()
        if self._reload:
            self._restart_changed()
        for name, process in self._processes().items():
            if process.running or name in self._broken:
                continue
            if name not in self._due:
                try:
                    self._due[name] = time.monotonic() + self._backoff_s(name)
                except StackError as failure:
                    if not self._reload or name not in self._parts:
                        raise
                    self._report(f"{failure}\n{name} waits for the next change of its code")
                    self._broken.add(name)
                    continue
            if time.monotonic() >= self._due[name]:
                del self._due[name]
                self._restart(name)

    def _restart_changed(self) -> None:
        """Restart the parts whose code changed, and report which of those restarted before are ready."""
        changed = self._sources.changed()
        for name, path in changed.items():
            self._report(f"{_shortened(path)} changed: starting {name} again")
            self._children[name].signal_stop()
        for name in changed:
            self._due.pop(name, None)
            self._restarts.pop(name, None)
            self._broken.discard(name)
            self._restart(name)
            self._starting.add(name)
        for name in sorted(self._starting - self._broken):
            if self._children[name].running and self._parts[name].ready():
                self._starting.discard(name)
                self._report(f"{name} is ready")

    def stop(self) -> None:
        """End the parts together, then Valkey, then Postgres. Can be called again; signals do not interrupt it."""
        if self._lock is None:
            return
        self._asked_to_stop = True
        for name, child in self._children.items():
            self._report(f"stopping {name}")
            child.signal_stop()
        for child in self._children.values():
            child.stop()
        self._children.clear()
        for name, server in reversed(self._servers().items()):
            self._report(f"stopping {name}")
            server.stop()
        (self.home / "stack.json").unlink(missing_ok=True)
        self._lock.close()
        self._lock = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _catch_signals(self) -> None:
        """Note signals, and act on them between two steps: an exception in the middle of one could lose a process."""
        self._asked_to_stop = False

        def note(_number: int, _frame: FrameType | None) -> None:
            self._asked_to_stop = True

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup SIGHUP stays ignored
                self._handlers[number] = signal.signal(number, note)

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)
        if self._asked_to_stop:
            raise KeyboardInterrupt

    def _servers(self) -> dict[str, EmbeddedPostgres | EmbeddedValkey]:
        """The embedded servers, in the order of starting."""
        found: dict[str, EmbeddedPostgres | EmbeddedValkey] = {}
        if self.postgres is not None:
            found["postgres"] = self.postgres
        if self.valkey is not None:
            found["valkey"] = self.valkey
        return found

    def _processes(self) -> dict[str, Child]:
        """Every process started, in the order of stopping."""
        servers = {name: server.child for name, server in reversed(self._servers().items()) if server.child}
        return {**self._children, **servers}

    def _save(self) -> None:
        parts: dict[str, state.PartState] = {}
        ports = {name: server.port for name, server in self._servers().items()}
        ports |= {name: part.port for name, part in self._parts.items() if part.port}
        for name, child in self._processes().items():
            if child.pid is not None:
                parts[name] = {"pid": child.pid, "created": creation_time(child.pid) or 0.0, "port": ports.get(name)}
        pid = os.getpid()
        supervisor: state.StackState = {
            "pid": pid,
            "created": creation_time(pid) or 0.0,
            "started_at": self._started_at,
            "urls": self.urls,
            "parts": parts,
        }
        state.write_state(self.home, supervisor)

    def _child(self, part: Part) -> Child:
        log = self.home / "logs" / f"{part.name}.log"
        given = {name: value for name, value in self._variables.items() if name not in SECRETS or name in part.secrets}
        variables = {**given, **part.variables}
        return Child(part.name, part.command, log, variables, stop_wait_s=part.stop_wait_s)

    def _run(self, step: Part) -> None:
        """Run a step to its end. Raises StackError when it fails or takes longer than STEP_LIMIT_S."""
        child = self._children[step.name] = self._child(step)
        child.start()
        deadline = time.monotonic() + STEP_LIMIT_S
        while child.running:
            if time.monotonic() > deadline:
                raise child.failure(f"did not end within {STEP_LIMIT_S:.0f} s")
            self._pause(0.05)
        if child.exit_code:
            raise child.failure(f"failed (exit code {child.exit_code})")
        del self._children[step.name]

    def _launch(self, name: str) -> None:
        child = self._children[name] = self._child(self._parts[name])
        child.start()
        self._save()

    def _wait_ready(self) -> None:
        """Wait for every part. Raises StackError naming one that ended, or made no progress for start_limit_s."""
        waiting = {name: StartLimit(self._children[name], self.config.start_limit_s) for name in self._parts}
        while waiting:
            for process in self._processes().values():
                if not process.running:
                    raise process.failure(f"ended while starting (exit code {process.exit_code})")
            for name in [name for name in waiting if self._parts[name].ready()]:
                del waiting[name]
                self._report(f"{name} is ready")
            for name, patience in waiting.items():
                if late := patience.over():
                    raise self._children[name].failure(
                        f"{late} (OSTEON_START_LIMIT_S is {self.config.start_limit_s:g})"
                    )
            self._pause(0.2 if waiting else 0)

    def _backoff_s(self, name: str) -> float:
        """Seconds to wait before the restart, longer each time.

        Raises StackError when it died too often: with reload twice, for then it is the code that was just written.
        """
        now = time.monotonic()
        recent = [then for then in self._restarts.get(name, []) if now - then < RESTARTS_WINDOW_S]
        process = self._processes()[name]
        if len(recent) >= (1 if self._reload else MAX_RESTARTS):
            times = "once" if len(recent) == 1 else f"{len(recent)} times"
            raise process.failure(f"was restarted {times} in {RESTARTS_WINDOW_S:.0f} s and ended again")
        self._restarts[name] = [*recent, now]
        self._report(f"{name} ended (exit code {process.exit_code}); starting it again")
        return 0.5 * float(2 ** len(recent))

    def _restart(self, name: str) -> None:
        servers = self._servers()
        if name in servers:
            with contextlib.suppress(StackError):  # still dead at the next look, which counts as one more time
                servers[name].start()
            self._save()
        else:
            self._children[name].stop()  # and what it had started itself
            self._launch(name)

    def _common_variables(self, secrets: state.Secrets) -> dict[str, str]:
        """Make the variables of all our processes; each gets only those of SECRETS that its part names."""
        config = self.config
        store = config.store_url.get_secret_value() if _is_set(config, "store_url") else f"file:{self.home / 'objects'}"
        if store == f"file:{self.home / 'objects'}":
            (self.home / "objects").mkdir(mode=0o700, exist_ok=True)
        api_port, flower_port = self._port("api"), self._port("flower")
        dicom_port = self._port("dicom") if config.dicom_port else 0
        self.urls = {
            "database": self.postgres.url if self.postgres else config.database_url.get_secret_value(),
            "broker": self.valkey.url if self.valkey else config.broker_url.get_secret_value(),
            "store": store,
            "api": f"http://{reachable(config.api_host)}:{api_port}",
            "flower": f"http://{reachable(config.flower_host)}:{flower_port}",
        }
        if listens := dicom_port or config.dicom_tls_port:
            self.urls["dicom"] = f"{reachable(config.dicom_host)}:{listens}"
        session_secret = config.session_secret.get_secret_value() or secrets["session_secret"]
        worker_metrics = self._metrics_port("worker")
        own = {
            "HOME": str(self.home),
            "DATABASE_URL": self.urls["database"],
            "BROKER_URL": self.urls["broker"],
            "STORE_URL": store,
            "SPOOL_DIR": str(config.spool_dir or self.home / "spool"),  # not /tmp, which may be memory
            "IDENTITY_KEY": config.identity_key.get_secret_value() or secrets["identity_key"],
            "SESSION_SECRET": session_secret,
            "WEBHOOK_KEY": config.webhook_key.get_secret_value() or _webhook_key(secrets["identity_key"]),
            "METRICS_TOKEN": config.metrics_token.get_secret_value() or self._metrics_token(session_secret),
            "WORKER_METRICS_PORT": str(worker_metrics),
            "DICOM_METRICS_PORT": str(self._metrics_port("dicom", but=worker_metrics)),
            "API_HOST": config.api_host,
            "API_PORT": str(api_port),
            "DICOM_HOST": config.dicom_host,
            "DICOM_PORT": str(dicom_port),
            "FLOWER_HOST": config.flower_host,
            "FLOWER_PORT": str(flower_port),
            "FLOWER_URL": config.flower_url if _is_set(config, "flower_url") else self.urls["flower"],
        }
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        # the working folder stays, so that relative paths in settings keep their meaning; code comes from ROOT only
        python = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        inherited = {name: value for name, value in os.environ.items() if name != "OSTEON_DATABASE_OWNER_URL"}
        return {**inherited, **python, **{f"OSTEON_{name}": value for name, value in own.items()}}

    def _owner_url(self) -> str:
        """URL of the database as its tables' owner; "" if one role of an external server is both."""
        return self.postgres.owner_url if self.postgres else self.config.database_owner_url.get_secret_value()

    def _metrics_token(self, session_secret: str) -> str:
        """Make the token of GET /metrics from a secret that exists; Prometheus reads it in home/metrics-token."""
        token = hmac.digest(session_secret.encode(), b"metrics", "sha256").hex()
        file = self.home / "metrics-token"
        file.touch(mode=0o600)
        file.write_text(token)
        return token

    def _metrics_port(self, name: str, but: int = 0) -> int:
        """Choose the port of a process's metrics: that of the settings, else the next free one but `but`, else none."""
        if _is_set(self.config, f"{name}_metrics_port"):
            return int(getattr(self.config, f"{name}_metrics_port"))
        host = getattr(self.config, f"{name}_metrics_host")
        ports = range(METRICS_PORTS[name], METRICS_PORTS[name] + 100)
        return next((port for port in ports if port != but and reserve(port) and is_free(port, host)), 0)

    def _port(self, name: str) -> int:
        """Choose the port of the settings, or the next free one if it is taken and nobody set it."""
        host, chosen = getattr(self.config, f"{name}_host"), int(getattr(self.config, f"{name}_port"))
        if reserve(chosen) and is_free(chosen, host):
            return chosen
        variable = f"OSTEON_{name.upper()}_PORT"
        if _is_set(self.config, f"{name}_port"):
            message = (
                f"Port {chosen} of {host} is in use. Set {variable} to a free one, or end the program that uses it."
            )
            raise StackError(message)
        for port in range(chosen + 1, chosen + 100):
            if reserve(port) and is_free(port, host):
                self._report(f"port {chosen} is in use; {name} takes {port}")
                return port
        message = f"The ports {chosen} to {chosen + 99} of {host} are in use. Set {variable} to a free one."
        raise StackError(message)


def _shortened(path: Path) -> Path:
    """Shorten a path: from the code's folder on."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _webhook_key(identity_key: str) -> str:
    """Make the key of webhooks' secrets from one that a home keeps for ever, so that receivers keep theirs."""
    return hmac.digest(identity_key.encode(), b"webhooks", "sha256").hex()


def _is_set(config: Settings, field: str) -> bool:
    """Whether this setting was set, by variable or in code."""
    return field in config.model_fields_set
