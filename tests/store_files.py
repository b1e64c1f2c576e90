"""What lies in a store that is a folder."""

import contextlib
from pathlib import Path


def keys_of(folder: Path) -> dict[str, int]:
    """All objects by key, with the time of their last writing in ns.

    A file in `incoming/` is none yet, and goes at any moment: metadata are written by a thread after the receipt.
    """
    found = {}
    for path in folder.rglob("*"):
        key = path.relative_to(folder)
        if key.parts[0] != "incoming" and path.is_file():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found[str(key)] = path.stat().st_mtime_ns
    return found
