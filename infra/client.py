"""Talks to the API as a hospital's bulk sender does."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from shared.errors import OsteonError, Unavailable

FILES_PER_REQUEST = 100
BYTES_PER_REQUEST = 128 * 2**20
DONE = ("analysed", "quarantined")


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


def files_in(places: Sequence[Path]) -> list[tuple[Path, str]]:
    """All files in these files and folders, each with the name it is sent under.

    Raises OsteonError if one is missing.
    """
    found = []
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))
            found += [(path, str(path.relative_to(place))) for path in inside]
        elif place.exists():
            found.append((place, place.name))
        else:
            raise OsteonError(f"{place} does not exist")
    return found


class Client:
    """The API, called with one key."""

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
        """Upload files in requests of bounded size; progress is told how many files are done, tick called before each.

        Sending again after an error is safe: what was stored is answered as duplicate. Raises OsteonError, Unavailable.
        """
        receipt = Receipt()
        for group in _groups(files):
            tick()
            with contextlib.ExitStack() as opened:
                parts = [("files", (name, opened.enter_context(path.open("rb")))) for path, name in group]
                answer = self._call("POST", "/studies", data={"priority": priority}, files=parts)
            receipt.add(answer)
            progress(len(receipt.files))
        return receipt

    def wait(
        self,
        study_ids: Sequence[str],
        limit_s: float,
        progress: Callable[[int], None] = lambda _: None,
        tick: Callable[[], None] = lambda: None,
    ) -> dict[str, dict[str, Any]]:
        """Wait until these studies are analysed or quarantined; returns their reports by id. tick is called on and on.

        Raises OsteonError after limit_s, Unavailable.
        """
        reports: dict[str, dict[str, Any]] = {}
        study_ids = list(dict.fromkeys(study_ids))  # an id given twice is one study
        deadline = time.monotonic() + limit_s
        while len(reports) < len(study_ids):
            for study_id in study_ids:
                tick()
                if study_id not in reports:
                    report = self._call("GET", f"/studies/{study_id}")
                    if report["status"] not in DONE:
                        continue
                    reports[study_id] = report
                    progress(len(reports))
            if len(reports) < len(study_ids):
                if time.monotonic() > deadline:
                    late = len(study_ids) - len(reports)
                    raise OsteonError(
                        f"{late} of {len(study_ids)} studies are not analysed after {limit_s:.0f} s. "
                        "Look at the worker's log (logs/worker.log in the stack's folder)."
                    )
                time.sleep(0.3)
        return reports

    def release(self, study_id: str) -> dict[str, Any]:
        """Try a quarantined study again. Raises OsteonError, Unavailable."""
        return self._call("POST", f"/studies/{study_id}/release")

    def get(self, path: str, **wanted: str | int | None) -> Any:  # noqa: ANN401 - whatever that path answers
        """What a path answers. Raises OsteonError, Unavailable."""
        return self._call("GET", path, params={k: v for k, v in wanted.items() if v is not None})

    def post(self, path: str, wanted: object = None) -> Any:  # noqa: ANN401 - whatever that path answers
        """Post JSON, and what comes back. Raises OsteonError, Unavailable."""
        return self._call("POST", path, json=wanted)

    def worklist(self, **wanted: str | int | None) -> dict[str, Any]:
        """One page of the worklist. Raises OsteonError, Unavailable."""
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
            detail = response.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = response.reason_phrase
        kind = Unavailable if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else OsteonError
        raise kind(f"{response.status_code}: {detail}")


def _groups(files: Sequence[tuple[Path, str]]) -> Iterator[list[tuple[Path, str]]]:
    group: list[tuple[Path, str]] = []
    size = 0
    for path, name in files:
        own = path.stat().st_size
        if group and (len(group) >= FILES_PER_REQUEST or size + own > BYTES_PER_REQUEST):
            yield group
            group, size = [], 0
        group.append((path, name))
        size += own
    if group:
        yield group
