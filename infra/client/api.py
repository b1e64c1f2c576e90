"""Calls the API with one key. The bulk sender's modules lie beside this one."""

import base64
import email.utils
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar
from urllib.parse import quote

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay, wait_exponential

from infra.client.body import Body
from infra.client.walk import Item, Stamp, groups
from shared.domain.manifest import read_manifest
from shared.errors import OsteonError, Unavailable
from shared.tcp import SOCKET_OPTIONS

T = TypeVar("T")
DONE = ("analysed", "quarantined", "kept")
STATES_AT_ONCE = 1000  # as the API takes them
PIECE = 1 << 20  # bytes of a bundle on their way at a time
API_AWAY_LIMIT_S = 120.0  # how long a command that waits tolerates no response: the API may restart, or be busy
EXPONENTIAL_WAIT = wait_exponential(multiplier=0.2, max=5.0)  # seconds


class ApiError(OsteonError):
    """The API answered with an error."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.detail = status, detail


class ApiBusy(Unavailable):
    """The API asks to be called later: after retry_after_s seconds, or None if it named no time."""

    def __init__(self, status: int, detail: str, retry_after_s: float | None) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.retry_after_s = status, retry_after_s


@dataclass
class Receipt:
    """The receipts of several requests as one."""

    files: list[dict[str, Any]] = field(default_factory=list)
    studies: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, response: dict[str, Any]) -> None:
        """Add one request's receipt."""
        self.files += response["files"]
        self.studies |= {study["id"]: study for study in response["studies"]}

    def count(self, outcome: str) -> int:
        """Count the files that were "stored", "duplicate" or "rejected"."""
        return sum(file["outcome"] == outcome for file in self.files)


