"""What no honest client sends: an error of the one form, nothing of the input in it, and never an error of ours."""

import base64
import copy
import functools
import json
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.app import HEADERS
from api.pages.render import STATIC
from api.server import Protocol
from tests.conftest import InProcessApi
from tests.integration.test_requests import ask, routes
from tests.served import served

MARK = "zq7Hostile"  # what no error may repeat
ID = "3f0c2b1e-6f0e-4a53-9c1c-0d7b1d0e8a11"


def cursor(*parts: object) -> str:
    """A page's cursor, as the worklist makes them, of any content."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


VALUES = [
    "", " ", MARK, MARK * 1000, "\0", f"{MARK}\0", "\ufffd", "%00", "\x1f", "\u202e" + MARK, "'", '"', "%", "_", "\\", "-1", "0",
    "2147483647", "2147483648", "9223372036854775808", "1" * 400, "-2147483649", "1e400", "1e308", "NaN", "-Infinity", "0x10",
    "true", "null", "[]", "{}", "0001-01-01", "9999-12-31", "10000-01-01", "2026-02-30", "2026-01-01T00:00:00+23:59",
    ID, ID.upper(), ID[:-1], "3f0c", "-" * 36, "{" + ID + "}", "urn:uuid:" + ID,
    cursor("2026-01-01T00:00:00+00:00", 1.0, ID), cursor("0001-01-01T00:00:00+23:59", 1.0, ID), cursor("x", 1, ID),
    cursor("9999-12-31T23:59:59-23:59", 1.0, ID), cursor("2026-01-01T00:00:00+00:00", 10**300, ID), cursor("2026-01-01", 1e308, ID),
    cursor("2026-01-01T00:00:00", 1, ID), cursor("2026-01-01T00:00:00+00:00", float("nan"), ID), cursor(), cursor([[]]), cursor(*"abcd"),
    cursor("2026-01-01T00:00:00+00:00", 1.0, ID)[:-5], "====", f"nan,{ID}", f"inf,{ID}", f"1e308,{ID}", f"0.5,{ID}", "0.5,", ",",
]  # fmt: skip
BODIES = [
    b"", b" ", b"null", b"[]", b"{}", b"1", b'"a"', b"{", b"[" * 60_000, b'{"a":' * 10_000, b"\xff\xfe", b"\xef\xbb\xbf{}", b"NaN",
    b'{"number": NaN}', b'{"number": Infinity}', b'{"number": -Infinity}', b'{"number": "\\ud800"}', b'{"\\udfff": 1}',
    b'{"number": "a\\u0000b"}', b'{"\\u0000": 1}', b'{"number": "a", "number": "b"}', b'{"number": 1' + b"0" * 5000 + b"}",
    b'{"number": 1e999}', b'{"number": -0}', b"true", b'{"zq7Hostile": "zq7Hostile"}',
]  # fmt: skip


class Fields:
    """What every operation takes, from the OpenAPI document."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.models = schema["components"]["schemas"]
        self.parameters: list[tuple[str, str, str, str]] = []  # method, path, where, name
        self.bodies: list[tuple[str, str, dict[str, Any]]] = []  # method, path, an example of the body
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                for one in operation.get("parameters", ()):
                    self.parameters.append((method, path, one["in"], one["name"]))
                content = operation.get("requestBody", {}).get("content", {})
                if "application/json" in content:
                    self.bodies.append((method, path, self.example(content["application/json"]["schema"])))

    def example(self, schema: dict[str, Any]) -> Any:
        """Something that fits, with every field."""
        if "$ref" in schema:
            return self.example(self.models[schema["$ref"].rsplit("/", 1)[1]])
        if "anyOf" in schema:
            return self.example(schema["anyOf"][0])
        if "enum" in schema or "const" in schema:
            return schema.get("const", schema.get("enum", [None])[0])
        match schema.get("type"):
            case "object":
                return {name: self.example(one) for name, one in schema.get("properties", {}).items()}
            case "array":
                return [self.example(schema["items"])]
            case "integer" | "number":
                return schema.get("minimum", 1)
            case "boolean":
                return False
        return ID if schema.get("format") == "uuid" else "abcd"


