"""Reading one segment: complete lines, forwards and backwards, under each of its names."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.store import reader as reader_module
from astralog.store.names import Form
from astralog.store.reader import READ_ERRORS, ReadBudget, SegmentReader, every_line
from astralog.zstd import zstd
from tests.support.tail import compress, make_segment
from tests.unit.store.segments import name_of

NAME = name_of("a")
SUFFIXES = [form.value for form in Form]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few lines be many blocks."""
    monkeypatch.setattr(reader_module, "BLOCK_BYTES", 8)
    monkeypatch.setattr(reader_module, "LAST_BLOCK_BYTES", 4)


Lines = Iterator[tuple[int, bytes]]


def lines_of(reader: SegmentReader, begin: int, end: int | None, budget: ReadBudget) -> Lines:
    """Yield each line, and the offset after it."""
    for start, block in reader.blocks(begin, end, budget):
        for offset, line in every_line(block):
            yield start + offset, line


def lines_backwards(reader: SegmentReader, end: int | None, budget: ReadBudget) -> Lines:
    """Yield each line, newest first, and the offset after it."""
    for start, block in reader.blocks_backwards(end, budget):
        for offset, line in reversed(list(every_line(block))):
            yield start + offset, line


def forwards(reader: SegmentReader, begin: int = 0, end: int | None = None) -> list[bytes]:
    return [line for _, line in lines_of(reader, begin, end, ReadBudget())]


def backwards(reader: SegmentReader, end: int | None = None) -> list[bytes]:
    return [line for _, line in lines_backwards(reader, end, ReadBudget())]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_name_is_read(tmp_path: Path, suffix: str) -> None:
    """The lines are the same, whether the file is open, sealed or compressed."""
    make_segment(tmp_path, NAME, b"one\n", b"\n", b"three\n", suffix=suffix)
    reader = SegmentReader(tmp_path, NAME)
    assert [b"one", b"", b"three"] == forwards(reader)
    assert [b"", b"three"] == forwards(reader, begin=4)
    assert [b"one", b""] == forwards(reader, end=5)
    assert [(4, b"one"), (5, b""), (11, b"three")] == list(lines_of(reader, 0, None, ReadBudget()))
    reader.close()


def test_a_missing_segment_is_an_error(tmp_path: Path) -> None:
    """A segment needs at least one of its files."""
    with pytest.raises(FileNotFoundError, match=NAME):
        SegmentReader(tmp_path, NAME)


def test_open_segment_is_read_after_its_removal(tmp_path: Path) -> None:
    """Sealing, compressing and removing do not disturb an open file."""
    path = make_segment(tmp_path, NAME, b"one\n", suffix=".ndjson.open")
    reader = SegmentReader(tmp_path, NAME)
    sealed = path.rename(tmp_path / NAME.file(Form.PLAIN))
    compress(sealed).unlink()
    assert [b"one"] == forwards(reader)
    assert [b"one"] == backwards(reader)
    reader.close()


