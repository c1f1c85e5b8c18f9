"""HTTP/1.1 responses: gunicorn's, in fewer sends, each of which has a time limit."""

import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from gunicorn.http import wsgi
from werkzeug.http import http_date

from astralog.server.connection_limits import WRITE_STEP_BYTES, ConnectionLimits

#: A response up to this size is what any connection may hold; one above it is accounted for.
SMALL_BYTES = 16 * 1024


Headers = tuple[tuple[str, str], ...]


@lru_cache(maxsize=64)
def _check(headers: Headers) -> tuple[Headers, int | None]:
    """Return what gunicorn makes of headers, and the length of the body where they say it."""
    response = wsgi.Response(None, None, None)
    response.process_headers(headers)
    return tuple(response.headers), response.response_length


@lru_cache(maxsize=64)
def _render(start: str, connection: str, headers: Headers, seconds: int) -> bytes:
    """Return a head as it is at a time, in seconds since 1970."""
    lines = [start, f"Date: {http_date(seconds)}", f"Connection: {connection}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def send(sock: Any, data: bytes, limits: ConnectionLimits) -> None:
    """Send all of `data` to a client that takes it in time; raises ConnectionEnded otherwise."""
    if len(data) <= SMALL_BYTES:
        with limits.writes:
            sent = sock.send(data)
            if sent < len(data):
                sock.sendall(data[sent:])
        return
    limits.hold(len(data))
    try:
        view = memoryview(data)
        for start in range(0, len(data), WRITE_STEP_BYTES):
            with limits.writes:
                sock.sendall(view[start : start + WRITE_STEP_BYTES])
    finally:
        limits.release(len(data))


class Response(wsgi.Response):  # type: ignore[misc]
    """A response whose head goes out with its body, and each send of which has a time limit.

    gunicorn's own has none. One send instead of two is 5 of 135 µs a request less.
    """

    headers_sent: bool
    _head = b""

    def __init__(self, request: Any, sock: Any, cfg: Any, limits: ConnectionLimits) -> None:
        super().__init__(request, sock, cfg)
        self._limits = limits

    def process_headers(self, headers: Iterable[tuple[str, str]]) -> None:
        """Take the headers; the same as before are checked once."""
        self.headers, self.response_length = _check(tuple(headers))

    def send_headers(self) -> None:
        """Keep the head for the body, rendered once a second where it is the same."""
        if not self.headers_sent:
            major, minor = self.req.version
            start = f"HTTP/{major}.{minor} {self.status}"
            connection = "close" if self.should_close() else "keep-alive"
            chunked = (("Transfer-Encoding", "chunked"),) if self.chunked else ()
            headers = (*chunked, *self.headers)
            self._head = _render(start, connection, headers, int(time.time()))
            self.headers_sent = True

    def _emit_body(self, data: bytes) -> None:
        if self.chunked:
            data = b"%X\r\n%b\r\n" % (len(data), data)
        head, self._head = self._head, b""
        if len(data) > SMALL_BYTES:  # a copy of it would cost more than a send
            send(self.sock, head, self._limits)
            send(self.sock, data, self._limits)
        else:
            send(self.sock, head + data, self._limits)

    def close(self) -> None:
        """Send what is left: the head, where there was no body, and the end of the chunks."""
        self.send_headers()
        rest = self._head + (b"0\r\n\r\n" if self.chunked else b"")
        if rest:
            send(self.sock, rest, self._limits)
