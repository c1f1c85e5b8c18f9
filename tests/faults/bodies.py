"""Bodies that must be rejected: they lie, are dear to inflate or to parse, or are cut short."""

import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache

from tests.support.service import make_batch, make_head, make_log

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1024 * 1024

#: The largest body, and the decompressed size of the bombs.
BODY_BYTES = 10 * MIB
BOMB_BYTES = 100 * MIB

#: A zstd frame up to its window descriptor, which is one byte more. Source: RFC 8878, 3.1.1.
FRAME = b"\x28\xb5\x2f\xfd\0"
WINDOW_8_MIB = b"\x68"


def lying_bodies() -> Iterator[tuple[str, bytes, bytes]]:
    """Yield bodies that must be rejected: name, head and bytes."""
    batch = json.dumps(make_batch("x")).encode()
    for length in ("5000", "-1", "+5", "5_0", "0x10", "1e3", "99999999999999999999", " ", "5 5"):
        yield f"Content-Length {length}", make_head(f"Content-Length: {length}"), batch
    for chunk in (
        b"zz\r\nx",
        b"-1\r\n",
        b"5\r\nab",
        b"FFFFFFFFFFFFFFFF\r\nx",
        b"\r\n",
        b"5\nabcde",
    ):
        yield f"chunk {chunk!r}", make_head("Transfer-Encoding: chunked"), chunk
    for what, body in _heavy_bodies():
        yield what, make_head(f"Content-Length: {len(body)}"), body
        yield f"{what}, NDJSON", *_with_type("application/x-ndjson", body)


