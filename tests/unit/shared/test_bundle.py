"""Bundles: what is saved is what is loaded, and nothing damaged is."""

import hashlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load, save

from shared.domain.manifest import Calibration, Manifest, read_manifest, title_and_key, title_of
from shared.errors import BadBundle
from shared.model.bundle import load_bundle, save_bundle
from shared.model.network import BoneNet
from shared.settings import ROOT

MANIFEST: dict[str, Any] = {
    "name": "test-1",
    "regions": ["hand", "elbow"],
    "input_size": 64,
    "calibration": Calibration(slope=1.25, offset=-0.5),
    "sensitive": 0.2,
    "specific": 0.6,
    "modalities": ["CR", "DX"],
    "least_region_probability": 0.4,
    "most_ood_score": 2.0,
    "hardware": 0.5,
    "heatmap_full": 0.6,
    "data": {"set": "none"},
    "metrics": {"auroc": [0.9, 0.8, 0.95], "kappa": None},
}


@pytest.fixture(scope="module")
def network() -> BoneNet:
    torch.manual_seed(1)
    return BoneNet(2).eval()


@pytest.fixture(scope="module")
def written(network: BoneNet, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    path = tmp_path_factory.mktemp("bundle") / "test-1.safetensors"
    sha256 = save_bundle(path, network, Manifest(**MANIFEST))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return path.read_bytes(), sha256


def with_metadata(content: bytes, **changes: str | None) -> bytes:
    """The same weights with metadata changed; None takes an entry out."""
    (length,) = struct.unpack_from("<Q", content)
    metadata = json.loads(content[8 : 8 + length])["__metadata__"] | changes
    return save(load(content), {key: value for key, value in metadata.items() if value is not None})


def with_manifest(content: bytes, text: str) -> bytes:
    """The same weights with another manifest, whose digest is right."""
    return with_metadata(content, manifest=text, manifest_sha256=hashlib.sha256(text.encode()).hexdigest())


def test_loaded_is_what_was_saved(network: BoneNet, written: tuple[bytes, str]) -> None:
    """A bundle comes back with its manifest, and answers as the network does once its weights are fp16."""
    content, sha256 = written
    loaded, manifest = load_bundle(content, sha256)
    assert manifest == Manifest(**MANIFEST) == load_bundle(content)[1]
    assert not loaded.training
    halved = BoneNet(2).eval()
    halved.load_state_dict(
        {k: v.half().float() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    )
    pixels = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        for one, other in zip(loaded(pixels), halved(pixels), strict=True):
            torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_keys_of_before_are_read_as_those_of_today(written: tuple[bytes, str]) -> None:
    """A bundle written before 0.2.0 counts films and says strangeness; whoever reads it sees the keys of today."""
    figures = {"films": 8, "fractured": 3, "groups": {"films": {"films": 4}, "hand": {"films": 5, "fractured": 1}}}
    told = Manifest(**MANIFEST).model_dump() | {"metrics": figures}
    told["most_strangeness"] = told.pop("most_ood_score") + 1
    old = with_manifest(written[0], json.dumps(told))
    expected = {
        "radiographs": 8,
        "fractured": 3,
        "groups": {"films": {"radiographs": 4}, "hand": {"radiographs": 5, "fractured": 1}},
    }
    assert load_bundle(old)[1].metrics == expected
    assert load_bundle(old)[1].most_ood_score == Manifest(**MANIFEST).most_ood_score + 1
    assert read_manifest(io.BytesIO(old), len(old)).metrics == expected


@pytest.mark.parametrize(
    ("name", "manifest", "title", "both"),
    [
        ("second-look-2", {}, "Osteon FracAtlas 2", "Osteon FracAtlas 2 (second-look-2)"),
        ("second-look", {"title": ""}, "Osteon FracAtlas 1", "Osteon FracAtlas 1 (second-look)"),
        ("mine", {"title": "Wards 2026"}, "Wards 2026", "Wards 2026 (mine)"),
        ("mine", {}, "mine", "mine"),
    ],
)
def test_people_see_a_models_title(name: str, manifest: dict[str, str], title: str, both: str) -> None:
    """The manifest's, that of a bundle shipped before manifests had one, or the key; reports name the key beside it."""
    assert (title_of(name, manifest), title_and_key(name, manifest)) == (title, both)


def test_sha256_is_the_files(written: tuple[bytes, str]) -> None:
    """The returned digest is that of the file, and another one is refused before anything is parsed."""
    content, sha256 = written
    assert sha256 == hashlib.sha256(content).hexdigest()
    with pytest.raises(BadBundle, match="sha256 differs"):
        load_bundle(content, "0" * 64)


def test_what_is_read_without_the_weights_is_the_same(written: tuple[bytes, str]) -> None:
    """The manifest alone, as the API reads it without torch, and the shipped bundle's too."""
    assert read_manifest(io.BytesIO(written[0]), len(written[0])) == Manifest(**MANIFEST)
    shipped = ROOT / "training/bundles/second-look.safetensors"
    with shipped.open("rb") as file:
        assert read_manifest(file, shipped.stat().st_size).name == "second-look-2"


def refused(content: bytes, words: str = ".", *, weights_only: bool = False) -> None:
    """Whoever reads it refuses it; weights_only: whoever loads the weights."""
    with pytest.raises(BadBundle, match=words):
        load_bundle(content)
    if not weights_only:
        with pytest.raises(BadBundle, match=words):
            read_manifest(io.BytesIO(content), len(content))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999999])
