"""What Osteon shows a STOW-RS service that wants a login: bearer tokens and passwords, from a file of this process.

They stand in no table, no response and no backup of Postgres, as the keys of TLS do not. An entry names the destination
and the address that it is for: whoever may change a destination cannot have its password sent elsewhere. The file is
read for each connection, so that a new token needs no restart. Source: RFC 6750 2.1, RFC 7617.
"""

import base64
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared.errors import OsteonError

MAX_BYTES = 1 << 18
KEYS = frozenset({"site", "destination", "url", "bearer", "user", "password"})
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def authorization(path: Path | None, site: str, destination: str, url: str) -> str:
    """Find what a destination is to be shown. An entry that is wrong, of another destination, is no matter of this one.

    Args:
        path: OSTEON_DELIVERY_LOGINS; None: there is none.
        site: name of the destination's site.
        destination: its name.
        url: its address.

    Returns:
        The value of the header Authorization; empty: it has no login.

    Raises:
        OsteonError: the file or this destination's entry cannot be used, or has another address, or others may read
            it. The message repeats no value of it.
    """
    if path is None:
        return ""
    for number, one in enumerate(_entries(path), 1):
        name = one.get("destination")
        if isinstance(name, str) and (name != destination or one.get("site", site) != site):
            continue
        header = _header_of_entry(path, number, one)
        if one["url"].rstrip("/") != url:
            raise OsteonError(
                f"Entry {number} of OSTEON_DELIVERY_LOGINS ({path}) has another url than the destination: its login is "
                "sent nowhere else. Give both the same address"
            )
        return header
    return ""


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _error(path, f"is larger than {MAX_BYTES:,} bytes")
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _error(path, f"cannot be read: {error.strerror}") from error
    except ValueError:  # its message quotes the file
        raise _error(path, "is not TOML in UTF-8") from None
    entries = tables.get("login")
    if set(tables) != {"login"} or not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise _error(path, "has entries of other names than [[login]]")
    return entries


def _header_of_entry(path: Path, number: int, one: dict[str, Any]) -> str:
    """The header of an entry. Raises OsteonError where it is not whole."""
    if path.stat().st_mode & 0o077:
        raise _error(path, "may be read by others than its owner: chmod 600 it")
    beginning = f"has an entry, number {number}, "
    if set(one) - KEYS or not all(isinstance(value, str) and value for value in one.values()):
        raise _error(path, f"{beginning}with other keys than {', '.join(sorted(KEYS))}, or an empty value")
    if not {"destination", "url"} <= set(one) or ("bearer" in one) == ("user" in one or "password" in one):
        raise _error(path, f"{beginning}that lacks destination, url, and either bearer or user and password")
    parts = urlsplit(one["url"])
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise _error(path, f"{beginning}whose url is not https://: a login is not sent in the clear")
    if "bearer" in one:
        if not one["bearer"].isascii() or not one["bearer"].isprintable() or " " in one["bearer"]:
            raise _error(path, f"{beginning}whose bearer is none: printable ASCII without spaces")
        return f"Bearer {one['bearer']}"
    if not {"user", "password"} <= set(one) or ":" in one["user"]:
        raise _error(path, f"{beginning}that lacks user or password, or has a colon in user")
    shown = f"{one['user']}:{one['password']}".encode()
    return f"Basic {base64.b64encode(shown).decode()}"


def _error(path: Path, what: str) -> OsteonError:
    return OsteonError(f"OSTEON_DELIVERY_LOGINS ({path}) {what}")
