"""Several processes that take associations from one socket, and the one that watches over them.

Python runs one thread of a process at a time; so one process uses one core. The processes are forked from one that has
every library in memory and no threads. One that ends is replaced; when the watching one ends, all do.
"""

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from types import FrameType

from prometheus_client import REGISTRY, Metric
from prometheus_client.registry import Collector

from api.listener import metrics
from api.listener.places import Places
from shared.errors import OsteonError
from shared.logs import get_logger

log = get_logger(__name__)
READY_S = 60.0  # for a process to begin
TOLD_S = 2.0  # for a process to say what it counts
SOON_S = 5.0  # a process that ends so soon is replaced later
AGAIN_S = 1.0
LOOK_S = 0.2
# What a process does, until its event is set. It calls the function once it listens.
Serving = Callable[[int, threading.Event, Callable[[], None]], None]


@dataclass
class _Process:
    """One of them."""

    pid: int
    control: Connection
    began: float
    told: list[Metric] = field(default_factory=list)  # what it counted when it was asked last


class Processes(Collector):
    """The watching process: starts them, replaces what ends, and sums up what they count."""

    def __init__(self, places: Places, serve: Serving) -> None:
        """places: that they hold together; serve: what each does."""
        self._places, self._serve = places, serve
        self._running: dict[int, _Process] = {}  # by number
        self._past: list[Metric] = []  # what was counted by those that have ended
        self._again: dict[int, float] = {}  # numbers that wait to be started, and until when
        self._asking = threading.Lock()

    def start(self) -> bool:
        """Start all; return whether all of them listen."""
        gc.collect()
        gc.freeze()  # what is shared is not copied because the collector writes into it
        for number in range(self._places.processes):
            self._fork(number)
        until = time.monotonic() + READY_S
        return all(self._ready(one, until) for one in self._running.values())

    def watch(self) -> None:
        """Replace what has ended."""
        for number, one in list(self._running.items()):
            if os.waitpid(one.pid, os.WNOHANG)[0]:
                log.error("listener process replaced", number=number)
                with self._asking:
                    del self._running[number]
                    self._past = list(_sum([self._past, [metric for metric in one.told if metric.type != "gauge"]]))
                one.control.close()
                self._places.free(number)
                soon = time.monotonic() - one.began < SOON_S
                self._again[number] = time.monotonic() + (AGAIN_S if soon else 0.0)
        for number, at in list(self._again.items()):
            if time.monotonic() >= at:
                del self._again[number]
                self._fork(number)

    def answer(self) -> bool:
        """Ask each what it counts; return whether all are there and answered."""
        with self._asking:
            answered = [self._told(one) for one in self._running.values()]
        return len(answered) == self._places.processes and all(answered)

    def stop(self, limit_s: float) -> None:
        """Have all end by themselves within a time, else end them. limit_s: in seconds."""
        for one in self._running.values():
            os.kill(one.pid, signal.SIGTERM)
        until = time.monotonic() + limit_s
        left = {one.pid for one in self._running.values()}
        while left:
            left = {pid for pid in left if not os.waitpid(pid, os.WNOHANG)[0]}
            if left and time.monotonic() > until:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                return
            time.sleep(0.02 if left else 0)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are those of `metrics`."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """What all of them count, for Prometheus."""
        with self._asking:
            for one in self._running.values():
                self._told(one)
            yield from _sum([self._past, *(one.told for one in self._running.values())])

    def serve_metrics(self) -> None:
        """Have the process's registry give these sums in place of its own counters."""
        for one in metrics.ALL:
            REGISTRY.unregister(one)
        REGISTRY.register(self)

    def _told(self, one: _Process) -> bool:
        try:
            while one.control.poll(0):  # an answer that came too late
                one.control.recv()
            one.control.send(None)
            if one.control.poll(TOLD_S):
                one.told = one.control.recv()
                return True
        except (OSError, EOFError):
            pass
        return False

    def _ready(self, one: _Process, until: float) -> bool:
        try:
            return one.control.poll(max(0.0, until - time.monotonic())) and one.control.recv() is not None
        except (OSError, EOFError):
            return False

    def _fork(self, number: int) -> None:
        ours, its = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            its.close()
            self._running[number] = _Process(pid, ours, time.monotonic())
            return
        code = 1
        try:
            ours.close()
            for other in self._running.values():  # else the end of the watching process would not be seen
                other.control.close()
            self._places.number = number
            code = _child(number, its, self._serve)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _child(number: int, control: Connection, serve: Serving) -> int:
    """A process from its beginning to its end; returns its exit code."""
    asked = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)

    def ready() -> None:
        control.send([])
        threading.Thread(target=_tell, args=(control,), name="dicom-control", daemon=True).start()

    try:
        serve(number, asked, ready)
    except OsteonError as error:
        sys.stderr.write(f"osteon: {error}\n")
        return 1
    except Exception:
        log.exception("listener process crashed", number=number)
        return 1
    return 0


def _tell(control: Connection) -> None:
    """Say what this process counts when it is asked.

    When the watching one has ended, so does this at once: whoever starts the next one needs the port.
    """
    try:
        while True:
            control.recv()
            control.send([family for one in metrics.ALL for family in one.collect()])
    except (EOFError, OSError):
        os._exit(1)


def _sum(metrics_of_processes: Iterable[list[Metric]]) -> Iterator[Metric]:
    """Sum counters and histograms; a gauge says the same in each process, or is about to, and the highest is taken."""
    families: dict[str, Metric] = {}
    samples: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for family in (family for its in metrics_of_processes for family in its):
        families.setdefault(family.name, family)
        values = samples.setdefault(family.name, {})
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            if key not in values:
                values[key] = sample.value
            elif sample.name.endswith("_created"):
                values[key] = min(values[key], sample.value)
            else:
                values[key] = max(values[key], sample.value) if family.type == "gauge" else values[key] + sample.value
    for name, family in families.items():
        whole = Metric(name, family.documentation, family.type)
        for (sample_name, labels), value in samples[name].items():
            whole.add_sample(sample_name, dict(labels), value)
        yield whole
