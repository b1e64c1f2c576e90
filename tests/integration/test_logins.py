"""Logins of the pages: they end on the server, by people, by time, and with their key; and what a browser may send."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update

from api.app import create_app
from api.pages.render import STATIC
from shared.db.tables import KeyRow, SessionRow
from shared.domain.security import LoginEnd
from shared.queries.access import find_key, revoke_key_by_id
from shared.settings import BadSettings
from tests.conftest import InProcessApi
from tests.pace import LIMIT_S

OURS = {"Sec-Fetch-Site": "same-origin"}
PAGE = {"Accept": "text/html"}


def log_in(api: InProcessApi, role: str = "radiologist") -> str:
    """Log in; returns the cookie's value, which a thief could have copied."""
    response = api.http.post("/login", data={"key": api.keys[role]}, follow_redirects=False)
    assert response.status_code == 303
    return str(api.http.cookies["osteon"])


def opens(api: InProcessApi, cookie: str, **headers: str) -> int:
    """What the worklist answers to this cookie."""
    api.http.cookies.clear()
    return api.http.get("/api/v1/worklist", headers={"Cookie": f"osteon={cookie}", **headers}).status_code


def logins(api: InProcessApi, **values: Any) -> None:
    """Set columns of all logins."""
    with api.database.transaction() as session:
        session.execute(update(SessionRow).values(**values))


def told(api: InProcessApi, cookie: str) -> str:
    """What the login page says to whoever comes with this cookie."""
    api.http.cookies.clear()
    page = api.http.get("/login", headers={"Cookie": f"osteon={cookie}", **PAGE}).text
    return page.partition('id="ended"')[2].partition("</p>")[0]


def test_a_logout_ends_the_login_on_the_server(in_process: InProcessApi) -> None:
    """A copy of the cookie opens nothing afterwards; another login of the same key goes on; the page says why."""
    first, second = log_in(in_process), log_in(in_process)
    response = in_process.http.post("/logout", headers=OURS, follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (303, "/login")
    assert response.headers["clear-site-data"] == '"cache", "storage"'
    assert "You are logged out" in in_process.http.get("/login").text
    assert (opens(in_process, first), opens(in_process, second)) == (200, 401)
    assert "You are logged out" in told(in_process, second)
    assert told(in_process, first) == ""


def ended(api: InProcessApi, why: LoginEnd) -> None:
    """Let the login of a radiologist's key end."""
    key = api.key("radiologist").id
    with api.database.transaction() as session:
        if why is LoginEnd.REVOKED:
            revoke_key_by_id(session, None, key)
        elif why is LoginEnd.EXPIRED:
            session.execute(update(KeyRow).where(KeyRow.id == key).values(expires_at=func.now()))
    if why is LoginEnd.IDLE:
        logins(api, active_at=func.now() - timedelta(minutes=31))
    elif why is LoginEnd.OLD:
        logins(api, created_at=func.now() - timedelta(hours=13), active_at=func.now())


@pytest.mark.parametrize(
    ("why", "words"),
    [
        (LoginEnd.IDLE, "for 30 minutes"),
        (LoginEnd.REVOKED, "revoked"),
        (LoginEnd.EXPIRED, "expired"),
        (LoginEnd.OLD, "12 hours"),
    ],
)
def test_a_login_ends_and_says_why(in_process: InProcessApi, why: LoginEnd, words: str) -> None:
    """The cookie opens nothing; programs are told a code, people are led to the login page, which says it in words."""
    cookie = log_in(in_process)
    assert opens(in_process, cookie) == 200
    ended(in_process, why)
    in_process.http.cookies.clear()
    response = in_process.http.get("/api/v1/worklist", headers={"Cookie": f"osteon={cookie}"})
    assert (response.status_code, response.json()["code"]) == (401, why)
    led = in_process.http.get("/", headers={"Cookie": f"osteon={cookie}", **PAGE}, follow_redirects=False)
    assert (led.status_code, led.headers["location"]) == (303, "/login?next=%2F")
    assert words in told(in_process, cookie)
    logins(in_process, active_at=func.now(), created_at=func.now())  # what has ended once does not come back
    if why in (LoginEnd.IDLE, LoginEnd.OLD):
        assert opens(in_process, cookie) == 401
        assert words in told(in_process, cookie)


@pytest.mark.parametrize(
    ("method", "path", "headers", "counts"),
    [
        ("GET", "/", PAGE | {"Sec-Fetch-Mode": "navigate"}, True),
        ("GET", "/", PAGE, True),  # a browser on plain HTTP says no more
        ("GET", "/", PAGE | {"If-None-Match": '"a"'}, False),
        ("GET", "/", PAGE | {"Sec-Fetch-Mode": "cors"}, False),
        ("GET", "/api/v1/revised-findings/count", {}, False),
        ("GET", "/active", {"Sec-Fetch-Mode": "cors"}, False),
        ("POST", "/active", OURS | {"Sec-Fetch-Mode": "cors"}, True),
        ("POST", "/active", OURS, True),
    ],
)
def test_what_keeps_a_login_alive(
    in_process: InProcessApi, method: str, path: str, headers: dict[str, str], counts: bool
) -> None:
    """Pages that are opened, and people who do something. What pages ask by themselves does not."""
    log_in(in_process)
    logins(in_process, active_at=func.now() - timedelta(minutes=20))
    assert in_process.http.request(method, path, headers=headers).status_code in (200, 204)
    with in_process.database.transaction() as session:
        recently = SessionRow.active_at > func.now() - timedelta(minutes=10)
        assert session.scalars(select(recently)).all() == [counts]
    left = in_process.http.get("/active").json()["left_s"]
    assert left == pytest.approx(1800 if counts else 600, abs=120)


@pytest.mark.parametrize(
    ("headers", "login", "logout"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 303, 303),
        ({"Sec-Fetch-Site": "cross-site"}, 403, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403, 403),
        ({"Origin": "http://testserver"}, 303, 303),
        ({"Origin": "http://elsewhere"}, 403, 403),
        ({"Origin": "http://testserver:1"}, 403, 403),
        ({"Origin": "null"}, 403, 403),
        ({}, 303, 403),  # no browser
    ],
)
def test_only_our_pages_log_in_and_out(
    in_process: InProcessApi, headers: dict[str, str], login: int, logout: int
) -> None:
    """Neither another site nor another port of this host can; a refused logout wipes nothing."""
    http = in_process.http
    response = http.post(
        "/login", data={"key": in_process.keys["radiologist"]}, headers=headers, follow_redirects=False
    )
    assert response.status_code == login
    cookie = log_in(in_process)
    response = http.post("/logout", headers=headers, follow_redirects=False)
    assert (response.status_code, "clear-site-data" in response.headers) == (logout, logout == 303)
    assert opens(in_process, cookie) == (401 if logout == 303 else 200)


