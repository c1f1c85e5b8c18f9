"""What a client sends, as it is received: heads and bodies, each within its bound."""

import re
import sys
from collections.abc import Callable
from typing import Any

import gevent
from gunicorn.http import unreader
from gunicorn.http.errors import NoMoreData, ParseException

from astralog.deadlines import yield_if_due
from astralog.errors import Rejection
from astralog.server.fair_queue import Flow

#: Bytes received at once where the length of what comes is not known.
RECEIVE_BYTES = 8 * 1024

#: The longest head, the most headers in it, and the longest header with its line's end.
#: Beyond it: 400 `bad_request`.
MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 100
MAX_HEADER_BYTES = 8190

END_OF_HEAD = b"\r\n\r\n"

#: What a connection begins with that speaks TLS (RFC 8446, 5.1: a record of the type handshake), or
#: HTTP/2 without TLS (RFC 9113, 3.4), as gRPC does.
TLS_HANDSHAKE = b"\x16\x03"
HTTP2_PREFACE = b"PRI * HTTP/2.0"

#: An event of libev (ev.h, EV_READ): there is something to receive.
READ = 1

_BARE_LF = re.compile(rb"(?<!\r)\n")


class HeadTooLong(ParseException):  # type: ignore[misc]
    """A head has more than MAX_HEAD_BYTES."""


class BareLineFeed(ParseException):  # type: ignore[misc]
    """A line of a head ends without a carriage return, so that the head will never end."""


class OtherProtocol(ParseException):  # type: ignore[misc]
    """A client speaks another protocol, which the error's text names."""


class Receiver(unreader.SocketUnreader):  # type: ignore[misc]
    """What a client sends: gunicorn's parser and the readers of bodies take it from here."""

    #: Bytes of a chunk that are received at once; gunicorn's parser holds the last ones while it
    #: waits for the next.
    max_body_chunk = 64 * 1024

    def __init__(self, sock: Any, flow: Flow, is_tls: bool = False) -> None:
        """Receive from a socket, in the turns of a flow."""
        super().__init__(sock, RECEIVE_BYTES)
        self._flow = flow
        self._hub = gevent.get_hub()
        self._readable = self._hub.loop.io(sock.fileno(), READ)
        self._is_tls = is_tls
        self._is_first_head = True
        self._received = 0
        self._limit = sys.maxsize
        self._pause: Callable[[], None] | None = None

    def close(self) -> None:
        """Wait for nothing any more, before the socket is closed."""
        self._readable.close()

    def receive_head(self, hold: Callable[[int], None]) -> bytes:
        """Return a head and what came behind it; nothing where the connection ended before it.

        Others are served before each head but the first, also if it is there already, and if they
        have used less of the worker than a client that has shown no token.

        `hold` is told how many bytes a head takes that is unfinished, or waits for its turn. Raises
        ParseException for what can be no head any more, and NoMoreData where the connection ends
        within it.
        """
        self._flow.stop()
        self._pause, self._limit = None, sys.maxsize
        data: bytes = self.take_buffered()
        if data:
            gevent.sleep(0)
        else:
            data = self._begin_head()
        self._is_first_head = False
        if data and data.find(END_OF_HEAD, 0, MAX_HEAD_BYTES) < 0:
            head = bytearray(data)
            del data  # an unfinished head is held once
            data = self._receive_rest(head, hold)
        if not self._flow.try_start():
            hold(len(data))
            self._flow.wait(len(data))
            hold(0)
        return data

    def _begin_head(self) -> bytes:
        """Receive what a head begins with.

        A client's next request is not there yet when its last one was answered, and to ask for it
        in vain is dearer than to wait for it. Measured at 1 log: 0.92 of the CPU at 8 connections,
        0.95 where requests come alone. The first one is there: received at once, connections that
        come together are served in their order.
        """
        if not self._is_first_head:
            self._wait()
        data: bytes = self.sock.recv(RECEIVE_BYTES)
        return data

    def _wait(self) -> None:
        """Wait until there is something to receive, and let others be served in any case."""
        if self._is_tls and self.sock.pending():  # TLS has read it, so that no socket tells of it
            gevent.sleep(0)
        else:
            self._hub.wait(self._readable)

    def _receive_rest(self, head: bytearray, hold: Callable[[int], None]) -> bytes:
        """Receive a head to its end; what has come before is not searched again."""
        if head.startswith(TLS_HANDSHAKE):
            raise OtherProtocol("TLS")
        searched = 0
        while head.find(END_OF_HEAD, max(0, searched - 3), MAX_HEAD_BYTES) < 0:
            if len(head) >= MAX_HEAD_BYTES:
                raise HeadTooLong
            if _BARE_LF.search(head, max(0, searched - 1)):
                raise BareLineFeed
            searched = len(head)
            hold(searched)
            head += self.sock.recv(RECEIVE_BYTES)
            if len(head) == searched:
                raise NoMoreData(b"")
        hold(0)
        return bytes(head)

    def share_worker(self) -> None:
        """Let others be served while a body is read, whose client has shown a token."""
        if self._pause is None:
            self._pause = yield_if_due

    def queue_up(self) -> Callable[[], None]:
        """Let others be served before a body is discarded, and return what repeats that."""
        self._pause = pause = self._flow.share()
        pause()
        return pause

    def bound(self, size: int) -> None:
        """Bound what is received from now on."""
        self._received, self._limit = 0, size

    def grant(self, size: int) -> None:
        """Raise the bound."""
        self._limit += size

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return what is received next; raises Rejection beyond the bound."""
        data: bytes = super().chunk(size_hint)
        self._received += len(data)
        if self._received > self._limit:
            raise Rejection("bad_request", "The chunks of the body hold more framing than data.")
        if self._pause is not None:
            self._pause()
        return data
