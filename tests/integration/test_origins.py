"""Pages from elsewhere (CORS): viewers of listed origins may call /dicom-web, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest

VIEWER = "https://viewer.hospital.example"
ASK = {"Origin": VIEWER, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}


def test_a_preflight_needs_no_key(make_api: Callable[..., Any]) -> None:
    """A browser shows none with it; it is answered under any host name, and tells what may be sent."""
    api = make_api(dicomweb_origins=f"http://localhost:3000, {VIEWER}/")
    response = api.http.options("/dicom-web/studies", headers=ASK | {"Host": "osteon.hospital.example"})
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == VIEWER
    assert "authorization" in response.headers["access-control-allow-headers"].lower()
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "Origin" in response.headers["vary"]
    assert "access-control-allow-credentials" not in response.headers
    assert response.headers["x-content-type-options"] == "nosniff"


def test_responses_can_be_read_by_listed_origins_alone(make_api: Callable[..., Any]) -> None:
    """Refusals too, or the viewer would not learn that its key is missing; cookies are never allowed."""
    api = make_api(dicomweb_origins=VIEWER)
    keyless: dict[str, str] = {}
    for headers in keyless, api.headers():
        response = api.http.get("/dicom-web/studies/1.2.3/none", headers=headers | {"Origin": VIEWER})
        assert response.headers["access-control-allow-origin"] == VIEWER
        assert "Warning" in response.headers["access-control-expose-headers"]
    response = api.http.get("/dicom-web/studies/1.2.3", headers={"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in response.headers
    assert "Origin" in response.headers["vary"]
    response = api.http.get("/api/v1/worklist", headers=api.headers() | {"Origin": VIEWER})
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("allowed", ["none", VIEWER])
def test_other_origins_are_refused(make_api: Callable[..., Any], allowed: str) -> None:
    """Their preflight fails with a sentence that names the setting; the origin is not repeated."""
    api = make_api(dicomweb_origins=allowed)
    response = api.http.options("/dicom-web/studies", headers=ASK | {"Origin": "https://elsewhere.example"})
    assert response.status_code == 403
    assert "OSTEON_DICOMWEB_ORIGINS" in response.json()["detail"]
    assert "elsewhere" not in response.text
    assert "access-control-allow-origin" not in response.headers


def test_any_origin_where_it_is_so_set(make_api: Callable[..., Any]) -> None:
    """The origin is named, never a star: so no cookie could be allowed by mistake."""
    api = make_api(dicomweb_origins="*")
    assert api.http.options("/dicom-web/studies", headers=ASK).headers["access-control-allow-origin"] == VIEWER
