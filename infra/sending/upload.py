"""Requests side by side, sent again until they are answered."""

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from infra.client import Busy, Client, Refused
from infra.sending.body import Body, Unsendable
from infra.sending.walk import Item
from shared.errors import Unavailable

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
FATAL = (401, 403, 404)  # not this request is refused but this key, or this address


@dataclass(frozen=True)
class Answered:
    """A request's answer: for each item its SHA-256 and the API's lines, one for a file, several for an archive."""

    items: list[Item]
    sha256: list[str]
    lines: list[list[dict[str, Any]]]  # as the API writes them, but for the names: of members, the member's
    studies: list[dict[str, Any]]
    seconds: float


@dataclass
class Ears:
    """Whom an uploader tells; all are called from its threads, one call at a time but for `sent`."""

    answered: Callable[[Answered], None]
    refused: Callable[[Item, str, str], None]  # item, reason, text: the API cannot take it, or it cannot be read here
    unsent: Callable[[list[Item]], None]
    sent: Callable[[int], None]  # bytes on their way; less than none when they must be sent again
    trouble: Callable[[str], None]  # the API does not answer for now; "" once it does


class Uploader:
    """Uploads groups of items, `jobs` at a time, and reads no further ahead than it sends.

    A request that met a busy or absent API is sent again, at growing intervals with some chance in them, until it has
    been in vain for give_up_after_s; then everything stops. One that the API refuses or breaks on is halved, down to
    the file that it is about: no file holds others back.
    """

    def __init__(self, client: Client, priority: str, jobs: int, give_up_after_s: float, ears: Ears) -> None:
        self.client, self.priority, self.jobs, self.ears = client, priority, jobs, ears
        self.give_up_after_s = give_up_after_s
        self.failure: BaseException | None = None  # what ended it before the end
        self._stopping = threading.Event()
        self._telling = threading.Lock()
        self._random = random.Random()  # noqa: S311 - spreads retries, hides nothing

    def stop(self) -> None:
        """Finish what is being sent and send no more; may be called from a signal handler."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """Whether no more is sent."""
        return self._stopping.is_set()

    def run(self, groups: Iterable[list[Item]]) -> None:
        """Send all groups; returns once each item was told of. Raises what the groups' own reading raises."""
        todo: queue.Queue[list[Item] | None] = queue.Queue(maxsize=1)
        # daemons: a second Ctrl-C must not wait for a server that hangs
        threads = [threading.Thread(target=self._work, args=(todo,), daemon=True) for _ in range(self.jobs)]
        for thread in threads:
            thread.start()
        try:
            for group in groups:
                todo.put(group)
            todo.put(None)
        except BaseException:
            self.stop()
            with contextlib.suppress(queue.Full):
                todo.put_nowait(None)
            raise
        for thread in threads:
            thread.join()

    def _work(self, todo: "queue.Queue[list[Item] | None]") -> None:
        while True:
            group = todo.get()
            if group is None:
                todo.put(None)  # for the next one
                return
            try:
                self._send(group)
            except BaseException as wrong:  # noqa: BLE001 - raised again by whoever called run
                self.failure = self.failure or wrong
                self.stop()

    def _send(self, group: list[Item]) -> None:
        """Send a group until each of its items was told of."""
        if not group:
            return
        if self.stopping:
            self._tell(self.ears.unsent, group)
            return
        start = time.monotonic()
        try:
            answer, hashes = self._persist(group, start)
        except Unsendable as wrong:
            self._tell(self.ears.refused, wrong.item, "unreadable", wrong.why)
            self._send([item for item in group if item is not wrong.item])
        except Refused as wrong:
            if wrong.status in FATAL:
                self._tell(self.ears.unsent, group)
                raise
            if len(group) == 1:
                self._tell(self.ears.refused, group[0], "request-refused", str(wrong))
                return
            half = len(group) // 2
            self._send(group[:half])
            self._send(group[half:])
        except Unavailable:
            self._tell(self.ears.unsent, group)
            if not self.stopping:
                raise
        except BaseException:
            self._tell(self.ears.unsent, group)
            raise
        else:
            lines = _by_item(answer["files"], len(group))
            told = Answered(group, hashes, lines, answer["studies"], round(time.monotonic() - start, 3))
            self._tell(self.ears.answered, told)

    def _persist(self, group: list[Item], start: float) -> tuple[dict[str, Any], list[str]]:
        """Send until the API answers. Raises Refused, Unsendable, and Unavailable once that is given up."""
        pause_s = FIRST_PAUSE_S
        troubled = False
        while True:
            sent = 0

            def count(size: int) -> None:
                nonlocal sent
                sent += size
                self.ears.sent(size)

            body = Body(group, {"priority": self.priority}, count)
            try:
                answer = self.client.upload(body)
            except Unavailable as wrong:
                self.ears.sent(-sent)
                if self.stopping or time.monotonic() - start > self.give_up_after_s:
                    raise
                asked_s = wrong.retry_after_s if isinstance(wrong, Busy) else None
                wait_s = max(asked_s or 0.0, pause_s * self._random.uniform(0.5, 1.0))
                wait_s = min(wait_s, max(0.0, start + self.give_up_after_s - time.monotonic()))
                troubled = True
                self._tell(self.ears.trouble, f"{wrong} Trying again in {wait_s:.0f} s.")
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                self._stopping.wait(wait_s)
                if self.stopping:
                    raise
            except BaseException:
                self.ears.sent(-sent)
                raise
            else:
                if troubled:
                    self._tell(self.ears.trouble, "")
                return answer, body.sha256

    def _tell(self, ear: Callable[..., None], *news: object) -> None:
        with self._telling:
            ear(*news)


def _by_item(files: list[dict[str, Any]], count: int) -> list[list[dict[str, Any]]]:
    """The receipt's lines, sorted by the number that each item was sent under; names become the members'."""
    lines: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    for line in files:
        number, _, member = line["file"].partition("!")
        lines[int(number)].append(line | {"file": member})
    return lines
