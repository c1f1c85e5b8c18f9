"""Bodies are read or discarded up to the start of the next request."""

import contextlib
import time
from threading import Thread

import gevent
import pytest

from astralog.errors import Rejection
from astralog.server import http11_receiver
from astralog.server.http11_receiver import (
    BODY_RECEIVE_BYTES,
    FRAMING_BYTES,
    TRAILERS_BYTES,
    Body,
    Receiver,
)
from astralog.server.limits import DISCARD_BYTES
from tests.unit.server.conftest import Wire

NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"


def head(*fields: str) -> bytes:
    return "\r\n".join(["POST /a HTTP/1.1", "Host: x", *fields, "", ""]).encode()


def framings(size: int) -> list[bytes]:
    """Return requests with a body of `size` bytes, of known length and in chunks."""
    data = b"x" * size
    chunk = b"%x\r\n%b\r\n" % (size, data) if size else b""
    return [
        head(f"Content-Length: {size}") + data,
        head("Transfer-Encoding: chunked") + chunk + b"0\r\nX-Trailer: 1\r\n\r\n",
    ]


class Sending:
    """Send in the background as much as the other end accepts."""

    def __init__(self, wire: Wire, data: bytes) -> None:
        self._thread = Thread(target=self._send, args=(wire, data), daemon=True)
        self._thread.start()

    def _send(self, wire: Wire, data: bytes) -> None:
        with contextlib.suppress(OSError):
            wire.send(data)

    def join(self) -> None:
        self._thread.join()


@pytest.mark.parametrize("size", [0, 1, 5000, 9000, 200_000, BODY_RECEIVE_BYTES + 1])
@pytest.mark.parametrize("read", [0, 1, 4000])
@pytest.mark.parametrize("framing", [0, 1])
def test_discarded_body_ends_at_the_next_request(
    wire: Wire, size: int, read: int, framing: int
) -> None:
    """Regardless of how much of it was read before."""
    sending = Sending(wire, framings(size)[framing] + NEXT)
    body = wire.next().body
    assert size == 0 or not body.is_finished
    body.read(read)
    assert body.discard(size + 1)
    assert body.is_finished
    assert "/next" == wire.next().path
    sending.join()


@pytest.mark.parametrize("framing", [0, 1])
def test_a_body_is_discarded_up_to_a_limit(wire: Wire, framing: int) -> None:
    """The rest of a longer one is not read."""
    Sending(wire, framings(500_000)[framing])
    body = wire.next().body
    assert not body.discard(100_000)
    assert not body.is_finished


@pytest.mark.parametrize("framing", [0, 1])
def test_a_body_that_was_read_is_finished(wire: Wire, framing: int) -> None:
    """After a complete read, nothing is left to discard."""
    wire.send(framings(1000)[framing])
    body = wire.next().body
    assert b"x" * 1000 == body.read(1000)
    assert b"" == body.read(1)
    assert body.is_finished
    assert body.discard(0)


@pytest.mark.parametrize("framing", [0, 1])
def test_a_body_that_ends_early_is_never_finished(wire: Wire, framing: int) -> None:
    """The bytes after it are no request."""
    wire.send(framings(1000)[framing][:-100])
    body = wire.next().body
    wire.client.close()
    try:
        assert not body.discard(2000)
    except OSError:
        assert framing == 1
    assert not body.is_finished


@pytest.mark.parametrize("broken", [b"zz\r\n", b"2\r\nabc", b"1\r\na\r\n0\r\nno trailer\r\n\r\n"])
def test_invalid_chunks_are_a_permanent_error(wire: Wire, broken: bytes) -> None:
    """The body is given up, and no end is recognised after them."""
    wire.send(head("Transfer-Encoding: chunked") + broken + b"\r\n0\r\n\r\n")
    body = wire.next().body
    with pytest.raises(OSError, match="invalid chunks"):
        body.read(100)
    assert body.is_given_up
    assert not body.discard(100)


def test_a_body_that_is_too_long_to_discard_is_given_up(wire: Wire) -> None:
    """Its client learns at once that the connection ends."""
    wire.send(head(f"Content-Length: {DISCARD_BYTES}"))
    assert not wire.next().body.is_given_up
    wire.receiver.take_buffered()
    wire.send(head(f"Content-Length: {DISCARD_BYTES + 1}"))
    request = wire.next()
    assert request.body.is_given_up
    assert request.should_close()


