"""DICOM peers on real rows: who is admitted, who is refused and noted, what is counted."""

import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pydicom
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from sqlalchemy import func, select, update

from api.listener.server import listening
from api.operations.peers import PeerSettings
from api.reasons import CALLERS
from infra.embedded.process import free_port
from samples.objects import pattern_image, to_bytes
from shared.db.engine import Database
from shared.db.tables import AuditEventRow, CallerRow, KeyRow, PeerDayRow, PeerRow
from shared.dicom.conformance import VERIFICATION
from shared.domain.peers import Caller, CallerReason, PeerRule
from shared.domain.security import Role, System
from shared.errors import BadRequest, InvalidState, NotFound
from shared.queries import access, peers
from tests.conftest import InProcessApi
from tests.pace import LIMIT_S, until

CT = Caller("CT1", "OSTEON", "10.1.2.3")
PRINT = "a" * 64


@pytest.fixture
def site(database: Database) -> UUID:
    """The only site."""
    with database.transaction() as session:
        made = access.make_site(session, "north")
    assert made
    return made


@pytest.fixture
def other(database: Database, site: UUID) -> UUID:
    """Another site; then there are two."""
    with database.transaction() as session:
        made = access.make_site(session, "south")
    assert made
    return made


def admit(database: Database, site: UUID, **values: Any) -> UUID:
    with database.transaction() as session:
        name, issuer = values.pop("name", ""), values.pop("issuer", "")
        rule = PeerRule(**{"calling_ae": "CT1", **values})
        return peers.admit(session, System.PREPARE, site, rule, name=name, issuer=issuer).id


def found(database: Database, caller: Caller) -> peers.Peer | None:
    with database.transaction() as session:
        return peers.find_peer(session, caller)


def refused(database: Database, caller: Caller) -> CallerReason:
    with database.transaction() as session:
        return peers.note_refused(session, caller)


def kept(database: Database) -> list[CallerRow]:
    with database.transaction() as session:
        return list(session.scalars(select(CallerRow).order_by(CallerRow.first_at)))


def test_an_admitted_caller_is_a_sender_of_its_site(database: Database, site: UUID) -> None:
    """Its key is a submitter's with the peer's name and issuer, as an upload's; and nobody holds its secret."""
    peer_id = admit(database, site, address="10.1.2.0/24", issuer="NORTH")
    peer = found(database, Caller(" CT1 ", "OSTEON  ", "::ffff:10.1.2.3"))
    assert peer
    assert (peer.id, peer.site_id, peer.name, peer.rule.may_send, peer.rule.may_commit) == (
        peer_id, site, "CT1", True, False,
    )  # fmt: skip
    key = peer.key
    assert (key.site_id, key.name, key.role, key.issuer, key.address) == (
        site, "CT1", Role.SUBMITTER, "NORTH", "10.1.2.3",
    )  # fmt: skip
    assert not key.may(Role.ADMIN, Role.RADIOLOGIST, Role.OPERATOR)


@pytest.mark.parametrize(
    ("values", "caller", "reason"),
    [
        ({}, Caller("CT2", "OSTEON", "10.1.2.3"), CallerReason.CALLING_AE),
        ({}, Caller("ct1", "OSTEON", "10.1.2.3"), CallerReason.CALLING_AE),
        ({}, Caller("CT1", "ORTHANC", "10.1.2.3"), CallerReason.CALLED_AE),
        ({"address": "10.1.2.0/24"}, Caller("CT1", "OSTEON", "10.1.3.3"), CallerReason.ADDRESS),
        ({"tls_fingerprint": PRINT}, CT, CallerReason.CERTIFICATE),
        ({"tls_fingerprint": PRINT}, Caller("CT1", "OSTEON", "10.1.2.3", "b" * 64), CallerReason.CERTIFICATE),
        ({}, Caller("CT\\1", "OSTEON", "10.1.2.3"), CallerReason.BAD_TITLE),
        ({}, Caller("CT1", "", "10.1.2.3"), CallerReason.BAD_TITLE),
    ],
)
def test_who_is_refused_and_why(
    database: Database, site: UUID, values: dict[str, Any], caller: Caller, reason: CallerReason
) -> None:
    """The reason names what came nearest; the caller stands in the table, fit to be shown."""
    admit(database, site, **values)
    assert found(database, caller) is None
    assert refused(database, caller) is reason
    (row,) = kept(database)
    assert (row.reason, row.address, row.times) == (reason, "10.1.2.3" if "2.3" in caller.address else "10.1.3.3", 1)
    assert "\\" not in row.calling_ae


