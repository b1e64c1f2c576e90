"""Operators' commands against an API somewhere else: no database, no store, only its URL and a key."""

import base64
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from infra import cli
from infra.client.api import Client
from shared.db.engine import Database
from shared.db.tables import AuditEventRow
from shared.domain.peers import Caller
from shared.errors import StoreUnavailable
from shared.queries.models import active_bundle
from shared.queries.peers import note_refused
from shared.settings import ROOT, Settings
from shared.storage import DirectoryStore, bundle_key
from tests.conftest import InProcessApi
from tests.feedback_data import ONE, analyse, say, study_file

NOTED = AuditEventRow.kind.like("model-%") | (AuditEventRow.kind == "export")
EVENTS = select(AuditEventRow).where(NOTED).order_by(AuditEventRow.id)
SHIPPED = ROOT / "training/bundles/second-look.safetensors"
CONTENT = SHIPPED.read_bytes()


@pytest.fixture
def osteon(in_process: InProcessApi, address: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Calls a command that knows the API's address and a key; one that looks for a database or a store fails."""

    assert address

    def run(*words: str | Path, role: str = "admin") -> Result:
        monkeypatch.setenv("OSTEON_KEY", in_process.keys.get(role, role))
        with monkeypatch.context() as forbidden:
            forbidden.setattr(Database, "__init__", lambda *_: pytest.fail("a command opened a database"))
            forbidden.setattr("shared.storage.open_store", lambda *_: pytest.fail("a command opened a store"))
            return CliRunner().invoke(cli.app, [*map(str, words)])

    return run


def told(done: Result) -> Any:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def another(name: str, folder: Path, **changes: str) -> Path:
    """The shipped bundle under another name; changes: of its manifest."""
    (length,) = struct.unpack_from("<Q", CONTENT)
    header = json.loads(CONTENT[8 : 8 + length])
    manifest = json.dumps(json.loads(header["__metadata__"]["manifest"]) | {"name": name} | changes)
    digest = hashlib.sha256(manifest.encode()).hexdigest()
    header["__metadata__"] |= {"manifest": manifest, "manifest_sha256": digest}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = folder / f"{name}.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + CONTENT[8 + length :])
    return path


def test_every_operators_command_works_by_http_alone(
    osteon: Callable[..., Result], in_process: InProcessApi, tmp_path: Path
) -> None:
    """activate FILE and NAME, shadow FILE, bundles, feedback log verify and export, arrivals, status, release; each on record."""
    assert told(osteon("activate", SHIPPED, "--json", role="operator")) == {"active": "second-look-2"}
    assert told(osteon("activate", SHIPPED, "--json", role="operator")) == {
        "active": "second-look-2"
    }  # it costs nothing to say it again
    with in_process.database.transaction() as session:
        row = active_bundle(session)
        assert row is not None and row.sha256 == hashlib.sha256(CONTENT).hexdigest()
        store = in_process.http.app.state.parts.store  # type: ignore[attr-defined]
        assert store.get(bundle_key(row.sha256)) == CONTENT
    assert told(osteon("shadow", another("third-look", tmp_path), "--json", role="operator"))["state"] == "shadow"
    assert [one["name"] for one in told(osteon("bundles", "--json"))] == ["third-look", "second-look-2"]
    assert told(osteon("activate", "third-look", "--json", role="operator")) == {"active": "third-look"}

    study: str = in_process.post({"a": study_file(1)}).json()["studies"][0]["id"]
    analyse(in_process, study)
    say(in_process, study, **ONE)
    checked = told(osteon("feedback", "verify", "--json"))
    assert (checked["site"], checked["entries"], checked["problems"]) == ("default", 1, [])
    assert told(osteon("feedback", "export", "--out", tmp_path / "table", "--json"))["radiographs"] == 1
    out = tmp_path / "arrivals.csv"
    assert told(osteon("arrivals", "--since", "2020-01-01", "--out", out, "--json"))["arrivals"] == 1

    done = osteon("status", "--json")  # no worker runs here, and that is told
    assert (done.exit_code, json.loads(done.stdout)["parts"]["database"]) == (1, "ok")
    assert any("No worker is alive" in trouble for trouble in json.loads(done.stdout)["troubles"])
    assert "No worker is alive" in osteon("status").stdout
    assert osteon("release", study).exit_code == 1
    assert osteon("status", role="operator").exit_code == 1
    with in_process.database.transaction() as session:
        noted = [(row.kind, row.detail.get("model") or row.detail["what"]) for row in session.scalars(EVENTS)]
    assert noted == [
        ("model-stored", "second-look-2"), ("model-activated", "second-look-2"), ("model-stored", "third-look"),
        ("model-shadowed", "third-look"), ("model-activated", "third-look"), ("export", "feedback"), ("export", "labels"),
        ("export", "original"), ("export", "arrivals"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [["activate", SHIPPED], ["activate", "x"], ["shadow", "x"], ["bundles"], ["feedback", "verify"], ["status"],
     ["arrivals", "--since", "2020-01-01"], ["feedback", "export", "--out", "nowhere"]],
)  # fmt: skip
def test_who_may_not_is_told_what_is_needed(osteon: Callable[..., Result], words: list[Any]) -> None:
    """Another role, a key that nobody knows, no key, no API: one line each with the variable or the role that is needed."""
    for key, cure in (("radiologist", "needs a key with the role"), ("osk_x", "does not know this key")):
        done = osteon(*words, role=key)
        assert done.exit_code == 1
        assert cure in done.stderr and "OSTEON_KEY" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert "OSTEON_KEY" in osteon(*words, role="").stderr


def test_a_feedback_log_that_was_cut_off_on_its_way_is_not_believed(in_process: InProcessApi, address: str) -> None:
    """Without its last line a response was cut off."""
    with Client(address, in_process.keys["admin"]) as client:
        assert [*client.lines("/api/v1/feedback")] == [{"site": "default", "entries": 0}]
        broken = b'{"number": 1, "hash": "x"}\n'
        client._http = httpx.Client(base_url=address, transport=_ScriptedClient(broken))
        with pytest.raises(Exception, match="cut off"):
            list(client.lines("/api/v1/feedback"))


class _ScriptedClient(httpx.BaseTransport):
    def __init__(self, content: bytes) -> None:
        self.content = content

    def handle_request(self, request: Any) -> Any:
        return httpx.Response(200, content=self.content, request=request)

    def close(self) -> None:
        pass


# -- storing a bundle through the API -------------------------------------------------------------------------------


def stored(
    api: InProcessApi, content: bytes, digest: bytes | None = None, role: str = "operator", **headers: str
) -> Any:
    """POST /api/v1/bundles."""
    told = base64.b64encode(hashlib.sha256(content).digest() if digest is None else digest).decode()
    return api.http.post(
        "/api/v1/bundles",
        content=content,
        headers=api.headers(role) | {"Content-Digest": f"sha-256=:{told}:"} | headers,
    )


def test_a_bundle_is_durable_before_it_is_called_stored(
    in_process: InProcessApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """201, then 200; a store that fails gives 503 and no row; bytes that were lost are mended by sending them again."""
    with monkeypatch.context() as failing:
        failing.setattr(DirectoryStore, "put", lambda *_: (_ for _ in ()).throw(_unavailable()))
        assert stored(in_process, CONTENT).status_code == 503
    assert in_process.http.get("/api/v1/bundles", headers=in_process.headers("operator")).json() == []
    assert stored(in_process, CONTENT).status_code == 201
    store: DirectoryStore = in_process.http.app.state.parts.store  # type: ignore[attr-defined]
    (store.folder / bundle_key(hashlib.sha256(CONTENT).hexdigest())).unlink()
    again = stored(in_process, CONTENT)
    assert (again.status_code, again.json()["name"], again.json()["state"]) == (200, "second-look-2", "available")
    assert store.get(bundle_key(hashlib.sha256(CONTENT).hexdigest())) == CONTENT


def _unavailable() -> Exception:
    return StoreUnavailable()


def test_what_is_no_bundle_is_refused(in_process: InProcessApi, tmp_path: Path) -> None:
    """Other bytes than announced, no digest, cut short, damaged, foreign, another's name: a problem in words, no row."""
    other = b"a photograph"
    flipped = bytearray(CONTENT)
    flipped[-5] ^= 1
    for response, status, words in (
        (stored(in_process, other, hashlib.sha256(b"x").digest()), 400, "not those of Content-Digest"),
        (
            in_process.http.post("/api/v1/bundles", content=other, headers=in_process.headers("operator")),
            400,
            "RFC 9530",
        ),
        (stored(in_process, other), 422, "no intact Osteon model bundle"),
        (stored(in_process, b""), 422, "no intact Osteon model bundle"),
        (stored(in_process, CONTENT[:-100]), 422, "damaged"),
        (stored(in_process, bytes(flipped)), 422, "damaged"),
        (stored(in_process, other, role="radiologist"), 403, "role"),
    ):
        assert response.status_code == status, response.text
        assert words in response.json()["detail"], response.text
    assert in_process.http.get("/api/v1/bundles", headers=in_process.headers("operator")).json() == []
    assert stored(in_process, CONTENT).status_code == 201
    twin = another("second-look-2", tmp_path, limits="Other words.").read_bytes()
    response = stored(in_process, twin)
    assert (response.status_code, "under a new name" in response.json()["detail"]) == (409, True)


def test_a_bundle_has_a_bound(make_api: Callable[..., InProcessApi]) -> None:
    """By its announced length, and by what really comes where none is announced."""
    api = make_api(max_bundle_bytes=1000)
    assert stored(api, bytes(1001)).status_code == 413
    pieces = iter([bytes(600), bytes(600)])
    digest = base64.b64encode(hashlib.sha256(bytes(1200)).digest()).decode()
    response = api.http.post(
        "/api/v1/bundles", content=pieces, headers=api.headers("operator") | {"Content-Digest": f"sha-256=:{digest}:"}
    )
    assert response.status_code == 413
    assert "OSTEON_MAX_BUNDLE_BYTES" in response.json()["detail"]
    assert Settings.model_fields["max_bundle_bytes"].default > len(CONTENT)


def test_dicom_peers_by_command(osteon: Callable[..., Result], in_process: InProcessApi) -> None:
    """A refused caller is listed, admitted, changed, disabled; what is not named stays; wrong words are explained."""
    api = in_process
    shown = "ab" * 32
    assert "No peer." in osteon("peers", "list").stdout
    with api.database.transaction() as session:
        for caller in (Caller("CT1", "OSTEON", "10.1.2.3"), Caller("CT1", "OSTEON", "10.1.2.4", shown)):
            note_refused(session, caller)
    listed = osteon("peers", "list").stdout
    assert "No peer has its AE title." in listed
    assert {one["address"] for one in told(osteon("peers", "list", "--json"))["callers"]} == {"10.1.2.3", "10.1.2.4"}
    several = osteon("peers", "admit", "CT1")
    assert (several.exit_code, "--address" in several.stderr) == (1, True)
    done = osteon("peers", "admit", "CT1", "--address", "10.1.2.3", "--name", "first CT", "--issuer", "NORTH")
    assert "first CT of site default may send now" in done.stdout
    made = told(osteon("peers", "admit", "CT1", "--json"))
    assert (made["name"], made["tls_fingerprint"], made["address"]) == ("CT1", shown, "")
    assert osteon("peers", "admit", "CT1").exit_code == 1

    query = ("--query", "PACS@[2001:db8::1]:104", "--silent-after", "0", "--commit")
    changed = told(osteon("peers", "change", "first CT", *query, "--json"))
    assert (changed["query_ae"], changed["query_host"], changed["query_port"]) == ("PACS", "2001:db8::1", 104)
    assert (changed["silent_after_h"], changed["may_commit"], changed["may_send"]) == (0, True, True)
    assert (changed["address"], changed["issuer"]) == ("10.1.2.3", "NORTH")
    back = told(
        osteon(
            "peers",
            "change",
            "first CT",
            "--query",
            "",
            "--silent-after",
            "auto",
            "--no-commit",
            "--address",
            "",
            "--json",
        )
    )
    assert (back["query_ae"], back["silent_after_h"], back["may_commit"], back["address"]) == ("", None, False, "")
    for words, help_ in (
        (["change", "first CT"], "Nothing to change"), (["change", "nobody", "--commit"], "no peer named nobody"),
        (["change", "first CT", "--query", "pacs:104"], "TITLE@HOST:PORT"), (["change", "CT1", "--called", "X" * 17], "16"),
        (["change", "CT1", "--silent-after", "daily"], "auto"), (["add", "CT9", "--address", "ct9.example"], "IP address"),
        (["disable", "nobody"], "osteon peers list"), (["add", "CT1", "--fingerprint", shown], "already"),
    ):  # fmt: skip
        wrong = osteon("peers", *words)
        assert (wrong.exit_code, help_ in wrong.stderr) == (1, True), (words, wrong.stderr)
    assert "is refused from now on" in osteon("peers", "disable", "CT1").stdout
    assert "disabled" in osteon("peers", "list").stdout
    assert told(osteon("peers", "enable", "CT1", "--json"))["disabled_at"] is None
    added = told(osteon("peers", "add", "DX1", "--called", "NORTH", "--no-send", "--json"))
    assert (added["called_ae"], added["may_send"]) == ("NORTH", False)
    assert osteon("peers", "list", role="radiologist").exit_code == 1