class Client:
    """The API, called with one key; several threads may share one."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        # the system's proxies are not asked: hospital systems talk to each other directly
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(600, connect=5),
            transport=httpx.HTTPTransport(trust_env=False, socket_options=SOCKET_OPTIONS),
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
        """Upload a few files, one request after the other.

        Sending again after an error is safe: what was stored is answered as duplicate.

        Args:
            files: paths, each with the name that the receipt shows.
            priority: "urgent" or "routine", of all of them.
            progress: is called with the number of files that are done.
            tick: is called before each request, and may raise to give up.

        Returns:
            The receipt for all files.

        Raises:
            OsteonError: The API refuses a request, or a file cannot be read.
            Unavailable: The API does not answer.
        """
        receipt = Receipt()
        sizes = [(path, name, path.stat().st_size) for path, name in files]
        for group in groups(Item(name, path, Stamp(size, 0), size) for path, name, size in sizes):
            tick()
            response = self.upload(Body(group, {"priority": priority}, lambda _: None))
            for line in response["files"]:
                number, *member = line["file"].split("!", 1)
                line["file"] = "!".join([group[int(number)].name, *member])
            receipt.add(response)
            progress(len(receipt.files))
        return receipt

    def upload(self, body: Body) -> dict[str, Any]:
        """Send one request; its receipt calls files by their numbers. Raises ApiError, Unavailable, SendError."""
        return self._call("POST", "/api/v1/studies", content=body, headers=body.headers)

    def states(self, study_ids: Collection[str]) -> tuple[dict[str, dict[str, Any]], set[str]]:
        """Ask for the states of studies, by id, and for those that are unknown. Raises ApiError, Unavailable."""
        ids = list(study_ids)
        known: dict[str, dict[str, Any]] = {}
        unknown: set[str] = set()
        for start in range(0, len(ids), STATES_AT_ONCE):
            response = self._call("POST", "/api/v1/studies/states", json={"ids": ids[start : start + STATES_AT_ONCE]})
            known |= {study["id"]: study for study in response["studies"]}
            unknown.update(response["unknown"])
        return known, unknown

    def report(self, study_id: str) -> dict[str, Any]:
        """Get one study with its findings; raises ApiError or Unavailable."""
        return self._call("GET", f"/api/v1/studies/{study_id}")

    def wait(
        self,
        study_ids: Sequence[str],
        limit_s: float,
        progress: Callable[[int], None] = lambda _: None,
        tick: Callable[[], None] = lambda: None,
    ) -> dict[str, dict[str, Any]]:
        """Wait until studies are analysed or quarantined, or have nothing to analyse.

        Args:
            study_ids: of the studies.
            limit_s: seconds in which one of them at least must end.
            progress: is called with the number of studies that have ended.
            tick: is called on and on, and may raise to give up.

        Returns:
            Their reports by id.

        Raises:
            OsteonError: None of them ends for limit_s, or the API no longer knows one.
            ApiError: The API answers with an error.
            Unavailable: The API is away for API_AWAY_LIMIT_S.
        """
        ended = self.wait_for_states(study_ids, limit_s, progress, tick)
        return {study_id: self.retry_while_away(partial(self.report, study_id), tick) for study_id in ended}

    def wait_for_states(
        self,
        study_ids: Sequence[str],
        limit_s: float,
        progress: Callable[[int], None] = lambda _: None,
        tick: Callable[[], None] = lambda: None,
    ) -> dict[str, dict[str, Any]]:
        """Wait as `wait` does, for states only: one call asks for a thousand studies.

        Args:
            study_ids: of the studies.
            limit_s: seconds in which one of them at least must end.
            progress: is called with the number of studies that have ended.
            tick: is called on and on, and may raise to give up.

        Returns:
            Id, status and reason of each study, by id.

        Raises:
            OsteonError: None of them ends for limit_s, or the API no longer knows one.
            ApiError: The API answers with an error.
            Unavailable: The API is away for API_AWAY_LIMIT_S.
        """
        ended: dict[str, dict[str, Any]] = {}
        unique_ids = dict.fromkeys(study_ids)  # an id given twice is one study
        deadline, pause_s = time.monotonic() + limit_s, 0.1
        while True:
            tick()
            known, unknown = self.retry_while_away(
                partial(self.states, [each for each in unique_ids if each not in ended]), tick
            )
            if unknown:
                raise OsteonError(
                    f"The API no longer knows {len(unknown)} of these studies: its data was removed. Send them again"
                )
            news = {study_id: state for study_id, state in known.items() if state["status"] in DONE}
            ended |= news
            if news:
                progress(len(ended))
                deadline = time.monotonic() + limit_s
            if len(ended) == len(unique_ids):
                return {study_id: ended[study_id] for study_id in unique_ids}
            if time.monotonic() > deadline:
                late = len(unique_ids) - len(ended)
                raise OsteonError(
                    f"{late} of {len(unique_ids)} studies are not analysed, and none was for {limit_s:.0f} s. "
                    "Look at the worker's log (logs/worker.log in the stack's folder)."
                )
            pause_s = 0.1 if news else min(2.0, pause_s * 1.5)
            time.sleep(pause_s)

    def retry_while_away(
        self, ask: Callable[[], T], tick: Callable[[], None] = lambda: None, limit_s: float = API_AWAY_LIMIT_S
    ) -> T:
        """Ask an idempotent question again while the API is away or busy.

        The pauses grow from 0.2 to 5 s and are no shorter than the API asks for. One that would end later than limit_s
        after the first question is not waited for.

        Args:
            ask: a call of this client; what it raises besides Unavailable is raised at once.
            tick: is called each second of a pause, and may raise.
            limit_s: seconds after which Unavailable is raised.

        Returns:
            What `ask` returned.
        """
        policy = Retrying(
            retry=retry_if_exception_type(Unavailable),
            wait=_pause_s,
            stop=stop_before_delay(limit_s),
            sleep=partial(_sleep, tick),
            reraise=True,
        )
        return policy(ask)

    def release(self, study_id: str) -> dict[str, Any]:
        """Analyse a quarantined study again; its id or the first digits of it suffice. Raises ApiError, Unavailable."""
        return self._call("POST", f"/api/v1/studies/{quote(study_id, safe='')}/release")

    def get(self, path: str, **parameters: str | int | Sequence[str] | None) -> Any:  # noqa: ANN401 - whatever that path answers
        """Get the JSON of a path.

        Args:
            path: from the API's root.
            **parameters: parameters of the query; those that are None are left out.

        Returns:
            What the path answers.

        Raises:
            OsteonError: The API answers with an error.
            Unavailable: The API does not answer.
        """
        return self._call("GET", path, params={k: v for k, v in parameters.items() if v is not None})

    def post(self, path: str, content: object = None) -> Any:  # noqa: ANN401 - whatever that path answers
        """Post JSON to a path.

        Args:
            path: from the API's root.
            content: the body; None: an empty one.

        Returns:
            What the path answers.

        Raises:
            OsteonError: The API answers with an error.
            Unavailable: The API does not answer.
        """
        return self._call("POST", path, json=content)

    def put(self, path: str, content: object) -> Any:  # noqa: ANN401 - as of post
        """Put JSON at a path.

        Args:
            path: from the API's root.
            content: the body.

        Returns:
            What the path answers.

        Raises:
            OsteonError: The API answers with an error.
            Unavailable: The API does not answer.
        """
        return self._call("PUT", path, json=content)

    def delete(self, path: str, parameters: dict[str, str], body: object = None) -> Any:  # noqa: ANN401 - as of post
        """Delete what stands at a path.

        Args:
            path: from the API's root.
            parameters: parameters of the query.
            body: JSON; None: an empty one.

        Returns:
            What the path answers.

        Raises:
            OsteonError: The API answers with an error.
            Unavailable: The API does not answer.
        """
        return self._call("DELETE", path, params=parameters, json=body)

    def lines(self, path: str, **parameters: str | None) -> Iterator[dict[str, Any]]:
        """Read what a path streams as NDJSON.

        Args:
            path: from the API's root.
            **parameters: parameters of the query; those that are None are left out.

        Yields:
            An object at a time; the last one is what the stream's end says.

        Raises:
            OsteonError: The response was cut off.
            ApiError: The API answers with an error.
            Unavailable: The API does not answer, or breaks off.
        """
        params = {name: value for name, value in parameters.items() if value is not None}
        last: dict[str, Any] = {}
        try:
            with self._http.stream("GET", path, params=params) as response:
                if not response.is_success:
                    response.read()
                    self._raise(response)
                for text in response.iter_lines():
                    last = json.loads(text)
                    yield last.get("end", last)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"The response of the API at {self.url} broke off ({type(error).__name__}). Try again"
            ) from error
        except ValueError:
            last = {}
        if "end" not in last:
            raise OsteonError(f"What the API at {self.url} answered was cut off. Try again")

    def content(self, path: str) -> bytes:
        """Get the bytes of a path; raises ApiError or Unavailable."""
        response = self._request("GET", path)
        return response.content

    def labels(self, since: datetime | None) -> Iterator[dict[str, Any]]:
        """Stream what readers answered of each frame; raises what `lines` raises.

        Args:
            since: only frames that were answered from then on; None: all.

        Returns:
            An iterator over the responses, the last one being what the stream's end says.
        """
        return self.lines("/api/v1/feedback/labels", since=since.isoformat() if since else None)

    def original(self, url: str) -> bytes | None:
        """Get a stored file by its URL; None if it is missing. Raises ApiError, Unavailable."""
        try:
            return self.content(url)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None

    def store_bundle(self, path: Path, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
        """Store a model bundle.

        Args:
            path: of the file; it is checked before anything is sent.
            progress: is called with the number of bytes that have left.

        Returns:
            What the API answers, with the bundle's name.

        Raises:
            BadBundle: The file is no bundle.
            OSError: The file cannot be read.
            ApiError: The API answers with an error.
            Unavailable: The API does not answer.
        """
        with path.open("rb") as file:
            read_manifest(file, path.stat().st_size)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").digest()

        def pieces() -> Iterator[bytes]:
            sent = 0
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    yield piece
                    sent += len(piece)
                    progress(sent)

        headers = {
            "Content-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:",  # RFC 9530
            "Content-Length": str(path.stat().st_size),
            "Content-Type": "application/octet-stream",
        }
        return self._call("POST", "/api/v1/bundles", content=pieces(), headers=headers)

    def worklist(self, **parameters: str | int | None) -> dict[str, Any]:
        """Get one page of the worklist by these parameters; raises ApiError or Unavailable."""
        return self._call("GET", "/api/v1/worklist", params={k: v for k, v in parameters.items() if v is not None})

    def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - httpx's own arguments
        response: dict[str, Any] = self._request(method, path, **request).json()
        return response

    def _request(self, method: str, path: str, **request: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        try:
            response = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            why = type(error).__name__
            raise Unavailable(
                f"The API at {self.url} does not answer ({why}). Start it, or name another with OSTEON_API_URL"
            ) from error
        # an upload of which everything was rejected answers 409, with a receipt all the same
        if not response.is_success and not (response.status_code == httpx.codes.CONFLICT and path == "/api/v1/studies"):
            self._raise(response)
        return response

    def _raise(self, response: httpx.Response) -> NoReturn:
        try:
            detail = str(response.json()["detail"])
        except (ValueError, KeyError, TypeError):
            detail = response.reason_phrase
        if response.status_code in (429, 502, 503, 504):  # the last but one are of a proxy whose API is away
            raise ApiBusy(response.status_code, detail, _seconds(response.headers.get("Retry-After")))
        if response.status_code == httpx.codes.UNAUTHORIZED:
            detail = f"the API at {self.url} does not know this key, or it was revoked. Give one with OSTEON_KEY"
        elif response.status_code == httpx.codes.FORBIDDEN:
            detail += ". Give another key with OSTEON_KEY"
        raise ApiError(response.status_code, detail)


def _pause_s(state: RetryCallState) -> float:
    """Seconds to wait: as long as the API asks for, and no less than a pause that grows."""
    error = state.outcome.exception() if state.outcome else None
    asked_s = error.retry_after_s if isinstance(error, ApiBusy) else None
    return max(asked_s or 0.0, EXPONENTIAL_WAIT(state))


def _sleep(tick: Callable[[], None], seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        tick()
        time.sleep(min(left, 1.0))


def _seconds(retry_after: str | None) -> float | None:
    """Read a Retry-After header, in seconds or as a date (RFC 9110, 10.2.3); None if it holds neither."""
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
