"""HTTP/1.1 requests on top of gunicorn's parser, and messages for heads that it rejects."""

import sys
from itertools import chain
from typing import Any

from gunicorn.http import body, errors, message
from gunicorn.util import unquote_to_wsgi_str

from astralog.server.http11_receiver import (
    END_OF_HEAD,
    MAX_HEAD_BYTES,
    BareLineFeed,
    Body,
    HeadTooLong,
    OtherProtocol,
    Receiver,
)
from astralog.store.memory_budget import HEAD_BYTES_KEY

#: The most headers in a head, and the longest header with its line end. Beyond it: 400
#: `bad_request`.
MAX_HEADERS = 100
MAX_HEADER_BYTES = 8190

#: The largest head, in bytes and headers, that a connection may keep for its next request. A larger
#: one is charged while it is answered: bytes per byte of the head and per header, measured.
SMALL_HEAD_BYTES = 2048
SMALL_HEAD_HEADERS = 24
BYTES_PER_HEAD_BYTE = 2
BYTES_PER_HEADER = 300

#: Methods of requests that have a body.
BODY_METHODS = ("POST", "PUT", "PATCH")

#: The first bytes of a connection that speaks HTTP/2 without TLS (RFC 9113, 3.4), as gRPC does.
HTTP2_PREFACE = b"PRI * HTTP/2.0"


class Request(message.Request):
    """A request: its head as gunicorn parsed it, and its body."""

    body: Body
    unreader: Receiver

    def __init__(self, *args: Any) -> None:
        """Parse a head; raises ParseException."""
        self._values: dict[str, str] = {}  # environ values that differ from the parsed head's
        self._environ: dict[str, Any] = {}  # of all requests with this head
        # This parses the head: it calls `parse_headers`, and `set_body_reader`, which sets `body`.
        super().__init__(*args)
        #: Whether the body has neither a length nor chunks: only the head is answered.
        self.lacks_length = self.method in BODY_METHODS and not any(
            name in ("CONTENT-LENGTH", "TRANSFER-ENCODING") for name, _ in self.headers
        )
        #: Memory of a large head, to be charged while the request is answered; 0 for others.
        self.large_head_bytes = 0
        self._is_last = self.lacks_length or bool(super().should_close())

    @classmethod
    def from_head(cls, data: bytes, cfg: Any, receiver: Receiver, peer: Any) -> "Request":
        """Return the request that begins with a whole head; raises ParseException."""
        if data.startswith(HTTP2_PREFACE):
            raise OtherProtocol("HTTP/2")
        receiver.unread(data)
        request = cls(cfg, receiver, peer)
        size, headers = data.find(END_OF_HEAD), len(request.headers)
        if size > SMALL_HEAD_BYTES or headers > SMALL_HEAD_HEADERS:
            request.large_head_bytes = BYTES_PER_HEAD_BYTE * size + BYTES_PER_HEADER * headers
        return request

    def repeat(self, values: dict[str, str]) -> "Request":
        """Reuse this object for the next request, whose environ differs only in these values."""
        self._values = values
        length = int(values.get("CONTENT_LENGTH", 0))
        self.body = Body(self.unreader, self._is_awaited, length)
        return self

    def parse_headers(self, data: bytes, from_trailer: bool = False) -> list[tuple[str, str]]:
        """Return the headers of a head, or of the trailer of a chunked body.

        gunicorn does not count the headers that it drops (names with an underscore), and their
        parsing takes quadratic time. Raises ParseException.
        """
        if data.count(b"\r\n") >= self.limit_request_fields:
            raise errors.LimitRequestHeaders("too many")
        headers: list[tuple[str, str]] = super().parse_headers(data, from_trailer)
        return headers

    def set_body_reader(self) -> None:
        """Select the reader of the body; raises ParseException if the head is ambiguous."""
        super().set_body_reader()
        made: Any = self.body  # gunicorn's
        reader = made.reader
        # gunicorn has rejected any other expectation.
        self._is_awaited = self.version > (1, 0) and any(
            name == "EXPECT" for name, _ in self.headers
        )
        if isinstance(reader, body.ChunkedReader):
            for name, value in self.headers:
                if name == "TRANSFER-ENCODING" and value.lower() != "chunked":
                    raise errors.UnsupportedTransferCoding(value)
            self.body = Body(self.unreader, self._is_awaited, chunks=reader)
        else:
            self.body = Body(self.unreader, self._is_awaited, reader.length)

    def should_close(self) -> bool:
        """Return whether the connection ends with this request; its body may decide that."""
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
            HEAD_BYTES_KEY: len(self.uri) + sum(map(len, chain(*self.headers))),
        }
        for field, value in self.headers:
            name = field.replace("-", "_")
            key = name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        return environ


def _host_and_port(address: Any) -> tuple[str, str]:
    """Return host and port for WSGI's environ; a unix socket has neither."""
    return (address[0], str(address[1])) if isinstance(address, tuple) else ("", "")


# --- Malformed heads

#: Headers that a message may name if their name or value is malformed. No other is named: a token
#: may stand in its place.
NAMED_HEADERS = (
    *("AUTHORIZATION", "HOST", "CONTENT-LENGTH", "CONTENT-TYPE", "CONTENT-ENCODING"),
    *("TRANSFER-ENCODING", "CONNECTION", "USER-AGENT", "ACCEPT", "IDEMPOTENCY-KEY"),
)

#: Messages for clients that do not speak HTTP/1.1, by the protocol that they speak instead.
OTHER_PROTOCOLS = {
    "TLS": "This port serves plain HTTP, and received TLS; use http:// in its address.",
    "HTTP/2": "HTTP/2, which gRPC uses, is not supported; use HTTP/1.1. "
    "OpenTelemetry does so with the protocol http/protobuf.",
}

REASONS: dict[type[Exception], str] = {
    errors.LimitRequestLine: "the request line is too long",
    errors.InvalidRequestLine: "the request line is malformed",
    errors.InvalidRequestMethod: "the method is malformed",
    errors.InvalidHTTPVersion: "only HTTP/1.0 and HTTP/1.1 are supported",
    errors.InvalidHeader: "a header has no colon, or characters that are not allowed",
    errors.InvalidHeaderName: "a header name is malformed, perhaps by a blank after it",
    errors.LimitRequestHeaders: f"there are more than {MAX_HEADERS} headers, or one is longer than "
    f"{MAX_HEADER_BYTES} bytes",
    errors.ObsoleteFolding: "a header continues on a second line",
    errors.ExpectationFailed: "the header Expect has an unsupported value",
    HeadTooLong: f"the head is longer than {MAX_HEAD_BYTES} bytes",
    BareLineFeed: "a line ends in LF without a CR before it",
    errors.UnsupportedTransferCoding: "the header Transfer-Encoding has codings other than chunked",
}


def describe(error: errors.ParseException) -> str:
    """Return the message for an error of the parser; it names well-known headers only."""
    if isinstance(error, OtherProtocol):
        return OTHER_PROTOCOLS[str(error)]
    return f"The request is not valid HTTP: {_reason(error)}."


def _reason(error: errors.ParseException) -> str:
    header = getattr(error, "hdr", "").strip(" \t").upper()
    if isinstance(error, errors.InvalidHeader) and header in NAMED_HEADERS:
        hint = ", perhaps by a line end in the token" if header == "AUTHORIZATION" else ""
        return f"the header {header.title()} is malformed{hint}, or is repeated"
    if isinstance(error, errors.InvalidHeaderName) and header in NAMED_HEADERS:
        return f"the header name {header.title()} is malformed, perhaps by a blank after it"
    return REASONS.get(type(error), type(error).__name__)
