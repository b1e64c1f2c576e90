"""After the migrations: the site, its keys, and an active bundle. Running it again changes nothing.

Keys come from OSTEON_KEYS_FILE (JSON with "keys": {role: secret}), by default secrets.json in OSTEON_HOME, or one each
from OSTEON_KEY_SUBMITTER, OSTEON_KEY_RADIOLOGIST, OSTEON_KEY_ADMIN.
"""

import io
import json
import os
import sys
from pathlib import Path

from shared.dicom import read_header
from shared.errors import BadBundle, ObjectMissing, OsteonError, Rejected
from shared.image import ImageLimits
from shared.repository import Database, examinations
from shared.repository.access import Role, Vault, add_key
from shared.repository.bundles import activate_bundle, active_bundle, add_bundle
from shared.settings import Settings, one_sentence, settings
from shared.storage import Store, bundle_key, open_store, original_key, sha256_of
from shared.study import Header

SEARCHABLE_STEP, SEARCHABLE_MOST = 1000, 100_000  # studies: about a minute
FILLED_STEP, FILLED_MOST = 100, 10_000  # studies, whose originals are read
HEAD_BYTES = 1 << 18  # of an original: more than most headers have


def publish(config: Settings, database: Database, path: Path, *, activate: bool) -> str:
    """Store a bundle file and record it; returns its name. Raises BadBundle, Unavailable, OSError, ValueError."""
    manifest, content = read_bundle_file(path)
    digest = sha256_of(content)
    store = open_store(config.store_url.get_secret_value())
    if not store.exists(bundle_key(digest)):
        store.put(bundle_key(digest), io.BytesIO(content), len(content))
    name = str(manifest["name"])
    with database.transaction() as session:
        add_bundle(session, name, digest, manifest)
        if activate or active_bundle(session) is None:
            activate_bundle(session, name)
    return name


def read_bundle_file(path: Path) -> tuple[dict[str, object], bytes]:
    """The manifest and all bytes. With torch at hand the weights are loaded and checked too.

    Raises BadBundle, OSError.
    """
    content = path.read_bytes()
    try:
        from shared.vision.bundle import load_bundle
    except ModuleNotFoundError:  # the API image has no torch; the worker checks again when it loads the bundle
        return _manifest_without_torch(content), content
    _, manifest = load_bundle(content)
    return manifest.model_dump(), content


def _manifest_without_torch(content: bytes) -> dict[str, object]:
    try:
        length = int.from_bytes(content[:8], "little")
        manifest: dict[str, object] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["manifest"])
        return {**manifest, "name": str(manifest["name"])}
    except (ValueError, KeyError, TypeError):
        raise BadBundle from None


def keys_of(config: Settings) -> dict[Role, str]:
    """The secret per role, from the environment or the keys file. Raises OsteonError if there is none."""
    given = {role: os.environ.get(f"OSTEON_KEY_{role.upper()}", "") for role in Role}
    if any(given.values()):
        return {role: secret for role, secret in given.items() if secret}
    file = Path(os.environ.get("OSTEON_KEYS_FILE", config.home / "secrets.json"))
    try:
        return {Role(role): secret for role, secret in json.loads(file.read_text())["keys"].items()}
    except (OSError, KeyError, ValueError):
        raise OsteonError(f"No API keys: set OSTEON_KEY_ADMIN and its sisters, or give {file}") from None


def make_searchable(config: Settings, database: Database) -> None:
    """Let studies from before there was a search be found, SEARCHABLE_MOST a start; needs the identities' key."""
    if not config.identity_key.get_secret_value():
        return
    vault, done, step = Vault(config.identity_key.get_secret_value()), 0, 1
    while step and done < SEARCHABLE_MOST:
        with database.transaction() as session:
            step = vault.make_searchable(session, SEARCHABLE_STEP)
        done += step


def fill_examinations(config: Settings, database: Database) -> None:
    """Fill the columns of studies from before there were any, FILLED_MOST a start, from the stored originals.

    What was filled stays filled, so that a start that is cut off goes on at the next. Raises Unavailable.
    """
    if not config.identity_key.get_secret_value():
        return
    vault, done, step = Vault(config.identity_key.get_secret_value()), 0, 1
    store = open_store(config.store_url.get_secret_value())
    while step and done < FILLED_MOST:
        with database.transaction() as session:
            studies = examinations.unfilled(session, FILLED_STEP)
        told = {
            study.study_id: {
                instance: header
                for instance, sha256, size_bytes in study.objects
                if (header := _header(config, store, sha256, size_bytes)) is not None
            }
            for study in studies
        }
        with database.transaction() as session:
            examinations.fill(session, vault, told)
        step = len(studies)
        done += step


def _header(config: Settings, store: Store, sha256: str, size_bytes: int) -> Header | None:
    """The header of a stored original; None for one that is lost, or that is not taken in any more."""
    limits = ImageLimits(
        max_header_bytes=config.max_header_bytes,
        max_frame_pixels=config.max_frame_pixels,
        max_frames=config.max_frames,
        max_decoded_bytes=config.max_decoded_bytes,
    )
    for most in (HEAD_BYTES, None):  # the head does nearly always
        try:
            return read_header(io.BytesIO(store.get(original_key(sha256), most)), size_bytes, limits)
        except Rejected:
            continue
        except ObjectMissing:
            return None
    return None


def main() -> int:
    """Prepare a migrated database; exit code 1 with one line on what is wrong."""
    with one_sentence():
        config = settings()
    database = Database(config.database_url.get_secret_value(), 1)
    try:
        with database.transaction() as session:
            for role, secret in keys_of(config).items():
                add_key(session, config.site, role.value, role, secret)
        make_searchable(config, database)
        fill_examinations(config, database)
        name = publish(config, database, config.bundle_path, activate=False)
        print(f"site {config.site} is ready; bundle {name} is stored")
    except (OsteonError, OSError, ValueError) as wrong:
        print(f"prepare: {wrong}", file=sys.stderr)
        return 1
    finally:
        database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
