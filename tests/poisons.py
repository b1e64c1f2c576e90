"""A decoder that does what a broken codec can do, for images whose comments ask for it."""

import ctypes
import io
import os
import time

import numpy as np

from shared.pixels.tensors import UInt8Image
from shared.storage import original_key
from worker import decoder_pool

sound, sound_picture = decoder_pool.decode, decoder_pool.make_picture


def decode(job: decoder_pool.Job) -> decoder_pool.DecodedImage:
    """As worker.decoder_pool.decode, in whose place tests put it."""
    _poisoned(job.sha256)
    return sound(job)


def _poisoned(sha256: str) -> None:
    assert decoder_pool._state is not None
    assert decoder_pool._state.store is not None
    content = decoder_pool._state.store.get(original_key(sha256))
    if b"poison: abort" in content:
        os.abort()
    if b"poison: hang" in content:
        ctypes.PyDLL(None).sleep(3600)  # in C, with the interpreter's lock held
    if b"poison: eight gigabytes" in content:
        np.ones(2**30)


def make_picture(job: decoder_pool.PictureJob) -> UInt8Image:
    """In the place of worker.decoder_pool.make_picture."""
    _poisoned(job.sha256)
    return sound_picture(job)


BEGUN = "begun/one"  # in a directory store


def slowly(job: decoder_pool.Job) -> decoder_pool.DecodedImage:
    """As `decode`; says that it began, and takes its time."""
    number = str(os.getpid()).encode()
    assert decoder_pool._state is not None
    assert decoder_pool._state.store is not None
    decoder_pool._state.store.put(BEGUN, io.BytesIO(number), len(number))
    time.sleep(1.5)
    return sound(job)


def abort(_job: decoder_pool.FrameJob) -> None:
    """In the place of worker.decoder_pool.make_frame."""
    os.abort()
