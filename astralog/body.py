"""Read the body of a request: bounded in bytes, in time and in memory, and inflated."""

import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import gevent
from gunicorn.http.errors import ParseException

from astralog.deadlines import Deadlines
from astralog.errors import Refusal

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Bytes inflated at once, and read at once of a body that is inflated; room for them is taken
#: before.
STEP_BYTES = 64 * 1024

#: Bytes read at once where the length is not known: each may have come as a chunk of its own, which
#: takes 2 µs to parse.
CHUNKED_STEP_BYTES = 16 * 1024

#: A body that keeps its worker busy for longer than a turn pauses, so that others are served.
TURN_SECONDS = 0.02
PAUSE_SECONDS = 0.001

#: Members or frames that a compressed body may consist of: to begin one takes up to 20 µs, and the
#: smallest has 2 bytes. Beyond it, the body is refused: 400 `invalid_encoding`.
MAX_MEMBERS = 10_000

#: The largest window a zstd frame may ask for, 8 MiB, as RFC 9659 has it for HTTP.
ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}

Environ = dict[str, Any]


class Room(Protocol):
    """Memory granted to a body."""

    def resize(self, size: int) -> None:
        """Take `size` bytes in all, or raise Refusal `queue_full`."""


class Turn:
    """What a greenlet may compute at a stretch: a body that is there already makes no one wait."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def end_if_over(self) -> None:
        """Let others be served, if this turn is over.

        A sleep of 0 would let gevent run 50 such turns before it looks at any socket.
        """
        if time.monotonic() - self._start > TURN_SECONDS:
            gevent.sleep(PAUSE_SECONDS)
            self._start = time.monotonic()


class BodyReader:
    """Read bodies of at most `max_bytes`, inflated, each within `timeout_seconds`."""

    def __init__(self, max_bytes: int, timeout_seconds: float) -> None:
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._deadlines = Deadlines(lambda: timeout_seconds, self._too_slow)

    def read(self, environ: Environ, room: Room) -> bytes:
        """Return the body, inflated as its Content-Encoding says.

        Raises Refusal: `unsupported_encoding` or `body_too_large` before a byte is read where
        the headers say enough; else `body_too_large`, `body_timeout`, `invalid_encoding`,
        `invalid_json` for a body that ends early, and `queue_full` where `room` ends.
        """
        inflater = _inflater(environ.get("HTTP_CONTENT_ENCODING", ""))
        length = int(environ.get("CONTENT_LENGTH") or -1)
        if length > self._max_bytes:
            raise self._too_large()
        try:
            with self._deadlines:
                if inflater is None and length >= 0:
                    return _read_exactly(environ, length, room)
                return self._read_stream(environ, length, inflater, room)
        except (OSError, ParseException):  # the client vanished, or its chunks are malformed
            raise _ended_early() from None

    def _read_stream(
        self, environ: Environ, length: int, inflater: "Inflater | None", room: Room
    ) -> bytes:
        body = bytearray()
        turn = Turn()
        room.resize(min(STEP_BYTES, self._max_bytes))
        chunks = _chunks(environ, length)
        for piece in inflater(chunks) if inflater else chunks:
            size = len(body) + len(piece)
            if size > self._max_bytes:
                raise self._too_large()
            room.resize(min(size + STEP_BYTES, self._max_bytes))
            body += piece
            turn.end_if_over()
        room.resize(len(body))
        return bytes(body)

    def _too_large(self) -> Refusal:
        return Refusal("body_too_large", f"The body is larger than {self._max_bytes} bytes.")

    def _too_slow(self) -> Refusal:
        seconds = f"{self._timeout_seconds:g}"
        return Refusal("body_timeout", f"The body did not arrive within {seconds} seconds.")


def _ended_early() -> Refusal:
    return Refusal("invalid_json", "The body ended early or its chunks are malformed.")


def _read_exactly(environ: Environ, length: int, room: Room) -> bytes:
    room.resize(length)
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


Inflater = Callable[[Iterator[bytes]], Iterator[bytes]]


def _inflater(encoding: str) -> Inflater | None:
    """Return what undoes a Content-Encoding, None for identity.

    Raises Refusal `unsupported_encoding`; more than one coding at once is not supported.
    """
    coding = encoding.strip().lower()
    if coding in ("", "identity"):
        return None
    if coding not in INFLATERS:
        known = ", ".join(INFLATERS)
        message = f"The Content-Encoding is not supported; use {known} or none."
        raise Refusal("unsupported_encoding", message)
    return INFLATERS[coding]


def _count(members: int) -> int:
    """Count one more member, and refuse the body where that is too many."""
    if members == MAX_MEMBERS:
        message = f"The body consists of more than {MAX_MEMBERS} compressed parts."
        raise Refusal("invalid_encoding", message)
    return members + 1


def _inflate_zlib(chunks: Iterator[bytes], window_bits: Callable[[bytes], int]) -> Iterator[bytes]:
    """Yield the inflated bytes, STEP_BYTES at most at once. Sources: RFC 1950, 1951, 1952."""
    stream: Any = None
    members = 0
    try:
        for data in chunks:
            rest = data
            while rest:
                if stream is None or stream.eof:  # gzip members may follow one another
                    members = _count(members)
                    stream = zlib.decompressobj(window_bits(rest))
                yield stream.decompress(rest, STEP_BYTES)
                rest = stream.unused_data if stream.eof else stream.unconsumed_tail
        if stream is not None:
            yield stream.flush()  # at most one match of 258 bytes
    except zlib.error:
        raise Refusal("invalid_encoding", "The body does not inflate.") from None
    if stream is None or not stream.eof:
        raise Refusal("invalid_encoding", "The compressed body ends early.")


def _inflate_gzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    return _inflate_zlib(chunks, lambda start: 16 + zlib.MAX_WBITS)


def _inflate_deflate(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Inflate zlib's format, which the standard means, or bare deflate, which some clients send."""
    return _inflate_zlib(chunks, lambda start: zlib.MAX_WBITS * (1 if start[0] & 0x0F == 8 else -1))


def _inflate_zstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the inflated bytes, STEP_BYTES at most at once. Source: RFC 8878."""
    stream: Any = None
    members = 0
    try:
        for data in chunks:
            rest = data
            while rest:
                if stream is None or stream.eof:  # frames may follow one another
                    members = _count(members)
                    stream = zstd.ZstdDecompressor(options=ZSTD_OPTIONS)
                yield stream.decompress(rest, STEP_BYTES)
                while not (stream.eof or stream.needs_input):
                    yield stream.decompress(b"", STEP_BYTES)
                rest = stream.unused_data if stream.eof else b""
    except zstd.ZstdError:
        raise Refusal("invalid_encoding", "The body does not inflate.") from None
    if stream is None or not stream.eof:
        raise Refusal("invalid_encoding", "The compressed body ends early.")


INFLATERS: dict[str, Inflater] = {
    "gzip": _inflate_gzip,
    "x-gzip": _inflate_gzip,
    "deflate": _inflate_deflate,
    "zstd": _inflate_zstd,
}
