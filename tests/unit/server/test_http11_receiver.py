"""Heads are received whole, within their bound, and what they hold is told."""

import socket
from threading import Thread

import gevent
import pytest
from gunicorn.http.errors import NoMoreData

from astralog.errors import Rejection
from astralog.server.http11 import (
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


def test_a_head_comes_with_what_is_behind_it(wire: Wire) -> None:
    """What was received together is not taken apart; a whole head holds nothing."""
    wire.send(HEAD + b"body")
    assert HEAD + b"body" == receive(wire)
    assert [] == wire.held


def test_a_head_in_pieces_is_put_together(wire: Wire) -> None:
    """However it is cut, what it holds grows with it, and is nothing in the end."""

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


def test_a_buffered_head_is_taken_before_the_socket_is_asked(wire: Wire) -> None:
    """What was read too much of one request begins the next."""
    wire.receiver.unread(HEAD[:10])
    wire.send(HEAD[10:])
    assert HEAD == receive(wire)


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES, MAX_HEAD_BYTES + 1, 3 * MAX_HEAD_BYTES])
def test_a_head_that_is_too_long_is_rejected(wire: Wire, size: int) -> None:
    """It is not received any further, and never held in full."""
    start = b"GET / HTTP/1.1\r\nX: "
    sender = Thread(target=wire.send, args=(start.ljust(size, b"x") + b"\r\n\r\n",), daemon=True)
    sender.start()
    with pytest.raises(HeadTooLong):
        receive(wire)
    assert max(wire.held) < MAX_HEAD_BYTES + RECEIVE_BYTES


def test_a_head_of_the_largest_size_is_taken(wire: Wire) -> None:
    """The bound itself is allowed."""
    head = b"GET / HTTP/1.1\r\nX: ".ljust(MAX_HEAD_BYTES - 4, b"x") + b"\r\n\r\n"
    wire.send(head)
    assert head == receive(wire)


@pytest.mark.parametrize(
    "start", [b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\r\nHost: x\n", b"\n", b"\x16\n"]
)
def test_what_can_be_no_head_any_more_is_rejected_at_once(wire: Wire, start: bytes) -> None:
    """A line that ends in a bare LF will never be the end of a head."""
    wire.send(start)
    with pytest.raises(BareLineFeed):
        receive(wire)


def test_tls_is_told_from_a_head(wire: Wire) -> None:
    """A record of TLS may have no line's end, and its client waits for an answer."""
    wire.send(b"\x16\x03\x01\x02\x00\x01")
    with pytest.raises(OtherProtocol, match="TLS"):
        receive(wire)


def test_others_are_served_before_a_head_that_is_there_already(wire: Wire) -> None:
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
    """Receive a first head, which is not waited for."""
    wire.send(data)
    assert data == receive(wire)


def test_half_a_line_break_is_waited_on(wire: Wire) -> None:
    """A CR may have its LF in the next piece."""
    wire.receiver.unread(HEAD[:15])
    assert HEAD[:15].endswith(b"\r")
    wire.send(HEAD[15:])
    assert HEAD == receive(wire)


@pytest.mark.parametrize("start", [b"G", HEAD[:-1]])
def test_a_connection_that_ends_within_a_head_is_an_error(wire: Wire, start: bytes) -> None:
    """Half a head is nothing."""
    wire.send(start)
    wire.client.shutdown(socket.SHUT_WR)
    with pytest.raises(NoMoreData):
        receive(wire)


def test_a_connection_may_end_before_a_head(wire: Wire) -> None:
    """That is how connections end."""
    wire.client.shutdown(socket.SHUT_WR)
    assert b"" == receive(wire)


def test_what_is_received_is_bounded(wire: Wire) -> None:
    """Beyond the bound there is a rejection, until more is granted or the next head begins."""
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
