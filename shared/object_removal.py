"""Removes from the object store what deleted rows named, some time after the rows, unless another row names it."""

from shared.db.engine import Database
from shared.logs import get_logger
from shared.queries import deletions
from shared.storage import Store, frame_key, metadata_key, original_key, preview_key, raw_frame_key

log = get_logger(__name__)


def remove_left_objects(database: Database, store: Store) -> int:
    """Remove the bytes of deleted studies and images, a few at a time.

    The rows that say what to remove were written with the deletion, so the next sweep repairs whatever breaks between
    the two. What is made of a content, its pictures and metadata, is removed twice more: a process that was at it may
    write it afterwards.

    Args:
        database: the database.
        store: the object store.

    Returns:
        How many contents were handled.

    Raises:
        Unavailable: the database or the store does not answer.
    """
    with database.transaction() as session:
        due = deletions.due_for_removal(session)
    done = 0
    for sha256 in due:
        with database.transaction() as session:
            left = deletions.lock_left_object(session, sha256)
            if left is None:  # an upload counts on it just now, or another process has it in hand
                continue
            if not deletions.is_named(session, sha256):
                frames = range(1, left.frames + 1)
                keys = [key(sha256, frame) for frame in frames for key in (preview_key, frame_key, raw_frame_key)]
                keys.append(metadata_key(sha256))
                store.remove(keys if left.passes else [original_key(sha256), *keys])
            deletions.record_removal(session, left)
        done += 1
    if done:
        log.info("objects deleted", contents=done)
    return done
