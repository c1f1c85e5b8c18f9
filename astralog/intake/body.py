"""Read the body of a request: bounded in bytes, in time and in memory, and inflated."""

import re
import sys
from collections.abc import Iterator
from typing import Any, Protocol

from astralog.deadlines import Deadlines, yield_if_due
from astralog.errors import Rejection
from astralog.intake.compression import STEP_BYTES, Inflater, find_inflater

#: A body that is announced as no longer is reserved whole with the first of it, as most are; a
#: longer one is rejected before it is read if there is no memory for it by now.
SHORT_BYTES = 64 * 1024

#: Pieces of a body that are joined, since one may be a byte, and what each takes beside its bytes.
JOINED_PIECES = 64
PIECE_BYTES = 64

#: Charsets that are UTF-8, or a part of it; an empty one declares nothing.
UTF8_NAMES = ("", "utf-8", "utf8", "us-ascii", "ascii")

_CHARSET = re.compile(r""";[ \t]*charset[ \t]*=[ \t]*["']?([^\s"';,]*)""", re.IGNORECASE)

#: Media types whose bodies are no text, and so have no charset.
_BINARY = re.compile(r"application/(x-protobuf|protobuf|octet-stream)\b", re.IGNORECASE)

Environ = dict[str, Any]


class Reservation(Protocol):
    """Memory granted to a request."""

    def resize(self, size: int) -> None:
        """Hold `size` bytes in all, or raise Rejection `queue_full` or `body_too_large`."""

    def check(self, size: int) -> None:
        """Raise what `resize` would raise."""


class Unbounded:
    """A reservation that grants everything, for decodes outside of a request."""

    def resize(self, size: int) -> None:
        """Hold so many bytes."""

    def check(self, size: int) -> None:
        """Raise nothing."""


class BodyReader:
    """Read bodies of at most `max_bytes`, inflated, each within `timeout_seconds`.

    Memory is reserved for what has arrived, as it arrives: a client that sends nothing holds none.
    """

    def __init__(self, max_bytes: int, timeout_seconds: float) -> None:
        self.max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._deadlines = Deadlines(lambda: timeout_seconds, self._too_slow)

    def read(self, environ: Environ, reservation: Reservation) -> bytes:
        """Return the body, inflated as its Content-Encoding says.

        Raises Rejection: `length_required`, `unsupported_charset`, `unsupported_encoding` or
        `body_too_large` before a byte is read if the headers say enough; else `body_too_large`,
        `body_timeout`, `invalid_encoding`, `invalid_json` for a body that ends early, and
        `queue_full` if the memory ends.
        """
        _check_headers(environ)
        inflater = find_inflater(environ.get("HTTP_CONTENT_ENCODING", ""))
        length = int(environ.get("CONTENT_LENGTH") or -1)
        if length > self.max_bytes:
            raise _too_large(self.max_bytes)
        if length > SHORT_BYTES:
            reservation.check(length)
        try:
            with self._deadlines:
                if inflater is None and length >= 0:
                    return _read_exactly(environ["wsgi.input"], length, reservation)
                return self._read_stream(environ, length, inflater, reservation)
        except OSError:  # the client vanished, or its chunks are malformed
            raise _ended_early() from None

    def _read_stream(
        self, environ: Environ, length: int, inflater: Inflater | None, reservation: Reservation
    ) -> bytes:
        body = _GrowingBody(reservation)
        sent = _SentPieces(environ, length, self.max_bytes)
        for piece in inflater.inflate(sent) if inflater else sent:
            size = body.size + len(piece)
            if size > self.max_bytes:
                raise _too_large(self.max_bytes)
            body.add(piece, sent.held_bytes + (inflater.held_bytes(size) if inflater else 0))
            del piece  # while the client is waited for, nothing is held but what is charged
            yield_if_due()
        return body.finish()

    def _too_slow(self) -> Rejection:
        seconds = f"{self._timeout_seconds:g}"
        return Rejection("body_timeout", f"The body did not arrive within {seconds} seconds.")


