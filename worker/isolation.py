"""Analyses what may have killed the process alone, while nothing else is analysed."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Isolation:
    """Analyses suspects alone: if one kills the process, no other study dies with it and gets the blame.

    First come, first in: neither suspects nor the others can keep each other out for good.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets = itertools.count()
        self._next = 0
        self._inside = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Enter together with any number of others."""
        with self._changed:
            ticket = next(self._tickets)
            self._changed.wait_for(lambda: ticket == self._next and not self._alone)
            self._next += 1
            self._inside += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Enter once everybody has left, and keep everybody out; later ones queue up behind."""
        with self._changed:
            ticket = next(self._tickets)
            self._changed.wait_for(lambda: ticket == self._next and not self._alone and not self._inside)
            self._next += 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
