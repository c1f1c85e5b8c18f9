"""Read the body of a request: bounded in bytes, in time and in memory, and inflated."""

from collections.abc import Iterator
from typing import Any, Protocol

from astralog.deadlines import Deadlines
from astralog.errors import Rejection
from astralog.intake.compression import STEP_BYTES, Inflater, find_inflater
from astralog.time_slice import TimeSlice

#: Bytes read at once where the length is not known: each may have come as a chunk of its own, which
#: takes 2 µs to parse.
CHUNKED_STEP_BYTES = 16 * 1024

Environ = dict[str, Any]


class Reservation(Protocol):
    """Memory granted to a body."""

    def resize(self, size: int) -> None:
        """Take `size` bytes in all, or raise Rejection `queue_full`."""


class BodyReader:
    """Read bodies of at most `max_bytes`, inflated, each within `timeout_seconds`."""

    def __init__(self, max_bytes: int, timeout_seconds: float) -> None:
        self.max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._deadlines = Deadlines(lambda: timeout_seconds, self._too_slow)

    def read(self, environ: Environ, reservation: Reservation) -> bytes:
        """Return the body, inflated as its Content-Encoding says.

        Raises Rejection: `unsupported_encoding` or `body_too_large` before a byte is read where
        the headers say enough; else `body_too_large`, `body_timeout`, `invalid_encoding`,
        `invalid_json` for a body that ends early, and `queue_full` where the memory ends.
        """
        inflater = find_inflater(environ.get("HTTP_CONTENT_ENCODING", ""))
        length = int(environ.get("CONTENT_LENGTH") or -1)
        if length > self.max_bytes:
            raise self._too_large()
        try:
            with self._deadlines:
                if inflater is None and length >= 0:
                    return _read_exactly(environ, length, reservation)
                return self._read_stream(environ, length, inflater, reservation)
        except OSError:  # the client vanished, or its chunks are malformed
            raise _ended_early() from None

    def _read_stream(
        self, environ: Environ, length: int, inflater: Inflater | None, reservation: Reservation
    ) -> bytes:
        body = bytearray()
        time_slice = TimeSlice()
        longest_piece = STEP_BYTES if inflater else CHUNKED_STEP_BYTES
        reservation.resize(min(longest_piece, self.max_bytes))
        chunks = self._bounded(_chunks(environ, length))
        for piece in inflater(chunks) if inflater else chunks:
            size = len(body) + len(piece)
            if size > self.max_bytes:
                raise self._too_large()
            reservation.resize(min(size + longest_piece, self.max_bytes))
            body += piece
            time_slice.end_if_over()
        reservation.resize(len(body))
        return bytes(body)

    def _bounded(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the chunks of a body that is not too large as it was sent.

        There are compressed bodies of any size that inflate to nothing.
        """
        size = 0
        for chunk in chunks:
            size += len(chunk)
            if size > self.max_bytes:
                raise self._too_large()
            yield chunk

    def _too_large(self) -> Rejection:
        return Rejection("body_too_large", f"The body is larger than {self.max_bytes} bytes.")

    def _too_slow(self) -> Rejection:
        seconds = f"{self._timeout_seconds:g}"
        return Rejection("body_timeout", f"The body did not arrive within {seconds} seconds.")


def _ended_early() -> Rejection:
    return Rejection("invalid_json", "The body ended early or its chunks are malformed.")


def _read_exactly(environ: Environ, length: int, reservation: Reservation) -> bytes:
    reservation.resize(length)
    body: bytes = environ["wsgi.input"].read(length)
    if len(body) < length:
        raise _ended_early()
    return body


def _chunks(environ: Environ, length: int) -> Iterator[bytes]:
    """Yield the body as it arrives; `length` is -1 where it is not known."""
    if length < 0 and not environ.get("wsgi.input_terminated"):
        return
    stream = environ["wsgi.input"]
    step = STEP_BYTES if length > 0 else CHUNKED_STEP_BYTES
    while length and (chunk := stream.read(min(length, step) if length > 0 else step)):
        yield chunk
        if length > 0:
            length -= len(chunk)
    if length > 0:
        raise _ended_early()
