"""OHIF's built distribution, as npm has it: fetched once into the user's cache, never part of this repository."""

import base64
import hashlib
import http.server
import json
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.pace import limit_s

PACKAGE, VERSION = "@ohif/app", "3.12.10"
INTEGRITY = "sha512-0kuF66Mq9c9dMD++bUsTjMrJpXJwaZhz9B4uS244DawAjSkTwIYFU93pxPuRUQixaRi7QAHlF3Fe1qudBlZrmA=="
CACHE = Path.home() / ".cache/osteon-tests"
# OHIF shows a key by this service; its services are kept where the test finds them
CONFIG = """
window.config = {
  routerBasename: '/', showStudyList: true, modes: [], customizationService: {},
  showWarningMessageForCrossOrigin: false, investigationalUseDialog: { option: 'never' }, maxNumberOfWebWorkers: 1,
  extensions: [{
    id: 'reader',
    preRegistration({ servicesManager }) {
      window.services = servicesManager.services;
      window.services.userAuthenticationService.setServiceImplementation({
        getAuthorizationHeader: () => ({ Authorization: %(authorization)s }),
      });
    },
  }],
  defaultDataSourceName: 'osteon',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'osteon',
    configuration: {
      friendlyName: 'Osteon', name: 'osteon', qidoRoot: %(root)s, wadoRoot: %(root)s, wadoUriRoot: %(root)s,
      qidoSupportsIncludeField: true, supportsReject: false, supportsFuzzyMatching: false, supportsWildcard: true,
      imageRendering: 'wadors', thumbnailRendering: 'wadors', enableStudyLazyLoad: true, staticWado: false,
      singlepart: 'bulkdata,video', bulkDataURI: { enabled: true, relativeResolution: 'studies' },
    },
  }],
};
"""


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


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the pages; addresses of the viewer are all the one page."""

    config = b""

    def do_GET(self) -> None:
        """A file, the configuration, or the page."""
        path = self.path.partition("?")[0]
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

    def end_headers(self) -> None:
        """As OHIF asks for it: the page is isolated from others."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(port: int, root: str, key: str) -> Iterator[str]:
    """Serve OHIF at a port of 127.0.0.1 for the DICOMweb service at `root`, with a reader's key; yields its origin."""
    values = {"root": json.dumps(root), "authorization": json.dumps(f"Bearer {key}")}
    made = type("Handler", (_Handler,), {"config": (CONFIG % values).encode()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), partial(made, directory=str(distribution())))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
