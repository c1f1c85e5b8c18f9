"""HTTP/1.1 requests: gunicorn's, with less to do for each."""

import re
import sys
from collections.abc import Callable
from itertools import chain
from typing import Any

from gunicorn.http import body, message
from gunicorn.http.errors import LimitRequestHeaders, UnsupportedTransferCoding
from gunicorn.util import unquote_to_wsgi_str

from astralog.server.receiver import (
    END_OF_HEAD,
    HTTP2_PREFACE,
    MAX_HEAD_BYTES,
    OtherProtocol,
    Receiver,
)
from astralog.server.request_body import Body

#: The longest head, in bytes, and the most headers that a connection keeps: an idle one shall stay
#: cheap.
KEPT_HEAD_BYTES = 2048
KEPT_HEADERS = 24

#: What a request takes in memory while it is answered, measured: for each byte of its head, and for
#: each of its headers.
BYTES_PER_HEAD_BYTE = 2
BYTES_PER_HEADER = 300

#: Methods of requests that have a body.
BODY_METHODS = ("POST", "PUT", "PATCH")

_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]{1,15})\r\n", re.IGNORECASE)

#: A key that is not longer than a header may be, and that WSGI hands on as it is.
_KEY = re.compile(rb"\r\nIdempotency-Key: ([!-~]{1,1000})\r\n", re.IGNORECASE)
_KEY_NAME = b"\r\nidempotency-key:"


class Request(message.Request):  # type: ignore[misc]
    """A request whose head gunicorn parsed, or one with the same head but for its length."""

    body: Body
    unreader: Receiver

    def __init__(self, *args: Any) -> None:
        """Parse a head; raises ParseException."""
        self._values: dict[str, str] = {}  # of the environ, where they differ from the head's
        self._environ: dict[str, Any] = {}  # of all requests with this head
        super().__init__(*args)
        #: Whether a body may follow that has no end: only what came before it is answered.
        self.lacks_length = self.method in BODY_METHODS and not any(
            name in ("CONTENT-LENGTH", "TRANSFER-ENCODING") for name, _ in self.headers
        )
        #: What the request takes in memory while it is answered, if that is much.
        self.held_bytes = 0
        self._is_last = self.lacks_length or bool(super().should_close())

    def repeat(self, values: dict[str, str]) -> "Request":
        """Become the next request: its head differs in these values, named as in the environ."""
        self._values = values
        reader = body.LengthReader(self.unreader, int(values.get("CONTENT_LENGTH", 0)))
        self.body = Body(reader, self.unreader, self._is_awaited)
        return self

    def parse_headers(self, data: bytes, from_trailer: bool = False) -> list[tuple[str, str]]:
        """Return the headers of a head, or of the trailer of a chunked body.

        gunicorn does not count headers that it drops, those with an underscore, and takes quadratic
        time for their number. Raises ParseException.
        """
        if data.count(b"\r\n") >= self.limit_request_fields:
            raise LimitRequestHeaders("too many")
        headers: list[tuple[str, str]] = super().parse_headers(data, from_trailer)
        return headers

    def set_body_reader(self) -> None:
        """Say how the body is read; raises ParseException for a head that leaves it open."""
        super().set_body_reader()
        reader = self.body.reader
        if isinstance(reader, body.ChunkedReader):
            reader.limit_trailer_section = MAX_HEAD_BYTES
            for name, value in self.headers:
                if name == "TRANSFER-ENCODING" and value.lower() != "chunked":
                    raise UnsupportedTransferCoding(value)
        # gunicorn has rejected any other expectation.
        self._is_awaited = self.version > (1, 0) and any(
            name == "EXPECT" for name, _ in self.headers
        )
        self.body = Body(reader, self.unreader, self._is_awaited)

    def should_close(self) -> bool:
        """Return whether the connection ends with this request, as its body stands now."""
        return self._is_last or self.body.is_given_up

    def environ(self, client: Any, server: Any) -> dict[str, Any]:
        """Return the WSGI environ (PEP 3333) of a request between two socket addresses."""
        if not self._environ:
            self._environ.update(self._make_environ(client, server))
        environ = self._environ | self._values
        environ["wsgi.input"] = self.body
        return environ

    def _make_environ(self, client: Any, server: Any) -> dict[str, Any]:
        host, port = _host_and_port(server)
        peer, peer_port = _host_and_port(client)
        environ = {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": self.scheme,
            "wsgi.input_terminated": not self.lacks_length,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "REQUEST_METHOD": self.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_wsgi_str(self.path) or "/",  # RFC 9110, 4.2.3
            "QUERY_STRING": self.query,
            "SERVER_PROTOCOL": f"HTTP/{self.version[0]}.{self.version[1]}",
            "SERVER_NAME": host,
            "SERVER_PORT": port,
            "REMOTE_ADDR": peer,
            "REMOTE_PORT": peer_port,
            "astralog.head_bytes": len(self.uri) + sum(map(len, chain(*self.headers))),
        }
        for field, value in self.headers:
            name = field.replace("-", "_")
            key = name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        return environ