def filled(path: str, name: str = "", value: str = "") -> str:
    """A path with its parameters, this one hostile."""
    for part in {piece.split("}")[0] for piece in path.split("{")[1:]}:
        usual = "2026-01-01" if part == "day" else "a" if part in ("name", "old", "new") else ID
        path = path.replace(f"{{{part}}}", value if part == name else usual)
    return path


def sound(response: Any, sent: str = "") -> None:
    """No error of ours; and an error is a problem that repeats nothing."""
    where = (
        response.request.method,
        str(response.request.url)[:300],
        sent[:200],
        response.status_code,
        response.text[:500],
    )
    assert response.status_code < 500 or response.status_code == 503, where
    assert {name.lower() for name in HEADERS} <= set(response.headers), where
    if response.status_code >= 400:
        assert MARK.lower() not in response.text.lower(), where
        if response.request.url.path.startswith("/fhir"):
            assert response.headers["content-type"].startswith("application/fhir+json"), where
            assert response.json()["resourceType"] == "OperationOutcome", where
            return
        assert response.headers["content-type"] in ("application/problem+json", "text/html; charset=utf-8"), where
        if "json" in response.headers["content-type"]:
            assert {"title", "status", "detail"} <= set(response.json()), where
            assert response.json()["status"] == response.status_code, where


def roles_of(api: InProcessApi) -> st.SearchStrategy[str]:
    """Whose key asks; an admin most often, who gets furthest."""
    return st.sampled_from(["admin", "admin", *api.keys])


@pytest.mark.parametrize("cases", [80, pytest.param(2000, marks=pytest.mark.slow)])
def test_hostile_parameters(in_process: InProcessApi, cases: int) -> None:
    """Every parameter of every route, in path, query and header, with values that nobody means."""
    fields = Fields(in_process.http.get("/openapi.json").json())

    @settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.sampled_from(fields.parameters), st.sampled_from(VALUES) | st.text(max_size=40), roles_of(in_process))
    def tried(parameter: tuple[str, str, str, str], value: str, role: str) -> None:
        method, path, where, name = parameter
        asked: dict[str, Any] = {"headers": in_process.headers(role)}
        if where == "query":
            asked["params"] = {name: value}
        elif where == "header":
            asked["headers"][name] = value.encode("utf-8", "replace").replace(b"\0", b"")
        if path == "/api/v1/worklist/events" or (where == "path" and (not value.strip("./") or "/" in value)):
            return  # a stream without end; another path
        target = filled(path, name, quote(value, safe="")) if where == "path" else filled(path)
        sound(in_process.http.request(method, target, **asked), value)

    tried()


@pytest.mark.slow
def test_each_parameter_with_each_value(in_process: InProcessApi) -> None:
    """None of them is left to chance."""
    for method, path, where, name in Fields(in_process.http.get("/openapi.json").json()).parameters:
        for value in VALUES:
            if path == "/api/v1/worklist/events" or (where == "path" and (not value.strip("./") or "/" in value)):
                continue  # a stream without end; another path
            asked: dict[str, Any] = {"headers": in_process.headers()}
            if where == "query":
                asked["params"] = {name: value}
            elif where == "header":
                asked["headers"][name] = value.encode("utf-8", "replace").replace(b"\0", b"")
            target = filled(path, name, quote(value, safe="")) if where == "path" else filled(path)
            sound(in_process.http.request(method, target, **asked), value)


