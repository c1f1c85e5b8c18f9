"""The cursor forgets nothing that it was told, and knows when it may have."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from astralog.forward import cursor as cursors
from astralog.forward.cursor import START, Cursor, Position
from astralog.store import deliveries
from tests.conftest import Fault

NAMES = [f"20261123T06250{number}.000000Z-1" for number in range(5)]
A, B, C, *_ = NAMES


def open_cursor(directory: Path, node: str = "n", sealed: list[str] = NAMES) -> Cursor:
    """Return a cursor that facts can be added to."""
    cursor = Cursor(directory, node, "http://host/db/logs")
    cursor.open(sealed)
    return cursor


def facts(directory: Path) -> list[str | None]:
    """Return the facts in the file, without its head."""
    return list(deliveries.read_facts(directory))[1:]


def test_facts_outlive_the_process(tmp_path: Path) -> None:
    """What was noted is known to the next one, and what was under way is in doubt."""
    cursor = open_cursor(tmp_path)
    cursor.finish(A, then=B)
    cursor.advance(B, Position(100, 3))
    cursor.close()
    cursor = open_cursor(tmp_path)
    assert cursor.delivered == {A}
    assert (cursor.position(B), cursor.position(C)) == (Position(100, 3), START)
    assert B in cursor.in_doubt
    delivered = deliveries.DeliveredSegments(tmp_path)
    assert [A] == [name for name in NAMES if name in delivered]


def test_without_a_cursor_everything_is_in_doubt(tmp_path: Path) -> None:
    """Nobody knows whether there was one: the table is asked about all that is there."""
    assert open_cursor(tmp_path).in_doubt == set(NAMES)


def test_doubt_stays_until_a_segment_is_done(tmp_path: Path) -> None:
    """What is in doubt at one start is so at the next, and what comes later never."""
    cursor = open_cursor(tmp_path, sealed=[A, B])
    cursor.finish(A, then=None)
    cursor.close()
    cursor = open_cursor(tmp_path)
    assert cursor.in_doubt == {B}
    cursor.finish(B, then=C)
    assert cursor.in_doubt == set()
    cursor.close()
    assert open_cursor(tmp_path).in_doubt == {C}


def test_what_is_sent_is_noted_before(tmp_path: Path) -> None:
    """A segment is in doubt from its first insert on, whatever happens to that."""
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
def test_a_damaged_cursor_leaves_doubt(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Facts that are whole still hold; all else is in doubt."""
    cursor = open_cursor(tmp_path)
    cursor.finish(A, then=None)
    cursor.close()
    path = tmp_path / deliveries.CURSOR_NAME
    path.write_bytes(damage(path.read_bytes()))
    cursor = open_cursor(tmp_path)
    assert cursor.in_doubt | cursor.delivered == set(NAMES)
    assert cursor.in_doubt >= set(NAMES) - {A}


@pytest.mark.parametrize("stranger", ["node", "table", "directory", "copy"])
def test_a_foreign_cursor_holds_for_nothing(tmp_path: Path, stranger: str) -> None:
    """Facts about another node, table or directory are none about this one."""
    cursor = open_cursor(tmp_path)
    cursor.finish(A, then=None)
    cursor.close()
    directory, node, table = tmp_path, "n", "http://host/db/logs"
    path = tmp_path / deliveries.CURSOR_NAME
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
    assert (cursor.delivered, cursor.in_doubt) == (set(), set(NAMES))


def test_segments_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    """The file holds what is there, each fact once, and stays short."""
    cursor = open_cursor(tmp_path)
    cursor.finish(A, then=B)
    cursor.finish(B, then=C)
    for lines in range(100):
        cursor.advance(C, Position(lines * 10, lines))
    cursor.close()
    cursor = open_cursor(tmp_path, sealed=[B, C])
    assert [f"done {B}", f"at {C} 990 99"] == facts(tmp_path)
    assert cursor.known() == {B, C}


def test_a_long_file_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs, too, the file is never much longer than it needs."""
    monkeypatch.setattr(cursors, "SPARE_LINES", 10)
    cursor = open_cursor(tmp_path, sealed=[])
    for lines in range(100):
        cursor.advance(C, Position(lines * 10, lines))
        cursor.forget([A])
        assert len(facts(tmp_path)) <= 12
    assert cursor.position(C) == Position(990, 99)


@pytest.mark.parametrize("function", ["write", "fdatasync"])
def test_after_an_error_the_file_is_written_anew(
    tmp_path: Path, break_os: Callable[..., Fault], function: str
) -> None:
    """A fact that could not be written is not believed; what is known then is written whole."""
    cursor = open_cursor(tmp_path)
    cursor.finish(A, then=None)
    break_os(function, errno.ENOSPC, times=1)
    with pytest.raises(OSError, match="No space"):
        cursor.finish(B, then=None)
    assert cursor.delivered == {A}
    cursor.finish(C, then=None)
    cursor.close()
    assert open_cursor(tmp_path).delivered == {A, C}


def test_facts_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fact is on the disk when it counts, and so is the file's name."""
    calls: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append("fact"))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("directory"))
    cursor = open_cursor(tmp_path)
    assert calls == ["fact", "directory"]
    cursor.finish(A, then=B)
    cursor.advance(B, Position(1, 1))
    assert calls == ["fact", "directory", "fact", "fact"]


def test_names_of_any_kind_are_one_word(tmp_path: Path) -> None:
    """A node's name cannot be taken for something else in the file."""
    cursor = open_cursor(tmp_path, node="näme with\nspace")
    cursor.finish(A, then=None)
    cursor.close()
    assert open_cursor(tmp_path, node="näme with\nspace").delivered == {A}
    [head] = [fact for fact in deliveries.read_facts(tmp_path) if fact and "cursor" in fact]
    assert len(head.split(" ")) == 5
