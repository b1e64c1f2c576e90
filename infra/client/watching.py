"""Shows a run's progress: a bar at a terminal, elsewhere a line now and then."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from infra.client.submission import Progress, Submission

LINE_EVERY_S = 10.0
RATE_OVER_S = 20.0  # the time left is reckoned from so long


class Throughput:
    """Speed in the last RATE_OVER_S seconds, and the time left at that speed."""

    def __init__(self, tally: Progress) -> None:
        self.tally = tally
        self._seen: list[tuple[float, int, int]] = []  # time, bytes, files

    def record(self, now: float) -> None:
        """Note the progress at a time, in seconds of a monotonic clock."""
        done = self.tally.files - self.tally.skipped_files
        self._seen.append((now, self.tally.bytes, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - RATE_OVER_S:
            del self._seen[0]

    def rates(self) -> tuple[float, float]:
        """Bytes and files a second."""
        (start, bytes_then, files_then), (now, bytes_now, files_now) = self._seen[0], self._seen[-1]
        seconds = max(now - start, 1e-9)
        return max(0.0, (bytes_now - bytes_then) / seconds), (files_now - files_then) / seconds

    def left_s(self) -> float | None:
        """Estimate the seconds left, by bytes or by files, whichever is longer: small files cost more than bytes."""
        tally, (bytes_rate, files_rate) = self.tally, self.rates()
        if tally.total_bytes is None or tally.total_files is None or not bytes_rate or not files_rate:
            return None
        by_bytes = max(0, tally.total_bytes - tally.skipped_bytes - tally.bytes) / bytes_rate
        return max(by_bytes, max(0, tally.total_files - tally.files) / files_rate)


def sentences(tally: Progress, pace: Throughput) -> list[str]:
    """Say how far a run is, in lines for 80 columns.

    Args:
        tally: of the run.
        pace: that has looked at it at least once.

    Returns:
        What is sent, what became of it, and what is wrong if anything is.
    """
    bytes_rate, files_rate = pace.rates()
    files = f"{tally.files:,}"
    if tally.total_files is not None:
        files += f" of {max(tally.files, tally.total_files):,}"
    size = f"{tally.bytes / 1e6:,.1f}"
    if tally.total_bytes is not None:
        size += f" of {max(tally.bytes, tally.total_bytes - tally.skipped_bytes) / 1e6:,.1f}"
    left_s = pace.left_s()
    ends = "" if left_s is None else f" · {_clock(left_s)} left"
    return [
        f"{files} files · {size} MB · {files_rate:.0f} files/s · {bytes_rate / 1e6:.1f} MB/s",
        f"{len(tally.studies):,} studies · {tally.rejected:,} rejected{ends}",
        *([tally.notice] if tally.notice else []),
    ]


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _picture(tally: Progress, pace: Throughput) -> RenderableType:
    total = None if tally.total_files is None else max(tally.files, tally.total_files)
    bar = ProgressBar(total=total, completed=tally.files, pulse=total is None)
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_row(Text("sending"), bar)
    return Group(grid, *(Text(each) for each in sentences(tally, pace)))


@contextmanager
def watching(sending: Submission, console: Console, *, quiet: bool) -> Iterator[None]:
    """Show how far a run is while the block runs.

    Args:
        sending: the run.
        console: a bar at a terminal, elsewhere a line now and then.
        quiet: show nothing.

    Yields:
        Nothing.
    """
    if quiet:
        yield
        return
    pace, ended = Throughput(sending.tally), threading.Event()
    pace.record(time.monotonic())

    def tick(live: Live | None) -> None:
        while not ended.wait(0.25 if live else LINE_EVERY_S):
            pace.record(time.monotonic())
            if live:
                live.update(_picture(sending.tally, pace))
            else:
                text = " · ".join(sentences(sending.tally, pace))
                console.print(text, markup=False, highlight=False, soft_wrap=True)

    live = Live(_picture(sending.tally, pace), console=console, auto_refresh=True) if console.is_terminal else None
    ticking = threading.Thread(target=tick, args=(live,), daemon=True)
    if live is not None:
        live.start()
    ticking.start()
    try:
        yield
    finally:
        ended.set()
        ticking.join()
        if live is not None:
            pace.record(time.monotonic())
            live.update(_picture(sending.tally, pace), refresh=True)
            live.stop()
