"""Radiographs like those of a hospital: real radiographs at a detector's size, 12 bits deep, with its noise."""

import functools
import io
import itertools

import cv2
import numpy as np
import numpy.typing as npt

from samples.objects import SYNTAX, pattern_image, set_pixels, to_bytes, uid
from shared.pixels.decode import open_pixels
from shared.settings import ROOT
from shared.storage import Store, original_key, sha256_of

ROWS, COLUMNS = 2500, 2000
NOISE = 8.0  # standard deviation, of 4095


@functools.cache
def _sources() -> list[npt.NDArray[np.float32]]:
    """Load some sample radiographs, (ROWS, COLUMNS) float32 in 0..1."""
    found = []
    for path in itertools.islice(sorted((ROOT / "samples/studies").rglob("*.dcm")), 6):
        image = open_pixels(path.read_bytes()).frame(0)
        low, high = np.percentile(image, (0.5, 99.5))
        scaled = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
        found.append(np.asarray(cv2.resize(scaled, (COLUMNS, ROWS), interpolation=cv2.INTER_CUBIC), np.float32))
    return found


def radiograph(number: int, encoding: str) -> bytes:
    """Make one radiograph as a DICOM file.

    Args:
        number: chooses the sample radiograph and the noise.
        encoding: a key of `samples.objects.SYNTAX`.

    Returns:
        The file, of (ROWS, COLUMNS) and 12 bits.
    """
    rng, sources = np.random.default_rng(number), _sources()
    image = sources[number % len(sources)] * 3500 + rng.normal(0, NOISE, (ROWS, COLUMNS)).astype(np.float32)
    ds = pattern_image(1, f"radiograph/{encoding}/{number}")
    ds.StudyInstanceUID = uid(f"radiograph/{encoding}/{number}")
    set_pixels(ds, [np.clip(image, 0, 4095).astype(np.uint16)], 12, encoding)
    return to_bytes(ds, SYNTAX[encoding])


def stored(store: Store, count: int, encoding: str) -> list[str]:
    """Put radiographs into the store.

    Args:
        store: may be empty.
        count: how many.
        encoding: a key of `samples.objects.SYNTAX`.

    Returns:
        Their sha256, in order.
    """
    digests = []
    for number in range(count):
        content = radiograph(number, encoding)
        digests.append(sha256_of(content))
        store.put(original_key(digests[-1]), io.BytesIO(content), len(content))
    return digests
