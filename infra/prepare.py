"""After the migrations: the site, its keys, and an active bundle. Running it again changes nothing.

Keys come from OSTEON_KEYS_FILE (JSON with "keys": {role: secret}), by default secrets.json in OSTEON_HOME, or one each
from OSTEON_KEY_SUBMITTER, OSTEON_KEY_RADIOLOGIST, OSTEON_KEY_ADMIN, OSTEON_KEY_OPERATOR.

With --accept-identity-key, OSTEON_IDENTITY_KEY is the right one from now on, although others sealed what is there: for
an installation whose key is lost for good.
"""

import argparse
import io
import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from shared.db.engine import JOBS, Database
from shared.dicom.header import read_header
from shared.dicom.image import ImageLimits
from shared.domain.manifest import read_manifest
from shared.domain.security import EventKind, Role, Subject, System
from shared.domain.study import Header
from shared.errors import ObjectMissing, OsteonError, Rejected, WrongIdentityKey
from shared.metadata import HEAD_BYTES, InstanceMetadata
from shared.queries import examinations
from shared.queries.access import Vault, add_key, make_site
from shared.queries.audit import Target, record, record_key_made, record_site_made
from shared.queries.models import activate_bundle, active_bundle, add_bundle
from shared.settings import Settings, one_sentence, settings
from shared.storage import bundle_key, open_store, original_key, sha256_of

SEARCHABLE_STEP, SEARCHABLE_MOST = 1000, 100_000  # studies: about a minute
FILLED_STEP, FILLED_MOST = 100, 10_000  # studies, whose originals are read


def store_bundle_file(config: Settings, database: Database, path: Path, *, activate: bool) -> str:
    """Store a bundle file and record it.

    Args:
        config: where objects are stored.
        database: with the tables.
        path: of the bundle.
        activate: make it the active one, also if another one is.

    Returns:
        Its name.

    Raises:
        BadBundle: The file is no bundle.
        Unavailable: The store or the database does not answer.
        OSError: The file cannot be read.
        ValueError: The store's URL is of no known kind.
    """
    content = path.read_bytes()
    manifest = read_manifest(io.BytesIO(content), len(content))
    digest = sha256_of(content)
    store = open_store(config.store_url.get_secret_value())
    if not store.exists(bundle_key(digest)):
        store.put(bundle_key(digest), io.BytesIO(content), len(content))
    with database.transaction() as session:
        about = Target(Subject.MODEL, manifest.name)
        if add_bundle(session, manifest.name, digest, manifest.model_dump(mode="json")):
            stored = {"state": "available", "sha256": digest}
            record(
                session, EventKind.MODEL_STORED, System.PREPARE, about=about, everywhere=True, after=stored,
                model=manifest.name,
            )  # fmt: skip
        if activate or active_bundle(session) is None:
            was, after = activate_bundle(session, manifest.name), {"active": manifest.name, "state": "active"}
            if was is not None:
                record(
                    session, EventKind.MODEL_ACTIVATED, System.PREPARE, about=about, everywhere=True,
                    before=asdict(was), after=after, model=manifest.name,
                )  # fmt: skip
    return manifest.name


def make_keys(config: Settings, database: Database) -> None:
    """Make the site and its keys unless they are there.

    Args:
        config: name of the site, and where the keys are.
        database: with the tables.

    Raises:
        OsteonError: No key is given.
    """
    with database.transaction() as session:
        if made := make_site(session, config.site):
            record_site_made(session, System.PREPARE, config.site, made)
        for role, secret in keys_of(config).items():
            if key := add_key(session, config.site, role.value, role, secret):
                record_key_made(session, System.PREPARE, key)


def keys_of(config: Settings) -> dict[Role, str]:
    """Read the secret of each role from the environment or the keys file; raises OsteonError if there is none."""
    given = {role: os.environ.get(f"OSTEON_KEY_{role.upper()}", "") for role in Role}
    if any(given.values()):
        return {role: secret for role, secret in given.items() if secret}
    file = Path(os.environ.get("OSTEON_KEYS_FILE", config.home / "secrets.json"))
    try:
        return {Role(role): secret for role, secret in json.loads(file.read_text())["keys"].items()}
    except (OSError, KeyError, ValueError):
        raise OsteonError(f"No API keys: set OSTEON_KEY_ADMIN and the keys of other roles, or provide {file}") from None