def test_a_certificate_replaces_an_address(database: Database, site: UUID) -> None:
    """A peer that is known by its certificate may call from anywhere."""
    admit(database, site, tls_fingerprint=PRINT.upper())
    assert found(database, Caller("CT1", "OSTEON", "192.0.2.9", PRINT))


def test_the_most_exact_peer_is_meant(database: Database, site: UUID) -> None:
    """Of several that fit: by certificate, then by the smallest network."""
    anywhere = admit(database, site)
    network = admit(database, site, address="10.1.0.0/16")
    here = admit(database, site, address="10.1.2.3")
    known = admit(database, site, tls_fingerprint=PRINT)
    cases = {
        ("192.0.2.1", ""): anywhere, ("10.1.9.9", ""): network, ("10.1.2.3", ""): here, ("10.1.2.3", PRINT): known,
    }  # fmt: skip
    for (address, shown), expected in cases.items():
        peer = found(database, Caller("CT1", "OSTEON", address, shown))
        assert peer
        assert peer.id == expected
    with database.transaction() as session:
        assert sorted(session.scalars(select(KeyRow.name))) == ["CT1", "CT1 (2)", "CT1 (3)", "CT1 (4)"]


def test_a_disabled_peer_is_refused_until_it_is_enabled(database: Database, site: UUID) -> None:
    """And the refused caller goes from the list when it is enabled."""
    peer_id = admit(database, site)
    with database.transaction() as session:
        peers.enable(session, System.PREPARE, session.get_one(PeerRow, peer_id), enabled=False)
    assert found(database, CT) is None
    assert refused(database, CT) is CallerReason.DISABLED
    with database.transaction() as session:
        peers.enable(session, System.PREPARE, session.get_one(PeerRow, peer_id), enabled=True)
    assert found(database, CT)
    assert kept(database) == []


def test_disabling_the_most_exact_peer_refuses_it(database: Database, site: UUID) -> None:
    """A peer that fits, too, but less exactly, does not let it in; others of that peer go on."""
    admit(database, site, address="10.1.0.0/16")
    peer_id = admit(database, site, address="10.1.2.3")
    with database.transaction() as session:
        peers.enable(session, System.PREPARE, session.get_one(PeerRow, peer_id), enabled=False)
    assert found(database, CT) is None
    assert refused(database, CT) is CallerReason.DISABLED
    assert found(database, Caller("CT1", "OSTEON", "10.1.2.4"))


def test_a_caller_counts_once_however_often_it_calls(database: Database, site: UUID) -> None:
    """With what it showed last, and from each address by itself."""
    for number in range(3):
        refused(database, Caller("CT1 ", "OSTEON", "10.1.2.3", PRINT if number == 2 else ""))
    refused(database, Caller("CT1", "OSTEON", "10.1.2.4"))
    first, second = kept(database)
    assert (first.times, first.tls_fingerprint, second.times) == (3, PRINT, 1)
    assert first.last_at > first.first_at


def test_a_flood_of_titles_drives_out_itself(database: Database, site: UUID) -> None:
    """Made-up titles come once each: who calls again stays, from the same address and from any other."""
    honest = Caller("HONEST", "OSTEON", "10.1.2.3"), Caller("FAR", "OSTEON", "10.9.9.9")
    with database.transaction() as session:
        for caller in honest * 2:
            peers.note_refused(session, caller)
        for number in range(100):
            peers.note_refused(session, Caller(f"FLOOD{number}", "OSTEON", "10.1.2.3"))
    names = {row.calling_ae for row in kept(database)}
    assert len([row for row in kept(database) if row.network == "10.1.2.3"]) == peers.MAX_CALLERS_OF_NETWORK
    assert {"HONEST", "FAR", "FLOOD99"} <= names
    with database.transaction() as session:
        for number in range(peers.MAX_CALLERS + 30):
            peers.note_refused(session, Caller("X", "OSTEON", f"2001:db8:0:{number:x}::1"))
    names = {row.calling_ae for row in kept(database)}
    assert len(kept(database)) == peers.MAX_CALLERS
    assert {"HONEST", "FAR"} <= names


