"""A whole running system as the programs of a hospital see it: by AE title and port, and by DICOMweb."""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_auth
from requests.auth import AuthBase
from requests.models import PreparedRequest
from sqlalchemy import func, select

from shared.db.engine import Database
from tests.conftest import System
from tests.pace import limit_s

TITLE = "OSTEON"
Uids = tuple[str, str, str]  # of study, series and instance


class Bearer(AuthBase):
    """The header that shows a key."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """Add it to a request."""
        r.headers["Authorization"] = f"Bearer {self.key}"
        return r


class Site:
    """The system's only site, from outside."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.dicomweb = f"{system.api_url}/dicom-web"
        self.host, _, port = system.stack.urls["dicom"].partition(":")
        self.port = int(port)

    def admit(self, *titles: str) -> None:
        """Let callers of these AE titles send."""
        with self.system.client() as client:
            known = {peer["calling_ae"] for peer in client.get("/api/v1/dicom-peers")}
            for title in sorted(set(titles) - known):
                client.post("/api/v1/dicom-peers", {"calling_ae": title, "address": self.host})

    def call(self, program: str, *arguments: str | Path) -> str:
        """Run one of dcmtk's clients, under its name as AE title; returns what it said."""
        self.admit(program.upper())
        command = [program, "-v", "-aet", program.upper(), "-aec", TITLE, self.host, str(self.port)]
        return said(*command, *map(str, arguments))

    @contextmanager
    def web(self, role: str = "radiologist") -> Iterator[DICOMwebClient]:
        """dicomweb-client with the key of a role."""
        session = create_session_from_auth(Bearer(self.system.keys[role]))
        session.trust_env = False
        with session:
            yield DICOMwebClient(self.dicomweb, session)

    def instances(self, **wanted: str) -> Counter[Uids]:
        """What QIDO-RS finds: UIDs of instances, each as often as it is listed."""
        with self.web() as client:
            found = client.search_for_instances(search_filters=wanted)
        tags = ("0020000D", "0020000E", "00080018")
        return Counter((one[tags[0]]["Value"][0], one[tags[1]]["Value"][0], one[tags[2]]["Value"][0]) for one in found)

    def count(self, table: Any, *where: Any) -> int:
        """Count rows of a table."""
        database = Database(self.system.stack.urls["database"], 1)
        try:
            with database.transaction() as session:
                return int(session.scalar(select(func.count()).select_from(table).where(*where)) or 0)
        finally:
            database.close()


def said(*command: str) -> str:
    """Run a program; returns all that it said, whatever its exit status."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s(120), check=False,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    return done.stdout.decode(errors="replace")
