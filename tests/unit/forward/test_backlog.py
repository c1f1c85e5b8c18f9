"""The backlog lists segments oldest first, and drops removed ones."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from astralog.clock import TrustedClock
from astralog.forward import backlog as backlogs
from astralog.forward.backlog import Backlog, find_sealed
from astralog.forward.cursor import Cursor
from astralog.store import files, reader
from astralog.store.compression import compress_segment
from astralog.store.names import SegmentName
from tests.support.clickhouse import make_line, write_segment


@pytest.fixture
def cursor(tmp_path: Path) -> Cursor:
    """Return a cursor of the directory."""
    cursor = Cursor(tmp_path, "n", "http://host/db/logs")
    cursor.open([])
    return cursor


@pytest.fixture
def backlog(tmp_path: Path, cursor: Cursor) -> Backlog:
    """Return the directory's backlog before its first poll."""
    return Backlog(tmp_path, cursor)


def write(directory: Path, number: int, size: int = 1) -> str:
    """Write a segment and return its name."""
    path = write_segment(directory, [make_line(0)] * size, number)
    return path.name.removesuffix(".ndjson")


def test_the_oldest_comes_first(tmp_path: Path, backlog: Backlog, cursor: Cursor) -> None:
    """Segments are sorted by name, whenever they were sealed."""
    names = [write(tmp_path, number) for number in (2, 3)]
    backlog.scan()
    assert (backlog.oldest(), backlog.oldest(but=names[0])) == (names[0], names[1])
    names.insert(0, write(tmp_path, 1))
    backlog.scan()
    for name in names:
        assert backlog.oldest() == name
        cursor.finish([name])
        backlog.remove(name)
    assert (backlog.oldest(), backlog.waiting_segments, backlog.oldest_at) == (None, 0, 0.0)
    backlog.scan()
    assert backlog.oldest() is None


def test_sizes_and_age(tmp_path: Path, backlog: Backlog) -> None:
    """Sealed segments wait with their bytes; the lag includes open segments."""
    for number in (2, 3):
        write(tmp_path, number, size=number)
    backlog.scan()
    size = sum(path.stat().st_size for path in tmp_path.glob("*.ndjson"))
    assert (backlog.waiting_segments, backlog.waiting_bytes) == (2, size)
    assert backlog.oldest_at == SegmentName("20261123T000002.000000Z-1").start
    (tmp_path / "20261123T000001.000000Z-1.ndjson.open").touch()
    backlog.scan()
    assert backlog.waiting_segments == 2
    assert backlog.oldest_at == SegmentName("20261123T000001.000000Z-1").start


def test_removed_segments_are_logged(
    tmp_path: Path, backlog: Backlog, cursor: Cursor, caplog: pytest.LogCaptureFixture
) -> None:
    """A removed segment that was not delivered is logged as an error; a delivered one is not."""
    delivered, waiting = write(tmp_path, 1), write(tmp_path, 2)
    cursor.finish([delivered])
    backlog.scan()
    for path in tmp_path.glob("*.ndjson"):
        path.unlink()
    backlog.scan()
    assert [f"{waiting} was removed before it was delivered"] == caplog.messages
    assert (backlog.oldest(), cursor.known()) == (None, set())


def test_compressed_segment_waits_with_its_new_size(tmp_path: Path, backlog: Backlog) -> None:
    """It stays the same segment, in its place; one removed meanwhile is dropped."""
    names = [write(tmp_path, number, size=1000) for number in (1, 2)]
    backlog.scan()
    assert compress_segment(tmp_path, names[0])
    backlog.scan()
    size = sum(path.stat().st_size for path in tmp_path.glob("*.ndjson*"))
    assert (backlog.waiting_segments, backlog.waiting_bytes) == (2, size)
    assert backlog.oldest() == names[0]
    assert compress_segment(tmp_path, names[1])
    (tmp_path / f"{names[1]}.ndjson.zst").unlink()
    backlog.scan()
    assert backlog.waiting_segments == 1