def test_addresses_of_one_customer_count_together(database: Database, site: UUID) -> None:
    """Of IPv6 a /64: one machine has all of its addresses."""
    with database.transaction() as session:
        for number in range(peers.MAX_CALLERS_OF_NETWORK + 5):
            peers.note_refused(session, Caller("X", "OSTEON", f"2001:db8::{number:x}"))
    assert len(kept(database)) == peers.MAX_CALLERS_OF_NETWORK


def test_old_callers_are_forgotten(database: Database, site: UUID) -> None:
    """After 30 days they are not shown, and go with the next new one."""
    refused(database, CT)
    with database.transaction() as session:
        session.execute(update(CallerRow).values(last_at=func.now() - timedelta(days=31)))
        assert peers.callers(session, None) == []
    refused(database, Caller("CT2", "OSTEON", "10.1.2.4"))
    assert [row.calling_ae for row in kept(database)] == ["CT2"]


def test_admitting_forgets_the_callers_that_it_lets_in(database: Database, site: UUID) -> None:
    """And no other: the same title from elsewhere stays on the list."""
    refused(database, CT)
    refused(database, Caller("CT1", "OSTEON", "10.9.9.9"))
    admit(database, site, address="10.1.2.0/24")
    assert [row.address for row in kept(database)] == ["10.9.9.9"]


def test_no_site_can_have_the_images_of_another(database: Database, site: UUID, other: UUID) -> None:
    """The same titles at two sites need addresses or certificates that share nothing, also for a change."""
    admit(database, site, address="10.1.0.0/16")
    for values in ({}, {"address": "10.1.2.3"}, {"address": "10.0.0.0/8"}, {"tls_fingerprint": PRINT}):
        with pytest.raises(InvalidState, match="another site"):
            admit(database, other, **values)
    peer_id = admit(database, other, address="10.2.0.0/16")
    with database.transaction() as session, pytest.raises(InvalidState, match="another site"):
        row = peers.peer_of_site(session, other, peer_id)
        peers.change(session, System.PREPARE, row, PeerRule("CT1", address="10.1.2.3"), "")
    admit(database, other, called_ae="SOUTH")


def test_one_rule_has_one_peer(database: Database, site: UUID) -> None:
    """A second one with the same titles, address and certificate is refused; a name of another key is, too."""
    admit(database, site, name="CT of the emergency room")
    with pytest.raises(InvalidState, match="emergency room"):
        admit(database, site)
    with pytest.raises(InvalidState, match="named"):
        admit(database, site, calling_ae="CT2", name="CT of the emergency room")
    with pytest.raises(BadRequest, match="16"):
        admit(database, site, calling_ae="X" * 17)


def test_who_decides_on_a_called_title(database: Database, site: UUID) -> None:
    """The only site; else the site whose peers, and no other's, are called by it. Others do not see the callers."""
    refused(database, CT)
    with database.transaction() as session:
        assert peers.may_decide(session, site, "OSTEON")
        assert [row.calling_ae for row in peers.callers(session, site)] == ["CT1"]
    with database.transaction() as session:
        south = access.make_site(session, "south")
        assert south
        for one in (site, south):
            assert not peers.may_decide(session, one, "OSTEON")
            assert peers.callers(session, one) == []
            with pytest.raises(NotFound):
                peers.caller(session, one, peers.callers(session, None)[0].id)
    admit(database, site, calling_ae="DX")
    with database.transaction() as session:
        assert peers.may_decide(session, site, "OSTEON")
        assert len(peers.callers(session, site)) == 1
        assert not peers.may_decide(session, south, "OSTEON")
    admit(database, south, calling_ae="US")
    with database.transaction() as session:
        assert not peers.may_decide(session, site, "OSTEON")


