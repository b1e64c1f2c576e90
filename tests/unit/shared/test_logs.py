"""Logs are lines of JSON."""

import io
import json
import logging
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from shared.logs import JsonLines
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
