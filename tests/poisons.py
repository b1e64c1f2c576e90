"""A decoder that does what a broken codec can do, for images whose comments ask for it."""

import ctypes
import io
import os
import time

import numpy as np

from shared.storage import original_key
from worker import decoding

sound = decoding.decode


def decode(job: decoding.Job) -> decoding.Decoded:
    """As worker.decoding.decode, in whose place tests put it."""
    assert decoding._bench is not None
    assert decoding._bench.store is not None
    content = decoding._bench.store.get(original_key(job.sha256))
    if b"poison: abort" in content:
        os.abort()
    if b"poison: hang" in content:
        ctypes.PyDLL(None).sleep(3600)  # in C, with the interpreter's lock held
    if b"poison: eight gigabytes" in content:
        np.ones(2**30)
    return sound(job)


BEGUN = "begun/one"  # in a directory store


def slowly(job: decoding.Job) -> decoding.Decoded:
    """As `decode`; says that it began, and takes its time."""
    number = str(os.getpid()).encode()
    assert decoding._bench is not None
    assert decoding._bench.store is not None
    decoding._bench.store.put(BEGUN, io.BytesIO(number), len(number))
    time.sleep(1.5)
    return sound(job)


def abort(_job: decoding.FilmJob) -> None:
    """In the place of worker.decoding.make_film."""
    os.abort()
