"""OHIF's built distribution, as npm has it: fetched once into the user's cache, never part of this repository."""

import base64
import hashlib
import http.client
import http.server
import json
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from shared.settings import ROOT
from tests.pace import limit_s

PACKAGE, VERSION = "@ohif/app", "3.12.10"
INTEGRITY = "sha512-0kuF66Mq9c9dMD++bUsTjMrJpXJwaZhz9B4uS244DawAjSkTwIYFU93pxPuRUQixaRi7QAHlF3Fe1qudBlZrmA=="
CACHE = Path.home() / ".cache/osteon-tests"
# OHIF's services are kept where the test finds them; where it has a key, it shows it by one of them
CONFIG = """
window.config = {
  routerBasename: '/', showStudyList: true, modes: [], customizationService: {},
  showWarningMessageForCrossOrigin: false, investigationalUseDialog: { option: 'never' }, maxNumberOfWebWorkers: 1,
  extensions: [{
    id: 'reader',
    preRegistration({ servicesManager }) {
      window.services = servicesManager.services;
      const authorization = %(authorization)s;
      if (authorization) window.services.userAuthenticationService.setServiceImplementation({
        getAuthorizationHeader: () => ({ Authorization: authorization }),
      });
    },
  }],
  defaultDataSourceName: 'osteon',
  dataSources: [%(source)s],
};
"""
ELSEWHERE = """{
  namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'osteon',
  configuration: {
    friendlyName: 'Osteon', name: 'osteon', qidoRoot: %(root)s, wadoRoot: %(root)s, wadoUriRoot: %(root)s,
    qidoSupportsIncludeField: true, supportsReject: false, supportsFuzzyMatching: false, supportsWildcard: true,
    imageRendering: 'wadors', thumbnailRendering: 'wadors', enableStudyLazyLoad: true, staticWado: false,
    singlepart: 'bulkdata,video', bulkDataURI: { enabled: true, relativeResolution: 'studies' },
  },
}"""
PAGE = ROOT / "docs/send/dicomweb.md"


def distribution() -> Path:
    """The folder with OHIF's pages. Raises AssertionError, with the reason, where npm does not give the package."""
    folder = CACHE / f"ohif-{VERSION}"
    if not folder.is_dir():
        assert shutil.which("npm"), "npm is missing, which fetches OHIF: apt-get install --no-install-recommends npm"
        CACHE.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}", "--pack-destination", str(CACHE)],
            capture_output=True, text=True, timeout=limit_s(300), check=False,
        )  # fmt: skip
        packed = CACHE / f"ohif-app-{VERSION}.tgz"
        assert packed.exists(), f"npm does not give {PACKAGE} {VERSION}: {done.stderr[-500:]}"
        digest = base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
        assert f"sha512-{digest}" == INTEGRITY, f"{PACKAGE} {VERSION} is not the one that was tested"
        unpacked = CACHE / f"ohif-{VERSION}.new"
        shutil.rmtree(unpacked, ignore_errors=True)
        with tarfile.open(packed) as archive:
            archive.extractall(unpacked, filter="data")
        packed.unlink()
        (unpacked / "package/dist").rename(folder)
        shutil.rmtree(unpacked)
    return folder


class PassedOn(NamedTuple):
    """What the proxy has passed on."""

    path: str
    status: int
    content_type: str
    body: bytes


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the pages; addresses of the viewer are all the one page. It may be the proxy before a DICOMweb service."""

    config = b""
    service: int | None = None  # port of the service that stands under /dicom-web here
    key = ""
    passed_on: list[PassedOn]  # of all requests

    def do_GET(self) -> None:
        """A file, the configuration, the page, or what the service answers."""
        path = self.path.partition("?")[0]
        if self.service is not None and path.startswith("/dicom-web/"):
            self._pass_on(self.service)
            return
        if path == "/app-config.js":
            self.send_response(200)
            self.send_header("Content-Type", "text/javascript")
            self.send_header("Content-Length", str(len(self.config)))
            self.end_headers()
            self.wfile.write(self.config)
            return
        if not Path(self.translate_path(path)).is_file():
            self.path = "/index.html"
        super().do_GET()

    def _pass_on(self, port: int) -> None:
        """Ask the service with the key, as a proxy does that knows who the reader is; its headers stay as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit_s(60))
        headers = {"Accept": self.headers.get("Accept", "*/*"), "Authorization": f"Bearer {self.key}"}
        connection.request("GET", self.path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        super().end_headers()
        self.passed_on.append(PassedOn(self.path, answer.status, answer.getheader("Content-Type", ""), body))
        self.wfile.write(body)
        connection.close()

    def end_headers(self) -> None:
        """As OHIF asks for it: the page is isolated from others."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serving(port: int, root: str, key: str) -> AbstractContextManager[str]:
    """Serve OHIF at a port of 127.0.0.1 for the DICOMweb service at `root`, with a reader's key; yields its origin."""
    return _serving(port, ELSEWHERE % {"root": json.dumps(root)}, json.dumps(f"Bearer {key}"))


def serving_behind_one_proxy(
    port: int, service: int, key: str, singlepart: str, passed_on: list[PassedOn]
) -> AbstractContextManager[str]:
    """Serve OHIF as docs/send/dicomweb.md configures it: the service is of the same origin, and the proxy has the key.

    Args:
        port: of 127.0.0.1, at which both stand.
        service: port of the DICOMweb service behind it.
        key: a reader's.
        singlepart: what OHIF is told to take without parts, if anything.
        passed_on: what the service has answered is added to it.

    Returns:
        A block with its origin.
    """
    (source,) = re.findall(r"^```js\n(.*?),?\n```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    if singlepart:
        source = source.replace("configuration: {", f"configuration: {{ singlepart: {json.dumps(singlepart)},")
    return _serving(port, source, "null", service=service, key=key, passed_on=passed_on)


@contextmanager
def _serving(port: int, source: str, authorization: str, **handled: object) -> Iterator[str]:
    config = (CONFIG % {"source": source, "authorization": authorization}).encode()
    made = type("Handler", (_Handler,), {"config": config, **handled})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), partial(made, directory=str(distribution())))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
