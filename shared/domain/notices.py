"""What messages tell: events, what is said in codes, how a receiver wants it, and who may be a receiver."""

import base64
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CODECS = {  # MSH-18 (HL7 table 0211), and the encoding that it names
    "ASCII": "ascii",
    "8859/1": "iso8859-1",
    "8859/2": "iso8859-2",
    "8859/5": "iso8859-5",
    "8859/7": "iso8859-7",
    "8859/9": "iso8859-9",
    "8859/15": "iso8859-15",
    "UNICODE UTF-8": "utf-8",
}
UTF_8 = "UNICODE UTF-8"
PROCESSING = ("P", "T", "D")  # MSH-11: production, training, debugging
MAX_NETWORKS = 16
KEY_LENGTH = 32  # characters of OSTEON_WEBHOOK_KEY at least
SECRETS_OVERLAP = timedelta(hours=24)  # so long both secrets sign after one has replaced the other
PREFIX = "whsec_"
# addresses that no receiver has, whatever a site allows: clouds give credentials to whoever asks there
NEVER = tuple(
    ipaddress.ip_network(one)
    for one in (
        "169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32"
    )
)  # fmt: skip


class Event(StrEnum):
    """What happened to a study, or at a site."""

    ANALYSED = "study.analysed"
    QUARANTINED = "study.quarantined"  # no image of it could be analysed
    REVISED = "study.revised"  # a newer model assesses it in another way
    READ = "study.read"  # a reader is done with it
    OVERDUE = "positive.overdue"  # nobody has read a positive study within its target
    REVISED_FINDING = "finding.revised"  # a newer model finds something where the older one said negative
    QUEUE_LATE = "queue.late"  # studies of the site wait longer for the model than their queue should let them
    QUEUE_ON_TIME = "queue.on-time"  # no study does any more
    DELIVERY_FAILED = "delivery.failed"  # deliveries to a destination failed, are held, or wait too long
    DELIVERY_WELL = "delivery.well"  # none does any more


HL7_EVENTS = (Event.ANALYSED, Event.REVISED)  # an ORU tells a result; the others are none
# which people are told of by mail, and in their browsers
ALARMS = (Event.OVERDUE, Event.REVISED_FINDING, Event.QUEUE_LATE, Event.DELIVERY_FAILED)
BEGUN_BY = {Event.QUEUE_ON_TIME: Event.QUEUE_LATE, Event.DELIVERY_WELL: Event.DELIVERY_FAILED}  # what ends, by its end
CHOSEN = tuple(event for event in Event if event not in BEGUN_BY)  # by rules; an end goes where its beginning went
OF_STUDIES = tuple(event for event in Event if event not in (*BEGUN_BY, *BEGUN_BY.values()))
USUAL_EVENTS = (Event.ANALYSED, Event.QUARANTINED, Event.REVISED, Event.READ)  # of a webhook that names none
OVERDUE_WITHIN = timedelta(days=1)  # what is overdue for longer was so before somebody wanted to be told, or nobody can
WAITS_TOO_LONG = timedelta(minutes=30)  # a delivery, as the alert ResultsWait


class NoticeState(StrEnum):
    """Where a notice stands."""

    WAITING = "waiting"
    TOLD = "told"  # its deliveries are written
    NOT_WANTED = "not-wanted"  # no rule wants it
    WITHDRAWN = "withdrawn"  # it was not true any more
    FAILED = "failed"  # an error of ours: what is told could not be made


class AccessionPlace(StrEnum):
    """Where a receiver of HL7 looks for the accession number."""

    FILLER = "filler"  # OBR-3
    PLACER = "placer"  # OBR-2
    BOTH = "both"


@dataclass(frozen=True)
class NoticeContent:
    """What is told of a study, or of a site: codes and numbers. Who the patient is stands in none of it.

    images: the assessment of each finding, image by image; empty: the image could not be read. found_at: when the
    result was found. abstention, abstention_detail, score, probability: as the study's row has them. count: of a site:
    how many studies or deliveries. about: the name of the destination of these.
    """

    event: Event
    happened_at: datetime
    found_at: datetime
    status: str
    assessment: str = ""
    region: str = ""
    reason: str = ""
    model: str = ""
    model_sha256: str = ""
    images: tuple[str, ...] = ()
    failed_images: int = 0
    abstention: str = ""
    abstention_detail: str = ""
    score: float | None = None
    probability: float | None = None
    count: int = 0
    about: str = ""

    def as_json(self) -> dict[str, Any]:
        """As JSON, which `content_of` reads."""
        times = {name: getattr(self, name).isoformat() for name in ("happened_at", "found_at")}
        return asdict(self) | times | {"images": list(self.images)}


def content_of(stored: Mapping[str, Any]) -> NoticeContent:
    """Read what `NoticeContent.as_json` wrote."""
    times = {name: datetime.fromisoformat(stored[name]) for name in ("happened_at", "found_at")}
    return NoticeContent(**{**stored, **times, "event": Event(stored["event"]), "images": tuple(stored["images"])})


def parse_networks(text: str) -> tuple[Network, ...]:
    """Read the networks that a site allows.

    Args:
        text: with commas between them, as "10.1.0.0/16, fd12::/32"; empty or "none": none.

    Returns:
        The networks.

    Raises:
        ValueError: one is none, there are more than MAX_NETWORKS, or one is of addresses that are never allowed.
    """
    named = [one.strip() for one in text.split(",") if one.strip() and one.strip() != "none"]
    found = tuple(ipaddress.ip_network(one) for one in named)
    if len(found) > MAX_NETWORKS:
        raise ValueError(f"there are at most {MAX_NETWORKS} networks")
    if any(is_never_allowed(one.network_address) and is_never_allowed(one.broadcast_address) for one in found):
        raise ValueError("link-local addresses are never allowed")
    return found


def is_never_allowed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether no receiver has this address, whatever networks a site names."""
    return any(address in network for network in NEVER if network.version == address.version)


def webhook_secret(key: str, destination_id: UUID, number: int) -> str:
    """Derive the secret that signs what a destination gets, in the form that libraries for webhooks take.

    Args:
        key: of this installation, OSTEON_WEBHOOK_KEY.
        destination_id: of the destination.
        number: from 1, counted up when it is replaced.

    Returns:
        The secret; the same for the same arguments, and nothing of it is stored.
    """
    derived = hmac.digest(key.encode(), f"osteon webhook {destination_id} {number}".encode(), "sha256")
    return PREFIX + base64.b64encode(derived).decode()