def test_what_a_peer_sent_is_counted_by_day(database: Database, site: UUID) -> None:
    """Associations, images, bytes and rejected ones: today, in 30 days, in all; and the last of each."""
    peer_id = admit(database, site)
    with database.transaction() as session:
        peers.note_contact(session, peer_id)
        peers.note_images(session, peer_id, 0, 0, 0)
        (one,) = peers.figures(session, site)
        assert (one.today, one.last_images_at) == (peers.Traffic(associations=1), None)
        assert one.last_contact_at
        peers.note_images(session, peer_id, 3, 300, 1)
        peers.note_images(session, peer_id, 2, 50, 0)
    with database.transaction() as session:
        today = session.scalar(select(PeerDayRow.day))
        assert today
        for ago, images in ((10, 7), (40, 11)):
            at = func.now() - timedelta(days=ago)
            session.add(
                PeerDayRow(
                    peer_id=peer_id, day=today - timedelta(days=ago), images=images, last_contact_at=at,
                    last_images_at=at,
                )
            )  # fmt: skip
    with database.transaction() as session:
        (one,) = peers.figures(session, None)
    assert one.today == peers.Traffic(1, 5, 350, 1)
    assert (one.month.images, one.whole.images) == (12, 23)
    assert one.last_images_at
    assert one.silent_since is None


def test_a_daily_sender_that_stops_is_silent(database: Database, site: UUID) -> None:
    """Unless it is disabled, or may not send."""
    peer_id = admit(database, site)
    with database.transaction() as session:
        today = session.scalar(select(func.current_date()))
        assert today
        for ago in range(3, 10):
            at = func.now() - timedelta(days=ago)
            day = today - timedelta(days=ago)
            session.add(PeerDayRow(peer_id=peer_id, day=day, images=1, last_contact_at=at, last_images_at=at))

    def silent() -> bool:
        with database.transaction() as session:
            (one,) = peers.figures(session, site)
            assert one.silent_since in (None, one.last_images_at)
            return one.silent_since is not None

    assert silent()
    with database.transaction() as session:
        peers.note_contact(session, peer_id)  # an echo is no image
    assert silent()
    with database.transaction() as session:
        session.execute(update(PeerRow).values(may_send=False))
    assert not silent()
    with database.transaction() as session:
        session.execute(update(PeerRow).values(may_send=True, disabled_at=func.now()))
    assert not silent()


def test_who_did_it_stands_in_the_audit(database: Database, site: UUID) -> None:
    """One event for what changes, with before and after; none for what changes nothing."""
    peer_id = admit(database, site, address="10.1.2.3")
    with database.transaction() as session:
        row = peers.peer_of_site(session, site, peer_id)
        peers.change(session, System.PREPARE, row, PeerRule("CT1", address="10.1.2.3"), "")
        peers.enable(session, System.PREPARE, row, enabled=True)
    with database.transaction() as session:
        row = peers.peer_of_site(session, site, peer_id)
        peers.change(session, System.PREPARE, row, PeerRule("CT1", address="10.1.2.4", may_commit=True), "NORTH")
        peers.enable(session, System.PREPARE, row, enabled=False)
    with database.transaction() as session:
        made, changed, disabled = session.scalars(select(AuditEventRow).order_by(AuditEventRow.id))
    assert (made.kind, made.site_id, made.before) == ("peer-admitted", site, None)
    assert made.after
    assert made.after["calling_ae"] == "CT1"
    assert changed.before == {"address": "10.1.2.3", "may_commit": False, "issuer": None}
    assert changed.after == {"address": "10.1.2.4", "may_commit": True, "issuer": "NORTH"}
    assert (disabled.before, disabled.after) == ({"state": "enabled"}, {"state": "disabled"})
    assert {one.subject_id for one in (made, changed, disabled)} == {str(peer_id)}


def test_a_peer_of_another_site_is_not_there(database: Database, site: UUID, other: UUID) -> None:
    """As if its id did not exist."""
    peer_id = admit(database, site)
    with database.transaction() as session:
        with pytest.raises(NotFound):
            peers.peer_of_site(session, other, peer_id)
        assert peers.figures(session, other) == []


