"""The lines around matching ones, and the memory that they take."""

from collections.abc import Iterator

import pytest

from astralog.store.merge import Arrival
from astralog.store.names import SegmentName
from astralog.store.reader import Block, select_if
from astralog.view import context
from astralog.view.context import groups, unpack, with_lines_before


def grouped(before: int, after: int, *blocks: bytes) -> list[tuple[bool, list[bytes]]]:
    """Return the groups around lines with an x: whether a gap is before each, and its lines."""
    select = select_if(lambda line: b"x" in line)
    found = groups([Block(0, block) for block in blocks], select, before, after)
    return [(group.has_gap, group.lines) for group in found]


def newest(before: int, after: int, count: int, block: bytes) -> bytes:
    """Return the lines that are shown for the last `count` lines with an x, last first."""
    select = select_if(lambda line: b"x" in line)
    found = list(groups([Block(0, block)], select, before, after))[::-1]
    segment = SegmentName("20261123T062500.123456Z-1")
    texts = list(with_lines_before(found, before))[:count]
    arrivals = [Arrival(segment, 0, offset, text) for offset, text in texts]
    return b" ".join(unpack(arrivals, marks_gaps=True))


def test_lines_around_are_those_next_to_a_match() -> None:
    """In other blocks too; a gap is marked where lines are left out."""
    blocks = (b"1\n2\n3\n", b"x\n4\n", b"5\n6\nx\n")
    assert grouped(1, 1, *blocks) == [(True, [b"3", b"x", b"4"]), (True, [b"6", b"x"])]
    assert grouped(9, 9, *blocks) == [
        (False, [b"1", b"2", b"3", b"x", b"4", b"5", b"6"]),
        (False, [b"x"]),
    ]
    assert grouped(0, 0, *blocks) == [(True, [b"x"]), (True, [b"x"])]


def test_lines_before_a_damage_are_yielded() -> None:
    def blocks() -> Iterator[Block]:
        yield Block(0, b"1\nx\n2\n")
        raise EOFError

    found = groups(blocks(), select_if(lambda line: b"x" in line), 1, 9)
    assert next(found).lines == [b"1", b"x", b"2"]
    with pytest.raises(EOFError):
        next(found)


def test_lines_around_are_limited_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are farther away are left out, and the gap is marked."""
    monkeypatch.setattr(context, "MAX_BYTES", 5)
    lines = b"11\n22\n33\nx\n44\n55\n66\n7\nx\n"
    assert grouped(9, 9, lines) == [
        (True, [b"22", b"33", b"x", b"44", b"55"]),
        (False, [b"66", b"7", b"x"]),
    ]
    assert grouped(9, 9, b"1\n222222\nx\n333333\n4\nx\n") == [
        (True, [b"x"]),
        (True, [b"4", b"x"]),
    ]


def test_the_newest_logs_have_all_lines_before_them() -> None:
    """Also matching lines, and those after an earlier match; each line is shown once."""
    block = b"1\n2\nx3\n4\nx5\nx6\n7\nx8\n9\n"
    assert newest(2, 1, 1, block) == b"x6 7 x8 9"
    assert newest(2, 1, 2, block) == b"x6 7 x8 9 -- 4 x5"
    assert newest(2, 1, 3, block) == b"x6 7 x8 9 -- 4 x5 -- x3"
    assert newest(2, 1, 4, block) == b"x6 7 x8 9 -- 4 x5 -- x3 -- 1 2"
    assert newest(9, 9, 1, block) == b"1 2 x3 4 x5 x6 7 x8 9"
    assert newest(0, 1, 3, block) == b"x8 9 -- x6 7 -- x5"
    assert newest(1, 0, 2, block) == b"7 x8 -- x5 x6"


def test_lines_before_the_newest_logs_are_limited_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "MAX_BYTES", 5)
    assert newest(9, 0, 1, b"x1\nx2\nx3\nx4\nx5\n") == b"x3 x4 x5"
    assert newest(9, 9, 1, b"1\nx22222\nx3\n") == b"x3"
    assert newest(9, 9, 2, b"1\nx22222\nx3\n") == b"x3 -- 1 x22222"
