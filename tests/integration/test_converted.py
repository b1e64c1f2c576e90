"""A kept network is the network, whatever happens to the folder it is kept in."""

import logging
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.model import converted as module
from shared.model.bundle import load_bundle
from shared.model.converted import MAX_KEPT_NETWORKS, convert_or_read
from shared.model.engines import EngineOutput, openvino_engine
from shared.settings import ROOT, Settings
from tests.pace import LIMIT_S

openvino = pytest.importorskip("openvino")


class Scaled(torch.nn.Module):
    """A network that multiplies."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor([factor]))

    def in_openvino(self, size: int) -> Any:
        """The same, converted by hand, for torch takes a second to export even this; all fields are the product."""
        ops = openvino.opset13
        pixels = ops.parameter([-1, 1, size, size], np.uint8, "pixels")
        product = ops.multiply(ops.convert(pixels, "f32"), ops.constant(self.factor.detach().numpy()))
        return openvino.Model([ops.result(product) for _ in EngineOutput._fields], [pixels])


SQUARES = np.full((3, 8, 8), 10, np.uint8)


def said(factor: float, folder: Path) -> float:
    """What the network of this factor says of SQUARES, through the folder."""
    network: Any = Scaled(factor)  # a stand-in for a BoneNet
    return float(openvino_engine(network, 8, folder)(SQUARES).fracture.mean())


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The squares' sides of all networks that were converted."""
    sides: list[int] = []
    convert = module._convert

    def counted(network: Any, size: int) -> Any:
        sides.append(size)
        return network.in_openvino(size) if isinstance(network, Scaled) else convert(network, size)

    monkeypatch.setattr(module, "_convert", counted)
    return sides


@pytest.mark.slow
def test_the_shipped_network_says_the_same_to_the_bit(tmp_path: Path, conversions: list[int]) -> None:
    """Fresh, kept, and read again by a second worker, which converts nothing; for batches of several sizes."""
    network, manifest = load_bundle(Settings().bundle_path.read_bytes())
    size = manifest.input_size
    squares = np.random.default_rng(0).integers(0, 256, (3, size, size), np.uint8)
    engines = [openvino_engine(network, size), *(openvino_engine(network, size, tmp_path / "cache") for _ in range(2))]
    assert conversions == [size, size]
    for batch in (squares[:1], squares):
        fresh, first, again = (engine(batch) for engine in engines)
        for mine in (first, again):
            for name, one, other in zip(mine._fields, mine, fresh, strict=True):
                np.testing.assert_array_equal(one, other, err_msg=name)


def test_networks_are_told_apart(tmp_path: Path, conversions: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """By weight, by the square's side, and by the version of what converts them."""
    network: Any = Scaled(2.0)
    assert [said(factor, tmp_path) for factor in (2.0, 3.0, 2.0)] == [20.0, 30.0, 20.0]
    assert len(conversions) == 2
    convert_or_read(network, 16, tmp_path)
    monkeypatch.setattr(openvino, "__version__", "another")
    convert_or_read(network, 8, tmp_path)
    assert conversions == [8, 8, 16, 8]


@pytest.mark.parametrize("name", ["network.bin", "network.xml", "sha256"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_one_is_made_anew(
    tmp_path: Path, conversions: list[int], caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    """A changed bit would change findings: it is noticed, whichever file it is in, and mended."""
    assert said(2.0, tmp_path) == 20.0
    (file,) = tmp_path.glob(f"*/{name}")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flipped" else content[:-1])
    with caplog.at_level(logging.WARNING):
        assert [said(2.0, tmp_path), said(2.0, tmp_path)] == [20.0, 20.0]
    assert conversions == [8, 8], "mended once, then used"
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "converted network discarded"
    ]


@pytest.mark.usefixtures("conversions")
@pytest.mark.parametrize("why", ["a file", "read-only", "full"])
def test_a_useless_folder_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """The network runs; the log says what is wrong."""
    folder = tmp_path / "cache"
    if why == "a file":
        folder.write_text("a file")
    elif why == "read-only":
        monkeypatch.setattr("tempfile.mkdtemp", refuse)
    else:
        monkeypatch.setattr(openvino, "save_model", fill)
    with caplog.at_level(logging.WARNING):
        assert [said(2.0, folder), said(3.0, folder)] == [20.0, 30.0]
    assert "converted network not kept" in caplog.text
    assert why == "a file" or not list(folder.iterdir())


def refuse(**_: object) -> None:
    raise PermissionError(13, "Permission denied")


def fill(_model: object, path: Path, **_more: object) -> None:
    path.write_text("half of it")
    raise RuntimeError("no space left")


def test_the_folder_stays_small(tmp_path: Path, conversions: list[int]) -> None:
    """The newest few stay; used ones count as new; what a killed worker left half-written goes too."""
    (tmp_path / "partial-of-a-killed-one").mkdir()
    for age, factor in enumerate(range(1, MAX_KEPT_NETWORKS + 1)):
        said(float(factor), tmp_path)
        for path in tmp_path.iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 100 * (age + 1)))
    said(1.0, tmp_path)
    said(99.0, tmp_path)
    assert len(list(tmp_path.iterdir())) == MAX_KEPT_NETWORKS
    conversions.clear()
    said(1.0, tmp_path)
    assert not conversions, "it was used lately"
    said(2.0, tmp_path)
    assert conversions == [8], "it was not"


def test_workers_may_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several that convert the same network at the same time each gets it, and one is kept."""
    together = threading.Barrier(3, timeout=LIMIT_S)

    def slow(network: Any, size: int) -> Any:
        together.wait()
        return network.in_openvino(size)

    monkeypatch.setattr(module, "_convert", slow)
    with ThreadPoolExecutor(3) as pool:
        outputs = list(pool.map(said, [2.0] * 3, [tmp_path] * 3))
    assert outputs == [20.0] * 3
    (kept,) = tmp_path.iterdir()
    assert {path.name for path in kept.iterdir()} == {"network.bin", "network.xml", "sha256"}


MANY_AT_ONCE = """
    import sys, threading
    from pathlib import Path
    import numpy, shared.model.converted
    from tests.integration.test_converted import SQUARES, Scaled
    from shared.model.engines import openvino_engine
    shared.model.converted._convert = None  # it is kept
    engine = openvino_engine(Scaled(2.0), 8, Path(sys.argv[1]))
    sys.setswitchinterval(1e-6)
    together, outputs = threading.Barrier(8), []
    def ask():
        together.wait()
        outputs.append(float(engine(SQUARES).fracture.mean()))
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(outputs == [20.0] * 8)
"""


@pytest.mark.usefixtures("conversions")
def test_streams_may_begin_at_once(tmp_path: Path) -> None:
    """A worker that converted nothing has shown OpenVINO no array yet; its streams do so at the same moment, and go on.

    OpenVINO's bindings stood still there for ever, in five of six tries.
    """
    said(2.0, tmp_path)
    command = [sys.executable, "-c", textwrap.dedent(MANY_AT_ONCE), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.stdout == "True\n", done.stderr
