"""Logs are lines of JSON."""

import io
import json
import logging
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.contextvars import bound_contextvars

from shared.logs import JsonLines, RepeatFilter, get_logger
from shared.settings import ROOT


def logger_into(stream: io.StringIO) -> logging.Logger:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    log = logging.Logger("osteon.test")  # noqa: LOG001 - one of its own, known to nobody else
    log.addHandler(handler)
    return log


@given(st.text(), st.dictionaries(st.text("abcdef", min_size=1), st.text() | st.integers() | st.none(), max_size=3))
def test_every_record_is_one_object_on_one_line(message: str, extra: dict[str, object]) -> None:
    """Line breaks and quotes in a message cannot forge a second line, and extras arrive as given."""
    stream = io.StringIO()
    logger_into(stream).warning("%s", message, extra=extra)
    text = stream.getvalue()
    assert text.count("\n") == 1
    line = json.loads(text)
    assert line["message"] == message
    assert (line["level"], line["logger"]) == ("warning", "osteon.test")
    assert {key: line[key] for key in extra} == extra


def test_trace_stays_on_the_line_without_the_values_in_it() -> None:
    """An exception's kind and trace stand inside its object; its message, which may quote a patient's, does not."""
    stream, value = io.StringIO(), "/ZEBRA^QUAGGA"
    try:
        int(value)
    except ValueError:
        logger_into(stream).exception("failed", extra={"study": ROOT})
    text = stream.getvalue()
    assert text.count("\n") == 1
    line = json.loads(text)
    assert line["error"] == "ValueError"
    assert "test_logs.py" in line["trace"]
    assert "/ZEBRA" not in text
    assert line["study"] == str(ROOT)


def test_configured_process_writes_json_to_standard_error_only() -> None:
    """After configure_logs every logger of the process, ours or a library's, writes JSON lines to stderr."""
    code = (
        "import logging; from shared.logs import configure_logs; configure_logs('INFO');"
        "logging.getLogger('celery.worker').info('one'); logging.getLogger('x').debug('no'); logging.error('two')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["one", "two"]


def test_floods_are_held_back_and_counted() -> None:
    """Of warnings alike, whatever their values, few a window pass; the next window says how many did not."""
    stream = io.StringIO()
    log = logger_into(stream)
    held = RepeatFilter(max_lines=3, window_s=3600)
    log.handlers[0].addFilter(held)
    for number in range(1000):
        log.warning("Invalid request from %s", number)
        log.error("another kind")
        log.info("upload", extra={"study": number})
        try:
            int("x" * number)
        except ValueError:
            log.exception("failed here")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    counts = {text: sum(line["message"].startswith(text) for line in lines) for text in
              ("Invalid request", "another kind", "upload", "failed here")}  # fmt: skip
    assert counts == {"Invalid request": 3, "another kind": 3, "upload": 1000, "failed here": 3}
    held.window_s = 0.0
    root = logging.getLogger("osteon.test")
    root.addHandler(log.handlers[0])
    try:
        with bound_contextvars(study="of this line"):
            log.warning("something else")
    finally:
        root.removeHandler(log.handlers[0])
    told = [json.loads(line) for line in stream.getvalue().splitlines()][len(lines) :]
    assert [line.get("held_back") for line in told] == [997, 997, 997, None]
    assert [line.get("study") for line in told] == [None, None, None, "of this line"]


def test_a_kind_is_no_place_to_grow() -> None:
    """Texts that differ, as some libraries make them, fill neither the memory nor, forever, the log."""
    stream = io.StringIO()
    log = logger_into(stream)
    held = RepeatFilter(max_lines=3, window_s=3600)
    log.handlers[0].addFilter(held)
    for number in range(5000):
        log.warning(f"Invalid request from {number}")  # noqa: G004 - as libraries do
    assert len(stream.getvalue().splitlines()) <= 1100
    assert len(held._seen) <= 1100


def test_a_bound_id_stands_in_every_line_of_its_thread() -> None:
    """Ours and a library's, as long as it is bound; what a line itself tells under that name stands before it."""
    stream = io.StringIO()
    library = logger_into(stream)
    ours = get_logger("osteon.bound")
    logging.getLogger("osteon.bound").addHandler(library.handlers[0])
    try:
        with bound_contextvars(study="a", attempt=2):
            ours.warning("mine", images=3)
            library.warning("theirs")
            library.warning("another", extra={"study": "b"})
            thread = threading.Thread(target=ours.warning, args=("elsewhere",))
            thread.start()
            thread.join()
        ours.bind(key="k").warning("after")
    finally:
        logging.getLogger("osteon.bound").removeHandler(library.handlers[0])
    lines = {line["message"]: line for line in map(json.loads, stream.getvalue().splitlines())}
    told = {
        name: {key: value for key, value in line.items() if key not in ("time", "level", "logger", "message")}
        for name, line in lines.items()
    }
    assert told == {
        "mine": {"study": "a", "attempt": 2, "images": 3},
        "theirs": {"study": "a", "attempt": 2},
        "another": {"study": "b", "attempt": 2},
        "elsewhere": {},
        "after": {"key": "k"},
    }


def test_lines_of_ours_are_told_apart_by_their_text(caplog: pytest.LogCaptureFixture) -> None:
    """Values are put in late, so that a flood of one text is one kind; and a level that is off costs no line."""
    log = get_logger("osteon.kinds")
    with caplog.at_level(logging.WARNING, "osteon.kinds"):
        log.warning("not closed (%s)", "ValueError")
        log.info("not told")
    (record,) = caplog.records
    assert (record.msg, record.args, record.getMessage()) == (
        "not closed (%s)",
        ("ValueError",),
        "not closed (ValueError)",
    )


def test_a_library_may_call_a_value_event() -> None:
    """Whatever a library calls what it tells, the text of the line stays."""
    stream = io.StringIO()
    logger_into(stream).warning("the text", extra={"event": "theirs", "_own": 1}, stack_info=True)
    line = json.loads(stream.getvalue())
    assert set(line) == {"time", "level", "logger", "message", "event"}
    assert (line["message"], line["event"]) == ("the text", "theirs")


def test_beat_and_flower_write_the_same_lines() -> None:
    """Celery asks the application that they load who sets up logging, and leaves it alone."""
    program = (
        "import logging; from shared.queue.app import app; app.log.setup(loglevel='INFO');"
        "logging.getLogger('celery.beat').info('beat: Starting')"
    )
    environment = os.environ | {"OSTEON_BROKER_URL": "redis://127.0.0.1:1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    (line,) = (ended.stdout + ended.stderr).splitlines()
    assert json.loads(line)["message"] == "beat: Starting"
