"""Heads are received whole and within their bound, and their memory is reported."""

import socket
from threading import Thread

import gevent
import pytest
from gunicorn.http.errors import NoMoreData

from astralog.errors import Rejection
from astralog.server.http11_receiver import (
    MAX_HEAD_BYTES,
    RECEIVE_BYTES,
    BareLineFeed,
    HeadTooLong,
    OtherProtocol,
)
from tests.unit.server.conftest import Wire

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def receive(wire: Wire) -> bytes:
    return wire.receiver.receive_head(wire.held.append)


def test_head_includes_the_bytes_after_it(wire: Wire) -> None:
    """Bytes received together stay together; a complete head holds no memory."""
    wire.send(HEAD + b"body")
    assert HEAD + b"body" == receive(wire)
    assert [] == wire.held


def test_a_head_in_pieces_is_put_together(wire: Wire) -> None:
    """However it is cut, the charge grows with it, and is zero at the end."""

    def send_slowly() -> None:
        for place in range(len(HEAD)):
            wire.send(HEAD[place : place + 1])
            gevent.sleep(0.001)

    sender = Thread(target=send_slowly)
    sender.start()
    assert HEAD == receive(wire)
    sender.join()
    assert wire.held == sorted(set(wire.held[:-1])) + [0]
    assert max(wire.held) < len(HEAD)


def test_buffered_head_is_used_before_the_socket(wire: Wire) -> None:
    """Surplus bytes of one request start the next."""
    wire.receiver.unread(HEAD[:10])
    wire.send(HEAD[10:])
    assert HEAD == receive(wire)


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES, MAX_HEAD_BYTES + 1, 3 * MAX_HEAD_BYTES])
def test_a_head_that_is_too_long_is_rejected(wire: Wire, size: int) -> None:
    """It is not received further, and never in memory as a whole."""
    start = b"GET / HTTP/1.1\r\nX: "
    sender = Thread(target=wire.send, args=(start.ljust(size, b"x") + b"\r\n\r\n",), daemon=True)
    sender.start()
    with pytest.raises(HeadTooLong):
        receive(wire)
    assert max(wire.held) < MAX_HEAD_BYTES + RECEIVE_BYTES


def test_head_of_the_largest_size_is_accepted(wire: Wire) -> None:
    """The bound is inclusive."""
    head = b"GET / HTTP/1.1\r\nX: ".ljust(MAX_HEAD_BYTES - 4, b"x") + b"\r\n\r\n"
    wire.send(head)
    assert head == receive(wire)


@pytest.mark.parametrize(
    "start", [b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\r\nHost: x\n", b"\n", b"\x16\n"]
)
def test_impossible_head_is_rejected_at_once(wire: Wire, start: bytes) -> None:
    """A line that ends in a bare LF is never the end of a head."""
    wire.send(start)
    with pytest.raises(BareLineFeed):
        receive(wire)


def test_tls_is_recognised(wire: Wire) -> None:
    """A TLS record may have no line break, and its client waits for a response."""
    wire.send(b"\x16\x03\x01\x02\x00\x01")
    with pytest.raises(OtherProtocol, match="TLS"):
        receive(wire)


def test_others_are_served_before_a_buffered_head(wire: Wire) -> None:
    """A client that sends requests without a pause waits for its turn before each."""
    receive_after(wire, HEAD)
    served: list[str] = []
    for head in (HEAD, HEAD + HEAD):  # in the socket, and received already
        gevent.spawn(served.append, "other")
        wire.send(head)
        wire.receiver.unread(receive(wire)[len(HEAD) :])
        served.append("client")
    receive(wire)
    assert ["other", "client"] * 2 == served
    gevent.spawn(served.append, "last")
    wire.receiver.unread(HEAD)
    receive(wire)
    assert "last" == served[-1]


def receive_after(wire: Wire, data: bytes) -> None:
    """Receive a first head, which is buffered already."""
    wire.send(data)
    assert data == receive(wire)


def test_half_a_line_break_is_waited_on(wire: Wire) -> None:
    """The LF of a CR may be in the next piece."""
    wire.receiver.unread(HEAD[:15])
    assert HEAD[:15].endswith(b"\r")
    wire.send(HEAD[15:])
    assert HEAD == receive(wire)


@pytest.mark.parametrize("start", [b"G", HEAD[:-1]])
def test_a_connection_that_ends_within_a_head_is_an_error(wire: Wire, start: bytes) -> None:
    """Half a head is no request."""
    wire.send(start)
    wire.client.shutdown(socket.SHUT_WR)
    with pytest.raises(NoMoreData):
        receive(wire)


def test_a_connection_may_end_before_a_head(wire: Wire) -> None:
    """Connections normally end this way."""
    wire.client.shutdown(socket.SHUT_WR)
    assert b"" == receive(wire)


def test_received_bytes_are_bounded(wire: Wire) -> None:
    """Beyond the bound the head is rejected, unless more is granted or the next head starts."""
    wire.receiver.bound(10)
    wire.send(b"x" * 10)
    assert b"x" * 10 == wire.receiver.chunk()
    wire.receiver.grant(5)
    wire.send(b"x" * 5)
    assert b"x" * 5 == wire.receiver.chunk()
    wire.send(b"x")
    with pytest.raises(Rejection, match="framing"):
        wire.receiver.chunk()
    wire.send(HEAD)
    assert HEAD == receive(wire)
    wire.send(b"x" * 100)
    assert b"x" * 100 == wire.receiver.chunk()
