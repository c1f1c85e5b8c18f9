"""Sealed segments are found once and read alike, compressed or not."""

import contextlib
import sys
from pathlib import Path

import pytest

from astralog.store import reader
from astralog.store.files import seal_file
from astralog.store.names import SEALED_FORMS, SegmentName
from astralog.store.reader import READ_ERRORS, ReadBudget, SegmentReader
from tests.support import foreign

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FIRST = "20261123T062500.123456Z-4711"
SECOND = "20261123T072500.000000Z-4712-1"  # the name without -1 was taken
LINES = b'{"a":1}\n{"b":2}\n'


def write(directory: Path, name: str, content: bytes = LINES) -> Path:
    """Write a file; one that ends in .zst is compressed."""
    path = directory / name
    path.write_bytes(zstd.compress(content) if name.endswith(".zst") else content)
    return path


def read_sealed(directory: Path, offset: int = 0) -> bytes:
    """Return the lines of a sealed segment from an offset on."""
    segment = SegmentReader(directory, SegmentName(FIRST), SEALED_FORMS)
    with contextlib.closing(segment):
        return b"".join(segment.data(offset, None, ReadBudget()))


def test_each_segment_is_listed_once(tmp_path: Path) -> None:
    """Both forms are one segment; open ones are separate, and other files left out."""
    for name in (f"{FIRST}.ndjson", f"{FIRST}.ndjson.zst", f"{SECOND}.ndjson.open"):
        write(tmp_path, name)
    foreign.make_all(tmp_path)
    assert ({FIRST}, {SECOND}, {FIRST}) == reader.list_segments(tmp_path)


def test_a_segment_whose_name_was_taken_is_listed(tmp_path: Path) -> None:
    """Sealing never replaces a file, so a number may follow the process."""
    write(tmp_path, f"{FIRST}.ndjson")
    path = write(tmp_path, f"{FIRST}.ndjson.open")
    seal_file(path, len(LINES))
    assert {FIRST, f"{FIRST}-1"} == reader.list_segments(tmp_path).sealed


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    """It is not the same as a directory without segments."""
    with pytest.raises(FileNotFoundError):
        reader.list_segments(tmp_path / "missing")


@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.zst"])
@pytest.mark.parametrize("offset", [0, 8, 16])
def test_lines_are_read_from_an_offset(tmp_path: Path, suffix: str, offset: int) -> None:
    """An offset counts uncompressed bytes, in either form."""
    write(tmp_path, FIRST + suffix)
    assert LINES[offset:] == read_sealed(tmp_path, offset)


def test_the_plain_form_is_preferred(tmp_path: Path) -> None:
    """If both exist, the one is read that takes less work."""
    write(tmp_path, FIRST + ".ndjson")
    (tmp_path / (FIRST + ".ndjson.zst")).write_bytes(b"not read")
    assert LINES == read_sealed(tmp_path)
    write(tmp_path, FIRST + ".ndjson.open", b"of another segment\n")  # its name was taken
    assert LINES == read_sealed(tmp_path)
    status = reader.sealed_status(tmp_path, FIRST)
    assert status
    assert status.st_size == len(LINES)


def test_missing_segment_is_an_error(tmp_path: Path) -> None:
    """It has neither file."""
    assert not reader.sealed_status(tmp_path, FIRST)
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path)
    write(tmp_path, FIRST + ".ndjson.zst")
    assert reader.sealed_status(tmp_path, FIRST)


@pytest.mark.parametrize("damage", ["cut", "garbled", "emptied"])
def test_a_damaged_segment_is_an_error(tmp_path: Path, damage: str) -> None:
    """Data that cannot be decompressed is an error, and not the end of the file."""
    path = write(tmp_path, FIRST + ".ndjson.zst", LINES * 1000)
    content = path.read_bytes()
    damaged = {"cut": content[:-5], "garbled": content[:10] + b"xx" + content[12:], "emptied": b""}
    path.write_bytes(damaged[damage])
    with pytest.raises(READ_ERRORS):
        read_sealed(tmp_path)


@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.zst"])
def test_the_size_of_the_lines_is_that_of_either_form(tmp_path: Path, suffix: str) -> None:
    """A compressed segment has the size that it had before."""
    write(tmp_path, FIRST + suffix, LINES * 1000)
    assert len(LINES) * 1000 == reader.size_of_lines(tmp_path, FIRST)


def test_size_of_a_frame_without_content_size_is_found(tmp_path: Path) -> None:
    """Other programs write frames without the size of their content."""
    compressor = zstd.ZstdCompressor()
    packed = compressor.compress(LINES) + compressor.flush()
    (tmp_path / (FIRST + ".ndjson.zst")).write_bytes(packed)
    assert zstd.get_frame_info(packed).decompressed_size is None
    assert len(LINES) == reader.size_of_lines(tmp_path, FIRST)


def test_missing_or_damaged_segment_has_no_size(tmp_path: Path) -> None:
    """The size is None."""
    with pytest.raises(FileNotFoundError):
        reader.size_of_lines(tmp_path, FIRST)
    (tmp_path / (FIRST + ".ndjson.zst")).write_bytes(b"no zstd at all")
    with pytest.raises(READ_ERRORS):
        reader.size_of_lines(tmp_path, FIRST)
