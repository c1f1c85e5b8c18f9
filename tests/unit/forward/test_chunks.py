"""A segment is cut at line ends into chunks that add up to the segment."""

import random
import sys
from pathlib import Path

import pytest

from astralog.forward import chunks
from astralog.forward.chunks import Chunk, ChunkReader
from astralog.store import reader as readers

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NAME = "20261123T062500.123456Z-4711"


def write(directory: Path, content: bytes, suffix: str = ".ndjson") -> None:
    """Write the segment."""
    packed = zstd.compress(content) if suffix.endswith(".zst") else content
    (directory / (NAME + suffix)).write_bytes(packed)


def read_all(directory: Path, size: int, offset: int = 0) -> list[tuple[int, int, bytes, int]]:
    """Return offset, first line, content and number of lines of each chunk."""
    reader = ChunkReader(directory, NAME, offset, size)
    found, line = [], 1
    while chunk := reader.read(line):
        found.append((chunk.offset, chunk.first_line, b"".join(chunk.blocks()), chunk.lines))
        line += chunk.lines
        if reader.is_at_end:
            assert reader.read(line) is None
            break
    reader.close()
    return found


@pytest.mark.parametrize(
    ("content", "size", "expected"),
    [
        (b"", 10, []),
        (b"aa\nbb\n", 6, [(0, 1, b"aa\nbb\n", 2)]),
        (b"aa\nbb\n", 100, [(0, 1, b"aa\nbb\n", 2)]),
        (b"aa\nbb\n", 5, [(0, 1, b"aa\n", 1), (3, 2, b"bb\n", 1)]),
        (b"aa\nbb\n", 1, [(0, 1, b"aa\n", 1), (3, 2, b"bb\n", 1)]),
        (b"aaaaaaaa\nb\nc\n", 4, [(0, 1, b"aaaaaaaa\n", 1), (9, 2, b"b\nc\n", 2)]),
        (b"a\nbbbbbbbb\nc\n", 4, [(0, 1, b"a\n", 1), (2, 2, b"bbbbbbbb\n", 1), (11, 3, b"c\n", 1)]),
        (b"a\nbb", 100, [(0, 1, b"a\nbb", 2)]),
        (b"aaaa\nbbbbbb", 4, [(0, 1, b"aaaa\n", 1), (5, 2, b"bbbbbb", 1)]),
        (b"\n\n\n", 2, [(0, 1, b"\n\n", 2), (2, 3, b"\n", 1)]),
        (b"a\r\n\x85\n", 3, [(0, 1, b"a\r\n", 1), (3, 2, b"\x85\n", 1)]),
    ],
)
@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.zst"])
def test_chunks_end_with_the_last_line_that_fits(
    tmp_path: Path,
    content: bytes,
    size: int,
    expected: list[tuple[int, int, bytes, int]],
    suffix: str,
) -> None:
    """A chunk has as many lines as fit, or one that is too long, in any form of a segment."""
    write(tmp_path, content, suffix)
    assert expected == read_all(tmp_path, size)


def random_lines(source: random.Random, count: int) -> bytes:
    """Return lines of many lengths."""
    lengths = [source.choice((0, 1, 7, 30, 200, 3000)) for _ in range(count)]
    return b"".join(bytes([65 + n % 26]) * n + b"\n" for n in lengths)


@pytest.mark.parametrize("seed", range(20))
def test_chunks_join_to_the_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """For any lengths of lines, chunks and blocks, and any start, nothing is lost."""
    source = random.Random(seed)
    monkeypatch.setattr(chunks, "BLOCK_BYTES", source.choice((1, 16, 1000)))
    monkeypatch.setattr(readers, "BLOCK_BYTES", source.choice((1, 16, 1000)))
    content = random_lines(source, 200) + source.choice((b"", b"rest"))
    write(tmp_path, content)
    size = source.choice((1, 10, 500, 5000, 10**6))
    found = read_all(tmp_path, size)
    assert content == b"".join(part for _, _, part, _ in found)
    assert all(len(part) <= size or lines == 1 for _, _, part, lines in found)
    middle = source.choice(found)
    assert found[found.index(middle) :] == [
        (offset, line + middle[1] - 1, part, lines)
        for offset, line, part, lines in read_all(tmp_path, size, middle[0])
    ]


def test_chunk_is_read_although_blocks_of_the_last_one_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An insert may end before it has taken all of them."""
    monkeypatch.setattr(readers, "BLOCK_BYTES", 4)
    monkeypatch.setattr(chunks, "BLOCK_BYTES", 1)
    write(tmp_path, b"a\nb\n" + b"c" * 100 + b"\n")
    reader = ChunkReader(tmp_path, NAME, 0, 4)
    first = reader.read(1)
    assert first
    left = first.blocks()
    assert next(left) == b"a\n"
    second = reader.read(3)
    reader.close()
    assert second
    assert b"".join(second.blocks()) == b"c" * 100 + b"\n"


def test_blocks_are_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk is passed on in blocks that end with a line."""
    monkeypatch.setattr(chunks, "BLOCK_BYTES", 100)
    write(tmp_path, random_lines(random.Random(1), 500))
    reader = ChunkReader(tmp_path, NAME, 0, 10**6)
    chunk = reader.read(1)
    reader.close()
    assert chunk
    blocks = list(chunk.blocks())
    assert len(blocks) > 10
    assert all(block.endswith(b"\n") for block in blocks)
    assert all(len(block) <= 100 or block.count(b"\n") == 1 for block in blocks)


@pytest.mark.parametrize(
    "content", [b"a\nb\n", b"a\nbbbbbbbbb\n", b"aaaaaaaaa\nb\n", b"a\nb\nc\nd\n", b"a\nb", b"\n\n"]
)
def test_halves_are_the_whole(content: bytes) -> None:
    """A chunk is halved at a line end, and neither half is empty."""
    buffer = bytearray(b"before\n" + content + b"after\n")
    chunk = Chunk(NAME, 1000, 50, buffer, 7, 7 + len(content))
    first, second = chunk.halves()
    assert content == b"".join([*first.blocks(), *second.blocks()])
    assert (first.offset, first.first_line) == (1000, 50)
    assert (second.offset, second.first_line) == (1000 + first.size, 50 + first.lines)
    assert min(first.lines, second.lines) >= 1
    assert first.lines + second.lines == chunk.lines


def test_memory_is_bounded_by_the_chunk(tmp_path: Path) -> None:
    """However long a segment is, only one chunk and one block of the reader are in memory."""
    write(tmp_path, b"x" * 99 * 1024 + b"\n" + (b"y" * 99 + b"\n") * 100_000)
    reader = ChunkReader(tmp_path, NAME, 0, 50_000)
    line = 1
    while chunk := reader.read(line):
        line += chunk.lines
        assert len(chunk.buffer) <= 2 * 100 * 1024 + readers.BLOCK_BYTES
    assert line == 100_002
    reader.close()
