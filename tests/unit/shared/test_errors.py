"""What senders read: why a file was not accepted, and what they can do about it."""

import pickle

import pytest

from shared.errors import BadAttributes, BadBundle, OsteonError, Rejected


@pytest.mark.parametrize("kind", [BadBundle, Rejected, *Rejected.__subclasses__()], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("message", ["", "Rows is missing"])
def test_a_message_ends_with_its_hint_once(kind: type[OsteonError], message: str) -> None:
    """A message names the fault alone; the copy that a decoder's process sends says the same."""
    for hint in ("", "Send it in another transfer syntax."):
        wrong = kind(message, "Rows", hint)
        text = str(wrong)
        assert text.endswith(f". {hint or kind.hint}") and text.count(hint or kind.hint) == 1
        assert ".." not in text and text.startswith(message)
        copy = pickle.loads(pickle.dumps(wrong))
        assert (type(copy), str(copy), copy.cause) == (kind, text, wrong.cause)


def test_an_error_without_a_message_describes_itself() -> None:
    """Its class's docstring, with the hint behind it."""
    assert str(BadAttributes()).startswith("A required attribute is missing")
