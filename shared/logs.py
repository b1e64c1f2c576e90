"""Logs as one JSON object a line, with ids only: no header value and no file name may be logged.

Osteon's own lines are structlog's: ids are bound once, and are in every line that the same thread or task writes
meanwhile, also a library's. All lines go through logging and one formatter.
"""

import json
import logging
import sys
import threading
import time
import traceback
from contextvars import Context
from datetime import UTC, datetime
from typing import Any

import structlog
from structlog.contextvars import merge_contextvars
from structlog.processors import EventRenamer, JSONRenderer
from structlog.stdlib import (
    BoundLogger,
    ExtraAdder,
    ProcessorFormatter,
    filter_by_level,
    render_to_log_args_and_kwargs,
)
from structlog.typing import EventDict, Processor

MAX_REPEATS, WINDOW_S = 50, 60.0  # warnings and errors of one kind; more say nothing new
MAX_TRACKED_LINES = 1000  # in a window; further ones of a logger count as one kind

UNLOGGED_FIELDS = ("asctime", "stack_info")  # of other formatters; of callers, and may hold values
# Each event that Osteon logs, by its name, and what it means. The name is the text of the line: what it is about, then
# a participle. Values are fields of the line, so that a search for a name finds all of a kind.
EVENTS = {
    "active bundle not loaded": "The active bundle cannot be loaded. The worker goes on with the bundle in `kept`.",
    "agreement reduced": "Readers agree with this bundle less than before, for a region or a scanner. Told once.",
    "analyses locked": "Another transaction in Postgres holds the rows of `count` analyses, so that they cannot begin.",
    "analysis crashed": "An error that nobody foresaw ended an attempt; `trace` shows where.",
    "analysis failed": "An attempt ended without a result; `outcome` is what follows, `reason` a code.",
    "analysis finished": "A worker analysed `images` images, or had lost its lease meanwhile: see `outcome`.",
    "analysis not started": "A message was taken, and no attempt counts. A sweep sends the message again.",
    "association accepted": "A DICOM peer may send, or a destination report; `peer_id` is the id of either.",
    "association end not recorded": "Postgres does not answer. Its studies are complete after the longest time.",
    "association rejected": "The `reason` is a code of the list of refused callers, a limit, or a part that is away.",
    "audit event recorded": "A login, a key or a setting: `kind` is the code of the event on the operations page.",
    "backfill run started": "A run over history begins with this bundle, `by` beat or, in its place, the sweeper.",
    "batch halved": "The model failed for a batch. Each half is tried, until the image that is to blame is alone.",
    "bundle loaded": "A worker has this bundle in memory.",
    "change listener disconnected": "The API hears of no changes and connects again; open pages may be late.",
    "clock jump detected": "The clock was set ahead while an image was decoded. The image is decoded once more.",
    "commit batch retried": "One of `files` data sets broke their transaction. Each is stored in one of its own.",
    "comparison interrupted": "Held files could not be compared with stored ones. The next sweep goes on.",
    "commitment report abandoned": "A DICOM peer did not take a report on storage commitment; it can ask again.",
    "commitment report crashed": "An error that nobody foresaw; the report on storage commitment is tried again.",
    "commitment report delayed": "Postgres or the store does not answer. Reports on storage commitment come later.",
    "commitment report refused": "A DICOM peer's address or answer makes no sense. The report is tried again later.",
    "connection not accepted": "A connection to the DICOM listener ended before an association; TLS may have failed.",
    "converted network discarded": "A network in the cache cannot be used. It is converted again.",
    "converted network not kept": "A converted network cannot be written to the cache: the next start converts again.",
    "counts not asked": "Postgres or a DICOM peer did something unforeseen. Its studies are complete without a count.",
    "counts not received": "A DICOM peer with a query address did not say how many instances it has of `studies`.",
    "data set crashed": "An error that nobody foresaw; the DICOM sender was told to keep the data set.",
    "data sets not stored": "A part does not answer. The DICOM sender was told to send the `files` again.",
    "check ended": "The daily check has ended with this `state`; `reason` and `detail` say why, if not well.",
    "check not started": "Postgres does not answer, or something nobody foresaw: the next look comes in seconds.",
    "check not tidied": "What a check has left could not be deleted. The next check deletes it.",
    "check process started": "The process of the daily check runs; `on` says whether it makes one.",
    "check process stopped": "The process of the daily check has ended as it was asked to.",
    "check started": "A daily check begins, by the schedule or because somebody asked for it.",
    "check step crashed": "A step of the daily check ended with an error that nobody foresaw: it is broken.",
    "check step ended": "A step of the daily check took `seconds`.",
    "confirmation asked": "A destination was asked whether it keeps what a delivery brought, and will report.",
    "confirmation not asked": "A destination did not take such a request, for this `reason`; else it is asked again.",
    "confirmation not noted": "Postgres did not answer while a destination's report came; it is told to come again.",
    "deliveries not checked": "Postgres does not answer, or something nobody foresaw: the next look comes in a second.",
    "delivery ended": "An error ended what a thread sent to a destination; once its lease ends it is tried again.",
    "delivery failed": "A destination did not take an object, for this `reason`; `state`: whether it is tried again.",
    "delivery sent": "A destination has accepted every object of a delivery that it takes.",
    "delivery started": "The process that sends results runs.",
    "delivery stopped": "The process that sends results has ended as it was asked to.",
    "destination not reached": "A destination takes nothing just now; what waits for it waits. `given_up` have failed.",
    "destination tested": "Somebody asked whether a destination answers; `reason` is empty if it did.",
    "frame not made": "A full-resolution frame could not be made. The page asks again.",
    "frames not swept": "The store failed while old full-resolution frames were removed. The next day tries again.",
    "frames swept": "So many full-resolution frames were old and are removed.",
    "heartbeat step failed": "A worker could not write its heartbeat, the statistics, or the count of what is stored.",
    "held file not compared": "The decoder failed at a held file. An administrator decides after the last attempt.",
    "identity key not checked": "Postgres does not answer yet. The API checks the key before it uses it.",
    "idle decoder ended": "A decoder process ended between two images. Another one is started.",
    "image not decoded": "An error that nobody foresaw, at the last attempt. The study is analysed without the image.",
    "leases not renewed": "Postgres does not answer. If that lasts, other workers take the analyses over.",
    "listener process crashed": "An error that nobody foresaw ended a process of the DICOM listener; see `trace`.",
    "listener process replaced": "A process of the DICOM listener ended; its associations are cut. Another one begins.",
    "listener started": "The DICOM listener takes associations on these ports.",
    "loop stalled": "A step of making or sending results does not end. The process counts as unhealthy: restart it.",
    "lost connection not closed": "Celery could not close a lost connection to the broker. It connects again.",
    "lost messages resent": "The broker, or a worker that died, lost `count` messages. They are sent again.",
    "message not acknowledged": "The broker was not told that a message is done. It may come again, and does no harm.",
    "messages not queued": "An error that nobody foresaw; the sweeper sends the messages of `studies` later.",
    "messages not sent": "The broker did not take `count` messages. The sweeper of a worker sends them later.",
    "metadata not kept": "The store did not take the metadata of an object. They are made again at the next reading.",
    "metadata not made": "An object could not be read for its metadata. They are made when they are asked for.",
    "metrics not served": "A worker or the DICOM listener runs without its metrics.",
    "network compiled": "The engine is ready to run a network, with this precision.",
    "notice failed": "An error of Osteon's own: what happened to a study is told to nobody. `notice` has its id.",
    "notices recorded": "People are to be told of what only time makes so: `notices` of them.",
    "objects deleted": "The bytes of `contents` deleted images are removed from the store.",
    "old path requested": "A client asked for a path of before 0.2.0, which works until 0.3.0. Told once an hour.",
    "old setting used": "A variable has its name of before 0.2.0, which works until 0.3.0. Told once.",
    "peer contact not recorded": "The operations page lacks an association of a DICOM peer, which was accepted.",
    "peer figures not recorded": "The operations page counts too little of a DICOM peer. Its images are stored.",
    "process ended": "A worker ends itself, since only a new process helps. Its supervisor starts another one.",
    "quota not refunded": "Bytes were charged that did not come. The quota has them until its hour is over.",
    "rejections not recorded": "The operations page lacks `files` rejected files. Their sender was told of them.",
    "request failed": "An error that nobody foresaw; the client got a 500. `trace` shows where.",
    "results made": "The objects of a study's results are stored, and wait for their destinations.",
    "results not checked": "Postgres does not answer, or something nobody foresaw: the next look comes in a second.",
    "results not made": "The objects of a study were not made, for this `reason`; `again`: whether it is tried again.",
    "results process started": "The process that makes results runs.",
    "results process stopped": "The process that makes results has ended as it was asked to.",
    "results withheld": "A study's results go nowhere, for this `reason`.",
    "similar lines withheld": "So many lines of this logger and level, all of one kind, were not written.",
    "store response not sent": "An error that nobody foresaw; the association is aborted, and the sender sends again.",
    "studies completed": "No more images of `count` studies are expected, or they were waited for long enough.",
    "sweep failed": "Lost messages, late studies or complete ones were not looked for. The next sweep tries again.",
    "sweep finished": "Messages were `sent` again, studies `promoted`, or batches of a `backfill` run begun.",
    "unsent messages not recorded": "Postgres does not answer. The sweeper sends the messages of `studies` later.",
    "upload received": "How many files of a request had which outcome.",
    "warm-up failed": "The model was not run before the first study, which waits for that.",
}


