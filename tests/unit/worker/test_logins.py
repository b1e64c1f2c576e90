"""Logins of STOW-RS services, from a file: what is shown, to whom alone, and what of a file is refused."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import OsteonError
from worker.delivery.logins import authorization

URL = "https://pacs.example/dicom-web"
TOKEN = "t0ken-of-the-archive"
WHOLE = f'[[login]]\ndestination = "PACS"\nurl = "{URL}"\n'


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "logins.toml"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_a_destination_is_shown_its_own_login(tmp_path: Path) -> None:
    """A token, or a user with a password; of the entry with its site, where several sites have the name."""
    path = written(
        tmp_path,
        f'{WHOLE}site = "south"\nbearer = "{TOKEN}"\n'
        f'{WHOLE}site = "north"\nuser = "osteon"\npassword = "pass:word ü"\n',
    )
    assert authorization(path, "south", "PACS", URL) == f"Bearer {TOKEN}"
    shown = authorization(path, "north", "PACS", URL)
    assert base64.b64decode(shown.removeprefix("Basic ")).decode() == "osteon:pass:word ü"
    assert authorization(path, "north", "OTHER", URL) == ""
    assert authorization(path, "west", "PACS", URL) == ""
    assert authorization(None, "north", "PACS", URL) == ""


def test_a_new_token_holds_at_once(tmp_path: Path) -> None:
    """The file is read each time."""
    for token in ("one", "two"):
        path = written(tmp_path, f'{WHOLE}bearer = "{token}"\n')
        assert authorization(path, "north", "PACS", URL) == f"Bearer {token}"


@pytest.mark.parametrize("url", ["https://evil.example/dicom-web", f"{URL}/other", "http://pacs.example/dicom-web"])
def test_a_login_goes_to_its_own_address_alone(tmp_path: Path, url: str) -> None:
    """Whoever may change the destination does not have the login sent elsewhere."""
    path = written(tmp_path, f'{WHOLE}bearer = "{TOKEN}"\n')
    with pytest.raises(OsteonError, match="another url") as told:
        authorization(path, "north", "PACS", url)
    assert TOKEN not in str(told.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'{WHOLE}bearer = "{TOKEN}', "is not TOML"),
        (f'[login]\nbearer = "{TOKEN}"', r"\[\[login\]\]"),
        (f'{WHOLE}bearer = "{TOKEN}"\n[other]\n', r"\[\[login\]\]"),
        (f'{WHOLE}bearer = "{TOKEN}"\nuser = "a"\npassword = "b"', "either bearer or user"),
        (WHOLE, "either bearer or user"),
        (f'{WHOLE}user = "a"', "lacks user or password"),
        (f'{WHOLE}user = "a:b"\npassword = "{TOKEN}"', "colon"),
        (f'{WHOLE}token = "{TOKEN}"', "other keys"),
        (f"{WHOLE}bearer = 7", "other keys"),
        (f'{WHOLE}bearer = ""', "empty"),
        (f'{WHOLE}bearer = "{TOKEN} two"', "printable ASCII"),
        (f'{WHOLE}bearer = "{TOKEN}\\r\\nX: y"', "printable ASCII"),
        (f'[[login]]\ndestination = "PACS"\nbearer = "{TOKEN}"', "lacks destination"),
        (f'[[login]]\ndestination = "PACS"\nurl = "http://pacs.example/"\nbearer = "{TOKEN}"', "in the clear"),
    ],
)
def test_a_file_that_is_not_whole_is_told_without_its_values(tmp_path: Path, text: str, words: str) -> None:
    """The message names the entry and the cure."""
    path = written(tmp_path, text)
    with pytest.raises(OsteonError, match=words) as told:
        authorization(path, "north", "PACS", URL)
    assert "OSTEON_DELIVERY_LOGINS" in str(told.value)
    assert TOKEN not in str(told.value)


def test_a_file_that_others_may_read_and_one_that_is_not_there_are_told(tmp_path: Path) -> None:
    """And one that is too large."""
    path = written(tmp_path, f'{WHOLE}bearer = "{TOKEN}"', mode=0o644)
    with pytest.raises(OsteonError, match="chmod 600"):
        authorization(path, "north", "PACS", URL)
    with pytest.raises(OsteonError, match="cannot be read: No such file"):
        authorization(tmp_path / "none", "north", "PACS", URL)
    with pytest.raises(OsteonError, match="larger"):
        authorization(written(tmp_path, "#" * (1 << 19)), "north", "PACS", URL)


def test_without_tls_a_login_goes_to_this_machine_alone(tmp_path: Path) -> None:
    """A proxy beside the process."""
    url = "http://127.0.0.1:8042/dicom-web"
    path = written(tmp_path, f'[[login]]\ndestination = "PACS"\nurl = "{url}/"\nbearer = "{TOKEN}"')
    assert authorization(path, "north", "PACS", url) == f"Bearer {TOKEN}"


@given(
    user=st.text(st.characters(exclude_characters=":\x00", exclude_categories=("Cs", "Cc")), min_size=1),
    password=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1),
)
def test_each_user_and_password_is_shown_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, user: str, password: str
) -> None:
    """RFC 7617: UTF-8, the first colon ends the user."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    text = f"{WHOLE}user = {quoted(user)}\npassword = {quoted(password)}\n"
    shown = authorization(written(tmp_path_factory.getbasetemp(), text), "north", "PACS", URL)
    assert base64.b64decode(shown.removeprefix("Basic ")).decode().split(":", 1) == [user, password]


def test_what_is_wrong_with_another_entry_is_no_matter(tmp_path: Path) -> None:
    """A destination that is shown nothing goes on, and so does one whose own entry is whole."""
    broken = f'[[login]]\ndestination = "OTHER"\nurl = "{URL}"\ntoken = "x"\n'
    path = written(tmp_path, f'{broken}{WHOLE}bearer = "{TOKEN}"\n')
    assert authorization(path, "north", "PACS", URL) == f"Bearer {TOKEN}"
    with pytest.raises(OsteonError, match="other keys"):
        authorization(path, "north", "OTHER", URL)
    path.chmod(0o644)
    assert authorization(path, "north", "THIRD", URL) == ""
    with pytest.raises(OsteonError, match="chmod 600"):
        authorization(path, "north", "PACS", URL)
