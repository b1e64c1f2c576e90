"""What the processes of a listener hold together: associations, room in the spool, connections.

It lies in memory that they share since they were forked. What a process holds goes with it: its number frees it.
"""

import fcntl
import mmap
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from shared.settings import cpu_count

PEER_BYTES = 16  # of a UUID
PLACE_BYTES = 1 + PEER_BYTES  # the holder's number and one more; 0: the place is free
NUMBER_BYTES = 8
MAX_PROCESSES = 64


class Places:
    """Associations up to a number, and what each process counts. Safe between threads and processes."""

    def __init__(self, max_places: int, processes: int = 1) -> None:
        """most: associations at a time; processes: that are forked after this, at most MAX_PROCESSES."""
        self.number = 0  # of this process
        self.processes = processes
        self._most = max_places
        counts = 2 * processes * NUMBER_BYTES
        self._memory = mmap.mmap(-1, counts + max_places * PLACE_BYTES)
        self._first = counts
        view = memoryview(self._memory)
        self.spooled = view[: counts // 2].cast("q")  # bytes in the spool, by process
        self._connections = view[counts // 2 : counts].cast("q")  # by process
        self._guard = tempfile.TemporaryFile()  # noqa: SIM115 - held as long as the process; locked, never written
        self._lock = threading.Lock()

    def take(self, peer_id: UUID, max_of_peer: int) -> bool:
        """Take a place for an association.

        Args:
            peer_id: whose it is.
            max_of_peer: that one peer may have.

        Returns:
            Whether there was one.
        """
        with self._alone():
            free, of_peer = None, 0
            for at, holder, its_peer in self._all():
                if not holder:
                    free = at if free is None else free
                elif its_peer == peer_id.bytes:
                    of_peer += 1
            if free is None or of_peer >= max_of_peer:
                return False
            self._memory[free : free + PLACE_BYTES] = bytes([self.number + 1]) + peer_id.bytes
            return True

    def leave(self, peer_id: UUID) -> None:
        """Free a place that this process took for a peer."""
        with self._alone():
            its = next(
                at for at, holder, peer in self._all() if holder == self.number + 1 and peer == peer_id.bytes
            )  # fmt: skip
            self._memory[its] = 0

    def free(self, number: int) -> None:
        """Free all that a process holds which has ended."""
        with self._alone():
            for at, holder, _ in self._all():
                if holder == number + 1:
                    self._memory[at] = 0
        self.spooled[number] = self._connections[number] = 0

    @property
    def taken(self) -> int:
        """How many associations are open."""
        return sum(bool(holder) for _, holder, _ in self._all())

    def connections(self, count: int) -> None:
        """Say how many connections this process has."""
        self._connections[self.number] = count

    @property
    def busier(self) -> bool:
        """Whether this process has more connections than another one, which should take the next."""
        return self._connections[self.number] > min(self._connections)

    def _all(self) -> Iterator[tuple[int, int, bytes]]:
        """Each place: where it is, its holder's number and one more, the peer."""
        for at in range(self._first, self._first + self._most * PLACE_BYTES, PLACE_BYTES):
            yield at, self._memory[at], self._memory[at + 1 : at + PLACE_BYTES]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads and processes out. The system frees the lock of a process that is killed."""
        with self._lock:
            fcntl.lockf(self._guard, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._guard, fcntl.LOCK_UN)


def processes_of(setting: int) -> int:
    """How many processes listen: as the setting says, or, where it is 0, one for two processor cores, 4 at most."""
    # the other cores are for Postgres and the rest of the system: on two cores a second process gained nothing
    return min(setting, MAX_PROCESSES) or max(1, min(cpu_count() // 2, 4))
