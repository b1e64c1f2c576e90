"""Metrics of the DICOM listener for Prometheus. Numbers only: no study, no site, no patient, no title of a caller."""

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.registry import Collector

ASSOCIATIONS = Gauge("osteon_listener_associations", "DICOM associations that are open")
REFUSED = Counter(
    "osteon_listener_associations_refused",
    "DICOM associations that were rejected, by reason: why a caller is refused, limit, spool, database or stopping",
    ["reason"],
)
OBJECTS = Counter("osteon_listener_objects", "Data sets that were answered, by status, as 0000", ["status"])
BYTES = Counter("osteon_listener_bytes", "Bytes of the data sets that were answered, by status", ["status"])
REPORTS = Counter(
    "osteon_listener_commitment_reports",
    "Reports of destinations on storage commitment for what was sent to them, by the status of the answer, as 0000",
    ["status"],
)
SUCCESS = Histogram(
    "osteon_listener_success_seconds",
    "Time from the last byte of a data set to its Success: row and bytes are durable by then",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 25),
)
COMMIT = Histogram(
    "osteon_listener_commit_objects", "Data sets that shared a transaction", buckets=(1, 2, 4, 8, 16, 32)
)
SPOOL = Gauge("osteon_listener_spool_bytes", "Disk space that data sets on their way use")
SPOOL_MOST = Gauge("osteon_listener_spool_most_bytes", "Disk space that data sets on their way may use at most")
ALL: tuple[Collector, ...] = (ASSOCIATIONS, REPORTS, REFUSED, OBJECTS, BYTES, SUCCESS, COMMIT, SPOOL, SPOOL_MOST)
