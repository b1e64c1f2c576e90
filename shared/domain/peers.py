"""Who may send by DICOM: AE titles, addresses, certificates, and when a sender that sends daily is silent."""

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum

from shared.errors import BadRequest

OUR_TITLE = "OSTEON"  # the called AE title of peers that choose no other
TITLE_LENGTH = 16
FINGERPRINT_LENGTH = 64  # hexadecimal digits of SHA-256
HOST_LENGTH = 253  # of a name in DNS
MAX_SILENT_H = 24 * 366
MAPPED_BITS = 96  # of ::ffff:0:0/96, RFC 4291 section 2.5.5.2
# a sender is daily if it sent on so many of the days up to its last one; weekends without a sender are usual
DAYS_LOOKED_AT, DAYS_WITH_IMAGES = 7, 6
DAILY_SILENT_AFTER = timedelta(hours=36)  # 8:00 on one day, 20:00 on the next are still daily


class CallerReason(StrEnum):
    """Why a caller was refused."""

    BAD_TITLE = "bad-title"  # an AE title that breaks the rules of PS3.5
    CALLING_AE = "calling-ae"  # no peer has this calling AE title
    CALLED_AE = "called-ae"  # the peer is known, and calls us by another title
    ADDRESS = "address"  # the titles are a peer's, which comes from elsewhere
    CERTIFICATE = "certificate"  # a peer that is known by its certificate showed none, or another
    DISABLED = "disabled"  # an administrator disabled the peer


class Identification(StrEnum):
    """By what a caller is recognised from then on, beside its AE titles."""

    ADDRESS = "address"
    CERTIFICATE = "certificate"
    TITLES = "titles"  # alone: whoever reaches the port and knows them can send


@dataclass(frozen=True)
class Caller:
    """What an association request shows of its sender.

    address: of the network, as the socket has it, never a name. fingerprint: SHA-256 of the client's certificate (DER)
    in hexadecimal digits; empty without one.
    """

    calling_ae: str
    called_ae: str
    address: str
    fingerprint: str = ""


@dataclass(frozen=True)
class PeerRule:
    """How a peer is known and what it may do; make one by `validate`.

    address: of a host, or a network as CIDR; empty: any. tls_fingerprint: of its certificate; empty: any or none.
    query_host, query_port, query_ae: where the images of a study can be counted by C-FIND; empty and 0: nowhere.
    silent_after_h: hours without images after which it is silent; 0: never; None: as its last days suggest.
    """

    calling_ae: str
    called_ae: str = OUR_TITLE
    address: str = ""
    tls_fingerprint: str = ""
    may_send: bool = True
    may_commit: bool = False
    query_host: str = ""
    query_port: int = 0
    query_ae: str = ""
    silent_after_h: int | None = None

    def validate(self) -> "PeerRule":
        """Return it in the form in which it is stored and compared. Raises BadRequest, which names the value."""
        query = (bool(self.query_host.strip()), bool(self.query_port), bool(self.query_ae.strip()))
        if any(query) and not all(query):
            raise BadRequest("Where to count a study's images needs a host, a port and an AE title; or none of them")
        if not 0 <= self.query_port <= 65535:
            raise BadRequest("A port is a number from 1 to 65535")
        if self.silent_after_h is not None and not 0 <= self.silent_after_h <= MAX_SILENT_H:
            raise BadRequest(f"Silent after so many hours: from 0, which is never, to {MAX_SILENT_H}")
        return PeerRule(
            check_ae_title(self.calling_ae, "the calling AE title"),
            check_ae_title(self.called_ae, "the called AE title"),
            check_address(self.address),
            check_fingerprint(self.tls_fingerprint),
            self.may_send,
            self.may_commit,
            check_host(self.query_host),
            self.query_port,
            check_ae_title(self.query_ae, "the AE title to query") if all(query) else "",
            self.silent_after_h,
        )


def check_ae_title(text: str, what: str = "the AE title") -> str:
    """Check an AE title: PS3.5 section 6.2, value representation AE.

    Args:
        text: as it was given.
        what: it is, for the error.

    Returns:
        The title without the spaces at its ends, which mean nothing. Capitals count.

    Raises:
        BadRequest: it is empty, longer than 16 characters, or has a backslash, a control or a non-ASCII character.
    """
    title = text.strip(" ")
    if not title or len(title) > TITLE_LENGTH or not all(" " <= letter <= "~" and letter != "\\" for letter in title):
        raise BadRequest(
            f"For {what} give 1 to {TITLE_LENGTH} ASCII characters without a backslash, as the device has it"
        )
    return title


def printable_title(text: str) -> str:
    """An AE title of somebody unknown, fit to be stored and shown: what is not allowed is replaced by "?"."""
    kept = "".join(letter if " " <= letter <= "~" and letter != "\\" else "?" for letter in text.strip(" "))
    return kept[:TITLE_LENGTH].strip(" ")


