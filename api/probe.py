"""Checks whether a part works: seldom, never for long, and never twice at a time."""

import threading
import time
from collections.abc import Callable

from psycopg2.errors import UndefinedColumn, UndefinedTable
from sqlalchemy.exc import DBAPIError

from shared.errors import OsteonError

RESULT_CACHED_S = 5.0  # for so long a response is given again
CHECK_LIMIT_S = 3.0  # then the part counts as silent
OK = "ok"
MIGRATE = "its tables are missing or older than this version: run the migrations (alembic upgrade head)"


class Probe:
    """One part's check, and its last result. Many clients that ask without a key cause no more checks."""

    def __init__(
        self, question: Callable[[], object], fresh_s: float = RESULT_CACHED_S, patience_s: float = CHECK_LIMIT_S
    ) -> None:
        """question: raises what is wrong. It runs in a thread that is waited for no longer than patience_s."""
        self._question, self._fresh_s, self._patience_s = question, fresh_s, patience_s
        self._lock = threading.Lock()
        self._said, self._said_at = "", float("-inf")
        self._asking: threading.Thread | None = None

    def state(self) -> str:
        """OK, or what is wrong in words: kinds of errors and cures, no address, no password and no value of a row."""
        with self._lock:
            if time.monotonic() - self._said_at < self._fresh_s:
                return self._said
            if self._asking is None:
                self._asking = threading.Thread(target=self._ask, name="probe", daemon=True)
                self._asking.start()
            asking = self._asking
        asking.join(self._patience_s)
        with self._lock:
            if self._asking is asking:  # the next response is given when this question has ended
                self._set_state(f"did not answer within {self._patience_s:g} s")
            return self._said

    def _ask(self) -> None:
        state = OK
        try:
            self._question()
        except OsteonError as error:
            state = str(error)
        except DBAPIError as error:
            missing = isinstance(error.orig, UndefinedTable | UndefinedColumn)
            state = MIGRATE if missing else f"failed ({type(error.orig).__name__})"
        except Exception as error:  # noqa: BLE001 - a health check reports whatever it meets
            state = f"failed ({type(error).__name__})"
        with self._lock:
            self._asking = None
            self._set_state(state)

    def _set_state(self, state: str) -> None:
        self._said, self._said_at = state, time.monotonic()
