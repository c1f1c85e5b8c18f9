"""Read the body of a request within limits of bytes, time and memory, and decompress it."""

import re
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from astralog.deadlines import Deadlines, yield_if_due
from astralog.errors import DAMAGED_ENCODING, UNFINISHED_ENCODING, Rejection, body_too_large
from astralog.store.memory_budget import MemoryReservation
from astralog.zstd import zstd

#: Bytes that are decompressed at once.
INFLATE_STEP_BYTES = 64 * 1024

#: Members or frames that a compressed body may consist of: to begin one takes up to 20 µs, and the
#: smallest has 2 bytes. Beyond it, the body is rejected: 400 `invalid_encoding`.
MAX_MEMBERS = 10_000

#: The largest window that a zstd frame may require: 8 MiB, the limit of RFC 9659 for HTTP.
ZSTD_WINDOW_LOG = 23
ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}

#: A body with a Content-Length up to this is reserved whole with its first bytes; a longer one is
#: rejected before it is read if there is no memory for it now.
SHORT_BYTES = 64 * 1024

#: Pieces of a body that are joined, since one may be a byte, and bytes that each takes in addition.
JOINED_PIECES = 64
PIECE_OVERHEAD_BYTES = 64

#: Charsets that are UTF-8, or a part of it; an empty one declares nothing.
UTF8_NAMES = ("", "utf-8", "utf8", "us-ascii", "ascii")

_CHARSET = re.compile(r""";[ \t]*charset[ \t]*=[ \t]*["']?([^\s"';,]*)""", re.IGNORECASE)

#: Media types whose bodies are binary, and so have no charset.
_BINARY = re.compile(r"application/(x-protobuf|protobuf|octet-stream)\b", re.IGNORECASE)

Environ = dict[str, Any]


class Inflater(NamedTuple):
    """A function that decompresses one Content-Encoding, and its measured memory.

    `inflate` yields at most INFLATE_STEP_BYTES at once, and does not keep its input. In addition to
    its state, it keeps a copy of the last `window_bytes` that it yielded.
    """

    inflate: Callable[[Iterator[bytes]], Iterator[bytes]]
    state_bytes: int
    window_bytes: int

    def held_bytes(self, size: int) -> int:
        """Return the memory of the decompressor after it has yielded `size` bytes."""
        return self.state_bytes + min(size, self.window_bytes)


class BodyReader:
    """Read bodies of at most `max_bytes`, decompressed, each within `timeout_seconds`.

    Memory is reserved as bytes arrive: a client that sends nothing holds none.
    """

    def __init__(self, max_bytes: int, timeout_seconds: float) -> None:
        self.max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._deadlines = Deadlines(lambda: timeout_seconds, self._too_slow)

    def read(self, environ: Environ, reservation: MemoryReservation) -> bytes:
        """Return the body, decompressed according to its Content-Encoding.

        Raises Rejection: `length_required`, `unsupported_charset`, `unsupported_encoding` or
        `body_too_large` before a byte is read if the headers show it; else `body_too_large`,
        `body_timeout`, `invalid_encoding`, `invalid_json` for a body that ends early, and
        `queue_full` if there is no memory.
        """
        _check_headers(environ)
        encoding = environ.get("HTTP_CONTENT_ENCODING")
        inflater = find_inflater(encoding) if encoding else None
        length = int(environ.get("CONTENT_LENGTH") or -1)
        if length > self.max_bytes:
            raise Rejection(*body_too_large(self.max_bytes))
        if length > SHORT_BYTES:
            reservation.check(length)
        stream = environ["wsgi.input"]
        try:
            with self._deadlines:
                if length < 0 or inflater:
                    return self._read_stream(stream, length, inflater, reservation)
                read = _read_short if length <= SHORT_BYTES else _read_long
                return read(stream, length, reservation)
        except OSError:  # the client vanished, or its chunks are malformed
            raise _ended_early() from None

    def _read_stream(
        self, stream: Any, length: int, inflater: Inflater | None, reservation: MemoryReservation
    ) -> bytes:
        body = _GrowingBody(reservation)
        sent = _SentPieces(stream, length, self.max_bytes)
        for piece in inflater.inflate(sent) if inflater else sent:
            size = body.size + len(piece)
            if size > self.max_bytes:
                raise Rejection(*body_too_large(self.max_bytes))
            body.add(piece, sent.held_bytes + (inflater.held_bytes(size) if inflater else 0))
            del piece  # during the wait for the client, only charged memory is held
            yield_if_due()
        return body.finish()

    def _too_slow(self) -> Rejection:
        seconds = f"{self._timeout_seconds:g}"
        return Rejection("body_timeout", f"The body did not arrive within {seconds} seconds.")


def _read_short(stream: Any, length: int, reservation: MemoryReservation) -> bytes:
    """Return a body of at most SHORT_BYTES, which usually arrives at once."""
    body: bytes = stream.read1(length)
    reservation.resize(length)
    while len(body) < length:
        piece = stream.read1(length - len(body))
        if not piece:
            raise _ended_early()
        body += piece
        yield_if_due()
    return body


def _read_long(stream: Any, length: int, reservation: MemoryReservation) -> bytes:
    """Return a longer body; its memory is reserved as it arrives."""
    body = _GrowingBody(reservation)
    while body.size < length:
        if not body.add(stream.read1(length - body.size)):
            raise _ended_early()
        yield_if_due()
    return body.finish()