def test_moments_are_taken_from_any_zone(in_process: InProcessApi) -> None:
    """A zone that Postgres does not know is one all the same; what is no year in UTC is refused."""
    for zone in ("+23:59", "-23:59", "+15:59", "Z"):
        response = in_process.http.get(
            "/api/v1/feedback/labels", params={"since": f"2026-01-01T00:00:00{zone}"}, headers=in_process.headers()
        )
        assert response.status_code == 200, (zone, response.text)
    for moment in ("0001-01-01T00:00:00+10:00", "9999-12-31T23:59:59-10:00"):
        response = in_process.http.get(
            "/api/v1/feedback/labels", params={"since": moment}, headers=in_process.headers()
        )
        assert response.status_code == 422, (moment, response.text)


def test_no_parameter_is_repeated(in_process: InProcessApi) -> None:
    """No error repeats what a parameter held, whether it is odd or looks like a name of ours."""
    for method, path, where, name in Fields(in_process.http.get("/openapi.json").json()).parameters:
        for value, role in [(MARK, "admin"), (MARK, "operator"), (MARK.lower(), "admin"), (MARK.lower(), "operator")]:
            asked: dict[str, Any] = {"headers": in_process.headers(role)}
            if where == "query":
                asked["params"] = {name: value}
            elif where == "header":
                asked["headers"][name] = value
            if path != "/api/v1/worklist/events":  # a stream without end
                target = filled(path, name, value) if where == "path" else filled(path)
                sound(in_process.http.request(method, target, **asked), value)


def test_hostile_bodies(in_process: InProcessApi) -> None:
    """Every JSON route with what is no JSON, or not the same JSON to everybody: 4xx."""
    fields = Fields(in_process.http.get("/openapi.json").json())
    for method, path, _ in fields.bodies:
        for body in BODIES:
            kind = "text/plain" if body in (b"{}", b"[]", b"null") else "application/json"
            headers = in_process.headers() | {"Content-Type": kind}
            response = in_process.http.request(method, filled(path), content=body, headers=headers)
            sound(response, repr(body[:100]))
            assert 400 <= response.status_code < 500, (path, body[:100], response.text)


@pytest.mark.parametrize("cases", [80, pytest.param(4000, marks=pytest.mark.slow)])
def test_hostile_fields(in_process: InProcessApi, cases: int) -> None:
    """Every field of every JSON body, one at a time."""
    fields = Fields(in_process.http.get("/openapi.json").json())
    places = [(method, path, body, place) for method, path, body in fields.bodies for place in _places(body)]
    hostile: st.SearchStrategy[Any] = st.sampled_from(VALUES) | st.sampled_from(
        [None, True, -1, 2**31, 2**63, -(2**63) - 1, 1e308, [], {}, [[]]]
    )

    @settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.sampled_from(places), hostile, roles_of(in_process))
    def tried(field: tuple[str, str, Any, tuple[Any, ...]], value: Any, role: str) -> None:
        method, path, body, place = field
        changed = copy.deepcopy(body)
        inner = functools.reduce(lambda found, step: found[step], place[:-1], changed)
        inner[place[-1]] = value
        sound(
            in_process.http.request(method, filled(path), json=changed, headers=in_process.headers(role)), repr(value)
        )

    tried()