def test_damaged_weight_is_refused(written: tuple[bytes, str], share: float) -> None:
    """One flipped bit anywhere among the weights is found without knowing the file's digest."""
    content = bytearray(written[0])
    (length,) = struct.unpack_from("<Q", content)
    first = 8 + length
    content[first + int((len(content) - first - 1) * share)] ^= 1
    refused(bytes(content), "damaged")


def test_damaged_manifest_is_refused_wherever(written: tuple[bytes, str]) -> None:
    """No character of the manifest can change unnoticed: a wrong threshold would misjudge every study."""
    content = written[0]
    (length,) = struct.unpack_from("<Q", content)
    escaped = json.dumps(json.loads(content[8 : 8 + length])["__metadata__"]["manifest"])[1:-1].encode()
    first = content.index(escaped)
    for place in range(first, first + len(escaped)):
        damaged = bytearray(content[: 8 + length])
        damaged[place] ^= 1
        refused(bytes(damaged))


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 5000, -1])
def test_cut_short_is_refused(written: tuple[bytes, str], keep: int) -> None:
    """A download that broke off is no bundle, wherever it broke."""
    refused(written[0][:keep])


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_random_bytes_are_refused(content: bytes) -> None:
    """Any bytes that are no bundle end in BadBundle, never in another error."""
    refused(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
HEADERS = JSON | st.fixed_dictionaries({"__metadata__": JSON | st.fixed_dictionaries({"manifest": JSON})})


@given(HEADERS)
@settings(deadline=None)
def test_strange_headers_are_refused(header: object) -> None:
    """A file with a well-formed length and any JSON as header ends in BadBundle too."""
    text = json.dumps(header).encode()
    refused(struct.pack("<Q", len(text)) + text)


@given(JSON | st.text())
@settings(deadline=None)
def test_strange_manifests_are_refused(manifest: object) -> None:
    """A manifest that is any other JSON, or none, ends in BadBundle though its digest is right."""
    described = manifest if isinstance(manifest, str) else json.dumps(manifest)
    digest = hashlib.sha256(described.encode(errors="replace")).hexdigest()
    text = json.dumps({"__metadata__": {"manifest": described, "manifest_sha256": digest}}).encode()
    refused(struct.pack("<Q", len(text)) + text)


def test_deep_nesting_is_refused() -> None:
    """A header of a hundred thousand brackets does not exhaust the stack."""
    text = b"[" * 100_000
    refused(struct.pack("<Q", len(text)) + text)


def test_foreign_safetensors_are_refused() -> None:
    """Weights of another program are told apart from a damaged bundle's."""
    refused(save({"weight": torch.zeros(3)}))
    refused(save({"weight": torch.zeros(3)}, {"format": "pt"}), "no Osteon model bundle")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "vit"}, "Architecture vit"),
        ({"format": "osteon-bundle-9"}, "format osteon-bundle-9"),
        ({"low_percentile": 2.0}, "intensity window"),
        ({"regions": ["hand", "elbow", "hip"]}, "do not fit"),
        ({"name": "../evil"}, "name"),
        ({"input_size": 100}, "input_size"),
        ({"mismatch": 1}, "mismatch"),
    ],
)
def test_unknown_kinds_are_refused_by_name(written: tuple[bytes, str], changes: dict[str, Any], words: str) -> None:
    """A sound file that this version cannot serve is refused, and the message says what it does not know."""
    manifest = json.loads(Manifest(**MANIFEST).model_dump_json()) | changes
    refused(with_manifest(written[0], json.dumps(manifest)), words, weights_only=words == "do not fit")


@pytest.mark.parametrize("missing", ["manifest", "manifest_sha256", "weights_sha256"])
def test_missing_digest_is_refused(written: tuple[bytes, str], missing: str) -> None:
    """A bundle that lost a digest is not taken on trust."""
    refused(with_metadata(written[0], **{missing: None}))


@pytest.mark.parametrize("name", ["My Model", "", "-a", "a/b", "a" * 65, "a\n"])
def test_unusable_name_is_refused_when_written(name: str) -> None:
    """No bundle can be written under a name that would be refused when it is read."""
    with pytest.raises(ValidationError):
        Manifest(**(MANIFEST | {"name": name}))


def test_weights_that_fp16_cannot_hold_are_not_written(tmp_path: Path) -> None:
    """A weight over fp16's range would answer with no number at all, so the bundle is not written."""
    network = BoneNet(2)
    with torch.no_grad():
        network.heads.fracture.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"heads\.fracture\.weight"):
        save_bundle(tmp_path / "bad.safetensors", network, Manifest(**MANIFEST))
    assert not list(tmp_path.iterdir())