def check_identity_key(config: Settings, database: Database, *, accept: bool = False) -> None:
    """Compare the identities' key with the database's check value, or make that value.

    Args:
        config: without a key nothing is done.
        database: with the tables.
        accept: let the key be the right one, whatever was there.

    Raises:
        WrongIdentityKey: Another key sealed what is there.
    """
    if not config.identity_key.get_secret_value():
        return
    vault = Vault(config.identity_key.get_secret_value())
    with database.transaction() as session:
        try:
            vault.check_key(session)
        except WrongIdentityKey:
            if not accept:
                raise
            vault.accept_key(session)
            about, states = Target(Subject.SETTING, "identity-key"), ({"key": "former"}, {"key": "accepted"})
            record(
                session, EventKind.IDENTITY_KEY_ACCEPTED, System.PREPARE, about=about, everywhere=True,
                before=states[0], after=states[1],
            )  # fmt: skip


def make_searchable(config: Settings, database: Database) -> None:
    """Let studies from before there was a search be found, SEARCHABLE_MOST a start.

    Args:
        config: without the identities' key nothing is done.
        database: with the tables.
    """
    if not config.identity_key.get_secret_value():
        return
    vault, done, step = Vault(config.identity_key.get_secret_value()), 0, 1
    while step and done < SEARCHABLE_MOST:
        with database.transaction() as session:
            step = vault.make_searchable(session, SEARCHABLE_STEP)
        done += step


def fill_examinations(config: Settings, database: Database) -> None:
    """Fill columns and metadata of studies from before there were any, FILLED_MOST a start, from the stored originals.

    What was filled stays filled, so that a start that is cut off goes on at the next.

    Args:
        config: without the identities' key nothing is done.
        database: with the tables.

    Raises:
        Unavailable: The store or the database does not answer.
    """
    if not config.identity_key.get_secret_value():
        return
    vault, done, step = Vault(config.identity_key.get_secret_value()), 0, 1
    store = open_store(config.store_url.get_secret_value())
    limits = ImageLimits.of(config)
    metadata = InstanceMetadata(store, vault, limits)
    while step and done < FILLED_MOST:
        with database.transaction() as session:
            studies = examinations.list_unfilled_studies(session, FILLED_STEP)
        headers = {
            study.study_id: {
                instance: header
                for instance, sha256, size_bytes in study.objects
                if (header := _header(metadata, sha256, size_bytes)) is not None
            }
            for study in studies
        }
        with database.transaction() as session:
            step = examinations.fill_columns(session, vault, headers)
        done += step


def _header(metadata: InstanceMetadata, sha256: str, size_bytes: int) -> Header | None:
    """Read the header of a stored original, and make its metadata; None if it is lost, or is no longer accepted."""
    for max_bytes in (HEAD_BYTES, None):  # the head is nearly always enough
        try:
            content = metadata.store.get(original_key(sha256), max_bytes)
            header = read_header(io.BytesIO(content), size_bytes, metadata.limits)
        except Rejected:
            continue
        except ObjectMissing:
            return None
        with suppress(Rejected):
            metadata.make(sha256, size_bytes, content)
        return header
    return None


def main() -> int:
    """Prepare a migrated database; return 1 after printing what is wrong, else 0."""
    asked = argparse.ArgumentParser(prog="python -m infra.prepare", description=__doc__.partition("\n")[0])
    asked.add_argument(
        "--accept-identity-key",
        action="store_true",
        help="let OSTEON_IDENTITY_KEY be the right key from now on; what another one has sealed stays unreadable",
    )
    accept = asked.parse_args().accept_identity_key
    with one_sentence():
        config = settings()
    database = Database(config.database_url.get_secret_value(), 1, JOBS)
    try:
        check_identity_key(config, database, accept=accept)
        make_keys(config, database)
        make_searchable(config, database)
        fill_examinations(config, database)
        name = store_bundle_file(config, database, config.bundle_path, activate=False)
        print(f"site {config.site} is ready; bundle {name} is stored")
    except (OsteonError, OSError, ValueError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    finally:
        database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