@pytest.mark.parametrize(
    ("headers", "status"),
    [(OURS, 201), ({"Origin": "http://testserver"}, 201), ({"Origin": "http://elsewhere"}, 401),
     ({"Sec-Fetch-Site": "cross-site"}, 401), ({}, 403)],
)  # fmt: skip
def test_only_our_pages_write(in_process: InProcessApi, headers: dict[str, str], status: int) -> None:
    """With the cookie alone, what another site sends changes nothing."""
    log_in(in_process)
    response = in_process.http.post("/api/v1/filters", json={"name": "mine", "query": "status=queued"}, headers=headers)
    assert response.status_code == status


def test_the_cookie_is_bound_to_the_host_behind_tls(make_api: Callable[..., InProcessApi]) -> None:
    """Behind TLS its name forbids browsers to take it from another host or path; pages say that they want HTTPS."""
    api = make_api(secure_cookies=True)
    api.http.base_url = "https://testserver"
    response = api.http.post("/login", data={"key": api.keys["radiologist"]}, follow_redirects=False)
    cookie = response.headers["set-cookie"].lower()
    assert cookie.startswith("__host-osteon=")
    for word in ("; path=/;", "; secure", "; httponly", "; samesite=strict"):
        assert word in cookie
    assert "domain" not in cookie
    assert api.http.get("/api/v1/worklist").status_code == 200
    assert "max-age=" in response.headers["strict-transport-security"]


def test_every_response_has_the_headers(in_process: InProcessApi) -> None:
    """Pages, errors, redirects, files, what is refused by its host: all have the policy, and allow nothing inline."""
    http = in_process.http
    responses = [
        http.get("/login"), http.get("/nothing"), http.get("/api/v1/worklist"), http.get(f"{STATIC}/osteon.css"),
        http.get("/", headers=PAGE, follow_redirects=False), http.get("/login", headers={"Host": "evil.example"}),
    ]  # fmt: skip
    for response in responses:
        policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["form-action"] == "'self'"
        assert "unsafe" not in str(policy)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "strict-transport-security" not in response.headers  # there is no TLS here


