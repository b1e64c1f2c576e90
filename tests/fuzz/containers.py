"""Hostile zip archives and multipart bodies."""

import io
import random
import struct
import zipfile
from collections.abc import Callable

from tests.fuzz import sound
from tests.fuzz.mutators import LONGS, SHORTS

DATE = (2026, 1, 1, 0, 0, 0)
NAMES = (
    "a.dcm", "../../evil.dcm", "/etc/passwd", "C:\\evil.dcm", "..\\..\\evil.dcm", "a/../../b", "", " ", ".", "..", "a\0b",
    "x" * 60_000, "a/" * 5000 + "b", "\u202efdp.mcd", "ZEBRA^QUAGGA.dcm", "con", "a\nb", "\x1b[31m", "DICOMDIR", "\ud7ff",
    "山田.dcm", "é.dcm", "//server/share", "~/.ssh/id", "a.zip",
)  # fmt: skip
SMALL = ("explicit-u1", "jpegls", "rle-u1", "deflated-u2")


def _zip(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    import warnings

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that occur twice
        for name, data in members:
            info = zipfile.ZipInfo(name, DATE)
            info.compress_type = method
            file.writestr(info, data)
    return out.getvalue()


def _sound_zip(rng: random.Random) -> bytes:
    names = rng.sample(SMALL, rng.randint(1, 3))
    return _zip(
        [(f"study/{n}.dcm", sound.content(n)) for n in names], rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))
    )


def flipped_zip(rng: random.Random) -> bytes:
    """Bits of an archive change: anywhere, in its first header, or in its directory."""
    data = bytearray(_sound_zip(rng))
    begin, end = rng.choice(
        ((0, len(data)), (0, 60), (max(0, data.find(b"PK\1\2")), len(data)), (len(data) - 22, len(data)))
    )
    for _ in range(rng.choice((1, 2, 5, 20))):
        at = rng.randrange(begin, end)
        data[at] = rng.choice((data[at] ^ 1 << rng.randrange(8), 0, 0xFF, rng.randrange(256)))
    return bytes(data)


def cut_zip(rng: random.Random) -> bytes:
    """An archive that was cut short, or has something before or behind it."""
    data = _sound_zip(rng)
    at = rng.randint(0, len(data))
    return rng.choice(
        (
            data[:at],
            data[: -rng.randint(1, 40)],
            data + rng.randbytes(50),
            data + data,
            b"PK\3\4" + data,
            data[:4] + data,
            data[:60] + data[at:],
        )
    )


def lying_directory(rng: random.Random) -> bytes:
    """Sizes, offsets, methods, flags or counts in the directory are not true."""
    data = bytearray(_sound_zip(rng))
    for _ in range(rng.randint(1, 3)):
        signature, fields = rng.choice((
            (b"PK\1\2", ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (38, 4), (42, 4))),
            (b"PK\3\4", ((6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))),
            (b"PK\5\6", ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
        ))  # fmt: skip
        place, width = rng.choice(fields)
        at = data.find(signature)
        if at >= 0 and at + place + width <= len(data):
            value = rng.choice((*LONGS, *SHORTS, 0x5, 0x9, 12, 14, 93, 99)) & ((1 << 8 * width) - 1)
            data[at + place : at + place + width] = value.to_bytes(width, "little")
    return bytes(data)


def odd_names(rng: random.Random) -> bytes:
    """Names that point elsewhere, are long, doubled, empty, or hold controls."""
    chosen = [rng.choice(NAMES) for _ in range(rng.randint(1, 6))]
    return _zip([(name, sound.content(rng.choice(SMALL))) for name in chosen])


