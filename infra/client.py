"""Talks to the API with one key. How a bulk sender sends many files stands in `infra.sending`."""

import email.utils
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from infra.sending.body import Body
from infra.sending.walk import Item, Stamp, groups
from shared.errors import OsteonError, Unavailable

DONE = ("analysed", "quarantined")
STATES_AT_ONCE = 1000  # as the API takes them


class Refused(OsteonError):
    """The API answered with an error."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.detail = status, detail


class Busy(Unavailable):
    """The API asks for patience; retry_after_s: for how long, if it said so."""

    def __init__(self, status: int, detail: str, retry_after_s: float | None) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.retry_after_s = status, retry_after_s


@dataclass
class Receipt:
    """The receipts of several requests as one."""

    files: list[dict[str, Any]] = field(default_factory=list)
    studies: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, answer: dict[str, Any]) -> None:
        """Take one request's receipt in."""
        self.files += answer["files"]
        self.studies |= {study["id"]: study for study in answer["studies"]}

    def count(self, outcome: str) -> int:
        """How many files were "stored", "duplicate" or "rejected"."""
        return sum(file["outcome"] == outcome for file in self.files)


class Client:
    """The API, called with one key; several threads may share one."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        # the system's proxies are not asked: hospital systems talk to each other directly
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(600, connect=5),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit(
        self,
        files: Sequence[tuple[Path, str]],
        priority: str = "routine",
        progress: Callable[[int], None] = lambda _: None,
        tick: Callable[[], None] = lambda: None,
    ) -> Receipt:
        """Upload a few files, one request after the other; progress is told how many are done, tick called before each.

        Sending again after an error is safe: what was stored is answered as duplicate. Raises OsteonError, Unavailable.
        """
        receipt = Receipt()
        sizes = [(path, name, path.stat().st_size) for path, name in files]
        for group in groups(Item(name, path, Stamp(size, 0), size) for path, name, size in sizes):
            tick()
            answer = self.upload(Body(group, {"priority": priority}, lambda _: None))
            for line in answer["files"]:
                number, *member = line["file"].split("!", 1)
                line["file"] = "!".join([group[int(number)].name, *member])
            receipt.add(answer)
            progress(len(receipt.files))
        return receipt

    def upload(self, body: Body) -> dict[str, Any]:
        """One request; its receipt calls files by their numbers. Raises Refused, Unavailable, Unsendable."""
        return self._call("POST", "/studies", content=body, headers=body.headers)

    def states(self, study_ids: Collection[str]) -> tuple[dict[str, dict[str, Any]], set[str]]:
        """Where these studies stand, by id; and which of them the API does not know. Raises Refused, Unavailable."""
        ids = list(study_ids)
        known: dict[str, dict[str, Any]] = {}
        unknown: set[str] = set()
        for start in range(0, len(ids), STATES_AT_ONCE):
            answer = self._call("POST", "/studies/states", json={"ids": ids[start : start + STATES_AT_ONCE]})
            known |= {study["id"]: study for study in answer["studies"]}
            unknown.update(answer["unknown"])
        return known, unknown

    def report(self, study_id: str) -> dict[str, Any]:
        """One study with its findings. Raises Refused, Unavailable."""
        return self._call("GET", f"/studies/{study_id}")

    def wait(
        self,
        study_ids: Sequence[str],
        limit_s: float,
        progress: Callable[[int], None] = lambda _: None,
        tick: Callable[[], None] = lambda: None,
    ) -> dict[str, dict[str, Any]]:
        """Wait until these studies are analysed or quarantined; returns their reports by id. tick is called on and on.

        Raises OsteonError when none of them ends for limit_s, Refused, Unavailable.
        """
        ended = self.wait_for_states(study_ids, limit_s, progress, tick)
        return {study_id: self.report(study_id) for study_id in ended}

    def wait_for_states(
        self,
        study_ids: Sequence[str],
        limit_s: float,
        progress: Callable[[int], None] = lambda _: None,
        tick: Callable[[], None] = lambda: None,
    ) -> dict[str, dict[str, Any]]:
        """As `wait`, but returns each study's id, status and reason only: one call asks for a thousand studies."""
        ended: dict[str, dict[str, Any]] = {}
        wanted = dict.fromkeys(study_ids)  # an id given twice is one study
        deadline, pause_s = time.monotonic() + limit_s, 0.1
        while True:
            tick()
            known, unknown = self.states([each for each in wanted if each not in ended])
            if unknown:
                raise OsteonError(f"The API no longer knows {len(unknown)} of these studies; was its data removed?")
            news = {study_id: state for study_id, state in known.items() if state["status"] in DONE}
            ended |= news
            if news:
                progress(len(ended))
                deadline = time.monotonic() + limit_s
            if len(ended) == len(wanted):
                return {study_id: ended[study_id] for study_id in wanted}
            if time.monotonic() > deadline:
                late = len(wanted) - len(ended)
                raise OsteonError(
                    f"{late} of {len(wanted)} studies are not analysed, and none was for {limit_s:.0f} s. "
                    "Look at the worker's log (logs/worker.log in the stack's folder)."
                )
            pause_s = 0.1 if news else min(2.0, pause_s * 1.5)
            time.sleep(pause_s)

    def release(self, study_id: str) -> dict[str, Any]:
        """Try a quarantined study again; study_id: or its first digits. Raises Refused, Unavailable."""
        return self._call("POST", f"/studies/{quote(study_id, safe='')}/release")

    def get(self, path: str, **wanted: str | int | None) -> Any:  # noqa: ANN401 - whatever that path answers
        """What a path answers. Raises OsteonError, Unavailable."""
        return self._call("GET", path, params={k: v for k, v in wanted.items() if v is not None})

    def post(self, path: str, wanted: object = None) -> Any:  # noqa: ANN401 - whatever that path answers
        """Post JSON, and what comes back. Raises OsteonError, Unavailable."""
        return self._call("POST", path, json=wanted)

    def worklist(self, **wanted: str | int | None) -> dict[str, Any]:
        """One page of the worklist. Raises Refused, Unavailable."""
        return self._call("GET", "/worklist", params={k: v for k, v in wanted.items() if v is not None})

    def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - httpx's own arguments
        try:
            response = self._http.request(method, path, **request)
        except httpx.HTTPError as wrong:
            why = type(wrong).__name__
            raise Unavailable(f"The API at {self.url} does not answer ({why}). Does it run?") from wrong
        # an upload of which everything was rejected answers 409, with a receipt all the same
        if response.is_success or (response.status_code == httpx.codes.CONFLICT and path == "/studies"):
            answer: dict[str, Any] = response.json()
            return answer
        try:
            detail = str(response.json()["detail"])
        except (ValueError, KeyError, TypeError):
            detail = response.reason_phrase
        if response.status_code in (429, 502, 503, 504):  # the last but one are of a proxy whose API is away
            raise Busy(response.status_code, detail, _seconds(response.headers.get("Retry-After")))
        raise Refused(response.status_code, detail)


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After header, in seconds or as a date (RFC 9110, 10.2.3)."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
