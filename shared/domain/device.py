"""The UIDs by which Osteon names itself in what it makes: each model's device, all under one root.

An archive sends whole studies back, Osteon's own results with them. Whatever names a device under this root is one.
Source: PS3.3 C.7.5.1 (Device UID), PS3.5 B.2 (UIDs made of UUIDs).
"""

DEVICE_ROOT = "2.25.286150141833153097372385155788966512245"


def device_uid(sha256: str) -> str:
    """Name the device that a model bundle is.

    Args:
        sha256: of the bundle, hexadecimal.

    Returns:
        A UID of at most 64 characters, the same for the same bundle.
    """
    return f"{DEVICE_ROOT}.{int(sha256[:15], 16)}"


def is_own_device(uid: str) -> bool:
    """Whether a UID names Osteon, whatever its model."""
    return uid == DEVICE_ROOT or uid.startswith(f"{DEVICE_ROOT}.")
