"""Responses are sent in few sends, each within its timeout, and unsent bytes are charged."""

import socket
import time
from collections.abc import Iterator
from threading import Thread
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import socket as gevent_socket
from gunicorn.http.errors import InvalidResponseHeader

from astralog.deadlines import Deadlines
from astralog.server.http11_response import SMALL_BYTES, Response, send
from astralog.server.limits import ConnectionEnded, ConnectionLimits
from tests.support.greenlets import wait_until
from tests.support.service import TIMEOUT_SECONDS

LIMITS_BYTES = 10_000_000


@pytest.fixture
def limits() -> ConnectionLimits:
    return ConnectionLimits(10, lambda: 5, LIMITS_BYTES)


@pytest.fixture
def short_limits(limits: ConnectionLimits) -> ConnectionLimits:
    """Return limits under which a client has a moment to read a response."""
    limits.writes = Deadlines(lambda: 0.3, ConnectionEnded)
    return limits


@pytest.fixture
def ends() -> Iterator[tuple[Any, socket.socket]]:
    """Return the server's end of a connection, which yields to others, and the client's."""
    server, client = gevent_socket.socketpair()
    with server, socket.socket(fileno=client.detach()) as plain_client:
        plain_client.settimeout(TIMEOUT_SECONDS)
        yield server, plain_client


class Recorder:
    """A socket that accepts everything at once."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> int:
        """Accept data that is sent in one send."""
        self.sent.append(bytes(data))
        return len(data)

    def sendall(self, data: bytes) -> None:
        """Accept data that is sent in as many sends as needed."""
        self.sent.append(bytes(data))


def read_all(client: socket.socket, into: list[bytes]) -> Thread:
    """Read to the end in the background."""

    def read() -> None:
        while data := client.recv(65536):
            into.append(data)

    thread = Thread(target=read)
    thread.start()
    return thread


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES, SMALL_BYTES + 1, 3_000_000])
def test_all_of_it_is_sent(
    ends: tuple[Any, socket.socket], limits: ConnectionLimits, size: int
) -> None:
    """A response of any size is sent, and none of it is held afterwards."""
    server, client = ends
    data = bytes(place % 251 for place in range(1000)) * (size // 1000 + 1)
    received: list[bytes] = []
    reader = read_all(client, received)
    send(server, data[:size], limits)
    server.close()
    reader.join()
    assert data[:size] == b"".join(received)
    assert limits._held_bytes == 0


@pytest.mark.parametrize("size", [SMALL_BYTES, 3_000_000])
def test_client_that_reads_nothing_is_disconnected(
    ends: tuple[Any, socket.socket], short_limits: ConnectionLimits, size: int
) -> None:
    """Once the buffers are full, its timeout starts; nothing is held afterwards."""
    server, _ = ends

    def send_on() -> None:
        while True:
            send(server, bytes(size), short_limits)

    with pytest.raises(ConnectionEnded):
        send_on()
    assert short_limits._held_bytes == 0


def test_client_that_reads_too_little_is_disconnected(
    ends: tuple[Any, socket.socket], short_limits: ConnectionLimits
) -> None:
    """Some bytes from time to time do not extend the timeout."""
    server, client = ends
    client.setblocking(False)

    def take_a_little() -> None:
        while True:
            gevent.sleep(0.02)
            client.recv(2000)

    taker = gevent.spawn(take_a_little)
    with pytest.raises(ConnectionEnded):
        send(server, bytes(3_000_000), short_limits)
    taker.kill()


def test_unsent_bytes_are_charged(
    ends: tuple[Any, socket.socket], limits: ConnectionLimits
) -> None:
    """A large response is charged while it is sent."""
    server, _ = ends
    sender = gevent.spawn(send, server, bytes(3_000_000), limits)
    wait_until(lambda: limits._held_bytes == 3_000_000)
    sender.kill()
    assert limits._held_bytes == 0


def respond(
    limits: ConnectionLimits,
    *items: bytes,
    method: str = "GET",
    status: str = "200 OK",
    **fields: str,
) -> list[bytes]:
    """Return the sends for a response of an application."""
    request = SimpleNamespace(method=method, version=(1, 1), should_close=lambda: False)
    sock = Recorder()
    response = Response(request, sock, limits)
    response.start_response(
        status, [(name.replace("_", "-"), text) for name, text in fields.items()]
    )
    for item in items:
        response.write(item)
    response.close()
    return sock.sent


def test_head_and_body_go_out_in_one_send(limits: ConnectionLimits) -> None:
    """Two sends would cost another system call."""
    (sent,) = respond(limits, b"{}", Content_Length="2", Content_Type="application/json")
    head, _, body = sent.partition(b"\r\n\r\n")
    assert b"{}" == body
    assert head.startswith(b"HTTP/1.1 200 OK\r\nDate: ")
    assert head.endswith(b"keep-alive\r\nContent-Length: 2\r\nContent-Type: application/json")


def test_cached_head_is_current(limits: ConnectionLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same response has a new date later, and another length if it has one."""
    now = 1_795_392_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    dates = ["Mon, 23 Nov 2026 00:00:00 GMT", "Mon, 23 Nov 2026 00:00:01 GMT"]
    for date, body in zip(dates, (b"a", b"bc"), strict=True):
        (sent,) = respond(limits, body, Content_Length=str(len(body)))
        head = f"HTTP/1.1 200 OK\r\nDate: {date}\r\nConnection: keep-alive\r\n"
        assert f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body == sent
        now += 1


def test_a_header_that_cannot_be_sent_is_an_error_each_time(limits: ConnectionLimits) -> None:
    """Only valid headers are cached."""
    for _ in range(2):
        with pytest.raises(InvalidResponseHeader):
            respond(limits, X_A="a\r\nX-B: b")


def test_a_large_body_is_not_copied_behind_its_head(limits: ConnectionLimits) -> None:
    """Each connection would hold a copy of a shared body."""
    head, *pieces = respond(limits, bytes(200_000), Content_Length="200000")
    assert head.endswith(b"\r\n\r\n")
    assert bytes(200_000) == b"".join(pieces)


def test_a_response_without_a_body_has_a_head(limits: ConnectionLimits) -> None:
    """Neither HEAD nor 304 has a body, whatever the application returns."""
    for method, status in (("HEAD", "200 OK"), ("GET", "304 NOT MODIFIED")):
        (sent,) = respond(limits, method=method, status=status, Content_Length="100")
        assert sent.endswith(b"Content-Length: 100\r\n\r\n")


def test_a_body_of_unknown_length_is_chunked(limits: ConnectionLimits) -> None:
    """Each item is a chunk, and the last one is empty."""
    head, last, end = respond(limits, b"x" * 17, b"", b"y")
    assert head.endswith(b"Transfer-Encoding: chunked\r\n\r\n11\r\n" + b"x" * 17 + b"\r\n")
    assert (b"1\r\ny\r\n", b"0\r\n\r\n") == (last, end)
