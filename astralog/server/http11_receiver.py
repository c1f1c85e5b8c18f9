"""Receive the heads and bodies of HTTP/1.1 requests.

In the order of a request: `Receiver` receives its head, `http11_request` parses it, `Body` reads
its body, and `http11_response` sends the answer. gunicorn checks the grammar; these modules add
bounds, deadlines and pauses in which other connections are served.
"""

import re
import sys
from collections.abc import Callable
from typing import Any

import gevent
from gunicorn.http import body, errors, unreader

from astralog.errors import Rejection, mebibytes
from astralog.server.fair_queue import CpuTime
from astralog.server.limits import DISCARD_BYTES

#: The longest head; beyond it: 400 `bad_request`.
MAX_HEAD_BYTES = 16 * 1024

#: Bytes received at once of a head or a chunked body, and of a body of known length.
RECEIVE_BYTES = 8 * 1024
BODY_RECEIVE_BYTES = 1024 * 1024

#: Bytes of trailers, which are ignored, that a chunked body may have.
TRAILERS_BYTES = 8 * 1024

#: Limit on the sizes, extensions and trailers of a chunked body: bytes, plus a share of its data.
#: Chunks of 56 bytes without extensions fit. A body with more is rejected.
FRAMING_BYTES = 1024 * 1024
FRAMING_SHARE = 1 / 8
TOO_MUCH_FRAMING = (
    "The framing of the chunked body (sizes and line ends of its chunks) takes more than "
    f"{mebibytes(FRAMING_BYTES)} plus an eighth of the data; send larger chunks."
)

#: Bytes of an unwanted body that are received at once.
DISCARD_STEP_BYTES = 32 * 1024

END_OF_HEAD = b"\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

#: The first bytes of a connection that speaks TLS (RFC 8446, 5.1: a handshake record).
TLS_HANDSHAKE = b"\x16\x03"

#: An event of libev (ev.h, EV_READ): the socket is readable.
READ = 1

_BARE_LF = re.compile(rb"(?<!\r)\n")


class HeadTooLong(errors.ParseException):
    """A head has more than MAX_HEAD_BYTES."""


class BareLineFeed(errors.ParseException):
    """A line of a head ends without a carriage return, so the head would never end."""


class OtherProtocol(errors.ParseException):
    """The client speaks another protocol; the error's text is its name."""


