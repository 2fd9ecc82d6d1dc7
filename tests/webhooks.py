"""A webhook receiver for tests, on a port of the test's choice."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class Receiver:
    """Keeps what was posted to it.

    Attributes:
        posts: what it took, headers and body.
        hung: what was posted while `answering` was not set; it never answers these.
        status: of its answers.
    """

    def __init__(self) -> None:
        self.posts: list[tuple[dict[str, str], bytes]] = []
        self.hung: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        self.answering = threading.Event()
        self.answering.set()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the bodies of the events of a kind."""
        bodies = [json.loads(body) for _, body in self.posts]
        return [body for body in bodies if body["event"] == kind]


@contextmanager
def receiver(port: int) -> Iterator[Receiver]:
    """Serve a receiver on a port."""
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not kept.answering.is_set():
                kept.hung.append((dict(self.headers), body))
                kept.answering.wait()
                self.close_connection = True
                return
            if kept.status == 200:
                kept.posts.append((dict(self.headers), body))
            self.send_response(kept.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield kept
    finally:
        kept.answering.set()
        server.shutdown()
        server.server_close()
        thread.join()
