"""Processes forked from one that has everything imported: they begin in a moment, where the imports take seconds."""

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

CONTEXT = multiprocessing.get_context("forkserver")
# shared.settings is read when worker.main is imported, so that one is left to the process itself
CONTEXT.set_forkserver_preload(
    ["tests.fuzz.path", "tests.fuzz.cases", "worker.consumer", "worker.sweeps", "worker.tasks"]
)


class ForkedProcess:
    """A function in a process of its own, with the part of subprocess.Popen that tests use."""

    def __init__(
        self, function: Callable[[], None], environment: Mapping[str, str], output: BinaryIO, cwd: Path
    ) -> None:
        """function: of a module, not a lambda. environment: all of it. output: where what it writes goes."""
        self._process = CONTEXT.Process(target=_run, args=(function, dict(environment), output.name, str(cwd)))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """What it ended with, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises TimeoutExpired."""
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _run(function: Callable[[], None], environment: dict[str, str], output: str, cwd: str) -> None:
    log = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    function()
