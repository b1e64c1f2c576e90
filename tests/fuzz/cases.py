"""Cases by name: a line of text says how a hostile input is made, so that any one can be made again.

explicit-u2|odd_geometry@17|cut_file@3     a sound file, then mutators, each with the seed of its rng
archive|zip_bomb@5                         a maker of archives
request|odd_parts@9                        a maker of multipart bodies
broken|text.dcm                            a published file that is broken on purpose
corpus|half-a-character.dcm                a kept file
probe|hang                                 something that must not happen, to see that it would be seen
"""

import random
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz import containers, mutators, sound

CORPUS = Path(__file__).parent / "corpus"  # inputs that once did what must not happen


def one(number: int) -> str:
    """The case with this number."""
    rng = random.Random(number)
    what = rng.random()
    if what < 0.08:
        return f"archive|{rng.choice(sorted(containers.ARCHIVES))}@{rng.getrandbits(32)}"
    if what < 0.11:
        return f"request|{rng.choice(sorted(containers.REQUESTS))}@{rng.getrandbits(32)}"
    return damage(rng)


def damage(rng: random.Random) -> str:
    """A sound file and one to three mutators."""
    steps = [rng.choice(sorted(mutators.ALL)) for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))]
    steps.sort(key=lambda step: next(i for i, level in enumerate(mutators.LEVELS) if step in level))
    picky = [step for step in steps if step in mutators.ONLY]
    names = sorted(name for name in sound.MAKERS if not picky or name.startswith(mutators.ONLY[picky[0]]))
    small = [name for name in names if not name.startswith("sample")]
    base = rng.choice(names)
    if base not in small and rng.random() < 0.6:  # large, hence slow
        base = rng.choice(small)
    return "|".join([base, *(f"{step}@{rng.getrandbits(32)}" for step in steps)])


def damaged(number: int) -> bytes:
    """A damaged file that follows from a number."""
    made = make(damage(random.Random(number)))
    assert isinstance(made, bytes)
    return made


def make(case: str) -> bytes | tuple[bytes, str]:
    """The input that a case names: a file's bytes, or a body with its content type."""
    base, *steps = case.split("|")
    if base == "broken":
        return sound.broken_samples()[steps[0]]
    if base == "corpus":
        return (CORPUS / steps[0]).read_bytes()
    if base in ("archive", "request"):
        name, seed = steps[0].split("@")
        rng = random.Random(int(seed))
        return containers.ARCHIVES[name](rng) if base == "archive" else containers.REQUESTS[name](rng)
    specimen = sound.specimen(base)
    for step in steps:
        name, seed = step.split("@")
        mutators.ALL[name](specimen, random.Random(int(seed)))
    return specimen.file_bytes()


def names(case: str) -> list[str]:
    """The mutators of a case."""
    base, *steps = case.split("|")
    return (
        [step.split("@")[0] for step in steps]
        if base not in ("archive", "request", "broken", "corpus", "probe")
        else [f"{base} {steps[0].split('@')[0]}"]
    )


def sound_ones() -> Iterator[str]:
    """Every sound file, unchanged."""
    yield from sound.MAKERS


def broken_ones() -> Iterator[str]:
    """Every published file that is broken on purpose."""
    yield from (f"broken|{name}" for name in sound.broken_samples())


def kept_ones() -> Iterator[str]:
    """Every file of the corpus."""
    yield from (f"corpus|{path.name}" for path in sorted(CORPUS.iterdir()))