def get_logger(name: str) -> BoundLogger:
    """A logger whose methods take an event and named values; `bind` returns one that adds values to every line."""
    logger: BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        # values are put into the text later: RepeatFilter counts lines by their text before
        processors=[filter_by_level, render_to_log_args_and_kwargs],
        wrapper_class=BoundLogger,
        cache_logger_on_first_use=True,
    )
    return logger


class _Lines(ProcessorFormatter):
    def __init__(self, renderer: Processor) -> None:
        super().__init__(
            processors=[
                EventRenamer("message"),  # first: a library may tell more by the name `event`
                merge_contextvars,
                ExtraAdder(),
                _line,
                renderer,
            ]
        )


class JsonLines(_Lines):
    """Writes time, level, logger, message, the ids that are bound, and the line's own values."""

    def __init__(self) -> None:
        super().__init__(JSONRenderer(json.dumps, default=str))


class PlainLines(_Lines):
    """Writes the same for a person at a terminal: level and message, then the values in brackets."""

    def __init__(self) -> None:
        super().__init__(_as_text)


def _as_text(_logger: object, _method: str, event: EventDict) -> str:
    values = [f"{key}={value}" for key, value in event.items() if key not in ("time", "level", "logger", "message")]
    return f"{event['level']}: {event['message']}" + (f" ({', '.join(values)})" if values else "")