def _check_headers(environ: Environ) -> None:
    """Reject a body of unknown length, and text in a charset other than UTF-8."""
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
    """A body that arrives in pieces; its memory is charged.

    The pieces are not copied before they are all there: the gaps that copies leave in the heap take
    as much as the body.
    """

    def __init__(self, reservation: MemoryReservation) -> None:
        self._reservation = reservation
        self._pieces: list[bytes] = []
        self._joined = 0  # of these
        self.size = 0

    def add(self, piece: bytes, held_bytes: int = 0) -> int:
        """Append a piece and return its size; `held_bytes` are charged in addition."""
        self.size += len(piece)
        self._pieces.append(piece)
        if len(self._pieces) - self._joined == JOINED_PIECES:
            self._pieces[self._joined :] = [b"".join(self._pieces[self._joined :])]
            self._joined += 1
        overhead = PIECE_OVERHEAD_BYTES * len(self._pieces)
        self._reservation.resize(self.size + overhead + held_bytes)
        return len(piece)

    def finish(self) -> bytes:
        """Return the body, charged with its size."""
        self._reservation.resize(self.size)
        return b"".join(self._pieces)


class _SentPieces:
    """The pieces of a body before decompression, each yielded as it arrives.

    Raises Rejection for a body that is too large before decompression: there are compressed bodies
    of any size that decompress to nothing.
    """

    def __init__(self, stream: Any, length: int, max_bytes: int) -> None:
        """Read a body of `length` bytes, -1 if unknown, since it comes in chunks."""
        self._stream = stream
        self._is_length_known = length >= 0
        self._left = length if self._is_length_known else sys.maxsize
        self._max_bytes = max_bytes
        self._size = 0
        #: Bytes of the last piece, if the parser of the chunks still holds it.
        self.held_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        size = min(self._left, INFLATE_STEP_BYTES)
        piece: bytes = self._stream.read1(size) if size else b""
        if not piece:
            if self._is_length_known and self._left:
                raise _ended_early()
            raise StopIteration
        self._left -= len(piece)
        self._size += len(piece)
        if self._size > self._max_bytes:
            raise Rejection(*body_too_large(self._max_bytes))
        self.held_bytes = 0 if self._is_length_known else len(piece)
        return piece


def find_inflater(encoding: str) -> Inflater | None:
    """Return the decompressor for a Content-Encoding, None for identity.

    Raises Rejection `unsupported_encoding`; more than one coding at once is not supported.
    """
    coding = encoding.strip().lower()
    if coding in ("", "identity"):
        return None
    if coding not in INFLATERS:
        known = ", ".join(INFLATERS)
        message = f"The Content-Encoding is not supported; use {known} or none."
        raise Rejection("unsupported_encoding", message)
    return INFLATERS[coding]


def _count(members: int) -> int:
    """Count one more member, and reject the body if there are too many."""
    if members == MAX_MEMBERS:
        message = f"The body consists of more than {MAX_MEMBERS} compressed parts."
        raise Rejection("invalid_encoding", message)
    return members + 1


def _inflate_zlib(chunks: Iterator[bytes], window_bits: Callable[[bytes], int]) -> Iterator[bytes]:
    """Yield the decompressed bytes, INFLATE_STEP_BYTES at most at once.

    Sources: RFC 1950, 1951, 1952.
    """
    stream: Any = None
    members = 0
    try:
        while (rest := next(chunks, None)) is not None:
            while rest:
                if stream is None or stream.eof:  # gzip members may follow one another
                    members = _count(members)
                    stream = zlib.decompressobj(window_bits(rest))
                yield stream.decompress(rest, INFLATE_STEP_BYTES)
                rest = stream.unused_data if stream.eof else stream.unconsumed_tail
        if stream is not None:
            yield stream.flush()  # at most one match of 258 bytes
    except zlib.error:
        raise Rejection(*DAMAGED_ENCODING) from None
    if stream is None or not stream.eof:
        raise Rejection(*UNFINISHED_ENCODING)


def _find_window_bits(start: bytes) -> int:
    """Return those of zlib's format, as the standard requires, or of bare deflate, as some send."""
    return zlib.MAX_WBITS if start[0] & 0x0F == 8 else -zlib.MAX_WBITS


def _inflate_zstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the decompressed bytes, INFLATE_STEP_BYTES at most at once. Source: RFC 8878."""
    stream: Any = None
    members = 0
    try:
        while (rest := next(chunks, None)) is not None:
            while rest:
                if stream is None or stream.eof:  # frames may follow one another
                    members = _count(members)
                    stream = zstd.ZstdDecompressor(options=ZSTD_OPTIONS)
                yield stream.decompress(rest, INFLATE_STEP_BYTES)
                while not (stream.eof or stream.needs_input):
                    yield stream.decompress(b"", INFLATE_STEP_BYTES)
                rest = stream.unused_data if stream.eof else b""
    except zstd.ZstdError:
        raise Rejection(*DAMAGED_ENCODING) from None
    if stream is None or not stream.eof:
        raise Rejection(*UNFINISHED_ENCODING)


_GZIP = Inflater(
    partial(_inflate_zlib, window_bits=lambda start: 16 + zlib.MAX_WBITS),
    state_bytes=48 * 1024,
    window_bytes=0,
)

INFLATERS: dict[str, Inflater] = {
    "gzip": _GZIP,
    "x-gzip": _GZIP,
    "deflate": _GZIP._replace(inflate=partial(_inflate_zlib, window_bits=_find_window_bits)),
    "zstd": Inflater(_inflate_zstd, state_bytes=256 * 1024, window_bytes=1 << ZSTD_WINDOW_LOG),
}