def _host_and_port(address: Any) -> tuple[str, str]:
    """Return both as WSGI has them; a unix socket has neither."""
    return (address[0], str(address[1])) if isinstance(address, tuple) else ("", "")


class Requests:
    """The requests of a connection, one after another.

    With every batch, a client sends the same head but for the digits of its Content-Length, and its
    Idempotency-Key; a load balancer asks the same again and again. A head that differs from the
    last one in nothing else is not parsed again. Measured: -30 of 160 µs a request at 1 log, -50 of
    985 at 500, -20 of 31 for /health; gunicorn's parser in C would gain a third of that.
    """

    def __init__(self, cfg: Any, receiver: Receiver, peer: Any) -> None:
        self._cfg = cfg
        self._receiver = receiver
        self._peer = peer
        self._around: tuple[bytes, ...] = ()  # the last head but for those values
        self._last: Request | None = None

    def next(self, hold: Callable[[int], None]) -> Request | None:
        """Return the next request, None at the connection's end.

        `hold` is told how many bytes an unfinished head takes. Raises ParseException, and
        NoMoreData where the connection ends within a head.
        """
        data = self._receiver.receive_head(hold)
        if not data:
            return None
        end = data.find(END_OF_HEAD, 0, KEPT_HEAD_BYTES)
        # What may come before a first request line, and no later one, is so left to gunicorn.
        if end < 0 or not data.startswith((b"POST ", b"GET ")):
            return self._parse(data)
        found = _LENGTH.search(data, 0, end + 2)
        around: tuple[bytes, ...] = (data[:end],)
        if found:
            around = data[: found.start(1)], data[found.end(1) : end]
        values = {"CONTENT_LENGTH": found[1].decode()} if found else {}
        if found and around != self._around and (key := _find_key(data, end)):
            values["HTTP_IDEMPOTENCY_KEY"] = key[1].decode()
            around = _around(data[:end], found.span(1), key.span(1))
        if around == self._around and self._last is not None:
            self._receiver.unread(data[end + 4 :])
            return self._last.repeat(values)
        request = self._parse(data)
        has_length = found or request.body.is_finished  # else its body comes in chunks
        if has_length and len(request.headers) <= KEPT_HEADERS:
            self._last, self._around = request, around
        return request

    def _parse(self, data: bytes) -> Request:
        if data.startswith(HTTP2_PREFACE):
            raise OtherProtocol("HTTP/2")
        self._receiver.unread(data)
        request = Request(self._cfg, self._receiver, self._peer)
        size, headers = data.find(END_OF_HEAD), len(request.headers)
        if size > KEPT_HEAD_BYTES or headers > KEPT_HEADERS:
            request.held_bytes = BYTES_PER_HEAD_BYTE * size + BYTES_PER_HEADER * headers
        return request


def _find_key(data: bytes, end: int) -> re.Match[bytes] | None:
    """Return where a head has its only Idempotency-Key, None where it has none, or several."""
    key = _KEY.search(data, 0, end + 2)
    return key if key and data[:end].lower().count(_KEY_NAME) == 1 else None


def _around(head: bytes, *values: tuple[int, int]) -> tuple[bytes, ...]:
    """Return what stands around the values in a head, which are given by their spans."""
    pieces = []
    start = 0
    for value_start, value_end in sorted(values):
        pieces.append(head[start:value_start])
        start = value_end
    return (*pieces, head[start:])
