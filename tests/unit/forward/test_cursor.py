"""The cursor keeps every recorded fact, and knows if facts may be missing."""

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from astralog.forward import cursor as cursors
from astralog.forward.cursor import START, Cursor, Position
from astralog.store import forward_state
from astralog.store.names import SegmentName
from tests.support.fake_system import BreakOs

NAMES = [f"20261123T06250{number}.000000Z-1" for number in range(5)]
A, B, C, *_ = NAMES


def open_cursor(directory: Path, node: str = "n", sealed: list[str] = NAMES) -> Cursor:
    """Return a cursor that accepts facts."""
    cursor = Cursor(directory, node, "http://host/db/logs")
    cursor.open(sealed)
    return cursor


def deliver(cursor: Cursor, name: str, then: str) -> None:
    """Record that a segment is delivered and another one is started."""
    cursor.advance(name, Position(50, 2), then)
    cursor.finish([name])


def facts(directory: Path) -> list[str | None]:
    """Return the facts in the file, without its header."""
    return list(forward_state.read_facts(directory))[1:]


def test_facts_outlive_the_process(tmp_path: Path) -> None:
    """The next process knows the facts, and unfinished segments are in doubt."""
    cursor = open_cursor(tmp_path)
    deliver(cursor, A, then=B)
    cursor.advance(B, Position(100, 3))
    cursor.close()
    cursor = open_cursor(tmp_path)
    assert cursor.delivered == {A}
    assert (cursor.position(B), cursor.position(C)) == (Position(100, 3), START)
    assert B in cursor.in_doubt
    delivered = forward_state.DeliveredSegments(tmp_path)
    assert [A] == [name for name in NAMES if name in delivered]


def test_segments_begun_before_are_in_doubt(tmp_path: Path) -> None:
    """An insert of an earlier process may still be running."""
    cursor = open_cursor(tmp_path, sealed=[A, B])
    deliver(cursor, A, then=B)
    assert cursor.in_doubt == set()
    cursor.close()
    cursor = open_cursor(tmp_path)
    assert cursor.in_doubt == {B}
    deliver(cursor, B, then=C)
    assert cursor.in_doubt == set()
    cursor.close()
    assert open_cursor(tmp_path).in_doubt == {C}


def test_segments_without_facts_may_be_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that were started before this process or a dead one, or in the future."""
    starts = [SegmentName(name).start for name in NAMES]
    monkeypatch.setattr(time, "time", lambda: starts[1])
    cursor = open_cursor(tmp_path)
    monkeypatch.setattr(time, "time", lambda: starts[3])
    assert [True, True, False, False, True] == list(map(cursor.may_be_held, NAMES))
    cursor.forget([NAMES[2]])
    assert [True, True, True, False, True] == list(map(cursor.may_be_held, NAMES))
    cursor.forget([NAMES[0]])
    assert [True, True, True, False, True] == list(map(cursor.may_be_held, NAMES))


def test_failed_attempt_leaves_doubt(tmp_path: Path) -> None:
    """Until the segment is delivered or removed."""
    cursor = open_cursor(tmp_path)
    for name in (A, B, C):
        cursor.doubt(name)
    cursor.finish([A])
    cursor.forget([B])
    assert cursor.in_doubt == {C}


def test_segments_are_recorded_before_sending(tmp_path: Path) -> None:
    """A segment is in doubt from its first insert on."""
    open_cursor(tmp_path, sealed=[]).close()
    cursor = open_cursor(tmp_path)
    assert cursor.in_doubt == set()
    cursor.begin(A)
    cursor.begin(A)
    assert [f"at {A} 0 0"] == facts(tmp_path)
    cursor.close()
    assert open_cursor(tmp_path).in_doubt == {A}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[10:],
        lambda content: content.replace(b"done", b"dome"),
        lambda content: content + b"\0\0\0",
        lambda content: content + b"done 1 00000000\n",
    ],
)
def test_a_damaged_cursor_leaves_doubt(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Complete facts still hold, and no others."""
    cursor = open_cursor(tmp_path)
    cursor.finish([A])
    cursor.close()
    path = tmp_path / forward_state.CURSOR_NAME
    path.write_bytes(damage(path.read_bytes()))
    cursor = open_cursor(tmp_path)
    assert cursor.delivered <= {A}
    assert cursor.known() == cursor.delivered
    assert all(map(cursor.may_be_held, NAMES))
    assert sum("cursor is" in message for message in caplog.messages) <= 1