def _places(body: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    steps = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    return [place for step, inner in steps for place in ((*before, step), *_places(inner, (*before, step)))]


def test_hostile_pages(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages too: their addresses, and the forms of login and search."""
    app = in_process.http.app
    assert isinstance(app, FastAPI)
    http = in_process.http
    login = http.post("/login", data={"key": in_process.keys["admin"]}, follow_redirects=False)
    assert login.status_code == 303
    headers = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
    monkeypatch.setattr("api.pages.login.LOGIN_DELAY_S", 0)
    addresses = [
        "/?after={}", "/?before={}", "/?sort={}", "/?columns={}", "/?view={}", "/?page={}&after=x", "/?search={}", "/?region={}", "/?modality={}", "/?state={}", "/?assessment={}", "/?age={}", "/view/{}",
        "/revised?read={}", "/revised?unread={}", "/agreement?days={}", "/login?next={}", f"{STATIC}/{{}}", "/{}",
        "/operations?range={}", "/view/{}/report", f"/api/v1/studies/{ID}/report.pdf?unveiled={{}}",
    ]  # fmt: skip
    for number, address in enumerate(addresses):
        for value in VALUES[number % 4 :: 4]:
            target = address.format(quote(value, safe=""))
            response = http.get(target, headers=headers, follow_redirects=False)
            if response.status_code != 200:
                sound(response, value)
    for value in VALUES[::2]:
        for path, field in (("/login", "key"), ("/login", "next"), ("/search", "words")):
            sound(http.post(path, data={field: value}, headers=headers, follow_redirects=False), value)


def test_hostile_uploads(in_process: InProcessApi) -> None:
    """Names and fields of an upload."""
    for value in VALUES:
        headers = in_process.headers("submitter")
        files = [("files", (value or "x", b"no image"))]
        response = in_process.http.post("/api/v1/studies", files=files, data={"priority": value}, headers=headers)
        sound(response, value)
        response = in_process.http.post("/api/v1/studies", files=files, headers=headers)
        assert response.status_code == (409 if len(value) < 1000 else 400)  # the receipt: everything is rejected


def test_each_status_has_the_one_form(in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """400, 401, 403, 404, 405, 413, 415, 422 and 500: a problem for programs, a page for people; with the headers."""
    http, admin = in_process.http, in_process.headers()
    monkeypatch.setattr("api.worklist.routes.worklist_page", lambda *_: 1 / 0)
    monkeypatch.setattr("api.pages.worklist.rows_page", lambda *_: 1 / 0)
    json_type = {"Content-Type": "application/json"}
    for status, response in {
        400: http.post("/api/v1/keys", content=b"{", headers=admin | json_type),
        401: http.get("/api/v1/worklist"),
        403: http.get("/api/v1/keys", headers=in_process.headers("submitter")),
        404: http.get("/nowhere", headers=admin),
        405: http.post("/healthz", headers=admin),
        413: http.post("/api/v1/keys", content=b" " * 70_000, headers=admin | json_type),
        415: http.post("/api/v1/studies", content=b"a", headers=admin),
        422: http.get("/api/v1/worklist?limit=2147483648", headers=admin),
        500: http.get("/api/v1/worklist", headers=admin),
    }.items():
        assert response.status_code == status
        sound_but_500(response)
        assert response.headers["content-type"] == "application/problem+json"
    for path, methods in {
        "/healthz": "GET", "/api/v1/keys": "GET, POST", "/api/v1/turnaround-targets": "GET, PUT", "/api/v1/studies/states": "POST",
        f"/api/v1/studies/{ID}/lock": "GET, POST", f"{STATIC}/osteon.css": "GET, HEAD",
    }.items():  # fmt: skip
        assert http.request("BREW", path).headers["allow"] == methods
    page = {"Accept": "text/html"}
    http.post("/login", data={"key": in_process.keys["admin"]}, follow_redirects=False)
    for status, path in {404: "/nowhere", 405: "/search", 422: f"/view/{MARK}/report", 500: "/"}.items():
        response = http.get(path, headers=page)
        assert (response.status_code, response.headers["content-type"]) == (status, "text/html; charset=utf-8")
        sound_but_500(response)
    refused = http.post("/search", data={"words": "x" * 70}, headers=page | {"Sec-Fetch-Site": "same-origin"})
    assert (refused.status_code, refused.headers["content-type"]) == (400, "text/html; charset=utf-8")


def sound_but_500(response: Any) -> None:
    """As `sound`, where an error of ours is meant."""
    assert {name.lower() for name in HEADERS} <= set(response.headers)
    assert MARK not in response.text
    if "json" in response.headers["content-type"]:
        assert {"title", "status", "detail"} <= set(response.json())


def test_validation_names_places_of_ours_only(in_process: InProcessApi) -> None:
    """Which value is wrong and why, without the value and without names that the client made up."""
    body = {"verdict": MARK, MARK: 1, "marks": [{"image": 0, "x": MARK}]}
    response = in_process.http.post(
        f"/api/v1/studies/{ID}/feedback", json=body, headers=in_process.headers("radiologist")
    )
    sound(response)
    wrong = {fault["where"] for fault in response.json()["errors"]}
    assert {"body.verdict", "body.marks.0.image", "body.marks.0.x", "body.?"} <= wrong
    assert "body.verdict: " in response.json()["detail"]


def test_two_lengths_close_the_connection(in_process: InProcessApi) -> None:
    """Content-Length beside Transfer-Encoding, or two of one: 400 of the one form, and no second request is read."""
    assert isinstance(in_process.http.app, FastAPI)
    smuggled = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: t\r\n\r\n"
    with served(in_process.http.app, Protocol) as port:
        for framing in (
            {"Content_Length": str(len(smuggled)), "Transfer_Encoding": "chunked"},
            {"Content_Length": "5", "content_length": "6"},
            {"Transfer_Encoding": "gzip, chunked"},
            {"Content_Length": "-1"},
        ):
            got = ask(port, "POST", "/healthz", iter([smuggled]), **framing)  # else 405
            assert (got.status, got.headers["connection"]) == (400, "close"), framing
            assert json.loads(got.body)["status"] == 400
            assert {name.lower() for name in HEADERS} <= set(got.headers)


def test_every_error_is_documented(in_process: InProcessApi) -> None:
    """Each operation names its errors, all as problem+json, or as FHIR has them, and no other form is left."""
    schema = in_process.http.get("/openapi.json").json()
    assert not {"HTTPValidationError", "ValidationError"} & set(schema["components"]["schemas"])
    assert len(routes(in_process.http.app)) > len(schema["paths"])  # type: ignore[arg-type]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            assert {"400", "500", "503"} <= set(responses), (method, path)
            for status, response in responses.items():
                if status[0] in "45":
                    form = "application/fhir+json" if path.startswith("/fhir") else "application/problem+json"
                    assert form in response["content"], (method, path, status)


def test_every_input_has_bounds(in_process: InProcessApi) -> None:
    """Each number, text and list that a request may bring: what has no end here finds one in Postgres, as a 500."""
    schema = in_process.http.get("/openapi.json").json()
    models = schema["components"]["schemas"]
    endless: set[str] = set()

    def look(one: dict[str, Any], where: str, seen: tuple[str, ...] = ()) -> None:
        if "$ref" in one:
            name = one["$ref"].rsplit("/", 1)[1]
            if name not in seen:
                look(models[name], name, (*seen, name))
        for inner in one.get("anyOf", []) + one.get("allOf", []):
            look(inner, where, seen)
        match one.get("type"):
            case "integer" | "number":
                low, high = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
                if not (any(key in one for key in low) and any(key in one for key in high)):
                    endless.add(f"{where}: number")
            case "string":
                if not {"maxLength", "enum", "const"} & set(one) and one.get("format") not in (
                    "uuid", "date", "date-time", "binary"):  # fmt: skip
                    endless.add(f"{where}: text")
            case "array":
                if "maxItems" not in one:
                    endless.add(f"{where}: list")
                look(one["items"], where, seen)
            case "object":
                for name, inner in one.get("properties", {}).items():
                    look(inner, f"{where}.{name}", seen)
                if isinstance(one.get("additionalProperties"), dict):
                    look(one["additionalProperties"], f"{where}.*", seen)

    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", ()):
                look(parameter["schema"], f"{method} {path} {parameter['name']}")
            for content in operation.get("requestBody", {}).get("content", {}).values():
                look(content["schema"], f"{method} {path}")
    assert not endless, "\n".join(sorted(endless))
