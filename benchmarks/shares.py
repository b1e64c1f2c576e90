"""A share of a core for a process and all that it starts: a small server that can be filled on a small machine."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from shared.errors import StackError

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 20_000  # short, so that a server whose share is used up stands still for milliseconds only
LEAST = 0.05  # of a core: the kernel gives no less than a millisecond a period


class Share:
    """At most so many cores for one process and its children, by a Linux control group (version 1 or 2).

    Use it as `with Share("postgres", 0.1, pid):`; what still runs in it afterwards has no limit any more.
    """

    def __init__(self, name: str, cores: float, pid: int) -> None:
        """Raises StackError where the system does not let us."""
        if cores < LEAST:
            raise StackError(f"{cores} of a core is too little to be given: at least {LEAST}")
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
        except OSError as wrong:
            raise StackError(
                f"no control group could be made in {ROOT} ({wrong.strerror}). Shares of a core need Linux and root."
            ) from wrong
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        for pid in (self._folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):  # it has just ended
                (self._folder.parent / "cgroup.procs").write_text(pid)
        self._folder.rmdir()