def _line(_logger: object, _method: str, event: EventDict) -> EventDict:
    """The line's values; without an exception's message, for a library's may quote a header's value."""
    record: logging.LogRecord = event.pop("_record")
    kind, _, where = event.pop("exc_info", None) or (None, None, None)
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": event.pop("message"),
    }
    line |= {key: value for key, value in event.items() if not key.startswith("_") and key not in UNLOGGED_FIELDS}
    if kind is not None:
        line |= {"error": kind.__name__, "trace": "".join(traceback.format_tb(where))}
    return line


class RepeatFilter(logging.Filter):
    """Limits alike warnings and errors to so many in a window, and then logs how many it held back.

    Alike are lines with the same logger and text, before values are put in, and the same place of an exception.
    Otherwise anybody who can cause a line fills the disk. Lines of lower levels, of which each is about something else,
    all pass.
    """

    def __init__(self, max_lines: int = MAX_REPEATS, window_s: float = WINDOW_S) -> None:
        super().__init__()
        self.max_lines, self.window_s = max_lines, window_s
        self._begun = 0.0
        self._seen: dict[tuple[object, ...], int] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line is written, as logging expects."""
        if record.levelno < logging.WARNING or hasattr(record, "held_back"):
            return True
        where = record.exc_info[2] if record.exc_info else None
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        kind: tuple[object, ...] = (
            record.name, record.levelno, str(record.msg)[:200], where and (where.tb_frame.f_code, where.tb_lineno),
        )  # fmt: skip
        with self._lock:
            held_back_kinds = self._new_window()
            if kind not in self._seen and len(self._seen) >= MAX_TRACKED_LINES:
                kind = (record.name, record.levelno)
            seen = self._seen[kind] = self._seen.get(kind, 0) + 1
        for name, level, held_back in held_back_kinds:
            tell = logging.getLogger(name).log  # without the ids that are bound: it is about other lines
            Context().run(tell, level, "similar lines withheld", extra={"held_back": held_back})
        return seen <= self.max_lines

    def _new_window(self) -> list[tuple[str, int, int]]:
        """Begin one if the last is over; returns logger, level and number of the lines that were held back in it."""
        now = time.monotonic()
        if now - self._begun <= self.window_s:
            return []
        counts = [(str(kind[0]), int(str(kind[1])), seen - self.max_lines) for kind, seen in self._seen.items()]
        self._begun, self._seen = now, {}
        return [one for one in counts if one[2] > 0]


# of commands, and of a service until `configure_logs`: logging prints a text without its values
if logging.lastResort is not None:
    logging.lastResort.setFormatter(PlainLines())


def configure_logs(level: str) -> None:
    """Send all logs of this process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(RepeatFilter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error"):  # bring handlers of their own, which would print messages as they are
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
