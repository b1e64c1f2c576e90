"""Logs as one JSON object a line, with ids only: no header value and no file name may be logged."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime

_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """time, level, logger, message and whatever stands in `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _PLAIN and not key.startswith("_")}
        if record.exc_info and record.exc_info[0] is not None:
            kind, _, where = record.exc_info
            # the message is left out: a library's may quote a header's value
            line["error"] = kind.__name__
            line["trace"] = "".join(traceback.format_tb(where))
        return json.dumps(line, default=str)


def configure_logs(level: str) -> None:
    """Send all logs of this process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error"):  # bring handlers of their own, which would print messages as they are
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
