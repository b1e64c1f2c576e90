"""Processes forked from one that has everything imported: they begin in a moment, where the imports take seconds."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

from execnet import gateway_io
from execnet.gateway_base import Popen2IO

from shared.settings import ROOT
from tests.pace import limit_s

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preload"])


def fork_workers() -> None:
    """From now on pytest-xdist's processes are forked too, and all that these fork comes from the same process."""
    # torch and OpenBLAS ask when they are imported, which is before conftest.py is read in the forked processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    CONTEXT.set_forkserver_preload(["tests.preload", "tests.preload_tests"])
    vars(gateway_io)["Popen2IOMaster"] = ForkedWorker


class ForkedWorker(Popen2IO):
    """As execnet.gateway_io.Popen2IOMaster: the pipes to a process that runs the line of Python which comes first."""

    def __init__(self, _command: list[str], execmodel: Any) -> None:
        """_command: what would begin a new interpreter."""
        (taken, told), (answered, said) = (multiprocessing.Pipe(duplex=False) for _ in range(2))
        self.process = CONTEXT.Process(target=_work, args=(taken, said))
        self.process.start()
        for theirs in (taken, said):
            theirs.close()
        to, back = (os.fdopen(os.dup(ours.fileno()), mode) for ours, mode in ((told, "wb"), (answered, "rb")))
        for ours in (told, answered):
            ours.close()
        super().__init__(to, back, execmodel)

    def wait(self) -> int | None:
        """Wait for its end; what it ended with."""
        self.process.join()
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()


def _work(taken: Connection, said: Connection) -> None:
    server: Any = forkserver.ensure_running.__self__  # type: ignore[attr-defined]
    server.ensure_running = lambda: None  # it is this process's parent
    os.dup2(taken.fileno(), 0)
    os.dup2(said.fileno(), 1)
    for pipe in (taken, said):
        pipe.close()
    sys.stdin, sys.stdout = (os.fdopen(number, mode, closefd=False) for number, mode in ((0, "r"), (1, "w")))
    exec(eval(sys.stdin.readline()), {})


class ForkedProcess:
    """A function in a process of its own, with the part of subprocess.Popen that tests use."""

    def __init__(
        self,
        function: Callable[[], None],
        environment: Mapping[str, str],
        output: BinaryIO,
        cwd: Path,
        errors: BinaryIO | None = None,
    ) -> None:
        """function: of a module, not a lambda. environment: all of it. output, errors: where what it writes goes."""
        names = [file.name for file in (output, errors or output)]
        self._process = CONTEXT.Process(target=_run, args=(function, dict(environment), names, str(cwd)))
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


def run_module(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, *, apart: bool = False
) -> "subprocess.CompletedProcess[str]":
    """Run what `python -m` runs of a module, with its arguments, to its end.

    Args:
        command: the module and its arguments.
        environment: all of it.
        folder: where files are written that take what it prints; the process runs at the top of the checkout.
        apart: whether its errors are apart from what it prints.

    Returns:
        Its exit code, and as stdout all that it printed, errors too unless they are apart.
    """
    return _ended(partial(_module, tuple(command)), environment, folder, apart=apart)


def run_program(
    program: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path
) -> "subprocess.CompletedProcess[str]":
    """Run what `python -c` runs of a text.

    Args:
        program: Python.
        arguments: sys.argv[1:].
        environment: as run_module has it.
        folder: as run_module has it.

    Returns:
        As run_module.
    """
    return _ended(program_of(program, arguments), environment, folder, apart=False)


def program_of(program: str, arguments: Sequence[str]) -> Callable[[], None]:
    """Make a function for a ForkedProcess of what `python -c` runs.

    Args:
        program: Python.
        arguments: sys.argv[1:].

    Returns:
        A function that can be sent to another process.
    """
    return partial(_program, program, tuple(arguments))


def _ended(
    function: Callable[[], None], environment: Mapping[str, str], folder: Path, *, apart: bool
) -> "subprocess.CompletedProcess[str]":
    with (folder / "printed").open("w+b") as output, (folder / "complained").open("w+b") as errors:
        process = ForkedProcess(function, environment, output, ROOT, errors if apart else None)
        try:
            code = process.wait(limit_s(240))
        finally:
            process.kill()
        return subprocess.CompletedProcess((), code, output.read().decode(), errors.read().decode())


def _program(program: str, arguments: Sequence[str]) -> None:
    sys.argv = ["-c", *arguments]
    exec(program, {"__name__": "__main__"})


def _module(command: Sequence[str]) -> None:
    sys.argv = list(command)
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # that it is imported already
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def _run(function: Callable[[], None], environment: dict[str, str], files: Sequence[str], cwd: str) -> None:
    for number, file in enumerate(files, 1):
        log = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(log, number)
        os.close(log)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    function()