def raw_names(rng: random.Random) -> bytes:
    """Names whose bytes are not in the encoding that the flags say."""
    data = bytearray(_zip([("n" * 12, sound.content("explicit-u1"))]))
    name = rng.choice((b"\xff\xfe\xed\xa0\x80" + b"\x80" * 7, rng.randbytes(12), b"\0" * 12, b"../../../../x"[:12]))
    for signature, flags, place in ((b"PK\3\4", 6, 30), (b"PK\1\2", 8, 46)):
        at = data.find(signature)
        if rng.random() < 0.8:
            data[at + place : at + place + 12] = name
        if rng.random() < 0.6:
            data[at + flags + 1] |= 8  # "UTF-8"
    return bytes(data)


def zip_bomb(rng: random.Random) -> bytes:
    """Members that swell, alone or many, or members that share one swelling piece of data."""
    how = rng.randrange(3)
    if how == 0:
        return _zip([("bomb.dcm", bytes(rng.choice((1, 10, 40)) * 2**20))])
    if how == 1:
        return _zip([(f"{n}.dcm", bytes(2**20)) for n in range(rng.choice((5, 30, 60)))])
    data = bytearray(_zip([(f"{n}", bytes(2**20)) for n in range(20)]))
    at = -1
    while (at := data.find(b"PK\1\2", at + 1)) >= 0:
        data[at + 42 : at + 46] = bytes(4)  # all point at the first
        if rng.random() < 0.5:
            data[at + 24 : at + 28] = struct.pack("<L", 5)  # and own up to a few bytes only
    return bytes(data)


def many_members(rng: random.Random) -> bytes:
    """More members than a request may have, empty or tiny."""
    return _zip([(f"{n}", rng.choice((b"", b"x"))) for n in range(rng.choice((40, 51, 400)))], zipfile.ZIP_STORED)


def nested_zip(rng: random.Random) -> bytes:
    """Archives within archives, folders, links."""
    data = _sound_zip(rng)
    for _ in range(rng.randint(1, 4)):
        data = _zip([("in.zip", data), ("dir/", b"")])
    return data


def other_methods(rng: random.Random) -> bytes:
    """bzip2 and LZMA members, whose expansion Python does not bound."""
    return _zip(
        [("a", bytes(5 * 2**20)), ("b", sound.content("explicit-u1"))],
        rng.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)),
    )