def _too_large(max_bytes: int) -> Rejection:
    return Rejection("body_too_large", f"The body is larger than {max_bytes} bytes.")


def _check_headers(environ: Environ) -> None:
    """Reject a body without an end, or of text that is not UTF-8."""
    if not (environ.get("CONTENT_LENGTH") or environ.get("wsgi.input_terminated")):
        message = "The request has neither a Content-Length nor Transfer-Encoding: chunked."
        raise Rejection("length_required", message)
    content_type = environ.get("CONTENT_TYPE", "")
    if ";" in content_type and not _BINARY.match(content_type):
        declared = _CHARSET.search(content_type)
        if declared and declared[1].lower() not in UTF8_NAMES:
            message = "The Content-Type declares a charset other than UTF-8; send UTF-8."
            raise Rejection("unsupported_charset", message)


def _ended_early() -> Rejection:
    return Rejection("invalid_json", "The body ended early or its chunks are malformed.")


class _GrowingBody:
    """A body that arrives in pieces, charged for the memory that it takes.

    The pieces are not copied before they are all there: the gaps that copies leave in the heap take
    as much as the body.
    """

    def __init__(self, reservation: Reservation, reserved: int = 0) -> None:
        """Charge nothing until the body takes more than what is reserved for it."""
        self._reservation = reservation
        self._reserved = reserved
        self._pieces: list[bytes] = []
        self._joined = 0  # of these
        self.size = 0

    def add(self, piece: bytes, held_bytes: int = 0) -> int:
        """Append a piece and return its size; `held_bytes` are charged beside the body."""
        self.size += len(piece)
        self._pieces.append(piece)
        if len(self._pieces) - self._joined == JOINED_PIECES:
            self._pieces[self._joined :] = [b"".join(self._pieces[self._joined :])]
            self._joined += 1
        taken = self.size + PIECE_BYTES * len(self._pieces) + held_bytes
        if taken > self._reserved:
            self._reserved = taken
            self._reservation.resize(taken)
        return len(piece)

    def finish(self) -> bytes:
        """Return the body, charged with its size."""
        body = b"".join(self._pieces)
        if len(body) != self._reserved:
            self._reservation.resize(len(body))
        return body


def _read_exactly(stream: Any, length: int, reservation: Reservation) -> bytes:
    piece: bytes = stream.read1(length)
    reserved = length if length <= SHORT_BYTES else len(piece)
    reservation.resize(reserved)
    if len(piece) < reserved:  # of a short body, the rest usually comes next
        piece += stream.read1(length - len(piece))
    if len(piece) == length:
        return piece
    body = _GrowingBody(reservation, reserved)
    body.add(piece)
    del piece  # while the client is waited for, nothing is held but what is charged
    while body.size < length:
        if not body.add(stream.read1(length - body.size)):
            raise _ended_early()
        yield_if_due()
    return body.finish()


class _SentPieces:
    """The pieces of a body as they were sent, each passed on as it arrives.

    Raises Rejection for a body that is too large as it was sent: there are compressed ones of any
    size that inflate to nothing.
    """

    def __init__(self, environ: Environ, length: int, max_bytes: int) -> None:
        """Take the body's length, or -1 if it is not known."""
        self._stream = environ["wsgi.input"]
        self._is_length_known = length >= 0
        self._left = length
        if length < 0:
            self._left = sys.maxsize  # it comes in chunks
        self._max_bytes = max_bytes
        self._size = 0
        #: Bytes of the last piece, if the parser of the chunks still holds it.
        self.held_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece: bytes = self._stream.read1(min(self._left, STEP_BYTES)) if self._left else b""
        if not piece:
            if self._is_length_known and self._left:
                raise _ended_early()
            raise StopIteration
        self._left -= len(piece)
        self._size += len(piece)
        if self._size > self._max_bytes:
            raise _too_large(self._max_bytes)
        self.held_bytes = 0 if self._is_length_known else len(piece)
        return piece
