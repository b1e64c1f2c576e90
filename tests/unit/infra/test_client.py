"""Somebody who waits for studies waits for an API that is started anew, too."""

import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.client.api import API_AWAY_LIMIT_S, ApiBusy, ApiError, Client
from shared.errors import OsteonError, Unavailable

FAILURES = ["503", "429", "502", "refused", "cut"]


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the client, and the policy that it waits by, take for the time."""
    clock = Clock()
    monkeypatch.setattr("infra.client.api.time", clock)
    monkeypatch.setattr("tenacity.time", clock)
    return clock


def client_of(script: list[str], state: str = "analysed") -> Client:
    """A client whose API fails as the script says, a response a line, and then tells this state of every study."""

    def response(request: httpx.Request) -> httpx.Response:
        what = script.pop(0) if script else "ok"
        if what == "refused":
            raise httpx.ConnectError("refused", request=request)
        if what == "cut":
            raise httpx.RemoteProtocolError("cut", request=request)
        if what != "ok":
            return httpx.Response(int(what), headers={"Retry-After": "0"}, json={"detail": "later"})
        if request.method == "GET":
            return httpx.Response(200, json={"id": request.url.path.rsplit("/", 1)[1], "findings": []})
        ids = json.loads(request.content)["ids"]
        return httpx.Response(200, json={"studies": [{"id": each, "status": state} for each in ids], "unknown": []})

    client = Client("http://osteon", "key")
    client._http = httpx.Client(base_url="http://osteon", transport=httpx.MockTransport(response))
    return client


@settings(max_examples=30)
@given(st.lists(st.sampled_from(FAILURES), max_size=12))
def test_who_waits_outlasts_an_api_that_is_away(script: list[str]) -> None:
    """Whatever stands between, states and reports come."""
    assert client_of(script).wait(["a", "b"], 60) == {each: {"id": each, "findings": []} for each in "ab"}


def test_who_waits_gives_up_in_the_end(clock: Clock) -> None:
    """An API that stays away is said to be; a key that is refused, at once."""
    with pytest.raises(Unavailable, match="does not answer"):
        client_of(["refused"] * 1000).wait_for_states(["a"], 3600)
    assert API_AWAY_LIMIT_S - 5 < clock.now < API_AWAY_LIMIT_S + 5
    script = ["403", "ok"]
    with pytest.raises(ApiError):
        client_of(script).wait_for_states(["a"], 60)
    assert script == ["ok"]


def test_an_api_that_says_when_is_not_asked_before(clock: Clock) -> None:
    """Retry-After is waited for, and a time that lies beyond the patience of who asks is not."""
    asked: list[float] = []

    def ask() -> None:
        asked.append(clock.now)
        raise ApiBusy(503, "later", 50.0)

    with pytest.raises(ApiBusy):
        client_of([]).retry_while_away(ask)
    assert asked == pytest.approx([0, 50, 100])
    asked.clear()
    with pytest.raises(ApiBusy):
        client_of([]).retry_while_away(ask, limit_s=40)
    assert len(asked) == 1


def test_who_waits_can_stop_while_the_api_is_away() -> None:
    """What is called on and on may raise: a supervisor whose part has ended, a Ctrl-C."""
    calls = 0

    def tick() -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OsteonError("stop")

    with pytest.raises(OsteonError, match="stop"):
        client_of(["refused"] * 1_000_000).wait_for_states(["a"], 60, tick=tick)