@given(st.lists(st.sampled_from([b"\n", b"a", b"bcd", b"0123456789", b"\0"])), st.booleans())
def test_backwards_is_forwards_reversed(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], ends: bool
) -> None:
    """Lines longer and shorter than a block, blank and incomplete ones; and offsets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "BLOCK_BYTES", 4)
        patch.setattr(reader_module, "LAST_BLOCK_BYTES", 2)
        patch.setattr(reader_module, "TAIL_BYTES", 3)
        content = b"".join(pieces) + (b"\n" if ends else b"")
        directory = tmp_path_factory.mktemp("segments")
        make_segment(directory, NAME, content)
        reader = SegmentReader(directory, NAME)
        whole = content[: content.rfind(b"\n") + 1]
        lines = list(lines_of(reader, 0, None, ReadBudget()))
        assert whole == b"".join(line + b"\n" for _, line in lines)
        assert lines == list(lines_backwards(reader, None, ReadBudget()))[::-1]
        assert len(whole) == reader.end_of_lines()
        for end in range(len(content) + 1):
            until = list(lines_backwards(reader, end, ReadBudget()))[::-1]
            assert [line for line in lines if line[0] <= end] == until
            assert until == list(lines_of(reader, 0, end, ReadBudget()))
        reader.close()


@pytest.mark.usefixtures("small_blocks")
def test_half_a_line_is_not_shown(tmp_path: Path) -> None:
    """It is shown once it is complete, however long it is."""
    path = make_segment(tmp_path, NAME, b"one\n", b"t" * 50, suffix=".ndjson.open")
    reader = SegmentReader(tmp_path, NAME)
    assert [b"one"] == forwards(reader) == backwards(reader)
    with path.open("ab") as file:
        file.write(b"o\n")
    assert [b"one", b"t" * 50 + b"o"] == forwards(reader) == backwards(reader)[::-1]
    reader.close()


@pytest.mark.usefixtures("small_blocks")
def test_file_truncated_while_read_ends_there(tmp_path: Path) -> None:
    """Reading backwards continues before the new end; no line is torn."""
    path = make_segment(tmp_path, NAME, *(b"line %d\n" % number for number in range(9)))
    reader = SegmentReader(tmp_path, NAME)
    lines = lines_backwards(reader, None, ReadBudget())
    assert (63, b"line 8") == next(lines)
    os.truncate(path, 24)
    rest = list(lines)
    assert [(21, b"line 2"), (14, b"line 1"), (7, b"line 0")] == rest[-3:]
    assert all(line == b"line %d" % (offset / 7 - 1) for offset, line in rest)
    assert [b"line 0", b"line 1", b"line 2"] == forwards(reader)
    reader.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.usefixtures("small_blocks")
def test_budget_bounds_the_read_bytes(tmp_path: Path, suffix: str) -> None:
    """Reading stops at the block that spends it, also backwards; without one all is read."""
    make_segment(tmp_path, NAME, *(b"line %d\n" % number for number in range(9)), suffix=suffix)
    reader = SegmentReader(tmp_path, NAME)
    budget = ReadBudget(20)
    assert 3 == len(list(lines_of(reader, 0, None, budget)))
    assert budget.is_spent
    assert 24 == budget.bytes_read
    if suffix != ".ndjson.zst":
        budget = ReadBudget(20)
        assert 2 == len(list(lines_backwards(reader, None, budget)))
        assert 20 <= budget.bytes_read <= 28
    reader.close()


@pytest.mark.usefixtures("small_blocks")
def test_a_line_longer_than_the_budget_is_read(tmp_path: Path) -> None:
    """Otherwise reading piece by piece would never get past it."""
    make_segment(tmp_path, NAME, b"x" * 100 + b"\n", b"one\n")
    reader = SegmentReader(tmp_path, NAME)
    assert [b"x" * 100] == [line for _, line in lines_of(reader, 0, None, ReadBudget(1))][:1]
    assert [b"x" * 100] == [line for _, line in lines_backwards(reader, 101, ReadBudget(1))]
    reader.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size", [43, 50, 100, 1000])
@pytest.mark.usefixtures("small_blocks")
def test_a_line_beyond_the_limit_is_skipped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    suffix: str,
    size: int,
) -> None:
    """It is not held in memory; the lines before and after it are read, at their offsets."""
    monkeypatch.setattr(reader_module, "MAX_LINE_BYTES", 30)
    make_segment(tmp_path, NAME, b"one\n", b"x" * size, b"\n", b"two\n", suffix=suffix)
    reader = SegmentReader(tmp_path, NAME)
    after = [(size + 5, b""), (size + 9, b"two")]
    assert [(4, b"one"), *after] == list(lines_of(reader, 0, None, ReadBudget()))
    assert after[:1] == list(lines_of(reader, 4, None, ReadBudget(1)))[:1]
    if suffix != ".ndjson.zst":
        lines = list(lines_backwards(reader, None, ReadBudget()))
        assert [after[1], (4, b"one")] == [item for item in lines if item[1]]
    assert f"{NAME}: skipped a line of over 0 MiB" in caplog.messages
    reader.close()


@pytest.mark.usefixtures("small_blocks")
def test_frames_may_follow_one_another(tmp_path: Path) -> None:
    """Another program may compress a file into several frames; lines may cross their limits."""
    path = tmp_path / NAME.file(Form.COMPRESSED)
    pieces = [b"one\ntw", b"", b"o\n", b"three\n" * 500]
    path.write_bytes(b"".join(map(zstd.compress, pieces)))
    reader = SegmentReader(tmp_path, NAME)
    budget = ReadBudget()
    lines = [line for _, line in lines_of(reader, 0, None, budget)]
    assert [b"one", b"two", *[b"three"] * 500] == lines
    assert path.stat().st_size == budget.file_bytes
    reader.close()


@pytest.mark.parametrize("damage", [zstd.compress(b"three\n")[:-1], b"no frame"])
def test_lines_before_a_damage_are_read(tmp_path: Path, damage: bytes) -> None:
    """A compressed file may end early, or continue with other bytes."""
    path = tmp_path / NAME.file(Form.COMPRESSED)
    path.write_bytes(zstd.compress(b"one\ntwo\n") + damage)
    reader = SegmentReader(tmp_path, NAME)
    lines = lines_of(reader, 0, None, ReadBudget())
    assert [b"one", b"two"] == [line for _, line in itertools.islice(lines, 2)]
    with pytest.raises(READ_ERRORS):
        next(lines)
    reader.close()
