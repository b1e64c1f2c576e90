"""Who a caller is: AE titles, addresses, certificates; and when a sender is silent."""

import ipaddress
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.peers import (
    Caller,
    CallerReason,
    PeerRule,
    are_disjoint,
    check_address,
    check_ae_title,
    check_fingerprint,
    check_host,
    matches,
    mismatch,
    plain_address,
    printable_title,
    silent_since,
    specificity,
)
from shared.errors import BadRequest

ALLOWED = [chr(code) for code in range(32, 127) if chr(code) != "\\"]
titles = st.text(st.sampled_from(ALLOWED), min_size=1, max_size=16).filter(lambda text: text.strip(" "))
octets = st.integers(0, 2)  # few, so that networks meet
hosts = st.builds("10.{}.{}.{}".format, octets, octets, octets)
networks = st.one_of(
    st.just(""),
    st.builds(
        lambda address, bits: str(ipaddress.ip_network((address, bits), strict=False)), hosts, st.integers(0, 32)
    ),
)
prints = st.sampled_from(["", "a" * 64, "b" * 64])
rules = st.builds(
    PeerRule, st.sampled_from(["CT", "DX"]), st.sampled_from(["OSTEON", "B"]), networks, prints
).map(PeerRule.validate)  # fmt: skip
callers = st.builds(Caller, st.sampled_from(["CT", "DX", "dx"]), st.sampled_from(["OSTEON", "B"]), hosts, prints)


@given(titles, st.integers(0, 3), st.integers(0, 3))
def test_spaces_around_a_title_mean_nothing(title: str, before: int, after: int) -> None:
    """PS3.5 6.2: leading and trailing spaces are not significant; what is between them, and capitals, are."""
    assert check_ae_title(" " * before + title + " " * after) == title.strip(" ") == printable_title(title)


@given(st.text(max_size=40))
def test_a_title_is_taken_or_refused_and_always_shown(text: str) -> None:
    """What is stored of anybody has at most 16 printable ASCII characters; what is accepted is shown as it is."""
    shown = printable_title(text)
    assert len(shown) <= 16
    assert set(shown) <= set(ALLOWED)
    try:
        assert check_ae_title(text) == shown
    except BadRequest:
        assert shown != text.strip(" ") or not shown


@pytest.mark.parametrize("text", ["", "   ", "X" * 17, "A\\B", "A\tB", "A\x00", "RÖNTGEN", "A\x7f"])
def test_what_is_no_title(text: str) -> None:
    """Empty, too long, a backslash, control characters, letters outside ASCII."""
    with pytest.raises(BadRequest, match="1 to 16"):
        check_ae_title(text)


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        ("", ""), (" 10.1.2.3 ", "10.1.2.3"), ("10.1.2.3/32", "10.1.2.3"), ("10.1.2.0/24", "10.1.2.0/24"),
        ("::1", "::1"), ("2001:DB8::/32", "2001:db8::/32"), ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.0/120", "10.1.2.0/24"),
    ],
)  # fmt: skip
def test_addresses_have_one_form(given_: str, kept: str) -> None:
    """An address, a network, and IPv4 as IPv6 wraps it."""
    assert check_address(given_) == kept
    assert check_address(kept) == kept


@pytest.mark.parametrize("text", ["modality.example", "10.1.2.3/24", "10.1.2", "10.1.2.3:104", "fe80::1%eth0", "*"])
def test_what_is_no_address(text: str) -> None:
    """Names are never looked up; bits beyond the prefix are a slip that would admit a whole network."""
    with pytest.raises(BadRequest, match="address"):
        check_address(text)


def test_a_fingerprint_as_openssl_prints_it() -> None:
    """Colons and capitals make no difference; half of one is none."""
    assert check_fingerprint(":".join(["AB"] * 32)) == "ab" * 32
    assert check_fingerprint("  ") == ""
    for wrong in ("ab" * 31, "sha1", "x" * 64):
        with pytest.raises(BadRequest, match="sha256"):
            check_fingerprint(wrong)


def test_where_images_are_counted_is_whole_or_nothing() -> None:
    """Host, port and title together; a port within its range; a host without a port."""
    whole = PeerRule("CT", query_host=" pacs.example ", query_port=104, query_ae=" PACS ").validate()
    assert (whole.query_host, whole.query_port, whole.query_ae) == ("pacs.example", 104, "PACS")
    for part in ({"query_host": "pacs"}, {"query_port": 104}, {"query_ae": "PACS"}):
        with pytest.raises(BadRequest, match="host, a port"):
            PeerRule("CT", **part).validate()
    with pytest.raises(BadRequest, match="65535"):
        PeerRule("CT", query_host="pacs", query_port=70000, query_ae="PACS").validate()
    with pytest.raises(BadRequest, match="host to query"):
        check_host("http://pacs")
    for hours in (-1, 10**6):
        with pytest.raises(BadRequest, match="Silent"):
            PeerRule("CT", silent_after_h=hours).validate()


