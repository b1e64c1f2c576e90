"""All settings, read from OSTEON_* variables; units stand in the names."""

import difflib
import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from shared.errors import OsteonError

PREFIX = "OSTEON_"
# variables that are no settings: who asks, the keys that are made known, how tests run (CONTRIBUTING)
OTHERS = frozenset(
    {
        "OSTEON_API_URL", "OSTEON_KEY", "OSTEON_KEYS_FILE", "OSTEON_KEY_SUBMITTER", "OSTEON_KEY_RADIOLOGIST",
        "OSTEON_KEY_ADMIN", "OSTEON_TEST_ARTIFACTS", "OSTEON_SHOTS", "OSTEON_FUZZ_CASES",
    }
)  # fmt: skip
# what Kubernetes puts into each container for a service called osteon-api: API_SERVICE_HOST, API_PORT=tcp://10.0.0.1:8000,
# API_PORT_8000_TCP_ADDR behind our prefix. Source: kubernetes.io, "Service", "Discovering services"
_SERVICE = re.compile(
    r"OSTEON(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_PORT = re.compile(r"OSTEON(_[A-Z0-9_]+)?_PORT")
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
ROOT = Path(__file__).resolve().parent.parent


class BadSettings(OsteonError):
    """A setting is wrong; the message names the variable."""


class Settings(BaseSettings):
    """What can be set, with defaults that are safe on one machine.

    `osteon up` fills the URLs and secrets of the embedded parts in; a variable already set replaces that part.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True)

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 - of any field
        """values: take precedence over the variables. Raises BadSettings."""
        if unknown := misspelt(os.environ):
            raise BadSettings("; ".join(unknown))
        try:
            super().__init__(**values)
        except ValidationError as wrong:
            # a value may be a secret: it is not repeated
            told = [f"{PREFIX}{str(one['loc'][0]).upper()}: {one['msg']}" for one in wrong.errors()]
            raise BadSettings("; ".join(told)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The variables, but for those that Kubernetes sets for services, whose names may be those of settings."""
        if isinstance(env_settings, EnvSettingsSource):
            env_settings.env_vars = {
                name: value for name, value in env_settings.env_vars.items() if not _of_a_service(name, value or "")
            }
        return init_settings, env_settings, dotenv_settings, file_secret_settings

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

    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR|CRITICAL)$", description="DEBUG, INFO, WARNING or ERROR"
    )

    @field_validator("nightly_timezone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("there is no such time zone; name one as Europe/Berlin") from None
        return name

    @property
    def cache(self) -> Path:
        """Where workers keep converted networks: what can be made anew."""
        return self.cache_dir or self.home / "cache"


def misspelt(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each OSTEON_ variable that nothing reads, with the nearest name that something does."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | OTHERS
    told = []
    for name in sorted(environment):
        spelled = name.upper()
        if not spelled.startswith(PREFIX) or spelled in known or _of_a_service(name, environment[name]):
            continue
        near = difflib.get_close_matches(spelled, sorted(known), 1)
        told.append(f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
    return told


def _of_a_service(name: str, value: str) -> bool:
    """Whether Kubernetes set this variable for a service."""
    name = name.upper()
    return bool(_SERVICE.fullmatch(name) or (_PORT.fullmatch(name) and _ADDRESS.match(value)))


@contextmanager
def one_sentence() -> Iterator[None]:
    """Where a process begins: what Osteon knows to be wrong ends it with exit code 1 and a sentence."""
    try:
        yield
    except OsteonError as wrong:
        sys.exit(f"osteon: {wrong}")


@functools.cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()


def cpu_count() -> int:
    """Cores this process may use, which in a container is fewer than the host has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