@pytest.mark.parametrize("stranger", ["node", "table", "directory", "copy"])
def test_foreign_cursor_is_ignored(tmp_path: Path, stranger: str) -> None:
    """Facts about another node, table or directory do not apply."""
    cursor = open_cursor(tmp_path)
    cursor.finish([A])
    cursor.close()
    directory, node, table = tmp_path, "n", "http://host/db/logs"
    path = tmp_path / forward_state.CURSOR_NAME
    if stranger == "node":
        node = "m"
    elif stranger == "table":
        table = "http://host/db/dogs"
    elif stranger == "directory":
        directory = tmp_path / "other"
        directory.mkdir()
        path.rename(directory / path.name)
    else:
        content = path.read_bytes()
        path.rename(tmp_path / "kept")
        path.write_bytes(content)
    cursor = Cursor(directory, node, table)
    cursor.open(NAMES)
    assert cursor.known() == set()


def test_removed_segments_are_forgotten(tmp_path: Path) -> None:
    """The file has each fact about existing segments once, and stays short."""
    cursor = open_cursor(tmp_path)
    deliver(cursor, A, then=B)
    deliver(cursor, B, then=C)
    for lines in range(100):
        cursor.advance(C, Position(lines * 10, lines))
    cursor.close()
    cursor = open_cursor(tmp_path, sealed=[B, C])
    assert [f"done {B}", f"at {C} 990 99"] == facts(tmp_path)
    assert cursor.known() == {B, C}