def check_address(text: str) -> str:
    """Check the address of a peer.

    Args:
        text: an address of IPv4 or IPv6, or a network as CIDR; empty: any address.

    Returns:
        The same in one form; an address without a prefix length.

    Raises:
        BadRequest: it is no address. Names are none: whoever answers for DNS could be anybody.
    """
    if not (given := text.strip()):
        return ""
    try:
        found = ipaddress.ip_network(given)
    except ValueError:
        raise BadRequest(
            "For the address give an IP address such as 10.1.2.3, or a network such as 10.1.2.0/24 without further "
            "bits; names of hosts are not looked up. Leave it empty for any address"
        ) from None
    if isinstance(found, ipaddress.IPv6Network):
        if "%" in given:
            raise BadRequest("For the address leave the zone out, what follows %")
        if (mapped := found.network_address.ipv4_mapped) and found.prefixlen >= MAPPED_BITS:  # IPv4, as IPv6 wraps it
            found = ipaddress.ip_network((mapped, found.prefixlen - MAPPED_BITS))
    return str(found) if found.num_addresses > 1 else str(found.network_address)


def check_fingerprint(text: str) -> str:
    """Check the fingerprint of a certificate.

    Args:
        text: SHA-256 of its DER form in hexadecimal digits, with or without colons; empty: none.

    Returns:
        64 lower-case digits, or "".

    Raises:
        BadRequest: it is none.
    """
    digits = "".join(text.split()).replace(":", "").lower()
    if digits and (len(digits) != FINGERPRINT_LENGTH or not set(digits) <= set("0123456789abcdef")):
        raise BadRequest(
            "For the fingerprint give the certificate's SHA-256, 64 hexadecimal digits: "
            "openssl x509 -in FILE -noout -fingerprint -sha256"
        )
    return digits


def check_host(text: str) -> str:
    """Check the host that is queried.

    Args:
        text: a name or an address; empty: none.

    Returns:
        The same without spaces at its ends.

    Raises:
        BadRequest: it is neither a name nor an address.
    """
    given = text.strip()
    letters = set("abcdefghijklmnopqrstuvwxyz0123456789-._:")
    if len(given) > HOST_LENGTH or not set(given.lower()) <= letters:
        raise BadRequest("For the host to query give a name or an IP address, without a port")
    return given


def matches(rule: PeerRule, caller: Caller) -> bool:
    """Whether a caller is who a rule describes, by titles, address and certificate.

    Args:
        rule: of a peer, checked.
        caller: as it calls.

    Returns:
        Whether it is.
    """
    return mismatch(rule, caller) is None


def mismatch(rule: PeerRule, caller: Caller) -> CallerReason | None:
    """Find why a caller is not who a rule describes.

    Args:
        rule: of a peer, checked.
        caller: as it calls.

    Returns:
        The first difference; None if there is none.
    """
    if rule.calling_ae != caller.calling_ae.strip(" "):
        return CallerReason.CALLING_AE
    if rule.called_ae != caller.called_ae.strip(" "):
        return CallerReason.CALLED_AE
    if rule.tls_fingerprint and rule.tls_fingerprint != caller.fingerprint.lower():
        return CallerReason.CERTIFICATE
    if rule.address and not _within(caller.address, rule.address):
        return CallerReason.ADDRESS
    return None


def specificity(rule: PeerRule) -> tuple[bool, int]:
    """How exactly a rule describes its peer: of several that match, the greatest is meant.

    Args:
        rule: of the peer, checked.

    Returns:
        Whether it knows the certificate, and how many bits of the address; -1 without one.
    """
    return bool(rule.tls_fingerprint), ipaddress.ip_network(rule.address).prefixlen if rule.address else -1


def are_disjoint(one: PeerRule, other: PeerRule) -> bool:
    """Whether no caller can be meant by both: by titles, by certificates, or by addresses that share nothing.

    Args:
        one: rule of a peer, checked.
        other: rule of a peer, checked.

    Returns:
        Whether none can.
    """
    if (one.calling_ae, one.called_ae) != (other.calling_ae, other.called_ae):
        return True
    if one.tls_fingerprint and other.tls_fingerprint and one.tls_fingerprint != other.tls_fingerprint:
        return True
    if not (one.address and other.address):
        return False
    return not ipaddress.ip_network(one.address).overlaps(ipaddress.ip_network(other.address))


def plain_address(text: str) -> str:
    """An address of a socket without its zone, and of IPv4 where IPv6 only wraps it; "" if it is none."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def _within(address: str, net: str) -> bool:
    plain = plain_address(address)
    return bool(plain) and ipaddress.ip_address(plain) in ipaddress.ip_network(net)


def silent_since(
    silent_after_h: int | None, days: Collection[date], last_at: datetime | None, added_at: datetime, now: datetime
) -> datetime | None:
    """Find since when a peer does not send what it should.

    Args:
        silent_after_h: hours that its rule has; 0: it is never silent; None: it is if it sent daily before.
        days: on which it sent images, in UTC; those of the last week before `last_at` suffice.
        last_at: when it sent its last image; None: never.
        added_at: since when it can send.
        now: with a time zone.

    Returns:
        The time of its last image, or of its adding if there was none; None: it is not silent.
    """
    since = last_at or added_at
    if silent_after_h is not None:
        return since if silent_after_h and now - since > timedelta(hours=silent_after_h) else None
    if last_at is None or now - last_at <= DAILY_SILENT_AFTER or not days:
        return None
    first = max(days) - timedelta(days=DAYS_LOOKED_AT - 1)
    return since if sum(day >= first for day in set(days)) >= DAYS_WITH_IMAGES else None
