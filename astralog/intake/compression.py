"""Undo a Content-Encoding step by step, so that a body is bounded while it inflates."""

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from astralog.errors import Rejection

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Bytes inflated at once.
STEP_BYTES = 64 * 1024

#: Members or frames that a compressed body may consist of: to begin one takes up to 20 µs, and the
#: smallest has 2 bytes. Beyond it, the body is rejected: 400 `invalid_encoding`.
MAX_MEMBERS = 10_000

#: The largest window a zstd frame may ask for, 8 MiB, as RFC 9659 has it for HTTP.
ZSTD_WINDOW_LOG = 23
ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}


class Inflater(NamedTuple):
    """How a Content-Encoding is undone, and the memory that this takes, measured.

    `inflate` yields at most STEP_BYTES at once, and does not hold on to what it was given. Beside
    its state, it keeps a copy of the last `window_bytes` that it yielded.
    """

    inflate: Callable[[Iterator[bytes]], Iterator[bytes]]
    state_bytes: int
    window_bytes: int

    def held_bytes(self, size: int) -> int:
        """Return the bytes that it holds after it has yielded `size` bytes."""
        return self.state_bytes + min(size, self.window_bytes)


def find_inflater(encoding: str) -> Inflater | None:
    """Return what undoes a Content-Encoding, None for identity.

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
    """Count one more member, and reject the body where that is too many."""
    if members == MAX_MEMBERS:
        message = f"The body consists of more than {MAX_MEMBERS} compressed parts."
        raise Rejection("invalid_encoding", message)
    return members + 1


def _inflate_zlib(chunks: Iterator[bytes], window_bits: Callable[[bytes], int]) -> Iterator[bytes]:
    """Yield the inflated bytes, STEP_BYTES at most at once. Sources: RFC 1950, 1951, 1952."""
    stream: Any = None
    members = 0
    try:
        while (rest := next(chunks, None)) is not None:
            while rest:
                if stream is None or stream.eof:  # gzip members may follow one another
                    members = _count(members)
                    stream = zlib.decompressobj(window_bits(rest))
                yield stream.decompress(rest, STEP_BYTES)
                rest = stream.unused_data if stream.eof else stream.unconsumed_tail
        if stream is not None:
            yield stream.flush()  # at most one match of 258 bytes
    except zlib.error:
        raise Rejection("invalid_encoding", "The body does not inflate.") from None
    if stream is None or not stream.eof:
        raise Rejection("invalid_encoding", "The compressed body ends early.")


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
        while (rest := next(chunks, None)) is not None:
            while rest:
                if stream is None or stream.eof:  # frames may follow one another
                    members = _count(members)
                    stream = zstd.ZstdDecompressor(options=ZSTD_OPTIONS)
                yield stream.decompress(rest, STEP_BYTES)
                while not (stream.eof or stream.needs_input):
                    yield stream.decompress(b"", STEP_BYTES)
                rest = stream.unused_data if stream.eof else b""
    except zstd.ZstdError:
        raise Rejection("invalid_encoding", "The body does not inflate.") from None
    if stream is None or not stream.eof:
        raise Rejection("invalid_encoding", "The compressed body ends early.")


_GZIP = Inflater(_inflate_gzip, state_bytes=48 * 1024, window_bytes=0)

INFLATERS: dict[str, Inflater] = {
    "gzip": _GZIP,
    "x-gzip": _GZIP,
    "deflate": _GZIP._replace(inflate=_inflate_deflate),
    "zstd": Inflater(_inflate_zstd, state_bytes=256 * 1024, window_bytes=1 << ZSTD_WINDOW_LOG),
}