def odd_extra(rng: random.Random) -> bytes:
    """Extra fields, zip64 among them, that are cut short or lie."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        info = zipfile.ZipInfo("a.dcm", DATE)
        kind = rng.choice((1, 0x7075, 0x5455, 0xFFFF))
        body = rng.randbytes(rng.choice((0, 1, 8, 16, 24)))
        info.extra = struct.pack("<HH", kind if kind != 1 else 2, len(body)) + body
        file.writestr(info, sound.content("explicit-u1"))
    data = bytearray(out.getvalue())
    at = data.find(b"PK\1\2")
    start = at + 46 + 5
    data[start : start + 2] = struct.pack("<H", kind)
    if rng.random() < 0.7:
        data[start + 2 : start + 4] = struct.pack("<H", rng.choice(SHORTS))
    if rng.random() < 0.7:
        place = at + rng.choice((20, 24, 42))
        data[place : place + 4] = b"\xff" * 4
    return bytes(data)


def hostile_member(rng: random.Random) -> bytes:
    """A sound archive of files that are not."""
    from tests.fuzz.cases import damaged

    return _zip([(f"{n}.dcm", damaged(rng.getrandbits(40))) for n in range(rng.randint(1, 3))])


ARCHIVES: dict[str, Callable[[random.Random], bytes]] = {
    maker.__name__: maker
    for maker in (
        flipped_zip, cut_zip, lying_directory, odd_names, raw_names, zip_bomb, many_members, nested_zip, other_methods,
        odd_extra, hostile_member,
    )
}  # fmt: skip


# -- multipart -----------------------------------------------------------------------------------------------------

TYPES = (
    "multipart/form-data; boundary=edge", 'multipart/form-data; boundary="edge"', "multipart/form-data",
    "multipart/form-data; boundary=", "multipart/related; boundary=edge", "", "ZEBRA", "multipart/form-data; boundary=" + "e" * 5000,
    "multipart/form-data; boundary*=utf-8''edge", "multipart/form-data; boundary*=ZEBRA''%ff", "multipart/form-data; boundary=\xff",
    "multipart/form-data; boundary=edge; boundary=ZEBRA", 'multipart/form-data; boundary="edge', "multipart/form-data; boundary*0=ed; boundary*1=ge",
    "multipart/form-data;;;boundary=edge", "text/plain; boundary=edge",
)  # fmt: skip
DISPOSITIONS = (
    'form-data; name="files"; filename="a.dcm"', 'form-data; name="priority"', "form-data", "", "attachment; filename=a",
    'form-data; name="files"; filename="ZEBRA^QUAGGA"', 'form-data; name="files"; filename=""', "form-data; name=files; filename*=utf-8''%ff%fe",
    "form-data; name=files; filename*=ZEBRA''a", "form-data; name=files; filename*0*=utf-16''a; filename*1=b", 'form-data; name="files"; filename="\\"',
    'form-data; name="files"; filename="' + "x" * 5000 + '"', "form-data; name=files; filename*=utf-8''%ED%A0%80", 'form-data; filename="\xff\xfe"',
    'form-data; name="files"; filename="C:\\\\ZEBRA\\\\a.dcm"', "form-data; name*=idna''ZEBRA; filename*=rot13''a",
)  # fmt: skip


def sound_request(rng: random.Random) -> tuple[bytes, str]:
    """Files and fields as a client sends them."""
    body = b""
    for number in range(rng.randint(1, 3)):
        data = sound.content(rng.choice(SMALL))
        body += (
            b'--edge\r\nContent-Disposition: form-data; name="files"; filename="%d"\r\n\r\n' % number + data + b"\r\n"
        )
    body += b'--edge\r\nContent-Disposition: form-data; name="priority"\r\n\r\nurgent\r\n--edge--\r\n'
    return body, TYPES[0]


def flipped_request(rng: random.Random) -> tuple[bytes, str]:
    """Bytes of a request change, or it is cut."""
    body, kind = sound_request(rng)
    data = bytearray(body)
    for _ in range(rng.choice((0, 1, 3, 10))):
        data[rng.randrange(rng.choice((200, len(data))))] = rng.choice(
            (0, 10, 13, 34, 45, 58, 59, 0xFF, rng.randrange(256))
        )
    return bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))]), kind


def odd_type(rng: random.Random) -> tuple[bytes, str]:
    """Another Content-Type than the body's."""
    return sound_request(rng)[0], rng.choice(TYPES)


def odd_parts(rng: random.Random) -> tuple[bytes, str]:
    """Parts whose headers are odd, many, long, or not there."""
    body = b""
    for _ in range(rng.choice((1, 2, 20, 60))):
        header = b"Content-Disposition: " + rng.choice(DISPOSITIONS).encode("latin-1")
        extra = rng.choice(
            (
                b"",
                b"\r\nX: " + b"y" * rng.choice((1, 5000)),
                b"\r\nContent-Transfer-Encoding: base64",
                b"\r\n" * 3,
                b"\r\n: ZEBRA",
                b"\r\nX" * 2000 + b": 1",
            )
        )
        body += (
            b"--edge\r\n"
            + header
            + extra
            + b"\r\n\r\n"
            + rng.choice((b"", b"ZEBRA", bytes(6000), b"--edge", b"\r\n--edg"))
            + b"\r\n"
        )
    return body + rng.choice((b"--edge--\r\n", b"--edge", b"", b"--edge--ZEBRA")), TYPES[0]


REQUESTS: dict[str, Callable[[random.Random], tuple[bytes, str]]] = {
    maker.__name__: maker for maker in (sound_request, flipped_request, odd_type, odd_parts)
}