class Receiver(unreader.SocketUnreader):
    """The bytes of a connection, from which gunicorn's parser and `Body` read."""

    #: Bytes of a chunk that are received at once; gunicorn's parser holds the last ones while it
    #: waits for the next.
    max_body_chunk = 64 * 1024

    def __init__(self, sock: Any, cpu_time: CpuTime, is_tls: bool = False) -> None:
        """Receive from a socket; `cpu_time` schedules the work."""
        super().__init__(sock, RECEIVE_BYTES)
        self.cpu_time = cpu_time
        self._hub = gevent.get_hub()
        self._readable = self._hub.loop.io(sock.fileno(), READ)
        self._is_tls = is_tls
        self._is_first_head = True
        self._received = 0
        self._limit = sys.maxsize

    def close(self) -> None:
        """Stop polling the socket; called before it is closed."""
        self._readable.close()

    def receive_head(self, charge: Callable[[int], None]) -> bytes:
        """Return a head and the bytes after it, or nothing if the connection ended first.

        Before each head except the first, other connections are served, even if the head is there
        already; a client without a token also waits for those that have used less CPU time.

        `charge` is called with the bytes that an unfinished or waiting head takes. Raises
        ParseException for bytes that cannot become a head, and NoMoreData if the connection ends
        within one.
        """
        self.cpu_time.stop()
        self._limit = sys.maxsize
        data: bytes = self.take_buffered()
        if data:
            gevent.sleep(0)
        else:
            data = self._begin_head()
        self._is_first_head = False
        if data and data.find(END_OF_HEAD, 0, MAX_HEAD_BYTES) < 0:
            head = bytearray(data)
            del data  # an unfinished head is held once
            data = self._receive_rest(head, charge)
        if not self.cpu_time.try_start():
            charge(len(data))
            self.cpu_time.wait(len(data))
            charge(0)
        return data

    def _begin_head(self) -> bytes:
        """Receive the first bytes of a head.

        A client's next request is not there yet when the last one was answered, and a receive in
        vain costs more than a wait. Measured at 1 log: 0.92 of the CPU at 8 connections, 0.95 if
        requests come alone. The first request is there: received at once, connections that arrive
        together are served in order.
        """
        if not self._is_first_head:
            if self._is_tls and self.sock.pending():  # TLS has read it, so the socket stays silent
                gevent.sleep(0)
            else:
                self._hub.wait(self._readable)
        data: bytes = self.sock.recv(RECEIVE_BYTES)
        return data

    def _receive_rest(self, head: bytearray, charge: Callable[[int], None]) -> bytes:
        """Receive a head to its end; each byte is searched once."""
        if head.startswith(TLS_HANDSHAKE):
            raise OtherProtocol("TLS")
        searched = 0
        while head.find(END_OF_HEAD, max(0, searched - 3), MAX_HEAD_BYTES) < 0:
            if len(head) >= MAX_HEAD_BYTES:
                raise HeadTooLong
            if _BARE_LF.search(head, max(0, searched - 1)):
                raise BareLineFeed
            searched = len(head)
            charge(searched)
            head += self.sock.recv(RECEIVE_BYTES)
            if len(head) == searched:
                raise errors.NoMoreData(b"")
        charge(0)
        return bytes(head)

    def bound(self, size: int) -> None:
        """Limit the bytes that `chunk` returns from now on."""
        self._received, self._limit = 0, size

    def grant(self, size: int) -> None:
        """Raise the limit of `bound`."""
        self._limit += size

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return the next bytes of the socket; raises Rejection beyond the limit of `bound`."""
        data: bytes = super().chunk(size_hint)
        self._received += len(data)
        if self._received > self._limit:
            raise Rejection("bad_request", TOO_MUCH_FRAMING)
        return data


class Body:
    """The body of a request, read as it arrives, or discarded within bounds.

    It has a known `length`, or gunicorn's reader of its `chunks`. If `is_awaited`, the client waits
    for 100 Continue. It is sent when the body is first read, so not if the head alone rejects the
    request.
    """

    def __init__(
        self,
        receiver: Receiver,
        is_awaited: bool,
        length: int = 0,
        chunks: body.ChunkedReader | None = None,
    ) -> None:
        self._receiver = receiver
        self._left = length
        self._chunks = chunks
        self._rest = b""  # of a chunk's piece, beyond the size that the caller asked for
        self._failed = False
        self.is_awaited = is_awaited and not self.is_finished
        if chunks is not None:
            receiver.bound(FRAMING_BYTES + receiver.max_body_chunk)
            chunks.limit_trailer_section = TRAILERS_BYTES

    def close(self) -> None:
        """Break the reference cycles of gunicorn's objects, also if the body was not read."""
        if self._chunks is not None:
            self._failed = not self.is_finished
            self._chunks.req = self._chunks.parser = None

    @property
    def is_finished(self) -> bool:
        """Return whether the next bytes of the connection are the next request."""
        return not (self._left or self._failed or (self._chunks and self._chunks.parser))

    @property
    def is_given_up(self) -> bool:
        """Return whether the body will not be received, so that the connection must end."""
        if self.is_finished:
            return False
        return self.is_awaited or self._failed or self._left > DISCARD_BYTES

    def read1(self, size: int) -> bytes:
        """Wait for bytes of the body, and return at most `size` of them.

        Returns nothing at the body's end, or if a body of known length ends early. Raises OSError
        if the connection is lost or the chunks are invalid, and Rejection if they hold too much
        framing. No more is buffered here than the caller knows of.
        """
        data: bytes
        receiver = self._receiver
        if self.is_awaited:
            self.is_awaited = False
            receiver.sock.sendall(CONTINUE)
        if self._chunks is not None:
            data = self._rest or self._parse_piece(self._chunks)
            self._rest = data[size:]
            return data[:size]
        size = min(size, self._left, BODY_RECEIVE_BYTES)
        if not size:
            return b""
        data = receiver.take_buffered() or receiver.sock.recv(size)
        if len(data) > size:  # the rest of the body, or the next request, is there too
            receiver.unread(data[size:])
            data = data[:size]
        self._left -= len(data)
        return data

    def read(self, size: int | None = None) -> bytes:
        """Return `size` bytes, fewer only at the body's end (PEP 3333); raises like `read1`."""
        left = sys.maxsize if size is None else size
        data = bytearray()
        while piece := self.read1(left - len(data)):
            data += piece
        return bytes(data)

    def _parse_piece(self, reader: body.ChunkedReader) -> bytes:
        """Wait for bytes of a chunk and return them, or nothing at the body's end."""
        data = b""
        try:
            while reader.parser and not data:
                data = next(reader.parser)
        except StopIteration:
            reader.parser = None
        except errors.ParseException as error:
            self._failed = True
            raise OSError(f"invalid chunks: {type(error).__name__}") from None
        except Exception:
            self._failed = True
            raise
        self._receiver.grant(int(len(data) * (1 + FRAMING_SHARE)))
        return data

    def discard(self, limit: int) -> bool:
        """Discard at most `limit` bytes of the rest; return whether the end was reached.

        Raises like `read1`.
        """
        self.is_awaited = False  # the client is never asked for it
        self._receiver.cpu_time.pause()
        while limit > 0 and not (self.is_finished or self._failed):
            size = len(self.read1(DISCARD_STEP_BYTES))
            if not size:
                break
            limit -= size
            self._receiver.cpu_time.pause()
        return self.is_finished
