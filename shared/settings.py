"""All settings, read from OSTEON_* variables; units are in the names."""

import difflib
import functools
import ipaddress
import math
import os
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from shared.errors import OsteonError
from shared.logs import get_logger

log = get_logger(__name__)
PREFIX = "OSTEON_"
# variables that are no settings: who asks, the keys that are made known, how tests run (CONTRIBUTING)
OTHERS = frozenset(
    {
        "OSTEON_API_URL", "OSTEON_KEY", "OSTEON_KEYS_FILE", "OSTEON_KEY_SUBMITTER", "OSTEON_KEY_RADIOLOGIST",
        "OSTEON_KEY_ADMIN", "OSTEON_KEY_OPERATOR", "OSTEON_TEST_ARTIFACTS", "OSTEON_SHOTS", "OSTEON_FUZZ_CASES",
    }
)  # fmt: skip
# what Kubernetes puts into each container for a service called osteon-api: API_SERVICE_HOST, API_PORT=tcp://10.0.0.1:8000,
# API_PORT_8000_TCP_ADDR behind our prefix. Source: kubernetes.io, "Service", "Discovering services"
_SERVICE = re.compile(
    r"OSTEON(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_PORT = re.compile(r"OSTEON(_[A-Z0-9_]+)?_PORT")
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
# settings that had another name before 0.2.0; the old one works until 0.3.0
RENAMED = {
    "OSTEON_CLAIM_LEASE_S": "OSTEON_READING_LOCK_S",
    "OSTEON_FULL_FILMS": "OSTEON_FULL_FRAMES",
    "OSTEON_STANDSTILL_S": "OSTEON_STALLED_CONSUMER_S",
    "OSTEON_SETTLE_S": "OSTEON_DEBOUNCE_S",
    "OSTEON_FULL_FILMS_DAYS": "OSTEON_FULL_FRAMES_DAYS",
    **{
        f"OSTEON_NIGHTLY_{part}": f"OSTEON_BACKFILL_{part}"
        for part in ("HOUR", "TIMEZONE", "HOURS", "MAX_STUDIES", "IN_FLIGHT")
    },
}
FILES = 65_536  # descriptors that a process asks for: some programs go through as many as they may have
ROOT = Path(__file__).resolve().parent.parent


class BadSettings(OsteonError):
    """A setting is wrong; the message names the variable."""


_KIND = r"\s*(not-an-image|colour|secondary-capture|other-modality|own-result)\s*"  # shared.domain.study.StoredOnly
_VIEW = r"(frontal|oblique|lateral|axial|other)"  # shared.domain.hanging.ViewKind
_HUNG = rf"[a-z][a-z -]*\s*:\s*{_VIEW}(\s+{_VIEW})*"


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
        except ValidationError as error:
            # a value may be a secret: it is not repeated
            messages = [f"{PREFIX}{str(one['loc'][0]).upper()}: {one['msg']}" for one in error.errors()]
            raise BadSettings("; ".join(messages)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave out variables that Kubernetes sets for services: their names may be those of settings.

        Args:
            settings_cls: this class.
            init_settings: values of the constructor.
            env_settings: values of the environment; filtered in place.
            dotenv_settings: values of an .env file.
            file_secret_settings: values of a folder of secrets.

        Returns:
            The sources, the strongest first.
        """
        if isinstance(env_settings, EnvSettingsSource):
            env_settings.env_vars = _by_new_names(
                {name: value for name, value in env_settings.env_vars.items() if not _of_a_service(name, value or "")}
            )
        return init_settings, env_settings, dotenv_settings, file_secret_settings

    # where things are
    home: Path = Field(Path(".osteon"), description="Folder with the state of the embedded stack.")
    database_url: SecretStr = Field(
        SecretStr("postgresql+psycopg2://osteon@127.0.0.1:5432/osteon"),
        description="The database: PostgreSQL 15 or newer.",
    )
    database_owner_url: SecretStr = Field(
        SecretStr(""),
        description="The same database as the owner of the tables; only migrations use it. Empty: one role for both.",
    )
    broker_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="The broker: Valkey or Redis, with appendonly yes and noeviction.",
    )
    store_url: SecretStr = Field(
        SecretStr("file:.osteon/objects"),
        description="The object store: file:DIR, or s3://KEY:SECRET@HOST:PORT/BUCKET (s3s:// for TLS).",
    )
    bundle_path: Path = Field(
        ROOT / "training/bundles/second-look.safetensors", description="Model bundle that becomes active if none is."
    )
    start_limit_s: float = Field(
        120.0,
        gt=0,
        description="How long a part of `osteon up` may start without progress; in all it may take 30 times as long.",
    )
    spool_dir: Path | None = Field(None, description="Folder on a disk where uploads wait until they are complete.")
    cache_dir: Path | None = Field(
        None, description="Folder for converted networks. Empty: the folder cache in the home."
    )
    alive_file: Path | None = Field(
        None,
        description="File that a process renews while its loop runs; its container's health check looks at its age.",
    )
    postgres_bin: Path | None = Field(
        None, description="Folder of another PostgreSQL's programs for the embedded server. Empty: those of the wheel."
    )

    # secrets
    identity_key: SecretStr = Field(SecretStr(""), description="Fernet key that encrypts the identities table.")
    session_secret: SecretStr = Field(SecretStr(""), description="Secret that signs the login cookie of the pages.")

    webhook_key: SecretStr = Field(
        SecretStr(""),
        description="Key from which the secrets of webhooks are derived: 32 characters or more, the same for API and "
        "`osteon deliver`. Empty: no webhooks.",
    )

    # who may talk to us
    api_host: str = Field("127.0.0.1", description="Address that the API listens on.")
    api_port: int = Field(
        8080, description="Port of the API. If it is taken and nobody set it, the next free one is used."
    )
    flower_host: str = Field("127.0.0.1", description="Address that Flower listens on.")
    flower_port: int = Field(
        5555, description="Port of Flower. If it is taken and nobody set it, the next free one is used."
    )
    flower_url: str = Field(
        "http://127.0.0.1:5555",
        description="Address of Flower for the administrator's browser; the operations page links to it.",
    )
    metrics_token: SecretStr = Field(
        SecretStr(""), description="Token that opens GET /metrics, as an operator's key does."
    )
    worker_metrics_host: str = Field("127.0.0.1", description="Address that the metrics of a worker listen on.")
    worker_metrics_port: int = Field(0, ge=0, le=65535, description="Port of the metrics of a worker. 0: no metrics.")
    session_hours: int = Field(12, ge=1, description="Hours after which a login ends in any case.")
    idle_minutes: float = Field(30.0, gt=0, description="Minutes without use of the pages after which a login ends.")
    failures_a_minute: int = Field(
        10,
        ge=1,
        description="Refused keys a minute from one address, or of one ended key, after which 429 is answered.",
    )
    secure_cookies: bool = Field(
        False, description="Set it behind a TLS proxy: cookie and pages are then sent over HTTPS only."
    )
    allowed_hosts: str = Field(
        "localhost",
        pattern=r"^[A-Za-z0-9.*,\s-]*$",
        description="Names that browsers may use, with commas. IP addresses and localhost are always allowed.",
    )
    dicomweb_origins: str = Field(
        "none",
        pattern=r"^(none|(\s*(https?://[A-Za-z0-9.:\[\]-]+/?|\*)\s*(,|$))*)$",
        description=(
            "Origins of viewers elsewhere whose scripts may call /dicom-web with a key, with commas, as "
            "https://viewer.hospital.example; * for any, none for pages of this server alone."
        ),
    )
    fhir_certainty: bool = Field(
        False, description="Tell the calibrated probability of a fracture in FHIR observations, beside the assessment."
    )
    refused_kinds: str = Field(
        "none",
        pattern=rf"^(none|{_KIND}(,{_KIND})*)$",
        description=(
            "Kinds of objects that are refused and not kept, with commas: not-an-image, colour, secondary-capture, "
            "other-modality, own-result. A PACS that routes them here is told so. A site can choose others."
        ),
    )
    trusted_proxies: str = Field(
        "none", description="Addresses or networks of proxies whose X-Forwarded-For is believed, with commas."
    )
    site: str = Field("default", description="Site that `osteon up` makes its keys for.")
    patient_id_issuer: str = Field(
        "", max_length=64, description="Issuer of the patient IDs of files that name no issuer. A key may have its own."
    )

    # the DICOM network
    dicom_host: str = Field("127.0.0.1", description="Address that the DICOM listener listens on.")
    dicom_port: int = Field(
        11112,
        ge=0,
        le=65535,
        description="Port of the DICOM listener. If it is taken and nobody set it, the next free one is used. 0: none.",
    )
    dicom_tls_port: int = Field(
        0, ge=0, le=65535, description="Port of the DICOM listener for TLS, by custom 2762. 0: none."
    )
    dicom_tls_certificate: Path | None = Field(
        None, description="File in PEM with the DICOM listener's certificate, and those between it and its authority."
    )
    dicom_tls_key: Path | None = Field(
        None, description="File in PEM with the certificate's key. Empty: it is in the certificate's file."
    )
    dicom_tls_clients: Path | None = Field(
        None,
        description=(
            "File in PEM with certificates of DICOM senders, or of their authorities. Empty, or none: none is asked."
        ),
    )
    dicom_tls_mutual: bool = Field(
        False, description="Whether DICOM senders must show one of these certificates. Otherwise they may."
    )
    dicom_associations: int = Field(200, ge=1, description="DICOM associations at a time. Further ones are rejected.")
    dicom_associations_per_peer: int = Field(
        100, ge=1, description="DICOM associations of one peer at a time, so that no peer keeps the others out."
    )
    dicom_processes: int = Field(
        0,
        ge=0,
        le=64,
        description=(
            "Processes that take DICOM associations; limits hold over all of them. 0: one for two cores, 4 at most."
        ),
    )
    dicom_idle_s: float = Field(
        60.0,
        gt=0,
        description="Seconds of silence after which an association is aborted, and the most for one PDU to come.",
    )
    dicom_metrics_host: str = Field("127.0.0.1", description="Address that the DICOM listener's metrics listen on.")
    dicom_metrics_port: int = Field(
        0, ge=0, le=65535, description="Port of the DICOM listener's metrics. 0: no metrics."
    )
    dicom_commitment: bool = Field(
        False, description="Whether peers that may do so can have storage committed. Modalities delete images on it."
    )

    # results that leave
    delivery_folder: Path | None = Field(
        None, description="Folder that holds the folders results are delivered to. Empty: they go to no folder."
    )
    delivery_tls_certificate: Path | None = Field(
        None, description="File in PEM with the certificate that destinations are shown. Empty: none."
    )
    delivery_tls_key: Path | None = Field(
        None, description="File in PEM with that certificate's key. Empty: it is in the certificate's file."
    )
    delivery_tls_authorities: Path | None = Field(
        None,
        description="File in PEM with the authorities of destinations' certificates. Empty: those that the system "
        "trusts. A destination with a fingerprint is held to that instead.",
    )
    delivery_logins: Path | None = Field(
        None,
        description="File in TOML with the logins of STOW-RS destinations, for osteon deliver. Empty or none: none.",
    )
    page_url: str = Field(
        "",
        pattern=r"^(https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?)?$",
        max_length=256,
        description="Address of the pages as people reach them, for links in mail and webhooks: "
        "https://osteon.hospital.example. Empty or none: they have none.",
    )
    mail_host: str = Field("", max_length=253, description="Name of the mail server (SMTP). Empty or none: no mail.")
    mail_port: int = Field(587, ge=1, le=65535, description="Its port: often 587 for starttls, 465 for tls.")
    mail_security: str = Field(
        "starttls",
        pattern="^(starttls|tls|none)$",
        description="How the connection to it is secured: starttls, tls from the beginning, or none, without a login.",
    )
    mail_from: str = Field(
        "",
        pattern=r"^([A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9.-]{1,189})?$",
        description="Address that mail is sent from, as osteon@hospital.example.",
    )
    mail_user: str = Field("", max_length=255, description="Name of its login. Empty or none: without a login.")
    mail_password: SecretStr = Field(
        SecretStr(""), description="Password of that login. OSTEON_MAIL_PASSWORD_FILE keeps it out of the environment."
    )
    mail_password_file: Path | None = Field(
        None, description="File that holds that password, read for each mail. Empty or none: the setting has it."
    )
    delivery_answer_s: float = Field(
        60.0,
        gt=0,
        le=600,
        description="Seconds to wait for a destination's answer, and one more for each 128 KiB.",
    )
    delivery_destinations: int = Field(
        8, ge=1, le=64, description="Destinations that one process sends to at a time, one association each."
    )

    # reading
    reading_lock_s: float = Field(
        150.0,
        gt=0,
        description="How long a reader's lock on a study outlasts its page. A hidden page renews it once a minute.",
    )
    streams_per_key: int = Field(32, ge=1, description="Live worklists that one key may have open in an API process.")

    # limits of what is taken in
    max_connections: int = Field(
        1000,
        ge=1,
        description="Connections to an API process at a time. It takes fewer if it may open few files (ulimit -n).",
    )
    max_request_bytes: int = Field(8 * 2**30, description="Size of one upload. A larger one is refused with 413.")
    max_request_files: int = Field(5000, description="Files in one upload, those in its archives included.")
    max_file_bytes: int = Field(
        2 * 2**30, description="Size of one file. A larger file is rejected, the others are stored."
    )
    max_header_bytes: int = Field(
        16 * 2**20, description="Size of a file's header, which is everything before its pixels."
    )
    max_archive_ratio: int = Field(
        200, description="How many times its size an archive or a deflated data set may expand to."
    )
    max_inflated_bytes: int = Field(
        4 * 2**30, ge=1, description="What the archives and deflated data sets of one upload may expand to together."
    )
    max_spool_bytes: int = Field(
        32 * 2**30,
        ge=1,
        description="Size of all uploads in progress in an API process. Further uploads are answered with 503.",
    )
    spool_reserve_bytes: int = Field(
        2 * 2**30,
        ge=0,
        description="Room that uploads leave on the spool's disk for the database; a twentieth of a small disk.",
    )
    upload_threads: int = Field(
        4, ge=1, description="Uploads that an API process works on at a time. Pages have threads of their own."
    )
    key_bytes_per_hour: int = Field(
        200 * 10**9,
        ge=0,
        description="Bytes that one key may send in an hour; beyond it, 429 with Retry-After. 0: no limit.",
    )
    site_bytes_per_hour: int = Field(
        400 * 10**9, ge=0, description="Bytes that all keys of a site may send in an hour. 0: no limit."
    )
    key_studies_per_hour: int = Field(
        50_000, ge=0, description="New studies that one key may send in an hour. 0: no limit."
    )
    site_studies_per_hour: int = Field(
        100_000, ge=0, description="New studies that all keys of a site may send in an hour. 0: no limit."
    )
    urgent_share: float = Field(
        0.5, ge=0, le=1, description="Share of a key's studies in an hour that may be urgent. 1: no limit."
    )
    urgent_free: int = Field(
        200, ge=0, description="Urgent studies that a key may send in an hour, whatever their share."
    )
    max_frame_pixels: int = Field(60_000_000, description="Pixels of one frame.")
    max_frames: int = Field(200, description="Frames of one instance.")
    max_decoded_bytes: int = Field(2 * 2**30, description="Size of one instance with all its frames, decoded.")
    max_bundle_bytes: int = Field(2**30, description="Size of a model bundle that is stored through the API.")

    # what is shown
    full_frames: bool = Field(
        True, description="Whether viewers may fetch all pixels and gray levels, or previews only."
    )
    overlay_at_start: str = Field(
        "none",
        pattern="^(none|outlines)$",
        description="What the reading page draws over an image before its reader has chosen: none or outlines.",
    )
    hanging: str = Field(
        "any: frontal oblique lateral axial; hip: frontal axial lateral; shoulder: frontal axial lateral",
        pattern=rf"^\s*({_HUNG}\s*(;\s*{_HUNG}\s*)*;?\s*)?$",
        description="How a study's images hang beside each other: for a region as the model names it, or for any "
        "other, kinds of views from left to right (frontal, oblique, lateral, axial, other). What a rule leaves out "
        "comes after what it names.",
    )
    full_frames_days: float = Field(
        30.0,
        gt=0,
        description="Days after which a full-resolution frame is removed. It is made again when somebody asks for it.",
    )

    # the worker
    batch_size: int = Field(
        8, ge=1, description="Images in a batch of the model. OpenVINO takes one image a core at a time."
    )
    batch_wait_ms: int = Field(15, description="How long a batch waits to become full.")
    worker_threads: int = Field(
        32, description="Studies in work at a time; at least three times batch_size, and three a core, are used."
    )
    predict_limit_s: float = Field(
        120.0, description="Limit for one call of the model. Then the worker ends and is started again."
    )
    decoders: int = Field(0, ge=0, description="Processes that decode. 0: one a core.")
    decode_limit_s: float = Field(60.0, gt=0, description="Limit for decoding one instance with all its frames.")
    decode_memory_bytes: int = Field(4 * 2**30, description="Memory that one decoder may use.")
    lease_s: float = Field(
        10.0, description="How long a worker's lease on a study lasts. The worker renews it while it lives."
    )
    max_attempts: int = Field(4, description="Attempts at a study before it is quarantined.")
    retry_base_s: float = Field(
        5.0, description="Wait before the second attempt. The wait before each further attempt is longer."
    )
    reconcile_every_s: float = Field(2.0, description="Time between two searches for studies that are in no queue.")
    resend_grace_s: float = Field(
        8.0, description="Time that a message may take from its row to the queue before it counts as lost."
    )
    stalled_consumer_s: float = Field(
        6.0, description="If messages wait and a worker takes none for so long, it ends and is started again."
    )
    routine_limit_s: float = Field(
        4 * 3600.0, description="A routine study that has waited longer is promoted to urgent."
    )
    backlog_limit_s: float = Field(
        7 * 86400.0, description="A backlog study that has waited longer is promoted to routine."
    )
    debounce_s: float = Field(
        3.0, description="Quiet time after the last further image of a study before it is analysed."
    )
    quiet_s: float = Field(
        20.0, gt=0, description="Quiet time after a study's last image and association before the study is complete."
    )
    force_complete_s: float = Field(
        900.0, gt=0, description="Longest time that a study is received; then it is said to be incomplete."
    )
    database_pool_size: int = Field(8, description="Connections to Postgres that a process keeps.")

    # the backfill run
    backfill_hour: int = Field(
        2, ge=0, le=23, description="Hour at which the backfill run begins, in backfill_timezone."
    )
    backfill_timezone: str = Field("UTC", description="IANA time zone of backfill_hour, for example Europe/Berlin.")
    backfill_hours: float = Field(4.0, gt=0, le=24, description="Hours after which a backfill run sends nothing more.")
    backfill_max_studies: int = Field(5000, ge=0, description="Studies that a backfill run may take.")
    backfill_in_flight: int = Field(
        256,
        ge=1,
        description="Studies of a backfill run that may be in work at a time; more if they are finished quickly.",
    )

    # the daily check
    daily_check: bool = Field(
        True, description="Whether the system checks itself once a day with a reference study (osteon check)."
    )
    check_hour: int = Field(5, ge=0, le=23, description="Hour at which the check begins, in backfill_timezone.")
    check_wait_s: float = Field(
        900.0,
        gt=0,
        le=6 * 3600,
        description="Longest wait of the check for its study's analysis, its results, and their delivery, each.",
    )
    check_api_url: str = Field(
        "", description="The API as the check calls it. Empty: by http at api_host and api_port."
    )
    check_host: str = Field(
        "127.0.0.1",
        description="Address or name of this host at which the check takes its results by DICOM, as osteon deliver "
        "reaches it.",
    )
    check_port: int = Field(0, ge=0, le=65535, description="Port for that, open only while it runs. 0: any free one.")

    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR|CRITICAL)$", description="DEBUG, INFO, WARNING or ERROR."
    )

    @field_validator("backfill_timezone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("there is no such time zone; name one as Europe/Berlin") from None
        return name

    @field_validator("page_url", "mail_host", "mail_from", "mail_user", mode="before")
    @classmethod
    def _is_said(cls, text: str) -> str:
        return "" if text == "none" else text

    @field_validator("dicom_tls_clients", "delivery_logins", "mail_password_file")
    @classmethod
    def _is_a_file(cls, path: Path | None) -> Path | None:
        return None if path == Path("none") else path

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, listed: str) -> str:
        for one in [] if listed == "none" else map(str.strip, listed.split(",")):
            try:
                ipaddress.ip_network(one)
            except ValueError:
                raise ValueError("write addresses and networks as 192.0.2.7, 10.0.0.0/8, with commas") from None
        return listed

    def mail_secret(self) -> str:
        """The password of the login at the mail server. Raises OSError if its file cannot be read."""
        if self.mail_password_file is None:
            return self.mail_password.get_secret_value()
        return self.mail_password_file.read_text(encoding="utf-8", errors="replace").strip()

    @property
    def cache(self) -> Path:
        """Where workers keep converted networks: what can be made again."""
        return self.cache_dir or self.home / "cache"


def misspelt(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each OSTEON_ variable that nothing reads, with the nearest name that something does."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | OTHERS
    old = RENAMED.keys()
    messages = []
    for name in sorted(environment):
        spelled = name.upper()
        if not spelled.startswith(PREFIX) or spelled in known | old or _of_a_service(name, environment[name]):
            continue
        near = difflib.get_close_matches(spelled, sorted(known), 1)
        messages.append(f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
    return messages


def _by_new_names(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    """The variables (lower case), those with an old name under the new one."""
    found = dict(variables)
    for old, new in RENAMED.items():
        if not (value := found.pop(old.lower(), None)):
            continue
        if found.get(new.lower()):
            raise BadSettings(f"{old} is the old name of {new}, and both are set: remove {old}")
        found[new.lower()] = value
        _warn_of_old_name(old, new)
    return found


@functools.cache  # once a process
def _warn_of_old_name(old: str, new: str) -> None:
    log.warning("old setting used", old=old, new=new, works_until="0.3.0")


def _of_a_service(name: str, value: str) -> bool:
    """Whether Kubernetes set this variable for a service."""
    name = name.upper()
    return bool(_SERVICE.fullmatch(name) or (_PORT.fullmatch(name) and _ADDRESS.match(value)))


@contextmanager
def one_sentence() -> Iterator[None]:
    """Wrap a process: an error that Osteon knows ends it with exit code 1 and a sentence."""
    try:
        yield
    except OsteonError as error:
        sys.exit(f"osteon: {error}")


@functools.cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()


def raise_files(count: int = FILES) -> int:
    """Let this process, and those that it starts, open so many files; return how many it may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
        soft = count
    return soft if soft != resource.RLIM_INFINITY else count


def cpu_count(proc: Path = Path("/proc/self"), mounts: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the cores that this process may use. Source: Linux, admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst.

    A container with `cpus: 1.5` sees every core of its host and is stopped when it uses more; two threads are right.

    Args:
        proc: this process's folder under /proc.
        mounts: where control groups are mounted.

    Returns:
        The cores that it is bound to, and at most what its control groups' quotas allow, rounded up; at least 1.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _cpu_groups(proc, mounts) if (quota := _cpu_quota(folder))]
    return max(1, min(bound, *map(math.ceil, quotas))) if quotas else bound


def _cpu_groups(proc: Path, mounts: Path) -> Iterator[Path]:
    """The folders of this process's control groups that may hold a CPU quota, and of those above them."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # version 2 has one tree, at times below `unified`; version 1 one a controller, at times two together
        roots = (mounts, mounts / "unified") if not controllers else (mounts / controllers, mounts / "cpu")
        for root in roots:
            group = root / path.strip("/")  # in a container the tree often begins with its own group
            yield from (group, *(parent for parent in group.parents if parent.is_relative_to(root)))


def _cpu_quota(folder: Path) -> float | None:
    """Cores that a control group grants; None: as many as there are."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
