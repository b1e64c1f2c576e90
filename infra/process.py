"""One process of the stack: started with its log, stopped for certain, and never left behind by a killed supervisor."""

import contextlib
import ctypes
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from shared.errors import StackError

MAX_LOG_BYTES = 20 * 2**20  # a log larger than this is set aside as NAME.log.1 at the next start
SAME_PROCESS_S = 2.0  # a create time moves a little when the clock is corrected
PR_SET_PDEATHSIG = 1  # linux/prctl.h

_reserved: set[int] = set()
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Child:
    """A process in a session of its own, so that Ctrl-C in the terminal reaches only the supervisor.

    On Linux it gets `stop_signal` when the thread that started it dies, kill -9 included: start it from the main
    thread. With own_death_signal the command arranges that itself.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        *,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_wait_s: float = 20.0,
        own_death_signal: bool = False,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.environment = dict(environment)
        self.stop_signal = stop_signal
        self.stop_wait_s = stop_wait_s
        self.own_death_signal = own_death_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._asked_to_stop = False

    def start(self) -> None:
        """Start it. Raises StackError when the program cannot be executed."""
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.replace(self.log.with_name(self.log.name + ".1"))
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._asked_to_stop = False
        before_exec = None if self.own_death_signal else _die_with_parent(os.getpid(), self.stop_signal)
        with self.log.open("ab") as output:
            try:
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                    start_new_session=True,
                    umask=0o077,
                    preexec_fn=before_exec,  # noqa: PLW1509 - one system call; nothing that takes a lock
                )
            except (OSError, subprocess.SubprocessError) as error:
                message = f"{self.name} could not be started ({error}). Is the installation complete?"
                raise StackError(message) from error

    @property
    def pid(self) -> int | None:
        """Its process id once started."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """What it ended with; a negative number is the signal that ended it."""
        return self._process.poll() if self._process else None

    def output(self) -> str:
        """What it has written since its last start, at most the last 64 KiB."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(min(self._log_start, end), end - 65536))
            return file.read().decode(errors="replace")

    def failure(self, what: str) -> StackError:
        """The error for people: what happened, the end of the log, and where the rest is."""
        lines = [line for line in self.output().splitlines() if line.strip()][-15:]
        tail = "\n".join("    " + line for line in lines) or "    (it wrote nothing)"
        return StackError(f"{self.name} {what}. The end of its log {self.log}:\n{tail}")

    def signal_stop(self) -> None:
        """Ask it to end, without waiting, and only once: some programs take a second signal for impatience."""
        if self._process is not None and self.running and not self._asked_to_stop:
            self._asked_to_stop = True
            self._process.send_signal(self.stop_signal)

    def stop(self) -> None:
        """End it and what it started: its signal, then SIGKILL after stop_wait_s. Does nothing when it has ended."""
        if self._process is None:
            return
        self.signal_stop()
        try:
            self._process.wait(self.stop_wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it started itself and did not end
        self._process = None


def _die_with_parent(parent: int, death_signal: int) -> Callable[[], None] | None:
    """A function for the forked child: the kernel sends it death_signal when the supervisor ends. None off Linux."""
    libc = _libc
    if libc is None:
        return None

    def arrange() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # it ended before we asked, so no signal will come
            os._exit(1)

    return arrange


def created(pid: int) -> float | None:
    """When the process of this id was created, seconds since 1970; None when there is none, or only its zombie."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def is_same(pid: int, created_at: float) -> bool:
    """Whether pid is still the process that was created then, and not a later one that got the same number."""
    now = created(pid)
    return now is not None and abs(now - created_at) < SAME_PROCESS_S


def end(pid: int, created_at: float, wait_s: float, first: signal.Signals = signal.SIGTERM) -> bool:
    """End a process that is not our child, SIGKILL after wait_s. Returns whether it has gone."""
    for number, patience_s in ((first, wait_s), (signal.SIGKILL, 5.0)):
        if not is_same(pid, created_at):
            return True
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return True
        wait_until(lambda: not is_same(pid, created_at), patience_s)
    return not is_same(pid, created_at)


def wait_until(condition: Callable[[], bool], limit_s: float, every_s: float = 0.1) -> bool:
    """Ask condition until it is true. Returns False when limit_s have passed before."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: TIME_WAIT is no obstacle
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A free port of 127.0.0.1 that is this process' until it ends. Raises StackError when none is found.

    Below 32768, where the kernel takes the ports of outgoing connections from: a restart finds its port free again.
    """
    for _ in range(200):
        port = random.randrange(20000, 32768)  # noqa: S311 - no secret
        if port not in _reserved and reserve(port) and is_free(port):
            return port
    message = "No free port between 20000 and 32768 on 127.0.0.1. End programs that listen there, then try again."
    raise StackError(message)


def free_ports(count: int) -> list[int]:
    """Several free ports, all different. Raises as `free_port`."""
    return [free_port() for _ in range(count)]


def reserve(port: int) -> bool:
    """Keep other Osteon processes of this user from choosing this port until this process ends.

    Between the choice of a port and the server that listens there, another process could choose the same one. Returns
    whether it is ours now; it may have been before.
    """
    if port in _reserved:
        return True
    folder = Path(tempfile.gettempdir()) / f"osteon-ports-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.geteuid():  # somebody else's: never open a file in it; the race is the lesser evil
        return True
    descriptor = os.open(folder / str(port), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    _reserved.add(port)  # the descriptor stays open, and the lock held, to the end of the process
    return True