def test_downgrade_takes_the_events_of_peers_along(
    database: Database, database_url: str, run_alembic: Callable[..., None], site: UUID
) -> None:
    """The code of before does not know them; it upgrades again, and the peer's key stays with what it sent."""
    admit(database, site)
    database.engine.dispose()
    run_alembic(database_url, "downgrade", "0028")
    run_alembic(database_url, "upgrade", "head")
    with database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(PeerRow)) == 0
        assert session.scalar(select(KeyRow.name)) == "CT1"


# -- the API


def call(api: InProcessApi, method: str, path: str, role: str = "admin", **body: Any) -> Any:
    return api.http.request(method, f"/api/v1{path}", headers=api.headers(role), json=body or {})


def in_use(peer: dict[str, Any]) -> dict[str, Any]:
    """The settings of a peer, as PUT takes them."""
    return {name: peer[name] for name in PeerSettings.model_fields}


def test_a_refused_caller_is_admitted_with_one_request(in_process: InProcessApi) -> None:
    """It stands in the list with its reason; admitted it is known by its address, and gone from the list."""
    api = in_process
    assert refused(api.database, CT) is CallerReason.CALLING_AE
    (shown,) = call(api, "GET", "/dicom-callers").json()
    assert (shown["calling_ae"], shown["address"], shown["reason"], shown["times"]) == (
        "CT1", "10.1.2.3", "calling-ae", 1,
    )  # fmt: skip
    assert shown["detail"] == CALLERS[CallerReason.CALLING_AE]
    made = call(api, "POST", f"/dicom-callers/{shown['id']}/admit")
    assert made.status_code == 201, made.text
    assert in_use(made.json()) | {"calling_ae": "CT1", "called_ae": "OSTEON", "address": "10.1.2.3"} == in_use(
        made.json()
    )
    assert found(api.database, CT)
    assert not found(api.database, Caller("CT1", "OSTEON", "10.1.2.4"))
    assert call(api, "GET", "/dicom-callers").json() == []
    assert call(api, "POST", f"/dicom-callers/{shown['id']}/admit").status_code == 404
    view = call(api, "GET", "/operations").json()
    assert [one["name"] for one in view["dicom_peers"]] == ["CT1"]


@pytest.mark.parametrize(
    ("shown", "known_by", "kept"),
    [
        (PRINT, None, ("", PRINT)),
        (PRINT, "address", ("10.1.2.3", "")),
        (PRINT, "titles", ("", "")),
        ("", None, ("10.1.2.3", "")),
        ("", "certificate", None),
    ],
)
def test_by_what_an_admitted_caller_is_known(
    in_process: InProcessApi, shown: str, known_by: str | None, kept: tuple[str, str] | None
) -> None:
    """Its certificate before its address, or as the administrator says; a certificate that it did not show is refused."""
    api = in_process
    refused(api.database, Caller("CT1", "OSTEON", "10.1.2.3", shown))
    (row,) = call(api, "GET", "/dicom-callers").json()
    wanted = {"issuer": "NORTH", "name": "the CT"} | ({"known_by": known_by} if known_by else {})
    made = call(api, "POST", f"/dicom-callers/{row['id']}/admit", **wanted)
    if kept is None:
        assert (made.status_code, "TLS" in made.json()["detail"]) == (400, True)
        return
    peer = made.json()
    assert (peer["address"], peer["tls_fingerprint"]) == kept
    assert (peer["issuer"], peer["name"]) == ("NORTH", "the CT")


def test_a_change_replaces_all_settings(in_process: InProcessApi) -> None:
    """What is sent is what counts afterwards; a wrong value changes nothing and is named."""
    api = in_process
    peer = call(api, "POST", "/dicom-peers", calling_ae="CT1", address="10.1.2.3").json()
    wanted = in_use(peer) | {
        "calling_ae": " CT2 ", "address": "10.1.0.0/16", "may_commit": True, "query_host": "pacs.example",
        "query_port": 104, "query_ae": "PACS", "silent_after_h": 0, "issuer": "NORTH",
    }  # fmt: skip
    changed = call(api, "PUT", f"/dicom-peers/{peer['id']}", **wanted).json()
    assert in_use(changed) == wanted | {"calling_ae": "CT2"}
    for values, word in (
        ({"address": "pacs.example"}, "IP address"), ({"calling_ae": "A\\B"}, "16"), ({"query_port": 0}, "a port"),
        ({"tls_fingerprint": "ab"}, "sha256"), ({"query_port": 65536}, "65535"), ({"silent_after_h": -1}, "0"),
        ({"silent_after_h": False}, "whole number"), ({"query_port": "104"}, "whole number"), ({"may_commit": 1}, "boolean"),
    ):  # fmt: skip
        response = call(api, "PUT", f"/dicom-peers/{peer['id']}", **wanted | values)
        assert response.status_code in (400, 422)
        assert word in response.text
    assert in_use(call(api, "GET", "/dicom-peers").json()[0]) == in_use(changed)
    missing = call(api, "PUT", f"/dicom-peers/{UUID(int=1)}", **wanted)
    assert missing.status_code == 404


