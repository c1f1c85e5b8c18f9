"""HTTP/1.1 requests as they are read from a connection, and the WSGI environ made of them."""

import socket
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import NoMoreData, ParseException, UnsupportedTransferCoding
from gunicorn.http.unreader import SocketUnreader
from hypothesis import example, given
from hypothesis import strategies as st

from astralog.server import http1
from astralog.server.http1 import KnownHead, Request, RequestParser

CLIENT, SERVER = ("192.0.2.1", 40000), ("127.0.0.1", 8080)


class Connection:
    """Both ends of a connection, and the requests that come out of the server's end."""

    def __init__(self) -> None:
        self.client, self.server = socket.socketpair()
        self.requests = RequestParser(Config(), self.server, CLIENT)

    def send(self, data: bytes) -> None:
        """Send as the client."""
        self.client.sendall(data)

    def next(self) -> Any:
        """Return the next request."""
        return next(self.requests)


@pytest.fixture
def connection() -> Iterator[Connection]:
    """Return a connection that is closed at the end."""
    made = Connection()
    made.client.settimeout(5)
    made.server.settimeout(5)
    with made.client, made.server:
        yield made


def head(*fields: str) -> bytes:
    return "\r\n".join(["POST /v1/drain?a=b%20c HTTP/1.1", "Host: x", *fields, "", ""]).encode()


@pytest.mark.parametrize("size", [0, 1, 100, 8000, 9000, http1.WHOLE_BODY_BYTES + 1])
def test_requests_that_come_at_once_are_told_apart(connection: Connection, size: int) -> None:
    """Each body ends at its length, whatever arrives with it."""
    sent = [bytes([65 + turn]) * size for turn in range(3)]
    data = b"".join(head(f"Content-Length: {size}") + body for body in sent)
    sending = Thread(target=connection.send, args=(data,), daemon=True)
    sending.start()
    sending.join(0.1)  # by then what fits into the buffers is there
    assert sent == [connection.next().body.read(size) for _ in sent]
    sending.join()


def test_a_body_is_read_in_any_steps(connection: Connection) -> None:
    """Small reads, lines and a large read at the end give the body as it was sent."""
    connection.send(head("Content-Length: 12") + b"one\ntwo\nlast" + head())
    body = connection.next().body
    assert [b"o", b"ne\n", b"two\nlast", b"", b""] == [
        body.read(1),
        body.readline(),
        body.read(),
        body.read(5),
        body.read(),
    ]
    assert "POST" == connection.next().method


@pytest.mark.parametrize("sent", [b"", b"abc"])
def test_a_body_that_ends_early_is_short(connection: Connection, sent: bytes) -> None:
    """Nothing is made up for what the client does not send."""
    connection.send(head("Content-Length: 5") + sent)
    connection.client.shutdown(socket.SHUT_WR)
    assert sent == connection.next().body.read(5)


