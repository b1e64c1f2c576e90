"""Parallel requests, each sent again until it is answered."""

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from infra.client.api import ApiBusy, ApiError, Client
from infra.client.body import Body, SendError
from infra.client.walk import Item
from shared.errors import Unavailable

FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
TOO_MANY = 429
FATAL = (401, 403, 404)  # they refuse the key or the address, not only this request


@dataclass(frozen=True)
class UploadResult:
    """A request's response: for each item its SHA-256 and the API's lines, one for a file, several for an archive."""

    items: list[Item]
    sha256: list[str]
    lines: list[list[dict[str, Any]]]  # as the API writes them, but for the names: of members, the member's
    studies: list[dict[str, Any]]
    seconds: float


@dataclass
class UploadCallbacks:
    """Functions that an uploader calls, from its threads; one call at a time except for `sent`."""

    completed: Callable[[UploadResult], None]
    refused: Callable[[Item, str, str], None]  # item, reason, text: the API cannot take it, or it cannot be read here
    unsent: Callable[[list[Item]], None]
    sent: Callable[[int], None]  # bytes sent; negative when they must be sent again
    trouble: Callable[[str], None]  # the API does not answer for now; "" once it does


class Uploader:
    """Uploads groups of items, `jobs` at a time, and reads no further ahead than it sends.

    A request that met a busy or absent API is sent again, at growing intervals with some chance in them, until it has
    been in vain for give_up_after_s; then everything stops. One that the API refuses or breaks on is halved, down to
    the file that it is about: no file holds others back.
    """

    def __init__(
        self, client: Client, priority: str, jobs: int, give_up_after_s: float, callbacks: UploadCallbacks
    ) -> None:
        self.client, self.priority, self.jobs, self.callbacks = client, priority, jobs, callbacks
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
        """Send all groups; return once each item had its callback. Raises what iterating over the groups raises."""
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
            except BaseException as error:  # noqa: BLE001 - raised again by whoever called run
                self.failure = self.failure or error
                self.stop()

    def _send(self, group: list[Item]) -> None:
        """Send a group, and make a callback for each of its items."""
        if not group:
            return
        if self.stopping:
            self._call_back(self.callbacks.unsent, group)
            return
        start = time.monotonic()
        try:
            response, hashes = self._send_until_answered(group, start)
        except SendError as error:
            self._call_back(self.callbacks.refused, error.item, "unreadable", error.why)
            self._send([item for item in group if item is not error.item])
        except ApiError as error:
            if error.status in FATAL:
                self._call_back(self.callbacks.unsent, group)
                raise
            self._halve(group, error)
        except Unavailable:
            self._call_back(self.callbacks.unsent, group)
            if not self.stopping:
                raise
        except BaseException:
            self._call_back(self.callbacks.unsent, group)
            raise
        else:
            lines = _by_item(response["files"], len(group))
            result = UploadResult(group, hashes, lines, response["studies"], round(time.monotonic() - start, 3))
            self._call_back(self.callbacks.completed, result)

    def _halve(self, group: list[Item], error: ApiError) -> None:
        """Send the halves of a refused group, until the item that causes the refusal is alone."""
        if len(group) == 1:
            self._call_back(self.callbacks.refused, group[0], "request-refused", str(error))
            return
        half = len(group) // 2
        self._send(group[:half])
        self._send(group[half:])

    def _send_until_answered(self, group: list[Item], start: float) -> tuple[dict[str, Any], list[str]]:
        """Send until the API answers; raises ApiError, SendError, and Unavailable after give_up_after_s."""
        pause_s = FIRST_PAUSE_S
        troubled = False
        while True:
            sent = 0

            def count(size: int) -> None:
                nonlocal sent
                sent += size
                self.callbacks.sent(size)

            body = Body(group, {"priority": self.priority}, count)
            try:
                response = self.client.upload(body)
            except Unavailable as error:
                self.callbacks.sent(-sent)
                if self.stopping or time.monotonic() - start > self.give_up_after_s:
                    raise
                asked_s = error.retry_after_s if isinstance(error, ApiBusy) else None
                if asked_s and isinstance(error, ApiBusy) and error.status == TOO_MANY:
                    start = time.monotonic() + asked_s  # it answers, and names a time: until then it is not given up
                wait_s = max(asked_s or 0.0, pause_s * self._random.uniform(0.5, 1.0))
                wait_s = min(wait_s, max(0.0, start + self.give_up_after_s - time.monotonic()))
                troubled = True
                self._call_back(self.callbacks.trouble, f"{error} Trying again in {wait_s:.0f} s.")
                pause_s = min(pause_s * 2, MAX_PAUSE_S)
                self._stopping.wait(wait_s)
                if self.stopping:
                    raise
            except BaseException:
                self.callbacks.sent(-sent)
                raise
            else:
                if troubled:
                    self._call_back(self.callbacks.trouble, "")
                return response, body.sha256

    def _call_back(self, ear: Callable[..., None], *news: object) -> None:
        with self._telling:
            ear(*news)


def _by_item(files: list[dict[str, Any]], count: int) -> list[list[dict[str, Any]]]:
    """Sort the receipt's lines by the number that each item was sent under; names become the members'."""
    lines: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    for line in files:
        number, _, member = line["file"].partition("!")
        lines[int(number)].append(line | {"file": member})
    return lines
