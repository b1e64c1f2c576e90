"""Runs Orthanc, an open DICOM archive, as a peer for measurements and tests."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import MissingRequirement
from infra.embedded.process import Child, free_port, is_free, wait_until

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc on 127.0.0.1."""

    url: str
    dicom_port: int  # 0: it has no DICOM listener
    log: Path


@contextmanager
def orthanc(folder: Path, *, dicom: bool = False, **changes: Any) -> Iterator[Orthanc]:  # noqa: ANN401 - JSON
    """Run an Orthanc that flushes what it stores to the disk, with DICOMweb under /dicom-web/.

    Args:
        folder: where it keeps its files; a folder `orthanc` is made in it.
        dicom: whether it listens for DICOM associations too, under the AE title ORTHANC.
        **changes: options of its configuration file, in place of those here.

    Yields:
        The running Orthanc; it ends with the block.

    Raises:
        MissingRequirement: it is not installed.
        StackError: it does not start.
    """
    program = shutil.which("Orthanc")
    if program is None or not PLUGIN.exists():
        raise MissingRequirement("Orthanc with its DICOMweb plugin: apt-get install orthanc orthanc-dicomweb")
    port, dicom_port, home = free_port(), free_port() if dicom else 0, folder / "orthanc"
    home.mkdir()
    settings = {
        "Name": "PEER", "DicomAet": "ORTHANC", "StorageDirectory": str(home / "db"), "IndexDirectory": str(home / "db"),
        "Plugins": [str(PLUGIN)], "HttpPort": port, "DicomServerEnabled": dicom, "DicomPort": dicom_port or 4242,
        "AuthenticationEnabled": False, "SyncStorageArea": True, "KeepAlive": True, "HttpTimeout": 600,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (home / "orthanc.json").write_text(json.dumps(settings | changes))
    log = home / "orthanc.log"
    child = Child("Orthanc", [program, str(home / "orthanc.json")], log, {"PATH": "/usr/bin:/bin", "TZ": "UTC"})
    child.start()
    try:
        if not wait_until(lambda: not is_free(port) and (not dicom or not is_free(dicom_port)), 60):
            raise child.failure("did not listen within 60 s")
        yield Orthanc(f"http://127.0.0.1:{port}", dicom_port, log)
    finally:
        child.stop()
