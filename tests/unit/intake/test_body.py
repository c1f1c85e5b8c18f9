import gzip
import io
import itertools
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
import gevent.socket
import pytest

from astralog.deadlines import TIME_SLICE_SECONDS
from astralog.errors import Rejection
from astralog.intake import body as body_module
from astralog.intake.body import (
    INFLATE_STEP_BYTES,
    INFLATERS,
    JOINED_PIECES,
    PIECE_OVERHEAD_BYTES,
    SHORT_BYTES,
    BodyReader,
)
from astralog.zstd import zstd
from tests.support.decoding import Room

MAX_BYTES = 2 * INFLATE_STEP_BYTES + 1000


class Stream:
    """A client that sends `parts` one after another and calls `after` at the end."""

    def __init__(self, *parts: bytes, after: Callable[[], object] | None = None) -> None:
        self._parts = list(parts)
        self._after = after
        self.asked: list[int] = []

    def read1(self, size: int) -> bytes:
        """Return up to `size` bytes that are available, as a chunked body does."""
        self.asked.append(size)
        if not self._parts:
            if self._after:
                self._after()
            return b""
        part = self._parts.pop(0)
        if len(part) > size:
            self._parts.insert(0, part[size:])
        return part[:size]


def environ(
    body: Any, length: int | None = None, encoding: str | None = None, terminated: bool = True
) -> dict[str, Any]:
    """Return the part of a WSGI environ that describes a body; bytes have their length."""
    made: dict[str, Any] = {"wsgi.input_terminated": terminated}
    if isinstance(body, bytes):
        length = len(body) if length is None else length
        body = io.BytesIO(body)
    made["wsgi.input"] = body
    if length is not None:
        made["CONTENT_LENGTH"] = str(length)
    if encoding is not None:
        made["HTTP_CONTENT_ENCODING"] = encoding
    return made


def read(made: dict[str, Any], room: Room | None = None, timeout_seconds: float = 10) -> bytes:
    return BodyReader(MAX_BYTES, timeout_seconds).read(made, room or Room())


def code_of(made: dict[str, Any], room: Room | None = None, timeout_seconds: float = 10) -> str:
    with pytest.raises(Rejection) as rejected:
        read(made, room, timeout_seconds)
    return rejected.value.code


@pytest.mark.parametrize("body", [b"", b"x", b"x" * MAX_BYTES], ids=len)
@pytest.mark.parametrize("encoding", [None, "", "identity", " Identity "])
def test_body_of_known_length_is_read_whole(body: bytes, encoding: str | None) -> None:
    """A body up to the limit is returned as sent, and its memory is reserved."""
    room = Room()
    assert body == read(environ(body, encoding=encoding), room)
    assert len(body) == room.sizes[-1]
    assert max(room.sizes) <= len(body) + body_module.PIECE_OVERHEAD_BYTES


def test_no_more_than_the_declared_length_is_read() -> None:
    """The bytes after a body belong to the next request."""
    stream = io.BytesIO(b"body" + b"NEXT")
    assert b"body" == read(environ(stream, length=4))
    assert b"NEXT" == stream.read()


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_content_length_over_the_limit_is_rejected_before_the_body(encoding: str | None) -> None:
    """The declared length alone rejects a body; neither bytes nor memory are needed."""
    stream, room = Stream(b"x"), Room()
    assert "body_too_large" == code_of(environ(stream, MAX_BYTES + 1, encoding), room)
    assert [] == stream.asked
    assert [] == room.sizes


def test_chunked_body_is_read_to_its_end() -> None:
    """Its chunks are joined, and memory is reserved for each."""
    room = Room()
    assert b"one two" == read(environ(Stream(b"one", b" ", b"two")), room)
    assert room.sizes[0] >= 3
    assert 7 == room.sizes[-1]


def test_chunked_body_of_exactly_the_limit_is_accepted() -> None:
    """The limit holds for chunked bodies to the byte."""
    assert b"x" * MAX_BYTES == read(environ(Stream(b"x" * MAX_BYTES)))
    assert "body_too_large" == code_of(environ(Stream(b"x" * (MAX_BYTES + 1))))


