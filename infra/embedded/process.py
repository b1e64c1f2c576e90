"""Child processes of the stack, each with a log; the kernel ends them when the supervisor is killed."""

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
from typing import BinaryIO

import psutil

from shared.errors import StackError

MAX_LOG_BYTES = 20 * 2**20  # a log larger than this moves to NAME.log.1, in place of the one before
SAME_PROCESS_S = 2.0  # a create time moves a little when the clock is corrected
PROGRESS_CHECK_INTERVAL_S = 0.5  # at what a starting process does
IDLE_SHARE = 0.02  # of a core; a process that asks a dead server again and again uses less
MAX_LIMITS = 30
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
        """Start it; raises StackError if the program cannot be executed."""
        private_folder(self.log.parent)
        self.rotate_log()
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._asked_to_stop = False
        before_exec = None if self.own_death_signal else _die_with_parent(os.getpid(), self.stop_signal)
        with private_log(self.log) as output:
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
        """Its exit code; a negative number is the signal that ended it. None while it runs."""
        return self._process.poll() if self._process else None

    def output(self) -> str:
        """Read what it has written since its last start, at most the last 64 KiB."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(min(self._log_start, end), end - 65536))
            return file.read().decode(errors="replace")

    def rotate_log(self) -> None:
        """Move the content of a large log aside, while the process goes on writing to the same file.

        The process appends (O_APPEND), so it goes on at the file's new end. What it writes between the end of the copy
        and the cut, some microseconds, is lost; a pipe through the supervisor would lose more, when that dies.
        """
        if not self.log.exists() or self.log.stat().st_size <= MAX_LOG_BYTES:
            return
        aside = self.log.with_name(self.log.name + ".1")
        with contextlib.suppress(OSError):  # on a full disk the log is cut without a copy
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with self.log.open("rb") as old, os.fdopen(descriptor, "wb", buffering=0) as new:
                while piece := old.read(2**20):
                    new.write(piece)
        os.truncate(self.log, 0)
        self._log_start = 0

    def failure(self, what: str) -> StackError:
        """Make the error for people: what happened, the end of the log, and where the rest is."""
        lines = [line for line in self.output().splitlines() if line.strip()][-15:]
        tail = "\n".join("    " + line for line in lines) or "    (it wrote nothing)"
        return StackError(f"{self.name} {what}. The end of its log {self.log}:\n{tail}")

    def signal_stop(self) -> None:
        """Ask it to end, without waiting, and only once: some programs end at a second signal without cleaning up."""
        if self._process is not None and self.running and not self._asked_to_stop:
            self._asked_to_stop = True
            self._process.send_signal(self.stop_signal)

    def stop(self) -> None:
        """End it and what it started: its signal, then SIGKILL after stop_wait_s. Does nothing if it has ended."""
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


class StartLimit:
    """How long a child may take to start: limit_s without progress, and MAX_LIMITS times that in all.

    It makes progress while it computes, or waits for the processor or the disk: a busy machine makes all that slower.
    """

    def __init__(self, child: Child, limit_s: float) -> None:
        self._child, self._limit_s = child, limit_s
        self._began = self._looked_at = self._progress_at = time.monotonic()
        self._used_s = 0.0

    def over(self) -> str:
        """Return why the child took too long; "" while it did not. Call it again and again."""
        now = time.monotonic()
        if now - self._looked_at >= PROGRESS_CHECK_INTERVAL_S:
            used_s, at_work = _work_of(self._child.pid)
            if at_work or used_s - self._used_s > IDLE_SHARE * (now - self._looked_at):
                self._progress_at = now
            self._used_s, self._looked_at = used_s, now
        if now - self._progress_at > self._limit_s:
            return f"was not ready, and did nothing for {self._limit_s:.0f} s"
        if now - self._began > MAX_LIMITS * self._limit_s:
            return f"was not ready within {MAX_LIMITS * self._limit_s:.0f} s"
        return ""


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner can read. One that others may pass through, but not read, stays as it is."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_mode & 0o066:
        folder.chmod(0o700)


def private_log(path: Path) -> BinaryIO:
    """Open a file for appending that only its owner can read, whatever it was before."""
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")
    os.fchmod(file.fileno(), 0o600)
    return file


def _work_of(pid: int | None) -> tuple[float, bool]:
    """Measure processor time of a process and its children, seconds, and whether one runs or waits for the disk."""
    used_s, at_work = 0.0, False
    with contextlib.suppress(psutil.Error):
        top = psutil.Process(pid)
        for process in (top, *top.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                used_s += sum(process.cpu_times()[:4])
                at_work |= process.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
    return used_s, at_work


def _die_with_parent(parent: int, death_signal: int) -> Callable[[], None] | None:
    """Make a function for the forked child: the kernel ends it with its supervisor, by death_signal. None off Linux."""
    libc = _libc
    if libc is None:
        return None

    def arrange() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # it ended before we asked, so no signal will come
            os._exit(1)

    return arrange


def creation_time(pid: int) -> float | None:
    """Find when the process of this id was created, seconds since 1970; None if there is none, or only its zombie."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def is_same_process(pid: int, created_at: float) -> bool:
    """Tell a process from a later one that got the same number.

    Args:
        pid: the number.
        created_at: when the process was created, seconds since 1970, as `creation_time` returns it.

    Returns:
        True while the process lives.
    """
    now = creation_time(pid)
    return now is not None and abs(now - created_at) < SAME_PROCESS_S