@given(rules, rules, callers)
def test_rules_that_are_apart_share_no_caller(one: PeerRule, other: PeerRule, caller: Caller) -> None:
    """This is what keeps a site from having another's images sent to itself."""
    assert are_disjoint(one, other) == are_disjoint(other, one)
    if matches(one, caller) and matches(other, caller):
        assert not are_disjoint(one, other)
    assert not are_disjoint(one, one)


@given(rules, callers)
def test_why_a_caller_is_not_the_peer(rule: PeerRule, caller: Caller) -> None:
    """It matches exactly where all that the rule names agrees; and the reason names something that does not."""
    titles_agree = (rule.calling_ae, rule.called_ae) == (caller.calling_ae, caller.called_ae)
    known = not rule.tls_fingerprint or rule.tls_fingerprint == caller.fingerprint
    there = not rule.address or ipaddress.ip_address(caller.address) in ipaddress.ip_network(rule.address)
    assert matches(rule, caller) == (titles_agree and known and there)
    reason = mismatch(rule, caller)
    assert reason is not CallerReason.CERTIFICATE or not known
    assert reason is not CallerReason.ADDRESS or not there
    assert matches(rule, Caller(f" {rule.calling_ae} ", rule.called_ae, caller.address, caller.fingerprint)) or (
        not known or not there
    )


def test_the_most_exact_rule_comes_first() -> None:
    """A certificate before an address, a host before its network, a network before none."""
    given_ = ["", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3"]
    ordered = [PeerRule("CT", address=address, tls_fingerprint=known) for known in ("", "a" * 64) for address in given_]
    assert sorted(ordered, key=specificity) == ordered


def test_addresses_of_sockets() -> None:
    """IPv4 on a socket of IPv6, a zone, and what is no address, which matches no rule that names one."""
    assert plain_address("::ffff:10.1.2.3") == "10.1.2.3"
    assert plain_address("fe80::1%eth0") == "fe80::1"
    assert plain_address("unknown") == ""
    assert matches(PeerRule("CT", address="10.1.2.0/24"), Caller("CT", "OSTEON", "::ffff:10.1.2.3"))
    assert not matches(PeerRule("CT", address="::/0"), Caller("CT", "OSTEON", "unknown"))


LAST = datetime(2026, 3, 8, 17, tzinfo=UTC)


def days_before(*ago: int) -> list[date]:
    return [LAST.date() - timedelta(days=n) for n in ago]


@pytest.mark.parametrize(
    ("after_h", "days", "quiet_h", "silent"),
    [
        (None, days_before(0, 1, 2, 3, 4, 5, 6), 37, True),
        (None, days_before(0, 1, 2, 3, 4, 5, 6), 35, False),  # the next day is not over
        (None, days_before(0, 1, 2, 4, 5, 6), 37, True),  # one day without images
        (None, days_before(0, 1, 3, 5, 6), 37, False),  # not daily
        (None, days_before(0, 3, 4, 5, 6), 24 * 30, False),  # a weekend: never an alarm on Mondays
        (None, days_before(0, 1, 2, 3, 4, 5, 6), 24 * 60, True),  # still, until it sends or somebody says otherwise
        (None, days_before(0, 7, 8, 9, 10, 11, 12), 37, False),  # daily long ago
        (None, [], 24 * 30, False),
        (0, days_before(0, 1, 2, 3, 4, 5, 6), 24 * 30, False),  # never
        (2, days_before(0), 3, True),
        (2, days_before(0), 1, False),
    ],
)
def test_when_a_sender_is_silent(after_h: int | None, days: list[date], quiet_h: int, silent: bool) -> None:
    """Hours that its rule has; else by what it did on the days up to its last one."""
    now = LAST + timedelta(hours=quiet_h)
    found = silent_since(after_h, days, LAST, LAST - timedelta(days=90), now)
    assert found == (LAST if silent else None)


def test_a_sender_that_never_came() -> None:
    """It is silent only if somebody said how long it may be."""
    added = LAST
    assert silent_since(None, [], None, added, added + timedelta(days=9)) is None
    assert silent_since(48, [], None, added, added + timedelta(days=9)) == added