def test_endless_body_is_rejected_at_the_limit() -> None:
    """Little of a chunked body is read beyond the limit."""
    stream = Stream(*[b"x" * INFLATE_STEP_BYTES] * 100)
    room = Room()
    assert "body_too_large" == code_of(environ(stream), room)
    assert sum(stream.asked) <= MAX_BYTES + INFLATE_STEP_BYTES
    assert max(stream.asked) <= INFLATE_STEP_BYTES
    assert max(room.sizes) <= MAX_BYTES + INFLATE_STEP_BYTES + JOINED_PIECES * PIECE_OVERHEAD_BYTES


@pytest.mark.parametrize(
    ("encoding", "empty"),
    [
        ("deflate", b"\x00\x00\x00\xff\xff"),  # a stored block of no bytes
        ("zstd", b"\x50\x2a\x4d\x18\xff\xff\x00\x00" + bytes(0xFFFF)),  # a frame to be skipped
    ],
)
def test_body_without_decompressed_bytes_is_limited_before_decompression(
    encoding: str, empty: bytes
) -> None:
    """It would never exceed the limit after decompression."""
    stream = Stream(*[empty * (20_000 // len(empty) + 1)] * 20)
    assert "body_too_large" == code_of(environ(stream, None, encoding))
    assert len(stream._parts) > 10


def test_body_with_neither_length_nor_chunks_is_rejected() -> None:
    """Nothing is read if the end of the body is unknown."""
    stream = Stream(b"x")
    assert "length_required" == code_of(environ(stream, terminated=False))
    assert [] == stream.asked
    assert b"" == read(environ(b"", terminated=False))


@pytest.mark.parametrize(
    ("content_type", "is_taken"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ('application/json; charset="UTF-8"', True),
        ("application/json;charset=utf8;x=y", True),
        ("application/json; CHARSET = US-ASCII", True),
        ("application/json; charset=", True),
        ("application/json; profile=charset", True),
        ("application/x-protobuf; charset=iso-8859-1", True),
        ("application/json; charset=iso-8859-1", False),
        ("application/x-ndjson; x=y; charset=utf-16", False),
        ('text/plain; charset="windows-1252"', False),
        ("; charset=\xff", False),
        (";" * 4000 + "charset=utf-7", False),
    ],
)
def test_charset_other_than_utf_8_is_rejected(content_type: str, is_taken: bool) -> None:
    """It is rejected before a byte is read; its name is not repeated, since it may be anything."""
    stream = Stream(b"{}")
    made = environ(stream, 2) | {"CONTENT_TYPE": content_type}
    if is_taken:
        assert b"{}" == read(made)
    else:
        assert "unsupported_charset" == code_of(made)
        assert [] == stream.asked


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_body_that_ends_early_is_rejected(encoding: str | None) -> None:
    """A client that vanishes before its declared length has sent nothing to store."""
    assert "invalid_json" == code_of(environ(gzip.compress(b"{}"), 1000, encoding))


@pytest.mark.parametrize("error", [ConnectionResetError(), OSError("gone")], ids=repr)
def test_lost_connection_is_a_body_that_ends_early(error: Exception) -> None:
    """A reset connection or a malformed chunk is an error of the client."""

    def fail() -> None:
        raise error

    assert "invalid_json" == code_of(environ(Stream(b"{", after=fail)))


# --- Room


@pytest.mark.parametrize("length", [1400, None])
def test_body_without_memory_is_rejected(length: int | None) -> None:
    """If memory runs out, the body is not read further."""
    stream = Stream(b"x" * 1000, b"x" * 400)
    assert "queue_full" == code_of(environ(stream, length), Room(999))
    assert 1 == len(stream._parts)


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_long_body_without_memory_is_rejected_before_it_is_read(encoding: str | None) -> None:
    """The client need not send it first."""
    stream, room = Stream(b"x"), Room(SHORT_BYTES)
    assert "queue_full" == code_of(environ(stream, SHORT_BYTES + 1, encoding), room)
    assert ([], []) == (stream.asked, room.sizes)


@pytest.mark.parametrize("length", [SHORT_BYTES, MAX_BYTES, None])
@pytest.mark.parametrize("encoding", [None, "gzip", "zstd"])
def test_client_that_sends_nothing_holds_no_memory(
    length: int | None, encoding: str | None
) -> None:
    """The Content-Length and the number of such clients do not matter."""
    room = Room()
    silent = Stream(after=lambda: gevent.sleep(30))
    assert "body_timeout" == code_of(environ(silent, length, encoding), room, 0.05)
    assert [] == room.sizes


@pytest.mark.parametrize("sizes", [[9, 1], [SHORT_BYTES - 1, 1], [7_000, 20_000, 2_500]])
def test_short_body_is_reserved_once_with_its_first_bytes(sizes: list[int]) -> None:
    """It arrives in two parts if it is longer than the bytes received with the head."""
    data = bytes(place % 251 for place in range(sum(sizes)))
    ends = list(itertools.accumulate(sizes))
    pieces = [data[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    room = Room()
    assert data == read(environ(Stream(*pieces), len(data)), room)
    assert len(data) == room.sizes[0] == room.sizes[-1]
    assert max(room.sizes) <= len(data) + len(pieces) * PIECE_OVERHEAD_BYTES


@pytest.mark.parametrize("length", [SHORT_BYTES, SHORT_BYTES + 1])
def test_body_in_tiny_pieces_takes_little_more_than_its_bytes(length: int) -> None:
    """The pieces are joined, so their objects do not take memory beyond the charge."""
    data = bytes(place % 251 for place in range(length))
    room = Room()
    assert data == read(environ(Stream(*in_parts(data, 2)), length), room)
    assert max(room.sizes) <= 1.6 * length


@pytest.mark.parametrize("length", [MAX_BYTES, None])
@pytest.mark.parametrize("pieces", [[1] * 500, [7, 5000, 1, 60_000]])
def test_arrived_bytes_are_reserved_before_the_next_read(
    length: int | None, pieces: list[int]
) -> None:
    """The last chunk is charged twice, since the parser holds it too."""
    room, arrived = Room(), 0
    stream = Stream(*map(bytes, pieces))

    def read1(size: int) -> bytes:
        nonlocal arrived
        held = room.sizes[-1] if room.sizes else 0
        most = arrived + (0 if length else INFLATE_STEP_BYTES) + 64 * PIECE_OVERHEAD_BYTES
        assert arrived <= held <= most + arrived // JOINED_PIECES * PIECE_OVERHEAD_BYTES
        piece = Stream.read1(stream, size)
        arrived += len(piece)
        return piece

    stream.read1 = read1  # type: ignore[method-assign]
    with suppress(Rejection):  # one of a known length ends early
        read(environ(stream, length), room)
    assert sum(pieces) == arrived


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_compressed_body_is_charged_with_its_decompressed_size(encoding: str) -> None:
    """During decompression, the decompressor's state and window are charged too."""
    sent = gzip.compress(b"x" * 100_000) if encoding == "gzip" else zstd.compress(b"x" * 100_000)
    room = Room()
    read(environ(sent, encoding=encoding), room)
    inflater = INFLATERS[encoding]
    assert 100_000 + inflater.held_bytes(100_000) <= max(room.sizes)
    assert 100_000 == room.sizes[-1]
    assert "queue_full" == code_of(environ(sent, encoding=encoding), Room(99_999))


@pytest.mark.parametrize(
    ("encoding", "window_log", "size"),
    [("gzip", 0, 20), ("gzip", 0, 60_000), ("zstd", 10, 100_000), ("zstd", 23, 2_000_000)],
)
def test_decompressor_holds_no_more_than_is_charged(
    encoding: str, window_log: int, size: int
) -> None:
    """Measured in a separate process: its state, and a copy of the last bytes."""
    said = INFLATERS[encoding].held_bytes(size)
    held = int(
        subprocess.check_output(
            [sys.executable, "-c", MEASURE_INFLATERS, encoding, str(window_log), str(size)]
        )
    )
    assert held <= said


#: Prints the memory that each of some inflaters holds that wait for more, in bytes.
MEASURE_INFLATERS = """
import os, re, sys, zlib
from astralog.zstd import zstd
encoding, window_log, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = os.urandom(size)
if encoding == "gzip":
    packer = zlib.compressobj(wbits=31)
    sent = packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)
else:
    option = zstd.CompressionParameter
    packer = zstd.ZstdCompressor(options={option.window_log: window_log})
    sent = packer.compress(data) + packer.flush(zstd.ZstdCompressor.FLUSH_BLOCK)[:-1]

def rss():
    return 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])

def start():
    one = zlib.decompressobj(31) if encoding == "gzip" else zstd.ZstdDecompressor()
    for place in range(0, len(sent), 65536):
        one.decompress(sent[place : place + 65536])
    return one

start()
before = rss()
kept = [start() for _ in range(20)]
print((rss() - before) // len(kept))
"""


# --- Time


@pytest.mark.parametrize("length", [100, None])
@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_slow_body_is_a_body_timeout(length: int | None, encoding: str | None) -> None:
    """The rejection names the limit."""
    with pytest.raises(Rejection) as rejected:
        read(environ(Stream(after=lambda: gevent.sleep(30)), length, encoding), None, 0.05)
    assert "body_timeout" == rejected.value.code
    assert "0.05 seconds" in rejected.value.message


def test_trickling_body_gets_no_more_time() -> None:
    """The timeout is for the whole body, not for each part."""

    def trickle(size: int) -> bytes:
        gevent.sleep(0.02)
        return b"x"

    stream = Stream()
    stream.read1 = trickle  # type: ignore[method-assign]
    assert "body_timeout" == code_of(environ(stream), None, 0.2)


def test_timeout_of_the_caller_passes_through() -> None:
    """A timeout around the request is not caught."""
    with gevent.Timeout(0.05) as timeout:
        with pytest.raises(gevent.Timeout) as raised:
            read(environ(Stream(after=lambda: gevent.sleep(30))))
        assert timeout is raised.value


def test_body_in_time_leaves_no_timeout_behind() -> None:
    """The timeout of a body ends with the body."""
    read(environ(b"x"), None, 0.05)
    gevent.sleep(0.1)


class Busy(Stream):
    """A client with an arrived body, and some computation before each part."""

    def read1(self, size: int) -> bytes:
        """Return the next part after more than a time slice of work."""
        end = time.monotonic() + 1.5 * TIME_SLICE_SECONDS
        while time.monotonic() < end:
            pass
        return super().read1(size)


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_body_that_has_arrived_lets_others_run(encoding: str | None) -> None:
    """Between two expensive parts, sockets are polled."""

    def answer() -> None:
        while True:
            us.recv(1)
            us.send(b"answer")
            served.append(1)

    served: list[int] = []
    them, us = gevent.socket.socketpair()
    other = gevent.spawn(answer)
    gevent.sleep(0)  # it waits now
    with them, us:
        them.send(b"123456789")
        parts = list(in_parts(gzip.compress(b"some of it"), 4))
        read(environ(Busy(*parts), None, encoding))
        assert len(served) >= 3
        other.kill()


# --- Inflating


def raw_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


CODINGS = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    (" GZip ", gzip.compress),
    ("zstd", zstd.compress),
    ("deflate", zlib.compress),
    ("Deflate", raw_deflate),
]

BODIES = [
    b"",
    b"{}",
    b"a" * INFLATE_STEP_BYTES,
    b"a" * (INFLATE_STEP_BYTES + 1),
    b"ab" * INFLATE_STEP_BYTES,
    bytes(range(256)) * 500,
    b"x" * MAX_BYTES,
]


def in_parts(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


@pytest.mark.parametrize(("encoding", "compress"), CODINGS)
@pytest.mark.parametrize("body", BODIES, ids=len)
def test_compressed_body_is_decompressed(
    encoding: str, compress: Callable[[bytes], bytes], body: bytes
) -> None:
    """Every encoding restores the body, whole or in parts of any length."""
    sent = compress(body)
    assert body == read(environ(sent, encoding=encoding))
    for size in (1, 7) if len(sent) < 3000 else (997,):
        assert body == read(environ(Stream(*in_parts(sent, size)), None, encoding))
        assert body == read(environ(Stream(*in_parts(sent, size)), len(sent), encoding))


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstd.compress)]
)
def test_members_may_follow_one_another(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """A body of several compressed files is decompressed to its end, however it is cut."""
    parts = [b"a" * INFLATE_STEP_BYTES, b"", b"b" * 10, b"c" * 1000]
    sent = b"".join(map(compress, parts))
    for size in (1, 13, len(sent)):
        assert b"".join(parts) == read(environ(Stream(*in_parts(sent, size)), None, encoding))


@pytest.mark.parametrize(("encoding", "compress"), CODINGS)
def test_number_of_members_is_limited(
    monkeypatch: pytest.MonkeyPatch, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    """Starting a member costs more than sending it."""
    monkeypatch.setattr(body_module, "MAX_MEMBERS", 5)
    assert b"xxxxx" == read(environ(compress(b"x") * 5, encoding=encoding))
    with pytest.raises(Rejection) as rejected:
        read(environ(compress(b"x") * 6, encoding=encoding))
    assert "invalid_encoding" == rejected.value.code
    assert "more than 5" in rejected.value.message


@pytest.mark.parametrize(("encoding", "compress"), CODINGS)
def test_truncated_body_is_rejected(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """A compressed body that ends early is rejected, wherever it is cut."""
    sent = compress(b'{"logs": []}' * 20)
    for end in range(len(sent)):
        assert "invalid_encoding" == code_of(environ(sent[:end], encoding=encoding))


@pytest.mark.parametrize(
    ("sent", "encoding"),
    [
        (b'{"logs": []}', "gzip"),
        (b'{"logs": []}', "deflate"),
        (b"", "gzip"),
        (b"", "deflate"),
        (zlib.compress(b"{}"), "gzip"),
        (gzip.compress(b"{}", mtime=0), "deflate"),
        (gzip.compress(b"{}", mtime=0) + b"rest", "gzip"),
        (gzip.compress(b"{}", mtime=0) + gzip.compress(b"{}", mtime=0)[:-1], "gzip"),
        (gzip.compress(b"{}" * 50, mtime=0)[:-8] + bytes(8), "gzip"),
        (zlib.compress(b"{}" * 50)[:-4] + bytes(4), "deflate"),
        (b"\x1f\x8b\x08" + b"\xff" * 50, "gzip"),
        (zstd.compress(b"{}")[:-1], "zstd"),
        (zstd.compress(b"{}") + b"rest", "zstd"),
        (gzip.compress(b"{}", mtime=0), "zstd"),
        (b"", "zstd"),
    ],
)
def test_corrupt_body_is_rejected(sent: bytes, encoding: str) -> None:
    """Invalid data and a wrong checksum are rejected."""
    assert "invalid_encoding" == code_of(environ(sent, encoding=encoding))


@pytest.mark.parametrize(("encoding", "compress"), CODINGS)
def test_decompression_bomb_is_rejected_at_the_limit(
    encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    """A small body that decompresses beyond the limit is rejected, and never in memory whole."""
    room = Room()
    bomb = compress(bytes(20 * 1024 * 1024))
    assert len(bomb) < MAX_BYTES
    assert "body_too_large" == code_of(environ(bomb, encoding=encoding), room)
    assert max(room.sizes) <= 2 * MAX_BYTES + 256 * 1024
    assert "body_too_large" == code_of(environ(compress(b"x" * (MAX_BYTES + 1)), encoding=encoding))


@pytest.mark.parametrize(("encoding", "compress"), CODINGS)
def test_decompression_bomb_is_decompressed_step_by_step(
    encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    """At most one step of its output is in memory at once."""
    bomb = compress(bytes(20 * 1024 * 1024))
    pieces = list(map(len, INFLATERS[encoding.strip().lower()].inflate(iter([bomb]))))
    assert 20 * 1024 * 1024 == sum(pieces)
    assert max(pieces) <= INFLATE_STEP_BYTES


@pytest.mark.parametrize(("window_log", "is_taken"), [(23, True), (24, False), (27, False)])
def test_zstd_window_is_limited_to_8_mib(window_log: int, is_taken: bool) -> None:
    """A few bytes could otherwise take 128 MiB of uncharged memory."""
    option = zstd.CompressionParameter
    options: dict[int, int] = {option.window_log: window_log, option.content_size_flag: 0}
    packer = zstd.ZstdCompressor(options=options)
    made = environ(packer.compress(b"{}") + packer.flush(), encoding="zstd")
    if is_taken:
        assert b"{}" == read(made)
    else:
        assert "invalid_encoding" == code_of(made)


@pytest.mark.parametrize(
    "encoding", ["br", "compress", "gzip, gzip", "gzip;q=1", "*", "gzıp", "\xff"]
)
def test_unknown_encoding_is_rejected_before_the_body_is_read(encoding: str) -> None:
    """The rejection names the supported codings."""
    stream = Stream(b"x")
    with pytest.raises(Rejection) as rejected:
        read(environ(stream, 1, encoding))
    assert "unsupported_encoding" == rejected.value.code
    assert "gzip" in rejected.value.message
    assert [] == stream.asked