def _heavy_bodies() -> Iterator[tuple[str, bytes]]:
    size = BODY_BYTES
    log = json.dumps(make_log(metadata={"x": 1}))[:-2]  # ready for more metadata
    yield "10 MiB of [", b"[" * size
    yield '10 MiB of {"a":', (b'{"a":' * (size // 5))[:size]
    yield "10 MiB of quotes", b'"' * size
    yield "10 MiB of backslashes", b'{"logs":["' + b"\\" * (size - 20)
    yield "10 MiB of zeros", bytes(size)
    yield "a long list of nothing", b'{"logs":[' + b"0," * (size // 2 - 10) + b"0]}"
    keys = ",".join(f'"k{number}":{number}' for number in range(500_000))
    yield "half a million keys", f'{{"logs":[{log},{keys}}}}}]}}'.encode()
    yield "an unknown field each", f'{{"logs":[{{{keys}}}]}}'.encode()
    # Beside metadata, which keeps any number as it was sent.
    yield "a number of a million digits", f'{{"logs":[{log}}},"n":{"9" * 10**6}}}]}}'.encode()
    yield "an exponent", f'{{"logs":[{log}}},"n":1e999999999}}]}}'.encode()
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    yield "deep metadata", f'{{"logs":[{log},"d":{deep}}}}}]}}'.encode()
    yield (
        "a timestamp of a million",
        json.dumps({"logs": [make_log(timestamp="9" * 10**6)]}).encode(),
    )


def _with_type(kind: str, body: bytes) -> tuple[bytes, bytes]:
    return make_head(f"Content-Type: {kind}", f"Content-Length: {len(body)}"), body


@lru_cache(8)  # three codings wrap the same bombs, each of which takes half a second
def _deflate_raw(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def _deflate_in_gzip(data: bytes) -> bytes:
    """Return gzip of the same deflate. Source: RFC 1952, 2.3."""
    end = zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + _deflate_raw(data) + end


def _deflate_in_zlib(data: bytes) -> bytes:
    """Return zlib's form of the same deflate. Source: RFC 1950, 2.2."""
    return b"\x78\xda" + _deflate_raw(data) + zlib.adler32(data).to_bytes(4, "big")


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", _deflate_in_gzip),
    "deflate": ("deflate", _deflate_in_zlib),
    "bare deflate": ("deflate", _deflate_raw),
    "zstd": ("zstd", zstd.compress),
}


def bombs() -> Iterator[tuple[str, str, bytes, str]]:
    """Yield bodies that must be rejected: name, coding, bytes and code."""
    batch = json.dumps(make_batch("x")).encode()
    many_zeros, many_spaces = bytes(BOMB_BYTES), b" " * BOMB_BYTES + batch
    for name, (coding, compress) in CODINGS.items():
        sent = compress(batch)
        zeros = compress(many_zeros)
        spaces = compress(many_spaces)
        yield f"{name}, zeros", coding, zeros, "body_too_large"
        yield f"{name}, spaces", coding, spaces, "body_too_large"
        yield f"{name}, nested", coding, compress(zeros), "invalid_json"
        for other in ("gzip", "deflate", "zstd", "identity"):
            for both in (f"{coding}, {other}", f"{other}, {coding}"):
                yield f"{name}, as {both}", both, compress(zeros), "unsupported_encoding"
        for end in range(1, len(sent), 7):
            yield f"{name}, cut at {end}", coding, sent[:end], "invalid_encoding"
        yield f"{name}, a tail", coding, sent + b"\xfftail", "invalid_encoding"
        yield f"{name}, none at all", coding, batch, "invalid_encoding"
        for what, member in (("empty", compress(b"")), ("tiny", compress(b" "))):
            many = member * (BODY_BYTES // len(member))
            yield f"{name}, nothing but {what} members", coding, many, "invalid_encoding"
    for what, body, code in _broken_gzip(batch):
        yield f"gzip, {what}", "gzip", body, code
    for what, body, code in _broken_zstd(batch):
        yield f"zstd, {what}", "zstd", body, code
    # A block of a kind that does not exist, and 10 MiB of blocks of nothing.
    yield "deflate, unknown block", "deflate", zlib.compress(b"")[:2] + b"\x07", "invalid_encoding"
    stored = zlib.compress(b"")[:2] + b"\0\0\0\xff\xff" * (BODY_BYTES // 5 - 1)
    yield "deflate, empty blocks", "deflate", stored, "invalid_encoding"


def _broken_gzip(batch: bytes) -> Iterator[tuple[str, bytes, str]]:
    """Yield name, bytes and code. Source: RFC 1952, 2.3."""
    sent = gzip.compress(batch)
    endless_name = b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (BODY_BYTES - 10)
    yield "a name without an end", endless_name, "invalid_encoding"
    extra = b"\x1f\x8b\x08\x04" + bytes(6) + b"\xff\xff" + b"e" * 100
    yield "less extra than it says", extra, "invalid_encoding"
    yield "wrong checksum", sent[:-8] + bytes(4) + sent[-4:], "invalid_encoding"
    yield "wrong length", sent[:-4] + b"\xff\xff\xff\xff", "invalid_encoding"


def _broken_zstd(batch: bytes) -> Iterator[tuple[str, bytes, str]]:
    """Yield name, bytes and code. Source: RFC 8878, 3.1."""
    last_raw, last_byte = b"\x01\0\0", b"\x03\0\x10 "  # an empty block, and 128 KiB of spaces
    for power, exponent in ((14, "16 MiB"), (17, "128 MiB"), (31, "2 TiB")):
        frame = FRAME + bytes([power << 3]) + last_byte
        yield f"window of {exponent}", frame, "invalid_encoding"
    whole = b"\x28\xb5\x2f\xfd\xe0" + (1 << 62).to_bytes(8, "little") + last_byte
    yield "4 EiB in one segment", whole, "invalid_encoding"
    lie = b"\x28\xb5\x2f\xfd\x20\x05" + last_byte
    yield "5 bytes that are more", lie, "invalid_encoding"
    repeated = b"\x02\0\x10 " * (BODY_BYTES // 4 - 10)  # each 4 bytes inflate to 128 KiB
    yield "340 GB of spaces", FRAME + WINDOW_8_MIB + repeated + last_raw, "body_too_large"
    empty = b"\0\0\0" * (BODY_BYTES // 3 - 10)
    yield "empty blocks", FRAME + WINDOW_8_MIB + empty, "invalid_encoding"
    yield "unknown block", FRAME + WINDOW_8_MIB + b"\x07\0\0", "invalid_encoding"
    yield "unknown dictionary", b"\x28\xb5\x2f\xfd\x03\x68\1\2\3\4" + last_byte, "invalid_encoding"
    skipped = b"\x50\x2a\x4d\x18\0\0\0\0"
    yield "skippable frames", skipped * (BODY_BYTES // 8), "invalid_encoding"
    yield "4 GiB to skip", skipped[:4] + b"\xff" * 1000, "invalid_encoding"
    window = FRAME + WINDOW_8_MIB + b"\x02\0\0 " + b"\x0b\0\0 "
    yield "frames of 8 MiB", window * (BODY_BYTES // len(window)), "invalid_encoding"
    checksum = zstd.compress(batch, options={zstd.CompressionParameter.checksum_flag: 1})
    yield "wrong checksum", checksum[:-4] + b"\xff" * 4, "invalid_encoding"


def honest() -> Iterator[tuple[str, str, bytes]]:
    """Yield valid uses of a coding, with an empty batch: name and the rest."""
    batch = json.dumps({"logs": []}).encode()
    for name, (coding, compress) in CODINGS.items():
        yield f"{name}, honest", coding, compress(batch)
        members = [compress(batch[place : place + 1]) for place in range(len(batch))]
        yield f"{name}, a member each byte", coding, b"".join(members)
