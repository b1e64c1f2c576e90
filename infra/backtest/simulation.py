"""A department as a discrete-event simulation: readers take the first study of the list, and read it to its end."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from infra.backtest.arrivals import DAY, Arrival
from shared.domain.study import Priority
from shared.domain.worklist import PENDING, TURNAROUND_TARGETS

TurnaroundTargets = Mapping[str, Mapping[Priority, float]]


class Policy(StrEnum):
    """How the list is ordered."""

    ARRIVAL = "first come, first served"
    PROBABILITY = "probability only"  # highest first; what is not known yet comes last
    DUE = "osteon"  # earliest due time first, as shared/domain/worklist.py


@dataclass(frozen=True)
class Shift:
    """When a reader reads, in hours of the day; 18 to 8 goes through the night, 0 to 24 is always."""

    start: float = 0.0
    end: float = 24.0

    def next_from(self, at: float) -> float:
        """Find the first minute from `at` on in which this shift works."""
        start, length = self.start * 60, ((self.end - self.start) % 24 or 24) * 60
        since = (at - start) % DAY
        return at if since < length else at + DAY - since


@dataclass(frozen=True)
class Department:
    """Who reads, how long it takes, and what the list allows."""

    shifts: Sequence[Shift] = (Shift(),)  # one a reader
    reading_minutes: Mapping[str, float] | float = 4.0  # by class, where the arrival itself does not say
    analysis_minutes: float = 1.0  # from arrival to findings; until then a study's class is "pending"
    targets: TurnaroundTargets = field(default_factory=lambda: TURNAROUND_TARGETS)

    def minutes(self, arrival: Arrival) -> float:
        """How long reading this study takes."""
        if arrival.reading_minutes is not None:
            return arrival.reading_minutes
        return self.reading_minutes if isinstance(self.reading_minutes, float) else self.reading_minutes[arrival.kind]


@dataclass(frozen=True)
class ReadStudy:
    """One study that was read. Its wait ends when its reading starts."""

    arrival: Arrival
    start: float
    end: float

    @property
    def wait(self) -> float:
        """Minutes from the arrival to the start of the reading."""
        return self.start - self.arrival.at


def simulate(arrivals: Sequence[Arrival], policy: Policy, department: Department) -> list[ReadStudy]:
    """Read every arrival. A reading that was begun goes on when the shift ends.

    No reader rests while a study waits. A study may be read before its findings are there: it stands in the list from
    the start, where a pending one stands, and moves once they are known. Of two that stand alike the earlier is first.

    Args:
        arrivals: in any order.
        policy: how the list is ordered.
        department: who reads, and how long it takes.

    Returns:
        A reading for each arrival, in order of their starts.
    """
    # (when, which, analysed): what happens to the list
    events = [(arrival.at, number, False) for number, arrival in enumerate(arrivals)]
    events += [(arrival.at + department.analysis_minutes, number, True) for number, arrival in enumerate(arrivals)]
    heapq.heapify(events)
    waiting: list[tuple[float, float, int]] = []  # key, arrival, which
    keys: dict[int, float] = {}  # of those that wait; an entry with another key is out of date
    readers = [(shift.next_from(0.0), number) for number, shift in enumerate(department.shifts)]
    heapq.heapify(readers)
    readings: list[ReadStudy] = []
    while len(readings) < len(arrivals):
        now, reader = heapq.heappop(readers)
        while events and events[0][0] <= now:
            _, number, analysed = heapq.heappop(events)
            if not analysed or number in keys:
                keys[number] = _key(arrivals[number], policy, department, analysed=analysed)
                heapq.heappush(waiting, (keys[number], arrivals[number].at, number))
        while waiting and keys.get(waiting[0][2]) != waiting[0][0]:
            heapq.heappop(waiting)
        shift = department.shifts[reader]
        if not waiting:
            heapq.heappush(readers, (shift.next_from(max(now, events[0][0])), reader))
            continue
        _, _, number = heapq.heappop(waiting)
        del keys[number]
        end = now + department.minutes(arrivals[number])
        readings.append(ReadStudy(arrivals[number], now, end))
        heapq.heappush(readers, (shift.next_from(end), reader))
    return readings


def _key(arrival: Arrival, policy: Policy, department: Department, *, analysed: bool) -> float:
    if policy is Policy.ARRIVAL:
        return arrival.at
    if policy is Policy.PROBABILITY:
        known = analysed and arrival.probability is not None
        return -(arrival.probability or 0.0) if known else 1.0
    return arrival.at + department.targets[arrival.kind if analysed else PENDING][arrival.priority]