def end_process(pid: int, created_at: float, wait_s: float, first: signal.Signals = signal.SIGTERM) -> bool:
    """End a process that is not our child.

    Args:
        pid: its number.
        created_at: when it was created, as `creation_time` returns it; a later process of this number is left alone.
        wait_s: seconds until SIGKILL.
        first: the signal that asks it to end.

    Returns:
        Whether it has gone.
    """
    for number, patience_s in ((first, wait_s), (signal.SIGKILL, 5.0)):
        if not is_same_process(pid, created_at):
            return True
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return True
        wait_until(lambda: not is_same_process(pid, created_at), patience_s)
    return not is_same_process(pid, created_at)


def wait_until(condition: Callable[[], bool], limit_s: float, every_s: float = 0.1) -> bool:
    """Ask a condition until it is true.

    Args:
        condition: is called on and on.
        limit_s: seconds after which it is given up.
        every_s: seconds between two questions.

    Returns:
        False when the limit passed before.
    """
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Try whether a server could listen on a port now.

    Args:
        port: of TCP.
        host: an address of this machine, IPv4 or IPv6.

    Returns:
        True if it could.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: TIME_WAIT is no obstacle
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Find a free port of 127.0.0.1 that is this process' until it ends.

    Below 32768, where the kernel takes the ports of outgoing connections from: a restart finds its port free again.

    Returns:
        The port.

    Raises:
        StackError: None is found.
    """
    for _ in range(200):
        port = random.randrange(20000, 32768)  # noqa: S311 - no secret
        if port not in _reserved and reserve(port) and is_free(port):
            return port
    message = "No free port between 20000 and 32768 on 127.0.0.1. End programs that listen there, then try again."
    raise StackError(message)


def free_ports(count: int) -> list[int]:
    """Find several free ports, all different; raises as `free_port` does."""
    return [free_port() for _ in range(count)]


def reserve(port: int) -> bool:
    """Keep other Osteon processes of this user from choosing a port until this process ends.

    Between the choice of a port and the server that listens there, another process could choose the same one.

    Args:
        port: of TCP.

    Returns:
        Whether it is ours now; it may have been before.
    """
    if port in _reserved:
        return True
    folder = Path(tempfile.gettempdir()) / f"osteon-ports-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if (
        folder.lstat().st_uid != os.geteuid()
    ):  # another user's: open no file in it, even if a port may then be chosen twice
        return True
    descriptor = os.open(folder / str(port), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    _reserved.add(port)  # the descriptor stays open, and the lock held, to the end of the process
    return True
