"""Limits a process and its children to a share of a core: a server so small that it can be saturated here."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from shared.errors import StackError

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 20_000  # short, so that a server that has used up its share pauses for milliseconds only
MIN_CORES = 0.05  # of a core: the kernel gives no less than a millisecond a period


class CpuLimit:
    """Limits one process and its children to a number of cores, by a Linux control group (version 1 or 2).

    Use it as `with CpuLimit("postgres", 0.1, pid):`; what still runs in it afterwards has no limit any more.
    """

    def __init__(self, name: str, cores: float, pid: int) -> None:
        """Prepare a limit, which holds from `with` on; that raises StackError where the system does not let us.

        Args:
            name: part of the control group's name.
            cores: share of one, MIN_CORES or more.
            pid: of the process; its children are limited with it.

        Raises:
            StackError: The share is too small.
        """
        if cores < MIN_CORES:
            raise StackError(f"{cores} of a core is too little: give at least {MIN_CORES}")
        self._second = (ROOT / "cgroup.controllers").exists()
        self._folder = (ROOT if self._second else ROOT / "cpu") / f"osteon-{name}-{pid}"
        self._pid, self._quota_us = pid, round(cores * PERIOD_US)

    def __enter__(self) -> Self:
        try:
            if self._second:
                (ROOT / "cgroup.subtree_control").write_text("+cpu")
            self._folder.mkdir()
            if self._second:
                (self._folder / "cpu.max").write_text(f"{self._quota_us} {PERIOD_US}")
            else:
                (self._folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (self._folder / "cpu.cfs_quota_us").write_text(str(self._quota_us))
            root = psutil.Process(self._pid)
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    (self._folder / "cgroup.procs").write_text(str(process.pid))
        except OSError as error:
            raise StackError(
                f"no control group could be made in {ROOT} ({error.strerror}). Shares of a core need Linux and root."
            ) from error
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        for pid in (self._folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):  # it has just ended
                (self._folder.parent / "cgroup.procs").write_text(pid)
        self._folder.rmdir()
