"""An S3 server's bad days: a proxy before it that can be slow, answer 503, or be killed.

`python tests/store_proxy.py PORT UPSTREAM MOOD`: forwards to UPSTREAM (host:port) in the mood that the file MOOD tells,
read at each request: nothing, "slow SECONDS", or "refuse". Each request is a line of the file MOOD.requests, "GET /path".
"""

import http.client
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REFUSAL = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)
OF_THE_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    upstream: str
    mood: Path
    requests: Path

    def forward(self) -> None:
        """Ask upstream the same, and answer what it answers."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.requests.open("a") as file:
            file.write(f"{self.command} {self.path}\n")
        word, _, seconds = self.mood.read_text().partition(" ")
        if word == "refuse":
            self.response(503, [("Content-Type", "application/xml")], REFUSAL)
            return
        if word == "slow":
            time.sleep(float(seconds))
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            self.response(response.status, response.getheaders(), response.read(), response.getheader("Content-Length"))
        finally:
            connection.close()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

    def response(self, status: int, headers: list[tuple[str, str]], content: bytes, length: str | None = None) -> None:
        """length: of the object, which for HEAD is not that of the content."""
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in OF_THE_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: the tests read other logs."""


def main() -> None:
    port, Handler.upstream, mood = sys.argv[1:]
    Handler.mood, Handler.requests = Path(mood), Path(f"{mood}.requests")
    with ThreadingHTTPServer(("127.0.0.1", int(port)), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
