"""All settings, read from OSTEON_* variables; units stand in the names."""

import functools
import os
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """What can be set, with defaults that are safe on one machine.

    `osteon up` fills the URLs and secrets of the embedded parts in; a variable already set replaces that part.
    """

    model_config = SettingsConfigDict(env_prefix="OSTEON_", env_ignore_empty=True)

    # where things are
    home: Path = Field(Path(".osteon"), description="state of the embedded stack")
    database_url: SecretStr = Field(
        SecretStr("postgresql+psycopg2://osteon@127.0.0.1:5432/osteon"), description="PostgreSQL 15 or newer"
    )
    broker_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Valkey or Redis, with appendonly yes and noeviction"
    )
    store_url: SecretStr = Field(
        SecretStr("file:.osteon/objects"), description="file:DIR, or s3://KEY:SECRET@HOST:PORT/BUCKET (s3s:// for TLS)"
    )
    bundle_path: Path = Field(ROOT / "training/bundles/second-look.safetensors", description="activated when none is")
    start_limit_s: float = Field(
        120.0, gt=0, description="for the parts of `osteon up` to be ready; a slow or busy machine needs longer"
    )
    spool_dir: Path | None = Field(None, description="where uploads wait on disk until they are whole")
    cache_dir: Path | None = Field(None, description="for converted networks; none: the folder cache in the home")
    postgres_bin: Path | None = Field(
        None, description="folder of another PostgreSQL's programs for the embedded server; none: the wheel's"
    )

    # secrets
    identity_key: SecretStr = Field(SecretStr(""), description="Fernet key of the identities table")
    session_secret: SecretStr = Field(SecretStr(""), description="signs the page's login cookie")

    # who may talk to us
    api_host: str = Field("127.0.0.1", description="address that the API listens on")
    api_port: int = Field(8080, description="port of the API; one that nobody chose gives way to the next free one")
    flower_host: str = Field("127.0.0.1", description="address that Flower listens on")
    flower_port: int = Field(5555, description="port of Flower; one that nobody chose gives way to the next free one")
    flower_url: str = Field("http://127.0.0.1:5555", description="where the administrator's browser finds Flower")
    metrics_token: SecretStr = Field(SecretStr(""), description="opens GET /metrics, as an admin's key does")
    worker_metrics_host: str = Field("127.0.0.1", description="address that a worker's metrics listen on")
    worker_metrics_port: int = Field(0, ge=0, le=65535, description="where a worker tells its metrics; 0: nowhere")
    session_hours: int = Field(12, description="after which a login of the page ends")
    secure_cookies: bool = Field(False, description="set behind TLS: the login cookie then travels on HTTPS only")
    site: str = Field("default", description="the site that `osteon up` makes its keys for")
    patient_id_issuer: str = Field(
        "", max_length=64, description="who gives the patient IDs of files that name no issuer; a key may name its own"
    )

    # reading
    claim_lease_s: float = Field(
        150.0, gt=0, description="a reader's claim outlasts their page by this; in the background it asks once a minute"
    )
    streams_per_key: int = Field(32, ge=1, description="worklists that stay open and live at a time, an API process")

    # limits of what is taken in
    max_request_bytes: int = Field(8 * 2**30, description="of one upload; a larger one is refused with 413")
    max_request_files: int = Field(5000, description="in one upload, those in its archives too")
    max_file_bytes: int = Field(2 * 2**30, description="of one file; a larger one is rejected, the others are taken")
    max_header_bytes: int = Field(16 * 2**20, description="of a file, before its pixels")
    max_archive_ratio: int = Field(200, description="what an archive may unpack to, as a multiple of its size")
    max_frame_pixels: int = Field(60_000_000, description="of one frame")
    max_frames: int = Field(200, description="of one instance")
    max_decoded_bytes: int = Field(2 * 2**30, description="of one instance with all its frames")

    # what is shown
    full_films: bool = Field(True, description="viewers may fetch all pixels and gray levels, not previews only")
    full_films_days: float = Field(30.0, gt=0, description="so long one is kept; then it is made anew when asked for")

    # the worker
    batch_size: int = Field(8, ge=1, description="images in the model at a time; OpenVINO takes one a core")
    batch_wait_ms: int = Field(15, description="how long a batch waits to become full, in milliseconds")
    worker_threads: int = Field(
        32, description="studies in hand at a time; at least three times batch_size, and three a core, are used"
    )
    predict_limit_s: float = Field(
        120.0, description="for one call of the model; then the worker ends, to be started anew"
    )
    decoders: int = Field(0, ge=0, description="processes that decode; 0: one a core")
    decode_limit_s: float = Field(60.0, gt=0, description="for one instance with all its frames")
    decode_memory_bytes: int = Field(4 * 2**30, description="what one decoder may take")
    lease_s: float = Field(10.0, description="renewed while the worker lives")
    max_attempts: int = Field(4, description="at a study, before it is quarantined")
    retry_base_s: float = Field(5.0, description="wait before the second attempt; longer before each further one")
    reconcile_every_s: float = Field(2.0, description="between two searches for studies that no queue holds")
    resend_grace_s: float = Field(8.0, description="for a message on its way from the row to the queue and back")
    standstill_s: float = Field(6.0, description="messages wait and none is taken: the worker ends, to be started anew")
    routine_limit_s: float = Field(4 * 3600.0, description="a routine study that waited longer is moved up")
    backlog_limit_s: float = Field(7 * 86400.0, description="a backlog study that waited longer is moved up")
    settle_s: float = Field(3.0, description="quiet time before a study that got further images is analysed")
    database_pool_size: int = Field(8, description="connections to Postgres that a process keeps")

    # the nightly run
    nightly_hour: int = Field(2, ge=0, le=23, description="hour of the day, in nightly_timezone")
    nightly_timezone: str = Field("UTC", description="name of the IANA zone that nightly_hour is in")
    nightly_hours: float = Field(4.0, gt=0, le=24, description="its window: nothing is sent after so many hours")
    nightly_max_studies: int = Field(5000, ge=0, description="chosen in a night at most")
    nightly_in_flight: int = Field(256, ge=1, description="of a run's studies out at a time; more where they go fast")

    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    @property
    def cache(self) -> Path:
        """Where workers keep converted networks: what can be made anew."""
        return self.cache_dir or self.home / "cache"


@functools.cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()


def cpu_count() -> int:
    """Cores this process may use, which in a container is fewer than the host has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