@pytest.mark.parametrize("framing", [0, 1])
def test_a_body_is_read_as_it_arrives(wire: Wire, framing: int) -> None:
    """A read returns the available bytes, so that a slow body is charged as it arrives."""
    sent = framings(9000)[framing]
    start = sent.index(b"xxx")
    wire.send(sent[: start + 5])
    body = wire.next().body
    assert b"xxxxx" == body.read1(9000)
    wire.send(sent[start + 5 : start + 12])
    assert [b"xx", b"xxxxx"] == [body.read1(2), body.read1(9000)]
    wire.send(sent[start + 12 :] + NEXT)
    assert 8988 == len(body.read(9000))
    assert b"" == body.read1(1)
    assert body.is_finished
    assert "/next" == wire.next().path


@pytest.mark.parametrize("size", [20_000, 8_000_000])
def test_no_piece_of_a_chunk_is_longer_than_it_may_be(wire: Wire, size: int) -> None:
    """The parser holds the last one while it waits for the next."""
    sending = Sending(wire, framings(size)[1])
    body = wire.next().body
    pieces = list(iter(lambda: len(body.read1(1 << 30)), 0))
    assert size == sum(pieces)
    assert max(pieces) <= Receiver.max_body_chunk
    sending.join()


def test_trailers_are_bounded(wire: Wire) -> None:
    """They are held until they end, and are not used."""
    start = head("Transfer-Encoding: chunked") + b"0\r\n"
    trailer = b"X-Trailer: " + b"x" * 1000 + b"\r\n"
    wire.send(start + trailer * (TRAILERS_BYTES // 2000) + b"\r\n")
    assert b"" == wire.next().body.read1(1)
    Sending(wire, start + trailer * (4 * TRAILERS_BYTES // 1000) + b"\r\n")
    with pytest.raises(OSError, match="LimitRequestHeaders"):
        wire.next().body.read1(1)


class Endless:
    """A socket that always has more data."""

    def __init__(self, piece: bytes) -> None:
        self._piece = piece
        self.received = 0

    def recv(self, size: int) -> bytes:
        """Return the requested number of bytes."""
        self.received += size
        return self._piece * (size // len(self._piece)) or self._piece[:size]


@pytest.mark.parametrize(
    ("framing", "piece"),
    [
        (f"Content-Length: {1 << 40}", b"x" * 1024),
        ("Transfer-Encoding: chunked", b"400\r\n" + b"x" * 1024 + b"\r\n"),
    ],
)
def test_discarded_body_delays_no_other(wire: Wire, framing: str, piece: bytes) -> None:
    """However fast it arrives, others have their turns while it is discarded."""
    wire.send(head(framing))
    body = wire.next().body
    body._receiver.sock = Endless(piece)
    turns = 0

    def take_turns() -> None:
        nonlocal turns
        while True:
            gevent.sleep(0.001)
            turns += 1

    other = gevent.spawn(take_turns)
    end = time.thread_time() + 5
    while turns < 3 and time.thread_time() < end:
        body.discard(10 * 1024 * 1024)
    other.kill()
    assert 3 <= turns


# Chunks


def read_all(body: Body, step: int = 16 * 1024) -> int:
    size = 0
    while data := body.read1(step):
        size += len(data)
    return size


@pytest.mark.parametrize(
    "chunk", [b"1\r\nx\r\n", b"1;" + b"e" * 4000 + b"\r\nx\r\n", b"0000001\r\nx\r\n"]
)
def test_chunks_of_more_framing_than_data_are_rejected(
    wire: Wire, chunk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes and extensions are bounded, and beyond the bound the body is given up."""
    framing_bytes = FRAMING_BYTES // 16
    monkeypatch.setattr(http11_receiver, "FRAMING_BYTES", framing_bytes)
    Sending(wire, head("Transfer-Encoding: chunked") + chunk * (8 * framing_bytes // len(chunk)))
    body = wire.next().body
    with pytest.raises(Rejection, match="framing"):
        read_all(body)
    assert body.is_given_up
    assert not body.discard(DISCARD_BYTES)


@pytest.mark.parametrize("size", [60, 3000, 300_000])
def test_chunks_of_more_data_than_framing_are_accepted(
    wire: Wire, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body with one short line per chunk may be as long as any."""
    monkeypatch.setattr(http11_receiver, "FRAMING_BYTES", FRAMING_BYTES // 16)
    count = 2_000_000 // size
    chunk = b"%x\r\n%b\r\n" % (size, b"x" * size)
    sending = Sending(wire, head("Transfer-Encoding: chunked") + chunk * count + b"0\r\n\r\n")
    assert size * count == read_all(wire.next().body)
    sending.join()


def test_few_chunks_may_have_long_extensions(wire: Wire) -> None:
    """Extensions are ignored, as in RFC 9112."""
    chunk = b'2;name="value";other\r\nab\r\n'
    wire.send(head("Transfer-Encoding: chunked") + chunk * 3 + b"0\r\n\r\n")
    assert b"ababab" == wire.next().body.read(100)