def test_a_disabled_peer_by_the_api(in_process: InProcessApi) -> None:
    """Refused at its next call, and accepted again."""
    api = in_process
    peer = call(api, "POST", "/dicom-peers", calling_ae="CT1").json()
    assert call(api, "POST", f"/dicom-peers/{peer['id']}/disable").json()["disabled_at"]
    assert found(api.database, CT) is None
    assert call(api, "POST", f"/dicom-peers/{peer['id']}/enable").json()["disabled_at"] is None
    assert found(api.database, CT)


def test_nobody_holds_the_key_of_a_peer(in_process: InProcessApi) -> None:
    """It stands in no list of keys, and is not revoked there; the peer is disabled instead."""
    api = in_process
    call(api, "POST", "/dicom-peers", calling_ae="CT1")
    with api.database.transaction() as session:
        key_id = session.scalar(select(PeerRow.key_id))
    for role in ("admin", "operator"):
        assert str(key_id) not in call(api, "GET", "/keys", role).text
        assert call(api, "GET", f"/keys/{key_id}", role).status_code == 404
        assert call(api, "POST", f"/keys/{key_id}/revoke", role).status_code == 404
    wanted = {"name": "CT1", "role": "submitter"}
    taken = api.http.post("/api/v1/keys", json=wanted, headers=api.headers())
    assert taken.status_code == 409
    assert "named CT1" in taken.json()["detail"]


def test_admins_decide_for_their_site_and_operators_for_all(in_process: InProcessApi) -> None:
    """With a second site an admin admits only under a called AE title that is the own site's alone."""
    api = in_process
    elsewhere = {"Authorization": "Bearer osk_elsewhere"}
    with api.database.transaction() as session:
        access.add_key(session, "elsewhere", "ada", Role.ADMIN, "osk_elsewhere")
    assert call(api, "POST", "/dicom-peers", calling_ae="CT1").status_code == 403
    assert call(api, "POST", "/dicom-peers", calling_ae="CT1", site="default").status_code == 403
    made = call(api, "POST", "/dicom-peers", "operator", calling_ae="CT1", called_ae="NORTH", site="default").json()
    other_ = call(api, "POST", "/dicom-peers", "operator", calling_ae="CT1", called_ae="SOUTH", site="elsewhere").json()
    assert (made["site"], other_["site"]) == ("default", "elsewhere")
    assert call(api, "POST", "/dicom-peers", calling_ae="CT2", called_ae="NORTH").status_code == 201
    assert call(api, "POST", "/dicom-peers", calling_ae="CT2", called_ae="SOUTH").status_code == 403
    refused(api.database, Caller("DX", "NORTH", "10.1.2.3"))
    refused(api.database, Caller("DX", "SOUTH", "10.1.2.3"))
    refused(api.database, Caller("DX", "NOWHERE", "10.1.2.3"))
    mine = call(api, "GET", "/dicom-callers").json()
    theirs = api.http.get("/api/v1/dicom-callers", headers=elsewhere).json()
    everybody = call(api, "GET", "/dicom-callers", "operator").json()
    assert [[one["called_ae"] for one in found] for found in (mine, theirs)] == [["NORTH"], ["SOUTH"]]
    assert len(everybody) == 3
    assert call(api, "POST", f"/dicom-callers/{theirs[0]['id']}/admit").status_code == 404
    assert call(api, "POST", f"/dicom-callers/{mine[0]['id']}/admit", called_ae="SOUTH").status_code == 403
    assert call(api, "PUT", f"/dicom-peers/{other_['id']}", **in_use(other_)).status_code == 404
    assert call(api, "POST", f"/dicom-peers/{other_['id']}/disable").status_code == 404
    assert call(api, "PUT", f"/dicom-peers/{made['id']}", **in_use(made) | {"called_ae": "SOUTH"}).status_code == 403
    assert {one["site"] for one in call(api, "GET", "/dicom-peers").json()} == {"default"}
    assert {one["site"] for one in call(api, "GET", "/dicom-peers", "operator").json()} == {"default", "elsewhere"}


