"""The lines around matching ones, and the memory that they take."""

from collections.abc import Iterator

import pytest

from astralog.store.merge import Arrival
from astralog.store.names import SegmentName
from astralog.store.reader import Block, select_if
from astralog.view import context
from astralog.view.context import groups, unpack


def shown(
    before: int, after: int, *blocks: bytes, newest: int | None = None, marks_gaps: bool = True
) -> bytes:
    """Return the lines that are shown around those with an x, or around the newest, last first."""
    numbered = [Block(len(b"".join(blocks[:n])), block) for n, block in enumerate(blocks)]
    select = select_if(lambda line: b"x" in line)
    found = list(groups(numbered, select, before, after, overlap=newest is not None))
    if newest is not None:
        found = found[::-1][:newest]
    segment = SegmentName("20261123T062500.123456Z-1")
    arrivals = [Arrival(segment, 0, *group.pack()) for group in found]
    return b" ".join(unpack(arrivals, marks_gaps=marks_gaps))


def test_lines_around_are_those_next_to_a_match() -> None:
    """In other blocks too; a gap is marked where lines are left out."""
    blocks = (b"1\n2\n3\n", b"x\n4\n", b"5\n6\nx\n")
    assert shown(1, 1, *blocks) == b"3 x 4 -- 6 x"
    assert shown(9, 9, *blocks) == b"1 2 3 x 4 5 6 x"
    assert shown(0, 0, *blocks) == b"x -- x"
    assert shown(0, 0, *blocks, marks_gaps=False) == b"x x"


def test_lines_before_a_damage_are_yielded() -> None:
    def blocks() -> Iterator[Block]:
        yield Block(0, b"1\nx\n2\n")
        raise EOFError

    found = groups(blocks(), select_if(lambda line: b"x" in line), 1, 9, overlap=False)
    assert next(found).lines == [b"1", b"x", b"2"]
    with pytest.raises(EOFError):
        next(found)


def test_lines_around_are_limited_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are farther away are left out, and the gap is marked."""
    monkeypatch.setattr(context, "MAX_BYTES", 5)
    assert shown(9, 9, b"11\n22\n33\nx\n44\n55\n66\n7\nx\n") == b"22 33 x 44 55 66 7 x"
    assert shown(9, 9, b"x\n44\n55\n66\n77\n88\n99\nx\n") == b"x 44 55 -- 88 99 x"


def test_the_newest_logs_have_all_lines_before_them() -> None:
    """Also matching lines, and those after an earlier match; each line is shown once."""
    block = b"1\n2\nx3\n4\nx5\nx6\n7\nx8\n9\n"
    assert shown(2, 1, block, newest=1) == b"x6 7 x8 9"
    assert shown(2, 1, block, newest=2) == b"x6 7 x8 9 -- 4 x5"
    assert shown(2, 1, block, newest=3) == b"x6 7 x8 9 -- 4 x5 -- x3"
    assert shown(2, 1, block, newest=4) == b"x6 7 x8 9 -- 4 x5 -- x3 -- 1 2"
    assert shown(9, 9, block, newest=1) == b"1 2 x3 4 x5 x6 7 x8 9"
    assert shown(9, 9, block, newest=4) == b"1 2 x3 4 x5 x6 7 x8 9"
    assert shown(0, 1, block, newest=3) == b"x8 9 -- x6 7 -- x5"
    assert shown(1, 0, block, newest=2) == b"7 x8 -- x5 x6"


def test_lines_before_the_newest_logs_are_limited_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "MAX_BYTES", 5)
    assert shown(9, 0, b"x1\nx2\nx3\nx4\nx5\n", newest=1) == b"x3 x4 x5"
    assert shown(9, 9, b"1\nx22222\nx3\n", newest=1) == b"x3"
    assert shown(9, 9, b"1\nx22222\nx3\n", newest=2) == b"x3 -- 1 x22222"
