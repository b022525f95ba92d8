"""A store over HTTP that does what stores do on bad days, on this machine alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Store:
    """Files by name, what was asked of them, and what goes wrong.

    Attributes
    ----------
    files : dict of str to bytes
    requests : list of (str, str, tuple or None)
        Method, name and range of each request.
    on_get : callable
        Called with the store, the name and the bytes to be sent before each answer to a GET; what
        it returns is sent in their place: bytes, or a number for a status of HTTP.
    has_ranges, has_tags : bool
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, tuple[int, int] | None]] = []
        self.on_get: Callable[[Store, str, bytes], bytes | int] = lambda store, name, sent: sent
        self.has_ranges = True
        self.has_tags = True
        self.url = ""

    @property
    def n_sent(self) -> int:
        """Bytes that were asked for by ranges."""
        return sum(
            stop - start for _, _, asked in self.requests if asked for start, stop in [asked]
        )

    def gets(self) -> list[tuple[str, str, tuple[int, int] | None]]:
        return [each for each in self.requests if each[0] == "GET"]


class _Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Say nothing."""

    def do_HEAD(self):
        self._answer(is_head=True)

    def do_GET(self):
        self._answer(is_head=False)

    def _answer(self, is_head):
        store, name = self.store, self.path.lstrip("/")
        content = store.files.get(name)
        asked = self._range(content) if content is not None and store.has_ranges else None
        store.requests.append((self.command, name, asked))
        if content is None:
            self._send(404, b"", {})
            return
        headers = {"Accept-Ranges": "bytes" if store.has_ranges else "none"}
        if store.has_tags:
            headers["ETag"] = f'"{hashlib.md5(content).hexdigest()}"'
        if is_head:
            self._send(200, content, headers, is_head=True)
            return
        wanted = content if asked is None else content[slice(*asked)]
        if asked is not None:
            headers["Content-Range"] = f"bytes {asked[0]}-{asked[1] - 1}/{len(content)}"
        sent = store.on_get(store, name, wanted)
        if isinstance(sent, int):
            self._send(sent, b"", {})
            return
        headers["Content-Length"] = str(len(wanted))
        self._send(200 if asked is None else 206, sent, headers)
        if len(sent) < len(wanted):
            self.close_connection = True

    def _range(self, content):
        text = self.headers.get("Range", "")
        if not text.startswith("bytes="):
            return None
        start, _, last = text[6:].partition("-")
        return int(start), min(int(last) + 1 if last else len(content), len(content))

    def _send(self, status, content, headers, is_head=False):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if not is_head:
            with suppress(ConnectionError):  # who asked has given up
                self.wfile.write(content)


@contextmanager
def serving() -> Iterator[Store]:
    """Serve a new store until the end."""
    store = Store()
    handler = type("Handler", (_Handler,), {"store": store})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