def test_a_silent_peer_is_named_on_the_page_and_to_prometheus(in_process: InProcessApi) -> None:
    """The same judgement in both; the figures are counted beside it."""
    api = in_process
    peer = call(api, "POST", "/dicom-peers", calling_ae="CT1", silent_after_h=24).json()
    with api.database.transaction() as session:
        peers.note_images(session, UUID(peer["id"]), 3, 300, 2)
    assert not [one for one in call(api, "GET", "/operations").json()["troubles"] if "CT1" in one]

    def measured() -> dict[str, float]:
        response = api.http.get("/metrics", headers=api.headers("operator"))
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
            if sample.labels == {"site": "default", "peer": "CT1"}
        }

    values = measured()
    assert values["osteon_dicom_peer_silent"] == 0
    assert values["osteon_dicom_peer_last_images_timestamp_seconds"] > 1.7e9
    assert (values["osteon_dicom_peer_images_total"], values["osteon_dicom_peer_bytes_total"]) == (3, 300)
    assert values["osteon_dicom_peer_rejected_total"] == 2
    with api.database.transaction() as session:
        session.execute(update(PeerDayRow).values(last_images_at=func.now() - timedelta(hours=25)))
    assert measured()["osteon_dicom_peer_silent"] == 1
    (trouble,) = [one for one in call(api, "GET", "/operations").json()["troubles"] if "CT1" in one]
    assert "has sent nothing since" in trouble
    call(api, "POST", f"/dicom-peers/{peer['id']}/disable")
    assert "osteon_dicom_peer_silent" not in measured()


# -- the listener


def test_a_device_is_connected_by_what_the_page_says(
    make_api: Callable[..., InProcessApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An echo is refused and shown; admitted, the next one is answered; images count; disabled, it is refused again."""
    monkeypatch.setattr("api.listener.admission.REFUSED_FOR_S", 0.0)
    api = make_api(dicom_port=free_port())
    ds = pattern_image(1, "a radiograph")
    file = to_bytes(ds, ExplicitVRLittleEndian)

    def associate() -> Association:
        ae = AE("CT1")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = LIMIT_S
        ae.add_requested_context(VERIFICATION, str(ImplicitVRLittleEndian))
        ae.add_requested_context(str(ds.SOPClassUID), str(ExplicitVRLittleEndian))
        return ae.associate("127.0.0.1", api.settings.dicom_port, ae_title="OSTEON")

    with listening(api.settings):
        assert associate().is_rejected
        (shown,) = call(api, "GET", "/dicom-callers").json()
        assert (shown["calling_ae"], shown["address"]) == ("CT1", "127.0.0.1")
        peer = call(api, "POST", f"/dicom-callers/{shown['id']}/admit").json()
        association = associate()
        assert association.is_established
        assert association.send_c_echo().Status == 0
        assert association.send_c_store(pydicom.dcmread(io.BytesIO(file))).Status == 0
        association.release()
        until(lambda: call(api, "GET", "/dicom-peers").json()[0]["today"]["images"], 60)  # it follows the answer
        (now,) = call(api, "GET", "/dicom-peers").json()
        assert (now["today"]["associations"], now["today"]["images"], now["today"]["rejected"]) == (1, 1, 0)
        assert now["today"]["size_bytes"] > 0
        assert now["last_images_at"]
        call(api, "POST", f"/dicom-peers/{peer['id']}/disable")
        refused_ = associate()
        assert refused_.is_rejected
    (again,) = call(api, "GET", "/dicom-callers").json()
    assert again["reason"] == "disabled"
