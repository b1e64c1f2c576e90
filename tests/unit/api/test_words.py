"""The model in plain language."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.pages.words import ABSTENTIONS, model_words, plain_scope
from shared.findings import IN_SCOPE
from shared.settings import ROOT
from shared.vision.bundle import load_bundle
from shared.vision.reader import Look


def scopes() -> Iterator[str]:
    """Every reason that the reader can give for an abstention, as its source has them."""
    tree = ast.parse((ROOT / "shared/vision/reader.py").read_text())
    (function,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "_scope"]
    told = [n.value for n in ast.walk(function) if isinstance(n, ast.Return)]
    for value in told:
        if isinstance(value, ast.Constant):
            yield str(value.value)
        elif isinstance(value, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in value.values)
    yield from (str(look) for look in Look if look != Look.USUAL)


def test_every_abstention_has_plain_words() -> None:
    """No reason that the reader gives is left without an explanation, and no explanation is for nothing."""
    found = list(scopes())
    assert len(found) == len(ABSTENTIONS)
    assert all(plain_scope(scope) for scope in found), [scope for scope in found if not plain_scope(scope)]
    assert plain_scope(IN_SCOPE) == ""


def test_the_shipped_bundle_in_words() -> None:
    """Rates are told of 100 films each, with intervals the right way round."""
    path: Path = ROOT / "training/bundles/second-look.safetensors"
    _, manifest = load_bundle(path.read_bytes())
    words = model_words("second-look", manifest.model_dump())
    assert words.rates == [
        (
            "Of 100 fractured films it calls 98 possible or likely (94 to 100), and of 100 sound ones 55 too "
            "(49 to 60): dotted line."
        ),
        "Of 100 fractured films it calls 73 likely (54 to 87), and of 100 sound ones 4 too (2 to 6): solid line.",
    ]
    assert "hand, elbow, shoulder, hip and leg" in words.tried_on
    assert "CR, DX, RG or OT" in words.tried_on
    assert "703 films" in words.tried_on


@pytest.mark.parametrize("manifest", [{}, {"regions": ["hand"]}, {"metrics": {"films": 0}}])
def test_a_bundle_that_was_not_measured_says_no_rates(manifest: dict[str, Any]) -> None:
    """What a manifest does not tell is not made up."""
    assert model_words("bare", manifest).rates == []
