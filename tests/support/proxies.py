"""A proxy in front of a real tracking server that can be slow, fail, or lose responses."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

MODES = ("ok", "refuse", "error", "lose", "slow", "every-second", "hang", "unread", "forbid", "deny")
HANGING, SLOWNESS = 60.0, 1.0


class Proxy(ThreadingHTTPServer):
    """Pass requests on to a server, or not: `refuse` cuts the line at once, `error` answers 500 and passes nothing on,
    `lose` passes on and answers 500, `every-second` does either to two requests of three, `slow` waits before it passes
    on, `hang` answers nothing for a minute. When artifacts are asked for, `unread` cuts the line, `forbid` says 403.
    `deny` answers that what is sent is not valid.

    A POST to `/mode/NAME` changes the mode; the server's own health page always answers unless refused.
    """

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind = behind
        self.mode = "ok"
        self.counts: Counter[str] = Counter()
        self.turn = 0
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        """Return the address of the proxy."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_mode(self, is_download: bool) -> str:
        """Return the mode for the next request."""
        with self.lock:
            mode = self.mode
            if mode in ("unread", "forbid"):
                mode = ("refuse" if mode == "unread" else mode) if is_download else "ok"
            if mode == "every-second":
                self.turn += 1
                mode = ("lose", "error", "ok")[self.turn % 3]
            self.counts[mode] += 1
            return mode

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that have closed the connection."""


class Handler(BaseHTTPRequestHandler):
    """Handle one request."""

    server: Proxy
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        """Forward a request, or fail as the mode requires."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/mode/"):
            self.server.mode = self.path.removeprefix("/mode/")
            assert self.server.mode in MODES
            self.answer(200, b"")
            return
        mode = self.server.next_mode(self.command == "GET" and "/mlflow-artifacts/" in self.path)
        if mode == "refuse":
            self.close_connection = True
            return
        if mode == "error":
            self.answer(500, b'{"error_code": "INTERNAL_ERROR", "message": "the proxy fails"}')
            return
        if mode == "forbid":
            self.answer(403, b"{}")
            return
        if mode == "deny" and self.command == "POST":
            self.answer(400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "the proxy takes nothing"}')
            return
        time.sleep({"slow": SLOWNESS, "hang": HANGING}.get(mode, 0.0))
        headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")}
        found = requests.request(self.command, self.server.behind + self.path, data=body, headers=headers, timeout=60)
        if mode == "lose":
            self.answer(500, b'{"error_code": "INTERNAL_ERROR", "message": "the proxy loses the answer"}')
            return
        self.answer(found.status_code, found.content, found.headers.get("Content-Type", "application/json"))

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

    def answer(self, status: int, content: bytes, kind: str = "application/json") -> None:
        """Send a response."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


@contextmanager
def misbehaving(behind: str) -> Iterator[Proxy]:
    """Run a proxy in front of a server."""
    proxy = Proxy(behind)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
