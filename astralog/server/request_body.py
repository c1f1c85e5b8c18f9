"""The body of a request: gunicorn's, read as it arrives, and discarded within bounds."""

import sys
from io import UnsupportedOperation
from typing import Any

from gunicorn.http import body
from gunicorn.http.errors import ParseException

from astralog.server.connection_limits import DISCARD_BYTES
from astralog.server.receiver import Receiver

#: Bytes of a body of known length that are received at once.
RECEIVE_BYTES = 1024 * 1024

#: Bytes of trailers, which are ignored, that a chunked body may have.
TRAILERS_BYTES = 8 * 1024

#: What a chunked body's sizes, extensions and trailers may take, and the same as a share of its
#: data: chunks of 56 bytes without extensions are within it. A body with more is rejected.
FRAMING_BYTES = 1024 * 1024
FRAMING_SHARE = 1 / 8

#: Bytes of a body that nobody wants that are received at once.
DISCARD_STEP_BYTES = 32 * 1024

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Body(body.Body):  # type: ignore[misc]
    """The body of a request.

    `is_awaited` says that the client waits to be asked for it. That is done when the body is first
    read, and so not where the head alone rejects a request.
    """

    def __init__(self, reader: Any, receiver: Receiver, is_awaited: bool) -> None:
        super().__init__(reader)
        self._receiver = receiver
        self._is_chunked = isinstance(reader, body.ChunkedReader)
        self.is_awaited = is_awaited and not self.is_finished
        self._rest = b""  # of a chunk's piece, beyond what was asked for
        if self._is_chunked:
            receiver.bound(FRAMING_BYTES + receiver.max_body_chunk)
            reader.limit_trailer_section = TRAILERS_BYTES

    def close(self) -> None:
        """Free what is held, also of a body that was not read: gunicorn's objects form cycles."""
        if self._is_chunked:
            self.failed = not self.is_finished
            self.reader.req = self.reader.parser = None

    @property
    def is_finished(self) -> bool:
        """Return whether what is received next is the next request."""
        reader = self.reader
        return not (self.failed or (reader.parser if self._is_chunked else reader.length))

    @property
    def is_given_up(self) -> bool:
        """Return whether it will not be received to its end, and the connection ends with it."""
        if self.is_finished:
            return False
        return self.is_awaited or self.failed or self._left > DISCARD_BYTES

    @property
    def _left(self) -> int:
        """What is left of a body of known length; 0 where the length is not known."""
        return 0 if self._is_chunked else self.reader.length

    def read1(self, size: int) -> bytes:
        """Return at most `size` bytes of what has arrived, after waiting for the first of them.

        Nothing is kept here that the caller does not know of. Returns nothing at the body's end, or
        if a body of known length ends early. Raises OSError if the connection is lost or the chunks
        are invalid, and Rejection if they are more framing than data.
        """
        if self.is_awaited:
            self.is_awaited = False
            self._receiver.sock.sendall(CONTINUE)
        if self._is_chunked:
            return self._read1_chunked(size)
        reader, receiver = self.reader, self._receiver
        size = min(size, reader.length, RECEIVE_BYTES)
        if not size:
            return b""
        data: bytes = receiver.take_buffered() or receiver.sock.recv(size)
        if len(data) > size:  # the rest of the body, or the next request, is there too
            receiver.unread(data[size:])
            data = data[:size]
        reader.length -= len(data)
        return data

    def _read1_chunked(self, size: int) -> bytes:
        data = self._rest or self._parse_piece()
        self._rest = data[size:]
        return data[:size]

    def read(self, size: int | None = None) -> bytes:
        """Return `size` bytes, or fewer at the body's end, as PEP 3333 has it; else as `read1`."""
        left = sys.maxsize if size is None else size
        data = bytearray()
        while piece := self.read1(left - len(data)):
            data += piece
        return bytes(data)

    def readline(self, size: int | None = None) -> bytes:
        """Raise UnsupportedOperation: nothing reads lines, and gunicorn's way would lose bytes."""
        raise UnsupportedOperation("readline")

    def _parse_piece(self) -> bytes:
        """Return what has arrived of a chunk, after waiting for it; nothing at the body's end."""
        reader, receiver = self.reader, self._receiver
        receiver.share_worker()
        data = b""
        try:
            while reader.parser and not data:
                data = next(reader.parser)
        except StopIteration:
            reader.parser = None
        except ParseException as error:
            self.failed = True
            raise OSError(f"invalid chunks: {type(error).__name__}") from None
        except Exception:
            self.failed = True
            raise
        receiver.grant(int(len(data) * (1 + FRAMING_SHARE)))
        return data

    def discard(self, limit: int) -> bool:
        """Receive and forget what is left, `limit` bytes at most, and return whether that was all.

        Raises what `read` raises.
        """
        self.is_awaited = False  # nobody asks for it now
        pause = self._receiver.queue_up()
        while limit > 0 and not (self.is_finished or self.failed):
            size = len(self.read1(DISCARD_STEP_BYTES))
            if not size:
                break
            limit -= size
            pause()
        return self.is_finished