def test_long_file_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The running process too keeps the file near its necessary length."""
    monkeypatch.setattr(cursors, "SPARE_LINES", 10)
    cursor = open_cursor(tmp_path, sealed=[])
    for lines in range(100):
        cursor.advance(C, Position(lines * 10, lines))
        cursor.forget([A])
        assert len(facts(tmp_path)) <= 12
    assert cursor.position(C) == Position(990, 99)


def test_repetition_is_kept(tmp_path: Path) -> None:
    """Lines that were sent a second time are not sent a third time after a restart."""
    cursor = open_cursor(tmp_path)
    cursor.advance(A, Position(50, 2))
    cursor.repeat(A)
    cursor.repeat(B)
    for _ in range(2):
        cursor.close()
        cursor = open_cursor(tmp_path)
        assert cursor.repeated == {A, B}
        assert cursor.position(A) == Position(50, 2)
    cursor.finish([A])
    cursor.forget([B])
    cursor.close()
    assert open_cursor(tmp_path, sealed=[A]).repeated == set()


@pytest.mark.parametrize("change", ["removed", "restored", "in place"])
def test_replaced_file_is_rewritten(tmp_path: Path, change: str) -> None:
    """Later facts go to the current file, with all known ones."""
    cursor = open_cursor(tmp_path)
    path = tmp_path / forward_state.CURSOR_NAME
    before = path.read_bytes()
    cursor.finish([A])
    if change == "in place":
        path.write_bytes(before)
    else:
        path.rename(tmp_path / "kept")
        if change == "restored":
            path.write_bytes(before)
    cursor.finish([B])
    cursor.close()
    delivered = open_cursor(tmp_path).delivered
    assert delivered == {A, B} if change != "in place" else {B} <= delivered


def test_another_directory_gets_no_cursor(tmp_path: Path) -> None:
    """Its segments are different; facts are recorded in their own directory only."""
    directory = tmp_path / "data"
    directory.mkdir()
    cursor = open_cursor(directory)
    directory.rename(tmp_path / "away")
    directory.mkdir()
    with pytest.raises(OSError, match="directory was replaced"):
        cursor.finish([A])
    assert list(directory.iterdir()) == []
    assert cursor.delivered == set()


def test_a_full_disk_at_the_start(tmp_path: Path, break_os: BreakOs) -> None:
    """The file is written with the first fact, and no draft uses disk until then."""
    break_os("write", errno.ENOSPC, times=1)
    cursor = open_cursor(tmp_path)
    assert list(tmp_path.iterdir()) == []
    cursor.finish([A])
    cursor.close()
    assert open_cursor(tmp_path).delivered == {A}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("function", ["write", "fdatasync", "open", "fsync"])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_facts_survive_any_failures(
    tmp_path: Path, break_os: BreakOs, function: str, number: int, times: int
) -> None:
    """After any sequence of failures, the file finally has each recorded fact."""
    cursor = open_cursor(tmp_path)
    cursor.advance(A, Position(10, 1), then=B)
    break_os(function, number, times=times)
    (tmp_path / forward_state.CURSOR_NAME).unlink()  # so that each of these is called
    noted = 0
    facts: list[Callable[[], None]] = [
        lambda: cursor.finish([A]),
        lambda: cursor.advance(B, Position(20, 2)),
        lambda: cursor.repeat(B),
    ]
    for fact in facts:
        for _ in range(times + 1):
            with contextlib.suppress(OSError):
                fact()
                noted += 1
                break
    assert noted == 3
    cursor.close()
    cursor = open_cursor(tmp_path)
    assert (cursor.delivered, cursor.repeated) == ({A}, {B})
    assert cursor.position(B) == Position(20, 2)


def test_failed_sync_after_a_rename_loses_nothing(
    tmp_path: Path, break_os: BreakOs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file may lack its durable name, so the next fact goes to another file."""
    monkeypatch.setattr(cursors, "SPARE_LINES", 0)
    cursor = open_cursor(tmp_path)
    cursor.finish([A, B])
    break_os("fsync", errno.EIO, times=1)
    with pytest.raises(OSError, match="Input/output"):
        cursor.forget([A])
    cursor.finish([C])
    cursor.close()
    assert open_cursor(tmp_path).delivered == {B, C}


@pytest.mark.parametrize("function", ["write", "fdatasync"])
def test_file_is_rewritten_after_an_error(tmp_path: Path, break_os: BreakOs, function: str) -> None:
    """A fact that could not be written does not count; the known ones are written again."""
    cursor = open_cursor(tmp_path)
    cursor.finish([A])
    break_os(function, errno.ENOSPC, times=1)
    with pytest.raises(OSError, match="No space"):
        cursor.finish([B])
    assert cursor.delivered == {A}
    cursor.finish([C])
    cursor.close()
    assert open_cursor(tmp_path).delivered == {A, C}


def test_facts_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fact is on disk before it counts, and so is the file's name."""
    calls: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append("fact"))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("directory"))
    cursor = open_cursor(tmp_path)
    assert calls == ["fact", "directory"]
    deliver(cursor, A, then=B)
    cursor.advance(B, Position(1, 1))
    assert calls == ["fact", "directory", "fact", "fact", "fact"]


def test_any_node_name_is_one_word(tmp_path: Path) -> None:
    """A node's name cannot be mistaken for another field of the file."""
    cursor = open_cursor(tmp_path, node="näme with\nspace")
    cursor.finish([A])
    cursor.close()
    assert open_cursor(tmp_path, node="näme with\nspace").delivered == {A}
    [head] = [fact for fact in forward_state.read_facts(tmp_path) if fact and "cursor" in fact]
    assert len(head.split(" ")) == 5
