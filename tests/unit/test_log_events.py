"""Log events: a fixed vocabulary, in one grammar, with values as fields."""

import ast
import functools
import io
import logging
import re
import subprocess
import sys
from collections import Counter

import pytest

from docs import references
from docs.references import event_of
from shared.logs import EVENTS, PlainLines
from shared.settings import ROOT

# what an event is about, then a participle
NAME = re.compile(r"[a-z]+(?:[ -][a-z]+)* (?:[a-z]+ed|resent|sent|made|withheld|swept|kept)")
OTHER_WAYS = r"import .*\bget_\w*logger\b|\w+ = (structlog\.)?get_logger\(|logging\.getLogger\(|\blogging\.(info|warning|error|exception)\("
# where the loggers of pydicom and pynetdicom are turned off
SILENCED = (
    "shared/dicom/elements.py: ",
    "shared/pixels/decode.py: ",
    "api/listener/server.py: ",
    "worker/delivery/main.py: ",
    "infra/daily_check.py: ",
)
WORDS_AT_MOST = 4
TAKEN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}  # logging raises KeyError for such a field


@functools.cache
def calls() -> list[tuple[str, ast.Call]]:
    """Every call that logs, and its module: found once, and not by each process that collects tests."""
    return list(references.log_calls())


def place(module: str, call: ast.Call) -> str:
    """Module and line of a call."""
    return f"{module}:{call.lineno}"


def test_every_call_logs_an_event_of_the_vocabulary() -> None:
    """A literal name and named values: a text that is made, or has values put in, is a name that nobody can search for."""
    assert len(calls()) > 40
    assert [place(module, call) for module, call in calls() if event_of(call) not in EVENTS] == []


@pytest.mark.parametrize(
    "code",
    [
        'log.info("a" + name)',
        'log.info(f"a {b}")',
        'log.warning("%s ended", why)',
        "log.info(outcome)",
        "log.info(EVENT)",
    ],
)
def test_what_is_no_literal_is_no_event(code: str) -> None:
    """Such calls have none, so that the test above finds them."""
    (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert event_of(call) is None


def test_other_ways_to_log_are_not_used() -> None:
    """Loggers are called `log` and come from our `get_logger`: others' calls are not found, or take no fields."""
    ours = ("log = get_logger(__name__)", "from shared.logs import ")
    others = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in references.LOGGING
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(OTHER_WAYS, line) and not line.startswith(ours)
    ]
    assert [line for line in others if not line.startswith(("shared/logs.py: ", *SILENCED))] == []


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_names_are_short_and_in_one_grammar(event: str) -> None:
    """Noun and participle, lower case, at most WORDS_AT_MOST words; the meaning is a sentence."""
    assert NAME.fullmatch(event)
    assert len(event.split()) <= WORDS_AT_MOST
    assert re.fullmatch(r"[A-Z].*\.", EVENTS[event])


def test_no_event_is_left_over_or_means_two_things() -> None:
    """Each is logged, and by one module: another one has something else to tell."""
    modules = {(event_of(call), module) for module, call in calls()} | {("similar lines withheld", "shared.logs")}
    counted = Counter(event for event, _ in modules)
    assert set(counted) == set(EVENTS)
    assert {event: count for event, count in counted.items() if count > 1} == {}


def test_no_field_has_a_name_that_logging_refuses() -> None:
    """Such a line would raise KeyError instead of being written."""
    assert [place(m, call) for m, call in calls() for one in call.keywords if one.arg in TAKEN - {"exc_info"}] == []


def test_the_page_shows_every_event_with_its_fields() -> None:
    """As the reference for who watches the logs."""
    page = references.logs_page()
    for event, meaning in EVENTS.items():
        assert f"| `{event}` |" in page
        assert meaning in page
    assert "| `leases not renewed` | warning, error | `why` |" in page


def test_a_command_shows_the_values_of_an_event() -> None:
    """A process that does not configure logs, as `osteon`, prints fields too, and no text of an exception."""
    code = (
        "from shared.logs import get_logger\nlog = get_logger('x')\nlog.warning('old setting used', old='A', new='B')\n"
        "try:\n    int('ZEBRA')\nexcept ValueError:\n    log.exception('request failed')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second, *_ = done.stderr.splitlines()
    assert first == "warning: old setting used (old=A, new=B)"
    assert second.startswith("error: request failed (error=ValueError, trace=")
    assert "invalid literal" not in done.stderr


def test_a_plain_line_without_values() -> None:
    """Level and text, no brackets."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainLines())
    log = logging.Logger("osteon.plain")  # noqa: LOG001 - one of its own, known to nobody else
    log.addHandler(handler)
    log.warning("sweep failed")
    assert stream.getvalue() == "warning: sweep failed\n"