def test_a_chunked_body_is_put_together(connection: Connection) -> None:
    """The chunks' sizes are no part of it."""
    connection.send(head("Transfer-Encoding: chunked") + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert b"abcde" == connection.next().body.read(100)
    connection.send(head("Transfer-Encoding: Chunked") + b"1\r\nf\r\n0\r\n\r\n")
    assert b"f" == connection.next().body.read(100)


@pytest.mark.parametrize("codings", ["gzip, chunked", "identity, chunked"])
def test_a_transfer_coding_that_would_not_be_undone_is_rejected(
    connection: Connection, codings: str
) -> None:
    """A body is never taken for what it is not."""
    connection.send(head(f"Transfer-Encoding: {codings}") + b"2\r\n{}\r\n0\r\n\r\n")
    with pytest.raises(UnsupportedTransferCoding):
        connection.next()


def test_an_unread_body_is_skipped(connection: Connection) -> None:
    """The next request starts after a body that nobody read."""
    connection.send(head("Content-Length: 9000") + b"x" * 9000 + head("Content-Length: 1") + b"y")
    connection.next()
    assert b"y" == connection.next().body.read(1)


def test_a_client_that_waits_is_told_to_go_on_when_its_body_is_read(connection: Connection) -> None:
    """100 Continue is sent once, by the first read."""
    connection.send(head("Content-Length: 2", "Expect: 100-continue") + b"ab")
    request = connection.next()
    assert request.should_close()
    assert [b"a", b"b"] == [request.body.read(1), request.body.read(1)]
    assert not request.should_close()
    connection.server.close()
    assert http1.CONTINUE == connection.client.recv(100)
    assert b"" == connection.client.recv(100)


def test_a_request_makes_a_wsgi_environ(connection: Connection) -> None:
    """Fields are named as WSGI has them, and repeated ones are joined."""
    fields = ["Content-Type: application/json", "Content-Length: 1", "X-A: 1", "X-A: 2", "X-B: é"]
    connection.send(head(*fields) + b"x")
    environ = connection.next().environ(CLIENT, SERVER)
    assert b"x" == environ.pop("wsgi.input").read(1)
    environ.pop("wsgi.errors").flush()
    assert environ == {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input_terminated": True,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/v1/drain",
        "QUERY_STRING": "a=b%20c",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8080",
        "REMOTE_ADDR": "192.0.2.1",
        "REMOTE_PORT": "40000",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": "1",
        "HTTP_HOST": "x",
        "HTTP_X_A": "1,2",
        "HTTP_X_B": "é".encode().decode("latin-1"),
    }


def test_a_unix_socket_has_no_addresses(connection: Connection) -> None:
    """The peer of a local socket has neither host nor port."""
    connection.send(head())
    environ = connection.next().environ("", "/run/astralog.sock")
    assert ["", ""] == [environ["REMOTE_ADDR"], environ["SERVER_NAME"]]


def test_a_head_that_differs_in_its_length_alone_is_parsed_once(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request still has its own length and body; a head that is too long is not kept."""
    parsed = []
    parse_headers = http1.Request.parse_headers

    def count(request: Any, data: bytes, **kwargs: Any) -> Any:
        parsed.append(data)
        return parse_headers(request, data, **kwargs)

    monkeypatch.setattr(http1.Request, "parse_headers", count)
    for length in (3, 10, 0, 3):
        connection.send(head(f"Content-Length: {length}", "X-A: 1") + b"x" * length)
        request = connection.next()
        assert str(length) == request.environ(CLIENT, SERVER)["CONTENT_LENGTH"]
        assert b"x" * length == request.body.read(100)
    assert 1 == len(parsed)
    for _ in range(2):
        connection.send(head("Content-Length: 0", "X-A: " + "x" * http1.KEPT_HEAD_BYTES))
        connection.next()
    assert 3 == len(parsed)


_LINES = [
    "Content-Length: 1",
    "content-length: 2",
    "Content-Length: 0",
    "Content-Length: 01",
    "Content-Length: +1",
    "Content-Length:1",
    "Content-Length : 1",
    "Content-Length: 1, 1",
    "Content-Length: ²",
    " folded",
    "X-A: 1",
    "X-A: 2",
    "X_A: 1",
    "Expect: 100-continue",
    "Connection: close",
    "Transfer-Encoding: chunked",
    "X-Forwarded-Proto: https",
    "no field",
    "",
]
_STARTS = ["", "\r\n", "\n", "Content-Length: 1\r\n"]
_REQUEST_LINES = ["POST /a HTTP/1.1", "POST /b?c HTTP/1.1", "POST /a HTTP/1.0", "GET /a HTTP/1.1"]

heads = st.builds(
    lambda start, line, fields: (start + "\r\n".join([line, *fields, "", ""])).encode("latin-1"),
    st.sampled_from(_STARTS) | st.just(""),
    st.sampled_from(_REQUEST_LINES) | st.just(_REQUEST_LINES[0]),
    st.lists(st.sampled_from(_LINES), max_size=3),
)


def _config() -> Config:
    """Return settings with which a head can say all that gunicorn knows of."""
    config = Config()
    config.set("forwarded_allow_ips", "*")
    config.set("proxy_protocol", "v1")
    config.set("proxy_allow_ips", "*")
    return config


CONFIG = _config()


def _outcome(known: KnownHead, number: int, data: bytes) -> Any:
    """Return what a connection's request says, or the error that its head is rejected with."""
    client, server = socket.socketpair()
    with client, server:
        client.sendall(data + b"ab")
        client.shutdown(socket.SHUT_WR)
        try:
            request = Request(known, CONFIG, SocketUnreader(server), CLIENT, number)
        except (ParseException, NoMoreData) as error:
            return type(error)
        environ = request.environ(CLIENT, SERVER)
        said = request.headers, request.uri, request.scheme, request.should_close()
        return environ | {"wsgi.input": environ["wsgi.input"].reader.__class__}, said


PROXIED = b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n" + head("Content-Length: 1")
AWAITED = head("Content-Length: 1", "Expect: 100-continue")
FORWARDED = head("Content-Length: 1", "X-Forwarded-Proto: https")


@given(st.lists(heads, min_size=1, max_size=3), heads)
@example([PROXIED], PROXIED)
@example([AWAITED], AWAITED)
@example([FORWARDED], FORWARDED)
@example([AWAITED], FORWARDED)
@example([head("Content-Length: 1", "X-A: 1")], head("X-A: 1", "Content-Length: 1"))
def test_a_head_says_the_same_after_any_others(before: list[bytes], data: bytes) -> None:
    """Whatever a connection remembers, the next head is taken or rejected as if it did not."""
    known = KnownHead()
    for number, other in enumerate(before, 1):
        _outcome(known, number, other)
    number = len(before) + 1
    assert _outcome(KnownHead(), number, data) == _outcome(known, number, data)
