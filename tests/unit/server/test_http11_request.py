"""HTTP/1.1 requests of a connection, and their WSGI environ."""

import socket
from threading import Thread

import pytest
from gunicorn.http.errors import (
    LimitRequestHeaders,
    UnsupportedTransferCoding,
)

from astralog.server.http11_receiver import CONTINUE, RECEIVE_BYTES
from tests.unit.server.conftest import CLIENT, SERVER, Wire


def head(*fields: str) -> bytes:
    return "\r\n".join(["POST /v1/drain?a=b%20c HTTP/1.1", "Host: x", *fields, "", ""]).encode()


@pytest.mark.parametrize("size", [0, 1, 100, 8000, 9000, RECEIVE_BYTES + 1])
def test_pipelined_requests_are_separated(wire: Wire, size: int) -> None:
    """Each body ends at its length, whatever arrives with it."""
    sent = [bytes([65 + turn]) * size for turn in range(3)]
    data = b"".join(head(f"Content-Length: {size}") + body for body in sent)
    sending = Thread(target=wire.send, args=(data,), daemon=True)
    sending.start()
    sending.join(0.1)  # by then what fits into the buffers is there
    assert sent == [wire.next().body.read(size) for _ in sent]
    sending.join()


def test_a_body_is_read_in_any_steps(wire: Wire) -> None:
    """Small reads and a final large one return the body as it was sent."""
    wire.send(head("Content-Length: 12") + b"one\ntwo\nlast" + head())
    body = wire.next().body
    assert [b"o", b"ne\n", b"two\nlast", b"", b""] == [
        body.read(1),
        body.read1(3),
        body.read(),
        body.read(5),
        body.read(),
    ]
    assert "POST" == wire.next().method


@pytest.mark.parametrize("sent", [b"", b"abc"])
def test_a_body_that_ends_early_is_short(wire: Wire, sent: bytes) -> None:
    """Missing bytes are not replaced."""
    wire.send(head("Content-Length: 5") + sent)
    wire.client.shutdown(socket.SHUT_WR)
    assert sent == wire.next().body.read(5)


def test_a_chunked_body_is_put_together(wire: Wire) -> None:
    """The sizes of the chunks are not part of it."""
    wire.send(head("Transfer-Encoding: chunked") + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert b"abcde" == wire.next().body.read(100)
    wire.send(head("Transfer-Encoding: Chunked") + b"1\r\nf\r\n0\r\n\r\n")
    assert b"f" == wire.next().body.read(100)


@pytest.mark.parametrize("codings", ["gzip, chunked", "identity, chunked"])
def test_unsupported_transfer_coding_is_rejected(wire: Wire, codings: str) -> None:
    """An encoded body is never read as a plain one."""
    wire.send(head(f"Transfer-Encoding: {codings}") + b"2\r\n{}\r\n0\r\n\r\n")
    with pytest.raises(UnsupportedTransferCoding):
        wire.next()


def test_100_continue_is_sent_when_the_body_is_read(wire: Wire) -> None:
    """It is sent once, by the first read."""
    wire.send(head("Content-Length: 2", "Expect: 100-continue") + b"ab")
    request = wire.next()
    assert request.should_close()
    assert [b"a", b"b"] == [request.body.read(1), request.body.read(1)]
    assert not request.should_close()
    wire.server.close()
    assert CONTINUE == wire.client.recv(100)
    assert b"" == wire.client.recv(100)


@pytest.mark.parametrize("fields", [["X_Y: 1"] * 100, ["X: 1"] * 100, ["X_Y: 1", "X: 1"] * 50])
def test_headers_that_are_dropped_are_counted(wire: Wire, fields: list[str]) -> None:
    """Each takes as much as any, and a head of 16 KiB has room for thousands."""
    wire.send(head(*fields[:99]) + head(*fields))  # with Host, 100 and 101
    assert "POST" == wire.next().method
    with pytest.raises(LimitRequestHeaders):
        wire.next()


@pytest.mark.parametrize("trailer", [b"a_b:\r\n" * 101, b"a:b\r\n" * 101, b"a:" + b"b" * 20_000])
def test_a_trailer_is_bounded_as_a_head_is(wire: Wire, trailer: bytes) -> None:
    """It is not used, and parsing it takes quadratic time in its lines."""
    wire.send(head("Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n" + trailer)
    wire.send(b"\r\n")
    body = wire.next().body
    with pytest.raises(OSError, match="LimitRequestHeaders"):
        body.read(100)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("POST / HTTP/1.1", True),
        ("PUT / HTTP/1.0", True),
        ("GET / HTTP/1.1", False),
        ("POST / HTTP/1.1\r\nContent-Length: 0", False),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked", False),
    ],
)
def test_a_request_that_lacks_a_length_is_the_last(wire: Wire, start: str, expected: bool) -> None:
    """The bytes after its head may be a body, and are not parsed as a request."""
    for _ in range(2):
        wire.send(f"{start}\r\nHost: x\r\nConnection: keep-alive\r\n\r\n".encode())
        request = wire.next()
        assert (expected, expected) == (request.lacks_length, request.should_close())
        if "chunked" in start:
            return


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://x", "/"),
        ("http://x?a", "/"),
        ("http://x/a", "/a"),
        ("//a", "//a"),
        ("/a//", "/a//"),
    ],
)
def test_a_path_is_as_it_was_sent(wire: Wire, target: str, path: str) -> None:
    """An empty one is `/` (RFC 9110, 4.2.3)."""
    wire.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert path == wire.next().environ(CLIENT, SERVER)["PATH_INFO"]


def test_only_large_heads_are_accounted_for(wire: Wire) -> None:
    """The charge of any connection includes a small head."""
    wire.send(head("X: " + "x" * 1500) + head("X: " + "x" * 2500) + head(*["X: y"] * 90))
    small, long, many = (wire.next().large_head_bytes for _ in range(3))
    assert 0 == small
    assert 5_000 < long < 10_000
    assert 20_000 < many < 40_000


def test_http_1_0_gets_no_100_continue(wire: Wire) -> None:
    """HTTP/1.0 has no 100 Continue, whatever its client expects."""
    expecting = head("Content-Length: 2", "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
    wire.send(expecting + b"ab")
    assert b"ab" == wire.next().body.read(2)
    wire.server.close()
    assert b"" == wire.client.recv(100)


def test_a_request_makes_a_wsgi_environ(wire: Wire) -> None:
    """Header names are in WSGI's form, and repeated headers are joined."""
    fields = ["Content-Type: application/json", "Content-Length: 1", "X-A: 1", "X-A: 2", "X-B: é"]
    wire.send(head(*fields) + b"x")
    environ = wire.next().environ(CLIENT, SERVER)
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
        "astralog.head_bytes": 78,
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": "1",
        "HTTP_HOST": "x",
        "HTTP_X_A": "1,2",
        "HTTP_X_B": "é".encode().decode("latin-1"),
    }


def test_a_unix_socket_has_no_addresses(wire: Wire) -> None:
    """The peer of a local socket has neither host nor port."""
    wire.send(head())
    environ = wire.next().environ("", "/run/astralog.sock")
    assert ["", ""] == [environ["REMOTE_ADDR"], environ["SERVER_NAME"]]


def test_the_end_of_a_connection_is_no_request(wire: Wire) -> None:
    """A connection may end between two requests; within a head this is an error."""
    wire.send(head())
    wire.next()
    wire.client.shutdown(socket.SHUT_WR)
    assert wire.requests.next(wire.held.append) is None