def test_segments_compressed_during_a_listing_stay(
    tmp_path: Path, backlog: Backlog, cursor: Cursor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment is removed only if neither of its files exists."""
    delivered, waiting = write(tmp_path, 1), write(tmp_path, 2)
    cursor.finish([delivered])
    cursor.begin(waiting)
    backlog.scan()
    monkeypatch.setattr(reader, "list_segments", lambda path: reader.Segments(set(), set(), set()))
    backlog.scan()
    assert (backlog.oldest(), cursor.known()) == (waiting, {delivered, waiting})
    assert {delivered} == find_sealed(tmp_path, {delivered, "20261123T000009.000000Z-1"})


def test_unreadable_segments_do_not_block_others(
    tmp_path: Path, backlog: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment on a bad sector waits for later; the lag includes it."""
    bad, good = write(tmp_path, 1), write(tmp_path, 2)
    backlog.scan()
    backlog.postpone(bad, OSError("I/O error"))
    backlog.scan()
    assert (backlog.oldest(), backlog.waiting_segments) == (good, 2)
    assert backlog.oldest_at == SegmentName(bad).start
    backlog.postpone(bad, OSError("it is not in the queue any more"))
    monkeypatch.setattr(backlogs, "UNREADABLE_SECONDS", 0.0)
    backlog.postpone(good, OSError("I/O error"))
    backlog.scan()
    assert backlog.oldest() == good


def test_sent_segments_wait_but_are_not_resent(
    tmp_path: Path, backlog: Backlog, cursor: Cursor, caplog: pytest.LogCaptureFixture
) -> None:
    """They wait until they are verified, even if their file is removed meanwhile."""
    sent, other = write(tmp_path, 1), write(tmp_path, 2)
    backlog.scan()
    cursor.begin(sent)
    backlog.set_aside(sent)
    for _ in range(2):
        assert (backlog.oldest(), backlog.waiting_segments, sent in backlog) == (other, 2, True)
        assert backlog.oldest_at == SegmentName(sent).start
        (tmp_path / f"{sent}.ndjson").unlink(missing_ok=True)
        backlog.scan()
    assert cursor.known() == {sent}
    backlog.postpone(sent, OSError("it cannot be read to send it again"))
    backlog.remove(other)
    assert backlog.oldest() is None
    backlog.remove(sent)
    assert (backlog.waiting_segments, sent in backlog) == (0, False)
    assert caplog.messages == [
        f"cannot read {sent}: it cannot be read to send it again; retrying every minute"
    ]


def test_the_oldest_within_a_size(tmp_path: Path, backlog: Backlog) -> None:
    """As many as fit, without sent and unreadable ones."""
    names = [write(tmp_path, number) for number in range(5)]
    size = (tmp_path / f"{names[0]}.ndjson").stat().st_size
    backlog.scan()
    backlog.set_aside(names[0])
    backlog.postpone(names[1], OSError("I/O error"))
    assert names[2:4] == list(backlog.oldest_within(2 * size))
    assert list(backlog.oldest_within(size - 1)) == []


def test_unremovable_segments_are_skipped(
    tmp_path: Path,
    backlog: Backlog,
    cursor: Cursor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line reports it, and one that it is over."""
    names = [write(tmp_path, number) for number in (1, 2)]
    for name in names:
        os.utime(tmp_path / (name + ".ndjson"), (0, 0))
    cursor.finish(names)
    remove = files.remove_sealed

    def fail(directory: Path, name: str) -> int:
        if name == names[0]:
            raise PermissionError(1, "Operation not permitted")
        return remove(directory, name)

    with monkeypatch.context() as patch:
        patch.setattr(files, "remove_sealed", fail)
        for _ in range(3):
            backlog.remove_delivered(3600)
    assert {names[0]} == reader.list_segments(tmp_path).sealed == cursor.delivered
    backlog.remove_delivered(3600)
    assert reader.list_segments(tmp_path).sealed == set()
    assert caplog.messages == [
        f"cannot remove {names[0]}: Operation not permitted",
        "delivered segments are removed again",
    ]


def test_a_clock_that_jumps_removes_nothing(
    tmp_path: Path, backlog: Backlog, cursor: Cursor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two days ahead for some seconds change no age."""
    name = write(tmp_path, 1)
    cursor.finish([name])
    jumped = time.time() + 2 * 86400
    monkeypatch.setattr(time, "time", lambda: jumped)
    backlog.remove_delivered(3600)
    assert {name} == reader.list_segments(tmp_path).sealed


def test_old_delivered_segments_are_removed(
    tmp_path: Path, backlog: Backlog, cursor: Cursor
) -> None:
    """By the age of their files, and only delivered ones."""
    old, waiting, young = (write(tmp_path, number) for number in (1, 2, 3))
    for name in (old, waiting):
        os.utime(tmp_path / (name + ".ndjson"), (0, 0))
    for name in (old, young):
        cursor.finish([name])
    backlog.remove_delivered(3600)
    assert {waiting, young} == reader.list_segments(tmp_path).sealed
    assert cursor.delivered == {young}
    backlog.scan()
    assert backlog.oldest() == waiting


def test_delivered_segments_are_removed_by_their_last_change(
    tmp_path: Path, backlog: Backlog, cursor: Cursor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A young one protects neither later names nor names of a wrong clock."""
    old, young, late = (write(tmp_path, number) for number in (1, 2, 3))
    ahead = "20261130T000000.000000Z-1"
    (tmp_path / f"{ahead}.ndjson").touch()
    for name in (old, late, ahead):
        os.utime(tmp_path / f"{name}.ndjson", (0, 0))
    cursor.finish([old, young, late, ahead])
    now = datetime(2026, 11, 24, tzinfo=UTC).timestamp()
    monkeypatch.setattr(backlog, "_clock", TrustedClock(lambda: now, lambda: 0.0))
    os.utime(tmp_path / f"{young}.ndjson", (now, now))
    backlog.remove_delivered(3600)
    assert {young} == reader.list_segments(tmp_path).sealed