@pytest.mark.parametrize(
    ("host", "fine"),
    [
        ("localhost:8080", True), ("127.0.0.1", True), ("[::1]:8080", True), ("10.1.2.3:80", True),
        ("osteon.hospital.example", True), ("OSTEON.hospital.example:443", True), ("a.b.lan", True), ("lan", False),
        ("evil.example", False), ("127.0.0.1.evil.example", False), ("hospital.example", False), ("localhost.evil", False),
        ("notlan", False), ("x.notlan", False),
    ],
)  # fmt: skip
def test_only_known_names_are_served(make_api: Callable[..., InProcessApi], host: str, fine: bool) -> None:
    """A name of somebody else's that leads here (DNS rebinding) reads nothing, and is told the cure, not repeated."""
    api = make_api(allowed_hosts="testserver, osteon.hospital.example, *.lan")
    response = api.http.get("/login", headers={"Host": host})
    assert response.status_code == (200 if fine else 421)
    if not fine:
        assert "OSTEON_ALLOWED_HOSTS" in response.json()["detail"]
        assert host not in response.text
    # what shows a key, or asks whether we live, is no browser that was led astray
    assert api.http.get("/healthz", headers={"Host": host}).status_code == 200
    assert api.http.get("/api/v1/worklist", headers={"Host": host, **api.headers()}).status_code == 200


def test_addresses_come_from_trusted_proxies_only(make_settings: Callable[..., Any], in_process: InProcessApi) -> None:
    """What a peer says of its own address is believed of a trusted proxy, and of nobody else."""
    settings = make_settings(trusted_proxies="10.0.0.0/8, 192.0.2.1")
    forwarded = {"X-Forwarded-For": "203.0.113.9, 198.51.100.7, 10.1.1.1"}

    def seen(app: Any, peer: str) -> str:
        with TestClient(app, client=(peer, 1)) as http:
            http.post("/login", data={"key": in_process.keys["radiologist"]}, headers=forwarded)
        with in_process.database.transaction() as session:
            return str(session.scalars(select(SessionRow.address).order_by(SessionRow.created_at.desc())).first())

    app = create_app(settings)
    assert seen(app, "10.2.2.2") == "198.51.100.7"
    app = create_app(settings)
    assert seen(app, "172.16.0.1") == "172.16.0.1"
    app = create_app(make_settings())
    assert seen(app, "127.0.0.1") == "127.0.0.1"
    with pytest.raises(BadSettings, match="write addresses and networks"):
        make_settings(trusted_proxies="the proxy")


def test_two_logins_of_one_key_are_two_readers(in_process: InProcessApi) -> None:
    """Claims tell the logins of a key apart."""
    log_in(in_process)
    log_in(in_process)
    with in_process.database.transaction() as session:
        assert len(set(session.scalars(select(SessionRow.id)))) == 2
        assert find_key(session, in_process.keys["radiologist"]) is not None


def test_many_requests_of_a_login_at_once(in_process: InProcessApi) -> None:
    """Writing down that a login is used, and from where, keeps nobody waiting and fails nothing."""
    cookie = log_in(in_process)
    logins(in_process, active_at=func.now() - timedelta(minutes=20))
    responses: list[int] = []
    headers = {"Cookie": f"osteon={cookie}", **PAGE}
    threads = [
        threading.Thread(target=lambda: responses.append(in_process.http.get("/", headers=headers).status_code))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert responses == [200] * 8


def test_a_cookie_of_before_opens_nothing(in_process: InProcessApi) -> None:
    """A cookie that holds a key's id, as they did before logins were kept, and a forged id, lead to the login page."""
    from base64 import b64encode

    import itsdangerous

    signer = itsdangerous.TimestampSigner(in_process.settings.session_secret.get_secret_value())
    for content in (f'{{"key": "{in_process.key("admin").id}"}}', f'{{"login": "{UUID(int=7)}"}}', '{"login": 7}'):
        cookie = signer.sign(b64encode(content.encode())).decode()
        assert opens(in_process, cookie) == 401
        assert told(in_process, cookie) == ""


def test_a_login_in_a_cookie_of_another_secret_opens_nothing(in_process: InProcessApi) -> None:
    """What opens the pages is signed by OSTEON_SESSION_SECRET; the same content signed by another one is nothing."""
    import itsdangerous

    cookie = log_in(in_process)
    content = itsdangerous.TimestampSigner(in_process.settings.session_secret.get_secret_value()).unsign(cookie)
    forged = [itsdangerous.TimestampSigner(secret).sign(content).decode() for secret in ("", "another secret")]
    assert [opens(in_process, one) for one in (cookie, content.decode(), *forged)] == [200, 401, 401, 401]
